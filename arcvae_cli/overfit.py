"""The check that a model can learn at all: one batch, until it is memorised."""

from __future__ import annotations

from collections.abc import Callable

import torch

from arcvae_cli.data.corpus import Corpus
from arcvae_cli.metrics import EpochMetrics, MetricAccumulator
from arcvae_cli.models.base import VAE
from arcvae_cli.objective import Objective
from arcvae_cli.settings import Settings
from arcvae_cli.step import Step, seed_step

Report = Callable[[int, EpochMetrics], None]


def overfit(
    settings: Settings, corpus: Corpus, model: VAE, device: torch.device, limit: int, report: Report
) -> tuple[int, EpochMetrics]:
    """Train on one batch at beta 0 until it is memorised or for `limit` steps, with a report every 50.

    Returns the steps done and the metrics after them.
    """
    step = Step(model, Objective(settings.objective, corpus.class_counts()).to(device), settings.train, device)
    batch = corpus.batch("train", torch.arange(min(settings.train.batch_size, corpus.size("train")), device=device))
    metrics = MetricAccumulator(1, model.level_sizes, corpus.background, device)
    for done in range(1, limit + 1):
        seed_step(settings.train.seed, "overfit", done)
        terms, output = step.train(batch, dict.fromkeys(model.level_sizes, 0.0))
        if done % 50 == 0 or done == limit:
            metrics.add(0, terms, output, batch)
            rows = metrics.read()
            found = rows.mean()
            report(done, found)
            if found.exact == 1.0 or rows.first_nonfinite is not None:
                break
    return done, found
