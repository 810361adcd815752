from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arcvae_cli.conditions import ATTRIBUTES, NOT_GIVEN, PLACE, attributes, parse, satisfies
from arcvae_cli.evaluation.accuracy import ASKED, JUDGED, condition_accuracy
from arcvae_cli.models.base import VAE, Batch, Level


class Painter(VAE):
    """Draws as many coloured cells as it is asked for colours, three if it is not asked, at random places.

    Asked for red, it draws nothing at all; asked for a symmetry, always the same grid.
    """

    attributes = ATTRIBUTES
    level_shapes = {"z": (256,)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        raise AssertionError("samples need no encoder")

    def decode(self, latents: Mapping[str, Tensor], conditions: Tensor | None = None) -> Tensor:
        asked = torch.full((len(latents["z"]), len(ATTRIBUTES)), NOT_GIVEN) if conditions is None else conditions
        wanted = asked[:, PLACE["colours"]]
        count = torch.where(wanted == NOT_GIVEN, 3, wanted)
        rank = latents["z"].argsort(dim=1).argsort(dim=1)
        grids = torch.where(rank < count[:, None], rank + 1, 0)
        grids[asked[:, PLACE["colour_2"]] == 1] = 0
        grids[asked[:, PLACE["symmetry_lr"]] == 1] = torch.where(torch.arange(256) < 2, 1, 0)
        return nn.functional.one_hot(grids, 10).float().transpose(1, 2).view(-1, 10, 16, 16)

    def prior(self, n: int, temperature=1.0, conditions=None, noise=None) -> dict[str, Tensor]:
        return dict(noise or self.noise(n))


def test_shares_are_of_all_and_of_those_that_count(arc_grids: np.ndarray) -> None:
    asked = ["colours=2", "colours=3", "red=yes", "symmetry=lr", "colours=2 red=no"]
    found = condition_accuracy(Painter(), arc_grids, 50, 0, asked)
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
    colours = [len(set(grid[grid > 0].tolist())) for grid in arc_grids]
    assert two["data"] == pytest.approx(np.mean([number == 2 for number in colours]))
    assert three["data"] == pytest.approx(np.mean([number == 3 for number in colours]))


def test_all_conditions_asked_occur_in_real_grids(arc_grids: np.ndarray) -> None:
    measured = attributes(arc_grids)
    assert set(JUDGED) < set(ASKED)
    assert all(satisfies(measured, parse(text.split())).any() for text in ASKED)
