"""The verdict on any VAE with a diagonal Gaussian posterior, from the means and log variances of some examples."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arcvae_cli.errors import InputError, first_line
from arcvae_cli.evaluation.information import measures
from arcvae_cli.evaluation.verdict import FLOOR_TOLERANCE, HEAVY_BETA, Target, judge
from arcvae_cli.gaussians import kl_to_standard
from arcvae_cli.models.base import Level
from arcvae_cli.objective import ACTIVE_KL

EXAMPLES = 10_000  # of the mutual information: 10^8 densities, and a ceiling of 9.2 nats
INFORMATION = 1.0  # nats that a code should carry
NARROW = 0.01  # of the prior's standard deviation: a narrower posterior is that of a deterministic autoencoder
RESOLVED = -30.0  # logvar, or a std of 3e-7, at which float64 still holds the density of another example
OFF_PRIOR = 0.5  # nats of a dimension's aggregate posterior: as much as a shift by one standard deviation


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found. Printed, or shown by a notebook, it is a table with a bar for each dimension.

    `report`: everything measured, in nats, for JSON; its `verdict` has the targets with remedies as `findings`.
    """

    report: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether every target is met."""
        return bool(self.report["verdict"]["ok"])

    def __repr__(self) -> str:
        from arcvae_cli.render.diagnosis import printed, show

        return printed(partial(show, self.report), 100)


def diagnose(
    mean: Any,
    logvar: Any,
    *,
    beta: float | None = None,
    free_bits: float = 0.0,
    reduction: str = "sum",
    positions: float | None = None,
    kl_reduction: str = "sum",
) -> Diagnosis:
    """Judge a VAE by its posteriors N(mean, exp logvar) of N examples: (N, D) arrays or tensors, N at least 2.

    `beta`: weight of the KL in the loss. `free_bits`: nats of each dimension. `reduction`, `kl_reduction`: whether the
    loss has a sum or a mean over `positions` (pixels, tokens), and over dimensions. InputError for values that are not
    finite and for other shapes.
    """
    mean, logvar = array("mean", mean), array("logvar", logvar)
    if mean.dim() != 2 or len(mean) < 2 or not mean.shape[1] or mean.shape != logvar.shape:
        what = f"mean {tuple(mean.shape)}, logvar {tuple(logvar.shape)}: not both (examples, dimensions)"
        raise InputError(what, "give two examples or more, with maps flattened")
    numbers = {"beta": beta, "free_bits": free_bits, "positions": positions}
    if wrong := [name for name, value in numbers.items() if value is not None and not 0 <= value < math.inf]:
        raise InputError(f"{wrong[0]} {numbers[wrong[0]]}: out of range", "use 0 or more")
    if not {reduction, kl_reduction} <= {"sum", "mean"}:
        raise InputError(f"reduction {reduction!r}, kl_reduction {kl_reduction!r}: unknown", "use sum or mean")
    if beta is not None and reduction == "mean" and not positions:
        raise InputError("positions: missing, while reduction is mean", "give the count that the mean is taken over")

    generator = torch.Generator().manual_seed(0)
    drawn = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator, dtype=torch.double)
    kl = array("KL", kl_to_standard(mean, logvar))  # which may overflow
    order = torch.randperm(len(mean), generator=generator)  # a file may hold one class after the other
    parts = (part[order] for part in (mean, logvar.clamp(min=RESOLVED), drawn, kl))
    report = {"examples": len(mean), **measures(Level("z", *parts), EXAMPLES), "free_bits": free_bits}
    groups = kl.mean(dim=0)
    marks = {
        "dead": groups <= ACTIVE_KL,
        "narrow": (0.5 * logvar).exp().mean(dim=0) < NARROW,
        "floor": ((groups - free_bits).abs() <= FLOOR_TOLERANCE * free_bits) & (free_bits > 0),
    }
    report["dims"] = {name: mark.nonzero().flatten().tolist() for name, mark in marks.items()}
    # a Gaussian of its moments is nearer to the prior
    variance = logvar.exp().mean(dim=0) + mean.var(dim=0, correction=0)
    report["aggregate_kl_nats"] = kl_to_standard(mean.mean(dim=0), variance.clamp(min=1e-300).log()).tolist()
    report |= {"total_kl_nats": sum(report["kl_nats"]), "beta": None}
    if beta is not None:
        scale = ((positions or 1.0) if reduction == "mean" else 1.0) / (mean.shape[1] if kl_reduction == "mean" else 1)
        report["beta"] = {"beta": float(beta), "elbo_scale": scale, "on_elbo": scale * float(beta)}
    return Diagnosis({**report, "verdict": verdict(report, reduction)})


def verdict(report: dict[str, Any], reduction: str) -> dict[str, Any]:
    """Whether the targets are met, and what to change in the loss or the model where one is missed."""
    size, floor, groups, total = report["units"], report["free_bits"], report["kl_nats"], report["total_kl_nats"]
    dead, narrow, held = report["dims"].values()
    live, information, it, heavy = size - len(dead), report["mutual_information"], "", False
    if (beta := report["beta"]) is not None:
        it, heavy = " (it is {beta:g}, {on_elbo:.4g} on the ELBO scale)".format(**beta), beta["on_elbo"] > HEAVY_BETA
    more, less = f"lower beta{it}", f"raise beta slowly{it}"
    if heavy:
        more += ", or sum the reconstruction over positions" if reduction == "mean" else ""
    else:
        more += " or warm it up from 0" + ("" if floor else "; use free bits of 0.3 nats per dimension")
    fewer = f"{more}; use {live} latent dimensions, if the data need no more" if live and not heavy else more
    limit = min(INFORMATION, 0.5 * information["ceiling_nats"])
    worst, place = max((value, place) for place, value in enumerate(report["aggregate_kl_nats"]))
    fitted = f"{less}; draw samples from a density fitted to the codes"
    targets: list[Target] = [
        ("dead dimensions, KL <= 0.05 nats", len(dead), "<=", 0, fewer, f"of {size}"),
        ("posterior std < 0.01, dimensions", len(narrow), "<=", live // 2, less, f"of {size}"),
        ("mutual information", information["nats"], ">", limit, more, "nats"),
        ("aggregate posterior off the prior", worst, "<=", OFF_PRIOR, fitted, f"nats (dimension {place})"),
    ]
    if floor:
        higher = f"raise free bits (they are {floor:g}); clamp the batch mean of a dimension, not each example"
        low, note = (1.0 - FLOOR_TOLERANCE) * floor, f"of {size}"
        targets.append(("KL at the free-bits floor", min(groups), ">=", low, higher, f"nats (floor {floor:g})"))
        targets.append(("dimensions held by free bits alone", len(held), "<=", size // 2, more, note))
    if beta is not None:
        targets.append(("beta on the ELBO scale", beta["on_elbo"], "<=", HEAVY_BETA, more, "(1 is the ELBO)"))
    state = f"the code is alive: {total:.1f} nats"
    if 2 * len(narrow) > live > 0:
        state = f"a deterministic autoencoder: {len(narrow)} of {size} dimensions have nearly no variance"
    elif dead:
        kind = "partial" if live else "posterior"
        state = f"{kind} collapse: {len(dead)} of {size} dimensions are dead (KL <= {ACTIVE_KL:g} nats)"
    elif 2 * len(held) > size:
        state = "collapse, held up by free bits alone"
    elif (nats := information["nats"]) <= INFORMATION:
        state = f"the code tells {max(nats, 0.0):.2f} nats about the data, of a KL of {total:.2f}"
    return judge(targets, state)


def array(name: str, value: Any) -> Tensor:
    """Finite values in float64. InputError for others."""
    try:
        found = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value, np.float64)).detach()
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: not an array of numbers ({first_line(error)})", "give numbers") from None
    found = found.cpu().double()
    if count := int((~found.isfinite()).sum()):
        what = f"{name}: {count:,} of {found.numel():,} values are NaN or infinite"
        raise InputError(what, "use an earlier epoch, and bound logvar")
    return found
