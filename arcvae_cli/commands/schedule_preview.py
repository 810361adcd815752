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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from arcvae_cli.errors import InputError
from arcvae_cli.schedules import SCHEDULES, Schedule, shortfall
from arcvae_cli.settings import Layer, elbo_scale, environment_layer, flag_layer, preset_names, resolve, set_layer

EPOCHS = 100  # of a schedule by its name; a preset brings its own
STEPS = 100
ROWS = 16  # key epochs shown, the middle ones left out first

SCHEDULE, VIEW, OUTPUT = "The schedule", "The view", "Output"


@dataclass(frozen=True)
class Shown:
    """One schedule of the preview. `scale` leads from beta to the ELBO-scale beta, None where there is none."""

    name: str
    source: Literal["preset", "file", "schedule"]
    schedule: Schedule
    epochs: int
    scale: float | None

    def points(self, steps: int) -> Iterator[float]:
        """The epochs at which the trainer asks for beta."""
        for epoch in range(1, self.epochs + 1):
            if self.schedule.per == "step":
                yield from (epoch - 1 + (step + 1) / steps for step in range(steps))
            else:
                yield float(epoch)

    def marks(self) -> list[tuple[float, str]]:
        """Key epochs, the first and the last included."""
        first, begin = (0.0, "start") if self.schedule.per == "step" else (1.0, "first epoch")
        found: dict[float, list[str]] = {first: [begin]}
        for epoch, text in self.schedule.marks(self.epochs):
            found.setdefault(epoch, []).append(text)
        found.setdefault(float(self.epochs), []).append("last epoch")
        return [(epoch, ", ".join(texts)) for epoch, texts in sorted(found.items())]

    def label(self, level: str) -> str:
        """A curve's name, in the legend and in the picture."""
        return f"{self.name} {level}".rstrip()


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
    if steps is not None and not any(s.schedule.per == "step" for s in shown):
        raise InputError("--steps: beta moves once an epoch here", "add --per step")

    for s in shown:
        if (text := shortfall(s.schedule, s.epochs)) is not None:
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
            yield "  " + facts(part, s)
    yield ""
    yield from chart(shown, width)
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


def table(s: Shown) -> Iterator[str]:
    """The key epochs, as lines of columns."""
    parts = s.schedule.parts
    head = ["epoch", *(level or "beta" for level in parts)]
    scaled = s.scale is not None and s.scale != 1.0
    if scaled:
        head += [f"{level} ELBO-scale beta".lstrip() for level in parts]
    rows = []
    for epoch, text in s.marks():
        betas = [part(epoch) for part in parts.values()]
        if s.scale is not None and scaled:
            betas += [beta * s.scale for beta in betas]
        rows.append([f"{epoch:g}", *(f"{beta:.4g}" for beta in betas), text])
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


def chart(shown: Sequence[Shown], width: int) -> Iterator[str]:
    """All curves over the epochs, in Braille on a terminal and in plain characters elsewhere."""
    curves = [(s, level, part) for s in shown for level, part in s.schedule.parts.items()]
    last = max(s.epochs for s in shown)
    top = max(part.peak for _, _, part in curves) or 1.0
    colour = coloured(sys.stdout)
    fine = on_terminal(sys.stdout) and encodes(sys.stdout, "⣿┤└─") and (colour or len(curves) == 1)
    tick, corner, line = "┤└─" if fine else "|+-"

    labels = {0: f"{top:.3g}", HEIGHT // 2: f"{top / 2:.3g}", HEIGHT - 1: "0"}
    margin = max(map(len, labels.values())) + 1
    width = max(width - margin - 12, 20)  # the word "epochs" stands at the end of the axis
    across, down = (2, 4) if fine else (1, 1)
    cells: dict[tuple[int, int], tuple[int, int]] = {}  # (row, column): the dots set there, and whose they are
    for index, (s, _, part) in enumerate(curves):
        for column, low, high in spans(s, part, last, width * across):
            for row in range(dot(high, top, HEIGHT * down), dot(low, top, HEIGHT * down) + 1):
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
        legend = (f"{ink(key, i)} {curves[i][0].label(curves[i][1])}" for i, key in enumerate(keys))
        yield " " * (margin + 2) + "   ".join(legend)


def spans(s: Shown, part: Schedule, last: float, columns: int) -> Iterator[tuple[int, float, float]]:
    """The least and the largest beta within each column of a chart from epoch 0 to `last`.

    Both, because several cycles may fall into one column. Between whole epochs a schedule that moves once an epoch is
    drawn as a straight line.
    """
    first = 0.0 if part.per == "step" else 1.0
    inner = 8
    for column in range(columns):
        places = (last * (column + i / inner) / columns for i in range(inner + 1))
        betas = [between(part, place) for place in places if first <= place <= s.epochs]
        if betas:
            yield column, min(betas), max(betas)


def between(part: Schedule, place: float) -> float:
    """Beta at a place on the axis."""
    low = math.floor(place)
    if part.per == "step" or low == place:
        return part(place)
    return part(low) + (part(low + 1) - part(low)) * (place - low)


def dot(beta: float, top: float, rows: int) -> int:
    """The row of a value, 0 being the highest."""
    return round((1.0 - beta / top) * (rows - 1))


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
    parts = s.schedule.parts
    levels = {level or "beta": part for level, part in parts.items()}
    at = list(s.points(steps))
    return {
        "name": s.name,
        "source": s.source,
        "schedule": s.schedule.model_dump(mode="json", by_alias=True),
        "epochs": s.epochs,
        "elbo_scale": s.scale if s.source != "schedule" else None,
        "shortfall": shortfall(s.schedule, s.epochs),
        "levels": {
            level: {
                "description": part.describe(),
                "start": part.start,
                "peak": part.peak,
                "first_peak": part.first_peak,
                "period": part.period,
                "reached": part.reached(s.epochs),
            }
            for level, part in levels.items()
        },
        "key_epochs": [
            {"epoch": epoch, "what": text, **{level: part(epoch) for level, part in levels.items()}}
            for epoch, text in s.marks()
        ],
        "curve": {"epoch": at, **{level: [part(epoch) for epoch in at] for level, part in levels.items()}},
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
    from arcvae_cli.writing import usable_folder

    usable_folder(path.parent, flag)


def write_csv(path: Path, shown: Iterable[Shown], steps: int) -> None:
    """One line for every schedule, level and epoch or step; the ELBO-scale beta is empty where it is not known."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["schedule", "level", "epoch", "beta", "elbo_scale_beta"])
            for s in shown:
                scale = None if s.source == "schedule" else s.scale
                for level, part in s.schedule.parts.items():
                    for epoch in s.points(steps):
                        beta = part(epoch)
                        scaled = "" if scale is None else beta * scale
                        writer.writerow([s.name, level, f"{epoch:.10g}", beta, scaled])
    except OSError as error:
        raise InputError(f"--csv {path}: could not be written ({error.strerror})", "choose another place") from error


def write_plot(path: Path, shown: Sequence[Shown]) -> None:
    """The curves as a PNG, at 1,000 places or at every epoch if these are more."""
    from arcvae_cli.render import save_beta_schedule

    last = max(s.epochs for s in shown)
    count = max(1000, last) // last * last  # so that whole epochs are among the places
    places = [last * i / count for i in range(count + 1)]
    curves = {
        s.label(level): [
            between(part, x) if (0.0 if part.per == "step" else 1.0) <= x <= s.epochs else math.nan for x in places
        ]
        for s in shown
        for level, part in s.schedule.parts.items()
    }
    scales = {s.scale for s in shown}
    save_beta_schedule(path, places, curves, elbo_scale=scales.pop() if len(scales) == 1 else None)
