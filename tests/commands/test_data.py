from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from arcvae_cli.commands.data import app
from arcvae_cli.conditions import ATTRIBUTES, attributes
from arcvae_cli.data import corpora, downloads
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.grammar import read_grammar


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
    assert "\x1b" not in result.output
    return result.stdout, result.stderr


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_grids_are_built_and_described(cache: Path, tmp_path: Path):
    words = ["build", "shapes", "--size", 100, "--seed", 3]
    out, talk = run(*words)
    (file,) = cache.glob("*.npz")
    fingerprint = build_shapes(100, 3).fingerprint()
    assert out.splitlines() == ["shapes: 80 train, 10 val, 10 test", f"fingerprint {fingerprint}", f"file {file}"]
    assert "building shapes" in talk
    assert run(*words) == (out, "")
    changed, target = file.stat().st_mtime_ns, tmp_path / "new" / "mine.npz"
    document = json.loads(run(*words, "--force", "--quiet", "--output", target, "--json")[0])
    assert file.stat().st_mtime_ns > changed
    counts = {"train": 80, "val": 10, "test": 10}
    assert document == {"name": "shapes", "grids": counts, "fingerprint": fingerprint, "file": str(target)}
    told = json.loads(run("info", target, "--json")[0])
    assert list(told) == ["name", "grids", "fingerprint", "file", "notes", "splits", "colours", "shapes", "leaks"]
    assert (told["name"], told["grids"], told["fingerprint"]) == ("mine", 100, fingerprint)
    with pytest.raises(InputError, match="the file exists"):
        run("build", "shapes", "--size", 100, "--output", target)


def test_info_in_words_and_conditions(arc_npz: Path):
    out, _ = run("info", arc_npz)
    lines = rows(out)
    assert ["split", "grids", "tasks", "black", "single", "colour", "duplicates"] in lines
    assert next(words for words in lines if words[:2] == ["train", "100"])[-1].isdigit()
    assert next(words for words in lines if words[:2] == ["test", "train"])[-1] == "-", "tasks are not known"
    assert "0: " in out and "fingerprint " in out
    document = json.loads(run("info", arc_npz, "--conditions", "--json")[0])
    assert (list(document), document["training_grids"]) == (["name", "training_grids", "conditions"], 100)
    with np.load(arc_npz) as file:
        measured = attributes(file["train"])
    told = {words[0]: words for words in rows(run("info", arc_npz, "--conditions")[0]) if words}
    assert [one["name"] for one in document["conditions"]] == [attribute.name for attribute in ATTRIBUTES]
    for column, one, attribute in zip(measured.T, document["conditions"], ATTRIBUTES, strict=True):
        assert one["counts"] == [int((column == value).sum()) for value in range(attribute.size)]
        assert attribute.size > 2 or f"{one['counts'][1] / 100:.1%}" in (told[one["name"]][-1], "0.0%")


@pytest.mark.parametrize(
    ("words", "message", "fix"),
    [
        ("info arc-rw", "no such corpus or file", "use arc, arc-raw"),
        (f"info --prod {'x' * 300} --grammar equations", "cannot be read", "another file"),
        (f"build --input {'x' * 300} --grammar equations", "cannot be read", "file of strings"),
        ("build", "no corpus given", "use arc, arc-raw, shapes, equations"),
        ("info --pad-id 3", "--pad-id: data.pad_id: needs data.prod", "give --prod too"),
        ("info --prod ids.npy", "--prod: data.prod: needs masks", "give --masks"),
        ("build arc --grammar equations", "--grammar: not used by arc", "leave one"),
        ("info . --recipe kusner", "--recipe: not used by .", "leave one"),
        ("info --prod ids.npy --max-rules 3", "--max-rules: not used by --prod", "leave one"),
        ("build --input strings.txt", "--input: data.input: needs a grammar", "give --grammar"),
        ("build equations --test strings.txt", "--test strings.txt: needs a file of strings", "give --input"),
        ("build equations --download zinc250k", "only for the corpus smiles", "omit"),
        ("build smiles", "zinc250k is not in the cache", "data build --download zinc250k"),
        ("build --grammar nothing.cfg --max-rules 9", "nothing.cfg: cannot be read", "equations, smiles"),
        ("info equations --conditions --size 20", "strings have no conditions", "omit"),
        ("build shapes --output grids.npy", "not a .npz", r"ends in \.npz"),
        ("build shapes --output /dev/null/mine.npz", "cannot be written to", "another folder"),
    ],
)
def test_unusable_input(words: str, message: str, fix: str):
    with pytest.raises(InputError, match=message) as raised:
        run(*words.split())
    assert raised.value.exit_code == 2
    raised.match(fix)


def test_equations_are_built_and_described(tmp_path: Path):
    target = tmp_path / "mine.npz"
    lines = run("build", "equations", "--size", 200, "--output", target)[0].splitlines()
    assert lines[0] == "equations: 160 train, 20 val, 20 test"
    assert lines[1] == "derivations of up to 15 of 12 rules, including the padding rule"
    for words in (["equations", "--size", 200], [target]):
        out, talk = run("info", *words)
        assert talk == "" and lines[2] in out.splitlines()
        assert "19.11 nats, a lower bound of the mean NLL on unseen strings" in out and "11 of 11" in out
    document = json.loads(run("info", target, "--json")[0])
    assert (document["strings"], document["origin"]["entropy"]) == (200, pytest.approx(19.1135, abs=1e-4))
    kusner = json.loads(run("build", "equations", "--recipe", "kusner", "--size", 100, "--json")[0])
    assert list(kusner) == ["name", "strings", "steps", "rules", "origin", "fingerprint", "file"]
    assert (kusner["steps"], kusner["rules"], kusner["origin"]["how"]) == (15, 12, "enumerated")


def test_strings_of_a_grammar_of_ones_own(tmp_path: Path):
    (tmp_path / "sheep.cfg").write_text("S -> 'b' A\nA -> 'a' A | 'a'\n")
    (tmp_path / "farm.txt").write_text("".join(f"b{'a' * n}\n" for n in range(1, 31)) + "moo\nba\n")
    (tmp_path / "test.txt").write_text("baa\nbaaaa\n")
    words, target = ["build", "--grammar", tmp_path / "sheep.cfg", "--input", tmp_path / "farm.txt"], tmp_path / "a.npz"
    out, talk = run(*words, "--output", target)
    assert out.splitlines()[0] == "farm: 24 train, 3 val, 3 test"
    assert out.splitlines()[2].startswith("parser: LALR")
    assert "1 of 32 lines do not parse: listed in " in talk
    told = rows(run("info", target)[0])
    assert ["failed", "1"] in told and ["lines", "32"] in told and ["baa"] in told
    more = ["--test", tmp_path / "test.txt", "--json", "--max-rules", 20, "--max-failed", 0.5]
    document = json.loads(run(*words, *more)[0])
    assert document["strings"] == {"train": 15, "val": 2, "test": 2}
    assert document["origin"]["too_long"] == 11
    with pytest.raises(InputError, match=r"1 of 32 lines do not parse: listed in .*cache.*\.failed\.tsv"):
        run(*words, "--max-failed", 0.01, "--output", tmp_path / "other.npz")
    assert not (tmp_path / "other.npz").exists()


def test_markup_and_escape_sequences_are_shown_as_text(tmp_path: Path):
    evil = tmp_path / "[i]\x1b]0;title\x07.txt"
    (tmp_path / "g.cfg").write_text("S -> '[red]' S | '[/x]' | '[bold]' | '\x1b[2J'\n")
    evil.write_text("[red][/x]\nno\x1b[5m\n" + "".join(f"{'[red]' * n}\x1b[2J\n" for n in range(7)))
    target = tmp_path / "mine\x1b[1m.npz"
    talk = run("build", evil, "--grammar", tmp_path / "g.cfg", "--max-failed", 0.5, "--output", target)
    out, notes = run("info", target)
    assert not {"\x07", "\x1b"} & set("".join(talk) + out + notes)
    assert r"[red]\x1b[2J" in out and "2 (S -> '[bold]')" in out


def test_help_shows_the_corpora_and_one_pair_of_brackets():
    out = run("build", "--help")[0]
    assert "[NAME|PATH]" in out and "[[" not in out and "equations, smiles" in out


def test_prebuilt_arrays(tmp_path: Path):
    rules = read_grammar("equations").rules
    ids, left = build_drawn(read_grammar("equations"), 15, 100).x, np.array(rules.lhs)
    np.save(tmp_path / "prod.npy", ids)
    np.save(tmp_path / "masks.npy", np.packbits((left == left[:, None])[ids], axis=2))
    words = ["--prod", tmp_path / "prod.npy", "--masks", tmp_path / "masks.npy"]
    out, talk = run("build", *words, "--output", tmp_path / "mine.npz")
    assert out.startswith("prod: 80 train, 10 val, 10 test") and "padding detected: id 11" in talk
    out, _ = run("info", tmp_path / "mine.npz")
    assert "11 of 11" in out and "Examples" not in out
    assert json.loads(run("info", *words, "--pad-id", 11, "--grammar", "equations", "--json")[0])["examples"]


def test_molecules_are_downloaded(monkeypatch: pytest.MonkeyPatch):
    content = "".join(f"{'C' * n}O\n" for n in range(1, 41)).encode()
    small = replace(downloads.ZINC, blob=downloads.git_blob(content), test_lines=8)
    monkeypatch.setattr(corpora, "ZINC", small)
    monkeypatch.setitem(downloads.DOWNLOADS, "zinc250k", small)
    monkeypatch.setenv("ARCVAE_ZINC_URL", "http://127.0.0.1:1/x")
    with pytest.raises(ArcvaeError, match="download failed"):
        run("build", "--download", "zinc250k")
    small.path.write_bytes(content)  # copied by hand
    out, talk = run("build", "--download", "zinc250k")
    assert out.startswith("smiles: 29 train, 3 val, 8 test") and "downloading" not in talk
    assert run("build", "smiles")[0] == out


def test_torch_is_not_imported():
    code = (
        "import sys; from arcvae_cli.commands.data import app; "
        "[app(['info', *words.split(), '--size', '20'], standalone_mode=False) for words in sys.argv[1:]]; "
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    words = [sys.executable, "-c", code, "shapes --conditions", "equations"]
    done = subprocess.run(words, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
