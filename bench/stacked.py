"""K grid models trained at once in one process: their parameters stacked under torch.func, beside K steps in a row.

The models differ in seed (weights, order of the data, noise) and beta. The single steps are arcvae's own, with the
noise given; the stacked one is vmap over functional_call of the same model, with a gradient norm and an Adam step for
each model. First some steps in fp32: how far losses and weights are apart, which must be rounding. Then both in turns,
as the time of one step of all K models. On CUDA every step is one graph, and also replayed on K streams.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import common
import torch
from own import NAMES, grid_settings, open_grids
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.engine import record_graph
from arcvae_cli.models import build_model
from arcvae_cli.models.base import Batch, Output
from arcvae_cli.models.grid import LEVEL, Flatten, Unflatten
from arcvae_cli.objective import Objective, Terms
from arcvae_cli.settings import Settings
from arcvae_cli.step import Adam, Step, choose_device, seed_step

APART = 5e-3  # of losses, relative, after STEPS steps in fp32: rounding grows with every step of Adam
STEPS = 20


class GivenNoise(nn.Module):
    """Model and objective, with the noise (B, D) of the posterior's draw as an argument."""

    def __init__(self, settings: Settings, corpus: GridCorpus) -> None:
        super().__init__()
        self.model = build_model(settings.model, corpus.structure).to(corpus.device)
        self.objective = Objective(settings.objective).to(corpus.device)

    def forward(self, x: Tensor, noise: Tensor, beta: Tensor) -> Terms:
        """Terms of a batch x (B, H, W) at a 0-d beta."""
        (level,) = self.model.encode(Batch(x), noise=False)
        logits = self.model.decode({LEVEL: level.mean + torch.exp(0.5 * level.logvar) * noise})
        return self.objective(Output(logits, (level,)), Batch(x), {LEVEL: beta})


class Singles:
    """K of arcvae's steps in a row."""

    def __init__(self, settings: Settings, corpus: GridCorpus, betas: Tensor) -> None:
        self.steps, self.betas = [], betas
        for seed in range(len(betas)):
            seed_step(seed, "weights")
            given = GivenNoise(settings, corpus)
            self.steps.append(Step(given.model, given.objective, settings.train, corpus.device))
            self.steps[-1].forward = self.forward(given, self.steps[-1])  # type: ignore[method-assign]

    @staticmethod
    def forward(given: GivenNoise, step: Step) -> Any:
        """What `Step.plain` does, with the noise in the place of the batch's conditions."""

        def forward(batch: Batch, weigh: Any) -> tuple[Terms, None]:
            with step.autocast():
                return given(batch.x, batch.conditions, weigh[LEVEL]), None

        return forward

    def one(self, k: int, x: Tensor, noise: Tensor) -> Tensor:
        """A step of the model k; its loss."""
        return self.steps[k].train(Batch(x[k], conditions=noise[k]), {LEVEL: self.betas[k]})[0].loss.detach()

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """A step of every model from x (K, B, H, W) and noise (K, B, D); losses (K,)."""
        return torch.stack([self.one(k, x, noise) for k in range(len(self.steps))])

    def weights(self) -> list[Tensor]:
        """The parameters of all models, stacked."""
        return [torch.stack(same).detach() for same in zip(*(step.parameters for step in self.steps), strict=True)]


class Stacked:
    """One step of K models whose parameters are stacked."""

    def __init__(self, settings: Settings, corpus: GridCorpus, betas: Tensor) -> None:
        self.betas, self.clip, models = betas, settings.train.gradient_clip, []
        for seed in range(len(betas)):
            seed_step(seed, "weights")
            models.append(vmappable(GivenNoise(settings, corpus)))
        self.given, self.autocast = (
            models[0],
            Step(models[0].model, models[0].objective, settings.train, corpus.device).autocast,
        )
        self.parameters, self.buffers = stack_module_state(models)  # type: ignore[arg-type]
        rate = torch.tensor(settings.train.lr, device=corpus.device)
        self.optimizer = Adam(self.parameters.values(), lr=rate, betas=settings.train.adam_betas, fused=True)
        self.losses = torch.vmap(self.loss, in_dims=(0, 0, 0, 0, 0))

    def loss(self, parameters: Any, buffers: Any, x: Tensor, noise: Tensor, beta: Tensor) -> Tensor:
        """Of one model."""
        return functional_call(self.given, (parameters, buffers), (x, noise, beta)).loss  # type: ignore[no-any-return]

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """As `Singles`."""
        with self.autocast():
            losses = self.losses(self.parameters, self.buffers, x, noise, self.betas)
        parameters = list(self.parameters.values())
        for parameter in parameters:
            parameter.grad = None
        losses.sum().backward()  # the gradient of every model's own parameters: the models share nothing
        grads = [parameter.grad for parameter in parameters]
        norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)  # (K,)
        scale = (norms / self.clip).clamp(min=1.0).reciprocal()
        for grad in grads:
            grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
        self.optimizer.advance(parameters, 0.0)  # arcvae's fused Adam, already clipped
        return losses.detach()

    def weights(self) -> list[Tensor]:
        """As of `Singles`."""
        return [parameter.detach() for parameter in self.parameters.values()]


def vmappable(given: GivenNoise) -> GivenNoise:
    """The same model without the layout functions of the grid models, which vmap has no rule for."""
    for module in given.modules():
        for name, child in module.named_children():
            if isinstance(child, Flatten):
                setattr(module, name, nn.Flatten())
            elif isinstance(child, Unflatten):
                setattr(module, name, nn.Unflatten(child.dim, child.unflattened_size))
    return given


def inputs(corpus: GridCorpus, count: int, batch: int, latent: int, index: int) -> tuple[Tensor, Tensor]:
    """Batches (K, B, H, W) and noise (K, B, D), each model's by its own seed."""
    x, noise = [], []
    for seed in range(count):
        seed_step(seed, "step", 1, index)
        chosen = torch.randint(corpus.size("train"), (batch,), device=corpus.device)
        x.append(corpus.batch("train", chosen).x)
        noise.append(torch.randn(batch, latent, device=corpus.device))
    return torch.stack(x), torch.stack(noise)


def graphs(steps: list[Callable[[], object]]) -> list[torch.cuda.CUDAGraph]:
    """A CUDA graph of each, at fixed addresses."""

    def graph(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
        return record_graph(lambda: (step(), None)[1], lambda: (step(), None)[1])

    return [graph(step) for step in steps]


def on_streams(recorded: list[torch.cuda.CUDAGraph], streams: list[torch.cuda.Stream]) -> None:
    """Replay each graph on its own stream; the current stream waits for all of them."""
    here = torch.cuda.current_stream()
    for graph, stream in zip(recorded, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            graph.replay()
    for stream in streams:
        here.wait_stream(stream)


def compare(count: int, body: str, corpus: GridCorpus, given: Any) -> dict[str, Any]:
    """Equality in fp32, then turns in `--precision`."""
    device = corpus.device
    betas = torch.linspace(0.05, 0.5, count, device=device)

    def both(precision: str) -> tuple[Settings, Singles, Stacked]:
        settings = grid_settings({"body": body}, {"batch_size": given.batch_size, "precision": precision})
        return settings, Singles(settings, corpus, betas), Stacked(settings, corpus, betas)

    settings, singles, stacked = both("fp32")
    latent, batch = settings.model.latent_dim, settings.train.batch_size
    apart = []
    for index in range(STEPS):
        data = inputs(corpus, count, batch, latent, index)
        one, other = singles(*data), stacked(*data)
        apart.append(float(((one - other).abs() / one.abs()).max()))
    first, losses = apart[0], apart[-1]
    weights = max(float((a - b).abs().max()) for a, b in zip(singles.weights(), stacked.weights(), strict=True))
    print(f"{body}, {count} models of batch {batch}; apart in fp32: losses of the first step {first:.1e},")
    print(f"  of step {STEPS} {losses:.1e}, weights then {weights:.1e}")

    settings, singles, stacked = both(given.precision)
    wait, turn, data = common.waiting(str(device)), given.steps, inputs(corpus, count, batch, latent, STEPS)
    variants: dict[str, Callable[[], object]] = {"in a row": lambda: singles(*data), "stacked": lambda: stacked(*data)}
    if device.type == "cuda":
        (whole,) = graphs([variants["stacked"]])
        each = graphs([lambda k=k: singles.one(k, *data) for k in range(count)])  # type: ignore[misc]
        streams = [torch.cuda.Stream() for _ in range(count)]
        variants = {"in a row": lambda: [graph.replay() for graph in each], "stacked": whole.replay}
        variants[f"{count} streams"] = lambda: on_streams(each, streams)
    runs = {
        name: lambda run=run: common.timed(lambda: ([run() for _ in range(turn)], wait())) / turn  # type: ignore[misc]
        for name, run in variants.items()
    }
    seconds = common.in_turns(runs, given.rounds)
    how, results = NAMES[singles.steps[0].precision], []
    print(f"  in a row, {how}: {1e3 * statistics.median(seconds['in a row']):.3g} ms for a step of all")
    for name in list(runs)[1:]:
        found = common.ratio(seconds["in a row"], seconds[name])
        print(f"  {name}: {1e3 * statistics.median(seconds[name]):.3g} ms, {found} the speed")
        results.append({"variant": name, "seconds": seconds[name], **found.table()})
    equal = {"losses_apart": losses, "first_loss_apart": first, "weights_apart": weights}
    return {"body": body, "models": count, "batch": batch, "precision": how, **equal, "variants": results}


def main() -> None:
    parser = common.flags(__doc__, rounds=7)
    parser.add_argument("--models", type=int, nargs="+", default=[4], help="K")
    parser.add_argument("--bodies", nargs="+", choices=("plain", "residual"), default=["plain", "residual"])
    parser.add_argument("--batch-size", type=int, default=128, help="of each model")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the timed steps")
    parser.add_argument("--steps", type=int, help="of a turn; by default 100 on CUDA, 3 elsewhere")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    given.steps = given.steps or (100 if device.type == "cuda" else 3)
    torch.backends.cudnn.allow_tf32 = False
    where = common.machine(str(device), given.threads)
    print(common.place(where))
    corpus = open_grids(grid_settings({}, {}).data, device)
    results = [compare(count, body, corpus, given) for body in given.bodies for count in given.models]
    common.write("stacked", {**where, "results": results}, given.json)
    if any(found["losses_apart"] > APART for found in results):
        sys.exit(f"the stacked losses are further apart than {APART}")


if __name__ == "__main__":
    main()
