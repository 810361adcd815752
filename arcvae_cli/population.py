"""`arcvae sweep --search pbt`: population-based training (Jaderberg et al. 2017, "Population Based Training").

The members train in turns, in one process on one corpus; after each generation the worst go on from copies of the best.
All state is in their checkpoints and in `population.json`, which is written before its copies are made.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcvae_cli import folders
from arcvae_cli.commands.reading import importing, open_device, open_named
from arcvae_cli.commands.train import closing, new_model
from arcvae_cli.console import Console
from arcvae_cli.errors import ArcvaeError, DivergedError, Interrupted
from arcvae_cli.files import is_file
from arcvae_cli.presets import Layer, nested, resolve
from arcvae_cli.settings import Settings, Table
from arcvae_cli.signals import GracefulExit
from arcvae_cli.sweeps import Plan, Row, Run

if TYPE_CHECKING:
    from arcvae_cli.data.corpus import Corpus

FACTORS, TRIES = (0.8, 1.25), 20  # the factors of the paper; draws of settings that no other member has
# what would compare epochs under other settings, and loggers that know one run in a process
OFF = {"train": {"early_stopping": False}, "checkpoint": {"every_epochs": 0, "save_top_k": 0}}
OFF |= {"log": {"images_every": 0, "tensorboard": False, "recorders": (), "wandb": "off"}}
Scores = Mapping[str, Mapping[str, float] | None]  # nats by `rate` and `distortion`, by member; None if it diverged


def spread(over: Mapping[str, Sequence[Any]], count: int, generator: random.Random) -> list[dict[str, float]]:
    """`count` settings, one in each `count`-th of every range (a Latin hypercube: McKay et al. 1979)."""
    found: list[dict[str, float]] = [{} for _ in range(count)]
    parts = [generator.sample(range(count), count) for _ in over]
    for index, settings in enumerate(found):
        for (key, (kind, low, high)), part in zip(over.items(), parts, strict=True):
            share = (part[index] + generator.random()) / count
            settings[key] = low * (high / low) ** share if kind == "log" else low + (high - low) * share
    return found


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a point is nowhere above another and somewhere below; all objectives are minimised."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


class Population:
    """The population of a sweep. Of each member `trail` has its settings, from which epoch on, and whose copy it was.

    `scores`: of every finished generation, by member its nats by `rate` and `distortion`, None if it diverged.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan, epochs = folder, plan, plan.base["train"]["epochs"]
        self.ends = [*range(plan.interval, epochs, plan.interval), epochs]  # of the generations, in epochs
        first = enumerate(spread(plan.axes, plan.trials, self.generator("population")))
        pieces = {f"member-{index}": [{"after": 0, "copy_of": None, "settings": one}] for index, one in first}
        state: Table = {"trail": pieces, "scores": []}
        if is_file(folder / "population.json"):
            state = json.loads((folder / "population.json").read_bytes())
        self.trail, self.scores = state["trail"], state["scores"]

    def generator(self, *place: int | str) -> random.Random:
        """What draws at a place in the search: it has no state that an interruption could lose."""
        from arcvae_cli.step import mix

        return random.Random(mix(self.plan.base["train"]["seed"], *place))

    def settings(self, name: str) -> Settings:
        """The present settings of a member."""
        values = nested({key: (value, "--over") for key, value in self.trail[name][-1]["settings"].items()})
        return resolve(None, Layer("base", self.plan.base), Layer("pbt", OFF), Layer("--over", values)).settings

    def points(self, scores: Scores) -> dict[str, tuple[float, ...]]:
        """What is minimised, without the members that diverged, in the order of how many others dominate each.

        The rank of Fonseca and Fleming (1993); of one objective, from the best member to the worst.
        """
        found = {name: (one["rate"], one["distortion"]) for name, one in scores.items() if one is not None}
        points = found if self.plan.search == "pbt-pareto" else {name: (sum(both),) for name, both in found.items()}
        above = {name: sum(dominates(other, point) for other in points.values()) for name, point in points.items()}
        return {name: points[name] for name in sorted(points, key=above.__getitem__)}

    def evolve(self, scores: Scores) -> None:
        """Take the scores of a generation; after all but the last choose copies and their settings.

        Each of the worst quarter, and whoever diverged, becomes a copy of one drawn from the best quarter of those that
        dominate it, with each setting of that one times 0.8 or 1.25. One that no other dominates stays as it is.
        """
        epoch, points, quarter = self.ends[len(self.scores)], self.points(scores), max(1, len(scores) // 4)
        if not points:
            raise ArcvaeError(f"{self.folder}: every member diverged", "lower train.lr or its range")
        self.scores.append(scores)
        generator = self.generator("generation", len(self.scores))
        diverged = [name for name in self.trail if name not in points]
        losers = diverged + list(points)[len(points) - max(0, quarter - len(diverged)) :]
        for name in losers if epoch < self.ends[-1] else ():
            better = [one for one in points if name in diverged or dominates(points[one], points[name])]
            better = [one for one in better if one not in losers][:quarter]
            if better:
                parent = generator.choice(better)
                values = self.trail[parent][-1]["settings"]
                others = [pieces[-1]["settings"] for pieces in self.trail.values()]
                for _ in range(TRIES):
                    moved = {key: value * generator.choice(FACTORS) for key, value in values.items()}
                    moved = {key: min(max(moved[key], low), high) for key, (_, low, high) in self.plan.axes.items()}
                    if moved not in others:
                        break
                self.trail[name].append({"after": epoch, "copy_of": parent, "settings": moved})
        folders.write_json(self.folder / "population.json", {"trail": self.trail, "scores": self.scores})


def search_population(folder: Path, plan: Plan, console: Console, signals: GracefulExit) -> list[Row]:
    """Train the population of a sweep, or go on with it, until a signal. Returns the rows of a sweep."""
    with ExitStack() as locks:
        locks.callback(folders.take(folder).release)
        population = Population(folder, plan)
        with suppress(KeyboardInterrupt, Interrupted):
            train(population, locks, signals, console)
        return [Run(folder, plan, name, pieces[-1]["settings"]).look() for name, pieces in population.trail.items()]


def train(population: Population, locks: ExitStack, signals: GracefulExit, console: Console) -> None:
    """The generations that are left, and the evaluation of every member that has not diverged in the last one."""
    with importing():
        from arcvae_cli import checkpoints
        from arcvae_cli.commands import evaluate

    base, runs = population.settings("member-0"), dict[str, folders.RunFolder]()
    corpus = open_named(base.data, open_device(base.train.device), ("train", "val"), console)
    for name in population.trail:
        path, own = population.folder / name, population.settings(name)
        begun = is_file(path / "config.toml")
        runs[name] = folders.resume(path) if begun else folders.create(population.folder, name, name, own)
        locks.callback(runs[name].release)
    signals.patient = True  # from here on there is something to save
    for epoch in population.ends[len(population.scores) :]:
        for name, run in runs.items():
            if resolve(str(run.path / "config.toml")).settings != (own := population.settings(name)):
                piece = population.trail[name][-1]
                become_copy(run, population.folder / piece["copy_of"], own)
                given = ", ".join(f"{key} {value:.4g}" for key, value in piece["settings"].items())
                console.note(f"epoch {piece['after']}: {name} becomes a copy of {piece['copy_of']}, with {given}")
        scores = {}
        for name, run in runs.items():
            scores[name] = score = turn(population.settings(name), corpus, run, epoch, signals)
            nats = "KL {rate:.2f}, reconstruction {distortion:.2f} nats".format(**score) if score else "diverged"
            console.note(f"epoch {epoch}: {name}: {nats}")
        population.evolve(scores)
    signals.patient = False
    for name, run in runs.items():
        if signals() is not None:
            return
        status = folders.read_status(run.path) or folders.STATUS
        if population.scores[-1][name] is None:
            Run(population.folder, population.plan, name, {}).end("pruned", "diverged")
        elif not status["judged"]:
            evaluate.report(checkpoints.load(run.checkpoints / checkpoints.BEST, corpus.device), corpus, "val", run)
            run.write_status(**{**status, "judged": True})


def become_copy(run: folders.RunFolder, parent: Path, settings: Settings) -> None:
    """Make a member a copy of its parent, with its weights, optimiser and history, under settings of its own.

    These are written last: a member whose `config.toml` has other settings than its trail is still to be copied. No
    parent is itself a copy of this generation, so that doing it again after an interruption changes nothing.
    """
    from arcvae_cli import checkpoints

    values = checkpoints.read(parent / "checkpoints" / "last.pth")
    # a best epoch under other settings does not compare: it is chosen anew
    values |= {"config": checkpoints.header(settings, 0)["config"], "best": None}
    checkpoints.save(run.checkpoints / "last.pth", values)
    checkpoints.copy(parent / "metrics.jsonl", run.path / "metrics.jsonl")
    run.write_config(settings)


def turn(
    settings: Settings, corpus: Corpus, folder: folders.RunFolder, epoch: int, stop: Callable[[], int | None]
) -> dict[str, float] | None:
    """Train a member from its checkpoint to the end of an epoch. Its rate and distortion in nats; None if it diverged.

    A trainer lives for one turn, so that a search that goes on after an interruption does what any search does.
    """
    with importing():
        from arcvae_cli import checkpoints
        from arcvae_cli.recorders.images import ImageRecorder
        from arcvae_cli.recorders.jsonl import JsonlRecorder
        from arcvae_cli.trainer import Trainer

    trainer = Trainer(settings, corpus, new_model(settings, corpus, corpus.device), folder, resumed=True)
    trainer.stop, trainer.since = stop, time.perf_counter()
    if is_file(last := folder.checkpoints / "last.pth"):
        trainer.resume(checkpoints.read(last), last)
    trainer.recorders.append(JsonlRecorder(folder.path / "metrics.jsonl"))
    if epoch == settings.train.epochs:
        trainer.recorders.append(ImageRecorder(folder.images, corpus.kind, corpus.structure))
    try:
        with closing(trainer.recorders):
            trainer.fit(epoch)
    except DivergedError:
        return None
    val, positions = trainer.history[-1].val, corpus.mean_positions if settings.objective.reduction == "mean" else 1.0
    return {"rate": val.kl, "distortion": val.reconstruction * positions}
