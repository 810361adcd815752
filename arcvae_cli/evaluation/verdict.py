"""The verdict of an evaluation: targets, their values, and what to change where one is missed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from arcvae_cli.settings import Settings, elbo_scale

FLOOR_TOLERANCE = 0.05  # share by which the KL may lie under its free-bits floor, which is held on batch means
HELD_MARGIN = 0.10  # a dimension at most this share above its floor carries only what free bits enforce
HEAVY_BETA = 4.0  # ELBO-scale beta from which a mean reduction is named as the cause of a collapse
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class Target(NamedTuple):
    """A row of a verdict: `value` compared by `op` with `limit`, which is written as `text`; the remedy of a miss."""

    name: str
    value: float
    op: str
    limit: float
    text: str
    remedy: str


def judge(targets: Iterator[Target], summary: str) -> dict[str, Any]:
    """The verdict as it stands in `metrics.json`; the summary gets how many targets are missed."""
    findings = []
    for name, value, op, limit, text, remedy in targets:
        ok = OPERATORS[op](value, limit)
        row = {"name": name, "value": value, "target": f"{op} {text}", "ok": ok, "remedy": None if ok else remedy}
        findings.append(row)
    missed = sum(not row["ok"] for row in findings)
    outcome = f"{missed} of {len(findings)} targets missed" if missed else "every target is met"
    return {"ok": not missed, "summary": f"{summary}; {outcome}", "findings": findings}


class Advice:
    """Remedies by a run's settings, for the levels of a model and examples of so many positions."""

    def __init__(self, settings: Settings, levels: Sequence[str], positions: int) -> None:
        names = tuple(levels)
        self.objective, self.model = settings.objective, settings.model.model_dump()
        self.scale = elbo_scale(settings, positions)  # from beta to the ELBO's, None if there is none
        self.betas: Mapping[str, float] = settings.schedule.peaks(names)
        self.floors = {level: settings.objective.floor(level) for level in names}
        self.total = settings.objective.free_bits_mode == "total"
        self.controlled = dict(_controlled(settings, names))

    def held(self, level: str, kl: Sequence[float]) -> int:
        """Dimensions of a level whose KL does not exceed what free bits enforce."""
        ceiling = (1.0 + HELD_MARGIN) * self.floors[level]
        if self.total:
            return len(kl) if sum(kl) <= ceiling else 0
        return sum(value <= ceiling for value in kl) if ceiling > 0 else 0

    def floor_target(self, level: str, kl: Sequence[float], name: str, total_name: str) -> Target:
        """The smallest KL, or in the mode `total` their sum, against the free-bits floor."""
        floor = self.floors[level]
        least = (1.0 - FLOOR_TOLERANCE) * floor
        remedy = "the floor did not hold: lower train.lr or train.gradient_clip, or lower beta"
        if self.objective.free_bits_mode == "per_sample":
            remedy = "clamping each example lets their mean sink: use objective.free_bits_mode = per_dim"
        name, value = (total_name, sum(kl)) if self.total else (name, min(kl))
        text = f"{least:.4g} nats (floor {floor:g})"
        return Target(name, value, ">=", least, text, self.heavy_scale(level) or remedy)

    def heavy_scale(self, level: str) -> str | None:
        """The effect of a mean reduction on a level's beta, where it is likely to cause a collapse; else None."""
        if self.objective.reduction != "mean" or self.scale is None or self.scale * self.betas[level] <= HEAVY_BETA:
            return None
        return f"beta {self.peak(level)} is heavy because of the mean reduction: use objective.reduction = sum"

    def more_kl(self, level: str) -> str:
        if scale := self.heavy_scale(level):
            return scale
        key = f"objective.free_bits_by_level.{level}" if len(self.betas) > 1 else "objective.free_bits"
        floor = "" if self.floors[level] > 0 else f"; set {key} = 0.3"
        warmup = "" if level in self.controlled else " or lengthen its warm-up"
        return f"{self.lower_beta(level)}{warmup}{floor}"

    def lower_beta(self, level: str) -> str:
        if level in self.controlled:
            return self.controlled[level][0]
        whose = f" of the {level} level" if len(self.betas) > 1 else ""
        return f"lower beta{whose} (peak {self.peak(level)})"

    def raise_beta(self) -> str:
        controlled = [less for _, less in dict.fromkeys(self.controlled.values())]
        peaks = dict.fromkeys(self.peak(level) for level in self.betas if level not in self.controlled)
        slowly = [f"raise beta slowly (peak {' and '.join(peaks)})"] if peaks else []
        return f"{', '.join(slowly + controlled)} and look at the decoder: codes lie off the prior"

    def peak(self, level: str) -> str:
        """A level's largest beta, and what it is on the ELBO scale."""
        beta, scale = self.betas[level], self.scale
        return f"{beta:g}" if scale is None or scale == 1.0 else f"{beta:g}, {scale * beta:.4g} on the ELBO scale"


def _controlled(settings: Settings, levels: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Of each level whose beta is set by a closed loop, what to set for more KL, and for less."""
    schedule = settings.schedule
    parts = schedule.by_level(levels)
    for level in schedule.closed_levels(levels):
        part: Any = parts[level]
        table = f"schedule.{level}" if level in schedule.parts else "schedule"
        key = f"{table}.{part.target_key} (it is {getattr(part, part.target_key):g})"
        more, less = ("raise", "lower") if part.quantity == "kl" else ("lower", "raise")
        yield level, (f"{more} {key}", f"{less} {key}")
