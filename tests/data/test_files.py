from __future__ import annotations

import json
import pickle
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arcvae_cli.data.arc import _published
from arcvae_cli.data.arrays import SPLITS, GridArrays
from arcvae_cli.data.files import read_grids, write_grids
from arcvae_cli.errors import ArcvaeError, InputError

STREAM = np.random.RandomState(3)
GRIDS = STREAM.randint(0, 10, (30, 16, 16)).astype(np.uint8)
SPLIT = np.repeat(np.arange(3, dtype=np.uint8), [20, 5, 5])


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def counts(arrays: GridArrays) -> list[int]:
    return [arrays.rows(split).size for split in SPLITS]


def test_round_trip(tmp_path: Path, arc: GridArrays, canvases: GridArrays):
    for arrays in (arc, canvases):
        write_grids(tmp_path / "corpus.npz", arrays)
        read = read_grids(tmp_path / "corpus.npz")
        assert read.fingerprint() == arrays.fingerprint()
        assert read.name == "corpus"
        assert (read.shape is None, read.task is None) == (arrays.shape is None, arrays.task is None)
    assert stat.S_IMODE((tmp_path / "corpus.npz").stat().st_mode) & stat.S_IRUSR
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.npz"]


def test_a_failed_write_leaves_what_stood_there_and_nothing_else(
    tmp_path: Path, canvases: GridArrays, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "mine.npz"
    write_grids(target, canvases)
    before = target.read_bytes()

    def full_disk(file, **columns):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(ArcvaeError, match="No space left"):
        write_grids(target, replace(canvases, grids=canvases.grids[::-1]))
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]


@pytest.mark.parametrize(
    "split",
    [SPLIT, SPLIT.astype(np.int64), np.array(SPLITS)[SPLIT], np.array([b"train", b"validation", b"test"])[SPLIT]],
    ids=["uint8", "int64", "str", "bytes"],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_grids_and_split(tmp_path: Path, split: np.ndarray, save):
    save(tmp_path / "mine.npz", grids=GRIDS.astype(np.int32), split=split, other=np.array([Trap()], object))
    arrays = read_grids(tmp_path / "mine.npz")
    assert arrays.grids.dtype == arrays.split.dtype == np.uint8
    assert (arrays.grids == GRIDS).all()
    assert (arrays.split == SPLIT).all()
    assert not arrays.notes


def test_an_array_a_split(tmp_path: Path):
    np.savez(tmp_path / "mine.npz", test=GRIDS[25:], train=GRIDS[:20], val=GRIDS[20:25])
    arrays = read_grids(tmp_path / "mine.npz")
    assert (arrays.grids == GRIDS).all()
    assert (arrays.split == SPLIT).all()
    np.savez(tmp_path / "mine.npz", train=GRIDS[:3], val=GRIDS[:0], test=GRIDS[3:5, :4, :7])
    arrays = read_grids(tmp_path / "mine.npz")
    assert counts(arrays) == [3, 0, 2]
    assert arrays.shape.tolist() == [[16, 16]] * 3 + [[4, 7]] * 2


def test_npy_is_split_by_content(tmp_path: Path):
    grids = np.concatenate([GRIDS, GRIDS[:10]])
    np.save(tmp_path / "mine.npy", np.asfortranarray(grids))
    arrays = read_grids(tmp_path / "mine.npy")
    assert (arrays.grids == grids).all()
    assert (arrays.split[30:] == arrays.split[:10]).all(), "duplicates share a split"
    assert np.bincount(arrays.split[:30]).tolist() == [24, 3, 3]
    assert "hash of their content" in arrays.notes[0]


def test_smaller_grids_are_padded(tmp_path: Path):
    np.save(tmp_path / "mine.npy", GRIDS[:, :9, :12])
    arrays = read_grids(tmp_path / "mine.npy")
    assert (arrays.grids[:, :9, :12] == GRIDS[:, :9, :12]).all()
    assert not arrays.grids[:, 9:].any()
    assert not arrays.grids[:, :, 12:].any()
    assert (arrays.shape == [9, 12]).all()


def with_shape(height: int, width: int) -> dict[str, np.ndarray]:
    return {
        "grids": np.ones((2, 16, 16), np.uint8),
        "split": np.zeros(2, int),
        "shape": np.array([[16, 16], [height, width]]),
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"images": GRIDS}, "holds no grids"),
        ({"grids": GRIDS[0]}, r"grids: has shape \(16, 16\)"),
        ({"grids": GRIDS[None]}, r"grids: has shape \(1, 30, 16, 16\)"),
        ({"grids": GRIDS[:0]}, "grids: holds no grids"),
        ({"train": GRIDS[:0], "val": GRIDS[:0]}, "holds no grids"),
        ({"grids": np.zeros((3, 30, 30), np.uint8)}, "grids are 30x30"),
        ({"grids": np.zeros((3, 0, 16), np.uint8)}, "grids are 0x16"),
        ({"grids": GRIDS.astype(float)}, "grids: has dtype float64"),
        ({"grids": GRIDS > 3}, "grids: has dtype bool"),
        ({"grids": np.where(np.arange(30)[:, None, None] == 7, 10, GRIDS)}, "grid 7 has colours outside 0-9"),
        ({"val": GRIDS.astype(int) - 1}, "val: grid 0 has colours outside 0-9"),
        ({"grids": np.array([Trap()], object)}, "pickled"),
        ({"grids": GRIDS, "split": np.array(["train"] * 30, object)}, "split: holds pickled"),
        ({"grids": GRIDS, "split": SPLIT[:-1]}, r"split: has shape \(29,\) for 30 grids"),
        ({"grids": GRIDS, "split": SPLIT + 1}, "split: runs from 1 to 3"),
        ({"grids": GRIDS, "split": SPLIT.astype(float)}, "split: has dtype float64"),
        ({"grids": GRIDS, "split": np.array(["train", "dev"])[SPLIT % 2]}, "there is no split 'dev'"),
        ({"grids": GRIDS, "split": np.full(30, b"\xff")}, "split: is not UTF-8"),
        ({"grids": GRIDS, "split": SPLIT, "shape": np.full((30, 3), 16)}, "shape: is int64"),
        ({"grids": GRIDS, "split": SPLIT, "shape": np.full((30, 2), 17)}, "shape: has sides from 17 to 17"),
        (with_shape(15, 16), "shape: grid 1 has colours outside its 15x16"),
        (with_shape(16, 3), "shape: grid 1 has colours outside its 16x3"),
        ({"grids": GRIDS, "split": SPLIT, "task": np.zeros((30, 2))}, "task: is float64"),
    ],
)
def test_unusable_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, np.ndarray], message: str):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "mine.npz", **columns)
    with pytest.raises(InputError, match=message) as raised:
        read_grids(tmp_path / "mine.npz")
    assert str(tmp_path / "mine.npz") in raised.value.what
    assert raised.value.fix
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("compressed", [False, True])
def test_cut_short_or_flipped(tmp_path: Path, compressed: bool):
    path = tmp_path / "mine.npz"
    (np.savez_compressed if compressed else np.savez)(path, grids=GRIDS, split=SPLIT)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_grids(path)
    place = whole.index(b"grids.npy") + len(whole) // 4
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(InputError):
        read_grids(path)


def test_neither_zip_nor_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "a.npz": b"PK\x03\x04 nonsense",
        "b.npy": b"\x93NUMPY\x01\x00v\x00{'descr': 'nonsense'",
        "c.npy": pickle.dumps(Trap()),
        "d.npy": b"",
        "g.npy": header((1, 16, 16)).replace(b"}", b"{") + bytes(256),
        "e.txt": b"0 1 2",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_grids(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_grids(tmp_path / "f.npz")
    assert not (tmp_path / "sprung").exists()


def header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(np, "frombuffer", None)  # nothing is made of it
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("grids.npy", header((2**40, 16, 16)) + bytes(2**20))
    with pytest.raises(InputError, match="GiB, over the 2 that are read"):
        read_grids(tmp_path / "bomb.npz")
    for promised in (2**20, 2**10, -1):  # more than there is, less, and what would be read to its end
        with zipfile.ZipFile(tmp_path / "liar.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("grids.npy", header((promised, 16, 16)) + bytes(2**20))
        with pytest.raises(InputError, match=r"does not hold the|damaged"):
            read_grids(tmp_path / "liar.npz")


def task(*grids: list[list[int]]) -> dict:
    return {"train": [{"input": grid, "output": grid} for grid in grids], "test": [{"input": grids[0]}]}


def test_one_arc_task(tmp_path: Path):
    name, published = next(iter(_published()["arcagi train"].items()))
    (tmp_path / f"{name}.json").write_text(json.dumps(published))
    arrays = read_grids(tmp_path / f"{name}.json")
    assert arrays.name == name
    assert set(arrays.task.tolist()) == {name}
    expected = [pair[side] for part in ("train", "test") for pair in published[part] for side in ("input", "output")]
    assert len(arrays.grids) == len(expected)
    for grid, (height, width), rows in zip(arrays.grids, arrays.shape, expected, strict=True):
        assert grid[:height, :width].tolist() == rows
        assert grid.sum() == np.sum(rows)
    assert counts(arrays)[0] > max(counts(arrays)[1:]) > 0


def test_a_folder_of_tasks_is_split_by_task(tmp_path: Path):
    for index in range(20):
        folder = tmp_path / "tasks" / ("training" if index % 2 else "evaluation")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02}.json").write_text(json.dumps(task([[index % 10, 1]], [[2], [index % 10]], [[0] * 17])))
    arrays = read_grids(tmp_path / "tasks")
    splits = {name: set(arrays.split[arrays.task == name].tolist()) for name in arrays.task.tolist()}
    assert len(splits) == 20
    assert all(len(split) == 1 for split in splits.values())
    assert np.bincount([split.pop() for split in splits.values()]).tolist() == [16, 2, 2]
    assert len(arrays.grids) == 20 * 5
    assert arrays.notes == ("40 grids over 16x16 were left out",)


def test_many_tasks_in_a_file(tmp_path: Path):
    (tmp_path / "all.json").write_text(json.dumps({"a": task([[1]]), "b": task([[2, 3]])}))
    arrays = read_grids(tmp_path / "all.json")
    assert arrays.task.tolist() == ["a"] * 3 + ["b"] * 3
    assert arrays.shape.tolist() == [[1, 1]] * 3 + [[1, 2]] * 3
    assert (arrays.split[:3] == arrays.split[0]).all(), "two tasks: by content, equal grids together"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\xff", "holds no ARC|cannot be read"),
        ("[[0, 1]]", "holds no ARC task"),
        ("{}", "holds no ARC grids"),
        ('{"a": 3}', "a: is no ARC task"),
        ('{"train": [3]}', "is no ARC task"),
        ('{"train": [{"input": [[1, 2], [3]]}]}', r"train\[0\]\.input: has rows of different lengths"),
        ('{"train": [{"input": [[1, 10]]}]}', r"train\[0\]\.input: has colours outside 0-9"),
        ('{"train": [{"input": [[1, -1]]}]}', "colours outside 0-9"),
        ('{"train": [{"input": [[1.5]]}]}', "is no grid of integers"),
        ('{"train": [{"input": [["1"]]}]}', "is no grid of integers"),
        ('{"train": [{"input": [[123456789012345678901234567890]]}]}', "colours outside 0-9"),
        ('{"train": [{"input": []}]}', "is no grid of integers"),
        ('{"test": [{"input": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7]]}]}', "only 1 larger ones"),
    ],
)
def test_unusable_json(tmp_path: Path, text: str, message: str):
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as raised:
        read_grids(tmp_path / "bad.json")
    assert "bad.json" in raised.value.what
    assert raised.value.fix


def test_a_folder_without_json(tmp_path: Path):
    with pytest.raises(InputError, match="holds no ARC grids"):
        read_grids(tmp_path)
