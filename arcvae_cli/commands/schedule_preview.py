"""`arcvae schedule-preview`: the beta a run will use, before the run. Imports neither torch nor NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
from arcvae_cli.files import is_dir, is_file, read_lines, usable_folder
from arcvae_cli.presets import Layer, environment_layer, preset_names, resolve, set_layer
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule
from arcvae_cli.settings import GRID_POSITIONS, elbo_scale

if TYPE_CHECKING:
    from arcvae_cli.console import Console

EPOCHS, STEPS = 100, 100  # of a schedule by its name, and steps of an epoch; a preset has its own epochs
MOST_ROWS, MOST_POINTS = 16, 4000  # of the table, and of a curve
HEIGHT = 11  # lines of a chart
UNITS = {"kl": "KL, nats per example", "reconstruction": "reconstruction, nats per position"}
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


class Curve(NamedTuple):
    """A line of the chart and of the picture."""

    label: str
    unit: str
    epochs: Sequence[float]
    values: Sequence[float]
    dashed: bool = False


class Recorded(NamedTuple):
    """Of a level of a run, by whole epochs: mean beta, and the value that a closed loop controls."""

    betas: dict[float, float]
    values: dict[float, float]


@dataclass(frozen=True)
class Shown:
    """One schedule of the preview; `scale`: from beta to the ELBO-scale beta, `recorded`: what a run did, by level."""

    name: str
    source: str
    schedule: Schedule
    epochs: int
    scale: float | None
    recorded: Mapping[str, Recorded]

    @property
    def by_step(self) -> bool:
        return self.schedule.per == "step" and not isinstance(self.schedule, Feedback)

    def points(self, steps: int) -> list[float]:
        if not self.by_step:
            return [float(epoch) for epoch in range(1, self.epochs + 1)]
        return [epoch + (step + 1) / steps for epoch in range(self.epochs) for step in range(steps)]

    def marks(self) -> list[tuple[float, str]]:
        found: dict[float, list[str]] = {0.0: ["start"]} if self.by_step else {1.0: ["first epoch"]}
        if self.recorded:
            stride = max(1, self.epochs // 10)
            found |= {float(epoch): [] for epoch in range(stride, self.epochs, stride) if epoch > 1}
        for epoch, text in [*self.schedule.marks(self.epochs), (float(self.epochs), "last epoch")]:
            found.setdefault(epoch, []).append(text)
        return [(epoch, ", ".join(texts)) for epoch, texts in sorted(found.items())]

    def series(self) -> dict[str, Callable[[float], float]]:
        """Beta or, of a closed loop, its target as a function of the epoch, by its name in `--json`."""
        found: dict[str, Callable[[float], float]] = {}
        for level, part in self.schedule.parts.items():
            if isinstance(part, Feedback):
                found[f"{level}_target".lstrip("_")] = part.setpoint
            else:
                found[level or "beta"] = part
        return found

    def columns(self) -> dict[str, Callable[[float], float | None]]:
        found: dict[str, Callable[[float], float | None]] = dict(self.series())
        for level, run in self.recorded.items():
            if run.values:
                found[f"{level} recorded".lstrip()] = run.values.get
            found[f"{level} recorded beta".lstrip()] = run.betas.get
        for level, part in self.schedule.parts.items():
            if self.scale not in (None, 1.0) and not isinstance(part, Feedback):
                found[f"{level} ELBO-scale beta".lstrip()] = self.elbo_scaled(part)
        return found

    def elbo_scaled(self, part: Schedule) -> Callable[[float], float]:
        return lambda epoch: part(epoch) * (self.scale or 1.0)

    def curves(self) -> Iterator[Curve]:
        count = min(max(8 * self.epochs, 400), MOST_POINTS)
        dense = [self.epochs * i / count for i in range(count + 1)]
        whole = [float(epoch) for epoch in range(1, self.epochs + 1, 1 + self.epochs // MOST_POINTS)]
        for level, part in self.schedule.parts.items():
            label, run = f"{self.name} {level}".rstrip(), self.recorded.get(level)
            if isinstance(part, Feedback):
                unit = UNITS[part.quantity]
                yield Curve(f"{label} target", unit, dense, [part.setpoint(epoch) for epoch in dense], dashed=True)
                if run:
                    yield Curve(f"{label} recorded", unit, list(run.values), list(run.values.values()))
            else:
                epochs = whole if part.per == "epoch" else dense
                yield Curve(label, "beta", epochs, [part(epoch) for epoch in epochs])
            if run:
                yield Curve(f"{label} recorded", "beta", list(run.betas), list(run.betas.values()))


@with_flags(ROWS)
def schedule_preview(
    *,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="presets, TOML files or names of schedules; several overlay",
            autocompletion=complete(lambda: [*preset_names(), *SCHEDULES]),
        ),
    ],
    flags: Layer,
    assignments: SetOption = None,
    run: Annotated[str | None, view(help="overlay what a run recorded: its folder or name")] = None,
    runs: Annotated[Path, view("--runs-dir", help="folder of the runs")] = Path("runs"),
    steps: Annotated[
        int | None,
        view(min=1, max=1_000_000, help="steps of an epoch, where beta moves per step", show_default=str(STEPS)),
    ] = None,
    plot: Annotated[Path | None, output(help="write a picture (PNG)")] = None,
    csv_file: Annotated[Path | None, output("--csv", help="write beta at every epoch or step")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show a beta schedule before the run: a chart, the key epochs, and what a run of this length misses.

    A preset comes before a file, and a file before a schedule of the same name. Where a preset's loss is not on the
    scale of the ELBO, the beta of the same weight on that scale is shown too. The beta of kl_capacity, controlvae and
    geco depends on the run: their target is shown, and with --run what they did in a run.
    """
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    if plot is not None:
        check_picture(plot)
    layers = [set_layer(assignments or []), flags]
    shown = [find(name, layers, run, runs) for name in dict.fromkeys(names)]
    if "ramp_fraction" in flags.values.get("schedule", {}):
        for s in shown:
            if getattr(s.schedule, "wave", "") != "ramp_hold":
                raise InputError(f"--ramp-fraction: {s.name} does not use it", "it belongs to --wave ramp_hold")
    if steps is not None and not any(s.by_step for s in shown):
        fix = "remove it" if any(s.schedule.closed_loop for s in shown) else "add --per step"
        raise InputError("--steps: this schedule is shown by whole epochs", fix)

    for s in shown:
        if (text := s.schedule.shortfall(s.epochs)) is not None:
            console.warn((f"{s.name}: " if len(shown) > 1 else "") + text)
    if csv_file is not None:
        write_csv(csv_file, shown, steps or STEPS)
    if plot is not None:
        from arcvae_cli.render.plots import save_schedules

        scales = {s.scale for s in shown}
        curves = [curve for s in shown for curve in s.curves()]
        save_schedules(plot, curves, elbo_scale=scales.pop() if len(scales) == 1 else None)
    if as_json:
        console.json({"schedules": [document(s, run, steps or STEPS) for s in shown]})
    else:
        show(shown, console)
    for file in (csv_file, plot):
        if file is not None:
            console.note(f"wrote {file}")


def find(name: str, layers: Sequence[Layer], run: str | None, runs: Path) -> Shown:
    """The schedule of a name, with flags and `--set` on top, and what the run recorded."""
    path, scale = Path(name), None
    if name in preset_names() or is_file(path) or is_file(path / "config.toml"):
        source = "preset" if name in preset_names() else "file"
        settings = resolve(name, environment_layer(), *layers).settings  # the environment counts as for `train`
        scale = elbo_scale(settings)
    elif name in SCHEDULES:
        source, scale = "schedule", 1.0
        wanted = Layer(name, {"schedule": {"name": name}, "train": {"epochs": EPOCHS}})
        settings = resolve(None, wanted, *layers).settings
    else:
        known = list(dict.fromkeys([*preset_names(), *SCHEDULES]))
        fix = f"{nearest(name, known)}presets and schedules: {', '.join(known)}"
        raise InputError(f"{name}: no such preset, file or schedule", fix)
    recorded = {} if run is None else read_run(run, runs, settings.schedule)
    return Shown(name, source, settings.schedule, settings.train.epochs, scale, recorded)


def read_run(run: str, runs: Path, schedule: Schedule) -> dict[str, Recorded]:
    """What a run, by its folder or its name in `runs`, recorded of each level of a schedule."""
    folder = next((path for path in (Path(run), runs / run) if is_file(path / "metrics.jsonl")), None)
    if folder is None:
        raise InputError(f"--run {run}: no metrics.jsonl in it, nor in {runs / run}", "give a run's folder or name")
    sums = resolve(str(folder / "config.toml")).settings.objective.reduction == "sum"
    lines = read_lines(folder / "metrics.jsonl")
    found = {}
    for level, part in schedule.parts.items():
        beta, kl = (f"train/{key}/{level}".rstrip("/") for key in ("beta", "kl"))
        known = [line for line in lines if line.get(beta) is not None and line.get(kl) is not None]
        epochs, steps = ([line for line in known if line["kind"] == kind] for kind in ("epoch", "step"))
        if not epochs:
            raise InputError(f"--run {run}: no epoch with {beta}", "give a run of a model with these levels")
        recorded = found[level] = Recorded({}, {})
        for line in epochs:
            end = line["epoch"]
            within = [step[beta] for step in steps if end - 1 < step["epoch"] <= end] or [line[beta]]
            recorded.betas[end] = sum(within) / len(within)
            if isinstance(part, Feedback):
                per_position = line["train/loss_reconstruction"] / (GRID_POSITIONS if sums else 1)
                recorded.values[end] = line[kl] if part.quantity == "kl" else per_position
    return found


def show(shown: Sequence[Shown], console: Console) -> None:
    """Print the facts, a chart for each unit, and a table for each schedule."""
    for s in shown:
        console.lines([f"{s.name} ({'preset, ' * (s.source == 'preset')}schedule {s.schedule.name})"])
        for level, part in s.schedule.parts.items():
            console.lines(f"  {line}" for line in facts(part, level, s))
    curves = [curve for s in shown for curve in s.curves()]
    for unit in dict.fromkeys(curve.unit for curve in curves):
        own = [curve for curve in curves if curve.unit == unit]
        console.lines(["", *chart(own, max(s.epochs for s in shown), console)])
    for s in shown:
        if len(shown) > 1:
            console.lines([*[""] * (s is shown[0]), f"{s.name}, {s.epochs} epochs"])
        show_table(s, console)


def facts(part: Schedule, level: str, s: Shown) -> Iterator[str]:
    """A schedule in words and numbers."""
    yield f"{level}: {part.describe()}".lstrip(": ")
    factor = 1.0 if s.scale is None else s.scale
    if not isinstance(part, Feedback):
        peak = f"peak {part.peak:.4g}" + (f" ({part.peak * factor:.4g} on the ELBO scale)" if factor != 1.0 else "")
        period = f", period {part.period:g} epochs" if part.period else ""
        moves = f", beta moves once {'a step' if part.per == 'step' else 'an epoch'}"
        unscaled = ", no ELBO scale (focal loss or class weights)" if s.scale is None else ""
        yield f"{peak}, first at epoch {part.first_peak:g}{period}{moves}{unscaled}"
        return
    low, high = part.bounds
    elbo = f" ({low * factor:.4g} to {high * factor:.4g} on the ELBO scale)" if factor != 1.0 else ""
    yield ", ".join(f"{key} {value:g}" for key, value in part if key not in ("name", "per"))
    yield f"beta depends on the run and moves once a step, between {low:.4g} and {high:.4g}{elbo}"
    if not s.recorded:
        yield "--run RUN shows what it did in a run"


def show_table(s: Shown, console: Console) -> None:
    """Print the key epochs."""
    from arcvae_cli.console import cell

    columns = s.columns()
    rows = [[f"{epoch:g}", *(cell(at(epoch), ".4g") for at in columns.values()), what] for epoch, what in s.marks()]
    if (left_out := len(rows) - MOST_ROWS) > 0:
        rows[MOST_ROWS - 4 : -4] = [["..."] + [""] * len(columns) + [f"{left_out} more, all of them in --json"]]
    console.table("", ["epoch", *columns, ""], rows, left=(len(columns) + 1,))


def chart(curves: Sequence[Curve], last: float, console: Console) -> list[str]:
    """Curves of one unit over the epochs: braille on a terminal in colour or of one curve, else ASCII characters."""
    from plotille import Canvas, color  # its Figure would import NumPy

    out = console.out
    colour = out.is_terminal and out.color_system is not None and not out.no_color
    plain = not out.is_terminal or out.is_dumb_terminal or out.options.ascii_only
    braille = not plain and (colour or len(curves) == 1)
    low, top = min(0.0, *(min(curve.values) for curve in curves)), max(max(curve.values) for curve in curves)
    labels = {0: f"{top:.3g}", HEIGHT // 2: f"{(low + top) / 2:.3g}", HEIGHT - 1: f"{low:.3g}"}
    margin = max(map(len, labels.values()))
    fifth = max((min(out.width, 100) - margin - 14) // 5, 6)  # columns between numbers of epochs
    dots = 10 * fifth, 4 * HEIGHT  # the limits are those of one dot more
    height = ((top - low) or 1.0) * dots[1] / (dots[1] - 1)
    canvas = Canvas(5 * fifth, HEIGHT, 0, low, last * dots[0] / (dots[0] - 1), low + height)
    legend = []
    for index, curve in enumerate(curves):
        marker, ink = MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)]
        points = list(zip(curve.epochs, curve.values, strict=True))
        for start, end in pairwise([points[0], *points]):
            if braille:
                canvas.line(*start, *end, color=ink if colour else None)
            else:
                for i in range(parts := max(1, 400 // len(points))):
                    at = (i + 1) / parts
                    place = (a + (b - a) * at for a, b in zip(start, end, strict=True))
                    canvas.point(*place, color=ink if colour else None, marker=marker)
        legend.append(color(f"{'--' if braille else marker} {curve.label}", fg=ink, no_color=not colour))
    rows = canvas.plot("\n").replace("\N{BRAILLE PATTERN BLANK}", " ").split("\n")
    lines = [f"{labels.get(row, ''):>{margin}} |{text}".rstrip() for row, text in enumerate(rows)]
    numbers = "".join(f"{last * i / 5:<{fifth}.4g}" for i in range(5))
    lines += [f"{'':{margin}} +{'-' * 5 * fifth}", f"{'':{margin}}  {numbers}{last:g} epochs"]
    return [curves[0].unit, *lines, *(["   ".join(legend)] if len(curves) > 1 else [])]


def document(s: Shown, run: str | None, steps: int) -> dict[str, Any]:
    """One schedule for `--json`; times in epochs."""
    at, series = s.points(steps), s.series()
    recorded = {
        level or "beta": {"epoch": [*found.betas], "beta": [*found.betas.values()], "value": [*found.values.values()]}
        for level, found in s.recorded.items()
    }
    return {
        "name": s.name,
        "source": s.source,
        "schedule": s.schedule.model_dump(mode="json", by_alias=True),
        "epochs": s.epochs,
        "elbo_scale": s.scale if s.source != "schedule" else None,
        "closed_loop": s.schedule.closed_loop,
        "shortfall": s.schedule.shortfall(s.epochs),
        "levels": {
            level or "beta": {
                "description": part.describe(),
                **{key: getattr(part, key) for key in ("start", "peak", "first_peak", "period")},
                "reached": part.reached(s.epochs),
                **({"quantity": part.quantity, "bounds": part.bounds} if isinstance(part, Feedback) else {}),
            }
            for level, part in s.schedule.parts.items()
        },
        "key_epochs": [
            {"epoch": epoch, "what": text, **{name: value(epoch) for name, value in series.items()}}
            for epoch, text in s.marks()
        ],
        "curve": {"epoch": at, **{name: [value(epoch) for epoch in at] for name, value in series.items()}},
        **({"run": {"name": run, "levels": recorded}} if recorded else {}),
    }


def check_picture(path: Path) -> None:
    """InputError for a picture that could not be written, before anything is done."""
    if path.suffix.lower() != ".png":
        raise InputError(f"--plot {path}: not a .png file", f"call it {path.with_suffix('.png').name}")
    if is_dir(path) or not is_dir(path.parent):
        problem = "is a folder" if is_dir(path) else f"no folder {path.parent}"
        raise InputError(f"--plot {path}: {problem}", "give a file in an existing folder")
    usable_folder(path.parent, "--plot")


def write_csv(path: Path, shown: Sequence[Shown], steps: int) -> None:
    """A row for every schedule, level and epoch or step; empty where there is no value."""
    import csv

    columns = ["schedule", "level", "epoch", "beta", "elbo_scale_beta"]
    if any(s.schedule.closed_loop for s in shown):
        columns += ["quantity", "target", "value"]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for s in shown:
                scale = None if s.source == "schedule" else s.scale
                for level, part in s.schedule.parts.items():
                    run = s.recorded.get(level, Recorded({}, {}))
                    for epoch in s.points(steps):
                        rest: list[object] = [None] * (len(columns) - 5)
                        beta = run.betas.get(epoch) if isinstance(part, Feedback) else part(epoch)
                        if isinstance(part, Feedback):
                            rest = [part.quantity, part.setpoint(epoch), run.values.get(epoch)]
                        elbo = None if scale is None or beta is None else beta * scale
                        writer.writerow([s.name, level, f"{epoch:.10g}", beta, elbo, *rest])
    except OSError as error:
        raise InputError(f"--csv {path}: could not be written ({error.strerror})", "choose another place") from error
