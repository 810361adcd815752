from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from arcvae_cli import machine
from arcvae_cli.machine import choose_threads, cores, describe, out_of_memory, peak_memory, use_cores

CPU = torch.device("cpu")


@pytest.mark.skipif(machine.sys.platform != "linux", reason="quotas are Linux's")
def test_cores_are_limited_by_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    assert cores() == 8
    for quota, expected in (("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 8)):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        assert cores() == expected


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads of PyTorch and no number of them in the environment."""
    before = torch.get_num_threads()
    for name in machine.THREADS:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_are_no_more_than_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, given, expected in ((3, "", 2), (1, "2", 2), (1, "", 1)):
        monkeypatch.setattr(machine, "cores", lambda available=available: available)
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        use_cores()
        assert torch.get_num_threads() == expected
    assert describe(CPU) == "cpu (1 thread)"


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("one", "two", "steps", "chosen", "rounds"),
    [
        (0.1, 0.06, 10_000, 2, 11),
        (0.1, 0.095, 10_000, 1, 11),  # not enough of a gain for twice the cores
        (0.1, 1.0, 10_000, 1, 3),  # others keep the cores busy: after some 2 seconds that is known
        (0.1, 0.06, 100, 1, 0),
    ],
)
def test_the_faster_number_of_threads_is_taken_by_trial(
    one: float, two: float, steps: int, chosen: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = [0.0], list[int]()
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])  # a clock that only these steps move

    def step() -> None:
        calls.append(torch.get_num_threads())
        now[0] += (one if calls[-1] == 1 else two) * (5.0 if len(calls) <= 2 else 1.0)  # the first ones warm up

    note = choose_threads(step, steps)
    assert (torch.get_num_threads(), calls) == (chosen, [1, 2] * rounds)
    assert (note is not None) == bool(rounds)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(step, 10_000) is None and len(calls) == 2 * rounds, "no trial of what the environment sets"


def test_peak_memory_and_how_it_runs_out() -> None:
    held = np.ones(100 << 20, np.uint8)
    assert held.nbytes < peak_memory(CPU) < 1 << 40
    texts = ("[enforce fail] DefaultCPUAllocator: can't allocate memory", "could not create a primitive")
    errors = [torch.OutOfMemoryError("CUDA"), MemoryError("Unable to allocate"), *map(RuntimeError, texts)]
    assert all(map(out_of_memory, errors)) and not out_of_memory(RuntimeError("broken"))
