"""Public files that are fetched into the cache, and recognised there or anywhere by their content."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arcvae_cli.data.cache import alone, cache_folder
from arcvae_cli.errors import ArcvaeError, InputError

_TIMEOUT = 30  # seconds without an answer
_LARGEST = 2**25  # bytes: over every file here, so that a larger one need not be read


@dataclass(frozen=True)
class Download:
    """A public file. `blob`: the id that git gives its content. `variable`: names another address, as of a mirror.

    `test_lines`: how many of its lines, from the first, are the test set by convention.
    """

    name: str
    file: str
    url: str
    blob: str
    variable: str
    test_lines: int

    @property
    def path(self) -> Path:
        """Where it lies once it is fetched, and where it may be placed by hand."""
        return cache_folder() / "downloads" / self.file

    def is_in(self, path: Path) -> bool:
        """Whether a file is this one, by its content."""
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
    """The id that git gives a file of this content: SHA-1 of a header and the content, in hexadecimal."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def downloaded(what: Download) -> Path:
    """Where the file lies in the cache. InputError, with how to get it, where it does not, or is another."""
    path = what.path
    if not path.is_file():
        raise InputError(
            f"data.input: no file of strings is given, and {what.name} is not in the cache",
            f"Get it by `arcvae data build --download {what.name}`; --preset kusner_equations needs no download.",
        )
    if git_blob(path.read_bytes()) != what.blob:
        raise InputError(
            f"{path}: is not {what.name}, or damaged",
            f"Delete it and fetch it again: arcvae data build --download {what.name}.",
        )
    return path


def address(what: Download) -> str:
    """Where the file is fetched from."""
    return os.environ.get(what.variable) or what.url


def fetch(what: Download, force: bool = False, say: Callable[[str], None] | None = None) -> Path:
    """The file in the cache, fetched if it does not lie there whole.

    Of several processes that need it at once one fetches it; `say` hears of the wait. Raises ArcvaeError, with where to
    place the file by hand, if it cannot be fetched or is not what it should be.
    """
    path = what.path
    if force or not what.is_in(path):
        with alone(path, say):
            if force or not what.is_in(path):  # another process may have fetched it
                _fetch(what, path)
    return path


def _fetch(what: Download, path: Path) -> None:
    """The file put at `path`, where it is what it should be."""
    import pooch  # a tenth of a second

    url = address(what)
    by_hand = (
        f"Place the file at {path} by hand, or give another address in {what.variable}; "
        "the corpus equations needs no download."
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
            logger = pooch.get_logger()
            logger.setLevel(logging.WARNING)  # it tells the hash of what it fetched, which is no news
            temporary = Path(
                pooch.retrieve(url, None, what.file, folder, downloader=pooch.HTTPDownloader(timeout=_TIMEOUT))
            )
            found = git_blob(temporary.read_bytes())
            if found != what.blob:
                raise ArcvaeError(f"{url}: is not {what.name} (git blob {found[:12]}, not {what.blob[:12]})", by_hand)
            temporary.replace(path)
    except (OSError, ValueError) as error:  # what requests raises is an OSError, but for an unusable address
        raise ArcvaeError(f"{url}: could not be fetched ({_reason(error)})", by_hand) from error


def _reason(error: Exception) -> str:
    """Why a file could not be fetched, without the chain of exceptions that connections end in."""
    from requests.exceptions import ConnectionError, Timeout

    if isinstance(error, Timeout):
        return f"no answer in {_TIMEOUT} s"
    if isinstance(error, ConnectionError):
        return "no connection"
    return f"{str(error) or type(error).__name__:.200}".replace("\n", " ")
