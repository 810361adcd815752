from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from arcvae_cli.records import EpochRecord, Plan
from arcvae_cli.step import Counts


def counts(rates: Mapping[str, list[float]], **changed: Any) -> Counts:
    values: dict[str, Any] = {
        "examples": 100,
        "loss": 123.4,
        "reconstruction": 120.0,
        "kl_free": {name: sum(groups) for name, groups in rates.items()},
        "rates": dict(rates),
        "position": 0.95,
        "foreground": 0.4,
        "exact": 0.01,
        "finite": True,
    }
    return Counts(**{**values, **changed})


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """A plan of 100 epochs of 50 steps, with what is changed."""

    def make(**changed: Any) -> Plan:
        values: dict[str, Any] = {
            "run": "one",
            "folder": "runs/one",
            "model": "grid",
            "parameters": 1234567,
            "device": "cpu",
            "precision": "fp32",
            "corpus": "arc",
            "sizes": {"train": 80_000, "val": 10_000, "test": 10_000},
            "unit": "pixel",
            "epochs": 100,
            "steps": 50,
            "levels": {"z": 3},
            "schedule": "cyclical",
            "elbo_scale": 1.0,
            "free_bits": 0.0,
            "free_bits_mode": "per_dim",
            "notes": (),
            "blank": 0.9,
        }
        return Plan(**{**values, **changed})

    return make


@pytest.fixture
def make_record() -> Callable[..., EpochRecord]:
    """The record of an epoch; `rates` are of its validation, `val` changes what else validation found."""

    def make(
        epoch: int = 1,
        rates: Mapping[str, list[float]] | None = None,
        val: Mapping[str, Any] | None = None,
        **changed: Any,
    ) -> EpochRecord:
        groups = rates or {"z": [1.0, 2.0, 0.01]}
        values: dict[str, Any] = {
            "epoch": epoch,
            "step": epoch * 50,
            "betas": dict.fromkeys(groups, 0.05),
            "learning_rate": 1e-3,
            "train": counts(groups, loss=125.6),
            "val": counts(groups, **(val or {})),
            "selection": 123.0,
            "monitored": 123.0,
            "best": False,
            "seconds": 12.34,
            "unit": "pixel",
        }
        return EpochRecord(**{**values, **changed})

    return make
