"""Runs that are killed, stopped and starved: what they leave is whole, and resuming ends bit for bit as if undisturbed.

Two families of models at the command line (all of them: tests/test_resuming.py), and real processes for what only the
system does. `bench/soak.py` does the same at random moments, hundreds of times.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints, folders
from arcvae_cli.cli import app
from arcvae_cli.commands import evaluate
from arcvae_cli.presets import resolve
from arcvae_cli.records import Recorder
from arcvae_cli.step import Step

STEPS = 4  # an epoch
FAMILIES: dict[str, dict[str, Any]] = {
    "grid": {
        "model": {"latent_dim": 3, "encoder_channels": [8, 8, 8]},  # few: they are saved and read often
        "schedule": {"name": "controlvae", "target": 3.0, "start_beta": 0.1, "ki": -0.01},
        "train": {"batch_size": 6},
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


Train = Callable[..., Result]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[tuple[Path, Train]]:
    """A folder with `<family>.toml`, 3 epochs of 4 steps, and `<family>`, the run that nobody disturbs.

    Also `arcvae train` in this process, without pictures and without a verdict.
    """
    base = tmp_path_factory.mktemp("straight")
    grids = np.random.RandomState(0).randint(0, 10, (34, 16, 16)).astype(np.uint8)
    np.savez(base / "grids.npz", train=grids[:26], val=grids[26:], test=grids[26:])
    common = {"epochs": 3, "device": "cpu", "precision": "fp32"}

    def train(*arguments: object) -> Result:
        result = CliRunner().invoke(app, ["train", *map(str, arguments)], env={"COLUMNS": "80"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.recorders.images.ImageRecorder", lambda *arguments: Recorder())
        patch.setattr(evaluate, "report", lambda *arguments: DOCUMENT)
        patch.setattr(os, "fsync", lambda file: None)
        patch.setenv("ARCVAE_CACHE_DIR", str(shared_cache))
        for name, tables in FAMILIES.items():
            table = {"data": {"path": str(base / "grids.npz")}, **tables, "train": {**common, **tables["train"]}}
            table["log"] = {"every_n_steps": 2, "images_every": 0, "wandb": "off"}
            (base / f"{name}.toml").write_text(tomli_w.dumps(table))
            assert train("--preset", base / f"{name}.toml", "--runs-dir", base, "--run-name", name).exit_code == 0
        yield base, train


def lines(run: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]


def is_whole(run: Path) -> None:
    for path in (run / "checkpoints").glob("[!.]*.pth"):
        checkpoints.read(path)
    assert folders.read_status(run) is not None and resolve(str(run)).settings.train.epochs == 3
    assert not folders.held(run)


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
    real, numbers = Step.train, count(1)

    def train(step: Step, *arguments: Any) -> Any:
        if next(numbers) == number:
            act()
        return real(step, *arguments)

    return train


def kill() -> None:
    raise Killed


@pytest.mark.parametrize(
    ("family", "moment", "code", "step"),
    [
        ("grid", "two epochs later", None, 2 * STEPS),
        ("grid", "no space", 1, 0),
        ("grammar", "in a step", None, 0),
        ("grammar", "SIGTERM", 143, STEPS + 2),
        ("grammar", "SIGINT", 130, STEPS + 2),
        ("grammar", "SIGUSR1", 75, STEPS + 2),
    ],
)
def test_resuming_ends_with_the_weights_of_the_undisturbed_run(
    family: str,
    moment: str,
    code: int | None,
    step: int,
    straight: tuple[Path, Train],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (base, train), run = straight, tmp_path / "one"
    start = ("--preset", base / f"{family}.toml", "--runs-dir", tmp_path, "--run-name", "one")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with monkeypatch.context() as patch:
        if moment == "no space":  # the first checkpoint has no state of the optimiser, and is smaller by two thirds
            whole = (base / family / "checkpoints" / "last.pth").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (whole * 2 // 3, limits[1]))
        elif code is None:
            patch.setattr(Step, "train", in_step(2 * STEPS + 3 if moment == "two epochs later" else 2, kill))
        else:
            patch.setattr(Step, "train", in_step(STEPS + 2, lambda: signal.raise_signal(signal.Signals[moment])))
        try:
            result = train(*start)
            last, fix = result.stderr.splitlines()[-2:]
            assert result.exit_code == code and f"`arcvae train --resume {run}`" in fix
            assert last.removeprefix("error: ") in (run / "run.log").read_text()
            assert last.startswith("stopped by") or re.fullmatch(r"error: .*/last\.pth: could not be written .*", last)
        except Killed:
            assert code is None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
    gc.collect()  # the lock of what was killed in this process
    is_whole(run)
    assert folders.describe(run)["state"] == ("interrupted" if moment.startswith("SIG") else "failed")
    assert not list(run.rglob(".*.tmp"))
    assert checkpoints.read(run / "checkpoints" / "last.pth")["step"] == step
    resume = (*start, "--resume", "auto") if moment == "SIGTERM" else ("--resume", run)
    ends_straight(run, base / family, train(*resume))


KILLED_IN_A_SAVE = """
import os, signal, torch
from arcvae_cli.cli import main
real, seen = torch.save, []

def save(values, file):
    seen.extend([file] if "last.pth" in file.name else [])
    if len(seen) < 3:
        return real(values, file)
    os.write(file.fileno(), bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = save
main()
"""


def test_a_process_that_is_killed_in_a_save_leaves_a_whole_run(straight: tuple[Path, Train], tmp_path: Path) -> None:
    (base, train), run = straight, tmp_path / "one"
    flags = ["--preset", base / "grid.toml", "--runs-dir", tmp_path, "--run-name", "one"]
    done = subprocess.run([sys.executable, "-c", KILLED_IN_A_SAVE, "train", *flags], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL and folders.describe(run)["state"] == "killed", done.stderr
    is_whole(run)
    assert [path.name.startswith(".last.pth.") for path in run.rglob(".*.tmp")] == [True]
    ends_straight(run, base / "grid", train("--resume", run))


def test_the_recipe_for_slurm_passes_a_signal_on_and_puts_the_job_back(tmp_path: Path) -> None:
    """The script in the documentation, with a training and a batch system of two lines each."""
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    training = f'trap "sleep 0.3; exit 75" USR1\necho "$@" > {tmp_path}/began\nfor i in {{1..600}}; do sleep 0.05; done'
    own = {"arcvae": training, "scontrol": f"touch {tmp_path}/requeued", "job": script.partition("\n")[2]}
    for name, text in own.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "SLURM_JOB_ID": "42", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen([tmp_path / "job"], env=environment) as job:
        while not (tmp_path / "began").exists() or not (tmp_path / "began").read_text():
            time.sleep(0.01)
        time.sleep(0.1)  # until the shell is in its wait
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=30) == 75
    assert (tmp_path / "began").read_text() == "train --preset large --resume auto --run-name job42\n"
    assert (tmp_path / "requeued").exists()
