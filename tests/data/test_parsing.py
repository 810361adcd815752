from __future__ import annotations

import gc
import hashlib
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from arcvae_cli.data import parsing
from arcvae_cli.data.derivations import Counts
from arcvae_cli.data.parsing import ParseFailure, Parser, parse_lines
from arcvae_cli.data.strings import padded_ids
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Terminal, parse_grammar, read_grammar
from tests.data.test_derivations import plain

EQUATIONS = read_grammar("equations")
SMILES, TOKENS = read_grammar("smiles"), read_grammar("smiles_tokens")
HYDROGENS = [hydrogens + charge for hydrogens, charge in product(("", "H", "H2"), ("", "+", "-3", "+45"))]
MOLECULES = Path(__file__).parents[3] / "shared" / "data"


def sentences(grammar: Grammar, most_rules: int) -> dict[str, list[tuple[int, ...]]]:
    """Every string with its derivations of at most so many rules, by trying them all."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for ids in plain(grammar.rules, most_rules):
        found.setdefault(grammar.write(ids), []).append(ids)
    return found


def agree(grammar: Grammar, most_rules: int, stream: random.Random) -> str:
    """The kind of the parser; it and Earley find the derivations of every string, and refuse the same others."""
    parser, earley = Parser(grammar), Parser(grammar, lalr_seconds=0)
    found = dict(list(sentences(grammar, most_rules).items())[:200])
    for sentence, derivations in found.items():
        ids, ambiguous = parser.derivation(sentence)
        assert earley.derivation(sentence) == (ids, ambiguous), grammar.text
        assert grammar.write(ids) == sentence
        assert tuple(ids) <= min(derivations), grammar.text  # of longer ones too
        assert ambiguous or [tuple(ids)] == derivations, grammar.text
    letters = sorted({letter for sentence in found for letter in sentence} - set(grammar.separator)) or ["a"]
    for _ in range(20):
        text = grammar.separator.join(stream.choice(letters) for _ in range(stream.randint(0, 6)))
        outcomes: tuple[list[object], ...] = ([], [])
        for outcome, way in zip(outcomes, (parser, earley), strict=True):
            with suppress(ParseFailure):
                outcome.append(way.derivation(text))
        assert outcomes[0] == outcomes[1], (grammar.text, text)
    return parser.kind


def test_smiles_lark_has_the_productions_of_smiles_cfg():
    parser, earley = Parser(parse_grammar("# mine\n" + SMILES.text, "mine")), Parser(SMILES, lalr_seconds=0)
    assert parser.kind == "lalr"
    text = "C[C@@H]1CC(Nc2cncc(-c3nncn3C)c2)C[C@@H](C)C1"
    assert earley.derivation(text) == (parser.parse(text), False)
    used = set()
    for row in Counts(SMILES.rules, 45).draw(500, np.random.RandomState(0)).tolist():
        ids = [rule for rule in row if rule != SMILES.rules.padding]
        assert parser.parse(SMILES.write(ids) or "") == ids
        used.update(ids)
    assert used == set(range(75)) - {29, 31}


def test_smiles_tokens_derives_the_strings_of_smiles_by_a_rule_for_each_character():
    parsers, ring = (Parser(SMILES), Parser(TOKENS)), "C[C@@H]1CC(Nc2cncc(-c3nncn3C)c2)C[C@@H](C)C1"
    assert parsers[1].kind == "lalr" and len(parsers[1].parse(ring)) == len(ring) + 1
    texts = [
        f"[{''.join(parts)}]" for parts in product(("", "1", "23", "456"), ("c", "Cl"), ("", "@", "@@"), HYDROGENS)
    ]
    for grammar, most in ((SMILES, 45), (TOKENS, 20)):
        texts += [grammar.write(row) or "" for row in Counts(grammar.rules, most).draw(500, np.random.RandomState(0))]
    for parser in parsers:
        assert [parser.grammar.write(parser.parse(text)) for text in texts] == texts
        for text in ("C(C)1", "C(1)", "C=", "C==C", "(C)", "[1234C]", "[C@@@]", "[CH12]", "[C+123]", "[C"):
            with pytest.raises(ParseFailure):
                parser.parse(text)


def test_smiles_kekule_has_no_aromatic_atoms_and_rdkit_writes_molecules_without(monkeypatch: pytest.MonkeyPatch):
    grammar = read_grammar("smiles_kekule")
    aromatic = {Terminal(letter) for letter in "cnos"}
    assert [*grammar.productions] == [one for one in TOKENS.productions if not aromatic & set(one.right)]
    parser = Parser(grammar)
    written = {"c1ccccc1": "C1=CC=CC=C1"}
    monkeypatch.setattr(parsing, "kekule", lambda text: written.get(text, text))
    for text in ("c1ccccc1", "C1=CC=CC=C1", "ClCBr"):
        assert grammar.write(parser.parse(text)) == written.get(text, text)
    with pytest.raises(ParseFailure, match="unexpected 'c'"):
        parser.parse("C1cc")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(InputError, match=r"c1ccccc1: aromatic atoms .* RDKit, which replaces them"):
        parser.parse("c1ccccc1")
    assert parser.parse("CCO"), "needs no RDKit"


def test_rdkit_writes_molecules_with_double_bonds():
    pytest.importorskip("rdkit")
    assert [parsing.kekule(text) for text in ("c1cc[nH]c1", "C1cc")] == ["C1=CNC=C1", "C1cc"]


def test_real_molecules_come_back():
    files = [(MOLECULES / "zinc_valid_24445.smi", 50), (MOLECULES / "zinc_test_5000.smi", 5)]
    if not files[0][0].exists():
        pytest.skip("needs the molecules beside the repository")
    texts = [text for file, step in files for text in file.read_text("utf-8").split()[::step]]
    short = [result[0] for result in parse_lines(texts, TOKENS)]
    assert [TOKENS.write(ids) for ids in short] == texts and max(map(len, short)) <= 1 + max(map(len, texts))
    results = parse_lines(texts, SMILES)
    ids = padded_ids([result[0] for result in results], 277, SMILES.rules)
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
        for parser, (text, position) in product((Parser(grammar), Parser(grammar, lalr_seconds=0)), cases.items()):
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


def test_spaces_within_a_terminal_are_ignored_where_whitespace_separates():
    parser = Parser(EQUATIONS)
    for text in ("x + sin ( 3 )", "x+sin(3)", " x\t+ sin  (3)"):
        assert EQUATIONS.write(parser.parse(text)) == "x + sin( 3 )"
    words = Parser(parse_grammar("%separator ' '\nS -> 'the' 'dog' | 'f(' '**' ')' | 'f' '('", "words"))
    for text in ("the d og", "f( * * )"):  # only between words and punctuation
        with pytest.raises(ParseFailure):
            words.parse(text)
    assert words.parse("f (") == [2], "what parses as it stands is read as it stands"


def test_processes_give_what_one_gives():
    told: list[list[tuple[int, int]]] = [[], []]
    lines, results = ["x", "x+x", "y", "x+x+x"] * 150, []
    for workers, so_far in zip((1, 2), told, strict=True):
        found = parse_lines(lines, EQUATIONS, workers, lambda *count, so_far=so_far: so_far.append(count))
        results.append([one.args if isinstance(one, ParseFailure) else one[0].tolist() for one in found])
    assert results[0] == results[1] and told[0] == told[1] == [(250, 600), (500, 600), (600, 600)]


def test_ambiguous_strings_and_large_grammars_are_parsed_or_refused_in_time():
    ambiguous = Parser(parse_grammar("S -> S S | 'a'", "g"), earley_seconds=0.1)
    begun, limited = time.process_time(), []
    gc.callbacks.append(lambda *_: limited.append(signal.getitimer(signal.ITIMER_PROF) != (0, 0)))
    try:
        with pytest.raises(InputError, match=r"g: 'a{40}' \(400 characters\) takes over 0.1 s to parse"):
            ambiguous.parse("a" * 400)
    finally:
        gc.callbacks.pop()
    assert time.process_time() - begun < 2 and not any(limited), "what is raised in a callback of gc is lost"
    assert gc.isenabled() and signal.getitimer(signal.ITIMER_PROF) == (0, 0)
    assert [ambiguous.derivation(text)[1] for text in ("a", "aaa")] == [False, True]
    lines = [f"e{n} -> e{n} 'o{n}.' e{n + 1} | e{n + 1} | 'p{n}.' e{n + 1}" for n in range(30)]
    levels = Parser(parse_grammar("\n".join([*lines, "e30 -> 'x' | '(' e0 ')'"]), "levels"), lalr_seconds=0.05)
    assert levels.kind == "earley" and len(levels.parse("p3.x")) == 31
    large = parse_grammar(f"S -> 'b' S A | A\nA -> {' | '.join(repr(f'w{n}.') for n in range(1000))}", "large")
    with pytest.raises(InputError, match="large: 1,002 productions are too many"):
        Parser(large, lalr_seconds=0.05, earley_seconds=0.1)
