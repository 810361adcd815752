"""Derivations of SMILES a second, of one core: arcvae's parser against NLTK's chart parser, as the code of 2017 ran it.

In turns in one process, on the same molecules and with the same productions; both give the same ids, which is checked.
Beside them lark's own Earley parser, and the whole of ZINC (249,456 molecules, or as many as the file is long, over and
over) by all cores. NLTK is no dependency of arcvae: `pip install nltk`.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import common

from arcvae_cli.data.corpora import zinc_path
from arcvae_cli.data.parsing import ParseFailure, Parser, parse_lines
from arcvae_cli.data.strings import padded_ids
from arcvae_cli.grammar import Grammar, Terminal, read_grammar

KEPT = (Path(__file__).parents[2] / "shared" / "data" / "zinc_test_5000.smi", zinc_path())
LINES = 249_456


def nltk_reader(grammar: Grammar) -> Callable[[str], list[int]]:
    """NLTK's chart parser of the same productions; its first tree, as ids."""
    try:
        import nltk
    except ImportError:
        sys.exit("bench/parsing.py compares with NLTK, which is not installed: pip install nltk")
    productions = [production for rule, production in enumerate(grammar.productions) if rule not in grammar.unusable]
    cfg = nltk.CFG.fromstring("\n".join(map(str, productions)))
    ids = {made: grammar.productions.index(own) for made, own in zip(cfg.productions(), productions, strict=True)}
    parser = nltk.ChartParser(cfg)
    texts = {symbol.text for production in productions for symbol in production.right if isinstance(symbol, Terminal)}
    terminals = re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))

    def read(text: str) -> list[int]:
        tree = next(iter(parser.parse(terminals.findall(text))))
        return [ids[production] for production in tree.productions()]

    return read


def seconds(read: Callable[[str], list[int]], lines: list[str]) -> tuple[float, list[list[int]]]:
    began = time.perf_counter()
    ids = [read(line) for line in lines]
    return time.perf_counter() - began, ids


def main() -> None:
    arguments = common.flags(__doc__, rounds=7, computes=False)
    arguments.add_argument("--input", type=Path, help="a file of SMILES, one a line; else ZINC's, where it is kept")
    arguments.add_argument("--molecules", type=int, default=40, help="for each parser in each turn")
    arguments.add_argument(
        "--whole", type=int, default=LINES, help="molecules for the run on all cores; 0 leaves it out"
    )
    given = arguments.parse_args()
    found = next((path for path in (given.input, *KEPT) if path is not None and path.is_file()), None)
    if given.input is not None and found != given.input:
        sys.exit(f"{given.input}: there is no such file")
    if found is None:
        print(
            "no molecules here: --input takes any file of SMILES; `arcvae data build --download zinc250k` brings some"
        )
        return
    molecules = [line.split()[0] for line in found.read_text("utf-8").splitlines() if line.strip()]
    grammar = read_grammar("smiles")
    own, earley, peer = Parser(grammar), Parser(grammar, lalr_seconds=0), nltk_reader(grammar)
    print(own.reason)
    for molecule in molecules[:200]:  # warm-up
        own.parse(molecule)
    rates: dict[str, list[float]] = {"arcvae": [], "earley": [], "nltk": []}
    for turn in range(given.rounds):
        lines = [molecules[(turn * given.molecules + place) % len(molecules)] for place in range(given.molecules)]
        again = 5  # so that a round of arcvae's takes about as long as the clock needs
        time_own, ids = seconds(own.parse, lines * again)
        time_nltk, theirs = seconds(peer, lines)
        time_earley, _ = seconds(earley.parse, lines)
        assert ids[: len(lines)] == theirs, "NLTK derives another sequence"
        rates["arcvae"].append(len(lines) * again / time_own)
        rates["nltk"].append(len(lines) / time_nltk)
        rates["earley"].append(len(lines) / time_earley)
    ratio = statistics.median(a / b for a, b in zip(rates["arcvae"], rates["nltk"], strict=True))
    for name, rate in rates.items():
        print(f"{name:8}{statistics.median(rate):10.0f} molecules a second, one core")
    print(f"arcvae is {ratio:.0f} times as fast as NLTK's chart parser (goal: at least 32)")
    result: dict[str, object] = {name: statistics.median(rate) for name, rate in rates.items()} | {"ratio": ratio}
    if given.whole:
        lines = (molecules * (given.whole // len(molecules) + 1))[: given.whole]
        began = time.perf_counter()
        results = parse_lines(lines, grammar)
        ids = padded_ids([result[0] for result in results if not isinstance(result, ParseFailure)], 277, grammar.rules)
        taken = time.perf_counter() - began
        print(f"{len(ids)} of {given.whole} molecules to arrays in {taken:.1f} s by all cores (goal: under 60)")
        result |= {"whole": given.whole, "whole_s": taken}
    common.write("parsing", {"processor": common.processor(), "cores": common.cores(), **result}, given.json)


if __name__ == "__main__":
    main()
