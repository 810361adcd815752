"""Prebuilt derivations: an array of rule ids (N, T), and bit-packed masks of the rules allowed at each step.

Masks are written by `numpy.packbits`: byte b of a step has rules 8b to 8b + 7, the first in its highest bit. A mask
contains the rules with the left-hand side of its step, so that all masks which contain a rule are equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import Dataset, Origin, refuse_large, split_by_key
from arcvae_cli.data.derivations import first_of_each
from arcvae_cli.data.files import bare_rules, checked_ids, map_npy, reading, require
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import MOST_RULES, Grammar, Rules

_BLOCK_BYTES = 2**25  # of masks that are in memory at once


def read_prebuilt(prod: Path, masks: Path | None, pad_id: int | None, grammar: Grammar | None) -> Dataset:
    """The dataset of ids of any integer type, with their masks, or a grammar, or both.

    `pad_id`: the id after the end of a derivation: -1, or a rule; None detects it and adds a note. With a grammar,
    rows must be complete derivations. Duplicates are left out; split 80/10/10 by a hash of the row. Masks are read a
    block at a time. Raises InputError with the first invalid row and step.
    """
    ids = map_npy(prod)
    refuse_large(str(prod), 2 * ids.size)
    with reading(prod):
        require(ids.ndim == 2 and ids.dtype.kind in "iu" and ids.size, "ids", ids)
        if ids.min() < -1 or ids.max() >= MOST_RULES:
            raise ValueError(f"ids from {ids.min()} to {ids.max()}, not -1 to {MOST_RULES - 1}")
        packed = None if masks is None else map_npy(masks)
        if packed is not None:
            fits = packed.dtype == np.uint8 and packed.ndim == 3 and packed.shape[:2] == ids.shape
            require(fits and 0 < 8 * packed.shape[2] < MOST_RULES + 8, str(masks), packed)
        padding, notes = _padding(ids, packed, pad_id, grammar, prod)
        rules = None if grammar is None else grammar.rules
        if packed is not None:
            bits, last = _read_masks(ids, packed, padding)
            rules = rules or _rules(bits, last, int(ids[0, 0]))
        assert rules is not None, "the settings require masks or a grammar"
        own = checked_ids(ids if padding < 0 else np.where(ids == padding, rules.padding, ids), rules)
    keep = first_of_each(own)
    name = None if grammar is None else grammar.name
    origin = Origin(grammar=name, source=prod.name, lines=len(own), duplicates=len(own) - len(keep))
    own = own[keep]
    split = split_by_key([row.tobytes() for row in own])
    return Dataset(prod.stem, own, split, rules=rules, grammar=grammar, origin=origin, notes=notes)


def _padding(
    ids: NDArray[Any], packed: NDArray[np.uint8] | None, pad_id: int | None, grammar: Grammar | None, prod: Path
) -> tuple[int, tuple[str, ...]]:
    """The id after the end of a derivation, -1 if no rule is that, and a note if it was detected."""
    low, high = int(ids.min()), int(ids.max())
    if pad_id is not None:
        if low < 0 <= pad_id:
            raise InputError(f"data.pad_id: {pad_id}, but {prod} contains -1", "use --pad-id -1")
        return (pad_id if low <= pad_id <= high else -1), ()
    found = -1
    if low >= 0 and grammar is not None:
        found = high if high == grammar.rules.padding else -1
    elif low >= 0 and packed is not None:  # the last rule, if nothing follows it, or if it is alone in its mask
        ends = ids == high
        rows, gaps = np.flatnonzero(ends[:, -1]), np.logical_or.accumulate(ends, axis=1) & ~ends
        found = high if rows.size and (not gaps.any() or np.unpackbits(packed[rows[0], -1]).sum() == 1) else -1
    if low >= 0 > found:
        return found, ("no padding detected (--pad-id overrides)",) * (grammar is None)
    return found, (f"padding detected: id {found} (--pad-id overrides)",)


def _rules(bits: NDArray[np.uint8], padding: int, first: int) -> Rules:
    """Rules by their masks, symbols being numbered by their lowest rule; `first` rewrites the start symbol."""
    lhs = np.full(max(int(np.flatnonzero(bits.any(axis=0)).max(initial=-1)), padding) + 1, -1)
    symbols = 0
    for rule in np.flatnonzero(bits.any(axis=0)).tolist():
        if lhs[rule] < 0:
            lhs[np.flatnonzero(bits[bits[:, rule].argmax()])] = symbols
            symbols += 1
    return bare_rules(lhs.tolist(), padding, max(int(lhs[first]), 0))


def _read_masks(ids: NDArray[Any], packed: NDArray[np.uint8], padding: int) -> tuple[NDArray[np.uint8], int]:
    """The mask of each rule (rules, rules), zeros for unseen ones, and the padding rule.

    That is the rule which only the masks after the ends contain, if there is one, else one after all others.
    ValueError unless the masks assign each rule to one left-hand side.
    """
    width = packed.shape[2]
    table = np.zeros((8 * width, width), np.uint8)
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
    symbols = np.unpackbits(np.unique(table, axis=0), axis=1).sum(axis=0)  # masks that contain each rule
    symbols[padding] += padding >= 0
    if symbols.max() > 1:
        raise ValueError(f"rule {int(symbols.argmax())} is in two different masks (the padding rule is --pad-id)")
    within = np.bitwise_or.reduce(table, axis=0)
    alone = np.flatnonzero(np.unpackbits(beyond & ~within)).tolist()
    after = int(np.flatnonzero(np.unpackbits(within | beyond)).max(initial=-1)) + 1
    return np.unpackbits(table, axis=1), padding if padding >= 0 else alone[0] if len(alone) == 1 else after
