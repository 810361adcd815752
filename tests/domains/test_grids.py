from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arcvae_cli.conditions import attributes
from arcvae_cli.data.arc import build_arc
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.domains.base import Task
from arcvae_cli.domains.grids import draw_levels, reconstruct, score_reconstructions, skill
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.evaluation.accuracy import ASKED, JUDGED
from arcvae_cli.evaluation.evaluate import Evaluation, evaluate
from arcvae_cli.models import build_model
from arcvae_cli.models.base import VAE, Batch, Level, standard_level
from arcvae_cli.settings import Settings

TWO = Settings.model_validate(
    {
        "model": {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4},
        "schedule": {"name": "hierarchical"},
    }
)
SMALL = Settings.model_validate({"model": {"latent_dim": 4}, "objective": {"free_bits": 0.3}})


def run(model: VAE, corpus: GridCorpus, split: str, settings: Settings, **more: Any) -> Evaluation:
    return evaluate(Task(model, corpus, split, settings, **more))


@pytest.fixture(scope="module")
def arc() -> Dataset:
    return build_arc(1000, 0)


@pytest.fixture(scope="module")
def corpus(arc: Dataset) -> GridCorpus:
    return GridCorpus(arc)


@pytest.fixture(scope="module")
def model() -> VAE:
    """Untrained, its weights large enough for pictures that depend on the code."""
    torch.manual_seed(0)
    model = build_model(SMALL.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)
    return model


@pytest.fixture(scope="module")
def full(model: VAE, corpus: GridCorpus) -> Evaluation:
    return run(model, corpus, "test", SMALL, iwae_samples=5, iwae_examples=30)


@pytest.fixture(scope="module")
def hierarchy() -> VAE:
    """Untrained, of two levels, with pictures that depend on both and on the conditions."""
    torch.manual_seed(0)
    model = build_model(TWO.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.08 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def both(hierarchy: VAE, corpus: GridCorpus) -> Evaluation:
    return run(hierarchy, corpus, "test", TWO, iwae_samples=3, iwae_examples=20)


class Copy(VAE):
    """A code with a number a cell, decoded by its first digit: reconstructs everything."""

    level_shapes = {"z": (256,)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(50.0))

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        mean = batch.x.flatten(1).float()
        return (standard_level("z", mean, torch.full_like(mean, -12.0), noise),)

    def decode(self, latents: Mapping[str, Tensor], conditions: Tensor | None = None) -> Tensor:
        distance = latents["z"].view(-1, 1, 16, 16) - torch.arange(10.0).view(10, 1, 1)
        return -self.sharpness * distance.square()

    def prior(
        self,
        n: int,
        temperature: float = 1.0,
        conditions: Tensor | None = None,
        noise: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Independent cells, a fifth of them coloured."""
        return {"z": torch.randint(1, 10, (n, 256)) * (torch.rand(n, 256) < 0.2).float()}


# ------------------------------------------------------------------------------------------------ scores


def test_scores_of_two_small_pictures() -> None:
    truth = torch.tensor([[[0, 1, 1], [0, 2, 0]], [[3, 0, 0], [0, 0, 0]]])
    guess = torch.tensor([[[0, 1, 2], [4, 0, 0]], [[3, 0, 0], [0, 0, 0]]])
    scores = score_reconstructions(guess.byte(), truth.byte(), torch.tensor([[2, 2], [1, 3]]))
    assert scores["pixel_accuracy"] == 9 / 12
    assert scores["non_black_accuracy"] == 2 / 4
    assert scores["non_black_iou"] == 2 / 5  # not black in either: the four originals' and the 4 drawn on black
    assert scores["inside_accuracy"] == 5 / 7  # 2 of 4 cells in the first rectangle, 3 of 3 in the second
    assert (scores["exact_share"], scores["near_share"], scores["blank_share"]) == (1 / 2, 1, 0)
    assert scores["colour_accuracy"] == [7 / 8, 1 / 2, 0, 1, *[None] * 6]


def test_a_split_without_colour_is_refused() -> None:
    with pytest.raises(InputError, match="black"):
        score_reconstructions(torch.ones(1, 4, 4).byte(), torch.zeros(1, 4, 4).byte(), None)


@pytest.mark.parametrize(("accuracy", "expected"), [(1.0, 1.0), (0.8, 0.0), (0.9, 0.5), (0.6, -1.0)])
def test_skill_counts_from_the_better_baseline(accuracy: float, expected: float) -> None:
    assert skill(accuracy, 0.5, 0.8) == pytest.approx(expected)
    assert skill(accuracy, 0.5, 1.0) is None


# ------------------------------------------------------------------------------------------------ the whole


def test_a_model_that_copies_has_the_highest_scores(corpus: GridCorpus) -> None:
    result = run(Copy(), corpus, "test", Settings(), seed=0).report
    for scores in (result["reconstruction"]["posterior_mean"], result["reconstruction"]["posterior_sample"]):
        assert (scores["pixel_accuracy"], scores["non_black_accuracy"], scores["non_black_iou"]) == (1, 1, 1)
        assert (scores["inside_accuracy"], scores["exact_share"], scores["near_share"], scores["blank_share"]) == (
            1,
            1,
            1,
            0,
        )
        assert set(scores["colour_accuracy"]) == {1}
    assert (result["reconstruction"]["skill"]["pixel"], result["reconstruction"]["skill"]["non_black"]) == (1, 1)
    assert result["reconstruction"]["pca_components"] == 256
    assert result["elbo"]["reconstruction_nats"] < 0.1
    assert result["levels"]["z"]["mutual_information"]["is_bound"]
    assert result["levels"]["z"]["mutual_information"]["nats"] == pytest.approx(math.log(100), abs=1e-3)
    assert result["shuffled_codes"]["accuracy"] == 1
    assert result["shuffled_codes"]["shuffled_accuracy"] < 0.9
    # its draws are noise, and told as such
    noise = result["prior_samples"]
    assert (noise["blank_share"], noise["distinct_share"], noise["novel_share"]) == (0, 1, 1)
    assert noise["coverage"] < 0.05
    assert noise["non_black_share"] == pytest.approx(0.2, abs=0.01)
    assert noise["object_distance"] > 10
    findings = {finding["name"]: finding["ok"] for finding in result["verdict"]["findings"]}
    assert findings["pixel accuracy"]
    assert findings["non-black accuracy"]
    assert not findings["specks among samples"]


def test_the_report_agrees_with_itself_and_with_plain_sums(
    full: Evaluation, model: VAE, arc: Dataset, corpus: GridCorpus
) -> None:
    result = full.report
    grids = arc.x[arc.split == 2]
    pictures = reconstruct(model, grids)
    found = result["reconstruction"]
    assert found["posterior_mean"]["pixel_accuracy"] == pytest.approx((pictures == grids).mean())
    assert found["posterior_mean"]["non_black_accuracy"] == pytest.approx((pictures == grids)[grids > 0].mean())
    assert found["all_black"]["pixel_accuracy"] == pytest.approx((grids == 0).mean())
    inside = np.concatenate(
        [(a == b)[:h, :w].ravel() for a, b, (h, w) in zip(pictures, grids, arc.shape[arc.split == 2], strict=True)]
    )
    assert found["posterior_mean"]["inside_accuracy"] == pytest.approx(inside.mean())
    assert found["posterior_sample"]["pixel_accuracy"] != found["posterior_mean"]["pixel_accuracy"]
    assert found["pca"]["non_black_accuracy"] > found["all_black"]["non_black_accuracy"] == 0
    assert (found["examples"], found["pca_components"], found["pca_training_grids"]) == (100, 4, 800)
    best = max(found["all_black"]["pixel_accuracy"], found["pca"]["pixel_accuracy"])
    assert found["skill"]["pixel"] == pytest.approx((found["posterior_mean"]["pixel_accuracy"] - best) / (1 - best))

    assert sorted(full.indices.tolist()) == list(range(100))
    np.testing.assert_array_equal(full.errors, (pictures != grids).sum(axis=(1, 2))[full.indices])
    means = model.encode(Batch(torch.from_numpy(grids[full.indices]).long()), noise=False)[0].mean
    np.testing.assert_allclose(full.codes["z"], means.detach().numpy(), rtol=1e-4, atol=1e-5)

    weighted = result["importance_weighted"]
    assert (weighted["examples"], weighted["samples"]) == (30, 5)
    assert weighted["nll_nats"] < weighted["single_nats"]
    assert result["elbo"]["elbo_nats"] == pytest.approx(
        -result["elbo"]["reconstruction_nats"] - result["elbo"]["kl_nats"]
    )
    assert result["elbo"]["kl_nats"] == pytest.approx(sum(result["levels"]["z"]["kl_nats"]))
    assert result["elbo"]["elbo_bits"] == pytest.approx(result["elbo"]["elbo_nats"] / 256 / math.log(2))
    assert result["shuffled_codes"]["accuracy"] == pytest.approx(found["posterior_mean"]["pixel_accuracy"])
    assert result["prior_samples"]["reference"] == 100
    assert result["training_grids"]["novel_share"] == 0
    floor = next(finding for finding in result["verdict"]["findings"] if "floor" in finding["name"])
    assert floor["value"] == min(result["levels"]["z"]["kl_nats"])


def test_the_seed_decides_and_the_generator_is_left_alone(full: Evaluation, model: VAE, corpus: GridCorpus) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = run(model, corpus, "test", SMALL, iwae_samples=5, iwae_examples=30)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.report == full.report
    other = run(model, corpus, "test", SMALL, seed=1, quick=True).report
    assert other["elbo"]["reconstruction_nats"] != full.report["elbo"]["reconstruction_nats"]
    # what has no noise in it differs by the order of its sums only
    assert other["reconstruction"]["posterior_mean"] == full.report["reconstruction"]["posterior_mean"]


def test_quick_leaves_out_what_is_slow(model: VAE, corpus: GridCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcvae_cli.domains.grids.QUICK_EXAMPLES", 40)
    monkeypatch.setattr("arcvae_cli.domains.grids.QUICK_SAMPLES", 20)
    heard: list[str] = []
    result = run(model, corpus, "val", SMALL, quick=True, note=heard.append).report
    assert (result["split"], result["quick"], result["reconstruction"]["examples"]) == ("val", True, 40)
    assert (result["prior_samples"]["samples"], result["prior_samples"]["reference"]) == (20, 20)
    assert (result["shuffled_codes"], result["interpolation"], result["importance_weighted"]) == (None, None, None)
    assert result["levels"]["z"]["mutual_information"] is None
    assert heard[0] == "reconstructing 40 grids"


def test_training_grids_of_another_corpus_make_the_baseline(model: VAE, corpus: GridCorpus, arc: Dataset) -> None:
    other = GridCorpus(replace(arc, split=np.where(arc.split == 2, 0, 2).astype(np.uint8)))
    result = run(model, corpus, "test", SMALL, trained=other, quick=True).report
    assert result["reconstruction"]["pca_training_grids"] == 100
    empty = GridCorpus(replace(arc, split=np.full_like(arc.split, 2)))
    with pytest.raises(InputError, match="no training grids"):
        run(model, corpus, "test", SMALL, trained=empty)


def test_a_split_of_one_grid_is_enough_and_none_is_not(model: VAE, arc: Dataset) -> None:
    split = np.where(arc.split == 2, 0, arc.split)
    split[0] = 2
    one = GridCorpus(replace(arc, split=split.astype(np.uint8), shape=None))
    result = run(model, one, "test", SMALL).report
    assert result["reconstruction"]["examples"] == 1
    assert result["reconstruction"]["posterior_mean"]["inside_accuracy"] is None
    assert (result["shuffled_codes"], result["interpolation"]) == (None, None)
    assert (result["prior_samples"]["density"], result["prior_samples"]["coverage"]) == (None, None)
    json.dumps(result, allow_nan=False)
    split[0] = 0
    with pytest.raises(InputError, match="test is empty"):
        run(model, GridCorpus(replace(arc, split=split.astype(np.uint8))), "test", SMALL)


def test_broken_weights_are_named(corpus: GridCorpus) -> None:
    broken = Copy()
    with torch.no_grad():
        broken.sharpness.fill_(math.nan)
    with pytest.raises(ArcvaeError, match="not finite"):
        run(broken, corpus, "test", Settings())


# ------------------------------------------------------------------------------------------------ two levels


def test_every_level_has_its_numbers(both: Evaluation, hierarchy: VAE, arc: Dataset) -> None:
    result = both.report
    grids = arc.x[arc.split == 2][both.indices]
    with torch.no_grad():
        top, _ = hierarchy.eval().encode(Batch(torch.from_numpy(grids).long()), noise=False)
    assert list(result["levels"]) == ["global", "local"]
    np.testing.assert_allclose(result["levels"]["global"]["kl_nats"], top.kl.mean(dim=0), rtol=1e-3)
    assert (result["levels"]["global"]["units"], result["levels"]["local"]["units"]) == (3, 32)
    assert result["levels"]["global"]["mutual_information"] is not None
    assert (result["levels"]["local"]["mutual_information"], result["levels"]["global"]["cells_nats"]) == (None, None)
    assert both.maps["local"].shape == (100, 4, 4)
    cells = result["levels"]["local"]["cells_nats"]
    np.testing.assert_allclose(cells, both.maps["local"].mean(axis=0), rtol=1e-5)
    assert sum(map(sum, cells)) == pytest.approx(sum(result["levels"]["local"]["kl_nats"]), rel=1e-5)
    totals = [sum(level["kl_nats"]) for level in result["levels"].values()]
    assert sum(totals) == pytest.approx(result["elbo"]["kl_nats"])
    assert result["reconstruction"]["pca_components"] == 35
    assert set(result["shuffled_codes"]["levels"]) == {"global", "local"}
    names = [finding["name"] for finding in result["verdict"]["findings"]]
    assert {"smallest KL, global", "smallest KL, local", "samples obey colours"} <= set(names)
    json.dumps(result, allow_nan=False)


def test_the_headline_numbers_are_given_no_condition(both: Evaluation, hierarchy: VAE, arc: Dataset) -> None:
    grids = arc.x[arc.split == 2]
    x = torch.from_numpy(grids).long()
    with torch.no_grad():
        dropped = hierarchy.eval()(Batch(x), noise=False).logits.argmax(dim=1).numpy()
        given = hierarchy(Batch(x, conditions=torch.from_numpy(attributes(grids))), noise=False)
    assert both.report["reconstruction"]["posterior_mean"]["pixel_accuracy"] == pytest.approx((dropped == grids).mean())
    assert (given.logits.argmax(dim=1).numpy() != dropped).any()


def test_what_a_conditional_model_is_asked(both: Evaluation, full: Evaluation, hierarchy: VAE, corpus: GridCorpus):
    assert full.report["adherence"] is None
    assert [row["asked"] for row in both.report["adherence"]["rows"]] == list(ASKED)
    assert both.report["adherence"]["samples"] == 500
    quick = run(hierarchy, corpus, "test", TWO, quick=True).report
    assert [row["asked"] for row in quick["adherence"]["rows"]] == list(JUDGED)
    assert quick["adherence"]["samples"] == 100
    found = {finding["name"]: finding for finding in quick["verdict"]["findings"]}
    colours = [
        row["counted_obeying"] or 0.0 for row in quick["adherence"]["rows"] if row["asked"].startswith("colours")
    ]
    assert found["samples obey colours"]["value"] == min(colours)
    assert (
        found["of them not blank or repeated"]["value"]
        == min(row["counted"] for row in quick["adherence"]["rows"]) / 100
    )


def test_rows_share_the_top_latent_and_columns_the_noise_below(hierarchy: VAE) -> None:
    drawn: dict[str, Tensor] = {}

    class Listening(type(hierarchy)):  # type: ignore[misc]
        def decode(self, latents: Mapping[str, Tensor], conditions: Tensor | None = None) -> Tensor:
            drawn.update(latents)
            return super().decode(latents, conditions)

        def prior(self, n: int, temperature: float = 1.0, conditions: Tensor | None = None, noise=None):
            drawn["noise"] = noise["local"]
            return super().prior(n, temperature, conditions, noise)

    listening = Listening(TWO.model)
    listening.load_state_dict(hierarchy.state_dict())
    grids = draw_levels(listening, 3, 4, seed=2)
    assert (grids.shape, grids.dtype) == ((12, 16, 16), np.uint8)
    top, noise = drawn["global"].view(3, 4, -1), drawn["noise"].view(3, 4, -1)
    assert (top == top[:, :1]).all()
    assert (noise == noise[:1]).all()
    assert len(torch.unique(top[:, 0], dim=0)) == 3
    assert len(torch.unique(noise[0], dim=0)) == 4
    assert np.array_equal(grids, draw_levels(hierarchy, 3, 4, seed=2))
