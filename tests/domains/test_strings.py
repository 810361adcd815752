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

from arcvae_cli import graphs
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpus import StringCorpus
from arcvae_cli.data.derivations import Counts
from arcvae_cli.data.parsing import Parser
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.domains.base import Task
from arcvae_cli.domains.strings import (
    StringDomain,
    decode,
    derive,
    encode,
    monte_carlo,
    path_scores,
    score_strings,
)
from arcvae_cli.domains.validity import Validator, validator_for
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.evaluation.baselines import rule_frequencies
from arcvae_cli.evaluation.evaluate import Evaluation, evaluate
from arcvae_cli.evaluation.information import choose, nats
from arcvae_cli.evaluation.paths import decoded_paths
from arcvae_cli.evaluation.priors import argmax_decode
from arcvae_cli.grammar import Rules, read_grammar
from arcvae_cli.models.base import Batch, Level, standard_level
from arcvae_cli.models.grammar import GrammarVAE, Structure
from arcvae_cli.settings import GrammarSettings, Settings
from tests.replaying import record

EQUATIONS = read_grammar("equations")
LENGTH = 9
TINY: dict[str, Any] = {
    "name": "grammar",
    "latent_dim": LENGTH,
    "encoder_hidden": 8,
    "encoder_conv_layers": 1,
    "encoder_kernel": 3,
    "decoder_hidden": 8,
    "decoder_layers": 1,
}
SETTINGS = Settings.model_validate({"data": {"name": "equations"}, "model": TINY, "schedule": {"name": "constant"}})


class Ruler(GrammarVAE):
    """A code of one number a step, the id of its rule, from which the decoder measures the distance of every rule."""

    def __init__(
        self, rules: Rules, sharp: float = 4.0, spread: float = 0.2, shift: float = 0.0, length: int = LENGTH
    ) -> None:
        assert isinstance(SETTINGS.model, GrammarSettings)
        super().__init__(SETTINGS.model.model_copy(update={"latent_dim": length}), Structure(rules, length))
        self.sharp, self.spread, self.shift = sharp, spread, shift

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        mean = functional.pad(
            batch.x, (0, self.structure.length - batch.x.shape[1]), value=self.structure.rules.padding
        ).float()
        return (standard_level("z", mean, torch.full_like(mean, 2 * math.log(self.spread)), noise),)

    def decode(
        self, latents: Mapping[str, Tensor], conditions: Tensor | None = None, steps: int | None = None
    ) -> Tensor:
        ids = torch.arange(len(self.structure.rules))
        return -self.sharp * (ids[None, :, None] - latents["z"][:, None, :steps] - self.shift).square()


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
    return run(model, corpus, "test", monte_carlo=(40, 10, 100), iwae_samples=3, samples=1100, seed=5)


def probabilities(rules: Rules, z: list[float], x: list[int], sharp: float) -> list[float]:
    """p(rule | z) of each step of a derivation, by hand: a softmax over the rules of the true rule's left-hand side."""
    found = []
    for code, rule in zip(z, x, strict=True):
        if rule == rules.padding:
            break
        weights = {other: math.exp(-sharp * (other - code) ** 2) for other in rules.of(rules.lhs[rule])}
        found.append(weights[rule] / sum(weights.values()))
    return found


def test_likelihood_is_that_of_the_rules_by_hand(evaluation: Evaluation, corpus: StringCorpus) -> None:
    """The noise of the ruler is small: the ELBO follows from Gauss-Hermite points in each step's one number."""
    rules, report = EQUATIONS.rules, evaluation.report
    points, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    total, kl, counted = 0.0, 0.0, 0
    ids = corpus.ids("test").tolist()
    for x in ids:
        for point, weight in zip(points, weights, strict=True):
            z = [rule + 0.3 * point for rule in x]
            total -= weight * sum(map(math.log, probabilities(rules, z, x, 2.0)))
        kl += sum(0.5 * (rule**2 + 0.09 - 1 - math.log(0.09)) for rule in x)
        counted += sum(rule != rules.padding for rule in x)
    assert report["elbo"]["examples"] == report["reconstruction"]["examples"] == len(ids) == 40
    assert report["elbo"]["kl_nats"] == pytest.approx(kl / len(ids), rel=1e-5)
    assert report["elbo"]["reconstruction_nats"] == pytest.approx(total / len(ids), rel=0.1)
    assert report["elbo"]["reconstruction_bits"] == pytest.approx(
        report["elbo"]["reconstruction_nats"] * len(ids) / counted / math.log(2)
    )
    assert report["trained_kl_nats"] == pytest.approx(report["elbo"]["kl_nats"])
    assert report["entropy_nats"] == pytest.approx(Counts(rules, LENGTH).entropy)
    assert corpus.entropy is not None
    lengths, _ = StringDomain().code_values(Task(None, corpus, "test", SETTINGS), evaluation.indices)
    assert lengths.tolist() == [sum(rule != rules.padding for rule in ids[index]) for index in evaluation.indices]


def test_drawing_strings_estimates_the_expected_exact_share(evaluation: Evaluation) -> None:
    """Ten codes of each of 40 derivations on either side, and 40,000 strings on one."""
    found = evaluation.report["reconstruction"]
    drawn = evaluation.report["prior_samples"]
    # a code near 0 is rule 0 at every step, S -> S '+' T, which never ends; the fitted Gaussian knows better
    assert drawn["standard"]["complete_share"] < 0.05 < drawn["aggregate"]["complete_share"]
    assert (found["expected_examples"], found["encodings"]) == (40, 10)
    assert 0.05 < found["expected_exact_share"] < 0.95
    assert found["monte_carlo"]["exact_share"] == pytest.approx(found["expected_exact_share"], abs=0.03)
    assert found["monte_carlo"]["budget_exact_share"] >= found["monte_carlo"]["exact_share"]
    assert 0 < found["expected_error"] < 0.05


def test_as_a_graph_the_same_strings_are_counted(corpus: StringCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators recorded once stand for a CUDA graph; the last batch, of 3, and the last 25 strings are filled up."""
    model = Ruler(EQUATIONS.rules, sharp=2.0, spread=0.3)
    monkeypatch.setattr("arcvae_cli.domains.strings.batch_size", lambda length, device=None: 8)
    monkeypatch.setattr("arcvae_cli.domains.strings.DECODINGS", 8 * LENGTH * 8)
    task = Task(model, corpus, "test", SETTINGS, seed=2)
    task.indices = torch.arange(30)
    found = [monte_carlo(task, 19, 2, 25)]
    monkeypatch.setattr(graphs, "possible", lambda device: True)
    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)
    found.append(monte_carlo(task, 19, 2, 25))
    assert found[0] == found[1]
    assert 0.05 < found[0]["exact_share"] < found[0]["budget_exact_share"] < 1.0


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
    found = rule_frequencies(corpus.ids("train"), rules, corpus.ids("test"))
    assert found["training"] == 320
    assert found["nll_nats"] == pytest.approx(nll)
    assert found["nll_bits"] == pytest.approx(nll * len(test) / counted / math.log(2))
    assert found["token_accuracy"] == pytest.approx((right + counted) / counted)
    assert found["exact_share"] == exact / len(test)
    assert found["expected_exact_share"] == pytest.approx(expected)


def test_padding_counts_nowhere(corpus: StringCorpus) -> None:
    """Codes of the right rules but for one, and of nonsense in the padding."""
    x = corpus.ids("test")[:3].float()
    lengths = (x != 11).sum(1)
    codes = torch.where(x == 11, 3.0, x)
    start = codes[1, 1].item()
    codes[1, 1] = next(rule for rule in EQUATIONS.rules.of(EQUATIONS.rules.lhs[int(start)]) if rule != start)
    found = decode(Ruler(EQUATIONS.rules), corpus, "test", torch.arange(3), codes)
    assert found.errors.tolist() == [0, 1, 0] and found.lengths.tolist() == lengths.tolist()
    assert found.scores()["token_accuracy"] == pytest.approx(1 - 1 / lengths.sum().item())
    assert found.scores()["exact_share"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("arch", ["kusner", "enhanced"])
def test_in_any_order_and_without_padding_a_pass_finds_what_whole_batches_find(
    arch: str, corpus: StringCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layers = {"kusner": 3, "enhanced": 1}[arch]
    table = {
        **TINY,
        "arch": arch,
        "latent_dim": 3,
        "encoder_conv_layers": layers,
        "encoder_kernel": 2 if layers == 3 else 3,
    }
    model = GrammarVAE(GrammarSettings.model_validate(table), Structure(EQUATIONS.rules, LENGTH)).eval()
    indices = choose(corpus, "test", 23, 1)
    batch = corpus.batch("test", indices)
    with torch.inference_mode():
        level = model.encode(batch, noise=False)[0]
        logits = model.logits_for({"z": level.mean}, batch)
    posteriors = []
    for size in (5, 100):
        monkeypatch.setattr("arcvae_cli.domains.strings.batch_size", lambda length, device=None, size=size: size)
        posteriors.append(encode(model, corpus, "test", indices, seed=4))
        found = decode(model, corpus, "test", indices, level.mean)
        torch.testing.assert_close(posteriors[-1].mean, level.mean)
        torch.testing.assert_close(posteriors[-1].logvar, level.logvar)
        torch.testing.assert_close(posteriors[-1].kl, level.kl)
        torch.testing.assert_close(found.nats.float(), nats(logits, batch))
        assert found.errors.tolist() == ((logits.argmax(1) != batch.x) & batch.valid).sum(1).tolist()
    torch.testing.assert_close(posteriors[0].sample, posteriors[1].sample)


def test_new_strings_are_counted_one_by_one() -> None:
    known, new, twice = [3, 7, 11], [3, 8, 11], [3, 9, 11]
    ids = np.array([known, new, twice, twice], np.int16)
    bad = "2"
    judge = Validator("odd", lambda text: text != bad)
    keys = {key_of(known)}
    found = score_strings(ids, np.array([True, False, True, True]), ids[[0, 0, 0, 1]], keys, EQUATIONS, judge)
    assert EQUATIONS.write(twice) == bad
    assert (found["samples"], found["mean_rules"]) == (4, 2.0)
    assert (found["complete_share"], found["valid_share"], found["complete_valid_share"]) == (0.75, 0.5, 0.25)
    assert (found["distinct_share"], found["novel_share"]) == (1.0, 0.5)
    assert (found["likeliest_valid_share"], found["likeliest_distinct_share"]) == (1.0, 0.5)
    assert found["distinct_1k_share"] is found["distinct_10k_share"] is found["diversity"] is None
    plain = score_strings(ids, np.ones(4, np.bool_), ids, keys, EQUATIONS, None)
    assert (plain["valid_share"], plain["distinct_share"], plain["novel_share"]) == (None, 0.75, 2 / 3)
    none = score_strings(ids[2:], np.ones(2, np.bool_), ids[2:], keys, EQUATIONS, judge)
    assert (none["valid_share"], none["distinct_share"], none["novel_share"]) == (0.0, 0.0, None)


def key_of(ids: list[int]) -> bytes:
    from arcvae_cli.domains.strings import _key

    return _key(np.array(ids))


def test_paths_go_from_one_string_to_the_other(corpus: StringCorpus) -> None:
    model = Ruler(EQUATIONS.rules)
    indices = torch.arange(6)
    decoded = decoded_paths(model, corpus, "test", indices, 5)
    found = path_scores(decoded, EQUATIONS, validator_for(EQUATIONS))
    ids = corpus.ids("test")[:6]
    assert (found["pairs"], found["steps"]) == (3, 5)
    assert found["distance"] == pytest.approx((ids[:3] != ids[3:]).sum(dim=1).double().mean())
    assert found["mean_step"] <= found["largest_step"] <= LENGTH
    assert found["mean_step"] * 4 >= found["distance"] - 1e-9  # the way is no shorter than the ends are apart
    assert 1 < found["distinct"] <= 5
    assert found["valid_share"] is not None and found["valid_paths"] is not None
    assert found["valid_paths"] <= found["valid_share"] <= 1


def test_the_same_seed_gives_the_same_report_and_leaves_torch_alone(corpus: StringCorpus) -> None:
    model = Ruler(EQUATIONS.rules).train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = (run(model, corpus, "val", seed=3, samples=50).report for _ in range(2))
    assert one == other
    assert model.training and torch.equal(before, torch.get_rng_state())


def test_a_quick_evaluation_leaves_out_what_takes_many_passes(corpus: StringCorpus) -> None:
    report = run(Ruler(EQUATIONS.rules), corpus, "train", quick=True).report
    assert report["entropy_nats"] is None  # it bounds the likelihood of unseen strings
    assert report["quick"] and report["reconstruction"]["encodings"] == 1
    assert report["interpolation"] is report["importance_weighted"] is report["reconstruction"]["monte_carlo"] is None
    assert report["levels"]["z"]["mutual_information"] is None
    assert report["shuffled_codes"] is not None and report["prior_samples"] is not None
    assert report["prior_samples"]["standard"]["samples"] == 200


def test_without_a_grammar_all_is_measured_that_takes_none(arrays: Dataset) -> None:
    rules = replace(arrays.rules, rhs=None, text=None)
    corpus = StringCorpus(replace(arrays, rules=rules, grammar=None))
    model = Ruler(rules)
    report = run(model, corpus, "test", iwae_samples=2).report
    assert report["judged"] is report["prior_samples"] is report["interpolation"] is None
    assert report["reconstruction"]["posterior_mean"]["exact_share"] == 1.0
    assert report["importance_weighted"] is not None
    with pytest.raises(InputError, match="--monte-carlo: the model was trained without"):
        run(model, corpus, "test", monte_carlo=(3, 1, 1))


def test_what_cannot_be_evaluated_is_refused(arrays: Dataset) -> None:
    model = Ruler(EQUATIONS.rules)
    tests_only = StringCorpus(arrays.only(arrays.rows("test")))
    with pytest.raises(InputError, match="no training derivations"):
        run(model, tests_only, "test")
    with pytest.raises(InputError, match="the split val is empty"):
        run(model, tests_only, "val", trained=StringCorpus(arrays))
    model.shift = math.nan
    with pytest.raises(ArcvaeError, match="not finite"):
        run(model, StringCorpus(arrays), "val")


def test_molecules_are_valid_alike_and_the_same_by_another_name() -> None:
    pytest.importorskip("rdkit")
    grammar = read_grammar("smiles")
    parser, length = Parser(grammar), 60
    molecules = ["CCO", "c1ccccc1", "CC(=O)O", "CCN", "C1CCCCC1", "CC(C)C", "OCC", "CCCl"]
    derivations = [parser.parse(text) for text in molecules]
    ids = np.full((len(molecules), length), grammar.rules.padding, np.int16)
    for row, one in zip(ids, derivations, strict=True):
        row[: len(one)] = one
    arrays = Dataset("few", ids, np.array([0] * 6 + [2] * 2, np.uint8), rules=grammar.rules, grammar=grammar)
    corpus = StringCorpus(arrays)
    model = Ruler(grammar.rules, length=length, sharp=100.0, spread=1e-3)
    report = run(model, corpus, "test", samples=40).report
    assert report["judged"] == "valid"
    assert (
        report["reconstruction"]["canonical_share"] == report["reconstruction"]["posterior_mean"]["exact_share"] == 1.0
    )
    assert report["entropy_nats"] is None
    assert "-log p(x), entropy" not in [finding["name"] for finding in report["verdict"]["findings"]]
    # codes of another molecule with the same meaning give another string, and the same molecule
    swapped = np.concatenate([ids[:6], ids[[6]]])
    arrays = Dataset("swap", swapped, np.array([0] * 6 + [2], np.uint8), rules=grammar.rules, grammar=grammar)

    class Renaming(Ruler):
        """Encodes OCC as CCO."""

        def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
            return super().encode(replace(batch, x=torch.from_numpy(ids[:1]).long().expand(len(batch.x), -1)), noise)

    renaming = Renaming(grammar.rules, length=length, sharp=100.0, spread=1e-3)
    found = run(renaming, StringCorpus(arrays), "test", samples=5).report
    assert found["reconstruction"]["posterior_mean"]["exact_share"] == 0.0
    assert found["reconstruction"]["canonical_share"] == 1.0


# ------------------------------------------------------------------------------------------------ deriving


def of_equations(rules: Rules) -> GrammarVAE:
    sizes = {"latent_dim": 4, "encoder_hidden": 8, "encoder_kernel": 3, "decoder_hidden": 8, "decoder_layers": 1}
    torch.manual_seed(0)
    return GrammarVAE(GrammarSettings.model_validate(sizes), Structure(rules, 9)).eval()


def test_rules_are_drawn_by_the_seed_and_the_likeliest_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_equations(read_grammar("equations").rules)
    latents = {"z": torch.randn(50, 4, generator=torch.Generator().manual_seed(1))}
    with monkeypatch.context() as patch:
        patch.setattr("arcvae_cli.domains.strings.batch_size", lambda length, device=None: 7)
        ids, complete = derive(model, latents, drawn=False)
    assert complete.all()
    assert (torch.from_numpy(ids) == argmax_decode(model, latents)).all()
    drawn = [derive(model, latents, drawn=True, seed=seed)[0] for seed in (3, 3, 4)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
    assert not derive(model, latents, drawn=True, budget=False)[1].all()


def test_the_noise_of_the_rules_is_not_that_of_the_codes() -> None:
    """One stream for both would tie what is drawn of a code to the code."""
    model = of_equations(read_grammar("equations").rules)
    first = []
    for seed in range(300):
        torch.manual_seed(seed)
        z = torch.randn(1, 4)
        first.append((z[0, 0].item(), derive(model, {"z": 0 * z}, drawn=True, seed=seed)[0][0, 0].item()))
    codes, rules = np.array(first).T
    assert abs(np.corrcoef(codes, rules)[0, 1]) < 0.2


@pytest.mark.parametrize("drawn", [True, False])
def test_many_codes_replay_one_graph_and_derive_the_same(drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators recorded once stand for a CUDA graph: 50 codes are seven passes of 7 and one that is filled up."""
    model = of_equations(read_grammar("equations").rules)
    latents = {"z": torch.randn(50, 4, generator=torch.Generator().manual_seed(1))}
    monkeypatch.setattr("arcvae_cli.domains.strings.batch_size", lambda length, device=None: 7)
    expected = derive(model, latents, drawn, seed=3)
    recordings = []

    def counted(*functions: Any) -> tuple[Any, Any]:
        recordings.append(record(*functions))
        return recordings[-1]

    monkeypatch.setattr(graphs, "possible", lambda device: True)
    monkeypatch.setattr(graphs, "record", counted)
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)
    found = derive(model, latents, drawn, seed=3)
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))
    assert len(recordings) == 1
    few = {"z": latents["z"][:35]}  # a recording would cost more than it saves
    assert (derive(model, few, drawn, seed=3)[0] == expected[0][:35]).all()
    assert len(recordings) == 1


def test_the_noise_of_rules_is_not_of_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_equations(read_grammar("equations").rules)
    latents = {"z": torch.randn(50, 4, generator=torch.Generator().manual_seed(1))}
    found = []
    for factor in (1, 3):  # as a device does that decodes more at once than the CPU
        monkeypatch.setattr(
            "arcvae_cli.domains.strings.batch_size",
            lambda length, device=None, factor=factor: 7 if device is None else 7 * factor + 2,
        )
        found.append(derive(model, latents, drawn=True, seed=3)[0])
    assert (found[0] == found[1]).all()
