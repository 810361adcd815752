"""How the optimiser steps of an epoch run: eager, with the network compiled, or as one CUDA graph a step."""

import functools
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import product
from typing import Any

import torch
from torch import nn

from arcvae_cli.controllers import Controller
from arcvae_cli.data.corpus import Corpus
from arcvae_cli.distributed import WholeBatch
from arcvae_cli.errors import first_line
from arcvae_cli.machine import out_of_memory
from arcvae_cli.metrics import MetricAccumulator, MetricRows
from arcvae_cli.settings import Settings
from arcvae_cli.step import Step, mix, seed_step, trial

GROUPED = 50  # batches among which derivations of similar length are put together
TEXTS = {"eager": "eager steps", "compile": "compiled steps", "graph": "one CUDA graph a step"}


class Engine:
    """The steps of a run. `kind`: the engine that runs them; `reason`: why it is not the one asked for."""

    def __init__(self, settings: Settings, step: Step, corpus: Corpus, control: Controller, steps: int) -> None:
        self.settings, self.step, self.corpus, self.control = settings, step, corpus, control
        self.steps, self.size, self.ranks = steps, settings.train.batch_size, step.ranks
        self.rows = self.ranks.rows(self.size)  # of each batch
        self.gathered = 0  # steps of the epoch whose metrics are those of all ranks
        self.drawing = WholeBatch(self.ranks, self.size) if self.ranks.count > 1 else nullcontext()
        self.kind, self.reason, self.cuda = "eager", "", step.device.type == "cuda"
        self.order = torch.zeros(steps * self.size, dtype=torch.int64, device=step.device)
        self.indices = torch.zeros(self.rows.stop - self.rows.start, dtype=torch.int64, device=step.device)
        # what is stored of the examples of a batch, where the corpus does not fit on the device
        self.taken = corpus.take("train", self.indices) if corpus.streamed else None
        # an autoregressive decoder takes time for each rule: derivations of a batch are of similar length
        self.lengths = corpus.lengths() if step.model.autoregressive else None
        self.longest: int | None = None  # of the batch; None where a graph or a compiled step has one shape
        self.row = torch.zeros(1, dtype=torch.int64, device=step.device)
        # the last row is for trial steps
        mmd = settings.objective.mmd > 0.0
        self.metrics = MetricAccumulator(steps + 1, step.model.level_sizes, corpus.background, step.device, mmd)
        self._graphs: dict[Any, torch.cuda.CUDAGraph] = {}  # by `case`

    @property
    def case(self) -> tuple[bool, tuple[str, ...]]:
        """What one graph cannot change: the weights that a step moves, and the levels whose beta is 0."""
        return self.step.encoder_only, self.control.zero_levels

    def prepare(self, times: Iterable[float]) -> None:
        """Choose the engine by trial, eager where another fails. `times`: all that the schedule will be asked for."""
        compiled = self.settings.train.engine == "compile" and self.ranks.count == 1
        if self.settings.train.engine == "compile" and not compiled:
            self.reason = "several ranks are not compiled"  # torch 2.13 does not let a mode replace what it compiles
        if self.settings.train.engine == "graph" and not self.cuda:
            self.reason = f"CUDA graphs need a CUDA device, this is {self.step.device.type}"
        if not compiled and (self.settings.train.engine == "eager" or not self.cuda):
            return
        self.control.use_tensors()
        cases: dict[tuple[str, ...], float] = {}  # a time for each combination of levels whose beta is 0
        for time in times:
            self.control.at(time)
            cases.setdefault(self.control.zero_levels, time)
        parts = (True, False) if self.settings.train.encoder_steps else (False,)
        if compiled:
            # torch 2.13 loses what a compiled function writes into the state of a closed loop
            self.control.weigh = torch.compiler.disable(self.control.weigh)  # type: ignore[method-assign, no-untyped-call]
            # fallback_random: draws what eager draws
            self.step.forward = torch.compile(self.step.plain, dynamic=False, options={"fallback_random": True})
        with trial(self.step, self.control):
            try:
                modules = self.step.model.modules()
                graphs = self.cuda and not any(isinstance(part, nn.RNNBase) and part.dropout for part in modules)
                if not graphs and not compiled:
                    raise RuntimeError("it cannot seed the dropout between GRU layers, whose state is cuDNN's own")
                for encoder_only, time in product(parts, cases.values()):
                    self.step.encoder_only = encoder_only
                    self.control.at(time)
                    if graphs:
                        self._graphs[self.case] = record_graph(self.body, self.try_step)
                    else:
                        self.try_step()
                self.kind = "compile" if compiled else "graph"
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler, the compiler behind it or a driver may raise
                self.reason = f"{'compiling' if compiled else 'recording a CUDA graph'} failed: {first_line(error)}"
                self.step.forward = self.step.plain
                self._graphs.clear()

    def begin(self, epoch: int, index: int = 0) -> None:
        """Begin an epoch at step `index`. Its order depends on the seed and the epoch alone, on any device."""
        self.epoch, self.gathered = epoch, index
        generator = torch.Generator().manual_seed(mix(self.settings.train.seed, "order", epoch))
        order = torch.randperm(self.corpus.size("train"), generator=generator)[: len(self.order)]
        if self.lengths is not None:  # sorted among some batches, which then are shuffled
            batches: list[torch.Tensor] = []
            for part in torch.split(order, GROUPED * self.size):
                similar = part[self.lengths[part].argsort(stable=True)].view(-1, self.size)
                batches.append(similar[torch.randperm(len(similar), generator=generator)])
            order = torch.cat(batches).flatten()
        self.host_order = order
        self.order.copy_(self.host_order)
        self.row.fill_(index)

    def run(self, index: int) -> None:
        """The step `index` of the epoch, without a CPU-GPU sync."""
        seed_step(self.settings.train.seed, "step", self.epoch, index)
        own = slice(index * self.size + self.rows.start, index * self.size + self.rows.stop)
        self.indices.copy_(self.order[own])
        if self.taken is not None:
            self.corpus.gather(self.host_order[own], self.taken)
        if self.lengths is not None and self.kind == "eager":
            batch = self.host_order[index * self.size : (index + 1) * self.size]  # of all ranks
            self.longest = int(self.lengths[batch].max())
        graph = self._graphs.get(self.case)
        (self.body if graph is None else graph.replay)()

    def body(self) -> None:
        conditions = bool(self.step.model.attributes)
        with self.drawing:
            batch = self.corpus.batch("train", self.indices, self.corpus.augment, conditions, self.taken)
            batch = batch if self.longest is None else batch.cut(self.longest)
            terms, output = self.step.train(batch, self.control.weigh)
        self.metrics.add(self.row, terms, output, batch, self.step.norm)
        self.row.add_(1)

    def try_step(self) -> None:
        """A step whose metrics go into the spare row; so do those of the next one."""
        self.row.fill_(self.steps)
        self.body()
        self.row.fill_(self.steps)

    def read(self, steps: int) -> MetricRows:
        """The metrics of the first so many steps of the epoch, over all ranks: a CPU-GPU sync."""
        if steps > self.gathered and self.ranks.count > 1:
            self.metrics.gather(self.gathered, steps, self.ranks)
            self.gathered = steps
        return self.metrics.read(steps)

    def close(self) -> None:
        """End it: the other ranks may leave. Graphs go first, since they hold the communication of the ranks."""
        self._graphs.clear()
        self.ranks.leave()

    def fitting(self, size: int) -> int | None:
        """The largest of `size`, its half, quarter ... whose step fits into memory, in a run that has failed."""
        self._graphs.clear()
        self.step.forward = self.step.plain
        while size:
            for parameter in self.step.parameters:
                parameter.grad = None
            torch.cuda.empty_cache()  # nothing where CUDA is not in use
            self.indices, self.taken = self.order[:size], None if self.taken is None else self.taken[:size]
            try:
                self.try_step()
                return size
            except Exception as error:
                if not out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)  # which hold the tensors of the step
            size //= 2
        return None


# by device, one for all recordings: cuBLAS keeps tens of MiB for each
_side_stream = functools.cache(torch.cuda.Stream)
_failed: list[torch.cuda.CUDAGraph] = []  # PyTorch's allocator still refers to them


def record_graph(function: Callable[[], None], warm_up: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of `function` on the current CUDA device; RuntimeError where no graph can do it."""
    here, device = torch.cuda.current_stream(), torch.cuda.current_device()
    stream = _side_stream(device)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(3):  # in which libraries choose kernels and allocate workspaces
            warm_up()
    here.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # "thread_local": the threads of loggers may use the device meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            function()
    except Exception as error:
        _failed.append(graph)
        # PyTorch leaves its stream in place, and a generator that refuses to draw
        torch.cuda.set_stream(here)
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(torch.Generator(generator.device).set_state(generator.get_state()))
        raise error.__context__ or error from None  # the end of a recording only says that something failed
    return graph
