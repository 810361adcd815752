"""Context-free grammars: their notation (docs/grammar.md), and the rules that a model works on.

The ids of a derivation number the productions in the order of the file, from 0. One more rule, the last, pads
derivations (`Nothing -> None` in the code of Kusner et al. 2017; a file that ends in it does not add another).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from importlib import resources
from pathlib import Path
from typing import Any

from arcvae_cli.errors import InputError
from arcvae_cli.files import read_limited

SHIPPED = ("equations", "smiles", "smiles_tokens", "smiles_kekule")  # the grammars that come with arcvae, by name
MOST_RULES = 32_000  # with the padding rule: ids are int16

_NAME = r"[\w/][\w/^<>]*(?:-(?!>)[\w/^<>]*)*"
_QUOTED = r"'[^']*'" + r'|"[^"]*"'
_TOKEN = re.compile(rf"\#.*|->|\||{_QUOTED}|{_NAME}|%\w*|\S")
_DIRECTIVE = re.compile(rf"%start {_NAME}|%separator ({_QUOTED})|%undefined( {_NAME})+")
_FIX = "A line is `NAME -> alternatives between bars`, terminals in quotes; docs/grammar.md shows the notation."


@dataclass(frozen=True, slots=True)
class Terminal:
    """The text of a terminal."""

    text: str

    def __str__(self) -> str:
        return f'"{self.text}"' if "'" in self.text else f"'{self.text}'"


Symbol = str | Terminal  # a nonterminal is a `str`


@dataclass(frozen=True, slots=True)
class Production:
    """`left -> right`."""

    left: str
    right: tuple[Symbol, ...]

    def nonterminals(self) -> tuple[str, ...]:
        return tuple(symbol for symbol in self.right if isinstance(symbol, str))

    def __str__(self) -> str:
        return " ".join((self.left, "->", *map(str, self.right)))


@dataclass(frozen=True, slots=True)
class Rules:
    """What a model needs of a grammar: P rules, the padding rule included.

    `lhs`: (P,) place in `symbols` of what each rule rewrites, -1 for padding and unusable rules. `rhs`: (P,) places of
    the nonterminals of each right-hand side. `rhs` and `text`, the notation, are None if only ids and masks are known.
    """

    symbols: tuple[str, ...]
    lhs: tuple[int, ...]
    rhs: tuple[tuple[int, ...], ...] | None
    start: int
    padding: int
    text: str | None = None

    def __len__(self) -> int:
        return len(self.lhs)

    def of(self, symbol: int) -> tuple[int, ...]:
        return tuple(rule for rule, left in enumerate(self.lhs) if left == symbol)

    def fewest(self) -> tuple[int, ...]:
        """By symbol, the fewest rules that derive a string of terminals from it."""
        assert self.rhs is not None, "needs right-hand sides"
        counts = _fewest(rule for rule in zip(self.lhs, self.rhs, strict=True) if rule[0] >= 0)
        return tuple(counts[place] for place in range(len(self.symbols)))


@dataclass(frozen=True)
class Grammar:
    """A checked context-free grammar; `unusable`: ids of productions that no derivation of a string contains."""

    name: str
    text: str
    productions: tuple[Production, ...]
    start: str
    separator: str
    unusable: frozenset[int]

    @cached_property
    def rules(self) -> Rules:
        usable = [None if rule in self.unusable else one for rule, one in enumerate(self.productions)]
        places = {left: place for place, left in enumerate(dict.fromkeys(one.left for one in usable if one))}
        lhs = [places[one.left] if one else -1 for one in usable]
        rhs = [tuple(places[symbol] for symbol in one.nonterminals()) if one else () for one in usable]
        return Rules(tuple(places), (*lhs, -1), (*rhs, ()), places[self.start], len(usable), self.text)

    def write(self, ids: Sequence[int]) -> str | None:
        """The string of a left-most derivation, which padding may follow; None for an incomplete derivation."""
        padding = len(self.productions)
        stack: list[Symbol] = [self.start]
        written: list[str] = []
        for rule in (*ids, padding):
            while stack and isinstance(top := stack[-1], Terminal):
                written.append(top.text)
                stack.pop()
            if rule == padding and not stack:
                continue
            if not stack or not 0 <= rule < padding or self.productions[rule].left != stack.pop():
                return None
            stack.extend(reversed(self.productions[rule].right))
        return self.separator.join(written)


def read_grammar(name_or_path: str) -> Grammar:
    """A grammar that ships, or a file. InputError for an invalid one."""
    if name_or_path in SHIPPED:
        text = resources.files("arcvae_cli").joinpath("grammars", f"{name_or_path}.cfg").read_text("utf-8")
        return parse_grammar(text, name_or_path)
    try:
        return parse_grammar(read_limited(Path(name_or_path), 1 << 20).decode("utf-8-sig"), name_or_path)
    except (OSError, UnicodeDecodeError) as error:
        fix = f"give a grammar file in UTF-8, or one of those that ship: {', '.join(SHIPPED)}"
        raise InputError(f"{name_or_path}: cannot be read ({error})", fix) from error


def parse_grammar(text: str, name: str) -> Grammar:
    """A grammar from its notation; `name` is what messages call it. InputError with the number of the invalid line."""

    def invalid(line: int, what: str, fix: str = _FIX) -> InputError:
        return InputError(f"{name}: line {line}: {what}", fix)

    lines: dict[Production, int] = {}
    directives: dict[str, tuple[int, list[str]]] = {"%separator": (0, ["''"]), "%undefined": (0, [])}
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), 1):
        tokens = [token for token in _TOKEN.findall(line) if token[0] != "#"]
        if not tokens:
            continue
        if tokens[0][0] == "%":
            if not _DIRECTIVE.fullmatch(" ".join(tokens)) or directives.get(tokens[0], (0,))[0]:
                raise invalid(number, f"invalid directive {line.strip()!r}")
            directives[tokens[0]] = number, tokens[1:]
            continue
        if not re.fullmatch(_NAME, tokens[0]) or tokens[1:2] != ["->"]:
            raise invalid(number, f"starts with {tokens[0]!r}, not with `NAME ->`")
        right: list[Symbol] = []
        for token in (*tokens[2:], "|"):
            if token == "|":
                production = Production(tokens[0], tuple(right))
                if production in lines:
                    raise invalid(number, f"`{production}` is in line {lines[production]} already", "remove it")
                lines[production] = number
                right = []
            elif re.fullmatch(_NAME, token):
                right.append(token)
            elif re.fullmatch(_QUOTED, token) and len(token) > 2:
                right.append(Terminal(token[1:-1]))
            else:
                raise invalid(number, f"unexpected {token!r}")
    padding = Production("Nothing", ("None",))
    if [*lines][-1:] == [padding] and not any({"Nothing", "None"} & {one.left, *one.right} for one in [*lines][:-1]):
        del lines[padding]
    if not 0 < len(lines) < MOST_RULES:
        raise InputError(f"{name}: {len(lines)} productions, not 1 to {MOST_RULES - 1}", _FIX)
    productions = tuple(lines)
    first = {production.left: number for production, number in reversed(lines.items())}
    number, (start,) = directives.get("%start", (0, [productions[0].left]))
    separator = directives["%separator"][1][0][1:-1]
    for production, place in lines.items():
        for symbol in production.right:
            if isinstance(symbol, str) and symbol not in first and symbol not in directives["%undefined"][1]:
                raise invalid(place, f"undefined symbol {symbol}", "put a terminal in quotes, or add %undefined")
            if isinstance(symbol, Terminal) and separator.isspace() and re.search(r"\s", symbol.text):
                what = f"the terminal {symbol} contains whitespace, which separates terminals"
                raise invalid(place, what, "make its words terminals of their own")
    finite = _fewest((one.left, one.nonterminals()) for one in productions).keys()
    if start not in finite:
        raise invalid(first.get(start, number), f"the start symbol {start} derives no string")
    ending = {rule: one for rule, one in enumerate(productions) if finite >= set(one.nonterminals())}
    reached: set[str] = set()
    fresh = {start}
    while fresh:
        reached |= fresh
        fresh = {symbol for one in ending.values() if one.left in fresh for symbol in one.nonterminals()} - reached
    usable = {rule: one for rule, one in ending.items() if one.left in reached}
    empty = _fewest((one.left, left) for one in usable.values() if len(left := one.nonterminals()) == len(one.right))
    alone: dict[str, dict[str, None]] = {}  # what a symbol may become alone, in the order of the file
    for one in usable.values():
        full = [symbol for symbol in one.right if symbol not in empty]
        if len(full) <= 1:  # that one, or any if all can be empty
            alone.setdefault(one.left, {}).update(dict.fromkeys(s for s in full or one.right if isinstance(s, str)))
    try:
        TopologicalSorter(alone).prepare()
    except CycleError as error:
        what = f"a symbol derives itself: {' -> '.join(reversed(error.args[1]))}"
        fix = "remove a step: strings would have infinitely many derivations"
        raise invalid(first[error.args[1][-1]], what, fix) from None
    return Grammar(name, text, productions, start, separator, frozenset(range(len(productions))).difference(usable))


def _fewest(rules: Iterable[tuple[Any, tuple[Any, ...]]]) -> dict[Any, int]:
    """By left-hand side, the fewest rules that finish it; without those that nothing finishes."""
    found: dict[Any, int] = {}
    waiting, before = list(rules), None
    while before != found:
        before = dict(found)
        waiting.reverse()  # whether a grammar is written from the top down or from the bottom up, a few rounds do
        for left, right in waiting:
            if found.keys() >= set(right):
                count = 1 + sum(found[symbol] for symbol in right)
                found[left] = min(count, found.get(left, count))
    return found
