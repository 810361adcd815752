"""`arcvae train --threads auto` beside busy processes, against one thread.

Runs a training of 624 steps with one thread and one with `auto`: in turns on an idle machine; beside 1 and 4 busy
processes both at the same time, so that they share one load (each is one of the busy processes of the other). Prints
the ratio of their steps per second, once of the training steps alone and once of the whole command, which includes the
trial. `--two` runs two threads too, which takes minutes. The goal: `auto` is never more than a tenth slower.
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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import common

from arcvae_cli.machine import THREADS


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
    parser = common.flags(__doc__, rounds=3, computes=False)
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 4], help="other processes")
    parser.add_argument("--two", action="store_true", help="two threads too, once")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--examples", type=int, default=20_000, help="of an epoch, in batches of 128")
    given = parser.parse_args()
    flags = ["--preset", "quickstart", "--data", "shapes", "--set", "data.size=26000"]
    flags += ["--epochs", str(given.epochs), "--set", f"data.limit={given.examples}", "--set", "log.images_every=0"]
    where = common.machine("cpu", common.threads())
    print(common.place(where))
    results = []
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        folder = Path(temporary)
        train(folder, "warm", "1", [*flags, "--epochs", "1", "--set", "data.limit=1000"])
        for count in given.busy:
            turns: list[list[tuple[float, float, str]]] = []
            with busy(count - 1):
                for turn in range(given.rounds):
                    asked = [
                        pool.submit(train, folder, f"busy{count}-{threads}-{turn}", threads, flags)
                        if count
                        else train(folder, f"busy{count}-{threads}-{turn}", threads, flags)
                        for threads in ("1", "auto")
                    ]
                    turns.append([one.result() if isinstance(one, Future) else one for one in asked])
            steps, wholes = ([one[which] / auto[which] for one, auto in turns] for which in (0, 1))
            ratio, whole = statistics.median(steps), statistics.median(wholes)
            print(f"{count} busy: auto is {ratio:.2f} times as fast as one thread, whole commands {whole:.2f}")
            for one, auto in turns:
                print(f"  one thread {1 / one[0]:.1f} steps/s, auto {1 / auto[0]:.1f}: {auto[2]}")
            results.append({"busy": count, "ratio": ratio, "whole": whole, "turns": turns})
            if given.two:
                with busy(count):
                    print(f"  two threads {1 / train(folder, f'busy{count}-2', '2', flags)[0]:.1f} steps/s")
    worst = min(result["ratio"] for result in results)
    print(f"auto is at worst {worst:.2f} times as fast as one thread (goal: 0.9)")
    common.write("threads", {**where, "flags": flags, "results": results, "worst": worst}, given.json)


if __name__ == "__main__":
    main()
