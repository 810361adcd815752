from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from arcvae_cli.data import corpora
from arcvae_cli.data.corpora import fetch_zinc, is_zinc, zinc_path
from arcvae_cli.errors import ArcvaeError

CONTENT = b"CCO\nC1CC1\nc1ccccc1\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on the loopback of the file `zinc.smi`, which takes the place of ZINC."""
    (tmp_path / "zinc.smi").write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ARCVAE_ZINC_URL", f"http://127.0.0.1:{server.server_port}/zinc.smi")
    monkeypatch.setattr(corpora, "ZINC_BLOB", "be43142d70ed0381514c7b1a42480ebb36478530")
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_once(cache: Path, host: str, tmp_path: Path):
    said: list[str] = []
    path = zinc_path()
    fetch_zinc(said.append)
    path.write_bytes(b"damaged")
    fetch_zinc(said.append)
    assert path.read_bytes() == CONTENT and is_zinc(path)
    (tmp_path / "zinc.smi").unlink()
    fetch_zinc(said.append)
    assert said == [f"downloading http://{host}/zinc.smi"] * 2
    assert [file for file in path.parent.iterdir() if file.suffix != ".lock"] == [path]


def test_what_cannot_be_downloaded_can_be_copied(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    zinc_path().parent.mkdir(parents=True)
    zinc_path().write_bytes(b"a file of the user's")
    (tmp_path / "another.smi").write_bytes(CONTENT + b"C\n")
    said: list[str] = []
    for url, reason in (
        (f"http://user:se@cret@{host}/another.smi", "not zinc250k"),
        (f"http://user:secret@{host}/other", "404"),
        ("http://user:se/cret@127.0.0.1:1/x", "download failed"),
        (f"nonsense://user:secret@{host}/x", "nonsense"),
    ):
        monkeypatch.setenv("ARCVAE_ZINC_URL", url)
        with pytest.raises(ArcvaeError, match=reason) as raised:
            fetch_zinc(said.append)
        assert raised.value.exit_code == 1
        assert f"copy the file to {zinc_path()}" in raised.value.fix
        assert zinc_path().read_bytes() == b"a file of the user's"
        told = "".join([*said, str(raised.value), *traceback.format_exception(raised.value)])
        assert "cret" not in told.replace(__file__, ""), "the password is never printed"
