"""Every engine trains as the eager one does. A CUDA graph stands here as operators replayed on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from arcvae_cli import graphs
from arcvae_cli.controllers import Controller
from arcvae_cli.data.corpus import GridCorpus, StringCorpus, open_corpus
from arcvae_cli.engine import Engine
from arcvae_cli.metrics import MetricRows
from arcvae_cli.models import Structure, build_model
from arcvae_cli.objective import Objective
from arcvae_cli.settings import Settings
from arcvae_cli.step import Step, seed_step
from tests.replaying import record

CPU = torch.device("cpu")
STEPS = 10
EPOCHS = 3

WARM_UP = {"name": "linear_warmup", "max_beta": 0.5, "warmup_epochs": 1.0, "per": "step"}  # 0 at first
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"model": {"name": "grid"}, "objective": {"free_bits": 0.3, "class_weights": "balanced"}},
    "residual": {"model": {"name": "grid", "body": "residual", "dropout": 0.2}},
    "hierarchical": {"model": {"name": "hierarchical", "local_size": 4}},
    "grammar": {"model": {"name": "grammar", "encoder_hidden": 16, "decoder_hidden": 16, "decoder_layers": 1}},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "controlvae": {"name": "controlvae", "target": 3.0, "ki": -1e-3},
    "geco": {"name": "geco", "tolerance": 0.4},
    "kl_capacity": {"name": "kl_capacity", "capacity": 5.0, "ramp_epochs": 3.0},
    "cyclical": {"name": "cyclical", "cycle_length": 2.0},
}

TABLES = MODELS | {name: {**MODELS["plain"], "schedule": schedule} for name, schedule in SCHEDULES.items()}


def make(table: dict[str, Any], engine: str, device: torch.device = CPU) -> Engine:
    table = {"schedule": WARM_UP, **table, "train": {"batch_size": 8, "precision": "fp32", "engine": engine}}
    strings = table["model"]["name"] == "grammar"
    table["data"] = {"name": "equations", "size": 400} if strings else {"name": "shapes", "size": 120}
    settings = Settings.model_validate(table)
    corpus = open_corpus(settings.data, device)
    seed_step(0, "weights")
    if isinstance(corpus, StringCorpus):
        model = build_model(settings.model, Structure(corpus.rules, corpus.length))
    else:
        model = build_model(settings.model)
    objective = Objective(settings.objective, corpus.class_counts()).to(device)
    step = Step(model.to(device).train(), objective, settings.train, device)
    levels = tuple(model.level_sizes)
    control = Controller(settings.schedule, levels, device, corpus.mean_positions, settings.objective.reduction)
    assert isinstance(corpus, GridCorpus | StringCorpus)
    return Engine(settings, step, corpus, control, STEPS)


def times() -> list[float]:
    return [epoch + (index + 1) / STEPS for epoch in range(EPOCHS) for index in range(STEPS)]


def train(engine: Engine) -> list[MetricRows]:
    """Thirty steps with a learning rate and a beta that move; what each epoch came to."""
    found = []
    for epoch in range(1, EPOCHS + 1):
        engine.begin(epoch)
        for index in range(STEPS):
            engine.control.at(times()[(epoch - 1) * STEPS + index])
            engine.step.rate.fill_(1e-3 / epoch)
            engine.run(index)
        found.append(engine.metrics.read(STEPS))
    return found


def apart(one: Engine, other: Engine) -> float:
    """The largest difference of any weight."""
    pairs = zip(one.step.model.parameters(), other.step.model.parameters(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_graph_trains_as_eager_does(table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, betas included, and what was tried before the first step leaves no trace."""
    monkeypatch.setattr(graphs, "possible", lambda device: True)
    monkeypatch.setattr(graphs, "record", record)
    plain, graph = make(table, "eager"), make(table, "auto")
    plain.prepare(times())
    graph.prepare(times())
    calls = watch(graph, monkeypatch)
    assert (plain.kind, graph.kind, graph.reason) == ("eager", "graph", None)
    for expected, found in zip(train(plain), train(graph), strict=True):
        np.testing.assert_array_equal(found.rows, expected.rows)
    assert apart(plain, graph) == 0.0
    assert calls == [], "once recorded, the body is not run again"
    assert len(graph._graphs) == (1 if graph.settings.schedule.closed_loop else 2), "one more while beta is 0"


def watch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    body: Callable[[], None] = engine.body
    monkeypatch.setattr(engine, "body", lambda: (calls.append(1), body()))
    return calls


@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_a_compiled_network_trains_as_eager_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and split into forward and backward as for every backend; bench/engines.py has the one that makes code."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, options, **how: compiler(function, backend="aot_eager", **how)
    )
    table = {**MODELS["plain"], "schedule": SCHEDULES["geco"]}
    plain, compiled = make(table, "eager"), make(table, "compile")
    compiled.prepare(times())
    assert compiled.reason is None and compiled.kind == "compile"
    assert compiled.step.forward != compiled.step.plain
    for expected, found in zip(train(plain), train(compiled), strict=True):
        np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-4, atol=1e-3)
    assert apart(plain, compiled) < 1e-5


def test_eager_replaces_an_engine_that_is_impossible_here(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = make(MODELS["plain"], "graph")
    asked.prepare(times())
    assert (asked.kind, asked.reason) == ("eager", "CUDA graphs need a CUDA device, this is cpu")

    def broken(*arguments: object, **how: object) -> Callable[..., Any]:
        def refuse(*arguments: object) -> None:
            raise RuntimeError("no C++ compiler\nand much more")

        return refuse

    monkeypatch.setattr(torch, "compile", broken)
    compiled = make(MODELS["plain"], "compile")
    compiled.prepare(times())
    assert (compiled.kind, compiled.reason) == ("eager", "the network cannot be compiled here: no C++ compiler")

    monkeypatch.setattr(graphs, "possible", lambda device: True)
    monkeypatch.setattr(graphs, "record", record)
    reading = make(MODELS["plain"], "graph")
    body = reading.body
    monkeypatch.setattr(reading, "body", lambda: (body(), reading.metrics.table.sum().item()))
    reading.prepare(times())
    assert (reading.kind, reading.reason) == (
        "eager",
        "no CUDA graph could be recorded: aten._local_scalar_dense.default waits for the device",
    )
    plain = make(MODELS["plain"], "eager")
    for other in (asked, compiled):  # what was tried has left no trace
        assert apart(plain, other) == 0.0
    assert [train(one)[0].mean().loss for one in (plain, compiled, reading)] == [train(asked)[0].mean().loss] * 3


def test_out_of_memory_during_a_trial_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "possible", lambda device: True)
    monkeypatch.setattr(graphs, "record", full)
    with pytest.raises(torch.OutOfMemoryError):
        make(MODELS["plain"], "auto").prepare(times())


def test_dropout_between_gru_layers_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cuDNN draws there follows from no seed of a step."""
    monkeypatch.setattr(graphs, "possible", lambda device: True)
    gru = {"arch": "kusner", "encoder_kernel": 3, "encoder_channels": 3, "decoder_layers": 2, "decoder_hidden": 16}
    engine = make({"model": {"name": "grammar", **gru, "decoder_dropout": 0.1}}, "auto")
    engine.prepare(times())
    assert engine.kind == "eager" and engine.reason is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes CUDA")
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_cuda_graph_trains_as_eager_does(table: dict[str, Any]) -> None:
    device = torch.device("cuda")
    plain, graph = make(table, "eager", device), make(table, "graph", device)
    graph.prepare(times())
    assert (graph.kind, graph.reason) == ("graph", None)
    for expected, found in zip(train(plain), train(graph), strict=True):
        np.testing.assert_allclose(found.rows, expected.rows, rtol=2e-3, atol=1e-2)


def test_an_epoch_is_a_permutation_that_the_seed_and_the_epoch_decide() -> None:
    one, again = make(MODELS["plain"], "eager"), make(MODELS["plain"], "eager")
    orders = []
    for engine, epoch in ((one, 1), (again, 1), (one, 2)):
        engine.begin(epoch)
        orders.append(engine.order.clone())
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert len(set(orders[0].tolist())) == STEPS * 8
