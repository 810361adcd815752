"""Where words go: results to stdout, talk to stderr."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table

GONE = {errno.EPIPE, errno.EIO, errno.ENXIO}
"""What a program is told whose reader has left: a pipe without its end, a terminal that was closed."""


class Lasting:
    """A stream that no reader can stop: what is written after one has left goes nowhere, and no job ends of it.

    With `all_errors`, so with any other refusal, as of a full disk.
    """

    def __init__(self, stream: TextIO, all_errors: bool = False) -> None:
        self._stream = stream
        self._all_errors = all_errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write it, or pretend to."""
        with self._unread():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """See to it that it is read, where anybody reads."""
        with self._unread():
            self._stream.flush()

    @contextmanager
    def _unread(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._all_errors and error.errno not in GONE:
                raise
            # The rest, also that of others and what waits in buffers until the process ends, leads nowhere from now on.
            with suppress(OSError):  # a stream that is no file
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


class Console:
    """stdout for results, stderr for progress, notes and errors.

    With `as_json`, stdout carries one JSON document and nothing else; with `quiet`, notes are dropped. Off a terminal
    Rich writes plain text without escapes, `NO_COLOR` takes the colour away. A letter that stdout has no code for is
    written as its number. A terminal that is closed, or a pipe that nobody reads any more, ends no job.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: no letter shall end the job
        out, err = (cast(IO[str], stream) for stream in (Lasting(sys.stdout), Lasting(sys.stderr, all_errors=True)))
        self.out = Terminal(file=out, highlight=False, soft_wrap=not out.isatty())
        self.err = Terminal(file=err, highlight=False, soft_wrap=not err.isatty())

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

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[RenderableType]],
        *,
        left: Collection[int] = (0,),
        header: bool = True,
    ) -> None:
        """Print a table: as wide as the terminal, in a pipe as wide as it needs so that a row is a line."""
        made = table(title, columns, rows, left=left, header=header)
        if not self.piped:
            self.result(made)
            return
        plain = Terminal(file=io.StringIO(), width=10**4, color_system=None)
        with plain.capture() as text:
            plain.print(made)
        self.lines(line.rstrip() for line in text.get().splitlines())

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


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[RenderableType]],
    *,
    left: Collection[int] = (0,),
    header: bool = True,
) -> Table:
    """The one style of table: the columns in `left` hold text and may wrap, the others are right-aligned numbers.

    Cells are text without markup, or `rich.text.Text`. Print it with `Console.table`.
    """
    from rich import box
    from rich.table import Table

    made = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if header else None,
        pad_edge=False,
        show_header=header,
    )
    for place, name in enumerate(columns):
        made.add_column(
            Text(name), justify="left" if place in left else "right", no_wrap=place not in left, overflow="fold"
        )
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def cell(value: float | None, form: str = ".2f") -> str:
    """A number as a table shows it, by its format (`.2%`, `,`, `.4g`); a dash where nothing was measured."""
    return "-" if value is None else format(value, form)
