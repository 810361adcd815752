"""Derivations as the text that recorders show: strings of their grammar, or the ids of their rules without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.files import atomic_write
from arcvae_cli.grammar import Rules, parse_grammar
from arcvae_cli.recorders.pictures import Curves
from arcvae_cli.records import Pictures

Derivations = NDArray[np.integer[Any]]
"""(n, T) ids of rules, padded."""

INCOMPLETE = "(incomplete)"
"""Stands for a derivation that is cut off before its end."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An example and its reconstruction as text; `exact`: every rule of the example is right."""

    original: str
    reconstruction: str
    exact: bool


class Writer:
    """Writes derivations by these rules; where only ids and masks are known, the ids of the rules, with commas."""

    def __init__(self, rules: Rules) -> None:
        self._padding = rules.padding
        self._grammar = None if rules.text is None else parse_grammar(rules.text, "grammar")

    def pairs(self, originals: Derivations, reconstructions: Derivations) -> list[Pair]:
        """Each example (n, T) beside its reconstruction, what follows on the end of the example left out."""
        over = originals == self._padding
        exact = (over | (originals == reconstructions)).all(axis=1).tolist()
        if self._grammar is None:  # nothing but the example tells where the derivation ends
            reconstructions = np.where(over, self._padding, reconstructions)
        texts = zip(self._texts(originals), self._texts(reconstructions), exact, strict=True)
        return [Pair(original, reconstruction, same) for original, reconstruction, same in texts]

    def samples(self, ids: Derivations) -> list[str]:
        """Each of the derivations (n, T); none without a grammar, by which alone something new can be derived."""
        return [] if self._grammar is None else self._texts(ids)

    def _texts(self, ids: Derivations) -> list[str]:
        if self._grammar is None:
            return [",".join(map(str, row[row != self._padding].tolist())) for row in ids]
        texts = (self._grammar.write(row.tolist()) for row in ids)
        return [INCOMPLETE if text is None else text for text in texts]


def pair_lines(pairs: Sequence[Pair]) -> list[str]:
    """How many are exact, then each original, with its reconstruction under it where that is another."""
    lines = [f"{sum(pair.exact for pair in pairs)} of {len(pairs)} exact"]
    for pair in pairs:
        lines += [f"= {pair.original}"] if pair.exact else [f"- {pair.original}", f"+ {pair.reconstruction}"]
    return lines


class StringPictures(Curves):
    """Writes the strings of derivations into a folder, and the curves."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        super().__init__(folder)
        self._writer = Writer(rules)

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        """Write `reconstructions_epoch_N.txt`, and `samples_epoch_N.txt` with a string a line."""
        pairs = self._writer.pairs(pictures.originals, pictures.reconstructions)
        self._write(f"reconstructions_epoch_{epoch}.txt", pair_lines(pairs))
        if samples := self._writer.samples(pictures.samples):
            self._write(f"samples_epoch_{epoch}.txt", samples)

    def _write(self, name: str, lines: Sequence[str]) -> None:
        with atomic_write(self._folder / name) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
