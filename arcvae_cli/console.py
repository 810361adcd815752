"""Where words go: results to stdout, talk to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.text import Text


class Console:
    """stdout for results, stderr for progress, notes and errors.

    With `as_json`, stdout carries one JSON document and nothing else; with `quiet`, notes are dropped. Off a terminal
    Rich writes plain text without escapes, `NO_COLOR` takes the colour away.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.out = Terminal(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
        self.err = Terminal(file=sys.stderr, highlight=False, soft_wrap=not sys.stderr.isatty())

    @property
    def terminal(self) -> bool:
        """Whether talk goes to a terminal, where a line may be redrawn."""
        return self.err.is_terminal and not self.err.is_dumb_terminal

    def result(self, renderable: RenderableType = "") -> None:
        """Print a result, unless the result is the JSON document."""
        if not self.as_json:
            self.out.print(renderable)

    def json(self, document: Mapping[str, Any]) -> None:
        """Print the one JSON document of `--json`; NaN and infinity are refused, since JSON has neither."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")

    def note(self, text: RenderableType) -> None:
        """Say something useful but not asked for."""
        if not self.quiet:
            self.err.print(text, markup=False, emoji=False)

    def warn(self, text: str) -> None:
        """Say something that the reader must not miss."""
        self.err.print(Text.assemble(("warning: ", "yellow"), text))
