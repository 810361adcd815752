"""`arcvae train --threads auto` beside busy processes, against one thread and two.

Runs a training of 624 steps with one thread, `auto` and (once) two threads, while 0, 1 and 4 other processes keep
cores busy, in turns; prints the steps per second of each and the ratio to one thread, once of the training steps alone
and once of the whole command, which includes the trial. The goal: `auto` is never more than a tenth slower than one
thread would be.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common

from arcvae_cli.machine import THREADS

CHOICES = ("1", "2", "auto")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that each keep a core busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def train(folder: Path, name: str, threads: str, flags: list[str]) -> tuple[float, float, str]:
    """Seconds of the training steps and of the whole command per step, and the note on the trial."""
    words = [sys.executable, "-m", "arcvae_cli", "train", "--runs-dir", str(folder), "--run-name", name]
    words += ["--threads", threads, "--device", "cpu", "--wandb", "off", *flags]
    environment = {key: value for key, value in os.environ.items() if key not in THREADS}
    began = time.perf_counter()
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    status = json.loads((folder / name / "status.json").read_text("utf-8"))
    note = next((line for line in done.stderr.splitlines() if line.startswith("threads ")), "no trial")
    return status["seconds"]["training"] / status["step"], taken / status["step"], note


def main() -> None:
    parser = common.flags(__doc__, rounds=2, computes=False)
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 4], help="other processes")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--examples", type=int, default=20_000, help="of an epoch, in batches of 128")
    given = parser.parse_args()
    flags = ["--preset", "quickstart", "--data", "shapes", "--set", "data.size=26000"]
    flags += ["--epochs", str(given.epochs), "--set", f"data.limit={given.examples}", "--set", "log.images_every=0"]
    where = common.machine("cpu", common.threads())
    print(common.place(where))
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train(folder, "warm", "1", [*flags, "--epochs", "1", "--set", "data.limit=1000"])
        for count in given.busy:
            found: dict[str, list[tuple[float, float, str]]] = {threads: [] for threads in CHOICES}
            with busy(count):
                for turn in range(given.rounds):
                    for threads in CHOICES if turn == 0 else ("1", "auto"):  # two beside busy processes are slow
                        found[threads].append(train(folder, f"busy{count}-{threads}-{turn}", threads, flags))
            steps = {threads: statistics.median(turn[0] for turn in turns) for threads, turns in found.items()}
            wholes = {threads: statistics.median(turn[1] for turn in turns) for threads, turns in found.items()}
            print(f"{count} busy processes beside it")
            for threads in CHOICES:
                ratio, whole = steps["1"] / steps[threads], wholes["1"] / wholes[threads]
                notes = f"; {'; '.join(turn[2] for turn in found[threads])}" if threads == "auto" else ""
                print(f"  {threads:>4}: {1 / steps[threads]:6.1f} steps/s, {ratio:.2f} of 1; whole {whole:.2f}{notes}")
            ratios = {threads: steps["1"] / value for threads, value in steps.items()}
            results.append({"busy": count, "ratios": ratios, "seconds_per_step": found})
    worst = min(result["ratios"]["auto"] for result in results)
    print(f"auto is at worst {worst:.2f} times as fast as one thread (goal: 0.9)")
    common.write("threads", {**where, "flags": flags, "results": results, "worst": worst}, given.json)


if __name__ == "__main__":
    main()
