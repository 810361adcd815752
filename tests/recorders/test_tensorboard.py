from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from arcvae_cli.grammar import Rules
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.recorders.tensorboard import TensorBoardRecorder
from arcvae_cli.records import EpochRecord, Pictures, StepRecord

MakeRecord, MakePictures = Callable[..., EpochRecord], Callable[..., Pictures]

BOTH = {"global": [1.0, 0.5], "local": [2.0, 0.01]}
RESTART = {"last_restart_epoch": 0.0, "epochs_since_restart": 1.0, "next_restart_epoch": 40.0, "is_restart_epoch": 0.0}


def read(folder: Path) -> EventAccumulator:
    """TensorBoard's own view of a folder: what a later session voids is not in it."""
    found = EventAccumulator(str(folder), {"histograms": 0, "images": 0})  # all of them
    found.Reload()
    return found


def points(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def logged(record: EpochRecord, step: int, betas: dict[str, float]) -> StepRecord:
    return StepRecord(record.epoch - 0.5, step, betas, record.train, "pixel")


def test_event_files_are_read_back(tmp_path: Path, make_record: MakeRecord, make_pictures: MakePictures) -> None:
    """Of a hierarchical run of two epochs of 50 steps, two of them logged."""
    recorder = TensorBoardRecorder(tmp_path)
    for epoch in (1, 2):
        betas = {"global": 0.01 * epoch, "local": 0.02}
        record = make_record(epoch, kl_per_dim=BOTH, betas=betas, restart=RESTART, selection=math.nan)
        recorder.steps([logged(record, epoch * 50 + step, betas) for step in (-25, 0)])
        recorder.epoch(record)
        recorder.pictures(epoch, make_pictures())
    recorder.close()
    events = read(tmp_path)
    expected = {
        "Batch/KL_Loss", "Batch/Beta", "Batch/Global_KL_Weight", "Batch/Local_KL_Weight", "Batch/Total_Loss",
        "Beta_Schedule/beta", "Beta_Schedule/global_kl_weight", "Beta_Schedule/local_kl_weight",
        *(f"Beta_Schedule/Restart/{name}" for name in RESTART),
        "images/kl_maps_brightest",
    }  # fmt: skip
    metrics = make_record(1, kl_per_dim=BOTH, betas={"global": 0.01, "local": 0.02}).metrics()
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


# ------------------------------------------------------------------------------------------------ resumption


@pytest.fixture
def session(
    tmp_path: Path, make_record: MakeRecord, make_pictures: MakePictures, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A session of a run in epochs of 50 steps, logged every 25, with images of every epoch; its event folder.

    A resumed session starts `after` so many epochs and draws the images of the last of them again, as the trainer does.
    """
    now = itertools.count(1_800_000_000, 10)

    def run(first: int, last: int, after: int = 0, lost: int = 99) -> Path:
        folder, start = tmp_path / "tensorboard", next(now)
        monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time.time", lambda: start)
        jsonl, events = JsonlRecorder(tmp_path / "metrics.jsonl"), TensorBoardRecorder(folder)
        if after:
            for recorder in (jsonl, events):
                recorder.resume([make_record(epoch) for epoch in range(1, after + 1)], after * 50)
            events.pictures(after, make_pictures())
        for record in map(make_record, range(first, last + 1)):
            for recorder in (jsonl, events) if record.epoch < lost else (jsonl,):
                recorder.steps([logged(record, step, dict(record.betas)) for step in (record.step - 25, record.step)])
                recorder.epoch(record)
                recorder.pictures(record.epoch, make_pictures())
        jsonl.close()
        events.close(143)
        return folder

    return run


def curves(folder: Path) -> dict[str, list[int]]:
    """The steps of every curve, image and histogram."""
    events = read(folder)
    methods = (("scalars", events.Scalars), ("images", events.Images), ("histograms", events.Histograms))
    return {name: [e.step for e in method(name)] for kind, method in methods for name in events.Tags()[kind]}


def complete(folder: Path, epochs: int) -> dict[str, list[int]]:
    """What `curves` finds of an uninterrupted run."""
    ends, names = list(range(50, 50 * epochs + 1, 50)), curves(folder)
    assert {"Batch/Beta", "epoch", "images/samples", "val/kl_per_dim"} < set(names)
    return {name: list(range(25, 50 * epochs + 1, 25)) if name.startswith("Batch/") else ends for name in names}


def test_a_resumed_run_has_every_curve_and_image_once(session: Callable[..., Path]) -> None:
    folder = session(1, 3)
    session(3, 5, after=2)  # from a checkpoint that is older than what was logged
    session(6, 6, after=5)  # and from the last
    assert curves(folder) == complete(folder, 6)


@pytest.mark.parametrize("lost", [1, 3])
def test_lost_epochs_are_written_on_resumption(session: Callable[..., Path], lost: int) -> None:
    """Those that a killed process did not write, or all of them where TensorBoard was off."""
    folder = session(1, 3, lost=lost)
    session(4, 4, after=3)
    found, whole = curves(folder), complete(folder, 4)
    scalars = [name for name in whole if not name.startswith("images/")]  # earlier examples are not drawn again
    assert {name: found[name] for name in scalars} == {name: whole[name] for name in scalars}


def test_strings_are_shown_as_indented_text(
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


def test_nothing_is_imported_before_it_is_used_and_tensorflow_never(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    script = """
import sys; sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import conftest
from arcvae_cli.console import Console
from arcvae_cli.recorders.external import external_recorders
from arcvae_cli.recorders.jsonl import JsonlRecorder
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
