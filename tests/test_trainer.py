from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from arcvae_cli import checkpoints, folders
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.errors import ArcvaeError, Interrupted
from arcvae_cli.metrics import EpochMetrics
from arcvae_cli.models import build_model
from arcvae_cli.objective import Terms
from arcvae_cli.records import EpochRecord, Recorder
from arcvae_cli.settings import Settings
from arcvae_cli.step import seed_step
from arcvae_cli.trainer import Trainer

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("narrow")


def squares(device: torch.device = CPU) -> GridCorpus:
    """48 grids of one coloured square each: 32 to train on, so 4 batches of 8."""
    random = np.random.RandomState(0)
    grids = np.zeros((48, 16, 16), np.uint8)
    for grid in grids:
        row, column = random.randint(0, 8, 2)
        grid[row : row + 6, column : column + 6] = random.randint(1, 10)
    return GridCorpus(
        Dataset("squares", grids, np.repeat(np.arange(3, dtype=np.uint8), [32, 8, 8]), None, None), device
    )


def settings(*more: Mapping[str, Any], **tables: dict[str, Any]) -> Settings:
    """Settings of a short run; a schedule and a model with a name replace those of it."""
    table: dict[str, Any] = {
        "model": {"latent_dim": 4},
        "train": {"epochs": 3, "batch_size": 8, "precision": "fp32"},
        "log": {"every_n_steps": 2, "images_every": 2},
        "schedule": {"name": "linear", "max_beta": 0.5, "warmup_epochs": 2, "per": "step"},
    }
    for changes in (*more, tables):
        for name, values in changes.items():
            table[name] = dict(values) if "name" in values else {**table.get(name, {}), **values}
    return Settings.model_validate(table)


def make(tmp_path: Path, chosen: Settings, name: str = "run") -> tuple[Trainer, Mock]:
    folder = folders.create(tmp_path, name, "run", chosen)
    seed_step(chosen.train.seed, "weights")
    trainer, recorder = Trainer(chosen, squares(), build_model(chosen.model), folder, False), Mock(Recorder)
    trainer.recorders.append(recorder)
    return trainer, recorder


def given(method: Mock, place: int) -> list[Any]:
    """An argument of every call of a recorder's method."""
    return [call.args[place] for call in method.call_args_list]


def status(trainer: Trainer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((trainer.folder.path / "status.json").read_text())
    return found


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    tables = {"model": {"encoder_channels": [32, 64, 128]}, "checkpoint": {"every_epochs": 2}}
    trainer, recorder = make(tmp_path, settings(tables, objective={"free_bits": 0.7}))
    trainer.fit()
    assert len(trainer.history) == 3 and not trainer.ended and trainer.best is not None
    first, last = trainer.history[0], trainer.history[-1]
    assert last.val.reconstruction < first.val.reconstruction / 1.5
    clamped = sum(max(0.7, value) for value in last.val.kl_per_dim["z"])
    assert last.val.clamped_kl["z"] == pytest.approx(clamped, rel=1e-5)
    assert last.val.loss == pytest.approx(last.val.reconstruction + last.betas["z"] * clamped, rel=1e-5)
    assert last.selection == pytest.approx(last.val.reconstruction + 0.5 * last.val.kl, rel=1e-6)

    # beta moves with every one of the four steps of an epoch, exactly as the schedule says
    expected = [min(0.5, 0.5 * (step + 1) / 4 / 2) for step in range(12)]
    assert given(recorder.step, 2) == [{"z": beta} for beta in expected]
    assert [beta for record in trainer.history for beta in record.beta_trace["z"]] == expected
    assert given(recorder.pictures, 0) == [2, 3]
    assert [pictures.samples.shape for pictures in given(recorder.pictures, 1)] == [(64, 16, 16)] * 2
    assert given(recorder.epoch, 0) == trainer.history

    names = {path.name for path in trainer.folder.checkpoints.iterdir() if not path.match("best-loss-epoch_00*")}
    assert names == {
        *("vae_best.pth", "vae_final.pth", "last.pth", "encoder.pth", "decoder.pth"),
        *("vae_epoch_2.pth", "encoder_epoch_2.pth", "decoder_epoch_2.pth"),
    }
    values = checkpoints.read(trainer.folder.checkpoints / "vae_best.pth")
    specified = {"epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "train_loss", "val_loss"}
    assert specified | {"pixel_accuracy", "config"} <= set(values)
    assert (values["epoch"], values["betas"].shape) == (trainer.best[1], (trainer.best[1], 1, 4))
    assert values["val_loss"] == trainer.history[trainer.best[1] - 1].val.loss
    loaded = checkpoints.load(trainer.folder.checkpoints / "vae_final.pth")
    assert loaded.settings == trainer.settings and loaded.run == trainer.folder.path.resolve()

    steps = [line for lines in given(recorder.steps, 0) for line in lines]
    assert [(line["epoch"], line["step"]) for line in steps] == [(step / 4, step) for step in (2, 4, 6, 8, 10, 12)]
    names = {"train/loss_total", "train/beta", "train/pixel_accuracy", "train/kl_per_dim/dim_3", "train/active_dims"}
    assert names <= set(steps[0]) and names | {"val/loss_total", "val/loss_selection"} <= set(first.metrics())
    assert len(first.metrics()["val/kl_per_dim"]) == 4
    assert [status(trainer)[key] for key in ("state", "epoch", "step")] == ["finished", 3, 12]


def test_the_trial_of_threads_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def choose(step: Any, steps: int) -> str:
        torch.set_num_threads(1)
        step()
        calls.append(steps)
        return "threads 1, by trial"

    threads, chosen = torch.get_num_threads(), {"schedule": {"name": "controlvae", "target": 3.0}}
    monkeypatch.setattr("arcvae_cli.trainer.choose_threads", choose)
    monkeypatch.setattr("arcvae_cli.trainer.threads_given", lambda: False)
    try:
        torch.set_num_threads(2)
        tried, _ = make(tmp_path, settings(chosen, train={"epochs": 1}), "tried")
        torch.manual_seed(1)  # the state of the generator before a run does not matter, nor what trials draw
        tried.fit()
        assert calls == [4] and tried.notes == ["threads 1, by trial"]
        torch.manual_seed(2)
        fixed, _ = make(tmp_path, settings(chosen, train={"threads": 1, "epochs": 1}), "fixed")
        fixed.fit()
        assert torch.equal(weights(tried), weights(fixed))
        torch.set_num_threads(2)
        resumed, _ = make(tmp_path, tried.settings, "resumed")
        resumed.resume(checkpoints.read(tried.folder.checkpoints / "last.pth"), tried.folder.checkpoints / "last.pth")
        resumed.prepare()
        assert torch.get_num_threads() == 1 and len(calls) == 1, "the number of the checkpoint, without another trial"
    finally:
        torch.set_num_threads(threads)


LINEAR = {"name": "linear", "warmup_epochs": 6, "max_beta": 1.0}
CYCLES = {"name": "cyclical", "cycle_length": 8, "max_beta": 1.0}  # peaks at 4
BASE = {"name": "linear", "warmup_epochs": 2, "max_beta": 1.0}
RESTARTS = {"name": "warm_restart", "restart_interval": 5, "restart_multiplier": 2.0, "base": BASE}


@pytest.mark.parametrize(
    ("schedule", "train", "best", "last"),
    [
        (LINEAR, {"epochs": 30, "patience": 3}, 1, 9),  # the best comes early: while beta rises that stops nothing
        (CYCLES, {"epochs": 40, "patience": 3}, 6, 14),  # patience counts whole cycles
        (RESTARTS, {"epochs": 40, "patience": 2}, 4, 14),  # the second interval, of epochs 5 to 15, is 10 long
        (LINEAR, {"epochs": 12, "patience": 1, "early_stopping": False}, 1, 12),
    ],
    ids=["linear", "cycles", "restarts", "off"],
)
def test_early_stopping(schedule: dict[str, Any], train: dict[str, Any], best: int, last: int, tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, settings(schedule=schedule, train=train))
    for epoch in range(1, trainer.settings.train.epochs + 1):
        trainer.global_step = epoch * trainer.steps
        trainer.history.append(Mock(mutual_information=None))
        trainer.best = (1.0, min(best, epoch))
        if trainer.patience_over:
            break
    assert epoch == last


def replay(trainer: Trainer, *val: EpochMetrics) -> list[EpochRecord]:
    """The records of epochs without training, with these metrics of their validation."""
    trainer.engine.metrics.table[:, 0] = 8.0
    for metrics in val:
        trainer.global_step += trainer.steps
        trainer.record(trainer.engine.metrics.read(trainer.steps), {"z": 0.5}, metrics, 1.0)
    return trainer.history


def metrics(reconstruction: float, kl: float = 10.0, position: float = 0.5) -> EpochMetrics:
    return EpochMetrics(8, reconstruction, reconstruction, {"z": kl}, {"z": [kl]}, position, 0.5, 0.0)


def test_annealing_does_not_select_the_best_epoch(tmp_path: Path) -> None:
    """val/loss_total is least where beta is 0; the selection is least where the model is best at the peak of beta."""
    found = replay(make(tmp_path, settings())[0], metrics(50.0, 90.0), metrics(52.0, 20.0), metrics(60.0, 19.0))
    assert [record.selection for record in found] == pytest.approx([95.0, 62.0, 69.5])
    assert [record.best for record in found] == [True, True, False]
    accuracy, _ = make(tmp_path, settings(train={"monitor": "val/pixel_accuracy"}), "accuracy")
    replay(accuracy, *(metrics(1.0, position=share) for share in (0.2, 0.9, 0.5)))
    assert accuracy.best == (0.9, 2)


def test_learning_rates(tmp_path: Path) -> None:
    cosine, _ = make(tmp_path, settings(train={"lr": 0.01, "lr_min": 1e-4, "lr_schedule": "cosine"}))
    expected = [1e-4 + (0.01 - 1e-4) * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert [cosine.rate(step) for step in range(12)] == pytest.approx(expected, rel=1e-6)
    plateau, _ = make(tmp_path, settings(train={"lr": 0.01, "lr_schedule": "plateau", "epochs": 7}), "plateau")
    found = replay(plateau, metrics(1.0), *[metrics(2.0)] * 6)
    assert [record.learning_rate for record in found] == pytest.approx([0.01] * 5 + [0.002] * 2)


def spoil(trainer: Trainer, at: int, what: str = "loss") -> list[int]:
    """Make the loss or a gradient NaN, or a weight infinite after the update, in step `at`. The count of steps."""
    real, calls = trainer.step.train, [0]

    def train(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == at and what == "gradient":
            parameter = trainer.model.get_parameter("encoder.mean.weight")
            hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
            before = weights(trainer)
            found = real(*arguments)
            hook.remove()
            assert torch.equal(weights(trainer), before), "a step whose gradient is NaN changes no weight"
            return found
        terms, output = real(*arguments)
        if calls[0] == at and what == "loss":
            terms = replace(terms, loss=terms.loss * float("nan"))
        elif calls[0] == at:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("inf"))
        return terms, output

    trainer.step.train = train  # type: ignore[method-assign]
    return calls


@pytest.mark.parametrize(
    ("at", "what", "asked", "message"),
    [
        (6, "gradient", 99, "epoch 2, step 2 of 4: the loss or its gradient"),
        (6, "loss", 8, "epoch 2, step 2 of 4: the loss or its gradient"),  # a signal does not save it
        (8, "weight", 99, "epoch 2: the validation loss"),  # no loss of a step shows the last update
        (6, "weight", 7, "step 6: a weight"),
    ],
)
def test_a_nan_stops_the_run_before_it_reaches_a_checkpoint(
    at: int, what: str, asked: int, message: str, tmp_path: Path
) -> None:
    asked_for = iter([None] * (asked - 1) + [2] + [None] * 99)  # after each of 4 steps, before 1 validation batch, ...
    trainer, _ = make(tmp_path, settings(log={"images_every": 0}))
    trainer.stop = lambda: next(asked_for)
    spoil(trainer, at, what)
    last = r"the last good checkpoint is .*last\.pth, of step 4"
    with pytest.raises(ArcvaeError, match=rf"{message} is NaN or infinite; {last}"):
        trainer.fit()
    for name in ("last.pth", "vae_best.pth"):
        values = checkpoints.read(trainer.folder.checkpoints / name)
        assert values["epoch"] == 1
        assert all(tensor.isfinite().all() for tensor in values["model_state_dict"].values())
    assert status(trainer)["state"] == "failed"


def test_within_an_epoch_the_loss_is_read_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, recorder = make(tmp_path, settings(train={"batch_size": 1, "epochs": 1}))  # 32 steps
    real, losses = trainer.engine.metrics.add, []

    def add(row: Any, terms: Terms, *arguments: Any) -> None:
        losses.append(terms.loss.item())
        real(row, terms, *arguments)

    monkeypatch.setattr(trainer.engine.metrics, "add", add)
    steps = spoil(trainer, 14)
    with pytest.raises(ArcvaeError, match="epoch 1, step 14 of 32: the loss"):
        trainer.fit()
    assert steps[0] == 20
    expected = [pytest.approx(np.mean(losses[:10])) if step == 10 else None for step in range(1, 20)]
    assert given(recorder.step, 3) == expected


def test_bf16_chosen_by_auto_falls_back_where_it_disagrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    trainer, _ = make(tmp_path, settings(train={"precision": "auto"}))
    losses = [(Mock(loss=torch.tensor(loss)), None) for loss in (100.0, 101.0, 100.0, 110.0)]
    monkeypatch.setattr(trainer.step, "plain", Mock(side_effect=losses))
    for kind in (torch.bfloat16, torch.float32):
        trainer.check_precision()
        assert trainer.step.precision == kind and bool(trainer.notes) == (kind == torch.float32)


@pytest.mark.parametrize(
    ("error", "raised", "reason"),
    [
        (RuntimeError("broken"), RuntimeError, "RuntimeError: broken"),
        (KeyboardInterrupt(), Interrupted, "stopped by Ctrl-C at once after step 4; the first 0 steps are saved in "),
        (torch.OutOfMemoryError(""), ArcvaeError, "the memory of cpu is too small for the validation, "),
    ],
    ids=["error", "second Ctrl-C", "memory"],
)
def test_the_status_of_a_run_that_has_ended_says_why(
    error: BaseException, raised: type[BaseException], reason: str, tmp_path: Path
) -> None:
    trainer, _ = make(tmp_path, settings())
    trainer.step.plain = Mock(side_effect=error)  # type: ignore[method-assign]
    with pytest.raises(raised):
        trainer.fit()
    found = status(trainer)
    assert (found["state"], found["step"]) == ("interrupted" if raised is Interrupted else "failed", 4)
    assert found["reason"].startswith(reason)


@pytest.mark.parametrize(("room", "fix"), [(3, "a batch of 2 fitted in a trial"), (0, "use a smaller batch")])
def test_out_of_memory_names_the_batch_size_and_what_would_fit(room: int, fix: str, tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, settings())
    real = trainer.model.forward

    def forward(batch: Any, noise: bool = True, more: int = 0) -> Any:
        if len(batch.x) > room:
            raise MemoryError
        return real(batch, noise)

    trainer.model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(ArcvaeError, match=r"train\.batch_size: 8 does not fit into the memory of cpu") as caught:
        trainer.fit()
    assert caught.value.fix is not None and caught.value.fix.startswith(fix)


@pytest.mark.parametrize(("minutes", "expected"), [(1, [0, 3, 4, 7, 8]), (0, [0, 4, 8])])
def test_within_an_epoch_the_run_is_saved_by_the_clock(
    minutes: int, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(checkpoints, "save", lambda path, values: saved.append(values["step"]))
    monkeypatch.setattr(checkpoints, "copy", lambda path, target: None)
    monkeypatch.setattr(Trainer, "save_copies", lambda trainer, record: None)
    seconds = iter(range(0, 10_000, 20))  # every look at the clock takes 20
    monkeypatch.setattr("arcvae_cli.trainer.time.monotonic", lambda: next(seconds))
    trainer, _ = make(tmp_path, settings(train={"save_minutes": minutes, "epochs": 2}))
    trainer.fit()
    assert saved == expected


def test_a_closed_loop_moves_beta_and_keeps_its_state(tmp_path: Path) -> None:
    schedule = {"name": "controlvae", "target": 1e4, "start_beta": 0.1, "ki": -0.01, "min_beta": 0.01}
    trainer, recorder = make(tmp_path, settings(schedule=schedule))
    trainer.fit()
    assert given(recorder.step, 2) == [{}] * 12, "no read-back in a step"
    assert trainer.selection_weights == {"z": 1.0}, "that of the ELBO"
    betas = [beta for record in trainer.history for beta in record.beta_trace["z"]]
    last = trainer.history[-1]
    (target,) = last.targets
    assert (target.level, target.quantity, target.target) == ("", "kl", 1e4)
    assert target.value == pytest.approx(last.train.kl)
    assert last.betas["z"] == pytest.approx(np.mean(last.beta_trace["z"])), "one batch's may be anything"
    assert last.beta_range == {}
    steps = [line for lines in given(recorder.steps, 0) for line in lines]
    assert [line["train/beta"] for line in steps] == betas[1::2] and last.metrics()["train/target/kl"] == 1e4
    values = checkpoints.read(trainer.folder.checkpoints / "last.pth")
    assert values["schedule_state"][""]["beta"] == pytest.approx(betas[-1])
    assert values["betas"].flatten().tolist() == betas


def test_beta_of_an_epoch_is_a_range_where_it_went_up_and_down(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, settings())
    beta = trainer.engine.metrics.table[:4, -6]
    for path, expected in (([0.2, 0.4, 0.2, 0.0], {"z": (0.0, 0.4)}), ([0.1, 0.2, 0.3, 0.4], {})):
        beta.copy_(torch.tensor(path))
        assert replay(trainer, metrics(1.0))[-1].beta_range == {name: pytest.approx(s) for name, s in expected.items()}


def test_two_levels_with_a_schedule_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = {"name": "warm_restart", "restart_interval": 1, "base": {"name": "constant", "max_beta": 0.25}}
    local = {"name": "controlvae", "target": 2.0, "start_beta": 0.5}
    model = {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}
    schedule = {"name": "hierarchical", "global": restarts, "local": local}
    trainer, recorder = make(tmp_path, settings(model=model, schedule=schedule, train={"epochs": 1}))
    forward = Mock(side_effect=trainer.model.forward)
    monkeypatch.setattr(trainer.model, "forward", forward)
    trainer.fit()
    conditioned = [batch.conditions is not None for batch in given(forward, 0)]
    assert conditioned == [True] * 4 + [False], "validation is without conditions"
    (last,) = trainer.history
    assert given(recorder.step, 2) == [{"global": 0.25}] * 4
    assert last.beta_trace["global"] == [0.25] * 4 and len(set(last.beta_trace["local"])) == 4
    assert [target.level for target in last.targets] == ["local"]
    assert last.restart is not None and last.restart["last_restart_epoch"] == 1
    assert trainer.selection_weights == {"global": 0.25, "local": 1.0}
    line = last.metrics()
    assert line["train/kl"] == pytest.approx(line["train/kl/global"] + line["train/kl/local"])
    assert line["train/beta"] == line["train/beta/global"] == 0.25 and len(line["val/kl_per_dim"]) == 5
    assert checkpoints.read(trainer.folder.checkpoints / "vae_final.pth")["conditions"][0] == ["height", 17]
    (pictures,) = given(recorder.pictures, 1)
    assert pictures.maps["local"].shape == (8, 4, 4) and pictures.maps["local"].max() > 0
