from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from arcvae_cli import checkpoints
from arcvae_cli.models.base import Batch
from arcvae_cli.models.grid import GridVAE

Run = Callable[..., Result]
RECORDED = Path(__file__).parents[2] / "docs" / "recorded" / "quickstart"
RUNS = ["tiny_run", "hierarchy_run", "equations_run"]


def close(found: Iterable[np.ndarray], expected: Iterable[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=1e-4 * other.abs().max().item())


def test_without_the_extra_nothing_is_written(
    arcvae: Run, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcvae_cli.commands.export.find_spec", lambda name: None)
    result = arcvae("export", tiny_run, "--output", tmp_path / "out")
    assert result.exit_code == 2 and list(tmp_path.iterdir()) == []
    assert "safetensors is not installed\n  pip install 'arcvae[export]'" in result.stderr


@pytest.mark.parametrize("name", [*RUNS, "bare_run"])
def test_an_export_gives_the_same_model_without_the_run(
    name: str, arcvae: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("safetensors")
    run, folder = request.getfixturevalue(name), tmp_path / "out"
    done = arcvae("export", run, "--no-onnx", "--output", folder, "--json")
    assert done.exit_code == 0, done.stderr
    assert str(run.parent) not in "".join(path.read_text("latin-1") for path in folder.iterdir())
    path, _ = checkpoints.find_checkpoint(str(folder), tmp_path)
    one, other = (checkpoints.load(file) for file in (run / "checkpoints" / checkpoints.BEST, path))
    assert one.model.structure == other.model.structure and one.epoch == other.epoch
    x = torch.randint(0, 9, (7, *((16, 16) if one.model.kind == "grids" else (9,))))
    with torch.no_grad():
        assert torch.equal(*(loaded.model(Batch(x), noise=False).logits for loaded in (one, other)))
    again = arcvae("export", run, "--no-onnx", "--output", folder)
    assert again.exit_code == 2 and "already" in again.stderr
    for file, change in (("config.json", (b'"epoch": 3', b'"epoch": 4')), ("model.safetensors", None)):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content.replace(*change) if change else content[:-1] + b"\1")
        result = arcvae("sample", "--checkpoint", folder, "--output", tmp_path / "samples")
        assert result.exit_code == 2 and "does not match its digest" in " ".join(result.stderr.split())
        (folder / file).write_bytes(content)


def test_a_model_that_onnx_cannot_express_is_refused(
    arcvae: Run, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(GridVAE, "decode", lambda self, latents, conditions=None: latents["z"].sinc())
    monkeypatch.setattr(GridVAE, "argmax_decode", lambda self, logits, conditions=None: torch.zeros(64, 16, 16))
    result = arcvae("export", tiny_run, "--output", tmp_path)
    assert result.exit_code == 1 and "logits: no ONNX graph" in result.stderr and "--no-onnx" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_card_tells_the_verdict_of_these_weights_and_of_no_others(
    arcvae: Run, tiny_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    run, report = shutil.copytree(tiny_run, tmp_path / "run"), json.loads((RECORDED / "metrics.json").read_text())
    report["verdict"]["findings"][0] |= {"ok": False, "remedy": "train longer"}
    for epoch in (2, 3):
        (run / "metrics.json").write_text(json.dumps({**report, "epoch": epoch}))
        assert arcvae("export", run, "--no-onnx").exit_code == 0
    others, own = ((run / name / "README.md").read_text() for name in ("export", "export-2"))
    assert "**not evaluated: the quality is unknown**" in others and "MISS" not in others
    assert f"**{report['verdict']['summary']}**" in own
    assert own.count("\nMISS ") == sum(not one["ok"] for one in report["verdict"]["findings"]) > 0


@pytest.mark.parametrize("name", RUNS)
def test_the_graphs_of_onnx_give_what_the_model_gives(
    name: str, arcvae: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    run = request.getfixturevalue(name)
    done = arcvae("export", run, "--output", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    model, levels = checkpoints.load(tmp_path / checkpoints.WEIGHTS).model, json.loads(done.stdout)["levels"]
    sessions = {path.stem: runtime.InferenceSession(path) for path in tmp_path.glob("*.onnx")}
    assert sorted(sessions) == ["decoder", "encoder"]
    _, *positions = sessions["encoder"].get_inputs()[0].shape
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (5, *positions)))
    with torch.no_grad():
        encoded = model.encode(Batch(x), noise=False)
        codes = sessions["encoder"].run(None, {"x": x.numpy()})
        close(codes, [part for level in encoded for part in (level.mean, level.logvar)])
        logits = sessions["decoder"].run(None, dict(zip(levels, codes[::2], strict=True)))
        close(logits, [model.decode({level.name: level.mean for level in encoded})])
