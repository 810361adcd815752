from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from arcvae_cli.grammar import Rules, parse_grammar
from arcvae_cli.metrics import EpochMetrics
from arcvae_cli.records import EpochRecord, Pictures, Plan
from arcvae_cli.settings import Settings


def counts(kl_per_dim: Mapping[str, list[float]], **changed: Any) -> EpochMetrics:
    values: dict[str, Any] = {
        "examples": 100,
        "loss": 123.4,
        "reconstruction": 120.0,
        "clamped_kl": {name: sum(groups) for name, groups in kl_per_dim.items()},
        "kl_per_dim": dict(kl_per_dim),
        "position": 0.95,
        "foreground": 0.4,
        "exact": 0.01,
    }
    return EpochMetrics(**{**values, **changed})


def plan(**changed: Any) -> Plan:
    """A plan of 100 epochs of 50 steps, with changes; `levels`: groups by level, `free_bits`: lambda of all levels."""
    levels: Mapping[str, int] = changed.get("levels", {"z": 3})
    values: dict[str, Any] = {
        "run": "one",
        "parameters": 1234567,
        "device": "cpu",
        "precision": "fp32",
        "engine": "eager steps",
        "corpus": "arc",
        "sizes": {"train": 80_000, "val": 10_000, "test": 10_000},
        "epochs": 100,
        "steps": 50,
        "level_shapes": {name: (size,) for name, size in levels.items()},
        "settings": Settings(schedule={"name": "cyclical"}),
        "elbo_scale": 1.0,
        "notes": (),
        "blank": 0.9,
        **{name: value for name, value in changed.items() if name != "levels"},
        "free_bits": dict.fromkeys(levels, changed.get("free_bits", 0.0)),
    }
    return Plan(**values)


def record(
    epoch: int = 1,
    kl_per_dim: Mapping[str, list[float]] | None = None,
    val: Mapping[str, Any] | None = None,
    **changed: Any,
) -> EpochRecord:
    """The record of an epoch; `kl_per_dim` are of its validation, `val` changes what else validation found."""
    groups = kl_per_dim or {"z": [1.0, 2.0, 0.01]}
    betas = changed.get("betas", dict.fromkeys(groups, 0.05))
    values: dict[str, Any] = {
        "epoch": epoch,
        "step": epoch * 50,
        "betas": betas,
        "learning_rate": 1e-3,
        "train": counts(groups, loss=125.6),
        "val": counts(groups, **(val or {})),
        "selection": 123.0,
        "monitored": 123.0,
        "best": False,
        "seconds": 12.34,
        "unit": "pixel",
        "beta_trace": {name: [beta, beta] for name, beta in betas.items()},
    }
    return EpochRecord(**{**values, **changed})


def pictures(maps: bool = True) -> Pictures:
    """16 examples and 64 draws, with the KL of a local map of 8x8 cells."""
    random = np.random.default_rng(0)
    grids = [random.integers(0, 10, (count, 16, 16), np.uint8) for count in (16, 16, 64)]
    kl = random.random((16, 8, 8), np.float32)
    return Pictures(grids[0], grids[1], grids[2], {"local": kl} if maps else {})


SUMS = parse_grammar(
    """
    %separator " "
    S -> S '+' T | T
    T -> '(' S ')' | 'x' | '*'
    """,
    "sums",
)


def rules(known: bool = True) -> Rules:
    """Of a small grammar, or as much of them as ids and masks tell."""
    return SUMS.rules if known else replace(SUMS.rules, rhs=None, text=None)


def derivations() -> Pictures:
    """3 examples of at most 6 rules, one of them not reconstructed, and 2 draws, one cut off before its end."""
    originals = [[1, 3, 5, 5, 5, 5], [0, 1, 3, 4, 5, 5], [1, 2, 1, 4, 5, 5]]
    reconstructions = [[1, 3, 5, 5, 5, 5], [0, 1, 3, 3, 5, 5], [1, 2, 1, 4, 5, 5]]
    samples = [[0, 1, 4, 4, 5, 5], [0, 0, 0, 0, 1, 3]]
    arrays = [np.array(rows, np.int16) for rows in (originals, reconstructions, samples)]
    return Pictures(arrays[0], arrays[1], arrays[2], {})


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    return plan


@pytest.fixture
def make_record() -> Callable[..., EpochRecord]:
    return record


@pytest.fixture
def make_pictures() -> Callable[..., Pictures]:
    return pictures


@pytest.fixture
def make_rules() -> Callable[..., Rules]:
    return rules


@pytest.fixture(name="derivations")
def derivations_fixture() -> Pictures:
    return derivations()
