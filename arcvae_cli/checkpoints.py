"""Checkpoints: written whole or not at all, read without unpickling anything but tensors and plain values."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, parse_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.base import VAE
from arcvae_cli.models.grammar import GrammarVAE, Structure
from arcvae_cli.settings import Layer, Settings, resolve
from arcvae_cli.writing import failed, replacing

FORMAT = 1
"""Version of the layout of a checkpoint; a reader refuses what is newer."""

BEST = "vae_best.pth"
REQUIRED = ("epoch", "model_state_dict", "config", "format_version")


@dataclass(frozen=True)
class Found:
    """A checkpoint's file, and what to say about how it was found."""

    path: Path
    note: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read back: the model in evaluation mode on its device, and what it was trained with."""

    model: VAE
    settings: Settings
    epoch: int
    path: Path
    values: Mapping[str, Any]

    @property
    def grammar(self) -> Grammar | None:
        """The grammar of the model's derivations; None for a model of grids, or of ready ids without a grammar."""
        if not isinstance(self.model, GrammarVAE) or (text := self.model.structure.rules.text) is None:
            return None
        return parse_grammar(text, f"the grammar of {self.path.name}")

    @property
    def run(self) -> Path | None:
        """The run folder that the file lies in, if it lies in one."""
        folder = self.path.resolve().parent.parent
        return folder if (folder / "config.toml").is_file() else None


def save(path: Path, values: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of `path`. Values are tensors, numbers, text, and lists and dictionaries of them."""
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:  # given a name, PyTorch would write that into the archive
                torch.save(dict(values), file)
        except RuntimeError as error:  # PyTorch's way of saying that the disk is full
            raise failed(path, str(error).splitlines()[0]) from error


def copy(path: Path, target: Path) -> None:
    """The checkpoint under another name too: a hard link where the file system has them, else its bytes."""
    with replacing(target) as temporary:
        try:
            temporary.unlink()
            temporary.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, temporary)


def config_text(settings: Settings) -> str:
    """Settings as the JSON text that a checkpoint carries."""
    return json.dumps(settings.table(), sort_keys=True)


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The values of a checkpoint of arcvae, its checksums verified. InputError for anything else."""
    foreign = f"{path}: not a checkpoint of arcvae"
    if path.is_dir():
        raise InputError(f"{path}: a folder, not a checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{foreign}, or cut short", "give another checkpoint of the run") from error
    if damaged is not None:
        raise InputError(f"{path}: damaged (the checksum of {damaged} fails)", "give another checkpoint of the run")
    try:
        values = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(foreign, "only tensors and plain values are ever read from a file") from error
    if not isinstance(values, dict) or any(key not in values for key in REQUIRED):
        raise InputError(foreign, f"it lacks what arcvae writes: {', '.join(REQUIRED)}")
    if not all(isinstance(values[key], int) for key in ("epoch", "format_version")):
        raise InputError(foreign, "its epoch and its format version are no numbers")
    if values["format_version"] > FORMAT:
        raise InputError(
            f"{path}: written by a newer arcvae (format {values['format_version']}, known here: {FORMAT})",
            "upgrade arcvae",
        )
    return values


def load(path: Path, device: torch.device | str = "cpu") -> Loaded:
    """A model with its settings, ready for evaluation."""
    values = read(path, device)
    try:
        settings = resolve(None, Layer(f"{path} (config)", dict(json.loads(values["config"])))).settings
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: its settings cannot be read") from error
    model = build_model(settings.model, read_structure(path, values)).to(device)
    check_conditions(path, model, values.get("conditions", []))
    try:
        model.load_state_dict(values["model_state_dict"])
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: its weights do not fit the model that its settings describe") from error
    return Loaded(model.eval(), settings, values["epoch"], path, values)


def structure_of(model: VAE) -> dict[str, str]:
    """What a checkpoint keeps of the derivations that a model is made for: their length and their grammar."""
    return {"structure": model.structure.text()} if isinstance(model, GrammarVAE) else {}


def read_structure(path: Path, values: Mapping[str, Any]) -> Structure | None:
    """The structure that a checkpoint carries, None where it has none."""
    if "structure" not in values:
        return None
    try:
        return Structure.of(values["structure"])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise InputError(
            f"{path}: its grammar cannot be read", "use the arcvae that wrote it, or train anew"
        ) from error


def condition_schema(model: VAE) -> list[list[str | int]]:
    """What a model can be conditioned on, as its checkpoints keep it: [name, number of values] of each attribute."""
    return [[attribute.name, attribute.size] for attribute in model.attributes]


def check_conditions(path: Path, model: VAE, kept: Any) -> None:
    """Refuse weights that were trained with other conditions: a row of a table would mean another value."""
    here = condition_schema(model)
    if kept == here:
        return
    listed = kept if isinstance(kept, list) else []
    names = {str(entry[0]) for entry in here} ^ {str(entry[0]) for entry in listed if isinstance(entry, list) and entry}
    which = f": {', '.join(sorted(names))}" if names else ""
    raise InputError(
        f"{path}: its conditions are not those of this arcvae{which}", "use the arcvae that wrote it, or train anew"
    )


def find_checkpoint(argument: str, runs: Path) -> Found:
    """What `--checkpoint` means: a file, a run folder, a run's name, or a file name in the latest run."""
    given = Path(argument)
    if given.is_file():
        return Found(given)
    if given.is_dir():
        return Found(_in_run(given, argument))
    if given.name == argument:  # a bare name
        latest = runs / "latest" / "checkpoints" / argument
        if latest.is_file():
            path = latest.resolve()
            return Found(path, f"using {path.parent.parent.name}/checkpoints/{argument}, of the latest run")
        if (runs / argument).is_dir():
            path = _in_run(runs / argument, argument)
            return Found(path, f"using {path}")
    names = _names(runs)
    hint = f"runs: {', '.join(names)}" if names else f"no run in {runs}/ yet: start one with `arcvae train`"
    raise InputError(f"checkpoint {argument!r}: no such file, run folder or run", hint)


def _in_run(folder: Path, argument: str) -> Path:
    for path in (folder / "checkpoints" / BEST, folder / BEST):
        if path.is_file():
            return path
    raise InputError(f"checkpoint {argument!r}: the folder holds no checkpoints/{BEST}", "give the file itself")


def _names(runs: Path) -> list[str]:
    if not runs.is_dir():
        return []
    folders = [path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()]
    return [path.name for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[:5]]
