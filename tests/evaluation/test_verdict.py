"""Verdicts on reports written by hand: what misses, and what is advised."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from arcvae_cli import domains
from arcvae_cli.evaluation.verdict import Advice, judge
from arcvae_cli.settings import Settings

Report = dict[str, Any]
ACCURACY = {
    "samples": 100,
    "rows": [
        {"asked": "colours=1", "counted_obeying": 0.9, "counted": 90},
        {"asked": "colours=3", "counted_obeying": 0.81, "counted": 50},
        {"asked": "symmetry=lr", "counted_obeying": 1.0, "counted": 100},
        {"asked": "red=yes", "counted_obeying": 0.0, "counted": 0},
    ],
}
GRIDS: Report = {
    "reconstruction": {
        "posterior_mean": {"pixel_accuracy": 0.93, "non_black_accuracy": 0.70, "blank_share": 0.0},
        "all_black": {"pixel_accuracy": 0.79},
        "pca": {"pixel_accuracy": 0.85, "non_black_accuracy": 0.31},
    },
    "levels": {"z": {"kl_nats": [2.0, 0.5, 3.0]}},
    "prior_samples": {
        "blank_share": 0.02,
        "reference_blank_share": 0.0,
        "speck_share": 0.30,
        "reference_speck_share": 0.25,
    },
    "adherence": None,
}
STRINGS: Report = {
    "reconstruction": {"posterior_mean": {"exact_share": 0.9}, "frequencies": {"nll_nats": 20.6}},
    "levels": {"z": {"kl_nats": [5.0, 9.0, 8.0, 0.01]}},
    "elbo": {"reconstruction_nats": 2.0, "elbo_nats": -21.0, "examples": 100},
    "elbo_error": 0.1,
    "entropy_nats": 19.11,
    "posterior_noise": 1.0,
    "importance_weighted": None,
    "shuffled_codes": {"reconstruction_nats": 2.0, "shuffled_reconstruction_nats": 42.0},
    "prior_samples": {"standard": {"complete_share": 0.9}, "aggregate": {"complete_share": 0.95}},
}
BASE: Report = {
    "grids": {"schedule": {"name": "constant", "max_beta": 0.1}, "objective": {"free_bits": 0.3}},
    "two": {"model": {"name": "hierarchical"}, "schedule": {"name": "constant", "max_beta": 0.02}},
    "strings": {
        "data": {"name": "equations"},
        "model": {"name": "grammar"},
        "schedule": {"name": "constant", "max_beta": 0.5},
    },
}


def changed(report: Report, changes: Report) -> Report:
    """A copy of nested dicts with other values at dotted keys."""
    report = copy.deepcopy(report)
    for key, value in changes.items():
        *above, last = key.split(".")
        place = report
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return report


def verdict(kind: str, changes: Report | None = None, settings: Report | None = None) -> dict[str, Any]:
    """The verdict on a good report with changes, of a run with changes to its settings."""
    report = STRINGS if kind == "strings" else changed(GRIDS, {"levels": LEVELS}) if kind == "two" else GRIDS
    report = changed(report, changes or {})
    advice = Advice(Settings.model_validate(changed(BASE[kind], settings or {})), list(report["levels"]), 256)
    domain = domains.of("strings" if kind == "strings" else "grids")
    return judge(domain.targets(report, advice), domain.summary(report, advice))


LEVELS = {"global": {"kl_nats": [0.5, 2.0]}, "local": {"kl_nats": [10.0, 20.0, 30.0]}}


def missed(*arguments: Any) -> dict[str, str]:
    """Names and remedies of what is missed."""
    found = verdict(*arguments)["findings"]
    assert all((one["remedy"] is None) == one["ok"] for one in found)
    return {one["name"]: one["remedy"] for one in found if not one["ok"]}


@pytest.mark.parametrize("kind", ["grids", "two", "strings"])
def test_a_good_model_meets_every_target(kind: str) -> None:
    found = verdict(kind)
    assert found["ok"] and "the code is alive" in found["summary"] and "every target is met" in found["summary"]


SCORES = "reconstruction.posterior_mean"


@pytest.mark.parametrize(
    ("changes", "name", "ok"),
    [
        ({f"{SCORES}.pixel_accuracy": 0.90}, "pixel accuracy", True),
        ({f"{SCORES}.pixel_accuracy": 0.8999}, "pixel accuracy", False),
        ({"reconstruction.pca.pixel_accuracy": 0.93}, "pixel accuracy, baselines", False),
        ({"reconstruction.all_black.pixel_accuracy": 0.9299}, "pixel accuracy, baselines", True),
        ({"reconstruction.all_black.pixel_accuracy": 0.94}, "pixel accuracy, baselines", False),
        ({f"{SCORES}.non_black_accuracy": 0.30}, "non-black accuracy", False),
        ({f"{SCORES}.non_black_accuracy": 0.301}, "non-black accuracy", True),
        ({"levels.z.kl_nats": [2.0, 0.05]}, "smallest KL of a dimension", False),
        ({"levels.z.kl_nats": [2.0, 0.051]}, "smallest KL of a dimension", True),
        ({"levels.z.kl_nats": [2.0, 0.285]}, "KL at the free-bits floor", True),
        ({"levels.z.kl_nats": [2.0, 0.284]}, "KL at the free-bits floor", False),
        ({"prior_samples.blank_share": 0.10}, "blank samples", True),
        ({"prior_samples.blank_share": 0.11}, "blank samples", False),
        ({"prior_samples.blank_share": 0.11, "prior_samples.reference_blank_share": 0.05}, "blank samples", True),
        ({"prior_samples.speck_share": 0.50}, "specks among samples", True),
        ({"prior_samples.speck_share": 0.51}, "specks among samples", False),
        ({"prior_samples.reference_speck_share": 0.0}, "specks among samples", False),
        ({"adherence": ACCURACY}, "samples obey colours", True),
        ({"adherence": ACCURACY}, "samples obey symmetry", True),
        ({"adherence": ACCURACY}, "of them not blank or repeated", True),
        (
            {"adherence": changed(ACCURACY, {"rows": [{**ACCURACY["rows"][1], "counted_obeying": 0.8}]})},
            "samples obey colours",
            False,
        ),
        (
            {"adherence": changed(ACCURACY, {"rows": [{**ACCURACY["rows"][1], "counted": 49}]})},
            "of them not blank or repeated",
            False,
        ),
    ],
)
def test_each_target_of_grids_has_its_edge(changes: Report, name: str, ok: bool) -> None:
    found = verdict("grids", changes)
    row = next(one for one in found["findings"] if one["name"] == name)
    assert row["ok"] is ok and (row["remedy"] is None) is ok and found["ok"] <= ok


DEAD = {"levels.z.kl_nats": [0.0, 0.0], f"{SCORES}.blank_share": 1.0, f"{SCORES}.non_black_accuracy": 0.0}


def test_the_cause_of_a_collapse_is_named() -> None:
    heavy = {"objective.reduction": "mean", "objective.free_bits": 0.0}
    assert "beta 0.1, 25.6 on the ELBO scale" in missed("grids", DEAD, heavy)["smallest KL of a dimension"]
    light = missed("grids", DEAD, {**heavy, "schedule.max_beta": 0.01})["smallest KL of a dimension"]
    assert light.startswith("lower beta (peak 0.01, 2.56 on the ELBO scale) or lengthen its warm-up; set objective")
    found = verdict("grids", DEAD)["summary"]
    assert found.startswith("posterior collapse: 2 of 2 z dimensions") and "100% of the reconstructions are" in found
    partial = verdict("grids", {"levels.z.kl_nats": [1.0, 0.01, 0.02]})["summary"]
    assert partial.startswith("partial collapse: 2 of 3 z dimensions carry under 0.05 nats")


def test_a_live_code_before_a_black_decoder_is_not_a_collapse() -> None:
    black = {f"{SCORES}.non_black_accuracy": 0.001, "prior_samples.blank_share": 1.0}
    assert "the code is alive, the decoder is not" in verdict("grids", black)["summary"]
    remedies = missed("grids", black)
    assert remedies["non-black accuracy"] == remedies["blank samples"]
    assert "model.body = residual, objective.reconstruction = focal" in remedies["blank samples"]
    focal = missed("grids", black, {"objective.reconstruction": "focal", "model.body": "residual"})
    assert focal["blank samples"].endswith("paints black: train longer")


@pytest.mark.parametrize(
    ("mode", "kl", "names"),
    [
        ("per_sample", [0.25, 2.0], ["KL at the free-bits floor"]),
        ("per_dim", [0.25, 2.0], ["KL at the free-bits floor"]),
        ("total", [0.25, 0.2], []),
        ("total", [0.1, 0.1], ["total KL at the free-bits floor", "dimensions held by free bits alone"]),
        ("per_dim", [0.30, 0.29, 2.0], ["dimensions held by free bits alone"]),
        ("per_dim", [0.30, 0.40, 2.0], []),
        ("total", [0.10, 0.11, 0.10], ["dimensions held by free bits alone"]),
        ("total", [0.10, 0.20, 0.10], []),
    ],
)
def test_free_bits_hold_a_total_or_each_dimension(mode: str, kl: list[float], names: list[str]) -> None:
    settings = {"objective.free_bits_mode": mode}
    found = missed("grids", {"levels.z.kl_nats": kl}, settings)
    assert list(found) == names
    if names and "floor" in names[0]:
        assert ("per_dim" if mode == "per_sample" else "lower train.lr") in found[names[0]]
    held = "dimensions held by free bits alone" in names
    assert ("held up by free bits alone" in verdict("grids", {"levels.z.kl_nats": kl}, settings)["summary"]) is held


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("grids", {"model.latent_dim": 10}, "model.body = residual; raise model.latent_dim to 12-16 (it is 10)"),
        ("grids", {"model.latent_dim": 32, "model.body": "residual"}, "train longer, or lower beta (peak 0.1)"),
        ("two", {"model.local_channels": 4}, "raise model.local_channels (it is 4), or lower beta of the local level"),
        ("grids", {"model.latent_dim": 20, "schedule": {"name": "geco", "tolerance": 0.5}}, "lower schedule.tolerance"),
        (
            "two",
            {"schedule": {"name": "hierarchical", "local": {"name": "kl_capacity", "capacity": 40.0}}},
            "or raise schedule.local.capacity (it is 40)",
        ),
    ],
)
def test_a_small_model_is_enlarged_or_its_kl_freed(kind: str, settings: Report, said: str) -> None:
    assert said in missed(kind, {f"{SCORES}.pixel_accuracy": 0.86}, settings)["pixel accuracy"]


def test_codes_off_the_prior_ask_for_more_beta() -> None:
    specks = {"prior_samples.speck_share": 0.9}
    assert missed("two", specks)["specks among samples"].startswith("raise beta slowly (peak 0.02) and look")
    mixed = {"schedule": {"name": "hierarchical", "local": {"name": "kl_capacity", "capacity": 40.0}}}
    assert "lower schedule.local.capacity (it is 40) and look" in missed("two", specks, mixed)["specks among samples"]


def test_each_level_is_judged_by_its_own_floor() -> None:
    settings = {"objective.free_bits_by_level": {"global": 0.6}}
    names = [one["name"] for one in verdict("two", {}, settings)["findings"]]
    assert [name for name in names if "KL" in name or "held" in name] == [
        "smallest KL, global",
        "KL at the free-bits floor, global",
        "held by free bits alone, global",
        "smallest KL, local",
    ]
    assert list(missed("two", {}, settings)) == ["KL at the free-bits floor, global"]
    dead = {"levels.global.kl_nats": [0.0, 0.01]}
    assert verdict("two", dead)["summary"].startswith("partial collapse: 2 of 2 global and 0 of 3 local dimensions")
    assert missed("two", dead)["smallest KL, global"].startswith("lower beta of the global level (peak 0.02)")


# ------------------------------------------------------------------------------------------------ strings


@pytest.mark.parametrize(
    ("changes", "names", "said"),
    [
        ({f"{SCORES}.exact_share": 0.3}, ["exact derivations"], "1 of 7 targets"),
        ({"elbo.reconstruction_nats": 20.7}, ["reconstruction, baseline"], "1 of 7 targets"),
        ({"levels.z.kl_nats": [0.4, 0.2]}, ["total KL"], "posterior collapse: the code carries 0.60 nats"),
        ({"levels.z.kl_nats": [0.0, 0.0]}, ["total KL", "share in active dimensions"], "posterior collapse"),
        ({"levels.z.kl_nats": [0.04] * 56}, ["share in active dimensions"], "0 of 56 dimensions carry 2.2 nats"),
        ({"shuffled_codes.shuffled_reconstruction_nats": 2.4}, ["what the right code saves"], "does not use them"),
        ({"elbo.elbo_nats": -18.0}, ["-log p(x), entropy"], "1 of 7 targets"),
        ({"prior_samples.standard.complete_share": 0.5}, ["complete without budget"], "1 of 7 targets"),
        # an autoencoder is called one
        ({"posterior_noise": 0.01}, ["posterior noise"], "an autoencoder, its noise scaled by 0.01"),
        # a mean a little under the entropy is chance, and what was not measured is not judged
        ({"elbo.elbo_nats": -(19.11 - 0.39)}, [], "every target is met"),
        ({"elbo.elbo_nats": -(19.11 - 0.41)}, ["-log p(x), entropy"], "1 of 7 targets"),
        ({"elbo.elbo_nats": -5.0, "entropy_nats": None}, [], "every target is met"),
        ({"shuffled_codes": None, "prior_samples": None, "entropy_nats": None}, [], "every target is met"),
        # of a quarter of the examples the standard error is twice as large
        ({"importance_weighted": {"nll_nats": 19.11 - 0.79, "examples": 25}}, [], "every target is met"),
        ({"importance_weighted": {"nll_nats": 19.11 - 0.81, "examples": 25}}, ["-log p(x), entropy"], "1 of 7"),
    ],
)
def test_targets_of_strings(changes: Report, names: list[str], said: str) -> None:
    assert list(missed("strings", changes)) == names
    assert said in verdict("strings", changes)["summary"]


def test_free_bits_of_strings_hold_a_total_or_each_dimension() -> None:
    total = {"objective.free_bits": 5.0, "objective.free_bits_mode": "total"}
    assert not missed("strings", {}, total)
    held, sunk = {"levels.z.kl_nats": [2.6, 2.6]}, {"levels.z.kl_nats": [2.0, 2.0]}
    assert list(missed("strings", held, total)) == ["total KL beyond the floor"]
    assert "held up by free bits alone: 5.20 nats" in verdict("strings", held, total)["summary"]
    assert list(missed("strings", sunk, total)) == ["total KL, free-bits floor", "total KL beyond the floor"]
    each = {"objective.free_bits": 2.5}
    assert list(missed("strings", held, each)) == ["total KL beyond the floor"]
    assert list(missed("strings", {"levels.z.kl_nats": [1.0, 9.0]}, each)) == ["smallest KL, free-bits floor"]


def test_the_remedy_of_incomplete_samples_depends_on_the_fitted_prior() -> None:
    few = {"prior_samples.standard.complete_share": 0.5}
    assert "--prior aggregate (95%" in missed("strings", few)["complete without budget"]
    few["prior_samples.aggregate.complete_share"] = 0.4
    assert "length budget" in missed("strings", few)["complete without budget"]
