"""A diagnosis in lines: measures, a bar for each dimension, the verdict, what to change."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from arcvae_cli.evaluation.verdict import remedies
from arcvae_cli.render.terminal import kl_bars


def lines(report: Mapping[str, Any], width: int) -> Iterator[Text]:
    """The report of `diagnose` for a terminal of `width` columns; remedies and the summary may be longer."""
    units, information, verdict = report["units"], report["mutual_information"], report["verdict"]
    rows = {"examples": f"{report['examples']:,}", "KL, nats": f"{report['total_kl_nats']:.2f}"}
    rows["active dimensions, KL > 0.05"] = f"{report['active_dims']} of {units}"
    rows["active units, Var E[z] > 0.01"] = f"{report['active_units']} of {units}"
    bound = "at least " if information["is_bound"] else ""
    rows["mutual information, nats"] = f"{bound}{max(information['nats'], 0.0):.2f}"
    rows["  its ceiling, log of the examples"] = f"{information['ceiling_nats']:.2f}"
    rows["aggregate posterior, KL to prior"] = "{at_least_nats:.2f} to {at_most_nats:.2f}".format(**report["aggregate"])
    rows["logvar"] = "{min:.1f} to {max:.1f}".format(**report["logvar"])
    if (elbo := report["elbo"]) is not None:
        bits = "" if elbo["elbo_bits"] is None else f" ({elbo['elbo_bits']:.3f} bits per position)"
        rows["reconstruction, nats"] = f"{elbo['reconstruction_nats']:.2f}"
        rows["ELBO, nats"] = f"{elbo['elbo_nats']:.2f}{bits}"
    if report["beta"] is not None:
        rows["beta"] = "{beta:g}, {on_elbo:.4g} on the ELBO scale".format(**report["beta"])
    yield from (Text(f"{name:<34}  {text}") for name, text in rows.items())
    yield Text()
    yield from kl_bars("z", report["kl_nats"], report["free_bits"], width)
    yield Text("\nVerdict", style="bold")
    for one in verdict["findings"]:
        mark = ("ok  ", "green") if one["ok"] else ("MISS", "red")
        yield Text.assemble(mark, f"  {one['name']:<34}{one['value']:>9.4g}  {one['target']}")
    for step, names in remedies(verdict["findings"]).items():
        yield Text(f"- {step} (for {'; '.join(names)})")
    yield Text(verdict["summary"], style="bold green" if verdict["ok"] else "bold yellow")
