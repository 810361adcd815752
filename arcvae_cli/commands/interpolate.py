"""`arcvae interpolate`: decode a path between the codes of two examples."""

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

from arcvae_cli import domains
from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError

END = "index in the split; or an ARC JSON file (FILE:2 is its third grid); or a string (string:7 is no index)"


def interpolate(
    start: Annotated[str, reading.input_option("--from", help=END)] = "0",
    end: Annotated[str, reading.input_option("--to", help="the same, of the other end")] = "1",
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    path: Annotated[Literal["linear", "slerp"], typer.Option(help="straight line, or great circle")] = "linear",
    steps: Annotated[int, typer.Option(min=2, max=256, help="points on the path, ends included")] = 9,
    level: Annotated[Literal["all", "global", "local"], typer.Option(help="latents that move")] = "all",
    seed: reading.SeedOption = 0,
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: reading.SplitOption = "test",
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode a path between the posterior means of two examples. Files in --output FOLDER are replaced."""
    import torch

    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.evaluation.paths import between
    from arcvae_cli.evaluation.priors import generate

    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    model, domain = loaded.model, domains.of(loaded.model.kind)
    if level not in ("all", *model.level_sizes):
        raise InputError(f"--level {level}: the latents of this model are {', '.join(model.level_sizes)}")
    domain.check_decodable(loaded)
    corpus = functools.cache(lambda: reading.open_examples(loaded, data, split, console))
    ends = {"--from": start, "--to": end}
    names, originals, encoded = reading.encoded(ends, loaded, corpus, split, console)
    with eval_mode(model, seed):
        # alone, a level moves under what the others add to their priors: a map under a learned prior goes along
        latents = {}
        for one in encoded:
            first, last = torch.split(one.mean if level == "all" else one.offset(), 1)
            latents[one.name] = between(first, last if level in ("all", one.name) else first, steps, path).flatten(0, 1)
        latents = latents if level == "all" else model.prior(latents)
    points = generate(model, latents).numpy().astype(domain.dtype)
    decoded = domain.path(loaded, points, originals, console.note)
    decoded.arrays["originals"] = originals
    asked = {"from": names[0], "to": names[1], "path": path, "level": level, "steps": steps}
    title = f"{path} path of {steps} from {names[0]} to {names[1]}{'' if level == 'all' else f', {level} level'}"
    reading.write_decoded(console, loaded, decoded, latents, output, "interpolation", asked, title)
