"""The kinds of example, by name: what is different between grids and strings, and nothing else is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arcvae_cli.domains.base import Domain

DOMAINS = {"grids": "arcvae_cli.domains.grids:GridDomain", "strings": "arcvae_cli.domains.strings:StringDomain"}
"""Imported when first used: a run of grids needs no grammar."""


def of(kind: str) -> Domain:
    """The domain of the examples of a corpus or a model, by its `kind`."""
    module, name = DOMAINS[kind].split(":")
    domain: Domain = getattr(import_module(module), name)()
    return domain
