"""`arcvae sweep --slurm` with submitit's local executor, on small scripts for runs; `make slurm` has a real Slurm."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import submitit
from typer.testing import Result

from arcvae_cli.commands import slurm

WORKER = """
import os, pathlib, signal, sys, time
said = pathlib.Path(sys.argv[1])

def leave(state, code):
    with said.open("a") as states:
        states.write(state + "\\n")
    sys.exit(code)

if said.exists():
    leave("finished", 0)
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(0.5) or leave("interrupted", 75))
said.with_name("job").write_text(str(os.getppid()))
said.touch()
while True:
    signal.pause()
"""


def test_a_job_is_requeued_once_its_worker_has_saved(
    arcvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []

    class Local(submitit.LocalExecutor):
        def submit(self, worker: slurm.Worker) -> Any:
            assert worker.command[1:] == ["-m", "arcvae_cli", "sweep", "--study", str(tmp_path / "study")]
            jobs.append(super().submit(slurm.Worker([sys.executable, "-S", "-c", WORKER, str(tmp_path / "said")])))
            return jobs[-1]

    monkeypatch.setattr(submitit, "SlurmExecutor", Local)
    asked = ["--preset", "quickstart", "--vary", "schedule.max_beta=0.1,0.2", "--study", tmp_path / "study"]
    found = arcvae("sweep", *asked, "--slurm", "--jobs", "1", "--slurm-option", "time=10")
    assert found.exit_code == 0, found.stderr
    until((tmp_path / "said").exists)
    os.kill(int((tmp_path / "job").read_text()), signal.SIGUSR1)  # the job alone: it passes the signal on
    until(jobs[0].done)
    assert jobs[0].result() is None
    assert (tmp_path / "said").read_text() == "interrupted\nfinished\n"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_without_slurm_there_is_one_clear_line(
    arcvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = ["--preset", "quickstart", "--vary", "schedule.max_beta=0.1,0.2", "--study", tmp_path / "study"]
    found = arcvae("sweep", *asked, "--slurm")
    assert (found.exit_code, found.stdout) == (2, "")
    assert "--slurm: Could not detect" in found.stderr
    assert "--slurm-option: needs --slurm" in arcvae("sweep", *asked, "--slurm-option", "time=1").stderr
