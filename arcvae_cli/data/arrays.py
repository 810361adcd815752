"""One dataset for grids and strings as plain arrays: how its examples are split, and what it consists of."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.data.symmetries import COLOURS, SYMMETRIES, Grids, inside, sources
from arcvae_cli.errors import InputError
from arcvae_cli.files import size
from arcvae_cli.grammar import Grammar, Rules
from arcvae_cli.settings import DataSettings

SPLITS = ("train", "val", "test")
_HASHED = 4096  # grids at once
ARRAY_BYTES = 3 * 2**28  # largest size of the arrays of a file or a dataset, checked before allocation


@dataclass(frozen=True)
class Origin:
    """How derivations were obtained, by which parser and for what reason, and counts of lines."""

    how: str = "ready"  # or drawn, enumerated, parsed
    grammar: str | None = None
    source: str | None = None
    parser: str | None = None
    reason: str | None = None
    lines: int = 0
    failed: int = 0
    too_long: int = 0
    ambiguous: int = 0  # lines with several derivations
    duplicates: int = 0
    entropy: float | None = None  # nats, of the distribution that strings are drawn from


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples with their splits: grids, or derivations of a grammar where `rules` are given.

    `x`: (N, H, W) uint8 classes, smaller grids top-left on the canvas; or (N, T) int16 left-most derivations, the
    padding rule after their ends. `split`: (N,) uint8 index into SPLITS. `shape`: (N, 2) uint8 height and width of
    grids, None if the canvas is the grid. `task`: (N,) the task or group of each grid. `grammar`: None if only ids and
    masks are known. `notes`: how the data was read.
    """

    name: str
    x: NDArray[Any]
    split: NDArray[np.uint8]
    shape: Grids | None = None
    task: NDArray[np.str_] | None = None
    rules: Rules | None = None
    grammar: Grammar | None = None
    origin: Origin = Origin()
    canvas: Canvas = ARC  # of grids
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["grids", "strings"]:
        return "grids" if self.rules is None else "strings"

    @property
    def count_grid(self) -> bool:
        """Whether accuracies count the cells of each grid alone; on the canvas of ARC they count all."""
        return self.shape is not None and self.canvas != ARC

    def fingerprint(self) -> str:
        """SHA-256 of the content in hexadecimal, whatever the file, name or string width."""
        digest = hashlib.sha256(f"{self.x.shape}".encode())
        digest.update(self.x.tobytes() + self.split.tobytes())
        if self.rules is None:
            digest.update(b"shape" if self.shape is None else self.shape.tobytes())
            digest.update(b"task" if self.task is None else "\n".join(self.task.tolist()).encode())
            digest.update(b"" if self.canvas == ARC else self.canvas.text().encode())
        else:
            digest.update(f"{self.rules.lhs} {self.rules.rhs} {self.rules.start} {self.rules.padding}".encode())
        if self.grammar is not None:
            digest.update(repr((self.grammar.separator, list(map(str, self.grammar.productions)))).encode())
        return digest.hexdigest()

    def inside(self) -> NDArray[np.bool_]:
        """(N, H, W) whether each cell is within its grid."""
        shape = np.array([self.canvas.shape]) if self.shape is None else self.shape
        return np.broadcast_to(inside(shape, self.canvas), self.x.shape)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of a split, ascending: (n,)."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def only(self, rows: NDArray[np.int64]) -> "Dataset":
        shape = None if self.shape is None else self.shape[rows]
        task = None if self.task is None else self.task[rows]
        return replace(self, x=self.x[rows], split=self.split[rows], shape=shape, task=task)

    def limited(self, limit: int) -> "Dataset":
        """At most `limit` training examples, an eighth for validation, and the test split; nested and deterministic."""
        kept = [self.rows("test")]
        for split, most in (("train", limit), ("val", max(1, limit // 8))):
            kept.append(np.random.RandomState(0).permutation(self.rows(split))[:most])
        return self.only(np.sort(np.concatenate(kept)))

    def strings(self, rows: NDArray[np.int64]) -> list[str]:
        assert self.grammar is not None, "writing strings needs a grammar"
        return [written(self.grammar, ids) for ids in self.x[rows].tolist()]


def written(grammar: Grammar, ids: Sequence[int]) -> str:
    """The string of a complete derivation."""
    string = grammar.write(ids)
    assert string is not None, "a dataset holds complete derivations only"
    return string


def padded(grids: Sequence[NDArray[Any]], canvas: Canvas = ARC) -> tuple[Grids, Grids]:
    """Grids (H, W), or stacks of them (n, H, W), top-left on canvases (N, *canvas.shape), and their shapes (N, 2)."""
    stacks = [grid.reshape(-1, *grid.shape[-2:]) for grid in grids]
    counts = [len(stack) for stack in stacks]
    x = np.full((sum(counts), *canvas.shape), canvas.void or 0, np.uint8)
    for stack, end in zip(stacks, np.cumsum(counts).tolist(), strict=True):
        x[end - len(stack) : end, : stack.shape[1], : stack.shape[2]] = stack
    return x, np.repeat(np.array([stack.shape[1:] for stack in stacks], np.uint8), counts, axis=0)


def on_canvas(dataset: Dataset, to: DataSettings | Canvas) -> Dataset:
    """The grids top-left on the canvas of the settings or of a model, its background or class `outside` around them.

    InputError for grids that are larger, have more classes or other tiles. Strings are returned as they are.
    """
    own, x = dataset.canvas, dataset.x
    canvas = to if isinstance(to, Canvas) else _wanted(own, to)
    if dataset.kind == "strings" or own == canvas:
        return dataset
    shape = np.tile(np.array(own.shape, np.uint8), (len(x), 1)) if dataset.shape is None else dataset.shape
    height, width = shape.max(axis=0).tolist()
    place = ("the model's " if to is canvas else "the ") + f"canvas of {canvas.height}x{canvas.width}"
    known = min(canvas.inner, 256 - (canvas.outside is not None))
    if height > canvas.height or width > canvas.width or own.inner > known:
        size = f"{height}x{width}"
        what = f"{dataset.name}: grids up to {size} of {own.inner} classes do not fit {place}, {known} classes"
        fix = f"set --canvas {size} --classes {own.inner}"
        raise InputError(what, "give other data" if to is canvas else fix)
    if own.tiles != canvas.tiles and own.tiles and canvas.tiles:  # the same characters are the same classes
        if unknown := "".join(sorted({*own.tiles} - {*canvas.tiles})):
            raise InputError(f"{dataset.name}: the model does not know the tiles {unknown!r}", "give other data")
        x = np.array([canvas.tiles.index(tile) for tile in own.tiles], np.uint8)[np.minimum(x, len(own.tiles) - 1)]
    if (shape != canvas.shape).any():
        if canvas.void is None:
            what = f"{dataset.name}: grids up to {height}x{width} have no class for what is around them"
            raise InputError(what, "set data.outside=class, or data.background to a class")
        x = padded([x[:, :height, :width]], canvas)[0]
        x = np.where(inside(shape, canvas), x, np.uint8(canvas.void))
        dataset = replace(dataset, shape=shape)
    return replace(dataset, x=x, canvas=canvas)


def _wanted(own: Canvas, data: DataSettings) -> Canvas:
    """The canvas that the settings name; what they leave open is as in the dataset."""
    height, width = data.sides or own.shape
    background = own.background if data.background is None else None if data.background == "none" else data.background
    outside = own.outside is not None if data.outside is None else data.outside == "class"
    classes = max(data.classes or own.inner, 1 + (background or 0))
    arc = own.arc and data.classes is None
    return Canvas(height, width, classes + outside, background, classes if outside else None, arc, own.tiles)


def refuse_large(what: str, count: int) -> None:
    """InputError for arrays of more than ARRAY_BYTES bytes."""
    if count > ARRAY_BYTES:
        fix = "use fewer examples, or shorter ones (--max-rules)"
        raise InputError(f"{what}: {size(count)} of arrays, the limit is {size(ARRAY_BYTES)}", fix)


def split_sizes(size: int) -> tuple[int, int, int]:
    """80/10/10 of a corpus to be built."""
    return size - 2 * (size // 10), size // 10, size // 10


def split_by_key(keys: Sequence[bytes]) -> NDArray[np.uint8]:
    """80/10/10 by a hash of each key, equal keys together: (N,) index into SPLITS. No split is empty from 3 keys on."""
    order = sorted(set(keys), key=lambda key: hashlib.sha256(key).digest())
    part = max(1, round(len(order) / 10)) if len(order) >= 3 else 0
    place = {key: 2 if rank < part else 1 if rank < 2 * part else 0 for rank, key in enumerate(order)}
    return np.array([place[key] for key in keys], np.uint8)


def unseen(examples: NDArray[Any], seen: set[bytes], most: int | None = None) -> NDArray[np.int64]:
    """Rows of the first `most` different examples (N, ...) that are not in `seen`, which grows by them: (n,)."""
    found: dict[bytes, int] = {}
    for row, key in enumerate(one.tobytes() for one in examples):
        if key not in seen and (most is None or len(found) < most):
            found.setdefault(key, row)
    seen.update(found)
    return np.array([*found.values()], np.int64)


def describe(dataset: Dataset) -> dict[str, Any]:
    """The document of `data info --json` but for name and file: a few seconds for 100,000 grids.

    Shares are of cells (`background`, `classes`), grids (`single_class`), None in an empty split.
    `leaks`: examples of `of` also in `into`; for ARC `equivalent` ones, up to a symmetry and a permutation of colours.
    """
    keys = framed = [one.tobytes() for one in dataset.x]
    arc = dataset.rules is None and dataset.canvas.arc
    hashes = canonical_hashes(dataset.x, dataset.shape, dataset.canvas) if arc else None
    if dataset.shape is not None:
        framed = [key + shape.tobytes() for key, shape in zip(keys, dataset.shape, strict=True)]
    splits, leaks = {}, []
    for split in SPLITS:
        rows = dataset.rows(split)
        content = (_of_grids if dataset.rules is None else _of_strings)(dataset.only(rows))
        duplicates = len(rows) - len({framed[row] for row in rows.tolist()})
        splits[split] = {dataset.kind: len(rows), **content, "duplicates": duplicates}
    for of, into in (("test", "train"), ("test", "val"), ("val", "train")):
        here, there = dataset.rows(of), dataset.rows(into)
        if here.size and there.size:
            known = {keys[row] for row in there.tolist()}
            leaks.append({"of": of, "into": into, "identical": sum(keys[row] in known for row in here.tolist())})
            if dataset.rules is None:
                tasks = None if dataset.task is None else len(np.intersect1d(dataset.task[here], dataset.task[there]))
                same = None if hashes is None else int(np.isin(hashes[here], hashes[there]).sum())
                leaks[-1] |= {"equivalent": same, "tasks": tasks}
    document, rules = {"splits": splits, "leaks": leaks}, dataset.rules
    if rules is None:
        cells = _cells(dataset)
        shapes = Counter(map(tuple, () if dataset.shape is None else dataset.shape.tolist())).most_common(8)
        return document | {
            "size": list(dataset.canvas.shape),
            "num_classes": dataset.canvas.classes,
            "classes": (np.bincount(cells, minlength=dataset.canvas.classes) / cells.size).tolist(),
            "shapes": [[*sides, count] for sides, count in shapes],
        }
    unused = {*range(len(rules))} - {*np.unique(dataset.x).tolist(), rules.padding}
    rows = next(rows for split in SPLITS if (rows := dataset.rows(split)).size)[:5]
    return document | {
        "steps": dataset.x.shape[1],
        "unused": sorted(unused),
        "origin": asdict(dataset.origin),
        "examples": [] if dataset.grammar is None else dataset.strings(rows),
    }


def _of_grids(part: Dataset) -> dict[str, Any]:
    canvas, cells = part.canvas, _cells(part)
    single = ((part.x == part.x[:, :1, :1]) | ~part.inside()).all(axis=(1, 2))
    return {
        "tasks": None if part.task is None else len(set(part.task.tolist())),
        "background": _mean(cells == canvas.background) if canvas.background is not None else None,
        "single_class": _mean(single),
    }


def _of_strings(part: Dataset) -> dict[str, Any]:
    assert part.rules is not None
    used = (part.x != part.rules.padding).sum(axis=1)
    return {"mean_rules": _mean(used), "most_rules": int(used.max()) if used.size else None}


def _cells(dataset: Dataset) -> Grids:
    """The cells that accuracies count: (cells,)."""
    counted: Grids = dataset.x[dataset.inside()] if dataset.count_grid else dataset.x.ravel()
    return counted


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def canonical_hashes(grids: Grids, shape: Grids | None, canvas: Canvas = ARC) -> NDArray[np.uint64]:
    """A hash (N,) of each grid of ARC, invariant to symmetries of its rectangle and permutations of the colours 1-9.

    Random weights (44 bits at 16x16) of the cells of a colour are summed for each symmetry, mixed, and added over the
    colours; the least of the eight is the hash.
    """
    most = 2**52 // canvas.cells  # sums of float64 are exact
    weights = np.random.RandomState(0).randint(1, most, canvas.cells, dtype=np.int64).astype(np.float64)
    sides = np.tile(np.array([canvas.shape]), (len(grids), 1)) if shape is None else shape
    hashes = np.empty(len(grids), np.uint64)
    flat, (known, which) = grids.reshape(-1, canvas.cells), np.unique(sides, axis=0, return_inverse=True)
    for index, side in enumerate(known):
        moved = np.zeros((SYMMETRIES, canvas.cells))  # the weight of the place that each cell goes to
        turned = sources(np.tile(side, (SYMMETRIES, 1)), np.arange(SYMMETRIES), canvas)
        np.put_along_axis(moved, turned, weights, axis=1)
        rows = np.flatnonzero(which.ravel() == index)
        for start in range(0, len(rows), _HASHED):
            some = rows[start : start + _HASHED]
            total = np.zeros((len(some), SYMMETRIES), np.uint64)
            for colour in range(1, COLOURS):
                sums = ((flat[some] == colour).astype(np.float64) @ moved.T).astype(np.uint64)
                # mixed by the finaliser of splitmix64 (Steele, Lea, Flood 2014); a colour that does not occur stays 0
                sums = (sums ^ (sums >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                sums = (sums ^ (sums >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                total += sums ^ (sums >> np.uint64(31))
            hashes[some] = total.min(axis=1)
    return hashes
