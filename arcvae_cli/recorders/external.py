"""W&B and TensorBoard, each in a thread of its own: a logger that fails or hangs never stops a training."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any

from arcvae_cli import plugins
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError
from arcvae_cli.folders import RunFolder
from arcvae_cli.records import Recorder
from arcvae_cli.settings import LogSettings

QUEUED = 1000  # calls that may wait: a logger that hangs is dropped after some 300 epochs
PATIENCE = 30.0  # seconds that the end of a training waits for a logger to finish
FORWARDED = ("start", "resume", "steps", "epoch", "pictures", "evaluated", "artifacts")
ABANDONED = Event()  # whether a logger failed or hangs: its package may wait for a server when the interpreter exits


def leave(code: int) -> None:
    """End the process with this exit code, without the exit hooks of packages, if a logger was abandoned."""
    if ABANDONED.is_set():
        with suppress(Exception):
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(code)


def check_installed(log: LogSettings) -> None:
    """InputError if the settings ask for a logger that cannot be imported."""
    for name in log.recorders:
        plugins.find("recorders", name)
    for package, asked in {"wandb": log.wandb in ("online", "offline"), "tensorboard": log.tensorboard}.items():
        if asked and find_spec(package) is None:
            raise InputError(f"--{package}: {package} is not installed", f"pip install 'arcvae[{package}]'")


def external_recorders(log: LogSettings, folder: RunFolder, console: Console) -> list[Recorder]:
    """The loggers that the settings enable; their packages are imported when they start."""
    found = list[Recorder]()
    if log.wandb != "off":
        from arcvae_cli.recorders.wandb import WandbRecorder, automatic_mode

        mode, note = automatic_mode() if log.wandb == "auto" else (log.wandb, None)
        if note is not None:
            console.note(note)
        if mode != "off":
            rest = f"`wandb sync {folder.shell}/wandb/latest-run` sends the rest"
            found.append(Background(WandbRecorder(folder.path, mode), "W&B", console.warn, rest))
    if log.tensorboard:
        from arcvae_cli.recorders.tensorboard import TensorBoardRecorder

        found.append(Background(TensorBoardRecorder(folder.path), "TensorBoard", console.warn, "the rest is lost"))
    for name in log.recorders:
        found.append(Background(plugins.find("recorders", name)(folder.path), name, console.warn, "the rest is lost"))
    return found


class Background(Recorder):
    """Passes all calls but single steps to a recorder in a thread of its own.

    An exception of the recorder is reported once, in one line, and disables it. `close` waits for at most PATIENCE;
    `rest` says what happens to what is not written then.
    """

    def __init__(self, recorder: Recorder, name: str, warn: Callable[[str], None], rest: str) -> None:
        self._recorder, self._name, self._warn, self._rest = recorder, name, warn, rest
        self._calls: Queue[Callable[[], None] | None] = Queue(QUEUED)  # None: close, and end
        self._dropped, self._code = False, 0
        for method in FORWARDED:
            setattr(self, method, partial(self._forward, getattr(recorder, method)))
        self._worker = Thread(target=self._work, name=f"recorder {name}", daemon=True)
        self._worker.start()

    def close(self, code: int = 0) -> None:
        self._code = code
        with suppress(Full):
            self._calls.put_nowait(None)
        try:
            self._worker.join(PATIENCE)
        finally:  # a second Ctrl-C ends the wait
            if self._worker.is_alive():
                self._drop(f"not done after {PATIENCE:g} s; {self._rest}")
                ABANDONED.set()

    def abandon(self) -> None:
        self._dropped = True
        ABANDONED.set()

    def _forward(self, method: Callable[..., None], *arguments: Any) -> None:
        if not self._dropped:
            copies = [list(value) if isinstance(value, list) else value for value in arguments]  # the history grows
            try:
                self._calls.put_nowait(partial(method, *copies))
            except Full:
                self._drop(f"hangs, with {QUEUED} calls queued")

    def _work(self) -> None:
        try:
            while not self._dropped and (call := self._calls.get()) is not None:
                call()
            self._recorder.close(self._code)
        except BaseException as error:  # foreign code: some packages raise SystemExit
            self._drop(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": "))
            with suppress(BaseException):
                self._recorder.close(1)  # what it has so far
            ABANDONED.set()

    def _drop(self, why: str) -> None:
        if not self._dropped:
            self._dropped = True
            self._warn(f"{self._name} is disabled: {why}")


def flattened(metrics: Mapping[str, Any], prefix: str = "eval") -> Iterator[tuple[str, float]]:
    """The numbers of nested metrics, under names as `eval/reconstruction/exact`."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)):
            yield f"{prefix}/{name}", value


def example_files(run: Path, epoch: int) -> Iterator[tuple[str, Path]]:
    """The pictures and texts that the image recorder wrote in an epoch, by their logged names."""
    for path in sorted((run / "images").glob(f"*_epoch_{epoch}.*")):
        kind, name = "images" if path.suffix == ".png" else "strings", path.name.partition("_epoch_")[0]
        yield f"{kind}/{name.replace('kl_map', 'kl_maps')}", path
