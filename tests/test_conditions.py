from __future__ import annotations

import re
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
    contradiction,
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


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            ["1"],
            {"height": 1, "width": 1, "colours": 1, "colour_1": 1, "objects": 1, "symmetry_lr": 1, "symmetry_ud": 1},
        ),
        (
            ["....", ".22.", ".3.."],
            {"height": 3, "width": 3, "colours": 2, "colour_0": 1, "colour_2": 1, "colour_3": 1, "objects": 2},
        ),
        # the box is that of the lit cells, wherever it lies
        (["....", ".12.", ".12."], {"symmetry_ud": 1, "symmetry_lr": 0, "objects": 2, "colour_0": 1}),
        (["...", "1.1", "212"], {"symmetry_ud": 0, "symmetry_lr": 1, "objects": 5, "colours": 2}),
        # corners do not join, and neighbours of two colours are two objects
        (["1.", ".1"], {"objects": 2, "symmetry_lr": 0, "symmetry_ud": 0}),
        (["1" * 16] * 16, {"height": 16, "width": 16, "colour_0": 0, "objects": 1, "symmetry_lr": 1, "symmetry_ud": 1}),
        (["12" * 8] * 16, {"objects": 16, "symmetry_lr": 0, "symmetry_ud": 1}),
        (["12" * 8, "34" * 8] * 8, {"objects": 20, "colours": 4}),
        ([], dict.fromkeys(PLACE, 0)),
    ],
)
def test_attributes_of_grids_drawn_by_hand(rows: list[str], expected: dict[str, int]) -> None:
    measured = dict(zip(PLACE, attributes(canvas(*rows)[None])[0].tolist(), strict=True))
    assert {name: measured[name] for name in expected} == expected


def test_attributes_are_those_of_a_plain_reference(real: np.ndarray) -> None:
    stream = np.random.RandomState(0)
    noise = stream.randint(0, 10, (50, 16, 16)) * (stream.random_sample((50, 16, 16)) < 0.1)
    halves = real[:200].copy()
    halves[:, :, 8:] = halves[:, :, 7::-1]  # symmetric, for once
    grids = np.concatenate([real, noise.astype(np.uint8), halves, halves.transpose(0, 2, 1)])
    measured = attributes(grids)
    assert measured.dtype == np.int64
    assert measured.tolist() == [[found[name] for name in PLACE] for found in map(plainly, grids)]
    assert measured[:, [PLACE["symmetry_lr"], PLACE["symmetry_ud"]]].any(axis=0).all()


def test_every_value_is_within_its_attribute(real: np.ndarray) -> None:
    measured = attributes(real)
    assert (measured >= 0).all()
    assert (measured < [attribute.size for attribute in ATTRIBUTES]).all()
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


# ------------------------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize(
    ("texts", "given"),
    [
        ([], {}),
        (["colours=3", "symmetry=lr"], {"colours": 3, "symmetry_lr": 1}),
        (["symmetry=ud"], {"symmetry_ud": 1}),
        (["symmetry=both"], {"symmetry_lr": 1, "symmetry_ud": 1}),
        (["symmetry=none"], {"symmetry_lr": 0, "symmetry_ud": 0}),
        (["symmetry_lr=no"], {"symmetry_lr": 0}),
        (["red=yes", "colour_9=no", "black=no"], {"colour_2": 1, "colour_9": 0, "colour_0": 0}),
        ([" Height = 16 ", "OBJECTS=20", "Grey=YES"], {"height": 16, "objects": 20, "colour_5": 1}),
        (["height=0"], {"height": 0}),
    ],
)
def test_what_is_read(texts: list[str], given: dict[str, int]) -> None:
    assert parse(texts) == given


@pytest.mark.parametrize(
    ("texts", "what", "fix"),
    [
        (["colors=3"], "there is no condition 'colors'", "did you mean colours?"),
        (["color_2=yes"], "there is no condition 'color_2'", "did you mean colour_2?"),
        (["purple=yes"], "there is no condition 'purple'", "data info --conditions"),
        (["colours"], "no value of colours", "use colours=VALUE, which is 0 to 9"),
        (["colours="], "no value of colours", "0 to 9"),
        (["colours=10"], "no value of colours", "0 to 9"),
        (["height=-1"], "no value of height", "0 to 16"),
        (["objects=2.5"], "no value of objects", "0 to 20"),
        (["red=2"], "no value of red", "use red=VALUE, which is yes or no"),
        (["symmetry=yes"], "no value of symmetry", re.escape("symmetry=lr|ud|both|none")),
        (["=3"], "there is no condition ''", "lists them"),
        (["colours=3", "colours=3"], "colours is given twice", "once"),
        (["red=yes", "colour_2=no"], "colour_2=no: colour_2 is given twice", "once"),
        (["symmetry=both", "symmetry_ud=yes"], "symmetry_ud is given twice", "once"),
        (["colours=0", "red=yes"], "colours=0 is a blank grid and colour_2=yes is none", "leave one"),
        (["height=0", "width=3"], "height=0 is a blank grid and width=3 is none", "leave one"),
        (["objects=0", "symmetry=lr"], "objects=0 is a blank grid", "leave one"),
        (["colours=1", "red=yes", "blue=yes"], "colours=1 and colour_1=yes, colour_2=yes are asked for", "leave one"),
        (["colours=9", "red=no"], "colours=9 and colour_2=no are asked for", "leave one"),
        (["objects=1", "colours=2"], "objects=1 and 2 colours", "leave one"),
        (["height=1", "width=2", "objects=3"], "height x width are 2 cells and 3 are needed", "leave one"),
        (["height=1", "width=1", "black=yes", "red=yes"], "1 cells and 2 are needed", "leave one"),
        (["height=1", "symmetry_ud=no"], "height=1 is its own mirror image and symmetry_ud=no", "leave one"),
        (["symmetry=none", "width=1"], "width=1 is its own mirror image and symmetry_lr=no", "leave one"),
        (
            [f"colour_{number}=no" for number in range(1, 10)] + ["width=3"],
            "no colour of 1-9 is a blank grid",
            "leave one",
        ),
    ],
)
def test_what_is_refused(texts: list[str], what: str, fix: str) -> None:
    with pytest.raises(InputError) as raised:
        parse(texts)
    assert raised.value.what.startswith("--condition ")
    assert re.search(what, raised.value.what)
    assert re.search(fix, raised.value.fix or "")


def test_nothing_that_a_grid_is_like_counts_as_a_contradiction(real: np.ndarray) -> None:
    stream = np.random.RandomState(3)
    small = stream.randint(0, 10, (2000, 16, 16)) * (stream.random_sample((2000, 16, 16)) < 0.5)
    corner = np.arange(16) < stream.randint(0, 4, (2000, 1))
    small = (small * corner[:, :, None] * corner[:, None]).astype(np.uint8)
    for row in attributes(np.concatenate([real, small])).tolist():
        kept = stream.random_sample(len(PLACE)) < stream.random_sample()
        given = {name: value for name, value, keep in zip(PLACE, row, kept, strict=True) if keep}
        assert contradiction(given) is None, given
        assert parse([text for text in written(given).split(", ") if text]) == given


def test_what_is_encoded_and_what_obeys(real: np.ndarray) -> None:
    given = {"colours": 3, "symmetry_lr": 0}
    coded = encode(given, 4)
    assert coded.shape == (4, len(ATTRIBUTES))
    assert coded.dtype == np.int64
    assert coded[0, PLACE["colours"]] == 3
    assert (coded[0] == NOT_GIVEN).sum() == len(ATTRIBUTES) - 2
    assert (coded == coded[0]).all()
    measured = attributes(real)
    plain = [plainly(grid) for grid in real[:300]]
    assert satisfies(measured, given)[:300].tolist() == [
        found["colours"] == 3 and found["symmetry_lr"] == 0 for found in plain
    ]
    assert satisfies(measured, {}).all()


def test_attribute_sizes_and_names() -> None:
    sizes = [(attribute.name, attribute.size) for attribute in ATTRIBUTES]  # checkpoints keep them
    assert sizes[:4] == [("height", 17), ("width", 17), ("colours", 10), ("colour_0", 2)]
    assert sizes[-3:] == [("objects", 21), ("symmetry_lr", 2), ("symmetry_ud", 2)]
    assert len(sizes) == len(set(PLACE)) == 16
    assert len(set(COLOURS)) == 10
    assert written({"height": 3, "colour_2": 1, "symmetry_lr": 0}) == "height=3, colour_2=yes, symmetry_lr=no"
