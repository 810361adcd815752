"""Targets, misses and what to do about them, on plain numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

ADHERENCE_TARGET = 0.80
"""Share of samples under a condition that should obey it: of those that are neither blank nor repeated."""

COUNTED_TARGET = 0.50
"""Share of them that should be neither: a model that always draws one grid may obey, and is no use."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What remedies need to know of a run.

    `betas`: by level, the schedule's peak. `elbo_scale`: the factor from them to the ELBO's, None where there is none.
    `steered`: of the levels whose beta follows the run, what to set for more KL, and for less. `free_bits`: nats by
    level. `latent_dim` is the grid model's, `local_channels` the hierarchical model's, None for the other.
    """

    betas: Mapping[str, float]
    elbo_scale: float | None
    steered: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    latent_dim: int | None = None
    local_channels: int | None = None
    reduction: Literal["sum", "mean"] = "sum"
    kl_reduction: Literal["sum", "mean"] = "sum"
    free_bits: Mapping[str, float] = field(default_factory=dict)
    free_bits_mode: Literal["per_dim", "per_sample", "total"] = "per_dim"
    strong_body: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What is judged: shares of 1, and nats.

    `kl`: by level, the raw KL of each dimension. `blank_reconstructions`: share of reconstructions without a non-black
    cell. The baselines are `black_pixel` and `pca_pixel` (pixel accuracy) and `pca_non_black`. `obeyed`: by what was
    asked ("colours=3"), the share that obeys of the samples that are neither blank nor repeated, and `counted`: the
    share of the samples that are neither; both empty for a model without conditions.
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
    obeyed: Mapping[str, float] = field(default_factory=dict)
    counted: Mapping[str, float] = field(default_factory=dict)


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
    dead = {level: sum(value <= ACTIVE_KL for value in kl) for level, kl in measured.kl.items()}
    held = {level: _held(kl, level, setup) for level, kl in measured.kl.items()}
    sick = [level for level, kl in measured.kl.items() if dead[level] or 2 * held[level] > len(kl)]
    revive = more_kl(setup, sick[0]) if sick else None
    black = measured.non_black <= NON_BLACK_TARGET
    baseline = max(measured.black_pixel, measured.pca_pixel)
    look, closer = _look_at_decoder(setup), raise_beta(setup)
    findings = [
        compared(
            "pixel accuracy",
            measured.pixel,
            f">= {PIXEL_TARGET:.2f}",
            measured.pixel >= PIXEL_TARGET,
            revive or _enlarge(setup),
        ),
        compared(
            "pixel accuracy, baselines",
            measured.pixel,
            f"> {baseline:.4f} ({'PCA' if measured.pca_pixel > measured.black_pixel else 'all black'})",
            measured.pixel > baseline,
            revive or f"train on more data; {_enlarge(setup)}",
        ),
        compared(
            "non-black accuracy",
            measured.non_black,
            f"> {NON_BLACK_TARGET:.2f}",
            not black,
            revive or look,
        ),
    ]
    for level, kl in measured.kl.items():
        findings += _level_findings(level, kl, dead[level], held[level], setup, several=len(measured.kl) > 1)
    blank = measured.reference_blank + BLANK_MARGIN
    speck = measured.reference_speck + SPECK_MARGIN
    findings += [
        compared(
            "blank samples",
            measured.blank_samples,
            f"<= {blank:.2f} (data {measured.reference_blank:.2f})",
            measured.blank_samples <= blank,
            revive or (look if black else closer),
        ),
        compared(
            "specks among samples",
            measured.speck,
            f"<= {speck:.2f} (data {measured.reference_speck:.2f})",
            measured.speck <= speck,
            revive or closer,
        ),
    ]
    findings += _adherence_findings(measured, f"train longer; {closer}")
    return Verdict(all(finding.ok for finding in findings), _summary(measured, setup, dead, findings), tuple(findings))


def _adherence_findings(measured: Measured, remedy: str) -> Iterator[Finding]:
    """What is asked of samples under conditions: the least of each kind counts."""
    for kind in ("colours", "symmetry"):
        shares = {asked: share for asked, share in measured.obeyed.items() if asked.startswith(f"{kind}=")}
        if shares:
            worst = min(shares, key=lambda asked: shares[asked])
            target = f"> {ADHERENCE_TARGET:.2f} (least: {worst})"
            yield compared(f"samples obey {kind}", shares[worst], target, shares[worst] > ADHERENCE_TARGET, remedy)
    if measured.counted:
        worst = min(measured.counted, key=lambda asked: measured.counted[asked])
        share, target = measured.counted[worst], f">= {COUNTED_TARGET:.2f} (least: {worst})"
        yield compared("of them not blank or repeated", share, target, share >= COUNTED_TARGET, remedy)


def _level_findings(
    level: str, kl: Sequence[float], dead: int, held: int, setup: Setup, several: bool
) -> Iterator[Finding]:
    """What is asked of the KL of one level, whose name is said where there are several."""
    smallest = f"smallest KL, {level}" if several else "smallest KL of a dimension"
    where = f", {level}" if several else ""
    revive, floor, total = more_kl(setup, level), setup.free_bits.get(level, 0.0), setup.free_bits_mode == "total"
    yield compared(smallest, min(kl), f"> {ACTIVE_KL:.2f} nats", not dead, revive)
    if floor > 0:
        value, least = sum(kl) if total else min(kl), (1.0 - FLOOR_TOLERANCE) * floor
        name = "total KL at the free-bits floor" if total else "KL at the free-bits floor"
        target = f">= {least:.4g} nats (floor {floor:g})"
        yield compared(f"{name}{where}", value, target, value >= least, hold_the_floor(setup, level))
        name = f"held by free bits alone{where}" if several else "dimensions held by free bits alone"
        target = f"<= {len(kl) // 2} of {len(kl)}"
        yield compared(name, held, target, 2 * held <= len(kl), revive)


def _held(kl: Sequence[float], level: str, setup: Setup) -> int:
    """Dimensions of a level that carry no more than the free bits that they were given."""
    floor = setup.free_bits.get(level, 0.0)
    ceiling = (1.0 + HELD_MARGIN) * floor
    if setup.free_bits_mode == "total":
        return len(kl) if sum(kl) <= ceiling else 0
    return sum(value <= ceiling for value in kl) if floor > 0 else 0


def compared(name: str, value: float, target: str, ok: bool, remedy: str) -> Finding:
    """A finding that needs its remedy only where the target is missed."""
    return Finding(name, value, target, ok, None if ok else remedy)


# ------------------------------------------------------------------------------------------------ remedies


def heavy_scale(setup: Setup, level: str) -> str | None:
    """What a mean reduction does to a level's beta, where it is likely to have killed the code; None elsewhere."""
    beta, scale = setup.betas[level], setup.elbo_scale
    if setup.reduction != "mean" or scale is None or scale * beta <= HEAVY_BETA:
        return None
    means = "mean reductions" if setup.kl_reduction == "mean" else "mean reduction"
    return f"beta {beta:g} with {means} weighs {scale * beta:.4g} on the ELBO scale: use objective.reduction = sum"


def more_kl(setup: Setup, level: str) -> str:
    """What to do about a level that carries too little."""
    if scale := heavy_scale(setup, level):
        return scale
    whose = f" of the {level} level" if len(setup.betas) > 1 else ""
    key = f"objective.free_bits_by_level.{level}" if whose else "objective.free_bits"
    floor = "" if setup.free_bits.get(level, 0.0) > 0 else f"; set {key} = 0.3"
    if level in setup.steered:
        return f"{setup.steered[level][0]}{floor}"
    return f"lower beta{whose} (peak {_peak(setup, level)}) or lengthen its warm-up{floor}"


def _enlarge(setup: Setup) -> str:
    if setup.local_channels is not None:
        lower = lower_beta(setup, "local")
        return f"raise model.local_channels (it is {setup.local_channels}), train longer, or {lower}"
    body = "" if setup.strong_body else "model.body = residual; "
    if setup.latent_dim is not None and setup.latent_dim < 16:
        return f"{body}raise model.latent_dim to 12-16 (it is {setup.latent_dim}); train longer"
    return f"{body}train longer, or {lower_beta(setup, next(iter(setup.betas)))}"


def lower_beta(setup: Setup, level: str) -> str:
    """To lower what holds a level's KL down."""
    if level in setup.steered:
        return setup.steered[level][0]
    whose = f" of the {level} level" if len(setup.betas) > 1 else ""
    return f"lower beta{whose} (peak {_peak(setup, level)})"


def _look_at_decoder(setup: Setup) -> str:
    body = "" if setup.strong_body else "model.body = residual, "
    focal = "" if setup.elbo_scale is None else "objective.reconstruction = focal, "
    last = "or train longer" if body or focal else "train longer"
    return f"the code is alive and the decoder paints black: {body}{focal}{last}"


def raise_beta(setup: Setup) -> str:
    """What to do about codes that lie off the prior."""
    steered = [less for _, less in dict.fromkeys(setup.steered.values())]
    peaks = dict.fromkeys(_peak(setup, level) for level in setup.betas if level not in setup.steered)
    slowly = [f"raise beta slowly (peak {' and '.join(peaks)})"] if peaks else []
    return f"{', '.join(slowly + steered)} and look at the decoder: codes lie off the prior"


def hold_the_floor(setup: Setup, level: str) -> str:
    """What to do about a level under its free-bits floor."""
    if setup.free_bits_mode == "per_sample":
        return "clamping each example lets their mean sink under the floor: use objective.free_bits_mode = per_dim"
    if scale := heavy_scale(setup, level):
        return scale
    return "the floor did not hold: lower train.lr or train.gradient_clip, or lower beta"


def _peak(setup: Setup, level: str) -> str:
    beta, scale = setup.betas[level], setup.elbo_scale
    return f"{beta:g}" if scale is None or scale == 1.0 else f"{beta:g}, {scale * beta:.4g} on the ELBO scale"


# ------------------------------------------------------------------------------------------------ in plain words


def _summary(measured: Measured, setup: Setup, dead: Mapping[str, int], findings: Sequence[Finding]) -> str:
    pictures = (
        "every reconstruction is the all-black picture"
        if measured.blank_reconstructions == 1.0
        else f"{measured.blank_reconstructions:.0%} of the reconstructions are all black"
        if measured.blank_reconstructions >= 0.5
        else f"{measured.non_black:.0%} of the non-black cells are right"
    )
    sizes = {level: len(kl) for level, kl in measured.kl.items()}
    several = len(sizes) > 1
    if any(dead.values()):
        kind = "posterior" if dead == sizes else "partial"
        levels = " and ".join(
            f"{dead[level]} of {size}{f' {level}' if several else ''}" for level, size in sizes.items()
        )
        return f"{kind} collapse: {levels} dimensions carry under {ACTIVE_KL:g} nats; {pictures}"
    for level, kl in measured.kl.items():
        held = _held(kl, level, setup)
        if 2 * held > len(kl):
            where = "together lie" if setup.free_bits_mode == "total" else "lie"
            whose = f" of the {level} level" if several else ""
            floor = f"the floor of {setup.free_bits[level]:g} nats and carry nothing beyond it"
            return (
                f"collapse{whose}, held up by free bits alone: {held} of {len(kl)} dimensions {where} at {floor}; "
                f"{pictures}"
            )
    missed = sum(not finding.ok for finding in findings)
    totals = {level: sum(kl) for level, kl in measured.kl.items()}
    each = f" ({', '.join(f'{level} {total:.1f}' for level, total in totals.items())})" if several else ""
    told = f"all {sum(sizes.values())} dimensions carry {sum(totals.values()):.1f} nats{each}"
    if measured.non_black <= NON_BLACK_TARGET:
        return f"the code is alive, the decoder is not: {told}, but {pictures}"
    against = f"{measured.non_black:.0%} of the non-black cells are right, PCA gets {measured.pca_non_black:.0%}"
    return f"the code is alive: {told}; {against}; " + (
        "every target is met" if not missed else f"{missed} of {len(findings)} targets missed"
    )
