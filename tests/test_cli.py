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
from typer.testing import CliRunner

from arcvae_cli import __version__
from arcvae_cli.cli import COMMANDS, app, explain
from arcvae_cli.errors import ArcvaeError, InputError


def arcvae(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    command = [sys.executable, "-m", "arcvae_cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "80", **environment}
    )


def test_version_and_help() -> None:
    assert arcvae("--version").stdout == f"arcvae {__version__}\n"
    bare = arcvae()
    assert bare.returncode == 0 and bare.stdout.count("Usage") == 1
    assert [name for name in COMMANDS if name not in bare.stdout] == []
    for name in COMMANDS:
        done = arcvae(name, "--help")
        assert done.returncode == 0 and f"Usage: arcvae {name}" in done.stdout, done.stderr


LONG, NUL = "a" * 300, "a\0b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "--fre-bits", "1"], "--free-bits"),
        (["train", "--epochs", "many"], "'--epochs'"),
        (["train", "--beta-schedule", "three_phase", "--beta-max", "1"], "--beta-max"),
        (["train", "--data", "nowhere.npz"], "nowhere.npz"),
        (["train", "--data", NUL], "a\\x00b"),
        (["train", "--set", "schedule.name=hierarchical"], "schedule.name: schedule hierarchical has the levels"),
        (["train", "--device", "cuda:7"], "train.device: cuda:7 is not available"),
        (["train", "--run-name", "../x", "--epochs", "1"], "--run-name"),
        (["train", "--runs-dir", LONG, "--data", "shapes", "--set", "data.size=1000"], LONG),
        (["evaluate", "--checkpoint", LONG], LONG[:100]),
        (["schedule-preview", "cyclicall"], "cyclical"),
        (["schedule-preview", LONG], LONG),
        (["presets", "show", "nope"], "preset 'nope'"),
        (["presets", "show", NUL], "a\\x00b"),
        (["data", "info", "nowhere.npz"], "nowhere.npz"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_is_two_lines_on_stderr_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.stderr
    assert words in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("beta ends", "building"))]
    assert lines[0].startswith("error:") and len(lines) <= 2
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("a.toml: bad", "mend it"), 2, "a.toml: bad"),
        (ArcvaeError("failed"), 1, "failed"),
        (MemoryError("of 9 GB"), 1, "out of memory: of 9 GB"),
        (OSError(36, "File name too long", "aaa"), 2, "aaa: File name too long"),
        (PermissionError(13, "Permission denied", "x"), 1, "x: Permission denied"),
        (ValueError("embedded null byte"), 2, "NUL"),
        (KeyError("x"), 1, "KeyError: 'x'"),
    ],
    ids=repr,
)
def test_exceptions_become_a_message_and_an_exit_code(error: Exception, code: int, words: str) -> None:
    found, what, fix = explain(error)
    assert found == code and words in what
    assert (fix is not None and "a bug" in fix) is isinstance(error, KeyError), "only a bug is called one"


def test_a_password_is_never_printed() -> None:
    error = InputError("https://me:se@cret@host.org/a.csv: not found", "see https://host.org/user")
    assert (error.what, error.fix) == ("https://host.org/a.csv: not found", "see https://host.org/user")
    assert InputError("/home/https:/me:secret@host.org/a").what == "/home/https:/host.org/a"
    assert InputError("http://me:se/cret@host.org/a").what == "http://host.org/a"


def test_the_traceback_is_shown_on_request(tmp_path: Path) -> None:
    done = arcvae("--debug", "presets", "show", "nope", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr and "error: preset 'nope'" in done.stderr


@pytest.mark.parametrize(
    ("script", "out", "err"),
    [
        ("presets schema | head -1; echo ${PIPESTATUS[0]}", "{\n0\n", ""),
        ("runs list >&-; echo $?", "0\n", "no run in runs/ yet"),
        ("presets list 2>&-; echo $?", "\n0\n", ""),
        ("presets schema > /dev/full; echo $?", "0\n", "warning: output lost: No space left on device\n"),
    ],
)
def test_output_that_goes_nowhere(tmp_path: Path, script: str, out: str, err: str) -> None:
    command = f"{sys.executable} -m arcvae_cli {script}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.endswith(out) and done.stderr.startswith(err)
    assert "Traceback" not in done.stderr and (err or not done.stderr)


def test_a_training_is_not_ended_by_output_that_cannot_be_written(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.random.RandomState(0).randint(0, 10, (80, 16, 16)).astype(np.uint8))
    flags = "train --data own.npy --epochs 1 --batch-size 20 --run-name a --set log.images_every=0 > /dev/full"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m arcvae_cli {flags}"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("output lost") == 1 and '"finished"' in (tmp_path / "runs/a/status.json").read_text()


def test_completion_offers_options_choices_and_names() -> None:
    def complete(words: str) -> set[str]:
        count = str(len(words.split()) - (not words.endswith(" ")))
        done = arcvae(_ARCVAE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
        return set(done.stdout.split())

    assert "--max-beta" in complete("arcvae schedule-preview --ma")
    assert complete("arcvae train --beta-schedule cyc") == {"cyclical"}
    assert complete("arcvae train --preset quick") == {"quickstart"}
    assert complete("arcvae train --precision ") == {"auto", "fp32", "bf16"}


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
        for line in run.stderr:
            if line.startswith("epoch 1/1"):
                break
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate()
    assert run.returncode == 130
    assert "the training is complete in runs/a" in errors
    assert '"finished"' in (tmp_path / "runs/a/status.json").read_text()
