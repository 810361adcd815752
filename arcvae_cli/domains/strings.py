"""The domain of strings: derivations of a grammar, beside the frequencies of its rules.

Padding counts nowhere. A derivation is right at a step if the true rule is the argmax of those with its left-hand side;
it is exact if it is right at every step: the argmax rules derive the same string.
"""
# ruff: noqa: ARG002 - not every domain needs every argument

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli import gaussians
from arcvae_cli.domains.base import (
    Decoded,
    Domain,
    Draw,
    Examples,
    Note,
    Reconstructed,
    Report,
    Table,
    Task,
    write_text,
)
from arcvae_cli.domains.texts import Writer, beginning, pair_lines
from arcvae_cli.domains.validity import Validator, validator_for
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.evaluation.baselines import rule_frequencies
from arcvae_cli.evaluation.information import (
    Codes,
    batch_size,
    batches,
    choose,
    eval_mode,
    joined,
    longest_first,
    nats,
    standard_error,
    to_float64,
)
from arcvae_cli.evaluation.paths import decoded_paths, edit_distance, smoothness
from arcvae_cli.evaluation.priors import EXAMPLES, draw_prior, fit_prior
from arcvae_cli.evaluation.verdict import HELD_MARGIN, Advice, Target
from arcvae_cli.grammar import Grammar, parse_grammar
from arcvae_cli.graphs import Graphed
from arcvae_cli.models.base import Batch, Level
from arcvae_cli.models.grammar import LEVEL
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.step import mix

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.grammar import Rules
    from arcvae_cli.records import Pictures

FEW, WORK = 1000, 150_000  # for what takes many passes: at most so many derivations, of so many steps in all
PAIRS, STEPS = 100, 9
QUICK_EXAMPLES, QUICK_SAMPLES = 2000, 200
ENCODINGS = 10  # per example, as in the protocol of 2017
DIVERSITY = 1000  # strings whose likeness is measured, pair by pair
DECODINGS, CUDA_DECODINGS = 2**20, 2**24  # noise is drawn for so many rules at once
GRAPHED_FROM = 5  # passes of one size above which they are captured as a graph, which costs as much as so many
LISTED, SHOWN = 16, 256  # pairs in a text file, strings on a terminal
STRING = "string:"  # prefix of a string that looks like an index

EXACT_TARGET = 0.50  # share of derivations at the posterior mean; Kusner et al. 2017: 0.54 of drawn molecules
COLLAPSED_NATS = 1.0  # total KL under which the code is collapsed; the least reconstruction cost that it should save
CARRIED_TARGET = 0.90  # share of the KL in active dimensions
COMPLETE_TARGET = 0.80  # share of draws from N(0, I) that end by themselves within T rules
SURE = 4.0  # standard errors by which a mean -log p(x) may lie under the entropy by chance

SCORES = (
    ("rules", "reconstruction.{}.token_accuracy", ".2%"),
    ("exact derivations", "reconstruction.{}.exact_share", ".2%"),
    ("rules drawn too: mean p(x|z)", "reconstruction.expected_exact_share", ".2%"),
    ("  standard error", "reconstruction.expected_error", ".2%"),
    ("  the same, counted", "reconstruction.monte_carlo.exact_share", ".2%"),
    ("  counted, with the length budget", "reconstruction.monte_carlo.budget_exact_share", ".2%"),
    ("the same molecule", "reconstruction.canonical_share", ".2%"),
)
LIKELIHOOD = (
    ("rule frequencies, without any code", "reconstruction.frequencies.nll_nats", ".2f"),
    ("entropy of the corpus, least on unseen", "entropy_nats", ".2f"),
    ("KL of the objective", "trained_kl_nats", ".2f"),
)
PATH_SCORES = (
    ("pairs of strings", "interpolation.pairs", ""),
    ("different strings on a path", "interpolation.distinct", ".1f"),
    ("rules changed per step", "interpolation.mean_step", ".1f"),
    ("  in the largest step", "interpolation.largest_step", ".1f"),
    ("rules that differ between the ends", "interpolation.distance", ".1f"),
    ("valid strings", "interpolation.valid_share", ".1%"),
    ("paths of valid strings", "interpolation.valid_paths", ".1%"),
)
SAMPLE_SCORES = (
    ("complete without the length budget", "complete_share", ".2%"),
    ("valid", "valid_share", ".2%"),
    ("valid, without the budget", "complete_valid_share", ".2%"),
    ("distinct, of the valid", "distinct_share", ".2%"),
    ("  among the first 1,000", "distinct_1k_share", ".2%"),
    ("  among the first 10,000", "distinct_10k_share", ".2%"),
    ("of these no training string", "novel_share", ".2%"),
    ("valid, the argmax string of each code", "likeliest_valid_share", ".2%"),
    ("distinct, the argmax string of each code", "likeliest_distinct_share", ".2%"),
    ("internal diversity", "diversity", ".2f"),
    ("rules of a string", "mean_rules", ".1f"),
    ("strings", "samples", ""),
)


class StringDomain(Domain):
    """Derivations of strings."""

    kind, noun, changes, dtype = "strings", "derivations", "rules", np.int16
    per, formats = ("nats per derivation", "bits per rule"), ("txt", "npz", "json")
    flags = frozenset({"--monte-carlo", "--encodings", "--decodings", "--monte-carlo-examples", "--samples"}) | {
        *("--decode", "--budget/--no-budget")
    }
    quick_shuffle = plain = True

    def validation_batch(self, corpus: Any) -> int:
        return batch_size(corpus.length)

    def baseline(self, corpus: Any) -> dict[str, float | None]:
        scores = rule_frequencies(corpus.ids("train"), corpus.rules, corpus.ids("val"))
        return {"blank": scores["token_accuracy"], "blank_nats": scores["nll_nats"], "entropy": corpus.entropy}

    def write_pictures(self, folder: Path, epoch: int, pictures: Pictures, rules: Rules | None) -> None:
        assert rules is not None, "derivations have rules"
        writer = Writer(rules)
        pairs = pair_lines(writer.pairs(pictures.originals, pictures.reconstructions))
        write_lines(folder / f"reconstructions_epoch_{epoch}.txt", pairs)
        if samples := writer.samples(pictures.samples):
            write_lines(folder / f"samples_epoch_{epoch}.txt", samples)

    def limits(self, task: Task) -> tuple[int | None, int | None, int]:
        workable = max(1, WORK // task.corpus.length)
        size = batch_size(task.corpus.length, task.corpus.device)
        return min(QUICK_EXAMPLES, workable) if task.quick else None, min(FEW, workable), size

    def reconstruct(self, task: Task) -> Reconstructed:
        model, corpus, split, indices = task.model, task.corpus, task.split, task.indices
        if task.monte_carlo is not None and model.pushdown is None:
            raise InputError(
                "--monte-carlo: the model was trained without a grammar, which derivations need",
                "leave it out: the expected share of exact reconstructions is what it estimates",
            )
        posterior = encode(model, corpus, split, indices, task.seed)
        at_sample = decode(model, corpus, split, indices, posterior.sample)
        codes = Codes({LEVEL: posterior}, at_sample.nats, at_sample.lengths)
        grammar, validator = _grammar(model)
        at_mean = decode(model, corpus, split, indices, posterior.mean)
        x, same = corpus.ids(split)[indices.to(corpus.device)], None
        if validator is not None and (canonical := validator.canonical) is not None and not task.quick:
            derived, _ = derive(model, {LEVEL: posterior.mean}, drawn=False)
            pairs = zip(written(grammar, x.tolist()), written(grammar, derived.tolist()), strict=True)
            same = sum(one == other or canonical(one) == canonical(other) for one, other in pairs) / len(x)
        encodings = 1 if task.quick else ENCODINGS
        if not task.quick:
            task.note(f"exact share: {encodings} codes of each of {len(task.few):,} derivations")
        mean, logvar = (part[: len(task.few)].repeat(encodings, 1) for part in (posterior.mean, posterior.logvar))
        with eval_mode(model, mix(task.seed, "codes")):
            drawn = gaussians.sample(mean, logvar)
        found = decode(model, corpus, split, task.few.repeat(encodings), drawn)
        expected = (-found.nats).exp().view(encodings, -1).mean(dim=0)  # (few,) mean of p(x|z)
        reconstruction = {
            "examples": len(indices),
            "posterior_mean": at_mean.scores(),
            "posterior_sample": at_sample.scores(),
            "frequencies": rule_frequencies(task.trained.ids("train"), task.trained.rules, x),
            "encodings": encodings,
            "expected_examples": len(task.few),
            "expected_exact_share": expected.mean().item(),
            "expected_error": standard_error(expected),
            "canonical_share": same,
            "monte_carlo": None if task.monte_carlo is None else monte_carlo(task, *task.monte_carlo),
        }
        report = {
            "reconstruction": reconstruction,
            "steps": corpus.length,
            "elbo_error": codes.error(),
            "trained_kl_nats": to_float64(posterior.kl).sum(dim=1).mean().item(),
            "posterior_noise": task.settings.model.model_dump().get("posterior_noise", 1.0),
            # the entropy bounds the likelihood of unseen strings, not of those that were trained on
            "entropy_nats": corpus.entropy if split != "train" else None,
        }
        few = len(task.few)
        accuracy = 1.0 - at_mean.errors[:few].sum().item() / at_mean.lengths[:few].sum().item()
        own = at_mean.nats[:few].mean().item(), accuracy
        return Reconstructed(codes, {LEVEL: posterior.mean}, report, at_mean.errors.numpy(), own)

    def further(self, task: Task) -> dict[str, Any]:
        model, trained, seed = task.model, task.trained, task.seed
        grammar, validator = _grammar(model)
        judge = None if validator is None else validator.name
        found: dict[str, Any] = {"judged": judge, "interpolation": None, "prior_samples": None}
        if grammar is None:
            return found
        if len(task.few) > 1 and not task.quick:
            task.note("interpolation")
            decoded = decoded_paths(model, task.corpus, task.split, task.indices[: 2 * PAIRS], STEPS)
            found["interpolation"] = path_scores(decoded, grammar, validator)
        task.note("samples from N(0, I) and from the fitted prior")
        count = QUICK_SAMPLES if task.quick else task.samples
        with eval_mode(model, seed) as device:
            latents = {"standard": draw_prior(model, count)}
        if trained.size("train") > 1:
            codes = self.posterior_samples(model, trained, "train", seed, {}, EXAMPLES)
            latents["aggregate"] = fit_prior("aggregate", codes, seed).sample(count, 1.0, seed, device)
        known = {_key(row) for row in trained.ids("train").cpu().numpy()}
        found["prior_samples"] = {}
        for name, codes in latents.items():
            made, _ = derive(model, codes, drawn=True, seed=seed)
            _, free = derive(model, codes, drawn=True, budget=False, seed=seed)  # the same rules, if it is complete
            best, _ = derive(model, codes, drawn=False)
            found["prior_samples"][name] = score_strings(made, free, best, known, grammar, validator)
        return found

    def targets(self, report: Report, advice: Advice) -> Iterator[Target]:
        found, elbo, shuffled = report["reconstruction"], report["elbo"], report["shuffled_codes"]
        kl, noise, drawn = report["levels"][LEVEL]["kl_nats"], report["posterior_noise"], report["prior_samples"]
        total, one_nat, more = sum(kl), f"{COLLAPSED_NATS:g} nat", advice.more_kl(LEVEL)
        carried = sum(value for value in kl if value > ACTIVE_KL) / total if total > 0 else 0.0
        larger = f"{advice.lower_beta(LEVEL)}, train longer, or raise model.decoder_hidden"
        better = more if _collapsed(report) else larger
        exact, baseline = found["posterior_mean"]["exact_share"], found["frequencies"]["nll_nats"]
        yield Target("exact derivations", exact, ">=", EXACT_TARGET, f"{EXACT_TARGET:.2f}", better)
        text = f"{baseline:.2f} nats (frequencies)"
        yield Target("reconstruction, baseline", elbo["reconstruction_nats"], "<", baseline, text, better)
        if noise == 1.0:  # a narrow posterior has a large KL without any information
            yield Target("total KL", total, ">", COLLAPSED_NATS, one_nat, more)
            yield Target("share in active dimensions", carried, ">=", CARRIED_TARGET, f"{CARRIED_TARGET:.2f}", more)
        if shuffled is not None:
            yield Target("what the right code saves", _saved(shuffled), ">", COLLAPSED_NATS, one_nat, more)
        if noise < 1.0:
            remedy = "use model.posterior_noise = 1: below it the trained KL is not that of the codes that are sampled"
            yield Target("posterior noise", noise, ">=", 1.0, "1", remedy)
        if advice.floors[LEVEL] > 0:
            most = _enforced(advice, kl)
            yield advice.floor_target(LEVEL, kl, "smallest KL, free-bits floor", "total KL, free-bits floor")
            yield Target("total KL beyond the floor", total, ">", most, f"{most:.4g} nats", more)
        if (entropy := report["entropy_nats"]) is not None:
            weighted, nll, error = report["importance_weighted"], -elbo["elbo_nats"], report["elbo_error"]
            if weighted is not None:
                nll, error = weighted["nll_nats"], error * math.sqrt(elbo["examples"] / weighted["examples"])
            remedy = "no model can beat the entropy: look for a bug, or for test strings among the training strings"
            yield Target("-log p(x), entropy", nll, ">=", entropy - SURE * error, f"{entropy:.2f} nats", remedy)
        if drawn is not None:
            complete, fitted = (drawn.get(name, {}).get("complete_share") for name in ("standard", "aggregate"))
            remedy, limit = "train longer; the length budget of `sample` makes every string complete", COMPLETE_TARGET
            if fitted is not None and fitted >= limit:
                remedy = f"sample with --prior aggregate ({fitted:.0%} of its draws end); {advice.raise_beta()}"
            yield Target("complete without budget", complete, ">=", limit, f"{limit:.2f}", remedy)

    def summary(self, report: Report, advice: Advice) -> str:
        found, noise, kl = report["reconstruction"], report["posterior_noise"], report["levels"][LEVEL]["kl_nats"]
        total, active = sum(kl), sum(value > ACTIVE_KL for value in kl)
        cost, baseline = report["elbo"]["reconstruction_nats"], found["frequencies"]["nll_nats"]
        result = (
            f"{found['posterior_mean']['exact_share']:.0%} of the derivations are exact, "
            f"reconstruction takes {cost:.1f} nats, rule frequencies {baseline:.1f}"
        )
        if total <= COLLAPSED_NATS:
            state = f"posterior collapse: the code carries {total:.2f} nats in all"
        elif _collapsed(report):
            state = f"the code carries {total:.1f} nats, and the decoder does not use them"
        elif total <= _enforced(advice, kl):
            state = f"collapse, held up by free bits alone: {total:.2f} nats are no more than they enforce"
        elif noise < 1.0:
            state = f"an autoencoder, its noise scaled by {noise:g}: codes lie {total:.0f} nats from the prior"
        else:
            state = f"the code is alive: {active} of {len(kl)} dimensions carry {total:.1f} nats"
        return f"{state}; {result}"

    def tables(self, report: Report) -> Iterator[Table]:
        model = {"at the mean": "posterior_mean", "at a sample": "posterior_sample", "frequencies": "frequencies"}
        yield Table("Reconstruction at the posterior mean, at a posterior sample, baseline", model, SCORES)
        yield Table("Nats of a derivation", {"": ""}, LIKELIHOOD)
        yield Table("Interpolation", {"": ""}, PATH_SCORES)
        priors = {"N(0, I)": "standard", "fitted": "aggregate"}
        rows = [(label, f"prior_samples.{{}}.{key}", form) for label, key, form in SAMPLE_SCORES]
        valid = report["judged"] or "not known for this grammar, or not without RDKit"
        note = f"fitted: the Gaussian of the training codes (--prior aggregate); valid: {valid}"
        if report["prior_samples"] is not None:
            yield Table("New strings, drawn with the length budget", priors, rows, note)

    def code_values(self, task: Task, indices: Examples) -> tuple[Examples, str]:
        ids = task.corpus.ids(task.split).cpu().numpy()[indices]
        return (ids != task.corpus.rules.padding).sum(axis=1), "rules of the derivation"

    def draw(self, folder: Path, task: Task, evaluation: Evaluation) -> None:
        if task.quick:
            return
        writer, worst = Writer(task.model.structure.rules), np.argsort(-evaluation.errors, kind="stable")
        for name, order in (("reconstructions", evaluation.indices), ("errors", evaluation.indices[worst])):
            ids = task.corpus.ids(task.split)[torch.from_numpy(order[:LISTED]).to(task.corpus.device)]
            with eval_mode(task.model, 0):
                made = task.model.reconstruct(self.batch(task.model, ids.long()))
            write_lines(folder / f"{name}.txt", pair_lines(writer.pairs(ids.cpu().numpy(), made.cpu().numpy())))

    def check_decodable(self, loaded: Loaded) -> None:
        if loaded.grammar is None:
            raise InputError(
                f"{loaded.path}: the model was trained on ids and masks without a grammar, which strings need",
                "train with --grammar FILE beside --prod and --masks; `evaluate` works without",
            )

    def posterior_samples(
        self, model: Any, corpus: Any, split: str, seed: int, given: Mapping[str, int], limit: int
    ) -> dict[str, Tensor]:
        chosen = choose(corpus, split, limit, seed)
        if not len(chosen):
            return {LEVEL: torch.empty(0, *model.level_shapes[LEVEL])}
        return {LEVEL: encode(model, corpus, split, chosen, seed).sample}

    def sample(self, draw: Draw) -> Decoded:
        grammar, validator = _grammar(draw.loaded.model, draw.note)
        ids, complete = derive(draw.loaded.model, draw.latents, not draw.argmax, draw.budget, draw.seed)
        texts = [grammar.write(row) for row in ids.tolist()]
        complete_texts, training = [text for text in texts if text is not None], draw.training()
        valid = None if validator is None else {text for text in set(complete_texts) if validator.is_valid(text)}
        known = None if training is None else frozenset(training.strings("train"))

        good = [text for text in complete_texts if valid is None or text in valid]
        meaning = str if validator is None or validator.canonical is None else validator.canonical
        different = {meaning(text): text for text in reversed(good)}.values()  # the first of each meaning
        counts = {
            "complete": len(complete_texts),
            "valid": None if validator is None else len(good),
            "distinct": len(different),
            "novel": None if known is None else sum(text not in known for text in different),
        }
        of = {"complete": len(ids), "valid": len(ids), "distinct": len(good), "novel": len(different)}
        facts = {
            "decode": "argmax" if draw.argmax else "sample",
            "budget": draw.budget,
            "judge": None if validator is None else validator.name,
            **counts,
            **{f"{key}_share": None if n is None or not of[key] else n / of[key] for key, n in counts.items()},
            "strings": texts,
        }
        rows = []
        for place, (text, row) in enumerate(zip(texts[:SHOWN], ids.tolist(), strict=False)):
            remarks = {
                "incomplete": text is None,
                "invalid": text is not None and valid is not None and text not in valid,
                "in the training data": known is not None and text in known,
                "again": text is not None and text in texts[:place],
            }
            remark = ", ".join(name for name, holds in remarks.items() if holds)
            rows.append((str(place + 1), beginning(grammar, row) if text is None else text, remark))
        words = [f"{n} {name}" for name, n in counts.items() if n is not None]
        return Decoded(facts, {"ids": ids, "complete": complete}, (rows, complete_texts), ", ".join(words))

    def read_end(self, text: str, flag: str, loaded: Loaded, note: Note) -> tuple[str, Any]:
        from arcvae_cli.data.parsing import ParseFailure, Parser

        model: Any = loaded.model
        (grammar, _), length = _grammar(model), model.structure.length
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

    def path(self, loaded: Loaded, steps: Examples, originals: Examples, note: Note) -> Decoded:
        grammar, validator = _grammar(loaded.model, note)
        padding, last = grammar.rules.padding, len(steps) - 1
        strings, ends = (written(grammar, some.tolist()) for some in (steps, originals))
        valid = None if validator is None else list(map(validator.is_valid, strings))
        facts, summary = self.path_facts(
            steps, originals, lambda *pair: edit_distance(*(ids[ids != padding].tolist() for ids in pair))
        )
        rows, digits = [("from, original", ends[0], "")], 2 if last <= 100 else 3
        for string, group in groupby(range(len(strings)), key=strings.__getitem__):  # the same string shares a row
            places = list(group)
            label = " to ".join(f"{place / last:.{digits}f}" for place in dict.fromkeys((places[0], places[-1])))
            rows.append((label, string, "" if valid is None or valid[places[0]] else "invalid"))
        rows.append(("to, original", ends[1], ""))
        lines = [f"{label:<14}  {string}{remark and '    '}{remark}" for label, string, remark in rows]
        about = {
            "originals": ends,
            "strings": strings,
            "judge": None if validator is None else validator.name,
            "valid": valid,
            "distinct": len(set(strings)),
            "changed_characters": [edit_distance(*pair) for pair in pairwise(strings)],
        }
        summary = f"{about['distinct']} of {len(strings)} strings distinct; {summary}"
        return Decoded({**about, **facts}, {"ids": steps}, (rows, lines), summary)

    def show(self, console: Console, decoded: Decoded) -> None:
        from arcvae_cli.render.terminal import TerminalStrings

        rows, lines = decoded.rows
        if console.piped:
            console.lines(lines)
        else:
            console.result(TerminalStrings([(label, one_line(text), remark) for label, text, remark in rows]))

    def write(self, files: Mapping[str, Path], decoded: Decoded, document: Report, title: str) -> None:
        write_lines(files["txt"], decoded.rows[1])
        write_text(files["json"], json.dumps(document, allow_nan=False) + "\n")


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file, one item per line."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def written(grammar: Any, derivations: Sequence[Sequence[int]]) -> list[str]:
    """The strings of derivations, empty for one that is incomplete."""
    return [grammar.write(ids) or "" for ids in derivations]


def _grammar(model: Any, note: Note = lambda _: None) -> tuple[Any, Validator | None]:
    """The grammar of a model's strings, None where only ids and masks are known, and the validator of the strings."""
    text = model.structure.rules.text
    grammar = None if text is None else parse_grammar(text, "grammar")
    return grammar, None if grammar is None else validator_for(grammar, note)


class Scored(NamedTuple):
    """Derivations against codes: (n,) float64 -log p(x|z) in nats, (n,) wrong rules and all rules, on the CPU."""

    nats: Tensor
    errors: Tensor
    lengths: Tensor

    def scores(self) -> dict[str, float]:
        return {
            "token_accuracy": 1.0 - self.errors.sum().item() / self.lengths.sum().item(),
            "exact_share": (self.errors == 0).double().mean().item(),
        }


def encode(model: Any, corpus: Any, split: str, indices: Tensor, seed: int) -> Level:
    """The posteriors of the derivations at `indices` (n,), and one sample of each; no noise depends on the batches."""
    order = longest_first(corpus, split, indices)
    found: list[Level] = []
    with eval_mode(model, seed) as device:
        for batch in batches(corpus, split, indices[order], device, batch_size(corpus.length, device)):
            found += model.encode(batch, noise=False)
        level = joined(found, order.argsort().to(device))
        return replace(level, sample=gaussians.sample(level.mean, level.logvar))


def decode(model: Any, corpus: Any, split: str, indices: Tensor, codes: Tensor) -> Scored:
    """Score the derivations at `indices` (n,) given codes (n, D), those of similar length together."""
    order = longest_first(corpus, split, indices)
    rows = []
    with eval_mode(model, 0) as device:
        size = batch_size(corpus.length, device)
        together = batches(corpus, split, indices[order], device, size)
        for part, batch in zip(torch.split(order, size), together, strict=True):
            logits = model.logits_for({LEVEL: codes[part.to(device)]}, batch)
            assert batch.valid is not None, "derivations have padding"
            wrong = (logits.argmax(dim=1) != batch.x) & batch.valid
            counts = nats(logits, batch), wrong.sum(1), batch.valid.sum(1)
            rows.append(torch.stack([to_float64(one) for one in counts]))
    reconstruction, errors, lengths = torch.cat(rows, dim=1).cpu()[:, order.argsort()]
    return Scored(reconstruction, errors.long(), lengths.long())


def monte_carlo(task: Task, examples: int, encodings: int, decodings: int) -> dict[str, Any]:
    """Exact reconstruction by the protocol of Kusner et al. 2017: draw codes of an example, draw strings of each code.

    On CUDA the derivations are one graph, replayed: hence all calls are of one size, and the excess is cut off.
    """
    model, corpus = task.model, task.corpus
    indices, length, pushdown = task.indices[:examples], corpus.length, model.pushdown
    task.note(f"Monte Carlo: {encodings * decodings:,} strings of each of {len(indices):,} derivations")

    def exact(logits: Tensor, noise: Tensor, x: Tensor) -> Tensor:  # (B, P, T), (M, B, T, K), (B, T) -> (2, M, B)
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


def _saved(shuffled: Report) -> float:
    return float(shuffled["shuffled_reconstruction_nats"] - shuffled["reconstruction_nats"])


def _enforced(advice: Advice, kl: Sequence[float]) -> float:
    """The total KL that free bits alone account for."""
    return (1.0 + HELD_MARGIN) * advice.floors[LEVEL] * (1 if advice.total else len(kl))


def _collapsed(report: Report) -> bool:
    """Whether the code carries no information, or none that the decoder uses."""
    shuffled = report["shuffled_codes"]
    idle = shuffled is not None and _saved(shuffled) <= COLLAPSED_NATS
    return idle or sum(report["levels"][LEVEL]["kl_nats"]) <= COLLAPSED_NATS


def derive(
    model: Any, latents: Mapping[str, Tensor], drawn: bool, budget: bool = True, seed: int = 0
) -> tuple[Examples, NDArray[np.bool_]]:
    """Derivations (n, T) of latents on the model's device, `drawn` from p(x|z) or the argmax, and which are complete.

    With `budget` all are, see `Pushdown.derive`. Noise does not depend on the device. A graph needs parts of one size.
    """

    def made(logits: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        found = model.pushdown.derive(logits, noise, budget)
        return found.ids.to(torch.int16), found.complete

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
            else:
                filled = [torch.cat([some, some[:1].expand(size - len(part), -1, -1)]) for some in inputs]
                results.append(tuple(some[: len(part)] for some in graphed(*filled)))
        ids, complete = (torch.cat(some).cpu().numpy() for some in zip(*results, strict=True))
    return ids, complete


def score_strings(
    ids: Examples,
    free_complete: NDArray[np.bool_],
    likeliest: Examples,
    known: Set[bytes],
    grammar: Grammar,
    validator: Validator | None,
) -> dict[str, Any]:
    """Scores of complete derivations (n, T) drawn with the budget, and of the `likeliest` ones of the same codes.

    `free_complete`: (n,) whether one drawn without the budget is complete, which then is the same. `known`: the keys of
    training derivations. `distinct_share` is of the valid ones, `novel_share` and `diversity` of the distinct ones.
    """
    texts, keys = written(grammar, ids.tolist()), [_key(row) for row in ids]
    names: Sequence[Any] = keys
    valid, judged, diversity = np.ones(len(ids), np.bool_), validator is not None, None
    if validator is not None:
        valid = np.array([validator.is_valid(text) for text in texts])
        names = texts if validator.canonical is None else list(map(validator.canonical, texts))
    kept = np.flatnonzero(valid).tolist()
    distinct = list({names[place]: place for place in reversed(kept)}.values())[::-1]  # the first of each
    if validator is not None and validator.diversity is not None and len(distinct) > 1:
        diversity = validator.diversity([texts[place] for place in distinct[:DIVERSITY]])
    best = written(grammar, likeliest.tolist())
    return {
        "samples": len(ids),
        "complete_share": float(free_complete.mean()),
        "valid_share": float(valid.mean()) if judged else None,
        "complete_valid_share": float((free_complete & valid).mean()) if judged else None,
        "distinct_share": _distinct(names, kept),
        "distinct_1k_share": None if len(ids) < 1000 else _distinct(names, kept, 1000),
        "distinct_10k_share": None if len(ids) < 10_000 else _distinct(names, kept, 10_000),
        "novel_share": sum(keys[place] not in known for place in distinct) / len(distinct) if distinct else None,
        "diversity": diversity,
        "likeliest_valid_share": None if validator is None else float(np.mean(list(map(validator.is_valid, best)))),
        "likeliest_distinct_share": len({_key(row) for row in likeliest}) / len(likeliest),
        "mean_rules": float((ids != grammar.rules.padding).sum(axis=1).mean()),
    }


def _distinct(names: Sequence[Any], kept: Sequence[int], first: int | None = None) -> float:
    some = [names[place] for place in kept if first is None or place < first]
    return len(set(some)) / len(some) if some else 0.0


def _key(ids: NDArray[np.integer[Any]]) -> bytes:
    """A derivation as 16 bytes: a quarter of a million of them, of 277 rules each, would be 140 MB."""
    return hashlib.blake2b(np.ascontiguousarray(ids, np.int16).tobytes(), digest_size=16).digest()


def path_scores(decoded: Tensor, grammar: Grammar, validator: Validator | None) -> dict[str, Any]:
    """Of decoded paths (steps, pairs, T): smoothness in rules, and the shares of valid strings and of valid paths."""
    found = smoothness(decoded)
    distinct = [len({row.tobytes() for row in one}) for one in decoded.transpose(0, 1).numpy()]
    shares = None
    if validator is not None:
        shares = np.array([[validator.is_valid(text) for text in written(grammar, one)] for one in decoded.tolist()])
    return {
        **{name: found[name] for name in ("pairs", "steps", "mean_step", "largest_step", "distance")},
        "distinct": sum(distinct) / len(distinct),
        "valid_share": None if shares is None else float(shares.mean()),
        "valid_paths": None if shares is None else float(shares.all(axis=0).mean()),
    }
