from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage

from arcvae_cli.conditions import (
    ATTRIBUTES,
    COLOURS,
    NOT_GIVEN,
    PLACE,
    attributes,
    encode,
    objects_of,
    parse,
    satisfies,
    written,
)
from arcvae_cli.data.arc import build_arc_raw
from arcvae_cli.errors import InputError


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Every ARC grid of the test split."""
    arrays = build_arc_raw()
    return arrays.x[arrays.rows("test")]


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


def test_attributes_are_those_of_a_plain_reference(real: np.ndarray) -> None:
    stream = np.random.RandomState(0)
    noise = stream.randint(0, 10, (50, 16, 16)) * (stream.random_sample((50, 16, 16)) < 0.1)
    halves = real[:200].copy()
    halves[:, :, 8:] = halves[:, :, 7::-1]  # symmetric, for once
    inside = canvas("....", ".12.", ".12.")[None]  # symmetric within the box of its non-black cells
    grids = np.concatenate([real, noise.astype(np.uint8), halves, halves.transpose(0, 2, 1), inside, 0 * inside])
    measured = attributes(grids)
    assert measured.dtype == np.int64
    assert measured.tolist() == [[found[name] for name in PLACE] for found in map(plainly, grids)]
    assert measured[:, [PLACE["symmetry_lr"], PLACE["symmetry_ud"]]].any(axis=0).all()
    assert (measured >= 0).all() and (measured < [attribute.size for attribute in ATTRIBUTES]).all()
    assert attributes(real[:0]).shape == (0, len(ATTRIBUTES))


def test_a_hundred_thousand_grids_take_seconds(real: np.ndarray) -> None:
    grids = np.tile(real, (10, 1, 1))
    start = time.process_time()
    attributes(grids)
    assert (time.process_time() - start) / len(grids) < 60e-6


def test_objects_have_their_owner_and_their_size() -> None:
    owners, sizes = objects_of(np.stack([canvas("11.2", "1..2"), canvas(), canvas("3.3")]))
    assert sorted(zip(owners.tolist(), sizes.tolist(), strict=True)) == [(0, 2), (0, 3), (2, 1), (2, 1)]
    assert [part.tolist() for part in objects_of(np.zeros((0, 16, 16), np.uint8))] == [[], []]
    many = np.zeros((10_000, 16, 16), np.uint8)
    many[:, 0, 0] = 1
    assert (objects_of(many)[0] == np.arange(10_000)).all()


@pytest.mark.parametrize(
    ("texts", "given"),
    [
        ([], {}),
        (["colours=3", "symmetry=lr", "symmetry=both"], {"colours": 3, "symmetry_lr": 1, "symmetry_ud": 1}),
        (["symmetry=none"], {"symmetry_lr": 0, "symmetry_ud": 0}),
        (["red=yes", "colour_9=no", "black=no"], {"colour_2": 1, "colour_9": 0, "colour_0": 0}),
        ([" Height = 16 ", "OBJECTS=20", "Grey=YES"], {"height": 16, "objects": 20, "colour_5": 1}),
    ],
)
def test_conditions_are_parsed(texts: list[str], given: dict[str, int]) -> None:
    assert parse(texts) == given


@pytest.mark.parametrize(
    ("texts", "what", "fix"),
    [
        (["colors=3"], "unknown condition 'colors'", "did you mean colours?"),
        (["purple=yes"], "unknown condition 'purple'", "data info --conditions"),
        (["=3"], "unknown condition ''", "lists them"),
        (["colours"], "colours: invalid value", "use colours=0 to 9"),
        (["height=-1"], "height=-1: invalid value", "0 to 16"),
        (["objects=2.5"], "objects=2.5: invalid value", "0 to 20"),
        (["red=2"], "red=2: invalid value", "use red=no or yes"),
        (["symmetry=yes"], "symmetry=yes: invalid value", "symmetry=lr|ud|both|none"),
        (["red=yes", "colour_2=no"], "colour_2=no: colour_2 is given two values", "once"),
    ],
)
def test_invalid_conditions(texts: list[str], what: str, fix: str) -> None:
    with pytest.raises(InputError) as raised:
        parse(texts)
    assert raised.value.what.startswith("--condition ") and what in raised.value.what
    assert fix in (raised.value.fix or "")


def test_conditions_are_encoded_satisfied_and_written(real: np.ndarray) -> None:
    given = {"colours": 3, "symmetry_lr": 0}
    coded = encode(given, 4)
    assert coded.shape == (4, len(ATTRIBUTES)) and coded.dtype == np.int64
    assert coded[0, PLACE["colours"]] == 3 and (coded == coded[0]).all()
    assert (coded[0] == NOT_GIVEN).sum() == len(ATTRIBUTES) - 2
    measured, plain = attributes(real[:300]), [plainly(grid) for grid in real[:300]]
    wanted = [found["colours"] == 3 and found["symmetry_lr"] == 0 for found in plain]
    assert satisfies(measured, given).tolist() == wanted
    assert satisfies(measured, {}).all()
    for row in measured.tolist():
        values = dict(zip(PLACE, row, strict=True))
        assert parse(written(values).split(", ")) == values


def test_attribute_sizes_and_names() -> None:
    sizes = [(attribute.name, attribute.size) for attribute in ATTRIBUTES]  # checkpoints keep them
    assert sizes[:4] == [("height", 17), ("width", 17), ("colours", 10), ("colour_0", 2)]
    assert sizes[4:-3] == [(f"colour_{number}", 2) for number in range(1, 10)] and len(set(COLOURS)) == 10
    assert sizes[-3:] == [("objects", 21), ("symmetry_lr", 2), ("symmetry_ud", 2)]
