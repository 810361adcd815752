"""`arcvae compare`: runs side by side, as a table, pictures and a page. Imports no torch."""

import csv
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from colorsys import hls_to_rgb
from glob import glob
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from arcvae_cli import folders
from arcvae_cli.commands.options import JsonOption, QuietOption, complete_runs, output_option
from arcvae_cli.console import Console, cell, styled
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import atomic_write, exists, expanded, is_dir, is_file, read_lines, usable_folder
from arcvae_cli.presets import leaves, resolve
from arcvae_cli.settings import Settings, elbo_scale

COLUMNS = {  # of the table: metric, heading, format
    "beta": ("beta", ".3g"),
    "kl": ("KL", ".2f"),
    "reconstruction": ("recon-\nstruction", ".2f"),
    "elbo": ("ELBO", ".2f"),
    "accuracy": ("accuracy", ".4f"),
    "active": ("active", ".3g"),
}
ACCURACIES = ("val/pixel_accuracy", "val/token_acc")  # of grids and of strings
HIGHER = re.compile(r"acc|elbo|exact|active|iou|density|coverage|novel|distinct|skill|(?<!in)valid")  # is better
SHARED_DATA = ("data.augment", "data.symmetries", "data.permute_classes")  # settings of data that validate the same
MOST_SETTINGS, LONGEST = 6, 28  # columns of settings in a table; characters of a name in pictures

Run = dict[str, Any]  # what `load` returns
Row = dict[str, Any]  # what `row_of` returns

RUNS_HELP = "names, folders, patterns such as 'ultra*', latest, or folders of runs such as a sweep"
SORT_HELP = f"best first: {', '.join(COLUMNS)}, a key of metrics.jsonl or metrics.json, or a setting"
runs_argument: Any = typer.Argument(metavar="RUN", help=RUNS_HELP, autocompletion=complete_runs, show_default="all")
folder_option: Any = output_option(help="folder of the pictures", show_default="comparison, beside the runs")


def compare(
    runs: Annotated[list[str] | None, runs_argument] = None,
    runs_dir: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs"),
    sort: Annotated[str, typer.Option(metavar="METRIC", help=SORT_HELP)] = "elbo",
    group: Annotated[bool, typer.Option("--group", help="seeds of the same settings in one row, mean ± sd")] = False,
    output: Annotated[Path | None, folder_option] = None,
    csv_file: Annotated[Path | None, output_option("--csv", help="write the table")] = None,
    html: Annotated[Path | None, output_option(help="write a page that needs no other file")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: the settings that differ, the final metrics, curves, KL by dimension, rate and distortion.

    Metrics are those of the final evaluation on the validation split, in nats per example at beta 1; for a run that is
    not finished, those of its last epoch. Beta is that of the last epoch, on the scale of the ELBO.
    """
    console = Console(quiet=quiet, as_json=as_json)
    written = {flag: file for flag, file in (("--csv", csv_file), ("--html", html)) if file is not None}
    for flag, file in written.items():
        if is_dir(file):
            raise InputError(f"{flag} {file}: a folder, not a file", f"use {file / 'comparison'}.{flag[2:]}")
        usable_folder(file.parent, flag)
    found = read(runs or [str(runs_dir)], runs_dir, console)
    key = known_metric(sort, found)
    rows = [row_of(seeds, key) for seeds in (same_settings(found) if group else [[run] for run in found])]
    sign = -1 if HIGHER.search(re.split(r"[./]", key)[-1]) else 1
    rows.sort(key=lambda row: (key not in row["values"], sign * row["values"].get(key, 0.0), row["name"]))
    keys = [name for name in differing(rows) if not (group and name == "train.seed")]
    data = [name for name in differing(found) if name.startswith("data.") and name not in SHARED_DATA]
    notes = list(remarks(found, data))
    place(rows, data)
    own = {Path(run["path"]).parent for run in found}
    folder = usable_folder(output or (own.pop() if len(own) == 1 else runs_dir) / "comparison", "--output")

    from arcvae_cli.render import compare as pictures

    files = [*pictures.save(folder, rows), *written.values()]
    if csv_file is not None:
        write_csv(csv_file, rows, keys)
    common = sorted(keys, key=lambda name: sum(row["settings"].get(name) is None for row in rows))[:MOST_SETTINGS]
    if more := [name for name in keys if name not in common]:
        notes.append(f"{len(more)} more settings differ: see Settings in the page (--html), --csv or --json")
    heads, lines = table(rows, [name for name in keys if name in common], key)
    if html is not None:
        pictures.save_page(html, rows, heads, lines, notes, more)
    console.json({"sort": key, "differ": keys, "notes": notes, "rows": rows, "files": [str(file) for file in files]})
    for part in fitting(heads, lines, 10**4 if console.piped else console.out.width):
        cells = [[styled(line[i]) if i == 1 else one_line(line[i]) for i in part] for line in lines]
        console.table("", [heads[i] for i in part], cells)
    for text in [*notes, f"wrote {', '.join(map(str, files))}"]:
        console.note(text)


def read(arguments: Sequence[str], runs: Path, console: Console) -> list[Run]:
    """The runs that arguments mean, each once. InputError where one means nothing, or names an unreadable run."""
    found: dict[Path, Run] = {}
    for text in arguments:
        places, pattern = [runs / text, expanded(Path(text))], re.search(r"[*?\[]", text)
        if pattern:
            places = [*(runs / name for name in sorted(glob(text, root_dir=runs))), *map(Path, sorted(glob(text)))]
        paths: list[Path] = []
        for place in places:
            if pattern or not paths:
                paths += [place] if folders.is_run(place) else folders.all_runs(place)
        if not paths and (pattern or not any(map(exists, places))):
            folders.find(text, runs)  # raises, with the runs there are
        if not paths:
            console.warn(f"{text}: neither a run nor a folder of runs, left out")
        for path in paths:
            run = folders.find(str(path), runs)  # `latest` is a link
            try:
                found[run.resolve()] = found.get(run.resolve()) or load(run)
            except InputError as error:
                if not pattern and len(paths) == 1:
                    raise
                console.warn(f"{error.what}; left out")
    if not found:
        raise InputError(f"{', '.join(arguments)}: no run that can be read", "`arcvae runs list` shows the runs")
    return list(found.values())


def load(path: Path) -> Run:
    """A run as its files show it, with `metrics` by name: of its final evaluation, else of its last epoch."""
    if not is_file(path / "config.toml"):
        raise InputError(f"{path}: no config.toml, so its settings are unknown", "leave it out")
    settings = resolve(str(path / "config.toml")).settings
    status, log, evaluation = folders.describe(path), path / "metrics.jsonl", path / "metrics.json"
    judged = (folders.read_status(path) or folders.STATUS)["judged"] and is_file(evaluation)
    run = {"name": path.name, "path": str(path), "state": status["state"], "epochs": settings.train.epochs}
    try:
        report = json.loads(evaluation.read_bytes()) if judged else None
        lines = [line for line in read_lines(log) if line["kind"] == "epoch"] if is_file(log) else []
        return {**run, "settings": dict(leaves(settings.table())), **measured(settings, lines, report)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"{path}: its metrics cannot be read ({type(error).__name__}: {error})"
        raise InputError(what, "leave it out") from error


def measured(settings: Settings, lines: Sequence[Mapping[str, Any]], report: Mapping[str, Any] | None) -> Run:
    """The metrics, verdict and curves of a run, from the epochs of its `metrics.jsonl` and its `metrics.json`.

    Beta is on the scale of the ELBO and the reconstruction in nats per example: both are missing where the loss has no
    such scale, and before the evaluation where it is a mean over positions.
    """
    elbo, levels = (report["elbo"], list(report["levels"].values())) if report else ({}, [])
    positions = 1.0 if settings.objective.reduction == "sum" else elbo.get("positions")  # of the logged mean
    scale = positions and elbo_scale(settings, positions)
    accuracy = next((key for key in ACCURACIES if lines and key in lines[-1]), "")
    logged = {"beta": ("train/beta", scale), "kl": ("val/kl", 1.0), "accuracy": (accuracy, 1.0)}
    logged["reconstruction"] = "val/loss_reconstruction", scale and positions
    curves: dict[str, list[Any]] = {"epoch": [line["epoch"] for line in lines]}
    for name, (key, factor) in logged.items():
        curves[name] = [None if factor is None or line.get(key) is None else line[key] * factor for line in lines]
    at = next((i for i, line in enumerate(lines) if report and line["epoch"] == report["epoch"]), -1)
    line = lines[at] if lines else {}
    values: dict[str, Any] = {name: curves[name][-1 if name == "beta" else at] for name in logged if lines}
    values["active"], kl_per_dim = line.get("val/active_dims"), line.get("val/kl_per_dim", [])
    if report:
        values |= {name: elbo[f"{name}_nats"] for name in ("kl", "reconstruction")}
        values["active"] = sum(level["active_dims"] for level in levels)
        kl_per_dim = [kl for level in levels for kl in level["kl_nats"]]
    terms: list[Any] = [values.get("kl"), values.get("reconstruction")]
    values["elbo"] = None if None in terms else -sum(terms)
    every = {**dict(leaves(settings.table())), **dict(leaves(dict(report or {}))), **line, **values}
    metrics = {name: value for name, value in every.items() if type(value) in (int, float)}
    found = {"metrics": metrics, "kl_per_dim": kl_per_dim, "curves": curves, "verdict": report and report["verdict"]}
    return {"epoch": int(lines[-1]["epoch"]) if lines else 0, **found}


def known_metric(name: str, runs: Sequence[Run]) -> str:
    """The metric of `--sort`; InputError, with the names most like it, where no run has it."""
    known = sorted({*COLUMNS}.union(*(run["metrics"] for run in runs)))
    if name in known:
        return name
    near = [*(key for key in known if name in key), *difflib.get_close_matches(name, known, 8, 0.5)]
    fix = f"near it: {', '.join(list(dict.fromkeys(near))[:8])}" if near else f"for example {', '.join(COLUMNS)}"
    raise InputError(f"--sort {name}: no run has this metric", fix)


def same_settings(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in nothing but their seed and settings without effect, together."""
    groups: dict[str, list[Run]] = {}
    left_out = ("train.seed", *folders.WITHOUT_EFFECT)
    for run in sorted(runs, key=lambda run: int(run["settings"]["train.seed"])):
        settings = {key: value for key, value in run["settings"].items() if not key.startswith(left_out)}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    return list(groups.values())


def row_of(runs: list[Run], key: str) -> Row:
    """Runs of the same settings, with mean and standard deviation of the metrics of those evaluated, if any is."""
    states, verdicts = [run["state"] for run in runs], [run["verdict"] for run in runs if run["verdict"]]
    missed = [sum(not finding["ok"] for finding in verdict["findings"]) for verdict in verdicts]
    row: Row = {"name": runs[0]["name"], "runs": runs, "settings": runs[0]["settings"], "values": {}, "sd": {}}
    row["epochs"] = f"{max(run['epoch'] for run in runs)}/{runs[0]['epochs']}"
    row["state"] = states[0] if len({*states}) == 1 else f"{states.count('finished')} of {len(runs)} finished"
    row["verdict"] = "-" if not missed else f"{missed[0]} missed" if missed[0] else "ok"
    if len(runs) > 1:
        row |= {"name": f"{row['name']} ({len(runs)} seeds)", "verdict": f"{missed.count(0)}/{len(missed)} ok"}
    for metric in dict.fromkeys((*COLUMNS, key)):
        known = [run for run in runs if metric in run["metrics"] and (run["verdict"] or not verdicts)]
        if known:
            row["values"][metric] = mean(run["metrics"][metric] for run in known)
        if len(known) > 1:
            row["sd"][metric] = stdev(run["metrics"][metric] for run in known)
    return row


def differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys of settings with an effect that differ, in the order of the settings."""
    keys = dict.fromkeys(key for row in rows for key in row["settings"] if not key.startswith(folders.WITHOUT_EFFECT))
    return [key for key in keys if len({json.dumps(row["settings"].get(key)) for row in rows}) > 1]


def place(rows: Sequence[Row], data: Sequence[str]) -> None:
    """Add to rows in their order what pictures need: `colour`, `label`, `point` (KL, reconstruction) and its `front`.

    `data`: settings of which only rows with the same values share a front.
    """
    for index, row in enumerate(rows):
        rgb = hls_to_rgb(0.6 + 0.9 * index / len(rows), 0.48, 0.7)
        name, row["index"], row["colour"] = row["name"], index, "#" + bytes(int(255 * part) for part in rgb).hex()
        short = name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}..{name[1 - LONGEST // 2 :]}"
        row["label"] = f"{index + 1} {short}"
        row["data"] = ", ".join(setting(row["settings"][key]) for key in data if key in row["settings"])
        row["point"] = row["values"].get("kl"), row["values"].get("reconstruction")
    for row in rows:
        kl, nats = own = row["point"]
        points = [one["point"] for one in rows if one["data"] == row["data"] and None not in one["point"]]
        row["front"] = own in points and not any(one != own and one[0] <= kl and one[1] <= nats for one in points)


def remarks(runs: Sequence[Run], data: Sequence[str]) -> Iterator[str]:
    """What to know before numbers are compared."""
    if data:
        yield f"{', '.join(data)} differ: reconstruction, ELBO, accuracy and verdict compare only on the same data"
    if early := [f"{run['name']} ({run['state']})" for run in runs if not run["verdict"]]:
        yield f"not evaluated, with the metrics of their last epoch: {', '.join(early)}"
    if without := [run["name"] for run in runs if run["epoch"] and "beta" not in run["metrics"]]:
        yield f"no beta on the scale of the ELBO with the loss of {', '.join(without)}"


def setting(value: Any) -> str:
    """A setting as the table shows it."""
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def table(rows: Sequence[Row], keys: Sequence[str], key: str) -> tuple[list[str], list[list[str]]]:
    """Headings, and a line of texts for each row; the metric of the order has a column too."""
    columns = {**COLUMNS, **({} if key in COLUMNS or key in keys else {key: (key, ".4g")})}
    lines = []
    for row in rows:
        facts = [row[name] for name in ("name", "state", "epochs", "verdict")]
        line = [*facts, *(setting(row["settings"].get(name)) for name in keys)]
        for name, (_, form) in columns.items():
            text, count = cell(row["values"].get(name), form), len(row["runs"][0]["kl_per_dim"])
            text += f"/{count}" if name == "active" and text != "-" else ""
            line.append(f"{text} ± {row['sd'][name]:{form}}" if row["sd"].get(name) else text)
        lines.append(line)
    heads = [key.replace(".", ".\n") for key in keys] + [heading for heading, _ in columns.values()]
    return ["run", "state", "epochs", "verdict", *heads], lines


def fitting(heads: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns of the tables that so many characters need, each with the first column."""
    columns = [[*head.split("\n"), *texts] for head, *texts in zip(heads, *lines, strict=True)]
    first, *widths = (3 + max(map(len, column)) for column in columns)
    tables, room = list[list[int]](), 0
    for index, needed in enumerate(widths, 1):
        if needed > room:
            tables.append([0])
            room = width - min(first, width // 2)
        tables[-1].append(index)
        room -= needed
    return tables


def write_csv(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """The table with its numbers in full, and the standard deviations over seeds."""
    lines = []
    for row in rows:
        facts = {name: row[name] for name in ("name", "state", "epochs", "verdict", "front")}
        spreads = {f"{name}_sd": value for name, value in row["sd"].items()}
        settings = {name: row["settings"].get(name) for name in keys}
        lines.append({**facts, "seeds": len(row["runs"]), **settings, **row["values"], **spreads})
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
