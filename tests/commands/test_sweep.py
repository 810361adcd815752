"""`arcvae sweep`, as it is typed. Who runs what, and when: tests/test_sweeps.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from arcvae_cli import sweeps
from arcvae_cli.commands import sweep
from arcvae_cli.console import Console
from arcvae_cli.errors import ArcvaeError
from arcvae_cli.sweeps import make_plan, open_folder

SMALL = ("train.epochs=1", "train.batch_size=100", "model.encoder_channels=[4]", "model.decoder_channels=[4]")
SMALL += ("log.images_every=0", "log.wandb=off", "checkpoint.save_top_k=0", "schedule.max_beta=0.2")
BAD = {
    "": "what varies: not given, or not fully",
    "--vary schedule.max_beta": "--vary schedule.max_beta: expected KEY=",
    "--vary schedule.max_beta=": "expected KEY=",
    "--vary train.lr=0.1,0.1": "--vary train.lr=0.1,0.1: '0.1,0.1': a value is missing or given twice",
    "--vary train.lr=0.1 --vary train.lr=0.2": "a key is given twice",
    "--vary schedule.max_beta=0.1,-1": "--vary schedule.max_beta: should be greater than or equal to 0, got -1",
    "--vary schedule.beta=1,2": "--vary schedule.beta: unknown key 'beta'",
    "--vary train.device=cpu,cuda": "--vary train.device: cannot vary",
    "--vary log.images_every=0,1": "--vary log.images_every: cannot vary",
    "--vary schedule.name=cyclical,geco --vary schedule.cycle_length=5,9": "--vary schedule.cycle_length: unknown key",
    "--vary train.seed=1,2 --seeds 2": "--seeds: train.seed varies already",
    "--vary train.lr=0.1,1 --over train.lr=log:0.1..1": "what varies: not given, or not fully",
    "--search tpe --over train.lr=log:0.1..1": "use --vary, or --search with --over and --trials",
    "--search tpe --trials 2 --over train.lr=log:1..0.1": "--over train.lr=log:1..0.1: 'log:1..0.1': an empty range",
    "--search tpe --trials 2 --over train.lr=log:0..1": "an empty range",
    "--search tpe --trials 2 --over model.latent_dim=int:2..8.5": "not a range",
    "--search tpe --trials 2 --over model.latent_dim=float:2..8": "--over model.latent_dim: should be a valid integer",
    "--search pbt --trials 2 --over model.latent_dim=int:2..8": "--over model.latent_dim=int: cannot change while",
    "--search pbt --trials 2 --over train.lr=choice:0.1,0.2": "--over train.lr=choice: cannot change while a run",
    "--search pbt --trials 2 --over train.lr=log:0.1..1 --set objective.reconstruction=focal": "no ELBO",
    "--study nowhere": "nowhere: not a sweep",
    "--study . --vary train.lr=0.1,0.2": ".: holds something else than a sweep",
}


@pytest.mark.parametrize("given", BAD)
def test_bad_input_starts_nothing(
    given: str, arcvae: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        Path(name).touch()
    found = arcvae("sweep", *given.split())
    assert (found.exit_code, found.stdout) == (2, "")
    assert BAD[given] in " ".join(found.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == [*"abcd"]


def test_a_real_run_of_a_grid(
    arcvae: Callable[..., Result], arc_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCVAE_MODEL__LATENT_DIM", "3")
    asked = ["--data", arc_npz, *(f"--set={text}" for text in SMALL), "--vary", "schedule.name=cyclical"]
    found = arcvae("sweep", *asked, "--study", "some", "--json")
    assert found.exit_code == 0, found.stderr
    row = json.loads(found.stdout)["runs"][0]
    report = json.loads((tmp_path / "some" / row["run"] / "metrics.json").read_text())
    assert (row["state"], row["elbo"], row["beta"]) == ("finished", report["elbo"]["elbo_nats"], 0.02)
    assert found.stderr.splitlines()[-1] == "next: arcvae compare some"

    config = (tmp_path / "some" / row["run"] / "config.toml").read_text()
    assert 'name = "cyclical"' in config and "max_beta = 0.2" in config and "latent_dim = 3" in config
    again = arcvae("sweep", "--study", "some")
    assert again.exit_code == 0 and row["run"] in again.stdout
    other = arcvae("sweep", *asked, "--study", "some", "--set", "train.epochs=2", "--seeds", "2")
    assert other.exit_code == 2
    assert "some: a sweep of other settings: train.epochs was 1, now 2; axes.train.seed was None" in other.stderr


def test_a_failed_run_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = open_folder(tmp_path / "s", make_plan(None, [], {"train.lr": ["choice", 0.1, 0.2]}))
    monkeypatch.setattr(sweeps, "train_command", lambda *_: ["sh", "-c", "echo error: no luck >&2; exit 2"])
    with pytest.raises(ArcvaeError, match="2 of 2 runs failed"):
        sweep.run_worker(tmp_path / "s", plan, Console(), 2)
    shown = capsys.readouterr()
    assert "failed: 001-lr0.1: no luck\n" in shown.out
    assert "002-lr0.2: failed  no luck\n" in shown.err
