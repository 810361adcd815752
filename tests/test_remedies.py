"""Remedies of the literature against closed forms, quadrature and Monte Carlo."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arcvae_cli import gaussians
from arcvae_cli.commands.ranks import joined
from arcvae_cli.errors import InputError
from arcvae_cli.metrics import MetricAccumulator
from arcvae_cli.models import build_model
from arcvae_cli.models.base import Encoder, Level, repeated
from arcvae_cli.objective import Objective
from arcvae_cli.settings import ObjectiveSettings
from arcvae_cli.step import Step, seed_step
from arcvae_cli.trainer import Trainer
from tests.test_trainer import make, settings, squares


def test_mean_norm_leaves_the_kl_its_floor() -> None:
    """The mean of mean^2 / 2 over a batch is (scale^2 + shift^2) / 2, whatever the weights; alone it does not count."""
    seed_step(0)
    encoder = Encoder(nn.Identity(), 5, 3, mean_norm=0.6)
    assert isinstance(encoder.mean_norm, nn.Module)
    shift = torch.tensor([0.0, 0.5, -2.0])
    encoder.mean_norm.shift.data.copy_(shift)  # type: ignore[union-attr, operator]
    floor = 0.5 * (0.6**2 + shift**2)
    for spread in (7.0, 1e-4):  # the loss would shrink the means, if that lowered the KL
        mean, _ = encoder(torch.randn(64, 5) * spread + 3.0)
        torch.testing.assert_close(0.5 * mean.square().mean(dim=0), floor, rtol=1e-3, atol=0.0)
    for logvar in (-3.0, 0.0, 2.0):
        kl = gaussians.kl_to_standard(mean, torch.full_like(mean, logvar)).mean(dim=0)
        assert bool((kl >= floor * (1.0 - 1e-3)).all())
    one = torch.randn(1, 5)
    torch.testing.assert_close(encoder.eval()(one)[0], encoder(one.repeat(2, 1))[0][:1])
    assert set(Encoder(nn.Identity(), 5, 3).state_dict()) == {
        "mean.weight",
        "mean.bias",
        "spread.weight",
        "spread.bias",
    }


@pytest.mark.parametrize("d", [1, 3])
def test_mmd_against_loops_and_quadrature(d: int) -> None:
    """Kernels pair by pair; the means under N(0, I) by Gauss-Hermite nodes, a factor for each dimension."""
    z = np.random.default_rng(0).normal(0.7, 1.4, (6, d))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def kernel(x: Any, y: Any) -> Any:  # a factor of it
        return np.exp(-((x - y) ** 2) / (2 * d))

    pairs = [math.prod(kernel(a, b)) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    across = [math.prod(float(weights @ kernel(value, nodes)) for value in row) for row in z]
    prior = float(weights @ kernel(nodes[:, None], nodes) @ weights) ** d
    expected = np.mean(pairs) - 2 * np.mean(across) + prior
    assert gaussians.mmd_to_standard(torch.tensor(z)).item() == pytest.approx(expected, rel=1e-9)


def test_mmd_of_samples_of_the_prior_is_zero_on_average() -> None:
    seed_step(1)
    found = torch.stack([gaussians.mmd_to_standard(torch.randn(8, 4)) for _ in range(4000)])
    assert abs(found.mean().item()) < 4 * (found.std() / math.sqrt(len(found))).item()
    assert gaussians.mmd_to_standard(torch.zeros(8, 4)).item() > 0.1  # a code that is always the same
    assert gaussians.mmd_to_standard(torch.zeros(1, 4)).isfinite()


# x ~ N(a z, s^2) with z ~ N(0, 1), so that log p(x) is known; q is not the true posterior
A, S, X = 1.3, 0.6, 0.8


def bound(mean: Tensor, logvar: Tensor, a: Tensor, draws: int, beta: float, gradient: str) -> Tensor:
    """(B,) of means and log variances (B, 1), with noise that the seed decides."""
    level = repeated(Level("z", mean, logvar, mean, mean), draws)
    sample = gaussians.sample(level.mean, level.logvar)
    level = Level("z", level.mean, level.logvar, sample, level.kl)
    nats = -gaussians.log_density(torch.tensor(X), a.repeat(draws) * sample[:, 0], torch.tensor(2 * math.log(S)))
    objective = Objective(ObjectiveSettings(importance_samples=2, importance_gradient=gradient))  # type: ignore[arg-type]
    return objective.importance_bound(nats, (level,), {"z": beta}, draws)


def test_the_bound_is_the_elbo_of_one_sample_and_the_likelihood_of_many() -> None:
    mean, logvar = torch.full((4, 1), 0.3), torch.full((4, 1), -0.5)
    a = torch.full((4,), A)
    seed_step(2)
    found = bound(mean, logvar, a, 1, 0.7, "iwae")
    seed_step(2)
    z = gaussians.sample(mean, logvar)
    q, p = torch.distributions.Normal(mean, torch.exp(0.5 * logvar)), torch.distributions.Normal(0.0, 1.0)
    likelihood = torch.distributions.Normal(A * z[:, 0], S).log_prob(torch.tensor(X))
    torch.testing.assert_close(found, likelihood + 0.7 * (p.log_prob(z) - q.log_prob(z))[:, 0])
    exact = torch.distributions.Normal(0.0, math.hypot(A, S)).log_prob(torch.tensor(X)).item()
    means = [bound(mean, logvar, a, draws, 1.0, "dreg").mean().item() for draws in (10_000, 100_000)]
    assert means == pytest.approx([exact, exact], abs=0.02)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_dreg_has_the_gradient_of_iwae_on_average_and_less_variance(beta: float) -> None:
    count, draws, grads = 200_000, 5, {}
    for gradient in ("iwae", "dreg"):
        seed_step(3)
        mean = torch.full((count, 1), 0.3, requires_grad=True)
        logvar = torch.full((count, 1), -1.0, requires_grad=True)
        a = torch.full((count,), A, requires_grad=True)
        bound(mean, logvar, a, draws, beta, gradient).sum().backward()
        grads[gradient] = [leaf.grad.flatten() for leaf in (mean, logvar, a) if leaf.grad is not None]
    for iwae, dreg in zip(grads["iwae"][:2], grads["dreg"][:2], strict=True):  # of the encoder
        error = torch.stack([iwae.var() / count, dreg.var() / count]).sum().sqrt()
        assert abs(iwae.mean() - dreg.mean()) < 4 * error
        assert dreg.var() < iwae.var() * (0.75 if beta == 1.0 else 1.0)
    torch.testing.assert_close(grads["iwae"][2], grads["dreg"][2], msg="of the decoder: the same")


def test_a_step_of_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a whole model: the encoder's gradient is that of squared weights, metrics count examples once."""
    chosen, draws = settings(objective={"importance_samples": 3}), 3
    corpus, monkey = squares(), monkeypatch
    seed_step(0)
    model = build_model(chosen.model)
    step = Step(model, Objective(chosen.objective), chosen.train, torch.device("cpu"))
    monkey.setattr(step.optimizer, "advance", lambda *_: None)
    batch = corpus.batch("train", torch.arange(4))
    seed_step(5)
    terms, output = step.train(batch, {"z": 1.0})
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    seed_step(5)
    level = model.encode(batch, noise=False)[0]
    mean, logvar = level.mean.repeat(draws, 1), level.logvar.repeat(draws, 1)
    z = gaussians.sample(mean, logvar)
    leaf = z.detach().requires_grad_()
    nats = nn.functional.cross_entropy(model.decode({"z": leaf}), batch.x.repeat(draws, 1, 1), reduction="none")
    q = torch.distributions.Normal(mean.detach(), torch.exp(0.5 * logvar.detach()))
    log_w = (torch.distributions.Normal(0.0, 1.0).log_prob(leaf) - q.log_prob(leaf)).sum(1) - nats.flatten(1).sum(1)
    log_w = log_w.view(draws, 4)
    shares = log_w.detach().softmax(0)
    for parameter in model.parameters():
        parameter.grad = None
    (-(shares * log_w).sum(0).mean()).backward()
    assert leaf.grad is not None
    z.backward(leaf.grad * shares.view(-1, 1))  # type: ignore[no-untyped-call]
    expected = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    loss = -(log_w.logsumexp(0) - math.log(draws)).mean()
    torch.testing.assert_close((terms.loss, terms.reconstruction), (loss, nats.flatten(1).sum(1).mean()))
    metrics = MetricAccumulator(1, model.level_sizes, 0, torch.device("cpu"))
    metrics.add(0, terms, output, batch)
    epoch = metrics.read().mean()
    assert epoch.examples == 4 and epoch.loss == pytest.approx(loss.item())
    model.eval()
    with torch.inference_mode():
        assert len(step.plain(batch, {"z": 1.0})[1].levels[0].mean) == 4, "validation has the ordinary ELBO"


def test_a_step_with_draws_of_the_prior() -> None:
    """The loss has -log p(x|z) of the first examples at draws from N(0, I) too; no metric counts them."""
    chosen = settings(objective={"prior_draws": 0.5}, train={"precision": "fp32"})
    batch = squares().batch("train", torch.arange(4))
    seed_step(0)
    model = build_model(chosen.model)
    step = Step(model, Objective(chosen.objective), chosen.train, torch.device("cpu"))
    seed_step(5)
    terms, output = step.plain(batch, {"z": 0.7})
    seed_step(5)
    plain = model(batch)
    ordinary = Objective(ObjectiveSettings())(plain, batch, {"z": 0.7})
    nats = nn.functional.cross_entropy(model.decode({"z": model.noise(2)["z"]}), batch.x[:2], reduction="sum")
    torch.testing.assert_close(terms.loss, ordinary.loss + nats / 4)
    torch.testing.assert_close((terms.reconstruction, output.logits), (ordinary.reconstruction, plain.logits))
    model.eval()
    assert step.plain(batch, {"z": 0.7})[0].loss < terms.loss, "validation has the ordinary ELBO"


def test_iwae_of_two_levels_repeats_the_batch() -> None:
    maps = {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}
    chosen = settings(model=maps, objective={"importance_samples": 2, "importance_gradient": "iwae"})
    model = build_model(chosen.model)
    batch = squares().batch("train", torch.arange(3))
    seed_step(1)
    output = model.draw(batch, 2)
    terms = Objective(chosen.objective)(output, repeated(batch, 2), dict.fromkeys(model.level_sizes, 1.0), 2)
    terms.loss.backward()
    assert len(output.logits) == 6 and terms.loss < terms.reconstruction + sum(terms.clamped_kl.values())


@pytest.mark.parametrize(
    "tables",
    [
        {"model": {"mean_norm": 0.6}},
        {"objective": {"mmd": 9.0}},
        {"objective": {"importance_samples": 2}},
        {"objective": {"prior_draws": 0.2}},
    ],
    ids=["model.mean_norm", "objective.mmd", "objective.importance_samples", "objective.prior_draws"],
)
def test_several_ranks_refuse_what_needs_the_batch_in_one(
    tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(InputError, match=rf"{request.node.callspec.id}: needs a batch in one process"):
        joined(settings({"train": {"device": "cpu"}}, **tables), None).__enter__()


def weights(trainer: Trainer, part: str) -> Tensor:
    module: nn.Module = getattr(trainer.model, part)
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def test_lagging_moves_the_encoder_alone_until_information_no_longer_rises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 steps an epoch, of which every third moves the decoder; patience does not end a run before."""
    train = {"encoder_steps": 2, "epochs": 9, "patience": 2, "monitor": "val/exact_accuracy"}  # which stays at 0
    trainer, recorder = make(tmp_path, settings(train=train))
    informed = [0.5, 0.9, 1.3, 1.2]
    monkeypatch.setattr(trainer, "mutual_information", lambda: informed.pop(0))
    moved: list[tuple[bool, bool]] = []
    before = [weights(trainer, "encoder"), weights(trainer, "decoder")]

    def stepped(*_: object) -> None:
        after = [weights(trainer, "encoder"), weights(trainer, "decoder")]
        moved.append((not torch.equal(before[0], after[0]), not torch.equal(before[1], after[1])))
        before[:] = after

    recorder.step.side_effect = stepped
    trainer.fit()
    assert all(encoder for encoder, _ in moved)
    assert [decoder for _, decoder in moved[:16]] == [step % 3 == 0 for step in range(1, 17)]
    assert all(decoder for _, decoder in moved[16:])
    lines = [record.metrics() for record in trainer.history]
    assert [line["train/encoder_steps"] for line in lines] == [2, 2, 2, 2, 0, 0]
    assert [line.get("val/mutual_information") for line in lines] == [0.5, 0.9, 1.3, 1.2, None, None]
    counts = {int(state["step"]) for state in trainer.step.optimizer.state.values()}
    assert counts == {24, 5 + 8}, "of the encoder, of the decoder"


def test_the_information_of_a_run_is_that_of_its_first_level(tmp_path: Path) -> None:
    """Eight examples with codes far apart: log 8 nats."""
    trainer, _ = make(tmp_path, settings(train={"encoder_steps": 1}))
    mean = trainer.model.encoder.mean
    assert isinstance(mean, nn.Linear)
    nn.init.normal_(mean.weight, std=1e4)
    assert trainer.mutual_information() == pytest.approx(math.log(8), abs=1e-3)
