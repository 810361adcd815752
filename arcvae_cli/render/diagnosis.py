"""A diagnosis in lines: measures, a bar for each dimension, the verdict, what to change."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from arcvae_cli.evaluation.verdict import remedies
from arcvae_cli.render.terminal import kl_bars


def lines(report: Mapping[str, Any], width: int) -> Iterator[Text]:
    """The report of `diagnose`; only remedies and the summary may be longer than `width` columns."""
    units, information, verdict = report["units"], report["mutual_information"], report["verdict"]
    rows = {
        "examples": f"{report['examples']:,}",
        "KL, nats": f"{report['total_kl_nats']:.2f}",
        "active dimensions, KL > 0.05": f"{report['active_dims']} of {units}",
        "active units, Var E[z] > 0.01": f"{report['active_units']} of {units}",
    }
    if information is not None:
        bound, ceiling = ">= " * information["is_bound"], information["ceiling_nats"]
        rows["mutual information, nats"] = f"{bound}{information['nats']:.2f}, of {ceiling:.2f} that can be measured"
        rows["KL of aggregate posterior and prior, nats"] = "{at_least_nats:.2f} to {at_most_nats:.2f}".format(
            **report["aggregate"]
        )
    rows["logvar"] = "{min:.1f} to {max:.1f}".format(**report["logvar"])
    if report["elbo"] is not None:
        rows |= {name.replace("_", ", "): f"{value:.3f}" for name, value in report["elbo"].items()}
    if report["beta"] is not None:
        rows["beta"] = "{beta:g}, {on_elbo:.4g} on the ELBO scale".format(**report["beta"])
    for name, text in rows.items():
        yield Text(f"{name:<42}  {text}")
    yield Text()
    yield from kl_bars("z", report["kl_nats"], report["free_bits"], width)
    yield Text("\nVerdict", style="bold")
    for one in verdict["findings"]:
        mark = Text("ok  ", style="green") if one["ok"] else Text("MISS", style="red")
        yield mark.append(f"  {one['name']:<42}  {one['value']:>8.4g}  {one['target']}", style="not green")
    for step, names in remedies(verdict["findings"]).items():
        yield Text(f"- {step} (for {', '.join(names)})")
    yield Text(verdict["summary"], style="bold green" if verdict["ok"] else "bold yellow")
