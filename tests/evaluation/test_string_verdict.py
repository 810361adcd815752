from __future__ import annotations

from dataclasses import replace

import pytest

from arcvae_cli.evaluation.string_verdict import MeasuredStrings, judge_strings
from arcvae_cli.evaluation.verdict import Setup

GOOD = MeasuredStrings(
    exact=0.9,
    reconstruction_nats=2.0,
    baseline_nats=20.6,
    kl={"z": [5.0, 9.0, 8.0, 0.01]},
    shuffled_gain=40.0,
    nll_nats=21.0,
    nll_error=0.1,
    entropy_nats=19.11,
    complete=0.9,
    complete_aggregate=0.95,
)
SETUP = Setup(betas={"z": 0.5}, elbo_scale=1.0)


def missed(measured: MeasuredStrings, setup: Setup = SETUP) -> dict[str, str | None]:
    return {finding.name: finding.remedy for finding in judge_strings(measured, setup).findings if not finding.ok}


def test_a_large_code_may_leave_dimensions_idle() -> None:
    verdict = judge_strings(GOOD, SETUP)
    assert verdict.ok
    assert verdict.summary == (
        "the code is alive: 3 of 4 dimensions carry 22.0 nats; 90% of the derivations are exact; every target is met"
    )


@pytest.mark.parametrize(
    ("changes", "names", "said"),
    [
        ({"exact": 0.3}, ["exact derivations"], "1 of 7 missed"),
        ({"reconstruction_nats": 20.7}, ["reconstruction, baseline"], "1 of 7 missed"),
        ({"kl": {"z": [0.4, 0.2]}}, ["total KL"], "posterior collapse: the code carries 0.60 nats in all"),
        ({"kl": {"z": [0.0, 0.0]}}, ["total KL", "share in active dimensions"], "posterior collapse"),
        ({"kl": {"z": [0.04] * 56}}, ["share in active dimensions"], "0 of 56 dimensions carry 2.2 nats"),
        ({"shuffled_gain": 0.4}, ["what the right code saves"], "the decoder does not use them"),
        ({"nll_nats": 18.0}, ["-log p(x), entropy"], "1 of 7 missed"),
        ({"complete": 0.5}, ["complete without budget"], "1 of 7 missed"),
    ],
)
def test_every_miss_has_its_remedy_and_its_words(changes: dict[str, object], names: list[str], said: str) -> None:
    measured = replace(GOOD, **changes)
    found = missed(measured)
    assert list(found) == names and all(found.values())
    assert said in judge_strings(measured, SETUP).summary


def test_a_mean_a_little_under_the_entropy_is_chance() -> None:
    assert not missed(replace(GOOD, nll_nats=19.11 - 0.39))
    assert list(missed(replace(GOOD, nll_nats=19.11 - 0.41))) == ["-log p(x), entropy"]
    assert not missed(replace(GOOD, nll_nats=5.0, entropy_nats=None))


def test_free_bits_hold_a_total_or_each_dimension() -> None:
    total = replace(SETUP, free_bits={"z": 5.0}, free_bits_mode="total")
    assert not missed(GOOD, total)
    held = replace(GOOD, kl={"z": [2.6, 2.6]})
    assert list(missed(held, total)) == ["total KL beyond the floor"]
    assert "held up by free bits alone: 5.20 nats" in judge_strings(held, total).summary
    sunk = replace(GOOD, kl={"z": [2.0, 2.0]})
    assert list(missed(sunk, total)) == ["total KL, free-bits floor", "total KL beyond the floor"]
    each = replace(SETUP, free_bits={"z": 2.5}, free_bits_mode="per_dim")
    assert list(missed(held, each)) == ["total KL beyond the floor"]
    assert list(missed(replace(GOOD, kl={"z": [1.0, 9.0]}), each)) == ["smallest KL, free-bits floor"]


def test_the_remedy_for_what_does_not_end_depends_on_the_fitted_prior() -> None:
    assert "--prior aggregate (95%" in str(missed(replace(GOOD, complete=0.5))["complete without budget"])
    other = missed(replace(GOOD, complete=0.5, complete_aggregate=0.4))["complete without budget"]
    assert other is not None and "with the length budget" in other


def test_an_autoencoder_is_called_one() -> None:
    verdict = judge_strings(replace(GOOD, posterior_noise=0.01), SETUP)
    assert verdict.summary.startswith("an autoencoder: its noise is scaled by 0.01")
    assert [finding.name for finding in verdict.findings if not finding.ok] == ["posterior noise"]


def test_what_was_not_measured_is_not_judged() -> None:
    bare = replace(GOOD, shuffled_gain=None, entropy_nats=None, complete=None, complete_aggregate=None)
    assert [finding.name for finding in judge_strings(bare, SETUP).findings] == [
        "exact derivations",
        "reconstruction, baseline",
        "total KL",
        "share in active dimensions",
    ]
