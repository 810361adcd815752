"""Datasets of strings of a grammar: drawn, enumerated, parsed, or read as ids and masks; and fitted to a model."""

import gzip
import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, refuse_large, split_by_key, unseen, written
from arcvae_cli.data.derivations import Counts, Ids, enumerated
from arcvae_cli.data.files import bare_rules, checked_ids, map_npy, reading, require
from arcvae_cli.errors import ArcvaeError, InputError, one_line
from arcvae_cli.files import atomic_write, read_limited
from arcvae_cli.grammar import MOST_RULES, Grammar, Rules

EQUATION_RULES = 15  # longest derivation of an equation, after Kusner et al. 2017
TEXT_BYTES = 2**30  # the largest file of strings that is read
_CHUNK = 8192  # derivations drawn at once
_BLOCK_BYTES = 2**25  # of masks that are in memory at once
_DRAWS = 40  # for each string that is wanted, before there are held to be no more of them


def fitted(dataset: Dataset, rules: Rules, length: int | None = None) -> Dataset:
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
    x = np.pad(dataset.x, ((0, 0), (0, max(0, length - steps))), constant_values=rules.padding)
    fits = (x[:, length:] == rules.padding).all(axis=1)
    note = (f"{(~fits).sum()} of {len(fits)} derivations are longer than the model's {length} steps: left out",)
    short = dataset.only(np.flatnonzero(fits))
    return replace(short, x=x[fits, :length], notes=dataset.notes + note * (not fits.all()))


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
    80/10/10 by a hash of the string. InputError if there are too few.
    """
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
    drawn: tuple[int, int] | None = None,
    failures: Path | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The different strings of a file, one a line, that a grammar derives by at most `most` rules.

    `first_column`: a line ends at its first whitespace. `drawn`: a number of lines and a seed; nine tenths are drawn
    from the file and a tenth from `test`, or all there are. Split 80/10/10 by a hash of the string; if the strings of
    the file `test`, or the first `leading_test` lines, are the test split, a tenth of the others validate, at most
    5,000. Lines that do not parse are listed in `failures`. InputError for a file without strings, or unreadable.
    """
    from arcvae_cli.data.parsing import ParseFailure, parse_lines, parser_of  # imports lark

    tested, lines = [] if test is None else read_lines(test, first_column), read_lines(file, first_column)
    if drawn is not None:
        size, order = drawn[0], np.random.RandomState(drawn[1]).permutation
        tested = [tested[place] for place in order(len(tested))[: size // 10]]
        lines = [lines[place] for place in order(len(lines))[: size - size // 10]]
    lines = [*tested, *lines]
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
        why = [f"character {place} of the first: {reason}" for _, _, place, reason, _ in failed]
        what = f"all take over {most} rules" if derived else [*why, "the file is empty"][0]
        raise InputError(f"{file}: no strings of {grammar.name}: {what}", "change the file, grammar, or data.max_rules")
    ids = padded_ids([one for _, one in short], longest, grammar.rules)
    keep = unseen(ids, set())
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


def read_lines(file: Path, first_column: bool) -> list[tuple[str, int, str]]:
    """The lines of a file, or a .gz, that are not blank, without a heading `SMILES`: name, number from 1, string."""
    with reading(file):
        content = read_limited(file, TEXT_BYTES)
        if file.suffix == ".gz":
            content = gzip.GzipFile(fileobj=BytesIO(content)).read(TEXT_BYTES)
        lines = re.split(r"\r\n|\r|\n", content.decode("utf-8-sig"))
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    numbered = numbered[first_column and lines[0] == "SMILES" :]
    return [(file.name, number, line.split(None, 1)[0] if first_column else line) for number, line in numbered]


def read_prebuilt(prod: Path, masks: Path | None, pad_id: int | None, grammar: Grammar | None) -> Dataset:
    """The dataset of rule ids (N, T) of any integer type, with masks of the rules allowed at each step, or a grammar.

    Masks, (N, T, bytes), are bits as of `numpy.packbits`, of the rules with the left-hand side of the step. `pad_id`:
    the id after the end of a derivation, -1 or a rule; None detects it and adds a note. Duplicates are left out;
    split 80/10/10 by a hash of the row. InputError with the first invalid row and step.
    """
    ids = map_npy(prod)
    refuse_large(str(prod), 2 * ids.size)
    with reading(prod):
        require(ids.ndim == 2 and ids.dtype.kind in "iu" and ids.size, "ids", ids)
        low, high = int(ids.min()), int(ids.max())
        if low < -1 or high >= MOST_RULES:
            raise ValueError(f"ids from {low} to {high}, not -1 to {MOST_RULES - 1}")
        if pad_id is not None and low < 0 <= pad_id:
            raise InputError(f"data.pad_id: {pad_id}, but {prod} contains -1", "use --pad-id -1")
        packed = None if masks is None else map_npy(masks)
        if packed is not None:
            fits = packed.dtype == np.uint8 and packed.ndim == 3 and packed.shape[:2] == ids.shape
            require(fits and 0 < 8 * packed.shape[2] < MOST_RULES + 8, str(masks), packed)
        padding = -1 if pad_id is None or not low <= pad_id <= high else pad_id
        ended = np.flatnonzero(ids[:, -1] == high)
        if pad_id is None and low >= 0 and packed is not None and ended.size:  # the last rule, if alone in its mask
            padding = high if np.unpackbits(packed[ended[0], -1]).sum() == 1 else -1
        rules = None if packed is None else _rules_of_masks(ids, packed, padding)
        if grammar is not None:
            rules = grammar.rules
        assert rules is not None, "the settings require masks or a grammar"
        own = checked_ids(ids if padding < 0 else np.where(ids == padding, rules.padding, ids), rules)
    found = "none" if low >= 0 > padding else f"id {padding}"
    notes = (f"padding detected: {found} (--pad-id overrides)",) * (pad_id is None and grammar is None)
    keep = unseen(own, set())
    name, lines = grammar.name if grammar else None, len(own)
    origin = Origin("ready", name, prod.name, lines=lines, duplicates=lines - len(keep))
    split = split_by_key([row.tobytes() for row in own[keep]])
    return Dataset(prod.stem, own[keep], split, rules=rules, grammar=grammar, origin=origin, notes=notes)


def _rules_of_masks(ids: NDArray[Any], packed: NDArray[np.uint8], padding: int) -> Rules:
    """Rules by their masks: symbols are numbered by their lowest rule, and the first id rewrites the start symbol.

    If `padding` is -1, it is the rule that only masks after the ends contain, if there is one, else one more rule.
    """
    width = packed.shape[2]
    table = np.zeros((8 * width, width), np.uint8)  # the mask of each rule
    beyond = np.zeros(width, np.uint8)  # what masks after the ends contain
    rows = max(1, _BLOCK_BYTES // (width * ids.shape[1]))
    for begin in range(0, len(ids), rows):
        some, mask = np.asarray(ids[begin : begin + rows], np.int64), np.asarray(packed[begin : begin + rows])
        real = (some >= 0) & (some != padding)
        beyond |= np.bitwise_or.reduce(mask[~real], axis=0, initial=0)
        known = real & (some < 8 * width)
        rule = np.where(known, some, 0)
        seen, place = np.unique(rule[known], return_index=True)
        new = ~table[seen].any(axis=1)
        table[seen[new]] = mask[known][place[new]]
        own = np.unpackbits(table, axis=1).diagonal()[rule] == 1  # the mask of a rule contains it
        wrong = real & ~(known & own & (table[rule] == mask).all(axis=2))
        if wrong.any():
            row, step = (int(place[0]) for place in np.nonzero(wrong))
            what = f"not the mask of rule {some[row, step]}: it lacks the rule, or differs from its earlier mask"
            raise ValueError(f"row {begin + row}, step {step}: {what}")
    masks = np.unpackbits(np.unique(table, axis=0)[::-1], axis=1)  # by their lowest rule
    symbols = masks.sum(axis=0)  # of each rule
    symbols[padding] += padding >= 0
    if symbols.max() > 1:
        raise ValueError(f"rule {int(symbols.argmax())} is in two different masks (the padding rule is --pad-id)")
    within, after = masks.any(axis=0), np.unpackbits(beyond) == 1
    if padding < 0:
        alone = np.flatnonzero(after & ~within)
        padding = int(alone[0] if len(alone) == 1 else np.flatnonzero(after | within).max(initial=-1) + 1)
    lhs = np.full(max(int(np.flatnonzero(within).max(initial=-1)), padding) + 1, -1)
    lhs[: 8 * width] = np.where(within, masks.argmax(axis=0), -1)[: len(lhs)]
    return bare_rules(lhs.tolist(), padding, max(int(lhs[ids[0, 0]]), 0))
