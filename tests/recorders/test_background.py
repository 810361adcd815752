from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from arcvae_cli.recorders.background import ABANDONED, Background
from arcvae_cli.records import EpochRecord, Pictures, Plan, Recorder

MakePlan, MakeRecord, MakePictures = Callable[..., Plan], Callable[..., EpochRecord], Callable[..., Pictures]


class Probe(Recorder):
    """Records its calls and their thread; raises or waits in the call it is given."""

    def __init__(self, failing: str = "", hanging: str = "") -> None:
        self.calls: list[str] = []
        self.codes: list[int] = []
        self.threads: set[int] = set()
        self.go_on = threading.Event()
        self._failing, self._hanging = failing, hanging

    def hear(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.get_ident())
        if name == self._failing:
            raise RuntimeError("no route to host\nand more lines of it")
        if name == self._hanging:
            self.go_on.wait(60)

    def start(self, plan: Any) -> None:
        self.hear("start")

    def step(self, epoch: int, done: int, betas: Any, loss: float | None) -> None:
        self.hear("step")

    def resume(self, records: Any, step: int) -> None:
        self.hear(f"resume {[record.epoch for record in records]} {step}")

    def steps(self, records: Any) -> None:
        self.hear("steps")

    def epoch(self, record: Any) -> None:
        self.hear(f"epoch {record.epoch}")

    def pictures(self, epoch: int, pictures: Any) -> None:
        self.hear(f"pictures {epoch}")

    def close(self, code: int = 0) -> None:
        self.codes.append(code)
        self.hear("close")


@pytest.fixture(autouse=True)
def abandoned() -> Iterator[threading.Event]:
    """Whether the process ends without waiting for loggers."""
    ABANDONED.clear()
    yield ABANDONED
    ABANDONED.clear()


@pytest.fixture
def train(make_plan: MakePlan, make_record: MakeRecord, make_pictures: MakePictures) -> Callable[[Background], None]:
    """What a training of two epochs tells a recorder, but for the end."""

    def run(recorder: Background) -> None:
        recorder.start(make_plan())
        for epoch in (1, 2):
            recorder.step(epoch, 1, {"z": 0.1}, None)
            recorder.steps([])
            recorder.epoch(make_record(epoch))
            recorder.pictures(epoch, make_pictures())

    return run


Train = Callable[[Background], None]


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.001)


def test_all_calls_but_single_steps_arrive_in_order_in_one_other_thread(train: Train, make_record: MakeRecord) -> None:
    heard, warnings, history = Probe(), list[str](), [make_record(1), make_record(2)]
    recorder = Background(heard, "it", warnings.append)
    train(recorder)
    recorder.resume(history, 100)
    history.append(make_record(3))  # the trainer's own list grows
    recorder.close(75)
    calls = ["start", "steps", "epoch 1", "pictures 1", "steps", "epoch 2", "pictures 2", "resume [1, 2] 100", "close"]
    assert (heard.calls, heard.codes, warnings) == (calls, [75], [])
    assert not ABANDONED.is_set()
    assert len(heard.threads) == 1 and threading.get_ident() not in heard.threads


@pytest.mark.parametrize("failing", ["start", "epoch 1", "pictures 2", "close"])
def test_a_failure_gives_one_warning_and_ends_the_recorder(train: Train, failing: str) -> None:
    heard, warnings = Probe(failing), list[str]()
    recorder = Background(heard, "it", warnings.append)
    train(recorder)
    if failing != "close":
        wait_for(lambda: failing in heard.calls)
    recorder.close()
    assert len(warnings) == 1 and warnings[0].startswith("it: RuntimeError: no route to host")
    assert "\n" not in warnings[0]
    before = heard.calls[: heard.calls.index(failing) + 1]
    assert heard.calls == [*before, "close"], "closed with what it has, and nothing after it"
    assert ABANDONED.is_set()
    assert heard.codes == [0, 1] if failing == "close" else [1], "what it holds is not all"


@pytest.fixture
def hanging() -> Iterator[Probe]:
    heard = Probe(hanging="epoch 1")
    yield heard
    heard.go_on.set()


def test_a_hanging_logger_delays_nothing(train: Train, hanging: Probe) -> None:
    warnings: list[str] = []
    recorder = Background(hanging, "it", warnings.append, patience=0.2)
    began = time.monotonic()
    train(recorder)
    assert time.monotonic() - began < 0.1
    recorder.close()
    assert time.monotonic() - began < 2
    assert warnings == ["it: not done after 0.2 s; unsent records are lost"]
    assert hanging.calls == ["start", "steps", "epoch 1"]
    assert ABANDONED.is_set()


def test_too_many_waiting_calls_drop_the_logger_with_one_warning(
    train: Train, hanging: Probe, make_record: MakeRecord
) -> None:
    warnings: list[str] = []
    recorder = Background(hanging, "it", warnings.append, patience=0.2, waiting=4)
    recorder.epoch(make_record(1))
    wait_for(lambda: hanging.calls == ["epoch 1"])
    for _ in range(3):
        train(recorder)
    assert warnings == ["it: hangs, with 4 calls waiting; training continues without it"]
    recorder.close()
    assert len(warnings) == 1
    assert ABANDONED.is_set()


def test_a_second_interrupt_ends_the_wait(train: Train, hanging: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Background(hanging, "it", lambda _: None)
    train(recorder)

    def interrupted(patience: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder._worker, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recorder.close()
    assert ABANDONED.is_set()
