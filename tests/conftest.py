from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from arcvae_cli.data.arrays import Dataset

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models, and subprocesses beside them

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # as `nohup` and jobs behind a script have it: runs would keep to it
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of corpora for the whole suite, so that each is built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def clean_environment(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests, no login, no colour, no cache of theirs."""
    for name in list(os.environ):
        if name.startswith(("ARCVAE_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("ARCVAE_CACHE_DIR", str(shared_cache))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Models of grids with few channels, which train and are saved and read faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.models.grid.CHANNELS", (8,) * 5)
        patch.setattr("arcvae_cli.models.hierarchical.CHANNELS", 8)
        for name in ("grid", "hierarchical"):
            patch.setattr(f"arcvae_cli.models.{name}.WIDE", 32)
        yield


@pytest.fixture(scope="session")
def arc() -> Dataset:
    """A thousand real grids: 800 of training tasks, then 100 to validate and 100 to test."""
    from arcvae_cli.data.arc import build_arc

    return build_arc(1000, 0)
