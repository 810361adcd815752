"""The exceptions a person can cause. Whatever else is raised is a defect of arcvae."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 1200  # characters of a line of an error


class ArcvaeError(Exception):
    """A job that failed: exit code 1, no traceback.

    `what`: what is wrong and where. `fix`: what to do about it. Each is made one printable line without passwords.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str | None = None) -> None:
        self.what = one_line(what)
        self.fix = None if fix is None else one_line(fix)
        super().__init__(self.what if self.fix is None else f"{self.what}\n{self.fix}")

    def __reduce__(self) -> tuple[type[ArcvaeError], tuple[str, str | None]]:
        return type(self), (self.what, self.fix)  # what worker processes raise is pickled


def one_line(text: str) -> str:
    """Text as one printable line: control characters escaped, the middle of a long text left out, no password."""
    text = without_password(text)
    if len(text) > LONGEST:
        text = f"{text[: 2 * LONGEST // 3]} ... {text[-LONGEST // 3 :]}"
    return printable(text)


def printable(text: str) -> str:
    """Text with escape sequences and other control characters, which a terminal would obey, written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def without_password(text: str) -> str:
    """A text without the user names and passwords of URLs (`https://user:secret@host/...`)."""
    return re.sub(r"(\w{2,}:/{1,2})[^\s/]*(?::\S*)?@", r"\1", text)  # one slash where it was taken for a path


class WriteError(ArcvaeError):
    """A file that could not be written; its previous content is intact."""


class InputError(ArcvaeError):
    """Unusable input, be it a flag, a preset, data or a checkpoint: exit code 2."""

    exit_code = 2


class Interrupted(ArcvaeError):  # noqa: N818 - not an error
    """Stopped by a signal, with the work saved. `at_once`: the signal came twice, so nothing is waited for."""

    def __init__(self, what: str, exit_code: int, fix: str | None = None, at_once: bool = False) -> None:
        super().__init__(what, fix)
        self.exit_code = exit_code
        self.at_once = at_once


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the known name that is most like a misspelt one, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


TAGGED = ("model", "schedule", "base", "global", "local")  # after which pydantic adds a `name` to the location


def _unknown(what: str, given: str, known: Iterable[str]) -> tuple[str, str]:
    names = list(known)
    return f"unknown {what} {given!r}", f"{nearest(given, names)}known here: {', '.join(names)}"


def first_fault(error: ValidationError, keys: Callable[[list[str]], Iterable[str]]) -> tuple[str, str, str | None]:
    """The dotted key, the problem and the fix of the first error. `keys`: of a table, given as its path."""
    fault = error.errors(include_url=False)[0]
    loc = fault["loc"]
    path = [str(part) for i, part in enumerate(loc) if not (i and loc[i - 1] in TAGGED)]
    context, given = fault.get("ctx", {}), fault["input"]
    problem, fix = f"{re.sub(r'^(Input|Tuple) ', '', fault['msg'])}, got {given!r:.60}", None
    match fault["type"]:
        case "extra_forbidden":
            problem, fix = _unknown("key", path[-1], keys(path[:-1]))
        case "union_tag_invalid":
            path.append("name")
            problem, fix = _unknown("name", context["tag"], context["expected_tags"].replace("'", "").split(", "))
        case "union_tag_not_found":
            path.append("name")
            problem = "missing"
        case "model_type" | "model_attributes_type" | "dict_type":
            problem = f"should be a table, got {given!r:.60}"
        case "contradiction":
            path.append(context["key"])
            problem, fix = context["what"], context["fix"]
        case "value_error":
            problem = str(context["error"])
    return ".".join(path), problem, fix
