"""Pictures: grids in the terminal, and grids, curves and latents as PNG.

Takes NumPy arrays and plain numbers. Matplotlib is used through its objects only: pyplot takes half a second to import
and keeps global state. Every PNG is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arcvae_cli.writing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment
    from rich.style import Style

# The colours of ARC, 0 to 9.
PALETTE = ("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25")
LINE, EDGE, RIGHT, WRONG = "#555555", "#FFFFFF", "#000000", "#FFFFFF"

_DPI = 100
_TILE = 128  # pixels that the longer side of a grid is drawn in, about
_GAP = 10  # between grids
_STRIP = 17  # a line of text

Grids = NDArray[np.uint8]
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


# Grids as PNG: one array of pixels, drawn once, and text beside it


def save_grids(
    path: Path, grids: Grids, columns: int = 8, titles: Sequence[str] | None = None, title: str | None = None
) -> None:
    """Grids (N, H, W) in rows of `columns`, with a short text above each and a title above them all."""
    _save_sheet(path, _tiles(grids), columns, above=titles, title=title)


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
    originals, reconstructions = originals[:pairs], reconstructions[:pairs]
    wrong = originals != reconstructions
    rectangles = None if shapes is None else shapes[:pairs]
    kinds = (
        _tiles(originals, rectangles),
        _tiles(reconstructions, rectangles),
        _tiles(wrong.astype(np.uint8), rectangles, colours=(RIGHT, WRONG), edge=PALETTE[2]),
    )
    captions = [f"{count} wrong" for count in wrong.sum((1, 2))]
    if rectangles is not None:
        captions = [
            f"{height}x{width}, {caption}" for (height, width), caption in zip(rectangles, captions, strict=True)
        ]
    columns = min(8, len(originals))
    tiles, above, left = [], [], []
    blank = np.full_like(kinds[0][:1], 255)
    for start in range(0, len(originals), columns):
        chosen = slice(start, start + columns)
        missing = columns - len(originals[chosen])
        for kind in kinds:
            tiles += [kind[chosen]] + [blank] * missing
        above += captions[chosen] + [""] * (columns * 3 - len(captions[chosen]))
        left += ["original", "reconstruction", "error"]
    _save_sheet(path, np.concatenate(tiles), columns, above, left, title)


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
    from matplotlib.figure import Figure

    count, tile_height, tile_width, _ = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    above = above or [""] * count
    margin = _GAP + (_STRIP if left else 0)
    # A row has a strip for text only where there is text.
    strips = [_STRIP if any(above[row * columns : (row + 1) * columns]) else 0 for row in range(rows)]
    tops, y = [], _GAP + (_STRIP + _GAP if title else 0)
    for strip in strips:
        tops.append(y + strip)
        y += strip + tile_height + _GAP
    width = max(margin + columns * (tile_width + _GAP), 2 * _GAP + 8 * len(title or ""))
    sheet = np.full((y, width, 3), 255, np.uint8)
    height = y

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for index, tile in enumerate(tiles):
        top, x = tops[index // columns], margin + index % columns * (tile_width + _GAP)
        sheet[top : top + tile_height, x : x + tile_width] = tile
        if above[index]:
            figure.text(x / width, 1 - (top - 4) / height, above[index], fontsize=8)
    for top, label in zip(tops, left or (), strict=False):
        place = (_GAP + _STRIP / 2 - 4) / width, 1 - (top + tile_height / 2) / height
        figure.text(*place, label, fontsize=8, rotation=90, ha="center", va="center")
    if title:
        figure.text(_GAP / width, 1 - _GAP / height, title, fontsize=10, va="top")
    figure.figimage(sheet)
    _write(figure, path)


# Curves, heat maps, scatters


def save_beta_schedule(
    path: Path, epochs: ArrayLike, betas: Mapping[str, ArrayLike], elbo_scale: float | None = None
) -> None:
    """Beta over the epochs, one line a name (a level or a schedule), with the ELBO scale to the right if it differs.

    `elbo_scale` is the factor from beta to the beta of the same weight in a loss of sums.
    """
    figure = _figure(8, 4)
    axes = figure.add_subplot()
    for colour, (name, beta) in zip(_cycle(len(betas)), betas.items(), strict=True):
        axes.plot(np.asarray(epochs), np.asarray(beta), label=name, color=colour, linewidth=1.8)
    axes.set(xlabel="epoch", ylabel="beta", title="Beta over the run")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    if len(betas) > 1:
        axes.legend(frameon=False)
    if elbo_scale is not None and elbo_scale != 1.0:
        scale = elbo_scale
        right = axes.secondary_yaxis(
            "right", functions=(lambda beta: np.multiply(beta, scale), lambda beta: np.divide(beta, scale))
        )
        right.set_ylabel("beta on the ELBO scale")
    _write(figure, path)


def save_kl_heatmap(
    path: Path, kl: NDArray[np.floating[Any]], free_bits: float = 0.0, dead: float = 0.05, title: str | None = None
) -> None:
    """KL (epochs, dimensions) in nats over the run. A dimension under `dead` nats is grey.

    To the right stands each dimension's last value; the free-bits floor is marked on the colour bar.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    epochs, dims = kl.shape
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
    axes.set(xlabel="epoch", ylabel="dimension", title=title or f"KL of each dimension: {alive} of {dims} alive")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    shown = range(0, dims, -(-dims // 36))  # more than 36 labels would overlap
    axes.set_yticks(shown)
    last = axes.secondary_yaxis("right")
    last.set_yticks(shown, [f"{kl[-1, dim]:.2f}" + (" dead" if kl[-1, dim] < dead else "") for dim in shown])
    last.tick_params(length=0, labelsize=8)
    bar = figure.colorbar(image, extend="min", pad=0.02, aspect=30, extendfrac=0.05)
    bar.set_label(f"KL, nats (grey: under {dead:g}, dead)")
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if dead <= tick <= top]
    if dead <= free_bits <= top:
        bar.ax.axhline(free_bits, color="#FF4136", linewidth=2)
        # A label of the scale that would run into this one goes.
        ticks = [tick for tick in ticks if abs(np.log(tick / free_bits)) > 0.06 * np.log(top / dead)] + [free_bits]
    labels = [f"{tick:g}" + (" free bits" if tick == free_bits else "") for tick in ticks]
    bar.ax.set_yticks(ticks, labels)
    bar.ax.minorticks_off()
    _write(figure, path)


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


def _write(figure: Figure, path: Path) -> None:
    """The figure as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi)
