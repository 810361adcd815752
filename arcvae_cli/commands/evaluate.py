"""`arcvae evaluate`: test-set metrics of a checkpoint beside baselines, with pictures, a verdict and advice."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli import domains
from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.console import Console, cell
from arcvae_cli.errors import InputError
from arcvae_cli.files import usable_folder
from arcvae_cli.folders import RunFolder, write_json

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.domains.base import Task

string_option: Any = functools.partial(typer.Option, rich_help_panel="Models of strings")

ELBO = (
    ("reconstruction", "elbo.reconstruction_{}", ".3f"),
    ("KL", "elbo.kl_{}", ".3f"),
    ("ELBO", "elbo.elbo_{}", ".3f"),
    ("  standard error", "elbo_error", ".3f"),
    ("-log p(x), importance-weighted <=", "importance_weighted.nll_{}", ".3f"),
    ("  -ELBO of these examples", "importance_weighted.single_nats", ".3f"),
    ("  samples per example", "importance_weighted.samples", ""),
    ("  effective sample size", "importance_weighted.effective_samples_mean", ".1f"),
    ("    at least", "importance_weighted.effective_samples_min", ".1f"),
)
LATENT = (
    ("active dimensions, KL > 0.05", "levels.{}.active_dims", ""),
    ("units", "levels.{}.units", ""),
    ("active units, Var E[z] > 0.01", "levels.{}.active_units", ""),
    ("mutual information, nats (a lower bound)", "levels.{}.mutual_information.nats", ".2f"),
    ("  its ceiling, log of the examples", "levels.{}.mutual_information.ceiling_nats", ".2f"),
    ("reconstruction, own codes, nats", "shuffled_codes.reconstruction_nats", ".1f"),
    ("  with codes of other examples", "shuffled_codes.shuffled_reconstruction_nats", ".1f"),
    ("  with this level's of other examples", "shuffled_codes.levels.{}.reconstruction_nats", ".1f"),
    ("accuracy, own codes", "shuffled_codes.accuracy", ".1%"),
    ("  with codes of other examples", "shuffled_codes.shuffled_accuracy", ".1%"),
    ("  with this level's of other examples", "shuffled_codes.levels.{}.accuracy", ".1%"),
)


def evaluate(
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    examples: Annotated[int | None, typer.Option(min=1, help="drawn from the split", show_default="all")] = None,
    iwae: Annotated[int, typer.Option(min=0, max=100_000, help="samples of the importance-weighted bound")] = 0,
    iwae_examples: Annotated[int, typer.Option(min=1, help="examples of that bound")] = 512,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="of the network's arithmetic")] = "fp32",
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 if a target is missed")] = False,
    monte_carlo: Annotated[bool, string_option("--monte-carlo", help="exact reconstructions by sampling")] = False,
    encodings: Annotated[int | None, string_option(min=1, help="codes per derivation", show_default="10")] = None,
    decodings: Annotated[int | None, string_option(min=1, help="strings per code", show_default="100")] = None,
    monte_carlo_examples: Annotated[int | None, string_option(min=1, help="derivations", show_default="500")] = None,
    samples: Annotated[int | None, string_option(min=1, max=100_000, help="of each prior", show_default="1000")] = None,
    seed: reading.SeedOption = 0,
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: reading.SplitOption = "test",
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a checkpoint against baselines: metrics.json, plots, reconstructions, a verdict and advice."""
    import torch

    from arcvae_cli.domains.base import Task, picture_title

    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    counting = {"--encodings": encodings, "--decodings": decodings, "--monte-carlo-examples": monte_carlo_examples}
    domains.of(loaded.model.kind).check_flags({"--monte-carlo": monte_carlo or None, **counting, "--samples": samples})
    if not monte_carlo and (given := [flag for flag, value in counting.items() if value is not None]):
        raise InputError(f"{given[0]}: needs --monte-carlo", "add it")
    corpus = reading.open_examples(loaded, data, split, console)
    folder = usable_folder(output or (loaded.run or Path()) / "evaluation" / f"{corpus.name}-{split}", "--output")
    trained = corpus
    if data is not None:
        try:
            trained = reading.open_examples(loaded, None, "train", console)
        except InputError as error:
            console.warn(f"the training corpus is not available ({error.what}): baselines are fitted to {data}")
    task = Task(loaded.model, corpus, split, loaded.settings, trained, seed, examples, iwae, iwae_examples)
    task.samples, task.title, task.note = samples or 1000, picture_title(loaded), console.note
    if monte_carlo:
        task.monte_carlo = (monte_carlo_examples or 500, encodings or 10, decodings or 100)
    # bf16 is for the network: posteriors, likelihoods and baselines stay in float32 and float64
    with torch.autocast(corpus.device.type, torch.bfloat16, enabled=precision == "bf16"):
        document = _evaluated(loaded, task, {"precision": precision}, folder, folder, console)
    console.note(f"wrote metrics.json, plots and reconstructions to {folder}")
    console.json({**document, "output": str(folder)})
    if strict and not document["verdict"]["ok"]:
        raise typer.Exit(1)


def report(
    loaded: Loaded, corpus: Corpus, split: str, folder: RunFolder, console: Console | None = None
) -> dict[str, Any]:
    """The end of a run: a quick evaluation, written to its `metrics.json` and returned, with plots of its codes."""
    from arcvae_cli.domains.base import Task, picture_title

    seed, title = loaded.settings.train.seed, picture_title(loaded)
    task = Task(loaded.model, corpus, split, loaded.settings, seed=seed, quick=True, title=title)
    asked = {"run": str(folder.path), "precision": "fp32"}
    silent = console or Console(as_json=True)
    document: dict[str, Any] = _evaluated(loaded, task, asked, folder.path, folder.images, silent)
    if console is not None:
        console.json(document)
    return document


def _evaluated(loaded: Loaded, task: Task, asked: Any, folder: Path, images: Path, console: Console) -> Any:
    """Evaluate, write `metrics.json` into `folder` and pictures into `images`, and print the report."""
    from arcvae_cli.evaluation.evaluate import evaluate
    from arcvae_cli.evaluation.samples import principal_plane, tsne_plane
    from arcvae_cli.render.plots import save_latent_scatter

    domain, evaluation = domains.of(loaded.model.kind), evaluate(task)
    document = {"checkpoint": str(loaded.path), "epoch": loaded.epoch, **asked, **evaluation.report}
    level, codes = next(iter(evaluation.codes.items()))
    codes = codes[: 500 if task.quick else 1000]
    if len(codes) > 2:
        values, name = domain.code_values(task, evaluation.indices[: len(codes)])
        which = f"{level} posterior means" if len(evaluation.codes) > 1 else "posterior means"
        title = f"{which} of {len(codes):,} {domain.noun}, {task.corpus.name} {task.split}\n{task.title}"
        plane, shares = principal_plane(codes)
        axes = (f"first axis, {shares[0]:.0%} of the variance", f"second axis, {shares[1]:.0%}")
        save_latent_scatter(images / "latent_space_pca.png", plane, values, name, f"PCA, {title}", axes)
        plane = tsne_plane(codes, task.seed)
        save_latent_scatter(images / "latent_space_tsne.png", plane, values, name, f"t-SNE, {title}")
    domain.draw(images, task, evaluation)
    write_json(folder / "metrics.json", document)
    show_report(loaded, document, console)
    return document


def show_report(loaded: Loaded, report: Any, console: Console) -> None:
    """Print the tables of an evaluation, the KL of every dimension and the verdict."""
    from rich.text import Text

    from arcvae_cli.domains.base import Table, picture_title
    from arcvae_cli.render.diagnosis import show_verdict
    from arcvae_cli.render.terminal import kl_bars

    domain, objective = domains.of(loaded.model.kind), loaded.settings.objective
    examples = f"{report['reconstruction']['examples']:,} {domain.noun}"
    head = f"{picture_title(loaded)}, {report['corpus']} {report['split']}, {examples}, seed {report['seed']}"
    console.result(Text(head, style="bold"))
    if loaded.model.attributes:
        console.result(Text("Without conditions, except for samples under a condition."))
    columns = dict(zip(domain.per, ("nats", "bits"), strict=True))
    likelihood = Table("Likelihood (cross-entropy, beta 1)", columns, ELBO)
    given = loaded.model.autoregressive and loaded.model.kind == "grids"  # strings are derived greedily
    forced = "accuracy: of each cell given the true ones before it" if given else ""
    latent = Table("Latent code", {name: name for name in report["levels"]}, LATENT, forced)
    for title, headings, scores, note in (*domain.tables(report), likelihood, latent):
        rows, headed = [], any(headings)
        for label, key, form in scores:
            keys = [key.format(column) for column in headings.values()][: None if "{}" in key else 1]
            values = [_lookup(report, one) for one in keys]
            if any(value is not None for value in values):
                rows.append((label, *(cell(value, "," if isinstance(value, int) else form) for value in values)))
        if rows:
            console.table(title, ("", *headings), rows, header=headed)
            if note or not headed:  # a table with a head ends in an empty line
                console.result(Text(note))
    for name, measured in report["levels"].items():
        floor = 0.0 if objective.free_bits_mode == "total" else objective.floor(name)  # of a dimension
        cells = loaded.model.level_shapes[name][1:]
        for line in kl_bars(name, measured["kl_nats"], floor, console.out.width, cells=cells):
            console.result(line)
        console.result()
    show_verdict(report["verdict"], console)


def _lookup(report: Any, key: str) -> Any:
    """The value of a dotted key in nested dicts and lists; None where a part of it is missing."""
    for part in key.split("."):
        if report is not None:
            report = report[int(part)] if isinstance(report, list) else report.get(part)
    return report
