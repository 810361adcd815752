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

TRAIN = """
import json, pathlib, signal, sys
run = pathlib.Path(sys.argv[1])
run.mkdir(exist_ok=True)

def leave(state, code):
    with (run.parent / "states").open("a") as states:
        states.write(f"{run.name[:3]} {state}\\n")
    (run / "status.json").write_text(json.dumps({"state": state, "judged": code == 0}))
    sys.exit(code)

signal.signal(signal.SIGUSR1, lambda *_: leave("interrupted", 75))
(run / "begun").touch()
while run.name.startswith("001") and not (run / "status.json").exists():
    signal.pause()
elbo = dict.fromkeys(("elbo_nats", "kl_nats", "reconstruction_nats"), 1.0)
(run / "metrics.json").write_text(json.dumps({"elbo": elbo, "levels": {}}))
leave("finished", 0)
"""
WORKER = """
import os, sys
from pathlib import Path
from arcvae_cli import sweeps
from arcvae_cli.commands.sweep import run_worker
from arcvae_cli.console import Console
from arcvae_cli.errors import Interrupted

folder = Path(sys.argv[1])
sweeps.train_command = lambda folder, plan, run, threads: [
    sys.executable, "-S", str(folder.parent / "train.py"), str(folder / run.name)
]
(folder / "job").write_text(str(os.getppid()))
try:
    run_worker(folder, sweeps.open_folder(folder, None), Console(quiet=True))
except Interrupted as error:
    sys.exit(error.exit_code)
"""


def test_a_job_is_requeued_once_its_run_is_saved(
    arcvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []

    class Local(submitit.LocalExecutor):
        def submit(self, *given: Any) -> Any:
            jobs.append(super().submit(*given))
            return jobs[-1]

    class Worker(slurm.Worker):
        def __init__(self, command: list[str]) -> None:
            super().__init__([sys.executable, str(tmp_path / "worker.py"), command[-1]])

    monkeypatch.setattr(submitit, "SlurmExecutor", Local)
    monkeypatch.setattr(slurm, "Worker", lambda command: Worker(command))
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "worker.py").write_text(WORKER)
    study = tmp_path / "study"
    asked = ["--preset", "quickstart", "--vary", "schedule.max_beta=0.1,0.2", "--study", study]
    found = arcvae("sweep", *asked, "--slurm", "--jobs", "1", "--slurm-option", "time=10")
    assert found.exit_code == 0, found.stderr

    until(lambda: any(study.glob("001*/begun")))
    os.kill(int((study / "job").read_text()), signal.SIGUSR1)  # the job alone: it passes the signal on
    until(lambda: jobs[0].done())
    assert jobs[0].result() is None
    assert (study / "states").read_text().split("\n")[:-1] == ["001 interrupted", "001 finished", "002 finished"]


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
