"""`arcvae sweep`: many runs, a grid or a search, side by side and on any number of machines."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcvae_cli import sweeps
from arcvae_cli.commands import options
from arcvae_cli.console import Console, cell, styled
from arcvae_cli.errors import ArcvaeError, InputError, Interrupted
from arcvae_cli.presets import environment_layer, set_layer
from arcvae_cli.signals import GracefulExit, exit_code, signal_name

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

varying, working = (partial(typer.Option, rich_help_panel=panel) for panel in ("What varies", "The work"))
VARY_HELP = "values of a setting, as KEY=VALUE,VALUE; repeatable: the full grid"
OVER_HELP = "range of a search: KEY=log:LOW..HIGH, float:LOW..HIGH, int:LOW..HIGH or choice:VALUE,VALUE; repeatable"
SEARCH_HELP = f"{', '.join(sweeps.SEARCHES)}: search with Optuna; nsga2 has two objectives, KL and reconstruction"
METRIC_HELP = f"sorts the table, and is what a search improves ({', '.join(sweeps.METRICS)})"
PRUNE_HELP = f"stop a trial that has collapsed: {sweeps.PRUNING}"
SLURM_HELP = "submit --jobs workers as an array of Slurm jobs, and return; pre-empted ones are requeued"
SLURM_OPTION_HELP = "an option of sbatch for each worker, as in time=8:00:00 or gpus=1; repeatable"
STUDY_HELP = "folder of the sweep; alone: work on the sweep there, beside any other workers"
Rows = list[dict[str, Any]]  # of `Progress.row`
SHORT = {"rate": "KL", "distortion": "recon", "elbo": "ELBO"}  # the headings of metrics


def sweep(
    *,
    preset: options.PresetOption = None,
    data: options.DataOption = None,
    assignments: options.SetOption = None,
    vary: Annotated[list[str] | None, varying(help=VARY_HELP)] = None,
    seeds: Annotated[int, varying(min=1, max=1000, help="runs of each combination of the grid")] = 1,
    search: Annotated[str | None, varying(metavar="NAME", help=SEARCH_HELP)] = None,
    over: Annotated[list[str] | None, varying(help=OVER_HELP)] = None,
    trials: Annotated[int | None, varying(min=1, help="runs of a search; more may be asked for later")] = None,
    metric: Annotated[str | None, varying(help=METRIC_HELP, show_default="elbo")] = None,
    prune: Annotated[bool | None, varying("--prune/--no-prune", help=PRUNE_HELP, show_default="prune")] = None,
    study: Annotated[Path | None, working(help=STUDY_HELP, show_default="runs/PRESET-sweep-HASH")] = None,
    jobs: Annotated[int, working(min=1, max=1024, help="runs side by side, each with its share of the cores")] = 1,
    retry_failed: Annotated[bool, working("--retry-failed", help="take failed runs up again")] = False,
    slurm: Annotated[bool, working("--slurm", help=SLURM_HELP)] = False,
    slurm_option: Annotated[list[str] | None, working(metavar="KEY=VALUE", help=SLURM_OPTION_HELP)] = None,
    dry_run: Annotated[bool, working("--dry-run", help="list the runs, and start none")] = False,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train many runs: a grid of settings, or a search.

    Started again it goes on: finished runs are kept, stopped ones resume. Any number of workers may share a sweep.
    """
    console = Console(quiet=quiet, as_json=as_json)
    if slurm_option and not slurm:
        raise InputError("--slurm-option: needs --slurm", "add --slurm, or remove it")
    asked = (preset, data, assignments, vary, search, over, trials, metric, prune, None if seeds == 1 else seeds)
    plan = None
    if study is None or any(value is not None for value in asked):
        below, above = options.data_layers(data)
        layers = [environment_layer(), below, set_layer(assignments or []), above]
        if search is not None and search not in sweeps.SEARCHES:
            raise InputError(f"--search {search!r}: unknown", f"use {' or '.join(sweeps.SEARCHES)}")
        if metric is not None and (metric not in sweeps.METRICS or search == "nsga2"):
            both = " and ".join(sweeps.PARETO)
            what = "unknown" if metric not in sweeps.METRICS else f"nsga2 has two objectives, {both}"
            raise InputError(f"--metric {metric}: {what}", f"use {', '.join(sweeps.METRICS)}, with a grid or tpe")
        for flag, given, needed in (
            ("--vary", vary, search is None),
            ("--seeds", seeds > 1, search is None),
            ("--over", over, search),
            ("--trials", trials, search),
            ("--prune/--no-prune", prune is not None, search),
        ):
            if given and not needed:
                raise InputError(f"{flag}: {'of a grid, not' if search else 'needs'} --search", "remove one of the two")
        if search and not trials:
            raise InputError(f"--search {search}: needs --trials", "for example --trials 20")
        plan = sweeps.make_plan(
            preset,
            layers,
            vary={key: sweeps.values_of(key, text) for key, text in pairs("--vary", vary)},
            over=dict(pairs("--over", over)),
            seeds=seeds,
            search=search,
            trials=trials or 0,
            metric=metric or ("rate" if search == "nsga2" else "elbo"),
            prune=prune is not False,
        )
    folder = study or Path("runs") / (plan.name if plan else "")
    if dry_run:
        listed(folder, plan or sweeps.open_folder(folder, None), console)
        return
    plan = sweeps.open_folder(folder, plan)
    if slurm:
        submit_workers(folder, plan, console, jobs, retry_failed, slurm_option or [])
    else:
        run_worker(folder, plan, console, jobs, retry_failed)


def pairs(flag: str, given: list[str] | None) -> list[tuple[str, str]]:
    """The keys and texts of `KEY=TEXT`, each key once."""
    found = []
    for text in given or ():
        key, equals, values = (part.strip() for part in text.partition("="))
        if not (key and equals and values):
            raise InputError(f"{flag} {text[:80]!r}: expected KEY=...", f"for example {EXAMPLES[flag]}")
        found.append((key, values))
    if len(keys := {key for key, _ in found}) < len(found):
        raise InputError(f"{flag}: a key is given twice", f"one {flag} for each of {', '.join(sorted(keys))}")
    return found


EXAMPLES = {"--vary": "--vary schedule.max_beta=0.05,0.1", "--over": "--over schedule.max_beta=log:0.01..1"}


def submit_workers(
    folder: Path, plan: sweeps.Plan, console: Console, jobs: int, retry_failed: bool, options: list[str]
) -> None:
    """`--slurm`: an array of workers, each with one run at a time, and no more of them than runs."""
    from arcvae_cli.commands.slurm import submit

    source = sweeps.open_source(folder, plan)
    if retry_failed:  # here: a requeued worker would do it again
        sweeps.retry_failed(folder, source)
    count = min(jobs, plan.trials if plan.search else len(source.runs()))
    command = [sys.executable, "-m", "arcvae_cli", "sweep", "--study", str(folder.resolve())]
    job = submit(command, count, folder / "slurm", f"arcvae-{folder.name}", options)
    console.json({"sweep": str(folder), "job": job, "workers": count})
    console.result(f"job {job}: {count} workers on {folder}")
    place = shlex.quote(str(folder))
    console.note(f"next: squeue --job {job} | arcvae sweep --study {place} --dry-run; logs in {folder / 'slurm'}")


def run_worker(
    folder: Path,
    plan: sweeps.Plan,
    console: Console,
    jobs: int = 1,
    retry_failed: bool = False,
    command: sweeps.Command = sweeps.train_command,
) -> None:
    """Work on the sweep in a folder until all its runs have ended, and print the table. What a cluster starts.

    Raises Interrupted (75 after SIGUSR1) after a signal, with the runs saved, and ArcvaeError if runs have failed.
    """
    source, place = sweeps.open_source(folder, plan), shlex.quote(str(folder))
    if retry_failed and not sweeps.retry_failed(folder, source):
        console.note("no run has failed")
    total = plan.trials if plan.search else len(source.runs())
    console.note(f"sweep {folder}: {total} runs, {jobs} at a time")
    display = Display(console, plan)
    with GracefulExit() as signals, display:
        signals.patient = True
        sweeps.work(folder, plan, source, jobs, signals, display.show, command)
    rows, again = ordered(plan, display.rows), f"arcvae sweep --study {place}"
    if (asked := signals()) is not None:
        what = f"stopped by {signal_name(asked)}, the runs saved; {ended(rows)} of {total} had ended"
        raise Interrupted(what, exit_code(asked), f"`{again}` goes on")
    console.json({"sweep": str(folder), "metric": plan.metric, "runs": rows})
    console.table("", *cells(plan, rows), left=(0, 1))
    failed = [row for row in rows if row["state"] == "failed"]
    console.lines(f"failed: {row['run']}: {row['reason']}" for row in failed)
    if failed:
        what = f"{len(failed)} of {total} runs failed; their output is in {folder / 'logs'}"
        raise ArcvaeError(what, f"`{again} --retry-failed` takes them up again")
    if ended(rows) < len(rows):
        raise ArcvaeError(f"{len(rows) - ended(rows)} of {total} runs were stopped by others", f"`{again}` goes on")
    console.note(f"next: arcvae compare {place}")


def ended(rows: Rows) -> int:
    """How many runs have ended."""
    return sum(row["state"] in sweeps.ENDED for row in rows)


def ordered(plan: sweeps.Plan, rows: Rows) -> Rows:
    """The finished runs, the best by the plan's metric first, then the others."""
    sign = -1 if sweeps.METRICS[plan.metric][1] == "maximize" else 1

    def place(row: dict[str, Any]) -> tuple[bool, float]:
        measured = row["state"] == "finished" and row[plan.metric] is not None
        return not measured, sign * row[plan.metric] if measured else 0.0

    return sorted(rows, key=place)


def cells(plan: sweeps.Plan, rows: Rows) -> tuple[list[str], list[list[Any]]]:
    """The headings and the rows of the table. The name of a run of a grid has its values already."""
    keys = list(plan.over)
    metrics = {name: name for name in ("rate", "distortion", "elbo")} | {plan.metric: plan.metric}
    heads = [
        key.rpartition(".")[2] if sum(one.endswith(key.rpartition(".")[2]) for one in keys) == 1 else key
        for key in keys
    ]
    columns = ["run", "state", *heads, "epoch", "beta", "active", *(SHORT.get(name, name) for name in metrics)]
    made: list[list[Any]] = []
    for row in rows:
        values = [
            value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else str(value)
            for value in (row["values"].get(key) for key in keys)
        ]
        epoch = f"{cell(row['epoch'], 'd')}/{row['epochs']}"
        numbers = [cell(row["beta"], ".3g"), cell(row["active"], "d"), *(cell(row[name]) for name in metrics)]
        made.append([row["run"], styled(row["state"]), *values, epoch, *numbers])
    return columns, made


class Display:
    """A table of the runs on a terminal while they run; elsewhere a line for each change of state."""

    def __init__(self, console: Console, plan: sweeps.Plan) -> None:
        self.console, self.plan = console, plan
        self.rows: Rows = []
        self._states: dict[str, str] | None = None
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self.console.terminal and not self.console.quiet:
            from rich.live import Live

            self._live = Live(
                console=self.console.err, refresh_per_second=2, get_renderable=self.picture, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, rows: Rows) -> None:
        self.rows = rows  # drawn by the table's own clock
        states = {row["run"]: row["state"] for row in rows}
        if self._live is None:
            before = states if self._states is None else self._states
            for row in rows:
                if row["state"] != before.get(row["run"], "waiting"):
                    self.console.note(line(row))
        self._states = states

    def picture(self) -> RenderableType:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        rank = {"running": 0, "waiting": 2}
        rows = sorted(self.rows, key=lambda row: rank.get(row["state"], 1))
        room = max(3, self.console.err.height - 5)
        columns, made = cells(self.plan, rows[:room])
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, name in enumerate(columns):
            table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
        for one in made:
            table.add_row(*(Text(text) if isinstance(text, str) else text for text in one))
        hidden = f", {len(rows) - room} of them not shown" if len(rows) > room else ""
        table.caption = f"{ended(rows)} of {len(rows)} runs have ended{hidden}"
        return table


def line(row: dict[str, Any]) -> str:
    """A change of a run's state, for a log."""
    if row["state"] != "finished":
        return f"{row['run']}: {row['state']}" + (f": {row['reason']}" if row["reason"] else "")
    numbers = "  ".join(f"{name} {cell(row[key])}" for key, name in SHORT.items())
    return f"{row['run']}: finished  {numbers}  active {cell(row['active'], 'd')}"


def listed(folder: Path, plan: sweeps.Plan, console: Console) -> None:
    """`--dry-run`: the runs of a grid with their states, or what a search is over; nothing is written."""
    runs = [] if plan.search else sweeps.Grid(folder, plan).runs()
    found = [{"run": run.name, **sweeps.state(folder, run.name), "values": run.values} for run in runs]
    asked = {"search": plan.search, "trials": plan.trials, "over": plan.over}
    console.json({"sweep": str(folder), "runs": found, **asked})
    rows: list[Any] = [(row["run"], styled(row["state"]), json.dumps(row["values"])[1:-1]) for row in found]
    rows += [(key, plan.search, text) for key, text in plan.over.items()]
    console.table("", ("over", "search", "range") if plan.search else ("run", "state", "values"), rows, left=(0, 1, 2))
    console.note(f"sweep {folder}: {plan.trials or len(runs)} runs")
