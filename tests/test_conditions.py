import numpy as np
import pytest
from scipy import ndimage

from arcvae_cli.conditions import (
    ATTRIBUTES,
    NOT_GIVEN,
    PLACE,
    attributes,
    encode,
    objects_of,
    parse,
    satisfies,
    written,
)
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.errors import InputError


def canvas(*rows: str) -> np.ndarray:
    """A canvas with these rows at its top left, `.` being black."""
    grid = np.zeros((16, 16), np.uint8)
    for index, row in enumerate(rows):
        grid[index, : len(row)] = [0 if cell == "." else int(cell) for cell in row]
    return grid


def plainly(grid: np.ndarray) -> dict[str, int]:
    """The attributes of one grid, cell by cell, with scipy's labels for the objects."""
    lit = np.argwhere(grid > 0)
    height, width = (lit.max(axis=0) + 1).tolist() if len(lit) else (0, 0)
    box = grid[lit[:, 0].min() : height, lit[:, 1].min() : width] if len(lit) else grid[:0]
    found = {
        "height": height,
        "width": width,
        "colours": len(set(grid[grid > 0].tolist())),
        "colour_0": int((grid[:height, :width] == 0).any()),
        "objects": min(20, sum(ndimage.label(grid == colour)[1] for colour in range(1, 10))),
        "symmetry_lr": int(len(lit) > 0 and (box == box[:, ::-1]).all()),
        "symmetry_ud": int(len(lit) > 0 and (box == box[::-1]).all()),
    }
    return {**found, **{f"colour_{colour}": int((grid == colour).any()) for colour in range(1, 10)}}


def test_attributes_are_those_of_a_plain_reference() -> None:
    real, stream = build_shapes(300, 0).x, np.random.RandomState(0)
    noise = stream.randint(0, 10, (50, 16, 16)) * (stream.random_sample((50, 16, 16)) < 0.1)
    halves = real[:100].copy()
    halves[:, :, 8:] = halves[:, :, 7::-1]  # symmetric, for once
    inside = canvas("....", ".12.", ".12.")[None]  # symmetric within the box of its non-black cells
    grids = np.concatenate([real, noise.astype(np.uint8), halves, halves.transpose(0, 2, 1), inside, 0 * inside])
    measured, plain = attributes(grids), [plainly(grid) for grid in grids]
    assert measured.dtype == np.int64 and attributes(real[:0]).shape == (0, len(ATTRIBUTES))
    assert measured.tolist() == [[found[name] for name in PLACE] for found in plain]
    assert measured[:, [PLACE["symmetry_lr"], PLACE["symmetry_ud"]]].any(axis=0).all()
    assert (measured >= 0).all() and (measured < [attribute.size for attribute in ATTRIBUTES]).all()
    wanted = [found["colours"] == 3 and found["symmetry_lr"] == 0 for found in plain]
    assert satisfies(measured, {"colours": 3, "symmetry_lr": 0}).tolist() == wanted and satisfies(measured, {}).all()
    for row in measured[:100].tolist():
        values = dict(zip(PLACE, row, strict=True))
        assert parse(written(values).split(", ")) == values


def test_objects_have_their_owner_and_their_size() -> None:
    owners, sizes = objects_of(np.stack([canvas("11.2", "1..2"), canvas(), canvas("3.3")]))
    assert sorted(zip(owners.tolist(), sizes.tolist(), strict=True)) == [(0, 2), (0, 3), (2, 1), (2, 1)]
    assert [part.tolist() for part in objects_of(np.zeros((0, 16, 16), np.uint8))] == [[], []]


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
            parse(texts)
    else:
        assert parse(texts) == given
        assert encode(given, 4).tolist() == [[given.get(name, NOT_GIVEN) for name in PLACE]] * 4


def test_checkpoints_keep_attributes_in_this_order() -> None:
    assert [(one.name, one.size) for one in ATTRIBUTES] == [
        *(("height", 17), ("width", 17), ("colours", 10), *((f"colour_{number}", 2) for number in range(10))),
        *(("objects", 21), ("symmetry_lr", 2), ("symmetry_ud", 2)),
    ]
