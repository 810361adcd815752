"""What a dataset consists of, and whether its splits leak into each other, as plain dicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS, Dataset
from arcvae_cli.data.symmetries import CELLS, COLOURS, SIDE, SYMMETRIES, Grids, gather_table

_CHUNK = 4096


def describe(dataset: Dataset) -> dict[str, Any]:
    """The document of `data info --json` but for name and file: a few seconds for 100,000 grids.

    Shares are of cells (`black`, `colours`), grids (`single_colour`) or steps (`padding`), None in an empty split.
    `leaks`: examples of `of` also in `into`; `equivalent` ones up to a symmetry and a permutation of the colours 1-9.
    """
    rules, grids, splits, leaks = dataset.rules, dataset.rules is None, {}, []
    keys = [one.tobytes() for one in dataset.x]
    hashes = canonical_hashes(dataset.x, dataset.shape) if grids else None
    framed = dataset.x
    if dataset.shape is not None:  # cells outside the rectangle get a colour of their own
        side = np.arange(SIDE)
        inside = (side < dataset.shape[:, :1])[:, :, None] & (side < dataset.shape[:, 1:])[:, None, :]
        framed = np.where(inside, dataset.x, np.uint8(COLOURS))
    for split in SPLITS:
        rows = dataset.rows(split)
        part, count = framed[rows], len(rows)
        if rules is None:
            single = ~((part != part[:, :1, :1]) & (part < COLOURS)).any(axis=(1, 2))
            splits[split] = {
                "grids": count,
                "tasks": None if dataset.task is None else len(set(dataset.task[rows].tolist())),
                "black": float((dataset.x[rows] == 0).mean()) if count else None,
                "single_colour": float(single.mean()) if count else None,
            }
        else:
            used = (part != rules.padding).sum(axis=1)
            splits[split] = {
                "strings": count,
                "mean_rules": float(used.mean()) if count else None,
                "most_rules": int(used.max()) if count else None,
                "padding": 1 - float(used.sum()) / part.size if count else None,
            }
        splits[split]["duplicates"] = count - len({one.tobytes() for one in part})
    for of, into in (("test", "train"), ("test", "val"), ("val", "train")):
        here, there = dataset.rows(of), dataset.rows(into)
        if here.size and there.size:
            known = {keys[row] for row in there.tolist()}
            leaks.append({"of": of, "into": into, "identical": sum(keys[row] in known for row in here.tolist())})
            if hashes is not None:
                tasks = None if dataset.task is None else len(np.intersect1d(dataset.task[here], dataset.task[there]))
                leaks[-1] |= {"equivalent": int(np.isin(hashes[here], hashes[there]).sum()), "tasks": tasks}
    if rules is None:
        shapes = [] if dataset.shape is None else Counter(map(tuple, dataset.shape.tolist())).most_common(8)
        return {
            "splits": splits,
            "colours": [int(np.count_nonzero(dataset.x == colour)) / dataset.x.size for colour in range(COLOURS)],
            "shapes": [[*sides, count] for sides, count in shapes],
            "leaks": leaks,
        }
    counts = np.bincount(dataset.x.ravel(), minlength=len(rules)).tolist()
    real = [rule for rule in range(len(rules)) if rule != rules.padding]
    rows = next(rows for split in SPLITS if (rows := dataset.rows(split)).size)[:5]
    return {
        "steps": dataset.x.shape[1],
        "counts": counts,
        "unused": [rule for rule in real if rules.lhs[rule] >= 0 and not counts[rule]],
        "unusable": [rule for rule in real if rules.lhs[rule] < 0],
        "origin": asdict(dataset.origin),
        "splits": splits,
        "leaks": leaks,
        "examples": [] if dataset.grammar is None else dataset.strings(rows),
    }


def canonical_hashes(grids: Grids, shape: Grids | None) -> NDArray[np.uint64]:
    """A hash (N,) of each grid, invariant to symmetries of its rectangle and permutations of the colours 1-9.

    Random weights of 44 bits of the cells of a colour are summed for each symmetry, mixed, and added over the colours;
    the least of the eight is the hash.
    """
    weights = np.random.RandomState(0).randint(1, 2**44, CELLS, dtype=np.int64).astype(np.float64)
    sides = np.full((len(grids), 2), SIDE, np.int64) if shape is None else shape.astype(np.int64)
    place = (sides - 1) @ [SIDE, 1]
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
                sums = ((flat[some] == colour).astype(np.float64) @ moved.T).astype(np.uint64)
                # mixed by the finaliser of splitmix64 (Steele, Lea, Flood 2014); a colour that does not occur stays 0
                sums = (sums ^ (sums >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                sums = (sums ^ (sums >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                total += sums ^ (sums >> np.uint64(31))
            hashes[some] = total.min(axis=1)
    return hashes
