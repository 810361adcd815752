"""`arcvae sample`: draws from a prior, decoded."""

from __future__ import annotations

import math
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
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from arcvae_cli.models.base import VAE

PICTURED = 256  # grids in the picture; the files hold all


def _temperature(value: float) -> float:
    if math.isnan(value):  # which no range keeps out
        raise typer.BadParameter("expected a number")
    return value


def sample(
    checkpoint: CheckpointOption = "vae_best.pth",
    num: Annotated[int, typer.Option(min=1, max=1_000_000, help="how many")] = 64,
    temperature: Annotated[
        float,
        typer.Option(min=0, max=10, callback=_temperature, help="factor on the standard deviation of the prior"),
    ] = 1.0,
    prior: Annotated[
        Literal["standard", "aggregate", "gmm"],
        typer.Option(help="the model's own, or one Gaussian or a mixture fitted to the codes of examples"),
    ] = "standard",
    condition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="what the grids should be like, as colours=3; may be given several times; "
            "`arcvae data info --conditions` lists them",
            show_default="none",
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data: DataOption = None,
    split: Annotated[
        SplitName, typer.Option(help="what aggregate and gmm are fitted to", rich_help_panel=INPUT)
    ] = "train",
    runs_dir: RunsOption = Path("runs"),
    output: Annotated[
        Path | None, typer.Option(help="folder", show_default="samples/ of the run, or here", rich_help_panel=OUTPUT)
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw from the prior: grids in ARC colours here, and as PNG, .npz and ARC JSON in a folder."""
    import numpy as np
    import torch
    from rich.text import Text

    from arcvae_cli import conditions, render
    from arcvae_cli.console import Console
    from arcvae_cli.errors import InputError
    from arcvae_cli.evaluation.information import evaluating
    from arcvae_cli.evaluation.priors import draw_prior, fit_prior, most_likely
    from arcvae_cli.evaluation.samples import blank_share

    console = Console(quiet=quiet, as_json=as_json)
    given = conditions.parse(condition or [])
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    model = loaded.model
    if given and not model.attributes:
        raise InputError(
            f"--condition {condition[0] if condition else ''}: this model takes no conditions",
            "train one that does: `arcvae train --preset hierarchical`",
        )
    folder = output_folder(output, loaded, "samples")
    asked = conditions.encode(given, num) if given else None
    place = next(model.parameters()).device
    on_device = None if asked is None else torch.from_numpy(asked).to(place)

    if prior == "standard":
        components = None
        with evaluating(model, seed):
            latents = draw_prior(model, num, temperature, on_device)
    else:
        corpus = open_data(loaded, data, split, console)
        fitted = fit_prior(prior, model, corpus, seed, split, given)
        components = fitted.components
        kind = f"{components} Gaussians, by held-out likelihood," if prior == "gmm" else "a Gaussian"
        like_that = f" with {conditions.written(given)}" if given else ""
        console.note(f"prior: {kind} fitted to {fitted.examples} {split} examples of {corpus.name}{like_that}")
        latents = fitted.sample(num, temperature, seed, place)

    # The kind of structure decides from here on how what was decoded is shown and written.
    grids = most_likely(model, latents, on_device).numpy().astype(np.uint8)
    blank = blank_share(grids)
    distinct = len({grid.tobytes() for grid in grids})
    lit = float((grids > 0).mean())

    named = f"{prior} prior, temperature {temperature:g}"
    files = {kind: folder / f"samples.{kind}" for kind in ("png", "npz", "json")}
    shown = f"{num} samples" if num <= PICTURED else f"{PICTURED} of {num} samples"
    obeyed = _obeyed(model, grids, given, temperature, seed) if given else None
    about = [shown, conditions.written(given), named, f"{loaded.path.name} of epoch {loaded.epoch}"]
    render.save_grids(
        files["png"],
        grids[:PICTURED],
        columns=8 if num <= 64 else 16,
        title=", ".join(filter(None, about)),
    )
    arrays = {"grids": grids, **{f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}}
    if asked is not None:
        arrays |= {"conditions": asked, "condition_names": np.array(list(conditions.PLACE))}
    write_arrays(files["npz"], arrays)
    write_task(files["json"], grids, {"conditions": given, "temperature": temperature, "seed": seed, "prior": prior})

    screen = render.TerminalGrids(grids)
    console.result(render.TerminalGrids(grids[: screen.capacity(console.out, console.out.height - 4)]))
    console.result(
        Text(
            f"{num} samples, {named}: {blank:.0%} blank, {distinct} distinct ({distinct / num:.0%}), "
            f"{lit:.1%} of their cells not black"
        )
    )
    if obeyed is not None:
        console.result(
            Text(
                f"{conditions.written(given)}: {obeyed['obeying']} of {num} obey ({obeyed['obeying_share']:.0%}); of "
                f"{num} drawn without conditions {obeyed['baseline_obeying']} do ({obeyed['baseline_share']:.0%})"
            )
        )
    console.note(f"wrote samples.png, samples.npz and samples.json to {folder}")
    console.json(
        {
            "checkpoint": str(loaded.path),
            "epoch": loaded.epoch,
            "num": num,
            "prior": prior,
            "components": components,
            "temperature": temperature,
            "seed": seed,
            "conditions": given,
            "adherence": obeyed,
            "blank_share": blank,
            "distinct": distinct,
            "distinct_share": distinct / num,
            "non_black_share": lit,
            "files": {kind: str(path) for kind, path in files.items()},
        }
    )


def _obeyed(
    model: VAE, grids: NDArray[np.uint8], given: Mapping[str, int], temperature: float, seed: int
) -> dict[str, float]:
    """How many grids are as asked, and of as many drawn from the model's own prior without conditions."""
    from arcvae_cli.conditions import attributes, obeys
    from arcvae_cli.evaluation.grids import draw_samples

    baseline = draw_samples(model, len(grids), seed, temperature)
    ours, theirs = (int(obeys(attributes(some), given).sum()) for some in (grids, baseline))
    return {
        "obeying": ours,
        "obeying_share": ours / len(grids),
        "baseline_obeying": theirs,
        "baseline_share": theirs / len(grids),
    }
