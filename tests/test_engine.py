"""Every engine trains as the eager one does. A CUDA graph stands here as operators replayed on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from arcvae_cli import graphs
from arcvae_cli.controllers import Controller
from arcvae_cli.data.corpus import DerivationCorpus, GridCorpus, open_corpus
from arcvae_cli.engine import Engine
from arcvae_cli.models import Structure, build_model
from arcvae_cli.objective import Objective
from arcvae_cli.settings import Settings
from arcvae_cli.step import Step, Sums, seed_step
from tests.replaying import record

CPU = torch.device("cpu")
STEPS = 10
EPOCHS = 5

WARM_UP = {"name": "linear_warmup", "max_beta": 0.5, "warmup_epochs": 2.0, "per": "step"}  # 0 at first
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


def make(table: dict[str, Any], engine: str, device: torch.device = CPU) -> Engine:
    table = {"schedule": WARM_UP, **table, "train": {"batch_size": 8, "precision": "fp32", "engine": engine}}
    strings = table["model"]["name"] == "grammar"
    table["data"] = {"name": "equations", "size": 400} if strings else {"name": "shapes", "size": 120}
    settings = Settings.model_validate(table)
    corpus = open_corpus(settings.data, device)
    seed_step(0, "weights")
    if isinstance(corpus, DerivationCorpus):
        model = build_model(settings.model, Structure(corpus.rules, corpus.length))
    else:
        model = build_model(settings.model)
    objective = Objective(settings.objective, corpus.class_counts()).to(device)
    step = Step(model.to(device).train(), objective, settings.train, device)
    levels = tuple(model.level_sizes)
    control = Controller(settings.schedule, levels, device, corpus.mean_positions, settings.objective.reduction)
    assert isinstance(corpus, GridCorpus | DerivationCorpus)
    return Engine(settings, step, corpus, control, STEPS)


def times() -> list[float]:
    return [epoch + (index + 1) / STEPS for epoch in range(EPOCHS) for index in range(STEPS)]


def train(engine: Engine) -> list[Sums]:
    """Fifty steps with a learning rate and a beta that move; what each epoch came to."""
    found = []
    for epoch in range(1, EPOCHS + 1):
        engine.begin(epoch)
        for index in range(STEPS):
            engine.control.at(times()[(epoch - 1) * STEPS + index])
            engine.step.learning_rate = 1e-3 / epoch
            engine.run(index)
        found.append(engine.read(STEPS))
    return found


def apart(one: Engine, other: Engine) -> float:
    """The largest difference of any weight."""
    pairs = zip(one.step.model.parameters(), other.step.model.parameters(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize(
    "table",
    [*MODELS.values(), *({**MODELS["plain"], "schedule": schedule} for schedule in SCHEDULES.values())],
    ids=[*MODELS, *SCHEDULES],
)
def test_a_graph_trains_as_eager_does(table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, and what was tried before the first step leaves no trace."""
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
