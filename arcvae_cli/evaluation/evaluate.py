"""The evaluation of a model of any kind: reconstruction beside baselines, latent code, samples, verdict."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arcvae_cli import domains
from arcvae_cli.domains.base import Task
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.evaluation.information import choose, importance_weighted, measures, pass_size, shuffled_codes
from arcvae_cli.evaluation.verdict import Advice

MUTUAL_INFORMATION_EXAMPLES = 10_000  # 10^8 densities, and a ceiling of 9.2 nats


class Evaluation(NamedTuple):
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
    model, corpus, split, seed, domain = task.model, task.corpus, task.split, task.seed, domains.of(task.model.kind)
    task.trained = task.trained or corpus
    for where, needed in ((task.trained, "train"), (corpus, split)):
        if not where.size(needed):
            raise InputError(f"{where.name}: the split {needed} is empty", "evaluate with other --data or --split")
    (most, many_passes), size = domain.limits(task), pass_size(corpus)
    task.indices = indices = choose(corpus, split, task.examples or most, seed)
    task.few = few = indices[:many_passes]

    task.note(f"reconstructing {len(indices):,} {domain.noun}")
    codes, means, found, errors, own = domain.reconstruct(task)
    elbo = codes.elbo()
    if not math.isfinite(elbo["elbo_nats"]):
        raise ArcvaeError("the model's output is not finite (NaN or inf)", "evaluate an earlier checkpoint")
    examples = 0 if task.quick else MUTUAL_INFORMATION_EXAMPLES

    weighted = shuffled = None
    if len(few) > 1 and (model.autoregressive or domain.quick_shuffle or not task.quick):
        own_codes = {name: code[: len(few)] for name, code in means.items()}
        shuffled = {"reconstruction_nats": own[0], "accuracy": own[1]}
        shuffled |= shuffled_codes(model, corpus, split, few, own_codes, size)
    if task.iwae_samples:
        chosen = indices[: task.iwae_examples]
        task.note(f"importance-weighted bound: {task.iwae_samples} samples for each of {len(chosen):,} {domain.noun}")
        weighted = importance_weighted(model, corpus, split, chosen, task.iwae_samples, seed, size)

    report = {"corpus": corpus.name, "split": split, "seed": seed, "quick": task.quick, **found, "elbo": elbo}
    report["levels"] = {name: measures(level, examples) for name, level in codes.levels.items()}
    report |= {"shuffled_codes": shuffled, "importance_weighted": weighted, **domain.further(task)}
    positions, examples = math.prod(corpus.positions), task.trained.size("train")
    report["verdict"] = domain.verdict(report, Advice(task.settings, model.level_shapes, positions, examples))
    vectors = {name: level.mean.flatten(1).cpu().numpy() for name, level in codes.levels.items()}
    maps = {name: kl.float().cpu().numpy() for name, level in codes.levels.items() if (kl := level.map()) is not None}
    return Evaluation(report, indices.numpy(), errors, vectors, maps)
