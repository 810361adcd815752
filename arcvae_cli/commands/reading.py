"""Shared by the commands that read a checkpoint: options, opening checkpoint and corpus, writing output."""

from __future__ import annotations

import gc
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.commands.options import OUTPUT, complete
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, exists, expanded, is_file, usable_folder
from arcvae_cli.runs import all_runs, held, read_status
from arcvae_cli.settings import CORPORA, DataSettings

if TYPE_CHECKING:
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
        raise typer.BadParameter(f"{name!r}: expected auto, cpu, cuda, cuda:1 or mps")
    return name


input_option: Any = partial(typer.Option, rich_help_panel=INPUT)
CheckpointOption = Annotated[
    str,
    input_option(
        help="checkpoint file, run folder, run name, or file name in the latest run",
        autocompletion=complete(lambda: [path.name for path in all_runs(Path("runs"))]),
    ),
]
RunsOption = Annotated[Path, input_option("--runs-dir", help="folder of the runs")]
DATA_HELP = f"{', '.join(CORPORA)}, or a path"
DataOption = Annotated[str | None, input_option(help=DATA_HELP, show_default="the model's training corpus")]
SplitName = Literal["train", "val", "test"]
SplitOption = Annotated[SplitName, input_option(help="split of the examples")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="random seed")]
DeviceOption = Annotated[str, typer.Option(callback=_device, help="auto, cpu, cuda, cuda:1, mps")]
FOLDER = "a folder in the run folder, or here"
OutputOption = Annotated[Path | None, typer.Option(help="folder", show_default=FOLDER, rich_help_panel=OUTPUT)]


@contextmanager
def importing() -> Iterator[None]:
    """Import PyTorch without garbage collection, then or later: a third of its import time."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def open_device(name: str) -> torch.device:
    """The device of `--device`; sets PyTorch's number of threads."""
    from arcvae_cli.machine import use_cores
    from arcvae_cli.step import choose_device

    device = choose_device(name)
    use_cores()
    return device


def open_checkpoint(checkpoint: str, runs: Path, device: str, console: Console) -> Loaded:
    """The model of `--checkpoint`, on the device; warns if its run has not finished."""
    with importing():
        from arcvae_cli.checkpoints import find_checkpoint, load

    path, note = find_checkpoint(checkpoint, runs)
    if note:
        console.note(note)
    loaded = load(path, open_device(device))
    if (run := loaded.run) and (status := read_status(run)) and status["state"] != "finished":
        state = "killed" if status["state"] == "running" and not held(run) else status["state"]
        console.warn(f"run {run.name}: {state} at epoch {status['epoch']} of {status['epochs']}")
    return loaded


def open_examples(loaded: Loaded, data: str | None, split: str, console: Console) -> Corpus:
    """The corpus of `--data`, or of the model's training, on its device. InputError for another kind of example."""
    from arcvae_cli import domains

    settings = loaded.settings.data
    if data is not None:
        files = dict.fromkeys(("path", "grammar", "input", "prod", "masks", "pad_id", "limit"))
        chosen = {"name": data} if data in CORPORA else {"path": expanded(Path(data))}
        settings = settings.model_copy(update={**files, **chosen})
    domain, device = domains.of(loaded.model.kind), next(loaded.model.parameters()).device
    corpus = open_named(settings, device, (split,), console, fit_of(loaded))
    if corpus.kind != domain.kind:
        found = domains.of(corpus.kind).noun
        raise InputError(f"{corpus.name}: contains {found}, the model needs {domain.noun}", "give other --data")
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
            console.note(f"building {corpus_name(data)} (once, some seconds)")
        with console.counting("parsing") as tell:
            corpus = open_corpus(data, device, needs, *fit, tell, console.note)
    for note in corpus.notes:
        console.note(note)
    return corpus


def begin_reading(data: DataSettings) -> Future[Dataset] | None:
    """Read a corpus in a thread while PyTorch is imported; None for one that has to be built, which prints progress."""
    from concurrent.futures import ThreadPoolExecutor

    from arcvae_cli.data.corpora import load_arrays

    return None if unbuilt(data) else ThreadPoolExecutor(1).submit(load_arrays, data)


def unbuilt(data: DataSettings) -> bool:
    """Whether a corpus has to be built, since it is not in the cache."""
    from arcvae_cli.data.corpora import cache_path

    cached = cache_path(data)
    return cached is not None and not is_file(cached)


def output_folder(output: Path | None, loaded: Loaded, name: str, new: bool = False) -> Path:
    """`--output`, created: by default the folder `name` in the checkpoint's run, or here if it has none.

    A `new` default folder is numbered, `name-2` and so on, if there is one already.
    """
    folder = output or (loaded.run or Path()) / name
    if new and output is None:
        numbered = (folder.with_name(f"{name}-{number}") for number in itertools.count(2))
        folder = next(path for path in itertools.chain([folder], numbered) if not exists(path))
    return usable_folder(folder, "--output")


def write_decoded(
    console: Console,
    loaded: Loaded,
    decoded: Decoded,
    output: Path | None,
    names: tuple[str, str],
    document: Mapping[str, Any],
    arrays: Mapping[str, Any],
    title: str,
) -> None:
    """Write decoded samples or a path to files, and print them. `names`: of the default folder and of the files."""
    import numpy as np
    from rich.text import Text

    from arcvae_cli import domains
    from arcvae_cli.domains.base import picture_title

    domain, folder = domains.of(loaded.model.kind), output_folder(output, loaded, names[0], new=True)
    files = {kind: folder / f"{names[1]}.{kind}" for kind in domain.formats}
    done = "replaced" if any(map(exists, files.values())) else "wrote"
    origin = {"checkpoint": str(loaded.path), "epoch": loaded.epoch}
    document = {**origin, **document, "files": {kind: str(file) for kind, file in files.items()}, **decoded.facts}
    with atomic_write(files["npz"]) as temporary, temporary.open("wb") as file:  # a name would be given another suffix
        np.savez_compressed(file, **decoded.arrays, **arrays)
    domain.write(files, decoded, document, f"{title}, {picture_title(loaded)}")
    domain.show(console, decoded)
    alone = names[1] == "samples" and domain.plain and console.piped  # a pipe gets strings and nothing else
    (console.note if alone else console.result)(Text(f"{title}: {decoded.summary}"))
    console.note(f"{done} {', '.join(file.name for file in files.values())} in {folder}")
    console.json(document)
