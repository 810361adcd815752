"""From strings to left-most derivations of a grammar, by lark: LALR if the grammar permits it, else Earley.

LALR is used where lark finds no conflicts and the text splits into terminals in one way only; SMILES have a lark
grammar of their own, because the published rules have conflicts. Earley takes any grammar, about fifty times slower,
and gives one of several derivations.
"""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import numpy as np
from lark import GrammarError, Lark, UnexpectedInput
from lark.lexer import BasicLexer
from numpy.typing import NDArray

from arcvae_cli.grammar import Grammar, Symbol, Terminal, read_grammar
from arcvae_cli.machine import cores


@dataclass(eq=False)
class ParseFailure(Exception):  # noqa: N818
    """A line that is no string of the grammar: the `position` of the first unexpected character, from 0."""

    position: int
    reason: str


class Parser:
    """Parses strings of a grammar by `kind`, lalr unless `earley` or for a `reason`."""

    def __init__(self, grammar: Grammar, *, earley: bool = False) -> None:
        self.grammar, separator = grammar, grammar.separator
        self._rules = {f"r{rule}": rule for rule in range(len(grammar.productions))}
        smiles, problem, spaced = read_grammar("smiles"), "", separator.isspace()
        # the usable productions in lark's notation: alternative `-> rN` is production N, and terminals are escaped
        names: dict[Symbol, str] = {grammar.start: "start"}
        alternatives: dict[str, list[str]] = {}
        for rule, production in enumerate(grammar.productions):
            if rule not in grammar.unusable:
                for symbol in (production.left, *production.right):
                    names.setdefault(symbol, f"{'T' if isinstance(symbol, Terminal) else 'n'}{len(names)}")
                right = " ".join(names[symbol] for symbol in production.right)
                alternatives.setdefault(names[production.left], []).append(f"{right} -> r{rule}")
        lines = [f"{name}: {' | '.join(right)}" for name, right in alternatives.items()]
        texts = {one.text + separator * (not spaced): name for one, name in names.items() if isinstance(one, Terminal)}
        for text, name in texts.items():
            doubled = text.replace("\\", "\\\\")  # lark halves backslashes
            lines.append(f'{name}: "' + "".join(f"\\U{ord(letter):08x}" for letter in doubled) + '"')
        notation = "\n".join([*lines, *["SPACE: /\\s+/", "%ignore SPACE"] * spaced]) + "\n"
        beginnings = {text[0] for text in texts}
        longer = ((text[:end], text[end]) for text in texts for end in range(1, len(text)))
        if earley:
            problem = "as requested"
        elif (grammar.productions, grammar.start, separator) == (smiles.productions, smiles.start, smiles.separator):
            notation = resources.files("arcvae_cli").joinpath("grammars", "smiles.lark").read_text("utf-8")
        elif not spaced and any(one in texts and rest in beginnings for one, rest in longer):
            problem = "strings may split into terminals in more than one way"  # `C`, `Cl` and `l`
        try:
            if not problem:
                self._lark = Lark(notation, parser="lalr", lexer=_LongestMatch, strict=True, keep_all_tokens=True)
        except (GrammarError, RecursionError):
            problem = "the grammar has LALR conflicts, or is too large"
        self.kind = "earley" if problem else "lalr"
        self.reason = f"Earley: {problem}" if problem else "LALR without conflicts: no string has two derivations"
        if problem:
            lexer: Any = _LongestMatch if spaced else "dynamic"
            self._lark = Lark(notation, parser="earley", lexer=lexer, keep_all_tokens=True)

    def parse(self, text: str) -> list[int]:
        """The ids of a left-most derivation of a string, without padding."""
        spaced = self.grammar.separator.isspace()
        try:
            tree = self._lark.parse(text if spaced or not text else text + self.grammar.separator)
        except UnexpectedInput as error:
            ended = getattr(error, "token", None) == ""  # the token after the last character
            place = len(text) if ended else min(len(text), error.pos_in_stream or 0)
            found = repr(text[place]) if place < len(text) else "end"
            raise ParseFailure(place, f"unexpected {found}") from None
        return [self._rules[node.data] for node in tree.iter_subtrees_topdown()]  # type: ignore[no-untyped-call]


Result = NDArray[np.int16] | ParseFailure  # of a line: its ids
parser_of = lru_cache(maxsize=2)(Parser)  # made once per process


def parse_lines(
    lines: Sequence[str], grammar: Grammar, workers: int | None = None, tell: Callable[[int, int], None] | None = None
) -> list[Result]:
    """The results of many strings, in their order; `workers`: processes, by default one a core for many lines."""
    lalr = parser_of(grammar).kind == "lalr"
    size, many = (250, 5000) if lalr else (10, 200)  # a chunk takes 0.1 s on SMILES, a worker 0.5 s
    chunks = [lines[start : start + size] for start in range(0, len(lines), size)]
    workers = workers or (cores() if len(lines) >= many else 1)
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the first one ends the others
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, ignore) if workers > 1 else None
    results: list[Result] = []
    with pool or nullcontext():
        for chunk in (pool.map if pool else map)(_chunk, chunks, repeat(grammar)):
            results += chunk
            if tell is not None:
                tell(len(results), len(lines))
    return results


def _chunk(lines: Sequence[str], grammar: Grammar) -> list[Result]:
    parser = parser_of(grammar)
    results: list[Result] = []
    for text in lines:
        try:
            results.append(np.array(parser.parse(text), np.int16))
        except ParseFailure as failure:  # noqa: PERF203
            results.append(failure)
    return results


class _LongestMatch(BasicLexer):
    """lark's lexer, which reads the longest terminal; unlike `strict` wants, terminals are not compared beforehand."""

    __future_interface__ = 2

    def __init__(self, conf: Any) -> None:
        conf.skip_validation = True
        super().__init__(conf)
