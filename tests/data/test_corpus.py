from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.conditions import columns, measure
from arcvae_cli.data.arrays import SPLITS, Dataset, padded
from arcvae_cli.data.corpus import GridCorpus, StringCorpus, open_corpus
from arcvae_cli.data.files import write_dataset
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models.grammar import Structure
from arcvae_cli.settings import DataSettings


class NoReadBack(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert str(func).split(".")[1] not in {"_local_scalar_dense", "nonzero", "masked_select"}, func
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def equations() -> Dataset:
    return build_drawn(read_grammar("equations"), 15, 300, 0)


def test_a_corpus_holds_what_the_arrays_hold(arc: Dataset, equations: Dataset):
    for arrays, corpus in ((arc, GridCorpus(arc)), (equations, StringCorpus(equations))):
        for split in SPLITS:
            rows, indices = arrays.rows(split), torch.arange(corpus.size(split)).flip(0)
            batch = corpus.batch(split, indices)
            assert batch.x.dtype == torch.int64 and (batch.x.numpy() == arrays.x[rows[::-1]]).all()
            if arrays is arc:
                assert batch.valid is None and (corpus.grids(split).numpy() == arc.x[rows]).all()
                assert (corpus.extents(split, indices) == arc.shape[rows[::-1]]).all()
            else:
                assert torch.equal(batch.valid, batch.x != 11)
        counts = np.bincount(arrays.x[arrays.rows("train")].ravel(), minlength=corpus.num_classes)
        counts[11:] = 0  # padding counts nowhere
        assert corpus.class_counts().tolist() == counts.tolist()
        assert corpus.mean_positions == pytest.approx(counts.sum() / corpus.size("train"))


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("permutes", [True, False])
def test_augmentation_of_any_canvas(turns: bool, permutes: bool):
    stream, canvas = np.random.RandomState(0), Canvas(12, 20, 7, 2, 6, arc=False)
    grids = [stream.randint(0, 6, (stream.randint(1, 13), stream.randint(1, 21))) for _ in range(300)]
    x, shape = padded(grids, canvas)
    arrays = Dataset("levels", x, np.zeros(300, np.uint8), shape, canvas=canvas)
    corpus = GridCorpus(arrays, data=DataSettings(augment=True, symmetries=turns, permute_classes=permutes))
    assert (corpus.augment, corpus.positions, corpus.num_classes, corpus.background) == (True, (12, 20), 7, 2)
    torch.manual_seed(0)
    batch, plain = corpus.batch("train", torch.arange(300), augment=True), corpus.batch("train", torch.arange(300))
    torch.manual_seed(0)
    symmetry = torch.randint(8, (300,)) if turns else torch.zeros(300, dtype=torch.int64)
    order = torch.rand(300, 5).argsort(dim=1) if permutes else torch.arange(5).expand(300, 5)
    for index, grid in enumerate(grids):
        height, width = grid.shape
        which = int(symmetry[index]) if width <= 12 else int(symmetry[index]) // 2 * 2
        turned = np.rot90(grid, which % 4)[:, :: -1 if which >= 4 else 1]
        palette = np.arange(7)
        palette[[0, 1, 3, 4, 5]] = np.array([0, 1, 3, 4, 5])[order[index]]
        expected, scored = np.full((12, 20), 6), np.zeros((12, 20), bool)
        expected[: turned.shape[0], : turned.shape[1]] = palette[turned]
        scored[: turned.shape[0], : turned.shape[1]] = True
        assert (batch.x[index].numpy() == expected).all() and (batch.scored[index].numpy() == scored).all(), index
        assert plain.scored[index, :height, :width].all() and plain.scored[index].sum() == grid.size
    assert not GridCorpus(arrays).augment and GridCorpus(arrays).fingerprint() == corpus.fingerprint()


@pytest.mark.parametrize("known", [True, False], ids=["rectangles", "canvases"])
def test_conditions_are_the_attributes_of_the_grids_as_they_come(arc: Dataset, known: bool):
    halves, shape = arc.x.copy(), arc.shape.copy()
    halves[::4, :, 8:] = halves[::4, :, 7::-1]  # every fourth is symmetric, in one direction
    shape[::4, 1], halves[7] = 16, 0
    corpus = GridCorpus(replace(arc, x=halves, shape=shape if known else None))
    for augment in (True, False):
        torch.manual_seed(0)
        batch = corpus.batch("train", torch.arange(corpus.size("train")), augment=augment, conditions=True)
        measured = measure(batch.x.numpy().astype(np.uint8), ARC)
        assert batch.conditions.dtype == torch.int64 and (batch.conditions.numpy() == measured).all()
        lr, ud = (measured[:, columns(ARC)[name]] for name in ("symmetry_lr", "symmetry_ud"))
        assert (lr & ~ud).any() and ((ud & ~lr).any() or not augment)


def test_conditions_change_nothing_else_and_batches_are_made_without_a_read_back(arc: Dataset):
    corpus, indices = GridCorpus(arc), torch.arange(64)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReadBack():
        indices.sum().item()
    torch.manual_seed(5)
    without = corpus.batch("train", indices, augment=True)
    torch.manual_seed(5)
    assert torch.equal(without.x, corpus.batch("train", indices, augment=True, conditions=True).x)
    with NoReadBack():
        corpus.batch("train", indices, augment=True, conditions=True)
        corpus.batch("train", indices)


def test_open_corpus(tmp_path: Path, arc: Dataset, equations: Dataset):
    grids, ids, strings = tmp_path / "grids.npz", tmp_path / "ids.npz", tmp_path / "strings.txt"
    write_dataset(grids, arc)
    corpus = open_corpus(DataSettings(path=grids, limit=80))
    assert [corpus.size(split) for split in SPLITS] == [80, 10, 100] and corpus.augment
    larger = open_corpus(DataSettings(path=grids), structure=Canvas(20, 18, 12, 0, 11, arc=False))
    assert (larger.positions, larger.num_classes, larger.augment) == ((20, 18), 12, False)
    assert larger.batch("val", torch.arange(9)).scored is not None
    write_dataset(ids, equations)
    rules = equations.rules
    assert open_corpus(DataSettings(path=ids), "cpu", ("test",), Structure(rules, 20)).positions == (20,)
    shorter = open_corpus(DataSettings(path=ids, limit=80), "cpu", ("train",), Structure(rules, 12))
    assert shorter.positions == (12,) and "longer than the model's 12 steps" in shorter.notes[-1]
    strings.write_text("\n".join(equations.strings(np.arange(100))))
    told: list[tuple[int, int]] = []
    mine = open_corpus(
        DataSettings(path=strings), "cpu", ("test",), Structure(rules, 15), tell=lambda *done: told.append(done)
    )
    assert sum(mine.size(split) for split in SPLITS) == 100 and told == [(100, 100)]
    np.savez(tmp_path / "test.npz", test=arc.x)
    for path, given, message in (
        (tmp_path / "test.npz", None, "the train split is empty"),
        (ids, Structure(read_grammar("smiles").rules, 15), "not that of the model"),
        (ids, Structure(rules, 5), "the train split is empty"),
        (grids, Canvas(12, 16), "do not fit the model's canvas of 12x16, 10 classes"),
    ):
        with pytest.raises(InputError, match=message):
            open_corpus(DataSettings(path=path), structure=given)
