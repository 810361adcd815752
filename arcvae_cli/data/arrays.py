"""A corpus of grids as plain arrays, and how examples are shared out among the splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.symmetries import CELLS, Grids
from arcvae_cli.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class GridArrays:
    """A corpus of grids.

    `grids`: (N, 16, 16) uint8 colours 0-9, smaller ones in the top-left corner on 0. `split`: (N,) uint8 index into
    SPLITS. `shape`: (N, 2) uint8 height and width, or None where the canvas is the grid. `task`: (N,) str, or None.
    `notes`: what a person should be told about how the corpus was read; no part of the fingerprint.
    """

    name: str
    grids: Grids
    split: Grids
    shape: Grids | None = None
    task: NDArray[np.str_] | None = None
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 of the arrays, in hexadecimal: of what they hold, whatever their file, name or string width."""
        digest = hashlib.sha256(f"{self.grids.shape}".encode())
        digest.update(self.grids.tobytes())
        digest.update(self.split.tobytes())
        digest.update(b"shape" if self.shape is None else self.shape.tobytes())
        digest.update(b"task" if self.task is None else "\n".join(self.task.tolist()).encode())
        return digest.hexdigest()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Where the grids of a split stand: (n,)."""
        return rows_of(self.split, split)

    def limited(self, limit: int) -> GridArrays:
        """The corpus with at most `limit` grids to train on and an eighth of that to validate on, chosen at random.

        The choice is always the same, and smaller limits choose among what larger ones do. Test is left whole.
        """
        rows = limited_rows(self.split, limit)
        return replace(
            self,
            grids=self.grids[rows],
            split=self.split[rows],
            shape=None if self.shape is None else self.shape[rows],
            task=None if self.task is None else self.task[rows],
        )

    def require(self, splits: Iterable[str]) -> None:
        """Refuse, with an InputError, a corpus that has no grids in one of these splits."""
        fix = "Give it grids: an array `{0}`, or `split` values of '{0}' beside `grids`."
        require_splits(self.name, self.split, splits, fix)


def rows_of(split: NDArray[np.uint8], name: str) -> NDArray[np.int64]:
    """Where the examples of a split stand, given the index into SPLITS of each: (n,)."""
    return np.flatnonzero(split == SPLITS.index(name))


def limited_rows(split: NDArray[np.uint8], limit: int) -> NDArray[np.int64]:
    """Rows of all of test, of `limit` examples to train on, and of an eighth of that to validate on, ascending: (n,).

    The choice is always the same, and smaller limits choose among what larger ones do.
    """
    kept = [rows_of(split, "test")]
    for name, most in (("train", limit), ("val", max(1, limit // 8))):
        kept.append(np.random.RandomState(0).permutation(rows_of(split, name))[:most])
    return np.sort(np.concatenate(kept))


def require_splits(name: str, split: NDArray[np.uint8], needs: Iterable[str], fix: str) -> None:
    """InputError for a corpus with no examples in one of the splits that it `needs`, which `fix` holds a place for."""
    for one in needs:
        if not rows_of(split, one).size:
            raise InputError(f"{name}: the {one} split is empty", fix.format(one))


def split_sizes(size: int, seed: int) -> tuple[int, int, int]:
    """80/10/10 of a corpus to be built; InputError for a size or a seed out of range."""
    if not 10 <= size <= 2_000_000:
        raise InputError(f"data.size: a corpus of {size} cannot be built", "Use 10 to 2000000.")
    if not 0 <= seed < 2**32:
        raise InputError(f"data.seed: {seed} is out of range", "Use 0 to 4294967295.")
    return size - 2 * (size // 10), size // 10, size // 10


def split_by_key(keys: Sequence[bytes]) -> Grids:
    """80/10/10 by a hash of each key, equal keys together: (N,) index into SPLITS. From three keys on none is empty."""
    order = sorted(set(keys), key=lambda key: hashlib.sha256(key).digest())
    part = max(1, round(len(order) / 10)) if len(order) >= 3 else 0
    place = {key: 2 if rank < part else 1 if rank < 2 * part else 0 for rank, key in enumerate(order)}
    return np.array([place[key] for key in keys], np.uint8)


def canvas_keys(grids: Grids) -> list[bytes]:
    """The content of each grid (N, 16, 16) as bytes, to hash or to compare."""
    whole = grids.tobytes()
    return [whole[start : start + CELLS] for start in range(0, len(whole), CELLS)]
