from __future__ import annotations

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps, image
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from rich.console import Console
from rich.text import Text

from arcvae_cli.canvas import Canvas
from arcvae_cli.render import plots
from arcvae_cli.render.terminal import PALETTE, characters, kl_bars, palette, terminal_grids

RGB = np.array([[round(255 * part) for part in to_rgb(colour)] for colour in PALETTE], np.uint8)
HERE = Path("unused.png")
COLOUR = {"force_terminal": True, "color_system": "truecolor", "no_color": False}


def random_grids(count: int, height: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 10, (count, height, 16), np.uint8)


def pixels(figure) -> np.ndarray:
    """RGB of a rendered figure as (h, w, 3) uint8."""
    figure.savefig(file := io.BytesIO(), format="png", dpi=figure.dpi)
    file.seek(0)
    return (image.imread(file)[..., :3] * 255).round().astype(np.uint8)


def tiles(sheet: np.ndarray, side: int = 16) -> np.ndarray:
    """Colours near the corners of the cells of each tile, found by its lines: (rows, columns, side, side, 3)."""
    line = (sheet == [0x55, 0x55, 0x55]).all(2)
    tops, lefts = (np.flatnonzero(line.sum(axis) > line.sum(axis).max() / 2) for axis in (1, 0))
    tops, lefts = tops[:: side + 1], lefts[:: side + 1]
    corners = np.arange(side) * 8 + 2
    return np.array([[sheet[top + corners][:, left + corners] for left in lefts] for top in tops])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    figures: list = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: figures.append(figure))
    return figures


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_grids_can_be_read_back(drawn: list) -> None:
    grids = random_grids(6)
    plots.save_grids(HERE, grids, columns=3, title="six", above=list("abcdef"))
    plots.save_grids(HERE, grids, 3, ["local 1", "local 2", "local 3"], "title", ["global 1", "global 2"])
    found = [texts(figure.axes[0]) for figure in drawn]
    assert found[0] == [*"abcdef"]
    assert found[1] == ["local 1", "local 2", "local 3", "global 1", "global 2"]
    for figure in drawn:
        np.testing.assert_array_equal(tiles(pixels(figure)), RGB[grids].reshape(2, 3, 16, 16, 3))


def test_reconstructions_stand_under_their_originals_and_errors_below(drawn: list) -> None:
    originals, extents = random_grids(20), np.full((9, 2), [5, 7], np.uint8)
    extents[4] = 16  # the whole canvas
    reconstructions = originals.copy()
    reconstructions[:, 3, 5] = (originals[:, 3, 5] + 1) % 10
    plots.save_reconstructions(HERE, originals, reconstructions, None, "run, epoch 3")
    plots.save_reconstructions(HERE, originals[:9], originals[:9], extents, "run, epoch 3")
    read = tiles(pixels(drawn[0]))
    assert read.shape[:2] == (6, 8)  # two bands of three rows, 16 pairs of the 20
    np.testing.assert_array_equal(read[[0, 3]].reshape(16, 16, 16, 3), RGB[originals[:16]])
    np.testing.assert_array_equal(read[[1, 4]].reshape(16, 16, 16, 3), RGB[reconstructions[:16]])
    errors = read[[2, 5]].reshape(16, 16, 16, 3)
    assert (errors[:, 3, 5] == 255).all() and errors.sum() == 16 * 3 * 255, "wrong cells white, right ones black"
    assert texts(drawn[0].axes[0]) == ["1 wrong"] * 16 + ["original", "reconstruction", "error"] * 2
    assert {text.get_text() for text in drawn[0].texts} == {"run, epoch 3", "right", "wrong"}
    axes = drawn[1].axes[0]
    lines = (axes.images[0].get_array() == [0, 0xFF, 0xC8]).all(2).sum()
    assert lines == 3 * 8 * (41 * 57 - 37 * 53), "two pixels wide, in every row"
    assert texts(axes)[3:5] == ["5x7, 0 wrong", "16x16, 0 wrong"]


def test_what_is_outside_of_a_grid_is_hatched_and_no_error(drawn: list) -> None:
    """Of a canvas with a class for it, where cells are too small for lines; classes have colours of their own."""
    canvas = Canvas(20, 24, 4, 0, 3, arc=False)
    originals = np.full((2, 20, 24), 3, np.uint8)
    originals[:, :6, :9] = np.random.default_rng(0).integers(0, 3, (2, 6, 9))
    reconstructions = np.full_like(originals, 1)
    extents = np.full((2, 2), [6, 9], np.uint8)
    plots.save_reconstructions(HERE, originals, reconstructions, extents, "run", canvas)
    plots.save_grids(HERE, originals, 2, None, "run", canvas=canvas)
    wrong = (originals[:, :6, :9] != 1).sum((1, 2))
    assert texts(drawn[0].axes[0])[:2] == [f"6x9, {count} wrong" for count in wrong]
    for figure, height in zip(drawn, (3 * 101 + 20 + 17, 101), strict=True):
        sheet = figure.axes[0].images[0].get_array()
        assert sheet.shape[0] == height and (sheet[-1:, -120:] != 255).any()
        tile = sheet[17 * (figure is drawn[0]) :][:101, :121]
        colours = np.array([[round(255 * part) for part in to_rgb(one)] for one in palette(canvas)[:3]], np.uint8)
        np.testing.assert_array_equal(tile[2:30:5, 2:45:5], colours[originals[0, :6, :9]])
        beyond = tile[32:100, 1:120].reshape(-1, 3)
        assert len(np.unique(beyond, axis=0)) == 2 and not any((beyond == one).all(1).any() for one in colours)
    assert {"wrong", "outside"} < {text.get_text() for text in drawn[0].texts}


@pytest.mark.parametrize("classes", [2, 9, 20, 128])
@pytest.mark.parametrize("background", [None, 0, 1])
def test_classes_have_colours_and_characters_of_their_own(classes: int, background: int | None) -> None:
    for tiles in ("", "".join(map(chr, range(33, 33 + classes)))):
        canvas = Canvas(4, 4, classes, background, arc=False, tiles=tiles)
        colours, signs = palette(canvas), characters(canvas)
        assert len({*colours}) == len({*signs}) == classes + 1, "and one for what is outside"
        assert background is None or colours[background] == "#000000"
        assert len({*map(len, signs)}) == 1 and (not tiles or "".join(signs[:-1]) == tiles)


def test_maps_stand_under_their_originals_in_one_scale(drawn: list) -> None:
    grids = random_grids(3)
    maps = np.zeros((4, 8, 8), np.float32)
    maps[0, 1, 2], maps[2, 7, 0] = 2.5, 1.25
    plots.save_kl_maps(HERE, grids, {"local": maps}, "", None)
    axes, bar = drawn[0].axes
    sheet = axes.images[0].get_array()
    np.testing.assert_array_equal(tiles(sheet)[0, :3], RGB[grids])  # a white tile stands over the mean
    squares = sheet[17 + 139 :].reshape(129, -1, 3)
    cells = np.array([squares[8::16][:8, start + 8 : start + 129 : 16] for start in range(0, 4 * 139, 139)])
    np.testing.assert_array_equal(
        cells, colormaps["magma"](np.stack([maps.mean(0), *maps[:3]]) / 2.5, bytes=True)[..., :3]
    )
    assert texts(axes) == ["mean, 0.9 nats", "2.5 nats", "0.0 nats", "1.2 nats", "original", "KL of local"]
    assert bar.get_ylabel() == "KL of a cell, nats" and bar.get_ylim() == (0, 2.5)


def test_curves(drawn: list) -> None:
    """A curve and its target have one colour; the ELBO scale has an axis."""
    curves = [("a", "beta", [1, 2], [0.0, 0.1], False), ("a", "loss", [1, 2], [-1.0, math.nan], False)]
    curves += [("a target", "loss", [1, 2], [3.0, 4.0], True)]
    for scale in (None, 25.6):
        plots.save_curves(HERE, curves, "run", scale, best=2)
    first, figure = drawn
    pixels(figure)
    beta, loss = figure.axes
    value, aim, mark = loss.lines
    assert value.get_color() == aim.get_color() and (value.get_linestyle(), aim.get_linestyle()) == ("-", "--")
    assert mark.get_xdata() == [2, 2] and beta.get_ylim()[0] == 0 > loss.get_ylim()[0]
    assert not first.axes[0].child_axes and beta.child_axes[0].get_ylim()[1] == pytest.approx(25.6 * beta.get_ylim()[1])


def test_dead_dimensions_are_grey_and_counted(drawn: list) -> None:
    kl = np.array([[0.0, 0.5, 0.04], [0.0, 2.0, 0.06]])
    plots.save_kl_heatmap(HERE, {"z": kl}, "run")
    pixels(drawn[0])
    axes = drawn[0].axes[0]
    assert drawn[0].get_suptitle() == "run, 2 of 3 alive"
    picture = axes.images[0]
    shades = picture.cmap(picture.norm(picture.get_array()))
    grey = (np.abs(shades[..., :3] - to_rgb("#BBBBBB")) < 0.01).all(-1)
    np.testing.assert_array_equal(grey, [[True, True], [False, False], [True, False]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["z 0: 0.00 dead", "z 1: 2.00", "z 2: 0.06"]
    plots.save_kl_heatmap(HERE, {"z": np.zeros((3, 300))}, "run")
    assert len(drawn[1].axes[0].get_yticks()) <= 36


def console(width: int = 80, **options: object) -> Console:
    return Console(file=io.StringIO(), width=width, **options)


def printed(text: Text, on: Console) -> list[str]:
    on.print(text)
    return on.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("height", [16, 5])
def test_colours_can_be_read_back(height: int) -> None:
    grids, terminal = random_grids(3, height), console(**COLOUR)
    grids[0, :, :9] = 4  # a run of equal cells
    lines = printed(terminal_grids(terminal, grids, None), terminal)
    assert len(lines) == (height + 1) // 2
    rows: list[list[str]] = []
    for line in lines:
        upper, lower = [], []
        for codes, text in re.findall(r"\x1b\[([\d;]+)m(▀+)\x1b\[0m", line):
            parts = re.findall(r"[34]8;2;(\d+;\d+;\d+)", codes)
            colours = ["#{:02X}{:02X}{:02X}".format(*map(int, rgb.split(";"))) for rgb in parts]
            upper += [colours[0]] * len(text)
            lower += [colours[-1]] * len(text)
        rows += [upper, lower]
    read = np.array([[PALETTE.index(colour) for colour in row] for row in rows[:height]])
    np.testing.assert_array_equal(read, np.concatenate(grids, axis=1))


def test_as_many_grids_side_by_side_as_fit() -> None:
    grids = np.array([[[0, 1], [2, 0], [9, 9]], [[3, 4], [5, 6], [0, 0]]], np.uint8)
    terminal = console()
    assert printed(terminal_grids(terminal, grids, ["a", "bc"]), terminal) == ["a   bc", ".1  34", "2.  56", "99  .."]
    grids = random_grids(9)
    for width, lines in ((52, 3 * 17 + 2), (51, 5 * 17 + 4), (16, 9 * 17 + 8)):  # 3 * 16 + 2 * 2 = 52
        terminal = console(width)
        assert len(printed(terminal_grids(terminal, grids, ["x"] * 9), terminal)) == lines
    for options, height, lines in ((COLOUR, 24, 2 * 8 + 1), ({}, 24, 16), ({}, 6, 16)):  # without titles, a screen
        terminal = console(52, height=height, **options)
        assert len(printed(terminal_grids(terminal, grids, None), terminal)) == lines


def test_a_bar_for_each_group_with_the_free_bits_marked() -> None:
    assert [text.plain for text in kl_bars("z", [2.2, 0.15, 0.05], 0.3, 80)] == [
        "KL of each dimension of z: 2.40 nats, 1 of 3 dead, | free bits 0.3",
        "  0 " + "███|" + "█" * 18 + "   2.200     ",
        "  1 " + "█▌ |" + " " * 18 + "   0.150     ",
        "  2 " + "▌  |" + " " * 18 + "   0.050 dead",
    ]


def test_bars_fit_the_width_and_the_lines() -> None:
    for width, lines in ((30, 11), (79, 11), (80, 6)):
        title, *bars = kl_bars("local", [0.01, *[1.0] * 9], 0.3, width, cells=(8, 8))
        assert title.plain.startswith("KL of each channel of local (8x8): 9.01 nats, 1 of 10 dead, | ")
        assert len(bars) == lines - 1 and max(len(bar.plain) for bar in bars) <= width
    _, spread, *bars = (text.plain for text in kl_bars("z", [0.1 * group for group in range(100)], 0.0, 80, 6))
    indices = [int(number) for bar in bars for number in re.findall(r"(\d+) [█▌ ]{22}", bar)]
    assert spread == "strongest and weakest 4 of 100" and indices == [99, 3, 98, 2, 97, 1, 96, 0]
