"""Scores of samples of grids (n, H, W) uint8 against real ones, by structure. Colour 0 is the background."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.conditions import OBJECT_CAP, objects_of

Grids = NDArray[np.uint8]
Numbers = NDArray[np.float64]

NEIGHBOURS = 5  # k of density and coverage


def score_samples(samples: Grids, reference: Grids, training: Grids) -> dict[str, Any]:
    """Scores of `samples` by the structure of `reference` grids; `training` grids decide what is novel.

    `object_distance`: Wasserstein-1 distance of the capped object counts. `speck_share`: of a grid's non-black cells,
    those without a neighbour of their colour. Density and coverage are None against five reference grids or fewer.
    """
    ours, theirs = structure(samples), structure(reference)
    density = coverage = None
    if len(reference) > NEIGHBOURS:
        features, of_samples = (np.stack(list(one.values()), axis=1) for one in (theirs, ours))
        # as many samples as there are reference grids, since more of them cover more
        density, coverage = density_and_coverage(features, of_samples[: len(reference)])
    known, keys = {grid.tobytes() for grid in training}, [grid.tobytes() for grid in samples]
    return {
        "samples": len(samples),
        "reference": len(reference),
        "density": density,
        "coverage": coverage,
        "object_distance": wasserstein(ours["objects"], theirs["objects"]),
        "speck_share": float(ours["specks"].mean()),
        "reference_speck_share": float(theirs["specks"].mean()),
        "blank_share": float(is_blank(samples).mean()),
        "reference_blank_share": float(is_blank(reference).mean()),
        "distinct_share": len(set(keys)) / len(keys),
        "novel_share": sum(key not in known for key in keys) / len(keys),
        "non_black_share": float(ours["non_black"].mean()),
        "reference_non_black_share": float(theirs["non_black"].mean()),
    }


def is_blank(grids: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """(n,) whether a grid has no non-black cell."""
    blank: NDArray[np.bool_] = (grids == 0).all(axis=(1, 2))
    return blank


def first_of_each(grids: Grids) -> NDArray[np.bool_]:
    """(n,) whether a grid is neither blank nor a repetition of an earlier one."""
    first = np.zeros(len(grids), np.bool_)
    first[list({grid.tobytes(): place for place, grid in reversed(list(enumerate(grids)))}.values())] = True
    return first & ~is_blank(grids)


def structure(grids: Grids) -> dict[str, Numbers]:
    """Features (n,) of each grid, 0 where a blank grid has no value.

    An object is a 4-connected component of one colour, a speck one of a single cell; black is no colour and no object.
    Rows, columns and symmetry (in the better of two mirrors) are within the bounding box of what is not black.
    """
    count, height, width = grids.shape
    non_black = grids > 0
    cells = non_black.sum(axis=(1, 2))
    owners, sizes = objects_of(grids)
    largest = np.zeros(count)
    np.maximum.at(largest, owners, sizes)
    top, tall = _extent(np.logical_or.reduce(non_black, axis=2))
    left, wide = _extent(np.logical_or.reduce(non_black, axis=1))
    columns = np.ascontiguousarray(grids.transpose(0, 2, 1))
    features = {
        "non_black": cells / (height * width),
        "colours": (grids.reshape(count, -1, 1) == np.arange(1, 10, dtype=np.uint8)).any(axis=1).sum(axis=1),
        "objects": np.minimum(np.bincount(owners, minlength=count), OBJECT_CAP),
        "largest_object": largest / (height * width),
        "specks": np.bincount(owners, weights=sizes == 1, minlength=count) / np.maximum(cells, 1),
        "equal_horizontal": (grids[:, :, 1:] == grids[:, :, :-1]).mean(axis=(1, 2)),
        "equal_vertical": (grids[:, 1:] == grids[:, :-1]).mean(axis=(1, 2)),
        "equal_diagonal": (grids[:, 1:, 1:] == grids[:, :-1, :-1]).mean(axis=(1, 2)),
        "height": tall,
        "width": wide,
        "symmetry": np.maximum(_mirrored(grids, top, tall, left, wide), _mirrored(columns, left, wide, top, tall)),
        "distinct_rows": np.array([len({row.tobytes() for row in grid}) for grid in grids]),
        "distinct_columns": np.array([len({row.tobytes() for row in grid}) for grid in columns]),
    }
    return {name: np.asarray(values, np.float64) for name, values in features.items()}


def _extent(lines: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First non-black line of each grid (n, lines), and how many lines from it to the last."""
    first = lines.argmax(axis=1)
    last = lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    return first, np.where(lines.any(axis=1), last - first + 1, 0)


def _mirrored(grids: Grids, top: Any, tall: Any, left: Any, wide: Any) -> Numbers:
    """(n,) share of the cells of the bounding box that equal their mirror image upside down."""
    row, column = np.arange(grids.shape[1]), np.arange(grids.shape[2])
    in_rows = (row >= top[:, None]) & (row < (top + tall)[:, None])
    in_columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    # a row outside the box has its mirror outside the grid: clipped, and not counted
    mirror = np.clip((2 * top + tall - 1)[:, None] - row, 0, len(row) - 1)
    equal = np.take_along_axis(grids, mirror[:, :, None], axis=1) == grids
    share: Numbers = (equal & in_rows[:, :, None] & in_columns[:, None]).sum(axis=(1, 2)) / np.maximum(tall * wide, 1)
    return share


def density_and_coverage(reference: Numbers, samples: Numbers, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage of `samples` (m, features) (Naeem et al. 2020), features standardised by the `reference`.

    Around each reference point (n > k) lies a ball that reaches to its k-th neighbour. Density is the mean number of
    balls a sample lies in, over k: 1 is that of the reference itself. Coverage is the share of balls with a sample.
    """
    from scipy.spatial.distance import cdist

    spread = reference.std(axis=0)
    spread[spread == 0] = 1.0
    reference, samples = (reference - reference.mean(axis=0)) / spread, (samples - reference.mean(axis=0)) / spread
    around, distance = (cdist(reference, points, "sqeuclidean") for points in (reference, samples))
    inside = distance < np.partition(around, k, axis=1)[:, [k]]  # (n, m); the 0-th neighbour is the point itself
    return float(inside.sum(axis=0).mean() / k), float(inside.any(axis=1).mean())


def wasserstein(a: Numbers, b: Numbers) -> float:
    """Wasserstein-1 distance between two samples of numbers, of any sizes: the area between their distributions."""
    values = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(part), values[:-1], side="right") / len(part) for part in (a, b)]
    return float(np.sum(np.abs(below[0] - below[1]) * np.diff(values)))
