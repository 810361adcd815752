"""`arcvae interpolate`: decode a path between the codes of two examples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.commands.reading import (
    INPUT,
    OUTPUT,
    CheckpointOption,
    DataOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    RunsOption,
    SeedOption,
    SplitName,
    open_checkpoint,
    open_examples,
    output_folder,
)

if TYPE_CHECKING:
    from torch import Tensor

    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.evaluation.paths import PathKind
    from arcvae_cli.models.base import VAE, Batch

_END = (
    "index in the split; or an ARC JSON file (its first grid; FILE:2 is its third); "
    "or a string of the model's grammar (string:7 where it looks like an index)"
)


def interpolate(
    start: Annotated[str, typer.Option("--from", help=_END, rich_help_panel=INPUT)],
    end: Annotated[str, typer.Option("--to", help=_END, rich_help_panel=INPUT)],
    checkpoint: CheckpointOption = "vae_best.pth",
    path: Annotated[Literal["linear", "slerp"], typer.Option(help="straight line, or great circle")] = "linear",
    steps: Annotated[int, typer.Option(min=2, max=256, help="points on the path, ends included")] = 9,
    level: Annotated[
        Literal["all", "global", "local"],
        typer.Option(help="latents that move; the others keep their distance from the prior"),
    ] = "all",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data: DataOption = None,
    split: Annotated[SplitName, typer.Option(help="of the indices", rich_help_panel=INPUT)] = "test",
    runs_dir: RunsOption = Path("runs"),
    output: Annotated[
        Path | None,
        typer.Option(help="folder", show_default="interpolations/ of the run, or here", rich_help_panel=OUTPUT),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Walk between two examples: their posterior means, points on the path between them, decoded."""
    import numpy as np
    import torch
    from rich.text import Text

    from arcvae_cli import domains
    from arcvae_cli.console import Console
    from arcvae_cli.domains.base import title_of, write_arrays
    from arcvae_cli.evaluation.priors import argmax_decode

    console = Console(quiet=quiet, as_json=as_json)
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    model, domain = loaded.model, domains.of(loaded.model.kind)
    moving = _levels(model, level)
    domain.check_decodable(loaded)
    corpus = functools.cache(lambda: open_examples(loaded, data, split, console))
    names, ends = [], []
    for flag, text in (("--from", start), ("--to", end)):
        name, example = _indexed(text, flag, corpus, split) or domain.read_end(text, flag, loaded, console.note)
        names.append(name)
        ends.append(example)
    originals = np.stack(ends).astype(domain.dtype)
    folder = output_folder(output, loaded, "interpolations")

    x = torch.from_numpy(originals).long().to(next(model.parameters()).device)
    latents = _walk(model, domain.batch(model, x), steps, path, moving, seed)
    steps_decoded = argmax_decode(model, latents).numpy().astype(domain.dtype)
    decoded = domain.path(loaded, steps_decoded, originals, console.note)
    files = {kind: folder / f"interpolation.{kind}" for kind in domain.formats}
    report = {
        "checkpoint": str(loaded.path),
        "epoch": loaded.epoch,
        "from": names[0],
        "to": names[1],
        "path": path,
        "level": level,
        "steps": steps,
        "files": {kind: str(file) for kind, file in files.items()},
        **decoded.facts,
    }
    named = f"{path} path of {steps} from {names[0]} to {names[1]}{'' if level == 'all' else f', {level} level'}"
    arrays = {f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}
    write_arrays(files["npz"], {**decoded.arrays, "originals": originals, **arrays})
    domain.write(files, decoded, report, f"{named}, {title_of(loaded)}")
    domain.show(console, decoded)
    console.result(Text(f"{named}: {decoded.summary}"))
    console.note(f"wrote {', '.join(file.name for file in files.values())} to {folder}")
    console.json(report)


def _walk(
    model: VAE, batch: Batch, steps: int, path: PathKind, moving: tuple[str, ...] | None, seed: int
) -> dict[str, Tensor]:
    """Latents (steps, *shape) by level on the path between the codes of the two examples of a batch."""
    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.evaluation.paths import walk

    with eval_mode(model, seed):
        encoded = model.encode(batch, noise=False)
        # alone, a level moves under what the others add to their priors: a map under a learned prior goes along
        points = {one.name: one.mean if moving is None else one.offset() for one in encoded}
        first, last = ({name: point[row : row + 1] for name, point in points.items()} for row in (0, 1))
        latents = walk(first, last, steps, path, moving)
        latents = {name: value.flatten(0, 1) for name, value in latents.items()}
        return latents if moving is None else model.prior(steps, noise=latents)


def _levels(model: VAE, level: str) -> tuple[str, ...] | None:
    """The levels that move, None for all. InputError where the model has no such level."""
    from arcvae_cli.errors import InputError

    if level == "all":
        return None
    names = tuple(model.level_sizes)
    if len(names) == 1:
        raise InputError(f"--level {level}: this model has a single level of latents, {names[0]}", "use --level all")
    if level not in names:
        raise InputError(f"--level {level}: this model has no such level", f"its levels: {', '.join(names)}; or all")
    return (level,)


def _indexed(text: str, flag: str, corpus: Callable[[], Corpus], split: str) -> tuple[str, Any] | None:
    """The example (*positions) of an index in the split, and its name; None for text that is no index."""
    import torch

    from arcvae_cli.errors import InputError

    if not text.lstrip("-").isdigit():
        return None
    index, size = int(text), corpus().size(split)
    if not 0 <= index < size:
        raise InputError(f"{flag} {index}: the {split} split of {corpus().name} has examples 0 to {size - 1}")
    example = corpus().batch(split, torch.tensor([index], device=corpus().device)).x[0]
    return f"{split} {index}", example.cpu().numpy()
