"""`arcvae compare`: runs side by side, as a table, pictures and a page. Imports no torch."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from colorsys import hls_to_rgb
from glob import glob
from pathlib import Path
from typing import Annotated, Any

import typer

from arcvae_cli import folders
from arcvae_cli.commands.options import JsonOption, QuietOption, complete_runs, output_option
from arcvae_cli.console import Console, cell, styled
from arcvae_cli.errors import InputError, nearest, one_line
from arcvae_cli.files import atomic_write, expanded, is_file, read_lines, usable_folder
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
FACTS = ("name", "state", "epochs", "verdict")  # columns before those of settings
ACCURACIES = ("val/pixel_accuracy", "val/token_acc")  # of grids and of strings
HIGHER = re.compile(r"acc|elbo|exact|active|iou|density|coverage|novel|distinct|skill|(?<!in)valid")  # is better
WITHOUT_EFFECT = ("log.", "checkpoint.", *folders.MACHINE)  # settings that change no number
SHARED_DATA = ("data.augment", "data.symmetries", "data.permute_classes")  # settings of data that validate the same

Run = dict[str, Any]  # what `load` returns and `place` completes

RUNS_HELP = "names, folders, patterns such as 'ultra*', latest, or folders of runs such as a sweep"
SORT_HELP = f"best first: {', '.join(COLUMNS)}, a key of metrics.jsonl or metrics.json, or a setting"
runs_argument: Any = typer.Argument(metavar="RUN", help=RUNS_HELP, autocompletion=complete_runs, show_default="all")
folder_option: Any = output_option(help="folder of the pictures", show_default="comparison, beside the runs")


def compare(
    runs: Annotated[list[str] | None, runs_argument] = None,
    runs_dir: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs"),
    sort: Annotated[str, typer.Option(metavar="METRIC", help=SORT_HELP)] = "elbo",
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
        usable_folder(file.parent, flag)
    found = read(runs or [str(runs_dir)], runs_dir, console)
    known = {*COLUMNS}.union(*(run["metrics"] for run in found))
    if sort not in known:
        raise InputError(f"--sort {sort}: no run has this metric", f"{nearest(sort, known)}known: {', '.join(COLUMNS)}")
    sign = -1 if HIGHER.search(re.split(r"[./]", sort)[-1]) else 1
    found.sort(key=lambda run: (sort not in run["metrics"], sign * run["metrics"].get(sort, 0.0), run["name"]))
    every = dict.fromkeys(key for run in found for key in run["settings"] if not key.startswith(WITHOUT_EFFECT))
    differ = [key for key in every if len({json.dumps(run["settings"].get(key)) for run in found}) > 1]
    data, notes = [key for key in differ if key.startswith("data.") and key not in SHARED_DATA], []
    if data:
        notes.append(f"{', '.join(data)} differ: only KL, beta and active dimensions compare")
    if early := [f"{run['name']} ({run['state']})" for run in found if run["verdict"] == "-"]:
        notes.append(f"not evaluated, with the metrics of their last epoch: {', '.join(early)}")
    place(found, data)
    folder = usable_folder(output or Path(found[0]["path"]).parent / "comparison", "--output")
    columns = table(found, differ, sort)

    from arcvae_cli.render import compare as pictures

    drawn = pictures.draw(found)
    files = [*pictures.save(folder, drawn), *written.values()]
    if csv_file is not None:
        write_csv(csv_file, found, [*differ, *dict.fromkeys((*COLUMNS, sort))])
    if html is not None:
        pictures.save_page(html, drawn, found, columns, notes)
    console.json({"sort": sort, "differ": differ, "notes": notes, "runs": found, "files": list(map(str, files))})
    hidden, width = [], float("inf") if console.piped else console.out.width
    for head in [*columns][len(FACTS) + len(differ) - 1 : 1 : -1]:  # settings first, from the last
        if sum(3 + max(map(len, [*name.split("\n"), *texts])) for name, texts in columns.items()) > width:
            hidden.append(head.replace("\n", ""))
            del columns[head]
    if hidden:
        notes.append(f"too wide for the terminal, so without {', '.join(hidden)}: see --csv or --html")
    rows = zip(*columns.values(), strict=True)
    console.table("", [*columns], [[name, styled(state), *rest] for name, state, *rest in rows])
    for text in [*notes, f"wrote {', '.join(map(str, files))}"]:
        console.note(text)


def read(arguments: Sequence[str], runs: Path, console: Console) -> list[Run]:
    """The runs that names, patterns and folders mean, each once. InputError where one means nothing."""
    found: dict[Path, Run] = {}
    for text in arguments:
        places = glob(str(runs / text)) or glob(str(expanded(Path(text))))
        if not places:
            folders.find(text, runs)  # raises, with the runs there are
        for folder in map(Path, sorted(places)):
            paths = [folders.find(str(folder), runs)] if folders.is_run(folder) else folders.all_runs(folder)
            if not paths:
                console.warn(f"{folder}: neither a run nor a folder of runs, left out")
            for path in paths:
                place = path.resolve()
                try:
                    found[place] = load(path)
                except InputError as error:
                    console.warn(f"{error.what}; left out")
    if not found:
        raise InputError(f"{', '.join(arguments)}: no run that can be read", "`arcvae runs list` shows the runs")
    return list(found.values())


def load(path: Path) -> Run:
    """A run as its files show it, with `metrics` by name: of its final evaluation, else of its last epoch."""
    settings, status = resolve(str(path / "config.toml")).settings, folders.read_status(path) or folders.STATUS
    log, evaluation = path / "metrics.jsonl", path / "metrics.json"
    run = {"name": path.name, "path": str(path), "state": folders.describe(path)["state"]}
    try:
        report = json.loads(evaluation.read_bytes()) if status["judged"] and is_file(evaluation) else None
        lines = [line for line in read_lines(log) if line["kind"] == "epoch"] if is_file(log) else []
        run["epochs"] = f"{lines[-1]['epoch'] if lines else 0}/{settings.train.epochs}"
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
    values["active"], kl_per_dim, verdict = line.get("val/active_dims"), line.get("val/kl_per_dim", []), "-"
    if report:
        values |= {name: elbo[f"{name}_nats"] for name in ("kl", "reconstruction")}
        values["active"] = sum(level["active_dims"] for level in levels)
        kl_per_dim = [kl for level in levels for kl in level["kl_nats"]]
        missed = sum(not finding["ok"] for finding in report["verdict"]["findings"])
        verdict = f"{missed} missed" if missed else "ok"
    terms: list[Any] = [values.get("kl"), values.get("reconstruction")]
    values["elbo"] = None if None in terms else -sum(terms)
    every = {**dict(leaves(settings.table())), **dict(leaves(dict(report or {}))), **line, **values}
    metrics = {name: value for name, value in every.items() if type(value) in (int, float)}
    return {"metrics": metrics, "kl_per_dim": kl_per_dim, "curves": curves, "verdict": verdict}


def place(runs: Sequence[Run], data: Sequence[str]) -> None:
    """Add to runs in their order what pictures need: number, colour, label, point (KL, reconstruction), front.

    `data`: settings of which only runs with the same values share a front.
    """
    for index, run in enumerate(runs):
        rgb, name = hls_to_rgb(0.6 + 0.9 * index / len(runs), 0.48, 0.7), run["name"]
        short = name if len(name) <= 28 else f"{name[:13]}..{name[-13:]}"
        run["colour"] = "#" + bytes(int(255 * part) for part in rgb).hex()
        run["number"], run["label"] = index + 1, f"{index + 1} {short}"
        run["data"] = tuple(run["settings"].get(key) for key in data)
        run["point"] = run["metrics"].get("kl"), run["metrics"].get("reconstruction")
    for run in runs:
        kl, nats = own = run["point"]
        points = [one["point"] for one in runs if one["data"] == run["data"] and None not in one["point"]]
        run["front"] = own in points and not any(one != own and one[0] <= kl and one[1] <= nats for one in points)


def table(runs: Sequence[Run], differ: Sequence[str], sort: str) -> dict[str, list[str]]:
    """The texts of the columns by heading; the metric of the order has one too."""
    columns = {"run" if fact == "name" else fact: [one_line(run[fact]) for run in runs] for fact in FACTS}
    for key in differ:
        values = [run["settings"].get(key) for run in runs]
        columns[key.replace(".", ".\n")] = ["-" if value is None else one_line(str(value)) for value in values]
    shown = COLUMNS if sort in (*COLUMNS, *differ) else {**COLUMNS, sort: (sort, ".4g")}
    for name, (heading, form) in shown.items():
        columns[heading] = [cell(run["metrics"].get(name), form) for run in runs]
    return columns


def write_csv(path: Path, runs: Sequence[Run], names: Sequence[str]) -> None:
    """The table with its numbers in full."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*FACTS, "front", *names])
        for run in runs:
            values = {**run["settings"], **run["metrics"]}
            writer.writerow([*(run[fact] for fact in FACTS), run["front"], *(values.get(name) for name in names)])
