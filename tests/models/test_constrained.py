from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from arcvae_cli import conditions
from arcvae_cli.models.constrained import constrained_decode

SIDE = 16


def asked(count: int, *texts: str) -> Tensor:
    return torch.from_numpy(conditions.encode(conditions.parse(texts), count))


def random_logits(count: int, seed: int = 0, black: float = 3.0) -> Tensor:
    """Mostly black, as grids are."""
    logits = torch.randn(count, 10, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    logits[:, 0] += black
    return logits


def measured(grids: Tensor) -> Tensor:
    return torch.from_numpy(conditions.attributes(grids.to(torch.uint8).numpy()))


def test_without_conditions_each_cell_is_the_argmax() -> None:
    logits = random_logits(5)
    for nothing in (None, torch.full((5, len(conditions.ATTRIBUTES)), conditions.NOT_GIVEN)):
        assert torch.equal(constrained_decode(logits, nothing), logits.argmax(1))
    assert torch.equal(constrained_decode(logits, asked(5, "objects=3")), logits.argmax(1)), "not decided cell by cell"


@pytest.mark.parametrize("count", range(1, 10))
def test_missing_colours_are_added(count: int) -> None:
    logits = random_logits(20, black=30.0)
    assert (logits.argmax(1) == 0).all()
    found = constrained_decode(logits, asked(20, f"colours={count}"))
    assert (measured(found)[:, conditions.PLACE["colours"]] == count).all()
    assert ((found > 0).sum(dim=(1, 2)) == count).all(), "no more cells are changed than have to be"


def test_the_change_is_the_cheapest_there_is() -> None:
    logits = random_logits(10, black=30.0)
    found = constrained_decode(logits, asked(10, "colours=1"))
    gain = logits[:, 1:] - logits[:, :1]
    best = gain.flatten(1).argmax(dim=1)
    for one, index in zip(found, best.tolist(), strict=True):
        colour, cell = divmod(index, SIDE * SIDE)
        wanted = torch.zeros(SIDE * SIDE, dtype=torch.int64)
        wanted[cell] = colour + 1
        assert torch.equal(one.flatten(), wanted)


def test_adding_a_colour_keeps_the_last_cell_of_another() -> None:
    logits = torch.zeros(1, 10, SIDE, SIDE)
    logits[:, 0] = 20.0
    logits[0, 3, 2, 2] = 30.0  # the only cell that is not black
    logits[0, 5, 2, 2] = 29.0  # where 5 would be cheapest
    logits[0, 5, 9, 9] = 15.0
    found = constrained_decode(logits, asked(1, "colours=2"))[0]
    assert (found[2, 2], found[9, 9]) == (3, 5) and (found > 0).sum() == 2


def test_required_colours_come_first_and_excluded_ones_never() -> None:
    logits = random_logits(20, black=30.0)
    found = measured(constrained_decode(logits, asked(20, "red=yes", "colours=2", "blue=no")))
    assert (found[:, conditions.PLACE["colour_2"]] == 1).all()
    assert (found[:, conditions.PLACE["colour_1"]] == 0).all()
    assert (found[:, conditions.PLACE["colours"]] == 2).all()


@pytest.mark.parametrize(("height", "width"), list(itertools.product([1, 5, 16], [1, 7, 16])))
def test_the_last_row_and_column_are_coloured(height: int, width: int) -> None:
    logits = random_logits(8)
    logits[:, :, height:], logits[:, :, :, width:] = 0.0, 0.0
    logits[:, 0, height:], logits[:, 0, :, width:] = 60.0, 60.0  # as the decoder leaves what lies beyond
    logits[:, 0, height - 1], logits[:, 0, :, width - 1] = 30.0, 30.0
    found = measured(constrained_decode(logits, asked(8, f"height={height}", f"width={width}")))
    assert (found[:, conditions.PLACE["height"]] == height).all()
    assert (found[:, conditions.PLACE["width"]] == width).all()


@pytest.mark.parametrize("dims", [(2,), (3,), (2, 3)])
def test_a_symmetric_grid_stays_symmetric(dims: tuple[int, ...]) -> None:
    logits = random_logits(10, black=20.0)
    logits[:, 4] += 19.0  # some of it
    for dim in dims:
        logits = (logits + logits.flip(dim)) / 2
    found = constrained_decode(logits, asked(10, "colours=4"))
    assert (measured(found)[:, conditions.PLACE["colours"]] == 4).all()
    for dim in dims:
        assert torch.equal(found, found.flip(dim - 1))
