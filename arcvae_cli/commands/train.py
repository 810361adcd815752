"""`arcvae train`: a run, from settings to a verdict."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcvae_cli import BEGAN, stopping
from arcvae_cli.commands.resuming import earlier_folder, go_on
from arcvae_cli.errors import ArcvaeError, InputError, Interrupted
from arcvae_cli.files import expanded, is_file
from arcvae_cli.runs import AUTO
from arcvae_cli.settings import (
    CORPORA,
    DEFAULT_MODEL,
    MODEL_SETTINGS,
    GrammarSettings,
    Layer,
    Resolved,
    Settings,
    environment_layer,
    flag_layer,
    resolve,
    set_layer,
)
from arcvae_cli.stopping import Signals

if TYPE_CHECKING:
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import Corpus, DerivationCorpus, GridCorpus
    from arcvae_cli.models.base import VAE
    from arcvae_cli.records import Recorder
    from arcvae_cli.runs import RunFolder

QUICK_EPOCHS = 5
QUICK_EXAMPLES = 8_000
OVERFIT_STEPS = 3_000

DATA, SCHEDULE = "Data and model", "Beta schedule and free bits"
TRAINING, RUN = "Training", "The run"


def train(
    preset: Annotated[
        str | None, typer.Option(help="a shipped preset, a TOML file, or the config.toml of a run", rich_help_panel=RUN)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help=f"{', '.join(CORPORA)}, or a path to your own", rich_help_panel=DATA)
    ] = None,
    grammar: Annotated[
        str | None, typer.Option(help="of the strings: a grammar file, equations or smiles", rich_help_panel=DATA)
    ] = None,
    input_: Annotated[
        Path | None, typer.Option("--input", help="strings of the grammar, one a line", rich_help_panel=DATA)
    ] = None,
    prod: Annotated[
        Path | None, typer.Option(help="ready derivations: .npy of rule ids (N, T)", rich_help_panel=DATA)
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="their masks: .npy, bit-packed (N, T, bytes)", rich_help_panel=DATA)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=", ".join(MODEL_SETTINGS), show_default=DEFAULT_MODEL, rich_help_panel=DATA)
    ] = None,
    latent_dim: Annotated[
        int | None,
        typer.Option("--latent-dim", "--z-dim", help="dimensions of the code", show_default="10", rich_help_panel=DATA),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="new symmetries and colours a batch", rich_help_panel=DATA),
    ] = None,
    beta_schedule: Annotated[
        str | None, typer.Option(help="a schedule's name", show_default="linear_warmup", rich_help_panel=SCHEDULE)
    ] = None,
    beta_max: Annotated[float | None, typer.Option(help="largest beta", rich_help_panel=SCHEDULE)] = None,
    beta_min: Annotated[float | None, typer.Option(help="least beta of a cycle", rich_help_panel=SCHEDULE)] = None,
    beta_warmup_epochs: Annotated[
        float | None, typer.Option(help="epochs before the ramp, or of the rise", rich_help_panel=SCHEDULE)
    ] = None,
    beta_ramp_epochs: Annotated[float | None, typer.Option(help="epochs of the ramp", rich_help_panel=SCHEDULE)] = None,
    beta_cycle_length: Annotated[float | None, typer.Option(help="epochs of a cycle", rich_help_panel=SCHEDULE)] = None,
    free_bits: Annotated[
        float | None, typer.Option(help="lambda in nats; above 0 switches free bits on", rich_help_panel=SCHEDULE)
    ] = None,
    free_bits_mode: Annotated[
        str | None, typer.Option(help="per_dim, per_sample or total", rich_help_panel=SCHEDULE)
    ] = None,
    epochs: Annotated[int | None, typer.Option(show_default="50", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(show_default="128", rich_help_panel=TRAINING)] = None,
    lr: Annotated[
        float | None, typer.Option(help="learning rate", show_default="0.001", rich_help_panel=TRAINING)
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0", rich_help_panel=TRAINING)] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps", show_default="auto", rich_help_panel=TRAINING)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16", show_default="auto", rich_help_panel=TRAINING)
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="auto, eager, compile, graph (CUDA)", show_default="auto", rich_help_panel=TRAINING),
    ] = None,
    early_stopping: Annotated[
        bool | None, typer.Option("--early-stopping/--no-early-stopping", rich_help_panel=TRAINING)
    ] = None,
    quick_test: Annotated[
        bool,
        typer.Option(
            "--quick-test",
            help=f"{QUICK_EPOCHS} epochs on {QUICK_EXAMPLES:,} examples, the schedule compressed",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    overfit_batch: Annotated[
        bool,
        typer.Option(
            "--overfit-batch",
            help="memorise one batch, the sanity check; writes no run folder",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    wandb: Annotated[
        str | None, typer.Option(help="online, offline, off or auto", show_default="auto", rich_help_panel=RUN)
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard/--no-tensorboard", help="event files", rich_help_panel=RUN)
    ] = None,
    save_top_k: Annotated[
        int | None, typer.Option(help="best epochs kept beside the best", show_default="3", rich_help_panel=RUN)
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="go on with a run: its name, folder or checkpoint, or latest; auto: start --run-name or go on",
            rich_help_panel=RUN,
        ),
    ] = None,
    run_name: Annotated[str | None, typer.Option(show_default="preset and time", rich_help_panel=RUN)] = None,
    runs_dir: Annotated[Path, typer.Option(help="where run folders go", rich_help_panel=RUN)] = Path("runs"),
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="any setting, as dotted.key=value; repeatable", rich_help_panel=RUN),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print the result only", rich_help_panel=RUN)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON", rich_help_panel=RUN)] = False,
) -> None:
    """Train a model, showing beta and the KL of every dimension.

    Without a preset: the plain grid model on arc, linear_warmup, no free bits. Every flag overrides the preset;
    `arcvae presets show NAME` lists all that can be set.
    """
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    named = data in CORPORA
    flags: dict[str, tuple[str, Any]] = {
        "--data": ("data.name", data) if named else ("data.path", data and whole(Path(data))),
        "--grammar": ("data.grammar", grammar and (whole(Path(grammar)) if Path(grammar).is_file() else grammar)),
        "--input": ("data.input", input_ and whole(input_)),
        "--prod": ("data.prod", prod and whole(prod)),
        "--masks": ("data.masks", masks and whole(masks)),
        "--augment/--no-augment": ("data.augment", augment),
        "--model": ("model.name", model),
        "--latent-dim": ("model.latent_dim", latent_dim),
        "--beta-schedule": ("schedule.name", beta_schedule),
        "--beta-max": ("schedule.max_beta", beta_max),
        "--beta-min": ("schedule.min_beta", beta_min),
        "--beta-warmup-epochs": ("schedule.warmup_epochs", beta_warmup_epochs),
        "--beta-ramp-epochs": ("schedule.ramp_epochs", beta_ramp_epochs),
        "--beta-cycle-length": ("schedule.cycle_length", beta_cycle_length),
        "--free-bits": ("objective.free_bits", free_bits),
        "--free-bits-mode": ("objective.free_bits_mode", free_bits_mode),
        "--batch-size": ("train.batch_size", batch_size),
        "--lr": ("train.lr", lr),
        "--seed": ("train.seed", seed),
        "--device": ("train.device", device),
        "--precision": ("train.precision", precision),
        "--engine": ("train.engine", engine),
        "--early-stopping/--no-early-stopping": ("train.early_stopping", early_stopping),
        "--save-top-k": ("checkpoint.save_top_k", save_top_k),
        "--wandb": ("log.wandb", wandb),
        "--tensorboard/--no-tensorboard": ("log.tensorboard", tensorboard),
    }
    layers = [environment_layer(), set_layer(assignments or []), flag_layer(flags)]
    if named:  # a name takes the place of a preset's files
        files = dict.fromkeys(("grammar", "input", "prod", "masks"))
        layers.insert(1, Layer("--data", {"data": files}))
        layers.append(Layer("--data", {"data": {"path": None}}))
    earlier = None
    if resume is not None:
        if overfit_batch:
            raise InputError("--resume and --overfit-batch: one batch is no run", "give one of the two")
        earlier = asked_for(resume, runs_dir, run_name)
    if earlier is not None and preset is None and resume != AUTO:  # the command line says only what is to change
        if quick_test:
            raise InputError("--quick-test: the run has its length already", "leave it out, or give --preset too")
        preset = str(earlier[0] / "config.toml")
    resolved = with_epochs(preset, layers, epochs, quick_test)
    settings = resolved.settings
    if overfit_batch:
        memorise(settings, console)
        return
    with Signals() as signals:
        try:
            run(resolved, console, signals, runs_dir, run_name, Path(preset).stem if preset else "run", earlier)
        except KeyboardInterrupt:
            asked = signals() or signal.SIGINT
            raise Interrupted(f"stopped by {stopping.name(asked)}, at once", stopping.exit_code(asked)) from None


def asked_for(resume: str, runs: Path, name: str | None) -> tuple[Path, Path | None] | None:
    """The run folder, and the checkpoint if one was given, that `--resume` means; None for one that is to be begun."""
    from arcvae_cli.runs import check_name

    if resume != AUTO:
        if name is not None:
            raise InputError("--run-name: the run that goes on has its name", f"leave it out, or use --resume {AUTO}")
        return earlier_folder(resume, runs)
    if name is None:
        raise InputError(f"--resume {AUTO}: which run?", "give --run-name too, the same every time")
    check_name(name)
    return (runs / name, None) if is_file(runs / name / "config.toml") else None


def whole(path: Path) -> str:
    """A path that means the same from everywhere, as the settings of a run keep it."""
    return os.path.abspath(expanded(path))


def with_epochs(preset: str | None, layers: list[Layer], epochs: int | None, quick: bool) -> Resolved:
    """The settings with `--epochs`, and with `--quick-test`, which compresses the schedule in proportion.

    Compressed, beta moves with every step: by whole epochs a cycle of 20 in 100 would become one of 1 in 5, and beta
    would stand at the same place of it in every epoch.
    """
    asked = resolve(preset, *layers, flag_layer({"--epochs": ("train.epochs", epochs)}))
    if not quick:
        return asked
    settings = resolve(preset, *layers).settings  # of the length that its schedule was made for
    target = min(QUICK_EPOCHS, settings.train.epochs) if epochs is None else epochs
    schedule = settings.schedule.compressed(target / settings.train.epochs)
    short: dict[str, Any] = {
        "schedule": schedule.model_dump(mode="json", by_alias=True),
        "train": {"epochs": target},
        "data": {"limit": min(QUICK_EXAMPLES, settings.data.limit or QUICK_EXAMPLES)},
    }
    return resolve(preset, *layers, Layer("--quick-test", short))


def run(
    resolved: Resolved,
    console: Console,
    signals: Signals,
    runs: Path,
    name: str | None,
    stem: str,
    earlier: tuple[Path, Path | None] | None,
) -> None:
    """Train, judge the best epoch on the validation split, and say what to do next.

    `earlier`: the folder of a run to go on with, and its checkpoint, None for the last.
    """
    from arcvae_cli import runs as folders
    from arcvae_cli.schedules import shortfall

    settings = resolved.settings
    folders.check_name(name)

    def warn() -> None:
        if (text := shortfall(settings.schedule, settings.train.epochs)) is not None:
            console.warn(text)

    if earlier is None:
        warn()

    from arcvae_cli.commands.reading import begin_reading, importing, open_device, open_named

    with importing():
        begun = begin_reading(settings.data)
        from arcvae_cli import checkpoints, snapshots
        from arcvae_cli.machine import crowded
        from arcvae_cli.recorders.external import external_recorders
        from arcvae_cli.recorders.images import ImageRecorder
        from arcvae_cli.recorders.jsonl import JsonlRecorder
        from arcvae_cli.recorders.live import live_recorder
        from arcvae_cli.step import seed_step
        from arcvae_cli.trainer import Trainer

    before = go_on(*earlier) if earlier is not None else None
    if before is not None:
        before.check(resolved)
        if before.over(settings):
            console.note(f"run {before.folder.name} is finished; nothing is left to do")
            console.json(before.judgement())
            return
        warn()
        before.folder.begin()
    device = open_device(settings.train.device)
    corpus = open_named(settings.data, device, ("train", "val"), console, begun=begun)
    check_sizes(settings, corpus)
    seed_step(settings.train.seed, "weights")
    model = new_model(settings, corpus).to(device)
    check_levels(settings, model)
    signals.patient = True  # from now on there is something to save
    folder = folders.create(runs, name, stem, settings) if before is None else before.folder
    notes = [text for text in [crowded(device)] if text is not None]
    recorders: list[Recorder] = []
    trainer = Trainer(
        settings, corpus, model, folder, recorders, device, signals, notes, BEGAN, resumed=before is not None
    )
    if before is not None:
        if before.values is not None:
            snapshots.restore(trainer, before.values, before.path)
        folder.write_config(settings)
    recorders += [
        live_recorder(console),  # the first, so that its header does not wait for what the others import
        JsonlRecorder(folder.path / "metrics.jsonl"),
        ImageRecorder(folder.images, corpus.kind, corpus.rules),
        *external_recorders(settings, folder, console, corpus.rules),
    ]
    if settings.train.engine == "compile":
        console.note("compiling the network, which takes half a minute")
    try:
        with closing(recorders):
            trainer.fit()
            signals.patient = False
        if signals() is not None:  # asked for while the last epoch was being finished
            raise KeyboardInterrupt
        for reason in trainer.ended.values():
            console.note(reason)
        with trainer.timed("evaluation"):
            from arcvae_cli.commands.evaluate import report

            report(checkpoints.load(folder.checkpoints / checkpoints.BEST, device), corpus, "val", folder, console)
    except KeyboardInterrupt:
        asked = signals() or signal.SIGINT
        raise Interrupted(
            f"stopped by {stopping.name(asked)} before the run was judged; the training is complete in {folder.path}",
            stopping.exit_code(asked),
            f"judge it with `arcvae train --resume {folder.shell}`, or `arcvae evaluate --checkpoint {folder.shell}`",
        ) from None
    place = trainer.place()
    folder.write_status("finished", judged=True, **trainer.ended, **place)
    folder.release()
    console.note(f"\n{costs(place, trainer.done)}")
    next_steps(folder, corpus, console)


def costs(place: Mapping[str, Any], steps: int) -> str:
    """Where the time of a run went, and the memory it took at most."""
    seconds = place["seconds"]
    parts = ", ".join(f"{part} {value:.1f}" for part, value in seconds.items())
    speed = steps / seconds["training"]
    memory = place["peak_memory_bytes"] / 2**20
    return f"seconds: {parts}; {speed:.1f} training steps a second; at most {memory:,.0f} MiB of memory"


def next_steps(folder: RunFolder, corpus: Corpus, console: Console) -> None:
    """What can be done with the run now."""
    console.note(f"\nrun folder {folder.path}: checkpoints, images, metrics.jsonl, metrics.json")
    there = "" if folder.path.parent == Path("runs") else f" --checkpoint {folder.shell}"
    steps = [f"arcvae evaluate{there}"]
    if corpus.rules is None or corpus.rules.rhs is not None:
        steps.append(f"arcvae sample{there}")
        if (last := corpus.size("test") - 1) > 0:
            steps.append(f"arcvae interpolate{there} --from {min(3, last - 1)} --to {min(17, last)}")
    console.note(f"next: {' | '.join(steps)}")


def new_model(settings: Settings, corpus: GridCorpus | DerivationCorpus) -> VAE:
    """The model of the settings, made for the corpus; InputError where they do not fit together."""
    from arcvae_cli.data.corpus import DerivationCorpus
    from arcvae_cli.models import build_model
    from arcvae_cli.models.grammar import Structure

    if isinstance(corpus, DerivationCorpus):
        if not isinstance(settings.model, GrammarSettings):
            raise InputError(
                f"model.name: the model {settings.model.name} is of grids, and {corpus.name} holds derivations",
                "use --preset kusner_equations, minimal or another with model.name=grammar",
            )
        return build_model(settings.model, Structure(corpus.rules, corpus.length))
    return build_model(settings.model)


def check_sizes(settings: Settings, corpus: Corpus) -> None:
    """A batch must fit into the training split."""
    if corpus.size("train") < settings.train.batch_size:
        raise InputError(
            f"train.batch_size: {settings.train.batch_size} is more than the {corpus.size('train')} training examples",
            f"use --batch-size {corpus.size('train')} or less, or more data",
        )


def check_levels(settings: Settings, model: VAE) -> None:
    """A schedule of two levels asks for a model that has them."""
    try:
        settings.schedule.peaks(tuple(model.level_sizes))
    except ValueError as error:
        raise InputError(
            f"schedule.name: {error}", f"use another schedule for model.name={settings.model.name}"
        ) from None


@contextmanager
def closing(recorders: Sequence[Recorder]) -> Iterator[None]:
    """Close every recorder, the first one first; what ended the block is the error to tell, not what it did to them.

    Where the block was to end at once, they are not waited for.
    """
    code = 0

    def close(recorder: Recorder) -> None:
        recorder.close(code)

    with ExitStack() as stack:
        for recorder in reversed(recorders):
            stack.callback(close, recorder)
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            code = error.exit_code if isinstance(error, ArcvaeError) else 128 + signal.SIGINT if stopped else 1
            if isinstance(error, Interrupted) and error.at_once:
                stack.pop_all()
                for recorder in recorders:
                    recorder.abandon()
            with suppress(Exception, KeyboardInterrupt):
                stack.close()
            raise


def memorise(settings: Settings, console: Console) -> None:
    """`--overfit-batch`."""
    from arcvae_cli.commands.reading import importing, open_device, open_named

    with importing():
        from arcvae_cli.memorising import overfit
        from arcvae_cli.step import Counts, seed_step

    device = open_device(settings.train.device)
    corpus = open_named(settings.data, device, ("train",), console)
    check_sizes(settings, corpus)
    seed_step(settings.train.seed, "weights")
    model = new_model(settings, corpus).to(device)

    def tell(step: int, counts: Counts) -> None:
        console.note(
            f"step {step}: reconstruction {counts.reconstruction:.4g}, right positions {counts.position:.4f}, "
            f"whole examples {counts.exact:.4f}"
        )

    found = overfit(settings, corpus, model, device, OVERFIT_STEPS, tell)
    size = min(settings.train.batch_size, corpus.size("train"))
    console.json(
        {
            "memorised": found.done,
            "steps": found.steps,
            "examples": size,
            "exact": found.counts.exact,
            "position": found.counts.position,
        }
    )
    if not found.done:
        raise ArcvaeError(
            f"one batch of {size} was not memorised in {found.steps} steps: {found.counts.exact:.1%} of its examples "
            "are exact",
            "a larger model.latent_dim, a stronger model, another train.lr or a smaller --batch-size may help",
        )
    console.result(f"memorised: all {size} examples of one batch are exact after {found.steps} steps")
