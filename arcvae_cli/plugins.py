"""Schedules, models, corpora and recorders from outside of the package: entry points, or `module:Class`."""

import os
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from arcvae_cli.errors import InputError, first_fault, first_line

VARIABLE = "ARCVAE_PLUGINS"  # modules that presets, config.toml and checkpoints may name, comma-separated
BASES = {  # of what is found, by kind; the entry points of a kind are the group `arcvae.<kind>`
    "schedules": "arcvae_cli.schedules:Schedule",
    "models": "arcvae_cli.models.base:VAE",
    "corpora": "collections.abc:Callable",
    "recorders": "arcvae_cli.records:Recorder",
}
NAME = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):[^\W\d]\w*")  # `module:Class`
_given: set[str] = set()


def allow(*given: Any) -> None:
    """Let the `module:Class` names be imported that occur in what a person has given, not a file."""
    _given.update(match[0] for match in NAME.finditer(repr(given)))


def points(kind: str, **by: Any) -> list[Any]:
    """The entry points of a kind, all or by `name`, not imported: milliseconds, so not for names that are built in."""
    from importlib.metadata import EntryPoint, entry_points

    own = NAME.fullmatch(by.get("name", ""))
    return [EntryPoint(own[0], own[0], kind)] if own else [*entry_points(group=f"arcvae.{kind}", **by)]


def find(kind: str, name: str) -> Any:
    """The class that a name means, or the function of a corpus. InputError if it is refused or cannot be used.

    A module is imported only for an entry point, or if `allow` had the name, or if ARCVAE_PLUGINS lists it.
    """
    if match := NAME.fullmatch(name):
        listed = os.environ.get(VARIABLE, "").replace(" ", "").split(",")
        if name not in _given and not any(f"{match[1]}.".startswith(f"{one}.") for one in listed):
            trusted = ",".join([*filter(None, listed), match[1]])
            fix = f"if you trust {match[1]}, set {VARIABLE}={trusted} in the environment"
            raise InputError(f"{name} is not imported, since only a file names it", fix)
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as Python does with the folder of a script
    if not (named := points(kind, name=name)):
        raise InputError(f"{name} is neither module:Class nor an installed entry point of arcvae.{kind}")
    try:
        found, base = named[0].load(), points(kind, name=BASES[kind])[0].load()
    except (Exception, SystemExit) as error:
        what = f"{name} cannot be imported ({type(error).__name__}: {first_line(error)})"
        raise InputError(what, "correct it, install its package, or start arcvae in its folder") from error
    made = found if isinstance(found, type) else type(found)
    if not issubclass(made, base) or getattr(made, "__abstractmethods__", None):
        raise InputError(f"{name} is not a complete {base.__name__}", "docs/extending.md says what it must be")
    if kind == "models":
        from arcvae_cli.settings import ModelSettings

        if not isinstance(found.Settings, type) or not issubclass(found.Settings, ModelSettings):
            raise InputError(f"{name}: its Settings is not a ModelSettings", "docs/extending.md says what it must be")
    return found


def or_plugin(kind: str, built_in: Collection[str]) -> WrapValidator:
    """Lets the name of a plugin pass too; its table is checked by the class that it names."""

    def check(given: Any, handler: Any) -> Any:
        name = given if kind == "corpora" else given.get("name") if isinstance(given, Mapping) else None
        if not isinstance(name, str) or name in built_in or not points(kind, name=name):
            return handler(given)
        if kind == "corpora":
            return name  # imported when the corpus is made
        try:
            made = find(kind, name)
            made = getattr(made, "Settings", made)  # of a model
            return made.model_validate(given)
        except InputError as error:
            key, problem, fix = "name", error.what, error.fix
        except ValidationError as error:
            key, problem, fix = first_fault(error, lambda _: made.model_fields)
        raise PydanticCustomError("contradiction", "{what}", {"key": key, "what": problem, "fix": fix})

    return WrapValidator(check)
