"""`arcvae traverse`: what each dimension of the code changes."""

import functools
import itertools
from pathlib import Path
from typing import Annotated

import typer

from arcvae_cli import domains
from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.console import Console

FROM = "example in the middle, as in `arcvae interpolate`"


def traverse(
    start: Annotated[str | None, reading.input_option("--from", help=FROM, show_default="the code 0")] = None,
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    dims: Annotated[int, typer.Option(min=1, max=4096, help="dimensions, the strongest by KL")] = 8,
    steps: Annotated[int, typer.Option(min=2, max=64, help="points along a dimension")] = 7,
    reach: Annotated[float, typer.Option(min=0.01, max=20, help="standard deviations of the prior")] = 3.0,
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: reading.SplitOption = "test",
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode codes that differ in one dimension, a row for each. Files in --output FOLDER are replaced.

    A dimension of a map is a channel, which moves in all cells. Below a level that moves, learned priors go along.
    """
    import numpy as np
    import torch

    from arcvae_cli.evaluation.information import choose, eval_mode, posteriors
    from arcvae_cli.evaluation.priors import argmax_decode
    from arcvae_cli.models.base import Batch

    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    model, domain = loaded.model, domains.of(loaded.model.kind)
    domain.check_decodable(loaded)
    corpus = functools.cache(lambda: reading.open_examples(loaded, data, split, console))
    levels = posteriors(model, corpus(), split, choose(corpus(), split, 2000, 0))
    nats = [(kl, name, dim) for name, level in levels.items() for dim, kl in enumerate(level.kl.mean(dim=0).tolist())]
    strongest, middle = sorted(nats, reverse=True)[:dims], "the code 0"
    noise = {name: torch.zeros(1, *shape) for name, shape in model.level_shapes.items()}
    if start is not None:
        middle, example = reading.read_example(start, "--from", loaded, corpus, split, console)
        with eval_mode(model, 0) as where:
            encoded = model.encode(Batch(torch.from_numpy(example.astype(np.int64))[None].to(where)), noise=False)
        noise = {level.name: level.offset().cpu() for level in encoded}
    values = torch.linspace(-reach, reach, steps)
    noise = {name: torch.cat([value] * steps * len(strongest)) for name, value in noise.items()}
    for place, ((_, name, dim), value) in enumerate(itertools.product(strongest, values)):
        noise[name][place, dim] += value
    with eval_mode(model, 0) as where:
        latents = model.prior({name: value.to(where) for name, value in noise.items()})
    points = argmax_decode(model, latents).numpy()
    rows = points.reshape(len(strongest), steps, -1)
    changed = (rows != rows[:, :1]).any(axis=1).sum(axis=1).tolist()
    titles = [f"{name} {dim}: {value:.3g}" for _, name, dim in strongest for value in values.tolist()]
    decoded = domain.row(loaded, points, titles)
    keys = ("kl_nats", "level", "dimension", "changed")
    found = [dict(zip(keys, (*one, count), strict=True)) for one, count in zip(strongest, changed, strict=True)]
    decoded.facts.update(values=values.tolist(), dimensions=found)
    text = "; ".join("{level} {dimension}: {kl_nats:.2f} nats, {changed}".format(**one) for one in found)
    title = f"{len(found)} dimensions from {-reach:g} to {reach:g} standard deviations around {middle}"
    decoded = decoded._replace(summary=f"KL, and {domain.changes} that change: {text}")
    asked = {"from": middle, "steps": steps, "reach": reach}
    reading.write_decoded(console, loaded, decoded, latents, output, "traversal", asked, title)
