"""How the optimiser steps of an epoch run: eager, with the network compiled, or as one CUDA graph a step."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from arcvae_cli import graphs
from arcvae_cli.controllers import Controller
from arcvae_cli.data.corpus import Corpus
from arcvae_cli.machine import choose_threads, out_of_memory
from arcvae_cli.metrics import MetricAccumulator
from arcvae_cli.settings import Settings
from arcvae_cli.step import StateSnapshot, Step, mix, seed_step

TEXTS = {"eager": "eager steps", "compile": "compiled steps", "graph": "one CUDA graph a step"}
FAILED = {"compile": "the network cannot be compiled here", "graph": "no CUDA graph could be recorded"}
Cases = dict[tuple[str, ...], float]  # a time for each combination of levels whose beta is 0: no term in the loss


class Engine:
    """The steps of a run. `kind`: the engine that runs them; `reason`: why it is not the one asked for, or None."""

    def __init__(self, settings: Settings, step: Step, corpus: Corpus, control: Controller, steps: int) -> None:
        self.settings, self.step, self.corpus, self.control = settings, step, corpus, control
        self.steps, self.size = steps, settings.train.batch_size
        self.kind = "eager"
        self.reason: str | None = None
        device = step.device
        self.order = torch.zeros(steps * self.size, dtype=torch.int64, device=device)
        self.indices = torch.zeros(self.size, dtype=torch.int64, device=device)
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        # the last row is for trial steps
        self.metrics = MetricAccumulator(steps + 1, step.model.level_sizes, corpus.background, device)
        self._graphs: dict[tuple[str, ...], torch.cuda.CUDAGraph] = {}  # by the levels whose beta is 0

    def choose_threads(self, steps: int) -> str | None:
        """Set the CPU threads for so many steps, on a CPU by a trial that leaves no trace; a note about it."""
        if self.step.device.type != "cpu":
            return None
        snapshot = StateSnapshot(self.step, self.control)
        self.step.model.train()
        note = choose_threads(self._try, steps)
        snapshot.restore()
        return note

    def prepare(self, times: Iterable[float]) -> None:
        """Choose the engine by trial, eager where another fails. `times`: all that the schedule will be asked for."""
        wanted, cuda = self.settings.train.engine, graphs.possible(self.step.device)
        if wanted == "auto":
            wanted = "graph" if cuda else "eager"
        if wanted == "eager":
            return
        snapshot = StateSnapshot(self.step, self.control)
        self.step.model.train()
        self.control.use_tensors()
        cases: Cases = {}
        for time in times:
            self.control.at(time)
            cases.setdefault(self.control.zero_levels, time)
        if wanted == "compile":
            self._attempt("compile", self._compile, cases)
        elif not cuda:
            self.reason = f"CUDA graphs need a CUDA device, this is {self.step.device.type}"
        if cuda:
            self._attempt("graph", self._record, cases)
        snapshot.restore()

    def begin(self, epoch: int, index: int = 0) -> None:
        """Begin an epoch at step `index`. Its order depends on the seed and the epoch alone, on any device."""
        self.epoch = epoch
        generator = torch.Generator().manual_seed(mix(self.settings.train.seed, "order", epoch))
        order = torch.randperm(self.corpus.size("train"), generator=generator)
        self.order.copy_(order[: len(self.order)])
        self.row.fill_(index)

    def run(self, index: int) -> None:
        """The step `index` of the epoch, without a CPU-GPU sync."""
        seed_step(self.settings.train.seed, "step", self.epoch, index)
        self.indices.copy_(self.order[index * self.size : (index + 1) * self.size])
        graph = self._graphs.get(self.control.zero_levels)
        if graph is not None:
            graph.replay()
        else:
            self.body()

    def body(self) -> None:
        self._step(self.indices)
        self.row.add_(1)

    def _step(self, indices: Tensor) -> None:
        conditions = bool(self.step.model.attributes)
        batch = self.corpus.batch("train", indices, augment=self.settings.data.augment, conditions=conditions)
        terms, output = self.step.train(batch, self.control.weigh)
        self.metrics.add(self.row, terms, output, batch, self.step.norm)

    def _try(self) -> None:
        """A step whose metrics go into the spare row; so do those of the next one."""
        self.row.fill_(self.steps)
        self.body()
        self.row.fill_(self.steps)

    def fitting(self, size: int) -> int | None:
        """The largest of `size`, its half, quarter ... whose step fits into memory, in a run that has failed."""
        self._graphs.clear()
        self.step.forward = self.step.plain
        while size:
            self.row.fill_(self.steps)
            for parameter in self.step.parameters:
                parameter.grad = None
            torch.cuda.empty_cache()  # nothing where CUDA is not in use
            try:
                self._step(self.order[:size])
                return size
            except Exception as error:
                if not out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)  # which hold the tensors of the step
            size //= 2
        return None

    def _attempt(self, kind: str, prepare: Callable[[Cases], None], cases: Cases) -> None:
        try:
            prepare(cases)
            self.kind = "compile" if self.kind == "compile" else kind
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler, the compiler behind it or a driver may raise
            self.reason = f"{FAILED[kind]}: {graphs.first_line(error)}"

    def _compile(self, cases: Cases) -> None:
        # torch 2.13 loses what a compiled function writes into the state of a closed loop
        self.control.weigh = torch.compiler.disable(self.control.weigh)  # type: ignore[method-assign, no-untyped-call]
        # fallback_random: draws what eager draws
        self.step.forward = torch.compile(self.step.plain, dynamic=False, options={"fallback_random": True})
        try:
            for time in cases.values():
                self.control.at(time)
                self._try()
        except Exception:
            self.step.forward = self.step.plain
            raise

    def _record(self, cases: Cases) -> None:
        if any(isinstance(part, nn.RNNBase) and part.dropout for part in self.step.model.modules()):
            raise RuntimeError("it cannot seed the dropout between GRU layers, whose state is cuDNN's own")
        found = {}
        for levels, time in cases.items():
            self.control.at(time)
            found[levels], _ = graphs.record(self.body, self._try)
        self._graphs = found
