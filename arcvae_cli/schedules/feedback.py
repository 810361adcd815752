"""Closed-loop schedules: beta depends on the KL or the reconstruction of every batch. The registry of all schedules.

Each control law is written once: `observe` runs it on floats, `arcvae_cli.controllers` on 0-d tensors of the device.
"""
# ruff: noqa: ARG002 - not every law needs its arguments

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError

from arcvae_cli.errors import first_fault
from arcvae_cli.plugins import or_plugin
from arcvae_cli.schedules.open import INNER, Beta, Cosine, Cyclical, Epochs, MaxBeta, MinBeta, Open, Schedule, names

Nats = Annotated[float, Field(ge=0, le=1e5, strict=True, description="nats per example")]
Gain = Annotated[float, Field(ge=0, le=1e3, strict=True)]
Multiplier = Annotated[float, Field(gt=0, le=1e9, strict=True)]
Quantity = Literal["kl", "reconstruction"]
State = dict[str, Any]  # numbers, or 0-d tensors
HELD = 0.05  # a target is held where the mean of an epoch is within this share of it

PLAIN = SimpleNamespace(  # the operations of a control law on floats, under the names that `torch` has for tensors
    exp=math.exp,
    minimum=min,
    maximum=max,
    sign=lambda x: float((x > 0) - (x < 0)),
    sigmoid=lambda x: 1.0 / (1.0 + math.exp(min(-x, 700.0))),  # math.exp overflows from 710 on
    clamp=lambda x, low, high: min(max(x, low), high),
)


def is_held(value: float, target: float) -> bool:
    """Whether a mean over an epoch is at its target."""
    return abs(value - target) <= HELD * abs(target)


class Feedback(Schedule):
    """A schedule that holds a quantity of the run at a target, by moving beta with every step.

    Its state is a table of plain numbers. As part of `hierarchical` it controls the KL of its own level.
    """

    quantity: ClassVar[Quantity] = "kl"
    target_key: ClassVar[str] = "target"  # the field of the target
    per: Annotated[Literal["step"], Field(description="beta moves with every step")] = "step"

    def setpoint(self, epoch: float) -> float:
        """The target at an epoch: KL in nats per example, reconstruction in nats per position."""
        return float(getattr(self, self.target_key))

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest possible beta."""

    @abstractmethod
    def begin(self) -> State:
        """The state before the first step."""

    @abstractmethod
    def law(self, ops: Any, state: State, target: Any, kl: Any, reconstruction: Any) -> State:
        """The state after a batch, with the "beta" of its loss; `ops`: `PLAIN` or `torch`; `target`: the setpoint.

        Batch means: `kl` in nats per example, before free bits; `reconstruction` in nats per position.
        """

    def observe(self, state: State, epoch: float, kl: float, reconstruction: float) -> tuple[State, float]:
        """The state after a batch at `epoch`, and the beta of that batch's loss, in plain Python; see `law`."""
        after = self.law(PLAIN, state, self.setpoint(epoch), kl, reconstruction)
        return after, after["beta"]

    def __call__(self, epoch: float) -> float:
        if epoch <= 0:
            return float(self.begin()["beta"])
        raise ValueError(f"{self.name}: beta at epoch {epoch:g} depends on the run: use .observe")

    def summit(self) -> tuple[float, float]:
        return math.fsum(getattr(self, key) for key in self.times), self.bounds[1]


class KLCapacity(Feedback):
    """The loss gamma * |KL - C|, C rising to a capacity (Burgess et al. 2018, "Understanding disentangling").

    As a weight on the KL, which has the same gradient: gamma where the KL of the batch is above C, -gamma where it is
    below, 0 at C. gamma must exceed the beta at which the KL would be C by itself; more slows learning.
    """

    name: Literal["kl_capacity"] = "kl_capacity"
    times: ClassVar[tuple[str, ...]] = ("ramp_epochs",)
    target_key: ClassVar[str] = "capacity"
    capacity: Annotated[Nats, Field(description="KL in nats at the end of the ramp")] = 25.0
    start_capacity: Annotated[Nats, Field(description="KL in nats from which the ramp rises")] = 0.0
    ramp_epochs: Annotated[Epochs, Field(description="epochs of the ramp")] = 20.0
    gamma: Annotated[Gain, Field(gt=0, description="weight on the distance of the KL from the capacity")] = 1.0

    def setpoint(self, epoch: float) -> float:
        if epoch >= self.ramp_epochs:
            return self.capacity
        return self.start_capacity + (self.capacity - self.start_capacity) * max(epoch, 0.0) / self.ramp_epochs

    @property
    def bounds(self) -> tuple[float, float]:
        return -self.gamma, self.gamma

    def begin(self) -> State:
        return {"beta": 0.0}

    def law(self, ops: Any, state: State, target: Any, kl: Any, reconstruction: Any) -> State:
        return {"beta": self.gamma * ops.sign(kl - target)}

    def warning(self, epochs: float) -> str | None:
        late = f"the ramp ends at epoch {self.ramp_epochs:g}, the run at {epochs:g}"
        ends = f"capacity ends at {self.setpoint(epochs):.3g} of {self.capacity:.3g} nats: {late}"
        return ends if epochs < self.ramp_epochs else None

    def events(self, until: float) -> Iterator[tuple[float, str]]:
        yield self.ramp_epochs, "capacity reached"


class ControlVAE(Feedback):
    """A PI controller that holds the KL at a target (Shao et al. 2020, "ControlVAE").

    With the error e = target - KL of each batch, beta = kp / (1 + exp(e)) + I, within its bounds, and I grows by
    ki * e (ki is negative), but never so far that it would carry beta past a bound.
    """

    name: Literal["controlvae"] = "controlvae"
    ascending: ClassVar[tuple[str, ...]] = ("min_beta", "start_beta", "max_beta")
    target: Annotated[Nats, Field(description="KL in nats")] = 20.0
    min_beta: MinBeta = 0.0
    max_beta: MaxBeta = 1.0
    start_beta: Annotated[Beta, Field(description="the integral's first value")] = 0.0
    kp: Annotated[Gain, Field(description="gain of the proportional term")] = 0.01
    ki: float = Field(-1e-4, ge=-1e3, le=0, strict=True, description="gain of the integral, per step and nat")

    @property
    def bounds(self) -> tuple[float, float]:
        return self.min_beta, self.max_beta

    def begin(self) -> State:
        return {"beta": self.start_beta, "integral": self.start_beta}

    def law(self, ops: Any, state: State, target: Any, kl: Any, reconstruction: Any) -> State:
        old, error = state["integral"], target - kl
        proportional = self.kp * ops.sigmoid(-error)
        integral = old + self.ki * error
        least = ops.minimum(old, self.min_beta - proportional)
        most = ops.maximum(old, self.max_beta - proportional)
        integral = ops.clamp(integral, least, most)  # it takes beta no further than to the bound
        return {"beta": ops.clamp(proportional + integral, self.min_beta, self.max_beta), "integral": integral}


class Geco(Feedback):
    """As little KL as a reconstruction within a tolerance needs (Rezende and Viola 2018, "Taming VAEs", GECO).

    Minimises KL + lambda * C for C = reconstruction - tolerance in nats per position: beta = 1 / lambda. Every step
    multiplies lambda by exp(alpha * C), C averaged over the steps, within its bounds.
    """

    name: Literal["geco"] = "geco"
    quantity: ClassVar[Quantity] = "reconstruction"
    target_key: ClassVar[str] = "tolerance"
    ascending: ClassVar[tuple[str, ...]] = ("lambda_min", "start_lambda", "lambda_max")
    tolerance: float = Field(0.25, ge=0, le=100, strict=True, description="reconstruction in nats per position")
    alpha: Annotated[Gain, Field(description="speed of lambda, per step and nat per position")] = 0.02
    averaging: Annotated[float, Field(ge=0, lt=1, strict=True, description="share of the past in the average")] = 0.99
    lambda_min: Annotated[Multiplier, Field(description="bound of lambda = 1 / beta")] = 0.1
    lambda_max: Annotated[Multiplier, Field(description="bound of lambda = 1 / beta")] = 100.0
    start_lambda: Annotated[Multiplier, Field(description="lambda before the first step")] = 1.0

    @property
    def bounds(self) -> tuple[float, float]:
        return 1.0 / self.lambda_max, 1.0 / self.lambda_min

    def begin(self) -> State:
        start = self.start_lambda
        return {"beta": 1.0 / start, "log_lambda": math.log(start), "average": 0.0, "begun": 0.0}

    def law(self, ops: Any, state: State, target: Any, kl: Any, reconstruction: Any) -> State:
        past = self.averaging * state["begun"]
        average = past * state["average"] + (1.0 - past) * (reconstruction - target)
        log_lambda = state["log_lambda"] + self.alpha * average
        log_lambda = ops.clamp(log_lambda, math.log(self.lambda_min), math.log(self.lambda_max))
        return {"beta": ops.exp(-log_lambda), "log_lambda": log_lambda, "average": average, "begun": 1.0}


Loops = KLCapacity | ControlVAE | Geco
Part = Annotated[Open | Loops, Field(discriminator="name"), or_plugin("schedules", names(Open | Loops)), INNER]


class Hierarchical(Schedule):
    """Two schedules, for the levels `global` and `local`; as one number it is the larger beta, the later first peak."""

    model_config = ConfigDict(populate_by_name=True)
    name: Literal["hierarchical"] = "hierarchical"
    global_: Part = Field(alias="global", default_factory=lambda: Cosine(max_beta=0.01, warmup_epochs=10.0))
    local: Part = Field(default_factory=lambda: Cyclical(max_beta=0.02, cycle_length=25.0, wave="cosine"))

    @property
    def parts(self) -> dict[str, Schedule]:
        own: dict[str, Schedule] = {"global": self.global_, "local": self.local}
        # a closed loop moves with every step
        return {key: one if one.closed_loop else one.model_copy(update={"per": self.per}) for key, one in own.items()}

    def __call__(self, epoch: float) -> float:
        return max(self.global_(epoch), self.local(epoch))

    def summit(self) -> tuple[float, float]:
        return max(self.global_.first_peak, self.local.first_peak), max(self.global_.peak, self.local.peak)

    def cycle(self, epoch: float) -> float | None:
        return max(self.global_.cycle(epoch) or 0.0, self.local.cycle(epoch) or 0.0) or None

    def warning(self, epochs: float) -> str | None:
        found = {level: part.warning(epochs) for level, part in self.parts.items()}
        return "; ".join(f"{level} {text}" for level, text in found.items() if text) or None

    def restart_info(self, epoch: float) -> dict[str, float] | None:
        return self.global_.restart_info(epoch) or self.local.restart_info(epoch)

    def events(self, until: float) -> Iterator[tuple[float, str]]:
        for level, part in self.parts.items():
            yield from ((epoch, f"{level}: {text}") for epoch, text in part.events(until))


Kinds = Open | Hierarchical | Loops
AnySchedule = Annotated[Kinds, Field(discriminator="name")]
SCHEDULES: dict[str, type[Schedule]] = {kind.model_fields["name"].default: kind for kind in get_args(Kinds)}


def build_schedule(table: Mapping[str, Any]) -> Schedule:
    """A schedule from its table of `name` and parameters; ValueError with the valid names or range."""
    name = str(table.get("name"))
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: the schedules are {', '.join(SCHEDULES)}")
    try:
        return SCHEDULES[name].model_validate(dict(table))
    except ValidationError as error:
        key, problem, _ = first_fault(error, lambda _: SCHEDULES[name].model_fields)
        raise ValueError(": ".join(filter(None, (f"schedule {name}", key, problem)))) from None
