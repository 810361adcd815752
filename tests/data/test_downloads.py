from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from arcvae_cli.data.downloads import ZINC, downloaded, fetch, git_blob
from arcvae_cli.errors import ArcvaeError, InputError

CONTENT = b"CCO\nC1CC1\nc1ccccc1\n"


@pytest.fixture
def served() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A server on the loopback: its address, what it serves, and what it was asked for."""
    files: dict[str, bytes] = {"/zinc.smi": CONTENT}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files, asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def small(served: tuple[str, dict[str, bytes], list[str]], monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(ZINC.variable, f"{served[0]}/zinc.smi")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between two tries
    return replace(ZINC, blob=git_blob(CONTENT))


def test_a_file_is_fetched_once(cache: Path, small, served):
    _, _, asked = served
    path = fetch(small)
    assert path == cache / "downloads" / "250k_rndm_zinc_drugs_clean.smi" == small.path
    assert path.read_bytes() == CONTENT
    assert fetch(small) == path == downloaded(small)
    assert asked == ["/zinc.smi"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    path.write_bytes(b"damaged")
    fetch(small)
    assert path.read_bytes() == CONTENT
    assert len(asked) == 2


def test_another_file_is_refused(small, served):
    served[1]["/zinc.smi"] = CONTENT + b"C\n"
    with pytest.raises(ArcvaeError, match="not zinc250k") as raised:
        fetch(small)
    assert raised.value.exit_code == 1
    assert str(small.path) in raised.value.fix
    assert not small.path.exists()
    assert list(small.path.parent.iterdir()) == []


def test_what_cannot_be_downloaded_can_be_copied(small, served, monkeypatch: pytest.MonkeyPatch):
    addresses = {
        f"{served[0]}/other": "404",
        "http://127.0.0.1:1/x": "ConnectionError",
        "nonsense://x": "nonsense",
        "nothing": "download failed",
    }
    small.path.parent.mkdir(parents=True)
    small.path.write_bytes(b"a file of the user's")
    for url, reason in addresses.items():
        monkeypatch.setenv(ZINC.variable, url)
        with pytest.raises(ArcvaeError, match=reason) as raised:
            fetch(small)
        assert raised.value.exit_code == 1
        assert f"copy the file to {small.path}" in raised.value.fix
        assert "\n" not in raised.value.what
        assert small.path.read_bytes() == b"a file of the user's"
    small.path.write_bytes(CONTENT)
    assert fetch(small) == small.path


@pytest.mark.parametrize("password", ["secret", "se@cret", "se/cret", "se%40cret"])
def test_a_password_in_an_address_is_never_printed(password: str, small, served, monkeypatch: pytest.MonkeyPatch):
    host = served[0].removeprefix("http://")
    said: list[str] = []
    for path in ("other", "zinc.smi"):
        served[1]["/zinc.smi"] = b"another file"
        for scheme in ("http", "nonsense"):
            monkeypatch.setenv(ZINC.variable, f"{scheme}://user:{password}@{host}/{path}")
            with pytest.raises(ArcvaeError) as raised:
                fetch(small, say=said.append)
            told = "".join(traceback.format_exception(raised.value))
            assert "cret" not in "".join(said) + str(raised.value) + told.replace(__file__, "")
            assert f"://{host}" in str(raised.value)


def test_what_is_not_there_is_explained_in_two_lines():
    with pytest.raises(InputError, match="zinc250k is not in the cache") as raised:
        downloaded(ZINC)
    assert "arcvae data build --download zinc250k" in raised.value.fix
    assert "--preset kusner_equations needs no download" in raised.value.fix
    assert str(raised.value).count("\n") == 1
    ZINC.path.parent.mkdir(parents=True)
    ZINC.path.write_bytes(CONTENT)
    with pytest.raises(InputError, match="zinc250k is not in the cache, or damaged"):
        downloaded(ZINC)
