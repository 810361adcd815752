"""The domain of grids of any canvas, beside an empty grid, the most common class of each cell, and PCA."""
# ruff: noqa: ARG002 - not every domain needs every argument

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli import conditions
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.data.arrays import Dataset, padded
from arcvae_cli.domains import base
from arcvae_cli.domains.base import Decoded, Examples, Given, Note, Report, Table, Task, write_lines
from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.information import BATCH_SIZE, Codes, batches, choose, eval_mode, nats, posterior_means
from arcvae_cli.evaluation.paths import decoded_paths, smoothness
from arcvae_cli.evaluation.priors import draw_prior, generate
from arcvae_cli.evaluation.samples import asked_of, condition_accuracy, most_common, pca_reconstructions, score_samples
from arcvae_cli.evaluation.verdict import COLLAPSED_NATS, Advice, Target, judge
from arcvae_cli.files import exists, expanded
from arcvae_cli.models.base import VAE, Batch, Latents, Output
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.records import words
from arcvae_cli.step import mix

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.evaluation.evaluate import Evaluation
    from arcvae_cli.records import Pictures

NEAR = 0.02  # share of a grid's cells that may be wrong, 5 of 256; or one cell
PAIRS, STEPS = 256, 9
SAMPLES, CONDITION_SAMPLES = 1500, 500  # for each condition: a share of 0.8 is known to 0.02
QUICK_EXAMPLES, QUICK_SAMPLES, QUICK_CONDITION_SAMPLES = 2000, 500, 100
PIXEL_TARGET, FOREGROUND_TARGET = 0.90, 0.30
BLANK_MARGIN, SPECK_MARGIN = 0.10, 0.25  # beyond the data's own shares; ARC has specks 0.25, with 2 % noise 0.32
ACCURACY_TARGET, COUNTED_TARGET = 0.80, 0.50  # under a condition: of samples neither blank nor repeated; their share
PICTURED, SHEET, MAPS, SIDE = 16, 256, 7, 8  # in a picture: pairs, samples, KL maps, rows and columns of latents
CLASSES = 12  # columns of the table of accuracies by class
BASELINES = {"all {background}": "all_background", "per cell": "per_cell", "PCA": "pca"}

SCORES = (
    ("pixel accuracy", "reconstruction.{}.pixel_accuracy", ".2%"),
    ("{foreground} accuracy", "reconstruction.{}.foreground_accuracy", ".2%"),
    ("{foreground} IoU", "reconstruction.{}.foreground_iou", ".2%"),
    ("inside the rectangle", "reconstruction.{}.inside_accuracy", ".2%"),
    ("exact grids", "reconstruction.{}.exact_share", ".2%"),
    ("grids within 2 % of cells", "reconstruction.{}.near_share", ".2%"),
    ("all-{background} reconstructions", "reconstruction.{}.blank_share", ".2%"),
    ("skill in pixels", "reconstruction.skill.pixel", "+.3f"),
    ("skill in {foreground} pixels", "reconstruction.skill.foreground", "+.3f"),
)
CLASS_SCORES = (
    ("model", "reconstruction.posterior_mean.class_accuracy.{}", ".0%"),
    ("PCA", "reconstruction.pca.class_accuracy.{}", ".0%"),
)
SAMPLE_SCORES = (
    ("density", "{}.density", ".2f"),
    ("coverage", "{}.coverage", ".2f"),
    ("object-count distance", "{}.object_distance", ".2f"),
    ("speck share", "{}.speck_share", ".2%"),
    ("  in the split", "prior_samples.reference_speck_share", ".2%"),
    ("{foreground}", "{}.foreground_share", ".2%"),
    ("  in the split", "prior_samples.reference_foreground_share", ".2%"),
    ("blank", "{}.blank_share", ".2%"),
    ("distinct", "{}.distinct_share", ".2%"),
    ("novel", "{}.novel_share", ".2%"),
)
CONDITIONED = {"given": "counted_obeying", "unaided": "unaided_obeying", "not given": "baseline_counted_obeying"}
CONDITIONED |= {"of": "counted", "data": "data"}


class GridDomain(base.Domain):
    """Grids."""

    kind, noun, changes, dtype = "grids", "grids", "cells", np.uint8
    per = ("nats per grid", "bits per cell")

    def formats(self, structure: Any) -> tuple[str, ...]:
        return ("png", "npz", *(["json"] if structure.arc else []), *(["txt"] if structure.tiles else []))

    def dataset(self, loaded: Loaded, x: Any) -> Dataset:
        """Grids (n, H, W), or n of several sizes up to the model's canvas, as a test split on it."""
        canvas: Any = loaded.model.structure
        grids = [np.asarray(grid) for grid in x]
        for place, grid in enumerate(grids):
            fits = grid.ndim == 2 and grid.size and (np.array(grid.shape) <= canvas.shape).all()
            if not fits or grid.dtype.kind not in "iu" or grid.min() < 0 or grid.max() >= canvas.classes:
                fix = f"give integers 0 to {canvas.classes - 1} of shape (n, {canvas.height}, {canvas.width})"
                raise InputError(f"x[{place}]: no grid of this model, {grid.dtype} {grid.shape}", fix)
        return Dataset("x", padded(grids, canvas)[0], np.full(len(grids), 2, np.uint8), canvas=canvas)

    def given_back(self, loaded: Loaded, classes: Examples) -> Any:
        return classes.astype(np.uint8)

    def row(self, loaded: Loaded, classes: Examples, titles: list[str]) -> Decoded:
        grids = classes.astype(np.uint8)
        return Decoded({}, {"grids": grids}, (grids, titles, loaded.model.structure), "")

    def validation_batch(self, corpus: Any) -> int:
        return 1000

    def baseline(self, corpus: Any) -> dict[str, Any]:
        """The canvas, and the scores of a code without information on the validation split."""
        canvas, truth = corpus.structure, corpus.grids("val")
        common = most_common(corpus.grids("train"), canvas).to(truth.device) if canvas.background is None else None
        guess = canvas.background if common is None else common
        parts, right = batches(corpus, "val", torch.arange(len(truth)), corpus.device), (truth == guess).double()
        masks = [batch.scored for batch in parts if batch.scored is not None]
        right = right[torch.cat(masks)] if masks else right
        return {"canvas": canvas, "blank": right.mean().item(), "blank_nats": None, "entropy": None}

    def write_pictures(self, folder: Path, epoch: int, pictures: Pictures, structure: Canvas) -> None:
        from arcvae_cli.render import plots

        originals, samples, extents = pictures.originals, pictures.samples, pictures.extents
        when = f"{folder.parent.name}, epoch {epoch}"
        file, title = folder / f"reconstructions_epoch_{epoch}.png", f"{when}: grids of the validation split"
        plots.save_reconstructions(file, originals, pictures.reconstructions, extents, title, structure)
        title = f"{when}: {len(samples)} samples from the prior, {blank(samples, structure).sum()} blank"
        plots.save_grids(folder / f"samples_epoch_{epoch}.png", samples, 8, None, title, canvas=structure)
        if pictures.maps:
            file, title = folder / f"kl_map_epoch_{epoch}.png", f"{when}, validation split: KL of each cell"
            plots.save_kl_maps(file, originals[:MAPS], pictures.maps, title, extents, structure)

    def limits(self, task: Task) -> tuple[int | None, int | None]:
        """The most examples, and the most for what takes many passes; None for all."""
        return QUICK_EXAMPLES if task.quick else None, None

    def reconstruct(self, task: Task) -> base.Reconstructed:
        model, corpus, split, indices = task.model, task.corpus, task.split, task.indices
        drawn, decoded, forced, costs, masks = (list[Tensor]() for _ in range(5))

        def most_likely(latents: Latents, logits: Tensor) -> Tensor:
            """Classes (B, H, W) uint8, of an autoregressive decoder without the true ones before each cell."""
            return (model.generate(latents) if model.autoregressive else logits.argmax(dim=1)).to(torch.uint8)

        def passes(device: torch.device) -> Iterator[tuple[Batch, Output]]:
            for batch in batches(corpus, split, indices, device):
                output = model(batch)
                latents = {level.name: level.sample for level in output.levels}
                drawn.append(most_likely(latents, output.logits))
                yield batch, output

        with eval_mode(model, task.seed) as device:
            codes = Codes.of(passes(device))
        means = {name: level.mean for name, level in codes.levels.items()}
        if len(means) > 1:  # the posterior below the mean of a level is not the one below its sample
            means = posterior_means(model, corpus, split, indices)
        with eval_mode(model, 0) as device:
            for place, batch in enumerate(batches(corpus, split, indices, device)):
                rows = slice(place * BATCH_SIZE, (place + 1) * BATCH_SIZE)
                latents = {name: value[rows] for name, value in means.items()}
                logits = model.logits_for(latents, batch)
                costs.append(nats(logits, batch))
                forced.append(logits.argmax(dim=1).to(torch.uint8))
                decoded.append(most_likely(latents, logits))
                masks += [] if batch.scored is None else [batch.scored]
        chosen = indices.to(corpus.device)
        truth, shapes = corpus.take(split, chosen), corpus.shapes(split)
        shapes, units = None if shapes is None else shapes[chosen], sum(map(math.prod, model.level_shapes.values()))
        canvas, training, scored = corpus.structure, task.trained.grids("train"), torch.cat(masks) if masks else None
        reconstructed = {"posterior_mean": torch.cat(decoded), "posterior_sample": torch.cat(drawn)}
        common = most_common(training, canvas).to(truth.device).expand_as(truth)
        if canvas.background is not None:
            reconstructed["all_background"] = torch.full_like(truth, canvas.background)
        if canvas.background is None or (common != canvas.background).any():
            reconstructed["per_cell"] = common
        pca, sizes = pca_reconstructions(training.cpu().numpy(), truth, units, task.seed, canvas)
        reconstructed["pca"], scores, skills = pca, {}, dict[str, float | None]()
        for name, grids in reconstructed.items():
            scores[name] = score_reconstructions(grids, truth, shapes, scored, canvas)
        for kind in ("pixel", "foreground"):
            mean, _, *others = (found[f"{kind}_accuracy"] for found in scores.values())
            known = mean is not None and max(others) < 1.0
            skills[kind] = (mean - max(others)) / (1.0 - max(others)) if known else None
        reconstruction = {"examples": len(indices), **scores, **sizes, "skill": skills}
        # as with shuffled codes: given the true cells before each, where the decoder sees them
        given = score_reconstructions(torch.cat(forced), truth, shapes, scored, canvas)["pixel_accuracy"]
        own = torch.cat(costs).cpu().double().mean().item(), given
        wrong = reconstructed["posterior_mean"] != truth
        errors = (wrong if scored is None else wrong & scored).flatten(1).sum(dim=1).cpu().numpy()
        return codes, means, {"canvas": asdict(canvas), "reconstruction": reconstruction}, errors, own

    def further(self, task: Task) -> dict[str, Any]:
        paths, accuracy, canvas = None, None, task.corpus.structure
        if len(task.indices) > 1 and not task.quick:
            paths = smoothness(decoded_paths(task.model, task.corpus, task.split, task.indices[: 2 * PAIRS], STEPS))
        training, count = task.trained.grids("train").cpu().numpy(), QUICK_SAMPLES if task.quick else SAMPLES
        reference = task.corpus.grids(task.split).cpu().numpy()[task.indices[:count].numpy()]
        drawn = training[np.random.RandomState(task.seed).permutation(len(training))[:count]]
        if task.model.attributes:
            each = QUICK_CONDITION_SAMPLES if task.quick else CONDITION_SAMPLES
            accuracy = condition_accuracy(task.model, training, each, task.seed, asked_of(canvas, not task.quick))
        with eval_mode(task.model, task.seed):
            latents = draw_prior(task.model, count)
            samples = generate(task.model, latents, draw=task.model.autoregressive).to(torch.uint8).numpy()
        return {
            "interpolation": paths,
            "prior_samples": score_samples(samples, reference, training, canvas),
            "training_grids": score_samples(drawn, reference, training, canvas),
            "adherence": accuracy,
        }

    def verdict(self, report: Report, advice: Advice) -> dict[str, Any]:
        found, drawn, model = report["reconstruction"], report["prior_samples"], advice.model
        (canvas, said, baselines), mean = labels(report), found["posterior_mean"]
        pixel, right, blank_share = mean["pixel_accuracy"], mean["foreground_accuracy"], mean["blank_share"]
        best, which = max((found[key]["pixel_accuracy"], name) for name, key in baselines.items())
        empty = right is not None and right <= FOREGROUND_TARGET
        kls = {level: values["kl_nats"] for level, values in report["levels"].items()}
        dead = {level: sum(value <= ACTIVE_KL for value in kl) for level, kl in kls.items()}
        held = {level: advice.held(level, kl) for level, kl in kls.items()}
        mostly_held = [level for level, kl in kls.items() if 2 * held[level] > len(kl)]
        more_kl = (advice.more_kl[level] for level in kls if dead[level] or level in mostly_held)
        cause = "; ".join(filter(None, (advice.longer, next(more_kl, None))))
        body = "use model.body = residual; " if model.get("body") == "plain" else ""
        focal = "use objective.reconstruction = focal; " if advice.scale is not None else ""
        size = "local_channels" if "local_channels" in model else "latent_dim"
        enlarge = f"{body}{[*advice.lower_beta.values()][-1]}; raise model.{size} (it is {model[size]}); train longer"
        larger, decoder, prior = cause or enlarge, cause or f"{body}{focal}train longer", cause or advice.raise_beta

        targets: list[Target] = [
            ("pixel accuracy", pixel, ">=", PIXEL_TARGET, larger, ""),
            ("pixel accuracy, baselines", pixel, ">", best, larger, f"({which})"),
        ]
        if right is not None:
            targets.append((f"{said['foreground']} accuracy", right, ">", FOREGROUND_TARGET, decoder, ""))
        for level, kl in kls.items():
            where, more = f", {level}" if len(kls) > 1 else "", advice.more_kl[level]
            targets.append((f"smallest KL{where or ' of a dimension'}", min(kl), ">", ACTIVE_KL, more, "nats"))
            if advice.floors[level] > 0:
                name = f"dimensions held by free bits alone{where}"
                targets.append(advice.floor_target(report, level, where))
                targets.append((name, held[level], "<=", len(kl) // 2, more, f"of {len(kl)}"))
        saved = math.inf
        if model.get("decoder") == "autoregressive" and (shuffled := report["shuffled_codes"]) is not None:
            saved = shuffled["shuffled_reconstruction_nats"] - shuffled["reconstruction_nats"]
            more = next(iter(advice.more_kl.values()))
            targets.append(("nats saved by the code", saved, ">", COLLAPSED_NATS, more, "nat"))
        if right is not None:
            blank_limit = drawn["reference_blank_share"] + BLANK_MARGIN
            speck_limit = drawn["reference_speck_share"] + SPECK_MARGIN
            targets.append(("blank samples", drawn["blank_share"], "<=", blank_limit, decoder if empty else prior, ""))
            targets.append(("specks among samples", drawn["speck_share"], "<=", speck_limit, prior, ""))
        if (accuracy := report["adherence"]) is not None:
            asked = asked_of(canvas)  # those that no training grid satisfies are not judged
            rows = [row for row in accuracy["rows"] if row["asked"] in asked and row["data"] > 0]
            for kind in (asked[0].partition("=")[0], "symmetry"):
                shares = [(row["counted_obeying"] or 0.0, row["asked"]) for row in rows if kind in row["asked"]]
                for share, name in sorted(shares)[:1]:
                    targets.append((f"samples satisfy {kind}", share, ">", ACCURACY_TARGET, prior, f"(least: {name})"))
            for share, name in sorted((row["counted"] / accuracy["samples"], row["asked"]) for row in rows)[:1]:
                what = "samples neither blank nor repeated"
                targets.append((what, share, ">=", COUNTED_TARGET, prior, f"(least: {name})"))

        totals = " and ".join(f"{level} carries {sum(kl):.1f} nats" for level, kl in kls.items())
        all_dead = all(dead[level] == len(kl) for level, kl in kls.items())
        if saved <= COLLAPSED_NATS and not all_dead:
            state = f"posterior collapse: {totals}, and the decoder does not use them"
        elif any(dead.values()):
            which = "posterior" if all_dead else "partial"
            counts = " and ".join(f"{dead[level]} of {len(kl)} {level}" for level, kl in kls.items())
            state = f"{which} collapse: {counts} dimensions are dead (KL <= {ACTIVE_KL:g} nats)"
        elif mostly_held:
            state = f"collapse, held up by free bits alone: {' and '.join(mostly_held)} carries only its floor"
        else:
            state = f"the code is alive: {totals}"
        key, which = ("pixel_accuracy", "") if right is None else ("foreground_accuracy", f"{said['foreground']} ")
        result = f"{mean[key]:.0%} of the {which}cells are right, PCA gets {found['pca'][key]:.0%}"
        if right is not None and blank_share >= 0.5:
            result = f"{blank_share:.0%} of the reconstructions are all {said['background']}"
        return judge(targets, f"{state}; {result}")

    def tables(self, report: Report) -> Iterator[Table]:
        canvas, said, baselines = labels(report)
        scores, drawn = ([(row[0].format(**said), *row[1:]) for row in rows] for rows in (SCORES, SAMPLE_SCORES))
        columns = {"at the mean": "posterior_mean", "at a sample": "posterior_sample", **baselines}
        yield Table("Reconstruction at the posterior mean, at a posterior sample, baselines", columns, scores)
        classes = range(min(canvas.classes, CLASSES))
        columns = {canvas.tiles[number : number + 1] or str(number): str(number) for number in classes}
        yield Table(f"Accuracy by true {said['kind']}", columns, CLASS_SCORES)
        yield Table("Interpolation", {"": ""}, base.PATH_SCORES)
        title = f"Samples against {report['prior_samples']['reference']} grids of the split"
        yield Table(title, {"samples": "prior_samples", "training": "training_grids"}, drawn)
        if (accuracy := report["adherence"]) is not None:
            rows = [(row["asked"], f"adherence.rows.{place}.{{}}", ".1%") for place, row in enumerate(accuracy["rows"])]
            note = "shares of samples neither blank nor repeated; unaided: by the network alone; of: their number"
            yield Table(f"Samples that satisfy a condition, {accuracy['samples']} each", CONDITIONED, rows, note)

    def code_values(self, task: Task, indices: Examples) -> tuple[Examples, str]:
        canvas, grids = task.corpus.structure, task.corpus.grids(task.split).cpu().numpy()[indices]
        back = np.bincount(grids.ravel()).argmax() if canvas.background is None else canvas.background
        other = (grids != back) & (grids != canvas.outside)
        return other.mean(axis=(1, 2)), f"share of cells that are not {'black' if canvas.arc else f'class {back}'}"

    def draw(self, folder: Path, task: Task, evaluation: Evaluation) -> None:
        from arcvae_cli.render import plots

        levels, where = list(task.model.level_shapes), f"{task.corpus.name} {task.split}, {task.title}"
        canvas = task.corpus.structure
        if len(levels) > 1:
            below = " and ".join(levels[1:])
            title = f"rows share a {levels[0]} latent, columns the noise of {below}; {task.title}"
            sheet = draw_levels(task.model, SIDE, SIDE, task.seed)
            above, left = ([f"{level} {place + 1}" for place in range(SIDE)] for level in (below, levels[0]))
            plots.save_grids(folder / "levels.png", sheet, SIDE, above, title, left, canvas)
        if task.quick:
            return
        for name, x, reconstructed, chosen in self.pairs(task, evaluation, PICTURED):
            which = "drawn at random" if name == "reconstructions" else "with the most wrong cells"
            title = f"{len(chosen)} of {len(evaluation.indices):,} grids {which}, {where}"
            extents = task.corpus.extents(task.split, chosen)
            plots.save_reconstructions(folder / f"{name}.png", x, reconstructed, extents, title, canvas)
        if evaluation.maps:
            grids = task.corpus.grids(task.split).cpu().numpy()[chosen := evaluation.indices[:MAPS]]
            extents, title = task.corpus.extents(task.split, chosen), f"KL of each cell, {where}"
            plots.save_kl_maps(folder / "kl_maps.png", grids, evaluation.maps, title, extents, canvas)

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
        draw = model.autoregressive and options["decode"] != "argmax"
        with eval_mode(model, mix(seed, "cells")):
            grids = generate(model, latents, asked, draw=draw).numpy().astype(np.uint8)
        count, distinct, empty = len(grids), len({grid.tobytes() for grid in grids}), blank(grids, canvas)
        facts: dict[str, Any] = {"conditions": given, "adherence": None, "blank_share": None, "foreground_share": None}
        facts |= {"distinct": distinct, "distinct_share": distinct / count}
        arrays, summary = {"grids": grids}, f"{distinct} of {count} distinct"
        if canvas.background is not None:
            share = np.isin(grids, canvas.content).sum() / max(1, (grids != canvas.outside).sum())
            facts |= {"blank_share": float(empty.mean()), "foreground_share": float(share)}
            summary += f", {empty.sum()} blank, {share:.1%} of their cells not {words(canvas)['background']}"
        if given:
            arrays |= {"conditions": encoded.numpy(), "condition_names": np.array(list(conditions.columns(canvas)))}
            with eval_mode(model, seed):
                baseline = generate(model, draw_prior(model, count, options["temperature"]), draw=draw).byte().numpy()
            measured = [conditions.measure(some, canvas) for some in (grids, baseline)]
            satisfied, free = (int(conditions.satisfies(some, given, canvas).sum()) for some in measured)
            shares = {"obeying_share": satisfied / count, "baseline_share": free / count}
            facts["adherence"] = {"obeying": satisfied, "baseline_obeying": free, **shares}
            summary += f"; {conditions.written(given, canvas)} in {satisfied}, without conditions in {free}"
        return Decoded(facts, arrays, (grids, None, canvas), summary)

    def read_end(self, text: str, flag: str, loaded: Loaded, note: Note) -> tuple[str, Any]:
        from arcvae_cli.data.files import read_dataset

        name, _, number = text.rpartition(":")
        if not (name and number.isdigit()) or exists(Path(text)):
            name, number = text, "0"
        arrays = read_dataset(file := expanded(Path(name)), to=loaded.model.canvas)
        if arrays.kind != "grids":
            raise InputError(f"{flag} {text}: contains strings, not grids", "give a file of grids")
        if int(number) >= len(arrays.x):
            raise InputError(f"{flag} {text}: the file has grids 0 to {len(arrays.x) - 1}")
        return f"{file.name}:{number}", arrays.x[int(number)]

    def path(self, loaded: Loaded, steps: Examples, originals: Examples, note: Note) -> Decoded:
        facts, summary = self.path_facts(steps, originals, lambda one, other: int((one != other).sum()))
        changed = [f"{place}, {count} changed" for place, count in enumerate(facts["changed"], 1)]
        titles, shown = ["from", "0, decoded", *changed, "to"], np.concatenate([originals[:1], steps, originals[1:]])
        return Decoded(facts, {"grids": steps}, (shown, titles, loaded.model.canvas), summary)

    def show(self, console: Console, decoded: Decoded) -> None:
        from arcvae_cli.render.terminal import terminal_grids

        grids, titles, canvas = decoded.rows
        size = len(decoded.facts.get("values", grids))  # of a traversal, a row for each dimension
        for start in range(0, len(grids), size):
            rows = slice(start, start + size)
            console.result(terminal_grids(console.out, grids[rows], titles and titles[rows], canvas))

    def write(self, files: Mapping[str, Path], decoded: Decoded, document: Report, title: str) -> None:
        from arcvae_cli.render import plots
        from arcvae_cli.render.terminal import characters

        grids, titles, canvas = decoded.rows
        columns = len(document.get("values", range(12)))  # of a traversal, a row for each dimension
        if titles is None:  # samples
            columns = 8 if len(grids) <= 64 else 16
            document = {key: document[key] for key in ("conditions", "temperature", "seed", "prior")}
            title += f", {blank(grids, canvas).sum()} of {len(grids)} blank"
        plots.save_grids(files["png"], grids[:SHEET], columns, titles, title, canvas=canvas)
        if "txt" in files:
            signs = characters(canvas)
            rows = (["".join(signs[cell] for cell in row).rstrip() for row in (*grid, ())] for grid in grids)
            write_lines(files["txt"], ["\n".join(lines) for lines in rows])
        if "json" in files:
            tests = []
            for grid in decoded.arrays["grids"]:
                inside = grid != canvas.void  # cut to the rectangle from the top-left corner with all other cells
                height, width = (np.flatnonzero(inside.any(axis=axis)).max(initial=0) + 1 for axis in (1, 0))
                tests.append({"input": np.where(inside, grid, 0)[:height, :width].tolist()})
            write_lines(files["json"], [json.dumps({**document, "train": [], "test": tests}, allow_nan=False)])


def labels(report: Report) -> tuple[Canvas, dict[str, str], dict[str, str]]:
    """The canvas of a report, ARC's in those of earlier versions; the words for it; its baselines by label."""
    canvas, known = Canvas(**report.get("canvas", {})), report["reconstruction"]
    said = words(canvas)
    return canvas, said, {label.format(**said): key for label, key in BASELINES.items() if key in known}


def blank(grids: Examples, canvas: Canvas) -> NDArray[np.bool_]:
    """(n,) whether grids are nothing but background, none where no class is."""
    return np.asarray(~np.isin(grids, canvas.content).any(axis=(1, 2)))


def score_reconstructions(
    predicted: Tensor, truth: Tensor, shapes: Tensor | None, scored: Tensor | None = None, canvas: Canvas = ARC
) -> dict[str, Any]:
    """Scores of grids (n, H, W) uint8 against `truth`, of which one has a foreground cell, else InputError.

    `shapes`: (n, 2) height and width of each grid within its canvas, if known, where `inside_accuracy` counts.
    `scored`: (n, H, W) the cells that count, None for all. Without a background there are no scores of the foreground.
    """
    counted = torch.ones_like(truth, dtype=torch.bool) if scored is None else scored
    right = (predicted == truth) & counted
    hits, found = (truth[mask].cpu().bincount(minlength=canvas.classes).double() for mask in (right, counted))
    accuracy = iou = empty = inside = None
    if canvas.background is not None:
        filled, drawn = (counted & (grids != canvas.background) for grids in (truth, predicted))
        if not filled.any():
            what = f"every grid of the split is {words(canvas)['background']}"
            raise InputError(what, "evaluate on a corpus with something to reconstruct")
        known = (right & filled).sum().item()
        accuracy, iou = known / filled.sum().item(), known / (filled | drawn).sum().item()
        empty = blank(predicted.cpu().numpy(), canvas).sum().item() / len(predicted)
    if shapes is not None and scored is None:
        rows, columns = (torch.arange(side, device=truth.device) for side in truth.shape[1:])
        within = (rows < shapes[:, :1])[:, :, None] & (columns < shapes[:, 1:])[:, None]
        inside = (right & within).sum().item() / within.sum().item()
    errors = (counted & ~right).flatten(1).sum(dim=1).cpu()
    return {
        "pixel_accuracy": (hits.sum() / found.sum()).item(),
        "foreground_accuracy": accuracy,
        "foreground_iou": iou,
        "inside_accuracy": inside,
        "exact_share": (errors == 0).double().mean().item(),
        "near_share": (errors <= max(1, int(NEAR * canvas.cells))).double().mean().item(),
        "blank_share": empty,
        "class_accuracy": [None if math.isnan(share) else share for share in (hits / found).tolist()],
    }


def draw_levels(model: VAE, rows: int, columns: int, seed: int) -> Examples:
    """(rows * columns, H, W) prior draws: a row shares the noise of the top level, a column that of all others."""
    top = next(iter(model.level_shapes))
    with eval_mode(model, seed):
        by_row, by_column = model.noise(rows), model.noise(columns)
        noise = {name: value.repeat(rows, *[1] * (value.dim() - 1)) for name, value in by_column.items()}
        noise[top] = by_row[top].repeat_interleave(columns, dim=0)
        return generate(model, model.prior(noise)).to(torch.uint8).numpy()
