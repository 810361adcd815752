"""Information measures of a model's code, in nats: ELBO, likelihood bounds, active dimensions, mutual information."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arcvae_cli import gaussians
from arcvae_cli.data.corpus import Corpus
from arcvae_cli.models.base import VAE, Batch, Latents, Level, Output
from arcvae_cli.objective import ACTIVE_KL, Objective
from arcvae_cli.settings import ObjectiveSettings

Report = dict[str, Any]
BATCH_SIZE = 1024  # examples per forward pass; seeded results depend on it, since noise is drawn batch by batch
BATCH_STEPS = 2**16  # rules of derivations per forward pass
ACTIVE_VARIANCE = 0.01  # of the posterior mean of an active unit over the data (Burda et al. 2015)
COLLAPSE_DELTA = 0.01  # collapsed: KL under `ACTIVE_KL` for at least 1 - delta of the data (Lucas et al. 2019)
CEILING_SHARE = 0.95  # of log N, above which a mutual information is reported as a lower bound
nats = Objective(ObjectiveSettings()).reconstruction  # (B,) -log p(x|z) by cross-entropy, whatever was trained


@contextmanager
def eval_mode(model: VAE, seed: int) -> Iterator[torch.device]:
    """The model in evaluation mode, no gradients, torch's generators seeded; everything restored afterwards."""
    training, device = model.training, next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(seed)
        model.eval()
        yield device
    model.train(training)


def batch_size(length: int) -> int:
    """Derivations of `length` steps per forward pass."""
    return max(64, min(BATCH_SIZE, BATCH_STEPS // length))


def pass_size(corpus: Corpus) -> int:
    """Examples of a corpus per forward pass."""
    return BATCH_SIZE if corpus.rules is None else batch_size(corpus.positions[0])


def choose(corpus: Corpus, split: str, count: int | None, seed: int) -> Tensor:
    """Indices of `count` examples of a split (all, if fewer or None), in a seeded random order."""
    return torch.randperm(corpus.size(split), generator=torch.Generator().manual_seed(seed))[:count]


def batches(corpus: Corpus, split: str, indices: Tensor, device: Any, size: int = BATCH_SIZE) -> Iterator[Batch]:
    """The examples at `indices` (n,) in batches, not augmented, cut to the longest of each batch: a CPU-GPU sync."""
    for start in range(0, len(indices), size):  # torch.split would yield an empty batch for no examples
        yield corpus.batch(split, indices[start : start + size].to(device)).cut()


def longest_first(corpus: Corpus, split: str, indices: Tensor) -> Tensor:
    """An order (n,) of the examples at `indices` (n,) that puts derivations of similar length together, on the CPU."""
    if corpus.rules is None or not len(indices):
        return torch.arange(len(indices))
    parts = torch.split(indices.to(corpus.device), 2**14)
    steps = torch.cat([corpus.batch(split, part).counted() for part in parts]).cpu()
    return steps.argsort(descending=True, stable=True)


def to_float64(values: Tensor) -> Tensor:
    """In float64, on the device if it has float64, else on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def posterior_means(model: VAE, corpus: Corpus, split: str, indices: Tensor) -> dict[str, Tensor]:
    """(n, *shape) posterior means by level, on the device; of a lower level, given the mean above it."""
    return {name: level.mean for name, level in posteriors(model, corpus, split, indices).items()}


def posteriors(model: VAE, corpus: Corpus, split: str, indices: Tensor, seed: int | None = None) -> dict[str, Level]:
    """The posteriors of the examples at `indices` (n,) by level, on the device.

    The sample of a level, which the level below it is given, is drawn with a `seed`, and is the mean without one.
    """
    with eval_mode(model, seed or 0) as device:
        passes = batches(corpus, split, indices, device, pass_size(corpus))
        parts = [model.encode(batch, noise=seed is not None) for batch in passes]
        return {some[0].name: joined(some) for some in zip(*parts, strict=True)}


class Codes(NamedTuple):
    """One noisy pass over n examples: their levels by name, -log p(x|z) (n,) in nats, valid positions (n,)."""

    levels: Mapping[str, Level]
    nats: Tensor
    positions: Tensor

    @classmethod
    def of(cls, passes: Iterable[tuple[Batch, Output]]) -> "Codes":
        rows = [(output.levels, nats(output.logits, batch), batch.counted()) for batch, output in passes]
        levels, costs, positions = zip(*rows, strict=True)
        by_name = {some[0].name: joined(some) for some in zip(*levels, strict=True)}
        return cls(by_name, torch.cat(costs), torch.cat(positions))

    def elbo(self) -> Report:
        """One-sample estimate at beta 1: -ELBO = reconstruction + KL. Bits are per valid position."""
        reconstruction, positions = (to_float64(values).mean().item() for values in (self.nats, self.positions))
        kl = sum(to_float64(level.elbo_kl).sum(dim=1).mean().item() for level in self.levels.values())
        found = {"examples": len(self.nats), "positions": positions}
        for name, value in {"elbo": -reconstruction - kl, "reconstruction": reconstruction, "kl": kl}.items():
            found |= {f"{name}_nats": value, f"{name}_bits": value * (1.0 / (positions * math.log(2.0)))}
        return found

    def error(self) -> float:
        """The standard error of the ELBO over examples."""
        kl = [to_float64(level.elbo_kl).sum(dim=1).cpu() for level in self.levels.values()]
        return standard_error(to_float64(self.nats).cpu() + torch.stack(kl).sum(dim=0))


def joined(levels: Sequence[Level], order: Tensor | None = None) -> Level:
    """The levels of several batches as one, their examples in another `order` (n,) if given."""
    names = [field.name for field in fields(Level)[1:] if getattr(levels[0], field.name) is not None]
    values = {name: torch.cat([getattr(level, name) for level in levels]) for name in names}
    return Level(levels[0].name, **{name: value if order is None else value[order] for name, value in values.items()})


def measures(level: Level, examples: int) -> Report:
    """Measures of a level; mutual information of the first `examples`, None if fewer than two or under a learned prior.

    `kl_nats` is of the density that codes are sampled from, `active_dims` and `collapsed_share` use the KL in the loss.
    """
    kl, trained, cells = to_float64(level.elbo_kl), to_float64(level.kl), level.map()
    information = None
    if level.prior_mean is None and min(len(kl), examples) > 1:
        sample, mean, logvar = (part[:examples].flatten(1) for part in (level.sample, level.mean, level.logvar))
        information = mutual_information(sample, mean, logvar)
    means = level.mean.flatten(1).cpu().double()
    small = (trained < ACTIVE_KL).double().mean(dim=0)  # share of the examples
    return {
        "kl_nats": kl.mean(dim=0).tolist(),
        "active_dims": int((trained.mean(dim=0) > ACTIVE_KL).sum()),
        "units": means.shape[1],
        "active_units": int((means.var(dim=0, correction=0) > ACTIVE_VARIANCE).sum()),
        "collapsed_share": (small >= 1.0 - COLLAPSE_DELTA).double().mean().item(),
        "mutual_information": information,
        "cells_nats": None if cells is None else to_float64(cells.float()).mean(dim=0).tolist(),
    }


def standard_error(values: Tensor) -> float:
    """The standard error of the mean of values (n,); 0 for a single one."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else 0.0


def mutual_information(sample: Tensor, mean: Tensor, logvar: Tensor, rows: int = 128) -> Report:
    """I(x; z) under the encoder: E log q(z_i|x_i) - E log mean_j q(z_i|x_j), from (N, D) codes of N examples, in nats.

    All N x N densities (Hoffman and Johnson 2016), `rows` at a time. The own posterior is one of the N: log N is a
    ceiling, and near it the estimate a lower bound. Densities, whose terms cancel, are in float64, ratios in float32.
    """
    sample, mean, logvar = to_float64(sample), to_float64(mean), to_float64(logvar)
    size = len(sample)
    # log q(z|x_j) = -(sum_d z^2 / v - 2 z m / v + m^2 / v + log v + log 2 pi) / 2: one matrix product (N, 2D)(2D, N)
    precision = (-logvar).exp()
    centre = sample.mean(dim=0)  # z and m are moved together, so that the squares do not cancel far from the origin
    z, m = sample - centre, mean - centre
    constant = -0.5 * (m.square() * precision + logvar).sum(dim=1)
    own = -0.5 * ((sample - mean).square() * precision + logvar).sum(dim=1)
    points = torch.cat([z.square(), z, own[:, None]], dim=1)
    densities = torch.cat([-0.5 * precision, m * precision, -torch.ones_like(own)[:, None]], dim=1).T.contiguous()
    total = torch.zeros_like(own[0])
    for start in range(0, size, rows):
        ratios = torch.addmm(constant, points[start : start + rows], densities)  # (rows, N)
        total += torch.logsumexp(ratios.float(), dim=1).sum()
    ceiling = math.log(size)
    value = ceiling - total.item() / size
    return {"examples": size, "nats": value, "ceiling_nats": ceiling, "is_bound": value > CEILING_SHARE * ceiling}


def importance_weighted(
    model: VAE, corpus: Corpus, split: str, indices: Tensor, draws: int, seed: int, size: int
) -> Report:
    """-log p(x) <= -log mean_k p(x|z_k) p(z_k) / q(z_k|x), with k = `draws` (Burda et al. 2015, equation 8).

    Effective sample size of the normalised weights: (sum w)^2 / sum w^2; far below `draws`, the bound is loose.
    `single_nats`: the bound that the same draws give one by one, the -ELBO of these examples.
    """
    order = longest_first(corpus, split, indices)
    with eval_mode(model, seed) as device:
        rows = [weighted(model, batch, draws) for batch in batches(corpus, split, indices[order], device, size)]
    everything = torch.cat(rows, dim=1)
    nll, single, effective, positions_mean = everything.mean(dim=1).tolist()
    bits = nll / (positions_mean * math.log(2.0))
    found = {"examples": len(indices), "samples": draws, "nll_nats": nll, "nll_bits": bits, "single_nats": single}
    return {**found, "effective_samples_mean": effective, "effective_samples_min": everything[2].min().item()}


def weighted(model: VAE, batch: Batch, draws: int) -> Tensor:
    """Of each example of a batch (4, B): the bound, the mean of single draws, effective samples, valid positions."""
    positions = to_float64(batch.counted())
    first = torch.full_like(positions, -math.inf)  # log of the sum of weights, and of their squares
    second, total = first.clone(), torch.zeros_like(first)
    output: Output = model(batch)
    for draw in range(draws):
        if draw and len(output.levels) > 1:
            output = model(batch)
        elif draw:  # a single level depends on no sample: it is encoded once
            level = output.levels[0]
            level = replace(level, sample=gaussians.sample(level.mean, level.logvar))
            output = Output(model.logits_for({level.name: level.sample}, batch), (level,))
        weight = torch.zeros_like(first)  # log p(z) / q(z|x), in float64, since the two nearly cancel
        for one in output.levels:
            parts = (one.sample, one.mean, one.logvar, *one.prior)
            z, mean, logvar, *prior = (to_float64(part).flatten(1) for part in parts)
            weight += (gaussians.log_density(z, *prior) - gaussians.log_density(z, mean, logvar)).sum(dim=1)
        weight -= to_float64(nats(output.logits, batch))
        first, second = torch.logaddexp(first, weight), torch.logaddexp(second, 2.0 * weight)
        total += weight
    return torch.stack([math.log(draws) - first, -total / draws, (2.0 * first - second).exp(), positions])


def shuffled_codes(model: VAE, corpus: Corpus, split: str, indices: Tensor, means: Latents, size: int) -> Report:
    """How much of the reconstruction comes from the code: decode each example from the code of another.

    `means`: posterior means (n, *shape) of the examples at `indices` by level. They are rotated by one within each
    `BATCH_SIZE`: those of all levels together, and of one level alone beside the own codes of the others. An
    autoregressive decoder has no accuracy here: it is given the true classes before each.
    """
    names = tuple(model.level_shapes)
    moved = [names, *((name,) for name in names if len(names) > 1)]
    rotated = {name: [part.roll(1, dims=0) for part in torch.split(code, BATCH_SIZE)] for name, code in means.items()}
    others = {name: torch.cat(parts) for name, parts in rotated.items()}
    order = longest_first(corpus, split, indices)
    sums = []  # of each batch, by rotation: nats, correct positions, valid positions
    with eval_mode(model, 0) as device:
        parts = torch.split(order.to(device), size)
        for part, batch in zip(parts, batches(corpus, split, indices[order], device, size), strict=True):
            for levels in moved:
                mixed = {name: (others if name in levels else means)[name][part] for name in names}
                logits = model.logits_for(mixed, batch)
                right = logits.argmax(dim=1) == batch.x
                counted = batch.valid if batch.scored is None else batch.scored
                counted = torch.ones_like(right) if counted is None else counted
                sums.append(torch.stack([nats(logits, batch).sum(), (right & counted).sum(), counted.sum()]))
    totals = to_float64(torch.stack(sums)).view(-1, len(moved), 3).sum(dim=0).tolist()
    count = len(indices)
    shares = [None if model.autoregressive else hits / valid for _, hits, valid in totals]
    together, *alone = [
        {"reconstruction_nats": cost / count, "accuracy": share}
        for (cost, *_), share in zip(totals, shares, strict=True)
    ]
    shuffled = {f"shuffled_{name}": value for name, value in together.items()}
    return {"examples": count, **shuffled, "levels": dict(zip(names, alone, strict=False))}  # none for a single level
