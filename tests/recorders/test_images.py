from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcvae_cli.controllers import Target
from arcvae_cli.models.grammar import Structure
from arcvae_cli.recorders.images import ImageRecorder, beta_curves, training_curves
from arcvae_cli.render import plots
from tests.recorders.made import STRINGS, SUMS, TWO_LEVELS, derivations, plan, record


@pytest.mark.parametrize(
    ("known", "pairs", "samples"),
    [
        (True, "2 of 3 exact\n= x\n- x + *\n+ x + x\n= ( * )\n", "* + *\n(incomplete)\n"),
        (False, "2 of 3 exact\n= 1,3\n- 0,1,3,4\n+ 0,1,3,3\n= 1,2,1,4\n", None),  # ids of rules, and no new strings
    ],
)
def test_strings_are_text(known: bool, pairs: str, samples: str | None, tmp_path: Path) -> None:
    made = derivations()
    if not known:
        made.reconstructions[:, -1] = 2  # after the end of an example such a model says anything
    rules = SUMS.rules if known else replace(SUMS.rules, rhs=None, text=None)
    ImageRecorder(tmp_path, "strings", Structure(rules, 6)).pictures(7, made)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts["reconstructions_epoch_7.txt"] == pairs and texts.get("samples_epoch_7.txt") == samples


def test_beta_curves() -> None:
    """Beta at every step, since after each epoch it may stand where the cycle began; targets by level."""
    epochs = [record(epoch, betas={"z": 0.0}, beta_trace={"z": [0.1, 0.0]}) for epoch in (3, 4)]
    assert beta_curves(epochs, 2) == [("beta", "beta", [2.5, 3.0, 3.5, 4.0], [0.1, 0.0, 0.1, 0.0], False)]
    target, trace = Target("local", "kl", 20.0, 25.0), {"global": [0.1, 0.2], "local": [0.3, 0.4]}
    assert beta_curves([record(1, beta_trace=trace, targets=(target, replace(target, level="")), **TWO_LEVELS)], 2) == [
        ("global", "beta", [0.5, 1.0], [0.1, 0.2], False),
        ("local", "beta", [0.5, 1.0], [0.3, 0.4], False),
        ("local", "KL, nats", [1], [20.0], False),
        ("local target", "KL, nats", [1], [25.0], True),
        ("KL", "KL, nats", [1], [20.0], False),
        ("KL target", "KL, nats", [1], [25.0], True),
    ]


@pytest.mark.parametrize(("unit", "levels"), [("token", ["z"]), ("pixel", ["global", "local"])])
def test_training_curves(unit: str, levels: list[str]) -> None:
    """Of the metrics that records log; a value that was not finite is left out."""
    kl, two = {name: [1.0, 2.0] for name in levels}, len(levels) > 1
    epochs = [record(1, kl, {"loss": math.nan}, unit=unit), record(2, kl, unit=unit)]
    curves = training_curves([one.metrics() for one in epochs])
    found = {(unit, label): np.asarray(values).tolist() for label, unit, _, values, _ in curves}
    assert all(label.startswith("_") == dashed for label, *_, dashed in curves)
    assert found["loss", "_"] == [125.6, 125.6] and repr(found["loss", ""]) == "[nan, 123.4]"
    assert found["KL, nats", "local" * two] == [3.0] * 2
    names = {"pixel": ["pixel", "foreground", "exact"], "token": ["token", "seq"]}[unit]
    assert [label for panel, label in found if panel == "accuracy" and label[0] != "_"] == names
    assert [label for panel, label in found if panel == "beta"] == (levels if two else [""])
    none = [{name: None if "foreground" in name else value for name, value in one.metrics().items()} for one in epochs]
    assert len(training_curves(none)) == len(curves) - 2 * (unit == "pixel"), "without a background"


def test_a_resumed_run_draws_the_curves_of_a_whole_one_and_keeps_no_later_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(epoch, {"z": [0.1 * epoch, 0.0]}, best=epoch == 2) for epoch in range(1, 5)]
    drawn: dict[str, Any] = {}
    for name in ("save_curves", "save_kl_heatmap"):
        monkeypatch.setattr(plots, name, lambda path, *values, **more: drawn.update({path.name: (values, more)}))

    def session(first: int, last: int) -> str:
        recorder = ImageRecorder(tmp_path, "strings", Structure(SUMS.rules, 6))
        recorder.start(plan(settings=STRINGS, elbo_scale=256.0))
        if first > 1:
            recorder.resume(records[: first - 1], (first - 1) * 50)
        for one in records[first - 1 : last]:
            recorder.epoch(one)
            recorder.pictures(one.epoch, derivations())
        recorder.close()
        return repr(drawn)

    assert session(1, 4) == session(3, 4)
    assert drawn["kl_per_dim.png"][0][0]["z"][:, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert drawn["beta_schedule.png"][0][2] == 256.0 and drawn["training_curves.png"][1]["best"] == 2
    session(3, 3)
    assert len(list(tmp_path.glob("reconstructions_epoch_?.txt"))) == 3
