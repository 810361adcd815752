"""`arcvae schedule-preview`: the beta a run will use, before the run. Imports neither torch nor NumPy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from arcvae_cli.commands.options import (
    OUTPUT,
    JsonOption,
    QuietOption,
    Row,
    SetOption,
    complete,
    own_names,
    with_flags,
)
from arcvae_cli.errors import InputError
from arcvae_cli.files import is_dir, is_file, read_lines, usable_folder
from arcvae_cli.presets import Layer, environment_layer, preset_names, resolve, set_layer
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule
from arcvae_cli.settings import GRID_POSITIONS, elbo_scale

if TYPE_CHECKING:
    from arcvae_cli.console import Console

EPOCHS = 100  # of a schedule by its name; a preset has its own
STEPS = 100
MOST_ROWS, MOST_POINTS = 16, 4000  # of the table, and of a curve
HEIGHT = 11  # lines of a chart
UNITS = {"kl": "KL, nats per example", "reconstruction": "reconstruction, nats per position"}
MARKERS, COLOURS = "*o+x#@%&", ("cyan", "yellow", "magenta", "green", "red", "blue", "white")

SCHEDULE, VIEW = "The schedule", "The view"
KEYS = (
    *("max_beta", "min_beta", "warmup_epochs", "ramp_epochs", "cycle_length", "wave", "ramp_fraction"),
    *("restart_interval", "restart_multiplier", "per"),
)
ROWS = (*own_names(KEYS, SCHEDULE), Row(("--epochs",), "train.epochs", VIEW, f"the preset's, else {EPOCHS}"))


class Curve(NamedTuple):
    """A line of the chart and of the picture."""

    label: str
    unit: str
    epochs: Sequence[float]
    values: Sequence[float]
    dashed: bool = False


class Recorded(NamedTuple):
    """What a run recorded of a level at its whole epochs: beta (a mean), and the value that a closed loop holds."""

    betas: dict[float, float]
    values: dict[float, float]


@dataclass(frozen=True)
class Shown:
    """One schedule of the preview. `scale`: from beta to the ELBO-scale beta, None where there is none.

    `recorded`: by level, what the run of `--run` did.
    """

    name: str
    source: Literal["preset", "file", "schedule"]
    schedule: Schedule
    epochs: int
    scale: float | None
    recorded: Mapping[str, Recorded] = field(default_factory=dict)

    @property
    def by_step(self) -> bool:
        """Whether beta is shown by steps; a closed loop is shown by whole epochs."""
        return self.schedule.per == "step" and not isinstance(self.schedule, Feedback)

    def points(self, steps: int) -> list[float]:
        """The epochs at which the trainer asks for beta."""
        if not self.by_step:
            return [float(epoch) for epoch in range(1, self.epochs + 1)]
        return [epoch + (step + 1) / steps for epoch in range(self.epochs) for step in range(steps)]

    def marks(self) -> list[tuple[float, str]]:
        """Key epochs with what happens there, the first and the last included."""
        found: dict[float, list[str]] = {0.0: ["start"]} if self.by_step else {1.0: ["first epoch"]}
        if self.recorded:
            stride = max(1, self.epochs // 10)
            found |= {float(epoch): [] for epoch in range(stride, self.epochs, stride) if epoch > 1}
        for epoch, text in self.schedule.marks(self.epochs):
            found.setdefault(epoch, []).append(text)
        found.setdefault(float(self.epochs), []).append("last epoch")
        return [(epoch, ", ".join(texts)) for epoch, texts in sorted(found.items())]

    def series(self) -> dict[str, Callable[[float], float]]:
        """What the schedule says of every epoch: beta, or the target of a closed loop, by its name in `--json`."""
        found: dict[str, Callable[[float], float]] = {}
        for level, part in self.schedule.parts.items():
            if isinstance(part, Feedback):
                found[f"{level}_target".lstrip("_")] = part.setpoint
            else:
                found[level or "beta"] = part
        return found

    def curves(self) -> Iterator[Curve]:
        """Everything that is drawn of it."""
        for level, part in self.schedule.parts.items():
            label, run = f"{self.name} {level}".rstrip(), self.recorded.get(level)
            count = min(max(8 * self.epochs, 400), MOST_POINTS)
            places = [self.epochs * i / count for i in range(count + 1)]
            if isinstance(part, Feedback):
                targets = [part.setpoint(place) for place in places]
                yield Curve(f"{label} target", UNITS[part.quantity], places, targets, dashed=True)
                if run:
                    yield Curve(f"{label} recorded", UNITS[part.quantity], list(run.values), list(run.values.values()))
            else:
                if part.per == "epoch":
                    places = [float(e) for e in range(1, self.epochs + 1, 1 + self.epochs // MOST_POINTS)]
                yield Curve(label, "beta", places, [part(place) for place in places])
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
    run: Annotated[
        str | None, typer.Option(help="overlay what a run recorded: its folder or name", rich_help_panel=VIEW)
    ] = None,
    runs: Annotated[Path, typer.Option("--runs-dir", help="folder of the runs", rich_help_panel=VIEW)] = Path("runs"),
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
    for flag, path, ending in (("--plot", plot, ".png"), ("--csv", csv_file, "")):
        if path is not None:
            check_target(flag, path, ending)
    layers = [set_layer(assignments or []), flags]
    shown = [find(name, layers, run, runs) for name in dict.fromkeys(names)]
    given = flags.values.get("schedule", {})
    if "ramp_fraction" in given and (flat := [s for s in shown if getattr(s.schedule, "wave", "") != "ramp_hold"]):
        raise InputError(f"--ramp-fraction: {flat[0].name} does not use it", "it belongs to --wave ramp_hold")
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
    """What a name stands for, with flags and `--set` on top, and what the run recorded."""
    path = Path(name)
    source: Literal["preset", "file", "schedule"]
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
        near = difflib.get_close_matches(name, known, n=3)
        raise InputError(
            f"{name}: no such preset, file or schedule",
            f"did you mean {' or '.join(near)}?" if near else f"presets and schedules: {', '.join(known)}",
        )
    recorded = {} if run is None else read_run(run, runs, settings.schedule)
    return Shown(name, source, settings.schedule, settings.train.epochs, scale, recorded)


def read_run(run: str, runs: Path, schedule: Schedule) -> dict[str, Recorded]:
    """What a run, by its folder or its name in `runs`, recorded of each level of a schedule."""
    folder = next((path for path in (Path(run), runs / run) if is_file(path / "metrics.jsonl")), None)
    if folder is None:
        raise InputError(
            f"--run {run}: no metrics.jsonl there, nor in {runs / run}", "give the folder or name of a run"
        )
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
    """Print the facts, the charts and the tables."""
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
        columns, rows = table(s)
        console.table("", columns, rows, left=(len(columns) - 1,))


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
    scaled = f" ({low * factor:.4g} to {high * factor:.4g} on the ELBO scale)" if factor != 1.0 else ""
    yield ", ".join(f"{key} {value:g}" for key, value in part if key not in ("name", "per"))
    yield f"beta depends on the run and moves once a step, between {low:.4g} and {high:.4g}{scaled}"
    if not s.recorded:
        yield "--run RUN shows what it did in a run"


def table(s: Shown) -> tuple[list[str], list[list[str]]]:
    """The key epochs: names of columns, and rows."""
    from arcvae_cli.console import cell

    marks, scale = s.marks(), 1.0 if s.scale is None else s.scale
    columns: dict[str, list[float | None]] = {name: [at(e) for e, _ in marks] for name, at in s.series().items()}
    for level, run in s.recorded.items():
        if run.values:
            columns[f"{level} recorded".lstrip()] = [run.values.get(epoch) for epoch, _ in marks]
        columns[f"{level} recorded beta".lstrip()] = [run.betas.get(epoch) for epoch, _ in marks]
    for level, part in s.schedule.parts.items() if scale != 1.0 else ():
        if not isinstance(part, Feedback):
            columns[f"{level} ELBO-scale beta".lstrip()] = [part(epoch) * scale for epoch, _ in marks]
    rows = [
        [f"{epoch:g}", *(cell(values[row], ".4g") for values in columns.values()), what]
        for row, (epoch, what) in enumerate(marks)
    ]
    if (left_out := len(rows) - MOST_ROWS) > 0:
        rows[MOST_ROWS - 4 : -4] = [["..."] + [""] * len(columns) + [f"{left_out} more, all of them in --json"]]
    return ["epoch", *columns, ""], rows


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


def document(s: Shown, name: str | None, steps: int) -> dict[str, Any]:
    """One schedule for `--json`; times in epochs."""
    at, series = s.points(steps), s.series()
    recorded = {
        level or "beta": {
            "epoch": list(run.betas),
            "beta": list(run.betas.values()),
            "value": list(run.values.values()),
        }
        for level, run in s.recorded.items()
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
                "start": part.start,
                "peak": part.peak,
                "first_peak": part.first_peak,
                "period": part.period,
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
        **({"run": {"name": name, "levels": recorded}} if recorded else {}),
    }


def check_target(flag: str, path: Path, ending: str) -> None:
    """InputError for a file that could not be written, before anything is done."""
    if not path.suffix.lower().endswith(ending):
        raise InputError(f"{flag} {path}: not a {ending} file", f"call it {path.with_suffix(ending).name}")
    if is_dir(path):
        raise InputError(f"{flag} {path}: is a folder", "give the name of a file")
    if not is_dir(path.parent):
        raise InputError(f"{flag} {path}: no folder {path.parent}", "create it first")
    usable_folder(path.parent, flag)


def write_csv(path: Path, shown: Sequence[Shown], steps: int) -> None:
    """A row for every schedule, level and epoch or step; empty where there is no value.

    A closed loop has a target, and beta and the held value where a run was given.
    """
    import csv

    more = ["quantity", "target", "value"] if any(s.schedule.closed_loop for s in shown) else []
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["schedule", "level", "epoch", "beta", "elbo_scale_beta", *more])
            for s in shown:
                scale = None if s.source == "schedule" else s.scale
                for level, part in s.schedule.parts.items():
                    run = s.recorded.get(level)
                    for epoch in s.points(steps):
                        rest: list[object] = [None] * len(more)
                        if isinstance(part, Feedback):
                            beta = run.betas.get(epoch) if run else None
                            rest = [part.quantity, part.setpoint(epoch), run.values.get(epoch) if run else None]
                        else:
                            beta = part(epoch)
                        scaled = None if scale is None or beta is None else beta * scale
                        writer.writerow([s.name, level, f"{epoch:.10g}", beta, scaled, *rest])
    except OSError as error:
        raise InputError(f"--csv {path}: could not be written ({error.strerror})", "choose another place") from error
