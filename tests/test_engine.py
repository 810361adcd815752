"""Every engine trains as the eager one does. A CUDA graph stands here as operators replayed on the same memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from arcvae_cli import engine as engines
from arcvae_cli.controllers import Controller
from arcvae_cli.data.corpus import Corpus, open_corpus
from arcvae_cli.engine import Engine
from arcvae_cli.metrics import MetricRows
from arcvae_cli.models import build_model
from arcvae_cli.objective import Objective
from arcvae_cli.settings import Settings
from arcvae_cli.step import Step, seed_step

REFUSED = ("_local_scalar_dense", "item.default", "nonzero", "masked_select", "unique", "equal.default", "tolist")


class Recording(TorchDispatchMode):
    """Records what is called within it; `replay` does it again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func)
        masks = "aten.index" in name and any(tensor.dtype == torch.bool for tensor in tensors(args[1:2]))
        if masks or any(part in name for part in REFUSED):
            raise RuntimeError(f"{name} waits for the device")
        # other names for the same memory: shapes may be changed in place later
        held = pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, *held, [tensor.detach() for tensor in tensors(out)]))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, kept in self.calls:
            for place, new in zip(kept, tensors(func(*args, **kwargs)), strict=True):
                # a view and what is changed in place lie in memory that is already right
                if place.data_ptr() != new.data_ptr():
                    place.copy_(new)


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def record(function: Callable[[], object], warm_up: Callable[[], object]) -> Recording:
    """In place of `engine.record_graph`: the function runs while it is recorded, so its work is done once here."""
    warm_up()
    with Recording() as recording:
        function()
    return recording


CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("narrow")
STEPS, EPOCHS = 5, 2
TIMES = [(index + 1) / STEPS for index in range(EPOCHS * STEPS)]
WARM_UP = {"name": "linear_warmup", "max_beta": 0.5, "warmup_epochs": 0.5, "per": "step"}  # 0 at first
PLAIN: dict[str, Any] = {"model": {"name": "grid"}, "objective": {"free_bits": 0.3, "class_weights": "balanced"}}
GRAMMAR = {"name": "grammar", "encoder_hidden": 16, "decoder_hidden": 16, "decoder_layers": 1}
GECO = {"name": "geco", "tolerance": 0.4}
TABLES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "residual": {"model": {"name": "grid", "body": "residual", "dropout": 0.2}, "schedule": GECO},
    "hierarchical": {"model": {"name": "hierarchical", "local_size": 4}},
    "grammar": {"model": GRAMMAR, "schedule": {"name": "controlvae", "target": 3.0, "ki": -1e-3}},
    "kl_capacity": {**PLAIN, "schedule": {"name": "kl_capacity", "capacity": 5.0, "ramp_epochs": 3.0}},
    "remedies": {
        "model": {**GRAMMAR, "mean_norm": 0.6},
        "objective": {"mmd": 10.0, "prior_draws": 0.25},
        "train": {"encoder_steps": 1},
    },
    "bound": {"model": {"name": "grid"}, "objective": {"importance_samples": 3}},
    "cyclical": {**PLAIN, "schedule": {"name": "cyclical", "cycle_length": 2.0}},
}


@functools.cache
def opened(strings: bool, device: torch.device) -> Corpus:
    data = {"name": "equations", "size": 400} if strings else {"name": "shapes", "size": 120}
    return open_corpus(Settings.model_validate({"data": data, "model": GRAMMAR if strings else {}}).data, device)


def make(table: dict[str, Any], engine: str, device: torch.device = CPU, graphs: bool = False) -> Engine:
    """An engine; `graphs`: that takes its device for one with graphs."""
    strings = table["model"]["name"] == "grammar"
    train = {"batch_size": 8, "precision": "fp32", "engine": engine, **table.get("train", {})}
    table = {"schedule": WARM_UP, **table, "train": train}
    settings = Settings.model_validate({**table, "data": {"name": "equations" if strings else "shapes"}})
    corpus = opened(strings, device)
    seed_step(0, "weights")
    model = build_model(settings.model, corpus.structure).to(device).train()
    step = Step(model, Objective(settings.objective, corpus.class_counts()).to(device), settings.train, device)
    levels, reduction = tuple(model.level_sizes), settings.objective.reduction
    control = Controller(settings.schedule, levels, device, corpus.mean_positions, reduction)
    made = Engine(settings, step, corpus, control, STEPS)
    made.cuda = graphs or made.cuda
    return made


def train(engine: Engine) -> list[MetricRows]:
    """Ten steps with a learning rate and a beta that move; what each epoch came to."""
    found = []
    for epoch in range(1, EPOCHS + 1):
        engine.begin(epoch)
        for index in range(STEPS):
            engine.control.at(TIMES[(epoch - 1) * STEPS + index])
            engine.step.rate.fill_(1e-3 / epoch)
            engine.step.encoder_only = engine.settings.train.encoder_steps > 0 and index % 2 == 0
            engine.run(index)
        found.append(engine.metrics.read(STEPS))
    return found


def apart(one: Engine, other: Engine) -> float:
    """The largest difference of any weight."""
    pairs = zip(one.step.model.parameters(), other.step.model.parameters(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "record_graph", record)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_graph_trains_as_eager_does(table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, betas included, and what was tried before the first step leaves no trace."""
    plain, graph = make(table, "eager"), make(table, "auto", graphs=True)
    plain.prepare(TIMES)
    graph.prepare(TIMES)
    monkeypatch.setattr(graph, "body", Mock(side_effect=AssertionError("once recorded, the body is not run again")))
    assert (plain.kind, graph.kind, graph.reason) == ("eager", "graph", "")
    for expected, found in zip(train(plain), train(graph), strict=True):
        np.testing.assert_array_equal(found.rows, expected.rows)
    assert apart(plain, graph) == 0.0
    parts = 2 if graph.settings.train.encoder_steps else 1
    assert len(graph._graphs) == parts * (1 if graph.settings.schedule.closed_loop else 2), "one more while beta is 0"


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(("name", "graph"), [("plain", True), ("grammar", False)])
def test_a_streamed_corpus_trains_as_a_resident_one_does(
    name: str, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = make(TABLES[name], "eager")
    monkeypatch.setattr(resident.corpus, "streamed", True)
    streamed = make(TABLES[name], "auto", graphs=graph)
    streamed.prepare(TIMES)
    assert streamed.taken is not None and streamed.kind == ("graph" if graph else "eager")
    for expected, found in zip(train(resident), train(streamed), strict=True):
        np.testing.assert_array_equal(found.rows, expected.rows)
    assert apart(resident, streamed) == 0.0


@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_a_compiled_network_trains_as_eager_does(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, options, **how: compiler(function, backend="aot_eager", **how)
    )
    table = {**PLAIN, "schedule": GECO}
    plain, compiled = make(table, "eager"), make(table, "compile")
    compiled.prepare(TIMES)
    assert (compiled.kind, compiled.reason) == ("compile", "")
    assert compiled.step.forward != compiled.step.plain
    for expected, found in zip(train(plain), train(compiled), strict=True):
        np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-4, atol=1e-3)
    assert apart(plain, compiled) < 1e-5


@pytest.mark.usefixtures("graphs")
def test_eager_replaces_an_engine_that_is_impossible_here(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = make(PLAIN, "graph")
    asked.prepare(TIMES)
    assert (asked.kind, asked.reason) == ("eager", "CUDA graphs need a CUDA device, this is cpu")

    refuse = Mock(side_effect=RuntimeError("no C++ compiler\nand much more"))
    monkeypatch.setattr(torch, "compile", Mock(return_value=refuse))
    compiled = make(PLAIN, "compile")
    compiled.prepare(TIMES)
    assert (compiled.kind, compiled.reason) == ("eager", "compiling failed: no C++ compiler")

    reading = make(PLAIN, "graph", graphs=True)
    body = reading.body
    monkeypatch.setattr(reading, "body", lambda: (body(), reading.metrics.table.sum().item()))
    reading.prepare(TIMES)
    reason = "recording a CUDA graph failed: aten._local_scalar_dense.default waits for the device"
    assert (reading.kind, reading.reason) == ("eager", reason)
    assert apart(make(PLAIN, "eager"), compiled) == 0.0, "what was tried has left no trace"
    assert train(reading)[0].mean().loss == train(asked)[0].mean().loss

    # what cuDNN draws between GRU layers follows from no seed of a step
    gru = {"arch": "kusner", "encoder_kernel": 3, "encoder_channels": 3, "decoder_layers": 2, "decoder_hidden": 16}
    dropout = make({"model": {"name": "grammar", **gru, "decoder_dropout": 0.1}}, "auto", graphs=True)
    dropout.prepare(TIMES)
    assert dropout.kind == "eager" and "dropout" in dropout.reason

    monkeypatch.setattr(engines, "record_graph", Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        make(PLAIN, "auto", graphs=True).prepare(TIMES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes CUDA")
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_cuda_graph_trains_as_eager_does(table: dict[str, Any]) -> None:
    device = torch.device("cuda")
    plain, graph = make(table, "eager", device), make(table, "graph", device)
    graph.prepare(TIMES)
    assert (graph.kind, graph.reason) == ("graph", "")
    for expected, found in zip(train(plain), train(graph), strict=True):
        np.testing.assert_allclose(found.rows, expected.rows, rtol=2e-3, atol=1e-2)


def test_an_epoch_is_a_permutation_that_the_seed_and_the_epoch_decide() -> None:
    one, again = make(PLAIN, "eager"), make(PLAIN, "eager")
    orders = []
    for engine, epoch in ((one, 1), (again, 1), (one, 2)):
        engine.begin(epoch)
        orders.append(engine.order.clone())
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert len(set(orders[0].tolist())) == STEPS * 8
