"""`arcvae sample`: draws from a prior, decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    judge_for,
    open_checkpoint,
    open_derivations,
    open_grids,
    output_folder,
    write_arrays,
    write_task,
    writing_grammar,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import DerivationCorpus, GridCorpus
    from arcvae_cli.grammar import Grammar
    from arcvae_cli.models.base import VAE
    from arcvae_cli.models.grammar import GrammarVAE

PICTURED = 256  # grids in the picture; the files hold all
LISTED = 256  # strings on a terminal


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
    decode: Annotated[
        Literal["sample", "argmax"] | None,
        typer.Option(help="for strings: rules drawn as likely as they are, or the likeliest", show_default="sample"),
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
            help="what grids should be like, as colours=3; may be given several times; "
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
    from arcvae_cli import conditions
    from arcvae_cli.console import Console
    from arcvae_cli.errors import InputError
    from arcvae_cli.models.grammar import GrammarVAE

    console = Console(quiet=quiet, as_json=as_json)
    given = conditions.parse(condition or [])
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    asked = Asked(num, temperature, prior, seed, data, split, given)
    if given and not loaded.model.attributes:
        raise InputError(
            f"--condition {condition[0] if condition else ''}: this model takes no conditions",
            "train one that does: `arcvae train --preset hierarchical`",
        )
    if isinstance(loaded.model, GrammarVAE):
        grammar = writing_grammar(loaded)
        folder = output_folder(output, loaded, "samples")
        sample_strings(asked, loaded, loaded.model, grammar, decode or "sample", budget is not False, folder, console)
        return
    for flag, value in (("--decode", decode), ("--budget/--no-budget", budget)):
        if value is not None:
            raise InputError(f"{flag}: this model draws grids", "it is for models of strings; leave it out")
    sample_grids(asked, loaded, output_folder(output, loaded, "samples"), console)


@dataclass(frozen=True)
class Asked:
    """What is to be drawn, from which prior; `given`: conditions. `data`, `split`: what a prior is fitted to."""

    num: int
    temperature: float
    prior: Literal["standard", "aggregate", "gmm"]
    seed: int
    data: str | None
    split: str
    given: Mapping[str, int]

    @property
    def named(self) -> str:
        """The prior in words."""
        return f"{self.prior} prior, temperature {self.temperature:g}"


def draw_codes(
    asked: Asked,
    model: VAE,
    corpus: Callable[[str], GridCorpus | DerivationCorpus],
    console: Console,
    conditions: Tensor | None = None,
) -> tuple[dict[str, Tensor], int | None]:
    """Latents by level on the model's device, and of how many Gaussians a fitted prior consists.

    `corpus` opens what a prior is fitted to, by the name of the split.
    """
    from arcvae_cli.conditions import written
    from arcvae_cli.evaluation.information import evaluating
    from arcvae_cli.evaluation.priors import draw_prior, fit_prior

    if asked.prior == "standard":
        with evaluating(model, asked.seed):
            return draw_prior(model, asked.num, asked.temperature, conditions), None
    some = corpus(asked.split)
    fitted = fit_prior(asked.prior, model, some, asked.seed, asked.split, asked.given)
    kind = f"{fitted.components} Gaussians, by held-out likelihood," if asked.prior == "gmm" else "a Gaussian"
    like_that = f" with {written(asked.given)}" if asked.given else ""
    console.note(f"prior: {kind} fitted to {fitted.examples} {asked.split} examples of {some.name}{like_that}")
    place = next(model.parameters()).device
    return fitted.sample(asked.num, asked.temperature, asked.seed, place), fitted.components


def facts(asked: Asked, loaded: Loaded, components: int | None, files: Mapping[str, Path]) -> dict[str, Any]:
    """How the samples came about, as the JSON document begins."""
    return {
        "checkpoint": str(loaded.path),
        "epoch": loaded.epoch,
        "num": asked.num,
        "prior": asked.prior,
        "components": components,
        "temperature": asked.temperature,
        "seed": asked.seed,
        "files": {kind: str(path) for kind, path in files.items()},
    }


# ---------------------------------------------------------------------------------------------------------- grids


def sample_grids(asked: Asked, loaded: Loaded, folder: Path, console: Console) -> None:
    """Grids in the terminal and as `samples.png`, `samples.npz` and `samples.json`, an ARC task."""
    import numpy as np
    import torch
    from rich.text import Text

    from arcvae_cli import conditions, render
    from arcvae_cli.evaluation.priors import most_likely
    from arcvae_cli.evaluation.samples import blank_share

    model, num, given = loaded.model, asked.num, asked.given
    encoded = conditions.encode(given, num) if given else None
    on_device = None if encoded is None else torch.from_numpy(encoded).to(next(model.parameters()).device)
    latents, components = draw_codes(
        asked, model, lambda split: open_grids(loaded, asked.data, split, console), console, on_device
    )
    grids = most_likely(model, latents, on_device).numpy().astype(np.uint8)
    blank = blank_share(grids)
    distinct = len({grid.tobytes() for grid in grids})
    lit = float((grids > 0).mean())
    obeyed = _obeyed(model, grids, given, asked.temperature, asked.seed) if given else None

    files = {kind: folder / f"samples.{kind}" for kind in ("png", "npz", "json")}
    shown = f"{num} samples" if num <= PICTURED else f"{PICTURED} of {num} samples"
    about = [shown, conditions.written(given), asked.named, f"{loaded.path.name} of epoch {loaded.epoch}"]
    render.save_grids(
        files["png"],
        grids[:PICTURED],
        columns=8 if num <= 64 else 16,
        title=", ".join(filter(None, about)),
    )
    arrays = {"grids": grids, **{f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}}
    if encoded is not None:
        arrays |= {"conditions": encoded, "condition_names": np.array(list(conditions.PLACE))}
    write_arrays(files["npz"], arrays)
    origin = {"conditions": given, "temperature": asked.temperature, "seed": asked.seed, "prior": asked.prior}
    write_task(files["json"], grids, origin)

    screen = render.TerminalGrids(grids)
    console.result(render.TerminalGrids(grids[: screen.capacity(console.out, console.out.height - 4)]))
    console.result(
        Text(
            f"{num} samples, {asked.named}: {blank:.0%} blank, {distinct} distinct ({distinct / num:.0%}), "
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
            **facts(asked, loaded, components, files),
            "conditions": given,
            "adherence": obeyed,
            "blank_share": blank,
            "distinct": distinct,
            "distinct_share": distinct / num,
            "non_black_share": lit,
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


# -------------------------------------------------------------------------------------------------------- strings


def sample_strings(
    asked: Asked,
    loaded: Loaded,
    model: GrammarVAE,
    grammar: Grammar,
    decode: str,
    budget: bool,
    folder: Path,
    console: Console,
) -> None:
    """Strings on stdout, one a line or on a terminal a list with remarks, and as `samples.txt`, `.npz` and `.json`.

    Off a terminal, and in `samples.txt`, stand the complete ones alone: what is cut off is no string of the grammar.
    """
    import functools
    import json

    import numpy as np
    from rich.text import Text

    from arcvae_cli import render
    from arcvae_cli.evaluation.priors import derive
    from arcvae_cli.files import atomic_write

    opened = functools.cache(lambda split: open_derivations(loaded, asked.data, split, console))
    latents, components = draw_codes(asked, model, opened, console)
    derived = derive(model, latents, decode == "sample", budget, asked.seed)
    ids, complete = derived.ids.numpy().astype(np.int16), derived.complete.numpy()
    texts = [grammar.write(row) for row in ids.tolist()]
    written = [text for text in texts if text is not None]
    judge = judge_for(grammar, console)
    valid = None if judge is None else {text for text in set(written) if judge(text)}
    known = training_strings(asked, loaded, opened, console)

    good = [text for text in written if valid is None or text in valid]
    meaning = str if judge is None or judge.canonical is None else judge.canonical
    different = {meaning(text): text for text in reversed(good)}.values()  # the first of those that mean the same
    novel = None if known is None else [text for text in different if text not in known]
    counts = {
        "complete": len(written),
        "valid": None if valid is None else len(good),
        "distinct": len(different),
        "novel": None if novel is None else len(novel),
    }
    of = {"complete": asked.num, "valid": asked.num, "distinct": len(good), "novel": len(different)}
    shares = {
        f"{name}_share": None if count is None or not of[name] else count / of[name] for name, count in counts.items()
    }
    files = {kind: folder / f"samples.{kind}" for kind in ("txt", "npz", "json")}
    document = {
        **facts(asked, loaded, components, files),
        "decode": decode,
        "budget": budget,
        "judge": None if judge is None else judge.name,
        **counts,
        **shares,
        "strings": texts,
    }
    with atomic_write(files["txt"]) as temporary:
        temporary.write_text("".join(f"{text}\n" for text in written), encoding="utf-8")
    codes = {f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}
    write_arrays(files["npz"], {"ids": ids, "complete": complete, **codes})
    with atomic_write(files["json"]) as temporary:
        temporary.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")

    about = [f"{asked.num} samples, {asked.named}, {'rules drawn' if decode == 'sample' else 'the likeliest rules'}"]
    about += [] if budget else ["no budget"]
    found = [f"{len(written)} complete"]
    found += [] if valid is None or judge is None else [f"{len(good)} {judge.name}"]
    found += [f"{len(different)} of them distinct"]
    found += [] if novel is None else [f"{len(novel)} of those not among the training strings"]
    summary = Text(f"{', '.join(about)}: {', '.join(found)}")
    if console.piped:
        console.lines(written)
        console.note(summary)
    else:
        rows = [
            (
                str(place + 1),
                beginning(grammar, row) if text is None else text,
                remarks(text, texts[:place], valid, known),
            )
            for place, (text, row) in enumerate(zip(texts[:LISTED], ids[:LISTED].tolist(), strict=True))
        ]
        console.result(render.TerminalStrings(rows))
        console.result(summary)
    console.note(f"wrote samples.txt, samples.npz and samples.json to {folder}")
    console.json(document)


def training_strings(
    asked: Asked, loaded: Loaded, corpus: Callable[[str], DerivationCorpus], console: Console
) -> frozenset[str] | None:
    """The strings of the training split; None, and a note, where they are not at hand.

    Nothing is built for it: only `--data` opens whatever it takes.
    """
    from arcvae_cli.data.recipes import cache_path
    from arcvae_cli.errors import InputError

    lacking = "not counted: which samples are novel, since the training strings are not at hand"
    trained_on = loaded.settings.data
    cached = cache_path(trained_on)
    if asked.data is None and cached is not None and not cached.is_file():
        of_its_own = trained_on.input is None and trained_on.grammar is None
        console.note(f"{lacking} ({f'--data {trained_on.name} builds them' if of_its_own else 'not in the cache'})")
        return None
    try:
        return frozenset(corpus("train").strings("train"))
    except InputError as error:
        if asked.data is not None:
            raise
        console.note(f"{lacking} ({error.what})")
        return None


def remarks(text: str | None, before: Sequence[str | None], valid: Set[str] | None, known: Set[str] | None) -> str:
    """What there is to say about a sample."""
    if text is None:
        return "incomplete"
    found = {
        "invalid": valid is not None and text not in valid,
        "in the training data": known is not None and text in known,
        "again": text in before,
    }
    return ", ".join(name for name, holds in found.items() if holds)


def beginning(grammar: Grammar, ids: Sequence[int]) -> str:
    """As much of a string as a derivation has settled that is cut off before its end."""
    from arcvae_cli.grammar import Terminal

    stack: list[str | Terminal] = [grammar.start]
    rest, settled = iter(ids), list[str]()
    while stack:
        symbol = stack.pop()
        if isinstance(symbol, Terminal):
            settled.append(symbol.text)
        elif (rule := next(rest, None)) is not None:
            stack.extend(reversed(grammar.productions[rule].right))
        else:
            break
    return grammar.separator.join([*settled, "..."])
