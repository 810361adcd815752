from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from arcvae_cli.data.arrays import GridArrays
from arcvae_cli.data.describe import canonical_hashes, describe
from arcvae_cli.data.symmetries import transform


@pytest.mark.parametrize("known", [True, False], ids=["rectangles", "canvases"])
def test_hashes_see_through_symmetry_and_colour_and_nothing_else(arc: GridArrays, known: bool):
    stream = np.random.RandomState(0)
    count = len(arc.grids)
    shape = arc.shape if known else np.full((count, 2), 16, np.uint8)
    palette = np.pad(stream.random_sample((count, 9)).argsort(axis=1) + 1, ((0, 0), (1, 0))).astype(np.uint8)
    turned, swapped = transform(arc.grids, shape, stream.randint(0, 8, count), palette)
    hashes = canonical_hashes(arc.grids, shape if known else None)
    assert (canonical_hashes(turned, swapped if known else None) == hashes).all()

    changed = arc.grids.copy()
    changed[np.arange(count), stream.randint(0, shape[:, 0]), stream.randint(0, shape[:, 1])] ^= 1
    assert (canonical_hashes(changed, shape if known else None) != hashes).mean() > 0.95  # a few become equivalent


def test_hashes_of_different_grids_differ():
    pixels = np.zeros((256, 16, 16), np.uint8)
    pixels.reshape(256, 256)[np.arange(256), np.arange(256)] = 1
    assert len(np.unique(canonical_hashes(pixels, None))) == 36, "one cell: the orbits of the square's symmetries"
    two = pixels[:20] + 2 * pixels[1:21]
    merged = pixels[:20] + pixels[1:21]
    assert not set(canonical_hashes(two, None).tolist()) & set(canonical_hashes(merged, None).tolist())


def test_description_of_a_leaking_corpus():
    stream = np.random.RandomState(2)
    grids = np.zeros((8, 16, 16), np.uint8)
    grids[:, :3, :5] = stream.randint(1, 10, (8, 3, 5))
    grids[1] = grids[0]  # a duplicate in train
    grids[5] = grids[2]  # test in train, as it is
    grids[6] = np.pad(grids[3, :3, :5].T, ((0, 11), (0, 13)))  # and turned
    grids[7, :3, :5] = 4
    shape = np.array([[3, 5]] * 6 + [[5, 3], [3, 5]], np.uint8)
    split = np.array([0, 0, 0, 0, 1, 2, 2, 2], np.uint8)
    task = np.array(["a", "a", "b", "c", "d", "b", "e", "f"])
    description = describe(GridArrays("leaky", grids, split, shape, task))
    train, val, test = description.splits.values()
    assert (train.grids, train.tasks, train.duplicates, train.single_colour) == (4, 3, 1, 0)
    assert (val.grids, val.duplicates) == (1, 0)
    assert (test.grids, test.tasks, test.single_colour) == (3, 3, pytest.approx(1 / 3))
    assert train.black == pytest.approx(1 - 15 / 256)
    assert description.shapes == ((3, 5, 7), (5, 3, 1))
    assert sum(description.colours) == pytest.approx(1)
    leak = description.leaks[0]
    assert (leak.of, leak.into, leak.identical, leak.equivalent, leak.tasks) == ("test", "train", 1, 2, 1)
    assert [(leak.of, leak.into, leak.identical, leak.equivalent) for leak in description.leaks[1:]] == [
        ("test", "val", 0, 0),
        ("val", "train", 0, 0),
    ]


def test_what_is_unknown_is_left_out(canvases: GridArrays):
    description = describe(replace(canvases, split=np.zeros(20, np.uint8)))
    assert description.leaks == ()
    assert description.shapes == ()
    assert description.splits["test"].black is None
    assert description.splits["train"].tasks is None
