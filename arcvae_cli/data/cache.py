"""The cache folder of built and downloaded corpora, and the lock under which a file of it is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from arcvae_cli.files import expanded


def cache_folder() -> Path:
    """$ARCVAE_CACHE_DIR, or the user's cache folder."""
    given = os.environ.get("ARCVAE_CACHE_DIR")
    if given:
        return expanded(Path(given))
    from platformdirs import user_cache_path

    return user_cache_path("arcvae", appauthor=False)


@contextmanager
def alone(path: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock of a file of the cache: one process makes it, others wait (`say` a note) and find it there.

    Temporary files of processes that died are removed. If the folder cannot be locked the block runs without a lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if say is not None:
                say(f"another process is making {path.name}: waiting for it")
            lock.acquire(poll_interval=0.1)
    try:
        for stale in path.parent.glob(f".{path.name}.*.tmp") if lock.is_locked else ():
            stale.unlink(missing_ok=True)
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # while it is held: processes that wait for this file then lock a new one
                os.unlink(lock.lock_file)
            lock.release()
