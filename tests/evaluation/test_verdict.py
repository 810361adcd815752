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
SETUP = Setup(latent_dim=10, beta=0.1, elbo_beta=0.1, free_bits=0.3)


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
        ({"kl": {"global": [2.0], "local": [0.01]}}, "smallest KL of a dimension", False),
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
    verdict = judge(dead, replace(SETUP, elbo_beta=25.6, reduction="mean", free_bits=0.0))
    assert verdict.summary == (
        "posterior collapse: 10 of 10 dimensions carry under 0.05 nats; every reconstruction is the all-black picture"
    )
    assert {one.remedy for one in verdict.findings if not one.ok} == {
        "beta 0.1 with mean reduction weighs 25.6 on the ELBO scale: use objective.reduction = sum"
    }
    both = judge(dead, Setup(latent_dim=10, beta=2.0, elbo_beta=51.2, reduction="mean", kl_reduction="mean"))
    assert both.findings[0].remedy == (
        "beta 2 with mean reductions weighs 51.2 on the ELBO scale: use objective.reduction = sum"
    )


def test_a_collapse_under_summed_terms_is_blamed_on_beta() -> None:
    dead = replace(GOOD, kl={"z": [0.0, 0.0]}, blank_reconstructions=0.6)
    verdict = judge(dead, Setup(latent_dim=2, beta=4.0, elbo_beta=4.0))
    assert finding(verdict, "smallest KL of a dimension").remedy == (
        "lower beta (peak 4) or lengthen its warm-up; set objective.free_bits = 0.3"
    )
    assert verdict.summary.endswith("60% of the reconstructions are all black")
    # a light beta is not at fault, mean or not
    light = judge(dead, Setup(latent_dim=2, beta=0.01, elbo_beta=2.56, reduction="mean", free_bits=0.1))
    assert finding(light, "smallest KL of a dimension").remedy == (
        "lower beta (peak 0.01, 2.56 on the ELBO scale) or lengthen its warm-up"
    )


def test_a_partial_collapse_counts_its_dead() -> None:
    verdict = judge(replace(GOOD, kl={"z": [1.0, 0.01, 0.02]}), replace(SETUP, free_bits=0.0))
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
    focal = judge(black, replace(SETUP, elbo_beta=None, strong_body=True))
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
    assert all("floor" not in one.name for one in judge(GOOD, replace(SETUP, free_bits=0.0)).findings)


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
    setup = replace(SETUP, free_bits_mode=mode, elbo_beta=25.6, reduction="mean")
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
