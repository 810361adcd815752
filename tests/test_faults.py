"""Runs that are killed, stopped and starved: what they leave is whole, and resuming ends bit for bit as if undisturbed.

Three families of models in this process, and real processes for what only the system does. `bench/soak.py` does the
same at random moments, hundreds of times.
"""

from __future__ import annotations

import gc
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
from arcvae_cli.records import Recorder
from arcvae_cli.step import Step

STEPS = 4  # an epoch
FAMILIES: dict[str, dict[str, Any]] = {
    "grid": {
        "model": {"latent_dim": 3},
        "schedule": {"name": "controlvae", "target": 3.0, "start_beta": 0.1, "ki": -0.01},
        "train": {"batch_size": 6},
    },
    "hierarchical": {
        "model": {"name": "hierarchical", "global_dim": 2, "local_channels": 1, "local_size": 4},
        "schedule": {"name": "hierarchical"},
        "train": {"batch_size": 6, "lr_schedule": "plateau"},
    },
    "grammar": {
        "data": {"name": "equations", "size": 200, "max_rules": 9},
        "model": {"name": "grammar", "latent_dim": 3, "encoder_hidden": 8, "encoder_conv_layers": 1}
        | {"encoder_kernel": 3, "decoder_hidden": 8, "decoder_layers": 2, "decoder_dropout": 0.2},
        "schedule": {"name": "cyclical", "cycle_length": 2, "max_beta": 0.5, "per": "step"},
        "train": {"batch_size": 40},
    },
}
DOCUMENT = {"verdict": {"ok": True, "findings": [], "summary": ""}}


class Killed(BaseException):
    """Ends a run wherever it is."""


@pytest.fixture(scope="module")
def presets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family, a run of 3 epochs of 4 steps."""
    base = tmp_path_factory.mktemp("presets")
    random, grids = np.random.RandomState(0), np.zeros((34, 16, 16), np.uint8)
    for grid in grids:
        row, column = random.randint(0, 8, 2)
        grid[row : row + 6, column : column + 6] = random.randint(1, 10)
    np.savez(base / "squares.npz", train=grids[:26], val=grids[26:], test=grids[26:])
    common = {"epochs": 3, "device": "cpu", "precision": "fp32"}
    for name, tables in FAMILIES.items():
        table = {"data": {"path": str(base / "squares.npz")}, **tables, "train": {**common, **tables["train"]}}
        table["log"] = {"every_n_steps": 2, "images_every": 0, "wandb": "off"}
        (base / f"{name}.toml").write_text(tomli_w.dumps(table))
    return {name: base / f"{name}.toml" for name in FAMILIES}


@pytest.fixture(scope="module")
def here(shared_cache: Path) -> Iterator[Callable[..., Result]]:
    """Runs `arcvae train` in this process, without pictures and without a verdict."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.recorders.images.ImageRecorder", lambda *arguments: Recorder())
        patch.setattr(evaluate, "report", lambda *arguments: DOCUMENT)
        patch.setattr(os, "fsync", lambda file: None)
        patch.setenv("ARCVAE_CACHE_DIR", str(shared_cache))

        def run(*arguments: object) -> Result:
            result = CliRunner().invoke(app, ["train", *map(str, arguments)], env={"COLUMNS": "80"})
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            return result

        yield run


@pytest.fixture(scope="module")
def straight(here: Callable[..., Result], presets: dict[str, Path]) -> dict[str, Path]:
    """By family, the run that nobody disturbs."""
    for name, preset in presets.items():
        result = here("--preset", preset, "--runs-dir", preset.parent, "--run-name", name)
        assert result.exit_code == 0, result.stderr
    return {name: preset.parent / name for name, preset in presets.items()}


def lines(run: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]


def is_whole(run: Path) -> None:
    for path in (run / "checkpoints").glob("[!.]*.pth"):
        checkpoints.read(path)
    assert runs.read_status(run) is not None and resolve(str(run)).settings.train.epochs == 3
    assert not runs.held(run)


def ends_straight(run: Path, straight: Path, result: Result) -> None:
    assert result.exit_code == 0, result.stderr
    for name in ("last.pth", "vae_final.pth", "vae_best.pth"):
        one, other = (checkpoints.read(folder / "checkpoints" / name) for folder in (run, straight))
        assert one["step"] == other["step"]
        for key in ("model_state_dict", "optimizer_state_dict", "schedule_state", "scheduler_state_dict"):
            assert checkpoints.digest({"": one[key]}) == checkpoints.digest({"": other[key]}), (name, key)
    assert lines(run) == lines(straight)
    assert not list(run.rglob(".*.tmp"))


def in_step(number: int, act: Callable[[], None]) -> Callable[..., Any]:
    """`Step.train` that acts in the step of this number."""
    real, done = Step.train, 0

    def train(step: Step, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == number:
            act()
        return real(step, *arguments)

    return train


def kill() -> None:
    raise Killed


MOMENTS = ("in a step", "in a save", "SIGTERM", "two epochs later")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_ends_with_the_weights_of_the_undisturbed_run(
    family: str,
    moment: str,
    here: Callable[..., Result],
    presets: dict[str, Path],
    straight: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, saves = torch.save, 0

    def save(values: Any, file: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 4:  # the first epoch is saved, and copied
            file.write(bytes(1000))
            raise Killed
        real(values, file)

    start = ("--preset", presets[family], "--runs-dir", tmp_path, "--run-name", "one")
    with monkeypatch.context() as patch:
        if moment == "in a save":
            patch.setattr(torch, "save", save)
        elif moment == "SIGTERM":
            patch.setattr(Step, "train", in_step(STEPS + 2, lambda: signal.raise_signal(signal.SIGTERM)))
        else:
            patch.setattr(Step, "train", in_step(2 * STEPS + 3 if moment == "two epochs later" else 2, kill))
        try:
            assert here(*start).exit_code == 143 and moment == "SIGTERM"
        except Killed:
            assert moment != "SIGTERM"
    gc.collect()  # the lock of what was killed in this process
    is_whole(tmp_path / "one")
    step = checkpoints.read(tmp_path / "one" / "checkpoints" / "last.pth")["step"]
    assert step == {"SIGTERM": STEPS + 2, "in a step": 0, "two epochs later": 2 * STEPS}.get(moment, step)
    resume = (*start, "--resume", "auto") if moment == "SIGTERM" else ("--resume", tmp_path / "one")
    ends_straight(tmp_path / "one", straight[family], here(*resume))


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGUSR1, 75, "SIGUSR1"), (signal.SIGHUP, 129, "a terminal that was")],
)
def test_a_signal_ends_a_run_with_its_work_saved(
    number: int,
    code: int,
    name: str,
    here: Callable[..., Result],
    presets: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Step, "train", in_step(2, lambda: signal.raise_signal(number)))
    result = here("--preset", presets["grammar"], "--runs-dir", tmp_path, "--run-name", "one")
    run = tmp_path / "one"
    assert (result.exit_code, result.stdout) == (code, "")
    said = result.stderr.splitlines()[-2:]
    assert said[0].startswith(f"stopped by {name}") and f"in epoch 1, after step 2 of {STEPS}; saved in" in said[0]
    assert said[1] == f"  resume with `arcvae train --resume {run}`"
    assert said[0] in (run / "run.log").read_text()
    status, values = runs.read_status(run), checkpoints.read(run / "checkpoints" / "last.pth")
    assert status and (status.state, status.step, values["step"]) == ("interrupted", 2, 2)


# ----------------------------------------------------------------------------------------------------- real processes

MAIN = "\nfrom arcvae_cli.cli import main\nmain()\n"
STRUCK = {
    "killed in a step": """
import os, signal
from arcvae_cli.step import Step
real, done = Step.train, 0

def train(step, *arguments):
    global done
    done += 1
    if done == 6: os.kill(os.getpid(), signal.SIGKILL)
    return real(step, *arguments)

Step.train = train
""",
    "killed in a save": """
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
    # the first checkpoint has no state of the optimiser yet, and is the smaller by two thirds
    "no space": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))",
}
"""By what strikes a process: the lines that see to it, before the command."""


@pytest.fixture(scope="module")
def struck(presets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str, int]]:
    """By what struck it: a run's folder, what its process said, and its exit code. All side by side."""
    base = tmp_path_factory.mktemp("struck")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ARCVAE_", "WANDB_"))}
    processes = {}
    for name, before in STRUCK.items():
        flags = ["--preset", str(presets["grid"]), "--runs-dir", str(base), "--run-name", name.replace(" ", "-")]
        flags += ["--set", "train.save_minutes=0.0001"]
        command = [sys.executable, "-c", before + MAIN, "train", *flags]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes[name] = subprocess.Popen(command, env={**environment, "OMP_NUM_THREADS": "1"}, **pipes)
    try:
        ends = {name: (process.communicate(timeout=120)[1], process.returncode) for name, process in processes.items()}
        return {name: (base / name.replace(" ", "-"), *end) for name, end in ends.items()}
    finally:
        for process in processes.values():
            process.kill()


@pytest.mark.parametrize("name", STRUCK)
def test_a_process_that_was_struck_leaves_a_whole_run(
    name: str, struck: dict[str, tuple[Path, str, int]], straight: dict[str, Path], here: Callable[..., Result]
) -> None:
    run, said, code = struck[name]
    is_whole(run)
    left = [path.name for path in run.rglob(".*.tmp")]
    if name == "no space":
        what, fix = said.splitlines()[-2:]
        assert code == 1 and checkpoints.read(run / "checkpoints" / "last.pth")["step"] == 0
        assert re.fullmatch(r"error: .*/last\.pth: could not be written \(.+; [\d.]+ (bytes|.iB) free there\)", what)
        assert fix == f"  free some space, then resume with `arcvae train --resume {run}`"
        assert runs.describe(run)["state"] == "failed" and not left
    else:
        assert code == -signal.SIGKILL and runs.describe(run)["state"] == "killed", said
        assert [file.startswith(".last.pth.") for file in left] == ([True] if name == "killed in a save" else [])
    ends_straight(run, straight["grid"], here("--resume", run))


# --------------------------------------------------------------------------------------------------- a batch system


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_the_recipe_for_slurm_passes_signals_on_and_puts_the_job_back(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """The script in the documentation, with a training and a batch system of two lines each."""
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
