from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from arcvae_cli.commands.data import app
from arcvae_cli.conditions import ATTRIBUTES, PLACE, attributes
from arcvae_cli.data.arc import build_arc
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.errors import ArcvaeError, InputError

ARC_1000 = "db55df84d5bf2cb585a5e052ed6eacdcc4a7ee158f6eac6d81f75ceb2a802a57"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARCVAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "cache"


def run(*words: object):
    """stdout and stderr of a command; what it raises is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, ArcvaeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_build_into_the_cache_and_from_it(cache: Path):
    fingerprint = build_shapes(100, 3).fingerprint()
    words = ["build", "shapes", "--size", 100, "--seed", 3]
    out, talk = run(*words)
    (file,) = cache.iterdir()
    assert out.splitlines() == ["shapes: 80 train, 10 val, 10 test", f"fingerprint {fingerprint}", f"file {file}"]
    assert "building shapes" in talk
    assert run(*words) == (out, "")
    changed = file.stat().st_mtime_ns
    assert run(*words, "--force", "--quiet") == (out, "")
    assert file.stat().st_mtime_ns > changed


def test_build_to_a_file_and_info_of_it(tmp_path: Path):
    target = tmp_path / "new" / "mine.npz"
    document = json.loads(run("build", "shapes", "--size", 100, "--seed", 2, "--output", target, "--json")[0])
    assert document["grids"] == {"train": 80, "val": 10, "test": 10}
    assert document["file"] == str(target)
    told = json.loads(run("info", target, "--json")[0])
    assert told["fingerprint"] == document["fingerprint"]
    assert told["name"] == "mine"
    assert told["splits"]["train"]["grids"] == 80
    assert told["leaks"][0]["identical"] == 0
    with pytest.raises(InputError, match="the file exists"):
        run("build", "shapes", "--size", 100, "--output", target)
    run("build", "shapes", "--size", 50, "--output", target, "--force")
    assert json.loads(run("info", target, "--json")[0])["grids"] == 50


def test_info_is_readable_at_80_columns():
    out, _ = run("info", "arc", "--size", 1000)
    assert max(len(line.rstrip()) for line in out.splitlines() if not line.startswith("file ")) <= 80
    lines = [line.split() for line in out.splitlines()]
    assert ["split", "grids", "tasks", "black", "one", "colour", "duplicates"] in lines
    train = next(words for words in lines if words[:2] == ["train", "800"])
    assert train[-2:] == ["0.0%", "0"]
    leak = next(words for words in lines if words[:2] == ["test", "train"])
    assert leak[2:4] == ["0", "(0.0%)"]
    assert leak[-1] == "0"
    assert ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"] in lines
    assert any(words and words[0] == "10x10" for words in lines)
    assert f"fingerprint {ARC_1000}" in out


def test_the_conditions_and_how_often_they_occur():
    out, _ = run("info", "--conditions", "--size", 1000)  # of arc, which need not be said
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    lines = [line.split() for line in out.splitlines()]
    for attribute in ATTRIBUTES:
        row = next(words for words in lines if words[:1] == [attribute.name])
        assert " ".join(row[4:] if attribute.size > 2 else row[4:-1]) == attribute.text
    document = json.loads(run("info", "arc", "--conditions", "--size", 1000, "--json")[0])
    assert document["training_grids"] == 800
    arrays = build_arc(1000)
    measured = attributes(arrays.grids[arrays.rows("train")])
    assert [one["name"] for one in document["conditions"]] == [attribute.name for attribute in ATTRIBUTES]
    for place, one in enumerate(document["conditions"]):
        assert one["counts"] == [int((measured[:, place] == value).sum()) for value in range(len(one["values"]))]
    red = next(one for one in document["conditions"] if one["name"] == "colour_2")
    assert red["values"] == ["no", "yes"]
    assert next(words for words in lines if words[:1] == ["colour_2"])[-1] == f"{red['counts'][1] / 800:.1%}"
    colours = [words for words in lines if words[:1] == ["colours"]][-1][1:]
    shares = [100 * count / 800 for count in document["conditions"][PLACE["colours"]]["counts"]]
    for text, share in zip(colours, shares, strict=True):
        assert text == ("-" if share == 0 else f"{share:.0f}" if share >= 0.5 else "<1")


def test_conditions_of_a_corpus_without_a_training_split(tmp_path: Path):
    np.savez(tmp_path / "mine.npz", test=np.eye(16, dtype=np.uint8)[None].repeat(4, 0))
    out, _ = run("info", tmp_path / "mine.npz", "--conditions")
    assert "0 training grids of mine" in out
    assert next(line.split()[-1] for line in out.splitlines() if line.startswith("symmetry_lr")) == "-"


def test_notes_of_reading_go_to_stderr(tmp_path: Path):
    np.save(tmp_path / "mine.npy", np.eye(16, dtype=np.uint8)[None].repeat(4, 0))
    out, talk = run("info", tmp_path / "mine.npy")
    assert "hash of their content" in talk
    assert "hash of their content" not in out
    assert run("info", tmp_path / "mine.npy", "--quiet")[1] == ""


@pytest.mark.parametrize(
    ("words", "message", "fix"),
    [
        (["info", "arc-rw"], "no corpus of that name", "Did you mean arc-raw"),
        (["build", "nothing.npz"], "no such file", "Use arc, arc-raw, shapes"),
        (["build", "shapes", "--output", "grids.npy"], "not a .npz", r"ends in \.npz"),
    ],
)
def test_unusable_input(words: list[str], message: str, fix: str):
    with pytest.raises(InputError, match=message) as raised:
        run(*words)
    assert raised.value.exit_code == 2
    raised.match(fix)


def test_sizes_out_of_range_are_a_usage_error():
    for words in (["build", "arc", "--size", "9"], ["info", "arc", "--seed", "-1"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert words[2] in result.stderr


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        run("build", "shapes", "--size", 10, "--output", tmp_path / "file" / "mine.npz")


def test_torch_is_not_imported():
    code = (
        "import sys; from arcvae_cli.commands.data import app; app(sys.argv[1:], standalone_mode=False); "
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    for more in ([], ["--conditions"]):
        words = [sys.executable, "-c", code, "info", "shapes", "--size", "20", *more]
        done = subprocess.run(words, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
