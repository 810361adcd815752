"""The domain of strings: derivations of a grammar, beside the frequencies of its rules. Padding counts nowhere."""
# ruff: noqa: ARG002 - not every domain needs every argument

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from arcvae_cli import gaussians
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.files import checked_ids, reading
from arcvae_cli.data.strings import padded_ids
from arcvae_cli.domains import base
from arcvae_cli.domains.base import Decoded, Examples, Given, Note, Report, Table, Task, write_lines
from arcvae_cli.domains.molecules import LABELS, PUBLISHED, moses_scores
from arcvae_cli.domains.validity import Validator, validator_for
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.evaluation import information
from arcvae_cli.evaluation.information import batch_size, eval_mode, longest_first, nats, to_float64
from arcvae_cli.evaluation.paths import decoded_paths, edit_distance, smoothness
from arcvae_cli.evaluation.priors import EXAMPLES, draw_prior, fit_prior
from arcvae_cli.evaluation.verdict import COLLAPSED_NATS, HELD_MARGIN, Advice, Target, judge
from arcvae_cli.grammar import Rules, parse_grammar
from arcvae_cli.models.base import Latents, Level
from arcvae_cli.models.grammar import LEVEL
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.step import mix

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.records import Pictures

MANY_PASSES, MANY_PASSES_RULES = 1000, 150_000  # at most so many derivations, of so many rules in all
PAIRS, STEPS, QUICK_EXAMPLES, QUICK_SAMPLES = 100, 9, 2000, 200
ENCODINGS, DIVERSITY = 10, 1000  # codes per example as in the protocol of 2017; strings compared pair by pair
DECODINGS = 2**20  # noise is drawn for so many rules at once
CUDA_ROWS = 16  # times as many derivations at once where a step takes the same time for thousands
WRITTEN_PAIRS, PRINTED = 16, 256  # pairs in a text file, strings on a terminal
INCOMPLETE = "(incomplete)"  # a derivation that is cut off before its end
DRAWN, FREE, ARGMAX = (True, True), (True, False), (False, True)  # rules drawn from p(x|z)? within the length budget?

EXACT_TARGET = 0.50  # share of derivations at the posterior mean; Kusner et al. 2017: 0.54 of drawn molecules
CARRIED_TARGET = 0.90  # share of the KL in active dimensions
COMPLETE_TARGET = 0.80  # share of draws from N(0, I) that end by themselves within T rules
ENTROPY_ERRORS = 4.0  # standard errors by which a mean -log p(x) may lie under the entropy by chance

SCORES = (
    ("rules", "reconstruction.{}.token_accuracy", ".2%"),
    ("exact derivations", "reconstruction.{}.exact_share", ".2%"),
    ("exact, sampled rules: mean p(x|z)", "reconstruction.expected_exact_share", ".2%"),
    ("  Monte Carlo estimate", "reconstruction.monte_carlo.exact_share", ".2%"),
    ("the same molecule", "reconstruction.canonical_share", ".2%"),
)
PUBLISHED_EXACT = "published, of ZINC, exact with sampled rules: GVAE 53.7 %, SD-VAE 76.2 %, JT-VAE 76.7 %"
MOSES_SCORES = tuple((label, f"moses.{{}}.{key}", ".3f") for key, label in LABELS.items())
MOSES_NOTE = """IntDiv: internal diversity; SNN: Tanimoto similarity to the nearest test molecule
FCD: Frechet ChemNet distance to the test set, by fcd_torch, of 10,000 valid samples or more
published: Polykovskiy et al. 2020, of 30,000 samples (--samples 30000); train: the training set"""
LIKELIHOOD = (
    ("rule frequencies (baseline)", "reconstruction.frequencies.nll_nats", ".2f"),
    ("entropy of the corpus (lower bound)", "entropy_nats", ".2f"),
    ("KL of the objective", "trained_kl_nats", ".2f"),
)
SAMPLE_SCORES = (
    ("complete without the length budget", "prior_samples.{}.complete_share", ".2%"),
    ("valid", "prior_samples.{}.valid_share", ".2%"),
    ("distinct, of the valid", "prior_samples.{}.distinct_share", ".2%"),
    ("novel, of the distinct", "prior_samples.{}.novel_share", ".2%"),
    ("valid, the argmax string of each code", "prior_samples.{}.likeliest_valid_share", ".2%"),
    ("internal diversity", "prior_samples.{}.diversity", ".2f"),
)


class StringDomain(base.Domain):
    """Derivations of strings."""

    kind, noun, changes, dtype = "strings", "derivations", "rules", np.int16
    per = ("nats per derivation", "bits per rule")
    quick_shuffle = plain = True

    def dataset(self, loaded: Loaded, x: Any) -> Dataset:
        """Strings, or derivations (n, T) of the model's rules, as a test split of its length."""
        structure: Any = loaded.model.structure
        rules, length = structure.rules, structure.length
        if loaded.grammar is not None and all(isinstance(text, str) for text in x):
            ids = parsed(loaded, list(x), "x")
        else:
            with reading(Path("x")):
                ids = checked_ids(np.asarray(x), rules)
            if ids.shape[1] > length:
                raise InputError(f"x: derivations of {ids.shape[1]} rules, the model has {length}", "shorten them")
            ids = np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=rules.padding)
        return Dataset("x", ids, np.full(len(ids), 2, np.uint8), rules=rules)

    def given_back(self, loaded: Loaded, classes: Examples) -> Any:
        return classes.astype(np.int16) if loaded.grammar is None else texts_of(loaded.grammar.rules, classes)

    def row(self, loaded: Loaded, classes: Examples, titles: list[str]) -> Decoded:
        strings = self.given_back(loaded, classes)
        rows = [(title, text, "") for title, text in zip(titles, strings, strict=True)]
        lines = [f"{title:<14}  {text}" for title, text, _ in rows]
        return Decoded({"strings": strings}, {"ids": classes.astype(np.int16)}, (rows, lines), "")

    def validation_batch(self, corpus: Any) -> int:
        return batch_size(corpus.length)

    def baseline(self, corpus: Any) -> dict[str, float | None]:
        scores = unigram_baseline(corpus.ids("train"), corpus.rules, corpus.ids("val"))
        return {"blank": scores["token_accuracy"], "blank_nats": scores["nll_nats"], "entropy": corpus.entropy}

    def formats(self, structure: Any) -> tuple[str, ...]:
        return "txt", "npz", "json"

    def write_pictures(self, folder: Path, epoch: int, pictures: Pictures, structure: Any) -> None:
        rules = structure.rules
        pairs = pair_lines(rules, pictures.originals, pictures.reconstructions)
        write_lines(folder / f"reconstructions_epoch_{epoch}.txt", pairs)
        if rules.text is not None:
            write_lines(folder / f"samples_epoch_{epoch}.txt", texts_of(rules, pictures.samples))

    def limits(self, task: Task) -> tuple[int | None, int | None]:
        most = max(1, MANY_PASSES_RULES // task.corpus.length)
        return min(QUICK_EXAMPLES, most) if task.quick else None, min(MANY_PASSES, most)

    def reconstruct(self, task: Task) -> base.Reconstructed:
        model, corpus, split, indices, few = task.model, task.corpus, task.split, task.indices, len(task.few)
        if task.monte_carlo is not None and model.pushdown is None:
            raise InputError("--monte-carlo: the model was trained without a grammar", "omit it")
        posterior = encode(model, corpus, split, indices, task.seed)
        scores = {}
        costs, wrong, lengths = decode(model, corpus, split, indices, posterior.mean)
        drawn_costs, drawn_wrong, _ = decode(model, corpus, split, indices, posterior.sample)
        for name, errors in (("posterior_mean", wrong), ("posterior_sample", drawn_wrong)):
            accuracy, exact = 1.0 - (errors.sum() / lengths.sum()).item(), (errors == 0).double().mean().item()
            scores[name] = {"token_accuracy": accuracy, "exact_share": exact}
        codes = information.Codes({LEVEL: posterior}, drawn_costs, lengths)
        validator = _validator(model)
        x, same = corpus.take(split, indices), None
        if validator is not None and validator.diversity is not None and not task.quick:  # of molecules
            [(derived, _)] = derive(model, posterior.mean, ARGMAX)
            pairs = zip(texts_of(corpus.rules, x.cpu().numpy()), texts_of(corpus.rules, derived), strict=True)
            canonical = validator.canonical
            same = sum(one == other or canonical(one) == canonical(other) for one, other in pairs) / len(x)
        encodings = 1 if task.quick else ENCODINGS
        mean, logvar = (part[:few].repeat(encodings, 1) for part in (posterior.mean, posterior.logvar))
        with eval_mode(model, mix(task.seed, "codes")):
            drawn = gaussians.sample(mean, logvar)
        nats, *_ = decode(model, corpus, split, task.few.repeat(encodings), drawn, derived=False)
        expected = (-nats).exp().view(encodings, -1).mean(dim=0)  # (few,) of p(x|z)
        reconstruction = {
            "examples": len(indices),
            **scores,
            "frequencies": unigram_baseline(task.trained.ids("train"), task.trained.rules, x),
            "encodings": encodings,
            "expected_examples": few,
            "expected_exact_share": expected.mean().item(),
            "expected_error": information.standard_error(expected),
            "canonical_share": same,
            "monte_carlo": None if task.monte_carlo is None else monte_carlo(task, *task.monte_carlo),
        }
        report = {
            "reconstruction": reconstruction,
            "steps": corpus.length,
            "elbo_error": codes.error(),
            "trained_kl_nats": to_float64(posterior.kl).sum(dim=1).mean().item(),
            "posterior_noise": task.settings.model.model_dump().get("posterior_noise", 1.0),
            "entropy_nats": corpus.entropy if split != "train" else None,  # bounds the likelihood of unseen strings
        }
        own = costs[:few].mean().item(), 1.0 - (wrong[:few].sum() / lengths[:few].sum()).item()
        return codes, {LEVEL: posterior.mean}, report, wrong.long().numpy(), own

    def further(self, task: Task) -> dict[str, Any]:
        model, trained, seed = task.model, task.trained, task.seed
        rules, validator = model.structure.rules, _validator(model)
        paths = scores = None
        moses = dict[str, Any]()
        if rules.text is not None and len(task.few) > 1 and not task.quick:
            decoded = decoded_paths(model, task.corpus, task.split, task.indices[: 2 * PAIRS], STEPS)
            changes, rows = smoothness(decoded), decoded.transpose(0, 1).numpy()  # (pairs, steps, T)
            paths = {name: changes[name] for name in ("pairs", "steps", "mean_step", "largest_step", "distance")}
            distinct = float(np.mean([len(np.unique(path, axis=0)) for path in rows]))
            paths |= {"distinct": distinct, "valid_share": None, "valid_paths": None}
            if validator is not None:
                valid = np.array([validator.is_valid(text) for text in texts_of(rules, np.concatenate(rows))])
                valid = valid.reshape(rows.shape[:2])
                paths |= {"valid_share": float(valid.mean()), "valid_paths": float(valid.all(axis=1).mean())}
        if rules.text is not None:
            count = QUICK_SAMPLES if task.quick else task.samples
            with eval_mode(model, seed) as device:
                latents = {"standard": draw_prior(model, count)}
            if trained.size("train") > 1:
                codes = self.posterior_samples(model, trained, "train", seed, {}, EXAMPLES)
                latents["aggregate"] = fit_prior("aggregate", codes, seed).sample(count, 1.0, seed, device)
            known, scores, texts = set(keys(trained.ids("train").cpu().numpy())), {}, {}
            for name, z in latents.items():
                # with and without the budget the same rules are drawn, where a derivation is complete
                (drawn, _), (_, complete), (best, _) = derive(model, z[LEVEL], DRAWN, FREE, ARGMAX, seed=seed)
                scores[name] = score_strings(drawn, complete, best, known, rules, validator)
                texts[name] = texts_of(rules, drawn)
            if validator is not None and trained.name == "moses" and task.settings.data.is_moses and not task.quick:
                moses["moses"] = {**moses_scores(texts, device, task.note), "published": PUBLISHED}
        return {"judged": validator and validator.name, "interpolation": paths, "prior_samples": scores, **moses}

    def verdict(self, report: Report, advice: Advice) -> dict[str, Any]:
        found, elbo, shuffled = report["reconstruction"], report["elbo"], report["shuffled_codes"]
        kl, noise, drawn = report["levels"][LEVEL]["kl_nats"], report["posterior_noise"], report["prior_samples"]
        exact, frequencies = found["posterior_mean"]["exact_share"], found["frequencies"]["nll_nats"]
        cost, total, more = elbo["reconstruction_nats"], sum(kl), advice.more_kl[LEVEL]
        active = [value for value in kl if value > ACTIVE_KL]
        enforced = (1.0 + HELD_MARGIN) * advice.floors[LEVEL] * (1 if advice.total else len(kl))  # by free bits
        ends = shuffled or {"shuffled_reconstruction_nats": math.inf, "reconstruction_nats": 0.0}
        saved = ends["shuffled_reconstruction_nats"] - ends["reconstruction_nats"]
        collapsed = min(total, saved) <= COLLAPSED_NATS
        better = more if collapsed else f"{advice.lower_beta[LEVEL]}; raise model.decoder_hidden; train longer"
        targets: list[Target] = [
            ("exact derivations", exact, ">=", EXACT_TARGET, better, ""),
            ("reconstruction, baseline", cost, "<", frequencies, better, "nats (frequencies)"),
        ]
        if noise < 1.0:
            targets.append(("posterior noise", noise, ">=", 1.0, "use model.posterior_noise = 1", ""))
        else:  # a narrow posterior has a large KL without any information
            targets.append(("total KL", total, ">", COLLAPSED_NATS, more, "nat"))
            carried = sum(active) / total if total > 0 else 0.0
            targets.append(("share in active dimensions", carried, ">=", CARRIED_TARGET, more, ""))
        if shuffled is not None:
            targets.append(("nats saved by the code", saved, ">", COLLAPSED_NATS, more, "nat"))
        if advice.floors[LEVEL] > 0:
            targets.append(advice.floor_target(report, LEVEL))
            targets.append(("total KL beyond the floor", total, ">", enforced, more, "nats"))
        if (entropy := report["entropy_nats"]) is not None:
            nll, error = -elbo["elbo_nats"], report["elbo_error"]
            if (weighted := report["importance_weighted"]) is not None:
                nll, error = weighted["nll_nats"], error * math.sqrt(elbo["examples"] / weighted["examples"])
            remedy, least = "look for test strings among the training strings", entropy - ENTROPY_ERRORS * error
            targets.append(("-log p(x), entropy", nll, ">=", least, remedy, f"nats (entropy {entropy:.2f})"))
        if drawn is not None:
            complete, fitted = (drawn.get(name, {}).get("complete_share", 0.0) for name in ("standard", "aggregate"))
            remedy = "train longer; the length budget of `sample` makes every string complete"
            if fitted >= COMPLETE_TARGET:
                remedy = f"sample with --prior aggregate ({fitted:.0%} of its draws end); {advice.raise_beta}"
            targets.append(("complete without budget", complete, ">=", COMPLETE_TARGET, remedy, ""))

        if total <= COLLAPSED_NATS:
            state = f"posterior collapse: the code carries {total:.2f} nats in all"
        elif collapsed:
            state = f"the code carries {total:.1f} nats, and the decoder does not use them"
        elif total <= enforced:
            state = f"collapse, held up by free bits alone: {total:.2f} nats"
        else:
            state = f"the code is alive: {len(active)} of {len(kl)} dimensions carry {total:.1f} nats"
        costs = f"reconstruction takes {cost:.1f} nats, rule frequencies {frequencies:.1f}"
        return judge(targets, f"{state}; {exact:.0%} of the derivations are exact, {costs}")

    def tables(self, report: Report) -> Iterator[Table]:
        model = {"at the mean": "posterior_mean", "at a sample": "posterior_sample", "frequencies": "frequencies"}
        molecules = report["reconstruction"]["canonical_share"] is not None
        title = "Reconstruction at the posterior mean, at a posterior sample, baseline"
        yield Table(title, model, SCORES, PUBLISHED_EXACT * molecules)
        yield Table("Nats of a derivation", {"": ""}, LIKELIHOOD)
        yield Table("Interpolation", {"": ""}, base.PATH_SCORES)
        if report["prior_samples"] is not None:
            valid = report["judged"] or "no validity check for this grammar, or RDKit is missing"
            note = f"fitted: the Gaussian of the training codes (--prior aggregate); valid: {valid}"
            priors = {"N(0, I)": "standard", "fitted": "aggregate"}
            yield Table("New strings, drawn with the length budget", priors, SAMPLE_SCORES, note)
            if "moses" in report:
                priors |= {name: f"published.{name}" for name in PUBLISHED}
                yield Table("MOSES, beside published models", priors, MOSES_SCORES, MOSES_NOTE)

    def code_values(self, task: Task, indices: Examples) -> tuple[Examples, str]:
        ids = task.corpus.ids(task.split).cpu().numpy()[indices]
        return (ids != task.corpus.rules.padding).sum(axis=1), "rules of the derivation"

    def draw(self, folder: Path, task: Task, evaluation: Evaluation) -> None:
        if not task.quick:
            for name, x, reconstructed, _ in self.pairs(task, evaluation, WRITTEN_PAIRS):
                write_lines(folder / f"{name}.txt", pair_lines(task.model.structure.rules, x, reconstructed))

    def posterior_samples(self, model: Any, corpus: Any, split: str, seed: int, given: Given, limit: int) -> Latents:
        if not corpus.size(split):
            return {LEVEL: torch.empty(0, *model.level_shapes[LEVEL])}
        return {LEVEL: encode(model, corpus, split, information.choose(corpus, split, limit, seed), seed).sample}

    def sample(self, loaded: Loaded, latents: Latents, seed: int, options: Mapping[str, Any], note: Note) -> Decoded:
        grammar: Any = loaded.grammar
        how, budget, validator = options["decode"] or "sample", options["budget"], _validator(loaded.model, note)
        beam, temperature = options["beam_width"] * (how == "beam"), options["rule_temperature"]
        way = how == "sample", budget
        [(ids, complete)] = derive(loaded.model, latents[LEVEL], way, seed=seed, temperature=temperature, beam=beam)
        texts = [grammar.write(row) for row in ids.tolist()]
        corpus = options["training"]()
        known = None if corpus is None else frozenset(texts_of(corpus.rules, corpus.ids("train").cpu().numpy()))
        names = meanings(texts, validator)
        different = {name: text for name, text in reversed(list(zip(names, texts, strict=True))) if name is not None}
        valid, distinct = sum(name is not None for name in names), len(different)
        novel = None if known is None else sum(text not in known for text in different.values())
        judged = valid if validator else None
        counts = {"complete": int(complete.sum()), "valid": judged, "distinct": distinct, "novel": novel}
        facts: dict[str, Any] = {"decode": how, "budget": budget}
        facts |= {"beam_width": beam} if beam else {} if temperature == 1.0 else {"rule_temperature": temperature}
        facts |= {"strings": texts, "judge": validator and validator.name, **counts}
        for (key, count), of in zip(counts.items(), (len(ids), len(ids), valid, distinct), strict=True):
            facts[f"{key}_share"] = None if count is None or not of else count / of
        rows = []
        for place, text in enumerate(texts[:PRINTED]):
            remark = "invalid" if text is not None and names[place] is None else ""
            rows.append((str(place + 1), INCOMPLETE if text is None else text, remark))
        words = ", ".join(f"{count} {key}" for key, count in counts.items() if count is not None)
        lines = [text for text in texts if text is not None]
        return Decoded(facts, {"ids": ids, "complete": complete}, (rows, lines), words)

    def read_end(self, text: str, flag: str, loaded: Loaded, note: Note) -> tuple[str, Any]:
        text = text.removeprefix("string:")  # of a string that looks like an index
        return repr(text), parsed(loaded, [text], flag)[0]

    def path(self, loaded: Loaded, steps: Examples, originals: Examples, note: Note) -> Decoded:
        model: Any = loaded.model
        rules, validator, last = model.structure.rules, _validator(model, note), len(steps) - 1
        strings, ends = (texts_of(rules, some) for some in (steps, originals))
        valid = None if validator is None else list(map(validator.is_valid, strings))
        used, wanted = ([ids[ids != rules.padding].tolist() for ids in some] for some in (steps, originals))
        facts, words = self.path_facts(used, wanted, edit_distance)
        rows = [("from, original", ends[0], "")]
        for place, string in enumerate(strings):
            if not place or string != strings[place - 1]:  # the same string shares a row
                rows.append((f"{place / last:.3f}", string, "" if valid is None or valid[place] else "invalid"))
        rows.append(("to, original", ends[1], ""))
        lines = [f"{label:<14}  {string}    {remark}".rstrip() for label, string, remark in rows]
        characters, distinct = [edit_distance(*pair) for pair in pairwise(strings)], len(set(strings))
        facts |= {"originals": ends, "strings": strings, "valid": valid, "distinct": distinct}
        facts |= {"judge": validator and validator.name, "changed_characters": characters}
        return Decoded(facts, {"ids": steps}, (rows, lines), f"{distinct} of {len(strings)} strings distinct; {words}")

    def show(self, console: Console, decoded: Decoded) -> None:
        from arcvae_cli.render.terminal import terminal_strings

        rows, lines = decoded.rows
        if console.piped:
            console.lines(lines)
        else:
            console.result(terminal_strings([(label, one_line(text), remark) for label, text, remark in rows]))

    def write(self, files: Mapping[str, Path], decoded: Decoded, document: Report, title: str) -> None:
        write_lines(files["txt"], decoded.rows[1])
        write_lines(files["json"], [json.dumps(document, allow_nan=False)])


def _validator(model: Any, note: Note = lambda _: None) -> Validator | None:
    """The validator of a model's strings, None where only ids and masks are known."""
    text = model.structure.rules.text
    return None if text is None else validator_for(parse_grammar(text, "grammar"), note)


def parsed(loaded: Loaded, texts: Sequence[str], name: str) -> Examples:
    """Strings as derivations (n, T). InputError, naming `name`, for one not of the grammar or too long."""
    from arcvae_cli.data.parsing import ParseFailure, parse_lines

    grammar: Any = loaded.grammar
    length, derivations = loaded.model.structure.length, list[Any]()  # type: ignore[union-attr]
    for text, found in zip(texts, parse_lines(texts, grammar, 1), strict=True):
        if isinstance(found, ParseFailure):
            what = f"not a string of the grammar: at character {found.position + 1}: {found.reason}"
            raise InputError(f"{name} {text!r}: {what}", "give one of the grammar, or an index in the split")
        if len(found[0]) > length:
            raise InputError(f"{name} {text!r}: takes {len(found[0])} rules, the model has {length}", "shorten it")
        derivations.append(found[0])
    return padded_ids(derivations, length, grammar.rules)


def texts_of(rules: Rules, ids: Examples) -> list[str]:
    """Derivations (n, T) as strings, or as ids of their rules with commas if only ids and masks are known."""
    if rules.text is None:
        return [",".join(map(str, row[row != rules.padding].tolist())) for row in ids]
    texts = map(parse_grammar(rules.text, "grammar").write, ids.tolist())
    return [INCOMPLETE if text is None else text for text in texts]


def pair_lines(rules: Rules, originals: Examples, reconstructions: Examples) -> list[str]:
    """How many of the examples (n, T) are exact, then each, with its reconstruction under it unless it is exact."""
    over = originals == rules.padding
    exact = (over | (originals == reconstructions)).all(axis=1)
    if rules.text is None:  # only the example says where the derivation ends
        reconstructions = np.where(over, rules.padding, reconstructions)
    lines = [f"{exact.sum()} of {len(exact)} exact"]
    for one, other, right in zip(texts_of(rules, originals), texts_of(rules, reconstructions), exact, strict=True):
        lines += [f"= {one}"] if right else [f"- {one}", f"+ {other}"]
    return lines


def unigram_baseline(training: Tensor, rules: Rules, ids: Tensor) -> dict[str, Any]:
    """Derivations (n, T) by the frequency, plus one, of each rule among those of its left-hand side, at each step."""
    counts = torch.stack([one.bincount(minlength=len(rules)) for one in training.cpu().long().unbind(1)]).double() + 1.0
    logs = torch.zeros_like(counts)  # (T, P)
    best = torch.zeros(len(counts), len(rules.symbols), dtype=torch.int64)
    for symbol in range(len(rules.symbols)):
        some = torch.tensor(rules.of(symbol))
        among = counts[:, some]
        logs[:, some] = (among / among.sum(dim=1, keepdim=True)).log()
        best[:, symbol] = some[among.argmax(dim=1)]
    x = ids.long().cpu()
    valid, step = x != rules.padding, torch.arange(x.shape[1])
    log_p = torch.where(valid, logs[step, x], 0.0).sum(dim=1)
    wrong = (best[step, torch.tensor(rules.lhs)[x]] != x) & valid
    used, nll = valid.sum().item(), -log_p.mean().item()
    return {
        "training": len(training),
        "nll_nats": nll,
        "nll_bits": nll * len(x) / (used * math.log(2.0)),
        "token_accuracy": 1.0 - wrong.sum().item() / used,
        "exact_share": (~wrong.any(dim=1)).double().mean().item(),
        "expected_exact_share": log_p.exp().mean().item(),
    }


def encode(model: Any, corpus: Any, split: str, indices: Tensor, seed: int) -> Level:
    """The posteriors of the derivations at `indices` (n,), and one sample of each; no noise depends on the batches."""
    order = longest_first(corpus, split, indices)
    with eval_mode(model, seed) as device:
        batches = information.batches(corpus, split, indices[order], device, batch_size(corpus.length))
        found = [model.encode(batch, noise=False)[0] for batch in batches]
        level = information.joined(found, order.argsort().to(device))
        return replace(level, sample=gaussians.sample(level.mean, level.logvar))


def decode(model: Any, corpus: Any, split: str, indices: Tensor, codes: Tensor, derived: bool = True) -> Tensor:
    """Of the derivations at `indices` (n,) given codes (n, D): nats, wrong rules, rules; (3, n) float64 on the CPU.

    Wrong are those of the argmax; of an autoregressive decoder, if `derived`, of greedy derivations, since its logits
    are given the rules of the example. That none is wrong is the same for both, but for the length budget.
    """
    order = longest_first(corpus, split, indices)
    rows = []
    with eval_mode(model, 0) as device:
        size = batch_size(corpus.length)
        batches = information.batches(corpus, split, indices[order], device, size)
        for part, batch in zip(torch.split(order, size), batches, strict=True):
            latents = {LEVEL: codes[part.to(device)]}
            logits = model.logits_for(latents, batch)
            greedy = derived and model.autoregressive
            found = model.generate(latents)[:, : batch.x.shape[1]] if greedy else logits.argmax(dim=1)
            wrong = (found != batch.x) & batch.valid
            rows.append(torch.stack([*map(to_float64, (nats(logits, batch), wrong.sum(1), batch.counted()))]))
    return torch.cat(rows, dim=1).cpu()[:, order.argsort()]


def monte_carlo(task: Task, examples: int, encodings: int, decodings: int) -> dict[str, Any]:
    """Exact reconstruction as in Kusner et al. 2017: draw codes of each example, draw strings of each code."""
    model, corpus, indices = task.model, task.corpus, task.indices[:examples]
    exact = torch.zeros(2, dtype=torch.int64, device=corpus.device)  # without and with the length budget
    with eval_mode(model, task.seed) as device:
        size = min(len(indices), batch_size(corpus.length))
        most = max(1, DECODINGS // (size * corpus.length))
        for part in torch.split(indices, size):
            batch = corpus.batch(task.split, part.to(device))
            level = model.encode(batch, noise=False)[0]
            for _ in range(encodings):
                z = gaussians.sample(level.mean, level.logvar)
                for start in range(0, decodings, most):
                    draws = min(most, decodings - start)
                    noise = model.pushdown.noise(draws * len(part)).view(draws, len(part), corpus.length, -1)
                    made = model.derive(z, noise, FREE, DRAWN)
                    exact += torch.stack([(one.ids == batch.x).all(dim=-1).sum() for one in made])
    free, budgeted = (count / (len(indices) * encodings * decodings) for count in exact.tolist())
    sizes = {"examples": len(indices), "encodings": encodings, "decodings": decodings}
    return {**sizes, "exact_share": free, "budget_exact_share": budgeted}


def derive(
    model: Any, codes: Tensor, *ways: tuple[bool, bool], seed: int = 0, temperature: float = 1.0, beam: int = 0
) -> list[tuple[Examples, Examples]]:
    """Derivations (n, T) of codes (n, D) and which are complete, for `ways` that share the noise: drawn, in budget.

    `temperature`: of the rules that are drawn. `beam`: the width of a beam search, which replaces the argmax.
    """
    parts: list[list[Tensor]] = []
    size = batch_size(model.structure.length)
    if model.autoregressive and codes.is_cuda:
        size *= CUDA_ROWS
    with eval_mode(model, mix(seed, "rules")):  # not the stream of the seed, which has drawn the latents
        for part in torch.split(codes, max(1, size // max(1, beam))):
            if beam:
                found = [model.beam(part, beam, budget) for _, budget in ways]
            else:
                found = model.derive(part, model.pushdown.noise(len(part)), *ways, temperature=temperature)
            parts.append([tensor for one in found for tensor in (one.ids.to(torch.int16), one.complete)])
        whole = [torch.cat(some).cpu().numpy() for some in zip(*parts, strict=True)]
    return list(zip(whole[::2], whole[1::2], strict=True))


def keys(ids: Examples) -> list[int]:
    """Hashes of derivations (n, T): a quarter of a million of them, of 277 rules each, would be 140 MB."""
    return [hash(row.tobytes()) for row in ids.astype(np.int16)]


def meanings(texts: Sequence[str | None], validator: Validator | None) -> list[str | None]:
    """A name that strings of the same meaning share, None for an invalid or incomplete string."""
    if validator is None:
        return list(texts)
    names = {text: validator.canonical(text) for text in set(texts) if text is not None and validator.is_valid(text)}
    return [None if text is None else names.get(text) for text in texts]


def score_strings(
    ids: Examples, complete: Examples, best: Examples, known: Set[int], rules: Rules, validator: Validator | None
) -> dict[str, Any]:
    """Scores of complete derivations (n, T) drawn with the budget, and of the argmax ones, `best`, of the same codes.

    `complete`: (n,) whether one drawn without the budget is complete, which then is the same. `known`: training keys.
    """
    texts = texts_of(rules, ids)
    names = meanings(texts, validator)
    valid, shares = np.array([name is not None for name in names]), dict[int, float]()
    for count in (len(ids), 1000, 10_000):
        counted = [name for name in names[:count] if name is not None]
        shares[count] = len(set(counted)) / max(len(counted), 1)
    places = {name: place for place, name in reversed(list(enumerate(names))) if name is not None}  # the first of each
    distinct = list(places.values())[::-1]
    novel = [key not in known for key in keys(ids[distinct])]
    share = valid_best = diversity = both = None
    if validator is not None:
        share, both = float(valid.mean()), float((complete & valid).mean())
        valid_best = float(np.mean([validator.is_valid(text) for text in texts_of(rules, best)]))
        if validator.diversity is not None and len(distinct) > 1:
            diversity = validator.diversity([texts[place] for place in distinct[:DIVERSITY]])
    return {
        "samples": len(ids),
        "complete_share": float(complete.mean()),
        "valid_share": share,
        "complete_valid_share": both,
        "distinct_share": shares[len(ids)],
        "distinct_1k_share": None if len(ids) < 1000 else shares[1000],
        "distinct_10k_share": None if len(ids) < 10_000 else shares[10_000],
        "novel_share": float(np.mean(novel)) if novel else None,
        "diversity": diversity,
        "likeliest_valid_share": valid_best,
        "likeliest_distinct_share": len(set(keys(best))) / len(best),
        "mean_rules": float((ids != rules.padding).sum(axis=1).mean()),
    }
