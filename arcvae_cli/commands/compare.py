"""`arcvae compare`: runs side by side, as a table, pictures and a page. Imports no torch."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from arcvae_cli import folders
from arcvae_cli.commands.options import JsonOption, QuietOption, complete_runs, output_option
from arcvae_cli.console import Console, styled
from arcvae_cli.errors import InputError, nearest, one_line
from arcvae_cli.files import atomic_write, is_dir, is_file, read_lines, usable_folder
from arcvae_cli.presets import leaves, resolve
from arcvae_cli.render import compare as pictures
from arcvae_cli.settings import Settings, elbo_scale

METRICS = {"beta": ".3g", "kl": ".2f", "reconstruction": ".2f", "elbo": ".2f", "accuracy": ".4f", "active": ".3g"}
HEADINGS = {"name": "run", "kl": "KL", "reconstruction": "recon", "elbo": "ELBO"}
HIGHER = re.compile(r"acc|elbo|exact|active|iou|density|coverage|novel|distinct|skill|(?<!in)valid")  # is better
SHARED_DATA = ("data.augment", "data.symmetries", "data.permute_classes")  # settings of data that validate the same

Run = dict[str, Any]  # what `load` returns
Row = dict[str, Any]  # what `row_of` returns

RUNS_HELP = "names, folders, patterns such as 'ultra*', latest, or folders of runs such as a sweep"
SORT_HELP = f"best first: {', '.join(METRICS)}, a key of metrics.jsonl or metrics.json, or a setting"
runs_argument: Any = typer.Argument(metavar="RUN", help=RUNS_HELP, autocompletion=complete_runs, show_default="all")
picture_option: Any = output_option(help="PNG of all curves", show_default="comparison.png, beside the runs")


def compare(
    runs: Annotated[list[str] | None, runs_argument] = None,
    runs_dir: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs"),
    sort: Annotated[str, typer.Option(metavar="METRIC", help=SORT_HELP)] = "elbo",
    group: Annotated[bool, typer.Option("--group", help="seeds of the same settings in one row, mean ± sd")] = False,
    output: Annotated[Path | None, picture_option] = None,
    csv_file: Annotated[Path | None, output_option("--csv", help="write the table")] = None,
    html: Annotated[Path | None, output_option(help="write a page that needs no other file")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: the final metrics, the settings that differ, curves, KL by dimension, rate and distortion.

    Metrics are those of the final evaluation on the validation split, in nats per example at beta 1; for a run that is
    not finished, those of its last epoch. Beta is that of the last epoch, on the scale of the ELBO.
    """
    console, files = Console(quiet=quiet, as_json=as_json), list[str]()
    found = read(runs or [str(runs_dir)], runs_dir, console)
    parents = {Path(run["path"]).parent for run in found}
    picture = output or (parents.pop() if len(parents) == 1 else runs_dir) / "comparison.png"
    for flag, file in {"--output": picture, "--csv": csv_file, "--html": html}.items():
        if file is not None and is_dir(file):
            raise InputError(f"{flag} {file}: a folder, not a file", "give the name of a file")
        if file is not None:
            usable_folder(file.parent, flag)
            files.append(str(file))
    known = sorted({*METRICS}.union(*(run["metrics"] for run in found)))
    if sort not in known:
        near = [name for name in known if sort in name] or METRICS
        raise InputError(f"--sort {sort}: no run has this metric", f"{nearest(sort, known)}known: {', '.join(near)}")
    differ = [name for name in differing(found) if not (group and name == "train.seed")]
    data = [name for name in differ if name.startswith("data.") and name not in SHARED_DATA]
    metrics = list(dict.fromkeys([sort, *METRICS]))
    groups: dict[str, list[Run]] = {}
    for run in sorted(found, key=lambda run: run["metrics"]["train.seed"]):
        same = json.dumps({**run["settings"], "train.seed": None}, sort_keys=True) if group else run["path"]
        groups.setdefault(same, []).append(run)
    rows = [row_of(seeds, metrics, differ, data) for seeds in groups.values()]
    sign = -1 if HIGHER.search(re.split(r"[./]", sort)[-1]) else 1
    rows.sort(key=lambda row: (row[sort] is None, sign * (row[sort] or 0.0), row["name"]))
    for number, row in enumerate(rows, 1):
        row |= {"number": number, "front": on_front(row, rows)}
    notes = []
    if data:
        notes.append(f"{', '.join(data)} differ: only metrics on the same data compare")
    if early := [f"{run['name']} ({run['state']})" for run in found if not run["verdict"]]:
        notes.append(f"not evaluated, with the metrics of their last epoch: {', '.join(early)}")
    columns = list(dict.fromkeys(["name", "state", "epochs", "verdict", *metrics, *differ]))
    heads = [HEADINGS.get(name, name.replace(".", ".\n")) for name in columns]
    lines = [[text(row, name) for name in columns] for row in rows]
    pictures.save(picture, rows)
    if html is not None:
        pictures.save_page(html, rows, heads, lines, notes)
    if csv_file is not None:
        with atomic_write(csv_file) as temporary, temporary.open("w", encoding="utf-8", newline="") as opened:
            fields = [*columns, *(f"{name}_sd" for name in metrics if group), "front"]
            writer = csv.DictWriter(opened, fields, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    console.json({"sort": sort, "differ": differ, "notes": notes, "rows": rows, "files": files})
    for part in fitting([heads, *lines], 10**4 if console.piped else console.out.width):
        cells = [[styled(line[i]) if i == 1 else one_line(line[i]) for i in part] for line in lines]
        console.table("", [heads[i] for i in part], cells)
    for note in [*notes, f"wrote {', '.join(files)}"]:
        console.note(note)


def read(arguments: Sequence[str], runs: Path, console: Console) -> list[Run]:
    """The runs that arguments mean, each once, without those that cannot be read. InputError where there is none."""
    found: dict[Path, Run] = {}
    for argument in arguments:
        places = [runs / name for name in glob(argument, root_dir=runs)] or [Path(name) for name in glob(argument)]
        places = places or [folders.find(argument, runs)]  # which raises, with the runs there are
        paths = [path for one in places for path in ([one] if folders.is_run(one) else folders.all_runs(one))]
        if not paths and not all(map(is_file, places)):  # such as the picture of an earlier comparison
            console.warn(f"{argument}: neither a run nor a folder of runs; left out")
        for path in paths:
            run = folders.find(str(path), runs)  # `latest` is a link
            try:
                found[run.resolve()] = found.get(run.resolve()) or load(run)
            except InputError as error:
                console.warn(f"{error.what}; left out")
    if not found:
        raise InputError(f"{', '.join(arguments)}: no run that can be read", "`arcvae runs list` shows the runs")
    return list(found.values())


def load(path: Path) -> Run:
    """A run as its files show it, with its settings by dotted key, and what `measured` finds."""
    settings = resolve(str(path / "config.toml")).settings
    effective = {key: value for key, value in leaves(settings.table()) if not key.startswith(folders.WITHOUT_EFFECT)}
    run = {"name": path.name, "path": str(path), "state": folders.describe(path)["state"], "settings": effective}
    try:
        log, evaluation = path / "metrics.jsonl", path / "metrics.json"
        lines = [line for line in read_lines(log) if line["kind"] == "epoch"] if is_file(log) else []
        judged = (folders.read_status(path) or folders.STATUS)["judged"] and is_file(evaluation)
        report = json.loads(evaluation.read_bytes()) if judged else None
        return run | measured(settings, lines, report)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its metrics cannot be read ({type(error).__name__}: {error})") from error


def measured(settings: Settings, lines: Sequence[Mapping[str, Any]], report: Mapping[str, Any] | None) -> Run:
    """The curves, metrics and verdict of a run, from the epochs of its `metrics.jsonl` and its `metrics.json`.

    Metrics are those of the final evaluation, else of the last epoch. Beta is on the scale of the ELBO and the
    reconstruction in nats per example: both are missing where the loss has no such scale, and before the evaluation
    where it is a mean over positions.
    """
    elbo, levels = (report["elbo"], report["levels"].values()) if report else ({}, ())
    positions = 1.0 if settings.objective.reduction == "sum" else elbo.get("positions")  # of the logged mean
    scale = elbo_scale(settings, positions) if positions else None
    curves: list[dict[str, Any]] = []
    for line in lines:
        beta, nats = line.get("train/beta"), line.get("val/loss_reconstruction")
        curve = {"epoch": line["epoch"], "beta": beta * scale if scale and beta is not None else None}
        curve["reconstruction"] = nats * positions if scale and nats is not None else None
        accuracy = line.get("val/pixel_accuracy", line.get("val/token_acc"))  # of grids, of strings
        curves.append({**curve, "kl": line.get("val/kl"), "accuracy": accuracy, "active": line.get("val/active_dims")})
    at = next((i for i, line in enumerate(lines) if report and line["epoch"] == report["epoch"]), -1)
    line, final = (lines[at], {**curves[at], "beta": curves[-1]["beta"]}) if lines else ({}, {})
    kl_per_dim = line.get("val/kl_per_dim", [])
    if report:
        final |= {"kl": elbo["kl_nats"], "reconstruction": elbo["reconstruction_nats"]}
        final["active"] = sum(level["active_dims"] for level in levels)
        kl_per_dim = [kl for level in levels for kl in level["kl_nats"]]
    kl, nats = final.get("kl"), final.get("reconstruction")
    final["elbo"] = None if kl is None or nats is None else -(kl + nats)
    every = [*leaves(settings.table()), *leaves(dict(report or {})), *line.items(), *final.items()]
    metrics = {name: value for name, value in every if type(value) in (int, float)}
    return {"metrics": metrics, "curves": curves, "kl_per_dim": kl_per_dim, "verdict": report and report["verdict"]}


def differing(runs: Sequence[Run]) -> list[str]:
    """The dotted keys of settings that differ; those that most runs have first."""
    keys = dict.fromkeys(key for run in runs for key in run["settings"])
    found = [key for key in keys if len({json.dumps(run["settings"].get(key)) for run in runs}) > 1]
    return sorted(found, key=lambda key: sum(run["settings"].get(key) is None for run in runs))


def row_of(runs: list[Run], metrics: Sequence[str], differ: Sequence[str], data_keys: Sequence[str]) -> Row:
    """A row of the table: settings that differ, mean and sd of metrics over those of the runs evaluated, if any is."""
    judged, settings = [run for run in runs if run["verdict"]], runs[0]["settings"]
    missed = [sum(not finding["ok"] for finding in run["verdict"]["findings"]) for run in judged]
    seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
    row: Row = {"name": runs[0]["name"] + seeds, "seeds": len(runs), "runs": runs}
    row["state"] = ", ".join(dict.fromkeys(run["state"] for run in runs))
    epoch = max((curve["epoch"] for run in runs for curve in run["curves"]), default=0)
    row["epochs"] = f"{epoch}/{settings['train.epochs']}"
    span = "-".join(map(str, sorted({min(missed, default=0), max(missed, default=0)})))
    row["verdict"] = f"{span} missed" if any(missed) else "ok" if judged else "-"
    row["data"] = ", ".join(str(settings[key]) for key in data_keys if key in settings)
    row |= {key: settings.get(key) for key in differ}
    for name in metrics:
        values = [run["metrics"][name] for run in judged or runs if name in run["metrics"]]
        row[name] = mean(values) if values else None
        row[f"{name}_sd"] = stdev(values) if len(values) > 1 else None
    return row


def on_front(row: Row, rows: Sequence[Row]) -> bool:
    """Whether no row on the same data has less of both KL and reconstruction."""
    kl, nats = own = row["kl"], row["reconstruction"]
    points = [(one["kl"], one["reconstruction"]) for one in rows if one["data"] == row["data"] and one["elbo"]]
    return own in points and not any(one != own and one[0] <= kl and one[1] <= nats for one in points)


def text(row: Row, name: str) -> str:
    """What the table shows of a row in a column."""
    value, sd, form = row[name], row.get(f"{name}_sd"), METRICS.get(name, ".4g")
    if value is None or isinstance(value, str):
        return value or "-"
    shown = f"{value:{form}}" if isinstance(value, float) else json.dumps(value)
    return f"{shown} ± {sd:{form}}" if sd else shown


def fitting(lines: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns of the tables that so many characters need, each with the first column."""
    widths = [3 + max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*lines, strict=True)]
    tables = [[0]]
    for column in range(1, len(widths)):
        if len(tables[-1]) > 1 and sum(widths[i] for i in (*tables[-1], column)) > width:
            tables.append([0])
        tables[-1].append(column)
    return tables
