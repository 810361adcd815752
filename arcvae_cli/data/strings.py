"""Datasets of strings of a grammar: drawn, enumerated, or parsed from a file; and fitted to a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, refuse_large, split_by_key, split_sizes, written
from arcvae_cli.data.derivations import Counts, Ids, enumerated, first_of_each
from arcvae_cli.data.files import reading
from arcvae_cli.errors import ArcvaeError, InputError, one_line
from arcvae_cli.files import atomic_write, read_limited
from arcvae_cli.grammar import Grammar, Rules

EQUATION_RULES = 15  # longest derivation of an equation, after Kusner et al. 2017
TEXT_BYTES = 2**30  # the largest file of strings that is read
_CHUNK = 8192  # derivations drawn at once
_DRAWS = 40  # for each string that is wanted, before there are held to be no more of them


def fitted(dataset: Dataset, rules: Rules, length: int | None = None, needs: Sequence[str] = ()) -> Dataset:
    """For a model of these rules and `length` steps: padded, longer ones left out. InputError for other rules."""
    own = dataset.rules
    assert own is not None
    same_rhs = own.rhs == rules.rhs or None in (own.rhs, rules.rhs)
    if not same_rhs or (own.padding, own.lhs, own.start) != (rules.padding, rules.lhs, rules.start):
        what = f"the grammar has {len(own)} rules and is not that of the model ({len(rules)} rules)"
        raise InputError(f"{dataset.name}: {what}", "give strings of the grammar that the model was trained on")
    steps = dataset.x.shape[1]
    if length is None or length == steps:
        return dataset
    if length > steps:
        return replace(dataset, x=np.pad(dataset.x, ((0, 0), (0, length - steps)), constant_values=rules.padding))
    fits = (dataset.x[:, length:] == rules.padding).all(axis=1)
    short = dataset.only(np.flatnonzero(fits))
    if lacking := [split for split in needs if dataset.rows(split).size and not short.rows(split).size]:
        what = f"no derivation of the {lacking[0]} split fits the model's {length} steps"
        raise InputError(f"{dataset.name}: {what}", "give shorter strings, or another --split")
    left_out = int((~fits).sum())
    note = (f"{left_out} of {len(fits)} derivations are longer than the model's {length} steps: left out",)
    return replace(short, x=short.x[:, :length], notes=dataset.notes + note * bool(left_out))


def padded_ids(derivations: Sequence[Sequence[int] | NDArray[np.int16]], steps: int, rules: Rules) -> Ids:
    """Derivations as rows (N, T) of `steps` ids. InputError if they would take too much memory."""
    refuse_large(f"{len(derivations):,} derivations of up to {steps:,} rules", 2 * len(derivations) * steps)
    ids = np.full((len(derivations), steps), rules.padding, np.int16)
    for row, one in zip(ids, derivations, strict=True):
        row[: len(one)] = one
    return ids


def build_drawn(grammar: Grammar, most: int, size: int = 100_000, seed: int = 0, kusner: bool = False) -> Dataset:
    """`size` different strings of a grammar, their derivations uniform over those of at most `most` rules.

    `kusner`: the first `size` of the enumerated equations instead, of which Kusner et al. 2017 used 100,000. Split
    80/10/10 by a hash of the string. InputError for a size or a seed out of range, or if there are too few.
    """
    split_sizes(size, seed)
    rows: dict[str, Sequence[int] | NDArray[np.int16]] = {}
    if kusner:
        origin = Origin("enumerated", grammar.name)
        rows = {written(grammar, one): one for one in islice(enumerated(grammar, 6), size) if len(one) <= most}
    else:
        counts, stream = Counts(grammar.rules, most), np.random.RandomState(seed)
        origin = Origin("drawn", grammar.name, entropy=counts.entropy)
        for _ in range(_DRAWS * (1 + size // _CHUNK)):
            if counts.total >= size > len(rows):
                # at least half a chunk, so that the last few of a small number of strings are found too
                ids = counts.draw(max(_CHUNK // 2, min(_CHUNK, size - len(rows))), stream)
                for one, row in zip(ids.tolist(), ids, strict=True):
                    rows.setdefault(written(grammar, one), row)
    if len(rows) < size:
        what = f"data.size: there are no {size} different strings of at most {most} rules"
        raise InputError(what, "use a smaller size, or raise data.max_rules")
    ids = padded_ids([*rows.values()][:size], most, grammar.rules)
    split = split_by_key([string.encode() for string in [*rows][:size]])
    return Dataset(grammar.name, ids, split, rules=grammar.rules, grammar=grammar, origin=origin)


def build_parsed(
    file: Path,
    grammar: Grammar,
    most: int | None = None,
    first_column: bool = False,
    test: Path | None = None,
    leading_test: int = 0,
    failures: Path | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The different strings of a file, one a line, that a grammar derives by at most `most` rules.

    `first_column`: a line ends at its first whitespace. Split 80/10/10 by a hash of the string; if the strings of the
    file `test`, or the first `leading_test` lines, are the test split, a tenth of the others validate, at most 5,000.
    Lines that do not parse are listed in `failures`. InputError for a file that cannot be read, or without strings.
    """
    from arcvae_cli.data.parsing import ParseFailure, parse_lines, parser_of  # imports lark

    tested = [] if test is None else _lines(test, first_column)
    lines = [*tested, *_lines(file, first_column)]
    failed: list[tuple[object, ...]] = []
    derived: list[tuple[int, NDArray[np.int16]]] = []  # place in `lines`, ids
    ambiguous = 0
    for place, result in enumerate(parse_lines([text for *_, text in lines], grammar, tell=tell)):
        if isinstance(result, ParseFailure):
            failed.append((*lines[place][:2], result.position + 1, result.reason, lines[place][2]))
        else:
            derived.append((place, result[0]))
            ambiguous += result[1]
    if failures is not None and failed:
        rows = [("file", "line", "character (from 1)", "reason", "text"), *failed]
        table = "".join("\t".join(one_line(str(cell).replace("\t", " ")) for cell in row) + "\n" for row in rows)
        with suppress(ArcvaeError), atomic_write(failures) as temporary:
            temporary.write_text(table, encoding="utf-8")
    longest = most or max((len(ids) for _, ids in derived), default=0)
    short = [(place, ids) for place, ids in derived if len(ids) <= longest]
    if not short:
        what = f"all take over {most} rules" if derived else f"character {failed[0][2]} of the first: {failed[0][3]}"
        raise InputError(f"{file}: no strings of {grammar.name}: {what}", "change the file, grammar, or data.max_rules")
    ids = padded_ids([one for _, one in short], longest, grammar.rules)
    keep = first_of_each(ids)
    places = [short[row][0] for row in keep.tolist()]
    texts = [lines[place][2] for place in places]
    keys = [("".join(text.split()) if grammar.separator.isspace() else text).encode() for text in texts]
    split = split_by_key(keys)
    known = np.array([place < len(tested) or (not tested and lines[place][1] <= leading_test) for place in places])
    if known.any():
        rest = sorted(np.flatnonzero(~known).tolist(), key=lambda row: hashlib.sha256(keys[row]).digest())
        split = np.where(known, np.uint8(SPLITS.index("test")), np.uint8(SPLITS.index("train")))
        split[rest[: min(5000, max(1, round(len(rest) / 10)) if len(rest) > 1 else 0)]] = SPLITS.index("val")
    parser = parser_of(grammar)
    counted = len(lines), len(failed), len(derived) - len(short), ambiguous, len(ids) - len(keep)
    origin = Origin("parsed", grammar.name, file.name, parser.kind, parser.reason, *counted)
    return Dataset(file.stem, ids[keep], split, rules=grammar.rules, grammar=grammar, origin=origin)


def _lines(file: Path, first_column: bool) -> list[tuple[str, int, str]]:
    """The lines of a file that are not blank: name of the file, number from 1, string."""
    with reading(file):
        text = read_limited(file, TEXT_BYTES).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise InputError(f"{file}: no strings", "give a file of strings, one a line")
    return [(file.name, number, line.split(None, 1)[0] if first_column else line) for number, line in numbered]
