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
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, exists, is_dir, open_regular, read_limited
from arcvae_cli.grammar import Grammar, Rules, parse_grammar

SUFFIXES = (".npz", ".npy", ".json")

_COLUMNS = ("grids", "split", "shape", "task", *SPLITS, "ids", "grammar", "lhs", "padding", "origin")
_JSON_BYTES = 2**26
_HEADER_BYTES = 2**16
_SPLIT_NAMES = {name: index for index, name in enumerate(SPLITS)} | {"validation": SPLITS.index("val")}
_GRID_FIX = "grids are an array (N, 16, 16) of integers 0-9"
_SHAPE_FIX = "`shape` is the (height, width) of each grid, 1-16, top-left on its canvas; omit it if unknown"
_IDS_FIX = "derivations are an array `ids` (N, T) of rule ids, with the `grammar` as text beside it"
_TASK_FIX = "ARC tasks are {'train': [{'input': [[0, 1], ...], 'output': ...}, ...], 'test': [...]}"


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a dataset as `.npz`, completely or not at all. ArcvaeError where that fails.

    Derivations are compressed; grids are not: 100,000 take 29 MB, which is read in a tenth of a second.
    """
    columns: dict[str, Any]
    if dataset.rules is None:
        columns = {"grids": dataset.x, "split": dataset.split, "shape": dataset.shape, "task": dataset.task}
    else:
        columns = {"ids": dataset.x, "split": dataset.split, "origin": _bytes(json.dumps(asdict(dataset.origin)))}
        if dataset.grammar is not None:
            columns["grammar"] = _bytes(dataset.grammar.text)
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

    `.npz` of grids: `grids` with `split` (0, 1, 2 or train, val, test), or arrays `train`, `val`, `test`; `shape` and
    `task` are optional. `.npz` of derivations: `ids`, with `grammar` as text unless it is given here. Without a split
    examples are split 80/10/10 by a hash of their content, so that duplicates share a split; ARC grids by a hash of
    the task's id if there are three tasks or more. Grids smaller than 16x16 are padded with 0; larger ARC grids are
    left out and counted in `notes`. `check`: whether ids must be complete derivations; not needed for our own files.

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
    if suffix == ".npy":
        grids = map_npy(path)
        refuse_large(str(path), grids.nbytes)
        return _grids(path, {"grids": np.array(grids)})
    columns = _read_npz(path)
    return _derivations(path, columns, grammar, check) if "ids" in columns else _grids(path, columns)


# ------------------------------------------------------------------------------------------------------------- arrays


def map_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy` of any size, memory-mapped. InputError if it is damaged."""
    with _reading(path), open_regular(path) as file:
        version = np.lib.format.read_magic(file)
        if int.from_bytes(file.read(2 if version == (1, 0) else 4), "little") > _HEADER_BYTES:
            raise ValueError("invalid header")  # which NumPy would read into memory
        array = np.lib.format.open_memmap(path, mode="r")
        if array.offset + array.nbytes != path.stat().st_size:
            raise ValueError("longer than its header says")
        return array


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` that a dataset may have. InputError if it is damaged or too large."""
    with _reading(path), open_regular(path) as file:
        with ZipFile(file) as archive:
            refuse_large(str(path), sum(info.file_size for info in archive.infolist()))
            if damaged := archive.testzip():
                raise ValueError(f"wrong checksum of {damaged}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name in _COLUMNS}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what is raised while a file is read into an InputError."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})", "give another file") from error
    except Exception as error:  # NumPy and zipfile raise a dozen types for damaged files
        reason = str(error) or type(error).__name__
        what = f"{path}: damaged, or not a {path.suffix} of plain arrays ({reason:.200})"
        raise InputError(what, "save it again; pickled objects are never read") from error


def _invalid(where: str, array: NDArray[Any], fix: str) -> InputError:
    return InputError(f"{where}: invalid ({array.dtype} {array.shape})", fix)


# -------------------------------------------------------------------------------------------------------------- grids


def _grids(path: Path, columns: dict[str, NDArray[Any]]) -> Dataset:
    """From `grids` and what stands beside them, or from arrays `train`, `val`, `test`, empty ones ignored."""
    parts = {name: columns[name] for name in SPLITS if name in columns and columns[name].shape[:1] != (0,)}
    if "grids" in columns:
        parts = {"grids": columns["grids"]}
    if not parts:
        raise InputError(f"{path}: no grids", "save `grids` (N, 16, 16) and `split` (N,), or `train`, `val`, `test`")
    x = np.concatenate([_canvases(part, f"{path}: {name}") for name, part in parts.items()])
    counts, sides = [len(part) for part in parts.values()], [part.shape[1:] for part in parts.values()]
    shape = None if set(sides) == {(SIDE, SIDE)} else np.repeat(np.array(sides, np.uint8), counts, axis=0)
    if "grids" not in parts:
        return Dataset(path.stem, x, np.repeat([np.uint8(SPLITS.index(name)) for name in parts], counts), shape)
    if "shape" in columns:
        shape = _shapes(columns["shape"], x, f"{path}: shape")
    task = columns.get("task")
    if task is not None:
        if task.shape != (len(x),) or task.dtype.kind not in "SUiu":
            raise _invalid(f"{path}: task", task, "give a string for each grid")
        task = _text(task, f"{path}: task")
    split, notes = _split(columns, canvas_keys(x), f"{path}: split")
    return Dataset(path.stem, x, split, shape, task, notes=notes)


def _canvases(grids: NDArray[Any], where: str) -> Grids:
    """Grids (N, H, W) of any integer type as (N, 16, 16) uint8."""
    if grids.ndim != 3 or grids.dtype.kind not in "iu" or not grids.size or max(grids.shape[1:]) > SIDE:
        raise _invalid(where, grids, _GRID_FIX)
    wrong = ((grids < 0) | (grids >= COLOURS)).any(axis=(1, 2))
    if wrong.any():
        raise InputError(f"{where}: colours outside 0-9, first in grid {int(wrong.argmax())}", _GRID_FIX)
    count, height, width = grids.shape
    refuse_large(where, count * CELLS)
    canvases = np.zeros((count, SIDE, SIDE), np.uint8)
    canvases[:, :height, :width] = grids
    return canvases


def _shapes(shape: NDArray[Any], grids: Grids, where: str) -> Grids:
    if shape.shape != (len(grids), 2) or shape.dtype.kind not in "iu" or shape.min() < 1 or shape.max() > SIDE:
        raise _invalid(where, shape, _SHAPE_FIX)
    sides = np.arange(SIDE)
    below, right = grids.any(axis=2) & (sides >= shape[:, :1]), grids.any(axis=1) & (sides >= shape[:, 1:])
    outside = (below | right).any(axis=1)
    if outside.any():
        raise InputError(f"{where}: grid {int(outside.argmax())} has colours outside its rectangle", _SHAPE_FIX)
    return shape.astype(np.uint8)


def _split(
    columns: dict[str, NDArray[Any]], keys: list[bytes], where: str
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The index into SPLITS of each example; by a hash of its key, with a note, if the file has no split."""
    split = columns.get("split")
    if split is None:
        return split_by_key(keys), ("no `split` in the file: examples are split 80/10/10 by a hash of their content",)
    if split.shape == (len(keys),) and split.dtype.kind in "SU":
        split = np.array([_SPLIT_NAMES.get(name, -1) for name in _text(split, where).tolist()])
    if split.shape != (len(keys),) or split.dtype.kind not in "iu" or split.min() < 0 or split.max() >= len(SPLITS):
        raise _invalid(where, split, f"`split` is 0, 1 or 2, or one of {', '.join(SPLITS)}, for each example")
    return split.astype(np.uint8), ()


def _text(column: NDArray[Any], where: str) -> NDArray[np.str_]:
    """A column of strings, UTF-8 bytes or numbers as strings."""
    try:
        text = np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column.astype(np.str_)
        "".join(text.ravel().tolist()).encode()  # raises for what is not a character
    except (UnicodeError, ValueError, SystemError) as error:
        raise InputError(f"{where}: not valid text", "save it as an array of strings") from error
    return text


# -------------------------------------------------------------------------------------------------------- derivations


def _derivations(path: Path, columns: dict[str, NDArray[Any]], grammar: Grammar | None, check: bool) -> Dataset:
    try:
        origin = TypeAdapter(Origin).validate_json(_string(columns["origin"], path)) if "origin" in columns else None
    except ValueError as error:
        raise InputError(f"{path}: origin: invalid", "build the file again, or omit `origin`") from error
    origin = origin or Origin()
    if "grammar" in columns:
        grammar = parse_grammar(_string(columns["grammar"], path), origin.grammar or path.stem)
    elif grammar is None and "lhs" not in columns:
        raise InputError(f"{path}: ids without a grammar", "give --grammar, or `grammar` as text beside `ids`")
    rules = _rules(columns, path) if grammar is None else grammar.rules
    ids = checked_ids(columns["ids"], rules, f"{path}: ids", check=check)
    split, notes = _split(columns, [row.tobytes() for row in ids], f"{path}: split")
    return Dataset(path.stem, ids, split, rules=rules, grammar=grammar, origin=origin, notes=notes)


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _string(column: NDArray[Any], path: Path) -> str:
    """Text from its UTF-8 bytes as uint8, or from a single string."""
    if column.dtype == np.uint8:
        column = np.array(column.tobytes())
    if column.ndim or column.dtype.kind not in "SU":
        raise _invalid(f"{path}: text", column, "text is a string, or its UTF-8 bytes as uint8")
    return str(_text(column, f"{path}: text"))


def _rules(columns: dict[str, NDArray[Any]], path: Path) -> Rules:
    """Rules of which only the left-hand sides are known; the start symbol is that of the first row."""
    try:
        lhs = columns["lhs"].astype(np.int16, casting="safe").tolist()
        padding, first = columns["padding"].item(), int(columns["ids"].flat[0])
        if lhs[padding] != -1:
            raise ValueError
        return bare_rules(lhs, padding, lhs[first])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path}: lhs, padding: invalid", "build the file again from its ids and masks") from error


def bare_rules(lhs: list[int], padding: int, start: int) -> Rules:
    """Rules whose right-hand sides are not known, and whose symbols have numbers for names."""
    return Rules(tuple(map(str, range(max(lhs) + 1))), tuple(lhs), None, start, padding)


def checked_ids(ids: NDArray[Any], rules: Rules, where: str, *, check: bool = True) -> Ids:
    """Ids (N, T) as int16, each row a complete derivation by the rules; -1 stands for the padding rule.

    InputError with the first invalid row and step; see `wrong_step`. `check`: False for files written by arcvae.
    """
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise _invalid(where, ids, _IDS_FIX)
    ids = np.where(ids == -1, rules.padding, ids)
    for number, row in enumerate(ids if check else ()):
        if found := wrong_step(row.tolist(), rules):
            what = f"{where}: row {number}, step {found[0]}: {found[1]}"
            raise InputError(what, "rows are complete left-most derivations")
    return ids.astype(np.int16)


# ---------------------------------------------------------------------------------------------------------- ARC tasks


def _read_tasks(path: Path, files: list[Path]) -> Dataset:
    """ARC task JSON: one task a file, named as the file, or a file of {id: task}."""
    found = [pair for file in files for pair in _task_grids(file)]
    fitting = [(task, grid) for task, grid in found if max(grid.shape) <= SIDE]
    left_out = len(found) - len(fitting)
    note = (f"{left_out} grids over {SIDE}x{SIDE} were left out",) if left_out else ()
    if not fitting:
        raise InputError(f"{path}: no ARC grids up to {SIDE}x{SIDE}{f' ({note[0]})' if note else ''}", _TASK_FIX)
    tasks, rows = zip(*fitting, strict=True)
    grids, shape = padded(rows)
    keys = [task.encode() for task in tasks] if len(set(tasks)) >= 3 else canvas_keys(grids)
    return Dataset(path.stem, grids, split_by_key(keys), shape, np.array(tasks), notes=note)


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
