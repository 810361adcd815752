from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from arcvae_cli.schedules import build_schedule
from arcvae_cli.schedules.open import Cyclical

Run = Callable[..., Result]


@pytest.fixture
def preview(arcvae: Run) -> Run:
    return partial(arcvae, "schedule-preview")


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


def test_a_preset_is_drawn_described_and_listed(preview: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = preview("ultra_conservative")
    lines = result.stdout.splitlines()
    assert "peak 0.1, first at epoch 80" in lines[2]
    assert key_epochs(result)["20"] == ["0", "warm-up", "ends"]
    assert result.stderr == "" and max(map(len, lines)) <= 80
    assert result.stdout[: result.stdout.index(" epoch ")].isascii() and "0.1 |" in lines[5] and "*" * 10 in lines[5]
    text = preview("cyclical", "ultra_conservative", "controlvae", "cyclical").stdout
    assert "* cyclical   o ultra_conservative\n" in text and text.count("\ncyclical, 100 epochs\n") == 1
    assert text.index("\nbeta\n") < text.index("\nKL, nats per example\n") and "\x1b" not in text
    for name, value in (("TERM", "xterm"), ("FORCE_COLOR", "1"), ("NO_COLOR", "")):
        monkeypatch.setenv(name, value)
    coloured = preview("cyclical", "linear_warmup").stdout
    assert "\x1b[36m" in coloured and "\x1b[33m" in coloured, "a colour for each curve on a terminal"


def test_json_holds_what_the_schedule_gives(preview: Run) -> None:
    document = one(preview("cyclical", "--json", "--max-beta", 0.4, "--cycle-length", 8, "--epochs", 20))
    schedule = Cyclical(max_beta=0.4, cycle_length=8)
    assert build_schedule(document["schedule"]) == schedule
    assert document["curve"]["beta"] == [schedule(epoch) for epoch in range(1, 21)]
    facts = {"start": 0, "peak": 0.4, "first_peak": 4, "period": 8, "reached": 0.4}
    assert document["levels"]["beta"] == {"description": schedule.describe(), **facts}
    assert [mark["epoch"] for mark in document["key_epochs"]] == [1, 4, 8, 12, 16, 20]


def test_levels_and_steps(preview: Run) -> None:
    assert key_epochs(preview("hierarchical"))["12.5"] == ["0.01", "0.02", "local:", "peak", "1"]
    mixed = one(preview("hierarchical", "--set", "schedule.local.name=geco", "--json"))["curve"]
    assert set(mixed) == {"epoch", "global", "local_target"}
    curve = one(preview("linear", "--per", "step", "--steps", 4, "--epochs", 1, "--json"))["curve"]
    assert curve == {"epoch": [0.25, 0.5, 0.75, 1], "beta": [0.025, 0.05, pytest.approx(0.075), 0.1]}


def test_a_short_run_gets_a_warning_on_stderr(preview: Run) -> None:
    both = preview("cyclical", "linear_warmup", "--epochs", 30, "--json")
    assert both.stderr.startswith("warning: linear_warmup: beta ends at 0.2 of 0.5") and both.stderr.count("\n") == 1
    assert [s["shortfall"] is None for s in json.loads(both.stdout)["schedules"]] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("cyclcal", "did you mean cyclical"),
        ("controlvae --run x", "--run x: no metrics.jsonl"),
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
        (tmp_path / name).write_text('[schedule]\nname = "constant"\n')
    for name, source, peak in (("cyclical", "preset", 0.7), ("linear", "file", 0.7), ("cosine", "schedule", 1)):
        document = one(preview(name, "--json"))
        assert (document["source"], document["levels"]["beta"]["peak"]) == (source, peak)


def test_csv_and_plot(preview: Run, tmp_path: Path) -> None:
    path = tmp_path / "beta.csv"
    levels = tmp_path / "levels.toml"
    levels.write_text('[schedule]\nname = "hierarchical"\n[objective]\nreconstruction = "focal"\n')
    result = preview("baseline", levels, "--csv", path, "--epochs", 30, "--plot", path.with_suffix(".png"))
    assert result.stderr.splitlines()[-2:] == [f"wrote {path}", f"wrote {path.with_suffix('.png')}"]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert list(rows[29].values()) == ["baseline", "", "30", "2.0", "51.2"]
    assert list(rows[39].values()) == [str(levels), "global", "10", "0.01", ""]


def test_the_record_of_a_run_is_overlaid(preview: Run, tmp_path: Path) -> None:
    (run := tmp_path / "own").mkdir()
    (run / "config.toml").write_text('[schedule]\nname = "controlvae"\ntarget = 15.2\n')
    values = {"train/kl": 15.0, "train/loss_reconstruction": 64.0}
    lines = [{"kind": "epoch", "epoch": i, "step": i, "train/beta": i / 2, **values} for i in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--run", "own", "--runs-dir", tmp_path]
    closed = preview(run, *flags, "--epochs", 4).stdout
    assert "own target   o" in closed and "\nbeta\n" in closed, "two charts, of the target and of beta"
    record = one(preview("geco", *flags, "--json"))["run"]["levels"]["beta"]
    assert record == {"epoch": [1, 2, 3], "beta": [0.5, 1.0, 1.5], "value": [0.25] * 3}, "nats per position of 256"
    assert preview("hierarchical", *flags).exit_code == 2, "the run has no levels"
