from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

import pytest
from rich.console import Console as Terminal

from arcvae_cli.console import Console


def test_notes_and_warnings_say_what_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder may be called as markup or an emoji is."""
    console = Console()
    console.note("run folder runs/[red]a[/x]/:cat:")
    console.warn("no [bold]data[/y]")
    assert capsys.readouterr() == ("", "run folder runs/[red]a[/x]/:cat:\nwarning: no [bold]data[/y]\n")


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """However long, and whatever they hold: they are for another program."""
    long = "[red]" + "x " * 200
    Console().lines([long, ":cat:", ""])
    assert capsys.readouterr().out == f"{long}\n:cat:\n\n"
    Console(as_json=True).lines([long])
    assert capsys.readouterr().out == ""


def test_a_letter_that_stdout_has_no_code_for_is_written_as_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    console = Console()
    console.lines(["caf\xe9"])
    console.result("caf\xe9")
    sys.stdout.flush()
    assert written.getvalue() == rb"caf\xe9" + b"\n" + rb"caf\xe9" + b"\n"


def test_counting_off_a_terminal_is_a_line_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().counting("parsing") as tell:
        for done in range(0, 20_001, 500):
            tell(done, 20_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert (lines[0], lines[-1]) == ("parsing: 2,000 of 20,000", "parsing: 20,000 of 20,000")
    with Console().counting("parsing") as tell:
        tell(3, 3)
        tell(0, 0)
    with Console(quiet=True).counting("parsing") as tell:
        tell(1, 2)
    assert capsys.readouterr() == ("", "")


def test_counting_on_a_terminal_is_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = Console()
    console.err = Terminal(file=io.StringIO(), force_terminal=True, width=80)
    with console.counting("parsing") as tell:
        tell(500, 1000)
        tell(1000, 1000)
    shown = console.err.file.getvalue()
    assert "parsing" in shown and "1000/1000" in shown


class Broken(io.StringIO):
    """A stream that refuses whatever is written to it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_a_job_goes_on_when_nobody_reads_any_more(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(number))
    monkeypatch.setattr(sys, "stderr", Broken(number))
    console = Console()
    for _ in range(2):
        console.result("a result")
        console.note("a note")
        console.warn("a warning")
    with console.counting("parsing") as tell:
        tell(500, 1000)


def test_a_full_disk_ends_the_talk_and_is_told_of_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    monkeypatch.setattr(sys, "stderr", Broken(errno.ENOSPC))
    Console().note("a note")
    with pytest.raises(OSError, match="No space left"):
        Console().result("a result")


def test_what_waits_to_be_written_makes_no_noise_at_the_end() -> None:
    """Neither a message nor another exit code: 120, where a stream cannot be emptied."""
    script = """
import os, sys
from arcvae_cli.console import Console
console = Console()
for number, say in ((1, console.result), (2, console.note)):
    end, other = os.pipe(); os.dup2(other, number); os.close(other); os.close(end)
    say("to nobody")
sys.stdout.write("by others"); sys.stderr.write("by others")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
