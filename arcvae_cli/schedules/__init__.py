"""Schedules of beta, the weight on the KL term: the public names.

A new one is a class in `open.py` or `feedback.py`, and its place in the unions of `registry.py`.
"""

from __future__ import annotations

from arcvae_cli.schedules.compat import (
    BetaScheduler,
    CyclicalBetaScheduler,
    HierarchicalBetaScheduler,
    WarmRestartBetaScheduler,
    get_beta_schedule,
    get_beta_scheduler,
)
from arcvae_cli.schedules.feedback import Feedback
from arcvae_cli.schedules.open import Schedule
from arcvae_cli.schedules.registry import SCHEDULES, AnySchedule, build_schedule

__all__ = [
    "SCHEDULES",
    "AnySchedule",
    "BetaScheduler",
    "CyclicalBetaScheduler",
    "Feedback",
    "HierarchicalBetaScheduler",
    "Schedule",
    "WarmRestartBetaScheduler",
    "build_schedule",
    "get_beta_schedule",
    "get_beta_scheduler",
]
