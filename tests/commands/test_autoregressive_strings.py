"""A trained model of strings with an autoregressive decoder goes through every command that reads a checkpoint."""

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
from arcvae_cli.data.corpus import open_corpus
from arcvae_cli.domains import strings
from arcvae_cli.evaluation.information import nats
from arcvae_cli.models import build_model
from arcvae_cli.models.base import Batch
from arcvae_cli.settings import Settings

Run = Callable[..., Result]
MODEL = {"name": "grammar", "decoder": "autoregressive", "latent_dim": 8, "encoder_hidden": 32, "decoder_hidden": 64}
MODEL |= {"encoder_conv_layers": 1, "encoder_kernel": 3, "decoder_layers": 1, "decoder_dropout": 0.0}


@pytest.fixture(scope="module")
def run(equations_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model that has learned half of the test strings."""
    settings = Settings.model_validate({"data": {"path": str(equations_npz)}, "model": MODEL})
    torch.manual_seed(0)
    corpus = open_corpus(settings.data)
    model, batch = build_model(settings.model, corpus.structure), corpus.batch("test", torch.arange(20))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        output = model(batch)
        loss = (nats(output.logits, batch) + 0.05 * output.levels[0].kl.sum(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("runs") / "some"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.toml").touch()
    values = checkpoints.header(settings, 3) | checkpoints.content(model)
    checkpoints.save(folder / "checkpoints" / checkpoints.BEST, values)
    return folder


def document(arcvae: Run, *arguments: object) -> dict:
    done = arcvae(*arguments, "--json", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_reconstructions_are_decoded_from_codes_alone(arcvae: Run, run: Path, tmp_path: Path) -> None:
    """The exact share is of greedy derivations; p(x|z), by teacher forcing, is what drawing strings estimates."""
    counts = ("--monte-carlo", "--monte-carlo-examples", 40, "--encodings", 10, "--decodings", 50, "--samples", 100)
    report = document(arcvae, "evaluate", "--checkpoint", run, "--output", tmp_path, "--iwae", 5, *counts)
    found, loaded = report["reconstruction"], checkpoints.load(run / "checkpoints" / checkpoints.BEST)
    api = arcvae_cli.load(run, "cpu")
    x = api.examples("test")
    exact = np.mean([one == other for one, other in zip(api.reconstruct(x), x, strict=True)])
    assert found["posterior_mean"]["exact_share"] == pytest.approx(exact) and 0.1 < exact < 1.0
    assert found["monte_carlo"]["exact_share"] == pytest.approx(found["expected_exact_share"], abs=0.05)
    assert report["shuffled_codes"]["shuffled_accuracy"] is None
    assert report["shuffled_codes"]["shuffled_reconstruction_nats"] > report["shuffled_codes"]["reconstruction_nats"]
    ids = torch.from_numpy(strings.parsed(loaded, x, "x")).long()
    batch = Batch(ids, ids != loaded.model.structure.rules.padding)
    forced = (loaded.model.eval()(batch, noise=False).logits.argmax(1) == ids) | ~batch.valid
    assert forced.all(1).float().mean().item() == pytest.approx(exact)  # right at every step, and so greedily
    assert forced[batch.valid].float().mean() > found["posterior_mean"]["token_accuracy"]


def test_strings_are_drawn_by_steps_and_searched_for(arcvae: Run, run: Path, tmp_path: Path) -> None:
    common = ("sample", "--checkpoint", run, "--output", tmp_path, "--num", 200)
    by_way = {
        way: document(arcvae, *common, *way.split())
        for way in ("", "--rule-temperature 0.01", "--decode argmax", "--decode beam --beam-width 1", "--decode beam")
    }
    drawn, cold, greedy, narrow, beam = (found["strings"] for found in by_way.values())
    assert all(found["complete"] == 200 for found in by_way.values())
    assert narrow == greedy != drawn and len(set(drawn)) > len(set(greedy))
    assert np.mean([one == other for one, other in zip(cold, greedy, strict=True)]) > 0.95
    assert beam != greedy and by_way["--decode beam"]["beam_width"] == 5
    path = document(arcvae, "interpolate", "--checkpoint", run, "--from", 0, "--to", 1, "--output", tmp_path)
    assert len(path["strings"]) == path["steps"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--beam-width", 3), "--beam-width: there is no beam"),
        (("--decode", "argmax", "--rule-temperature", 2), "--decode argmax draws no rules"),
    ],
)
def test_options_without_an_effect_are_refused(
    arguments: tuple[object, ...], message: str, arcvae: Run, run: Path
) -> None:
    done = arcvae("sample", "--checkpoint", run, *arguments)
    assert done.exit_code == 2 and message in done.stderr


def test_the_decoder_is_left_out_of_an_export(arcvae: Run, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = arcvae("export", run, "--output", tmp_path / "out")
    assert done.exit_code == 2 and "decoder.onnx" in done.stderr
    files = {"encoder.onnx", "model.safetensors", "config.json", "README.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    arrays = arcvae_cli.load(tmp_path / "out", "cpu")
    assert arrays.sample(20, seed=1) == arcvae_cli.load(run, "cpu").sample(20, seed=1)
