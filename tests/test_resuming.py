"""A run that is interrupted and resumed ends with the same bits as one that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arcvae_cli import checkpoints, runs
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.corpus import GridCorpus, StringCorpus
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.errors import Interrupted
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.grammar import Structure
from arcvae_cli.recorders.images import ImageRecorder
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.records import Recorder
from arcvae_cli.settings import Settings
from arcvae_cli.step import seed_step
from arcvae_cli.trainer import Trainer

CPU = torch.device("cpu")
Corpora = GridCorpus | StringCorpus


def grids(device: torch.device = CPU) -> GridCorpus:
    """48 grids of one coloured square each: 32 to train on, so 4 batches of 8."""
    random = np.random.RandomState(0)
    canvases = np.zeros((48, 16, 16), np.uint8)
    for canvas in canvases:
        row, column = random.randint(0, 8, 2)
        canvas[row : row + 6, column : column + 6] = random.randint(1, 10)
    return GridCorpus(
        Dataset("squares", canvases, np.repeat(np.arange(3, dtype=np.uint8), [32, 8, 8]), None, None), device
    )


def equations(device: torch.device = CPU) -> StringCorpus:
    return StringCorpus(build_drawn(read_grammar("equations"), 9, size=50), device)


def settings(**tables: Any) -> Settings:
    table: dict[str, Any] = {
        "model": {"latent_dim": 3},
        "train": {"epochs": 3, "batch_size": 8, "precision": "fp32", "save_minutes": 0},
        "log": {"every_n_steps": 2, "images_every": 2},
        "checkpoint": {"every_epochs": 2, "save_top_k": 2},
        "schedule": {"name": "linear", "max_beta": 0.5, "warmup_epochs": 2, "per": "step"},
    }
    for name, values in tables.items():
        replaced = name in ("schedule", "model")
        table[name] = values if replaced else {**table.get(name, {}), **values}
    return Settings.model_validate(table)


SMALL = {"encoder_hidden": 8, "encoder_conv_layers": 1, "encoder_kernel": 3, "decoder_hidden": 8, "decoder_layers": 2}
TWO_LEVELS = {
    "name": "hierarchical",
    "per": "step",
    "global": {"name": "cyclical", "cycle_length": 1, "max_beta": 0.3},
    "local": {"name": "controlvae", "target": 2.0, "start_beta": 0.5},
}
CASES: dict[str, tuple[Callable[[torch.device], Corpora], Settings]] = {
    "beta by the step": (grids, settings()),
    "cycles, plateau": (
        grids,
        settings(
            schedule={"name": "cyclical", "cycle_length": 2, "max_beta": 0.4, "per": "step"},
            train={"lr_schedule": "plateau", "lr": 0.3, "weight_decay": 0.01},  # so large that no epoch is the best
        ),
    ),
    "a loop out of reach": (grids, settings(schedule={"name": "controlvae", "target": 1e4, "start_beta": 0.0})),
    "residual, dropout, bf16": (
        grids,
        settings(model={"latent_dim": 3, "body": "residual", "dropout": 0.1}, train={"precision": "bf16"}),
    ),
    "two levels, one in a loop": (
        grids,
        settings(
            model={"name": "hierarchical", "global_dim": 3, "local_channels": 2, "local_size": 4}, schedule=TWO_LEVELS
        ),
    ),
    "derivations": (
        equations,
        settings(
            data={"name": "equations"}, model={"name": "grammar", "latent_dim": 3, "decoder_dropout": 0.2, **SMALL}
        ),
    ),
}
WITH_PICTURES = "two levels, one in a loop"  # its curves are compared: they show betas of earlier processes


class Killed(Exception):  # noqa: N818
    """A process that died: nothing was saved for it."""


class Interruptions:
    """Asks a training to stop after so many steps, or kills it at a point of its course, each of them once."""

    def __init__(self, asked: tuple[int, ...] = (), killed: str | None = None, device: torch.device = CPU) -> None:
        self.asked, self.killed, self.device = list(asked), killed, device

    def stop(self, trainer: Trainer) -> int | None:
        if self.asked and trainer.global_step >= self.asked[0]:
            self.asked.pop(0)
            return 15
        return None

    def here(self, point: str) -> None:
        if point == self.killed:
            self.killed = None
            raise Killed(point)


def process(folder: Path, name: str, interruptions: Interruptions, resumed: bool) -> None:
    """What one process does: begins a run, or resumes it."""
    make_corpus, chosen = CASES[name]
    corpus = make_corpus(interruptions.device)
    structure = Structure(corpus.rules, corpus.length) if isinstance(corpus, StringCorpus) else None
    seed_step(chosen.train.seed, "weights")
    model = build_model(chosen.model, structure).to(interruptions.device)
    torch.manual_seed(len(interruptions.asked))  # the state of the generator before does not matter
    run = runs.resume(folder) if resumed else runs.create(folder.parent, folder.name, "run", chosen)
    recorders: list[Recorder] = [JsonlRecorder(run.path / "metrics.jsonl")]
    if name == WITH_PICTURES:
        recorders.append(ImageRecorder(run.images, "grids"))
    trainer = Trainer(chosen, corpus, model, run, recorders, interruptions.device, resumed=resumed)
    trainer.stop = lambda: interruptions.stop(trainer)
    real_save, real_copies = trainer.save, trainer.save_copies

    def save() -> None:
        if trainer.history and trainer.index == 0:
            interruptions.here(f"before saving {len(trainer.history)}")
        real_save()

    def save_copies(record: Any) -> None:
        interruptions.here(f"before copying {record.epoch}")
        real_copies(record)
        interruptions.here(f"after copying {record.epoch}")

    trainer.save, trainer.save_copies = save, save_copies  # type: ignore[method-assign]
    if resumed:
        trainer.resume(checkpoints.read(run.checkpoints / "last.pth"), run.checkpoints / "last.pth")
    try:
        trainer.fit()
    finally:
        for recorder in recorders:
            recorder.close()
        run.release()


def complete(folder: Path, name: str, interruptions: Interruptions) -> int:
    """A run to its end, in as many processes as it takes: their number."""
    for count in range(10):
        try:
            process(folder, name, interruptions, resumed=count > 0)
        except (Interrupted, Killed):
            continue
        assert not interruptions.asked and not interruptions.killed, "all of it happened"
        return count + 1
    raise AssertionError("it never ended")


def contents(folder: Path) -> dict[str, Any]:
    """All that a run leaves but times."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        values = checkpoints.read(path)
        values.pop("seconds", None)
        values["history"] = [json.loads(line) for line in values.get("history", "").splitlines()]
        for record in values["history"]:
            assert record.pop("seconds") > 0
        found[path.name] = values
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    found["pictures"] = {path.name: path.read_bytes() for path in (folder / "images").glob("*.png")}
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
    known: dict[str, dict[str, Any]] = {}

    def of(name: str) -> dict[str, Any]:
        if name not in known:
            folder = tmp_path_factory.mktemp("straight") / "run"
            assert complete(folder, name, Interruptions()) == 1
            known[name] = contents(folder)
        return known[name]

    return of


# of 4 or 5 steps an epoch: 4 is the end of the first epoch (asked for in its validation), 8 that of the second
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("beta by the step", (4, 8, 11)),
        ("cycles, plateau", (1, 6, 11)),
        ("two levels, one in a loop", (1, 6)),
        ("derivations", (1, 6, 11)),
        ("a loop out of reach", (4,)),
        ("residual, dropout, bf16", (6,)),
    ],
)
def test_a_run_that_was_interrupted_ends_where_the_straight_one_does(
    name: str, asked: tuple[int, ...], tmp_path: Path, straight: Callable[[str], dict[str, Any]]
) -> None:
    assert complete(tmp_path / "run", name, Interruptions(asked)) == len(asked) + 1
    same(contents(tmp_path / "run"), straight(name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("name", CASES)
def test_on_cuda_it_ends_there_too(name: str, tmp_path: Path) -> None:
    """Graphs are recorded anew, of the state that was restored; sums of atomic additions may differ in last bits."""
    device = torch.device("cuda")
    assert complete(tmp_path / "straight", name, Interruptions(device=device)) == 1
    assert complete(tmp_path / "run", name, Interruptions((1, 6, 11), device=device)) == 4
    one, other = (
        checkpoints.read(tmp_path / run / "checkpoints" / "last.pth")["model_state_dict"] for run in ("straight", "run")
    )
    for weight in one:
        torch.testing.assert_close(one[weight], other[weight], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("place", "epoch"), [("before saving", 1), ("before copying", 3), ("after copying", 3)])
def test_a_process_that_dies_around_a_save_leaves_nothing_undone(
    place: str, epoch: int, tmp_path: Path, straight: Callable[[str], dict[str, Any]]
) -> None:
    killed = Interruptions(killed=f"{place} {epoch}")
    assert complete(tmp_path / "run", "beta by the step", killed) == 2
    same(contents(tmp_path / "run"), straight("beta by the step"))


def test_a_process_that_dies_in_a_save_leaves_the_checkpoint_before_it(
    tmp_path: Path, straight: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.save, [0]

    def save(values: Any, file: Any) -> None:
        calls[0] += ".last.pth." in file.name
        if calls[0] == 3:
            calls[0] += 1
            Path(file.name).with_name(".last.pth.01234567.tmp").write_bytes(bytes(1000))  # nothing removed it
            raise Killed("in a save")
        real(values, file)

    monkeypatch.setattr(torch, "save", save)
    assert complete(tmp_path / "run", "beta by the step", Interruptions()) == 2
    assert not list(tmp_path.rglob("*.tmp"))
    same(contents(tmp_path / "run"), straight("beta by the step"))
