"""Checkpoints: written whole or not at all, with a digest; read with `weights_only=True`, so that no code runs."""

import hashlib
import json
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.errors import InputError, first_line
from arcvae_cli.files import atomic_write, is_dir, is_file, open_regular
from arcvae_cli.folders import find
from arcvae_cli.grammar import Grammar, parse_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.base import VAE
from arcvae_cli.models.grammar import Structure
from arcvae_cli.presets import Layer, resolve
from arcvae_cli.settings import Settings

FORMAT, DIGESTED = 4, 3  # version of the layout, which a run can be resumed from, and the first with a digest
BEST, WEIGHTS = "vae_best.pth", "model.safetensors"  # of the best epoch, and of an export
ANOTHER, AS_WRITTEN = "give another checkpoint of the run", "use the arcvae that wrote it, or train again"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint: the model in evaluation mode on its device, and what it was trained with."""

    model: VAE
    settings: Settings
    epoch: int
    path: Path

    @property
    def grammar(self) -> Grammar | None:
        text = self.model.structure.rules.text if isinstance(self.model.structure, Structure) else None
        return None if text is None else parse_grammar(text, f"the grammar of {self.path.name}")

    @property
    def run(self) -> Path | None:
        folder = self.path.resolve().parent.parent
        return folder if is_file(folder / "config.toml") else None


def save(path: Path, values: Mapping[str, Any]) -> None:
    """Write tensors and plain values in place of `path`, with a digest. WriteError if it cannot be written."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({**values, "digest": digest(values)}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, (OSError, KeyboardInterrupt)):  # which PyTorch hides
                raise error.__context__ from None
            raise


def header(settings: Settings, epoch: int) -> dict[str, Any]:
    """What every checkpoint begins with."""
    return {"format_version": FORMAT, "epoch": epoch, "config": json.dumps(settings.table(), sort_keys=True)}


def content(model: VAE) -> dict[str, Any]:
    """What a model is rebuilt from: weights, attributes with their numbers of values, canvas or grammar."""
    conditions = [[attribute.name, attribute.size] for attribute in model.attributes]
    return {"model_state_dict": model.state_dict(), "conditions": conditions, "structure": model.structure.text()}


def copy(path: Path, target: Path) -> None:
    """Copy a checkpoint, so that damage to one file leaves the other."""
    with atomic_write(target) as temporary:
        shutil.copyfile(path, temporary)


def digest(values: Mapping[str, Any]) -> str:
    """blake2b of the values as JSON, tensors as type, shape and CRC-32: the zip's checksums leave out its headers."""

    def tensor(value: Any) -> list[Any]:
        if not isinstance(value, Tensor):
            raise TypeError(f"{type(value).__name__} in a checkpoint")
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return [str(value.dtype), list(value.shape), zlib.crc32(flat.numpy().data)]

    text = json.dumps({key: value for key, value in values.items() if key != "digest"}, default=tensor)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read(path: Path) -> dict[str, Any]:
    """The values of a checkpoint, on the CPU. InputError for a file that is damaged, foreign or of a newer format."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load as load_tensors

            with open_regular(path.with_name("config.json")) as text, open_regular(path) as file:
                config = json.load(text)
                values = {**exported(config, load_tensors(file.read())), "digest": config["digest"]}
        else:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"wrong checksum of {damaged}")
                file.seek(0)
                values = torch.load(file, map_location="cpu", weights_only=True)
        version = int(values["format_version"])
        if DIGESTED <= version <= FORMAT and values.pop("digest", None) != digest(values):
            raise ValueError("its content does not match its digest")
    except ImportError as error:
        raise InputError(f"{path}: safetensors is not installed", "pip install 'arcvae[export]'") from error
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read ({error.strerror or error})", ANOTHER) from error
    except Exception as error:  # zipfile and PyTorch raise whatever a damaged file makes them
        unsafe = isinstance(error, pickle.UnpicklingError)  # PyTorch's own text recommends weights_only=False
        reason = "it holds more than tensors and plain values" if unsafe else first_line(error)
        raise InputError(f"{path}: damaged, or not a checkpoint of arcvae ({reason})", ANOTHER) from error
    if version > FORMAT:
        raise InputError(f"{path}: format {version} of a newer arcvae (known here: {FORMAT})", "upgrade arcvae")
    return values


def exported(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The values of a checkpoint from those of a `config.json`, whose tensors have no order."""
    values = {key: config[key] for key in ("format_version", "epoch", "conditions")}
    texts = {key: json.dumps(config[key], sort_keys=True) for key in ("config", "structure")}
    return {**values, **texts, "model_state_dict": dict(sorted(weights.items()))}


def load(path: Path, device: torch.device | str = "cpu") -> Loaded:
    """A model with its settings, ready for evaluation. InputError if the file is unusable or does not fit together."""
    values = read(path)
    if "model_state_dict" not in values:
        raise InputError(f"{path}: only a part of a model", "give the checkpoint of a whole model")
    settings = read_settings(path, values)
    try:
        kind = Canvas if settings.model.kind == "grids" else Structure
        structure = kind.of(values["structure"]) if "structure" in values else ARC  # a former format, of ARC grids
        model = build_model(settings.model, structure)
        if values.get("conditions", []) != content(model)["conditions"]:  # a row of a table would mean another value
            raise ValueError("conditions of another version")
        model.load_state_dict(values["model_state_dict"])
        return Loaded(model.to(device).eval(), settings, int(values["epoch"]), path)
    except (InputError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = f"{path}: its weights and settings do not fit together ({first_line(error)})"
        raise InputError(what, AS_WRITTEN) from error


def read_settings(path: Path, values: Mapping[str, Any]) -> Settings:
    """The settings that a checkpoint carries. InputError if they are not those of this version."""
    try:
        return resolve(None, Layer("config", dict(json.loads(values["config"])))).settings
    except (InputError, LookupError, TypeError, ValueError) as error:
        fix = getattr(error, "fix", None) if ".name: " in str(error) else AS_WRITTEN  # a name: that of a plugin
        raise InputError(f"{path}: its settings cannot be read ({first_line(error)})", fix) from error


def resumable(values: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds all that training needs: not a part of a model, not of a former format."""
    return "history" in values and values["format_version"] == FORMAT


def find_checkpoint(argument: str, runs: Path) -> tuple[Path, str | None]:
    """The checkpoint of a file, the folder of a run or an export, a run, or a file's name in the latest run; a note."""
    given, latest = Path(argument), runs / "latest" / "checkpoints" / argument
    if is_file(given):
        return given, None
    if given.name == argument and is_file(latest):
        path = latest.resolve()
        return path, f"using {path.parent.parent.name}/checkpoints/{argument}, of the latest run"
    try:
        own = is_dir(given / "checkpoints") or is_file(given / WEIGHTS)  # not the folder of the data of that name
        folder = given if own else find(argument, runs)
    except InputError as error:
        raise InputError(f"checkpoint {argument!r:.200}: no such file, run folder or run", error.fix) from None
    path = folder / WEIGHTS if is_file(folder / WEIGHTS) else folder / "checkpoints" / BEST
    return path, None if folder == given else f"using {path}"
