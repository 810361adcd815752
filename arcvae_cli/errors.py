"""The exceptions a person can cause. Whatever else is raised is a defect of arcvae."""

from __future__ import annotations

LONGEST = 1200
"""Characters of a line of an error."""


class ArcvaeError(Exception):
    """A job that failed for a reason worth telling: exit code 1, no traceback.

    `what` says what is wrong and where (file, dotted key); `fix` says what to do about it. A line each, whatever names
    and values from files stand in them.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str | None = None) -> None:
        self.what = one_line(what)
        self.fix = None if fix is None else one_line(fix)
        super().__init__(self.what if self.fix is None else f"{self.what}\n{self.fix}")

    def __reduce__(self) -> tuple[type[ArcvaeError], tuple[str, str | None]]:
        return type(self), (self.what, self.fix)  # what worker processes raise is pickled


def one_line(text: str) -> str:
    """Text as a line of a terminal: what cannot be printed is written out, the middle of what is long left out."""
    if len(text) > LONGEST:
        text = f"{text[: 2 * LONGEST // 3]} ... {text[-LONGEST // 3 :]}"
    return printable(text)


def printable(text: str) -> str:
    """Text without escape sequences or other control characters, which a terminal would obey: they are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class WriteError(ArcvaeError):
    """A file that could not be written: what was there before is whole."""


class InputError(ArcvaeError):
    """Unusable input, be it a flag, a preset, data or a checkpoint: exit code 2."""

    exit_code = 2


class Interrupted(ArcvaeError):  # noqa: N818 - not an error of anybody's
    """Stopped because somebody asked for it, with the work saved; `exit_code` says how.

    `at_once`: asked for a second time, so that nothing more is to be waited for.
    """

    def __init__(self, what: str, exit_code: int, fix: str | None = None, at_once: bool = False) -> None:
        super().__init__(what, fix)
        self.exit_code = exit_code
        self.at_once = at_once
