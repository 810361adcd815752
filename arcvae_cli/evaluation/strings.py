"""The evaluation of a model of derivations: reconstruction beside a baseline, the code, new strings, a verdict.

Padding counts nowhere. A derivation is right at a step if the likeliest of the rules that could stand there, those of
the true rule's left-hand side, is the true one; it is exact if it is right at every step, which is when the likeliest
rules, taken one after the other, derive the same string.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli import gaussians
from arcvae_cli.data.corpus import DerivationCorpus
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.evaluation.grids import setup_of
from arcvae_cli.evaluation.information import (
    Elbo,
    ImportanceWeighted,
    InformationTally,
    LevelInformation,
    Shuffled,
    ShuffledCodes,
    batch_size,
    batches,
    choose,
    evaluating,
    exact,
    importance_weighted,
    longest_first,
    nats,
    shuffled_codes,
)
from arcvae_cli.evaluation.paths import changed, walk
from arcvae_cli.evaluation.priors import draw_prior, encode, fit_prior, through_rules
from arcvae_cli.evaluation.string_verdict import MeasuredStrings, judge_strings
from arcvae_cli.evaluation.validity import Judge, judge_of
from arcvae_cli.evaluation.verdict import Verdict
from arcvae_cli.grammar import Grammar, Rules
from arcvae_cli.graphs import Graphed
from arcvae_cli.models.base import Batch, Level
from arcvae_cli.models.grammar import LEVEL, GrammarVAE
from arcvae_cli.models.pushdown import Pushdown
from arcvae_cli.settings import GrammarSettings, Settings
from arcvae_cli.step import mix

Ids = NDArray[np.int16]
PriorName = Literal["standard", "aggregate"]

EXAMPLES, WORK = 1000, 150_000
"""Of whatever takes many passes, drawn codes and exchanged ones: at most so many derivations, of so many steps."""

IWAE_EXAMPLES = 512
PAIRS, STEPS = 100, 9
SAMPLES = 1000
QUICK_EXAMPLES, QUICK_SAMPLES = 2000, 200
"""Of the report that a run ends with, in which a pass takes no more work than that either."""

MUTUAL_INFORMATION_EXAMPLES = 10_000
LIKENESS = 1000  # molecules whose likeness is measured, pair by pair
DECODINGS, CUDA_DECODINGS = 2**20, 2**24  # noise is drawn for so many rules at once

_ENCODINGS = 10  # of an example, as in the protocol of 2017


@dataclass(frozen=True, slots=True)
class SequenceScores:
    """Shares of rules, and of derivations in which every rule is right."""

    token_accuracy: float
    exact_share: float


@dataclass(frozen=True, slots=True)
class Frequencies:
    """What a model without a code gets: rules as frequent as in training, by step and left-hand side.

    `nll_nats` a derivation, `nll_bits` a rule. `expected_exact_share`: of derivations drawn from these frequencies.
    """

    training: int
    nll_nats: float
    nll_bits: float
    token_accuracy: float
    exact_share: float
    expected_exact_share: float


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """Exact reconstruction by the protocol of Kusner et al. 2017: draw codes of an example, draw strings of each code.

    `exact_share` of all that was drawn without the length budget, `budget_exact_share` with it.
    """

    examples: int
    encodings: int
    decodings: int
    exact_share: float
    budget_exact_share: float


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Scores of `examples` at the posterior mean and at one posterior sample, and of the baseline.

    `expected_exact_share`: the mean of p(x|z) over `encodings` codes drawn for each of `expected_examples`, with
    `expected_error`, its standard error over examples. It is what drawing strings of each code estimates.
    `canonical_share`: of strings at the posterior mean that mean the same as the original, None where nobody can tell.
    """

    examples: int
    posterior_mean: SequenceScores
    posterior_sample: SequenceScores
    frequencies: Frequencies
    encodings: int
    expected_examples: int
    expected_exact_share: float
    expected_error: float
    canonical_share: float | None
    monte_carlo: MonteCarlo | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """Strings drawn from a prior, a code and then its rules. Shares are of `samples` unless they say otherwise.

    `complete_share`: that end within T rules by themselves. All else is of strings drawn with the length budget, so
    that each is complete. `valid_share`: that mean something (`Report.judged`), None where nobody can tell. Then
    `distinct_share` of the valid ones (else of all); the same among the first 1,000 and 10,000 samples, where there
    are so many.
    `novel_share`: of the distinct ones, those that are no training string. `diversity`: 1 - mean likeness of the
    distinct ones. `likeliest_*`: of the likeliest strings of the same codes instead of drawn ones.
    """

    samples: int
    complete_share: float
    valid_share: float | None
    complete_valid_share: float | None
    distinct_share: float
    distinct_1k_share: float | None
    distinct_10k_share: float | None
    novel_share: float | None
    diversity: float | None
    likeliest_valid_share: float | None
    likeliest_distinct_share: float
    mean_rules: float


@dataclass(frozen=True, slots=True)
class Paths:
    """Straight paths of `steps` codes between pairs of examples, the likeliest string at each.

    `mean_step`, `largest_step`: rules that differ from one step to the next, `distance`: between the ends, means over
    pairs. `distinct`: different strings on a path, its ends included. `valid_share` of all strings on all paths,
    `valid_paths` of paths without an invalid one; None where nobody can tell.
    """

    pairs: int
    steps: int
    mean_step: float
    largest_step: float
    distance: float
    distinct: float
    valid_share: float | None
    valid_paths: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything measured. What a quick evaluation leaves out, or what takes a grammar that is not known, is None.

    `entropy_nats`: of the distribution that the strings are drawn from, where it is known: no mean -log p(x) can be
    lower. `trained_kl_nats`: the KL term of the objective; it is that of the ELBO unless `posterior_noise` is below 1.
    `judged`: what a valid string is ("valid", "evaluable"). `prior_samples`: by the prior.
    """

    corpus: str
    split: str
    seed: int
    quick: bool
    steps: int
    reconstruction: Reconstruction
    elbo: Elbo
    elbo_error: float
    trained_kl_nats: float
    posterior_noise: float
    entropy_nats: float | None
    importance_weighted: ImportanceWeighted | None
    levels: dict[str, LevelInformation]
    shuffled_codes: ShuffledCodes | None
    interpolation: Paths | None
    judged: str | None
    prior_samples: dict[PriorName, Drawn] | None
    verdict: Verdict

    def document(self) -> dict[str, Any]:
        """Nested plain numbers and texts, as they stand in `metrics.json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The report, and what files need.

    `indices`: (n,) examples of the split in the order seen, `errors`: (n,) wrong rules of each at the posterior mean,
    `lengths`: (n,) rules of each. `codes`: by level, (n, units) posterior means.
    """

    report: Report
    indices: NDArray[np.int64]
    errors: NDArray[np.int64]
    lengths: NDArray[np.int64]
    codes: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Protocol:
    """The Monte-Carlo protocol: for each of `examples`, `encodings` codes, and `decodings` strings of each code."""

    examples: int
    encodings: int = _ENCODINGS
    decodings: int = 100


def evaluate_strings(
    model: GrammarVAE,
    corpus: DerivationCorpus,
    split: str,
    *,
    settings: Settings,
    trained: DerivationCorpus | None = None,
    grammar: Grammar | None = None,
    seed: int = 0,
    iwae_samples: int = 0,
    iwae_examples: int = IWAE_EXAMPLES,
    monte_carlo: Protocol | None = None,
    samples: int = SAMPLES,
    quick: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a model of derivations on a split of a corpus that lies on the model's device.

    `settings`: of the run, for the remedies. `trained`: the corpus whose training split the model was trained on, for
    the baseline, the fitted prior and what is novel; `corpus` where None. `grammar`: to write strings with, where the
    corpus has none. `iwae_samples`: draws an example of the importance-weighted bound, 0 for none. `samples` from each
    prior. `quick`: fewer examples, and only what takes few passes. `tell` hears what comes next.

    The same seed gives the same report on one machine; torch's generators are left as they were found.

    Raises:
        InputError: a split or a training set without derivations; a Monte-Carlo protocol for a model without grammar.
        ArcvaeError: the model's output is not finite.

    """
    trained = trained or corpus
    grammar = corpus.grammar or grammar
    pushdown, size = model.pushdown, batch_size(corpus.length, corpus.device)
    if not trained.size("train"):
        raise InputError(
            f"{trained.name}: no training derivations to count rules in", "give a corpus with a training split"
        )
    if monte_carlo is not None and pushdown is None:
        raise InputError(
            "--monte-carlo: without its grammar the model derives nothing",
            "leave it out: the expected share of exact reconstructions is what it estimates",
        )
    workable = max(1, WORK // corpus.length)
    indices = choose(corpus, split, min(QUICK_EXAMPLES, workable) if quick else None, seed)
    if not len(indices):
        raise InputError(f"{corpus.name}: the split {split} is empty")
    few = indices[: min(EXAMPLES, workable)]

    tell(f"reconstructing {len(indices):,} derivations")
    posterior = encode(model, corpus, split, indices, seed)
    at_sample = decode(model, corpus, split, indices, posterior.sample)
    information = InformationTally()
    information.add((posterior,), at_sample.nats, at_sample.lengths)
    bounds = at_sample.nats + exact(posterior.rate).sum(dim=1).cpu()
    elbo = information.elbo()
    if not math.isfinite(elbo.elbo_nats):
        raise ArcvaeError("the model's output is not finite", "its weights are broken: evaluate an earlier checkpoint")
    levels = information.levels(0 if quick else MUTUAL_INFORMATION_EXAMPLES)
    judge = None if grammar is None else judge_of(grammar)
    canonical = None if judge is None or quick else judge.canonical
    at_mean = decode(model, corpus, split, indices, posterior.mean, derive=canonical is not None)
    same = None
    if grammar is not None and canonical is not None and at_mean.derived is not None:
        originals = corpus.ids(split)[indices.to(corpus.device)].cpu().numpy()
        same = _same_meaning(originals, at_mean.derived, grammar, canonical)
    encodings = 1 if quick else _ENCODINGS
    if not quick:
        tell(f"exact share: {encodings} codes of each of {len(few):,} derivations")
    expected = _expected_exact(model, corpus, split, few, posterior, encodings, seed)
    counted = None
    if monte_carlo is not None and pushdown is not None:
        chosen = indices[: monte_carlo.examples]
        total = monte_carlo.encodings * monte_carlo.decodings
        tell(f"Monte Carlo: {total:,} strings of each of {len(chosen):,} derivations")
        counted = _monte_carlo(model, pushdown, corpus, split, chosen, monte_carlo, seed)
    frequencies = RuleFrequencies(trained.ids("train"), trained.rules)
    reconstruction = Reconstruction(
        examples=len(indices),
        posterior_mean=at_mean.scores(),
        posterior_sample=at_sample.scores(),
        frequencies=frequencies.measure(corpus, split, indices),
        encodings=encodings,
        expected_examples=len(few),
        expected_exact_share=expected.mean().item(),
        expected_error=_error(expected),
        canonical_share=same,
        monte_carlo=counted,
    )

    weighted = shuffled = paths = None
    if len(few) > 1:
        tell("shuffled codes" if quick else "shuffled codes, interpolation")
        own = {LEVEL: posterior.mean[: len(few)]}
        shuffled = shuffled_codes(model, corpus, split, few, seed, own, at_mean.beginning(len(few)), size)
        if not quick and pushdown is not None:
            paths = string_paths(model, corpus, split, indices[: 2 * PAIRS], grammar, judge)
    if iwae_samples:
        chosen = indices[:iwae_examples]
        tell(f"importance-weighted likelihood: {iwae_samples} draws for each of {len(chosen):,} derivations")
        weighted = importance_weighted(model, corpus, split, chosen, iwae_samples, seed, size)

    drawn: dict[PriorName, Drawn] | None = None
    if pushdown is not None:
        tell("samples from N(0, I) and from the fitted prior")
        count = QUICK_SAMPLES if quick else samples
        drawn = _draw(model, pushdown, trained, count, seed, grammar, judge)
    noise = settings.model.posterior_noise if isinstance(settings.model, GrammarSettings) else 1.0
    # what bounds the likelihood of strings that were drawn anew bounds nothing of strings that were learned
    entropy = corpus.entropy if split != "train" else None
    verdict = judge_strings(
        MeasuredStrings(
            exact=reconstruction.posterior_mean.exact_share,
            reconstruction_nats=elbo.reconstruction_nats,
            baseline_nats=reconstruction.frequencies.nll_nats,
            kl={name: level.kl_nats for name, level in levels.items()},
            shuffled_gain=None
            if shuffled is None
            else shuffled.shuffled_reconstruction_nats - shuffled.reconstruction_nats,
            nll_nats=-elbo.elbo_nats if weighted is None else weighted.nll_nats,
            nll_error=_error(bounds, len(indices) if weighted is None else weighted.examples),
            entropy_nats=entropy,
            complete=None if drawn is None else drawn["standard"].complete_share,
            complete_aggregate=None if drawn is None or "aggregate" not in drawn else drawn["aggregate"].complete_share,
            posterior_noise=noise,
        ),
        setup_of(settings, model, corpus.length),
    )
    report = Report(
        corpus=corpus.name,
        split=split,
        seed=seed,
        quick=quick,
        steps=corpus.length,
        reconstruction=reconstruction,
        elbo=elbo,
        elbo_error=_error(bounds),
        trained_kl_nats=exact(posterior.kl).sum(dim=1).mean().item(),
        posterior_noise=noise,
        entropy_nats=entropy,
        importance_weighted=weighted,
        levels=levels,
        shuffled_codes=shuffled,
        interpolation=paths,
        judged=None if judge is None else judge.name,
        prior_samples=drawn,
        verdict=verdict,
    )
    codes = {name: information.means(name).numpy() for name in levels}
    return Evaluation(report, indices.numpy(), at_mean.errors.numpy(), at_mean.lengths.numpy(), codes)


def _error(values: Tensor, examples: int | None = None) -> float:
    """The standard error of a mean over so many `examples` (all, if None), by (n,) values; 0 by a single one."""
    return (values.std() / math.sqrt(examples or len(values))).item() if len(values) > 1 else 0.0


# ------------------------------------------------------------------------------------------------ reconstruction


@dataclass(frozen=True, slots=True)
class Decoded:
    """Derivations against codes: (n,) float64 -log p(x|z) in nats, (n,) wrong rules and all rules, on the CPU.

    `derived`: (n, T) int16 likeliest derivations of the codes, where they were asked for.
    """

    nats: Tensor
    errors: Tensor
    lengths: Tensor
    derived: Ids | None = None

    def scores(self) -> SequenceScores:
        """Scores of all of them."""
        return SequenceScores(
            token_accuracy=1.0 - self.errors.sum().item() / self.lengths.sum().item(),
            exact_share=(self.errors == 0).double().mean().item(),
        )

    def beginning(self, count: int) -> Shuffled:
        """Reconstruction of the first `count` of them."""
        right = 1.0 - self.errors[:count].sum().item() / self.lengths[:count].sum().item()
        return Shuffled(self.nats[:count].mean().item(), right)


def decode(
    model: GrammarVAE, corpus: DerivationCorpus, split: str, indices: Tensor, codes: Tensor, derive: bool = False
) -> Decoded:
    """What codes (n, D) say of the derivations at `indices` (n,), and if asked which they are likeliest to `derive`.

    Derivations of like length go together: their padding is not decoded, which of molecules saves half. To derive
    anew takes all steps.
    """
    order = longest_first(corpus, split, indices)
    rows, derived = [], []
    with evaluating(model, 0) as device:
        size = batch_size(corpus.length, device)
        together = batches(corpus, split, indices[order], device, size)
        for part, batch in zip(torch.split(order, size), together, strict=True):
            latents = {LEVEL: codes[part.to(device)]}
            if derive:
                logits = model.decode(latents)
                derived.append(model.likeliest(logits).to(torch.int16))
                logits = model.masked(logits[..., : batch.x.shape[1]], batch)
            else:
                logits = model.logits_for(latents, batch)
            assert batch.valid is not None, "derivations have padding"
            wrong = (logits.argmax(dim=1) != batch.x) & batch.valid
            rows.append(torch.stack([exact(one) for one in (nats(logits, batch), wrong.sum(1), batch.valid.sum(1))]))
    back = order.argsort()
    reconstruction, errors, lengths = torch.cat(rows, dim=1).cpu()[:, back]
    made = torch.cat(derived).cpu()[back].numpy() if derive else None
    return Decoded(reconstruction, errors.long(), lengths.long(), made)


def _text(grammar: Grammar, ids: Sequence[int]) -> str:
    return grammar.write(ids) or ""


def _same_meaning(ids: Ids, made: Ids, grammar: Grammar, canonical: Callable[[str], str]) -> float:
    """Share of derivations `made` (n, T) that write the same as those of `ids` (n, T), or mean the same."""
    pairs = [
        (_text(grammar, one), _text(grammar, other)) for one, other in zip(ids.tolist(), made.tolist(), strict=True)
    ]
    return sum(one == other or canonical(one) == canonical(other) for one, other in pairs) / len(pairs)


def _expected_exact(
    model: GrammarVAE,
    corpus: DerivationCorpus,
    split: str,
    indices: Tensor,
    posterior: Level,
    encodings: int,
    seed: int,
) -> Tensor:
    """(n,) mean of p(x|z) over codes drawn from the posterior of each of the derivations at `indices` (n,)."""
    mean, logvar = (value[: len(indices)].repeat(encodings, 1) for value in (posterior.mean, posterior.logvar))
    with evaluating(model, mix(seed, "codes")):
        codes = gaussians.sample(mean, logvar)
    found = decode(model, corpus, split, indices.repeat(encodings), codes)
    return (-found.nats).exp().view(encodings, -1).mean(dim=0)


def _monte_carlo(
    model: GrammarVAE,
    pushdown: Pushdown,
    corpus: DerivationCorpus,
    split: str,
    indices: Tensor,
    protocol: Protocol,
    seed: int,
) -> MonteCarlo:
    """Draw codes, draw strings of each, and count those that are the example, without the budget and with it.

    On CUDA the derivations are one graph, replayed: hence all calls are of one size, and what is too much is cut off.
    """

    def right(logits: Tensor, noise: Tensor, x: Tensor) -> Tensor:
        """Logits (B, P, T), noise (M, B, T, K) and x (B, T) -> (2, M, B) bool, without the budget and with it."""
        made = [pushdown.derive(logits, noise, budget).ids for budget in (False, True)]
        return torch.stack([(ids == x).all(dim=-1) for ids in made])

    counts = []
    with evaluating(model, seed) as device:
        size = min(len(indices), batch_size(corpus.length))
        most = max(1, (CUDA_DECODINGS if device.type == "cuda" else DECODINGS) // (size * corpus.length))
        at_once = math.ceil(protocol.decodings / math.ceil(protocol.decodings / most))
        count = Graphed(right, device)
        for part in torch.split(indices, size):
            padded = torch.cat([part, part[:1].expand(size - len(part))])
            batch = corpus.batch(split, padded.to(device))
            level = model.encode(batch, noise=False)[0]
            for _ in range(protocol.encodings):
                logits = model.decode({LEVEL: gaussians.sample(level.mean, level.logvar)})
                for start in range(0, protocol.decodings, at_once):
                    noise = pushdown.noise(at_once * size).view(at_once, size, corpus.length, -1)
                    found = count(logits, noise, batch.x)[:, : protocol.decodings - start, : len(part)]
                    counts.append(found.sum(dim=(1, 2)))
    exact_count, budgeted = torch.stack(counts).sum(dim=0).tolist()
    total = len(indices) * protocol.encodings * protocol.decodings
    return MonteCarlo(len(indices), protocol.encodings, protocol.decodings, exact_count / total, budgeted / total)


# ------------------------------------------------------------------------------------------------ the baseline


class RuleFrequencies:
    """How frequent each rule is among those of its left-hand side at each step of training derivations (n, T).

    Every rule is counted once more than it occurs (Laplace), so that none is impossible.
    """

    def __init__(self, training: Tensor, rules: Rules) -> None:
        self._training = len(training)
        self._left = torch.tensor(rules.lhs)
        steps = training.cpu().long().unbind(1)
        counts = torch.stack([one.bincount(minlength=len(rules)) for one in steps]).double() + 1.0  # (T, P)
        self._logs = torch.zeros_like(counts)
        self._best = torch.zeros(len(steps), len(rules.symbols), dtype=torch.int64)
        for symbol in range(len(rules.symbols)):
            some = torch.tensor(rules.of(symbol))
            among = counts[:, some]
            self._logs[:, some] = (among / among.sum(dim=1, keepdim=True)).log()
            self._best[:, symbol] = some[among.argmax(dim=1)]

    def measure(self, corpus: DerivationCorpus, split: str, indices: Tensor) -> Frequencies:
        """The derivations of a split at `indices` by these frequencies."""
        x = corpus.ids(split)[indices.to(corpus.device)].long().cpu()
        valid = x != corpus.rules.padding
        step = torch.arange(x.shape[1])
        logs = torch.where(valid, self._logs[step, x], 0.0).sum(dim=1)
        wrong = (self._best[step, self._left[x]] != x) & valid
        rules = valid.sum().item()
        nll = -logs.mean().item()
        return Frequencies(
            training=self._training,
            nll_nats=nll,
            nll_bits=nll * len(x) / (rules * math.log(2.0)),
            token_accuracy=1.0 - wrong.sum().item() / rules,
            exact_share=(~wrong.any(dim=1)).double().mean().item(),
            expected_exact_share=logs.exp().mean().item(),
        )


# ------------------------------------------------------------------------------------------------ new strings


def _draw(
    model: GrammarVAE,
    pushdown: Pushdown,
    trained: DerivationCorpus,
    count: int,
    seed: int,
    grammar: Grammar | None,
    judge: Judge | None,
) -> dict[PriorName, Drawn]:
    """Draws from N(0, I) and, where there are two examples to fit it to, from the Gaussian of the training codes."""
    known = {_key(row) for row in trained.ids("train").cpu().numpy()}
    with evaluating(model, seed):
        latents: dict[PriorName, Mapping[str, Tensor]] = {"standard": draw_prior(model, count)}
    if trained.size("train") > 1:
        place = next(model.parameters()).device
        latents["aggregate"] = fit_prior("aggregate", model, trained, seed).sample(count, 1.0, seed, place)

    def derive(logits: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Of each code: whether a string drawn without the budget is complete, one drawn with it, and the likeliest."""
        made, likely = pushdown.derive(logits, noise).ids, pushdown.derive(logits).ids
        return pushdown.derive(logits, noise, budget=False).complete, made.to(torch.int16), likely.to(torch.int16)

    found: dict[PriorName, Drawn] = {}
    padding = model.structure.rules.padding
    for name, codes in latents.items():
        free, made, likely = through_rules(model, codes, derive, seed)
        ids, likeliest = made.numpy(), likely.numpy()
        found[name] = score_drawn(ids, free.numpy(), likeliest, padding, known, grammar, judge)
    return found


def score_drawn(
    ids: Ids,
    free_complete: NDArray[np.bool_],
    likeliest: Ids,
    padding: int,
    known: set[bytes],
    grammar: Grammar | None,
    judge: Judge | None,
) -> Drawn:
    """Scores of whole derivations (n, T) drawn with the budget, and of the `likeliest` ones of the same codes.

    `free_complete`: (n,) whether one drawn without the budget is complete, which then is the same. `known`: the keys of
    training derivations.
    """
    keys, likely = ([_key(row) for row in some] for some in (ids, likeliest))
    names: Sequence[Any] = keys
    texts: list[str] = []
    valid = likely_valid = None
    if grammar is not None:
        names = texts = [_text(grammar, row) for row in ids.tolist()]
    if grammar is not None and judge is not None:
        valid = np.array([judge(text) for text in texts])
        names = texts if judge.canonical is None else [judge.canonical(text) for text in texts]
        likely_valid = float(np.mean([judge(_text(grammar, row)) for row in likeliest.tolist()]))
    kept = range(len(ids)) if valid is None else np.flatnonzero(valid).tolist()
    distinct = list({names[place]: place for place in reversed(kept)}.values())[::-1]  # the first of each
    diversity = None
    if judge is not None and judge.diversity is not None and len(distinct) > 1:
        diversity = judge.diversity([texts[place] for place in distinct[:LIKENESS]])
    return Drawn(
        samples=len(ids),
        complete_share=float(free_complete.mean()),
        valid_share=None if valid is None else float(valid.mean()),
        complete_valid_share=None if valid is None else float((free_complete & valid).mean()),
        distinct_share=_distinct(names, kept),
        distinct_1k_share=None if len(ids) < 1000 else _distinct(names, kept, 1000),
        distinct_10k_share=None if len(ids) < 10_000 else _distinct(names, kept, 10_000),
        novel_share=sum(keys[place] not in known for place in distinct) / len(distinct) if distinct else None,
        diversity=diversity,
        likeliest_valid_share=likely_valid,
        likeliest_distinct_share=len(set(likely)) / len(likely),
        mean_rules=float((ids != padding).sum(axis=1).mean()),
    )


def _distinct(names: Sequence[Any], kept: Sequence[int], first: int | None = None) -> float:
    """Share of those kept, among the `first` samples or all, that are no repetition; 0 where none is kept."""
    some = [names[place] for place in kept if first is None or place < first]
    return len(set(some)) / len(some) if some else 0.0


def _key(ids: NDArray[np.integer[Any]]) -> bytes:
    """A derivation as 16 bytes: a quarter of a million of them, of 277 rules each, would be 140 MB."""
    return hashlib.blake2b(np.ascontiguousarray(ids, np.int16).tobytes(), digest_size=16).digest()


def string_paths(
    model: GrammarVAE,
    corpus: DerivationCorpus,
    split: str,
    indices: Tensor,
    grammar: Grammar | None,
    judge: Judge | None,
    steps: int = STEPS,
) -> Paths:
    """Walk straight from the code of each example in the first half of `indices` to one in the second half."""
    pairs = len(indices) // 2
    with evaluating(model, 0) as device:
        first, second = (
            {level.name: level.mean for level in model.encode(corpus.batch(split, half.to(device)), noise=False)}
            for half in (indices[:pairs], indices[pairs : 2 * pairs])
        )
        path = walk(first, second, steps)
        decoded = [
            model.likeliest(model.decode({name: codes[step] for name, codes in path.items()})).cpu()
            for step in range(steps)
        ]
    strings = torch.stack(decoded)  # (steps, pairs, T)
    changes = changed(strings).double()
    distinct = [len({row.tobytes() for row in one}) for one in strings.transpose(0, 1).numpy()]
    shares = None
    if grammar is not None and judge is not None:
        shares = np.array([[judge(_text(grammar, row)) for row in one] for one in strings.tolist()])
    return Paths(
        pairs=pairs,
        steps=steps,
        mean_step=changes.mean().item(),
        largest_step=changes.amax(dim=0).mean().item(),
        distance=(strings[0] != strings[-1]).sum(dim=1).double().mean().item(),
        distinct=sum(distinct) / pairs,
        valid_share=None if shares is None else float(shares.mean()),
        valid_paths=None if shares is None else float(shares.all(axis=0).mean()),
    )


def reconstruct(model: GrammarVAE, ids: Tensor) -> Ids:
    """The likeliest derivations (n, T) of the posterior means of derivations (n, T) on the model's device.

    Without right-hand sides, the likeliest rules that could stand in the place of the true ones.
    """
    size, made = batch_size(ids.shape[1]), []
    with evaluating(model, 0):
        for start in range(0, len(ids), size):
            part = ids[start : start + size].long()
            batch = Batch(part, part != model.structure.rules.padding)
            logits = model.decode({level.name: level.sample for level in model.encode(batch, noise=False)})
            masked = model.pushdown is None
            made.append((model.masked(logits, batch).argmax(dim=1) if masked else model.likeliest(logits)).cpu())
    return torch.cat(made).numpy().astype(np.int16)
