"""Whatever stands in a file or on the command line, it is read or refused in a line, in bounded time and memory.

Each property tries a few examples, always the same. With FUZZ=1000 in the environment it tries as many, others each
time: `make fuzz`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from arcvae_cli import checkpoints, runs, snapshots
from arcvae_cli.data.corpus import DerivationCorpus
from arcvae_cli.data.recipes import Reading, load_arrays
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Grammar, read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.grammar import Structure
from arcvae_cli.schedules import ControlVAE, Geco, shortfall
from arcvae_cli.schedules.recorded import read_run
from arcvae_cli.settings import DataSettings, Layer, Resolved, Settings, elbo_scale, preset_folder, resolve, set_layer
from arcvae_cli.trainer import Trainer
from tests.outside import (
    EQUATIONS,
    GRIDS,
    SMALL,
    STRINGS,
    TASK,
    archive_of,
    checkpoint_values,
    masks_of,
    metrics,
    records_of,
    same,
    write_all,
)

LONG = int(os.environ.get("FUZZ", "0"))
fuzzed = settings(
    max_examples=LONG or 15,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=bool(LONG),
)

slowly_fuzzed = settings(fuzzed, max_examples=LONG // 5 or 10)
"""For a property that trains."""

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of what is spoilt

SECONDS = 10.0
"""Most that one example may take: far more than any does, far less than what is not bounded."""

MEGABYTES = 1024
"""Most that the memory of the process may grow by."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that are written anew for each example."""
    return tmp_path_factory.mktemp("spoilt")


@contextlib.contextmanager
def refused_or_read(*files: Path) -> Iterator[None]:
    """Nothing but an InputError comes out of the block, of two lines at most, within the limits."""
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = ""
    try:
        yield
    except InputError as error:
        told = str(error)
    event("refused" if told else "read")
    assert told.count("\n") <= 1 and told.replace("\n", "").isprintable(), told
    assert not told or not files or any(str(file) in told or file.stem in told for file in files), told
    assert time.process_time() - begun < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10


# ----------------------------------------------------------------------------------------------------------- spoiling


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some flipped, taken out, put in, repeated, or set to zero, or with their end cut off."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(made) - 1)))
        length = draw(st.sampled_from((1, 2, 4, 8, 30, 200)))
        match draw(st.sampled_from(("flip", "cut", "drop", "repeat", "insert", "zero", "ones", "move"))):
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
            case "ones":
                made[at : at + length] = b"\xff" * len(made[at : at + length])
            case "move":
                other = draw(st.integers(0, max(0, len(made) - 1)))
                made[at : at + length], made[other : other + length] = (
                    made[other : other + length],
                    made[at : at + length],
                )
    return bytes(made)


NUMBERS = st.one_of(
    st.sampled_from((0, 1, -1, 2, 7, 255, 256, 65_536, 2**31, 2**63 - 1, -(2**63), 10**6, 10**9, 10**12, 10**18)),
    st.sampled_from((0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 1e-9, 1e6, math.inf, -math.inf, math.nan)),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
)
TEXTS = st.one_of(
    st.sampled_from(
        ("", "auto", "grid", "grammar", "linear_warmup", "a" * 5000, "..", "/", "\0", "~nobody/x", "\x1b[2J")
    ),
    st.sampled_from(("a\nb", "‮", "/dev/zero", "val/loss_total", "per_dim", "%s{}", "cuda:99", "arc", "smiles")),
    st.text(max_size=20),
)
PLAIN = st.recursive(
    st.one_of(NUMBERS, TEXTS, st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def spoilt_values(draw: st.DrawFn, document: Any, others: st.SearchStrategy[Any] = PLAIN) -> Any:
    """A document of tables and lists with something else in some of its places."""
    made = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        below, key = None, None
        here = made
        while isinstance(here, dict | list) and here and (below is None or draw(st.integers(0, 3))):
            below, key = here, draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
            here = here[key]
        if below is None:
            break
        match draw(st.sampled_from(("value", "value", "value", "gone", "new", "twice"))):
            case "gone":
                del below[key]
            case "new" if isinstance(below, dict):
                below[draw(TEXTS)] = draw(others)
            case "twice" if isinstance(below, list):
                below.append(here)
            case _:
                below[key] = draw(others)
    return made


# ------------------------------------------------------------------------------------------------- presets and --set


PRESETS = [path.read_text(encoding="utf-8") for path in sorted(preset_folder().glob("*.toml"))]
SNIPPETS = st.sampled_from(
    (
        *(
            "nan",
            "inf",
            "-inf",
            "[",
            "]",
            "[[",
            "{",
            "}",
            '"',
            "'''",
            '"""',
            "=",
            ".",
            ",",
            "\n",
            "\r",
            "\0",
            "#",
            "\\u",
        ),
        *("[" * 500, "{a=" * 300, "a." * 3000, "9" * 5000, "0x" + "f" * 5000, "1979-05-27", "true", "extends = 'x'\n"),
        *(
            'extends = "baseline"\n',
            "[train]\n",
            "[model]\n",
            'name = "grammar"\n',
            "epochs = 1e9\n",
            "\ud7ff",
            "\u202e",
        ),
    )
)


@st.composite
def spoilt_texts(draw: st.DrawFn, texts: list[str], snippets: st.SearchStrategy[str] = SNIPPETS) -> str:
    """A text with pieces taken out of it, doubled, or put in."""
    made = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(made))), draw(st.integers(0, 12))
        middle = draw(st.one_of(st.just(""), st.just(2 * made[at : at + length]), snippets, st.text(max_size=5)))
        made = made[:at] + middle + made[at + length :]
    return made


def check_resolved(resolved: Resolved) -> None:
    """What comes out of any preset is what any command can begin with, and gives itself again."""
    chosen = resolved.settings
    assert resolve(None, Layer("again", json.loads(json.dumps(chosen.table())))).settings == chosen
    scale = elbo_scale(chosen)
    assert scale is None or math.isfinite(scale)
    closed = chosen.schedule.closed_levels(chosen.model.levels)
    for epoch in (0.0, 0.5, 1.0, 7.0, float(chosen.train.epochs)):
        for level, part in chosen.schedule.by_level(chosen.model.levels).items():
            assert level in closed or 0 <= part(epoch) <= 1e6
    shortfall(chosen.schedule, min(chosen.train.epochs, 100))


@fuzzed
@given(table=spoilt_values(resolve("cyclical").settings.table()))
def test_a_preset_of_spoilt_values(spoilt: Path, table: dict[str, Any]) -> None:
    path = spoilt / "values.toml"
    try:
        path.write_text(tomli_w.dumps(table), encoding="utf-8")
    except (ValueError, TypeError, OverflowError):  # what TOML cannot say
        return
    with refused_or_read(path):
        check_resolved(resolve(str(path)))


@fuzzed
@given(text=spoilt_texts(PRESETS))
def test_a_preset_of_spoilt_text(spoilt: Path, text: str) -> None:
    path = spoilt / "text.toml"
    path.write_text(text, encoding="utf-8")
    with refused_or_read():  # a preset that it extends may be to blame
        check_resolved(resolve(str(path)))


@fuzzed
@given(content=spoilt_bytes(PRESETS[0].encode()))
def test_a_preset_of_spoilt_bytes(spoilt: Path, content: bytes) -> None:
    path = spoilt / "bytes.toml"
    path.write_bytes(content)
    with refused_or_read():
        check_resolved(resolve(str(path)))


KEYS = st.sampled_from(
    (
        "train.epochs",
        "train.lr",
        "model.name",
        "schedule.name",
        "schedule.max_beta",
        "data.path",
        "data.size",
        "log",
        "a.b",
    )
)
VALUES = st.one_of(
    st.sampled_from(("3", "0.5", "cosine", "grid", "{}", "shapes", '"x"')),
    NUMBERS.map(str),
    TEXTS,
    SNIPPETS,
    PLAIN.map(repr),
)


@fuzzed
@given(assignments=st.lists(st.one_of(st.tuples(KEYS, VALUES).map("=".join), TEXTS, SNIPPETS), min_size=1, max_size=4))
def test_set(assignments: list[str]) -> None:
    with refused_or_read():
        check_resolved(resolve(None, set_layer(assignments)))


# ------------------------------------------------------------------------------------------------------------ corpora


def read(known: Grammar | None, **data: Any) -> None:
    """A corpus, as every command reads it; each example is of a split, and all together have a fingerprint."""
    arrays = load_arrays(DataSettings(**data), Reading(grammar=known, most_failed=1.0))
    assert len(arrays.split) > 0 and arrays.split.max() <= 2
    assert len(arrays.fingerprint()) == 64


@pytest.mark.parametrize("kind", ["grids", "bare grids", "task", "derivations", "strings"])
def test_a_corpus_of_spoilt_bytes(whole: dict[str, Path], spoilt: Path, kind: str) -> None:
    path = spoilt / whole[kind].name

    @fuzzed
    @given(content=spoilt_bytes(whole[kind].read_bytes()))
    def property_(content: bytes) -> None:
        path.write_bytes(content)
        with refused_or_read(path):
            read(EQUATIONS, path=path)

    property_()


DTYPES = ("u1", "i1", "<i2", ">i4", "<u8", "<i8", "<f8", "?", "S1", "S9", "<U3", ">U12", "<c8", "M8[s]", "V5", "O")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def arrays_of(draw: st.DrawFn, likely: list[np.ndarray]) -> Any:
    """An array of any type and shape, of any bytes; or a likely one as another type, or in another shape."""
    if draw(st.booleans()):
        made = draw(st.sampled_from(likely))
        return draw(st.sampled_from((made, made.ravel(), made[None], made.astype("S3"), made.ravel()[:1], made.T)))
    dtype, shape = np.dtype(draw(st.sampled_from(DTYPES))), draw(SHAPES)
    if dtype.hasobject:
        return np.full(shape, None)
    size = dtype.itemsize * math.prod(shape)
    content = draw(st.one_of(st.just(bytes(size)), st.binary(min_size=size, max_size=size)))
    return np.frombuffer(content, dtype).reshape(shape) if size else np.zeros(shape, dtype)


COLUMNS = [
    GRIDS.grids,
    GRIDS.split,
    GRIDS.shape,
    GRIDS.task,
    STRINGS.ids,
    STRINGS.split,
    np.array(11),
    np.array("S -> 'a'"),
]
NAMES = (
    "grids",
    "split",
    "shape",
    "task",
    "train",
    "val",
    "test",
    "ids",
    "grammar",
    "lhs",
    "padding",
    "origin",
    "other",
)


@fuzzed
@given(
    columns=st.dictionaries(st.sampled_from(NAMES), arrays_of([np.asarray(column) for column in COLUMNS]), max_size=4),
    whole=st.sampled_from(("grids", "ids", "")),
    compressed=st.booleans(),
)
def test_a_corpus_of_any_arrays(spoilt: Path, columns: dict[str, Any], whole: str, compressed: bool) -> None:
    likely = {"grids": {"grids": GRIDS.grids}, "ids": {"ids": STRINGS.ids}, "": {}}[whole]
    path = spoilt / "arrays.npz"
    (np.savez_compressed if compressed else np.savez)(path, **{**likely, **columns})
    with refused_or_read(path):
        read(EQUATIONS, path=path)


@fuzzed
@given(document=spoilt_values({"a": TASK, "b": TASK, "c": TASK}))
def test_tasks_of_spoilt_values(spoilt: Path, document: Any) -> None:
    path = spoilt / "tasks.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with refused_or_read(path):
        read(None, path=path)


@fuzzed
@given(data=st.data(), masked=st.booleans(), pad=st.sampled_from((None, -1, 0, 11, 12, 40_000)))
def test_ready_arrays(spoilt: Path, data: st.DataObject, masked: bool, pad: int | None) -> None:
    prod, masks = spoilt / "prod.npy", spoilt / "masks.npy"
    np.save(prod, data.draw(arrays_of([STRINGS.ids, STRINGS.ids.astype(np.uint64), STRINGS.ids[:, :3]])))
    np.save(masks, data.draw(arrays_of([masks_of(STRINGS.ids), masks_of(STRINGS.ids)[:, :, :1]])))
    if data.draw(st.booleans()):
        prod.write_bytes(data.draw(spoilt_bytes(prod.read_bytes())))
    if data.draw(st.booleans()):
        masks.write_bytes(data.draw(spoilt_bytes(masks.read_bytes())))
    with refused_or_read():
        given = {"masks": masks} if masked else {"grammar": "equations"}
        read(None, prod=prod, pad_id=pad, **given)


GRAMMARS = [EQUATIONS.text, "S -> 'a' S | 'b'\n", '%separator " "\nS -> S "+" T | T\nT -> "x" | "(" S ")" | "1"\n']
PIECES = st.sampled_from(
    (
        "->",
        "|",
        "'",
        '"',
        "%start ",
        "%undefined ",
        "%separator ",
        "S",
        "T",
        " ",
        "\n",
        "# ",
        "''",
        "S -> S\n",
        "\0",
        "-",
    )
)


@fuzzed
@given(text=spoilt_texts(GRAMMARS, PIECES), strings=st.lists(st.text("ab+x1() *sin/23\0\r", max_size=8), min_size=1))
def test_a_grammar_and_its_strings(spoilt: Path, text: str, strings: list[str]) -> None:
    grammar, lines = spoilt / "any.cfg", spoilt / "lines.txt"
    grammar.write_text(text, encoding="utf-8")
    lines.write_text("\n".join([*strings, "x", "( x )", "a b", "x + 1", "b"]), encoding="utf-8")
    with refused_or_read():
        read_grammar(str(grammar))
        read(None, path=lines, grammar=str(grammar))


# -------------------------------------------------------------------------------------------------------- checkpoints


def load(path: Path) -> None:
    """A checkpoint, as every command reads it: a model whose weights are numbers."""
    loaded = checkpoints.load(path)
    assert all(bool(tensor.isfinite().all()) for tensor in loaded.model.state_dict().values())
    assert loaded.epoch >= 0 and loaded.grammar is not None


def test_a_checkpoint_of_spoilt_bytes(whole: dict[str, Path], spoilt: Path) -> None:
    path, before = spoilt / "bytes.pth", checkpoints.read(whole["checkpoint"])

    @fuzzed
    @given(content=spoilt_bytes(whole["checkpoint"].read_bytes()))
    def property_(content: bytes) -> None:
        path.write_bytes(content)
        with refused_or_read(path):
            assert same(checkpoints.read(path), before), "accepted, and something else"

    property_()


CANARY = "canary"
OPCODES = st.one_of(
    st.sampled_from(
        (
            *(b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"u", b"s", b"e", b"a", b"R", b"Q", b"b", b"N"),
            *(b"\x88", b"\x89", b"2", b"0", b"1", b"\x81", b"\x8f", b"\x80\x02", b"\x80\x04", b".", b"o", b"l", b"d"),
            *(b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"\x94", b"P0\n"),
            *(b"X\x01\x00\x00\x000", b"X\x07\x00\x00\x00storage", b"X\x03\x00\x00\x00cpu", b"X\xff\xff\xff\x7fa"),
            *(
                b"K\x00",
                b"K\x01",
                b"J\xff\xff\xff\xff",
                b"\x8a\x09" + b"\xff" * 8 + b"\x00",
                b"I99999\n",
                b"G" + bytes(8),
            ),
            *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"),
            *(b"cbuiltins\nbytearray\n", b"ctorch\nUntypedStorage\n", b"cos\nsystem\n", b"cpathlib\nPath\n"),
            *(b"X\x0c\x00\x00\x00touch canary", b"\x8b\x08\x00\x00\x00" + b"\xff" * 7 + b"\x7f", b"ctorch\nTensor\n"),
        )
    ),
    st.binary(max_size=3),
)


def test_a_checkpoint_of_spoilt_pickles(whole: dict[str, Path], spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(spoilt)
    path, records = spoilt / "pickle.pth", records_of(whole["checkpoint"])
    begun = records["data.pkl"]

    @fuzzed
    @given(
        pickled=st.one_of(
            spoilt_bytes(begun),
            st.lists(OPCODES, max_size=12).map(lambda parts: b"\x80\x02" + b"".join(parts) + b"."),
            st.tuples(st.integers(2, len(begun)), st.lists(OPCODES, max_size=4)).map(
                lambda at: begun[: at[0]] + b"".join(at[1]) + begun[at[0] :]
            ),
        )
    )
    def property_(pickled: bytes) -> None:
        path.write_bytes(archive_of({**records, "data.pkl": pickled}))
        with refused_or_read(path):
            load(path)
        assert not (spoilt / CANARY).exists()

    property_()


def odd_values() -> list[Any]:
    """What may stand in a checkpoint and makes no sense where it stands."""
    many = torch.zeros(()).expand(10**12)
    return [
        *(None, True, -1, 0, 10**40, 2**63, 1e308, math.nan, "", "[" * 5000, "{", "null", "\ud800", [], {}, (), [[]]),
        *(torch.zeros(0), torch.zeros(3), many, torch.full((3, 3), math.nan), torch.zeros(2, dtype=torch.complex64)),
        *(
            torch.zeros(3, dtype=torch.int64),
            {"a": torch.zeros(2)},
            {0: 1},
            [["height", 17]],
            Path("x"),
            b"x",
            {1.5: 2},
        ),
    ]


@fuzzed
@given(data=st.data())
def test_a_checkpoint_of_spoilt_values(spoilt: Path, data: st.DataObject) -> None:
    path, values = spoilt / "values.pth", checkpoint_values()
    for _ in range(data.draw(st.integers(1, 2))):
        table: Any = values
        key = data.draw(st.sampled_from(sorted(values)))
        if isinstance(values[key], dict) and values[key] and data.draw(st.booleans()):
            table, key = values[key], data.draw(st.sampled_from(sorted(values[key], key=str)))
        table[key] = odd_values()[data.draw(st.integers(0, len(odd_values()) - 1))]
    for key in ("config", "structure"):
        if isinstance(values.get(key), str) and data.draw(st.booleans()):
            with contextlib.suppress(ValueError, RecursionError):
                values[key] = json.dumps(data.draw(spoilt_values(json.loads(values[key]))))
    torch.save(values, path)
    with refused_or_read(path):
        load(path)


def trainer_in(run: runs.RunFolder, epochs: int) -> Trainer:
    """A training of the small model of equations, in its beginning."""
    train = {"epochs": epochs, "batch_size": 16, "precision": "fp32", "save_minutes": 0, "early_stopping": False}
    quiet = {"log": {"images_every": 0}, "checkpoint": {"every_epochs": 0, "save_top_k": 0}}
    loop = {"name": "controlvae", "target": 3.0}
    chosen = Settings.model_validate(
        {"model": SMALL, "data": {"name": "equations"}, "train": train, "schedule": loop} | quiet
    )
    corpus = DerivationCorpus(STRINGS)
    model = build_model(chosen.model, Structure(corpus.rules, corpus.length))
    return Trainer(chosen, corpus, model, run, [], torch.device("cpu"), resumed=True)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[runs.RunFolder, bytes]]:
    """A run of two epochs to go on with, and its last checkpoint."""
    run = runs.create(tmp_path_factory.mktemp("runs"), "begun", "begun", Settings())
    trainer_in(run, 2).fit()
    yield run, (run.checkpoints / "last.pth").read_bytes()
    run.release()


@slowly_fuzzed
@given(data=st.data())
def test_a_training_goes_on_from_spoilt_values_or_not_at_all(
    begun: tuple[runs.RunFolder, bytes], data: st.DataObject
) -> None:
    run, content = begun
    path = run.checkpoints / "spoilt.pth"
    path.write_bytes(content)
    values = checkpoints.read(path)
    lines = [json.loads(line) for line in values["history"].splitlines()]
    for _ in range(data.draw(st.integers(1, 2))):
        table: Any = data.draw(st.sampled_from((values, lines)))
        key: Any = data.draw(st.sampled_from(sorted(table) if table is values else range(len(table))))
        while isinstance(table[key], dict | list) and table[key] and data.draw(st.integers(0, 3)):
            table = table[key]
            key = data.draw(st.sampled_from(sorted(table, key=str) if isinstance(table, dict) else range(len(table))))
        table[key] = odd_values()[data.draw(st.integers(0, len(odd_values()) - 1))]
    if isinstance(values["history"], str) and data.draw(st.booleans()):
        with contextlib.suppress(TypeError, ValueError):  # what JSON cannot say
            values["history"] = "\n".join(map(json.dumps, lines))
    torch.save(values, path)
    with refused_or_read(path):
        trainer = trainer_in(run, 3)
        snapshots.restore(trainer, checkpoints.read(path), path)
        trainer.fit()


def put(value: Any, *keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        table: Any = values
        for key in keys[:-1]:
            table = table[key]
        table[keys[-1]] = value

    return change


FOUND: dict[str, Callable[[dict[str, Any]], None]] = {
    "a precision that is none": put("fp8", "precision"),
    "seconds that are no number": put({"training": math.nan}, "seconds"),
    "betas of another shape": put({"z": torch.zeros(4, 1, 2)}, "closed_betas"),
    "betas of another level": put({"local": torch.zeros(2, 2)}, "closed_betas"),
    "a mean that is no number": lambda values: values["optimizer_state_dict"]["state"][0]["exp_avg"].fill_(math.nan),
    "a learning rate that is no number": put(math.nan, "optimizer_state_dict", "param_groups", 0, "lr"),
    "a learning rate of text": put("x", "optimizer_state_dict", "param_groups", 0, "lr"),
    "a best epoch of no value": lambda values: values.update(
        history=values["history"].replace('"monitored": ', '"monitored": NaN, "x": ')
    ),
}
"""What longer searches found, or might have."""


@pytest.mark.parametrize("what", FOUND)
def test_no_training_goes_on_from(begun: tuple[runs.RunFolder, bytes], what: str) -> None:
    run, content = begun
    path = run.checkpoints / "spoilt.pth"
    path.write_bytes(content)
    values = checkpoints.read(path)
    FOUND[what](values)
    checkpoints.save(path, values)
    with pytest.raises(InputError, match=r"spoilt\.pth: no training can go on"):
        snapshots.restore(trainer_in(run, 3), checkpoints.read(path), path)


def test_settings_of_the_optimiser_are_not_taken_from_the_file(begun: tuple[runs.RunFolder, bytes]) -> None:
    run, content = begun
    path = run.checkpoints / "spoilt.pth"
    path.write_bytes(content)
    values = checkpoints.read(path)
    values["optimizer_state_dict"]["param_groups"][0].update(betas="x", eps=None, weight_decay=math.nan, fused=3)
    checkpoints.save(path, values)
    trainer = trainer_in(run, 3)
    own = dict(trainer.step.optimizer.param_groups[0])
    snapshots.restore(trainer, checkpoints.read(path), path)
    assert {**trainer.step.optimizer.param_groups[0], "params": None} == {**own, "params": None}


# ---------------------------------------------------------------------------------------------------- recorded runs


@fuzzed
@given(lines=spoilt_values(metrics()), text=st.booleans(), data=st.data())
def test_a_recorded_run(
    whole: dict[str, Path], spoilt: Path, lines: list[Any], text: bool, data: st.DataObject
) -> None:
    run = spoilt / "run"
    run.mkdir(exist_ok=True)
    (run / "config.toml").write_bytes((whole["run"].parent / "config.toml").read_bytes())
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (run / "metrics.jsonl").write_bytes(data.draw(spoilt_bytes(content)) if text else content)
    for schedule in (ControlVAE(target=11.0), Geco(tolerance=0.3)):
        with refused_or_read(run):
            course = read_run(str(run), spoilt).course(schedule, "", 8)
            assert all(map(math.isfinite, (*course.betas, *course.values)))
