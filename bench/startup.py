"""Start-up of the commands that read settings only, against the time that `import typer` takes.

Whole processes, in turns, so that a busy machine slows all alike. Prints the median of each and of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PEER = ["-c", "import typer"]
COMMANDS = {
    "--help": ["-m", "arcvae_cli", "--help"],
    "schedule-preview cyclical": ["-m", "arcvae_cli", "schedule-preview", "cyclical"],
    "schedule-preview ultra_conservative --epochs 100": [
        *("-m", "arcvae_cli", "schedule-preview", "ultra_conservative", "--epochs", "100")
    ],
}


def seconds(arguments: list[str]) -> float:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # an installed command has its bytecode beside it
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    for arguments in (PEER, *COMMANDS.values()):  # warm the file cache, write the bytecode
        seconds(arguments)
    peer, own = [], {name: [] for name in COMMANDS}
    for _ in range(rounds):
        peer.append(seconds(PEER))
        for name, arguments in COMMANDS.items():
            own[name].append(seconds(arguments))
    results = {}
    print(f"python -c 'import typer'{statistics.median(peer) * 1000:38.0f} ms")
    for name, times in own.items():
        ratio = statistics.median(a / b for a, b in zip(times, peer, strict=True))
        results[name] = {"ms": statistics.median(times) * 1000, "ratio": ratio}
        print(
            f"arcvae {name:50}{statistics.median(times) * 1000:5.0f} ms  {ratio:.2f} times the peer (goal: at most 3)"
        )
    print(json.dumps({"peer_ms": statistics.median(peer) * 1000, "commands": results}))


if __name__ == "__main__":
    main()
