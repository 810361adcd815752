"""Prebuilt derivations: an array of rule ids (N, T), and bit-packed masks of the rules allowed at each step.

Masks are those of `prod_*_masks_packed.npy` files: byte b of a step has rules 8b to 8b + 7, the first in its highest
bit, as `numpy.packbits` writes them. A mask contains the rules with the left-hand side of its step, so all masks that
contain a rule are equal, and a table of them replaces the file: 691 MB for ZINC, a few kB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import Dataset, Origin, refuse_large, split_by_key
from arcvae_cli.data.derivations import first_of_each
from arcvae_cli.data.files import bare_rules, checked_ids, map_npy
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import MOST_RULES, Grammar, Rules

_Masks = tuple[NDArray[np.uint8], int, int | None]
"""(rules, rules) the mask of each rule, zeros for unseen ones; the number of rules; the one only after ends, if any."""

_BLOCK_BYTES = 2**25  # of masks that are in memory at once
_IDS_FIX = "give the ids (N, T) of the rules of left-most derivations, as int16"
_MASKS_FIX = "give masks (N, T, bytes) uint8 of these ids, packed by numpy.packbits along the last axis"


def read_prebuilt(prod: Path, masks: Path | None, pad_id: int | None, grammar: Grammar | None) -> Dataset:
    """The dataset of ids of any integer type, with their masks, or a grammar, or both.

    `pad_id`: the id after the end of a derivation: -1, or a rule; None detects it and adds a note. With a grammar,
    rows must be complete derivations. Duplicates are left out; split 80/10/10 by a hash of the row. Masks are read a
    block at a time. Raises InputError with the first invalid row and step.
    """
    ids = map_npy(prod)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise InputError(f"{prod}: {ids.dtype} {ids.shape}", _IDS_FIX)
    refuse_large(str(prod), 2 * ids.size)
    low, high = int(ids.min()), int(ids.max())
    if low < -1 or high >= MOST_RULES:
        raise InputError(f"{prod}: ids from {low} to {high}", f"rules are numbered from 0 to {MOST_RULES - 1}")
    packed = None if masks is None else map_npy(masks)
    if packed is not None:
        fits = packed.dtype == np.uint8 and packed.ndim == 3 and packed.shape[:2] == ids.shape
        if not fits or not 0 < 8 * packed.shape[2] < MOST_RULES + 8:
            raise InputError(f"{masks}: {packed.dtype} {packed.shape} for ids {ids.shape}", _MASKS_FIX)
    padding, notes = _padding(ids, packed, (low, high), pad_id, grammar, prod)
    table = None if packed is None else _read_masks(ids, packed, padding, str(masks))
    if grammar is not None:
        rules = grammar.rules
        if table is not None:
            _compare(table[0], grammar, str(masks))
    else:
        assert table is not None, "the settings require masks or a grammar"
        rules = _rules(table, padding, int(ids[0, 0]))
    own = ids.astype(np.int16)
    if padding is not None:
        own[ids == padding] = rules.padding
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
    return Dataset(prod.stem, own, split, rules=rules, grammar=grammar, origin=origin, notes=notes)


def _padding(
    ids: NDArray[Any],
    packed: NDArray[np.uint8] | None,
    limits: tuple[int, int],
    pad_id: int | None,
    grammar: Grammar | None,
    prod: Path,
) -> tuple[int | None, tuple[str, ...]]:
    """The id after the end of a derivation, None if there is none, and a note if it was detected."""
    low, high = limits
    if pad_id is not None:
        if low < 0 <= pad_id:
            raise InputError(f"data.pad_id: {pad_id}, but {prod} contains -1", "use --pad-id -1")
        return (pad_id if low <= pad_id <= high else None), ()
    found: int | None = -1
    if low >= 0 and grammar is not None:
        found = high if high == grammar.rules.padding else None
    elif low >= 0:  # the last rule, if nothing else follows it
        gaps = np.logical_or.accumulate(ids == high, axis=1) & (ids != high)
        ends = (ids[:, -1] == high).any()
        found = high if ends and not gaps.any() else None
        if ends and found is None and packed is not None:
            row, step = (int(place[0]) for place in np.nonzero(gaps))
            if np.unpackbits(packed[row, int((ids[row] == high).argmax())]).sum() == 1:  # alone in its mask
                what = f"rule {ids[row, step]} follows rule {high}, which looks like padding in other rows"
                fix = f"padding occurs at the end of rows only; if rule {high} is not padding, use --pad-id -1"
                raise InputError(f"{prod}: row {row}, step {step}: {what}", fix)
    if found is None and grammar is not None:
        return None, ()
    what = "no padding detected: derivations have the same length" if found is None else f"padding detected: id {found}"
    return found, (f"{what} (--pad-id overrides)",)


def _rules(masks: _Masks, padding: int | None, first: int) -> Rules:
    """Rules by their masks, symbols being numbered by their lowest rule; `first` rewrites the start symbol."""
    bits, count, after = masks
    last = padding if padding is not None and padding >= 0 else count if after is None else after
    lhs = np.full(max(count, last + 1), -1)
    symbols = 0
    for rule in range(count):
        if lhs[rule] < 0 and rule != last and bits[:, rule].any():
            lhs[np.flatnonzero(bits[bits[:, rule].argmax()])] = symbols
            symbols += 1
    return bare_rules(lhs.tolist(), last, max(int(lhs[first]), 0))


def _read_masks(ids: NDArray[Any], packed: NDArray[np.uint8], padding: int | None, where: str) -> _Masks:
    """The masks by rule. InputError unless they assign each rule to one left-hand side."""
    width = packed.shape[2]
    table = np.zeros((8 * width, width), np.uint8)
    seen = np.zeros(8 * width, bool)
    beyond = np.zeros(width, np.uint8)  # what masks after the ends contain
    rows = max(1, _BLOCK_BYTES // (width * ids.shape[1]))
    for begin in range(0, len(ids), rows):
        some, mask = np.asarray(ids[begin : begin + rows], np.int64), np.asarray(packed[begin : begin + rows])
        real = np.ones(some.shape, bool) if padding is None else some != padding
        beyond |= np.bitwise_or.reduce(mask[~real], axis=0, initial=0)
        known = real & (some < 8 * width)
        rule = np.where(known, some, 0)
        for one in np.unique(rule[known]).tolist():
            if not seen[one]:
                table[one] = mask[known & (rule == one)][0]
                seen[one] = True
        own = np.unpackbits(table, axis=1).diagonal()[rule] == 1  # the mask of a rule contains it
        wrong = real & ~(known & own & (table[rule] == mask).all(axis=2))
        if wrong.any():
            row, step = (int(place[0]) for place in np.nonzero(wrong))
            raise InputError(
                f"{where}: row {begin + row}, step {step}: not the mask of rule {some[row, step]}: it lacks the rule, "
                "or differs from its earlier mask",
                _MASKS_FIX,
            )
    bits = np.unpackbits(table, axis=1)
    if padding in set(np.flatnonzero(bits.any(axis=0)).tolist()):
        raise InputError(f"{where}: padding rule {padding} is in the masks of other rules", "give the right --pad-id")
    shared = np.flatnonzero(np.unpackbits(np.unique(table, axis=0), axis=1).sum(axis=0) > 1)
    if shared.size:
        fix = "a mask contains the rules with the left-hand side of its step"
        raise InputError(f"{where}: rule {shared[0]} is in two different masks", fix)
    within = np.bitwise_or.reduce(table, axis=0)
    alone = np.flatnonzero(np.unpackbits(beyond & ~within))
    count = int(np.flatnonzero(np.unpackbits(within | beyond)).max(initial=-1)) + 1
    return bits, count, int(alone[0]) if len(alone) == 1 else None


def _compare(bits: NDArray[np.uint8], grammar: Grammar, where: str) -> None:
    """InputError for masks that are not those of the grammar's left-hand sides; unusable rules are ignored."""
    lhs = np.array(grammar.rules.lhs)
    left = np.pad(lhs, (0, max(0, len(bits) - len(lhs))), constant_values=-1)  # by bit
    usable = np.flatnonzero(left[: len(bits)] >= 0)
    for rule in np.flatnonzero(bits.any(axis=1)).tolist():
        expected = np.flatnonzero(lhs == left[rule])
        if left[rule] < 0 or not np.array_equal(usable[bits[rule, usable] == 1], expected):
            raise InputError(
                f"{where}: the mask of rule {rule} is not that of {grammar.name}",
                "give the grammar that the masks were made with, its rules in the same order",
            )
