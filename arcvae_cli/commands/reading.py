"""What the commands that read a checkpoint share: options, the checkpoint, its corpus, a folder to write to."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.commands.options import OUTPUT
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, expanded, usable_folder
from arcvae_cli.settings import CORPORA, DataSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    import torch

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import Dataset
    from arcvae_cli.data.corpus import Corpus, GridCorpus, StringCorpus
    from arcvae_cli.domains.base import Decoded
    from arcvae_cli.grammar import Rules

INPUT = "Input"  # a panel of the help


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
SplitOption = Annotated[SplitName, typer.Option(help="of the examples", rich_help_panel=INPUT)]
SeedOption = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="of all that is drawn at random")]
DeviceOption = Annotated[str, typer.Option(callback=_device, help="auto, cpu, cuda, cuda:1, mps")]
OutputOption = Annotated[
    Path | None, typer.Option(help="folder", show_default="in the run's folder, or here", rich_help_panel=OUTPUT)
]


@contextmanager
def importing() -> Iterator[None]:
    """Import PyTorch without garbage collection, then or later: a third of its import time."""
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
    """The device of `--device`; sets PyTorch's number of threads."""
    from arcvae_cli.machine import use_cores
    from arcvae_cli.step import choose_device

    device = choose_device(name)
    use_cores()
    return device


def open_checkpoint(checkpoint: str, runs: Path, device: str, console: Console) -> Loaded:
    """The model of `--checkpoint`, on the device, with a note if the name was looked up."""
    with importing():
        from arcvae_cli.checkpoints import find_checkpoint, load

    path, note = find_checkpoint(checkpoint, runs)
    if note:
        console.note(note)
    return load(path, open_device(device))


def open_examples(loaded: Loaded, data: str | None, split: str, console: Console) -> Corpus:
    """The corpus of `--data`, or of the model's training, on its device. InputError for another kind of example."""
    from arcvae_cli import domains

    settings = loaded.settings.data
    if data is not None:
        files = dict.fromkeys(("path", "grammar", "input", "prod", "masks", "pad_id", "limit"))
        chosen = {"name": data} if data in CORPORA else {"path": expanded(Path(data))}
        settings = settings.model_copy(update={**files, **chosen})
    place = next(loaded.model.parameters()).device
    domain = domains.of(loaded.model.kind)
    corpus = open_named(settings, place, (split,), console, fit_of(loaded))
    if corpus.kind != domain.kind:
        holds = domains.of(corpus.kind).noun
        raise InputError(f"{corpus.name}: holds {holds}, and this model is of {domain.noun}", "give other --data")
    return corpus


def fit_of(loaded: Loaded) -> tuple[Rules | None, int | None]:
    """The rules and the length of derivations that the model is for; None for grids."""
    structure = loaded.model.structure
    return (None, None) if structure is None else (structure.rules, structure.length)


def open_named(
    data: DataSettings,
    device: torch.device,
    needs: Sequence[str],
    console: Console,
    fit: tuple[Rules | None, int | None] = (None, None),
    begun: Future[Dataset] | None = None,
) -> GridCorpus | StringCorpus:
    """The corpus of the settings, with the rules and the length of `fit`, if given; `begun` by `begin_reading`."""
    from arcvae_cli.data.corpora import corpus_name
    from arcvae_cli.data.corpus import open_corpus

    if begun is not None:
        corpus = open_corpus(data, device, needs, *fit, arrays=begun.result())
    else:
        if unbuilt(data):
            console.note(f"building {corpus_name(data)}: some seconds, this once")
        with console.counting("parsing") as tell:
            corpus = open_corpus(data, device, needs, *fit, tell, console.note)
    for note in corpus.notes:
        console.note(note)
    return corpus


def begin_reading(data: DataSettings) -> Future[Dataset] | None:
    """Read a corpus in a thread while PyTorch is imported; None for one that has to be built, which prints progress."""
    from concurrent.futures import Future
    from threading import Thread

    from arcvae_cli.data.corpora import load_arrays

    if unbuilt(data):
        return None
    found: Future[Dataset] = Future()

    def read() -> None:
        try:
            found.set_result(load_arrays(data))
        except BaseException as error:  # raised where the result is asked for
            found.set_exception(error)

    Thread(target=read, name="reading the corpus", daemon=True).start()
    return found


def unbuilt(data: DataSettings) -> bool:
    """Whether a corpus has to be built, since it is not in the cache."""
    from arcvae_cli.data.corpora import cache_path

    cached = cache_path(data)
    return cached is not None and not cached.is_file()


def output_folder(output: Path | None, loaded: Loaded, name: str) -> Path:
    """`--output`, created: by default the folder `name` in the checkpoint's run, or here if it has none."""
    return usable_folder(output or (loaded.run or Path()) / name, "--output")


def write_decoded(
    console: Console,
    loaded: Loaded,
    decoded: Decoded,
    folder: Path,
    stem: str,
    document: Mapping[str, Any],
    arrays: Mapping[str, Any],
    title: str,
    alone: bool = False,
) -> None:
    """Write decoded samples or a path to the files `stem` of the folder, and print them; off a terminal `alone`."""
    import numpy as np
    from rich.text import Text

    from arcvae_cli import domains
    from arcvae_cli.domains.base import picture_title

    domain = domains.of(loaded.model.kind)
    files = {kind: folder / f"{stem}.{kind}" for kind in domain.formats}
    origin = {"checkpoint": str(loaded.path), "epoch": loaded.epoch}
    document = {**origin, **document, "files": {kind: str(file) for kind, file in files.items()}, **decoded.facts}
    with atomic_write(files["npz"]) as temporary, temporary.open("wb") as file:  # a name would be given another suffix
        np.savez_compressed(file, **decoded.arrays, **arrays)
    domain.write(files, decoded, document, f"{title}, {picture_title(loaded)}")
    domain.show(console, decoded)
    (console.note if alone and console.piped else console.result)(Text(f"{title}: {decoded.summary}"))
    console.note(f"wrote {', '.join(file.name for file in files.values())} to {folder}")
    console.json(document)
