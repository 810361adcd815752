"""`arcvae evaluate`: measure a checkpoint beside baselines without a code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
    open_examples,
    output_folder,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.domains.base import Domain, Report, Sheet, Task
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.runs import RunFolder

MAPPED, QUICKLY_MAPPED = 1000, 500  # codes in the plane
WIDTH = 80  # columns of KL bars
STRINGS = "Models of strings"  # panel of the help


def evaluate(
    checkpoint: CheckpointOption = "vae_best.pth",
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
        bool,
        typer.Option(
            "--monte-carlo",
            help="count exact reconstructions among sampled strings, as in 2017",
            rich_help_panel=STRINGS,
        ),
    ] = False,
    encodings: Annotated[
        int | None, typer.Option(min=1, help="codes per derivation", show_default="10", rich_help_panel=STRINGS)
    ] = None,
    decodings: Annotated[
        int | None, typer.Option(min=1, help="strings per code", show_default="100", rich_help_panel=STRINGS)
    ] = None,
    monte_carlo_examples: Annotated[
        int | None,
        typer.Option(
            "--monte-carlo-examples",
            min=1,
            help="derivations it is done for",
            show_default="500",
            rich_help_panel=STRINGS,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000, help="strings drawn from each prior", show_default="1000", rich_help_panel=STRINGS
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
    """Measure a model on unseen examples, beside baselines without a code, with a verdict and advice.

    Writes metrics.json and pictures: codes, reconstructions and the worst of them, and of two levels samples and KL
    maps. Of strings, reconstructions are text.

    A conditional model is measured without conditions, and then with some.
    """
    import torch

    from arcvae_cli import domains
    from arcvae_cli.console import Console
    from arcvae_cli.domains.base import Task
    from arcvae_cli.errors import InputError
    from arcvae_cli.evaluation.evaluate import evaluate as evaluate_task

    console = Console(quiet=quiet, as_json=as_json)
    counting = {"--encodings": encodings, "--decodings": decodings, "--monte-carlo-examples": monte_carlo_examples}
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    domain = domains.of(loaded.model.kind)
    domain.check_flags({"--monte-carlo": monte_carlo or None, **counting, "--samples": samples})
    if not monte_carlo and (given := [flag for flag, value in counting.items() if value is not None]):
        raise InputError(f"{given[0]}: needs --monte-carlo", "add it")
    corpus = open_examples(loaded, data, split, console)
    folder = output_folder(output, loaded, f"evaluation/{corpus.name}-{split}")
    task = Task(
        loaded.model,
        corpus,
        split,
        loaded.settings,
        trained=_training_corpus(loaded, corpus, data, console),
        grammar=loaded.grammar,
        seed=seed,
        iwae_samples=iwae,
        iwae_examples=iwae_examples,
        monte_carlo=(monte_carlo_examples or 500, encodings or 10, decodings or 100) if monte_carlo else None,
        samples=samples or 1000,
        tell=console.note,
    )
    # bf16 is for the network: posteriors, likelihoods and baselines stay in float32 and float64
    with torch.autocast(corpus.device.type, torch.bfloat16, enabled=precision == "bf16"):
        evaluation = evaluate_task(task)
        document = {**_origin(loaded), "precision": precision, **evaluation.report}
        console.note("pictures")
        _write(folder, folder, document, loaded, task, evaluation)
    _show(console, loaded, evaluation.report)
    console.note(f"wrote metrics.json, pictures and reconstructions to {folder}")
    console.json({**document, "output": str(folder)})
    if strict and not evaluation.report["verdict"]["ok"]:
        raise typer.Exit(1)


def report(loaded: Loaded, corpus: Corpus, split: str, folder: RunFolder, console: Console) -> None:
    """The end of a run: a quick evaluation in its `metrics.json`, its codes as pictures, and the verdict."""
    from arcvae_cli.domains.base import Task
    from arcvae_cli.evaluation.evaluate import evaluate as evaluate_task

    settings = loaded.settings
    task = Task(loaded.model, corpus, split, settings, grammar=loaded.grammar, seed=settings.train.seed, quick=True)
    evaluation = evaluate_task(task)
    document = {"run": str(folder.path), **_origin(loaded), "precision": "fp32", **evaluation.report}
    _write(folder.path, folder.images, document, loaded, task, evaluation)
    _show(console, loaded, evaluation.report)
    console.json(document)


def _origin(loaded: Loaded) -> dict[str, Any]:
    return {"checkpoint": str(loaded.path), "epoch": loaded.epoch}


def _training_corpus(loaded: Loaded, corpus: Corpus, data: str | None, console: Console) -> Corpus:
    """The corpus that the model was trained on; the one at hand, with a warning, if it cannot be opened."""
    from arcvae_cli import domains
    from arcvae_cli.data.corpus import open_corpus
    from arcvae_cli.errors import InputError

    if data is None:
        return corpus
    structure = domains.of(loaded.model.kind).structure(loaded.model)
    fit = (None, None) if structure is None else (structure.rules, structure.length)
    try:
        return open_corpus(loaded.settings.data, corpus.device, ("train",), *fit)
    except InputError as error:
        if not corpus.size("train"):
            raise
        console.warn(f"the data that the model was trained on is gone ({error.what}): the baseline is fitted to {data}")
        return corpus


# ------------------------------------------------------------------------------------------------ files


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
    values, name = domain.code_values(task, evaluation, len(shown))
    level = f"{whose} " if len(evaluation.codes) > 1 else ""
    title = f"{level}posterior means of {len(shown):,} {domain.noun}, {task.corpus.name} {task.split}"
    try:
        with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=folder) as scratch_name:
            scratch = Path(scratch_name)
            draw_codes(scratch, shown, values, name, title, task.seed)
            domain.draw(scratch, loaded, task, evaluation)
            write_json(scratch / "metrics.json", document)
            for kind, place in (("*.png", images), ("*.txt", folder), ("metrics.json", folder)):
                for file in scratch.glob(kind):
                    file.replace(place / file.name)
    except OSError as error:
        raise failed(folder, error.strerror or str(error)) from error


def draw_codes(
    folder: Path, codes: NDArray[np.float32], values: NDArray[Any], name: str, title: str, seed: int
) -> None:
    """Codes (n, D) of the top level in the plane, by PCA and t-SNE, each point coloured by its value."""
    from arcvae_cli.evaluation.projections import principal_plane, tsne_plane
    from arcvae_cli.render import save_latent_scatter

    if len(codes) < 3:
        return
    plane, shares = principal_plane(codes)
    axes = (f"first axis, {shares[0]:.0%} of the variance", f"second axis, {shares[1]:.0%}")
    save_latent_scatter(folder / "latent_space_pca.png", plane, values, name, f"PCA, {title}", axes)
    plane = tsne_plane(codes, seed)
    save_latent_scatter(folder / "latent_space_tsne.png", plane, values, name, f"t-SNE, {title}")


# ------------------------------------------------------------------------------------------------ on the screen


def _show(console: Console, loaded: Loaded, report: Report) -> None:
    """Everything measured, in 80 columns, the verdict last."""
    from rich.text import Text

    from arcvae_cli import domains
    from arcvae_cli.domains.base import title_of
    from arcvae_cli.render import kl_bars

    domain, objective = domains.of(loaded.model.kind), loaded.settings.objective

    def show(parts: Iterator[Sheet | str]) -> None:
        for part in parts:
            if isinstance(part, str):
                console.result(Text(part))
            else:
                console.table(*part)

    examples = f"{report['reconstruction']['examples']:,} {domain.noun}"
    head = f"{title_of(loaded)}, {report['corpus']} {report['split']}, {examples}, seed {report['seed']}"
    console.result(Text(head, style="bold"))
    if loaded.model.attributes:
        console.result(Text("Without conditions, except for samples under a condition."))
    show(domain.reconstruction_sheets(report))
    show(_likelihood(report, domain))
    for name, level in report["levels"].items():
        floor = 0.0 if objective.free_bits_mode == "total" else objective.floor(name)  # of a dimension
        console.result()
        for bar in kl_bars(name, level["kl_nats"], floor, WIDTH, cells=loaded.model.level_shapes[name][1:]):
            console.result(bar)
    console.result()
    show(_code_lines(report, domain))
    show(domain.sample_sheets(report, loaded))
    _show_verdict(console, report["verdict"])


def _likelihood(report: Report, domain: Domain) -> Iterator[Sheet | str]:
    """Nats of an example, and bits of a position."""
    from arcvae_cli.domains.base import Sheet

    elbo, weighted, error = report["elbo"], report["importance_weighted"], report.get("elbo_error")
    per_bit = elbo["positions"] * math.log(2.0)
    levels = {f"  {name}": sum(level["kl_nats"]) for name, level in report["levels"].items()}
    nats = {"reconstruction": elbo["reconstruction_nats"], "KL": elbo["kl_nats"]}
    nats |= levels if len(levels) > 1 else {}
    nats["-ELBO"] = -elbo["elbo_nats"]
    errors = {} if error is None else {"-ELBO": f" +- {error:.2f}"}
    rows: list[tuple[str, ...]] = [
        (name, f"{value:.2f}{errors.get(name, '')}", f"{value / per_bit:.4f}") for name, value in nats.items()
    ]
    if weighted is not None:
        name = f"-log p(x), {weighted['samples']} draws, {weighted['examples']} {domain.noun} <="
        rows.append((name, f"{weighted['nll_nats']:.2f}", f"{weighted['nll_bits']:.4f}"))
        rows.append(("  -ELBO of these", f"{weighted['single_nats']:.2f}", ""))
        sizes = [f"{weighted[f'effective_samples_{which}']:.1f}" for which in ("mean", "min")]
        rows.append(("  effective sample size, mean and least", *sizes))
    rows += [(name, f"{value:.2f}", f"{bits:.4f}") for name, value, bits in domain.likelihood_rows(report)]
    columns = "", f"nats per {domain.noun_singular}", f"bits per {domain.unit}"
    yield Sheet("Likelihood (cross-entropy, beta 1)", columns, rows)
    if (noise := report.get("posterior_noise", 1.0)) < 1.0:
        yield (
            f"posterior_noise = {noise:g}: the objective's KL is {report['trained_kl_nats']:.2f} nats, that of the\n"
            f"density that codes are sampled from {elbo['kl_nats']:.2f}, which counts."
        )


def _code_lines(report: Report, domain: Domain) -> Iterator[str]:
    """How much of each level is in use, what it says of the examples, and what the decoder makes of it."""
    for name, level in report["levels"].items():
        groups = "dimensions" if level["cells_nats"] is None else "channels"
        yield (
            f"{name}: {level['active_dims']} of {len(level['kl_nats'])} {groups} active (KL > 0.05), "
            f"{level['active_units']} of {level['units']} units (Var E[z] > 0.01); "
            f"{level['collapsed_share']:.0%} collapsed"
        )
        if (found := level["mutual_information"]) is not None:
            sign, limit = (">=", "at its ceiling") if found["is_bound"] else ("=", "at most")
            ceiling = f"{limit} log {found['examples']} = {found['ceiling_nats']:.2f}"
            yield f"mutual information {sign} {found['nats']:.2f} nats ({ceiling})"
    if (shuffled := report["shuffled_codes"]) is not None:
        right, wrong = (
            f"{shuffled[f'{which}reconstruction_nats']:.1f} nats, accuracy {shuffled[f'{which}accuracy']:.1%}"
            for which in ("", "shuffled_")
        )
        yield f"with the right codes: reconstruction {right}"
        yield f"with codes of other {domain.noun}: {wrong}"
        for name, alone in shuffled["levels"].items():
            costs = f"{alone['reconstruction_nats']:.1f} nats, {alone['accuracy']:.1%}"
            yield f"with {name} codes of other {domain.noun}: {costs}"
    if report["interpolation"] is not None:
        yield from domain.path_lines(report)


def _show_verdict(console: Console, verdict: Report) -> None:
    """The findings, what to do about those that miss, and the summary."""
    from rich.text import Text

    marks = {True: Text("ok", style="green"), False: Text("MISS", style="red")}
    rows = [
        (marks[finding["ok"]], finding["name"], f"{finding['value']:.4g}", finding["target"])
        for finding in verdict["findings"]
    ]
    console.table("Verdict", ("", "", "", ""), rows, left=(0, 1, 3), header=False)
    for remedy in dict.fromkeys(finding["remedy"] for finding in verdict["findings"] if finding["remedy"]):
        console.result(Text(f"- {remedy}"))
    console.result(Text(verdict["summary"], style="bold green" if verdict["ok"] else "bold yellow"))
