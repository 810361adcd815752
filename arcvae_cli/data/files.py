"""Datasets in files: `.npz` of grids or derivations, `.npy`, ARC task JSON. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, canvas_keys, joined, padded, refuse_large, split_by_key
from arcvae_cli.data.derivations import Ids, first_wrong, why_wrong
from arcvae_cli.data.symmetries import CELLS, COLOURS, SIDE, Grids
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, exists, is_dir, open_regular, read_limited
from arcvae_cli.grammar import MOST_RULES, Grammar, Rules, parse_grammar

SUFFIXES = (".npz", ".npy", ".json")

_COLUMNS = ("grids", "split", "shape", "task", *SPLITS, "ids", "grammar", "lhs", "padding", "origin")
_JSON_BYTES = 2**26
_SPLIT_NAMES = {name: index for index, name in enumerate(SPLITS)} | {"validation": SPLITS.index("val")}
_GRID_FIX = "grids are an array (N, 16, 16) of integers 0-9"
_IDS_FIX = "derivations are an array `ids` (N, T) of rule ids, with the `grammar` as text beside it"
_TASK_FIX = "ARC tasks are {'train': [{'input': [[0, 1], ...], 'output': ...}, ...], 'test': [...]}"


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a dataset as `.npz`, completely or not at all. ArcvaeError where that fails.

    Derivations are compressed; grids are not: 100,000 take 29 MB, which is read in a twentieth of a second.
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
        return _grids(path, {"grids": read_npy(path)})
    columns = read_npz(path)
    if "ids" in columns and "grids" not in columns:
        return _derivations(path, columns, grammar, check)
    return _grids(path, columns) if "grids" in columns else _grids_by_split(path, columns)


# ------------------------------------------------------------------------------------------------------------- arrays


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` that a dataset may have. InputError if it is damaged or too large."""
    with _reading(path), open_regular(path) as raw, ZipFile(raw) as archive:
        members = archive.infolist()
        for info in members:
            archive.open(info).close()  # compares both copies of its name: a damaged one would hide an array
        found = {name: info for info in members if (name := info.filename.removesuffix(".npy")) in _COLUMNS}
        refuse_large(str(path), sum(info.file_size for info in found.values()))
        columns = {}
        for name, info in found.items():
            with archive.open(info) as file:
                columns[name] = _array(file)
        return columns


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy`, in memory. InputError if it is damaged or too large."""
    with _reading(path), open_regular(path) as file:
        refuse_large(str(path), os.fstat(file.fileno()).st_size)
        return _array(file)


def map_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy` of any size, memory-mapped. InputError if it is damaged."""
    with _reading(path):
        open_regular(path).close()
        return np.lib.format.open_memmap(path, mode="r")


def _array(file: IO[bytes]) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):  # reading to the end also compares the checksum of a member of an archive
        raise ValueError("it is longer than its header says")
    return array


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
        raise InputError(
            f"{path}: damaged, or not a {path.suffix} of plain arrays ({reason:.200})",
            "save it again; pickled objects are never read",
        ) from error


# -------------------------------------------------------------------------------------------------------------- grids


def _grids(path: Path, columns: dict[str, NDArray[Any]]) -> Dataset:
    """From `grids` and what stands beside them."""
    grids, shape = _canvases(columns["grids"], f"{path}: grids")
    count = len(grids)
    if "shape" in columns:
        shape = _shapes(columns["shape"], grids, f"{path}: shape")
    task = None
    if "task" in columns:
        task = columns["task"]
        if task.shape != (count,) or task.dtype.kind not in "SUiu":
            raise InputError(
                f"{path}: task: {task.dtype} {task.shape} for {count} grids", "give a string for each grid"
            )
        task = _text(task, f"{path}: task")
    split, notes = _split(columns, count, f"{path}: split")
    return Dataset(
        path.stem, grids, split_by_key(canvas_keys(grids)) if split is None else split, shape, task, notes=notes
    )


def _grids_by_split(path: Path, columns: dict[str, NDArray[Any]]) -> Dataset:
    """From arrays `train`, `val`, `test`, some of which may be missing or empty."""
    held = {name: columns[name] for name in SPLITS if name in columns and columns[name].shape[:1] != (0,)}
    if not held:
        raise InputError(f"{path}: no grids", "save `grids` (N, 16, 16) and `split` (N,), or `train`, `val`, `test`")
    parts = []
    for name, column in held.items():
        grids, shape = _canvases(column, f"{path}: {name}")
        parts.append(Dataset(name, grids, np.full(len(grids), SPLITS.index(name), np.uint8), shape))
    if any(part.shape is not None for part in parts):
        whole = np.array([SIDE, SIDE], np.uint8)
        parts = [
            replace(part, shape=np.tile(whole, (len(part.x), 1))) if part.shape is None else part for part in parts
        ]
    return joined(path.stem, parts)


def _canvases(grids: NDArray[Any], where: str) -> tuple[Grids, Grids | None]:
    """Grids (N, H, W) of any integer type as (N, 16, 16) uint8, with their shapes if they had to be padded."""
    if grids.ndim != 3 or grids.dtype.kind not in "iu" or not grids.size or max(grids.shape[1:]) > SIDE:
        raise InputError(f"{where}: {grids.dtype} {grids.shape}", _GRID_FIX)
    low, high = int(grids.min()), int(grids.max())
    if low < 0 or high >= COLOURS:
        first = int(((grids < 0) | (grids >= COLOURS)).any(axis=(1, 2)).argmax())
        raise InputError(f"{where}: colours outside 0-9, from {low} to {high}, first in grid {first}", _GRID_FIX)
    count, height, width = grids.shape
    if (height, width) == (SIDE, SIDE):
        return np.ascontiguousarray(grids, dtype=np.uint8), None
    refuse_large(where, count * CELLS)
    canvases = np.zeros((count, SIDE, SIDE), np.uint8)
    canvases[:, :height, :width] = grids
    return canvases, np.tile(np.array([height, width], np.uint8), (count, 1))


def _shapes(shape: NDArray[Any], grids: Grids, where: str) -> Grids:
    fix = "`shape` is the (height, width) of each grid, 1-16, top-left on its canvas; omit it if unknown"
    if shape.shape != (len(grids), 2) or shape.dtype.kind not in "iu" or shape.min() < 1 or shape.max() > SIDE:
        raise InputError(f"{where}: {shape.dtype} {shape.shape} is not a shape for each of {len(grids)} grids", fix)
    sides = np.arange(SIDE)
    below = grids.any(axis=2) & (sides >= shape[:, :1])
    right = grids.any(axis=1) & (sides >= shape[:, 1:])
    outside = (below | right).any(axis=1)
    if outside.any():
        first = int(outside.argmax())
        raise InputError(f"{where}: grid {first} has colours outside its {shape[first, 0]}x{shape[first, 1]}", fix)
    return shape.astype(np.uint8)


def _split(
    columns: dict[str, NDArray[Any]], count: int, where: str
) -> tuple[NDArray[np.uint8] | None, tuple[str, ...]]:
    """The index into SPLITS of each example, None and a note if the file has no split."""
    if "split" not in columns:
        return None, ("no `split` in the file: examples are split 80/10/10 by a hash of their content",)
    split = columns["split"]
    if split.shape == (count,) and split.dtype.kind in "SU":
        split = np.array([_SPLIT_NAMES.get(name, -1) for name in _text(split, where).tolist()])
    if split.shape != (count,) or split.dtype.kind not in "iu" or split.min() < 0 or split.max() >= len(SPLITS):
        fix = f"`split` is 0, 1 or 2, or one of {', '.join(SPLITS)}, for each example"
        raise InputError(f"{where}: {columns['split'].dtype} {split.shape} is not a split for each of {count}", fix)
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
    origin = Origin()
    if "origin" in columns:
        try:
            origin = TypeAdapter(Origin).validate_json(_string(columns["origin"], f"{path}: origin"))
        except ValueError as error:
            raise InputError(f"{path}: origin: invalid", "build the file again, or omit `origin`") from error
    if "grammar" in columns:
        grammar = parse_grammar(_string(columns["grammar"], f"{path}: grammar"), origin.grammar or path.stem)
    if grammar is not None:
        rules = grammar.rules
    elif "lhs" in columns:
        rules = _rules(columns, path)
    else:
        raise InputError(f"{path}: ids without a grammar", "give --grammar, or `grammar` as text beside `ids`")
    ids = checked_ids(columns["ids"], rules, f"{path}: ids", derivations=check)
    split, notes = _split(columns, len(ids), f"{path}: split")
    if split is None:
        split = split_by_key([row.tobytes() for row in ids])
    return Dataset(path.stem, ids, split, rules=rules, grammar=grammar, origin=origin, notes=notes)


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _string(column: NDArray[Any], where: str) -> str:
    """Text from its UTF-8 bytes as uint8, or from a single string."""
    if column.dtype == np.uint8:
        column = np.array(column.tobytes())
    if column.ndim or column.dtype.kind not in "SU":
        raise InputError(f"{where}: {column.dtype} {column.shape}", "text is a string, or its UTF-8 bytes as uint8")
    return str(_text(column, where))


def _rules(columns: dict[str, NDArray[Any]], path: Path) -> Rules:
    """Rules of which only the left-hand sides are known; the start symbol is that of the first row."""
    lhs, padding, ids = columns["lhs"], columns.get("padding", np.array(-1)), columns["ids"]
    usable = lhs.ndim == 1 and lhs.dtype.kind == padding.dtype.kind == "i" and 1 < len(lhs) <= MOST_RULES
    last = int(padding) if usable and not padding.shape else -1
    symbols = set(lhs.tolist()) - {-1} if 0 <= last < len(lhs) else set()
    if not symbols or lhs[last] != -1 or symbols != set(range(len(symbols))):
        raise InputError(f"{path}: lhs, padding: invalid rules", "build the file again from its ids and masks")
    first = int(ids.flat[0]) if ids.size and ids.dtype.kind in "iu" else -1
    return bare_rules(lhs.tolist(), last, max(int(lhs[first]) if 0 <= first < len(lhs) else 0, 0))


def bare_rules(lhs: list[int], padding: int, start: int) -> Rules:
    """Rules whose right-hand sides are not known, and whose symbols have numbers for names."""
    return Rules(tuple(map(str, range(max(lhs) + 1))), tuple(lhs), None, start, padding)


def checked_ids(ids: NDArray[Any], rules: Rules, where: str, *, derivations: bool = True) -> Ids:
    """Ids (N, T) as int16, each row a complete derivation by the rules; -1 stands for the padding rule.

    If right-hand sides are not known, a row begins with a rule of the start symbol, contains usable rules only, and
    padding only at its end; without `derivations`, ids need only be those of rules. InputError with the first invalid
    row and step.
    """
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise InputError(f"{where}: {ids.dtype} {ids.shape}", _IDS_FIX)
    low, high = int(ids.min()), int(ids.max())
    if low < -1 or high >= len(rules):
        raise InputError(f"{where}: ids from {low} to {high}, the rules are 0 to {len(rules) - 1}", _IDS_FIX)
    made = ids.astype(np.int16)
    if low < 0:
        made[made < 0] = rules.padding
    wrong = first_wrong(made, rules) if derivations else np.zeros(0)
    if (wrong >= 0).any():
        row = int((wrong >= 0).argmax())
        reason = why_wrong(made[row].tolist(), rules, int(wrong[row]))
        raise InputError(f"{where}: row {row}, step {wrong[row]}: {reason}", "rows are complete left-most derivations")
    return made


# ---------------------------------------------------------------------------------------------------------- ARC tasks


def _read_tasks(path: Path, files: list[Path]) -> Dataset:
    """ARC task JSON: one task a file, named as the file, or a file of {id: task}."""
    found = [pair for file in files for pair in _grids_of(file)]
    fitting = [(task, grid) for task, grid in found if max(grid.shape) <= SIDE]
    left_out = len(found) - len(fitting)
    note = (f"{left_out} grids over {SIDE}x{SIDE} were left out",) if left_out else ()
    if not fitting:
        raise InputError(f"{path}: no ARC grids up to {SIDE}x{SIDE}{f' ({note[0]})' if note else ''}", _TASK_FIX)
    tasks, rows = zip(*fitting, strict=True)
    grids, shape = padded(rows)
    keys = [task.encode() for task in tasks] if len(set(tasks)) >= 3 else canvas_keys(grids)
    return Dataset(path.stem, grids, split_by_key(keys), shape, np.array(tasks), notes=note)


def _grids_of(file: Path) -> list[tuple[str, NDArray[Any]]]:
    """Every grid of a JSON file, of any size, with the id of its task; test pairs may have no output."""
    try:
        document = json.loads(read_limited(file, _JSON_BYTES))
        if any(isinstance(document.get(part), list) for part in ("train", "test")):
            document = {file.stem: document}
        found = [
            (task, pair[side], f"{file}: {task}.{part}[{index}].{side}")
            for task, parts in document.items()
            for part in ("train", "test")
            for index, pair in enumerate(parts.get(part, []))
            for side in ("input", "output")
            if side in pair
        ]
        json.dumps([task for task, _, _ in found], ensure_ascii=False).encode()  # raises for half of a character
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})", _TASK_FIX) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not an ARC task ({error})", _TASK_FIX) from error
    return [(task, _grid(rows, where)) for task, rows, where in found]


def _grid(rows: Any, where: str) -> NDArray[Any]:
    """A grid as an array (H, W) of integers 0-9."""
    try:
        grid = np.array(rows)
    except ValueError:  # rows of different lengths
        grid = np.zeros(0)
    if grid.ndim != 2 or not grid.size or grid.dtype.kind not in "iu" or grid.min() < 0 or grid.max() >= COLOURS:
        raise InputError(f"{where}: not a grid of integers 0-9", _TASK_FIX)
    return grid
