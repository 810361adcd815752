from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from arcvae_cli.data.arrays import GridArrays, canvas_keys, split_by_key, split_sizes
from arcvae_cli.errors import InputError


def test_fingerprint_tells_contents_apart_and_nothing_else(arc: GridArrays):
    same = replace(arc, name="other", notes=("read with care",), task=arc.task.astype("<U40"))
    assert same.fingerprint() == arc.fingerprint()
    grids, split, shape, task = arc.grids.copy(), arc.split.copy(), arc.shape.copy(), arc.task.copy()
    grids[3, 4, 5] ^= 1
    split[0], shape[0, 0], task[0] = 2, 16, "00000000"
    others = [
        replace(arc, grids=grids),
        replace(arc, split=split),
        replace(arc, shape=shape),
        replace(arc, task=task),
        replace(arc, shape=None),
        replace(arc, task=None),
    ]
    assert len({arc.fingerprint(), *(other.fingerprint() for other in others)}) == 7


def test_fingerprint_does_not_change_between_versions(canvases: GridArrays):
    assert canvases.fingerprint() == "b515b0752fe0025ef6dafebda71b0e947fe70eb0bb90d3287d38bc274e269c75"


def test_limited_keeps_the_test_split_and_nests(arc: GridArrays):
    small, large = arc.limited(64), arc.limited(128)
    assert [small.rows(split).size for split in ("train", "val", "test")] == [64, 8, 100]
    assert [large.rows(split).size for split in ("train", "val", "test")] == [128, 16, 100]
    assert set(canvas_keys(small.grids)) < set(canvas_keys(large.grids)) < set(canvas_keys(arc.grids))
    assert len(set(small.task[small.rows("train")].tolist())) > 32, "the choice is spread over the tasks"
    for name in ("grids", "shape", "task"):
        assert (getattr(small, name)[-100:] == getattr(arc, name)[-100:]).all()
    assert arc.limited(10**6).fingerprint() == arc.fingerprint()


def test_require_names_the_empty_split(canvases: GridArrays):
    canvases.require(("train", "val", "test"))
    no_val = replace(canvases, split=np.where(canvases.split == 1, np.uint8(0), canvases.split))
    no_val.require(("train", "test"))
    with pytest.raises(InputError, match="canvases: the val split is empty"):
        no_val.require(("train", "val"))


def test_split_by_key_shares_out_keys_and_keeps_equal_ones_together():
    keys = [bytes([index % 200, 7]) for index in range(1000)]
    split = split_by_key(keys)
    assert all(len({int(split[row]) for row in range(start, 1000, 200)}) == 1 for start in range(200))
    assert np.bincount(split[:200]).tolist() == [160, 20, 20]
    shuffled = np.random.RandomState(0).permutation(1000)
    assert (split_by_key([keys[row] for row in shuffled]) == split[shuffled]).all()


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (2, [2]), (3, [1, 1, 1]), (10, [8, 1, 1]), (16, [12, 2, 2])])
def test_split_by_key_leaves_no_split_empty_that_could_have_something(count: int, expected: list[int]):
    assert np.bincount(split_by_key([bytes([index]) for index in range(count)])).tolist() == expected


def test_split_sizes():
    assert split_sizes(100_000, 0) == (80_000, 10_000, 10_000)
    assert split_sizes(19, 2**32 - 1) == (17, 1, 1)
    for size, seed, key in ((9, 0, "size"), (2_000_001, 0, "size"), (10, -1, "seed"), (10, 2**32, "seed")):
        with pytest.raises(InputError, match=rf"data\.{key}"):
            split_sizes(size, seed)
