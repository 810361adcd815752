from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from unittest.mock import MagicMock

import pytest

from arcvae_cli.recorders import external
from arcvae_cli.recorders.external import ABANDONED, FORWARDED, Background, leave
from tests.recorders.made import pictures, plan, record


@pytest.fixture(autouse=True)
def abandoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(external, "PATIENCE", 0.1)
    ABANDONED.clear()
    yield
    ABANDONED.clear()


def names(logger: MagicMock) -> list[str]:
    return [name for name, *_ in logger.method_calls]


def train(recorder: Background) -> None:
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


def test_all_calls_but_single_steps_arrive_in_order_in_another_thread() -> None:
    logger, warnings, history, threads = MagicMock(), list[str](), [record(1)], set[int]()
    logger.epoch.side_effect = lambda _: threads.add(threading.get_ident())
    recorder = Background(logger, "it", warnings.append, "the rest is lost")
    recorder.resume(history, 100)
    history.append(record(2))  # the trainer's own list grows
    train(recorder)
    wait_for(lambda: len(names(logger)) == len(FORWARDED))
    recorder.close(75)
    assert names(logger) == ["resume", "start", "steps", "epoch", "pictures", "evaluated", "artifacts", "close"]
    assert (warnings, ABANDONED.is_set(), len(logger.resume.call_args.args[0])) == ([], False, 1)
    assert logger.close.call_args.args == (75,)
    assert threads and threading.get_ident() not in threads


@pytest.mark.parametrize("failing", ["start", "artifacts", "close"])
def test_a_failure_gives_one_warning_and_ends_the_recorder(failing: str) -> None:
    logger, warnings = MagicMock(), list[str]()
    getattr(logger, failing).side_effect = RuntimeError("no route to host\nand more lines of it")
    recorder = Background(logger, "it", warnings.append, "the rest is lost")
    train(recorder)
    if failing != "close":
        wait_for(lambda: failing in names(logger))
    recorder.close()
    assert len(warnings) == 1 and warnings[0].startswith("it is disabled: RuntimeError: no route to host")
    assert "\n" not in warnings[0] and ABANDONED.is_set()
    assert names(logger)[-2:] == [failing, "close"] and logger.close.call_args.args == (1,), "closed as incomplete"


@pytest.mark.parametrize("queued", [1000, 4])
def test_a_hanging_logger_delays_nothing(queued: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is dropped at the end, or when too many calls are queued; the process ends without its exit hooks."""
    logger, warnings, ended, released = MagicMock(), list[str](), list[int](), threading.Event()
    logger.epoch.side_effect = lambda _: released.wait(60)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(external, "QUEUED", queued)
    leave(0)
    recorder = Background(logger, "it", warnings.append, "the rest is lost")
    recorder.epoch(record(1))
    wait_for(lambda: names(logger) != [])
    began = time.monotonic()
    train(recorder)
    recorder.close()
    assert time.monotonic() - began < 2
    full = "it is disabled: hangs, with 4 calls queued"
    assert warnings == [full if queued == 4 else "it is disabled: not done after 0.1 s; the rest is lost"]
    leave(3)
    assert ended == [3]
    released.set()
