"""What `arcvae evaluate` shows and writes of a model of derivations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from arcvae_cli.commands.tables import WIDTH, add_weighted, level_lines, number, percent, table, verdict_parts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.data.corpus import DerivationCorpus
    from arcvae_cli.evaluation.strings import Drawn, Evaluation, PriorName, Report
    from arcvae_cli.models.grammar import GrammarVAE

LISTED = 16  # pairs in a text file
PRIORS: dict[PriorName, str] = {"standard": "N(0, I)", "aggregate": "fitted"}


def write_pairs(folder: Path, model: GrammarVAE, corpus: DerivationCorpus, evaluation: Evaluation) -> None:
    """The first pairs of the random order, and those with the most wrong rules, as text."""
    import numpy as np
    import torch

    from arcvae_cli.evaluation.strings import reconstruct
    from arcvae_cli.recorders.strings import Writer, pair_lines

    writer = Writer(model.structure.rules)
    worst = evaluation.indices[np.argsort(-evaluation.errors, kind="stable")]
    for name, chosen in (("reconstructions.txt", evaluation.indices[:LISTED]), ("errors.txt", worst[:LISTED])):
        originals = corpus.ids(evaluation.report.split)[torch.from_numpy(chosen).to(corpus.device)]
        pairs = writer.pairs(originals.cpu().numpy(), reconstruct(model, originals))
        (folder / name).write_text("".join(f"{line}\n" for line in pair_lines(pairs)), encoding="utf-8")


def tables(result: Report, loaded: Loaded) -> Iterator[RenderableType]:
    """Everything measured, in 80 columns, the verdict last."""
    from rich.text import Text

    from arcvae_cli.render import kl_bars

    yield Text(
        f"{loaded.path.name} of epoch {loaded.epoch}, {result.corpus} {result.split}, "
        f"{result.reconstruction.examples:,} derivations, seed {result.seed}",
        style="bold",
    )
    yield _reconstruction_table(result)
    for line in _drawn_lines(result):
        yield Text(line)
    yield _nats_table(result)
    if result.posterior_noise < 1.0:
        yield Text(
            f"posterior_noise = {result.posterior_noise:g}: the objective's KL is {result.trained_kl_nats:.2f} nats, "
            f"and {result.elbo.kl_nats:.2f} that of the\ndensity that codes are really drawn from, which counts."
        )
    objective = loaded.settings.objective
    for name, level in result.levels.items():
        floor = 0.0 if objective.free_bits_mode == "total" else objective.floor(name)  # no dimension has one then
        yield Text()
        yield from kl_bars(name, level.kl_nats, floor, WIDTH)
    yield Text()
    for line in _code_lines(result):
        yield Text(line)
    if result.prior_samples is not None:
        yield _sample_table(result, result.prior_samples)
        yield Text(
            "fitted: the Gaussian of the training codes (--prior aggregate). Rules are drawn,\n"
            "and unless it says otherwise with the length budget: every string is complete."
        )
        if result.judged is None:
            yield Text(_nobody_can_tell(loaded))
    yield from verdict_parts(result.verdict)


def _nobody_can_tell(loaded: Loaded) -> str:
    """Why nothing is known of what the strings mean."""
    from arcvae_cli.evaluation.validity import NO_RDKIT, is_smiles

    if loaded.grammar is not None and is_smiles(loaded.grammar):
        return NO_RDKIT
    return "What strings of this grammar mean, and whether they do, nobody can tell here."


def _reconstruction_table(result: Report) -> Table:
    found = result.reconstruction
    rows = table("Reconstruction", "", "model", "rule frequencies")
    mean, drawn, plain = found.posterior_mean, found.posterior_sample, found.frequencies
    rows.add_row("rules", percent(mean.token_accuracy), percent(plain.token_accuracy))
    rows.add_row("exact derivations", percent(mean.exact_share), percent(plain.exact_share))
    rows.add_row("rules, code drawn", percent(drawn.token_accuracy), "")
    rows.add_row("exact derivations, code drawn", percent(drawn.exact_share), "")
    share = f"{percent(found.expected_exact_share)} +- {100 * found.expected_error:.2f}"
    rows.add_row("  and rules too: mean p(x|z)", share, percent(plain.expected_exact_share))
    if (counted := found.monte_carlo) is not None:
        rows.add_row("  the same, counted", percent(counted.exact_share), "")
        rows.add_row("  counted, with the length budget", percent(counted.budget_exact_share), "")
    if found.canonical_share is not None:
        rows.add_row("the same molecule", percent(found.canonical_share), "")
    return rows


def _drawn_lines(result: Report) -> Iterator[str]:
    """Of how many codes and strings the shares of drawn ones are."""
    found = result.reconstruction
    codes = "1 code" if found.encodings == 1 else f"{found.encodings} codes"
    yield f"p(x|z): {codes} of each of {found.expected_examples:,} derivations; what drawing strings estimates."
    if (counted := found.monte_carlo) is not None:
        yield (
            f"Counted: {counted.decodings} strings of each of {counted.encodings} codes of each of "
            f"{counted.examples:,} derivations."
        )


def _nats_table(result: Report) -> Table:
    elbo, plain = result.elbo, result.reconstruction.frequencies
    rows = table("Likelihood (cross-entropy, beta 1)", "", "nats a derivation", "bits a rule")
    rows.add_row("reconstruction", number(elbo.reconstruction_nats), f"{elbo.reconstruction_bits:.4f}")
    rows.add_row("KL", number(elbo.kl_nats), f"{elbo.kl_bits:.4f}")
    rows.add_row("-ELBO", f"{number(-elbo.elbo_nats)} +- {result.elbo_error:.2f}", f"{-elbo.elbo_bits:.4f}")
    if result.importance_weighted is not None:
        add_weighted(rows, result.importance_weighted, "derivations")
    rows.add_row("rule frequencies, without any code", number(plain.nll_nats), f"{plain.nll_bits:.4f}")
    if result.entropy_nats is not None:
        bits = result.entropy_nats * elbo.kl_bits / elbo.kl_nats if elbo.kl_nats else 0.0
        rows.add_row("entropy of the corpus, least on unseen", number(result.entropy_nats), f"{bits:.4f}")
    return rows


def _code_lines(result: Report) -> Iterator[str]:
    yield from level_lines(result.levels)
    if (shuffled := result.shuffled_codes) is not None:
        right = f"{shuffled.reconstruction_nats:.1f} nats, {shuffled.accuracy:.1%} of the rules"
        wrong = f"{shuffled.shuffled_reconstruction_nats:.1f} nats, {shuffled.shuffled_accuracy:.1%}"
        yield f"with the right codes: reconstruction {right}"
        yield f"with codes of other derivations: {wrong}"
    if (path := result.interpolation) is not None:
        yield (
            f"{path.pairs} paths of {path.steps} codes: {path.distinct:.1f} different strings; {path.mean_step:.1f} "
            f"rules change a step,\n{path.largest_step:.1f} in the largest; ends {path.distance:.1f} apart"
        )
        if path.valid_share is not None:
            all_of_them = f"all of them on {path.valid_paths:.0%} of the paths"
            yield f"{path.valid_share:.1%} of their strings are {result.judged}, {all_of_them}"


def _sample_table(result: Report, drawn: dict[PriorName, Drawn]) -> Table:
    rows = table("New strings", "", *(PRIORS[name] for name in drawn))
    kinds = drawn.values()
    judged = result.judged
    lines: list[tuple[str, str]] = [("complete without the length budget", "complete_share")]
    if judged is not None:
        lines += [(judged, "valid_share"), (f"{judged}, without the budget", "complete_valid_share")]
    lines += [("distinct" if judged is None else f"distinct, of the {judged}", "distinct_share")]
    for count, field in (("1,000", "distinct_1k_share"), ("10,000", "distinct_10k_share")):
        if any(getattr(kind, field) is not None and kind.samples > 1000 for kind in kinds):
            lines.append((f"  among the first {count}", field))
    lines.append(("of these no training string", "novel_share"))
    if judged is not None:
        lines.append((f"{judged}, the likeliest string of each code", "likeliest_valid_share"))
    lines.append(("distinct, the likeliest string of each code", "likeliest_distinct_share"))
    for name, field in lines:
        rows.add_row(name, *(percent(getattr(kind, field)) for kind in kinds))
    if any(kind.diversity is not None for kind in kinds):
        rows.add_row("internal diversity", *(number(kind.diversity) for kind in kinds))
    rows.add_row("rules of a string", *(f"{kind.mean_rules:.1f}" for kind in kinds))
    rows.add_row("strings", *(f"{kind.samples:,}" for kind in kinds))
    return rows
