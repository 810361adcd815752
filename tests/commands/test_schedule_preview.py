from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from matplotlib.image import imread
from typer.testing import Result

from arcvae_cli.presets import preset_names
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule, build_schedule
from arcvae_cli.schedules.feedback import ControlVAE, Geco
from arcvae_cli.schedules.open import Cyclical, LinearWarmup
from arcvae_cli.schedules.registry import WarmRestart
from arcvae_cli.settings import Settings

Run = Callable[..., Result]


@pytest.fixture
def preview(arcvae: Run) -> Run:
    def run(*arguments: object) -> Result:
        return arcvae("schedule-preview", *arguments)

    return run


def one(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    (document,) = json.loads(result.stdout)["schedules"]
    return dict(document)


def key_epochs(result: Result) -> dict[str, list[str]]:
    """The words of the table's lines by their epoch."""
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    head = next(i for i, words in enumerate(lines) if words[:1] == ["epoch"])
    return {words[0]: words[1:] for words in lines[head + 2 :] if words}


def test_a_preset_is_drawn_described_and_listed(preview: Run) -> None:
    result = preview("ultra_conservative")
    lines = result.stdout.splitlines()
    assert lines[0] == "ultra_conservative (preset, schedule ultra_conservative)"
    assert "peak 0.1, first at epoch 80" in lines[2]
    assert key_epochs(result) == {
        "1": ["0", "first", "epoch"],
        "20": ["0", "warm-up", "ends"],
        "80": ["0.1", "first", "peak"],
        "100": ["0.1", "last", "epoch"],
    }
    assert result.stderr == "" and max(map(len, lines)) <= 80
    chart = "\n".join(lines[4:17])
    assert chart.isascii() and "0.1 |" in chart and "*" * 10 in lines[5], "the plateau at the peak is drawn"


def test_several_names_overlay(preview: Run) -> None:
    result = preview("cyclical", "ultra_conservative", "warm_restart", "controlvae", "cyclical")
    assert "* cyclical   o ultra_conservative   + warm_restart\n" in result.stdout
    assert result.stdout.index("\nbeta\n") < result.stdout.index("\nKL, nats per example\n"), "a chart for each unit"
    assert result.stdout.count("\nwarm_restart, 150 epochs\n") == result.stdout.count("\ncyclical, 100 epochs\n") == 1


def test_beta_on_the_elbo_scale(preview: Run) -> None:
    result = preview("baseline")
    assert "peak 2 (51.2 on the ELBO scale), first at epoch 30" in result.stdout
    assert key_epochs(result)["10"] == ["1", "25.6", "phase", "1", "ends"]
    assert one(preview("baseline", "--json"))["elbo_scale"] == pytest.approx(25.6)
    assert "ELBO" not in preview("cyclical").stdout
    focal = preview("cyclical", "--set", "objective.reconstruction=focal")
    assert "no ELBO scale (focal loss or class weights)" in focal.stdout
    assert one(preview("cyclical", "--set", "objective.reconstruction=focal", "--json"))["elbo_scale"] is None


def test_json_holds_what_the_schedule_gives(preview: Run) -> None:
    document = one(preview("cyclical", "--json", "--max-beta", 0.4, "--cycle-length", 8, "--epochs", 20))
    schedule = Cyclical(max_beta=0.4, cycle_length=8)
    assert build_schedule(document["schedule"]) == schedule
    assert document["curve"]["epoch"] == list(range(1, 21))
    assert document["curve"]["beta"] == [schedule(epoch) for epoch in range(1, 21)]
    assert document["levels"]["beta"] == {
        "description": schedule.describe(),
        "start": 0,
        "peak": 0.4,
        "first_peak": 4,
        "period": 8,
        "reached": 0.4,
    }
    assert [mark["epoch"] for mark in document["key_epochs"]] == [1, 4, 8, 12, 16, 20]
    assert document["key_epochs"][-1]["what"] == "peak 3, last epoch"
    assert (document["source"], document["shortfall"]) == ("preset", None)


def test_levels_of_a_hierarchical_schedule(preview: Run) -> None:
    assert key_epochs(preview("hierarchical"))["12.5"] == ["0.01", "0.02", "local:", "first", "peak"]
    curve = one(preview("hierarchical", "--json"))["curve"]
    assert set(curve) == {"epoch", "global", "local"} and curve["global"][9] == 0.01
    mixed = one(preview("hierarchical", "--set", "schedule.local.name=geco", "--json"))["curve"]
    assert set(mixed) == {"epoch", "global", "local_target"}


def test_per_step(preview: Run) -> None:
    document = one(preview("cyclical", "--cycle-length", 1, "--per", "step", "--steps", 4, "--epochs", 2, "--json"))
    assert document["curve"]["epoch"] == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert document["curve"]["beta"] == pytest.approx([0.05, 0.1, 0.05, 0] * 2)
    assert "beta moves once a step" in preview("quickstart").stdout
    assert key_epochs(preview("quickstart"))["0"] == ["0", "start"]


def test_a_short_run_gets_a_warning_on_stderr(preview: Run) -> None:
    short = preview("ultra_conservative", "--epochs", 10)
    assert short.exit_code == 0
    assert short.stderr == "warning: beta ends at 0 of 0.1: the warm-up is longer than the run\n"
    assert preview("ultra_conservative", "--epochs", 10, "--quiet").stderr == short.stderr
    both = preview("cyclical", "linear_warmup", "--epochs", 30, "--json")
    assert both.stderr == "warning: linear_warmup: beta ends at 0.2 of 0.5: the ramp ends at epoch 60, the run at 30\n"
    assert [s["shortfall"] is None for s in json.loads(both.stdout)["schedules"]] == [True, False]


@pytest.mark.parametrize("name", sorted({*SCHEDULES, *preset_names()}))
def test_every_schedule_and_preset_has_a_preview(preview: Run, name: str) -> None:
    assert one(preview(name, "--json"))["source"] == ("preset" if name in preset_names() else "schedule")
    assert preview(name).exit_code == 0


@pytest.mark.parametrize(
    ("flags", "schedule"),
    [
        (
            "--max-beta 0.3 --warmup-epochs 2 --ramp-epochs 3",
            LinearWarmup(max_beta=0.3, warmup_epochs=2, ramp_epochs=3),
        ),
        (
            "--beta-max 0.3 --beta-warmup-epochs 2 --beta-ramp-epochs 3",
            LinearWarmup(max_beta=0.3, warmup_epochs=2, ramp_epochs=3),
        ),
        (
            "--min-beta 0.01 --wave ramp_hold --ramp-fraction 0.25",
            Cyclical(min_beta=0.01, wave="ramp_hold", ramp_fraction=0.25),
        ),
        ("--beta-min 0.01 --beta-cycle-length 8", Cyclical(min_beta=0.01, cycle_length=8)),
        ("--restart-interval 10 --restart-multiplier 2", WarmRestart(restart_interval=10, restart_multiplier=2)),
    ],
)
def test_flags(preview: Run, flags: str, schedule: Schedule) -> None:
    assert build_schedule(one(preview(schedule.name, "--json", *flags.split()))["schedule"]) == schedule


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("cyclcal", "did you mean cyclical"),
        ("no/such.toml", "no/such.toml: no such"),
        ("linear --ramp-epochs 3", "--ramp-epochs: schedule.ramp_epochs: unknown key"),
        ("cyclical --max-beta -1", "--max-beta: schedule.max_beta: should be greater than or equal to 0"),
        ("cyclical --min-beta 3", "min_beta 3, max_beta 0.1 are not in this order"),
        ("cyclical --ramp-fraction 0.3", "it belongs to --wave ramp_hold"),
        ("cyclical --steps 9", "add --per step"),
        ("controlvae --steps 9", "remove it"),
        ("controlvae --per epoch", "--per: schedule.per: should be 'step'"),
        ("controlvae --run x", "--run x: no metrics.jsonl"),
        ("cyclical --epochs 0", "--epochs: train.epochs"),
        ("cyclical --wave square", "--wave: schedule.wave: should be 'triangle'"),
        ("cyclical --plot no/folder/a.png", "no folder no/folder"),
        ("cyclical --plot a.jpeg", "call it a.png"),
        ("cyclical --csv no/folder/a.csv", "--csv no/folder/a.csv: could not be written"),
        ("cyclical --csv /dev/full", "could not be written (No space left on device)"),
        ("", "NAME"),
    ],
)
def test_mistakes(preview: Run, arguments: str, words: str) -> None:
    result = preview(*arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_a_file_counts_before_a_schedule_and_a_preset_before_both(
    preview: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("linear", "cyclical", "mine.toml"):
        (tmp_path / name).write_text('[schedule]\nname = "constant"\nmax_beta = 0.25\n[train]\nepochs = 7\n')
    assert one(preview("cyclical", "--json"))["source"] == "preset"
    for name in ("linear", "mine.toml"):
        document = one(preview(name, "--json"))
        assert (document["source"], document["epochs"], document["levels"]["beta"]["peak"]) == ("file", 7, 0.25)
    (tmp_path / "bad.toml").write_text("[schedule]\nname = 'cyclical'\ncycle_lenght = 3\n")
    assert "bad.toml: schedule.cycle_lenght" in preview("bad.toml").stderr


def test_the_environment_counts_for_presets_as_in_training(preview: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCVAE_SCHEDULE__MAX_BETA", "0.7")
    assert one(preview("cyclical", "--json"))["schedule"]["max_beta"] == 0.7
    assert one(preview("cyclical", "--json", "--max-beta", 0.2))["schedule"]["max_beta"] == 0.2
    assert one(preview("linear", "--json"))["schedule"]["max_beta"] == 1.0


def test_csv(preview: Run, tmp_path: Path) -> None:
    path = tmp_path / "beta.csv"
    levels = tmp_path / "levels.toml"
    levels.write_text('[schedule]\nname = "hierarchical"\n[objective]\nreconstruction = "focal"\n')
    result = preview("baseline", levels, "--csv", path, "--epochs", 30)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == f"wrote {path}"
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [(row["schedule"], row["level"]) for row in rows[::30]] == [
        ("baseline", ""),
        (str(levels), "global"),
        (str(levels), "local"),
    ]
    assert [row["epoch"] for row in rows[:30]] == [str(epoch) for epoch in range(1, 31)]
    assert (rows[29]["beta"], rows[29]["elbo_scale_beta"]) == ("2.0", "51.2")
    assert (rows[39]["beta"], rows[39]["elbo_scale_beta"]) == ("0.01", "")
    quiet = preview("cyclical", "--csv", path, "--epochs", 2, "--per", "step", "--steps", 10, "--quiet")
    assert "wrote" not in quiet.stderr
    assert len(path.read_text().splitlines()) == 21


def test_plot(preview: Run, tmp_path: Path) -> None:
    path = tmp_path / "beta.png"

    def points(*arguments: object) -> bytes:
        assert preview(*arguments, "--plot", path).exit_code == 0
        return path.read_bytes()

    alone = points("cyclical")
    picture = imread(path)[..., :3]
    assert (picture.max(-1) - picture.min(-1) > 0.3).any(0).mean() > 0.8, "the curve goes from one side to the other"
    assert len({alone, points("cyclical", "linear"), points("cyclical", "--max-beta", 1)}) == 3
    assert points("cyclical") == alone
    assert [file.name for file in tmp_path.iterdir()] == ["beta.png"]


@pytest.mark.parametrize("name", ["controlvae", "kl_capacity", "geco"])
def test_a_closed_loop_shows_its_target(preview: Run, name: str) -> None:
    result = preview(name)
    part = build_schedule(one(preview(name, "--json"))["schedule"])
    assert isinstance(part, Feedback)
    low, high = part.bounds
    assert f"beta depends on the run and moves once a step, between {low:g} and {high:g}" in result.stdout
    assert "--run RUN shows what it did in a run" in result.stdout and "\nbeta\n" not in result.stdout


def write_run(folder: Path, schedule: Schedule, betas: list[list[float]], kl: float = 15.0) -> Path:
    """The record of a run with these betas at the logged steps of each epoch."""
    lines = []
    for epoch, steps in enumerate(betas):
        for index, beta in enumerate(steps):
            values = {"train/beta": beta, "train/kl": kl, "train/loss_reconstruction": 64.0}
            at = epoch + (index + 1) / len(steps)
            lines.append({"kind": "step", "epoch": at, "step": round(at * 10), **values})
        lines.append({**lines[-1], "kind": "epoch"})
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        tomli_w.dumps(Settings.model_validate({"schedule": schedule.model_dump()}).table())
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st')
    return folder


def test_what_a_run_recorded_is_overlaid(preview: Run, tmp_path: Path) -> None:
    """Beta is the mean of an epoch's logged steps; a closed loop also shows what it held."""
    run = write_run(tmp_path / "own", ControlVAE(target=15.2), [[0.1, 0.3], [0.4, 0.6], [0.5, 0.5]])
    flags = ["--run", "own", "--runs-dir", tmp_path]
    closed = preview(run, *flags, "--epochs", 4)
    assert key_epochs(closed)["2"] == ["15.2", "15", "0.5"] and key_epochs(closed)["4"][:3] == ["15.2", "-", "-"]
    document = one(preview(run, *flags, "--json"))["run"]
    assert document["name"] == "own"
    assert document["levels"]["beta"] == {
        "epoch": [1, 2, 3],
        "beta": pytest.approx([0.2, 0.5, 0.5]),
        "value": [15, 15, 15],
    }
    reconstruction = one(preview("geco", *flags, "--json"))["run"]["levels"]["beta"]
    assert reconstruction["value"] == [0.25] * 3, "nats per position of 256"
    opened = preview("linear", *flags)
    assert "* linear   o linear recorded" in opened.stdout
    assert key_epochs(opened)["1"][:2] == ["0.1", "0.2"]
    assert preview("hierarchical", *flags).exit_code == 2, "the run has no levels"
    path = tmp_path / "out.csv"
    assert preview(run, *flags, "--epochs", 4, "--csv", path).exit_code == 0
    rows = [list(row.values())[3:] for row in csv.DictReader(io.StringIO(path.read_text()))]
    assert rows[2] == ["0.5", "0.5", "kl", "15.2", "15.0"] and rows[3] == ["", "", "kl", "15.2", ""]


def test_many_marks_are_cut_in_the_middle(preview: Run) -> None:
    rows = key_epochs(preview("cyclical", "--cycle-length", 2, "--epochs", 200))
    assert len(rows) == 17 and rows["..."][:2] == ["184", "more,"]
    assert len(one(preview("cyclical", "--cycle-length", 2, "--epochs", 200, "--json"))["key_epochs"]) == 200


def in_terminal(*arguments: str, **environment: str) -> str:
    """What a terminal of 80 columns is sent."""
    ours, theirs = pty.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"TERM": "xterm", "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", **environment}
    command = [sys.executable, "-m", "arcvae_cli", "schedule-preview", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables) as process:
        os.close(theirs)
        sent = b""
        try:
            while part := os.read(ours, 65536):
                sent += part
        except OSError:  # how the end of a pseudo-terminal reads on Linux
            pass
    os.close(ours)
    assert process.returncode == 0
    return sent.decode()


def braille(text: str) -> bool:
    return any(0x2800 < ord(character) < 0x2900 for character in text)


def test_the_chart_is_what_the_terminal_can_show() -> None:
    """Braille in colours; in black and white only for one curve, since several would look alike; else ASCII."""
    coloured = in_terminal("cyclical", "linear_warmup")
    assert braille(coloured) and "\x1b[36m" in coloured and "\x1b[33m" in coloured
    alone = in_terminal("cyclical", NO_COLOR="1")
    assert braille(alone) and "\x1b[36m" not in alone
    several = in_terminal("cyclical", "linear_warmup", NO_COLOR="1")
    assert not braille(several) and "* cyclical   o linear_warmup" in several
    assert in_terminal("cyclical", NO_COLOR="1", PYTHONIOENCODING="ascii").isascii()
    assert not braille(in_terminal("cyclical", TERM="dumb"))


@pytest.mark.parametrize("run", [[], ["--run", "own"]])
def test_nothing_heavy_is_imported(run: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "own", Geco(), [[0.1, 0.2]])
    code = (
        f"import sys; sys.argv = ['arcvae', 'schedule-preview', 'geco', *{run!r}]\n"
        "from arcvae_cli.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'wandb'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "[]"
