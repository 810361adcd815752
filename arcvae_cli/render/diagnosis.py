"""A diagnosis and a verdict as they are printed: measures, a bar for each dimension, targets, what to change."""

import io
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console as Terminal
from rich.text import Text

from arcvae_cli.console import Console
from arcvae_cli.evaluation.verdict import remedies
from arcvae_cli.render.terminal import kl_bars


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report of `diagnose`."""
    units, information = report["units"], report["mutual_information"]
    bound = "at least " if information["is_bound"] else ""
    rows = {
        "examples": f"{report['examples']:,}",
        "KL, nats": f"{report['total_kl_nats']:.2f}",
        "active dimensions, KL > 0.05": f"{report['active_dims']} of {units}",
        "active units, Var E[z] > 0.01": f"{report['active_units']} of {units}",
        "mutual information, nats": f"{bound}{max(information['nats'], 0.0):.2f}",
        "  its ceiling, log of the examples": f"{information['ceiling_nats']:.2f}",
    }
    if report["beta"] is not None:
        rows["beta"] = "{beta:g}, {on_elbo:.4g} on the ELBO scale".format(**report["beta"])
    console.table("", ("", ""), rows.items(), left=(0, 1), header=False)
    console.result()
    for line in kl_bars("z", report["kl_nats"], report["free_bits"], console.out.width):
        console.result(line)
    console.result()
    show_verdict(report["verdict"], console)


def show_verdict(verdict: Mapping[str, Any], console: Console) -> None:
    """Print the targets, the remedies of those that are missed, and the summary."""
    marks = (Text("MISS", style="red"), Text("ok", style="green"))
    found = [(marks[one["ok"]], one["name"], f"{one['value']:.4g}", one["target"]) for one in verdict["findings"]]
    console.table("Verdict", ("", "", "", ""), found, left=(0, 1, 3), header=False)
    for step, names in remedies(verdict["findings"]).items():
        console.result(Text(f"- {step} (for {'; '.join(names)})"))
    console.result(Text(verdict["summary"], style="bold green" if verdict["ok"] else "bold yellow"))


def printed(show: Callable[[Console], None], width: int = 120) -> str:
    """What a function prints on a console, as plain text."""
    console, text = Console(), io.StringIO()
    console.out = Terminal(file=text, width=width, color_system=None, soft_wrap=True)
    show(console)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")
