"""The domain of grids: 16x16 cells of ten colours, beside an all-black grid and PCA."""
# ruff: noqa: ARG002 - not every domain needs every argument

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from arcvae_cli import conditions
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.domains import base
from arcvae_cli.domains.base import Decoded, Examples, Given, Note, Report, Table, Task, write_lines
from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.information import BATCH_SIZE, Codes, batches, choose, eval_mode, nats, posterior_means
from arcvae_cli.evaluation.paths import decoded_paths, smoothness
from arcvae_cli.evaluation.priors import argmax_decode, draw_prior
from arcvae_cli.evaluation.samples import ASKED, COLOURS, JUDGED, condition_accuracy, pca_reconstructions, score_samples
from arcvae_cli.evaluation.verdict import Advice, Target, judge
from arcvae_cli.files import exists, expanded
from arcvae_cli.models.base import VAE, Batch, Latents, Output
from arcvae_cli.objective import ACTIVE_KL

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.records import Pictures

NEAR = 5  # wrong cells up to which a grid counts as nearly correct
PAIRS, STEPS = 256, 9
SAMPLES, CONDITION_SAMPLES = 1500, 500  # for each condition: a share of 0.8 is known to 0.02
QUICK_EXAMPLES, QUICK_SAMPLES, QUICK_CONDITION_SAMPLES = 2000, 500, 100
PIXEL_TARGET, NON_BLACK_TARGET = 0.90, 0.30
BLANK_MARGIN, SPECK_MARGIN = 0.10, 0.25  # beyond the data's own shares; ARC has specks 0.25, with 2 % noise 0.32
ACCURACY_TARGET, COUNTED_TARGET = 0.80, 0.50  # under a condition: of samples neither blank nor repeated; their share
PICTURED, SHEET, MAPS, SIDE = 16, 256, 7, 8  # in a picture: pairs, samples, KL maps, rows and columns of latents
BASELINES = {"all black": "all_black", "PCA": "pca"}

SCORES = (
    ("pixel accuracy", "reconstruction.{}.pixel_accuracy", ".2%"),
    ("non-black accuracy", "reconstruction.{}.non_black_accuracy", ".2%"),
    ("non-black IoU", "reconstruction.{}.non_black_iou", ".2%"),
    ("inside the rectangle", "reconstruction.{}.inside_accuracy", ".2%"),
    ("exact grids", "reconstruction.{}.exact_share", ".2%"),
    ("grids within 5 cells", "reconstruction.{}.near_share", ".2%"),
    ("all-black reconstructions", "reconstruction.{}.blank_share", ".2%"),
    ("skill in pixels", "reconstruction.skill.pixel", "+.3f"),
    ("skill in non-black pixels", "reconstruction.skill.non_black", "+.3f"),
    ("PCA components", "reconstruction.pca_components", ""),
)
COLOUR_SCORES = (
    ("model", "reconstruction.posterior_mean.colour_accuracy.{}", ".0%"),
    ("PCA", "reconstruction.pca.colour_accuracy.{}", ".0%"),
)
SAMPLE_SCORES = (
    ("density", "{}.density", ".2f"),
    ("coverage", "{}.coverage", ".2f"),
    ("object-count distance", "{}.object_distance", ".2f"),
    ("speck share", "{}.speck_share", ".2%"),
    ("  in the split", "prior_samples.reference_speck_share", ".2%"),
    ("non-black", "{}.non_black_share", ".2%"),
    ("  in the split", "prior_samples.reference_non_black_share", ".2%"),
    ("blank", "{}.blank_share", ".2%"),
    ("distinct", "{}.distinct_share", ".2%"),
    ("novel", "{}.novel_share", ".2%"),
)
CONDITIONED = {"given": "counted_obeying", "unaided": "unaided_obeying", "not given": "baseline_counted_obeying"}
CONDITIONED |= {"of": "counted", "all": "obeying", "data": "data"}


class GridDomain(base.Domain):
    """Grids."""

    kind, noun, changes, dtype = "grids", "grids", "cells", np.uint8
    per, formats = ("nats per grid", "bits per cell"), ("png", "npz", "json")

    def dataset(self, loaded: Loaded, x: Any) -> Dataset:
        """Grids (n, H, W), or n of several sizes up to the model's canvas, as a test split on it."""
        canvas: Any = loaded.model.structure
        grids = [np.asarray(grid) for grid in x]
        fill = (canvas.background or 0) if canvas.outside is None else canvas.outside
        padded = np.full((len(grids), *canvas.shape), fill, np.uint8)
        for place, (row, grid) in enumerate(zip(padded, grids, strict=True)):
            fits = (
                grid.ndim == 2 and grid.size and grid.dtype.kind in "iu" and (grid.shape <= np.array(row.shape)).all()
            )
            if not fits or grid.min() < 0 or grid.max() >= canvas.classes:
                fix = f"give integers 0 to {canvas.classes - 1} of shape (n, {canvas.height}, {canvas.width})"
                raise InputError(f"x[{place}]: no grid of this model, {grid.dtype} {grid.shape}", fix)
            row[: grid.shape[0], : grid.shape[1]] = grid
        return Dataset("x", padded, np.full(len(padded), 2, np.uint8), canvas=canvas)

    def given_back(self, loaded: Loaded, classes: Examples) -> Any:
        return classes.astype(np.uint8)

    def row(self, loaded: Loaded, classes: Examples, titles: list[str]) -> Decoded:
        grids = classes.astype(np.uint8)
        return Decoded({}, {"grids": grids}, (grids, titles), "")

    def validation_batch(self, corpus: Any) -> int:
        return 1000

    def baseline(self, corpus: Any) -> dict[str, float | None]:
        """The scores of a code without information on the validation split."""
        black = (corpus.grids("val") == corpus.background).double().mean().item()
        return {"blank": black, "blank_nats": None, "entropy": None}

    def write_pictures(self, folder: Path, epoch: int, pictures: Pictures, rules: object) -> None:
        from arcvae_cli.render import plots

        originals, samples, when = pictures.originals, pictures.samples, f"{folder.parent.name}, epoch {epoch}"
        pairs = (originals, pictures.reconstructions, pictures.extents, f"{when}: grids of the validation split")
        plots.save_reconstructions(folder / f"reconstructions_epoch_{epoch}.png", *pairs)
        title = f"{when}: {len(samples)} samples from the prior, {(~samples.any(axis=(1, 2))).sum()} blank"
        plots.save_grids(folder / f"samples_epoch_{epoch}.png", samples, title=title)
        if pictures.maps:
            file = folder / f"kl_map_epoch_{epoch}.png"
            plots.save_kl_maps(file, originals, pictures.maps, f"{when}: KL of each cell")

    def limits(self, task: Task) -> tuple[int | None, int | None, int]:
        """The most examples, the most for what takes many passes, None for all; the batch size."""
        return QUICK_EXAMPLES if task.quick else None, None, BATCH_SIZE

    def reconstruct(self, task: Task) -> base.Reconstructed:
        model, corpus, split, indices = task.model, task.corpus, task.split, task.indices
        drawn, decoded, costs = list[Tensor](), list[Tensor](), list[Tensor]()

        def passes(device: torch.device) -> Iterator[tuple[Batch, Output]]:
            for batch in batches(corpus, split, indices, device):
                output = model(batch)
                drawn.append(output.logits.argmax(dim=1).to(torch.uint8))
                yield batch, output

        with eval_mode(model, task.seed) as device:
            codes = Codes.of(passes(device))
        means = {name: level.mean for name, level in codes.levels.items()}
        if len(means) > 1:  # the posterior below the mean of a level is not the one below its sample
            means = posterior_means(model, corpus, split, indices)
        with eval_mode(model, 0) as device:
            for place, batch in enumerate(batches(corpus, split, indices, device)):
                rows = slice(place * BATCH_SIZE, (place + 1) * BATCH_SIZE)
                logits = model.decode({name: value[rows] for name, value in means.items()})
                costs.append(nats(logits, batch))
                decoded.append(logits.argmax(dim=1).to(torch.uint8))
        chosen = indices.to(corpus.device)
        truth, shapes = corpus.grids(split)[chosen], corpus.shapes(split)
        shapes, units = None if shapes is None else shapes[chosen], sum(map(math.prod, model.level_shapes.values()))
        pca, sizes = pca_reconstructions(task.trained.grids("train").cpu().numpy(), truth, units, task.seed)
        reconstructed = {"posterior_mean": torch.cat(decoded), "posterior_sample": torch.cat(drawn)}
        reconstructed |= {"all_black": torch.zeros_like(truth), "pca": pca}
        scores = {name: score_reconstructions(grids, truth, shapes) for name, grids in reconstructed.items()}
        skills = {}
        for kind in ("pixel", "non_black"):
            mean, *others = (scores[name][f"{kind}_accuracy"] for name in ("posterior_mean", *BASELINES.values()))
            skills[kind] = (mean - max(others)) / (1.0 - max(others)) if max(others) < 1.0 else None
        reconstruction = {"examples": len(indices), **scores, **sizes, "skill": skills}
        own = torch.cat(costs).cpu().double().mean().item(), scores["posterior_mean"]["pixel_accuracy"]
        errors = (reconstructed["posterior_mean"] != truth).flatten(1).sum(dim=1).cpu().numpy()
        return codes, means, {"reconstruction": reconstruction}, errors, own

    def further(self, task: Task) -> dict[str, Any]:
        paths = accuracy = None
        if len(task.indices) > 1 and not task.quick:
            paths = smoothness(decoded_paths(task.model, task.corpus, task.split, task.indices[: 2 * PAIRS], STEPS))
        training, count = task.trained.grids("train").cpu().numpy(), QUICK_SAMPLES if task.quick else SAMPLES
        reference = task.corpus.grids(task.split).cpu().numpy()[task.indices[:count].numpy()]
        drawn = training[np.random.RandomState(task.seed).permutation(len(training))[:count]]
        if task.model.attributes:
            asked, each = (JUDGED, QUICK_CONDITION_SAMPLES) if task.quick else (ASKED, CONDITION_SAMPLES)
            accuracy = condition_accuracy(task.model, training, each, task.seed, asked)
        with eval_mode(task.model, task.seed):
            samples = argmax_decode(task.model, draw_prior(task.model, count)).to(torch.uint8).numpy()
        return {
            "interpolation": paths,
            "prior_samples": score_samples(samples, reference, training),
            "training_grids": score_samples(drawn, reference, training),
            "adherence": accuracy,
        }

    def verdict(self, report: Report, advice: Advice) -> dict[str, Any]:
        found, drawn, model = report["reconstruction"], report["prior_samples"], advice.model
        mean = found["posterior_mean"]
        pixel, non_black, blank = mean["pixel_accuracy"], mean["non_black_accuracy"], mean["blank_share"]
        best, which = max((found[key]["pixel_accuracy"], name) for name, key in BASELINES.items())
        kls = {level: values["kl_nats"] for level, values in report["levels"].items()}
        dead = {level: sum(value <= ACTIVE_KL for value in kl) for level, kl in kls.items()}
        held = {level: advice.held(level, kl) for level, kl in kls.items()}
        mostly_held = [level for level, kl in kls.items() if 2 * held[level] > len(kl)]
        more_kl = (advice.more_kl[level] for level in kls if dead[level] or level in mostly_held)
        cause = advice.other_data(report) or next(more_kl, None)
        body = "use model.body = residual; " if model.get("body") == "plain" else ""
        focal = "" if advice.scale is None else "use objective.reconstruction = focal, as the decoder paints black; "
        size = "local_channels" if "local_channels" in model else "latent_dim"
        enlarge = f"{body}{[*advice.lower_beta.values()][-1]}; raise model.{size} (it is {model[size]})"
        larger, decoder = cause or f"{enlarge}; train longer", cause or f"{body}{focal}train longer"
        prior, longer = cause or advice.raise_beta, cause or f"train longer; {advice.raise_beta}"

        targets: list[Target] = [
            ("pixel accuracy", pixel, ">=", PIXEL_TARGET, larger, ""),
            ("pixel accuracy, baselines", pixel, ">", best, larger, f"({which})"),
            ("non-black accuracy", non_black, ">", NON_BLACK_TARGET, decoder, ""),
        ]
        for level, kl in kls.items():
            where, more = f", {level}" if len(kls) > 1 else "", advice.more_kl[level]
            targets.append((f"smallest KL{where or ' of a dimension'}", min(kl), ">", ACTIVE_KL, more, "nats"))
            if advice.floors[level] > 0:
                name = f"dimensions held by free bits alone{where}"
                targets.append(advice.floor_target(report, level, where))
                targets.append((name, held[level], "<=", len(kl) // 2, more, f"of {len(kl)}"))
        remedy = decoder if non_black <= NON_BLACK_TARGET else prior
        blank_limit = drawn["reference_blank_share"] + BLANK_MARGIN
        speck_limit = drawn["reference_speck_share"] + SPECK_MARGIN
        targets.append(("blank samples", drawn["blank_share"], "<=", blank_limit, remedy, ""))
        targets.append(("specks among samples", drawn["speck_share"], "<=", speck_limit, prior, ""))
        if (accuracy := report["adherence"]) is not None:
            judged = {row["asked"]: row for row in accuracy["rows"] if row["asked"] in JUDGED}
            for kind in ("colours", "symmetry"):
                least, name = min((row["counted_obeying"] or 0.0, name) for name, row in judged.items() if kind in name)
                targets.append((f"samples satisfy {kind}", least, ">", ACCURACY_TARGET, longer, f"(least: {name})"))
            least, name = min((row["counted"] / accuracy["samples"], name) for name, row in judged.items())
            what = "samples neither blank nor repeated"
            targets.append((what, least, ">=", COUNTED_TARGET, longer, f"(least: {name})"))

        if any(dead.values()):
            which = "posterior" if dead == {level: len(kl) for level, kl in kls.items()} else "partial"
            counts = " and ".join(f"{dead[level]} of {len(kl)} {level}" for level, kl in kls.items())
            state = f"{which} collapse: {counts} dimensions are dead (KL <= {ACTIVE_KL:g} nats)"
        elif mostly_held:
            state = f"collapse, held up by free bits alone: {' and '.join(mostly_held)} carries only its floor"
        else:
            totals = " and ".join(f"{level} carries {sum(kl):.1f} nats" for level, kl in kls.items())
            state = f"the code is alive{', the decoder is not' if non_black <= NON_BLACK_TARGET else ''}: {totals}"
        result = f"{non_black:.0%} of the non-black cells are right, PCA gets {found['pca']['non_black_accuracy']:.0%}"
        if blank >= 0.5:
            result = f"{blank:.0%} of the reconstructions are all black"
        return judge(targets, f"{state}; {result}")

    def tables(self, report: Report) -> Iterator[Table]:
        columns = {"at the mean": "posterior_mean", "at a sample": "posterior_sample", **BASELINES}
        yield Table("Reconstruction at the posterior mean, at a posterior sample, baselines", columns, SCORES)
        yield Table("Accuracy by true colour", {str(colour): str(colour) for colour in range(COLOURS)}, COLOUR_SCORES)
        yield Table("Interpolation", {"": ""}, base.PATH_SCORES)
        drawn, columns = report["prior_samples"], {"samples": "prior_samples", "training": "training_grids"}
        yield Table(f"Samples against {drawn['reference']} grids of the split", columns, SAMPLE_SCORES)
        if (accuracy := report["adherence"]) is not None:
            rows = [(row["asked"], f"adherence.rows.{place}.{{}}", ".1%") for place, row in enumerate(accuracy["rows"])]
            note = f"shares of samples neither blank nor repeated ({accuracy['baseline_counted']} if not given);\n"
            note += "of: their number; all: of all samples; unaided: the argmax of each cell, without constraints"
            yield Table(f"Samples that satisfy a condition, {accuracy['samples']} each", CONDITIONED, rows, note)

    def code_values(self, task: Task, indices: Examples) -> tuple[Examples, str]:
        return (task.corpus.grids(task.split).cpu().numpy()[indices] > 0).mean(axis=(1, 2)), "share of non-black cells"

    def draw(self, folder: Path, task: Task, evaluation: Evaluation) -> None:
        from arcvae_cli.render import plots

        levels, where = list(task.model.level_shapes), f"{task.corpus.name} {task.split}, {task.title}"
        if len(levels) > 1:
            below = " and ".join(levels[1:])
            title = f"rows share a {levels[0]} latent, columns the noise of {below}; {task.title}"
            sheet = draw_levels(task.model, SIDE, SIDE, task.seed)
            above, left = ([f"{level} {place + 1}" for place in range(SIDE)] for level in (below, levels[0]))
            plots.save_grids(folder / "levels.png", sheet, SIDE, above, title, left)
        if task.quick:
            return
        for name, x, reconstructed, chosen in self.pairs(task, evaluation, PICTURED):
            which = "drawn at random" if name == "reconstructions" else "with the most wrong cells"
            title = f"{len(chosen)} of {len(evaluation.indices):,} grids {which}, {where}"
            extents = task.corpus.extents(task.split, chosen)
            plots.save_reconstructions(folder / f"{name}.png", x, reconstructed, extents, title)
        if evaluation.maps:
            grids = task.corpus.grids(task.split).cpu().numpy()[evaluation.indices[:MAPS]]
            maps = {name: cells[:MAPS] for name, cells in evaluation.maps.items()}
            means = {name: cells.mean(axis=0) for name, cells in evaluation.maps.items()}
            plots.save_kl_maps(folder / "kl_maps.png", grids, maps, f"KL of each cell, {where}", means=means)

    def posterior_samples(self, model: VAE, corpus: Any, split: str, seed: int, given: Given, limit: int) -> Latents:
        """(n, *shape) samples by level, of at most `limit` examples that satisfy `given`."""
        chosen, canvas = choose(corpus, split, None, seed), corpus.structure
        if given:
            measured = conditions.measure(corpus.grids(split).cpu().numpy(), canvas)
            chosen = chosen[torch.from_numpy(conditions.satisfies(measured, given, canvas))[chosen]]
        parts = [{name: torch.empty(0, *shape) for name, shape in model.level_shapes.items()}]
        with eval_mode(model, seed) as device:
            for batch in batches(corpus, split, chosen[:limit], device):
                asked = torch.from_numpy(conditions.encode(given, len(batch.x), canvas)).to(device) if given else None
                levels = model.encode(Batch(batch.x, batch.valid, asked))
                parts.append({level.name: level.sample.cpu() for level in levels})
        return {name: torch.cat([part[name] for part in parts]) for name in model.level_shapes}

    def sample(self, loaded: Loaded, latents: Latents, seed: int, options: Mapping[str, Any], note: Note) -> Decoded:
        model, given, canvas = loaded.model, options["given"], loaded.model.canvas
        encoded = torch.from_numpy(conditions.encode(given, len(next(iter(latents.values()))), canvas))
        asked = encoded.to(next(model.parameters()).device) if given else None
        grids = argmax_decode(model, latents, asked).numpy().astype(np.uint8)
        count, distinct = len(grids), len({grid.tobytes() for grid in grids})
        blank, non_black = np.asarray(~grids.any(axis=(1, 2))), float((grids > 0).mean())
        facts: dict[str, Any] = {"conditions": given, "adherence": None, "blank_share": float(blank.mean())}
        facts |= {"distinct": distinct, "distinct_share": distinct / count, "non_black_share": non_black}
        summary = f"{blank.sum()} of {count} blank, {distinct} distinct, {non_black:.1%} of their cells not black"
        arrays = {"grids": grids}
        if given:
            arrays |= {"conditions": encoded.numpy(), "condition_names": np.array(list(conditions.columns(canvas)))}
            with eval_mode(model, seed):
                baseline = argmax_decode(model, draw_prior(model, count, options["temperature"])).byte().numpy()
            measured = [conditions.measure(some, canvas) for some in (grids, baseline)]
            satisfied, free = (int(conditions.satisfies(some, given, canvas).sum()) for some in measured)
            shares = {"obeying_share": satisfied / count, "baseline_share": free / count}
            facts["adherence"] = {"obeying": satisfied, "baseline_obeying": free, **shares}
            summary += f"; {conditions.written(given, canvas)} in {satisfied}, without conditions in {free}"
        marks = ["blank" if one else "" for one in blank] if blank.any() else None
        return Decoded(facts, arrays, (grids, marks), summary)

    def read_end(self, text: str, flag: str, loaded: Loaded, note: Note) -> tuple[str, Any]:
        from arcvae_cli.data.files import read_dataset

        name, _, number = text.rpartition(":")
        if not (name and number.isdigit()) or exists(Path(text)):
            name, number = text, "0"
        arrays = read_dataset(file := expanded(Path(name)))
        if arrays.kind != "grids":
            raise InputError(f"{flag} {text}: contains strings, not grids", "give a file of grids")
        for line in arrays.notes:
            note(line)
        if int(number) >= len(arrays.x):
            raise InputError(f"{flag} {text}: the file has grids 0 to {len(arrays.x) - 1}")
        return f"{file.name}:{number}", arrays.x[int(number)]

    def path(self, loaded: Loaded, steps: Examples, originals: Examples, note: Note) -> Decoded:
        from arcvae_cli.render.terminal import path_strip

        facts, summary = self.path_facts(steps, originals, lambda one, other: int((one != other).sum()))
        return Decoded(facts, {"grids": steps}, path_strip(steps, originals), summary)

    def show(self, console: Console, decoded: Decoded) -> None:
        from arcvae_cli.render.terminal import terminal_grids

        grids, titles = decoded.rows
        lines = console.out.height - 4 if "blank_share" in decoded.facts else None  # a screen shows the first samples
        size = len(decoded.facts.get("values", grids))  # of a traversal, a row for each dimension
        for start in range(0, len(grids), size):
            rows = slice(start, start + size)
            console.result(terminal_grids(console.out, grids[rows], titles and titles[rows], lines))

    def write(self, files: Mapping[str, Path], decoded: Decoded, document: Report, title: str) -> None:
        from arcvae_cli.render import plots

        grids, titles = decoded.rows
        if "blank_share" in document:  # samples
            titles, columns = None, 8 if len(grids) <= 64 else 16
            document = {key: document[key] for key in ("conditions", "temperature", "seed", "prior")}
            title = f"{title}, {(~grids.any(axis=(1, 2))).sum()} of {len(grids)} blank"
        elif "values" in document:  # a traversal
            columns = len(document["values"])
        else:  # a path, in rows of equal length
            columns = -(-len(grids) // -(-len(grids) // 12))
        plots.save_grids(files["png"], grids[:SHEET], columns, titles, title)
        tests = []
        for grid in decoded.arrays["grids"]:  # cut to the rectangle from the top-left corner with all non-black cells
            height, width = (np.flatnonzero(grid.any(axis=axis)).max(initial=0) + 1 for axis in (1, 0))
            tests.append({"input": grid[:height, :width].tolist()})
        write_lines(files["json"], [json.dumps({**document, "train": [], "test": tests}, allow_nan=False)])


def score_reconstructions(predicted: Tensor, truth: Tensor, shapes: Tensor | None) -> dict[str, Any]:
    """Scores of grids (n, H, W) uint8 against `truth`, of which one has a non-black cell, else InputError.

    `shapes`: (n, 2) height and width of each grid within its canvas, if known, where `inside_accuracy` counts.
    """
    right = predicted == truth
    pairs = (truth * COLOURS + predicted).flatten().cpu()
    confusion = pairs.bincount(minlength=COLOURS**2).double().view(COLOURS, COLOURS)
    coloured, hit = confusion[1:].sum().item(), confusion.diagonal()[1:].sum().item()
    if coloured == 0:
        raise InputError("every grid of the split is black", "evaluate on a corpus with something to reconstruct")
    inside = None
    if shapes is not None:
        rows, columns = (torch.arange(side, device=truth.device) for side in truth.shape[1:])
        within = (rows < shapes[:, :1])[:, :, None] & (columns < shapes[:, 1:])[:, None]
        inside = (right & within).sum().item() / within.sum().item()
    errors, by_colour = (~right).flatten(1).sum(dim=1).cpu(), confusion.diagonal() / confusion.sum(dim=1)
    return {
        "pixel_accuracy": (confusion.trace() / confusion.sum()).item(),
        "non_black_accuracy": hit / coloured,
        "non_black_iou": hit / (confusion.sum() - confusion[0, 0]).item(),
        "inside_accuracy": inside,
        "exact_share": (errors == 0).double().mean().item(),
        "near_share": (errors <= NEAR).double().mean().item(),
        "blank_share": (predicted == 0).flatten(1).all(dim=1).sum().item() / len(errors),
        "colour_accuracy": [None if math.isnan(share) else share for share in by_colour.tolist()],
    }


def draw_levels(model: VAE, rows: int, columns: int, seed: int) -> Examples:
    """(rows * columns, 16, 16) prior draws: a row shares the noise of the top level, a column that of all others."""
    top = next(iter(model.level_shapes))
    with eval_mode(model, seed):
        by_row, by_column = model.noise(rows), model.noise(columns)
        noise = {name: value.repeat(rows, *[1] * (value.dim() - 1)) for name, value in by_column.items()}
        noise[top] = by_row[top].repeat_interleave(columns, dim=0)
        return argmax_decode(model, model.prior(noise)).to(torch.uint8).numpy()
