"""`arcvae evaluate`: what a checkpoint is worth, beside pictures that know nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
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
    open_checkpoint,
    open_derivations,
    open_grids,
    output_folder,
)
from arcvae_cli.commands.tables import WIDTH, add_weighted, level_lines, number, percent, table, verdict_parts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType
    from rich.table import Table

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import DerivationCorpus, GridCorpus
    from arcvae_cli.evaluation.adherence import Adherence
    from arcvae_cli.evaluation.grids import Evaluation, Report
    from arcvae_cli.evaluation.strings import Evaluation as StringEvaluation
    from arcvae_cli.evaluation.strings import Report as StringReport
    from arcvae_cli.models.grammar import GrammarVAE
    from arcvae_cli.runs import RunFolder

PICTURED = 16  # pairs in a picture
MAPS = 7  # grids beside the mean of all in a picture of KL maps
ROWS = COLUMNS = 8  # of samples that share the latents of a level
MAPPED, QUICKLY_MAPPED = 1000, 500  # codes in the plane
STRINGS = "Models of strings"  # panel of the help


def evaluate(
    checkpoint: CheckpointOption = "vae_best.pth",
    iwae: Annotated[
        int, typer.Option(min=0, max=100_000, help="draws for each example's importance-weighted likelihood; 0 is none")
    ] = 0,
    iwae_examples: Annotated[
        int, typer.Option("--iwae-examples", min=1, help="examples that it is estimated on")
    ] = 512,
    precision: Annotated[
        Literal["fp32", "bf16"],
        typer.Option(
            help="of the network's arithmetic; bf16 takes half of the time where the hardware has it, and rounds"
        ),
    ] = "fp32",
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 if a target is missed")] = False,
    monte_carlo: Annotated[
        bool,
        typer.Option(
            "--monte-carlo",
            help="count exact reconstructions among strings that are drawn, as in 2017",
            rich_help_panel=STRINGS,
        ),
    ] = False,
    encodings: Annotated[
        int | None,
        typer.Option(min=1, help="codes drawn of each derivation", show_default="10", rich_help_panel=STRINGS),
    ] = None,
    decodings: Annotated[
        int | None, typer.Option(min=1, help="strings drawn of each code", show_default="100", rich_help_panel=STRINGS)
    ] = None,
    monte_carlo_examples: Annotated[
        int | None,
        typer.Option(
            "--monte-carlo-examples",
            min=1,
            help="derivations that it is done for",
            show_default="500",
            rich_help_panel=STRINGS,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000, help="new strings drawn from each prior", show_default="1000", rich_help_panel=STRINGS
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data: DataOption = None,
    split: Annotated[SplitName, typer.Option(rich_help_panel=INPUT)] = "test",
    runs_dir: RunsOption = Path("runs"),
    output: Annotated[
        Path | None, typer.Option(help="folder", show_default="evaluation/ of the run, or here", rich_help_panel=OUTPUT)
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on unseen examples, beside baselines that know nothing, with a verdict and advice.

    Writes metrics.json and pictures: codes, reconstructions and the worst of them, and of two levels samples and KL
    maps. Of strings, reconstructions are text.

    A conditional model is measured without conditions, and then asked for some.
    """
    from arcvae_cli.console import Console
    from arcvae_cli.errors import InputError
    from arcvae_cli.evaluation.grids import evaluate_grids
    from arcvae_cli.models.grammar import GrammarVAE

    console = Console(quiet=quiet, as_json=as_json)
    counting = {
        "--encodings": encodings,
        "--decodings": decodings,
        "--monte-carlo-examples": monte_carlo_examples,
    }
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    if isinstance(loaded.model, GrammarVAE):
        if not monte_carlo and (given := next((flag for flag, value in counting.items() if value is not None), None)):
            raise InputError(f"{given}: nothing is counted", "add --monte-carlo")
        protocol = (monte_carlo_examples or 500, encodings or 10, decodings or 100) if monte_carlo else None
        with _arithmetic(precision, loaded):
            verdict = _evaluate_strings(
                loaded,
                loaded.model,
                data,
                split,
                output,
                console,
                seed,
                (iwae, iwae_examples),
                protocol,
                samples or 1000,
                precision,
            )
        if strict and not verdict:
            raise typer.Exit(1)
        return
    strings_only = {"--monte-carlo": monte_carlo or None, **counting, "--samples": samples}
    if given := next((flag for flag, value in strings_only.items() if value is not None), None):
        raise InputError(f"{given}: this model is of grids", "it is for models of strings; leave it out")
    corpus = open_grids(loaded, data, split, console)
    folder = output_folder(output, loaded, f"evaluation/{corpus.name}-{split}")
    with _arithmetic(precision, loaded):
        evaluation = evaluate_grids(
            loaded.model,
            corpus,
            split,
            settings=loaded.settings,
            training=_training_grids(loaded, corpus, data, console),
            seed=seed,
            iwae_samples=iwae,
            iwae_examples=iwae_examples,
            tell=console.note,
        )
    console.note("pictures")
    document = {**_origin(loaded), "precision": precision, **evaluation.report.document()}
    _write(folder, folder, document, lambda scratch: _draw_grids(scratch, loaded, corpus, evaluation, MAPPED))
    for part in _tables(evaluation.report, loaded):
        console.result(part)
    console.note(f"wrote metrics.json and pictures to {folder}")
    console.json({**document, "output": str(folder)})
    if strict and not evaluation.report.verdict.ok:
        raise typer.Exit(1)


def report(
    loaded: Loaded, corpus: GridCorpus | DerivationCorpus, split: str, folder: RunFolder, console: Console
) -> None:
    """What a run ends with: a quick evaluation in its `metrics.json`, its codes as pictures, and the verdict."""
    from arcvae_cli.commands import evaluated_strings
    from arcvae_cli.data.corpus import GridCorpus
    from arcvae_cli.evaluation.grids import evaluate_grids
    from arcvae_cli.evaluation.strings import evaluate_strings
    from arcvae_cli.models.grammar import GrammarVAE

    settings, seed = loaded.settings, loaded.settings.train.seed
    result: Report | StringReport
    if isinstance(corpus, GridCorpus):
        found = evaluate_grids(loaded.model, corpus, split, settings=settings, seed=seed, quick=True)
        result, parts = found.report, _tables(found.report, loaded)
    else:
        model, grammar = loaded.model, loaded.grammar
        assert isinstance(model, GrammarVAE), "nothing else is trained on derivations"
        strings = evaluate_strings(model, corpus, split, settings=settings, grammar=grammar, seed=seed, quick=True)
        result, parts = strings.report, evaluated_strings.tables(strings.report, loaded)

    def draw(scratch: Path) -> None:
        if isinstance(corpus, GridCorpus):
            _draw_grids(scratch, loaded, corpus, found, QUICKLY_MAPPED, reconstructions=False)
        else:
            _draw_strings(scratch, strings, QUICKLY_MAPPED)

    document = {"run": str(folder.path), **_origin(loaded), "precision": "fp32", **result.document()}
    _write(folder.path, folder.images, document, draw)
    for part in parts:
        console.result(part)
    console.json(document)


def _evaluate_strings(
    loaded: Loaded,
    model: GrammarVAE,
    data: str | None,
    split: str,
    output: Path | None,
    console: Console,
    seed: int,
    iwae: tuple[int, int],
    protocol: tuple[int, int, int] | None,
    samples: int,
    precision: str,
) -> bool:
    """The command for a model of derivations: whether every target is met."""
    from arcvae_cli.commands import evaluated_strings
    from arcvae_cli.evaluation.strings import Protocol, evaluate_strings

    corpus = open_derivations(loaded, data, split, console)
    folder = output_folder(output, loaded, f"evaluation/{corpus.name}-{split}")
    evaluation = evaluate_strings(
        model,
        corpus,
        split,
        settings=loaded.settings,
        trained=_training_derivations(loaded, model, corpus, data, console),
        grammar=loaded.grammar,
        seed=seed,
        iwae_samples=iwae[0],
        iwae_examples=iwae[1],
        monte_carlo=None if protocol is None else Protocol(*protocol),
        samples=samples,
        tell=console.note,
    )
    console.note("pictures")
    document = {**_origin(loaded), "precision": precision, **evaluation.report.document()}

    def draw(scratch: Path) -> None:
        _draw_strings(scratch, evaluation, MAPPED)
        evaluated_strings.write_pairs(scratch, model, corpus, evaluation)

    _write(folder, folder, document, draw)
    for part in evaluated_strings.tables(evaluation.report, loaded):
        console.result(part)
    console.note(f"wrote metrics.json, pictures and reconstructions to {folder}")
    console.json({**document, "output": str(folder)})
    return evaluation.report.verdict.ok


def _arithmetic(precision: str, loaded: Loaded) -> AbstractContextManager[None]:
    """The network in bf16, or as it is; posteriors, likelihoods and baselines stay in float32 and float64."""
    import torch

    place = next(loaded.model.parameters()).device.type
    return torch.autocast(place, torch.bfloat16, enabled=precision == "bf16")


def _origin(loaded: Loaded) -> dict[str, Any]:
    return {"checkpoint": str(loaded.path), "epoch": loaded.epoch}


def _training_grids(loaded: Loaded, corpus: GridCorpus, data: str | None, console: Console) -> NDArray[np.uint8]:
    """The grids that the model was trained on, for PCA and for what is novel; else those of the corpus at hand."""
    from arcvae_cli.data.corpus import GridCorpus, open_corpus
    from arcvae_cli.errors import InputError

    trained = corpus
    if data is not None:
        try:
            opened = open_corpus(loaded.settings.data, "cpu", needs=("train",))
            assert isinstance(opened, GridCorpus), "what a model of grids was trained on"
            trained = opened
        except InputError as error:
            if not corpus.size("train"):
                raise
            console.warn(f"the grids that the model was trained on are gone ({error.what}): PCA is fitted to {data}")
    return trained.grids("train").cpu().numpy()


def _training_derivations(
    loaded: Loaded, model: GrammarVAE, corpus: DerivationCorpus, data: str | None, console: Console
) -> DerivationCorpus:
    """The derivations that the model was trained on, for the baseline, the fitted prior and what is novel."""
    from arcvae_cli.data.corpus import DerivationCorpus, open_corpus
    from arcvae_cli.errors import InputError

    if data is None:
        return corpus
    rules, length = model.structure.rules, model.structure.length
    try:
        opened = open_corpus(loaded.settings.data, corpus.device, ("train",), rules, length)
        assert isinstance(opened, DerivationCorpus), "what a model of derivations was trained on"
    except InputError as error:
        if not corpus.size("train"):
            raise
        console.warn(f"what the model was trained on is gone ({error.what}): rules are counted in {data}")
        return corpus
    return opened


# ------------------------------------------------------------------------------------------------ files


def _write(folder: Path, images: Path, document: Mapping[str, Any], draw: Callable[[Path], None]) -> None:
    """`metrics.json` and texts into `folder`, pictures into `images`, all under temporary names until all are whole.

    `draw` puts pictures and texts into a folder that it is given.
    """
    import tempfile

    from arcvae_cli.files import failed
    from arcvae_cli.runs import write_json

    try:
        with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=folder) as name:
            scratch = Path(name)
            draw(scratch)
            write_json(scratch / "metrics.json", document)
            for kind, place in (("*.png", images), ("*.txt", folder), ("metrics.json", folder)):
                for file in scratch.glob(kind):
                    file.replace(place / file.name)
    except OSError as error:
        raise failed(folder, error.strerror or str(error)) from error


def _draw_grids(
    folder: Path, loaded: Loaded, corpus: GridCorpus, evaluation: Evaluation, codes: int, reconstructions: bool = True
) -> None:
    """All pictures of an evaluation of grids; `codes`: how many points at the most."""
    result = evaluation.report
    level, top = next(iter(evaluation.codes.items()))
    shown = top[:codes]
    grids = corpus.grids(result.split).cpu().numpy()[evaluation.indices[: len(shown)]]
    lit, named = (grids > 0).mean(axis=(1, 2)), "share of non-black cells"
    whose = f"{level} " if len(evaluation.codes) > 1 else ""
    title = f"{whose}posterior means of {len(shown):,} grids, {result.corpus} {result.split}"
    _draw_codes(folder, shown, lit, named, title, result.seed)
    _draw_levels(folder, loaded, evaluation)
    if reconstructions:
        _draw_reconstructions(folder, loaded, corpus, evaluation)
        _draw_maps(folder, corpus, evaluation)


def _draw_strings(folder: Path, evaluation: StringEvaluation, codes: int) -> None:
    """The pictures of an evaluation of derivations: their codes, by their lengths."""
    result = evaluation.report
    shown = next(iter(evaluation.codes.values()))[:codes]
    title = f"posterior means of {len(shown):,} derivations, {result.corpus} {result.split}"
    lengths = evaluation.lengths[: len(shown)]
    _draw_codes(folder, shown, lengths, "rules of the derivation", title, result.seed)


def _draw_codes(
    folder: Path, codes: NDArray[np.float32], values: NDArray[Any], named: str, title: str, seed: int
) -> None:
    """Codes (n, D) of the top level in the plane, by PCA and t-SNE, each point coloured by its value."""
    from arcvae_cli.evaluation.projections import neighbour_plane, principal_plane
    from arcvae_cli.render import save_latent_scatter

    if len(codes) < 3:
        return
    plane, shares = principal_plane(codes)
    axes = (f"first axis, {shares[0]:.0%} of the variance", f"second axis, {shares[1]:.0%}")
    save_latent_scatter(folder / "latent_space_pca.png", plane, values, named, f"PCA, {title}", axes)
    plane = neighbour_plane(codes, seed)
    save_latent_scatter(folder / "latent_space_tsne.png", plane, values, named, f"t-SNE, {title}")


def _draw_reconstructions(folder: Path, loaded: Loaded, corpus: GridCorpus, evaluation: Evaluation) -> None:
    """The first pairs of the random order, and the worst of all."""
    import numpy as np

    from arcvae_cli.evaluation.grids import reconstruct
    from arcvae_cli.render import save_reconstructions

    result = evaluation.report
    worst = evaluation.indices[np.argsort(-evaluation.errors, kind="stable")]
    shapes = corpus.shapes(result.split)
    for name, chosen, title in (
        ("reconstructions.png", evaluation.indices[:PICTURED], "drawn at random"),
        ("errors.png", worst[:PICTURED], "with the most wrong cells"),
    ):
        grids = corpus.grids(result.split).cpu().numpy()[chosen]
        rectangles = None if shapes is None else shapes.cpu().numpy()[chosen].astype(np.uint8)
        title = f"{len(grids)} of {result.reconstruction.examples:,} grids {title}, {result.corpus} {result.split}"
        save_reconstructions(folder / name, grids, reconstruct(loaded.model, grids), rectangles, title)


def _draw_levels(folder: Path, loaded: Loaded, evaluation: Evaluation) -> None:
    """Samples of a model of several levels: rows share the top latent, columns the noise of all below."""
    from arcvae_cli.evaluation.grids import draw_levels
    from arcvae_cli.render import save_level_samples

    levels = list(loaded.model.level_shapes)
    if len(levels) < 2:
        return
    grids = draw_levels(loaded.model, ROWS, COLUMNS, evaluation.report.seed)
    below = " and ".join(levels[1:])
    title = f"rows share a {levels[0]} latent, columns the noise of {below}; {loaded.path.name} of epoch {loaded.epoch}"
    save_level_samples(folder / "levels.png", grids, COLUMNS, levels[0], below, title)


def _draw_maps(folder: Path, corpus: GridCorpus, evaluation: Evaluation) -> None:
    """Where the KL of levels that are maps lies: over the split, and in a few grids of it."""
    from arcvae_cli.render import save_kl_maps

    if not evaluation.maps:
        return
    result = evaluation.report
    chosen = evaluation.indices[:MAPS]
    save_kl_maps(
        folder / "kl_maps.png",
        corpus.grids(result.split).cpu().numpy()[chosen],
        {name: cells[:MAPS] for name, cells in evaluation.maps.items()},
        f"KL of each cell, {result.corpus} {result.split}",
        means={name: cells.mean(axis=0) for name, cells in evaluation.maps.items()},
    )


# ------------------------------------------------------------------------------------------------ on the screen


def _tables(result: Report, loaded: Loaded) -> Iterable[RenderableType]:
    """Everything measured, in 80 columns, the verdict last."""
    from rich.text import Text

    from arcvae_cli.render import kl_bars

    yield Text(
        f"{loaded.path.name} of epoch {loaded.epoch}, {result.corpus} {result.split}, "
        f"{result.reconstruction.examples:,} grids, seed {result.seed}",
        style="bold",
    )
    if result.adherence is not None:
        yield Text("Without any condition, except where samples are asked for one.")
    yield _reconstruction_table(result)
    yield Text(
        f"PCA keeps {result.reconstruction.pca_components} real numbers a grid, which are no code of so many nats; "
        f"the model's code has {result.elbo.kl_nats:.1f} nats."
    )
    yield _colour_table(result)
    yield _nats_table(result)
    for name, level in result.levels.items():
        cells = loaded.model.level_shapes[name][1:]
        yield Text()
        yield from kl_bars(name, level.kl_nats, loaded.settings.objective.floor(name), WIDTH, cells=cells)
    yield Text()
    for line in _code_lines(result):
        yield Text(line)
    yield _sample_table(result)
    if result.adherence is not None:
        yield _adherence_table(result.adherence)
        yield Text(
            "asked, unaided, unasked: of the samples that are neither blank nor repeated (so\n"
            f"many: of; of those unasked {result.adherence.baseline_counted}); all: of all samples that were asked.\n"
            "unaided: each cell's likeliest colour, not the likeliest grid of that extent and\n"
            "those colours. Symmetry is built into the decoder."
        )
    yield from verdict_parts(result.verdict)


def _reconstruction_table(result: Report) -> Table:
    found = result.reconstruction
    kinds = (found.posterior_mean, found.all_black, found.pca)
    rows = table("Reconstruction", "", "model", "all black", f"PCA {found.pca_components}", "skill")
    lines = (
        ("pixel accuracy", "pixel_accuracy", found.skill.pixel),
        ("non-black accuracy", "non_black_accuracy", found.skill.non_black),
        ("non-black IoU", "non_black_iou", None),
        ("inside the rectangle", "inside_accuracy", None),
        ("exact grids", "exact_share", None),
        ("grids within 5 cells", "near_share", None),
        ("all-black reconstructions", "blank_share", None),
    )
    for name, field, skill in lines:
        values = [percent(getattr(kind, field)) for kind in kinds]
        rows.add_row(name, *values, "" if skill is None else f"{skill:+.3f}")
    for name, field, _ in lines[:2]:
        rows.add_row(f"{name}, code drawn", percent(getattr(found.posterior_sample, field)), "", "", "")
    return rows


def _colour_table(result: Report) -> Table:
    found = result.reconstruction
    rows = table("Accuracy by true colour, %", "", *(str(colour) for colour in range(10)))
    for name, scores in (("model", found.posterior_mean), (f"PCA {found.pca_components}", found.pca)):
        rows.add_row(name, *("-" if share is None else f"{100 * share:.1f}" for share in scores.colour_accuracy))
    return rows


def _nats_table(result: Report) -> Table:
    elbo, weighted = result.elbo, result.importance_weighted
    rows = table("Likelihood (cross-entropy, beta 1)", "", "nats a grid", "bits a cell")
    rows.add_row("reconstruction", f"{elbo.reconstruction_nats:.2f}", f"{elbo.reconstruction_bits:.4f}")
    rows.add_row("KL", f"{elbo.kl_nats:.2f}", f"{elbo.kl_bits:.4f}")
    if len(result.levels) > 1:
        for name, level in result.levels.items():
            total = sum(level.kl_nats)
            rows.add_row(f"  {name}", f"{total:.2f}", f"{elbo.kl_bits * total / (elbo.kl_nats or 1.0):.4f}")
    rows.add_row("-ELBO", f"{-elbo.elbo_nats:.2f}", f"{-elbo.elbo_bits:.4f}")
    if weighted is not None:
        add_weighted(rows, weighted, "grids")
    return rows


def _code_lines(result: Report) -> Iterable[str]:
    yield from level_lines(result.levels)
    if (shuffled := result.shuffled_codes) is not None:
        right = f"{shuffled.reconstruction_nats:.1f} nats, accuracy {shuffled.accuracy:.1%}"
        yield f"with the right codes: reconstruction {right}"
        wrong = f"{shuffled.shuffled_reconstruction_nats:.1f} nats, {shuffled.shuffled_accuracy:.1%}"
        yield f"with codes of other grids: {wrong}"
        for name, alone in shuffled.levels.items():
            yield f"with {name} codes of other grids: {alone.reconstruction_nats:.1f} nats, {alone.accuracy:.1%}"
    if (path := result.interpolation) is not None:
        largest = "" if path.largest_step_share is None else f" ({path.largest_step_share:.0%} of the way)"
        yield (
            f"{path.pairs} paths of {path.steps} pictures: {path.mean_step:.1f} cells change a step, "
            f"{path.largest_step:.1f} in the largest{largest}; ends {path.distance:.1f} apart"
        )


def _sample_table(result: Report) -> Table:
    found, best = result.prior_samples, result.training_grids
    rows = table(f"Prior samples against {found.reference} grids of the split", "", "samples", "training", "split")
    for name, field in (
        ("density", "density"),
        ("coverage", "coverage"),
        ("object-count distance", "object_distance"),
    ):
        rows.add_row(name, number(getattr(found, field)), number(getattr(best, field)), "")
    for name, field in (("speck share", "speck_share"), ("non-black", "non_black_share"), ("blank", "blank_share")):
        shares = (getattr(found, field), getattr(best, field), getattr(found, f"reference_{field}"))
        rows.add_row(name, *map(percent, shares))
    rows.add_row("distinct", percent(found.distinct_share), percent(best.distinct_share), "")
    rows.add_row("no training grid", percent(found.novel_share), "", "")
    rows.add_row("grids", str(found.samples), str(best.samples), str(found.reference))
    return rows


def _adherence_table(found: Adherence) -> Table:
    """Shares in per cent; unasked samples are the baseline that ignores every condition."""
    title = f"Samples that are what they were asked to be, {found.samples} each, %"
    rows = table(title, "", "asked", "unaided", "unasked", "of", "all", "data")
    for row in found.rows:
        rows.add_row(
            row.asked,
            _plain_percent(row.counted_obeying),
            _plain_percent(row.unaided_obeying),
            _plain_percent(row.baseline_counted_obeying),
            str(row.counted),
            _plain_percent(row.obeying),
            _plain_percent(row.data),
        )
    return rows


def _plain_percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
