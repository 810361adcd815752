"""Shared by the commands that read a checkpoint: options, opening checkpoint and corpus, writing output."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli import domains
from arcvae_cli.commands.options import DATA_HELP, complete_runs, data_layers, output_option
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, exists, expanded, is_file, usable_folder
from arcvae_cli.folders import held, read_status
from arcvae_cli.settings import DataSettings

if TYPE_CHECKING:
    import torch

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.domains.base import Decoded
    from arcvae_cli.models.base import Level


input_option: Any = partial(typer.Option, rich_help_panel="Input")
CHECKPOINT = "checkpoint file, run folder, run name, or file name in the latest run"
CheckpointOption = Annotated[str, input_option(help=CHECKPOINT, autocompletion=complete_runs)]
RunsOption = Annotated[Path, input_option("--runs-dir", help="folder of the runs")]
DataOption = Annotated[str | None, input_option(help=DATA_HELP, show_default="the model's training corpus")]
SplitName = Literal["train", "val", "test"]
SplitOption = Annotated[SplitName, input_option(help="split of the examples")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="random seed")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
OutputOption = Annotated[Path | None, output_option(help="folder", show_default="in the run folder")]


@contextmanager
def importing() -> Iterator[None]:
    """Import PyTorch without garbage collection, then or later: a third of its import time."""
    first = "torch" not in sys.modules
    gc.disable()
    yield
    if first:
        gc.freeze()
    gc.enable()


def open_device(name: str) -> torch.device:
    """The device of `--device`; sets PyTorch's number of threads."""
    from arcvae_cli.machine import use_cores
    from arcvae_cli.step import choose_device

    use_cores()
    return choose_device(name)


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
    settings = loaded.settings.data
    if data is not None:
        files = dict.fromkeys(("path", "grammar", "input", "prod", "masks", "pad_id", "limit"))
        named = data_layers(data)[1].values["data"]
        chosen = {"path": expanded(Path(data))} if named["path"] else named
        settings = settings.model_copy(update={**files, **chosen})
    elif settings.path and (kept := (loaded.run or Path()) / settings.path.name).is_file():
        settings = settings.model_copy(update={"path": kept})  # the run may have been moved, and its data with it
    device = next(loaded.model.parameters()).device
    corpus = open_named(settings, device, (split,), console, loaded.model.structure)
    if corpus.kind != loaded.model.kind:
        found, needed = (domains.of(kind).noun for kind in (corpus.kind, loaded.model.kind))
        raise InputError(f"{corpus.name}: contains {found}, the model needs {needed}", "give other --data")
    return corpus


def encoded(
    texts: Mapping[str, str], loaded: Loaded, corpus: Callable[[], Corpus], split: str, console: Console
) -> tuple[list[str], Any, Sequence[Level]]:
    """Names, classes (n, *positions) and posteriors of examples by their flags.

    A text is the index in a split, or what the domain reads as an example.
    """
    import numpy as np
    import torch

    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.models.base import Batch

    domain, names, examples = domains.of(loaded.model.kind), [], []
    for flag, text in texts.items():
        if text.removeprefix("-").isdecimal():
            opened, index = corpus(), int(text)
            if not 0 <= index < (size := opened.size(split)):
                raise InputError(f"{flag} {index}: the {split} split of {opened.name} has examples 0 to {size - 1}")
            chosen = torch.tensor([index], device=opened.device)
            name, example = f"{split} {index}", opened.batch(split, chosen).x[0].cpu().numpy()
        else:
            name, example = domain.read_end(text, flag, loaded, console.note)
        names.append(name)
        examples.append(example)
    x = np.stack(examples).astype(domain.dtype)
    with eval_mode(loaded.model, 0) as device:
        return names, x, loaded.model.encode(Batch(torch.from_numpy(x).long().to(device)), noise=False)


def open_named(
    data: DataSettings, device: Any, needs: Sequence[str], console: Console, structure: Any = None, begun: Any = None
) -> Corpus:
    """The corpus of the settings, made to fit a model's `structure`; `begun`: the future `Dataset`."""
    from arcvae_cli.data.corpora import corpus_name
    from arcvae_cli.data.corpus import open_corpus

    if begun is None and unbuilt(data):
        console.note(f"building {corpus_name(data)} (once; a million molecules take minutes)")
    with console.counting("parsing") as tell:
        corpus = open_corpus(data, device, needs, structure, tell, begun and begun.result())
    for note in corpus.notes:
        console.note(note)
    return corpus


def unbuilt(data: DataSettings) -> bool:
    """Whether a corpus has to be built, since it is not in the cache."""
    from arcvae_cli.data.corpora import cache_path

    return (cached := cache_path(data)) is not None and not is_file(cached)


def output_folder(loaded: Loaded, to: Path | None, name: str) -> Path:
    """The folder of `--output`, by default a new one in the run's: `name`, or `name-2` and so on."""
    default = (loaded.run or Path()) / name
    numbered = (default.with_name(f"{name}-{number}") for number in itertools.count(2))
    new = next(path for path in itertools.chain([default], numbered) if not exists(path))
    return usable_folder(to or new, "--output")


def write_decoded(
    console: Console, loaded: Loaded, decoded: Decoded, latents: Any, to: Path | None, name: str, asked: Any, title: str
) -> None:
    """Write decoded samples or a path to files `name`, by default in a new folder of the run, and print them."""
    import numpy as np
    from rich.text import Text

    from arcvae_cli.domains.base import picture_title

    domain, folder = domains.of(loaded.model.kind), output_folder(loaded, to, f"{name.removesuffix('s')}s")
    files = {kind: folder / f"{name}.{kind}" for kind in domain.formats(loaded.model.structure)}
    document = {"checkpoint": str(loaded.path), "epoch": loaded.epoch, **asked, **decoded.facts}
    document["files"] = {kind: str(file) for kind, file in files.items()}
    arrays = decoded.arrays | {f"latents_{level}": value.cpu().numpy() for level, value in latents.items()}
    with atomic_write(files["npz"]) as temporary, temporary.open("wb") as file:  # a name would be given another suffix
        np.savez_compressed(file, **arrays)
    domain.write(files, decoded, document, f"{title}, {picture_title(loaded)}")
    domain.show(console, decoded)
    alone = name == "samples" and domain.plain and console.piped  # a pipe gets strings and nothing else
    (console.note if alone else console.result)(Text(f"{title}: {decoded.summary}"))
    console.note(f"wrote {', '.join(file.name for file in files.values())} to {folder}")
    console.json(document)
