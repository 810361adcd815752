"""What the commands do otherwise with a model whose decoder is autoregressive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

import arcvae_cli
from arcvae_cli import checkpoints
from arcvae_cli.domains import grids
from arcvae_cli.errors import InputError
from arcvae_cli.evaluation import samples
from arcvae_cli.models.base import Batch

Run = Callable[..., Result]


def test_samples_are_drawn_unless_the_most_likely_are_asked_for(
    arcvae: Run, autoregressive_run: Path, tiny_run: Path, tmp_path: Path
) -> None:
    found = []
    for name, options in (("one", ()), ("again", ()), ("best", ("--decode", "argmax"))):
        flags = ("--num", 5, "--output", tmp_path / name, *options)
        assert arcvae("sample", "--checkpoint", autoregressive_run, *flags).exit_code == 0
        found.append(dict(np.load(tmp_path / name / "samples.npz")))
    one, again, best = (some["grids"] for some in found)
    assert np.array_equal(one, again) and not np.array_equal(one, best)
    model = checkpoints.load(autoregressive_run / "checkpoints" / "vae_best.pth").model
    with torch.inference_mode():
        np.testing.assert_array_equal(model.generate({"z": torch.from_numpy(found[2]["latents_z"])}), best)
    refused = arcvae("sample", "--checkpoint", tiny_run, "--decode", "argmax", "--output", tmp_path / "none")
    assert refused.exit_code == 2 and "--decode" in refused.stderr


def test_reconstructions_are_generated_and_nats_teacher_forced(
    arcvae: Run,
    autoregressive_run: Path,
    arc_splits: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grids, "SAMPLES", 40)
    monkeypatch.setattr(grids, "PAIRS", 10)
    monkeypatch.setattr(samples, "tsne_plane", lambda codes, _: codes[:, :2])
    done = arcvae("evaluate", "--checkpoint", autoregressive_run, "--output", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    model = checkpoints.load(autoregressive_run / "checkpoints" / "vae_best.pth").model
    x = torch.from_numpy(arc_splits["test"]).long()
    with torch.inference_mode():
        means = {"z": model.encode(Batch(x), noise=False)[0].mean}
        generated, logits = model.generate(means), model.logits_for(means, Batch(x))
    forced, own = (logits.argmax(dim=1) == x).double().mean().item(), report["shuffled_codes"]
    right = report["reconstruction"]["posterior_mean"]["pixel_accuracy"]
    assert right == pytest.approx((generated == x).double().mean().item()) and right < 0.9 * forced
    nats = torch.nn.functional.cross_entropy(logits, x, reduction="sum").item() / len(x)
    assert own["accuracy"] == pytest.approx(forced) and own["reconstruction_nats"] == pytest.approx(nats, rel=1e-4)


def test_there_are_no_logits_of_codes_alone(arcvae: Run, autoregressive_run: Path, tmp_path: Path) -> None:
    model = arcvae_cli.load(autoregressive_run)
    with pytest.raises(InputError, match="logits"):
        model.decode(np.zeros((2, 4), np.float32), logits=True)
    assert model.decode(np.zeros((2, 4), np.float32)).shape == (2, 16, 16)
    pytest.importorskip("onnx")
    done = arcvae("export", autoregressive_run, "--output", tmp_path)
    assert done.exit_code == 2 and "decoder.onnx: not written" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "encoder.onnx",
        "model.safetensors",
    }
    assert arcvae("sample", "--checkpoint", tmp_path, "--num", 2, "--output", tmp_path / "samples").exit_code == 0
