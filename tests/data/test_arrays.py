from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, canonical_hashes, describe, split_by_key
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.data.symmetries import transform
from arcvae_cli.grammar import parse_grammar, read_grammar

EQUATIONS = read_grammar("equations")


def test_fingerprint_depends_on_content_only(arc: Dataset, canvases: Dataset):
    stable = "b515b0752fe0025ef6dafebda71b0e947fe70eb0bb90d3287d38bc274e269c75"
    assert canvases.fingerprint() == stable, "in all versions"
    same = replace(arc, name="other", notes=("a note",), task=arc.task.astype("<U40"))
    assert same.fingerprint() == arc.fingerprint()
    others = [
        replace(arc, x=arc.x.swapaxes(1, 2)),
        *(replace(arc, **{column: getattr(arc, column)[::-1]}) for column in ("split", "shape")),
        replace(arc, task=None),
    ]
    assert len({arc.fingerprint(), *(other.fingerprint() for other in others)}) == 5

    drawn = build_drawn(EQUATIONS, 9, 50, 1)
    commented = parse_grammar("# the same\n" + EQUATIONS.text, "other")
    same = replace(drawn, name="x", grammar=commented, rules=commented.rules, notes=("x",), origin=Origin())
    assert same.fingerprint() == drawn.fingerprint()
    bare = replace(drawn, rules=replace(drawn.rules, rhs=None, text=None), grammar=None)
    assert bare.fingerprint() != drawn.fingerprint()


def test_limited_keeps_the_test_split_and_nests(arc: Dataset):
    small, large = arc.limited(64), arc.limited(128)
    sizes = [[dataset.rows(split).size for split in SPLITS] for dataset in (small, large)]
    assert sizes == [[64, 8, 100], [128, 16, 100]]
    assert set(map(bytes, small.x)) < set(map(bytes, large.x)) < set(map(bytes, arc.x))
    assert len(set(small.task[small.rows("train")].tolist())) > 32, "the choice is spread over the tasks"
    assert arc.limited(10**6).fingerprint() == arc.fingerprint()


def test_split_by_key_shares_out_keys_and_keeps_equal_ones_together():
    keys = [bytes([index % 200, 7]) for index in range(1000)]
    split = split_by_key(keys)
    assert all(len({int(split[row]) for row in range(start, 1000, 200)}) == 1 for start in range(200))
    assert np.bincount(split[:200]).tolist() == [160, 20, 20]
    for count, expected in ((1, [1]), (2, [2]), (3, [1, 1, 1]), (10, [8, 1, 1]), (16, [12, 2, 2])):
        assert np.bincount(split_by_key(keys[:count])).tolist() == expected


def test_hashes_are_invariant_to_symmetry_and_colour_only(arc: Dataset):
    stream = np.random.RandomState(0)
    count, shape = len(arc.x), arc.shape
    palette = np.pad(stream.random_sample((count, 9)).argsort(axis=1) + 1, ((0, 0), (1, 0))).astype(np.uint8)
    turned, swapped = transform(arc.x, shape, stream.randint(0, 8, count), palette)
    hashes = canonical_hashes(arc.x, shape)
    assert (canonical_hashes(turned, swapped) == hashes).all()

    changed = arc.x.copy()
    changed[np.arange(count), stream.randint(0, shape[:, 0]), stream.randint(0, shape[:, 1])] ^= 1
    assert (canonical_hashes(changed, shape) != hashes).mean() > 0.95  # a few become equivalent


def test_description_of_leaking_grids():
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
    described = describe(Dataset("leaky", grids, split, shape, task))
    train = {"grids": 4, "tasks": 3, "background": 1 - 15 / 256, "single_class": 0.0, "duplicates": 1}
    assert described["splits"]["train"] == pytest.approx(train)
    assert described["shapes"] == [[3, 5, 7], [5, 3, 1]]
    assert sum(described["classes"]) == pytest.approx(1)
    assert described["leaks"] == [
        {"of": "test", "into": "train", "identical": 1, "equivalent": 2, "tasks": 1},
        {"of": "test", "into": "val", "identical": 0, "equivalent": 0, "tasks": 0},
        {"of": "val", "into": "train", "identical": 0, "equivalent": 0, "tasks": 0},
    ]


def test_description_of_strings():
    drawn = build_drawn(read_grammar("equations"), 15, 50, 1)
    described = describe(drawn)
    train = (drawn.x[drawn.rows("train")] != 11).sum(axis=1)
    assert described["splits"]["train"] == {
        "strings": 40,
        "mean_rules": pytest.approx(train.mean()),
        "most_rules": train.max(),
        "duplicates": 0,
    }
    assert described["unused"] == []
    assert described["examples"] == drawn.strings(drawn.rows("train")[:5])
    mixed = replace(drawn, x=np.concatenate([drawn.x[:-1], drawn.x[:1]]))
    mixed = replace(mixed, split=np.r_[np.uint8([0]), mixed.split[1:-1], np.uint8([2])])
    assert [leak["identical"] for leak in describe(mixed)["leaks"]] == [1, 0, 0]
    assert {29, 31} <= {*describe(build_drawn(read_grammar("smiles"), 12, 10))["unused"]}
