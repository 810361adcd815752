from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arcvae_cli import gaussians
from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.information import (
    Codes,
    choose,
    eval_mode,
    importance_weighted,
    log_ratio,
    measures,
    mutual_information,
    posterior_means,
    shuffled_codes,
)
from arcvae_cli.evaluation.paths import decoded_paths, pair_to_show, smoothness
from arcvae_cli.models.base import VAE, Batch, Level, Output, standard_level


class Bits:
    """A corpus of given bit strings (n, length), all in one split."""

    name, rules, background = "bits", None, 0

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def size(self, split: str) -> int:
        return len(self.x)

    def batch(self, split: str, indices: Tensor, augment: bool = False) -> Batch:
        assert not augment
        return Batch(self.x[indices])


class Logistic(VAE):
    """One latent; bit k is 1 with probability sigmoid(slope_k z + offset_k); the posterior's mean is linear in x."""

    level_shapes = {"z": (1,)}  # noqa: RUF012

    def __init__(self, slope: Tensor, offset: Tensor, encode: Tensor, bias: float, logvar: float) -> None:
        super().__init__()
        self.slope, self.offset, self.weight = nn.Parameter(slope), nn.Parameter(offset), nn.Parameter(encode)
        self.bias, self.logvar = bias, logvar

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        mean = (batch.x.float() @ self.weight + self.bias)[:, None]
        return (standard_level("z", mean, torch.full_like(mean, self.logvar), noise),)

    def decode(self, latents: Mapping[str, Tensor], conditions: Tensor | None = None) -> Tensor:
        one = latents["z"] * self.slope + self.offset
        return torch.stack([torch.zeros_like(one), one], dim=1)


ALL = torch.tensor([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
SLOPE, OFFSET = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.3, 0.0, -1.0])


@pytest.fixture
def logistic() -> Logistic:
    """A model of `ALL` strings of three bits."""
    return Logistic(SLOPE, OFFSET, torch.tensor([0.8, -0.4, 0.2]), -0.9, math.log(0.5))


def quadrature(mean: Tensor, variance: float, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, points) and weights of expectations under N(mean, variance)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return mean.detach().double().numpy()[:, None] + math.sqrt(variance) * nodes, weights / weights.sum()


def log_likelihood(z: np.ndarray) -> np.ndarray:
    """log p(x|z) of all eight strings at points (8, n)."""
    eta = z[:, :, None] * SLOPE.double().numpy() + OFFSET.double().numpy()
    sign = 2 * ALL.double().numpy()[:, None, :] - 1
    return -np.log1p(np.exp(-sign * eta)).sum(axis=2)


def test_the_importance_weighted_bound_finds_the_exact_likelihood(logistic: Logistic) -> None:
    z, weights = quadrature(torch.zeros(8), 1.0)
    exact = -np.log(np.exp(log_likelihood(z)) @ weights).mean()
    many = torch.arange(8).repeat(50)  # 400 examples, so that the estimate is known to 0.01
    found = importance_weighted(logistic, Bits(ALL), "test", many, 200, seed=0)
    assert found["nll_nats"] == pytest.approx(exact, abs=0.01)
    assert found["nll_bits"] == pytest.approx(found["nll_nats"] / (3 * math.log(2)))
    assert (found["examples"], found["samples"]) == (400, 200)
    assert 1 < found["effective_samples_min"] < found["effective_samples_mean"] < 200


def test_its_single_draws_are_the_elbo_and_no_better(logistic: Logistic) -> None:
    mean = logistic.encode(Batch(ALL))[0].mean[:, 0]
    z, weights = quadrature(mean, 0.5)
    kl = gaussians.kl_to_standard(mean, torch.tensor(math.log(0.5)))
    elbo = (log_likelihood(z) @ weights).mean() - kl.mean().item()
    found = importance_weighted(logistic, Bits(ALL), "test", torch.arange(8).repeat(50), 200, seed=0)
    assert found["single_nats"] == pytest.approx(-elbo, abs=0.02)
    assert found["single_nats"] > found["nll_nats"] + 0.05
    once = importance_weighted(logistic, Bits(ALL), "test", torch.arange(8), 1, seed=0)
    assert once["nll_nats"] == pytest.approx(once["single_nats"])
    assert once["effective_samples_mean"] == pytest.approx(1.0)

    with eval_mode(logistic, 0):
        codes = Codes.of((Batch(ALL), logistic(Batch(ALL))) for _ in range(400))
    assert codes.elbo()["elbo_nats"] == pytest.approx(elbo, abs=0.02)
    assert codes.elbo()["kl_nats"] == pytest.approx(kl.mean().item())


def test_a_posterior_that_is_exact_makes_all_weights_equal() -> None:
    # a decoder without use for z, whose true posterior is the prior
    model = Logistic(torch.zeros(3), OFFSET, torch.zeros(3), 0.0, 0.0)
    found = importance_weighted(model, Bits(ALL), "test", torch.arange(8), 7, seed=0)
    assert found["nll_nats"] == pytest.approx(-log_likelihood(np.zeros((8, 1))).mean(), abs=1e-6)
    assert found["single_nats"] == pytest.approx(found["nll_nats"], abs=1e-6)
    assert found["effective_samples_min"] == pytest.approx(7)


def test_the_ratio_takes_every_level_with_its_own_prior() -> None:
    torch.manual_seed(0)
    mean, logvar, prior_mean, prior_logvar, sample = torch.randn(5, 4, 3, 2, 2)
    kl = torch.zeros(4, 3)
    levels = (
        Level("top", mean, logvar, sample, kl),
        Level("map", mean, logvar, sample, kl, prior_mean, prior_logvar),
    )

    def density(m: Tensor, v: Tensor) -> Tensor:
        return torch.distributions.Normal(m, (0.5 * v).exp()).log_prob(sample).sum(dim=(1, 2, 3))

    expected = density(torch.zeros(()), torch.zeros(())) + density(prior_mean, prior_logvar) - 2 * density(mean, logvar)
    torch.testing.assert_close(log_ratio(levels), expected.double(), atol=1e-4, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ mutual information


@pytest.mark.parametrize(("spread", "noise"), [(1.0, 0.5), (2.0, 1.0), (0.3, 1.0)])
def test_mutual_information_of_a_gaussian_channel(spread: float, noise: float) -> None:
    random = torch.Generator().manual_seed(0)
    mean = spread * torch.randn(4000, 2, generator=random)
    sample = mean + noise * torch.randn(4000, 2, generator=random)
    found = mutual_information(sample, mean, torch.full_like(mean, 2 * math.log(noise)))
    capacity = 2 * 0.5 * math.log(1 + spread**2 / noise**2)
    assert found["nats"] == pytest.approx(capacity, abs=0.06)
    assert not found["is_bound"]
    assert found["ceiling_nats"] == pytest.approx(math.log(4000))


def test_mutual_information_stops_at_its_ceiling() -> None:
    mean = torch.arange(1000.0)[:, None]
    found = mutual_information(mean, mean, torch.full_like(mean, -12.0))
    assert found["nats"] == pytest.approx(math.log(1000), abs=1e-6)
    assert found["is_bound"]
    nothing = mutual_information(torch.randn(50, 3), torch.zeros(50, 3), torch.zeros(50, 3))
    assert nothing["nats"] == pytest.approx(0.0, abs=1e-7)


def test_mutual_information_is_that_of_a_plain_loop() -> None:
    random = torch.Generator().manual_seed(1)
    mean = 100 + 0.01 * torch.randn(40, 3, generator=random)  # far from the origin, where squares cancel
    logvar = torch.randn(40, 3, generator=random) - 8
    sample = mean + (0.5 * logvar).exp() * torch.randn(40, 3, generator=random)
    density = np.array(
        [
            [gaussians.log_density(sample[i].double(), mean[j].double(), logvar[j].double()).sum() for j in range(40)]
            for i in range(40)
        ]
    )
    expected = np.diag(density).mean() - np.log(np.exp(density).mean(axis=1)).mean()
    for rows in (7, 40):
        assert mutual_information(sample, mean, logvar, rows)["nats"] == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------------ dimensions


def test_active_units_are_those_whose_means_move() -> None:
    still, below, above = torch.full((100,), 3.0), 0.099 * torch.ones(100), 0.101 * torch.ones(100)
    below[::2] *= -1  # variance 0.0098
    above[::2] *= -1  # variance 0.0102
    mean = torch.stack([still, below, above], dim=1)
    assert measures(standard_level("z", mean, torch.zeros_like(mean), noise=False), 0)["active_units"] == 1


def test_a_group_is_collapsed_when_its_kl_is_small_for_nearly_all_examples() -> None:
    kl, zeros = torch.full((100, 4), 0.01), torch.zeros(100, 4)
    kl[:, 0] = 1.0
    kl[:1, 1] = 50.0  # one in a hundred: collapsed, though its mean is 0.5
    kl[:2, 2] = 50.0  # two are too many
    assert measures(Level("z", zeros, zeros, zeros, kl), 0)["collapsed_share"] == 0.5


def test_a_tally_weighs_examples_and_not_batches_and_counts_what_is_valid() -> None:
    torch.manual_seed(0)
    x, logits = torch.randint(0, 3, (5, 4)), torch.randn(5, 3, 4)
    valid = torch.tensor([[1, 1, 1, 0]] * 4 + [[1, 0, 0, 0]]).bool()
    mean = torch.randn(5, 2)
    level = standard_level("z", mean, torch.zeros(5, 2), noise=True)

    passes = []
    for part in (slice(0, 4), slice(4, 5)):
        piece = Level("z", level.mean[part], level.logvar[part], level.sample[part], level.kl[part])
        passes.append((Batch(x[part], valid[part]), Output(logits[part], (piece,))))
    codes = Codes.of(passes)
    log_p = logits.log_softmax(dim=1)
    nats = -sum(log_p[i, x[i, t], t].item() for i in range(5) for t in range(4) if valid[i, t]) / 5
    kl = mean.square().sum().item() / 2 / 5

    elbo = codes.elbo()
    assert elbo["examples"] == 5
    assert elbo["positions"] == pytest.approx(13 / 5)
    assert elbo["reconstruction_nats"] == pytest.approx(nats)
    assert elbo["kl_nats"] == pytest.approx(kl)
    assert elbo["elbo_nats"] == pytest.approx(-nats - kl)
    assert elbo["elbo_bits"] == pytest.approx((-nats - kl) * 5 / 13 / math.log(2))

    found = measures(codes.levels["z"], 3)
    assert found["kl_nats"] == pytest.approx((mean.square() / 2).mean(dim=0).tolist())
    assert (found["units"], found["mutual_information"]["examples"]) == (2, 3)
    assert measures(codes.levels["z"], 0)["mutual_information"] is None
    torch.testing.assert_close(codes.levels["z"].mean, mean)


# ------------------------------------------------------------------------------------------------ codes put to work


class Ladder(VAE):
    """Two levels of one number each, the lower with a prior that hangs on the upper: p(l | g) = N(slope g, spread^2).

    Bit k is 1 with probability sigmoid(SLOPE_k l + OTHER_k g + OFFSET_k). Posteriors are linear in x, and the lower one
    in the sample above it.
    """

    level_shapes = {"global": (1,), "local": (1, 1, 1)}  # noqa: RUF012
    slope, spread = 0.7, 0.6

    def __init__(self, reach: float = 1.0) -> None:
        super().__init__()
        self.reach = nn.Parameter(torch.tensor(reach))

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        x = batch.x.float()
        mean = self.reach * (x @ torch.tensor([0.6, -0.3, 0.4]) - 0.3)[:, None]
        top = standard_level("global", mean, torch.full_like(mean, math.log(0.7)), noise)
        prior_mean = self.slope * top.sample[:, :, None, None]
        prior_logvar = torch.full_like(prior_mean, 2 * math.log(self.spread))
        mean = prior_mean + self.reach * (x @ torch.tensor([0.5, -0.5, 0.1]))[:, None, None, None]
        logvar = torch.full_like(mean, math.log(0.3))
        sample = gaussians.sample(mean, logvar) if noise else mean
        kl = gaussians.kl(mean, logvar, prior_mean, prior_logvar).sum(dim=(2, 3))
        return top, Level("local", mean, logvar, sample, kl, prior_mean, prior_logvar)

    def decode(self, latents: Mapping[str, Tensor], conditions: Tensor | None = None) -> Tensor:
        one = latents["local"].flatten(1) * SLOPE + latents["global"] * OTHER + OFFSET
        return torch.stack([torch.zeros_like(one), one], dim=1)


OTHER = torch.tensor([-0.5, 1.5, 0.8])


def test_the_bound_of_two_levels_under_a_learned_prior_finds_the_exact_likelihood() -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    g, e = np.meshgrid(nodes, nodes, indexing="ij")  # both levels, by quadrature
    local = Ladder.slope * g + Ladder.spread * e
    eta = local[..., None] * SLOPE.numpy() + g[..., None] * OTHER.numpy() + OFFSET.numpy()
    sign = 2 * ALL.double().numpy() - 1  # (8, 3)
    likelihood = np.exp(-np.log1p(np.exp(-sign[:, None, None] * eta)).sum(axis=-1))  # (8, 80, 80)
    exact = np.einsum("xij,i,j->x", likelihood, weights, weights)
    assert exact.sum() == pytest.approx(1.0, abs=1e-9)

    many = torch.arange(8).repeat(50)
    found = importance_weighted(Ladder(), Bits(ALL), "test", many, 200, seed=0)
    assert found["nll_nats"] == pytest.approx(-np.log(exact).mean(), abs=0.015)
    assert found["single_nats"] > found["nll_nats"] + 0.1

    with eval_mode(Ladder(), 0):
        codes = Codes.of((Batch(ALL), Ladder()(Batch(ALL))) for _ in range(400))
    assert -codes.elbo()["elbo_nats"] == pytest.approx(found["single_nats"], abs=0.03)
    levels = {name: measures(level, 100) for name, level in codes.levels.items()}
    assert codes.elbo()["kl_nats"] == pytest.approx(sum(sum(level["kl_nats"]) for level in levels.values()))
    assert levels["local"]["cells_nats"] == [[pytest.approx(levels["local"]["kl_nats"][0])]]
    assert codes.levels["local"].map().shape == (3200, 1, 1)


def test_each_level_is_shuffled_alone_and_all_together() -> None:
    model = Ladder(reach=3.0)
    top, local = model.encode(Batch(ALL), noise=False)
    codes = {"global": top.mean, "local": local.mean}
    found = shuffled_codes(model, Bits(ALL), "test", torch.arange(8), codes, (0.5, 1.0))
    assert (found["reconstruction_nats"], found["accuracy"], list(found["levels"])) == (0.5, 1.0, ["global", "local"])
    costs = []
    for moved, told in (
        (("global", "local"), (found["shuffled_reconstruction_nats"], found["shuffled_accuracy"])),
        *(((name,), (one["reconstruction_nats"], one["accuracy"])) for name, one in found["levels"].items()),
    ):
        mixed = {name: code[[7, 0, 1, 2, 3, 4, 5, 6]] if name in moved else code for name, code in codes.items()}
        logits = model.decode(mixed)
        costs.append(torch.nn.functional.cross_entropy(logits, ALL, reduction="sum").item() / 8)
        right = (logits.argmax(dim=1) == ALL).float().mean().item()
        assert told == (pytest.approx(costs[-1], rel=1e-5), pytest.approx(right)), moved
    assert len(set(costs)) == 3


def thermometer() -> Logistic:
    """The code is the number of ones; bit k of 8 is 1 above k + 1/2."""
    return Logistic(torch.full((8,), 10.0), -10 * (torch.arange(8) + 0.5), torch.ones(8), 0.0, 0.0)


def thermometers(*counts: int) -> Bits:
    return Bits((torch.arange(8) < torch.tensor(counts)[:, None]).long())


def test_shuffled_codes_cost_what_the_code_is_worth() -> None:
    model, corpus, indices = thermometer(), thermometers(0, 8, 4), torch.arange(3)
    means = posterior_means(model, corpus, "test", indices)
    found = shuffled_codes(model, corpus, "test", indices, means, (0.1, 1.0))
    assert found["levels"] == {}
    assert found["shuffled_accuracy"] == pytest.approx(1 - (4 + 8 + 4) / 24)  # 0 drawn as 4, 8 as 0, 4 as 8
    # each wrong bit at distance d from its threshold costs about 10 d: sums of 0.5, 1.5 ...
    steps = [10 * (k + 0.5) for k in range(8)]
    assert found["shuffled_reconstruction_nats"] == pytest.approx((2 * sum(steps[:4]) + sum(steps)) / 3, abs=0.1)


def test_paths_of_a_thermometer() -> None:
    def path(steps: int, *counts: int) -> dict:
        paths = decoded_paths(thermometer(), thermometers(*counts), "test", torch.arange(len(counts)), steps)
        return smoothness(paths)

    even, jump, same = path(9, 0, 8), path(2, 0, 8), path(9, 3, 3)
    assert (even["pairs"], even["steps"]) == (1, 9)
    assert (even["mean_step"], even["largest_step"], even["distance"]) == (1, 1, 8)
    assert (even["largest_step_share"], even["detour"]) == (1 / 8, 1)
    assert (jump["mean_step"], jump["largest_step"], jump["largest_step_share"]) == (8, 8, 1)
    assert (same["distance"], same["largest_step_share"], same["detour"]) == (0, None, None)
    halves = path(5, 0, 3, 4, 3, 7)  # 0 to 4, 3 to 3, which has no share; the fifth has no partner
    assert (halves["pairs"], halves["distance"], halves["largest_step_share"]) == (2, 2, 1 / 4)


def test_the_pair_to_show_is_well_reconstructed_and_as_different_as_possible() -> None:
    corpus = thermometers(0, 1, 4, 5, 8, *[4] * 7)
    corpus.x[5:] = corpus.x[5:].flip(1)  # which the model reconstructs as its mirror image
    assert pair_to_show(thermometer(), corpus, "test") == (2, 4)
    with pytest.raises(InputError, match="fewer than two test examples"):
        pair_to_show(thermometer(), thermometers(3), "test")


# ------------------------------------------------------------------------------------------------ order and noise


def test_examples_are_chosen_by_the_seed_without_repetition() -> None:
    corpus = Bits(torch.zeros(100, 1, dtype=torch.int64))
    assert sorted(choose(corpus, "test", None, 0).tolist()) == list(range(100))
    assert torch.equal(choose(corpus, "test", 7, 0), choose(corpus, "test", None, 0)[:7])
    assert not torch.equal(choose(corpus, "test", 7, 0), choose(corpus, "test", 7, 1))
    assert len(choose(corpus, "test", 1000, 0)) == 100


def test_a_narrow_posterior_alone_makes_no_dimension_active() -> None:
    """With the noise scaled, the KL of what is drawn is large in every dimension, and tells nothing of x."""
    mean = torch.zeros(50, 3)
    narrow = torch.full_like(mean, 2.0 * math.log(0.01))
    nothing = torch.zeros(50, 3)
    sampled = gaussians.kl_to_standard(mean, narrow)
    level = Level("z", mean, narrow, mean, nothing, sampled_kl=sampled)
    codes = Codes({"z": level}, torch.zeros(50), torch.ones(50))
    found = measures(level, 0)
    assert found["kl_nats"] == pytest.approx(sampled.mean(0).tolist())
    assert codes.elbo()["kl_nats"] == pytest.approx(sampled.sum(1).mean().item())
    assert (found["active_dims"], found["active_units"], found["collapsed_share"]) == (0, 0, 1.0)
