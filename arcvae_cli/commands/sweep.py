"""`arcvae sweep`: many runs, a grid or a search, side by side and on any number of machines."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli import sweeps
from arcvae_cli.commands import options
from arcvae_cli.commands.slurm import submit
from arcvae_cli.console import Console, cell, styled
from arcvae_cli.errors import ArcvaeError, InputError, Interrupted
from arcvae_cli.presets import environment_layer, set_layer
from arcvae_cli.signals import GracefulExit, exit_code, signal_name
from arcvae_cli.sweeps import ENDED, METRICS, PRUNING, Plan, Row

if TYPE_CHECKING:
    from rich.console import RenderableType

varying, working = (partial(typer.Option, rich_help_panel=panel) for panel in ("What varies", "The work"))
VARY_HELP = "values of a setting, as KEY=VALUE,VALUE; repeatable: the full grid"
SEARCH_HELP = "tpe, nsga2: with Optuna; pbt: a population; nsga2, pbt-pareto: two objectives, KL and reconstruction"
OVER_HELP = "range of a search: KEY=log:LOW..HIGH, float:LOW..HIGH, int:LOW..HIGH or choice:VALUE,VALUE; repeatable"
METRIC_HELP = "of the final evaluation: sorts the table, and tpe improves it"
STUDY_HELP = "folder of the sweep; alone: work on the sweep there, beside other workers"
SLURM_HELP = "submit --jobs workers as an array of Slurm jobs, and return; pre-empted ones are requeued"
OPTION_HELP = "an option of sbatch for the workers, as in time=8:00:00 or gpus=1; repeatable"
DRY_HELP = "list the runs, and start none"
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
    metric: Annotated[Literal["elbo", "rate", "distortion", "exact_share"], varying(help=METRIC_HELP)] = "elbo",
    prune: Annotated[bool, varying("--prune/--no-prune", help=f"stop a trial once {PRUNING}")] = True,
    study: Annotated[Path | None, working(help=STUDY_HELP, show_default="runs/PRESET-sweep-HASH")] = None,
    jobs: Annotated[int, working(min=1, max=1024, help="runs side by side, each with its share of the cores")] = 1,
    retry_failed: Annotated[bool, working("--retry-failed", help="take failed runs up again")] = False,
    slurm: Annotated[bool, working("--slurm", help=SLURM_HELP)] = False,
    slurm_option: Annotated[list[str] | None, working(metavar="KEY=VALUE", help=OPTION_HELP)] = None,
    dry_run: Annotated[bool, working("--dry-run", help=DRY_HELP)] = False,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train many runs: a grid of settings, or a search.

    Started again it goes on: finished runs are kept, stopped ones resume. Any number of workers may share a sweep.
    """
    console, plan = Console(quiet=quiet, as_json=as_json), None
    asked = (preset, data, assignments, vary, search, over, seeds > 1, trials, metric != "elbo", not prune)
    if study is None or any(asked):
        wrong = {"--vary": vary, "--seeds": seeds > 1} if search else {"--over": over, "--trials": trials}
        if given := [flag for flag, value in wrong.items() if value]:
            raise InputError(f"{given[0]}: {'cannot be combined with' if search else 'needs'} --search", "change one")
        if search and not trials:
            raise InputError(f"--search {search}: needs --trials", "for example --trials 20")
        below, above = options.data_layers(data)
        layers = [environment_layer(), below, set_layer(assignments or []), above]
        varied, ranges = keyed("--vary", vary, sweeps.read_values), keyed("--over", over, sweeps.read_range)
        what: Any = {"vary": varied, "over": ranges, "search": search, "metric": metric, "prune": prune}
        what["interval"] = interval if search in sweeps.POPULATIONS else 0
        plan = sweeps.make_plan(preset, layers, seeds=seeds, trials=trials, **what)
    if slurm_option and not slurm:
        raise InputError("--slurm-option: needs --slurm", "give both, or neither")
    folder = study or Path("runs") / (plan.name if plan else "")
    if slurm and not dry_run:
        submit(folder, sweeps.open_folder(folder, plan), console, jobs, retry_failed, slurm_option or [])
        return
    if not dry_run:
        run_worker(folder, sweeps.open_folder(folder, plan), console, jobs, retry_failed)
        return
    plan = plan or sweeps.open_folder(folder, None)
    runs = [] if plan.search else sweeps.Grid(folder, plan).runs()
    found = [{"run": run.name, **sweeps.state_of(folder, run.name), "values": run.values} for run in runs]
    console.json({"sweep": str(folder), "runs": found, "trials": plan.trials, "over": plan.over})
    console.lines(f"{row['run']}  {row['state']}" for row in found)
    console.lines(f"{key}  {' '.join(map(str, ends))}" for key, ends in plan.over.items())
    console.note(f"sweep {folder}: {plan.trials or len(runs)} runs")


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


def run_worker(
    folder: Path,
    plan: Plan,
    console: Console,
    jobs: int = 1,
    retry_failed: bool = False,
    command: sweeps.Command = sweeps.train_command,
) -> None:
    """Work on the sweep in a folder until all its runs have ended, and print their table: a worker on any machine.

    Raises Interrupted after a signal (exit code 75 after SIGUSR1), and ArcvaeError if runs have failed.
    """
    if plan.search in sweeps.POPULATIONS:
        if jobs > 1:
            raise InputError(f"--jobs {jobs}: a population trains in one process", "remove it")
        from arcvae_cli.population import search_population

        search_population(folder, plan, console)
        return
    from rich.live import Live

    source, again = sweeps.open_source(folder, plan), f"arcvae sweep --study {shlex.quote(str(folder))}"
    if retry_failed:
        sweeps.retry_failed(source)
    total = plan.trials or len(source.runs())
    console.note(f"sweep {folder}: {total} runs, {jobs} at a time")
    display = Display(console, plan)
    live = Live(console=console.err, get_renderable=display.picture, transient=True) if display.live else nullcontext()
    with GracefulExit() as signals, live:
        signals.patient = True
        sweeps.work(source, jobs, signals, display.show, command)
    rows, (metric, sign) = display.rows, (plan.metric, -1.0 if METRICS[plan.metric][1] == "maximize" else 1.0)
    rows = sorted(rows, key=lambda row: sign * row[metric] if row["state"] == "finished" else float("inf"))
    ended, failed = [row for row in rows if row["state"] in ENDED], [row for row in rows if row["state"] == "failed"]
    if (asked := signals()) is not None:
        what = f"stopped by {signal_name(asked)}, {len(ended)} of {total} runs have ended, the others are saved"
        raise Interrupted(what, exit_code(asked), f"`{again}` goes on")
    console.json({"sweep": str(folder), "metric": metric, "runs": rows})
    console.table("", *cells(plan, rows, float("inf") if console.piped else console.out.width), left=(0, 1))
    console.lines(f"failed: {row['run']}: {row['reason']}" for row in failed)
    if failed:
        what = f"{len(failed)} of {total} runs failed; their output is in {folder / 'logs'}"
        raise ArcvaeError(what, f"`{again} --retry-failed` takes them up again")
    if len(ended) < len(rows):
        raise ArcvaeError(f"{len(rows) - len(ended)} of {total} runs were stopped from outside", f"`{again}` goes on")
    console.note(f"next: arcvae compare {shlex.quote(str(folder))}")


def cells(plan: Plan, rows: list[Row], width: float) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The headings and rows of the table, as many columns as fit. The name of a run of a grid has its values."""
    last = [key.rpartition(".")[2] for key in plan.over]
    columns: dict[str, list[Any]] = {"run": [row["run"] for row in rows]}
    columns["state"] = [styled(row["state"]) for row in rows]
    for key, name in zip(plan.over, last, strict=True):
        values = [row["values"].get(key) for row in rows]
        texts = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
        columns[name if last.count(name) == 1 else key] = texts
    columns["epoch"] = [f"{cell(row['epoch'], 'd')}/{row['epochs']}" for row in rows]
    columns |= {name: [cell(row[name], form) for row in rows] for name, form in (("beta", ".3g"), ("active", "d"))}
    columns |= {HEADINGS.get(name, name): [cell(row[name]) for row in rows] for name in (*HEADINGS, plan.metric)}
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
            if row["state"] not in ("starting", before.get(row["run"], "waiting")):
                parts = [f"{name} {cell(row[key])}" for key, name in HEADINGS.items() if row["state"] == "finished"]
                parts += [row["reason"]] if row["reason"] else []
                self.console.note("  ".join([f"{row['run']}: {row['state']}", *parts]))
        self.rows = rows  # which the live table draws by its own clock

    def picture(self) -> RenderableType:
        from rich import box
        from rich.table import Table

        room, rows = max(3, self.console.err.height - 5), self.rows
        shown = sorted(rows, key=lambda row: (row["state"] in ENDED) + 2 * (row["state"] == "waiting"))[:room]
        columns, made = cells(self.plan, shown, self.console.err.width)
        hidden = f", {len(rows) - room} not shown" if len(rows) > room else ""
        ended = sum(row["state"] in ENDED for row in rows)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=f"{ended} of {len(rows)} runs have ended{hidden}")
        for place, name in enumerate(columns):
            table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
        for row in made:
            table.add_row(*row)
        return table
