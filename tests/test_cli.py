from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arcvae_cli import __version__
from arcvae_cli.cli import COMMANDS


def arcvae(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    command = [sys.executable, "-m", "arcvae_cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "80", **environment}
    )


def test_the_version() -> None:
    assert arcvae("--version").stdout == f"arcvae {__version__}\n"


def test_help_lists_every_command_and_each_has_help() -> None:
    text = arcvae("--help").stdout
    for name in COMMANDS:
        assert name in text
        done = arcvae(name, "--help")
        assert done.returncode == 0, done.stderr
        assert "Usage: arcvae" in done.stdout and name in done.stdout


def test_help_names_the_defaults() -> None:
    text = " ".join(arcvae("train", "--help", COLUMNS="160").stdout.split())
    for default in ("linear_warmup", "128", "0.001", "auto", "50"):
        assert f"[default: ({default})]" in text, default


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("train", "--fre-bits", "1"), "--free-bits"),
        (("train", "--epochs", "many"), "'--epochs'"),
        (("train", "--preset", "nope"), "error: preset 'nope'"),
        (("train", "--set", "train.lrr=1"), "did you mean lr?"),
        (("train", "--beta-schedule", "three_phase", "--beta-max", "1"), "--beta-max"),
        (("train", "--data", "nowhere.npz"), "nowhere.npz"),
        (("train", "--set", "schedule.name=hierarchical"), "schedule.name: schedule hierarchical has the levels"),
        (("train", "--device", "cuda:7"), "train.device: cuda:7 is not available"),
        (("train", "--run-name", "../x", "--epochs", "1"), "--run-name"),
        (("evaluate", "--checkpoint", "none.pth"), "checkpoint 'none.pth'"),
        (("schedule-preview", "cyclicall"), "cyclical"),
        (("presets", "show", "nope"), "error: preset 'nope'"),
        (("data", "info", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_a_mistake_is_told_in_a_few_lines_with_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = arcvae(*arguments, cwd=tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    if done.stderr.startswith("error:"):
        assert len(done.stderr.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


def test_the_traceback_is_shown_on_request(tmp_path: Path) -> None:
    done = arcvae("--debug", "presets", "show", "nope", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr and "error: preset 'nope'" in done.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    script = f"{sys.executable} -m arcvae_cli presets schema | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["{", "0"]
    assert done.stderr == ""


def test_completion_completes_commands_and_options() -> None:
    done = arcvae("--show-completion", "bash")
    assert "_ARCVAE_COMPLETE" in done.stdout or "complete" in done.stdout
    completed = arcvae(_ARCVAE_COMPLETE="complete_bash", COMP_WORDS="arcvae schedule-preview --ma", COMP_CWORD="2")
    assert "--max-beta" in completed.stdout


def read_terminal(arguments: list[str], cwd: Path, **environment: str) -> tuple[str, int]:
    """What a command writes to a terminal of 100 by 40, and its exit code."""
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.environ.update({"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color", **environment})
        os.execv(sys.executable, [sys.executable, "-m", "arcvae_cli", *arguments])
    chunks = []
    while True:
        ready, _, _ = select.select([descriptor], [], [], 90)
        try:
            chunk = os.read(descriptor, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    _, status = os.waitpid(child, 0)
    return b"".join(chunks).decode(), os.waitstatus_to_exitcode(status)


def test_the_live_table_in_a_real_terminal(tmp_path: Path) -> None:
    arguments = ["train", "--quick-test", "--set", "data.limit=256", "--epochs", "2", "--batch-size", "64"]
    arguments += ["--free-bits", "0.3", "--set", "data.size=1000", "--set", "log.images_every=0"]
    text, code = read_terminal(arguments, tmp_path)
    assert code == 0, text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    for words in ("non-black", "KL of each dimension of z", "| free bits 0.3", "epoch 2/2, step 4/4", "left"):
        assert words in plain, words
    assert "\x1b[?25l" in text and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor comes back"


def test_ctrl_c_after_the_last_epoch_says_that_the_training_is_complete(tmp_path: Path) -> None:
    grids = np.random.RandomState(0).randint(0, 10, (80, 16, 16)).astype(np.uint8)
    np.save(tmp_path / "own.npy", grids)
    command = [sys.executable, "-m", "arcvae_cli", "train", "--data", "own.npy", "--epochs", "1", "--run-name", "a"]
    command += ["--batch-size", "20", "--beta-schedule", "constant"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert "the file tells no splits" in run.stderr.readline()
        for line in run.stderr:
            if line.startswith("epoch 1/1"):
                break
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate()
    assert run.returncode == 130
    assert "the training is complete in runs/a" in errors
    assert '"finished"' in (tmp_path / "runs/a/status.json").read_text()


def test_python_m_ends_with_the_exit_code_whatever_was_interrupted(tmp_path: Path) -> None:
    """CPython keeps in mind that a string run by `exec`, as dataclasses run some, was interrupted."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "def strike(*_, **__):\n"
        "    exec('os.kill(os.getpid(), signal.SIGTERM)\\nfor _ in range(10**9): pass', globals())\n"
        "import arcvae_cli.settings as settings\n"
        "settings.preset_names = strike\n"
    )
    assert arcvae("presets", "list", PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[1]}").returncode == 143
