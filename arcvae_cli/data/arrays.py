"""One dataset for grids and strings as plain arrays, and how its examples are split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.symmetries import SIDE, Grids
from arcvae_cli.errors import InputError
from arcvae_cli.files import size
from arcvae_cli.grammar import Grammar, Rules

SPLITS = ("train", "val", "test")
ARRAY_BYTES = 3 * 2**28  # largest size of the arrays of a file or a dataset, checked before allocation


@dataclass(frozen=True)
class Origin:
    """How derivations were obtained, by which parser and for what reason, and counts of lines."""

    how: str = "ready"  # or drawn, enumerated, parsed
    grammar: str | None = None
    source: str | None = None
    parser: str | None = None
    reason: str | None = None
    lines: int = 0
    failed: int = 0
    too_long: int = 0
    ambiguous: int = 0  # lines with several derivations
    duplicates: int = 0
    entropy: float | None = None  # nats, of the distribution that strings are drawn from


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples with their splits: grids, or derivations of a grammar where `rules` are given.

    `x`: (N, 16, 16) uint8 colours 0-9, smaller grids top-left on 0; or (N, T) int16 left-most derivations, the padding
    rule after their ends. `split`: (N,) uint8 index into SPLITS. `shape`: (N, 2) uint8 height and width of grids, None
    if the canvas is the grid. `grammar`: None if only ids and masks are known. `notes`: how the data was read.
    """

    name: str
    x: NDArray[Any]
    split: NDArray[np.uint8]
    shape: Grids | None = None
    task: NDArray[np.str_] | None = None
    rules: Rules | None = None
    grammar: Grammar | None = None
    origin: Origin = Origin()
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["grids", "strings"]:
        return "grids" if self.rules is None else "strings"

    def fingerprint(self) -> str:
        """SHA-256 of the content in hexadecimal, whatever the file, name or string width."""
        digest = hashlib.sha256(f"{self.x.shape}".encode())
        digest.update(self.x.tobytes() + self.split.tobytes())
        if self.rules is None:
            digest.update(b"shape" if self.shape is None else self.shape.tobytes())
            digest.update(b"task" if self.task is None else "\n".join(self.task.tolist()).encode())
        else:
            digest.update(f"{self.rules.lhs} {self.rules.rhs} {self.rules.start} {self.rules.padding}".encode())
        if self.grammar is not None:
            digest.update(repr((self.grammar.separator, list(map(str, self.grammar.productions)))).encode())
        return digest.hexdigest()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of a split, ascending: (n,)."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def only(self, rows: NDArray[np.int64]) -> Dataset:
        shape = None if self.shape is None else self.shape[rows]
        task = None if self.task is None else self.task[rows]
        return replace(self, x=self.x[rows], split=self.split[rows], shape=shape, task=task)

    def limited(self, limit: int) -> Dataset:
        """At most `limit` training examples, an eighth for validation, and the test split; nested and deterministic."""
        kept = [self.rows("test")]
        for split, most in (("train", limit), ("val", max(1, limit // 8))):
            kept.append(np.random.RandomState(0).permutation(self.rows(split))[:most])
        return self.only(np.sort(np.concatenate(kept)))

    def strings(self, rows: NDArray[np.int64]) -> list[str]:
        assert self.grammar is not None, "writing strings needs a grammar"
        return [written(self.grammar, ids) for ids in self.x[rows].tolist()]


def written(grammar: Grammar, ids: Sequence[int]) -> str:
    """The string of a complete derivation."""
    string = grammar.write(ids)
    assert string is not None, "a dataset holds complete derivations only"
    return string


def joined(name: str, parts: Sequence[Dataset]) -> Dataset:
    """One dataset of grids; it has shapes and tasks if the first part has them."""
    columns = zip(*((part.x, part.split, part.shape, part.task) for part in parts), strict=True)
    return Dataset(name, *(None if column[0] is None else np.concatenate(column) for column in columns))  # type: ignore[arg-type]


def padded(grids: Sequence[NDArray[Any]]) -> tuple[Grids, Grids]:
    """Grids (H, W) of up to 16x16 top-left on canvases (N, 16, 16) of 0, and their shapes (N, 2)."""
    canvases = np.zeros((len(grids), SIDE, SIDE), np.uint8)
    for canvas, grid in zip(canvases, grids, strict=True):
        canvas[: grid.shape[0], : grid.shape[1]] = grid
    return canvases, np.array([grid.shape for grid in grids], np.uint8)


def refuse_large(what: str, count: int) -> None:
    """InputError for arrays of more than ARRAY_BYTES bytes."""
    if count > ARRAY_BYTES:
        fix = "use fewer examples, or shorter ones (--max-rules)"
        raise InputError(f"{what}: {size(count)} of arrays, the limit is {size(ARRAY_BYTES)}", fix)


def split_sizes(size: int, seed: int) -> tuple[int, int, int]:
    """80/10/10 of a corpus to be built; InputError for a size or a seed out of range."""
    for key, value, least, most in (("size", size, 10, 2_000_000), ("seed", seed, 0, 2**32 - 1)):
        if not least <= value <= most:
            raise InputError(f"data.{key}: {value} is out of range", f"use {least} to {most}")
    return size - 2 * (size // 10), size // 10, size // 10


def split_by_key(keys: Sequence[bytes]) -> NDArray[np.uint8]:
    """80/10/10 by a hash of each key, equal keys together: (N,) index into SPLITS. No split is empty from 3 keys on."""
    order = sorted(set(keys), key=lambda key: hashlib.sha256(key).digest())
    part = max(1, round(len(order) / 10)) if len(order) >= 3 else 0
    place = {key: 2 if rank < part else 1 if rank < 2 * part else 0 for rank, key in enumerate(order)}
    return np.array([place[key] for key in keys], np.uint8)


def canvas_keys(grids: Grids) -> list[bytes]:
    """The content of each grid (N, 16, 16) as bytes, to hash or compare."""
    return [grid.tobytes() for grid in grids]


def unseen(grids: Grids, seen: set[bytes], most: int | None = None) -> NDArray[np.int64]:
    """Rows of the first `most` different grids that are not in `seen`, which grows by them: (n,)."""
    found: dict[bytes, int] = {}
    for row, key in enumerate(canvas_keys(grids)):
        if key not in seen and (most is None or len(found) < most):
            found.setdefault(key, row)
    seen.update(found)
    return np.array([*found.values()], np.int64)
