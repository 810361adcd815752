"""Pictures of several runs, as PNG and in a page: curves, KL by dimension, rate against distortion."""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from colorsys import hls_to_rgb
from functools import partial
from html import escape
from math import ceil
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from arcvae_cli.files import atomic_write
from arcvae_cli.render.terminal import DEAD

Row = Mapping[str, Any]
Rows = Sequence[Row]  # of `arcvae compare`, in its order
Panel = tuple[str, Callable[[Any], None]]  # its title, and what draws it

CURVES = {"beta": "beta (ELBO scale)", "kl": "KL, nats", "reconstruction": "reconstruction, nats"}
CURVES |= {"accuracy": "accuracy"}
INK = "#010203"  # of text and axes: stands for the colour of the page's text
STYLE: Any = {"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "grid.alpha": 0.4, "axes.grid": True}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "arcvae"}
STYLE |= dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK)


def save(path: Path, rows: Rows) -> None:
    """Write a PNG with all panels."""
    with atomic_write(path) as temporary:
        figure(list(panels(rows)), rows).savefig(temporary, format="png")


def figure(drawn: Sequence[Panel], rows: Rows) -> Any:
    """A figure of panels, two beside each other, with a legend of rows."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = 2 if len(drawn) > 1 else 1
    lines = ceil(len(drawn) / columns)
    with rc_context(STYLE):
        made = Figure((4.8 * columns, 3.5 * lines + 0.2 * ceil(len(rows) / 3)), 130, layout="constrained")
        for place, (title, show) in enumerate(drawn, 1):
            show(made.add_subplot(lines, columns, place, title=title))
        keys = [Line2D([], [], color=colour(row, rows), label=f"{row['number']} {row['name'][:48]}") for row in rows]
        if keys:
            made.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return made


def colour(row: Row, rows: Rows) -> str:
    """The colour of a row: all hues in the order of the rows, light and dark by turns."""
    rgb = hls_to_rgb(0.6 + 0.9 * row["number"] / len(rows), 0.4 + 0.14 * (row["number"] % 2), 0.7)
    return "#" + bytes(int(255 * part) for part in rgb).hex()


def panels(rows: Rows) -> Iterator[Panel]:
    """The panels of rows; those without a number are left out."""
    runs = [run for row in rows for run in row["runs"]]
    for key, title in CURVES.items():
        if any(epoch[key] is not None for run in runs for epoch in run["curves"]):
            yield title, partial(show_curves, rows=rows, key=key)
    if any(run["kl_per_dim"] for run in runs):
        yield "KL of the dimensions, largest first", partial(show_kl, rows=rows)
    for data in dict.fromkeys(row["data"] for row in rows if row["elbo"] is not None):
        yield f"rate and distortion{data and ': '}{data}", partial(show_plane, rows=rows, data=data)


def show_curves(axes: Any, rows: Rows, key: str) -> None:
    """A metric over the epochs, a line for each run in the colour of its row; dashed if it was not evaluated."""
    for row in rows:
        for run in row["runs"]:
            epochs = [epoch["epoch"] for epoch in run["curves"]]
            values = np.array([epoch[key] for epoch in run["curves"]], float)  # null is NaN
            style = ("." if len(epochs) < 20 else "") + ("-" if run["verdict"] else "--")
            axes.plot(epochs, values, style, color=colour(row, rows), gid=f"{key}-row-{row['number']}")
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)


def show_kl(axes: Any, rows: Rows) -> None:
    """KL of the dimensions, of each run from the largest to the smallest, mean over seeds; dead ones are grey."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    cells = np.full((len(rows), max(len(run["kl_per_dim"]) for row in rows for run in row["runs"])), np.nan)
    for line, row in zip(cells, rows, strict=True):
        if spectra := [sorted(run["kl_per_dim"], reverse=True) for run in row["runs"] if run["kl_per_dim"]]:
            line[: len(spectra[0])] = np.mean(spectra, axis=0)
    colours = colormaps["viridis"].with_extremes(under="#999999", bad=(0, 0, 0, 0))
    scale = LogNorm(DEAD, max(float(np.nanmax(cells)), 20 * DEAD))
    extent = 0.5, cells.shape[1] + 0.5, len(rows) + 0.5, 0.5  # rows by their numbers
    image = axes.imshow(np.maximum(cells, DEAD / 2), colours, scale, aspect="auto", extent=extent)
    axes.set(xlabel="dimension", ylabel="run")
    axes.locator_params(integer=True)
    axes.grid(visible=False)
    axes.figure.colorbar(image, ax=axes, extend="min", format="%g", label=f"nats (grey: {DEAD:g} or less, dead)")


def show_plane(axes: Any, rows: Rows, data: str) -> None:
    """Reconstruction against KL, with the Pareto front and lines of equal ELBO; hollow where nothing was evaluated."""
    shown = [row for row in rows if row["data"] == data and row["elbo"] is not None]
    for row in shown:
        tint, point = colour(row, rows), (row["kl"], row["reconstruction"])
        style: Any = {"color": tint, "markerfacecolor": tint if row["verdict"] != "-" else "none", "elinewidth": 1}
        bars = axes.errorbar(*point, row["reconstruction_sd"], row["kl_sd"], "o", **style)
        bars.lines[0].set_gid(f"plane-row-{row['number']}")
        axes.annotate(str(row["number"]), point, (5, 4), textcoords="offset points", fontsize=7)
    front = sorted((row["kl"], row["reconstruction"]) for row in shown if row["front"])
    axes.plot(*zip(*front, strict=True), color=INK, drawstyle="steps-post", linewidth=1, alpha=0.7, zorder=1)
    axes.margins(0.12)
    axes.grid(visible=False)
    axes.set(xlabel="rate: KL, nats", ylabel="distortion: reconstruction, nats")
    rate, distortion = np.meshgrid(np.linspace(*axes.get_xlim()), np.linspace(*axes.get_ylim()))
    lines = axes.contour(rate, distortion, -rate - distortion, 5, colors=INK, alpha=0.4, linewidths=1, linestyles=":")
    axes.clabel(lines, fmt="ELBO %g", fontsize=6)


def save_page(path: Path, rows: Rows, heads: list[str], lines: list[list[str]], notes: list[str]) -> None:
    """One page with the table and the pictures as SVG; it needs no network, nor scripts to be read."""
    body, verdicts, figures = [], [], []
    for row, (name, *cells) in zip(rows, lines, strict=True):
        dot = f'<i style="background:{colour(row, rows)}">{row["number"]}</i>'
        front = ' <b class="front">front</b>' * row["front"]
        texts = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        marks = f'data-row="{row["number"]}" data-verdict="{row["verdict"]}"'
        body.append(f'<tr {marks}><th scope="row"><div>{dot}<span>{escape(name)}{front}</span></div></th>{texts}</tr>')
        judged = [run for run in row["runs"] if run["verdict"]]
        verdicts += [f"<li>{dot} <b>{escape(r['name'])}</b> {escape(r['verdict']['summary'])}</li>" for r in judged]
    for panel in panels(rows):
        drawn = io.StringIO()
        figure([panel], ()).savefig(drawn, format="svg", transparent=True, dpi=200, metadata={"Date": None})
        svg = drawn.getvalue().replace(INK, "currentColor").partition("<svg")[2]
        figures.append("<figure><svg" + re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2) + "</figure>")
    runs = [run for row in rows for run in row["runs"]]
    same = [item for item in runs[0]["settings"].items() if all(item in run["settings"].items() for run in runs)]
    page = Template(Path(__file__).with_name("compare.html").read_text(encoding="utf-8")).substitute(
        title=f"{len(runs)} run{'s' * (len(runs) > 1)} compared",
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        head="".join(f"<th><button>{escape(head)}</button></th>" for head in heads),
        body="\n".join(body),
        figures="\n".join(figures),
        verdicts="\n".join(verdicts),
        settings=escape("\n".join(f"{key} = {json.dumps(value)}" for key, value in same)),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
