"""Priors fitted to the aggregate posterior (Ghosh et al. 2020, section 4), and draws from a prior."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.evaluation.information import BATCH_SIZE
from arcvae_cli.models.base import VAE, Latents

Codes = NDArray[np.float64]

EXAMPLES = 20_000  # most that a prior is fitted to: they determine a covariance of 300 dimensions to 1 %
COMPONENTS = (2, 4, 8, 16, 32)  # of a mixture, that are tried


@dataclass(frozen=True)
class Mixture:
    """K Gaussians over all levels: weights (K,), means (K, D), roots (K, D, D) A of each covariance A A^T."""

    weights: NDArray[np.float64]
    means: Codes
    roots: NDArray[np.float64]
    shapes: Mapping[str, tuple[int, ...]]

    def sample(self, n: int, temperature: float, seed: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """`n` draws by level, float32, the same on every device; `temperature` multiplies standard deviations."""
        random = np.random.default_rng(seed)
        component = random.choice(len(self.weights), size=n, p=self.weights)
        noise = random.standard_normal((n, self.means.shape[1]))
        codes = self.means[component]
        for k in range(len(self.weights)):  # one product a component: (n, D, D) would not fit in memory
            codes[component == k] += temperature * noise[component == k] @ self.roots[k].T
        parts = np.split(codes, np.cumsum([math.prod(shape) for shape in self.shapes.values()])[:-1], axis=1)
        return {
            name: torch.from_numpy(part.astype(np.float32).reshape(n, *shape)).to(device)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def fit_prior(
    kind: Literal["aggregate", "gmm"], latents: Latents, seed: int, components: Sequence[int] = COMPONENTS
) -> Mixture:
    """One Gaussian or a mixture for (n >= 2, *shape) samples by level; a held-out fifth decides on their number."""
    codes: Codes = torch.cat([value.flatten(1).cpu().double() for value in latents.values()], dim=1).numpy()
    shapes = {name: tuple(value.shape[1:]) for name, value in latents.items()}
    covariance = np.atleast_2d(np.cov(codes, rowvar=False))
    best = Mixture(np.ones(1), codes.mean(0, keepdims=True), _roots(covariance[None]), shapes)
    if kind == "aggregate":
        return best
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    n, dims = codes.shape
    order = np.random.default_rng(seed).permutation(n)
    held, kept = codes[order[: n // 5]], codes[order[n // 5 :]]
    best_score = -np.inf
    for count in (1, *components):
        if count * (dims + 1) > len(kept) or not len(held):
            break
        fitted = GaussianMixture(count, covariance_type="full", random_state=seed)
        with warnings.catch_warnings():
            # not converged it is still a density, and the held-out likelihood decides
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted.fit(kept)
        score = float(fitted.score(held))
        if score <= best_score:
            break
        best_score = score
        if count > 1:
            weights = fitted.weights_ / fitted.weights_.sum()
            best = Mixture(weights, fitted.means_, _roots(fitted.covariances_), shapes)
    return best


def _roots(covariances: NDArray[np.float64]) -> NDArray[np.float64]:
    """A with A A^T = covariance, also for a dimension without variance, where Cholesky fails."""
    values, vectors = np.linalg.eigh(covariances)
    roots: NDArray[np.float64] = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    return roots


def draw_prior(
    model: VAE,
    n: int,
    temperature: float = 1.0,
    conditions: Tensor | None = None,
    noise: Latents | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Tensor]:
    """(n, *shape) draws by level from the model's own prior; `conditions` (n, A) int64, `noise` is drawn if None."""
    parts = []
    with torch.inference_mode():
        noise = model.noise(n) if noise is None else noise
        for start in range(0, n, batch_size):
            some = {name: value[start : start + batch_size] for name, value in noise.items()}
            given = None if conditions is None else conditions[start : start + batch_size]
            parts.append(model.prior(min(batch_size, n - start), temperature, given, some))
    return {name: torch.cat([part[name] for part in parts]) for name in noise}


def argmax_decode(
    model: VAE,
    latents: Latents,
    conditions: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
    constrained: bool = True,
) -> Tensor:
    """The most likely classes (n, *positions) int64 on the CPU, subject to the conditions (n, A) if `constrained`."""
    decoded = []
    with torch.inference_mode():
        for start in range(0, len(next(iter(latents.values()))), batch_size):
            some = {name: value[start : start + batch_size] for name, value in latents.items()}
            given = None if conditions is None else conditions[start : start + batch_size]
            logits = model.decode(some, given)
            decoded.append((model.argmax_decode(logits, given) if constrained else logits.argmax(1)).to(torch.int16))
    return torch.cat(decoded).cpu().long()
