from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from arcvae_cli.data.downloads import ZINC, Download, downloaded, fetch, git_blob
from arcvae_cli.errors import ArcvaeError, InputError

CONTENT = b"CCO\nC1CC1\nc1ccccc1\n"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """A server on the loopback of the file `zinc.smi`."""
    (tmp_path / "zinc.smi").write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def small(host: str, monkeypatch: pytest.MonkeyPatch) -> Download:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(ZINC.variable, f"http://{host}/zinc.smi")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between two tries
    return replace(ZINC, blob=git_blob(CONTENT))


def test_a_file_is_fetched_once(cache: Path, small: Download, tmp_path: Path):
    path = fetch(small)
    assert path == cache / "downloads" / "250k_rndm_zinc_drugs_clean.smi" == small.path
    assert path.read_bytes() == CONTENT
    path.write_bytes(b"damaged")
    assert fetch(small).read_bytes() == CONTENT
    (tmp_path / "zinc.smi").unlink()
    assert fetch(small) == path == downloaded(small)
    assert [file.name for file in path.parent.iterdir() if file.suffix != ".lock"] == [path.name]


def test_another_file_is_refused(small: Download, tmp_path: Path):
    (tmp_path / "zinc.smi").write_bytes(CONTENT + b"C\n")
    with pytest.raises(ArcvaeError, match="not zinc250k") as raised:
        fetch(small)
    assert raised.value.exit_code == 1
    assert str(small.path) in raised.value.fix
    assert [file for file in small.path.parent.iterdir() if file.suffix != ".lock"] == []


def test_what_cannot_be_downloaded_can_be_copied(small: Download, host: str, monkeypatch: pytest.MonkeyPatch):
    small.path.parent.mkdir(parents=True)
    small.path.write_bytes(b"a file of the user's")
    for url, reason in (
        (f"http://{host}/other", "404"),
        ("http://127.0.0.1:1/x", "ConnectionError"),
        ("nonsense://x", "nonsense"),
        ("nothing", "download failed"),
    ):
        monkeypatch.setenv(ZINC.variable, url)
        with pytest.raises(ArcvaeError, match=reason) as raised:
            fetch(small)
        assert raised.value.exit_code == 1
        assert f"copy the file to {small.path}" in raised.value.fix
        assert small.path.read_bytes() == b"a file of the user's"
    small.path.write_bytes(CONTENT)
    assert fetch(small) == small.path


@pytest.mark.parametrize("password", ["secret", "se@cret", "se/cret"])
def test_a_password_in_an_address_is_never_printed(
    password: str, small: Download, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "zinc.smi").write_bytes(b"another file")
    said: list[str] = []
    for address in ("http://{}/other", "http://{}/zinc.smi", "nonsense://{}/x"):
        monkeypatch.setenv(ZINC.variable, address.format(f"user:{password}@{host}"))
        with pytest.raises(ArcvaeError) as raised:
            fetch(small, say=said.append)
        told = "".join(traceback.format_exception(raised.value))
        assert "cret" not in "".join(said) + str(raised.value) + told.replace(__file__, "")
        assert f"://{host}" in str(raised.value)


def test_how_to_get_a_missing_or_damaged_file():
    for content in (None, CONTENT):
        if content is not None:
            ZINC.path.parent.mkdir(parents=True)
            ZINC.path.write_bytes(content)
        with pytest.raises(InputError, match="zinc250k is not in the cache, or damaged") as raised:
            downloaded(ZINC)
        assert "arcvae data build --download zinc250k" in raised.value.fix
