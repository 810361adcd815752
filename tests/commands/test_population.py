"""Population-based search: what is chosen, and that an interrupted search ends as one that nobody disturbed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvae_cli import checkpoints, folders, population
from arcvae_cli.commands import evaluate
from arcvae_cli.commands.train import new_model
from arcvae_cli.console import Console
from arcvae_cli.data.corpus import open_corpus
from arcvae_cli.errors import ArcvaeError
from arcvae_cli.population import Population
from arcvae_cli.presets import resolve, set_layer
from arcvae_cli.records import Recorder
from arcvae_cli.signals import GracefulExit
from arcvae_cli.step import Step
from arcvae_cli.sweeps import Plan, make_plan, open_folder
from arcvae_cli.trainer import Trainer

OVER = {"schedule.max_beta": ["log", 0.05, 2.0], "objective.free_bits": ["float", 0.01, 0.5]}
OVER |= {"train.lr": ["log", 1e-3, 1e-2]}


class Killed(BaseException):
    """Ends a search wherever it is."""


def planned(data: Path, *more: str, over: Any = OVER, members: int = 4, search: str = "pbt") -> Plan:
    model = "model.latent_dim=3 model.encoder_channels=[2,2,2] model.decoder_channels=[2,2] schedule.name=constant"
    train = "train.epochs=3 train.batch_size=25 train.device=cpu train.precision=fp32 train.threads=1"
    layers = [set_layer([f"data.path={data}", *model.split(), *train.split(), *more])]
    return make_plan(None, layers, over, search=search, trials=members)


def search(folder: Path, data: Path) -> None:
    population.search_population(folder, open_folder(folder, planned(data)), Console(quiet=True), GracefulExit())


@pytest.fixture(scope="module")
def straight(plain: None, tmp_path_factory: pytest.TempPathFactory, arc_npz: Path) -> Iterator[Path]:
    """A search that nobody disturbs; here and later without pictures, the evaluation a file with the epoch."""

    def report(loaded: Any, corpus: Any, split: str, folder: Any) -> dict[str, Any]:
        nats = {"reconstruction_nats": float(loaded.epoch), "kl_nats": 0.0, "elbo_nats": -float(loaded.epoch)}
        (folder.path / "metrics.json").write_text(json.dumps({"elbo": nats, "levels": {}}))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.recorders.images.ImageRecorder", lambda *arguments: Recorder())
        patch.setattr("arcvae_cli.commands.evaluate.report", report)
        folder = tmp_path_factory.mktemp("population") / "straight"
        search(folder, arc_npz)
        yield folder


def copies_of(made: Population) -> dict[str, str]:
    """The members that are a copy, with their parents."""
    return {name: pieces[-1]["copy_of"] for name, pieces in made.trail.items() if pieces[-1]["copy_of"]}


def test_the_worst_quarter_copies_the_best(tmp_path: Path, arc_npz: Path) -> None:
    made = Population(tmp_path, planned(arc_npz, members=8))
    scores: dict[str, Any] = {f"member-{i}": {"rate": 1.0, "distortion": float(i)} for i in range(8)}
    made.evolve(scores)
    copies = copies_of(made)
    assert set(copies) == {"member-6", "member-7"} and {*copies.values()} <= {"member-0", "member-1"}
    for name, parent in copies.items():
        (first, last), values = made.trail[name], made.trail[parent][0]["settings"]
        assert (first["after"], last["after"], last["copy_of"]) == (0, 1, parent)
        for key, (_, low, high) in OVER.items():
            assert last["settings"][key] in (max(low, 0.8 * values[key]), min(high, 1.25 * values[key]))
    again = Population(tmp_path, planned(arc_npz, members=8))
    assert (again.trail, again.scores) == (made.trail, made.scores)

    diverged = Population(tmp_path / "diverged", planned(arc_npz, members=8))
    diverged.folder.mkdir()
    diverged.evolve({**scores, "member-0": None, "member-1": None, "member-3": None})
    assert set(copies_of(diverged)) == {"member-0", "member-1", "member-3"}
    assert {*copies_of(diverged).values()} <= {"member-2", "member-4"}
    with pytest.raises(ArcvaeError, match="every member diverged"):
        diverged.evolve(dict.fromkeys(scores))

    (tmp_path / "population.json").unlink()
    front = Population(tmp_path, planned(arc_npz, members=8, search="pbt-pareto"))
    plane = {f"member-{i}": {"rate": float(i), "distortion": 6.0 - i} for i in range(7)}
    front.evolve({**plane, "member-7": {"rate": 4.5, "distortion": 4.5}})
    assert [*copies_of(front)] == ["member-7"]
    assert copies_of(front)["member-7"] in ("member-2", "member-3", "member-4")


def final(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a search left: its state, and of every member weights, moments, settings and metrics but for times."""
    members = {}
    for path in sorted(folder.glob("member-*")):
        values = checkpoints.read(path / "checkpoints" / "vae_final.pth")
        best = checkpoints.read(path / "checkpoints" / "vae_best.pth")
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        shown = [{key: one for key, one in line.items() if key != "seconds"} for line in lines]
        kept = [
            {key: one[key] for key in ("model_state_dict", "optimizer_state_dict", "config")} for one in (values, best)
        ]
        members[path.name] = checkpoints.digest(
            {"kept": kept, "lines": shown, "config": (path / "config.toml").read_text()}
        )
    state = json.loads((folder / "population.json").read_text())
    return state, members


def test_a_search_that_is_killed_ends_as_one_that_nobody_disturbed(
    straight: Path, tmp_path: Path, arc_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = tmp_path / "killed", final(straight)
    copies = [piece for trail in expected[0]["trail"].values() for piece in trail[1:]]
    assert sorted(piece["after"] for piece in copies) == [1, 2] and len(expected[1]) == 4

    def dies(owner: Any, name: str, call: int) -> None:
        """A search that dies in a call of a function."""
        calls, real = iter(range(1, 1000)), getattr(owner, name)

        def function(*arguments: Any) -> Any:
            if next(calls) == call:
                raise Killed
            return real(*arguments)

        monkeypatch.setattr(owner, name, function)
        with pytest.raises(Killed):
            search(folder, arc_npz)
        monkeypatch.setattr(owner, name, real)

    dies(Step, "train", 6)  # within an epoch
    dies(population, "become_copy", 1)  # a generation is written, its copy not made
    dies(folders.RunFolder, "write_config", 1)  # the copy is made, and not known to be
    dies(evaluate, "report", 2)
    search(folder, arc_npz)
    assert final(folder) == expected
    monkeypatch.delattr(population, "turn")
    search(folder, arc_npz)  # all is done: nothing is trained again


def test_a_member_that_is_no_copy_is_an_ordinary_run(straight: Path, tmp_path: Path) -> None:
    trails = json.loads((straight / "population.json").read_text())["trail"]
    member = straight / next(name for name, trail in trails.items() if len(trail) == 1)
    config = resolve(str(member / "config.toml")).settings
    run = folders.create(tmp_path, "own", "own", config)
    corpus = open_corpus(config.data, torch.device("cpu"), ("train", "val"))
    trainer = Trainer(config, corpus, new_model(config, corpus, torch.device("cpu")), run, resumed=False)
    trainer.fit()
    both = [checkpoints.read(path / "checkpoints" / "vae_final.pth") for path in (member, run.path)]
    assert checkpoints.digest(both[0]["model_state_dict"]) == checkpoints.digest(both[1]["model_state_dict"])
    assert both[0]["config"] == both[1]["config"] and both[0]["best"] == both[1]["best"]
