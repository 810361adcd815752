"""`arcvae sample`: draw from a prior and decode."""

from __future__ import annotations

import functools
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

LISTED = "condition on grids, as colours=3; repeatable; `arcvae data info --conditions` lists them"
BUDGET = "for strings: only rules that leave time to finish, so that every string is complete"


def sample(
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    num: Annotated[int, typer.Option(min=1, max=1_000_000, help="number of samples")] = 64,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="factor on the prior's standard deviation")] = 1.0,
    prior: Annotated[
        Literal["standard", "aggregate", "gmm"],
        typer.Option(help="the model's own, or a Gaussian or a mixture fitted to the codes of examples"),
    ] = "standard",
    decode: Annotated[
        Literal["sample", "argmax"] | None,
        typer.Option(help="for strings: sample rules from p(x|z), or take the argmax", show_default="sample"),
    ] = None,
    budget: Annotated[bool | None, typer.Option("--budget/--no-budget", help=BUDGET, show_default="budget")] = None,
    condition: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help=LISTED, show_default="none")] = None,
    seed: reading.SeedOption = 0,
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: Annotated[reading.SplitName, reading.input_option(help="examples for aggregate and gmm")] = "train",
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw samples from the prior: grids in ARC colours, or strings.

    Files go to a new folder each time; in one given by --output they are replaced.
    """
    import torch

    from arcvae_cli import conditions, domains
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.evaluation.priors import EXAMPLES, draw_prior, fit_prior

    console = Console(quiet=quiet, as_json=as_json)
    given = conditions.parse(condition or [])
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    model, domain = loaded.model, domains.of(loaded.model.kind)
    if given and not model.attributes:
        what = f"--condition {conditions.written(given)}: this model takes no conditions"
        raise InputError(what, "train one that does: `arcvae train --preset hierarchical`")
    domain.check_flags({"--decode": decode, "--budget/--no-budget": budget})
    domain.check_decodable(loaded)
    opened = functools.cache(lambda split: reading.open_examples(loaded, data, split, console))

    place, components = next(model.parameters()).device, None
    if prior == "standard":
        if free := _untrained_levels(loaded):
            what = f"{loaded.path.name} of epoch {loaded.epoch}: beta of {' and '.join(free)} was 0 until then"
            console.warn(f"{what}, so that codes do not follow the prior; try --prior aggregate")
        encoded = torch.from_numpy(conditions.encode(given, num)).to(place) if given else None
        with eval_mode(model, seed):
            latents = draw_prior(model, num, temperature, encoded)
    else:
        corpus = opened(split)
        codes = domain.posterior_samples(model, corpus, split, seed, given, EXAMPLES)
        examples = len(next(iter(codes.values())))
        fitted_to = (
            f"{examples} {split} examples of {corpus.name}{f' with {conditions.written(given)}' if given else ''}"
        )
        if examples < 2:
            raise InputError(
                f"--prior {prior}: needs two examples, found {fitted_to}", "use --prior standard, or more data"
            )
        fitted = fit_prior(prior, codes, seed)
        components = len(fitted.weights)
        kind = f"{components} Gaussians, by held-out likelihood," if prior == "gmm" else "a Gaussian"
        console.note(f"prior: {kind} fitted to {fitted_to}")
        latents = fitted.sample(num, temperature, seed, place)

    argmax, budgeted = decode == "argmax", budget is not False
    training = functools.partial(_training_corpus, loaded, data, opened, console)
    options = {"given": given, "temperature": temperature, "argmax": argmax, "budget": budgeted, "training": training}
    decoded = domain.sample(loaded, latents, seed, options, console.note)
    asked = {"num": num, "prior": prior, "components": components, "temperature": temperature, "seed": seed}
    arrays = {f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}
    about = [f"{num} samples", conditions.written(given), f"{prior} prior, temperature {temperature:g}"]
    about += ["argmax rules"] * argmax + ["no budget"] * (not budgeted)
    title = ", ".join(filter(None, about))
    reading.write_decoded(console, loaded, decoded, output, ("samples", "samples"), asked, arrays, title)


def _untrained_levels(loaded: Loaded) -> list[str]:
    """The levels whose beta was 0 in all epochs of the checkpoint; none of a closed loop, whose beta is not known."""
    parts = loaded.settings.schedule.by_level(list(loaded.model.level_shapes))
    times = [step / 8 for step in range(8 * loaded.epoch + 1)]
    return [level for level, beta in parts.items() if not beta.closed_loop and not any(map(beta, times))]


def _training_corpus(
    loaded: Loaded, data: str | None, corpus: Callable[[str], Corpus], console: Console
) -> Corpus | None:
    """The corpus of the training strings; None, with a note, if it is not available. Only `--data` builds it."""
    try:
        if data is None and reading.unbuilt(loaded.settings.data):
            raise InputError("the training corpus is not in the cache; --data builds one")
        return corpus("train")
    except InputError as error:
        if data is not None:
            raise
        console.note(f"novelty is not counted: {error.what}")
        return None
