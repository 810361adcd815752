from __future__ import annotations

import contextlib
import os
import pty
import re
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from typer.testing import CliRunner

from arcvae_cli import __version__
from arcvae_cli.cli import COMMANDS, app, explain
from arcvae_cli.errors import ArcvaeError, InputError


def test_version_and_help() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"arcvae {__version__}\n"
    bare = CliRunner().invoke(app, [])
    assert bare.exit_code == 0 and [name for name in COMMANDS if name not in bare.stdout] == []
    for name in COMMANDS:
        done = CliRunner().invoke(app, [name, "--help"])
        assert done.exit_code == 0 and f"{name} [OPTIONS]" in done.stdout, done.stderr
    for group in ("runs", "presets", "data"):
        done = CliRunner().invoke(app, [group])
        assert (done.exit_code, done.stdout.count("Usage"), done.stderr) == (0, 1, ""), group
        assert "--install-completion" not in done.stdout


LONG, SHAPES = "a" * 300, "train --data shapes --set data.size=1000"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian", "Did you mean 'train'?"),
        ("train --model gird", "--model: model.name: unknown name 'gird'"),
        ("train --beta-schedule three_phase --beta-max 1", "--beta-max"),
        (f"{SHAPES} --set schedule.name=hierarchical", "schedule.name: schedule hierarchical has the levels"),
        (f"{SHAPES} --preset minimal", "grammar needs strings, but the corpus shapes contains grids"),
        (f"{SHAPES} --batch-size 5000", "train.batch_size: 5000 is more than the"),
        (f"{SHAPES} --runs-dir {LONG}", LONG),
        (f"evaluate --checkpoint {LONG}", LONG[:100]),
        ("train --set train.\x1b[2J=1", "train.\\x1b[2J"),
        ("presets show a\0b", "a\\x00b"),
    ],
    ids=lambda text: ascii(text[:70]),
)
def test_a_mistake_is_two_lines_on_stderr_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, line.split(" "))
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
        (PermissionError(13, "Permission denied", "x"), 1, "x: Permission denied"),
        (KeyError("x"), 1, "KeyError: 'x'"),
    ],
    ids=repr,
)
def test_exceptions_become_a_message_and_an_exit_code(error: Exception, code: int, words: str) -> None:
    found, what, fix = explain(error)
    assert found == code and words in what
    assert (fix is not None and "a bug" in fix) is isinstance(error, KeyError), "only a bug is called one"


def test_the_live_table_in_a_real_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "own.npy", np.random.RandomState(0).randint(0, 10, (40, 16, 16)).astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("arcvae_cli.render.plots._write", lambda figure, path: path.touch())
    monkeypatch.setattr("arcvae_cli.evaluation.samples.tsne_plane", lambda codes, seed: codes[:, :2])
    for name, value in {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    chunks: list[bytes] = []
    reader, terminal = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):  # when the other end is closed
            while chunk := os.read(reader, 65536):
                chunks.append(chunk)

    thread = Thread(target=read)
    thread.start()
    with os.fdopen(terminal, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        arguments = "train --data own.npy --epochs 1 --batch-size 15 --free-bits 0.3 --run-name a --latent-dim 2"
        with pytest.raises(SystemExit) as ended:
            app(arguments.split())
    thread.join(90)
    os.close(reader)
    text = b"".join(chunks).decode()
    assert ended.value.code == 0, text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    for words in ("non-black", "KL of each dimension of z", "| free bits 0.3", "epoch 1/1, step 2/2", "Verdict"):
        assert words in plain, words
    assert "\x1b[?25l" in text and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor comes back"
    assert text.rindex("\x1b[?25h") < text.index("Verdict"), "the table is closed before the report"
