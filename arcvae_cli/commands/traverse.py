"""`arcvae traverse`: what each dimension of the code changes."""

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
    import torch

    from arcvae_cli.evaluation.information import choose, eval_mode, posteriors
    from arcvae_cli.evaluation.priors import generate

    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    model, domain = loaded.model, domains.of(loaded.model.kind)
    domain.check_decodable(loaded)
    corpus = reading.open_examples(loaded, data, split, console)
    levels = posteriors(model, corpus, split, choose(corpus, split, 2000, 0))
    nats = [(kl, name, dim) for name, level in levels.items() for dim, kl in enumerate(level.kl.mean(dim=0).tolist())]
    strongest, middle = sorted(nats, reverse=True)[:dims], "the code 0"
    values, count = torch.linspace(-reach, reach, steps), steps * len(strongest)
    with eval_mode(model, 0) as where:
        noise = {name: torch.zeros(count, *shape, device=where) for name, shape in model.level_shapes.items()}
        if start is not None:
            (middle,), _, encoded = reading.encoded({"--from": start}, loaded, lambda: corpus, split, console)
            noise = {level.name: level.offset().repeat_interleave(count, dim=0) for level in encoded}
        for place, ((_, name, dim), value) in enumerate(itertools.product(strongest, values.tolist())):
            noise[name][place, dim] += value
        latents = model.prior(noise)
    points = generate(model, latents).numpy()
    titles = [f"{name} {dim}: {value:.3g}" for _, name, dim in strongest for value in values.tolist()]
    decoded = domain.row(loaded, points, titles)
    found = [dict(zip(("kl_nats", "level", "dimension"), one, strict=True)) for one in strongest]
    decoded.facts.update(values=values.tolist(), dimensions=found)
    text = "; ".join("{level} {dimension}: {kl_nats:.2f} nats".format(**one) for one in found)
    title = f"{len(found)} dimensions from {-reach:g} to {reach:g} standard deviations around {middle}"
    asked = {"from": middle, "steps": steps, "reach": reach}
    decoded = decoded._replace(summary=text)
    reading.write_decoded(console, loaded, decoded, latents, output, "traversal", asked, title)
