"""Paths between codes, and how the decoded examples change along them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from arcvae_cli.data.corpus import Corpus
from arcvae_cli.evaluation.information import BATCH_SIZE, eval_mode
from arcvae_cli.models.base import VAE

PathKind = Literal["linear", "slerp"]


def walk(
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    steps: int,
    kind: PathKind = "linear",
    levels: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """(steps, B, *shape) by level from `start` to `end`, (B, *shape) by level; only `levels` (None for all) move."""
    return {
        name: between(value, end[name], steps, kind)
        if levels is None or name in levels
        else value.expand(steps, *value.shape)
        for name, value in start.items()
    }


def between(start: Tensor, end: Tensor, steps: int, kind: PathKind) -> Tensor:
    """(steps, B, *shape) evenly spaced points between each pair of (B, *shape), which the path meets exactly.

    `slerp`: directions evenly spaced on the great circle (Shoemake 1985), lengths interpolated linearly; a line where
    no great circle is defined (a vector near zero, the same or opposite directions).
    """
    t = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)[:, None, None]
    a, b = (value.flatten(1).cpu().double() for value in (start, end))  # not every device has float64
    path = torch.lerp(a, b, t)
    if kind == "slerp":
        length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
        u, v = a / length_a.clamp_min(_TINY), b / length_b.clamp_min(_TINY)
        # Kahan's formula: exact to rounding for small angles too, where acos of the product is not.
        angle = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
        sine = angle.sin()
        direction = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / sine.clamp_min(_TINY)
        defined = (sine > 1e-6) & (torch.minimum(length_a, length_b) > 1e-6)
        path = torch.where(defined, direction * torch.lerp(length_a, length_b, t), path)
    path = path.reshape(-1, *start.shape).to(start)
    path[0], path[-1] = start, end
    return path


_TINY = 1e-30


def decoded_paths(model: VAE, corpus: Corpus, split: str, indices: Tensor, steps: int) -> Tensor:
    """Straight paths between the halves of `indices`, decoded: (steps, pairs, *positions) classes, on the CPU."""
    pairs = len(indices) // 2
    found = []
    with eval_mode(model, 0) as device:
        for start in range(0, pairs, BATCH_SIZE):
            stop = min(start + BATCH_SIZE, pairs)
            first, second = (
                {level.name: level.mean for level in model.encode(corpus.batch(split, half.to(device)), noise=False)}
                for half in (indices[start:stop], indices[pairs + start : pairs + stop])
            )
            path = walk(first, second, steps)
            points = [{name: codes[step] for name, codes in path.items()} for step in range(steps)]
            found.append(torch.stack([model.argmax_decode(model.decode(point)).cpu() for point in points]))
    return torch.cat(found, dim=1)


def smoothness(decoded: Tensor) -> dict[str, Any]:
    """How decoded paths (steps, pairs, *positions) change; means over pairs.

    `mean_step`, `largest_step`: positions that change from one step to the next. `distance`: positions in which the
    ends differ. `largest_step_share`: the largest step over that distance; 1 / (steps - 1) is an even path, 1 a jump.
    `detour`: all changes over that distance, 1 on the shortest way. The last two are None if no pair of ends differs.
    """
    change = (decoded[1:] != decoded[:-1]).flatten(2).sum(2).double()  # (steps - 1, pairs)
    distance = (decoded[-1] != decoded[0]).flatten(1).sum(dim=1).double()
    apart = distance > 0
    some = bool(apart.any())
    return {
        "pairs": decoded.shape[1],
        "steps": len(decoded),
        "mean_step": change.mean().item(),
        "largest_step": change.amax(dim=0).mean().item(),
        "distance": distance.mean().item(),
        "largest_step_share": (change.amax(dim=0) / distance)[apart].mean().item() if some else None,
        "detour": (change.sum(dim=0) / distance)[apart].mean().item() if some else None,
    }


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The fewest insertions, deletions and substitutions from one sequence to the other (Levenshtein 1966)."""
    numbers = {element: number for number, element in enumerate(dict.fromkeys([*a, *b]))}
    other = np.array([numbers[element] for element in b], np.int64)
    place = np.arange(len(b) + 1)
    row = place
    for count, element in enumerate(a, 1):  # row[j]: from the first elements of a to the first j of b
        substituted = np.minimum(row[1:] + 1, row[:-1] + (other != numbers[element]))
        reached = np.concatenate([[count], substituted])
        row = np.minimum.accumulate(reached - place) + place  # an insertion costs one more than the place before
    return int(row[-1])
