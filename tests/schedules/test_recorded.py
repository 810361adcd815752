"""What is read out of a recorded run, against runs that were made up with a known answer to beta."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from sklearn.isotonic import IsotonicRegression

from arcvae_cli.errors import InputError
from arcvae_cli.schedules import ControlVAE, Cyclical, Geco, Hierarchical, KLCapacity, Schedule
from arcvae_cli.schedules.recorded import Course, between, fit, isotonic, read_run
from arcvae_cli.settings import Settings

STEPS = 40  # an epoch


def kl_at(beta: float) -> float:
    """The KL of the made-up model."""
    return 12.0 - 8.0 * math.log(beta + 0.01)


def reconstruction_at(beta: float, epoch: float) -> float:
    """Its reconstruction in nats per position, which gets better with time."""
    return 0.3 + 0.8 * beta + 0.2 * math.exp(-epoch / 5.0)


def line(kind: str, epoch: float, beta: float, kl: float, reconstruction: float) -> dict[str, Any]:
    step = round(epoch * STEPS)
    values = {"train/beta": beta, "train/kl": kl, "train/loss_reconstruction": 256 * reconstruction}
    return {"kind": kind, "epoch": epoch, "step": step, **values}


def write_run(folder: Path, schedule: Schedule, lines: list[dict[str, Any]], **tables: Any) -> Path:
    settings = Settings.model_validate({"schedule": schedule.model_dump(), **tables})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(tomli_w.dumps(settings.table()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in lines))
    return folder


def lagging(schedule: Schedule, epochs: int, lag: float) -> list[dict[str, Any]]:
    """The record of a run that answers behind a lag in epochs."""
    lines, slow = [], schedule(1.0 / STEPS)
    for step in range(1, epochs * STEPS + 1):
        at = step / STEPS
        slow += (schedule(at) - slow) * (1.0 - math.exp(-1.0 / (STEPS * lag)))
        values = schedule(at), kl_at(slow), reconstruction_at(slow, at)
        if step % 4 == 0:
            lines.append(line("step", at, *values))
        if step % STEPS == 0:
            lines.append(line("epoch", at, *values))
    return lines


@pytest.fixture
def cyclical_run(tmp_path: Path) -> Path:
    schedule = Cyclical(max_beta=0.5, cycle_length=6.0, per="step")
    return write_run(tmp_path / "runs" / "waves", schedule, lagging(schedule, 24, 0.2))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_isotonic_regression_against_another_one(sign: float) -> None:
    random = np.random.default_rng(0)
    places = random.integers(0, 30, 200) / 10  # many of them the same
    values = sign * places + random.normal(size=200)
    other = IsotonicRegression(increasing=sign > 0).fit(places, values)
    knots, answers = isotonic(places.tolist(), values.tolist(), sign)
    assert answers == pytest.approx(sorted(set(other.predict(np.unique(places)).round(12)), reverse=sign < 0))
    assert knots == sorted(knots)
    pools = [np.unique(places)[other.predict(np.unique(places)).round(9) == round(value, 9)] for value in answers]
    assert all(pool.min() <= knot <= pool.max() for knot, pool in zip(knots, pools, strict=True))


def test_between_against_numpy() -> None:
    places, values = [0.0, 1.0, 4.0], [3.0, 1.0, 2.0]
    for place in np.linspace(-1, 5, 61):
        assert between(places, values, place) == pytest.approx(np.interp(place, places, values))


def test_the_answer_and_its_lag_are_found(cyclical_run: Path) -> None:
    run = read_run(str(cyclical_run), Path("runs"))
    assert run.steps == STEPS
    answer = fit(run.points("", "step"), "kl")
    assert answer.lag == 0.2
    for beta in (0.05, 0.1, 0.2, 0.4):
        assert answer(beta, 9.0) == pytest.approx(kl_at(beta), rel=0.02)
    learning = fit(run.points("", "step"), "reconstruction")
    for beta in (0.1, 0.2, 0.4):
        change = learning(beta, 20.0) - learning(0.05, 20.0)
        assert change == pytest.approx(0.8 * (beta - 0.05), rel=0.1)
    assert learning(0.2, 4.0) - learning(0.2, 20.0) == pytest.approx(0.2 * (math.exp(-0.8) - math.exp(-4)), rel=0.2)


@pytest.mark.parametrize(
    ("schedule", "beta"),
    [
        (ControlVAE(target=24.0, ki=-1e-3), math.exp(-1.5) - 0.01),
        (KLCapacity(capacity=24.0, ramp_epochs=5.0), math.exp(-1.5) - 0.01),
    ],
    ids=["controlvae", "kl_capacity"],
)
def test_an_estimate_of_what_holds_the_kl(cyclical_run: Path, schedule: ControlVAE | KLCapacity, beta: float) -> None:
    course = read_run("waves", cyclical_run.parent).course(schedule, "", 30)
    assert course.kind == "estimate"
    assert course.epochs == list(range(1, 31))
    assert course.values[-1] == pytest.approx(24.0, rel=0.05)
    assert course.betas[-1] == pytest.approx(beta, rel=0.1)
    held = course.held_since()
    assert held is not None and 1 < held < 20
    assert course.stuck(schedule) is None
    assert course.seen == (pytest.approx(kl_at(0.5), rel=0.05), pytest.approx(kl_at(0.0), rel=0.3))


def test_an_estimate_of_what_holds_the_reconstruction(cyclical_run: Path) -> None:
    schedule = Geco(tolerance=0.5, alpha=0.2)
    course = read_run("waves", cyclical_run.parent).course(schedule, "", 24)
    assert course.values[-1] == pytest.approx(0.5, rel=0.05)
    assert reconstruction_at(course.betas[-1], 24.0) == pytest.approx(0.5, rel=0.1)


def test_a_target_that_beta_cannot_reach(cyclical_run: Path) -> None:
    schedule = ControlVAE(target=26.0, max_beta=0.1, ki=-1e-2)
    course = read_run("waves", cyclical_run.parent).course(schedule, "", 12)
    assert (course.held_since(), course.stuck(schedule)) == (None, "largest")
    lowest = ControlVAE(target=26.0, min_beta=0.3, start_beta=0.3)
    assert read_run("waves", cyclical_run.parent).course(lowest, "", 12).stuck(lowest) == "least"


def test_a_run_with_this_schedule_is_shown_as_it_was(tmp_path: Path) -> None:
    schedule = KLCapacity(capacity=20.0, ramp_epochs=2.0)
    steps = [line("step", 1 + i / 4, 1.0 if i < 3 else -1.0, 9.0, 0.3) for i in range(1, 5)]
    lines = [
        line("epoch", 1, 1.0, 9.0, 0.4),
        *steps,
        line("epoch", 2, -1.0, 14.8, 0.3),
        line("epoch", 3, 0.5, 20.1, 0.2),
    ]
    folder = write_run(tmp_path / "own", schedule, lines)
    course = read_run(str(folder), Path("runs")).course(schedule, "", 99)
    # the middle of an epoch is where a ramp has its mean; logged steps make the mean of beta where there are any
    assert course == Course("recorded", [1, 2, 3], [1.0, 0.0, 0.5], [9.0, 14.8, 20.1], [5.0, 15.0, 20.0], (9.0, 20.1))
    assert course.held_since() == 2
    assert [course.at("values", epoch) for epoch in (0.5, 1.5, 9)] == [9.0, pytest.approx(11.9), 20.1]
    with pytest.raises(InputError, match="3 logged steps or epochs do not show"):
        read_run(str(folder), Path("runs")).course(ControlVAE(), "", 9)  # another schedule, and too little to go by


def test_levels_have_their_own_names(tmp_path: Path) -> None:
    own = Hierarchical(global_=ControlVAE(target=5.0), local=Cyclical(), per="step")
    lines = [
        {**line("epoch", epoch, 0.1, 30.0, 0.3), "train/beta/global": 0.1 * epoch, "train/kl/global": 6.0 - epoch / 2}
        for epoch in (1, 2, 3)
    ]
    model = {"model": {"name": "hierarchical"}}
    run = read_run(str(write_run(tmp_path / "levels", own, lines, **model)), Path("runs"))
    course = run.course(ControlVAE(target=5.0), "global", 3)
    assert (course.kind, course.values, course.betas) == ("recorded", [5.5, 5.0, 4.5], pytest.approx([0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match="no epoch with train/beta/local and train/kl/local"):
        run.course(ControlVAE(), "local", 3)


def test_a_mean_over_positions_is_nats_per_position_already(tmp_path: Path) -> None:
    lines = [{**line("epoch", epoch, 0.1, 30.0, 0.3), "train/loss_reconstruction": 0.3} for epoch in (1, 2)]
    mean = {"objective": {"reduction": "mean"}}
    run = read_run(str(write_run(tmp_path / "mean", Geco(), lines, **mean)), Path("runs"))
    assert run.course(Geco(), "", 2).values == [0.3, 0.3]


def broken(folder: Path) -> None:
    (folder / "config.toml").write_text("[train]\nepoch = 3\n")


def cut_short(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"kind": "step", "epoch": 0.5}\n[1]\n{"kind": "epo')


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda folder: (folder / "config.toml").unlink(), "holds no config.toml"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "holds no metrics.jsonl"),
        (broken, "unknown key"),
        (cut_short, "no epoch in"),
        (lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe"), "cannot be read"),
    ],
)
def test_what_is_no_run_is_refused(cyclical_run: Path, spoil: Callable[[Path], object], what: str) -> None:
    spoil(cyclical_run)
    with pytest.raises(InputError, match=what):
        read_run(str(cyclical_run), Path("runs"))


def test_runs_that_tell_too_little_are_refused(cyclical_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--run nothing: neither a folder nor a run in"):
        read_run("nothing", tmp_path)
    with pytest.raises(InputError, match="are too many to try"):
        read_run(str(cyclical_run), tmp_path).course(ControlVAE(), "", 30_000)
    still = [line("step", epoch / 10, 0.1, 20.0 + epoch % 2, 0.3) for epoch in range(1, 60)]
    still.append(line("epoch", 6, 0.1, 20.5, 0.3))
    folder = write_run(tmp_path / "still", Cyclical(), still)
    with pytest.raises(InputError, match=r"beta stood at 0\.1 throughout, which does not show how the KL answers"):
        read_run(str(folder), tmp_path).course(ControlVAE(), "", 9)
