"""The exceptions a person can cause. Whatever else is raised is a bug of arcvae."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 1200  # characters of a line of an error


class ArcvaeError(Exception):
    """A failed job: exit code 1. `what` is wrong and where; `fix`: what to do. Each is one line without passwords."""

    exit_code = 1

    def __init__(self, what: str, fix: str | None = None) -> None:
        self.what, self.fix = one_line(what), None if fix is None else one_line(fix)
        super().__init__(self.what, self.fix)

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.what, self.fix)))


class WriteError(ArcvaeError):
    """A file that could not be written; its previous content is intact."""


class DivergedError(ArcvaeError):
    """A loss, gradient or weight that is NaN or infinite."""


class InputError(ArcvaeError):
    """Unusable input, be it a flag, a preset, data or a checkpoint: exit code 2."""

    exit_code = 2


class Interrupted(ArcvaeError):  # noqa: N818 - not an error
    """Stopped by a signal, with the work saved. `at_once`: the signal came twice, so nothing is waited for."""

    def __init__(self, what: str, exit_code: int, fix: str | None = None, at_once: bool = False) -> None:
        super().__init__(what, fix)
        self.exit_code, self.at_once = exit_code, at_once


def one_line(text: str) -> str:
    """Text as one printable line: control characters escaped, the middle of a long text left out, no password."""
    text = without_password(text)
    if len(text) > LONGEST:
        text = f"{text[: 2 * LONGEST // 3]} ... {text[-LONGEST // 3 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def without_password(text: str) -> str:
    """A text without the user names and passwords of URLs (`https://user:secret@host/...`)."""
    return re.sub(r"(\w{2,}:/{1,2})[^\s/]*(?::\S*)?@", r"\1", text)  # one slash where it was taken for a path


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the known name that is most like a misspelt one, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


TAGGED = ("model", "schedule", "base", "global", "local")  # after which pydantic adds a `name` to the location


def first_fault(error: ValidationError, keys: Callable[[list[str]], Iterable[str]]) -> tuple[str, str, str | None]:
    """The dotted key, the problem and the fix of the first error. `keys`: of a table, given as its path."""
    fault = error.errors(include_url=False)[0]
    loc, context, given = fault["loc"], fault.get("ctx", {}), fault["input"]
    path = [str(part) for i, part in enumerate(loc) if not (i and loc[i - 1] in TAGGED)]
    problem, fix = f"{re.sub(r'^(Input|Tuple) ', '', fault['msg'])}, got {given!r:.60}", None

    def unknown(what: str, name: str, known: list[str]) -> tuple[str, str]:
        return f"unknown {what} {name!r}", f"{nearest(name, known)}known here: {', '.join(known)}"

    match fault["type"]:
        case "extra_forbidden":
            problem, fix = unknown("key", path[-1], list(keys(path[:-1])))
        case "union_tag_invalid":
            path.append("name")
            problem, fix = unknown("name", context["tag"], context["expected_tags"].replace("'", "").split(", "))
        case "union_tag_not_found":
            path.append("name")
            problem = "missing"
        case "model_type" | "model_attributes_type" | "dict_type":
            problem = f"should be a table, got {given!r:.60}"
        case "string_pattern_mismatch":
            problem = f"should be a name of at most 128 characters without /\\#?%:;,', got {given!r:.60}"
        case "contradiction":
            path.append(context["key"])
            problem, fix = context["what"], context["fix"]
        case "value_error":
            problem = str(context["error"])
    return ".".join(path), problem, fix
