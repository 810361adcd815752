"""What the code of a model holds, in nats: ELBO, likelihood, active dimensions, mutual information.

Nothing here knows what the positions are. Every estimator states how many examples it saw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arcvae_cli import gaussians
from arcvae_cli.data.corpus import Corpus, DerivationCorpus
from arcvae_cli.evaluation.paths import changed, walk
from arcvae_cli.models.base import VAE, Batch, Level, Output
from arcvae_cli.objective import ACTIVE_KL, Objective
from arcvae_cli.settings import ObjectiveSettings

BATCH_SIZE = 1024
"""Examples a forward pass; part of the definition of a seeded result, since noise is drawn batch by batch."""

BATCH_STEPS = 2**16
"""Rules of derivations a forward pass: long derivations come in smaller batches, whose memory is used again."""

CUDA_STEPS = 2**20
"""The same on CUDA, where a pass of GRU layers takes as long as its steps, of however many derivations, and GiBs."""

CUDA_SHARE = 2**13
"""Bytes of the memory of a CUDA device that one rule of a pass may count on: a small device gets smaller batches."""

ACTIVE_VARIANCE = 0.01
"""A unit is active when the variance of its posterior mean over the data is above this (Burda et al. 2015)."""

COLLAPSE_EPSILON, COLLAPSE_DELTA = ACTIVE_KL, 0.01
"""A group is collapsed when its KL is under epsilon nats for at least 1 - delta of the data (Lucas et al. 2019)."""

CEILING_SHARE = 0.95
"""Share of log N from which a mutual information is printed as a bound."""


@dataclass(frozen=True, slots=True)
class Elbo:
    """One-sample estimate over `examples`; -ELBO = reconstruction + KL. Bits are per position that counts."""

    examples: int
    positions: float
    elbo_nats: float
    reconstruction_nats: float
    kl_nats: float
    elbo_bits: float
    reconstruction_bits: float
    kl_bits: float


@dataclass(frozen=True, slots=True)
class MutualInformation:
    """I(x; z) of `examples`, in nats; a bound from below where it meets its ceiling, log N."""

    examples: int
    nats: float
    ceiling_nats: float
    is_bound: bool


@dataclass(frozen=True, slots=True)
class LevelInformation:
    """One level: raw KL of each group in nats, how many are active by either definition, what they tell of x.

    `kl_nats` is of the density that codes are drawn from; `active_dims` and `collapsed_share` go by the KL that is
    trained, which is the same unless the noise is scaled: a narrow posterior alone tells nothing of x.

    Groups are the dimensions of a vector or the channels of a map, units their single numbers. `collapsed_share` is
    the share of groups with (epsilon, delta)-collapse. `mutual_information` is None under a learned prior, where the
    posterior depends on the level above and not on x alone. `cells_nats`: KL of each cell of a map, over its channels.
    """

    kl_nats: tuple[float, ...]
    active_dims: int
    units: int
    active_units: int
    collapsed_share: float
    mutual_information: MutualInformation | None
    cells_nats: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class ImportanceWeighted:
    """Bound on -log p(x) with `samples` draws a data point; effective sample size of their weights, mean and least.

    `single_nats` is the bound that the same draws give one by one: -ELBO of these examples.
    """

    examples: int
    samples: int
    nll_nats: float
    nll_bits: float
    single_nats: float
    effective_samples_mean: float
    effective_samples_min: float


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Reconstruction with codes that belong to other examples."""

    reconstruction_nats: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class ShuffledCodes:
    """Reconstruction with the right codes (posterior means) and with codes of other examples.

    `levels`: with the codes of one level alone exchanged, by its name; empty for a model of one level.
    """

    examples: int
    reconstruction_nats: float
    accuracy: float
    shuffled_reconstruction_nats: float
    shuffled_accuracy: float
    levels: dict[str, Shuffled]


@dataclass(frozen=True, slots=True)
class Interpolation:
    """Straight paths between the codes of two examples: positions whose class changes from one picture to the next.

    `distance`: positions in which the decoded ends differ. `largest_step_share`: mean over pairs of the largest step
    over that distance; 1 / (steps - 1) is an even path, 1 a jump. `detour`: changes along the way over the distance; 1
    is a way without detours. Means over pairs; shares are None where no pair of ends differs.
    """

    pairs: int
    steps: int
    mean_step: float
    largest_step: float
    distance: float
    largest_step_share: float | None
    detour: float | None


# ------------------------------------------------------------------------------------------------ going through a split


@contextmanager
def evaluating(model: VAE, seed: int) -> Iterator[torch.device]:
    """The model in evaluation mode, no gradients, torch's generators seeded; all as before afterwards."""
    training = model.training
    device = next(model.parameters()).device
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.inference_mode():
        torch.manual_seed(seed)
        model.eval()
        try:
            yield device
        finally:
            model.train(training)


def batch_size(length: int, device: torch.device | None = None) -> int:
    """Derivations of so many steps a forward pass on a device, the CPU where None. Nothing drawn depends on it."""
    if device is not None and device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return max(64, min(CUDA_STEPS, memory // CUDA_SHARE) // length)
    return max(64, min(BATCH_SIZE, BATCH_STEPS // length))


def choose(corpus: Corpus, split: str, count: int | None, seed: int) -> Tensor:
    """Indices of `count` examples of a split (all, if fewer or None), in a random order of their own."""
    size = corpus.size(split)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order if count is None else order[:count]


def batches(
    corpus: Corpus, split: str, indices: Tensor, device: torch.device, size: int = BATCH_SIZE
) -> Iterator[Batch]:
    """The examples at `indices` (n,) in batches, not augmented; derivations without the steps that none of them has.

    Derivations that come `longest_first` so lose most of their padding.
    """
    steps = lengths(corpus, split, indices) if isinstance(corpus, DerivationCorpus) else None
    for start in range(0, len(indices), size):  # of no examples torch.split would make an empty batch
        batch = corpus.batch(split, indices[start : start + size].to(device))
        yield batch if steps is None else cut(batch, int(steps[start : start + size].max()))


def lengths(corpus: DerivationCorpus, split: str, indices: Tensor) -> Tensor:
    """(n,) rules of the derivations at `indices` (n,), on the CPU: one read-back for all that follows."""
    return (corpus.ids(split)[indices.to(corpus.device)] != corpus.rules.padding).sum(dim=1).cpu()


def longest_first(corpus: Corpus, split: str, indices: Tensor) -> Tensor:
    """An order (n,) of the examples at `indices` (n,) that puts derivations of like length together, on the CPU."""
    if not isinstance(corpus, DerivationCorpus):
        return torch.arange(len(indices))
    return lengths(corpus, split, indices).argsort(descending=True, stable=True)


def cut(batch: Batch, steps: int) -> Batch:
    """The first `steps` of a batch of derivations (B, T)."""
    return Batch(batch.x[:, :steps], None if batch.valid is None else batch.valid[:, :steps])


def exact(values: Tensor) -> Tensor:
    """In float64, where the device has it, else on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def nats(logits: Tensor, batch: Batch) -> Tensor:
    """(B,) -log p(x|z), whatever the model was trained on."""
    return _CROSS_ENTROPY.reconstruction(logits, batch)


_CROSS_ENTROPY = Objective(ObjectiveSettings())


def log_ratio(levels: tuple[Level, ...]) -> Tensor:
    """(B,) sum over levels of log p(sample) - log q(sample|x), in float64, since the two nearly cancel."""
    totals = []
    for level in levels:
        sample, mean, logvar = (exact(tensor).flatten(1) for tensor in (level.sample, level.mean, level.logvar))
        if level.prior_mean is None or level.prior_logvar is None:
            prior = gaussians.standard_log_density(sample)
        else:
            prior_mean, prior_logvar = (exact(tensor).flatten(1) for tensor in (level.prior_mean, level.prior_logvar))
            prior = gaussians.log_density(sample, prior_mean, prior_logvar)
        totals.append((prior - gaussians.log_density(sample, mean, logvar)).sum(dim=1))
    return torch.stack(totals).sum(dim=0)


def outputs(model: VAE, batch: Batch, draws: int) -> Iterator[Output]:
    """What a model makes of a batch with so many samples, one after the other.

    A single level is encoded once, as it stays the same from draw to draw; below another level it does not.
    """
    output: Output = model(batch)
    yield output
    for _ in range(draws - 1):
        if len(output.levels) > 1:
            yield model(batch)
        else:
            level = output.levels[0]
            levels = (replace(level, sample=gaussians.sample(level.mean, level.logvar)),)
            yield Output(model.logits_for(samples_of(levels), batch), levels)


def samples_of(levels: tuple[Level, ...]) -> dict[str, Tensor]:
    """The sample of each level, by its name."""
    return {level.name: level.sample for level in levels}


def posterior_means(
    model: VAE, corpus: Corpus, split: str, indices: Tensor, size: int = BATCH_SIZE
) -> dict[str, Tensor]:
    """(n, *shape) posterior means by level, on the device: below another level, given the mean above."""
    parts: dict[str, list[Tensor]] = {name: [] for name in model.level_shapes}
    with evaluating(model, 0) as device:
        for batch in batches(corpus, split, indices, device, size):
            for level in model.encode(batch, noise=False):
                parts[level.name].append(level.mean)
    return {name: torch.cat(some) for name, some in parts.items()}


# ------------------------------------------------------------------------------------------- one pass and its sums


class InformationTally:
    """Takes the outputs of one noisy pass and gives the ELBO and the levels; all stays on the device until the end."""

    def __init__(self) -> None:
        self._nats: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._kl: dict[str, list[Tensor]] = {}
        self._trained_kl: dict[str, list[Tensor]] = {}
        self._codes: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._maps: dict[str, list[Tensor]] = {}
        self._learned_priors: set[str] = set()

    def update(self, batch: Batch, output: Output) -> None:
        """Add a batch."""
        self.add(output.levels, nats(output.logits, batch), _counted(batch))

    def add(self, levels: tuple[Level, ...], reconstruction: Tensor, positions: Tensor) -> None:
        """Add examples: their levels, -log p(x|z) (B,) in nats and how many positions count (B,)."""
        self._nats.append(reconstruction)
        self._positions.append(positions)
        for level in levels:
            self._kl.setdefault(level.name, []).append(level.rate)
            self._trained_kl.setdefault(level.name, []).append(level.kl)
            code = (level.sample.flatten(1), level.mean.flatten(1), level.logvar.flatten(1))
            self._codes.setdefault(level.name, []).append(code)
            if level.prior_mean is not None:
                self._learned_priors.add(level.name)
            if (cells := level.map()) is not None:
                self._maps.setdefault(level.name, []).append(cells.float())

    def elbo(self) -> Elbo:
        """ELBO at beta 1, over all batches."""
        reconstruction = _mean(self._nats)
        kl = sum(exact(torch.cat(parts)).sum(dim=1).mean().item() for parts in self._kl.values())
        positions = _mean(self._positions)
        bits = 1.0 / (positions * math.log(2.0))
        return Elbo(
            examples=sum(map(len, self._nats)),
            positions=positions,
            elbo_nats=-reconstruction - kl,
            reconstruction_nats=reconstruction,
            kl_nats=kl,
            elbo_bits=(-reconstruction - kl) * bits,
            reconstruction_bits=reconstruction * bits,
            kl_bits=kl * bits,
        )

    def levels(self, mutual_information_examples: int) -> dict[str, LevelInformation]:
        """Each level, by name; mutual information of the first so many examples, none if fewer than two."""
        found = {}
        for name, parts in self._kl.items():
            kl, trained = exact(torch.cat(parts)), exact(torch.cat(self._trained_kl[name]))
            means = self.means(name)
            information = None
            if name not in self._learned_priors and min(len(kl), mutual_information_examples) > 1:
                sample, mean, logvar = (self._code(name, which)[:mutual_information_examples] for which in range(3))
                information = mutual_information(sample, mean, logvar)
            found[name] = LevelInformation(
                kl_nats=tuple(kl.mean(dim=0).tolist()),
                active_dims=int((trained.mean(dim=0) > ACTIVE_KL).sum()),
                units=means.shape[1],
                active_units=active_units(means),
                collapsed_share=collapsed_share(trained),
                mutual_information=information,
                cells_nats=self._cells(name),
            )
        return found

    def means(self, name: str) -> Tensor:
        """(n, units) posterior means of a level, in the order of the batches, on the CPU."""
        return self._code(name, 1).cpu()

    def codes(self) -> dict[str, Tensor]:
        """By level, (n, units) posterior means in the order of the batches, on the device."""
        return {name: self._code(name, 1) for name in self._codes}

    def maps(self) -> dict[str, Tensor]:
        """By level that is a map, (n, h, w) nats of KL in each cell, in the order of the batches, on the CPU."""
        return {name: torch.cat(parts).cpu() for name, parts in self._maps.items()}

    def _cells(self, name: str) -> tuple[tuple[float, ...], ...] | None:
        if name not in self._maps:
            return None
        return tuple(tuple(row) for row in exact(torch.cat(self._maps[name])).mean(dim=0).tolist())

    def _code(self, name: str, which: int) -> Tensor:
        return torch.cat([code[which] for code in self._codes[name]])


def _mean(parts: list[Tensor]) -> float:
    """The mean over all batches of what each (B,) has of its examples."""
    return exact(torch.cat(parts)).mean().item()


def _counted(batch: Batch) -> Tensor:
    """(B,) positions of each example that count."""
    if batch.valid is None:
        return torch.full((len(batch.x),), float(batch.x[0].numel()), device=batch.x.device)
    return batch.valid.flatten(1).sum(dim=1)


def active_units(means: Tensor, threshold: float = ACTIVE_VARIANCE) -> int:
    """Units of (n, units) posterior means whose variance over the data exceeds `threshold` (Burda et al. 2015)."""
    return int((means.double().var(dim=0, correction=0) > threshold).sum())


def collapsed_share(kl: Tensor, epsilon: float = COLLAPSE_EPSILON, delta: float = COLLAPSE_DELTA) -> float:
    """Share of the groups of (n, D) KL that are under `epsilon` nats for at least 1 - delta of the data."""
    return ((kl < epsilon).double().mean(dim=0) >= 1.0 - delta).double().mean().item()


def mutual_information(sample: Tensor, mean: Tensor, logvar: Tensor, rows: int = 128) -> MutualInformation:
    """I(x; z) under the encoder: E log q(z_i|x_i) - E log mean_j q(z_i|x_j), from (N, D) codes of N examples.

    All N x N densities, `rows` at a time (10 MB of 10,000 examples, which a cache may hold). The own posterior is one
    of the N, so that log N is a ceiling (Hoffman and Johnson 2016 define the quantity); the estimate can be slightly
    negative. Densities are taken in float64, as terms that cancel; their ratios to the own density are then small
    where they count, and are summed in float32.
    """
    sample, mean, logvar = exact(sample), exact(mean), exact(logvar)
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
    return MutualInformation(size, value, ceiling, value > CEILING_SHARE * ceiling)


# ------------------------------------------------------------------------------------------------ further passes


def importance_weighted(
    model: VAE, corpus: Corpus, split: str, indices: Tensor, draws: int, seed: int, size: int = BATCH_SIZE
) -> ImportanceWeighted:
    """-log p(x) <= -log mean_k p(x|z_k) p(z_k) / q(z_k|x), with k = `draws` (Burda et al. 2015, equation 8).

    One decoding a draw and batch, so its cost is `draws` times that of decoding `indices`; of several levels the lower
    ones are encoded anew each time. Weights are summed as they come, in float64. The effective sample size of the
    normalised weights is (sum w)^2 / sum w^2: far below `draws`, the bound is loose.
    """
    log_likelihood, single, effective, positions = [], [], [], []
    with evaluating(model, seed) as device:
        for batch in batches(corpus, split, indices[longest_first(corpus, split, indices)], device, size):
            counted = _counted(batch)
            first = torch.full_like(exact(counted), -math.inf)  # log of the sum of weights, and of their squares
            second, total = first.clone(), torch.zeros_like(first)
            for output in outputs(model, batch, draws):
                weight = log_ratio(output.levels) - exact(nats(output.logits, batch))
                first = torch.logaddexp(first, weight)
                second = torch.logaddexp(second, 2.0 * weight)
                total += weight
            log_likelihood.append(first - math.log(draws))
            single.append(total / draws)
            effective.append((2.0 * first - second).exp())
            positions.append(counted)
    nll = -_mean(log_likelihood)
    sizes = torch.cat(effective)
    bits = nll / (_mean(positions) * math.log(2.0))
    return ImportanceWeighted(
        examples=len(indices),
        samples=draws,
        nll_nats=nll,
        nll_bits=bits,
        single_nats=-_mean(single),
        effective_samples_mean=sizes.mean().item(),
        effective_samples_min=sizes.min().item(),
    )


def shuffled_codes(
    model: VAE,
    corpus: Corpus,
    split: str,
    indices: Tensor,
    seed: int,
    means: Mapping[str, Tensor] | None = None,
    right: Shuffled | None = None,
    size: int = BATCH_SIZE,
) -> ShuffledCodes:
    """How much of the reconstruction comes from the code: decode each example from the code of another.

    Codes are handed on by one within each `BATCH_SIZE` of `indices`, which are expected in random order: those of all
    levels together, and of each level alone, which then meet the own codes of the other levels. `means`: the posterior
    means (n, *shape) of `indices` by level, encoded here where None. `right`: what the right codes give, decoded here
    where None. `size`: examples decoded at once.
    """
    names = tuple(model.level_shapes)
    exchanged = [names, *((name,) for name in names if len(names) > 1), *([()] if right is None else [])]
    means = posterior_means(model, corpus, split, indices, size) if means is None else means
    parted = {name: torch.split(code, BATCH_SIZE) for name, code in means.items()}
    others = {name: torch.cat([part.roll(1, dims=0) for part in parts]) for name, parts in parted.items()}
    order = longest_first(corpus, split, indices)
    sums: list[Tensor] = []  # of each batch, by exchange: nats, what is right, and what counts
    with evaluating(model, seed) as device:
        parts = torch.split(order, size)
        for part, batch in zip(parts, batches(corpus, split, indices[order], device, size), strict=True):
            place, counted = part.to(device), _counted(batch).sum()
            for moved in exchanged:
                mixed = {name: (others if name in moved else means)[name][place] for name in names}
                logits = model.logits_for(mixed, batch)
                sums.append(torch.stack([nats(logits, batch).sum(), _right(logits, batch), counted]))
    totals = exact(torch.stack(sums)).view(-1, len(exchanged), 3).sum(dim=0).tolist()
    found = [Shuffled(total / len(indices), hits / positions) for total, hits, positions in totals]
    own = found[-1] if right is None else right
    return ShuffledCodes(
        examples=len(indices),
        reconstruction_nats=own.reconstruction_nats,
        accuracy=own.accuracy,
        shuffled_reconstruction_nats=found[0].reconstruction_nats,
        shuffled_accuracy=found[0].accuracy,
        levels={moved[0]: alone for moved, alone in zip(exchanged, found, strict=True) if len(moved) == 1 < len(names)},
    )


def _right(logits: Tensor, batch: Batch) -> Tensor:
    right = logits.argmax(dim=1) == batch.x
    return (right if batch.valid is None else right & batch.valid).sum()


def interpolation(model: VAE, corpus: Corpus, split: str, indices: Tensor, seed: int, steps: int = 9) -> Interpolation:
    """Walk straight from the code of each example in the first half of `indices` to one in the second half."""
    pairs = len(indices) // 2
    changes, distances = [], []
    with evaluating(model, seed) as device:
        for start in range(0, pairs, BATCH_SIZE):
            stop = min(start + BATCH_SIZE, pairs)
            first, second = (
                {level.name: level.mean for level in model.encode(corpus.batch(split, half), noise=False)}
                for half in (indices[start:stop].to(device), indices[pairs + start : pairs + stop].to(device))
            )
            path = walk(first, second, steps)
            pictures = [
                model.likeliest(model.decode({name: codes[step] for name, codes in path.items()}))
                for step in range(steps)
            ]
            changes.append(changed(torch.stack(pictures)))
            distances.append((pictures[-1] != pictures[0]).flatten(1).sum(dim=1))
    change, distance = torch.cat(changes, dim=1).cpu().double(), torch.cat(distances).cpu().double()
    apart = distance > 0
    some = bool(apart.any())
    return Interpolation(
        pairs=pairs,
        steps=steps,
        mean_step=change.mean().item(),
        largest_step=change.amax(dim=0).mean().item(),
        distance=distance.mean().item(),
        largest_step_share=(change.amax(dim=0) / distance)[apart].mean().item() if some else None,
        detour=(change.sum(dim=0) / distance)[apart].mean().item() if some else None,
    )
