"""Optimiser steps a second: arcvae's step, with augmentation and every metric, against plain in-memory fp32 loops.

All train the same model on the same grids, in turns within one process. The peer is what a careful person writes in an
afternoon from the description of the model: data as one tensor, no loader, no augmentation, no metric but the loss,
fp32, torch's Adam. For the residual body, which only arcvae describes, and as a harder peer for the plain one, the same
loop runs arcvae's own model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli.data.corpus import GridCorpus, open_corpus
from arcvae_cli.models import build_model
from arcvae_cli.models.base import Batch
from arcvae_cli.objective import Objective
from arcvae_cli.settings import Settings
from arcvae_cli.step import Step, Tally, choose_device, seed_step


def own_steps(settings: Settings, corpus: GridCorpus, device: torch.device) -> Callable[[int], None]:
    step = Step(build_model(settings.model).to(device), Objective(settings.objective), settings.train, device)
    size = settings.train.batch_size
    order = torch.randperm(corpus.size("train")).to(device)
    done = 0

    def run(count: int) -> None:
        nonlocal done
        tally = Tally(corpus.background)
        for _ in range(count):
            at = done * size % (len(order) - size)
            seed_step(0, "bench", done)
            batch = corpus.batch("train", order[at : at + size], augment=True)
            tally.add(*step.train(batch, {"z": 0.1}), batch)
            done += 1
        tally.read()

    return run


class Described(nn.Module):
    """The plain grid model as its description reads."""

    def __init__(self, latent_dim: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(10, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(2048, 128), nn.ReLU()),
        )
        self.mean, self.sigma = nn.Linear(128, latent_dim), nn.Linear(128, latent_dim)
        self.decoder = nn.Sequential(
            *(nn.Linear(latent_dim, 128), nn.ReLU(), nn.Linear(128, 2048), nn.ReLU(), nn.Unflatten(1, (128, 4, 4))),
            *(nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.ReLU()),
            nn.Conv2d(32, 10, 3, padding=1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one_hot = functional.one_hot(x, 10).permute(0, 3, 1, 2).float()
        features = self.encoder(one_hot)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    results = []
    for body in ("plain", "residual"):
        table = {"model": {"body": body}, "train": {"batch_size": arguments.batch_size}}
        settings = Settings.model_validate(table)
        corpus = open_corpus(settings.data, device)
        runs = {"arcvae": own_steps(settings, corpus, device)}
        if body == "plain":
            runs["plain fp32 loop"] = plain_steps(Described().to(device), settings, corpus)
        runs["plain fp32 loop, arcvae's model"] = plain_steps(Ours(settings).to(device), settings, corpus)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(arguments.rounds + 1):  # the first warms up
            for name, run in runs.items():
                began = time.perf_counter()
                run(arguments.steps)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    rates[name].append(arguments.steps / (time.perf_counter() - began))
        own = rates.pop("arcvae")
        where = f"{device.type}, {arguments.threads} threads" if device.type == "cpu" else torch.cuda.get_device_name()
        print(f"{body} body, batch {arguments.batch_size}, {where}: {statistics.median(own):.1f} steps/s with metrics")
        for name, peer in rates.items():
            ratios = [a / b for a, b in zip(own, peer, strict=True)]
            ratio = statistics.median(ratios)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"  {ratio:.2f} times ({spread}) the {name}: {statistics.median(peer):.1f} steps/s")
            results.append({"body": body, "peer": name, "arcvae": own, "steps": peer, "ratio": ratio})
    print(json.dumps({"device": str(device), "threads": arguments.threads, "results": results}))


if __name__ == "__main__":
    main()
