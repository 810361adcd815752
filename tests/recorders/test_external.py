from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arcvae_cli.console import Console
from arcvae_cli.errors import InputError
from arcvae_cli.recorders import external
from arcvae_cli.recorders.external import ABANDONED, FORWARDED, Background, check_installed, external_recorders, leave
from arcvae_cli.records import Recorder
from arcvae_cli.runs import RunFolder
from arcvae_cli.settings import LogSettings
from tests.recorders.made import pictures, plan, record


class Probe(Recorder):
    """Records its calls and their threads; raises or waits in the call it is given."""

    def __init__(self, failing: str = "", hanging: str = "") -> None:
        self.names: list[str] = []
        self.values: list[Any] = []
        self.threads: set[int] = set()
        self.released = threading.Event()
        for name in (*FORWARDED, "step", "close"):
            setattr(self, name, lambda *arguments, name=name: self.called(name, *arguments))
        self._failing, self._hanging = failing, hanging

    def called(self, name: str, *arguments: Any) -> None:
        self.names.append(name)
        self.values.append(arguments[0])
        self.threads.add(threading.get_ident())
        if name == self._failing:
            raise RuntimeError("no route to host\nand more lines of it")
        if name == self._hanging:
            self.released.wait(60)


@pytest.fixture(autouse=True)
def abandoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(external, "PATIENCE", 0.1)
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
    probe, warnings, history = Probe(), list[str](), [record(1)]
    recorder = Background(probe, "it", warnings.append)
    recorder.resume(history, 100)
    history.append(record(2))  # the trainer's own list grows
    train(recorder)
    wait_for(lambda: len(probe.names) == len(FORWARDED))
    recorder.close(75)
    order = ["resume", "start", "steps", "epoch", "pictures", "evaluated", "artifacts", "close"]
    assert (probe.names, warnings, ABANDONED.is_set()) == (order, [], False)
    assert (len(probe.values[0]), probe.values[-1]) == (1, 75)
    assert len(probe.threads) == 1 and threading.get_ident() not in probe.threads


@pytest.mark.parametrize("failing", ["start", "artifacts", "close"])
def test_a_failure_gives_one_warning_and_ends_the_recorder(failing: str) -> None:
    probe, warnings = Probe(failing), list[str]()
    recorder = Background(probe, "it", warnings.append)
    train(recorder)
    if failing != "close":
        wait_for(lambda: failing in probe.names)
    recorder.close()
    assert len(warnings) == 1 and warnings[0].startswith("it: RuntimeError: no route to host")
    assert "\n" not in warnings[0] and ABANDONED.is_set()
    assert (probe.names[-2:], probe.values[-1]) == ([failing, "close"], 1), "closed as incomplete, and nothing after it"


@pytest.mark.parametrize("queued", [1000, 4])
def test_a_hanging_logger_delays_nothing(hanging: Probe, queued: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is dropped at the end, or when too many calls are queued; the process ends without its exit hooks."""
    warnings, ended = list[str](), list[int]()
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(external, "QUEUED", queued)
    leave(0)
    recorder = Background(hanging, "it", warnings.append)
    recorder.epoch(record(1))
    wait_for(lambda: hanging.names != [])
    began = time.monotonic()
    train(recorder)
    recorder.close()
    assert time.monotonic() - began < 2
    full = "it: hangs, with 4 calls queued; training continues without it"
    assert warnings == [full if queued == 4 else "it: not done after 0.1 s; unsent records are lost"]
    leave(3)
    assert ended == [3]


def test_the_loggers_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, made = LogSettings(wandb="online", tensorboard=True), list[str]()
    monkeypatch.setattr(external, "Background", lambda recorder, name, *_: made.append(name))
    for log in (LogSettings(wandb="off"), both):
        external_recorders(log, RunFolder(tmp_path), Console())
    assert made == ["W&B", "TensorBoard"]
    check_installed(both)
    monkeypatch.setattr(external, "find_spec", lambda name: None)
    with pytest.raises(InputError):
        check_installed(both)
