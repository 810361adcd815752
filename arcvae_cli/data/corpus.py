"""Corpora on the device: grids and derivations as batches for training and evaluation."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.conditions import batch_conditions, columns, measure
from arcvae_cli.data.arrays import SPLITS, Dataset
from arcvae_cli.data.corpora import load_arrays
from arcvae_cli.data.strings import fitted
from arcvae_cli.data.symmetries import SYMMETRIES, inside, sources
from arcvae_cli.errors import InputError
from arcvae_cli.files import size
from arcvae_cli.grammar import Rules, parse_grammar
from arcvae_cli.models.base import Batch
from arcvae_cli.models.grammar import Structure
from arcvae_cli.settings import DataSettings

DEFAULTS = DataSettings()
SHARE = 0.5  # of a GPU's free memory that examples may take; the rest is for the model


class Examples:
    """The examples of each split on the device, as a corpus of either kind has them.

    `streamed`: they do not fit there, so that the training split stays on the host and a batch is copied at a time.
    """

    num_classes: int
    augment = False  # whether training batches are augmented
    rules: Rules | None = None

    def __init__(self, arrays: Dataset, device: torch.device | str) -> None:
        self.name, self.notes, self.device = arrays.name, arrays.notes, torch.device(device)
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else math.inf
        self.streamed = arrays.x.nbytes > SHARE * free
        if self.streamed:
            self.notes += (f"{size(arrays.x.nbytes)} of examples, streamed: {self.device} has {size(free)} free",)
        places = dict.fromkeys(SPLITS, self.device) | ({"train": torch.device("cpu")} if self.streamed else {})
        self._x = {split: torch.from_numpy(arrays.x[arrays.rows(split)]).to(place) for split, place in places.items()}
        self._shapes: dict[str, Tensor] = {}  # (n, 2) int64, where the canvas is not the grid
        self._identity = ""  # of what the examples are made of

    def size(self, split: str) -> int:
        return len(self._x[split])

    def lengths(self) -> Tensor | None:
        """Positions of each training example, where they differ."""
        return None

    def take(self, split: str, indices: Tensor) -> Tensor:
        """The examples at `indices` (B,) on the device as they are stored; if streamed, with a CPU-GPU sync."""
        x = self._x[split]
        return x.index_select(0, indices.to(x.device)).to(self.device)

    def gather(self, indices: Tensor, into: Tensor) -> None:
        """Copy the training examples at `indices` (B,), on the host, into a tensor of the device without a sync."""
        x = self._x["train"]
        # PyTorch reuses pinned memory once the copy from it is done, which the host does not wait for
        host = torch.empty(into.shape, dtype=into.dtype, pin_memory=into.is_cuda)
        into.copy_(torch.index_select(x, 0, indices, out=host), non_blocking=True)

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
    """Grids on a canvas, all on the device; batches are made there without a sync.

    Augmentation draws a symmetry (of the grid's rectangle, or of the canvas if shapes are unknown; of eight, or of the
    four that keep the sides where the others do not fit) and a permutation of the classes, but for the background and
    the outside, from torch's default generator. Conditions are those of the grids as augmented.
    """

    kind, unit = "grids", "pixel"  # `unit`: of accuracies

    def __init__(self, arrays: Dataset, device: torch.device | str = "cpu", data: DataSettings = DEFAULTS) -> None:
        super().__init__(arrays, device)
        self.structure = canvas = arrays.canvas
        self.num_classes, self.positions, self.background = canvas.classes, canvas.shape, canvas.background
        self.mean_positions = float(canvas.cells)  # of the loss, on average over the training split
        self.augment = canvas.arc if data.augment is None else data.augment
        self._turns, self._identity = data.symmetries, "" if canvas == ARC else canvas.text()
        self._objects: dict[str, Tensor] = {}  # (n,) int64, how many: augmentation keeps them
        known, kinds = np.array([canvas.shape]), np.zeros(len(arrays.x), np.int64)
        if arrays.shape is not None:
            known, kinds = np.unique(arrays.shape, axis=0, return_inverse=True)
            shape = torch.from_numpy(arrays.shape.astype(np.int64))
            self._shapes = {split: shape[arrays.rows(split)].to(self.device) for split in SPLITS}
        # (n,) the row of each grid's shape in `known`
        self._kinds = {split: torch.from_numpy(kinds.ravel()[arrays.rows(split)]).to(self.device) for split in SPLITS}
        # (shapes * 8, cells) int16: 1 MB for 256 shapes of ARC
        turned = [sources(np.tile(shape, (SYMMETRIES, 1)), np.arange(SYMMETRIES), canvas) for shape in known]
        self._table = torch.from_numpy(np.concatenate(turned, dtype=np.int16)).to(self.device)
        # (shapes, cells), where accuracies count the grid and not what is around it
        self._inside = torch.from_numpy(inside(known, canvas)).to(self.device) if arrays.count_grid else None
        moving = canvas.content if data.permute_classes else ()
        self._moving = torch.tensor(moving, dtype=torch.int64, device=self.device)
        self._classes = torch.arange(canvas.classes, device=self.device)

    def grids(self, split: str) -> Tensor:
        """All grids of a split: (n, H, W) uint8; of the training split on the host if it is streamed."""
        return self._x[split]

    def shapes(self, split: str) -> Tensor | None:
        """Height and width of each grid of a split, (n, 2) int64, or None where the canvas is the grid."""
        return self._shapes.get(split)

    def batch(
        self, split: str, indices: Tensor, augment: bool = False, conditions: bool = False, taken: Tensor | None = None
    ) -> Batch:
        """Grids at `indices` (B,) int64 as x (B, H, W) int64; `taken`: what `take` would give, if already there.

        The first call with `conditions` measures the whole split on the host: a second for 100,000 grids.
        """
        x = (self.take(split, indices) if taken is None else taken).flatten(1)  # (B, cells) uint8
        kinds = self._kinds[split].index_select(0, indices)
        scored = None if self._inside is None else self._inside.index_select(0, kinds)
        if augment and self._turns:
            symmetry = torch.randint(SYMMETRIES, (len(x),), device=self.device)
            source = self._table.index_select(0, kinds * SYMMETRIES + symmetry).long()
            x = x.gather(1, source)
            scored = None if scored is None else scored.flatten(1).gather(1, source).view_as(scored)
        x = x.long()
        if augment and len(self._moving) > 1:
            order = torch.rand(len(x), len(self._moving), device=self.device).argsort(dim=1)
            palette = self._classes.expand(len(x), -1).index_copy(1, self._moving, self._moving[order])  # (B, classes)
            x = palette.gather(1, x)
        x = x.view(-1, *self.positions)
        if not conditions:
            return Batch(x, scored=scored)
        if split not in self._objects:
            measured = measure(self.grids(split).cpu().numpy(), self.structure)
            self._objects[split] = torch.from_numpy(measured[:, columns(self.structure)["objects"]]).to(self.device)
        objects = self._objects[split].index_select(0, indices)
        return Batch(x, conditions=batch_conditions(x, objects, self.structure), scored=scored)


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
        """All derivations of a split: (n, T) int16; of the training split on the host if it is streamed."""
        return self._x[split]

    def lengths(self) -> Tensor:
        """(n,) rules of each training derivation, on the host."""
        parts = torch.split(self._x["train"], 2**16)
        return torch.cat([(part != self.rules.padding).sum(dim=1) for part in parts]).cpu()

    def batch(
        self, split: str, indices: Tensor, augment: bool = False, conditions: bool = False, taken: Tensor | None = None
    ) -> Batch:
        """Derivations at `indices` (B,) int64 as x (B, T) int64, with valid (B, T) False for padding."""
        del augment, conditions  # which grids alone have
        x = (self.take(split, indices) if taken is None else taken).long()
        return Batch(x, valid=x != self.rules.padding)


Corpus = GridCorpus | StringCorpus


def open_corpus(
    data: DataSettings,
    device: torch.device | str = "cpu",
    needs: Sequence[str] = ("train", "val"),
    structure: Canvas | Structure | None = None,
    tell: Callable[[int, int], None] | None = None,
    arrays: Dataset | None = None,
) -> Corpus:
    """The corpus that the settings name, on the device, within `data.limit`.

    `structure`: of a checkpoint; smaller grids and shorter derivations are padded with a note, longer derivations left
    out with a note, larger grids an error. `tell`: see load_arrays. `arrays`: if loaded already. InputError for
    unusable input or an empty split in `needs`.
    """
    if arrays is None:
        text = structure.rules.text if isinstance(structure, Structure) else None
        known = None if text is None else parse_grammar(text, "the checkpoint's grammar")
        model = structure if isinstance(structure, Canvas) else None
        arrays = load_arrays(data, known, model, tell=tell)
    if data.limit is not None:
        arrays = arrays.limited(data.limit)
    if isinstance(structure, Structure) and arrays.kind == "strings":
        arrays = fitted(arrays, structure.rules, structure.length)
    if empty := [split for split in needs if not arrays.rows(split).size]:
        raise InputError(f"{arrays.name}: the {empty[0]} split is empty", "add examples to it, or use another")
    return GridCorpus(arrays, device, data) if arrays.kind == "grids" else StringCorpus(arrays, device)
