"""Work on a CUDA device recorded once and replayed as one graph: a launch in place of hundreds.

What is recorded reads and writes memory that stays where it is, and asks the device for nothing. Random numbers come
from the default generator: after the same seed a replay draws what the plain call draws.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Out = TypeVar("Out")
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]

WARM_UPS = 3
"""Plain calls before a recording: libraries choose their kernels and take their workspace there."""


def possible(device: torch.device) -> bool:
    """Whether a device has graphs."""
    return device.type == "cuda"


def free(device: torch.device) -> None:
    """Give what the allocator keeps for later back to the device, where a device has such an allocator."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def record(function: Callable[[], Out], warm_up: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, Out]:
    """A graph of what `function` does on the present CUDA device, and what it returned, in memory of the graph.

    `warm_up` is called before, a few times, on the stream of the recording; `function` itself then does nothing but be
    recorded. Raises RuntimeError where it does what no graph can, such as reading a value back, and ever after: of a
    recording that failed PyTorch's allocator believes that it goes on.
    """
    if _failed:
        raise RuntimeError("an earlier recording failed")
    here = torch.cuda.current_stream()
    stream = _side(torch.cuda.current_device())
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            warm_up()
    here.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # other threads, those of loggers, may go on meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = function()
    except Exception as error:
        _failed.append(graph)
        _leave(here)
        raise error.__context__ or error from None  # the end of a recording says no more than that something failed
    return graph, out


@functools.cache
def _side(device: int) -> torch.cuda.Stream:
    """The stream of all recordings: cuBLAS keeps tens of MiB for each stream that it has worked on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs that were never finished, which the allocator still asks."""


def _leave(stream: torch.cuda.Stream) -> None:
    """Undo what PyTorch leaves behind where a recording fails: its stream, and a generator that may not draw."""
    torch.cuda.set_stream(stream)
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    fresh = torch.Generator(generator.device)
    fresh.set_state(generator.get_state())
    generator.graphsafe_set_state(fresh)


class Graphed(Generic[Out]):
    """A function of tensors, without gradients, that is one graph launch on CUDA and a plain call elsewhere.

    There is one graph for the shapes and types of the arguments, recorded when they are met for the first time, so
    callers pad what is left over to a size already met. What is returned (a tensor, or tensors in tuples and
    dictionaries) is a copy. `reason`: why calls are plain, None while they are graphs.
    """

    def __init__(self, function: Callable[..., Out], device: torch.device) -> None:
        self.function = function
        self.reason = None if possible(device) else f"graphs are of CUDA, this is {device.type}"
        self._graphs: dict[Shapes, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Out]] = {}

    @torch.inference_mode()
    def __call__(self, *tensors: Tensor) -> Out:
        """What the function returns for these tensors."""
        if self.reason is not None:
            return self.function(*tensors)
        key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key not in self._graphs:
            held = tuple(tensor.clone() for tensor in tensors)
            state = torch.cuda.get_rng_state()
            try:
                graph, out = record(lambda: self.function(*held), lambda: self.function(*held))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.reason = f"no graph could be recorded: {first_line(error)}"
                return self.function(*tensors)
            finally:
                torch.cuda.set_rng_state(state)
            self._graphs[key] = graph, held, out
        graph, held, out = self._graphs[key]
        for place, tensor in zip(held, tensors, strict=True):
            place.copy_(tensor)
        graph.replay()
        copied: Out = pytree.tree_map_only(Tensor, Tensor.clone, out)
        return copied


def first_line(error: BaseException) -> str:
    """What an error says, without what follows its first line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
