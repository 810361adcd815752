"""One property for each reader: whatever is in its input, it is read or refused with one message.

A few examples each, always the same. With FUZZ=1000 in the environment it is as many, others each time: `make fuzz`.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcvae_cli import checkpoints
from arcvae_cli.presets import Layer, Resolved, preset_folder, resolve, set_layer
from tests.outside import READERS, read_or_refused, same, write_all

LONG = int(os.environ.get("FUZZ", "0"))
fuzzed = settings(
    max_examples=LONG or 15,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=bool(LONG),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("whole"))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some flipped, removed, inserted, repeated or zeroed, or cut off."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(made) - 1)))
        length = draw(st.sampled_from((1, 2, 4, 8, 30, 200)))
        match draw(st.sampled_from(("flip", "cut", "drop", "repeat", "insert", "zero"))):
            case "flip" if made:
                made[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del made[at:]
            case "drop":
                del made[at : at + length]
            case "repeat":
                made[at:at] = made[at : at + length]
            case "insert":
                made[at:at] = draw(st.binary(max_size=20))
            case "zero":
                made[at : at + length] = bytes(len(made[at : at + length]))
    return bytes(made)


@pytest.mark.parametrize("kind", READERS)
def test_damaged_bytes(whole: dict[str, Path], tmp_path: Path, kind: str) -> None:
    path = tmp_path / whole[kind].name
    before = checkpoints.read(whole["checkpoint"])

    @fuzzed
    @given(content=damaged(whole[kind].read_bytes()))
    def property_(content: bytes) -> None:
        path.write_bytes(content)
        found = read_or_refused(lambda: READERS[kind](path, whole))
        assert kind != "checkpoint" or found is None or same(found, before)

    property_()


# ------------------------------------------------------------------------------------------------- presets and --set

PRESETS = [path.read_text(encoding="utf-8") for path in sorted(preset_folder().glob("*.toml"))]
SNIPPETS = st.sampled_from(
    (
        *("nan", "inf", "-inf", "[", "]", "[[", "{", "}", '"', "'''", '"""', "=", ".", ",", "\n", "\r", "\0", "#"),
        *("[" * 500, "{a=" * 300, "a." * 3000, "9" * 5000, "0x" + "f" * 5000, "1979-05-27", "true", "\\u", "\u202e"),
        *('extends = "baseline"\n', "[train]\n", "[model]\n", 'name = "grammar"\n', "epochs = 1e9\n", "-1", "1e308"),
    )
)
KEYS = st.sampled_from(("train.epochs", "train.lr", "model.name", "schedule.name", "schedule.max_beta", "data.size"))
VALUES = st.one_of(st.sampled_from(("3", "0.5", "cosine", "grid", "{}", '"x"')), SNIPPETS, st.text(max_size=9))


def check_resolved(resolved: Resolved) -> None:
    """Settings survive being written and read, and their schedule gives finite betas."""
    chosen = resolved.settings
    assert resolve(None, Layer("again", json.loads(json.dumps(chosen.table())))).settings == chosen
    closed = chosen.schedule.closed_levels(chosen.model.levels)
    for level, part in chosen.schedule.by_level(chosen.model.levels).items():
        assert level in closed or all(math.isfinite(part(epoch)) for epoch in (0.0, 0.5, 7.0, chosen.train.epochs))


@fuzzed
@given(
    text=st.sampled_from(PRESETS), edits=st.lists(st.tuples(st.integers(0), st.integers(0, 12), SNIPPETS), min_size=1)
)
def test_an_edited_preset(tmp_path_factory: pytest.TempPathFactory, text: str, edits: list[Any]) -> None:
    for at, length, snippet in edits:
        place = at % (len(text) + 1)
        text = text[:place] + snippet + text[place + length :]
    path = tmp_path_factory.getbasetemp() / "edited.toml"
    path.write_text(text, encoding="utf-8")
    read_or_refused(lambda: check_resolved(resolve(str(path))))


@fuzzed
@given(assignments=st.lists(st.one_of(st.tuples(KEYS, VALUES).map("=".join), SNIPPETS), min_size=1, max_size=4))
def test_set(assignments: list[str]) -> None:
    read_or_refused(lambda: check_resolved(resolve(None, set_layer(assignments))))
