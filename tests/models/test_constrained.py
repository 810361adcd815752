from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arcvae_cli import conditions
from arcvae_cli.conditions import PLACE
from arcvae_cli.models.constrained import constrained_decode

SIDE = 16


def random_logits(count: int, black: float) -> Tensor:
    """Mostly black, as grids are."""
    logits = torch.randn(count, 10, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += black
    return logits


def decoded(logits: Tensor, *texts: str) -> tuple[Tensor, Tensor]:
    """The grids under these conditions, and their attributes."""
    asked = torch.from_numpy(conditions.encode(conditions.parse(texts), len(logits)))
    found = constrained_decode(logits, asked)
    return found, torch.from_numpy(conditions.attributes(found.to(torch.uint8).numpy()))


def test_without_conditions_on_cells_each_cell_is_the_argmax() -> None:
    logits = random_logits(5, black=3.0)
    assert torch.equal(constrained_decode(logits, None), logits.argmax(1))
    for texts in ((), ("objects=3",)):
        assert torch.equal(decoded(logits, *texts)[0], logits.argmax(1))


@pytest.mark.parametrize("count", [1, 4, 9])
def test_missing_colours_are_added_at_the_lowest_cost(count: int) -> None:
    logits = random_logits(20, black=30.0)
    found, measured = decoded(logits, f"colours={count}")
    assert (measured[:, PLACE["colours"]] == count).all()
    assert ((found > 0).sum(dim=(1, 2)) == count).all(), "no more cells are changed than have to be"
    gain = logits[:, 1:] - logits[:, :1]
    for one, index in zip(found, gain.flatten(1).argmax(dim=1).tolist(), strict=True):
        assert one.flatten()[index % SIDE**2] == index // SIDE**2 + 1


def test_required_colours_come_first_excluded_ones_never_and_the_last_cell_of_a_colour_stays() -> None:
    _, measured = decoded(random_logits(20, black=30.0), "red=yes", "colours=2", "blue=no")
    assert measured[:, [PLACE["colour_2"], PLACE["colour_1"], PLACE["colours"]]].tolist() == [[1, 0, 2]] * 20
    logits = torch.zeros(1, 10, SIDE, SIDE)
    logits[:, 0] = 20.0
    logits[0, 3, 2, 2] = 30.0  # the only cell that is not black
    logits[0, 5, 2, 2] = 29.0  # where 5 would be cheapest
    logits[0, 5, 9, 9] = 15.0
    found = decoded(logits, "colours=2")[0][0]
    assert (found[2, 2], found[9, 9]) == (3, 5) and (found > 0).sum() == 2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (16, 1), (16, 16)])
def test_the_last_row_and_column_are_coloured(height: int, width: int) -> None:
    logits = random_logits(8, black=3.0)
    logits[:, 0, height - 1], logits[:, 0, :, width - 1] = 30.0, 30.0
    logits[:, 1:, height:], logits[:, 1:, :, width:] = 0.0, 0.0
    logits[:, 0, height:], logits[:, 0, :, width:] = 60.0, 60.0  # as the decoder leaves what lies beyond
    _, measured = decoded(logits, f"height={height}", f"width={width}")
    assert (measured[:, PLACE["height"]] == height).all() and (measured[:, PLACE["width"]] == width).all()


@pytest.mark.parametrize("dims", [(2,), (3,), (2, 3)])
def test_a_symmetric_grid_stays_symmetric(dims: tuple[int, ...]) -> None:
    logits = random_logits(10, black=20.0)
    logits[:, 4] += 19.0  # some of it
    for dim in dims:
        logits = (logits + logits.flip(dim)) / 2
    found, measured = decoded(logits, "colours=4")
    assert (measured[:, PLACE["colours"]] == 4).all()
    assert all(torch.equal(found, found.flip(dim - 1)) for dim in dims)
