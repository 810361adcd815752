"""`arcvae runs`: list runs, show one, and verify their files."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcvae_cli import runs as folders
from arcvae_cli.commands.options import JsonOption, QuietOption, complete_runs
from arcvae_cli.commands.reading import importing
from arcvae_cli.console import Console, cell
from arcvae_cli.errors import ArcvaeError, InputError, one_line
from arcvae_cli.files import size
from arcvae_cli.presets import Layer, resolve
from arcvae_cli.settings import Settings

if TYPE_CHECKING:
    from rich.text import Text

app = typer.Typer(add_completion=False, help="List, show and verify runs.")

RUNS = Path("runs")
RunsDir = Annotated[Path, typer.Option(help="folder of the runs")]
RunName = Annotated[str, typer.Argument(help="a run's name, its folder, or latest", autocompletion=complete_runs)]
RunNames = Annotated[
    str | None,
    typer.Argument(help="a run's name, its folder, or latest", show_default="all", autocompletion=complete_runs),
]
STYLES = {"finished": "green", "running": "cyan", "interrupted": "yellow", "killed": "yellow", "valid": "green"}
"""Of states and verdicts; all others are red."""


@app.command("list")
def list_runs(runs_dir: RunsDir = RUNS, quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """List runs, the last active first."""
    console = Console(quiet=quiet, as_json=as_json)
    found = [folders.describe(path) for path in folders.all_runs(runs_dir)]
    console.json({"runs": found})
    if not found:
        console.note(f"no run in {runs_dir}/ yet: start one with `arcvae train`")
        return
    rows: list[list[str | Text]] = []
    for run in found:
        epochs = f"{cell(run['epoch'], 'd')}/{cell(run['epochs'], 'd')}"
        best = "-" if run["best_value"] is None else f"{run['best_value']:.4f} in {run['best_epoch']}"
        active = f"{run['age'] / 3600:,.1f} h ago"
        rows.append([one_line(run["name"]), styled(run["state"]), epochs, best, size(run["bytes"]), active])
    console.table("", ("run", "state", "epochs", "best, in epoch", "size", "updated"), rows, left=(0, 1))


def styled(state: str) -> Text:
    """A state or a verdict in its colour."""
    from rich.text import Text

    return Text(state, STYLES.get(state, "red"))


@app.command()
def show(
    run: RunName = "latest", runs_dir: RunsDir = RUNS, quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """Show a run: its state, its settings, its checkpoints, and the commands to continue with."""
    console = Console(quiet=quiet, as_json=as_json)
    path = folders.find(run, runs_dir)
    found = folders.describe(path)
    table: dict[str, Any] = {}
    changed: dict[str, tuple[Any, Any]] = {}
    summary = "all settings are the defaults"
    try:
        settings = resolve(str(path / "config.toml")).settings
        table, changed = settings.table(), changed_settings(settings)
    except InputError as error:
        summary = error.what
    files = checkpoints_of(path, found)
    steps = next_steps(path, found["state"], runs_dir)
    console.json({**found, "settings": table, "changed": changed, "checkpoints": files, "next": steps})

    facts = {key: value for key, value in found.items() if value not in (None, {})}
    facts |= {key: size(value) for key, value in facts.items() if key.endswith("bytes")}
    facts |= {key: f"{value:.6g}" for key, value in facts.items() if isinstance(value, float)}
    rows = [(key, styled(value) if key == "state" else one_line(str(value))) for key, value in facts.items()]
    console.table("", ("", ""), rows, left=(0, 1), header=False)
    if changed:
        values = [(key, *("-" if one is None else json.dumps(one) for one in pair)) for key, pair in changed.items()]
        console.table("", ("setting", "value", "default"), values, left=(0, 1, 2))
    else:
        console.result(one_line(summary))
    if files:
        lines = [(one_line(file["name"]), cell(file["epoch"], "d"), size(file["bytes"])) for file in files]
        console.table("", ("checkpoint", "epoch", "size"), lines)
    console.lines(f"next: {one_line(step)}" for step in steps)


def changed_settings(settings: Settings) -> dict[str, tuple[Any, Any]]:
    """By dotted key, the settings that are not the default of their model and schedule, with the default."""
    table, standard = settings.table(), Settings().table()
    own = {name: {"name": table[name]["name"]} for name in ("model", "schedule")}
    default = resolve(None, Layer("defaults", {**own, "data": table["data"]})).settings.table()
    default["data"] = standard["data"]
    for name in own:
        default[name]["name"] = standard[name]["name"]
    return {key: pair for key, pair in folders.differences(table, default).items() if pair[0] is not None}


def checkpoints_of(path: Path, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, epoch and bytes of each checkpoint; the epoch by the name or by the run's status."""
    known = {"last.pth": run["epoch"], "vae_final.pth": run["epoch"]}
    known |= dict.fromkeys(("vae_best.pth", "encoder.pth", "decoder.pth"), run["best_epoch"])
    found = []
    for file in pth_files(path):
        number = re.search(r"epoch_(\d{1,9})", file.name)
        epoch = int(number[1]) if number else known.get(file.name)
        found.append({"name": file.name, "epoch": epoch, "bytes": file.lstat().st_size})
    return found


def pth_files(path: Path) -> list[Path]:
    """The checkpoints in a run folder: the last, the best, the final, the others by name, parts of models."""
    first = ("last.pth", "vae_best.pth", "vae_final.pth")
    files = sorted((path / "checkpoints").glob("[!.]*.pth"), key=lambda file: (len(file.name), file.name))
    return sorted(files, key=lambda file: (file.name.startswith(("encoder", "decoder")), file.name not in first))


def next_steps(path: Path, state: str, runs_dir: Path) -> list[str]:
    """The commands to continue with a run."""
    called = path.name if runs_dir == RUNS == path.parent else shlex.quote(str(path))
    known = {
        "running": [],
        "finished": [f"arcvae {what} --checkpoint {called}" for what in ("evaluate", "sample")],
        "corrupt": [f"arcvae runs verify {called}"],
    }
    return known.get(state, [f"arcvae train --resume {called}"])


@app.command()
def verify(
    run: RunNames = None, runs_dir: RunsDir = RUNS, quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """Verify the files of one run or of all; nothing is changed. Exit code 1 if something is corrupt.

    Checkpoints are compared with their digests, config.toml with last.pth.
    """
    console = Console(quiet=quiet, as_json=as_json)
    paths = folders.all_runs(runs_dir) if run is None else [folders.find(run, runs_dir)]
    checked = []
    with console.counting("verifying") as tell:
        for done, path in enumerate(paths):
            tell(done, len(paths))
            checked.append(check(path))
    console.json({"runs": checked})
    if not checked:
        console.note(f"no run in {runs_dir}/ yet: start one with `arcvae train`")
        return
    rows: list[list[str | Text]] = []
    for one in checked:
        found = [*(f"{file}: {why}" for file, why in one["broken"].items()), *one["problems"], *one["notes"]]
        found += [] if one["go_on"] is None else [f"continue with `{one['go_on']}`"]
        verdict = styled("valid" if one["ok"] else "corrupt")
        rows.append([one_line(one["name"]), styled(one["state"]), verdict, "\n".join(map(one_line, found))])
    console.table("", ("run", "state", "verdict", "found"), rows, left=(0, 1, 2, 3))
    if corrupt := [one["name"] for one in checked if not one["ok"]]:
        raise ArcvaeError(f"{len(corrupt)} of {len(checked)} runs corrupt: {', '.join(corrupt[:5])}")


def check(path: Path) -> dict[str, Any]:
    """Read all that a run consists of, as JSON.

    `whole`: epochs of valid checkpoints; `broken`: reasons for the others; `problems`: other damage; `notes`: what is
    not damage; `go_on`: the command to continue the run with.
    """
    with importing():
        from arcvae_cli import checkpoints
    run = folders.describe(path)
    state, files = run["state"], pth_files(path)
    whole, steps, broken = {}, {}, {}
    last: dict[str, Any] = {}
    for file in files:
        try:
            values = checkpoints.read(file)
        except InputError as error:
            if os.path.lexists(file):  # else one of the best, replaced while the run is being trained
                broken[file.name] = error.what.removeprefix(f"{file}: ")
            continue
        if "model_state_dict" in values:
            whole[file.name] = values["epoch"]
        if checkpoints.resumable(values):
            steps[file.name] = values["step"]
        if file.name == "last.pth" and checkpoints.resumable(values):
            last = values
    expected = ["last.pth"] if run["step"] else []
    expected += [checkpoints.BEST, "vae_final.pth"] if state == "finished" else []
    problems = ["status.json: cannot be read"] if state == "corrupt" else []
    problems += [f"{name}: missing" for name in expected if name not in {file.name for file in files}]
    problems += config_problems(path, last)
    left = [] if state == "running" else folders.temporaries(path)
    notes = [f"{file.name}: a temporary file, removed on resumption" for file in left]

    ok = not broken and not problems
    resumed = path if "last.pth" in steps else path / "checkpoints" / max(steps, key=lambda n: steps[n], default="")
    how = f"--resume {shlex.quote(str(resumed))}" if steps else f"--preset {shlex.quote(str(path / 'config.toml'))}"
    go_on = None if ok and state in ("running", "finished") else f"arcvae train {how}"
    found = {"ok": ok, "whole": whole, "broken": broken, "problems": problems, "notes": notes, "go_on": go_on}
    return {"name": path.name, "path": str(path), "state": state, **found}


def config_problems(path: Path, last: Mapping[str, Any]) -> Iterator[str]:
    """What differs between `config.toml` and the settings in the last checkpoint."""
    from arcvae_cli.checkpoints import read_settings

    config = path / "config.toml"
    try:
        settings = resolve(str(config)).settings
        kept = read_settings(path / "checkpoints" / "last.pth", last) if last else settings
    except InputError as error:
        yield f"config.toml: {error.what.removeprefix(f'{config}: ')}"
        return
    changed = folders.differences(kept.table(), settings.table())
    if wrong := [key for key in changed if not key.startswith(folders.MAY_CHANGE)]:
        yield f"config.toml: not the settings of last.pth: {', '.join(wrong[:5])}"
