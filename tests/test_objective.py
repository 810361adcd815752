"""The objective against plain float64 loops over NumPy-like lists, its gradients against finite differences of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arcvae_cli.models.base import Batch, Level, Output
from arcvae_cli.objective import Objective, class_weights
from arcvae_cli.settings import ObjectiveSettings, Settings, elbo_scale


def example(seed: int = 0, masked: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (3, 4, 5) float64, classes (3, 5), and perhaps the positions that count."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) * 2
    x = torch.randint(0, 4, (3, 5), generator=generator)
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool() if masked else None
    return logits, x, valid


def level(kl: Tensor) -> Level:
    return Level("z", kl, kl, kl, kl)


def objective(counts: Tensor | None = None, **settings: object) -> Objective:
    return Objective(ObjectiveSettings.model_validate(settings), counts).double()


def plain_reconstruction(
    logits: Tensor, x: Tensor, valid: Tensor | None, gamma: float | None, weights: list[float] | None, mean: bool
) -> float:
    totals = []
    for b in range(len(x)):
        total, count = 0.0, 0
        for t in range(x.shape[1]):
            if valid is not None and not valid[b, t]:
                continue
            row = [float(v) for v in logits[b, :, t]]
            top = max(row)
            p = math.exp(row[int(x[b, t])] - top) / sum(math.exp(v - top) for v in row)
            nats = -math.log(p) * ((1 - p) ** gamma if gamma is not None else 1.0)
            total += nats * (weights[int(x[b, t])] if weights else 1.0)
            count += 1
        totals.append(total / count if mean else total)
    return sum(totals) / len(totals)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("gamma", "kind"), [(None, "none"), (0.0, "inverse"), (2.0, "none"), (0.5, "balanced")])
def test_reconstruction_against_a_plain_loop(masked: bool, reduction: str, gamma: float | None, kind: str) -> None:
    logits, x, valid = example(masked=masked)
    counts = torch.tensor([1000, 50, 7, 0])
    settings = {"reduction": reduction, "class_weights": kind}
    if gamma is not None:
        settings |= {"reconstruction": "focal", "focal_gamma": gamma}  # type: ignore[dict-item]
    weights = None if kind == "none" else class_weights(counts, kind).double().tolist()
    terms = objective(counts, **settings)(Output(logits, ()), Batch(x, valid), {})
    expected = plain_reconstruction(logits, x, valid, gamma, weights, reduction == "mean")
    assert terms.reconstruction.item() == pytest.approx(expected, rel=1e-6)
    assert terms.loss.item() == terms.reconstruction.item()


def plain_free(kl: list[list[float]], floor: float, mode: str, mean: bool) -> float:
    n, d = len(kl), len(kl[0])
    columns = [sum(row[i] for row in kl) / n for i in range(d)]
    if mode == "per_dim":
        total = sum(max(floor, value) for value in columns)
    elif mode == "per_sample":
        total = sum(max(floor, value) for row in kl for value in row) / n
    else:
        total = max(floor, sum(columns))
    return total / d if mean else total


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("mode", ["per_dim", "per_sample", "total"])
@pytest.mark.parametrize("floor", [0.0, 0.3, 2.5])
def test_free_bits_and_their_gradient_against_float64(mode: str, floor: float, mean: bool) -> None:
    # columns above, astride and below the floor
    rows = [[0.9, 0.5, 0.01], [0.4, 0.2, 0.02], [0.8, 0.1, 0.05], [1.0, 0.35, 0.29]]
    kl = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    loss = objective(free_bits=floor, free_bits_mode=mode, kl_reduction="mean" if mean else "sum")
    free = loss.clamped_kl(kl, kl.mean(dim=0), "z")
    assert free.item() == pytest.approx(plain_free(rows, floor, mode, mean), rel=1e-12)
    free.backward()
    step = 1e-6
    for b in range(4):
        for i in range(3):
            moved = [list(row) for row in rows]
            moved[b][i] += step
            up = plain_free(moved, floor, mode, mean)
            moved[b][i] -= 2 * step
            slope = (up - plain_free(moved, floor, mode, mean)) / (2 * step)
            assert kl.grad is not None
            assert kl.grad[b, i].item() == pytest.approx(slope, abs=1e-8), (b, i)


def test_every_level_has_its_own_beta() -> None:
    logits, x, _ = example()
    kl = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    other = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    levels = (level(kl), Level("local", other, other, other, other))
    terms = objective()(Output(logits, levels), Batch(x), {"z": 0.0, "local": 0.5})
    terms.loss.backward()
    assert kl.grad is None, "a level of weight 0 has no part in the loss"
    assert other.grad is not None and (other.grad == 0.5 / 3).all()


def test_elbo_scale_is_the_ratio_of_the_gradients() -> None:
    """beta on the run's scale and scale * beta on the ELBO give gradients that point the same way."""
    mean = {"reduction": "mean", "kl_reduction": "mean"}
    scale = elbo_scale(Settings.model_validate({"objective": mean}), 5)  # positions
    weighted = Settings.model_validate({"objective": {"class_weights": "balanced"}})
    assert scale is not None and elbo_scale(weighted, 5) is None
    logits, x, _ = example()
    directions = []
    for settings, beta in ((mean, 0.1), ({}, 0.1 * scale * 10 / 2)):  # the settings have ten dimensions, these two
        at = logits.clone().requires_grad_()
        kl = (at.flatten(1)[:, :2] ** 2).clone()
        objective(**settings)(Output(at, (level(kl),)), Batch(x), {"z": beta}).loss.backward()
        assert at.grad is not None
        directions.append(at.grad / at.grad.norm())
    torch.testing.assert_close(*directions)


def test_class_weights() -> None:
    counts = torch.tensor([90, 9, 1])
    balanced = class_weights(counts, "balanced")
    assert (balanced * counts).sum().item() == pytest.approx(100)  # mean 1 over the training positions
    for kind, power in (("inverse", 1.0), ("sqrt_inverse", 0.5)):
        weights = class_weights(counts, kind)
        assert weights.mean().item() == pytest.approx(1.0)
        assert (weights[2] / weights[0]).item() == pytest.approx(90**power, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_focal_loss_has_a_gradient_where_a_class_is_certain(gamma: float) -> None:
    logits = torch.zeros(1, 4, 2)
    logits[:, 1, 0] = 60.0  # in float32 the probability of class 1 is exactly 1 there
    logits.requires_grad_()
    focal = Objective(ObjectiveSettings(reconstruction="focal", focal_gamma=gamma))
    focal.reconstruction(logits, Batch(torch.ones(1, 2, dtype=torch.int64))).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
