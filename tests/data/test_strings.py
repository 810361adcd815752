from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcvae_cli.data import strings
from arcvae_cli.data.arrays import SPLITS, Dataset, Origin
from arcvae_cli.data.derivations import Counts
from arcvae_cli.data.strings import build_drawn, build_parsed, fitted, read_prebuilt
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Rules, parse_grammar, read_grammar

EQUATIONS = read_grammar("equations")
SMILES = read_grammar("smiles")
SEVEN = "a82a455ab51cd59c14b53fe3d50b2f7d88c0be48fc9a7e377830e7e9fde04ee9"


@pytest.fixture(scope="module")
def equations() -> Dataset:
    return build_drawn(EQUATIONS, 15, 500, 1)


def counts(dataset: Dataset) -> list[int]:
    return [dataset.rows(split).size for split in SPLITS]


def test_drawn_strings(equations: Dataset):
    assert (equations.name, counts(equations)) == ("equations", [400, 50, 50])
    texts = [one for split in SPLITS for one in equations.strings(equations.rows(split))]
    assert len(set(texts)) == 500, "no split shares a string"
    assert equations.origin == Origin("drawn", "equations", entropy=pytest.approx(np.log(199_941_076)))
    assert build_drawn(EQUATIONS, 15, 500, 1).fingerprint() == equations.fingerprint()
    seven = build_drawn(EQUATIONS, 15, 1000, 7)
    assert hashlib.sha256("\n".join(seven.strings(np.arange(1000))).encode()).hexdigest() == SEVEN, "for ever"


def test_the_last_few_strings_are_found_and_no_more_asked_for(monkeypatch: pytest.MonkeyPatch):
    total = Counts(EQUATIONS.rules, 4).total
    assert len(set(build_drawn(EQUATIONS, 4, total).strings(np.arange(total)))) == total
    ambiguous = parse_grammar("S -> S S | 'a' | 'b'", "ambiguous")  # 16 + 4 + 2 derivations of 8 + 4 + 2 strings
    assert len(build_drawn(ambiguous, 5, 14).x) == 14
    monkeypatch.setattr(strings, "_DRAWS", 2)
    for grammar, most, size in ((EQUATIONS, 4, total + 1), (ambiguous, 5, 15)):
        with pytest.raises(InputError, match=f"no {size} different strings of at most {most} rules"):
            build_drawn(grammar, most, size)


def test_a_corpus_is_fitted_to_a_model(equations: Dataset):
    rules = EQUATIONS.rules
    assert fitted(equations, rules) is equations
    longer = fitted(equations, rules, 20)
    assert longer.x.shape == (500, 20) and (longer.x[:, 15:] == rules.padding).all() and not longer.notes
    shorter = fitted(equations, rules, 12)
    kept = (equations.x != rules.padding).sum(axis=1) <= 12
    assert (shorter.x == equations.x[kept][:, :12]).all() and (shorter.split == equations.split[kept]).all()
    assert shorter.notes == (f"{500 - kept.sum()} of 500 derivations are longer than the model's 12 steps: left out",)
    bare = replace(rules, symbols=("0", "1"), rhs=None, text=None)  # as from ids and masks alone
    assert fitted(replace(equations, rules=bare, grammar=None), rules, 15).x.shape == (500, 15)
    assert fitted(equations, bare, 15).x.shape == (500, 15)
    turned = replace(rules, rhs=(*rules.rhs[:1], (1, 0), *rules.rhs[2:]))
    with pytest.raises(InputError, match="not that of the model"):
        fitted(equations, turned, 15)


def test_strings_of_a_file(tmp_path: Path):
    file, failures = tmp_path / "mine.smi", tmp_path / "failed.tsv"
    lines = ["CCO ethanol", "", "C1CC1\t17", "c1ccccc1", "CCO", "CC(", "C[C@@H](N)C(=O)O", "CXC", "N#N", ""]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    dataset = build_parsed(file, SMILES, failures=failures, first_column=True)
    assert dataset.strings(np.arange(5)) == ["CCO", "C1CC1", "c1ccccc1", "C[C@@H](N)C(=O)O", "N#N"]
    reason = dataset.origin.reason
    assert dataset.origin == Origin("parsed", "smiles", "mine.smi", "lalr", reason, lines=8, failed=2, duplicates=1)
    _, *rows = [line.split("\t") for line in failures.read_text().splitlines()]
    assert [row[:3] + row[4:] for row in rows] == [["mine.smi", "6", "4", "CC("], ["mine.smi", "8", "2", "CXC"]]
    most = dataset.x.shape[1] - 1
    short = build_parsed(file, SMILES, first_column=True, most=most)
    assert short.x.shape[1] == most and len(short.x) == 5 - short.origin.too_long < 5


def test_a_test_split_of_its_own(tmp_path: Path):
    texts = build_drawn(EQUATIONS, 15, 300).strings(np.arange(300))
    file, test = tmp_path / "mine.txt", tmp_path / "test.txt"
    file.write_text("\n".join([*texts[50:], *texts[:10], "oops"]))
    test.write_text("\n".join(["what", *texts[:50]]))
    dataset = build_parsed(file, EQUATIONS, test=test)
    assert counts(dataset) == [225, 25, 50]
    assert set(dataset.strings(dataset.rows("test"))) == set(texts[:50])
    leading = build_parsed(file, EQUATIONS, leading_test=40)
    assert leading.strings(leading.rows("test")) == texts[50:90]
    assert counts(leading) == [198, 22, 40]


def test_unusable_files(tmp_path: Path):
    for content, message in (
        (b" \n\n", "no strings of equations: the file is empty"),
        (b"hello\nworld\n", "no strings of equations: character 1 of the first: "),
        (b"y\nx + x\n1 + 2 + 3\n", "no strings of equations: all take over 3 rules"),
    ):
        (tmp_path / "mine.txt").write_bytes(content)
        with pytest.raises(InputError, match=message):
            build_parsed(tmp_path / "mine.txt", EQUATIONS, most=3)


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
