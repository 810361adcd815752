"""arcvae from Python: NumPy arrays in and out. PyTorch is imported by the functions that need it."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from arcvae_cli import domains, folders, plugins
from arcvae_cli.canvas import Canvas
from arcvae_cli.errors import InputError, first_line
from arcvae_cli.files import is_file, read_lines
from arcvae_cli.presets import Layer, environment_layer, leaves, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.models.base import Level

Examples = Any  # of n: grids (n, H, W) uint8; a list of strings; rule ids (n, T) int16 where no grammar is known
Prior = Literal["standard", "aggregate", "gmm"]
Codes = Any  # (n, *shape) float32, or where a model has several levels {level: (n, *shape)}


def load(checkpoint: str | Path = "latest", device: str = "auto", runs_dir: str | Path = "runs") -> Model:
    """The model of a checkpoint file, a run folder, a run's name or `latest`, on a device: auto, cpu, cuda:1, mps."""
    from arcvae_cli import checkpoints, step

    path, _ = checkpoints.find_checkpoint(str(checkpoint), Path(runs_dir))
    return Model(checkpoints.load(path, step.choose_device(device)))


class Model:
    """A trained model in evaluation mode.

    `x` are n examples: grids (n, H, W) of classes, or a list of grids no larger than `canvas`; a list of strings; rule
    ids (n, T). Codes are float32 arrays (n, *shape), by level where there are several; `levels`: their shapes.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded, self._domain = loaded, domains.of(loaded.model.kind)
        self.model, self.settings, self.epoch, self.path = loaded.model, loaded.settings, loaded.epoch, loaded.path
        self.canvas = loaded.model.structure if isinstance(loaded.model.structure, Canvas) else None
        self.grammar, self.levels = loaded.grammar, dict(loaded.model.level_shapes)

    def examples(self, split: Literal["train", "val", "test"] = "test", limit: int | None = None) -> Examples:
        """The first examples of a split of the corpus of the run; InputError if it is not available."""
        import torch

        corpus = self._trained_on(split)
        return self._given_back(corpus.batch(split, torch.arange(corpus.size(split), device=corpus.device)[:limit]).x)

    def posterior(self, x: Examples) -> tuple[Codes, Codes]:
        """Means and log variances of q(z|x); of a lower level, given the mean of the one above."""
        levels = self._levels(x)
        return by_level(levels, "mean"), by_level(levels, "logvar")

    def encode(self, x: Examples, sample: bool = False, seed: int = 0) -> Codes:
        """The posterior means, or with `sample` a draw from each posterior."""
        return by_level(self._levels(x, seed if sample else None), "sample")

    def decode(self, codes: Codes, logits: bool = False) -> Examples:
        """The most likely examples; or `logits` (n, classes, H, W), (n, rules, T) float32, no grammar applied."""
        from arcvae_cli.evaluation import information, priors

        given = codes if isinstance(codes, Mapping) else {next(iter(self.levels)): codes}
        arrays = {name: as_array("codes", value, np.float32) for name, value in given.items()}
        count = next((len(value) for value in arrays.values() if value.ndim), 0)
        needed = {name: (count, *shape) for name, shape in self.levels.items()}
        if (found := {name: value.shape for name, value in arrays.items()}) != needed or not count:
            raise InputError(f"codes: shapes {found}", f"give {self.levels} for n examples, n first")
        if logits and self.model.autoregressive:
            what = "logits: those of an autoregressive decoder need the classes before each position"
            raise InputError(what, "omit logits, or use model.logits_for")
        latents = {name: next(self.model.parameters()).new_tensor(value) for name, value in arrays.items()}
        with information.eval_mode(self.model, 0):
            if not logits:
                return self._given_back(priors.generate(self.model, latents))
            return np.concatenate([self.model.decode(some).cpu() for some, _ in priors.chunks(latents, None)])

    def reconstruct(self, x: Examples) -> Examples:
        """The most likely examples at the posterior means."""
        return self.decode(self.encode(x))

    def sample(
        self, n: int, temperature: float = 1.0, prior: Prior = "standard", conditions: Any = None, seed: int = 0
    ) -> Examples:
        """`n` samples, as `arcvae sample` draws them; `temperature` is a factor on standard deviations.

        `prior`: the model's own, or a Gaussian or a mixture fitted to codes of the training split. `conditions`: for a
        model that takes some, as {"colours": 3, "symmetry": "lr"}.
        """
        from arcvae_cli.commands.sample import drawn
        from arcvae_cli.console import Console

        how: dict[str, Any] = {
            "num": n,
            "prior": prior,
            "temperature": temperature,
            "seed": seed,
            "split": "train",
            "decode": None,
            "beam_width": 1,
            "rule_temperature": 1.0,
        }
        how |= {"conditions": [f"{key}={value}" for key, value in (conditions or {}).items()], "budget": True}
        how["training"] = lambda: None  # novelty is not counted
        decoded, *_ = drawn(self._loaded, how, self._trained_on, Console(quiet=True))
        return decoded.facts["strings"] if self._domain.plain else decoded.arrays["grids"]

    def interpolate(self, a: Any, b: Any, steps: int = 10, path: Literal["linear", "slerp"] = "linear") -> Examples:
        """`steps` examples on a straight line or a great circle between the codes of two, `a` and `b`."""
        from arcvae_cli.evaluation import paths

        corpus, indices = self._corpus([a, b])
        return self._given_back(paths.decoded_paths(self.model, corpus, "test", indices, steps, path)[:, 0])

    def log_likelihood(self, x: Examples, samples: int = 500, seed: int = 0) -> NDArray[np.float64]:
        """(n,) nats, lower bounds of log p(x): log mean_k p(x|z_k) p(z_k) / q(z_k|x) (Burda et al. 2015)."""
        from arcvae_cli.evaluation import information

        corpus, indices = self._corpus(x)
        with information.eval_mode(self.model, seed) as device:
            batches = information.batches(corpus, "test", indices, device, information.pass_size(corpus))
            bounds = [-information.weighted(self.model, batch, samples)[0].cpu().numpy() for batch in batches]
        return np.concatenate(bounds)

    def _trained_on(self, split: str) -> Corpus:
        from arcvae_cli.commands.reading import open_examples
        from arcvae_cli.console import Console

        return open_examples(self._loaded, None, split, Console(quiet=True))

    def _corpus(self, x: Examples) -> tuple[Corpus, Tensor]:
        """Examples as the test split of a corpus on the device, and the indices of all."""
        import torch

        from arcvae_cli.data.corpus import open_corpus

        if not len(x):
            raise InputError("x: no examples", "give one at least")
        if self.canvas is not None:
            x = [as_array(f"x[{place}]", grid) for place, grid in enumerate(x)]
        arrays, device = self._domain.dataset(self._loaded, x), next(self.model.parameters()).device
        corpus = open_corpus(self.settings.data, device, (), self.model.structure, arrays=arrays)
        return corpus, torch.arange(len(x), device=device)

    def _levels(self, x: Examples, seed: int | None = None) -> dict[str, Level]:
        from arcvae_cli.evaluation.information import posteriors

        corpus, indices = self._corpus(x)
        return posteriors(self.model, corpus, "test", indices, seed)

    def _given_back(self, classes: Tensor) -> Examples:
        return self._domain.given_back(self._loaded, classes.cpu().numpy())


def by_level(levels: Mapping[str, Level], part: str) -> Codes:
    """The mean, logvar or sample of each level; of a single one as an array."""
    arrays = {name: getattr(level, part).cpu().numpy() for name, level in levels.items()}
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def as_array(name: str, value: Any, dtype: Any = None) -> NDArray[Any]:
    """A NumPy array. InputError for what is none, as a ragged list."""
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError) as error:
        reason = first_line(error).partition(". ")[0]
        raise InputError(f"{name}: not an array ({reason})", "give rows of equal length") from error


class Run:
    """A run by its name, its folder or `latest`; InputError if there is none."""

    def __init__(self, run: str | Path = "latest", runs_dir: str | Path = "runs") -> None:
        self.folder = folders.find(str(run), Path(runs_dir))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The epochs as `metrics.jsonl` has them, each with `val/loss_total`, `val/kl_per_dim` (nats) and so on."""
        file = self.folder / "metrics.jsonl"
        return [line for line in (read_lines(file) if is_file(file) else []) if line.pop("kind") == "epoch"]

    @property
    def report(self) -> dict[str, Any]:
        """The evaluation of the best epoch on the validation split, `metrics.json`; InputError before it is written."""
        if not is_file(file := self.folder / "metrics.json"):
            raise InputError(f"{self.folder}: not evaluated yet", f"`arcvae train --resume {self.folder}` does it")
        return dict(json.loads(file.read_bytes()))

    def load(self, checkpoint: str = "vae_best.pth", device: str = "auto") -> Model:
        """The model of a checkpoint of the run, by default of the best epoch."""
        return load(self.folder / "checkpoints" / checkpoint, device)


def runs(runs_dir: str | Path = "runs") -> list[dict[str, Any]]:
    """The runs in a folder as rows for `pandas.DataFrame`, the last active first, with settings by dotted keys."""
    rows = [dict(leaves(folders.describe(path))) for path in folders.all_runs(Path(runs_dir))]
    for row in rows:
        with suppress(InputError):  # of another version
            row |= dict(leaves(resolve(row["path"]).settings.table()))
    return rows


def train(
    preset: str | Path | None = None,
    data: Any = None,
    settings: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    progress: bool = False,
    **tables: Mapping[str, Any],
) -> Run:
    """Train a model and evaluate it, as `arcvae train` does.

    `data`: the name of a corpus, a path, grids (N, H, W) of integers, or arrays by the names that a .npz has, such as
    `train`, `val`, `test`; saved in the run folder. `settings`: by dotted keys, or as `train={"epochs": 5}`.
    `progress`: print what the command prints. Interrupted, an ArcvaeError, after Ctrl-C, with the run saved.
    """
    from arcvae_cli.commands import options, train
    from arcvae_cli.console import Console

    plugins.allow(settings, tables)
    folders.check_name(name)
    console, began, arrays, made = Console(quiet=not progress), time.perf_counter(), None, list[folders.RunFolder]()
    if not progress:
        console.out.file = io.StringIO()
    with tempfile.TemporaryDirectory() as temporary:
        if data is not None and not isinstance(data, str | Path):
            columns: Mapping[str, Any] = data if isinstance(data, Mapping) else {"grids": data}
            data = arrays = Path(temporary) / "data.npz"
            np.savez(arrays, **{name: as_array(f"data {name}", one) for name, one in columns.items()})  # type: ignore
        below, above = options.data_layers(None if data is None else str(data))
        given = Layer("settings", {**(settings or {}), **tables})
        resolved = resolve(None if preset is None else str(preset), environment_layer(), below, above, given)

        def new() -> folders.RunFolder:
            made.append(folders.create(Path(runs_dir), name, Path(preset or "run").stem, resolved.settings))
            return made[0]

        try:
            train.supervised(resolved, console, None, new, arrays, began)
        except InputError as error:
            error.what = error.what.replace(str(arrays), "data")
            raise
        finally:
            for folder in made:
                folder.release()
    return Run(made[0].name, runs_dir)
