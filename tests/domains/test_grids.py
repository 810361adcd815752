from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.commands.train import new_model
from arcvae_cli.conditions import measure
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.domains.base import Task
from arcvae_cli.domains.grids import GridDomain, score_reconstructions
from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.evaluate import Evaluation, evaluate
from arcvae_cli.evaluation.samples import asked_of
from arcvae_cli.models import build_model
from arcvae_cli.models.base import VAE, Batch
from arcvae_cli.settings import Settings

MODEL = {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}
TWO = Settings.model_validate({"model": MODEL, "schedule": {"name": "hierarchical"}})
SMALL = Settings.model_validate({"model": {"latent_dim": 4}, "objective": {"free_bits": 0.3}})


def run(model: VAE, corpus: GridCorpus, split: str, settings: Settings, **more: Any) -> Evaluation:
    return evaluate(Task(model, corpus, split, settings, **more))


@pytest.fixture(scope="module", autouse=True)
def few_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, count in {"SAMPLES": 100, "CONDITION_SAMPLES": 20, "PAIRS": 20}.items():
            patch.setattr(f"arcvae_cli.domains.grids.{name}", count)
        yield


@pytest.fixture(scope="module")
def corpus(arc: Dataset) -> GridCorpus:
    return GridCorpus(arc)


def untrained(settings: Settings) -> VAE:
    """With weights large enough for reconstructions that depend on the code and on conditions."""
    torch.manual_seed(0)
    model = build_model(settings.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0).add_(0.08 * torch.randn_like(weight))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> VAE:
    return untrained(SMALL)


@pytest.fixture(scope="module")
def full(model: VAE, corpus: GridCorpus) -> Evaluation:
    return run(model, corpus, "test", SMALL, iwae_samples=5, iwae_examples=30)


@pytest.fixture(scope="module")
def hierarchy() -> VAE:
    return untrained(TWO)


def test_scores_of_two_small_pictures() -> None:
    truth = torch.tensor([[[0, 1, 1], [0, 2, 0]], [[3, 0, 0], [0, 0, 0]]])
    guess = torch.tensor([[[0, 1, 2], [4, 0, 0]], [[3, 0, 0], [0, 0, 0]]])
    scores = score_reconstructions(guess.byte(), truth.byte(), torch.tensor([[2, 2], [1, 3]]))
    assert scores["pixel_accuracy"] == 9 / 12
    assert scores["foreground_accuracy"] == 2 / 4
    assert scores["foreground_iou"] == 2 / 5  # not black in either: the four originals' and the 4 drawn on black
    assert scores["inside_accuracy"] == 5 / 7  # 2 of 4 cells in the first rectangle, 3 of 3 in the second
    assert (scores["exact_share"], scores["near_share"], scores["blank_share"]) == (1 / 2, 1, 0)
    assert scores["class_accuracy"] == [7 / 8, 1 / 2, 0, 1, *[None] * 6]
    with pytest.raises(InputError, match="black"):
        score_reconstructions(guess.byte(), torch.zeros_like(truth).byte(), None)


def test_scores_count_the_cells_of_the_grid_and_any_background() -> None:
    canvas = Canvas(2, 3, 5, background=2, outside=4, arc=False)
    truth = torch.tensor([[[2, 1, 4], [0, 2, 4]], [[3, 2, 2], [4, 4, 4]]]).byte()
    guess = torch.tensor([[[2, 1, 0], [2, 4, 3]], [[3, 2, 2], [2, 1, 0]]]).byte()
    scores = score_reconstructions(guess, truth, None, truth != 4, canvas)
    assert scores["pixel_accuracy"] == 5 / 7 and scores["exact_share"] == 1 / 2
    assert (scores["foreground_accuracy"], scores["foreground_iou"]) == (2 / 3, 2 / 4)
    assert scores["class_accuracy"] == [0, 1, 3 / 4, 1, None] and scores["blank_share"] == 0
    without = score_reconstructions(guess, truth, None, truth != 4, replace(canvas, background=None))
    none = {name for name, value in without.items() if value is None and scores[name] is not None}
    assert none == {"foreground_accuracy", "foreground_iou", "blank_share"}
    assert without["pixel_accuracy"] == 5 / 7


@pytest.mark.parametrize("background", [1, None])
def test_an_evaluation_of_another_canvas(background: int | None) -> None:
    canvas, random = Canvas(5, 7, 3, background, arc=False), np.random.default_rng(0)
    grids = random.integers(0, 3, (60, 5, 7), np.uint8)
    grids[:, 0] = 2  # what the most common class of each cell knows
    own = GridCorpus(Dataset("arc", grids, np.arange(60, dtype=np.uint8) % 3, canvas=canvas))
    model = build_model(SMALL.model, canvas)
    found = run(model, own, "test", SMALL).report
    scores = found["reconstruction"]
    common = np.stack([(grids[::3] == number).sum(0) for number in range(3)]).argmax(0)
    assert scores["per_cell"]["pixel_accuracy"] == pytest.approx((grids[2::3] == common).mean())
    assert found["canvas"] == asdict(canvas) and ("all_background" in scores) == (background is not None)
    judged = {finding["name"]: finding for finding in found["verdict"]["findings"]}
    assert ("foreground accuracy" in judged) == ("blank samples" in judged) == (background is not None)
    assert judged["pixel accuracy"]["remedy"].startswith("train longer: --epochs 2000 ")
    assert (found["prior_samples"]["speck_share"] is None) == (background is None)
    assert ("per cell" in next(GridDomain().tables(found)).columns) and json.dumps(found, allow_nan=False)
    told = GridDomain().baseline(own)
    plain = (grids[1::3] == (common if background is None else 1)).mean()
    assert told["canvas"] == canvas and told["blank"] == pytest.approx(plain)
    if background is None:
        monitored = Settings.model_validate({"train": {"monitor": "val/foreground_accuracy", "batch_size": 4}})
        with pytest.raises(InputError, match="needs a background"):
            new_model(monitored, own, torch.device("cpu"))


def test_the_report_agrees_with_itself_and_with_plain_sums(
    full: Evaluation, model: VAE, arc: Dataset, corpus: GridCorpus
) -> None:
    result, grids, shapes = full.report, arc.x[arc.split == 2], arc.shape[arc.split == 2]
    with torch.no_grad():
        pictures = model.reconstruct(Batch(torch.from_numpy(grids).long())).numpy()
    found = full.report["reconstruction"]
    mean, right = found["posterior_mean"], pictures == grids
    assert mean["pixel_accuracy"] == pytest.approx(right.mean())
    assert mean["foreground_accuracy"] == pytest.approx(right[grids > 0].mean())
    assert found["all_background"]["pixel_accuracy"] == pytest.approx((grids == 0).mean())
    inside = np.concatenate([one[:h, :w].ravel() for one, (h, w) in zip(right, shapes, strict=True)])
    assert mean["inside_accuracy"] == pytest.approx(inside.mean())
    assert found["posterior_sample"]["pixel_accuracy"] != mean["pixel_accuracy"]
    assert found["pca"]["foreground_accuracy"] > found["all_background"]["foreground_accuracy"] == 0
    assert sorted(full.indices.tolist()) == list(range(100))
    np.testing.assert_array_equal(full.errors, (~right).sum(axis=(1, 2))[full.indices])
    means = model.encode(Batch(torch.from_numpy(grids[full.indices]).long()), noise=False)[0].mean
    np.testing.assert_allclose(full.codes["z"], means.detach().numpy(), rtol=1e-4, atol=1e-5)

    elbo = result["elbo"]
    assert result["importance_weighted"]["nll_nats"] < result["importance_weighted"]["single_nats"]
    assert elbo["elbo_nats"] == pytest.approx(-elbo["reconstruction_nats"] - elbo["kl_nats"])
    assert elbo["kl_nats"] == pytest.approx(sum(result["levels"]["z"]["kl_nats"]))
    assert elbo["elbo_bits"] == pytest.approx(elbo["elbo_nats"] / 256 / math.log(2))
    assert result["shuffled_codes"]["accuracy"] == pytest.approx(mean["pixel_accuracy"])


def test_a_quick_evaluation_depends_on_the_seed_alone(
    full: Evaluation, model: VAE, corpus: GridCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcvae_cli.domains.grids.QUICK_SAMPLES", 20)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (run(model, corpus, "test", SMALL, seed=seed, quick=True).report for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one == again
    assert one["elbo"]["reconstruction_nats"] != other["elbo"]["reconstruction_nats"]
    # what has no noise in it differs by the order of its sums only
    mean = one["reconstruction"]["posterior_mean"]
    assert mean == other["reconstruction"]["posterior_mean"] == full.report["reconstruction"]["posterior_mean"]
    assert (one["prior_samples"]["samples"], one["prior_samples"]["reference"]) == (20, 20)
    assert (one["shuffled_codes"], one["interpolation"], one["importance_weighted"]) == (None, None, None)


def test_every_level_has_its_numbers_measured_without_conditions(
    corpus: GridCorpus, hierarchy: VAE, arc: Dataset
) -> None:
    both = run(hierarchy, corpus, "test", TWO)
    result, grids = both.report, arc.x[arc.split == 2][both.indices]
    x = torch.from_numpy(grids).long()
    with torch.no_grad():
        top, _ = hierarchy.encode(Batch(x), noise=False)
        dropped = hierarchy.reconstruct(Batch(x)).numpy()
        given = hierarchy.reconstruct(Batch(x, conditions=torch.from_numpy(measure(grids, ARC)))).numpy()
    assert result["reconstruction"]["posterior_mean"]["pixel_accuracy"] == pytest.approx((dropped == grids).mean())
    assert (given != dropped).any()
    levels = result["levels"]
    np.testing.assert_allclose(levels["global"]["kl_nats"], top.kl.mean(dim=0), rtol=1e-3)
    assert (levels["global"]["units"], levels["local"]["units"]) == (3, 32)
    assert levels["global"]["mutual_information"] is not None
    assert (levels["local"]["mutual_information"], levels["global"]["cells_nats"]) == (None, None)
    cells = levels["local"]["cells_nats"]
    np.testing.assert_allclose(cells, both.maps["local"].mean(axis=0), rtol=1e-5)
    assert sum(map(sum, cells)) == pytest.approx(sum(levels["local"]["kl_nats"]), rel=1e-5)
    assert sum(sum(level["kl_nats"]) for level in levels.values()) == pytest.approx(result["elbo"]["kl_nats"])
    assert result["reconstruction"]["pca_components"] == 35
    assert set(result["shuffled_codes"]["levels"]) == {"global", "local"}
    json.dumps(result, allow_nan=False)
    # a conditional model is judged by its worst condition
    found = {finding["name"]: finding["value"] for finding in result["verdict"]["findings"]}
    judged = [row for row in result["adherence"]["rows"] if row["asked"] in asked_of(ARC) and row["data"] > 0]
    colours = [row["counted_obeying"] or 0.0 for row in judged if row["asked"].startswith("colours")]
    assert found["samples satisfy colours"] == min(colours)
    assert found["samples neither blank nor repeated"] == min(row["counted"] for row in judged) / 20
