"""Population-based search against the best fixed schedule at equal compute, on real ARC grids.

Both sides train as many members for as many epochs from the same settings, spread over the same ranges. On the fixed
side each keeps its own to the end; in the population the worst quarter is replaced every `--interval` epochs. The best
member of each side by its validation ELBO is then measured on the test split, whose tasks nobody has seen.

A difference counts if it has one sign in all seeds and its mean is above twice its standard error over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OVER = ("schedule.max_beta=log:0.05..1", "objective.free_bits=log:0.01..0.5", "train.lr=log:0.0003..0.006")
# the preset `small` on few grids, its schedule much shorter
BASE = ("data.name=arc", "train.batch_size=16", "train.lr_min=0.00003", "train.device=cpu", "train.precision=fp32")
BASE += ("schedule.warmup_epochs=1", "schedule.ramp_epochs=3")


def side(folder: Path, seed: int, interval: int, asked: argparse.Namespace) -> dict[str, Any]:
    """A search in a folder: its best member at validation, that one on the test split, and the seconds it took."""
    given = [f"train.epochs={asked.epochs}", f"train.seed={seed}", f"train.threads={asked.threads}"]
    given = [f"--set={one}" for one in (*BASE, f"data.limit={asked.limit}", *given)] + [f"--over={one}" for one in OVER]
    sizes = ("--trials", str(asked.trials), "--interval", str(interval), "--study", str(folder))
    began = time.perf_counter()
    found = arcvae("sweep", "--preset", "small", "--search", "pbt", *sizes, *given)
    seconds, runs, best = time.perf_counter() - began, found["runs"], found["runs"][0]
    test = arcvae("evaluate", "--checkpoint", str(folder / best["run"]))
    facts = {"best": best["run"], **{part: best[part] for part in ("distortion", "rate", "elbo")}}
    facts |= {"median of members": statistics.median(run["elbo"] for run in runs), **best["values"]}
    trail = json.loads((folder / "population.json").read_bytes())["trail"]
    facts["copies"] = sum(len(pieces) - 1 for pieces in trail.values())
    return facts | {"test ELBO": test["elbo"]["elbo_nats"], "seconds": seconds}


def arcvae(*arguments: str) -> Any:
    """The JSON of a command."""
    command = [sys.executable, "-m", "arcvae_cli", *arguments, "--json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Run both sides with every seed and tell which is better."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, number in {"trials": 8, "epochs": 8, "interval": 2, "limit": 1600, "seeds": 3, "threads": 1}.items():
        parser.add_argument(f"--{flag}", type=int, default=number)
    parser.add_argument(
        "--folder", type=Path, help="of the searches, which go on where they were; by default temporary"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        lines, val, test = [], [], []
        for seed in range(asked.seeds):
            both = {}
            for name, interval in (("fixed", asked.epochs), ("population", asked.interval)):
                folder = (asked.folder or Path(temporary)) / f"{name}-{seed}"
                both[name] = one = side(folder, seed, interval, asked)
                numbers = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in one.values()]
                lines.append(f"| {name} | {seed} | {' | '.join(numbers)} |")
            val.append(both["population"]["elbo"] - both["fixed"]["elbo"])
            test.append(both["population"]["test ELBO"] - both["fixed"]["test ELBO"])
            heads = ["side", "seed", *one]
            print("\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]), flush=True)
    error = statistics.stdev(test) / len(test) ** 0.5 if len(test) > 1 else float("inf")
    mean = statistics.mean(test)
    agree = len({gain > 0 for gain in test}) == 1 and abs(mean) > 2 * error
    verdict = f"{'better' if test[0] > 0 else 'worse'} than" if agree else "not distinguishable from"
    print(f"population minus fixed, ELBO in nats: validation {', '.join(f'{gain:+.2f}' for gain in val)}")
    print(f"test {', '.join(f'{gain:+.2f}' for gain in test)}; mean {mean:+.2f}, its standard error {error:.2f}")
    print(f"the population is {verdict} the best fixed schedule")


if __name__ == "__main__":
    main()
