"""The machine: usable cores, threads, peak memory, out-of-memory errors; PyTorch is imported within functions."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


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


def use_cores() -> None:
    """Set PyTorch's threads to the usable cores, unless the environment sets them: PyTorch ignores quotas."""
    import torch

    if not any(os.environ.get(name) for name in THREADS):
        torch.set_num_threads(min(torch.get_num_threads(), cores()))


def describe(device: torch.device) -> str:
    """A device in words: `cpu (2 threads)`, `cuda (NVIDIA H200)`, `mps`."""
    import torch

    if device.type == "cpu":
        count = torch.get_num_threads()
        return f"cpu ({count} thread{'' if count == 1 else 's'})"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def crowded(device: torch.device) -> str | None:
    """A warning where other processes use the cores: OpenMP threads that wait for each other are slower than one."""
    import torch

    if device.type != "cpu" or torch.get_num_threads() == 1 or not hasattr(os, "getloadavg"):
        return None
    load, available = os.getloadavg()[0], cores()
    text = f"load {load:.1f} on {available} cores: one thread (OMP_NUM_THREADS=1) may be faster"
    return text if load >= available else None


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
    """Peak bytes of tensors on a CUDA device, elsewhere of this process's resident memory."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def peak_resident() -> int:
    """The most bytes of physical memory that this process had at once; 0 where the system does not say (Windows)."""
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
