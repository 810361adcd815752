"""Real processes that are killed, stopped and starved: what they leave is whole, and the run goes on as if undisturbed.

`bench/soak.py` does the same at random moments, hundreds of times; here each moment is chosen, by a few lines that the
process runs before the command.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints, runs
from arcvae_cli.cli import app
from arcvae_cli.commands import evaluate
from arcvae_cli.presets import resolve

MAIN = "\nfrom arcvae_cli.cli import main\nmain()\n"
AT_STEP = """
import os, signal
from arcvae_cli.step import Step
real, done = Step.train, 0

def kill(number): os.kill(os.getpid(), number)

def train(step, batch, betas):
    global done
    done += 1
    if done == 20: {what}
    return real(step, batch, betas)

Step.train = train
"""
"""What happens to a process within its 20th step, of the second epoch."""

STRUCK = {
    "killed in a step": AT_STEP.format(what="kill(signal.SIGKILL)"),
    "killed while last.pth is written": """
import os, signal, torch
real, seen = torch.save, []

def save(values, file):
    seen.extend([file] if "last.pth" in file.name else [])
    if len(seen) < 3:
        return real(values, file)
    os.write(file.fileno(), bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = save
""",
    "asked to make room": AT_STEP.format(what="kill(signal.SIGUSR1)"),
    # the first checkpoint has no state of the optimiser yet, and is the smaller by two thirds
    "no space": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))",
}
"""By what strikes a process: the lines that see to it."""


def process(lines: str, *arguments: object, **streams: Any) -> subprocess.Popen[str]:
    """`arcvae train` after some lines of one's own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ARCVAE_", "WANDB_"))}
    return subprocess.Popen(
        [sys.executable, "-c", lines + MAIN, "train", *map(str, arguments)],
        env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **streams},
    )


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 epochs of 15 steps on grids of a square each, its beta set by a closed loop."""
    base = tmp_path_factory.mktemp("preset")
    random, grids = np.random.RandomState(0), np.zeros((98, 16, 16), np.uint8)
    for grid in grids:
        row, column = random.randint(0, 8, 2)
        grid[row : row + 6, column : column + 6] = random.randint(1, 10)
    np.savez(base / "squares.npz", train=grids[:90], val=grids[90:], test=grids[90:])
    tables: dict[str, Any] = {
        "data": {"path": str(base / "squares.npz")},
        "model": {"latent_dim": 3},
        "schedule": {"name": "controlvae", "target": 3.0, "start_beta": 0.1, "ki": -0.01},
        "train": {"epochs": 3, "batch_size": 6, "device": "cpu", "precision": "fp32", "save_minutes": 0.005},
        "log": {"every_n_steps": 5, "images_every": 0, "wandb": "off"},
    }
    (base / "mine.toml").write_text(tomli_w.dumps(tables))
    return base / "mine.toml"


@pytest.fixture(scope="module")
def here(preset: Path) -> Iterator[Callable[..., Result]]:
    """Runs `arcvae train` in this process, without pictures and without a verdict."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.render.plots._write", lambda figure, path: path.touch())
        patch.setattr(evaluate, "report", lambda *arguments: None)

        def run(*arguments: object) -> Result:
            result = CliRunner().invoke(app, ["train", *map(str, arguments)], env={"COLUMNS": "80"})
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            return result

        yield run


@pytest.fixture(scope="module")
def straight(here: Callable[..., Result], preset: Path) -> Path:
    """The run that nobody disturbs."""
    result = here("--preset", preset, "--runs-dir", preset.parent, "--run-name", "straight")
    assert result.exit_code == 0, result.stderr
    return preset.parent / "straight"


@pytest.fixture(scope="module")
def struck(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str, int]]:
    """By what struck it: a run's folder, what its process said, and its exit code. All side by side."""
    base = tmp_path_factory.mktemp("struck")
    processes = {
        name: process(lines, "--preset", preset, "--runs-dir", base, "--run-name", name.replace(" ", "-"))
        for name, lines in STRUCK.items()
    }
    try:
        return {
            name: (base / name.replace(" ", "-"), one.communicate(timeout=120)[1], one.returncode)
            for name, one in processes.items()
        }
    finally:
        for one in processes.values():
            one.kill()


def lines(run: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]


def is_whole(run: Path) -> None:
    for path in (run / "checkpoints").glob("[!.]*.pth"):
        checkpoints.read(path)
    assert json.loads((run / "status.json").read_text())["step"] >= 0
    assert resolve(str(run)).settings.train.epochs == 3
    assert not runs.held(run)


def ends_straight(run: Path, straight: Path, result: Result) -> None:
    assert result.exit_code == 0, result.stderr
    for name in ("last.pth", "vae_final.pth", "vae_best.pth"):
        one, other = (checkpoints.read(folder / "checkpoints" / name) for folder in (run, straight))
        assert one["step"] == other["step"]
        for key, tensor in other["model_state_dict"].items():
            assert torch.equal(one["model_state_dict"][key], tensor), (name, key)
    assert lines(run) == lines(straight)
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.parametrize("name", [name for name in STRUCK if name.startswith("killed")])
def test_a_killed_run_is_whole_and_goes_on_to_the_same_weights(
    name: str, struck: dict[str, tuple[Path, str, int]], straight: Path, here: Callable[..., Result]
) -> None:
    run, said, code = struck[name]
    assert code == -signal.SIGKILL, said
    is_whole(run)
    last, left = run / "checkpoints" / "last.pth", [path.name for path in run.rglob(".*.tmp")]
    assert (len(left) == 1 and left[0].startswith(".last.pth.")) if "written" in name else not left
    assert runs.describe(run)["state"] == "killed"
    assert 0 <= checkpoints.read(last)["step"] < (20 if "step" in name else 45)
    ends_straight(run, straight, here("--resume", run))


def test_a_run_that_was_asked_to_make_room_goes_on_by_the_line_that_began_it(
    struck: dict[str, tuple[Path, str, int]], straight: Path, here: Callable[..., Result], preset: Path
) -> None:
    run, said, code = struck["asked to make room"]
    assert code == 75, said
    is_whole(run)
    assert checkpoints.read(run / "checkpoints" / "last.pth")["step"] == 20, "the step was finished, and saved"
    line = ("--preset", preset, "--runs-dir", run.parent, "--run-name", run.name, "--resume", "auto")
    ends_straight(run, straight, here(*line))


def test_a_file_that_cannot_grow_leaves_the_checkpoint_before(
    struck: dict[str, tuple[Path, str, int]], straight: Path, here: Callable[..., Result]
) -> None:
    run, said, code = struck["no space"]
    assert code == 1, said
    is_whole(run)
    assert checkpoints.read(run / "checkpoints" / "last.pth")["step"] == 0
    what, fix = said.splitlines()[-2:]
    free = r"[\d.]+ (bytes|[KMGT]iB) free there\)"
    assert re.fullmatch(rf"error: {re.escape(str(run))}/checkpoints/last\.pth: could not be written \(.+; {free}", what)
    assert fix == f"  free some space, then resume with `arcvae train --resume {run}`"
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed" and "last.pth: could not be written" in status["reason"]
    assert not list(run.rglob(".*.tmp"))
    ends_straight(run, straight, here("--resume", run))


# --------------------------------------------------------------------------------------------------- a batch system


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_the_recipe_for_slurm_passes_signals_on_and_puts_the_job_back(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """What stands in the documentation, with a training and a batch system of two lines each."""
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    own = {
        "arcvae": 'trap "sleep 0.3; exit 75" USR1; trap "sleep 0.3; exit 143" TERM\n'
        f'echo "$@" > {tmp_path}/began\nfor i in {{1..600}}; do sleep 0.05; done',
        "scontrol": f'echo "$@" > {tmp_path}/requeued',
        "job": script.partition("\n")[2],
    }
    for name, text in own.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "SLURM_JOB_ID": "42", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen([tmp_path / "job"], env=environment)
    try:
        while not (tmp_path / "began").exists() or not (tmp_path / "began").read_text():
            time.sleep(0.01)
        time.sleep(0.1)  # until the shell is in its wait
        job.send_signal(number)
        assert job.wait(timeout=30) == code
    finally:
        job.kill()
    assert (tmp_path / "began").read_text() == "train --preset large --resume auto --run-name job42\n"
    assert (tmp_path / "requeued").exists() == (code == 75)
    if code == 75:
        assert (tmp_path / "requeued").read_text() == "requeue 42\n"
