from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcvae_cli.controllers import Target
from arcvae_cli.recorders.images import PANELS, ImageRecorder, beta_curves, training_curves
from arcvae_cli.render import plots
from tests.recorders.made import STRINGS, TWO_LEVELS, derivations, pictures, plan, record, rules


def test_pictures_of_grids(tmp_path: Path) -> None:
    recorder = ImageRecorder(tmp_path, "grids")
    recorder.close()  # of a training that ends before it starts
    recorder.start(plan())
    recorder.pictures(7, pictures())
    recorder.close()  # no epoch was finished: no curves
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"kl_map_epoch_7.png", "reconstructions_epoch_7.png", "samples_epoch_7.png"}


@pytest.mark.parametrize("known", [True, False])
def test_strings_are_text(known: bool, tmp_path: Path) -> None:
    ImageRecorder(tmp_path, "strings", rules(known)).pictures(7, derivations())
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts["reconstructions_epoch_7.txt"].startswith("2 of 3 exact\n= ")
    assert texts.get("samples_epoch_7.txt") == ("* + *\n(incomplete)\n" if known else None)


def test_beta_curves() -> None:
    """Beta at every step, since after each epoch it may stand where the cycle began; targets by level."""
    epochs = [record(epoch, betas={"z": 0.0}, beta_trace={"z": [0.1, 0.0]}) for epoch in (3, 4)]
    assert beta_curves(epochs, 2) == [("beta", "beta", [2.5, 3.0, 3.5, 4.0], [0.1, 0.0, 0.1, 0.0], False)]
    target, trace = Target("local", "kl", 20.0, 25.0, 0.1, None), {"global": [0.1, 0.2], "local": [0.3, 0.4]}
    assert beta_curves([record(1, beta_trace=trace, targets=(target, replace(target, level="")), **TWO_LEVELS)], 2) == [
        ("global", "beta", [0.5, 1.0], [0.1, 0.2], False),
        ("local", "beta", [0.5, 1.0], [0.3, 0.4], False),
        ("local", "KL, nats", (1,), (20.0,), False),
        ("local target", "KL, nats", (1,), (25.0,), True),
        ("KL", "KL, nats", (1,), (20.0,), False),
        ("KL target", "KL, nats", (1,), (25.0,), True),
    ]


@pytest.mark.parametrize(("unit", "levels"), [("token", ["z"]), ("pixel", ["global", "local"])])
def test_training_curves(unit: str, levels: list[str]) -> None:
    """Of the metrics that records log; a value that was not finite is left out."""
    kl = {name: [1.0, 2.0] for name in levels}
    epochs = [record(1, kl, {"loss": math.nan}, unit=unit), record(2, kl, unit=unit)]
    curves = training_curves([one.metrics() for one in epochs])
    found = {(unit, label): np.asarray(values).tolist() for label, unit, _, values, dashed in curves}
    assert {unit for unit, _ in found} == PANELS.keys()
    assert found["loss", "_"] == [125.6, 125.6] and repr(found["loss", ""]) == "[nan, 123.4]"
    names = {"pixel": ["pixel", "non-black", "exact grid"], "token": ["token", "sequence"]}[unit]
    assert [label for panel, label in found if panel == "accuracy" and label[0] != "_"] == names
    assert all(label.startswith("_") == dashed for label, *_, dashed in curves)
    nats = {label: values for (panel, label), values in found.items() if panel == "KL, nats" and label[:1] != "_"}
    two = {"total": [6.0, 6.0], "global": [3.0, 3.0], "local": [3.0, 3.0]}
    assert nats == (two if len(levels) > 1 else {"": [3.0, 3.0]})
    assert [label for panel, label in found if panel == "beta"] == (levels if len(levels) > 1 else [""])


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A session of a run, resumed if it does not begin at epoch 1: the arguments of the drawing functions."""
    records = [record(epoch, {"z": [0.1 * epoch, 0.0]}, best=epoch == 2) for epoch in range(1, 5)]

    def run(folder: Path, first: int, last: int) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for name in ("save_curves", "save_kl_heatmap"):
            monkeypatch.setattr(plots, name, lambda path, *values, **more: drawn.update({path.name: (values, more)}))
        recorder = ImageRecorder(folder, "strings", rules())
        recorder.start(plan(settings=STRINGS, elbo_scale=256.0, free_bits=0.3))
        if first > 1:
            recorder.resume(records[: first - 1], (first - 1) * 50)
        for one in records[first - 1 : last]:
            recorder.epoch(one)
            recorder.pictures(one.epoch, derivations())
        recorder.close()
        return drawn

    return run


def test_a_resumed_run_draws_the_curves_of_a_whole_one_and_keeps_no_later_picture(
    tmp_path: Path, session: Callable[..., dict[str, Any]]
) -> None:
    whole = session(tmp_path, 1, 4)
    assert repr(session(tmp_path, 3, 4)) == repr(whole)
    levels, floors, _ = whole["kl_per_dim.png"][0]
    assert (levels["z"][:, 0].tolist(), floors) == (pytest.approx([0.1, 0.2, 0.3, 0.4]), {"z": 0.3})
    assert whole["beta_schedule.png"][0][2] == 256.0 and whole["training_curves.png"][1]["marked"] == 2
    session(tmp_path, 3, 3)
    assert len(list(tmp_path.glob("reconstructions_epoch_?.txt"))) == 3
