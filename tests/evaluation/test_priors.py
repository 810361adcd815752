from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arcvae_cli.conditions import PLACE, encode
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.domains.grids import GridDomain
from arcvae_cli.evaluation.priors import Mixture, argmax_decode, draw_prior, fit_prior
from arcvae_cli.models.base import VAE, Batch, Level, standard_level

GRIDS = GridDomain()
ASKED = ((3, 1000), (3, 7), (2, 7))  # colours, most examples


class TwoLevels(VAE):
    """A vector and a map of latents above it, nothing learned: the smallest hierarchy."""

    level_shapes = {"global": (3,), "local": (2, 2, 2)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(256, 3)
        self.decoder = nn.Linear(3 + 8, 10 * 256)

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        mean = self.encoder(batch.x.flatten(1).float())
        top = standard_level("global", mean, torch.full_like(mean, -4.0), noise)
        below = top.sample[:, :2, None, None].expand(-1, 2, 2, 2)
        if batch.conditions is not None:
            below = below + 10.0 * batch.conditions[:, PLACE["colours"], None, None, None]
        sample = below + 0.1 * torch.randn_like(below) if noise else below
        return top, Level("local", below, torch.full_like(below, -4.6), sample, below.new_zeros(len(below), 2))

    def decode(self, latents: Mapping[str, Tensor], conditions: Tensor | None = None) -> Tensor:
        codes = torch.cat([latents["global"], latents["local"].flatten(1)], 1)
        logits = self.decoder(codes).view(-1, 10, 16, 16)
        if conditions is not None:  # the wanted number of colours, in the first row
            logits[:, :, 0] += 100 * nn.functional.one_hot(conditions[:, PLACE["colours"]], 10)[:, :, None]
        return logits

    def prior(self, n: int, temperature=1.0, conditions=None, noise=None) -> dict[str, Tensor]:
        noise = noise or self.noise(n)
        top = temperature * noise["global"]
        shift = 0.0 if conditions is None else conditions[:, PLACE["colours"], None, None, None].float()
        return {"global": top, "local": top[:, :2, None, None] + shift + temperature * noise["local"]}


@pytest.fixture
def model() -> TwoLevels:
    torch.manual_seed(0)
    return TwoLevels().eval()


@pytest.fixture
def corpus() -> GridCorpus:
    random = np.random.default_rng(0)
    grids = random.integers(0, 10, (700, 16, 16), np.uint8)
    return GridCorpus(Dataset("random", grids, np.repeat(np.array([0, 1, 2], np.uint8), [600, 50, 50])))


def flatten(latents: Mapping[str, Tensor]) -> np.ndarray:
    return torch.cat([value.flatten(1) for value in latents.values()], dim=1).double().numpy()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_a_gaussian_has_the_mean_and_the_full_covariance(temperature: float) -> None:
    mean, root = np.array([1.0, -2.0, 5.0]), np.array([[2.0, 0, 0], [1.0, 0.5, 0], [0, 0, 0]])  # the last is constant
    codes = mean + np.random.default_rng(0).standard_normal((50_000, 3)) @ root.T
    drawn = flatten(fit_prior("aggregate", {"z": torch.from_numpy(codes)}, 0).sample(50_000, temperature, 1))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.05 + 0.05 * temperature)
    found, expected = np.cov(drawn, rowvar=False), temperature**2 * root @ root.T
    np.testing.assert_allclose(found, expected, atol=0.12 * temperature**2 + 1e-9)


def test_a_mixture_draws_each_component_as_often_as_it_weighs() -> None:
    means, covariances = np.array([[0.0, 0.0], [10.0, 10.0]]), 0.01 * np.stack([np.eye(2)] * 2)
    drawn = flatten(Mixture(np.array([0.2, 0.8]), means, covariances, {"z": (2,)}).sample(10_000, 1.0, 0))
    first = (drawn < 5).all(1)
    assert first.mean() == pytest.approx(0.2, abs=0.02)
    assert drawn[first].std() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("clusters", [1, 4])
def test_held_out_likelihood_finds_the_number_of_clusters(clusters: int) -> None:
    random = np.random.default_rng(0)
    centres = 20 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[:clusters]
    codes = centres[random.integers(0, clusters, 600)] + random.standard_normal((600, 2))
    mixture = fit_prior("gmm", {"z": torch.from_numpy(codes)}, 0)
    assert len(mixture.weights) == clusters
    nearest = np.linalg.norm(flatten(mixture.sample(500, 1.0, 3))[:, None] - centres, axis=2).min(1)
    assert np.median(nearest) == pytest.approx(np.sqrt(2 * np.log(2)), rel=0.15)  # of a Rayleigh distance


@pytest.mark.parametrize("kind", ["aggregate", "gmm"])
def test_a_fitted_prior_draws_codes_like_those_of_the_data(kind: str, model: TwoLevels, corpus: GridCorpus) -> None:
    given = GRIDS.posterior_samples(model, corpus, "train", 0, {}, 1000)
    spread = given["local"][:, 0].flatten(1) - given["global"][:, :1]  # the map depends on the vector's sample
    assert len(spread) == 600 and spread.std() == pytest.approx(0.1, rel=0.1)
    before = torch.get_rng_state()
    prior = fit_prior(kind, given, seed=0)
    latents, again = (prior.sample(4000, 1.0, seed=1) for _ in range(2))
    codes, drawn = flatten(given), flatten(latents)
    np.testing.assert_allclose(drawn.mean(0), codes.mean(0), atol=4 * codes.std() / 600**0.5)
    np.testing.assert_allclose(drawn.std(0), codes.std(0), rtol=0.15)
    assert torch.equal(latents["local"], again["local"]) and latents["local"].shape == (4000, 2, 2, 2)
    assert not torch.equal(latents["local"], prior.sample(4000, 1.0, seed=2)["local"])
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_and_decoding_do_not_depend_on_the_batches(model: TwoLevels) -> None:
    conditions, noise = torch.from_numpy(encode({}, 11)).clone(), model.noise(11)
    conditions[:, PLACE["colours"]] = torch.arange(11) % 10
    whole = model.prior(11, 0.5, conditions, noise)
    parts = draw_prior(model, 11, 0.5, conditions, noise, batch_size=4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    decoded = argmax_decode(model, parts, conditions, batch_size=4)
    assert (decoded[:, 0] == (torch.arange(11) % 10)[:, None]).all()
    torch.manual_seed(3)
    first = draw_prior(model, 11, batch_size=4)
    torch.manual_seed(3)
    assert torch.equal(first["local"], model.prior(11)["local"])


def test_a_prior_under_conditions_is_fitted_to_the_grids_that_satisfy_them(
    model: TwoLevels, corpus: GridCorpus
) -> None:
    corpus.grids("train")[:40] = 0
    corpus.grids("train")[:40, 0, :3] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    found = [GRIDS.posterior_samples(model, corpus, "train", 0, {"colours": n}, most)["local"] for n, most in ASKED]
    assert [len(local) for local in found] == [40, 7, 0]
    # encoded under the condition, which moves the map by ten a colour
    assert found[0].mean() == pytest.approx(30, abs=1)
