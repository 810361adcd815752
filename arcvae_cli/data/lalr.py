"""LALR tables of a grammar, by lark, and the proof that its terminals can be read with them from left to right.

The rules as published are tried first. Where they conflict, terminals are told apart by what follows them: each
occurrence of a terminal, in a production or in a symbol that is nothing but terminals (`bond` in SMILES), can be
followed only by certain terminals, or by the end. Occurrences between which one terminal of lookahead decides get names
of their own, `-(?=[1-8])` and `-(?=[cC...])`, and the tables are tried again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lark import Lark, logger
from lark.exceptions import GrammarError
from lark.lexer import Lexer

from arcvae_cli.grammar import Grammar, Production, Terminal

_MOST_WORK = 120_000_000  # steps of making tables, as `_work` counts them: ten seconds, and thrice that with conflicts
_LONG_WORK = 12_000_000  # a second or more
_MOST_CELLS = 40_000_000  # productions x terminals of any parser: Earley's is made in half a minute
_ROW = 40  # steps that an item of a state costs, or an entry of the tables, next to one of a set of lookaheads

Ahead = frozenset[str | None]
"""Terminals that may come next, as written; None is the end of the text."""


@dataclass(frozen=True, slots=True)
class Token:
    """A terminal as it is read: its text, and what must follow it (None: anything)."""

    text: str
    ahead: Ahead | None = None

    def matches(self, text: str, place: int, spaced: bool) -> bool:
        """Whether it stands at that place; `spaced`: a space may come before what follows it."""
        if not text.startswith(self.text, place):
            return False
        if self.ahead is None:
            return True
        place += len(self.text)
        if spaced and text.startswith(" ", place):
            place += 1
        return any(place == len(text) if next_ is None else text.startswith(next_, place) for next_ in self.ahead)


@dataclass(frozen=True, slots=True, eq=False)
class Reduce:
    """Rewrite by a rule: of `size` symbols, `held` are nonterminals; `left` is what they become. One object a rule."""

    rule: int
    size: int
    held: int
    left: str


class Conflict(Exception):  # noqa: N818 - a finding about a grammar, not a failure
    """Why LALR cannot do it, in words."""


@dataclass(frozen=True, slots=True)
class Tables:
    """By state: where tokens, by their numbers, and nonterminals lead, and what to rewrite before which token.

    -1 stands for the end of the text; `accept` is the state in which it ends the parse.
    """

    tokens: tuple[Token, ...]
    shifts: tuple[dict[int, int], ...]
    reduces: tuple[dict[int, Reduce], ...]
    onward: tuple[dict[str, int], ...]
    start: int
    accept: int
    told_apart: tuple[str, ...]  # terminals that lookahead tells apart


class Unread(Lexer):
    """Stands where lark would read the text: the tables alone are wanted."""

    def __init__(self, conf: object) -> None: ...

    def lex(self, text: str) -> Iterable[object]:  # type: ignore[override]  # noqa: ARG002
        """Never called: no text is ever given to the parser that lark would make."""
        raise AssertionError("only the tables of lark are used")


def lalr_tables(grammar: Grammar) -> Tables:
    """The tables of a grammar. Raises Conflict where there are none, or where they do not say how to read the text."""
    spaced = grammar.separator.isspace()
    plain = _Written(grammar, {})
    if _work(grammar) > _MOST_WORK:
        raise Conflict(f"{_size(grammar)} are too large")
    try:
        tables = plain.tables()
    except GrammarError:
        apart = _occurrences(grammar)
        if not apart:
            raise Conflict(plain.conflicts()) from None
        try:
            tables = _Written(grammar, apart).tables()
        except GrammarError:
            raise Conflict(f"{plain.conflicts()}; looking one terminal further does not help") from None
    if not spaced:
        _check_longest(tables)
    return tables


def takes_long(grammar: Grammar) -> str | None:
    """What to say before strings of a grammar are parsed that is so large that its tables take seconds; else None."""
    work = _work(grammar)
    if too_large(grammar):
        return None  # nor are they parsed at all
    if work > _MOST_WORK:
        return f"{_size(grammar)} are too large: lines are parsed by Earley, slowly with so many rules"
    return f"making {_size(grammar)}: up to half a minute" if work > _LONG_WORK else None


def too_large(grammar: Grammar) -> bool:
    """Whether even Earley's parser would take minutes to be made."""
    return len(usable(grammar)) * len(_terminals(grammar)) > _MOST_CELLS


def _size(grammar: Grammar) -> str:
    return f"LALR tables of {len(usable(grammar)):,} productions and {len(_terminals(grammar)):,} terminals"


def _terminals(grammar: Grammar) -> set[str]:
    return {symbol.text for _, one in usable(grammar) for symbol in one.right if isinstance(symbol, Terminal)}


def _work(grammar: Grammar) -> int:
    """About how many steps making the tables takes; where they are too large, anything over `_MOST_WORK`.

    Every place of a production is a state's, whose items are all productions that may begin there, and each item may
    come before every terminal; states that are one in the tables count several times.
    """
    by_left: dict[str, list[Production]] = {}
    for _, production in usable(grammar):
        by_left.setdefault(production.left, []).append(production)
    terminals = len(_terminals(grammar))
    work = _ROW * len(usable(grammar)) * terminals
    items: dict[str, int] = {}
    for _, production in usable(grammar):
        for symbol in production.right:
            if isinstance(symbol, str):
                if symbol not in items:
                    items[symbol] = _items(symbol, by_left)
                work += items[symbol] * (terminals + _ROW)
                if work > _MOST_WORK:
                    return work
    return work


def _items(symbol: str, by_left: Mapping[str, Sequence[Production]]) -> int:
    """How many productions may begin where a symbol stands."""
    seen, count = [symbol], 0
    known = {symbol}
    for one in seen:  # which grows
        count += len(by_left.get(one, ()))
        for production in by_left.get(one, ()):
            if production.right and isinstance(first := production.right[0], str) and first not in known:
                known.add(first)
                seen.append(first)
    return count


def written_terminal(terminal: Terminal, grammar: Grammar) -> str:
    """A terminal with the separator after it, unless that is whitespace, which may be left out."""
    return terminal.text if grammar.separator.isspace() else terminal.text + grammar.separator


def usable(grammar: Grammar) -> list[tuple[int, Production]]:
    """The productions that derivations use, with their ids."""
    return [(rule, p) for rule, p in enumerate(grammar.productions) if rule not in grammar.unusable]


class _Written:
    """A grammar in lark's notation, with names that any grammar's can be turned into: `n3`, `T5`, `r7`."""

    def __init__(self, grammar: Grammar, apart: dict[tuple[int, int, str], Ahead]) -> None:
        self.names: dict[str, str] = {}  # lark's name: ours
        self.nonterminals: dict[tuple[str, tuple[Ahead | None, ...]], str] = {}
        self.tokens: dict[Token, str] = {}
        self.held = {rule: len(production.nonterminals()) for rule, production in usable(grammar)}
        self.apart = sorted({place[2] for place in apart})
        leaves = _leaves(grammar) if apart else {}
        alternatives: dict[str, list[str]] = {}
        copies: dict[str, dict[tuple[Ahead | None, ...], str]] = {}
        self.nonterminal(grammar.start, ())
        for rule, production in usable(grammar):
            if production.left in leaves:
                continue
            right = []
            for place, symbol in enumerate(production.right):
                if isinstance(symbol, Terminal):
                    text = written_terminal(symbol, grammar)
                    right.append(self.token(text, apart.get((rule, place, text))))
                elif symbol in leaves:
                    key = tuple(apart.get((rule, place, text)) for text in leaves[symbol].values())
                    right.append(copies.setdefault(symbol, {}).setdefault(key, self.nonterminal(symbol, key)))
                else:
                    right.append(self.nonterminal(symbol, ()))
            name = self.nonterminal(production.left, ())
            alternatives.setdefault(name, []).append(f"{' '.join(right)} -> r{rule}")
        for symbol, keys in copies.items():
            for key, name in keys.items():
                alternatives[name] = [
                    f"{self.token(text, ahead)} -> r{rule}"
                    for (rule, text), ahead in zip(leaves[symbol].items(), key, strict=True)
                ]
        lines = [f"{name}: {' | '.join(right)}" for name, right in alternatives.items()]
        declared = [f"%declare {' '.join(self.tokens.values())}"] if self.tokens else []
        self.text = "\n".join(declared + lines) + "\n"

    def nonterminal(self, symbol: str, key: tuple[Ahead | None, ...]) -> str:
        name = self.nonterminals.setdefault((symbol, key), f"n{len(self.nonterminals)}")
        self.names[name] = symbol
        return name

    def token(self, text: str, ahead: Ahead | None) -> str:
        name = self.tokens.setdefault(Token(text, ahead), f"T{len(self.tokens)}")
        self.names[name] = repr(text)
        return name

    def conflicts(self) -> str:
        """How many conflicts lark finds, and one of them, in the names of the grammar; the same one every time."""
        said: list[str] = []

        def hear(record: logging.LogRecord) -> bool:
            said.append(record.getMessage())
            return False  # nobody else is to hear it

        level = logger.level
        logger.addFilter(hear)
        logger.setLevel(logging.DEBUG)
        try:  # lark raises what strict mode meets first, in no fixed order; otherwise it logs all, a pair of lines each
            Lark(self.text, parser="lalr", lexer=Unread, start="n0")
        except GrammarError as error:
            said += str(error).split("\n\n")
        finally:
            logger.setLevel(level)
            logger.removeFilter(hear)
        found = []
        for match in re.finditer(
            r"(\w+)/Reduce c.*?(?:(T)(\d+)|\$END)(.*?)(?=\w+/Reduce c|$)", "\n".join(said), re.DOTALL
        ):
            rules = sorted(re.findall(r"<(n\d+) : ([^>]*)>", match[4]))
            names = [[left, "->", *re.findall(r"[nT]\d+", right)] for left, right in rules]
            over = " and ".join(f"`{' '.join(self.names.get(name, name) for name in rule)}`" for rule in names)
            where = self.names[f"T{match[3]}"] if match[2] else "the end"
            found.append((int(match[3] or len(self.tokens)), f"{match[1].lower()}/reduce before {where}, over {over}"))
        several = f"{len(found)} conflicts, such as" if len(found) > 1 else "a conflict,"
        return f"LALR has {several} {min(found)[1]}"

    def tables(self) -> Tables:
        """Raises lark's GrammarError for a conflict, and Conflict where lark cannot make tables."""
        try:
            lark = Lark(self.text, parser="lalr", lexer=Unread, strict=True, start="n0")
        except RecursionError:
            raise Conflict("for LALR tables, symbols hold one another too deep") from None
        table = lark.parser.parser._parse_table  # what lark's own contextual lexer reads
        number = {name: place for place, name in enumerate(self.tokens.values())} | {"$END": -1}
        shifts: list[dict[int, int]] = []
        reduces: list[dict[int, Reduce]] = []
        onward: list[dict[str, int]] = []
        made: dict[object, Reduce] = {}
        for state in range(len(table.states)):
            shifts.append({})
            reduces.append({})
            onward.append({})
            for name, (action, to) in table.states[state].items():
                if action.name == "Reduce":
                    if to not in made:
                        rule = int(to.alias[1:])
                        made[to] = Reduce(rule, len(to.expansion), self.held[rule], to.origin.name)
                    reduces[-1][number[name]] = made[to]
                elif name in number:
                    shifts[-1][number[name]] = to
                else:
                    onward[-1][name] = to
        start, accept = table.start_states["n0"], table.end_states["n0"]
        apart = tuple(self.apart)
        return Tables(tuple(self.tokens), tuple(shifts), tuple(reduces), tuple(onward), start, accept, apart)


def _leaves(grammar: Grammar) -> dict[str, dict[int, str]]:
    """Symbols all of whose productions are one terminal each: their terminals, by rule. Not the start symbol."""
    leaves: dict[str, dict[int, str]] = {}
    others = {grammar.start}
    for rule, production in usable(grammar):
        if len(production.right) == 1 and isinstance(terminal := production.right[0], Terminal):
            leaves.setdefault(production.left, {})[rule] = written_terminal(terminal, grammar)
        else:
            others.add(production.left)
    return {symbol: terminals for symbol, terminals in leaves.items() if symbol not in others}


def _occurrences(grammar: Grammar) -> dict[tuple[int, int, str], Ahead]:
    """What follows each occurrence (rule, place, terminal) of a terminal that lookahead tells apart.

    Occurrences that may be followed by the same, or by two terminals one of which begins the other, are not told apart.
    """
    leaves = _leaves(grammar)
    follow = _Follow(grammar)
    found: dict[str, dict[Ahead, list[tuple[int, int, str]]]] = {}
    for rule, production in usable(grammar):
        if production.left in leaves:
            continue
        for place, symbol in enumerate(production.right):
            texts = (
                [written_terminal(symbol, grammar)] if isinstance(symbol, Terminal) else leaves.get(symbol, {}).values()
            )
            if texts:
                ahead = follow.after(production, place)
                for text in texts:
                    found.setdefault(text, {}).setdefault(ahead, []).append((rule, place, text))
    mistakable = _mistakable(set(found))
    apart: dict[tuple[int, int, str], Ahead] = {}
    for sets in found.values():
        groups: list[tuple[Ahead, list[tuple[int, int, str]]]] = []
        for ahead, places in sets.items():
            like = frozenset(other for text in ahead for other in (mistakable[text] if text else (None,)))
            joined = [group for group in groups if group[0] & like]
            groups = [group for group in groups if not group[0] & like]
            ahead = ahead.union(*(group[0] for group in joined))
            groups.append((ahead, [*places, *(place for group in joined for place in group[1])]))
        if len(groups) > 1:
            apart.update({place: ahead for ahead, places in groups for place in places})
    return apart


def _mistakable(texts: set[str]) -> dict[str, set[str]]:
    """By terminal, those that it begins, those that begin it, and itself."""
    like = {text: {text} for text in texts}
    for text in texts:
        for end in range(1, len(text)):
            if (head := text[:end]) in like:
                like[text].add(head)
                like[head].add(text)
    return like


class _Follow:
    """What terminals a symbol may begin with, and what may follow it (Aho et al., "Compilers", 4.4.2)."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.empty: set[str] = set()
        self.first: dict[str, set[str | None]] = {}
        self.follow: dict[str, set[str | None]] = {grammar.start: {None}}
        productions = [production for _, production in usable(grammar)]
        growing = True
        while growing:
            growing = False
            for production in productions:
                first, empty = self.begins(production.right)
                before = len(known := self.first.setdefault(production.left, set()))
                known |= first
                growing |= len(known) > before or (empty and production.left not in self.empty)
                if empty:
                    self.empty.add(production.left)
        growing = True
        while growing:
            growing = False
            for production in productions:
                for place, symbol in enumerate(production.right):
                    if isinstance(symbol, str):
                        before = len(known := self.follow.setdefault(symbol, set()))
                        known |= self.after(production, place)
                        growing |= len(known) > before

    def begins(self, symbols: Iterable[str | Terminal]) -> tuple[set[str | None], bool]:
        """What terminals they begin with, and whether they may all be empty."""
        first: set[str | None] = set()
        for symbol in symbols:
            if isinstance(symbol, Terminal):
                return first | {written_terminal(symbol, self.grammar)}, False
            first |= self.first.get(symbol, set())
            if symbol not in self.empty:
                return first, False
        return first, True

    def after(self, production: Production, place: int) -> Ahead:
        """What may follow that place of a right-hand side."""
        first, empty = self.begins(production.right[place + 1 :])
        return frozenset(first | self.follow.get(production.left, set()) if empty else first)


def _check_longest(tables: Tables) -> None:
    """Raises Conflict unless, in every state, the longest terminal that stands in the text is the one meant.

    It is not where a shorter one may stand too and what may follow it goes on as the longer one does. With this and
    tables without conflict, every string has one derivation at the most: two would differ first in a terminal, one of
    the two being longer, or in what lookahead decides.
    """
    anywhere: dict[int, set[int]] = {}  # by token, the tokens that may follow it
    open_ = [set(shifts) | set(reduces) for shifts, reduces in zip(tables.shifts, tables.reduces, strict=True)]
    for shifts in tables.shifts:
        for token, state in shifts.items():
            anywhere.setdefault(token, set()).update(open_[state])

    def goes_on(rest: str, token: int, followers: set[int]) -> bool:
        """Whether, after a token, the text may go on with `rest`."""
        ahead = tables.tokens[token].ahead
        for follower in followers - {-1}:
            text = tables.tokens[follower].text
            if ahead is not None and text not in ahead:
                continue
            if text.startswith(rest):
                return True
            if rest.startswith(text) and goes_on(rest[len(text) :], follower, anywhere.get(follower, set())):
                return True
        return False

    numbers: dict[str, list[int]] = {}
    for number, named in enumerate(tables.tokens):
        numbers.setdefault(named.text, []).append(number)
    mistaken: set[tuple[str, str]] = set()
    for state, here in enumerate(open_):
        for longer in here - {-1}:
            text = tables.tokens[longer].text
            for end in range(1, len(text)):
                for shorter in numbers.get(text[:end], ()):
                    if shorter not in here:
                        continue
                    to = tables.shifts[state].get(shorter)
                    followers = anywhere.get(shorter, set()) if to is None else open_[to]
                    if goes_on(text[end:], shorter, followers):
                        mistaken.add((text[:end], text))
    if mistaken:
        raise Conflict("LALR may take {!r} and what follows it for {!r}".format(*min(mistaken)))
