"""Plans, records and pictures of a run that never was, for the tests of recorders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from arcvae_cli.canvas import ARC
from arcvae_cli.grammar import parse_grammar
from arcvae_cli.metrics import EpochMetrics
from arcvae_cli.records import EpochRecord, Pictures, Plan, betas, flat
from arcvae_cli.settings import Settings

STRINGS = Settings.model_validate({"data": {"name": "equations"}, "model": {"name": "grammar"}})
TWO_LEVELS = {"kl_per_dim": {"global": [1.0, 0.02], "local": [2.0]}, "betas": {"global": 0.01, "local": 0.02}}
SUMS = parse_grammar("%separator \" \"\nS -> S '+' T | T\nT -> '(' S ')' | 'x' | '*'\n", "sums")


def plan(levels: Mapping[str, int] | None = None, free_bits: float = 0.0, **changed: Any) -> Plan:
    """A plan of 100 epochs of 50 steps, with changes; `levels`: groups by level, `free_bits`: of all levels."""
    levels = levels or {"z": 3}
    settings = changed.pop("settings", Settings(schedule={"name": "cyclical"}))
    objective = settings.objective.model_copy(update={"free_bits": free_bits})
    train = settings.train.model_copy(update={"epochs": 100})
    values: dict[str, Any] = {
        **{"run": "one", "parameters": 1234567, "how": "cpu in fp32, eager steps"},
        **{"corpus": "arc", "sizes": {"train": 80_000, "val": 10_000, "test": 10_000}, "steps": 50},
        **{"settings": settings.model_copy(update={"objective": objective, "train": train})},
        **{"elbo_scale": 1.0, "notes": (), "blank": 0.9, "canvas": ARC if settings.model.kind == "grids" else None},
        "level_shapes": {name: (size,) for name, size in levels.items()},
    }
    return Plan(**{**values, **changed})


def record(
    epoch: int = 1, kl_per_dim: dict[str, list[float]] | None = None, val: dict[str, Any] | None = None, **changed: Any
) -> EpochRecord:
    """The record of an epoch; `kl_per_dim` are of its validation, `val` changes what else validation found."""
    groups = kl_per_dim or {"z": [1.0, 2.0, 0.01]}
    found = EpochMetrics(100, 125.6, 120.0, {name: sum(kl) for name, kl in groups.items()}, groups, 0.95, 0.4, 0.01)
    betas = changed.get("betas", dict.fromkeys(groups, 0.05))
    values: dict[str, Any] = {
        **{"epoch": epoch, "step": epoch * 50, "betas": betas, "learning_rate": 1e-3, "best": False, "seconds": 12.34},
        **{"train": found, "val": replace(found, **{"loss": 123.4, **(val or {})}), "unit": "pixel"},
        **{"selection": 123.0, "monitored": 123.0},
        "beta_trace": {name: [beta] * 50 for name, beta in betas.items()},
    }
    return EpochRecord(**{**values, **changed})


def steps(of: EpochRecord, every: int = 25) -> list[dict[str, Any]]:
    numbers = [step for step in range(of.step - 49, of.step + 1) if step % every == 0]
    same = {**betas(of.betas), **flat("train", of.train, of.unit)}
    return [{"step": step, "epoch": step / 50, **same} for step in numbers]


def pictures() -> Pictures:
    random = np.random.default_rng(0)
    grids = [random.integers(0, 10, (count, 16, 16), np.uint8) for count in (16, 16, 64)]
    return Pictures(*grids, {"local": random.random((16, 8, 8), np.float32)})


def derivations() -> Pictures:
    """3 examples of at most 6 rules, one of them not reconstructed, and 2 samples, one incomplete."""
    originals = [[1, 3, 5, 5, 5, 5], [0, 1, 3, 4, 5, 5], [1, 2, 1, 4, 5, 5]]
    reconstructions = [[1, 3, 5, 5, 5, 5], [0, 1, 3, 3, 5, 5], [1, 2, 1, 4, 5, 5]]
    samples = [[0, 1, 4, 4, 5, 5], [0, 0, 0, 0, 1, 3]]
    return Pictures(*(np.array(rows, np.int16) for rows in (originals, reconstructions, samples)), {})
