"""From strings to left-most derivations of a grammar, by lark: LALR where the grammar permits it, else Earley.

LALR tables come from `lalr.py` and are walked here, without a tree: single rewrites that no lookahead can change are
made together with the shift that they follow, and what is done at a state for the next few characters is remembered.
Without conflict they prove that no string has two derivations. Earley takes every grammar, is some hundred times slower
on SMILES, and where a line has several derivations, the one whose ids come first in lexicographic order counts.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from typing import Literal, NoReturn

import numpy as np
from lark import Lark
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken
from lark.lexer import Lexer
from lark.lexer import Token as LarkToken
from lark.parsers.earley_forest import SymbolNode, TokenNode
from numpy.typing import NDArray

from arcvae_cli.data.lalr import (
    Conflict,
    Reduce,
    Tables,
    Token,
    lalr_tables,
    takes_long,
    too_large,
    usable,
    written_terminal,
)
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Terminal
from arcvae_cli.machine import cores

_REMEMBERED = 100_000  # steps kept by their characters; bounds the memory of grammars with long terminals
_NAMED = 8  # terminals that a message names
_LONGEST = 1 << 16  # characters of a line; a derivation nested to the left costs their square
_MOST_IDS = 4 << 30  # bytes of ids, all lines as long as the longest


class ParseFailure(Exception):  # noqa: N818 - what it is about a line
    """A line that is no string of the grammar: `position` in it, from 0, and the `reason`."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"at {position}: {reason}")
        self.position = position
        self.reason = reason


class Parser:
    """Parses strings of a grammar. `kind` is how, and `reason` says why, for people.

    `how` "lalr" raises InputError where the grammar does not permit it, and any where the grammar is too large.
    """

    kind: Literal["lalr", "earley"]
    reason: str

    def __init__(self, grammar: Grammar, how: Literal["auto", "lalr", "earley"] = "auto") -> None:
        self.grammar = grammar
        self._reader: _Lalr | _Earley
        if too_large(grammar):
            raise InputError(
                f"{grammar.name}: {len(grammar.productions):,} productions are too many to parse its strings",
                "Give ready ids of the rules instead: --prod IDS.npy --grammar FILE.",
            )
        if how != "earley":
            try:
                tables = lalr_tables(grammar)
            except Conflict as conflict:
                if how == "lalr":
                    raise InputError(f"{grammar.name}: {conflict}", "Earley takes any grammar, and its time.") from None
                self.reason = f"Earley: {conflict}"
            else:
                self.kind = "lalr"
                self._reader = _Lalr(grammar, tables)
                apart = [repr(text.removesuffix(grammar.separator)) for text in tables.told_apart]
                names = f" once {_some(apart, 'and')} {'is' if len(apart) == 1 else 'are'} told apart by what follows"
                self.reason = f"LALR has no conflicts{names if apart else ''}: no string has two derivations"
                return
        else:
            self.reason = "Earley, as asked"
        self.kind = "earley"
        self._reader = _Earley(grammar)

    def parse(self, text: str) -> list[int]:
        """The ids of the left-most derivation of a string, without padding. Raises ParseFailure."""
        return self.derivation(text)[0]

    def derivation(self, text: str) -> tuple[list[int], bool]:
        """The same, and whether the string has other derivations too."""
        if len(text) > _LONGEST:
            raise ParseFailure(_LONGEST, f"is longer than {_LONGEST} characters")
        return self._reader.read(text)


@dataclass(frozen=True, slots=True)
class Failure:
    """A line that does not parse: its number from 1, the position of what is wrong in it, from 0, and the reason."""

    line: int
    position: int
    text: str
    reason: str


@dataclass(frozen=True, eq=False)
class Parsed:
    """Derivations of lines: `ids` (N, T) int16, padded with the padding rule; `lines` (N,) their numbers, from 1.

    `ambiguous` counts lines with more than one derivation, `too_long` those left out for taking more than T rules,
    which are not among the `failures`; `longest` is the most rules that a line takes, be it left out or not. `kind` and
    `reason` are those of the parser.
    """

    ids: NDArray[np.int16]
    lines: NDArray[np.int64]
    failures: tuple[Failure, ...]
    ambiguous: int
    kind: Literal["lalr", "earley"]
    reason: str
    too_long: int
    longest: int


def parse_lines(
    lines: Sequence[str],
    grammar: Grammar,
    *,
    max_rules: int | None = None,
    workers: int | None = None,
    tell: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Parsed:
    """The derivations of many strings, in their order; T is `max_rules`, or what the longest takes.

    By `workers` processes: by default as many as there are cores, where the work is worth starting them. What comes
    out does not depend on it. `tell` gets the number of lines done and of all, and `say` a line on what takes long,
    before it does. Raises InputError where padding to the longest would take over 4 GB.
    """
    if say is not None and (slow := takes_long(grammar)) is not None:
        say(slow)
    parser = Parser(grammar)
    size, worth = (2000, 40) if parser.kind == "lalr" else (25, 8)  # a part takes some 50 ms on SMILES, a worker 500
    starts = range(0, len(lines), size)
    if workers is None:
        workers = cores() if len(starts) >= worth else 1
    parts: dict[int, _Part] = {}
    told = 0
    for start, part in _parts(parser, lines, starts, min(workers, len(starts)), max_rules):
        parts[start] = part
        told += part.count
        if tell is not None:
            tell(told, len(lines))
    done = [parts[start] for start in starts]
    lengths = np.concatenate([np.zeros(0, np.int64), *(np.array(part.lengths, np.int64) for part in done)])
    longest = int(lengths.max(initial=0))
    steps = longest if max_rules is None else max_rules
    if len(lengths) * steps * 2 > _MOST_IDS:
        what = f"{len(lengths)} derivations of up to {steps} rules take {len(lengths) * steps * 2 >> 30} GB"
        raise InputError(what, f"Leave out the longest: --max-rules N, below {_MOST_IDS // 2 // len(lengths)} here.")
    ids = np.full((len(lengths), steps), len(grammar.productions), np.int16)
    flat = np.frombuffer(b"".join(part.ids for part in done), np.int16)
    ids[np.arange(steps) < lengths[:, None]] = flat
    return Parsed(
        ids,
        np.array([line for part in done for line in part.lines], np.int64),
        tuple(failure for part in done for failure in part.failures),
        sum(part.ambiguous for part in done),
        parser.kind,
        parser.reason,
        sum(part.too_long for part in done),
        max((part.longest for part in done), default=0),
    )


@dataclass(slots=True)
class _Part:
    """What some lines gave: the ids of all as bytes, which cost a worker little to hand over."""

    count: int
    ids: bytes
    lengths: list[int]
    lines: list[int]
    failures: list[Failure]
    ambiguous: int
    too_long: int
    longest: int


def _part(parser: Parser, start: int, lines: Sequence[str], max_rules: int | None) -> _Part:
    part = _Part(len(lines), b"", [], [], [], 0, 0, 0)
    flat: list[int] = []
    for number, text in enumerate(lines, start + 1):
        try:
            ids, ambiguous = parser.derivation(text)
        except ParseFailure as failure:
            part.failures.append(Failure(number, failure.position, text, failure.reason))
            continue
        part.ambiguous += ambiguous
        part.longest = max(part.longest, len(ids))
        if max_rules is not None and len(ids) > max_rules:
            part.too_long += 1
            continue
        flat += ids
        part.lengths.append(len(ids))
        part.lines.append(number)
    part.ids = np.array(flat, np.int16).tobytes()
    return part


_parser: Parser  # of a worker, made once in it


def _begin(parser: Parser) -> None:
    global _parser
    _parser = parser
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the first one ends the others


def _work(start: int, lines: Sequence[str], max_rules: int | None) -> _Part:
    return _part(_parser, start, lines, max_rules)


def _parts(
    parser: Parser, lines: Sequence[str], starts: range, workers: int, max_rules: int | None
) -> Iterator[tuple[int, _Part]]:
    """The parts as they are done, by processes; by this one where others cannot be had, or one of them was killed.

    They are spawned: a fork of a process with PyTorch's threads may hang.
    """
    left = dict.fromkeys(starts)
    if workers > 1 and not current_process().daemon:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (parser,))
        try:
            jobs = {pool.submit(_work, start, lines[start : start + starts.step], max_rules): start for start in starts}
            for job in as_completed(jobs):
                part = job.result()
                del left[jobs[job]]
                yield jobs[job], part
        except (BrokenProcessPool, OSError):
            pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for start in left:
        yield start, _part(parser, start, lines[start : start + starts.step], max_rules)


_Ids = tuple[int, ...]
_Move = tuple[int, int, _Ids | None, int, int, dict[int, tuple[int, _Ids]]]
"""Either a shift: (characters, state, ids of what was rewritten at once or None, 0, 0, {}); or a rewrite: (0, 0, None,
size, held, where it leads from the state below, with the ids that go before); or the end: (-1, ...)."""

_END: _Move = (-1, 0, None, 0, 0, {})


class _Lalr:
    """Walks LALR tables. Two stacks: of states, and of the ids of the nonterminals among them."""

    def __init__(self, grammar: Grammar, tables: Tables) -> None:
        self.spaced = grammar.separator.isspace()
        self.suffix = "" if self.spaced else grammar.separator
        self.tables = tables
        self.alone = [self._only(state) for state in range(len(tables.shifts))]
        onto = {name: self._from(name) for name in {name for onward in tables.onward for name in onward}}
        rules = {action for reduces in tables.reduces for action in reduces.values()}
        self.rewrites: dict[Reduce, _Move] = {
            action: (
                0,
                0,
                None,
                action.size,
                action.held,
                {below: (to, (*ids, action.rule)) for below, (to, ids) in onto[action.left].items()},
            )
            for action in rules
        }
        # a state with one rewrite, whatever follows, needs no look at the text
        self.sure: list[_Move | None] = [None if only is None else self.rewrites[only] for only in self.alone]
        self.known: list[dict[str, _Move]] = [{} for _ in tables.shifts]
        self.remembered = 0
        self.open = [
            sorted({*shifts, *reduces} - {-1}, key=lambda number: -len(tables.tokens[number].text))
            for shifts, reduces in zip(tables.shifts, tables.reduces, strict=True)
        ]
        self.width = 2 * self.spaced + max((_reach(token) for token in tables.tokens), default=1)

    def _only(self, state: int) -> Reduce | None:
        """The rewrite that a state makes whatever follows."""
        actions = set(self.tables.reduces[state].values())
        if self.tables.shifts[state] or state == self.tables.accept or len(actions) != 1:
            return None
        return actions.pop()

    def _from(self, name: str) -> dict[int, tuple[int, _Ids]]:
        """Where a nonterminal leads from each state, through rewrites of it alone that nothing can change."""
        return {
            state: self._onward(state, onward[name], ())
            for state, onward in enumerate(self.tables.onward)
            if name in onward
        }

    def _onward(self, below: int, state: int, ids: _Ids) -> tuple[int, _Ids]:
        """The state reached `below` one of a single symbol, with the rules of what was rewritten, outermost first."""
        while (only := self.alone[state]) is not None and only.size == 1:
            ids = (only.rule, *ids)
            state = self.tables.onward[below][only.left]
        return state, ids

    def read(self, text: str) -> tuple[list[int], bool]:
        """The ids of the derivation; no LALR grammar has two. Raises ParseFailure."""
        line = text
        text = " ".join(text.split()) if self.spaced else text + self.suffix if text else text
        known, sure, width = self.known, self.sure, self.width
        state, place = self.tables.start, 0
        states = [state]
        values: list[_Ids] = []
        while True:
            move = sure[state]
            if move is None:
                key = text[place : place + width]
                move = known[state].get(key)
                if move is None:
                    move = self._look(states, key, place, line)
            step, to, ids, size, held, onto = move
            if step > 0:
                place += step
                state = to
                if ids is not None:
                    values.append(ids)
            elif step:
                return list(values[0]), False
            else:
                if size:
                    del states[-size:]
                state, ids = onto[states[-1]]
                if held == 1:
                    ids += values.pop()
                elif held:
                    for value in values[-held:]:
                        ids += value
                    del values[-held:]
                values.append(ids)
            states.append(state)

    def _look(self, states: list[int], key: str, place: int, line: str) -> _Move:
        """What to do in a state where the text goes on with `key`, remembered."""
        move = self._move(states[-1], key)
        if move is None:
            self._fail(states, key, place, line)
        if self.remembered >= _REMEMBERED:
            for moves in self.known:
                moves.clear()
            self.remembered = 0
        self.known[states[-1]][key] = move
        self.remembered += 1
        return move

    def _move(self, state: int, key: str) -> _Move | None:
        if not key:
            if state == self.tables.accept:
                return _END
            action = self.tables.reduces[state].get(-1)
            return None if action is None else self.rewrites[action]
        lead = int(self.spaced and key[0] == " ")
        for number in self.open[state]:
            token = self.tables.tokens[number]
            if not token.matches(key, lead, self.spaced):
                continue
            action = self.tables.reduces[state].get(number)
            if action is not None:
                return self.rewrites[action]
            shifted = self.tables.shifts[state][number]
            to, ids = self._onward(state, shifted, ())
            return lead + len(token.text), to, ids or None, 0, 0, {}
        return None

    def _fail(self, states: list[int], key: str, place: int, line: str) -> NoReturn:
        """Where the text goes wrong and what could have stood there; after a terminal that what follows rules out."""
        lead = int(self.spaced and key[:1] == " ")
        numbers = [number for number in (*self.open[states[-1]], -1) if self._may_come(states, number)]
        expected = {None if number < 0 else self.tables.tokens[number].text for number in numbers}
        tokens = [self.tables.tokens[number] for number in numbers if number >= 0]
        fitting = [token for token in tokens if token.ahead is not None and key.startswith(token.text, lead)]
        if fitting:
            longest = max(len(token.text) for token in fitting)
            expected = {text for token in fitting if len(token.text) == longest for text in token.ahead or ()}
            place += lead + longest
        _unexpected(line, _original(line, place) if self.spaced else place, expected, self.suffix)

    def _may_come(self, states: list[int], number: int) -> bool:
        """Whether a token, or the end, may come after these states: whether rewrites lead to where it is shifted."""
        states = list(states)
        while (action := self.tables.reduces[states[-1]].get(number)) is not None:
            if action.size:
                del states[-action.size :]
            states.append(self.tables.onward[states[-1]][action.left])
        return states[-1] == self.tables.accept if number < 0 else number in self.tables.shifts[states[-1]]


def _reach(token: Token) -> int:
    """How many characters tell whether a token stands at a place."""
    if token.ahead is None:
        return len(token.text)
    return len(token.text) + max(len(text) if text else 1 for text in token.ahead)


def _original(line: str, place: int) -> int:
    """The place in a line of a place in it with its whitespace reduced to single spaces; past a space, if at one."""
    seen = 0
    for match in re.finditer(r"\S+", line):
        if place < seen + len(match[0]):
            return match.start() + max(0, place - seen)
        seen += len(match[0]) + 1
    return len(line)


def _unexpected(line: str, place: int, expected: set[str | None], suffix: str) -> NoReturn:
    place = min(place, len(line))
    names = sorted(text.removesuffix(suffix) for text in expected if text is not None)
    ways = _some([repr(name) for name in names] + ["the end"] * (None in expected), "or")
    found = repr(line[place]) if place < len(line) else "ends" if line else "is empty"
    raise ParseFailure(place, f"{found} where {ways} is expected" if ways else f"{found} begins no terminal")


def _some(names: list[str], word: str) -> str:
    """`a, b or c`; the first few of many."""
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    names = names[:_NAMED] + more
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


class _Longest(Lexer):
    """Reads the longest terminal, then whitespace: for Earley where whitespace separates terminals."""

    terminals: dict[str, str]  # name by text; given by a subclass for each grammar
    pattern: re.Pattern[str]

    def __init__(self, conf: object) -> None: ...

    def lex(self, text: str) -> Iterator[LarkToken]:  # type: ignore[override]
        """The tokens of a text. Raises lark's UnexpectedCharacters."""
        place = len(text) - len(text.lstrip())
        while place < len(text):
            match = self.pattern.match(text, place)
            if match is None:
                raise UnexpectedCharacters(text, place, 1, place + 1)  # type: ignore[no-untyped-call]
            yield LarkToken(self.terminals[match[1]], match[1], place)
            place = match.end()


class _Earley:
    """Earley's parser over lark's shared packed parse forest."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.spaced = grammar.separator.isspace()
        self.suffix = "" if self.spaced else grammar.separator
        nonterminals = {grammar.start: "n0"}
        terminals: dict[str, str] = {}
        alternatives: dict[str, list[str]] = {}
        for rule, production in usable(grammar):
            right = []
            for symbol in production.right:
                if isinstance(symbol, Terminal):
                    text = written_terminal(symbol, grammar)
                    right.append(terminals.setdefault(text, f"T{len(terminals)}"))
                else:
                    right.append(nonterminals.setdefault(symbol, f"n{len(nonterminals)}"))
            left = nonterminals.setdefault(production.left, f"n{len(nonterminals)}")
            alternatives.setdefault(left, []).append(f"{' '.join(right)} -> r{rule}")
        self.names = {name: text for text, name in terminals.items()}
        # lark reads characters of a private plane, which need no escapes: one for each of the terminals' characters
        self.code = {letter: chr(0xF0001 + place) for place, letter in enumerate(sorted(set("".join(terminals))))}
        lines = [f"{name}: {' | '.join(right)}" for name, right in alternatives.items()]
        lexer: str | type[Lexer] = "dynamic"
        if self.spaced:
            if terminals:
                lines.append(f"%declare {' '.join(terminals.values())}")
            longest = "|".join(re.escape(text) for text in sorted(terminals, key=len, reverse=True))
            pattern = re.compile(rf"({longest})\s*" if terminals else "(?!)")
            lexer = type("Longest", (_Longest,), {"terminals": terminals, "pattern": pattern})
        else:
            lines += [f'{name}: "{self._coded(text)}"' for text, name in terminals.items()]
        # "dynamic" tries every terminal at every place; each has one length, so that "dynamic_complete" adds nothing
        self.lark = Lark("\n".join(lines) + "\n", parser="earley", lexer=lexer, ambiguity="forest", start="n0")

    def __reduce__(self) -> tuple[type[_Earley], tuple[Grammar]]:
        return _Earley, (self.grammar,)  # lark's parser is not pickled

    def _coded(self, text: str) -> str:
        return "".join(self.code.get(letter, chr(0xF0000)) for letter in text)

    def read(self, text: str) -> tuple[list[int], bool]:
        """The first of the derivations, and whether there are more. Raises ParseFailure."""
        whole = text + self.suffix if text else text
        try:
            root = self.lark.parse(whole if self.spaced else self._coded(whole))
        except UnexpectedInput as error:
            self._fail(text, error)
        return _first(root)  # type: ignore[arg-type]

    def _fail(self, line: str, error: UnexpectedInput) -> NoReturn:
        place = len(line)
        expected: set[str] = set()
        if isinstance(error, UnexpectedCharacters):
            place = error.pos_in_stream or 0
            expected = set(error.allowed or ())
        elif isinstance(error, UnexpectedToken):
            place = getattr(error.token, "start_pos", None) or 0
            expected = set(error.expected)
        elif isinstance(error, UnexpectedEOF):
            expected = set(error.expected)
        _unexpected(line, place, {self.names[name] for name in expected if name in self.names}, self.suffix)


def _first(root: SymbolNode) -> tuple[list[int], bool]:
    """The derivation of a forest whose ids come first in lexicographic order, and whether there are others.

    The least of a whole is made of the least of its parts: no whole derivation from a symbol begins another.
    """
    least: dict[int, _Ids] = {}  # by node
    families: dict[int, list[tuple[_Ids, list[SymbolNode]]]] = {}
    ambiguous = False
    path = [root]
    while path:
        node = path[-1]
        if id(node) in least:
            path.pop()
            continue
        if id(node) not in families:
            families[id(node)] = [
                (
                    () if node.is_intermediate else (int(packed.rule.alias[1:]),),
                    [part for part in packed.children if not isinstance(part, TokenNode)],
                )
                for packed in node.children
            ]
            path.extend(part for _, parts in families[id(node)] for part in parts if id(part) not in least)
            continue
        path.pop()
        choices = []
        for ids, parts in families[id(node)]:
            for part in parts:
                ids += least[id(part)]
            choices.append(ids)
        ambiguous |= len(choices) > 1
        least[id(node)] = min(choices)
    return list(least[id(root)]), ambiguous
