"""Context-free grammars: their notation, their checks, and the rules that a model works on. No torch, no parser.

The notation, one left-hand side a line, alternatives between bars, and nothing else:

    # a comment, from a hash to the end of the line
    %separator " "                     between the terminals of a string as it is written; nothing by default
    S -> S '+' T | T                   the first left-hand side is the start symbol, unless %start names another
    T -> '(' S ')' | "x" |             terminals stand in quotes, without escapes; the last alternative is empty

A symbol may stand on the left of several lines. One that stands on no left is an error, unless `%undefined NAME` says
that it is meant: then what holds it is never used. The notation is that of NLTK (but for %separator and %undefined).

Productions are numbered in the order of the file, from 0: these are the ids of a derivation. One more rule, the last,
stands after the end of a derivation (`Nothing -> None` in the code of Kusner et al. 2017; a file that ends in it says
the same twice, and it is counted once).
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TypeVar

from arcvae_cli.errors import InputError
from arcvae_cli.files import open_regular

SHIPPED = ("equations", "smiles")
"""The grammars that come with arcvae, by name."""

MOST_BYTES = 1 << 20
MOST_RULES = 32_000  # with the padding rule: ids are int16

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<comment>\#.*)
        | (?P<arrow>->)
        | (?P<bar>\|)
        | (?P<quoted>'[^']*'|"[^"]*")
        | (?P<name>[\w/][\w/^<>]*(?:-(?!>)[\w/^<>]*)*)
        | (?P<directive>%\w*)
        | (?P<end>$)
    )""",
    re.VERBOSE,
)
_FIX = "A line is `NAME -> alternatives between bars`, terminals in quotes; docs/grammar.md shows the notation."


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal: the text that it stands for."""

    text: str


@dataclass(frozen=True, slots=True)
class Production:
    """`left -> right`; a nonterminal is a `str`."""

    left: str
    right: tuple[str | Terminal, ...]

    def nonterminals(self) -> tuple[str, ...]:
        """Those of the right-hand side, from left to right."""
        return tuple(symbol for symbol in self.right if isinstance(symbol, str))

    def __str__(self) -> str:
        return " ".join((self.left, "->", *(s if isinstance(s, str) else _quoted(s.text) for s in self.right)))


@dataclass(frozen=True, slots=True)
class Rules:
    """What a model needs of a grammar, as plain numbers: which symbol each rule rewrites, and into which.

    There are P rules, the padding rule included. `lhs`: (P,) place in `symbols` of what each rule rewrites, -1 for the
    padding rule and for rules that no derivation can use. `rhs`: (P,) places of the nonterminals of each right-hand
    side, from left to right; None where only ids and masks are known, and then nothing can be derived. `text`: the
    grammar in its notation, None likewise.
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
        """The ids of the rules that rewrite a symbol, ascending."""
        return tuple(rule for rule, left in enumerate(self.lhs) if left == symbol)

    def fewest(self) -> tuple[int, ...]:
        """By symbol, how many rules it takes at the least to derive a string of terminals from it.

        Raises ValueError without right-hand sides, and for a symbol that no sequence of rules finishes.
        """
        if self.rhs is None:
            raise ValueError("the right-hand sides of these rules are not known")
        counts = _fewest([(left, right) for left, right in zip(self.lhs, self.rhs, strict=True) if left >= 0])
        for place, symbol in enumerate(self.symbols):
            if place not in counts:
                raise ValueError(f"no sequence of rules finishes {symbol}")
        return tuple(counts[place] for place in range(len(self.symbols)))


@dataclass(frozen=True)
class Grammar:
    """A context-free grammar as its file has it, checked: every symbol is defined, the start symbol derives strings.

    `productions` keep the numbers of the file. `unusable`: ids of those that no derivation of a string can contain,
    because they hold a symbol that derives no string or because nothing leads to them. `notes` say so in words.
    """

    name: str
    text: str
    productions: tuple[Production, ...]
    start: str
    separator: str
    unusable: frozenset[int]
    notes: tuple[str, ...]

    @cached_property
    def rules(self) -> Rules:
        """The grammar as a model sees it; its symbols are those of the usable rules, in the order of the file."""
        usable = {rule: p for rule, p in enumerate(self.productions) if rule not in self.unusable}
        places = {symbol: place for place, symbol in enumerate(dict.fromkeys(p.left for p in usable.values()))}
        lhs = [-1] * (len(self.productions) + 1)
        rhs: list[tuple[int, ...]] = [()] * len(lhs)
        for rule, production in usable.items():
            lhs[rule] = places[production.left]
            rhs[rule] = tuple(places[symbol] for symbol in production.nonterminals())
        return Rules(tuple(places), tuple(lhs), tuple(rhs), places[self.start], len(self.productions), self.text)

    def terminals(self, ids: Iterable[int]) -> list[str] | None:
        """The terminals of a left-most derivation, padding after its end allowed; None where it is not a whole one."""
        padding = len(self.productions)
        stack: list[str | Terminal] = [self.start]
        written: list[str] = []
        for rule in ids:
            while stack and isinstance(top := stack[-1], Terminal):
                written.append(top.text)
                stack.pop()
            if not stack:
                if rule != padding:
                    return None
                continue
            if not 0 <= rule < padding or self.productions[rule].left != stack.pop():
                return None
            stack.extend(reversed(self.productions[rule].right))
        while stack:
            if isinstance(top := stack.pop(), str):
                return None
            written.append(top.text)
        return written

    def write(self, ids: Sequence[int]) -> str | None:
        """The string of a left-most derivation, padding after its end allowed; None where it is not a whole one."""
        written = self.terminals(ids)
        return None if written is None else self.separator.join(written)


def read_grammar(name_or_path: str) -> Grammar:
    """A grammar that ships (`equations`, `smiles`), or a file. InputError for what is wrong with it, and where."""
    if name_or_path in SHIPPED:
        text = resources.files("arcvae_cli").joinpath("grammars", f"{name_or_path}.cfg").read_text("utf-8")
        return parse_grammar(text, name_or_path)
    try:
        with open_regular(Path(name_or_path)) as file:
            read = file.read(MOST_BYTES + 1)
    except OSError as error:
        fix = f"Give a grammar file, or one of those that ship: {', '.join(SHIPPED)}."
        raise InputError(f"{name_or_path}: cannot be read ({error.strerror or error})", fix) from error
    try:
        text = read.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(read) <= MOST_BYTES:
            line = read.count(b"\n", 0, error.start) + 1
            raise InputError(f"{name_or_path}: line {line}: is not UTF-8", "Save the file as UTF-8.") from error
        text = "\0" * len(read)  # cut within a character, or no text at all: too long either way
    return parse_grammar(text, name_or_path)


def parse_grammar(text: str, name: str) -> Grammar:
    """A grammar from its notation; `name` is what messages call it.

    InputError, with the number of the line, for what cannot be read, symbols that nothing defines, a start symbol that
    derives no string, the same production twice, and a symbol that derives itself: every string with it would have
    infinitely many derivations.
    """
    if len(text.encode(errors="replace")) > MOST_BYTES:
        raise InputError(f"{name}: is over {MOST_BYTES >> 20} MB", "A grammar is a few kB; is this the file?")
    source = _Source(name)
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), 1):
        source.read(line, number)
    return source.grammar(text)


@dataclass
class _Source:
    """A grammar file while it is read: productions with their lines, and what the directives said."""

    name: str
    productions: list[Production] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    directives: dict[str, tuple[str, ...]] = field(default_factory=dict)
    said: dict[str, int] = field(default_factory=dict)  # the line of each directive

    def error(self, line: int, what: str, fix: str = _FIX) -> InputError:
        return InputError(f"{self.name}: line {line}: {what}", fix)

    def read(self, line: str, number: int) -> None:
        tokens = self.tokens(line, number)
        if not tokens:
            return
        kind, first = tokens[0]
        if kind == "directive":
            self.read_directive(first, tokens[1:], number)
            return
        if kind != "name" or len(tokens) < 2 or tokens[1][0] != "arrow":
            raise self.error(number, f"begins with {first!r}, not with `NAME ->`")
        right: list[str | Terminal] = []
        for kind, token in [*tokens[2:], ("bar", "|")]:
            if kind == "bar":
                self.productions.append(Production(first, tuple(right)))
                self.lines.append(number)
                right = []
            elif kind == "name":
                right.append(token)
            elif kind == "quoted" and len(token) > 2:
                right.append(Terminal(token[1:-1]))
            elif kind == "quoted":
                raise self.error(number, "a terminal is empty", "An empty alternative is written as nothing at all.")
            else:
                raise self.error(number, f"{token!r} stands within an alternative")

    def tokens(self, line: str, number: int) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        place = 0
        while place < len(line):
            match = _TOKEN.match(line, place)
            if match is None:
                rest = line[place:].lstrip()
                if rest[0] in "'\"":
                    fix = "A terminal ends with the quote that it begins with; there are no escapes."
                    raise self.error(number, f"the quote before {rest[1:13]!r} is not closed", fix)
                raise self.error(number, f"{rest[0]!r} means nothing here")
            place = match.end()
            if match.lastgroup in ("comment", "end"):
                break
            if match.lastgroup is not None:
                found.append((match.lastgroup, match[match.lastgroup]))
        return found

    def read_directive(self, directive: str, arguments: list[tuple[str, str]], number: int) -> None:
        kinds = [kind for kind, _ in arguments]
        values = tuple(value for _, value in arguments)
        right = {
            "%start": kinds == ["name"],
            "%separator": kinds == ["quoted"],
            "%undefined": set(kinds) == {"name"},
        }
        fix = 'There are `%start NAME`, `%separator " "` and `%undefined NAME ...`, a line each.'
        if directive not in right:
            raise self.error(number, f"there is no directive {directive}", fix)
        if not right[directive]:
            raise self.error(number, f"{directive} is followed by {' '.join(values) or 'nothing'}", fix)
        if directive in self.said:
            raise self.error(number, f"{directive} stands in line {self.said[directive]} already", fix)
        self.said[directive] = number
        self.directives[directive] = values

    def grammar(self, text: str) -> Grammar:
        if self.productions and self.productions[-1] == Production("Nothing", ("None",)):
            others = self.productions[:-1]
            if not any("Nothing" in (p.left, *p.right) or "None" in (p.left, *p.right) for p in others):
                del self.productions[-1], self.lines[-1]
        if not self.productions:
            raise InputError(f"{self.name}: holds no productions", _FIX)
        if len(self.productions) >= MOST_RULES:
            what = f"{self.name}: has {len(self.productions)} productions, more than {MOST_RULES - 1}"
            raise InputError(what, "Ids are int16. Write numbers and names a character at a time.")
        (start,) = self.directives.get("%start", (self.productions[0].left,))
        separator = self.directives.get("%separator", ("''",))[0][1:-1]
        self.check_symbols(start)
        self.check_terminals(separator)
        unusable, notes = self.unusable(start)
        self.check_cycles(unusable)
        return Grammar(self.name, text, tuple(self.productions), start, separator, frozenset(unusable), tuple(notes))

    def check_symbols(self, start: str) -> None:
        """Every symbol is defined or said to be undefined; no production stands twice."""
        defined: dict[str, int] = {}
        first: dict[Production, int] = {}
        for production, line in zip(self.productions, self.lines, strict=True):
            defined.setdefault(production.left, line)
            if production in first:
                other = first[production]
                where = "twice in this line" if other == line else f"in line {other} already"
                raise self.error(line, f"`{production}` stands {where}", "Every string with it would be ambiguous.")
            first[production] = line
        if start not in defined:
            raise self.error(self.said["%start"], f"%start: nothing defines {start}", _closest(start, defined))
        meant = self.directives.get("%undefined", ())
        held = set()
        for production, line in zip(self.productions, self.lines, strict=True):
            for symbol in production.nonterminals():
                held.add(symbol)
                if symbol not in defined and symbol not in meant:
                    raise self.error(line, f"nothing defines {symbol}", _closest(symbol, defined))
        for symbol in meant:
            if symbol in defined:
                what = f"%undefined: {symbol} is defined in line {defined[symbol]}"
                raise self.error(self.said["%undefined"], what, "Take one of the two out.")
            if symbol not in held:
                raise self.error(self.said["%undefined"], f"%undefined: nothing holds {symbol}", "Take it out.")

    def check_terminals(self, separator: str) -> None:
        """Where whitespace separates the terminals, none may hold any."""
        if not separator.isspace():
            return
        for production, line in zip(self.productions, self.lines, strict=True):
            for symbol in production.right:
                if isinstance(symbol, Terminal) and re.search(r"\s", symbol.text):
                    what = f"the terminal {_quoted(symbol.text)} holds whitespace, which separates terminals"
                    raise self.error(line, what, "Make its words terminals of their own, or leave %separator out.")

    def unusable(self, start: str) -> tuple[set[int], list[str]]:
        """Ids that no derivation of a string can contain, and what to say about them."""
        finite = _fewest([(production.left, production.nonterminals()) for production in self.productions])
        if start not in finite:
            line = self.lines[next(i for i, production in enumerate(self.productions) if production.left == start)]
            fix = f"Every way on from {start} leads back to a symbol, and none to terminals alone; give it a way out."
            raise self.error(line, f"the start symbol {start} derives no string", fix)
        unusable = set()
        blocked: dict[str, list[int]] = {}
        for rule, production in enumerate(self.productions):
            for symbol in dict.fromkeys(production.nonterminals()):
                if symbol not in finite:
                    blocked.setdefault(symbol, []).append(rule)
                    unusable.add(rule)
        defined = {production.left for production in self.productions}
        notes = []
        for symbol, rules in blocked.items():
            why = f"{symbol} derives no string" if symbol in defined else f"nothing defines {symbol}"
            notes.append(f"{why}: {_numbered(rules, self.lines)} never used")
        ways: dict[str, set[str]] = {}
        for rule, production in enumerate(self.productions):
            if rule not in unusable:
                ways.setdefault(production.left, set()).update(production.nonterminals())
        reached, fresh = {start}, [start]
        while fresh:
            onward = ways[fresh.pop()] - reached
            reached |= onward
            fresh.extend(onward)
        cut_off: dict[str, list[int]] = {}
        for rule, production in enumerate(self.productions):
            if rule not in unusable and production.left not in reached:
                cut_off.setdefault(production.left, []).append(rule)
        for symbol, rules in cut_off.items():
            unusable.update(rules)
            notes.append(f"nothing leads from {start} to {symbol}: {_numbered(rules, self.lines)} never used")
        return unusable, notes

    def check_cycles(self, unusable: set[int]) -> None:
        """No symbol derives itself alone."""
        empty = set(
            _fewest(
                [
                    (production.left, production.nonterminals())
                    for production in self.productions
                    if not any(isinstance(symbol, Terminal) for symbol in production.right)
                ]
            )
        )
        onto: dict[str, dict[str, int]] = {}  # what each symbol may become alone, with the line that says so
        for rule, production in enumerate(self.productions):
            if rule in unusable:
                continue
            full = [place for place, symbol in enumerate(production.right) if symbol not in empty]
            for place, symbol in enumerate(production.right):
                if isinstance(symbol, str) and full in ([], [place]):
                    onto.setdefault(production.left, {}).setdefault(symbol, self.lines[rule])
        done: set[str] = set()
        for root in onto:
            path: dict[str, None] = {}
            walks = [iter((root,))]
            while walks:
                symbol = next(walks[-1], "")
                if not symbol:
                    walks.pop()
                    if path:
                        done.add(path.popitem()[0])
                elif symbol in path:
                    around = [*list(path)[list(path).index(symbol) :], symbol]
                    fix = "A string with it would have infinitely many derivations; take one of these steps out."
                    raise self.error(onto[around[0]][around[1]], f"a symbol derives itself: {' -> '.join(around)}", fix)
                elif symbol not in done:
                    path[symbol] = None
                    walks.append(iter(onto.get(symbol, ())))


_S = TypeVar("_S", int, str)


def _fewest(rules: Sequence[tuple[_S, tuple[_S, ...]]]) -> dict[_S, int]:
    """By left-hand side, the fewest rules that finish it; without those that nothing finishes.

    Knuth 1977, "A generalization of Dijkstra's algorithm": symbols are settled in the order of their numbers.
    """
    waiting: dict[_S, list[tuple[int, int]]] = {}  # rules that hold a symbol, and how often
    open_symbols: list[int] = []
    costs: list[int] = []
    heap: list[tuple[int, _S]] = []
    for rule, (left, right) in enumerate(rules):
        held = Counter(right)
        for symbol, times in held.items():
            waiting.setdefault(symbol, []).append((rule, times))
        open_symbols.append(len(held))
        costs.append(1)
        if not held:
            heap.append((1, left))
    heapq.heapify(heap)
    settled: dict[_S, int] = {}
    while heap:
        cost, symbol = heapq.heappop(heap)
        if symbol in settled:
            continue
        settled[symbol] = cost
        for rule, times in waiting.get(symbol, ()):
            costs[rule] += times * cost
            open_symbols[rule] -= 1
            if not open_symbols[rule]:
                heapq.heappush(heap, (costs[rule], rules[rule][0]))
    return settled


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


def _closest(symbol: str, defined: Iterable[str]) -> str:
    close = difflib.get_close_matches(symbol, list(defined), 1)
    meant = f"Is it {close[0]}? " if close else ""
    return f"{meant}Terminals stand in quotes; `%undefined {symbol}` says that it is meant to have no productions."


def _numbered(rules: list[int], lines: list[int]) -> str:
    """`rule 3 (line 5) is`, `rules 29, 31 (lines 33, 35) are`; the first few of many."""
    many = len(rules) > 1
    shown, rest = rules[:5], f" and {len(rules) - 5} more" if len(rules) > 5 else ""
    ids = ", ".join(map(str, shown)) + rest
    where = ", ".join(map(str, dict.fromkeys(lines[rule] for rule in shown)))
    several = len({lines[rule] for rule in shown}) > 1
    return f"rule{'s' * many} {ids} (line{'s' * several} {where}) {'are' if many else 'is'}"
