from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from arcvae_cli.controllers import Target
from arcvae_cli.recorders.images import ImageRecorder
from arcvae_cli.render import plots
from tests.recorders.made import STRINGS, derivations, pictures, plan, record, rules

CURVES = {"beta_schedule.png", "kl_per_dim.png", "training_curves.png"}
NAMES = ["kl_map_epoch_7.png", "reconstructions_epoch_7.png", "samples_epoch_7.png"]


@pytest.mark.parametrize(("maps", "written"), [(True, NAMES), (False, NAMES[1:])])
def test_pictures_of_grids(tmp_path: Path, maps: bool, written: list[str]) -> None:
    recorder = ImageRecorder(tmp_path, "grids")
    recorder.close()  # of a training that ends before it starts
    recorder.start(plan())
    recorder.pictures(7, pictures(maps))
    recorder.close()  # no epoch was finished: no curves
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    for path in tmp_path.iterdir():
        assert len(np.unique(imread(path)[..., :3] @ (1, 10, 100))) >= 3, path


@pytest.mark.parametrize("known", [True, False])
def test_strings_are_text(known: bool, tmp_path: Path) -> None:
    ImageRecorder(tmp_path, "strings", rules(known)).pictures(7, derivations())
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts["reconstructions_epoch_7.txt"].startswith("2 of 3 exact\n= ")
    assert texts.get("samples_epoch_7.txt") == ("* + *\n(incomplete)\n" if known else None)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """The arguments of the functions that draw curves, by the name of the picture."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in ("save_beta_schedule", "save_kl_heatmap", "save_training_curves"):
        monkeypatch.setattr(plots, name, lambda path, *values: found.update({path.name: values}), raising=False)
    return found


def test_the_curves_of_a_run(tmp_path: Path, drawn: dict[str, tuple[Any, ...]]) -> None:
    """Beta at every step, since after each epoch it may stand where the cycle began."""
    recorder = ImageRecorder(tmp_path, "grids")
    recorder.start(plan(steps=2, elbo_scale=256.0))
    epochs = [record(epoch, betas={"z": 0.0}, beta_trace={"z": [0.1, 0.0]}) for epoch in (3, 4)]
    for one in epochs:
        recorder.epoch(one)
    recorder.close()
    assert drawn["beta_schedule.png"] == (
        [2.5, 3.0, 3.5, 4.0],
        {"beta": [0.1, 0.0, 0.1, 0.0]},
        256.0,
        [],
        "one: beta over the run",
    )
    assert drawn["training_curves.png"] == ("one: training curves", [one.metrics() for one in epochs])


def test_levels_have_their_own_lines_targets_and_floors(tmp_path: Path, drawn: dict[str, tuple[Any, ...]]) -> None:
    target, trace = Target("local", "kl", 20.0, 25.0, 0.1, None), {"global": [0.1, 0.2], "local": [0.3, 0.4]}
    recorder = ImageRecorder(tmp_path, "grids")
    recorder.start(plan({"global": 1, "local": 2}, free_bits=0.3, steps=2))
    recorder.epoch(record(1, {"global": [1.0], "local": [2.0, 3.0]}, beta_trace=trace, targets=(target,)))
    recorder.close()
    assert drawn["beta_schedule.png"] == ([0.5, 1.0], trace, 1.0, [(1.0, (target,))], "one: beta over the run")
    levels, floors, _ = drawn["kl_per_dim.png"]
    assert {name: kl.tolist() for name, kl in levels.items()} == {"global": [[1.0]], "local": [[2.0, 3.0]]}
    assert floors == {"global": 0.3, "local": 0.3}


def test_a_resumed_run_draws_the_curves_of_a_whole_one_and_keeps_no_later_picture(tmp_path: Path) -> None:
    """Of a run in which a dimension is dead from the start: a KL of 0 has no place on a logarithmic scale."""
    records = [record(epoch, {"z": [0.1 * epoch, 0.0]}, unit="token") for epoch in range(1, 5)]
    found = {}
    for name, parts in (("whole", [records]), ("in parts", [records[:3], records[2:]])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "samples_epoch_1.png").touch()
        for part in parts:
            recorder = ImageRecorder(folder, "strings", rules())
            recorder.start(plan(settings=STRINGS))
            if part[0].epoch > 1:
                recorder.resume(records[: part[0].epoch - 1], (part[0].epoch - 1) * 50)
                assert [path.name for path in folder.glob("*_epoch_*")] == ["samples_epoch_1.png"]
            for one in part:
                recorder.epoch(one)
            recorder.pictures(part[-1].epoch, derivations())
            recorder.close()
        found[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found["in parts"] == found["whole"]
    assert {name for name in found["whole"] if "epoch" not in name} <= CURVES
