"""`arcvae sweep --search pbt`: the members of a population train in turns in one process, on one corpus."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcvae_cli import folders
from arcvae_cli.commands.reading import importing, open_device, open_named
from arcvae_cli.commands.train import closing, new_model
from arcvae_cli.console import Console, cell
from arcvae_cli.errors import ArcvaeError, InputError, Interrupted
from arcvae_cli.files import is_file
from arcvae_cli.settings import Settings, elbo_scale
from arcvae_cli.signals import GracefulExit

if TYPE_CHECKING:
    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.population import Over, Population


def search_population(
    folder: Path, base: Settings, over: Over, members: int, interval: int, two: bool, console: Console
) -> dict[str, Any]:
    """Train a population in a folder, or go on with it; evaluate its members and show them. The document of `--json`.

    `interval`: epochs of a generation; `two`: minimise rate and distortion, not the sum of both, the negative ELBO.
    """
    with importing():
        from arcvae_cli.population import Population, check_ranges

    if members < 2:
        raise InputError(f"--population {members}: too small", "use at least 2")
    if elbo_scale(base) is None:
        fix = "use objective.reconstruction=cross_entropy and class_weights=none"
        raise InputError("--search pbt: this objective has no ELBO to rank members by", fix)
    check_ranges(base.table(), over)
    folder.mkdir(parents=True, exist_ok=True)
    with GracefulExit() as signals, ExitStack() as locks:
        locks.callback(folders.take(folder).release)
        population = Population(folder, base.table(), over, members, interval, two)
        population.write()
        corpus = open_named(base.data, open_device(base.train.device), ("train", "val"), console)
        runs = {name: open_member(population, name) for name in population.trail}
        for run in runs.values():
            locks.callback(run.release)
        signals.patient = True
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
        reports = {name: evaluated(corpus, run) for name, run in runs.items() if population.scores[-1][name]}
    return show(population, reports, console)


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
    except Interrupted as error:
        raise Interrupted(error.what, error.exit_code, "the same command goes on", error.at_once) from error
    except ArcvaeError as error:
        if isinstance(error.__cause__, FloatingPointError):
            return None
        raise
    val, positions = trainer.history[-1].val, corpus.mean_positions if settings.objective.reduction == "mean" else 1.0
    return {"rate": val.kl, "distortion": val.reconstruction * positions}


def evaluated(corpus: Corpus, folder: folders.RunFolder) -> dict[str, Any]:
    """The evaluation of a finished run at its best epoch, made once."""
    from arcvae_cli import checkpoints
    from arcvae_cli.commands.evaluate import report

    status = folders.read_status(folder.path) or folders.STATUS
    if status["judged"] and is_file(folder.path / "metrics.json"):
        document: dict[str, Any] = json.loads((folder.path / "metrics.json").read_bytes())
        return document
    document = report(checkpoints.load(folder.checkpoints / checkpoints.BEST, corpus.device), corpus, "val", folder)
    kept = {key: value for key, value in status.items() if key not in ("state", "time", "pid", "host", "started")}
    folder.write_status("finished", **{**kept, "judged": True})
    return document


def show(population: Population, reports: dict[str, dict[str, Any]], console: Console) -> dict[str, Any]:
    """Tables of the members and of the settings that led to the best one, a picture of all settings by epoch."""
    from arcvae_cli.population import lineage
    from arcvae_cli.render.plots import Curve, save_curves

    keys, parts, rows = [*population.over], ("reconstruction", "kl", "elbo"), []
    found = {name: {part: report["elbo"][f"{part}_nats"] for part in parts} for name, report in reports.items()}
    order = list(
        population.ranked(
            {name: {"rate": one["kl"], "distortion": one["reconstruction"]} for name, one in found.items()}
        )
    )
    for name in order:
        values = population.trail[name][-1]["settings"]
        nats = [cell(found[name][part], ".3f") for part in parts]
        copies = [f"{piece['copy_of']} after {piece['after']}" for piece in population.trail[name][1:]]
        rows.append([name, *(f"{values[key]:.4g}" for key in keys), *nats, ", ".join(copies) or "-"])
    diverged = [[name, "diverged"] for name in population.trail if name not in order]
    heads = ("run", *keys, "reconstruction", "KL", "ELBO", "copy of")
    console.table("Members, best first", heads, [*rows, *diverged], left=(0, len(heads) - 1))
    best = lineage(population, order[0])
    trail = [[f"{first}-{end}", name, *(f"{values[key]:.4g}" for key in keys)] for first, end, name, values in best]
    console.table(f"What led to {order[0]}", ("epochs", "run", *keys), trail, left=(0, 1))
    epochs, curves = population.base["train"]["epochs"], list[Curve]()
    for panel, key in enumerate(keys):
        for name, pieces in population.trail.items():
            ends = [*(piece["after"] for piece in pieces[1:]), epochs]
            at = [at for piece, end in zip(pieces, ends, strict=True) for at in (piece["after"], end)]
            values = [value for piece in pieces for value in [piece["settings"][key]] * 2]
            curves.append((f"{'_' * (panel > 0)}{name}", key, at, values, name not in order))
    picture = population.folder / "population.png"
    log = [key for key, one in population.over.items() if one.log]
    save_curves(picture, curves, f"{population.folder.name}: settings of the members", log=log)
    console.note(f"wrote population.json, population.png and {len(rows)} runs to {population.folder}")
    evaluated = {name: found[name] for name in order}
    document = {"best": order[0], "evaluated": evaluated, "trail": population.trail, "scores": population.scores}
    console.json(document)
    return document
