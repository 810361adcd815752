"""`arcvae sample`: draw from a prior and decode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from arcvae_cli import domains
from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.data.corpus import Corpus

Prior = Literal["standard", "aggregate", "gmm"]
CONDITION = "condition on grids, as colours=3; repeatable; `arcvae data info --conditions` lists them"
PRIOR = "the model's own, or a Gaussian or a mixture fitted to the codes of examples"
DECODE = "of the rules of strings, or of an autoregressive decoder, for which argmax is greedy; beam: of strings"
RULE_TEMPERATURE = "for strings: divides the logits of rules that are drawn"
BUDGET = "for strings: only rules that leave time to finish, so that every string is complete"


def sample(
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    num: Annotated[int, typer.Option(min=1, max=1_000_000, help="number of samples")] = 64,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="factor on the prior's standard deviation")] = 1.0,
    prior: Annotated[Prior, typer.Option(help=PRIOR)] = "standard",
    decode: Annotated[
        Literal["sample", "argmax", "beam"] | None, typer.Option(help=DECODE, show_default="sample")
    ] = None,
    beam_width: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="derivations that --decode beam keeps of a code", show_default="5"),
    ] = None,
    rule_temperature: Annotated[
        float | None, typer.Option(min=0.01, max=100, help=RULE_TEMPERATURE, show_default="1")
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
    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    grids = loaded.model.autoregressive and decode != "beam"
    only = {"--beam-width": beam_width, "--rule-temperature": rule_temperature, "--budget/--no-budget": budget}
    domains.of(loaded.model.kind).check_flags(only | ({} if grids else {"--decode": decode}))
    if beam_width is not None and decode != "beam":
        raise InputError("--beam-width: there is no beam", "give --decode beam too")
    if rule_temperature is not None and decode not in (None, "sample"):
        raise InputError(f"--rule-temperature: --decode {decode} draws no rules", "use --decode sample")
    opened = functools.cache(lambda split: reading.open_examples(loaded, data, split, console))

    def training() -> Any:  # only --data builds one
        with suppress(InputError):
            if data is not None or not reading.unbuilt(loaded.settings.data):
                return opened("train")
        console.note("novelty is not counted: the training corpus is not available; --data opens one, or builds it")
        return None

    how: dict[str, Any] = {"num": num, "prior": prior, "temperature": temperature, "seed": seed, "split": split}
    how |= {"training": training, "conditions": condition, "decode": decode, "budget": budget is not False}
    how |= {"beam_width": beam_width or 5, "rule_temperature": rule_temperature or 1.0}
    decoded, latents, components, under = drawn(loaded, how, opened, console)
    asked = {"num": num, "prior": prior, "components": components, "temperature": temperature, "seed": seed}
    about = [f"{num} samples", under, f"{prior} prior, temperature {temperature:g}"]
    about += [str(decode) * (decode in ("argmax", "beam")), "no budget" * (not how["budget"])]
    about += [f"rules at temperature {rule_temperature:g}"] if rule_temperature else []
    title = ", ".join(filter(None, about))
    reading.write_decoded(console, loaded, decoded, latents, output, "samples", asked, title)


def drawn(loaded: Loaded, how: Mapping[str, Any], opened: Callable[[str], Corpus], console: Console) -> tuple[Any, ...]:
    """Decoded samples, their latents by level, how many Gaussians a fitted prior has, and the conditions in words.

    `how`: the options of the domain's `sample`, and those of this command. `opened`: the corpus with a split.
    """
    import torch

    from arcvae_cli import conditions
    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.evaluation.priors import EXAMPLES, draw_prior, fit_prior

    model, domain, prior, seed = loaded.model, domains.of(loaded.model.kind), how["prior"], how["seed"]
    if (texts := how["conditions"]) and not model.attributes:
        what = f"condition {', '.join(texts)}: this model takes no conditions"
        raise InputError(what, "train one that does: `arcvae train --preset hierarchical`")
    if prior not in get_args(Prior):
        raise InputError(f"prior {prior!r}: unknown", f"use {', '.join(get_args(Prior))}")
    domain.check_decodable(loaded)
    given = conditions.parse(texts, model.canvas) if texts else {}
    under = conditions.written(given, model.canvas) if given else ""
    place, components = next(model.parameters()).device, None
    if prior == "standard":
        betas = loaded.settings.schedule.by_level(list(model.level_shapes)).values()
        times = [step / 8 for step in range(8 * loaded.epoch + 1)]
        if any(not beta.closed_loop and not any(map(beta, times)) for beta in betas):
            console.warn(f"beta was 0 to epoch {loaded.epoch}: codes do not follow the prior; try --prior aggregate")
        encoded = torch.from_numpy(conditions.encode(given, how["num"], model.canvas)).to(place) if given else None
        with eval_mode(model, seed):
            latents = draw_prior(model, how["num"], how["temperature"], encoded)
    else:
        corpus = opened(how["split"])
        codes = domain.posterior_samples(model, corpus, how["split"], seed, given, EXAMPLES)
        examples = len(next(iter(codes.values())))
        found = f"{examples} {how['split']} examples of {corpus.name}{f' with {under}' if given else ''}"
        if examples < 2:
            raise InputError(f"--prior {prior}: needs two examples, found {found}", "use --prior standard")
        fitted = fit_prior(prior, codes, seed)
        components = len(fitted.weights)
        console.note(f"prior: {components} {'Gaussians' if components > 1 else 'Gaussian'} fitted to {found}")
        latents = fitted.sample(how["num"], how["temperature"], seed, place)
    return domain.sample(loaded, latents, seed, {**how, "given": given}, console.note), latents, components, under
