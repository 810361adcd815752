"""Left-most derivations of a grammar as rows of rule ids: counting, uniform sampling, enumeration, checks.

The number of derivations of a symbol with exactly n rules is a sum over its rules of convolutions of the numbers of
what stands on their right-hand sides: dynamic programming over exact integers, for any context-free grammar, whose
results grow without bound. Drawing walks down the same sums, one step of all derivations at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Rules

Ids = NDArray[np.int16]  # (N, T): left-most derivations, the padding rule after their ends

_CHUNK = 8192  # derivations drawn at once
_WORK = 10**8  # products of long integers, about a minute
_DRAWS = 40  # for each string that is wanted, before there are held to be no more of them


class Counts:
    """How many derivations of at most `most` rules the start symbol has, and draws from them, each as likely.

    `exact`: by number of rules, from 0 to `most`. `total`: their sum. Costs about S * most**2 / 2 products of long
    integers for S different tails of right-hand sides that hold two symbols or more: nothing for 15 rules of
    equations, a second for 277 of SMILES. Raises ValueError for rules without right-hand sides, InputError where it
    would take minutes and gigabytes.
    """

    def __init__(self, rules: Rules, most: int) -> None:
        if rules.rhs is None:
            raise ValueError("rules without right-hand sides derive nothing")
        self.rules = rules
        self.most = most
        self._tails: dict[tuple[int, ...], int] = {}  # a sequence of nonterminals, and its number
        for right in ((rules.start,), *rules.rhs):
            for place in range(len(right)):
                self._tails.setdefault(right[place:], len(self._tails))
        if (sum(len(tail) > 1 for tail in self._tails) + len(rules)) * most**2 > _WORK:
            raise InputError(
                f"data.max_rules: derivations of up to {most} rules of so many kinds are not counted in sensible time",
                "Use a smaller number.",
            )
        self._rules_of = [rules.of(symbol) for symbol in range(len(rules.symbols))]
        self._of_symbol: list[list[int]] = [[0] * (most + 1) for _ in rules.symbols]
        self._of_tail: dict[tuple[int, ...], list[int]] = {(): [1] + [0] * most}
        self._count(rules.rhs)
        self.exact = tuple(self._of_symbol[rules.start])
        self.total = sum(self.exact)
        self._tables: _Tables | None = None

    @property
    def entropy(self) -> float:
        """Of the uniform distribution over these derivations, in nats."""
        return math.log(self.total)

    def draw(self, count: int, stream: np.random.RandomState) -> Ids:
        """`count` derivations, independent and uniform up to the 53 bits of each number drawn: (count, most) int16."""
        if not self.total:
            raise ValueError(f"nothing is derived by at most {self.most} rules")
        if self._tables is None:
            self._tables = _Tables(self)
        parts = [self._tables.draw(min(_CHUNK, count - done), stream) for done in range(0, count, _CHUNK)]
        return np.concatenate(parts) if parts else np.empty((0, self.most), np.int16)

    def _count(self, rhs: tuple[tuple[int, ...], ...]) -> None:
        shortest_first = sorted(self._tails, key=len)
        for tail in shortest_first:
            # a tail of one symbol shares the list of the symbol
            self._of_tail[tail] = self._of_symbol[tail[0]] if len(tail) == 1 else [0] * (self.most + 1)
        for n in range(1, self.most + 1):
            for symbol, numbers in enumerate(self._rules_of):
                self._of_symbol[symbol][n] = sum(self._of_tail[rhs[rule]][n - 1] for rule in numbers)
            for tail in shortest_first:
                if len(tail) > 1:
                    self._of_tail[tail][n] = sum(self._shares(tail, n))

    def _shares(self, tail: tuple[int, ...], n: int) -> list[int]:
        """Derivations of a tail of two symbols or more by n rules, by how many the first takes: from 0 to n."""
        first, rest = self._of_symbol[tail[0]], self._of_tail[tail[1:]]
        return [first[m] * rest[n - m] if first[m] else 0 for m in range(n + 1)]


class _Tables:
    """The choices of a walk down the counts, as cumulative probabilities one after the other in a flat array.

    A choice is of the number of rules of a whole derivation, of a symbol's rule given how many rules it takes in all,
    or of how many of a tail's rules its first symbol takes.
    """

    def __init__(self, counts: Counts) -> None:
        rules, most = counts.rules, counts.most
        assert rules.rhs is not None
        self.most, self.padding = most, rules.padding
        self._flat: list[float] = []
        self._length = self._choice(counts.exact)
        self._rule = np.zeros((len(rules.symbols), most + 1, 2), np.int64)  # first place and number of the choice
        self._split = np.zeros((len(counts._tails), most + 1, 2), np.int64)
        self._rules_of = np.full((len(rules.symbols), max(map(len, counts._rules_of))), -1, np.int64)
        for symbol, numbers in enumerate(counts._rules_of):
            self._rules_of[symbol, : len(numbers)] = numbers
            for n in range(1, most + 1):
                self._rule[symbol, n] = self._choice([counts._of_tail[rules.rhs[rule]][n - 1] for rule in numbers])
        self._first = np.array([tail[0] for tail in counts._tails], np.int64)
        self._rest = np.array([counts._tails.get(tail[1:], -1) for tail in counts._tails], np.int64)
        self._body = np.array([counts._tails.get(right, -1) for right in rules.rhs], np.int64)
        self._start = counts._tails[rules.start,]
        for tail, number in counts._tails.items():
            if len(tail) > 1:
                for n in range(1, most + 1):
                    self._split[number, n] = self._choice(counts._shares(tail, n))
        self._cumulative = np.array(self._flat)

    def draw(self, count: int, stream: np.random.RandomState) -> Ids:
        """`count` derivations: (count, most)."""
        ids = np.full((count, self.most), self.padding, np.int16)
        tail = np.zeros((count, self.most + 1), np.int64)  # a stack: what is still to be derived
        size = np.zeros((count, self.most + 1), np.int64)  # and by how many rules
        top = np.zeros(count, np.int64)
        tail[:, 0] = self._start
        size[:, 0] = self._chosen(np.array([self._length] * count), stream)
        for step in range(self.most):
            live = np.flatnonzero(top >= 0)
            if not live.size:
                break
            place = top[live]
            here, n = tail[live, place], size[live, place]
            several = self._rest[here] >= 0
            taken = n.copy()
            if several.any():
                rows = np.flatnonzero(several)
                taken[rows] = self._chosen(self._split[here[rows], n[rows]], stream)
                tail[live[rows], place[rows]] = self._rest[here[rows]]
                size[live[rows], place[rows]] = (n - taken)[rows]
            place = place - ~several
            symbol = self._first[here]
            rule = self._rules_of[symbol, self._chosen(self._rule[symbol, taken], stream)]
            ids[live, step] = rule
            grows = self._body[rule] >= 0
            place = place + grows
            top[live] = place
            tail[live[grows], place[grows]] = self._body[rule[grows]]
            size[live[grows], place[grows]] = taken[grows] - 1
        return ids

    def _choice(self, weights: tuple[int, ...] | list[int]) -> tuple[int, int]:
        """Put a choice behind the others: where it begins, and among how many."""
        total = sum(weights)
        if not total:
            return 0, 0  # never asked for
        begin, so_far = len(self._flat), 0
        for weight in weights:
            so_far += weight
            self._flat.append(so_far / total)  # of exact integers, rounded once
        return begin, len(weights)

    def _chosen(self, choices: NDArray[np.int64], stream: np.random.RandomState) -> NDArray[np.int64]:
        """One draw for each choice (n, 2), by bisection: the first place whose cumulative probability is above it."""
        drawn = stream.random_sample(len(choices))
        low, high = choices[:, 0].copy(), choices[:, 0] + choices[:, 1] - 1
        while (low < high).any():
            middle = (low + high) // 2
            above = self._cumulative[middle] > drawn
            high = np.where(above, middle, high)
            low = np.where(above, low, np.minimum(middle + 1, high))
        return low - choices[:, 0]


def draw_strings(
    counts: Counts,
    size: int,
    stream: np.random.RandomState,
    write: Callable[[list[int]], str | None],
) -> tuple[Ids, list[str]]:
    """`size` derivations, drawn uniformly and kept in the order drawn, of which no two give the same string.

    Where the grammar is ambiguous, a string of many derivations is as much likelier to be among them. Raises
    InputError where there are fewer such strings.
    """
    few = InputError(
        f"data.size: there are no {size} different strings of at most {counts.most} rules",
        "Use a smaller size, or raise data.max_rules.",
    )
    if counts.total < size:
        raise few
    strings: dict[str, None] = {}
    parts: list[Ids] = []
    for _ in range(_DRAWS + size * _DRAWS // _CHUNK):
        # at least half a chunk, so that the last few of a small number of strings are found too
        ids = counts.draw(max(_CHUNK // 2, min(_CHUNK, size - len(strings))), stream)
        kept = []
        for row, one in enumerate(ids.tolist()):
            string = write(one)
            assert string is not None, "what is drawn is a whole derivation"
            if string not in strings and len(strings) < size:
                strings[string] = None
                kept.append(row)
        parts.append(ids[kept])
        if len(strings) == size:
            return np.concatenate(parts), list(strings)
    raise few


def enumerated(grammar: Grammar, depth: int) -> Iterator[tuple[int, ...]]:
    """Every derivation of a tree of at most `depth` levels, terminals counted as one, rules in the file's order.

    The order, and what counts as a level, are those of `nltk.parse.generate`, of which Kusner et al. 2017 took the
    first 100,000 sentences at depth 6 for their equations.
    """
    rules_of: dict[str, list[int]] = {}
    for number, production in enumerate(grammar.productions):
        if number not in grammar.unusable:
            rules_of.setdefault(production.left, []).append(number)

    def of_symbol(symbol: object, left: int) -> Iterator[tuple[int, ...]]:
        if left < 1:
            return
        if not isinstance(symbol, str):
            yield ()
            return
        for rule in rules_of.get(symbol, ()):
            for inner in of_all(grammar.productions[rule].right, left - 1):
                yield rule, *inner

    def of_all(symbols: tuple[object, ...], left: int) -> Iterator[tuple[int, ...]]:
        if not symbols:
            yield ()
            return
        for first in of_symbol(symbols[0], left):
            for rest in of_all(symbols[1:], left):
                yield first + rest

    return of_symbol(grammar.start, depth)


def padded(derivations: list[tuple[int, ...]], length: int, padding: int) -> Ids:
    """Derivations of up to `length` rules as rows: (N, length)."""
    ids = np.full((len(derivations), length), padding, np.int16)
    for row, one in enumerate(derivations):
        ids[row, : len(one)] = one
    return ids


def first_of_each(ids: Ids) -> NDArray[np.int64]:
    """Rows that are not like one before them: (n,)."""
    first: dict[bytes, int] = {}
    for row, one in enumerate(ids):
        first.setdefault(one.tobytes(), row)
    return np.fromiter(first.values(), np.int64, len(first))


def lengths(ids: Ids, padding: int) -> NDArray[np.int64]:
    """Rules of each derivation, the padding not among them: (N,)."""
    count: NDArray[np.int64] = (ids != padding).sum(axis=1)
    return count


def first_wrong(ids: NDArray[np.integer], rules: Rules) -> NDArray[np.int64]:
    """Of each row (N, T), the first step that is no part of a left-most derivation: (N,), -1 for a whole derivation.

    A rule is wrong where it does not rewrite the left-most nonterminal, padding where a nonterminal is left; step T is
    wrong where a row ends too early. Without right-hand sides a rule is wrong that rewrites nothing, that rewrites
    another symbol than the start at step 0, or that follows padding. Takes 10 s for ZINC.
    """
    found = ((_first_wrong(row.tolist(), rules) or (-1, ""))[0] for row in ids)
    return np.fromiter(found, np.int64, len(ids))


def why_wrong(row: list[int], rules: Rules, step: int) -> str:  # noqa: ARG001 - the first wrong one
    """What `first_wrong` found at a step of a row, in words."""
    found = _first_wrong(row, rules)
    return "" if found is None else found[1]


_ANY = -2  # any symbols, on a stack


def _first_wrong(row: list[int], rules: Rules) -> tuple[int, str] | None:
    lhs, rhs, padding, stack = rules.lhs, rules.rhs, rules.padding, [rules.start]
    for step, rule in enumerate(row):
        if rule == padding:
            if stack and stack[0] != _ANY:
                break
            if row[step:].count(padding) == len(row) - step:
                return None
            stack.clear()
            continue
        left = lhs[rule] if 0 <= rule < len(lhs) else -1
        expected = stack.pop() if stack else -1
        if left < 0 or expected not in (left, _ANY):
            what = f"rewrites {rules.symbols[left]}" if left >= 0 else "rewrites nothing"
            wanted = "any symbol" if expected == _ANY else rules.symbols[expected] if expected >= 0 else "padding"
            return step, f"rule {rule} {what}, expected {wanted}"
        stack.extend((_ANY,) if rhs is None else rhs[rule][::-1])
    else:
        step = len(row)
    if stack and stack[0] != _ANY:
        return step, f"the row ends with {len(stack)} symbols left, first {rules.symbols[stack[-1]]}"
    return None
