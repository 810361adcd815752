"""The live table and the plain lines against what they should look like, and real terminals that are left in order."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console as Terminal

from arcvae_cli.console import Console
from arcvae_cli.controllers import Target
from arcvae_cli.recorders import live
from arcvae_cli.recorders.live import Lines, LiveTable, live_recorder
from arcvae_cli.records import EpochRecord, Plan

MakePlan, MakeRecord = Callable[..., Plan], Callable[..., EpochRecord]
HELD = Target("global", "kl", 25.12, 25.0, 0.4, None)
SHORT = Target("local", "kl", 12.0, 25.0, 0.0, "min")
LEVELS = {"kl_per_dim": {"global": [1.0, 0.02], "local": [2.0]}, "betas": {"global": 0.01, "local": 0.02}}


def terminal(width: int, height: int) -> Console:
    console = Console()
    console.err = Terminal(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system="standard", no_color=False
    )
    return console


def recorder_of(plan: Plan, records: list[EpochRecord], width: int, height: int) -> LiveTable:
    recorder = LiveTable(terminal(width, height))
    recorder._plan = plan
    for record in records:
        recorder.step(record.epoch, 50, {"z": 0.05}, None)
        recorder.epoch(record)
    return recorder


def drawn(recorder: LiveTable, colour: bool = False) -> str:
    """What is on the screen now."""
    width, height = recorder._console.err.size
    paper = terminal(width, height).err if colour else Terminal(file=io.StringIO(), width=width, height=height)
    with paper.capture() as captured:
        paper.print(recorder.picture())
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


WIDE = """\
                       val                       non-
epoch   beta   loss   loss  recon    KL  pixel  black  exact  active     s
   1*   0.05  125.6  123.4    120  3.01  0.950  0.400  0.010     2/3  12.3
    2  0-0.1  125.6  123.4    120  3.01  0.950  0.400  0.010     2/3  12.3
KL of each dimension of z: 3.01 nats, 1 of 3 dead; | free bits 0.3
  0 ███|███████              1.000
  1 ███|██████████████████   2.000
  2    |                     0.010 dead
╸                              epoch 2/100, step 50/50, beta 0.05, 0:00 gone, 0:00 left"""
NARROW = """\
                         on   val                       KL/        non-
epoch      beta        ELBO  loss recon   KL         target pixel black active
  +20
   21 0.01/0.02 0.256/0.512 123.4   120 3.02 25.1/25  12/25 0.950 0.400    2/3
   22 0.01/0.02 0.256/0.512 123.4   120 3.02 25.1/25  12/25 0.950 0.400    2/3
   23 0.01/0.02 0.256/0.512 123.4   120 3.02 25.1/25  12/25 0.950 0.400    2/3
   24 0.01/0.02 0.256/0.512 123.4   120 3.02 25.1/25  12/25 0.950 0.400    2/3
   25 0.01/0.02 0.256/0.512 123.4   120 3.02 25.1/25  12/25 0.950 0.400    2/3
   26 0.01/0.02 0.256/0.512 123.4   120 3.02 25.1/25  12/25 0.950 0.400    2/3
   27 0.01/0.02 0.256/0.512 123.4   120 3.02 25.1/25  12/25 0.950 0.400    2/3
   28 0.01/0.02 0.256/0.512 123.4   120 3.02 25.1/25  12/25 0.950 0.400    2/3
   29 0.01/0.02 0.256/0.512 123.4   120 3.02 25.1/25  12/25 0.950 0.400    2/3
note: local KL: 12 nats, target 25, out of reach with beta at its min 0; lower
the target, or give the model more latent dimensions
KL of each dimension of global: 1.02 nats, 1 of 2 dead
  0 ██████████████████████   1.000
  1                          0.020 dead
KL of each dimension of local: 2.00 nats
  0 ██████████████████████   2.000
━━━━━━                 epoch 29/100, step 50/50, beta 0.05, 0:00 gone, 0:00 left"""
PLAIN = """\
run one: grid, 1,234,567 parameters, on cpu in fp32, eager steps
data arc: 80,000 to train on, 10,000 to validate; 100 epochs of 50 steps
schedule cyclical: between 0 and 0.1 every 20 epochs, up and down; free bits 0.3 (per_dim)
scale: mean reductions; beta weighs 25.6 times as much on the ELBO scale
baseline: rules as frequent at each step as in training cost 20.61 nats and are right in 0.900; \
the entropy of the data is 19.11 nats
epoch 2/100  beta 0.05  on ELBO 1.28  loss 125.6  val loss 123.4  recon 120  KL 3.01  pixel 0.950  \
non-black 0.400  exact 0.010  active 2/3  s 12.3  *best
epoch 3/100  beta 0.01/0.02  on ELBO 0.256/0.512  loss 125.6  val loss 123.4  recon 120  KL 3.02  \
KL/target 25.1/25  12/25  token 0.950  sequence 0.010  active 2/3  s 12.3
note: local KL: 12 nats, target 25, out of reach with beta at its min 0; \
lower the target, or give the model more latent dimensions
epoch 4/100  beta 0.01/0.02  on ELBO 0.256/0.512  loss 125.6  val loss 123.4  recon 120  KL 3.02  \
KL/target 25.1/25  12/25  token 0.950  sequence 0.010  active 2/3  s 12.3"""


def test_a_wide_table(make_plan: MakePlan, make_record: MakeRecord) -> None:
    records = [make_record(1, best=True), make_record(2, betas={"z": 0.1}, beta_range={"z": (0.0, 0.1)})]
    assert drawn(recorder_of(make_plan(free_bits=0.3), records, 120, 40)) == WIDE


def test_a_low_terminal_with_two_levels_targets_and_the_elbo_scale(
    make_plan: MakePlan, make_record: MakeRecord
) -> None:
    records = [make_record(epoch, targets=(HELD, SHORT), **LEVELS) for epoch in range(1, 30)]
    assert drawn(recorder_of(make_plan(levels={"global": 2, "local": 1}, elbo_scale=25.6), records, 80, 20)) == NARROW


def test_plain_lines(make_plan: MakePlan, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]) -> None:
    """A note on a target out of reach comes when it begins; a resumed run prints no line of earlier epochs."""
    recorder = Lines(Console())
    recorder.start(make_plan(elbo_scale=25.6, free_bits=0.3, blank_nats=20.61, entropy=19.113))
    recorder.resume([make_record(1)], 50)
    recorder.epoch(make_record(2, best=True))
    for epoch in (3, 4):
        recorder.epoch(make_record(epoch, unit="token", targets=(HELD, SHORT), **LEVELS))
    recorder.close()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", PLAIN + "\n")


@pytest.mark.parametrize(("width", "height"), [(60, 30), (80, 24), (100, 30), (140, 50)])
@pytest.mark.parametrize("levels", [{"z": 10}, {"z": 200}, {"global": 16, "local": 4}], ids=str)
@pytest.mark.parametrize("targets", [0, 1])
def test_a_picture_fits_the_terminal(
    width: int, height: int, levels: dict[str, int], targets: int, make_plan: MakePlan, make_record: MakeRecord
) -> None:
    """Rich cuts what does not fit from below: first the progress, then the bars."""
    rates = {name: [0.1 * index for index in range(size)] for name, size in levels.items()}
    held = tuple(Target(name, "kl", 123.4, 250.0, 0.0, "min") for name in levels) * targets
    betas = dict.fromkeys(rates, 0.0123)
    records = [make_record(epoch, kl_per_dim=rates, betas=betas, targets=held) for epoch in range(1, 61)]
    recorder = recorder_of(make_plan(levels=levels, free_bits=0.3), records, width, height)
    lines = drawn(recorder).splitlines()
    assert len(lines) <= height and max(map(cell_len, lines)) <= width
    shown = [int(line.split()[0]) for line in lines if re.match(r" *\d+ +0.0123 ", line)]
    assert shown[-1] == 60 and len(shown) >= 3 and f"+{60 - len(shown)}" in "\n".join(lines)
    assert lines[-1].startswith(("━", "╸", "epoch")) and sum("KL of each" in line for line in lines) == len(levels)


def test_what_an_uninformative_latent_reaches_is_red(make_plan: MakePlan, make_record: MakeRecord) -> None:
    dull = make_record(1, val={"position": 0.9, "foreground": 0.0}, targets=(SHORT,))
    text = drawn(recorder_of(make_plan(blank=0.9), [dull], 120, 40), colour=True)
    assert all(re.search(rf"\x1b\[31m *{cell}", text) for cell in ("0.900", "0.000", "2/3", "12/25"))
    bright = make_record(1, kl_per_dim={"z": [1.0, 1.0]}, val={"position": 0.901}, targets=(replace(HELD, level=""),))
    text = drawn(recorder_of(make_plan(blank=0.9), [bright], 120, 40), colour=True)
    assert "\x1b[31m" not in text and all(re.search(rf"\x1b\[32m *{cell}", text) for cell in ("2/2", "25.1/25"))
    strings = make_record(1, unit="token", kl_per_dim={"z": [1.0]}, val={"foreground": 0.0, "exact": 0.0})
    assert "\x1b[31m" not in drawn(recorder_of(make_plan(blank=None), [strings], 120, 40), colour=True)


def test_progress_and_time_left(make_plan: MakePlan, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimated from the steps of this process; a closed loop shows the beta of the last epoch."""
    now = [1000.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    recorder = recorder_of(make_plan(), [], 120, 40)
    recorder.step(1, 10, {}, None)
    now[0] += 30.0
    assert drawn(recorder).endswith("epoch 1/100, step 10/50, beta in a closed loop, 0:30 gone, -:-- left")
    recorder = recorder_of(make_plan(), [], 120, 40)
    recorder.resume([make_record(epoch) for epoch in range(1, 51)], 2500)
    assert drawn(recorder).endswith("epoch 50/100, step 50/50, beta was 0.05, 0:00 gone, -:-- left")
    for done in (31, 32, 50):  # the first 30 steps of the epoch were done by an earlier process
        recorder.step(51, done, {"z": 0.05}, None)
    now[0] += 40.0
    assert drawn(recorder).endswith("beta 0.05, 0:40 gone, 1:21:40 left"), "2 s a step, and 2450 left"


def test_the_header_names_the_floor_of_each_level(make_plan: MakePlan) -> None:
    plan = replace(make_plan(levels={"global": 1, "local": 2}), free_bits={"global": 0.25, "local": 20.0})
    assert "free bits global 0.25, local 20 (per_dim)" in "\n".join(live.header(plan))
    unknown = "scale: with focal loss or class weights no ELBO corresponds to this beta"
    assert unknown in live.header(make_plan(elbo_scale=None)) and unknown not in live.header(plan)


def test_the_recorder_depends_on_where_stderr_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(live_recorder(Console()), Lines)
    console = terminal(100, 30)
    assert isinstance(live_recorder(console), LiveTable)
    console.quiet = True
    assert isinstance(live_recorder(console), Lines)


# ------------------------------------------------------------------------------------------- a terminal, a pipe

FIRST_LINES = """
import os, signal, sys, time, warnings; sys.path.insert(0, sys.argv[1])
import conftest
from arcvae_cli.commands.train import closing
from arcvae_cli.console import Console
from arcvae_cli.recorders.live import live_recorder

def train(console, epochs, seconds):
    recorder.start(conftest.plan())
    for epoch in range(1, epochs + 1):
        recorder.step(epoch, 50, {"z": 0.05}, None)
        recorder.epoch(conftest.record(epoch))
        time.sleep(seconds)
"""


def python(script: str, stderr: int) -> subprocess.Popen[str]:
    """A script in a process of its own, whose talk goes there; warnings are errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FIRST_LINES + script, str(Path(__file__).parent)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
        start_new_session=True,
    )


def read(source: int, until: bytes = b"") -> bytes:
    """What comes from there, up to some text or to the end."""
    found = b""
    with suppress(OSError):  # as Linux tells the end of a terminal
        while part := os.read(source, 4096):
            found += part
            if until and until in found:
                break
    return found


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
def test_however_a_training_ends_the_cursor_is_shown_and_the_table_stands() -> None:
    script = """
def interrupted(): raise KeyboardInterrupt
for ending in ("itself", "an error", "Ctrl-C", "Ctrl-C twice"):
    recorder = live_recorder(console := Console())
    try:
        with closing([recorder]):
            train(console, 2, 0.3)
            if ending == "an error": raise RuntimeError
            if ending == "Ctrl-C twice": recorder._live._refresh_thread.stop = interrupted
            if ending != "itself": os.kill(os.getpid(), signal.SIGINT)
    except (RuntimeError, KeyboardInterrupt):
        pass
    print("ended by " + ending, file=sys.stderr)
"""
    own, theirs = os.openpty()
    process = python(script, theirs)
    os.close(theirs)
    said = read(own).decode()
    os.close(own)
    process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "\x1b[?1049h" not in said, "no other screen, which would take the table with it"
    parts = re.split("ended by .*", said)
    assert len(parts) == 5
    for part, ending in zip(parts, ("itself", "an error", "Ctrl-C", "Ctrl-C twice"), strict=False):
        assert "\x1b[?25l" in part, ending
        assert part.rindex("\x1b[?25h") > part.rindex("\x1b[?25l"), ending
        if ending != "Ctrl-C twice":
            assert re.search(r"epoch 2/100, .* left *(\x1b\[0m)?\r\n(\x1b\[\?25h)?$", part), ending


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
def test_a_terminal_that_is_closed_ends_no_training_and_nothing_is_said_of_it() -> None:
    script = """
with closing([recorder := live_recorder(console := Console())]):
    train(console, 4, 0.4)
    console.note("a note"); console.warn("a warning")
    print("by others", file=sys.stderr); os.write(2, b"by others still")
console.note("a note")
print(type(recorder).__name__)
"""
    own, theirs = os.openpty()
    process = python(script, theirs)
    os.close(theirs)
    assert b"epoch" in read(own, b"epoch")
    os.close(own)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "LiveTable\n")
