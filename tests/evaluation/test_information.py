from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arcvae_cli import gaussians
from arcvae_cli.evaluation.information import (
    Codes,
    eval_mode,
    importance_weighted,
    measures,
    mutual_information,
    shuffled_codes,
)
from arcvae_cli.evaluation.paths import decoded_paths, smoothness
from arcvae_cli.models.base import VAE, Batch, Level, Output, standard_level


class Bits:
    """A corpus of given bit strings (n, length), all in one split."""

    name, rules, background = "bits", None, 0

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def size(self, split: str) -> int:
        return len(self.x)

    def batch(self, split: str, indices: Tensor) -> Batch:
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


ALL = torch.cartesian_prod(*[torch.arange(2)] * 3)  # the strings of three bits
SIGNS = 2 * ALL.double().numpy() - 1
SLOPE, OTHER, OFFSET = torch.tensor([[2.0, -1.0, 0.5], [-0.5, 1.5, 0.8], [0.3, 0.0, -1.0]])


def log_likelihood(z: np.ndarray) -> np.ndarray:
    """log p(x|z) of all eight strings at points (8, n)."""
    eta = z[:, :, None] * SLOPE.double().numpy() + OFFSET.double().numpy()
    return -np.log1p(np.exp(-SIGNS[:, None, :] * eta)).sum(axis=2)


def test_the_importance_weighted_bound_finds_the_exact_likelihood_and_single_draws_the_elbo() -> None:
    logistic = Logistic(SLOPE, OFFSET, torch.tensor([0.8, -0.4, 0.2]), -0.9, math.log(0.5))
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights /= weights.sum()
    exact = -np.log(np.exp(log_likelihood(np.tile(nodes, (8, 1)))) @ weights).mean()
    mean = logistic.encode(Batch(ALL))[0].mean[:, 0].detach()
    z = mean.double().numpy()[:, None] + math.sqrt(0.5) * nodes
    kl = gaussians.kl_to_standard(mean, torch.tensor(math.log(0.5)))
    elbo = (log_likelihood(z) @ weights).mean() - kl.mean().item()

    many = torch.arange(8).repeat(50)  # 400 examples, so that the estimate is known to 0.01
    found = importance_weighted(logistic, Bits(ALL), "test", many, 200, 0, 1024)
    assert found["nll_nats"] == pytest.approx(exact, abs=0.01)
    assert found["nll_bits"] == pytest.approx(found["nll_nats"] / (3 * math.log(2)))
    assert (found["examples"], found["samples"]) == (400, 200)
    assert 1 < found["effective_samples_min"] < found["effective_samples_mean"] < 200
    assert found["single_nats"] == pytest.approx(-elbo, abs=0.02)
    assert found["single_nats"] > found["nll_nats"] + 0.05
    with eval_mode(logistic, 0):
        codes = Codes.of((Batch(ALL), logistic(Batch(ALL))) for _ in range(400))
    assert codes.elbo()["elbo_nats"] == pytest.approx(elbo, abs=0.02)
    assert codes.elbo()["kl_nats"] == pytest.approx(kl.mean().item())

    # a decoder without use for z, whose true posterior is the prior: all weights are equal
    model = Logistic(torch.zeros(3), OFFSET, torch.zeros(3), 0.0, 0.0)
    found = importance_weighted(model, Bits(ALL), "test", torch.arange(8), 7, 0, 1024)
    assert found["nll_nats"] == pytest.approx(-log_likelihood(np.zeros((8, 1))).mean(), abs=1e-6)
    assert found["single_nats"] == pytest.approx(found["nll_nats"], abs=1e-6)
    assert found["effective_samples_min"] == pytest.approx(7)


def test_mutual_information_of_a_gaussian_channel_and_at_its_ceiling() -> None:
    random = torch.Generator().manual_seed(0)
    mean, normal = torch.randn(2, 4000, 2, generator=random)
    found = mutual_information(mean + 0.5 * normal, mean, torch.full_like(mean, 2 * math.log(0.5)))
    capacity = 2 * 0.5 * math.log(1 + 1 / 0.5**2)
    assert found["nats"] == pytest.approx(capacity, abs=0.06)
    assert found["ceiling_nats"] == pytest.approx(math.log(4000)) and not found["is_bound"]
    mean = torch.arange(1000.0)[:, None]
    found = mutual_information(mean, mean, torch.full_like(mean, -12.0))
    assert found["nats"] == pytest.approx(math.log(1000), abs=1e-6) and found["is_bound"]


def test_mutual_information_is_that_of_a_plain_loop() -> None:
    random = torch.Generator().manual_seed(1)
    mean = 100 + 0.01 * torch.randn(40, 3, generator=random)  # far from the origin, where squares cancel
    logvar = torch.randn(40, 3, generator=random) - 8
    sample = mean + (0.5 * logvar).exp() * torch.randn(40, 3, generator=random)
    one, mean64, logvar64 = sample.double()[:, None], mean.double(), logvar.double()
    density = gaussians.log_density(one, mean64, logvar64).sum(dim=2).numpy()  # (40, 40)
    expected = np.diag(density).mean() - np.log(np.exp(density).mean(axis=1)).mean()
    for rows in (7, 40):
        assert mutual_information(sample, mean, logvar, rows)["nats"] == pytest.approx(expected, abs=1e-6)


def test_active_units_have_moving_means_and_collapsed_groups_small_kl() -> None:
    sign = torch.tensor([1.0, -1.0]).repeat(50)
    mean = torch.stack([torch.full((100,), 3.0), 0.099 * sign, 0.101 * sign], dim=1)  # variances 0, 0.0098, 0.0102
    assert measures(standard_level("z", mean, torch.zeros_like(mean), noise=False), 0)["active_units"] == 1

    # a group is collapsed when its KL is small for nearly all examples
    kl, zeros = torch.full((100, 4), 0.01), torch.zeros(100, 4)
    kl[:, 0] = 1.0
    kl[:1, 1] = 50.0  # one in a hundred: collapsed, though its mean is 0.5
    kl[:2, 2] = 50.0  # two are too many
    found = measures(Level("z", zeros, zeros, zeros, kl, sampled_kl=torch.full_like(kl, 9.0)), 0)
    assert (found["collapsed_share"], found["active_dims"]) == (0.5, 3)
    assert found["kl_nats"] == [9.0] * 4  # of the density that codes are sampled from


def test_means_are_over_examples_and_valid_positions() -> None:
    torch.manual_seed(0)
    x, logits, mean = torch.randint(0, 3, (5, 4)), torch.randn(5, 3, 4), torch.randn(5, 2)
    valid = torch.tensor([[1, 1, 1, 0]] * 4 + [[1, 0, 0, 0]]).bool()
    passes = []
    for part in (slice(0, 4), slice(4, 5)):
        level = standard_level("z", mean[part], torch.zeros_like(mean[part]), noise=True)
        passes.append((Batch(x[part], valid[part]), Output(logits[part], (level,))))
    codes = Codes.of(passes)
    log_p = logits.log_softmax(dim=1)
    nats = -sum(log_p[i, x[i, t], t].item() for i in range(5) for t in range(4) if valid[i, t]) / 5
    kl = mean.square().sum().item() / 2 / 5
    expected = {"examples": 5, "positions": 13 / 5, "reconstruction_nats": nats, "kl_nats": kl}
    expected |= {"elbo_nats": -nats - kl, "elbo_bits": (-nats - kl) * 5 / 13 / math.log(2)}
    assert expected == pytest.approx({name: codes.elbo()[name] for name in expected})
    found = measures(codes.levels["z"], 3)
    assert found["kl_nats"] == pytest.approx((mean.square() / 2).mean(dim=0).tolist())
    assert (found["units"], found["mutual_information"]["examples"]) == (2, 3)
    torch.testing.assert_close(codes.levels["z"].mean, mean)


class Ladder(VAE):
    """Two levels of one number each, l ~ N(slope g, spread^2); bit k: sigmoid(SLOPE_k l + OTHER_k g + OFFSET_k)."""

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


def test_the_bound_of_two_levels_under_a_learned_prior_finds_the_exact_likelihood() -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    g, e = np.meshgrid(nodes, nodes, indexing="ij")  # both levels, by quadrature
    local = Ladder.slope * g + Ladder.spread * e
    eta = local[..., None] * SLOPE.numpy() + g[..., None] * OTHER.numpy() + OFFSET.numpy()
    likelihood = np.exp(-np.log1p(np.exp(-SIGNS[:, None, None] * eta)).sum(axis=-1))  # (8, 80, 80)
    exact = np.einsum("xij,i,j->x", likelihood, weights, weights)
    assert exact.sum() == pytest.approx(1.0, abs=1e-9)

    model = Ladder()
    found = importance_weighted(model, Bits(ALL), "test", torch.arange(8).repeat(50), 200, 0, 1024)
    assert found["nll_nats"] == pytest.approx(-np.log(exact).mean(), abs=0.015)
    assert found["single_nats"] > found["nll_nats"] + 0.1

    with eval_mode(model, 0):
        codes = Codes.of((Batch(ALL), model(Batch(ALL))) for _ in range(400))
    assert -codes.elbo()["elbo_nats"] == pytest.approx(found["single_nats"], abs=0.03)
    local, top = (measures(codes.levels[name], 100) for name in ("local", "global"))
    assert codes.elbo()["kl_nats"] == pytest.approx(sum(local["kl_nats"] + top["kl_nats"]))
    assert local["cells_nats"] == [[pytest.approx(local["kl_nats"][0])]]


def test_each_level_is_shuffled_alone_and_all_together() -> None:
    model = Ladder(reach=3.0)
    codes = {level.name: level.mean for level in model.encode(Batch(ALL), noise=False)}
    found = shuffled_codes(model, Bits(ALL), "test", torch.arange(8), codes, 1024)
    assert list(found["levels"]) == ["global", "local"]
    both = {name: found[f"shuffled_{name}"] for name in ("reconstruction_nats", "accuracy")}
    for moved, told in (("global local", both), *found["levels"].items()):
        mixed = {name: code.roll(1, dims=0) if name in moved.split() else code for name, code in codes.items()}
        logits = model.decode(mixed)
        cost = torch.nn.functional.cross_entropy(logits, ALL, reduction="sum").item() / 8
        right = (logits.argmax(dim=1) == ALL).double().mean().item()
        assert told == pytest.approx({"reconstruction_nats": cost, "accuracy": right}, rel=1e-5), moved


THERMOMETER = Logistic(torch.full((8,), 10.0), -10 * (torch.arange(8) + 0.5), torch.ones(8), 0.0, 0.0)
"""The code is the number of ones; bit k of 8 is 1 above k + 1/2."""


def thermometers(*counts: int) -> Bits:
    return Bits((torch.arange(8) < torch.tensor(counts)[:, None]).long())


def test_paths_of_a_thermometer() -> None:
    names = ("pairs", "mean_step", "largest_step", "distance", "largest_step_share", "detour")
    for steps, counts, expected in (
        (9, (0, 8), (1, 1, 1, 8, 1 / 8, 1)),
        (2, (0, 8), (1, 8, 8, 8, 1, 1)),
        (9, (3, 3), (1, 0, 0, 0, None, None)),
        (5, (0, 3, 4, 3, 7), (2, 0.5, 0.5, 2, 1 / 4, 1)),  # 0 to 4, 3 to 3, which has no share; the last has no partner
    ):
        paths = decoded_paths(THERMOMETER, thermometers(*counts), "test", torch.arange(len(counts)), steps)
        assert smoothness(paths) == {"steps": steps, **dict(zip(names, expected, strict=True))}
