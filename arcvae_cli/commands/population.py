"""`arcvae sweep --search pbt`: the members of a population train in turns in one process, on one corpus."""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from arcvae_cli import folders, sweeps
from arcvae_cli.commands.reading import importing, open_device, open_named
from arcvae_cli.commands.train import closing, new_model, stopped
from arcvae_cli.console import Console, cell
from arcvae_cli.errors import ArcvaeError, Interrupted
from arcvae_cli.files import is_file
from arcvae_cli.settings import Settings
from arcvae_cli.signals import GracefulExit

if TYPE_CHECKING:
    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.population import Population
    from arcvae_cli.sweeps import Plan


def search_population(folder: Path, plan: Plan, console: Console) -> None:
    """Train the population of a sweep, or go on with it; evaluate its members and show them."""
    with importing():
        from arcvae_cli.population import Population

    again = f"`arcvae sweep --study {shlex.quote(str(folder))}` goes on"
    with GracefulExit() as signals, ExitStack() as locks:
        locks.callback(folders.take(folder).release)
        population = Population(folder, plan)
        population.write()
        try:
            train(population, locks, signals, console)
        except Interrupted as error:
            raise Interrupted(error.what, error.exit_code, again, error.at_once) from error
        except KeyboardInterrupt:
            raise stopped(signals, "all finished epochs are saved", again) from None
    show(population, console)


def train(population: Population, locks: ExitStack, signals: GracefulExit, console: Console) -> None:
    """All generations that are left, and the evaluation of every member that has not diverged in the last one."""
    base = population.settings("member-0")
    corpus = open_named(base.data, open_device(base.train.device), ("train", "val"), console)
    runs = {name: open_member(population, name) for name in population.trail}
    for run in runs.values():
        locks.callback(run.release)
    signals.patient = True  # from here on there is something to save
    for epoch in population.generations():
        population.copy_pending()
        scores = {}
        for name, run in runs.items():
            began = time.perf_counter()
            scores[name] = score = turn(population.settings(name), corpus, run, epoch, signals)
            shown = "diverged"
            if score is not None:
                shown = "reconstruction {distortion:.2f}, KL {rate:.2f} nats".format(**score)
            console.note(f"epoch {epoch}: {name}: {shown}; {time.perf_counter() - began:.1f} s")
        population.evolve(scores, epoch)
        for name, parent in population.pending.items():
            values = population.trail[name][-1]["settings"]
            given = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
            console.note(f"epoch {epoch}: {name} becomes a copy of {parent}, with {given}")
    signals.patient = False
    if signals() is not None:  # during the last epoch
        raise KeyboardInterrupt
    for name, run in runs.items():
        if population.scores[-1][name] is not None:
            evaluate(corpus, run)


def open_member(population: Population, name: str) -> folders.RunFolder:
    """The run folder of a member, locked."""
    if is_file(population.folder / name / "config.toml"):
        return folders.resume(population.folder / name)
    return folders.create(population.folder, name, name, population.settings(name))


def turn(
    settings: Settings, corpus: Corpus, folder: folders.RunFolder, epoch: int, signals: GracefulExit
) -> dict[str, float] | None:
    """Train a member from its checkpoint to the end of an epoch. Its rate and distortion in nats; None if it diverged.

    A trainer lives for one turn, so that a search that goes on after an interruption does what any search does.
    """
    from arcvae_cli import checkpoints
    from arcvae_cli.recorders.images import ImageRecorder
    from arcvae_cli.recorders.jsonl import JsonlRecorder
    from arcvae_cli.trainer import Trainer

    trainer = Trainer(settings, corpus, new_model(settings, corpus, corpus.device), folder, resumed=True)
    trainer.stop, trainer.since = signals, time.perf_counter()
    last = folder.checkpoints / "last.pth"
    if is_file(last):
        trainer.resume(checkpoints.read(last), last)
    folder.write_config(settings)
    trainer.recorders.append(JsonlRecorder(folder.path / "metrics.jsonl"))
    if epoch == settings.train.epochs:
        trainer.recorders.append(ImageRecorder(folder.images, corpus.kind, corpus.structure))
    try:
        with closing(trainer.recorders):
            trainer.fit(epoch)
    except ArcvaeError as error:
        if isinstance(error.__cause__, FloatingPointError):
            return None
        raise
    val, positions = trainer.history[-1].val, corpus.mean_positions if settings.objective.reduction == "mean" else 1.0
    return {"rate": val.kl, "distortion": val.reconstruction * positions}


def evaluate(corpus: Corpus, folder: folders.RunFolder) -> None:
    """Evaluate a finished run at its best epoch, unless that is done."""
    from arcvae_cli import checkpoints
    from arcvae_cli.commands.evaluate import report

    status = folders.read_status(folder.path) or folders.STATUS
    if not status["judged"]:
        report(checkpoints.load(folder.checkpoints / checkpoints.BEST, corpus.device), corpus, "val", folder)
        kept = {key: value for key, value in status.items() if key not in ("state", "time", "pid", "host", "started")}
        folder.write_status("finished", **{**kept, "judged": True})


def show(population: Population, console: Console) -> None:
    """Tables of the members and of the settings that led to the best one, a picture of all settings by epoch."""
    from arcvae_cli.population import lineage
    from arcvae_cli.render.plots import Curve, save_curves

    folder, keys, parts = population.folder, [*population.over], ("distortion", "rate", "elbo")
    names = [name for name, score in population.scores[-1].items() if score is not None]
    found = {name: sweeps.measured(folder, name) for name in names}
    rows, lines = [], []
    for name in population.ranked(found):
        trail = population.trail[name]
        copies = ", ".join(f"{piece['copy_of']} after {piece['after']}" for piece in trail[1:])
        rows.append({"run": name, "values": trail[-1]["settings"], **found[name], "trail": trail})
        texts = [f"{trail[-1]['settings'][key]:.4g}" for key in keys] + [cell(found[name][part]) for part in parts]
        lines.append([name, *texts, copies or "-"])
    lines += [[name, "diverged"] for name in population.trail if name not in found]
    console.table(
        "Members, best first", ("run", *keys, "recon", "KL", "ELBO", "copy of"), lines, left=(0, len(keys) + 4)
    )
    best = lineage(population, rows[0]["run"])
    led = [[f"{first}-{end}", name, *(f"{values[key]:.4g}" for key in keys)] for first, end, name, values in best]
    console.table(f"What led to {rows[0]['run']}", ("epochs", "run", *keys), led, left=(0, 1))
    curves = list[Curve]()
    for panel, key in enumerate(keys):
        for name, pieces in population.trail.items():
            ends = [*(piece["after"] for piece in pieces[1:]), population.epochs]
            at = [at for piece, end in zip(pieces, ends, strict=True) for at in (piece["after"], end)]
            values = [value for piece in pieces for value in [piece["settings"][key]] * 2]
            curves.append((f"{'_' * (panel > 0)}{name}", key, at, values, name not in found))
    log = [key for key, one in population.over.items() if one.log]
    save_curves(folder / "population.png", curves, f"{folder.name}: settings of the members", log=log)
    console.note(
        f"wrote population.json and population.png to {folder}; next: arcvae compare {shlex.quote(str(folder))}"
    )
    console.json({"sweep": str(folder), "runs": rows, "scores": population.scores})
