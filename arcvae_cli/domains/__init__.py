"""The kinds of example, by name: what is different between grids and strings, and nothing else is."""

from importlib import import_module
from typing import Any

DOMAINS = {"grids": "GridDomain", "strings": "StringDomain"}


def of(kind: str) -> Any:
    """The domain of the examples of a corpus or a model, by its `kind`, imported when first used."""
    return getattr(import_module(f"arcvae_cli.domains.{kind}"), DOMAINS[kind])()
