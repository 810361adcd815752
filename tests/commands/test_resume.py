"""`arcvae train --resume`, as it is typed. What the weights come to: tests/test_faults.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli
import torch
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints, folders
from arcvae_cli.cli import app
from arcvae_cli.records import Recorder

Run = Callable[..., Result]
SMALL = ("--device", "cpu", "--precision", "fp32", "--latent-dim", "3", "--batch-size", "50", "--epochs", "2")
SMALL += ("--beta-schedule", "constant", "--beta-max", "0.1", "--set", "log.images_every=0", "--wandb", "off")


@pytest.fixture(scope="module", autouse=True)
def without_pictures(plain: None, narrow: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.recorders.images.ImageRecorder", lambda *arguments: Recorder())
        yield


@pytest.fixture(scope="module")
def ended(without_pictures: None, tmp_path_factory: pytest.TempPathFactory, arc_npz: Path) -> Path:
    """A finished run of four epochs of two steps, each with its checkpoint, the best last; not to be changed."""
    base = tmp_path_factory.mktemp("ended")
    shutil.copy(arc_npz, base / "some.npz")
    flags = ["train", "--data", base / "some.npz", *SMALL, "--epochs", 4, "--set", "checkpoint.every_epochs=1"]
    result = CliRunner().invoke(app, [*map(str, [*flags, "--runs-dir", base, "--run-name", "mine"])])
    assert result.exit_code == 0, result.stderr
    assert checkpoints.read(base / "mine" / "checkpoints" / "vae_best.pth")["epoch"] == 4
    return base / "mine"


@pytest.fixture
def mine(ended: Path, tmp_path: Path) -> Path:
    """A copy of it, to be resumed; its data stay where they are."""
    return Path(shutil.copytree(ended, tmp_path / "mine"))


def epochs(run: Path) -> list[int]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["epoch"] for line in lines if line["kind"] == "epoch"]


def contents(run: Path) -> dict[str, bytes]:
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def refused(arcvae: Run, run: Path, *arguments: object) -> str:
    """The message of a resumption that is refused before anything has changed."""
    before = contents(run)
    result = arcvae("train", "--resume", run, *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert contents(run) == before and not folders.held(run)
    return " ".join(result.stderr.split())


def test_a_finished_run_has_nothing_left_to_do(arcvae: Run, mine: Path) -> None:
    folders.point_latest(mine.parent, "mine")
    before = contents(mine)
    result = arcvae("train", "--resume", "latest", "--json", "--runs-dir", mine.parent)
    assert (result.exit_code, result.stderr) == (0, "run mine is finished: nothing to do\n")
    assert contents(mine) == before and not folders.held(mine)
    assert json.loads(result.stdout) == json.loads((mine / "metrics.json").read_text())


def test_a_run_may_be_made_longer_with_other_logging_and_moved_data(arcvae: Run, ended: Path, mine: Path) -> None:
    folders.point_latest(mine.parent, "other")
    shutil.copy(ended.parent / "some.npz", mine.parent / "elsewhere.npz")
    flags = ("--epochs", 5, "--save-top-k", 1, "--data", mine.parent / "elsewhere.npz", "--runs-dir", mine.parent)
    result = arcvae("train", "--resume", mine / "checkpoints" / "last.pth", *flags)
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "resumed after epoch 4" in said and "epoch 5/5" in said and "epoch 4/5" not in said
    assert "epochs 4, now 5: the learning rate follows the new cosine" in said
    assert epochs(mine) == [1, 2, 3, 4, 5] and os.readlink(mine.parent / "latest") == "mine"
    status, config = folders.read_status(mine), tomli.loads((mine / "config.toml").read_text())
    assert status and [status[key] for key in ("state", "epoch", "step", "judged")] == ["finished", 5, 10, True]
    assert (config["train"]["epochs"], config["checkpoint"]["save_top_k"]) == (5, 1)
    assert config["data"]["path"] == str(mine.parent / "elsewhere.npz")
    log = (mine / "run.log").read_text()
    assert log.count("run mine: grid") == 2 and "epoch 4/4" in log and "epoch 5/5" in log, "appended"


def test_what_a_run_cannot_be_resumed_with_is_named(arcvae: Run, ended: Path, mine: Path) -> None:
    with np.load(ended.parent / "some.npz") as file:
        np.savez(mine.parent / "other.npz", **{**file, "train": file["train"][::-1]})
    for flags, *named in (
        (("--beta-max", 0.2, "--seed", 4), "schedule.max_beta was 0.1, now 0.2", "train.seed was 0, now 4"),
        (("--epochs", 1), "train.epochs is 1, and epoch 4 has begun"),
        (("--quick-test",), "data.limit was null, now 8000"),
        (("--overfit-batch",), "cannot be combined"),
        (("--run-name", "other"), "a resumed run keeps its name"),
        (("--epochs", 5, "--data", mine.parent / "other.npz"), "trained on another version of the corpus other"),
    ):
        said = refused(arcvae, mine, *flags)
        assert all(text in said for text in named), said
    config = mine / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.001", "lr = 0.1"))
    said = refused(arcvae, mine, "--epochs", 6)
    assert "train.lr was 0.001, now 0.1" in said and f"restore {config}" in said


def test_auto_begins_a_run_and_resumes_it(arcvae: Run, arc_npz: Path, tmp_path: Path) -> None:
    """The same line every time, as a batch system repeats it."""
    line = ("train", "--resume", "auto", "--run-name", "job", "--data", arc_npz, *SMALL, "--runs-dir", tmp_path)
    first = arcvae(*line)
    assert first.exit_code == 0 and epochs(tmp_path / "job") == [1, 2]
    longer = arcvae(*line, "--epochs", 3)
    assert longer.exit_code == 0 and epochs(tmp_path / "job") == [1, 2, 3]


def test_a_run_that_was_not_evaluated_is_evaluated(arcvae: Run, mine: Path) -> None:
    judged, place = json.loads((mine / "metrics.json").read_text()), {"run": "", "checkpoint": ""}
    status = json.loads((mine / "status.json").read_text())
    del status["judged"]  # as the trainer leaves it; the metrics may be those of a shorter run
    folders.write_json(mine / "status.json", status)
    result = arcvae("train", "--resume", "mine", "--runs-dir", mine.parent)
    assert result.exit_code == 0 and "vae_best.pth of epoch" in result.stdout
    assert {**json.loads((mine / "metrics.json").read_text()), **place} == {**judged, **place}
    assert epochs(mine) == [1, 2, 3, 4]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(arcvae: Run, ended: Path, mine: Path) -> None:
    shutil.rmtree(mine / "checkpoints")
    (mine / "metrics.json").unlink()
    result = arcvae("train", "--resume", "mine", "--runs-dir", mine.parent)
    assert result.exit_code == 0, result.stderr
    assert epochs(mine) == [1, 2, 3, 4], "the earlier records were dropped"
    one, other = (checkpoints.read(run / "checkpoints" / "last.pth")["model_state_dict"] for run in (mine, ended))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_corrupt_checkpoint_is_refused_and_another_may_be_named(arcvae: Run, mine: Path) -> None:
    folder = mine / "checkpoints"
    for file in folder.iterdir():
        if file.name != "vae_epoch_3.pth":
            file.write_bytes(file.read_bytes()[:-1000])
    said = refused(arcvae, mine)
    assert "last.pth" in said and f"`arcvae runs verify {mine}`" in said
    found = json.loads(arcvae("runs", "verify", mine, "--json").stdout)["runs"][0]
    command = found["go_on"].split()
    assert command[-1] == str(folder / "vae_epoch_3.pth"), "the others are damaged too"
    result = arcvae(*command[1:], "--epochs", 3)
    assert result.exit_code == 0, result.stderr
    assert "epoch 3 takes its place" in " ".join(result.stderr.split())
    names = ("vae_best.pth", "encoder.pth", "last.pth", "vae_final.pth")
    assert [torch.load(folder / name, weights_only=True)["epoch"] for name in names] == [3, 3, 3, 3]
    assert epochs(mine) == [1, 2, 3] and not [*folder.glob("*epoch_4*"), *folder.glob("*epoch_004*")]


def test_a_checkpoint_that_no_run_can_be_resumed_from(arcvae: Run, mine: Path) -> None:
    folder = mine / "checkpoints"
    last, before = folder / "last.pth", contents(mine)
    result = arcvae("train", "--resume", folder / "vae_epoch_2.pth", "--epochs", 3)
    said = "an older checkpoint, of step 4; the run is at step 8"
    assert result.exit_code == 2 and said in " ".join(result.stderr.split()) and contents(mine) == before
    values = checkpoints.read(last)
    for change, said in (
        ({"format_version": 1}, "of an older format: cannot be resumed from"),
        ({"optimizer_state_dict": {}}, "cannot be resumed from"),
    ):
        checkpoints.save(last, {**values, **change})
        assert said in refused(arcvae, mine, "--epochs", 5)
    last.unlink()
    assert "last.pth: cannot be read" in refused(arcvae, mine, "--epochs", 5)
