"""Sweeps whose runs are a small script in place of `arcvae train`. A real one: tests/commands/test_sweep.py."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from arcvae_cli import sweeps
from arcvae_cli.errors import InputError
from arcvae_cli.presets import Layer, preset_folder, presets_like, set_layer
from arcvae_cli.sweeps import Run

TRAIN = """
import fcntl, json, pathlib, signal, sys, time
folder, name, values = pathlib.Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
run, beta, seed = folder / name, values.get("schedule.max_beta", 0.1), values.get("train.seed", 0)
run.mkdir(exist_ok=True)
(run / "config.toml").write_bytes((folder / "base.toml").read_bytes())
lock = (run / "lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)

def leave(state, code, judged=False):
    (run / "status.json").write_text(json.dumps({"state": state, "judged": judged}))
    sys.exit(code)

for number in (signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, _: leave("interrupted", 75 if number == signal.SIGUSR1 else 130))
lines = (run / "metrics.jsonl").open("a+")
lines.seek(0)
for epoch in range(len(lines.readlines()) + 1, 6):
    time.sleep(0.06)
    line = {"kind": "epoch", "epoch": epoch, "train/beta": beta, "val/kl": 1.0, "val/loss_reconstruction": 9.0}
    lines.write(json.dumps({**line, "val/active_dims": int(beta <= 0.5)}) + "\\n")
    lines.flush()
    if beta == 0.3 and not (folder / "mended").exists():
        print("error: no luck", file=sys.stderr)
        leave("failed", 1)
    while beta > 0.5 and epoch == 5:
        signal.pause()
elbo = {"elbo_nats": -beta, "kl_nats": 1 / beta, "reconstruction_nats": beta}
(run / "metrics.json").write_text(json.dumps({"elbo": elbo, "levels": {}}))
with (folder / "ended.log").open("a") as ended:
    ended.write(name + "\\n")
leave("finished", 0, True)
"""
WORKER = """
import json, sys
from pathlib import Path
from arcvae_cli import sweeps

sweeps.train_command = lambda run, threads: [
    sys.executable, "-S", sys.argv[2], str(folder), run.name, json.dumps(run.given)
]
folder = Path(sys.argv[1])
plan = sweeps.open_folder(folder, None)
sweeps.work((sweeps.Search if plan.search else sweeps.Grid)(folder, plan), 1, lambda: None, lambda rows: None)
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., sweeps.Grid]:
    """Begins a sweep in `tmp_path/sweep`, of constant beta and the smallest settings."""
    monkeypatch.setattr(sweeps, "TICK", 0.02)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "worker.py").write_text(WORKER)

    def train(run: Run, threads: int | None) -> Sequence[str]:
        return [sys.executable, "-S", str(tmp_path / "train.py"), str(run.folder), run.name, json.dumps(run.given)]

    def begin(**asked: Any) -> sweeps.Grid:
        base = Layer("", {"schedule": {"name": "constant"}, "train": {"epochs": 12}})
        plan = sweeps.make_plan(None, [base], **asked)
        kind = sweeps.Search if plan.search else sweeps.Grid
        return kind(tmp_path / "sweep", sweeps.open_folder(tmp_path / "sweep", plan))

    monkeypatch.setattr(sweeps, "train_command", train)
    return begin


def finish(source: sweeps.Grid, stop: Callable[[], int | None] = lambda: None) -> list[sweeps.Row]:
    """Works on a sweep as a new process would."""
    rows: list[list[sweeps.Row]] = []
    sweeps.work(type(source)(source.folder, source.plan), 2, stop, rows.append)
    return rows[-1]


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(folder.parent / "worker.py"), str(folder), folder.parent / "train.py"])


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_grid_whose_worker_is_killed_goes_on_and_repeats_nothing(make: Callable[..., sweeps.Grid]) -> None:
    source = make(axes={"schedule.max_beta": ["choice", 0.1, 0.2], "train.seed": ["choice", 0, 1]})
    ended = source.folder / "ended.log"
    worker = start(source.folder)
    wait_for(lambda: ended.is_file() and (source.folder / source.runs()[1].name / "metrics.jsonl").is_file())
    worker.kill()  # the process of its second run lives on, and is waited for
    worker.wait()
    rows = finish(source)
    assert [(row["values"]["schedule.max_beta"], row["values"]["train.seed"]) for row in rows] == [
        (0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1),
    ]  # fmt: skip
    assert {row["state"] for row in rows} == {"finished"}
    assert sorted(ended.read_text().split()) == sorted(row["run"] for row in rows)


def test_of_three_workers_on_a_study_one_is_killed_and_every_trial_ends_once(make: Callable[..., sweeps.Grid]) -> None:
    source = make(search="tpe", trials=6, axes={"schedule.max_beta": ["log", 0.01, 0.2]})
    workers = [start(source.folder) for _ in range(3)]
    wait_for(lambda: len(list(source.folder.glob("trial-*/metrics.jsonl"))) == 3)
    workers[0].kill()
    assert [worker.wait(120) for worker in workers] == [-signal.SIGKILL, 0, 0]
    assert isinstance(source, sweeps.Search)
    # a worker that is killed while it draws the values of a trial leaves one without a run
    trials = [trial for trial in source.study.get_trials() if trial.params]
    assert [(trial.state.name, trial.value) for trial in trials] == [
        ("COMPLETE", -trial.params["schedule.max_beta"]) for trial in trials
    ]
    names = [f"trial-{trial.number:04d}" for trial in trials]
    assert sorted((source.folder / "ended.log").read_text().split()) == names == [run.name for run in source.runs()]
    told = [json.loads(line) for line in (source.folder / "journal.log").read_text().splitlines()]
    assert sorted(entry["trial_id"] for entry in told if entry.get("values")) == [trial.number for trial in trials]
    assert len({trial.value for trial in trials}) == 6  # workers do not draw the same


def test_trials_are_pruned_failed_and_retried(make: Callable[..., sweeps.Grid]) -> None:
    axes = {"schedule.max_beta": ["choice", 0.1, 0.3, 0.7], "train.lr": ["float", 0.1, 0.2]}
    source = make(search="nsga2", trials=5, axes=axes)
    assert isinstance(source, sweeps.Search)
    for beta in ("0.1", "0.3", "0.7"):
        source.study.enqueue_trial({"schedule.max_beta": beta})
    rows = {row["run"]: row for row in finish(source)}
    states = {0.1: ("finished", None), 0.3: ("failed", "no luck"), 0.7: ("pruned", sweeps.PRUNING)}
    found = [(row["values"]["schedule.max_beta"], (row["state"], row["reason"])) for row in rows.values()]
    assert sorted(found) == sorted((beta, states[beta]) for beta, _ in found)
    assert {beta for beta, _ in found} == {*states}
    assert {trial.state.name for trial in source.study.get_trials()} == {"COMPLETE", "PRUNED", "RUNNING"}
    assert all(trial.values == [10.0, 0.1] for trial in source.study.best_trials)

    assert [row["state"] for row in finish(source)] == [row["state"] for row in rows.values()]  # nothing is repeated
    (source.folder / "mended").touch()
    sweeps.retry_failed(source.folder)
    again = finish(source)
    assert {row["run"] for row in again} == {*rows}
    assert {row["state"] for row in again if row["values"]["schedule.max_beta"] == 0.3} == {"finished"}
    assert [trial.state.name for trial in source.study.get_trials()].count("RUNNING") == 0


def test_a_signal_is_passed_on_and_the_runs_resume(make: Callable[..., sweeps.Grid]) -> None:
    source = make(axes={"schedule.max_beta": ["choice", 0.1, 0.2, 0.7]})
    files = [source.folder / run.name / "metrics.jsonl" for run in source.runs()]

    def asked() -> int | None:
        return signal.SIGUSR1 if all(file.is_file() and file.read_text() for file in files[:2]) else None

    finish(source, asked)
    assert [run.look()["state"] for run in source.runs()] == ["interrupted"] * 2 + ["waiting"]
    first = files[0].read_text()
    source.plan.axes["schedule.max_beta"].pop()  # a grid is not pruned
    assert {row["state"] for row in finish(source)} == {"finished"}
    assert files[0].read_text().startswith(first)


@pytest.mark.parametrize("base", ["equations_autoregressive", "autoregressive", "molecules"])
def test_presets_vary_over_a_base_that_accepts_every_remedy(base: str) -> None:
    axes = {"preset": ["choice", *presets_like("remedies/*")], "train.seed": ["choice", 0, 1]}
    plan = sweeps.make_plan(base, [set_layer(["objective.free_bits=0"])], axes)
    runs = sweeps.Grid(Path("sweep"), plan).named()
    assert len(runs) == plan.total == 2 * len([*(preset_folder() / "remedies").iterdir()])
    given = sweeps.expanded(runs["003-bn_vae-seed0"])
    assert given == {"schedule.name": "constant", "schedule.max_beta": 1.0, "model.mean_norm": 0.6, "train.seed": 0}
    with pytest.raises(InputError, match="neither a shipped preset nor a file"):
        sweeps.make_plan(base, [], {"preset": ["choice", "remedies/nope"]})
