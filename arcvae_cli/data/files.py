"""Corpora of grids in files: `.npz`, `.npy`, ARC task JSON. Nothing that comes from outside is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS, GridArrays, canvas_keys, split_by_key
from arcvae_cli.data.columns import ARRAY_BYTES, read_npy, read_npz, read_split, read_text
from arcvae_cli.data.symmetries import COLOURS, SIDE, Grids
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, exists, is_dir, read_limited

COLUMNS = ("grids", "split", "shape", "task", *SPLITS)
_JSON_BYTES = 2**26
_MOST_LETTERS = 255  # of a task's id, as of a file's name
_GRID_FIX = "Grids are an array (N, 16, 16) of integers 0-9."
_TASK_FIX = "ARC tasks are {'train': [{'input': [[0, 1], ...], 'output': ...}, ...], 'test': [...]}."


def write_grids(path: Path, arrays: GridArrays) -> None:
    """Write a corpus as `.npz`, whole or not at all.

    Raises:
        ArcvaeError: that fails; what stood there before is untouched then.

    """
    columns: dict[str, Any] = {"grids": arrays.grids, "split": arrays.split}
    if arrays.shape is not None:
        columns["shape"] = arrays.shape
    if arrays.task is not None:
        columns["task"] = arrays.task
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **columns)  # not compressed: 29 MB for 100,000 grids, read in a twentieth of a second


def read_grids(path: Path) -> GridArrays:
    """Read a corpus from `.npz`, `.npy`, an ARC task JSON file, or a folder of those, folders inside included.

    `.npz`: `grids` with `split` (0, 1, 2 or train, val, test), or arrays `train`, `val`, `test`; `shape` and `task`
    may stand beside `grids`. Without a split, and for `.npy`, grids are split 80/10/10 by a hash of their content, so
    that duplicates share a split; ARC grids by a hash of their task's id where there are three tasks or more. Arrays
    (N, H, W) smaller than 16x16 are padded with 0; ARC grids over 16x16 are left out and counted in `notes`.

    Raises InputError: what is wrong with the file, where, and what to do.
    """
    if is_dir(path):
        return _read_tasks(path, sorted(path.rglob("*.json")))
    if not exists(path):
        raise InputError(f"{path}: there is no such file", "Give a .npz, .npy, ARC .json, or a folder of those.")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _read_tasks(path, [path])
    if suffix not in (".npz", ".npy"):
        raise InputError(f"{path}: not a corpus of grids", "Give a .npz, .npy, ARC .json, or a folder of those.")
    return from_columns(path, read_npz(path, COLUMNS) if suffix == ".npz" else {"grids": read_npy(path)})


def from_columns(path: Path, columns: dict[str, NDArray[Any]]) -> GridArrays:
    """The corpus in the arrays of a file, which are those of `COLUMNS` that it has. Raises InputError."""
    if "grids" in columns:
        return _with_split(path, columns)
    return _by_split(path, {name: columns[name] for name in SPLITS if name in columns})


def _with_split(path: Path, columns: dict[str, NDArray[Any]]) -> GridArrays:
    """From `grids` and what stands beside them."""
    grids, shape = _canvases(columns["grids"], str(path) if path.suffix.lower() == ".npy" else f"{path}: grids")
    if "shape" in columns:
        shape = _shapes(columns["shape"], grids, f"{path}: shape")
    task = _tasks(columns["task"], len(grids), f"{path}: task") if "task" in columns else None
    if "split" in columns:
        return GridArrays(
            path.stem, grids, read_split(columns["split"], len(grids), "grids", f"{path}: split"), shape, task
        )
    note = "the file tells no splits: grids are split 80/10/10 by a hash of their content"
    return GridArrays(path.stem, grids, split_by_key(canvas_keys(grids)), shape, task, (note,))


def _by_split(path: Path, columns: dict[str, NDArray[Any]]) -> GridArrays:
    """From arrays named for the splits, some of which may be missing or empty."""
    held = {name: column for name, column in columns.items() if column.shape[:1] != (0,)}
    if not held:
        raise InputError(
            f"{path}: holds no grids",
            "Save them as `grids` (N, 16, 16) with `split` (N,), or as arrays `train`, `val`, `test`.",
        )
    parts = {name: _canvases(column, f"{path}: {name}") for name, column in held.items()}
    grids = np.concatenate([canvases for canvases, _ in parts.values()])
    split = np.concatenate([np.full(len(part[0]), SPLITS.index(name), np.uint8) for name, part in parts.items()])
    if all(shape is None for _, shape in parts.values()):
        return GridArrays(path.stem, grids, split)
    whole = [np.full((len(part), 2), SIDE, np.uint8) if shape is None else shape for part, shape in parts.values()]
    return GridArrays(path.stem, grids, split, np.concatenate(whole))


def _canvases(grids: NDArray[Any], where: str) -> tuple[Grids, Grids | None]:
    """Grids (N, H, W) of any integer type as (N, 16, 16) uint8, with their shapes where they had to be padded."""
    if grids.ndim != 3:
        raise InputError(f"{where}: has shape {grids.shape}", _GRID_FIX)
    count, height, width = grids.shape
    if count == 0:
        raise InputError(f"{where}: holds no grids", _GRID_FIX)
    if count * SIDE * SIDE > ARRAY_BYTES:  # small ones are padded
        raise InputError(f"{where}: {count:,} grids are over the {ARRAY_BYTES >> 30} GiB that are read", "Save fewer.")
    if not (1 <= height <= SIDE and 1 <= width <= SIDE):
        raise InputError(f"{where}: grids are {height}x{width}, and the canvas is {SIDE}x{SIDE}", _GRID_FIX)
    if grids.dtype.kind not in "iu":
        raise InputError(f"{where}: has dtype {grids.dtype}", f"{_GRID_FIX} Convert them: grids.astype('uint8').")
    low, high = int(grids.min()), int(grids.max())
    if low < 0 or high >= COLOURS:
        first = int(((grids < 0) | (grids >= COLOURS)).any(axis=(1, 2)).argmax())
        raise InputError(f"{where}: grid {first} has colours outside 0-9 (they run from {low} to {high})", _GRID_FIX)
    if (height, width) == (SIDE, SIDE):
        return np.ascontiguousarray(grids, dtype=np.uint8), None
    canvases = np.zeros((count, SIDE, SIDE), np.uint8)
    canvases[:, :height, :width] = grids
    return canvases, np.tile(np.array([height, width], np.uint8), (count, 1))


def _shapes(shape: NDArray[Any], grids: Grids, where: str) -> Grids:
    fix = "`shape` is the (height, width) of each grid, 1-16, top-left on its canvas; leave it out if unknown."
    if shape.shape != (len(grids), 2) or shape.dtype.kind not in "iu":
        raise InputError(f"{where}: is {shape.dtype} {shape.shape} for {len(grids)} grids", fix)
    if shape.min() < 1 or shape.max() > SIDE:
        raise InputError(f"{where}: has sides from {shape.min()} to {shape.max()}", fix)
    sides = np.arange(SIDE)
    below = grids.any(axis=2) & (sides >= shape[:, :1])
    right = grids.any(axis=1) & (sides >= shape[:, 1:])
    outside = (below | right).any(axis=1)
    if outside.any():
        first = int(outside.argmax())
        raise InputError(f"{where}: grid {first} has colours outside its {shape[first, 0]}x{shape[first, 1]}", fix)
    return shape.astype(np.uint8)


def _tasks(task: NDArray[Any], count: int, where: str) -> NDArray[np.str_]:
    if task.shape != (count,) or task.dtype.kind not in "SUiu":
        fix = "`task` is a string for each grid; it may be left out."
        raise InputError(f"{where}: is {task.dtype} {task.shape} for {count} grids", fix)
    return read_text(task if task.dtype.kind in "SU" else task.astype(np.str_), where)


def _read_tasks(path: Path, files: list[Path]) -> GridArrays:
    """ARC task JSON: a task a file, called as the file is, or a file of {id: task}."""
    canvases: list[Grids] = []
    shapes: list[tuple[int, ...]] = []
    tasks: list[str] = []
    skipped = 0
    for file in files:
        for task, grid in _grids_of(file):
            if max(grid.shape) > SIDE:
                skipped += 1
                continue
            canvas = np.zeros((SIDE, SIDE), np.uint8)
            canvas[: grid.shape[0], : grid.shape[1]] = grid
            canvases.append(canvas)
            shapes.append(grid.shape)
            tasks.append(task)
    if not canvases:
        found = f"ARC grids up to {SIDE}x{SIDE}, only {skipped} larger ones" if skipped else "ARC grids"
        raise InputError(f"{path}: holds no {found}", _TASK_FIX)
    grids = np.stack(canvases)
    several = len(set(tasks)) >= 3
    split = split_by_key([task.encode() for task in tasks] if several else canvas_keys(grids))
    notes = (f"{skipped} grids over {SIDE}x{SIDE} were left out",) if skipped else ()
    return GridArrays(path.stem, grids, split, np.array(shapes, np.uint8), np.array(tasks), notes)


def _grids_of(file: Path) -> list[tuple[str, NDArray[np.int64]]]:
    """Every grid of a JSON file, of any size, with the id of its task."""
    try:
        document = json.loads(read_limited(file, _JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise InputError(f"{file}: cannot be read as JSON ({reason})", _TASK_FIX) from error
    if isinstance(document, dict) and any(isinstance(document.get(part), list) for part in ("train", "test")):
        document = {file.stem: document}
    if not isinstance(document, dict):
        raise InputError(f"{file}: holds no ARC task", _TASK_FIX)
    grids = []
    for task, parts in document.items():
        if len(task) > _MOST_LETTERS or not task.isprintable():
            raise InputError(f"{file}: {task[:40]!r}: is no name of a task", _TASK_FIX)
        for place, rows in _pairs(parts, f"{file}: {task}"):
            grids.append((task, _grid(rows, place)))
    return grids


def _pairs(task: Any, where: str) -> list[tuple[str, Any]]:
    """Inputs and outputs of a task, with their places; a competition's test pairs have no output."""
    try:
        return [
            (f"{where}.{part}[{index}].{side}", pair[side])
            for part in ("train", "test")
            for index, pair in enumerate(task.get(part, []))
            for side in ("input", "output")
            if side in pair
        ]
    except (AttributeError, TypeError) as error:
        raise InputError(f"{where}: is no ARC task", _TASK_FIX) from error


def _grid(rows: Any, where: str) -> NDArray[np.int64]:
    """A grid as an array (H, W). NumPy is given nothing else than rows of whole numbers."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise InputError(f"{where}: is no grid of integers", _TASK_FIX)
    if any(len(row) != len(rows[0]) for row in rows):
        raise InputError(f"{where}: has rows of different lengths", _TASK_FIX)
    if any(type(cell) is not int for row in rows for cell in row):
        raise InputError(f"{where}: is no grid of integers", _TASK_FIX)
    if any(not 0 <= cell < COLOURS for row in rows for cell in row):
        raise InputError(f"{where}: has colours outside 0-9", _TASK_FIX)
    return np.array(rows, np.int64)
