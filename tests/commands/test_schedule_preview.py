from __future__ import annotations

import csv
import io
import json
import math
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

from arcvae_cli.schedules import (
    SCHEDULES,
    ControlVAE,
    Cyclical,
    Feedback,
    LinearWarmup,
    Schedule,
    build_schedule,
)
from arcvae_cli.settings import Settings, preset_names

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
    lines = result.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.strip().startswith("epoch "))
    return {line.split()[0]: line.split()[1:] for line in lines[head + 1 :] if line}


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
    assert result.stderr == ""
    assert result.stdout.isascii()
    assert max(map(len, lines)) <= 80


def test_the_chart_has_the_curve_where_it_belongs(preview: Run) -> None:
    lines = preview("linear", "--warmup-epochs", 50, "--epochs", 100).stdout.splitlines()
    axis = next(i for i, line in enumerate(lines) if line.lstrip().startswith("+--"))
    rows = [line.split("|", 1)[1] for line in lines[axis - 11 : axis]]
    width = len(lines[axis].strip()) - 1
    assert [line.split("|")[0].strip() for line in lines[axis - 11 : axis]] == ["1", *[""] * 4, "0.5", *[""] * 4, "0"]
    assert len(rows[0]) == width  # the peak is held to the end
    assert rows[0].index("*") == pytest.approx(0.475 * width, abs=1.5)  # from half a row under the peak on
    assert rows[5].index("*") == pytest.approx(0.225 * width, abs=1.5)
    assert rows[10].index("*") <= 1
    for label in ("0", "20", "40", "60", "80", "100"):
        place = lines[axis + 1].index(f" {label} ") + 1 + len(label) // 2
        assert place - lines[axis].index("+") - 1 == pytest.approx(int(label) / 100 * width, abs=1)


def test_many_cycles_within_a_column_fill_it(preview: Run) -> None:
    lines = preview("cyclical", "--cycle-length", 1, "--per", "step", "--epochs", 300).stdout.splitlines()
    axis = next(i for i, line in enumerate(lines) if line.lstrip().startswith("+--"))
    width = len(lines[axis].strip()) - 1
    assert {line.split("|", 1)[1] for line in lines[axis - 9 : axis - 2]} == {"*" * width}


def test_several_names_overlay(preview: Run) -> None:
    result = preview("cyclical", "ultra_conservative", "warm_restart", "cyclical")
    assert "* cyclical   o ultra_conservative   + warm_restart\n" in result.stdout
    chart = result.stdout[: result.stdout.index("* cyclical   o")]
    assert all(f" {mark}" in chart or mark * 2 in chart for mark in "*o+")
    assert [line for line in result.stdout.splitlines() if line.endswith(" epochs") and "," in line] == [
        "cyclical, 100 epochs",
        "ultra_conservative, 100 epochs",
        "warm_restart, 150 epochs",
    ]


def test_the_beta_on_the_elbo_scale_stands_beside_beta_where_they_differ(preview: Run) -> None:
    result = preview("baseline")
    assert "peak 2 (51.2 on the ELBO scale), first at epoch 30" in result.stdout
    assert key_epochs(result)["10"] == ["1", "25.6", "phase", "1", "ends"]
    assert one(preview("baseline", "--json"))["elbo_scale"] == pytest.approx(25.6)
    assert "ELBO" not in preview("cyclical").stdout
    focal = preview("cyclical", "--set", "objective.reconstruction=focal")
    assert "no ELBO scale (focal loss or class weights)" in focal.stdout
    assert one(preview("cyclical", "--set", "objective.reconstruction=focal", "--json"))["elbo_scale"] is None


def test_epochs_come_from_the_preset_unless_given(preview: Run) -> None:
    assert one(preview("warm_restart", "--json"))["epochs"] == 150
    assert one(preview("warm_restart", "--json", "--epochs", 42))["epochs"] == 42
    assert one(preview("linear", "--json"))["epochs"] == 100
    assert list(key_epochs(preview("linear", "--epochs", 1))) == ["1"]


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
    result = preview("hierarchical")
    assert "* hierarchical global   o hierarchical local" in result.stdout
    assert key_epochs(result)["12.5"] == ["0.01", "0.02", "local:", "first", "peak"]
    curve = one(preview("hierarchical", "--json"))["curve"]
    assert set(curve) == {"epoch", "global", "local"}
    assert curve["global"][9] == 0.01


def test_per_step(preview: Run) -> None:
    document = one(preview("cyclical", "--cycle-length", 1, "--per", "step", "--steps", 4, "--epochs", 2, "--json"))
    assert document["curve"]["epoch"] == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert document["curve"]["beta"] == pytest.approx([0.05, 0.1, 0.05, 0] * 2)
    assert "beta moves once a step" in preview("quickstart").stdout
    assert key_epochs(preview("quickstart"))["0"] == ["0", "start"]


def test_what_a_run_misses_is_said_on_stderr(preview: Run) -> None:
    short = preview("ultra_conservative", "--epochs", 10)
    assert short.exit_code == 0
    assert short.stderr == "warning: beta ends at 0 of 0.1: the warm-up is longer than the run\n"
    assert preview("ultra_conservative", "--epochs", 10, "--quiet").stderr == short.stderr
    both = preview("cyclical", "linear_warmup", "--epochs", 30, "--json")
    assert both.stderr == "warning: linear_warmup: beta ends at 0.2 of 0.5: the ramp ends at epoch 60, the run at 30\n"
    assert [s["shortfall"] is None for s in json.loads(both.stdout)["schedules"]] == [True, False]


@pytest.mark.parametrize("name", sorted({*SCHEDULES, *preset_names()}))
def test_every_schedule_and_preset_has_a_preview(preview: Run, name: str) -> None:
    document = one(preview(name, "--json"))
    assert document["source"] == ("preset" if name in preset_names() else "schedule")
    assert preview(name).exit_code == 0


def test_the_flags_of_train_are_the_same_flags(preview: Run) -> None:
    own = ["--max-beta", 0.3, "--warmup-epochs", 2, "--ramp-epochs", 3]
    train = ["--beta-max", 0.3, "--beta-warmup-epochs", 2, "--beta-ramp-epochs", 3]
    expected = LinearWarmup(max_beta=0.3, warmup_epochs=2, ramp_epochs=3)
    for flags in (own, train):
        assert build_schedule(one(preview("linear_warmup", "--json", *flags))["schedule"]) == expected
    wave = ["--min-beta", 0.01, "--cycle-length", 8, "--wave", "ramp_hold", "--ramp-fraction", 0.25]
    cyclical = Cyclical(min_beta=0.01, cycle_length=8, wave="ramp_hold", ramp_fraction=0.25)
    assert build_schedule(one(preview("cyclical", "--json", *wave))["schedule"]) == cyclical
    train = ["--beta-min", 0.01, "--beta-cycle-length", 8]
    assert (
        one(preview("cyclical", "--json", *train))["schedule"] == Cyclical(min_beta=0.01, cycle_length=8).model_dump()
    )
    inner = one(preview("warm_restart", "--json", "--restart-interval", 10, "--restart-multiplier", 2))["schedule"]
    assert (inner["restart_interval"], inner["restart_multiplier"]) == (10, 2)
    assert (
        one(preview("warm_restart", "--json", "--set", "schedule.base.max_beta=0.5"))["levels"]["beta"]["peak"] == 0.5
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cyclcal"], ["'cyclcal' is neither a preset, a file nor a schedule", "did you mean cyclical"]),
        (["qqq"], ["known: ", "three_phase", "quickstart"]),
        (["no/such.toml"], ["no/such.toml: no such file"]),
        (["linear", "--ramp-epochs", "3"], ["--ramp-epochs", "linear has no use for ramp_epochs", "takes: name, per"]),
        (["three_phase", "--beta-max", "1"], ["--max-beta", "three_phase has no use for max_beta"]),
        (["cyclical", "linear", "--cycle-length", "9"], ["--cycle-length", "linear has no use"]),
        (["cyclical", "--max-beta", "-1"], ["--max-beta", "at least 0"]),
        (["cyclical", "--max-beta", "nan"], ["--max-beta", "finite"]),
        (["cyclical", "--min-beta", "3"], ["min_beta 3 is above max_beta 0.1"]),
        (["cyclical", "--ramp-fraction", "0.3"], ["--ramp-fraction", "wave triangle", "ramp_hold"]),
        (["linear", "--ramp-fraction", "0.3"], ["--ramp-fraction", "linear has no use"]),
        (["cyclical", "--steps", "9"], ["--steps", "--per step"]),
        (["controlvae", "--steps", "9"], ["--steps", "takes feedback is shown by whole epochs", "leave it out"]),
        (["controlvae", "--per", "epoch"], ["--per", "expected one of 'step'"]),
        (["geco", "--beta-max", "1"], ["--max-beta", "geco has no use for max_beta", "lambda_min"]),
        (["kl_capacity", "--beta-max", "1"], ["--max-beta", "kl_capacity has no use for max_beta", "gamma"]),
        (["cyclical", "--run", "x"], ["--run: cyclical takes no feedback", "kl_capacity, controlvae and geco"]),
        (["controlvae", "--run", "x"], ["--run x: neither a folder nor a run in runs", "--runs-dir"]),
        (["controlvae", "--run", "."], ["--run .: . holds no config.toml", "give the folder of a run"]),
        (["cyclical", "--epochs", "0"], ["--epochs"]),
        (["cyclical", "--wave", "square"], ["--wave", "ramp_hold"]),
        (["cyclical", "--plot", "no/folder/a.png"], ["--plot no/folder/a.png", "no folder"]),
        (["cyclical", "--plot", "a.jpeg"], ["--plot a.jpeg", "call it a.png"]),
        (["cyclical", "--csv", "no/folder/a.csv"], ["--csv no/folder/a.csv", "no folder"]),
        (["cyclical", "--csv", "."], ["--csv", "is a folder"]),
        ([], ["NAME"]),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_do(preview: Run, arguments: list[str], words: list[str]) -> None:
    result = preview(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    said = " ".join(result.stderr.replace("│", " ").split())
    assert [word for word in words if word not in said] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_failed_write_is_told(preview: Run) -> None:
    result = preview("cyclical", "--csv", "/dev/full")
    assert result.exit_code == 2
    assert "--csv /dev/full: could not be written (No space left on device)" in result.stderr


def test_a_file_counts_before_a_schedule_and_a_preset_before_both(
    preview: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = '[schedule]\nname = "constant"\nmax_beta = 0.25\n[train]\nepochs = 7\n'
    for name in ("linear", "cyclical", "mine.toml"):
        (tmp_path / name).write_text(text)
    assert one(preview("cyclical", "--json"))["schedule"]["name"] == "cyclical"
    for name in ("linear", "mine.toml", str(tmp_path / "mine.toml")):
        document = one(preview(name, "--json"))
        assert (document["source"], document["epochs"]) == ("file", 7)
        assert document["levels"]["beta"]["peak"] == 0.25
    (tmp_path / "bad.toml").write_text("[schedule]\nname = 'cyclical'\ncycle_lenght = 3\n")
    bad = preview("bad.toml")
    assert bad.exit_code == 2
    assert "bad.toml: schedule.cycle_lenght" in bad.stderr


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
    assert preview("cyclical", "--plot", path).exit_code == 0
    alone = imread(path)
    assert alone.shape[2] in (3, 4)
    coloured = alone[..., :3].max(-1) - alone[..., :3].min(-1) > 0.3
    assert coloured.any(0).mean() > 0.8  # the curve goes from one side to the other
    assert preview("cyclical", "linear", "--plot", path, "--max-beta", 1).exit_code == 0
    assert (imread(path) != alone).any()
    assert [file.name for file in tmp_path.iterdir()] == ["beta.png"]


WAVES = Cyclical(max_beta=0.5, cycle_length=6.0, per="step")


def write_run(folder: Path, schedule: Schedule, epochs: int, per_epoch: int = 20) -> Path:
    """The record of a run whose KL answers at once, 50 * exp(-3 beta) nats."""
    lines = []
    for step in range(1, epochs * per_epoch + 1):
        at = step / per_epoch
        beta = 0.4 if isinstance(schedule, Feedback) else schedule(at)
        values = {"train/beta": beta, "train/kl": 50 * math.exp(-3 * beta), "train/loss_reconstruction": 70.0}
        lines.append({"kind": "step", "epoch": at, "step": step, **values})
        if step % per_epoch == 0:
            lines.append({**lines[-1], "kind": "epoch"})
    folder.mkdir(parents=True)
    settings = Settings.model_validate({"schedule": schedule.model_dump()})
    (folder / "config.toml").write_text(tomli_w.dumps(settings.table()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("name", "unit", "words"),
    [
        ("controlvae", "KL, nats per example", "KL held at"),
        ("kl_capacity", "KL, nats per example", "KL held at a capacity that rises"),
        ("geco", "reconstruction, nats per position", "reconstruction held at"),
    ],
)
def test_what_takes_feedback_shows_its_target_and_says_why(preview: Run, name: str, unit: str, words: str) -> None:
    result = preview(name)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert words in lines[1]
    part = build_schedule(one(preview(name, "--json"))["schedule"])
    assert isinstance(part, Feedback)
    for key, value in part:
        assert key in ("name", "per") or f"{key} {value:g}" in lines[2]
    low, high = part.bounds
    assert f"beta depends on the run and moves once a step, between {low:g} and {high:g}" in lines[3]
    assert lines[4] == "  --run RUN previews it against a recorded run"
    assert unit in lines
    assert "beta" not in lines  # no chart of it
    assert next(iter(key_epochs(result))) == "1"
    assert max(map(len, lines)) <= 120


def test_a_target_that_rises_is_drawn_and_listed(preview: Run) -> None:
    flags = ["--set", "schedule.capacity=20", "--ramp-epochs", 10, "--epochs", 20]
    result = preview("kl_capacity", *flags)
    rows = key_epochs(result)
    assert rows["10"] == ["20", "capacity", "reached"] and rows["1"][0] == "2"
    chart = [line.split("|", 1)[1] for line in result.stdout.splitlines() if "|" in line]
    assert chart[0].index("*") == pytest.approx(0.5 * len(chart[0]), abs=4)
    document = one(preview("kl_capacity", *flags, "--json"))
    assert document["closed_loop"] is True
    assert document["curve"]["epoch"] == list(range(1, 21))
    assert document["curve"]["target"] == [min(20, 2 * epoch) for epoch in range(1, 21)]
    level = document["levels"]["beta"]
    assert (level["quantity"], level["bounds"], level["first_peak"]) == ("kl", [-1, 1], 10)
    short = preview("kl_capacity", "--ramp-epochs", 10, "--epochs", 5)
    assert "warning: capacity ends at" in short.stderr


def test_open_and_closed_loops_have_a_chart_each(preview: Run) -> None:
    result = preview("controlvae", "cyclical", "--epochs", 20)
    lines = result.stdout.splitlines()
    assert lines.index("KL, nats per example") < lines.index("beta")
    mixed = preview("hierarchical", "--set", "schedule.local.name=controlvae", "--set", "schedule.local.target=7")
    assert mixed.exit_code == 0, mixed.stderr
    head = next(line for line in mixed.stdout.splitlines() if line.startswith("epoch "))
    assert head.split() == ["epoch", "global", "beta", "local", "target"]
    curve = one(preview("hierarchical", "--set", "schedule.local.name=geco", "--json"))["curve"]
    assert set(curve) == {"epoch", "global", "local_target"}


def test_an_estimate_against_a_recorded_run(preview: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "waves", WAVES, 18)
    flags = ["--run", "waves", "--runs-dir", tmp_path, "--epochs", 40]
    flags += ["--set", "schedule.ki=-0.001", "--set", "schedule.target=25"]
    result = preview("controlvae", *flags)
    assert result.exit_code == 0 and result.stderr == ""
    assert "an estimate, from how the KL answered to beta in the run waves: " in result.stdout
    assert "held within 5 % from epoch " in result.stdout
    assert {"beta", "KL, nats per example"} <= set(result.stdout.splitlines())
    beta = math.log(2) / 3
    last = key_epochs(result)["40"]
    assert [float(value) for value in last[:3]] == [25, pytest.approx(25, rel=0.02), pytest.approx(beta, rel=0.05)]
    level = one(preview("controlvae", *flags, "--json"))["run"]["levels"]["beta"]
    assert (level["kind"], level["epoch"]) == ("estimate", list(range(1, 41)))
    assert level["beta"][-1] == pytest.approx(beta, rel=0.05)
    path = tmp_path / "out.csv"
    assert preview("controlvae", *flags, "--csv", path).exit_code == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert (rows[-1]["quantity"], rows[-1]["target"]) == ("kl", "25.0")
    assert float(rows[-1]["beta"]) == level["beta"][-1] and float(rows[-1]["value"]) == level["value"][-1]
    outside = preview("controlvae", *flags, "--set", "schedule.target=4")
    assert "warning: target 4 is outside what the run waves showed" in outside.stderr
    assert outside.exit_code == 0 and "not held within 5 %" in outside.stdout
    stuck = preview("controlvae", *flags, "--max-beta", 0.1)
    assert "warning: target 25 is out of reach, beta stands at its largest in the last epoch: 3" in stuck.stderr


def test_a_run_with_the_schedule_itself_is_shown_as_it_was(preview: Run, tmp_path: Path) -> None:
    schedule = ControlVAE(target=15.0)
    folder = write_run(tmp_path / "own", schedule, 6)
    result = preview(folder, "--run", folder, "--epochs", 6)
    assert f"recorded: the run {folder} was trained with it" in result.stdout
    assert "at the end KL 15.06, target 15: held within 5 % from epoch 1 on" in result.stdout
    level = one(preview(folder, "--run", folder, "--json"))["run"]["levels"]["beta"]
    assert (level["kind"], level["held_since"]) == ("recorded", 1)
    assert level["value"] == pytest.approx([50 * math.exp(-1.2)] * 6)
    assert level["beta"] == pytest.approx([0.4] * 6)
    longer = preview(folder, "--run", folder, "--epochs", 40)
    assert list(key_epochs(longer))[-1] == "6", "what was recorded ends with the run"


def test_the_chart_of_what_is_far_off_its_target_is_not_cut(preview: Run, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "far", ControlVAE(target=3.0), 6)
    tops = [line for line in preview(folder, "--run", folder).stdout.splitlines() if " |" in line]
    assert tops[0].split()[0] == "15.1", "KL 15.06 in every epoch"


def test_the_picture_of_a_closed_loop(preview: Run, tmp_path: Path) -> None:
    from PIL import Image

    write_run(tmp_path / "waves", WAVES, 18)
    path = tmp_path / "target.png"

    def points(*arguments: object) -> str:
        assert preview("controlvae", *arguments, "--plot", path).exit_code == 0
        with Image.open(path) as image:
            return str(image.info["points"])  # type: ignore[attr-defined]

    alone = points("--epochs", 12)
    tall = imread(path).shape[0]
    ran = points("--epochs", 12, "--run", "waves", "--runs-dir", tmp_path)
    assert imread(path).shape[0] > tall  # a panel for the KL and one for beta
    assert len({alone, ran, points("--epochs", 12, "--set", "schedule.target=9")}) == 3
    assert points("--epochs", 12) == alone


def test_many_marks_are_cut_in_the_middle(preview: Run) -> None:
    lines = preview("cyclical", "--cycle-length", 2, "--epochs", 200).stdout.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("epoch ")) + 1 :]
    assert len(table) == 17
    assert table[12].split() == ["...", "184", "more,", "all", "of", "them", "in", "--json"]
    assert table[-1].endswith("cycle 100 ends, last epoch")
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


def test_a_terminal_gets_braille_in_colours() -> None:
    sent = in_terminal("cyclical", "linear_warmup")
    assert any(0x2800 < ord(character) < 0x2900 for character in sent)
    assert "\x1b[36m" in sent
    assert "\x1b[33m" in sent


def test_no_color_takes_the_colour_and_leaves_the_curves_apart() -> None:
    alone = in_terminal("cyclical", NO_COLOR="1")
    assert "\x1b" not in alone
    assert any(0x2800 < ord(character) < 0x2900 for character in alone)
    assert "* cyclical   o linear_warmup" in in_terminal("cyclical", "linear_warmup", NO_COLOR="1")


def test_a_terminal_without_the_characters_gets_plain_ones() -> None:
    assert in_terminal("cyclical", NO_COLOR="1", PYTHONIOENCODING="ascii").isascii()


@pytest.mark.parametrize("run", [[], ["--run", "waves"]])
def test_nothing_heavy_is_imported(run: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "waves", WAVES, 18)
    name = "controlvae" if run else "cyclical"
    code = (
        f"import sys; sys.argv = ['arcvae', 'schedule-preview', {name!r}, '--json', *{run!r}]\n"
        "from arcvae_cli.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'rich', 'plotext', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "[]"
    assert json.loads(done.stdout)["schedules"][0]["name"] == name
