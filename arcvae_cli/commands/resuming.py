"""`--resume`: which run to resume, and which settings may change."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcvae_cli.commands.presets import leaves
from arcvae_cli.errors import InputError
from arcvae_cli.files import expanded, is_file
from arcvae_cli.presets import Resolved, resolve
from arcvae_cli.settings import Settings

if TYPE_CHECKING:
    from arcvae_cli.runs import RunFolder

LENGTH = ("train.epochs", "train.early_stopping", "train.patience")
"""Settings that only say when a run ends."""

PLACES = tuple(f"data.{key}" for key in ("path", "input", "prod", "masks", "grammar"))
"""Settings that say where the data are; the checkpoint knows their fingerprint."""

MAY_CHANGE = (*LENGTH, *PLACES, "train.device", "train.engine", "train.save_minutes", "checkpoint.", "log.")
"""Settings, or whole tables of them, that may differ when a run is resumed."""


@dataclass(frozen=True)
class Earlier:
    """A run to resume. `values`: of its checkpoint at `path`; None if it died before the first one."""

    folder: RunFolder
    path: Path
    values: Mapping[str, Any] | None

    def over(self, settings: Settings) -> bool:
        """Whether nothing is left to do: trained and evaluated, and not made longer."""
        from arcvae_cli.runs import read_status

        status = read_status(self.folder.path)
        if self.values is None or status is None or status.state != "finished" or not status.judged:
            return False
        changed = {key for key, *_ in differences(self.settings(), settings)}
        return self.values["step"] == status.step and not changed & set(LENGTH)

    def judgement(self) -> dict[str, Any]:
        """The `metrics.json` of the run's last evaluation. InputError if it cannot be read."""
        file = self.folder.path / "metrics.json"
        try:
            return dict(json.loads(file.read_bytes()))
        except (OSError, ValueError) as error:
            fix = f"`arcvae evaluate --checkpoint {self.folder.shell}` writes it again"
            raise InputError(f"{file}: cannot be read", fix) from error

    def settings(self) -> Settings:
        """The settings that the run has been trained with."""
        if self.values is None:
            return resolve(str(self.folder.path / "config.toml")).settings
        from arcvae_cli.checkpoints import read_settings

        return read_settings(self.path, self.values)

    def check(self, resolved: Resolved) -> None:
        """InputError if a setting differs that may not."""
        settings, config = resolved.settings, self.folder.path / "config.toml"
        refused = [
            (f"{key} was {shown(old)}, now {shown(new)}", resolved.origins.get(key, "default"))
            for key, old, new in differences(self.settings(), settings)
            if not key.startswith(MAY_CHANGE)
        ]
        if refused:
            listed = "; ".join(f"{text} ({origin})" for text, origin in refused[:5])
            more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
            edited = any(Path(origin).name == config.name for _, origin in refused)
            raise InputError(
                f"--resume {self.folder.name}: settings differ from those of the run: {listed}{more}",
                f"restore the former values in {config}, which was edited"
                if edited
                else "leave them out: the number of epochs, logging and the device may change; or start a new run",
            )
        epochs = self.values["epoch"] if self.values is not None else 0
        if settings.train.epochs < epochs:
            raise InputError(
                f"train.epochs: {settings.train.epochs}, and the run {self.folder.name} is in epoch {epochs} already",
                f"give {epochs} or more",
            )


def differences(old: Settings, new: Settings) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys whose values differ, with both values; None where a key is not set."""
    before, after = dict(leaves(old.table())), dict(leaves(new.table()))
    for key in dict.fromkeys((*before, *after)):
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def shown(value: Any) -> str:
    """A value as TOML writes it."""
    return "not set" if value is None else json.dumps(value)


def earlier_folder(argument: str, runs: Path) -> tuple[Path, Path | None]:
    """The run folder that `--resume` means, and the checkpoint if a file was given. InputError if there is none."""
    from arcvae_cli.runs import find

    file = expanded(Path(argument)).resolve()
    try:
        folder = find(argument, runs)
    except InputError:
        if not is_file(file) or not is_file(file.parent.parent / "config.toml"):
            raise
        return file.parent.parent, file
    if not is_file(folder / "config.toml"):
        raise InputError(f"{folder}: config.toml is missing", "restore it, or start a new run")
    return folder, None


def go_on(folder: Path, file: Path | None) -> Earlier:
    """The run in a folder, locked by this process. InputError if its checkpoint is unusable."""
    from arcvae_cli import checkpoints, runs

    held = runs.resume(folder)
    last = held.checkpoints / "last.pth"
    path = file or last
    if file is None and not any(held.checkpoints.iterdir()):
        return Earlier(held, path, None)
    try:
        values = checkpoints.read(path)
    except InputError as error:
        others = [*held.checkpoints.glob("vae_*.pth"), *held.checkpoints.glob("best-*.pth")]
        others.sort(key=lambda other: other.lstat().st_mtime, reverse=True)
        other = next((other for other in others if path == last and readable(other)), None)
        hint = f"resume from an older one: --resume {shlex.quote(str(other))}" if other else error.fix
        raise InputError(error.what, hint) from error
    if values["format_version"] < checkpoints.RESUMABLE or "history" not in values:
        raise InputError(
            f"{path}: part of a model, or format {values['format_version']} of an older arcvae: too little to resume",
            f"start a new run with `--preset {held.shell}/config.toml`; evaluate, sample and interpolate read it",
        )
    if path != last and (later := readable(last).get("step", 0)) > values["step"]:
        raise InputError(
            f"{path}: an older checkpoint, of step {values['step']}; the run is at step {later}",
            f"to discard the later steps, remove {last} first",
        )
    return Earlier(held, path, values)


def readable(path: Path) -> Mapping[str, Any]:
    """The values of a checkpoint; nothing if it is damaged."""
    from arcvae_cli.checkpoints import read

    with suppress(InputError):
        return read(path)
    return {}
