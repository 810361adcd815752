"""The domain of strings: derivations of a grammar, beside the frequencies of its rules.

Padding counts nowhere. A derivation is right at a step if the argmax of the rules that could stand there, those of the
true rule's left-hand side, is the true one; it is exact if it is right at every step, which is when the argmax rules,
taken one after the other, derive the same string.
"""
# ruff: noqa: ARG002 - not every domain needs every argument

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli import gaussians
from arcvae_cli.domains.base import (
    Domain,
    Draw,
    Encoded,
    Reconstructed,
    Report,
    Samples,
    Sheet,
    Task,
    Walk,
    table,
    write_text,
)
from arcvae_cli.domains.texts import Writer, beginning, pair_lines
from arcvae_cli.domains.validity import NO_RDKIT, Validator, is_smiles, validator_for
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.evaluation.baselines import UnigramBaseline
from arcvae_cli.evaluation.information import (
    InformationTally,
    batch_size,
    batches,
    choose,
    eval_mode,
    longest_first,
    nats,
    standard_error,
    to_float64,
)
from arcvae_cli.evaluation.paths import decoded_paths, edit_distance, smoothness
from arcvae_cli.evaluation.priors import EXAMPLES, draw_prior, fit_prior
from arcvae_cli.evaluation.verdict import HELD_MARGIN, Setup, Target
from arcvae_cli.graphs import Graphed
from arcvae_cli.models.base import Batch, Level
from arcvae_cli.models.grammar import LEVEL, Structure
from arcvae_cli.models.pushdown import Derived
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.step import mix

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import Corpus, DerivationCorpus
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.grammar import Grammar, Rules
    from arcvae_cli.records import Pictures

Ids = NDArray[np.int16]

FEW, WORK = 1000, 150_000
"""For what takes many passes: at most so many derivations, of so many steps in all."""

PAIRS, STEPS = 100, 9
QUICK_EXAMPLES, QUICK_SAMPLES = 2000, 200
MONTE_CARLO = "--monte-carlo", "--encodings", "--decodings", "--monte-carlo-examples"
ENCODINGS = 10  # per example, as in the protocol of 2017
DIVERSITY = 1000  # strings whose likeness is measured, pair by pair
DECODINGS, CUDA_DECODINGS = 2**20, 2**24  # noise is drawn for so many rules at once
GRAPHED_FROM = 5
"""Passes of one size above which they are captured as a graph: capturing costs as much as so many."""

LISTED = 16  # pairs in a text file
SHOWN = 256  # strings on a terminal
STRING = "string:"
"""Prefix of a string that looks like an index."""

EXACT_TARGET = 0.50
"""Share of exact derivations at the posterior mean. Kusner et al. 2017 report 0.54 on molecules, of drawn strings."""

COLLAPSED_NATS = 1.0
"""Total KL under which the code is collapsed, and the least reconstruction cost that it should save."""

CARRIED_TARGET = 0.90
"""Share of the KL that should lie in active dimensions: a large code may leave most of its dimensions idle."""

COMPLETE_TARGET = 0.80
"""Share of draws from N(0, I) that should end by themselves within T rules."""

SURE = 4.0
"""Standard errors by which a mean -log p(x) may lie under the entropy by chance."""


class StringDomain(Domain):
    """Derivations of strings."""

    kind, noun, noun_singular, unit, array, dtype = "strings", "derivations", "derivation", "rule", "ids", np.int16
    formats = ("txt", "npz", "json")
    flags = frozenset({"--decode", "--budget/--no-budget", *MONTE_CARLO, "--samples"})
    quick_shuffle = True

    # -------------------------------------------------------------------------------------------- training

    def validation_batch(self, corpus: Corpus) -> int:
        return batch_size(corpus.positions[0])

    def baseline(self, corpus: Any) -> dict[str, float | None]:
        scores = UnigramBaseline(corpus.ids("train"), corpus.rules).scores(corpus.ids("val"))
        return {"blank": scores["token_accuracy"], "blank_nats": scores["nll_nats"], "entropy": corpus.entropy}

    def write_pictures(self, folder: Path, epoch: int, pictures: Pictures, rules: Rules | None) -> None:
        assert rules is not None, "derivations have rules"
        writer = Writer(rules)
        pairs = pair_lines(writer.pairs(pictures.originals, pictures.reconstructions))
        write_lines(folder / f"reconstructions_epoch_{epoch}.txt", pairs)
        if samples := writer.samples(pictures.samples):
            write_lines(folder / f"samples_epoch_{epoch}.txt", samples)

    # -------------------------------------------------------------------------------------------- evaluation

    def check(self, task: Task) -> None:
        if task.monte_carlo is not None and task.model.pushdown is None:
            raise InputError(
                "--monte-carlo: a model without a grammar derives nothing",
                "leave it out: the expected share of exact reconstructions is what it estimates",
            )

    def limits(self, task: Task) -> tuple[int | None, int | None]:
        workable = max(1, WORK // task.corpus.length)
        return min(QUICK_EXAMPLES, workable) if task.quick else None, min(FEW, workable)

    def pass_size(self, corpus: Corpus) -> int:
        return batch_size(corpus.positions[0], corpus.device)

    def encode(self, task: Task) -> Encoded:
        posterior = encode(task.model, task.corpus, task.split, task.indices, task.seed)
        decoded = decode(task.model, task.corpus, task.split, task.indices, posterior.sample)
        information = InformationTally()
        information.add((posterior,), decoded.nats, decoded.lengths)
        return Encoded(information, {LEVEL: posterior.mean}, decoded.scores(), posterior)

    def reconstruct(self, task: Task, encoded: Encoded, levels: Report, few: Tensor) -> Reconstructed:
        model, corpus, split, posterior = task.model, task.corpus, task.split, encoded.posterior
        assert posterior is not None, "kept by `encode`"
        grammar, validator = _grammar(task)
        canonical = None if validator is None or task.quick else validator.canonical
        at_mean = decode(model, corpus, split, task.indices, posterior.mean, derive=canonical is not None)
        x, same = corpus.ids(split)[task.indices.to(corpus.device)], None
        if grammar is not None and canonical is not None and at_mean.derived is not None:
            same = _same_meaning(x.tolist(), at_mean.derived.tolist(), grammar, canonical)
        encodings = 1 if task.quick else ENCODINGS
        if not task.quick:
            task.tell(f"exact share: {encodings} codes of each of {len(few):,} derivations")
        expected = _expected_exact(task, few, posterior, encodings)
        report = {
            "examples": len(task.indices),
            "posterior_mean": at_mean.scores(),
            "posterior_sample": encoded.at_sample,
            "frequencies": UnigramBaseline(task.trained.ids("train"), task.trained.rules).scores(x),
            "encodings": encodings,
            "expected_examples": len(few),
            "expected_exact_share": expected.mean().item(),
            "expected_error": standard_error(expected),
            "canonical_share": same,
            "monte_carlo": None if task.monte_carlo is None else monte_carlo(task, *task.monte_carlo),
        }
        return Reconstructed(report, at_mean.errors.numpy(), at_mean.own(len(few)))

    def likelihood(self, task: Task, encoded: Encoded) -> dict[str, Any]:
        return {
            "steps": task.corpus.length,
            "elbo_error": encoded.information.error(),
            "trained_kl_nats": encoded.information.trained_kl(),
            "posterior_noise": task.settings.model.model_dump().get("posterior_noise", 1.0),
            # the entropy bounds the likelihood of unseen strings, not of those that were trained on
            "entropy_nats": task.corpus.entropy if task.split != "train" else None,
        }

    def paths(self, task: Task) -> dict[str, Any] | None:
        if task.model.pushdown is None:
            return None
        decoded = decoded_paths(task.model, task.corpus, task.split, task.indices[: 2 * PAIRS], STEPS)
        return path_scores(decoded, *_grammar(task))

    def samples(self, task: Task) -> dict[str, Any]:
        """Strings of N(0, I) and, with two examples to fit it to, of the Gaussian of the training codes."""
        grammar, validator = _grammar(task)
        found = {"judged": None if validator is None else validator.name, "prior_samples": None}
        model, trained, seed = task.model, task.trained, task.seed
        if model.pushdown is None:
            return found
        task.tell("samples from N(0, I) and from the fitted prior")
        count = QUICK_SAMPLES if task.quick else task.samples
        with eval_mode(model, seed) as device:
            latents = {"standard": draw_prior(model, count)}
        if trained.size("train") > 1:
            codes = self.posterior_samples(model, trained, "train", seed, {}, EXAMPLES)
            latents["aggregate"] = fit_prior("aggregate", codes, seed).sample(count, 1.0, seed, device)
        known, padding = {_key(row) for row in trained.ids("train").cpu().numpy()}, trained.rules.padding

        def derived(logits: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
            """Of each code: whether a string drawn without the budget is complete, one drawn with it, the argmax."""
            pushdown = model.pushdown
            made, best = pushdown.derive(logits, noise).ids, pushdown.derive(logits).ids
            return pushdown.derive(logits, noise, budget=False).complete, made.to(torch.int16), best.to(torch.int16)

        drawn = {}
        for name, codes in latents.items():
            free, made, best = (part.numpy() for part in through_rules(model, codes, derived, seed))
            drawn[name] = score_strings(made, free, best, padding, known, grammar, validator)
        return {**found, "prior_samples": drawn}

    def targets(self, report: Report, setup: Setup) -> Iterator[Target]:
        found, elbo, shuffled = report["reconstruction"], report["elbo"], report["shuffled_codes"]
        (level, kl), *_ = ((name, values["kl_nats"]) for name, values in report["levels"].items())
        total, noise = sum(kl), report["posterior_noise"]
        carried = sum(value for value in kl if value > ACTIVE_KL) / total if total > 0 else 0.0
        alive = setup.more_kl(level)
        larger = f"{setup.lower_beta(level)}, train longer, or raise model.decoder_hidden"
        better = alive if _collapsed(report) else larger
        exact, baseline = found["posterior_mean"]["exact_share"], found["frequencies"]["nll_nats"]
        yield Target("exact derivations", exact, ">=", EXACT_TARGET, f"{EXACT_TARGET:.2f}", better)
        text = f"{baseline:.2f} nats (frequencies)"
        yield Target("reconstruction, baseline", elbo["reconstruction_nats"], "<", baseline, text, better)
        one_nat = f"{COLLAPSED_NATS:g} nat"
        if noise == 1.0:  # a narrow posterior has a large KL without any information
            yield Target("total KL", total, ">", COLLAPSED_NATS, one_nat, alive)
            yield Target("share in active dimensions", carried, ">=", CARRIED_TARGET, f"{CARRIED_TARGET:.2f}", alive)
        if shuffled is not None:
            yield Target("what the right code saves", _saved(shuffled), ">", COLLAPSED_NATS, one_nat, alive)
        if noise < 1.0:
            remedy = "use model.posterior_noise = 1: below it the trained KL is not that of the codes that are sampled"
            yield Target("posterior noise", noise, ">=", 1.0, "1", remedy)
        if setup.free_bits.get(level, 0.0) > 0:
            yield setup.floor_target(level, kl, ("smallest KL, free-bits floor", "total KL, free-bits floor"))
            most = _enforced(setup, level, kl)
            yield Target("total KL beyond the floor", total, ">", most, f"{most:.4g} nats", alive)
        if (entropy := report["entropy_nats"]) is not None:
            weighted = report["importance_weighted"]
            nll, error = -elbo["elbo_nats"], report["elbo_error"]
            if weighted is not None:
                nll, error = weighted["nll_nats"], error * math.sqrt(elbo["examples"] / weighted["examples"])
            remedy = "no model can beat the entropy: look for a bug, or for test strings among the training strings"
            yield Target("-log p(x), entropy", nll, ">=", entropy - SURE * error, f"{entropy:.2f} nats", remedy)
        if (drawn := report["prior_samples"]) is not None:
            complete, fitted = (drawn.get(name, {}).get("complete_share") for name in ("standard", "aggregate"))
            remedy = "train longer; the default length budget of `sample` makes every string complete"
            if fitted is not None and fitted >= COMPLETE_TARGET:
                remedy = f"sample with --prior aggregate ({fitted:.0%} of its draws end); {setup.raise_beta()}"
            limit = COMPLETE_TARGET
            yield Target("complete without budget", complete, ">=", limit, f"{limit:.2f}", remedy)

    def summary(self, report: Report, setup: Setup) -> str:
        (level, kl), *_ = ((name, values["kl_nats"]) for name, values in report["levels"].items())
        total, active = sum(kl), sum(value > ACTIVE_KL for value in kl)
        found, noise = report["reconstruction"], report["posterior_noise"]
        cost, baseline = report["elbo"]["reconstruction_nats"], found["frequencies"]["nll_nats"]
        against = f"reconstruction takes {cost:.1f} nats, rule frequencies {baseline:.1f}"
        exact = f"{found['posterior_mean']['exact_share']:.0%} of the derivations are exact"
        if total <= COLLAPSED_NATS:
            return f"posterior collapse: the code carries {total:.2f} nats in all; {against}"
        if _collapsed(report):
            return f"the code carries {total:.1f} nats, and the decoder does not use them; {against}"
        if 0 < total <= _enforced(setup, level, kl):
            return f"collapse, held up by free bits alone: {total:.2f} nats are no more than they enforce; {against}"
        if noise < 1.0:
            scaled = f"its noise is scaled by {noise:g}, and the density that is sampled"
            return f"an autoencoder: {scaled} lies {total:.0f} nats from the prior; {exact}"
        return f"the code is alive: {active} of {len(kl)} dimensions carry {total:.1f} nats; {exact}; {{targets}}"

    # -------------------------------------------------------------------------------------------- report

    def reconstruction_sheets(self, report: Report) -> Iterator[Sheet | str]:
        found = report["reconstruction"]
        mean, drawn, plain, counted = (
            found[name] for name in ("posterior_mean", "posterior_sample", "frequencies", "monte_carlo")
        )
        names = (("rules", "token_accuracy", ".2%"), ("exact derivations", "exact_share", ".2%"))
        rows = table(names, (mean, plain))
        rows += [(f"{name}, code drawn", share, "") for name, share in table(names, (drawn,))]
        share = f"{found['expected_exact_share']:.2%} +- {100 * found['expected_error']:.2f}"
        rows.append(("  and rules too: mean p(x|z)", share, f"{plain['expected_exact_share']:.2%}"))
        if counted is not None:
            rows.append(("  the same, counted", f"{counted['exact_share']:.2%}", ""))
            rows.append(("  counted, with the length budget", f"{counted['budget_exact_share']:.2%}", ""))
        if found["canonical_share"] is not None:
            rows.append(("the same molecule", f"{found['canonical_share']:.2%}", ""))
        yield Sheet("Reconstruction", ("", "model", "rule frequencies"), rows)
        codes = "1 code" if found["encodings"] == 1 else f"{found['encodings']} codes"
        yield f"p(x|z): {codes} of each of {found['expected_examples']:,} derivations; what drawing strings estimates."
        if counted is not None:
            yield (
                f"Counted: {counted['decodings']} strings of each of {counted['encodings']} codes of each of "
                f"{counted['examples']:,} derivations."
            )

    def likelihood_rows(self, report: Report) -> Iterator[tuple[str, float, float]]:
        plain, elbo, entropy = report["reconstruction"]["frequencies"], report["elbo"], report["entropy_nats"]
        yield "rule frequencies, without any code", plain["nll_nats"], plain["nll_bits"]
        if entropy is not None:
            yield "entropy of the corpus, least on unseen", entropy, entropy / (elbo["positions"] * math.log(2.0))

    def path_lines(self, report: Report) -> Iterator[str]:
        path = report["interpolation"]
        yield (
            f"{path['pairs']} paths of {path['steps']} codes: {path['distinct']:.1f} different strings; "
            f"{path['mean_step']:.1f} rules change per step,\n{path['largest_step']:.1f} in the largest; "
            f"ends {path['distance']:.1f} apart"
        )
        if path["valid_share"] is not None:
            every = f"all of them on {path['valid_paths']:.0%} of the paths"
            yield f"{path['valid_share']:.1%} of their strings are {report['judged']}, {every}"

    def sample_sheets(self, report: Report, loaded: Loaded) -> Iterator[Sheet | str]:
        drawn, valid = report["prior_samples"], report["judged"]
        if drawn is None:
            return
        columns = {"standard": "N(0, I)", "aggregate": "fitted"}
        rows = [("complete without the length budget", "complete_share", ".2%")]
        if valid is not None:
            rows.append((valid, "valid_share", ".2%"))
            rows.append((f"{valid}, without the budget", "complete_valid_share", ".2%"))
        rows.append(("distinct" if valid is None else f"distinct, of the {valid}", "distinct_share", ".2%"))
        rows += [
            (f"  among the first {count}", key, ".2%")
            for count, key in (("1,000", "distinct_1k_share"), ("10,000", "distinct_10k_share"))
            if any(kind[key] is not None and kind["samples"] > 1000 for kind in drawn.values())
        ]
        rows.append(("of these no training string", "novel_share", ".2%"))
        if valid is not None:
            rows.append((f"{valid}, the argmax string of each code", "likeliest_valid_share", ".2%"))
        rows.append(("distinct, the argmax string of each code", "likeliest_distinct_share", ".2%"))
        if any(kind["diversity"] is not None for kind in drawn.values()):
            rows.append(("internal diversity", "diversity", ".2f"))
        rows += [("rules of a string", "mean_rules", ".1f"), ("strings", "samples", ",")]
        yield Sheet("New strings", ("", *(columns[name] for name in drawn)), table(rows, list(drawn.values())))
        yield (
            "fitted: the Gaussian of the training codes (--prior aggregate). Rules are drawn,\n"
            "and unless it says otherwise with the length budget: every string is complete."
        )
        if valid is None:
            smiles = loaded.grammar is not None and is_smiles(loaded.grammar)
            yield NO_RDKIT if smiles else "No validity check is available for this grammar."

    def code_values(self, task: Task, evaluation: Evaluation, count: int) -> tuple[NDArray[Any], str]:
        chosen = torch.from_numpy(evaluation.indices[:count]).to(task.corpus.device)
        lengths = (task.corpus.ids(task.split)[chosen] != task.corpus.rules.padding).sum(dim=1)
        return lengths.cpu().numpy(), "rules of the derivation"

    def draw(self, folder: Path, loaded: Loaded, task: Task, evaluation: Evaluation) -> None:
        if task.quick:
            return
        writer = Writer(task.model.structure.rules)
        worst = evaluation.indices[np.argsort(-evaluation.errors, kind="stable")]
        for name, order in (("reconstructions.txt", evaluation.indices), ("errors.txt", worst)):
            chosen = torch.from_numpy(order[:LISTED]).to(task.corpus.device)
            ids = task.corpus.ids(task.split)[chosen]
            write_lines(folder / name, pair_lines(writer.pairs(ids.cpu().numpy(), reconstruct(task.model, ids))))

    # -------------------------------------------------------------------------------------------- samples, paths

    def structure(self, model: Any) -> Structure | None:
        structure: Structure = model.structure
        return structure

    def check_decodable(self, loaded: Loaded) -> None:
        if loaded.grammar is None:
            raise InputError(
                f"{loaded.path}: the model was trained on ids and masks without a grammar, which strings need",
                "train with --grammar FILE beside --prod and --masks; `evaluate` works without",
            )

    def posterior_samples(
        self, model: Any, corpus: Any, split: str, seed: int, given: Mapping[str, int], limit: int
    ) -> dict[str, Tensor]:
        assert not given, "conditions are attributes of grids"
        chosen = choose(corpus, split, limit, seed)
        if not len(chosen):
            return {LEVEL: torch.empty(0, *model.level_shapes[LEVEL])}
        return {LEVEL: encode(model, corpus, split, chosen, seed).sample}

    def sample(self, draw: Draw) -> Samples:
        return StringSamples(draw)

    def read_end(
        self, text: str, flag: str, loaded: Loaded, split: str, note: Callable[[str], None]
    ) -> tuple[str, Any]:
        """A string of the model's grammar."""
        from arcvae_cli.data.parsing import ParseFailure, Parser

        model: Any = loaded.model
        grammar, length = loaded.grammar, model.structure.length
        assert grammar is not None, "checked by `check_decodable`"
        text = text.removeprefix(STRING)
        try:
            ids = Parser(grammar).parse(text)
        except ParseFailure as failure:
            raise InputError(
                f"{flag} {text!r}: not a string of the grammar: at character {failure.position + 1}: {failure.reason}",
                "give a string that the grammar derives, or the index of one in the split",
            ) from None
        if len(ids) > length:
            raise InputError(
                f"{flag} {text!r}: takes {len(ids)} rules, the model has {length}", "give a shorter string"
            )
        return repr(text), np.array(ids + [grammar.rules.padding] * (length - len(ids)), np.int16)

    def batch(self, model: Any, x: Tensor) -> Batch:
        return Batch(x, valid=x != model.structure.rules.padding)

    def walk(self, loaded: Loaded, steps: Ids, originals: Ids, note: Callable[[str], None]) -> Walk:
        return StringWalk(loaded, steps, originals, note)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Text, one item per line."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def text_of(grammar: Grammar, ids: Sequence[int]) -> str:
    """The string of a derivation, empty if it is incomplete."""
    return grammar.write(ids) or ""


def _grammar(task: Task) -> tuple[Grammar | None, Validator | None]:
    """The grammar to write strings with, and the validator of its strings."""
    grammar = task.corpus.grammar or task.grammar
    return grammar, None if grammar is None else validator_for(grammar)


def noted_validator(grammar: Grammar, note: Callable[[str], None]) -> Validator | None:
    """The validator of a grammar's strings, with a note if it lacks RDKit."""
    validator = validator_for(grammar)
    if validator is None and is_smiles(grammar):
        note(NO_RDKIT)
    return validator


# ------------------------------------------------------------------------------------------------ reconstruction


class Decoded(NamedTuple):
    """Derivations against codes: (n,) float64 -log p(x|z) in nats, (n,) wrong rules and all rules, on the CPU.

    `derived`: (n, T) int16 argmax derivations of the codes, if they were asked for.
    """

    nats: Tensor
    errors: Tensor
    lengths: Tensor
    derived: Ids | None

    def scores(self) -> dict[str, float]:
        """Shares of rules, and of derivations in which every rule is right."""
        return {
            "token_accuracy": 1.0 - self.errors.sum().item() / self.lengths.sum().item(),
            "exact_share": (self.errors == 0).double().mean().item(),
        }

    def own(self, count: int) -> tuple[float, float]:
        """Nats and accuracy of the first `count`."""
        right = 1.0 - self.errors[:count].sum().item() / self.lengths[:count].sum().item()
        return self.nats[:count].mean().item(), right


def encode(model: Any, corpus: DerivationCorpus, split: str, indices: Tensor, seed: int) -> Level:
    """The posteriors of the derivations at `indices` (n,), and one sample of each; no noise depends on the batches."""
    order = longest_first(corpus, split, indices)
    found: list[Level] = []
    with eval_mode(model, seed) as device:
        for batch in batches(corpus, split, indices[order], device, batch_size(corpus.length, device)):
            found += model.encode(batch, noise=False)
        back = order.argsort().to(device)
        mean, logvar, kl = (
            torch.cat([getattr(level, name) for level in found])[back] for name in ("mean", "logvar", "kl")
        )
        narrow = [level.sampled_kl for level in found if level.sampled_kl is not None]
        sampled_kl = torch.cat(narrow)[back] if narrow else None
        return Level(LEVEL, mean, logvar, gaussians.sample(mean, logvar), kl, sampled_kl=sampled_kl)


def decode(
    model: Any, corpus: DerivationCorpus, split: str, indices: Tensor, codes: Tensor, derive: bool = False
) -> Decoded:
    """Score the derivations at `indices` (n,) given codes (n, D), and if asked `derive` the argmax of each code.

    Derivations of similar length are decoded together, without their padding, which halves the time of molecules. To
    derive takes all steps.
    """
    order = longest_first(corpus, split, indices)
    rows, derived = [], []
    with eval_mode(model, 0) as device:
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
            counts = nats(logits, batch), wrong.sum(1), batch.valid.sum(1)
            rows.append(torch.stack([to_float64(one) for one in counts]))
    back = order.argsort()
    reconstruction, errors, lengths = torch.cat(rows, dim=1).cpu()[:, back]
    made = torch.cat(derived).cpu()[back].numpy() if derive else None
    return Decoded(reconstruction, errors.long(), lengths.long(), made)


def reconstruct(model: Any, ids: Tensor) -> Ids:
    """The argmax derivations (n, T) of the posterior means of derivations (n, T) on the model's device.

    Without right-hand sides, the argmax of the rules that could stand in the place of the true ones.
    """
    parts, padding = torch.split(ids.long(), batch_size(ids.shape[1])), model.structure.rules.padding
    with eval_mode(model, 0):
        made = [model.reconstruct(Batch(part, part != padding)).cpu() for part in parts]
    return torch.cat(made).numpy().astype(np.int16)


def _same_meaning(
    ids: Sequence[Sequence[int]], made: Sequence[Sequence[int]], grammar: Grammar, canonical: Callable[[str], str]
) -> float:
    """Share of derivations `made` (n, T) whose strings equal those of `ids` (n, T), or mean the same."""
    pairs = [(text_of(grammar, one), text_of(grammar, other)) for one, other in zip(ids, made, strict=True)]
    return sum(one == other or canonical(one) == canonical(other) for one, other in pairs) / len(pairs)


def _expected_exact(task: Task, indices: Tensor, posterior: Level, encodings: int) -> Tensor:
    """(n,) mean of p(x|z) over codes drawn from the posterior of each of the derivations at `indices` (n,)."""
    mean, logvar = (value[: len(indices)].repeat(encodings, 1) for value in (posterior.mean, posterior.logvar))
    with eval_mode(task.model, mix(task.seed, "codes")):
        codes = gaussians.sample(mean, logvar)
    found = decode(task.model, task.corpus, task.split, indices.repeat(encodings), codes)
    return (-found.nats).exp().view(encodings, -1).mean(dim=0)


def monte_carlo(task: Task, examples: int, encodings: int, decodings: int) -> dict[str, Any]:
    """Exact reconstruction by the protocol of Kusner et al. 2017: draw codes of an example, draw strings of each code.

    `exact_share` of all that was drawn without the length budget, `budget_exact_share` with it. On CUDA the derivations
    are one graph, replayed: hence all calls are of one size, and the excess is cut off.
    """
    model: Any = task.model
    corpus: DerivationCorpus = task.corpus
    indices, length, pushdown = task.indices[:examples], corpus.length, model.pushdown
    task.tell(f"Monte Carlo: {encodings * decodings:,} strings of each of {len(indices):,} derivations")

    def exact(logits: Tensor, noise: Tensor, x: Tensor) -> Tensor:
        """Logits (B, P, T), noise (M, B, T, K) and x (B, T) -> (2, M, B) bool, without the budget and with it."""
        made = [pushdown.derive(logits, noise, budget).ids for budget in (False, True)]
        return torch.stack([(ids == x).all(dim=-1) for ids in made])

    counts = []
    with eval_mode(model, task.seed) as device:
        size = min(len(indices), batch_size(length))
        most = max(1, (CUDA_DECODINGS if device.type == "cuda" else DECODINGS) // (size * length))
        at_once = math.ceil(decodings / math.ceil(decodings / most))
        count = Graphed(exact, device)
        for part in torch.split(indices, size):
            padded = torch.cat([part, part[:1].expand(size - len(part))])
            batch = corpus.batch(task.split, padded.to(device))
            level = model.encode(batch, noise=False)[0]
            for _ in range(encodings):
                logits = model.decode({LEVEL: gaussians.sample(level.mean, level.logvar)})
                for start in range(0, decodings, at_once):
                    noise = pushdown.noise(at_once * size).view(at_once, size, length, -1)
                    found = count(logits, noise, batch.x)[:, : decodings - start, : len(part)]
                    counts.append(found.sum(dim=(1, 2)))
    free, budgeted = torch.stack(counts).sum(dim=0).tolist()
    total = len(indices) * encodings * decodings
    sizes = {"examples": len(indices), "encodings": encodings, "decodings": decodings}
    return {**sizes, "exact_share": free / total, "budget_exact_share": budgeted / total}


# ------------------------------------------------------------------------------------------------ targets


def _saved(shuffled: Report) -> float:
    saved: float = shuffled["shuffled_reconstruction_nats"] - shuffled["reconstruction_nats"]
    return saved


def _enforced(setup: Setup, level: str, kl: Sequence[float]) -> float:
    """The total KL that free bits alone account for."""
    dims = 1 if setup.free_bits_mode == "total" else len(kl)
    return (1.0 + HELD_MARGIN) * setup.free_bits.get(level, 0.0) * dims


def _collapsed(report: Report) -> bool:
    """Whether the code carries no information, or none that the decoder uses."""
    shuffled = report["shuffled_codes"]
    idle = shuffled is not None and _saved(shuffled) <= COLLAPSED_NATS
    return idle or sum(sum(level["kl_nats"]) for level in report["levels"].values()) <= COLLAPSED_NATS


# ------------------------------------------------------------------------------------------------ new strings


def derive(model: Any, latents: Mapping[str, Tensor], drawn: bool, budget: bool = True, seed: int = 0) -> Derived:
    """Derivations (n, T) of latents on the model's device, on the CPU: `drawn` from p(x|z), or the argmax.

    With `budget` all are complete, see `Pushdown.derive`.
    """

    def made(logits: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        found = model.pushdown.derive(logits, noise, budget)
        return found.ids.to(torch.int16), found.complete

    ids, complete = through_rules(model, latents, made, seed, drawn)
    return Derived(ids.long(), complete)


def through_rules(
    model: Any,
    latents: Mapping[str, Tensor],
    made: Callable[..., tuple[Tensor, ...]],
    seed: int,
    drawn: bool = True,
) -> tuple[Tensor, ...]:
    """`made` of the logits (B, P, T) of all latents and, if `drawn`, of noise for their rules (B, T, K), on the CPU.

    `made` takes and gives tensors of as many rows. On CUDA it is captured where there is much to do, and may not
    synchronise with the device. The noise is drawn for as many codes as the CPU decodes at once, whatever the device.
    """
    codes, length = latents[LEVEL], model.structure.length
    block = batch_size(length)
    results: list[tuple[Tensor, ...]] = []
    with eval_mode(model, mix(seed, "rules")) as device:  # not the stream of the seed, which has drawn the latents
        size = max(1, batch_size(length, device) // block) * block
        graphed = Graphed(made, device) if len(codes) > GRAPHED_FROM * size else None
        for part in torch.split(codes, size):
            inputs = [model.decode({LEVEL: part})]
            if drawn:
                counts = [min(block, len(part) - start) for start in range(0, len(part), block)]
                inputs.append(torch.cat([model.pushdown.noise(count) for count in counts]))
            if graphed is None:
                results.append(made(*inputs))
            else:  # one size for all, so that one graph serves
                filled = [torch.cat([some, some[:1].expand(size - len(part), -1, -1)]) for some in inputs]
                results.append(tuple(some[: len(part)] for some in graphed(*filled)))
        return tuple(torch.cat(some).cpu() for some in zip(*results, strict=True))


def score_strings(
    ids: Ids,
    free_complete: NDArray[np.bool_],
    likeliest: Ids,
    padding: int,
    known: Set[bytes],
    grammar: Grammar | None,
    validator: Validator | None,
) -> dict[str, Any]:
    """Scores of complete derivations (n, T) drawn with the budget, and of the `likeliest` ones of the same codes.

    `free_complete`: (n,) whether one drawn without the budget is complete, which then is the same. `known`: the keys of
    training derivations. Shares are of `samples`, and None without a validator: `valid_share`; then `distinct_share` of
    the valid ones (else of all), and the same among the first 1,000 and 10,000 samples, if there are so many;
    `novel_share` of the distinct ones; `diversity` = 1 - mean likeness of the distinct ones.
    """
    keys, likely = ([_key(row) for row in some] for some in (ids, likeliest))
    names: Sequence[Any] = keys
    texts: list[str] = []
    valid = likely_valid = diversity = None
    if grammar is not None:
        names = texts = [text_of(grammar, row) for row in ids.tolist()]
    if grammar is not None and validator is not None:
        valid = np.array([validator.is_valid(text) for text in texts])
        names = texts if validator.canonical is None else [validator.canonical(text) for text in texts]
        likely_valid = float(np.mean([validator.is_valid(text_of(grammar, row)) for row in likeliest.tolist()]))
    kept = range(len(ids)) if valid is None else np.flatnonzero(valid).tolist()
    distinct = list({names[place]: place for place in reversed(kept)}.values())[::-1]  # the first of each
    if validator is not None and validator.diversity is not None and len(distinct) > 1:
        diversity = validator.diversity([texts[place] for place in distinct[:DIVERSITY]])
    return {
        "samples": len(ids),
        "complete_share": float(free_complete.mean()),
        "valid_share": None if valid is None else float(valid.mean()),
        "complete_valid_share": None if valid is None else float((free_complete & valid).mean()),
        "distinct_share": _distinct(names, kept),
        "distinct_1k_share": None if len(ids) < 1000 else _distinct(names, kept, 1000),
        "distinct_10k_share": None if len(ids) < 10_000 else _distinct(names, kept, 10_000),
        "novel_share": sum(keys[place] not in known for place in distinct) / len(distinct) if distinct else None,
        "diversity": diversity,
        "likeliest_valid_share": likely_valid,
        "likeliest_distinct_share": len(set(likely)) / len(likely),
        "mean_rules": float((ids != padding).sum(axis=1).mean()),
    }


def _distinct(names: Sequence[Any], kept: Sequence[int], first: int | None = None) -> float:
    """Share of those kept, among the `first` samples or all, that are no repetition; 0 if none is kept."""
    some = [names[place] for place in kept if first is None or place < first]
    return len(set(some)) / len(some) if some else 0.0


def _key(ids: NDArray[np.integer[Any]]) -> bytes:
    """A derivation as 16 bytes: a quarter of a million of them, of 277 rules each, would be 140 MB."""
    return hashlib.blake2b(np.ascontiguousarray(ids, np.int16).tobytes(), digest_size=16).digest()


def path_scores(decoded: Tensor, grammar: Grammar | None, validator: Validator | None) -> dict[str, Any]:
    """Of decoded paths (steps, pairs, T): smoothness in rules, and the strings on a path, its ends included.

    `valid_share` of all strings on all paths, `valid_paths` of paths without an invalid one; None without a validator.
    """
    found = smoothness(decoded)
    distinct = [len({row.tobytes() for row in one}) for one in decoded.transpose(0, 1).numpy()]
    shares = None
    if grammar is not None and validator is not None:
        shares = np.array([[validator.is_valid(text_of(grammar, row)) for row in one] for one in decoded.tolist()])
    return {
        **{name: found[name] for name in ("pairs", "steps", "mean_step", "largest_step", "distance")},
        "distinct": sum(distinct) / len(distinct),
        "valid_share": None if shares is None else float(shares.mean()),
        "valid_paths": None if shares is None else float(shares.all(axis=0).mean()),
    }


class StringSamples(Samples):
    """Strings of latents: on a terminal a list with remarks, in a pipe and in `samples.txt` the complete ones alone."""

    plain = True

    def __init__(self, draw: Draw) -> None:
        grammar = draw.loaded.grammar
        assert grammar is not None, "checked by `check_decodable`"
        derived = derive(draw.loaded.model, draw.latents, not draw.argmax, draw.budget, draw.seed)
        ids, complete = derived.ids.numpy().astype(np.int16), derived.complete.numpy()
        self.draw, self.grammar = draw, grammar
        self.arrays: dict[str, Any] = {"ids": ids, "complete": complete}
        self.texts = [grammar.write(row) for row in ids.tolist()]
        self.written = [text for text in self.texts if text is not None]
        validator = noted_validator(grammar, draw.note)
        self.valid = None if validator is None else {text for text in set(self.written) if validator.is_valid(text)}
        training = draw.training()
        self.known = None if training is None else frozenset(training.strings("train"))

        good = [text for text in self.written if self.valid is None or text in self.valid]
        meaning = str if validator is None or validator.canonical is None else validator.canonical
        different = {meaning(text): text for text in reversed(good)}.values()  # the first of each meaning
        known = self.known
        counts = {
            "complete": len(self.written),
            "valid": None if validator is None else len(good),
            "distinct": len(different),
            "novel": None if known is None else sum(text not in known for text in different),
        }
        of = {"complete": len(ids), "valid": len(ids), "distinct": len(good), "novel": len(different)}
        self.facts: dict[str, Any] = {
            "decode": "argmax" if draw.argmax else "sample",
            "budget": draw.budget,
            "judge": None if validator is None else validator.name,
            **counts,
            **{f"{key}_share": None if n is None or not of[key] else n / of[key] for key, n in counts.items()},
            "strings": self.texts,
        }

    def write(self, files: Mapping[str, Path], document: Mapping[str, Any]) -> None:
        write_lines(files["txt"], self.written)
        write_text(files["json"], json.dumps(document, allow_nan=False) + "\n")

    def show(self, console: Console) -> None:
        from arcvae_cli.render import TerminalStrings

        if console.piped:
            console.lines(self.written)
            return
        rows = []
        for place, (text, ids) in enumerate(zip(self.texts[:SHOWN], self.arrays["ids"].tolist(), strict=False)):
            shown = beginning(self.grammar, ids) if text is None else text
            rows.append((str(place + 1), one_line(shown), self.remarks(text, self.texts[:place])))
        console.result(TerminalStrings(rows))

    def remarks(self, text: str | None, before: Sequence[str | None]) -> str:
        """Remarks on a sample after those `before`."""
        if text is None:
            return "incomplete"
        found = {
            "invalid": self.valid is not None and text not in self.valid,
            "in the training data": self.known is not None and text in self.known,
            "again": text in before,
        }
        return ", ".join(name for name, holds in found.items() if holds)

    def summary(self) -> list[str]:
        facts, draw = self.facts, self.draw
        about = [f"{len(self.texts)} samples, {draw.title}, {'argmax rules' if draw.argmax else 'rules drawn'}"]
        about += [] if draw.budget else ["no budget"]
        found = [f"{facts['complete']} complete"]
        found += [] if facts["valid"] is None else [f"{facts['valid']} {facts['judge']}"]
        found += [f"{facts['distinct']} of them distinct"]
        found += [] if facts["novel"] is None else [f"{facts['novel']} of those not among the training strings"]
        return [f"{', '.join(about)}: {', '.join(found)}"]


class StringWalk(Walk):
    """A path of strings: at every point the argmax string, which is complete."""

    unit = "rules"

    def __init__(self, loaded: Loaded, steps: Ids, originals: Ids, note: Callable[[str], None]) -> None:
        super().__init__(loaded, steps, originals)
        grammar = loaded.grammar
        assert grammar is not None, "checked by `check_decodable`"
        self.padding = grammar.rules.padding
        self.strings, self.ends = ([text_of(grammar, row) for row in some.tolist()] for some in (steps, originals))
        self.validator = noted_validator(grammar, note)
        self.valid = None if self.validator is None else list(map(self.validator.is_valid, self.strings))

    def distance(self, one: Ids, other: Ids) -> int:
        return edit_distance(*(ids[ids != self.padding].tolist() for ids in (one, other)))

    def facts(self) -> dict[str, Any]:
        return {
            "originals": self.ends,
            "strings": self.strings,
            "judge": None if self.validator is None else self.validator.name,
            "valid": self.valid,
            "distinct": len(set(self.strings)),
            "changed_characters": [edit_distance(*pair) for pair in pairwise(self.strings)],
            **super().facts(),
        }

    def summary(self, facts: Report) -> str:
        judged = "" if self.valid is None else f", {sum(self.valid)} {facts['judge']}"
        distinct = f"{facts['distinct']} of {len(self.strings)} strings distinct{judged}"
        return f"{distinct}; {super().summary(facts)}"

    def rows(self) -> list[tuple[str, str, str]]:
        """Place on the path, string, and whether it is invalid; neighbours with the same string share a row."""
        rows, last = [("from, original", self.ends[0], "")], len(self.strings) - 1
        digits = 2 if last <= 100 else 3
        for string, group in groupby(range(len(self.strings)), key=self.strings.__getitem__):
            places = list(group)
            label = " to ".join(f"{place / last:.{digits}f}" for place in dict.fromkeys((places[0], places[-1])))
            rows.append((label, string, "" if self.valid is None or self.valid[places[0]] else "invalid"))
        return [*rows, ("to, original", self.ends[1], "")]

    def write(self, files: Mapping[str, Path], report: Mapping[str, Any], title: str) -> None:
        rows = [f"{label:<14}  {string}{remark and '    '}{remark}" for label, string, remark in self.rows()]
        write_lines(files["txt"], rows)
        write_text(files["json"], json.dumps(report, allow_nan=False) + "\n")

    def show(self, console: Console) -> None:
        from arcvae_cli.render import TerminalStrings

        console.result(TerminalStrings([(label, one_line(text), remark) for label, text, remark in self.rows()]))
