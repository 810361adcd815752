"""Scores of samples of grids (n, H, W) uint8, baselines of reconstruction, codes in the plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.conditions import OBJECT_CAP, Values, encode, measure, objects_of, parse, satisfies
from arcvae_cli.evaluation.information import eval_mode
from arcvae_cli.evaluation.priors import draw_prior, generate
from arcvae_cli.models.base import VAE

Grids = NDArray[np.uint8]
Numbers = NDArray[np.float64]

TRAINING_GRIDS = 20_000  # that PCA is fitted to at most: all 80,000 of `arc` change its shares by at most 0.005
ONE_HOT, DECODED = 2**26, 2**24  # numbers of one-hot grids that it is fitted to, and of grids decoded at once, at most
ROWS = 1024  # grids decoded at once, of 10 kB each
NEIGHBOURS = 5  # k of density and coverage
SYMMETRIES = ("symmetry=lr", "symmetry=ud", "symmetry=both")
SIZES = ("height=5", "height=10", "width=5", "width=10", "objects=1", "objects=3", "objects=10")


def asked_of(canvas: Canvas, whole: bool = False) -> tuple[str, ...]:
    """The conditions that the verdict rests on, and on ARC those that a `whole` evaluation asks for."""
    counts = (f"{'colours' if canvas.arc else 'classes'}={count + 1}" for count in range(min(4, len(canvas.content))))
    more = ("colours=3 symmetry=lr", *SIZES, "red=yes") if whole and canvas.arc else ()
    return *counts, *SYMMETRIES, *more


def score_samples(samples: Grids, reference: Grids, training: Grids, canvas: Canvas = ARC) -> dict[str, Any]:
    """Scores of `samples` by the structure of `reference` grids; `training` grids decide what is novel.

    `object_distance`: Wasserstein-1 distance of the capped object counts. `speck_share`: of a grid's foreground cells,
    those without a neighbour of their class. Density and coverage are None against five reference grids or fewer, what
    is about objects and the foreground without a background.
    """
    ours, theirs = structure(samples, canvas), structure(reference, canvas)
    density = coverage = None
    if len(reference) > NEIGHBOURS:
        features, of_samples = (np.stack(list(one.values()), axis=1) for one in (theirs, ours))
        # as many samples as there are reference grids, since more of them cover more
        density, coverage = density_and_coverage(features, of_samples[: len(reference)])
    known, keys = {grid.tobytes() for grid in training}, [grid.tobytes() for grid in samples]
    found = {
        "object_distance": wasserstein(ours["objects"], theirs["objects"]),
        "speck_share": float(ours["specks"].mean()),
        "reference_speck_share": float(theirs["specks"].mean()),
        "blank_share": float((ours["foreground"] == 0).mean()),
        "reference_blank_share": float((theirs["foreground"] == 0).mean()),
        "foreground_share": float(ours["foreground"].mean()),
        "reference_foreground_share": float(theirs["foreground"].mean()),
    }
    return {
        "samples": len(samples),
        "reference": len(reference),
        "density": density,
        "coverage": coverage,
        **(dict.fromkeys(found) if canvas.background is None else found),
        "distinct_share": len(set(keys)) / len(keys),
        "novel_share": sum(key not in known for key in keys) / len(keys),
    }


def structure(grids: Grids, canvas: Canvas = ARC) -> dict[str, Numbers]:
    """Features (n,) of each grid, 0 where a blank grid has no value.

    A speck is an object of a single cell. Symmetry (the better of two mirrors), height and width are of the bounding
    box of the foreground, which is every cell of a grid without a background.
    """
    count, foreground = len(grids), np.isin(grids, canvas.content)
    cells, flat = foreground.sum(axis=(1, 2)), grids.reshape(count, -1)
    inside = np.maximum((flat != canvas.outside).sum(axis=1), 1)
    owners, sizes = objects_of(grids, canvas)
    largest, box, mirrored = np.zeros(count), np.zeros((2, count)), np.zeros(count)
    np.maximum.at(largest, owners, sizes)
    for place in np.flatnonzero(cells):
        rows, columns = (np.flatnonzero(foreground[place].any(axis=axis)) for axis in (1, 0))
        part = grids[place, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        box[:, place] = part.shape
        mirrored[place] = max((part == part[::-1]).mean(), (part == part[:, ::-1]).mean())
    features = {
        "foreground": cells / inside,
        "classes": np.sum([(flat == number).any(axis=1) for number in canvas.content], axis=0),
        "objects": np.minimum(np.bincount(owners, minlength=count), OBJECT_CAP),
        "largest_object": largest / inside,
        "specks": np.bincount(owners, weights=sizes == 1, minlength=count) / np.maximum(cells, 1),
        "equal_horizontal": (grids[:, :, 1:] == grids[:, :, :-1]).mean(axis=(1, 2)),
        "equal_vertical": (grids[:, 1:] == grids[:, :-1]).mean(axis=(1, 2)),
        "equal_diagonal": (grids[:, 1:, 1:] == grids[:, :-1, :-1]).mean(axis=(1, 2)),
        "height": box[0],
        "width": box[1],
        "symmetry": mirrored,
        "distinct_rows": np.array([len({row.tobytes() for row in grid}) for grid in grids]),
        "distinct_columns": np.array([len({row.tobytes() for row in grid.T}) for grid in grids]),
    }
    return {name: np.asarray(values, np.float64) for name, values in features.items()}


def density_and_coverage(reference: Numbers, samples: Numbers, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage of `samples` (m, features) (Naeem et al. 2020), features standardised by the `reference`.

    Around each reference point (n > k) lies a ball that reaches to its k-th neighbour. Density is the mean number of
    balls a sample lies in, over k: 1 is that of the reference itself. Coverage is the share of balls with a sample.
    """
    from scipy.spatial.distance import cdist

    spread = reference.std(axis=0)
    spread[spread == 0] = 1.0
    reference, samples = (reference - reference.mean(axis=0)) / spread, (samples - reference.mean(axis=0)) / spread
    around, distance = (cdist(reference, points, "sqeuclidean") for points in (reference, samples))
    inside = distance < np.partition(around, k, axis=1)[:, [k]]  # (n, m); the 0-th neighbour is the point itself
    return float(inside.sum(axis=0).mean() / k), float(inside.any(axis=1).mean())


def wasserstein(a: Numbers, b: Numbers) -> float:
    """Wasserstein-1 distance between two samples of numbers, of any sizes: the area between their distributions."""
    values = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(part), values[:-1], side="right") / len(part) for part in (a, b)]
    return float(np.sum(np.abs(below[0] - below[1]) * np.diff(values)))


def condition_accuracy(model: VAE, training: Grids, samples: int, seed: int, asked: Sequence[str]) -> dict[str, Any]:
    """Draw `samples` under each condition, and as many without one.

    Under `rows`, shares that satisfy what is `asked`: of all samples (`obeying`), of samples without condition
    (`baseline_obeying`), of `training` grids (`data`). `counted` samples are neither blank nor a repetition,
    `*counted_obeying` are shares of those; `unaided_obeying` of samples that nothing constrains to the conditions.
    """

    def draw(conditions: Values | None) -> list[tuple[Values, NDArray[np.bool_]]]:
        """Attributes (n, A) of draws, and which of them count: constrained to the conditions, and not."""
        given = None if conditions is None else torch.from_numpy(conditions).to(device)
        latents = draw_prior(model, samples, conditions=given)
        found = []
        for constrained in (True, False):
            how = {"draw": model.autoregressive, "constrained": constrained}
            grids = generate(model, latents, given, **how).numpy().astype(np.uint8)
            first = np.zeros(samples, np.bool_)
            first[np.unique(grids.reshape(samples, -1), axis=0, return_index=True)[1]] = True
            found.append((measure(grids, canvas), first & np.isin(grids, canvas.content).any(axis=(1, 2))))
        return found

    canvas = model.canvas
    data, rows = measure(training, canvas), []
    with eval_mode(model, seed) as device:
        (baseline, kept), _ = draw(None)
        for text in asked:
            given = parse(text.split(), canvas)
            (values, counted), (unaided, counted_unaided) = draw(encode(given, samples, canvas))
            measured = {"obeying": values, "counted_obeying": values[counted], "data": data}
            measured |= {"baseline_obeying": baseline, "baseline_counted_obeying": baseline[kept]}
            measured["unaided_obeying"] = unaided[counted_unaided]
            met = {key: satisfies(some, given, canvas) for key, some in measured.items()}
            found = {key: some.mean().item() if len(some) else None for key, some in met.items()}
            rows.append({"asked": text, "counted": int(counted.sum()), **found})
    return {"samples": samples, "baseline_counted": int(kept.sum()), "rows": rows}


def most_common(grids: Tensor, canvas: Canvas) -> Tensor:
    """(H, W) uint8 the most common class of each cell of grids (n, H, W), or of some of them; never the outside."""
    some = grids[:: max(1, len(grids) // max(1000, ONE_HOT // (canvas.cells * canvas.classes)))]
    counts = [(some == number).sum(dim=0) for number in range(canvas.classes)[: canvas.outside]]
    return torch.stack(counts).argmax(dim=0).to(torch.uint8)


def pca_reconstructions(
    training: Grids, grids: Tensor, components: int, seed: int, canvas: Canvas = ARC
) -> tuple[Tensor, dict[str, int]]:
    """The argmax classes, uint8, never the outside, of grids (n, H, W) projected on axes of one-hot training grids."""
    size = canvas.cells * canvas.classes  # of a one-hot grid
    if len(training) > (count := min(TRAINING_GRIDS, max(NEIGHBOURS, ONE_HOT // size))):
        training = training[np.random.RandomState(seed).choice(len(training), count, replace=False)]
    known = torch.from_numpy(training).flatten(1)
    components, offsets = min(components, len(known), size), canvas.classes * torch.arange(canvas.cells)
    x = torch.zeros(len(known), size).scatter_(1, known + offsets, 1.0)
    mean = x.mean(dim=0)
    with torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed CUDA's too
        axes = torch.svd_lowrank(x.sub_(mean), min(components + 10, len(known), size), niter=4)[2][:, :components]
    mean, axes, offsets = (value.to(grids.device) for value in (mean, axes, offsets))
    found = []
    with torch.autocast(grids.device.type, enabled=False):
        for part in torch.split(grids.flatten(1), max(1, min(ROWS, DECODED // size))):
            # the sum of the axes at the ones is the product with a one-hot grid
            codes = functional.embedding_bag(part + offsets, axes, mode="sum") - mean @ axes
            scores = (codes @ axes.T + mean).view(-1, *canvas.shape, canvas.classes)
            found.append(scores[..., : canvas.outside].argmax(dim=-1).to(torch.uint8))
    return torch.cat(found), {"pca_components": components, "pca_training_grids": len(known)}


def principal_plane(codes: NDArray[np.float32]) -> tuple[Numbers, tuple[float, float]]:
    """Codes (n, D) on their first two principal axes: (n, 2), and the share of the variance along each."""
    centred = codes.astype(np.float64) - codes.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(np.pad(centred, ((0, 0), (0, 2))), full_matrices=False)  # two axes at least
    shares = values**2 / max(float((values**2).sum()), np.finfo(float).tiny)
    return (left * values)[:, :2], (float(shares[0]), float(shares[1]))


def tsne_plane(codes: NDArray[np.float32], seed: int) -> Numbers:
    """Codes (n >= 3, D) in the plane (n, 2) by t-SNE (van der Maaten and Hinton 2008); 1,000 take 4 s on one core."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    init = "pca" if codes.shape[1] > 1 and np.ptp(codes, axis=0).min() > 0 else "random"
    tsne = TSNE(perplexity=min(30.0, (len(codes) - 1) / 3), init=init, random_state=seed)
    with threadpool_limits(1):  # so few points gain nothing from threads, which contend on busy cores
        points: Numbers = tsne.fit_transform(codes).astype(np.float64)
    return points
