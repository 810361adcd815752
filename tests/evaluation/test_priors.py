from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from arcvae_cli.canvas import ARC
from arcvae_cli.conditions import columns, encode
from arcvae_cli.evaluation import priors
from arcvae_cli.evaluation.information import eval_mode
from arcvae_cli.evaluation.priors import draw_prior, fit_prior, generate
from arcvae_cli.models import build_model
from arcvae_cli.settings import Settings


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


@pytest.mark.parametrize("clusters", [1, 4])
def test_held_out_likelihood_finds_the_number_of_clusters(clusters: int) -> None:
    random = np.random.default_rng(0)
    centres = 20 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[:clusters]
    codes = centres[random.integers(0, clusters, 600)] + random.standard_normal((600, 2))
    mixture = fit_prior("gmm", {"z": torch.from_numpy(codes)}, 0)
    assert len(mixture.weights) == clusters
    nearest = np.linalg.norm(flatten(mixture.sample(500, 1.0, 3))[:, None] - centres, axis=2).min(1)
    assert np.median(nearest) == pytest.approx(np.sqrt(2 * np.log(2)), rel=0.15)  # of a Rayleigh distance


def test_draws_and_decoding_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priors, "BATCH_SIZE", 4)
    table = {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}
    torch.manual_seed(0)
    model = build_model(Settings.model_validate({"model": table, "schedule": {"name": "hierarchical"}}).model)
    conditions = torch.from_numpy(encode({}, 11, ARC)).clone()
    conditions[:, columns(ARC)["colours"]] = torch.arange(11) % 10
    with eval_mode(model, 3):
        whole = model.prior(model.noise(11), 0.5, conditions)
    with eval_mode(model, 3):
        parts = draw_prior(model, 11, 0.5, conditions)
        expected = model.argmax_decode(model.decode(whole, conditions), conditions)
        assert torch.equal(generate(model, parts, conditions), expected)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)
