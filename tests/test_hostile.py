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
from typer.testing import CliRunner

from arcvae_cli import checkpoints, errors
from arcvae_cli.cli import app
from arcvae_cli.errors import InputError
from arcvae_cli.presets import resolve, set_layer
from arcvae_cli.settings import Settings
from tests.outside import READERS, checkpoint_values, read_or_refused, same, write_all


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("whole"))


def outcome(whole: dict[str, Path], kind: str, path: Path) -> Any:
    return read_or_refused(lambda: READERS[kind](path, whole))


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


def foreign_zip(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello", b"hello")


BAD: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda canary: b"",
    "a foreign zip": lambda canary: saved(foreign_zip),
    "a pickle bomb": lambda canary: pickle.dumps(Bomb(canary)),
    "a PyTorch bomb": lambda canary: saved(lambda file: torch.save({"format_version": Bomb(canary)}, file)),
    "a NumPy bomb": lambda canary: saved(lambda file: np.save(file, np.array([Bomb(canary)], object))),
    "NUL bytes": lambda canary: bytes(5000),
    "not UTF-8": lambda canary: b"\xff\xfe\xfa\n" * 100,
    "deeply nested": lambda canary: b"[" * 50_000,
    "control characters": lambda canary: b'"\x1b[2J\\n" = 1\n' + b"\x1b[2J\r\x07" * 9,
}


@pytest.mark.parametrize("kind", READERS)
def test_only_the_valid_file_is_read_and_no_code_runs(whole: dict[str, Path], kind: str, tmp_path: Path) -> None:
    assert outcome(whole, kind, whole[kind]) is not None
    path, canary = tmp_path / f"bad{whole[kind].suffix}", tmp_path / "canary"
    for what, make in BAD.items():
        path.write_bytes(make(canary))
        assert outcome(whole, kind, path) is None or (kind, what) == ("preset", "empty"), what
        assert not canary.exists(), what


@pytest.mark.parametrize("kind", READERS)
def test_a_path_without_a_file_is_refused(whole: dict[str, Path], kind: str, tmp_path: Path) -> None:
    suffix = whole[kind].suffix
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"circle{suffix}").symlink_to(f"circle{suffix}")
    for name in ("missing", "folder", "pipe", "device", "circle", "x" * 300, "a\0b"):
        assert outcome(whole, kind, tmp_path / f"{name}{suffix}") is None, name


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
    for _ in range(200):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        if (found := outcome(whole, kind, path)) is not None:
            read += 1
            assert same(found, before)
    assert read < 100


def test_every_bit_of_the_zip_headers_of_a_checkpoint(tmp_path: Path) -> None:
    """A record marked as a folder, for one: PyTorch would fill its tensor with whatever the memory held."""
    path = tmp_path / "x.pth"
    checkpoints.save(path, {"format_version": checkpoints.FORMAT, "t": torch.arange(3.0)})
    content, before = path.read_bytes(), checkpoints.read(path)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
        start = archive.getinfo(name).header_offset
        entry = content.index(name.encode(), archive.start_dir) - 46
    read = 0
    for place in (*range(start, start + 30), *range(entry, entry + 60), *range(len(content) - 98, len(content))):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            if (found := read_or_refused(lambda: checkpoints.read(path))) is not None:
                read += 1
                assert same(found, before), f"byte {place}, bit {bit}"
    assert read > 0


def test_content_that_does_not_match_its_digest_is_refused(tmp_path: Path) -> None:
    path, values = tmp_path / "x.pth", checkpoint_values()
    for change in ({"epoch": 4}, {"model_state_dict": {}}, {"digest": None}, {"rng_state": torch.zeros(8)}):
        torch.save({**values, "digest": checkpoints.digest(values), **change}, path)
        with pytest.raises(InputError, match="does not match its digest"):
            checkpoints.read(path)


# ------------------------------------------------------------------------------------------------ presets and --set


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("#" * 2**21 + "\n", "larger than 64 kB"),
        ("[train]\nlr = nan\n", "train.lr"),
        ("a = " + "9" * 5000, "not valid TOML"),
        ('[train]\n"l\\nr\\u001b[2J" = 1\n', "train.l\\nr\\x1b[2J"),
        ("\n".join(f"k{number} = 1" for number in range(2000)), "unknown key"),
        ('extends = "/dev/zero"\n', "neither a shipped preset nor a file"),
        ('[model]\nname = "hierarchical"\nglobal_dim = 1000000\n', "model.global_dim"),
        ('[model]\nname = "grammar"\ndecoder_layers = 1000000\n', "model.decoder_layers"),
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
    ["", "=", "a=1", ".=1", "train.lr=nan", "train.lr=" + "9" * 5000, "train.lr=" + "[" * 50_000, "train.\x1b[2J=1"],
)
def test_a_hostile_assignment(assignment: str) -> None:
    assert read_or_refused(lambda: resolve(None, set_layer([assignment]))) is None


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
    (folder / "bomb.pth").write_bytes(BAD["a PyTorch bomb"](folder / "canary"))
    checkpoints.save(folder / "newer.pth", checkpoint_values(format_version=99))
    checkpoints.save(folder / "other.pth", checkpoint_values(model_state_dict={"a": torch.zeros(3)}))
    checkpoints.save_part(folder / "encoder.pth", {}, 1, Settings())
    os.mkfifo(folder / "pipe.npz")
    np.savez(folder / "objects.npz", grids=np.array([Bomb(folder / "canary")], object))
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
        *("train --resume {}/run", "train --resume {}/run/checkpoints/last.pth", "train --resume {}/part"),
        *("train --resume {long}", "train --preset {long}", "evaluate --checkpoint {whole} --data {}/pipe.npz"),
        *(f"train --data {{}}/{name}.npz --runs-dir {{}}/runs" for name in ("objects", "pipe", "missing")),
        *("presets show {}/huge.toml", "data build --grammar equations --input {}/latin.txt --output {}/out.npz"),
    ],
)
def test_the_command_line_refuses_it_in_one_message(whole: dict[str, Path], hostile: Path, line: str) -> None:
    for name, text in {"{whole}": str(whole["checkpoint"]), "{}": str(hostile), "{long}": "x" * 300}.items():
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
