"""The verdict of an evaluation: targets, their values, and what to change where one is missed."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from arcvae_cli.settings import Settings, elbo_scale

FLOOR_TOLERANCE = 0.05  # share by which the KL may lie under its free-bits floor, which is held on batch means
COLLAPSED_NATS = 1.0  # total KL under which the code is collapsed; the least reconstruction cost that it should save
HELD_MARGIN = 0.10  # a dimension at most this share above its floor carries only what free bits enforce
FEW_STEPS = 2000  # with fewer, beta and accuracy say little
HEAVY_BETA = 4.0  # ELBO-scale beta above which mean reductions are to blame
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
# name, value, operator, limit, steps that remedy a miss, joined by "; ", and the unit or origin of the limit
Target = tuple[str, float, str, float, str, str]


def judge(targets: Sequence[Target], summary: str) -> dict[str, Any]:
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
    """Remedies by a run's settings, for the levels of a model and training examples, if known, of so many positions."""

    def __init__(self, settings: Settings, levels: Sequence[str], positions: int, examples: int = 0) -> None:
        objective, several = settings.objective, len(levels) > 1
        self.model = settings.model.model_dump()
        each, epochs = max(1, examples // settings.train.batch_size), settings.train.epochs
        longer = f"train longer: --epochs {math.ceil(FEW_STEPS / each)} ({epochs} were {each * epochs} steps)"
        self.longer = longer if examples and each * epochs < FEW_STEPS else ""
        self.scale = elbo_scale(settings, positions)  # from beta to the ELBO's, None if there is none
        self.floors = {level: objective.floor(level) for level in levels}
        self.total = objective.free_bits_mode == "total"
        self.free_bits = {level: f"objective.free_bits{f'_by_level.{level}' if several else ''}" for level in levels}
        self.lower_beta, self.more_kl, less_kl = dict[str, str](), dict[str, str](), list[str]()  # remedies by level
        parts: Mapping[str, Any] = settings.schedule.by_level(levels)
        for level, part in parts.items():
            if part.closed_loop:
                table = f"schedule.{level}" if level in settings.schedule.parts else "schedule"
                setting = f"{table}.{part.target_key} (it is {getattr(part, part.target_key):g})"
                more, less = [f"{verb} {setting}" for verb in ("raise", "lower")][:: 1 if part.quantity == "kl" else -1]
                also = ""
            else:
                on_elbo = (self.scale or 1.0) * part.peak
                peak = f"(peak {part.peak:g}{'' if on_elbo == part.peak else f', {on_elbo:.4g} on the ELBO scale'})"
                more, less = f"lower beta{f' of the {level} level' * several} {peak}", f"raise beta slowly {peak}"
                also = " or lengthen its warm-up"
                if self.scale is not None and on_elbo > HEAVY_BETA and objective.reduction == "mean":
                    also = " or use objective.reduction = sum"
            floor = "" if self.floors[level] > 0 else f"; set {self.free_bits[level]} = 0.3"
            self.lower_beta[level], self.more_kl[level] = more, f"{more}{also}{floor}"
            less_kl.append(less)
        self.raise_beta = "; ".join((*dict.fromkeys(less_kl), "look at the decoder: codes lie off the prior"))

    def held(self, level: str, kl: Sequence[float]) -> int:
        """Dimensions of a level whose KL does not exceed what free bits enforce."""
        ceiling = (1.0 + HELD_MARGIN) * self.floors[level]
        return sum(value <= ceiling for value in ([sum(kl)] * len(kl) if self.total else kl))

    def floor_target(self, report: Mapping[str, Any], level: str, where: str = "") -> Target:
        """The smallest KL, or in the mode `total` their sum, against the free-bits floor."""
        kl, floor = report["levels"][level]["kl_nats"], self.floors[level]
        remedy = f"raise {self.free_bits[level]} (it is {floor:g}): it holds on training batches, not on unseen data"
        name, value = ("total KL", sum(kl)) if self.total else ("KL", min(kl))
        limit, note = (1.0 - FLOOR_TOLERANCE) * floor, f"nats (floor {floor:g})"
        return f"{name} at the free-bits floor{where}", value, ">=", limit, remedy, note
