"""Where words go: results to stdout, talk to stderr."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.text import Text


class Console:
    """stdout for results, stderr for progress, notes and errors.

    With `as_json`, stdout carries one JSON document and nothing else; with `quiet`, notes are dropped. Off a terminal
    Rich writes plain text without escapes, `NO_COLOR` takes the colour away. A letter that stdout has no code for is
    written as its number.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: no letter shall end the job
        self.out = Terminal(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
        self.err = Terminal(file=sys.stderr, highlight=False, soft_wrap=not sys.stderr.isatty())

    @property
    def terminal(self) -> bool:
        """Whether talk goes to a terminal, where a line may be redrawn."""
        return self.err.is_terminal and not self.err.is_dumb_terminal

    @property
    def piped(self) -> bool:
        """Whether results go to a file or a program, and not to a person."""
        return not sys.stdout.isatty()

    def result(self, renderable: RenderableType = "") -> None:
        """Print a result, unless the result is the JSON document."""
        if not self.as_json:
            self.out.print(renderable)

    def lines(self, lines: Iterable[str]) -> None:
        """Print results that are text, one a line and as they are, unless the result is the JSON document."""
        if not self.as_json:
            sys.stdout.writelines(f"{line}\n" for line in lines)

    def json(self, document: Mapping[str, Any]) -> None:
        """Print the one JSON document of `--json`; NaN and infinity are refused, since JSON has neither."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")

    def note(self, text: RenderableType) -> None:
        """Say something useful but not asked for."""
        if not self.quiet:
            self.err.print(text, markup=False, emoji=False)

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Gives a function that shows how many of how many are done: a bar on a terminal, off it a line each tenth."""
        if self.quiet or not self.terminal:
            told = 0

            def tell(done: int, of: int) -> None:
                nonlocal told
                if 10 * done // max(of, 1) > told and (told or done < of):  # what is done at once needs no line
                    told = 10 * done // of
                    self.note(f"{what}: {done:,} of {of:,}")

            yield tell
            return
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task(what, visible=False, total=None)
            yield lambda done, of: bar.update(task, completed=done, total=of, visible=True)

    def warn(self, text: str) -> None:
        """Say something that the reader must not miss."""
        self.err.print(Text.assemble(("warning: ", "yellow"), text))
