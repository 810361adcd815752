"""What a corpus of grids is made of, and whether its splits leak into each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.conditions import ATTRIBUTES, attributes
from arcvae_cli.data.arrays import SPLITS, GridArrays, canvas_keys
from arcvae_cli.data.symmetries import CELLS, COLOURS, SIDE, SYMMETRIES, Grids, gather_table

_CHUNK = 4096


@dataclass(frozen=True)
class SplitDescription:
    """One split. Shares are of its cells (`black`) or of its grids (`single_colour`); None where there are no grids."""

    grids: int
    tasks: int | None
    black: float | None
    single_colour: float | None
    duplicates: int
    """Grids that stand in the split already, with the same shape where shapes are known."""


@dataclass(frozen=True)
class Leak:
    """Grids and tasks of split `of` that also stand in split `into`."""

    of: str
    into: str
    identical: int
    """Grids with the same canvas."""
    equivalent: int
    """Grids with the same canvas up to a symmetry of their rectangle and a permutation of the colours 1-9."""
    tasks: int | None


@dataclass(frozen=True)
class Description:
    """A corpus. `colours`: share of the cells of each colour. `shapes`: the commonest, (height, width, grids)."""

    splits: dict[str, SplitDescription]
    colours: tuple[float, ...]
    shapes: tuple[tuple[int, int, int], ...]
    leaks: tuple[Leak, ...]


@dataclass(frozen=True)
class ConditionDescription:
    """A condition, what it says, and for each of its values how many grids of the training split have it."""

    name: str
    text: str
    values: tuple[str, ...]
    counts: tuple[int, ...]


def describe(arrays: GridArrays, shapes: int = 8) -> Description:
    """Describe a corpus, with the `shapes` commonest shapes: a few seconds for 100,000 grids."""
    cells = [int(np.count_nonzero(arrays.grids == colour)) for colour in range(COLOURS)]
    sides = [] if arrays.shape is None else Counter(map(tuple, arrays.shape.tolist())).most_common(shapes)
    return Description(
        splits={split: _split(arrays, split) for split in SPLITS},
        colours=tuple(count / arrays.grids.size for count in cells),
        shapes=tuple((height, width, count) for (height, width), count in sides),
        leaks=_leaks(arrays),
    )


def describe_conditions(arrays: GridArrays) -> tuple[ConditionDescription, ...]:
    """What a grid can be asked to be, and how often the corpus's training split is like that."""
    measured = attributes(arrays.grids[arrays.rows("train")])
    return tuple(
        ConditionDescription(
            attribute.name,
            attribute.text,
            attribute.values,
            tuple(np.bincount(column, minlength=attribute.size).tolist()),
        )
        for attribute, column in zip(ATTRIBUTES, measured.T, strict=True)
    )


def canonical_hashes(grids: Grids, shape: Grids | None) -> NDArray[np.uint64]:
    """A hash (N,) of each grid that symmetries of its rectangle and permutations of the colours 1-9 leave alone.

    The cells of each colour are added up under random weights, once for each symmetry; the sums are mixed, added over
    the colours, and the smallest of the eight is the hash. Weights are integers of 44 bits, so that float64 adds them
    without rounding, and BLAS can do the work. Different grids agree by chance with a probability near 2**-44.
    """
    weights = np.random.RandomState(0).randint(1, 2**44, CELLS, dtype=np.int64).astype(np.float64)
    sides = np.full((len(grids), 2), SIDE, np.int64) if shape is None else shape.astype(np.int64)
    place = (sides[:, 0] - 1) * SIDE + sides[:, 1] - 1
    hashes = np.empty(len(grids), np.uint64)
    flat = grids.reshape(-1, CELLS)
    for index in np.unique(place).tolist():
        moved = np.empty((SYMMETRIES, CELLS))  # the weight of the place that each cell goes to
        np.put_along_axis(moved, gather_table()[index // SIDE, index % SIDE].astype(np.int64), weights, axis=1)
        rows = np.flatnonzero(place == index)
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            total = np.zeros((len(some), SYMMETRIES), np.uint64)
            for colour in range(1, COLOURS):
                total += _mixed(((flat[some] == colour).astype(np.float64) @ moved.T).astype(np.uint64))
            hashes[some] = total.min(axis=1)
    return hashes


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), which keeps 0 at 0: a colour that is not there."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _split(arrays: GridArrays, split: str) -> SplitDescription:
    rows = arrays.rows(split)
    grids = arrays.grids[rows]
    shape = None if arrays.shape is None else arrays.shape[rows]
    tasks = None if arrays.task is None else len(set(arrays.task[rows].tolist()))
    if not len(grids):
        return SplitDescription(0, tasks, None, None, 0)
    distinct = set(canvas_keys(grids if shape is None else _framed(grids, shape)))
    return SplitDescription(
        grids=len(grids),
        tasks=tasks,
        black=float((grids == 0).mean()),
        single_colour=float(_single(grids, shape).mean()),
        duplicates=len(grids) - len(distinct),
    )


def _single(grids: Grids, shape: Grids | None) -> NDArray[np.bool_]:
    """Whether all cells of a grid's rectangle have the colour of its first."""
    framed = grids if shape is None else _framed(grids, shape)
    other = (framed != framed[:, :1, :1]) & (framed < COLOURS)
    single: NDArray[np.bool_] = ~other.any(axis=(1, 2))
    return single


def _framed(grids: Grids, shape: Grids) -> Grids:
    """Grids with what lies outside their rectangle told apart from black."""
    side = np.arange(SIDE)
    inside = (side < shape[:, :1])[:, :, None] & (side < shape[:, 1:])[:, None, :]
    return np.where(inside, grids, np.uint8(COLOURS))


def _leaks(arrays: GridArrays) -> tuple[Leak, ...]:
    keys = np.array(canvas_keys(arrays.grids), object)
    hashes = canonical_hashes(arrays.grids, arrays.shape)
    leaks = []
    for of, into in (("test", "train"), ("test", "val"), ("val", "train")):
        here, there = arrays.rows(of), arrays.rows(into)
        if here.size and there.size:
            known = set(keys[there])
            tasks = None
            if arrays.task is not None:
                tasks = len(set(arrays.task[here].tolist()) & set(arrays.task[there].tolist()))
            identical = sum(key in known for key in keys[here])
            leaks.append(Leak(of, into, identical, int(np.isin(hashes[here], hashes[there]).sum()), tasks))
    return tuple(leaks)
