"""Two ranks train as one process does, up to rounding; what ends one of them ends both."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arcvae_cli import checkpoints, folders
from arcvae_cli.commands.ranks import launch
from arcvae_cli.distributed import Ranks
from arcvae_cli.domains.grids import GridDomain
from arcvae_cli.errors import InputError, Interrupted
from arcvae_cli.models import build_model, grid, hierarchical
from arcvae_cli.settings import Settings
from arcvae_cli.signals import NAMES
from arcvae_cli.step import seed_step
from arcvae_cli.trainer import Trainer
from tests.test_trainer import settings, squares

ROOT = Path(__file__).parents[1]
RANKS = {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}  # their environment
TRAIN = {"epochs": 2, "save_minutes": 0}
MAPS = {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}
LEVELS = {
    "name": "hierarchical",
    "global": {"name": "controlvae", "target": 2.0, "ki": -1e-2},
    "local": {"name": "geco"},
}
CASES: dict[str, Settings] = {
    "dropout": settings(
        train={**TRAIN, "encoder_steps": 1},
        model={"body": "residual", "dropout": 0.2},
        objective={"free_bits": 0.4},
        schedule={"name": "geco", "tolerance": 0.4},
    ),
    "levels": settings(train=TRAIN, model=MAPS, objective={"free_bits": 0.4}, schedule=LEVELS),
}


def make(folder: Path, name: str, ranks: Ranks, resumed: bool = False) -> Trainer:
    chosen, path = CASES[name.split()[0]], folder / name
    if not ranks.first:
        run = folders.RunFolder(path)
    else:
        run = folders.resume(path) if resumed else folders.create(folder, name, "run", chosen)
    seed_step(0, "weights")
    corpus = squares()
    return Trainer(chosen, corpus, build_model(chosen.model, corpus.structure), run, resumed, ranks)


def narrow(change: Callable[[object, str, Any], None]) -> None:
    """Narrower bodies, which train faster, and batches of validation that two ranks share out unevenly."""
    for module in (grid, hierarchical):
        change(module, "WIDE", 32)
    change(GridDomain, "validation_batch", lambda self, corpus: 3)


def work(folder: Path) -> None:
    """What each rank does."""
    narrow(setattr)
    ranks = Ranks.join("auto")
    assert (ranks.device, ranks.count) == ("cpu", 2)
    ranks.leave = lambda failed=False: None  # type: ignore[method-assign]
    for name in CASES:
        make(folder, name, ranks).fit()
    stopped = make(folder, "levels resumed", ranks)
    # asked only once the third step is done, and only one of the ranks
    stopped.stop = lambda run=stopped: signal.SIGTERM if ranks.rank == 1 and run.global_step == 3 else None  # type: ignore[misc]
    with pytest.raises(Interrupted):
        stopped.fit()
    assert stopped.global_step == 3
    if ranks.first:
        stopped.folder.release()
    ranks.most(0)
    last = stopped.folder.checkpoints / "last.pth"
    values = checkpoints.read(last)
    ranks.most(0)
    resumed = make(folder, "levels resumed", ranks, resumed=True)
    resumed.resume(values, last)
    resumed.fit()


def weights(run: Path) -> torch.Tensor:
    values = checkpoints.read(run / "checkpoints" / "last.pth")["model_state_dict"]
    return torch.cat([tensor.flatten() for tensor in values.values()])


def history(run: Path) -> list[Any]:
    lines = checkpoints.read(run / "checkpoints" / "last.pth")["history"].splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def test_two_ranks_train_as_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {**RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.test_distributed", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **place}, timeout=120, check=True)
    narrow(monkeypatch.setattr)
    for name in CASES:
        (alone := make(tmp_path / "alone", name, Ranks())).fit()
        two, one = tmp_path / name, tmp_path / "alone" / name
        torch.testing.assert_close(weights(two), weights(one), rtol=0, atol=2e-5)
        for expected, found in zip(history(one), history(two), strict=True):
            for part in ("train", "val"):
                keys = ("loss", "reconstruction", "position", "exact", "kl_per_dim")
                one_part, two_part = ({key: line[part][key] for key in keys} for line in (expected, found))
                torch.testing.assert_close(two_part, one_part, rtol=1e-3, atol=1e-6)
            assert found["betas"] == pytest.approx(expected["betas"], rel=1e-4)
        if name == "levels":
            resumed = tmp_path / f"{name} resumed"
            assert torch.equal(weights(resumed), weights(two)) and history(resumed) == history(two)
        with pytest.raises(InputError, match="trained with 2 rank"):
            alone.resume(checkpoints.read(two / "checkpoints" / "last.pth"), two / "checkpoints" / "last.pth")


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ranks find each other and this checkout; what torchrun's launcher leaves behind in its process is undone."""
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    before = {name: signal.getsignal(getattr(signal, name)) for name in NAMES}
    yield
    logging.disable(logging.NOTSET)
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
@pytest.mark.usefixtures("launcher")
def test_a_signal_to_one_rank_saves_the_run_and_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "squares.npz", grids=squares().grids("train").numpy())
    flags = f"train --data {tmp_path}/squares.npz --runs-dir {tmp_path} --run-name run --epochs 5000 --batch-size 4"
    flags += " --device cpu --precision fp32 --wandb off --set log.images_every=0 --no-early-stopping"
    monkeypatch.setattr(sys, "argv", ["arcvae", *flags.split()])
    folder, children = tmp_path / "run", Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")

    def stop_second() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and (folders.read_status(folder) or {"step": 0})["step"] == 0:
            time.sleep(0.05)
        ranks = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in children.read_text().split()}
        [second] = [pid for pid, environment in ranks.items() if b"\0RANK=1\0" in environment]
        os.kill(int(second), signal.SIGUSR1)

    with ThreadPoolExecutor(1) as beside:
        stopped = beside.submit(stop_second)
        assert launch(2) == 75
    assert stopped.exception() is None
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "interrupted" and "SIGUSR1" in status["reason"]
    assert checkpoints.read(folder / "checkpoints" / "last.pth")["step"] == status["step"] > 0


if __name__ == "__main__":
    second = os.fork()  # PyTorch is imported once for both
    os.environ["RANK"] = "0" if second else "1"
    work(Path(sys.argv[1]))
    failed = second and os.waitpid(second, 0)[1]
    os._exit(bool(failed))  # to take PyTorch down costs more than the work
