"""The check that a model can learn at all: one batch, until it is memorised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from arcvae_cli.data.corpus import Corpus
from arcvae_cli.models.base import VAE
from arcvae_cli.objective import Objective
from arcvae_cli.settings import Settings
from arcvae_cli.step import Counts, Step, Tally, seed_step


@dataclass(frozen=True)
class Memorised:
    """What `overfit` found."""

    steps: int
    limit: int
    counts: Counts

    @property
    def done(self) -> bool:
        """Whether every example of the batch came back without a mistake."""
        return self.counts.exact == 1.0


def overfit(
    settings: Settings,
    corpus: Corpus,
    model: VAE,
    device: torch.device,
    limit: int,
    tell: Callable[[int, Counts], None],
) -> Memorised:
    """Train on one batch, without augmentation and at beta 0, until it is memorised: the check that a model can learn.

    A model that cannot memorise one batch has a defect that no schedule mends. `tell` hears of every 50th step.
    """
    objective = Objective(settings.objective, corpus.class_counts()).to(device)
    step = Step(model, objective, settings.train, device)
    size = min(settings.train.batch_size, corpus.size("train"))
    batch = corpus.batch("train", torch.arange(size, device=device))
    betas = dict.fromkeys(model.level_sizes, 0.0)
    counts: Counts | None = None
    for done in range(1, limit + 1):
        seed_step(settings.train.seed, "overfit", done)
        terms, output = step.train(batch, betas)
        if done % 50 == 0 or done == limit:
            tally = Tally(1, model.level_sizes, corpus.background, device)
            tally.add(0, terms, output, batch)
            counts = tally.read().counts()
            tell(done, counts)
            if counts.exact == 1.0 or not counts.finite:
                break
    assert counts is not None
    return Memorised(done, limit, counts)
