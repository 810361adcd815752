"""`arcvae interpolate`: a path between the codes of two examples, decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    open_data,
    output_folder,
    write_arrays,
    write_task,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import GridCorpus
    from arcvae_cli.models.base import VAE

_END = "index in the split, or an ARC JSON file (its first grid; FILE:2 is its third)"


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
    import functools

    import numpy as np
    import torch
    from rich.text import Text

    from arcvae_cli import render
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.information import evaluating
    from arcvae_cli.evaluation.paths import walk
    from arcvae_cli.models.base import Batch

    console = Console(quiet=quiet, as_json=as_json)
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    model = loaded.model
    moving = _levels(model, level)
    corpus = functools.cache(lambda: open_data(loaded, data, split, console))
    names, ends = [], []
    for flag, text in (("--from", start), ("--to", end)):
        name, grid = _example(flag, text, split, corpus, console)
        names.append(name)
        ends.append(grid)
    originals = np.stack(ends)
    folder = output_folder(output, loaded, "interpolations")

    with evaluating(model, seed) as place:
        batch = Batch(torch.from_numpy(originals).long().to(place))
        encoded = model.encode(batch, noise=False)
        # alone, a level moves under what the others add to their priors: a map under a learned prior goes along
        points = {one.name: one.mean if moving is None else one.offset() for one in encoded}
        first, last = ({name: point[row : row + 1] for name, point in points.items()} for row in (0, 1))
        latents = {name: value.flatten(0, 1) for name, value in walk(first, last, steps, path, moving).items()}
        if moving is not None:
            latents = model.prior(steps, noise=latents)
        decoded = model.decode(latents).argmax(1)

    # The kind of structure decides from here on how what was decoded is shown and written.
    grids = decoded.cpu().numpy().astype(np.uint8)
    changed = (grids[1:] != grids[:-1]).sum((1, 2)).tolist()
    mean_step, largest = sum(changed) / len(changed), max(changed)
    apart, originally = (int((pair[0] != pair[-1]).sum()) for pair in (grids, originals))
    wrong = [int((grids[place] != originals[place]).sum()) for place in (0, -1)]

    named = f"{path} path of {steps} from {names[0]} to {names[1]}" + ("" if level == "all" else f", {level} level")
    files = {kind: folder / f"interpolation.{kind}" for kind in ("png", "npz", "json")}
    report = {
        "checkpoint": str(loaded.path),
        "epoch": loaded.epoch,
        "from": names[0],
        "to": names[1],
        "path": path,
        "level": level,
        "steps": steps,
        "changed": changed,
        "mean_step": mean_step,
        "largest_step": largest,
        "distance": apart,
        "distance_of_originals": originally,
        "wrong_at_ends": wrong,
        "files": {kind: str(file) for kind, file in files.items()},
    }
    render.save_path(files["png"], grids, originals, f"{named}, {loaded.path.name} of epoch {loaded.epoch}")
    codes = {f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}
    write_arrays(files["npz"], {"grids": grids, "originals": originals, **codes})
    write_task(files["json"], grids, report)

    console.result(render.TerminalGrids(*render.path_strip(grids, originals)))
    console.result(
        Text(
            f"{named}: {mean_step:.1f} cells change a step, {largest} at most; {apart} between the decoded ends, "
            f"{originally} between the originals; the decoded ends are wrong in {wrong[0]} and {wrong[1]}"
        )
    )
    console.note(f"wrote interpolation.png, interpolation.npz and interpolation.json to {folder}")
    console.json(report)


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


def _example(
    flag: str, text: str, split: str, corpus: Callable[[], GridCorpus], console: Console
) -> tuple[str, NDArray[np.uint8]]:
    """The grid (16, 16) that `--from` or `--to` means, and its name."""
    from arcvae_cli.data.files import read_grids
    from arcvae_cli.errors import InputError

    if text.lstrip("-").isdigit():
        index, size = int(text), corpus().size(split)
        if not 0 <= index < size:
            raise InputError(f"{flag} {index}: the {split} split of {corpus().name} has examples 0 to {size - 1}")
        return f"{split} {index}", corpus().grids(split)[index].cpu().numpy()
    name, colon, number = text.rpartition(":")
    if not (colon and number.isdigit()) or Path(text).exists():
        name, number = text, "0"
    arrays = read_grids(Path(name).expanduser())
    for note in arrays.notes:
        console.note(note)
    if int(number) >= len(arrays.grids):
        raise InputError(f"{flag} {text}: the file has grids 0 to {len(arrays.grids) - 1}")
    return f"{Path(name).name}:{number}", arrays.grids[int(number)]
