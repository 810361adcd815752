"""Datasets in files: `.npz`, `.npy`, ARC task JSON, maps as text, PNG, and folders. Nothing is ever unpickled."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.data.arrays import SPLITS, Dataset, Origin, on_canvas, padded, refuse_large, split_by_key
from arcvae_cli.data.derivations import Ids, wrong_step
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import atomic_write, is_dir, is_file, open_regular, read_limited
from arcvae_cli.grammar import Grammar, Rules, parse_grammar
from arcvae_cli.settings import SIDES, DataSettings

SUFFIXES = (".json", ".npz", ".npy", ".png", ".txt")  # of a folder with several kinds the first is read

_OF_GRIDS = ("grids", "split", "shape", "task", "groups", "canvas", *SPLITS)
_COLUMNS = (*_OF_GRIDS, "ids", "grammar", "lhs", "padding", "origin")
_FIX = "give grids (N, H, W) of integers 0-255, ids (N, T) of rules with a `grammar`, ARC JSON, PNG, or text in UTF-8"
_OTHER = Canvas(classes=2, arc=False)
_AS_THEY_ARE = DataSettings()
Columns = dict[str, NDArray[Any]]
To = DataSettings | Canvas
Found = Iterator[tuple[str | None, NDArray[Any]]]  # grids with their group, None for the name of the file


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a dataset as `.npz`, completely or not at all; derivations are compressed. ArcvaeError if that fails."""
    canvas = None if dataset.canvas == ARC else dataset.canvas.text()
    columns: dict[str, Any] = {"grids": dataset.x, "shape": dataset.shape, "task": dataset.task, "canvas": canvas}
    if dataset.rules is not None:
        columns = {"ids": dataset.x, "origin": json.dumps(asdict(dataset.origin))}
        if dataset.grammar is not None:
            columns["grammar"] = dataset.grammar.text
        else:
            columns |= {"lhs": np.array(dataset.rules.lhs, np.int16), "padding": dataset.rules.padding}
    columns = {name: column for name, column in columns.items() if column is not None}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        (np.savez if dataset.rules is None else np.savez_compressed)(file, split=dataset.split, **columns)


def read_dataset(path: Path, grammar: Grammar | None = None, to: To = _AS_THEY_ARE, *, check: bool = True) -> Dataset:
    """The dataset in an `.npz`, `.npy`, ARC task JSON, `.txt` or `.png`, or folder of one kind, subfolders included.

    `.npz` of grids: `grids` (N, H, W) of classes 0-255 with `split` (0, 1, 2 or train, val, test), or arrays `train`,
    `val`, `test`; `shape` (N, 2), `task` (N,) and `groups` (N,) are optional. Of derivations: `ids` (N, T), and
    `grammar` as text unless given here; `check`: whether they must be complete. Without a split it is 80/10/10 by a
    hash of the group (`groups`, a task of ARC, a file of a folder) if there are three or more, else of the content.
    Grids are put on a canvas as by `on_canvas`; of ARC JSON those that are larger, or than 16x16 if there is none, are
    left out with a note. InputError for a file that is missing, damaged, too large or different.
    """
    files = sorted(file for file in path.rglob("*") if is_file(file)) if is_dir(path) else [path]
    kind = next((suffix for suffix in SUFFIXES if suffix in [file.suffix.lower() for file in files]), None)
    if kind is None or not is_file(files[0]):
        fix = "give a .npz, .npy, ARC .json, .txt or .png, or a folder of those"
        raise InputError(f"{path}: no such file of grids or ids", fix)
    if kind in (".npz", ".npy") and path == files[0]:
        return from_columns(path, _columns(path), to, grammar, check=check)
    readers: dict[str, Callable[[Path], Found]] = {".json": _tasks, ".txt": _text, ".png": partial(_picture, {})}
    found, notes = list[tuple[str, NDArray[Any]]](), []
    for file in [file for file in files if file.suffix.lower() == kind]:
        name = file.stem if file == path else file.relative_to(path).with_suffix("").as_posix()
        with reading(file):
            found += [(key or name, grid) for key, grid in readers.get(kind, _array)(file)]
    if kind == ".json":
        room = to.shape if isinstance(to, Canvas) else to.sides or ARC.shape
        to = to if isinstance(to, Canvas) else to.model_copy(update={"canvas": f"{room[0]}x{room[1]}"})
        fitting = [one for one in found if (np.array(one[1].shape) <= room).all()]
        if left_out := len(found) - len(fitting):
            notes = [f"{left_out} grids over {room[0]}x{room[1]} were left out: --canvas 30x30 has room for all"]
        found = fitting
    own, grids = {".json": ARC, ".png": _OTHER}.get(kind), [grid for _, grid in found]
    if kind == ".txt":
        tiles, grids = _numbered(path, grids)
        own = replace(_OTHER, tiles=tiles)
    if kind == ".png" and to.classes in (None, 2) and {0, 255} >= {*np.concatenate([*map(np.unique, grids)]).tolist()}:
        grids = [grid // 255 for grid in grids]  # black and white; beside others 255 is a class
    columns = {"groups": np.array([group for group, grid in found for _ in range(len(grid) if grid.ndim == 3 else 1)])}
    if kind == ".json":  # also where all grids fill the canvas
        columns["shape"] = np.array([grid.shape for grid in grids])
    with reading(path):
        dataset = _dataset(path, grids, columns, to, own)
    return replace(dataset, notes=(*notes, *dataset.notes))


def from_columns(
    path: Path, columns: Columns, to: To = _AS_THEY_ARE, grammar: Grammar | None = None, *, check: bool = True
) -> Dataset:
    """The dataset of arrays named as in an `.npz`, see `read_dataset`; `path` is for its name and messages."""
    with reading(path):
        if "ids" in columns:
            return _derivations(path, columns, grammar, check)
        if "grids" in columns:
            return _dataset(path, [columns["grids"]], columns, to)
        found = {name: columns[name] for name in SPLITS if len(columns.get(name, ()))}
        split = [name for name, grids in found.items() for _ in range(len(grids))]
        return _dataset(path, [*found.values()], {"split": np.array(split)}, to)


def _columns(path: Path) -> Columns:
    """The arrays of an `.npz`, or of an `.npy` as `grids`."""
    with reading(path):
        if path.suffix.lower() == ".npy":
            refuse_large(str(path), map_npy(path).nbytes)
            return {"grids": map_npy(path)}
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            refuse_large(str(path), sum(info.file_size for info in arrays.zip.infolist()))
            return {name: arrays[name] for name in arrays.files if name in _COLUMNS}


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
    path: Path, stacks: Sequence[NDArray[Any]], columns: Columns, to: To, own: Canvas | None = None
) -> Dataset:
    """Grids (n, H, W) or (H, W) of any sizes, and what else is known of them all.

    `own`: what their classes mean; by default grids of 16x16 with classes 0-9 are taken for ARC.
    """
    if not stacks:
        raise InputError(f"{path}: no grids", _FIX)
    for stack in stacks:
        fits = stack.dtype.kind in "iub" and stack.ndim in (2, 3) and stack.size and max(stack.shape[-2:]) <= SIDES[1]
        if not fits or stack.min() < 0 or stack.max() > 255:
            values = f", {stack.min()} to {stack.max()}" if stack.dtype.kind in "iuf" and stack.size else ""
            fix = "give integers 0-255 (N, H, W) of 1x1 to 64x64 cells, as by `grids.astype(np.uint8)`"
            raise InputError(f"{path}: no grids of classes: {stack.dtype} {stack.shape}{values}", fix)
    most, sizes = max(int(stack.max()) for stack in stacks), {stack.shape[-2:] for stack in stacks}
    height, width = (max(SIDES[0], *sides) for sides in zip(*sizes, strict=True))
    named = to if isinstance(to, DataSettings) else None
    if len(sizes) > 1 and named is not None and named.canvas is None:
        small = "x".join(map(str, min(sizes)))
        raise InputError(f"{path}: grids of {len(sizes)} sizes from {small}", f"set --canvas {height}x{width}")
    if own is None:
        other = stacks[0].dtype == np.bool_ or (named is not None and named.classes is not None)
        own = _OTHER if other or sizes != {ARC.shape} or most >= ARC.classes else ARC
    canvas = replace(own, height=height, width=width, classes=max(own.classes, len(own.tiles), most + 1))
    if "canvas" in columns:
        canvas = Canvas.of(_string(columns["canvas"]))
        require(most < canvas.classes <= 256 and max(canvas.shape) <= SIDES[1], "canvas", columns["canvas"])
    x, shape = padded(stacks, canvas)
    if (task := columns.get("groups", columns.get("task"))) is not None:
        require(task.shape == (len(x),) and task.dtype.kind in "SUiu", "groups", task)
        task = task.astype(np.str_)
    if (known := columns.get("shape")) is not None:
        fits = known.shape == shape.shape and known.dtype.kind in "iu"
        require(fits and known.min() >= 1 and (known <= shape).all(), "shape", known)
        shape = known.astype(np.uint8)
    (split, notes), full = _split(columns, x), known is None and sizes == {canvas.shape}
    dataset = Dataset(path.stem, x, split, None if full else shape, task, canvas=canvas, notes=notes)
    x = x if full else np.where(dataset.inside(), x, np.uint8(canvas.void or 0))
    return on_canvas(replace(dataset, x=x), to)


def _split(columns: Columns, x: NDArray[Any]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The index into SPLITS of each example; by a hash of its group or content, with a note, if the file has no split.

    Groups train, val and test, or in folders of these names, are splits.
    """
    groups = columns.get("groups", columns.get("task", np.array([]))).astype(np.str_).tolist()
    heads = np.array([group.split("/")[0] for group in groups])
    split = columns.get("split", heads if {"train", "val"} <= {*heads.tolist()} <= {*SPLITS} else None)
    if split is None:
        keys, by = [one.tobytes() for one in x], "examples are split 80/10/10 by a hash of their content"
        if len({*groups}) >= 3:
            keys, by = [group.encode() for group in groups], "groups are split 80/10/10 by a hash of their names"
        return split_by_key(keys), (f"no `split` in the file: {by}",)
    if split.dtype.kind in "SU":
        names = {"train": 0, "val": 1, "validation": 1, "test": 2}
        split = np.array([names.get(name, -1) for name in split.astype(np.str_).ravel().tolist()])
    fits = split.shape == (len(x),) and split.dtype.kind in "iu" and split.min() >= 0 and split.max() < len(SPLITS)
    require(fits, "split", split)
    return split.astype(np.uint8), ()


def _derivations(path: Path, columns: Columns, grammar: Grammar | None, check: bool) -> Dataset:
    known = json.loads(_string(columns.get("origin", np.array("{}"))))
    origin = Origin(**{key: value for key, value in known.items() if key in Origin.__dataclass_fields__})
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


def _array(file: Path) -> Found:
    columns = _columns(file)
    if columns.keys() != {"grids"}:
        raise InputError(f"{file}: not only `grids`, as in a folder", "give it alone, or its grids as .npy")
    yield None, columns["grids"]


def _tasks(file: Path) -> Found:
    """ARC task JSON: one task, named as the file, or {id: task}; test pairs may have no output."""
    document = json.loads(file.read_text(encoding="utf-8"))
    one_task = any(isinstance(document.get(part), list) for part in ("train", "test"))
    for task, parts in ({file.stem: document} if one_task else document).items():
        for pair in (*parts.get("train", ()), *parts.get("test", ())):
            for rows in [pair[side] for side in ("input", "output") if side in pair]:
                grid = np.array(rows if len({*map(len, rows)}) == 1 else [])
                if grid.ndim != 2 or grid.dtype.kind != "i" or grid.min() < 0 or grid.max() >= ARC.classes:
                    raise ValueError(f"{task}: not a grid of integers 0-9 with rows of one length: {rows}")
                yield task, grid


def _text(file: Path) -> Found:
    """Maps as code points: a line is a row, empty lines separate maps."""
    lines, rows = re.split("\r?\n", read_limited(file, 2**26).decode("utf-8-sig")), list[str]()
    for number, line in enumerate([*lines, ""], 1):
        if rows and line and len(line) != len(rows[0]):
            what = f"{file}, line {number}: {len(line)} characters, the lines before have {len(rows[0])}"
            raise InputError(what, "make the lines of a map equally long; strings of a grammar need --grammar")
        if rows and not line:
            yield None, np.array([list(map(ord, row)) for row in rows], np.uint32)
        rows = [*rows, line] if line else []


def _numbered(path: Path, grids: Sequence[NDArray[Any]]) -> tuple[str, list[NDArray[Any]]]:
    """The characters of maps of code points, by frequency and then by code point, and the maps as indices of them."""
    cells = np.concatenate([np.zeros(0, np.uint32), *(grid.ravel() for grid in grids)])
    tiles, counts = np.unique(cells, return_counts=True)
    if not 2 <= len(tiles) <= 256:
        raise InputError(f"{path}: {len(tiles)} different characters in {len(grids)} maps", "use 2 to 256")
    order = np.lexsort((tiles, -counts))
    classes = order.argsort().astype(np.uint8)
    return "".join(map(chr, tiles[order].tolist())), [classes[np.searchsorted(tiles, grid)] for grid in grids]


def _picture(colours: dict[int, list[int]], file: Path) -> Found:
    """The values of a PNG, or the indices of its palette; `colours`: of each index, which all files share."""
    from PIL import Image  # takes a tenth of a second

    with open_regular(file) as opened, Image.open(opened, formats=["PNG"]) as image:
        if image.mode not in ("1", "L", "P") or max(image.size) > SIDES[1]:
            what = f"{file}: {image.height}x{image.width} pixels of mode {image.mode}"
            raise InputError(what, "use grey or a palette (indexed colours), and 64x64 pixels at most")
        palette = image.getpalette()
        grid = np.asarray(image if palette else image.convert("L"))
    for value in np.unique(grid).tolist():
        if palette and colours.setdefault(value, colour := palette[3 * value :][:3]) != colour:
            raise InputError(f"{file}: value {value} is another colour than in the files before", "use one palette")
    yield None, grid
