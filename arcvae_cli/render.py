"""Pictures: grids in the terminal, and grids, curves and latents as PNG.

Takes NumPy arrays and plain numbers. Matplotlib is used through its objects only: pyplot takes half a second to import
and keeps global state. Every PNG is written whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arcvae_cli.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.style import Style
    from rich.text import Text

    from arcvae_cli.controllers import Target

# The colours of ARC, 0 to 9.
PALETTE = ("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25")
LINE, EDGE, RIGHT, WRONG = "#555555", "#FFFFFF", "#000000", "#FFFFFF"

_DPI = 100
_TILE = 128  # pixels that the longer side of a grid is drawn in, about
_GAP = 10  # between grids
_STRIP = 17  # a line of text

Grids = NDArray[np.integer[Any]]
Image = NDArray[np.uint8]


# In the terminal


class TerminalGrids:
    """Grids (N, H, W) of 0-9 side by side, as many as the width allows: `console.print(TerminalGrids(grids))`.

    In colour each character holds two cells, one above the other, so that 16x16 cells take 16 columns and 8 lines.
    Without colour (a pipe, NO_COLOR) a cell is a digit, and `.` where it is 0. `titles` has one short text a grid.
    """

    def __init__(self, grids: Grids, titles: Sequence[str] | None = None) -> None:
        self.grids = grids
        self.titles = titles
        self.height: int = grids.shape[1]
        self.width: int = grids.shape[2]

    def across(self, width: int) -> int:
        """How many grids stand side by side in `width` columns."""
        return max(1, (width + _SPACE) // (self.width + _SPACE))

    def capacity(self, console: Console, lines: int) -> int:
        """How many grids `lines` lines of the console hold, one row of grids at the least."""
        band = 1 + (self.titles is not None) + ((self.height + 1) // 2 if _colourful(console) else self.height)
        return self.across(console.width) * max(1, lines // band)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        draw = _half_blocks if _colourful(console) else _digits
        across = self.across(options.max_width)
        for start in range(0, len(self.grids), across):
            if start:
                yield Segment.line()
            band = self.grids[start : start + across]
            if self.titles is not None:
                titles = self.titles[start : start + across]
                place = self.width + _SPACE
                yield Segment("".join(f"{title[: place - 1]:<{place}}" for title in titles).rstrip() + "\n")
            for line in zip(*(draw(grid) for grid in band), strict=True):
                for place, segments in enumerate(line):
                    if place:
                        yield Segment(" " * _SPACE)
                    yield from segments
                yield Segment.line()


class TerminalStrings:
    """Strings, one below the other, each with a label before it and a remark behind: rows of (label, string, remark).

    On a terminal a long string is folded within its column, and remarks are yellow; elsewhere a row is one line.
    """

    def __init__(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        if not options.is_terminal:
            width = max((len(label) for label, _, _ in self.rows), default=0)
            for label, string, remark in self.rows:
                text = f"{label:<{width}}  {string}" + (f"    {remark}" if remark else "")
                yield Text(text, no_wrap=True, overflow="ignore")
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_column(style="yellow", no_wrap=True)
        for row in self.rows:  # as text: brackets are part of a string, no markup
            table.add_row(*map(Text, row))
        yield table


_SPACE = 2  # columns between grids


def _colourful(console: Console) -> bool:
    return console.color_system is not None and not console.no_color and not console.options.ascii_only


def _digits(grid: Grids) -> list[list[Segment]]:
    from rich.segment import Segment

    return [[Segment("".join("." if cell == 0 else str(cell) for cell in row))] for row in grid.tolist()]


def _half_blocks(grid: Grids) -> list[list[Segment]]:
    from rich.segment import Segment

    rows = grid.tolist()
    below = rows[1::2] + [[None] * grid.shape[1]] * (len(rows) % 2)
    return [
        [
            Segment("▀" * len(list(run)), _cell_style(*cells))  # one escape sequence for cells alike
            for cells, run in groupby(zip(upper, lower, strict=True))
        ]
        for upper, lower in zip(rows[::2], below, strict=True)
    ]


@cache
def _cell_style(top: int, bottom: int | None) -> Style:
    from rich.style import Style

    return Style(color=PALETTE[top], bgcolor=None if bottom is None else PALETTE[bottom])


# KL as bars in the terminal

_BAR = 22  # cells of the longest bar: two bars with their values fit into 80 columns
_TWO_BARS = 80  # columns that they take
_MANY = 64  # above so many groups, the strongest, the weakest and a histogram stand for all
_FEW = 8


def kl_bars(
    name: str,
    groups: Sequence[float],
    floor: float,
    width: int,
    lines: int = 10_000,
    cells: tuple[int, ...] = (),
    dead: float = 0.05,
) -> Iterator[Text]:
    """The KL in nats of each group of a level as a bar with its value, the free-bits line across, dead groups marked.

    Each text is a line of at most `width` columns. The strongest and the weakest stand for groups that are too many, or
    would take more than so many `lines`. `cells` is the size of a level that is a map: a group is then a channel,
    summed over them. A group of at most `dead` nats is dead.
    """
    from rich.text import Text

    lost = sum(value <= dead for value in groups)
    over = f" ({'x'.join(map(str, cells))})" if cells else ""
    title = f"KL of each {'channel' if cells else 'dimension'} of {name}{over}: {sum(groups):.2f} nats"
    title += f", {lost} of {len(groups)} dead" if lost else ""
    title += f"; | free bits {floor:g}" if floor else ""
    yield Text(title, style="bold", no_wrap=True, overflow="ellipsis")
    shown = list(range(len(groups)))
    columns = 2 if len(groups) > 5 and width >= _TWO_BARS else 1
    if len(groups) > min(_MANY, columns * (lines - 1)):
        few = max(1, min(_FEW, columns * (lines - 2) // 2))
        ranked = sorted(shown, key=lambda index: groups[index], reverse=True)
        shown = ranked[:few] + ranked[-few:]
        spread = f"strongest and weakest {few}; all {len(groups)}: {_histogram(groups)}"
        yield Text(spread, no_wrap=True, overflow="ellipsis")
    top = max(max(groups), floor, 1e-9)
    bars = [_bar(index, groups[index], top, floor, dead) for index in shown]
    rows = -(-len(bars) // columns)
    yield from (Text("  ").join(bars[row::rows]) for row in range(rows))


def _bar(index: int, value: float, top: float, floor: float, dead: float) -> Text:
    """One bar: `3 ██████|███   2.10`."""
    from rich.text import Text

    full = value / top * _BAR
    cells = ["█" if at + 1 <= full else ("▌" if at + 0.5 <= full else " ") for at in range(_BAR)]
    if floor:
        cells[min(_BAR - 1, int(floor / top * _BAR))] = "|"
    lost = value <= dead
    style = "red" if lost else ("yellow" if floor and value < 0.95 * floor else "green")
    text = Text(f"{index:>3} ")
    text.append("".join(cells), style=style)
    text.append(f" {value:7.3f}" + (" dead" if lost else "     "), style="red" if lost else "")
    return text


def _histogram(groups: Sequence[float]) -> str:
    """A line of blocks: how many groups carry how much, from none to the most."""
    blocks, bins = " ▁▂▃▄▅▆▇█", 24
    top = max(max(groups), 1e-9)
    counts = [0] * bins
    for value in groups:
        counts[min(bins - 1, int(value / top * bins))] += 1
    return "".join(blocks[-(-count * 8 // max(counts))] for count in counts) + f" 0 to {top:.2f}"


# Grids as PNG: one array of pixels, drawn once, and text beside it


def save_grids(
    path: Path, grids: Grids, columns: int = 8, titles: Sequence[str] | None = None, title: str | None = None
) -> None:
    """Grids (N, H, W) in rows of `columns`, with a short text above each and a title above them all."""
    _save_sheet(path, _tiles(grids), columns, above=titles, title=title)


def save_level_samples(path: Path, grids: Grids, columns: int, row: str, column: str, title: str | None = None) -> None:
    """Samples (N, H, W) in rows of `columns`, each row numbered as a latent of level `row`, each column of `column`."""
    above = [f"{column} {place + 1}" if place < columns else "" for place in range(len(grids))]
    left = [f"{row} {place + 1}" for place in range(-(-len(grids) // columns))]
    _save_sheet(path, _tiles(grids), columns, above, left, title)


def save_reconstructions(
    path: Path,
    originals: Grids,
    reconstructions: Grids,
    shapes: NDArray[np.uint8] | None = None,
    title: str | None = None,
    pairs: int = 16,
) -> None:
    """Originals, reconstructions (N, H, W) and where they differ (white), one below the other, the first `pairs`.

    `shapes` (N, 2), the height and width of each grid within its canvas, is drawn as a white edge.
    """
    rectangles = None if shapes is None else shapes[:pairs]
    kinds = _reconstruction_tiles(originals[:pairs], reconstructions[:pairs], rectangles)
    captions = [f"{count} wrong" for count in (originals[:pairs] != reconstructions[:pairs]).sum((1, 2))]
    if rectangles is not None:
        captions = [
            f"{height}x{width}, {caption}" for (height, width), caption in zip(rectangles, captions, strict=True)
        ]
    columns = min(8, len(captions))
    tiles = _bands(kinds, columns)
    above = [""] * len(tiles)
    for index, caption in enumerate(captions):  # over the first row of each band
        above[index // columns * len(kinds) * columns + index % columns] = caption
    left = ["original", "reconstruction", "error"] * (len(tiles) // (len(kinds) * columns))
    _save_sheet(path, tiles, columns, above, left, title)


def save_kl_maps(
    path: Path,
    originals: Grids,
    maps: Mapping[str, NDArray[np.float32]],
    title: str | None = None,
    columns: int = 8,
    means: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Originals (N, H, W), and under each the KL of the cells of its maps (N, h, w) in nats, a row a level.

    One scale of colour serves all of them and stands to the right as a bar. Over a column stand the nats of its maps.
    `means` (h, w) by level, over more examples than these, stand first.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if means is not None:
        originals = np.concatenate([np.zeros_like(originals[:1]), originals])
        maps = {name: np.concatenate([means[name][None], values]) for name, values in maps.items()}
    columns = min(columns, len(originals))
    kinds, top = _map_tiles(originals, maps)
    if means is not None:
        kinds[0][0] = 255
    tiles = _bands(kinds, columns)
    above = [""] * len(tiles)
    for index in range(len(originals)):
        nats = ", ".join(f"{values[index].sum():.1f}" for values in maps.values())
        whose = "mean, " if means is not None and index == 0 else ""
        above[index // columns * len(kinds) * columns + index % columns] = f"{whose}{nats} nats"
    left = ["original", *(f"KL of {name}" for name in maps)] * (len(tiles) // (len(kinds) * columns))
    figure, width = _sheet(tiles, columns, above, left, title, margin_right=_SCALE)
    height = figure.get_figheight() * _DPI
    axes = figure.add_axes(((width - _SCALE + _GAP) / width, 0.1, 12 / width, max(0.5, 1 - 60 / height) - 0.1))
    figure.colorbar(ScalarMappable(Normalize(0, top), _MAP_COLOURS), axes).set_label("KL of a cell, nats", fontsize=8)
    axes.tick_params(labelsize=8)
    _write(figure, path)


def reconstruction_pixels(originals: Grids, reconstructions: Grids, pairs: int = 16) -> Image:
    """The sheet of `save_reconstructions` without its texts: rows of originals, reconstructions and errors."""
    kinds = _reconstruction_tiles(originals[:pairs], reconstructions[:pairs])
    columns = min(8, len(kinds[0]))
    return _lay(_bands(kinds, columns), columns)


def grid_pixels(grids: Grids, columns: int = 8) -> Image:
    """The sheet of `save_grids` without its texts."""
    return _lay(_tiles(grids), min(columns, len(grids)))


def kl_map_pixels(originals: Grids, maps: Mapping[str, NDArray[np.float32]]) -> tuple[Image, float]:
    """The sheet of `save_kl_maps` without its texts and its bar, and the nats of its brightest colour."""
    kinds, top = _map_tiles(originals, maps)
    columns = min(8, len(originals))
    return _lay(_bands(kinds, columns), columns), top


def path_strip(steps: Grids, ends: Grids) -> tuple[Grids, list[str]]:
    """A walk between two examples as a row of grids, and what to write above each.

    `steps` (S, H, W) are decoded, evenly spaced from 0 to 1; `ends` (2, H, W) are the originals, which go to either
    side. Above a step stands how many cells changed since the one before.
    """
    changed = (steps[1:] != steps[:-1]).sum((1, 2)).tolist()
    places = [f"{place:.2f}" for place in np.linspace(0, 1, len(steps))]
    walked = [f"{place}, {count} changed" for place, count in zip(places[1:], changed, strict=True)]
    titles = ["from, original", f"{places[0]}, decoded", *walked, "to, original"]
    return np.concatenate([ends[:1], steps, ends[1:]]), titles


def save_path(path: Path, steps: Grids, ends: Grids, title: str | None = None) -> None:
    """The strip of `path_strip`, in as few rows of equal length as keep it readable."""
    grids, titles = path_strip(steps, ends)
    rows = -(-len(grids) // 12)
    save_grids(path, grids, -(-len(grids) // rows), titles, title)


def _tiles(
    grids: Grids,
    shapes: NDArray[np.uint8] | None = None,
    colours: Sequence[str] = PALETTE,
    edge: str = EDGE,
) -> Image:
    """Grids (N, H, W) as pixels (N, h, w, 3), each cell bordered by thin lines, with an edge around each `shape`."""
    _, rows, columns = grids.shape
    cell = max(3, _TILE // max(rows, columns))
    palette = np.stack([_rgb(colour) for colour in colours])
    pixels = palette[grids].repeat(cell, 1).repeat(cell, 2)
    pixels = np.pad(pixels, ((0, 0), (0, 1), (0, 1), (0, 0)))
    pixels[:, ::cell] = pixels[:, :, ::cell] = _rgb(LINE)
    for tile, (height, width) in zip(pixels, shapes if shapes is not None else (), strict=False):
        bottom, right = int(height) * cell, int(width) * cell
        tile[[0, bottom], : right + 1] = tile[: bottom + 1, [0, right]] = _rgb(edge)
    return pixels


def _reconstruction_tiles(
    originals: Grids, reconstructions: Grids, shapes: NDArray[np.uint8] | None = None
) -> tuple[Image, ...]:
    """Tiles of originals, of their reconstructions, and of where they differ."""
    wrong = (originals != reconstructions).astype(np.uint8)
    return (
        _tiles(originals, shapes),
        _tiles(reconstructions, shapes),
        _tiles(wrong, shapes, colours=(RIGHT, WRONG), edge=PALETTE[2]),
    )


_MAP_COLOURS = "magma"


def _map_tiles(originals: Grids, maps: Mapping[str, NDArray[np.float32]]) -> tuple[tuple[Image, ...], float]:
    """Tiles of originals and of each of their maps, drawn as large, and the nats of the brightest colour."""
    from matplotlib import colormaps

    top = max(max(float(np.nanmax(values, initial=0.0)) for values in maps.values()), 1e-6)
    first = _tiles(originals)
    _, height, width, _ = first.shape
    kinds = [first]
    for values in maps.values():
        pixels = colormaps[_MAP_COLOURS](np.nan_to_num(values) / top, bytes=True)[..., :3]
        rows = np.arange(height) * values.shape[1] // height  # the cell under each pixel
        columns = np.arange(width) * values.shape[2] // width
        kinds.append(np.ascontiguousarray(pixels[:, rows][:, :, columns]))
    return tuple(kinds), top


def _bands(kinds: Sequence[Image], columns: int) -> Image:
    """Tiles in rows of `columns`: a row of each kind, one below the other, then the next examples."""
    count = len(kinds[0])
    missing = -count % columns
    blank = np.full((missing, *kinds[0].shape[1:]), 255, np.uint8)
    whole = [np.concatenate([kind, blank]) for kind in kinds]
    return np.concatenate([kind[start : start + columns] for start in range(0, count, columns) for kind in whole])


def _lay(tiles: Image, columns: int, tops: Sequence[int] | None = None, margin: int = 0, size: int = 0) -> Image:
    """Tiles in rows of `columns` on white, the rows beginning at `tops`; at least `size` pixels wide."""
    count, height, width, _ = tiles.shape
    rows = -(-count // columns)
    tops = [row * (height + _GAP) for row in range(rows)] if tops is None else tops
    sheet = np.full((tops[-1] + height, max(margin + columns * (width + _GAP) - _GAP, size), 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, x = tops[index // columns], margin + index % columns * (width + _GAP)
        sheet[top : top + height, x : x + width] = tile
    return sheet


def _rgb(colour: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def _save_sheet(
    path: Path,
    tiles: Image,
    columns: int,
    above: Sequence[str] | None = None,
    left: Sequence[str] | None = None,
    title: str | None = None,
) -> None:
    """Tiles (N, h, w, 3) in rows of `columns`, pixel for pixel, with texts `above` tiles and `left` of rows."""
    _write(_sheet(tiles, min(columns, len(tiles)), above, left, title)[0], path)


_SCALE = 84  # pixels that a scale of colours takes


def _sheet(
    tiles: Image,
    columns: int,
    above: Sequence[str] | None = None,
    left: Sequence[str] | None = None,
    title: str | None = None,
    margin_right: int = 0,
) -> tuple[Figure, int]:
    """The figure of a sheet, and its width in pixels."""
    from matplotlib.figure import Figure

    count, tile_height, tile_width, _ = tiles.shape
    rows = -(-count // columns)
    above = above or [""] * count
    margin = _GAP + (_STRIP if left else 0)
    # A row has a strip for text only where there is text.
    strips = [_STRIP if any(above[row * columns : (row + 1) * columns]) else 0 for row in range(rows)]
    tops, height = [], _GAP + (_STRIP + _GAP if title else 0)
    for strip in strips:
        tops.append(height + strip)
        height += strip + tile_height + _GAP
    width = max(margin + columns * (tile_width + _GAP) + margin_right, 2 * _GAP + 8 * len(title or ""))

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for index in range(count):
        if above[index]:
            top, x = tops[index // columns], margin + index % columns * (tile_width + _GAP)
            figure.text(x / width, 1 - (top - 4) / height, above[index], fontsize=8)
    for top, label in zip(tops, left or (), strict=False):
        place = (_GAP + _STRIP / 2 - 4) / width, 1 - (top + tile_height / 2) / height
        figure.text(*place, label, fontsize=8, rotation=90, ha="center", va="center")
    if title:
        figure.text(_GAP / width, 1 - _GAP / height, title, fontsize=10, va="top")
    sheet = _lay(tiles, columns, tops, margin, width)
    figure.figimage(np.pad(sheet, ((0, _GAP), (0, 0), (0, 0)), constant_values=255), zorder=-1)
    return figure, width


# Curves, heat maps, scatters


def save_beta_schedule(
    path: Path,
    epochs: ArrayLike,
    betas: Mapping[str, ArrayLike],
    elbo_scale: float | None = None,
    held: Sequence[tuple[float, Sequence[Target]]] = (),
) -> None:
    """Beta over the epochs, one line a name (a level or a schedule), with the ELBO scale to the right if it differs.

    `elbo_scale` is the factor from beta to the beta of the same weight in a loss of sums. `held`, of a schedule that
    takes feedback, is its targets at the end of each epoch: they are drawn below, dashed, and what was reached solid.
    """
    figure = _figure(8, 7 if held else 4)
    axes = figure.add_subplot(2 if held else 1, 1, 1)
    colours = dict(zip(betas, _cycle(len(betas)), strict=True))
    for name, beta in betas.items():
        axes.plot(np.asarray(epochs), np.asarray(beta), label=name, color=colours[name], linewidth=1.8)
    axes.set(xlabel="epoch", ylabel="beta", title="Beta over the run")
    least = min((float(np.min(np.asarray(beta))) for beta in betas.values()), default=0.0)
    axes.set_ylim(bottom=0.0 if least >= 0 else axes.get_ylim()[0])  # the sign of a capacity's beta changes
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    if len(betas) > 1:
        axes.legend(frameon=False)
    _scale_axis(axes, elbo_scale)
    if held:
        _draw_targets(figure, held, colours)
        axes.set_xlim(right=max(axes.get_xlim()[1], held[-1][0]))
        figure.axes[-1].set_xlim(axes.get_xlim())
    _write(figure, path)


def _draw_targets(figure: Figure, held: Sequence[tuple[float, Sequence[Target]]], colours: Mapping[str, str]) -> None:
    """What was reached and what was wanted in each epoch, in the colours of levels; reconstruction has its own axis."""
    axes = figure.add_subplot(2, 1, 2)
    axes.set(xlabel="epoch", title="What the schedule held (dashed: its target)")
    axes.grid(alpha=0.3)
    units = {"kl": "KL, nats", "reconstruction": "reconstruction, nats per position"}
    keys = list(dict.fromkeys((target.quantity, target.level) for _, targets in held for target in targets))
    sides: dict[str, Axes] = {}
    for quantity in dict.fromkeys(quantity for quantity, _ in keys):
        sides[quantity] = axes.twinx() if sides else axes
        sides[quantity].set_ylabel(units[quantity])
    for other, (quantity, level) in zip(_cycle(len(keys)), keys, strict=True):
        colour = colours.get(level, other)
        found = [(at, t) for at, targets in held for t in targets if (t.quantity, t.level) == (quantity, level)]
        places = [at for at, _ in found]
        marker = "." if len(found) < 30 else ""
        values, wanted = [t.value for _, t in found], [t.target for _, t in found]
        name = f"{level} {units[quantity].partition(',')[0]}".strip()
        sides[quantity].plot(places, values, color=colour, linewidth=1.8, marker=marker, label=name)
        sides[quantity].plot(places, wanted, color=colour, linewidth=1.2, linestyle="--")
    if any(level for _, level in keys):
        lines = [line for side in sides.values() for line in side.lines if line.get_linestyle() == "-"]
        axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False)


def _scale_axis(axes: Axes, elbo_scale: float | None) -> None:
    """The ELBO scale to the right of beta, if it differs."""
    if elbo_scale is None or elbo_scale == 1.0:
        return
    right = axes.secondary_yaxis(
        "right", functions=(lambda beta: np.multiply(beta, elbo_scale), lambda beta: np.divide(beta, elbo_scale))
    )
    right.set_ylabel("beta on the ELBO scale")


@dataclass(frozen=True)
class Line:
    """A named curve."""

    name: str
    epochs: Sequence[float]
    values: Sequence[float]
    dashed: bool = False


@dataclass
class Panel:
    """Curves of one unit, "beta" or another, and how high and low its axis goes."""

    unit: str
    lines: list[Line] = field(default_factory=list)
    top: float = 0.0
    low: float = 0.0


def save_schedules(path: Path, panels: Sequence[Panel], elbo_scale: float | None = None) -> None:
    """Schedules over the epochs, a panel below another for each unit.

    The PNG carries `fingerprint` as its text "points", by which a picture is known to be stale.
    """
    figure = _figure(8, 1 + 3 * len(panels))
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(len(panels), 1, place)
        for colour, line in zip(_cycle(len(panel.lines)), panel.lines, strict=True):
            style = "--" if line.dashed else "-"
            axes.plot(line.epochs, line.values, label=line.name, color=colour, linewidth=1.8, linestyle=style)
        axes.set(xlabel="epoch", ylabel=panel.unit)
        reach = (panel.top - panel.low) or 1.0
        axes.set_ylim(panel.low - 0.05 * reach * (panel.low < 0), panel.top + 0.05 * reach)
        axes.margins(x=0.01)
        axes.grid(alpha=0.3)
        if len(panel.lines) > 1:
            axes.legend(frameon=False)
        if panel.unit == "beta":
            _scale_axis(axes, elbo_scale)
    figure.axes[0].set_title("Beta over the run" if panels[0].unit == "beta" else "What beta is to hold")
    _write(figure, path, {"points": fingerprint(panels, elbo_scale)})


def fingerprint(panels: Sequence[Panel], elbo_scale: float | None = None) -> str:
    """A hash of names and points, of which six digits count: the rest may differ from machine to machine."""
    known = hashlib.sha256(f"{elbo_scale}".encode())
    for panel in panels:
        for line in panel.lines:
            points = (f"{epoch:.6g} {value:.6g}" for epoch, value in zip(line.epochs, line.values, strict=True))
            known.update("\n".join((panel.unit, line.name, *points)).encode())
    return known.hexdigest()[:32]


def save_kl_heatmap(
    path: Path,
    levels: Mapping[str, NDArray[np.floating[Any]]],
    free_bits: Mapping[str, float] | None = None,
    dead: float = 0.05,
    title: str | None = None,
) -> None:
    """KL (epochs, groups) in nats over the run, level below level. A dimension under `dead` nats is grey.

    To the right stands each dimension's last value; the free-bits floors of the levels are marked on the colour bar.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    kl = np.concatenate(list(levels.values()), axis=1)
    epochs, dims = kl.shape
    single = len(levels) == 1
    names = [str(i) if single else f"{name} {i}" for name, part in levels.items() for i in range(part.shape[1])]
    figure = _figure(9, min(9.0, max(3.2, 1.6 + 0.22 * dims)))
    axes = figure.add_subplot()
    colours = colormaps["viridis"].with_extremes(under="#BBBBBB", bad="#FFFFFF")
    top = max(float(np.nanmax(kl, initial=0.0)), 20 * dead)
    image = axes.imshow(
        np.maximum(kl.T, dead / 2),  # a logarithm has no place for 0
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, epochs + 0.5, dims - 0.5, -0.5),
        cmap=colours,
        norm=LogNorm(dead, top),
    )
    alive = int((kl[-1] >= dead).sum())
    axes.set(xlabel="epoch", title=title or f"KL of each dimension: {alive} of {dims} alive")
    if single:
        axes.set_ylabel("dimension")
    for border in np.cumsum([part.shape[1] for part in levels.values()])[:-1]:
        axes.axhline(border - 0.5, color="#FFFFFF", linewidth=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    shown = range(0, dims, -(-dims // 36))  # more than 36 labels would overlap
    axes.set_yticks(shown, [names[dim] for dim in shown])
    last = axes.secondary_yaxis("right")
    last.set_yticks(shown, [f"{kl[-1, dim]:.2f}" + (" dead" if kl[-1, dim] < dead else "") for dim in shown])
    last.tick_params(length=0, labelsize=8)
    bar = figure.colorbar(image, extend="min", pad=0.02, aspect=30, extendfrac=0.05)
    bar.set_label(f"KL, nats (grey: under {dead:g}, dead)")
    floors: dict[float, str] = {}
    for name, floor in (free_bits or {}).items():
        if dead <= floor <= top:
            floors[floor] = f"{floors[floor]}, {name}" if floor in floors else name
    marks = {floor: "" if len(floors) == 1 else f" {name}" for floor, name in floors.items()}
    _mark_floors(bar.ax, dead, top, marks)
    _write(figure, path)


def _mark_floors(axes: Axes, low: float, high: float, floors: Mapping[float, str]) -> None:
    """Free-bits floors on a colour bar from `low` to `high`, each with what stands behind `free bits`."""
    ticks = {tick: f"{tick:g}" for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high}
    for floor, name in floors.items():
        axes.axhline(floor, color="#FF4136", linewidth=2)
        # A label of the scale that would run into this one goes.
        close = [
            tick for tick in ticks if tick not in floors and abs(np.log(tick / floor)) <= 0.06 * np.log(high / low)
        ]
        ticks = {tick: label for tick, label in ticks.items() if tick not in close}
        ticks[floor] = f"{floor:g} free bits{name}"
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()


def save_latent_scatter(
    path: Path,
    points: NDArray[np.floating[Any]],
    values: ArrayLike | None = None,
    value_name: str = "",
    title: str = "",
    axis_names: tuple[str, str] = ("", ""),
) -> None:
    """Points (n, 2), coloured by `values` (n,): numbers get a colour bar, texts (at most 10 kinds) a legend."""
    figure = _figure(7.4, 6)
    axes = figure.add_subplot()
    size = float(np.clip(20000 / max(1, len(points)), 4, 24))
    x, y = np.asarray(points, dtype=float).T
    if values is None:
        axes.scatter(x, y, s=size, linewidths=0, alpha=0.7)
    elif (array := np.asarray(values)).dtype.kind in "US":
        kinds = sorted(set(array.tolist()))
        for colour, kind in zip(_cycle(len(kinds)), kinds, strict=True):
            axes.scatter(x[array == kind], y[array == kind], s=size, linewidths=0, alpha=0.7, color=colour, label=kind)
        axes.legend(title=value_name or None, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, markerscale=2)
    else:
        marks = axes.scatter(x, y, s=size, linewidths=0, c=array, cmap="viridis")
        figure.colorbar(marks, pad=0.02, aspect=30, label=value_name)
    axes.set(title=title, xlabel=axis_names[0], ylabel=axis_names[1])
    axes.grid(alpha=0.2)
    _write(figure, path)


def _cycle(count: int) -> list[str]:
    """Colours of lines and kinds, told apart by most eyes (Matplotlib's `tab10`)."""
    return [f"C{index % 10}" for index in range(count)]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _write(figure: Figure, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """The figure as PNG with `texts` inside, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi, metadata=dict(texts or {}))
