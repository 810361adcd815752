"""Controllers on the device against the plain reference of each schedule."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from arcvae_cli.controllers import Controller
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule
from arcvae_cli.schedules.feedback import ControlVAE, Geco, Hierarchical, KLCapacity
from arcvae_cli.schedules.open import Cyclical

CPU = torch.device("cpu")
LEVELS = ("global", "local")
CLOSED: list[Feedback] = [
    KLCapacity(gamma=3.0, ramp_epochs=2.0),
    ControlVAE(ki=-1e-2),
    ControlVAE(min_beta=0.1, max_beta=0.5, start_beta=0.2, ki=-3e-3, kp=0.1),
    Geco(alpha=2.0, averaging=0.9, lambda_min=0.25, lambda_max=4.0),
    Geco(averaging=0.0, alpha=0.5, lambda_min=0.5, lambda_max=4.0),
]


def batches(count: int) -> list[tuple[float, list[float], list[float]]]:
    """Reconstructions in nats of 64 positions, and the KL in nats of three and of two dimensions; they wander."""
    drawn, found = random.Random(3), []
    for step in range(count):
        size = 1.0 + 0.9 * math.sin(step / 40)
        nats, kl = 64 * drawn.uniform(0.0, 0.5) * size, [drawn.uniform(0, 12) * size for _ in range(3)]
        found.append((nats, kl, [drawn.uniform(0, 4) for _ in range(2)]))
    return found


def weigh(controller: Controller, step: int, reconstruction: float, *kl: list[float]) -> Mapping[str, Any]:
    controller.at(step / 100)
    kl_per_dim = {level: torch.tensor(values) for level, values in zip(controller.levels, kl, strict=False)}
    return controller.weigh(torch.tensor(reconstruction), kl_per_dim)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("schedule", CLOSED, ids=repr)
def test_the_device_gives_the_betas_of_the_reference(schedule: Feedback, reduction: str) -> None:
    controller = Controller(schedule, LEVELS, CPU, 64, reduction)
    state, seen = schedule.begin(), set()
    for step, (reconstruction, *kl) in enumerate(batches(400), 1):
        if step % 100 == 0:  # it continues exactly from its state
            state_dict, controller = controller.state_dict(), Controller(schedule, LEVELS, CPU, 64, reduction)
            controller.load_state_dict(json.loads(json.dumps(state_dict)))
            assert controller.state_dict() == state_dict
        betas = weigh(controller, step, reconstruction if reduction == "sum" else reconstruction / 64, *kl)
        state, beta = schedule.observe(state, step / 100, sum(map(sum, kl)), reconstruction / 64)
        for level in LEVELS:
            assert betas[level].dtype == torch.float32 and betas[level].shape == ()
            assert float(betas[level]) == pytest.approx(beta, rel=1e-4, abs=1e-6)
        seen.add(beta)
    assert controller.state_dict()[""]["beta"] == pytest.approx(state["beta"], rel=1e-4, abs=1e-6)
    low, high = schedule.bounds
    assert min(seen) == pytest.approx(low) or max(seen) == pytest.approx(high)  # the walk goes through saturation


def test_a_level_of_a_hierarchical_schedule_watches_its_own_kl() -> None:
    schedule = Hierarchical(global_=ControlVAE(target=3.0), local=Cyclical(cycle_length=2.0), per="step")
    controller = Controller(schedule, LEVELS, CPU, 64, "sum")
    state = schedule.global_.begin() if isinstance(schedule.global_, Feedback) else {}
    for step, (reconstruction, *kl) in enumerate(batches(200), 1):
        betas = weigh(controller, step, reconstruction, *kl)
        state, beta = ControlVAE(target=3.0).observe(state, step / 100, sum(kl[0]), reconstruction / 64)
        assert float(betas["global"]) == pytest.approx(beta, rel=1e-4, abs=1e-6)
        assert betas["local"] == schedule.local(step / 100)
    assert list(controller.state_dict()) == ["global"]
    assert controller.open == {"local": schedule.local(2.0)}
    (target,) = controller.reached(2.0, {"global": 4.0, "local": 9.0}, 0.3)
    assert (target.level, target.value, target.target) == ("global", 4.0, 3.0)


@pytest.mark.parametrize("name", [name for name, kind in SCHEDULES.items() if not kind().closed_loop])
def test_an_open_loop_gives_numbers_or_tensors_at_fixed_addresses(name: str) -> None:
    schedule: Schedule = SCHEDULES[name]()
    plain, fixed = (Controller(schedule, LEVELS, CPU, 64, "sum") for _ in range(2))
    fixed.use_tensors()
    places: dict[str, set[int]] = {level: set() for level in LEVELS}
    for epoch in (0.5, 3.0, 12.0, 40.0):
        expected = {level: part(epoch) for level, part in schedule.by_level(LEVELS).items()}
        for controller in (plain, fixed):
            controller.at(epoch)
            betas = controller.weigh(torch.tensor(9.9), {"global": torch.ones(3), "local": torch.ones(2)})
            assert {level: float(beta) for level, beta in betas.items()} == expected, "in float64, not rounded"
        for level, beta in betas.items():
            assert isinstance(beta, Tensor) == (expected[level] != 0.0), "0 is a number: it takes the term out"
            places[level] |= {beta.data_ptr()} if isinstance(beta, Tensor) else set()
    assert all(len(addresses) <= 1 for addresses in places.values())
    assert plain.state_dict() == {} and plain.reached(40.0, {}, 1.0) == ()


@pytest.mark.parametrize("schedule", CLOSED, ids=repr)
def test_nothing_is_read_back_in_a_step(schedule: Feedback) -> None:
    """Tensors on the meta device have no values: whoever asks for one, or decides by one, raises."""
    meta = torch.device("meta")
    controller = Controller(schedule, ("z",), meta, 64, "sum")
    for step in range(3):
        controller.at(step / 2)
        betas = controller.weigh(torch.ones((), device=meta), {"z": torch.ones(3, device=meta)})
        assert isinstance(betas["z"], Tensor) and betas["z"].is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        controller.state_dict()


def test_a_beta_once_given_stays_and_takes_no_part_in_the_gradient() -> None:
    controller = Controller(ControlVAE(ki=-1e-2), ("z",), CPU, 64, "sum")
    kl = torch.full((3,), 20.0, requires_grad=True)
    first = controller.weigh(torch.tensor(9.9), {"z": kl})["z"]
    assert isinstance(first, Tensor) and not first.requires_grad
    value = float(first)
    controller.weigh(torch.tensor(9.9), {"z": kl})
    assert float(first) == value
    (first * kl.sum()).backward()
    assert kl.grad is not None and torch.allclose(kl.grad, first.expand(3))


def test_what_was_reached_and_the_target_of_the_middle_of_the_epoch() -> None:
    ramp = Controller(KLCapacity(capacity=20.0, ramp_epochs=4.0), ("z",), CPU, 64, "sum")
    geco = Controller(Geco(tolerance=0.2), ("z",), CPU, 64, "sum")
    (moving,), (end,) = (ramp.reached(epoch, {"z": 20.4}, 9.9) for epoch in (2.0, 6.0))
    (per_position,) = geco.reached(2.0, {"z": 20.4}, 0.3 * 64)
    assert [(one.value, one.target, one.missed) for one in (moving, end)] == [(20.4, 7.5, True), (20.4, 20.0, False)]
    assert (per_position.value, per_position.missed) == (pytest.approx(0.3), True)
