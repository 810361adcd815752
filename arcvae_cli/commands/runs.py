"""`arcvae runs`: list runs, show one, and verify their files."""

import json
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from arcvae_cli import folders
from arcvae_cli.commands.options import JsonOption, QuietOption, complete_runs
from arcvae_cli.commands.reading import importing
from arcvae_cli.console import Console, cell, styled
from arcvae_cli.errors import ArcvaeError, InputError, one_line
from arcvae_cli.files import is_file, read_lines, size
from arcvae_cli.presets import resolve
from arcvae_cli.settings import Settings

app = typer.Typer(add_completion=False, help="List, show and verify runs.")

RUNS = Path("runs")
RunsDir = Annotated[Path, typer.Option(help="folder of the runs")]
argument = partial(typer.Argument, help="a run's name, its folder, or latest", autocompletion=complete_runs)
RunName = Annotated[str, argument()]
OptionalRun = Annotated[str | None, argument(show_default="all")]


@app.command("list")
def list_runs(runs_dir: RunsDir = RUNS, quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """List runs, the last active first."""
    console = Console(quiet=quiet, as_json=as_json)
    found = [folders.describe(path) for path in folders.all_runs(runs_dir)]
    console.json({"runs": found})
    if not found:
        console.note(f"no run in {runs_dir}/ yet: start one with `arcvae train`")
        return
    rows: list[list[Any]] = []
    for run in found:
        epochs = f"{cell(run['epoch'], 'd')}/{cell(run['epochs'], 'd')}"
        best = "-" if run["best_value"] is None else f"{run['best_value']:.4f} in {run['best_epoch']}"
        active = f"{run['age'] / 3600:,.1f} h ago"
        rows.append([one_line(run["name"]), styled(run["state"]), epochs, best, size(run["bytes"]), active])
    console.table("", ("run", "state", "epochs", "best, in epoch", "size", "updated"), rows, left=(0, 1))


@app.command()
def show(
    run: RunName = "latest", runs_dir: RunsDir = RUNS, quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """Show a run: its state, its settings, its checkpoints, and the commands to continue with."""
    console = Console(quiet=quiet, as_json=as_json)
    path = folders.find(run, runs_dir)
    found = folders.describe(path)
    table, changed, problems = {}, {}, []
    try:
        table = resolve(str(path / "config.toml")).settings.table()
        pairs = folders.differences(table, Settings().table())
        changed = {key: pair for key, pair in pairs.items() if pair[0] is not None}
    except InputError as error:
        problems.append(error.what)
    kept: list[dict[str, Any]] = [{"name": file.name, "bytes": file.lstat().st_size} for file in pth_files(path)]
    evaluate = ["evaluate --checkpoint", "sample --checkpoint"]
    known = {"running": [], "finished": evaluate, "corrupt": ["runs verify"]}
    called = path.name if runs_dir == RUNS == path.parent else shlex.quote(str(path))
    steps = [f"arcvae {what} {called}" for what in known.get(found["state"], ["train --resume"])]
    console.json({**found, "settings": table, "changed": changed, "checkpoints": kept, "next": steps})

    facts = {key: value for key, value in found.items() if value not in (None, {})}
    facts |= {key: size(value) for key, value in facts.items() if key.endswith("bytes")}
    facts |= {key: f"{value:.6g}" for key, value in facts.items() if isinstance(value, float)}
    rows = [(key, styled(value) if key == "state" else one_line(str(value))) for key, value in facts.items()]
    console.table("", ("", ""), rows, left=(0, 1), header=False)
    values = [(key, *("-" if one is None else json.dumps(one) for one in pair)) for key, pair in changed.items()]
    console.table("", ("setting", "value", "default"), values, left=(0, 1, 2))
    console.lines(map(one_line, problems))
    console.table("", ("checkpoint", "size"), [(one_line(file["name"]), size(file["bytes"])) for file in kept])
    console.lines(f"next: {one_line(step)}" for step in steps)


def pth_files(path: Path) -> list[Path]:
    """The checkpoints in a run folder: `last.pth`, then numbered ones in their order."""
    return sorted((path / "checkpoints").glob("[!.]*.pth"), key=lambda file: (len(file.name), file.name))


@app.command()
def verify(
    run: OptionalRun = None, runs_dir: RunsDir = RUNS, quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """Verify the files of one run or of all; nothing is changed. Exit code 1 if something is corrupt."""
    console = Console(quiet=quiet, as_json=as_json)
    paths = folders.all_runs(runs_dir) if run is None else [folders.find(run, runs_dir)]
    checked = []
    with console.counting("verifying") as tell:
        for done, path in enumerate(paths):
            tell(done, len(paths))
            checked.append(check(path))
    console.json({"runs": checked})
    rows: list[list[Any]] = []
    for one in checked:
        found = [*(f"{file}: {why}" for file, why in one["broken"].items()), *one["problems"]]
        found += [] if one["go_on"] is None else [f"continue with `{one['go_on']}`"]
        verdict = styled("valid" if one["ok"] else "corrupt")
        rows.append([one_line(one["name"]), styled(one["state"]), verdict, "\n".join(map(one_line, found))])
    console.table("", ("run", "state", "verdict", "found"), rows, left=(0, 1, 2, 3))
    if corrupt := [one["name"] for one in checked if not one["ok"]]:
        raise ArcvaeError(f"{len(corrupt)} of {len(checked)} runs corrupt: {', '.join(corrupt[:5])}")


def check(path: Path) -> dict[str, Any]:
    """What is found in the files of a run. `whole`: epochs of valid checkpoints; `broken`: why others are not."""
    with importing():
        from arcvae_cli import checkpoints
        from arcvae_cli.records import EpochRecord, renamed
    run, config, log = folders.describe(path), path / "config.toml", path / "metrics.jsonl"
    state, whole, steps, broken = run["state"], {}, {}, {}
    last: dict[str, Any] = {}
    for file in pth_files(path):
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
            last = values if file.name == "last.pth" else last
    expected = ["last.pth"] if run["step"] else []
    expected += [checkpoints.BEST, "vae_final.pth"] if state == "finished" else []
    problems = ["status.json: cannot be read"] if state == "corrupt" else []
    problems += [f"{name}: missing" for name in expected if not is_file(path / "checkpoints" / name)]
    try:
        settings = resolve(str(config)).settings
        kept = checkpoints.read_settings(path / "checkpoints" / "last.pth", last) if last else settings
        changed = folders.differences(kept.table(), settings.table())
        if wrong := [key for key in changed if not key.startswith(folders.MAY_CHANGE)]:
            problems.append(f"config.toml: not the settings of last.pth: {', '.join(wrong[:5])}")
    except InputError as error:
        problems.append(f"config.toml: {error.what.removeprefix(f'{config}: ')}")
    records = [EpochRecord.of(json.loads(text)).metrics() for text in last.get("history", "").splitlines()]
    logged = [renamed(line) for line in (read_lines(log) if is_file(log) else []) if line.pop("kind") == "epoch"]
    if logged[: len(records)] != records:
        problems.append("metrics.jsonl: its epochs are not those of last.pth")

    ok = not broken and not problems
    resumed = path if "last.pth" in steps else path / "checkpoints" / max(steps, key=lambda n: steps[n], default="")
    how = f"--resume {shlex.quote(str(resumed))}" if steps else f"--preset {shlex.quote(str(config))}"
    go_on = None if ok and state in ("running", "finished") else f"arcvae train {how}"
    place = {"name": path.name, "path": str(path), "state": state, "ok": ok}
    return {**place, "whole": whole, "broken": broken, "problems": problems, "go_on": go_on}
