"""The attributes of a grid that a conditional model takes: measured, parsed from the command line, checked."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.canvas import Canvas
from arcvae_cli.errors import InputError, nearest

Grids = NDArray[np.uint8]
Values = NDArray[np.int64]

COLOURS = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "azure", "maroon")
OBJECT_CAP = 20  # objects counted in a grid at most: in noise every cell is one
NAMED = 16  # classes at most that have a condition each: as many more would outweigh all others, and be hard to list
NOT_GIVEN = -1  # in place of a value: left open
CHUNK = 8192  # grids measured at once: some 20 MB, and faster than all together


class Attribute(NamedTuple):
    """A condition with the values 0 to `size - 1`, where a size of 2 means no and yes; `text` describes it."""

    name: str
    size: int
    text: str

    @property
    def values(self) -> tuple[str, ...]:
        return ("no", "yes") if self.size == 2 and self.name != "classes" else tuple(map(str, range(self.size)))


@cache
def attributes(canvas: Canvas) -> tuple[Attribute, ...]:
    """The conditions in the order of their columns. A blank grid has 0 everywhere: it counts as not symmetric."""
    kind, kinds = ("colour", "colours") if canvas.arc else ("class", "classes")
    found, empty = [], "background" if canvas.outside is None else "outside of a grid"
    if canvas.void is not None:
        found.append(Attribute("height", canvas.height + 1, f"rows down to the last that is not all {empty}"))
        found.append(Attribute("width", canvas.width + 1, f"columns to the last that is not all {empty}"))
    found.append(Attribute(kinds, len(canvas.content) + 1, f"how many {kinds} occur, without the background"))
    if canvas.classes <= NAMED:
        names = COLOURS if canvas.arc else tuple(map(repr, canvas.tiles)) or tuple(f"class {n}" for n in range(NAMED))
        if canvas.background is not None:
            text = f"{names[canvas.background]} occurs within height x width"
            found.append(Attribute(f"{kind}_{canvas.background}", 2, text))
        found += [Attribute(f"{kind}_{number}", 2, f"{names[number]} occurs") for number in canvas.content]
    text = f"4-connected areas of one {kind}, without the background; {OBJECT_CAP} is {OBJECT_CAP} or more"
    found.append(Attribute("objects", OBJECT_CAP + 1, text))
    found.append(Attribute("symmetry_lr", 2, f"left-right symmetry of what is not {empty}"))
    return (*found, Attribute("symmetry_ud", 2, f"up-down symmetry of what is not {empty}"))


@cache
def columns(canvas: Canvas) -> dict[str, int]:
    """The column of each attribute, by its name."""
    return {attribute.name: column for column, attribute in enumerate(attributes(canvas))}


def layout(canvas: Canvas) -> tuple[slice, slice, slice, slice]:
    """Columns of the extents, the number of classes, the presence of each class of the content, the symmetries.

    As slices, which may be empty: an index by a list would be copied to the device with every call.
    """
    count, last = 0 if canvas.void is None else 2, len(attributes(canvas))
    first = count + 1 + (canvas.background is not None)
    present = slice(first, first + len(canvas.content)) if canvas.classes <= NAMED else slice(0)
    return slice(count), slice(count, count + 1), present, slice(last - 2, last)


def measure(grids: Grids, canvas: Canvas) -> Values:
    """(n, A) values of grids (n, H, W), in the order of `attributes`: about a second for 100,000 of 16x16."""
    parts = [np.empty((0, len(attributes(canvas))), np.int64)]
    for start in range(0, len(grids), CHUNK):
        some = grids[start : start + CHUNK]
        objects = np.minimum(np.bincount(objects_of(some, canvas)[0], minlength=len(some)), OBJECT_CAP)
        x = torch.from_numpy(some.astype(np.int64))
        parts.append(batch_conditions(x, torch.from_numpy(objects), canvas).numpy())
    return np.concatenate(parts)


def batch_conditions(x: Tensor, objects: Tensor, canvas: Canvas) -> Tensor:
    """(B, A) values of x (B, H, W) int64 on its device, without a sync, given how many objects it has (B,)."""
    inside = torch.full_like(x, True, dtype=torch.bool) if canvas.void is None else x != canvas.void
    extents, symmetric = [], []
    for axis in (1, 2):  # rows, columns
        lines, number = inside.any(dim=3 - axis), torch.arange(x.shape[axis], device=x.device)
        extent = (lines * (number + 1)).amax(dim=1, keepdim=True)
        # the mirror image of each line; empty lines outside the extent map to one another
        image = (lines.int().argmax(dim=1, keepdim=True) + extent - 1 - number) % len(number)
        same = x.gather(axis, image.unsqueeze(3 - axis).expand_as(x)) == x
        symmetric.append(same.flatten(1).all(dim=1, keepdim=True) & (extent > 0))
        extents.append(extent)
    seen = torch.zeros(len(x), canvas.classes, dtype=torch.int64, device=x.device).scatter_(1, x.flatten(1), 1)
    last = canvas.classes if canvas.outside is None else canvas.outside
    back = last if canvas.background is None else canvas.background
    present = torch.cat([seen[:, :back], seen[:, back + 1 : last]], dim=1)
    found = [*(extents if canvas.void is not None else []), present.sum(dim=1, keepdim=True)]
    if canvas.classes <= NAMED:
        if canvas.background is not None:
            gaps = inside.flatten(1).sum(dim=1, keepdim=True) < extents[0] * extents[1]
            found.append(gaps if canvas.outside is None else seen[:, back : back + 1])
        found.append(present)
    return torch.cat([*found, objects[:, None], *symmetric[::-1]], dim=1)


def objects_of(grids: Grids, canvas: Canvas) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every object (4-connected, of one class of the content) of grids (n, H, W): index of its grid, size in cells."""
    from scipy import ndimage  # slow to import, and needed for conditional models only

    within_a_grid = np.pad(ndimage.generate_binary_structure(2, 1)[None], ((1, 1), (0, 0), (0, 0)))
    content, (count, height, width) = np.isin(grids, canvas.content), grids.shape
    linked = np.zeros((count, 2 * height - 1, 2 * width - 1), np.bool_)  # cells, and links between them
    linked[:, ::2, ::2] = content
    linked[:, ::2, 1::2] = content[:, :, 1:] & (grids[:, :, 1:] == grids[:, :, :-1])
    linked[:, 1::2, ::2] = content[:, 1:] & (grids[:, 1:] == grids[:, :-1])
    labels, objects = ndimage.label(linked, within_a_grid)
    cells = labels[:, ::2, ::2][content] - 1
    owners = np.empty(objects, np.intp)
    owners[cells] = np.nonzero(content)[0]
    return owners, np.bincount(cells, minlength=objects)


def parse(texts: Sequence[str], canvas: Canvas) -> dict[str, int]:
    """The values of repeated `--condition key=value`, by the attribute's name; InputError for an invalid one."""
    keys = {one.name: {text: {one.name: i} for i, text in enumerate(one.values)} for one in attributes(canvas)}
    keys |= {name: keys[f"colour_{number}"] for number, name in enumerate(COLOURS) if canvas.arc}
    one_way, other = keys["symmetry_lr"], keys["symmetry_ud"]  # lr and ud leave the other mirror open
    both = {text: one_way[value] | other[value] for text, value in (("both", "yes"), ("none", "no"))}
    keys["symmetry"] = {"lr": one_way["yes"], "ud": other["yes"], **both}
    given: dict[str, int] = {}
    for text in texts:
        key, _, value = (part.strip().lower() for part in text.partition("="))
        if key not in keys:
            fix = nearest(key, keys) + "`arcvae data info CORPUS --conditions` lists those of its canvas"
            raise InputError(f"--condition {text}: unknown condition {key!r}", fix)
        if value not in keys[key]:
            known = [*keys[key]]
            choice = "|".join(known) if len(known) <= 4 else f"{known[0]} to {known[-1]}"
            raise InputError(f"--condition {text}: invalid value", f"use {key}={choice}")
        for name, number in keys[key][value].items():
            if given.setdefault(name, number) != number:
                raise InputError(f"--condition {text}: {name} is given two values", "give each condition once")
    return given


def written(given: Mapping[str, int], canvas: Canvas) -> str:
    """Conditions as a person would give them: "colours=3, symmetry_lr=yes"."""
    known = {one.name: one.values for one in attributes(canvas)}
    return ", ".join(f"{name}={known[name][value]}" for name, value in given.items())


def encode(given: Mapping[str, int], n: int, canvas: Canvas) -> Values:
    """(n, A) int64: the conditions in each row, and NOT_GIVEN elsewhere."""
    return np.tile(np.array([given.get(name, NOT_GIVEN) for name in columns(canvas)], np.int64), (n, 1))


def satisfies(values: Values, given: Mapping[str, int], canvas: Canvas) -> NDArray[np.bool_]:
    """(n,) whether grids with these attributes (n, A) satisfy the conditions."""
    place = columns(canvas)
    found = [np.ones(len(values), np.bool_), *(values[:, place[name]] == value for name, value in given.items())]
    return np.logical_and.reduce(found)  # type: ignore[no-any-return]
