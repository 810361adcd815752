"""The training loop, from top to bottom."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arcvae_cli import checkpoints, domains, snapshots, stopping
from arcvae_cli.controllers import Controller, Target
from arcvae_cli.data.corpus import Corpus
from arcvae_cli.engine import TEXTS as ENGINES
from arcvae_cli.engine import Engine
from arcvae_cli.errors import ArcvaeError, Interrupted, WriteError
from arcvae_cli.evaluation.information import batches, longest_first
from arcvae_cli.graphs import first_line
from arcvae_cli.machine import describe, out_of_memory, peak_memory
from arcvae_cli.models.base import VAE
from arcvae_cli.objective import Objective
from arcvae_cli.records import ACCURACIES, HIGHER_IS_BETTER, EpochRecord, Examples, Pictures, Plan, Recorder, StepRecord
from arcvae_cli.runs import RunFolder
from arcvae_cli.schedules import Schedule
from arcvae_cli.settings import Settings, elbo_scale
from arcvae_cli.step import Counts, LearningRate, Step, Sums, Tally, Watch, seed_step

SHOWN = 16
"""Pairs of original and reconstruction in a picture."""
SAMPLES = 64
WATCHED = 50
"""Steps between two looks at whether the figures are still numbers, which wait for nothing."""

Ranking = tuple[str, Callable[[EpochRecord], float], float]
LOSS: Ranking = ("loss", lambda record: record.selection, 1.0)
RANKINGS: dict[str, tuple[Ranking, ...]] = {
    "pixel": (LOSS,),
    "token": (LOSS, ("seq_acc", lambda record: record.val.exact, -1.0)),
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
    resumed: bool = False  # whether the folder holds what an earlier process left
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
        self.watch = Watch(self.engine.tally)
        self.val_order = longest_first(self.corpus, "val", torch.arange(self.corpus.size("val")))
        self.peaks = self.yardstick()
        self.done = self.saved = 0  # optimiser steps, and those that are in the last checkpoint
        self.tried = False  # whether the precision was tried, now or by the process that this one goes on from
        self.part, self.failed, self.counted = "rest", "", self.began  # where the time goes, and where it ended badly
        self.ended: dict[str, str] = {}  # why it ended before its last epoch, for its status
        self.due = math.inf  # by the monotonic clock, when to save within an epoch
        self.best: tuple[float, int] | None = None  # the monitored value, and its epoch
        self.history: list[EpochRecord] = []
        self.told: list[str] = []  # the same as JSON, as checkpoints keep it
        self.stood: dict[str, str | None] = {}  # by level, the bound at which beta stood for the last epoch

    # ------------------------------------------------------------------------------------------------ the loop

    def fit(self) -> Outcome:
        """Train until the last epoch, an early stop, a signal or a loss that is no number."""
        epochs = self.settings.train.epochs
        try:
            with self.timed("start"):
                self.prepare()
            # of an epoch that was saved, what follows may not have been done: doing it again changes nothing
            stopped = self.settle() if self.history and self.at_start else False
            while not stopped and len(self.history) < epochs:
                record = self.run_epoch(len(self.history) + 1)
                self.history.append(record)
                self.told.append(json.dumps(record.plain()))
                with self.timed("recording"):
                    for recorder in self.recorders:
                        recorder.epoch(record)
                self.save()
                stopped = self.settle()
            self.finish(stopped)
        except BaseException as error:
            told = self.explained(error)
            state = "interrupted" if isinstance(told, Interrupted) else "failed"
            reason = told.what if isinstance(told, ArcvaeError) else f"{type(told).__name__}: {first_line(told)}"
            with contextlib.suppress(ArcvaeError):  # on a full disk the first error is the one to tell
                self.folder.write_status(state, reason=reason, **self.place())
            if told is error:
                raise
            raise told from error
        assert self.best is not None
        return Outcome(len(self.history), self.best[1], stopped, self.history)

    def prepare(self) -> None:
        """What comes before the first step: the precision and the engine by trial, the header, the first checkpoint."""
        self.check_precision()
        epochs = range(1, self.settings.train.epochs + 1)
        self.engine.prepare(self.time(epoch, index) for epoch in epochs for index in range(self.steps))
        if self.engine.reason is not None:
            self.notes.append(f"{self.engine.reason}: {ENGINES[self.engine.kind]}")
        for recorder in self.recorders:
            recorder.start(self.plan())
        if self.resumed:
            for recorder in self.recorders:
                recorder.resume(self.history, len(self.history) * self.steps)
        self.save()  # so that whatever happens there is one

    @property
    def at_start(self) -> bool:
        """Whether no step is done of the epoch that is being trained."""
        return self.done == len(self.history) * self.steps

    def settle(self) -> bool:
        """What follows the saving of an epoch: its other names, its pictures. Whether the training is over."""
        record = self.history[-1]
        with self.timed("saving"):
            self.keep(record)
        stopped = self.should_stop(record.epoch)
        with self.timed("pictures"):
            self.draw(record.epoch, last=stopped or record.epoch == self.settings.train.epochs)
        return stopped

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the time that a part of the run takes, a part within it left out."""
        if part != "start":  # which began with the command
            self.count_time()
        outer, self.part = self.part, part
        try:
            yield
        except BaseException:
            self.failed = self.failed or part
            raise
        finally:
            self.count_time()
            self.part = outer

    def count_time(self) -> None:
        """Add the time since the last call to the part of the run that is under way."""
        now = time.perf_counter()
        self.seconds[self.part] = self.seconds.get(self.part, 0.0) + now - self.counted
        self.counted = now

    def run_epoch(self, epoch: int) -> EpochRecord:
        """One pass over the training split, and one over the validation split."""
        began = time.perf_counter()
        with self.timed("training"):
            sums, open_betas, rate = self.train(epoch)
        self.check_finite(sums, epoch)
        train = sums.counts()
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
        if not val.finite:  # the last step of an epoch shows only here
            raise self.no_number(f"epoch {epoch}: the loss of the validation split", self.done, betas)
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
        first = self.done - (epoch - 1) * self.steps  # above 0 where this process goes on within the epoch
        betas = [self.open_betas(epoch, index) for index in range(first)]
        rate = self.rate(self.done - 1)
        self.model.train()
        self.engine.begin(epoch, first)
        for index in range(first, self.steps):
            self.control.at(self.time(epoch, index))
            self.step.learning_rate = rate = self.rate(self.done)
            self.engine.run(index)
            self.done += 1
            betas.append(self.control.open)
            shown = self.control.open.get(self.levels[0])
            for recorder in self.recorders:
                recorder.step(epoch, index + 1, shown)
            if self.done % WATCHED == 0:
                if self.watch.alarmed:
                    self.check_finite(self.engine.read(index + 1), epoch)
                self.watch.ask()
            if (asked := self.stop()) is not None:
                self.interrupt(asked)
            if time.monotonic() >= self.due:
                self.save()
        return self.engine.read(self.steps), betas, rate  # the epoch's read-back, and the only wait for the device

    def open_betas(self, epoch: int, index: int) -> Mapping[str, float]:
        """The betas of open loops at a step, by level."""
        self.control.at(self.time(epoch, index))
        return self.control.open

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
        size = domains.of(self.corpus.kind).validation_batch(self.corpus)
        tally = Tally(-(-len(self.val_order) // size), self.model.level_sizes, self.corpus.background, self.device)
        for index, batch in enumerate(batches(self.corpus, "val", self.val_order, self.device, size)):
            if (asked := self.stop()) is not None:
                self.interrupt(asked)
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

    def check_finite(self, sums: Sums, epoch: int) -> None:
        """Stop before a loss, or a gradient, that is no number reaches a checkpoint; `sums` of the epoch so far."""
        if (bad := sums.bad) is None:
            return
        closed = {level: latest_number(path[: bad + 1]) for level, path in sums.betas().items()}
        where = f"epoch {epoch}, step {bad + 1} of {self.steps}"
        betas = {**self.open_betas(epoch, bad), **closed}
        raise self.no_number(f"{where}: the loss, or its gradient,", (epoch - 1) * self.steps + bad, betas)

    def check_weights(self) -> None:
        """Stop before weights that are no numbers are saved: the last step's do not show in any loss yet."""
        norms = torch._foreach_norm([value for value in self.model.state_dict().values() if value.is_floating_point()])
        if not bool(torch.stack([norm.float() for norm in norms]).isfinite().all()):
            raise self.no_number(f"step {self.done}: a weight", self.done - 1, self.control.betas())

    def no_number(self, what: str, done: int, betas: Mapping[str, float]) -> ArcvaeError:
        """The error of a figure that is not finite, at the step after `done` others with these betas."""
        same = len(set(betas.values())) == 1
        first = f"{next(iter(betas.values())):g}"
        beta = first if same else ", ".join(f"{level} {value:g}" for level, value in betas.items())
        last = self.folder.checkpoints / "last.pth"
        return ArcvaeError(
            f"{what} is not a number any more (beta {beta}, learning rate {self.rate(done):g}); "
            f"the last good checkpoint is {last}, of step {self.saved}",
            f"lower train.lr, as in `arcvae train --preset {self.folder.shell}/config.toml --lr "
            f"{self.settings.train.lr / 2:g}`, keep train.gradient_clip on, or try train.precision=fp32",
        )

    def interrupt(self, asked: int) -> None:
        """Save where we are and leave."""
        self.save()
        epoch, step = len(self.history) + 1, self.done - len(self.history) * self.steps
        raise Interrupted(
            f"stopped by {stopping.name(asked)} in epoch {epoch}, after step {step} of {self.steps}; saved in "
            f"{self.folder.path}",
            stopping.exit_code(asked),
            f"go on with `arcvae train --resume {self.folder.shell}`",
        )

    def explained(self, error: BaseException) -> BaseException:
        """What ended the run, as a person is to hear of it."""
        if isinstance(error, WriteError):
            return WriteError(
                error.what, f"free some space, then go on with `arcvae train --resume {self.folder.shell}`"
            )
        if isinstance(error, KeyboardInterrupt):
            asked = self.stop() or signal.SIGINT
            return Interrupted(
                f"stopped by {stopping.name(asked)} at once; {self.folder.path} holds the first {self.saved} of "
                f"{self.done} steps",
                stopping.exit_code(asked),
                f"go on with `arcvae train --resume {self.folder.shell}`",
                at_once=True,
            )
        return self.too_large(error) if out_of_memory(error) else error

    def too_large(self, error: BaseException) -> ArcvaeError:
        """The error of memory that ran out, with the batch size that would fit, found by trial."""
        traceback.clear_frames(error.__traceback__)  # which hold what the step had made so far
        train, place = self.settings.train, self.device
        if self.failed not in ("start", "training"):
            return ArcvaeError(
                f"the memory of {place} is too small for the {self.failed} (the batch size of the training, "
                f"{train.batch_size}, is not to blame)",
                f"free some memory and go on with `arcvae train --resume {self.folder.shell}`",
            )
        fitting = None
        with contextlib.suppress(Exception):  # a recording that broke off leaves an allocator that refuses
            fitting = self.engine.fitting(train.batch_size // 2)
        what = f"train.batch_size: {train.batch_size} does not fit into the memory of {place}"
        if not fitting:
            return ArcvaeError(what, "no smaller batch was found to fit: free some memory, or train a smaller model")
        # the host's memory is in pieces: of two processes one may find room where the other does not
        size = max(1, fitting // 2) if place.type == "cpu" else fitting
        room = "" if size == fitting else ", half of it leaves room"
        return ArcvaeError(
            what,
            f"a batch of {fitting} fitted in a trial{room}: begin a run by `arcvae train --preset "
            f"{self.folder.shell}/config.toml --batch-size {size}`",
        )

    def check_precision(self) -> None:
        """Fall back to fp32 where bf16, chosen by itself, does not give the same loss on one batch within 2 %."""
        if self.tried or self.settings.train.precision != "auto" or self.step.precision == torch.float32:
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

    def save(self) -> None:
        """Write `last.pth`: the run as it is between two steps. What is no number is refused."""
        with self.timed("saving"):
            index = self.done - len(self.history) * self.steps
            self.check_finite(self.engine.read(index), len(self.history) + 1)
            self.check_weights()
            checkpoints.save(self.folder.checkpoints / "last.pth", snapshots.values(self, index))
            self.saved = self.done
            self.folder.write_status("running", **self.place())
            self.due = self.next_save()

    def next_save(self) -> float:
        """When to save within an epoch, by the monotonic clock."""
        minutes = self.settings.train.save_minutes
        return time.monotonic() + 60.0 * minutes if minutes else math.inf

    def keep(self, record: EpochRecord) -> None:
        """Copies of `last.pth`, just saved at the end of an epoch."""
        folder, epoch = self.folder.checkpoints, record.epoch
        if record.best:
            checkpoints.copy(folder / "last.pth", folder / checkpoints.BEST)
            self.save_parts("", epoch)
        self.keep_best(record)
        every = self.settings.checkpoint.every_epochs
        if every and epoch % every == 0:
            checkpoints.copy(folder / "last.pth", folder / f"vae_epoch_{epoch}.pth")
            self.save_parts(f"_epoch_{epoch}", epoch)

    def keep_best(self, record: EpochRecord) -> None:
        """A copy of `last.pth`, as just saved, among the best few of each ranking."""
        limit = self.settings.checkpoint.save_top_k
        for name, value_of, sign in RANKINGS[self.corpus.unit] if limit else ():
            ranked = sorted((sign * value, epoch, path) for value, epoch, path in self.ranking(name, value_of))
            for _, epoch, path in ranked[:limit]:
                if epoch == record.epoch:
                    checkpoints.copy(self.folder.checkpoints / "last.pth", path)
            for _, _, path in ranked[limit:]:
                path.unlink(missing_ok=True)

    def ranking(self, name: str, value_of: Callable[[EpochRecord], float]) -> Iterator[tuple[float, int, Path]]:
        """Of each epoch the value that it is ranked by, its number, and the file that it has or had in the ranking."""
        for record in self.history:
            value = value_of(record)
            yield value, record.epoch, self.folder.checkpoints / f"best-{name}-epoch_{record.epoch:03d}-{value:.4f}.pth"

    def save_parts(self, suffix: str, epoch: int) -> None:
        """Encoder and decoder alone, for who needs only one."""
        for part, module in (("encoder", self.model.encoder), ("decoder", self.model.decoder)):
            file = self.folder.checkpoints / f"{part}{suffix}.pth"
            checkpoints.save_part(file, module.state_dict(), epoch, self.settings)

    @cached_property
    def fingerprint(self) -> str:
        """That of the corpus."""
        return self.corpus.fingerprint()

    def shares(self, counts: Counts) -> dict[str, float]:
        """The accuracies of validation, under their names."""
        found = zip(ACCURACIES[self.corpus.unit], (counts.position, counts.foreground, counts.exact), strict=True)
        return {name: share for name, share in found if name is not None}

    def place(self) -> dict[str, Any]:
        """Where the run is, for its status."""
        best = {"best_epoch": self.best[1], "best_value": self.best[0]} if self.best else {}
        self.count_time()
        seconds = {part: round(value, 3) for part, value in self.seconds.items()}
        costs = {"seconds": seconds, "peak_memory_bytes": peak_memory(self.device)}
        return {"epoch": len(self.history), "epochs": self.settings.train.epochs, "step": self.done, **best, **costs}

    def finish(self, stopped: bool) -> None:
        """The last checkpoint of a run that ended by itself, early if it was `stopped`."""
        with self.timed("saving"):
            checkpoints.copy(self.folder.checkpoints / "last.pth", self.folder.checkpoints / "vae_final.pth")
        if stopped and self.best is not None:
            since = f"no better {self.settings.train.monitor} since epoch {self.best[1]}"
            self.ended = {"reason": f"stopped early after epoch {len(self.history)}: {since}"}
        self.folder.write_status("finished", **self.ended, **self.place())

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
        objective = self.settings.objective
        return Plan(
            run=self.folder.name,
            folder=str(self.folder.path),
            model=self.settings.model.name,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            device=describe(self.device),
            engine=ENGINES[self.engine.kind],
            precision=snapshots.PRECISIONS[self.step.precision],
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
            **domains.of(self.corpus.kind).baseline(self.corpus),
        )


def transposed(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """A list of tables of numbers as a table of lists."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def latest_number(values: Sequence[float]) -> float:
    """The last that is finite; NaN where none is."""
    return next((value for value in reversed(values) if math.isfinite(value)), math.nan)


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
