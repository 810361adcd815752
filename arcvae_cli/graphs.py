"""Work on a CUDA device recorded once and replayed as one graph; a seed gives the random numbers of plain calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

Out = TypeVar("Out")

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


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
