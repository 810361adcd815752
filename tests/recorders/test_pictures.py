from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from arcvae_cli import render
from arcvae_cli.recorders.pictures import GridPictures
from arcvae_cli.records import EpochRecord, Plan

MakePlan, MakeRecord = Callable[..., Plan], Callable[..., EpochRecord]


def test_pictures_of_an_epoch(tmp_path: Path, make_plan: MakePlan) -> None:
    recorder = GridPictures(tmp_path)
    recorder.start(make_plan())
    grids = np.zeros((4, 16, 16), np.uint8)
    grids[:, 2:6, 3:9] = 4
    wrong = grids.copy()
    wrong[:, 2, 3] = 0
    recorder.pictures(7, grids, wrong, grids)
    recorder.close()  # no epoch was finished: no curve can be drawn, and that is no error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reconstructions_epoch_7.png", "samples_epoch_7.png"]
    for path in tmp_path.iterdir():
        assert len(np.unique(imread(path)[..., :3] @ (1, 10, 100))) >= 3, path


def test_a_training_that_ends_before_it_starts_leaves_no_picture(tmp_path: Path) -> None:
    GridPictures(tmp_path).close()
    assert not list(tmp_path.iterdir())


def test_curves_at_the_end_of_a_run_whose_code_is_dead(
    tmp_path: Path, make_plan: MakePlan, make_record: MakeRecord
) -> None:
    """A KL of 0 has no place on a logarithmic scale, and levels of their own beta have a line each."""
    recorder = GridPictures(tmp_path)
    recorder.start(make_plan(levels={"global": 1, "local": 2}, elbo_scale=256.0, free_bits=0.3))
    for epoch in (1, 2):
        recorder.step(epoch, 50, 0.01)
        rates = {"global": [0.0], "local": [0.0, 0.02]}
        recorder.epoch(make_record(epoch, rates=rates, betas={"global": 0.01 * epoch, "local": 0.02}))
    recorder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beta_schedule.png", "kl_per_dim.png"]
    assert all(imread(path).std() > 0 for path in tmp_path.iterdir())


def test_beta_is_drawn_at_every_step(
    tmp_path: Path, make_plan: MakePlan, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each epoch it may stand where the cycle began."""
    drawn: list[tuple[list[float], dict[str, list[float]]]] = []
    monkeypatch.setattr(render, "save_beta_schedule", lambda path, at, betas, scale: drawn.append((at, betas)))
    recorder = GridPictures(tmp_path)
    recorder.start(make_plan(steps=2))
    for epoch in (1, 2):
        recorder.step(epoch, 1, 0.1)
        recorder.step(epoch, 2, 0.0)
        recorder.epoch(make_record(epoch, betas={"z": 0.0}))
    recorder.close()
    assert drawn == [([0.5, 1.0, 1.5, 2.0], {"beta": [0.1, 0.0, 0.1, 0.0]})]
