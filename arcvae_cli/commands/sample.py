"""`arcvae sample`: draw from a prior and decode."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import Corpus


def _temperature(value: float) -> float:
    if math.isnan(value):  # which no range excludes
        raise typer.BadParameter("expected a number")
    return value


def sample(
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    num: Annotated[int, typer.Option(min=1, max=1_000_000, help="how many")] = 64,
    temperature: Annotated[
        float,
        typer.Option(min=0, max=10, callback=_temperature, help="factor on the standard deviation of the prior"),
    ] = 1.0,
    prior: Annotated[
        Literal["standard", "aggregate", "gmm"],
        typer.Option(help="the model's own, or one Gaussian or a mixture fitted to the codes of examples"),
    ] = "standard",
    decode: Annotated[
        Literal["sample", "argmax"] | None,
        typer.Option(help="for strings: sample rules from p(x|z), or take the argmax", show_default="sample"),
    ] = None,
    budget: Annotated[
        bool | None,
        typer.Option(
            "--budget/--no-budget",
            help="for strings: only rules that leave time to finish, so that every string is complete",
            show_default="budget",
        ),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="condition on grids, as colours=3; may be given several times; "
            "`arcvae data info --conditions` lists them",
            show_default="none",
        ),
    ] = None,
    seed: reading.SeedOption = 0,
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: Annotated[
        reading.SplitName, typer.Option(help="what aggregate and gmm are fitted to", rich_help_panel=reading.INPUT)
    ] = "train",
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw from the prior: grids in ARC colours, or strings, here and as files in a folder."""
    import torch

    from arcvae_cli import conditions, domains
    from arcvae_cli.console import Console
    from arcvae_cli.domains.base import Draw
    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.evaluation.priors import EXAMPLES, draw_prior, fit_prior

    console = Console(quiet=quiet, as_json=as_json)
    given = conditions.parse(condition or [])
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    model, domain = loaded.model, domains.of(loaded.model.kind)
    if given and not model.attributes:
        raise InputError(
            f"--condition {condition[0] if condition else ''}: this model takes no conditions",
            "train one that does: `arcvae train --preset hierarchical`",
        )
    domain.check_flags({"--decode": decode, "--budget/--no-budget": budget})
    domain.check_decodable(loaded)
    folder = reading.output_folder(output, loaded, "samples")
    opened = functools.cache(lambda split: reading.open_examples(loaded, data, split, console))

    place, components = next(model.parameters()).device, None
    if prior == "standard":
        encoded = torch.from_numpy(conditions.encode(given, num)).to(place) if given else None
        with eval_mode(model, seed):
            latents = draw_prior(model, num, temperature, encoded)
    else:
        corpus = opened(split)
        codes = domain.posterior_samples(model, corpus, split, seed, given, EXAMPLES)
        examples = len(next(iter(codes.values())))
        whose = f"{split} examples of {corpus.name}{f' with {conditions.written(given)}' if given else ''}"
        if examples < 2:
            raise InputError(
                f"--prior {prior}: too few to fit a density to, {examples} {whose}",
                "use --prior standard, or more data",
            )
        fitted = fit_prior(prior, codes, seed)
        components = len(fitted.weights)
        kind = f"{components} Gaussians, by held-out likelihood," if prior == "gmm" else "a Gaussian"
        console.note(f"prior: {kind} fitted to {examples} {whose}")
        latents = fitted.sample(num, temperature, seed, place)

    argmax, budgeted = decode == "argmax", budget is not False
    training = functools.partial(_training_corpus, loaded, data, opened, console)
    decoded = domain.sample(Draw(loaded, latents, temperature, seed, given, argmax, budgeted, training, console.note))
    asked = {"num": num, "prior": prior, "components": components, "temperature": temperature, "seed": seed}
    arrays = {f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}
    about = [f"{num} samples", conditions.written(given), f"{prior} prior, temperature {temperature:g}"]
    about += ["argmax rules"] * argmax + ["no budget"] * (not budgeted)
    title = ", ".join(filter(None, about))
    reading.write_decoded(console, loaded, decoded, folder, "samples", asked, arrays, title, alone=domain.plain)


def _training_corpus(
    loaded: Loaded, data: str | None, corpus: Callable[[str], Corpus], console: Console
) -> Corpus | None:
    """The corpus of the training strings; None, with a note, if it is not available. Only `--data` builds it."""
    settings = loaded.settings.data
    if data is None and reading.unbuilt(settings):
        builds = "" if settings.input or settings.grammar else f"; --data {settings.name} builds them"
        console.note(f"novelty is not counted: the training strings are not in the cache{builds}")
        return None
    try:
        return corpus("train")
    except InputError as error:
        if data is not None:
            raise
        console.note(f"novelty is not counted: {error.what}")
        return None
