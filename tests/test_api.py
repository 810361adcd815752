"""arcvae from Python."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

import arcvae_cli
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.checkpoints import Loaded
from arcvae_cli.conditions import measure, satisfies
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.evaluation.information import importance_weighted
from arcvae_cli.evaluation.priors import draw_prior
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.base import Batch
from arcvae_cli.models.grammar import Structure
from arcvae_cli.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"
HIERARCHY = {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}
GRAMMAR = {"name": "grammar", "latent_dim": 4, "encoder_hidden": 16, "encoder_conv_layers": 1, "encoder_kernel": 3}
GRAMMAR |= {"decoder_hidden": 16, "decoder_layers": 1}


def untrained(model: dict[str, Any], structure: Canvas | Structure = ARC) -> arcvae_cli.Model:
    data = {"name": "arc" if isinstance(structure, Canvas) else "equations"}
    settings = Settings.model_validate({"data": data, "model": model, "schedule": {"name": "constant"}})
    torch.manual_seed(0)
    made = build_model(settings.model, structure).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return arcvae_cli.Model(Loaded(made, settings, 1, Path("vae.pth")))


@pytest.fixture(scope="module")
def grids(arc: Dataset) -> np.ndarray:
    return arc.x[:90]


@pytest.fixture(scope="module")
def run(grids: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> arcvae_cli.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.render.plots._write", lambda figure, path: path.touch())
        patch.setattr("arcvae_cli.evaluation.samples.tsne_plane", lambda codes, seed: codes[:, :2])
        patch.setattr("os.fsync", lambda file: None)
        settings = {"train.batch_size": 20, "train.device": "cpu", "model.latent_dim": 3}
        folder = tmp_path_factory.mktemp("work") / "runs"
        return arcvae_cli.train("baseline", grids, settings, name="mine", runs_dir=folder, train={"epochs": 2})


def test_from_an_array_to_a_run_and_back(run: arcvae_cli.Run, grids: np.ndarray) -> None:
    assert [line["epoch"] for line in run.metrics] == [1, 2]
    assert run.report == json.loads((run.folder / "metrics.json").read_text())
    model = run.load(device="cpu")
    splits = [model.examples(split) for split in ("train", "val", "test")]
    assert sorted(map(bytes, np.concatenate(splits))) == sorted(map(bytes, grids))
    assert model.examples("train", limit=4).tolist() == splits[0][:4].tolist()
    row = arcvae_cli.runs(run.folder.parent)[0]
    shown = [row[key] for key in ("state", "epoch", "best_value", "model.latent_dim", "data.path")]
    best = min(line[row["monitor"]] for line in run.metrics)
    assert shown == ["finished", 2, best, 3, str(run.folder / "data.npz")]
    assert (model.sample(5, seed=1) == model.sample(5, seed=1)).all() and model.sample(5).shape == (5, 16, 16)


def test_arrays_are_those_of_the_module_in_batches(
    run: arcvae_cli.Run, grids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcvae_cli.evaluation.information.BATCH_SIZE", 32)
    model, before, x = run.load(device="cpu"), torch.get_rng_state(), grids
    module = model.model
    with torch.no_grad():
        level = module.encode(Batch(torch.from_numpy(x).long()), noise=False)[0]
        logits = module.decode({"z": level.mean}).numpy()
    mean, logvar = model.posterior(x)
    np.testing.assert_allclose(mean, level.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logvar, level.logvar, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.decode(mean[:9], logits=True), logits[:9], rtol=1e-3, atol=1e-4)
    assert (model.decode(mean) == model.reconstruct(x)).all() and model.encode(x).tolist() == mean.tolist()
    offset = (model.encode(x, sample=True, seed=3) - mean) / np.exp(logvar / 2)
    assert abs(offset.mean()) < 0.3 and abs(offset.std() - 1) < 0.3
    path, ends = model.interpolate(x[0], x[5], steps=4), model.reconstruct(x[[0, 5]])
    assert path.shape == (4, 16, 16) and (path[[0, -1]] == ends).all()
    corpus = GridCorpus(Dataset("x", grids, np.full(90, 2, np.uint8)))
    found = importance_weighted(module, corpus, "test", torch.arange(90), 5, 4, 32)
    assert model.log_likelihood(grids, samples=5, seed=4).mean() == pytest.approx(-found["nll_nats"])
    small = np.array([[1, 2], [3, 4]])
    assert model.encode([small]).tolist() == model.encode(np.pad(small, (0, 14))[None]).tolist()
    assert torch.equal(before, torch.get_rng_state())


def test_several_levels_are_a_dict_and_conditions_are_met(grids: np.ndarray) -> None:
    model = untrained(HIERARCHY)
    codes = model.encode(grids[:4])
    assert {name: code.shape for name, code in codes.items()} == {"global": (4, 3), "local": (4, 2, 4, 4)}
    assert (model.decode(codes) == model.reconstruct(grids[:4])).all()
    red = measure(model.sample(20, conditions={"red": "yes"}), ARC)
    assert satisfies(red, {"colour_2": 1}, ARC).all()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        drawn = model.model.decode(draw_prior(model.model, 3)).argmax(dim=1)
    assert (model.sample(3, seed=5) == drawn.numpy()).all()


def test_strings_come_and_go_as_lists_or_as_ids_without_a_grammar() -> None:
    rules, arrays = read_grammar("equations").rules, build_drawn(read_grammar("equations"), 9, size=30)
    model, texts = untrained(GRAMMAR, Structure(rules, 9)), arrays.strings(np.arange(6))
    codes = model.encode(texts)
    assert (codes == model.encode(arrays.x[:6])).all() and model.decode(codes) == model.reconstruct(texts)
    assert isinstance(model.sample(2)[0], str) and model.log_likelihood(texts[:2], samples=3).shape == (2,)
    assert model.interpolate(texts[0], texts[1], steps=2) == model.reconstruct(texts[:2])
    bare = untrained(GRAMMAR, Structure(replace(rules, rhs=None, text=None), 9))
    assert bare.decode(bare.encode(arrays.x[:6])).shape == bare.reconstruct(arrays.x[:6]).shape == (6, 9)
    with pytest.raises(arcvae_cli.InputError, match="at character 3"):
        model.encode(["x+"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x: model.encode(x / 2), r"x\[0\]: no grid of this model, float64 \(16, 16\)"),
        (lambda model, x: model.encode(x + 10), "integers 0 to 9"),
        (lambda model, x: model.encode(x[0]), r"uint8 \(16,\)"),
        (lambda model, x: model.encode([]), "no examples"),
        (lambda model, x: model.decode(np.zeros((2, 4))), r"shapes \{'z': \(2, 4\)\}"),
        (lambda model, x: model.sample(1, conditions={"colours": 3}), "this model takes no conditions"),
        (lambda model, x: model.sample(1, prior="gauss"), "use standard, aggregate, gmm"),
        (lambda model, x: arcvae_cli.train(data=x / 2), "data: no grids of classes: float64"),
        (lambda model, x: arcvae_cli.train(train={"epoch": 2}), "train.epoch: unknown key"),
        (lambda model, x: model.encode([[[1, 2], [3]]]), r"x\[0\]: not an array"),
        (lambda model, x: model.decode([[1.0], [1.0, 2.0]]), "codes: not an array"),
        (lambda model, x: model.interpolate(x[0], x[1], path="arc"), "use linear or slerp"),
        (lambda model, x: arcvae_cli.train(data=[[[1, 2], [3]]]), "data grids: not an array"),
        (lambda model, x: arcvae_cli.load(model.path, device="gpu"), "use auto, cpu"),
        (lambda model, x: arcvae_cli.train(schedule={"name": "nowhere:X"}), "nowhere:X cannot be imported"),
        (lambda model, x: arcvae_cli.load("nowhere"), "no such file, run folder or run"),
    ],
)
def test_wrong_input_is_an_error_with_a_remedy_and_leaves_no_run(
    call: Any, message: str, run: arcvae_cli.Run, grids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(arcvae_cli.InputError, match=message) as caught:
        call(run.load(device="cpu"), grids)
    assert caught.value.fix and not list(tmp_path.iterdir())


def test_the_notebook_runs(run: arcvae_cli.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells in their order; `jupyter execute --inplace` writes the outputs that are committed."""
    matplotlib.use("agg")
    monkeypatch.chdir(run.folder.parents[1])
    names: dict[str, Any] = {}
    for cell in json.loads((DOCS / "inspect_results.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] and all(output["output_type"] != "error" for output in cell["outputs"])
            exec("".join(cell["source"]), names)
    names["plt"].close("all")


def test_names_are_documented() -> None:
    page = (DOCS / "python.md").read_text()
    for name in arcvae_cli.__all__:
        assert inspect.getdoc(getattr(arcvae_cli, name)) and name in page
