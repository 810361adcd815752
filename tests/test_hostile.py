"""Damaged, foreign and hostile files: one message, exit code 2, and no code of the file runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from arcvae_cli.data.ready import read_ready
from typer.testing import CliRunner

from arcvae_cli import checkpoints, errors
from arcvae_cli.cli import app
from arcvae_cli.data.corpora import load_arrays
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import read_grammar
from arcvae_cli.presets import PRESET_BYTES, resolve, set_layer
from arcvae_cli.settings import DataSettings, Settings
from tests.outside import checkpoint_values, same, write_all


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("whole"))


READERS: dict[str, Callable[[Path, dict[str, Path]], Any]] = {
    "checkpoint": lambda path, whole: (checkpoints.load(path), checkpoints.read(path))[1],
    "preset": lambda path, whole: resolve(str(path)).settings,
    "grids": lambda path, whole: load_arrays(DataSettings(path=path)).fingerprint(),
    "bare grids": lambda path, whole: load_arrays(DataSettings(path=path)).fingerprint(),
    "task": lambda path, whole: load_arrays(DataSettings(path=path)).fingerprint(),
    "derivations": lambda path, whole: load_arrays(DataSettings(path=path)).fingerprint(),
    "strings": lambda path, whole: load_arrays(DataSettings(input=path, grammar="equations")).fingerprint(),
    "grammar": lambda path, whole: read_grammar(str(path)).productions,
    "ids": lambda path, whole: read_ready(path, whole["masks"], None, None).fingerprint(),
    "masks": lambda path, whole: read_ready(whole["ids"], path, None, None).fingerprint(),
}


def outcome(whole: dict[str, Path], kind: str, path: Path) -> Any:
    """What is read of a file; None if it is refused in one message of at most two lines."""
    try:
        return READERS[kind](path, whole)
    except InputError as error:
        text = str(error)
        assert text.count("\n") <= 1 and text.replace("\n", "").isprintable(), text
        return None


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


BAD: dict[str, Callable[[bytes, Path], bytes]] = {
    "empty": lambda content, canary: b"",
    "a foreign zip": lambda content, canary: zipped(hello=b"hello"),
    "a pickle bomb": lambda content, canary: pickle.dumps(Bomb(canary)),
    "a PyTorch bomb": lambda content, canary: saved(lambda file: torch.save({"format_version": Bomb(canary)}, file)),
    "a NumPy bomb": lambda content, canary: saved(lambda file: np.save(file, np.array([Bomb(canary)], object))),
    "NUL bytes": lambda content, canary: bytes(5000),
    "not UTF-8": lambda content, canary: b"\xff\xfe\xfa\n" * 100,
    "deeply nested": lambda content, canary: b"[" * 50_000,
    "control characters": lambda content, canary: b'"\x1b[2J\\n" = 1\n' + b"\x1b[2J\r\x07" * 9,
}


@pytest.mark.parametrize("kind", READERS)
def test_the_valid_file_is_read(whole: dict[str, Path], kind: str) -> None:
    assert outcome(whole, kind, whole[kind]) is not None


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("kind", READERS)
def test_a_bad_file_is_refused_and_runs_nothing(whole: dict[str, Path], kind: str, what: str, tmp_path: Path) -> None:
    path, canary = tmp_path / f"bad{whole[kind].suffix}", tmp_path / "canary"
    path.write_bytes(BAD[what](whole[kind].read_bytes(), canary))
    assert outcome(whole, kind, path) is None or (kind, what) == ("preset", "empty")
    assert not canary.exists()


@pytest.mark.parametrize("what", ["missing", "folder", "pipe", "device", "circle", "long name", "NUL"])
@pytest.mark.parametrize("kind", READERS)
def test_a_path_without_a_file_is_refused(whole: dict[str, Path], kind: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad{whole[kind].suffix}"
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "circle":
            path.symlink_to(path.name)
        case "long name":
            path = tmp_path / ("x" * 300)
        case "NUL":
            path = tmp_path / "a\0b"
    assert outcome(whole, kind, path) is None


@pytest.mark.parametrize("kind", ["checkpoint", "grids", "derivations", "bare grids", "ids", "masks", "task"])
def test_a_truncated_file_is_refused(whole: dict[str, Path], kind: str, tmp_path: Path) -> None:
    content, path = whole[kind].read_bytes(), tmp_path / f"cut{whole[kind].suffix}"
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        assert outcome(whole, kind, path) is None, f"{tenth} tenths are read"


@pytest.mark.parametrize("kind", ["checkpoint", "grids", "derivations"])
def test_a_flipped_bit_is_refused_or_changes_nothing(whole: dict[str, Path], kind: str, tmp_path: Path) -> None:
    content, path = whole[kind].read_bytes(), tmp_path / f"flipped{whole[kind].suffix}"
    before, chance = outcome(whole, kind, whole[kind]), random.Random(0)
    read = 0
    for _ in range(400):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        if (found := outcome(whole, kind, path)) is not None:
            read += 1
            assert same(found, before)
    assert read < 200


def test_every_bit_of_the_zip_headers_of_a_checkpoint(tmp_path: Path) -> None:
    """A record marked as a folder, for one: PyTorch would fill its tensor with whatever the memory held."""
    path = tmp_path / "x.pth"
    checkpoints.save(path, {"format_version": checkpoints.FORMAT, "t": torch.arange(3.0)})
    content, before = path.read_bytes(), checkpoints.read(path)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("archive/data/0").header_offset
        entry = content.index(b"archive/data/0", archive.start_dir) - 46
    read = 0
    for place in (*range(start, start + 30), *range(entry, entry + 60), *range(len(content) - 98, len(content))):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                found = checkpoints.read(path)
            except InputError:
                continue
            read += 1
            assert same(found, before), f"byte {place}, bit {bit}"
    assert read > 0


def test_content_that_does_not_match_its_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    values = checkpoint_values()
    for change in ({"epoch": 4}, {"model_state_dict": {}}, {"digest": None}, {"rng_state": torch.zeros(8)}):
        torch.save({**values, "digest": checkpoints.digest(values), **change}, path)
        with pytest.raises(InputError, match="does not match its digest"):
            checkpoints.read(path)


# ------------------------------------------------------------------------------------------------ presets and --set


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("#" * PRESET_BYTES + "\n", "larger than 64 kB"),
        ("[train]\nlr = nan\n", "train.lr: should be a finite number"),
        (".".join("a" * 20_000) + " = 1\n", "not valid TOML"),
        ("a = " + "[" * 300 + "]" * 300, "unknown key 'a'"),
        ("a = " + "9" * 5000, "not valid TOML"),
        ("[train]\nseed = 0x" + "f" * 5000, "not valid TOML"),
        ('"" = 1\n', "unknown key ''"),
        ('[train]\n"l\\nr\\u001b[2J" = 1\n', "train.l\\nr\\x1b[2J"),
        ("\n".join(f"k{number} = 1" for number in range(5000)), "unknown key"),
        ('extends = "/dev/zero"\n', "neither a shipped preset nor a file"),
        ('extends = "a\\u0000b"\n', "neither a shipped preset nor a file"),
        ('[model]\nname = "hierarchical"\nglobal_dim = 1000000\n', "model.global_dim"),
        ('[model]\nname = "grammar"\ndecoder_layers = 1000000\n', "model.decoder_layers"),
        ('[model]\nname = "grammar"\nencoder_kernel = [3, 5, 1000001]\n', "model.encoder_kernel"),
    ],
)
def test_a_hostile_preset(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "hostile.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        resolve(str(path))
    text = str(raised.value)
    assert match in text and text.count("\n") <= 1 and text.replace("\n", "").isprintable()
    assert len(text) < 3 * errors.LONGEST


@pytest.mark.parametrize(
    "assignment",
    [
        *("", "=", "a", "a=1", ".=1", "train.lr=nan", "train=3", "train.lr.x=1", "train.lr=" + "9" * 5000),
        *("train.lr=" + "[" * 50_000, "train.lr=" + "{a=" * 20_000, "a." * 50_000 + "=1", "train.\x1b[2J=1"),
    ],
)
def test_a_hostile_assignment(assignment: str) -> None:
    with pytest.raises(InputError) as raised:
        resolve(None, set_layer([assignment]))
    assert str(raised.value).count("\n") <= 1 and str(raised.value).replace("\n", "").isprintable()


def test_an_error_is_one_line_whatever_is_in_it() -> None:
    error = InputError("a\nb\x1b[2J\ud800 \u202e" + "x" * 10_000 + "end", "é\r\n")
    assert error.what.startswith("a\\nb\\x1b[2J\\ud800 \\u202exxx") and error.what.endswith("xxxend")
    assert error.fix == "é\\r\\n" and len(error.what) < errors.LONGEST + 50


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, whole: dict[str, Path]) -> Path:
    """A folder with bad files of many kinds."""
    folder = tmp_path_factory.mktemp("hostile")
    content = whole["checkpoint"].read_bytes()
    (folder / "cut.pth").write_bytes(content[: len(content) // 2])
    (folder / "bomb.pth").write_bytes(BAD["a PyTorch bomb"](b"", folder / "canary"))
    checkpoints.save(folder / "newer.pth", checkpoint_values(format_version=99))
    checkpoints.save(folder / "other.pth", checkpoint_values(model_state_dict={"a": torch.zeros(3)}))
    checkpoints.save_part(folder / "encoder.pth", {}, 1, Settings())
    os.mkfifo(folder / "pipe.npz")
    np.savez(folder / "objects.npz", grids=np.array([Bomb(folder / "canary")], object))
    (folder / "nan.toml").write_text("[train]\nlr = nan\n")
    (folder / "huge.toml").write_text('[model]\nname = "hierarchical"\nglobal_dim = 1000000\n')
    (folder / "latin.txt").write_bytes("x + é\n".encode("latin1"))
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "config.toml").write_text(tomli_w.dumps(Settings().table()))
    (folder / "run" / "checkpoints" / "last.pth").write_bytes(content[:-1])
    shutil.copytree(folder / "run", folder / "part")
    shutil.copy(folder / "encoder.pth", folder / "part" / "checkpoints" / "last.pth")
    return folder


@pytest.mark.parametrize(
    "line",
    [
        *(f"evaluate --checkpoint {{}}/{name}.pth" for name in ("cut", "bomb", "newer", "other", "encoder", "missing")),
        *("sample --checkpoint {}/bomb.pth", "interpolate --checkpoint {}/cut.pth --from 1 --to 2"),
        *("evaluate --checkpoint {long}", "runs show {long}", "runs verify {long}", "train --run-name {long}"),
        *("train --resume {long}", "train --resume auto --run-name {long}", "train --preset {long}"),
        *("train --resume {}/run", "train --resume {}/run/checkpoints/last.pth", "train --resume {}/part"),
        "evaluate --checkpoint {whole} --data {}/pipe.npz",
        *(f"train --data {{}}/{name}.npz --runs-dir {{}}/runs" for name in ("objects", "pipe", "missing")),
        *("train --preset {}/nan.toml", "train --set train.lr=nan", "presets show {}/huge.toml"),
        "data build --grammar equations --input {}/latin.txt --output {}/out.npz",
    ],
)
def test_the_command_line_refuses_it_in_one_message(whole: dict[str, Path], hostile: Path, line: str) -> None:
    names = {"{whole}": str(whole["checkpoint"]), "{}": str(hostile), "{long}": "x" * 300}
    for name, text in names.items():
        line = line.replace(name, text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = CliRunner().invoke(app, line.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    messages = result.stderr.splitlines()
    assert sum(text.startswith("error: ") for text in messages) == 1 and messages[-2:][0].startswith("error: ")
    assert "Traceback" not in result.stderr and not result.stdout
    assert not (hostile / "canary").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_a_pipe_in_the_place_of_metrics_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.toml").touch()
    checkpoints.save(tmp_path / "run" / "checkpoints" / "last.pth", checkpoint_values(history="", config="{}"))
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    result = CliRunner().invoke(app, ["runs", "verify", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 1
    assert "metrics.jsonl: cannot be read" in json.loads(result.stdout)["runs"][0]["problems"][1]
