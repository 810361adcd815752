"""`--resume`: which run to resume, and which settings may change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    *("train.device", "train.engine", "train.save_minutes", "checkpoint.", "log."),
)
"""Settings, or whole tables of them, that may differ when a run is resumed."""


@dataclass(frozen=True)
class Earlier:
    """A run to resume. `values`: of its checkpoint at `path`; None if it died before the first one."""

    folder: runs.RunFolder
    path: Path
    values: Mapping[str, Any] | None

    def report(self, settings: Settings) -> dict[str, Any] | None:
        """The `metrics.json` of a run with nothing left to do: trained and evaluated, and not made longer."""
        status = runs.read_status(self.folder.path)
        if self.values is None or status is None or status.state != "finished" or not status.judged:
            return None
        if self.values["step"] != status.step or {key for key, *_ in differences(self.settings(), settings)} & LENGTH:
            return None
        with suppress(OSError, ValueError):
            return dict(json.loads((self.folder.path / "metrics.json").read_bytes()))
        return None  # evaluated again

    def settings(self) -> Settings:
        """The settings that the run has been trained with."""
        if self.values is None:
            return resolve(str(self.folder.path / "config.toml")).settings
        from arcvae_cli.checkpoints import read_settings

        return read_settings(self.path, self.values)

    def check(self, settings: Settings) -> None:
        """InputError if a setting differs that may not."""
        changed = [
            f"{key} was {json.dumps(old)}, now {json.dumps(new)}"
            for key, old, new in differences(self.settings(), settings)
            if not key.startswith(MAY_CHANGE)
        ]
        if self.values is not None and settings.train.epochs < self.values["epoch"]:
            changed.append(f"train.epochs is {settings.train.epochs}, and epoch {self.values['epoch']} has begun")
        if changed:
            raise InputError(
                f"--resume {self.folder.name}: settings differ from those of the run: {'; '.join(changed[:5])}",
                f"remove these flags, and restore {self.folder.path / 'config.toml'} if it was edited; more epochs, "
                "logging and the device may change",
            )


def differences(old: Settings, new: Settings) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys whose values differ, with both values; None where a key is not set."""
    before, after = dict(leaves(old.table())), dict(leaves(new.table()))
    for key in dict.fromkeys((*before, *after)):
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def earlier_folder(argument: str, base: Path) -> tuple[Path, Path | None]:
    """The run folder that `--resume` means, and the checkpoint if a file was given. InputError if there is none."""
    file = expanded(Path(argument)).resolve()
    if is_file(file) and is_file(file.parent.parent / "config.toml"):
        return file.parent.parent, file
    folder = runs.find(argument, base)
    if not is_file(folder / "config.toml"):
        raise InputError(f"{folder}: no config.toml in it", "restore it, or start a new run")
    return folder, None


def go_on(folder: Path, file: Path | None) -> Earlier:
    """The run in a folder, locked by this process. InputError if its checkpoint is unusable."""
    from arcvae_cli import checkpoints

    held = runs.resume(folder)
    last = held.checkpoints / "last.pth"
    path = file or last
    if file is None and not any(held.checkpoints.iterdir()):
        return Earlier(held, path, None)
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
        raise InputError(
            f"{path}: an older checkpoint, of step {values['step']}; the run is at step {later}",
            f"to discard the later steps, remove {last} first",
        )
    return Earlier(held, path, values)
