"""Schedules against SPEC's literal values, formulas written a second time, and dense numeric scans."""

from __future__ import annotations

import math
import re
from decimal import ROUND_HALF_UP, Decimal
from itertools import accumulate, islice, product
from typing import Any

import pytest
import tomli
import tomli_w

from arcvae_cli import schedules
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule, build_schedule, get_beta_schedule
from arcvae_cli.schedules.feedback import ControlVAE, Geco, Hierarchical, KLCapacity
from arcvae_cli.schedules.open import Cosine, Cyclical, Linear, LinearWarmup, ThreePhase, UltraConservative, WarmRestart

LITERAL = [
    ("ultra_conservative", {1: 0, 20: 0, 21: 0.1 / 60, 50: 0.05, 80: 0.1, 100: 0.1}),
    ("linear_warmup", {1: 0, 10: 0, 11: 0.01, 35: 0.25, 60: 0.5, 61: 0.5}),
    ("aggressive", {5: 0, 6: 0.02, 30: 0.5, 40: 0.5}),
    ("cyclical", {1: 0.01, 5: 0.05, 10: 0.1, 15: 0.05, 20: 0, 25: 0.05}),
    ("three_phase", {5: 0.5, 10: 1, 20: 1.5, 30: 2, 50: 2}),
    ("exponential", {5: 0.9241418199787566, 10: 1, 90: 1}),
]


@pytest.mark.parametrize(("name", "values"), LITERAL)
def test_literal_values(name: str, values: dict[int, float]) -> None:
    assert {epoch: get_beta_schedule(epoch, name) for epoch in values} == pytest.approx(values, abs=1e-15)


FORMULAS = {
    "linear": lambda p: p,
    "cosine": lambda p: math.sin(math.pi * p / 2) ** 2,  # the half-angle form of (1 - cos) / 2
    "exponential": lambda p: math.expm1(-5 * p) / math.expm1(-5),
    # the logistic as a hyperbolic tangent, whose ends are -tanh 3 and tanh 3
    "sigmoid": lambda p: (math.tanh(6 * (p - 0.5)) + math.tanh(3)) / (2 * math.tanh(3)),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(("peak", "epochs"), [(0.4, 8.0), (0.7, 0.35), (0.5, 0.0)])
def test_a_rise_follows_its_formula_and_arrives_exactly(name: str, peak: float, epochs: float) -> None:
    schedule = build_schedule({"name": name, "max_beta": peak, "warmup_epochs": epochs})
    assert (schedule(0), schedule(epochs + (not epochs)), schedule(epochs + 1000)) == (0, peak, peak)
    for i in range(65 if epochs else 0):
        assert schedule(epochs * i / 64) == pytest.approx(peak * FORMULAS[name](i / 64), abs=1e-12)


@pytest.mark.parametrize("length", [20, 5, 7.5, 1])
def test_waves_against_formulas(length: float) -> None:
    wave = {w: Cyclical(max_beta=0.9, min_beta=0.1, cycle_length=length, wave=w) for w in ("triangle", "cosine")}
    hold = Cyclical(max_beta=0.9, min_beta=0.1, cycle_length=length, wave="ramp_hold", ramp_fraction=0.3)
    for i in range(1, 400):
        epoch = i / 8
        phase = 2 * math.pi * epoch / length
        # arcsin(cos) is a triangle wave
        assert wave["triangle"](epoch) == pytest.approx(0.5 - 0.8 * math.asin(math.cos(phase)) / math.pi, abs=1e-7)
        assert wave["cosine"](epoch) == pytest.approx(0.5 - 0.4 * math.cos(phase), abs=1e-12)
        tau = epoch / length - math.ceil(epoch / length) + 1  # in (0, 1]: the end of a cycle belongs to it
        assert hold(epoch) == pytest.approx(0.1 + 0.8 * min(1.0, tau / 0.3), abs=1e-12)


def test_epoch_zero_gives_the_start() -> None:
    for kind in SCHEDULES.values():
        assert kind()(0) == kind()(-1) == (1.0 if kind.__name__ in ("Constant", "Geco") else 0.0)
    assert Cyclical(min_beta=0.03)(0) == 0.03


@pytest.mark.parametrize(("interval", "multiplier"), [("40", "1.2"), ("2.5", "1"), ("10", "1.05"), ("1", "2")])
def test_restarts_are_rounded_half_up_and_begin_the_base_again(interval: str, multiplier: str) -> None:
    base = Cosine(max_beta=0.8, warmup_epochs=20)
    schedule = WarmRestart(base=base, restart_interval=float(interval), restart_multiplier=float(multiplier))
    sums = accumulate(Decimal(interval) * Decimal(multiplier) ** i for i in range(8))
    restarts = [float(total.quantize(Decimal(1), ROUND_HALF_UP)) for total in sums]
    assert [restart for _, restart in islice(schedule.intervals(), 8)] == restarts
    for i in range(1, int(restarts[-1] - 1) * 2):
        epoch = i / 2
        last = max([0.0] + [restart for restart in restarts if restart <= epoch])
        assert schedule(epoch) == base(epoch - last)
        info = schedule.restart_info(epoch)
        assert info["last_restart_epoch"] == last
        assert info["epochs_since_restart"] == epoch - last
        assert info["next_restart_epoch"] == min(restart for restart in restarts if restart > epoch)
        assert info["is_restart_epoch"] is any(epoch - 1 < restart <= epoch for restart in restarts)
        assert schedule.cycle(epoch) == info["next_restart_epoch"] - last


MANY: list[Schedule] = [
    *(LinearWarmup(warmup_epochs=w, ramp_epochs=r) for w in (0, 2.25) for r in (0, 5)),
    *(build_schedule({"name": "sigmoid", "warmup_epochs": w}) for w in (0, 6.5)),
    ThreePhase(phases=((3, 1.0), (2, 0.25), (4, 0.5))),  # the first phase is the highest
    ThreePhase(phases=((3, 0.5), (2, 0.25), (4, 1.0), (1, 1.0))),
    *(Cyclical(cycle_length=7.5, wave=w, min_beta=m) for w in ("triangle", "cosine", "ramp_hold") for m in (0.04, 0.1)),
    Cyclical(wave="ramp_hold", ramp_fraction=1.0, cycle_length=6),
    *(  # the third interval gets there, none does, up to its limit, intervals of 3 epochs, 2, 3, 2
        WarmRestart(restart_interval=i, restart_multiplier=m, base=Linear(warmup_epochs=w))
        for i, m, w in ((6, 1.5, 12), (6, 1, 12), (6, 1, 6), (2.5, 1, 4))
    ),
    WarmRestart(restart_interval=6, restart_multiplier=1, base=Cyclical(cycle_length=4, min_beta=0.01)),
    LinearWarmup(max_beta=0.0),
]
FINE = 1 / 64
MIXED = Hierarchical(global_=ControlVAE(target=3.0), local=Cyclical(cycle_length=8), per="step")


@pytest.mark.parametrize("schedule", MANY, ids=repr)
def test_peaks_and_periods_against_a_dense_scan(schedule: Schedule) -> None:
    points = [(i * FINE, schedule(i * FINE)) for i in range(int(48 / FINE) + 1)]
    highest = max(beta for _, beta in points)
    # between two points of the scan no curve here rises by more than 2 % of its peak
    assert highest <= schedule.peak <= 1.02 * highest + 1e-12
    nearly = next(epoch for epoch, beta in points if beta >= 0.9999 * highest)
    reaching = next(epoch for epoch, beta in points if beta >= highest)
    assert nearly - 2 * FINE <= schedule.first_peak <= reaching + 2 * FINE
    stepwise = schedule.model_copy(update={"per": "step"})
    for epochs in (1, 5, 40):
        assert schedule.max_beta_seen(epochs) == max(schedule(epoch) for epoch in range(1, epochs + 1))
        seen = max(beta for epoch, beta in points if epoch <= epochs)
        assert abs(stepwise.max_beta_seen(epochs) - seen) <= 0.02 * schedule.peak
    assert (schedule.period is not None) or not isinstance(schedule, Cyclical)
    for i in range(1, 100 if schedule.period else 0):
        epoch = i / 4
        assert schedule(epoch + (schedule.period or 0)) == pytest.approx(schedule(epoch), abs=1e-9)
        assert schedule.cycle(epoch) == schedule.period


def test_compressed_is_the_same_curve_in_other_time() -> None:
    for schedule, factor in product([*MANY, MIXED, *(kind() for kind in SCHEDULES.values())], (0.05, 2.0)):
        short = schedule.compressed(factor)
        assert short.per == "step"
        for part, whole in zip(short.parts.values(), schedule.parts.values(), strict=True):
            curve, longer = (s.setpoint if isinstance(s, Feedback) else s for s in (part, whole))
            for i in range(1, 40):
                epoch = 2 * i + 1 / 17  # away from jumps, where a rounding of the time changes sides
                assert abs(curve(epoch * factor) - longer(epoch)) < 1e-9
        assert short.first_peak == pytest.approx(schedule.first_peak * factor)
        assert short.peak == pytest.approx(schedule.peak)
        assert build_schedule(tomli.loads(tomli_w.dumps(short.model_dump(mode="json", by_alias=True)))) == short


def test_jumps_and_peaks_survive_the_rounding_of_compressed_times() -> None:
    short = Cyclical().compressed(5 / 100)  # cycles of one epoch, in steps of 1/50
    betas = [short(epoch - 1 + (step + 1) / 50) for epoch in range(1, 6) for step in range(50)]
    assert max(betas) == pytest.approx(0.1) and sum(beta > 0.0999 for beta in betas) == 5
    assert WarmRestart().compressed(5 / 150)(146 * 5 / 150) == 0
    hold = Cyclical(wave="ramp_hold").compressed(5 / 300)
    assert [hold(20 * k * 5 / 300) for k in range(1, 15)] == [0.1] * 14


@pytest.mark.parametrize(
    ("schedule", "epochs", "text"),
    [
        (UltraConservative(), 20, "beta ends at 0 of 0.1: the warm-up is longer than the run"),
        (UltraConservative(), 50, "beta ends at 0.05 of 0.1: the first peak is at epoch 80, the run ends at 50"),
        (UltraConservative(), 80, None),
        (
            Cyclical(cycle_length=5),
            100,
            'beta reaches 0.08 of 0.1: the peak is between whole epochs, per = "step" would reach it',
        ),
        (Cyclical(cycle_length=25), 100, None),  # 0.096 of 0.1: near enough
        (Hierarchical(), 11, "local beta ends at 0.0193 of 0.02: the first peak is at epoch 12.5, the run ends at 11"),
        (KLCapacity(), 10, "capacity ends at 12.5 of 25 nats: the ramp ends at epoch 20, the run at 10"),
    ],
)
def test_a_run_that_misses_the_peak_gets_a_warning(schedule: Schedule, epochs: int, text: str | None) -> None:
    assert schedule.warning(epochs) == text


def test_levels() -> None:
    levels = ("global", "local")
    assert Cyclical().by_level(levels) == dict.fromkeys(levels, Cyclical())
    both = Hierarchical()
    betas = {level: part(5) for level, part in both.by_level(levels).items()}
    assert betas == pytest.approx({"global": 0.005, "local": 0.00690983})
    assert {level: part.peak for level, part in both.by_level(levels).items()} == {"local": 0.02, "global": 0.01}
    local = "local: cyclical, max_beta 0.02, min_beta 0, cycle_length 25, wave cosine, ramp_fraction 0.5"
    assert both.describe() == f"global: cosine, max_beta 0.01, warmup_epochs 10; {local}"
    assert (both.peak, both.first_peak, both.cycle(3)) == (0.02, 12.5, 25)
    with pytest.raises(ValueError, match="levels global and local, not z"):
        both.by_level(("z",))
    assert (MIXED.closed_loop, both.closed_loop, Geco().closed_loop, Cyclical().closed_loop) == (1, 0, 1, 0)
    assert [part.closed_loop for part in MIXED.by_level(levels).values()] == [True, False]
    slow = MIXED.model_copy(update={"per": "epoch"})
    assert {level: part.per for level, part in slow.parts.items()} == {"global": "step", "local": "epoch"}


@pytest.mark.parametrize(
    ("name", "params", "text"),
    [
        ("nothing", {}, "unknown schedule 'nothing': the schedules are constant, linear_warmup, "),
        ("cyclical", {"cycle_lenght": 3}, "schedule cyclical: cycle_lenght: unknown key 'cycle_lenght'"),
        ("cyclical", {"min_beta": 0.5}, "schedule cyclical: expected min_beta <= max_beta, got 0.5, 0.1"),
        ("warm_restart", {"restart_interval": 0.5}, "expected restart_unit <= restart_interval"),
        (
            "hierarchical",
            {"local": {"name": "linear", "per": "step"}},
            "schedule hierarchical: per is a key of this table alone",
        ),
        ("hierarchical", {"global_scheduler": {"type": "linear", "max_beta": -1}}, "global.max_beta: should be"),
    ],
)
def test_faults_are_one_clear_line(name: str, params: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        schedules.get_beta_scheduler(name, **params)
    assert "\n" not in str(caught.value)


def run(schedule: Feedback, batches: list[tuple[float, float]], steps: int = 100) -> list[float]:
    """Beta of each batch of (KL, reconstruction per position), with so many steps an epoch."""
    state, betas = schedule.begin(), []
    for step, (kl, reconstruction) in enumerate(batches, 1):
        state, beta = schedule.observe(state, step / steps, kl, reconstruction)
        betas.append(beta)
        assert state["beta"] == beta
        assert schedule.bounds[0] - 1e-9 <= beta <= schedule.bounds[1] + 1e-9
    return betas


def test_kl_capacity_is_the_gradient_of_the_distance() -> None:
    schedule = KLCapacity(capacity=25.0, start_capacity=5.0, ramp_epochs=4.0, gamma=30.0)
    assert [schedule.setpoint(epoch) for epoch in (0, 1, 2, 4, 9)] == [5, 10, 15, 25, 25]
    for epoch, kl in ((1.0, 10.5), (1.0, 9.5), (6.0, 25.5), (6.0, 3.0)):
        h = 1e-4
        slope = (abs(kl + h - schedule.setpoint(epoch)) - abs(kl - h - schedule.setpoint(epoch))) / (2 * h)
        assert schedule.observe(schedule.begin(), epoch, kl, 9.9)[1] == pytest.approx(30.0 * slope)
    assert schedule.observe(schedule.begin(), 6.0, 25.0, 9.9)[1] == 0.0
    assert KLCapacity(ramp_epochs=0.0).setpoint(0.0) == 25.0


def test_controlvae_follows_its_formula_within_its_bounds() -> None:
    schedule = ControlVAE(target=20.0, kp=0.01, ki=-1e-4, start_beta=0.3)
    errors = [2.0, -1.0, 0.5, -3.0, 0.0]
    integral, expected = 0.3, []
    for error in errors:
        integral -= 1e-4 * error
        expected.append(0.01 / (1 + math.exp(error)) + integral)
    assert run(schedule, [(20.0 - error, 9.9) for error in errors]) == pytest.approx(expected, rel=1e-12)
    assert run(ControlVAE(target=1e5), [(0.0, 0.0)]) == [0.0]  # exp(target) is no float


def test_controlvae_leaves_a_bound_at_once_however_long_it_was_there() -> None:
    schedule = ControlVAE(target=20.0, min_beta=0.2, max_beta=0.7, start_beta=0.2, ki=-1e-2)
    below, above, stay = [(0.0, 9.9)], [(60.0, 9.9)], 5_000
    up = run(schedule, above * stay + below * 5)
    assert up[stay - 1] == pytest.approx(0.7)
    assert up[stay] <= 0.7 - schedule.kp  # the first batch that asks for less gets less
    down = run(schedule, below * stay + above * 5)
    assert down[stay - 1] == pytest.approx(0.2)
    assert down[stay] >= 0.2 + schedule.kp


def test_geco_follows_its_formula() -> None:
    schedule = Geco(tolerance=0.25, alpha=0.1, averaging=0.9, lambda_min=0.5, lambda_max=50.0, start_lambda=2.0)
    seen = [1.25, 0.75, 0.25, 0.15]
    multiplier, average, expected = 2.0, None, []
    for reconstruction in seen:
        constraint = reconstruction - 0.25
        average = constraint if average is None else 0.9 * average + 0.1 * constraint
        multiplier *= math.exp(0.1 * average)
        expected.append(1 / multiplier)
    assert run(schedule, [(9.9, reconstruction) for reconstruction in seen]) == pytest.approx(expected, rel=1e-12)
    assert run(schedule, [(9.9, 1e4)])[-1] == pytest.approx(1 / 50)  # nothing overflows
    assert run(schedule, [(9.9, 0.0)] * 1000)[-1] == pytest.approx(1 / 0.5)


def test_unused_times_are_ignored_and_steps_recorded() -> None:
    everything = {"max_beta": 0.2, "warmup_epochs": 4, "ramp_epochs": 4, "cycle_length": 8}
    assert [get_beta_schedule(e, "cyclical", **everything) for e in (2, 4, 8)] == [0.1, 0.2, 0.0]
    scheduler = schedules.BetaScheduler("linear_warmup", **everything)
    assert [scheduler.step(epoch) for epoch in (4, 6, 8)] == [0.0, 0.1, 0.2]
    assert (scheduler(5), scheduler.beta_history) == (0.05, [0.0, 0.1, 0.2]), "a call leaves no trace"
    assert get_beta_schedule(35) == 0.25
    with pytest.raises(ValueError, match="geco: beta at epoch 3 depends on the run"):
        get_beta_schedule(3, "geco")


def test_nested_dictionaries_of_the_source_documents() -> None:
    wave = {"cycle_length": 20, "min_beta": 0.0, "max_beta": 1.0, "wave_type": "cosine"}
    assert [schedules.CyclicalBetaScheduler(**wave)(e) for e in (0, 5, 10, 20)] == pytest.approx([0, 0.5, 1, 0])
    base = {"base_scheduler_type": "cosine", "base_scheduler_kwargs": {"max_beta": 1.0, "warmup_epochs": 20}}
    restarts = {**base, "restart_interval": 40, "restart_multiplier": 1.2}
    scheduler = schedules.WarmRestartBetaScheduler(**restarts)
    assert [e for e in range(1, 200) if scheduler.get_restart_info(e)["is_restart_epoch"]] == [40, 88, 146]
    assert [scheduler(e) for e in (39, 40, 60, 87, 88)] == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert list(scheduler.get_restart_info(50).values()) == [40, 10, 88, False]
    both = schedules.HierarchicalBetaScheduler(
        global_scheduler={"type": "warm_restart", **restarts}, local_scheduler={"type": "cyclical", **wave}
    )
    assert both.step(10) == pytest.approx({"global_kl_weight": 0.5, "local_kl_weight": 1.0})
    assert both(40) == {"global_kl_weight": 0.0, "local_kl_weight": 0.0}
