"""How the optimiser steps of an epoch run: one by one, with the network compiled, or as one CUDA graph each.

All engines run one body, which takes everything that differs from step to step from device memory that stays where it
is: the indices of the batch, the learning rate, the betas, the row of the tally. Randomness is a function of (seed,
epoch, step), so every engine draws the same.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from arcvae_cli import graphs
from arcvae_cli.controllers import Controller
from arcvae_cli.data.corpus import Corpus
from arcvae_cli.machine import out_of_memory
from arcvae_cli.settings import Settings
from arcvae_cli.step import Kept, Step, Sums, Tally, mix, seed_step

TEXTS = {"eager": "eager steps", "compile": "compiled steps", "graph": "one CUDA graph a step"}
"""The engines, in the words of a header."""


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
        levels = step.model.level_sizes
        closed = settings.schedule.closed_levels(tuple(levels))
        self.tally = Tally(steps + 1, levels, corpus.background, device, closed)  # the last row is for trials
        self._graphs: dict[tuple[str, ...], torch.cuda.CUDAGraph] = {}  # by the levels whose KL weighs nothing

    def body(self) -> None:
        """One optimiser step: the batch, augmented; the loss and its gradients; Adam; what the step came to."""
        conditions = bool(self.step.model.attributes)
        batch = self.corpus.batch("train", self.indices, augment=self.settings.data.augment, conditions=conditions)
        terms, output = self.step.train(batch, self.control)
        self.tally.add(self.row, terms, output, batch, self.step.norm)
        self.row.add_(1)

    def prepare(self, times: Iterable[float]) -> None:
        """Choose the engine and make it ready, by trial; what cannot be had is replaced by what can, with a reason.

        `times`: all that the schedule will be asked for, since a graph is of the KL terms that weigh something. `auto`
        is a graph on CUDA and eager elsewhere: compiling takes half a minute on a CPU and gains nothing there.
        """
        wanted, cuda = self.settings.train.engine, graphs.possible(self.step.device)
        if wanted == "auto":
            wanted = "graph" if cuda else "eager"
        if wanted == "eager":
            return
        kept, cases = Kept(self.step, self.control), self._cases(times)
        self.step.model.train()
        self.control.hold()
        if wanted == "compile":
            self._compile(cases)
        elif not cuda:
            self.reason = f"a graph takes CUDA, this is {self.step.device.type}"
        if cuda:
            self._record(cases)
        kept.restore()

    def begin(self, epoch: int, index: int = 0) -> None:
        """Lay out an epoch: its batches are a permutation that only the seed and the epoch decide, on any device."""
        self.epoch = epoch
        generator = torch.Generator().manual_seed(mix(self.settings.train.seed, "order", epoch))
        order = torch.randperm(self.corpus.size("train"), generator=generator)
        self.order.copy_(order[: len(self.order)])
        self.row.fill_(index)

    def run(self, index: int) -> None:
        """The step `index` of the epoch; the device may lag behind."""
        seed_step(self.settings.train.seed, "step", self.epoch, index)
        self.indices.copy_(self.order[index * self.size : (index + 1) * self.size])
        graph = self._graphs.get(self.control.silent)
        if graph is not None:
            graph.replay()
        else:
            self.body()

    def read(self, done: int) -> Sums:
        """What the first `done` steps of the epoch came to: the device is waited for."""
        return self.tally.read(done)

    def fitting(self, size: int) -> int | None:
        """The largest of `size`, its half, quarter ... whose step finds the memory that it takes; None for none.

        For a run that ends because its batches did not: the weights are of no use afterwards, and graphs are given up.
        """
        self._graphs.clear()
        self.step.forward = self.step.plain
        while size:
            for parameter in self.step.parameters:
                parameter.grad = None
            graphs.free(self.step.device)
            try:
                batch = self.corpus.batch("train", self.order[:size], conditions=bool(self.step.model.attributes))
                terms, output = self.step.train(batch, self.control)
                self.tally.add(self.steps, terms, output, batch, self.step.norm)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)
                size //= 2
            else:
                return size
        return None

    def _cases(self, times: Iterable[float]) -> dict[tuple[str, ...], float]:
        """The levels whose KL weighs nothing, in every combination there will be, and a time of each."""
        cases: dict[tuple[str, ...], float] = {}
        for time in times:
            self.control.at(time)
            cases.setdefault(self.control.silent, time)
        return cases

    def _try(self) -> None:
        """A step whose figures go into the spare row, which is where the next one's would go too."""
        self.row.fill_(self.steps)
        self.body()
        self.row.fill_(self.steps)

    def _compile(self, cases: Mapping[tuple[str, ...], float]) -> None:
        """Compile the network and the objective; the plain ones stay where that fails."""
        from torch._inductor import config

        config.fallback_random = True  # draws what eager draws
        # torch 2.13 loses what a compiled function writes into the state of a closed loop
        self.control.weigh = torch.compiler.disable(self.control.weigh)  # type: ignore[method-assign, no-untyped-call]
        self.step.forward = torch.compile(self.step.plain, dynamic=False)
        try:
            for time in cases.values():
                self.control.at(time)
                self._try()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler and the compiler behind it may raise
            self.step.forward = self.step.plain
            self.reason = f"the network cannot be compiled here: {graphs.first_line(error)}"
        else:
            self.kind = "compile"

    def _record(self, cases: Mapping[tuple[str, ...], float]) -> None:
        """Record a graph for each case; where one cannot be, steps run without."""
        if any(isinstance(part, nn.RNNBase) and part.dropout for part in self.step.model.modules()):
            self.reason = "cuDNN keeps the state of dropout between GRU layers to itself, and a graph cannot seed it"
            return
        try:
            for case, time in cases.items():
                self.control.at(time)
                self._graphs[case], _ = graphs.record(self.body, self._try)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._graphs = {}
            self.reason = f"no graph could be recorded: {graphs.first_line(error)}"
        else:
            self.kind = self.kind if self.kind == "compile" else "graph"
