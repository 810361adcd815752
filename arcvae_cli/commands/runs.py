"""`arcvae runs`: what there is, what is known of a run, and whether its files are whole."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import open_regular

if TYPE_CHECKING:
    from rich.table import Table

    from arcvae_cli.console import Console
    from arcvae_cli.runs import Run

app = typer.Typer(no_args_is_help=True, help="List, show and verify runs.")

Quiet = Annotated[bool, typer.Option("--quiet", help="print the result only")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
RunsDir = Annotated[Path, typer.Option(help="where run folders are")]
RUNS = Path("runs")

STYLES = {"finished": "green", "running": "cyan", "interrupted": "yellow", "killed": "yellow"}
"""Of states; what is wrong is red."""

PART = re.compile(r"(en|de)coder(_epoch_\d+)?\.pth")
"""Files that hold a part of a model, which no training goes on from."""

LINE_BYTES = 2**20
"""No line of `metrics.jsonl` is longer."""


# --------------------------------------------------------------------------------------------------------------- list


@app.command("list")
def list_runs(runs_dir: RunsDir = RUNS, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """List runs, the newest first."""
    from arcvae_cli import runs as folders
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    found = [folders.state_of(path) for path in folders.all_runs(runs_dir)]
    console.json({"runs": [run.document() for run in found]})
    if not found:
        console.note(f"no run in {runs_dir}/ yet: start one with `arcvae train`")
        return
    table = plain_table("run", "state", "epochs", "best, in epoch", "size", "last word")
    for run in found:
        best = "-" if run.best_value is None else f"{run.best_value:.4f} in {run.best_epoch}"
        table.add_row(run.name, styled(run.state), epochs(run), best, size(run.bytes), ago(run.age))
    show_table(table, console)


def epochs(run: Run) -> str:
    """How many epochs are done, of how many."""
    return f"{'-' if run.epoch is None else run.epoch}/{'-' if run.epochs is None else run.epochs}"


def ago(seconds: float) -> str:
    """How long ago something was, in the largest unit that counts it."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def size(count: int) -> str:
    """A number of bytes."""
    from arcvae_cli.files import size as told

    return told(count)


def styled(state: str) -> str:
    """A state in its colour."""
    style = STYLES.get(state, "red")
    return f"[{style}]{state}[/]"


# --------------------------------------------------------------------------------------------------------------- show


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="a run's name, its folder, or latest")],
    runs_dir: RunsDir = RUNS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a run, and how to go on with it."""
    from rich.text import Text

    from arcvae_cli import runs as folders
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    found = folders.state_of(folders.find(run, runs_dir))
    settings, changed, unusable = settings_of(found.path)
    files = list(checkpoints_of(found))
    steps = next_steps(found, runs_dir)
    console.json(
        {
            **found.document(),
            "settings": settings,
            "changed": changed,
            "checkpoints": [file.__dict__ for file in files],
            "next": steps,
        }
    )

    table = plain_table("", "")
    table.show_header = False
    table.columns[1].no_wrap = False
    rows = {
        "run": found.name,
        "folder": str(found.path),
        "state": styled(found.state),
        "reason": found.reason,
        "process": found.pid and f"{found.pid} on {found.host}",
        "epochs": epochs(found) if found.step is None else f"{epochs(found)}, {found.step:,} steps",
        "best": None if found.best_value is None else f"{found.monitor} {found.best_value:.4f} in {found.best_epoch}",
        "started": found.started,
        "last word": found.updated and f"{found.updated}, {ago(found.age)}",
        "seconds": ", ".join(f"{part} {value:.1f}" for part, value in found.seconds.items()),
        "memory": found.peak_memory_bytes and f"at most {size(found.peak_memory_bytes)}",
        "size": size(found.bytes),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value if name == "state" else Text(str(value)))
    show_table(table, console)

    console.result()
    if unusable is not None:
        console.result(Text(unusable))
    elif changed:
        table = plain_table("setting", "value", "default")
        for key, (value, default) in changed.items():
            table.add_row(key, Text(json.dumps(value)), "-" if default is None else Text(json.dumps(default)))
        show_table(table, console)
    else:
        console.result("all settings are the defaults")
    if files:
        console.result()
        table = plain_table("checkpoint", "epoch", "size")
        for file in files:
            shown = size(file.bytes) if file.same_as is None else f"= {file.same_as}"
            table.add_row(file.name, "-" if file.epoch is None else str(file.epoch), shown)
        show_table(table, console)
    console.result()
    for step in steps:
        console.result(Text(f"next: {step}"))


def settings_of(path: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]], str | None]:
    """The settings of a run as nested tables; by dotted key, those that are not the default, with the default.

    The default is that of the run's own model and schedule. Last: why there are none, where the file is unusable.
    """
    from arcvae_cli.commands.presets import leaves
    from arcvae_cli.settings import Layer, Settings, resolve

    if not (path / "config.toml").is_file():
        return {}, {}, "config.toml: missing"
    try:
        settings = resolve(str(path / "config.toml")).settings
    except InputError as error:
        return {}, {}, error.what
    own = {table: {"name": getattr(settings, table).name} for table in ("model", "schedule")}
    default = dict(leaves(resolve(None, Layer("defaults", own)).settings.table()))
    default |= {"model.name": Settings().model.name, "schedule.name": Settings().schedule.name}
    table = settings.table()
    changed = {key: (value, default.get(key)) for key, value in leaves(table) if default.get(key) != value}
    return table, changed, None


@dataclass(frozen=True)
class File:
    """A checkpoint. `epoch`: as its name or the run's status has it. `same_as`: another name of the same bytes."""

    name: str
    epoch: int | None
    bytes: int
    same_as: str | None


def checkpoints_of(run: Run) -> Iterator[File]:
    """The checkpoints of a run, the last first and those of single epochs by their names."""
    known = {"last.pth": run.epoch, "vae_final.pth": run.epoch, "vae_best.pth": run.best_epoch}
    known |= {"encoder.pth": run.best_epoch, "decoder.pth": run.best_epoch}
    seen: dict[tuple[int, int], str] = {}
    for path in pth_files(run.path):
        try:
            at = path.lstat()
        except OSError:  # one of the best that is no longer
            continue
        number = re.search(r"epoch_(\d{1,9})", path.name)
        first = seen.setdefault((at.st_dev, at.st_ino), path.name)
        yield File(
            path.name,
            int(number[1]) if number else known.get(path.name),
            at.st_size,
            None if first == path.name else first,
        )


def pth_files(path: Path) -> list[Path]:
    """The checkpoints in a run folder: the last, the best, the final, others by name, and parts of models."""
    order = ("last.pth", "vae_best.pth", "vae_final.pth")

    def place(file: Path) -> tuple[bool, int, list[str | int]]:
        parts = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]
        return bool(PART.fullmatch(file.name)), order.index(file.name) if file.name in order else len(order), parts

    return sorted((path / "checkpoints").glob("[!.]*.pth"), key=place)


def next_steps(run: Run, runs_dir: Path) -> list[str]:
    """What can be done with a run now: commands."""
    called = run.name if runs_dir == RUNS == run.path.parent else shlex.quote(str(run.path))
    if run.state == "running":
        return []
    if run.state == "finished":
        return [f"arcvae {what} --checkpoint {called}" for what in ("evaluate", "sample")]
    if run.state == "damaged":
        return [f"arcvae runs verify {called}"]
    return [f"arcvae train --resume {called}"]


# ------------------------------------------------------------------------------------------------------------- verify


@dataclass
class Checked:
    """What was found of a run: `problems` are damage, `notes` are not. `whole`: checkpoints by name, with the epoch."""

    run: Run
    broken: dict[str, str] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)
    resumable: dict[str, int] = field(default_factory=dict)  # those that a training can go on from, with the step
    parts: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.broken and not self.problems

    def document(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {
            "name": self.run.name,
            "path": str(self.run.path),
            "state": self.run.state,
            "ok": self.ok,
            "whole": self.whole,
            "broken": self.broken,
            "problems": self.problems,
            "notes": self.notes,
            "go_on": self.go_on(),
        }

    def go_on(self) -> str | None:
        """How to go on with the run, from what is whole of it; None where there is nothing to go on with."""
        if self.run.state in ("running", "finished") and self.ok:
            return None
        if "last.pth" in self.resumable:
            return f"arcvae train --resume {shlex.quote(str(self.run.path))}"
        if self.resumable:
            name = max(self.resumable, key=lambda name: self.resumable[name])
            return f"arcvae train --resume {shlex.quote(str(self.run.path / 'checkpoints' / name))}"
        return f"arcvae train --preset {shlex.quote(str(self.run.path / 'config.toml'))}"


@app.command()
def verify(
    run: Annotated[str | None, typer.Argument(help="a run's name, its folder, or latest; by default all")] = None,
    runs_dir: RunsDir = RUNS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Verify the files of one run or of all, and repair what can be: `latest`, and what killed runs left half-written.

    Exit code 1 if something is damaged.
    """
    from rich.text import Text

    from arcvae_cli import runs as folders
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    paths = folders.all_runs(runs_dir) if run is None else [folders.find(run, runs_dir)]
    repaired = mend(runs_dir, paths) if run is None else []
    checked = []
    with console.counting("verifying") as tell:
        for done, path in enumerate(paths):
            tell(done, len(paths))
            checked.append(check(path))
    console.json({"runs": [one.document() for one in checked], "repaired": repaired})

    if checked:
        table = plain_table("run", "state", "checkpoints", "verdict")
        for one in checked:
            count = len(one.whole) + one.parts
            shown = f"{count} whole" if not one.broken else f"{count} of {count + len(one.broken)} whole"
            verdict = "[green]whole[/]" if one.ok else "[red]damaged[/]"
            table.add_row(one.run.name, styled(one.run.state), shown, verdict)
        show_table(table, console)
    for text in repaired:
        console.result(Text(text))
    for one in checked:
        for name, why in one.broken.items():
            console.result(Text(f"{one.run.name}: {name}: {why}"))
        for text in one.problems:
            console.result(Text(f"{one.run.name}: {text}"))
        for text in one.notes:
            console.note(f"{one.run.name}: {text}")
        if (command := one.go_on()) is not None:
            whole = ", ".join(f"{name} (epoch {epoch})" for name, epoch in one.whole.items())
            if not one.ok:
                console.result(Text(f"{one.run.name}: whole: {whole or 'no checkpoint'}"))
            verb = "go on" if one.resumable else "start again"
            console.result(Text(f"{one.run.name}: {verb} with `{command}`"))
    if not checked:
        console.note(f"no run in {runs_dir}/ yet: start one with `arcvae train`")
    damaged = [one.run.name for one in checked if not one.ok]
    if damaged:
        raise ArcvaeError(f"{len(damaged)} of {len(checked)} runs damaged: {', '.join(damaged[:5])}")


def mend(runs_dir: Path, paths: list[Path]) -> list[str]:
    """Repair the folder of runs: `latest`, and what was never finished being made. What was done, a line each."""
    from arcvae_cli import runs as folders

    told = [f"removed {path}, left half-made" for path in folders.sweep_hidden(runs_dir)]
    latest = runs_dir / folders.LATEST
    if latest.exists() or (not paths and not latest.is_symlink()):
        return told
    was = f"pointed to {os.readlink(latest)}, which is gone" if latest.is_symlink() else "was missing"
    if paths:
        folders.point_latest(runs_dir, paths[0].name)
        now = f"points to {paths[0].name} now"
    else:
        latest.unlink()
        now = "is removed"
    if latest.exists() == bool(paths):  # a system without links has no latest
        told.append(f"{latest} {was}: it {now}")
    return told


def check(path: Path) -> Checked:
    """Read all that a run consists of, after sweeping what a process that died left half-written."""
    from arcvae_cli import runs as folders

    found = Checked(folders.state_of(path))
    state = found.run.state
    if state != "running":
        found.notes += [f"removed {name.name}, left half-written" for name in folders.sweep_idle(path)]
    if state == "damaged":
        found.problems.append("status.json: cannot be read")
    if state == "killed":
        found.notes.append("its process ended without a word")
    check_metrics(found)
    check_checkpoints(found)
    check_settings(found)
    return found


def check_settings(found: Checked) -> None:
    """Read `config.toml`; where it is unusable, write it again from what a whole checkpoint carries."""
    from arcvae_cli import runs as folders

    path = found.run.path
    _, _, unusable = settings_of(path)
    if unusable is None:
        return
    unusable = unusable.replace(f"{path / 'config.toml'}", "config.toml")
    if found.whole and found.run.state != "running":
        from arcvae_cli.checkpoints import read, read_settings

        file = path / "checkpoints" / max(found.whole, key=lambda name: found.whole[name])
        with suppress(ArcvaeError):  # that it cannot be written, or is another's by now
            values = read(file)
            settings = read_settings(file, values, most_layers=len(values["model_state_dict"]))
            lock = folders.take(path)
            try:
                folders.RunFolder(path).write_config(settings)
            finally:
                if lock is not None:
                    lock.release()
            found.notes.append(f"{unusable}; written again from {file.name}")
            return
    found.problems.append(unusable)


def check_checkpoints(found: Checked) -> None:
    """Read every checkpoint, its checksums compared; those that share their bytes once."""
    from arcvae_cli.commands.reading import importing

    files = pth_files(found.run.path)
    if files:
        with importing():
            from arcvae_cli import checkpoints
    seen: dict[tuple[int, int], dict[str, Any] | str] = {}
    for path in files:
        try:
            at = path.stat()
            key = at.st_dev, at.st_ino
        except OSError:  # one of the best that is no longer, or a dangling link
            if path.is_symlink():
                found.broken[path.name] = "points to nothing"
            continue
        part = bool(PART.fullmatch(path.name))
        if key not in seen:
            try:
                values = checkpoints.read(path, required=checkpoints.PART if part else checkpoints.REQUIRED)
                seen[key] = {name: values.get(name) for name in ("epoch", "step", "format_version")}
            except InputError as error:
                seen[key] = error.what.removeprefix(f"{path}: ")
        read = seen[key]
        if isinstance(read, str):
            if path.exists():
                found.broken[path.name] = read
        elif part:
            found.parts += 1
        else:
            found.whole[path.name] = read["epoch"]
            if read["format_version"] >= checkpoints.FORMAT and isinstance(read["step"], int):
                found.resumable[path.name] = read["step"]
    expected = ["last.pth"] if found.run.step else []
    if found.run.state == "finished":
        expected += ["vae_best.pth", "vae_final.pth"]
    there = {path.name for path in files}
    found.problems += [f"{name}: missing" for name in expected if name not in there]


def check_metrics(found: Checked) -> None:
    """Read `metrics.jsonl`: every line an object, steps and epochs in order without doubles, no epoch left out."""
    path, run = found.run.path / "metrics.jsonl", found.run
    try:
        epoch, torn = read_metrics(path)
    except FileNotFoundError:
        epoch, torn = 0, False
    except (OSError, ValueError) as error:
        found.problems.append(f"metrics.jsonl: {error}")
        return
    if torn and run.state == "finished":
        found.problems.append("metrics.jsonl: its last line is cut short")
    elif torn and run.state != "running":
        found.notes.append("metrics.jsonl: its last line is cut short, which going on mends")
    if run.epoch is not None and epoch < run.epoch and run.state != "running":
        text = f"metrics.jsonl: ends with epoch {epoch} of {run.epoch}"
        if run.state == "finished":
            found.problems.append(text)
        else:
            found.notes.append(f"{text}, which going on mends")


def read_metrics(path: Path) -> tuple[int, bool]:
    """The last epoch of a file of metrics, and whether its last line is cut short. ValueError says what is wrong."""
    epoch = step = 0
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
            if not line.endswith(b"\n") and len(line) < LINE_BYTES:
                return epoch, True
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            kind, at = (values.get("kind"), values.get("step")) if isinstance(values, Mapping) else (None, None)
            if kind not in ("epoch", "step") or not isinstance(at, int):
                raise ValueError(f"line {number} is no record of a step or an epoch")
            if at < step + (kind == "step"):
                raise ValueError(f"line {number}: step {at} comes after step {step}")
            step = at
            if kind == "epoch":
                if (found := values.get("epoch")) != epoch + 1:
                    raise ValueError(f"line {number}: epoch {found!r:.40} comes after epoch {epoch}")
                epoch += 1
    return epoch, False


# ------------------------------------------------------------------------------------------------------------- tables


def plain_table(*columns: str) -> Table:
    """A table of text without lines; its first column may wrap, which is of names."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=place > 0, style="" if place else "bold")
    return table


def show_table(table: Table, console: Console) -> None:
    """Print a table: as wide as the terminal, or in a pipe as wide as it takes for a row to be a line."""
    if not console.piped:
        console.result(table)
        return
    from rich.console import Console as Terminal

    plain = Terminal(file=io.StringIO(), width=10**4, color_system=None)
    with plain.capture() as text:
        plain.print(table)
    console.lines(line.rstrip() for line in text.get().splitlines())
