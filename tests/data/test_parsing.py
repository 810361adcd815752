from __future__ import annotations

import hashlib
import random
from collections import Counter
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from arcvae_cli.data.derivations import Counts, wrong_step
from arcvae_cli.data.parsing import ParseFailure, Parser, parse_lines
from arcvae_cli.data.strings import padded_ids
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, parse_grammar, read_grammar
from tests.data.test_derivations import plain

EQUATIONS = read_grammar("equations")
SMILES = read_grammar("smiles")
MOLECULES = Path(__file__).parents[3] / "shared" / "data"


def sentences(grammar: Grammar, most_rules: int) -> dict[str, list[tuple[int, ...]]]:
    """Every string with its derivations of at most so many rules, by trying them all."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for ids in plain(grammar.rules, most_rules):
        found.setdefault(grammar.write(ids), []).append(ids)
    return found


def agree(grammar: Grammar, most_rules: int, stream: random.Random) -> str:
    """The kind of the parser; it and Earley find a derivation of every string, and refuse the same others."""
    parser, earley = Parser(grammar), Parser(grammar, earley=True)
    found = dict(list(sentences(grammar, most_rules).items())[:200])
    for sentence, derivations in found.items():
        for ids in (parser.parse(sentence), earley.parse(sentence)):
            assert grammar.write(ids) == sentence and wrong_step(ids, grammar.rules) is None, grammar.text
            assert len(derivations) > 1 or tuple(ids) == derivations[0] or parser.kind == "earley", grammar.text
        assert len(derivations) == 1 or parser.kind == "earley", "LALR has no string with two derivations"
    letters = sorted({letter for sentence in found for letter in sentence} - set(grammar.separator)) or ["a"]
    for _ in range(20):
        text = grammar.separator.join(stream.choice(letters) for _ in range(stream.randint(0, 6)))
        outcomes: tuple[list[object], ...] = ([], [])
        for outcome, way in zip(outcomes, (parser, earley), strict=True):
            with suppress(ParseFailure):
                outcome.append(grammar.write(way.parse(text)))
        assert outcomes[0] == outcomes[1], (grammar.text, text)
    return parser.kind


def test_smiles_lark_has_the_productions_of_smiles_cfg():
    parser, earley = Parser(parse_grammar("# mine\n" + SMILES.text, "mine")), Parser(SMILES, earley=True)
    assert parser.kind == "lalr"
    text = "C[C@@H]1CC(Nc2cncc(-c3nncn3C)c2)C[C@@H](C)C1"
    assert earley.parse(text) == parser.parse(text)
    used = set()
    for row in Counts(SMILES.rules, 45).draw(500, np.random.RandomState(0)).tolist():
        ids = [rule for rule in row if rule != SMILES.rules.padding]
        assert parser.parse(SMILES.write(ids) or "") == ids
        used.update(ids)
    assert used == set(range(75)) - {29, 31}


def test_real_molecules_come_back():
    files = [(MOLECULES / "zinc_valid_24445.smi", 50), (MOLECULES / "zinc_test_5000.smi", 5)]
    if not files[0][0].exists():
        pytest.skip("needs the molecules beside the repository")
    texts = [text for file, step in files for text in file.read_text("utf-8").split()[::step]]
    results = parse_lines(texts, SMILES)
    ids = padded_ids(results, 277, SMILES.rules)
    assert [SMILES.write(row) for row in ids.tolist()] == texts
    digest = hashlib.sha256(ids.tobytes()).hexdigest()  # of the first parser, which had LALR tables of its own
    assert digest == "ac24fb418ce3354bff53ddc9365e461fcf4fe5149822a2d4474c7223dbc79c57"


def test_where_a_line_fails():
    commas = parse_grammar("%separator ','\nS -> S 'a' | 'a'", "commas")
    for grammar, cases in (
        (SMILES, {"": 0, "C1CC(": 5, "C)C": 1, "CC-": 3, "[N+H]": 3, "CCX": 2, "C C": 1}),
        (EQUATIONS, {"x +  + 1": 5, "x 1": 2, "( x + 1": 7, "x +  ": 5, "   ": 3, "sin ( y )": 0}),
        (commas, {"a,a,b": 4, "a,": 2}),
    ):
        for parser, (text, position) in product((Parser(grammar), Parser(grammar, earley=True)), cases.items()):
            with pytest.raises(ParseFailure) as caught:
                parser.parse(text)
            found = repr(text[position]) if position < len(text) else "end"
            assert (caught.value.position, caught.value.reason) == (position, f"unexpected {found}")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (EQUATIONS.text, "lalr"),
        ("S -> 'a' S 'a' | 'b' S 'b' |", "earley"),
        ("S -> S '+' S | 'x' | 'y'", "earley"),
        ("S -> A B A\nA -> 'a' |\nB -> 'b' A |", "earley"),
        ("S -> A 'b'\nA -> A 'a' |", "lalr"),
        ("S -> 'a' S | 'ab' S | 'b' | 'c'", "earley"),  # `ab` is one terminal or two
        ("%separator ','\nS -> S T | T\nT -> 'a' | 'ab' | 'b'", "lalr"),
        ("%separator ' '\nS -> S T | T\nT -> 'a' | 'ab' | 'b'", "lalr"),
        ('S -> "\\" S | "\'" | \'"\' S | \'/\' | \'\\\\\' | "\t" S | "😀" S', "earley"),
        ("S ->", "lalr"),
    ],
)
def test_the_parser_is_chosen_and_finds_every_string(text: str, kind: str):
    grammar = parse_grammar(text, "g")
    assert agree(grammar, 6 if len(grammar.productions) < 12 else 4, random.Random(1)) == kind


def test_any_grammar():
    stream, kinds = random.Random(11), Counter()
    while kinds.total() < 30:
        symbols = "SABC"[: stream.randint(1, 4)]
        alphabet = stream.choice(["ab", "+-1x", ["a", "aa", "b", "ba", "c"], ["a", "b", "ab"]])
        lines = [stream.choice(["", "", "%separator ','", "%separator ' '"])]
        for symbol in symbols:
            alternatives = {
                " ".join(
                    stream.choice(symbols) if stream.random() < 0.4 else repr(stream.choice(alphabet))
                    for _ in range(stream.choice([0, 1, 1, 2, 2, 3]))
                )
                for _ in range(stream.randint(1, 3))
            }
            lines.append(f"{symbol} -> {' | '.join(sorted(alternatives))}")
        with suppress(InputError):  # derives nothing, or a symbol derives itself
            kinds[agree(parse_grammar("\n".join(lines), "random"), 5, stream)] += 1
    assert min(kinds.values()) > 4


def test_whitespace_between_terminals_is_ignored_where_it_separates():
    assert EQUATIONS.write(Parser(EQUATIONS).parse(" x\t+sin(3)")) == "x + sin( 3 )"


def test_processes_give_what_one_gives():
    told: list[list[tuple[int, int]]] = [[], []]
    lines, results = ["x", "x+x", "y", "x+x+x"] * 150, []
    for workers, so_far in zip((1, 2), told, strict=True):
        found = parse_lines(lines, EQUATIONS, workers, lambda *count, so_far=so_far: so_far.append(count))
        results.append([one.args if isinstance(one, ParseFailure) else one.tolist() for one in found])
    assert results[0] == results[1] and told[0] == told[1] == [(250, 600), (500, 600), (600, 600)]
