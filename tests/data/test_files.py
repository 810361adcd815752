import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.data import arrays
from arcvae_cli.data.arrays import SPLITS, Dataset, on_canvas
from arcvae_cli.data.files import from_columns, read_dataset, write_dataset
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import read_grammar
from arcvae_cli.settings import DataSettings

GRIDS = np.random.RandomState(3).randint(0, 10, (30, 16, 16)).astype(np.uint8)
SPLIT = np.repeat(np.arange(3, dtype=np.uint8), [20, 5, 5])
EQUATIONS = read_grammar("equations")
DRAWN = build_drawn(EQUATIONS, 15, 500, 1)
BARE = replace(DRAWN, rules=replace(DRAWN.rules, symbols=("0", "1"), rhs=None, text=None), grammar=None)
TEXT = np.array(EQUATIONS.text)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def refused(path: Path, message: str = ".") -> None:
    """Reading it is an InputError of one line that names the file, with a fix."""
    with pytest.raises(InputError) as raised:
        read_dataset(path)
    assert re.search(message, f"{raised.value.what}; {raised.value.fix}")
    assert path.stem in raised.value.what and raised.value.fix and raised.value.what.isprintable()


@pytest.mark.parametrize("name", ["arc", "canvases", "drawn", "bare"])
def test_round_trip(tmp_path: Path, name: str, arc: Dataset, canvases: Dataset):
    dataset = {"arc": arc, "canvases": canvases, "drawn": DRAWN, "bare": BARE}[name]
    write_dataset(tmp_path / "mine.npz", dataset)
    read = read_dataset(tmp_path / "mine.npz")
    assert (read.name, read.fingerprint()) == ("mine", dataset.fingerprint())
    assert (read.x.dtype, read.split.dtype, read.kind) == (dataset.x.dtype, np.uint8, dataset.kind)
    assert (read.rules, read.grammar, read.origin) == (dataset.rules, dataset.grammar, dataset.origin)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]


def test_a_file_of_an_earlier_version(tmp_path: Path):
    text, origin = (np.frombuffer(text.encode(), np.uint8) for text in (EQUATIONS.text, '{"how": "drawn"}'))
    np.savez(tmp_path / "mine.npz", ids=DRAWN.x, split=DRAWN.split, grammar=text, origin=origin)
    dataset = read_dataset(tmp_path / "mine.npz")
    assert (dataset.fingerprint(), dataset.origin.how) == (DRAWN.fingerprint(), "drawn")


def test_arrays_of_the_user(tmp_path: Path):
    path = tmp_path / "mine.npz"
    for split in (SPLIT.astype(np.int64), np.array(["train", "validation", "test"])[SPLIT]):
        np.savez(path, grids=GRIDS.astype(np.int32), split=split, other=np.array([Trap()], object))
        dataset = read_dataset(path)
        assert dataset.x.dtype == dataset.split.dtype == np.uint8 and not dataset.notes
        assert (dataset.x == GRIDS).all() and (dataset.split == SPLIT).all()
    np.savez(path, train=GRIDS[:3], val=GRIDS[:0], test=GRIDS[3:5, :4, :7])
    dataset = read_dataset(path, to=DataSettings(path=path, canvas=20, outside="class"))
    assert dataset.split.tolist() == [0, 0, 0, 2, 2] and dataset.shape.tolist() == [[16, 16]] * 3 + [[4, 7]] * 2
    expected = np.full((5, 20, 20), 10)
    expected[:3, :16, :16], expected[3:, :4, :7] = GRIDS[:3], GRIDS[3:5, :4, :7]
    assert (dataset.x == expected).all() and dataset.canvas == Canvas(20, 20, 11, 0, 10, arc=False)
    grids = np.concatenate([GRIDS, GRIDS[:10]])
    np.save(tmp_path / "mine.npy", np.asfortranarray(grids))
    dataset = read_dataset(tmp_path / "mine.npy")
    assert (dataset.x == grids).all() and "hash of their content" in dataset.notes[0]
    assert (dataset.split[30:] == dataset.split[:10]).all(), "duplicates share a split"
    assert np.bincount(dataset.split[:30]).tolist() == [24, 3, 3]
    ids = np.where(DRAWN.x == 11, -1, DRAWN.x.astype(np.int64))
    np.savez(path, ids=ids, grammar=TEXT, split=np.array(SPLITS)[DRAWN.split])
    dataset = read_dataset(path)
    assert (dataset.x == DRAWN.x).all() and (dataset.split == DRAWN.split).all()
    np.savez(path, ids=ids)
    assert (read_dataset(path, EQUATIONS).x == DRAWN.x).all()
    refused(path, "ids without a grammar")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"train": GRIDS[:0], "val": GRIDS[:0]}, "no grids"),
        ({"grids": GRIDS[:0]}, r"no grids of classes: uint8 \(0, 16, 16\); give integers"),
        ({"grids": np.zeros((3, 65, 30), np.uint8)}, r"\(3, 65, 30\), 0 to 0; give .* 1x1 to 64x64 cells"),
        ({"grids": GRIDS.astype(np.int16) - 1}, "int16 .*, -1 to 8; give integers 0-255"),
        ({"grids": GRIDS * np.int64(99)}, "0 to 891; give integers 0-255"),
        ({"grids": GRIDS.astype(np.float32)}, r"float32 .* as by `grids.astype\(np.uint8\)`"),
        ({"train": GRIDS, "val": GRIDS[:, :5, :7]}, "grids of 2 sizes from 5x7; set --canvas 16x16"),
        ({"grids": GRIDS, "groups": np.arange(29)}, "groups: invalid"),
        ({"grids": np.array([Trap()], object)}, "allow_pickle=False"),
        ({"grids": GRIDS, "split": np.array(["train", "dev"])[SPLIT % 2]}, "split: invalid"),
        ({"grids": GRIDS, "task": np.zeros((30, 2))}, "groups: invalid"),
        ({"grids": GRIDS, "shape": np.full((30, 2), 17)}, "shape: invalid"),
        ({"ids": np.zeros((3, 4)), "grammar": TEXT}, "ids: invalid"),
        ({"ids": np.array([[3, 7, 11], [3, 7, 7]]), "grammar": TEXT}, "row 1, step 2: rule 7"),
    ],
)
def test_unusable_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], message: str):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "mine.npz", **columns)
    refused(tmp_path / "mine.npz", message)
    assert not (tmp_path / "sprung").exists(), "nothing is unpickled"


def test_unusable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "a.npz": b"PK\x03\x04 nonsense",
        "b.npy": b"\x93NUMPY\x01\x00v\x00{'descr': 'nonsense'",
        "c.npy": pickle.dumps(Trap()),
        "f.json": b"not json",
        "h.json": b'{"a": 3}',
        "grid.json": b'{"train": [{"input": [[1], [2, 3]]}]}',
        "colour.json": b'{"train": [{"input": [[10]]}]}',
        "large.json": json.dumps({"test": [{"input": [[0] * 17]}]}).encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)
    refused(tmp_path / "none.npz", "no such file")
    assert not (tmp_path / "sprung").exists()
    np.savez(tmp_path / "mine.npz", grids=GRIDS, split=SPLIT)
    np.save(tmp_path / "mine.npy", GRIDS)
    monkeypatch.setattr(arrays, "ARRAY_BYTES", 7000)
    for name in ("mine.npz", "mine.npy"):
        refused(tmp_path / name, "of arrays, the limit is 6.84 KiB")


def test_arc_tasks_are_read_whole_and_split_by_task(tmp_path: Path):
    for index in range(20):
        grids = [[[index % 10, 1]], [[2], [index % 10]], [[0] * 17]]
        one = {"train": [{"input": grid, "output": grid} for grid in grids], "test": [{"input": grids[0]}]}
        folder = tmp_path / "tasks" / ("training" if index % 2 else "evaluation")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02}.json").write_text(json.dumps(one))
    dataset = read_dataset(tmp_path / "tasks")
    assert len(dataset.x) == 20 * 5 and "40 grids over 16x16 were left out" in dataset.notes[0]
    whole = read_dataset(tmp_path / "tasks", to=DataSettings(path=tmp_path, canvas="17x18"))
    assert whole.canvas == Canvas(17, 18) and len(whole.x) == 20 * 7 and whole.count_grid and not dataset.count_grid
    splits = {name: set(dataset.split[dataset.task == name].tolist()) for name in dataset.task.tolist()}
    assert all(len(split) == 1 for split in splits.values())
    assert np.bincount([split.pop() for split in splits.values()]).tolist() == [16, 2, 2]
    single = read_dataset(tmp_path / "tasks" / "training" / "07.json")
    assert (single.name, set(single.task.tolist())) == ("07", {"07"})
    written = [grid[:height, :width].tolist() for grid, (height, width) in zip(single.x, single.shape, strict=True)]
    assert written == [[[7, 1]]] * 2 + [[[2], [7]]] * 2 + [[[7, 1]]]


def test_grids_of_any_canvas(tmp_path: Path):
    levels = np.random.RandomState(1).randint(0, 9, (50, 12, 20))
    columns = {"grids": levels, "groups": np.repeat(np.arange(10), 5)}
    made = from_columns(Path("levels"), columns)
    assert made.canvas == Canvas(12, 20, 9, arc=False) and made.shape is None and "groups are split" in made.notes[0]
    assert all(len({*made.split[made.task == str(group)].tolist()}) == 1 for group in range(10))
    padded = on_canvas(made, DataSettings(canvas="30x24", background="none", outside="class"))
    write_dataset(tmp_path / "made.npz", padded)
    again = read_dataset(tmp_path / "made.npz")
    assert again.canvas == padded.canvas == Canvas(30, 24, 10, None, 9, arc=False)
    assert again.fingerprint() == padded.fingerprint() != made.fingerprint() and again.count_grid
    assert (again.x[:, :12, :20] == levels).all() and (again.x[:, 12:] == 9).all() and (again.x[:, :, 20:] == 9).all()
    assert from_columns(Path("two"), {"grids": levels > 4}).canvas.classes == 2
    for to, message in (
        (DataSettings(canvas="12x19"), "grids up to 12x20 of 9 classes do not fit the canvas of 12x19, 9 classes"),
        (DataSettings(classes=8), "9 classes do not fit the canvas of 12x20, 8 classes"),
        (DataSettings(canvas=20, background="none"), "no class for what is around them"),
        (ARC, "grids up to 12x20 of 9 classes do not fit the model's canvas of 16x16, 10 classes"),
    ):
        with pytest.raises(InputError, match=message):
            from_columns(Path("levels"), columns, to)
    assert on_canvas(made, DataSettings(background=9)).canvas == Canvas(12, 20, 10, 9, arc=False)
    narrow = from_columns(Path("narrow"), {"grids": levels[:, :2]})
    assert narrow.canvas.shape == (3, 20) and set(map(tuple, narrow.shape.tolist())) == {(2, 20)}
    small = from_columns(Path("small"), {"grids": levels[:, :5, :6]}, Canvas(12, 20, 11, 0, 10, arc=False))
    assert small.canvas.shape == (12, 20) and (small.x[:, 5:] == 10).all()
    maps = replace(made, canvas=replace(made.canvas, tiles="abcdefghi"))
    other = on_canvas(maps, replace(maps.canvas, tiles="ihgfedcba"))
    assert (other.x == 8 - levels).all(), "the same tiles are the same classes"


def test_folders_of_arrays(tmp_path: Path):
    for name, grids in {"train/a": GRIDS[:9], "train/b": GRIDS[9], "val/c": GRIDS[10:12]}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", grids)
    dataset = read_dataset(tmp_path)
    assert (dataset.x == GRIDS[:12]).all() and dataset.split.tolist() == [0] * 10 + [1] * 2 and dataset.canvas == ARC
    np.save(tmp_path / "other.npy", GRIDS[:5])
    assert len({*read_dataset(tmp_path).split[:5].tolist()}) == 1, "a file is a group"
    np.savez(tmp_path / "more.npz", grids=GRIDS, split=SPLIT)
    with pytest.raises(InputError, match="not only `grids`"):
        read_dataset(tmp_path)
