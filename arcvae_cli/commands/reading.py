"""What the commands that read a checkpoint share: options, the checkpoint, its corpus, a folder to write to."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.errors import InputError
from arcvae_cli.files import expanded, usable_folder
from arcvae_cli.settings import CORPORA, DataSettings

if TYPE_CHECKING:
    from concurrent.futures import Future

    import torch

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import DerivationCorpus, GridCorpus
    from arcvae_cli.data.recipes import Arrays
    from arcvae_cli.evaluation.validity import Judge
    from arcvae_cli.grammar import Grammar
    from arcvae_cli.models.grammar import Structure

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


@contextmanager
def importing() -> Iterator[None]:
    """The garbage collector is off in the block, which imports PyTorch: that makes many objects and no garbage.

    They are never looked at again either, not even at the end of the process: together a third of what PyTorch costs
    a process that does nothing else.
    """
    first, on = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        if on:
            gc.enable()


def open_device(name: str) -> torch.device:
    """The device of `--device`; PyTorch is told how many cores there are."""
    from arcvae_cli.machine import use_cores
    from arcvae_cli.step import choose_device

    device = choose_device(name)
    use_cores()
    return device


def open_checkpoint(checkpoint: str, runs: Path, device: str, console: Console) -> Loaded:
    """The model that `--checkpoint` means, on the device, with a note where the name was looked up."""
    with importing():
        from arcvae_cli.checkpoints import find_checkpoint, load

    found = find_checkpoint(checkpoint, runs)
    if found.note:
        console.note(found.note)
    return load(found.path, open_device(device))


def open_data(
    loaded: Loaded, data: str | None, split: str, console: Console, device: torch.device | None = None
) -> GridCorpus | DerivationCorpus:
    """The corpus of `--data`, else the one that the model was trained on, on the model's device or another."""
    from arcvae_cli.models.grammar import GrammarVAE

    settings = loaded.settings.data
    if data is not None:
        files = dict.fromkeys(("path", "grammar", "input", "prod", "masks", "pad_id", "limit"))
        chosen = {"name": data} if data in CORPORA else {"path": expanded(Path(data))}
        settings = settings.model_copy(update={**files, **chosen})
    place = next(loaded.model.parameters()).device if device is None else device
    structure = loaded.model.structure if isinstance(loaded.model, GrammarVAE) else None
    return open_named(settings, place, (split,), console, structure)


def open_grids(loaded: Loaded, data: str | None, split: str, console: Console) -> GridCorpus:
    """The same for a model of grids. InputError where it holds something else."""
    from arcvae_cli.data.corpus import GridCorpus

    corpus = open_data(loaded, data, split, console)
    if not isinstance(corpus, GridCorpus):
        raise InputError(f"{corpus.name}: holds derivations, and this model is of grids", "give grids with --data")
    return corpus


def open_derivations(loaded: Loaded, data: str | None, split: str, console: Console) -> DerivationCorpus:
    """The same for a model of derivations. InputError where it holds something else."""
    from arcvae_cli.data.corpus import DerivationCorpus

    corpus = open_data(loaded, data, split, console)
    if not isinstance(corpus, DerivationCorpus):
        raise InputError(
            f"{corpus.name}: holds grids, and this model is of derivations", "give strings of its grammar with --data"
        )
    return corpus


def writing_grammar(loaded: Loaded) -> Grammar:
    """The grammar that a model's strings are written by. InputError where its checkpoint knows of none."""
    if loaded.grammar is None:
        raise InputError(
            f"{loaded.path}: its model was trained on ready ids and masks, and writing strings takes their grammar",
            "train with --grammar FILE beside --prod and --masks; `evaluate` works without",
        )
    return loaded.grammar


def judge_for(grammar: Grammar, console: Console) -> Judge | None:
    """Who tells which strings of a grammar mean something, None where nobody does, with a note on what is missing."""
    from arcvae_cli.evaluation.validity import NO_RDKIT, is_smiles, judge_of

    judge = judge_of(grammar)
    if judge is None and is_smiles(grammar):
        console.note(NO_RDKIT)
    return judge


def open_named(
    data: DataSettings,
    device: torch.device,
    needs: Sequence[str],
    console: Console,
    structure: Structure | None = None,
    begun: Future[Arrays] | None = None,
) -> GridCorpus | DerivationCorpus:
    """The corpus that the settings name, with a note before a build that takes seconds, and its own notes after.

    `structure`: of the derivations that a checkpoint's model is made for, None where there is none yet. `begun`: what
    `begin_reading` gave.
    """
    from arcvae_cli.data.corpus import open_corpus

    rules, length = (None, None) if structure is None else (structure.rules, structure.length)
    if begun is not None:
        corpus = open_corpus(data, device, needs, rules, length, arrays=begun.result())
    else:
        announce_build(data, console)
        with console.counting("parsing") as tell:
            corpus = open_corpus(data, device, needs, rules, length, tell, console.note)
    for note in corpus.notes:
        console.note(note)
    return corpus


def begin_reading(data: DataSettings) -> Future[Arrays] | None:
    """Read a corpus in a thread, while PyTorch is imported; None for one that has to be built.

    A build is not for a thread: it talks, starts processes, and ends with Ctrl-C.
    """
    from concurrent.futures import Future
    from threading import Thread

    from arcvae_cli.data.recipes import cache_path, load_arrays

    cached = cache_path(data)
    if cached is not None and not cached.is_file():
        return None
    found: Future[Arrays] = Future()

    def read() -> None:
        try:
            found.set_result(load_arrays(data))
        except BaseException as error:  # raised where the result is asked for
            found.set_exception(error)

    Thread(target=read, name="reading the corpus", daemon=True).start()
    return found


def announce_build(data: DataSettings, console: Console) -> None:
    """Say that a corpus is not in the cache."""
    from arcvae_cli.data.recipes import cache_path, corpus_name

    cached = cache_path(data)
    if cached is not None and not cached.is_file():
        console.note(f"building {corpus_name(data)}: some seconds, this once")


def output_folder(output: Path | None, loaded: Loaded, name: str) -> Path:
    """`--output`, made if need be: by default the folder `name` in the checkpoint's run, or here if it has none."""
    return usable_folder(output or (loaded.run or Path()) / name, "--output")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An `.npz`, whole or not at all."""
    import numpy as np

    from arcvae_cli.files import atomic_write

    with atomic_write(path) as temporary, temporary.open("wb") as file:  # a name would be given the suffix .npz
        np.savez_compressed(file, **arrays)


def write_task(path: Path, grids: Any, facts: Mapping[str, Any] | None = None) -> None:
    """Grids (N, H, W) uint8 as an ARC task without answers, with `facts` beside it, whole or not at all.

    Each grid goes without the black rows and columns at its end.
    """
    import json

    from arcvae_cli.files import atomic_write

    task = {**(facts or {}), "train": [], "test": [{"input": _trimmed(grid).tolist()} for grid in grids]}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(task, allow_nan=False) + "\n", encoding="utf-8")


def _trimmed(grid: Any) -> Any:
    """A grid cut to the rectangle from its top-left corner that holds all that is not black, one cell at the least."""
    rows, columns = grid.any(1).nonzero()[0], grid.any(0).nonzero()[0]
    return grid[: rows[-1] + 1, : columns[-1] + 1] if len(rows) else grid[:1, :1]
