"""Left-most derivations of a grammar as rows of rule ids: counting, uniform sampling, enumeration, checks.

The number of derivations of a symbol with n rules is a sum over its rules of convolutions over their right-hand sides:
dynamic programming over exact integers. Drawing walks down the same sums, one step of all derivations at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Rules, Symbol, Terminal

Ids = NDArray[np.int16]  # (N, T): left-most derivations, the padding rule after their ends

_CHUNK = 8192  # derivations drawn at once
_WORK = 10**8  # products of long integers, about a minute
_DRAWS = 40  # for each string that is wanted, before there are held to be no more of them


class Counts:
    """How many derivations of at most `most` rules the start symbol has, and uniform draws from them.

    `exact`: by number of rules, from 0 to `most`. `total`: their sum. A second for 277 rules of SMILES. Raises
    InputError if it would take minutes and gigabytes.
    """

    def __init__(self, rules: Rules, most: int) -> None:
        assert rules.rhs is not None, "needs right-hand sides"
        self.rules, self.most, self.rhs = rules, most, rules.rhs
        tails = {right[place:]: None for right in ((rules.start,), *rules.rhs) for place in range(len(right))}
        if (sum(len(tail) > 1 for tail in tails) + len(rules)) * most**2 > _WORK:
            raise InputError(f"data.max_rules: derivations of {most} rules are too many to count", "lower it")
        self.tails = sorted(tails, key=len)  # sequences of nonterminals
        self.rules_of = [rules.of(symbol) for symbol in range(len(rules.symbols))]
        self._of_symbol: list[list[int]] = [[0] * (most + 1) for _ in rules.symbols]
        self._of_tail: dict[tuple[int, ...], list[int]] = {(): [1] + [0] * most}
        for tail in self.tails:  # a tail of one symbol shares the list of the symbol
            self._of_tail[tail] = self._of_symbol[tail[0]] if len(tail) == 1 else [0] * (most + 1)
        for n in range(1, most + 1):
            for symbol, counts in enumerate(self._of_symbol):
                counts[n] = sum(self.by_rule(symbol, n))
            for tail in self.tails:
                if len(tail) > 1:
                    self._of_tail[tail][n] = sum(self.by_first(tail, n))
        self.exact = tuple(self._of_symbol[rules.start])
        self.total = sum(self.exact)

    @property
    def entropy(self) -> float:
        """Of the uniform distribution, in nats."""
        return math.log(self.total)

    def by_rule(self, symbol: int, n: int) -> list[int]:
        """Derivations of a symbol by n rules, by the first of them."""
        return [self._of_tail[self.rhs[rule]][n - 1] for rule in self.rules_of[symbol]]

    def by_first(self, tail: tuple[int, ...], n: int) -> list[int]:
        """Derivations of a tail of two symbols or more by n rules, by how many the first takes: from 0 to n."""
        first, rest = self._of_symbol[tail[0]], self._of_tail[tail[1:]]
        return [first[m] * rest[n - m] if first[m] else 0 for m in range(n + 1)]

    def draw(self, count: int, stream: np.random.RandomState) -> Ids:
        """`count` derivations, independent and uniform up to the 53 bits of each number drawn: (count, most) int16."""
        return np.concatenate([self._walk.draw(min(_CHUNK, count - done), stream) for done in range(0, count, _CHUNK)])

    @cached_property
    def _walk(self) -> _Walk:
        return _Walk(self)


class _Walk:
    """A walk down the counts, many derivations at a time: the choices of a part of each, as cumulative probabilities.

    They stand one after the other in a flat array; `_rule` and `_split` have the first place and the length of each.
    """

    def __init__(self, counts: Counts) -> None:
        rules, self.most = counts.rules, counts.most
        tails = {tail: number for number, tail in enumerate(counts.tails)}
        self.padding, steps = rules.padding, range(1, self.most + 1)
        self._flat: list[float] = []
        self._length = self._choice(counts.exact)
        self._rule = np.zeros((len(rules.symbols), self.most + 1, 2), np.int64)
        self._split = np.zeros((len(tails), self.most + 1, 2), np.int64)
        self._rules_of = np.full((len(rules.symbols), max(map(len, counts.rules_of))), -1, np.int64)
        for symbol, numbers in enumerate(counts.rules_of):
            self._rules_of[symbol, : len(numbers)] = numbers
            self._rule[symbol, 1:] = [self._choice(counts.by_rule(symbol, n)) for n in steps]
        for tail, number in tails.items():
            if len(tail) > 1:
                self._split[number, 1:] = [self._choice(counts.by_first(tail, n)) for n in steps]
        self._first = np.array([tail[0] for tail in tails], np.int64)
        self._rest = np.array([tails.get(tail[1:], -1) for tail in tails], np.int64)
        self._body = np.array([tails.get(right, -1) for right in counts.rhs], np.int64)
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
    usable = [(rule, one) for rule, one in enumerate(grammar.productions) if rule not in grammar.unusable]

    def rewrite(symbol: Symbol, levels: int) -> Iterator[tuple[int, ...]]:
        for rule, production in usable:
            if production.left == symbol:
                for inner in derive(production.right, levels - 1):
                    yield rule, *inner

    @cache
    def derive(symbols: tuple[Symbol, ...], levels: int) -> list[tuple[int, ...]]:
        if not symbols or levels <= 0:
            return [()] * (not symbols)
        firsts = [()] if isinstance(symbols[0], Terminal) else list(rewrite(symbols[0], levels))
        return [first + rest for first in firsts for rest in derive(symbols[1:], levels)]

    return rewrite(grammar.start, depth)


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
