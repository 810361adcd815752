"""Prebuilt derivations: an array of rule ids (N, T), and bit-packed masks of the rules allowed at each step.

Masks are written by `numpy.packbits`, the first rule in the highest bit. A mask contains the rules with the left-hand
side of its step, so that all masks which contain a rule are equal.
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

    `pad_id`: the id after the end of a derivation: -1, or a rule; None detects it and adds a note. Duplicates are left
    out; split 80/10/10 by a hash of the row. InputError with the first invalid row and step.
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
    keep = first_of_each(own)
    origin = Origin(
        "ready", grammar.name if grammar else None, prod.name, lines=len(own), duplicates=len(own) - len(keep)
    )
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
