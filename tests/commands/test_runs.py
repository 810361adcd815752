from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints, folders
from arcvae_cli.cli import app
from arcvae_cli.records import Recorder
from arcvae_cli.settings import Settings

COMMON = ("--device", "cpu", "--precision", "fp32", "--epochs", "2", "--set", "log.images_every=0", "--wandb", "off")
COMMON += ("--set", "log.every_n_steps=2", "--beta-schedule", "cyclical", "--beta-cycle-length", "4")


def arcvae(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture(scope="module")
def trained(narrow: None, tmp_path_factory: pytest.TempPathFactory, arc_npz: Path, equations_npz: Path) -> Path:
    """A folder with a finished run of grids and one of strings; not to be changed."""
    base = tmp_path_factory.mktemp("trained")
    small = ("--set", "model.encoder_hidden=8", "--set", "model.decoder_hidden=8", "--batch-size", "50")
    document = {"verdict": {"ok": True, "findings": [], "summary": ""}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.commands.evaluate.report", lambda *arguments: document)
        patch.setattr("arcvae_cli.recorders.images.ImageRecorder", lambda *arguments: Recorder())
        for name, flags in (
            ("strings", ("--preset", "minimal", "--data", equations_npz, *small)),
            ("grids", ("--data", arc_npz, "--latent-dim", 3, "--batch-size", 50)),
        ):
            result = arcvae("train", *flags, *COMMON, "--runs-dir", base, "--run-name", name)
            assert result.exit_code == 0, result.stderr
    return base


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "runs", symlinks=True))


def verified(folder: Path, *arguments: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and what is found of each run."""
    done = arcvae("runs", "verify", *arguments, "--runs-dir", folder, "--json")
    return done.exit_code, {run["name"]: run for run in json.loads(done.stdout)["runs"]}


def test_runs_are_listed_the_last_active_first(tmp_path: Path) -> None:
    for age, (name, state) in enumerate((("good", "finished"), ("stopped", "interrupted"), ("dead", "running"))):
        made = folders.create(tmp_path, name, "x", Settings())
        made.write_status(state, epoch=age, epochs=50, step=7, best_epoch=1, best_value=1.25)
        made.release()
        os.utime(made.path / "status.json", (time.time() - 3600 * (4 - age),) * 2)
    alive = folders.create(tmp_path, "alive", "x", Settings())
    rows = [line.split() for line in arcvae("runs", "list", "--runs-dir", tmp_path).stdout.splitlines()]
    rows = [row for row in rows if "/50" in " ".join(row)]
    expected = (("alive", "running", "0/50"), ("dead", "killed", "2/50"), ("stopped", "interrupted", "1/50"))
    assert [tuple(row[:3]) for row in rows] == [*expected, ("good", "finished", "0/50")]
    assert rows[-1][3:6] == ["1.2500", "in", "1"] and rows[-1][-3:] == ["4.0", "h", "ago"]
    document = json.loads(arcvae("runs", "list", "--runs-dir", tmp_path, "--json").stdout)
    assert document["runs"][-1]["best_value"] == 1.25 and document["runs"][-1]["monitor"] == "val/loss_selection"
    for name, step in (("stopped", "train --resume"), ("dead", "train --resume"), ("good", "evaluate --checkpoint")):
        assert f"next: arcvae {step} {tmp_path / name}" in arcvae("runs", "show", tmp_path / name).stdout
    assert "next" not in arcvae("runs", "show", alive.path).stdout


def test_what_is_shown_of_the_latest_run(trained: Path) -> None:
    text = arcvae("runs", "show", "--runs-dir", trained).stdout
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["name"] == ["grids"] and rows["state"] == ["finished"] and rows["step"] == ["4"]
    assert rows["train.epochs"] == ["2", "50"] and rows["schedule.cycle_length"] == ["4.0", "-"]
    assert "model.name" not in rows and {"last.pth", "vae_best.pth", "encoder.pth"} <= rows.keys()
    document = json.loads(arcvae("runs", "show", trained / "strings", "--json").stdout)
    assert document["settings"]["train"]["epochs"] == 2 and document["changed"]["train.epochs"] == [2, 50]
    assert document["changed"]["model.name"] == ["grammar", "grid"]
    assert document["checkpoints"][0]["name"] == "last.pth"


def test_a_run_without_usable_files_is_shown_without_control_characters(folder: Path) -> None:
    run = folder / "a\x1b[2J"
    (folder / "grids").rename(run)
    (run / "config.toml").write_text("= nonsense")
    (run / "checkpoints" / "\x1b[2J.pth").write_bytes(b"")
    for command in (("list",), ("verify",), ("show", run)):
        done = arcvae("runs", *command, "--runs-dir", folder)
        assert "\x1b" not in done.stdout + done.stderr and "\\x1b[2J" in done.stdout
    assert done.exit_code == 0 and "not valid TOML" in done.stdout
    (run / "status.json").write_text("{")
    assert "next: arcvae runs verify" in arcvae("runs", "show", run).stdout


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 4
    path.write_bytes(changed)


def relog(path: Path) -> None:
    """Change a value of an epoch in `metrics.jsonl`."""
    path.write_text(re.sub(r'("kind": "epoch".*?"train/kl": )', r"\g<1>1", path.read_text(), count=1))


HARMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bit": (lambda run: flip(run / "checkpoints" / "vae_best.pth"), "vae_best.pth"),
    "no last": (lambda run: (run / "checkpoints" / "last.pth").unlink(), "last.pth: missing"),
    "status": (lambda run: (run / "status.json").write_text("{"), "status.json"),
    "config": (lambda run: (run / "config.toml").write_text("[train]\nlr = 0.1\n"), "not the settings of last.pth"),
    "no config": (lambda run: (run / "config.toml").unlink(), "config.toml"),
    "epoch": (lambda run: relog(run / "metrics.jsonl"), "metrics.jsonl: its epochs are not those of last.pth"),
}


def test_damage_is_named_and_nothing_is_changed(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "strings", tmp_path / "strings")
    for name, (harm, _) in HARMS.items():
        harm(Path(shutil.copytree(trained / "grids", tmp_path / name)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, found = verified(tmp_path)
    assert code == 1 and found["strings"]["ok"] and found.keys() == {"strings", *HARMS}
    for name, (_, expected) in HARMS.items():
        problems = [f"{file}: {why}" for file, why in found[name]["broken"].items()] + found[name]["problems"]
        assert len(problems) == 1 and expected in problems[0], name
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_valid_checkpoint_to_resume_from_is_named(folder: Path) -> None:
    run = folder / "grids"
    assert verified(folder)[0] == 0
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running"}))
    code, found = verified(folder, "grids")
    assert (code, found["grids"]["state"], found["grids"]["go_on"]) == (0, "killed", f"arcvae train --resume {run}")
    lock = folders.take(run)
    assert verified(folder, "grids")[1]["grids"]["go_on"] is None
    lock.release()
    flip(run / "checkpoints" / "last.pth")
    done = arcvae("runs", "verify", "--runs-dir", folder)
    assert done.exit_code == 1 and "1 of 2 runs corrupt: grids" in done.stderr and "last.pth" in done.stdout
    _, found = verified(folder, "grids")
    name = found["grids"]["go_on"].rpartition("/")[2]
    assert found["grids"]["whole"][name] == 2 == checkpoints.read(run / "checkpoints" / name)["epoch"]
