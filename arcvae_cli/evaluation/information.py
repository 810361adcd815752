"""What the code of a model holds, in nats: ELBO, likelihood, active dimensions, mutual information.

Nothing here knows what the positions are. Every estimator states how many examples it saw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from arcvae_cli import gaussians
from arcvae_cli.data.corpus import Corpus
from arcvae_cli.evaluation.paths import changed, walk
from arcvae_cli.models.base import VAE, Batch, Level, Output
from arcvae_cli.objective import ACTIVE_KL, Objective
from arcvae_cli.settings import ObjectiveSettings

BATCH_SIZE = 1024
"""Examples a forward pass; part of the definition of a seeded result, since noise is drawn batch by batch."""

BATCH_STEPS = 2**16
"""Rules of derivations a forward pass: long derivations come in smaller batches, whose memory is used again."""

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


def batch_size(length: int) -> int:
    """Derivations of so many steps a forward pass."""
    return max(64, min(BATCH_SIZE, BATCH_STEPS // length))


def choose(corpus: Corpus, split: str, count: int | None, seed: int) -> Tensor:
    """Indices of `count` examples of a split (all, if fewer or None), in a random order of their own."""
    size = corpus.size(split)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order if count is None else order[:count]


def batches(
    corpus: Corpus, split: str, indices: Tensor, device: torch.device, size: int = BATCH_SIZE
) -> Iterator[Batch]:
    """The examples at `indices` (n,) in batches, not augmented."""
    for start in range(0, len(indices), size):  # of no examples torch.split would make an empty batch
        yield corpus.batch(split, indices[start : start + size].to(device))


def nats(logits: Tensor, batch: Batch) -> Tensor:
    """(B,) -log p(x|z), whatever the model was trained on."""
    return _CROSS_ENTROPY.reconstruction(logits, batch)


_CROSS_ENTROPY = Objective(ObjectiveSettings())


def log_ratio(levels: tuple[Level, ...]) -> Tensor:
    """(B,) sum over levels of log p(sample) - log q(sample|x), in float64, since the two nearly cancel."""
    total = torch.zeros((), dtype=torch.float64)
    for level in levels:
        sample, mean, logvar = (tensor.cpu().double().flatten(1) for tensor in (level.sample, level.mean, level.logvar))
        if level.prior_mean is None or level.prior_logvar is None:
            prior = gaussians.standard_log_density(sample)
        else:
            prior_mean, prior_logvar = (t.cpu().double().flatten(1) for t in (level.prior_mean, level.prior_logvar))
            prior = gaussians.log_density(sample, prior_mean, prior_logvar)
        total = total + (prior - gaussians.log_density(sample, mean, logvar)).sum(dim=1)
    return total


# ------------------------------------------------------------------------------------------- one pass and its sums


class InformationTally:
    """Takes the outputs of one noisy pass and gives the ELBO and the levels; keeps the codes, on the CPU."""

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
        self._nats.append(nats(output.logits, batch).cpu().double())
        self._positions.append(_counted(batch))
        for level in output.levels:
            self._kl.setdefault(level.name, []).append(level.rate.cpu().double())
            self._trained_kl.setdefault(level.name, []).append(level.kl.cpu().double())
            code = (level.sample.flatten(1).cpu(), level.mean.flatten(1).cpu(), level.logvar.flatten(1).cpu())
            self._codes.setdefault(level.name, []).append(code)
            if level.prior_mean is not None:
                self._learned_priors.add(level.name)
            if (cells := level.map()) is not None:
                self._maps.setdefault(level.name, []).append(cells.float().cpu())

    def elbo(self) -> Elbo:
        """ELBO at beta 1, over all batches."""
        reconstruction = torch.cat(self._nats).mean().item()
        kl = sum(torch.cat(parts).sum(dim=1).mean().item() for parts in self._kl.values())
        positions = torch.cat(self._positions).mean().item()
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
            kl, trained = torch.cat(parts), torch.cat(self._trained_kl[name])
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
        """(n, units) posterior means of a level, in the order of the batches."""
        return self._code(name, 1)

    def maps(self) -> dict[str, Tensor]:
        """By level that is a map, (n, h, w) nats of KL in each of its cells, in the order of the batches."""
        return {name: torch.cat(parts) for name, parts in self._maps.items()}

    def _cells(self, name: str) -> tuple[tuple[float, ...], ...] | None:
        if name not in self._maps:
            return None
        return tuple(tuple(row) for row in torch.cat(self._maps[name]).double().mean(dim=0).tolist())

    def _code(self, name: str, which: int) -> Tensor:
        return torch.cat([code[which] for code in self._codes[name]])


def _counted(batch: Batch) -> Tensor:
    """(B,) positions of each example that count."""
    if batch.valid is None:
        return torch.full((len(batch.x),), float(batch.x[0].numel()), dtype=torch.float64)
    return batch.valid.flatten(1).sum(dim=1).cpu().double()


def active_units(means: Tensor, threshold: float = ACTIVE_VARIANCE) -> int:
    """Units of (n, units) posterior means whose variance over the data exceeds `threshold` (Burda et al. 2015)."""
    return int((means.double().var(dim=0, correction=0) > threshold).sum())


def collapsed_share(kl: Tensor, epsilon: float = COLLAPSE_EPSILON, delta: float = COLLAPSE_DELTA) -> float:
    """Share of the groups of (n, D) KL that are under `epsilon` nats for at least 1 - delta of the data."""
    return ((kl < epsilon).double().mean(dim=0) >= 1.0 - delta).double().mean().item()


def mutual_information(sample: Tensor, mean: Tensor, logvar: Tensor, rows: int = 512) -> MutualInformation:
    """I(x; z) under the encoder: E log q(z_i|x_i) - E log mean_j q(z_i|x_j), from (N, D) codes of N examples.

    All N x N densities, in float64 and `rows` at a time. The own posterior is one of the N, so that log N is a ceiling
    (Hoffman and Johnson 2016 define the quantity); the estimate can be slightly negative.
    """
    sample, mean, logvar = sample.double(), mean.double(), logvar.double()
    size = len(sample)
    # log q(z|x_j) = -(sum_d z^2 / v - 2 z m / v + m^2 / v + log v + log 2 pi) / 2, as two matrix products (N, D)(D, N)
    precision = (-logvar).exp()
    centre = sample.mean(dim=0)  # z and m are moved together, so that the squares do not cancel far from the origin
    z, m = sample - centre, mean - centre
    constant = (m.square() * precision + logvar).sum(dim=1)
    own = ((sample - mean).square() * precision + logvar).sum(dim=1)
    total = 0.0
    for start in range(0, size, rows):
        part = z[start : start + rows]
        square = part.square() @ precision.T - 2.0 * part @ (m * precision).T + constant  # (rows, N)
        total += torch.logsumexp(-0.5 * square, dim=1).sum().item()
    ceiling = math.log(size)
    value = -0.5 * own.mean().item() - total / size + ceiling
    return MutualInformation(size, value, ceiling, value > CEILING_SHARE * ceiling)


# ------------------------------------------------------------------------------------------------ further passes


def importance_weighted(
    model: VAE, corpus: Corpus, split: str, indices: Tensor, samples: int, seed: int, size: int = BATCH_SIZE
) -> ImportanceWeighted:
    """-log p(x) <= -log mean_k p(x|z_k) p(z_k) / q(z_k|x), with k = `samples` draws (Burda et al. 2015, equation 8).

    One forward pass a draw and batch, so its cost is `samples` times that of a pass over `indices`. Weights are
    summed as they come, in float64. The effective sample size of the normalised weights is (sum w)^2 / sum w^2: far
    below `samples`, the bound is loose.
    """
    log_likelihood, single, effective, positions = [], [], [], []
    with evaluating(model, seed) as device:
        for batch in batches(corpus, split, indices, device, size):
            first = torch.full((len(batch.x),), -math.inf, dtype=torch.float64)
            second, total = first.clone(), torch.zeros_like(first)
            for _ in range(samples):
                output = model(batch)
                weight = log_ratio(output.levels) - nats(output.logits, batch).cpu().double()
                first = torch.logaddexp(first, weight)
                second = torch.logaddexp(second, 2.0 * weight)
                total += weight
            log_likelihood.append(first - math.log(samples))
            single.append(total / samples)
            effective.append((2.0 * first - second).exp())
            positions.append(_counted(batch))
    nll = -torch.cat(log_likelihood).mean().item()
    sizes = torch.cat(effective)
    bits = nll / (torch.cat(positions).mean().item() * math.log(2.0))
    return ImportanceWeighted(
        examples=len(indices),
        samples=samples,
        nll_nats=nll,
        nll_bits=bits,
        single_nats=-torch.cat(single).mean().item(),
        effective_samples_mean=sizes.mean().item(),
        effective_samples_min=sizes.min().item(),
    )


def shuffled_codes(model: VAE, corpus: Corpus, split: str, indices: Tensor, seed: int) -> ShuffledCodes:
    """How much of the reconstruction comes from the code: decode each example from the code of another.

    Codes are handed on by one within each batch of `indices`, which are expected in random order: those of all levels
    together, and of each level alone, which then meet the own codes of the other levels.
    """
    names = tuple(model.level_shapes)
    exchanged = [(), names, *((name,) for name in names if len(names) > 1)]
    nats_of, right_of, positions = [0.0] * len(exchanged), [0] * len(exchanged), 0.0
    with evaluating(model, seed) as device:
        for batch in batches(corpus, split, indices, device):
            codes = {level.name: level.sample for level in model.encode(batch, noise=False)}
            positions += _counted(batch).sum().item()
            for place, moved in enumerate(exchanged):
                mixed = {name: code.roll(1, dims=0) if name in moved else code for name, code in codes.items()}
                logits = model.masked(model.decode(mixed), batch)
                nats_of[place] += nats(logits, batch).cpu().double().sum().item()
                right_of[place] += _right(logits, batch)
    found = [Shuffled(total / len(indices), right / positions) for total, right in zip(nats_of, right_of, strict=True)]
    return ShuffledCodes(
        examples=len(indices),
        reconstruction_nats=found[0].reconstruction_nats,
        accuracy=found[0].accuracy,
        shuffled_reconstruction_nats=found[1].reconstruction_nats,
        shuffled_accuracy=found[1].accuracy,
        levels={moved[0]: alone for moved, alone in zip(exchanged[2:], found[2:], strict=True)},
    )


def _right(logits: Tensor, batch: Batch) -> int:
    right = logits.argmax(dim=1) == batch.x
    return int((right if batch.valid is None else right & batch.valid).sum())


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
            changes.append(changed(torch.stack(pictures)).cpu().double())
            distances.append((pictures[-1] != pictures[0]).flatten(1).sum(dim=1).cpu().double())
    change, distance = torch.cat(changes, dim=1), torch.cat(distances)
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
