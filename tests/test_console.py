from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

import pytest
from rich.console import Console as Terminal

from arcvae_cli.console import Console


def test_names_with_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.note("run folder runs/[red]a[/x]/:cat:")
    console.warn("no [bold]data[/y]")
    assert capsys.readouterr() == ("", "run folder runs/[red]a[/x]/:cat:\nwarning: no [bold]data[/y]\n")
    long = "[red]" + "x " * 200
    console.lines([long, ":cat:", ""])
    assert capsys.readouterr().out == f"{long}\n:cat:\n\n"
    Console(as_json=True).lines([long])
    assert capsys.readouterr().out == ""


def test_a_character_that_stdout_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    Console().lines(["caf\xe9"])
    Console().result("caf\xe9")
    sys.stdout.flush()
    assert written.getvalue() == rb"caf\xe9" + b"\n" + rb"caf\xe9" + b"\n"


def test_counting_is_a_line_each_tenth_or_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Console().counting("parsing") as show:
        for done in range(0, 20_001, 500):
            show(done, 20_000)
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[0], lines[-1]) == (10, "parsing: 2,000 of 20,000", "parsing: 20,000 of 20,000")
    with Console(quiet=True).counting("parsing") as show:
        show(1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("TERM", "xterm")
    console = Console()
    console.err = Terminal(file=io.StringIO(), force_terminal=True, width=80)
    with console.counting("parsing") as show:
        show(1000, 1000)
    assert "1000/1000" in console.err.file.getvalue()


class Broken(io.StringIO):
    """A stream that refuses whatever is written to it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_output_that_cannot_be_written_ends_no_job(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(number))
    monkeypatch.setattr(sys, "stderr", Broken(number))
    console = Console(as_json=True)
    console.json({"a": 1})
    console.as_json = False
    for write in (console.result, console.note, console.warn):
        write("text")
    console.lines(["text"])
    with console.counting("parsing") as show:
        assert show(500, 1000) is None


@pytest.mark.parametrize(("target", "said"), [("closed pipe", b""), ("/dev/full", b"warning: output lost: No space")])
def test_lost_output_gives_one_warning_and_no_exit_code(target: str, said: bytes) -> None:
    """Not even at the end of the process, where Python exits with 120 if a stream cannot be flushed."""
    script = """
import os, sys
from arcvae_cli.console import Console
console = Console()
if sys.argv[1] == "closed pipe":
    end, other = os.pipe(); os.close(end)
else:
    other = os.open(sys.argv[1], os.O_WRONLY)
os.dup2(other, 1); os.close(other)
console.result("text"); console.result("text"); console.lines(["text"])
sys.stdout.write("by other code")
"""
    done = subprocess.run([sys.executable, "-c", script, target], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(said) and done.stderr.count(b"\n") == bool(said)
