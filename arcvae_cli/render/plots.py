"""PNGs: grids, curves, KL heat maps, scatters of latent codes. Matplotlib is imported in functions, without pyplot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arcvae_cli.files import atomic_write
from arcvae_cli.render.terminal import PALETTE, Grids

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from arcvae_cli.controllers import Target

Image = NDArray[np.uint8]  # (..., height, width, 3)
Curve = tuple[str, str, Any, Any, bool]  # label, unit, epochs, values, dashed

DPI = 100
TILE = 128  # pixels of the longer side of a grid, about
GAP, STRIP, MARGIN = 10, 17, 24  # pixels between grids, of a line of text, left of a sheet with labels
LINE, EDGE = "#555555", "#FFFFFF"
MAP_COLOURS = "magma"
UNITS = {"kl": "KL, nats", "reconstruction": "reconstruction, nats per position"}


def save_grids(
    path: Path, grids: Grids, columns: int = 8, titles: Sequence[str] | None = None, title: str | None = None
) -> None:
    """Grids (N, H, W) in rows of `columns`, with a short text above each and a title above them all."""
    _write(_sheet([_tiles(grids)], columns, titles or (), title=title), path)


def save_level_samples(path: Path, grids: Grids, columns: int, row: str, column: str, title: str | None = None) -> None:
    """Samples (N, H, W) in rows of `columns`; a row has one latent of level `row`, a column one of level `column`."""
    above = [f"{column} {place + 1}" for place in range(columns)]
    left = [f"{row} {place + 1}" for place in range(-(-len(grids) // columns))]
    _write(_sheet([_tiles(grids)], columns, above, left, title), path)


def save_reconstructions(
    path: Path,
    originals: Grids,
    reconstructions: Grids,
    shapes: NDArray[np.uint8] | None = None,
    title: str | None = None,
    pairs: int = 16,
) -> None:
    """The first `pairs` originals, reconstructions (N, H, W) and differences; `shapes` (N, 2) are drawn as frames."""
    originals, reconstructions = originals[:pairs], reconstructions[:pairs]
    above = [f"{count} wrong" for count in (originals != reconstructions).sum((1, 2))]
    if shapes is not None:
        above = [f"{height}x{width}, {text}" for (height, width), text in zip(shapes[:pairs], above, strict=True)]
    kinds = _reconstruction_tiles(originals, reconstructions, shapes)
    _write(_sheet(kinds, 8, above, ("original", "reconstruction", "error"), title), path)


def save_kl_maps(
    path: Path,
    originals: Grids,
    maps: Mapping[str, NDArray[np.float32]],
    title: str | None = None,
    columns: int = 8,
    means: Mapping[str, NDArray[np.float32]] | None = None,
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
    originals: Grids, reconstructions: Grids, samples: Grids, maps: Mapping[str, NDArray[np.float32]]
) -> tuple[dict[str, Image], float]:
    """The same sheets as pixels without text, by name; and the nats of the brightest colour of the maps."""
    compared = _reconstruction_tiles(originals[:16], reconstructions[:16])
    sheets, top = {"reconstructions": _lay(compared, 8), "samples": _lay([_tiles(samples)], 8)}, 0.0
    if maps:
        kinds, top = _map_tiles(originals, maps)
        sheets["kl_maps"] = _lay(kinds, 8)
    return sheets, top


def _tiles(
    grids: Grids, shapes: NDArray[np.uint8] | None = None, colours: Sequence[str] = PALETTE, edge: str = EDGE
) -> Image:
    """Grids (N, H, W) as pixels (N, h, w, 3), with thin lines between cells, and a frame around each `shape`."""
    cell = max(3, TILE // max(grids.shape[1:]))
    pixels = np.stack([_rgb(colour) for colour in colours])[grids].repeat(cell, 1).repeat(cell, 2)
    pixels = np.pad(pixels, ((0, 0), (0, 1), (0, 1), (0, 0)))
    pixels[:, ::cell] = pixels[:, :, ::cell] = _rgb(LINE)
    for tile, (height, width) in zip(pixels, shapes if shapes is not None else (), strict=False):
        bottom, right = int(height) * cell, int(width) * cell
        tile[[0, bottom], : right + 1] = tile[: bottom + 1, [0, right]] = _rgb(edge)
    return pixels


def _rgb(colour: str) -> Image:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def _reconstruction_tiles(
    originals: Grids, reconstructions: Grids, shapes: NDArray[np.uint8] | None = None
) -> list[Image]:
    wrong = (originals != reconstructions).astype(np.uint8)
    errors = _tiles(wrong, shapes, colours=("#000000", "#FFFFFF"), edge=PALETTE[2])
    return [_tiles(originals, shapes), _tiles(reconstructions, shapes), errors]


def _map_tiles(originals: Grids, maps: Mapping[str, NDArray[np.float32]]) -> tuple[list[Image], float]:
    """Tiles of originals and of each of their maps, drawn as large, and the nats of the brightest colour."""
    from matplotlib import colormaps

    top = max(max(float(np.nanmax(values, initial=0.0)) for values in maps.values()), 1e-6)
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
    columns = min(columns, count)
    band = strip + len(kinds) * (height + GAP)
    sheet = np.full((-(-count // columns) * band - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index in range(count):
        top, left = index // columns * band + strip, index % columns * (width + GAP)
        for row, kind in enumerate(kinds):
            start = top + row * (height + GAP)
            sheet[start : start + height, left : left + width] = kind[index]
    return sheet


def _sheet(
    kinds: Sequence[Image],
    columns: int,
    above: Sequence[str] = (),
    left: Sequence[str] = (),
    title: str | None = None,
    right: int = 0,
) -> Figure:
    """The pixels of `_lay`, with texts above the bands, labels left of the rows in turn, and `right` free pixels."""
    from matplotlib.figure import Figure

    count, tile_height, tile_width, _ = kinds[0].shape
    columns, strip = min(columns, count), STRIP if above else 0
    pixels = _lay(kinds, columns, strip)
    margin, top = MARGIN if left else GAP, STRIP + 2 * GAP if title else GAP
    width = max(margin + pixels.shape[1] + GAP + right, 2 * GAP + 8 * len(title or ""))
    height = top + pixels.shape[0] + GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((margin / width, GAP / height, pixels.shape[1] / width, pixels.shape[0] / height))
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    band = strip + len(kinds) * (tile_height + GAP)
    for index, text in enumerate(above):
        axes.text(index % columns * (tile_width + GAP), index // columns * band + strip - 4, text, fontsize=8)
    for row in range(len(kinds) * -(-count // columns) if left else 0):
        middle = row // len(kinds) * band + strip + row % len(kinds) * (tile_height + GAP) + tile_height / 2
        axes.text(-4, middle, left[row % len(left)], fontsize=8, rotation=90, ha="right", va="center")
    if title:
        figure.text(GAP / width, 1 - GAP / height, title, fontsize=10, va="top")
    return figure


def save_beta_schedule(
    path: Path,
    epochs: ArrayLike,
    betas: Mapping[str, ArrayLike],
    elbo_scale: float | None = None,
    held: Sequence[tuple[float, Sequence[Target]]] = (),
) -> None:
    """Beta over the epochs, a line for each level; `held`: targets of a closed loop and values reached, by epoch."""
    curves: list[Curve] = [(name, "beta", np.asarray(epochs), np.asarray(beta), False) for name, beta in betas.items()]
    loops: dict[tuple[str, str], list[tuple[float, Target]]] = {}
    for epoch, targets in held:
        for target in targets:
            loops.setdefault((target.quantity, target.level), []).append((epoch, target))
    for (quantity, level), reached in loops.items():
        unit, places = UNITS[quantity], [epoch for epoch, _ in reached]
        name = level or unit.partition(",")[0]
        curves.append((name, unit, places, [target.value for _, target in reached], False))
        curves.append((f"{name} target", unit, places, [target.target for _, target in reached], True))
    _write(_curves(curves, elbo_scale), path)


def save_schedules(path: Path, curves: Sequence[Curve], elbo_scale: float | None = None) -> None:
    """Schedules over the epochs. The PNG has `fingerprint` as its text "points", which shows whether it is stale."""
    _write(_curves(curves, elbo_scale), path, {"points": fingerprint(curves, elbo_scale)})


def _curves(curves: Sequence[Curve], elbo_scale: float | None) -> Figure:
    """Curves over the epochs, a panel for each unit; a curve and its target have one colour."""
    units = list(dict.fromkeys(unit for _, unit, *_ in curves))
    names = list(dict.fromkeys(label.removesuffix(" target") for label, *_ in curves))
    figure = _figure(8, 1 + 3 * len(units))
    panels = figure.subplots(len(units), sharex=True, squeeze=False)[:, 0]
    for axes, unit in zip(panels, units, strict=True):
        own = [curve for curve in curves if curve[1] == unit]
        for label, _, epochs, values, dashed in own:
            colour = f"C{names.index(label.removesuffix(' target')) % 10}"
            axes.plot(epochs, values, label=label, color=colour, linewidth=1.8, linestyle="--" if dashed else "-")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=None if any(min(values, default=0) < 0 for *_, values, _ in own) else 0.0)
        axes.margins(x=0.01)
        axes.grid(alpha=0.3)
        if len(own) > 1:
            axes.legend(frameon=False)
        if unit == "beta" and elbo_scale is not None and elbo_scale != 1.0:
            scale = (lambda beta: np.multiply(beta, elbo_scale), lambda beta: np.divide(beta, elbo_scale))
            axes.secondary_yaxis("right", functions=scale).set_ylabel("beta on the ELBO scale")
    panels[0].set_title("Beta over the run" if units == ["beta"] else "Beta and the value it controls")
    panels[-1].set_xlabel("epoch")
    return figure


def fingerprint(curves: Sequence[Curve], elbo_scale: float | None = None) -> str:
    """A hash of names and points to six digits, since the rest differs between machines."""
    known = hashlib.sha256(f"{elbo_scale}".encode())
    for label, unit, epochs, values, _ in curves:
        points = (f"{epoch:.6g} {value:.6g}" for epoch, value in zip(epochs, values, strict=True))
        known.update("\n".join((unit, label, *points)).encode())
    return known.hexdigest()[:32]


def save_kl_heatmap(
    path: Path,
    levels: Mapping[str, NDArray[np.floating[Any]]],
    free_bits: Mapping[str, float] | None = None,
    dead: float = 0.05,
) -> None:
    """KL (epochs, groups) in nats over the run, level below level, with the free-bits floors; under `dead` is grey."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator

    kl = np.concatenate(list(levels.values()), axis=1)
    epochs, dims = kl.shape
    single = len(levels) == 1
    names = [str(i) if single else f"{name} {i}" for name, part in levels.items() for i in range(part.shape[1])]
    figure = _figure(9, min(9.0, max(3.2, 1.6 + 0.22 * dims)))
    axes = figure.add_subplot()
    top = max(float(np.nanmax(kl, initial=0.0)), 20 * dead)
    extent, colours = (0.5, epochs + 0.5, dims - 0.5, -0.5), colormaps["viridis"]
    style: Any = {"aspect": "auto", "interpolation": "nearest", "extent": extent, "norm": LogNorm(dead, top)}
    style["cmap"] = colours.with_extremes(under="#BBBBBB", bad="#FFFFFF")
    image = axes.imshow(np.maximum(kl.T, dead / 2), **style)  # a logarithm has no place for 0
    alive = int((kl[-1] >= dead).sum())
    axes.set(xlabel="epoch", ylabel="dimension" if single else None)
    axes.set_title(f"KL of each dimension: {alive} of {dims} alive")
    for border in np.cumsum([part.shape[1] for part in levels.values()])[:-1]:
        axes.axhline(border - 0.5, color="#FFFFFF", linewidth=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    shown = range(0, dims, -(-dims // 36))  # more than 36 labels would overlap
    axes.set_yticks(shown, [names[dim] for dim in shown])
    last = axes.secondary_yaxis("right")
    last.set_yticks(shown, [f"{kl[-1, dim]:.2f}" + (" dead" if kl[-1, dim] < dead else "") for dim in shown])
    last.tick_params(length=0, labelsize=8)
    bar = figure.colorbar(image, extend="min", pad=0.02, aspect=30, extendfrac=0.05, format=FormatStrFormatter("%g"))
    floors = {name: floor for name, floor in (free_bits or {}).items() if dead <= floor <= top}
    for floor in floors.values():
        bar.ax.axhline(floor, color=PALETTE[2], linewidth=2)
    same = len(set(floors.values())) == 1
    texts = dict.fromkeys(f"{floor:g}" if same else f"{name} {floor:g}" for name, floor in floors.items())
    red = f"\nred: free bits {', '.join(texts)}" if texts else ""
    bar.set_label(f"KL, nats (grey: under {dead:g}, dead){red}")
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
        for kind in kinds:
            axes.scatter(x[array == kind], y[array == kind], s=size, linewidths=0, alpha=0.7, label=kind)
        axes.legend(title=value_name or None, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, markerscale=2)
    else:
        marks = axes.scatter(x, y, s=size, linewidths=0, c=array, cmap="viridis")
        figure.colorbar(marks, pad=0.02, aspect=30, label=value_name)
    axes.set(title=title, xlabel=axis_names[0], ylabel=axis_names[1])
    axes.grid(alpha=0.2)
    _write(figure, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _write(figure: Figure, path: Path, texts: Mapping[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi, metadata=dict(texts or {}))
