"""One small valid file of every kind that arcvae reads, and its reader, for the tests that damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from arcvae_cli import checkpoints
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpora import load_arrays
from arcvae_cli.data.files import write_dataset
from arcvae_cli.data.prebuilt import read_prebuilt
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.grammar import Structure
from arcvae_cli.presets import resolve
from arcvae_cli.settings import DataSettings, Settings

EQUATIONS = read_grammar("equations")
TASK = {"train": [{"input": [[0, 1], [2, 3]], "output": [[9]]}], "test": [{"input": [[4, 5, 6]], "output": [[7]]}]}
SMALL = {"encoder_hidden": 3, "encoder_conv_layers": 1, "encoder_kernel": 3, "decoder_hidden": 3, "decoder_layers": 1}


def checkpoint_values(**changes: Any) -> dict[str, Any]:
    """The values of a checkpoint of a small model of equations after one step of its optimiser."""
    model_settings = {"name": "grammar", "latent_dim": 2, **SMALL}
    settings = Settings.model_validate({"data": {"name": "equations"}, "model": model_settings})
    torch.manual_seed(0)
    model = build_model(settings.model, Structure(EQUATIONS.rules, 7))
    optimizer = torch.optim.Adam(model.parameters())
    torch.cat([parameter.flatten() for parameter in model.parameters()]).sum().backward()
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
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def write_all(folder: Path) -> dict[str, Path]:
    """A valid file of every kind, by the kind."""
    names = {
        **{"checkpoint": "whole.pth", "preset": "whole.toml", "grids": "whole.npz", "bare grids": "whole.npy"},
        **{"task": "whole.json", "derivations": "derivations.npz", "strings": "strings.txt", "grammar": "whole.cfg"},
        **{"ids": "ids.npy", "masks": "masks.npy"},
    }
    found = {kind: folder / name for kind, name in names.items()}
    stream = np.random.RandomState(5)
    grids = np.pad(stream.randint(0, 10, (12, 3, 4)).astype(np.uint8), ((0, 0), (0, 13), (0, 12)))
    shape, tasks = np.tile(np.array([3, 4], np.uint8), (12, 1)), np.array([f"task{number % 5}" for number in range(12)])
    strings = build_drawn(EQUATIONS, 7, size=40)
    left = np.array(EQUATIONS.rules.lhs)
    masks = (left[:, None] == left) & (left >= 0)[:, None] | np.eye(len(left), dtype=bool) & (left < 0)[:, None]

    checkpoints.save(found["checkpoint"], checkpoint_values())
    found["preset"].write_text(tomli_w.dumps(resolve("cyclical").settings.table()))
    write_dataset(found["grids"], Dataset("some", grids, np.repeat(np.arange(3, dtype=np.uint8), 4), shape, tasks))
    np.save(found["bare grids"], grids)
    found["task"].write_text(json.dumps(TASK))
    write_dataset(found["derivations"], strings)
    found["strings"].write_text("\n".join(strings.strings(np.arange(40))))
    found["grammar"].write_text(EQUATIONS.text)
    np.save(found["ids"], strings.x)
    np.save(found["masks"], np.packbits(masks[strings.x], axis=2))
    return found


def by_path(path: Path, _: dict[str, Path]) -> str:
    return load_arrays(DataSettings(path=path)).fingerprint()


READERS: dict[str, Callable[[Path, dict[str, Path]], Any]] = {
    "checkpoint": lambda path, whole: (checkpoints.load(path), checkpoints.read(path))[1],
    "preset": lambda path, whole: resolve(str(path)).settings,
    **dict.fromkeys(("grids", "bare grids", "task", "derivations"), by_path),
    "strings": lambda path, whole: load_arrays(DataSettings(input=path, grammar="equations")).fingerprint(),
    "grammar": lambda path, whole: read_grammar(str(path)).productions,
    "ids": lambda path, whole: read_prebuilt(path, whole["masks"], None, None).fingerprint(),
    "masks": lambda path, whole: read_prebuilt(whole["ids"], path, None, None).fingerprint(),
}


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What is read; None for an InputError of at most two printable lines. Nothing else may be raised."""
    try:
        return read()
    except InputError as error:
        text = str(error)
        assert text.count("\n") <= 1 and text.replace("\n", "").isprintable(), text
        return None
