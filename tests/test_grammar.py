from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from arcvae_cli.data.derivations import Counts
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import SHIPPED, Production, Terminal, parse_grammar, read_grammar

T = Terminal


def test_notation():
    text = """
        # a comment; 'quotes' within it mean nothing
        %separator ', '
        S -> S '+' T | T          # another
        T->"it's"|'say "so"' | '#' | '|' | '\\' |
        S -> under_score 4/NP a-b
        under_score -> '%' '->'
        4/NP -> 'é'
        a-b -> 'z'
    """
    grammar = parse_grammar(text, "mine")
    assert [(production.left, production.right) for production in grammar.productions] == [
        ("S", ("S", T("+"), "T")),
        ("S", ("T",)),
        *(("T", (T(terminal),)) for terminal in ("it's", 'say "so"', "#", "|", "\\")),
        ("T", ()),
        ("S", ("under_score", "4/NP", "a-b")),
        ("under_score", (T("%"), T("->"))),
        ("4/NP", (T("é"),)),
        ("a-b", (T("z"),)),
    ]
    assert (grammar.name, grammar.text, grammar.start, grammar.separator) == ("mine", text, "S", ", ")


def test_what_no_derivation_uses_keeps_its_number():
    grammar = parse_grammar(
        "%start S\n%undefined U\nS -> 'a' | U | S Loop\nLoop -> 'x' Loop\nIsland -> 'i' B\nB -> 'b'\nS -> 'c'",
        "g",
    )
    assert grammar.unusable == {1, 2, 3, 4, 5}
    assert grammar.productions == parse_grammar(grammar.text + "\nNothing -> None", "g").productions
    rules = grammar.rules
    assert (rules.symbols, rules.rhs, rules.start, rules.padding) == (("S",), ((),) * 8, 0, 7)
    assert rules.lhs == (0, -1, -1, -1, -1, -1, 0, -1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n\n", "0 productions, not 1 to 31999"),
        ("\nS -> a'\na -> 'b'", "line 2: unexpected"),
        ("%start T\nS -> 'a'", "line 1: the start symbol T derives no string"),
        ("S -> 'a' Digit\nDigits -> '1'", "line 1: undefined symbol Digit\n.*%undefined"),
        ("S -> 'a'\n\nS -> 'a'", "line 3: `S -> 'a'` is in line 1 already"),
        ("# x\nS -> 'a' S", "line 2: the start symbol S derives no string"),
        ("S -> 'a' | A\nA -> B E\nB -> 'b' | E S E\nE -> ", "line [123]: a symbol derives itself: ([SAB] -> ){3}[SAB]"),
    ],
)
def test_invalid_grammars(text: str, message: str):
    with pytest.raises(InputError, match=f"^mine.cfg: {message}"):
        parse_grammar(text, "mine.cfg")


def test_files(tmp_path: Path):
    path = tmp_path / "mine.cfg"
    path.write_bytes("\ufeffS -> 'é'\r\n".encode())
    assert read_grammar(str(path)).productions == (Production("S", (T("é"),)),)
    path.write_bytes(b"S -> '\xff'\n")
    for bad in (path, tmp_path / "absent.cfg", "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            read_grammar(str(bad))


def test_the_rules_of_the_grammars_that_ship():
    rules = read_grammar("equations").rules
    assert (len(rules), rules.padding, rules.start, rules.symbols) == (12, 11, 0, ("S", "T"))
    assert rules.lhs == (0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, -1)
    assert rules.rhs == ((0, 1), (0, 1), (0, 1), (1,), (0,), (0,), (0,), (), (), (), (), ())
    grammar = read_grammar("smiles")
    assert [rule for rule, left in enumerate(grammar.rules.lhs) if left < 0] == [29, 31, 75]
    named = [str(grammar.productions[rule]) for rule in (0, 29, 42)]  # numbers that the code of 2017 gives them
    assert named == ["smiles -> chain", "BACH -> charge class", "DIGIT -> '6'"]


@pytest.mark.parametrize("name", SHIPPED)
def test_fewest_is_the_length_of_the_shortest_derivation(name: str):
    rules = read_grammar(name).rules
    shortest = rules.fewest()
    for start in range(len(rules.symbols)):
        exact = Counts(dataclasses.replace(rules, start=start), max(shortest)).exact
        assert shortest[start] == next(length for length, count in enumerate(exact) if count)
    deep = "\n".join(f"A{place} -> A{place + 1} A{place + 1}" for place in range(64)) + "\nA64 -> 'a'"
    assert parse_grammar(deep, "g").rules.fewest()[0] == 2**65 - 1


def test_a_derivation_is_written_left_most():
    grammar = read_grammar("equations")
    assert grammar.write([0, 3, 7, 5, 3, 8]) == "x + sin( 1 )"
    assert grammar.write(np.array([3, 7, 11, 11], np.int16)) == "x"
    assert grammar.write([1, 3, 8, 9]) == "1 * 2"
    for ids in ([], [11], [3], [0, 3, 7], [7], [3, 7, 7], [3, 11, 7], [3, 7, 11, 7], [3, 7, -1], [3, 12]):
        assert grammar.write(ids) is None
    empty = parse_grammar("S -> 'a' S |", "g")
    assert [empty.write(ids) for ids in ([1], [0, 1], [0, 0, 1, 2, 2], [0])] == ["", "a", "aa", None]
