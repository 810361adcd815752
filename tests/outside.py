"""One small valid file of every kind that arcvae reads, for the tests that damage them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from arcvae_cli import checkpoints
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.files import write_dataset
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.grammar import Structure
from arcvae_cli.presets import resolve
from arcvae_cli.settings import Settings

EQUATIONS = read_grammar("equations")
STRINGS = build_drawn(EQUATIONS, 7, size=40)

STREAM = np.random.RandomState(5)
GRIDS = Dataset(
    "some",
    np.pad(STREAM.randint(0, 10, (12, 3, 4)).astype(np.uint8), ((0, 0), (0, 13), (0, 12))),
    np.repeat(np.arange(3, dtype=np.uint8), 4),
    np.tile(np.array([3, 4], np.uint8), (12, 1)),
    np.array([f"task{number % 5}" for number in range(12)]),
)
TASK = {"train": [{"input": [[0, 1], [2, 3]], "output": [[9]]}], "test": [{"input": [[4, 5, 6]], "output": [[7]]}]}

SMALL = {
    "name": "grammar",
    "latent_dim": 2,
    "encoder_hidden": 3,
    "encoder_conv_layers": 1,
    "encoder_kernel": 3,
    "decoder_hidden": 3,
    "decoder_layers": 1,
}


def checkpoint_values(**changes: Any) -> dict[str, Any]:
    """The values of a checkpoint of a small model of equations after one step of its optimiser."""
    settings = Settings.model_validate({"data": {"name": "equations"}, "model": SMALL})
    torch.manual_seed(0)
    model = build_model(settings.model, Structure(EQUATIONS.rules, 7))
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return {
        "format_version": checkpoints.FORMAT,
        "epoch": 3,
        "step": 12,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "conditions": [],
        **checkpoints.structure_of(model),
        "best": [1.5, 2],
        "val_loss": None,
        "rng_state": torch.get_rng_state(),
        "config": checkpoints.config_text(settings),
        **changes,
    }


def same(one: Any, other: Any) -> bool:
    """Whether two values of a checkpoint are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def write_all(folder: Path) -> dict[str, Path]:
    """A valid file of every kind, by the kind."""
    found = {
        "checkpoint": folder / "whole.pth",
        "preset": folder / "whole.toml",
        "grids": folder / "whole.npz",
        "bare grids": folder / "whole.npy",
        "task": folder / "whole.json",
        "derivations": folder / "derivations.npz",
        "strings": folder / "strings.txt",
        "grammar": folder / "whole.cfg",
        "ids": folder / "ids.npy",
        "masks": folder / "masks.npy",
    }
    checkpoints.save(found["checkpoint"], checkpoint_values())
    settings = resolve("cyclical").settings
    found["preset"].write_text(tomli_w.dumps(settings.table()))
    write_dataset(found["grids"], GRIDS)
    np.save(found["bare grids"], GRIDS.x)
    found["task"].write_text(json.dumps(TASK))
    write_dataset(found["derivations"], STRINGS)
    found["strings"].write_text("\n".join(STRINGS.strings(np.arange(40))))
    found["grammar"].write_text(EQUATIONS.text)
    np.save(found["ids"], STRINGS.x)
    np.save(found["masks"], masks_of(STRINGS.x))
    return found


def masks_of(ids: np.ndarray) -> np.ndarray:
    """The packed masks (N, T, bytes) of derivations of equations."""
    left = np.array(EQUATIONS.rules.lhs)
    table = (left[:, None] == left) & (left >= 0)[:, None] | np.eye(len(left), dtype=bool) & (left < 0)[:, None]
    return np.packbits(table[ids], axis=2)
