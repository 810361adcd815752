"""What a kind of example knows: its scores, baselines, samples, targets, tables, pictures and files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.information import Codes, eval_mode
from arcvae_cli.files import atomic_write

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.settings import Settings

Note = Callable[[str], None]
Report = Mapping[str, Any]  # everything measured, as nested dicts: what `metrics.json` holds
Examples = NDArray[Any]  # (n, *positions) classes, as small integers
Given = Mapping[str, int]  # conditions
Reconstructed = tuple[Codes, Mapping[str, Tensor], dict[str, Any], NDArray[np.int64], tuple[float, float]]
"""Codes, (n, *shape) means by level, scores, (n,) wrong positions, nats and accuracy of `Task.few` by own codes."""


class Table(NamedTuple):
    """A table of a report: headings and what replaces `{}` in dotted keys, rows of label, dotted key and format."""

    title: str
    columns: Mapping[str, str]
    rows: Sequence[tuple[str, str, str]]
    note: str = ""


PATH_SCORES = (
    ("different examples on a path", "interpolation.distinct", ".1f"),
    ("changes per step", "interpolation.mean_step", ".1f"),
    ("  in the largest step", "interpolation.largest_step", ".1f"),
    ("  of the distance of the ends", "interpolation.largest_step_share", ".0%"),
    ("valid strings", "interpolation.valid_share", ".1%"),
    ("paths of valid strings", "interpolation.valid_paths", ".1%"),
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
    examples: int | None = None  # evaluated at most, None for all
    iwae_samples: int = 0  # draws per example of the importance-weighted bound, 0 for none
    iwae_examples: int = 512
    monte_carlo: tuple[int, int, int] | None = None  # examples, encodings of each, decodings of each code
    samples: int = 1000
    quick: bool = False  # only what takes few passes
    title: str = ""  # the checkpoint, in pictures
    note: Note = lambda _: None
    indices: Tensor = field(init=False)  # (n,) the examples in the order seen, set by `evaluate`
    few: Tensor = field(init=False)  # the first of them, for what takes many passes


class Decoded(NamedTuple):
    """Decoded samples, or a path: for the JSON document, for the npz, what is shown, and a line of text."""

    facts: dict[str, Any]
    arrays: dict[str, Any]
    rows: Any
    summary: str


class Domain:
    """What the kinds of example share. A new kind is a class with the methods of `GridDomain`, and a line in `DOMAINS`.

    `per`: headings of nats and bits. `changes`: what changes along a path. `formats(structure)`: suffixes of files
    of samples and paths. `plain`: whether examples are text: the flags of strings apply, a pipe gets samples alone.
    """

    noun = changes = ""
    quick_shuffle = plain = False

    def check_decodable(self, loaded: Loaded) -> None:
        """InputError for a model of strings that was trained without a grammar."""
        if self.plain and loaded.grammar is None:
            raise InputError(f"{loaded.path}: the model was trained without a grammar", "train with --grammar FILE")

    def check_flags(self, given: Mapping[str, object]) -> None:
        """InputError for a flag of strings (None if not given) with a model of another kind."""
        for flag, value in given.items():
            if value is not None and not self.plain:
                raise InputError(f"{flag}: this model is of {self.noun}", "omit it")

    def pairs(self, task: Task, evaluation: Evaluation, count: int) -> Iterator[tuple[Any, ...]]:
        """First examples and then the worst ones: the name of their file, (n, *positions), reconstructions, indices."""
        worst = evaluation.indices[np.argsort(-evaluation.errors, kind="stable")]
        for name, order in (("reconstructions", evaluation.indices), ("errors", worst)):
            with eval_mode(task.model, 0) as device:
                batch = task.corpus.batch(task.split, torch.from_numpy(order[:count]).to(device))
                reconstructed = task.model.reconstruct(batch).cpu().numpy()
            yield name, batch.x.cpu().numpy(), reconstructed, order[:count]

    def path_facts(self, steps: Any, originals: Any, distance: Any) -> tuple[dict[str, Any], str]:
        """How a decoded path changes by the `distance` of two examples, and the same in words."""
        changed = [distance(*pair) for pair in pairwise(steps)]
        facts = {
            "changed": changed,
            "mean_step": sum(changed) / len(changed),
            "largest_step": max(changed),
            "distance": distance(steps[0], steps[-1]),
            "distance_of_originals": distance(*originals),
            "wrong_at_ends": [distance(steps[place], originals[place]) for place in (0, -1)],
        }
        words = "{mean_step:.1f} {changes} change per step, {largest_step} at most; {distance} between the decoded ends"
        return facts, words.format(changes=self.changes, **facts)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file, written atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def picture_title(loaded: Loaded) -> str:
    """The run, the file and the epoch of a checkpoint."""
    run = "" if loaded.run is None else f"{loaded.run.name}, "
    return f"{run}{loaded.path.name} of epoch {loaded.epoch}"
