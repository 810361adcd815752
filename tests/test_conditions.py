import numpy as np
import pytest
from scipy import ndimage

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.conditions import (
    NOT_GIVEN,
    attributes,
    columns,
    encode,
    measure,
    objects_of,
    parse,
    satisfies,
    written,
)
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.errors import InputError

PLACE = columns(ARC)


def canvas(*rows: str) -> np.ndarray:
    """A canvas with these rows at its top left, `.` being black."""
    grid = np.zeros((16, 16), np.uint8)
    for index, row in enumerate(rows):
        grid[index, : len(row)] = [0 if cell == "." else int(cell) for cell in row]
    return grid


def plainly(grid: np.ndarray, canvas: Canvas) -> dict[str, int]:
    """All that could be an attribute of one grid, cell by cell, with scipy's labels for the objects."""
    lit = np.argwhere(grid != canvas.void)
    height, width = (lit.max(axis=0) + 1).tolist() if len(lit) else (0, 0)
    box = grid[lit[:, 0].min() : height, lit[:, 1].min() : width] if len(lit) else grid[:0]
    content = set(range(canvas.classes)) - {canvas.background, canvas.outside}
    kind, kinds = ("colour", "colours") if canvas.arc else ("class", "classes")
    return {
        "height": height,
        "width": width,
        kinds: len(set(grid.ravel().tolist()) & content),
        **{f"{kind}_{number}": int((grid == number).any()) for number in content},
        f"{kind}_{canvas.background}": int((grid[:height, :width] == canvas.background).any()),
        "objects": min(20, sum(ndimage.label(grid == number)[1] for number in content)),
        "symmetry_lr": int(len(lit) > 0 and (box == box[:, ::-1]).all()),
        "symmetry_ud": int(len(lit) > 0 and (box == box[::-1]).all()),
    }


def test_attributes_are_those_of_a_plain_reference() -> None:
    real, stream = build_shapes(300, 0).x, np.random.RandomState(0)
    noise = stream.randint(0, 10, (50, 16, 16)) * (stream.random_sample((50, 16, 16)) < 0.1)
    halves = real[:100].copy()
    halves[:, :, 8:] = halves[:, :, 7::-1]  # symmetric, for once
    inside = canvas("....", ".12.", ".12.")[None]  # symmetric within the box of its non-black cells
    grids = np.concatenate([real, noise.astype(np.uint8), halves, halves.transpose(0, 2, 1), inside, 0 * inside])
    measured, plain = measure(grids, ARC), [plainly(grid, ARC) for grid in grids]
    assert measured.dtype == np.int64 and measure(real[:0], ARC).shape == (0, len(PLACE))
    assert measured.tolist() == [[found[name] for name in PLACE] for found in plain]
    assert measured[:, [PLACE["symmetry_lr"], PLACE["symmetry_ud"]]].any(axis=0).all()
    assert (measured >= 0).all() and (measured < [attribute.size for attribute in attributes(ARC)]).all()
    wanted = [found["colours"] == 3 and found["symmetry_lr"] == 0 for found in plain]
    assert (
        satisfies(measured, {"colours": 3, "symmetry_lr": 0}, ARC).tolist() == wanted
        and satisfies(measured, {}, ARC).all()
    )
    for row in measured[:100].tolist():
        values = dict(zip(PLACE, row, strict=True))
        assert parse(written(values, ARC).split(", "), ARC) == values


OTHERS = {
    "small": Canvas(5, 7, 4, arc=False),
    "background 2": Canvas(7, 4, 5, background=2, arc=False),
    "no background": Canvas(4, 6, 3, background=None, arc=False),
    "outside": Canvas(6, 5, 4, outside=3, arc=False, tiles=".#~ "),
    "no background, outside": Canvas(5, 5, 4, background=None, outside=3, arc=False),
    "many classes": Canvas(6, 3, 20, arc=False),
    "ARC": Canvas(9, 12, 11, outside=10),
}


@pytest.mark.parametrize("canvas", OTHERS.values(), ids=OTHERS)
def test_attributes_follow_the_canvas(canvas: Canvas) -> None:
    stream, kinds = np.random.RandomState(0), "colours" if canvas.arc else "classes"
    grids = stream.randint(0, canvas.classes - (canvas.outside is not None), (60, *canvas.shape)).astype(np.uint8)
    grids[:40][stream.random_sample((40, *canvas.shape)) < 0.8] = canvas.background or 0
    grids[10:20], grids[20:30] = grids[10:20, :, ::-1], grids[10:20, ::-1]
    grids[15:25] = np.maximum(grids[15:25], grids[15:25, :, ::-1])
    if canvas.outside is not None:
        for index, grid in enumerate(grids):
            grid[1 + index % canvas.height :], grid[:, 1 + index % canvas.width :] = canvas.outside, canvas.outside
    plain, names = [plainly(grid, canvas) for grid in grids], list(columns(canvas))
    assert measure(grids, canvas).tolist() == [[found[name] for name in names] for found in plain]
    assert measure(grids, canvas)[:, names.index("symmetry_lr")].any()
    assert ("height" in names) == (canvas.void is not None)
    assert (canvas.classes <= 16) == any(name.startswith(("class_", "colour_")) for name in names)
    values = dict(zip(names, measure(grids, canvas)[0].tolist(), strict=True))
    assert parse(written(values, canvas).split(", "), canvas) == values and kinds in names


def test_objects_have_their_owner_and_their_size() -> None:
    owners, sizes = objects_of(np.stack([canvas("11.2", "1..2"), canvas(), canvas("3.3")]), ARC)
    assert sorted(zip(owners.tolist(), sizes.tolist(), strict=True)) == [(0, 2), (0, 3), (2, 1), (2, 1)]
    assert [part.tolist() for part in objects_of(np.zeros((0, 16, 16), np.uint8), ARC)] == [[], []]


@pytest.mark.parametrize(
    ("texts", "given"),
    [
        (["colours=3", "symmetry=lr", "symmetry=both"], {"colours": 3, "symmetry_lr": 1, "symmetry_ud": 1}),
        (["red=yes", "colour_9=no", "black=no"], {"colour_2": 1, "colour_9": 0, "colour_0": 0}),
        ([" Height = 16 ", "OBJECTS=20", "Grey=YES"], {"height": 16, "objects": 20, "colour_5": 1}),
        (["colors=3"], "unknown condition 'colors'"),
        (["red=2"], "red=2: invalid value"),
        (["symmetry=yes"], "symmetry=yes: invalid value"),
        (["red=yes", "colour_2=no"], "colour_2 is given two values"),
    ],
)
def test_conditions_are_parsed_and_encoded(texts: list[str], given: dict[str, int] | str) -> None:
    if isinstance(given, str):
        with pytest.raises(InputError, match=given):
            parse(texts, ARC)
    else:
        assert parse(texts, ARC) == given
        assert encode(given, 4, ARC).tolist() == [[given.get(name, NOT_GIVEN) for name in PLACE]] * 4


def test_checkpoints_keep_attributes_in_this_order() -> None:
    assert [(one.name, one.size) for one in attributes(ARC)] == [
        *(("height", 17), ("width", 17), ("colours", 10), *((f"colour_{number}", 2) for number in range(10))),
        *(("objects", 21), ("symmetry_lr", 2), ("symmetry_ud", 2)),
    ]
