"""Paths between codes, and how the decoded examples change along them."""

from collections.abc import Hashable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from arcvae_cli.data.corpus import Corpus
from arcvae_cli.errors import InputError
from arcvae_cli.evaluation.information import eval_mode, posterior_means
from arcvae_cli.evaluation.priors import generate
from arcvae_cli.models.base import VAE

Kind = Literal["linear", "slerp"]


def between(start: Tensor, end: Tensor, steps: int, kind: Kind = "linear") -> Tensor:
    """(steps, B, *shape) evenly spaced points between each pair of (B, *shape), which the path meets exactly.

    `slerp`: on the great circle (Shoemake 1985), with linear lengths; a line where no great circle is defined.
    """
    if kind not in get_args(Kind):
        raise InputError(f"path {kind!r}: unknown", f"use {' or '.join(get_args(Kind))}")
    t = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)[:, None, None]
    a, b = (value.flatten(1).cpu().double() for value in (start, end))  # not every device has float64
    path = torch.lerp(a, b, t)
    if kind == "slerp":
        length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
        u, v = a / length_a.clamp_min(1e-30), b / length_b.clamp_min(1e-30)
        # Kahan's formula: exact to rounding for small angles too, where acos of the product is not
        angle = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
        direction = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / angle.sin().clamp_min(1e-30)
        defined = (angle.sin() > 1e-6) & (torch.minimum(length_a, length_b) > 1e-6)
        path = torch.where(defined, direction * torch.lerp(length_a, length_b, t), path)
    path = path.reshape(-1, *start.shape).to(start)
    path[0], path[-1] = start, end
    return path


def decoded_paths(model: VAE, corpus: Corpus, split: str, indices: Tensor, steps: int, kind: Kind = "linear") -> Tensor:
    """Paths between the halves of `indices`, decoded: (steps, pairs, *positions) classes, on the CPU."""
    pairs = len(indices) // 2
    means = posterior_means(model, corpus, split, indices[: 2 * pairs])
    codes = {name: between(code[:pairs], code[pairs:], steps, kind).flatten(0, 1) for name, code in means.items()}
    with eval_mode(model, 0):
        decoded = generate(model, codes)
    return decoded.reshape(steps, pairs, *decoded.shape[1:])


def smoothness(decoded: Tensor) -> dict[str, Any]:
    """How many positions change along decoded paths (steps, pairs, *positions), as means over pairs.

    `largest_step_share`, `detour`: the largest step and the sum of all over the distance of ends that differ, if any.
    """
    change = (decoded[1:] != decoded[:-1]).flatten(2).sum(2).double()  # (steps - 1, pairs)
    distance = (decoded[-1] != decoded[0]).flatten(1).sum(dim=1).double()
    largest, apart = change.amax(dim=0), distance > 0
    found = {"mean_step": change, "largest_step": largest, "distance": distance}
    shares = {"largest_step_share": largest / distance, "detour": change.sum(dim=0) / distance}
    return {
        **{"pairs": decoded.shape[1], "steps": len(decoded)},
        **{name: value.mean().item() for name, value in found.items()},
        **{name: value[apart].mean().item() if apart.any() else None for name, value in shares.items()},
    }


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The fewest insertions, deletions and substitutions from one sequence to the other (Levenshtein 1966)."""
    row = list(range(len(b) + 1))  # row[j]: from the first elements of a to the first j of b
    for count, element in enumerate(a, 1):
        above, row = row, [count]
        for place, other in enumerate(b, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (element != other)))
    return row[-1]
