"""Priors fitted to the aggregate posterior (Ghosh et al. 2020, section 4), and draws from a prior."""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.evaluation.information import BATCH_SIZE
from arcvae_cli.models.base import VAE, Latents

Floats = NDArray[np.float64]
EXAMPLES = 20_000  # most that a prior is fitted to: they determine a covariance of 300 dimensions to 1 %
COMPONENTS = (1, 2, 4, 8, 16, 32)  # of a mixture, that are tried


class Mixture(NamedTuple):
    """K Gaussians over all levels: weights (K,), means (K, D), covariances (K, D, D)."""

    weights: Floats
    means: Floats
    covariances: Floats
    shapes: Mapping[str, tuple[int, ...]]

    def sample(self, n: int, temperature: float, seed: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """`n` draws by level, float32, the same on every device; `temperature` multiplies standard deviations."""
        random = np.random.default_rng(seed)
        component = random.choice(len(self.weights), size=n, p=self.weights)
        noise, codes = random.standard_normal((n, self.means.shape[1])), self.means[component]
        # A with A A^T = covariance, also for a dimension without variance, where Cholesky fails
        values, vectors = np.linalg.eigh(self.covariances)
        roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
        for k, root in enumerate(roots):  # one product a component: (n, D, D) would not fit in memory
            codes[component == k] += temperature * noise[component == k] @ root.T
        parts = np.split(codes, np.cumsum([math.prod(shape) for shape in self.shapes.values()])[:-1], axis=1)
        return {
            name: torch.from_numpy(part.astype(np.float32).reshape(n, *shape)).to(device)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def fit_prior(kind: Literal["aggregate", "gmm"], latents: Latents, seed: int) -> Mixture:
    """One Gaussian or a mixture for (n >= 2, *shape) samples by level; a held-out fifth decides on their number."""
    codes: Floats = torch.cat([value.flatten(1).cpu().double() for value in latents.values()], dim=1).numpy()
    shapes = {name: tuple(value.shape[1:]) for name, value in latents.items()}
    best = Mixture(np.ones(1), codes.mean(0, keepdims=True), np.atleast_2d(np.cov(codes, rowvar=False))[None], shapes)
    if kind == "aggregate":
        return best
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    n, dims = codes.shape
    held, kept = np.split(codes[np.random.default_rng(seed).permutation(n)], [n // 5])
    best_score = -np.inf
    for count in COMPONENTS:
        if count * (dims + 1) > len(kept) or not len(held):
            break
        fitted = GaussianMixture(count, covariance_type="full", random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # still a density
            score = float(fitted.fit(kept).score(held))
        if score <= best_score:
            break
        best_score = score
        if count > 1:
            best = Mixture(fitted.weights_ / fitted.weights_.sum(), fitted.means_, fitted.covariances_, shapes)
    return best


def chunks(latents: Latents, conditions: Tensor | None) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
    """Latents (n, *shape) by level and conditions (n, A) in batches."""
    for start in range(0, len(next(iter(latents.values()))), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        yield {name: value[rows] for name, value in latents.items()}, None if conditions is None else conditions[rows]


def draw_prior(model: VAE, n: int, temperature: float = 1.0, conditions: Tensor | None = None) -> dict[str, Tensor]:
    """(n, *shape) draws by level from the model's own prior, given conditions (n, A) int64."""
    with torch.inference_mode():
        drawn = [model.prior(part, temperature, given) for part, given in chunks(model.noise(n), conditions)]
    return {name: torch.cat([part[name] for part in drawn]) for name in drawn[0]}


def generate(model: VAE, latents: Latents, conditions: Tensor | None = None, **how: bool) -> Tensor:
    """Classes (n, *positions) int64 on the CPU, of conditions (n, A); `how`: as of the model's `generate`."""
    with torch.inference_mode():
        parts = [model.generate(part, given, **how).to(torch.int16) for part, given in chunks(latents, conditions)]
    return torch.cat(parts).cpu().long()
