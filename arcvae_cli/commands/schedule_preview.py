"""`arcvae schedule-preview`: what beta a run will see, before the run.

Nothing heavier than the settings is imported, Rich included: a look at a schedule should feel like `ls`.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.errors import InputError
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule, shortfall
from arcvae_cli.settings import Layer, elbo_scale, environment_layer, flag_layer, preset_names, resolve, set_layer

if TYPE_CHECKING:
    from arcvae_cli.schedules.recorded import Course, Recorded

EPOCHS = 100  # of a schedule by its name; a preset brings its own
STEPS = 100
ROWS = 16  # key epochs shown, the middle ones left out first
UNITS = {"kl": "KL, nats per example", "reconstruction": "reconstruction, nats per position"}
NAMES = {"kl": "KL", "reconstruction": "reconstruction"}
CUT = 2.5  # targets high: what is held in the first half is drawn no higher, for the first epochs overshoot by far

SCHEDULE, VIEW, OUTPUT = "The schedule", "The view", "Output"


@dataclass(frozen=True)
class Shown:
    """One schedule of the preview. `scale` leads from beta to the ELBO-scale beta, None where there is none.

    `courses`: by level that takes feedback, what it does with `run`.
    """

    name: str
    source: Literal["preset", "file", "schedule"]
    schedule: Schedule
    epochs: int
    scale: float | None
    run: Recorded | None = None
    courses: Mapping[str, Course] = field(default_factory=dict)

    @property
    def by_step(self) -> bool:
        """Whether an epoch and its share decide beta; what takes feedback is shown by whole epochs."""
        return self.schedule.per == "step" and not isinstance(self.schedule, Feedback)

    def points(self, steps: int) -> Iterator[float]:
        """The epochs at which the trainer asks for beta."""
        for epoch in range(1, self.epochs + 1):
            if self.by_step:
                yield from (epoch - 1 + (step + 1) / steps for step in range(steps))
            else:
                yield float(epoch)

    def marks(self) -> list[tuple[float, str]]:
        """Key epochs, the first and the last included."""
        first, begin = (0.0, "start") if self.by_step else (1.0, "first epoch")
        found: dict[float, list[str]] = {first: [begin]}
        if self.courses:
            stride = max(1, self.epochs // 10)
            found |= {float(epoch): [] for epoch in range(stride, self.epochs, stride) if epoch > 1}
        for epoch, text in self.schedule.marks(self.epochs):
            found.setdefault(epoch, []).append(text)
        found.setdefault(float(self.epochs), []).append("last epoch")
        return [(epoch, ", ".join(texts)) for epoch, texts in sorted(found.items())]

    def label(self, level: str) -> str:
        """A curve's name, in the legend and in the picture."""
        return f"{self.name} {level}".rstrip()

    def curves(self) -> Iterator[Curve]:
        """All that is drawn of it."""
        for level, part in self.schedule.parts.items():
            label = self.label(level)
            if not isinstance(part, Feedback):
                first = 0.0 if part.per == "step" else 1.0
                yield Curve(label, "beta", first, self.epochs, part.peak, value=partial(between, part))
                continue
            unit, course = UNITS[part.quantity], self.courses.get(level)
            target = max(part.setpoint(0.0), part.setpoint(self.epochs))
            yield Curve(f"{label} target", unit, 0.0, self.epochs, target, value=part.setpoint, dashed=True)
            if course:
                ends = course.epochs[0], course.epochs[-1]
                later = course.values[len(course.values) // 2 :]
                top = max(min(max(course.values), CUT * target or math.inf), *later)
                yield Curve(label, unit, *ends, top, value=partial(course.at, "values"))
                betas = course.betas
                yield Curve(label, "beta", *ends, max(betas), low=min(0.0, *betas), value=partial(course.at, "betas"))


@dataclass(frozen=True)
class Curve:
    """One line of a chart or a picture, over the epochs from `first` to `last`, and how high and low the axis goes."""

    label: str
    unit: str
    first: float
    last: float
    top: float
    low: float = 0.0
    dashed: bool = False
    value: Callable[[float], float] = field(kw_only=True)


def schedule_preview(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="presets, TOML files or names of schedules; several overlay")
    ],
    max_beta: Annotated[
        float | None,
        typer.Option("--max-beta", "--beta-max", help="largest beta", rich_help_panel=SCHEDULE),
    ] = None,
    min_beta: Annotated[
        float | None,
        typer.Option("--min-beta", "--beta-min", help="least beta of a cycle", rich_help_panel=SCHEDULE),
    ] = None,
    warmup_epochs: Annotated[
        float | None,
        typer.Option(
            "--warmup-epochs",
            "--beta-warmup-epochs",
            help="epochs before the ramp, or of the rise",
            rich_help_panel=SCHEDULE,
        ),
    ] = None,
    ramp_epochs: Annotated[
        float | None,
        typer.Option("--ramp-epochs", "--beta-ramp-epochs", help="epochs of the ramp", rich_help_panel=SCHEDULE),
    ] = None,
    cycle_length: Annotated[
        float | None,
        typer.Option("--cycle-length", "--beta-cycle-length", help="epochs of a cycle", rich_help_panel=SCHEDULE),
    ] = None,
    wave: Annotated[
        Literal["triangle", "cosine", "ramp_hold"] | None,
        typer.Option(help="form of a cycle", rich_help_panel=SCHEDULE),
    ] = None,
    ramp_fraction: Annotated[
        float | None, typer.Option(help="share of a ramp_hold cycle that rises", rich_help_panel=SCHEDULE)
    ] = None,
    restart_interval: Annotated[
        float | None, typer.Option(help="epochs to the first restart", rich_help_panel=SCHEDULE)
    ] = None,
    restart_multiplier: Annotated[
        float | None, typer.Option(help="each interval over the one before", rich_help_panel=SCHEDULE)
    ] = None,
    per: Annotated[
        Literal["epoch", "step"] | None, typer.Option(help="how often beta moves", rich_help_panel=SCHEDULE)
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="any other key, as schedule.base.max_beta=0.5; repeatable", rich_help_panel=SCHEDULE
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(help="a recorded run, for a schedule that takes feedback: folder or name", rich_help_panel=VIEW),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs-dir", help="where runs lie", rich_help_panel=VIEW)] = Path("runs"),
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="length of the run",
            show_default=f"the preset's, else {EPOCHS}",
            rich_help_panel=VIEW,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="steps of an epoch, where beta moves per step",
            show_default=str(STEPS),
            rich_help_panel=VIEW,
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="write a picture (PNG)", rich_help_panel=OUTPUT)] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="write beta at every epoch or step", rich_help_panel=OUTPUT)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON", rich_help_panel=OUTPUT)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="print the result only", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Show a beta schedule before the run: a chart, the key epochs, and what a run of this length misses.

    A preset wins over a file, and a file over a schedule of the same name.
    Where a preset's loss is on another scale than the ELBO, the beta of the same weight there stands beside beta.
    The beta of kl_capacity, controlvae and geco depends on the run: their target is shown, and with --run what they did
    in a run of theirs, or an estimate from how another run answered to its beta.
    """
    flags = {
        "--epochs": ("train.epochs", epochs),
        "--max-beta": ("schedule.max_beta", max_beta),
        "--min-beta": ("schedule.min_beta", min_beta),
        "--warmup-epochs": ("schedule.warmup_epochs", warmup_epochs),
        "--ramp-epochs": ("schedule.ramp_epochs", ramp_epochs),
        "--cycle-length": ("schedule.cycle_length", cycle_length),
        "--wave": ("schedule.wave", wave),
        "--ramp-fraction": ("schedule.ramp_fraction", ramp_fraction),
        "--restart-interval": ("schedule.restart_interval", restart_interval),
        "--restart-multiplier": ("schedule.restart_multiplier", restart_multiplier),
        "--per": ("schedule.per", per),
    }
    for flag, path, ending in (("--plot", plot, ".png"), ("--csv", csv_file, "")):
        check_target(flag, path, ending)
    layers = [set_layer(assignments or []), flag_layer(flags)]
    shown = [find(name, layers) for name in dict.fromkeys(names)]
    if ramp_fraction is not None and (flat := [s for s in shown if getattr(s.schedule, "wave", "") != "ramp_hold"]):
        raise InputError(
            f"--ramp-fraction: {flat[0].name} has the wave {getattr(flat[0].schedule, 'wave', None)}",
            "it belongs to --wave ramp_hold",
        )
    if steps is not None and not any(s.by_step for s in shown):
        if any(s.schedule.closed_loop for s in shown):
            raise InputError("--steps: a schedule that takes feedback is shown by whole epochs", "leave it out")
        raise InputError("--steps: beta moves once an epoch here", "add --per step")
    if run is not None:
        shown = with_run(shown, run, runs)

    for s in shown:
        for text in warnings(s):
            warning = typer.style("warning:", fg="yellow") if coloured(sys.stderr) else "warning:"
            typer.echo(f"{warning} " + (f"{s.name}: " if len(shown) > 1 else "") + text, err=True)
    if as_json:
        typer.echo(json.dumps({"schedules": [document(s, steps or STEPS) for s in shown]}, indent=2, allow_nan=False))
    else:
        for line in page(shown):
            typer.echo(line)
    if csv_file is not None:
        write_csv(csv_file, shown, steps or STEPS)
    if plot is not None:
        write_plot(plot, shown)
    for file in (csv_file, plot):
        if file is not None and not quiet:
            typer.echo(f"wrote {file}", err=True)


def find(name: str, layers: Sequence[Layer]) -> Shown:
    """What a name stands for, with flags and `--set` on top."""
    path = Path(name)
    source: Literal["preset", "file"] | None = None
    if name in preset_names():
        source = "preset"
    elif path.is_file() or (path / "config.toml").is_file():
        source = "file"
    if source:  # the environment counts here as it does for `train --preset`
        settings = resolve(name, environment_layer(), *layers).settings
        scale = elbo_scale(settings)
        return Shown(name, source, settings.schedule, settings.train.epochs, scale)
    if name in SCHEDULES:
        wanted = Layer(name, {"schedule": {"name": name}, "train": {"epochs": EPOCHS}})
        settings = resolve(None, wanted, *layers).settings
        return Shown(name, "schedule", settings.schedule, settings.train.epochs, 1.0)
    if path.suffix or len(path.parts) > 1:
        raise InputError(f"{name}: no such file", "give a preset, a TOML file or a schedule's name")
    import difflib

    known = list(dict.fromkeys([*preset_names(), *SCHEDULES]))
    near = difflib.get_close_matches(name, known, n=3)
    raise InputError(
        f"{name!r} is neither a preset, a file nor a schedule",
        f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}",
    )


def with_run(shown: Sequence[Shown], run: str, runs: Path) -> list[Shown]:
    """The schedules with what those that take feedback did, or would do, in a recorded run."""
    from arcvae_cli.schedules.recorded import read_run

    if not any(s.schedule.closed_loop for s in shown):
        raise InputError(
            f"--run: {shown[0].name} takes no feedback, its beta is the same in every run",
            "it belongs to kl_capacity, controlvae and geco",
        )
    recorded = read_run(run, runs)

    def courses(s: Shown) -> dict[str, Course]:
        closed = {level: part for level, part in s.schedule.parts.items() if isinstance(part, Feedback)}
        return {level: recorded.course(part, level, s.epochs) for level, part in closed.items()}

    def ran(s: Shown) -> Shown:
        found = courses(s)
        # what was recorded ends with the run
        ends = [int(course.epochs[-1]) if course.kind == "recorded" else s.epochs for course in found.values()]
        return replace(s, run=recorded, courses=found, epochs=min(s.epochs, *ends))

    return [ran(s) if s.schedule.closed_loop else s for s in shown]


def warnings(s: Shown) -> Iterator[str]:
    """What the run will miss."""
    if (text := shortfall(s.schedule, s.epochs)) is not None:
        yield text
    for level, course in s.courses.items():
        part, (low, high) = s.schedule.parts[level], course.seen
        assert isinstance(part, Feedback) and s.run is not None
        target = course.targets[-1]
        if course.kind == "estimate" and not low <= target <= high:
            what = f"{level} target {target:.4g} is outside what the run {s.run.name} showed".lstrip()
            yield f"{what}, {low:.4g} to {high:.4g} ({UNITS[part.quantity]}): the estimate says nothing of it"
        elif (bound := course.stuck(part)) is not None:
            stood = f"beta stands at its {bound} in the last epoch"
            yield f"{level} target {target:.4g} is out of reach, {stood}: {course.values[-1]:.4g}".lstrip()


# ---------------------------------------------------------------------------------------------------------- text


def page(shown: Sequence[Shown]) -> Iterator[str]:
    """What a person sees."""
    width = min(shutil.get_terminal_size().columns, 100)
    for s in shown:
        kind = f"schedule {s.schedule.name}" if s.source != "schedule" else "with its defaults"
        kind = {"preset": f"preset, {kind}", "file": kind, "schedule": "schedule"}[s.source]
        yield f"{s.name} ({kind})"
        for level, part in s.schedule.parts.items():
            yield "  " + f"{level}: {part.describe()}".lstrip(": ")
            for line in feedback_facts(part, level, s) if isinstance(part, Feedback) else (facts(part, s),):
                yield "  " + line
    curves = [curve for s in shown for curve in s.curves()]
    units = dict.fromkeys(curve.unit for curve in curves)
    for unit in units:
        yield ""
        if list(units) != ["beta"]:
            yield unit
        yield from chart([curve for curve in curves if curve.unit == unit], max(s.epochs for s in shown), width)
    for s in shown:
        yield ""
        if len(shown) > 1:
            yield f"{s.name}, {s.epochs} epochs"
        yield from table(s)


def facts(part: Schedule, s: Shown) -> str:
    """Peak, first peak and period in a line."""
    weight = f" ({part.peak * s.scale:.4g} on the ELBO scale)" if s.scale not in (None, 1.0) else ""
    words = [f"peak {part.peak:.4g}{weight}", f"first at epoch {part.first_peak:g}"]
    if part.period:
        words.append(f"period {part.period:g} epochs")
    words.append(f"beta moves once {'a step' if part.per == 'step' else 'an epoch'}")
    if s.scale is None:
        words.append("no ELBO scale (focal loss or class weights)")
    return ", ".join(words)


def feedback_facts(part: Feedback, level: str, s: Shown) -> Iterator[str]:
    """On what beta depends, and how it went in the recorded run."""
    low, high = part.bounds
    weight = f" ({low * s.scale:.4g} to {high * s.scale:.4g} on the ELBO scale)" if s.scale not in (None, 1.0) else ""
    values = (f"{key} {value:g}" for key, value in part if key not in ("name", "per"))
    yield ", ".join(values)
    yield f"beta depends on the run and moves once a step, between {low:.4g} and {high:.4g}{weight}"
    course, name = s.courses.get(level), NAMES[part.quantity]
    if course is None:
        yield "--run RUN previews it against a recorded run"
        return
    assert s.run is not None
    if course.kind == "recorded":
        yield f"recorded: the run {s.run.name} was trained with it; means of each epoch"
    else:
        seen = f"{course.seen[0]:.4g} to {course.seen[1]:.4g}"
        yield f"an estimate, from how the {name} answered to beta in the run {s.run.name}: {seen} there"
    held = course.held_since()
    end = f"held within 5 % from epoch {held:g} on" if held is not None else "not held within 5 %"
    yield f"at the end {name} {course.values[-1]:.4g}, target {course.targets[-1]:.4g}: {end}"


def table(s: Shown) -> Iterator[str]:
    """The key epochs, as lines of columns."""
    scale = s.scale if s.scale != 1.0 else None
    columns: list[tuple[str, Callable[[float], float]]] = []
    scaled: list[tuple[str, Callable[[float], float]]] = []
    for level, part in s.schedule.parts.items():
        course = s.courses.get(level)
        beta: Callable[[float], float] = part
        if isinstance(part, Feedback):
            columns.append((f"{level} target".lstrip(), part.setpoint))
            if course is None:
                continue
            columns.append((f"{level} {NAMES[part.quantity]}".lstrip(), partial(course.at, "values")))
            beta = partial(course.at, "betas")
        columns.append((f"{level} beta".lstrip() if s.schedule.closed_loop else level or "beta", beta))
        scaled.append((f"{level} ELBO-scale beta".lstrip(), beta))
    head = ["epoch", *(name for name, _ in columns), *(name for name, _ in scaled if scale)]
    rows = []
    for epoch, text in s.marks():
        values = [value(epoch) for _, value in columns]
        if scale is not None:
            values += [beta(epoch) * scale for _, beta in scaled]
        rows.append([f"{epoch:g}", *(f"{value:.4g}" for value in values), text])
    left_out = len(rows) - ROWS
    if left_out > 0:
        rows[ROWS - 4 : -4] = [["..."] + [""] * (len(head) - 1) + [f"{left_out} more, all of them in --json"]]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [[*head, ""], *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        yield "   ".join([*cells, row[-1]]).rstrip()


# --------------------------------------------------------------------------------------------------------- chart

# plotext would do this, but its import alone takes longer than the rest of the command
MARKERS = "*o+x#@%&"
COLOURS = ("cyan", "yellow", "magenta", "green", "red", "blue", "white")
BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # the bit of each dot, by row and column
HEIGHT = 11


def chart(curves: Sequence[Curve], last: float, width: int) -> Iterator[str]:
    """Curves of one unit over the epochs, in Braille on a terminal and in plain characters elsewhere."""
    top, low = max(curve.top for curve in curves) or 1.0, min(curve.low for curve in curves)
    colour = coloured(sys.stdout)
    fine = on_terminal(sys.stdout) and encodes(sys.stdout, "⣿┤└─") and (colour or len(curves) == 1)
    tick, corner, line = "┤└─" if fine else "|+-"

    labels = {0: f"{top:.3g}", HEIGHT // 2: f"{(low + top) / 2:.3g}", HEIGHT - 1: f"{low:.3g}"}
    margin = max(map(len, labels.values())) + 1
    width = max(width - margin - 12, 20)  # the word "epochs" stands at the end of the axis
    across, down = (2, 4) if fine else (1, 1)
    cells: dict[tuple[int, int], tuple[int, int]] = {}  # (row, column): the dots set there, and whose they are
    for index, curve in enumerate(curves):
        for column, least, most in spans(curve, last, width * across):
            rows = (dot(min(value, top), low, top, HEIGHT * down) for value in (most, least))
            first, final = rows
            for row in range(first, final + 1):
                bit = BRAILLE[row % down][column % across]
                cell = row // down, column // across
                cells[cell] = cells.get(cell, (0, 0))[0] | bit, index

    def ink(text: str, index: int) -> str:
        return typer.style(text, fg=COLOURS[index % len(COLOURS)]) if colour else text

    for row in range(HEIGHT):
        places = (cells.get((row, column), (0, -1)) for column in range(width))
        text = ""
        for index, run in groupby(places, key=lambda cell: cell[1]):
            dots = [dots for dots, _ in run]
            drawn = "".join(chr(0x2800 + d) for d in dots) if fine else MARKERS[index % len(MARKERS)] * len(dots)
            text += ink(drawn, index) if index >= 0 else " " * len(dots)
        yield f"{labels.get(row, ''):>{margin}} {tick}{text.rstrip()}"
    yield " " * (margin + 1) + corner + line * width
    yield " " * (margin + 2) + epoch_axis(last, width)
    if len(curves) > 1:
        keys = [f"{line * 2 if fine else MARKERS[i % len(MARKERS)]}" for i in range(len(curves))]
        legend = (f"{ink(key, i)} {curves[i].label}" for i, key in enumerate(keys))
        yield " " * (margin + 2) + "   ".join(legend)


def spans(curve: Curve, last: float, columns: int) -> Iterator[tuple[int, float, float]]:
    """The least and the largest value within each column of a chart from epoch 0 to `last`.

    Both, because several cycles may fall into one column. Between whole epochs a schedule that moves once an epoch is
    drawn as a straight line.
    """
    inner = 8
    for column in range(columns):
        places = (last * (column + i / inner) / columns for i in range(inner + 1))
        values = [curve.value(place) for place in places if curve.first <= place <= curve.last]
        if values:
            yield column, min(values), max(values)


def between(part: Schedule, place: float) -> float:
    """Beta at a place on the axis."""
    low = math.floor(place)
    if part.per == "step" or low == place:
        return part(place)
    return part(low) + (part(low + 1) - part(low)) * (place - low)


def dot(value: float, low: float, top: float, rows: int) -> int:
    """The row of a value, 0 being the highest."""
    return round((top - value) / (top - low) * (rows - 1))


def epoch_axis(last: float, width: int) -> str:
    """Round numbers of epochs under the places where they are."""
    rough = last / max(width // 12, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    stride = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    line = ""
    for i in range(int(last / stride + 1e-9) + 1):
        text = f"{i * stride:g}"
        at = max(round(i * stride / last * width) - len(text) // 2, 0)
        if at + len(text) <= width + 2 and (not line or at > len(line)):
            line = line.ljust(at) + text
    return f"{line}  epochs"


def on_terminal(stream: Any) -> bool:
    """Whether a stream goes to a terminal that can place and colour characters."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def coloured(stream: Any) -> bool:
    """Whether to write in colours (https://no-color.org)."""
    return on_terminal(stream) and not os.environ.get("NO_COLOR")


def encodes(stream: Any, text: str) -> bool:
    """Whether a stream has the characters of a text."""
    try:
        text.encode(stream.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


# --------------------------------------------------------------------------------------------------------- files


def document(s: Shown, steps: int) -> dict[str, Any]:
    """One schedule for `--json`; times in epochs."""
    levels = {level or "beta": part for level, part in s.schedule.parts.items()}
    at = list(s.points(steps))
    curves: dict[str, Callable[[float], float]] = {}
    for level, part in levels.items():
        if isinstance(part, Feedback):
            curves["target" if level == "beta" else f"{level}_target"] = part.setpoint
        else:
            curves[level] = part
    return {
        "name": s.name,
        "source": s.source,
        "schedule": s.schedule.model_dump(mode="json", by_alias=True),
        "epochs": s.epochs,
        "elbo_scale": s.scale if s.source != "schedule" else None,
        "closed_loop": s.schedule.closed_loop,
        "shortfall": shortfall(s.schedule, s.epochs),
        "levels": {
            level: {
                "description": part.describe(),
                "start": part.start,
                "peak": part.peak,
                "first_peak": part.first_peak,
                "period": part.period,
                "reached": part.reached(s.epochs),
                **({"quantity": part.quantity, "bounds": part.bounds} if isinstance(part, Feedback) else {}),
            }
            for level, part in levels.items()
        },
        "key_epochs": [
            {"epoch": epoch, "what": text, **{name: curve(epoch) for name, curve in curves.items()}}
            for epoch, text in s.marks()
        ],
        "curve": {"epoch": at, **{name: [curve(epoch) for epoch in at] for name, curve in curves.items()}},
        **({"run": run_document(s, s.run)} if s.run else {}),
    }


def run_document(s: Shown, run: Recorded) -> dict[str, Any]:
    """What became of the schedule in a recorded run, for `--json`: means of whole epochs."""
    return {
        "name": run.name,
        "levels": {
            level or "beta": {
                "kind": course.kind,
                "seen": course.seen,
                "held_since": course.held_since(),
                "epoch": course.epochs,
                "beta": course.betas,
                "value": course.values,
                "target": course.targets,
            }
            for level, course in s.courses.items()
        },
    }


def check_target(flag: str, path: Path | None, ending: str) -> None:
    """Refuse a file that could not be written, before anything is done."""
    if path is None:
        return
    if ending and path.suffix.lower() != ending:
        raise InputError(f"{flag} {path}: not a {ending} file", f"call it {path.with_suffix(ending).name}")
    if path.is_dir():
        raise InputError(f"{flag} {path}: is a folder", "give the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{flag} {path}: there is no folder {path.parent}", "make it first")
    from arcvae_cli.files import usable_folder

    usable_folder(path.parent, flag)


def write_csv(path: Path, shown: Iterable[Shown], steps: int) -> None:
    """One line for every schedule, level and epoch or step; the ELBO-scale beta is empty where it is not known.

    A schedule that takes feedback has a target, and beta and the value that it steers where a run was given.
    """
    shown = list(shown)
    closed = any(s.schedule.closed_loop for s in shown)
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            more = ["quantity", "target", "value"] if closed else []
            writer.writerow(["schedule", "level", "epoch", "beta", "elbo_scale_beta", *more])
            for s in shown:
                scale = None if s.source == "schedule" else s.scale
                for level, part in s.schedule.parts.items():
                    for epoch in s.points(steps):
                        beta: float | None = None
                        held: list[str | float] = [""] * len(more)
                        if isinstance(part, Feedback):
                            course = s.courses.get(level)
                            beta = course.at("betas", epoch) if course else None
                            value = course.at("values", epoch) if course else ""
                            held = [part.quantity, part.setpoint(epoch), value]
                        else:
                            beta = part(epoch)
                        scaled = "" if scale is None or beta is None else beta * scale
                        writer.writerow([s.name, level, f"{epoch:.10g}", "" if beta is None else beta, scaled, *held])
    except OSError as error:
        raise InputError(f"--csv {path}: could not be written ({error.strerror})", "choose another place") from error


def write_plot(path: Path, shown: Sequence[Shown]) -> None:
    """The curves as a PNG, at 1,000 places or at every epoch if these are more, one panel for each unit."""
    from arcvae_cli.render import Line, Panel, save_schedules

    last = max(s.epochs for s in shown)
    count = max(1000, last) // last * last  # so that whole epochs are among the places
    places = [last * i / count for i in range(count + 1)]
    panels: dict[str, Panel] = {}
    for curve in (curve for s in shown for curve in s.curves()):
        panel = panels.setdefault(curve.unit, Panel(curve.unit))
        at = [place for place in places if curve.first <= place <= curve.last]
        panel.lines.append(Line(curve.label, at, [curve.value(place) for place in at], curve.dashed))
        panel.top, panel.low = max(panel.top, curve.top), min(panel.low, curve.low)
    scales = {s.scale for s in shown}
    save_schedules(path, list(panels.values()), elbo_scale=scales.pop() if len(scales) == 1 else None)
