"""The verdict of an evaluation: targets, their values, and what to change where one is missed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from arcvae_cli.data.corpora import corpus_name
from arcvae_cli.settings import Settings, elbo_scale

FLOOR_TOLERANCE = 0.05  # share by which the KL may lie under its free-bits floor, which is held on batch means
HELD_MARGIN = 0.10  # a dimension at most this share above its floor carries only what free bits enforce
HEAVY_BETA = 4.0  # ELBO-scale beta from which it is called too large, not too small
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class Target(NamedTuple):
    """A row of a verdict: `value` compared by `op` with `limit`; steps that remedy a miss, joined by "; "."""

    name: str
    value: float
    op: str
    limit: float
    remedy: str
    note: str = ""  # unit or origin of the limit


def judge(targets: Iterator[Target], summary: str) -> dict[str, Any]:
    """The verdict as it stands in `metrics.json`; the summary gets how many targets are missed."""
    findings = []
    for name, value, op, limit, remedy, note in targets:
        ok, text = OPERATORS[op](value, limit), f"{op} {limit:.4g} {note}".rstrip()
        findings.append({"name": name, "value": value, "target": text, "ok": ok, "remedy": None if ok else remedy})
    missed = sum(not row["ok"] for row in findings)
    outcome = f"{missed} of {len(findings)} targets missed" if missed else "every target is met"
    return {"ok": not missed, "summary": f"{summary}; {outcome}", "findings": findings}


def remedies(findings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Every step of the remedies once, with the names of the missed targets that it serves."""
    steps: dict[str, list[str]] = {}
    for finding in findings:
        for step in finding["remedy"].split("; ") if finding["remedy"] else ():
            steps.setdefault(step, []).append(finding["name"])
    return steps


class Advice:
    """Remedies by a run's settings, for the levels of a model and examples of so many positions."""

    def __init__(self, settings: Settings, levels: Sequence[str], positions: int) -> None:
        names, data = tuple(levels), settings.data
        self.objective, self.model = settings.objective, settings.model.model_dump()
        self.trained_on = corpus_name(data) if data.prod is None else data.prod.stem
        self.scale = elbo_scale(settings, positions)  # from beta to the ELBO's, None if there is none
        self.betas: Mapping[str, float] = settings.schedule.peaks(names)
        self.floors = {level: settings.objective.floor(level) for level in names}
        self.total = settings.objective.free_bits_mode == "total"
        self.controlled: dict[
            str, tuple[str, str]
        ] = {}  # of a level under a closed loop: steps to more KL, and to less
        parts: Mapping[str, Any] = settings.schedule.by_level(names)
        for level in settings.schedule.closed_levels(names):
            table, part = f"schedule.{level}" if level in settings.schedule.parts else "schedule", parts[level]
            key = f"{table}.{part.target_key} (it is {getattr(part, part.target_key):g})"
            steps = f"raise {key}", f"lower {key}"
            self.controlled[level] = steps if part.quantity == "kl" else steps[::-1]

    def other_data(self, report: Mapping[str, Any]) -> str | None:
        """The remedy where examples are not of the corpus that the model was trained on; `arc-raw` is of `arc`."""
        if self.trained_on.removesuffix("-raw") == report["corpus"].removesuffix("-raw"):
            return None
        return f"train on {report['corpus']}: the model was trained on {self.trained_on}"

    def held(self, level: str, kl: Sequence[float]) -> int:
        """Dimensions of a level whose KL does not exceed what free bits enforce."""
        ceiling = (1.0 + HELD_MARGIN) * self.floors[level]
        if self.total:
            return len(kl) if sum(kl) <= ceiling else 0
        return sum(value <= ceiling for value in kl) if ceiling > 0 else 0

    def floor_target(self, report: Mapping[str, Any], level: str, name: str, total_name: str) -> Target:
        """The smallest KL, or in the mode `total` their sum, against the free-bits floor."""
        kl, floor = report["levels"][level]["kl_nats"], self.floors[level]
        remedy = f"raise {self._free_bits(level)} (it is {floor:g}): it holds on training batches, not on unseen data"
        if report["split"] == "train":
            remedy = "lower train.lr or train.gradient_clip: the free-bits floor did not hold in training"
        if self.objective.free_bits_mode == "per_sample":
            remedy = "use objective.free_bits_mode = per_dim: clamping each example lets the mean fall below the floor"
        remedy = self.too_heavy(level) or self.other_data(report) or remedy
        name, value = (total_name, sum(kl)) if self.total else (name, min(kl))
        return Target(name, value, ">=", (1.0 - FLOOR_TOLERANCE) * floor, remedy, f"nats (floor {floor:g})")

    def too_heavy(self, level: str) -> str | None:
        """The remedy where beta is so large on the ELBO scale that it is likely to cause a collapse; else None."""
        if self.scale is None or self.scale * self.betas[level] <= HEAVY_BETA:
            return None
        return self.lower_beta(level) + ", or use objective.reduction = sum" * (self.objective.reduction == "mean")

    def more_kl(self, level: str) -> str:
        if heavy := self.too_heavy(level):
            return heavy
        floor = "" if self.floors[level] > 0 else f"; set {self._free_bits(level)} = 0.3"
        warmup = "" if level in self.controlled else " or lengthen its warm-up"
        return f"{self.lower_beta(level)}{warmup}{floor}"

    def lower_beta(self, level: str) -> str:
        if level in self.controlled:
            return self.controlled[level][0]
        whose = f" of the {level} level" if len(self.betas) > 1 else ""
        return f"lower beta{whose} (peak {self._peak(level)})"

    def raise_beta(self) -> str:
        """For samples unlike the data: codes lie off the prior, unless beta is already too large."""
        open_loop = [level for level in self.betas if level not in self.controlled]
        if heavy := [found for level in open_loop if (found := self.too_heavy(level))]:
            return heavy[0]
        peaks = dict.fromkeys(map(self._peak, open_loop))
        steps = [f"raise beta slowly (peak {' and '.join(peaks)})"] if peaks else []
        steps += dict.fromkeys(less for _, less in self.controlled.values())
        return "; ".join([*steps, "look at the decoder: codes lie off the prior"])

    def _free_bits(self, level: str) -> str:
        return f"objective.free_bits_by_level.{level}" if len(self.betas) > 1 else "objective.free_bits"

    def _peak(self, level: str) -> str:
        beta, scale = self.betas[level], self.scale
        return f"{beta:g}" if scale is None or scale == 1.0 else f"{beta:g}, {scale * beta:.4g} on the ELBO scale"
