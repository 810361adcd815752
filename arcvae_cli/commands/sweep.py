"""`arcvae sweep`: many runs, a grid or a search, side by side and on any number of machines."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli import sweeps
from arcvae_cli.commands import options
from arcvae_cli.commands.slurm import submit
from arcvae_cli.console import Console, cell, make_table, styled
from arcvae_cli.errors import ArcvaeError, InputError, Interrupted
from arcvae_cli.presets import environment_layer, presets_like, resolve, set_layer
from arcvae_cli.signals import GracefulExit, exit_code, signal_name
from arcvae_cli.sweeps import ENDED, PRUNING, Plan, Row

if TYPE_CHECKING:
    from rich.console import RenderableType

varying, working = (partial(typer.Option, rich_help_panel=panel) for panel in ("What varies", "The work"))
VARY_HELP = "values of a setting, as KEY=VALUE,VALUE; or presets, as preset=remedies/*; repeatable: the full grid"
SEARCH_HELP = "tpe, nsga2: with Optuna; pbt: a population; nsga2, pbt-pareto: two objectives, KL and reconstruction"
OVER_HELP = "range of a search: KEY=log:LOW..HIGH, float:LOW..HIGH, int:LOW..HIGH or choice:VALUE,VALUE; repeatable"
STUDY_HELP = "folder of the sweep; alone: work on the sweep there, beside other workers"
SLURM_HELP = "submit --jobs workers as an array of Slurm jobs, and return; pre-empted ones are requeued"
OPTION_HELP = "an option of sbatch for the workers, as in time=8:00:00 or gpus=1; repeatable"
HEADINGS = {"rate": "KL", "distortion": "recon", "elbo": "ELBO"}


def sweep(
    *,
    preset: options.PresetOption = None,
    data: options.DataOption = None,
    assignments: options.SetOption = None,
    vary: Annotated[list[str] | None, varying(help=VARY_HELP)] = None,
    seeds: Annotated[int, varying(min=1, max=1000, help="runs of each combination of a grid")] = 1,
    search: Annotated[Literal["tpe", "nsga2", "pbt", "pbt-pareto"] | None, varying(help=SEARCH_HELP)] = None,
    over: Annotated[list[str] | None, varying(help=OVER_HELP)] = None,
    trials: Annotated[int, varying(min=0, help="runs of a search; but for pbt, more may be asked for later")] = 0,
    interval: Annotated[int, varying(min=1, help="of pbt: epochs until the worst become copies of the best")] = 1,
    prune: Annotated[bool, varying("--prune/--no-prune", help=f"stop a trial once {PRUNING}")] = True,
    study: Annotated[Path | None, working(help=STUDY_HELP, show_default="runs/PRESET-sweep-HASH")] = None,
    jobs: Annotated[int, working(min=1, max=1024, help="runs side by side, each with its share of the cores")] = 1,
    retry_failed: Annotated[bool, working("--retry-failed", help="take failed runs up again")] = False,
    slurm: Annotated[bool, working("--slurm", help=SLURM_HELP)] = False,
    slurm_option: Annotated[list[str] | None, working(metavar="KEY=VALUE", help=OPTION_HELP)] = None,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train many runs: a grid of settings, or a search.

    Started again it goes on: finished runs are kept, stopped ones resume. Any number of workers may share a sweep.
    """
    console, plan, folder = Console(quiet=quiet, as_json=as_json), None, study or Path()
    grid, searched = bool(vary or seeds > 1), (bool(search), bool(over), bool(trials))
    if study is None or grid or any((preset, data, assignments, *searched)):
        if searched != (not grid,) * 3:
            raise InputError("what varies: not given, or not fully", "use --vary, or --search with --over and --trials")
        below, above = options.data_layers(data)
        layers = [environment_layer(), below, set_layer(assignments or []), above]
        axes = keyed("--vary", vary, lambda text: sweeps.read_axis(f"choice:{text}"))
        if "preset" in axes:
            axes["preset"] = ["choice", *(name for text in axes["preset"][1:] for name in presets_like(str(text)))]
        axes |= keyed("--over", over, sweeps.read_axis)
        if seeds > 1:
            if "train.seed" in axes:
                raise InputError("--seeds: train.seed varies already", "give one of the two")
            first = resolve(preset, *layers).settings.train.seed
            axes["train.seed"] = ["choice", *range(first, first + seeds)]
        asked: Any = {"trials": trials, "prune": prune, "interval": interval}
        plan = sweeps.make_plan(preset, layers, axes, search, **asked)
        folder = study or plan.folder(preset)
    if slurm_option and not slurm:
        raise InputError("--slurm-option: needs --slurm", "give both, or neither")
    plan = sweeps.open_folder(folder, plan)
    if retry_failed:  # before Slurm's workers start: requeued ones would do it again
        sweeps.retry_failed(folder)
    if slurm:
        submit(folder, plan, console, jobs, slurm_option or [])
    else:
        run_worker(folder, plan, console, jobs)


def keyed(flag: str, given: list[str] | None, read: Callable[[str], list[Any]]) -> dict[str, list[Any]]:
    """What is read from each `KEY=TEXT`. InputError, naming the flag."""
    found: dict[str, list[Any]] = {}
    for text in given or ():
        key, _, values = (part.strip() for part in text.partition("="))
        try:
            if not values or key in found:
                raise InputError("a key is given twice" if key in found else "expected KEY=...")
            found[key] = read(values)
        except InputError as error:
            raise InputError(f"{flag} {text[:80]}: {error.what}", error.fix) from None
    return found


def run_worker(folder: Path, plan: Plan, console: Console, jobs: int = 1) -> None:
    """Work on the sweep in a folder until all its runs have ended, and print their table: a worker on any machine.

    Raises Interrupted after a signal (exit code 75 after SIGUSR1), and ArcvaeError if runs have failed.
    """
    again = f"arcvae sweep --study {shlex.quote(str(folder))}"
    console.note(f"sweep {folder}: {plan.total} runs, {jobs} at a time")
    if plan.search in sweeps.POPULATIONS and jobs > 1:
        raise InputError(f"--jobs {jobs}: a population trains in one process", "remove it")
    display = Display(console, plan)
    with GracefulExit() as signals, suppress(KeyboardInterrupt):
        if plan.search in sweeps.POPULATIONS:
            from arcvae_cli.population import search_population

            display.rows = search_population(folder, plan, console, signals)
        else:
            from rich.live import Live

            source = sweeps.Search(folder, plan) if plan.search else sweeps.Grid(folder, plan)
            live = Live(console=console.err, get_renderable=display.picture, transient=True)
            with live if display.live else nullcontext():
                signals.patient = True
                sweeps.work(source, jobs, signals, display.show)
    rows = sorted(display.rows, key=lambda row: -row["elbo"] if row["state"] == "finished" else float("inf"))
    ended, failed = [row for row in rows if row["state"] in ENDED], [row for row in rows if row["state"] == "failed"]
    if (asked := signals()) is not None:
        what = f"stopped by {signal_name(asked)}, {len(ended)} of {plan.total} runs have ended, the others are saved"
        raise Interrupted(what, exit_code(asked), f"`{again}` goes on")
    console.json({"sweep": str(folder), "runs": rows})
    console.table("", *cells(plan, rows, float("inf") if console.piped else console.out.width), left=(0, 1))
    console.lines(f"failed: {row['run']}: {row['reason']}" for row in failed)
    if failed:
        what = f"{len(failed)} of {plan.total} runs failed; their output is in {folder / 'logs'}"
        raise ArcvaeError(what, f"`{again} --retry-failed` takes them up again")
    if len(ended) < len(rows):
        what = f"{len(rows) - len(ended)} of {plan.total} runs were stopped from outside"
        raise ArcvaeError(what, f"`{again}` goes on")
    console.note(f"next: arcvae compare {shlex.quote(str(folder))}")


def cells(plan: Plan, rows: list[Row], width: float) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The headings and rows of the table, as many columns as fit. The name of a run of a grid has its values."""
    searched = plan.axes if plan.search else {}
    last = [key.rpartition(".")[2] for key in searched]
    columns: dict[str, list[Any]] = {"run": [row["run"] for row in rows]}
    columns["state"] = [styled(row["state"]) for row in rows]
    for key, name in zip(searched, last, strict=True):
        values = [row["values"][key] for row in rows]
        texts = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
        columns[name if last.count(name) == 1 else key] = texts
    columns["epoch"] = [f"{cell(row['epoch'], 'd')}/{row['epochs']}" for row in rows]
    for name, form in (("beta", ".3g"), ("active", "d"), *((name, ".2f") for name in HEADINGS)):
        columns[HEADINGS.get(name, name)] = [cell(row[name], form) for row in rows]
    for name in ("beta", "epoch", "KL", "active"):
        if sum(3 + max(len(str(text)) for text in (head, *column)) for head, column in columns.items()) > width:
            del columns[name]
    return list(columns), list(zip(*columns.values(), strict=True))


class Display:
    """A live table of the runs on a terminal; elsewhere a line for each change of a run's state."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.console, self.plan, self.rows = console, plan, list[Row]()
        self.live = console.terminal and not console.quiet

    def show(self, rows: list[Row]) -> None:
        before = {row["run"]: row["state"] for row in self.rows or rows}
        for row in () if self.live else rows:
            if row["state"] != before.get(row["run"], "waiting"):
                parts = [f"{name} {cell(row[key])}" for key, name in HEADINGS.items() if row["state"] == "finished"]
                self.console.note("  ".join([f"{row['run']}: {row['state']}", *parts, row["reason"] or ""]).rstrip())
        self.rows = rows  # which the live table draws by its own clock

    def picture(self) -> RenderableType:
        room, rows = max(3, self.console.err.height - 5), self.rows
        shown = sorted(rows, key=lambda row: (row["state"] in ENDED) + 2 * (row["state"] == "waiting"))[:room]
        table = make_table("", *cells(self.plan, shown, self.console.err.width), left=(0, 1))
        hidden = f", {len(rows) - room} not shown" if len(rows) > room else ""
        table.caption = f"{sum(row['state'] in ENDED for row in rows)} of {len(rows)} runs have ended{hidden}"
        return table
