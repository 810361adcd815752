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
from arcvae_cli.files import is_file, read_lines
from arcvae_cli.presets import Layer, environment_layer, preset_names, resolve, set_layer
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule
from arcvae_cli.settings import GRID_POSITIONS, elbo_scale

if TYPE_CHECKING:
    from arcvae_cli.console import Console

EPOCHS, STEPS = 100, 100  # of a schedule by its name, and steps of an epoch; a preset has its own epochs
MOST_ROWS = 16  # of the table
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

Record = Mapping[float, tuple[float, float]]  # of a run, by epoch: beta, and the value that a closed loop controls
Curve = tuple[str, str, Sequence[float], Sequence[float], bool]  # label, unit, epochs, values, dashed


class Series(NamedTuple):
    """A column of the table and a curve of the chart. `kind`: "", target, recorded or ELBO-scale beta."""

    level: str
    kind: str
    unit: str
    at: Callable[[float], float | None]
    epochs: Sequence[float] | None = None  # None: all

    @property
    def key(self) -> str:
        return "_".join(filter(None, (self.level, self.kind))) or "beta"


@dataclass(frozen=True)
class Shown:
    """One schedule of the preview. `scale`: from beta to the ELBO-scale beta; `records`: of a run, by level."""

    name: str
    source: str
    schedule: Schedule
    epochs: int
    scale: float | None
    records: Mapping[str, Record]

    def planned(self) -> list[Series]:
        """Beta by level or, of a closed loop, its target."""
        return [
            Series(level, "target", UNITS[part.quantity], part.setpoint)
            if isinstance(part, Feedback)
            else Series(level, "", "beta", part)
            for level, part in self.schedule.parts.items()
        ]

    def recorded(self) -> Iterator[Series]:
        for one in self.planned():
            record = self.records.get(one.level, {})
            if record and one.kind:
                values = {epoch: value for epoch, (_, value) in record.items()}
                yield Series(one.level, "recorded", one.unit, values.get, list(values))
            if record:
                betas = {epoch: beta for epoch, (beta, _) in record.items()}
                yield Series(one.level, "recorded", "beta", betas.get, list(betas))

    @property
    def by_step(self) -> bool:
        return self.schedule.per == "step" and not isinstance(self.schedule, Feedback)

    def points(self, steps: int) -> list[float]:
        if not self.by_step:
            return [float(epoch) for epoch in range(1, self.epochs + 1)]
        return [epoch + (step + 1) / steps for epoch in range(self.epochs) for step in range(steps)]

    def key_epochs(self) -> list[tuple[float, str]]:
        found: dict[float, list[str]] = {0.0: ["start"]} if self.by_step else {1.0: ["first epoch"]}
        if self.records:
            stride = max(1, self.epochs // 10)
            found |= {float(epoch): [] for epoch in range(stride, self.epochs, stride) if epoch > 1}
        events = [event for event in self.schedule.events(self.epochs) if 0 < event[0] <= self.epochs]
        for epoch, text in [*events, (float(self.epochs), "last epoch")]:
            found.setdefault(epoch, []).append(text)
        return [(epoch, ", ".join(texts)) for epoch, texts in sorted(found.items())]

    def curves(self) -> Iterator[Curve]:
        samples = max(8 * self.epochs, 400)
        dense = [self.epochs * i / samples for i in range(samples + 1)]
        for one in [*self.planned(), *self.recorded()]:
            label = " ".join(filter(None, (self.name, one.level, one.kind)))
            smooth = one.kind == "target" or self.schedule.parts[one.level].per == "step"
            epochs = one.epochs or (dense if smooth else self.points(1))
            yield label, one.unit, epochs, [one.at(epoch) or 0.0 for epoch in epochs], one.kind == "target"


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
    shown = [find(name, layers, run, runs) for name in dict.fromkeys(names)]
    for s in shown:
        if (text := s.schedule.warning(s.epochs)) is not None:
            console.warn((f"{s.name}: " if len(shown) > 1 else "") + text)
    if csv_file is not None:
        write_csv(csv_file, shown, steps)
    if plot is not None:
        from arcvae_cli.render.plots import save_schedules

        scales = {s.scale for s in shown}
        curves = [curve for s in shown for curve in s.curves()]
        save_schedules(plot, curves, elbo_scale=scales.pop() if len(scales) == 1 else None)
    console.json({"schedules": [document(s, run, steps) for s in shown]})
    show(shown, console)
    for file in (csv_file, plot):
        if file is not None:
            console.note(f"wrote {file}")


def find(name: str, layers: Sequence[Layer], run: str | None, runs: Path) -> Shown:
    """The schedule of a name, with flags and `--set` on top, and the record of a run."""
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
    records = {} if run is None else read_run(run, runs, settings.schedule)
    return Shown(name, source, settings.schedule, settings.train.epochs, scale, records)


def read_run(run: str, runs: Path, schedule: Schedule) -> dict[str, Record]:
    """What a run, by its folder or its name in `runs`, recorded of each level of a schedule."""
    folder = next((path for path in (Path(run), runs / run) if is_file(path / "metrics.jsonl")), None)
    if folder is None:
        raise InputError(f"--run {run}: no metrics.jsonl in it, nor in {runs / run}", "give a run's folder or name")
    positions = GRID_POSITIONS if resolve(str(folder / "config.toml")).settings.objective.reduction == "sum" else 1
    epochs = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "epoch"]
    found: dict[str, Record] = {}
    for level, part in schedule.parts.items():
        beta, kl = (f"train/{key}/{level}".rstrip("/") for key in ("beta", "kl"))
        if not any(beta in line for line in epochs):
            raise InputError(f"--run {run}: no epoch with {beta}", "give a run of a model with these levels")
        closed_by_kl = isinstance(part, Feedback) and part.quantity == "kl"
        found[level] = {
            line["epoch"]: (line[beta], line[kl] if closed_by_kl else line["train/loss_reconstruction"] / positions)
            for line in epochs
        }
    return found


def show(shown: Sequence[Shown], console: Console) -> None:
    """Print the parameters, a chart for each unit, and a table for each schedule."""
    from arcvae_cli.console import cell

    for s in shown:
        console.lines([f"{s.name} ({'preset, ' * (s.source == 'preset')}schedule {s.schedule.name})"])
        for level, part in s.schedule.parts.items():
            console.lines([f"  {level}: {part.describe()}".replace("  : ", "  "), f"  {facts(part, s)}"])
    curves = [curve for s in shown for curve in s.curves()]
    for unit in dict.fromkeys(unit for _, unit, *_ in curves):
        own = [curve for curve in curves if curve[1] == unit]
        console.lines(["", *chart(own, max(s.epochs for s in shown), console)])
    for s in shown:
        columns = [*s.planned(), *s.recorded()]
        if (scale := s.scale) not in (None, 1.0):
            open_parts = ((level, part) for level, part in s.schedule.parts.items() if not part.closed_loop)
            columns += [Series(level, "ELBO-scale", "beta", partial(scaled, part, scale)) for level, part in open_parts]
        heads = [one.key.replace("_", " ") + " beta" * (one.unit == "beta" and bool(one.kind)) for one in columns]
        rows = [
            [f"{epoch:g}", *(cell(one.at(epoch), ".4g") for one in columns), text] for epoch, text in s.key_epochs()
        ]
        if (left_out := len(rows) - MOST_ROWS) > 0:
            rows[MOST_ROWS - 4 : -4] = [["...", *[""] * len(columns), f"{left_out} more, all of them in --json"]]
        console.lines([f"{s.name}, {s.epochs} epochs"] * (len(shown) > 1))
        console.table("", ["epoch", *heads, ""], rows, left=(len(columns) + 1,))


def scaled(part: Schedule, scale: float, epoch: float) -> float:
    """The ELBO-scale beta at an epoch."""
    return part(epoch) * scale


def facts(part: Schedule, s: Shown) -> str:
    """A schedule in numbers."""
    bounds = part.bounds if isinstance(part, Feedback) else (part.peak,)
    values = " to ".join(f"{bound * (s.scale or 1.0):.4g}" for bound in bounds)
    elbo = "" if s.scale in (None, 1.0) else f" ({values} on the ELBO scale)"
    if isinstance(part, Feedback):
        low, high = bounds[0], bounds[-1]
        return f"beta depends on the run (--run shows one), set every step, between {low:.4g} and {high:.4g}{elbo}"
    period = f", period {part.period:g} epochs" if part.period else ""
    unscaled = ", no ELBO scale (focal loss or class weights)" if s.scale is None else ""
    return f"peak {part.peak:.4g}{elbo}, first at epoch {part.first_peak:g}{period}, set every {part.per}{unscaled}"


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


def document(s: Shown, run: str | None, steps: int) -> dict[str, Any]:
    """One schedule for `--json`; times in epochs."""
    at, planned = s.points(steps), s.planned()
    levels: dict[str, Any] = {}
    recorded: dict[str, Any] = {}
    for level, part in s.schedule.parts.items():
        levels[level or "beta"] = {
            "description": part.describe(),
            "start": part(0.0),
            **{key: getattr(part, key) for key in ("peak", "first_peak", "period")},
            "reached": part.max_beta_seen(s.epochs),
            **({"quantity": part.quantity, "bounds": part.bounds} if isinstance(part, Feedback) else {}),
        }
    for level, record in s.records.items():
        betas, values = zip(*record.values(), strict=True)
        closed = s.schedule.parts[level].closed_loop
        recorded[level or "beta"] = {"epoch": list(record), "beta": betas, "value": values if closed else []}
    return {
        "name": s.name,
        "source": s.source,
        "schedule": s.schedule.model_dump(mode="json", by_alias=True),
        "epochs": s.epochs,
        "elbo_scale": s.scale if s.source != "schedule" else None,
        "closed_loop": s.schedule.closed_loop,
        "shortfall": s.schedule.warning(s.epochs),
        "levels": levels,
        "key_epochs": [
            {"epoch": epoch, "what": text, **{one.key: one.at(epoch) for one in planned}}
            for epoch, text in s.key_epochs()
        ],
        "curve": {"epoch": at, **{one.key: [one.at(epoch) for epoch in at] for one in planned}},
        **({"run": {"name": run, "levels": recorded}} if recorded else {}),
    }


def write_csv(path: Path, shown: Sequence[Shown], steps: int) -> None:
    """A row for every schedule, level and epoch or step; empty where there is no value."""
    import csv

    closed = any(s.schedule.closed_loop for s in shown)
    columns = ["schedule", "level", "epoch", "beta", "elbo_scale_beta", *["quantity", "target", "value"] * closed]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for s in shown:
                scale = None if s.source == "schedule" else s.scale
                for level, part in s.schedule.parts.items():
                    for epoch in s.points(steps):
                        rest: list[Any] = [None] * (len(columns) - 5)
                        beta, value = s.records.get(level, {}).get(epoch, (None, None))
                        if isinstance(part, Feedback):
                            rest = [part.quantity, part.setpoint(epoch), value]
                        else:
                            beta = part(epoch)
                        elbo = None if scale is None or beta is None else beta * scale
                        writer.writerow([s.name, level, f"{epoch:.10g}", beta, elbo, *rest])
    except OSError as error:
        raise InputError(f"--csv {path}: could not be written ({error.strerror})", "choose another place") from error
