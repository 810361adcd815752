"""`--resume`: which run to resume, and which settings may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from arcvae_cli import runs
from arcvae_cli.commands.presets import leaves
from arcvae_cli.errors import InputError
from arcvae_cli.files import expanded, is_file
from arcvae_cli.presets import resolve
from arcvae_cli.settings import Settings

LENGTH = {"train.epochs", "train.early_stopping", "train.patience"}
MAY_CHANGE = (
    *LENGTH,  # only when a run ends
    *(f"data.{key}" for key in ("path", "input", "prod", "masks", "grammar")),  # the checkpoint has a fingerprint
    *("train.device", "train.engine", "train.threads", "train.save_minutes", "checkpoint.", "log."),
)
"""Settings, or whole tables of them, that may differ when a run is resumed."""


class Earlier(NamedTuple):
    """A run to resume, locked by this process.

    `values`: of its checkpoint at `path`; None if it died before the first one. `report`: the `metrics.json` of a run
    with nothing left to do.
    """

    folder: runs.RunFolder
    path: Path
    values: Mapping[str, Any] | None
    report: dict[str, Any] | None


def differences(old: Settings, new: Settings) -> dict[str, tuple[Any, Any]]:
    """By dotted key, the values that differ; None where a key is not set."""
    before, after = dict(leaves(old.table())), dict(leaves(new.table()))
    pairs = {key: (before.get(key), after.get(key)) for key in before | after}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


def earlier_folder(argument: str, base: Path) -> tuple[Path, Path | None]:
    """The run folder that `--resume` means, and the checkpoint if a file was given. InputError if there is none."""
    file = expanded(Path(argument)).resolve()
    if is_file(file) and is_file(file.parent.parent / "config.toml"):
        return file.parent.parent, file
    folder = runs.find(argument, base)
    if not is_file(folder / "config.toml"):
        raise InputError(f"{folder}: no config.toml in it", "restore it, or start a new run")
    return folder, None


def go_on(folder: Path, file: Path | None, settings: Settings) -> Earlier:
    """The run in a folder. InputError if its checkpoint is unusable, or a setting differs that may not."""
    from arcvae_cli import checkpoints

    held = runs.resume(folder)
    config, last = held.path / "config.toml", held.checkpoints / "last.pth"
    path = file or last
    values = None
    if file is not None or any(held.checkpoints.iterdir()):
        try:
            values = checkpoints.read(path)
            if not checkpoints.resumable(values):
                raise InputError(f"{path}: part of a model, or of a former format: cannot be resumed from")
        except InputError as error:
            fix = f"`arcvae runs verify {held.shell}` finds a checkpoint to resume from"
            raise InputError(error.what, fix) from error
        later = 0
        with suppress(InputError):
            later = checkpoints.read(last).get("step", 0) if path != last else 0
        if later > values["step"]:
            what = f"{path}: an older checkpoint, of step {values['step']}; the run is at step {later}"
            raise InputError(what, f"to discard the later steps, remove {last} first")
    trained = resolve(str(config)).settings if values is None else checkpoints.read_settings(path, values)
    changed = differences(trained, settings)
    wrong = [
        f"{key} was {json.dumps(old)}, now {json.dumps(new)}"
        for key, (old, new) in changed.items()
        if not key.startswith(MAY_CHANGE)
    ]
    if values is not None and settings.train.epochs < values["epoch"]:
        wrong.append(f"train.epochs is {settings.train.epochs}, and epoch {values['epoch']} has begun")
    if wrong:
        what = f"--resume {held.name}: settings differ from those of the run: {'; '.join(wrong[:5])}"
        fix = (
            f"remove these flags, and restore {config} if it was edited; more epochs, logging and the device may change"
        )
        raise InputError(what, fix)
    status, report = runs.read_status(held.path) or runs.Status(state="failed"), None
    judged = status.state == "finished" and status.judged
    if judged and values is not None and values["step"] == status.step and not LENGTH & changed.keys():
        with suppress(OSError, ValueError):  # else it is evaluated again
            report = dict(json.loads((held.path / "metrics.json").read_bytes()))
    return Earlier(held, path, values, report)
