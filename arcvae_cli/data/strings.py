"""A corpus of strings of a grammar as plain arrays: their left-most derivations, where they came from, their files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS, limited_rows, require_splits, rows_of, split_by_key, split_sizes
from arcvae_cli.data.columns import ARRAY_BYTES, read_split, read_text
from arcvae_cli.data.derivations import (
    Counts,
    Ids,
    draw_strings,
    enumerated,
    first_of_each,
    first_wrong,
    padded,
    why_wrong,
)
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import atomic_write, read_limited
from arcvae_cli.grammar import MOST_RULES, Grammar, Rules, parse_grammar

if TYPE_CHECKING:
    from arcvae_cli.data.parsing import Failure, Parsed

COLUMNS = ("ids", "split", "grammar", "lhs", "padding", "origin")
"""What an `.npz` of derivations may hold; `ids` it must."""

EQUATION_RULES = 15
"""Longest derivation of an equation, after Kusner et al. 2017."""

TEXT_BYTES = 2**30
"""The largest file of strings that is read."""

KUSNER_DEPTH, KUSNER_SIZE = 6, 100_000

_VALIDATION = 5000  # strings at the most, where the test split is given
_MOST_LINES = 10_000_000

_IDS_FIX = "Derivations are an array `ids` (N, T) of rule ids, with the `grammar` as text beside it."


@dataclass(frozen=True)
class Origin:
    """How derivations came about. `how`: drawn, enumerated, parsed, or ready.

    `parser`, `reason`: which parser took the strings, and why. Counted in lines of the file: `lines` that hold a
    string, `failed` that do not parse, `too_long`, `ambiguous` with more than one derivation, `duplicates` left out.
    `entropy`: in nats, of the distribution that the strings are drawn from, where it is known.
    """

    how: str = "ready"
    grammar: str | None = None
    source: str | None = None
    parser: str | None = None
    reason: str | None = None
    lines: int = 0
    failed: int = 0
    too_long: int = 0
    ambiguous: int = 0
    duplicates: int = 0
    entropy: float | None = None


@dataclass(frozen=True, eq=False)
class StringArrays:
    """A corpus of derivations.

    `ids`: (N, T) int16 left-most derivations, the padding rule after their ends. `split`: (N,) uint8 index into
    SPLITS. `grammar`: None where only ids and masks are known. `notes`: what a person should be told about how the
    corpus was read; neither they nor the origin are part of the fingerprint.
    """

    name: str
    ids: Ids
    split: NDArray[np.uint8]
    rules: Rules
    grammar: Grammar | None = None
    origin: Origin = field(default_factory=Origin)
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 of the arrays and of the rules, in hexadecimal: of what they hold, whatever their file or name."""
        digest = hashlib.sha256(f"{self.ids.shape}".encode())
        digest.update(self.ids.tobytes())
        digest.update(self.split.tobytes())
        digest.update(f"{self.rules.lhs} {self.rules.rhs} {self.rules.start} {self.rules.padding}".encode())
        if self.grammar is not None:
            digest.update(repr((self.grammar.separator, list(map(str, self.grammar.productions)))).encode())
        return digest.hexdigest()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Where the derivations of a split stand: (n,)."""
        return rows_of(self.split, split)

    def limited(self, limit: int) -> StringArrays:
        """The corpus with at most `limit` strings to train on and an eighth of that to validate on; test is whole."""
        return self.only(limited_rows(self.split, limit))

    def only(self, rows: NDArray[np.int64]) -> StringArrays:
        """The corpus of these rows."""
        return replace(self, ids=self.ids[rows], split=self.split[rows])

    def require(self, splits: Iterable[str]) -> None:
        """Refuse, with an InputError, a corpus that has no strings in one of these splits."""
        fix = "Give it more strings, or `split` values of '{0}' beside `ids`."
        require_splits(self.name, self.split, splits, fix)

    def strings(self, rows: NDArray[np.int64]) -> list[str]:
        """The strings of these rows. Raises ValueError without a grammar."""
        if self.grammar is None:
            raise ValueError("strings take a grammar")
        return [written(self.grammar, one) for one in self.ids[rows].tolist()]


def written(grammar: Grammar, ids: Sequence[int]) -> str:
    """The string of a whole derivation."""
    string = grammar.write(ids)
    assert string is not None, "what a corpus holds are whole derivations"
    return string


def fitted(arrays: StringArrays, rules: Rules, length: int | None = None, needs: Sequence[str] = ()) -> StringArrays:
    """The corpus for a model of these rules and `length` steps: shorter derivations padded, longer ones left out.

    Raises InputError where the corpus is of other rules, or nothing fits of one of the splits that the caller `needs`.
    """
    own = arrays.rules
    known = own.rhs is not None and rules.rhs is not None
    same = (len(own), own.padding, own.lhs) == (len(rules), rules.padding, rules.lhs)
    if not same or own.start != rules.start or (known and own.rhs != rules.rhs):
        raise InputError(
            f"{arrays.name}: is of another grammar ({len(own)} rules) than the model ({len(rules)} rules)",
            "Give strings of the grammar that the model was trained on.",
        )
    steps = arrays.ids.shape[1]
    if length is None or length == steps:
        return arrays
    if length > steps:
        ids = np.pad(arrays.ids, ((0, 0), (0, length - steps)), constant_values=rules.padding)
        return replace(arrays, ids=ids)
    fits = (arrays.ids[:, length:] == rules.padding).all(axis=1)
    short = arrays.only(np.flatnonzero(fits))
    if lacking := [split for split in needs if arrays.rows(split).size and not short.rows(split).size]:
        raise InputError(
            f"{arrays.name}: no derivation of the {lacking[0]} split fits the model's {length} steps",
            "Give shorter strings, or another --split.",
        )
    left_out = int((~fits).sum())
    note = (f"{left_out} of {len(fits)} derivations are longer than the model's {length} steps: left out",)
    return replace(short, ids=short.ids[:, :length], notes=arrays.notes + note * bool(left_out))


# ------------------------------------------------------------------------------------------------- drawn, enumerated


def build_drawn(
    grammar: Grammar, most: int, size: int = 100_000, seed: int = 0, name: str | None = None
) -> StringArrays:
    """`size` different strings of a grammar, their derivations uniform over those of at most `most` rules.

    Split 80/10/10 by a hash of the string. The stream is `numpy.random.RandomState`, which NumPy has frozen. What is
    known of a uniform draw is its entropy, which no model's mean negative log-likelihood can be under.

    Raises InputError for a size or a seed out of range, and where there are fewer strings.
    """
    split_sizes(size, seed)
    counts = Counts(grammar.rules, most)
    ids, strings = draw_strings(counts, size, np.random.RandomState(seed), grammar.write)
    origin = Origin("drawn", grammar.name, entropy=counts.entropy)
    split = split_by_key([string.encode() for string in strings])
    return StringArrays(name or grammar.name, ids, split, grammar.rules, grammar, origin)


def build_kusner(grammar: Grammar, size: int = KUSNER_SIZE, most: int = EQUATION_RULES) -> StringArrays:
    """The first `size` sentences of the enumeration of equations that Kusner et al. 2017 trained on 100,000 of.

    They are lexicographic, so neighbours are alike and the last tenth all begin with `1 /`: see `enumerated`. Split
    80/10/10 by a hash of the string. Raises InputError for a size out of range, or where they take more rules than
    `most`, which is T.
    """
    split_sizes(size, 0)
    derivations = list(islice(enumerated(grammar, KUSNER_DEPTH), size))
    if len(derivations) < size:
        raise InputError(
            f"data.size: the enumeration has {len(derivations)} sentences, not {size}", "Use a smaller size."
        )
    if (longest := max(map(len, derivations))) > most:
        raise InputError(f"data.max_rules: sentences of the enumeration take {longest}, more than {most}", "Raise it.")
    ids = padded(derivations, most, grammar.rules.padding)
    split = split_by_key([written(grammar, one).encode() for one in derivations])
    return StringArrays(grammar.name, ids, split, grammar.rules, grammar, Origin("enumerated", grammar.name))


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
) -> StringArrays:
    """The strings of a file, one a line, that a grammar parses by at most `most` rules: each one once.

    `first_column`: what follows whitespace in a line is no part of the string. Split 80/10/10 by a hash of the string.
    Where strings of another file are the `test` split, or the first `leading_test` lines of this one, the others are
    shared out between training and validation, a tenth and at most 5,000 to the latter. Lines that do not parse are
    written to `failures`. Blank lines are none. `tell` hears how many lines of how many are parsed, and `say` what
    takes long, before it does.

    Raises InputError for a file that cannot be read, or without a string that parses by at most `most` rules.
    """
    from arcvae_cli.data.parsing import parse_lines  # carries lark, which nothing else needs

    lines, numbers = _lines(file, first_column)
    tested, tested_numbers = _lines(test, first_column) if test is not None else ([], [])
    parsed = parse_lines([*tested, *lines], grammar, max_rules=most, tell=tell, say=say)
    if failures is not None:
        _list_failures(failures, parsed.failures, test, tested_numbers, file, numbers)
    place = parsed.lines - 1  # among the lines parsed
    if not len(place):
        raise _nothing_left(file, grammar, parsed, most)
    if parsed.ids.nbytes > ARRAY_BYTES:
        size = (
            f"{len(place):,} derivations of up to {parsed.ids.shape[1]:,} rules are {parsed.ids.nbytes / 2**30:.3g} GiB"
        )
        raise InputError(
            f"{file}: {size}, over the {ARRAY_BYTES >> 30} that are read", "Leave out the longest: --max-rules."
        )
    keep = first_of_each(parsed.ids)
    ids, place = parsed.ids[keep], place[keep]
    known = place < len(tested)
    if leading_test:
        known = np.array([*tested_numbers, *numbers])[place] <= leading_test
    spaced = grammar.separator.isspace()
    both = [*tested, *lines]
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
    return StringArrays(file.stem, ids, split, grammar.rules, grammar, origin)


def _nothing_left(file: Path, grammar: Grammar, parsed: Parsed, most: int | None) -> InputError:
    """Why no line is a string of at most `most` rules."""
    first = parsed.failures[0] if parsed.failures else None
    why = f", the first at character {first.position + 1}: {first.reason}" if first else ""
    if not parsed.too_long:
        return InputError(f"{file}: no line is a string of {grammar.name}{why}", "Is this the file, and the grammar?")
    others = f", and {len(parsed.failures):,} lines do not parse{why}" if first else ""
    strings = f"all {parsed.too_long:,} strings take" if parsed.too_long > 1 else "the only string takes"
    return InputError(
        f"{file}: {strings} more than data.max_rules = {most} rules{others}",
        f"Raise it: the longest takes {parsed.longest:,} (--max-rules {parsed.longest}).",
    )


def held_out(keys: Sequence[bytes], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Splits of examples of which those of the test split are `known` (N,): (N,) index into SPLITS.

    A tenth of the others, at most 5,000, is the validation split, by a hash of each key.
    """
    rest = np.flatnonzero(~known).tolist()
    order = sorted(rest, key=lambda row: hashlib.sha256(keys[row]).digest())
    split = np.where(known, np.uint8(SPLITS.index("test")), np.uint8(0))
    split[order[: min(_VALIDATION, max(1, round(len(rest) / 10)) if len(rest) > 1 else 0)]] = SPLITS.index("val")
    return split


def _lines(file: Path, first_column: bool) -> tuple[list[str], list[int]]:
    """The lines of a file that are not blank, without their ends, and their numbers from 1."""
    try:
        text = read_limited(file, TEXT_BYTES).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})", "Give a file of strings.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 (byte {error.start})", "Save it as UTF-8.") from error
    if text.count("\n") > _MOST_LINES:
        raise InputError(f"{file}: holds over {_MOST_LINES:,} lines", "Take a part of it.")
    held = [(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not held:
        raise InputError(f"{file}: holds no strings", "Give a file of strings, one a line.")
    strings = [line.split(None, 1)[0] if first_column else line for line, _ in held]
    return strings, [number for _, number in held]


def _list_failures(
    path: Path, failures: Sequence[Failure], test: Path | None, tested: list[int], file: Path, numbers: list[int]
) -> None:
    """The lines that do not parse, as a table; none where all do. A note will miss it if it cannot be written.

    Characters count from 1, as lines do.
    """
    path.unlink(missing_ok=True)
    if not failures:
        return
    rows = ["file\tline\tcharacter (from 1)\treason\ttext"]
    for one in failures:
        place = one.line - 1
        source, number = (test, tested[place]) if place < len(tested) else (file, numbers[place - len(tested)])
        assert source is not None
        cells = (source.name, str(number), str(one.position + 1), one.reason, one.text)
        rows.append("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in cells))
    with suppress(ArcvaeError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- files


def write_strings(path: Path, arrays: StringArrays) -> None:
    """Write a corpus as `.npz`, whole or not at all: ids, split, and the grammar as bytes of UTF-8.

    Raises:
        ArcvaeError: that fails; what stood there before is untouched then.

    """
    columns: dict[str, Any] = {
        "ids": arrays.ids,
        "split": arrays.split,
        "origin": _bytes(json.dumps(asdict(arrays.origin))),
    }
    if arrays.grammar is not None:
        columns["grammar"] = _bytes(arrays.grammar.text)
    else:
        columns["lhs"] = np.array(arrays.rules.lhs, np.int16)
        columns["padding"] = np.array(arrays.rules.padding, np.int16)
    with atomic_write(path) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        for name, column in columns.items():  # as numpy.savez_compressed, in a fifth of its time
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(column), allow_pickle=False)


def from_columns(
    path: Path, columns: dict[str, NDArray[Any]], grammar: Grammar | None = None, *, check: bool = True
) -> StringArrays:
    """The corpus in the arrays of a file, which are those of `COLUMNS` that it has.

    `grammar` is for a file that holds none. Every row is checked against the rules, unless the file is our own: eight
    seconds for the 249,456 molecules of ZINC. Raises InputError: what is wrong with it, where, and what to do.
    """
    origin = _origin(columns["origin"], path) if "origin" in columns else Origin()
    if "grammar" in columns:
        grammar = parse_grammar(_string(columns["grammar"], f"{path}: grammar"), origin.grammar or path.stem)
    ids = columns["ids"]
    if grammar is not None:
        rules = grammar.rules
    elif "lhs" in columns:
        rules = _bare_rules(columns, path)
    else:
        raise InputError(f"{path}: holds ids and no grammar", "Give --grammar, or `grammar` as text beside `ids`.")
    ids = checked_ids(ids, rules, f"{path}: ids", derivations=check)
    notes: tuple[str, ...] = ()
    if "split" in columns:
        split = read_split(columns["split"], len(ids), "derivations", f"{path}: split")
    else:
        split = split_by_key([row.tobytes() for row in ids])
        notes = ("the file tells no splits: derivations are split 80/10/10 by a hash of their content",)
    return StringArrays(path.stem, ids, split, rules, grammar, origin, notes)


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _string(column: NDArray[Any], where: str) -> str:
    """Text from bytes of UTF-8 as uint8, or from a single string."""
    if column.ndim == 0 and column.dtype.kind in "SU":
        return str(read_text(column, where))
    if column.ndim != 1 or column.dtype != np.uint8:
        raise InputError(f"{where}: is {column.dtype} {column.shape}", "Text is a string, or its UTF-8 bytes as uint8.")
    try:
        return column.tobytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8", "Text is a string, or its UTF-8 bytes as uint8.") from error


def _origin(column: NDArray[Any], path: Path) -> Origin:
    try:
        values = json.loads(_string(column, f"{path}: origin"))
        made = Origin(**values)
    except (ValueError, TypeError, RecursionError) as error:
        raise _no_origin(path) from error
    texts = (made.how, made.grammar or "", made.source or "", made.parser or "", made.reason or "")
    counted = (made.lines, made.failed, made.too_long, made.ambiguous, made.duplicates)
    known = made.entropy is None or (isinstance(made.entropy, float) and math.isfinite(made.entropy))
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(type(count) is int for count in counted)
        or not known
    ):
        raise _no_origin(path)
    return made


def _no_origin(path: Path) -> InputError:
    return InputError(f"{path}: origin: cannot be read", "Build the file again, or leave `origin` out.")


def _bare_rules(columns: dict[str, NDArray[Any]], path: Path) -> Rules:
    """Rules of which only the left-hand sides are known: of unknown symbols, with the start symbol that rows show."""
    lhs, padding, ids = columns["lhs"], columns.get("padding"), columns["ids"]
    fix = "Build the file again from its ids and masks."
    good = lhs.ndim == 1 and lhs.dtype.kind in "iu" and 1 < len(lhs) <= MOST_RULES
    if not good or padding is None or padding.shape or padding.dtype.kind not in "iu":
        raise InputError(f"{path}: lhs, padding: are no rules", fix)
    last = int(padding)
    present = set(lhs.tolist()) - {-1}
    if not 0 <= last < len(lhs) or lhs[last] != -1 or not present or present != set(range(len(present))):
        raise InputError(f"{path}: lhs, padding: are no rules", fix)
    first = int(ids.flat[0]) if ids.ndim == 2 and ids.size and ids.dtype.kind in "iu" else -1
    start = int(lhs[first]) if 0 <= first < len(lhs) else -1
    return bare_rules(lhs.tolist(), last, max(start, 0))


def bare_rules(lhs: list[int], padding: int, start: int) -> Rules:
    """Rules whose right-hand sides are not known, and whose symbols have numbers for names."""
    return Rules(tuple(map(str, range(max(lhs) + 1))), tuple(lhs), None, start, padding)


def checked_ids(ids: NDArray[Any], rules: Rules, where: str, *, derivations: bool = True) -> Ids:
    """Ids (N, T) as int16, every row a whole derivation of the rules; -1 is taken for the padding rule.

    Where right-hand sides are not known, a row begins with a rule of the start symbol and holds only usable rules, and
    padding at its end alone; without `derivations`, ids need only be those of rules. Raises InputError that names the
    first row and step that are wrong.
    """
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InputError(f"{where}: is {ids.dtype} {ids.shape}", _IDS_FIX)
    if not ids.size:
        raise InputError(f"{where}: holds no derivations", _IDS_FIX)
    low, high = int(ids.min()), int(ids.max())
    if low < -1 or high >= len(rules):
        raise InputError(f"{where}: runs from {low} to {high}, and the rules from 0 to {len(rules) - 1}", _IDS_FIX)
    made = ids.astype(np.int16)
    if low < 0:
        made[made < 0] = rules.padding
    wrong = first_wrong(made, rules) if derivations else np.zeros(0)
    if (wrong >= 0).any():
        row = int((wrong >= 0).argmax())
        reason = why_wrong(made[row].tolist(), rules, int(wrong[row]))
        raise InputError(f"{where}: row {row}, step {wrong[row]}: {reason}", "Rows are whole left-most derivations.")
    return made
