"""`arcvae interpolate`: decode a path between the codes of two examples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.errors import InputError

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
    start: Annotated[str, typer.Option("--from", help=_END, rich_help_panel=reading.INPUT)],
    end: Annotated[str, typer.Option("--to", help=_END, rich_help_panel=reading.INPUT)],
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    path: Annotated[Literal["linear", "slerp"], typer.Option(help="straight line, or great circle")] = "linear",
    steps: Annotated[int, typer.Option(min=2, max=256, help="points on the path, ends included")] = 9,
    level: Annotated[
        Literal["all", "global", "local"],
        typer.Option(help="latents that move; the others keep their distance from the prior"),
    ] = "all",
    seed: reading.SeedOption = 0,
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: reading.SplitOption = "test",
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Walk between two examples: their posterior means, points on the path between them, decoded."""
    import numpy as np
    import torch

    from arcvae_cli import domains
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.priors import argmax_decode

    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    model, domain = loaded.model, domains.of(loaded.model.kind)
    moving = None if level == "all" else (level,)  # None: all
    if level not in ("all", *model.level_sizes):
        known = ", ".join(model.level_sizes)
        raise InputError(f"--level {level}: the latents of this model are {known}", "use --level all, or one of them")
    domain.check_decodable(loaded)
    corpus = functools.cache(lambda: reading.open_examples(loaded, data, split, console))
    names, ends = [], []
    for flag, text in (("--from", start), ("--to", end)):
        name, example = _indexed(text, flag, corpus, split) or domain.read_end(text, flag, loaded, console.note)
        names.append(name)
        ends.append(example)
    originals = np.stack(ends).astype(domain.dtype)
    folder = reading.output_folder(output, loaded, "interpolations")

    x = torch.from_numpy(originals).long().to(next(model.parameters()).device)
    latents = _walk(model, domain.batch(model, x), steps, path, moving, seed)
    decoded = domain.path(loaded, argmax_decode(model, latents).numpy().astype(domain.dtype), originals, console.note)
    asked = {"from": names[0], "to": names[1], "path": path, "level": level, "steps": steps}
    title = f"{path} path of {steps} from {names[0]} to {names[1]}{'' if level == 'all' else f', {level} level'}"
    arrays = {"originals": originals, **{f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}}
    reading.write_decoded(console, loaded, decoded, folder, "interpolation", asked, arrays, title)


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


def _indexed(text: str, flag: str, corpus: Callable[[], Corpus], split: str) -> tuple[str, Any] | None:
    """The example (*positions) of an index in the split, and its name; None for text that is no index."""
    import torch

    if not text.lstrip("-").isdigit():
        return None
    index, size = int(text), corpus().size(split)
    if not 0 <= index < size:
        raise InputError(f"{flag} {index}: the {split} split of {corpus().name} has examples 0 to {size - 1}")
    example = corpus().batch(split, torch.tensor([index], device=corpus().device)).x[0]
    return f"{split} {index}", example.cpu().numpy()
