from __future__ import annotations

import pytest
import torch

from arcvae_cli.errors import InputError
from arcvae_cli.metrics import MetricAccumulator
from arcvae_cli.models import build_model
from arcvae_cli.models.base import Batch, Level, Output
from arcvae_cli.objective import Objective
from arcvae_cli.settings import Settings
from arcvae_cli.step import Adam, Step, choose_device, choose_precision, mix, seed_step

CPU = torch.device("cpu")


def batch(n: int, seed: int = 0) -> Batch:
    return Batch(torch.randint(0, 10, (n, 16, 16), generator=torch.Generator().manual_seed(seed)))


def make_step(**train: object) -> Step:
    settings = Settings.model_validate({"train": {"precision": "fp32", **train}})
    seed_step(0, "weights")
    return Step(build_model(settings.model), Objective(settings.objective), settings.train, CPU)


@pytest.mark.parametrize("share", [None, 0.6])
def test_the_metrics_of_batches_are_means_over_all_examples(share: float | None) -> None:
    """Uneven batches count by their examples, padding nowhere; accuracies count what is scored, losses all."""
    generator = torch.Generator().manual_seed(1)
    logits, x = torch.randn(7, 3, 5, generator=generator), torch.randint(0, 3, (7, 5), generator=generator)
    logits[2] = torch.nn.functional.one_hot(x[2], 3).T * 9.0  # one example wholly right
    valid = torch.rand(7, 5, generator=generator) < 0.8
    kl = torch.rand(7, 2, generator=generator)
    objective = Objective(Settings().objective)
    scored = valid if share is None else valid & (torch.rand(7, 5, generator=generator) < share)
    metrics = MetricAccumulator(3, {"z": 2}, background=0, device=CPU)
    for row, rows, beta in ((1, slice(0, 4), 0.1), (torch.tensor([0]), slice(4, 7), torch.tensor(0.3).double())):
        part = Batch(x[rows], valid[rows], scored=None if share is None else scored[rows])
        output = Output(logits[rows], (Level("z", kl[rows], kl[rows], kl[rows], kl[rows]),))
        metrics.add(row, objective(output, part, {"z": beta}), output, part)
    rows = metrics.read(2)
    found = rows.mean()
    assert rows.betas() == {"z": [torch.tensor(0.3).double().item(), 0.1]} and rows.first_nonfinite is None
    right = logits.argmax(1) == x
    assert found.examples == 7
    assert found.position == pytest.approx(right[scored].double().mean().item())
    assert found.foreground == pytest.approx(right[scored & (x != 0)].double().mean().item())
    assert found.exact == pytest.approx((right | ~scored).all(1).double().mean().item()) and found.exact >= 1 / 7
    assert found.kl_per_dim["z"] == pytest.approx(kl.double().mean(0).tolist())
    nats = (torch.nn.functional.cross_entropy(logits, x, reduction="none") * valid).sum().item() / 7
    assert found.reconstruction == pytest.approx(nats, rel=1e-6)
    weighted = (0.1 * kl[:4].sum() + 0.3 * kl[4:].sum()).item() / 7
    assert found.loss == pytest.approx(nats + weighted, rel=1e-6)
    assert found.kl == pytest.approx(kl.sum().item() / 7)

    nan = torch.full((1, 2), float("nan"))
    output, part = Output(logits[:1], (Level("z", nan, nan, nan, nan),)), Batch(x[:1])
    metrics.add(2, objective(output, part, {"z": 0.0}), output, part)
    assert metrics.read().first_nonfinite == 2


def test_the_step_is_the_one_written_out_by_hand() -> None:
    step, examples = make_step(lr=0.01, gradient_clip=0.5), batch(8)
    twin = build_model(Settings().model)
    twin.load_state_dict(step.model.state_dict())
    adam = torch.optim.Adam(twin.parameters(), lr=0.01)
    for index in range(6):
        seed_step(5, index)
        terms, _ = step.train(examples, {"z": 0.3})
        seed_step(5, index)
        output = twin(examples)
        nats = torch.nn.functional.cross_entropy(output.logits, examples.x, reduction="sum") / 8
        adam.zero_grad()
        loss = nats + 0.3 * output.levels[0].kl.sum(1).mean()
        assert terms.loss.item() == pytest.approx(loss.item(), rel=1e-4)  # a step that differs shows in the next loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        adam.step()


@pytest.mark.parametrize("most", [0.0, 0.1, 1e6])
def test_adam_is_pytorchs_after_pytorchs_clipping(most: float) -> None:
    def layers() -> torch.nn.Sequential:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double()

    own, twin = layers(), layers()
    arguments = {"lr": torch.tensor(0.02), "betas": (0.8, 0.95), "weight_decay": 0.01, "fused": True}
    adam, plain = Adam(list(own.parameters()), **arguments), torch.optim.Adam(twin.parameters(), **arguments)
    unused = torch.nn.Parameter(torch.ones(2))
    for index in range(20):
        x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(index))
        for model in (own, twin):
            model.zero_grad()
            model(x).square().sum().backward()
        adam.advance([*own.parameters(), unused], most)
        if most:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), most)
        plain.step()
    for a, b in zip(own.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert unused.tolist() == [1.0, 1.0]
    assert adam.state_dict()["state"].keys() == plain.state_dict()["state"].keys()


def test_bf16_gives_the_loss_of_fp32() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        step = make_step(precision=precision)
        for index in range(3):
            seed_step(0, index)
            terms, output = step.train(batch(16, index), {"z": 0.1})
        assert output.logits.dtype == torch.float32
        losses.append(terms.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_seeds_devices_and_precisions() -> None:
    seeds = {mix(seed, "step", epoch, step) for seed in range(4) for epoch in range(4) for step in range(12)}
    assert len(seeds) == 192 and all(0 <= seed < 2**63 for seed in seeds)
    assert choose_device("cpu") == CPU
    assert choose_precision("fp32", CPU) == torch.float32 and choose_precision("bf16", CPU) == torch.bfloat16
    assert choose_precision("auto", torch.device("mps")) == torch.float32
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"train\.device: cuda:3 is not available"):
            choose_device("cuda:3")
