"""Left-most derivations of a grammar as rows of rule ids: counting, uniform sampling, enumeration, checks."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, chain, product

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Rules

Ids = NDArray[np.int16]  # (N, T): left-most derivations, the padding rule after their ends
_Tail = tuple[int, ...]  # nonterminals: the rest of a right-hand side
_WORK = 10**8  # products of long integers, about a minute


class Counts:
    """How many derivations of at most `most` rules the start symbol has, and uniform draws from them.

    For a symbol and n rules, a sum over its rules of convolutions over their right-hand sides, in exact integers.
    `exact`: by number of rules, from 0 to `most`. `total`: their sum. `entropy`: in nats. InputError for minutes.
    """

    def __init__(self, rules: Rules, most: int) -> None:
        assert rules.rhs is not None, "needs right-hand sides"
        self.rules, self.most, self._rhs = rules, most, rules.rhs
        several = [right for right in rules.rhs if 1 < len(right) < most]
        if (sum(map(len, several)) + len(rules)) * most**2 > _WORK:
            raise InputError(f"data.max_rules: derivations of {most} rules are too many to count", "lower it")
        longest = max(most, 2)  # right-hand sides of as many symbols take too many rules
        symbols = [(symbol,) for symbol in range(len(rules.symbols))]
        self._rules_of = [[rule for rule in rules.of(one) if len(rules.rhs[rule]) < longest] for (one,) in symbols]
        tails = {right[place:] for right in several for place in range(len(right) - 1)}
        shortest_first: list[_Tail] = [*symbols, *sorted(tails, key=len)]
        self._counts = {(): [1] + [0] * most, **{tail: [0] for tail in shortest_first}}  # of derivations, by length
        for n in range(1, most + 1):
            for tail in shortest_first:
                self._counts[tail].append(sum(self._parts(tail, n)))
        self.exact = tuple(self._counts[rules.start,])
        self.total = sum(self.exact)
        self.entropy = math.log(self.total) if self.total else 0.0

        @cache
        def cumulative(tail: _Tail, n: int) -> list[float]:
            """The cumulative shares of the parts of a tail; of the empty tail: those of the lengths of derivations."""
            *sums, total = accumulate(self._parts(tail, n) if tail else self.exact)
            return [so_far / total for so_far in (*sums, total)]  # of exact integers, rounded once

        self._cumulative = cumulative

    def _parts(self, tail: _Tail, n: int) -> list[int]:
        """Derivations of a tail by n rules: of one symbol by its rule, of several by what the first takes, 0 to n."""
        if len(tail) == 1:
            return [self._counts[self._rhs[rule]][n - 1] for rule in self._rules_of[tail[0]]]
        first, rest = self._counts[tail[:1]], self._counts[tail[1:]]
        return [first[m] * rest[n - m] if first[m] else 0 for m in range(n)]

    def draw(self, count: int, stream: np.random.RandomState) -> Ids:
        """`count` derivations, independent and uniform up to the 53 bits of each number drawn: (count, most) int16."""

        def choose(tails: Sequence[tuple[_Tail, int]]) -> list[int]:
            """A part of each tail, by a number drawn for each: the first whose cumulative share is above it."""
            drawn = stream.random_sample(len(tails)).tolist()
            return [bisect_right(self._cumulative(*tail), one) for tail, one in zip(tails, drawn, strict=True)]

        ids = np.full((count, self.most), self.rules.padding, np.int16)
        # what is to be derived, by how many rules
        stacks: list[list[tuple[_Tail, int]]] = [[((self.rules.start,), n)] for n in choose([((), 0)] * count)]
        for step in range(self.most):
            live = [row for row, stack in enumerate(stacks) if stack]
            tops = [stacks[row].pop() for row in live]
            several = [place for place, (tail, _) in enumerate(tops) if len(tail) > 1]
            for place, taken in zip(several, choose([tops[place] for place in several]), strict=True):
                tail, n = tops[place]
                stacks[live[place]].append((tail[1:], n - taken))
                tops[place] = tail[:1], taken
            for row, (tail, n), choice in zip(live, tops, choose(tops), strict=True):
                rule = ids[row, step] = self._rules_of[tail[0]][choice]
                if self._rhs[rule]:
                    stacks[row].append((self._rhs[rule], n - 1))
        return ids


def enumerated(grammar: Grammar, depth: int) -> Iterator[tuple[int, ...]]:
    """Every derivation of a tree of at most `depth` levels, in the order of `nltk.parse.generate`."""

    @cache
    def derived(symbol: str, levels: int) -> list[tuple[int, ...]]:
        return list(rewrite(symbol, levels))

    def rewrite(symbol: str, levels: int) -> Iterator[tuple[int, ...]]:
        for rule, production in enumerate(grammar.productions):
            if production.left == symbol and rule not in grammar.unusable and (levels > 1 or not production.right):
                parts = product(*(derived(one, levels - 1) for one in production.nonterminals()))
                yield from ((rule, *chain(*inner)) for inner in parts)

    return rewrite(grammar.start, depth)


def wrong_step(row: list[int], rules: Rules) -> tuple[int, str] | None:
    """The first step of a row that is no part of a left-most derivation, and what is wrong; None for a whole one.

    Step T is wrong if a row ends too early. Without right-hand sides, which symbols follow step 0 is not checked.
    """
    stack: list[int | None] = [rules.start]  # None: any symbols
    for step, rule in enumerate([*row, rules.padding]):
        if rule == rules.padding:
            if stack and stack[0] is not None:
                return step, f"the row ends with {len(stack)} symbols left, first {rules.symbols[stack[-1] or 0]}"
            stack.clear()
            continue
        left = rules.lhs[rule] if 0 <= rule < len(rules) else -1
        expected = stack.pop() if stack else -1
        if left < 0 or expected not in (left, None):
            names: dict[int | None, str] = {-1: "padding", None: "any symbol", **dict(enumerate(rules.symbols))}
            return step, f"rule {rule} rewrites {names[left]}, expected {names[expected]}"
        stack.extend((None,) if rules.rhs is None else rules.rhs[rule][::-1])
    return None
