"""Datasets in files: `.npz` of grids or derivations, `.npy`, ARC task JSON, folders. Nothing is ever unpickled."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, as_set, on_canvas, padded, refuse_large, split_by_key
from arcvae_cli.data.derivations import Ids, wrong_step
from arcvae_cli.data.maps import MAP_SUFFIXES, read_maps
from arcvae_cli.data.symmetries import inside
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import atomic_write, is_dir, is_file, open_regular
from arcvae_cli.grammar import Grammar, Rules, parse_grammar
from arcvae_cli.settings import SIDES, DataSettings

SUFFIXES = (".npz", ".npy", ".json")

_OF_GRIDS = ("split", "shape", "task", "groups")  # what stands beside `grids`, a row a grid
_COLUMNS = ("grids", *_OF_GRIDS, "canvas", *SPLITS, "ids", "grammar", "lhs", "padding", "origin")
_FIX = "give grids (N, H, W) of integers 0-255, ids (N, T) of rules with a `grammar`, ARC JSON, or strings in UTF-8"
_AS_IN_FILE = DataSettings()


class Part(NamedTuple):
    """Grids (n, H, W) of one size, or one grid (H, W), and what is known of each: (n,), of shapes (n, 2)."""

    grids: NDArray[Any]
    split: NDArray[Any] | None = None
    shape: NDArray[Any] | None = None
    task: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None  # of which each goes into one split as a whole


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a dataset as `.npz`, completely or not at all; derivations are compressed. ArcvaeError if that fails."""
    columns: dict[str, Any] = {"grids": dataset.x, "shape": dataset.shape, "task": dataset.task}
    if dataset.canvas != ARC:
        columns["canvas"] = dataset.canvas.text()
    if dataset.rules is not None:
        columns = {"ids": dataset.x, "origin": json.dumps(asdict(dataset.origin))}
        if dataset.grammar is not None:
            columns["grammar"] = dataset.grammar.text
        else:
            columns |= {"lhs": np.array(dataset.rules.lhs, np.int16), "padding": dataset.rules.padding}
    columns = {name: column for name, column in columns.items() if column is not None}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        (np.savez if dataset.rules is None else np.savez_compressed)(file, split=dataset.split, **columns)


def read_dataset(
    path: Path,
    grammar: Grammar | None = None,
    data: DataSettings = _AS_IN_FILE,
    model: Canvas | None = None,
    *,
    check: bool = True,
) -> Dataset:
    """The dataset in an `.npz`, `.npy`, ARC task JSON, `.txt` or `.png`, or folder of one kind, subfolders included.

    `.npz` of grids: `grids` (N, H, W) of classes 0-255 with `split` (0, 1, 2 or train, val, test), or arrays `train`,
    `val`, `test`; `shape` (N, 2), `task` (N,) and `groups` (N,) are optional. Of derivations: `ids` (N, T), and
    `grammar` as text unless given here; `check`: whether they must be complete. Without a split it is 80/10/10 by a
    hash of the group (`groups`, a task of ARC, a file of a folder) where there are three or more, else of the content.
    Grids are put on the canvas of `data`, or on that of a `model`; of ARC JSON those over 16x16 are left out, with a
    note, if neither has one. InputError for a file that is missing, damaged, too large or different.
    """
    if is_dir(path):
        return _folder(path, data, model)
    if path.suffix.lower() in MAP_SUFFIXES and is_file(path):
        return _maps(path, [path], data, model)
    if path.suffix.lower() not in SUFFIXES or not is_file(path):
        raise InputError(f"{path}: no such file of grids or ids", "give a .npz, .npy, ARC .json, or a folder of those")
    if path.suffix.lower() == ".json":
        return _tasks(path, [path], data, model)
    columns = _columns(path)
    if "ids" in columns:
        with reading(path):
            return _derivations(path, columns, grammar, check)
    return from_columns(path, columns, data, model)


def from_columns(
    path: Path, columns: dict[str, NDArray[Any]], data: DataSettings = _AS_IN_FILE, model: Canvas | None = None
) -> Dataset:
    """The dataset of arrays named as in an `.npz` of grids, see `read_dataset`; `path` is for its name and messages."""
    with reading(path):
        canvas = Canvas.of(_string(columns["canvas"])) if "canvas" in columns else None
        return _dataset(path, _parts(columns), data, model, canvas)


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz`, or of an `.npy` as `grids`."""
    with reading(path):
        if path.suffix.lower() == ".npy":
            refuse_large(str(path), map_npy(path).nbytes)
            return {"grids": map_npy(path)}
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            refuse_large(str(path), sum(info.file_size for info in arrays.zip.infolist()))
            return {name: arrays[name] for name in arrays.files if name in _COLUMNS}


def _parts(columns: dict[str, NDArray[Any]]) -> list[Part]:
    """`grids` and what stands beside them, or arrays `train`, `val`, `test`, empty ones left out."""
    if "grids" in columns:
        return [Part(columns["grids"], *(columns.get(name) for name in _OF_GRIDS))]
    found = {name: columns[name] for name in SPLITS if len(columns.get(name, ()))}
    return [Part(grids, np.full(len(grids), name)) for name, grids in found.items()]


def _folder(path: Path, data: DataSettings, model: Canvas | None) -> Dataset:
    """ARC JSON, else arrays, each file being a group; files or subfolders train, val, test are the splits."""
    files = sorted(file for file in path.rglob("*") if is_file(file))
    if tasks := [file for file in files if file.suffix.lower() == ".json"]:
        return _tasks(path, tasks, data, model)
    parts: list[Part] = []
    for file in (file for file in files if file.suffix.lower() in SUFFIXES):
        for part in _parts(_columns(file)):
            key = np.full(part.grids.shape[:-2], file.relative_to(path).with_suffix("").as_posix())
            parts.append(part if part.groups is not None else part._replace(groups=np.atleast_1d(key)))
    if not parts and (maps := [file for file in files if file.suffix.lower() in MAP_SUFFIXES]):
        return _maps(path, maps, data, model)
    if not parts:
        raise InputError(f"{path}: no grids in this folder", _FIX)
    with reading(path):
        return _dataset(path, parts, data, model)


def _maps(path: Path, files: Sequence[Path], data: DataSettings, model: Canvas | None) -> Dataset:
    """Maps as text or PNG, of which each file is a group; they are never taken for ARC grids."""
    grids, tiles = read_maps(path, files)
    (height, width), classes = grids[0][1].shape, max(int(grid.max()) for _, grid in grids) + 1
    alike = all(grid.shape == (height, width) for _, grid in grids)
    canvas = Canvas(height, width, classes, arc=False, tiles=tiles) if alike else None
    with reading(path):
        parts = [Part(grid, groups=np.array([key])) for key, grid in grids]
        return _dataset(path, parts, data, model, canvas, tiles=tiles)


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


def _dataset(
    path: Path,
    parts: Sequence[Part],
    data: DataSettings,
    model: Canvas | None,
    canvas: Canvas | None = None,
    notes: tuple[str, ...] = (),
    tiles: str = "",
) -> Dataset:
    """All parts on the canvas of `data` or `model`. `canvas`: that they have in the file, `tiles`: see Canvas."""
    most = max((_checked(path, part) for part in parts), default=0)
    sizes = sorted({part.grids.shape[-2:] for part in parts}, key=lambda size: (size[0] * size[1], size))
    if not sizes:
        raise InputError(f"{path}: no grids", _FIX)
    side = max(size[0] for size in sizes), max(size[1] for size in sizes)
    if canvas is None and len(sizes) > 1 and data.canvas is None and model is None:
        least, largest, size = (f"{one[0]}x{one[1]}" for one in (sizes[0], sizes[-1], side))
        raise InputError(
            f"{path}: grids of {len(sizes)} sizes, {least} to {largest}", f"set --canvas {size} to pad them"
        )
    if canvas is None:
        integers = all(part.grids.dtype != np.bool_ for part in parts)
        arc = sizes == [ARC.shape] and most < ARC.classes and integers and not tiles and data.classes is None
        canvas = ARC if arc else Canvas(*side, max(2, len(tiles), most + 1), arc=False, tiles=tiles)
    require(side[0] <= canvas.height and side[1] <= canvas.width and most < canvas.classes, "canvas", parts[0].grids)
    x, shape = padded([part.grids for part in parts], canvas)
    if any(part.shape is not None for part in parts):
        given = [padded([part.grids])[1] if part.shape is None else part.shape for part in parts]
        shape = np.concatenate(given).astype(np.uint8)
        x = x if canvas == ARC else np.where(inside(shape, canvas), x, np.uint8(canvas.void or 0))
    columns = {name: _column([getattr(part, name) for part in parts], name) for name in ("split", "task", "groups")}
    split, more = _split(columns["split"], x, columns["groups"])
    task = columns["groups"] if columns["task"] is None else columns["task"]
    full = all(part.shape is None for part in parts) and sizes == [canvas.shape]
    dataset = Dataset(
        path.stem,
        x,
        split,
        None if full else shape,
        None if task is None else task.astype(np.str_),
        canvas=canvas,
        notes=notes + more,
    )
    return as_set(dataset, data) if model is None else on_canvas(dataset, model, "the model's ")


def _checked(path: Path, part: Part) -> int:
    """The largest class of a part. InputError for grids that are no classes, ValueError for what does not fit them."""
    grids, kind = part.grids, part.grids.dtype.kind
    if kind == "f":
        whole = bool((grids == np.floor(grids)).all())
        fix = "(grids > 0.5).astype(np.uint8)` for two classes" if not whole else "grids.astype(np.uint8)`"
        raise InputError(f"{path}: {grids.dtype} grids, but classes are integers", f"save `{fix}")
    require(grids.ndim in (2, 3) and kind in "iub", "grids", grids)
    if not grids.size:
        raise InputError(f"{path}: 0 grids, {grids.shape}", _FIX)
    if max(grids.shape[-2:]) > SIDES[1]:
        raise InputError(
            f"{path}: grids of {grids.shape[-2]}x{grids.shape[-1]}, the limit is 64x64", "use smaller grids"
        )
    least, most = int(grids.min()), int(grids.max())
    if least < 0 or most > 255:
        fix = "number the classes from 0: `np.unique(grids, return_inverse=True)`"
        raise InputError(f"{path}: classes from {least} to {most}, possible are 0 to 255", fix)
    for name in ("split", "shape", "task", "groups"):
        column = getattr(part, name)
        if column is not None:
            rows = (grids.size // (grids.shape[-2] * grids.shape[-1]), *[2] * (name == "shape"))
            require(column.shape == rows and column.dtype.kind in ("iu" if name == "shape" else "SUiu"), name, column)
    if (shape := part.shape) is not None:
        require(shape.min() >= 1 and (shape <= grids.shape[-2:]).all(), "shape", shape)
    return most


def _column(columns: Sequence[NDArray[Any] | None], name: str) -> NDArray[Any] | None:
    """A column of all parts; None if they have none."""
    found = [column for column in columns if column is not None]
    if found and len(found) < len(columns):
        raise ValueError(f"{name}: given for some of the arrays only")
    return np.concatenate(found) if found else None


def _split(
    split: NDArray[Any] | None, x: NDArray[Any], groups: NDArray[Any] | None = None
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The index into SPLITS of each example; drawn by a hash of its group or content, with a note, if there is none."""
    names = {"train": 0, "val": 1, "validation": 1, "test": 2}
    if split is None:
        keys = [] if groups is None else groups.astype(np.str_).tolist()
        heads = [key.split("/")[0] for key in keys]
        if {"train", "val"} <= set(heads) <= set(SPLITS):
            split = np.array(heads)
        elif len(set(keys)) >= 3:
            note = "no `split`: whole groups are split 80/10/10 by a hash of their names"
            return split_by_key([key.encode() for key in keys]), (note,)
        else:
            note = "no `split` in the file: examples are split 80/10/10 by a hash of their content"
            return split_by_key([one.tobytes() for one in x]), (note,)
    if split.dtype.kind in "SU":
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
    split, notes = _split(columns.get("split"), ids)
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


def _tasks(path: Path, files: Sequence[Path], data: DataSettings, model: Canvas | None) -> Dataset:
    """ARC task JSON: one task a file, named as the file, or a file of {id: task}; test pairs may have no output."""
    parts: list[Part] = []
    for file in files:
        with reading(file):
            document = json.loads(file.read_text(encoding="utf-8"))
            one_task = any(isinstance(document.get(part), list) for part in ("train", "test"))
            for task, pairs in ({file.stem: document} if one_task else document).items():
                for pair in (*pairs.get("train", ()), *pairs.get("test", ())):
                    for rows in [pair[side] for side in ("input", "output") if side in pair]:
                        if len({*map(len, rows)}) != 1:
                            raise ValueError(f"{task}: ragged rows: {rows}")
                        grid = np.array(rows)
                        if grid.ndim != 2 or grid.dtype.kind != "i" or grid.min() < 0 or grid.max() >= ARC.classes:
                            raise ValueError(f"{task}: not a grid of integers 0-9: {rows}")
                        name = np.array([task])
                        parts.append(Part(grid, None, np.array([grid.shape]), name, name))
    canvas, fitting = ARC, parts
    if data.canvas is not None or (model is not None and model.shape != ARC.shape):
        canvas = Canvas(*(max((part.grids.shape[axis] for part in parts), default=1) for axis in (0, 1)))
    else:
        fitting = [part for part in parts if max(part.grids.shape) <= max(ARC.shape)]
    if not fitting:
        raise InputError(f"{path}: no ARC grids up to 16x16 among {len(parts)}", "set --canvas 30x30 for larger ones")
    left_out = f"{len(parts) - len(fitting)} grids over 16x16 were left out: --canvas 30x30 has room for them"
    with reading(path):
        return _dataset(path, fitting, data, model, canvas, (left_out,) * (len(parts) > len(fitting)))
