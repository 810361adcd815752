"""A run's folder: its name, its files, and its state."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from arcvae_cli.errors import InputError
from arcvae_cli.settings import Settings
from arcvae_cli.writing import replacing

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/`, with its folders of checkpoints and images."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def images(self) -> Path:
        """Where pictures go."""
        return self.path / "images"

    def write_status(self, state: str, **facts: Any) -> None:
        """Rewrite `status.json`: running, finished, interrupted or failed, and since when."""
        write_json(self.path / "status.json", {"state": state, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts})


def check_name(name: str | None) -> None:
    """Refuse a name that could leave the runs folder, or that means something else there."""
    if name is not None and not NAME.fullmatch(name):
        raise InputError(
            f"--run-name {name!r}: not a usable name",
            "use up to 128 letters, digits, '.', '_' or '-', not starting with '.'",
        )
    if name == "latest":
        raise InputError("--run-name 'latest': taken by the link to the newest run", "choose another name")


def create(runs: Path, name: str | None, stem: str, settings: Settings) -> RunFolder:
    """A new run folder with its `config.toml`; `latest` points to it.

    A `name` that a person gave must be free; without one the folder is `<stem>-<time>`, numbered where two runs start
    in the same second, so that they never share one.
    """
    check_name(name)
    base = name or f"{re.sub(r'[^A-Za-z0-9_-]', '-', stem)[:80]}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        folder = _new_folder(runs, base, numbered=name is None)
        for sub in ("checkpoints", "images"):
            (folder / sub).mkdir()
        with replacing(folder / "config.toml") as temporary:
            temporary.write_text(tomli_w.dumps(settings.table()), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{runs}: no run folder can be made there ({error.strerror})", "choose another --runs-dir"
        ) from error
    _point_latest(runs, folder.name)
    return RunFolder(folder)


def _new_folder(runs: Path, base: str, numbered: bool) -> Path:
    for number in range(1, 1000):
        folder = runs / (base if number == 1 else f"{base}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            if not numbered:
                raise InputError(
                    f"--run-name {base!r}: {folder} exists already", "choose another name, or remove that folder"
                ) from None
        else:
            return folder
    raise InputError(f"{runs}: a thousand runs of the name {base}", "give a --run-name")


def _point_latest(runs: Path, name: str) -> None:
    """Replace the link `latest`, atomically, where the system knows links."""
    temporary = runs / f".latest.{os.getpid()}"
    with contextlib.suppress(OSError, NotImplementedError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name, target_is_directory=True)
        os.replace(temporary, runs / "latest")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON document in place of `path`, whole or not at all."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
