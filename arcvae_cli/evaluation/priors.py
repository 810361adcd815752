"""Priors fitted to the codes of the training split, for models whose codes do not fill N(0, I).

Where the posteriors together miss the prior, a draw from the prior is a code that the decoder was never trained on. A
density fitted afterwards to the aggregate posterior q(z) = mean of q(z|x) over x shows what the decoder can do (Ghosh
et al. 2020, "From Variational to Deterministic Autoencoders", section 4). Nothing it draws is a sample of the model
as trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli import gaussians
from arcvae_cli.conditions import attributes, obeys, written
from arcvae_cli.conditions import encode as encode_conditions
from arcvae_cli.data.corpus import Corpus, DerivationCorpus, GridCorpus
from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.information import (
    BATCH_SIZE,
    batch_size,
    batches,
    choose,
    evaluating,
    longest_first,
    samples_of,
)
from arcvae_cli.graphs import Graphed
from arcvae_cli.models.base import Batch, Level
from arcvae_cli.models.grammar import LEVEL
from arcvae_cli.models.pushdown import Derived
from arcvae_cli.step import mix

if TYPE_CHECKING:
    from arcvae_cli.models.base import VAE
    from arcvae_cli.models.grammar import GrammarVAE

Codes = NDArray[np.float64]
FittedKind = Literal["aggregate", "gmm"]

EXAMPLES = 20_000
"""Most examples that a prior is fitted to: a covariance of 300 dimensions is known to 1 % by then."""

NOTHING: Mapping[str, int] = MappingProxyType({})
"""No condition."""

GRAPHED_FROM = 5
"""Passes of one size beyond which they are recorded as a graph: the recording costs as much as so many."""

COMPONENTS = (2, 4, 8, 16, 32)
"""Numbers of mixture components that are tried."""


@dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians over codes of D dimensions; with K = 1, a Gaussian.

    `weights` (K,), `means` (K, D), and `roots` (K, D, D), the matrix A of each covariance A A^T.
    """

    weights: NDArray[np.float64]
    means: Codes
    roots: NDArray[np.float64]

    def sample(self, n: int, temperature: float, random: np.random.Generator) -> Codes:
        """`n` codes (n, D). `temperature` multiplies the standard deviations of the components; their means stay."""
        component = random.choice(len(self.weights), size=n, p=self.weights)
        noise = random.standard_normal((n, self.means.shape[1]))
        codes = self.means[component]
        for k in range(len(self.weights)):  # one product a component: (n, D, D) would not fit in memory
            codes[component == k] += temperature * noise[component == k] @ self.roots[k].T
        return codes


def fit_gaussian(codes: Codes) -> Mixture:
    """The Gaussian with the mean and the full covariance of codes (n, D), n of at least 2."""
    covariance = np.atleast_2d(np.cov(codes, rowvar=False))
    return Mixture(np.ones(1), codes.mean(0, keepdims=True), _roots(covariance[None]))


def fit_mixture(codes: Codes, seed: int, components: Sequence[int] = COMPONENTS) -> Mixture:
    """A mixture of Gaussians with full covariances (scikit-learn, EM) over codes (n, D).

    The number of components is the one with the highest likelihood on a fifth of the codes that is held out, one
    component included. The search ends at the first number that does worse than the best before it.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    n, dims = codes.shape
    order = np.random.default_rng(seed).permutation(n)
    held, kept = codes[order[: n // 5]], codes[order[n // 5 :]]
    best, best_score = fit_gaussian(codes), -np.inf
    for count in (1, *components):
        if count * (dims + 1) > len(kept) or not len(held):
            break
        fitted = GaussianMixture(count, covariance_type="full", random_state=seed)
        with warnings.catch_warnings():
            # Stopped at its limit of steps it is still a density, and the held-out likelihood judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted.fit(kept)
        score = float(fitted.score(held))
        if score <= best_score:
            break
        best_score = score
        if count > 1:
            best = Mixture(fitted.weights_ / fitted.weights_.sum(), fitted.means_, _roots(fitted.covariances_))
    return best


def _roots(covariances: NDArray[np.float64]) -> NDArray[np.float64]:
    """A with A A^T = covariance, also where a dimension has no variance, which Cholesky would refuse."""
    values, vectors = np.linalg.eigh(covariances)
    roots: NDArray[np.float64] = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    return roots


@dataclass(frozen=True)
class FittedPrior:
    """A density over all levels of a model at once, and the shapes that make latents of its codes."""

    density: Mixture
    shapes: Mapping[str, tuple[int, ...]]
    examples: int

    @property
    def components(self) -> int:
        """How many Gaussians it mixes."""
        return len(self.density.weights)

    def sample(self, n: int, temperature: float, seed: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """`n` draws as latents by level, float32. The same for a seed on every device."""
        codes = self.density.sample(n, temperature, np.random.default_rng(seed))
        return unflatten(codes, self.shapes, device)


def fit_prior(
    kind: FittedKind,
    model: VAE,
    corpus: Corpus,
    seed: int,
    split: str = "train",
    given: Mapping[str, int] = NOTHING,
) -> FittedPrior:
    """The prior `aggregate` (one Gaussian) or `gmm` (a mixture), fitted to posterior samples of a split.

    With conditions `given` it is fitted to those grids of the split that obey them, encoded under them.
    """
    codes, shapes = posterior_codes(model, corpus, seed, split, given=given)
    if len(codes) < 2:
        like_that = f" that obey {written(given)}" if given else ""
        raise InputError(
            f"--prior {kind}: {corpus.name} has {len(codes)} {split} examples{like_that}, too few to fit a density to",
            "use --prior standard, or more data",
        )
    density = fit_gaussian(codes) if kind == "aggregate" else fit_mixture(codes, seed)
    return FittedPrior(density, shapes, len(codes))


def posterior_codes(
    model: VAE,
    corpus: Corpus,
    seed: int,
    split: str = "train",
    limit: int = EXAMPLES,
    given: Mapping[str, int] = NOTHING,
) -> tuple[Codes, dict[str, tuple[int, ...]]]:
    """One posterior sample of each of at most `limit` examples of a split: codes (n, D), and each level's shape.

    Samples, not means: the spread of each posterior belongs to the aggregate, and in a hierarchy the lower posterior
    depends on the sample above it.
    """
    chosen = choose(corpus, split, None, seed)
    if given:
        assert isinstance(corpus, GridCorpus), "conditions are attributes of grids"
        obeying = obeys(attributes(corpus.grids(split).cpu().numpy()), given)
        chosen = chosen[torch.from_numpy(obeying)[chosen]]
    if isinstance(corpus, DerivationCorpus):
        codes = encode(model, corpus, split, chosen[:limit], seed).sample if len(chosen) else torch.empty(0, 0)
        return flatten({LEVEL: codes}), model.level_shapes
    found: list[dict[str, Tensor]] = []
    with evaluating(model, seed) as device:
        for batch in batches(corpus, split, chosen[:limit], device):
            asked = torch.from_numpy(encode_conditions(given, len(batch.x))).to(device) if given else None
            found.append(samples_of(model.encode(Batch(batch.x, batch.valid, asked))))
    latents = {name: torch.cat([part[name] for part in found]) for name in model.level_shapes if found}
    return flatten(latents) if latents else np.empty((0, 0)), model.level_shapes


def encode(model: VAE, corpus: DerivationCorpus, split: str, indices: Tensor, seed: int) -> Level:
    """The posteriors of the derivations at `indices` (n,), and one sample of each: its noise knows of no batches."""
    order = longest_first(corpus, split, indices)
    found: list[Level] = []
    with evaluating(model, seed) as device:
        for batch in batches(corpus, split, indices[order], device, batch_size(corpus.length, device)):
            found += model.encode(batch, noise=False)
        back = order.argsort().to(device)
        mean, logvar, kl = (
            torch.cat([getattr(level, name) for level in found])[back] for name in ("mean", "logvar", "kl")
        )
        narrow = [level.sampled_kl for level in found if level.sampled_kl is not None]
        sampled_kl = torch.cat(narrow)[back] if narrow else None
        return Level(LEVEL, mean, logvar, gaussians.sample(mean, logvar), kl, sampled_kl=sampled_kl)


def flatten(latents: Mapping[str, Tensor]) -> Codes:
    """Latents by level, each (n, *shape), as codes (n, D)."""
    codes: Codes = torch.cat([value.flatten(1).cpu().double() for value in latents.values()], dim=1).numpy()
    return codes


def unflatten(
    codes: Codes, shapes: Mapping[str, tuple[int, ...]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """What `flatten` had, float32 on the device."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    parts = np.split(codes, np.cumsum(sizes)[:-1], axis=1)
    return {
        name: torch.from_numpy(part.astype(np.float32).reshape(len(codes), *shape)).to(device)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def draw_prior(
    model: VAE,
    n: int,
    temperature: float = 1.0,
    conditions: Tensor | None = None,
    noise: Mapping[str, Tensor] | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Tensor]:
    """`n` draws by level from the model's own prior, in batches: a learned prior is a network.

    `conditions`: (n, A) int64, or None. `noise`: (n, *shape) by level, fresh where None.
    """
    parts = []
    with torch.inference_mode():
        noise = model.noise(n) if noise is None else noise
        for start in range(0, n, batch_size):
            some = {name: value[start : start + batch_size] for name, value in noise.items()}
            asked = None if conditions is None else conditions[start : start + batch_size]
            parts.append(model.prior(min(batch_size, n - start), temperature, asked, some))
    return {name: torch.cat([part[name] for part in parts]) for name in noise}


def most_likely(
    model: VAE,
    latents: Mapping[str, Tensor],
    conditions: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
    obliged: bool = True,
) -> Tensor:
    """The most likely classes (n, *positions) int64 on the CPU, of those that are as the conditions say.

    `latents` and `conditions` (n, A), if any, lie on the model's device. Unless `obliged`, each position has the
    likeliest class by itself, whatever was asked.
    """
    decoded = []
    with torch.inference_mode():
        for start in range(0, len(next(iter(latents.values()))), batch_size):
            some = {name: value[start : start + batch_size] for name, value in latents.items()}
            asked = None if conditions is None else conditions[start : start + batch_size]
            logits = model.decode(some, asked)
            decoded.append((model.likeliest(logits, asked) if obliged else logits.argmax(1)).to(torch.int16))
    return torch.cat(decoded).cpu().long()


def derive(
    model: GrammarVAE,
    latents: Mapping[str, Tensor],
    drawn: bool,
    budget: bool = True,
    seed: int = 0,
) -> Derived:
    """Derivations (n, T) of latents on the model's device, on the CPU: `drawn` from p(x|z), or else the likeliest.

    With `budget` all are complete, see `Pushdown.derive`. ValueError for a model without right-hand sides.
    """
    if (pushdown := model.pushdown) is None:
        raise ValueError("ids and masks alone do not say what a rule rewrites its symbol into: nothing can be derived")

    def made(logits: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        found = pushdown.derive(logits, noise, budget)
        return found.ids.to(torch.int16), found.complete

    ids, complete = through_rules(model, latents, made, seed, drawn)
    return Derived(ids.long(), complete)


def through_rules(
    model: GrammarVAE,
    latents: Mapping[str, Tensor],
    made: Callable[..., tuple[Tensor, ...]],
    seed: int,
    drawn: bool = True,
) -> tuple[Tensor, ...]:
    """What is `made` of the logits (B, P, T) of all latents and, if `drawn`, of noise for their rules (B, T, K).

    `made` takes and gives tensors of as many rows; what is returned has all rows, on the CPU. On CUDA it is recorded
    where there is much to do, and may not ask the device for anything. The noise is drawn for as many codes as the CPU
    decodes at once, however many the device does.
    """
    assert model.pushdown is not None, "nothing can be derived"
    codes, length = latents[LEVEL], model.structure.length
    block = batch_size(length)
    results: list[tuple[Tensor, ...]] = []
    with evaluating(model, mix(seed, "rules")) as device:  # a stream of its own: the seed's has drawn the latents
        size = max(1, batch_size(length, device) // block) * block
        graphed = Graphed(made, device) if len(codes) > GRAPHED_FROM * size else None
        for part in torch.split(codes, size):
            inputs = [model.decode({LEVEL: part})]
            if drawn:
                counts = [min(block, len(part) - start) for start in range(0, len(part), block)]
                inputs.append(torch.cat([model.pushdown.noise(count) for count in counts]))
            if graphed is None:
                results.append(made(*inputs))
            else:  # one size for all, so that one graph serves
                filled = [torch.cat([some, some[:1].expand(size - len(part), -1, -1)]) for some in inputs]
                results.append(tuple(some[: len(part)] for some in graphed(*filled)))
        return tuple(torch.cat(some).cpu() for some in zip(*results, strict=True))
