"""Workers of a sweep as jobs, by submitit's local executor; `make slurm` has a real Slurm."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from arcvae_cli.commands import slurm
from arcvae_cli.errors import InputError

submitit = pytest.importorskip("submitit")
TRAIN = """
import json, pathlib, signal, sys, time
from arcvae_cli import folders
run = pathlib.Path(sys.argv[1])
run.mkdir(exist_ok=True)
with (run / "starts").open("a") as starts:
    starts.write("start\\n")
def save(*_):
    (run / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
first = run.name.startswith("001") and not (run / "saved").exists()
(run / "ready").touch()
time.sleep(60 if first else 0)
folders.write_json(run / "status.json", {**folders.STATUS, "state": "finished", "judged": True})
"""
WORKER = """
import pathlib, sys
from arcvae_cli import sweeps
from arcvae_cli.cli import main
from arcvae_cli.commands import sweep
def command(folder, plan, run, threads):
    return [sys.executable, str(folder.parent / "train.py"), str(folder / run.name)]
sweep.run_worker.__kwdefaults__ = None
sweeps.train_command = command
sweep.run_worker.__defaults__ = (*sweep.run_worker.__defaults__[:-1], command)
sys.argv = ["arcvae", "sweep", "--study", sys.argv[1]]
main()
"""
