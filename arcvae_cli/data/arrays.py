"""One dataset for grids and strings as plain arrays: how its examples are split, and what it consists of."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.data.symmetries import CELLS, COLOURS, SIDE, SYMMETRIES, Grids, gather_table
from arcvae_cli.errors import InputError
from arcvae_cli.files import size
from arcvae_cli.grammar import Grammar, Rules

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

    `x`: (N, 16, 16) uint8 colours 0-9, smaller grids top-left on 0; or (N, T) int16 left-most derivations, the padding
    rule after their ends. `split`: (N,) uint8 index into SPLITS. `shape`: (N, 2) uint8 height and width of grids, None
    if the canvas is the grid. `grammar`: None if only ids and masks are known. `notes`: how the data was read.
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

    def fingerprint(self) -> str:
        """SHA-256 of the content in hexadecimal, whatever the file, name or string width."""
        digest = hashlib.sha256(f"{self.x.shape}".encode())
        digest.update(self.x.tobytes() + self.split.tobytes())
        if self.rules is None:
            digest.update(b"shape" if self.shape is None else self.shape.tobytes())
            digest.update(b"task" if self.task is None else "\n".join(self.task.tolist()).encode())
        else:
            digest.update(f"{self.rules.lhs} {self.rules.rhs} {self.rules.start} {self.rules.padding}".encode())
        if self.grammar is not None:
            digest.update(repr((self.grammar.separator, list(map(str, self.grammar.productions)))).encode())
        return digest.hexdigest()

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


def padded(grids: Sequence[NDArray[Any]]) -> tuple[Grids, Grids]:
    """Grids (H, W) of up to 16x16 top-left on canvases (N, 16, 16) of 0, and their shapes (N, 2)."""
    canvases = np.zeros((len(grids), SIDE, SIDE), np.uint8)
    for canvas, grid in zip(canvases, grids, strict=True):
        canvas[: grid.shape[0], : grid.shape[1]] = grid
    return canvases, np.array([grid.shape for grid in grids], np.uint8)


def refuse_large(what: str, count: int) -> None:
    """InputError for arrays of more than ARRAY_BYTES bytes."""
    if count > ARRAY_BYTES:
        fix = "use fewer examples, or shorter ones (--max-rules)"
        raise InputError(f"{what}: {size(count)} of arrays, the limit is {size(ARRAY_BYTES)}", fix)


def split_sizes(size: int, seed: int) -> tuple[int, int, int]:
    """80/10/10 of a corpus to be built; InputError for a size or a seed out of range."""
    for key, value, least, most in (("size", size, 10, 2_000_000), ("seed", seed, 0, 2**32 - 1)):
        if not least <= value <= most:
            raise InputError(f"data.{key}: {value} is out of range", f"use {least} to {most}")
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

    Shares are of cells (`black`, `colours`), grids (`single_colour`) or steps (`padding`), None in an empty split.
    `leaks`: examples of `of` also in `into`; `equivalent` ones up to a symmetry and a permutation of the colours 1-9.
    """
    rules, splits, leaks, framed = dataset.rules, {}, [], dataset.x
    keys = [one.tobytes() for one in dataset.x]
    hashes = canonical_hashes(dataset.x, dataset.shape) if rules is None else None
    if dataset.shape is not None:  # cells outside the rectangle get a colour of their own
        side = np.arange(SIDE)
        inside = (side < dataset.shape[:, :1])[:, :, None] & (side < dataset.shape[:, 1:])[:, None, :]
        framed = np.where(inside, dataset.x, np.uint8(COLOURS))
    for split in SPLITS:
        rows = dataset.rows(split)
        part, count = framed[rows], len(rows)
        if rules is None:
            single = ~((part != part[:, :1, :1]) & (part < COLOURS)).any(axis=(1, 2))
            splits[split] = {
                "grids": count,
                "tasks": None if dataset.task is None else len(set(dataset.task[rows].tolist())),
                "black": float((dataset.x[rows] == 0).mean()) if count else None,
                "single_colour": float(single.mean()) if count else None,
            }
        else:
            used = (part != rules.padding).sum(axis=1)
            splits[split] = {
                "strings": count,
                "mean_rules": float(used.mean()) if count else None,
                "most_rules": int(used.max()) if count else None,
                "padding": 1 - float(used.sum()) / part.size if count else None,
            }
        splits[split]["duplicates"] = count - len({one.tobytes() for one in part})
    for of, into in (("test", "train"), ("test", "val"), ("val", "train")):
        here, there = dataset.rows(of), dataset.rows(into)
        if here.size and there.size:
            known = {keys[row] for row in there.tolist()}
            leaks.append({"of": of, "into": into, "identical": sum(keys[row] in known for row in here.tolist())})
            if hashes is not None:
                tasks = None if dataset.task is None else len(np.intersect1d(dataset.task[here], dataset.task[there]))
                leaks[-1] |= {"equivalent": int(np.isin(hashes[here], hashes[there]).sum()), "tasks": tasks}
    if rules is None:
        shapes = Counter(map(tuple, () if dataset.shape is None else dataset.shape.tolist())).most_common(8)
        return {
            "splits": splits,
            "colours": [int(np.count_nonzero(dataset.x == colour)) / dataset.x.size for colour in range(COLOURS)],
            "shapes": [[*sides, count] for sides, count in shapes],
            "leaks": leaks,
        }
    counts = np.bincount(dataset.x.ravel(), minlength=len(rules)).tolist()
    real = [rule for rule in range(len(rules)) if rule != rules.padding]
    rows = next(rows for split in SPLITS if (rows := dataset.rows(split)).size)[:5]
    return {
        "steps": dataset.x.shape[1],
        "counts": counts,
        "unused": [rule for rule in real if rules.lhs[rule] >= 0 and not counts[rule]],
        "unusable": [rule for rule in real if rules.lhs[rule] < 0],
        "origin": asdict(dataset.origin),
        "splits": splits,
        "leaks": leaks,
        "examples": [] if dataset.grammar is None else dataset.strings(rows),
    }


def canonical_hashes(grids: Grids, shape: Grids | None) -> NDArray[np.uint64]:
    """A hash (N,) of each grid, invariant to symmetries of its rectangle and permutations of the colours 1-9.

    Random weights of 44 bits of the cells of a colour are summed for each symmetry, mixed, and added over the colours;
    the least of the eight is the hash.
    """
    weights = np.random.RandomState(0).randint(1, 2**44, CELLS, dtype=np.int64).astype(np.float64)
    sides = np.full((len(grids), 2), SIDE, np.int64) if shape is None else shape.astype(np.int64)
    place = (sides - 1) @ [SIDE, 1]
    hashes = np.empty(len(grids), np.uint64)
    flat = grids.reshape(-1, CELLS)
    for index in np.unique(place).tolist():
        moved = np.empty((SYMMETRIES, CELLS))  # the weight of the place that each cell goes to
        np.put_along_axis(moved, gather_table()[index // SIDE, index % SIDE].astype(np.int64), weights, axis=1)
        rows = np.flatnonzero(place == index)
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
