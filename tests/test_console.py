from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arcvae_cli.console import Console


def test_names_with_brackets_are_no_markup(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    console = Console()
    console.log_file = tmp_path / "run.log"
    console.note("run folder runs/[red]a[/x]/:cat:")
    console.warn("no [bold]data[/y]")
    assert capsys.readouterr() == ("", "run folder runs/[red]a[/x]/:cat:\nwarning: no [bold]data[/y]\n")
    console.quiet = True
    console.note("\nonly logged")
    logged = [line.partition(" ")[2] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert logged == ["run folder runs/[red]a[/x]/:cat:", "warning: no [bold]data[/y]", "only logged"]
    long = "[red]" + "x " * 200
    console.lines([long, ":cat:", ""])
    console.table("", ("a", "b"), [(long, "1")], header=False)
    assert capsys.readouterr() == (f"{long}\n:cat:\n\n{long}  1\n", "")
    Console(as_json=True).lines([long])
    assert capsys.readouterr().out == ""


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
