"""`--resume`: which run to go on with, and what may be changed in it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcvae_cli.errors import InputError
from arcvae_cli.files import expanded, is_file, read_limited
from arcvae_cli.settings import Resolved, Settings, resolve

if TYPE_CHECKING:
    from arcvae_cli.runs import RunFolder

LENGTH = ("train.epochs", "train.early_stopping", "train.patience")
"""Settings that say when a run ends: what was trained so far is no other for them."""

PLACES = tuple(f"data.{key}" for key in ("path", "input", "prod", "masks", "grammar"))
"""Settings that say where the data lie: what they are is known by their digest."""

MAY_CHANGE = (*LENGTH, *PLACES, "train.device", "train.engine", "train.save_minutes", "checkpoint.", "log.")
"""Settings, or whole tables of them, that may be others in a run that goes on."""


@dataclass(frozen=True)
class Earlier:
    """A run to go on with. `values`: of its checkpoint at `path`; None where it died before there was one."""

    folder: RunFolder
    path: Path
    values: Mapping[str, Any] | None

    def over(self, settings: Settings) -> bool:
        """Whether nothing is left to do: all is trained and judged, and it was not made longer."""
        from arcvae_cli.runs import read_status

        status = read_status(self.folder.path) or {}
        if self.values is None or status.get("state") != "finished" or not status.get("judged"):
            return False
        if self.values["step"] != status.get("step"):  # of an older checkpoint
            return False
        return not {key for key, *_ in differences(self.settings(), settings)} & set(LENGTH)

    def judgement(self) -> dict[str, Any]:
        """What the run's last evaluation found: its `metrics.json`. InputError where that cannot be read."""
        file = self.folder.path / "metrics.json"
        try:
            found = json.loads(read_limited(file, 2**26))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{file}: cannot be read", f"`arcvae evaluate --checkpoint {self.folder.shell}` makes it"
            ) from error
        return dict(found)

    def settings(self) -> Settings:
        """The settings that the run had so far."""
        if self.values is None:
            return resolve(str(self.folder.path / "config.toml")).settings
        from arcvae_cli.checkpoints import read_settings

        return read_settings(self.path, self.values, most_layers=len(self.values["model_state_dict"]))

    def check(self, resolved: Resolved) -> None:
        """InputError where a setting is another than it was, and is none of those that may be."""
        settings, origins = resolved.settings, resolved.origins
        found = list(differences(self.settings(), settings))
        refused = [(key, old, new) for key, old, new in found if not key.startswith(MAY_CHANGE)]
        if refused:
            listed = "; ".join(
                f"{key} was {shown(old)}, now {shown(new)} ({origins.get(key, 'default')})"
                for key, old, new in refused[:5]
            )
            more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise InputError(
                f"--resume {self.folder.name}: other settings than the run began with: {listed}{more}",
                f"leave them out (the number of epochs, logging and the device may change), or start a new run with "
                f"`--preset {self.folder.shell}/config.toml`",
            )
        epochs = self.values["epoch"] if self.values is not None else 0
        if settings.train.epochs < epochs:
            raise InputError(
                f"train.epochs: {settings.train.epochs}, and the run {self.folder.name} is in epoch {epochs} already",
                f"give {epochs} or more",
            )


def differences(old: Settings, new: Settings) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys whose values differ, with both values; None where a key is not set."""
    before, after = flat(old.table()), flat(new.table())  # without what has no say, which may be anything
    for key in dict.fromkeys((*before, *after)):
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def shown(value: Any) -> str:
    """A value as TOML would have it, or that there is none."""
    return "not set" if value is None else json.dumps(value)


def earlier_folder(argument: str, runs: Path) -> tuple[Path, Path | None]:
    """The run folder that `--resume` means, and the checkpoint where a file was given.

    A path of a folder or of a checkpoint in one, a run's name, or `latest`. InputError where there is no such run.
    """
    from arcvae_cli.runs import find

    try:
        folder = find(argument, runs)
    except InputError:
        given = expanded(Path(argument))
        if not is_file(given):
            raise
        folder, file = given.resolve().parent.parent, given.resolve()
        if not is_file(folder / "config.toml"):
            raise InputError(
                f"--resume {argument}: the file lies in no run folder", "give a run's folder or name"
            ) from None
        return folder, file
    if not is_file(folder / "config.toml"):
        raise InputError(f"{folder}: its config.toml is gone", f"`arcvae runs verify {folder.name}` restores it")
    return folder, None


def go_on(folder: Path, file: Path | None) -> Earlier:
    """The run in a folder, which is this process's alone from now on. InputError where its checkpoint is unusable."""
    from arcvae_cli import checkpoints, runs

    held = runs.resume(folder)
    last = held.checkpoints / "last.pth"
    path = file or last
    if file is None and not any(held.checkpoints.iterdir()):
        return Earlier(held, path, None)
    try:
        values = checkpoints.read(path)
    except InputError as error:
        other = next(others(held.checkpoints), None) if path == last else None
        hint = f"go on from an older one: --resume {shlex.quote(str(other))}" if other else error.fix
        raise InputError(error.what, hint) from error
    if values["format_version"] < checkpoints.FORMAT:
        raise InputError(
            f"{path}: written by an older arcvae (format {values['format_version']}), too little to go on from",
            f"start a new run with `--preset {held.shell}/config.toml`; evaluate, sample and interpolate read it",
        )
    if path != last and (later := later_step(last, values["step"])) is not None:
        raise InputError(
            f"{path}: an older checkpoint, of step {values['step']}; the run has come to step {later}",
            f"to give up what came after, remove {last} first",
        )
    return Earlier(held, path, values)


def later_step(last: Path, step: int) -> int | None:
    """The step of a run's last checkpoint, where that is whole and comes after `step`."""
    from arcvae_cli.checkpoints import read

    with suppress(InputError):
        found = read(last)["step"]
        if isinstance(found, int) and found > step:
            return found
    return None


def others(folder: Path) -> Iterator[Path]:
    """Whole checkpoints of a run beside its last, the newest first: a damaged file may have several names."""
    from arcvae_cli.checkpoints import read

    files = [*folder.glob("vae_*.pth"), *folder.glob("best-*.pth")]
    for path in sorted(files, key=lambda path: path.lstat().st_mtime, reverse=True):
        with suppress(InputError):
            read(path)
            yield path
