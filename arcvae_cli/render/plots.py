"""PNGs: grids, curves, KL heat maps, scatters of latent codes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FormatStrFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.files import atomic_write
from arcvae_cli.render.terminal import DEAD, OUTSIDE, Grids, palette

Image = NDArray[np.uint8]  # (..., height, width, 3)
Extents = NDArray[np.uint8] | None  # (N, 2) height and width of each grid
Maps = Mapping[str, NDArray[np.float32]]  # KL of cells in nats, by level
Array = NDArray[np.floating[Any]]
Texts = Sequence[str]
Curve = tuple[str, str, ArrayLike, ArrayLike, bool]  # label, unit, epochs, values, dashed

DPI = 100
TILE = 128  # pixels of the longer side of a grid, about
PAIRS = 16  # on a sheet of reconstructions
LINED = 8  # pixels of a cell from which there are lines between cells
GAP, STRIP, MARGIN = 10, 17, 24  # pixels between grids, of a line of text, left of a sheet with labels
NARROW, KEY = 480, 76  # pixels of a sheet at least, and of an entry of its legend
LINE, EXTENT, RIGHT, WRONG, HATCH = "#555555", "#00FFC8", "#000000", "#FFFFFF", 160


def save_grids(
    path: Path, grids: Grids, columns: int, above: Texts | None, title: str, left: Texts = (), canvas: Canvas = ARC
) -> None:
    """Grids (N, H, W) in rows of `columns`, with texts above, by default which are blank, and left of the rows."""
    marks = ["" if one.any() else "blank" for one in np.isin(grids, canvas.content)]
    tiles, above = _tiles(grids, palette(canvas), *_outside(grids, canvas)), above or (marks if any(marks) else [])
    _write(_sheet([tiles], columns, above, left, title), path)


def save_reconstructions(
    path: Path, originals: Grids, reconstructions: Grids, extents: Extents, title: str, canvas: Canvas = ARC
) -> None:
    """The first PAIRS originals, reconstructions (N, H, W) and errors; `extents` (N, 2) are drawn as rectangles."""
    originals, reconstructions = originals[:PAIRS], reconstructions[:PAIRS]
    shown, outside = _outside(originals, canvas, extents)
    wrong, rows = (originals != reconstructions) & ~outside, ("original", "reconstruction", "error")
    above = [f"{count} wrong" for count in wrong.sum((1, 2)).tolist()]
    if extents is not None:
        above = [f"{height}x{width}, {text}" for (height, width), text in zip(shown, above, strict=True)]
    kinds = [_tiles(originals, palette(canvas), shown, outside)]
    kinds.append(_tiles(reconstructions, palette(canvas), shown, reconstructions == canvas.outside))
    kinds.append(_tiles(wrong.astype(np.uint8), (RIGHT, WRONG), shown, outside))
    legend = {"right": RIGHT, "wrong": WRONG} | ({} if extents is None else {"extent": EXTENT})
    legend |= {"outside": OUTSIDE} if outside.any() else {}
    _write(_sheet(kinds, 8, above, rows, title, legend), path)


def _outside(grids: Grids, canvas: Canvas, extents: Extents = None) -> tuple[Any, Any]:
    """Extents (N, 2), and cells outside of them or of that class (N, H, W): none on ARC's canvas, where all count."""
    outside, (rows, columns) = grids == canvas.outside, map(np.arange, canvas.shape)
    if extents is None:
        sides = [((~outside).any(2) * (rows + 1)).max(1), ((~outside).any(1) * (columns + 1)).max(1)]
        return np.stack(sides, axis=1), outside
    extents = extents[: len(grids)].astype(int)
    if canvas != ARC:
        outside = (rows >= extents[:, :1])[:, :, None] | (columns >= extents[:, 1:])[:, None]
    return extents, outside


def save_kl_maps(path: Path, originals: Grids, maps: Maps, title: str, extents: Extents, canvas: Canvas = ARC) -> None:
    """Originals (n, H, W) over their KL maps by level, the first of (N, h, w) in nats; before them the mean of all."""
    count, places = len(originals), np.r_[0, : len(originals)]
    tiles = _tiles(originals, palette(canvas), *_outside(originals, canvas, extents))[places]
    tiles[0] = 255
    maps = {name: np.concatenate([values.mean(axis=0)[None], values[:count]]) for name, values in maps.items()}
    top = max([1e-6, *(float(np.nanmax(values)) for values in maps.values())])
    kinds, (_, height, width, _) = [tiles], tiles.shape
    for values in maps.values():
        pixels = colormaps["magma"](np.nan_to_num(values) / top, bytes=True)[..., :3]
        rows = np.arange(height) * values.shape[1] // height  # the cell under each pixel
        kinds.append(pixels[:, rows][:, :, np.arange(width) * values.shape[2] // width])
    above = [", ".join(f"{kl[i].sum():.1f}" for kl in maps.values()) + " nats" for i in range(count + 1)]
    above[0] = f"mean, {above[0]}"
    figure = _sheet(kinds, 8, above, ("original", *(f"KL of {name}" for name in maps)), title, right=84)
    across, up = figure.get_size_inches() * DPI
    axes = figure.add_axes(((across - 74) / across, 0.1, 12 / across, max(0.5, 1 - 60 / up) - 0.1))
    figure.colorbar(ScalarMappable(Normalize(0, top), "magma"), axes).set_label("KL of a cell, nats", fontsize=8)
    axes.tick_params(labelsize=8)
    _write(figure, path)


def _tiles(grids: Grids, colours: Sequence[str], extents: Any, outside: Any) -> Image:
    """Grids (N, H, W) as pixels (N, h, w, 3): lines between cells, smaller extents (N, 2) framed, `outside` hatched."""
    cell = max(3, TILE // max(grids.shape[1:]))
    colours = (LINE, EXTENT, OUTSIDE, *colours)
    line, frame, grey, *table = (np.frombuffer(bytes.fromhex(colour[1:]), np.uint8) for colour in colours)
    pixels = np.stack(table)[grids].repeat(cell, 1).repeat(cell, 2)
    pixels = np.pad(pixels, ((0, 0), (0, 1), (0, 1), (0, 0)))
    down, across = (cell if cell >= LINED else side - 1 for side in pixels.shape[1:3])
    pixels[:, ::down] = pixels[:, :, ::across] = line
    hatched, inner = outside.repeat(cell, 1).repeat(cell, 2), pixels[:, :-1, :-1]
    stripes = np.add.outer(*map(np.arange, hatched.shape[1:])) % 6 < 2
    inner[hatched], inner[hatched & stripes] = grey, HATCH
    for tile, (bottom, right) in zip(pixels, extents * cell, strict=True):
        if (bottom + 1, right + 1) != tile.shape[:2] and min(bottom, right) > 0:  # smaller than the canvas
            for at in (0, 1) if cell >= LINED else (0,):
                tile[[at, bottom - at], : right + 1] = tile[: bottom + 1, [at, right - at]] = frame
    return pixels


def _sheet(
    kinds: list[Image], columns: int, above: Texts, left: Texts, title: str, legend: Any = (), right: int = 0
) -> Figure:
    """Tiles (N, h, w, 3) of several kinds on white, in bands of `columns` examples with a row for each kind.

    `above`: texts above the examples; `left`: labels of the rows in turn; `legend`: its colours; `right`: free pixels.
    """
    count, high, wide, _ = kinds[0].shape
    bands, columns, strip = -(-count // columns), min(columns, count), STRIP if above else 0
    height, width = strip + len(kinds) * (high + GAP), wide + GAP  # of an example in all kinds
    pixels = np.full((bands * columns, height, width, 3), 255, np.uint8)
    for row, kind in enumerate(kinds):
        top = strip + row * (high + GAP)
        pixels[:count, top : top + high, :wide] = kind
    pixels = pixels.reshape(bands, columns, height, width, 3).swapaxes(1, 2)
    pixels = pixels.reshape(bands * height, columns * width, 3)[:-GAP, :-GAP]
    margin = MARGIN if left else GAP
    across = max(margin + pixels.shape[1] + GAP + right, NARROW)
    title = fill(title, (across - 2 * GAP) // 8)
    bottom, top = GAP + STRIP * bool(legend), STRIP * (title.count("\n") + 1) + 2 * GAP
    up = top + pixels.shape[0] + bottom
    figure = Figure(figsize=(across / DPI, up / DPI), dpi=DPI)
    axes = figure.add_axes((margin / across, bottom / up, pixels.shape[1] / across, pixels.shape[0] / up))
    for index, (text, colour) in enumerate(dict(legend).items()):
        x, y = (margin + KEY * index) / across, GAP / 2 / up
        figure.add_artist(Rectangle((x, y), 12 / across, 12 / up, facecolor=colour, edgecolor=LINE, linewidth=0.5))
        figure.text(x + 16 / across, y + 6 / up, text, fontsize=8, va="center")
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    for index, text in enumerate(above):
        axes.text(index % columns * width, index // columns * height + strip - 4, text, fontsize=8)
    for index in range(bands * len(kinds) if left else 0):
        band, row = divmod(index, len(kinds))
        middle, text = band * height + strip + row * (high + GAP) + high / 2, left[index % len(left)]
        axes.text(-4, middle, text, fontsize=8, rotation=90, ha="right", va="center")
    figure.text(GAP / across, 1 - GAP / up, title, fontsize=10, va="top")
    return figure


def save_curves(path: Path, curves: Sequence[Curve], title: str, scale: float | None = None, best: int = 0) -> None:
    """A panel for each unit, with a second axis for beta on the ELBO scale, and a grey line at the best epoch.

    A curve has the colour of its target (`NAME target`), and of the curve with `_` before its label.
    """
    units = list(dict.fromkeys(unit for _, unit, *_ in curves))
    names = [label.removesuffix(" target").removeprefix("_") for label, *_ in curves]
    columns = 1 if len(units) <= 3 else 3
    rows = -(-len(units) // columns)
    figure = _figure(10, 1 + 2.75 * rows, title)
    panels = dict(zip(units, figure.subplots(rows, columns, sharex=True, squeeze=False).ravel(), strict=False))
    for name, (label, unit, epochs, values, dashed) in zip(names, curves, strict=True):
        colour = f"C{list(dict.fromkeys(names)).index(name) % 10}"
        style: Any = {"linestyle": "--" if dashed else "-", "marker": "." if np.size(epochs) < 20 else ""}
        panels[unit].plot(epochs, values, label=label, color=colour, linewidth=1.8, **style)
    for unit, axes in panels.items():
        axes.set_ylabel(unit)
        if unit not in ("loss", "reconstruction") and 0 <= axes.dataLim.y0 <= axes.dataLim.y1:
            axes.set_ylim(0.0, 1.05 * axes.dataLim.y1 or 1.0)
        axes.margins(x=0.01)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.locator_params(axis="y", integer=unit == "active dimensions")
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(framealpha=0.8, edgecolor="#FFFFFF")
        if unit == "beta" and scale is not None and scale != 1.0:
            both = (lambda beta: np.multiply(beta, scale), lambda beta: np.divide(beta, scale))
            axes.secondary_yaxis("right", functions=both).set_ylabel("beta on the ELBO scale")
        if best:
            axes.axvline(best, color="#AAAAAA", linewidth=1, zorder=0)
    figure.supxlabel("epoch", fontsize="medium")
    _write(figure, path)


def save_kl_heatmap(path: Path, levels: Mapping[str, Array], title: str) -> None:
    """KL (epochs, groups) in nats over the run, level below level; under DEAD is grey."""
    kl = np.concatenate(list(levels.values()), axis=1)
    epochs, dims = kl.shape
    names = [f"{name} {index}" for name, part in levels.items() for index in range(part.shape[1])]
    figure = _figure(9, min(9.0, max(3.2, 1.6 + 0.22 * dims)), f"{title}, {(kl[-1] > DEAD).sum()} of {dims} alive")
    axes = figure.add_subplot(xlabel="epoch", ylabel="dimension, last KL")
    top = max(float(np.nanmax(kl, initial=0.0)), 20 * DEAD)
    style: Any = {"aspect": "auto", "interpolation": "nearest", "extent": (0.5, epochs + 0.5, dims - 0.5, -0.5)}
    colours = colormaps["viridis"].with_extremes(under="#BBBBBB", bad="#FFFFFF")
    image = axes.imshow(np.maximum(kl.T, DEAD / 2), colours, LogNorm(DEAD, top), **style)  # no logarithm of 0
    for border in np.cumsum([part.shape[1] for part in levels.values()])[:-1]:
        axes.axhline(border - 0.5, color="#FFFFFF", linewidth=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    shown = range(0, dims, -(-dims // 36))  # more than 36 labels would overlap
    axes.set_yticks(shown, [f"{names[i]}: {kl[-1, i]:.2f}" + (" dead" if kl[-1, i] <= DEAD else "") for i in shown])
    bar = figure.colorbar(image, extend="min", pad=0.02, aspect=30, extendfrac=0.05, format=FormatStrFormatter("%g"))
    bar.set_label(f"KL, nats (grey: under {DEAD:g}, dead)")
    _write(figure, path)


def save_latent_scatter(path: Path, points: Array, values: Any, name: str, title: str, axes: Texts = ("", "")) -> None:
    """Points (n, 2), coloured by numbers `values` (n,) of this name."""
    figure = _figure(7.4, 6, title)
    panel = figure.add_subplot(xlabel=axes[0], ylabel=axes[1])
    marks = panel.scatter(points[:, 0], points[:, 1], s=24, linewidths=0, c=values, cmap="viridis")
    figure.colorbar(marks, pad=0.02, aspect=30, label=name)
    panel.grid(alpha=0.2)
    _write(figure, path)


def _figure(width: float, height: float, title: str) -> Figure:
    """A figure of so many inches, its title wrapped to fit."""
    figure = Figure((width, height), DPI, layout="constrained")
    figure.suptitle("\n".join(fill(line, int(10 * width)) for line in title.splitlines()))
    return figure


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi)
