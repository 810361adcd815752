"""A recorder in a thread of its own: a logger that fails or hangs never stops a training."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Full, Queue
from threading import Event, Lock, Thread
from typing import Any

from arcvae_cli.records import Recorder

QUEUED = 1000  # calls that may wait: a logger that hangs is dropped after some 300 epochs
PATIENCE = 30.0  # seconds that the end of a training waits for a logger to finish
FORWARDED = ("start", "resume", "steps", "epoch", "pictures", "evaluated", "artifacts")
ABANDONED = Event()  # whether a logger failed or hangs: its package may wait for a server when the interpreter exits


def leave(code: int) -> None:
    """End the process with this exit code, without the exit hooks of packages, if a logger was abandoned."""
    if ABANDONED.is_set():
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)


class Background(Recorder):
    """Passes all calls but single steps to a recorder in a thread of its own.

    An exception of the recorder is reported once, in one line, and disables it. `close` waits for at most `patience`
    seconds; `unsent` says what happens to the rest. `leave` ends the process without waiting for an abandoned recorder.
    """

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        warn: Callable[[str], None],
        unsent: str = "unsent records are lost",
        patience: float = PATIENCE,
        queued: int = QUEUED,
    ) -> None:
        self._recorder, self._name, self._warn, self._unsent, self._patience = recorder, name, warn, unsent, patience
        self._calls: Queue[Callable[[], None] | None] = Queue(queued)  # None: close, and end
        self._dropped = self._closing = False
        self._code = 0
        self._lock = Lock()
        for method in FORWARDED:
            setattr(self, method, partial(self._forward, getattr(recorder, method)))
        self._worker = Thread(target=self._work, name=f"recorder {name}", daemon=True)
        self._worker.start()

    def close(self, code: int = 0) -> None:
        self._code, self._closing = code, True
        with suppress(Full):
            self._calls.put_nowait(None)
        try:
            self._worker.join(self._patience)
        finally:  # a second Ctrl-C ends the wait
            if self._worker.is_alive():
                self._drop(f"not done after {self._patience:g} s; {self._unsent}")
                ABANDONED.set()

    def abandon(self) -> None:
        """Wait for nothing; what the recorder still has to do is lost."""
        with self._lock:
            self._dropped = True
        ABANDONED.set()

    def _forward(self, method: Callable[..., None], *arguments: Any) -> None:
        if not self._dropped:
            copies = [list(value) if isinstance(value, list) else value for value in arguments]  # the history grows
            try:
                self._calls.put_nowait(partial(method, *copies))
            except Full:
                self._drop(f"hangs, with {self._calls.maxsize} calls queued")

    def _work(self) -> None:
        try:
            while not self._dropped and (call := self._calls.get()) is not None:
                call()
            self._recorder.close(self._code)
        except BaseException as error:  # foreign code: some packages raise SystemExit
            text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            self._drop(text.removesuffix(": "))
            with suppress(BaseException):
                self._recorder.close(1)  # what it has so far
            ABANDONED.set()

    def _drop(self, why: str) -> None:
        with self._lock:
            if self._dropped:
                return
            self._dropped = True
        self._warn(f"{self._name}: {why}" + ("" if self._closing else "; training continues without it"))
