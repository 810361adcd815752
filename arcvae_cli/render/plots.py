"""PNGs: grids, curves, KL heat maps, scatters of latent codes. Matplotlib is imported in functions, without pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arcvae_cli.files import atomic_write
from arcvae_cli.render.terminal import PALETTE, Grids

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from arcvae_cli.controllers import Target

Image = NDArray[np.uint8]  # (..., height, width, 3)
Extents = NDArray[np.uint8] | None  # (N, 2) height and width of each grid
Maps = Mapping[str, NDArray[np.float32]]  # KL of cells in nats, by level
Array = NDArray[np.floating[Any]]
Texts = Sequence[str]
Curve = tuple[str, str, Any, Any, bool]  # label, unit, epochs, values, dashed

DPI = 100
TILE = 128  # pixels of the longer side of a grid, about
GAP, STRIP, MARGIN = 10, 17, 24  # pixels between grids, of a line of text, left of a sheet with labels
LINE, EXTENT, RIGHT, WRONG = "#555555", "#00FFC8", "#000000", "#FFFFFF"
MAP_COLOURS, DEAD = "magma", 0.05  # nats of a dead dimension
UNITS = {"kl": "KL, nats", "reconstruction": "reconstruction, nats per position"}
PANELS = {
    "loss": {"loss_total": ""},
    "reconstruction": {"loss_reconstruction": ""},
    "KL, nats": {"kl": ""},
    "accuracy": {
        **{"pixel_accuracy": "pixel", "non_black_accuracy": "non-black", "exact_accuracy": "exact grid"},
        **{"token_acc": "token", "seq_acc": "sequence"},
    },
    "active dimensions": {"active_dims": ""},
}  # of the training curves: logged metrics and their labels


def save_grids(path: Path, grids: Grids, columns: int = 8, titles: Texts | None = None, title: str = "") -> None:
    """Grids (N, H, W) in rows of `columns`, blank ones marked, with a text above each and a title above all."""
    _write(_sheet([_tiles(grids)], columns, titles or (), title=title, marked=[grids]), path)


def save_level_samples(path: Path, grids: Grids, columns: int, row: str, column: str, title: str = "") -> None:
    """Samples (N, H, W) in rows of `columns`; a row has one latent of level `row`, a column one of level `column`."""
    above = [f"{column} {place + 1}" for place in range(columns)]
    left = [f"{row} {place + 1}" for place in range(-(-len(grids) // columns))]
    _write(_sheet([_tiles(grids)], columns, above, left, title, marked=[grids]), path)


def save_reconstructions(
    path: Path, originals: Grids, reconstructions: Grids, extents: Extents = None, title: str = " ", pairs: int = 16
) -> None:
    """The first `pairs` originals, reconstructions (N, H, W) and errors; `extents` (N, 2) are drawn as rectangles."""
    from matplotlib.patches import Patch

    originals, reconstructions = originals[:pairs], reconstructions[:pairs]
    above = [f"{count} wrong" for count in (originals != reconstructions).sum((1, 2))]
    legend = [Patch(facecolor=RIGHT, label="right cell"), Patch(facecolor=WRONG, label="wrong cell")]
    if extents is not None:
        above = [f"{height}x{width}, {text}" for (height, width), text in zip(extents[:pairs], above, strict=True)]
        legend.append(Patch(facecolor=LINE, edgecolor=EXTENT, linewidth=2, label="extent of the grid"))
    rows, kinds = ("original", "reconstruction", "error"), _reconstruction_tiles(originals, reconstructions, extents)
    _write(_sheet(kinds, 8, above, rows, title, marked=[originals, reconstructions], legend=legend), path)


def save_kl_maps(
    path: Path, originals: Grids, maps: Maps, title: str = "", columns: int = 8, means: Maps | None = None
) -> None:
    """Originals (N, H, W) over their KL maps (N, h, w) in nats by level; `means` (h, w) of more come first."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if means is not None:
        originals = np.concatenate([np.zeros_like(originals[:1]), originals])
        maps = {name: np.concatenate([means[name][None], values]) for name, values in maps.items()}
    kinds, top = _map_tiles(originals, maps)
    above = [", ".join(f"{kl[i].sum():.1f}" for kl in maps.values()) + " nats" for i in range(len(originals))]
    if means is not None:
        kinds[0][0], above[0] = 255, f"mean, {above[0]}"
    figure = _sheet(kinds, columns, above, ("original", *(f"KL of {name}" for name in maps)), title, right=84)
    width, height = figure.get_size_inches() * DPI
    axes = figure.add_axes(((width - 74) / width, 0.1, 12 / width, max(0.5, 1 - 60 / height) - 0.1))
    figure.colorbar(ScalarMappable(Normalize(0, top), MAP_COLOURS), axes).set_label("KL of a cell, nats", fontsize=8)
    axes.tick_params(labelsize=8)
    _write(figure, path)


def example_sheets(
    originals: Grids, reconstructions: Grids, samples: Grids, maps: Maps
) -> tuple[dict[str, Image], float]:
    """The same sheets as pixels without text, by name; and the nats of the brightest colour of the maps."""
    compared, (kinds, top) = _reconstruction_tiles(originals[:16], reconstructions[:16]), _map_tiles(originals, maps)
    sheets = {"reconstructions": _lay(compared, 8), "samples": _lay([_tiles(samples)], 8)}
    return sheets | ({"kl_maps": _lay(kinds, 8)} if maps else {}), top


def _tiles(grids: Grids, extents: Extents = None, colours: Sequence[str] = PALETTE) -> Image:
    """Grids (N, H, W) as pixels (N, h, w, 3), with thin lines between cells, a thick one around smaller extents."""
    cell = max(3, TILE // max(grids.shape[1:]))
    pixels = np.stack([_rgb(colour) for colour in colours])[grids].repeat(cell, 1).repeat(cell, 2)
    pixels = np.pad(pixels, ((0, 0), (0, 1), (0, 1), (0, 0)))
    pixels[:, ::cell] = pixels[:, :, ::cell] = _rgb(LINE)
    for tile, (bottom, right) in zip(pixels, () if extents is None else extents.astype(int) * cell, strict=False):
        if (bottom + 1, right + 1) != tile.shape[:2]:  # smaller than the canvas
            tile[[0, 1, bottom - 1, bottom], : right + 1] = tile[: bottom + 1, [0, 1, right - 1, right]] = _rgb(EXTENT)
    return pixels


def _rgb(colour: str) -> Image:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def _reconstruction_tiles(originals: Grids, reconstructions: Grids, extents: Extents = None) -> list[Image]:
    wrong = (originals != reconstructions).astype(np.uint8)
    return [_tiles(originals, extents), _tiles(reconstructions, extents), _tiles(wrong, extents, (RIGHT, WRONG))]


def _map_tiles(originals: Grids, maps: Maps) -> tuple[list[Image], float]:
    """Tiles of originals and of each of their maps, drawn as large, and the nats of the brightest colour."""
    from matplotlib import colormaps

    top = max([1e-6, *(float(np.nanmax(values)) for values in maps.values())])
    kinds = [_tiles(originals)]
    _, height, width, _ = kinds[0].shape
    for values in maps.values():
        pixels = colormaps[MAP_COLOURS](np.nan_to_num(values) / top, bytes=True)[..., :3]
        rows = np.arange(height) * values.shape[1] // height  # the cell under each pixel
        columns = np.arange(width) * values.shape[2] // width
        kinds.append(np.ascontiguousarray(pixels[:, rows][:, :, columns]))
    return kinds, top


def _lay(kinds: Sequence[Image], columns: int, strip: int = 0) -> Image:
    """Tiles (N, h, w, 3) of several kinds on white: bands of `columns` examples, `strip` pixels above, a row a kind."""
    count, height, width, _ = kinds[0].shape
    bands, columns = -(-count // columns), min(columns, count)
    band = np.full((bands * columns, strip + len(kinds) * (height + GAP), width + GAP, 3), 255, np.uint8)
    for row, kind in enumerate(kinds):
        top = strip + row * (height + GAP)
        band[:count, top : top + height, :width] = kind
    across = band.reshape(bands, columns, *band.shape[1:]).swapaxes(1, 2)
    return across.reshape(bands * band.shape[1], -1, 3)[:-GAP, :-GAP]


def _sheet(
    kinds: Sequence[Image],
    columns: int,
    above: Texts = (),
    left: Texts = (),
    title: str = "",
    right: int = 0,
    marked: Sequence[Grids] = (),
    legend: Sequence[Patch] = (),
) -> Figure:
    """The pixels of `_lay`, with texts above the bands, labels left of the rows in turn, and `right` free pixels.

    `marked`: the grids of the first kinds; those that are all 0 are labelled as blank.
    """
    from matplotlib.figure import Figure

    count, tile_height, tile_width, _ = kinds[0].shape
    columns, strip = min(columns, count), STRIP if above else 0
    pixels = _lay(kinds, columns, strip)
    margin, top = MARGIN if left else GAP, STRIP + 2 * GAP if title else GAP
    width = max(margin + pixels.shape[1] + GAP + right, 2 * GAP + 8 * len(title) + 125 * len(legend))
    height = top + pixels.shape[0] + GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((margin / width, GAP / height, pixels.shape[1] / width, pixels.shape[0] / height))
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    band = strip + len(kinds) * (tile_height + GAP)
    for index, text in enumerate(above):
        axes.text(index % columns * (tile_width + GAP), index // columns * band + strip - 4, text, fontsize=8)
    for row in range(len(kinds)):
        middle = strip + row * (tile_height + GAP) + tile_height / 2
        for number in range(-(-count // columns) if left else 0):
            text = left[(number * len(kinds) + row) % len(left)]
            axes.text(-4, middle + number * band, text, fontsize=8, rotation=90, ha="right", va="center")
        for index in np.flatnonzero(~marked[row].any((1, 2))).tolist() if row < len(marked) else ():
            x, y = index % columns * (tile_width + GAP) + tile_width / 2, index // columns * band + middle
            box = {"facecolor": "#000000", "edgecolor": "#AAAAAA", "pad": 3}
            axes.text(x, y, "blank", fontsize=9, color="#FFFFFF", ha="center", va="center", bbox=box)
    if legend:
        figure.legend(handles=legend, loc="upper right", ncols=len(legend), fontsize=8, facecolor="#CCCCCC")
    if title:
        figure.text(GAP / width, 1 - GAP / height, title, fontsize=10, va="top")
    return figure


def save_beta_schedule(
    path: Path,
    epochs: ArrayLike,
    betas: Mapping[str, ArrayLike],
    elbo_scale: float | None = None,
    held: Sequence[tuple[float, Sequence[Target]]] = (),
    title: str = "",
) -> None:
    """Beta over the epochs, a line for each level; `held`: targets of a closed loop and values reached, by epoch."""
    curves: list[Curve] = [(name, "beta", epochs, np.asarray(beta), False) for name, beta in betas.items()]
    loops: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for epoch, targets in held:
        for one in targets:
            loops.setdefault((one.level, UNITS[one.quantity]), []).append((epoch, one.value, one.target))
    for (level, unit), rows in loops.items():
        (places, reached, aims), name = zip(*rows, strict=True), level or unit.partition(",")[0]
        curves += [(name, unit, places, reached, False), (f"{name} target", unit, places, aims, True)]
    _write(_curves(curves, elbo_scale, title), path)


def save_schedules(path: Path, curves: Sequence[Curve], elbo_scale: float | None = None) -> None:
    """Schedules over the epochs, with a second axis for beta on the ELBO scale."""
    _write(_curves(curves, elbo_scale), path)


def save_training_curves(path: Path, title: str, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Loss, reconstruction, KL, accuracies, active dimensions and beta over the epochs, a panel each.

    `epochs`: the metrics of each epoch by their logged names, as `EpochRecord.metrics` gives them.
    """
    first = epochs[0]
    levels = [key.removeprefix("val/kl/") for key in first if key.startswith("val/kl/")]
    panels = PANELS | ({"KL, nats": {"kl": "total", **{f"kl/{name}": name for name in levels}}} if levels else {})
    wanted = []
    for panel, metrics in panels.items():
        for name, label in metrics.items():
            wanted += [(panel, label, f"val/{name}"), (panel, f"_{label}", f"train/{name}")]
    wanted += [("beta", level, f"train/beta/{level}".rstrip("/")) for level in levels or [""]]
    places = [epoch["epoch"] for epoch in epochs]
    curves = [
        (label, panel, places, np.array([epoch[key] for epoch in epochs], float), label.startswith("_"))
        for panel, label, key in wanted
        if key in first
    ]
    figure = _curves(curves, None, title, 3, "epoch (solid: validation, dashed: training, grey line: best epoch)")
    best = [epoch["epoch"] for epoch in epochs if epoch.get("best")]
    for axes in figure.axes:
        axes.axvline(best[-1] if best else math.nan, color="#AAAAAA", linewidth=1, zorder=0)
    _write(figure, path)


def _curves(
    curves: Sequence[Curve], elbo_scale: float | None, title: str = "", columns: int = 1, below: str = "epoch"
) -> Figure:
    """A panel for each unit; a curve has the colour of its target, and of the curve with `_` before its label."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    units = list(dict.fromkeys(unit for _, unit, *_ in curves))
    names = [label.removesuffix(" target").removeprefix("_") for label, *_ in curves]
    rows = -(-len(units) // columns)
    figure = Figure((8, 1 + 3 * rows) if columns == 1 else (10, 1 + 2.5 * rows), DPI, layout="constrained")
    panels = dict(zip(units, figure.subplots(rows, columns, sharex=True, squeeze=False).ravel(), strict=False))
    for name, (label, unit, epochs, values, dashed) in zip(names, curves, strict=True):
        colour = f"C{list(dict.fromkeys(names)).index(name) % 10}"
        style: Any = {"linestyle": "--" if dashed else "-", "marker": "." if len(epochs) < 20 else ""}
        panels[unit].plot(epochs, values, label=label, color=colour, linewidth=1.8, **style)
    for unit, axes in panels.items():
        axes.set_ylabel(unit)
        if unit not in ("loss", "reconstruction") and all(line.get_ydata().min() >= 0 for line in axes.lines):
            axes.set_ylim(bottom=0.0)
        axes.margins(x=0.01)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.locator_params(axis="y", integer=unit == "active dimensions")
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False)
        if unit == "beta" and elbo_scale is not None and elbo_scale != 1.0:
            scale = (lambda beta: np.multiply(beta, elbo_scale), lambda beta: np.divide(beta, elbo_scale))
            axes.secondary_yaxis("right", functions=scale).set_ylabel("beta on the ELBO scale")
    figure.suptitle(title or ("Beta over the run" if units == ["beta"] else "Beta and the value it controls"))
    figure.supxlabel(below, fontsize="medium")
    return figure


def save_kl_heatmap(
    path: Path, levels: Mapping[str, Array], free_bits: Mapping[str, float] | None = None, title: str = "KL"
) -> None:
    """KL (epochs, groups) in nats over the run, level below level, with the free-bits floors; under DEAD is grey."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator

    kl = np.concatenate(list(levels.values()), axis=1)
    (epochs, dims), single = kl.shape, len(levels) == 1
    names = [str(i) if single else f"{name} {i}" for name, part in levels.items() for i in range(part.shape[1])]
    figure = Figure((9, min(9.0, max(3.2, 1.6 + 0.22 * dims))), DPI, layout="constrained")
    axes = figure.add_subplot()
    top = max(float(np.nanmax(kl, initial=0.0)), 20 * DEAD)
    style: Any = {"aspect": "auto", "interpolation": "nearest", "extent": (0.5, epochs + 0.5, dims - 0.5, -0.5)}
    colours = colormaps["viridis"].with_extremes(under="#BBBBBB", bad="#FFFFFF")
    image = axes.imshow(np.maximum(kl.T, DEAD / 2), colours, LogNorm(DEAD, top), **style)  # no logarithm of 0
    axes.set(xlabel="epoch", ylabel="dimension" if single else None)
    axes.set_title(f"{title}, {int((kl[-1] >= DEAD).sum())} of {dims} alive")
    for border in np.cumsum([part.shape[1] for part in levels.values()])[:-1]:
        axes.axhline(border - 0.5, color="#FFFFFF", linewidth=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    shown = range(0, dims, -(-dims // 36))  # more than 36 labels would overlap
    axes.set_yticks(shown, [names[dim] for dim in shown])
    last = axes.secondary_yaxis("right")
    last.set_yticks(shown, [f"{kl[-1, dim]:.2f}" + (" dead" if kl[-1, dim] < DEAD else "") for dim in shown])
    last.tick_params(length=0, labelsize=8)
    bar = figure.colorbar(image, extend="min", pad=0.02, aspect=30, extendfrac=0.05, format=FormatStrFormatter("%g"))
    floors = {name: floor for name, floor in (free_bits or {}).items() if DEAD <= floor <= top}
    for floor in floors.values():
        bar.ax.axhline(floor, color=PALETTE[2], linewidth=2)
    red = ", ".join(f"{floor:g}" if single else f"{name} {floor:g}" for name, floor in floors.items())
    bar.set_label(f"KL, nats (grey: under {DEAD:g}, dead)" + (f"\nred: free bits {red}" if red else ""))
    _write(figure, path)


def save_latent_scatter(
    path: Path, points: Array, values: ArrayLike, value_name: str = "", title: str = "", axis_names: Texts = ("", "")
) -> None:
    """Points (n, 2), coloured by `values` (n,)."""
    from matplotlib.figure import Figure

    figure = Figure((7.4, 6), DPI, layout="constrained")
    axes = figure.add_subplot()
    marks = axes.scatter(points[:, 0], points[:, 1], s=24, linewidths=0, c=np.asarray(values), cmap="viridis")
    figure.colorbar(marks, pad=0.02, aspect=30, label=value_name)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    figure.suptitle(title)
    axes.grid(alpha=0.2)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi)
