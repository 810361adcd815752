"""Datasets in files: `.npz` of grids or derivations, `.npy`, ARC task JSON. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, canvas_keys, padded, refuse_large, split_by_key
from arcvae_cli.data.derivations import Ids, wrong_step
from arcvae_cli.data.symmetries import CELLS, COLOURS, SIDE, Grids
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import atomic_write, exists, is_dir, open_regular, read_limited
from arcvae_cli.grammar import Grammar, Rules, parse_grammar

SUFFIXES = (".npz", ".npy", ".json")

_COLUMNS = ("grids", "split", "shape", "task", *SPLITS, "ids", "grammar", "lhs", "padding", "origin")
_JSON_BYTES = 2**26
_HEADER_BYTES = 2**16
_SPLIT_NAMES = {name: index for index, name in enumerate(SPLITS)} | {"validation": SPLITS.index("val")}
_ARRAYS_FIX = "give grids (N, 16, 16) of integers 0-9, or ids (N, T) of rules with a `grammar`; without pickled objects"
_TASK_FIX = "ARC tasks are {'train': [{'input': [[0, 1], ...], 'output': ...}, ...], 'test': [...]}"


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a dataset as `.npz`, completely or not at all; derivations are compressed. ArcvaeError if that fails."""
    columns: dict[str, Any]
    if dataset.rules is None:
        columns = {"grids": dataset.x, "split": dataset.split, "shape": dataset.shape, "task": dataset.task}
    else:
        origin = np.frombuffer(json.dumps(asdict(dataset.origin)).encode(), np.uint8)
        columns = {"ids": dataset.x, "split": dataset.split, "origin": origin}
        if dataset.grammar is not None:
            columns["grammar"] = np.frombuffer(dataset.grammar.text.encode(), np.uint8)
        else:
            columns["lhs"] = np.array(dataset.rules.lhs, np.int16)
            columns["padding"] = np.array(dataset.rules.padding, np.int16)
    method = ZIP_STORED if dataset.kind == "grids" else ZIP_DEFLATED
    with atomic_write(path) as temporary, ZipFile(temporary, "w", method, compresslevel=1) as archive:
        for name, column in columns.items():
            if column is not None:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, column, allow_pickle=False)


def read_dataset(path: Path, grammar: Grammar | None = None, *, check: bool = True) -> Dataset:
    """The dataset in an `.npz`, `.npy`, ARC task JSON file, or folder of those, subfolders included.

    `.npz` of grids: `grids` (N, H, W) of integers 0-9 with `split` (0, 1, 2 or train, val, test), or arrays `train`,
    `val`, `test`; `shape` (N, 2) and `task` (N,) are optional. Of derivations: `ids` (N, T), and `grammar` as text
    unless it is given here. Without a split examples are split 80/10/10 by a hash of their content; ARC grids by one of
    the task's id if there are three tasks or more. Grids smaller than 16x16 are padded with 0; larger ARC grids are
    left out and counted in `notes`. `check`: whether ids must be complete derivations.

    Raises InputError for a file that is missing, damaged, too large or not of this layout.
    """
    if is_dir(path):
        return _read_tasks(path, sorted(path.rglob("*.json")))
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or not exists(path):
        what = "not a dataset of grids" if exists(path) else "no such file"
        raise InputError(f"{path}: {what}", "give a .npz, .npy, ARC .json, or a folder of those")
    if suffix == ".json":
        return _read_tasks(path, [path])
    with reading(path):
        if suffix == ".npy":
            grids = map_npy(path)
            refuse_large(str(path), grids.nbytes)
            return _grids(path, {"grids": np.array(grids)})
        columns = _read_npz(path)
        return _derivations(path, columns, grammar, check) if "ids" in columns else _grids(path, columns)


def map_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy` of any size, memory-mapped. InputError if it is damaged."""
    with reading(path), open_regular(path) as file:
        version = np.lib.format.read_magic(file)
        if int.from_bytes(file.read(2 if version == (1, 0) else 4), "little") > _HEADER_BYTES:
            raise ValueError("invalid header")  # which NumPy would read into memory
        array = np.lib.format.open_memmap(path, mode="r")
        if array.offset + array.nbytes != path.stat().st_size:
            raise ValueError("longer than its header says")
        return array


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    with open_regular(path) as file:
        with ZipFile(file) as archive:
            refuse_large(str(path), sum(info.file_size for info in archive.infolist()))
            if damaged := archive.testzip():
                raise ValueError(f"wrong checksum of {damaged}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name in _COLUMNS}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what is raised while a file is read, or its arrays are checked, into an InputError."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})", "give another file") from error
    except Exception as error:  # NumPy and zipfile raise a dozen types for damaged files
        reason = one_line(str(error) or type(error).__name__)
        raise InputError(f"{path}: damaged or invalid ({reason:.200})", _ARRAYS_FIX) from error


def require(fits: object, name: str, array: NDArray[Any]) -> None:
    """ValueError, with the type and the shape of the array of this name, unless it fits."""
    if not fits:
        raise ValueError(f"{name}: invalid, {array.dtype} {array.shape}")


def _grids(path: Path, columns: dict[str, NDArray[Any]]) -> Dataset:
    """From `grids` and what stands beside them, or from arrays `train`, `val`, `test`, empty ones ignored."""
    parts = {name: columns[name] for name in SPLITS if name in columns and columns[name].shape[:1] != (0,)}
    if "grids" in columns:
        parts = {"grids": columns["grids"]}
    if not parts:
        raise ValueError("no grids")
    x = np.concatenate([_canvases(part, name) for name, part in parts.items()])
    counts, sides = [len(part) for part in parts.values()], [part.shape[1:] for part in parts.values()]
    shape = None if set(sides) == {(SIDE, SIDE)} else np.repeat(np.array(sides, np.uint8), counts, axis=0)
    if "grids" not in parts:
        return Dataset(path.stem, x, np.repeat([np.uint8(SPLITS.index(name)) for name in parts], counts), shape)
    if "shape" in columns:
        shape = _shapes(columns["shape"], x)
    task = columns.get("task")
    if task is not None:
        require(task.shape == (len(x),) and task.dtype.kind in "SUiu", "task", task)
        task = _text(task)
    split, notes = _split(columns, canvas_keys(x))
    return Dataset(path.stem, x, split, shape, task, notes=notes)


def _canvases(grids: NDArray[Any], name: str) -> Grids:
    """Grids (N, H, W) of any integer type as (N, 16, 16) uint8."""
    fits = grids.ndim == 3 and grids.dtype.kind in "iu" and grids.size and max(grids.shape[1:]) <= SIDE
    require(fits, name, grids)
    wrong = ((grids < 0) | (grids >= COLOURS)).any(axis=(1, 2))
    if wrong.any():
        raise ValueError(f"{name}: colours outside 0-9, first in grid {int(wrong.argmax())}")
    count, height, width = grids.shape
    refuse_large(name, count * CELLS)
    canvases = np.zeros((count, SIDE, SIDE), np.uint8)
    canvases[:, :height, :width] = grids
    return canvases


def _shapes(shape: NDArray[Any], grids: Grids) -> Grids:
    fits = shape.shape == (len(grids), 2) and shape.dtype.kind in "iu" and shape.min() >= 1 and shape.max() <= SIDE
    require(fits, "shape", shape)
    sides = np.arange(SIDE)
    below, right = grids.any(axis=2) & (sides >= shape[:, :1]), grids.any(axis=1) & (sides >= shape[:, 1:])
    outside = (below | right).any(axis=1)
    if outside.any():
        raise ValueError(f"shape: grid {int(outside.argmax())} has colours outside its rectangle")
    return shape.astype(np.uint8)


def _split(columns: dict[str, NDArray[Any]], keys: list[bytes]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The index into SPLITS of each example; by a hash of its key, with a note, if the file has no split."""
    split = columns.get("split")
    if split is None:
        return split_by_key(keys), ("no `split` in the file: examples are split 80/10/10 by a hash of their content",)
    if split.dtype.kind in "SU":
        split = np.array([_SPLIT_NAMES.get(name, -1) for name in _text(split).ravel().tolist()])
    fits = split.shape == (len(keys),) and split.dtype.kind in "iu" and split.min() >= 0 and split.max() < len(SPLITS)
    require(fits, "split", split)
    return split.astype(np.uint8), ()


def _text(column: NDArray[Any]) -> NDArray[np.str_]:
    text = np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column.astype(np.str_)
    "".join(text.ravel().tolist()).encode()  # raises for what is not a character
    return text


def _derivations(path: Path, columns: dict[str, NDArray[Any]], grammar: Grammar | None, check: bool) -> Dataset:
    origin = Origin()
    if "origin" in columns:
        origin = TypeAdapter(Origin).validate_json(_string(columns["origin"]))
    if "grammar" in columns:
        grammar = parse_grammar(_string(columns["grammar"]), origin.grammar or path.stem)
    elif grammar is None and "lhs" not in columns:
        raise InputError(f"{path}: ids without a grammar", "give --grammar, or `grammar` as text beside `ids`")
    if grammar is not None:
        rules = grammar.rules
    else:  # the start symbol is that of the first row
        lhs = columns["lhs"].astype(np.int16, casting="safe").tolist()
        padding, first = columns["padding"].item(), int(columns["ids"].flat[0])
        require(lhs[padding] == -1, "lhs", columns["lhs"])
        rules = bare_rules(lhs, padding, lhs[first])
    ids = checked_ids(columns["ids"], rules, check=check)
    split, notes = _split(columns, [row.tobytes() for row in ids])
    return Dataset(path.stem, ids, split, rules=rules, grammar=grammar, origin=origin, notes=notes)


def _string(column: NDArray[Any]) -> str:
    if column.dtype == np.uint8:
        column = np.array(column.tobytes())
    require(not column.ndim and column.dtype.kind in "SU", "text", column)
    return str(_text(column))


def bare_rules(lhs: list[int], padding: int, start: int) -> Rules:
    """Rules whose right-hand sides are not known, and whose symbols have numbers for names."""
    return Rules(tuple(map(str, range(max(lhs) + 1))), tuple(lhs), None, start, padding)


def checked_ids(ids: NDArray[Any], rules: Rules, *, check: bool = True) -> Ids:
    """Ids (N, T) as int16, padded for -1. `check`: ValueError with the first row that is no complete derivation."""
    require(ids.ndim == 2 and ids.dtype.kind in "iu" and ids.size, "ids", ids)
    ids = np.where(ids == -1, rules.padding, ids)
    for number, row in enumerate(ids if check else ()):
        if found := wrong_step(row.tolist(), rules):
            raise ValueError(f"row {number}, step {found[0]}: {found[1]}")
    return ids.astype(np.int16)


def _read_tasks(path: Path, files: list[Path]) -> Dataset:
    """ARC task JSON: one task a file, named as the file, or a file of {id: task}."""
    found = [pair for file in files for pair in _task_grids(file)]
    fitting = [(task, grid) for task, grid in found if max(grid.shape) <= SIDE]
    notes = (f"{len(found) - len(fitting)} grids over {SIDE}x{SIDE} were left out",) * (len(found) > len(fitting))
    if not fitting:
        raise InputError(": ".join((f"{path}: no ARC grids up to {SIDE}x{SIDE}", *notes)), _TASK_FIX)
    tasks, rows = zip(*fitting, strict=True)
    grids, shape = padded(rows)
    keys = [task.encode() for task in tasks] if len(set(tasks)) >= 3 else canvas_keys(grids)
    return Dataset(path.stem, grids, split_by_key(keys), shape, np.array(tasks), notes=notes)


def _task_grids(file: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every grid (H, W) of a JSON file, of any size, with the id of its task; test pairs may have no output."""
    try:
        document = json.loads(read_limited(file, _JSON_BYTES))
        if any(isinstance(document.get(part), list) for part in ("train", "test")):
            document = {file.stem: document}
        for task, parts in document.items():
            task.encode()  # raises for half of a character
            for part in ("train", "test"):
                for index, pair in enumerate(parts.get(part, [])):
                    for side in ("input", "output"):
                        if side in pair:
                            yield task, _grid(pair[side], f"{task}.{part}[{index}].{side}")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})", _TASK_FIX) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not an ARC task ({error})", _TASK_FIX) from error


def _grid(rows: Any, where: str) -> NDArray[Any]:
    try:
        grid = np.array(rows)
    except ValueError:  # rows of different lengths
        grid = np.zeros(0)
    if grid.ndim != 2 or not grid.size or grid.dtype.kind not in "iu" or grid.min() < 0 or grid.max() >= COLOURS:
        raise ValueError(f"{where} is not a grid of integers 0-9")
    return grid
