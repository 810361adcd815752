"""Grids in colours or characters, strings, and KL bars, as what Rich prints."""

from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from string import ascii_letters, digits
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from arcvae_cli.canvas import ARC, Canvas

Grids = NDArray[np.integer[Any]]

# the colours of ARC, 0 to 9
PALETTE = ("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25")
OUTSIDE = "#404040"  # outside of a grid
SPACE, TITLE = 2, 14  # columns between grids, and of a title above a narrow grid
DEAD = 0.05  # nats: a group with at most this KL is dead
BAR, LABELS, TWO_BARS = 22, 17, 80  # columns: the longest bar, its number, value and mark, and two bars side by side
MANY, FEW = 64, 8  # above so many groups, only the strongest and weakest few are listed


def palette(canvas: Canvas) -> list[str]:
    """The colour of each class: ARC's, else from black for the background to white (Green 2011, cubehelix)."""
    if canvas.arc:
        return [*PALETTE, OUTSIDE]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    inner = canvas.classes - (canvas.outside is not None)
    order = sorted(range(inner), key=lambda number: number != canvas.background)  # the background first
    places = np.r_[0.0, np.linspace(0.25, 1.0, inner - 1)]  # away from the black of the background
    shades = map(to_hex, colormaps["cubehelix"](places))
    return [*(shade for _, shade in sorted(zip(order, shades, strict=True))), OUTSIDE]


def characters(canvas: Canvas) -> list[str]:
    """What stands for a cell of each class in text: its character in a text map, a digit or letter, or two digits."""
    signs, inner = canvas.tiles or digits + ascii_letters, canvas.classes - (canvas.outside is not None)
    table = [*signs[:inner]] if inner <= len(signs) else [f"{number:02x}" for number in range(inner)]
    if canvas.background is not None and not canvas.tiles:
        table[canvas.background] = "." * len(table[0])
    return [*table, " " * len(table[0])]


def terminal_grids(console: Console, grids: Grids, titles: Sequence[str] | None, canvas: Canvas = ARC) -> Text:
    """Grids (N, H, W) side by side, as many as the width allows, with a short title above each.

    In colour a character shows two cells, one above the other; without, and of text maps, a cell is a character.
    Without titles, as many grids as fit into the height, and at least one row.
    """
    colour = console.color_system is not None and not console.no_color and not console.options.ascii_only
    colour, (_, height, width) = colour and not canvas.tiles, grids.shape
    table = palette(canvas) if colour else characters(canvas)
    width *= 1 if colour else len(table[0])
    gap = SPACE + max(0, min(TITLE, max(map(len, titles), default=0)) - width) if titles else SPACE
    across = max(1, (console.width + SPACE) // (width + gap))
    if titles is None:
        grids = grids[: across * max(1, (console.height - 4) // (1 + (-(-height // 2) if colour else height)))]
    drawn, shown = [grid_lines(grid, table, colour) for grid in grids.tolist()], list[Text]()
    for start in range(0, len(drawn), across):
        if start:
            shown.append(Text())
        if titles is not None:
            texts = [f"{title[: width + gap - 1]:<{width + gap}}" for title in titles[start : start + across]]
            shown.append(Text("".join(texts).rstrip()))
        shown += map(Text(" " * gap).join, zip(*drawn[start : start + across], strict=True))
    return Text("\n").join(shown)


def grid_lines(rows: list[list[int]], table: Sequence[str], colour: bool) -> list[Text]:
    """A grid as lines of characters; in colour of half blocks for two rows each, equal neighbours in one style."""
    colours = [[table[cell] for cell in row] for row in rows]
    if not colour:
        return [Text("".join(row)) for row in colours]
    lines = []
    for upper, lower in zip_longest(colours[::2], colours[1::2]):
        styles = upper if lower is None else map(" on ".join, zip(upper, lower, strict=True))
        lines.append(Text.assemble(*(("▀" * len(list(run)), style) for style, run in groupby(styles))))
    return lines


def terminal_strings(rows: Sequence[tuple[str, str, str]]) -> Text:
    """Strings below each other: rows of (label, string, note)."""
    width = max((len(label) for label, _, _ in rows), default=0)
    lines = [((f"{label:<{width}}  ", "dim"), text, (note and f"    {note}", "yellow")) for label, text, note in rows]
    return Text("\n").join(Text.assemble(*line) for line in lines)


def kl_bars(
    name: str, groups: Sequence[float], floor: float, width: int, lines: int = 10_000, cells: Sequence[int] = ()
) -> Iterator[Text]:
    """The KL in nats of each group of a level as a bar with its value, in lines of at most `width` columns.

    Only the strongest and weakest are listed where all would take more than `lines`. `cells`: the size of a level that
    is a map, where a group is a channel. `floor`: the free bits of a group.
    """
    count, dead = len(groups), sum(value <= DEAD for value in groups)
    over = f" ({'x'.join(map(str, cells))})" if cells else ""
    title = f"KL of each {'channel' if cells else 'dimension'} of {name}{over}: {sum(groups):.2f} nats"
    title += f", {dead} of {count} dead" if dead else ""
    title += f", | free bits {floor:g}" if floor else ""
    yield Text(title, style="bold", no_wrap=True, overflow="ellipsis")
    top, length = max(*groups, floor, 1e-9), max(1, min(BAR, width - LABELS))
    shown = list(range(count))
    columns = 2 if count > 5 and width >= TWO_BARS else 1
    if count > min(MANY, columns * (lines - 1)):
        few = max(1, min(FEW, columns * (lines - 2) // 2))
        ranked = sorted(shown, key=groups.__getitem__, reverse=True)
        shown = ranked[:few] + ranked[-few:]
        yield Text(f"strongest and weakest {few} of {count}")
    bars = []
    for index in shown:
        value = groups[index]
        full, style = value / top * length, "yellow" if value < 0.95 * floor else "green"
        blocks = ["█" if at + 1 <= full else ("▌" if at + 0.5 <= full else " ") for at in range(length)]
        if floor:
            blocks[min(length - 1, int(floor / top * length))] = "|"
        text, colour = (f"{value:7.3f} dead", "red") if value <= DEAD else (f"{value:7.3f}     ", "")
        bars.append(Text.assemble(f"{index:>3} ", ("".join(blocks), colour or style), (f" {text}", colour)))
    rows = -(-len(bars) // columns)
    yield from (Text("  ").join(bars[row::rows]) for row in range(rows))
