"""`arcvae train`: a run, from settings to a verdict."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcvae_cli import BEGAN, folders
from arcvae_cli.commands import options
from arcvae_cli.commands.ranks import joined
from arcvae_cli.commands.reading import importing, open_device, open_named, unbuilt
from arcvae_cli.console import Console
from arcvae_cli.errors import ArcvaeError, InputError, Interrupted
from arcvae_cli.files import size
from arcvae_cli.presets import Layer, Resolved, environment_layer, resolve, set_layer
from arcvae_cli.settings import Settings
from arcvae_cli.signals import GracefulExit, exit_code, signal_name

if TYPE_CHECKING:
    import torch

    from arcvae_cli.data.corpus import Corpus
    from arcvae_cli.distributed import Ranks
    from arcvae_cli.models.base import VAE
    from arcvae_cli.records import Recorder

QUICK_EPOCHS = 5
QUICK_EXAMPLES = 8_000
OVERFIT_STEPS = 3_000
Earlier = tuple[Path, Path | None] | None  # the folder of a run to resume, and its checkpoint if one was named
Document = dict[str, Any] | None
training, run_option = (partial(typer.Option, rich_help_panel=panel) for panel in (options.TRAINING, options.RUN))
QUICK_HELP = f"{QUICK_EPOCHS} epochs on {QUICK_EXAMPLES:,} examples, the schedule compressed"
OVERFIT_HELP = "memorise one batch as a sanity check; no run folder"
RESUME_HELP = "resume a run: its name, folder or checkpoint, or latest; auto: resume --run-name if it exists"
GPUS_HELP = "train on so many GPUs of this machine, each with its part of every batch"
gpus_option = training("--gpus", min=1, show_default="1", help=GPUS_HELP)
resume_option = run_option(metavar="RUN", help=RESUME_HELP, autocompletion=options.complete_runs)


@options.with_flags(options.TABLE)
def train(
    *,
    preset: options.PresetOption = None,
    data: options.DataOption = None,
    flags: Layer,
    quick_test: Annotated[bool, training("--quick-test", help=QUICK_HELP)] = False,
    overfit_batch: Annotated[bool, training("--overfit-batch", help=OVERFIT_HELP)] = False,
    gpus: Annotated[int | None, gpus_option] = None,
    resume: Annotated[str | None, resume_option] = None,
    run_name: Annotated[str | None, run_option(show_default="preset and time")] = None,
    runs_dir: Annotated[Path, run_option(help="folder of the runs")] = Path("runs"),
    assignments: options.SetOption = None,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train a model, showing beta and the KL of every dimension.

    Without a preset: the plain grid model on arc, linear_warmup, no free bits. Every flag overrides the preset;
    `arcvae presets show NAME` lists all settings.
    """
    console = Console(quiet=quiet, as_json=as_json)
    console.out.quiet = console.err.quiet = os.environ.get("RANK", "0") != "0"
    below, above = options.data_layers(data)
    layers = [environment_layer(), below, set_layer(assignments or []), above, flags]
    if resume is not None and overfit_batch:
        raise InputError("--resume, --overfit-batch: cannot be combined", "give one of the two")
    folders.check_name(run_name)
    earlier = None if resume is None else folders.find_resumed(resume, runs_dir, run_name)
    if earlier is not None and preset is None and resume != folders.AUTO:  # the flags say only what changes
        preset = str(earlier[0] / "config.toml")
    resolved = compressed(preset, layers) if quick_test else resolve(preset, *layers)
    if overfit_batch:
        memorise(resolved.settings, console)
        return
    new_folder = partial(folders.create, runs_dir, run_name, Path(preset).stem if preset else "run", resolved.settings)
    with joined(resolved.settings, gpus) as ranks:
        supervised(resolved, console, earlier, new_folder, ranks=ranks)


def supervised(resolved: Resolved, console: Console, *arguments: Any, **more: Any) -> folders.RunFolder:
    """`run`, which signals ask to save itself and to stop, and whose errors are logged."""
    with GracefulExit() as signals:
        try:
            return run(resolved, console, signals, *arguments, **more)
        except KeyboardInterrupt:
            raise stopped(signals, "at once") from None
        except Exception as error:
            console.log(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}")
            raise


def stopped(signals: GracefulExit, where: str, fix: str | None = None) -> Interrupted:
    """The error of a signal outside of the training."""
    asked = signals() or signal.SIGINT
    return Interrupted(f"stopped by {signal_name(asked)}, {where}", exit_code(asked), fix)


def compressed(preset: str | None, layers: Sequence[Layer]) -> Resolved:
    """The settings under `--quick-test`: the schedule in 5 epochs, or in `--epochs`, with beta set at every step."""
    resolve(preset, *layers)  # refuses an invalid --epochs by its name
    given = layers[-1].values.get("train", {}).pop("epochs", None)
    settings = resolve(preset, *layers).settings  # of the length that the schedule was made for
    target = min(QUICK_EPOCHS, settings.train.epochs) if given is None else given
    schedule = settings.schedule.compressed(target / settings.train.epochs)
    limit = min(QUICK_EXAMPLES, settings.data.limit or QUICK_EXAMPLES)
    short = {"schedule": schedule.model_dump(mode="json", by_alias=True), "train": {"epochs": target}}
    return resolve(preset, *layers, Layer("--quick-test", {**short, "data": {"limit": limit}}))


def run(
    resolved: Resolved,
    console: Console,
    signals: GracefulExit,
    earlier: Earlier,
    new: Callable[[], folders.RunFolder],
    arrays: Path | None = None,
    began: float = BEGAN,
    ranks: Ranks | None = None,
) -> folders.RunFolder:
    """Train, evaluate the best epoch, print the next commands; in a folder of `new`, or of `earlier` to be resumed.

    `arrays`: the file of the data, which is moved into the new folder. `began`: when, by `time.perf_counter`. `ranks`:
    see `joined`; the first rank alone writes and shows.
    """
    settings = resolved.settings
    with importing():
        from concurrent.futures import ThreadPoolExecutor

        from arcvae_cli.data.corpora import load_arrays

        # read in a thread while PyTorch is imported, unless it has to be built, which prints progress
        begun = None if unbuilt(settings.data) else ThreadPoolExecutor(1).submit(load_arrays, settings.data)
        from arcvae_cli import checkpoints
        from arcvae_cli.distributed import Ranks
        from arcvae_cli.evaluation.verdict import FEW_STEPS
        from arcvae_cli.recorders.external import check_installed, external_recorders
        from arcvae_cli.recorders.images import ImageRecorder
        from arcvae_cli.recorders.jsonl import JsonlRecorder
        from arcvae_cli.recorders.live import EpochLines, LiveTable
        from arcvae_cli.trainer import Trainer

    check_installed(settings.log)
    folder, checkpoint, values, ranks = None, Path(), None, ranks or Ranks()
    if earlier is not None and ranks.first:
        folder, checkpoint, values, report = open_run(*earlier, settings)
        if report is not None:
            console.note(f"run {folder.name} is finished: nothing to do")
            console.json(report)
            ranks.share((folder.path, None, False))
            return folder
        if (folder.path.parent / folders.LATEST).is_symlink():
            folders.point_latest(folder.path.parent, folder.name)
    place = open_device(ranks.device or settings.train.device)
    corpus = open_named(settings.data, place, ("train", "val"), console, begun=begun)
    model = new_model(settings, corpus, place)
    signals.patient = True  # from here on there is something to save
    if ranks.first:
        folder = folder or new()
    opened: tuple[Path, Path | None, bool] = folder.path if folder else Path(), checkpoint, values is not None
    path, start, resumable = ranks.share(opened)
    if folder is None:
        folder = folders.RunFolder(path)
        if start is None:  # there is nothing to do
            return folder
        checkpoint, values = start, checkpoints.read(start) if resumable else None
    if arrays is not None:
        moved = Path(shutil.move(arrays, folder.path.resolve() / arrays.name))
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"path": moved})})
    trainer = Trainer(settings, corpus, model, folder, earlier is not None, ranks)
    trainer.stop, trainer.since, recorders = signals, began, trainer.recorders
    if values is not None:
        trainer.resume(values, checkpoint)
    if not ranks.first:
        trainer.fit()
        return folder
    folder.write_config(settings)
    screen, log = copy(console), copy(console)  # the log has a line an epoch where the screen has a table
    console.log_file = log.log_file = folder.path / "run.log"
    log.quiet = True
    if (short := settings.schedule.warning(settings.train.epochs)) is not None:
        chosen = any(key.startswith(("train.epochs", "schedule.")) for key in resolved.origins)
        (console.warn if chosen else console.note)(short)  # the defaults are no mistake of the user's
    epochs, each = settings.train.epochs, trainer.steps
    if each * epochs < FEW_STEPS:
        what = f"{each * epochs:,} steps in {epochs} epoch{'s' * (epochs > 1)}: a VAE of {corpus.kind} needs some"
        few = f"{what} {FEW_STEPS:,}; use --epochs {-(-FEW_STEPS // each)}"
        (console.note if "--quick-test" in resolved.origins.values() else console.warn)(few)
    live = LiveTable(screen) if screen.terminal and not screen.quiet else EpochLines(screen)
    # the live one first, so that its header does not wait for the imports of the others
    own: list[Recorder] = [live, EpochLines(log), JsonlRecorder(folder.path / "metrics.jsonl")]
    own.append(ImageRecorder(folder.images, corpus.kind, corpus.structure))
    recorders += own + (loggers := external_recorders(settings.log, folder, console))
    if settings.train.engine == "compile":
        console.note("compiling the network, about half a minute")
    with closing(loggers):
        try:
            with closing(own):
                trainer.fit()
                signals.patient = False
            if signals() is not None:  # a signal during the last epoch
                raise KeyboardInterrupt
            for reason in trainer.ended.values():
                console.note(reason)
            with trainer.timed("evaluation"):
                from arcvae_cli.commands.evaluate import report as evaluate_run
                from arcvae_cli.render.diagnosis import printed, show_verdict

                best = checkpoints.load(folder.checkpoints / checkpoints.BEST, place)
                document = evaluate_run(best, corpus, "val", folder, console)
            lines = printed(partial(show_verdict, document["verdict"])).splitlines()
            console.log("\n".join(lines))
            images = sorted(path for path in folder.images.glob("*.png") if "_epoch_" not in path.name)
            kept = {part: folder.checkpoints / f"{part}.pth" for part in ("vae_best", "encoder", "decoder")}
            for recorder in recorders:
                recorder.evaluated(document, lines, images)
                recorder.artifacts(kept)
        except KeyboardInterrupt:
            where = f"before the end of the evaluation; the training is complete in {folder.path}"
            raise stopped(signals, where, f"`arcvae train --resume {folder.shell}` evaluates it") from None
        facts = trainer.progress()
        folder.write_status("finished", judged=True, **trainer.ended, **facts)
    folder.release()
    parts = ", ".join(f"{part} {value:.1f}" for part, value in facts["seconds"].items())
    speed = f"{trainer.global_step / facts['seconds']['training']:.1f} training steps a second"
    console.note(f"\nseconds: {parts}; {speed}; peak memory {size(facts['peak_memory_bytes'])}")
    console.note(f"\nrun folder {folder.path}: checkpoints, images, metrics.jsonl, metrics.json, run.log")
    which = "" if folder.path.parent == Path("runs") else f" --checkpoint {folder.shell}"
    names = ["evaluate"] if corpus.rules and corpus.rules.rhs is None else ["evaluate", "sample", "interpolate"]
    console.note(f"next: {' | '.join(f'arcvae {name}{which}' for name in names)}")
    return folder


def open_run(path: Path, file: Path | None, settings: Settings) -> tuple[folders.RunFolder, Path, Document, Document]:
    """A run to resume, locked: its checkpoint, the values in it, and its `metrics.json` if there is nothing to do."""
    from arcvae_cli import checkpoints

    folder = folders.resume(path)
    config, last = path / "config.toml", folder.checkpoints / "last.pth"
    start, values, report = file or last, None, None
    if file is not None or any(folder.checkpoints.iterdir()):
        try:
            values = checkpoints.read(start)
            if not checkpoints.resumable(values):
                raise InputError(f"{start}: part of a model, or of an older format: cannot be resumed from")
        except InputError as error:
            fix = f"`arcvae runs verify {folder.shell}` finds a checkpoint to resume from"
            raise InputError(error.what, fix) from error
        later = 0
        with suppress(InputError):  # last.pth is damaged, or was removed
            later = 0 if file is None else checkpoints.read(last)["step"]
        if later > values["step"]:
            what = f"{start}: an older checkpoint, of step {values['step']}; the run is at step {later}"
            raise InputError(what, f"to discard the later steps, remove {last} first")
    trained = resolve(str(config)).settings if values is None else checkpoints.read_settings(start, values)
    changed = folders.differences(trained.table(), settings.table())
    pairs = [(key, *map(json.dumps, pair)) for key, pair in changed.items() if not key.startswith(folders.MAY_CHANGE)]
    wrong = [f"{key} was {old}, now {new}" for key, old, new in pairs]
    if values is not None and settings.train.epochs < values["epoch"]:
        wrong.append(f"train.epochs is {settings.train.epochs}, and epoch {values['epoch']} has begun")
    if wrong:
        fix = f"remove these flags, and restore {config} if edited; more epochs, logging and the device may change"
        raise InputError(f"--resume {folder.name}: settings differ from those of the run: {'; '.join(wrong[:5])}", fix)
    status = folders.read_status(path) or folders.STATUS
    if values and status["judged"] and status["step"] == values["step"] and not changed.keys() & set(folders.LENGTH):
        with suppress(OSError, ValueError):  # else it is evaluated again
            report = json.loads((path / "metrics.json").read_bytes())
    return folder, start, values, report


def new_model(settings: Settings, corpus: Corpus, device: torch.device) -> VAE:
    """The model of the settings with its first weights; InputError where it or a batch does not fit the corpus."""
    from arcvae_cli.models import build_model
    from arcvae_cli.step import seed_step

    if (count := corpus.size("train")) < settings.train.batch_size:
        what = f"train.batch_size: {settings.train.batch_size} is more than the {count} training examples"
        raise InputError(what, f"use --batch-size {min(count, 16)}, or more data")
    if corpus.background is None and "foreground" in (monitor := settings.train.monitor):
        raise InputError(f"train.monitor: {monitor} needs a background, and no class is", "set data.background")
    seed_step(settings.train.seed, "weights")
    model = build_model(settings.model, corpus.structure).to(device)
    try:
        settings.schedule.by_level(tuple(model.level_sizes))
    except ValueError as error:
        raise InputError(f"schedule.name: {error}", f"use another for model.name={settings.model.name}") from None
    return model


@contextmanager
def closing(recorders: Sequence[Recorder]) -> Iterator[None]:
    """Close every recorder at the end, or after a second Ctrl-C abandon them; the block's error hides theirs."""
    try:
        yield
    except BaseException as error:
        code = getattr(error, "exit_code", 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)
        for recorder in recorders:
            with suppress(Exception, KeyboardInterrupt):
                if getattr(error, "at_once", False):
                    recorder.abandon()
                else:
                    recorder.close(code)
        raise
    with ExitStack() as stack:  # closes all of them, even if one fails
        for recorder in reversed(recorders):
            stack.callback(recorder.close)


def memorise(settings: Settings, console: Console) -> None:
    """`--overfit-batch`."""
    with importing():
        from arcvae_cli.metrics import EpochMetrics
        from arcvae_cli.trainer import overfit

    def show(step: int, metrics: EpochMetrics) -> None:
        console.note(f"step {step}: reconstruction {metrics.reconstruction:.4g}, exact {metrics.exact:.4f}")

    device, count = open_device(settings.train.device), settings.train.batch_size
    corpus = open_named(settings.data, device, ("train",), console)
    steps, found = overfit(settings, corpus, new_model(settings, corpus, device), OVERFIT_STEPS, show)
    facts = {"memorised": found.exact == 1.0, "steps": steps, "examples": count, "exact": found.exact}
    console.json({**facts, "position": found.position})
    if not facts["memorised"]:
        what = f"one batch of {count} was not memorised in {steps} steps: {found.exact:.1%} of its examples are exact"
        raise ArcvaeError(what, "try a larger model.latent_dim, another train.lr or a smaller --batch-size")
    console.result(f"memorised: all {count} examples of one batch are exact after {steps} steps")
