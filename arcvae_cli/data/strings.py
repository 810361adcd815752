"""Datasets of strings of a grammar: drawn, enumerated, or parsed from a file; and fitted to a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, split_by_key, split_sizes, written
from arcvae_cli.data.derivations import Counts, draw_strings, enumerated, first_of_each, padded
from arcvae_cli.errors import ArcvaeError, InputError, one_line
from arcvae_cli.files import atomic_write, read_limited
from arcvae_cli.grammar import Grammar, Rules

if TYPE_CHECKING:
    from arcvae_cli.data.parsing import Failure, Parsed

EQUATION_RULES = 15
"""Longest derivation of an equation, after Kusner et al. 2017."""

TEXT_BYTES = 2**30
"""The largest file of strings that is read."""

KUSNER_DEPTH, KUSNER_SIZE = 6, 100_000

_VALIDATION = 5000  # most validation strings if the test split is given


def fitted(dataset: Dataset, rules: Rules, length: int | None = None, needs: Sequence[str] = ()) -> Dataset:
    """The dataset for a model of these rules and `length` steps: shorter derivations padded, longer ones left out.

    Raises InputError for other rules, or if no derivation fits of one of the splits that the caller `needs`.
    """
    own = dataset.rules
    assert own is not None
    known = own.rhs is not None and rules.rhs is not None
    same = (len(own), own.padding, own.lhs, own.start) == (len(rules), rules.padding, rules.lhs, rules.start)
    if not same or (known and own.rhs != rules.rhs):
        raise InputError(
            f"{dataset.name}: the grammar has {len(own)} rules and is not that of the model ({len(rules)} rules)",
            "give strings of the grammar that the model was trained on",
        )
    steps = dataset.x.shape[1]
    if length is None or length == steps:
        return dataset
    if length > steps:
        return replace(dataset, x=np.pad(dataset.x, ((0, 0), (0, length - steps)), constant_values=rules.padding))
    fits = (dataset.x[:, length:] == rules.padding).all(axis=1)
    short = dataset.only(np.flatnonzero(fits))
    if lacking := [split for split in needs if dataset.rows(split).size and not short.rows(split).size]:
        raise InputError(
            f"{dataset.name}: no derivation of the {lacking[0]} split fits the model's {length} steps",
            "give shorter strings, or another --split",
        )
    left_out = int((~fits).sum())
    note = (f"{left_out} of {len(fits)} derivations are longer than the model's {length} steps: left out",)
    return replace(short, x=short.x[:, :length], notes=dataset.notes + note * bool(left_out))


# ------------------------------------------------------------------------------------------------- drawn, enumerated


def build_drawn(grammar: Grammar, most: int, size: int = 100_000, seed: int = 0, name: str | None = None) -> Dataset:
    """`size` different strings of a grammar, their derivations uniform over those of at most `most` rules.

    Split 80/10/10 by a hash of the string. The generator is `numpy.random.RandomState`, which NumPy has frozen. The
    entropy of a uniform distribution is known: no model has a lower mean negative log-likelihood.

    Raises InputError for a size or a seed out of range, and if there are fewer strings.
    """
    split_sizes(size, seed)
    counts = Counts(grammar.rules, most)
    ids, strings = draw_strings(counts, size, np.random.RandomState(seed), grammar.write)
    origin = Origin("drawn", grammar.name, entropy=counts.entropy)
    split = split_by_key([string.encode() for string in strings])
    return Dataset(name or grammar.name, ids, split, rules=grammar.rules, grammar=grammar, origin=origin)


def build_kusner(grammar: Grammar, size: int = KUSNER_SIZE, most: int = EQUATION_RULES) -> Dataset:
    """The first `size` sentences of the enumeration of equations that Kusner et al. 2017 trained on 100,000 of.

    They are lexicographic, so neighbours are alike and the last tenth all begin with `1 /`: see `enumerated`. Split
    80/10/10 by a hash of the string. InputError for a size out of range, or if they take more than `most` (T) rules.
    """
    split_sizes(size, 0)
    derivations = list(islice(enumerated(grammar, KUSNER_DEPTH), size))
    if len(derivations) < size:
        raise InputError(f"data.size: the enumeration has {len(derivations)} sentences, not {size}", "lower it")
    if (longest := max(map(len, derivations))) > most:
        raise InputError(f"data.max_rules: sentences of the enumeration take {longest}, more than {most}", "raise it")
    ids = padded(derivations, most, grammar.rules.padding)
    split = split_by_key([written(grammar, one).encode() for one in derivations])
    origin = Origin("enumerated", grammar.name)
    return Dataset(grammar.name, ids, split, rules=grammar.rules, grammar=grammar, origin=origin)


# ------------------------------------------------------------------------------------------------------------- parsed


def build_parsed(
    file: Path,
    grammar: Grammar,
    *,
    most: int | None = None,
    first_column: bool = False,
    test: Path | None = None,
    leading_test: int = 0,
    failures: Path | None = None,
    tell: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Dataset:
    """The different strings of a file, one a line, that a grammar derives by at most `most` rules.

    `first_column`: a line ends at its first whitespace. Split 80/10/10 by a hash of the string. If strings of another
    file are the `test` split, or the first `leading_test` lines of this one, a tenth of the others, at most 5,000, are
    the validation split. Lines that do not parse are written to `failures`. Blank lines are ignored. `tell` is called
    with the number of lines parsed and of all, and `say` with a message before something slow.

    Raises InputError for a file that cannot be read, or without a string that parses by at most `most` rules.
    """
    from arcvae_cli.data.parsing import parse_lines  # imports lark

    lines, numbers = _lines(file, first_column)
    tested, tested_numbers = _lines(test, first_column) if test is not None else ([], [])
    both = [*tested, *lines]
    parsed = parse_lines(both, grammar, max_rules=most, tell=tell, say=say)
    if failures is not None:
        places = [((test or file).name, number) for number in tested_numbers]
        _list_failures(failures, parsed.failures, [*places, *((file.name, number) for number in numbers)])
    place = parsed.lines - 1  # among the lines parsed
    if not len(place):
        raise _nothing_parsed(file, grammar, parsed, most)
    keep = first_of_each(parsed.ids)
    ids, place = parsed.ids[keep], place[keep]
    known = place < len(tested)
    if leading_test:
        known = np.array([*tested_numbers, *numbers])[place] <= leading_test
    spaced = grammar.separator.isspace()
    keys = [("".join(both[index].split()) if spaced else both[index]).encode() for index in place.tolist()]
    split = held_out(keys, known) if known.any() else split_by_key(keys)
    origin = Origin(
        "parsed",
        grammar.name,
        source=file.name,
        parser=parsed.kind,
        reason=parsed.reason,
        lines=len(both),
        failed=len(parsed.failures),
        too_long=parsed.too_long,
        ambiguous=parsed.ambiguous,
        duplicates=len(parsed.ids) - len(ids),
    )
    return Dataset(file.stem, ids, split, rules=grammar.rules, grammar=grammar, origin=origin)


def _nothing_parsed(file: Path, grammar: Grammar, parsed: Parsed, most: int | None) -> InputError:
    first = parsed.failures[0] if parsed.failures else None
    why = f"; the first at character {first.position + 1}: {first.reason}" if first else ""
    if not parsed.too_long:
        return InputError(f"{file}: no line is a string of {grammar.name}{why}", "check the file and the grammar")
    return InputError(
        f"{file}: all {parsed.too_long:,} strings of {grammar.name} take more than data.max_rules = {most} rules",
        f"raise it: the longest takes {parsed.longest:,} (--max-rules {parsed.longest})",
    )


def held_out(keys: Sequence[bytes], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Splits of examples whose test split is `known` (N,): (N,) index into SPLITS.

    A tenth of the others, at most 5,000, is the validation split, by a hash of each key.
    """
    rest = np.flatnonzero(~known).tolist()
    order = sorted(rest, key=lambda row: hashlib.sha256(keys[row]).digest())
    split = np.where(known, np.uint8(SPLITS.index("test")), np.uint8(0))
    split[order[: min(_VALIDATION, max(1, round(len(rest) / 10)) if len(rest) > 1 else 0)]] = SPLITS.index("val")
    return split


def _lines(file: Path, first_column: bool) -> tuple[list[str], list[int]]:
    """The lines of a file that are not blank, and their numbers from 1."""
    try:
        text = read_limited(file, TEXT_BYTES).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})", "give a file of strings") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    held = [(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not held:
        raise InputError(f"{file}: no strings", "give a file of strings, one a line")
    strings = [line.split(None, 1)[0] if first_column else line for line, _ in held]
    return strings, [number for _, number in held]


def _list_failures(path: Path, failures: Sequence[Failure], places: Sequence[tuple[str, int]]) -> None:
    """Writes the lines that do not parse as a table; no file if all do, or if it cannot be written."""
    path.unlink(missing_ok=True)
    if not failures:
        return
    rows = ["file\tline\tcharacter (from 1)\treason\ttext"]
    for one in failures:
        name, number = places[one.line - 1]
        cells = (name, str(number), str(one.position + 1), one.reason, one.text)
        rows.append("\t".join(one_line(cell.replace("\t", " ")) for cell in cells))  # without escape sequences
    with suppress(ArcvaeError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
