"""A run that is interrupted and resumed ends with the same bits as one that is not."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from arcvae_cli import checkpoints, folders
from arcvae_cli.data.corpus import GridCorpus, StringCorpus
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.errors import Interrupted
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.records import Recorder
from arcvae_cli.settings import Settings
from arcvae_cli.step import seed_step
from arcvae_cli.trainer import Trainer
from tests.test_trainer import settings, squares

CPU = torch.device("cpu")


def equations(device: torch.device) -> StringCorpus:
    return StringCorpus(DERIVATIONS, device)


SMALL = {"encoder_hidden": 8, "encoder_conv_layers": 1, "encoder_kernel": 3, "decoder_hidden": 8, "decoder_layers": 2}
TWO_LEVELS = {
    "name": "hierarchical",
    "per": "step",
    "global": {"name": "cyclical", "cycle_length": 1, "max_beta": 0.3},
    "local": {"name": "controlvae", "target": 1e4, "start_beta": 0.0},  # out of reach: beta of the epoch before counts
}
COMMON = {"train": {"epochs": 2, "save_minutes": 0}, "checkpoint": {"every_epochs": 2, "save_top_k": 1}}
PLATEAU = {"lr_schedule": "plateau", "weight_decay": 0.01}
RESIDUAL, GECO = {"body": "residual", "dropout": 0.1}, {"name": "geco", "tolerance": 0.4}
MAPS = {"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}
MAPS |= {"decoder": "autoregressive", "input_dropout": 0.3}
GRAMMAR = {"name": "grammar", "latent_dim": 3, "decoder_dropout": 0.2, **SMALL}
RECURSIVE = {**GRAMMAR, "decoder": "autoregressive", "input_dropout": 0.3}
CAPACITY = {"name": "kl_capacity", "capacity": 5.0, "ramp_epochs": 1.5}
CASES: dict[str, tuple[Callable[[torch.device], GridCorpus | StringCorpus], Settings]] = {
    "plain": (squares, settings(COMMON, train=PLATEAU)),
    "residual": (squares, settings(COMMON, model=RESIDUAL, train={"precision": "bf16"}, schedule=GECO)),
    "two levels": (squares, settings(COMMON, model=MAPS, schedule=TWO_LEVELS)),
    "remedies": (
        squares,
        settings(
            COMMON, model={"mean_norm": 0.6}, objective={"mmd": 9.0, "prior_draws": 0.3}, train={"encoder_steps": 2}
        ),
    ),
    "bound": (squares, settings(COMMON, objective={"importance_samples": 2}, train={"encoder_steps": 1})),
    "derivations": (equations, settings(COMMON, data={"name": "equations"}, model=GRAMMAR, schedule=CAPACITY)),
    "autoregressive": (equations, settings(COMMON, data={"name": "equations"}, model=RECURSIVE)),
}


pytestmark = pytest.mark.usefixtures("narrow")
DERIVATIONS = build_drawn(read_grammar("equations"), 9, size=50)


class Killed(Exception):  # noqa: N818
    """A process that died: nothing was saved for it."""


def process(folder: Path, name: str, asked: list[int], killed: list[str], device: torch.device, resumed: bool) -> None:
    """Begin a run or resume it; it is asked to stop after so many steps, or dies at a point."""
    make_corpus, chosen = CASES[name]
    corpus = make_corpus(device)
    seed_step(chosen.train.seed, "weights")
    model = build_model(chosen.model, corpus.structure).to(device)
    torch.manual_seed(len(asked))  # the state of the generator before does not matter
    run = folders.resume(folder) if resumed else folders.create(folder.parent, folder.name, "run", chosen)
    trainer = Trainer(chosen, corpus, model, run, resumed)
    recorder = Mock(Recorder)
    trainer.recorders += [JsonlRecorder(run.path / "metrics.jsonl"), recorder]
    trainer.stop = lambda: SIGTERM if asked and trainer.global_step >= asked[0] and asked.pop(0) else None

    def dies(point: str, real: Callable[..., None]) -> Callable[..., None]:
        def at(*arguments: Any) -> None:
            if f"{point} {len(trainer.history)}" in killed and trainer.index == 0:
                killed.clear()
                raise Killed
            real(*arguments)

        return at

    for point in ("save", "save_copies", "draw"):
        setattr(trainer, point, dies(point, getattr(trainer, point)))
    if resumed:
        trainer.resume(checkpoints.read(run.checkpoints / "last.pth"), run.checkpoints / "last.pth")
    try:
        trainer.fit()
        pictures = recorder.pictures.call_args.args[1]
        shown = [pictures.originals, pictures.reconstructions, pictures.samples, *pictures.maps.values()]
        traces = [record.beta_trace for record in trainer.history]  # of earlier processes too: curves show them
        (folder / "shown.json").write_text(json.dumps([traces, *(array.tolist() for array in shown)]))
    finally:
        trainer.recorders[0].close()
        run.release()


def complete(folder: Path, name: str, *asked: int, killed: str = "", device: torch.device = CPU) -> int:
    """A run to its end, in as many processes as it takes: their number."""
    steps, points = list(asked), [killed] if killed else []
    stopped: list[tuple[int, bool, bool]] = []
    for count in range(10):
        try:
            process(folder, name, steps, points, device, resumed=count > 0)
        except Killed:
            continue
        except Interrupted as error:
            stopped.append((error.exit_code, error.at_once, "saved in" in error.what))
            continue
        assert stopped == [(128 + SIGTERM, False, True)] * len(asked)
        assert not steps and not points, "all of it happened"
        return count + 1
    raise AssertionError("it never ended")


def contents(folder: Path) -> dict[str, Any]:
    """All that a run leaves but times."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        values = found[path.name] = checkpoints.read(path)
        values.pop("seconds", None)
        values["history"] = [json.loads(line) for line in values.get("history", "").splitlines()]
        for record in values["history"]:
            assert record.pop("seconds") > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    found["shown"] = (folder / "shown.json").read_text()
    return found


def same(one: Any, other: Any, where: str = "") -> None:
    """Equal bit for bit, all the way down."""
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What an undisturbed run of a case leaves."""

    @functools.cache
    def of(name: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("straight") / "run"
        assert complete(folder, name) == 1
        return contents(folder)

    return of


# of 4 or 5 steps an epoch: 4 is the end of the first epoch (asked for in its validation)
@pytest.mark.parametrize(
    ("name", "asked", "killed"),
    [
        ("plain", (4,), "save 1"),
        ("plain", (1, 7), "save_copies 2"),
        ("residual", (6,), ""),
        ("two levels", (6,), "draw 2"),
        ("derivations", (1, 6), ""),
        ("remedies", (2, 5), "save 1"),
        ("bound", (6,), ""),
        ("autoregressive", (1, 6), ""),
    ],
)
def test_a_run_that_was_interrupted_ends_where_the_straight_one_does(
    name: str, asked: tuple[int, ...], killed: str, tmp_path: Path, straight: Callable[[str], dict[str, Any]]
) -> None:
    assert complete(tmp_path / "run", name, *asked, killed=killed) == len(asked) + bool(killed) + 1
    same(contents(tmp_path / "run"), straight(name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("name", CASES)
def test_on_cuda_it_ends_there_too(name: str, tmp_path: Path) -> None:
    """Graphs are recorded anew, of the state that was restored; sums of atomic additions may differ in last bits."""
    device = torch.device("cuda")
    assert complete(tmp_path / "straight", name, device=device) == 1
    assert complete(tmp_path / "run", name, 1, 6, device=device) == 3
    one, other = (
        checkpoints.read(tmp_path / run / "checkpoints" / "last.pth")["model_state_dict"] for run in ("straight", "run")
    )
    for weight in one:
        torch.testing.assert_close(one[weight], other[weight], rtol=1e-3, atol=1e-4)
