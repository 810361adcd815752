from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest
import tomli
import tomli_w
import torch
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints, folders
from arcvae_cli.cli import app
from arcvae_cli.commands import evaluate, train
from arcvae_cli.errors import ArcvaeError, Interrupted
from arcvae_cli.presets import resolve
from arcvae_cli.records import Recorder
from arcvae_cli.schedules.open import Cyclical

Run = Callable[..., Result]
QUICK = ("--device", "cpu", "--precision", "fp32", "--latent-dim", "4", "--batch-size", "50")
pytestmark = pytest.mark.usefixtures("narrow")
DOCUMENT = {"verdict": {"ok": True, "findings": [], "summary": ""}}


def write_preset(path: Path, **tables: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(tables))
    return path


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def config(run: Path) -> dict[str, Any]:
    return tomli.loads((run / "config.toml").read_text())


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The one logger of runs."""
    recorder = Mock(spec=Recorder)
    monkeypatch.setattr("arcvae_cli.recorders.external.external_recorders", lambda *arguments: [recorder])
    return recorder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, arc_npz: Path) -> Path:
    """A run of two epochs of four steps in which nothing is as by default, with all its pictures."""
    base = tmp_path_factory.mktemp("trained")
    preset = write_preset(
        base / "mine.toml",
        data={"path": str(arc_npz), "augment": False},
        model={"posterior": "logvar"},
        objective={"reduction": "mean", "free_bits_mode": "per_sample"},
        schedule={"name": "linear", "max_beta": 0.1, "warmup_epochs": 2},
        train={"weight_decay": 0.01, "adam_betas": [0.8, 0.99]},
        checkpoint={"every_epochs": 1},
        log={"every_n_steps": 2, "images_every": 2},
    )
    flags = ["--preset", preset, *QUICK, *["--batch-size", "25", "--epochs", "2", "--free-bits", "0.2", "--seed", "3"]]
    clean = {name: None for name in os.environ if name.startswith("ARCVAE_")}
    arguments = map(str, ["train", *flags, "--runs-dir", base / "runs"])
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", **clean})
    assert result.exit_code == 0, result.stderr
    return (base / "runs" / "latest").resolve()


def test_what_a_run_leaves(trained: Path) -> None:
    run = trained
    assert re.fullmatch(r"mine-\d{8}-\d{6}", run.name)
    assert {path.name for path in run.iterdir()} == {
        *("config.toml", "metrics.jsonl", "metrics.json", "status.json", "checkpoints", "images", "lock", "run.log")
    }
    numbered = {f"{part}_epoch_{epoch}.pth" for part in ("vae", "encoder", "decoder") for epoch in (1, 2)}
    single = {"vae_best.pth", "vae_final.pth", "last.pth", "encoder.pth", "decoder.pth"}
    kept = {path.name for path in (run / "checkpoints").iterdir()} - numbered - single
    assert sorted(re.sub(r"-[0-9.]+\.pth", "", name) for name in kept) == ["best-loss-epoch_001", "best-loss-epoch_002"]
    names = {"reconstructions_epoch_2.png", "samples_epoch_2.png"}
    names |= {"beta_schedule.png", "kl_per_dim.png", "latent_space_pca.png", "latent_space_tsne.png"}
    assert {path.name for path in (run / "images").iterdir()} >= names
    status = folders.read_status(run)
    assert status and [status[key] for key in ("state", "epoch", "epochs", "step")] == ["finished", 2, 2, 8]
    steps, epochs = records(run, "step"), records(run, "epoch")
    assert [(line["step"], line["epoch"]) for line in steps] == [(2, 0.5), (4, 1.0), (6, 1.5), (8, 2.0)]
    assert [(line["epoch"], line["train/beta"]) for line in epochs] == [(1, 0.05), (2, 0.1)]
    document = json.loads((run / "metrics.json").read_text())
    best = min(epochs, key=lambda line: line["val/loss_selection"])["epoch"]
    assert (document["epoch"], document["split"], document["corpus"]) == (best, "val", "some")


def test_its_settings_repeat_a_run_bit_for_bit_and_json_is_one_document(
    trained: Path, arcvae: Run, plain: None, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # what was drawn before does not matter
    first, again = trained, tmp_path / "again"
    preset = first / "config.toml"
    result = arcvae("train", "--preset", preset, "--json", "--runs-dir", tmp_path, "--run-name", "again")
    assert result.exit_code == 0 and "epoch 2/2" in result.stderr, result.stderr
    assert config(again) == config(first)
    one, other = (checkpoints.read(run / "checkpoints" / "vae_final.pth")["model_state_dict"] for run in (again, first))
    assert all(torch.equal(one[name], other[name]) for name in other)
    for kind in ("step", "epoch"):
        lines = [[{**line, "seconds": 0} for line in records(run, kind)] for run in (again, first)]
        assert lines[0] == lines[1]
    document, before = json.loads(result.stdout), json.loads((first / "metrics.json").read_text())
    assert document == json.loads((again / "metrics.json").read_text())
    assert {**document, "run": "", "checkpoint": ""} == {**before, "run": "", "checkpoint": ""}


def test_loggers_get_the_final_evaluation_and_the_checkpoints_before_they_are_closed(
    arcvae: Run, plain: None, heard: Mock, arc_npz: Path, tmp_path: Path
) -> None:
    """Also: --quiet leaves the result and warnings, and a runs folder whose name is Rich markup."""
    folder = tmp_path / "[bold]runs[/x]"
    flags = ("--data", arc_npz, *QUICK, "--epochs", 1, "--runs-dir", folder, "--run-name", "a", "--quiet")
    result = arcvae("train", *flags, "--beta-schedule", "ultra_conservative")
    assert result.exit_code == 0 and "Verdict" in result.stdout
    assert result.stderr.splitlines() == [
        "warning: beta ends at 0 of 0.1: the warm-up is longer than the run",
        "warning: 2 steps in 1 epoch: a VAE of grids needs some 2,000; use --epochs 1000",
    ]
    assert [name for name, _, _ in heard.method_calls][-3:] == ["evaluated", "artifacts", "close"]
    metrics, verdict, images = heard.evaluated.call_args.args
    assert metrics == json.loads((folder / "a" / "metrics.json").read_text())
    assert verdict[-1] == metrics["verdict"]["summary"] and len(verdict) > len(metrics["verdict"]["findings"])
    assert {path.name for path in images} >= {"beta_schedule.png", "kl_per_dim.png"}
    assert all(path.is_file() and "_epoch_" not in path.name for path in images)
    (files,) = heard.artifacts.call_args.args
    assert list(files) == ["vae_best", "encoder", "decoder"] and all(path.is_file() for path in files.values())
    log = (folder / "a" / "run.log").read_text()
    assert "warning: beta ends" in log and "epoch 1/1" in log and verdict[-1] in log, "also where nothing is printed"


def test_a_signal_during_the_evaluation_leaves_a_complete_training(
    arcvae: Run, plain: None, heard: Mock, arc_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "report", lambda *arguments: signal.raise_signal(signal.SIGINT))
    result = arcvae("train", "--data", arc_npz, *QUICK, "--epochs", 1, "--runs-dir", tmp_path, "--run-name", "a")
    assert result.exit_code == 130 and heard.method_calls[-1] == call.close(130)
    assert f"before the end of the evaluation; the training is complete in {tmp_path / 'a'}" in result.stderr
    status = folders.read_status(tmp_path / "a")
    assert status and (status["state"], status["judged"]) == ("finished", False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Interrupted("stopped", 75), call.close(75)),
        (RuntimeError("a bug"), call.close(1)),
        (KeyboardInterrupt(), call.close(130)),
        (Interrupted("stopped at once", 130, at_once=True), call.abandon()),
    ],
    ids=repr,
)
def test_failing_recorders_do_not_hide_the_error_of_a_run(error: BaseException, expected: Any) -> None:
    failures = (AttributeError("half imported"), KeyboardInterrupt(), ArcvaeError("full"), None)
    recorders = [Mock(spec=Recorder, **{"close.side_effect": one, "abandon.side_effect": one}) for one in failures]
    with pytest.raises(type(error)) as caught, train.closing(recorders):
        raise error
    assert caught.value is error and [one.method_calls for one in recorders] == [[expected]] * 4


def test_environment_then_set_then_flag_and_no_other_setting(
    arcvae: Run, arc_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(trainer: Any) -> None:
        raise ArcvaeError("far enough")

    monkeypatch.setattr("arcvae_cli.trainer.Trainer.fit", fit)
    train = {"epochs": 60, "patience": 1, "seed": 1, "lr": 0.01}
    preset = write_preset(tmp_path / "mine.toml", data={"path": str(arc_npz)}, train=train)
    expected = resolve(str(preset)).settings.table()
    for key, value in {"LR": "0.02", "SEED": "2", "PATIENCE": "2"}.items():
        monkeypatch.setenv(f"ARCVAE_TRAIN__{key}", value)
    flags = ("--set", "train.lr=0.03", "--set", "train.seed=3", "--lr", 0.04, "--no-early-stopping", "--batch-size", 30)
    result = arcvae("train", "--preset", preset, *flags, "--runs-dir", tmp_path, "--run-name", "one")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, "error: far enough")
    expected["train"] |= {"lr": 0.04, "seed": 3, "patience": 2, "batch_size": 30, "early_stopping": False}
    assert config(tmp_path / "one") == expected


def test_a_quick_test_goes_through_the_whole_schedule(
    arcvae: Run, plain: None, arc_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "QUICK_EXAMPLES", 64)
    monkeypatch.setattr(evaluate, "report", lambda *arguments: DOCUMENT)
    whole, data = Cyclical(cycle_length=25.0, max_beta=0.1), {"path": str(arc_npz)}
    tables = {"train": {"epochs": 100, "batch_size": 8, "precision": "fp32"}, "log": {"every_n_steps": 1}}
    preset = write_preset(tmp_path / "long.toml", data=data, schedule=whole.model_dump(mode="json"), **tables)
    result = arcvae("train", "--preset", preset, "--quick-test", "--runs-dir", tmp_path, "--run-name", "quick")
    assert result.exit_code == 0, result.stderr
    assert "64 to train on, 8 to validate" in result.stderr and "warning" not in result.stderr
    assert result.stderr.count("40 steps in 5 epochs: a VAE of grids needs some 2,000; use --epochs 250\n") == 1
    betas = [line["train/beta"] for line in records(tmp_path / "quick", "step")]
    assert betas == pytest.approx([whole(100 * (step + 1) / 40) for step in range(40)], abs=1e-12)
    assert sum(beta == pytest.approx(0.1) for beta in betas) >= 100 / whole.cycle_length, "every cycle is visited"


def test_one_batch_is_memorised_and_no_run_is_written(
    arcvae: Run, arc_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--data", arc_npz, "--overfit-batch", "--batch-size", 1, "--lr", 0.003, "--precision", "fp32")
    result = arcvae("train", *flags)
    assert result.exit_code == 0, result.stderr
    assert re.fullmatch(r"memorised: all 1 examples of one batch are exact after \d+ steps\n", result.stdout)
    monkeypatch.setattr(train, "OVERFIT_STEPS", 2)
    result = arcvae("train", *flags, "--json", "--quiet")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["memorised"], document["steps"], document["examples"]) == (1, False, 2, 1)
    assert list(tmp_path.iterdir()) == []
