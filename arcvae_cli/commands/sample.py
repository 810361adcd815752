"""`arcvae sample`: draw from a prior and decode."""

import functools
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from arcvae_cli import domains
from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError

CONDITION = "condition on grids, as colours=3; repeatable; `arcvae data info --conditions` lists them"
PRIOR = "the model's own, or a Gaussian or a mixture fitted to the codes of examples"
BUDGET = "for strings: only rules that leave time to finish, so that every string is complete"


def sample(
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    num: Annotated[int, typer.Option(min=1, max=1_000_000, help="number of samples")] = 64,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="factor on the prior's standard deviation")] = 1.0,
    prior: Annotated[Literal["standard", "aggregate", "gmm"], typer.Option(help=PRIOR)] = "standard",
    decode: Annotated[
        Literal["sample", "argmax"] | None, typer.Option(help="of the rules of strings", show_default="sample")
    ] = None,
    budget: Annotated[bool | None, typer.Option("--budget/--no-budget", help=BUDGET, show_default="budget")] = None,
    condition: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help=CONDITION, show_default="none")
    ] = None,
    seed: reading.SeedOption = 0,
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: Annotated[reading.SplitName, reading.input_option(help="examples for aggregate and gmm")] = "train",
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw samples from the prior: grids in ARC colours, or strings. Files in --output FOLDER are replaced."""
    import torch

    from arcvae_cli import conditions
    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.evaluation.priors import EXAMPLES, draw_prior, fit_prior

    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    model, domain = loaded.model, domains.of(loaded.model.kind)
    if condition and not model.attributes:
        what = f"--condition {', '.join(condition)}: this model takes no conditions"
        raise InputError(what, "train one that does: `arcvae train --preset hierarchical`")
    given = conditions.parse(condition, model.canvas) if condition else {}
    under = conditions.written(given, model.canvas) if given else ""
    domain.check_flags({"--decode": decode, "--budget/--no-budget": budget})
    domain.check_decodable(loaded)
    opened = functools.cache(lambda split: reading.open_examples(loaded, data, split, console))

    place, components = next(model.parameters()).device, None
    if prior == "standard":
        betas = loaded.settings.schedule.by_level(list(model.level_shapes)).values()
        times = [step / 8 for step in range(8 * loaded.epoch + 1)]
        if any(not beta.closed_loop and not any(map(beta, times)) for beta in betas):
            console.warn(f"beta was 0 to epoch {loaded.epoch}: codes do not follow the prior; try --prior aggregate")
        encoded = torch.from_numpy(conditions.encode(given, num, model.canvas)).to(place) if given else None
        with eval_mode(model, seed):
            latents = draw_prior(model, num, temperature, encoded)
    else:
        corpus = opened(split)
        codes = domain.posterior_samples(model, corpus, split, seed, given, EXAMPLES)
        examples = len(next(iter(codes.values())))
        found = f"{examples} {split} examples of {corpus.name}"
        found += f" with {under}" if given else ""
        if examples < 2:
            raise InputError(f"--prior {prior}: needs two examples, found {found}", "use --prior standard")
        fitted = fit_prior(prior, codes, seed)
        components = len(fitted.weights)
        console.note(f"prior: {components} {'Gaussians' if components > 1 else 'Gaussian'} fitted to {found}")
        latents = fitted.sample(num, temperature, seed, place)

    def training() -> Any:  # only --data builds one
        if data is not None:
            return opened("train")
        if not reading.unbuilt(loaded.settings.data):
            with suppress(InputError):
                return opened("train")
        console.note("novelty is not counted: the training corpus is not available; --data opens one, or builds it")
        return None

    argmax, budgeted = decode == "argmax", budget is not False
    options = {"given": given, "temperature": temperature, "argmax": argmax, "budget": budgeted, "training": training}
    decoded = domain.sample(loaded, latents, seed, options, console.note)
    asked = {"num": num, "prior": prior, "components": components, "temperature": temperature, "seed": seed}
    about = [f"{num} samples", under, f"{prior} prior, temperature {temperature:g}"]
    title = ", ".join(filter(None, [*about, "argmax rules" * argmax, "no budget" * (not budgeted)]))
    reading.write_decoded(console, loaded, decoded, latents, output, "samples", asked, title)
