from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arcvae_cli import conditions
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.conditions import NOT_GIVEN, columns
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.evaluation.samples import (
    condition_accuracy,
    density_and_coverage,
    pca_reconstructions,
    principal_plane,
    score_samples,
    structure,
    tsne_plane,
    wasserstein,
)
from arcvae_cli.models.base import VAE, Batch, Level


def test_structure_of_a_grid_drawn_by_hand() -> None:
    grid = np.zeros((16, 16), np.uint8)
    grid[2:4, 3:6] = 1  # an object of 6
    grid[4, 3] = 2  # a speck
    grid[5, 5] = 1  # another: diagonals do not join
    found = {name: values[0] for name, values in structure(grid[None]).items()}
    # box 111 / 111 / 200 / 001: mirrored left-right, 6 + 1 + 1 cells of 12 stay
    assert (found["height"], found["width"], found["symmetry"], found["foreground"]) == (4, 3, 8 / 12, 8 / 256)
    assert (found["classes"], found["distinct_rows"], found["distinct_columns"]) == (2, 4, 4)
    assert (found["objects"], found["largest_object"], found["specks"]) == (3, 6 / 256, 2 / 8)
    # unequal: both ends of the 3 runs of cells in rows 2, 3, and 2 of each speck's
    assert found["equal_horizontal"] == pytest.approx(1 - 8 / 240)
    # columns 3: 0|1, 1|2, 2|0; 4: 2; 5: 0|1, 1|0, 0|1, 1|0
    assert found["equal_vertical"] == pytest.approx(1 - 9 / 240)
    assert found["equal_diagonal"] == np.mean(grid[1:, 1:] == grid[:-1, :-1])


def test_the_structure_does_not_depend_on_the_numbers_of_the_classes(arc: Dataset) -> None:
    """Grids with the background moved to another class, and cut to a part of a canvas with an outside."""
    grids = arc.x[:50]
    moved = np.roll(np.arange(10, dtype=np.uint8), -3)[grids]  # class 0 becomes 3
    wanted, found = structure(grids), structure(moved, Canvas(background=3, arc=False))
    assert all((wanted[name] == found[name]).all() for name in wanted)
    larger = np.full((50, 16, 20), 10, np.uint8)
    larger[:, :, :16] = grids
    found = structure(larger, Canvas(16, 20, 11, 0, 10))
    same = ("foreground", "classes", "objects", "largest_object", "specks", "height", "width", "symmetry")
    assert all((wanted[name] == found[name]).all() for name in same)


def test_density_and_coverage_are_those_of_plain_loops() -> None:
    random = np.random.RandomState(0)
    scale = np.array([1, 10, 0.1, 1])
    reference, drawn = random.randn(60, 4) * scale + 5, (random.randn(40, 4) + 0.5) * scale + 5
    reference[:, 3] = drawn[:, 3] = 2.0  # does not vary,
    drawn[::2, 3] = 2.3  # there
    a, b = ((x - reference.mean(axis=0)) / [*reference.std(axis=0)[:3], 1] for x in (reference, drawn))
    for k in (1, 5):
        radii = [sorted(np.linalg.norm(x - y) for y in a)[k] for x in a]
        balls = [[np.linalg.norm(x - y) < radius for y in b] for x, radius in zip(a, radii, strict=True)]
        density = sum(map(sum, balls)) / (k * len(b))
        coverage = sum(map(any, balls)) / len(a)
        assert 0.05 < density < 2 and 0.05 < coverage < 1
        assert density_and_coverage(reference, drawn, k) == pytest.approx((density, coverage))
    assert density_and_coverage(reference, drawn + 100) == (0, 0)


def test_wasserstein_is_that_of_scipy() -> None:
    from scipy.stats import wasserstein_distance  # takes a second, of each worker if it stood above

    random = np.random.RandomState(0)
    a, b = random.randint(0, 20, 70).astype(float), random.randint(3, 25, 31).astype(float)
    assert wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b))


def test_blank_distinct_and_novel_shares() -> None:
    random = np.random.RandomState(0)
    grids = random.randint(1, 10, (8, 16, 16)).astype(np.uint8)
    drawn = np.concatenate([np.zeros((2, 16, 16), np.uint8), grids[[0, 0, 1, 2, 3, 4]]])
    found = score_samples(drawn, grids[:4], training=grids[:2])
    assert (found["blank_share"], found["distinct_share"], found["novel_share"]) == (2 / 8, 6 / 8, 5 / 8)
    assert (found["foreground_share"], found["reference_foreground_share"]) == (6 / 8, 1)
    assert (found["samples"], found["reference"]) == (8, 4)
    assert (found["density"], found["coverage"]) == (None, None)  # four grids have no fifth neighbour


class Painter(VAE):
    """Draws as many coloured cells as it is asked for colours, three if it is not asked, at random places.

    Asked for red, it draws nothing at all; asked for a symmetry, always the same grid.
    """

    attributes = conditions.attributes(ARC)
    structure = ARC
    level_shapes = {"z": (256,)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        raise AssertionError("samples need no encoder")

    def decode(self, latents: Mapping[str, Tensor], conditions: Tensor | None = None) -> Tensor:
        asked = torch.full((len(latents["z"]), len(self.attributes)), NOT_GIVEN) if conditions is None else conditions
        wanted = asked[:, columns(ARC)["colours"]]
        count = torch.where(wanted == NOT_GIVEN, 3, wanted)
        rank = latents["z"].argsort(dim=1).argsort(dim=1)
        grids = torch.where(rank < count[:, None], rank + 1, 0)
        grids[asked[:, columns(ARC)["colour_2"]] == 1] = 0
        grids[asked[:, columns(ARC)["symmetry_lr"]] == 1] = torch.where(torch.arange(256) < 2, 1, 0)
        return nn.functional.one_hot(grids, 10).float().transpose(1, 2).view(-1, 10, 16, 16)


def test_shares_are_of_all_and_of_those_that_count(arc: Dataset) -> None:
    asked = ["colours=2", "colours=3", "red=yes", "symmetry=lr", "colours=2 red=no"]
    found = condition_accuracy(Painter(), arc.x, 50, 0, asked)
    assert (found["samples"], found["baseline_counted"]) == (50, 50)
    two, three, red, mirror, both = found["rows"]
    assert (two["obeying"], two["counted"], two["counted_obeying"]) == (1, 50, 1)
    assert (two["baseline_obeying"], two["baseline_counted_obeying"]) == (0, 0)
    assert (three["obeying"], three["baseline_obeying"]) == (1, 1)
    # blank pictures count as nothing, and one picture as one
    assert (red["obeying"], red["counted"], red["counted_obeying"]) == (0, 0, None)
    assert (red["baseline_obeying"], red["baseline_counted_obeying"]) == (1, 1)
    assert (mirror["obeying"], mirror["counted"], mirror["counted_obeying"]) == (1, 1, 1)
    assert (both["asked"], both["obeying"]) == ("colours=2 red=no", 0)
    colours = [len(set(grid[grid > 0].tolist())) for grid in arc.x]
    assert two["data"] == pytest.approx(np.mean([number == 2 for number in colours]))


def test_pca_is_that_of_a_singular_value_decomposition(arc: Dataset) -> None:
    training, unseen = arc.x[:400], arc.x[400:600]
    one_hot = (np.arange(10) == arc.x[:600, ..., None]).reshape(600, -1).astype(float)
    mean = one_hot[:400].mean(axis=0)
    axes = np.linalg.svd(one_hot[:400] - mean, full_matrices=False)[2][:10]
    expected = ((one_hot[400:] - mean) @ axes.T @ axes + mean).reshape(-1, 16, 16, 10).argmax(axis=-1)
    found, sizes = pca_reconstructions(training, torch.from_numpy(unseen), 10, seed=0)
    # the randomised solver is not exact: a cell in a thousand may fall otherwise
    assert np.mean(found.numpy() == expected) > 0.999
    assert sizes == {"pca_components": 10, "pca_training_grids": 400}


@pytest.mark.parametrize("codes", [np.zeros((3, 4)), np.arange(5.0)[:, None], np.eye(3, 2)])
def test_few_narrow_or_constant_codes_have_points(codes: np.ndarray) -> None:
    points, shares = principal_plane(codes.astype(np.float32))
    assert points.shape == (len(codes), 2) and np.isfinite(points).all()
    assert 0 <= sum(shares) <= 1 + 1e-9
    assert np.isfinite(tsne_plane(codes.astype(np.float32), seed=0)).all()
