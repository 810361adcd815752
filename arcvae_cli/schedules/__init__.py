"""Every schedule of beta, the weight on the KL term, and the registry of their names.

A new one is a class in `open.py` or `feedback.py`, and a line in `SCHEDULES`.
"""

from __future__ import annotations

from arcvae_cli.schedules.base import Schedule
from arcvae_cli.schedules.compat import (
    BetaScheduler,
    CyclicalBetaScheduler,
    FeedbackBetaScheduler,
    HierarchicalBetaScheduler,
    WarmRestartBetaScheduler,
    get_beta_schedule,
    get_beta_scheduler,
)
from arcvae_cli.schedules.feedback import ControlVAE, Feedback, Geco, KLCapacity
from arcvae_cli.schedules.open import (
    Aggressive,
    Constant,
    Cosine,
    Cyclical,
    Exponential,
    Linear,
    LinearWarmup,
    Sigmoid,
    ThreePhase,
    UltraConservative,
)
from arcvae_cli.schedules.registry import (
    SCHEDULES,
    AnySchedule,
    Hierarchical,
    WarmRestart,
    build_schedule,
    parameters,
    schedule_keys,
)

__all__ = [
    "SCHEDULES",
    "Aggressive",
    "AnySchedule",
    "BetaScheduler",
    "Constant",
    "ControlVAE",
    "Cosine",
    "Cyclical",
    "CyclicalBetaScheduler",
    "Exponential",
    "Feedback",
    "FeedbackBetaScheduler",
    "Geco",
    "Hierarchical",
    "HierarchicalBetaScheduler",
    "KLCapacity",
    "Linear",
    "LinearWarmup",
    "Schedule",
    "Sigmoid",
    "ThreePhase",
    "UltraConservative",
    "WarmRestart",
    "WarmRestartBetaScheduler",
    "build_schedule",
    "get_beta_schedule",
    "get_beta_scheduler",
    "parameters",
    "schedule_keys",
]
