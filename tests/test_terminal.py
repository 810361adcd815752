from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from arcvae_cli.render.terminal import PALETTE, kl_bars, terminal_grids

COLOUR = {"force_terminal": True, "color_system": "truecolor", "no_color": False}


def random_grids(count: int, height: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 10, (count, height, 16), np.uint8)


def console(width: int = 80, **options: object) -> Console:
    return Console(file=io.StringIO(), width=width, **options)


def printed(text: Text, on: Console) -> list[str]:
    on.print(text)
    return on.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("height", [16, 5])
def test_colours_can_be_read_back(height: int) -> None:
    grids, terminal = random_grids(3, height), console(**COLOUR)
    grids[0, :, :9] = 4  # a run of equal cells
    lines = printed(terminal_grids(terminal, grids), terminal)
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
    for width, lines in ((52, 3 * 16 + 2), (51, 5 * 16 + 4), (16, 9 * 16 + 8)):  # 3 * 16 + 2 * 2 = 52
        terminal = console(width)
        assert len(printed(terminal_grids(terminal, grids), terminal)) == lines
    for options, most, count in ((COLOUR, 20, 8), ({}, 20, 4), ({}, 2, 4)):  # in colour two rows of 4, 9 lines each
        shown = terminal_grids(console(**options), grids, [f"<{place}>" for place in range(9)], most)
        assert shown.plain.count("<") == count


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
