from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arcvae_cli.data.arrays import SPLITS, split_by_key
from arcvae_cli.data.columns import read_npz
from arcvae_cli.data.describe_strings import describe_strings
from arcvae_cli.data.strings import (
    COLUMNS,
    Origin,
    StringArrays,
    build_drawn,
    build_kusner,
    build_parsed,
    fitted,
    from_columns,
    write_strings,
)
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules, parse_grammar, read_grammar

EQUATIONS = read_grammar("equations")
SMILES = read_grammar("smiles")
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def equations() -> StringArrays:
    return build_drawn(EQUATIONS, 15, 500, 1)


def counts(arrays: StringArrays) -> list[int]:
    return [arrays.rows(split).size for split in SPLITS]


def read(path: Path, **more: object) -> StringArrays:
    return from_columns(path, read_npz(path, COLUMNS), **more)


def bare(arrays: StringArrays) -> StringArrays:
    """As from ids and masks alone."""
    rules = replace(arrays.rules, symbols=("0", "1"), rhs=None, text=None)
    return replace(arrays, rules=rules, grammar=None)


def test_drawn_strings(equations: StringArrays):
    assert equations.name == "equations"
    assert counts(equations) == [400, 50, 50]
    strings = [equations.strings(equations.rows(split)) for split in SPLITS]
    assert len({one for some in strings for one in some}) == 500, "no split shares a string"
    assert equations.origin == Origin("drawn", "equations", entropy=pytest.approx(np.log(199_941_076)))
    again, other = build_drawn(EQUATIONS, 15, 500, 1), build_drawn(EQUATIONS, 15, 500, 2)
    assert again.fingerprint() == equations.fingerprint() != other.fingerprint()
    with pytest.raises(InputError, match=r"data\.size"):
        build_drawn(EQUATIONS, 15, 5)
    with pytest.raises(InputError, match=r"data\.seed"):
        build_drawn(EQUATIONS, 15, 500, -1)
    with pytest.raises(InputError, match="no 500 different strings of at most 3 rules"):
        build_drawn(EQUATIONS, 3, 500)


def test_strings_keep_their_split_whatever_else_there_is(equations: StringArrays):
    """A hash of the string decides, up to the few at the borders of the tenths."""
    place = dict(zip(equations.strings(np.arange(500)), equations.split.tolist(), strict=True))
    half = equations.only(np.arange(250))
    again = split_by_key([one.encode() for one in half.strings(np.arange(250))])
    moved = sum(place[one] != split for one, split in zip(half.strings(np.arange(250)), again.tolist(), strict=True))
    assert moved < 25


def test_the_recipe_of_2017():
    arrays = build_kusner(EQUATIONS, 1000)
    assert counts(arrays) == [800, 100, 100]
    assert arrays.ids.shape == (1000, 15)
    assert arrays.strings(np.arange(2)) == ["x + x + ( x ) + ( x + x )", "x + x + ( x ) + ( x + 1 )"]
    assert arrays.origin.entropy is None
    with pytest.raises(InputError, match="take 14, more than 13"):
        build_kusner(EQUATIONS, 1000, 13)


def test_round_trip(tmp_path: Path, equations: StringArrays):
    for arrays in (equations, bare(equations)):
        write_strings(tmp_path / "mine.npz", arrays)
        again = read(tmp_path / "mine.npz")
        assert again.name == "mine"
        assert (again.ids == arrays.ids).all() and again.ids.dtype == np.int16
        assert (again.split == arrays.split).all()
        assert again.rules == arrays.rules
        assert again.grammar == arrays.grammar
        assert again.origin == arrays.origin
        assert again.fingerprint() == arrays.fingerprint()
        with np.load(tmp_path / "mine.npz", allow_pickle=False) as file:
            assert all(file[name].dtype.kind in "iu" for name in file.files)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]


def test_the_fingerprint_is_of_what_is_held(equations: StringArrays):
    ids, split = equations.ids.copy(), equations.split.copy()
    ids[0], split[0] = ids[1], (split[0] + 1) % 3
    others = [replace(equations, ids=ids), replace(equations, split=split), bare(equations)]
    assert len({equations.fingerprint(), *(other.fingerprint() for other in others)}) == 4
    commented = parse_grammar("# the same\n" + EQUATIONS.text, "other")
    same = replace(equations, name="x", grammar=commented, rules=commented.rules, notes=("x",), origin=Origin())
    assert same.fingerprint() == equations.fingerprint()


def test_files_of_others(tmp_path: Path, equations: StringArrays):
    path = tmp_path / "mine.npz"
    ids = equations.ids.astype(np.int64)
    ids[ids == 11] = -1
    np.savez(path, ids=ids, grammar=np.array(EQUATIONS.text), split=np.array(SPLITS)[equations.split])
    arrays = read(path)
    assert (arrays.ids == equations.ids).all()
    assert (arrays.split == equations.split).all()
    np.savez(path, ids=np.concatenate([ids, ids[:100]]))
    arrays = read(path, grammar=EQUATIONS)
    assert counts(arrays)[0] > 400 and min(counts(arrays)) >= 40
    assert (arrays.split[500:] == arrays.split[:100]).all(), "duplicates share a split"
    assert "hash of their content" in arrays.notes[0]
    with pytest.raises(InputError, match="holds ids and no grammar"):
        read(path)


def columns_of(arrays: StringArrays, **others: object) -> dict[str, object]:
    return {"ids": arrays.ids, "split": arrays.split, "grammar": np.array(EQUATIONS.text), **others}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"ids": np.zeros((3, 4))}, "ids: is float64"),
        ({"ids": np.zeros(3, int)}, r"ids: is int64 \(3,\)"),
        ({"ids": np.zeros((0, 15), int)}, "holds no derivations"),
        ({"ids": np.full((2, 3), 12)}, "runs from 12 to 12, and the rules from 0 to 11"),
        ({"ids": np.full((2, 3), -2)}, "runs from -2"),
        ({"ids": np.array([[3, 7, 11], [3, 7, 7]])}, "row 1, step 2: rule 7 rewrites T, expected padding"),
        ({"ids": np.array([[3, 7], [3, 4]])}, "row 1, step 2: the row ends with 1 symbols left"),
        ({"split": np.zeros(3, int)}, r"split: has shape \(3,\) for 500 derivations"),
        ({"grammar": np.zeros(3)}, "grammar: is float64"),
        ({"grammar": np.frombuffer(b"\xff\xfe", np.uint8)}, "grammar: is not UTF-8"),
        ({"grammar": np.frombuffer(b"S -> ", np.uint8)}, "ids: runs from 0 to 11, and the rules from 0 to 1"),
        ({"grammar": np.frombuffer(b"S -> T", np.uint8)}, "mine.*undefined symbol T"),
        ({"origin": np.frombuffer(b"[", np.uint8)}, "origin: cannot be read"),
        ({"origin": np.array('{"who": 1}')}, "origin: cannot be read"),
        ({"origin": np.array(json.dumps({**vars(Origin()), "lines": "many"}))}, "origin: cannot be read"),
        ({"origin": np.array(json.dumps({**vars(Origin()), "entropy": float("nan")}))}, "origin: cannot be read"),
    ],
)
def test_unusable_arrays(tmp_path: Path, equations: StringArrays, others: dict[str, np.ndarray], message: str):
    np.savez(tmp_path / "mine.npz", **columns_of(equations, **others))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "mine.npz")


@pytest.mark.parametrize(
    ("lhs", "padding", "message"),
    [
        (np.zeros(12), 11, "are no rules"),
        (np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, -1]), None, "are no rules"),
        (np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, -1]), 12, "are no rules"),
        (np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]), 11, "are no rules"),
        (np.array([0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, -1]), 11, "are no rules"),
        (np.full(12, -1), 11, "are no rules"),
        (np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1]), 11, "row 2, step 0: rule 1 rewrites 0"),
    ],
)
def test_unusable_left_hand_sides(
    tmp_path: Path, equations: StringArrays, lhs: np.ndarray, padding: int | None, message: str
):
    columns = {"ids": equations.ids, "lhs": lhs} | ({} if padding is None else {"padding": np.array(padding)})
    np.savez(tmp_path / "mine.npz", **columns)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "mine.npz")


def test_limited_and_required(equations: StringArrays):
    small = equations.limited(80)
    assert counts(small) == [80, 10, 50]
    with pytest.raises(InputError, match="equations: the val split is empty") as raised:
        equations.only(equations.rows("train")).require(("train", "val"))
    assert "`split` values of 'val'" in raised.value.fix


def test_a_corpus_is_fitted_to_a_model(equations: StringArrays):
    rules = EQUATIONS.rules
    assert fitted(equations, rules) is equations
    longer = fitted(equations, rules, 20)
    assert longer.ids.shape == (500, 20)
    assert (longer.ids[:, 15:] == rules.padding).all() and not longer.notes
    shorter = fitted(equations, rules, 12)
    kept = (equations.ids != rules.padding).sum(axis=1) <= 12
    assert (shorter.ids == equations.ids[kept][:, :12]).all()
    assert (shorter.split == equations.split[kept]).all()
    assert shorter.notes == (f"{500 - kept.sum()} of 500 derivations are longer than the model's 12 steps: left out",)
    assert fitted(bare(equations), rules, 15).ids.shape == (500, 15)
    assert fitted(equations, bare(equations).rules, 15).ids.shape == (500, 15)
    with pytest.raises(InputError, match=r"another grammar \(12 rules\) than the model \(76 rules\)"):
        fitted(equations, SMILES.rules, 15)
    turned = Rules(rules.symbols, rules.lhs, (*rules.rhs[:1], (1, 0), *rules.rhs[2:]), rules.start, rules.padding)
    with pytest.raises(InputError, match="another grammar"):
        fitted(equations, turned, 15)


LINES = """CCO ethanol

C1CC1\t17
c1ccccc1
CCO
CC(
C[C@@H](N)C(=O)O
CXC
N#N
"""


def test_strings_of_a_file(tmp_path: Path):
    file, failures = tmp_path / "mine.smi", tmp_path / "new" / "failed.tsv"
    file.write_bytes(b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode())
    told: list[tuple[int, int]] = []
    arrays = build_parsed(
        file, SMILES, first_column=True, failures=failures, tell=lambda done, of: told.append((done, of))
    )
    strings = ["CCO", "C1CC1", "c1ccccc1", "C[C@@H](N)C(=O)O", "N#N"]
    assert arrays.strings(np.arange(5)) == strings
    assert sorted(arrays.split.tolist()) in ([0, 0, 0, 1, 2], [0, 0, 0, 0, 1, 2][1:])
    assert told[-1] == (8, 8)
    origin = arrays.origin
    assert (origin.lines, origin.failed, origin.duplicates, origin.too_long, origin.ambiguous) == (8, 2, 1, 0, 0)
    assert (origin.how, origin.source, origin.parser, origin.grammar) == ("parsed", "mine.smi", "lalr", "smiles")
    rows = [line.split("\t") for line in failures.read_text().splitlines()]
    assert rows[0] == ["file", "line", "character (from 1)", "reason", "text"]
    assert [(row[0], row[1], row[2], row[4]) for row in rows[1:]] == [
        ("mine.smi", "6", "4", "CC("),
        ("mine.smi", "8", "2", "CXC"),
    ]
    longest = arrays.ids.shape[1]
    short = build_parsed(file, SMILES, first_column=True, most=longest - 1, failures=failures)
    assert short.ids.shape[1] == longest - 1
    assert len(short.ids) == 5 - short.origin.too_long < 5
    file.write_text("CCO\nCC\nC\n")
    build_parsed(file, SMILES, failures=failures)
    assert not failures.exists(), "of another file, it would mislead"


def test_where_all_strings_are_too_long(tmp_path: Path):
    file = tmp_path / "mine.txt"
    for content, message in {
        "x + x\n1 + 2 + 3\n": r"all 2 strings take more than data\.max_rules = 3 rules$",
        "x + x + x\n": r"the only string takes more than data\.max_rules = 3 rules$",
        "x + x\nx + ?\n1 + 2 + 3\n": r"= 3 rules, and 1 lines do not parse, the first at character 5: unexpected '\?'",
    }.items():
        file.write_text(content)
        with pytest.raises(InputError) as raised:
            build_parsed(file, EQUATIONS, most=3)
        assert re.search(message, raised.value.what)
        rules = build_parsed(file, EQUATIONS).ids.shape[1]
        assert rules > 3
        assert raised.value.fix == f"Raise it: the longest takes {rules} (--max-rules {rules})."
        assert len(build_parsed(file, EQUATIONS, most=rules).ids)


def test_spaces_between_terminals_make_no_other_string(tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_text("x + 1\nx+1\n x +1 \n2\n3 * x\n")
    arrays = build_parsed(file, EQUATIONS)
    assert arrays.strings(np.arange(3)) == ["x + 1", "2", "3 * x"]
    assert arrays.origin.duplicates == 2


def test_a_test_split_of_its_own(tmp_path: Path):
    strings = build_drawn(EQUATIONS, 15, 300).strings(np.arange(300))
    file, test = tmp_path / "mine.txt", tmp_path / "test.txt"
    file.write_text("\n".join([*strings[50:], *strings[:10], "oops"]))
    test.write_text("\n".join(["what", *strings[:50]]))
    failures = tmp_path / "failed.tsv"
    arrays = build_parsed(file, EQUATIONS, test=test, failures=failures)
    assert counts(arrays) == [225, 25, 50]
    assert set(arrays.strings(arrays.rows("test"))) == set(strings[:50])
    rows = [line.split("\t") for line in failures.read_text().splitlines()]
    assert [row[:2] for row in rows[1:]] == [["test.txt", "1"], ["mine.txt", "261"]]
    leading = build_parsed(file, EQUATIONS, leading_test=40)
    assert leading.strings(leading.rows("test")) == strings[50:90]
    assert counts(leading) == [198, 22, 40]


def test_ambiguous_strings_are_counted(tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_text("a\naa\naaa\n")
    arrays = build_parsed(file, parse_grammar("S -> S S | 'a'", "twice"))
    assert (arrays.origin.ambiguous, arrays.origin.parser) == (1, "earley")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no strings"),
        (b" \n\n", "holds no strings"),
        (b"\xff\n", "not UTF-8 .byte 0"),
        (b"hello\nworld\n", "no line is a string of equations, the first at character 1: "),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        build_parsed(tmp_path / "mine.txt", EQUATIONS)
    with pytest.raises(InputError, match="cannot be read"):
        build_parsed(tmp_path / "none.txt", EQUATIONS)


def test_a_corpus_is_described(equations: StringArrays):
    told = describe_strings(equations)
    rules = equations.rules
    length = (equations.ids != rules.padding).sum(axis=1)
    train = length[equations.rows("train")]
    split = told.splits["train"]
    assert (split.strings, split.most_rules, split.duplicates) == (400, train.max(), 0)
    assert split.mean_rules == pytest.approx(train.mean())
    assert split.padding == pytest.approx(1 - train.mean() / 15)
    assert told.counts == tuple(int((equations.ids == rule).sum()) for rule in range(12))
    assert (told.steps, told.unused, told.unusable) == (15, (), ())
    assert told.examples == tuple(equations.strings(equations.rows("train")[:5]))
    assert [leak.identical for leak in told.leaks] == [0, 0, 0]
    mixed = replace(equations, ids=np.concatenate([equations.ids[:-1], equations.ids[:1]]))
    mixed = replace(mixed, split=np.r_[np.uint8([0]), mixed.split[1:-1], np.uint8([2])])
    assert [leak.identical for leak in describe_strings(mixed).leaks] == [1, 0, 0]
    few = describe_strings(bare(equations.only(equations.rows("test")[:1])))
    assert few.examples == () and few.leaks == () and few.splits["train"].mean_rules is None
    assert few.unused
    assert describe_strings(build_drawn(SMILES, 12, 10)).unusable == (29, 31)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no molecules beside the checkout")
def test_molecules():
    arrays = build_parsed(SHARED / "zinc_test_5000.smi", SMILES, first_column=True)
    assert counts(arrays) == [4000, 500, 500]
    assert arrays.origin.failed == arrays.origin.duplicates == 0
    lines = (SHARED / "zinc_test_5000.smi").read_text().split()
    assert arrays.strings(np.arange(5000)) == lines
