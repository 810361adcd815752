"""Files as they come from outside, small and whole: what the tests of hostile files spoil."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from arcvae_cli import checkpoints
from arcvae_cli.data.arrays import GridArrays
from arcvae_cli.data.files import write_grids
from arcvae_cli.data.strings import build_drawn, write_strings
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.grammar import Structure
from arcvae_cli.settings import Settings, resolve

EQUATIONS = read_grammar("equations")
STRINGS = build_drawn(EQUATIONS, 7, size=40)

STREAM = np.random.RandomState(5)
GRIDS = GridArrays(
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
    """What the checkpoint of a small model of equations holds, as its optimiser would have it after a step."""
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


def records_of(path: Path) -> dict[str, bytes]:
    """The records of a checkpoint, by their names."""
    with zipfile.ZipFile(path) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def archive_of(records: Mapping[str, bytes]) -> bytes:
    """A checkpoint of these records, as `torch.save` puts them together, checksums and all."""
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name, content in records.items():
        if name not in ("version", ".data/serialization_id"):  # which it writes at the end
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return buffer.getvalue()


def same(one: Any, other: Any) -> bool:
    """Whether two values of a checkpoint are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def write_all(folder: Path) -> dict[str, Path]:
    """One whole file of every kind that arcvae reads, by the kind."""
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
        "run": folder / "run" / "metrics.jsonl",
    }
    checkpoints.save(found["checkpoint"], checkpoint_values())
    settings = resolve("cyclical").settings
    found["preset"].write_text(tomli_w.dumps(settings.table()))
    write_grids(found["grids"], GRIDS)
    np.save(found["bare grids"], GRIDS.grids)
    found["task"].write_text(json.dumps(TASK))
    write_strings(found["derivations"], STRINGS)
    found["strings"].write_text("\n".join(STRINGS.strings(np.arange(40))))
    found["grammar"].write_text(EQUATIONS.text)
    np.save(found["ids"], STRINGS.ids)
    np.save(found["masks"], masks_of(STRINGS.ids))
    found["run"].parent.mkdir()
    (found["run"].parent / "config.toml").write_text(tomli_w.dumps(settings.table()))
    found["run"].write_text("".join(json.dumps(line) + "\n" for line in metrics()))
    return found


def masks_of(ids: np.ndarray) -> np.ndarray:
    """The packed masks (N, T, bytes) of derivations of equations."""
    left = np.array(EQUATIONS.rules.lhs)
    table = (left[:, None] == left) & (left >= 0)[:, None] | np.eye(len(left), dtype=bool) & (left < 0)[:, None]
    return np.packbits(table[ids], axis=2)


def metrics() -> list[dict[str, Any]]:
    """The record of six epochs of ten steps whose beta goes up and down."""
    lines = []
    for step in range(1, 61):
        beta = 0.05 * (1 + step % 9)
        kl = 12.0 - 4.0 * beta - 0.01 * step
        values = {"train/beta": beta, "train/kl": kl, "train/loss_reconstruction": 90.0 + 30 * beta - 0.1 * step}
        kinds = ["step", "epoch"] if step % 10 == 0 else ["step"]
        lines += [{"kind": kind, "epoch": step / 10, "step": step, **values} for kind in kinds]
    return lines
