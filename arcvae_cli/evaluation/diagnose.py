"""The verdict on any VAE with a diagonal Gaussian posterior, from the means and log variances of some examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
LOW, HIGH = -12.0, 4.0  # of a log variance, as models here bound it
RESOLVED = -30.0  # logvar, or a std of 3e-7, at which float64 still holds the density of another example
OFF_PRIOR = 0.5  # nats of a dimension's aggregate posterior: as much as a shift by one standard deviation


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found. Printed, or shown by a notebook, it is a table with a bar for each dimension."""

    report: dict[str, Any]

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The targets: name, value, target, ok, and a remedy where it is missed."""
        return list(self.report["verdict"]["findings"])

    @property
    def ok(self) -> bool:
        return bool(self.report["verdict"]["ok"])

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, in nats, and the verdict, for JSON."""
        return self.report

    def __repr__(self) -> str:
        from arcvae_cli.render.diagnosis import lines

        return "\n".join(line.plain.rstrip() for line in lines(self.report, 100))


def diagnose(
    mean: Any,
    logvar: Any,
    *,
    reconstruction: Any = None,
    beta: float | None = None,
    free_bits: float | None = None,
    reduction: str = "sum",
    positions: float | None = None,
    kl_reduction: str = "sum",
) -> Diagnosis:
    """Judge a VAE by its posteriors N(mean, exp logvar) of N examples: (N, D) arrays or tensors, N at least 2.

    `reconstruction`: -log p(x|z) in nats, (N,) or its mean. `beta`: weight of the KL in the loss. `free_bits`: nats of
    each dimension. `reduction`, `kl_reduction`: whether the loss has a sum or a mean over `positions` (pixels, tokens),
    and over dimensions. InputError for values that are not finite and for other shapes.
    """
    mean = array("mean", mean)
    if mean.dim() != 2 or len(mean) < 2 or not mean.shape[1]:
        what = f"mean: shape {tuple(mean.shape)}, not (examples, dimensions)"
        raise InputError(what, "give two examples or more, with maps flattened")
    rows, (count, size) = tuple(mean.shape), mean.shape
    logvar = array("logvar", logvar, rows)
    numbers = {"beta": beta, "free_bits": free_bits, "positions": positions}
    weight, floor, cells = (0.0 if one is None else array(name, one, ()).item() for name, one in numbers.items())
    if min(weight, floor, cells) < 0 or (positions is not None and cells < 1):
        raise InputError("beta, free_bits or positions: out of range", "use 0 or more, and a position or more")
    if not {str(reduction), str(kl_reduction)} <= {"sum", "mean"}:
        raise InputError(f"reduction {reduction!r}, kl_reduction {kl_reduction!r}: unknown", "use sum or mean")
    if beta is not None and reduction == "mean" and positions is None:
        raise InputError("positions: missing, while reduction is mean", "give the count that the mean is taken over")

    generator = torch.Generator().manual_seed(0)
    drawn = mean + (0.5 * logvar).exp() * torch.randn(rows, generator=generator, dtype=torch.double)
    kl = array("KL", kl_to_standard(mean, logvar))  # which may overflow
    order = torch.randperm(count, generator=generator)  # a file may hold one class after the other
    parts = (part[order] for part in (mean, logvar.clamp(min=RESOLVED), drawn, kl))
    report = {"examples": count, **measures(Level("z", *parts), EXAMPLES), "free_bits": floor}
    groups, total = kl.mean(dim=0), sum(report["kl_nats"])
    marks = {
        "dead": groups <= ACTIVE_KL,
        "narrow": (0.5 * logvar).exp().mean(dim=0) < NARROW,
        "floor": ((groups - floor).abs() <= FLOOR_TOLERANCE * floor) & (floor > 0),
    }
    report["dims"] = {name: mark.nonzero().flatten().tolist() for name, mark in marks.items()}
    outside = int(((logvar < LOW) | (logvar > HIGH)).sum())
    report["logvar"] = {"min": logvar.min().item(), "max": logvar.max().item(), "outside": outside}
    # a Gaussian of its moments is nearer to the prior; E KL(q(z|x) || p) = I(x; z) + KL(q(z) || p)
    variance = logvar.exp().mean(dim=0) + mean.var(dim=0, correction=0)
    off = kl_to_standard(mean.mean(dim=0), variance.clamp(min=1e-300).log())
    least, most = off.sum().item(), total - report["mutual_information"]["nats"]
    report["aggregate"] = {"at_least_nats": least, "at_most_nats": max(least, most), "kl_nats": off.tolist()}
    report |= {"total_kl_nats": total, "elbo": None, "beta": None}
    if reconstruction is not None:
        nats = array("reconstruction", reconstruction, rows[:1], ()).mean().item()
        bits = (-nats - total) / (cells * math.log(2.0)) if positions is not None else None
        report["elbo"] = {"reconstruction_nats": nats, "elbo_nats": -nats - total, "elbo_bits": bits}
    if beta is not None:
        scale = (cells if reduction == "mean" else 1.0) / (size if kl_reduction == "mean" else 1.0)
        report["beta"] = {"beta": weight, "elbo_scale": scale, "on_elbo": scale * weight}
    return Diagnosis({**report, "verdict": verdict(report, reduction)})


def verdict(report: dict[str, Any], reduction: str) -> dict[str, Any]:
    """Whether the targets are met, and what to change in the loss or the model where one is missed."""
    size, floor, beta, groups = report["units"], report["free_bits"], report["beta"], report["kl_nats"]
    dead, narrow, held = report["dims"].values()
    live, tells = size - len(dead), report["mutual_information"]["nats"]
    it, heavy = "", False
    if beta is not None:
        it, heavy = f" (it is {beta['beta']:g}, {beta['on_elbo']:.4g} on the ELBO scale)", beta["on_elbo"] > HEAVY_BETA
    more = f"lower beta{it}"
    if heavy:
        more += ", or sum the reconstruction over positions" if reduction == "mean" else ""
        less = more
    else:
        more += " or warm it up from 0" + ("" if floor else "; use free bits of 0.3 nats per dimension")
        less = f"raise beta slowly{it}"
    fewer = f"{more}; use {live} latent dimensions, if the data need no more" if live and not heavy else more
    limit = min(INFORMATION, 0.5 * report["mutual_information"]["ceiling_nats"])
    worst, place = max((value, place) for place, value in enumerate(report["aggregate"]["kl_nats"]))
    fitted = f"{less}; draw samples from a density fitted to the codes"
    bound, values = "bound logvar in the encoder", f"of {size * report['examples']:,}"
    targets: list[Target] = [
        ("dead dimensions, KL <= 0.05 nats", len(dead), "<=", 0, fewer, f"of {size}{listed(dead)}"),
        ("posterior std < 0.01, dimensions", len(narrow), "<=", live // 2, less, f"of {size}{listed(narrow)}"),
        ("logvar outside of -12 to 4", report["logvar"]["outside"], "<=", 0, bound, values),
        ("mutual information", tells, ">", limit, more, "nats"),
        ("aggregate posterior off the prior", worst, "<=", OFF_PRIOR, fitted, f"nats (dimension {place})"),
    ]
    if floor:
        higher = f"raise free bits (they are {floor:g}); clamp the batch mean of a dimension, not each example"
        low, note = (1.0 - FLOOR_TOLERANCE) * floor, f"of {size}{listed(held)}"
        targets.append(("KL at the free-bits floor", min(groups), ">=", low, higher, f"nats (floor {floor:g})"))
        targets.append(("dimensions held by free bits alone", len(held), "<=", size // 2, more, note))
    if beta is not None:
        targets.append(("beta on the ELBO scale", beta["on_elbo"], "<=", HEAVY_BETA, more, "(1 is the ELBO)"))
    if 2 * len(narrow) > live > 0:
        state = f"a deterministic autoencoder: {len(narrow)} of {size} dimensions have nearly no variance"
    elif dead:
        kind = "partial" if live else "posterior"
        state = f"{kind} collapse: {len(dead)} of {size} dimensions are dead (KL <= {ACTIVE_KL:g} nats)"
    elif 2 * len(held) > size:
        state = "collapse, held up by free bits alone"
    elif tells <= INFORMATION:
        state = f"the code tells {max(tells, 0.0):.2f} nats about the data, of a KL of {report['total_kl_nats']:.2f}"
    else:
        state = f"the code is alive: {report['total_kl_nats']:.1f} nats"
    return judge(targets, state)


def listed(dims: Sequence[int]) -> str:
    """The first dimensions of some, after a colon."""
    return ": " * bool(dims) + ", ".join(map(str, dims[:4])) + ", ..." * (len(dims) > 4)


def array(name: str, value: Any, *shapes: tuple[int, ...]) -> Tensor:
    """Finite values in float64, of one of the shapes if any are given. InputError for others."""
    try:
        plain = value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(np.asarray(value, np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: not an array of numbers ({first_line(error)})", "give numbers") from None
    found = plain.double()
    if shapes and tuple(found.shape) not in shapes:
        raise InputError(f"{name}: shape {tuple(found.shape)}", f"give {' or '.join(map(str, shapes))}; () is a number")
    if count := int((~found.isfinite()).sum()):
        what = f"{name}: {count:,} of {found.numel():,} values are NaN or infinite"
        raise InputError(what, "use an earlier epoch, and bound logvar")
    return found
