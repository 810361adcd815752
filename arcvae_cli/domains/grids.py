"""The domain of grids: 16x16 cells of ten colours, beside an all-black grid and PCA."""
# ruff: noqa: ARG002 - not every domain needs every argument

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli import conditions
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
    title_of,
    write_text,
)
from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.accuracy import ASKED, JUDGED, condition_accuracy
from arcvae_cli.evaluation.baselines import COLOURS, PCABaseline
from arcvae_cli.evaluation.information import (
    BATCH_SIZE,
    InformationTally,
    batches,
    choose,
    eval_mode,
    nats,
    posterior_means,
    samples_of,
    to_float64,
)
from arcvae_cli.evaluation.paths import decoded_paths, smoothness
from arcvae_cli.evaluation.priors import argmax_decode, draw_prior
from arcvae_cli.evaluation.samples import blank_share, score_samples
from arcvae_cli.evaluation.verdict import Setup, Target
from arcvae_cli.files import exists, expanded
from arcvae_cli.models.base import VAE, Batch
from arcvae_cli.objective import ACTIVE_KL

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import Corpus, GridCorpus
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.grammar import Rules
    from arcvae_cli.records import Pictures

Grids = NDArray[np.uint8]

NEAR = 5
"""Wrong cells up to which a grid counts as nearly correct."""

PAIRS, STEPS = 256, 9
SAMPLES, CONDITION_SAMPLES = 1500, 500  # for each condition: a share of 0.8 is known to 0.02
QUICK_EXAMPLES, QUICK_SAMPLES, QUICK_CONDITION_SAMPLES = 2000, 500, 100

PIXEL_TARGET, NON_BLACK_TARGET = 0.90, 0.30
BLANK_MARGIN = 0.10
"""Share of blank samples allowed beyond the data's own; real grids are never blank."""

SPECK_MARGIN = 0.25
"""Speck share allowed beyond the data's own: real ARC grids have 0.25, 2 % noise makes it 0.32, all noise 0.91."""

ACCURACY_TARGET, COUNTED_TARGET = 0.80, 0.50
"""Of samples under a condition: the share that satisfies it among those neither blank nor repeated; the share of
those. A model that always draws one grid may satisfy a condition, and is no use."""

PICTURED = 16  # pairs in a picture
SHEET = 256  # samples in a picture; the files hold all
MAPS = 7  # grids beside the mean of all in a picture of KL maps
ROWS = COLUMNS = 8  # of samples that share the latents of a level

SCORES = (
    ("pixel accuracy", "pixel_accuracy", ".2%"),
    ("non-black accuracy", "non_black_accuracy", ".2%"),
    ("non-black IoU", "non_black_iou", ".2%"),
    ("inside the rectangle", "inside_accuracy", ".2%"),
    ("exact grids", "exact_share", ".2%"),
    ("grids within 5 cells", "near_share", ".2%"),
    ("all-black reconstructions", "blank_share", ".2%"),
)
SAMPLE_SCORES = (
    ("density", "density", ".2f"),
    ("coverage", "coverage", ".2f"),
    ("object-count distance", "object_distance", ".2f"),
    ("speck share", "speck_share", ".2%"),
    ("non-black", "non_black_share", ".2%"),
    ("blank", "blank_share", ".2%"),
    ("distinct", "distinct_share", ".2%"),
    ("no training grid", "novel_share", ".2%"),
    ("grids", "samples", ","),
)
CONDITION_SCORES = (
    ("counted_obeying", ".1f"),
    ("unaided_obeying", ".1f"),
    ("baseline_counted_obeying", ".1f"),
    ("obeying", ".1f"),
    ("data", ".1f"),
)


class GridDomain(Domain):
    """Grids."""

    kind, noun, noun_singular, unit, array, dtype = "grids", "grids", "grid", "cell", "grids", np.uint8
    formats = ("png", "npz", "json")
    flags = frozenset[str]()
    quick_shuffle = False

    # -------------------------------------------------------------------------------------------- training

    def validation_batch(self, corpus: Corpus) -> int:
        return 1000

    def baseline(self, corpus: Any) -> dict[str, float | None]:
        black = (corpus.grids("val") == corpus.background).double().mean().item()
        return {"blank": black, "blank_nats": None, "entropy": None}

    def write_pictures(self, folder: Path, epoch: int, pictures: Pictures, rules: Rules | None) -> None:
        from arcvae_cli import render

        originals = pictures.originals
        render.save_reconstructions(folder / f"reconstructions_epoch_{epoch}.png", originals, pictures.reconstructions)
        render.save_grids(folder / f"samples_epoch_{epoch}.png", pictures.samples)
        if pictures.maps:
            render.save_kl_maps(folder / f"kl_map_epoch_{epoch}.png", originals, pictures.maps)

    # -------------------------------------------------------------------------------------------- evaluation

    def limits(self, task: Task) -> tuple[int | None, int | None]:
        return QUICK_EXAMPLES if task.quick else None, None

    def pass_size(self, corpus: Corpus) -> int:
        return BATCH_SIZE

    def encode(self, task: Task) -> Encoded:
        information, tally = InformationTally(), GridTally()
        with eval_mode(task.model, task.seed) as device:
            for batch, shapes in _batches(task, device):
                output = task.model(batch)
                information.update(batch, output)
                tally.update(output.logits.argmax(dim=1), batch.x, shapes)
        levels = task.model.level_shapes
        if len(levels) == 1:
            means = {name: code.view(-1, *levels[name]) for name, code in information.codes().items()}
        else:  # the posterior below the mean of a level is not the one below its sample
            means = posterior_means(task.model, task.corpus, task.split, task.indices)
        return Encoded(information, means, tally.scores())

    def reconstruct(self, task: Task, encoded: Encoded, levels: Report, few: Tensor) -> Reconstructed:
        training = _training(task)
        units = sum(level["units"] for level in levels.values())
        task.tell(f"PCA with {units} components")
        baseline = PCABaseline.fit(training, units, task.seed)
        at_mean, black, pca = GridTally(), GridTally(), GridTally()
        costs = []
        with eval_mode(task.model, 0) as device:
            start = 0
            for batch, shapes in _batches(task, device):
                stop = start + len(batch.x)
                logits = task.model.decode({name: value[start:stop] for name, value in encoded.means.items()})
                at_mean.update(logits.argmax(dim=1), batch.x, shapes)
                costs.append(nats(logits, batch))
                black.update(torch.zeros_like(batch.x), batch.x, shapes)
                pca.update(baseline.decode(batch.x), batch.x, shapes)
                start = stop
        scores, blacks, principal = at_mean.scores(), black.scores(), pca.scores()
        report = {
            "examples": len(task.indices),
            "posterior_mean": scores,
            "posterior_sample": encoded.at_sample,
            "all_black": blacks,
            "pca": principal,
            "pca_components": baseline.components,
            "pca_training_grids": baseline.training_grids,
            "skill": {
                name: skill(*(kind[f"{name}_accuracy"] for kind in (scores, blacks, principal)))
                for name in ("pixel", "non_black")
            },
        }
        own = to_float64(torch.cat(costs)).mean().item(), scores["pixel_accuracy"]
        return Reconstructed(report, at_mean.errors.numpy(), own)

    def paths(self, task: Task) -> dict[str, Any]:
        return smoothness(decoded_paths(task.model, task.corpus, task.split, task.indices[: 2 * PAIRS], STEPS))

    def samples(self, task: Task) -> dict[str, Any]:
        """Samples, and as the best that is possible training grids, against grids of the split."""
        task.tell("samples from the prior")
        training, count = _training(task), QUICK_SAMPLES if task.quick else SAMPLES
        chosen = task.indices[:count].to(task.corpus.device)
        reference = task.corpus.grids(task.split)[chosen].cpu().numpy()
        drawn = training[np.random.RandomState(task.seed).permutation(len(training))[:count]]
        accuracy = None
        if task.model.attributes:
            task.tell("samples under conditions")
            asked, each = (JUDGED, QUICK_CONDITION_SAMPLES) if task.quick else (ASKED, CONDITION_SAMPLES)
            accuracy = condition_accuracy(task.model, training, each, task.seed, asked)
        return {
            "prior_samples": score_samples(draw_samples(task.model, count, task.seed), reference, training),
            "training_grids": score_samples(drawn, reference, training),
            "adherence": accuracy,
        }

    def targets(self, report: Report, setup: Setup) -> Iterator[Target]:
        found, drawn = report["reconstruction"], report["prior_samples"]
        kls = {level: values["kl_nats"] for level, values in report["levels"].items()}
        pixel, non_black = (found["posterior_mean"][f"{name}_accuracy"] for name in ("pixel", "non_black"))
        black, pca = (found[name]["pixel_accuracy"] for name in ("all_black", "pca"))
        best, which = max(black, pca), "PCA" if pca > black else "all black"
        bad = [level for level, kl in kls.items() if _dead(kl) or 2 * setup.held(level, kl) > len(kl)]
        revive = setup.more_kl(bad[0]) if bad else None
        closer, larger, decoder = setup.raise_beta(), _enlarge(setup), _change_decoder(setup)
        accuracy = revive or larger
        yield Target("pixel accuracy", pixel, ">=", PIXEL_TARGET, f"{PIXEL_TARGET:.2f}", accuracy)
        more_data = revive or f"train on more data; {larger}"
        yield Target("pixel accuracy, baselines", pixel, ">", best, f"{best:.4f} ({which})", more_data)
        limit = NON_BLACK_TARGET
        yield Target("non-black accuracy", non_black, ">", limit, f"{limit:.2f}", revive or decoder)
        for level, kl in kls.items():
            yield from _level_targets(level, kl, setup, f", {level}" if len(kls) > 1 else "")
        fewer = revive or (decoder if non_black <= NON_BLACK_TARGET else closer)
        for name, key, margin, remedy in (
            ("blank samples", "blank_share", BLANK_MARGIN, fewer),
            ("specks among samples", "speck_share", SPECK_MARGIN, revive or closer),
        ):
            reference = drawn[f"reference_{key}"]
            limit = reference + margin
            yield Target(name, drawn[key], "<=", limit, f"{limit:.2f} (data {reference:.2f})", remedy)
        if report["adherence"] is not None:
            yield from _accuracy_targets(report["adherence"], f"train longer; {closer}")

    def summary(self, report: Report, setup: Setup) -> str:
        found = report["reconstruction"]
        blank, non_black = (found["posterior_mean"][name] for name in ("blank_share", "non_black_accuracy"))
        correct = f"{non_black:.0%} of the non-black cells are right"
        pictures = correct if blank < 0.5 else f"{blank:.0%} of the reconstructions are all black"
        if blank == 1.0:
            pictures = "every reconstruction is the all-black picture"
        kls = {level: values["kl_nats"] for level, values in report["levels"].items()}
        several = len(kls) > 1
        dead, sizes = ({level: measure(kl) for level, kl in kls.items()} for measure in (_dead, len))
        if any(dead.values()):
            counts = [f"{dead[name]} of {size}{f' {name}' if several else ''}" for name, size in sizes.items()]
            which = "posterior" if dead == sizes else "partial"
            return f"{which} collapse: {' and '.join(counts)} dimensions carry under {ACTIVE_KL:g} nats; {pictures}"
        for level, kl in kls.items():
            if 2 * (held := setup.held(level, kl)) > len(kl):
                where = "together lie" if setup.free_bits_mode == "total" else "lie"
                floor = f"the floor of {setup.free_bits[level]:g} nats and carry nothing beyond it"
                of = f" of the {level} level" if several else ""
                lie = f"{held} of {len(kl)} dimensions {where} at {floor}"
                return f"collapse{of}, held up by free bits alone: {lie}; {pictures}"
        each = ", ".join(f"{level} {sum(kl):.1f}" for level, kl in kls.items())
        totals = f"{sum(map(sum, kls.values())):.1f} nats{f' ({each})' if several else ''}"
        alive = f"all {sum(sizes.values())} dimensions carry {totals}"
        if non_black <= NON_BLACK_TARGET:
            return f"the code is alive, the decoder is not: {alive}, but {pictures}"
        against = f"PCA gets {found['pca']['non_black_accuracy']:.0%}"
        return f"the code is alive: {alive}; {correct}, {against}; {{targets}}"

    # -------------------------------------------------------------------------------------------- report

    def reconstruction_sheets(self, report: Report) -> Iterator[Sheet | str]:
        found = report["reconstruction"]
        pca = f"PCA {found['pca_components']}"
        rows = table(SCORES, [found[name] for name in ("posterior_mean", "all_black", "pca")])
        skills = [found["skill"]["pixel"], found["skill"]["non_black"]] + [None] * len(rows)
        with_skill = [(*row, "" if gain is None else f"{gain:+.3f}") for row, gain in zip(rows, skills, strict=False)]
        drawn = [(f"{name}, code drawn", key, form) for name, key, form in SCORES[:2]]
        with_skill += [(*row, "", "", "") for row in table(drawn, [found["posterior_sample"]])]
        yield Sheet("Reconstruction", ("", "model", "all black", pca, "skill"), with_skill)
        yield (
            f"PCA keeps {found['pca_components']} real numbers per grid, whose information is unbounded; "
            f"the model's code has {report['elbo']['kl_nats']:.1f} nats."
        )
        colours = [
            (name, *("-" if share is None else f"{100 * share:.1f}" for share in found[key]["colour_accuracy"]))
            for name, key in (("model", "posterior_mean"), (pca, "pca"))
        ]
        yield Sheet("Accuracy by true colour, %", ("", *map(str, range(COLOURS))), colours)

    def path_lines(self, report: Report) -> Iterator[str]:
        path = report["interpolation"]
        share = path["largest_step_share"]
        largest = "" if share is None else f" ({share:.0%} of the way)"
        yield (
            f"{path['pairs']} paths of {path['steps']} grids: {path['mean_step']:.1f} cells change per step, "
            f"{path['largest_step']:.1f} in the largest{largest}; ends {path['distance']:.1f} apart"
        )

    def sample_sheets(self, report: Report, loaded: Loaded) -> Iterator[Sheet | str]:
        drawn, accuracy = report["prior_samples"], report["adherence"]
        split = {key.removeprefix("reference_"): value for key, value in drawn.items() if key.startswith("reference_")}
        columns = [drawn, report["training_grids"], {**split, "samples": drawn["reference"]}]
        title = f"Prior samples against {drawn['reference']} grids of the split"
        yield Sheet(title, ("", "samples", "training", "split"), table(SAMPLE_SCORES, columns))
        if accuracy is None:
            return
        rows = [
            (row["asked"], *("-" if row[key] is None else f"{100 * row[key]:{form}}" for key, form in CONDITION_SCORES))
            for row in accuracy["rows"]
        ]
        rows = [
            (*cells[:4], str(row["counted"]), *cells[4:]) for cells, row in zip(rows, accuracy["rows"], strict=True)
        ]
        title = f"Samples that satisfy their condition, {accuracy['samples']} each, %"
        yield Sheet(title, ("", "asked", "unaided", "unasked", "of", "all", "data"), rows)
        yield (
            "asked, unaided, unasked: of the samples that are neither blank nor repeated (so\n"
            f"many: of; unasked {accuracy['baseline_counted']}); all: of all samples under the condition. unaided:\n"
            "the argmax of each cell, without the constraints on extent and colours.\n"
            "Symmetry is built into the decoder."
        )

    def code_values(self, task: Task, evaluation: Evaluation, count: int) -> tuple[NDArray[Any], str]:
        grids = task.corpus.grids(task.split).cpu().numpy()[evaluation.indices[:count]]
        return (grids > 0).mean(axis=(1, 2)), "share of non-black cells"

    def draw(self, folder: Path, loaded: Loaded, task: Task, evaluation: Evaluation) -> None:
        from arcvae_cli import render

        levels, where = list(loaded.model.level_shapes), f"{task.corpus.name} {task.split}"
        if len(levels) > 1:
            below = " and ".join(levels[1:])
            title = f"rows share a {levels[0]} latent, columns the noise of {below}; {title_of(loaded)}"
            sheet = draw_levels(loaded.model, ROWS, COLUMNS, task.seed)
            render.save_level_samples(folder / "levels.png", sheet, COLUMNS, levels[0], below, title)
        if task.quick:
            return
        grids, shapes = task.corpus.grids(task.split).cpu().numpy(), task.corpus.shapes(task.split)
        worst = evaluation.indices[np.argsort(-evaluation.errors, kind="stable")]
        for name, order, which in (
            ("reconstructions.png", evaluation.indices, "drawn at random"),
            ("errors.png", worst, "with the most wrong cells"),
        ):
            chosen = order[:PICTURED]
            rectangles = None if shapes is None else shapes.cpu().numpy()[chosen].astype(np.uint8)
            title = f"{len(chosen)} of {len(worst):,} grids {which}, {where}"
            again = reconstruct(loaded.model, grids[chosen])
            render.save_reconstructions(folder / name, grids[chosen], again, rectangles, title)
        if evaluation.maps:
            maps = {name: cells[:MAPS] for name, cells in evaluation.maps.items()}
            means = {name: cells.mean(axis=0) for name, cells in evaluation.maps.items()}
            some = grids[evaluation.indices[:MAPS]]
            render.save_kl_maps(folder / "kl_maps.png", some, maps, f"KL of each cell, {where}", means=means)

    # -------------------------------------------------------------------------------------------- samples, paths

    def posterior_samples(
        self, model: VAE, corpus: Any, split: str, seed: int, given: Mapping[str, int], limit: int
    ) -> dict[str, Tensor]:
        chosen = choose(corpus, split, None, seed)
        if given:
            satisfied = conditions.obeys(conditions.attributes(corpus.grids(split).cpu().numpy()), given)
            chosen = chosen[torch.from_numpy(satisfied)[chosen]]
        parts = [{name: torch.empty(0, *shape) for name, shape in model.level_shapes.items()}]
        with eval_mode(model, seed) as device:
            for batch in batches(corpus, split, chosen[:limit], device):
                asked = torch.from_numpy(conditions.encode(given, len(batch.x))).to(device) if given else None
                parts.append(samples_of(model.encode(Batch(batch.x, batch.valid, asked))))
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in model.level_shapes}

    def sample(self, draw: Draw) -> Samples:
        return GridSamples(draw)

    def read_end(
        self, text: str, flag: str, loaded: Loaded, split: str, note: Callable[[str], None]
    ) -> tuple[str, Any]:
        """A grid of an ARC JSON file, FILE or FILE:NUMBER."""
        from arcvae_cli.data.files import read_grids

        name, colon, number = text.rpartition(":")
        if not (colon and number.isdigit()) or exists(Path(text)):
            name, number = text, "0"
        file = expanded(Path(name))
        if not exists(file):
            raise InputError(
                f"{flag} {text}: no such file", f"give the index of a grid in the {split} split, or a file of grids"
            )
        arrays = read_grids(file)
        for line in arrays.notes:
            note(line)
        if int(number) >= len(arrays.grids):
            raise InputError(f"{flag} {text}: the file has grids 0 to {len(arrays.grids) - 1}")
        return f"{file.name}:{number}", arrays.grids[int(number)]

    def batch(self, model: Any, x: Tensor) -> Batch:
        return Batch(x)

    def walk(self, loaded: Loaded, steps: Grids, originals: Grids, note: Callable[[str], None]) -> Walk:
        return GridWalk(loaded, steps, originals)


# ------------------------------------------------------------------------------------------------ scores


class GridTally:
    """Counts over pairs of grids, from which all scores follow; on their device until they are asked for."""

    def __init__(self) -> None:
        self._confusions: list[Tensor] = []
        self._errors: list[Tensor] = []
        self._blank: list[Tensor] = []
        self._inside: list[Tensor] = []

    def update(self, predicted: Tensor, truth: Tensor, shapes: Tensor | None) -> None:
        """Add (B, H, W) int64 pairs, with the height and width (B, 2) of each grid within its canvas, if known."""
        pairs = (truth * COLOURS + predicted).flatten()
        counts = torch.zeros(COLOURS**2, dtype=torch.int64, device=pairs.device)  # bincount waits for a CUDA device
        self._confusions.append(counts.scatter_add_(0, pairs, torch.ones_like(pairs)))
        right = predicted == truth
        self._errors.append((~right).flatten(1).sum(dim=1))
        self._blank.append((predicted == 0).flatten(1).all(dim=1).sum())
        if shapes is not None:
            rows, columns = (torch.arange(side, device=truth.device) for side in truth.shape[1:])
            inside = (rows < shapes[:, :1])[:, :, None] & (columns < shapes[:, 1:])[:, None]
            self._inside.append(torch.stack([(right & inside).sum(), inside.sum()]))

    @property
    def errors(self) -> Tensor:
        """(n,) wrong cells of each grid, on the CPU."""
        return torch.cat(self._errors).cpu()

    def scores(self) -> dict[str, Any]:
        """Shares of cells or of grids; InputError where no original has a non-black cell.

        `non_black_accuracy`: of cells whose true colour is not 0. `non_black_iou`: cells right and not black over cells
        not black in the original or the reconstruction. `inside_accuracy`: of cells within each grid's rectangle, None
        where the canvas is the grid. `colour_accuracy`: by true colour, None for one that does not occur.
        `blank_share`: reconstructions without a non-black cell.
        """
        confusion = torch.stack(self._confusions).sum(dim=0).cpu().double().view(COLOURS, COLOURS)
        errors = self.errors
        hit_inside, all_inside = torch.stack(self._inside).sum(dim=0).tolist() if self._inside else (0, 0)
        by_colour = confusion.diagonal() / confusion.sum(dim=1)
        coloured = confusion[1:].sum().item()
        if coloured == 0:
            raise InputError("every grid of the split is black", "evaluate on a corpus with something to reconstruct")
        hit = confusion.diagonal()[1:].sum().item()
        return {
            "pixel_accuracy": (confusion.trace() / confusion.sum()).item(),
            "non_black_accuracy": hit / coloured,
            "non_black_iou": hit / (confusion.sum() - confusion[0, 0]).item(),
            "inside_accuracy": hit_inside / all_inside if self._inside else None,
            "exact_share": (errors == 0).double().mean().item(),
            "near_share": (errors <= NEAR).double().mean().item(),
            "blank_share": torch.stack(self._blank).sum().item() / len(errors),
            "colour_accuracy": [None if math.isnan(share) else share for share in by_colour.tolist()],
        }


def _batches(task: Task, device: torch.device) -> Iterator[tuple[Batch, Tensor | None]]:
    """Batches, each with the heights and widths (B, 2) of its grids where the corpus knows them."""
    corpus: GridCorpus = task.corpus
    shapes = corpus.shapes(task.split)
    places = torch.split(task.indices.to(device), BATCH_SIZE)
    for place, batch in zip(places, batches(corpus, task.split, task.indices, device), strict=True):
        yield batch, None if shapes is None else shapes[place]


def _training(task: Task) -> Grids:
    grids: Grids = task.trained.grids("train").cpu().numpy()
    return grids


def skill(accuracy: float, *baselines: float) -> float | None:
    """(accuracy - best baseline) / (1 - best baseline), or None where a baseline leaves nothing to gain."""
    best = max(baselines)
    return (accuracy - best) / (1.0 - best) if best < 1.0 else None


def reconstruct(model: VAE, grids: Grids) -> Grids:
    """Reconstructions of (n, 16, 16) grids at the posterior mean, the argmax in each cell."""
    with eval_mode(model, 0) as device:
        parts = torch.split(torch.from_numpy(grids).to(device), BATCH_SIZE)
        drawn = [model(Batch(part.long()), noise=False).logits.argmax(dim=1).to(torch.uint8) for part in parts]
    return torch.cat(drawn).cpu().numpy()


# ------------------------------------------------------------------------------------------------ targets


def _dead(kl: Sequence[float]) -> int:
    return sum(value <= ACTIVE_KL for value in kl)


def _level_targets(level: str, kl: Sequence[float], setup: Setup, where: str) -> Iterator[Target]:
    """Targets of the KL of one level; `where` names it if there are several."""
    smallest, remedy = f"smallest KL{where or ' of a dimension'}", setup.more_kl(level)
    yield Target(smallest, min(kl), ">", ACTIVE_KL, f"{ACTIVE_KL:.2f} nats", remedy)
    if setup.free_bits.get(level, 0.0) > 0:
        names = f"KL at the free-bits floor{where}", f"total KL at the free-bits floor{where}"
        yield setup.floor_target(level, kl, names)
        name = f"held by free bits alone{where}" if where else "dimensions held by free bits alone"
        half = len(kl) // 2
        yield Target(name, setup.held(level, kl), "<=", half, f"{half} of {len(kl)}", remedy)


def _accuracy_targets(accuracy: Report, remedy: str) -> Iterator[Target]:
    """Targets of samples under conditions: the worst of each kind counts."""
    judged = [row for row in accuracy["rows"] if row["asked"] in JUDGED]
    for kind in ("colours", "symmetry"):
        shares = {row["asked"]: row["counted_obeying"] or 0.0 for row in judged if row["asked"].startswith(f"{kind}=")}
        if shares:
            worst, share = min(shares.items(), key=lambda item: item[1])
            text = f"{ACCURACY_TARGET:.2f} (least: {worst})"
            yield Target(f"samples obey {kind}", share, ">", ACCURACY_TARGET, text, remedy)
    if judged:
        least = min(judged, key=lambda row: row["counted"])
        share, text = least["counted"] / accuracy["samples"], f"{COUNTED_TARGET:.2f} (least: {least['asked']})"
        yield Target("of them not blank or repeated", share, ">=", COUNTED_TARGET, text, remedy)


def _enlarge(setup: Setup) -> str:
    if setup.local_channels is not None:
        lower = setup.lower_beta("local")
        return f"raise model.local_channels (it is {setup.local_channels}), train longer, or {lower}"
    body = "" if setup.strong_body else "model.body = residual; "
    if setup.latent_dim is not None and setup.latent_dim < 16:
        return f"{body}raise model.latent_dim to 12-16 (it is {setup.latent_dim}); train longer"
    return f"{body}train longer, or {setup.lower_beta(next(iter(setup.betas)))}"


def _change_decoder(setup: Setup) -> str:
    body = "" if setup.strong_body else "model.body = residual, "
    focal = "" if setup.elbo_scale is None else "objective.reconstruction = focal, "
    last = "or train longer" if body or focal else "train longer"
    return f"the code is alive and the decoder paints black: {body}{focal}{last}"


# ------------------------------------------------------------------------------------------------ samples, paths


class GridSamples(Samples):
    """The argmax grids (n, 16, 16) of latents."""

    def __init__(self, draw: Draw) -> None:
        self.draw, model = draw, draw.loaded.model
        self.grids = argmax_decode(model, draw.latents, draw.conditions).numpy().astype(np.uint8)
        count, distinct = len(self.grids), len({grid.tobytes() for grid in self.grids})
        self.facts: dict[str, Any] = {
            "conditions": draw.given,
            "adherence": self._satisfied(model) if draw.given else None,
            "blank_share": blank_share(self.grids),
            "distinct": distinct,
            "distinct_share": distinct / count,
            "non_black_share": float((self.grids > 0).mean()),
        }
        self.arrays: dict[str, Any] = {"grids": self.grids}
        if draw.conditions is not None:
            names = np.array(list(conditions.PLACE))
            self.arrays |= {"conditions": draw.conditions.cpu().numpy(), "condition_names": names}

    def _satisfied(self, model: VAE) -> dict[str, float]:
        """Grids that satisfy the conditions, and of as many drawn from the model's own prior without conditions."""
        baseline = draw_samples(model, len(self.grids), self.draw.seed, self.draw.temperature)
        ours, theirs = (
            int(conditions.obeys(conditions.attributes(some), self.draw.given).sum()) for some in (self.grids, baseline)
        )
        count = len(self.grids)
        shares = {"obeying_share": ours / count, "baseline_obeying": theirs, "baseline_share": theirs / count}
        return {"obeying": ours, **shares}

    def write(self, files: Mapping[str, Path], document: Mapping[str, Any]) -> None:
        from arcvae_cli import render

        draw, count = self.draw, len(self.grids)
        shown = f"{count} samples" if count <= SHEET else f"{SHEET} of {count} samples"
        title = ", ".join(filter(None, [shown, conditions.written(draw.given), draw.title, title_of(draw.loaded)]))
        render.save_grids(files["png"], self.grids[:SHEET], columns=8 if count <= 64 else 16, title=title)
        facts = {"conditions": draw.given, "temperature": draw.temperature, "seed": draw.seed, "prior": draw.prior}
        write_task(files["json"], self.grids, facts)

    def show(self, console: Console) -> None:
        from arcvae_cli.render import TerminalGrids

        capacity = TerminalGrids(self.grids).capacity(console.out, console.out.height - 4)
        console.result(TerminalGrids(self.grids[:capacity]))

    def summary(self) -> list[str]:
        facts, count, found = self.facts, len(self.grids), self.facts["adherence"]
        lines = [
            f"{count} samples, {self.draw.title}: {facts['blank_share']:.0%} blank, {facts['distinct']} distinct "
            f"({facts['distinct_share']:.0%}), {facts['non_black_share']:.1%} of their cells not black"
        ]
        if found is not None:
            lines.append(
                f"{conditions.written(self.draw.given)}: satisfied by {found['obeying']} of {count} "
                f"({found['obeying_share']:.0%}), without conditions by {found['baseline_obeying']} "
                f"({found['baseline_share']:.0%})"
            )
        return lines


class GridWalk(Walk):
    """A path of grids."""

    unit = "cells"

    def distance(self, one: Grids, other: Grids) -> int:
        return int((one != other).sum())

    def write(self, files: Mapping[str, Path], report: Mapping[str, Any], title: str) -> None:
        from arcvae_cli import render

        render.save_path(files["png"], self.steps, self.originals, title)
        write_task(files["json"], self.steps, report)

    def show(self, console: Console) -> None:
        from arcvae_cli.render import TerminalGrids, path_strip

        console.result(TerminalGrids(*path_strip(self.steps, self.originals)))


def draw_samples(model: VAE, count: int, seed: int, temperature: float = 1.0) -> Grids:
    """(count, 16, 16) draws from the prior, the argmax in each cell."""
    with eval_mode(model, seed):
        return argmax_decode(model, draw_prior(model, count, temperature)).to(torch.uint8).numpy()


def draw_levels(model: VAE, rows: int, columns: int, seed: int) -> Grids:
    """(rows * columns, 16, 16) draws from the prior: a row shares the noise of the top level, a column all the others'.

    What is shared below the top is standard normal noise and not the latent itself, whose prior depends on the top.
    """
    top = next(iter(model.level_shapes))
    with eval_mode(model, seed):
        rows_noise, columns_noise = model.noise(rows), model.noise(columns)
        noise = {
            name: rows_noise[name].repeat_interleave(columns, dim=0)
            if name == top
            else value.repeat(rows, *[1] * (value.dim() - 1))
            for name, value in columns_noise.items()
        }
        return argmax_decode(model, draw_prior(model, rows * columns, noise=noise)).to(torch.uint8).numpy()


def write_task(path: Path, grids: Grids, facts: Mapping[str, Any]) -> None:
    """Grids (N, H, W) as an ARC task without answers, without black rows and columns at the end, `facts` beside it."""
    task = {**facts, "train": [], "test": [{"input": _trimmed(grid).tolist()} for grid in grids]}
    write_text(path, json.dumps(task, allow_nan=False) + "\n")


def _trimmed(grid: Grids) -> Grids:
    """A grid cut to the rectangle from its top-left corner that holds all non-black cells, at least one cell."""
    rows, columns = (np.flatnonzero((grid > 0).any(axis=axis)) for axis in (1, 0))
    return grid[: rows[-1] + 1, : columns[-1] + 1] if len(rows) else grid[:1, :1]
