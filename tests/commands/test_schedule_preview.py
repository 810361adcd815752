from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import Result

from arcvae_cli.presets import preset_names
from arcvae_cli.schedules import SCHEDULES, Schedule, build_schedule
from arcvae_cli.schedules.feedback import ControlVAE
from arcvae_cli.schedules.open import Cyclical
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
    text = preview("cyclical", "ultra_conservative", "warm_restart", "controlvae", "cyclical").stdout
    assert "* cyclical   o ultra_conservative   + warm_restart\n" in text
    assert text.index("\nbeta\n") < text.index("\nKL, nats per example\n"), "a chart for each unit"
    assert text.count("\nwarm_restart, 150 epochs\n") == text.count("\ncyclical, 100 epochs\n") == 1


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
    assert key_epochs(preview("hierarchical"))["12.5"] == ["0.01", "0.02", "local:", "peak", "1"]
    curve = one(preview("hierarchical", "--json"))["curve"]
    assert set(curve) == {"epoch", "global", "local"} and curve["global"][9] == 0.01
    mixed = one(preview("hierarchical", "--set", "schedule.local.name=geco", "--json"))["curve"]
    assert set(mixed) == {"epoch", "global", "local_target"}


def test_per_step(preview: Run) -> None:
    document = one(preview("cyclical", "--cycle-length", 1, "--per", "step", "--steps", 4, "--epochs", 2, "--json"))
    assert document["curve"]["epoch"] == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert document["curve"]["beta"] == pytest.approx([0.05, 0.1, 0.05, 0] * 2)
    assert "set every step" in preview("quickstart").stdout
    assert key_epochs(preview("quickstart"))["0"] == ["0", "start"]


def test_a_short_run_gets_a_warning_on_stderr(preview: Run) -> None:
    short = preview("ultra_conservative", "--epochs", 10)
    assert short.exit_code == 0
    assert short.stderr == "warning: beta ends at 0 of 0.1: the warm-up is longer than the run\n"
    both = preview("cyclical", "linear_warmup", "--epochs", 30, "--json")
    assert both.stderr.startswith("warning: linear_warmup: beta ends at 0.2 of 0.5") and both.stderr.count("\n") == 1
    assert [s["shortfall"] is None for s in json.loads(both.stdout)["schedules"]] == [True, False]


def test_every_schedule_and_preset_has_a_preview(preview: Run) -> None:
    names = sorted({*SCHEDULES, *preset_names()})
    documents = json.loads(preview(*names, "--json").stdout)["schedules"]
    sources = {document["name"]: document["source"] for document in documents}
    assert sources == {name: "preset" if name in preset_names() else "schedule" for name in names}
    assert preview(*names).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("cyclcal", "did you mean cyclical"),
        ("linear --ramp-epochs 3", "--ramp-epochs: schedule.ramp_epochs: unknown key"),
        ("cyclical --max-beta -1", "--max-beta: schedule.max_beta: should be greater than or equal to 0"),
        ("controlvae --per epoch", "--per: schedule.per: should be 'step'"),
        ("controlvae --run x", "--run x: no metrics.jsonl"),
        ("cyclical --plot a.jpeg", "use a.png"),
        ("cyclical --csv no/folder/a.csv", "--csv no/folder/a.csv: could not be written"),
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
    monkeypatch.setenv("ARCVAE_SCHEDULE__MAX_BETA", "0.7")  # counts for presets and files, as in training
    for name in ("linear", "cyclical"):
        (tmp_path / name).write_text('[schedule]\nname = "constant"\n[train]\nepochs = 7\n')
    for name, source, epochs, peak in (
        ("cyclical", "preset", 100, 0.7),
        ("linear", "file", 7, 0.7),
        ("cosine", "schedule", 100, 1),
    ):
        document = one(preview(name, "--json"))
        assert (document["source"], document["epochs"], document["levels"]["beta"]["peak"]) == (source, epochs, peak)


def test_csv(preview: Run, tmp_path: Path) -> None:
    path = tmp_path / "beta.csv"
    levels = tmp_path / "levels.toml"
    levels.write_text('[schedule]\nname = "hierarchical"\n[objective]\nreconstruction = "focal"\n')
    result = preview("baseline", levels, "--csv", path, "--epochs", 30)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == f"wrote {path}"
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    places = [(row["schedule"], row["level"], row["epoch"]) for row in rows[::30]]
    assert places == [("baseline", "", "1"), (str(levels), "global", "1"), (str(levels), "local", "1")]
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
    assert len({alone, points("cyclical", "linear"), points("cyclical", "--max-beta", 1)}) == 3


def test_a_closed_loop_shows_its_target(preview: Run) -> None:
    text = preview("geco").stdout
    assert "beta depends on the run (--run shows one), set every step, between 0.05 and 1\n" in text
    assert "\nreconstruction, nats per position\n" in text and "\nbeta\n" not in text


def write_run(folder: Path, schedule: Schedule, betas: list[float], kl: float = 15.0) -> Path:
    """The record of a run with these betas at the ends of its epochs."""
    lines = []
    for epoch, beta in enumerate(betas, 1):
        values = {"train/beta": beta, "train/kl": kl, "train/loss_reconstruction": 64.0}
        lines.append({"kind": "step", "epoch": epoch - 0.5, "step": 10 * epoch - 5, **values, "train/beta": 9.0})
        lines.append({"kind": "epoch", "epoch": epoch, "step": 10 * epoch, **values})
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        tomli_w.dumps(Settings.model_validate({"schedule": schedule.model_dump()}).table())
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st')
    return folder


def test_the_record_of_a_run_is_overlaid(preview: Run, tmp_path: Path) -> None:
    run = write_run(tmp_path / "own", ControlVAE(target=15.2), [0.2, 0.5, 0.5])
    flags = ["--run", "own", "--runs-dir", tmp_path]
    closed = preview(run, *flags).stdout
    assert "own target   o" in closed and "\nbeta\n" in closed, "two charts, of the target and of beta"
    document = one(preview(run, *flags, "--json"))["run"]
    assert document["name"] == "own"
    assert document["levels"]["beta"] == {"epoch": [1, 2, 3], "beta": [0.2, 0.5, 0.5], "value": [15, 15, 15]}
    reconstruction = one(preview("geco", *flags, "--json"))["run"]["levels"]["beta"]
    assert reconstruction["value"] == [0.25] * 3, "nats per position of 256"
    assert "* linear   o linear recorded" in preview("linear", *flags).stdout
    assert preview("hierarchical", *flags).exit_code == 2, "the run has no levels"
    path = tmp_path / "out.csv"
    assert preview(run, *flags, "--epochs", 4, "--csv", path).exit_code == 0
    rows = [list(row.values())[3:] for row in csv.DictReader(io.StringIO(path.read_text()))]
    assert rows[2] == ["0.5", "0.5", "kl", "15.2", "15.0"] and rows[3] == ["", "", "kl", "15.2", ""]


def braille(text: str) -> bool:
    return any(0x2800 < ord(character) < 0x2900 for character in text)


def test_the_chart_is_what_the_terminal_can_show(preview: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Braille in colours; in black and white only for one curve, since several would look alike; else ASCII."""
    several = preview("cyclical", "linear_warmup").stdout
    assert not braille(several) and "* cyclical   o linear_warmup" in several
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert braille(preview("cyclical").stdout) and "\x1b[36m" not in preview("cyclical").stdout, "NO_COLOR is set"
    assert not braille(preview("cyclical", "linear_warmup").stdout)
    monkeypatch.delenv("NO_COLOR")
    coloured = preview("cyclical", "linear_warmup").stdout
    assert braille(coloured) and "\x1b[36m" in coloured and "\x1b[33m" in coloured
    monkeypatch.setenv("TERM", "dumb")
    assert not braille(preview("cyclical").stdout)
