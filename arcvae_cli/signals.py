"""Signals that ask a run to stop."""

import signal
from collections.abc import Iterable
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

SAVED = 75  # exit code of a run that saved itself when asked to and is to be resumed (EX_TEMPFAIL of sysexits.h)
NAMES = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "a terminal that was closed", "SIGUSR1": "SIGUSR1"}


class GracefulExit:
    """While entered, a signal raises KeyboardInterrupt; if `patient`, only a second Ctrl-C does.

    What the parent ignores (`nohup`) stays ignored, and outside of the main thread there are no handlers.
    """

    def __init__(self, names: Iterable[str] = NAMES) -> None:
        self.names = tuple(names)
        self.patient = False
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> int | None:
        return self.asked

    def __enter__(self) -> "GracefulExit":
        for name in self.names if current_thread() is main_thread() else ():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: FrameType | None) -> None:
        second, self.asked = self.asked is not None, self.asked or number
        if not self.patient or (second and number == signal.SIGINT):
            raise KeyboardInterrupt


def signal_name(number: int) -> str:
    """What a person calls a signal."""
    found = signal.Signals(number).name
    return NAMES.get(found, found)


def exit_code(number: int) -> int:
    """The exit code of a process whose work is saved: 128 and the signal's number, 75 after SIGUSR1."""
    return SAVED if number == getattr(signal, "SIGUSR1", None) else 128 + number
