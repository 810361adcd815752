"""The training loop, from top to bottom, and what it takes to resume it."""

import contextlib
import json
import math
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arcvae_cli import BEGAN, __version__, checkpoints, domains
from arcvae_cli.controllers import Controller
from arcvae_cli.data.corpus import Corpus
from arcvae_cli.distributed import ALONE, Ranks
from arcvae_cli.engine import TEXTS, Engine
from arcvae_cli.errors import ArcvaeError, DivergedError, InputError, Interrupted, WriteError, first_line
from arcvae_cli.evaluation.information import batches, choose, longest_first, mutual_information, posteriors
from arcvae_cli.folders import RunFolder
from arcvae_cli.machine import choose_threads, cores, describe, out_of_memory, peak_memory, threads_given
from arcvae_cli.metrics import EpochMetrics, MetricAccumulator, MetricRows
from arcvae_cli.models.base import VAE
from arcvae_cli.objective import Objective
from arcvae_cli.records import ACCURACIES, HIGHER_IS_BETTER, EpochRecord, Pictures, Plan, Recorder, betas, flat
from arcvae_cli.settings import Settings, elbo_scale
from arcvae_cli.signals import exit_code, signal_name
from arcvae_cli.step import LearningRate, Step, seed_step, trial

SHOWN, SAMPLES = 16, 64  # reconstructions and samples of a picture
INFORMED = 1024  # validation examples of the mutual information that ends the encoder's own steps
LOSS_EVERY, FIRST_LOSS_EVERY = 50, 10  # steps between two readings of the running loss, and in the first epoch
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Trainer:
    """One run: its parts, put together by the command, and its state."""

    def __init__(
        self, settings: Settings, corpus: Corpus, model: VAE, folder: RunFolder, resumed: bool, ranks: Ranks = ALONE
    ) -> None:
        self.ranks = ranks
        ranks.average([x.detach() for x in model.parameters()])  # another kind of processor may have drawn others
        self.settings, self.corpus, self.model, self.folder = settings, corpus, model, folder
        self.device, self.resumed = corpus.device, resumed  # resumed: whether an earlier process worked in the folder
        self.recorders: list[Recorder] = []
        self.stop: Callable[[], int | None] = lambda: None  # gives the number of a signal that asks to stop
        self.schedule, self.levels = settings.schedule, tuple(model.level_sizes)
        objective = Objective(settings.objective, corpus.class_counts(), self.ranks).to(self.device)
        self.step = Step(model, objective, settings.train, self.device)
        self.steps = max(1, corpus.size("train") // settings.train.batch_size)  # an epoch; the remainder is left out
        self.rate = LearningRate(settings.train, self.steps * settings.train.epochs)
        positions = corpus.mean_positions
        self.control = Controller(self.schedule, self.levels, self.device, positions, settings.objective.reduction)
        self.engine = Engine(settings, self.step, corpus, self.control, self.steps)
        self.val_order = longest_first(corpus, "val", torch.arange(corpus.size("val")))
        # each level's largest beta, for a closed loop the ELBO's 1
        self.elbo_scale = elbo_scale(settings, positions)
        parts = self.schedule.by_level(self.levels)
        self.selection_weights = dict.fromkeys(self.levels, 1.0 / (self.elbo_scale or 1.0))
        self.selection_weights |= {name: parts[name].peak for name in self.control.open}
        self.fingerprint = corpus.fingerprint()
        if ranks.share(self.fingerprint) != self.fingerprint:
            raise InputError(f"{corpus.name}: not the corpus of the first rank", "give every machine the same data")
        self.notes: list[str] = []
        self.global_step = self.saved_step = 0  # optimiser steps done, and those in the last checkpoint
        self.trials = True  # whether precision and threads are to be found by trial
        self.part, self.since = "start", BEGAN  # the part under way
        self.seconds: dict[str, float] = {}  # of each part of the run
        self.ended: dict[str, str] = {}  # why it ended before its last epoch, for its status
        self.save_at = math.inf  # by the monotonic clock, when to save within an epoch
        self.best: tuple[float, int] | None = None  # the monitored value, and its epoch
        self.history: list[EpochRecord] = []

    @property
    def index(self) -> int:
        """Steps done of the epoch that is being trained."""
        return self.global_step - len(self.history) * self.steps

    def clock(self, epoch: int, index: int) -> float:
        """The epoch that the schedule is asked for in a step: a whole number unless it moves with every step."""
        return epoch - 1 + (index + 1) / self.steps if self.schedule.per == "step" else float(epoch)

    def fit(self, until: int | None = None) -> None:
        """Train to the last epoch or an early stop. The folder's status says how it ended, whatever is raised.

        `until`: the epoch to return after, if it is not the last, with the run saved as one that is running.
        """
        epochs = self.settings.train.epochs
        try:
            self.prepare()
            self.switch("rest")
            if self.history and self.index == 0:  # the process before may have died right after saving the epoch
                self.finish_epoch(self.history[-1])
            while len(self.history) < (until or epochs) and not self.patience_over:
                self.run_epoch(len(self.history) + 1)
            self.engine.close()
            if not self.ranks.first or (len(self.history) < epochs and not self.patience_over):
                return
            with self.timed("saving"):
                checkpoints.copy(self.folder.checkpoints / "last.pth", self.folder.checkpoints / "vae_final.pth")
            if self.patience_over and self.best is not None:
                since = f"no better {self.settings.train.monitor} since epoch {self.best[1]}"
                self.ended = {"reason": f"stopped early after epoch {len(self.history)}: {since}"}
            self.folder.write_status("finished", **self.ended, **self.progress())
        except BaseException as error:
            shown = self.explained(self.ranks.cause(error))
            state = "interrupted" if isinstance(shown, Interrupted) else "failed"
            reason = shown.what if isinstance(shown, ArcvaeError) else f"{type(shown).__name__}: {first_line(shown)}"
            with contextlib.suppress(ArcvaeError):  # on a full disk the first error is the one to report
                if self.ranks.first:
                    self.folder.write_status(state, reason=reason, **self.progress())
            if shown is error:
                raise
            raise shown from error

    def prepare(self) -> None:
        """What comes before the first step: precision, threads and engine by trial, the header, a checkpoint."""
        train = self.settings.train
        if self.trials:
            if train.precision == "auto" and self.step.precision == torch.bfloat16:
                self.check_precision()
            if train.threads == "auto" and self.device.type == "cpu" and self.ranks.count == 1:
                with trial(self.step, self.control):
                    note = choose_threads(self.engine.try_step, self.steps * train.epochs - self.global_step)
                self.notes += [note] if note else []
        times = (self.clock(epoch + 1, index) for epoch in range(train.epochs) for index in range(self.steps))
        self.engine.prepare(times)
        if self.engine.reason:
            self.notes.append(f"{self.engine.reason}: {TEXTS[self.engine.kind]}")
        ranks = f"{self.ranks.count} ranks, each on " if self.ranks.count > 1 else ""
        plan = Plan(
            run=self.folder.name,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            how=f"{ranks}{describe(self.device)} in {PRECISIONS[self.step.precision]}, {TEXTS[self.engine.kind]}",
            corpus=self.corpus.name,
            sizes={split: self.corpus.size(split) for split in ("train", "val", "test")},
            steps=self.steps,
            level_shapes=self.model.level_shapes,
            settings=self.settings,
            elbo_scale=self.elbo_scale,
            notes=tuple(self.notes),
            **domains.of(self.corpus.kind).baseline(self.corpus),
        )
        for recorder in self.recorders:
            recorder.start(plan)
            if self.resumed:
                recorder.resume(self.history, len(self.history) * self.steps)
        self.save()

    @torch.inference_mode()
    def check_precision(self) -> None:
        """Fall back to fp32 if bf16 does not give the same loss on one batch within 2 %."""
        count = min(self.corpus.size("val"), 32)
        batch = self.corpus.batch("val", torch.arange(count, device=self.device))
        losses = []
        self.model.eval()
        for precision in (torch.float32, torch.bfloat16):
            self.step.precision = precision
            seed_step(self.settings.train.seed, "precision")
            losses.append(self.step.plain(batch, self.selection_weights)[0].loss.item())
        if not abs(losses[1] - losses[0]) <= 0.02 * abs(losses[0]):
            self.step.precision = torch.float32
            self.notes.append(f"bf16 gives a loss of {losses[1]:.4g} and fp32 {losses[0]:.4g}: using fp32")

    def run_epoch(self, epoch: int) -> None:
        """One pass over the training split, one over the validation split, a record, a checkpoint, pictures."""
        began = time.perf_counter()
        with self.timed("training"):
            self.model.train()
            self.engine.begin(epoch, self.index)
            encoder_steps = self.encoder_steps
            for index in range(self.index, self.steps):
                self.control.at(self.clock(epoch, index))
                self.step.rate.fill_(self.rate(self.global_step))
                self.step.encoder_only = (self.global_step + 1) % (encoder_steps + 1) != 0
                self.engine.run(index)  # no sync: metrics stay on the device
                self.global_step += 1
                due = self.global_step % (FIRST_LOSS_EVERY if epoch == 1 else LOSS_EVERY) == 0
                loss = self.engine.metrics.recent_loss(index + 1, LOSS_EVERY) if due else None  # no sync
                nan, late = loss is not None and math.isnan(loss), time.monotonic() >= self.save_at
                asked, nan_anywhere, save = self.ranks.most(self.stop() or 0, nan, late)
                if nan_anywhere:
                    self.check_steps(self.engine.read(index + 1))
                for recorder in self.recorders:
                    recorder.step(epoch, index + 1, self.control.open, loss)
                self.stop_if(asked)
                if save:
                    self.save()
            rows = self.engine.read(self.steps)  # the one CPU-GPU sync of the epoch
            self.check_steps(rows)
        # beta of a closed loop may change its sign with every batch: the mean is what acted
        last = {k: v[-1] if k in self.control.open else sum(v) / self.steps for k, v in rows.betas().items()}
        with self.timed("validation"):
            val = self.validate(last)
        record = self.record(rows, last, val, time.perf_counter() - began)
        with self.timed("recording"):
            lines = self.logged_steps(rows)
            for recorder in self.recorders:
                recorder.steps(lines)
                recorder.epoch(record)
        self.save()
        self.finish_epoch(record)

    def finish_epoch(self, record: EpochRecord) -> None:
        """What follows the saving of an epoch; repeating it changes nothing."""
        if not self.ranks.first:
            return
        with self.timed("saving"):
            self.save_copies(record)
        every = self.settings.log.images_every
        last = record.epoch == self.settings.train.epochs or self.patience_over
        if last or (every and record.epoch % every == 0):
            with self.timed("pictures"):
                self.draw(record.epoch)

    @torch.inference_mode()
    def validate(self, betas: Mapping[str, float]) -> EpochMetrics:
        """The metrics of the validation split, with the same noise in every epoch."""
        self.model.eval()
        size = domains.of(self.corpus.kind).validation_batch(self.corpus)
        count = math.ceil(len(self.val_order) / size)
        mmd = self.settings.objective.mmd > 0.0
        metrics = MetricAccumulator(count, self.model.level_sizes, self.corpus.background, self.device, mmd)
        for index in range(self.ranks.rank, self.ranks.count * math.ceil(count / self.ranks.count), self.ranks.count):
            self.stop_if(*self.ranks.most(self.stop() or 0))
            chosen = self.val_order[index * size : (index + 1) * size]  # none where another rank has the last batch
            for batch in batches(self.corpus, "val", chosen, self.device, size):
                seed_step(self.settings.train.seed, "val", index)
                metrics.add(index, *self.step.plain(batch, betas), batch)
        self.ranks.sum(metrics.table)
        rows = metrics.read()
        if rows.first_nonfinite is not None:  # the last update of the weights shows only here
            raise FloatingPointError(f"epoch {len(self.history) + 1}: the validation loss")
        return rows.mean()

    def logged_steps(self, rows: MetricRows) -> list[dict[str, Any]]:
        """The metrics of the logged steps of the epoch just finished."""
        found = []
        for row, step in zip(rows.rows, range(self.global_step - self.steps + 1, self.global_step + 1), strict=True):
            if step % self.settings.log.every_n_steps == 0:
                one, place = replace(rows, rows=row[None]), {"step": step, "epoch": round(step / self.steps, 6)}
                beta = betas({level: path[0] for level, path in one.betas().items()})
                found.append({**place, **beta, **flat("train", one.mean(), self.corpus.unit)})
        return found

    def record(self, rows: MetricRows, last: Mapping[str, float], val: EpochMetrics, seconds: float) -> EpochRecord:
        """Add the record of the epoch to the history, with whether it is the best so far; `last`: its betas."""
        epoch, train, trace = len(self.history) + 1, rows.mean(), rows.betas()
        spans = {name: (min(trace[name]), max(trace[name])) for name in self.control.open}
        moved = {name: abs(trace[name][-1] - trace[name][0]) for name in spans}
        totals = {name: sum(kl) for name, kl in train.kl_per_dim.items()}
        # the loss of model selection: reconstruction + weight * raw KL, reduced as in training, without free bits
        mean, weights = self.settings.objective.kl_reduction == "mean", self.selection_weights
        parts = [weights[name] * (sum(kl) / (len(kl) if mean else 1)) for name, kl in val.kl_per_dim.items()]
        record = EpochRecord(
            epoch=epoch,
            step=self.global_step,
            betas=last,
            learning_rate=self.rate(self.global_step - 1),
            train=train,
            val=val,
            selection=val.reconstruction + sum(parts),
            seconds=seconds,
            unit=self.corpus.unit,
            beta_range={name: (low, high) for name, (low, high) in spans.items() if moved[name] < 0.99 * (high - low)},
            beta_trace=trace,
            targets=self.control.reached(float(epoch), totals, train.reconstruction),
            restart=self.schedule.restart_info(float(epoch)),
            encoder_steps=self.encoder_steps if self.settings.train.encoder_steps else None,
            mutual_information=self.mutual_information() if self.encoder_steps else None,
        )
        monitor = self.settings.train.monitor
        value, sign = float(record.metrics()[monitor]), -1.0 if monitor in HIGHER_IS_BETTER else 1.0
        best = self.best is None or sign * value < sign * self.best[0]
        if best:
            self.best = (value, epoch)
        self.rate.judge(sign * value)
        self.history.append(replace(record, monitored=value, best=best))
        return self.history[-1]

    @property
    def encoder_steps(self) -> int:
        """The steps of the encoder alone before each one of all weights, while mutual information rises, else 0.

        Lagging inference (He et al. 2019), with a fixed number of steps in place of a loop until convergence.
        """
        found = [record.mutual_information for record in self.history]
        best = max((value for value in found[:-1] if value is not None), default=-math.inf)
        rising = not found or (found[-1] is not None and found[-1] > best)
        return self.settings.train.encoder_steps if rising else 0

    def mutual_information(self) -> float:
        """I(x; z) in nats of a fixed part of the validation split, of the first level, with the same noise."""
        seed = self.settings.train.seed
        chosen = choose(self.corpus, "val", INFORMED, seed)
        level = posteriors(self.model, self.corpus, "val", chosen, seed)[self.levels[0]]
        found = mutual_information(level.sample.flatten(1), level.mean.flatten(1), level.logvar.flatten(1))
        return float(self.ranks.share(found["nats"]))

    @property
    def patience_over(self) -> bool:
        """Early stopping: patience counts from the schedule's first peak, in whole cycles where it has cycles.

        Not before the last epoch with steps of the encoder alone.
        """
        train, epoch = self.settings.train, len(self.history)
        if not train.early_stopping or self.best is None or self.index or epoch >= train.epochs:
            return False
        patience = float(train.patience)
        if cycle := self.schedule.cycle(epoch):
            patience = math.ceil(patience / cycle) * cycle
        lagging = sum(record.mutual_information is not None for record in self.history)
        return epoch - max(float(self.best[1]), self.schedule.first_peak, lagging) >= patience

    @torch.inference_mode()
    def draw(self, epoch: int) -> None:
        """The same validation examples reconstructed, the same samples from the prior, each time."""
        self.model.eval()
        size = self.corpus.size("val")
        chosen = torch.linspace(0, size - 1, min(SHOWN, size), device=self.device).long()
        batch = self.corpus.batch("val", chosen)
        seed_step(self.settings.train.seed, "samples")
        with self.step.autocast():
            reconstructed = self.model.reconstruct(batch)
            levels = self.model.encode(batch, noise=False)
            prior = self.model.prior(self.model.noise(SAMPLES))
            sampled = self.model.generate(prior, draw=self.model.autoregressive)
        kind = torch.uint8 if self.corpus.num_classes <= 256 else torch.int16
        examples = [classes.to(kind).cpu().numpy() for classes in (batch.x, reconstructed, sampled)]
        maps = {level.name: kl.float().cpu().numpy() for level in levels if (kl := level.map()) is not None}
        pictures = Pictures(examples[0], examples[1], examples[2], maps, self.corpus.extents("val", chosen))
        for recorder in self.recorders:
            recorder.pictures(epoch, pictures)

    def save(self) -> None:
        """Write `last.pth`: the run as it is between two steps, if it is finite."""
        with self.timed("saving"):
            self.check_steps(self.engine.read(self.index))
            if not all(value.isfinite().all() for value in self.model.state_dict().values()):
                raise FloatingPointError(f"step {self.global_step}: a weight")  # which no loss shows yet
            if self.ranks.first:
                checkpoints.save(self.folder.checkpoints / "last.pth", self.state_dict())
                self.folder.write_status("running", **self.progress())
            self.saved_step = self.global_step
            self.save_at = time.monotonic() + 60.0 * (self.settings.train.save_minutes or math.inf)

    def save_copies(self, record: EpochRecord) -> None:
        """Copies of `last.pth`, just saved at the end of an epoch: the best, the best few, every n-th epoch."""
        folder, last = self.folder.checkpoints, self.folder.checkpoints / "last.pth"
        if record.best:
            self.copy(last, record.epoch)
        rankings = {"loss": [(one.selection, one.selection, one.epoch) for one in self.history]}
        if self.corpus.unit == "token":
            rankings["seq_acc"] = [(-one.val.exact, one.val.exact, one.epoch) for one in self.history]
        limit = self.settings.checkpoint.save_top_k
        for name, ranking in rankings.items() if limit else ():
            for rank, (_, value, epoch) in enumerate(sorted(ranking)):
                file = folder / f"best-{name}-epoch_{epoch:03d}-{value:.4f}.pth"
                if rank >= limit:
                    file.unlink(missing_ok=True)
                elif epoch == record.epoch:
                    checkpoints.copy(last, file)
        every = self.settings.checkpoint.every_epochs
        if every and record.epoch % every == 0:
            self.copy(last, record.epoch, f"_epoch_{record.epoch}")

    def copy(self, path: Path, epoch: int, suffix: str = "") -> None:
        """Copy the checkpoint at `path`, of the weights at present, as the best or by `suffix`, and save its parts."""
        folder = self.folder.checkpoints
        checkpoints.copy(path, folder / f"vae{suffix or '_best'}.pth")
        for part, module in (("encoder", self.model.encoder), ("decoder", self.model.decoder)):
            header = checkpoints.header(self.settings, epoch)
            checkpoints.save(folder / f"{part}{suffix}.pth", {**header, "state_dict": dict(module.state_dict())})

    def state_dict(self) -> dict[str, Any]:
        last, names = self.history[-1] if self.history else None, ACCURACIES[self.corpus.unit]
        traces = [[record.beta_trace[level] for level in self.levels] for record in self.history]
        return {
            **checkpoints.header(self.settings, len(self.history) + (self.index > 0)),
            **checkpoints.content(self.model),
            "epoch_finished": self.index == 0,
            "step": self.global_step,
            "optimizer_state_dict": self.step.optimizer.state_dict(),
            "scheduler_state_dict": dict(self.rate.state),
            "schedule_state": self.control.state_dict(),
            "train_loss": last.train.loss if last else None,
            "val_loss": last.val.loss if last else None,
            **({name: last.metrics()[f"val/{name}"] for name in names if name} if last else {}),
            "best": list(self.best) if self.best else None,
            "rng_state": torch.get_rng_state(),
            # for resuming: all earlier epochs, a line each, and the metrics of the one under way
            "history": "\n".join(json.dumps(record.plain()) for record in self.history),
            "betas": torch.tensor(traces, dtype=torch.float64),  # (epochs, levels, steps)
            "metric_rows": self.engine.metrics.table[: self.index].cpu().clone(),  # of a view, all would be saved
            "corpus": self.fingerprint,
            "precision": PRECISIONS[self.step.precision],
            "made_by": made_by(self.device, self.ranks.count),
            "seconds": dict(self.seconds),
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Randomness is a function of (seed, epoch, step) and has no state on a device."""
        self.model.load_state_dict(values["model_state_dict"])
        self.step.optimizer.load_state_dict(values["optimizer_state_dict"])
        self.rate.state = dict(values["scheduler_state_dict"])
        self.control.load_state_dict(values["schedule_state"])
        for text, traces in zip(values["history"].splitlines(), values["betas"].tolist(), strict=True):
            record = EpochRecord.of(json.loads(text))
            self.history.append(replace(record, beta_trace=dict(zip(self.levels, traces, strict=True))))
        self.best = (values["best"][0], values["best"][1]) if values["best"] else None
        self.global_step = self.saved_step = values["step"]
        self.engine.metrics.table[: len(values["metric_rows"])].copy_(values["metric_rows"])
        self.engine.gathered = len(values["metric_rows"])
        if values["made_by"]["device"] == self.device.type:  # what was found by trial is that of its device
            self.trials = False
            self.step.precision = torch.bfloat16 if values["precision"] == "bf16" else torch.float32
            if self.device.type == "cpu" and self.settings.train.threads == "auto" and not threads_given():
                torch.set_num_threads(min(values["made_by"]["threads"], cores()))
        self.seconds = dict(values["seconds"])
        torch.set_rng_state(values["rng_state"])

    def resume(self, values: Mapping[str, Any], path: Path) -> None:
        """Continue from the run's checkpoint at `path`, before `fit`. InputError if it is of other data or unusable."""
        if values.get("corpus") != self.fingerprint:
            what = f"{path}: trained on another version of the corpus {self.corpus.name}"
            raise InputError(what, "give the data that the run began with, or start a new run")
        if (before := values["made_by"].get("ranks", 1)) != self.ranks.count:
            what = f"{path}: trained with {before} rank(s), resumed with {self.ranks.count}"
            raise InputError(what, f"use --gpus {before}, or torchrun with as many")
        try:
            self.load_state_dict(values)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: cannot be resumed from ({first_line(error)})", checkpoints.ANOTHER) from error
        if self.ranks.first and path.resolve() != (self.folder.checkpoints / "last.pth").resolve():
            self.discard_later(path)
        self.best = self.ranks.share(self.best)
        self.notes.append(f"resumed after epoch {len(self.history)}, step {self.global_step}")
        train, old = self.settings.train, json.loads(values["config"])["train"]
        if old["epochs"] != train.epochs and train.lr_schedule == "cosine":
            self.notes.append(f"epochs {old['epochs']}, now {train.epochs}: the learning rate follows the new cosine")
        now: dict[str, Any] = made_by(self.device, self.ranks.count) | {"engine": train.engine}
        before = values["made_by"] | {"engine": old["engine"]}
        if changed := [f"{key} {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key]]:
            self.notes.append(f"begun with {'; '.join(changed)}: equal to an uninterrupted run up to rounding only")

    def discard_later(self, path: Path) -> None:
        """Delete checkpoints of later epochs than the older one at `path`, which is the best if the best is lost."""
        folder, epoch = self.folder.checkpoints, len(self.history)
        for file in folder.glob("*epoch_*.pth"):
            if (number := re.search(r"epoch_(\d+)", file.name)) and int(number[1]) > epoch:
                file.unlink()
        with contextlib.suppress(InputError):
            if self.best is None or checkpoints.read(folder / checkpoints.BEST)["epoch"] == self.best[1]:
                return
        self.best = (self.history[-1].monitored, epoch)
        self.notes.append(f"no checkpoint of the best epoch is left: epoch {epoch} takes its place")
        self.copy(path, epoch)

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

    def progress(self) -> dict[str, Any]:
        """What a status says of a run."""
        self.switch(self.part)
        return {
            "epoch": len(self.history),
            "epochs": self.settings.train.epochs,
            "step": self.global_step,
            **({"best_epoch": self.best[1], "best_value": self.best[0]} if self.best else {}),
            "seconds": {part: round(value, 3) for part, value in self.seconds.items()},
            "peak_memory_bytes": peak_memory(self.device),
        }

    def check_steps(self, rows: MetricRows) -> None:
        if (row := rows.first_nonfinite) is not None:
            where = f"epoch {(self.global_step - 1) // self.steps + 1}, step {row + 1} of {self.steps}"
            raise FloatingPointError(f"{where}: the loss or its gradient")

    def stop_if(self, asked: int) -> None:
        """Save the run and end it, if a signal has asked for it."""
        if asked:
            self.save()
            raise KeyboardInterrupt(asked)

    def explained(self, error: BaseException) -> BaseException:
        """What to tell a person about an error that ends a run, or the error itself."""
        folder, train, device = self.folder, self.settings.train, self.device
        start, resume = f"arcvae train --preset {folder.shell}/config.toml", f"`arcvae train --resume {folder.shell}`"
        match error:
            case FloatingPointError():
                last = f"the last good checkpoint is {folder.checkpoints / 'last.pth'}, of step {self.saved_step}"
                fix = f"lower train.lr (`{start} --lr {train.lr / 2:g}`), keep train.gradient_clip on, or try "
                return DivergedError(f"{error} is NaN or infinite; {last}", f"{fix}train.precision=fp32")
            case WriteError():
                return WriteError(error.what, f"free some space, then resume with {resume}")
            case KeyboardInterrupt():
                at_once = not error.args  # else raised by `stop_if`
                asked = (self.stop() or signal.SIGINT) if at_once else error.args[0]
                saved = f"after step {self.global_step}; the first {self.saved_step} steps are saved in {folder.path}"
                what = f"stopped by {signal_name(asked)} {'at once ' if at_once else ''}{saved}"
                return Interrupted(what, exit_code(asked), f"resume with {resume}", at_once=at_once)
        if not out_of_memory(error):
            return error
        traceback.clear_frames(error.__traceback__)  # which hold the tensors of the step
        if self.part not in ("start", "training"):
            what = f"the memory of {device} is too small for the {self.part}, whatever train.batch_size is"
            return ArcvaeError(what, f"free some memory, then resume with {resume}")
        fitting, fix = None, "use a smaller batch or model, or free some memory"
        with contextlib.suppress(Exception):  # after a failed recording the allocator refuses
            fitting = self.engine.fitting(train.batch_size // 2) if self.ranks.count == 1 else None
        if fitting:  # on a host half of it, since its memory is fragmented differently in the next process
            advised = max(1, fitting // 2) if device.type == "cpu" else fitting
            fix = f"a batch of {fitting} fitted in a trial: start a run with `{start} --batch-size {advised}`"
        return ArcvaeError(f"train.batch_size: {train.batch_size} does not fit into the memory of {device}", fix)


def made_by(device: torch.device, ranks: int) -> dict[str, str | int]:
    """What the last bits of results depend on, beyond the settings."""
    found: dict[str, str | int] = {"arcvae": __version__, "torch": str(torch.__version__), "device": device.type}
    if device.type == "cpu":
        found |= {"threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability()}
    return found | ({"ranks": ranks} if ranks > 1 else {})


def overfit(
    settings: Settings, corpus: Corpus, model: VAE, limit: int, report: Callable[[int, EpochMetrics], None]
) -> tuple[int, EpochMetrics]:
    """Train on one batch at beta 0 until it is memorised or for `limit` steps. Returns the steps and their metrics."""
    objective = Objective(settings.objective, corpus.class_counts()).to(corpus.device)
    step = Step(model, objective, settings.train, corpus.device)
    count = min(settings.train.batch_size, corpus.size("train"))
    batch = corpus.batch("train", torch.arange(count, device=corpus.device))
    mmd = settings.objective.mmd > 0.0
    metrics = MetricAccumulator(1, model.level_sizes, corpus.background, corpus.device, mmd)
    for done in range(1, limit + 1):
        seed_step(settings.train.seed, "overfit", done)
        terms, output = step.train(batch, dict.fromkeys(model.level_sizes, 0.0))
        if done % 50 == 0 or done == limit:
            metrics.add(0, terms, output, batch)
            found = metrics.read().mean()
            report(done, found)
            if found.exact == 1.0 or not math.isfinite(found.loss):
                break
    return done, found
