"""What a kind of example knows: its scores, baselines, samples, targets, tables, pictures and files."""

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
Given = Mapping[str, int]  # conditions
Reconstructed = tuple[Codes, Mapping[str, Tensor], dict[str, Any], NDArray[np.int64], tuple[float, float]]
"""Codes, (n, *shape) means by level, scores, (n,) wrong positions, nats and accuracy of `Task.few` by own codes."""


class Table(NamedTuple):
    """A table of a report. `columns`: headings and the text that replaces `{}` in dotted keys.

    `rows`: label, dotted key and format; a key without `{}` has its value in the first column.
    """

    title: str
    columns: Mapping[str, str]
    rows: Sequence[tuple[str, str, str]]
    note: str = ""


PATH_SCORES = (
    ("pairs of {noun}", "pairs", ""),
    ("different {noun} on a path", "distinct", ".1f"),
    ("{changes} changed per step", "mean_step", ".1f"),
    ("  in the largest step", "largest_step", ".1f"),
    ("  of the distance of the ends", "largest_step_share", ".0%"),
    ("{changes} that differ between the ends", "distance", ".1f"),
    ("valid strings", "valid_share", ".1%"),
    ("paths of valid strings", "valid_paths", ".1%"),
)


@dataclass
class Task:
    """What is to be evaluated: a model on a split of a corpus that lies on the model's device."""

    model: Any
    corpus: Any
    split: str
    settings: Settings
    trained: Any = None  # the corpus of the training split, for baselines and novelty; `corpus` if None
    seed: int = 0
    iwae_samples: int = 0  # draws per example of the importance-weighted bound, 0 for none
    iwae_examples: int = 512
    monte_carlo: tuple[int, int, int] | None = None  # examples, encodings of each, decodings of each code
    samples: int = 1000
    quick: bool = False  # only what takes few passes
    title: str = ""  # the checkpoint, in pictures
    note: Note = lambda _: None
    indices: Tensor = field(init=False)  # (n,) the examples in the order seen, set by `evaluate`
    few: Tensor = field(init=False)  # the first of them, for what takes many passes


class Draw(NamedTuple):
    """Latents drawn from a prior, and how to decode them; `training` opens the corpus that decides what is novel."""

    loaded: Loaded
    latents: Mapping[str, Tensor]
    temperature: float
    seed: int
    given: Given
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
    """A kind of example: to add one, write a subclass and its line in `DOMAINS`.

    `per`: headings of nats and bits. `changes`: what changes along a path. `formats`: suffixes of the files of samples
    and paths. `takes_flags`: whether the flags of strings apply. `plain`: whether a pipe gets samples alone.
    `baseline`: a code without information on the validation split. `limits`: the most examples, the most for what takes
    many passes (None for all), the batch size. `further` measures paths and samples. `code_values`: (n,) values that
    colour a scatter plot, their name. `posterior_samples`: (n, *shape) by level, of at most `limit` examples that
    satisfy `given`. `read_end`: name and example (*positions) of an end of a path that is no index. `path` scores the
    decoded `steps` (S, *positions) between `originals` (2, *positions). `write` writes all but the npz.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    per: ClassVar[tuple[str, str]]
    changes: ClassVar[str]
    dtype: ClassVar[type[np.generic]]
    formats: ClassVar[tuple[str, ...]]
    quick_shuffle: ClassVar[bool] = False
    plain: ClassVar[bool] = False
    takes_flags: ClassVar[bool] = False

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
        self, model: Any, corpus: Any, split: str, seed: int, given: Given, limit: int
    ) -> dict[str, Tensor]: ...
    def sample(self, draw: Draw) -> Decoded: ...
    def read_end(self, text: str, flag: str, loaded: Loaded, note: Note) -> tuple[str, Any]: ...
    def batch(self, model: Any, x: Tensor) -> Any: ...
    def path(self, loaded: Loaded, steps: Examples, originals: Examples, note: Note) -> Decoded: ...
    def show(self, console: Console, decoded: Decoded) -> None: ...
    def write(self, files: Mapping[str, Path], decoded: Decoded, document: Report, title: str) -> None: ...

    def check_decodable(self, loaded: Loaded) -> None:
        """InputError where nothing can be decoded into examples."""

    def check_flags(self, given: Mapping[str, object]) -> None:
        """InputError for a flag of strings (None if not given) with a model of another kind."""
        for flag, value in given.items():
            if value is not None and not self.takes_flags:
                raise InputError(f"{flag}: this model is of {self.noun}", "omit it")

    def path_table(self) -> Table:
        """The scores of interpolation; those that this kind does not have are not shown."""
        rows = [
            (label.format(noun=self.noun, changes=self.changes), f"interpolation.{key}", form)
            for label, key, form in PATH_SCORES
        ]
        return Table("Interpolation", {"": ""}, rows)

    def path_facts(self, steps: Examples, originals: Examples, distance: Callable[..., int]) -> tuple[Report, str]:
        """How a decoded path changes by the `distance` of two examples, and the same in words."""
        changed = [distance(*pair) for pair in pairwise(steps)]
        mean, largest = sum(changed) / len(changed), max(changed)
        ends, between = distance(steps[0], steps[-1]), distance(*originals)
        wrong = [distance(steps[place], originals[place]) for place in (0, -1)]
        facts = {"changed": changed, "mean_step": mean, "largest_step": largest, "distance": ends}
        words = (
            f"{mean:.1f} {self.changes} change per step, {largest} at most; {ends} between the decoded ends, "
            f"{between} between the originals; wrong {self.changes} in the decoded ends: {wrong[0]} and {wrong[1]}"
        )
        return {**facts, "distance_of_originals": between, "wrong_at_ends": wrong}, words


def title_of(loaded: Loaded) -> str:
    """The file and the epoch of a checkpoint."""
    return f"{loaded.path.name} of epoch {loaded.epoch}"


def picture_title(loaded: Loaded) -> str:
    """The checkpoint in the title of a picture: `title_of`, after its run if it lies in one."""
    return f"{loaded.run.name}, {title_of(loaded)}" if loaded.run is not None else title_of(loaded)
