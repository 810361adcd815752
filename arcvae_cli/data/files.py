"""Datasets in files: `.npz` of grids or derivations, `.npy`, ARC task JSON. Nothing is ever unpickled."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, padded, refuse_large, split_by_key
from arcvae_cli.data.derivations import Ids, wrong_step
from arcvae_cli.data.symmetries import COLOURS, SIDE
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import atomic_write, is_dir, is_file, open_regular
from arcvae_cli.grammar import Grammar, Rules, parse_grammar

SUFFIXES = (".npz", ".npy", ".json")

_COLUMNS = ("grids", "split", "shape", "task", *SPLITS, "ids", "grammar", "lhs", "padding", "origin")
_FIX = "give grids (N, 16, 16) of integers 0-9, ids (N, T) of rules with a `grammar`, ARC JSON, or strings in UTF-8"


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a dataset as `.npz`, completely or not at all; derivations are compressed. ArcvaeError if that fails."""
    columns: dict[str, Any] = {"grids": dataset.x, "shape": dataset.shape, "task": dataset.task}
    if dataset.rules is not None:
        columns = {"ids": dataset.x, "origin": json.dumps(asdict(dataset.origin))}
        if dataset.grammar is not None:
            columns["grammar"] = dataset.grammar.text
        else:
            columns |= {"lhs": np.array(dataset.rules.lhs, np.int16), "padding": dataset.rules.padding}
    columns = {name: column for name, column in columns.items() if column is not None}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        (np.savez if dataset.rules is None else np.savez_compressed)(file, split=dataset.split, **columns)


def read_dataset(path: Path, grammar: Grammar | None = None, *, check: bool = True) -> Dataset:
    """The dataset in an `.npz`, `.npy`, ARC task JSON file, or folder of those, subfolders included.

    `.npz` of grids: `grids` (N, H, W) of integers 0-9 with `split` (0, 1, 2 or train, val, test), or arrays `train`,
    `val`, `test`; `shape` (N, 2) and `task` (N,) are optional. Of derivations: `ids` (N, T), and `grammar` as text
    unless given here; `check`: whether they must be complete. Without a split it is 80/10/10 by a hash of the content,
    of the task for ARC JSON of three or more. Smaller grids are padded with 0, larger ARC grids left out with a note.
    InputError for a file that is missing, damaged, too large or different.
    """
    if is_dir(path):
        return _read_tasks(path, sorted(file for file in path.rglob("*.json") if is_file(file)))
    if path.suffix.lower() not in SUFFIXES or not is_file(path):
        raise InputError(f"{path}: no such file of grids or ids", "give a .npz, .npy, ARC .json, or a folder of those")
    if path.suffix.lower() == ".json":
        return _read_tasks(path, [path])
    with reading(path):
        if path.suffix.lower() == ".npy":
            refuse_large(str(path), map_npy(path).nbytes)
            return _grids(path, {"grids": map_npy(path)})
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            refuse_large(str(path), sum(info.file_size for info in arrays.zip.infolist()))
            columns = {name: arrays[name] for name in arrays.files if name in _COLUMNS}
        return _derivations(path, columns, grammar, check) if "ids" in columns else _grids(path, columns)


def map_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy` of any size, memory-mapped. InputError if it is damaged."""
    with reading(path), open_regular(path):
        return np.lib.format.open_memmap(path, mode="r")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what is raised while a file is read, or its content is checked, into an InputError."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})", "give another file") from error
    except Exception as error:  # NumPy, zipfile and json raise a dozen types for damaged files
        reason = one_line(str(error) or type(error).__name__)
        raise InputError(f"{path}: damaged or invalid ({reason:.200})", _FIX) from error


def require(fits: object, name: str, array: NDArray[Any]) -> None:
    """ValueError, with the type and the shape of the array of this name, unless it fits."""
    if not fits:
        raise ValueError(f"{name}: invalid, {array.dtype} {array.shape}")


def _grids(path: Path, columns: dict[str, NDArray[Any]]) -> Dataset:
    """From `grids` and what stands beside them, or from arrays `train`, `val`, `test`, empty ones ignored."""
    names = ["grids"] if "grids" in columns else [name for name in SPLITS if len(columns.get(name, ()))]
    canvases, counts = [], [len(columns[name]) for name in names]
    for name in names:
        grids = columns[name]
        fits = grids.ndim == 3 and grids.dtype.kind in "iu" and grids.size and max(grids.shape[1:]) <= SIDE
        require(fits and grids.min() >= 0 and grids.max() < COLOURS, name, grids)
        canvases.append(np.pad(grids.astype(np.uint8), ((0, 0), *((0, SIDE - side) for side in grids.shape[1:]))))
    x, sides = np.concatenate(canvases), np.repeat([columns[name].shape[1:] for name in names], counts, axis=0)
    shape = None if (sides == SIDE).all() else sides.astype(np.uint8)
    if names != ["grids"]:
        return Dataset(path.stem, x, np.repeat([np.uint8(SPLITS.index(name)) for name in names], counts), shape)
    if (given := columns.get("shape")) is not None:
        fits = given.shape == (len(x), 2) and given.dtype.kind in "iu" and given.min() >= 1 and given.max() <= SIDE
        require(fits, "shape", given)
        shape = given.astype(np.uint8)
    if (task := columns.get("task")) is not None:
        require(task.shape == (len(x),) and task.dtype.kind in "SUiu", "task", task)
        task = task.astype(np.str_)
    split, notes = _split(columns, x)
    return Dataset(path.stem, x, split, shape, task, notes=notes)


def _split(columns: dict[str, NDArray[Any]], x: NDArray[Any]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The index into SPLITS of each example; by a hash of its content, with a note, if the file has no split."""
    if (split := columns.get("split")) is None:
        keys = [one.tobytes() for one in x]
        return split_by_key(keys), ("no `split` in the file: examples are split 80/10/10 by a hash of their content",)
    if split.dtype.kind in "SU":
        names = {"train": 0, "val": 1, "validation": 1, "test": 2}
        split = np.array([names.get(name, -1) for name in split.astype(np.str_).ravel().tolist()])
    fits = split.shape == (len(x),) and split.dtype.kind in "iu" and split.min() >= 0 and split.max() < len(SPLITS)
    require(fits, "split", split)
    return split.astype(np.uint8), ()


def _derivations(path: Path, columns: dict[str, NDArray[Any]], grammar: Grammar | None, check: bool) -> Dataset:
    origin = Origin(**json.loads(_string(columns["origin"]))) if "origin" in columns else Origin()
    if "grammar" in columns:
        grammar = parse_grammar(_string(columns["grammar"]), origin.grammar or path.stem)
    if grammar is not None:
        rules = grammar.rules
    elif "lhs" in columns:  # the start symbol is that of the first row
        lhs, padding = columns["lhs"].tolist(), columns["padding"].item()
        rules = bare_rules(lhs, padding, lhs[int(columns["ids"].flat[0])])
    else:
        raise InputError(f"{path}: ids without a grammar", "give --grammar, or `grammar` as text beside `ids`")
    ids = checked_ids(columns["ids"], rules, check=check)
    split, notes = _split(columns, ids)
    return Dataset(path.stem, ids, split, rules=rules, grammar=grammar, origin=origin, notes=notes)


def _string(column: NDArray[Any]) -> str:
    """Text as one string, or as its bytes in UTF-8, which files of earlier versions have."""
    return column.tobytes().decode() if column.dtype == np.uint8 else str(column.astype(np.str_))


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


def _read_tasks(path: Path, files: Sequence[Path]) -> Dataset:
    """ARC task JSON: one task a file, named as the file, or a file of {id: task}; test pairs may have no output."""
    found: list[tuple[str, NDArray[Any]]] = []
    for file in files:
        with reading(file):
            document = json.loads(file.read_text(encoding="utf-8"))
            one_task = any(isinstance(document.get(part), list) for part in ("train", "test"))
            for task, parts in ({file.stem: document} if one_task else document).items():
                for pair in (*parts.get("train", ()), *parts.get("test", ())):
                    for rows in [pair[side] for side in ("input", "output") if side in pair]:
                        grid = np.array(rows if len({*map(len, rows)}) == 1 else [])
                        if grid.ndim != 2 or grid.dtype.kind != "i" or grid.min() < 0 or grid.max() >= COLOURS:
                            raise ValueError(f"{task}: not a grid of integers 0-9: {rows}")
                        found.append((task, grid))
    fitting = [(task, grid) for task, grid in found if max(grid.shape) <= SIDE]
    if not fitting:
        raise InputError(f"{path}: no ARC grids up to {SIDE}x{SIDE} among {len(found)}", _FIX)
    tasks, arrays = zip(*fitting, strict=True)
    grids, shape = padded(arrays)
    keys = [task.encode() for task in tasks] if len(set(tasks)) >= 3 else [grid.tobytes() for grid in grids]
    notes = (f"{len(found) - len(fitting)} grids over {SIDE}x{SIDE} were left out",) * (len(found) > len(fitting))
    return Dataset(path.stem, grids, split_by_key(keys), shape, np.array(tasks), notes=notes)
