"""What a kind of example has to know: scores, baselines, targets, tables, pictures, files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.information import InformationTally
from arcvae_cli.evaluation.verdict import Setup, Target, lookup
from arcvae_cli.models.base import VAE, Batch, Level

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.grammar import Grammar, Rules
    from arcvae_cli.models.grammar import Structure
    from arcvae_cli.records import Pictures
    from arcvae_cli.settings import Settings

Report = Mapping[str, Any]
"""Everything measured, as nested dicts: what `metrics.json` holds."""

Row = tuple[str, str, str]
"""Label, dotted key, and format of a number."""


class Sheet(NamedTuple):
    """A table of a report: the first column has names, the others formatted numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass
class Task:
    """What is to be evaluated: a model on a split of a corpus that lies on the model's device.

    `trained`: the corpus whose training split the model was trained on, for baselines and novelty; `corpus` if None.
    `grammar`: to write strings with. `iwae_samples`: draws per example of the importance-weighted bound, 0 for none.
    `monte_carlo`: examples, encodings of each, decodings of each code. `samples`: strings drawn from each prior.
    `quick`: fewer examples, and only what takes few passes. `tell` is called with what comes next. `indices`: (n,) the
    examples in the order seen, set by `evaluate`.
    """

    model: Any
    corpus: Any
    split: str
    settings: Settings
    trained: Any = None
    grammar: Grammar | None = None
    seed: int = 0
    iwae_samples: int = 0
    iwae_examples: int = 512
    monte_carlo: tuple[int, int, int] | None = None
    samples: int = 1000
    quick: bool = False
    tell: Callable[[str], None] = lambda _: None
    indices: Tensor = field(init=False)


@dataclass
class Encoded:
    """The codes of a task's examples: measures, posterior means (n, *shape) by level, scores at a posterior sample."""

    information: InformationTally
    means: Mapping[str, Tensor]
    at_sample: dict[str, Any]
    posterior: Level | None = None


@dataclass
class Reconstructed:
    """The report's `reconstruction`, wrong positions (n,) of each example, and nats and accuracy of the right codes."""

    report: dict[str, Any]
    errors: NDArray[np.int64]
    own: tuple[float, float]


@dataclass(frozen=True)
class Draw:
    """Latents drawn from a prior, and how they are to be decoded.

    `given`: conditions by name, `conditions`: the same encoded (n, A). `training`: opens the corpus whose training
    split decides what is novel, None if it is not available.
    """

    loaded: Loaded
    latents: Mapping[str, Tensor]
    prior: str
    temperature: float
    seed: int
    given: Mapping[str, int]
    conditions: Tensor | None
    argmax: bool
    budget: bool
    training: Callable[[], Any | None]
    note: Callable[[str], None]

    @property
    def title(self) -> str:
        return f"{self.prior} prior, temperature {self.temperature:g}"


class Samples(ABC):
    """Decoded samples.

    `facts`: what the JSON document says of them, `arrays`: what the npz holds beside latents. `plain`: whether a pipe
    gets the samples alone, the summary going to stderr.
    """

    plain: ClassVar[bool] = False
    facts: dict[str, Any]
    arrays: dict[str, Any]

    @abstractmethod
    def write(self, files: Mapping[str, Path], document: Mapping[str, Any]) -> None:
        """Write all but the npz into `files`, by suffix."""

    @abstractmethod
    def show(self, console: Console) -> None:
        """Print the samples."""

    @abstractmethod
    def summary(self) -> list[str]:
        """Lines on the samples."""


class Walk(ABC):
    """A decoded path between the codes of two examples: `steps` (S, *positions) and the `originals` (2, *positions)."""

    unit: ClassVar[str]

    def __init__(self, loaded: Loaded, steps: NDArray[Any], originals: NDArray[Any]) -> None:
        self.loaded, self.steps, self.originals = loaded, steps, originals

    @abstractmethod
    def distance(self, one: NDArray[Any], other: NDArray[Any]) -> int:
        """How many positions differ between two examples."""

    def facts(self) -> dict[str, Any]:
        """What the JSON report says of the path."""
        changed = [self.distance(*pair) for pair in pairwise(self.steps)]
        return {
            "changed": changed,
            "mean_step": sum(changed) / len(changed),
            "largest_step": max(changed),
            "distance": self.distance(self.steps[0], self.steps[-1]),
            "distance_of_originals": self.distance(*self.originals),
            "wrong_at_ends": [self.distance(self.steps[place], self.originals[place]) for place in (0, -1)],
        }

    def summary(self, facts: Report) -> str:
        """A line on the path."""
        return (
            f"{facts['mean_step']:.1f} {self.unit} change per step, {facts['largest_step']} at most; "
            f"{facts['distance']} between the decoded ends, {facts['distance_of_originals']} between the originals; "
            f"wrong {self.unit} in the decoded ends: {facts['wrong_at_ends'][0]} and {facts['wrong_at_ends'][1]}"
        )

    @abstractmethod
    def write(self, files: Mapping[str, Path], report: Mapping[str, Any], title: str) -> None:
        """Write all but the npz into `files`, by suffix."""

    @abstractmethod
    def show(self, console: Console) -> None:
        """Print the path."""


class Domain(ABC):
    """A kind of example.

    `noun`, `unit`: what examples and their positions are called, `array`: the name of examples in an npz. `formats`:
    suffixes of the files of samples and paths. `flags`: those of commands that other kinds do not have.
    `quick_shuffle`: whether a quick evaluation shuffles codes too.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    noun_singular: ClassVar[str]
    unit: ClassVar[str]
    array: ClassVar[str]
    dtype: ClassVar[type[np.generic]]
    formats: ClassVar[tuple[str, ...]]
    flags: ClassVar[frozenset[str]]
    quick_shuffle: ClassVar[bool]

    def check_flags(self, given: Mapping[str, object]) -> None:
        """InputError for a flag (None if not given) that models of this kind do not have."""
        for flag, value in given.items():
            if value is not None and flag not in self.flags:
                raise InputError(f"{flag}: this model is of {self.noun}", "leave it out")

    # -------------------------------------------------------------------------------------------- training

    @abstractmethod
    def validation_batch(self, corpus: Corpus) -> int:
        """Examples per batch of a validation pass; noise is drawn batch by batch."""

    @abstractmethod
    def baseline(self, corpus: Any) -> dict[str, float | None]:
        """Of a code without information on the validation split: `blank` (accuracy), `blank_nats`, `entropy`."""

    @abstractmethod
    def write_pictures(self, folder: Path, epoch: int, pictures: Pictures, rules: Rules | None) -> None:
        """Write the examples of an epoch of training into the folder."""

    # -------------------------------------------------------------------------------------------- evaluation

    def check(self, task: Task) -> None:  # noqa: B027 - most have nothing to check
        """InputError where the options of a task do not fit its model."""

    @abstractmethod
    def limits(self, task: Task) -> tuple[int | None, int | None]:
        """Most examples of an evaluation, and of what takes many passes; None for all."""

    @abstractmethod
    def pass_size(self, corpus: Corpus) -> int:
        """Examples per forward pass."""

    @abstractmethod
    def encode(self, task: Task) -> Encoded:
        """Encode the task's examples and reconstruct them at one posterior sample."""

    @abstractmethod
    def reconstruct(self, task: Task, encoded: Encoded, levels: Report, few: Tensor) -> Reconstructed:
        """Reconstruct at the posterior means, beside the baselines. `few`: the examples that `own` is of."""

    @abstractmethod
    def paths(self, task: Task) -> dict[str, Any] | None:
        """Interpolations between pairs of examples."""

    def likelihood(self, task: Task, encoded: Encoded) -> dict[str, Any]:  # noqa: ARG002
        """What else the report says of the likelihood."""
        return {}

    @abstractmethod
    def samples(self, task: Task) -> dict[str, Any]:
        """Parts of the report on samples from the prior."""

    @abstractmethod
    def targets(self, report: Report, setup: Setup) -> Iterator[Target]:
        """The targets of a verdict."""

    @abstractmethod
    def summary(self, report: Report, setup: Setup) -> str:
        """The verdict in a line; `{targets}` stands for how many are missed."""

    # -------------------------------------------------------------------------------------------- report

    @abstractmethod
    def reconstruction_sheets(self, report: Report) -> Iterator[Sheet | str]:
        """Tables and remarks on reconstructions."""

    def likelihood_rows(self, report: Report) -> Iterator[tuple[str, float, float]]:  # noqa: ARG002
        """Further likelihoods: name, nats per example, bits per position."""
        yield from ()

    @abstractmethod
    def path_lines(self, report: Report) -> Iterator[str]:
        """Remarks on the report's interpolations."""

    @abstractmethod
    def sample_sheets(self, report: Report, loaded: Loaded) -> Iterator[Sheet | str]:
        """Tables and remarks on samples."""

    @abstractmethod
    def code_values(self, task: Task, evaluation: Evaluation, count: int) -> tuple[NDArray[Any], str]:
        """What the first `count` codes are coloured by in a scatter plot, and its name."""

    @abstractmethod
    def draw(self, folder: Path, loaded: Loaded, task: Task, evaluation: Evaluation) -> None:
        """Write reconstructions and other pictures of an evaluation into the folder."""

    # -------------------------------------------------------------------------------------------- samples, paths

    def structure(self, model: Any) -> Structure | None:  # noqa: ARG002
        """What a corpus has to fit to be used with the model."""
        return None

    def check_decodable(self, loaded: Loaded) -> None:  # noqa: B027 - most have nothing to check
        """InputError where nothing can be decoded into examples."""

    @abstractmethod
    def posterior_samples(
        self, model: VAE, corpus: Any, split: str, seed: int, given: Mapping[str, int], limit: int
    ) -> dict[str, Tensor]:
        """One posterior sample by level (n, *shape) of at most `limit` examples, those that satisfy `given`.

        Samples, not means: the spread of each posterior belongs to the aggregate posterior, and in a hierarchy the
        lower posterior depends on the sample above it.
        """

    @abstractmethod
    def sample(self, draw: Draw) -> Samples:
        """Decode samples and score them."""

    @abstractmethod
    def read_end(
        self, text: str, flag: str, loaded: Loaded, split: str, note: Callable[[str], None]
    ) -> tuple[str, Any]:
        """The example (*positions) that an end of a path means that is no index, and its name."""

    @abstractmethod
    def batch(self, model: Any, x: Tensor) -> Batch:
        """A batch of examples (B, *positions)."""

    @abstractmethod
    def walk(self, loaded: Loaded, steps: NDArray[Any], originals: NDArray[Any], note: Callable[[str], None]) -> Walk:
        """A decoded path."""


def title_of(loaded: Loaded) -> str:
    """The checkpoint in the title of a picture."""
    return f"{loaded.path.name} of epoch {loaded.epoch}"


def table(rows: Iterable[Row], columns: Sequence[Report]) -> list[tuple[str, ...]]:
    """Rows of a sheet: each label, and its number in each of the columns."""
    from arcvae_cli.console import cell

    return [(label, *(cell(lookup(column, key), form) for column in columns)) for label, key, form in rows]


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An `.npz`, written atomically."""
    from arcvae_cli.files import atomic_write

    with atomic_write(path) as temporary, temporary.open("wb") as file:  # a name would be given the suffix .npz
        np.savez_compressed(file, **arrays)


def write_text(path: Path, text: str) -> None:
    """A text file, written atomically."""
    from arcvae_cli.files import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
