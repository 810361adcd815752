"""The cache folder, the lock under which a file of it is made, and the molecules that are downloaded into it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from arcvae_cli.errors import ArcvaeError, without_password
from arcvae_cli.files import expanded, read_limited

ZINC_URL = "https://raw.githubusercontent.com/mkusner/grammarVAE/master/data/250k_rndm_zinc_drugs_clean.smi"
"""The 249,456 molecules of Kusner et al. 2017, a part of ZINC; the first `ZINC_TEST_LINES` are their test set."""
ZINC_BLOB = "a1c61cd0826ac636d5eac5e4e7d92d4ea2cea5e3"  # the git id of its content
ZINC_TEST_LINES = 5000


def cache_folder() -> Path:
    """$ARCVAE_CACHE_DIR, or the user's cache folder."""
    if given := os.environ.get("ARCVAE_CACHE_DIR"):
        return expanded(Path(given))
    from platformdirs import user_cache_path

    return user_cache_path("arcvae", appauthor=False)


@contextmanager
def locked(path: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock of a file of the cache, others wait (`say` a note); none if the folder cannot be written to."""
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
        yield
    finally:
        lock.release()


def zinc_path() -> Path:
    """The file of molecules in the cache, there or not."""
    return cache_folder() / "downloads" / "250k_rndm_zinc_drugs_clean.smi"


def is_zinc(path: Path) -> bool:
    """Whether this is the file of molecules, by its content: git hashes a header and the content by SHA-1."""
    try:
        content = read_limited(path, 2**25)
    except OSError:
        return False
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == ZINC_BLOB


def fetch_zinc(say: Callable[[str], None]) -> None:
    """Download the molecules unless they are in the cache. ArcvaeError if that fails or the content is another."""
    path, address = zinc_path(), os.environ.get("ARCVAE_ZINC_URL") or ZINC_URL
    fix = f"copy the file to {path}, or set another address in ARCVAE_ZINC_URL; the corpus equations needs no download"
    with locked(path, say):
        if is_zinc(path):
            return
        import pooch  # takes a tenth of a second

        pooch.get_logger().setLevel("WARNING")
        say(f"downloading {without_password(address)}")
        try:
            to, downloader = f".{path.name}.new", pooch.HTTPDownloader(timeout=30)
            fetched = Path(pooch.retrieve(address, None, to, path.parent, downloader=downloader))
        except (OSError, ValueError) as error:  # errors of requests are OSErrors, except for an invalid address
            what = f"{address}: download failed ({type(error).__name__}: {error})"
            raise ArcvaeError(what, fix) from None  # the cause has the password
        if not is_zinc(fetched):
            fetched.unlink()
            raise ArcvaeError(f"{address}: not zinc250k: its git blob id is not {ZINC_BLOB[:12]}", fix)
        fetched.replace(path)
