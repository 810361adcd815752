"""What the commands that read a checkpoint share: options, the checkpoint, its corpus, a folder to write to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.settings import CORPORA, DataSettings
from arcvae_cli.writing import usable_folder

if TYPE_CHECKING:
    import torch

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import GridCorpus

INPUT, OUTPUT = "Input", "Output"  # panels of the help


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise typer.BadParameter(f"{name!r} is none of auto, cpu, cuda, cuda:1, mps")
    return name


CheckpointOption = Annotated[
    str, typer.Option(help="file, run folder, run's name, or name of a file of the latest run", rich_help_panel=INPUT)
]
RunsOption = Annotated[Path, typer.Option("--runs-dir", help="where runs lie", rich_help_panel=INPUT)]
DataOption = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(CORPORA)}, or a path", show_default="what the model was trained on", rich_help_panel=INPUT
    ),
]
SplitName = Literal["train", "val", "test"]
SeedOption = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="of all that is drawn at random")]
DeviceOption = Annotated[str, typer.Option(callback=_device, help="auto, cpu, cuda, cuda:1, mps")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="print the result only", rich_help_panel=OUTPUT)]
JsonOption = Annotated[bool, typer.Option("--json", help="print the result as JSON", rich_help_panel=OUTPUT)]


def open_checkpoint(checkpoint: str, runs: Path, device: str, console: Console) -> Loaded:
    """The model that `--checkpoint` means, on the device, with a note where the name was looked up."""
    from arcvae_cli.checkpoints import find_checkpoint, load
    from arcvae_cli.step import choose_device

    found = find_checkpoint(checkpoint, runs)
    if found.note:
        console.note(found.note)
    return load(found.path, choose_device(device))


def open_data(loaded: Loaded, data: str | None, split: str, console: Console) -> GridCorpus:
    """The corpus of `--data`, else the one that the model was trained on, on the model's device."""
    settings = loaded.settings.data
    if data is not None:
        chosen = {"name": data, "path": None} if data in CORPORA else {"path": Path(data).expanduser()}
        settings = settings.model_copy(update={**chosen, "limit": None})
    return open_named(settings, next(loaded.model.parameters()).device, (split,), console)


def open_named(data: DataSettings, device: torch.device, needs: Sequence[str], console: Console) -> GridCorpus:
    """The corpus that the settings name, with a note before a build that takes seconds, and its own notes after."""
    from arcvae_cli.data.corpus import open_corpus

    announce_build(data, console)
    corpus = open_corpus(data, device, needs)
    for note in corpus.notes:
        console.note(note)
    return corpus


def announce_build(data: DataSettings, console: Console, rebuild: bool = False) -> None:
    """Say that a corpus is not in the cache."""
    from arcvae_cli.data.recipes import cache_path

    cached = cache_path(data)
    if cached is not None and (rebuild or not cached.is_file()):
        console.note(f"building {data.name}: some seconds, this once")


def output_folder(output: Path | None, loaded: Loaded, name: str) -> Path:
    """`--output`, made if need be: by default the folder `name` in the checkpoint's run, or here if it has none."""
    return usable_folder(output or (loaded.run or Path()) / name, "--output")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An `.npz`, whole or not at all."""
    import numpy as np

    from arcvae_cli.writing import replacing

    with replacing(path) as temporary, temporary.open("wb") as file:  # a name would be given the suffix .npz
        np.savez_compressed(file, **arrays)


def write_task(path: Path, grids: Any, facts: Mapping[str, Any] | None = None) -> None:
    """Grids (N, H, W) uint8 as an ARC task without answers, with `facts` beside it, whole or not at all.

    Each grid goes without the black rows and columns at its end.
    """
    import json

    from arcvae_cli.writing import replacing

    task = {**(facts or {}), "train": [], "test": [{"input": _trimmed(grid).tolist()} for grid in grids]}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(task, allow_nan=False) + "\n", encoding="utf-8")


def _trimmed(grid: Any) -> Any:
    """A grid cut to the rectangle from its top-left corner that holds all that is not black, one cell at the least."""
    rows, columns = grid.any(1).nonzero()[0], grid.any(0).nonzero()[0]
    return grid[: rows[-1] + 1, : columns[-1] + 1] if len(rows) else grid[:1, :1]
