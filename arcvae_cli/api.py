"""arcvae from Python: NumPy arrays in and out. PyTorch is imported by the functions that need it.

No call changes PyTorch's random state or number of threads, and a seed decides what is drawn.
"""

from __future__ import annotations

import io
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from arcvae_cli import domains, folders
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.errors import InputError
from arcvae_cli.files import is_file, read_lines
from arcvae_cli.presets import Layer, environment_layer, leaves, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import Corpus

Examples = Any  # of n: grids (n, H, W) uint8; a list of strings; rule ids (n, T) int16 where no grammar is known
Codes = Any  # (n, *shape) float32, or where a model has several levels {level: (n, *shape)}
Prior = Literal["standard", "aggregate", "gmm"]
Line = Literal["linear", "slerp"]


def load(checkpoint: str | Path = "latest", device: str = "auto", runs_dir: str | Path = "runs") -> Model:
    """The model of a checkpoint file, a run folder, a run's name or `latest`, on a device: auto, cpu, cuda:1, mps."""
    from arcvae_cli import checkpoints, step

    with untouched():
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
        indices = torch.arange(corpus.size(split), device=corpus.device)[:limit]
        return self._given_back([corpus.batch(split, indices).x])

    def posterior(self, x: Examples) -> tuple[Codes, Codes]:
        """Means and log variances of q(z|x); of a lower level, given the mean of the one above."""
        mean, logvar = self._codes(x, ("mean", "logvar"))
        return mean, logvar

    def encode(self, x: Examples, sample: bool = False, seed: int = 0) -> Codes:
        """The posterior means, or with `sample` a draw from each posterior."""
        return self._codes(x, ("sample",), seed if sample else None)[0]

    def decode(self, codes: Codes, logits: bool = False) -> Examples:
        """The most likely examples; or `logits` (n, classes, H, W), (n, rules, T) float32, no grammar applied."""
        from arcvae_cli.evaluation import information, priors

        latents = self._latents(codes)
        with information.eval_mode(self.model, 0):
            if not logits:
                return self._given_back([priors.argmax_decode(self.model, latents)])
            parts = (self.model.decode(some).cpu().numpy() for some, _ in priors.chunks(latents, None))
            return np.concatenate(list(parts))

    def reconstruct(self, x: Examples) -> Examples:
        """The most likely examples at the posterior means."""
        from arcvae_cli.evaluation import information

        corpus, indices = self._corpus(x)
        with information.eval_mode(self.model, 0):
            parts = indices.split(information.BATCH_SIZE)  # type: ignore[no-untyped-call]
            return self._given_back([self.model.reconstruct(corpus.batch("test", part)) for part in parts])

    def sample(
        self, n: int, temperature: float = 1.0, prior: Prior = "standard", conditions: Any = None, seed: int = 0
    ) -> Examples:
        """`n` samples, as `arcvae sample` draws them; `temperature` is a factor on standard deviations.

        `prior`: the model's own, or a Gaussian or a mixture fitted to codes of the training split. `conditions`: for a
        model that takes some, as {"colours": 3, "symmetry": "lr"}.
        """
        import torch

        from arcvae_cli.conditions import encode, parse
        from arcvae_cli.evaluation import information, priors

        canvas = self.canvas or ARC
        one_of("prior", prior, Prior)
        if conditions and not self.model.attributes:
            raise InputError(f"conditions {conditions}: this model takes none", "use the preset hierarchical")
        given = parse([f"{key}={value}" for key, value in conditions.items()], canvas) if conditions else {}
        self._domain.check_decodable(self._loaded)
        if prior == "standard":
            with information.eval_mode(self.model, seed) as device:
                asked = torch.from_numpy(encode(given, n, canvas)).to(device) if given else None
                latents = priors.draw_prior(self.model, n, temperature, asked)
        else:
            data = self._trained_on("train")
            codes = self._domain.posterior_samples(self.model, data, "train", seed, given, priors.EXAMPLES)
            latents = priors.fit_prior(prior, codes, seed).sample(n, temperature, seed, data.device)
        how = {"given": given, "temperature": temperature, "argmax": False, "budget": True, "training": lambda: None}
        decoded = self._domain.sample(self._loaded, latents, seed, how, lambda _: None)
        return decoded.facts["strings"] if self._domain.plain else decoded.arrays["grids"]

    def interpolate(self, a: Any, b: Any, steps: int = 10, path: Line = "linear") -> Examples:
        """`steps` examples on a straight line or a great circle between the codes of two, `a` and `b`."""
        from arcvae_cli.evaluation import paths

        one_of("path", path, Line)
        corpus, indices = self._corpus([a, b])
        return self._given_back([paths.decoded_paths(self.model, corpus, "test", indices, steps, path)[:, 0]])

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

        return open_examples(self._loaded, None, split, console())

    def _corpus(self, x: Examples) -> tuple[Corpus, Tensor]:
        """Examples as the test split of a corpus on the device, and the indices of all."""
        import torch

        from arcvae_cli.data.corpus import open_corpus

        if not len(x):
            raise InputError("x: no examples", "give one at least")
        arrays, device = self._domain.dataset(self._loaded, x), next(self.model.parameters()).device
        corpus = open_corpus(self.settings.data, device, (), self.model.structure, arrays=arrays)
        return corpus, torch.arange(len(x), device=device)

    def _codes(self, x: Examples, parts: tuple[str, ...], seed: int | None = None) -> list[Codes]:
        from arcvae_cli.evaluation import information

        corpus, indices = self._corpus(x)
        levels = information.posteriors(self.model, corpus, "test", indices, seed)
        arrays = [{name: getattr(level, part).cpu().numpy() for name, level in levels.items()} for part in parts]
        return arrays if len(levels) > 1 else [*itertools.chain(*(one.values() for one in arrays))]

    def _latents(self, codes: Codes) -> dict[str, Tensor]:
        given = codes if isinstance(codes, Mapping) else {next(iter(self.levels)): codes}
        arrays = {name: np.asarray(value, np.float32) for name, value in given.items()}
        count = next((len(value) for value in arrays.values() if value.ndim), 0)
        needed = {name: (count, *shape) for name, shape in self.levels.items()}
        if (found := {name: value.shape for name, value in arrays.items()}) != needed or not count:
            raise InputError(f"codes: shapes {found}", f"give {self.levels} for n examples, n first")
        return {name: next(self.model.parameters()).new_tensor(value) for name, value in arrays.items()}

    def _given_back(self, classes: list[Tensor]) -> Examples:
        return self._domain.given_back(self._loaded, np.concatenate([some.cpu().numpy() for some in classes]))


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

    began, made, preset = time.perf_counter(), list[folders.RunFolder](), None if preset is None else str(preset)
    folders.check_name(name)
    with untouched(), tempfile.TemporaryDirectory() as temporary:
        arrays = None
        if data is not None and not isinstance(data, str | Path):
            columns: Mapping[str, Any] = data if isinstance(data, Mapping) else {"grids": data}
            data = arrays = Path(temporary) / "data.npz"
            np.savez(arrays, **columns)
        below, above = options.data_layers(data and str(data))
        given = Layer("settings", {**(settings or {}), **tables})
        resolved = resolve(preset, environment_layer(), below, above, given)

        def new() -> folders.RunFolder:
            made.append(folders.create(Path(runs_dir), name, Path(preset or "run").stem, resolved.settings))
            return made[0]

        try:
            train.supervised(resolved, console(progress), None, new, arrays, began)
        except InputError as error:
            error.what = error.what.replace(str(arrays), "data")
            raise
        finally:
            for folder in made:
                folder.release()
    return Run(made[0].name, runs_dir)


def one_of(name: str, value: str, kind: Any) -> None:
    """InputError for a value that is not one of a `Literal`."""
    if value not in get_args(kind):
        raise InputError(f"{name} {value!r}: unknown", f"use {', '.join(get_args(kind))}")


def console(progress: bool = False) -> Console:
    """A console that prints warnings only, unless `progress`."""
    from arcvae_cli.console import Console

    made = Console(quiet=not progress)
    if not progress:
        made.out.quiet, made.out.file = True, io.StringIO()
    return made


@contextmanager
def untouched() -> Iterator[None]:
    """Restores PyTorch's random state and number of threads."""
    import torch

    threads = torch.get_num_threads()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
