from __future__ import annotations

import math

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


@pytest.mark.parametrize("angle", [1e-4, math.pi - 1e-4])
def test_slerp_near_parallel_and_opposite_vectors(angle: float) -> None:
    start, end = torch.tensor([[3.0, 0.0]]), torch.tensor([[5 * math.cos(angle), 5 * math.sin(angle)]])
    x, y = between(start.double(), end.double(), 5, "slerp")[:, 0].T
    lengths, angles = (torch.linspace(*ends, 5, dtype=torch.float64) for ends in ((3, 5), (0, angle)))
    torch.testing.assert_close(torch.hypot(x, y), lengths)
    torch.testing.assert_close(torch.atan2(y, x), angles, rtol=1e-4, atol=1e-6)


def test_edit_distances() -> None:
    pairs = {("kitten", "sitting"): 3, ("saturday", "sunday"): 3, ("", "abc"): 3, ("abc", "ca"): 3, ("aa", "aa"): 0}
    assert {pair: edit_distance(*pair) for pair in pairs} == pairs
