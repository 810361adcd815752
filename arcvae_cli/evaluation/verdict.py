"""Targets, misses and what to do about them, on plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from arcvae_cli.objective import ACTIVE_KL

PIXEL_TARGET = 0.90
NON_BLACK_TARGET = 0.30
FLOOR_TOLERANCE = 0.05
"""Share by which a dimension may lie under the free-bits floor: held on the batch mean, it wavers by a few per cent."""

HELD_MARGIN = 0.10
"""A dimension that lies no further above the free-bits floor than this share carries what free bits force on it."""

BLANK_MARGIN = 0.10
"""Share of blank samples allowed beyond the data's own; real grids are never blank."""

SPECK_MARGIN = 0.25
"""Speck share allowed beyond the data's own: real ARC grids have 0.25, 2 % noise makes it 0.32, all noise 0.91."""

HEAVY_BETA = 4.0
"""ELBO-scale beta from which a mean reduction is named as the cause of a collapse."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What remedies need to know of a run.

    `beta`: the schedule's peak. `elbo_beta`: the same on the ELBO scale, None where there is none. `free_bits`: nats.
    """

    latent_dim: int
    beta: float
    elbo_beta: float | None
    reduction: Literal["sum", "mean"] = "sum"
    kl_reduction: Literal["sum", "mean"] = "sum"
    free_bits: float = 0.0
    free_bits_mode: Literal["per_dim", "per_sample", "total"] = "per_dim"
    strong_body: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What is judged: shares of 1, and nats.

    `kl`: by level, the raw KL of each dimension. `blank_reconstructions`: share of reconstructions without a non-black
    cell. The baselines are `black_pixel` and `pca_pixel` (pixel accuracy) and `pca_non_black`.
    """

    pixel: float
    non_black: float
    black_pixel: float
    pca_pixel: float
    pca_non_black: float
    blank_reconstructions: float
    kl: Mapping[str, Sequence[float]]
    blank_samples: float
    reference_blank: float
    speck: float
    reference_speck: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One target: its value, what it was compared with, and where it is missed what to do."""

    name: str
    value: float
    target: str
    ok: bool
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings, and one line that says in plain words what they come to."""

    ok: bool
    summary: str
    findings: tuple[Finding, ...]


def judge(measured: Measured, setup: Setup) -> Verdict:
    """Compare with the targets."""
    kl = [value for level in measured.kl.values() for value in level]
    dead = sum(value <= ACTIVE_KL for value in kl)
    held = _held(kl, setup)
    sick = dead > 0 or 2 * held > len(kl)
    black = measured.non_black <= NON_BLACK_TARGET
    baseline = max(measured.black_pixel, measured.pca_pixel)
    look, closer = _look_at_decoder(setup), _raise_beta(setup)
    findings = [
        _finding(
            "pixel accuracy",
            measured.pixel,
            f">= {PIXEL_TARGET:.2f}",
            measured.pixel >= PIXEL_TARGET,
            _revive(setup) if sick else _enlarge(setup),
        ),
        _finding(
            "pixel accuracy, baselines",
            measured.pixel,
            f"> {baseline:.4f} ({'PCA' if measured.pca_pixel > measured.black_pixel else 'all black'})",
            measured.pixel > baseline,
            _revive(setup) if sick else f"train longer or on more data; {_enlarge(setup)}",
        ),
        _finding(
            "non-black accuracy",
            measured.non_black,
            f"> {NON_BLACK_TARGET:.2f}",
            not black,
            _revive(setup) if sick else look,
        ),
        _finding("smallest KL of a dimension", min(kl), f"> {ACTIVE_KL:.2f} nats", not dead, _revive(setup)),
    ]
    if setup.free_bits > 0:
        value = sum(kl) if setup.free_bits_mode == "total" else min(kl)
        floor = (1.0 - FLOOR_TOLERANCE) * setup.free_bits
        name = "total KL at the free-bits floor" if setup.free_bits_mode == "total" else "KL at the free-bits floor"
        target = f">= {floor:.4g} nats (floor {setup.free_bits:g})"
        findings.append(_finding(name, value, target, value >= floor, _hold_the_floor(setup)))
        name, target = "dimensions held by free bits alone", f"<= {len(kl) // 2} of {len(kl)}"
        findings.append(_finding(name, held, target, 2 * held <= len(kl), _revive(setup)))
    blank = measured.reference_blank + BLANK_MARGIN
    speck = measured.reference_speck + SPECK_MARGIN
    findings += [
        _finding(
            "blank samples",
            measured.blank_samples,
            f"<= {blank:.2f} (data {measured.reference_blank:.2f})",
            measured.blank_samples <= blank,
            _revive(setup) if sick else look if black else closer,
        ),
        _finding(
            "specks among samples",
            measured.speck,
            f"<= {speck:.2f} (data {measured.reference_speck:.2f})",
            measured.speck <= speck,
            _revive(setup) if sick else closer,
        ),
    ]
    ok = all(finding.ok for finding in findings)
    return Verdict(ok, _summary(measured, setup, kl, dead, findings), tuple(findings))


def _held(kl: Sequence[float], setup: Setup) -> int:
    """Dimensions that carry no more than the free bits that they were given."""
    ceiling = (1.0 + HELD_MARGIN) * setup.free_bits
    if setup.free_bits_mode == "total":
        return len(kl) if sum(kl) <= ceiling else 0
    return sum(value <= ceiling for value in kl) if setup.free_bits > 0 else 0


def _finding(name: str, value: float, target: str, ok: bool, remedy: str) -> Finding:
    return Finding(name, value, target, ok, None if ok else remedy)


# ------------------------------------------------------------------------------------------------ remedies


def heavy_scale(setup: Setup) -> str | None:
    """What a mean reduction does to beta, where it is likely to have killed the code; None elsewhere."""
    if setup.reduction != "mean" or setup.elbo_beta is None or setup.elbo_beta <= HEAVY_BETA:
        return None
    means = "mean reductions" if setup.kl_reduction == "mean" else "mean reduction"
    return (
        f"beta {setup.beta:g} with {means} weighs {setup.elbo_beta:.4g} on the ELBO scale: "
        "use objective.reduction = sum"
    )


def _revive(setup: Setup) -> str:
    if scale := heavy_scale(setup):
        return scale
    floor = "" if setup.free_bits > 0 else "; set objective.free_bits = 0.3"
    return f"lower beta (peak {setup.beta:g}{_elbo(setup)}) or lengthen its warm-up{floor}"


def _enlarge(setup: Setup) -> str:
    body = "" if setup.strong_body else "model.body = residual; "
    if setup.latent_dim < 16:
        return f"{body}raise model.latent_dim to 12-16 (it is {setup.latent_dim}); train longer"
    return f"{body}train longer, or lower beta (peak {setup.beta:g}{_elbo(setup)})"


def _look_at_decoder(setup: Setup) -> str:
    body = "" if setup.strong_body else "model.body = residual, "
    focal = "" if setup.elbo_beta is None else "objective.reconstruction = focal, "
    last = "or train longer" if body or focal else "train longer"
    return f"the code is alive and the decoder paints black: {body}{focal}{last}"


def _raise_beta(setup: Setup) -> str:
    return f"raise beta slowly (peak {setup.beta:g}{_elbo(setup)}) and look at the decoder: codes lie off the prior"


def _hold_the_floor(setup: Setup) -> str:
    if setup.free_bits_mode == "per_sample":
        return "clamping each example lets their mean sink under the floor: use objective.free_bits_mode = per_dim"
    if scale := heavy_scale(setup):
        return scale
    return "the floor did not hold: lower train.lr or train.gradient_clip, or lower beta"


def _elbo(setup: Setup) -> str:
    if setup.elbo_beta is None or setup.elbo_beta == setup.beta:
        return ""
    return f", {setup.elbo_beta:.4g} on the ELBO scale"


# ------------------------------------------------------------------------------------------------ in plain words


def _summary(measured: Measured, setup: Setup, kl: Sequence[float], dead: int, findings: Sequence[Finding]) -> str:
    pictures = (
        "every reconstruction is the all-black picture"
        if measured.blank_reconstructions == 1.0
        else f"{measured.blank_reconstructions:.0%} of the reconstructions are all black"
        if measured.blank_reconstructions >= 0.5
        else f"{measured.non_black:.0%} of the non-black cells are right"
    )
    if dead == len(kl):
        return f"posterior collapse: {dead} of {dead} dimensions carry under {ACTIVE_KL:g} nats; {pictures}"
    if dead:
        return f"partial collapse: {dead} of {len(kl)} dimensions carry under {ACTIVE_KL:g} nats; {pictures}"
    held = _held(kl, setup)
    if 2 * held > len(kl):
        where = "together lie" if setup.free_bits_mode == "total" else "lie"
        return (
            f"collapse, held up by free bits alone: {held} of {len(kl)} dimensions {where} at the floor of "
            f"{setup.free_bits:g} nats and carry nothing beyond it; {pictures}"
        )
    missed = sum(not finding.ok for finding in findings)
    told = f"all {len(kl)} dimensions carry {sum(kl):.1f} nats"
    if measured.non_black <= NON_BLACK_TARGET:
        return f"the code is alive, the decoder is not: {told}, but {pictures}"
    against = f"{measured.non_black:.0%} of the non-black cells are right, PCA gets {measured.pca_non_black:.0%}"
    return f"the code is alive: {told}; {against}; " + (
        "every target is met" if not missed else f"{missed} of {len(findings)} targets missed"
    )
