"""Pictures of several runs, as PNG and in a page: curves, KL by dimension, rate against distortion."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from arcvae_cli.files import atomic_write
from arcvae_cli.render.terminal import DEAD

Runs = Sequence[Mapping[str, Any]]  # of `arcvae compare`, in its order

CURVES = {
    "beta": "beta on the ELBO scale",
    "kl": "KL on validation, nats",
    "reconstruction": "reconstruction on validation, nats",
    "accuracy": "accuracy on validation",
}
WIDTH, LABELLED = 6.0, 12  # inches of a picture; points that have a name, not only a number
INK = "#010203"  # of text and axes: stands for the colour of the page's text
STYLE: Any = {"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "grid.alpha": 0.15, "axes.grid": True}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "arcvae", "figure.dpi": 130}
STYLE |= {"figure.constrained_layout.use": True}
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
STYLE |= dict.fromkeys(INKED, INK)


def draw(runs: Runs) -> dict[str, Figure]:
    """The pictures by name, each of the runs that have its numbers."""
    parts = {
        "curves": (curves, [run for run in runs if run["curves"]["epoch"]]),
        "rate_distortion": (plane, [run for run in runs if None not in run["point"]]),
        "kl_per_dim": (spectra, [run for run in runs if run["kl_per_dim"]]),
    }
    with rc_context(STYLE):
        return {name: picture(shown) for name, (picture, shown) in parts.items() if shown}


def curves(runs: Runs) -> Figure:
    """Metrics over the epochs, a line for each run; dashed if it was not evaluated."""
    keys = [key for key in CURVES if any(value is not None for run in runs for value in run["curves"][key])]
    figure = Figure((WIDTH, 2.2 * len(keys) + 0.08 * len(runs)))
    for key, axes in zip(keys, figure.subplots(len(keys), sharex=True, squeeze=False).ravel(), strict=True):
        for run in runs:
            epochs, values = run["curves"]["epoch"], np.array(run["curves"][key], float)  # null is NaN
            style: Any = {"linestyle": "--" if run["verdict"] == "-" else "-", "marker": "." * (len(epochs) < 20)}
            axes.plot(epochs, values, color=run["colour"], label=run["label"], **style)
        axes.set_title(CURVES[key])
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def spectra(runs: Runs) -> Figure:
    """KL of the dimensions of each run, sorted, on a logarithmic scale; dead ones are grey."""
    figure = Figure((WIDTH, 1.1 + 0.22 * max(8, len(runs))))
    axes = figure.add_subplot(title="KL of the dimensions, largest first", xlabel="dimensions")
    columns = zip_longest(*(sorted(run["kl_per_dim"], reverse=True) for run in runs), fillvalue=np.nan)
    cells = np.array(list(columns)).T  # (runs, dimensions)
    colours = colormaps["viridis"].with_extremes(under="#999999", bad=(0, 0, 0, 0))
    scale = LogNorm(DEAD, max(float(np.nanmax(cells)), 20 * DEAD))
    mesh = axes.pcolormesh(np.maximum(cells, DEAD / 2), cmap=colours, norm=scale, rasterized=True)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(runs)) + 0.5, [run["label"] for run in runs])
    axes.grid(visible=False)
    figure.colorbar(mesh, extend="min", pad=0.02, format="%g", label=f"nats (grey: {DEAD:g} or less, dead)")
    return figure


def plane(runs: Runs) -> Figure:
    """Reconstruction against KL, with Pareto fronts and lines of equal ELBO; hollow where nothing was evaluated."""
    figure = Figure((WIDTH, 4.5))
    axes = figure.add_subplot(title="rate and distortion on validation")
    axes.set(xlabel="rate: KL, nats", ylabel="distortion: reconstruction, nats")
    for run in runs:
        axes.plot(*run["point"], "o", color=run["colour"], fillstyle="none" if run["verdict"] == "-" else "full")
        label = run["label"] if len(runs) <= LABELLED else str(run["number"])
        axes.annotate(label, run["point"], (5, 4), textcoords="offset points", fontsize=7)
    for data in {run["data"] for run in runs}:
        front = sorted(run["point"] for run in runs if run["front"] and run["data"] == data)
        axes.plot(*zip(*front, strict=True), color=INK, drawstyle="steps-post", linewidth=1, alpha=0.7, zorder=1)
    axes.margins(0.12)
    axes.grid(visible=False)
    sides = (np.linspace(*ends, 50) for ends in (axes.get_xlim(), axes.get_ylim()))
    kl, nats = np.meshgrid(*sides)
    lines = axes.contour(kl, nats, -kl - nats, 6, colors=INK, linestyles=":", linewidths=0.8, alpha=0.6)
    axes.clabel(lines, fmt="ELBO %g", fontsize=7)
    return figure


def save(folder: Path, drawn: Mapping[str, Figure]) -> list[Path]:
    """Write the pictures as PNG into a folder."""
    files = [folder / f"{name}.png" for name in drawn]
    for file, figure in zip(files, drawn.values(), strict=True):
        with atomic_write(file) as temporary:
            figure.savefig(temporary, format="png")
    return files


def save_page(
    path: Path, drawn: Mapping[str, Figure], runs: Runs, columns: Mapping[str, Sequence[str]], notes: Sequence[str]
) -> None:
    """One page with the table and the pictures as SVG; it needs no network, nor scripts to be read."""
    body, figures = [], []
    for run, line in zip(runs, zip(*columns.values(), strict=True), strict=True):
        name, *texts = map(escape, line)
        dot, front = f'<i style="background:{run["colour"]}">{run["number"]}</i>', " <b>front</b>" * run["front"]
        cells = "".join(f"<td>{text}</td>" for text in texts)
        body.append(
            f'<tr data-number="{run["number"]}"><th scope="row">{dot} <span>{name}</span>{front}</th>{cells}</tr>'
        )
    for figure in drawn.values():
        text = io.StringIO()
        with rc_context(STYLE):
            figure.savefig(text, format="svg", transparent=True, dpi=200, metadata={"Date": None})
        svg = text.getvalue().replace(INK, "currentColor").partition("<svg")[2]
        svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)  # as wide as there is room
        figures.append(f"<figure><svg{svg}</figure>")
    first, *others = (run["settings"] for run in runs)
    same = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    page = Template(Path(__file__).with_name("compare.html").read_text(encoding="utf-8")).substitute(
        title=f"{len(runs)} run{'s' * (len(runs) > 1)} compared",
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        head="".join(f"<th><button>{escape(head)}</button></th>" for head in columns),
        body="\n".join(body),
        figures="\n".join(figures),
        same=escape("\n".join(f"{key} = {json.dumps(value)}" for key, value in same.items())),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
