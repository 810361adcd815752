"""The cache folder, the lock under which a file of it is made, and public files that are downloaded into it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from arcvae_cli.errors import ArcvaeError, InputError, without_password
from arcvae_cli.files import expanded

_LARGEST = 2**25  # bytes, above the size of every file here


def cache_folder() -> Path:
    """$ARCVAE_CACHE_DIR, or the user's cache folder."""
    given = os.environ.get("ARCVAE_CACHE_DIR")
    if given:
        return expanded(Path(given))
    from platformdirs import user_cache_path

    return user_cache_path("arcvae", appauthor=False)


@contextmanager
def locked(path: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock of a file of the cache: one process makes it, others wait (`say` a note) and find it there.

    If the folder cannot be written to, the block runs without a lock.
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
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Download:
    """A public file; `blob`: git id of its content, `variable`: of another address, `test_lines`: leading test set."""

    name: str
    file: str
    url: str
    blob: str
    variable: str
    test_lines: int

    @property
    def path(self) -> Path:
        return cache_folder() / "downloads" / self.file

    def is_in(self, path: Path) -> bool:
        try:
            return path.stat().st_size < _LARGEST and git_blob(path.read_bytes()) == self.blob
        except OSError:
            return False


ZINC = Download(
    name="zinc250k",
    file="250k_rndm_zinc_drugs_clean.smi",
    url="https://raw.githubusercontent.com/mkusner/grammarVAE/master/data/250k_rndm_zinc_drugs_clean.smi",
    blob="a1c61cd0826ac636d5eac5e4e7d92d4ea2cea5e3",
    variable="ARCVAE_ZINC_URL",
    test_lines=5000,
)
"""The 249,456 molecules of Kusner et al. 2017, a part of ZINC; the first 5,000 are their test set."""

DOWNLOADS = {ZINC.name: ZINC}


def git_blob(content: bytes) -> str:
    """The git id of a file of this content: SHA-1 of a header and the content, in hexadecimal."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def downloaded(what: Download) -> Path:
    """The file in the cache. InputError, with how to get it, if it is missing or damaged."""
    if what.is_in(what.path):
        return what.path
    fix = f"run `arcvae data build --download {what.name}`; --preset kusner_equations needs no download"
    raise InputError(f"{what.path}: {what.name} is not in the cache, or damaged", fix)


def fetch(what: Download, say: Callable[[str], None] | None = None) -> Path:
    """The file in the cache, downloaded unless it is there. ArcvaeError if that fails or its content is another."""
    path, address = what.path, os.environ.get(what.variable) or what.url
    fix = f"copy the file to {path}, or set another address in {what.variable}; the corpus equations needs no download"
    with locked(path, say):
        if what.is_in(path):
            return path
        import pooch  # takes a tenth of a second

        pooch.get_logger().setLevel("WARNING")
        if say is not None:
            say(f"downloading {without_password(address)}")
        try:
            name = f".{what.file}.new"
            files = pooch.create(path.parent, "", registry={name: None}, urls={name: address}, retry_if_failed=1)
            fetched = Path(files.fetch(name, downloader=pooch.HTTPDownloader(timeout=30)))
        except (OSError, ValueError) as error:  # errors of requests are OSErrors, except for an invalid address
            reason = f"{address}: download failed ({type(error).__name__}: {error})"
            raise ArcvaeError(reason, fix) from None  # the cause has the password
        if what.is_in(fetched):
            return fetched.replace(path)
        fetched.unlink()
    raise ArcvaeError(f"{address}: not {what.name}: its git blob id is not {what.blob[:12]}", fix)
