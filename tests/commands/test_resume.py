"""`arcvae train --resume`, as it is typed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli
import torch
from typer.testing import Result

from arcvae_cli import checkpoints, runs
from arcvae_cli.commands import evaluate

Run = Callable[..., Result]
SMALL = ("--device", "cpu", "--precision", "fp32", "--latent-dim", "3", "--batch-size", "50", "--epochs", "2")
SMALL += ("--beta-schedule", "constant", "--beta-max", "0.1", "--set", "log.images_every=0", "--wandb", "off")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files."""
    monkeypatch.setattr("arcvae_cli.render.plots._write", lambda figure, path: path.touch())
    monkeypatch.setattr(evaluate, "_draw_codes", lambda *arguments: None)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, arc_npz: Path) -> Path:
    """A finished run of two epochs of two steps, not to be changed."""
    from typer.testing import CliRunner

    from arcvae_cli.cli import app

    base = tmp_path_factory.mktemp("ended")
    shutil.copy(arc_npz, base / "some.npz")
    flags = ["train", "--data", base / "some.npz", *SMALL, "--runs-dir", base, "--run-name", "mine"]
    result = CliRunner().invoke(app, list(map(str, flags)), env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    return base / "mine"


@pytest.fixture
def mine(ended: Path, tmp_path: Path) -> Path:
    """A copy of it, to be gone on with; its data stay where they are."""
    return Path(shutil.copytree(ended, tmp_path / "mine"))


def epochs(run: Path) -> list[int]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["epoch"] for line in lines if line["kind"] == "epoch"]


def state(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def digests(run: Path) -> dict[str, str]:
    """The contents of a run; who looked at it last is none of them."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name not in ("lock", "status.json")]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_finished_run_has_nothing_left_to_do(arcvae: Run, mine: Path) -> None:
    before = digests(mine)
    result = arcvae("train", "--resume", "mine", "--runs-dir", mine.parent)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "run mine is finished: nothing to do\n"
    assert digests(mine) == before and state(mine)["state"] == "finished"
    assert not runs.held(mine)
    as_json = arcvae("train", "--resume", "mine", "--json", "--runs-dir", mine.parent)
    assert json.loads(as_json.stdout) == json.loads((mine / "metrics.json").read_text())


@pytest.mark.parametrize("by", ["latest", "checkpoint"])
def test_a_run_may_be_made_longer(by: str, arcvae: Run, mine: Path) -> None:
    runs.point_latest(mine.parent, "mine")
    argument = mine / "checkpoints" / "last.pth" if by == "checkpoint" else "latest"
    result = arcvae("train", "--resume", argument, "--epochs", 3, "--save-top-k", 1, "--runs-dir", mine.parent)
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "resumed after epoch 2" in said and "epoch 3/3" in said and "epoch 2/3" not in said
    assert "epochs 2, now 3: the learning rate follows the new cosine" in said
    assert epochs(mine) == [1, 2, 3]
    assert (state(mine)["state"], state(mine)["epoch"], state(mine)["step"]) == ("finished", 3, 6)
    config = tomli.loads((mine / "config.toml").read_text())
    assert (config["train"]["epochs"], config["checkpoint"]["save_top_k"]) == (3, 1)
    kept = checkpoints.load(mine / "checkpoints" / "last.pth")
    assert (kept.epoch, kept.settings.train.epochs) == (3, 3)
    assert not runs.held(mine)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--lr", 0.5), ["train.lr was 0.001, now 0.5"]),
        (("--beta-max", 0.2, "--seed", 4), ["schedule.max_beta was 0.1, now 0.2", "train.seed was 0, now 4"]),
        (("--epochs", 1), ["train.epochs is 1, and epoch 2 has begun"]),
    ],
)
def test_another_setting_is_refused_with_its_name(
    flags: tuple[Any, ...], named: list[str], arcvae: Run, mine: Path
) -> None:
    before = digests(mine)
    (mine.parent / "other").mkdir()
    runs.point_latest(mine.parent, "other")
    status = state(mine)
    result = arcvae("train", "--resume", "mine", *flags, "--runs-dir", mine.parent)
    assert (result.exit_code, result.stdout) == (2, "")
    assert state(mine) == status and os.readlink(mine.parent / "latest") == "other", "nothing has begun"
    for text in named:
        assert text in " ".join(result.stderr.split())
    assert digests(mine) == before and not runs.held(mine)


def test_a_config_that_is_missing_or_was_edited_is_named(arcvae: Run, mine: Path) -> None:
    """The checkpoint holds the settings of the run: the edited file was recommended for a new run."""
    config = mine / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.001", "lr = 0.1"))
    result = arcvae("train", "--resume", "mine", "--epochs", 4, "--runs-dir", mine.parent)
    said = " ".join(result.stderr.split())
    assert result.exit_code == 2 and "train.lr was 0.001, now 0.1" in said
    assert f"restore {config}" in said and "--preset" not in said
    config.unlink()
    result = arcvae("train", "--resume", "mine", "--runs-dir", mine.parent)
    assert result.exit_code == 2 and "no config.toml" in result.stderr


def test_auto_begins_a_run_and_goes_on_with_it(arcvae: Run, arc_npz: Path, tmp_path: Path) -> None:
    """The same line every time, as a batch system repeats it."""
    line = ("train", "--resume", "auto", "--run-name", "job", "--data", arc_npz, *SMALL, "--runs-dir", tmp_path)
    first = arcvae(*line)
    assert first.exit_code == 0 and epochs(tmp_path / "job") == [1, 2]
    again = arcvae(*line)
    assert (again.exit_code, again.stderr) == (0, "run job is finished: nothing to do\n")
    other = arcvae(*line, "--lr", 0.1)
    assert other.exit_code == 2 and "train.lr was 0.001, now 0.1" in " ".join(other.stderr.split())
    longer = arcvae(*line, "--epochs", 3)
    assert longer.exit_code == 0 and epochs(tmp_path / "job") == [1, 2, 3]


def test_a_training_that_was_never_judged_is_judged(arcvae: Run, mine: Path) -> None:
    judged, place = json.loads((mine / "metrics.json").read_text()), {"run": "", "checkpoint": ""}
    status = state(mine)
    del status["judged"]  # as the trainer leaves it; the metrics may be those of a shorter run
    runs.write_json(mine / "status.json", status)
    result = arcvae("train", "--resume", "mine", "--runs-dir", mine.parent)
    assert result.exit_code == 0 and "vae_best.pth of epoch" in result.stdout
    assert {**json.loads((mine / "metrics.json").read_text()), **place} == {**judged, **place}
    assert epochs(mine) == [1, 2]


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(arcvae: Run, ended: Path, mine: Path) -> None:
    shutil.rmtree(mine / "checkpoints")
    (mine / "metrics.json").unlink()
    result = arcvae("train", "--resume", "mine", "--runs-dir", mine.parent)
    assert result.exit_code == 0, result.stderr
    assert epochs(mine) == [1, 2], "what it had recorded was void"
    one, other = (checkpoints.read(run / "checkpoints" / "last.pth")["model_state_dict"] for run in (mine, ended))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_damaged_checkpoint_is_refused_and_another_may_be_named(arcvae: Run, mine: Path) -> None:
    folder = mine / "checkpoints"
    shutil.copy(folder / "vae_best.pth", folder / "vae_epoch_1.pth")
    for file in folder.iterdir():
        if file.name != "vae_epoch_1.pth":
            file.write_bytes(file.read_bytes()[:-1000])
    before = digests(mine)
    result = arcvae("train", "--resume", "mine", "--runs-dir", mine.parent)
    said = " ".join(result.stderr.split())
    assert result.exit_code == 2 and "last.pth" in said and f"`arcvae runs verify {mine}`" in said
    assert digests(mine) == before and not runs.held(mine)
    found = json.loads(arcvae("runs", "verify", mine, "--json").stdout)["runs"][0]
    command = found["go_on"].split()
    assert command[-1] == str(folder / "vae_epoch_1.pth"), "the others are damaged too"
    result = arcvae(*command[1:], "--epochs", 3, "--runs-dir", mine.parent)
    assert result.exit_code == 0, result.stderr
    assert epochs(mine) == [1, 2, 3] and checkpoints.read(folder / "last.pth")["epoch"] == 3


@pytest.mark.parametrize("kind", ["gone", "pipe"])
def test_a_missing_checkpoint_does_not_start_a_run_anew(kind: str, arcvae: Run, mine: Path) -> None:
    last = mine / "checkpoints" / "last.pth"
    last.unlink()
    if kind == "pipe":
        os.mkfifo(last)
    before = digests(mine)
    result = arcvae("train", "--resume", "mine", "--epochs", 3, "--runs-dir", mine.parent)
    assert result.exit_code == 2 and "last.pth: cannot be read" in " ".join(result.stderr.split())
    assert digests(mine) == before and not runs.held(mine)


def test_data_may_have_moved(arcvae: Run, ended: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ended.parent / "some.npz", mine.parent / "elsewhere.npz")
    monkeypatch.chdir(mine)
    result = arcvae("train", "--resume", mine, "--epochs", 3, "--data", "../elsewhere.npz")
    assert result.exit_code == 0, result.stderr
    assert tomli.loads((mine / "config.toml").read_text())["data"]["path"] == str(mine.parent / "elsewhere.npz")


@pytest.fixture(scope="module")
def four_epochs(tmp_path_factory: pytest.TempPathFactory, arc_npz: Path) -> Path:
    """A run of four epochs of which each has its checkpoint, and whose best is the last; not to be changed."""
    from typer.testing import CliRunner

    from arcvae_cli.cli import app

    base = tmp_path_factory.mktemp("four")
    flags = ["train", "--data", arc_npz, *SMALL, "--epochs", 4, "--set", "checkpoint.every_epochs=1", "--lr", 1e-3]
    result = CliRunner().invoke(app, [*map(str, [*flags, "--runs-dir", base, "--run-name", "long"])])
    assert result.exit_code == 0, result.stderr
    assert checkpoints.read(base / "long" / "checkpoints" / "vae_best.pth")["epoch"] == 4
    return base / "long"


@pytest.fixture
def long(four_epochs: Path, tmp_path: Path) -> Path:
    """A copy of it, to be gone on with."""
    return Path(shutil.copytree(four_epochs, tmp_path / "long"))


def test_an_older_checkpoint_does_not_void_what_came_after_unasked(arcvae: Run, long: Path) -> None:
    before = digests(long)
    result = arcvae("train", "--resume", long / "checkpoints" / "vae_epoch_2.pth", "--epochs", 3)
    said = " ".join(result.stderr.split())
    assert result.exit_code == 2 and "an older checkpoint, of step 4; the run is at step 8" in said
    assert digests(long) == before and not runs.held(long)


def epochs_of(run: Path) -> dict[str, int]:
    """By name, the epoch of each checkpoint."""
    files = sorted((run / "checkpoints").iterdir())
    return {file.name: torch.load(file, weights_only=True)["epoch"] for file in files}


def test_resuming_from_an_older_checkpoint_deletes_what_is_later(arcvae: Run, long: Path) -> None:
    folder = long / "checkpoints"
    start = Path(shutil.copy(folder / "vae_epoch_3.pth", folder / "mine.pth"))
    (folder / "last.pth").unlink()
    result = arcvae("train", "--resume", start, "--epochs", 3)
    assert result.exit_code == 0, result.stderr
    found = epochs_of(long)
    assert max(found.values()) == 3 and found["vae_best.pth"] == found["encoder.pth"] == found["last.pth"] == 3
    assert not [name for name in found if "epoch_4" in name or "epoch_004" in name]
    assert epochs(long) == [1, 2, 3]
    assert "epoch 3 takes its place" in " ".join(result.stderr.split())
    best, parts = (torch.load(folder / name, weights_only=True) for name in ("vae_best.pth", "encoder.pth"))
    own = {name.removeprefix("encoder."): value for name, value in best["model_state_dict"].items()}
    assert all(torch.equal(own[name], value) for name, value in parts["state_dict"].items())


def test_other_data_are_refused(arcvae: Run, ended: Path, mine: Path) -> None:
    data = ended.parent / "some.npz"
    kept = data.read_bytes()
    before = digests(mine)
    try:
        with np.load(data) as file:
            arrays = dict(file)
        arrays["train"] = arrays["train"][::-1]
        np.savez(data, **arrays)
        result = arcvae("train", "--resume", "mine", "--epochs", 3, "--runs-dir", mine.parent)
    finally:
        data.write_bytes(kept)
    assert result.exit_code == 2 and "trained on another version of the corpus some" in " ".join(result.stderr.split())
    assert digests(mine) == before and not runs.held(mine)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 1}, "cannot be resumed from"),
        ({"history": "no json"}, "cannot be resumed from"),
        ({"steps_per_epoch": 7}, "7 steps an epoch, now 2"),
        ({"optimizer_state_dict": {}}, "cannot be resumed from"),
        ({"corpus": None}, "another version of the corpus some"),
    ],
)
def test_a_checkpoint_that_no_run_can_be_resumed_from(
    change: dict[str, Any], said: str, arcvae: Run, mine: Path
) -> None:
    last = mine / "checkpoints" / "last.pth"
    checkpoints.save(last, {**checkpoints.read(last), **change})
    before = digests(mine)
    result = arcvae("train", "--resume", "mine", "--epochs", 3, "--runs-dir", mine.parent)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert said in " ".join(result.stderr.split()) and "Traceback" not in result.stderr
    assert digests(mine) == before and not runs.held(mine)


def test_a_run_of_a_former_format_is_read_but_not_resumed(arcvae: Run, mine: Path) -> None:
    last = mine / "checkpoints" / "last.pth"
    checkpoints.save(last, {**checkpoints.read(last), "format_version": 3})
    result = arcvae("train", "--resume", "mine", "--epochs", 3, "--runs-dir", mine.parent)
    assert result.exit_code == 2 and "of a former format: cannot be resumed from" in " ".join(result.stderr.split())
    assert checkpoints.load(last).epoch == 2
    assert arcvae("runs", "verify", mine).exit_code in (0, 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--resume", "yours"), "run 'yours': no such run"),
        (("--resume", "lonely.pth"), "no such run"),
        (("--resume", "auto"), "--resume auto: needs a run name"),
        (("--resume", "mine", "--run-name", "other"), "a resumed run keeps its name"),
        (("--resume", "mine", "--overfit-batch"), "cannot be combined"),
        (("--resume", "mine", "--quick-test"), "changes the length of the resumed run"),
        (("--resume", "../../etc"), "no such run"),
        (("--resume", "a" * 300), "no such run"),
        (("--resume", "auto", "--run-name", "a" * 300), "not a usable name"),
        (("--resume", ""), "no such run"),
    ],
)
def test_what_cannot_be_resumed(flags: tuple[str, ...], said: str, arcvae: Run, mine: Path, tmp_path: Path) -> None:
    (tmp_path / "lonely.pth").write_bytes(b"x")
    result = arcvae("train", *flags, "--runs-dir", tmp_path)
    assert result.exit_code == 2 and said in " ".join(result.stderr.split())
