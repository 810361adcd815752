"""The command line: each command is one line here, its module imported when it is called."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from arcvae_cli import __version__
from arcvae_cli.errors import ArcvaeError, Interrupted
from arcvae_cli.machine import out_of_memory
from arcvae_cli.stopping import Signals, exit_code

COMMANDS = {
    "train": ("train:train", "Train a model, showing beta and the KL of every dimension."),
    "evaluate": ("evaluate:evaluate", "Score a checkpoint, with baselines beside every number, and judge it."),
    "sample": ("sample:sample", "Draw from the prior of a checkpoint."),
    "interpolate": ("interpolate:interpolate", "Walk between two examples through the latent space."),
    "schedule-preview": ("schedule_preview:schedule_preview", "Show a beta schedule before the run."),
    "runs": ("runs:app", "List, show and verify runs."),
    "presets": ("presets:app", "List, show and describe presets."),
    "data": ("data:app", "Build and describe corpora."),
}
"""Name: (module of arcvae_cli.commands and what to take from it, one line of help)."""


UsageError = typer.BadParameter.__mro__[1]  # Typer has carried a Click of its own since 0.26: take whichever is there
ClickException: type[Exception] = UsageError.__mro__[1]


class LazyGroup(TyperGroup):
    """A group that lists its commands without importing them, and where errors become exit codes."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """In the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The command if it was loaded, else a name with a line of help."""
        if cmd_name not in self.commands and cmd_name in COMMANDS:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the command that is being called."""
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = load(args[0])
        elif args:
            for name in COMMANDS:  # names to suggest from, where a command is misspelt
                self.commands.setdefault(name, TyperCommand(name))
        return super().resolve_command(ctx, args)

    def main(self, args: Any = None, prog_name: Any = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run and leave; a misused command line is told in two lines, as every other mistake is."""
        if not extra.pop("standalone_mode", True):
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
        except ClickException as error:
            ctx: Any = getattr(error, "ctx", None)
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(ctx.get_help())
                sys.exit(0)
            message = " ".join(error.format_message().split())  # type: ignore[attr-defined]
            complain(message, f"see {ctx.command_path if ctx else 'arcvae'} --help")
            sys.exit(2)
        except typer.Abort:
            sys.exit(130)
        # of an interrupt in a string that `exec` ran, as dataclasses do, CPython believes that nobody caught it until
        # another has run, and ends `python -m` by SIGINT, whatever the code
        exec("")
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a person's mistake is one or two lines and an exit code, never a traceback."""
        with Signals(("SIGINT", "SIGTERM")) as signals:  # of which Python lets SIGTERM end it with nothing put away
            return self._guarded(ctx, signals)

    def _guarded(self, ctx: Any, signals: Signals) -> Any:
        try:
            return super().invoke(ctx)
        except ArcvaeError as error:
            show_traceback(ctx)
            complain(error.what, error.fix, asked_for=isinstance(error, Interrupted))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(exit_code(signals() or signal.SIGINT)) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: nothing to say at exit
            raise typer.Exit(0) from None
        except Exception as error:
            if type(error).__module__.startswith(("typer.", "click.")):
                raise  # usage errors and exits, which Typer shows
            reason = str(error).splitlines()[0] if str(error) else "no message"
            show_traceback(ctx)
            if isinstance(error, MemoryError) or ("torch" in sys.modules and out_of_memory(error)):
                complain(f"out of memory: {reason}", "free some, or take another --device")
            else:
                complain(f"{type(error).__name__}: {reason}", "a defect of arcvae; see where with arcvae --debug")
            raise typer.Exit(1) from None


def show_traceback(ctx: Any) -> None:
    """The traceback of the error at hand, under `--debug`."""
    if ctx.params.get("debug"):
        traceback.print_exc()


def complain(what: str, fix: str | None, asked_for: bool = False) -> None:
    """A mistake on stderr: what is wrong and where, and what to do; what was `asked_for` is none."""
    from rich.text import Text

    from arcvae_cli.console import Console

    console = Console().err  # which makes no other error of a terminal that was closed
    console.print(Text(what) if asked_for else Text.assemble(("error: ", "bold red"), what), soft_wrap=True)
    if fix:
        console.print(Text(f"  {fix}"), soft_wrap=True)


def load(name: str) -> Any:
    """The command, ready to be called."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(importlib.import_module(f"arcvae_cli.commands.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    gc.freeze()  # what start-up made stays: nothing of it is worth the collector's time
    gc.enable()
    return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"arcvae {__version__}")
        raise typer.Exit


@app.callback()
def arcvae(
    ctx: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train variational autoencoders on discrete structures without losing them to posterior collapse."""


def main() -> None:
    """The entry point.

    Building the classes of the settings makes many objects and no garbage: the collector is off until a command is
    loaded, a fifth of the time that `schedule-preview` takes.
    """
    gc.disable()
    try:
        app(prog_name="arcvae")
    except SystemExit as end:
        if (background := sys.modules.get("arcvae_cli.recorders.background")) is not None:
            background.leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
