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

from arcvae_cli.controllers import Controller, Target
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule
from arcvae_cli.schedules.feedback import ControlVAE, Geco, KLCapacity
from arcvae_cli.schedules.open import Cyclical
from arcvae_cli.schedules.registry import Hierarchical

CPU = torch.device("cpu")
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
        found.append(
            (
                64 * drawn.uniform(0.0, 0.5) * size,
                [drawn.uniform(0, 12) * size for _ in range(3)],
                [drawn.uniform(0, 4) for _ in range(2)],
            )
        )
    return found


def weigh(controller: Controller, step: int, reconstruction: float, *kl: list[float]) -> Mapping[str, Any]:
    controller.at(step / 100)
    rates = {level: torch.tensor(values) for level, values in zip(controller.levels, kl, strict=False)}
    return controller.weigh(torch.tensor(reconstruction), rates)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("schedule", CLOSED, ids=repr)
def test_the_device_does_what_the_reference_does(schedule: Feedback, reduction: str) -> None:
    controller = Controller(schedule, ("global", "local"), CPU, 64, reduction)
    state, seen = schedule.begin(), set()
    for step, (reconstruction, *kl) in enumerate(batches(600), 1):
        total = reconstruction if reduction == "sum" else reconstruction / 64
        betas = weigh(controller, step, total, *kl)
        state, beta = schedule.observe(state, step / 100, sum(map(sum, kl)), reconstruction / 64)
        for level in ("global", "local"):
            assert betas[level].dtype == torch.float32 and betas[level].shape == ()
            assert float(betas[level]) == pytest.approx(beta, rel=1e-4, abs=1e-6)
        seen.add(beta)
    assert controller.state_dict()[""]["beta"] == pytest.approx(state["beta"], rel=1e-4, abs=1e-6)
    low, high = schedule.bounds
    assert min(seen) == pytest.approx(low) or max(seen) == pytest.approx(high)  # the walk goes through saturation


def test_a_level_of_a_hierarchical_schedule_watches_its_own_kl() -> None:
    schedule = Hierarchical(global_=ControlVAE(target=3.0), local=Cyclical(cycle_length=2.0), per="step")
    controller = Controller(schedule, ("global", "local"), CPU, 64, "sum")
    state = schedule.global_.begin() if isinstance(schedule.global_, Feedback) else {}
    for step, (reconstruction, *kl) in enumerate(batches(200), 1):
        betas = weigh(controller, step, reconstruction, *kl)
        state, beta = ControlVAE(target=3.0).observe(state, step / 100, sum(kl[0]), reconstruction / 64)
        assert float(betas["global"]) == pytest.approx(beta, rel=1e-4, abs=1e-6)
        assert betas["local"] == schedule.local(step / 100)
    assert list(controller.state_dict()) == ["global"]
    assert controller.open["local"] == schedule.local(2.0)
    (target,) = controller.verdict(2.0, {"kl": {"global": 4.0, "local": 9.0}, "reconstruction": 0.3})
    assert (target.level, target.value, target.target) == ("global", 4.0, 3.0)


@pytest.mark.parametrize("name", [name for name, kind in SCHEDULES.items() if not kind().closed_loop])
def test_an_open_loop_gives_plain_numbers_and_keeps_no_state(name: str) -> None:
    schedule: Schedule = SCHEDULES[name]()
    controller = Controller(schedule, ("global", "local"), CPU, 64, "sum")
    for epoch in (0.5, 3.0, 12.0, 40.0):
        controller.at(epoch)
        rates = {"global": torch.ones(3), "local": torch.ones(2)}
        expected = {level: part(epoch) for level, part in schedule.by_level(("global", "local")).items()}
        assert controller.weigh(torch.tensor(9.9), rates) == expected
    assert controller.state_dict() == {}
    assert controller.verdict(40.0, {"kl": {"global": 1.0, "local": 1.0}, "reconstruction": 1.0}) == ()
    controller.load_state_dict({})


@pytest.mark.parametrize("schedule", CLOSED, ids=repr)
def test_it_goes_on_exactly_from_a_kept_state(schedule: Feedback) -> None:
    walk = batches(300)
    straight = Controller(schedule, ("z",), CPU, 64, "sum")
    for step in range(150):
        weigh(straight, step, *walk[step][:2])
    resumed = Controller(schedule, ("z",), CPU, 64, "sum")
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for step in range(150, 300):
        one, other = (weigh(controller, step, *walk[step][:2])["z"] for controller in (straight, resumed))
        assert torch.equal(one, other)
    assert straight.state_dict() == resumed.state_dict()
    means = {"kl": {"z": 9.0}, "reconstruction": 0.3}
    assert straight.verdict(3.0, means) == resumed.verdict(3.0, means)


def test_a_state_of_another_schedule_is_refused() -> None:
    kept = Controller(ControlVAE(), ("z",), CPU, 64, "sum").state_dict()
    for schedule, state in ((Geco(), kept), (Cyclical(), kept), (ControlVAE(), {})):
        with pytest.raises(ValueError, match=f"not a state of schedule {schedule.name}"):
            Controller(schedule, ("z",), CPU, 64, "sum").load_state_dict(state)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("schedule", CLOSED, ids=repr)
def test_a_step_is_replayed_as_a_cuda_graph(schedule: Feedback) -> None:
    device = torch.device("cuda")
    replayed, plain = (Controller(schedule, ("z",), d, 64, "sum") for d in (device, CPU))
    begin = replayed.state_dict()
    total, rates = torch.zeros((), device=device), torch.zeros(3, device=device)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        replayed.weigh(total, {"z": rates})
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        beta = replayed.weigh(total, {"z": rates})["z"]
    replayed.load_state_dict(begin)
    for step, (reconstruction, kl, _) in enumerate(batches(200), 1):
        replayed.at(step / 100)
        total.fill_(reconstruction)
        rates.copy_(torch.tensor(kl))
        graph.replay()
        assert float(beta) == pytest.approx(float(weigh(plain, step, reconstruction, kl)["z"]), rel=1e-5, abs=1e-7)


def test_a_beta_once_given_stays_and_takes_no_part_in_the_gradient() -> None:
    controller = Controller(ControlVAE(ki=-1e-2), ("z",), CPU, 64, "sum")
    rates = torch.full((3,), 20.0, requires_grad=True)
    first = controller.weigh(torch.tensor(9.9), {"z": rates})["z"]
    assert isinstance(first, Tensor) and not first.requires_grad
    kept = float(first)
    controller.weigh(torch.tensor(9.9), {"z": rates})
    assert float(first) == kept
    (first * rates.sum()).backward()
    assert rates.grad is not None and torch.allclose(rates.grad, first.expand(3))


def verdict(schedule: Feedback, kl: float, per_position: float, steps: int = 200, stray: int = 0) -> Target:
    controller = Controller(schedule, ("z",), CPU, 64, "sum")
    for step in range(steps):
        away = 1000.0 if step % 100 < stray else 1.0
        weigh(controller, 100 + step, 64 * per_position / away, [kl / away])
    (target,) = controller.verdict(3.0, {"kl": {"z": kl}, "reconstruction": per_position})
    return target


QUICK = {"kp": 1.0, "ki": -1.0}


@pytest.mark.parametrize(
    ("schedule", "kl", "per_position", "bound", "text"),
    [
        (ControlVAE(target=10.0, **QUICK), 14.0, 0.3, "max", "KL: 14 nats, target 10, out of reach"),
        (ControlVAE(target=10.0, **QUICK), 3.0, 0.3, "min", "lower the target"),
        (Geco(tolerance=0.2, start_lambda=100.0), 9.9, 0.3, "min", "raise the tolerance"),
        (Geco(tolerance=0.2, start_lambda=0.1), 9.9, 0.1, "max", "reconstruction: 0.1 nats"),
        (KLCapacity(capacity=20.0, ramp_epochs=0.0), 24.0, 0.3, "max", "raise the target"),
    ],
)
def test_a_target_out_of_reach(schedule: Feedback, kl: float, per_position: float, bound: str, text: str) -> None:
    found = verdict(schedule, kl, per_position)
    assert (found.missed, found.bound) == (True, bound) and found.note is not None and text in found.note


def test_what_is_held_or_still_moves_is_not_out_of_reach() -> None:
    near = verdict(ControlVAE(target=10.0, **QUICK), 10.4, 0.3)
    assert (near.missed, near.bound, near.note) == (False, "max", None)
    strays = verdict(ControlVAE(target=10.0, **QUICK), 14.0, 0.3, stray=20)
    assert (strays.missed, strays.bound, strays.note) == (True, None, None)
    assert verdict(ControlVAE(target=10.0, **QUICK), 14.0, 0.3, stray=2).bound == "max"  # single batches stray
    # the wrong bound: beta stood high while the KL was low already
    assert Target("", "kl", 4.0, 10.0, 1.0, "max").note is None
    assert Target("", "kl", math.nan, 10.0, 1.0, None).missed


def test_every_epoch_is_counted_anew() -> None:
    schedule = KLCapacity(capacity=20.0, ramp_epochs=4.0)
    controller = Controller(schedule, ("z",), CPU, 64, "sum")
    for step in range(100):
        weigh(controller, step, 9.9, [50.0])
    means = {"kl": {"z": 50.0}, "reconstruction": 0.2}
    (first,) = controller.verdict(1.0, means)
    assert (first.bound, first.beta, first.target) == (None, 1.0, 2.5)  # the ramp in the middle of the epoch
    assert controller.verdict(1.0, means) == ()
    for step in range(100, 200):
        weigh(controller, step, 9.9, [0.0])
    (later,) = controller.verdict(5.0, means)
    assert (later.bound, later.beta, later.target) == ("min", -1.0, 20.0)  # and after it
    whole = Hierarchical(global_=schedule, per="epoch")
    controller = Controller(whole, ("global", "local"), CPU, 64, "sum")
    controller.at(1.0)
    controller.weigh(torch.tensor(9.9), {"global": torch.ones(2), "local": torch.ones(2)})
    (by_epoch,) = controller.verdict(1.0, {"kl": {"global": 1.0, "local": 1.0}, "reconstruction": 0.2})
    assert by_epoch.target == 5.0  # the clock stands at the end of the epoch throughout
