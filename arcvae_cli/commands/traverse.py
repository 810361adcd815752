"""`arcvae traverse`: what each dimension of the code changes."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from arcvae_cli import domains
from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.console import Console

EXAMPLES = 2000  # that the KL of a dimension is measured on
FROM = "around the code of an example, as in `arcvae interpolate`"


def traverse(
    start: Annotated[str | None, reading.input_option("--from", help=FROM, show_default="around 0")] = None,
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    dims: Annotated[int, typer.Option(min=1, max=4096, help="dimensions, those of the largest KL")] = 8,
    steps: Annotated[int, typer.Option(min=2, max=64, help="pictures of a dimension")] = 7,
    reach: Annotated[float, typer.Option(min=0.01, max=20, help="prior standard deviations to either side")] = 3.0,
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: reading.SplitOption = "test",
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode codes that differ in one dimension: a row for each, the strongest first. Files in --output are replaced.

    A dimension of a map is a channel, and moves in all cells. Under a learned prior the levels below go along.
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
    levels = posteriors(model, corpus(), split, choose(corpus(), split, EXAMPLES, 0))
    nats = [(value, name, dim) for name, level in levels.items() for dim, value in enumerate(level.kl.mean(0).tolist())]
    strongest = sorted(nats, reverse=True)[:dims]
    noise, place = {name: torch.zeros(1, *shape) for name, shape in model.level_shapes.items()}, "0"
    if start is not None:
        place, example = reading.read_example(start, "--from", loaded, corpus, split, console)
        with eval_mode(model, 0) as where:
            x = torch.from_numpy(example.astype(np.int64)).to(where)[None]
            noise = {level.name: level.offset().cpu() for level in model.encode(Batch(x), noise=False)}
    values = torch.linspace(-reach, reach, steps)
    noise = {name: value.repeat(steps * len(strongest), *[1] * (value.dim() - 1)) for name, value in noise.items()}
    for row, (_, name, dim) in enumerate(strongest):
        moved = noise[name][row * steps : (row + 1) * steps, dim]  # (steps,) or (steps, H, W)
        moved += values.view(-1, *[1] * (moved.dim() - 1))
    with eval_mode(model, 0) as where:
        latents = model.prior({name: value.to(where) for name, value in noise.items()})
    points = argmax_decode(model, latents).numpy()
    rows = points.reshape(len(strongest), steps, -1)
    changed = (rows != rows[:, :1]).any(axis=1).sum(axis=1).tolist()
    labels = [f"{name} {dim}" for _, name, dim in strongest]
    decoded = domain.row(loaded, points, [f"{label}: {value:+.3g}" for label in labels for value in values.tolist()])
    found = [
        {"level": name, "dimension": dim, "kl_nats": kl, "changed": count}
        for (kl, name, dim), count in zip(strongest, changed, strict=True)
    ]
    decoded.facts.update(values=values.tolist(), dimensions=found)
    strong = ", ".join("{level} {dimension} ({kl_nats:.2f} nats, {changed})".format(**one) for one in found)
    summary = f"KL and {domain.changes} that change: {strong}"
    title = f"{len(strongest)} dimensions from {-reach:g} to {reach:g} standard deviations around {place}"
    asked = {"from": place, "steps": steps, "reach": reach}
    reading.write_decoded(
        console, loaded, decoded._replace(summary=summary), latents, output, "traversal", asked, title
    )
