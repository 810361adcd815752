"""The machine: how many cores this process may keep busy, and how much memory it took.

PyTorch is imported within the functions that are given a device, and only by them.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a person says how many threads to compute with."""


def cores(control: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> int:
    """How many cores this process may keep busy: those it may run on, within the quota of its control group.

    A quota of 1.5 cores counts as 2. The two paths are where Linux tells of quotas; elsewhere there are none.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        allowed = os.cpu_count() or 1
    limit = min(quotas(control, groups), default=math.inf)
    return allowed if limit >= allowed else math.ceil(limit)


def quotas(control: Path, groups: Path) -> Iterator[float]:
    """The limits, in cores, of this process's control group and of those above it, in version 2 and in version 1."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, own = line.split(":", 2)  # "0::/own/path" in version 2, "4:cpu,cpuacct:/own/path" in version 1
        if names and "cpu" not in names.split(","):
            continue
        mounts = (control, control / "unified") if not names else (control / "cpu", control / names)
        group = Path(own.lstrip("/"))
        for folder in (mount / place for mount in mounts for place in (group, *group.parents)):
            try:
                if names:
                    words = [(folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
                else:
                    words = (folder / "cpu.max").read_text().split()
                quota, period = (math.inf if word == "max" else float(word) for word in words)
            except (OSError, ValueError):
                continue  # within a container the path is often that of the host, and nothing stands there
            if quota > 0 and period > 0:  # -1: none
                yield quota / period


def use_cores() -> None:
    """Let PyTorch compute with as many threads as there are cores for it, or as the environment says.

    By itself it takes a thread for each physical core that the process may run on, and knows of no quota: threads that
    wait for each other while the quota is used up make every step wait.
    """
    import torch

    if not any(os.environ.get(name) for name in THREADS):
        torch.set_num_threads(min(torch.get_num_threads(), cores()))


def describe(device: torch.device) -> str:
    """`cpu (2 threads)`, `cuda (NVIDIA H200)`, `mps`: a device and what it computes with."""
    import torch

    if device.type == "cpu":
        count = torch.get_num_threads()
        return f"cpu ({count} thread{'' if count == 1 else 's'})"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def crowded(device: torch.device) -> str | None:
    """What to say where other work keeps the cores busy: threads that wait for each other then lose more than they win.

    The number of threads is not chosen by it, since a seed would then not give the same numbers twice.
    """
    import torch

    if device.type != "cpu" or torch.get_num_threads() == 1 or not hasattr(os, "getloadavg"):
        return None
    load, there = os.getloadavg()[0], cores()
    if load < there:
        return None
    return f"other work keeps {load:.1f} of {there} cores busy: one thread, OMP_NUM_THREADS=1, may be faster"


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: that of a device, for which PyTorch has a class, or the host's."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    said = any(words in text for words in ("DefaultCPUAllocator", "not enough memory", "MPS backend out of memory"))
    failed = "could not create a primitive" in text and "descriptor" not in text  # oneDNN's own memory
    return isinstance(error, RuntimeError) and (said or failed)


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took on a CUDA device, elsewhere that this process had in memory, since it began."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def peak_resident() -> int:
    """The most bytes of physical memory that this process had at once."""
    if sys.platform == "win32":
        return _peak_working_set()
    try:  # what `getrusage` tells on Linux may be the peak of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if sys.platform == "win32":

    def _peak_working_set() -> int:
        """What Windows calls it; the structure is PROCESS_MEMORY_COUNTERS."""
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):
            _fields_ = (
                ("cb", wintypes.DWORD),
                ("PageFaultCount", wintypes.DWORD),
                *((name, ctypes.c_size_t) for name in ("PeakWorkingSetSize", "WorkingSetSize", "q1", "q2", "q3", "q4")),
                *((name, ctypes.c_size_t) for name in ("PagefileUsage", "PeakPagefileUsage")),
            )

        kernel = ctypes.WinDLL("kernel32")
        kernel.GetCurrentProcess.restype = wintypes.HANDLE
        kernel.K32GetProcessMemoryInfo.argtypes = (wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD)
        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
        return int(counters.PeakWorkingSetSize)
