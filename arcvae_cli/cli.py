"""The command line: commands are imported when called; exceptions become a message and an exit code here."""

import gc
import importlib
import os
import sys
import time
from signal import SIGINT
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from arcvae_cli import __version__
from arcvae_cli.errors import ArcvaeError, DivergedError, InputError, Interrupted, first_line, one_line
from arcvae_cli.machine import out_of_memory
from arcvae_cli.signals import GracefulExit, exit_code

COMMANDS = {  # name: (module of arcvae_cli.commands and what to take from it, one line of help)
    "train": ("train:train", "Train a model, showing beta and the KL of every dimension."),
    "sweep": ("sweep:sweep", "Train many runs: a grid of settings, or a search."),
    "evaluate": ("evaluate:evaluate", "Score a checkpoint, with baselines beside every number, and judge it."),
    "sample": ("sample:sample", "Draw from the prior of a checkpoint."),
    "interpolate": ("interpolate:interpolate", "Walk between two examples through the latent space."),
    "traverse": ("traverse:traverse", "Decode along each dimension of the code."),
    "encode": ("encode:encode", "Write the codes of examples as .npz or .csv."),
    "diagnose": ("diagnose:diagnose", "Judge a VAE trained elsewhere, from its posteriors in a file."),
    "export": ("export:export", "Write a model as safetensors and ONNX, with a model card."),
    "schedule-preview": ("schedule_preview:schedule_preview", "Show a beta schedule before the run."),
    "compare": ("compare:compare", "Compare runs: a table, curves, the rate-distortion plane, a page."),
    "runs": ("runs:app", "List, show and verify runs."),
    "presets": ("presets:app", "List and show presets."),
    "data": ("data:app", "Build and describe corpora."),
}

SAYING = 2.0  # seconds in which the first rank says why, since torchrun ends it as soon as one has ended


class LazyGroup(TyperGroup):
    """A group that lists its commands without importing them, and translates exceptions."""

    def __init__(self, *arguments: Any, **extra: Any) -> None:
        super().__init__(*arguments, **extra)
        self.commands = {name: TyperCommand(name, help=text) for name, (_, text) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = command = load(args[0])
            if len(args) == 1 and isinstance(command, TyperGroup) and not ctx.resilient_parsing:
                args = [*args, "--help"]
        return super().resolve_command(ctx, args)

    def main(self, args: Any = None, prog_name: Any = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run the command and exit; an exception is printed as one or two lines, under `--debug` with its traceback."""
        args = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(args or ["--help"], prog_name, **{**extra, "standalone_mode": False})
        except Exception as error:
            if "--debug" in args:
                import traceback

                traceback.print_exc()
            from rich.text import Text

            from arcvae_cli.console import Console

            code, what, fix = explain(error)
            prefix, console = "" if isinstance(error, Interrupted) else "error: ", Console().err
            if isinstance(error, ArcvaeError) and os.environ.get("LOCAL_RANK", "0") != "0":
                console.quiet = isinstance(error, InputError | Interrupted | DivergedError)  # said by the first rank
                time.sleep(0 if isinstance(error, Interrupted) else SAYING)
            console.print(Text.assemble((prefix, "bold red"), one_line(what)), soft_wrap=True)
            if fix:
                console.print(Text(f"  {one_line(fix)}"), soft_wrap=True)
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        with GracefulExit(("SIGINT", "SIGTERM")) as signals:  # by default SIGTERM would end Python without cleaning up
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                raise typer.Exit(exit_code(signals() or SIGINT)) from None


def explain(error: Exception) -> tuple[int, str, str | None]:
    """The exit code of an exception, its message and what to do about it."""
    line = first_line(error)
    match error:
        case ArcvaeError():
            return error.exit_code, error.what, error.fix
        case typer.TyperException():
            ctx = getattr(error, "ctx", None)
            message = " ".join(error.format_message().split())
            return 2, message, f"see {ctx.command_path if ctx else 'arcvae'} --help"
        case _ if out_of_memory(error):
            return 1, f"out of memory: {line}", "free some memory, or use another --device"
        case OSError(strerror=str(reason), filename=file):
            return 1, f"{file}: {reason}" if file else reason, None
        case _:
            return 1, f"{type(error).__name__}: {line}", "a bug in arcvae; arcvae --debug shows where"


def load(name: str) -> Any:
    """Import a command."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(importlib.import_module(f"arcvae_cli.commands.{module}"), attribute)
    outer = typer.Typer(add_completion=False)
    outer.callback()(main)  # which makes it a group even with one command
    if isinstance(found, typer.Typer):
        outer.add_typer(found, name=name)
    else:
        outer.command(name)(found)
    group = typer.main.get_command(outer)
    assert isinstance(group, TyperGroup)
    gc.freeze()  # what the imports made stays for good
    gc.enable()
    return group.commands[name]


HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(cls=LazyGroup, pretty_exceptions_enable=False, context_settings=HELP_FLAGS)


def print_version(wanted: bool) -> None:
    """Print the version and end, if `--version` was given."""
    if wanted:
        typer.echo(f"arcvae {__version__}")
        raise typer.Exit


@app.callback()
def arcvae(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=print_version)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train variational autoencoders on discrete structures without losing them to posterior collapse."""


def main() -> None:
    """The entry point."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for them takes a tenth of start-up
    gc.disable()  # importing makes many objects and no garbage: a fifth of start-up
    try:
        app(prog_name="arcvae")
    except SystemExit as end:
        if (loggers := sys.modules.get("arcvae_cli.recorders.external")) is not None:
            loggers.leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
