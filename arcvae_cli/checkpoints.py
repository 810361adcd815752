"""Checkpoints: written whole or not at all, read without unpickling anything but tensors and plain values."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from arcvae_cli.archives import DamagedError, ForeignError, check
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, failed, is_dir, is_file, open_regular
from arcvae_cli.grammar import Grammar, parse_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.base import VAE
from arcvae_cli.models.grammar import GrammarVAE, Structure
from arcvae_cli.settings import GrammarSettings, Layer, Settings, resolve

FORMAT = 2
"""Version of the layout of a checkpoint; a reader refuses what is newer. 1 held too little to go on from."""

BEST = "vae_best.pth"
AS_WRITTEN = "use the arcvae that wrote it, or train anew"
REQUIRED = ("epoch", "model_state_dict", "config", "format_version")
PART = ("epoch", "state_dict", "config", "format_version")
"""What the files of an encoder or a decoder alone hold."""

WEIGHTS = ("model_state_dict", "state_dict")
"""What weights go by, of a whole model and of a part."""


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
    with atomic_write(path) as temporary:
        try:
            with temporary.open("wb") as file:  # given a name, PyTorch would write that into the archive
                torch.save(dict(values), file)
        except RuntimeError as error:  # what PyTorch makes of anything that is raised while it writes
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError | KeyboardInterrupt):
                cause = cause.__cause__ or cause.__context__
            if cause is not None:
                raise cause from None
            raise failed(path, str(error).splitlines()[0]) from error


def save_part(path: Path, weights: Mapping[str, Tensor], epoch: int, settings: Settings) -> None:
    """Write the weights of an encoder or a decoder alone."""
    save(path, {"format_version": FORMAT, "epoch": epoch, "state_dict": dict(weights), "config": config_text(settings)})


def copy(path: Path, target: Path) -> None:
    """The checkpoint under another name too: a hard link where the file system has them, else its bytes."""
    with atomic_write(target) as temporary:
        try:
            temporary.unlink()
            temporary.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, temporary)


def config_text(settings: Settings) -> str:
    """Settings as the JSON text that a checkpoint carries."""
    return json.dumps(settings.table(), sort_keys=True)


def read(path: Path, device: torch.device | str = "cpu", required: Sequence[str] = REQUIRED) -> dict[str, Any]:
    """The values of a checkpoint of arcvae, its checksums verified. InputError for anything else.

    They are plain ones and tensors within the file's size, see `archives`; those that are `required` are there, and
    what every reader relies on is of its type.
    """
    foreign = f"{path}: not a checkpoint of arcvae"
    if is_dir(path):
        raise InputError(f"{path}: a folder, not a checkpoint")
    try:
        with open_regular(path) as file:
            check(file)
            file.seek(0)
            values: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ForeignError as error:
        raise InputError(f"{foreign} ({error})", "give another checkpoint of the run") from error
    except DamagedError as error:
        raise InputError(f"{path}: damaged ({error})", "give another checkpoint of the run") from error
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(foreign, "only tensors and plain values are ever read from a file") from error
    if lacking := [key for key in required if key not in values]:
        raise InputError(foreign, f"it lacks what arcvae writes: {', '.join(lacking)}")
    if type(values["epoch"]) is not int or type(values["format_version"]) is not int:
        raise InputError(foreign, "its epoch and its format version are no numbers")
    if values["format_version"] > FORMAT:
        raise InputError(
            f"{path}: written by a newer arcvae (format {values['format_version']}, known here: {FORMAT})",
            "upgrade arcvae",
        )
    if values["format_version"] < 1 or values["epoch"] < 0 or type(values["config"]) is not str:
        raise InputError(foreign, "its epoch, its format version and its settings are none")
    for key in WEIGHTS:
        if key in values:
            read_weights(path, values, key)
    return values


def load(path: Path, device: torch.device | str = "cpu") -> Loaded:
    """A model with its settings, ready for evaluation. InputError for what does not fit together.

    Settings and structure are compared with the weights, which are as large as the file, before any memory is taken.
    """
    values = read(path, device)
    weights = read_weights(path, values)
    settings = read_settings(path, values, most_layers=len(weights))
    structure = None
    if isinstance(settings.model, GrammarSettings):
        structure = read_structure(path, values)
        bare = replace(structure, rules=replace(structure.rules, rhs=None))  # all that weights are of
    with torch.device("meta"), _Shapes():
        shapes = _built(path, settings, None if structure is None else bare)
    check_conditions(path, shapes, values.get("conditions", []))
    if {name: (tensor.shape, tensor.dtype) for name, tensor in shapes.state_dict().items()} != {
        name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()
    }:
        raise _misfit(path)
    model = _built(path, settings, structure).to(device)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise _misfit(path) from error
    return Loaded(model.eval(), settings, values["epoch"], path, values)


class _Shapes(TorchFunctionMode):
    """For a model laid out on no device, of shapes alone: the numbers that it is made from stay on the host.

    Random ones are not drawn or scaled: PyTorch's way of laying them out costs two seconds of imports.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func is Tensor.mul and args[0].is_meta:  # of a standard deviation and what randn gave
            return args[0]
        if func is torch.randn:
            return torch.empty(*args)
        if func is torch.tensor or func is torch.arange or func is torch.eye:
            kwargs = {"device": "cpu", **kwargs}
        return func(*args, **kwargs)


def _built(path: Path, settings: Settings, structure: Structure | None) -> VAE:
    """The model of a checkpoint. InputError, which names the file, where it cannot be built."""
    try:
        return build_model(settings.model, structure)
    except InputError as error:
        raise InputError(f"{path}: {error.what}", AS_WRITTEN) from error
    except (RuntimeError, TypeError, ValueError, LookupError, OverflowError, MemoryError) as error:
        raise _misfit(path) from error


def _misfit(path: Path) -> InputError:
    return InputError(f"{path}: its weights do not fit the model that its settings describe", AS_WRITTEN)


def read_weights(path: Path, values: Mapping[str, Any], key: str = WEIGHTS[0]) -> dict[str, Tensor]:
    """The weights of a checkpoint by name, numbers throughout. InputError for anything else."""
    weights = values[key]
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise InputError(f"{path}: its weights cannot be read", AS_WRITTEN)
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: its weights are no numbers ({name})", "give another checkpoint of the run")
    return dict(weights)


def read_settings(path: Path, values: Mapping[str, Any], most_layers: int) -> Settings:
    """The settings that a checkpoint carries, of a model of at most so many layers. InputError for anything else."""
    try:
        table = dict(json.loads(values["config"]))
        model = table.get("model")
        layers = [value for key, value in model.items() if key.endswith("_layers")] if isinstance(model, dict) else []
        if any(isinstance(count, int) and count > most_layers for count in layers):
            raise _misfit(path)
        return resolve(None, Layer(f"{path} (config)", table)).settings
    except InputError as error:
        if str(path) in error.what:
            raise
        raise InputError(f"{path} (config): {error.what}", error.fix) from error
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: its settings cannot be read") from error


def structure_of(model: VAE) -> dict[str, str]:
    """What a checkpoint keeps of the derivations that a model is made for: their length and their grammar."""
    return {"structure": model.structure.text()} if isinstance(model, GrammarVAE) else {}


def read_structure(path: Path, values: Mapping[str, Any]) -> Structure:
    """The structure that a checkpoint of a grammar model carries. InputError for anything else."""
    if "structure" not in values:
        raise InputError(f"{path}: a model of derivations, and the file lacks their grammar (structure)", AS_WRITTEN)
    try:
        return Structure.of(values["structure"])
    except (InputError, ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: its grammar cannot be read", AS_WRITTEN) from error


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
    raise InputError(f"{path}: its conditions are not those of this arcvae{which}", AS_WRITTEN)


def find_checkpoint(argument: str, runs: Path) -> Found:
    """What `--checkpoint` means: a file, a run folder, a run's name, or a file name in the latest run."""
    given = Path(argument)
    if is_file(given):
        return Found(given)
    if is_dir(given):
        return Found(_in_run(given, argument))
    if given.name == argument:  # a bare name
        latest = runs / "latest" / "checkpoints" / argument
        if is_file(latest):
            path = latest.resolve()
            return Found(path, f"using {path.parent.parent.name}/checkpoints/{argument}, of the latest run")
        if is_dir(runs / argument):
            path = _in_run(runs / argument, argument)
            return Found(path, f"using {path}")
    names = _names(runs)
    hint = f"runs: {', '.join(names)}" if names else f"no run in {runs}/ yet: start one with `arcvae train`"
    raise InputError(f"checkpoint {argument!r}: no such file, run folder or run", hint)


def _in_run(folder: Path, argument: str) -> Path:
    for path in (folder / "checkpoints" / BEST, folder / BEST):
        if is_file(path):
            return path
    raise InputError(f"checkpoint {argument!r}: the folder holds no checkpoints/{BEST}", "give the file itself")


def _names(runs: Path) -> list[str]:
    if not runs.is_dir():
        return []
    folders = [path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()]
    return [path.name for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[:5]]
