"""Several ranks: whether a step is one CUDA graph with its exchanges in it, and two GPUs train as one does.

On one device: 50 steps of the first of two ranks, whose sums are over itself alone, so that they pass through NCCL (on
a CPU through gloo): by a graph as by eager steps. With two GPUs and all that a run takes: two epochs on both and on
one, what their validation came to, and their speed. Leaves with status 1 where they are further apart than rounding
explains.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch
import torch.distributed as dist
from engines import APART, MODELS, STEPS, apart, settings_of
from own import own_steps

from arcvae_cli.data.corpus import open_corpus
from arcvae_cli.distributed import Ranks
from arcvae_cli.step import choose_device

WHOLE = ("typer", "rich", "matplotlib", "sklearn", "filelock")


def captured(device: torch.device) -> list[dict[str, Any]]:
    """How far graphs are from eager steps, for each model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", address, world_size=1, rank=0)
    found = []
    for model in MODELS if device.type == "cuda" else ["plain"]:
        corpus, trained = open_corpus(settings_of(model, "eager", "fp32").data, device), []
        for engine in ("eager", "auto"):
            ranks = Ranks()
            ranks.count = 2
            own = own_steps(settings_of(model, engine, "fp32"), corpus, device, ranks)
            weights = own.engine.step.model.parameters()
            trained.append((own.run(STEPS).rows, [weight.detach().double() for weight in weights]))
        metrics, weights_apart = apart(*trained)
        print(f"{model}: {own.engine.kind} {own.engine.reason}, apart from eager: {metrics:.1e}, {weights_apart:.1e}")
        kinds = {"engine": own.engine.kind, "reason": own.engine.reason}
        found.append({"model": model, **kinds, "metrics_apart": metrics, "weights_apart": weights_apart})
        own.engine._graphs.clear()
    dist.destroy_process_group()
    return found


def together() -> dict[str, Any]:
    """Two epochs on one GPU and on two."""
    lines = {}
    with tempfile.TemporaryDirectory() as folder:
        for gpus in (1, 2):
            flags = f"train --preset quickstart --data shapes --epochs 2 --batch-size 512 --gpus {gpus} --wandb off"
            command = [
                sys.executable,
                "-m",
                "arcvae_cli",
                *flags.split(),
                "--runs-dir",
                folder,
                "--run-name",
                f"on{gpus}",
            ]
            subprocess.run([*command, "--set", "log.images_every=0"], check=True)
            epochs = (Path(folder) / f"on{gpus}" / "metrics.jsonl").read_text().splitlines()
            lines[gpus] = next(line for line in map(json.loads, reversed(epochs)) if line["kind"] == "epoch")
    losses = [lines[gpus]["val/loss_total"] for gpus in lines]
    away = abs(losses[1] - losses[0]) / abs(losses[0])
    gain = lines[1]["seconds"] / lines[2]["seconds"]
    print(f"two epochs: validation loss {losses[0]:.5g} on one GPU, {losses[1]:.5g} on two; {gain:.2f} times the speed")
    return {"val_loss": losses, "apart": away, "gain": gain}


def main() -> None:
    given = common.flags(__doc__).parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    where, both = common.machine(str(device), given.threads), None
    print(common.place(where))
    found = captured(device)
    if device.type == "cuda" and torch.cuda.device_count() > 1 and all(map(importlib.util.find_spec, WHOLE)):
        both = together()
    common.write("ranks", {**where, "captured": found, "two_gpus": both}, given.json)
    wrong = [one["model"] for one in found if one["metrics_apart"] > APART]
    wrong += [one["model"] for one in found if device.type == "cuda" and one["engine"] != "graph"]
    if wrong or (both and both["apart"] > APART):
        sys.exit(f"not as eager steps, or as one GPU: {', '.join(wrong) or 'two GPUs'}")


if __name__ == "__main__":
    main()
