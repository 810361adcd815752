"""The evaluation of a model of any kind: reconstruction beside baselines, latent code, samples, verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli import domains
from arcvae_cli.domains.base import Task
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.evaluation.information import choose, importance_weighted, measures, shuffled_codes
from arcvae_cli.evaluation.verdict import Advice

MUTUAL_INFORMATION_EXAMPLES = 10_000  # 10^8 densities, and a ceiling of 9.2 nats


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The report; (n,) examples in the order seen, (n,) wrong positions; by level (n, units) means, (n, h, w) KL."""

    report: dict[str, Any]
    indices: NDArray[np.int64]
    errors: NDArray[np.int64]
    codes: dict[str, NDArray[np.float32]]
    maps: dict[str, NDArray[np.float32]]


def evaluate(task: Task) -> Evaluation:
    """Evaluate a model on a split, without conditions; torch's generators are restored.

    InputError without examples to evaluate or to train a baseline; ArcvaeError where the output is not finite.
    """
    model, corpus, split, seed, quick = task.model, task.corpus, task.split, task.seed, task.quick
    domain = domains.of(model.kind)
    task.trained = task.trained or corpus
    if not task.trained.size("train"):
        what = f"{task.trained.name}: no training {domain.noun} for the baseline"
        raise InputError(what, "give a corpus with a training split")
    most, many_passes, size = domain.limits(task)
    task.indices = indices = choose(corpus, split, most, seed)
    task.few = few = indices[:many_passes]
    if not len(indices):
        raise InputError(f"{corpus.name}: the split {split} is empty")

    task.note(f"reconstructing {len(indices):,} {domain.noun}")
    codes, means, found, errors, own = domain.reconstruct(task)
    elbo = codes.elbo()
    if not math.isfinite(elbo["elbo_nats"]):
        raise ArcvaeError("the model's output is not finite (NaN or inf)", "evaluate an earlier checkpoint")
    examples = 0 if quick else MUTUAL_INFORMATION_EXAMPLES
    levels = {name: measures(level, examples) for name, level in codes.levels.items()}

    weighted = shuffled = None
    if len(few) > 1 and (domain.quick_shuffle or not quick):
        task.note("shuffled codes")
        own_codes = {name: code[: len(few)] for name, code in means.items()}
        shuffled = shuffled_codes(model, corpus, split, few, own_codes, own, size)
    if task.iwae_samples:
        chosen = indices[: task.iwae_examples]
        task.note(f"importance-weighted bound: {task.iwae_samples} samples for each of {len(chosen):,} {domain.noun}")
        weighted = importance_weighted(model, corpus, split, chosen, task.iwae_samples, seed, size)

    report = {
        "corpus": corpus.name,
        "split": split,
        "seed": seed,
        "quick": quick,
        **found,
        "elbo": elbo,
        "importance_weighted": weighted,
        "levels": levels,
        "shuffled_codes": shuffled,
        **domain.further(task),
    }
    advice = Advice(task.settings, model.level_shapes, math.prod(corpus.positions))
    report["verdict"] = domain.verdict(report, advice)
    vectors = {name: level.mean.flatten(1).cpu().numpy() for name, level in codes.levels.items()}
    maps = {name: kl.float().cpu().numpy() for name, level in codes.levels.items() if (kl := level.map()) is not None}
    return Evaluation(report, indices.numpy(), errors, vectors, maps)
