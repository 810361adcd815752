"""The machine: usable cores, threads, peak memory, out-of-memory errors; PyTorch is imported within functions."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, as it sees itself
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TRIAL_ROUNDS, TRIAL_SECONDS, TRIAL_STEPS = 10, 2.0, 500  # of a trial at most; a shorter run is over before it pays
GAIN = 0.9  # more threads are taken if they need less than this share of the time, since the load may grow


def cores() -> int:
    """How many cores this process may use: its CPU affinity, within the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except OSError:
        return allowed
    return allowed if quota == "max" else min(allowed, math.ceil(int(quota) / int(period)))


def threads_given() -> bool:
    """Whether the environment sets the number of threads."""
    return any(map(os.environ.get, THREADS))


def use_cores() -> None:
    """Set PyTorch's threads to the usable cores, unless the environment sets them: PyTorch ignores quotas."""
    import torch

    if not threads_given():
        torch.set_num_threads(min(torch.get_num_threads(), cores()))


def choose_threads(step: Callable[[], object], steps: int) -> str | None:
    """Set PyTorch's threads for so many steps: one, or as many as now if a trial `step` is faster. A note about it."""
    import torch

    every = torch.get_num_threads()
    if every == 1 or threads_given():
        return None
    torch.set_num_threads(1)  # never far behind, and never waits for a core that others keep busy
    if steps < TRIAL_STEPS:
        return None
    seconds: dict[int, list[float]] = {1: [], every: []}
    while len(seconds[every]) <= TRIAL_ROUNDS and sum(seconds[1][1:] + seconds[every][1:]) < TRIAL_SECONDS:
        for count, taken in seconds.items():
            torch.set_num_threads(count)
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
    # the first step of each makes kernels ready
    one, several = (1e3 * sum(taken[1:]) / len(taken[1:]) for taken in seconds.values())
    chosen = every if several < GAIN * one else 1
    torch.set_num_threads(chosen)
    return f"threads {chosen}, by trial: {one:.3g} ms a step with 1, {several:.3g} ms with {every}"


def describe(device: torch.device) -> str:
    """A device in words: `cpu (2 threads)`, `cuda (NVIDIA H200)`, `mps`."""
    import torch

    if device.type == "cpu":
        count = torch.get_num_threads()
        return f"cpu ({count} thread{'' if count == 1 else 's'})"
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on the device or on the host."""
    text = str(error)
    parts = ("DefaultCPUAllocator", "not enough memory", "MPS backend out of memory")
    by_onednn = "could not create a primitive" in text and "descriptor" not in text
    by_torch = type(error).__name__ == "OutOfMemoryError" or by_onednn or any(part in text for part in parts)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and by_torch)


def peak_memory(device: torch.device) -> int:
    """Peak bytes of tensors on a CUDA device, elsewhere of this process's resident memory (0 on Windows)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # where `getrusage` may return the peak of the parent process
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
