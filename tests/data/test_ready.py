from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcvae_cli.data import ready
from arcvae_cli.data.arrays import SPLITS
from arcvae_cli.data.derivations import Counts
from arcvae_cli.data.ready import read_ready
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import parse_grammar, read_grammar

EQUATIONS = read_grammar("equations")
SMILES = read_grammar("smiles")


def table(lhs: tuple[int, ...], rules: int) -> np.ndarray:
    """(P, P) bool: by rule, those of its left-hand side; the padding rule is alone."""
    left = np.array(lhs)
    return (left[:, None] == left) & (left >= 0)[:, None] | np.eye(rules, dtype=bool) & (left < 0)[:, None]


@pytest.fixture
def ids() -> np.ndarray:
    """200 different equations."""
    drawn = Counts(EQUATIONS.rules, 15).draw(200, np.random.RandomState(0))
    assert len(np.unique(drawn, axis=0)) == 200
    return drawn


@pytest.fixture
def masks(ids: np.ndarray) -> np.ndarray:
    return np.packbits(table(EQUATIONS.rules.lhs, 12)[ids], axis=2)


def saved(folder: Path, ids: np.ndarray, masks: np.ndarray | None = None) -> tuple[Path, Path | None]:
    np.save(folder / "prod.npy", ids)
    if masks is None:
        return folder / "prod.npy", None
    np.save(folder / "masks.npy", masks)
    return folder / "prod.npy", folder / "masks.npy"


@pytest.mark.parametrize("block", [1, 700, 2**25], ids=["row", "rows", "whole"])
def test_rules_come_from_the_masks(
    tmp_path: Path, ids: np.ndarray, masks: np.ndarray, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ready, "_BLOCK_BYTES", block)
    arrays = read_ready(*saved(tmp_path, ids, masks), None, None)
    assert (arrays.name, arrays.ids.dtype, len(arrays.rules)) == ("prod", np.int16, 12)
    assert (arrays.ids == ids).all()
    assert arrays.rules.lhs == EQUATIONS.rules.lhs
    assert (arrays.rules.padding, arrays.rules.start) == (11, 0)
    assert arrays.rules.rhs is arrays.rules.text is arrays.grammar is None
    assert arrays.notes == ("rule 11, the last, is taken for what stands after the end (--pad-id says otherwise)",)
    assert [arrays.rows(split).size for split in SPLITS] == [160, 20, 20]
    assert read_ready(*saved(tmp_path, ids, masks), 11, None).notes == ()


def test_masks_of_smiles_are_ten_bytes(tmp_path: Path):
    rules = SMILES.rules
    ids = Counts(rules, 60).draw(300, np.random.RandomState(0))
    masks = np.packbits(table(rules.lhs, 76)[ids], axis=2)
    assert masks.shape == (300, 60, 10)
    arrays = read_ready(*saved(tmp_path, ids, masks), 75, None)
    seen = np.isin(np.arange(76), ids)
    groups = {tuple(np.flatnonzero(np.array(rules.lhs) == left)) for left in set(rules.lhs) - {-1}}
    own = {tuple(np.flatnonzero(np.array(arrays.rules.lhs) == left)) for left in set(arrays.rules.lhs) - {-1}}
    assert own == {group for group in groups if seen[list(group)].any()}


@pytest.mark.parametrize("after", ["nothing", "everything", "alone"])
def test_minus_one_after_the_end(tmp_path: Path, ids: np.ndarray, masks: np.ndarray, after: str):
    """Whatever the masks say there, it does not count; a rule that they alone hold is the padding rule."""
    ended = ids == 11
    ids = np.where(ended, -1, ids)
    masks[ended] = {"nothing": [0, 0], "everything": [0xFF, 0xE0], "alone": [0, 0x10]}[after]
    for pad_id in (None, -1):
        arrays = read_ready(*saved(tmp_path, ids, masks), pad_id, None)
        assert arrays.rules.lhs == EQUATIONS.rules.lhs
        assert (arrays.ids == np.where(ended, 11, ids)).all()
    assert "rule" not in read_ready(*saved(tmp_path, ids, masks), None, None).notes[0]
    with pytest.raises(InputError, match=r"data\.pad_id: 11, and .* holds -1 too"):
        read_ready(*saved(tmp_path, ids, masks), 11, None)


def test_derivations_of_one_length(tmp_path: Path):
    drawn = Counts(EQUATIONS.rules, 10).draw(400, np.random.RandomState(0))
    ids = np.unique(drawn[(drawn != 11).all(axis=1)], axis=0)
    masks = np.packbits(table(EQUATIONS.rules.lhs, 12)[ids][..., :11], axis=2)
    arrays = read_ready(*saved(tmp_path, ids, masks), -1, None)
    assert (len(arrays.rules), arrays.rules.padding) == (12, 11)
    assert not (arrays.ids == 11).any()
    unsure = read_ready(*saved(tmp_path, ids, masks), None, EQUATIONS)
    assert unsure.rules == EQUATIONS.rules and not unsure.notes


def test_the_padding_rule_may_have_any_number(tmp_path: Path, ids: np.ndarray, masks: np.ndarray):
    """As where `Nothing -> None` stands first."""
    moved = (ids + 1) % 12
    masks = np.packbits(np.roll(np.unpackbits(masks, axis=2, count=12), 1, axis=2), axis=2)
    arrays = read_ready(*saved(tmp_path, moved, masks), 0, None)
    assert arrays.rules.padding == 0
    assert arrays.rules.lhs == (-1, *EQUATIONS.rules.lhs[:-1])


def test_a_grammar_beside_them(tmp_path: Path, ids: np.ndarray, masks: np.ndarray):
    for given in (None, masks):
        arrays = read_ready(*saved(tmp_path, ids, given), None, EQUATIONS)
        assert arrays.rules == EQUATIONS.rules
        assert arrays.grammar == EQUATIONS
        assert arrays.strings(np.arange(3)) == [EQUATIONS.write(row) for row in ids[:3].tolist()]
    negative = np.where(ids == 11, -1, ids)
    assert (read_ready(*saved(tmp_path, negative), None, EQUATIONS).ids == ids).all()
    with pytest.raises(InputError, match=r"row 0, step \d+: rule"):
        read_ready(*saved(tmp_path, ids), None, SMILES)
    with pytest.raises(InputError, match=r"the mask of rule \d+ is not that of \w+ in smiles"):
        read_ready(*saved(tmp_path, ids, masks), None, SMILES)
    ids[7, 0] = 9
    with pytest.raises(InputError, match="row 7, step 0: rule 9 rewrites T, expected S"):
        read_ready(*saved(tmp_path, ids), None, EQUATIONS)


def test_unusable_rules_may_stand_in_masks(tmp_path: Path):
    """The masks of the 2017 code know of productions with `class`, which nothing derives."""
    grammar = parse_grammar("%undefined C\nS -> 'a' S | C | 'b'", "half")
    ids = np.array([[0, 0, 2], [0, 2, 3], [2, 3, 3]])
    full = np.zeros((4, 4), bool)
    full[:3, :3] = full[3, 3] = True
    arrays = read_ready(*saved(tmp_path, ids, np.packbits(full[ids], axis=2)), None, grammar)
    assert arrays.strings(np.arange(3)) == ["aab", "ab", "b"]


def test_duplicates_are_left_out(tmp_path: Path, ids: np.ndarray, masks: np.ndarray):
    twice = np.concatenate([ids, ids[:30]])
    arrays = read_ready(*saved(tmp_path, twice, np.concatenate([masks, masks[:30]])), None, None)
    assert (arrays.ids == ids).all()
    assert (arrays.origin.lines, arrays.origin.duplicates) == (230, 30)


def harmed(array: np.ndarray, place: tuple[int, ...], value: object) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


def test_what_does_not_fit_is_named(
    tmp_path: Path, ids: np.ndarray, masks: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ready, "_BLOCK_BYTES", 1000)

    def refused(message: str, ids: np.ndarray, masks: np.ndarray | None, pad_id: int | None = 11) -> None:
        with pytest.raises(InputError, match=message) as raised:
            read_ready(*saved(tmp_path, ids, masks), pad_id, None)
        assert raised.value.fix

    other = np.packbits(table(EQUATIONS.rules.lhs, 12)[7])
    refused("ids alone do not tell", ids, None)
    refused("masks.npy: row 150, step 0: rule [0-3] is not in its mask", ids, harmed(masks, (150, 0), other))
    refused("rule [0-9]+ is not in its mask", ids, np.packbits(table(EQUATIONS.rules.lhs, 12)[ids], 2, "little"))
    refused("row 150, step 0: the mask of rule . is not that of row 0", ids, harmed(masks, (150, 0), [0xF8, 0]))
    refused("is int64", ids[0].astype(int), masks)
    refused("is float64", ids.astype(float), masks)
    refused("holds no derivations", ids[:0], masks[:0])
    refused("runs from -5", harmed(ids, (0, 0), -5), masks)
    refused("runs from 0 to 40000", harmed(ids.astype(int), (0, 0), 40_000), masks)
    refused(r"masks.npy: is uint8 \(200, 15\)", ids, masks[..., 0])
    refused(r"masks.npy: is uint8 \(199, 15, 2\)", ids, masks[1:])
    refused(r"masks.npy: is bool \(200, 15, 12\)", ids, table(EQUATIONS.rules.lhs, 12)[ids])


def test_a_gap_and_another_beginning(tmp_path: Path, ids: np.ndarray):
    lookup = table(EQUATIONS.rules.lhs, 12)
    gap = harmed(ids, (5, 3), 11)
    with pytest.raises(InputError, match=r"prod\.npy: row 5, step 4: rule \d+ rewrites 1, expected padding"):
        read_ready(*saved(tmp_path, gap, np.packbits(lookup[gap], axis=2)), 11, None)
    empty = harmed(ids, (5,), 11)
    with pytest.raises(InputError, match="row 5, step 0: the row ends with 1 symbols left"):
        read_ready(*saved(tmp_path, empty, np.packbits(lookup[empty], axis=2)), 11, None)
    late = harmed(ids, (5, 0), 8)
    with pytest.raises(InputError, match=r"row 5, step 0: rule 8 rewrites"):
        read_ready(*saved(tmp_path, late, np.packbits(lookup[late], axis=2)), 11, None)


def test_padding_within_a_row_is_no_rule_more(tmp_path: Path, ids: np.ndarray):
    """Found out, the padding rule is as much of one as where it is told."""
    gap = harmed(ids, (5, 3), 11)
    masks = np.packbits(table(EQUATIONS.rules.lhs, 12)[gap], axis=2)
    with pytest.raises(InputError, match=r"prod\.npy: row 5, step 4: rule \d+ follows rule 11, which") as raised:
        read_ready(*saved(tmp_path, gap, masks), None, None)
    assert "--pad-id -1" in raised.value.fix
    assert read_ready(*saved(tmp_path, gap, masks), -1, None).rules.padding == 12, "as told, it is a rule"
    shared = np.array([[0, 3, 1, 3], [0, 3, 3, 3]])  # with rule 2 in its mask, the last rule is one like others
    bits = np.zeros((4, 4), bool)
    bits[:2, :2] = bits[2:, 2:] = True
    arrays = read_ready(*saved(tmp_path, shared, np.packbits(bits[shared], axis=2)), None, None)
    assert "no rule stands after the end" in arrays.notes[0] and arrays.rules.padding == 4


def test_rules_in_two_masks(tmp_path: Path):
    ids = np.array([[0, 1, 3], [1, 0, 3]])
    masks = np.zeros((2, 3, 4), bool)
    masks[ids == 0] = [1, 0, 1, 0]
    masks[ids == 1] = [0, 1, 1, 0]  # rule 2, which stands nowhere, is of two symbols
    masks[ids == 3] = [0, 0, 0, 1]
    with pytest.raises(InputError, match="rule 2 is in two different masks: of row 0, step 0, and of row 0, step 1"):
        read_ready(*saved(tmp_path, ids, np.packbits(masks, axis=2)), 3, None)
    masks[ids == 1] = [0, 1, 0, 1]
    with pytest.raises(InputError, match="rule 3 stands after the ends, and in the masks of other steps"):
        read_ready(*saved(tmp_path, ids, np.packbits(masks, axis=2)), 3, None)


def test_files_that_are_none(tmp_path: Path, ids: np.ndarray, masks: np.ndarray):
    prod, packed = saved(tmp_path, ids, masks)
    with pytest.raises(InputError, match="no such file"):
        read_ready(tmp_path / "none.npy", packed, None, None)
    whole = prod.read_bytes()
    for content in (b"", whole[:50], whole[:-8], b"\x80\x04N.", b"PK\x03\x04"):
        prod.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged, or no \.npy file"):
            read_ready(prod, packed, None, None)
    np.save(prod, np.array([[1, None]]), allow_pickle=True)
    with pytest.raises(InputError, match=r"prod\.npy: holds pickled objects, which are never read"):
        read_ready(prod, packed, None, None)
    np.savez(tmp_path / "several.npz", ids)
    (tmp_path / "several.npz").rename(prod)
    with pytest.raises(InputError, match=r"damaged, or no \.npy file"):
        read_ready(prod, packed, None, None)
