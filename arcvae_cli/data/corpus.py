"""Corpora on the device: grids and derivations as batches for training and evaluation."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.canvas import Canvas
from arcvae_cli.conditions import batch_conditions, columns, measure
from arcvae_cli.data.arrays import SPLITS, Dataset
from arcvae_cli.data.corpora import load_arrays
from arcvae_cli.data.strings import fitted
from arcvae_cli.data.symmetries import CELLS, COLOURS, SIDE, SYMMETRIES, gather_table
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules, parse_grammar
from arcvae_cli.models.base import Batch
from arcvae_cli.models.grammar import Structure
from arcvae_cli.settings import DataSettings


class Examples:
    """The examples of each split on the device, as a corpus of either kind has them."""

    num_classes: int
    rules: Rules | None = None

    def __init__(self, arrays: Dataset, device: torch.device | str) -> None:
        self.name, self.notes, self.device = arrays.name, arrays.notes, torch.device(device)
        self._x = {split: torch.from_numpy(arrays.x[arrays.rows(split)]).to(self.device) for split in SPLITS}
        self._shapes: dict[str, Tensor] = {}  # (n, 2) int64, where the canvas is not the grid
        self._identity = ""  # of what the examples are made of

    def size(self, split: str) -> int:
        return len(self._x[split])

    def extents(self, split: str, indices: Any) -> NDArray[np.uint8] | None:
        """Height and width of the grids at `indices` (B,) on the host, (B, 2), or None where the canvas is the grid."""
        if split not in self._shapes:
            return None
        return self._shapes[split][torch.as_tensor(indices)].cpu().numpy().astype(np.uint8)

    def class_counts(self) -> Tensor:
        """How often each class occurs in the training split, without padding: (classes,) int64."""
        counts = self._x["train"].flatten().bincount(minlength=self.num_classes)
        if self.rules is not None:
            counts[self.rules.padding] = 0
        return counts

    def fingerprint(self) -> str:
        """32 hexadecimal digits of the contents."""
        digest = hashlib.blake2b(self._identity.encode(), digest_size=16)
        for tensor in (*self._x.values(), *self._shapes.values()):
            digest.update(repr(tuple(tensor.flatten(1).shape)).encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


class GridCorpus(Examples):
    """Grids of 16x16 cells in ten colours, all on the device; batches are made there without a sync.

    Augmentation draws one of the eight symmetries (of the grid's rectangle, or of the canvas if shapes are unknown) and
    a permutation of the colours 1-9 from torch's default generator. Conditions are those of the grids as augmented.
    """

    kind, unit = "grids", "pixel"  # `unit`: of accuracies
    num_classes, positions = COLOURS, (SIDE, SIDE)
    background = 0  # the class that fills empty cells
    mean_positions = float(CELLS)  # positions that count, on average over the training split

    def __init__(self, arrays: Dataset, device: torch.device | str = "cpu") -> None:
        super().__init__(arrays, device)
        self.structure = arrays.canvas
        self._objects: dict[str, Tensor] = {}  # (n,) int64, how many: augmentation keeps them
        table = gather_table()[-1, -1]
        if arrays.shape is not None:
            shape, table = torch.from_numpy(arrays.shape.astype(np.int64)), gather_table()
            self._shapes = {split: shape[arrays.rows(split)].to(self.device) for split in SPLITS}
        # (shapes * 8, 256) int64, which gather needs: 4 MB, or 16 kB if only the canvas is transformed
        self._table = torch.from_numpy(table.reshape(-1, CELLS).astype(np.int64)).to(self.device)

    def grids(self, split: str) -> Tensor:
        """All grids of a split: (n, 16, 16) uint8."""
        return self._x[split]

    def shapes(self, split: str) -> Tensor | None:
        """Height and width of each grid of a split, (n, 2) int64, or None where the canvas is the grid."""
        return self._shapes.get(split)

    def batch(self, split: str, indices: Tensor, augment: bool = False, conditions: bool = False) -> Batch:
        """Grids at `indices` (B,) int64 as x (B, 16, 16) int64.

        The first call with `conditions` measures the whole split on the host: a second for 100,000 grids.
        """
        x = self._x[split].flatten(1).index_select(0, indices)  # (B, 256) uint8
        if augment:
            row = symmetry = torch.randint(SYMMETRIES, (len(x),), device=self.device)
            colours = torch.rand(len(x), COLOURS - 1, device=self.device).argsort(dim=1)
            if self._shapes:
                height, width = self._shapes[split].index_select(0, indices).unbind(1)
                row = ((height - 1) * SIDE + width - 1) * SYMMETRIES + symmetry
            moved = x.gather(1, self._table.index_select(0, row)).long()
            palette = torch.nn.functional.pad(colours + 1, (1, 0))  # (B, 10), black stays black
            x = palette.gather(1, moved)
        x = x.long().view(-1, SIDE, SIDE)
        if not conditions:
            return Batch(x)
        if split not in self._objects:
            measured = measure(self.grids(split).cpu().numpy(), self.structure)
            column = columns(self.structure).get("objects", 0)  # without a background they do not matter
            self._objects[split] = torch.from_numpy(measured[:, column]).to(self.device)
        objects = self._objects[split].index_select(0, indices)
        return Batch(x, conditions=batch_conditions(x, objects, self.structure))


class StringCorpus(Examples):
    """Left-most derivations of a grammar on the device: `length` (T) rule ids each, the padding rule after their ends.

    `entropy`: nats, of the distribution of the strings, if known.
    """

    kind, unit = "strings", "token"
    background = None

    def __init__(self, arrays: Dataset, device: torch.device | str = "cpu") -> None:
        assert arrays.rules is not None
        super().__init__(arrays, device)  # (n, T) int16: an eighth of the memory of a batch
        self.rules: Rules = arrays.rules
        self._identity = repr((self.rules.text, self.rules.lhs, self.rules.padding))
        self.num_classes, self.entropy = len(arrays.rules), arrays.origin.entropy
        self.length: int = arrays.x.shape[1]
        self.positions, self.structure = (self.length,), Structure(self.rules, self.length)
        self.mean_positions = self.class_counts().sum().item() / max(1, self.size("train"))

    def ids(self, split: str) -> Tensor:
        """All derivations of a split: (n, T) int16."""
        return self._x[split]

    def batch(self, split: str, indices: Tensor, augment: bool = False, conditions: bool = False) -> Batch:  # noqa: ARG002
        """Derivations at `indices` (B,) int64 as x (B, T) int64, with valid (B, T) False for padding."""
        x = self._x[split].index_select(0, indices).long()
        return Batch(x, valid=x != self.rules.padding)


Corpus = GridCorpus | StringCorpus


def open_corpus(
    data: DataSettings,
    device: torch.device | str = "cpu",
    needs: Sequence[str] = ("train", "val"),
    structure: Canvas | Structure | None = None,
    tell: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    arrays: Dataset | None = None,
) -> Corpus:
    """The corpus that the settings name, on the device, within `data.limit`.

    `structure`: of a checkpoint; shorter derivations are padded, longer ones left out with a note. `tell`, `say`: see
    load_arrays. `arrays`: if loaded already. InputError for unusable input or an empty split in `needs`.
    """
    if arrays is None:
        text = structure.rules.text if isinstance(structure, Structure) else None
        known = None if text is None else parse_grammar(text, "the checkpoint's grammar")
        arrays = load_arrays(data, known, tell=tell, say=say)
    if data.limit is not None:
        arrays = arrays.limited(data.limit)
    if isinstance(structure, Structure) and arrays.kind == "strings":
        arrays = fitted(arrays, structure.rules, structure.length)
    if empty := [split for split in needs if not arrays.rows(split).size]:
        raise InputError(f"{arrays.name}: the {empty[0]} split is empty", "add examples to it, or use another")
    return GridCorpus(arrays, device) if arrays.kind == "grids" else StringCorpus(arrays, device)
