"""The examples from outside of the package, run to a verdict; entry points; what a file may import."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from arcvae_cli import checkpoints, plugins
from arcvae_cli.data.corpora import load_arrays
from arcvae_cli.errors import InputError
from arcvae_cli.settings import DataSettings, Settings

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
OWN = "--beta-schedule examples.schedule:FromCSV --model examples.model:MLP --data examples.corpus:automata --set"
SMALL = "--set data.size=200 --canvas 8x12 --set model.hidden=8 --latent-dim 3 --batch-size 40 --epochs 2 --device cpu"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the checkout, without names that another test has given."""
    monkeypatch.setattr(plugins, "_given", set())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("plain")
def test_the_examples_train_evaluate_and_sample(arcvae: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve, run = tmp_path / "curve.csv", tmp_path / "own"
    curve.write_text("2,0.5\n0,0.1\n")
    own = [*OWN.split(), 'log.recorders=["examples.logger:CSV"]', "--set", f"schedule.file={curve}", *SMALL.split()]
    done = arcvae("train", *own, "--run-name", run.name, "--runs-dir", tmp_path)
    assert done.exit_code == 0, done.stderr
    curve.unlink()
    with (run / "epochs.csv").open() as file:
        betas = [float(row["train/beta"]) for row in csv.DictReader(file)]
    assert betas == pytest.approx(np.interp([1, 2], [0, 2], [0.1, 0.5]))
    assert json.loads((run / "metrics.json").read_text())["verdict"]["findings"]

    monkeypatch.setattr(plugins, "_given", set())  # as in another process
    refused = arcvae("sample", "--checkpoint", run)
    assert refused.exit_code == 2 and "set ARCVAE_PLUGINS=examples.model in" in refused.stderr
    monkeypatch.setenv("ARCVAE_PLUGINS", "other, examples")
    for command in ("evaluate", "sample"):
        again = arcvae(command, "--checkpoint", run, "--output", tmp_path / command)
        assert again.exit_code == 0, again.stderr


def test_every_automaton_follows_one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCVAE_PLUGINS", "examples.corpus")
    data = DataSettings.model_validate({"name": "examples.corpus:automata", "size": 50, "canvas": "9x7"})
    for grid in load_arrays(data).x.tolist():
        rule: dict[tuple[int, ...], int] = {}
        for above, row in pairwise(grid):
            for place, cell in enumerate(row):
                assert rule.setdefault((above[place - 1], above[place], above[(place + 1) % 7]), cell) == cell


def test_an_entry_point_is_a_name_as_any_other(arcvae: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = "[arcvae.schedules]\nfrom_csv = examples.schedule:FromCSV\n"
    (tmp_path / "mine-1.0.dist-info" / "entry_points.txt").write_text(points)
    for folder in (ROOT, tmp_path):
        monkeypatch.syspath_prepend(folder)
    preset = tmp_path / "mine.toml"
    preset.write_text('[schedule]\nname = "from_csv"\npoints = [[0, 0.0], [10, 0.3]]\n')
    shown = json.loads(arcvae("schedule-preview", preset, "--epochs", "10", "--json").stdout)["schedules"][0]
    assert shown["curve"]["beta"][4] == pytest.approx(0.15) and shown["levels"]["beta"]["first_peak"] == 10


def test_schedules_of_ones_own_within_others(arcvae: Run) -> None:
    own = {"name": "examples.schedule:FromCSV", "points": [[0, 0.0], [4, 0.2]]}
    plugins.allow(own)
    restart = {"name": "warm_restart", "restart_interval": 5, "restart_multiplier": 1, "base": own}
    levels = {"name": "hierarchical", "global": {"name": "constant"}, "local": own}
    for table in (restart, levels):
        settings = Settings.model_validate({"schedule": table})
        again = Settings.model_validate(settings.table()).schedule
        assert again == settings.schedule
    assert Settings.model_validate({"schedule": restart}).schedule(7.0) == pytest.approx(0.1)
    assert Settings.model_validate({"schedule": levels}).schedule.parts["local"](2.0) == pytest.approx(0.1)
    wrong = arcvae("schedule-preview", "warm_restart", "--set", "schedule.base.name=examples.schedule:FromCSV")
    assert wrong.exit_code == 2 and "schedule.base.points: Field required" in wrong.stderr


@pytest.mark.parametrize("name", ["evil:Evil", "os:system"])
def test_a_checkpoint_imports_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("open('canary', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCVAE_PLUGINS", "evi,good")
    path, values = tmp_path / "x.pth", {"format_version": checkpoints.FORMAT, "model_state_dict": {}}
    for table in ("schedule", "model", "data"):
        checkpoints.save(path, {**values, "config": json.dumps({table: {"name": name}, "log": {"recorders": [name]}})})
        with pytest.raises(InputError, match="is not imported, since only a file names it"):
            load_arrays(checkpoints.read_settings(path, checkpoints.read(path)).data)
    assert not (tmp_path / "canary").exists() and "evil" not in sys.modules


WRONG = {
    "schedule-preview nowhere:X": "nowhere:X cannot be imported (ModuleNotFoundError",
    "schedule-preview examples.model:MLP": "examples.model:MLP is not a complete Schedule",
    "schedule-preview arcvae_cli.schedules:Schedule": "is not a complete Schedule",
    "schedule-preview examples.schedule:FromCSV": "schedule.points: Field required",
    "train --model examples.model:MLP --set model.hiden=1": "did you mean hidden?",
    "data info builtins:repr": "builtins:repr: damaged or invalid ('str' object",
    "train --set log.recorders=['examples.corpus:automata']": "is not a complete Recorder",
    "data info broken:corpus": "broken:corpus: ZeroDivisionError: division by zero",
    "train --model broken:Model": "broken:Model: its Settings is not a ModelSettings",
    "train --set log.recorders=['mine']": "mine is neither module:Class nor an installed entry point",
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(arcvae: Run, command: str, tmp_path: Path) -> None:
    broken = (
        "from examples.model import MLP\nclass Model(MLP):\n    Settings = dict\ndef corpus(data):\n    return 1 / 0\n"
    )
    (tmp_path / "broken.py").write_text(broken)
    sys.path.append(str(tmp_path))
    done = arcvae(*command.split())
    assert done.exit_code == 2 and WRONG[command] in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 2
