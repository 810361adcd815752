"""A whole `arcvae train`: start-up, training, validation, recording, saving, pictures, evaluation, and what is left.

The preset `baseline` on all its grids, in its own process, as a person runs it, after a short run that warms the file
cache and builds the corpus where it was not. On a CPU so many epochs would take too long: there are 2 by default, and
beside what was measured stands what the parts come to for all of the preset's, those that come with every epoch (and
pictures with every fifth) multiplied, the others as they are. The ratio is of the whole run to its training steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

from arcvae_cli.presets import resolve
from arcvae_cli.settings import Settings

EACH_EPOCH = ("training", "validation", "recording", "saving")


def run(folder: Path, name: str, flags: list[str], threads: int) -> tuple[float, dict[str, Any]]:
    """Wall seconds of a run, and its status."""
    words = [sys.executable, "-m", "arcvae_cli", "train", "--runs-dir", str(folder), "--run-name", name, *flags]
    words += ["--no-early-stopping", "--wandb", "off"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    status: dict[str, Any] = json.loads((folder / name / "status.json").read_text("utf-8"))
    return taken, status


def scaled(seconds: dict[str, float], epochs: int, settings: Settings) -> dict[str, float]:
    """The parts of a run of so many epochs, for all of the preset's."""
    whole, every = settings.train.epochs, settings.log.images_every
    times = dict.fromkeys(EACH_EPOCH, whole / epochs)
    if every:
        times["pictures"] = -(-whole // every) / -(-epochs // every)
    return {part: times.get(part, 1.0) * value for part, value in seconds.items()}


def main() -> None:
    parser = common.flags(__doc__, rounds=1)
    parser.add_argument("--preset", default="baseline")
    parser.add_argument("--epochs", type=int, help="by default 2 on a CPU, on CUDA the preset's")
    parser.add_argument("--data", help="another corpus than the preset's")
    parser.add_argument("--batch-size", type=int, help="another batch size than the preset's")
    given = parser.parse_args()
    import torch

    from arcvae_cli.step import choose_device

    device = str(choose_device(given.device))
    where = common.machine(device, given.threads)
    settings = resolve(given.preset).settings
    epochs = given.epochs or (settings.train.epochs if torch.device(device).type == "cuda" else 2)
    flags = ["--preset", given.preset, "--device", device]
    flags += ["--data", given.data] if given.data else []
    flags += ["--batch-size", str(given.batch_size)] if given.batch_size else []
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(folder, "warm", [*flags, "--epochs", "1", "--set", "data.limit=2000"], given.threads)
        for turn in range(given.rounds):
            wall, status = run(folder, f"run{turn}", [*flags, "--epochs", str(epochs)], given.threads)
            seconds = dict(status["seconds"])
            seconds["rest"] = wall - sum(seconds.values())
            results.append({"wall_s": wall, "seconds": seconds, "steps": status["step"], "status": status})
    best = min(results, key=lambda result: result["wall_s"])
    seconds = best["seconds"]
    full = scaled(seconds, epochs, settings)
    print(f"{given.preset}, {common.place(where)}, {best['steps']} steps: {best['wall_s']:.1f} s")
    print(f"  {'':12}{f'{epochs} epochs':>12}{f'{settings.train.epochs} epochs':>12}")
    for part, value in seconds.items():
        print(f"  {part:12}{value:10.2f} s{full[part]:10.2f} s {full[part] / sum(full.values()):6.1%}")
    print(f"  {'all':12}{sum(seconds.values()):10.2f} s{sum(full.values()):10.2f} s")
    times = sum(full.values()) / full["training"]
    rate = best["steps"] / seconds["training"]
    print(f"  {times:.2f} times its training steps, {rate:.1f} a second", end="")
    print("" if epochs == settings.train.epochs else f"; {settings.train.epochs} epochs are scaled from {epochs}")
    numbers = {"epochs": epochs, "runs": results, "scaled_s": full, "ratio": times, "steps_per_s": rate}
    common.write("whole", {**where, "preset": given.preset, **numbers}, given.json)


if __name__ == "__main__":
    main()
