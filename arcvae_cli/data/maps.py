"""Maps as text, a character a tile, and PNG files as grids of classes."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.errors import InputError, first_line
from arcvae_cli.files import open_regular, read_limited
from arcvae_cli.settings import SIDES

MAP_SUFFIXES = (".txt", ".png")
TEXT_BYTES = 2**26  # of a file, at most


def read_maps(path: Path, files: Sequence[Path]) -> tuple[list[tuple[str, NDArray[np.uint8]]], str]:
    """The grids (H, W) of files below `path` with the name of the file of each, and the characters of their classes.

    Text in UTF-8: a line is a row, empty lines separate maps; classes are numbered by frequency in all files, then by
    code point. PNG, black and white, grey or with a palette: the darkest is class 0, then by value, and no characters.
    InputError for other files, ragged maps, and less than 2 or more than 256 classes.
    """
    kinds, colours = {file.suffix.lower() for file in files}, dict[int, tuple[int, ...]]()
    if len(kinds) != 1:
        raise InputError(f"{path}: {' and '.join(sorted(kinds)) or 'no grids'}", "give files of one kind")
    found, text = list[tuple[str, NDArray[Any]]](), kinds == {".txt"}
    for file in files:
        key = file.stem if file == path else file.relative_to(path).with_suffix("").as_posix()
        try:
            found += [(key, grid) for grid in (_text(file) if text else [_picture(file, colours)])]
        except (OSError, SyntaxError, ValueError) as error:  # of Pillow, UTF-8 and zlib
            raise InputError(f"{file}: cannot be read ({first_line(error)})", "give text in UTF-8, or PNG") from error
    cells = np.concatenate([np.zeros(0, np.uint8), *(grid.ravel() for _, grid in found)])
    values, counts = np.unique(cells, return_counts=True)
    if not 2 <= len(values) <= 256:
        what = f"{path}: {len(values)} different {'characters' if text else 'values'} in {len(found)} maps"
        raise InputError(what, "use 2 to 256")
    darkest = 0 if text else np.argmin([sum(colours[value]) for value in values.tolist()])
    order = np.lexsort((values, -counts if text else np.arange(len(values)) != darkest))
    classes, tiles = order.argsort().astype(np.uint8), "".join(map(chr, values[order].tolist())) if text else ""
    return [(key, classes[np.searchsorted(values, grid)]) for key, grid in found], tiles


def _text(file: Path) -> Iterator[NDArray[np.uint32]]:
    lines, rows = re.split("\r?\n", read_limited(file, TEXT_BYTES).decode("utf-8-sig")), list[str]()
    for number, line in enumerate([*lines, ""], 1):
        if rows and line and len(line) != len(rows[0]):
            what = f"{file}, line {number}: {len(line)} characters, the lines before have {len(rows[0])}"
            raise InputError(what, "make the lines of a map equally long; strings of a grammar need --grammar")
        if rows and not line:
            yield np.array([list(map(ord, row)) for row in rows], np.uint32)
        rows = [*rows, line] if line else []


def _picture(file: Path, colours: dict[int, tuple[int, ...]]) -> NDArray[np.uint8]:
    """The values of a PNG; `colours`: those of each value, which all files share."""
    from PIL import Image  # takes a tenth of a second

    with open_regular(file) as opened, Image.open(opened, formats=["PNG"]) as image:
        if image.mode not in ("1", "L", "P") or max(image.size) > SIDES[1]:
            what = f"{file}: {image.height}x{image.width} pixels of mode {image.mode}"
            raise InputError(what, "use grey or a palette (indexed colours), and 64x64 pixels at most")
        palette = image.getpalette()
        grid = np.asarray(image if palette else image.convert("L"))
    for value in np.unique(grid).tolist():
        colour = tuple(palette[3 * value :][:3]) if palette else (value,) * 3
        if colours.setdefault(value, colour) != colour:
            raise InputError(f"{file}: value {value} is another colour than in the files before", "use one palette")
    return grid
