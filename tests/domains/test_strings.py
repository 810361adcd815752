"""Evaluation of derivations, on a model whose every probability can be written down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpus import StringCorpus
from arcvae_cli.data.derivations import Counts
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.domains import strings
from arcvae_cli.domains.base import Task
from arcvae_cli.domains.validity import Validator
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.evaluation.evaluate import Evaluation, evaluate
from arcvae_cli.evaluation.information import choose, nats
from arcvae_cli.evaluation.priors import generate
from arcvae_cli.grammar import Rules, read_grammar
from arcvae_cli.models.base import Batch, Level, standard_level
from arcvae_cli.models.grammar import GrammarVAE, Structure
from arcvae_cli.settings import GrammarSettings, Settings

EQUATIONS = read_grammar("equations")
LENGTH = 9
TINY: dict[str, Any] = {
    **{"name": "grammar", "latent_dim": LENGTH, "decoder_hidden": 8, "decoder_layers": 1},
    **{"encoder_hidden": 8, "encoder_conv_layers": 1, "encoder_kernel": 3},
}
SETTINGS = Settings.model_validate({"data": {"name": "equations"}, "model": TINY, "schedule": {"name": "constant"}})


class Ruler(GrammarVAE):
    """A code of one number a step, the id of its rule, from which the decoder measures the distance of every rule."""

    def __init__(self, rules: Rules, sharp: float = 4.0, spread: float = 0.2, length: int = LENGTH) -> None:
        assert isinstance(SETTINGS.model, GrammarSettings)
        super().__init__(SETTINGS.model.model_copy(update={"latent_dim": length}), Structure(rules, length))
        self.sharp, self.spread = sharp, spread

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        missing, padding = self.structure.length - batch.x.shape[1], self.structure.rules.padding
        mean = functional.pad(batch.x, (0, missing), value=padding).float()
        return (standard_level("z", mean, torch.full_like(mean, 2 * math.log(self.spread)), noise),)

    def decode(
        self, latents: Mapping[str, Tensor], conditions: Tensor | None = None, steps: int | None = None
    ) -> Tensor:
        ids = torch.arange(len(self.structure.rules))
        return -self.sharp * (ids[None, :, None] - latents["z"][:, None, :steps]).square()


def untrained(**changes: Any) -> GrammarVAE:
    torch.manual_seed(0)
    return GrammarVAE(GrammarSettings.model_validate({**TINY, **changes}), Structure(EQUATIONS.rules, LENGTH)).eval()


def run(model: GrammarVAE, corpus: StringCorpus, split: str, **more: Any) -> Evaluation:
    return evaluate(Task(model, corpus, split, SETTINGS, **more))


@pytest.fixture(scope="module")
def arrays() -> Dataset:
    return build_drawn(EQUATIONS, LENGTH, size=400)


@pytest.fixture(scope="module")
def corpus(arrays: Dataset) -> StringCorpus:
    return StringCorpus(arrays)


@pytest.fixture(scope="module")
def evaluation(corpus: StringCorpus) -> Evaluation:
    model = Ruler(EQUATIONS.rules, sharp=2.0, spread=0.3)
    return run(model, corpus, "test", monte_carlo=(40, 10, 100), samples=1100, seed=5)


def test_likelihood_is_that_of_the_rules_by_hand(evaluation: Evaluation, corpus: StringCorpus) -> None:
    """The noise of the ruler is small: the ELBO follows from Gauss-Hermite points in each step's one number."""
    rules, report = EQUATIONS.rules, evaluation.report
    points, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    total, kl = 0.0, 0.0
    ids = corpus.ids("test").tolist()
    for x in ids:
        for rule in filter(rules.padding.__ne__, x):  # p(rule | z): a softmax over the rules of its left-hand side
            some, z = np.array(rules.of(rules.lhs[rule])), rule + 0.3 * points[:, None]
            total += weights @ (2.0 * (rule - z[:, 0]) ** 2 + np.log(np.exp(-2.0 * (some - z) ** 2).sum(axis=1)))
        kl += sum(0.5 * (rule**2 + 0.09 - 1 - math.log(0.09)) for rule in x)
    assert report["elbo"]["examples"] == report["reconstruction"]["examples"] == len(ids) == 40
    assert report["elbo"]["kl_nats"] == pytest.approx(kl / len(ids), rel=1e-5)
    assert report["elbo"]["reconstruction_nats"] == pytest.approx(total / len(ids), rel=0.1)
    assert report["trained_kl_nats"] == pytest.approx(report["elbo"]["kl_nats"])
    assert report["entropy_nats"] == pytest.approx(Counts(rules, LENGTH).entropy)


def test_drawing_strings_estimates_the_expected_exact_share(evaluation: Evaluation) -> None:
    """Ten codes of each of 40 derivations on either side, and 40,000 strings on one."""
    found = evaluation.report["reconstruction"]
    drawn = evaluation.report["prior_samples"]
    # a code near 0 is rule 0 at every step, S -> S '+' T, which never ends; the fitted Gaussian knows better
    assert drawn["standard"]["complete_share"] < 0.05 < drawn["aggregate"]["complete_share"]
    assert 0.05 < found["expected_exact_share"] < 0.95
    assert found["monte_carlo"]["exact_share"] == pytest.approx(found["expected_exact_share"], abs=0.03)
    assert found["monte_carlo"]["budget_exact_share"] >= found["monte_carlo"]["exact_share"]
    assert 0 < found["expected_error"] < 0.05


def test_the_baseline_counts_rules_by_step_and_left_hand_side(corpus: StringCorpus) -> None:
    rules = EQUATIONS.rules
    training, test = corpus.ids("train").tolist(), corpus.ids("test").tolist()
    nll, right, exact, expected, counted = 0.0, 0, 0, 0.0, 0
    for x in test:
        nats, wrong = 0.0, 0
        for step, rule in enumerate(x):
            if rule == rules.padding:
                break
            some = rules.of(rules.lhs[rule])
            counts = {other: 1 + sum(row[step] == other for row in training) for other in some}
            nats -= math.log(counts[rule] / sum(counts.values()))
            wrong += max(some, key=lambda other: (counts[other], -other)) != rule
            counted += 1
        nll, expected = nll + nats / len(test), expected + math.exp(-nats) / len(test)
        right, exact = right - wrong, exact + (wrong == 0)
    found = strings.unigram_baseline(corpus.ids("train"), rules, corpus.ids("test"))
    assert found["nll_nats"] == pytest.approx(nll)
    assert found["nll_bits"] == pytest.approx(nll * len(test) / counted / math.log(2))
    assert found["token_accuracy"] == pytest.approx((right + counted) / counted)
    assert found["exact_share"] == exact / len(test)
    assert found["expected_exact_share"] == pytest.approx(expected)


@pytest.mark.parametrize("arch", ["kusner", "enhanced"])
def test_batches_change_no_score(arch: str, corpus: StringCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, and cut to the longest of a batch, a pass gives what one whole batch gives."""
    kernel = {"encoder_conv_layers": 3, "encoder_kernel": 2} if arch == "kusner" else {}
    model = untrained(arch=arch, latent_dim=3, **kernel)
    indices = choose(corpus, "test", 23, 1)
    batch = corpus.batch("test", indices)
    with torch.inference_mode():
        level = model.encode(batch, noise=False)[0]
        logits = model.logits_for({"z": level.mean}, batch)
    posteriors = []
    for size in (5, 100):
        monkeypatch.setattr(strings, "batch_size", lambda length, size=size: size)
        posteriors.append(strings.encode(model, corpus, "test", indices, seed=4))
        costs, wrong, _ = strings.decode(model, corpus, "test", indices, level.mean)
        for part in ("mean", "logvar", "kl"):
            torch.testing.assert_close(getattr(posteriors[-1], part), getattr(level, part))
        torch.testing.assert_close(costs.float(), nats(logits, batch))
        assert wrong.tolist() == ((logits.argmax(1) != batch.x) & batch.valid).sum(1).tolist()
    torch.testing.assert_close(posteriors[0].sample, posteriors[1].sample)


def test_new_strings_are_counted_one_by_one() -> None:
    known, new, twice = [3, 7, 11], [3, 8, 11], [3, 9, 11]
    ids = np.array([known, new, twice, twice], np.int16)
    validator = Validator("odd", lambda text: text != "2")
    keys = set(strings.keys(np.array([known])))
    complete = np.array([True, False, True, True])
    found = strings.score_strings(ids, complete, ids[[0, 0, 0, 1]], keys, EQUATIONS.rules, validator)
    assert EQUATIONS.write(twice) == "2"
    assert (found["samples"], found["mean_rules"]) == (4, 2.0)
    assert (found["complete_share"], found["valid_share"], found["complete_valid_share"]) == (0.75, 0.5, 0.25)
    assert (found["distinct_share"], found["novel_share"]) == (1.0, 0.5)
    assert (found["likeliest_valid_share"], found["likeliest_distinct_share"]) == (1.0, 0.5)
    assert found["distinct_1k_share"] is found["distinct_10k_share"] is found["diversity"] is None
    plain = strings.score_strings(ids, complete, ids, keys, EQUATIONS.rules, None)
    assert (plain["valid_share"], plain["distinct_share"], plain["novel_share"]) == (None, 0.75, 2 / 3)


def test_a_quick_evaluation_omits_what_takes_many_passes(corpus: StringCorpus) -> None:
    model = Ruler(EQUATIONS.rules).train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    report, again = (run(model, corpus, "train", quick=True).report for _ in range(2))
    assert report == again
    assert model.training and torch.equal(before, torch.get_rng_state())
    assert report["entropy_nats"] is None  # it bounds the likelihood of unseen strings
    assert report["interpolation"] is report["importance_weighted"] is report["reconstruction"]["monte_carlo"] is None
    assert report["shuffled_codes"] is not None and report["prior_samples"]["standard"]["samples"] == 200


def test_without_a_grammar_strings_are_not_scored(arrays: Dataset) -> None:
    rules = replace(arrays.rules, rhs=None, text=None)
    corpus = StringCorpus(replace(arrays, rules=rules, grammar=None))
    model = Ruler(rules)
    report = run(model, corpus, "test").report
    assert report["judged"] is report["prior_samples"] is report["interpolation"] is None
    assert report["reconstruction"]["posterior_mean"]["exact_share"] == 1.0
    with pytest.raises(InputError, match="--monte-carlo"):
        run(model, corpus, "test", monte_carlo=(3, 1, 1))


def test_evaluation_needs_training_strings_a_split_and_finite_outputs(arrays: Dataset) -> None:
    model, tests_only = Ruler(EQUATIONS.rules), StringCorpus(arrays.only(arrays.rows("test")))
    with pytest.raises(InputError, match="the split train is empty"):
        run(model, tests_only, "test")
    model.sharp = math.nan
    with pytest.raises(ArcvaeError, match="not finite"):
        run(model, StringCorpus(arrays), "val")


def test_rules_are_drawn_by_the_seed_alone() -> None:
    """Other ways of decoding do not change what is drawn; the argmax is the model's own."""
    model = untrained(latent_dim=4)
    codes = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    found = strings.derive(model, codes, strings.DRAWN, strings.FREE, strings.ARGMAX, seed=3)
    (drawn, whole), (free, complete), (best, _) = found
    assert (drawn == strings.derive(model, codes, strings.DRAWN, seed=3)[0][0]).all()
    assert whole.all() and not complete.all() and (drawn == free)[complete].all()
    assert (torch.from_numpy(best) == generate(model, {"z": codes})).all()
