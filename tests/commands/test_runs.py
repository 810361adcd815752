from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints, runs
from arcvae_cli.cli import app
from arcvae_cli.settings import Layer, Settings, resolve

CHANGED = Layer("test", {"train": {"epochs": 3, "lr": 0.002}, "schedule": {"name": "cyclical", "cycle_length": 4}})


def arcvae(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def make(folder: Path, name: str, state: str = "finished", done: int = 3, settings: Settings | None = None) -> Path:
    """A run of three epochs of five steps, of which so many are done."""
    settings = settings or resolve(None, CHANGED).settings
    made = runs.create(folder, name, "x", settings)
    lines = []
    for epoch in range(1, done + 1):
        lines += [{"kind": "step", "epoch": epoch - 0.5, "step": 5 * epoch - 2}]
        lines += [{"kind": "epoch", "epoch": epoch, "step": 5 * epoch}]
        values = {"format_version": checkpoints.FORMAT, "epoch": epoch, "step": 5 * epoch}
        values |= {"model_state_dict": {"weight": torch.arange(5000.0) + epoch}}
        values |= {"config": checkpoints.config_text(settings)}
        checkpoints.save(made.checkpoints / "last.pth", values)
        checkpoints.copy(made.checkpoints / "last.pth", made.checkpoints / f"best-loss-epoch_{epoch:03d}-1.0000.pth")
    (made.path / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    if done:
        shutil.copy(made.checkpoints / "best-loss-epoch_001-1.0000.pth", made.checkpoints / "vae_best.pth")
        part = {"format_version": checkpoints.FORMAT, "epoch": 1, "config": "{}"}
        part |= {"state_dict": {"weight": torch.zeros(5000)}}
        checkpoints.save(made.checkpoints / "encoder.pth", part)
    if state == "finished":
        checkpoints.copy(made.checkpoints / "last.pth", made.checkpoints / "vae_final.pth")
    facts = {"best_epoch": 1, "best_value": 1.25} if done else {}
    made.write_status(
        state, epoch=done, epochs=3, step=5 * done, seconds={"training": 7.5}, peak_memory_bytes=2**21, **facts
    )
    made.release()
    return made.path


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, in place."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    with path.open("r+b") as file:
        file.write(content)


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """A folder of four runs, the newest being killed."""
    folder = tmp_path / "runs"
    for age, (name, state, done) in enumerate(
        (("good", "finished", 3), ("stopped", "interrupted", 2), ("bad", "failed", 0), ("dead", "running", 1))
    ):
        make(folder, name, state, done)
        os.utime(folder / name / "status.json", (time.time() - 3600 * (4 - age),) * 2)
    return folder


# --------------------------------------------------------------------------------------------------------------- list


def test_runs_are_listed_the_newest_first(four: Path) -> None:
    made = runs.create(four, "alive", "x", Settings())
    lines = arcvae("runs", "list", "--runs-dir", four).stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["run", "state", "epochs"],
        ["alive", "running", "0/50"],
        ["dead", "killed", "1/3"],
        ["bad", "failed", "0/3"],
        ["stopped", "interrupted", "2/3"],
        ["good", "finished", "3/3"],
    ]
    assert re.search(r" 1\.2500 in 1 +[\d.]+ KiB +4 h ago$", lines[-1])
    document = json.loads(arcvae("runs", "list", "--runs-dir", four, "--json").stdout)
    assert [(run["name"], run["state"]) for run in document["runs"][:2]] == [("alive", "running"), ("dead", "killed")]
    assert document["runs"][-1]["best_value"] == 1.25 and document["runs"][-1]["monitor"] == "val/loss_selection"
    made.release()


def test_a_folder_without_runs(tmp_path: Path) -> None:
    done = arcvae("runs", "list", "--runs-dir", tmp_path / "none")
    assert (done.exit_code, done.stdout) == (0, "") and "start one with `arcvae train`" in done.stderr
    assert arcvae("runs", "list", "--runs-dir", tmp_path, "--quiet").stderr == ""
    assert json.loads(arcvae("runs", "list", "--runs-dir", tmp_path, "--json").stdout) == {"runs": []}
    done = arcvae("runs", "verify", "--runs-dir", tmp_path)
    assert (done.exit_code, done.stdout) == (0, "")
    (tmp_path / "file").write_text("")
    assert arcvae("runs", "list", "--runs-dir", tmp_path / "file").exit_code == 2


def test_a_row_is_a_line_in_a_pipe_and_fits_a_terminal(four: Path) -> None:
    name = "a-name-of-" + "x" * 100
    make(four, name)
    lines = arcvae("runs", "list", "--runs-dir", four).stdout.splitlines()
    assert [line for line in lines if line.startswith(name)] and not any(line.endswith(" ") for line in lines)

    command = [sys.executable, "-m", "arcvae_cli", "runs", "list", "--runs-dir", str(four)]
    here, there = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    subprocess.run(command, stdout=there, stderr=there, env=environment, check=True)
    os.close(there)
    shown = os.read(here, 65536).decode().splitlines()
    os.close(here)
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in shown]
    assert max(map(len, plain)) <= 80
    assert "".join(line.split()[0] for line in plain[1:]).startswith(name)  # over several lines


@pytest.mark.parametrize("command", [("list",), ("show", "latest")])
def test_torch_is_not_imported(four: Path, command: tuple[str, ...]) -> None:
    script = (
        "import sys; sys.argv = ['arcvae', 'runs', *sys.argv[1:]]\n"
        "from arcvae_cli.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)\n"
    )
    arguments = [*command, "--runs-dir", str(four)]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)


# --------------------------------------------------------------------------------------------------------------- show


def test_what_is_shown_of_a_run(four: Path) -> None:
    text = arcvae("runs", "show", "good", "--runs-dir", four).stdout
    for words in ("state      finished", "best       val/loss_selection 1.2500 in 1", "epochs     3/3, 15 steps"):
        assert words in text
    assert "seconds    training 7.5" in text and "at most 2 MiB" in text
    changed = {line.split()[0]: line.split()[1:] for line in text.splitlines() if "." in line.split(" ")[0]}
    assert changed["train.lr"] == ["0.002", "0.001"] and changed["train.epochs"] == ["3", "50"]
    assert changed["schedule.name"] == ['"cyclical"', '"linear_warmup"']
    assert changed["schedule.cycle_length"] == ["4.0", "20.0"]  # what the run's own schedule has by default
    assert "model.name" not in changed
    assert changed["best-loss-epoch_003-1.0000.pth"] == ["3", "=", "last.pth"]
    assert changed["vae_best.pth"][0] == changed["encoder.pth"][0] == "1"
    assert f"next: arcvae evaluate --checkpoint {four / 'good'}" in text

    document = json.loads(arcvae("runs", "show", four / "good", "--json").stdout)
    assert document["settings"]["train"]["lr"] == 0.002
    assert document["changed"]["train.lr"] == [0.002, 0.001]
    assert [file["name"] for file in document["checkpoints"]] == [
        *("last.pth", "vae_best.pth", "vae_final.pth"),
        *(f"best-loss-epoch_00{epoch}-1.0000.pth" for epoch in (1, 2, 3)),
        "encoder.pth",
    ]


def test_how_to_go_on_is_shown(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(four.parent)
    for name, step in (
        ("stopped", "arcvae train --resume stopped"),
        ("bad", "arcvae train --resume bad"),
        ("latest", "arcvae train --resume"),
        ("good", "arcvae evaluate --checkpoint good"),
    ):
        assert f"next: {step}" in arcvae("runs", "show", name).stdout, name
    assert arcvae("runs", "show", "stopped", "--quiet").exit_code == 0
    made = runs.resume(four / "stopped")
    made.write_status("running", epoch=2)
    text = arcvae("runs", "show", "stopped").stdout
    assert "next" not in text and f"process    {os.getpid()} on" in text
    made.release()


def test_a_run_that_is_not_there(four: Path) -> None:
    done = arcvae("runs", "show", "goood", "--runs-dir", four)
    assert done.exit_code == 2 and "did you mean good?" in done.stderr
    done = arcvae("runs", "verify", "../x", "--runs-dir", four)
    assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 2


def test_a_run_without_usable_files_is_shown_as_far_as_it_goes(four: Path) -> None:
    (four / "good" / "config.toml").write_text("= nonsense")
    (four / "good" / "status.json").write_text("{")
    done = arcvae("runs", "show", "good", "--runs-dir", four)
    assert done.exit_code == 0
    assert "state   damaged" in done.stdout and "not valid TOML" in done.stdout
    assert f"next: arcvae runs verify {four / 'good'}" in done.stdout


# ------------------------------------------------------------------------------------------------------------- verify


def verified(folder: Path, *arguments: Any) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """The exit code, the whole document, and what it says of each run."""
    done = arcvae("runs", "verify", "--runs-dir", folder, *arguments, "--json")
    document = json.loads(done.stdout)
    return done.exit_code, document, {run["name"]: run for run in document["runs"]}


def test_runs_that_are_whole(four: Path) -> None:
    code, document, found = verified(four)
    assert code == 0 and document["repaired"] == []
    assert all(run["ok"] for run in found.values())
    assert found["good"]["whole"] == {
        **{"last.pth": 3, "vae_best.pth": 1, "vae_final.pth": 3},
        **{f"best-loss-epoch_00{epoch}-1.0000.pth": epoch for epoch in (1, 2, 3)},
    }
    assert found["good"]["go_on"] is None
    assert found["dead"]["state"] == "killed"
    assert found["dead"]["go_on"] == f"arcvae train --resume {four / 'dead'}"
    assert found["bad"]["go_on"] == f"arcvae train --preset {four / 'bad' / 'config.toml'}"  # there is no checkpoint
    done = arcvae("runs", "verify", "good", "--runs-dir", four)
    assert (done.exit_code, done.stdout.splitlines()[1].split()) == (0, ["good", "finished", "7", "whole", "whole"])


def test_damage_is_named_with_what_is_whole_and_how_to_go_on(four: Path) -> None:
    run = four / "good"
    flip(run / "checkpoints" / "last.pth")  # whose bytes the final and the third epoch share
    code, _, found = verified(four)
    assert code == 1
    assert {name for name, one in found.items() if not one["ok"]} == {"good"}
    assert set(found["good"]["broken"]) == {"last.pth", "vae_final.pth", "best-loss-epoch_003-1.0000.pth"}
    assert found["good"]["go_on"] == (f"arcvae train --resume {run / 'checkpoints' / 'best-loss-epoch_002-1.0000.pth'}")
    done = arcvae("runs", "verify", "good", "--runs-dir", four)
    assert done.exit_code == 1
    assert "good: last.pth: " in done.stdout
    assert "good: whole: vae_best.pth (epoch 1), best-loss-epoch_001-1.0000.pth (epoch 1), best-loss" in done.stdout
    assert f"good: go on with `{found['good']['go_on']}`" in done.stdout
    assert "error: 1 of 1 runs damaged: good" in done.stderr


def test_every_kind_of_damage_is_found(tmp_path: Path) -> None:
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-3000])

    def add(path: Path, text: str) -> None:
        path.write_text(path.read_text() + text)

    harms = {
        "cut.pth": lambda run: cut(run / "checkpoints" / "vae_best.pth"),
        "empty.pth": lambda run: (run / "checkpoints" / "vae_best.pth").write_bytes(b""),
        "part": lambda run: flip(run / "checkpoints" / "encoder.pth"),
        "link": lambda run: (run / "checkpoints" / "mine.pth").symlink_to("nowhere"),
        "no-final": lambda run: (run / "checkpoints" / "vae_final.pth").unlink(),
        "no-last": lambda run: (run / "checkpoints" / "last.pth").unlink(),
        "status": lambda run: (run / "status.json").write_text("{"),
        "no-metrics": lambda run: (run / "metrics.jsonl").unlink(),
        "torn": lambda run: add(run / "metrics.jsonl", '{"kind": "st'),
        "foreign": lambda run: add(run / "metrics.jsonl", "hello\n"),
        "list": lambda run: add(run / "metrics.jsonl", "[1]\n"),
        "long": lambda run: add(run / "metrics.jsonl", " " * (2**20 + 10)),
        "deep": lambda run: add(run / "metrics.jsonl", "[" * 100_000 + "\n"),
        "twice": lambda run: add(run / "metrics.jsonl", '{"kind": "epoch", "epoch": 3, "step": 15}\n'),
        "gap": lambda run: add(run / "metrics.jsonl", '{"kind": "epoch", "epoch": 5, "step": 25}\n'),
        "no-epoch": lambda run: add(run / "metrics.jsonl", '{"kind": "epoch", "step": 25}\n'),
        "back": lambda run: add(run / "metrics.jsonl", '{"kind": "step", "epoch": 3, "step": 14}\n'),
        "short": lambda run: (run / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 1, "step": 5}\n'),
    }
    first = make(tmp_path, "whole")
    for name, harm in harms.items():
        shutil.copytree(first, tmp_path / name)
        harm(tmp_path / name)
    code, _, found = verified(tmp_path)
    assert code == 1
    assert [name for name, run in found.items() if run["ok"]] == ["whole"]
    assert len(found) == len(harms) + 1
    for name in ("cut.pth", "empty.pth", "part", "link"):
        assert len(found[name]["broken"]) == 1 and not found[name]["problems"], name
    for name in set(harms) - {"cut.pth", "empty.pth", "part", "link"}:
        assert len(found[name]["problems"]) == 1 and not found[name]["broken"], (name, found[name])
    assert found["gap"]["problems"] == ["metrics.jsonl: line 7: epoch 5 comes after epoch 3"]


@pytest.mark.parametrize("text", [None, "[train]\nepochz = 3\n", "lr ="])
def test_settings_are_restored_from_a_checkpoint(tmp_path: Path, text: str | None) -> None:
    run = make(tmp_path, "whole")
    config = run / "config.toml"
    whole = config.read_text()
    config.unlink() if text is None else config.write_text(text)
    code, _, found = verified(tmp_path)
    assert code == 0 and config.read_text() == whole
    assert "; written again from " in found["whole"]["notes"][0] and not runs.held(run)
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    config.unlink()
    code, _, found = verified(tmp_path)
    assert code == 1 and "config.toml: missing" in found["whole"]["problems"] and not config.exists()


def test_what_a_killed_run_may_leave_is_no_damage(four: Path) -> None:
    run = four / "dead"
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "epoch": 1.5, "step": 8}\n{"kind": "epoch", "ep')
    (run / "checkpoints" / ".last.pth.1234abcd.tmp").write_bytes(bytes(10))
    done = arcvae("runs", "verify", "dead", "--runs-dir", four)
    assert done.exit_code == 0, done.stdout
    for words in ("ended without a word", "removed .last.pth.1234abcd.tmp", "its last line is cut short, which going"):
        assert words in done.stderr
    assert not list((run / "checkpoints").glob(".*"))


def test_a_run_at_work_is_verified_and_left_alone(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_PATIENCE", 0.05)
    made = runs.resume(four / "dead")
    made.write_status("running", epoch=1, epochs=3, step=5)
    temporary = made.checkpoints / ".last.pth.1234abcd.tmp"
    temporary.write_bytes(bytes(10))
    with (made.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "ep')
    code, _, found = verified(four, "dead")
    assert (code, found["dead"]["state"], found["dead"]["go_on"]) == (0, "running", None)
    assert temporary.exists()
    made.write_status("interrupted", epoch=1, epochs=3, step=5)  # the word of a process that is not gone yet
    verified(four, "dead")
    assert temporary.exists()
    made.release()
    verified(four, "dead")
    assert not temporary.exists()


def test_latest_is_repaired(four: Path) -> None:
    latest = four / "latest"
    code, document, _ = verified(four)
    assert (code, document["repaired"], os.readlink(latest)) == (0, [], "dead")
    shutil.rmtree(four / "dead")
    assert "removed" not in arcvae("runs", "verify", "good", "--runs-dir", four).stdout  # one run is no reason
    assert os.readlink(latest) == "dead"
    _, document, _ = verified(four)
    assert document["repaired"] == [f"{latest} pointed to dead, which is gone: it points to bad now"]
    assert os.readlink(latest) == "bad"
    latest.unlink()
    assert f"{latest} was missing: it points to bad now" in arcvae("runs", "verify", "--runs-dir", four).stdout
    for name in ("good", "stopped", "bad"):
        shutil.rmtree(four / name)
    assert "it is removed" in arcvae("runs", "verify", "--runs-dir", four).stdout
    assert os.listdir(four) == []
