"""`arcvae schedule-preview`: the beta a run will use, before the run. Imports neither torch nor NumPy."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from arcvae_cli import plugins
from arcvae_cli.commands.options import TABLE, JsonOption, QuietOption, SetOption, complete, own_names, with_flags
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError, nearest
from arcvae_cli.files import atomic_write, is_file, read_lines
from arcvae_cli.presets import Layer, environment_layer, preset_names, resolve, set_layer
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule
from arcvae_cli.settings import GRID_POSITIONS, elbo_scale

EPOCHS, STEPS = 100, 100  # of a schedule by its name, and steps of an epoch; a preset has its own epochs
MOST_ROWS, HEIGHT = 16, 11  # lines of the table and of a chart
UNITS = {"beta": "beta", "kl": "KL, nats per example", "reconstruction": "reconstruction, nats per position"}
COLUMNS = ["schedule", "level", "epoch", "beta", "elbo_scale_beta"]  # of --csv
MARKERS, COLOURS = "*o+x#@%&", ("cyan", "yellow", "magenta", "green", "red", "blue", "white")

VIEW, OUTPUT = "The view", "Output"  # panels of the help
KEYS = ("max_beta", "min_beta", "warmup_epochs", "ramp_epochs", "cycle_length", "wave", "ramp_fraction", "per")
OWN = own_names("schedule", "The schedule", *KEYS, "restart_interval", "restart_multiplier")
SPELLINGS = {row.key: row.flags for row in TABLE}  # those of `train` work too
ROWS = [replace(row, flags=row.flags + SPELLINGS.get(row.key, ())) for row in OWN]
ROWS += [replace(row, default=f"the preset's, else {EPOCHS}") for row in own_names("train", VIEW, "epochs")]
view, output = (partial(typer.Option, rich_help_panel=panel) for panel in (VIEW, OUTPUT))

Document = dict[str, Any]  # one schedule for `--json`, times in epochs: all that is shown comes from it
Curve = tuple[str, str, Sequence[float], Sequence[float], bool]  # label, unit, epochs, values, dashed


def _names() -> list[str]:
    return list(dict.fromkeys([*preset_names(), *SCHEDULES]))


@with_flags(ROWS)
def schedule_preview(
    *,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME", help="presets, TOML files or schedules; several overlay", autocompletion=complete(_names)
        ),
    ],
    flags: Layer,
    assignments: SetOption = None,
    run: Annotated[str | None, view(help="overlay the record of a run: its folder or name")] = None,
    runs: Annotated[Path, view("--runs-dir", help="folder of the runs")] = Path("runs"),
    steps: Annotated[int, view(min=1, max=1_000_000, help="steps of an epoch, where beta moves per step")] = STEPS,
    plot: Annotated[Path | None, output(help="write a picture (PNG)")] = None,
    csv_file: Annotated[Path | None, output("--csv", help="write beta at every epoch or step")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show a beta schedule before the run: a chart, the key epochs, and a warning if the run is too short for it.

    A preset comes before a file, and a file before a schedule of the same name. If a preset's loss is not on the scale
    of the ELBO, the ELBO-scale beta is shown too. The beta of kl_capacity, controlvae and geco depends on the run:
    their target is shown, and with --run the values that a run recorded.
    """
    console = Console(quiet=quiet, as_json=as_json)
    layers = [set_layer(assignments or []), flags]
    made = [document(name, layers, run, runs, steps) for name in dict.fromkeys(names)]
    documents, curves = [one for one, _, _ in made], [curve for _, some, _ in made for curve in some]
    for one in [one for one in documents if one["shortfall"]]:
        console.warn(f"{one['name']}: {one['shortfall']}")
    if csv_file is not None:
        table = [COLUMNS, *(row for _, _, rows in made for row in rows)]
        with atomic_write(csv_file) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)
    if plot is not None:
        from arcvae_cli.render.plots import save_curves

        (scale, *others), title = {one["elbo_scale"] for one in documents}, ", ".join(one["name"] for one in documents)
        save_curves(plot, curves, title, None if others else scale)
    console.json({"schedules": documents})
    show(documents, curves, console)
    for path in filter(None, (csv_file, plot)):
        console.note(f"wrote {path}")


def document(
    name: str, layers: Sequence[Layer], run: str | None, runs: Path, steps: int
) -> tuple[Document, list[Curve], list[list[Any]]]:
    """The schedule of a name, with flags, `--set` and the record of a run: for `--json`, a chart and `--csv`."""
    source, scale = "preset" if name in preset_names() else "file", None
    if source == "preset" or is_file(Path(name)) or is_file(Path(name) / "config.toml"):
        settings = resolve(name, environment_layer(), *layers).settings  # the environment counts as for `train`
        scale = elbo_scale(settings)
    elif name in SCHEDULES or plugins.points("schedules", name=name):
        plugins.allow(name)
        wanted = Layer(name, {"schedule": {"name": name}, "train": {"epochs": EPOCHS}})
        source, settings = "schedule", resolve(None, wanted, *layers).settings
    else:
        fix = f"{nearest(name, _names())}presets and schedules: {', '.join(_names())}"
        raise InputError(f"{name}: no such preset, file or schedule", fix)
    schedule, epochs = settings.schedule, settings.train.epochs
    by_step = schedule.per == "step" and not isinstance(schedule, Feedback)
    within = steps if by_step else 1
    points = [epoch + (step + 1) / within for epoch in range(epochs) for step in range(within)]
    events: dict[float, list[str]] = {0.0: ["start"]} if by_step else {1.0: ["first epoch"]}
    for epoch, text in [*schedule.events(epochs), (float(epochs), "last epoch")]:
        if 0 < epoch <= epochs:
            events.setdefault(epoch, []).append(text)
    key_epochs: list[dict[str, Any]] = [{"epoch": at, "what": ", ".join(what)} for at, what in sorted(events.items())]
    records = {} if run is None else read_run(run, runs, schedule)
    levels, values, rows = {}, {"epoch": points}, []
    curves: list[Curve] = []
    for level, part in schedule.parts.items():
        facts = {"description": part.describe(), "start": part(0.0), "peak": part.peak, "first_peak": part.first_peak}
        facts |= {"period": part.period, "reached": part.max_beta_seen(epochs)}
        curve: Callable[[float], float] = part
        key, label, quantity = level or "beta", f"{name} {level}".rstrip(), part.quantity
        record, unit = records.get(key), UNITS[quantity or "beta"]
        levels[key] = facts
        if isinstance(part, Feedback):
            facts |= {"quantity": quantity, "bounds": part.bounds}
            curve, key = part.setpoint, f"{level}_target".lstrip("_")
        values[key] = [curve(epoch) for epoch in points]
        key_epochs = [{**known, key: curve(known["epoch"])} for known in key_epochs]
        curves.append((f"{label} target" if quantity else label, unit, points, values[key], quantity is not None))
        if record and quantity:
            curves.append((f"{label} recorded", unit, record["epoch"], record["value"], False))
        if record:
            curves.append((f"{label} recorded", "beta", record["epoch"], record["beta"], False))
        for epoch, value in zip(points, values[key], strict=True):
            betas = (None, None) if quantity else (value, None if scale is None else value * scale)
            rows.append([name, level, f"{epoch:.10g}", *betas])
    found: Document = {"name": name, "source": source, "schedule": schedule.model_dump(mode="json", by_alias=True)}
    found |= {"epochs": epochs, "elbo_scale": scale, "closed_loop": schedule.closed_loop}
    found |= {"shortfall": schedule.warning(epochs), "levels": levels, "key_epochs": key_epochs, "curve": values}
    return found | ({"run": {"name": run, "levels": records}} if run else {}), curves, rows


def read_run(run: str, runs: Path, schedule: Schedule) -> dict[str, Any]:
    """What a run, by its folder or its name in `runs`, recorded of each level of a schedule."""
    folder = next((path for path in (Path(run), runs / run) if is_file(path / "metrics.jsonl")), None)
    if folder is None:
        raise InputError(f"--run {run}: no metrics.jsonl in it, nor in {runs / run}", "give a run's folder or name")
    settings, report = resolve(str(folder / "config.toml")).settings, folder / "metrics.json"
    positions = math.prod(settings.data.sides or (GRID_POSITIONS,))  # a finished run has what its canvas has
    positions = json.loads(report.read_text("utf-8"))["elbo"]["positions"] if is_file(report) else positions
    positions = positions if settings.objective.reduction == "sum" else 1
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "epoch"]
    found = {}
    for level, part in schedule.parts.items():
        beta, kl = (f"train/{key}/{level}".rstrip("/") for key in ("beta", "kl"))
        if not lines or beta not in lines[0]:
            raise InputError(f"--run {run}: no epoch with {beta}", "give a run of a model with these levels")
        key, by = (kl, 1) if part.quantity == "kl" else ("train/loss_reconstruction", positions)
        found[level or "beta"] = {
            "epoch": [line["epoch"] for line in lines],
            "beta": [line[beta] for line in lines],
            "value": [line[key] / by for line in lines if part.quantity],
        }
    return found


def show(documents: Sequence[Document], curves: Sequence[Curve], console: Console) -> None:
    """Print the parameters, a chart for each unit, and a table of the key epochs of each schedule."""
    for one in documents:
        console.lines([f"{one['name']} ({'preset, ' * (one['source'] == 'preset')}schedule {one['schedule']['name']})"])
        scale, per = one["elbo_scale"], one["schedule"]["per"]
        for level, facts in one["levels"].items():
            bounds = facts.get("bounds", [facts["peak"]])
            beta, scaled = (" to ".join(f"{bound * by:.4g}" for bound in bounds) for by in (1.0, scale or 1.0))
            beta += f" ({scaled} on the ELBO scale)" * (beta != scaled)
            period = f", period {facts['period']:g} epochs" if facts["period"] else ""
            summary = f"peak {beta}, first at epoch {facts['first_peak']:g}{period}, set every {per}"
            if "bounds" in facts:
                summary = f"beta depends on the run (--run shows one), set every step, from {beta}"
            label = "" if level == "beta" else f"{level}: "
            console.lines([f"  {label}{facts['description']}", f"  {summary}"])
    for unit in dict.fromkeys(unit for _, unit, *_ in curves):
        own = [curve for curve in curves if curve[1] == unit]
        console.lines(["", *chart(own, max(one["epochs"] for one in documents), console)])
    for one in documents:
        console.lines([f"{one['name']}, {one['epochs']} epochs"] * (len(documents) > 1))
        series, scale = [key for key in one["curve"] if key != "epoch"], one["elbo_scale"]
        scaled_levels = [level for level in series if level in one["levels"] and scale not in (None, 1.0)]
        rows = []
        for known in one["key_epochs"]:
            values = [known[key] for key in series] + [known[level] * scale for level in scaled_levels]
            rows.append([f"{known['epoch']:g}", *(f"{value:.4g}" for value in values), known["what"]])
        if (left_out := len(rows) - MOST_ROWS) > 0:
            rows[MOST_ROWS - 4 : -4] = [["...", *[""] * (len(rows[0]) - 2), f"{left_out} more, all of them in --json"]]
        heads = [key.replace("_", " ") for key in series]
        heads += [f"{level} ELBO-scale beta".removeprefix("beta ") for level in scaled_levels]
        console.table("", ["epoch", *heads, ""], rows, left=(len(heads) + 1,))


def chart(curves: Sequence[Curve], last: float, console: Console) -> list[str]:
    """Curves of one unit over the epochs: coloured braille on a terminal, else characters."""
    from plotille import Canvas, color  # its Figure would import NumPy

    out = console.out
    colour = out.is_terminal and out.color_system is not None and not out.no_color
    low, top = min(0.0, *(min(values) for *_, values, _ in curves)), max(max(values) for *_, values, _ in curves)
    labels = {0: f"{top:.3g}", HEIGHT // 2: f"{(low + top) / 2:.3g}", HEIGHT - 1: f"{low:.3g}"}
    margin = max(map(len, labels.values()))
    fifth = max((min(out.width, 100) - margin - 14) // 5, 6)  # columns between numbers of epochs
    dots = 10 * fifth, 4 * HEIGHT  # the limits are those of one dot more
    height = ((top - low) or 1.0) * dots[1] / (dots[1] - 1)
    canvas = Canvas(5 * fifth, HEIGHT, 0, low, last * dots[0] / (dots[0] - 1), low + height)
    legend = []
    for (label, _, epochs, values, _), marker, name in zip(curves, cycle(MARKERS), cycle(COLOURS), strict=False):
        ink, points = name if colour else None, list(zip(epochs, values, strict=True))
        parts = max(1, 400 // len(points))
        for start, end in pairwise([points[0], *points]):
            for i in range(parts):
                place = (a + (b - a) * (i + 1) / parts for a, b in zip(start, end, strict=True))
                canvas.point(*place, color=ink, marker=None if colour else marker)  # None: a dot of braille
        legend.append(color(f"{'--' if colour else marker} {label}", fg=ink, no_color=not colour))
    rows = canvas.plot("\n").replace("\N{BRAILLE PATTERN BLANK}", " ").split("\n")
    lines = [f"{labels.get(row, ''):>{margin}} |{text}".rstrip() for row, text in enumerate(rows)]
    numbers = "".join(f"{last * i / 5:<{fifth}.4g}" for i in range(5))
    lines += [f"{'':{margin}} +{'-' * 5 * fifth}", f"{'':{margin}}  {numbers}{last:g} epochs"]
    return [curves[0][1], *lines, *(["   ".join(legend)] if len(curves) > 1 else [])]
