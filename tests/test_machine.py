from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from arcvae_cli import machine
from arcvae_cli.machine import cores, describe, peak_memory, quotas, use_cores

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
        ("0::/", {}, []),
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/", {"cpu.max": "150000 100000"}, [1.5]),
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
    ("allowed", "quota", "expected"), [(8, "max", 8), (8, "150000", 2), (8, "50000", 1), (2, "400000", 2)]
)
def test_cores_are_those_that_may_be_kept_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    assert cores(*control_groups(tmp_path, "0::/", {"cpu.max": f"{quota} 100000"})) == expected


def test_without_affinity_and_quotas_all_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores(tmp_path, tmp_path / "none") == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores(tmp_path, tmp_path / "none") == 1


def test_threads_are_no_more_than_the_cores_unless_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    for name in machine.THREADS:
        monkeypatch.delenv(name, raising=False)
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(machine, "cores", lambda: 3)
        use_cores()
        assert torch.get_num_threads() == 2, "what PyTorch chose, one for each physical core, is not raised"
        monkeypatch.setattr(machine, "cores", lambda: 1)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        use_cores()
        assert torch.get_num_threads() == 2
        assert describe(CPU) == "cpu (2 threads)"
        monkeypatch.delenv("OMP_NUM_THREADS")
        use_cores()
        assert torch.get_num_threads() == 1
        assert describe(CPU) == "cpu (1 thread)"
    finally:
        torch.set_num_threads(before)


def test_devices_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    assert describe(torch.device("cuda:1")) == "cuda:1 (Card 1)"
    assert describe(torch.device("mps")) == "mps"


def test_peak_memory_is_that_of_the_process_or_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "from arcvae_cli.machine import peak_resident\n"
        "print(peak_resident())\n"
        "held = b'1' * (64 << 20)\n"
        "del held\n"
        "print(peak_resident())\n"
    )
    held = np.ones(100 << 20, np.uint8)  # a process started from this one has none of it
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 4 << 20 < before < held.nbytes
    assert 60 << 20 < after - before < 70 << 20
    assert held.nbytes < peak_memory(CPU) < 1 << 40
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 + (device.index or 0))
    assert peak_memory(torch.device("cuda:1")) == 8


def test_a_crowded_machine_gets_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.46, 1.0, 1.0))
    said = "load 3.5 on 2 cores: one thread (OMP_NUM_THREADS=1) may be faster"
    assert machine.crowded(torch.device("cpu")) == said
    assert machine.crowded(torch.device("cuda")) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert machine.crowded(torch.device("cpu")) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.4, 1.0, 1.0))
    assert machine.crowded(torch.device("cpu")) is None
