"""How often samples are what they were asked to be, beside samples that were asked for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from arcvae_cli.conditions import Values, attributes, encode, obeys, parse
from arcvae_cli.evaluation.information import evaluating
from arcvae_cli.evaluation.priors import draw_prior, most_likely
from arcvae_cli.evaluation.samples import worth_counting
from arcvae_cli.models.base import VAE

Grids = NDArray[np.uint8]

JUDGED = ("colours=1", "colours=2", "colours=3", "colours=4", "symmetry=lr", "symmetry=ud", "symmetry=both")
"""What the verdict rests on."""

ASKED = (
    *JUDGED,
    "colours=3 symmetry=lr",
    *("height=5", "height=10", "width=5", "width=10"),
    *("objects=1", "objects=3", "objects=10"),
    "red=yes",
)
"""What an evaluation asks for, one after the other; what stands together is asked for together."""


@dataclass(frozen=True, slots=True)
class Obedience:
    """Shares of grids that are as `asked`: of samples that were asked, of samples that were not, and of the data.

    `obeying` and `baseline_obeying` are of all samples. `counted` samples are neither blank nor a repetition of an
    earlier one, `counted_obeying` and `baseline_counted_obeying` are shares of those, None where there is none: a model
    that always draws the same grid obeys, and is no use.
    """

    asked: str
    obeying: float
    counted: int
    counted_obeying: float | None
    baseline_obeying: float
    baseline_counted_obeying: float | None
    data: float


@dataclass(frozen=True, slots=True)
class Adherence:
    """`samples` were drawn for each thing asked, and as many without a condition, of which `baseline_counted` count."""

    samples: int
    baseline_counted: int
    rows: tuple[Obedience, ...]


def adherence(model: VAE, training: Grids, samples: int, seed: int, asked: Sequence[str] = ASKED) -> Adherence:
    """Ask a conditional model for one thing after the other; `training` grids tell how common each is.

    The cost is that of decoding `samples` grids for each, and once more for the baseline.
    """
    data = attributes(training)
    found = []
    with evaluating(model, seed):
        baseline, kept = _draw(model, samples, None)
        for text in asked:
            given = parse(text.split())
            values, counted = _draw(model, samples, encode(given, samples))
            obeying, free = obeys(values, given), obeys(baseline, given)
            found.append(
                Obedience(
                    asked=text,
                    obeying=float(obeying.mean()),
                    counted=int(counted.sum()),
                    counted_obeying=_share(obeying[counted]),
                    baseline_obeying=float(free.mean()),
                    baseline_counted_obeying=_share(free[kept]),
                    data=float(obeys(data, given).mean()),
                )
            )
    return Adherence(samples, int(kept.sum()), tuple(found))


def _draw(model: VAE, count: int, conditions: Values | None) -> tuple[Values, NDArray[np.bool_]]:
    """The attributes (n, A) of draws from the prior, and which of them count."""
    device = next(model.parameters()).device
    given = None if conditions is None else torch.from_numpy(conditions).to(device)
    drawn = most_likely(model, draw_prior(model, count, conditions=given), given).numpy().astype(np.uint8)
    return attributes(drawn), worth_counting(drawn)


def _share(obeying: NDArray[np.bool_]) -> float | None:
    return float(obeying.mean()) if len(obeying) else None
