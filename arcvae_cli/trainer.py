"""The training loop, from top to bottom."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arcvae_cli import checkpoints
from arcvae_cli.controllers import Controller, Target
from arcvae_cli.data.corpus import Corpus, DerivationCorpus, GridCorpus
from arcvae_cli.engine import TEXTS as ENGINES
from arcvae_cli.engine import Engine
from arcvae_cli.errors import ArcvaeError, Interrupted
from arcvae_cli.evaluation.information import batch_size, batches, longest_first
from arcvae_cli.machine import describe, peak_memory
from arcvae_cli.models.base import VAE
from arcvae_cli.objective import Objective
from arcvae_cli.records import ACCURACIES, HIGHER_IS_BETTER, EpochRecord, Examples, Pictures, Plan, Recorder, StepRecord
from arcvae_cli.runs import RunFolder
from arcvae_cli.schedules import Schedule
from arcvae_cli.settings import Settings, elbo_scale
from arcvae_cli.step import Counts, LearningRate, Step, Sums, Tally, seed_step

VALIDATION_BATCH = 1000
SHOWN = 16
"""Pairs of original and reconstruction in a picture."""
SAMPLES = 64

RANKINGS: dict[str, tuple[tuple[str, str, float], ...]] = {
    "pixel": (("loss", "val/loss_selection", 1.0),),
    "token": (("loss", "val/loss_selection", 1.0), ("seq_acc", "val/seq_acc", -1.0)),
}
"""By the unit of a corpus: what the best epochs are kept by, and the sign that makes the best the smallest."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended. `epoch` is the last one, `best_epoch` the one kept as the best."""

    epoch: int
    best_epoch: int
    stopped_early: bool
    history: Sequence[EpochRecord]


@dataclass
class Trainer:
    """One run: its parts, put together by the command, and what moves while it trains."""

    settings: Settings
    corpus: Corpus
    model: VAE
    folder: RunFolder
    recorders: Sequence[Recorder]
    device: torch.device
    stop: Callable[[], int | None] = lambda: None  # the number of a signal that asks to stop
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)  # of the command, by this clock
    seconds: dict[str, float] = field(default_factory=dict)  # that each part of the run has taken

    def __post_init__(self) -> None:
        train = self.settings.train
        self.positions = self.corpus.mean_positions
        weighted = self.settings.objective.class_weights != "none"
        counts = self.corpus.class_counts() if weighted else None
        self.objective = Objective(self.settings.objective, counts).to(self.device)
        self.step = Step(self.model, self.objective, train, self.device)
        self.steps = max(1, self.corpus.size("train") // train.batch_size)  # an epoch; the remainder is left out
        self.levels = tuple(self.model.level_sizes)
        self.schedule: Schedule = self.settings.schedule
        self.rate = LearningRate(train, self.steps * train.epochs)
        self.control = Controller(
            self.schedule, self.levels, self.device, self.positions, self.settings.objective.reduction
        )
        self.engine = Engine(self.settings, self.step, self.corpus, self.control, self.steps)
        self.val_order = longest_first(self.corpus, "val", torch.arange(self.corpus.size("val")))
        self.peaks = self.yardstick()
        self.done = 0  # optimiser steps
        self.best: tuple[float, int] | None = None  # the monitored value, and its epoch
        self.ranked: dict[str, list[tuple[float, int, Path]]] = {}  # by ranking: signed value, epoch, file; best first
        self.history: list[EpochRecord] = []
        self.stood: dict[str, str | None] = {}  # by level, the bound at which beta stood for the last epoch

    # ------------------------------------------------------------------------------------------------ the loop

    def fit(self) -> Outcome:
        """Train until the last epoch, an early stop, a signal or a loss that is no number."""
        epochs, stopped = self.settings.train.epochs, False
        try:
            self.prepare()
            for epoch in range(1, epochs + 1):
                record = self.run_epoch(epoch)
                self.history.append(record)
                with self.timed("recording"):
                    for recorder in self.recorders:
                        recorder.epoch(record)
                with self.timed("saving"):
                    self.save(record)
                stopped = self.should_stop(epoch)
                with self.timed("pictures"):
                    self.draw(epoch, last=stopped or epoch == epochs)
                if stopped:
                    break
            with self.timed("saving"):
                self.finish()
        except torch.OutOfMemoryError as error:
            size = self.settings.train.batch_size
            what = f"train.batch_size: {size} does not fit into the memory of {self.device}"
            self.folder.write_status("failed", reason=what, **self.place())
            raise ArcvaeError(what, f"try --batch-size {max(1, size // 2)}") from error
        except BaseException as error:
            state = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
            reason = error.what if isinstance(error, ArcvaeError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(ArcvaeError):  # on a full disk the first error is the one to tell
                self.folder.write_status(state, reason=reason, **self.place())
            raise
        assert self.best is not None
        return Outcome(len(self.history), self.best[1], stopped, self.history)

    def prepare(self) -> None:
        """What comes before the first step: the precision and the engine by trial, and the header."""
        self.check_precision()
        epochs = range(1, self.settings.train.epochs + 1)
        self.engine.prepare(self.time(epoch, index) for epoch in epochs for index in range(self.steps))
        if self.engine.reason is not None:
            self.notes.append(f"{self.engine.reason}: {ENGINES[self.engine.kind]}")
        for recorder in self.recorders:
            recorder.start(self.plan())
        self.folder.write_status("running", epoch=0, step=0)
        self.seconds["start"] = time.perf_counter() - self.began

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the time that a part of the run takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def run_epoch(self, epoch: int) -> EpochRecord:
        """One pass over the training split, and one over the validation split."""
        began = time.perf_counter()
        with self.timed("training"):
            sums, open_betas, rate = self.train(epoch)
        train = sums.counts()
        self.check_finite(train, epoch)
        path = {**transposed(open_betas), **sums.betas()}
        path = {level: path[level] for level in self.levels}
        every = self.settings.log.every_n_steps
        records = [
            StepRecord(
                epoch - 1 + (index + 1) / self.steps,
                done,
                {name: values[index] for name, values in path.items()},
                sums.counts(slice(index, index + 1)),
                self.corpus.unit,
            )
            for index, done in enumerate(range(self.done - self.steps + 1, self.done + 1))
            if done % every == 0
        ]
        with self.timed("recording"):
            for recorder in self.recorders:
                recorder.steps(records)

        # a closed loop may change the sign of beta with every batch: its mean is what weighed
        closed = self.schedule.closed_levels(self.levels)
        betas = {name: sum(values) / len(values) if name in closed else values[-1] for name, values in path.items()}
        with self.timed("validation"):
            val = self.validate(betas)
        self.check_finite(val, epoch)  # the last step of an epoch shows only here
        totals = {name: sum(groups) for name, groups in val.rates.items()}
        if self.settings.objective.kl_reduction == "mean":
            totals = {name: total / len(val.rates[name]) for name, total in totals.items()}
        selection = self.objective.selection(val.reconstruction, totals, self.peaks)
        record = EpochRecord(
            epoch=epoch,
            step=self.done,
            betas=betas,
            learning_rate=rate,
            train=train,
            val=val,
            selection=selection,
            monitored=0.0,
            best=False,
            seconds=time.perf_counter() - began,
            unit=self.corpus.unit,
            turns=turns({name: values for name, values in path.items() if name not in closed}),
            path=path,
            targets=self.targets(epoch, train),
            restart=self.schedule.restart_info(float(epoch)),
        )
        return self.judge(record)

    def train(self, epoch: int) -> tuple[Sums, list[Mapping[str, float]], float]:
        """The steps of an epoch: what each came to, its betas as far as the host knows them, the last learning rate."""
        betas: list[Mapping[str, float]] = []
        rate = self.step.learning_rate
        self.model.train()
        self.engine.begin(epoch)
        for index in range(self.steps):
            self.control.at(self.time(epoch, index))
            self.step.learning_rate = rate = self.rate(self.done)
            self.engine.run(index)
            self.done += 1
            betas.append(self.control.open)
            shown = self.control.open.get(self.levels[0])
            for recorder in self.recorders:
                recorder.step(epoch, index + 1, shown)
            if (signal := self.stop()) is not None:
                self.check_finite(self.engine.read(index + 1).counts(), epoch)
                self.interrupt(epoch, signal)
        return self.engine.read(self.steps), betas, rate  # the epoch's read-back, and the only wait for the device

    def targets(self, epoch: int, train: Counts) -> tuple[Target, ...]:
        """What a closed loop held; that beta stands at a bound counts from the second epoch in a row.

        A controller that starts far from its target spends its first epoch at a bound, and means nothing by it.
        """
        found = self.control.verdict(float(epoch), self.means(train))
        confirmed = tuple(one if one.bound == self.stood.get(one.level) else replace(one, bound=None) for one in found)
        self.stood = {one.level: one.bound for one in found}
        return confirmed

    def means(self, train: Counts) -> dict[str, Any]:
        """What a closed loop steers, over an epoch: nats of KL by level, and of reconstruction for each position."""
        totals = {name: sum(groups) for name, groups in train.rates.items()}
        summed = self.settings.objective.reduction == "sum"
        return {"kl": totals, "reconstruction": train.reconstruction / (self.positions if summed else 1)}

    @torch.inference_mode()
    def validate(self, betas: Mapping[str, float]) -> Counts:
        """The same numbers on the validation split, the noise being the same in every epoch."""
        self.model.eval()
        size = batch_size(self.corpus.length) if isinstance(self.corpus, DerivationCorpus) else VALIDATION_BATCH
        tally = Tally(-(-len(self.val_order) // size), self.model.level_sizes, self.corpus.background, self.device)
        for index, batch in enumerate(batches(self.corpus, "val", self.val_order, self.device, size)):
            seed_step(self.settings.train.seed, "val", index)
            tally.add(index, *self.step.measure(batch, betas), batch)
        return tally.read().counts()

    def time(self, epoch: int, index: int) -> float:
        """Where the schedule is in this step; it moves by whole epochs or with every step."""
        return epoch - 1 + (index + 1) / self.steps if self.schedule.per == "step" else float(epoch)

    def yardstick(self) -> dict[str, float]:
        """The weights of model selection: each level's largest beta, or where a closed loop sets it the ELBO's 1."""
        scale = elbo_scale(self.settings, self.positions)
        elbo = 1.0 / scale if scale else 1.0
        closed = self.schedule.closed_levels(self.levels)
        peaks = self.schedule.peaks([level for level in self.levels if level not in closed])
        return {level: peaks.get(level, elbo) for level in self.levels}

    # ------------------------------------------------------------------------------------- choosing and stopping

    def judge(self, record: EpochRecord) -> EpochRecord:
        """Whether the epoch is the best so far, by the monitored metric."""
        monitor = self.settings.train.monitor
        value = float(record.metrics()[monitor])
        higher = monitor in HIGHER_IS_BETTER
        best = self.best is None or (value > self.best[0] if higher else value < self.best[0])
        if best:
            self.best = (value, record.epoch)
        self.rate.judge(-value if higher else value)
        return EpochRecord(**{**record.__dict__, "monitored": value, "best": best})

    def should_stop(self, epoch: int) -> bool:
        """Early stopping: patience counts from the schedule's first peak, in whole cycles where it has cycles."""
        train = self.settings.train
        if not train.early_stopping or self.best is None or epoch >= train.epochs:
            return False
        since = max(float(self.best[1]), self.schedule.first_peak)
        cycle = self.schedule.cycle(epoch)
        patience = float(train.patience)
        if cycle:
            patience = math.ceil(patience / cycle) * cycle
        return epoch - since >= patience

    def check_finite(self, counts: Counts, epoch: int) -> None:
        """Stop before a loss that is no number reaches a checkpoint."""
        if not counts.finite:
            beta = next(iter(self.control.betas().values()))
            last = self.folder.checkpoints / "last.pth"
            good = f"the last good checkpoint is {last}" if last.is_file() else "no epoch was finished before"
            raise ArcvaeError(
                f"epoch {epoch}: the loss, or its gradient, is not a number any more (beta {beta:g}, learning rate "
                f"{self.step.learning_rate:g}); {good}",
                "lower train.lr, keep train.gradient_clip on, or try train.precision=fp32",
            )

    def interrupt(self, epoch: int, signal: int) -> None:
        """Save where we are and leave."""
        checkpoints.save(self.folder.checkpoints / "last.pth", self.values(epoch, finished=False))
        name = {2: "Ctrl-C", 15: "SIGTERM"}.get(signal, f"signal {signal}")
        raise Interrupted(f"stopped by {name} in epoch {epoch}; saved in {self.folder.path}", signal)

    def check_precision(self) -> None:
        """Fall back to fp32 where bf16, chosen by itself, does not give the same loss on one batch within 2 %."""
        if self.settings.train.precision != "auto" or self.step.precision == torch.float32:
            return
        wanted = self.step.precision
        count = min(self.settings.train.batch_size, self.corpus.size("val"), 32)
        batch = self.corpus.batch("val", torch.arange(count, device=self.device))
        losses = []
        self.model.eval()
        for precision in (wanted, torch.float32):
            self.step.precision = precision
            seed_step(self.settings.train.seed, "precision")
            terms, _ = self.step.measure(batch, self.peaks)
            losses.append(terms.loss.item())
        if abs(losses[0] - losses[1]) <= 0.02 * abs(losses[1]):
            self.step.precision = wanted
        else:
            self.notes.append(f"bf16 gives a loss of {losses[0]:.4g} where fp32 gives {losses[1]:.4g}: using fp32")

    # ---------------------------------------------------------------------------------------- keeping and telling

    def save(self, record: EpochRecord) -> None:
        """The checkpoints of an epoch."""
        folder, epoch = self.folder.checkpoints, record.epoch
        checkpoints.save(folder / "last.pth", self.values(epoch))  # the others are the same bytes
        if record.best:
            checkpoints.copy(folder / "last.pth", folder / checkpoints.BEST)
            self.save_parts("", epoch)
        self.keep_best(record)
        every = self.settings.checkpoint.every_epochs
        if every and epoch % every == 0:
            checkpoints.copy(folder / "last.pth", folder / f"vae_epoch_{epoch}.pth")
            self.save_parts(f"_epoch_{epoch}", epoch)
        self.folder.write_status("running", **self.place())

    def keep_best(self, record: EpochRecord) -> None:
        """`last.pth`, as just saved, among the best few of each ranking; a link to the same bytes where links exist."""
        limit = self.settings.checkpoint.save_top_k
        metrics = record.metrics()
        for name, metric, sign in RANKINGS[self.corpus.unit] if limit else ():
            value = float(metrics[metric])
            path = self.folder.checkpoints / f"best-{name}-epoch_{record.epoch:03d}-{value:.4f}.pth"
            ranked = self.ranked.setdefault(name, [])
            ranked.append((sign * value, record.epoch, path))
            ranked.sort()
            if (sign * value, record.epoch, path) in ranked[:limit]:
                checkpoints.copy(self.folder.checkpoints / "last.pth", path)
            for _, _, worse in ranked[limit:]:
                worse.unlink(missing_ok=True)
            del ranked[limit:]

    def save_parts(self, suffix: str, epoch: int) -> None:
        """Encoder and decoder alone, for who needs only one."""
        for part, module in (("encoder", self.model.encoder), ("decoder", self.model.decoder)):
            values = {"format_version": checkpoints.FORMAT, "epoch": epoch, "state_dict": module.state_dict()}
            values["config"] = checkpoints.config_text(self.settings)
            checkpoints.save(self.folder.checkpoints / f"{part}{suffix}.pth", values)

    def values(self, epoch: int, finished: bool = True) -> dict[str, Any]:
        """What a checkpoint holds; tensors, numbers and text only."""
        last = self.history[-1] if self.history else None
        return {
            "format_version": checkpoints.FORMAT,
            "epoch": epoch,
            "epoch_finished": finished,
            "step": self.done,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.step.optimizer.state_dict(),
            "scheduler_state_dict": self.rate.state_dict(),
            "schedule_state": self.control.state_dict(),
            "conditions": checkpoints.condition_schema(self.model),
            **checkpoints.structure_of(self.model),
            "train_loss": last.train.loss if last else None,
            "val_loss": last.val.loss if last else None,
            **(self.shares(last.val) if last else {}),
            "best": list(self.best) if self.best else None,
            "rng_state": torch.get_rng_state(),
            "config": checkpoints.config_text(self.settings),
        }

    def shares(self, counts: Counts) -> dict[str, float]:
        """The accuracies of validation, under their names."""
        found = zip(ACCURACIES[self.corpus.unit], (counts.position, counts.foreground, counts.exact), strict=True)
        return {name: share for name, share in found if name is not None}

    def place(self) -> dict[str, Any]:
        """Where the run is, for its status."""
        best = {"best_epoch": self.best[1], "best_value": self.best[0]} if self.best else {}
        seconds = {part: round(value, 3) for part, value in self.seconds.items()}
        costs = {"seconds": seconds, "peak_memory_bytes": peak_memory(self.device)}
        return {"epoch": len(self.history), "epochs": self.settings.train.epochs, "step": self.done, **best, **costs}

    def finish(self) -> None:
        """The last checkpoint of a run that ended by itself."""
        checkpoints.copy(self.folder.checkpoints / "last.pth", self.folder.checkpoints / "vae_final.pth")
        self.folder.write_status("finished", **self.place())

    @torch.inference_mode()
    def draw(self, epoch: int, last: bool) -> None:
        """Every few epochs and at the last: the same validation examples reconstructed, the same prior draws."""
        every = self.settings.log.images_every
        if not last and not (every and epoch % every == 0):
            return
        self.model.eval()
        count = min(SHOWN, self.corpus.size("val"))
        spread = torch.linspace(0, self.corpus.size("val") - 1, count, device=self.device).long()
        batch = self.corpus.batch("val", spread)
        seed_step(self.settings.train.seed, "samples")
        with self.step.autocast():
            again = self.model.reconstruct(batch)
            levels = self.model.encode(batch, noise=False)
            made = self.model.likeliest(self.model.decode(self.model.prior(SAMPLES)))
        maps = {level.name: kl.float().cpu().numpy() for level in levels if (kl := level.map()) is not None}
        pictures = Pictures(to_numpy(batch.x), to_numpy(again), to_numpy(made), maps)
        for recorder in self.recorders:
            recorder.pictures(epoch, pictures)

    def plan(self) -> Plan:
        """What is known before the first step."""
        blank = blank_nats = None
        if isinstance(self.corpus, GridCorpus):
            blank = (self.corpus.grids("val") == self.corpus.background).double().mean().item()
        elif isinstance(self.corpus, DerivationCorpus):
            from arcvae_cli.evaluation.strings import RuleFrequencies  # a run of grids is spared it

            everything = torch.arange(self.corpus.size("val"))
            frequencies = RuleFrequencies(self.corpus.ids("train"), self.corpus.rules)
            nothing = frequencies.measure(self.corpus, "val", everything)
            blank, blank_nats = nothing.token_accuracy, nothing.nll_nats
        objective = self.settings.objective
        return Plan(
            run=self.folder.name,
            folder=str(self.folder.path),
            model=self.settings.model.name,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            device=describe(self.device),
            engine=ENGINES[self.engine.kind],
            precision={torch.float32: "fp32", torch.bfloat16: "bf16"}[self.step.precision],
            corpus=self.corpus.name,
            sizes={split: self.corpus.size(split) for split in ("train", "val", "test")},
            unit=self.corpus.unit,
            epochs=self.settings.train.epochs,
            steps=self.steps,
            levels=self.model.level_sizes,
            level_shapes=self.model.level_shapes,
            schedule=self.schedule.name,
            schedule_text=self.schedule.describe(),
            closed_loop=self.schedule.closed_loop,
            settings=self.settings.table(),
            elbo_scale=elbo_scale(self.settings, self.positions),
            free_bits={level: objective.floor(level) for level in self.levels},
            free_bits_mode=objective.free_bits_mode,
            notes=tuple(self.notes),
            blank=blank,
            blank_nats=blank_nats,
            entropy=self.corpus.entropy if isinstance(self.corpus, DerivationCorpus) else None,
        )


def transposed(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """A list of tables of numbers as a table of lists."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def turns(path: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """The least and the largest beta of each level whose beta went both up and down in these steps."""
    found = {}
    for name, values in path.items():
        low, high = min(values), max(values)
        if abs(values[-1] - values[0]) < 0.99 * (high - low):
            found[name] = (low, high)
    return found


def to_numpy(classes: Tensor) -> Examples:
    """Classes (n, *positions) as int16 on the host, as uint8 where there are few."""
    found: Examples = classes.to(torch.int16).cpu().numpy()
    return found.astype(np.uint8) if found.max(initial=0) < 256 else found


@dataclass(frozen=True)
class Memorised:
    """What `overfit` found."""

    steps: int
    limit: int
    counts: Counts

    @property
    def done(self) -> bool:
        """Whether every example of the batch came back without a mistake."""
        return self.counts.exact == 1.0


def overfit(
    settings: Settings,
    corpus: Corpus,
    model: VAE,
    device: torch.device,
    limit: int,
    tell: Callable[[int, Counts], None],
) -> Memorised:
    """Train on one batch, without augmentation and at beta 0, until it is memorised: the check that a model can learn.

    A model that cannot memorise one batch has a defect that no schedule mends. `tell` hears of every 50th step.
    """
    objective = Objective(settings.objective, corpus.class_counts()).to(device)
    step = Step(model, objective, settings.train, device)
    size = min(settings.train.batch_size, corpus.size("train"))
    batch = corpus.batch("train", torch.arange(size, device=device))
    betas = dict.fromkeys(model.level_sizes, 0.0)
    counts: Counts | None = None
    for done in range(1, limit + 1):
        seed_step(settings.train.seed, "overfit", done)
        terms, output = step.train(batch, betas)
        if done % 50 == 0 or done == limit:
            tally = Tally(1, model.level_sizes, corpus.background, device)
            tally.add(0, terms, output, batch)
            counts = tally.read().counts()
            tell(done, counts)
            if counts.exact == 1.0 or not counts.finite:
                break
    assert counts is not None
    return Memorised(done, limit, counts)
