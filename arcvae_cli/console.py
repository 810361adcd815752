"""stdout for results, stderr for progress and errors; tables, JSON, quiet, progress bars, the log of a run."""

import errno
import io
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table

CLOSED = {errno.EPIPE, errno.EIO, errno.ENXIO}  # a pipe whose reader ended (`| head`), a closed terminal
Rows = Iterable[Sequence[str | Text]]


class Output:
    """A stream whose failing writes end no job: the rest of its output is dropped, after one message on stderr."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._drop():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._drop():
            self._stream.flush()

    @contextmanager
    def _drop(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # also drops what other code writes, and what is still buffered
            os.close(null)
            if error.errno not in CLOSED:
                sys.stderr.write(f"warning: output lost: {error.strerror}\n")


class Console:
    """With `as_json`, stdout carries one JSON document only; with `quiet`, notes are dropped; `log_file` keeps them."""

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.log_file: Path | None = None
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as Python does for stderr
        out, err = (cast(IO[str], Output(stream)) for stream in (sys.stdout, sys.stderr))
        self.out = Terminal(file=out, highlight=False, soft_wrap=not out.isatty())
        self.err = Terminal(file=err, highlight=False, soft_wrap=not err.isatty())

    @property
    def terminal(self) -> bool:
        """Whether notes go to a terminal, where a line may be redrawn."""
        return self.err.is_terminal and not self.err.is_dumb_terminal

    @property
    def piped(self) -> bool:
        """Whether results go to a file or a program."""
        return not sys.stdout.isatty()

    def result(self, renderable: RenderableType = "") -> None:
        if not self.as_json:
            self.out.print(renderable)

    def table(
        self, title: str, columns: Sequence[str], rows: Rows, left: Collection[int] = (0,), header: bool = True
    ) -> None:
        """Print a table; in a pipe as wide as it needs, so that a row is a line. The columns in `left` hold text."""
        made = make_table(title, columns, rows, left, header)
        if self.piped:
            plain = io.StringIO()
            Terminal(file=plain, width=10**4, color_system=None, force_jupyter=False).print(made)
            self.lines(line.rstrip() for line in plain.getvalue().splitlines())
        else:
            self.result(made)

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines unchanged: no markup, no wrapping; unless the result is the JSON document."""
        if not self.as_json:
            self.out.file.write("".join(f"{line}\n" for line in lines))
            self.out.file.flush()

    def json(self, document: Mapping[str, Any]) -> None:
        """Print the one JSON document of `--json`. ValueError for NaN and infinity, which JSON does not have."""
        if self.as_json:
            self.out.file.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
            self.out.file.flush()

    def note(self, text: str | Text) -> None:
        self.log(str(text))
        if not self.quiet:
            self.err.print(text, markup=False, emoji=False)

    def warn(self, text: str) -> None:
        self.log(f"warning: {text}")
        self.err.print(Text.assemble(("warning: ", "yellow"), text))

    def log(self, text: str) -> None:
        """Append lines to `log_file`, if there is one; what cannot be written is lost."""
        if self.log_file is not None and (lines := text.strip().splitlines()):
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            with suppress(OSError), self.log_file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(f"{now} {line}\n" for line in lines))

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Gives a function `show(done, of)`: a progress bar on a terminal, nothing elsewhere."""
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        shown = self.terminal and not self.quiet
        with Progress(*columns, console=self.err, transient=True, disable=not shown) as bar:
            task = bar.add_task(what, visible=False, total=None)
            yield lambda done, of: bar.update(task, completed=done, total=of, visible=True)


def make_table(title: str, columns: Sequence[str], rows: Rows, left: Collection[int], header: bool = True) -> "Table":
    """A table that Rich can draw. The columns in `left` hold text."""
    from rich import box
    from rich.table import Table

    made = Table(title=title or None, title_justify="left", title_style="bold", pad_edge=False, show_header=header)
    made.box = box.SIMPLE_HEAD if header else None
    for place, name in enumerate(columns):
        text = place in left
        made.add_column(Text(name), justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def styled(state: str) -> Text:
    """The state of a run, or a verdict of its files, in its colour."""
    styles = {"finished": "green", "running": "cyan", "interrupted": "yellow", "killed": "yellow", "valid": "green"}
    styles |= {"waiting": "dim", "pruned": "yellow"}  # in a sweep
    return Text(state, styles.get(state, "red"))


def cell(value: float | None, form: str = ".2f") -> str:
    """A number as a table shows it, by its format (`.2%`, `,`, `.4g`); a dash where nothing was measured."""
    return "-" if value is None else format(value, form)
