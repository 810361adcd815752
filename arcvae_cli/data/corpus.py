"""What the trainer needs of a corpus, and the two kinds, of grids and of derivations, that lie wholly on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from arcvae_cli.conditions import PLACE, attributes
from arcvae_cli.data.arrays import SPLITS, GridArrays
from arcvae_cli.data.recipes import Arrays, Reading, load_arrays
from arcvae_cli.data.strings import StringArrays, fitted, written
from arcvae_cli.data.symmetries import CELLS, COLOURS, SIDE, SYMMETRIES, gather_table
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules, parse_grammar
from arcvae_cli.models.base import Batch
from arcvae_cli.settings import DataSettings

FORM = ("objects", "symmetry_lr", "symmetry_ud")
"""The attributes that the host measures, once: augmentation leaves them as they are, or swaps the two mirrors."""


class Corpus(Protocol):
    """Examples of discrete structures, in three splits, on a device.

    `positions`: what an example is made of, (16, 16) cells for a grid. `background`: the class that fills what is
    empty, or None. `unit`: what accuracy is counted in, as "pixel". `rules`: those that the classes are ids of, or
    None. `mean_positions`: how many positions of an example count, on average over the training split.
    """

    kind: str
    device: torch.device

    @property
    def name(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def positions(self) -> tuple[int, ...]: ...
    @property
    def background(self) -> int | None: ...
    @property
    def unit(self) -> str: ...
    @property
    def rules(self) -> Rules | None: ...
    @property
    def mean_positions(self) -> float: ...

    def size(self, split: str) -> int:
        """Examples of a split."""

    def batch(self, split: str, indices: Tensor, augment: bool = False, conditions: bool = False) -> Batch:
        """The examples of a split at `indices` (B,) int64, on the device, with all their `conditions` if asked."""

    def class_counts(self) -> Tensor:
        """How often each class stands in the training split: (num_classes,) int64."""

    def fingerprint(self) -> str:
        """A digest of all examples in their order: another corpus has another one."""


class GridCorpus:
    """Grids of 16x16 cells in ten colours.

    A batch is made on the device without a loop or a read-back. Augmentation draws, for each grid of the batch, one of
    the eight symmetries and a permutation of the colours 1-9 from torch's default generator of the device; where the
    corpus knows each grid's shape, the rectangle is transformed and stays top-left, else the canvas. Conditions are
    those of the grids as augmented.
    """

    kind = "grids"
    num_classes = COLOURS
    positions = (SIDE, SIDE)
    background = 0
    unit = "pixel"
    rules = None
    mean_positions = float(CELLS)

    def __init__(self, arrays: GridArrays, device: torch.device | str = "cpu", augment: bool = True) -> None:
        self.name = arrays.name
        self.device = torch.device(device)
        self.augment = augment
        self.notes = arrays.notes
        self._grids: dict[str, Tensor] = {}  # (n, 256) uint8
        self._shapes: dict[str, Tensor | None] = {}  # (n, 2) int64
        self._moves: dict[str, Tensor | None] = {}  # (n,) int64, first row of the table for the grid's shape
        self._forms: dict[str, Tensor] = {}  # (n, 3) int64, what `forms` gives
        for split in SPLITS:
            rows = arrays.rows(split)
            self._grids[split] = torch.from_numpy(arrays.grids[rows].reshape(-1, CELLS)).to(self.device)
            self._shapes[split] = self._moves[split] = None
            if arrays.shape is not None:
                shape = torch.from_numpy(arrays.shape[rows].astype(np.int64)).to(self.device)
                self._shapes[split] = shape
                self._moves[split] = ((shape[:, 0] - 1) * SIDE + shape[:, 1] - 1) * SYMMETRIES
        table = gather_table() if arrays.shape is not None else gather_table()[-1, -1]
        # (shapes * 8, 256) int64, which gather asks for: 4 MB, or 16 kB where only the canvas is turned
        self._table = torch.from_numpy(table.reshape(-1, CELLS).astype(np.int64)).to(self.device)

    def size(self, split: str) -> int:
        """Grids of a split."""
        return len(self._grids[split])

    def grids(self, split: str) -> Tensor:
        """All grids of a split: (n, 16, 16) uint8."""
        return self._grids[split].view(-1, SIDE, SIDE)

    def shapes(self, split: str) -> Tensor | None:
        """Height and width of each grid of a split, (n, 2) int64, or None where the canvas is the grid."""
        return self._shapes[split]

    def class_counts(self) -> Tensor:
        """Cells of each colour in the training split: (10,) int64."""
        cells = self._grids["train"]
        return torch.stack([(cells == colour).sum() for colour in range(COLOURS)])

    def fingerprint(self) -> str:
        """A digest of all grids and their shapes in their order."""
        shapes = [shape for shape in self._shapes.values() if shape is not None]
        return digest((*self._grids.values(), *shapes))

    def batch(self, split: str, indices: Tensor, augment: bool = False, conditions: bool = False) -> Batch:
        """Grids at `indices` (B,) int64 as x (B, 16, 16) int64, augmented if both this call and the corpus say so.

        The first call with `conditions` measures the whole split on the host: a second for 100,000 grids.
        """
        grids = self._grids[split].index_select(0, indices)  # (B, 256) uint8
        symmetry = None
        if augment and self.augment:
            moves = self._moves[split]
            symmetry = torch.randint(SYMMETRIES, (len(grids),), device=self.device)
            colours = torch.rand(len(grids), COLOURS - 1, device=self.device).argsort(dim=1)
            row = symmetry if moves is None else moves.index_select(0, indices) + symmetry
            x = apply(grids, self._table, row, colours)
        else:
            x = grids.long().view(-1, SIDE, SIDE)
        if not conditions:
            return Batch(x)
        return Batch(x, conditions=conditions_of(x, self._form(split).index_select(0, indices), symmetry))

    def _form(self, split: str) -> Tensor:
        """Of each grid of a split, as it is stored, what `FORM` names: (n, 3) int64."""
        if split not in self._forms:
            values = attributes(self.grids(split).cpu().numpy())[:, [PLACE[name] for name in FORM]]
            self._forms[split] = torch.from_numpy(values).to(self.device)
        return self._forms[split]


class DerivationCorpus:
    """Left-most derivations of a grammar: `length` (T) rule ids an example, the padding rule after the end of each.

    `grammar` is None where only ids and masks are known. `entropy`: in nats, of the distribution that the strings are
    drawn from, where it is known. There is no augmentation, and there are no conditions.
    """

    kind = "strings"
    background = None
    unit = "token"

    def __init__(self, arrays: StringArrays, device: torch.device | str = "cpu") -> None:
        self.name = arrays.name
        self.device = torch.device(device)
        self.rules: Rules = arrays.rules
        self.grammar = arrays.grammar
        self.num_classes = len(arrays.rules)
        self.length: int = arrays.ids.shape[1]
        self.positions = (self.length,)
        self.entropy = arrays.origin.entropy
        self.notes = arrays.notes
        self._ids: dict[str, Tensor] = {}  # (n, T) int16: an eighth of what a batch of them takes
        for split in SPLITS:
            self._ids[split] = torch.from_numpy(arrays.ids[arrays.rows(split)]).to(self.device)
        train = arrays.ids[arrays.rows("train")]
        counting = train[train != arrays.rules.padding]
        self._class_counts = np.bincount(counting, minlength=self.num_classes)
        self.mean_positions = len(counting) / len(train) if len(train) else float(arrays.ids.shape[1])

    def size(self, split: str) -> int:
        """Derivations of a split."""
        return len(self._ids[split])

    def ids(self, split: str) -> Tensor:
        """All derivations of a split: (n, T) int16."""
        return self._ids[split]

    def strings(self, split: str, indices: Sequence[int] | None = None) -> list[str]:
        """The strings of a split, or of its derivations at `indices`. Raises ValueError without a grammar."""
        if self.grammar is None:
            raise ValueError("strings take a grammar")
        ids = self._ids[split] if indices is None else self._ids[split][list(indices)]
        return [written(self.grammar, one) for one in ids.tolist()]

    def class_counts(self) -> Tensor:
        """How often each rule stands in the training split, padding left out: (P,) int64."""
        return torch.from_numpy(self._class_counts).to(self.device)

    def fingerprint(self) -> str:
        """A digest of all derivations in their order, and of what their ids stand for."""
        return digest(self._ids.values(), repr((self.rules.text, self.rules.lhs, self.rules.padding)))

    def batch(self, split: str, indices: Tensor, augment: bool = False, conditions: bool = False) -> Batch:  # noqa: ARG002
        """Derivations at `indices` (B,) int64 as x (B, T) int64, with what is no padding as valid (B, T)."""
        x = self._ids[split].index_select(0, indices).long()
        return Batch(x, valid=x != self.rules.padding)


def digest(tensors: Iterable[Tensor], text: str = "") -> str:
    """32 hexadecimal digits of the contents and sizes of tensors in this order, and of a text."""
    sum_ = hashlib.blake2b(text.encode(), digest_size=16)
    for tensor in tensors:
        sum_.update(repr(tuple(tensor.shape)).encode())
        sum_.update(tensor.contiguous().cpu().numpy().data)
    return sum_.hexdigest()


def apply(grids: Tensor, table: Tensor, row: Tensor, colours: Tensor) -> Tensor:
    """Move the cells of grids (B, 256) as the table's `row` (B,) says, and recolour 1-9 by `colours` (B, 9) of 0-8."""
    moved = grids.gather(1, table.index_select(0, row)).long()  # (B, 256)
    palette = torch.nn.functional.pad(colours + 1, (1, 0))  # (B, 10), black stays black
    return palette.gather(1, moved).view(-1, SIDE, SIDE)


def conditions_of(x: Tensor, form: Tensor, symmetry: Tensor | None) -> Tensor:
    """Attributes (B, A) int64 of grids x (B, 16, 16) int64, in the order of `conditions.ATTRIBUTES`.

    `form`: (B, 3) their attributes `FORM` before they were turned by `symmetry` (B,), None for not at all. Whether a
    colour occurs, how many do and how far they reach is counted in x, without a loop or a read-back.
    """
    lit = x > 0
    line = torch.arange(1, SIDE + 1, device=x.device)
    height, width = ((lit.any(dim=across) * line).amax(dim=1, keepdim=True) for across in (2, 1))
    cells = x.flatten(1)
    present = torch.zeros(len(x), COLOURS, dtype=torch.int64, device=x.device).scatter_(1, cells, 1)[:, 1:]
    black = lit.flatten(1).sum(dim=1, keepdim=True) < height * width
    if symmetry is not None:
        swapped = torch.cat([form[:, :1], form[:, 1:].flip(1)], dim=1)
        form = torch.where((symmetry % 2 == 1)[:, None], swapped, form)  # an odd number of quarter turns
    return torch.cat([height, width, present.sum(dim=1, keepdim=True), black.long(), present, form], dim=1)


def open_corpus(
    data: DataSettings,
    device: torch.device | str = "cpu",
    needs: Sequence[str] = ("train", "val"),
    rules: Rules | None = None,
    length: int | None = None,
    tell: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    arrays: Arrays | None = None,
) -> GridCorpus | DerivationCorpus:
    """The corpus that the settings name, on the device, within `data.limit`.

    `rules` and `length` are those of a checkpoint of a grammar model, which the corpus has to fit: it parses strings
    that come without a grammar, shorter derivations are padded to it, longer ones left out with a note. `tell` hears
    how many lines of how many are parsed, and `say` what takes long, before it does. `arrays`: what the settings name,
    where it was read before.

    Raises InputError for an unknown name, an unusable path, another grammar than `rules`, or an empty split among
    those that the caller `needs`.
    """
    if arrays is None:
        known = None if rules is None or rules.text is None else parse_grammar(rules.text, "the checkpoint's grammar")
        arrays = load_arrays(data, Reading(grammar=known, tell=tell, say=say))
    if data.limit is not None:
        arrays = arrays.limited(data.limit)
    if isinstance(arrays, GridArrays):
        if rules is not None:
            raise InputError(f"{arrays.name}: holds grids, and the model is of derivations", "Give strings, or ids.")
        arrays.require(needs)
        return GridCorpus(arrays, device, data.augment)
    if rules is not None:
        arrays = fitted(arrays, rules, length, needs)
    arrays.require(needs)
    return DerivationCorpus(arrays, device)
