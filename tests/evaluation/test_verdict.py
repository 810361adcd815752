from __future__ import annotations

from dataclasses import replace

import pytest

from arcvae_cli.evaluation.verdict import Finding, Measured, Setup, Verdict, judge

GOOD = Measured(
    pixel=0.93,
    non_black=0.70,
    black_pixel=0.79,
    pca_pixel=0.85,
    pca_non_black=0.31,
    blank_reconstructions=0.0,
    kl={"z": [2.0, 0.5, 3.0]},
    blank_samples=0.02,
    reference_blank=0.0,
    speck=0.30,
    reference_speck=0.25,
)
SETUP = Setup(latent_dim=10, betas={"z": 0.1}, elbo_scale=1.0, free_bits={"z": 0.3})
LEVELS = Setup(local_channels=4, betas={"global": 0.01, "local": 0.02}, elbo_scale=1.0, strong_body=True)
TWO = replace(GOOD, kl={"global": [0.5, 2.0], "local": [10.0, 20.0, 30.0]})


def finding(verdict: Verdict, name: str) -> Finding:
    return next(one for one in verdict.findings if one.name == name)


def test_all_is_well() -> None:
    verdict = judge(GOOD, SETUP)
    assert verdict.ok
    assert [one.remedy for one in verdict.findings] == [None] * 8
    assert verdict.summary == (
        "the code is alive: all 3 dimensions carry 5.5 nats; 70% of the non-black cells are right, PCA gets 31%; "
        "every target is met"
    )


@pytest.mark.parametrize(
    ("change", "name", "ok"),
    [
        ({"pixel": 0.90}, "pixel accuracy", True),
        ({"pixel": 0.8999}, "pixel accuracy", False),
        ({"pixel": 0.93, "pca_pixel": 0.93}, "pixel accuracy, baselines", False),
        ({"pixel": 0.9301, "black_pixel": 0.93}, "pixel accuracy, baselines", True),
        ({"black_pixel": 0.94}, "pixel accuracy, baselines", False),
        ({"non_black": 0.30}, "non-black accuracy", False),
        ({"non_black": 0.301}, "non-black accuracy", True),
        ({"kl": {"z": [2.0, 0.05]}}, "smallest KL of a dimension", False),
        ({"kl": {"z": [2.0, 0.051]}}, "smallest KL of a dimension", True),
        ({"kl": {"z": [2.0, 0.285]}}, "KL at the free-bits floor", True),
        ({"kl": {"z": [2.0, 0.284]}}, "KL at the free-bits floor", False),
        ({"blank_samples": 0.10}, "blank samples", True),
        ({"blank_samples": 0.11}, "blank samples", False),
        ({"blank_samples": 0.11, "reference_blank": 0.05}, "blank samples", True),
        ({"speck": 0.50}, "specks among samples", True),
        ({"speck": 0.51}, "specks among samples", False),
        ({"speck": 0.91}, "specks among samples", False),
        ({"speck": 0.30, "reference_speck": 0.0}, "specks among samples", False),
    ],
)
def test_each_target_has_its_edge(change: dict[str, object], name: str, ok: bool) -> None:
    verdict = judge(replace(GOOD, **change), SETUP)
    assert finding(verdict, name).ok is ok
    assert (finding(verdict, name).remedy is None) is ok
    if not ok:
        assert not verdict.ok


def test_a_mean_reduction_is_named_as_the_cause_of_a_collapse() -> None:
    dead = replace(
        GOOD, pixel=0.79, non_black=0.0, blank_reconstructions=1.0, kl={"z": [0.01] * 10}, blank_samples=1.0, speck=0.0
    )
    verdict = judge(dead, replace(SETUP, elbo_scale=256.0, reduction="mean", free_bits={}))
    assert verdict.summary == (
        "posterior collapse: 10 of 10 dimensions carry under 0.05 nats; every reconstruction is the all-black picture"
    )
    assert {one.remedy for one in verdict.findings if not one.ok} == {
        "beta 0.1 with mean reduction weighs 25.6 on the ELBO scale: use objective.reduction = sum"
    }
    both = judge(dead, Setup(latent_dim=10, betas={"z": 2.0}, elbo_scale=25.6, reduction="mean", kl_reduction="mean"))
    assert both.findings[0].remedy == (
        "beta 2 with mean reductions weighs 51.2 on the ELBO scale: use objective.reduction = sum"
    )


def test_a_collapse_under_summed_terms_is_blamed_on_beta() -> None:
    dead = replace(GOOD, kl={"z": [0.0, 0.0]}, blank_reconstructions=0.6)
    verdict = judge(dead, Setup(latent_dim=2, betas={"z": 4.0}, elbo_scale=1.0))
    assert finding(verdict, "smallest KL of a dimension").remedy == (
        "lower beta (peak 4) or lengthen its warm-up; set objective.free_bits = 0.3"
    )
    assert verdict.summary.endswith("60% of the reconstructions are all black")
    # a light beta is not at fault, mean or not
    light = judge(
        dead, Setup(latent_dim=2, betas={"z": 0.01}, elbo_scale=256.0, reduction="mean", free_bits={"z": 0.1})
    )
    assert finding(light, "smallest KL of a dimension").remedy == (
        "lower beta (peak 0.01, 2.56 on the ELBO scale) or lengthen its warm-up"
    )


def test_a_partial_collapse_counts_its_dead() -> None:
    verdict = judge(replace(GOOD, kl={"z": [1.0, 0.01, 0.02]}), replace(SETUP, free_bits={}))
    assert verdict.summary == (
        "partial collapse: 2 of 3 dimensions carry under 0.05 nats; 70% of the non-black cells are right"
    )


def test_an_alive_code_before_a_black_decoder_is_told_from_a_dead_one() -> None:
    black = replace(GOOD, non_black=0.001, blank_reconstructions=1.0, kl={"z": [2.75] * 10}, blank_samples=1.0)
    verdict = judge(black, SETUP)
    assert verdict.summary == (
        "the code is alive, the decoder is not: all 10 dimensions carry 27.5 nats, "
        "but every reconstruction is the all-black picture"
    )
    remedy = (
        "the code is alive and the decoder paints black: model.body = residual, objective.reconstruction = focal, "
        "or train longer"
    )
    assert finding(verdict, "non-black accuracy").remedy == remedy
    assert finding(verdict, "blank samples").remedy == remedy
    focal = judge(black, replace(SETUP, elbo_scale=None, strong_body=True))
    assert finding(focal, "non-black accuracy").remedy == (
        "the code is alive and the decoder paints black: train longer"
    )


@pytest.mark.parametrize(
    ("mode", "kl", "name", "ok", "remedy"),
    [
        ("per_sample", [0.25, 0.2], "KL at the free-bits floor", False, "objective.free_bits_mode = per_dim"),
        ("per_dim", [0.25, 0.2], "KL at the free-bits floor", False, "lower train.lr"),
        ("total", [0.25, 0.2], "total KL at the free-bits floor", True, None),
        ("total", [0.1, 0.1], "total KL at the free-bits floor", False, "lower train.lr"),
    ],
)
def test_the_floor_is_that_of_the_mode(mode: str, kl: list[float], name: str, ok: bool, remedy: str | None) -> None:
    found = finding(judge(replace(GOOD, kl={"z": kl}), replace(SETUP, free_bits_mode=mode)), name)
    assert found.ok is ok
    assert found.value == pytest.approx(sum(kl) if mode == "total" else min(kl))
    assert (found.remedy is None) if remedy is None else (remedy in found.remedy)


def test_without_free_bits_there_is_no_floor() -> None:
    assert all("floor" not in one.name for one in judge(GOOD, replace(SETUP, free_bits={})).findings)


def test_a_model_that_lives_but_is_small_is_enlarged() -> None:
    low = replace(GOOD, pixel=0.86)
    assert finding(judge(low, SETUP), "pixel accuracy").remedy == (
        "model.body = residual; raise model.latent_dim to 12-16 (it is 10); train longer"
    )
    large = finding(judge(low, replace(SETUP, latent_dim=32, strong_body=True)), "pixel accuracy")
    assert large.remedy == "train longer, or lower beta (peak 0.1)"
    assert "raise beta slowly" in finding(judge(replace(GOOD, speck=0.9), SETUP), "specks among samples").remedy
    assert judge(low, SETUP).summary.endswith("; 1 of 8 targets missed")


@pytest.mark.parametrize(
    ("mode", "kl", "held"),
    [
        ("per_dim", [0.30, 0.29, 2.0], True),
        ("per_dim", [0.30, 0.40, 2.0], False),
        ("per_sample", [0.33, 0.20, 2.0], True),
        ("total", [0.10, 0.11, 0.10], True),
        ("total", [0.10, 0.20, 0.10], False),
    ],
)
def test_a_code_that_only_free_bits_keep_is_called_a_collapse(mode: str, kl: list[float], held: bool) -> None:
    setup = replace(SETUP, free_bits_mode=mode, elbo_scale=256.0, reduction="mean")
    verdict = judge(replace(GOOD, kl={"z": kl}), setup)
    found = finding(verdict, "dimensions held by free bits alone")
    assert found.ok is not held
    assert verdict.summary.startswith("collapse, held up by free bits alone: ") is held
    if held:
        assert found.remedy is not None
        assert "weighs 25.6 on the ELBO scale: use objective.reduction = sum" in found.remedy


def test_what_pca_gets_stands_beside_the_same_number_of_the_model() -> None:
    summary = judge(replace(GOOD, blank_reconstructions=0.5), SETUP).summary
    assert "70% of the non-black cells are right, PCA gets 31%" in summary


# ------------------------------------------------------------------------------------------------ levels, conditions


def test_each_level_is_judged_by_its_own_floor() -> None:
    verdict = judge(TWO, replace(LEVELS, free_bits={"global": 0.6, "local": 0.0}))
    names = [one.name for one in verdict.findings]
    assert [name for name in names if "KL" in name or "held" in name] == [
        "smallest KL, global",
        "KL at the free-bits floor, global",
        "held by free bits alone, global",
        "smallest KL, local",
    ]
    assert finding(verdict, "smallest KL, local").value == 10.0
    assert not finding(verdict, "KL at the free-bits floor, global").ok
    assert finding(verdict, "held by free bits alone, global").value == 1
    assert judge(TWO, LEVELS).summary == (
        "the code is alive: all 5 dimensions carry 62.5 nats (global 2.5, local 60.0); "
        "70% of the non-black cells are right, PCA gets 31%; every target is met"
    )


def test_a_level_that_died_is_named_and_its_own_beta_blamed() -> None:
    verdict = judge(replace(TWO, kl={"global": [0.0, 0.01], "local": [10.0, 20.0, 30.0]}), LEVELS)
    assert verdict.summary == (
        "partial collapse: 2 of 2 global and 0 of 3 local dimensions carry under 0.05 nats; "
        "70% of the non-black cells are right"
    )
    assert finding(verdict, "smallest KL, global").remedy == (
        "lower beta of the global level (peak 0.01) or lengthen its warm-up; "
        "set objective.free_bits_by_level.global = 0.3"
    )
    assert finding(verdict, "smallest KL, local").ok
    dead = judge(replace(TWO, kl={"global": [0.0], "local": [0.0]}), LEVELS)
    assert dead.summary.startswith("posterior collapse: 1 of 1 global and 1 of 1 local dimensions")
    held = judge(TWO, replace(LEVELS, free_bits={"global": 2.0, "local": 0.0}))
    assert held.summary.startswith(
        "collapse of the global level, held up by free bits alone: 2 of 2 dimensions lie at the floor of 2 nats"
    )


def test_a_small_map_is_enlarged() -> None:
    low = judge(replace(TWO, pixel=0.86), LEVELS)
    assert finding(low, "pixel accuracy").remedy == (
        "raise model.local_channels (it is 4), train longer, or lower beta of the local level (peak 0.02)"
    )
    speckled = finding(judge(replace(TWO, speck=0.9), LEVELS), "specks among samples")
    assert speckled.remedy == (
        "raise beta slowly (peak 0.01 and 0.02) and look at the decoder: codes lie off the prior"
    )


def test_where_beta_follows_the_run_its_target_is_what_to_change() -> None:
    keys = ("raise schedule.target (it is 20)", "lower schedule.target (it is 20)")
    setup = Setup(latent_dim=20, strong_body=True, betas={"z": 1.0}, elbo_scale=1.0, steered={"z": keys})
    dead = finding(judge(replace(GOOD, kl={"z": [0.0, 2.0]}), setup), "smallest KL of a dimension")
    assert dead.remedy == "raise schedule.target (it is 20); set objective.free_bits = 0.3"
    low = finding(judge(replace(GOOD, pixel=0.86), setup), "pixel accuracy")
    assert low.remedy == "train longer, or raise schedule.target (it is 20)"
    speckled = finding(judge(replace(GOOD, speck=0.9), setup), "specks among samples")
    assert speckled.remedy == "lower schedule.target (it is 20) and look at the decoder: codes lie off the prior"
    mixed = replace(LEVELS, steered={"local": keys})
    assert "raise beta slowly (peak 0.01), lower schedule.target (it is 20) and" in (
        finding(judge(replace(TWO, speck=0.9), mixed), "specks among samples").remedy or ""
    )


@pytest.mark.parametrize(
    ("obeyed", "counted", "name", "value", "ok"),
    [
        ({"colours=1": 0.9, "colours=3": 0.81}, {"colours=1": 0.9}, "samples obey colours", 0.81, True),
        ({"colours=1": 0.9, "colours=3": 0.80}, {"colours=1": 0.9}, "samples obey colours", 0.80, False),
        ({"symmetry=lr": 0.5, "symmetry=both": 0.9}, {"symmetry=lr": 1.0}, "samples obey symmetry", 0.5, False),
        ({"symmetry=lr": 1.0}, {"symmetry=lr": 0.5, "colours=1": 0.9}, "of them not blank or repeated", 0.5, True),
        ({"symmetry=lr": 1.0}, {"symmetry=lr": 0.49, "colours=1": 0.9}, "of them not blank or repeated", 0.49, False),
    ],
)
def test_conditions_are_judged_by_the_least_obeyed(
    obeyed: dict[str, float], counted: dict[str, float], name: str, value: float, ok: bool
) -> None:
    verdict = judge(replace(TWO, obeyed=obeyed, counted=counted), LEVELS)
    found = finding(verdict, name)
    assert (found.value, found.ok, verdict.ok) == (value, ok, ok)
    assert (found.remedy is None) is ok
    assert f"(least: {min(obeyed, key=obeyed.__getitem__)})" in found.target or "not blank" in name


def test_without_conditions_nothing_is_said_of_them() -> None:
    assert not any("obey" in one.name or "repeated" in one.name for one in judge(GOOD, SETUP).findings)
