"""Stand-ins for what arcvae imports and a bare machine with torch has not, so that its step can be timed there.

Settings are read without a check, and nothing is parsed: enough for the network, the objective, the engines and the
corpora that are drawn, which need no more of these packages than that they can be imported.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

ABSENT = object()
EMPTY = {"lark": ("exceptions", "lexer", "parsers", "parsers.earley_forest"), "pydantic_core": ("core_schema",)}
"""Packages of which only names are asked for, with their modules."""


class Field:
    """A default, or what makes one."""

    def __init__(
        self,
        default: Any = ABSENT,
        default_factory: Callable[[], Any] | None = None,
        discriminator: str | None = None,
        **_: Any,
    ) -> None:
        self.default, self.make, self.discriminator = default, default_factory, discriminator
        self.annotation: Any = None


class Tag:
    def __init__(self, name: str) -> None:
        self.name = name


class Discriminator:
    def __init__(self, function: Callable[[Any], str | None]) -> None:
        self.function = function


class Before:
    """What a class does to a table before it is read."""

    def __init__(self, function: Any) -> None:
        self.function = function.__func__


class BaseModel:
    """Fields from annotations, their defaults, and tables within tables."""

    model_config: ClassVar[dict[str, Any]] = {}
    model_fields: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        own = {name: cls.__dict__.get(name, ABSENT) for name in inspect.get_annotations(cls)}
        fields = {name: given if isinstance(given, Field) else Field(given) for name, given in own.items()}
        cls.model_fields = {**cls.model_fields, **fields}

    def __init__(self, **values: Any) -> None:
        kind = type(self)
        for before in (found for name in dir(kind) if isinstance(found := getattr(kind, name, None), Before)):
            values = before.function(kind, values)
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            if typing.get_origin(hint) is not ClassVar and name != "model_config":
                self.__dict__[name] = read(hint, values[name]) if name in values else default(kind, name, hint)

    @classmethod
    def model_validate(cls, table: Any) -> Any:
        return table if isinstance(table, cls) else cls(**table)


def default(kind: type, name: str, hint: Any) -> Any:
    """Of a field, from its class or from its annotation."""
    given = getattr(kind, name, ABSENT)
    marks = [given, *getattr(hint, "__metadata__", ())]
    field = next(
        (mark for mark in marks if isinstance(mark, Field) and (mark.make or mark.default is not ABSENT)), None
    )
    if field is None:
        return given
    return field.make() if field.make else field.default


def read(hint: Any, value: Any) -> Any:
    """A value of a table as its annotation says."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, Mapping):
        return value
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, Field) and mark.discriminator:
            kinds = typing.get_args(typing.get_args(hint)[0])
            return next(k for k in kinds if k.name == value[mark.discriminator]).model_validate(value)
        if isinstance(mark, Discriminator):
            wanted = mark.function(value)
            kinds = typing.get_args(typing.get_args(hint)[0])
            return next(k for k in kinds if k.__metadata__[0].name == wanted).__origin__.model_validate(value)
    return hint.model_validate(value) if isinstance(hint, type) and issubclass(hint, BaseModel) else value


def model_validator(mode: str) -> Callable[[Any], Any]:
    """What comes after a table is read checks it, and is left out."""
    return Before if mode == "before" else lambda function: function


def model_serializer(mode: str) -> Callable[[Any], Any]:  # noqa: ARG001
    """Nothing is written."""
    return lambda function: function


def anything(name: str) -> type:
    """A class that does nothing."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Exception,), {})


def stand_in() -> list[str]:
    """Put a stand-in in the place of each package that is not there; their names."""
    made = {name: importlib.util.find_spec(name) is None for name in ("pydantic", "tomli", "tomli_w", *EMPTY)}
    for name in (name for name, missing in made.items() if missing):
        if name == "tomli":
            import tomli

            sys.modules[name] = tomli
            continue
        for part in (name, *(f"{name}.{inner}" for inner in EMPTY.get(name, ()))):
            sys.modules[part] = ModuleType(part)
            sys.modules[part].__dict__["__path__"] = []
            sys.modules[part].__dict__["__getattr__"] = anything
    if made["pydantic"]:
        own = {"BaseModel": BaseModel, "ConfigDict": dict, "Field": Field, "Tag": Tag, "Discriminator": Discriminator}
        own |= {"model_validator": model_validator, "model_serializer": model_serializer}
        sys.modules["pydantic"].__dict__.update(own)
    return [name for name, missing in made.items() if missing]
