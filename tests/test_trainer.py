from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arcvae_cli import checkpoints, runs
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.errors import ArcvaeError, Interrupted
from arcvae_cli.files import read_lines
from arcvae_cli.metrics import EpochMetrics
from arcvae_cli.models import build_model
from arcvae_cli.objective import Terms
from arcvae_cli.overfit import overfit
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.records import EpochRecord, Pictures, Recorder
from arcvae_cli.settings import Settings
from arcvae_cli.step import seed_step
from arcvae_cli.trainer import Trainer

CPU = torch.device("cpu")


def read_epochs(path: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(path) if line["kind"] == "epoch"]


def corpus(n: int = 48) -> GridCorpus:
    """Grids of one coloured square each, so small that a model learns something in a second."""
    random = np.random.RandomState(0)
    grids = np.zeros((n, 16, 16), np.uint8)
    for grid in grids:
        row, column = random.randint(0, 8, 2)
        grid[row : row + 6, column : column + 6] = random.randint(1, 10)
    split = np.repeat(np.array([0, 1, 2], np.uint8), [n - 16, 8, 8])
    return GridCorpus(Dataset("squares", grids, split, None, None), CPU)


def settings(**tables: dict[str, Any]) -> Settings:
    table: dict[str, Any] = {
        "model": {"latent_dim": 4},
        "train": {"epochs": 3, "batch_size": 8, "precision": "fp32"},
        "log": {"every_n_steps": 2, "images_every": 2},
        "schedule": {"name": "linear", "max_beta": 0.5, "warmup_epochs": 2, "per": "step"},
    }
    for name, values in tables.items():
        table[name] = values if name == "schedule" else {**table.get(name, {}), **values}
    return Settings.model_validate(table)


class Ear(Recorder):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.epochs: list[EpochRecord] = []
        self.betas: list[float] = []
        self.pictured: list[tuple[int, tuple[int, ...]]] = []

    def step(self, epoch: int, done: int, beta: float | None) -> None:
        assert beta is not None
        self.betas.append(beta)

    def epoch(self, record: EpochRecord) -> None:
        self.epochs.append(record)

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        assert pictures.originals.dtype == pictures.reconstructions.dtype == pictures.samples.dtype == np.uint8
        self.pictured.append((epoch, pictures.samples.shape))


OPEN: list[JsonlRecorder] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """The command closes recorders when a training has ended; here the tests do."""
    yield
    while OPEN:
        OPEN.pop().close()


def make(tmp_path: Path, chosen: Settings, name: str = "run", **more: Any) -> tuple[Trainer, Ear]:
    folder = runs.create(tmp_path, name, "run", chosen)
    seed_step(chosen.train.seed, "weights")
    ear = Ear()
    OPEN.append(JsonlRecorder(folder.path / "metrics.jsonl"))
    return Trainer(chosen, corpus(), build_model(chosen.model), folder, [ear, OPEN[-1]], CPU, **more), ear


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    trainer, ear = make(tmp_path, settings(checkpoint={"every_epochs": 2}))
    trainer.fit()
    assert len(trainer.history) == 3 and not trainer.ended and trainer.best is not None
    first, last = trainer.history[0], trainer.history[-1]
    assert last.val.reconstruction < first.val.reconstruction / 1.5

    # beta moves with every one of the four steps of an epoch, exactly as the schedule says
    assert ear.betas == pytest.approx([min(0.5, 0.5 * (step + 1) / 4 / 2) for step in range(12)])
    assert ear.pictured == [(2, (64, 16, 16)), (3, (64, 16, 16))]

    names = {path.name for path in trainer.folder.checkpoints.iterdir() if not path.match("best-loss-epoch_00*")}
    assert names == {
        *("vae_best.pth", "vae_final.pth", "last.pth", "encoder.pth", "decoder.pth"),
        *("vae_epoch_2.pth", "encoder_epoch_2.pth", "decoder_epoch_2.pth"),
    }
    values = checkpoints.read(trainer.folder.checkpoints / "vae_best.pth")
    specified = {
        *("epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict"),
        *("train_loss", "val_loss", "pixel_accuracy", "config"),
    }
    assert specified <= set(values)
    assert values["epoch"] == trainer.best[1]
    assert values["val_loss"] == trainer.history[trainer.best[1] - 1].val.loss
    loaded = checkpoints.load(trainer.folder.checkpoints / "vae_final.pth")
    assert loaded.settings == trainer.settings and loaded.run == trainer.folder.path.resolve()
    for part in ("encoder", "decoder"):
        state = torch.load(trainer.folder.checkpoints / f"{part}.pth", weights_only=True)["state_dict"]
        getattr(build_model(trainer.settings.model), part).load_state_dict(state)

    lines = [json.loads(line) for line in (trainer.folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [2, 4, 6, 8, 10, 12]
    epochs = read_epochs(trainer.folder.path / "metrics.jsonl")
    logged = {
        *("train/loss_total", "train/loss_reconstruction", "train/loss_kl", "train/beta", "train/pixel_accuracy"),
        *("train/active_dims", "val/loss_total", "val/pixel_accuracy", "val/kl_per_dim", "val/loss_selection"),
        *(f"train/kl_per_dim/{name}" for name in ("dim_0", "dim_3", "min", "max", "mean")),
    }
    assert logged <= set(epochs[0]) and len(epochs[0]["val/kl_per_dim"]) == 4
    assert logged - {name for name in logged if name.startswith("val")} <= set(lines[0])

    status = json.loads((trainer.folder.path / "status.json").read_text())
    assert (status["state"], status["epoch"], status["step"]) == ("finished", 3, 12)


def test_the_same_seed_gives_the_same_run_and_another_a_different_one(tmp_path: Path) -> None:
    finals = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)  # what was drawn before a run does not matter
        chosen = settings(train={"epochs": 2, "seed": seed})
        trainer, _ = make(tmp_path, chosen, name)
        trainer.fit()
        finals.append(torch.cat([p.flatten() for p in trainer.model.parameters()]))
    assert torch.equal(finals[0], finals[1])
    assert not torch.equal(finals[0], finals[2])


def test_the_loss_terms_add_up(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, settings(objective={"free_bits": 0.7}, train={"epochs": 1}))
    trainer.fit()
    record = trainer.history[0]
    clamped = sum(max(0.7, value) for value in record.val.kl_per_dim["z"])
    assert record.val.kl_free["z"] == pytest.approx(clamped, rel=1e-5)
    assert record.val.loss == pytest.approx(record.val.reconstruction + record.betas["z"] * clamped, rel=1e-5)
    assert record.selection == pytest.approx(record.val.reconstruction + 0.5 * record.val.kl, rel=1e-6)


def counts(reconstruction: float, rate: float = 10.0) -> EpochMetrics:
    return EpochMetrics(8, reconstruction, reconstruction, {"z": rate}, {"z": [rate]}, 0.5, 0.5, 0.0, True)


def scripted(trainer: Trainer, losses: list[float], monkeypatch: pytest.MonkeyPatch) -> int:
    """Epochs that a run lasts whose validation reconstruction is given, all else being real."""
    given = iter(losses)
    monkeypatch.setattr(trainer, "validate", lambda betas: counts(next(given)))
    trainer.fit()
    return len(trainer.history)


LINEAR = {"name": "linear", "warmup_epochs": 6, "max_beta": 1.0}
CYCLES = {"name": "cyclical", "cycle_length": 8, "max_beta": 1.0}  # peaks at 4
RESTARTS = {
    "name": "warm_restart",
    "restart_interval": 5,
    "restart_multiplier": 2.0,
    "base": {"name": "linear", "warmup_epochs": 2, "max_beta": 1.0},
}


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
def test_early_stopping(
    schedule: dict[str, Any],
    train: dict[str, Any],
    best: int,
    last: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, _ = make(tmp_path, settings(schedule=schedule, train=train))
    losses = [3.0] * (best - 1) + [1.0] + [2.0] * 40
    assert scripted(trainer, losses, monkeypatch) == last and trainer.best == (pytest.approx(11.0), best)


def test_annealing_neither_picks_the_best_epoch_nor_moves_the_yardstick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """val/loss_total is least where beta is 0; the selection is least where the model is best at the peak of beta."""
    trainer, ear = make(tmp_path, settings())
    given = iter([counts(50.0, 90.0), counts(52.0, 20.0), counts(60.0, 19.0)])
    monkeypatch.setattr(trainer, "validate", lambda betas: next(given))
    trainer.fit()
    assert [record.selection for record in ear.epochs] == pytest.approx([95.0, 62.0, 69.5])
    assert [record.best for record in ear.epochs] == [True, True, False]


def test_an_accuracy_may_be_monitored_and_higher_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = make(tmp_path, settings(train={"monitor": "val/pixel_accuracy"}))
    shares = iter([0.2, 0.9, 0.5])
    monkeypatch.setattr(trainer, "validate", lambda betas: replace(counts(1.0), position=next(shares)))
    trainer.fit()
    assert trainer.best == (0.9, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [0.01] * 12),
        ("cosine", [1e-4 + (0.01 - 1e-4) * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]),
    ],
)
def test_learning_rates(tmp_path: Path, name: str, expected: list[float]) -> None:
    chosen = settings(train={"lr": 0.01, "lr_min": 1e-4, "lr_schedule": name})
    trainer, _ = make(tmp_path, chosen)
    seen: list[float] = []
    real = trainer.step.train

    def train(*arguments: Any) -> Any:
        seen.append(float(trainer.step.rate))
        return real(*arguments)

    trainer.step.train = train  # type: ignore[method-assign]
    trainer.fit()
    assert seen == pytest.approx(expected, rel=1e-6)


def test_a_plateau_lowers_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(train={"lr": 0.01, "lr_schedule": "plateau", "epochs": 7, "early_stopping": False})
    trainer, ear = make(tmp_path, chosen)
    scripted(trainer, [1.0] + [2.0] * 6, monkeypatch)
    assert [record.learning_rate for record in ear.epochs] == pytest.approx([0.01] * 5 + [0.002] * 2)


def test_a_nan_gradient_stops_the_run_and_changes_nothing(tmp_path: Path) -> None:
    trainer, ear = make(tmp_path, settings())
    calls, weights = [0], [torch.empty(0)]

    def infinite(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] < 2:
            return gradient
        weights.append(trainer.model.state_dict()["encoder.mean.weight"].clone())
        return gradient * float("nan")

    trainer.model.get_parameter("encoder.mean.weight").register_hook(infinite)
    with pytest.raises(ArcvaeError, match=r"epoch 1, step 2 of 4: the loss or its gradient is NaN or infinite"):
        trainer.fit()
    assert ear.epochs == [] and len(weights) > 2
    assert all(torch.equal(weight, weights[1]) for weight in weights[2:])


def spoil(trainer: Trainer, at: int, what: str = "loss") -> list[int]:
    """Make the loss NaN, or after the update a weight infinite, in the step `at`; returns the count of steps."""
    real, calls = trainer.step.train, [0]

    def train(*arguments: Any) -> Any:
        terms, output = real(*arguments)
        calls[0] += 1
        if calls[0] == at and what == "loss":
            terms = replace(terms, loss=terms.loss * float("nan"))
        elif calls[0] == at:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("inf"))
        return terms, output

    trainer.step.train = train  # type: ignore[method-assign]
    return calls


@pytest.mark.parametrize(
    ("at", "what", "asked", "told"),
    [
        (6, "loss", 99, "epoch 2, step 2 of 4: the loss or its gradient is NaN"),
        (6, "loss", 8, "epoch 2, step 2 of 4: the loss or its gradient is NaN"),  # a signal does not save it
        (8, "weight", 99, "epoch 2: the validation loss is NaN"),  # no loss of a step shows the last update
        (6, "weight", 7, "step 6: a weight is NaN"),
    ],
)
def test_a_nan_stops_the_run_before_it_reaches_a_checkpoint(
    at: int, what: str, asked: int, told: str, tmp_path: Path
) -> None:
    looks = iter([None] * (asked - 1) + [2] + [None] * 99)  # after each of 4 steps, before 1 batch of validation, ...
    trainer, _ = make(tmp_path, settings(), stop=lambda: next(looks))
    spoil(trainer, at, what)
    with pytest.raises(ArcvaeError, match=rf"{told} or infinite; the last good checkpoint is .*last\.pth, of step 4"):
        trainer.fit()
    for name in ("last.pth", "vae_best.pth"):
        values = checkpoints.read(trainer.folder.checkpoints / name)
        assert values["epoch"] == 1
        assert all(tensor.isfinite().all() for tensor in values["model_state_dict"].values())
    assert json.loads((trainer.folder.path / "status.json").read_text())["state"] == "failed"


def test_a_signal_saves_and_leaves(tmp_path: Path) -> None:
    asked = iter([None] * 4 + [None] + [None] + [15])  # after 4 steps, before 1 batch of validation, after 2 steps
    trainer, _ = make(tmp_path, settings(), stop=lambda: next(asked))
    with pytest.raises(Interrupted, match="SIGTERM in epoch 2") as caught:
        trainer.fit()
    assert caught.value.exit_code == 143
    values = checkpoints.read(trainer.folder.checkpoints / "last.pth")
    assert (values["epoch"], values["step"], values["epoch_finished"]) == (2, 6, False)
    assert json.loads((trainer.folder.path / "status.json").read_text())["state"] == "interrupted"


def test_one_batch_is_memorised(tmp_path: Path) -> None:
    chosen = settings(model={"body": "residual", "latent_dim": 10}, train={"batch_size": 8, "lr": 2e-3})
    heard: list[int] = []
    model = build_model(chosen.model)
    steps, found = overfit(chosen, corpus(), model, CPU, 600, lambda step, counts: heard.append(step))
    assert found.exact == 1.0 and heard[0] == 50 and heard[-1] == steps
    steps, found = overfit(chosen, corpus(), build_model(chosen.model), CPU, 3, lambda step, counts: None)
    assert found.exact < 1.0 and steps == 3


def test_bf16_chosen_by_itself_gives_way_where_it_disagrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcvae_cli.step.cpu_has_bf16", lambda: True)
    agreeing, _ = make(tmp_path, settings(train={"precision": "auto"}), "agreeing")
    agreeing.check_precision()
    assert agreeing.step.precision == torch.bfloat16 and not agreeing.notes

    apart, _ = make(tmp_path, settings(train={"precision": "auto"}), "apart")
    real = apart.step.measure

    def measure(*arguments: Any) -> Any:
        terms, output = real(*arguments)
        factor = 1.1 if apart.step.precision == torch.bfloat16 else 1.0
        return Terms(terms.loss * factor, terms.reconstruction, terms.kl_free, terms.kl_per_dim, terms.betas), output

    apart.step.measure = measure  # type: ignore[method-assign]
    apart.check_precision()
    assert apart.step.precision == torch.float32
    assert "using fp32" in apart.notes[0]


def test_an_epoch_tells_how_far_beta_went_within_it(tmp_path: Path) -> None:
    """A cycle of one epoch ends where it began: its last beta alone would say that beta never moved."""
    cycle = {"name": "cyclical", "cycle_length": 1, "max_beta": 0.4, "per": "step"}
    trainer, ear = make(tmp_path, settings(schedule=cycle), "cycle")
    trainer.fit()
    assert [record.betas["z"] for record in ear.epochs] == pytest.approx([0.0] * 3)
    assert [record.beta_range["z"] for record in ear.epochs] == [pytest.approx((0.0, 0.4))] * 3
    rising, ear = make(tmp_path, settings(), "rising")
    rising.fit()
    assert [record.beta_range for record in ear.epochs] == [{}] * 3


@pytest.mark.parametrize(
    ("error", "told", "state", "reason"),
    [
        (RuntimeError("broken"), RuntimeError, "failed", "RuntimeError: broken"),
        (KeyboardInterrupt(), Interrupted, "interrupted", "stopped by Ctrl-C at once; {} holds the first 0 of 4 steps"),
    ],
    ids=["error", "second Ctrl-C"],
)
def test_no_run_that_has_ended_is_said_to_be_running(
    tmp_path: Path,
    error: BaseException,
    told: type[BaseException],
    state: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, _ = make(tmp_path, settings())

    def validate(betas: Any) -> EpochMetrics:
        raise error

    monkeypatch.setattr(trainer, "validate", validate)
    with pytest.raises(told):
        trainer.fit()
    status = json.loads((trainer.folder.path / "status.json").read_text())
    assert (status["state"], status["step"]) == (state, 4)
    assert status["reason"] == reason.format(trainer.folder.path)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("Unable to allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
    ],
    ids=["cuda", "host", "allocator", "oneDNN"],
)
@pytest.mark.parametrize(("room", "fix"), [(3, "a batch of 2 fitted in a trial"), (0, "no smaller batch was found")])
def test_no_memory_names_the_batch_size_and_what_would_fit(
    tmp_path: Path, error: Exception, room: int, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = make(tmp_path, settings())
    real = trainer.model.forward

    def forward(batch: Any, noise: bool = True) -> Any:
        if len(batch.x) > room:
            raise error
        return real(batch, noise)

    monkeypatch.setattr(trainer.model, "forward", forward)
    with pytest.raises(ArcvaeError, match=r"train\.batch_size: 8 does not fit into the memory of cpu") as caught:
        trainer.fit()
    assert caught.value.fix is not None and caught.value.fix.startswith(fix)
    assert json.loads((trainer.folder.path / "status.json").read_text())["state"] == "failed"


def test_no_memory_for_the_validation_does_not_blame_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = make(tmp_path, settings())

    def measure(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.step, "measure", measure)
    with pytest.raises(ArcvaeError, match="memory of cpu is too small for the validation"):
        trainer.fit()


def test_a_nan_is_noticed_within_a_long_epoch_without_a_read_back_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcvae_cli.trainer.CHECK_EVERY", 3)
    trainer, _ = make(tmp_path, settings(train={"batch_size": 1, "epochs": 1}))  # 32 steps
    real, reads = trainer.engine.metrics.read, [0]

    def read(done: int) -> Any:
        reads[0] += 1
        return real(done)

    monkeypatch.setattr(trainer.engine.metrics, "read", read)
    steps = spoil(trainer, 14)
    with pytest.raises(ArcvaeError, match="epoch 1, step 14 of 32: the loss"):
        trainer.fit()
    assert steps[0] == 18, "asked after step 15, the answer was looked at after step 18"
    assert reads[0] == 2, "once for the first checkpoint, once because something is wrong"


def test_within_an_epoch_the_run_is_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[int, int, bool]] = []
    real = checkpoints.save

    def save(path: Path, values: Any) -> None:
        real(path, values)
        if path.name == "last.pth":
            kept = checkpoints.read(path)
            saved.append((kept["epoch"], kept["step"], kept["epoch_finished"]))

    monkeypatch.setattr(checkpoints, "save", save)
    clock = iter(range(0, 10_000, 20))  # seconds: every look at it takes 20
    monkeypatch.setattr("arcvae_cli.trainer.time.monotonic", lambda: next(clock))
    trainer, _ = make(tmp_path, settings(train={"save_minutes": 1, "epochs": 2}))
    trainer.fit()
    assert saved == [(0, 0, True), (1, 3, False), (1, 4, True), (2, 7, False), (2, 8, True)]
    saved.clear()
    trainer, _ = make(tmp_path, settings(train={"save_minutes": 0, "epochs": 2}), "never")
    trainer.fit()
    assert saved == [(0, 0, True), (1, 4, True), (2, 8, True)]


# -------------------------------------------------------------------------------------- closed loops, several levels


class Deaf(Ear):
    """Counts the steps of which the host does not know beta."""

    unknown = 0

    def step(self, epoch: int, done: int, beta: float | None) -> None:
        self.unknown += beta is None


def closed_loop(tmp_path: Path, schedule: dict[str, Any], name: str = "run", **tables: Any) -> tuple[Trainer, Deaf]:
    chosen = settings(schedule=schedule, **tables)
    trainer, _ = make(tmp_path, chosen, name)
    ear = Deaf()
    trainer.recorders = [ear, trainer.recorders[-1]]
    return trainer, ear


def test_a_closed_loop_moves_beta_keeps_its_state_and_tells_its_target(tmp_path: Path) -> None:
    schedule = {"name": "controlvae", "target": 3.0, "start_beta": 0.1, "ki": -0.01}
    trainer, ear = closed_loop(tmp_path, schedule)
    trainer.fit()
    assert ear.unknown == 12, "no read-back a step"
    path = [beta for record in trainer.history for beta in record.beta_trace["z"]]
    assert len(path) == 12 and len(set(path)) > 6
    (target,) = trainer.history[-1].targets
    assert (target.level, target.quantity, target.target) == ("", "kl", 3.0)
    assert target.value == pytest.approx(trainer.history[-1].train.kl)
    assert target.beta == pytest.approx(np.mean(trainer.history[-1].beta_trace["z"]))
    assert trainer.history[-1].betas["z"] == pytest.approx(target.beta), "the mean, since one batch's may be anything"
    assert trainer.history[-1].beta_range == {}

    lines = [json.loads(line) for line in (trainer.folder.path / "metrics.jsonl").read_text().splitlines()]
    logged = [line["train/beta"] for line in lines if line["kind"] == "step"]
    assert logged == pytest.approx(path[1::2])
    assert all(line["train/target/kl"] == 3.0 for line in lines if line["kind"] == "epoch")

    kept = checkpoints.read(trainer.folder.checkpoints / "last.pth")["schedule_state"]
    assert kept[""]["beta"] == pytest.approx(path[-1])
    other, _ = closed_loop(tmp_path, schedule, "other")
    other.control.load_state_dict(kept)
    assert other.control.state_dict() == trainer.control.state_dict()
    assert other.control.state_dict() == trainer.control.state_dict()


def test_a_closed_loop_is_judged_by_the_elbo(tmp_path: Path) -> None:
    trainer, _ = closed_loop(tmp_path, {"name": "geco", "tolerance": 0.1})
    assert trainer.peaks == {"z": 1.0}
    mean, _ = closed_loop(tmp_path, {"name": "geco", "tolerance": 0.1}, "mean", objective={"reduction": "mean"})
    assert mean.peaks == {"z": 1 / 256}


def test_out_of_reach_is_said_from_the_second_epoch_on(tmp_path: Path) -> None:
    trainer, _ = closed_loop(tmp_path, {"name": "controlvae", "target": 1e4, "start_beta": 0.0})
    trainer.fit()
    first, second, third = (record.targets[0] for record in trainer.history)
    assert first.missed and first.note is None
    assert second.note is not None and "out of reach" in second.note and third.note is not None


HIERARCHICAL = {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}


def hierarchical(tmp_path: Path, **tables: Any) -> tuple[Trainer, Ear]:
    schedule = {
        "name": "hierarchical",
        "global": {"name": "warm_restart", "restart_interval": 1, "base": {"name": "constant", "max_beta": 0.25}},
        "local": {"name": "controlvae", "target": 2.0, "start_beta": 0.5},
    }
    chosen = Settings.model_validate(
        {
            "model": HIERARCHICAL,
            "train": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
            "log": {"every_n_steps": 2, "images_every": 2},
            "schedule": schedule,
            **tables,
        }
    )
    return make(tmp_path, chosen)


def test_two_levels_with_a_schedule_each(tmp_path: Path) -> None:
    trainer, ear = hierarchical(tmp_path)
    trainer.fit()
    last = trainer.history[-1]
    assert ear.betas == [0.25] * 8
    assert last.beta_trace["global"] == [0.25] * 4 and len(set(last.beta_trace["local"])) == 4
    assert [target.level for target in last.targets] == ["local"]
    assert last.restart is not None and last.restart["last_restart_epoch"] == 2
    assert trainer.peaks == {"global": 0.25, "local": 1.0}
    (line,) = read_epochs(trainer.folder.path / "metrics.jsonl")[1:]
    assert line["train/kl"] == pytest.approx(line["train/kl/global"] + line["train/kl/local"])
    assert line["train/beta"] == line["train/beta/global"] == 0.25
    assert line["train/active_dims"] == sum(
        value > 0.05 for groups in last.train.kl_per_dim.values() for value in groups
    )
    assert len(line["val/kl_per_dim"]) == 5
    values = checkpoints.read(trainer.folder.checkpoints / "vae_final.pth")
    assert values["conditions"][0] == ["height", 17]
    loaded = checkpoints.load(trainer.folder.checkpoints / "vae_final.pth")
    assert loaded.model.level_shapes == {"global": (3,), "local": (2, 4, 4)}


def test_training_sees_conditions_and_validation_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = hierarchical(tmp_path)
    seen: dict[bool, set[bool]] = {True: set(), False: set()}
    forward = trainer.model.forward

    def watch(batch: Any, noise: bool = True) -> Any:
        seen[trainer.model.training].add(batch.conditions is not None)
        return forward(batch, noise)

    monkeypatch.setattr(trainer.model, "forward", watch)
    trainer.fit()
    assert seen == {True: {True}, False: {False}}


def test_pictures_show_where_a_map_carries_nats(tmp_path: Path) -> None:
    trainer, _ = hierarchical(tmp_path)
    shown: list[Pictures] = []

    class Eye(Recorder):
        def pictures(self, epoch: int, pictures: Pictures) -> None:
            shown.append(pictures)

    trainer.recorders = [Eye()]
    trainer.fit()
    assert set(shown[-1].maps) == {"local"}
    maps = shown[-1].maps["local"]
    assert maps.shape == (8, 4, 4) and maps.dtype == np.float32 and (maps >= 0).all() and maps.max() > 0
