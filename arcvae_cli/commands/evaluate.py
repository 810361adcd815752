"""`arcvae evaluate`: measure a checkpoint beside baselines without a code."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.errors import InputError

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.domains.base import Examples, Report, Table, Task
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.runs import RunFolder

MAPPED, QUICKLY_MAPPED = 1000, 500  # codes in the plane
WIDTH = 80  # columns of KL bars
strings_option: Any = functools.partial(typer.Option, rich_help_panel="Models of strings")


def evaluate(
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    iwae: Annotated[
        int, typer.Option(min=0, max=100_000, help="draws per example of the importance-weighted likelihood; 0 is none")
    ] = 0,
    iwae_examples: Annotated[int, typer.Option("--iwae-examples", min=1, help="examples it is estimated on")] = 512,
    precision: Annotated[
        Literal["fp32", "bf16"],
        typer.Option(help="of the network's arithmetic; bf16 halves the time where the hardware has it, and rounds"),
    ] = "fp32",
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 if a target is missed")] = False,
    monte_carlo: Annotated[
        bool, strings_option("--monte-carlo", help="count exact reconstructions among sampled strings, as in 2017")
    ] = False,
    encodings: Annotated[int | None, strings_option(min=1, help="codes per derivation", show_default="10")] = None,
    decodings: Annotated[int | None, strings_option(min=1, help="strings per code", show_default="100")] = None,
    monte_carlo_examples: Annotated[
        int | None, strings_option("--monte-carlo-examples", min=1, help="derivations to count", show_default="500")
    ] = None,
    samples: Annotated[
        int | None, strings_option(min=1, max=100_000, help="strings drawn from each prior", show_default="1000")
    ] = None,
    seed: reading.SeedOption = 0,
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: reading.SplitOption = "test",
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on unseen examples, beside baselines without a code, with a verdict and advice.

    Writes metrics.json and pictures: codes, reconstructions and the worst of them, and of two levels samples and KL
    maps. Of strings, reconstructions are text.

    A conditional model is measured without conditions, and then with some.
    """
    import torch

    from arcvae_cli import domains
    from arcvae_cli.console import Console
    from arcvae_cli.domains.base import Task, picture_title

    console = Console(quiet=quiet, as_json=as_json)
    counting = {"--encodings": encodings, "--decodings": decodings, "--monte-carlo-examples": monte_carlo_examples}
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    domain = domains.of(loaded.model.kind)
    domain.check_flags({"--monte-carlo": monte_carlo or None, **counting, "--samples": samples})
    if not monte_carlo and (given := [flag for flag, value in counting.items() if value is not None]):
        raise InputError(f"{given[0]}: needs --monte-carlo", "add it")
    corpus = reading.open_examples(loaded, data, split, console)
    folder = reading.output_folder(output, loaded, f"evaluation/{corpus.name}-{split}")
    task = Task(
        loaded.model,
        corpus,
        split,
        loaded.settings,
        trained=_training_corpus(loaded, corpus, data, console),
        seed=seed,
        iwae_samples=iwae,
        iwae_examples=iwae_examples,
        monte_carlo=(monte_carlo_examples or 500, encodings or 10, decodings or 100) if monte_carlo else None,
        samples=samples or 1000,
        title=picture_title(loaded),
        note=console.note,
    )
    # bf16 is for the network: posteriors, likelihoods and baselines stay in float32 and float64
    with torch.autocast(corpus.device.type, torch.bfloat16, enabled=precision == "bf16"):
        document = _evaluated(loaded, task, {"precision": precision}, folder, folder, console)
    console.note(f"wrote metrics.json, pictures and reconstructions to {folder}")
    console.json({**document, "output": str(folder)})
    if strict and not document["verdict"]["ok"]:
        raise typer.Exit(1)


def report(loaded: Loaded, corpus: Corpus, split: str, folder: RunFolder, console: Console) -> None:
    """The end of a run: a quick evaluation in its `metrics.json`, its codes as pictures, and the verdict."""
    from arcvae_cli.domains.base import Task, picture_title

    seed, title = loaded.settings.train.seed, picture_title(loaded)
    task = Task(loaded.model, corpus, split, loaded.settings, seed=seed, quick=True, title=title)
    asked = {"run": str(folder.path), "precision": "fp32"}
    console.json(_evaluated(loaded, task, asked, folder.path, folder.images, console))


def _evaluated(
    loaded: Loaded, task: Task, asked: Report, folder: Path, images: Path, console: Console
) -> dict[str, Any]:
    """Evaluate, write `metrics.json` and texts into `folder` and pictures into `images`, and print the report."""
    from arcvae_cli.evaluation.evaluate import evaluate

    evaluation = evaluate(task)
    document = {"checkpoint": str(loaded.path), "epoch": loaded.epoch, **asked, **evaluation.report}
    if not task.quick:
        console.note("pictures")
    _write(folder, images, document, loaded, task, evaluation)
    _show(console, loaded, evaluation.report)
    return document


def _training_corpus(loaded: Loaded, corpus: Corpus, data: str | None, console: Console) -> Corpus:
    """The corpus that the model was trained on; the one at hand, with a warning, if it cannot be opened."""
    from arcvae_cli.data.corpus import open_corpus

    if data is None:
        return corpus
    try:
        return open_corpus(loaded.settings.data, corpus.device, ("train",), *reading.fit_of(loaded))
    except InputError as error:
        if not corpus.size("train"):
            raise
        console.warn(f"the data that the model was trained on is gone ({error.what}): the baseline is fitted to {data}")
        return corpus


def _write(
    folder: Path, images: Path, document: Mapping[str, Any], loaded: Loaded, task: Task, evaluation: Evaluation
) -> None:
    """`metrics.json` and texts into `folder`, pictures into `images`: moved there when all are complete."""
    import tempfile

    from arcvae_cli import domains
    from arcvae_cli.files import failed
    from arcvae_cli.runs import write_json

    domain = domains.of(loaded.model.kind)
    whose, codes = next(iter(evaluation.codes.items()))
    shown = codes[: QUICKLY_MAPPED if task.quick else MAPPED]
    values, name = domain.code_values(task, evaluation.indices[: len(shown)])
    level = f"{whose} " if len(evaluation.codes) > 1 else ""
    title = f"{level}posterior means of {len(shown):,} {domain.noun}, {task.corpus.name} {task.split}\n{task.title}"
    try:
        with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=folder) as scratch_name:
            scratch = Path(scratch_name)
            _draw_codes(scratch, shown, values, name, title, task.seed)
            domain.draw(scratch, task, evaluation)
            write_json(scratch / "metrics.json", document)
            for kind, place in (("*.png", images), ("*.txt", folder), ("metrics.json", folder)):
                for file in scratch.glob(kind):
                    file.replace(place / file.name)
    except OSError as error:
        raise failed(folder, error.strerror or str(error)) from error


def _draw_codes(folder: Path, codes: Examples, values: Examples, name: str, title: str, seed: int) -> None:
    """Codes (n, D) of the top level in the plane, by PCA and t-SNE, each point coloured by its value."""
    from arcvae_cli.evaluation.projections import principal_plane, tsne_plane
    from arcvae_cli.render.plots import save_latent_scatter

    if len(codes) < 3:
        return
    plane, shares = principal_plane(codes)
    axes = (f"first axis, {shares[0]:.0%} of the variance", f"second axis, {shares[1]:.0%}")
    save_latent_scatter(folder / "latent_space_pca.png", plane, values, name, f"PCA, {title}", axes)
    plane = tsne_plane(codes, seed)
    save_latent_scatter(folder / "latent_space_tsne.png", plane, values, name, f"t-SNE, {title}")


ELBO = (
    ("reconstruction", "elbo.reconstruction_{}", ".3f"),
    ("KL", "elbo.kl_{}", ".3f"),
    ("ELBO", "elbo.elbo_{}", ".3f"),
    ("  standard error", "elbo_error", ".3f"),
    ("-log p(x), importance-weighted <=", "importance_weighted.nll_{}", ".3f"),
    ("  -ELBO of these examples", "importance_weighted.single_nats", ".3f"),
    ("  draws per example", "importance_weighted.samples", ""),
    ("  effective sample size", "importance_weighted.effective_samples_mean", ".1f"),
    ("    at least", "importance_weighted.effective_samples_min", ".1f"),
)
CODE = (
    ("active dimensions, KL > 0.05", "levels.{}.active_dims", ""),
    ("units", "levels.{}.units", ""),
    ("active units, Var E[z] > 0.01", "levels.{}.active_units", ""),
    ("collapsed dimensions", "levels.{}.collapsed_share", ".0%"),
    ("mutual information, nats (a lower bound)", "levels.{}.mutual_information.nats", ".2f"),
    ("  its ceiling, log of the examples", "levels.{}.mutual_information.ceiling_nats", ".2f"),
    ("reconstruction, right codes, nats", "shuffled_codes.reconstruction_nats", ".1f"),
    ("  with codes of other examples", "shuffled_codes.shuffled_reconstruction_nats", ".1f"),
    ("  with this level's of other examples", "shuffled_codes.levels.{}.reconstruction_nats", ".1f"),
    ("accuracy, right codes", "shuffled_codes.accuracy", ".1%"),
    ("  with codes of other examples", "shuffled_codes.shuffled_accuracy", ".1%"),
    ("  with this level's of other examples", "shuffled_codes.levels.{}.accuracy", ".1%"),
)


def _show(console: Console, loaded: Loaded, report: Report) -> None:
    from rich.text import Text

    from arcvae_cli import domains
    from arcvae_cli.domains.base import Table, title_of
    from arcvae_cli.render.terminal import kl_bars

    domain, objective = domains.of(loaded.model.kind), loaded.settings.objective
    examples = f"{report['reconstruction']['examples']:,} {domain.noun}"
    head = f"{title_of(loaded)}, {report['corpus']} {report['split']}, {examples}, seed {report['seed']}"
    console.result(Text(head, style="bold"))
    if loaded.model.attributes:
        console.result(Text("Without conditions, except for samples under a condition."))
    for table in domain.tables(report):
        _show_table(console, table, report)
    columns = dict(zip(domain.per, ("nats", "bits"), strict=True))
    _show_table(console, Table("Likelihood (cross-entropy, beta 1)", columns, ELBO), report)
    _show_table(console, Table("Code", {name: name for name in report["levels"]}, CODE), report)
    for name, level in report["levels"].items():
        floor = 0.0 if objective.free_bits_mode == "total" else objective.floor(name)  # of a dimension
        for line in kl_bars(name, level["kl_nats"], floor, WIDTH, cells=loaded.model.level_shapes[name][1:]):
            console.result(line)
        console.result()
    verdict = report["verdict"]
    marks = {True: Text("ok", style="green"), False: Text("MISS", style="red")}
    rows = [(marks[one["ok"]], one["name"], f"{one['value']:.4g}", one["target"]) for one in verdict["findings"]]
    console.table("Verdict", ("", "", "", ""), rows, left=(0, 1, 3), header=False)
    for remedy in dict.fromkeys(one["remedy"] for one in verdict["findings"] if one["remedy"]):
        console.result(Text(f"- {remedy}"))
    console.result(Text(verdict["summary"], style="bold green" if verdict["ok"] else "bold yellow"))


def _show_table(console: Console, table: Table, report: Report) -> None:
    from rich.text import Text

    from arcvae_cli.console import cell

    rows = []
    for label, key, form in table.rows:
        values = [
            _lookup(report, key.format(column)) for column in list(table.columns.values())[: None if "{}" in key else 1]
        ]
        if any(value is not None for value in values):
            rows.append((label, *(cell(value, "," if isinstance(value, int) else form) for value in values)))
    if rows:
        headed = any(table.columns)
        console.table(table.title, ("", *table.columns), rows, header=headed)
        if not headed:  # a table with a head ends in an empty line
            console.result()
        if table.note:
            console.result(Text(table.note))


def _lookup(report: Any, key: str) -> Any:
    """The value of a dotted key in nested dicts and lists; None where a part of it is missing."""
    for part in key.split("."):
        if report is not None:
            report = report[int(part)] if isinstance(report, list) else report.get(part)
    return report
