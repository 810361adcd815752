"""The remedies against collapse, one preset each, on one model and corpus at an equal number of steps.

Trains `--preset` with every preset of `presets/remedies/` over it and every seed, as `arcvae sweep` (started again it
goes on), evaluates each run on the validation split with the importance-weighted bound, and prints a table of means and
standard deviations over the seeds, as Markdown. The test split is not touched.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

COLUMNS = {  # heading: dotted key of the report, format
    "-log p(x)": ("importance_weighted.nll_nats", ".2f"),
    "ESS": ("importance_weighted.effective_samples_mean", ".0f"),
    "-ELBO": ("neg_elbo", ".2f"),
    "KL": ("elbo.kl_nats", ".2f"),
    "I(x; z)": ("information", ".2f"),
    "active": ("active", ".1f"),
    "exact": ("reconstruction.posterior_mean.exact_share", ".3f"),
    "saved by the code": ("saved", ".2f"),
    "samples": ("quality", ".3f"),
    "ms a step": ("step", ".0f"),
}
QUALITY = ("prior_samples.standard.valid_share", "prior_samples.standard.complete_share", "prior_samples.coverage")


def arcvae(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "arcvae_cli", *arguments], text=True, **{"check": True, **how})


def at(report: Any, key: str) -> Any:
    for part in key.split("."):
        report = report.get(part) if isinstance(report, dict) else None
    return report


def measured(run: Path, asked: argparse.Namespace) -> dict[str, float | None]:
    """The columns of a run, evaluated once: the report is kept in its folder."""
    kept = run / "remedy.json"
    if not kept.is_file():
        bound = ("--iwae", str(asked.draws), "--iwae-examples", str(asked.examples))
        done = arcvae(
            "evaluate", "--checkpoint", str(run), "--split", "val", *bound, "--json", "--quiet", stdout=subprocess.PIPE
        )
        kept.write_text(done.stdout)
    report, status = json.loads(kept.read_bytes()), json.loads((run / "status.json").read_bytes())
    levels, shuffled = report["levels"].values(), report["shuffled_codes"] or {}
    known = [level["mutual_information"]["nats"] for level in levels if level["mutual_information"]]
    report["information"] = known[0] if known else None
    report["active"] = sum(level["active_dims"] for level in levels)
    report["neg_elbo"] = -report["elbo"]["elbo_nats"]
    report["saved"] = shuffled.get("shuffled_reconstruction_nats", 0) - shuffled.get("reconstruction_nats", 0)
    report["quality"] = next((at(report, key) for key in asked.quality if at(report, key) is not None), None)
    report["step"] = 1000.0 * status["seconds"]["training"] / status["step"]
    return {heading: at(report, key) for heading, (key, _) in COLUMNS.items()}


def main() -> None:
    """Train, evaluate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="equations_autoregressive", help="model, corpus and budget of all")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of all runs; repeatable")
    parser.add_argument("--remedies", default="remedies/*", help="presets, with commas")
    parser.add_argument("--quality", action="append", help="dotted key of the report that tells good samples")
    for flag, number in {"seeds": 3, "jobs": 1, "draws": 64, "examples": 1000}.items():
        parser.add_argument(f"--{flag}", type=int, default=number)
    parser.add_argument("--folder", type=Path, required=True, help="of the sweep")
    asked = parser.parse_args()
    asked.quality = asked.quality or QUALITY
    given = [f"--set={text}" for text in asked.set]
    seeds = ",".join(map(str, range(asked.seeds)))  # the outer axis: all remedies with one seed first
    vary = ["--vary", f"train.seed={seeds}", "--vary", f"preset={asked.remedies}"]
    sweep = ("sweep", "--preset", asked.preset, *vary, *given, "--study", str(asked.folder), "--jobs", str(asked.jobs))
    arcvae(*sweep, check=False)  # a run that fails is left out of the table
    rows: dict[str, list[dict[str, float | None]]] = {}
    for run in sorted(path.parent for path in asked.folder.glob("[0-9]*/metrics.json")):
        rows.setdefault(run.name.split("-")[-1], []).append(measured(run, asked))
    print("| remedy |" + "".join(f" {heading} |" for heading in COLUMNS))
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, runs in sorted(rows.items()):
        cells = []
        for heading, (_, form) in COLUMNS.items():
            values = [value for run in runs if (value := run[heading]) is not None]
            spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):{form}}{spread}" if values else "-")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
