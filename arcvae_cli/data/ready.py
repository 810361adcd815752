"""Ready derivations: arrays of rule ids (N, T), and the bit-packed masks of the rules that might have stood there.

The masks of `prod_*_masks_packed.npy` files: byte b of a step holds rules 8b to 8b + 7, the first in its highest bit,
as `numpy.packbits` leaves them. What a mask says is which rules have the left-hand side of the step, so all masks
that hold a rule are alike, and a table of them replaces the file: 691 MB for ZINC, a few kB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import split_by_key
from arcvae_cli.data.columns import ARRAY_BYTES, map_npy
from arcvae_cli.data.derivations import first_of_each
from arcvae_cli.data.strings import Origin, StringArrays, bare_rules, checked_ids
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import MOST_RULES, Grammar

_BLOCK_BYTES = 2**25  # of masks that are in memory at once
_IDS_FIX = "Give the ids (N, T) of the rules of left-most derivations, as int16."
_PARTITION_FIX = "A mask holds the rules with the left-hand side of its step, so that each rule has one mask."
_MASKS_FIX = "Give masks (N, T, bytes) uint8, packed by numpy.packbits along the last axis."


def read_ready(prod: Path, masks: Path | None, pad_id: int | None, grammar: Grammar | None) -> StringArrays:
    """The corpus in ready arrays: ids of any integer type, with their masks, or a grammar, or both.

    `pad_id`: what stands after the end of a derivation: -1, or a rule; None finds it out, and a note says what it was
    taken for. Ids lie within their masks, and the masks share the rules out among symbols; with a grammar, rows are
    whole derivations, and masks are those of the left-hand sides. Duplicates are left out; split 80/10/10 by a hash of
    the row. Nothing is decompressed or copied but a block at a time.

    Raises InputError that names the first row and step that are wrong.
    """
    ids = map_npy(prod)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InputError(f"{prod}: is {ids.dtype} {ids.shape}", _IDS_FIX)
    if not ids.size:
        raise InputError(f"{prod}: holds no derivations", _IDS_FIX)
    if 2 * ids.size > ARRAY_BYTES:
        raise InputError(f"{prod}: {ids.shape} ids are over the {ARRAY_BYTES >> 30} GiB that are read", "Give fewer.")
    packed = None
    if masks is not None:
        packed = map_npy(masks)
        if packed.dtype != np.uint8 or packed.ndim != 3 or packed.shape[:2] != ids.shape or not packed.shape[2]:
            raise InputError(f"{masks}: is {packed.dtype} {packed.shape} for ids {ids.shape}", _MASKS_FIX)
        if 8 * packed.shape[2] >= MOST_RULES + 8:
            raise InputError(f"{masks}: is of {8 * packed.shape[2]:,} rules, over {MOST_RULES:,}", _MASKS_FIX)
    elif grammar is None:
        raise InputError(
            f"{prod}: ids alone do not tell which rules belong together", "Give --masks MASKS.npy, or --grammar FILE."
        )
    low, high = int(ids.min()), int(ids.max())
    if low < -1 or high >= MOST_RULES:
        raise InputError(f"{prod}: runs from {low} to {high}", f"Rules are numbered from 0 to {MOST_RULES - 1}.")
    ends, notes = _ending(ids, packed, low, high, pad_id, grammar, prod)
    seen = None if packed is None or masks is None else _read_masks(ids, packed, ends, masks)
    if grammar is not None:
        rules = grammar.rules
        if seen is not None:
            _agree(seen, grammar, f"{masks}")
    else:
        assert seen is not None
        rules = seen.rules(ids, ends)
    own = ids.astype(np.int16)
    if ends is not None and ends != rules.padding:
        own[ids == ends] = rules.padding
    own = checked_ids(own, rules, str(prod))
    keep = first_of_each(own)
    origin = Origin(
        grammar=None if grammar is None else grammar.name,
        source=prod.name,
        lines=len(own),
        duplicates=len(own) - len(keep),
    )
    own = own[keep]
    split = split_by_key([row.tobytes() for row in own])
    return StringArrays(prod.stem, own, split, rules, grammar, origin, notes)


def _ending(
    ids: NDArray[Any],
    packed: NDArray[np.uint8] | None,
    low: int,
    high: int,
    pad_id: int | None,
    grammar: Grammar | None,
    prod: Path,
) -> tuple[int | None, tuple[str, ...]]:
    """The id that stands after the end of a derivation, None for none, with a note where it had to be found out.

    Raises InputError where it follows from rows and masks, and a row goes on after it.
    """
    if pad_id is not None:
        if low < 0 and pad_id >= 0:
            raise InputError(f"data.pad_id: {pad_id}, and {prod} holds -1 too", "Give --pad-id -1.")
        return (pad_id if pad_id <= high and (pad_id >= 0 or low < 0) else None), ()
    if low < 0:
        return -1, ("-1 stands after the end of a derivation",)
    if grammar is not None:
        last = grammar.rules.padding
        return (last, (f"rule {last} stands after the end of a derivation",)) if high == last else (None, ())
    at_end = ids[:, -1] == high
    if at_end.any():
        ended = np.logical_or.accumulate(ids == high, axis=1)
        gaps = ended & (ids != high)
        if not gaps.any():
            return high, (f"rule {high}, the last, is taken for what stands after the end (--pad-id says otherwise)",)
        row, step = (int(place[0]) for place in np.nonzero(gaps))
        if packed is not None and _alone(packed[row, int((ids[row] == high).argmax())]):
            raise InputError(
                f"{prod}: row {row}, step {step}: rule {ids[row, step]} follows rule {high}, which has no other rule "
                "in its mask and stands at the end of rows, as padding does",
                f"Padding stands at the ends of rows alone. If rule {high} is one like others, say --pad-id -1.",
            )
    return None, ("no rule stands after the end: derivations are held to be of one length (--pad-id says otherwise)",)


def _alone(mask: NDArray[np.uint8]) -> bool:
    """Whether a mask holds one rule only."""
    return int(np.unpackbits(mask).sum()) == 1


@dataclass
class _Masks:
    """What the masks say. `table`: (P, bytes) the mask of each rule, zeros for those that never occur.

    `rules`: P before a padding rule may have to be added. `at_ends`: the one rule that only the masks after the ends
    hold, or None.
    """

    table: NDArray[np.uint8]
    count: int
    at_ends: int | None

    def rules(self, ids: NDArray[Any], ends: int | None) -> Any:
        """Rules, symbols being numbered by their lowest rule."""
        padding = ends if ends is not None and ends >= 0 else self.at_ends if self.at_ends is not None else self.count
        lhs = [-1] * max(self.count, padding + 1)
        bits = np.unpackbits(self.table, axis=1)
        symbols = 0
        for rule in range(self.count):
            if lhs[rule] < 0 and rule != padding and bits[:, rule].any():
                holder = int(bits[:, rule].argmax())
                for one in np.flatnonzero(bits[holder]).tolist():
                    lhs[one] = symbols
                symbols += 1
        return bare_rules(lhs, padding, lhs[int(ids[0, 0])])


def _blocks(count: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for begin in range(0, count, step):
        yield slice(begin, min(count, begin + step))


def _read_masks(ids: NDArray[Any], packed: NDArray[np.uint8], ends: int | None, file: Path) -> _Masks:
    """The table of masks, each id being within its own, and all masks with a rule alike."""
    width = packed.shape[2]
    table = np.zeros((8 * width, width), np.uint8)
    first: dict[int, tuple[int, int]] = {}  # the step that told a rule's mask
    within = np.zeros(width, np.uint8)  # all that masks hold, at steps and after the ends
    beyond = np.zeros(width, np.uint8)
    for block in _blocks(len(ids), width * ids.shape[1]):
        some = np.asarray(ids[block], np.int64)
        mask = np.asarray(packed[block])
        ended = some == ends if ends is not None else np.zeros(some.shape, bool)
        within |= np.bitwise_or.reduce(mask[~ended], axis=0, initial=0)
        beyond |= np.bitwise_or.reduce(mask[ended], axis=0, initial=0)
        rule = np.where(ended, 0, some)
        inside = np.take_along_axis(mask, np.minimum(rule >> 3, width - 1)[..., None], axis=2)[..., 0]
        good = ended | ((rule < 8 * width) & ((inside >> (7 - (rule & 7)).astype(np.uint8)) & 1 == 1))
        if not good.all():
            row, step = (int(place[0]) for place in np.nonzero(~good))
            raise InputError(
                f"{file}: row {block.start + row}, step {step}: rule {some[row, step]} is not in its mask",
                "Are these the masks of these ids, packed by numpy.packbits in its own bit order?",
            )
        for one in np.unique(rule[~ended]).tolist():
            if one not in first:
                row, step = (int(place[0]) for place in np.nonzero((rule == one) & ~ended))
                table[one] = mask[row, step]
                first[one] = (block.start + row, step)
        same = ended | (table[rule] == mask).all(axis=2)
        if not same.all():
            row, step = (int(place[0]) for place in np.nonzero(~same))
            before = first[int(some[row, step])]
            raise InputError(
                f"{file}: row {block.start + row}, step {step}: the mask of rule {some[row, step]} is not that of row "
                f"{before[0]}, step {before[1]}",
                _PARTITION_FIX,
            )
    bits = np.unpackbits(table, axis=1)
    holder: dict[int, int] = {}  # of each rule, one whose mask it is in
    for seen in first:
        for other in np.flatnonzero(bits[seen]).tolist():
            known = holder.setdefault(other, seen)
            if (table[known] != table[seen]).any():
                places = [f"row {first[each][0]}, step {first[each][1]}" for each in (known, seen)]
                raise InputError(
                    f"{file}: rule {other} is in two different masks: of {places[0]}, and of {places[1]}",
                    _PARTITION_FIX,
                )
    if ends is not None and ends in holder:
        raise InputError(
            f"{file}: rule {ends} stands after the ends, and in the masks of other steps",
            "The padding rule belongs to no symbol of the grammar: give the right --pad-id.",
        )
    alone = np.flatnonzero(np.unpackbits(beyond & ~within))
    count = int(np.flatnonzero(np.unpackbits(within | beyond)).max(initial=-1)) + 1
    return _Masks(table, max(count, max(first, default=0) + 1), int(alone[0]) if len(alone) == 1 else None)


def _agree(masks: _Masks, grammar: Grammar, where: str) -> None:
    """Refuse masks that are not those of the grammar's left-hand sides, as far as rules are usable."""
    rules = grammar.rules
    usable = np.array(rules.lhs) >= 0
    bits = np.unpackbits(masks.table, axis=1)
    for rule in np.flatnonzero(bits.any(axis=1)).tolist():
        if rule >= len(rules) or not usable[rule]:
            raise InputError(f"{where}: holds rule {rule}, which {grammar.name} has no use for", "Is this the grammar?")
        held = bits[rule, : len(rules)].astype(bool) & usable[: bits.shape[1]]
        if set(np.flatnonzero(held).tolist()) != set(rules.of(rules.lhs[rule])):
            raise InputError(
                f"{where}: the mask of rule {rule} is not that of {rules.symbols[rules.lhs[rule]]} in {grammar.name}",
                "Is this the grammar that the masks were made with, its rules in the same order?",
            )
