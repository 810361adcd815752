"""`arcvae sample`: draw from a prior and decode."""

from __future__ import annotations

import functools
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
    open_examples,
    output_folder,
)

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
    """Draw from the prior: grids in ARC colours, or strings, here and as files in a folder."""
    import torch
    from rich.text import Text

    from arcvae_cli import conditions, domains
    from arcvae_cli.console import Console
    from arcvae_cli.domains.base import Draw, title_of, write_arrays
    from arcvae_cli.errors import InputError
    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.evaluation.priors import EXAMPLES, draw_prior, fit_prior

    console = Console(quiet=quiet, as_json=as_json)
    given = conditions.parse(condition or [])
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    model, domain = loaded.model, domains.of(loaded.model.kind)
    if given and not model.attributes:
        raise InputError(
            f"--condition {condition[0] if condition else ''}: this model takes no conditions",
            "train one that does: `arcvae train --preset hierarchical`",
        )
    domain.check_flags({"--decode": decode, "--budget/--no-budget": budget})
    domain.check_decodable(loaded)
    folder = output_folder(output, loaded, "samples")
    opened = functools.cache(lambda split: open_examples(loaded, data, split, console))

    place, components = next(model.parameters()).device, None
    encoded = torch.from_numpy(conditions.encode(given, num)).to(place) if given else None
    if prior == "standard":
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
        components = len(fitted.density.weights)
        kind = f"{components} Gaussians, by held-out likelihood," if prior == "gmm" else "a Gaussian"
        console.note(f"prior: {kind} fitted to {examples} {whose}")
        latents = fitted.sample(num, temperature, seed, place)

    training = functools.partial(_training_corpus, loaded, data, opened, console)
    argmax, budgeted = decode == "argmax", budget is not False
    draw = Draw(loaded, latents, temperature, seed, given, encoded, argmax, budgeted, training, console.note)
    decoded = domain.sample(draw)
    files = {kind: folder / f"samples.{kind}" for kind in domain.formats}
    document = {
        "checkpoint": str(loaded.path),
        "epoch": loaded.epoch,
        "num": num,
        "prior": prior,
        "components": components,
        "temperature": temperature,
        "seed": seed,
        "files": {kind: str(path) for kind, path in files.items()},
        **decoded.facts,
    }
    arrays = {f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}
    write_arrays(files["npz"], {**decoded.arrays, **arrays})
    about = [f"{num} samples", conditions.written(given), f"{prior} prior, temperature {temperature:g}"]
    about += ["argmax rules"] * argmax + ["no budget"] * (not budgeted)
    title = ", ".join(filter(None, about))
    domain.write(files, decoded, document, f"{title}, {title_of(loaded)}")
    domain.show(console, decoded)
    # in a pipe stand strings alone
    (console.note if domain.plain and console.piped else console.result)(Text(f"{title}: {decoded.summary}"))
    console.note(f"wrote {', '.join(path.name for path in files.values())} to {folder}")
    console.json(document)


def _training_corpus(
    loaded: Loaded, data: str | None, corpus: Callable[[str], Corpus], console: Console
) -> Corpus | None:
    """The corpus whose training split decides what is novel; None, with a note, if it is not available.

    Only `--data` builds a corpus that is not in the cache.
    """
    from arcvae_cli.data.corpora import cache_path
    from arcvae_cli.errors import InputError

    lacking = "novelty is not counted, the training strings are not available"
    settings = loaded.settings.data
    cached = cache_path(settings)
    if data is None and cached is not None and not cached.is_file():
        named = settings.input is None and settings.grammar is None
        console.note(f"{lacking} ({f'--data {settings.name} builds them' if named else 'not in the cache'})")
        return None
    try:
        return corpus("train")
    except InputError as error:
        if data is not None:
            raise
        console.note(f"{lacking} ({error.what})")
        return None
