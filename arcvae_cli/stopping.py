"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from threading import Timer, current_thread, main_thread
from types import FrameType
from typing import Any

SAVED = 75
"""Exit code of a run that was asked to save itself and wants to be run again (EX_TEMPFAIL of sysexits.h)."""

NAMES = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "a terminal that was closed", "SIGUSR1": "SIGUSR1"}
"""The signals, as far as the system knows them, and how a person calls them."""


class Signals:
    """While it is entered, a signal that asks to stop either ends what is being done at once or is kept for later.

    `names`: of the signals. `patient`: from where on one is kept, since steps that are finished can be saved; else it
    raises KeyboardInterrupt where the program is. A second Ctrl-C raises it even then. What a parent had ignored
    (`nohup`) remains so, and where threads cannot have handlers there are none.
    """

    def __init__(self, names: Iterable[str] = NAMES) -> None:
        self.names = tuple(names)
        self.patient = False
        self.asked: int | None = None
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        self._entered = False

    def __call__(self) -> int | None:
        """The number of the signal that asked to stop, or None."""
        return self.asked

    def __enter__(self) -> Signals:
        for name in self.names if current_thread() is main_thread() else ():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._catch)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: FrameType | None) -> None:
        again, self.asked = self.asked is not None, self.asked or number
        if not self.patient or (again and number == signal.SIGINT):
            raise KeyboardInterrupt

    def _dropped(self, told: sys.UnraisableHookArgs) -> None:
        """Raise again, a moment later, what came where Python drops exceptions: in a destructor, say."""
        if told.exc_type is not KeyboardInterrupt or self.asked is None:
            self._hook(told)
            return
        later = Timer(0.01, self._again, (self.asked,))
        later.daemon = True
        later.start()

    def _again(self, number: int) -> None:
        if self._entered:
            os.kill(os.getpid(), number)


def name(number: int) -> str:
    """How a person calls a signal."""
    found = signal.Signals(number).name
    return NAMES.get(found, found)


def exit_code(number: int) -> int:
    """With which a process ends after a signal, its work being saved: 128 and its number, 75 after SIGUSR1."""
    return SAVED if number == getattr(signal, "SIGUSR1", None) else 128 + number
