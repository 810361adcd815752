"""What a kind of example has to know: scores, baselines, samples, targets, tables, pictures, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.information import Codes
from arcvae_cli.evaluation.verdict import Advice, Target
from arcvae_cli.files import atomic_write
from arcvae_cli.models.base import Batch

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.grammar import Rules
    from arcvae_cli.records import Pictures
    from arcvae_cli.settings import Settings

Note = Callable[[str], None]

Report = Mapping[str, Any]  # everything measured, as nested dicts: what `metrics.json` holds
Examples = NDArray[Any]  # (n, *positions) classes, as small integers


class Table(NamedTuple):
    """A table of a report. `columns`: headings and the text that replaces `{}` in dotted keys.

    `rows`: label, dotted key and format; a key without `{}` has its value in the first column.
    """

    title: str
    columns: Mapping[str, str]
    rows: Sequence[tuple[str, str, str]]
    note: str = ""


@dataclass
class Task:
    """What is to be evaluated: a model on a split of a corpus that lies on the model's device.

    `trained`: the corpus of the training split, for baselines and novelty; `corpus` if None. `iwae_samples`: draws per
    example of the importance-weighted bound, 0 for none. `monte_carlo`: examples, encodings of each, decodings of each
    code. `quick`: only what takes few passes. `title`: the checkpoint, in pictures. `indices`: (n,) the examples in the
    order seen, `few` of them for what takes many passes: both set by `evaluate`.
    """

    model: Any
    corpus: Any
    split: str
    settings: Settings
    trained: Any = None
    seed: int = 0
    iwae_samples: int = 0
    iwae_examples: int = 512
    monte_carlo: tuple[int, int, int] | None = None
    samples: int = 1000
    quick: bool = False
    title: str = ""
    note: Note = lambda _: None
    indices: Tensor = field(init=False)
    few: Tensor = field(init=False)


class Reconstructed(NamedTuple):
    """Reconstructions: (n, *shape) means by level, (n,) wrong positions, nats and accuracy of `few` by own codes."""

    codes: Codes
    means: Mapping[str, Tensor]
    report: dict[str, Any]
    errors: NDArray[np.int64]
    own: tuple[float, float]


class Draw(NamedTuple):
    """Latents drawn from a prior, and how to decode them; `training` opens the corpus that decides what is novel."""

    loaded: Loaded
    latents: Mapping[str, Tensor]
    temperature: float
    seed: int
    given: Mapping[str, int]
    argmax: bool
    budget: bool
    training: Callable[[], Any | None]
    note: Note


class Decoded(NamedTuple):
    """Decoded samples, or a path. `facts`: for the JSON document, `arrays`: for the npz, `rows`: what is shown."""

    facts: dict[str, Any]
    arrays: dict[str, Any]
    rows: Any
    summary: str


class Domain(Protocol):
    """A kind of example.

    `per`: headings of nats and bits. `changes`: what changes along a path. `formats`: suffixes of the files of samples
    and paths. `flags`: those that other kinds do not have. `plain`: whether a pipe gets samples alone.

    `baseline`: a code without information on the validation split. `limits`: the most examples, the most for what takes
    many passes (None for all), the batch size. `reconstruct` decodes a posterior sample and the posterior mean, beside
    baselines; `further` measures paths and samples. `code_values`: (n,) values that colour a scatter plot, their name.

    `posterior_samples`: (n, *shape) by level, of at most `limit` examples that satisfy `given`. `read_end`: name and
    example (*positions) of an end of a path that is no index. `path` scores the decoded `steps` (S, *positions) between
    `originals` (2, *positions). `write` writes all files but the npz, by suffix.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    per: ClassVar[tuple[str, str]]
    changes: ClassVar[str]
    dtype: ClassVar[type[np.generic]]
    formats: ClassVar[tuple[str, ...]]
    flags: ClassVar[frozenset[str]] = frozenset()
    quick_shuffle: ClassVar[bool] = False
    plain: ClassVar[bool] = False

    def validation_batch(self, corpus: Any) -> int: ...
    def baseline(self, corpus: Any) -> dict[str, float | None]: ...
    def write_pictures(self, folder: Path, epoch: int, pictures: Pictures, rules: Rules | None) -> None: ...

    def limits(self, task: Task) -> tuple[int | None, int | None, int]: ...
    def reconstruct(self, task: Task) -> Reconstructed: ...
    def further(self, task: Task) -> dict[str, Any]: ...
    def targets(self, report: Report, advice: Advice) -> Iterator[Target]: ...
    def summary(self, report: Report, advice: Advice) -> str: ...
    def tables(self, report: Report) -> Iterator[Table]: ...
    def code_values(self, task: Task, indices: Examples) -> tuple[Examples, str]: ...
    def draw(self, folder: Path, task: Task, evaluation: Evaluation) -> None: ...

    def posterior_samples(
        self, model: Any, corpus: Any, split: str, seed: int, given: Mapping[str, int], limit: int
    ) -> dict[str, Tensor]: ...
    def sample(self, draw: Draw) -> Decoded: ...
    def read_end(self, text: str, flag: str, loaded: Loaded, note: Note) -> tuple[str, Any]: ...
    def batch(self, model: Any, x: Tensor) -> Batch: ...
    def path(self, loaded: Loaded, steps: Examples, originals: Examples, note: Note) -> Decoded: ...
    def show(self, console: Console, decoded: Decoded) -> None: ...
    def write(self, files: Mapping[str, Path], decoded: Decoded, document: Report, title: str) -> None: ...

    def check_decodable(self, loaded: Loaded) -> None:
        """InputError where nothing can be decoded into examples."""

    def check_flags(self, given: Mapping[str, object]) -> None:
        """InputError for a flag (None if not given) that models of this kind do not have."""
        for flag, value in given.items():
            if value is not None and flag not in self.flags:
                raise InputError(f"{flag}: this model is of {self.noun}", "leave it out")

    def path_facts(self, steps: Examples, originals: Examples, distance: Callable[..., int]) -> tuple[Report, str]:
        """How a decoded path changes by the `distance` of two examples, and the same in words."""
        changed = [distance(*pair) for pair in pairwise(steps)]
        facts: dict[str, Any] = {
            "changed": changed,
            "mean_step": sum(changed) / len(changed),
            "largest_step": max(changed),
            "distance": distance(steps[0], steps[-1]),
            "distance_of_originals": distance(*originals),
            "wrong_at_ends": [distance(steps[place], originals[place]) for place in (0, -1)],
        }
        words = (
            f"{facts['mean_step']:.1f} {self.changes} change per step, {facts['largest_step']} at most; "
            f"{facts['distance']} between the decoded ends, {facts['distance_of_originals']} between the originals; "
            f"wrong {self.changes} in the decoded ends: {facts['wrong_at_ends'][0]} and {facts['wrong_at_ends'][1]}"
        )
        return facts, words


def title_of(loaded: Loaded) -> str:
    """The file and the epoch of a checkpoint."""
    return f"{loaded.path.name} of epoch {loaded.epoch}"


def picture_title(loaded: Loaded) -> str:
    """The checkpoint in the title of a picture: `title_of`, after its run if it lies in one."""
    return f"{loaded.run.name}, {title_of(loaded)}" if loaded.run is not None else title_of(loaded)


def write_text(path: Path, text: str) -> None:
    """A text file, written atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
