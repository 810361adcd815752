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
    that always draws the same grid obeys, and is no use. `unaided_obeying` is the share of such samples that obey if
    every cell has its likeliest colour by itself, instead of the likeliest grid that has the extent and the colours.
    """

    asked: str
    obeying: float
    counted: int
    counted_obeying: float | None
    unaided_obeying: float | None
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
        (baseline, kept), _ = _draw(model, samples, None)
        for text in asked:
            given = parse(text.split())
            (values, counted), (unaided, worth) = _draw(model, samples, encode(given, samples))
            obeying, free = obeys(values, given), obeys(baseline, given)
            found.append(
                Obedience(
                    asked=text,
                    obeying=float(obeying.mean()),
                    counted=int(counted.sum()),
                    counted_obeying=_share(obeying[counted]),
                    unaided_obeying=_share(obeys(unaided, given)[worth]),
                    baseline_obeying=float(free.mean()),
                    baseline_counted_obeying=_share(free[kept]),
                    data=float(obeys(data, given).mean()),
                )
            )
    return Adherence(samples, int(kept.sum()), tuple(found))


Drawn = tuple[Values, NDArray[np.bool_]]


def _draw(model: VAE, count: int, conditions: Values | None) -> tuple[Drawn, Drawn]:
    """The attributes (n, A) of draws from the prior, and which of them count: as they are asked for, and unaided."""
    device = next(model.parameters()).device
    given = None if conditions is None else torch.from_numpy(conditions).to(device)
    latents = draw_prior(model, count, conditions=given)
    found = []
    for obliged in (True, False):
        drawn = most_likely(model, latents, given, obliged=obliged).numpy().astype(np.uint8)
        found.append((attributes(drawn), worth_counting(drawn)))
    return found[0], found[1]


def _share(obeying: NDArray[np.bool_]) -> float | None:
    return float(obeying.mean()) if len(obeying) else None
