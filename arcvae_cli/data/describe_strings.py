"""What a corpus of derivations is made of, and whether its splits leak into each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arcvae_cli.data.arrays import SPLITS
from arcvae_cli.data.derivations import first_of_each, lengths
from arcvae_cli.data.strings import Origin, StringArrays


@dataclass(frozen=True)
class SplitDescription:
    """One split. `rules`: a derivation's number of them, on average and at the most; `padding`: share of all steps.

    None where there are no derivations.
    """

    strings: int
    mean_rules: float | None
    most_rules: int | None
    padding: float | None
    duplicates: int
    """Derivations that stand in the split already."""


@dataclass(frozen=True)
class Leak:
    """Derivations of split `of` that also stand in split `into`."""

    of: str
    into: str
    identical: int


@dataclass(frozen=True)
class Description:
    """A corpus of derivations of `steps` (T) steps. `counts`: (P,) how often each rule stands in all splits.

    `unused`: rules that the grammar could use, and no derivation does; `unusable`: those that it cannot. `examples`:
    the first strings of the training split, or of the first that has any; none without a grammar.
    """

    steps: int
    counts: tuple[int, ...]
    unused: tuple[int, ...]
    unusable: tuple[int, ...]
    origin: Origin
    splits: dict[str, SplitDescription]
    leaks: tuple[Leak, ...]
    examples: tuple[str, ...]


def describe_strings(arrays: StringArrays, examples: int = 5) -> Description:
    """Describe a corpus, with a few `examples` of its strings."""
    rules = arrays.rules
    counts = np.bincount(arrays.ids.ravel(), minlength=len(rules))
    real = [rule for rule in range(len(rules)) if rule != rules.padding]
    shown = next((arrays.rows(split)[:examples] for split in SPLITS if arrays.rows(split).size), np.zeros(0, np.int64))
    return Description(
        steps=arrays.ids.shape[1],
        counts=tuple(counts.tolist()),
        unused=tuple(rule for rule in real if rules.lhs[rule] >= 0 and not counts[rule]),
        unusable=tuple(rule for rule in real if rules.lhs[rule] < 0),
        origin=arrays.origin,
        splits={split: _split(arrays, split) for split in SPLITS},
        leaks=_leaks(arrays),
        examples=() if arrays.grammar is None else tuple(arrays.strings(shown)),
    )


def _split(arrays: StringArrays, split: str) -> SplitDescription:
    ids = arrays.ids[arrays.rows(split)]
    if not len(ids):
        return SplitDescription(0, None, None, None, 0)
    count = lengths(ids, arrays.rules.padding)
    return SplitDescription(
        strings=len(ids),
        mean_rules=float(count.mean()),
        most_rules=int(count.max()),
        padding=1 - float(count.sum()) / ids.size,
        duplicates=len(ids) - len(first_of_each(ids)),
    )


def _leaks(arrays: StringArrays) -> tuple[Leak, ...]:
    held = {split: [row.tobytes() for row in arrays.ids[arrays.rows(split)]] for split in SPLITS}
    pairs = (("test", "train"), ("test", "val"), ("val", "train"))
    known = {split: set(rows) for split, rows in held.items()}
    return tuple(
        Leak(of, into, sum(row in known[into] for row in held[of])) for of, into in pairs if held[of] and held[into]
    )
