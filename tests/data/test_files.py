from __future__ import annotations

import json
import os
import pickle
import stat
import tracemalloc
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcvae_cli.data.arc import published
from arcvae_cli.data.arrays import SPLITS, Dataset, Origin
from arcvae_cli.data.files import read_dataset, write_dataset
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import read_grammar

GRIDS = np.random.RandomState(3).randint(0, 10, (30, 16, 16)).astype(np.uint8)
SPLIT = np.repeat(np.arange(3, dtype=np.uint8), [20, 5, 5])
EQUATIONS = read_grammar("equations")
DRAWN = build_drawn(EQUATIONS, 15, 500, 1)
BARE = replace(DRAWN, rules=replace(DRAWN.rules, symbols=("0", "1"), rhs=None, text=None), grammar=None)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def counts(dataset: Dataset) -> list[int]:
    return [dataset.rows(split).size for split in SPLITS]


def refused(path: Path, message: str = ".") -> None:
    """Reading it is an InputError of one line that names the file, with a fix."""
    with pytest.raises(InputError, match=message) as raised:
        read_dataset(path)
    assert path.stem in raised.value.what and raised.value.fix
    assert str(raised.value).isprintable() or str(raised.value).count("\n") == 1


@pytest.mark.parametrize("name", ["arc", "canvases", "drawn", "bare"])
def test_round_trip(tmp_path: Path, name: str, arc: Dataset, canvases: Dataset):
    dataset = {"arc": arc, "canvases": canvases, "drawn": DRAWN, "bare": BARE}[name]
    write_dataset(tmp_path / "mine.npz", dataset)
    read = read_dataset(tmp_path / "mine.npz")
    assert read.name == "mine"
    assert read.fingerprint() == dataset.fingerprint()
    assert (read.x.dtype, read.split.dtype, read.kind) == (dataset.x.dtype, np.uint8, dataset.kind)
    assert (read.shape is None, read.task is None) == (dataset.shape is None, dataset.task is None)
    assert (read.rules, read.grammar, read.origin) == (dataset.rules, dataset.grammar, dataset.origin)
    assert stat.S_IMODE((tmp_path / "mine.npz").stat().st_mode) & stat.S_IRUSR
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]
    np.load(tmp_path / "mine.npz", allow_pickle=False)


@pytest.mark.parametrize(
    "split",
    [SPLIT, SPLIT.astype(np.int64), np.array(SPLITS)[SPLIT], np.array([b"train", b"validation", b"test"])[SPLIT]],
    ids=["uint8", "int64", "str", "bytes"],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_grids_and_split(tmp_path: Path, split: np.ndarray, save: Any):
    save(tmp_path / "mine.npz", grids=GRIDS.astype(np.int32), split=split, other=np.array([Trap()], object))
    dataset = read_dataset(tmp_path / "mine.npz")
    assert dataset.x.dtype == dataset.split.dtype == np.uint8
    assert (dataset.x == GRIDS).all() and (dataset.split == SPLIT).all()
    assert not dataset.notes


def test_an_array_a_split(tmp_path: Path):
    np.savez(tmp_path / "mine.npz", test=GRIDS[25:], train=GRIDS[:20], val=GRIDS[20:25])
    dataset = read_dataset(tmp_path / "mine.npz")
    assert (dataset.x == GRIDS).all() and (dataset.split == SPLIT).all()
    np.savez(tmp_path / "mine.npz", train=GRIDS[:3], val=GRIDS[:0], test=GRIDS[3:5, :4, :7])
    dataset = read_dataset(tmp_path / "mine.npz")
    assert counts(dataset) == [3, 0, 2]
    assert dataset.shape.tolist() == [[16, 16]] * 3 + [[4, 7]] * 2


def test_npy_is_split_by_content(tmp_path: Path):
    grids = np.concatenate([GRIDS, GRIDS[:10]])
    np.save(tmp_path / "mine.npy", np.asfortranarray(grids))
    dataset = read_dataset(tmp_path / "mine.npy")
    assert (dataset.x == grids).all()
    assert (dataset.split[30:] == dataset.split[:10]).all(), "duplicates share a split"
    assert np.bincount(dataset.split[:30]).tolist() == [24, 3, 3]
    assert "hash of their content" in dataset.notes[0]


def test_ids_of_the_user(tmp_path: Path):
    path = tmp_path / "mine.npz"
    ids = np.where(DRAWN.x == 11, -1, DRAWN.x.astype(np.int64))
    np.savez(path, ids=ids, grammar=np.array(EQUATIONS.text), split=np.array(SPLITS)[DRAWN.split])
    dataset = read_dataset(path)
    assert (dataset.x == DRAWN.x).all() and (dataset.split == DRAWN.split).all()
    np.savez(path, ids=np.concatenate([ids, ids[:100]]))
    dataset = read_dataset(path, EQUATIONS)
    assert (dataset.split[500:] == dataset.split[:100]).all(), "duplicates share a split"
    assert "hash of their content" in dataset.notes[0]
    refused(path, "ids without a grammar")


def with_shape(height: int, width: int) -> dict[str, np.ndarray]:
    shape = np.array([[16, 16], [height, width]])
    return {"grids": np.ones((2, 16, 16), np.uint8), "split": np.zeros(2, int), "shape": shape}


def ids_with(**others: Any) -> dict[str, Any]:
    return {"ids": DRAWN.x, "split": DRAWN.split, "grammar": np.array(EQUATIONS.text), **others}


def lhs_with(lhs: Any, padding: int | None = 11) -> dict[str, Any]:
    padded = {} if padding is None else {"padding": np.array(padding)}
    return {"ids": DRAWN.x, "lhs": np.array(lhs, np.int16), **padded}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"images": GRIDS}, "no grids"),
        ({"train": GRIDS[:0], "val": GRIDS[:0]}, "no grids"),
        ({"grids": GRIDS[0]}, "grids: invalid"),
        ({"grids": GRIDS[:0]}, "grids: invalid"),
        ({"grids": np.zeros((3, 30, 30), np.uint8)}, r"\(3, 30, 30\)"),
        ({"grids": GRIDS.astype(float)}, "float64"),
        ({"grids": np.where(np.arange(30)[:, None, None] == 7, 10, GRIDS)}, "colours outside 0-9, first in grid 7"),
        ({"val": GRIDS.astype(int) - 1}, "val: colours outside 0-9"),
        ({"grids": np.array([Trap()], object)}, "allow_pickle=False"),
        ({"grids": GRIDS, "split": np.array(["train"] * 30, object)}, "allow_pickle=False"),
        ({"grids": GRIDS, "split": SPLIT[:-1]}, "split: invalid"),
        ({"grids": GRIDS, "split": SPLIT + 1}, "split: invalid"),
        ({"grids": GRIDS, "split": np.array(["train", "dev"])[SPLIT % 2]}, "split: invalid"),
        ({"grids": GRIDS, "split": np.full(30, b"\xff")}, "invalid start byte"),
        ({"grids": GRIDS, "task": np.frombuffer(b"\xff" * 120, "<U1")}, "invalid maximum character"),
        ({"grids": GRIDS, "task": np.zeros((30, 2))}, "task: invalid"),
        ({"grids": GRIDS, "shape": np.full((30, 2), 17)}, "shape: invalid"),
        (with_shape(15, 16), "shape: grid 1 has colours outside"),
        (ids_with(ids=np.zeros((3, 4))), "ids: invalid"),
        (ids_with(ids=np.zeros((0, 15), int)), "ids: invalid"),
        (ids_with(ids=np.full((2, 3), 12)), "row 0, step 0: rule 12"),
        (ids_with(ids=np.array([[3, 7, 11], [3, 7, 7]])), "row 1, step 2: rule 7"),
        (ids_with(ids=np.full((1, 3), 2**16 + 3)), "row 0, step 0: rule 65539"),
        (ids_with(split=np.zeros(3, int)), "split: invalid"),
        (ids_with(grammar=np.zeros(3)), "text: invalid"),
        (ids_with(grammar=np.frombuffer(b"\xff\xfe", np.uint8)), "invalid start byte"),
        (ids_with(grammar=np.frombuffer(b"S -> T", np.uint8)), "mine"),
        (ids_with(origin=np.array("[")), "Origin"),
        (ids_with(origin=np.array(json.dumps({**asdict(Origin()), "entropy": float("nan")}))), "Origin"),
        (lhs_with([0] * 12), "lhs: invalid"),
        (lhs_with([0] * 4 + [1] * 7 + [-1], None), "padding"),
        (lhs_with([0] * 4 + [1] * 7 + [-1], 12), "out of range"),
        (lhs_with([0, 0] + [1] * 9 + [-1]), "row 2, step 0"),
    ],
)
def test_unusable_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], message: str):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "mine.npz", **columns)
    refused(tmp_path / "mine.npz", message)
    assert not (tmp_path / "sprung").exists(), "nothing is unpickled"


@pytest.mark.parametrize("compressed", [False, True])
def test_no_flipped_bit_and_no_truncation_is_read(tmp_path: Path, compressed: bool):
    """Neither in the data nor in names, sizes and headers: what is read equals the original, or is refused."""
    path = tmp_path / "mine.npz"
    task = np.array([f"t{index % 3}" for index in range(30)])
    (np.savez_compressed if compressed else np.savez)(path, grids=GRIDS, split=SPLIT, task=task)
    whole, good = path.read_bytes(), read_dataset(path).fingerprint()
    for length in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        refused(path)
    places = {whole.index(b"(30, 16, 16)") + 1 if not compressed else 40}
    places |= {place for name in (b"split.npy", b"task.npy") for place in (whole.index(name), whole.rindex(name))}
    places |= {int(place) for place in np.random.RandomState(0).randint(0, len(whole), 150)}
    different = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        try:
            assert read_dataset(path).fingerprint() == good, place
        except InputError:
            different += 1
    assert different > 100


def test_neither_zip_nor_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "a.npz": b"PK\x03\x04 nonsense",
        "b.npy": b"\x93NUMPY\x01\x00v\x00{'descr': 'nonsense'",
        "c.npy": pickle.dumps(Trap()),
        "d.npy": b"",
        "e.txt": b"0 1 2",
    }.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)
    refused(tmp_path / "f.npz", "no such file")
    os.mkfifo(tmp_path / "g.npz")
    refused(tmp_path / "g.npz", "not a regular file")
    (tmp_path / "h.npy").symlink_to("/dev/zero")
    refused(tmp_path / "h.npy", "not a regular file")
    assert not (tmp_path / "sprung").exists()


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bomb.npz", "1 GiB of arrays, the limit is 768 MiB"),  # 4 MB, which took 4.6 GB of memory
        ("large.npy", "1 GiB of arrays, the limit is 768 MiB"),
        ("shape.npy", "damaged"),
        ("header.npy", "invalid header"),  # 28 bytes, which took 8 GB of memory
        ("long.npy", "longer than its header says"),
    ],
)
def test_files_are_checked_before_memory_is_taken(tmp_path: Path, name: str, message: str):
    path = tmp_path / name
    if name == "bomb.npz":
        archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with archive, archive.open("grids.npy", "w") as member:
            for _ in range(1024):
                member.write(bytes(2**20))
    elif name == "large.npy":
        header = npy_header("(4194304, 16, 16)")
        path.write_bytes(header)
        os.truncate(path, len(header) + 2**30)
    elif name == "header.npy":
        path.write_bytes(b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(16))
    else:
        path.write_bytes(npy_header("(16777216, 16, 16)" if name == "shape.npy" else "(1, 16, 16)") + bytes(2**20))
    tracemalloc.start()
    refused(path, message)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def task(*grids: list[list[int]]) -> dict:
    return {"train": [{"input": grid, "output": grid} for grid in grids], "test": [{"input": grids[0]}]}


def test_one_arc_task(tmp_path: Path):
    name, one = next(iter(published()["arcagi train"].items()))
    (tmp_path / f"{name}.json").write_text(json.dumps(one))
    dataset = read_dataset(tmp_path / f"{name}.json")
    assert dataset.name == name
    assert set(dataset.task.tolist()) == {name}
    expected = [pair[side] for part in ("train", "test") for pair in one[part] for side in ("input", "output")]
    for grid, (height, width), rows in zip(dataset.x, dataset.shape, expected, strict=True):
        assert grid[:height, :width].tolist() == rows
        assert grid.sum() == np.sum(rows)
    assert counts(dataset)[0] > max(counts(dataset)[1:]) > 0


def test_a_folder_of_tasks_is_split_by_task(tmp_path: Path):
    for index in range(20):
        folder = tmp_path / "tasks" / ("training" if index % 2 else "evaluation")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02}.json").write_text(json.dumps(task([[index % 10, 1]], [[2], [index % 10]], [[0] * 17])))
    dataset = read_dataset(tmp_path / "tasks")
    splits = {name: set(dataset.split[dataset.task == name].tolist()) for name in dataset.task.tolist()}
    assert all(len(split) == 1 for split in splits.values())
    assert np.bincount([split.pop() for split in splits.values()]).tolist() == [16, 2, 2]
    assert len(dataset.x) == 20 * 5
    assert dataset.notes == ("40 grids over 16x16 were left out",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not an ARC task"),
        ("[" * 100_000, "not an ARC task"),
        ("{}", "no ARC grids"),
        ('{"a": 3}', "not an ARC task"),
        ('{"\\ud800": {"train": [{"input": [[1]]}]}}', "not an ARC task"),
        ('{"train": [{"input": [[1, 2], [3]]}]}', r"train\[0\]\.input is not a grid of integers 0-9"),
        ('{"train": [{"input": [[1, 10]]}]}', "is not a grid"),
        ('{"train": [{"input": [[1.5]]}]}', "is not a grid"),
        ('{"train": [{"input": [[123456789012345678901234567890]]}]}', "is not a grid"),
        ('{"train": [{"input": []}]}', "is not a grid"),
        ('{"test": [{"input": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7]]}]}', "1 grids over 16x16"),
    ],
)
def test_unusable_json(tmp_path: Path, text: str, message: str):
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    refused(tmp_path / "bad.json", message)
