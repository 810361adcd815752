from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from arcvae_cli import machine
from arcvae_cli.machine import choose_threads, cores, describe, peak_memory, quotas, use_cores

CPU = torch.device("cpu")


def control_groups(root: Path, own: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """What Linux shows of control groups: where they are mounted, and the file that names those of a process."""
    for name, text in limits.items():
        file = root / "mounted" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    (root / "own").write_text(f"{own}\n")
    return root / "mounted", root / "own"


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, [4.0, 2.0]),
        ("0::/not/seen/from/within", {"cpu.max": "50000 100000"}, [0.5]),
        ("0::/", {"cpu.max": "damaged"}, []),
        ("4:memory:/box", {"cpu.max": "50000 100000"}, []),
    ],
)
def test_quotas_are_read_as_linux_writes_them(
    tmp_path: Path, own: str, limits: dict[str, str], expected: list[float]
) -> None:
    assert list(quotas(*control_groups(tmp_path, own, limits))) == expected


@pytest.mark.parametrize(
    ("allowed", "quota", "expected"),
    [(8, "max", 8), (8, "150000", 2), (8, "50000", 1), (2, "400000", 2), (None, "", 6)],
)
def test_cores_are_limited_by_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int | None, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    if allowed is None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    assert cores(*control_groups(tmp_path, "0::/", {"cpu.max": f"{quota} 100000"})) == expected


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


def steps_that_take(one: float, two: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[], None], list[int]]:
    """A step of so many seconds with one and with two threads, by a clock that only these move; its calls."""
    now, calls = [0.0], []
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])

    def step() -> None:
        calls.append(torch.get_num_threads())
        now[0] += (one if calls[-1] == 1 else two) * (5.0 if len(calls) <= 2 else 1.0)  # the first ones warm up

    return step, calls


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("one", "two", "steps", "chosen", "rounds"),
    [
        (0.1, 0.06, 10_000, 2, 11),
        (0.1, 0.095, 10_000, 1, 11),  # not enough of a gain for twice the cores
        (0.1, 1.0, 10_000, 1, 3),  # others keep the cores busy: after some 2 seconds that is known
        (0.01, 0.006, 300, 2, 4),  # 2 % of the run
        (0.1, 0.06, 100, 1, 0),
    ],
)
def test_the_faster_number_of_threads_is_taken_by_trial(
    one: float, two: float, steps: int, chosen: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = steps_that_take(one, two, monkeypatch)
    note = choose_threads(step, steps)
    assert (torch.get_num_threads(), calls) == (chosen, [1, 2] * rounds)
    ms = f"{1e3 * one:.3g} ms a step with 1, {1e3 * two:.3g} ms with 2"
    assert note == (f"threads {chosen}, by trial: {ms}" if rounds else None)


@pytest.mark.usefixtures("two_threads")
def test_there_is_no_trial_with_one_core_or_a_number_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = steps_that_take(0.1, 0.06, monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads(step, 10_000) is None and torch.get_num_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    assert choose_threads(step, 10_000) is None and calls == []


def test_devices_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    assert describe(torch.device("cuda:1")) == "cuda:1 (Card 1)"
    assert describe(torch.device("mps")) == "mps"


def test_peak_memory_is_that_of_the_process_or_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    held = np.ones(100 << 20, np.uint8)
    assert held.nbytes < peak_memory(CPU) < 1 << 40
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 + (device.index or 0))
    assert peak_memory(torch.device("cuda:1")) == 8
