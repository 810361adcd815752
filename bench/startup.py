"""How long a person waits: the commands that read settings only, and the header of a training.

Whole processes, in turns, so that a busy machine slows all alike. The peers are what none can do without: `import
typer` for a command line, `import torch` for a training. The header is timed from the start of the process to the
moment when its first line can be read; the corpus is in the cache, as it is for every training but the first.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial

import common

QUICK = {
    "--help": ["--help"],
    "schedule-preview cyclical": ["schedule-preview", "cyclical"],
    "schedule-preview ultra_conservative --epochs 100": ["schedule-preview", "ultra_conservative", "--epochs", "100"],
}
HEADER = "train, its header"
PEERS = {**dict.fromkeys(QUICK, "import typer"), HEADER: "import torch"}
TRAIN = ["train", "--preset", "quickstart", "--wandb", "off", "--tensorboard"]
GOAL = 3.0
"""Times its peer that a command which reads settings only may take."""


def environment() -> dict[str, str]:
    """As for an installed command: with the bytecode beside it, and the cache of corpora that there is."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}


def whole(arguments: Sequence[str]) -> float:
    """Seconds of a whole process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment())
    return time.perf_counter() - began


def header(device: str) -> float:
    """Seconds until a training tells what it is about to do; it is killed then."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "arcvae_cli", *TRAIN, "--device", device, "--runs-dir", folder]
        began = time.perf_counter()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    if line.startswith("run "):
                        return time.perf_counter() - began
            finally:
                process.kill()
    raise SystemExit(f"{' '.join(command)} ended without a header")


def main() -> None:
    given = common.flags(__doc__, rounds=9).parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of all that is started below
    runs: dict[str, common.Run] = {peer: partial(whole, ["-c", peer]) for peer in PEERS.values()}
    runs |= {name: partial(whole, ["-m", "arcvae_cli", *arguments]) for name, arguments in QUICK.items()}
    runs[HEADER] = partial(header, given.device)
    header(given.device)  # builds the corpus, if it is not there
    seconds = common.in_turns(runs, given.rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {name: common.ratio(seconds[name], seconds[peer]) for name, peer in PEERS.items()}
    for peer in dict.fromkeys(PEERS.values()):
        print(f"{f'python -c {peer!r}':57}{medians[peer] * 1000:6.0f} ms")
    for name, peer in PEERS.items():
        goal = f"; goal: at most {GOAL:g}" if name in QUICK else ""
        print(f"arcvae {name:50}{medians[name] * 1000:6.0f} ms, {peer!r}: {ratios[name]}{goal}")
    after = statistics.median(a - b for a, b in zip(seconds[HEADER], seconds[PEERS[HEADER]], strict=True))
    print(f"{HEADER}: {abs(after):.2f} s {'after' if after > 0 else 'before'} the end of its peer")
    results = {
        name: {"seconds": medians[name], "peer": peer, "peer_seconds": medians[peer], **ratios[name].table()}
        for name, peer in PEERS.items()
    }
    numbers = {"results": results, "header_minus_peer_seconds": after}
    common.write("startup", {**common.machine("cpu", given.threads), **numbers}, given.json)


if __name__ == "__main__":
    main()
