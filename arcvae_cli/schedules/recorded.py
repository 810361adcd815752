"""What a recorded run tells of a schedule that takes feedback: what it did, or an estimate of what it would have done.

Plain Python, since `schedule-preview` imports nothing heavy.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arcvae_cli.errors import InputError
from arcvae_cli.files import is_dir, is_file, read_limited
from arcvae_cli.schedules.base import Schedule
from arcvae_cli.schedules.feedback import Feedback, bound_ahead, is_held
from arcvae_cli.settings import GRID_POSITIONS, resolve

LAGS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Epochs, the time constants that are tried for the answer of a run to beta."""

FEWEST = 20
"""Logged steps, or else epochs, from which an estimate is made."""

SHOWN = 0.05
"""Share by which a value has to change with beta in a run, so that an estimate is made from it."""

MOST_STEPS = 1_000_000
"""Steps that an estimate goes through at most: a second or two."""

MOST_POINTS = 100_000
"""Logged steps that an estimate is made from: of more, every second or third."""

MOST_BYTES = 2**27
"""The largest `metrics.jsonl` that is read."""

EARLIEST = 1e-6
"""Epochs, before which nothing is logged."""

LARGEST = 1e12
"""The largest number that beta, a loss or a count of epochs is believed to be."""


@dataclass(frozen=True)
class Point:
    """A logged step or epoch: KL in nats per example, reconstruction in nats per position."""

    epoch: float
    beta: float
    kl: float
    reconstruction: float

    def value(self, quantity: str) -> float:
        """The one of the two that a schedule watches."""
        return self.kl if quantity == "kl" else self.reconstruction


@dataclass(frozen=True)
class Course:
    """Beta and what it steers, at whole epochs: means over each.

    `kind`: "recorded" in a run with this very schedule, or an "estimate". `seen`: the least and the largest mean of an
    epoch of the recorded run.
    """

    kind: Literal["recorded", "estimate"]
    epochs: list[float]
    betas: list[float]
    values: list[float]
    targets: list[float]
    seen: tuple[float, float]

    def at(self, what: Literal["betas", "values", "targets"], epoch: float) -> float:
        """One of the three at an epoch, between whole ones on a straight line; level before the first."""
        series = {"betas": self.betas, "values": self.values, "targets": self.targets}[what]
        return between(self.epochs, series, epoch)

    def held_since(self) -> float | None:
        """The epoch from which on every mean was within 5 % of its target; None if the last was not."""
        since = None
        for epoch, value, target in zip(*(reversed(s) for s in (self.epochs, self.values, self.targets)), strict=True):
            if not is_held(value, target):
                return since
            since = epoch
        return since

    def stuck(self, schedule: Feedback) -> Literal["largest", "least"] | None:
        """The bound at which beta stands in the last epoch, where the target lies beyond it."""
        if self.held_since() is not None:
            return None
        low, high = schedule.at_bounds
        if bound_ahead(schedule.quantity, self.values[-1] > self.targets[-1]) == "max":
            return "largest" if self.betas[-1] >= high else None
        return "least" if self.betas[-1] <= low else None


@dataclass(frozen=True)
class Recorded:
    """A run that was recorded: its schedule, the steps of its epochs, and its lines in `metrics.jsonl`."""

    name: str
    schedule: Schedule
    steps: int
    per_position: float  # from the reconstruction as it is logged to nats per position
    lines: list[dict[str, Any]]

    def points(self, level: str, kind: str) -> list[Point]:
        """What was logged of a level ("" for all together), by "step" or "epoch"."""
        end = f"/{level}" if level else ""
        names = f"train/beta{end}", f"train/kl{end}", "train/loss_reconstruction"
        found = []
        for line in self.lines:
            beta, kl, reconstruction = (number(line.get(name)) for name in names)
            if line["kind"] == kind and beta is not None and kl is not None and reconstruction is not None:
                found.append(Point(line["epoch"], beta, kl, reconstruction * self.per_position))
        if not found and kind == "epoch":
            what = f"no epoch with {names[0]} and {names[1]}"
            raise InputError(f"--run {self.name}: {what}", "give a run of a model with these levels")
        return found

    def course(self, schedule: Feedback, level: str, epochs: int) -> Course:
        """What a schedule did in this run if it is the run's own, else an estimate of what it would do."""
        if self.schedule.parts.get(level) == schedule:
            return self.did(schedule, level)
        return self.estimate(schedule, level, epochs)

    def did(self, schedule: Feedback, level: str) -> Course:
        """The recorded course."""
        points, steps = self.points(level, "epoch"), self.points(level, "step")
        times = [step.epoch for step in steps]
        betas = []
        for point in points:
            within = [
                step.beta for step in steps[bisect_right(times, point.epoch - 1) : bisect_right(times, point.epoch)]
            ]
            betas.append(sum(within) / len(within) if within else point.beta)
        epochs = [point.epoch for point in points]
        values = [point.value(schedule.quantity) for point in points]
        targets = [schedule.setpoint(epoch - 0.5) for epoch in epochs]
        return Course("recorded", epochs, betas, values, targets, (min(values), max(values)))

    def estimate(self, schedule: Feedback, level: str, epochs: int) -> Course:
        """The schedule against the answer that this run gave to beta."""
        if epochs * self.steps > MOST_STEPS:
            what = f"--run {self.name}: {epochs} epochs of {self.steps} steps are too many to try"
            raise InputError(what, f"give --epochs, {MOST_STEPS // self.steps} at most")
        answer = self.answer(schedule, level)
        state, slow = schedule.begin(), schedule.start
        share = 1.0 - math.exp(-1.0 / (answer.lag * self.steps))
        betas, values = [], []
        for epoch in range(epochs):
            total, watched = 0.0, 0.0
            for step in range(1, self.steps + 1):
                at = epoch + step / self.steps
                value = answer(slow, at)
                kl, reconstruction = (value, 0.0) if schedule.quantity == "kl" else (0.0, value)
                state, beta = schedule.observe(state, at, kl, reconstruction)
                slow += share * (beta - slow)
                total, watched = total + beta, watched + value
            betas.append(total / self.steps)
            values.append(watched / self.steps)
        at_epochs = [float(epoch) for epoch in range(1, epochs + 1)]
        targets = [schedule.setpoint(epoch - 0.5) for epoch in at_epochs]
        seen = [point.value(schedule.quantity) for point in self.points(level, "epoch")]
        return Course("estimate", at_epochs, betas, values, targets, (min(seen), max(seen)))

    def answer(self, schedule: Feedback, level: str) -> Answer:
        """How the run answered to beta; InputError if it does not show it."""
        points = self.points(level, "step")
        if len(points) < FEWEST:
            points = self.points(level, "epoch")
        settled = [point for point in points if point.epoch > 1.0]  # the first epoch learns whatever beta is
        points = settled if len(settled) >= FEWEST else points
        points = points[:: 1 + len(points) // MOST_POINTS]
        if len(points) < FEWEST:
            what = f"{len(points)} logged steps or epochs do not show how it answers to beta"
            raise InputError(f"--run {self.name}: {what}", f"give a longer run, with {FEWEST} at least")
        answer = fit(points, schedule.quantity)
        if abs(answer.values[-1] - answer.values[0]) <= SHOWN * abs(answer.values[0]):
            named = "KL" if schedule.quantity == "kl" else "reconstruction"
            low, high = min(point.beta for point in points), max(point.beta for point in points)
            what = f"beta went from {low:.4g} to {high:.4g}" if high > low else f"beta stood at {low:.4g} throughout"
            raise InputError(
                f"--run {self.name}: {what}, which does not show how the {named} answers to it",
                "give a run whose beta goes up and down, as with the schedule cyclical",
            )
        return answer


@dataclass(frozen=True)
class Answer:
    """A monotone answer to beta behind a first-order lag in epochs, and what time adds to it.

    `betas`, `values`: knots between which it is a straight line, and beyond which it is taken to be level.
    `epochs`, `added`: the same of time.
    """

    lag: float
    betas: list[float]
    values: list[float]
    epochs: list[float]
    added: list[float]

    def __call__(self, beta: float, epoch: float) -> float:
        """The value at a beta that has stood for long."""
        return between(self.betas, self.values, beta) + between(self.epochs, self.added, epoch)


def fit(points: Sequence[Point], quantity: str) -> Answer:
    """The answer with the lag that leaves the least squares, by isotonic regression.

    The KL falls with beta. The reconstruction term rises with it and falls with time, since the model learns: the two
    are fitted in turn, beta first.
    """
    values = [point.value(quantity) for point in points]
    epochs = [point.epoch for point in points]
    sign = -1.0 if quantity == "kl" else 1.0
    best: tuple[float, Answer] | None = None
    for lag in LAGS:
        slow, previous = points[0].beta, points[0].epoch
        lagged = []
        for point in points:
            slow += (point.beta - slow) * (1.0 - math.exp((previous - point.epoch) / lag))
            previous = point.epoch
            lagged.append(slow)
        added, times = [0.0], [0.0]
        for _ in range(3 if quantity == "reconstruction" else 1):
            rest = [v - between(times, added, t) for v, t in zip(values, epochs, strict=True)]
            knots, answers = isotonic(lagged, rest, sign)
            if quantity == "reconstruction":
                rest = [v - between(knots, answers, b) for v, b in zip(values, lagged, strict=True)]
                times, added = isotonic(epochs, rest, -1.0)
        answer = Answer(lag, knots, answers, times, added)
        pairs = zip(values, lagged, epochs, strict=True)
        error = sum((value - answer(beta, epoch)) ** 2 for value, beta, epoch in pairs)
        if best is None or error < best[0]:
            best = error, answer
    assert best is not None
    return best[1]


def isotonic(places: Iterable[float], values: Iterable[float], sign: float) -> tuple[list[float], list[float]]:
    """The monotone least-squares curve through points, rising for `sign` 1 and falling for -1, as knots.

    Pools adjacent violators (Barlow et al. 1972); each pool is a knot at its mean place, so that it has no steps.
    """
    together: dict[float, list[float]] = {}
    for place, value in zip(places, values, strict=True):
        together.setdefault(place, []).append(sign * value)
    pools: list[list[float]] = []  # weight, sum of places, sum of values
    for place, same in sorted(together.items()):
        pools.append([len(same), len(same) * place, sum(same)])
        while len(pools) > 1 and pools[-2][2] / pools[-2][0] >= pools[-1][2] / pools[-1][0]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    return [pool[1] / pool[0] for pool in pools], [sign * pool[2] / pool[0] for pool in pools]


def between(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """A value on the straight lines between knots, level beyond the ends."""
    right = bisect_right(places, place)
    if right == 0:
        return values[0]
    if right == len(places):
        return values[-1]
    share = (place - places[right - 1]) / (places[right] - places[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])


def read_run(run: str, runs: Path) -> Recorded:
    """A run by its folder, or by its name in `runs`.

    Raises:
        InputError: there is no such folder, or no record of a training in it.

    """
    folder = next((path for path in (Path(run), runs / run) if is_dir(path)), None)
    if folder is None:
        raise InputError(
            f"--run {run}: neither a folder nor a run in {runs}", "give a run's folder or name, --runs-dir"
        )
    for name in ("config.toml", "metrics.jsonl"):
        if not is_file(folder / name):
            raise InputError(f"--run {run}: {folder} holds no {name}", "give the folder of a run that has trained")
    settings = resolve(str(folder / "config.toml")).settings
    try:
        lines = read_lines(folder / "metrics.jsonl")
    except (OSError, UnicodeDecodeError) as error:
        what = f"--run {run}: {folder / 'metrics.jsonl'} cannot be read"
        raise InputError(f"{what} ({getattr(error, 'strerror', None) or error})", "give another run") from error
    epochs = [line for line in lines if line["kind"] == "epoch"]
    done = number(epochs[-1].get("step")) if epochs else None
    if done is None:
        raise InputError(f"--run {run}: no epoch in {folder / 'metrics.jsonl'}", "give a run with finished epochs")
    steps = max(1, round(done / epochs[-1]["epoch"]))
    per_position = 1.0 / GRID_POSITIONS if settings.objective.reduction == "sum" else 1.0
    return Recorded(run, settings.schedule, steps, per_position, lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, of steps and of epochs, in the order of time; one cut short is left out."""
    lines = [line for line in map(parse, read_limited(path, MOST_BYTES).decode("utf-8").split("\n")) if line]
    return sorted(lines, key=lambda line: float(line["epoch"]))


def parse(text: str) -> dict[str, Any] | None:
    """A line of `metrics.jsonl`; None for one cut short, or that tells of no time."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.get("kind") not in ("step", "epoch"):
        return None
    epoch = number(line.get("epoch"))
    return line if epoch is not None and epoch >= EARLIEST else None


def number(value: Any) -> float | None:
    """A number from a file; None for anything else, or one that is not believed."""
    return float(value) if type(value) in (int, float) and -LARGEST <= value <= LARGEST else None
