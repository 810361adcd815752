"""Left-most derivations of a grammar as rows of rule ids: counting, uniform sampling, enumeration, checks.

The number of derivations of a symbol with n rules is a sum over its rules of convolutions over their right-hand sides:
dynamic programming over exact integers. Drawing walks down the same sums, one step of all derivations at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Rules

Ids = NDArray[np.int16]  # (N, T): left-most derivations, the padding rule after their ends

_CHUNK = 8192  # derivations drawn at once
_WORK = 10**8  # products of long integers, about a minute
_DRAWS = 40  # for each string that is wanted, before there are held to be no more of them


class Counts:
    """How many derivations of at most `most` rules the start symbol has, and uniform draws from them.

    `exact`: by number of rules, from 0 to `most`. `total`: their sum. `entropy`: of the uniform distribution, in nats.
    A second for 277 rules of SMILES. Raises ValueError for rules without right-hand sides, InputError if it would take
    minutes and gigabytes.
    """

    def __init__(self, rules: Rules, most: int) -> None:
        if rules.rhs is None:
            raise ValueError("rules without right-hand sides derive nothing")
        self.rules, self.most, self._rhs = rules, most, rules.rhs
        tails = {right[place:]: None for right in ((rules.start,), *rules.rhs) for place in range(len(right))}
        self._tails = {tail: number for number, tail in enumerate(tails)}  # sequences of nonterminals, numbered
        if (sum(len(tail) > 1 for tail in tails) + len(rules)) * most**2 > _WORK:
            raise InputError(f"data.max_rules: derivations of {most} rules are too many to count", "lower it")
        self._rules_of = [rules.of(symbol) for symbol in range(len(rules.symbols))]
        self._of_symbol: list[list[int]] = [[0] * (most + 1) for _ in rules.symbols]
        self._of_tail: dict[tuple[int, ...], list[int]] = {(): [1] + [0] * most}
        shortest_first = sorted(tails, key=len)
        for tail in shortest_first:  # a tail of one symbol shares the list of the symbol
            self._of_tail[tail] = self._of_symbol[tail[0]] if len(tail) == 1 else [0] * (most + 1)
        for n in range(1, most + 1):
            for symbol in range(len(rules.symbols)):
                self._of_symbol[symbol][n] = sum(self._by_rule(symbol, n))
            for tail in shortest_first:
                if len(tail) > 1:
                    self._of_tail[tail][n] = sum(self._by_first(tail, n))
        self.exact = tuple(self._of_symbol[rules.start])
        self.total = sum(self.exact)

    @property
    def entropy(self) -> float:
        return math.log(self.total)

    def draw(self, count: int, stream: np.random.RandomState) -> Ids:
        """`count` derivations, independent and uniform up to the 53 bits of each number drawn: (count, most) int16."""
        if not self.total:
            raise ValueError(f"nothing is derived by at most {self.most} rules")
        tables = self._tables
        parts = [tables.draw(min(_CHUNK, count - done), stream) for done in range(0, count, _CHUNK)]
        return np.concatenate(parts) if parts else np.empty((0, self.most), np.int16)

    @cached_property
    def _tables(self) -> _Tables:
        return _Tables(self)

    def _by_rule(self, symbol: int, n: int) -> list[int]:
        return [self._of_tail[self._rhs[rule]][n - 1] for rule in self._rules_of[symbol]]

    def _by_first(self, tail: tuple[int, ...], n: int) -> list[int]:
        """Derivations of a tail of two symbols or more by n rules, by how many the first takes: from 0 to n."""
        first, rest = self._of_symbol[tail[0]], self._of_tail[tail[1:]]
        return [first[m] * rest[n - m] if first[m] else 0 for m in range(n + 1)]


class _Tables:
    """The choices of a walk down the counts, as cumulative probabilities one after the other in a flat array."""

    def __init__(self, counts: Counts) -> None:
        rules, tails, self.most = counts.rules, counts._tails, counts.most
        self.padding, steps = rules.padding, range(1, self.most + 1)
        self._flat: list[float] = []
        self._length = self._choice(counts.exact)
        self._rule = np.zeros((len(rules.symbols), self.most + 1, 2), np.int64)  # first place and number of the choice
        self._split = np.zeros((len(tails), self.most + 1, 2), np.int64)
        self._rules_of = np.full((len(rules.symbols), max(map(len, counts._rules_of))), -1, np.int64)
        for symbol, numbers in enumerate(counts._rules_of):
            self._rules_of[symbol, : len(numbers)] = numbers
            self._rule[symbol, 1:] = [self._choice(counts._by_rule(symbol, n)) for n in steps]
        for tail, number in tails.items():
            if len(tail) > 1:
                self._split[number, 1:] = [self._choice(counts._by_first(tail, n)) for n in steps]
        self._first = np.array([tail[0] for tail in tails], np.int64)
        self._rest = np.array([tails.get(tail[1:], -1) for tail in tails], np.int64)
        self._body = np.array([tails.get(right, -1) for right in counts._rhs], np.int64)
        self._start = tails[rules.start,]
        self._cumulative = np.array(self._flat)

    def draw(self, count: int, stream: np.random.RandomState) -> Ids:
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

    def _choice(self, weights: Sequence[int]) -> tuple[int, int]:
        begin, total = len(self._flat), sum(weights)
        if not total:
            return 0, 0  # never used
        self._flat += [so_far / total for so_far in accumulate(weights)]  # of exact integers, rounded once
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
    counts: Counts, size: int, stream: np.random.RandomState, write: Callable[[list[int]], str | None]
) -> tuple[Ids, list[str]]:
    """`size` uniformly drawn derivations of different strings, with the strings. InputError if there are fewer."""
    strings: dict[str | None, None] = {}
    parts: list[Ids] = []
    for _ in range(_DRAWS + size * _DRAWS // _CHUNK if counts.total >= size else 0):
        # at least half a chunk, so that the last few of a small number of strings are found too
        ids = counts.draw(max(_CHUNK // 2, min(_CHUNK, size - len(strings))), stream)
        kept = []
        for row, one in enumerate(ids.tolist()):
            string = write(one)
            if string not in strings and len(strings) < size:
                strings[string] = None
                kept.append(row)
        parts.append(ids[kept])
        if len(strings) == size:
            return np.concatenate(parts), [string for string in strings if string is not None]
    what = f"data.size: there are no {size} different strings of at most {counts.most} rules"
    raise InputError(what, "use a smaller size, or raise data.max_rules")


def enumerated(grammar: Grammar, depth: int) -> Iterator[tuple[int, ...]]:
    """Every derivation of a tree of at most `depth` levels, in the order of `nltk.parse.generate`."""
    rules_of: dict[str, list[int]] = {}
    for number, production in enumerate(grammar.productions):
        if number not in grammar.unusable:
            rules_of.setdefault(production.left, []).append(number)

    def of_symbol(symbol: object, left: int) -> Iterator[tuple[int, ...]]:
        if isinstance(symbol, str):
            for rule in rules_of.get(symbol, ()):
                for inner in of_all(grammar.productions[rule].right, left - 1):
                    yield rule, *inner
        else:
            yield ()

    def of_all(symbols: tuple[object, ...], left: int) -> Iterator[tuple[int, ...]]:
        if not symbols:
            yield ()
        elif left > 0:
            for first in of_symbol(symbols[0], left):
                for rest in of_all(symbols[1:], left):
                    yield first + rest

    return of_symbol(grammar.start, depth)


def first_of_each(ids: Ids) -> NDArray[np.int64]:
    """Rows that are not like one before them: (n,)."""
    first: dict[bytes, int] = {}
    for row, one in enumerate(ids):
        first.setdefault(one.tobytes(), row)
    return np.fromiter(first.values(), np.int64, len(first))


_ANY = -2  # any symbols, on a stack


def wrong_step(row: list[int], rules: Rules) -> tuple[int, str] | None:
    """The first step of a row that is no part of a left-most derivation, and what is wrong; None for a whole one.

    Step T is wrong if a row ends too early. Without right-hand sides only rules are wrong that rewrite nothing, that
    rewrite another symbol than the start at step 0, or that follow padding.
    """
    lhs, rhs, padding, stack = rules.lhs, rules.rhs, rules.padding, [rules.start]
    for step, rule in enumerate(row):
        if rule == padding:
            if stack and stack[0] != _ANY:
                return step, f"the row ends with {len(stack)} symbols left, first {rules.symbols[stack[-1]]}"
            stack.clear()
            continue
        left = lhs[rule] if 0 <= rule < len(lhs) else -1
        expected = stack.pop() if stack else -1
        if left < 0 or expected not in (left, _ANY):
            what = f"rewrites {rules.symbols[left]}" if left >= 0 else "rewrites nothing"
            wanted = "any symbol" if expected == _ANY else rules.symbols[expected] if expected >= 0 else "padding"
            return step, f"rule {rule} {what}, expected {wanted}"
        stack.extend((_ANY,) if rhs is None else rhs[rule][::-1])
    return wrong_step([*row, padding], rules) if stack and stack[0] != _ANY else None
