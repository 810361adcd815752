"""Optimiser steps a second: arcvae's step, with augmentation and every metric, against what else trains such a model.

All train the same model on the same grids, on the same threads, in turns. The peers:

- pythae 0.1.2's trainer, in its own process (`pythae_loop.py`), fp32, no metric but the loss, no augmentation.
- a plain loop as a careful person writes it in an afternoon from the description of the model: data as one tensor, no
  loader, no augmentation, no metric but the loss, fp32, torch's Adam.
- for the residual body, which only arcvae describes, and as a harder peer for the plain one, the same loop with
  arcvae's own model.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import common
import described
import numpy as np
import torch
from own import grid_settings, open_grids, own_steps
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.models import build_model
from arcvae_cli.models.base import Batch
from arcvae_cli.settings import Settings
from arcvae_cli.step import choose_device

PYTHAE = ("pythae==0.1.2", "cloudpickle", "imageio", "tqdm")
"""What pip brings without their own needs, which arcvae has too: so that pythae runs on the very same torch."""
FOLDER = common.HERE.parent / "build" / "pythae"


class Described(nn.Module):
    """The plain grid model as its description reads."""

    def __init__(self, latent_dim: int = 10) -> None:
        super().__init__()
        self.encoder, self.decoder = described.encoder(), described.decoder(latent_dim)
        self.mean, self.sigma = nn.Linear(128, latent_dim), nn.Linear(128, latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(described.one_hot(x))
        mean, sigma = self.mean(features), functional.softplus(self.sigma(features))
        kl = 0.5 * (mean**2 + sigma**2 - 1) - sigma.log()
        return self.decoder(mean + sigma * torch.randn_like(mean)), kl


class Ours(nn.Module):
    """arcvae's model, called as the one above."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.model = build_model(settings.model)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(Batch(x))
        return output.logits, output.levels[0].kl


def plain_steps(model: nn.Module, settings: Settings, corpus: GridCorpus) -> Callable[[int], None]:
    """So many steps of the plain loop."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    grids, size = corpus.grids("train"), settings.train.batch_size
    order = torch.randperm(len(grids)).to(grids.device)
    done = 0

    def run(count: int) -> None:
        nonlocal done
        for _ in range(count):
            at = done * size % (len(order) - size)
            x = grids[order[at : at + size]].long()
            logits, kl = model(x)
            loss = functional.cross_entropy(logits, x, reduction="sum") / size + 0.1 * kl.sum(dim=1).mean()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            loss.item()
            done += 1

    return run


def pythae_python(given: str | None) -> tuple[list[str], dict[str, str]] | None:
    """An interpreter with pythae and the variables it takes, or None where there is none and pip cannot bring it."""
    if given is not None:
        return [given], {}
    if "pydantic" in common.STANDING_IN:  # pythae takes it too
        return None
    if importlib.util.find_spec("pythae") is not None:
        return [sys.executable], {}
    if not FOLDER.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "15"]
        if subprocess.run([*pip, "--no-deps", "--target", str(FOLDER), *PYTHAE], stderr=subprocess.DEVNULL).returncode:
            return None
    found = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(FOLDER))))
    return [sys.executable], {"PYTHONPATH": found}


@contextmanager
def pythae_steps(
    python: tuple[list[str], dict[str, str]], corpus: GridCorpus, device: torch.device, given: argparse.Namespace
) -> Iterator[common.Run]:
    """A turn of pythae's trainer, whose process lives as long as the block. OSError where it does not begin."""
    with tempfile.TemporaryDirectory() as folder:
        grids, log = Path(folder) / "grids.npy", Path(folder) / "log"
        np.save(grids, corpus.grids("train").cpu().numpy())
        sizes = {"--batch-size": given.batch_size, "--steps": given.steps, "--threads": given.threads}
        words = [*python[0], str(common.HERE / "pythae_loop.py"), str(grids)]
        words += [str(word) for pair in sizes.items() for word in pair]
        words += ["--cuda"] if device.type == "cuda" else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), **python[1]}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with (
            log.open("w") as errors,
            subprocess.Popen(words, **pipes, stderr=errors, text=True, env=environment) as peer,
        ):
            assert peer.stdin is not None and peer.stdout is not None
            asked, answers = peer.stdin, peer.stdout

            def run() -> float:
                asked.write("\n")
                asked.flush()
                answer = answers.readline()
                if not answer:
                    raise OSError(log.read_text("utf-8").strip().rpartition("\n")[2])
                return float(answer)

            run()
            yield run
            asked.close()


def main() -> None:
    parser = common.flags(__doc__)
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--engine", default="auto", choices=("auto", "eager", "compile", "graph"))
    parser.add_argument("--bodies", nargs="+", default=["plain", "residual"])
    parser.add_argument("--pythae", metavar="PYTHON", help="an interpreter that has pythae; else pip brings it")
    parser.add_argument("--name", default="steps", help="of the JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    wait = common.waiting(str(device))
    where = common.machine(str(device), given.threads)
    print(f"steps of batch {given.batch_size} on {common.place(where)}, arcvae with augmentation and metrics")
    python = pythae_python(given.pythae)
    notes = [] if python else ["pythae: not there, and pip could not bring it; --pythae PYTHON names one that has it"]
    results = []
    for body in given.bodies:
        settings = grid_settings({"body": body}, {"batch_size": given.batch_size, "engine": given.engine})
        corpus = open_grids(settings.data, device)
        own = own_steps(settings, corpus, device)
        loops: dict[str, Callable[[int], object]] = {"arcvae": own.run}
        if body == "plain":
            loops["a plain fp32 loop"] = plain_steps(Described().to(device), settings, corpus)
        loops["a plain fp32 loop of arcvae's model"] = plain_steps(Ours(settings).to(device), settings, corpus)

        def turn(loop: Callable[[int], object]) -> common.Run:
            def run() -> float:
                return common.timed(lambda: (loop(given.steps), wait()))

            return run

        runs = {name: turn(loop) for name, loop in loops.items()}
        with ExitStack() as stack:
            if python and body == "plain":
                try:
                    runs["pythae 0.1.2's trainer"] = stack.enter_context(pythae_steps(python, corpus, device, given))
                except OSError as error:
                    notes.append(f"pythae's trainer did not begin: {error}")
            seconds = common.in_turns(runs, given.rounds)
        mine = seconds.pop("arcvae")
        print(f"{body} body, {own.how}: {given.steps / statistics.median(mine):.1f} steps/s")
        for name, others in seconds.items():
            found = common.ratio(others, mine)
            print(f"  {found} {name}: {given.steps / statistics.median(others):.1f} steps/s")
            results.append(
                {
                    "body": body,
                    "how": own.how,
                    "peer": name,
                    **found.table(),
                    "arcvae_steps_per_s": [given.steps / each for each in mine],
                    "peer_steps_per_s": [given.steps / each for each in others],
                }
            )
    for note in notes:
        print(note)
    common.write(given.name, {**where, "batch_size": given.batch_size, "notes": notes, "results": results}, given.json)


if __name__ == "__main__":
    main()
