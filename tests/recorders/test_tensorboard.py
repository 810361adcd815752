from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from arcvae_cli.grammar import Rules
from arcvae_cli.recorders.tensorboard import TensorBoardRecorder
from arcvae_cli.records import EpochRecord, Pictures, StepRecord

MakeRecord, MakePictures = Callable[..., EpochRecord], Callable[..., Pictures]

BOTH = {"global": [1.0, 0.5], "local": [2.0, 0.01]}
RESTART = {"last_restart_epoch": 0.0, "epochs_since_restart": 1.0, "next_restart_epoch": 40.0, "is_restart_epoch": 0.0}


def read(folder: Path) -> EventAccumulator:
    """TensorBoard's own view of a folder: what a later session voids is not in it."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def points(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def logged(record: EpochRecord, step: int, betas: dict[str, float]) -> StepRecord:
    return StepRecord(record.epoch - 0.5, step, betas, record.train, "pixel")


@pytest.fixture
def train(tmp_path: Path, make_record: MakeRecord, make_pictures: MakePictures) -> Callable[..., None]:
    """A session of a hierarchical run from one epoch to another, of 50 steps each, two of them logged."""

    def run(first: int, last: int) -> None:
        recorder = TensorBoardRecorder(tmp_path)
        for epoch in range(first, last + 1):
            betas = {"global": 0.01 * epoch, "local": 0.02}
            record = make_record(epoch, rates=BOTH, betas=betas, restart=RESTART, selection=float("nan"))
            recorder.steps([logged(record, epoch * 50 + step, betas) for step in (-25, 0)])
            recorder.epoch(record)
            recorder.pictures(epoch, make_pictures())
        recorder.close()

    return run


def test_event_files_are_read_back(tmp_path: Path, train: Callable[..., None], make_record: MakeRecord) -> None:
    train(1, 2)
    events = read(tmp_path)
    expected = {
        "Batch/KL_Loss", "Batch/Beta", "Batch/Global_KL_Weight", "Batch/Local_KL_Weight", "Batch/Total_Loss",
        "Beta_Schedule/beta", "Beta_Schedule/global_kl_weight", "Beta_Schedule/local_kl_weight",
        *(f"Beta_Schedule/Restart/{name}" for name in RESTART),
        "images/kl_maps_brightest",
    }  # fmt: skip
    metrics = make_record(1, rates=BOTH, betas={"global": 0.01, "local": 0.02}).metrics()
    expected |= set(metrics) - {"step", "val/kl_per_dim", "val/loss_selection"}  # a NaN is no point of a curve
    assert set(events.Tags()["scalars"]) == expected
    assert points(events, "Batch/Beta") == [(25, 0.01), (50, 0.01), (75, 0.02), (100, 0.02)]
    assert points(events, "Batch/Local_KL_Weight")[0] == (25, 0.02)
    assert points(events, "Batch/KL_Loss")[0] == (25, 3.51) and points(events, "Batch/Total_Loss")[0] == (25, 125.6)
    assert points(events, "Beta_Schedule/global_kl_weight") == [(50, 0.01), (100, 0.02)]
    assert points(events, "Beta_Schedule/Restart/epochs_since_restart") == [(50, 1.0), (100, 1.0)]
    assert points(events, "epoch") == [(50, 1.0), (100, 2.0)]
    assert points(events, "train/loss_total") == [(50, 125.6), (100, 125.6)]
    for level, beta in (("global", 0.01), ("local", 0.02)):  # one name, a curve a folder
        beside = read(tmp_path / f"Beta_Schedule_Hierarchical_Comparison_{level}")
        assert beside.Tags()["scalars"] == ["Beta_Schedule/Hierarchical_Comparison"]
        assert points(beside, "Beta_Schedule/Hierarchical_Comparison")[0] == (50, beta)
    histogram = events.Histograms("val/kl_per_dim")[0].histogram_value
    assert (histogram.num, histogram.min, histogram.max) == (4.0, 0.01, 2.0)
    assert histogram.sum == pytest.approx(3.51)
    assert set(events.Tags()["images"]) == {"images/reconstructions", "images/samples", "images/kl_maps"}
    assert events.Images("images/kl_maps")[0].step == 50
    assert events.Images("images/samples")[0].width > 8 * 128


def test_a_run_that_continues_has_every_curve_once(tmp_path: Path, train: Callable[..., None]) -> None:
    """It goes on from a checkpoint, which may be older than what was logged."""
    train(1, 3)
    train(2, 4)
    for name, folder in (
        ("Batch/Beta", tmp_path),
        ("train/loss_total", tmp_path),
        ("Beta_Schedule/Hierarchical_Comparison", tmp_path / "Beta_Schedule_Hierarchical_Comparison_local"),
    ):
        steps = [event.step for event in read(folder).Scalars(name)]
        assert steps == list(range(25 if name.startswith("Batch") else 50, 201, 25 if name.startswith("Batch") else 50))


def test_strings_are_text_that_is_shown_as_it_is(
    tmp_path: Path, make_record: MakeRecord, make_rules: Callable[..., Rules], derivations: Pictures
) -> None:
    recorder = TensorBoardRecorder(tmp_path, make_rules())
    recorder.epoch(make_record(1, unit="token"))
    recorder.pictures(1, derivations)
    recorder.close()
    events = read(tmp_path)
    assert events.Tags()["images"] == []
    found = {name.removesuffix("/text_summary"): events.Tensors(name)[0] for name in events.Tags()["tensors"]}
    texts = {name: event.tensor_proto.string_val[0].decode() for name, event in found.items()}
    assert texts == {
        "strings/reconstructions": "    2 of 3 exact\n    = x\n    - x + *\n    + x + x\n    = ( * )",
        "strings/samples": "    * + *\n    (incomplete)",
    }
    assert {event.step for event in found.values()} == {50}


def test_a_schedule_of_one_beta_has_no_comparison(tmp_path: Path, make_record: MakeRecord) -> None:
    recorder = TensorBoardRecorder(tmp_path)
    record = make_record(1, rates={"z": [math.nan, math.inf]})
    recorder.steps([logged(record, 25, {"z": 0.3})])
    recorder.epoch(record)
    recorder.close()
    names = read(tmp_path).Tags()
    found = [name for name in names["scalars"] if name.startswith(("Batch", "Beta_Schedule"))]
    assert sorted(found) == ["Batch/Beta", "Batch/Total_Loss", "Beta_Schedule/beta"]
    assert names["histograms"] == [], "nothing of the code is a number"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_nothing_is_imported_before_it_is_used_and_tensorflow_never(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    script = """
import sys; sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import conftest
from arcvae_cli.console import Console
from arcvae_cli.recorders.external import external_recorders
from arcvae_cli.recorders.tensorboard import TensorBoardRecorder
from arcvae_cli.runs import RunFolder
from arcvae_cli.settings import Settings
folder = RunFolder(Path(sys.argv[1]))
assert external_recorders(Settings(log={"wandb": "off"}), folder, Console()) == []
recorder = TensorBoardRecorder(folder.path / "tensorboard")
assert not {"wandb", "tensorboard"} & set(sys.modules)
recorder.start(conftest.plan()); recorder.epoch(conftest.record()); recorder.close()
assert "tensorboard" in sys.modules and not {"wandb", "tensorflow"} & set(sys.modules)
"""
    arguments: list[Any] = [sys.executable, "-W", "error", "-c", script, tmp_path, Path(__file__).parent]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
