"""Damaged, foreign and hostile files: one message, exit code 2, and no code of the file runs.

With FUZZ=1000 in the environment the properties get as many examples, others each time: `make fuzz`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from arcvae_cli import checkpoints
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpora import load_arrays
from arcvae_cli.data.files import write_dataset
from arcvae_cli.data.strings import build_drawn, read_prebuilt
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.grammar import Structure
from arcvae_cli.presets import Layer, preset_folder, resolve, set_layer
from arcvae_cli.settings import DataSettings, Settings

EQUATIONS = read_grammar("equations")
TASK = {"train": [{"input": [[0, 1], [2, 3]], "output": [[9]]}], "test": [{"input": [[4, 5, 6]], "output": [[7]]}]}
SMALL = {"name": "grammar", "latent_dim": 2, "encoder_hidden": 3, "encoder_conv_layers": 1, "encoder_kernel": 3}
SMALL |= {"decoder_hidden": 3, "decoder_layers": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small valid file of every kind that arcvae reads."""
    folder = tmp_path_factory.mktemp("whole")
    names = "x.pth x.toml x.npz x.npy x.json derivations.npz strings.txt x.cfg ids.npy masks.npy"
    found = dict(zip(READERS, (folder / name for name in names.split()), strict=True))
    grids = np.random.RandomState(5).randint(0, 10, (12, 16, 16)).astype(np.uint8)
    strings, left = build_drawn(EQUATIONS, 7, size=40), np.array(EQUATIONS.rules.lhs)
    masks = (left[:, None] == left) & (left >= 0)[:, None] | np.eye(len(left), dtype=bool) & (left < 0)[:, None]
    model = Settings.model_validate({"data": {"name": "equations"}, "model": SMALL})
    built = build_model(model.model, Structure(EQUATIONS.rules, 7))
    kept = checkpoints.header(model, 3) | checkpoints.content(built) | {"rng_state": torch.get_rng_state()}
    checkpoints.save(found["checkpoint"], kept)
    found["preset"].write_text(tomli_w.dumps(resolve("cyclical").settings.table()))
    write_dataset(found["grids"], Dataset("some", grids, np.repeat(np.arange(3, dtype=np.uint8), 4)))
    np.save(found["bare grids"], grids)
    found["task"].write_text(json.dumps(TASK))
    write_dataset(found["derivations"], strings)
    found["strings"].write_text("\n".join(strings.strings(np.arange(40))))
    found["grammar"].write_text(EQUATIONS.text)
    np.save(found["ids"], strings.x)
    np.save(found["masks"], np.packbits(masks[strings.x], axis=2))
    return found


def by_path(path: Path, _: dict[str, Path]) -> str:
    return load_arrays(DataSettings(path=path)).fingerprint()


READERS: dict[str, Callable[[Path, dict[str, Path]], Any]] = {
    "checkpoint": lambda path, whole: (checkpoints.load(path), checkpoints.digest(checkpoints.read(path)))[1],
    "preset": lambda path, whole: resolve(str(path)).settings,
    **dict.fromkeys(("grids", "bare grids", "task", "derivations"), by_path),
    "strings": lambda path, whole: load_arrays(DataSettings(input=path, grammar="equations")).fingerprint(),
    "grammar": lambda path, whole: read_grammar(str(path)).productions,
    "ids": lambda path, whole: read_prebuilt(path, whole["masks"], None, None).fingerprint(),
    "masks": lambda path, whole: read_prebuilt(whole["ids"], path, None, None).fingerprint(),
}


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What is read; None for an InputError of at most two printable lines. Nothing else may be raised."""
    try:
        return read()
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


def bad_files(content: bytes, canary: Path) -> dict[str, bytes]:
    bomb = Bomb(canary)
    return {
        "empty": b"",
        "half of it": content[: len(content) // 2],
        "a foreign zip": saved(lambda file: zipfile.ZipFile(file, "w").close()),
        "a pickle bomb": pickle.dumps(bomb),
        "a PyTorch bomb": saved(lambda file: torch.save({"format_version": bomb}, file)),
        "a NumPy bomb": saved(lambda file: np.save(file, np.array([bomb], object))),
        "NUL bytes": bytes(5000),
        "not UTF-8": b"\xff\xfe\xfa\n" * 100,
        "deeply nested": b"[" * 50_000,
        "control characters": b'"\x1b[2J\\n" = 1\n' + b"\x1b[2J\r\x07" * 9,
    }


READ = {("preset", "empty"), ("preset", "half of it"), ("strings", "half of it")}  # may be valid


@pytest.mark.parametrize("kind", READERS)
def test_only_the_valid_file_is_read_and_no_code_runs(whole: dict[str, Path], kind: str, tmp_path: Path) -> None:
    suffix, canary = whole[kind].suffix, tmp_path / "canary"
    assert READERS[kind](whole[kind], whole) is not None
    for what, content in bad_files(whole[kind].read_bytes(), canary).items():
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(content)
        assert read_or_refused(lambda path=path: READERS[kind](path, whole)) is None or (kind, what) in READ, what
        assert not canary.exists(), what
    os.mkfifo(tmp_path / f"pipe{suffix}")
    for name in ("missing", "pipe", "x" * 300, "a\0b"):
        path = tmp_path / f"{name}{suffix}"
        assert read_or_refused(lambda path=path: READERS[kind](path, whole)) is None, name


def test_bits_of_the_zip_headers_of_a_checkpoint(tmp_path: Path) -> None:
    """A record marked as a folder, for one: PyTorch would fill its tensor with whatever the memory held."""
    path = tmp_path / "x.pth"
    checkpoints.save(path, {"format_version": checkpoints.FORMAT, "t": torch.arange(3.0)})
    content, before = path.read_bytes(), checkpoints.digest(checkpoints.read(path))
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
        start, entry = archive.getinfo(name).header_offset, content.index(name.encode(), archive.start_dir) - 46
    for place in (*range(start, start + 30), *range(entry, entry + 60)):
        for bit in (0, 3, 4, 7):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            found = read_or_refused(lambda: checkpoints.digest(checkpoints.read(path)))
            assert found in (None, before), f"byte {place}, bit {bit}"


def test_an_error_is_one_line_without_passwords() -> None:
    error = InputError("a\nb\x1b[2J\ud800 \u202e" + "x" * 10_000 + "end", "é\r\n")
    assert error.what.startswith("a\\nb\\x1b[2J\\ud800 \\u202exxx") and error.what.endswith("xxxend")
    assert error.fix == "é\\r\\n" and len(error.what) < 1300
    for text in ("https://me:se@cret@host.org/a", "http://me:se/cret@host.org/a", "/home/https:/me:s@host.org/a"):
        assert "me" not in InputError(text).what.replace("home", "") and "host.org/a" in InputError(text).what
    assert str(pickle.loads(pickle.dumps(InputError("a", "b")))) == "a\nb", "as worker processes send it"


LONG = int(os.environ.get("FUZZ", "0"))


def fuzz(test: Callable[..., None], **strategies: Any) -> None:
    """Call the test with examples. Hypothesis is imported here because it takes a second of every worker's start."""
    from hypothesis import HealthCheck, given, settings

    how = {"max_examples": LONG or 15, "derandomize": not LONG, "print_blob": bool(LONG)}
    health = list(HealthCheck)
    settings(**how, database=None, deadline=None, suppress_health_check=health)(given(**strategies)(test))()


def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes with one flipped, or with some removed, repeated, inserted or zeroed, or cut off; up to four times."""
    from hypothesis import strategies as st

    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, max(0, len(made) - 1))), draw(st.sampled_from((1, 2, 4, 8, 30, 200)))
        here = bytes(made[at : at + length])
        flipped = here[:1] and bytes([here[0] ^ 1 << draw(st.integers(0, 7))]) + here[1:]
        new = draw(st.sampled_from((flipped, b"", here + here, draw(st.binary(max_size=20)) + here, bytes(len(here)))))
        made[at : at + length] = new
    return bytes(made[: draw(st.integers(0, len(made)))] if draw(st.integers(0, 5)) == 0 else made)


@pytest.mark.parametrize("kind", READERS)
def test_fuzz_of_bytes(whole: dict[str, Path], tmp_path: Path, kind: str) -> None:
    from hypothesis import strategies as st

    path, before = tmp_path / whole[kind].name, READERS[kind](whole[kind], whole)

    def test(content: bytes) -> None:
        path.write_bytes(content)
        found = read_or_refused(lambda: READERS[kind](path, whole))
        assert kind != "checkpoint" or found in (None, before)

    fuzz(test, content=st.composite(damaged)(whole[kind].read_bytes()))


PRESETS = [path.read_text(encoding="utf-8") for path in sorted(preset_folder().glob("*.toml"))]
PIECES = ["nan", "inf", "[", "]", "[[", "{", '"', "'''", "=", ".", ",", "\n", "\r", "\0", "#", "[" * 500, "{a=" * 300]
PIECES += ["a." * 3000, "9" * 5000, "1979-05-27", "true", "\\u", "\u202e", 'extends = "baseline"\n', "[train]\n", "-1"]
KEYS = ("train.epochs", "train.lr", "model.name", "schedule.name", "schedule.max_beta", "data.size")


def test_fuzz_of_settings(tmp_path: Path) -> None:
    """What is accepted survives being written and read."""
    from hypothesis import strategies as st

    snippets, path = st.sampled_from(PIECES), tmp_path / "edited.toml"
    values = st.one_of(st.sampled_from(("3", "0.5", "cosine", "grid", "{}", '"x"')), snippets, st.text(max_size=9))
    assigned = st.one_of(st.tuples(st.sampled_from(KEYS), values).map("=".join), snippets)

    def test(text: str, edits: list[Any], assignments: list[str]) -> None:
        for at, length, snippet in edits:
            place = at % (len(text) + 1)
            text = text[:place] + snippet + text[place + length :]
        path.write_text(text, encoding="utf-8")
        for read in (lambda: resolve(str(path)), lambda: resolve(None, set_layer(assignments))):
            if (found := read_or_refused(read)) is not None:
                table = json.loads(json.dumps(found.settings.table()))
                assert resolve(None, Layer("again", table)).settings == found.settings

    edits = st.lists(st.tuples(st.integers(0), st.integers(0, 12), snippets), min_size=1)
    fuzz(test, text=st.sampled_from(PRESETS), edits=edits, assignments=st.lists(assigned, max_size=4))
