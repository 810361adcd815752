"""`arcvae runs`: list runs, show one, and verify their files."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcvae_cli.commands.presets import leaves
from arcvae_cli.commands.resuming import MAY_CHANGE, differences
from arcvae_cli.console import cell
from arcvae_cli.errors import ArcvaeError, InputError, one_line
from arcvae_cli.files import open_regular, size
from arcvae_cli.presets import Layer, resolve
from arcvae_cli.settings import Settings

if TYPE_CHECKING:
    from rich.text import Text

    from arcvae_cli.runs import Run

app = typer.Typer(no_args_is_help=True, help="List, show and verify runs.")

Quiet = Annotated[bool, typer.Option("--quiet", help="print the result only")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
RunsDir = Annotated[Path, typer.Option(help="where run folders are")]
RUNS = Path("runs")

STYLES = {"finished": "green", "running": "cyan", "interrupted": "yellow", "killed": "yellow", "whole": "green"}
"""Of states and verdicts; all others are red."""


# --------------------------------------------------------------------------------------------------------------- list


@app.command("list")
def list_runs(runs_dir: RunsDir = RUNS, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """List runs, the last active first."""
    from arcvae_cli import runs as folders
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    found = [folders.state_of(path) for path in folders.all_runs(runs_dir)]
    console.json({"runs": [run.document() for run in found]})
    if not found:
        console.note(f"no run in {runs_dir}/ yet: start one with `arcvae train`")
        return
    rows: list[list[str | Text]] = []
    for run in found:
        best = "-" if run.status.best_value is None else f"{run.status.best_value:.4f} in {run.status.best_epoch}"
        rows.append([one_line(run.name), styled(run.state), epochs(run), best, size(run.bytes), ago(run.age)])
    console.table("", ("run", "state", "epochs", "best, in epoch", "size", "last active"), rows, left=(0, 1))


def epochs(run: Run) -> str:
    """Epochs done, of how many."""
    return f"{cell(run.status.epoch, 'd')}/{cell(run.status.epochs, 'd')}"


def ago(seconds: float) -> str:
    """A duration in the largest unit that counts at least two."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def styled(state: str) -> Text:
    """A state or a verdict in its colour."""
    from rich.text import Text

    return Text(state, STYLES.get(state, "red"))


# --------------------------------------------------------------------------------------------------------------- show


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="a run's name, its folder, or latest")],
    runs_dir: RunsDir = RUNS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show a run: its state, its settings, its checkpoints, and the commands to continue with."""
    from arcvae_cli import runs as folders
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    found = folders.state_of(folders.find(run, runs_dir))
    status = found.status
    settings = unusable = None
    try:
        settings = resolve(str(found.path / "config.toml")).settings
    except InputError as error:
        unusable = error.what
    changed = changed_settings(settings) if settings else {}
    files = checkpoints_of(found)
    steps = next_steps(found, runs_dir)
    console.json(
        {
            **found.document(),
            "settings": settings.table() if settings else {},
            "changed": changed,
            "checkpoints": files,
            "next": steps,
        }
    )

    rows: dict[str, Any] = {
        "run": found.name,
        "folder": str(found.path),
        "state": styled(found.state),
        "reason": status.reason,
        "process": status.pid and f"{status.pid} on {status.host}",
        "epochs": epochs(found) if status.step is None else f"{epochs(found)}, {status.step:,} steps",
        "best": status.best_epoch and f"{found.monitor} {cell(status.best_value, '.4f')} in {status.best_epoch}",
        "started": status.started,
        "last active": status.time and f"{status.time}, {ago(found.age)}",
        "seconds": ", ".join(f"{part} {value:.1f}" for part, value in status.seconds.items()),
        "memory": status.peak_memory_bytes and f"at most {size(status.peak_memory_bytes)}",
        "size": size(found.bytes),
    }
    told = [(name, one_line(value) if isinstance(value, str) else value) for name, value in rows.items() if value]
    console.table("", ("", ""), told, left=(0, 1), header=False)
    if unusable:
        console.result(one_line(unusable))
    elif changed:
        values = [(key, *("-" if one is None else json.dumps(one) for one in pair)) for key, pair in changed.items()]
        console.table("", ("setting", "value", "default"), values, left=(0, 1, 2))
    else:
        console.result("all settings are the defaults")
    if files:
        lines = [(one_line(file["name"]), cell(file["epoch"], "d"), size(file["bytes"])) for file in files]
        console.table("", ("checkpoint", "epoch", "size"), lines)
    console.lines(f"next: {one_line(step)}" for step in steps)


def changed_settings(settings: Settings) -> dict[str, tuple[Any, Any]]:
    """By dotted key, the settings that are not the default of their model and schedule, with the default."""
    table = settings.table()
    own = {name: {"name": table[name]["name"]} for name in ("model", "schedule")}
    standard = Settings()
    default = resolve(None, Layer("defaults", {**own, "data": table["data"]})).settings.table()
    default["data"] = standard.table()["data"]
    default["model"]["name"], default["schedule"]["name"] = standard.model.name, standard.schedule.name
    known = dict(leaves(default))
    return {key: (value, known.get(key)) for key, value in leaves(table) if known.get(key) != value}


def checkpoints_of(run: Run) -> list[dict[str, Any]]:
    """Name, epoch and bytes of each checkpoint; the epoch by the name or by the run's status."""
    status, found = run.status, []
    known = {"last.pth": status.epoch, "vae_final.pth": status.epoch}
    known |= dict.fromkeys(("vae_best.pth", "encoder.pth", "decoder.pth"), status.best_epoch)
    for path in pth_files(run.path):
        number = re.search(r"epoch_(\d{1,9})", path.name)
        epoch = int(number[1]) if number else known.get(path.name)
        found.append({"name": path.name, "epoch": epoch, "bytes": path.lstat().st_size})
    return found


def pth_files(path: Path) -> list[Path]:
    """The checkpoints in a run folder: the last, the best, the final, the others by name, parts of models."""
    order = ("last.pth", "vae_best.pth", "vae_final.pth")

    def place(file: Path) -> tuple[bool, int, int, str]:
        part = file.name.startswith(("encoder", "decoder"))
        return part, order.index(file.name) if file.name in order else len(order), len(file.name), file.name

    return sorted((path / "checkpoints").glob("[!.]*.pth"), key=place)


def next_steps(run: Run, runs_dir: Path) -> list[str]:
    """The commands to continue with a run."""
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
    """What was found in a run: `problems` are damage, `notes` are not.

    `whole`: readable checkpoints by name, with the epoch; `resumable`: those that a run can be resumed from, with the
    step; `broken`: the others, with the reason.
    """

    run: Run
    broken: dict[str, str] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)
    resumable: dict[str, int] = field(default_factory=dict)
    parts: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.broken and not self.problems

    def document(self) -> dict[str, Any]:
        """The findings as JSON."""
        own = {key: getattr(self, key) for key in ("ok", "whole", "broken", "problems", "notes")}
        run = {"name": self.run.name, "path": str(self.run.path), "state": self.run.state}
        return {**run, **own, "go_on": self.go_on()}

    def go_on(self) -> str | None:
        """The command to continue the run with, from what is whole of it; None if it needs none."""
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
    """Verify the files of one run or of all; nothing is changed. Exit code 1 if something is damaged.

    Every checkpoint is compared with its digest, config.toml and the epochs in metrics.jsonl with last.pth. The steps
    in metrics.jsonl have no checksum.
    """
    from arcvae_cli import runs as folders
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    paths = folders.all_runs(runs_dir) if run is None else [folders.find(run, runs_dir)]
    checked = []
    with console.counting("verifying") as tell:
        for done, path in enumerate(paths):
            tell(done, len(paths))
            checked.append(check(path))
    console.json({"runs": [one.document() for one in checked]})
    if not checked:
        console.note(f"no run in {runs_dir}/ yet: start one with `arcvae train`")
        return
    rows: list[list[str | Text]] = []
    for one in checked:
        count = len(one.whole) + one.parts
        shown = f"{count} whole" if not one.broken else f"{count} of {count + len(one.broken)} whole"
        verdict = styled("whole" if one.ok else "damaged")
        rows.append([one_line(one.run.name), styled(one.run.state), shown, verdict])
    console.table("", ("run", "state", "checkpoints", "verdict"), rows, left=(0, 1, 2, 3))
    for one in checked:
        name = one.run.name
        texts = [*(f"{file}: {why}" for file, why in one.broken.items()), *one.problems]
        if not one.ok and one.whole:
            texts.append("whole: " + ", ".join(f"{file} (epoch {epoch})" for file, epoch in one.whole.items()))
        if (command := one.go_on()) is not None:
            texts.append(f"{'continue' if one.resumable else 'start again'} with `{command}`")
        console.lines(one_line(f"{name}: {text}") for text in texts)
        for text in one.notes:
            console.note(one_line(f"{name}: {text}"))
    damaged = [one.run.name for one in checked if not one.ok]
    if damaged:
        raise ArcvaeError(f"{len(damaged)} of {len(checked)} runs damaged: {', '.join(damaged[:5])}")


def check(path: Path) -> Checked:
    """Read all that a run consists of."""
    from arcvae_cli import runs as folders

    found = Checked(folders.state_of(path))
    if found.run.state == "damaged":
        found.problems.append("status.json: cannot be read")
    if found.run.state == "killed":
        found.notes.append("its process was killed")
    if found.run.state != "running":
        found.notes += [f"{file.name}: a temporary file, removed on resumption" for file in folders.temporaries(path)]
    last = check_checkpoints(found)
    check_settings(found, last)
    if last and (found.run.state != "running"):  # else it may be written to
        check_metrics(found, last)
    return found


def check_checkpoints(found: Checked) -> dict[str, Any]:
    """Read every checkpoint; the values of the last, or nothing."""
    from arcvae_cli.commands.reading import importing

    with importing():
        from arcvae_cli import checkpoints
    last: dict[str, Any] = {}
    files = pth_files(found.run.path)
    for path in files:
        try:
            values = checkpoints.read(path)
        except InputError as error:
            if path.exists() or path.is_symlink():  # else one of the best, replaced while the run goes on
                found.broken[path.name] = error.what.removeprefix(f"{path}: ")
            continue
        if "model_state_dict" not in values:
            found.parts += 1
            continue
        found.whole[path.name] = values["epoch"]
        if values["format_version"] >= checkpoints.RESUMABLE and "history" in values:
            found.resumable[path.name] = values["step"]
        if path.name == "last.pth":
            last = values
    expected = ["last.pth"] if found.run.status.step else []
    if found.run.state == "finished":
        expected += [checkpoints.BEST, "vae_final.pth"]
    found.problems += [f"{name}: missing" for name in expected if name not in {path.name for path in files}]
    return last


def check_settings(found: Checked, last: dict[str, Any]) -> None:
    """Compare `config.toml` with the settings in the last checkpoint."""
    config = found.run.path / "config.toml"
    try:
        settings = resolve(str(config)).settings
    except InputError as error:
        found.problems.append(f"config.toml: {error.what.removeprefix(f'{config}: ')}")
        return
    if last:
        from arcvae_cli.checkpoints import read_settings

        kept = read_settings(Path("last.pth"), last)
        changed = [key for key, *_ in differences(kept, settings) if not key.startswith(MAY_CHANGE)]
        if changed:
            found.problems.append(f"config.toml: not the settings of last.pth: {', '.join(changed[:5])}")


def check_metrics(found: Checked, last: dict[str, Any]) -> None:
    """Compare the epochs in `metrics.jsonl` with those in the last checkpoint."""
    from arcvae_cli.records import EpochRecord

    kept = [EpochRecord.of(json.loads(text)).metrics() for text in last.get("history", "").splitlines()]
    try:
        with open_regular(found.run.path / "metrics.jsonl") as file:
            text = file.read().decode()
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        written = [line for line in lines if line["kind"] == "epoch"][: len(kept)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        found.problems.append(f"metrics.jsonl: cannot be read ({error})")
        return
    for record, line in zip(kept, written, strict=False):
        if any(key != "kind" and record.get(key) != value for key, value in line.items()):
            found.problems.append(f"metrics.jsonl: epoch {record['epoch']} is not that of last.pth")
            return
    short = [f"metrics.jsonl: {len(written)} of {len(kept)} epochs"] if len(written) < len(kept) else []
    short += ["metrics.jsonl: its last line is incomplete"] if text and not text.endswith("\n") else []
    if found.run.state == "finished":
        found.problems += short
    else:
        found.notes += [f"{text}, completed on resumption" for text in short]
