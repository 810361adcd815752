"""`arcvae evaluate`: what a checkpoint is worth, beside pictures that know nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType
    from rich.table import Table

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import GridCorpus
    from arcvae_cli.evaluation.adherence import Adherence
    from arcvae_cli.evaluation.grids import Evaluation, Report
    from arcvae_cli.runs import RunFolder

PICTURED = 16  # pairs in a picture
MAPS = 7  # grids beside the mean of all in a picture of KL maps
ROWS = COLUMNS = 8  # of samples that share the latents of a level
MAPPED, QUICKLY_MAPPED = 1000, 500  # codes in the plane
WIDTH = 80  # columns


def evaluate(
    checkpoint: CheckpointOption = "vae_best.pth",
    iwae: Annotated[
        int, typer.Option(min=0, max=100_000, help="draws for each grid's importance-weighted likelihood; 0 is none")
    ] = 0,
    iwae_examples: Annotated[int, typer.Option("--iwae-examples", min=1, help="grids that it is estimated on")] = 512,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 if a target is missed")] = False,
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
    """Measure a model on unseen grids, beside all-black pictures and PCA, with a verdict and advice.

    Writes metrics.json and pictures: reconstructions, the worst of them, codes, and of two levels samples and KL maps.

    A conditional model is measured without conditions, and then asked for some.
    """
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.grids import evaluate_grids

    console = Console(quiet=quiet, as_json=as_json)
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    corpus = open_data(loaded, data, split, console)
    folder = output_folder(output, loaded, f"evaluation/{corpus.name}-{split}")
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
    document = {**_origin(loaded), **evaluation.report.document()}
    _write(folder, folder, document, loaded, corpus, evaluation, MAPPED, reconstructions=True)
    for part in _tables(evaluation.report, loaded):
        console.result(part)
    console.note(f"wrote metrics.json and pictures to {folder}")
    console.json({**document, "output": str(folder)})
    if strict and not evaluation.report.verdict.ok:
        raise typer.Exit(1)


def report(loaded: Loaded, corpus: GridCorpus, split: str, folder: RunFolder, console: Console) -> None:
    """What a run ends with: a quick evaluation in its `metrics.json`, its codes as pictures, and the verdict."""
    from arcvae_cli.evaluation.grids import evaluate_grids

    evaluation = evaluate_grids(
        loaded.model, corpus, split, settings=loaded.settings, seed=loaded.settings.train.seed, quick=True
    )
    document = {"run": str(folder.path), **_origin(loaded), **evaluation.report.document()}
    _write(folder.path, folder.images, document, loaded, corpus, evaluation, QUICKLY_MAPPED, reconstructions=False)
    for part in _tables(evaluation.report, loaded):
        console.result(part)
    console.json(document)


def _origin(loaded: Loaded) -> dict[str, Any]:
    return {"checkpoint": str(loaded.path), "epoch": loaded.epoch}


def _training_grids(loaded: Loaded, corpus: GridCorpus, data: str | None, console: Console) -> NDArray[np.uint8]:
    """The grids that the model was trained on, for PCA and for what is novel; else those of the corpus at hand."""
    from arcvae_cli.data.corpus import open_corpus
    from arcvae_cli.errors import InputError

    trained = corpus
    if data is not None:
        try:
            trained = open_corpus(loaded.settings.data, "cpu", needs=("train",))
        except InputError as error:
            if not corpus.size("train"):
                raise
            console.warn(f"the grids that the model was trained on are gone ({error.what}): PCA is fitted to {data}")
    return trained.grids("train").cpu().numpy()


# ------------------------------------------------------------------------------------------------ files


def _write(
    folder: Path,
    images: Path,
    document: Mapping[str, Any],
    loaded: Loaded,
    corpus: GridCorpus,
    evaluation: Evaluation,
    codes: int,
    reconstructions: bool,
) -> None:
    """`metrics.json` into `folder` and the pictures into `images`, each under a temporary name until all are whole."""
    import tempfile

    from arcvae_cli.runs import write_json
    from arcvae_cli.writing import failed

    try:
        with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=folder) as name:
            scratch = Path(name)
            _draw_codes(scratch, corpus, evaluation, codes)
            _draw_levels(scratch, loaded, evaluation)
            if reconstructions:
                _draw_reconstructions(scratch, loaded, corpus, evaluation)
                _draw_maps(scratch, corpus, evaluation)
            write_json(scratch / "metrics.json", document)
            for picture in scratch.glob("*.png"):
                picture.replace(images / picture.name)
            (scratch / "metrics.json").replace(folder / "metrics.json")
    except OSError as error:
        raise failed(folder, error.strerror or str(error)) from error


def _draw_codes(folder: Path, corpus: GridCorpus, evaluation: Evaluation, count: int) -> None:
    """The codes of the top level in the plane, by PCA and t-SNE, each point coloured by how much is not black."""
    from arcvae_cli.evaluation.projections import neighbour_plane, principal_plane
    from arcvae_cli.render import save_latent_scatter

    level, top = next(iter(evaluation.codes.items()))
    codes = top[:count]
    if len(codes) < 3:
        return
    result = evaluation.report
    grids = corpus.grids(result.split).cpu().numpy()[evaluation.indices[:count]]
    lit, named = (grids > 0).mean(axis=(1, 2)), "share of non-black cells"
    whose = f"{level} " if len(evaluation.codes) > 1 else ""
    title = f"{whose}posterior means of {len(codes):,} grids, {result.corpus} {result.split}"
    plane, shares = principal_plane(codes)
    axes = (f"first axis, {shares[0]:.0%} of the variance", f"second axis, {shares[1]:.0%}")
    save_latent_scatter(folder / "latent_space_pca.png", plane, lit, named, f"PCA, {title}", axes)
    plane = neighbour_plane(codes, result.seed)
    save_latent_scatter(folder / "latent_space_tsne.png", plane, lit, named, f"t-SNE, {title}")


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
    yield _verdict_table(result)
    for remedy in dict.fromkeys(finding.remedy for finding in result.verdict.findings if finding.remedy):
        yield Text(f"- {remedy}")
    yield Text(result.verdict.summary, style="bold green" if result.verdict.ok else "bold yellow")


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _reconstruction_table(result: Report) -> Table:
    found = result.reconstruction
    kinds = (found.posterior_mean, found.all_black, found.pca)
    table = _table("Reconstruction", "", "model", "all black", f"PCA {found.pca_components}", "skill")
    rows = (
        ("pixel accuracy", "pixel_accuracy", found.skill.pixel),
        ("non-black accuracy", "non_black_accuracy", found.skill.non_black),
        ("non-black IoU", "non_black_iou", None),
        ("inside the rectangle", "inside_accuracy", None),
        ("exact grids", "exact_share", None),
        ("grids within 5 cells", "near_share", None),
        ("all-black reconstructions", "blank_share", None),
    )
    for name, field, skill in rows:
        values = [_percent(getattr(kind, field)) for kind in kinds]
        table.add_row(name, *values, "" if skill is None else f"{skill:+.3f}")
    for name, field, _ in rows[:2]:
        table.add_row(f"{name}, code drawn", _percent(getattr(found.posterior_sample, field)), "", "", "")
    return table


def _colour_table(result: Report) -> Table:
    found = result.reconstruction
    table = _table("Accuracy by true colour, %", "", *(str(colour) for colour in range(10)))
    for name, scores in (("model", found.posterior_mean), (f"PCA {found.pca_components}", found.pca)):
        table.add_row(name, *("-" if share is None else f"{100 * share:.1f}" for share in scores.colour_accuracy))
    return table


def _nats_table(result: Report) -> Table:
    elbo, weighted = result.elbo, result.importance_weighted
    table = _table("Likelihood (cross-entropy, beta 1)", "", "nats a grid", "bits a cell")
    table.add_row("reconstruction", f"{elbo.reconstruction_nats:.2f}", f"{elbo.reconstruction_bits:.4f}")
    table.add_row("KL", f"{elbo.kl_nats:.2f}", f"{elbo.kl_bits:.4f}")
    if len(result.levels) > 1:
        for name, level in result.levels.items():
            total = sum(level.kl_nats)
            table.add_row(f"  {name}", f"{total:.2f}", f"{elbo.kl_bits * total / (elbo.kl_nats or 1.0):.4f}")
    table.add_row("-ELBO", f"{-elbo.elbo_nats:.2f}", f"{-elbo.elbo_bits:.4f}")
    if weighted is not None:
        named = f"-log p(x), {weighted.samples} draws, {weighted.examples} grids"
        table.add_row(f"{named} <=", f"{weighted.nll_nats:.2f}", f"{weighted.nll_bits:.4f}")
        table.add_row("  -ELBO of these", f"{weighted.single_nats:.2f}", "")
        table.add_row(
            "  effective sample size, mean and least",
            f"{weighted.effective_samples_mean:.1f}",
            f"{weighted.effective_samples_min:.1f}",
        )
    return table


def _code_lines(result: Report) -> Iterable[str]:
    for name, level in result.levels.items():
        groups = "dimensions" if level.cells_nats is None else "channels"
        yield (
            f"{name}: {level.active_dims} of {len(level.kl_nats)} {groups} active (KL > 0.05), "
            f"{level.active_units} of {level.units} units (Var E[z] > 0.01); {level.collapsed_share:.0%} collapsed"
        )
        if (told := level.mutual_information) is not None:
            sign, why = (">=", f"the ceiling is log {told.examples} = ") if told.is_bound else ("=", "at most ")
            yield f"mutual information {sign} {told.nats:.2f} nats ({why}{told.ceiling_nats:.2f})"
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
    table = _table(f"Prior samples against {found.reference} grids of the split", "", "samples", "training", "split")
    for name, field in (
        ("density", "density"),
        ("coverage", "coverage"),
        ("object-count distance", "object_distance"),
    ):
        table.add_row(name, _number(getattr(found, field)), _number(getattr(best, field)), "")
    for name, field in (("speck share", "speck_share"), ("non-black", "non_black_share"), ("blank", "blank_share")):
        shares = (getattr(found, field), getattr(best, field), getattr(found, f"reference_{field}"))
        table.add_row(name, *map(_percent, shares))
    table.add_row("distinct", _percent(found.distinct_share), _percent(best.distinct_share), "")
    table.add_row("no training grid", _percent(found.novel_share), "", "")
    table.add_row("grids", str(found.samples), str(best.samples), str(found.reference))
    return table


def _adherence_table(found: Adherence) -> Table:
    """Shares in per cent; unasked samples are the baseline that ignores every condition."""
    title = f"Samples that are what they were asked to be, {found.samples} each, %"
    table = _table(title, "", "asked", "unaided", "unasked", "of", "all", "data")
    for row in found.rows:
        table.add_row(
            row.asked,
            _plain_percent(row.counted_obeying),
            _plain_percent(row.unaided_obeying),
            _plain_percent(row.baseline_counted_obeying),
            str(row.counted),
            _plain_percent(row.obeying),
            _plain_percent(row.data),
        )
    return table


def _plain_percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _verdict_table(result: Report) -> Table:
    table = _table("Verdict", "", "", "", "")
    table.show_header = False
    table.columns[3].justify = "left"
    for finding in result.verdict.findings:
        mark = "[green]ok[/]" if finding.ok else "[red]MISS[/]"
        table.add_row(mark, finding.name, f"{finding.value:.4g}", finding.target)
    table.columns[1].justify = "left"
    return table
