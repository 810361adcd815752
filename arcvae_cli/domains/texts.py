"""Derivations as text: strings of their grammar, or the ids of their rules without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.files import atomic_write
from arcvae_cli.grammar import Rules, parse_grammar

Derivations = NDArray[np.integer[Any]]  # (n, T) ids of rules, padded
INCOMPLETE = "(incomplete)"  # a derivation that was cut off before its end


class Pair(NamedTuple):
    """An example and its reconstruction as text; `exact`: every rule of the example is right."""

    original: str
    reconstruction: str
    exact: bool


class StringFormatter:
    """Formats derivations as strings, or as the ids of their rules with commas if only ids and masks are known."""

    def __init__(self, rules: Rules) -> None:
        self._padding = rules.padding
        self._grammar = None if rules.text is None else parse_grammar(rules.text, "grammar")

    def pairs(self, originals: Derivations, reconstructions: Derivations) -> list[Pair]:
        """Each example (n, T) and its reconstruction, without what follows the end of the example."""
        over = originals == self._padding
        exact = (over | (originals == reconstructions)).all(axis=1).tolist()
        if self._grammar is None:  # only the example says where the derivation ends
            reconstructions = np.where(over, self._padding, reconstructions)
        return list(map(Pair, self._texts(originals), self._texts(reconstructions), exact))

    def samples(self, ids: Derivations) -> list[str]:
        """Each of the derivations (n, T); none without a grammar, which alone can derive anything."""
        return [] if self._grammar is None else self._texts(ids)

    def _texts(self, ids: Derivations) -> list[str]:
        if self._grammar is None:
            return [",".join(map(str, row[row != self._padding].tolist())) for row in ids]
        texts = (self._grammar.write(row.tolist()) for row in ids)
        return [INCOMPLETE if text is None else text for text in texts]


def pair_lines(pairs: Sequence[Pair]) -> list[str]:
    """How many are exact, then each original, with its reconstruction under it unless it is exact."""
    lines = [f"{sum(pair.exact for pair in pairs)} of {len(pairs)} exact"]
    for pair in pairs:
        lines += [f"= {pair.original}"] if pair.exact else [f"- {pair.original}", f"+ {pair.reconstruction}"]
    return lines


def written(grammar: Any, derivations: Sequence[Sequence[int]]) -> list[str]:
    """The strings of derivations, empty for one that is incomplete."""
    return [grammar.write(ids) or "" for ids in derivations]


def write_text(path: Path, text: str) -> None:
    """A text file, written atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file, one item per line."""
    write_text(path, "".join(f"{line}\n" for line in lines))
