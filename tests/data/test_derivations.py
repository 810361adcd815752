from __future__ import annotations

import hashlib
import math
from collections import Counter
from itertools import islice, product

import numpy as np
import pytest

from arcvae_cli.data.derivations import Counts, enumerated, wrong_step
from arcvae_cli.grammar import Grammar, Rules, parse_grammar, read_grammar

EQUATIONS = read_grammar("equations")
EMPTY = parse_grammar("S -> A B S | \nA -> 'a' | \nB -> 'b' B | 'b' C\nC -> | 'c'\nD -> 'd'", "empty")
AMBIGUOUS = parse_grammar("S -> S S | 'a' | 'b'", "ambiguous")
GRAMMARS = [EQUATIONS, EMPTY, AMBIGUOUS]


def first_wrong(ids: np.ndarray, rules: Rules) -> list[int]:
    """Of each row, the first wrong step; -1 for a whole derivation."""
    return [(wrong_step(row, rules) or (-1,))[0] for row in ids.tolist()]


def plain(rules: Rules, most: int) -> set[tuple[int, ...]]:
    """Every derivation of at most `most` rules, by rewriting the left-most symbol in all ways."""
    found: set[tuple[int, ...]] = set()
    waiting: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), (rules.start,))]
    while waiting:
        done, stack = waiting.pop()
        if not stack:
            found.add(done)
        elif len(done) + len(stack) <= most:
            waiting += [((*done, rule), rules.rhs[rule] + stack[1:]) for rule in rules.of(stack[0])]
    return found


def ends_well(row: list[int], rules: Rules) -> int:
    """The first wrong step of a row, by a plain stack; -1 where there is none."""
    stack = [rules.start]
    for step, rule in enumerate(row):
        if rule == rules.padding:
            if stack:
                return step
            continue
        if not stack or not 0 <= rule < len(rules) or rules.lhs[rule] != stack.pop():
            return step
        stack += reversed(rules.rhs[rule])
    return len(row) if stack else -1


def test_counts_are_those_of_all_derivations():
    for grammar, most in product(GRAMMARS, (1, 2, 7)):
        lengths = Counter(map(len, plain(grammar.rules, most)))
        assert Counts(grammar.rules, most).exact == tuple(lengths[n] for n in range(most + 1))
    counts = Counts(EQUATIONS.rules, 15)
    assert (counts.total, counts.entropy) == (199_941_076, pytest.approx(math.log(199_941_076)))


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda grammar: grammar.name)
def test_draws_are_uniform(grammar: Grammar):
    counts = Counts(grammar.rules, 5)
    whole = plain(grammar.rules, 5)
    draws = 100 * len(whole)
    ids = counts.draw(draws, np.random.RandomState(0))
    assert ids.dtype == np.int16 and ids.shape == (draws, 5)
    seen = Counter(tuple(rule for rule in row if rule != grammar.rules.padding) for row in ids.tolist())
    assert set(seen) == whole
    chi = sum((count - 100) ** 2 / 100 for count in seen.values())
    freedom = len(whole) - 1
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)


def test_draws_from_long_derivations():
    rules = read_grammar("smiles").rules
    counts = Counts(rules, 150)
    assert counts.exact[150].bit_length() > 64
    ids = counts.draw(300, np.random.RandomState(0))
    assert set(first_wrong(ids, rules)) == {-1}
    expected = np.array([count / counts.total for count in counts.exact])
    lengths = np.bincount((ids != rules.padding).sum(axis=1), minlength=151)
    assert abs(lengths / 300 - expected).max() < 0.1


def test_the_equations_of_2017():
    rows = list(islice(enumerated(EQUATIONS, 6), 100_000))
    sentences = [EQUATIONS.write(row) for row in rows]
    digest = hashlib.sha256(("\n".join(sentences) + "\n").encode()).hexdigest()
    assert digest == "ae9850311e884f888491f56dca57ef3c2f9880899e63d26b5da3b71840591ca2"


@pytest.mark.parametrize("grammar", GRAMMARS, ids=lambda grammar: grammar.name)
def test_the_first_wrong_step_is_that_of_a_plain_stack(grammar: Grammar):
    rules = grammar.rules
    stream = np.random.RandomState(0)
    ids = Counts(rules, 8).draw(300, stream).astype(np.int64)
    harmed = stream.random_sample(ids.shape) < 0.1
    ids[harmed] = stream.randint(-2, len(rules) + 2, harmed.sum())
    expected = [ends_well(row, rules) for row in ids.tolist()]
    assert first_wrong(ids, rules) == expected
    assert len(set(expected)) > 4


def test_without_right_hand_sides_less_is_checked():
    bare = Rules(("0", "1"), (0, 0, 1, -1, -1), None, 0, 4)
    rows = np.array([[0, 2, 4], [2, 2, 4], [1, 4, 2], [1, 3, 4], [4, 4, 4], [0, 2, 1]])
    assert first_wrong(rows, bare) == [-1, 0, 2, 1, 0, -1]
    assert wrong_step([0, 3], EQUATIONS.rules) == (2, "the row ends with 2 symbols left, first T")
