"""Schedules of beta, the weight on the KL term: the public names.

A new one is a class in `open.py` or `feedback.py`, and its place in the unions at the end of both.
"""

from arcvae_cli.schedules.compat import (
    BetaScheduler,
    CyclicalBetaScheduler,
    HierarchicalBetaScheduler,
    WarmRestartBetaScheduler,
    get_beta_schedule,
    get_beta_scheduler,
)
from arcvae_cli.schedules.feedback import SCHEDULES, AnySchedule, Feedback, build_schedule
from arcvae_cli.schedules.open import Schedule

__all__ = ["SCHEDULES", "AnySchedule", "Feedback", "Schedule", "build_schedule"]
__all__ += ["BetaScheduler", "CyclicalBetaScheduler", "HierarchicalBetaScheduler", "WarmRestartBetaScheduler"]
__all__ += ["get_beta_schedule", "get_beta_scheduler"]
