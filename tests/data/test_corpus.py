from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from arcvae_cli.conditions import PLACE, attributes
from arcvae_cli.data.arrays import SPLITS, GridArrays
from arcvae_cli.data.corpus import Corpus, GridCorpus, apply, open_corpus
from arcvae_cli.data.files import write_grids
from arcvae_cli.data.symmetries import transform
from arcvae_cli.errors import InputError
from arcvae_cli.settings import DataSettings


class NoReadBack(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert str(func).split(".")[1] not in {"_local_scalar_dense", "nonzero", "masked_select"}, func
        return func(*args, **(kwargs or {}))


def draws(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    symmetry = torch.arange(count) % 8
    return symmetry, torch.rand(count, 9, generator=generator).argsort(dim=1)


def test_a_corpus_holds_what_the_arrays_hold(arc: GridArrays):
    corpus: Corpus = GridCorpus(arc)
    assert (corpus.name, corpus.num_classes, corpus.positions, corpus.background) == ("arc", 10, (16, 16), 0)
    assert [corpus.size(split) for split in SPLITS] == [800, 100, 100]
    for split in SPLITS:
        rows = arc.rows(split)
        indices = torch.arange(len(rows)).flip(0)
        batch = corpus.batch(split, indices)
        assert batch.x.dtype == torch.int64
        assert batch.valid is None
        assert (batch.x.numpy() == arc.grids[rows[::-1]]).all()
        assert (corpus.grids(split).numpy() == arc.grids[rows]).all()
        assert (corpus.shapes(split).numpy() == arc.shape[rows]).all()
    assert corpus.fingerprint == arc.fingerprint()


def test_splits_may_stand_in_any_order(canvases: GridArrays):
    shuffled = replace(canvases, split=np.random.RandomState(0).permutation(canvases.split))
    corpus = GridCorpus(shuffled)
    for split in SPLITS:
        assert (corpus.grids(split).numpy() == canvases.grids[shuffled.rows(split)]).all()
        assert corpus.shapes(split) is None


def test_class_counts_are_of_the_training_cells(arc: GridArrays):
    counts = GridCorpus(arc).class_counts()
    assert counts.dtype == torch.int64
    assert counts.tolist() == np.bincount(arc.grids[arc.rows("train")].ravel(), minlength=10).tolist()


@pytest.mark.parametrize("known", [True, False], ids=["rectangles", "canvases"])
def test_augmentation_is_that_of_the_plain_reference(arc: GridArrays, known: bool):
    arrays = arc if known else replace(arc, shape=None)
    corpus = GridCorpus(arrays)
    rows = arrays.rows("train")[:320]
    symmetry, colours = draws(320)
    moves = corpus._moves["train"]
    table_rows = symmetry if moves is None else moves[:320] + symmetry
    made = apply(corpus._grids["train"][:320], corpus._table, table_rows, colours).numpy()
    for index, row in enumerate(rows):
        height, width = arrays.shape[row] if known else (16, 16)
        turned = np.rot90(arrays.grids[row, :height, :width], int(symmetry[index]) % 4)
        turned = turned[:, ::-1] if symmetry[index] >= 4 else turned
        palette = np.concatenate([[0], colours[index].numpy() + 1])
        expected = np.pad(palette[turned], ((0, 16 - turned.shape[0]), (0, 16 - turned.shape[1])))
        assert (made[index] == expected).all(), index


def test_augmentation_and_the_builder_of_arc_move_alike(arc: GridArrays):
    corpus = GridCorpus(arc)
    rows = arc.rows("test")
    symmetry, colours = draws(len(rows), seed=1)
    made = apply(corpus._grids["test"], corpus._table, corpus._moves["test"] + symmetry, colours)
    palette = np.pad(colours.numpy() + 1, ((0, 0), (1, 0))).astype(np.uint8)
    expected, _ = transform(arc.grids[rows], arc.shape[rows], symmetry.numpy(), palette)
    assert (made.numpy() == expected).all()


def test_all_symmetries_and_colours_are_drawn_and_black_stays():
    grid = np.zeros((16, 16), np.uint8)
    grid[0, 0], grid[0, 1] = 1, 2  # alike under none of the eight
    corpus = GridCorpus(GridArrays("one", grid[None], np.zeros(1, np.uint8)))
    torch.manual_seed(0)
    batch = corpus.batch("train", torch.zeros(8000, dtype=torch.int64), augment=True).x
    assert ((batch != 0).sum(dim=(1, 2)) == 2).all(), "black stays black, and nothing else becomes it"
    cells = batch.view(-1, 256)
    lit = cells[cells > 0]
    assert set(lit.tolist()) == set(range(1, 10))
    share = torch.bincount(lit, minlength=10)[1:] / len(lit)
    assert (abs(share - 1 / 9) < 0.015).all(), "every colour as often"
    kinds, often = torch.unique(cells > 0, dim=0, return_counts=True)
    assert len(kinds) == 8
    assert (abs(often / 8000 - 1 / 8) < 0.02).all(), "every symmetry as often"


def test_augmentation_comes_from_torchs_generator_and_can_be_left_out(arc: GridArrays):
    corpus, indices = GridCorpus(arc), torch.arange(64)
    torch.manual_seed(5)
    first, second = (corpus.batch("train", indices, augment=True).x for _ in range(2))
    torch.manual_seed(5)
    again = corpus.batch("train", indices, augment=True).x
    plain = corpus.batch("train", indices).x
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)
    assert torch.equal(GridCorpus(arc, augment=False).batch("train", indices, augment=True).x, plain)


def test_a_batch_is_made_without_a_read_back(arc: GridArrays):
    corpus, indices = GridCorpus(arc), torch.arange(64)
    with NoReadBack():
        corpus.batch("train", indices, augment=True)
        corpus.batch("val", indices)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReadBack():
        indices.sum().item()


def test_open_corpus(tmp_path: Path, arc: GridArrays):
    write_grids(tmp_path / "mine.npz", arc)
    data = DataSettings(path=tmp_path / "mine.npz", augment=False, limit=80)
    corpus = open_corpus(data)
    assert [corpus.size(split) for split in SPLITS] == [80, 10, 100]
    assert not corpus.augment
    np.savez(tmp_path / "mine.npz", test=arc.grids)
    with pytest.raises(InputError, match="mine: the train split is empty"):
        open_corpus(data)
    assert open_corpus(data, needs=("test",)).size("test") == 1000


@pytest.mark.parametrize("known", [True, False], ids=["rectangles", "canvases"])
@pytest.mark.parametrize("augment", [True, False], ids=["augmented", "plain"])
def test_conditions_are_the_attributes_of_the_grids_as_they_come(arc: GridArrays, known: bool, augment: bool):
    halves = arc.grids.copy()
    halves[::4, :, 8:] = halves[::4, :, 7::-1]  # every fourth is symmetric, in one direction
    shape = arc.shape.copy()
    shape[::4, 1] = 16
    halves[7] = 0
    corpus = GridCorpus(replace(arc, grids=halves, shape=shape if known else None))
    torch.manual_seed(0)
    for split in SPLITS:
        batch = corpus.batch(split, torch.arange(corpus.size(split)), augment=augment, conditions=True)
        measured = attributes(batch.x.numpy().astype(np.uint8))
        assert batch.conditions.dtype == torch.int64
        assert (batch.conditions.numpy() == measured).all()
        lr, ud = (measured[:, PLACE[name]] for name in ("symmetry_lr", "symmetry_ud"))
        assert (lr & ~ud).any()
        assert (ud & ~lr).any() or not augment


def test_conditions_change_nothing_else_and_are_made_without_a_read_back(arc: GridArrays):
    corpus, indices = GridCorpus(arc), torch.arange(64)
    torch.manual_seed(5)
    without = corpus.batch("train", indices, augment=True)
    torch.manual_seed(5)
    with_conditions = corpus.batch("train", indices, augment=True, conditions=True)
    assert torch.equal(without.x, with_conditions.x)
    assert without.conditions is None
    with NoReadBack():
        corpus.batch("train", indices, augment=True, conditions=True)
