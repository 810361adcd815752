from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.image import imsave
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.recorders.tensorboard import TensorBoardRecorder
from tests.recorders.made import pictures, record, steps

BOTH = {"global": [1.0, 0.5], "local": [2.0, 0.01]}
RESTART = {"last_restart_epoch": 0.0, "epochs_since_restart": 1.0, "next_restart_epoch": 40.0, "is_restart_epoch": 0.0}


def read(folder: Path) -> EventAccumulator:
    """TensorBoard's own view of a folder: what a later session voids is not in it."""
    found = EventAccumulator(str(folder), {"histograms": 0, "images": 0})  # all of them
    found.Reload()
    return found


def test_a_hierarchical_run_of_two_epochs(tmp_path: Path) -> None:
    """With files of examples and the evaluation. Texts are indented: TensorBoard reads Markdown, where that is code."""
    recorder, images = TensorBoardRecorder(tmp_path), tmp_path / "images"
    images.mkdir()
    (images / "samples_epoch_2.txt").write_text("* + *\n(incomplete)\n")
    for name in ("kl_map_epoch_2.png", "kl_map_epoch_1.png", "latent_space_pca.png"):
        imsave(images / name, pictures().samples[0])
    for epoch in (1, 2):
        betas = {"global": 0.01 * epoch, "local": 0.02}
        one = record(epoch, BOTH, betas=betas, restart=RESTART, selection=math.nan)
        recorder.steps(steps(one))
        recorder.epoch(one)
    recorder.pictures(2, pictures())
    recorder.evaluated(
        {"exact": {"of": 0.25}, "worst": [1, 2]}, ["ok: a", "MISS: b"], [images / "latent_space_pca.png"]
    )
    recorder.close()
    events = read(tmp_path / "tensorboard")
    expected = {
        "Batch/KL_Loss", "Batch/Beta", "Batch/Global_KL_Weight", "Batch/Local_KL_Weight", "Batch/Total_Loss",
        "Beta_Schedule/beta", "Beta_Schedule/global_kl_weight", "Beta_Schedule/local_kl_weight",
        *(f"Beta_Schedule/Restart/{name}" for name in RESTART), "eval/exact/of",
    }  # fmt: skip
    expected |= set(one.metrics()) - {"step", "val/kl_per_dim", "val/loss_selection"}  # a NaN is no point of a curve
    assert set(events.Tags()["scalars"]) == expected
    points = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in expected}
    assert points["Batch/Beta"] == [
        (step, pytest.approx(beta)) for step, beta in zip((25, 50, 75, 100), (0.01, 0.01, 0.02, 0.02), strict=True)
    ]
    assert points["Batch/KL_Loss"][0] == (25, pytest.approx(3.51)) and points["epoch"] == [(50, 1.0), (100, 2.0)]
    beside = read(tmp_path / "tensorboard/Beta_Schedule_Hierarchical_Comparison_local")  # one name, a curve a folder
    assert [event.step for event in beside.Scalars("Beta_Schedule/Hierarchical_Comparison")] == [50, 100]
    assert events.Histograms("val/kl_per_dim")[0].histogram_value.num == 4.0
    counts = {name: len(events.Images(name)) for name in events.Tags()["images"]}
    assert counts == {"images/kl_maps": 1, "eval/latent_space_pca": 1}
    tensors = {name: events.Tensors(name)[0].tensor_proto for name in events.Tags()["tensors"]}
    assert {name: tensor.string_val[0].decode() for name, tensor in tensors.items()} == {
        "strings/samples/text_summary": "    * + *\n    (incomplete)",
        "eval/verdict/text_summary": "    ok: a\n    MISS: b",
    }


@pytest.mark.parametrize("lost", [99, 3, 1], ids=["none lost", "one lost", "TensorBoard was off"])
def test_a_resumed_run_has_every_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """In epochs of 50 steps, logged every 25. From epoch `lost` on the events of a killed session are missing."""
    for number, (first, last) in enumerate([(1, 3), (3, 5), (6, 6)]):  # the second from an older checkpoint
        start = 1_800_000_000 + number
        monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time.time", lambda start=start: start)
        jsonl, events = JsonlRecorder(tmp_path / "metrics.jsonl"), TensorBoardRecorder(tmp_path)
        for recorder in (jsonl, events) if number else ():
            recorder.resume([record(epoch) for epoch in range(1, first)], (first - 1) * 50)
        for one in map(record, range(first, last + 1)):
            for recorder in (jsonl, events) if number or one.epoch < lost else (jsonl,):
                recorder.steps(steps(one))
                recorder.epoch(one)
        events.close(143)
    found = read(tmp_path / "tensorboard")
    curves = {name: [event.step for event in found.Scalars(name)] for name in found.Tags()["scalars"]}
    ends = list(range(50, 301, 50))
    assert curves == {name: list(range(25, 301, 25)) if name.startswith("Batch/") else ends for name in curves}
    assert [event.step for event in found.Histograms("val/kl_per_dim")] == ends and "Batch/Beta" in curves
