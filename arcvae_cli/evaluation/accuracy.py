"""Condition accuracy: how often samples satisfy a condition, beside samples drawn without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arcvae_cli.conditions import Values, attributes, encode, parse, satisfies
from arcvae_cli.evaluation.information import eval_mode
from arcvae_cli.evaluation.priors import argmax_decode, draw_prior
from arcvae_cli.evaluation.samples import first_of_each
from arcvae_cli.models.base import VAE

# what the verdict rests on, and what a whole evaluation asks for: what stands together is one condition
JUDGED = ("colours=1", "colours=2", "colours=3", "colours=4", "symmetry=lr", "symmetry=ud", "symmetry=both")
ASKED = (
    *JUDGED,
    "colours=3 symmetry=lr",
    *("height=5", "height=10", "width=5", "width=10"),
    *("objects=1", "objects=3", "objects=10"),
    "red=yes",
)


def condition_accuracy(
    model: VAE, training: NDArray[np.uint8], samples: int, seed: int, asked: Sequence[str] = ASKED
) -> dict[str, Any]:
    """Draw `samples` under each condition, and as many without one.

    Under `rows`, shares that satisfy the condition `asked`: of all samples (`obeying`), of samples without condition
    (`baseline_obeying`), of the `training` grids (`data`). `counted` samples are neither blank nor a repetition, and
    `*counted_obeying` are shares of those, None if there is none; `unaided_obeying` if every cell has its own argmax.
    """
    data = attributes(training)
    rows = []
    with eval_mode(model, seed):
        (baseline, kept), _ = _draw(model, samples, None)
        for text in asked:
            given = parse(text.split())
            (values, counted), (unaided, counted_unaided) = _draw(model, samples, encode(given, samples))
            satisfied, free = satisfies(values, given), satisfies(baseline, given)
            rows.append(
                {
                    "asked": text,
                    "obeying": float(satisfied.mean()),
                    "counted": int(counted.sum()),
                    "counted_obeying": _share(satisfied[counted]),
                    "unaided_obeying": _share(satisfies(unaided, given)[counted_unaided]),
                    "baseline_obeying": float(free.mean()),
                    "baseline_counted_obeying": _share(free[kept]),
                    "data": float(satisfies(data, given).mean()),
                }
            )
    return {"samples": samples, "baseline_counted": int(kept.sum()), "rows": rows}


def _draw(model: VAE, count: int, conditions: Values | None) -> list[tuple[Values, NDArray[np.bool_]]]:
    """Attributes (n, A) of draws from the prior, and which of them count: constrained to the conditions, and not."""
    given = None if conditions is None else torch.from_numpy(conditions).to(next(model.parameters()).device)
    latents = draw_prior(model, count, conditions=given)
    drawn = [argmax_decode(model, latents, given, constrained=one).numpy().astype(np.uint8) for one in (True, False)]
    return [(attributes(grids), first_of_each(grids)) for grids in drawn]


def _share(satisfied: NDArray[np.bool_]) -> float | None:
    return float(satisfied.mean()) if len(satisfied) else None
