"""Pictures of several runs, as PNG and in a page: curves, KL by dimension, rate against distortion."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from arcvae_cli.files import atomic_write
from arcvae_cli.render.terminal import DEAD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]  # of `arcvae compare`, in its order
Panel = tuple[str, str, float, Callable[["Axes"], None]]  # its picture, title, height in inches, and what draws it
Texts = Sequence[str]

CURVES = {
    "beta": "beta on the ELBO scale",
    "kl": "KL on validation, nats",
    "reconstruction": "reconstruction on validation, nats",
    "accuracy": "accuracy on validation",
}
WIDTH, LABELLED = 4.8, 8  # inches of a panel; points that have a name, not only a number
INK = "#010203"  # of text and axes: stands for the colour of the page's text
STYLE: Any = {"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "grid.alpha": 0.15, "axes.grid": True}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "arcvae"}
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
STYLE |= dict.fromkeys(INKED, INK)


def save(folder: Path, rows: Rows) -> list[Path]:
    """Write `curves.png`, `kl_per_dim.png` and `rate_distortion.png` into a folder."""
    drawn = list(panels(rows))
    files = {name: folder / f"{name}.png" for name, *_ in drawn}
    for name, file in files.items():
        figure = draw([panel for panel in drawn if panel[0] == name], rows)
        with atomic_write(file) as temporary:
            figure.savefig(temporary, format="png")
    return list(files.values())


def draw(drawn: Sequence[Panel], legend: Rows) -> Figure:
    """A figure of panels, two beside each other, with a legend of rows."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(2, len(drawn))
    lines, entries = -(-len(drawn) // columns), 2 * columns
    up = lines * max(height for _, _, height, _ in drawn) + 0.2 * -(-len(legend) // entries)
    with rc_context(STYLE):
        figure = Figure((WIDTH * columns, up), 130, layout="constrained")
        for place, (_, title, _, show) in enumerate(drawn, 1):
            axes = figure.add_subplot(lines, columns, place)
            show(axes)
            axes.set_title(title if legend else "")
        if handles := [Line2D([], [], color=row["colour"], label=row["label"]) for row in legend]:
            figure.legend(handles=handles, loc="outside lower center", ncols=entries, frameon=False, fontsize=7)
    return figure


def panels(rows: Rows) -> Iterator[Panel]:
    """The panels of rows; those without a number are left out."""
    for key, title in CURVES.items():
        if any(value is not None for row in rows for run in row["runs"] for value in run["curves"][key]):
            yield "curves", title, 3.1, partial(show_curves, rows=rows, key=key)
    if spectra := [row for row in rows if row["runs"][0]["kl_per_dim"]]:
        height = 1.1 + 0.22 * max(8, min(50, len(spectra)))
        yield "kl_per_dim", "KL of the dimensions, largest first", height, partial(show_kl, rows=spectra)
    for data in dict.fromkeys(row["data"] for row in rows):
        title = f"rate and distortion on validation{data and ': '}{data}"
        if points := [row for row in rows if row["data"] == data and None not in row["point"]]:
            yield "rate_distortion", title, 3.8, partial(show_plane, rows=points)


def show_curves(axes: Axes, rows: Rows, key: str) -> None:
    """A metric over the epochs, a line for each run in the colour of its row; dashed if it was not evaluated."""
    for row in rows:
        for run in row["runs"]:
            epochs, values = run["curves"]["epoch"], np.array(run["curves"][key], float)  # null is NaN
            style: Any = {"linestyle": "-" if run["verdict"] else "--", "marker": "." if len(epochs) < 20 else ""}
            axes.plot(epochs, values, color=row["colour"], linewidth=1.5, gid=f"{key}-row-{row['index']}", **style)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)


def show_kl(axes: Axes, rows: Rows) -> None:
    """KL of the dimensions of each row's first run, sorted, on a logarithmic scale; dead ones are grey."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    spectra = [-np.sort(-np.array(row["runs"][0]["kl_per_dim"], float)) for row in rows]
    cells = np.full((len(rows), max(map(len, spectra))), np.nan)
    for line, spectrum in zip(cells, spectra, strict=True):
        line[: len(spectrum)] = spectrum
    colours = colormaps["viridis"].with_extremes(under="#999999", bad=(0, 0, 0, 0))
    scale = LogNorm(DEAD, max(float(np.nanmax(cells, initial=0.0)), 20 * DEAD))
    mesh = axes.pcolormesh(np.maximum(cells, DEAD / 2), cmap=colours, norm=scale, rasterized=True)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(rows)) + 0.5, [row["label"] for row in rows])
    axes.set_xlabel("dimensions")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    label = f"nats (grey: {DEAD:g} or less, dead)"
    axes.figure.colorbar(mesh, ax=axes, extend="min", pad=0.02, format="%g", label=label)


def show_plane(axes: Axes, rows: Rows) -> None:
    """Reconstruction against KL, with the Pareto front and lines of equal ELBO; hollow where nothing was evaluated."""
    from matplotlib.ticker import MaxNLocator

    for row in rows:
        style: Any = {"color": row["colour"], "markerfacecolor": "none" if row["verdict"] == "-" else row["colour"]}
        style |= {"xerr": row["sd"].get("kl"), "yerr": row["sd"].get("reconstruction"), "fmt": "o", "elinewidth": 1}
        bars = axes.errorbar(*row["point"], **style)
        bars.lines[0].set_gid(f"plane-row-{row['index']}")
        label = row["label"] if len(rows) <= LABELLED else row["label"].split()[0]
        axes.annotate(label, row["point"], (5, 4), textcoords="offset points", fontsize=7)
    front = zip(*sorted(row["point"] for row in rows if row["front"]), strict=True)
    axes.plot(*front, color=INK, drawstyle="steps-post", linewidth=1, alpha=0.7, zorder=1)
    axes.margins(0.12)
    axes.grid(visible=False)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="rate: KL, nats", ylabel="distortion: reconstruction, nats")
    for total in MaxNLocator(6).tick_values(left + bottom, right + top):
        axes.plot((left, right), (total - left, total - right), ":", color=INK, alpha=0.4, linewidth=0.8, zorder=0)
        start = max(left, total - top), min(top, total - left)  # where the line enters the picture
        if start[0] < right - 0.1 * (right - left) and start[1] > bottom:
            axes.annotate(f"ELBO {-total:g}", start, (2, -8), textcoords="offset points", fontsize=6, alpha=0.7)


def save_page(path: Path, rows: Rows, heads: Texts, lines: Sequence[Texts], notes: Texts, more: Texts) -> None:
    """One page with the table, `more` settings and the pictures as SVG; it needs no network, nor scripts to be read."""
    body, runs = [], list[tuple[str, Any]]()
    for row, line in zip(rows, lines, strict=True):
        dot, (name, *texts) = f'<i style="background:{row["colour"]}">{row["index"] + 1}</i>', map(escape, line)
        front = ' <b class="front">front</b>' * row["front"]
        cells = "".join(f"<td>{text}</td>" for text in texts)
        marks = f'data-row="{row["index"]}" data-verdict="{row["verdict"]}"'
        body.append(f'<tr {marks}><th scope="row"><div>{dot}<span>{name}{front}</span></div></th>{cells}</tr>')
        runs += [(dot, run) for run in row["runs"]]
    summaries = [(dot, run["name"], run["verdict"]["summary"]) for dot, run in runs if run["verdict"]]
    first, *others = (run["settings"] for _, run in runs)
    same = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    figures = []
    for panel in panels(rows):
        text = io.StringIO()
        draw([panel], ()).savefig(text, format="svg", transparent=True, dpi=200, metadata={"Date": None})
        drawn = text.getvalue().replace(INK, "currentColor").partition("<svg")[2]
        drawn = re.sub(r' (width|height)="[^"]*pt"', "", drawn, count=2)  # as wide as there is room
        figures.append(f"<figure><figcaption>{escape(panel[1])}</figcaption><svg{drawn}</figure>")
    page = Template(Path(__file__).with_name("compare.html").read_text(encoding="utf-8")).substitute(
        title=f"{len(runs)} run{'s' * (len(runs) > 1)} compared",
        finished=f"{sum(run['state'] == 'finished' for _, run in runs)} of {len(runs)}",
        best=escape(rows[0]["name"]),
        elbo=f"{rows[0]['values']['elbo']:.2f}" if "elbo" in rows[0]["values"] else "-",
        front=sum(row["front"] for row in rows),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        head="".join(f"<th><button>{escape(head)}</button></th>" for head in heads),
        body="\n".join(body),
        figures="\n".join(figures),
        verdicts="".join(f"<li>{dot}<b>{escape(name)}</b> {escape(text)}</li>" for dot, name, text in summaries),
        more=escape("\n".join(f"{key} = {json.dumps([row['settings'].get(key) for row in rows])}" for key in more)),
        same=escape("\n".join(f"{key} = {json.dumps(value)}" for key, value in same.items())),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
