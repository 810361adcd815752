from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from arcvae_cli.controllers import Target
from arcvae_cli.grammar import Rules
from arcvae_cli.recorders.images import ImageRecorder
from arcvae_cli.records import EpochRecord, Pictures, Plan
from arcvae_cli.render import plots

MakePlan, MakeRecord = Callable[..., Plan], Callable[..., EpochRecord]
NAMES = ["kl_map_epoch_7.png", "reconstructions_epoch_7.png", "samples_epoch_7.png"]


@pytest.mark.parametrize(("maps", "written"), [(True, NAMES), (False, NAMES[1:])])
def test_pictures_of_an_epoch(
    tmp_path: Path, make_plan: MakePlan, make_pictures: Callable[..., Pictures], maps: bool, written: list[str]
) -> None:
    recorder = ImageRecorder(tmp_path, "grids")
    recorder.start(make_plan())
    recorder.pictures(7, make_pictures(maps))
    recorder.close()  # no epoch was finished: no curve can be drawn, and that is no error
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    for path in tmp_path.iterdir():
        assert len(np.unique(imread(path)[..., :3] @ (1, 10, 100))) >= 3, path


def test_a_training_that_ends_before_it_starts_leaves_no_picture(tmp_path: Path) -> None:
    ImageRecorder(tmp_path, "grids").close()
    assert not list(tmp_path.iterdir())


def test_curves_at_the_end_of_a_run_whose_code_is_dead(
    tmp_path: Path, make_plan: MakePlan, make_record: MakeRecord
) -> None:
    """A KL of 0 has no place on a logarithmic scale, and levels of their own beta have a line each."""
    recorder = ImageRecorder(tmp_path, "grids")
    recorder.start(make_plan(levels={"global": 1, "local": 2}, elbo_scale=256.0, free_bits=0.3))
    for epoch in (1, 2):
        rates = {"global": [0.0], "local": [0.0, 0.02]}
        recorder.epoch(make_record(epoch, kl_per_dim=rates, betas={"global": 0.01 * epoch, "local": 0.02}))
    recorder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "beta_schedule.png",
        "kl_per_dim.png",
        "training_curves.png",
    ]
    assert all(imread(path).std() > 0 for path in tmp_path.iterdir())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """What the functions that draw curves were given, by the name of the picture."""
    found: dict[str, tuple[Any, ...]] = {}

    def keep(path: Path, *arguments: Any) -> None:
        found[path.name] = arguments

    monkeypatch.setattr(plots, "save_beta_schedule", keep)
    monkeypatch.setattr(plots, "save_kl_heatmap", keep)
    monkeypatch.setattr(plots, "save_training_curves", keep)
    return found


def test_beta_is_drawn_at_every_step(
    tmp_path: Path, make_plan: MakePlan, make_record: MakeRecord, drawn: dict[str, tuple[Any, ...]]
) -> None:
    """After each epoch it may stand where the cycle began."""
    recorder = ImageRecorder(tmp_path, "grids")
    recorder.start(make_plan(steps=2, elbo_scale=256.0))
    for epoch in (3, 4):  # a run that goes on from the second
        recorder.epoch(make_record(epoch, betas={"z": 0.0}, beta_trace={"z": [0.1, 0.0]}))
    recorder.close()
    assert drawn["beta_schedule.png"] == (
        [2.5, 3.0, 3.5, 4.0],
        {"beta": [0.1, 0.0, 0.1, 0.0]},
        256.0,
        [],
        "one: beta over the run",
    )


def test_levels_have_their_own_lines_targets_and_floors(
    tmp_path: Path, make_plan: MakePlan, make_record: MakeRecord, drawn: dict[str, tuple[Any, ...]]
) -> None:
    target = Target("local", "kl", 20.0, 25.0, 0.1, None)
    recorder = ImageRecorder(tmp_path, "grids")
    recorder.start(make_plan(levels={"global": 1, "local": 2}, free_bits=0.3))
    path = {"global": [0.1, 0.2], "local": [0.3, 0.4]}
    recorder.epoch(
        make_record(1, kl_per_dim={"global": [1.0], "local": [2.0, 3.0]}, beta_trace=path, targets=(target,))
    )
    recorder.close()
    assert drawn["beta_schedule.png"] == ([0.5, 1.0], path, 1.0, [(1.0, (target,))], "one: beta over the run")
    levels, floors, title = drawn["kl_per_dim.png"]
    assert title == "one, validation: KL of each dimension"
    assert {name: kl.tolist() for name, kl in levels.items()} == {"global": [[1.0]], "local": [[2.0, 3.0]]}
    assert floors == {"global": 0.3, "local": 0.3}


def test_a_run_that_goes_on_draws_the_curves_of_a_whole_one_and_keeps_no_void_picture(
    tmp_path: Path,
    make_plan: MakePlan,
    make_record: MakeRecord,
    make_rules: Callable[..., Rules],
    derivations: Pictures,
) -> None:
    records = [
        make_record(epoch, kl_per_dim={"z": [0.1 * epoch, 1.0]}, beta_trace={"z": [0.1 * epoch, 0.0]})
        for epoch in range(1, 6)
    ]
    drawn = {}
    for name, parts in (("whole", (records,)), ("in parts", (records[:3], records[2:]))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "samples_epoch_1.png").touch()
        for part in parts:
            recorder = ImageRecorder(folder, "strings", make_rules())
            recorder.start(make_plan(steps=2))
            if part[0].epoch > 1:
                recorder.resume(records[: part[0].epoch - 1], (part[0].epoch - 1) * 50)
                assert [path.name for path in folder.glob("*_epoch_*")] == ["samples_epoch_1.png"]
            for record in part:
                recorder.epoch(record)
            recorder.pictures(record.epoch, derivations)
            recorder.close(0 if part[-1] is records[-1] else 75)
        drawn[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert drawn["in parts"] == drawn["whole"]
    assert len(drawn["whole"]) == 1 + 2 + 3
