from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from arcvae_cli.recorders.background import ABANDONED, FORWARDED, Background, leave
from arcvae_cli.records import Recorder
from tests.recorders.made import pictures, plan, record


class Probe(Recorder):
    """Records its calls and their thread; raises or waits in the call it is given."""

    def __init__(self, failing: str = "", hanging: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self.threads: set[int] = set()
        self.released = threading.Event()
        for name in (*FORWARDED, "step", "close"):
            setattr(self, name, lambda *arguments, name=name: self.called(name, *arguments))
        self._failing, self._hanging = failing, hanging

    def called(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments[0]))
        self.threads.add(threading.get_ident())
        if name == self._failing:
            raise RuntimeError("no route to host\nand more lines of it")
        if name == self._hanging:
            self.released.wait(60)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture(autouse=True)
def abandoned() -> Iterator[None]:
    ABANDONED.clear()
    yield
    ABANDONED.clear()


@pytest.fixture
def hanging() -> Iterator[Probe]:
    probe = Probe(hanging="epoch")
    yield probe
    probe.released.set()


def train(recorder: Background) -> None:
    """The calls of a training of an epoch, but for the end."""
    recorder.start(plan())
    recorder.step(1, 1, {"z": 0.1}, None)
    recorder.steps([])
    recorder.epoch(record(1))
    recorder.pictures(1, pictures())
    recorder.evaluated({"exact": 1}, ["ok"], [])
    recorder.artifacts({})


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.001)


def test_all_calls_but_single_steps_arrive_in_order_in_one_other_thread() -> None:
    probe, warnings, history = Probe(), list[str](), [1, 2]
    recorder = Background(probe, "it", warnings.append)
    recorder.resume(history, 100)  # type: ignore[arg-type]
    history.append(3)  # the trainer's own list grows
    train(recorder)
    recorder.close(75)
    order = ["resume", "start", "steps", "epoch", "pictures", "evaluated", "artifacts", "close"]
    assert (probe.names, warnings, ABANDONED.is_set()) == (order, [], False)
    assert (probe.calls[0][1], probe.calls[-1][1]) == ([1, 2], 75)
    assert len(probe.threads) == 1 and threading.get_ident() not in probe.threads


@pytest.mark.parametrize("failing", ["start", "epoch", "artifacts", "close"])
def test_a_failure_gives_one_warning_and_ends_the_recorder(failing: str) -> None:
    probe, warnings = Probe(failing), list[str]()
    recorder = Background(probe, "it", warnings.append)
    train(recorder)
    if failing != "close":
        wait_for(lambda: failing in probe.names)
    recorder.close()
    assert len(warnings) == 1 and warnings[0].startswith("it: RuntimeError: no route to host")
    assert "\n" not in warnings[0] and ABANDONED.is_set()
    assert probe.names[-2:] == [failing, "close"], "closed with what it has, and nothing after it"
    assert probe.calls[-1][1] == 1, "its records are incomplete"


def test_a_hanging_logger_delays_nothing(hanging: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    recorder = Background(hanging, "it", warnings.append, patience=0.2)
    began = time.monotonic()
    train(recorder)
    assert time.monotonic() - began < 0.1
    recorder.close()
    assert time.monotonic() - began < 2
    assert warnings == ["it: not done after 0.2 s; unsent records are lost"]
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    leave(3)
    assert ended == [3], "without the exit hooks of its package"


def test_too_many_queued_calls_drop_the_logger_with_one_warning(hanging: Probe) -> None:
    warnings: list[str] = []
    recorder = Background(hanging, "it", warnings.append, patience=0.2, queued=4)
    recorder.epoch(record(1))
    wait_for(lambda: hanging.names == ["epoch"])
    for _ in range(3):
        train(recorder)
    assert warnings == ["it: hangs, with 4 calls queued; training continues without it"]
    recorder.close()
    assert len(warnings) == 1 and ABANDONED.is_set()


def test_a_second_interrupt_ends_the_wait(hanging: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Background(hanging, "it", lambda _: None)
    train(recorder)

    def interrupted(self: threading.Thread, patience: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recorder.close()
    assert ABANDONED.is_set()


def test_without_an_abandoned_logger_the_process_ends_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("ended at once"))
    leave(0)
