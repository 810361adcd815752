"""A recorder that works behind the training: its calls wait in a queue, its failures are told once and end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Full, Queue
from threading import Lock, Thread

from arcvae_cli.records import EpochRecord, Pictures, Plan, Recorder, Silent, StepRecord

WAITING = 1000
"""Calls that may wait: a logger that hangs is dropped after some 300 epochs, or when the training ends."""
PATIENCE = 30.0
"""Seconds that the end of a training waits for a logger to finish its work."""


def nothing() -> None:
    """Leave nothing behind."""


class Background(Silent):
    """Passes what it hears, but for single steps, to a recorder in a thread of its own.

    Whatever the recorder raises is told in one line and it hears no more; where it hangs the training does not wait,
    and `close` waits for `patience` seconds at most, after which `left` says what becomes of the rest. `abandon` is
    called for a recorder that failed or hangs, from any thread: it has to end what would keep the process from ending.
    """

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        tell: Callable[[str], None],
        abandon: Callable[[], None] = nothing,
        patience: float = PATIENCE,
        waiting: int = WAITING,
        left: str = "what it still held is lost",
    ) -> None:
        self._recorder = recorder
        self._name = name
        self._tell = tell
        self._abandon = abandon
        self._patience = patience
        self._left = left
        self._calls: Queue[Callable[[], None] | None] = Queue(waiting)  # None: close, and end
        self._dropped = self._closing = False
        self._code = 0
        self._lock = Lock()
        self._worker = Thread(target=self._work, name=f"recorder {name}", daemon=True)
        self._worker.start()

    def start(self, plan: Plan) -> None:
        """Pass it on."""
        self._pass(lambda: self._recorder.start(plan))

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        """Pass it on."""
        earlier = tuple(records)  # the trainer's own list grows
        self._pass(lambda: self._recorder.resume(earlier, step))

    def steps(self, records: Sequence[StepRecord]) -> None:
        """Pass them on."""
        self._pass(lambda: self._recorder.steps(records))

    def epoch(self, record: EpochRecord) -> None:
        """Pass it on."""
        self._pass(lambda: self._recorder.epoch(record))

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        """Pass them on."""
        self._pass(lambda: self._recorder.pictures(epoch, pictures))

    def close(self, code: int = 0) -> None:
        """Wait until the work is done, or the patience is over."""
        self._code, self._closing = code, True
        with suppress(Full):
            self._calls.put_nowait(None)
        try:
            self._worker.join(self._patience)
        finally:  # a second Ctrl-C ends the wait
            if self._worker.is_alive():
                self._drop(f"not done after {self._patience:g} s; {self._left}")
                with suppress(Exception):
                    self._abandon()

    def abandon(self) -> None:
        """Wait for nothing; what the recorder still has to do is lost."""
        with self._lock:
            self._dropped = True
        with suppress(Exception):
            self._abandon()

    def _pass(self, call: Callable[[], None]) -> None:
        if self._dropped:
            return
        try:
            self._calls.put_nowait(call)
        except Full:
            self._drop(f"hangs, with {self._calls.maxsize} calls waiting")

    def _work(self) -> None:
        try:
            while not self._dropped and (call := self._calls.get()) is not None:
                call()
            self._recorder.close(self._code)
        except BaseException as error:  # foreign code: some packages raise SystemExit
            self._drop(first_line(error))
            with suppress(BaseException):
                self._recorder.close(1)  # what it has so far
            with suppress(BaseException):
                self._abandon()

    def _drop(self, why: str) -> None:
        with self._lock:
            if self._dropped:
                return
            self._dropped = True
        self._tell(f"{self._name}: {why}" + ("" if self._closing else "; training goes on without it"))


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
