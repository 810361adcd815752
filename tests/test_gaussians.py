from __future__ import annotations

import math

import pytest
import torch

from arcvae_cli import gaussians

torch.manual_seed(0)
MEAN, LOGVAR = torch.tensor([0.5, -2.0, 0.0]).double(), torch.tensor([-3.0, 0.7, 0.0]).double()
PRIOR_MEAN, PRIOR_LOGVAR = torch.tensor([0.1, 1.0, -0.5]).double(), torch.tensor([0.3, -1.0, 1.2]).double()


def test_kl_agrees_with_torch_distributions() -> None:
    def normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(mean, torch.exp(0.5 * logvar))

    posterior, prior = normal(MEAN, LOGVAR), normal(PRIOR_MEAN, PRIOR_LOGVAR)
    expected = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(gaussians.kl(MEAN, LOGVAR, PRIOR_MEAN, PRIOR_LOGVAR), expected)
    standard = normal(torch.zeros(3).double(), torch.zeros(3).double())
    expected = torch.distributions.kl_divergence(posterior, standard)
    torch.testing.assert_close(gaussians.kl_to_standard(MEAN, LOGVAR), expected)


def test_kl_is_the_mean_of_the_log_ratio_of_densities() -> None:
    draws = gaussians.sample(MEAN.expand(200_000, 3), LOGVAR.expand(200_000, 3))
    zeros = torch.zeros_like(MEAN)
    ratio = gaussians.log_density(draws, MEAN, LOGVAR) - gaussians.log_density(draws, zeros, zeros)
    error = ratio.std(0) / math.sqrt(len(draws))
    assert ((ratio.mean(0) - gaussians.kl_to_standard(MEAN, LOGVAR)).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("raw", [-1e30, -1e4, -20.0, -12.0, 0.0, 4.0, 25.0, 1e4, 1e30])
def test_bound_keeps_any_log_variance_within_its_limits(raw: float) -> None:
    logvar = torch.tensor(raw, requires_grad=True)
    bounded = gaussians.bound(logvar, -12.0, 4.0)
    assert -12.0 <= bounded.item() <= 4.0 + 1e-5
    bounded.backward()
    assert torch.isfinite(logvar.grad)  # type: ignore[arg-type]


def test_the_noise_does_not_depend_on_the_layout_in_memory() -> None:
    mean = torch.randn(3, 4, 5, 6)
    torch.manual_seed(1)
    one = gaussians.sample(mean, mean)
    torch.manual_seed(1)
    last = mean.to(memory_format=torch.channels_last)
    assert torch.equal(gaussians.sample(last, last), one)
