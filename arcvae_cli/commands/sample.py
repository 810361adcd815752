"""`arcvae sample`: draws from a prior, decoded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

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
    from rich.text import Text

    from arcvae_cli import render
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.information import evaluating
    from arcvae_cli.evaluation.priors import fit_prior, most_likely
    from arcvae_cli.evaluation.samples import blank_share

    console = Console(quiet=quiet, as_json=as_json)
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    folder = output_folder(output, loaded, "samples")

    if prior == "standard":
        components = None
        with evaluating(loaded.model, seed):
            latents = loaded.model.prior(num, temperature)
    else:
        corpus = open_data(loaded, data, split, console)
        fitted = fit_prior(prior, loaded.model, corpus, seed, split)
        components = fitted.components
        kind = f"{components} Gaussians, by held-out likelihood," if prior == "gmm" else "a Gaussian"
        console.note(f"prior: {kind} fitted to {fitted.examples} {split} examples of {corpus.name}")
        latents = fitted.sample(num, temperature, seed, next(loaded.model.parameters()).device)

    # The kind of structure decides from here on how what was decoded is shown and written.
    grids = most_likely(loaded.model, latents).numpy().astype(np.uint8)
    blank = blank_share(grids)
    distinct = len({grid.tobytes() for grid in grids})
    lit = float((grids > 0).mean())

    named = f"{prior} prior, temperature {temperature:g}"
    files = {kind: folder / f"samples.{kind}" for kind in ("png", "npz", "json")}
    shown = f"{num} samples" if num <= PICTURED else f"{PICTURED} of {num} samples"
    render.save_grids(
        files["png"],
        grids[:PICTURED],
        columns=8 if num <= 64 else 16,
        title=f"{shown}, {named}, {loaded.path.name} of epoch {loaded.epoch}",
    )
    codes = {f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}
    write_arrays(files["npz"], {"grids": grids, **codes})
    write_task(files["json"], grids)

    screen = render.TerminalGrids(grids)
    console.result(render.TerminalGrids(grids[: screen.capacity(console.out, console.out.height - 4)]))
    console.result(
        Text(
            f"{num} samples, {named}: {blank:.0%} blank, {distinct} distinct ({distinct / num:.0%}), "
            f"{lit:.1%} of their cells not black"
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
            "blank_share": blank,
            "distinct": distinct,
            "distinct_share": distinct / num,
            "non_black_share": lit,
            "files": {kind: str(path) for kind, path in files.items()},
        }
    )
