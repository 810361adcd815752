"""Targets, misses and what to do about them for a model of derivations, on plain numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from arcvae_cli.evaluation.verdict import (
    FLOOR_TOLERANCE,
    HELD_MARGIN,
    Finding,
    Setup,
    Verdict,
    compared,
    hold_the_floor,
    lower_beta,
    more_kl,
    raise_beta,
)
from arcvae_cli.objective import ACTIVE_KL

EXACT_TARGET = 0.50
"""Share of exact derivations at the posterior mean. Kusner et al. 2017 report 0.54 on molecules, of drawn strings."""

COLLAPSED_NATS = 1.0
"""Total KL under which a code tells nothing worth a decoder's while, and the least that it should save it."""

CARRIED_TARGET = 0.90
"""Share of the KL that should lie in active dimensions: a large code may leave most of its dimensions idle."""

COMPLETE_TARGET = 0.80
"""Share of draws from N(0, I) that should end by themselves within T rules."""

SURE = 4.0
"""Standard errors by which a mean -log p(x) may lie under the entropy without being impossible."""


@dataclass(frozen=True, slots=True)
class MeasuredStrings:
    """What is judged: shares of 1, and nats a derivation.

    `exact`: share at the posterior mean. `baseline_nats`: -log p(x) of rule frequencies by step and left-hand side.
    `kl`: by level, of each dimension, of the density that is sampled. `shuffled_gain`: how much worse reconstruction
    gets with the codes of others. `nll_nats`: the best bound on -log p(x), `nll_error` its standard error.
    `entropy_nats`: None where it is not known. `complete`, `complete_aggregate`: share of draws from N(0, I), and from
    the Gaussian of the codes, that end without the length budget. None is what was not measured.
    """

    exact: float
    reconstruction_nats: float
    baseline_nats: float
    kl: Mapping[str, Sequence[float]]
    shuffled_gain: float | None
    nll_nats: float
    nll_error: float
    entropy_nats: float | None
    complete: float | None
    complete_aggregate: float | None
    posterior_noise: float = 1.0


def judge_strings(measured: MeasuredStrings, setup: Setup) -> Verdict:
    """Compare with the targets."""
    (level, kl), *_ = measured.kl.items()
    total = sum(kl)
    carried = sum(value for value in kl if value > ACTIVE_KL) / total if total > 0 else 0.0
    alive = more_kl(setup, level)
    dead = _collapsed(measured)
    better = alive if dead else f"{lower_beta(setup, level)}, train longer, or raise model.decoder_hidden"
    findings = [
        compared("exact derivations", measured.exact, f">= {EXACT_TARGET:.2f}", measured.exact >= EXACT_TARGET, better),
        compared(
            "reconstruction, baseline",
            measured.reconstruction_nats,
            f"< {measured.baseline_nats:.2f} nats (frequencies)",
            measured.reconstruction_nats < measured.baseline_nats,
            better,
        ),
    ]
    if measured.posterior_noise == 1.0:  # else a narrow posterior has a large KL, whatever it tells
        target = f">= {CARRIED_TARGET:.2f}"
        findings += [
            compared("total KL", total, f"> {COLLAPSED_NATS:g} nat", total > COLLAPSED_NATS, alive),
            compared("share in active dimensions", carried, target, carried >= CARRIED_TARGET, alive),
        ]
    if measured.shuffled_gain is not None:
        target = f"> {COLLAPSED_NATS:g} nat"
        saves = measured.shuffled_gain
        findings.append(compared("what the right code saves", saves, target, saves > COLLAPSED_NATS, alive))
    if (noise := measured.posterior_noise) < 1.0:
        remedy = (
            "use model.posterior_noise = 1: below it, the KL that is trained is not that of the codes that are drawn"
        )
        findings.append(compared("posterior noise", noise, ">= 1", False, remedy))
    findings += _floor_findings(kl, level, setup)
    findings += _likelihood_findings(measured)
    findings += _completeness_findings(measured, setup)
    return Verdict(all(one.ok for one in findings), _summary(measured, setup, level, findings), tuple(findings))


def _floor_findings(kl: Sequence[float], level: str, setup: Setup) -> Iterator[Finding]:
    """What is asked of the KL where free bits are on: to be at the floor, and beyond it."""
    floor = setup.free_bits.get(level, 0.0)
    if floor <= 0:
        return
    total = setup.free_bits_mode == "total"
    value, least = sum(kl) if total else min(kl), (1.0 - FLOOR_TOLERANCE) * floor
    name = "total KL, free-bits floor" if total else "smallest KL, free-bits floor"
    target = f">= {least:.4g} nats (floor {floor:g})"
    yield compared(name, value, target, value >= least, hold_the_floor(setup, level))
    most = _held_at(kl, level, setup)
    yield compared("total KL beyond the floor", sum(kl), f"> {most:.4g} nats", sum(kl) > most, more_kl(setup, level))


def _held_at(kl: Sequence[float], level: str, setup: Setup) -> float:
    """The total KL up to which free bits alone account for it."""
    floor = setup.free_bits.get(level, 0.0)
    return (1.0 + HELD_MARGIN) * floor * (1 if setup.free_bits_mode == "total" else len(kl))


def _likelihood_findings(measured: MeasuredStrings) -> Iterator[Finding]:
    """Nothing assigns strings more probability, on average, than the distribution that they are drawn from."""
    if measured.entropy_nats is None:
        return
    least = measured.entropy_nats - SURE * measured.nll_error
    yield compared(
        "-log p(x), entropy",
        measured.nll_nats,
        f">= {measured.entropy_nats:.2f} nats",
        measured.nll_nats >= least,
        "no model can be better than the entropy: look for a bug, or for test strings among the training strings",
    )


def _completeness_findings(measured: MeasuredStrings, setup: Setup) -> Iterator[Finding]:
    """Whether new derivations end by themselves."""
    if measured.complete is None:
        return
    fitted = measured.complete_aggregate
    remedy = (
        f"sample with --prior aggregate ({fitted:.0%} of its draws end); {raise_beta(setup)}"
        if fitted is not None and fitted >= COMPLETE_TARGET
        else "train longer; `sample` draws with the length budget unless told not to, and then every string is complete"
    )
    yield compared(
        "complete without budget",
        measured.complete,
        f">= {COMPLETE_TARGET:.2f}",
        measured.complete >= COMPLETE_TARGET,
        remedy,
    )


def _collapsed(measured: MeasuredStrings) -> bool:
    """Whether the code tells nothing, or nothing that the decoder listens to."""
    idle = measured.shuffled_gain is not None and measured.shuffled_gain <= COLLAPSED_NATS
    return idle or sum(map(sum, measured.kl.values())) <= COLLAPSED_NATS


def _summary(measured: MeasuredStrings, setup: Setup, level: str, findings: Sequence[Finding]) -> str:
    kl = measured.kl[level]
    total, active = sum(kl), sum(value > ACTIVE_KL for value in kl)
    against = (
        f"reconstruction takes {measured.reconstruction_nats:.1f} nats, rule frequencies {measured.baseline_nats:.1f}"
    )
    if total <= COLLAPSED_NATS:
        return f"posterior collapse: the code carries {total:.2f} nats in all; {against}"
    if _collapsed(measured):
        return f"the code carries {total:.1f} nats, and the decoder does not use them; {against}"
    if 0 < total <= _held_at(kl, level, setup):
        return f"collapse, held up by free bits alone: {total:.2f} nats are no more than they force; {against}"
    if measured.posterior_noise < 1.0:
        return (
            f"an autoencoder: its noise is scaled by {measured.posterior_noise:g}, and the density that is sampled "
            f"lies {total:.0f} nats from the prior; {measured.exact:.0%} of the derivations are exact"
        )
    missed = sum(not one.ok for one in findings)
    return (
        f"the code is alive: {active} of {len(kl)} dimensions carry {total:.1f} nats; {measured.exact:.0%} of the "
        f"derivations are exact; " + ("every target is met" if not missed else f"{missed} of {len(findings)} missed")
    )
