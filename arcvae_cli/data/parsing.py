"""From strings to left-most derivations of a grammar, by lark: LALR if the grammar permits it, else Earley.

LALR is used where lark finds no conflicts and the text splits into terminals in one way only; SMILES have a lark
grammar of their own, because the published rules have conflicts. Earley takes any grammar, about fifty times slower; of
several derivations it gives the one whose ids are first in lexicographic order.
"""

import gc
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import numpy as np
from lark import GrammarError, Lark, UnexpectedInput
from lark.lexer import BasicLexer
from lark.parsers.earley_forest import SymbolNode, TokenNode
from numpy.typing import NDArray

from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, Symbol, Terminal, read_grammar
from arcvae_cli.machine import cores

_SPACE_WITHIN_TERMINAL = re.compile(r"(?<=\w)\s+(?=[^\w\s])|(?<=[^\w\s])\s+(?=\w)")
_AROMATIC = re.compile("[bcnops]")  # in SMILES lowercase letters alone


@dataclass(eq=False)
class ParseFailure(Exception):  # noqa: N818
    """A line that is no string of the grammar: the `position` of the first unexpected character, from 0."""

    position: int
    reason: str


class Parser:
    """Parses strings of a grammar by `kind`, for a `reason`. InputError if it is too large.

    `lalr_seconds`: CPU time to prepare LALR, 0 for Earley only; `earley_seconds`: to prepare it, and for each string.
    These limits bound the memory too.
    """

    def __init__(self, grammar: Grammar, *, lalr_seconds: float = 3.0, earley_seconds: float = 5.0) -> None:
        self.grammar, self._seconds, separator = grammar, earley_seconds, grammar.separator
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
        if not lalr_seconds:
            problem = "as requested"
        elif (grammar.productions, grammar.start, separator) == (smiles.productions, smiles.start, smiles.separator):
            notation = resources.files("arcvae_cli").joinpath("grammars", "smiles.lark").read_text("utf-8")
        elif not spaced and any(one in texts and rest in beginnings for one, rest in longer):
            problem = "strings may split into terminals in more than one way"  # `C`, `Cl` and `l`
        try:
            if not problem:
                with _limited(lalr_seconds):
                    self._lark = Lark(notation, parser="lalr", lexer=_LongestMatch, strict=True, keep_all_tokens=True)
        except GrammarError:
            problem = "the grammar has LALR conflicts"
        except (_OutOfTimeError, RecursionError):
            problem = "the grammar is too large for LALR"
        self.kekule = grammar.start == "smiles" and "c" not in texts  # a grammar of molecules without aromatic atoms
        self.kind = "earley" if problem else "lalr"
        self.reason = f"Earley: {problem}" if problem else "LALR without conflicts: no string has two derivations"
        if problem:
            lexer: Any = _LongestMatch if spaced else "dynamic"
            try:
                with _limited(earley_seconds):
                    self._lark = Lark(notation, parser="earley", lexer=lexer, ambiguity="forest")
            except _OutOfTimeError:
                what = f"{grammar.name}: {len(grammar.productions):,} productions are too many to parse"
                raise InputError(what, "give ids of the rules: --prod IDS.npy --grammar FILE") from None

    def parse(self, text: str) -> list[int]:
        return self.derivation(text)[0]

    def derivation(self, text: str) -> tuple[list[int], bool]:
        """The ids of the left-most derivation of a string, without padding, and whether there are others.

        Raises ParseFailure, and InputError if it takes over `earley_seconds` to find all derivations.
        """
        spaced = self.grammar.separator.isspace()
        written = text if spaced or not text else text + self.grammar.separator
        try:
            if self.kind == "lalr":
                nodes = self._lark.parse(written).iter_subtrees_topdown()  # type: ignore[no-untyped-call]
                return [self._rules[node.data] for node in nodes], False
            with _limited(self._seconds):
                return _first(self._lark.parse(written))  # type: ignore[arg-type]
        except UnexpectedInput as error:
            joined = _SPACE_WITHIN_TERMINAL.sub("", text)
            if spaced and joined != text:  # read again: `sin ( 3 )` where `sin(` is a terminal
                with suppress(ParseFailure):
                    return self.derivation(joined)
            if self.kekule and _AROMATIC.search(text) and (written := kekule(text)) != text:
                return self.derivation(written)
            ended = getattr(error, "token", None) == ""  # the token after the last character
            place = len(text) if ended else min(len(text), error.pos_in_stream or 0)
            found = repr(text[place]) if place < len(text) else "end"
            raise ParseFailure(place, f"unexpected {found}") from None
        except _OutOfTimeError:
            what = f"{text[:40]!r} ({len(text):,} characters) takes over {self._seconds:g} s to parse"
            raise InputError(f"{self.grammar.name}: {what}", "make the grammar less ambiguous, or omit it") from None


def kekule(text: str) -> str:
    """A molecule with double bonds in place of aromatic atoms, or a string that is none. InputError without RDKit."""
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        what = f"{text}: aromatic atoms are not of this grammar, and RDKit, which replaces them, is not installed"
        raise InputError(what, "pip install 'arcvae[chem]', or use --grammar smiles_tokens") from None
    with rdBase.BlockLogs():  # it logs every mistake to stderr
        molecule = Chem.MolFromSmiles(text)
    return text if molecule is None else str(Chem.MolToSmiles(molecule, kekuleSmiles=True))


Result = tuple[NDArray[np.int16], bool] | ParseFailure  # of a line: its ids and whether there are others
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
            ids, others = parser.derivation(text)
            results.append((np.array(ids, np.int16), others))
        except ParseFailure as failure:  # noqa: PERF203
            results.append(failure)
    return results


class _OutOfTimeError(BaseException):  # no Exception: lark wraps those that its transformers raise
    pass


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_OutOfTimeError` after so much CPU time of this process; no limit outside the main thread.

    Garbage collection is off meanwhile: Python drops what is raised within callbacks of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGPROF, stop)
    gc.disable()
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)  # again, if Python drops the first within a destructor
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        gc.enable()
        signal.signal(signal.SIGPROF, before)


class _LongestMatch(BasicLexer):
    """lark's lexer, which reads the longest terminal; unlike `strict` wants, terminals are not compared beforehand."""

    __future_interface__ = 2

    def __init__(self, conf: Any) -> None:
        conf.skip_validation = True
        super().__init__(conf)


def _first(root: SymbolNode) -> tuple[list[int], bool]:
    """The derivation of a forest whose ids come first in lexicographic order, and whether there are others."""
    least: dict[int, tuple[int, ...]] = {}  # by node; made of those of its parts, as none begins another
    ambiguous = False
    path = [root]
    while path:
        node = path[-1]
        if id(node) in least:
            path.pop()
            continue
        families = [[part for part in packed.children if not isinstance(part, TokenNode)] for packed in node.children]
        missing = [part for parts in families for part in parts if id(part) not in least]
        if missing:
            path.extend(missing)
            continue
        choices = []
        for packed, parts in zip(node.children, families, strict=True):
            ids = () if node.is_intermediate else (int(packed.rule.alias[1:]),)
            choices.append(ids + tuple(rule for part in parts for rule in least[id(part)]))
        ambiguous |= len(choices) > 1
        least[id(node)] = min(choices)
    return list(least[id(root)]), ambiguous
