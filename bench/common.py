"""What the benchmarks share: their flags, runs in turns, ratios, and the JSON they leave.

A machine that others use too is slow for all at once, so a benchmark runs what it compares in turns, within one process
or with a second one that waits its turn, and reports ratios of neighbouring turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bare

STANDING_IN = bare.stand_in()  # before anything of arcvae is imported

from arcvae_cli.machine import cores  # noqa: E402

HERE = Path(__file__).resolve().parent
Run = Callable[[], float]
"""Does a turn's work and gives the seconds it took."""


def flags(doc: str | None, rounds: int = 15, computes: bool = True) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark has, and with those of one that `computes` in its own process."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each; medians and ranges are of these")
    if computes:
        parser.add_argument("--threads", type=int, default=threads(), help="of the CPU's arithmetic")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--json", type=Path, help="where the numbers go; by default bench/results/NAME.json")
    return parser


def threads() -> int:
    """Threads, unless told otherwise: $OMP_NUM_THREADS, or the cores that this process may keep busy."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else cores()


def in_turns(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of every turn by the run's name; a turn of each before the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            taken = run()
            if turn:
                seconds[name].append(taken)
    return seconds


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call, which must have waited for the device when it returns."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@dataclass(frozen=True)
class Ratio:
    """Of the seconds of turns beside each other: the median, the middle half, and of the fastest turn of either.

    The fastest turns are those that others on the machine disturbed least.
    """

    median: float
    low: float
    high: float
    fastest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} times ({self.low:.2f} to {self.high:.2f}; fastest turns {self.fastest:.2f})"

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return {"ratio": self.median, "middle_half": [self.low, self.high], "ratio_of_fastest": self.fastest}


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Of each turn, one by the other."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Ratio(statistics.median(ratios), low, high, min(above) / min(below))


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "kind": "cuda" if cuda else "cpu",
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "stand_ins": STANDING_IN,
    }


def processor() -> str:
    """The CPU's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def place(found: Mapping[str, Any]) -> str:
    """The machine in a few words."""
    if found["kind"] == "cuda":
        return str(found["device"])
    return f"{found['device']}, {found['threads']} thread{'' if found['threads'] == 1 else 's'}"


def write(name: str, result: Mapping[str, Any], to: Path | None = None) -> None:
    """The numbers as JSON: `to`, or NAME.json in $BENCH_RESULTS or bench/results."""
    path = to or Path(os.environ.get("BENCH_RESULTS", HERE / "results")) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(f"numbers in {path}")


def waiting(device: str) -> Callable[[], None]:
    """A function that returns when the device has done all it was asked to."""
    import torch

    return torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
