"""What the trainer needs of a corpus, and the corpus of grids that lies wholly on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from arcvae_cli.data.arrays import SPLITS, GridArrays
from arcvae_cli.data.recipes import load_grids
from arcvae_cli.data.symmetries import CELLS, COLOURS, SIDE, SYMMETRIES, gather_table
from arcvae_cli.models.base import Batch
from arcvae_cli.settings import DataSettings


class Corpus(Protocol):
    """Examples of discrete structures, in three splits, on a device.

    `positions`: what an example is made of, (16, 16) cells for a grid. `background`: the class that fills what is
    empty, or None. `unit`: what accuracy is counted in, as "pixel".
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def num_classes(self) -> int: ...  # noqa: D102
    @property
    def positions(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def background(self) -> int | None: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102

    def size(self, split: str) -> int:
        """Examples of a split."""

    def batch(self, split: str, indices: Tensor, augment: bool = False) -> Batch:
        """The examples of a split at `indices` (B,) int64, on the device."""

    def class_counts(self) -> Tensor:
        """How often each class stands in the training split: (num_classes,) int64."""


class GridCorpus:
    """Grids of 16x16 cells in ten colours.

    A batch is made on the device without a loop or a read-back. Augmentation draws, for each grid of the batch, one of
    the eight symmetries and a permutation of the colours 1-9 from torch's default generator of the device; where the
    corpus knows each grid's shape, the rectangle is transformed and stays top-left, else the canvas.
    """

    num_classes = COLOURS
    positions = (SIDE, SIDE)
    background = 0
    unit = "pixel"

    def __init__(self, arrays: GridArrays, device: torch.device | str = "cpu", augment: bool = True) -> None:
        self.name = arrays.name
        self.device = torch.device(device)
        self.augment = augment
        self.fingerprint = arrays.fingerprint()
        self.notes = arrays.notes
        self._grids: dict[str, Tensor] = {}  # (n, 256) uint8
        self._shapes: dict[str, Tensor | None] = {}  # (n, 2) int64
        self._moves: dict[str, Tensor | None] = {}  # (n,) int64, first row of the table for the grid's shape
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

    def batch(self, split: str, indices: Tensor, augment: bool = False) -> Batch:
        """Grids at `indices` (B,) int64 as x (B, 16, 16) int64, augmented if both this call and the corpus say so."""
        grids = self._grids[split].index_select(0, indices)  # (B, 256) uint8
        if augment and self.augment:
            moves = self._moves[split]
            return Batch(self._augmented(grids, None if moves is None else moves.index_select(0, indices)))
        return Batch(grids.long().view(-1, SIDE, SIDE))

    def _augmented(self, grids: Tensor, moves: Tensor | None) -> Tensor:
        count = len(grids)
        symmetry = torch.randint(SYMMETRIES, (count,), device=self.device)
        colours = torch.rand(count, COLOURS - 1, device=self.device).argsort(dim=1)
        return apply(grids, self._table, symmetry if moves is None else moves + symmetry, colours)


def apply(grids: Tensor, table: Tensor, row: Tensor, colours: Tensor) -> Tensor:
    """Move the cells of grids (B, 256) as the table's `row` (B,) says, and recolour 1-9 by `colours` (B, 9) of 0-8."""
    moved = grids.gather(1, table.index_select(0, row)).long()  # (B, 256)
    palette = torch.nn.functional.pad(colours + 1, (1, 0))  # (B, 10), black stays black
    return palette.gather(1, moved).view(-1, SIDE, SIDE)


def open_corpus(
    data: DataSettings, device: torch.device | str = "cpu", needs: Sequence[str] = ("train", "val")
) -> GridCorpus:
    """The corpus of grids that the settings name, on the device, within `data.limit`.

    Raises InputError for an unknown name, an unusable path, or an empty split among those that the caller `needs`.
    """
    arrays = load_grids(data)
    if data.limit is not None:
        arrays = arrays.limited(data.limit)
    arrays.require(needs)
    return GridCorpus(arrays, device, data.augment)
