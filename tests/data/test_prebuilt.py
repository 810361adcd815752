from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcvae_cli.data import strings
from arcvae_cli.data.arrays import SPLITS, Dataset
from arcvae_cli.data.derivations import Counts
from arcvae_cli.data.strings import read_prebuilt
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Rules, read_grammar

EQUATIONS = read_grammar("equations")
SMILES = read_grammar("smiles")
IDS = Counts(EQUATIONS.rules, 15).draw(200, np.random.RandomState(0))  # all different


LEFT = np.array(EQUATIONS.rules.lhs)
LOOKUP = LEFT[:, None] == LEFT  # (P, P): by rule, those of its left-hand side; the padding rule is alone
MASKS = np.packbits(LOOKUP[IDS], axis=2)


def changed(array: np.ndarray, place: Any, value: object) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


GAP, EMPTY = changed(IDS, (5, 3), 11), changed(IDS, (5,), 11)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(ids: Any, masks: Any = None, pad_id: int | None = None, grammar: Grammar | None = None) -> Dataset:
    np.save("prod.npy", ids)
    if masks is not None:
        np.save("masks.npy", masks)
    return read_prebuilt(Path("prod.npy"), None if masks is None else Path("masks.npy"), pad_id, grammar)


@pytest.mark.parametrize("block", [700, 2**25], ids=["rows", "whole"])
def test_rules_come_from_the_masks(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(strings, "_BLOCK_BYTES", block)
    dataset = read(np.concatenate([IDS, IDS[:30]]), np.concatenate([MASKS, MASKS[:30]]))
    assert (dataset.name, dataset.x.dtype, dataset.grammar) == ("prod", np.int16, None)
    assert (dataset.x == IDS).all() and dataset.origin.duplicates == 30
    assert dataset.rules == Rules(("0", "1"), EQUATIONS.rules.lhs, None, 0, 11)
    assert dataset.notes == ("padding detected: id 11 (--pad-id overrides)",)
    assert [dataset.rows(split).size for split in SPLITS] == [160, 20, 20]


def test_masks_after_the_end_are_ignored():
    ended = IDS == 11
    for after, pad_id in itertools.product(([0, 0], [0xFF, 0xE0], [0, 0x10]), (None, -1)):
        dataset = read(np.where(ended, -1, IDS), changed(MASKS, ended, after), pad_id)
        assert dataset.rules.lhs == EQUATIONS.rules.lhs and (dataset.x == IDS).all()


def test_the_padding_rule_may_have_any_number_or_not_occur():
    first = np.packbits(np.roll(np.unpackbits(MASKS, axis=2, count=12), 1, axis=2), axis=2)
    rules = read((IDS + 1) % 12, first, 0).rules
    assert (rules.padding, rules.lhs) == (0, (-1, *EQUATIONS.rules.lhs[:-1]))
    ids = np.unique(IDS[(IDS[:, :3] != 11).all(axis=1), :3], axis=0)
    dataset = read(ids, np.packbits(LOOKUP[ids][..., :11], axis=2), -1)
    assert (len(dataset.rules), dataset.rules.padding) == (12, 11) and not (dataset.x == 11).any()
    assert read(IDS, MASKS, 500).rules.padding == 12


def test_with_a_grammar():
    for ids, masks in ((IDS, None), (IDS, MASKS), (np.where(IDS == 11, -1, IDS), None)):
        dataset = read(ids, masks, None, EQUATIONS)
        assert (dataset.rules, dataset.grammar, dataset.notes) == (EQUATIONS.rules, EQUATIONS, ())
        assert (dataset.x == IDS).all()


@pytest.mark.parametrize(
    ("ids", "masks", "pad_id", "grammar", "message"),
    [
        (IDS, changed(MASKS, (150, 0), MASKS[IDS == 7][0]), 11, None, "row 150, step 0: not the mask .*lacks"),
        (IDS, changed(MASKS, (150, 0), [0xF8, 0]), 11, None, "row 150, step 0: not the mask .*differs"),
        (changed(IDS, (0, 0), -5), MASKS, 11, None, "from -5 to 11"),
        (np.where(IDS == 11, -1, IDS), MASKS, 11, None, r"data\.pad_id: 11, but .* contains -1"),
        (IDS, None, None, SMILES, r"row 0, step \d+: rule"),
        (changed(IDS, (7, 0), 9), None, None, EQUATIONS, "row 7, step 0: rule 9 rewrites T"),
        (GAP, np.packbits(LOOKUP[GAP], axis=2), None, None, r"row 5, step 4: rule \d+ .*expected padding"),
        (EMPTY, np.packbits(LOOKUP[EMPTY], axis=2), 11, None, "row 5, step 0: the row ends"),
    ],
)
def test_invalid_arrays(ids: Any, masks: Any, pad_id: Any, grammar: Any, message: str):
    with pytest.raises(InputError, match=message):
        read(ids, masks, pad_id, grammar)
