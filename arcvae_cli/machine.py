"""The machine: usable cores, threads, peak memory, out-of-memory errors; PyTorch is imported within functions."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TRIAL_STEPS = 200  # a shorter run is over before a trial pays
TRIAL_SHARE, TRIAL_SECONDS, TRIAL_ROUNDS = 0.02, 2.0, 10  # what a trial may take: of the run, at most, after warming up
GAIN = 0.9  # more threads are taken if they need less than this share of the time, since the load may grow


def cores(control: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> int:
    """How many cores this process may use: its CPU affinity, within the quota (rounded up) of its control group."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        allowed = os.cpu_count() or 1
    return min(allowed, math.ceil(min(quotas(control, groups), default=allowed)))


def quotas(control: Path, groups: Path) -> Iterator[float]:
    """The CPU limits, in cores, of this process's control group and its parents."""
    try:
        own = next(line for line in groups.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    group = Path(own[3:].lstrip("/"))
    for folder in (control / place for place in (group, *group.parents)):
        with suppress(OSError, ValueError):  # in a container the path is often the host's, which does not exist here
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                yield int(quota) / int(period)


def threads_given() -> bool:
    """Whether the environment sets the number of threads."""
    return any(os.environ.get(name) for name in THREADS)


def use_cores() -> None:
    """Set PyTorch's threads to the usable cores, unless the environment sets them: PyTorch ignores quotas."""
    import torch

    if not threads_given():
        torch.set_num_threads(min(torch.get_num_threads(), cores()))


def choose_threads(step: Callable[[], object], steps: int) -> str | None:
    """Set PyTorch's threads for a run of so many steps: one, or as many as now where those take a `step` faster.

    Returns a note about the trial, None without one: a single thread, a number set by the environment, a short run.
    """
    import torch

    every = torch.get_num_threads()
    if every == 1 or threads_given():
        return None
    torch.set_num_threads(1)  # never far behind, and never waits for a core that others keep busy
    if steps < TRIAL_STEPS:
        return None
    seconds: dict[int, list[float]] = {1: [], every: []}
    spent, limit = 0.0, TRIAL_SECONDS
    while spent < limit and len(seconds[every]) <= TRIAL_ROUNDS:
        for count, taken in seconds.items():
            torch.set_num_threads(count)
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
            if len(taken) > 1:  # the first one makes kernels ready
                spent += taken[-1]
                limit = min(limit, TRIAL_SHARE * steps * min(map(min, seconds.values())))
    one, all_of_them = (sum(taken[1:]) / len(taken[1:]) for taken in seconds.values())
    torch.set_num_threads(every if all_of_them < GAIN * one else 1)
    chosen = torch.get_num_threads()
    return f"threads {chosen}, by trial: {1e3 * one:.3g} ms a step with 1, {1e3 * all_of_them:.3g} ms with {every}"


def describe(device: torch.device) -> str:
    """A device in words: `cpu (2 threads)`, `cuda (NVIDIA H200)`, `mps`."""
    import torch

    if device.type == "cpu":
        count = torch.get_num_threads()
        return f"cpu ({count} thread{'' if count == 1 else 's'})"
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on the device or on the host."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    by_torch = any(s in text for s in ("DefaultCPUAllocator", "not enough memory", "MPS backend out of memory"))
    by_onednn = "could not create a primitive" in text and "descriptor" not in text
    return isinstance(error, RuntimeError) and (by_torch or by_onednn)


def peak_memory(device: torch.device) -> int:
    """Peak bytes of tensors on a CUDA device, elsewhere of this process's resident memory (0 on Windows)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:  # on Linux `getrusage` may return the peak of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
