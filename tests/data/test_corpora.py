from __future__ import annotations

import gzip
import hashlib
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from arcvae_cli.data import corpora
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpora import cache_path, fetch, load_arrays, moses_path, zinc_path
from arcvae_cli.data.files import write_dataset
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import parse_grammar, read_grammar
from arcvae_cli.settings import DataSettings

SHAPES = DataSettings(name="shapes", size=50, seed=4)
EQUATIONS = DataSettings(name="equations", size=50, seed=4)
CONTENT = b"CCO\nC1CC1\nc1ccccc1\n"
SHEEP = "S -> 'b' A\nA -> 'a' A | 'a'\n"


@pytest.fixture
def sheep(tmp_path: Path) -> DataSettings:
    """A file of 21 strings, one of which the grammar does not derive."""
    (tmp_path / "sheep.cfg").write_text(SHEEP)
    (tmp_path / "some strings.txt").write_text("".join(f"b{'a' * n}\n" for n in range(1, 21)) + "moo\n")
    return DataSettings(grammar=str(tmp_path / "sheep.cfg"), input=tmp_path / "some strings.txt")


@pytest.mark.parametrize("data", [SHAPES, EQUATIONS], ids=["grids", "strings"])
def test_a_corpus_is_built_once_and_again_if_damaged(cache: Path, data: DataSettings):
    first, path = load_arrays(data), cache_path(data)
    content, built = path.read_bytes(), path.stat().st_mtime_ns
    second = load_arrays(data)
    assert (second.fingerprint(), path.stat().st_mtime_ns) == (first.fingerprint(), built)
    assert (second.name, second.origin, second.grammar) == (data.name, first.origin, first.grammar)
    load_arrays(data, rebuild=True)
    assert path.stat().st_mtime_ns > built and list(cache.glob("*.npz")) == [path]
    path.write_bytes(content[: len(content) // 2])
    assert load_arrays(data).fingerprint() == first.fingerprint()
    assert path.read_bytes() == content


def test_what_a_corpus_depends_on_is_in_the_files_name(sheep: DataSettings, tmp_path: Path):
    goat = tmp_path / "goat.cfg"
    goat.write_text(SHEEP + "# and a goat")
    changes = [
        (SHAPES, ({}, {"size": 51}, {"seed": 5})),
        (EQUATIONS, ({}, {"seed": 5}, {"recipe": "kusner"}, {"max_rules": 9})),
        (sheep, ({}, {"max_rules": 9}, {"grammar": str(goat)}, {"input": None, "max_rules": 9})),
    ]
    paths = [cache_path(data.model_copy(update=change)) for data, some in changes for change in some]
    assert len({*paths, cache_path(sheep, sheep.input), None}) == 13
    assert paths[0].name == "shapes-r1-n50-s4.npz"
    assert paths[3].name == "equations-r1-uniform-ge2dc3dbbc6ec-t15-n50-s4.npz"
    assert cache_path(DataSettings()).name == "arc-r1-arckit1.0.1-n100000-s0.npz"
    assert cache_path(EQUATIONS.model_copy(update={"max_rules": 15, "augment": False, "limit": 3})) == paths[3]
    assert cache_path(sheep.model_copy(update={"input": tmp_path / "none.txt"})) is None
    assert cache_path(DataSettings(path=Path("x.npz"))) is None
    sheep.input.write_text("ba\nbaaa\n")
    assert cache_path(sheep) not in paths


def test_an_unwritable_cache_costs_a_note(cache: Path):
    cache.write_text("a file where the folder should be")
    assert "could not be cached" in load_arrays(SHAPES).notes[0]


def test_one_builds_a_corpus_and_others_wait_for_it(monkeypatch: pytest.MonkeyPatch):
    shapes, begun, built = corpora.build_shapes, threading.Event(), []

    def slow(*size_and_seed: int) -> Dataset:
        built.append(size_and_seed)
        begun.set()
        time.sleep(0.3)
        return shapes(*size_and_seed)

    monkeypatch.setattr(corpora, "build_shapes", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(load_arrays, SHAPES)
        assert begun.wait(10)
        second = pool.submit(load_arrays, SHAPES)
        assert first.result().fingerprint() == second.result().fingerprint()
    assert built == [(50, 4)]


def test_any_grammar_is_drawn_from(sheep: DataSettings):
    data = sheep.model_copy(update={"input": None, "size": 10, "max_rules": 12})
    dataset = load_arrays(data)
    assert dataset.name == "sheep"
    assert set(dataset.strings(np.arange(10))) <= {"b" + "a" * n for n in range(1, 12)}
    for change, message in (({"max_rules": None}, "needed to draw"), ({"recipe": "kusner"}, "needs the grammar equat")):
        with pytest.raises(InputError, match=message):
            load_arrays(data.model_copy(update=change))


def test_strings_of_a_file_are_parsed_once(sheep: DataSettings):
    first, failures = load_arrays(sheep), cache_path(sheep).with_suffix(".failed.tsv")
    assert failures.read_text().splitlines()[1].split("\t")[:3] == ["some strings.txt", "21", "1"]
    assert first.notes == (f"1 of 21 lines do not parse: listed in {failures}",)
    again = load_arrays(sheep)
    assert (again.name, again.notes) == (first.name, first.notes) == ("some strings", first.notes)
    as_path = load_arrays(DataSettings(path=sheep.input, grammar=sheep.grammar))
    known = parse_grammar(SHEEP, "the checkpoint's")
    from_checkpoint = load_arrays(DataSettings(path=sheep.input), known)
    Path(sheep.grammar).unlink()
    gone = load_arrays(sheep, known)  # a checkpoint outlives its grammar's file
    assert len({one.fingerprint() for one in (first, again, as_path, from_checkpoint, gone)}) == 1
    with pytest.raises(InputError, match=r"line 2: 3 characters.*\n.*need --grammar"):
        load_arrays(DataSettings(path=sheep.input))


def test_kinds_of_arrays_are_distinguished(tmp_path: Path, canvases: Dataset):
    drawn, path = build_drawn(read_grammar("equations"), 15, 20), tmp_path / "mine.npz"
    write_dataset(path, drawn)
    assert load_arrays(DataSettings(path=path, grammar="equations")).fingerprint() == drawn.fingerprint()
    with pytest.raises(InputError, match="not of the grammar smiles"):
        load_arrays(DataSettings(path=path, grammar="smiles"))
    write_dataset(path, canvases)
    assert load_arrays(DataSettings(path=path)).fingerprint() == canvases.fingerprint()
    np.save(tmp_path / "prod.npy", drawn.x)
    data = DataSettings(prod=tmp_path / "prod.npy", grammar="equations")
    assert (load_arrays(data).x == drawn.x).all() and cache_path(data) is None


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
    fetch("zinc250k", said.append)
    path.write_bytes(b"damaged")
    fetch("zinc250k", said.append)
    assert path.read_bytes() == CONTENT
    (tmp_path / "zinc.smi").unlink()
    fetch("zinc250k", said.append)
    assert said == [f"downloading http://{host}/zinc.smi"] * 2
    assert [file for file in path.parent.iterdir() if file.suffix != ".lock"] == [path]


def test_what_cannot_be_downloaded_can_be_copied(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    zinc_path().parent.mkdir(parents=True)
    zinc_path().write_bytes(b"a file of the user's")
    (tmp_path / "another.smi").write_bytes(CONTENT + b"C\n")
    said: list[str] = []
    for url, reason in (
        (f"http://user:se@cret@{host}/another.smi", "not zinc250k"),
        ("http://user:se/cret@127.0.0.1:1/x", "download failed"),
        (f"nonsense://user:secret@{host}/x", "nonsense"),
    ):
        monkeypatch.setenv("ARCVAE_ZINC_URL", url)
        with pytest.raises(InputError, match=reason) as raised:
            fetch("zinc250k", said.append)
        assert f"copy the file to {zinc_path()}" in raised.value.fix
        assert zinc_path().read_bytes() == b"a file of the user's"
        told = "".join([*said, str(raised.value), *traceback.format_exception(raised.value)])
        assert "cret" not in told.replace(__file__, ""), "the password is never printed"


def test_moses_is_drawn_from_its_own_splits(cache: Path, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    molecules = {"train": ["C" * n for n in range(1, 61)] + ["[H]N"], "test": ["N" * n for n in range(1, 21)]}
    for split, texts in molecules.items():
        content = gzip.compress("\n".join(["SMILES", *texts]).encode())
        (tmp_path / f"{split}.csv.gz").write_bytes(content)
        monkeypatch.setitem(corpora.MOSES_BLOBS, split, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
    monkeypatch.setenv("ARCVAE_MOSES_URL", f"http://{host}")
    data, said = DataSettings(name="moses", size=40), list[str]()
    with pytest.raises(InputError, match=r"moses is not in the cache.*\n.*--download moses"):
        load_arrays(data)
    fetch("moses", said.append)
    assert said == [f"downloading http://{host}/{split}.csv.gz" for split in molecules]
    dataset = load_arrays(data)
    drawn = {split: set(dataset.strings(dataset.rows(split))) for split in ("train", "val", "test")}
    assert [len(drawn[split]) for split in drawn] == [31, 4, 4] and not drawn["train"] & drawn["val"]
    assert drawn["train"] | drawn["val"] < set(molecules["train"]) and drawn["test"] < set(molecules["test"])
    assert load_arrays(data).fingerprint() == dataset.fingerprint(), "from the cache"
    assert load_arrays(data.model_copy(update={"seed": 1})).fingerprint() != dataset.fingerprint()
    whole = load_arrays(data.model_copy(update={"size": 1000}))
    assert np.bincount(whole.split).tolist() == [54, 6, 20] and "1 of 81 lines do not parse" in whole.notes[0]
    tokens = load_arrays(data.model_copy(update={"grammar": "smiles_tokens"}))
    assert tokens.name == "moses" and set(tokens.strings(tokens.rows("test"))) == drawn["test"]
    moses_path("test").write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        load_arrays(data)
