"""Work on a CUDA device recorded once and replayed as one graph; a seed gives the random numbers of plain calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

Out = TypeVar("Out")
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]

WARM_UPS = 3  # plain calls before a recording, in which libraries choose kernels and allocate workspaces

_failed: list[torch.cuda.CUDAGraph] = []  # PyTorch's allocator still refers to them, and can record no other


def possible(device: torch.device) -> bool:
    """Whether a device has graphs."""
    return device.type == "cuda"


def record(function: Callable[[], Out], warm_up: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, Out]:
    """A graph of `function` on the current CUDA device, after calls of `warm_up`, and what it returned.

    RuntimeError where it does what no graph can, such as reading a value back, and in every call after a failed one.
    """
    if _failed:
        raise RuntimeError("an earlier recording failed")
    here, device = torch.cuda.current_stream(), torch.cuda.current_device()
    stream = _side(device)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            warm_up()
    here.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # "thread_local": the threads of loggers may use the device meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = function()
    except Exception as error:
        _failed.append(graph)
        # PyTorch leaves its stream in place, and a generator that refuses to draw
        torch.cuda.set_stream(here)
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(torch.Generator(generator.device).set_state(generator.get_state()))
        raise error.__context__ or error from None  # the end of a recording only says that something failed
    return graph, out


@functools.cache
def _side(device: int) -> torch.cuda.Stream:
    # one for all recordings: cuBLAS keeps tens of MiB for each stream
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Graphed(Generic[Out]):
    """A function of tensors without gradients, on CUDA as one graph for each combination of shapes and types."""

    def __init__(self, function: Callable[..., Out], device: torch.device) -> None:
        self.function = function
        # why calls are plain, None while they are graphs
        self.reason = None if possible(device) else f"CUDA graphs need a CUDA device, this is {device.type}"
        self._graphs: dict[Shapes, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Out]] = {}

    @torch.inference_mode()
    def __call__(self, *tensors: Tensor) -> Out:
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
                self.reason = f"no CUDA graph could be recorded: {first_line(error)}"
                return self.function(*tensors)
            finally:
                torch.cuda.set_rng_state(state)
            self._graphs[key] = graph, held, out
        graph, held, out = self._graphs[key]
        for place, tensor in zip(held, tensors, strict=True):
            place.copy_(tensor)
        graph.replay()
        made: Any = out
        return cast("Out", made.clone() if isinstance(made, Tensor) else tuple(one.clone() for one in made))


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
