"""Where built and downloaded corpora are kept, and whose turn it is to make one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from arcvae_cli.files import expanded

if TYPE_CHECKING:
    from filelock import BaseFileLock


def cache_folder() -> Path:
    """Where built corpora are kept: $ARCVAE_CACHE_DIR, or the user's cache folder."""
    given = os.environ.get("ARCVAE_CACHE_DIR")
    if given:
        return expanded(Path(given))
    from platformdirs import user_cache_path

    return user_cache_path("arcvae", appauthor=False)


@contextmanager
def alone(path: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """The turn of this process to make a file of the cache; one that another process is making is waited for.

    `say` hears of the wait, after which the file may be there. What others died over is swept. Where the cache cannot
    be locked the block runs without: what it makes is written whole or not at all, if perhaps twice.
    """
    lock = _taken(path, say)
    if lock is None:
        yield
        return
    try:
        for stale in path.parent.glob(f".{path.name}.*.tmp"):
            with suppress(OSError):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        yield
    finally:
        with suppress(OSError):  # under the lock: who waits for this file finds it gone, and takes the next one
            os.unlink(lock.lock_file)
        lock.release()


def _taken(path: Path, say: Callable[[str], None] | None) -> BaseFileLock | None:
    """The lock beside a file, acquired; None where there can be none. A process that dies keeps none."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if say is not None:
                say(f"another process is making {path.name}: waiting for it")
            lock.acquire(poll_interval=0.1)
    except OSError:
        return None
    return lock
