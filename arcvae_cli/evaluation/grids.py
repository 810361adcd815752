"""The evaluation of a model of grids: reconstruction beside baselines, the code, draws from the prior, a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.evaluation.adherence import ASKED, JUDGED, Adherence, adherence
from arcvae_cli.evaluation.baselines import PCABaseline
from arcvae_cli.evaluation.information import (
    BATCH_SIZE,
    Elbo,
    ImportanceWeighted,
    InformationTally,
    Interpolation,
    LevelInformation,
    Shuffled,
    ShuffledCodes,
    batches,
    choose,
    evaluating,
    exact,
    importance_weighted,
    interpolation,
    nats,
    posterior_means,
    shuffled_codes,
)
from arcvae_cli.evaluation.priors import draw_prior, most_likely
from arcvae_cli.evaluation.samples import SampleScores, score_samples
from arcvae_cli.evaluation.verdict import Measured, Setup, Verdict, judge
from arcvae_cli.models.base import VAE, Batch
from arcvae_cli.schedules import ControlVAE, Geco, KLCapacity, Schedule
from arcvae_cli.settings import GridSettings, HierarchicalSettings, Settings, elbo_scale

Grids = NDArray[np.uint8]

COLOURS = 10
NEAR = 5
"""Wrong cells up to which a grid counts as nearly right."""

IWAE_EXAMPLES = 512
PAIRS = 256
SAMPLES = 1500
ASKED_SAMPLES = 500  # for each condition: a share of 0.8 is known to 0.02
QUICK_EXAMPLES, QUICK_SAMPLES, QUICK_ASKED_SAMPLES = 2000, 500, 100
MUTUAL_INFORMATION_EXAMPLES = 10_000  # 10^8 densities, and a ceiling of 9.2 nats


@dataclass(frozen=True, slots=True)
class GridScores:
    """Shares of cells or of grids that were reconstructed rightly.

    `non_black_accuracy`: of cells whose true colour is not 0. `non_black_iou`: cells right and not black over cells
    not black in the original or the reconstruction. `inside_accuracy`: of cells within each grid's rectangle, None
    where the canvas is the grid. `colour_accuracy`: by true colour, None for one that does not occur. `blank_share`:
    reconstructions without a non-black cell.
    """

    pixel_accuracy: float
    non_black_accuracy: float
    non_black_iou: float
    inside_accuracy: float | None
    exact_share: float
    near_share: float
    blank_share: float
    colour_accuracy: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Skill:
    """(accuracy - best baseline) / (1 - best baseline): 1 is perfect, 0 no better than all black or PCA."""

    pixel: float | None
    non_black: float | None


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Scores of `examples` at the posterior mean and at one posterior sample, and of the two baselines."""

    examples: int
    posterior_mean: GridScores
    posterior_sample: GridScores
    all_black: GridScores
    pca: GridScores
    pca_components: int
    pca_training_grids: int
    skill: Skill


@dataclass(frozen=True, slots=True)
class Report:
    """Everything measured. What a quick evaluation leaves out is None.

    A conditional model is given no condition, except by `adherence`, which is None for any other model.
    `prior_samples` and, as what could be had at best, `training_grids` are scored against grids of the split.
    """

    corpus: str
    split: str
    seed: int
    quick: bool
    reconstruction: Reconstruction
    elbo: Elbo
    importance_weighted: ImportanceWeighted | None
    levels: dict[str, LevelInformation]
    shuffled_codes: ShuffledCodes | None
    interpolation: Interpolation | None
    prior_samples: SampleScores
    training_grids: SampleScores
    adherence: Adherence | None
    verdict: Verdict

    def document(self) -> dict[str, Any]:
        """Nested plain numbers and texts, as they stand in `metrics.json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The report, and what pictures need.

    `indices`: (n,) examples of the split in the order seen, `errors`: (n,) wrong cells of each at the posterior mean,
    `codes`: by level, (n, units) posterior means. `maps`: by level that is a map, (n, h, w) nats of KL in its cells.
    """

    report: Report
    indices: NDArray[np.int64]
    errors: NDArray[np.int64]
    codes: dict[str, NDArray[np.float32]]
    maps: dict[str, NDArray[np.float32]]


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

    def scores(self) -> GridScores:
        """Scores of all pairs; InputError where no original has a non-black cell."""
        confusion = torch.stack(self._confusions).sum(dim=0).cpu().double().view(COLOURS, COLOURS)
        errors = self.errors
        hit_inside, all_inside = torch.stack(self._inside).sum(dim=0).tolist() if self._inside else (0, 0)
        by_colour = confusion.diagonal() / confusion.sum(dim=1)
        coloured = confusion[1:].sum().item()
        if coloured == 0:
            raise InputError("every grid of the split is black", "evaluate on a corpus with something to reconstruct")
        hit = confusion.diagonal()[1:].sum().item()
        return GridScores(
            pixel_accuracy=(confusion.trace() / confusion.sum()).item(),
            non_black_accuracy=hit / coloured,
            non_black_iou=hit / (confusion.sum() - confusion[0, 0]).item(),
            inside_accuracy=hit_inside / all_inside if self._inside else None,
            exact_share=(errors == 0).double().mean().item(),
            near_share=(errors <= NEAR).double().mean().item(),
            blank_share=torch.stack(self._blank).sum().item() / len(errors),
            colour_accuracy=tuple(None if math.isnan(share) else share for share in by_colour.tolist()),
        )


def evaluate_grids(
    model: VAE,
    corpus: GridCorpus,
    split: str,
    *,
    settings: Settings,
    training: Grids | None = None,
    seed: int = 0,
    iwae_samples: int = 0,
    iwae_examples: int = IWAE_EXAMPLES,
    quick: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a model of grids on a split of a corpus that lies on the model's device, without conditions.

    `settings`: of the run, for the remedies. `training`: (n, 16, 16) grids the model was trained on, for PCA and for
    what counts as novel; those of `corpus` where None. `iwae_samples`: draws an example of the importance-weighted
    bound, 0 for none. `quick`: at most 2,000 examples, and only what a few seconds allow. `tell` hears what comes next.

    The same seed gives the same report on one machine; torch's generators are left as they were found.

    Raises:
        InputError: a split or a training set without grids, or without a non-black cell.
        ArcvaeError: the model's output is not finite.

    """
    if training is None:
        training = corpus.grids("train").cpu().numpy()
    if not len(training):
        raise InputError(f"{corpus.name}: no training grids to fit the baseline to")
    indices = choose(corpus, split, QUICK_EXAMPLES if quick else None, seed)
    if not len(indices):
        raise InputError(f"{corpus.name}: the split {split} is empty")

    tell(f"reconstructing {len(indices):,} grids")
    information, at_sample = _noisy_pass(model, corpus, split, indices, seed)
    elbo = information.elbo()
    if not math.isfinite(elbo.elbo_nats):
        raise ArcvaeError("the model's output is not finite", "its weights are broken: evaluate an earlier checkpoint")
    if len(model.level_shapes) == 1:
        means = {name: code.view(-1, *model.level_shapes[name]) for name, code in information.codes().items()}
    else:  # below the mean of a level is another posterior than below its sample
        means = posterior_means(model, corpus, split, indices)
    levels = information.levels(0 if quick else MUTUAL_INFORMATION_EXAMPLES)
    units = sum(level.units for level in levels.values())

    tell(f"PCA with {units} components")
    baseline = PCABaseline.fit(training, units, seed)
    at_mean, black, pca, right = _mean_pass(model, corpus, split, indices, means, baseline)
    own, blacks, principal = at_mean.scores(), black.scores(), pca.scores()
    reconstruction = Reconstruction(
        examples=len(indices),
        posterior_mean=own,
        posterior_sample=at_sample.scores(),
        all_black=blacks,
        pca=principal,
        pca_components=baseline.components,
        pca_training_grids=baseline.training_grids,
        skill=Skill(
            skill(own.pixel_accuracy, blacks.pixel_accuracy, principal.pixel_accuracy),
            skill(own.non_black_accuracy, blacks.non_black_accuracy, principal.non_black_accuracy),
        ),
    )

    weighted = shuffled = paths = None
    if not quick and len(indices) > 1:
        tell("shuffled codes, interpolation")
        shuffled = shuffled_codes(model, corpus, split, indices, seed, means, right)
        paths = interpolation(model, corpus, split, indices[: 2 * PAIRS], seed)
    if iwae_samples:
        chosen = indices[:iwae_examples]
        tell(f"importance-weighted likelihood: {iwae_samples} draws for each of {len(chosen)} grids")
        weighted = importance_weighted(model, corpus, split, chosen, iwae_samples, seed)

    tell("samples from the prior")
    count = QUICK_SAMPLES if quick else SAMPLES
    reference = corpus.grids(split)[indices[:count].to(corpus.device)].cpu().numpy()
    samples = score_samples(draw_samples(model, count, seed), reference, training)
    drawn = training[np.random.RandomState(seed).permutation(len(training))[:count]]
    asked, each = (JUDGED, QUICK_ASKED_SAMPLES) if quick else (ASKED, ASKED_SAMPLES)
    obeyed = None
    if model.attributes:
        tell("samples under conditions")
        obeyed = adherence(model, training, each, seed, asked)
    judged = [row for row in obeyed.rows if row.asked in JUDGED] if obeyed else []
    verdict = judge(
        Measured(
            pixel=own.pixel_accuracy,
            non_black=own.non_black_accuracy,
            black_pixel=blacks.pixel_accuracy,
            pca_pixel=principal.pixel_accuracy,
            pca_non_black=principal.non_black_accuracy,
            blank_reconstructions=own.blank_share,
            kl={name: level.kl_nats for name, level in levels.items()},
            blank_samples=samples.blank_share,
            reference_blank=samples.reference_blank_share,
            speck=samples.speck_share,
            reference_speck=samples.reference_speck_share,
            obeyed={row.asked: row.counted_obeying or 0.0 for row in judged},
            counted={row.asked: row.counted / each for row in judged},
        ),
        setup_of(settings, model, math.prod(corpus.positions)),
    )
    report = Report(
        corpus=corpus.name,
        split=split,
        seed=seed,
        quick=quick,
        reconstruction=reconstruction,
        elbo=elbo,
        importance_weighted=weighted,
        levels=levels,
        shuffled_codes=shuffled,
        interpolation=paths,
        prior_samples=samples,
        training_grids=score_samples(drawn, reference, training),
        adherence=obeyed,
        verdict=verdict,
    )
    codes = {name: information.means(name).numpy() for name in levels}
    maps = {name: cells.numpy() for name, cells in information.maps().items()}
    return Evaluation(report, indices.numpy(), at_mean.errors.numpy(), codes, maps)


def skill(accuracy: float, *baselines: float) -> float | None:
    """(accuracy - best baseline) / (1 - best baseline), or None where a baseline leaves nothing to gain."""
    best = max(baselines)
    return (accuracy - best) / (1.0 - best) if best < 1.0 else None


def setup_of(settings: Settings, model: VAE, positions: int) -> Setup:
    """What the remedies need to know of a run's settings."""
    levels = tuple(model.level_shapes)
    network, objective = settings.model, settings.objective
    return Setup(
        betas=settings.schedule.peaks(levels),
        elbo_scale=elbo_scale(settings, positions),
        steered=_steered(settings.schedule, levels),
        latent_dim=network.latent_dim if isinstance(network, GridSettings) else None,
        local_channels=network.local_channels if isinstance(network, HierarchicalSettings) else None,
        reduction=objective.reduction,
        kl_reduction=objective.kl_reduction,
        free_bits={level: objective.floor(level) for level in levels},
        free_bits_mode=objective.free_bits_mode,
        strong_body=not isinstance(network, GridSettings) or network.body != "plain",
    )


def _steered(schedule: Schedule, levels: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Of each level whose beta follows the run, what to set for more KL, and for less."""
    found = {}
    for level in schedule.closed_levels(levels):
        part = schedule.by_level(levels)[level]
        table = f"schedule.{level}" if level in schedule.parts else "schedule"
        if isinstance(part, Geco):
            key, more, less = f"{table}.tolerance (it is {part.tolerance:g})", "lower", "raise"
        elif isinstance(part, KLCapacity):
            key, more, less = f"{table}.capacity (it is {part.capacity:g})", "raise", "lower"
        else:
            assert isinstance(part, ControlVAE)
            key, more, less = f"{table}.target (it is {part.target:g})", "raise", "lower"
        found[level] = (f"{more} {key}", f"{less} {key}")
    return found


def _noisy_pass(
    model: VAE, corpus: GridCorpus, split: str, indices: Tensor, seed: int
) -> tuple[InformationTally, GridTally]:
    """The code, and the scores at one posterior sample."""
    information, tally = InformationTally(), GridTally()
    with evaluating(model, seed) as device:
        for batch, shapes in _batches(corpus, split, indices, device):
            output = model(batch)
            information.update(batch, output)
            tally.update(output.logits.argmax(dim=1), batch.x, shapes)
    return information, tally


def _mean_pass(
    model: VAE, corpus: GridCorpus, split: str, indices: Tensor, means: Mapping[str, Tensor], baseline: PCABaseline
) -> tuple[GridTally, GridTally, GridTally, Shuffled]:
    """Tallies at the posterior `means` (n, *shape) by level, of the black picture and of PCA; and nats at the means."""
    at_mean, black, pca = GridTally(), GridTally(), GridTally()
    reconstruction = []
    with evaluating(model, 0) as device:
        start = 0
        for batch, shapes in _batches(corpus, split, indices, device):
            stop = start + len(batch.x)
            logits = model.decode({name: value[start:stop] for name, value in means.items()})
            at_mean.update(logits.argmax(dim=1), batch.x, shapes)
            reconstruction.append(nats(logits, batch))
            black.update(torch.zeros_like(batch.x), batch.x, shapes)
            pca.update(baseline.decode(batch.x), batch.x, shapes)
            start = stop
    right = Shuffled(exact(torch.cat(reconstruction)).mean().item(), at_mean.scores().pixel_accuracy)
    return at_mean, black, pca, right


def _batches(
    corpus: GridCorpus, split: str, indices: Tensor, device: torch.device
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Batches, each with the heights and widths (B, 2) of its grids where the corpus knows them."""
    shapes = corpus.shapes(split)
    places = torch.split(indices.to(device), BATCH_SIZE)
    for place, batch in zip(places, batches(corpus, split, indices, device), strict=True):
        yield batch, None if shapes is None else shapes[place]


def reconstruct(model: VAE, grids: Grids) -> Grids:
    """Reconstructions of (n, 16, 16) grids at the posterior mean, the likeliest colour in each cell."""
    with evaluating(model, 0) as device:
        parts = torch.split(torch.from_numpy(grids).to(device), BATCH_SIZE)
        drawn = [model(Batch(part.long()), noise=False).logits.argmax(dim=1).to(torch.uint8) for part in parts]
    return torch.cat(drawn).cpu().numpy()


def draw_samples(model: VAE, count: int, seed: int, temperature: float = 1.0) -> Grids:
    """(count, 16, 16) draws from the prior, the likeliest colour in each cell."""
    with evaluating(model, seed):
        return most_likely(model, draw_prior(model, count, temperature)).to(torch.uint8).numpy()


def draw_levels(model: VAE, rows: int, columns: int, seed: int) -> Grids:
    """(rows * columns, 16, 16) draws from the prior: a row shares the noise of the top level, a column all the others'.

    What is shared below the top is standard normal noise and not the latent itself, whose prior depends on the top.
    """
    top = next(iter(model.level_shapes))
    with evaluating(model, seed):
        rows_noise, columns_noise = model.noise(rows), model.noise(columns)
        noise = {
            name: rows_noise[name].repeat_interleave(columns, dim=0)
            if name == top
            else value.repeat(rows, *[1] * (value.dim() - 1))
            for name, value in columns_noise.items()
        }
        return most_likely(model, draw_prior(model, rows * columns, noise=noise)).to(torch.uint8).numpy()
