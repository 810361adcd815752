"""Verdicts on reports written by hand: what misses, and what is advised."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from arcvae_cli import domains
from arcvae_cli.evaluation.verdict import Advice, remedies
from arcvae_cli.settings import Settings

Report = dict[str, Any]
ROWS = [
    {"asked": "colours=1", "counted_obeying": 0.9, "counted": 90, "data": 0.1},
    {"asked": "colours=2", "counted_obeying": 0.0, "counted": 0, "data": 0.0},
    {"asked": "colours=3", "counted_obeying": 0.81, "counted": 50, "data": 0.1},
    {"asked": "symmetry=lr", "counted_obeying": 1.0, "counted": 100, "data": 0.1},
    {"asked": "red=yes", "counted_obeying": 0.0, "counted": 0, "data": 0.1},
]
GRIDS: Report = {
    "corpus": "arc",
    "split": "test",
    "reconstruction": {
        "posterior_mean": {"pixel_accuracy": 0.93, "foreground_accuracy": 0.70, "blank_share": 0.0},
        "all_background": {"pixel_accuracy": 0.79},
        "pca": {"pixel_accuracy": 0.85, "foreground_accuracy": 0.31},
    },
    "levels": {"z": {"kl_nats": [2.0, 0.5, 3.0]}},
    "prior_samples": {
        **{"blank_share": 0.02, "reference_blank_share": 0.0},
        **{"speck_share": 0.30, "reference_speck_share": 0.25},
    },
    "adherence": None,
    "shuffled_codes": None,
}
STRINGS: Report = {
    "corpus": "equations",
    "split": "test",
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
LEVELS = {"global": {"kl_nats": [0.5, 2.0]}, "local": {"kl_nats": [10.0, 20.0, 30.0]}}
REPORTS: dict[str, Report] = {"grids": GRIDS, "two": {**GRIDS, "levels": LEVELS}, "strings": STRINGS}
BASE: dict[str, Report] = {
    "grids": {"schedule": {"name": "constant", "max_beta": 0.1}, "objective": {"free_bits": 0.3}},
    "two": {"model": {"name": "hierarchical"}, "schedule": {"name": "constant", "max_beta": 0.02}},
    "strings": {
        "data": {"name": "equations"},
        "model": {"name": "grammar"},
        "schedule": {"name": "constant", "max_beta": 0.5},
    },
}
CAPACITY = {"schedule": {"name": "hierarchical", "local": {"name": "kl_capacity", "capacity": 40.0}}}


def changed(report: Report, changes: Report) -> Report:
    """A copy of nested dicts with other values at dotted keys."""
    report = copy.deepcopy(report)
    for key, value in changes.items():
        *above, last = key.split(".")
        place = report
        for part in above:
            place = place.setdefault(part, {})
        place[last] = copy.deepcopy(value)
    return report


def verdict(kind: str, changes: Report | None = None, settings: Report | None = None) -> dict[str, Any]:
    """The verdict on a good report with changes, of a run with changes to its settings."""
    report = changed(REPORTS[kind], changes or {})
    advice = Advice(Settings.model_validate(changed(BASE[kind], settings or {})), list(report["levels"]), 256)
    domain = domains.of("strings" if kind == "strings" else "grids")
    return domain.verdict(report, advice)


def missed(*arguments: Any) -> dict[str, str]:
    """Names and remedies of what is missed."""
    found = verdict(*arguments)["findings"]
    assert all((one["remedy"] is None) == one["ok"] for one in found)
    return {one["name"]: one["remedy"] for one in found if not one["ok"]}


def conditioned(row: Report) -> Report:
    """Accuracies under conditions, with another row of that name."""
    return {"adherence": {"samples": 100, "rows": [row if one["asked"] == row["asked"] else one for one in ROWS]}}


PIXEL, NON_BLACK = "reconstruction.posterior_mean.pixel_accuracy", "reconstruction.posterior_mean.foreground_accuracy"
PCA = "reconstruction.pca.pixel_accuracy"
KL, DRAWN = "levels.z.kl_nats", "prior_samples"
ALL = conditioned(ROWS[0])
DEAD = {"levels.z.kl_nats": [0.0, 0.0], NON_BLACK: 0.0}


@pytest.mark.parametrize(
    ("name", "meets", "misses"),
    [
        ("pixel accuracy", {PIXEL: 0.90}, {PIXEL: 0.8999}),
        ("pixel accuracy, baselines", {PCA: 0.9299}, {PCA: 0.93}),
        ("non-black accuracy", {NON_BLACK: 0.301}, {NON_BLACK: 0.30}),
        ("smallest KL of a dimension", {KL: [2.0, 0.051]}, {KL: [2.0, 0.05]}),
        ("KL at the free-bits floor", {KL: [2.0, 0.285]}, {KL: [2.0, 0.284]}),
        ("blank samples", {f"{DRAWN}.blank_share": 0.10}, {f"{DRAWN}.blank_share": 0.11}),
        ("specks among samples", {f"{DRAWN}.speck_share": 0.50}, {f"{DRAWN}.speck_share": 0.51}),
        ("samples satisfy colours", ALL, conditioned({**ROWS[2], "counted_obeying": 0.8})),
        ("samples satisfy symmetry", ALL, conditioned({**ROWS[3], "counted_obeying": None})),
        ("samples neither blank nor repeated", ALL, conditioned({**ROWS[2], "counted": 49})),
    ],
)  # fmt: skip
def test_limits_of_the_targets_of_grids(name: str, meets: Report, misses: Report) -> None:
    assert name not in missed("grids", meets)
    assert name in missed("grids", misses)


HELD, FLOOR = "dimensions held by free bits alone", "KL at the free-bits floor"
BEYOND, SAMPLE = "total KL beyond the floor", "prior_samples.standard.complete_share"
CODES, CODES_NATS, BOUND = "shuffled_codes", "reconstruction_nats", "importance_weighted"
UNUSED = {CODES: {CODES_NATS: 30.0, f"shuffled_{CODES_NATS}": 31.0}}


def floor(value: float, mode: str) -> Report:
    return {"objective.free_bits": value, "objective.free_bits_mode": mode}


@pytest.mark.parametrize(
    ("kind", "changes", "settings", "names", "said"),
    [
        *((kind, {}, {}, [], "the code is alive") for kind in REPORTS),
        ("grids", {NON_BLACK: 0.001}, {}, ["non-black accuracy"], "the code is alive"),
        ("two", {"levels.global.kl_nats": [0.0, 0.1]}, {}, ["smallest KL, global"], "partial collapse: 1 of 2 global"),
        # of an autoregressive decoder, which can do without the code
        ("grids", UNUSED, {"model.decoder": "autoregressive"}, ["nats saved by the code"], "decoder does not use them"),
        (
            "grids",
            {**UNUSED, f"{CODES}.shuffled_{CODES_NATS}": 31.1},
            {"model.decoder": "autoregressive"},
            [],
            "alive",
        ),
        (
            "grids",
            {**UNUSED, KL: [0.0, 0.0]},
            {"model.decoder": "autoregressive"},
            ["smallest KL of a dimension", FLOOR, HELD, "nats saved by the code"],
            "2 of 2 z dimensions are dead",
        ),
        # free bits hold a total or each dimension
        ("grids", {KL: [0.1, 0.1]}, floor(0.3, "total"), [f"total {FLOOR}", HELD], "held up by free bits alone"),
        ("grids", {KL: [0.30, 0.29, 2.0]}, floor(0.3, "per_dim"), [HELD], "held up by free bits alone"),
        ("strings", {KL: [2.6, 2.6]}, floor(5.0, "total"), [BEYOND], "held up by free bits alone"),
        ("strings", {KL: [1.0, 9.0]}, floor(2.5, "per_dim"), [FLOOR], "alive"),
        ("strings", {"reconstruction.posterior_mean.exact_share": 0.3}, {}, ["exact derivations"], "1 of 7 targets"),
        ("strings", {KL: [0.4, 0.2]}, {}, ["total KL"], "posterior collapse: the code carries 0.60 nats"),
        ("strings", {f"{CODES}.shuffled_{CODES_NATS}": 2.4}, {}, ["nats saved by the code"], "does not use them"),
        ("strings", {"posterior_noise": 0.01}, {}, ["posterior noise"], "1 of 6 targets"),
        # what was not measured is not judged
        ("strings", {CODES: None, "prior_samples": None, "entropy_nats": None}, {}, [], "every target is met"),
        # of a quarter of the examples the standard error is twice as large
        ("strings", {BOUND: {"nll_nats": 19.11 - 0.81, "examples": 25}}, {}, ["-log p(x), entropy"], "1 of 7"),
    ],
)
def test_targets_and_summary(kind: str, changes: Report, settings: Report, names: list[str], said: str) -> None:
    found = verdict(kind, changes, settings)
    assert list(missed(kind, changes, settings)) == names
    assert found["ok"] == (not names) and said in found["summary"]


def test_every_remedy_is_named_once_with_the_targets_that_it_serves() -> None:
    changes = {PIXEL: 0.80, PCA: 0.85}
    steps = remedies(verdict("grids", changes)["findings"])
    both = ["pixel accuracy", "pixel accuracy, baselines"]
    assert len(steps) == 4 and all(names == both for names in steps.values())
    assert "raise model.latent_dim (it is 10)" in steps
    closed = remedies(verdict("two", {PIXEL: 0.86}, CAPACITY)["findings"])
    assert "raise schedule.local.capacity (it is 40)" in closed
    [collapse, _] = remedies(verdict("grids", DEAD, {"objective.reduction": "mean", **floor(0.0, "total")})["findings"])
    assert "25.6 on the ELBO scale" in collapse and collapse.endswith("objective.reduction = sum")
