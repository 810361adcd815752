from __future__ import annotations

import os
import pickle
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arcvae_cli.data import lalr, parsing
from arcvae_cli.data.lalr import Conflict, Token, _Written, lalr_tables
from arcvae_cli.data.parsing import Failure, ParseFailure, Parser, parse_lines
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Terminal, parse_grammar, read_grammar

EQUATIONS = read_grammar("equations")
SMILES = read_grammar("smiles")
MOLECULES = Path(__file__).parents[3] / "shared" / "data"
DRUGS = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "C[C@@H]1CC(Nc2cncc(-c3nncn3C)c2)C[C@@H](C)C1",
    "Cc1ccc(/C=C2\\SC(N3CC[NH2+]CC3)=NC2=O)cc1",
    "[O-][N+](=O)c1ccc(Cl)cc1Br",
    "C1=CC=2C(C1)=C-2",
    "C-1CC=1",
    "[13CH4]",
    "C12C3C4C1C5C2C3C45",
)
JSON = """
%start value
value -> object | array | 'true' | 'false' | 'null' | number
object -> '{' '}' | '{' members '}'
members -> pair | members ',' pair
pair -> '"' name '"' ':' value
name -> letter | name letter
letter -> 'a' | 'b' | 't'
array -> '[' ']' | '[' values ']'
values -> value | values ',' value
number -> minus digits fraction
minus -> '-' |
digits -> digit | digits digit
digit -> '0' | '1' | '2'
fraction -> '.' digits |
"""
PDE = """
%separator " "
equation -> derivative '=' sum
sum -> sum '+' term | sum '-' term | term
term -> term '*' factor | factor
factor -> 'u' | 'u_x' | 'u_xx' | number | 'sin' '(' sum ')' | '(' sum ')' | factor '**' number
derivative -> 'u_t' | 'u_tt'
number -> '1' | '2' | '10'
"""


def molecules(name: str) -> list[str]:
    if not (MOLECULES / name).exists():
        pytest.skip("needs the molecules beside the repository")
    return (MOLECULES / name).read_text("utf-8").split()


def sentences(grammar: Grammar, most_rules: int) -> dict[str, list[tuple[int, ...]]]:
    """Every string with its derivations of at most so many rules, by trying them all."""
    fewest = dict(zip(grammar.rules.symbols, grammar.rules.fewest(), strict=True))
    found: dict[str, list[tuple[int, ...]]] = {}
    partial: list[tuple[tuple[int, ...], tuple[str, ...]]] = [((), (grammar.start,))]
    while partial:
        ids, symbols = partial.pop()
        if not symbols:
            text = grammar.write(ids)
            assert text is not None
            found.setdefault(text, []).append(ids)
            continue
        for rule, production in enumerate(grammar.productions):
            if production.left == symbols[0] and rule not in grammar.unusable:
                rest = production.nonterminals() + symbols[1:]
                if len(ids) + 1 + sum(fewest[symbol] for symbol in rest) <= most_rules:
                    partial.append(((*ids, rule), rest))
    return found


def outcome(parser: Parser, text: str) -> tuple[list[int], bool] | None:
    try:
        return parser.derivation(text)
    except ParseFailure:
        return None


def drawn(grammar: Grammar, stream: random.Random, budget: int) -> list[int]:
    """Some derivation, by rules at random and, once the budget is spent, by the shortest way to the end."""
    rules = grammar.rules
    fewest = rules.fewest()
    assert rules.rhs is not None
    ids: list[int] = []
    stack = [rules.start]
    while stack:
        choices = rules.of(stack.pop())
        if len(ids) >= budget:
            rule = min(choices, key=lambda rule: sum(fewest[held] for held in rules.rhs[rule]))
        else:
            rule = stream.choice(choices)
        ids.append(rule)
        stack.extend(reversed(rules.rhs[rule]))
    return ids


def test_equations():
    parser = Parser(EQUATIONS)
    assert parser.kind == "lalr"
    assert parser.reason == "LALR has no conflicts: no string has two derivations"
    assert parser.parse("x + sin( 1 )") == [0, 3, 7, 5, 3, 8]
    assert parser.parse("  x+\tsin(1  )") == [0, 3, 7, 5, 3, 8]  # whitespace that may stand there may be left out
    found = sentences(EQUATIONS, 7)
    for text, (ids,) in found.items():  # one derivation each
        assert parser.derivation(text) == (list(ids), False)
    assert len(found) > 1000


def test_smiles():
    parser = Parser(SMILES)
    assert parser.kind == "lalr"
    assert parser.reason == (
        "LALR has no conflicts once '#', '(', '+', '-', '/', '=', '@', '@@' and 2 more are told apart by what follows: "
        "no string has two derivations"
    )
    earley = Parser(SMILES, "earley")
    for text in DRUGS:
        ids = parser.parse(text)
        assert SMILES.write(ids) == text
        assert earley.derivation(text) == (ids, False)


def test_the_rules_as_published_have_ten_conflicts_and_lookahead_none():
    published = _Written(SMILES, {}).conflicts()
    assert published == "LALR has 10 conflicts, such as shift/reduce before '-', over `branched_atom -> atom RB`"
    found = [token for token in lalr_tables(SMILES).tokens if token.text == "-"]
    digits = frozenset("12345678")
    assert Token("-", digits) in found  # of ring bonds, and of charges such as -2
    assert Token("-", frozenset("]")) in found
    atoms = frozenset(
        {"[", *"cnos"} | {p.right[0].text for p in SMILES.productions[4:14] if isinstance(p.right[0], Terminal)}
    )
    assert Token("-", atoms) in found
    assert len(found) == 3


def test_every_real_molecule_comes_back():
    texts = molecules("zinc_valid_24445.smi") + molecules("zinc_test_5000.smi")
    parsed = parse_lines(texts, SMILES, max_rules=277)
    assert parsed.ids.shape == (len(texts), 277) == (29_445, 277)
    assert parsed.ids.dtype == np.int16
    assert not parsed.failures
    assert (parsed.too_long, parsed.ambiguous, parsed.kind) == (0, 0, "lalr")
    assert (parsed.lines == np.arange(1, len(texts) + 1)).all()
    assert [SMILES.write(ids) for ids in parsed.ids.tolist()] == texts
    lengths = (parsed.ids != 75).sum(axis=1)
    assert 125 < lengths.mean() < 133
    assert lengths.max() <= 277


def test_earley_agrees_on_real_molecules():
    parser, earley = Parser(SMILES), Parser(SMILES, "earley")
    for text in molecules("zinc_test_5000.smi")[::250]:
        assert earley.derivation(text) == (parser.parse(text), False)


def test_nltk_agrees():
    nltk = pytest.importorskip("nltk")
    parser = Parser(SMILES)
    own = [production for rule, production in enumerate(SMILES.productions) if rule not in SMILES.unusable]
    cfg = nltk.CFG.fromstring("\n".join(map(str, own)))
    ids = {theirs: SMILES.productions.index(ours) for theirs, ours in zip(cfg.productions(), own, strict=True)}
    chart = nltk.ChartParser(cfg)
    for text in DRUGS[:4]:
        terminals = SMILES.terminals(parser.parse(text))
        trees = list(chart.parse(terminals))
        assert len(trees) == 1
        assert [ids[production] for production in trees[0].productions()] == parser.parse(text)


@pytest.mark.parametrize(
    ("grammar", "text", "position", "reason"),
    [
        (SMILES, "", 0, "is empty where 'B', 'Br', 'C', 'Cl', 'F', 'I', 'N', 'O' or 7 more is expected"),
        (SMILES, "C1CC(", 5, "ends where '#', '-', '/', '=', 'B', 'Br', 'C', 'Cl' or 12 more is expected"),
        (SMILES, "C)C", 1, "')' where "),
        (SMILES, "CC(=)C", 4, "')' where 'B', 'Br', 'C', 'Cl', 'F', 'I', 'N', 'O' or 7 more is expected"),
        (SMILES, "CC-", 3, "ends where "),
        (SMILES, "[N+H]", 3, "'H' where '1', '2', '3', '4', '5', '6', '7', '8' or 1 more is expected"),
        (SMILES, "CCX", 2, "'X' where "),
        (SMILES, "C C", 1, "' ' where "),
        (EQUATIONS, "x +  + 1", 5, "'+' where '(', '1', '2', '3', 'exp(', 'sin(' or 'x' is expected"),
        (EQUATIONS, "x 1", 2, "'1' where '*', '+', '/' or the end is expected"),
        (EQUATIONS, "( x + 1", 7, "ends where ')', '*', '+' or '/' is expected"),
        (EQUATIONS, "x +  ", 5, "ends where "),
        (EQUATIONS, "   ", 3, "ends where "),
        (EQUATIONS, "4", 0, "'4' where "),
    ],
)
@pytest.mark.parametrize("how", ["lalr", "earley"])
def test_where_a_line_fails_and_why(grammar: Grammar, text: str, position: int, reason: str, how: str):
    with pytest.raises(ParseFailure) as caught:
        Parser(grammar, how).parse(text)  # type: ignore[arg-type]
    assert caught.value.position == position
    if how == "lalr":
        assert caught.value.reason.startswith(reason)


def test_a_line_may_not_be_endless():
    with pytest.raises(ParseFailure, match="longer than 65536 characters"):
        Parser(SMILES).parse("C" * 65_537)
    assert len(Parser(SMILES).parse("C" * 5000)) == 20_001  # nested 5,000 deep


def test_numbers_names_and_brackets():
    grammar = parse_grammar(JSON, "json")
    parser = Parser(grammar)
    assert parser.kind == "lalr"
    earley = Parser(grammar, "earley")
    for text in ("[]", '{"ab":[true,-10.2,{"t":null}],"b":{}}', "-0.1", "12"):
        ids = parser.parse(text)
        assert grammar.write(ids) == text
        assert earley.derivation(text) == (ids, False)
    assert outcome(parser, '{"ab" :1}') is outcome(earley, '{"ab" :1}') is None


def test_equations_with_derivatives():
    grammar = parse_grammar(PDE, "pde")
    parser = Parser(grammar)
    assert parser.kind == "lalr"
    for text in ("u_t = u_xx", "u_tt = 10 * u_x - sin ( u ** 2 + 1 ) * ( u )"):
        ids = parser.parse(text)
        assert grammar.write(ids) == text
        assert Parser(grammar, "earley").derivation(text) == (ids, False)
        assert parser.parse(text.replace(" ", "")) == ids  # the longest terminal is read: u_xx, never u_x
    stream = random.Random(2)
    for _ in range(300):
        ids = drawn(grammar, stream, 30)
        text = grammar.write(ids)
        assert text is not None
        assert parser.parse(text) == ids


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("S -> 'a' S 'b' |", "lalr", "LALR has no conflicts"),
        (
            "S -> 'a' S 'a' | 'b' S 'b' |",
            "earley",
            "LALR has 2 conflicts, such as shift/reduce before 'a', over `S ->`",
        ),
        ("S -> S '+' S | 'x' | 'y'", "earley", "a conflict, shift/reduce before '[+]', over `S -> S '[+]' S`"),
        (
            "S -> A 'x' | B 'x'\nA -> 'a'\nB -> 'a'",
            "earley",
            "a conflict, reduce/reduce before 'x', over `[AB] -> 'a'` and `[AB] -> 'a'`",
        ),
        ("S -> A 'x' 'y' | B 'x' 'z'\nA -> 'a'\nB -> 'a'", "lalr", "once 'x' is told apart by what follows"),
        ("S -> A O B | A O 'z' S\nA -> 'a' | A O 'a'\nO -> '-' | '='\nB -> 'b'", "lalr", "no conflicts"),
        ("S -> A B A\nA -> 'a' |\nB -> 'b' A |", "earley", "conflict"),
        ("S -> A 'b'\nA -> A 'a' |", "lalr", "no conflicts"),
        ("S -> 'a' S | 'ab' S | 'b' | 'c'", "earley", "LALR may take 'a' and what follows it for 'ab'"),
        ("S -> A B\nA -> 'a' | 'ab'\nB -> 'c' | 'bc'", "earley", "LALR may take 'a' and what follows it for 'ab'"),
        (
            "S -> 'a' 'd' | 'abc' 'd' | 'a' 'b' E\nE -> 'cd' | 'e'",
            "earley",
            "may take 'a' and what follows it for 'abc'",
        ),
        ("S -> 'a' 'd' | 'abc' 'd' | 'a' 'b' E\nE -> 'd' | 'e'", "lalr", "no conflicts"),
        ("%separator ','\nS -> S T | T\nT -> 'a' | 'ab' | 'b'", "lalr", "no conflicts"),
        ("%separator ' '\nS -> S T | T\nT -> 'a' | 'ab' | 'b'", "lalr", "no conflicts"),
        ("%separator ' '\nS -> S S | 'a' | 'ab'", "earley", "conflict"),
        (
            "S -> 'if' 'c' S | 'if' 'c' S 'else' S | 'x'",
            "earley",
            "a conflict, shift/reduce before 'else', over `S -> 'if' 'c' S`",
        ),
        ("S -> A S 'x' | 'y'\nA -> 'a' |", "earley", "conflict"),
        ('S -> "\\" S | "\'" | \'"\' S | \'/\' | \'\\\\\' | "\t" S | "😀" S', "earley", "may take"),
        ("S ->", "lalr", "no conflicts"),
    ],
)
def test_the_parser_is_chosen_and_finds_every_string(text: str, kind: str, reason: str):
    grammar = parse_grammar(text, "g")
    parser, earley = Parser(grammar), Parser(grammar, "earley")
    assert parser.kind == kind
    assert re.search(reason, parser.reason)
    if kind == "earley":
        with pytest.raises(InputError, match=r"^g: LALR"):
            Parser(grammar, "lalr")
    found = sentences(grammar, 7 if len(grammar.productions) < 7 else 4)
    for sentence, derivations in found.items():
        for way in (parser, earley):
            ids, ambiguous = way.derivation(sentence)
            assert grammar.write(ids) == sentence
            assert tuple(ids) <= min(derivations)  # of longer ones too
            if len(derivations) > 1:
                assert ambiguous
            if not ambiguous:
                assert [tuple(ids)] == derivations
    stream = random.Random(1)
    letters = sorted({letter for sentence in found for letter in sentence} - set(grammar.separator)) or ["a"]
    for _ in range(100):
        sentence = grammar.separator.join(stream.choice(letters) for _ in range(stream.randint(0, 6)))
        if grammar.separator != " ":  # there LALR may read what Earley's longest terminal does not
            assert outcome(parser, sentence) == outcome(earley, sentence)


def test_ambiguous_lines_are_counted_and_the_first_derivation_taken():
    grammar = parse_grammar("S -> S '+' S | 'x' | 'y'", "g")
    parsed = parse_lines(["x+y", "x+x+x", "x", "y+x+y+x"], grammar)
    assert (parsed.ambiguous, parsed.kind) == (2, "earley")
    assert parsed.ids[1].tolist() == [0, 0, 1, 1, 1, 3, 3]
    assert parsed.ids.shape == (4, 7)


def random_grammars(stream: random.Random) -> Iterator[Grammar]:
    while True:
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
        try:
            yield parse_grammar("\n".join(lines), "random")
        except InputError:  # derives nothing, or a symbol derives itself
            continue


def test_any_grammar():
    stream = random.Random(11)
    kinds = {"lalr": 0, "earley": 0}
    for _, grammar in zip(range(120), random_grammars(stream), strict=False):
        parser, earley = Parser(grammar), Parser(grammar, "earley")
        kinds[parser.kind] += 1
        for sentence, derivations in list(sentences(grammar, 6).items())[:25]:
            ids, ambiguous = parser.derivation(sentence)
            assert earley.derivation(sentence) == (ids, ambiguous), grammar.text
            assert tuple(ids) <= min(derivations), grammar.text
            assert ambiguous or [tuple(ids)] == derivations, grammar.text
            assert ambiguous or parser.kind == "lalr" or len(derivations) == 1
    assert min(kinds.values()) > 10


def test_lines_that_fail_and_lines_too_long():
    parsed = parse_lines(["x", "", "x + x", "x + x + x", "y", "( x"], EQUATIONS, max_rules=5)
    assert parsed.ids.tolist() == [[3, 7, 11, 11, 11], [0, 3, 7, 7, 11]]
    assert parsed.lines.tolist() == [1, 3]
    assert parsed.too_long == 1
    assert parsed.failures[0] == Failure(
        2, 0, "", "is empty where '(', '1', '2', '3', 'exp(', 'sin(' or 'x' is expected"
    )
    assert [(failure.line, failure.position, failure.text) for failure in parsed.failures] == [
        (2, 0, ""),
        (5, 0, "y"),
        (6, 3, "( x"),
    ]


def test_no_line_at_all():
    for lines in ([], ["("]):
        parsed = parse_lines(lines, EQUATIONS)
        assert parsed.ids.shape == (0, 0)
        assert parse_lines(lines, EQUATIONS, max_rules=15).ids.shape == (0, 15)
    empty = parse_lines([""], parse_grammar("S -> 'a' S |", "g"))
    assert empty.ids.tolist() == [[1]]


@pytest.mark.parametrize("grammar", [EQUATIONS, parse_grammar("S -> S '+' S | 'x'", "g")], ids=["lalr", "earley"])
def test_processes_give_what_one_gives(grammar: Grammar):
    lines = ["x", "x+x", "y", "x+x+x"] * (1100 if Parser(grammar).kind == "lalr" else 15)
    told: list[tuple[int, int]] = []
    one = parse_lines(lines, grammar, workers=1, tell=lambda *so_far: told.append(so_far))
    assert told[-1] == (len(lines), len(lines))
    assert told == sorted(told)
    assert len(told) == 3
    told.clear()
    two = parse_lines(lines, grammar, workers=2, tell=lambda *so_far: told.append(so_far))
    assert told[-1] == (len(lines), len(lines))
    assert (two.ids == one.ids).all()
    assert (two.lines == one.lines).all()
    assert two.failures == one.failures
    assert (two.ambiguous, two.too_long, two.kind) == (one.ambiguous, one.too_long, one.kind)


def killed(start: int, lines: list[str], max_rules: int | None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_stood_in_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parsing, "_work", killed)
    parsed = parse_lines(["x"] * 4100, EQUATIONS, workers=2)
    assert parsed.ids.shape == (4100, 2)


def test_padding_may_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parsing, "_MOST_IDS", 100)
    with pytest.raises(InputError, match=r"20 derivations of up to 4 rules[^\n]*\n.*--max-rules N, below 2 here"):
        parse_lines([*["x"] * 19, "x+x"], EQUATIONS)
    assert len(parse_lines([*["x"] * 19, "x+x"], EQUATIONS, max_rules=2).ids) == 19


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parsing, "_REMEMBERED", 5)
    parser = Parser(SMILES)
    for text in DRUGS:
        assert SMILES.write(parser.parse(text)) == text
        assert sum(map(len, parser._reader.known)) <= 5  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["lalr", "earley"])
def test_parsers_travel_between_processes(how: str):
    parser = Parser(SMILES, how)  # type: ignore[arg-type]
    copy: Parser = pickle.loads(pickle.dumps(parser))
    assert (copy.kind, copy.reason) == (parser.kind, parser.reason)
    assert copy.parse("CC-1") == parser.parse("CC-1")


def test_tables_too_large_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("arcvae_cli.data.lalr._MOST_WORK", 50)
    with pytest.raises(Conflict, match="11 productions and 11 terminals"):
        lalr_tables(EQUATIONS)
    parser = Parser(EQUATIONS)
    assert parser.reason == "Earley: LALR tables of 11 productions and 11 terminals are too large"
    assert parser.parse("x") == [3, 7]


@pytest.mark.parametrize(
    ("shape", "rules"),
    [
        ("words", 2500),  # LALR takes half a minute, of 9,000 many
        ("levels", 900),
        ("words", 700),  # seconds
        ("levels", 30),
    ],
)
def test_what_takes_long_is_said_before(shape: str, rules: int):
    text = f"S -> 'b' S A | A\nA -> {' | '.join(repr(f'w{n}.') for n in range(rules))}"
    if shape == "levels":
        lines = [f"e{n} -> e{n} 'o{n}.' e{n + 1} | e{n + 1} | 'p{n}.' e{n + 1}" for n in range(rules // 3)]
        text = "\n".join([*lines, f"e{rules // 3} -> 'x' | '(' e0 ')'"])
    grammar = parse_grammar(text, "large")
    said: list[str] = []
    begun = time.monotonic()
    strings = ["w3.", "bw1.w2."] if shape == "words" else ["p3.x", "xo2.x"]
    parsed = parse_lines(strings, grammar, say=lambda line: said.append(f"{line} {time.monotonic() - begun:.0f}"))
    assert len(parsed.ids) == 2
    if rules == 30:
        assert not said and parsed.kind == "lalr"
        return
    (line,) = said
    size = f"LALR tables of {len(grammar.productions):,} productions and"
    if rules == 700:
        assert line.startswith(f"making {size} 701 terminals: up to half a minute") and parsed.kind == "lalr"
        return
    assert line.startswith(size) and "by Earley" in line and parsed.kind == "earley"
    assert "are too large" in parsed.reason
    assert time.monotonic() - begun < 60


def test_grammars_too_large_are_refused_at_once():
    grammar = parse_grammar(f"A -> {' | '.join(repr(f'w{n}.') for n in range(9000))}", "large")
    said: list[str] = []
    begun = time.monotonic()
    with pytest.raises(InputError, match="large: 9,000 productions are too many") as raised:
        parse_lines(["w3."], grammar, say=said.append)
    assert "--prod" in str(raised.value.fix) and not said
    assert time.monotonic() - begun < 10


def test_tables_that_lark_cannot_make_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    def too_deep(*arguments: object, **options: object) -> None:
        raise RecursionError

    monkeypatch.setattr(lalr, "Lark", too_deep)
    assert Parser(EQUATIONS).reason == "Earley: for LALR tables, symbols hold one another too deep"


def test_symbols_may_hold_one_another_deep():
    lines = [f"A{place} -> 'a' A{place + 1} | 'b'" for place in range(400)]
    grammar = parse_grammar("\n".join([*lines, "A400 -> 'c'"]), "g")
    for parser in (Parser(grammar), Parser(grammar, "earley")):
        assert parser.parse("aab") == [0, 2, 5]
        assert len(parser.parse("a" * 400 + "c")) == 401
