from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from arcvae_cli.canvas import ARC
from arcvae_cli.commands.data import app
from arcvae_cli.conditions import attributes, measure
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.errors import ArcvaeError, InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARCVAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "cache"


def run(*words: object) -> tuple[str, str]:
    """stdout and stderr of a command; what it raises is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, ArcvaeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_grids_are_built_and_described(cache: Path, tmp_path: Path):
    words = ["build", "shapes", "--size", 100, "--seed", 3]
    out, talk = run(*words)
    (file,) = cache.glob("*.npz")
    fingerprint = build_shapes(100, 3).fingerprint()
    assert out.splitlines() == ["shapes: 80 train, 10 val, 10 test", f"fingerprint {fingerprint}", f"file {file}"]
    assert "building shapes" in talk and run(*words) == (out, "")
    changed, target = file.stat().st_mtime_ns, tmp_path / "new" / "mine.npz"
    document = json.loads(run(*words, "--force", "--quiet", "--output", target, "--json")[0])
    assert file.stat().st_mtime_ns > changed
    counts = {"train": 80, "val": 10, "test": 10}
    assert document == {"name": "shapes", "grids": counts, "fingerprint": fingerprint, "file": str(target)}
    told = json.loads(run("info", target, "--json")[0])
    described = ["splits", "leaks", "size", "num_classes", "classes", "shapes"]
    assert list(told) == ["name", "grids", "fingerprint", "file", "notes", *described]
    assert (told["name"], told["grids"], told["fingerprint"]) == ("mine", 100, fingerprint)
    with pytest.raises(InputError, match="the file exists"):
        run("build", "shapes", "--size", 100, "--output", target)


def test_info_in_words_and_conditions(arc_npz: Path):
    lines = [line.split() for line in run("info", arc_npz)[0].splitlines()]
    assert ["split", "grids", "tasks", "background", "single", "class", "duplicates"] in lines
    assert next(words for words in lines if words[:2] == ["test", "train"])[-1] == "-", "tasks are not known"
    document = json.loads(run("info", arc_npz, "--conditions", "--json")[0])
    assert (list(document), document["training_grids"]) == (["name", "training_grids", "conditions"], 100)
    with np.load(arc_npz) as file:
        measured = measure(file["train"], ARC)
    for column, one, attribute in zip(measured.T, document["conditions"], attributes(ARC), strict=True):
        assert one["name"] == attribute.name
        assert one["counts"] == [int((column == value).sum()) for value in range(attribute.size)]
    assert "colour_2" in run("info", arc_npz, "--conditions")[0]


def test_maps_of_characters_and_digits_are_described(tmp_path: Path):
    (farm := tmp_path / "farm").mkdir()
    for number in range(10):
        (farm / f"{number}.txt").write_text(f"####\n#.{'o.'[number > 2]}#\n####\n\n####\n#..#\n####\n")
    out, talk = run("info", farm)
    words = " ".join(out.split())
    assert "by a hash of their names" in talk and "canvas 3x4, 3 classes, background 0" in words
    assert "classes '#': 83.3%, '.': 15.4%, 'o': 1.2%" in words
    document = json.loads(run("build", farm, "--canvas", "5x6", "--json")[0])
    assert document["grids"] == {"train": 16, "val": 2, "test": 2}
    assert run("build", "digits")[0].startswith("digits: 1,437 train, 180 val, 180 test")
    document = json.loads(run("info", "digits", "--json")[0])
    assert (document["grids"], document["size"], document["num_classes"]) == (1797, [8, 8], 17)
    assert document["classes"][0] == pytest.approx(0.489, abs=1e-3), "as in the images of scikit-learn"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("info arc-rw", "no such corpus or file.*\n.*arc-raw"),
        ("build arc --grammar equations", "not used by arc"),
        ("build smiles", "zinc250k is not in the cache.*\n.*data build --download zinc250k"),
        ("info equations --conditions --size 20", "strings have no conditions"),
    ],
)
def test_unusable_input(words: str, message: str):
    with pytest.raises(InputError, match=message):
        run(*words.split())


def test_equations_are_built_and_described(tmp_path: Path):
    target = tmp_path / "mine.npz"
    out = run("build", "equations", "--size", 100, "--output", target)[0]
    assert out.startswith("equations: 80 train, 10 val, 10 test\n")
    out, talk = run("info", target)
    assert talk == "" and "entropy" in out
    assert json.loads(run("info", target, "--json")[0])["origin"]["entropy"] == pytest.approx(19.1135, abs=1e-4)
    kusner = json.loads(run("info", "equations", "--recipe", "kusner", "--size", 100, "--json")[0])
    assert (kusner["steps"], kusner["origin"]["how"]) == (15, "enumerated")


def test_strings_of_a_grammar_of_ones_own(tmp_path: Path):
    """Markup and escape sequences in them are shown as text."""
    (tmp_path / "sheep.cfg").write_text("S -> 'b' A | '[bold]'\nA -> 'a' A | 'a' | '\x1b[2J'\n")
    farm, test, target = tmp_path / "[i]\x1b]0;farm\x07.txt", tmp_path / "test.txt", tmp_path / "mine.npz"
    farm.write_text("".join(f"b{'a' * n}\x1b[2J\n" for n in range(1, 31)) + "m\x1b[5moo\nba\n")
    test.write_text("baa\nbaaaa\n")
    words = ["build", "--grammar", tmp_path / "sheep.cfg", "--input", farm]
    out, talk = run(*words, "--output", target)
    assert ": 25 train, 3 val, 3 test" in out and "1 of 32 lines do not parse: listed in " in talk
    described = run("info", target)[0]
    assert r"a\x1b[2J" in described and "1 (S -> '[bold]')" in described
    assert not {"\x07", "\x1b"} & set(out + talk + described)
    document = json.loads(run(*words, "--test", test, "--json", "--max-rules", 20, "--max-failed", 0.5)[0])
    assert document["strings"] == {"train": 17, "val": 2, "test": 2}
    with pytest.raises(InputError, match=r"1 of 32 lines do not parse: listed in .*cache.*\.failed\.tsv"):
        run(*words, "--max-failed", 0.01, "--output", tmp_path / "other.npz")
    assert not (tmp_path / "other.npz").exists()
