from __future__ import annotations

import functools
import math
import random

import pytest
import torch

from arcvae_cli.evaluation.paths import between, edit_distance


def test_a_line_is_evenly_spaced_and_a_quarter_of_a_circle_too() -> None:
    path = between(torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[4.0, 0.0], [1.0, 3.0]]), 3, "linear")
    assert path.tolist() == [[[0, 2], [1, 1]], [[2, 1], [1, 2]], [[4, 0], [1, 3]]]
    path = between(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 4, "slerp")
    angles = torch.tensor([0, math.pi / 6, math.pi / 3, math.pi / 2])
    torch.testing.assert_close(path[:, 0], torch.stack([angles.cos(), angles.sin()], dim=1))


def test_slerp_interpolates_lengths_linearly_and_turns_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(5, 3, 2, 2, generator=generator), 7 * torch.randn(5, 3, 2, 2, generator=generator)
    path = between(start, end, 6, "slerp")
    assert torch.equal(path[0], start) and torch.equal(path[-1], end)
    lengths = path.flatten(2).norm(dim=2)
    torch.testing.assert_close(lengths.diff(dim=0), (lengths[-1] - lengths[0]).expand(5, 5) / 5)
    directions = path.flatten(2) / lengths[:, :, None]
    turns = (directions[1:] * directions[:-1]).sum(2).acos()
    torch.testing.assert_close(turns, turns[:1].expand_as(turns), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("start", "end"),
    [([1.0, 2.0], [2.0, 4.0]), ([1.0, 2.0], [-2.0, -4.0]), ([1.0, 2.0], [1e-9, 0.0]), ([0.0] * 2,) * 2],
)
def test_without_a_great_circle_the_path_is_the_line(start: list[float], end: list[float]) -> None:
    a, b = torch.tensor([start]), torch.tensor([end])
    torch.testing.assert_close(between(a, b, 5, "slerp"), between(a, b, 5, "linear"))


def plain_distance(a: str, b: str) -> int:
    """By its definition, one first element at a time."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        return min(distance(i + 1, j) + 1, distance(i, j + 1) + 1, distance(i + 1, j + 1) + (a[i] != b[j]))

    return distance(0, 0)


def test_edit_distance_by_its_definition() -> None:
    stream = random.Random(0)
    for _ in range(200):
        a, b = ("".join(stream.choices("abc", k=stream.randrange(9))) for _ in range(2))
        assert edit_distance(a, b) == plain_distance(a, b), (a, b)
