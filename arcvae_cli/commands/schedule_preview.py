"""`arcvae schedule-preview`: the beta a run will use, before the run. Imports neither torch nor NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcvae_cli.commands.options import (
    OUTPUT,
    TABLE,
    JsonOption,
    QuietOption,
    Row,
    SetOption,
    complete,
    own_names,
    with_flags,
)
from arcvae_cli.errors import InputError, nearest
from arcvae_cli.files import is_file, read_lines
from arcvae_cli.presets import Layer, environment_layer, preset_names, resolve, set_layer
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule
from arcvae_cli.settings import GRID_POSITIONS, elbo_scale

if TYPE_CHECKING:
    from arcvae_cli.console import Console

EPOCHS, STEPS = 100, 100  # of a schedule by its name, and steps of an epoch; a preset has its own epochs
MOST_ROWS = 16  # of the table
HEIGHT = 11  # lines of a chart
UNITS = {"beta": "beta", "kl": "KL, nats per example", "reconstruction": "reconstruction, nats per position"}
MARKERS, COLOURS = "*o+x#@%&", ("cyan", "yellow", "magenta", "green", "red", "blue", "white")

SCHEDULE, VIEW = "The schedule", "The view"
KEYS = (
    *("max_beta", "min_beta", "warmup_epochs", "ramp_epochs", "cycle_length", "wave", "ramp_fraction"),
    *("restart_interval", "restart_multiplier", "per"),
)
SPELLINGS = {row.key: row.flags for row in TABLE}  # those of `train` work too
ROWS = [replace(row, flags=row.flags + SPELLINGS.get(row.key, ())) for row in own_names("schedule", SCHEDULE, *KEYS)]
ROWS.append(Row(("--epochs",), "train.epochs", VIEW, f"the preset's, else {EPOCHS}"))
view: Any = partial(typer.Option, rich_help_panel=VIEW)
output: Any = partial(typer.Option, rich_help_panel=OUTPUT)

Document = dict[str, Any]  # one schedule for `--json`, times in epochs: all that is shown comes from it
Curve = tuple[str, str, Sequence[float], Sequence[float], bool]  # label, unit, epochs, values, dashed


@with_flags(ROWS)
def schedule_preview(
    *,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="presets, TOML files or names of schedules; several overlay",
            autocompletion=complete(lambda: list(dict.fromkeys([*preset_names(), *SCHEDULES]))),
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
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"--plot {plot}: not a .png file", f"use {plot.with_suffix('.png').name}")
    layers = [set_layer(assignments or []), flags]
    documents = [document(name, layers, run, runs, steps) for name in dict.fromkeys(names)]
    for one in documents:
        if one["shortfall"] is not None:
            console.warn((f"{one['name']}: " if len(documents) > 1 else "") + one["shortfall"])
    if csv_file is not None:
        write_csv(csv_file, documents)
    if plot is not None:
        from arcvae_cli.render.plots import save_curves

        scales = {scale_of(one) for one in documents}
        all_curves = [curve for one in documents for curve in curves(one)]
        title = ", ".join(one["name"] for one in documents)
        save_curves(plot, all_curves, title, scales.pop() if len(scales) == 1 else None)
    console.json({"schedules": documents})
    show(documents, console)
    for file in (csv_file, plot):
        if file is not None:
            console.note(f"wrote {file}")


def document(name: str, layers: Sequence[Layer], run: str | None, runs: Path, steps: int) -> Document:
    """The schedule of a name, with flags and `--set` on top, and the record of a run."""
    path, scale = Path(name), None
    if name in preset_names() or is_file(path) or is_file(path / "config.toml"):
        source = "preset" if name in preset_names() else "file"
        settings = resolve(name, environment_layer(), *layers).settings  # the environment counts as for `train`
        scale = elbo_scale(settings)
    elif name in SCHEDULES:
        source = "schedule"
        wanted = Layer(name, {"schedule": {"name": name}, "train": {"epochs": EPOCHS}})
        settings = resolve(None, wanted, *layers).settings
    else:
        known = list(dict.fromkeys([*preset_names(), *SCHEDULES]))
        fix = f"{nearest(name, known)}presets and schedules: {', '.join(known)}"
        raise InputError(f"{name}: no such preset, file or schedule", fix)
    schedule, epochs = settings.schedule, settings.train.epochs
    by_step = schedule.per == "step" and not isinstance(schedule, Feedback)
    within = steps if by_step else 1
    points = [epoch + (step + 1) / within for epoch in range(epochs) for step in range(within)]
    levels: dict[str, Any] = {}
    series: dict[str, Callable[[float], float]] = {}  # beta or, of a closed loop, its target
    for level, part in schedule.parts.items():
        series[series_name(level or "beta", part.closed_loop)] = part.setpoint if isinstance(part, Feedback) else part
        levels[level or "beta"] = {
            "description": part.describe(),
            "start": part(0.0),
            **{key: getattr(part, key) for key in ("peak", "first_peak", "period")},
            "reached": part.max_beta_seen(epochs),
            **({"quantity": part.quantity, "bounds": part.bounds} if isinstance(part, Feedback) else {}),
        }
    return {
        "name": name,
        "source": source,
        "schedule": schedule.model_dump(mode="json", by_alias=True),
        "epochs": epochs,
        "elbo_scale": scale,
        "closed_loop": schedule.closed_loop,
        "shortfall": schedule.warning(epochs),
        "levels": levels,
        "key_epochs": [
            {"epoch": epoch, "what": text, **{key: at(epoch) for key, at in series.items()}}
            for epoch, text in key_epochs(schedule, epochs, by_step)
        ],
        "curve": {"epoch": points, **{key: [at(epoch) for epoch in points] for key, at in series.items()}},
        **({} if run is None else {"run": {"name": run, "levels": read_run(run, runs, schedule)}}),
    }


def series_name(level: str, closed: bool) -> str:
    """The name of a level's series in `--json`."""
    return f"{level}_target".removeprefix("beta_") if closed else level


def key_epochs(schedule: Schedule, epochs: int, by_step: bool) -> list[tuple[float, str]]:
    """The first and the last epoch and those at which the curve changes, with what happens there."""
    found: dict[float, list[str]] = {0.0: ["start"]} if by_step else {1.0: ["first epoch"]}
    events = [(epoch, text) for epoch, text in schedule.events(epochs) if 0 < epoch <= epochs]
    for epoch, text in [*events, (float(epochs), "last epoch")]:
        found.setdefault(epoch, []).append(text)
    return [(epoch, ", ".join(texts)) for epoch, texts in sorted(found.items())]


def read_run(run: str, runs: Path, schedule: Schedule) -> dict[str, Any]:
    """What a run, by its folder or its name in `runs`, recorded of each level of a schedule."""
    folder = next((path for path in (Path(run), runs / run) if is_file(path / "metrics.jsonl")), None)
    if folder is None:
        raise InputError(f"--run {run}: no metrics.jsonl in it, nor in {runs / run}", "give a run's folder or name")
    positions = GRID_POSITIONS if resolve(str(folder / "config.toml")).settings.objective.reduction == "sum" else 1
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "epoch"]
    found = {}
    for level, part in schedule.parts.items():
        beta, kl = (f"train/{key}/{level}".rstrip("/") for key in ("beta", "kl"))
        if not any(beta in line for line in lines):
            raise InputError(f"--run {run}: no epoch with {beta}", "give a run of a model with these levels")
        values: list[float] = []
        if isinstance(part, Feedback):
            by_kl = part.quantity == "kl"
            values = [line[kl] if by_kl else line["train/loss_reconstruction"] / positions for line in lines]
        betas = [line[beta] for line in lines]
        found[level or "beta"] = {"epoch": [line["epoch"] for line in lines], "beta": betas, "value": values}
    return found


def scale_of(one: Document) -> float | None:
    """The factor from beta to the ELBO-scale beta, None if there is no such scale."""
    scale: float | None = one["elbo_scale"]
    return 1.0 if one["source"] == "schedule" else scale


def curves(one: Document) -> Iterator[Curve]:
    """The curves of a chart: beta or a target, and what a run recorded."""
    for level, facts in one["levels"].items():
        closed = "quantity" in facts
        label, unit = f"{one['name']} {level.removeprefix('beta')}".rstrip(), UNITS[facts.get("quantity", "beta")]
        values = one["curve"][series_name(level, closed)]
        yield label + " target" * closed, unit, one["curve"]["epoch"], values, closed
        if "run" in one:
            record = one["run"]["levels"][level]
            if closed:
                yield f"{label} recorded", unit, record["epoch"], record["value"], False
            yield f"{label} recorded", "beta", record["epoch"], record["beta"], False


def show(documents: Sequence[Document], console: Console) -> None:
    """Print the parameters, a chart for each unit, and a table for each schedule."""
    for one in documents:
        console.lines([f"{one['name']} ({'preset, ' * (one['source'] == 'preset')}schedule {one['schedule']['name']})"])
        for level, facts in one["levels"].items():
            label = "" if level == "beta" else f"{level}: "
            console.lines([f"  {label}{facts['description']}", f"  {summary(facts, one)}"])
    every = [curve for one in documents for curve in curves(one)]
    for unit in dict.fromkeys(unit for _, unit, *_ in every):
        own = [curve for curve in every if curve[1] == unit]
        console.lines(["", *chart(own, max(one["epochs"] for one in documents), console)])
    for one in documents:
        console.lines([f"{one['name']}, {one['epochs']} epochs"] * (len(documents) > 1))
        show_table(one, console)


def summary(facts: Mapping[str, Any], one: Document) -> str:
    """A level in numbers."""
    scale = scale_of(one)
    bounds = facts.get("bounds", [facts["peak"]])
    values = " to ".join(f"{bound * (scale or 1.0):.4g}" for bound in bounds)
    elbo = "" if scale in (None, 1.0) else f" ({values} on the ELBO scale)"
    if "bounds" in facts:
        low, high = bounds
        return f"beta depends on the run (--run shows one), set every step, between {low:.4g} and {high:.4g}{elbo}"
    period = f", period {facts['period']:g} epochs" if facts["period"] else ""
    every = f", set every {one['schedule']['per']}"
    unscaled = ", no ELBO scale (focal loss or class weights)" if scale is None else ""
    return f"peak {facts['peak']:.4g}{elbo}, first at epoch {facts['first_peak']:g}{period}{every}{unscaled}"


def show_table(one: Document, console: Console) -> None:
    """Print the key epochs."""
    from arcvae_cli.console import cell

    scale = scale_of(one)
    open_levels = [level for level, facts in one["levels"].items() if "quantity" not in facts]
    series = [key for key in one["curve"] if key != "epoch"]
    scaled = [] if scale is None or scale == 1.0 else [f"{level} ELBO-scale beta" for level in open_levels]
    cells = []
    for known in one["key_epochs"]:
        values = [known[key] for key in series] + [known[level] * scale for level in open_levels if scaled]
        cells.append([f"{known['epoch']:g}", *(cell(value, ".4g") for value in values), known["what"]])
    if (left_out := len(cells) - MOST_ROWS) > 0:
        cells[MOST_ROWS - 4 : -4] = [["...", *[""] * (len(cells[0]) - 2), f"{left_out} more, all of them in --json"]]
    heads = [name.replace("_", " ").replace("beta ELBO", "ELBO") for name in [*series, *scaled]]
    console.table("", ["epoch", *heads, ""], cells, left=(len(heads) + 1,))


def chart(curves: Sequence[Curve], last: float, console: Console) -> list[str]:
    """Curves of one unit over the epochs: braille on a terminal in colour or of one curve, else ASCII characters."""
    from plotille import Canvas, color  # its Figure would import NumPy

    out = console.out
    colour = out.is_terminal and out.color_system is not None and not out.no_color
    plain = not out.is_terminal or out.is_dumb_terminal or out.options.ascii_only
    braille = not plain and (colour or len(curves) == 1)
    low, top = min(0.0, *(min(values) for *_, values, _ in curves)), max(max(values) for *_, values, _ in curves)
    labels = {0: f"{top:.3g}", HEIGHT // 2: f"{(low + top) / 2:.3g}", HEIGHT - 1: f"{low:.3g}"}
    margin = max(map(len, labels.values()))
    fifth = max((min(out.width, 100) - margin - 14) // 5, 6)  # columns between numbers of epochs
    dots = 10 * fifth, 4 * HEIGHT  # the limits are those of one dot more
    height = ((top - low) or 1.0) * dots[1] / (dots[1] - 1)
    canvas = Canvas(5 * fifth, HEIGHT, 0, low, last * dots[0] / (dots[0] - 1), low + height)
    legend = []
    for index, (label, _, epochs, values, _) in enumerate(curves):
        marker, ink = MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)] if colour else None
        points = list(zip(epochs, values, strict=True))
        for start, end in pairwise([points[0], *points]):
            if braille:
                canvas.line(*start, *end, color=ink)
                continue
            for i in range(parts := max(1, 400 // len(points))):
                place = (a + (b - a) * (i + 1) / parts for a, b in zip(start, end, strict=True))
                canvas.point(*place, color=ink, marker=marker)
        legend.append(color(f"{'--' if braille else marker} {label}", fg=ink, no_color=not colour))
    rows = canvas.plot("\n").replace("\N{BRAILLE PATTERN BLANK}", " ").split("\n")
    lines = [f"{labels.get(row, ''):>{margin}} |{text}".rstrip() for row, text in enumerate(rows)]
    numbers = "".join(f"{last * i / 5:<{fifth}.4g}" for i in range(5))
    lines += [f"{'':{margin}} +{'-' * 5 * fifth}", f"{'':{margin}}  {numbers}{last:g} epochs"]
    return [curves[0][1], *lines, *(["   ".join(legend)] if len(curves) > 1 else [])]


def write_csv(path: Path, documents: Sequence[Document]) -> None:
    """A row for every schedule, level and epoch or step; empty where there is no value."""
    import csv

    columns = ["schedule", "level", "epoch", "beta", "elbo_scale_beta", "quantity", "target", "value"]
    width = 8 if any(one["closed_loop"] for one in documents) else 5
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns[:width])
            for one in documents:
                for level, facts in one["levels"].items():
                    quantity, scale = facts.get("quantity"), one["elbo_scale"]
                    record = one["run"]["levels"][level] if "run" in one else {"epoch": [], "beta": [], "value": []}
                    recorded = dict(
                        zip(record["epoch"], zip(record["beta"], record["value"], strict=False), strict=False)
                    )
                    values = one["curve"][series_name(level, quantity is not None)]
                    for epoch, target in zip(one["curve"]["epoch"], values, strict=True):
                        beta, value = recorded.get(epoch, (None, None)) if quantity else (target, None)
                        elbo = None if scale is None or beta is None else beta * scale
                        row = [one["name"], level.removeprefix("beta"), f"{epoch:.10g}", beta, elbo]
                        writer.writerow([*row, quantity, target if quantity else None, value][:width])
    except OSError as error:
        raise InputError(f"--csv {path}: could not be written ({error.strerror})", "choose another place") from error
