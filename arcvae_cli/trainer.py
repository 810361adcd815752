"""The training loop, from top to bottom, and what it takes to resume it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arcvae_cli import __version__, checkpoints, domains
from arcvae_cli.controllers import Controller, Target
from arcvae_cli.data.corpus import Corpus
from arcvae_cli.engine import TEXTS as ENGINES
from arcvae_cli.engine import Engine
from arcvae_cli.errors import ArcvaeError, InputError, Interrupted, WriteError
from arcvae_cli.evaluation.information import batches, longest_first
from arcvae_cli.graphs import first_line
from arcvae_cli.machine import describe, out_of_memory, peak_memory
from arcvae_cli.metrics import EpochMetrics, FiniteCheck, MetricAccumulator, MetricRows
from arcvae_cli.models.base import VAE
from arcvae_cli.objective import Objective
from arcvae_cli.records import ACCURACIES, HIGHER_IS_BETTER, EpochRecord, Examples, Pictures, Plan, Recorder, StepRecord
from arcvae_cli.runs import RunFolder
from arcvae_cli.schedules import Schedule
from arcvae_cli.settings import Settings, elbo_scale
from arcvae_cli.signals import exit_code, signal_name
from arcvae_cli.step import LearningRate, Step, seed_step

SHOWN, SAMPLES = 16, 64  # reconstructions and samples of a picture
CHECK_EVERY = 50  # steps between two asynchronous checks for NaN
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}

Curves = Mapping[str, Sequence[float]]  # of the steps of an epoch, by level
Ranking = tuple[str, Callable[[EpochRecord], float], float]
LOSS: Ranking = ("loss", lambda record: record.selection, 1.0)
RANKINGS: dict[str, tuple[Ranking, ...]] = {
    "pixel": (LOSS,),
    "token": (LOSS, ("seq_acc", lambda record: record.val.exact, -1.0)),
}  # by the unit of a corpus: what the best epochs are kept by, and the sign that makes the best the smallest


@dataclass
class Trainer:
    """One run: its parts, put together by the command, and its state."""

    settings: Settings
    corpus: Corpus
    model: VAE
    folder: RunFolder
    recorders: Sequence[Recorder]
    device: torch.device
    stop: Callable[[], int | None] = lambda: None  # the number of a signal that asks to stop
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)  # of the command
    resumed: bool = False  # whether an earlier process worked in the folder
    seconds: dict[str, float] = field(default_factory=dict)  # of each part of the run

    def __post_init__(self) -> None:
        train, objective = self.settings.train, self.settings.objective
        counts = self.corpus.class_counts() if objective.class_weights != "none" else None
        self.positions = self.corpus.mean_positions
        self.objective = Objective(objective, counts).to(self.device)
        self.step = Step(self.model, self.objective, train, self.device)
        self.steps = max(1, self.corpus.size("train") // train.batch_size)  # an epoch; the remainder is left out
        self.levels = tuple(self.model.level_sizes)
        self.schedule: Schedule = self.settings.schedule
        self.closed = self.schedule.closed_levels(self.levels)
        self.rate = LearningRate(train, self.steps * train.epochs)
        self.control = Controller(self.schedule, self.levels, self.device, self.positions, objective.reduction)
        self.engine = Engine(self.settings, self.step, self.corpus, self.control, self.steps)
        self.nan_check = FiniteCheck(self.engine.metrics)
        self.val_order = longest_first(self.corpus, "val", torch.arange(self.corpus.size("val")))
        # weights of model selection: each level's largest beta, for a closed loop the ELBO's 1
        scale = elbo_scale(self.settings, self.positions)
        peaks = self.schedule.peaks([level for level in self.levels if level not in self.closed])
        self.peaks = {level: peaks.get(level, 1.0 / scale if scale else 1.0) for level in self.levels}
        self.fingerprint = self.corpus.fingerprint()
        self.again = f"resume with `arcvae train --resume {self.folder.shell}`"
        self.done = self.saved = 0  # optimiser steps, and those in the last checkpoint
        self.precision_tried = False
        self.part, self.since = "start", self.began  # the part of the run under way, and since when
        self.ended: dict[str, str] = {}  # why it ended before its last epoch, for its status
        self.due = math.inf  # by the monotonic clock, when to save within an epoch
        self.best: tuple[float, int] | None = None  # the monitored value, and its epoch
        self.history: list[EpochRecord] = []
        self.history_json: list[str] = []
        self.at_bound: dict[str, str | None] = {}  # by level, the bound at which beta stood all the last epoch

    def fit(self) -> None:
        try:
            self.prepare()
            self.switch("rest")
            if self.history and self.index == 0:  # the process before may have died right after saving the epoch
                self.end_epoch()
            while len(self.history) < self.settings.train.epochs and not self.patience_over:
                self.run_epoch(len(self.history) + 1)
            self.finish()
        except BaseException as error:
            shown = self.explained(error)
            state = "interrupted" if isinstance(shown, Interrupted) else "failed"
            reason = shown.what if isinstance(shown, ArcvaeError) else f"{type(shown).__name__}: {first_line(shown)}"
            with contextlib.suppress(ArcvaeError):  # on a full disk the first error is the one to report
                self.folder.write_status(state, reason=reason, **self.place())
            if shown is error:
                raise
            raise shown from error

    def prepare(self) -> None:
        """What comes before the first step: precision and engine by trial, the header, the first checkpoint."""
        self.check_precision()
        epochs = range(1, self.settings.train.epochs + 1)
        self.engine.prepare(self.time(epoch, index) for epoch in epochs for index in range(self.steps))
        if self.engine.reason is not None:
            self.notes.append(f"{self.engine.reason}: {ENGINES[self.engine.kind]}")
        plan = self.plan()
        for recorder in self.recorders:
            recorder.start(plan)
            if self.resumed:
                recorder.resume(self.history, len(self.history) * self.steps)
        self.save()

    def run_epoch(self, epoch: int) -> None:
        """One pass over the training split, one over the validation split, a record, a checkpoint, pictures."""
        began = time.perf_counter()
        with self.timed("training"):
            self.model.train()
            self.engine.begin(epoch, self.index)
            for index in range(self.index, self.steps):
                self.control.at(self.time(epoch, index))
                self.step.rate.fill_(self.rate(self.done))
                self.engine.run(index)  # no sync: metrics stay on the device
                self.done += 1
                for recorder in self.recorders:
                    recorder.step(epoch, index + 1, self.control.open.get(self.levels[0]))
                if self.done % CHECK_EVERY == 0 and self.nan_check.failed():  # asynchronous
                    self.check_steps(self.engine.metrics.read(index + 1), epoch)
                self.stop_if_asked()
                if time.monotonic() >= self.due:
                    self.save()
            rows = self.engine.metrics.read(self.steps)  # the one CPU-GPU sync of the epoch
        self.check_steps(rows, epoch)
        path = self.beta_trace(epoch, rows.betas())
        # a closed loop may change the sign of beta with every batch: the mean is what acted
        betas = {level: sum(b) / len(b) if level in self.closed else b[-1] for level, b in path.items()}
        with self.timed("recording"):
            records = self.step_records(epoch, rows, path)
            for recorder in self.recorders:
                recorder.steps(records)
        with self.timed("validation"):
            val = self.validate(betas)
        if not val.finite:  # the last update shows only here
            raise self.diverged(f"epoch {epoch}: the validation loss")
        record = self.record(epoch, rows.mean(), val, betas, path, time.perf_counter() - began)
        self.history.append(record)
        self.history_json.append(json.dumps(record.plain()))
        with self.timed("recording"):
            for recorder in self.recorders:
                recorder.epoch(record)
        self.save()
        self.end_epoch()

    def end_epoch(self) -> None:
        """What follows the saving of an epoch; repeating it changes nothing."""
        record, train = self.history[-1], self.settings.train
        with self.timed("saving"):
            self.save_copies(record)
        every = self.settings.log.images_every
        if record.epoch == train.epochs or self.patience_over or (every and record.epoch % every == 0):
            with self.timed("pictures"):
                self.draw(record.epoch)

    def finish(self) -> None:
        with self.timed("saving"):
            checkpoints.copy(self.folder.checkpoints / "last.pth", self.folder.checkpoints / "vae_final.pth")
        if self.patience_over and self.best is not None:
            since = f"no better {self.settings.train.monitor} since epoch {self.best[1]}"
            self.ended = {"reason": f"stopped early after epoch {len(self.history)}: {since}"}
        self.folder.write_status("finished", **self.ended, **self.place())

    @property
    def index(self) -> int:
        """Steps done of the epoch that is being trained."""
        return self.done - len(self.history) * self.steps

    def time(self, epoch: int, index: int) -> float:
        """The epoch that the schedule is asked for in a step: a whole number unless it moves with every step."""
        return epoch - 1 + (index + 1) / self.steps if self.schedule.per == "step" else float(epoch)

    def beta_trace(self, epoch: int, closed: Curves) -> Curves:
        """Beta of every step by level: a function of the time, and of `closed` loops what they set."""
        times = [self.time(epoch, index) for index in range(self.steps)]
        parts = self.schedule.by_level(self.levels)
        return {level: closed.get(level) or [parts[level](time) for time in times] for level in self.levels}

    @torch.inference_mode()
    def validate(self, betas: Mapping[str, float]) -> EpochMetrics:
        """The metrics of the validation split, with the same noise in every epoch."""
        self.model.eval()
        size = domains.of(self.corpus.kind).validation_batch(self.corpus)
        rows = math.ceil(len(self.val_order) / size)
        metrics = MetricAccumulator(rows, self.model.level_sizes, self.corpus.background, self.device)
        for index, batch in enumerate(batches(self.corpus, "val", self.val_order, self.device, size)):
            self.stop_if_asked()
            seed_step(self.settings.train.seed, "val", index)
            metrics.add(index, *self.step.measure(batch, betas), batch)
        return metrics.read().mean()

    def check_precision(self) -> None:
        """Fall back to fp32 if bf16, chosen by `auto`, does not give the same loss on one batch within 2 %."""
        if self.precision_tried or self.settings.train.precision != "auto" or self.step.precision == torch.float32:
            return
        count = min(self.settings.train.batch_size, self.corpus.size("val"), 32)
        batch = self.corpus.batch("val", torch.arange(count, device=self.device))
        losses = []
        self.model.eval()
        for precision in (torch.float32, torch.bfloat16):
            self.step.precision = precision
            seed_step(self.settings.train.seed, "precision")
            losses.append(self.step.measure(batch, self.peaks)[0].loss.item())
        if not abs(losses[1] - losses[0]) <= 0.02 * abs(losses[0]):
            self.step.precision = torch.float32
            self.notes.append(f"bf16 gives a loss of {losses[1]:.4g} and fp32 {losses[0]:.4g}: using fp32")

    def step_records(self, epoch: int, rows: MetricRows, path: Curves) -> list[StepRecord]:
        first, every, records = (epoch - 1) * self.steps, self.settings.log.every_n_steps, []
        for index in range(-(first + 1) % every, self.steps, every):
            now, mean = {level: betas[index] for level, betas in path.items()}, rows.mean(slice(index, index + 1))
            part = epoch - 1 + (index + 1) / self.steps
            records.append(StepRecord(part, first + index + 1, now, mean, self.corpus.unit))
        return records

    def record(
        self, epoch: int, train: EpochMetrics, val: EpochMetrics, betas: dict[str, float], path: Curves, seconds: float
    ) -> EpochRecord:
        """The record of an epoch, with whether it is the best so far."""
        mean = self.settings.objective.kl_reduction == "mean"
        totals = {name: sum(groups) / (len(groups) if mean else 1) for name, groups in val.kl_per_dim.items()}
        record = EpochRecord(
            epoch=epoch,
            step=self.done,
            betas=betas,
            learning_rate=self.rate(self.done - 1),
            train=train,
            val=val,
            selection=self.objective.selection(val.reconstruction, totals, self.peaks),
            monitored=0.0,
            best=False,
            seconds=seconds,
            unit=self.corpus.unit,
            beta_range=beta_range({name: values for name, values in path.items() if name not in self.closed}),
            beta_trace=path,
            targets=self.targets(epoch, train),
            restart=self.schedule.restart_info(float(epoch)),
        )
        monitor = self.settings.train.monitor
        value, sign = float(record.metrics()[monitor]), -1.0 if monitor in HIGHER_IS_BETTER else 1.0
        best = self.best is None or sign * value < sign * self.best[0]
        if best:
            self.best = (value, epoch)
        self.rate.judge(sign * value)
        return replace(record, monitored=value, best=best)

    def targets(self, epoch: int, train: EpochMetrics) -> tuple[Target, ...]:
        """What closed loops reached; beta at a bound counts from the second such epoch in a row, after the start."""
        totals = {name: sum(groups) for name, groups in train.kl_per_dim.items()}
        reconstruction = train.reconstruction / (self.positions if self.settings.objective.reduction == "sum" else 1)
        found = self.control.verdict(float(epoch), {"kl": totals, "reconstruction": reconstruction})
        before, self.at_bound = self.at_bound, {one.level: one.bound for one in found}
        return tuple(one if one.bound == before.get(one.level) else replace(one, bound=None) for one in found)

    @property
    def patience_over(self) -> bool:
        """Early stopping: patience counts from the schedule's first peak, in whole cycles where it has cycles."""
        train, epoch = self.settings.train, len(self.history)
        if not train.early_stopping or self.best is None or self.index or epoch >= train.epochs:
            return False
        patience = float(train.patience)
        if cycle := self.schedule.cycle(epoch):
            patience = math.ceil(patience / cycle) * cycle
        return epoch - max(float(self.best[1]), self.schedule.first_peak) >= patience

    def plan(self) -> Plan:
        return Plan(
            run=self.folder.name,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            device=describe(self.device),
            engine=ENGINES[self.engine.kind],
            precision=PRECISIONS[self.step.precision],
            corpus=self.corpus.name,
            sizes={split: self.corpus.size(split) for split in ("train", "val", "test")},
            epochs=self.settings.train.epochs,
            steps=self.steps,
            level_shapes=self.model.level_shapes,
            settings=self.settings,
            elbo_scale=elbo_scale(self.settings, self.positions),
            free_bits={level: self.settings.objective.floor(level) for level in self.levels},
            notes=tuple(self.notes),
            **domains.of(self.corpus.kind).baseline(self.corpus),
        )

    @torch.inference_mode()
    def draw(self, epoch: int) -> None:
        """The same validation examples reconstructed, the same samples from the prior, each time."""
        self.model.eval()
        size = self.corpus.size("val")
        chosen = torch.linspace(0, size - 1, min(SHOWN, size), device=self.device).long()
        batch = self.corpus.batch("val", chosen)
        seed_step(self.settings.train.seed, "samples")
        with self.step.autocast():
            again = self.model.reconstruct(batch)
            levels = self.model.encode(batch, noise=False)
            made = self.model.argmax_decode(self.model.decode(self.model.prior(SAMPLES)))
        maps = {level.name: kl.float().cpu().numpy() for level in levels if (kl := level.map()) is not None}
        pictures = Pictures(
            to_numpy(batch.x), to_numpy(again), to_numpy(made), maps, self.corpus.extents("val", chosen)
        )
        for recorder in self.recorders:
            recorder.pictures(epoch, pictures)

    def save(self) -> None:
        """Write `last.pth`: the run as it is between two steps, if it is finite."""
        with self.timed("saving"):
            self.check_steps(self.engine.metrics.read(self.index), len(self.history) + 1)
            weights = [value for value in self.model.state_dict().values() if value.is_floating_point()]
            if not torch.nn.utils.get_total_norm(weights).isfinite():  # of the last step, which no loss shows yet
                raise self.diverged(f"step {self.done}: a weight")
            checkpoints.save(self.folder.checkpoints / "last.pth", self.state_dict())
            self.saved = self.done
            self.folder.write_status("running", **self.place())
            minutes = self.settings.train.save_minutes
            self.due = time.monotonic() + 60.0 * minutes if minutes else math.inf

    def save_copies(self, record: EpochRecord) -> None:
        """Copies of `last.pth`, just saved at the end of an epoch: the best, the best few, every n-th epoch."""
        folder, last = self.folder.checkpoints, self.folder.checkpoints / "last.pth"
        if record.best:
            checkpoints.copy(last, folder / checkpoints.BEST)
            self.save_parts("", record.epoch)
        limit = self.settings.checkpoint.save_top_k
        for name, value_of, sign in RANKINGS[self.corpus.unit] if limit else ():
            ranked = sorted(self.history, key=lambda one: (sign * value_of(one), one.epoch))
            for place, one in enumerate(ranked):
                file = folder / f"best-{name}-epoch_{one.epoch:03d}-{value_of(one):.4f}.pth"
                if place >= limit:
                    file.unlink(missing_ok=True)
                elif one.epoch == record.epoch:
                    checkpoints.copy(last, file)
        every = self.settings.checkpoint.every_epochs
        if every and record.epoch % every == 0:
            checkpoints.copy(last, folder / f"vae_epoch_{record.epoch}.pth")
            self.save_parts(f"_epoch_{record.epoch}", record.epoch)

    def save_parts(self, suffix: str, epoch: int) -> None:
        for part, module in (("encoder", self.model.encoder), ("decoder", self.model.decoder)):
            file = self.folder.checkpoints / f"{part}{suffix}.pth"
            checkpoints.save_part(file, module.state_dict(), epoch, self.settings)

    def state_dict(self) -> dict[str, Any]:
        last, names = self.history[-1] if self.history else None, ACCURACIES[self.corpus.unit]
        closed = {level: [record.beta_trace[level] for record in self.history] for level in self.closed}
        return {
            "format_version": checkpoints.FORMAT,
            "epoch": len(self.history) + (self.index > 0),
            "epoch_finished": self.index == 0,
            "step": self.done,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.step.optimizer.state_dict(),
            "scheduler_state_dict": self.rate.state_dict(),
            "schedule_state": self.control.state_dict(),
            "conditions": checkpoints.condition_schema(self.model),
            **checkpoints.structure_of(self.model),
            "train_loss": last.train.loss if last else None,
            "val_loss": last.val.loss if last else None,
            **({name: last.metrics()[f"val/{name}"] for name in names if name} if last else {}),
            "best": list(self.best) if self.best else None,
            "rng_state": torch.get_rng_state(),
            "config": checkpoints.config_text(self.settings),
            # for resuming: all earlier epochs, a line each, and the metrics of the one under way
            "steps_per_epoch": self.steps,
            "history": "\n".join(self.history_json),
            "closed_betas": {level: torch.tensor(betas, dtype=torch.float64) for level, betas in closed.items()},
            "tally": self.engine.metrics.table[: self.index].cpu().clone(),  # of a view, all would be saved
            "stood": dict(self.at_bound),
            "corpus": self.fingerprint,
            "precision": PRECISIONS[self.step.precision],
            "made_by": made_by(self.device),
            "seconds": dict(self.seconds),
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Randomness is a function of (seed, epoch, step) and has no state on a device."""
        if values["steps_per_epoch"] != self.steps:
            raise ValueError(f"{values['steps_per_epoch']} steps an epoch, now {self.steps}")
        self.model.load_state_dict(values["model_state_dict"])
        self.step.optimizer.load_state_dict(values["optimizer_state_dict"])
        self.rate.load_state_dict(values["scheduler_state_dict"])
        self.control.load_state_dict(values["schedule_state"])
        closed = {level: betas.double().tolist() for level, betas in values["closed_betas"].items()}  # (epochs, steps)
        self.history_json = values["history"].splitlines()
        for row, text in enumerate(self.history_json):
            record = EpochRecord.of(json.loads(text))
            path = self.beta_trace(record.epoch, {level: betas[row] for level, betas in closed.items()})
            self.history.append(replace(record, beta_trace=path))
            if record.best:
                self.best = (record.monitored, record.epoch)
        self.done = self.saved = values["step"]
        self.engine.metrics.table[: len(values["tally"])].copy_(values["tally"])
        self.at_bound = dict(values["stood"])
        if values["made_by"]["device"] == self.device.type:  # a precision found by trial is that of its device
            self.step.precision = {name: kind for kind, name in PRECISIONS.items()}[values["precision"]]
            self.precision_tried = True
        self.seconds = dict(values["seconds"])
        torch.set_rng_state(values["rng_state"])

    def resume(self, values: Mapping[str, Any], path: Path) -> None:
        """Continue from the run's checkpoint at `path`, before `fit`. InputError if it is of other data or unusable."""
        if values.get("corpus") != self.fingerprint:
            what = f"{path}: trained on another {self.corpus.name} than there is now"
            raise InputError(what, "give the data that the run began with, or start a new run")
        try:
            self.load_state_dict(values)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            what = f"{path}: no run can be resumed from it ({first_line(error)})"
            raise InputError(what, checkpoints.ANOTHER) from error
        if path.resolve() != (self.folder.checkpoints / "last.pth").resolve():
            self.rewind(path)
        within = f" and {self.index} of {self.steps} steps" if self.index else ""
        self.notes.append(f"resumed after epoch {len(self.history)}{within}")
        train, old = self.settings.train, json.loads(values["config"])["train"]
        if old["epochs"] != train.epochs and train.lr_schedule == "cosine":
            self.notes.append(f"epochs {old['epochs']}, now {train.epochs}: the learning rate follows the new cosine")
        before = {**values["made_by"], "engine": old.get("engine")}
        now = {**made_by(self.device), "engine": train.engine}
        if changed := [f"{key} {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key]]:
            self.notes.append(f"begun with {'; '.join(changed)}: equal to an uninterrupted run up to rounding only")

    def rewind(self, path: Path) -> None:
        """Make an older checkpoint the run's last, and its best if that was of a later epoch; delete later ones."""
        folder, epoch = self.folder.checkpoints, len(self.history)
        checkpoints.copy(path, folder / "last.pth")
        for file in folder.glob("*epoch_*.pth"):
            if (number := re.search(r"epoch_(\d+)", file.name)) and int(number[1]) > epoch:
                file.unlink()
        if self.best is None:
            return
        with contextlib.suppress(InputError):
            if checkpoints.read(folder / checkpoints.BEST)["epoch"] == self.best[1]:
                return
        self.history[-1] = replace(self.history[-1], best=True)
        self.history_json[-1] = json.dumps(self.history[-1].plain())
        self.best = (self.history[-1].monitored, epoch)
        self.notes.append(f"no checkpoint of the best epoch is left: epoch {epoch} takes its place")
        checkpoints.copy(path, folder / checkpoints.BEST)
        self.save_parts("", epoch)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Time a part of the run, without the parts within it. After an exception it remains the current one."""
        outer = self.switch(part)
        yield
        self.switch(outer)

    def switch(self, part: str) -> str:
        """Count the time so far for the current part and begin another. Returns the one before."""
        now, before = time.perf_counter(), self.part
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self.since
        self.part, self.since = part, now
        return before

    def place(self) -> dict[str, Any]:
        self.switch(self.part)
        best = {"best_epoch": self.best[1], "best_value": self.best[0]} if self.best else {}
        seconds = {part: round(value, 3) for part, value in self.seconds.items()}
        costs = {"seconds": seconds, "peak_memory_bytes": peak_memory(self.device)}
        return {"epoch": len(self.history), "epochs": self.settings.train.epochs, "step": self.done, **best, **costs}

    def check_steps(self, rows: MetricRows, epoch: int) -> None:
        if (bad := rows.bad) is not None:
            raise self.diverged(f"epoch {epoch}, step {bad + 1} of {self.steps}: the loss or its gradient")

    def diverged(self, what: str) -> ArcvaeError:
        last = f"the last good checkpoint is {self.folder.checkpoints / 'last.pth'}, of step {self.saved}"
        command = f"arcvae train --preset {self.folder.shell}/config.toml --lr {self.settings.train.lr / 2:g}"
        fix = f"lower train.lr (`{command}`), keep train.gradient_clip on, or try train.precision=fp32"
        return ArcvaeError(f"{what} is NaN or infinite; {last}", fix)

    def stop_if_asked(self) -> None:
        if (asked := self.stop()) is not None:
            self.save()
            where = f"in epoch {len(self.history) + 1}, after step {self.index} of {self.steps}"
            what = f"stopped by {signal_name(asked)} {where}; saved in {self.folder.path}"
            raise Interrupted(what, exit_code(asked), self.again)

    def explained(self, error: BaseException) -> BaseException:
        if isinstance(error, WriteError):
            return WriteError(error.what, f"free some space, then {self.again}")
        if isinstance(error, KeyboardInterrupt):
            asked = self.stop() or signal.SIGINT
            saved = f"{self.folder.path} holds the first {self.saved} of {self.done} steps"
            what = f"stopped by {signal_name(asked)} at once; {saved}"
            return Interrupted(what, exit_code(asked), self.again, at_once=True)
        return self.too_large(error) if out_of_memory(error) else error

    def too_large(self, error: BaseException) -> ArcvaeError:
        traceback.clear_frames(error.__traceback__)  # which hold the tensors of the step
        size, device = self.settings.train.batch_size, self.device
        if self.part not in ("start", "training"):
            what = f"the memory of {device} is too small for the {self.part}, whatever train.batch_size ({size}) is"
            return ArcvaeError(what, f"free some memory, then {self.again}")
        what = f"train.batch_size: {size} does not fit into the memory of {device}"
        fitting = None
        with contextlib.suppress(Exception):  # after a failed recording the allocator refuses
            fitting = self.engine.fitting(size // 2)
        if not fitting:
            return ArcvaeError(what, "no smaller batch was found to fit: free some memory, or train a smaller model")
        # half of it on a host, whose memory is in pieces: what fitted in one process may not fit in the next
        advised = fitting // 2 if device.type == "cpu" and fitting > 1 else fitting
        command = f"arcvae train --preset {self.folder.shell}/config.toml --batch-size {advised}"
        return ArcvaeError(what, f"a batch of {fitting} fitted in a trial: start a run with `{command}`")


def beta_range(path: Curves) -> dict[str, tuple[float, float]]:
    """The least and the largest beta of each level whose beta went both up and down in these steps."""
    spans = {name: (min(values), max(values)) for name, values in path.items()}
    moved = {name: abs(values[-1] - values[0]) for name, values in path.items()}
    return {name: (low, high) for name, (low, high) in spans.items() if moved[name] < 0.99 * (high - low)}


def to_numpy(classes: Tensor) -> Examples:
    """Classes (n, *positions) as int16 on the host, as uint8 where there are few."""
    found: Examples = classes.to(torch.int16).cpu().numpy()
    return found.astype(np.uint8) if found.max(initial=0) < 256 else found


def made_by(device: torch.device) -> dict[str, str | int]:
    """What the last bits of results depend on, beyond the settings."""
    versions: dict[str, str | int] = {"arcvae": __version__, "torch": str(torch.__version__), "device": device.type}
    if device.type != "cpu":
        return versions
    return {**versions, "threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability()}
