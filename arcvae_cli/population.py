"""Population-based training (Jaderberg et al. 2017): members train in turns, the worst go on from copies of the best.

All state is in the members' checkpoints and in `population.json`, which is written before what it asks for is done.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from arcvae_cli import checkpoints
from arcvae_cli.errors import ArcvaeError
from arcvae_cli.files import is_file
from arcvae_cli.folders import write_json
from arcvae_cli.presets import Layer, nested, resolve
from arcvae_cli.settings import Settings, Table
from arcvae_cli.step import mix
from arcvae_cli.sweeps import POPULATIONS, Plan

FACTORS = (0.8, 1.25)  # of the paper
# where a member was copied, its best epoch and the ranking of its checkpoints would be of other settings
OWN = {
    "train": {"early_stopping": False},
    "checkpoint": {"every_epochs": 0, "save_top_k": 0},
    "log": {"images_every": 0, "tensorboard": False, "recorders": (), "wandb": "off"},
}
Scores = Mapping[str, Mapping[str, float] | None]  # nats by `rate` and `distortion`, by member; None if it diverged


class Range(NamedTuple):
    """What a setting is searched in; its ends belong to it."""

    low: float
    high: float
    log: bool

    def at(self, share: float) -> float:
        """The value at a share of the way from `low` to `high`."""
        value = self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share
        return self.clamp(value)

    def clamp(self, value: float) -> float:
        return min(max(value, self.low), self.high)


def spread(over: Mapping[str, Range], count: int, seed: int) -> list[dict[str, float]]:
    """`count` settings, one in each `count`-th of every range (a Latin hypercube: McKay et al. 1979)."""
    generator = random.Random(mix(seed, "population"))
    columns = {key: generator.sample(range(count), count) for key in over}
    return [{key: over[key].at((columns[key][i] + generator.random()) / count) for key in over} for i in range(count)]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a point is nowhere above another and somewhere below; all objectives are minimised."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def ranked(points: Mapping[str, Sequence[float]]) -> list[str]:
    """Names from best to worst: by non-dominated front, then by crowding distance (NSGA-II: Deb et al. 2002)."""
    left, order = dict(points), list[str]()
    while left:
        front = [name for name in left if not any(dominates(other, left[name]) for other in left.values())]
        distance = dict.fromkeys(front, 0.0)
        for axis in range(len(left[front[0]])):
            row = sorted(front, key=lambda name, axis=axis: points[name][axis])  # type: ignore[misc]
            width = points[row[-1]][axis] - points[row[0]][axis] or 1.0
            for before, name, after in zip(row, row[1:], row[2:], strict=False):
                distance[name] += (points[after][axis] - points[before][axis]) / width
            distance[row[0]] = distance[row[-1]] = float("inf")
        order += sorted(front, key=lambda name: -distance[name])
        left = {name: point for name, point in left.items() if name not in distance}
    return order


class Population:
    """The study in a folder. Of each member `trail` has the settings, the epoch they began after and whose copy it was.

    `scores`: of every finished generation; `pending`: the copies to be made before the next one.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.base, self.interval, self.two = (
            folder,
            plan.base,
            plan.interval,
            plan.search == POPULATIONS[1],
        )
        self.over = {key: Range(low, high, kind == "log") for key, (kind, low, high) in plan.over.items()}
        self.epochs, self.seed = self.base["train"]["epochs"], self.base["train"]["seed"]
        self.trail: dict[str, list[Table]] = {
            f"member-{index}": [{"after": 0, "copy_of": None, "settings": values}]
            for index, values in enumerate(spread(self.over, plan.trials, self.seed))
        }
        self.scores: list[Scores] = []
        self.pending: dict[str, str] = {}
        if is_file(folder / "population.json"):
            found = json.loads((folder / "population.json").read_bytes())
            self.trail, self.scores, self.pending = found["trail"], found["scores"], found["pending"]

    def write(self) -> None:
        document = {"trail": self.trail, "scores": self.scores, "pending": self.pending}
        write_json(self.folder / "population.json", document)

    def generations(self) -> Iterator[int]:
        """The last epochs of the generations that are left to train."""
        yield from [*range(self.interval, self.epochs, self.interval), self.epochs][len(self.scores) :]

    def settings(self, name: str) -> Settings:
        """The present settings of a member."""
        values = {key: (value, "--over") for key, value in self.trail[name][-1]["settings"].items()}
        return resolve(
            None, Layer("base", self.base), Layer("population", OWN), Layer("--over", nested(values))
        ).settings

    def ranked(self, scores: Scores) -> dict[str, tuple[float, ...]]:
        """What is minimised, from the best member to the worst, without those that diverged."""
        found = {name: (one["rate"], one["distortion"]) for name, one in scores.items() if one is not None}
        points = found if self.two else {name: (sum(both),) for name, both in found.items()}
        return {name: points[name] for name in ranked(points)}

    def evolve(self, scores: Scores, epoch: int) -> None:
        """Take the scores of a generation that ends at an epoch; after all but the last choose copies and settings.

        Each of the worst quarter, and whoever diverged, becomes a copy of one drawn from the best quarter of those that
        dominate it, with each setting of that one times 0.8 or 1.25. One that no other dominates stays as it is.
        """
        self.scores.append(scores)
        points, quarter = self.ranked(scores), max(1, len(scores) // 4)
        if not points:
            raise ArcvaeError(f"{self.folder}: every member diverged", "lower train.lr or its range")
        if epoch < self.epochs:
            generator = random.Random(mix(self.seed, "generation", len(self.scores)))
            diverged = [name for name in self.trail if name not in points]
            losers = diverged + list(points)[len(points) - max(0, quarter - len(diverged)) :]
            for name in losers:
                better = [one for one in points if one not in losers]
                if name in points:
                    better = [one for one in better if dominates(points[one], points[name])]
                if better:
                    self.pending[name] = parent = generator.choice(better[:quarter])
                    values = self.trail[parent][-1]["settings"]
                    moved = {key: one.clamp(values[key] * generator.choice(FACTORS)) for key, one in self.over.items()}
                    self.trail[name].append({"after": epoch, "copy_of": parent, "settings": moved})
        self.write()

    def copy_pending(self) -> None:
        """Make the pending copies: weights, optimiser and history of the parent, under the member's own settings.

        No parent is itself a copy of this generation, so that doing it again after an interruption changes nothing.
        """
        for name, parent in self.pending.items():
            source, target = (self.folder / one for one in (parent, name))
            values = checkpoints.read(source / "checkpoints" / "last.pth")
            # a best epoch under other settings does not compare: it is chosen anew
            values |= {"config": checkpoints.header(self.settings(name), 0)["config"], "best": None}
            checkpoints.save(target / "checkpoints" / "last.pth", values)
            checkpoints.copy(source / "metrics.jsonl", target / "metrics.jsonl")
        if self.pending:
            self.pending = {}
            self.write()


def lineage(population: Population, name: str) -> list[tuple[int, int, str, Table]]:
    """The pieces that led to a member's weights, through those it was copied from: a schedule of its settings."""
    until, found = population.epochs, list[tuple[int, int, str, Table]]()
    while until:
        piece = next(one for one in reversed(population.trail[name]) if one["after"] < until)
        found.append((piece["after"] + 1, until, name, piece["settings"]))
        name, until = piece["copy_of"] or name, piece["after"]
    return found[::-1]
