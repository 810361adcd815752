"""The verdict of an evaluation: targets, their values, and what to change where one is missed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from arcvae_cli.models.base import VAE
from arcvae_cli.settings import Settings, elbo_scale

FLOOR_TOLERANCE = 0.05
"""Share by which the KL may lie under its free-bits floor: held on batch means, it varies by a few per cent."""

HELD_MARGIN = 0.10
"""A dimension at most this share above its free-bits floor carries only what free bits enforce."""

HEAVY_BETA = 4.0
"""ELBO-scale beta from which a mean reduction is named as the cause of a collapse."""

OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class Target(NamedTuple):
    """A row of a verdict: `value` compared by `op` with `limit`, which is written as `text`; the remedy of a miss."""

    name: str
    value: float
    op: str
    limit: float
    text: str
    remedy: str


def judge(targets: Sequence[Target], summary: str, met: str = "every target is met") -> dict[str, Any]:
    """The verdict as it stands in `metrics.json`. `{targets}` in the summary is replaced by how many are missed."""
    findings = []
    for name, value, op, limit, text, remedy in targets:
        ok = OPERATORS[op](value, limit)
        row = {"name": name, "value": value, "target": f"{op} {text}", "ok": ok, "remedy": None if ok else remedy}
        findings.append(row)
    missed = sum(not row["ok"] for row in findings)
    outcome = f"{missed} of {len(findings)} targets missed" if missed else met
    return {"ok": not missed, "summary": summary.replace("{targets}", outcome), "findings": findings}


def lookup(report: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in nested dicts; None where a part of it is missing or None."""
    value: Any = report
    for part in key.split("."):
        value = None if value is None else value.get(part)
    return value


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings that remedies depend on, and the remedies.

    `betas`: by level, the schedule's peak. `elbo_scale`: the factor from them to the ELBO's, None if there is none.
    `controlled`: of the levels with a closed-loop beta, what to set for more KL, and for less. `free_bits`: nats by
    level. `latent_dim`, `local_channels`: None for a model without.
    """

    betas: Mapping[str, float]
    elbo_scale: float | None
    controlled: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    latent_dim: int | None = None
    local_channels: int | None = None
    reduction: str = "sum"
    kl_reduction: str = "sum"
    free_bits: Mapping[str, float] = field(default_factory=dict)
    free_bits_mode: str = "per_dim"
    strong_body: bool = False

    @classmethod
    def of(cls, settings: Settings, model: VAE, positions: int) -> Setup:
        """The setup of a run's settings, for examples of so many positions."""
        levels = tuple(model.level_shapes)
        network, objective = settings.model.model_dump(), settings.objective
        return cls(
            betas=settings.schedule.peaks(levels),
            elbo_scale=elbo_scale(settings, positions),
            controlled=dict(_controlled(settings, levels)),
            latent_dim=network.get("latent_dim"),
            local_channels=network.get("local_channels"),
            reduction=objective.reduction,
            kl_reduction=objective.kl_reduction,
            free_bits={level: objective.floor(level) for level in levels},
            free_bits_mode=objective.free_bits_mode,
            strong_body=network.get("body") != "plain",
        )

    # -------------------------------------------------------------------------------------------- free bits

    def held(self, level: str, kl: Sequence[float]) -> int:
        """Dimensions of a level whose KL does not exceed what free bits enforce."""
        ceiling = (1.0 + HELD_MARGIN) * self.free_bits.get(level, 0.0)
        if self.free_bits_mode == "total":
            return len(kl) if sum(kl) <= ceiling else 0
        return sum(value <= ceiling for value in kl) if ceiling > 0 else 0

    def floor_target(self, level: str, kl: Sequence[float], names: tuple[str, str]) -> Target:
        """The KL against the free-bits floor. `names`: of the target for a dimension, and for `total`."""
        floor, total = self.free_bits[level], self.free_bits_mode == "total"
        least = (1.0 - FLOOR_TOLERANCE) * floor
        text = f"{least:.4g} nats (floor {floor:g})"
        return Target(names[total], sum(kl) if total else min(kl), ">=", least, text, self.hold_the_floor(level))

    # -------------------------------------------------------------------------------------------- remedies

    def heavy_scale(self, level: str) -> str | None:
        """The effect of a mean reduction on a level's beta, where it is likely to cause a collapse; else None."""
        beta, scale = self.betas[level], self.elbo_scale
        if self.reduction != "mean" or scale is None or scale * beta <= HEAVY_BETA:
            return None
        means = "mean reductions" if self.kl_reduction == "mean" else "mean reduction"
        return f"beta {beta:g} with {means} weighs {scale * beta:.4g} on the ELBO scale: use objective.reduction = sum"

    def more_kl(self, level: str) -> str:
        """For a level that carries too little."""
        if scale := self.heavy_scale(level):
            return scale
        key = f"objective.free_bits_by_level.{level}" if len(self.betas) > 1 else "objective.free_bits"
        floor = "" if self.free_bits.get(level, 0.0) > 0 else f"; set {key} = 0.3"
        warmup = "" if level in self.controlled else " or lengthen its warm-up"
        return f"{self.lower_beta(level)}{warmup}{floor}"

    def lower_beta(self, level: str) -> str:
        """To allow a level more KL."""
        if level in self.controlled:
            return self.controlled[level][0]
        whose = f" of the {level} level" if len(self.betas) > 1 else ""
        return f"lower beta{whose} (peak {self.peak(level)})"

    def raise_beta(self) -> str:
        """For codes off the prior."""
        controlled = [less for _, less in dict.fromkeys(self.controlled.values())]
        peaks = dict.fromkeys(self.peak(level) for level in self.betas if level not in self.controlled)
        slowly = [f"raise beta slowly (peak {' and '.join(peaks)})"] if peaks else []
        return f"{', '.join(slowly + controlled)} and look at the decoder: codes lie off the prior"

    def hold_the_floor(self, level: str) -> str:
        """For a level under its free-bits floor."""
        if self.free_bits_mode == "per_sample":
            return "clamping each example lets their mean sink under the floor: use objective.free_bits_mode = per_dim"
        held = "the floor did not hold: lower train.lr or train.gradient_clip, or lower beta"
        return self.heavy_scale(level) or held

    def peak(self, level: str) -> str:
        """A level's largest beta, and what it is on the ELBO scale."""
        beta, scale = self.betas[level], self.elbo_scale
        return f"{beta:g}" if scale is None or scale == 1.0 else f"{beta:g}, {scale * beta:.4g} on the ELBO scale"


def _controlled(settings: Settings, levels: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Of each level whose beta is set by a closed loop, what to set for more KL, and for less."""
    schedule = settings.schedule
    parts = schedule.by_level(levels)
    for level in schedule.closed_levels(levels):
        part: Any = parts[level]
        table = f"schedule.{level}" if level in schedule.parts else "schedule"
        key = f"{table}.{part.knob} (it is {getattr(part, part.knob):g})"
        more, less = ("raise", "lower") if part.quantity == "kl" else ("lower", "raise")
        yield level, (f"{more} {key}", f"{less} {key}")
