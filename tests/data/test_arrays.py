from __future__ import annotations

from dataclasses import replace

import numpy as np

from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, canvas_keys, split_by_key
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.grammar import parse_grammar, read_grammar

EQUATIONS = read_grammar("equations")


def test_fingerprint_depends_on_content_only(arc: Dataset):
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


def test_fingerprint_is_stable_between_versions(canvases: Dataset):
    assert canvases.fingerprint() == "b515b0752fe0025ef6dafebda71b0e947fe70eb0bb90d3287d38bc274e269c75"


def test_limited_keeps_the_test_split_and_nests(arc: Dataset):
    small, large = arc.limited(64), arc.limited(128)
    sizes = [[dataset.rows(split).size for split in SPLITS] for dataset in (small, large)]
    assert sizes == [[64, 8, 100], [128, 16, 100]]
    assert set(canvas_keys(small.x)) < set(canvas_keys(large.x)) < set(canvas_keys(arc.x))
    assert len(set(small.task[small.rows("train")].tolist())) > 32, "the choice is spread over the tasks"
    assert arc.limited(10**6).fingerprint() == arc.fingerprint()


def test_split_by_key_shares_out_keys_and_keeps_equal_ones_together():
    keys = [bytes([index % 200, 7]) for index in range(1000)]
    split = split_by_key(keys)
    assert all(len({int(split[row]) for row in range(start, 1000, 200)}) == 1 for start in range(200))
    assert np.bincount(split[:200]).tolist() == [160, 20, 20]
    for count, expected in ((1, [1]), (2, [2]), (3, [1, 1, 1]), (10, [8, 1, 1]), (16, [12, 2, 2])):
        assert np.bincount(split_by_key(keys[:count])).tolist() == expected
