"""The kinds of example, by name: what is different between grids and strings, and nothing else is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arcvae_cli.domains.grids import GridDomain
    from arcvae_cli.domains.strings import StringDomain

DOMAINS = {"grids": "GridDomain", "strings": "StringDomain"}  # imported when first used: grids need no grammar


def of(kind: str) -> GridDomain | StringDomain:
    """The domain of the examples of a corpus or a model, by its `kind`."""
    domain: GridDomain | StringDomain = getattr(import_module(f"arcvae_cli.domains.{kind}"), DOMAINS[kind])()
    return domain
