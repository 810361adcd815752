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
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
RED, GREEN, YELLOW = "\x1b[31m", "\x1b[32m", "\x1b[33m"


@pytest.fixture(autouse=True)
def terminal_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


class Screen:
    """A console whose stderr is a terminal of so many columns and lines, in colour."""

    def __init__(self, width: int = 120, height: int = 40) -> None:
        self.written = io.StringIO()
        self.console = Console()
        self.console.err = Terminal(
            file=self.written,
            force_terminal=True,
            width=width,
            height=height,
            color_system="standard",
            no_color=False,
            highlight=False,
        )

    @property
    def coloured(self) -> str:
        """The last picture of the live part, with its colours."""
        text = self.written.getvalue()
        begin = max(text.rfind("\x1b[?25l") + 6, text.rfind("\x1b[2K") + 4)
        return text[begin : text.rindex("\x1b[?25h")].removesuffix("\n")

    @property
    def lines(self) -> list[str]:
        """The same as it is read."""
        return [line.rstrip() for line in ESCAPE.sub("", self.coloured).splitlines()]


def show(plan: Plan, records: list[EpochRecord], screen: Screen | None = None, at: int = 50) -> Screen:
    screen = screen or Screen()
    recorder = LiveTable(screen.console)
    recorder.start(plan)
    for record in records:
        recorder.step(record.epoch, at, 0.05)
        recorder.epoch(record)
    recorder.close()
    return screen


def running(plan: Plan, records: list[EpochRecord], screen: Screen) -> list[str]:
    """The lines on the screen while a run goes on."""
    recorder = LiveTable(screen.console)
    recorder.start(plan)
    for record in records:
        recorder.step(record.epoch, 50, 0.05)
        recorder.epoch(record)
    lines = drawn(recorder, screen)
    recorder.close()
    return lines


def drawn(recorder: LiveTable, screen: Screen) -> list[str]:
    """What stands on the screen now."""
    paper = Terminal(file=io.StringIO(), width=screen.console.err.width, height=screen.console.err.height)
    with paper.capture() as captured:
        paper.print(recorder.picture())
    return [line.rstrip() for line in ESCAPE.sub("", captured.get()).splitlines()]


def row(screen: Screen, epoch: int) -> str:
    """The cells of an epoch's row."""
    found = (line for line in screen.lines if re.match(rf" *{epoch}\*? ", line))
    return " ".join(next(found).split())


# ------------------------------------------------------------------------------------------------------ the table


def test_a_row_an_epoch_and_the_best_is_marked(make_plan: MakePlan, make_record: MakeRecord) -> None:
    screen = show(make_plan(), [make_record(1, best=True), make_record(2, betas={"z": 0.1}, val={"exact": 0.25})])
    names = " ".join(screen.lines[0].split())
    assert names == "epoch beta loss val loss recon KL pixel non-black exact active s"
    assert row(screen, 1) == "1* 0.05 125.6 123.4 120 3.01 0.950 0.400 0.010 2/3 12.3"
    assert row(screen, 2) == "2 0.1 125.6 123.4 120 3.01 0.950 0.400 0.250 2/3 12.3"


def test_derivations_have_shares_of_tokens_and_sequences(make_plan: MakePlan, make_record: MakeRecord) -> None:
    """Nothing there is black, and a share of 0 is a beginning, no fault."""
    plan = make_plan(blank=None)
    screen = show(plan, [make_record(1, unit="token", rates={"z": [1.0]}, val={"foreground": 0.0, "exact": 0.0})])
    assert " ".join(screen.lines[0].split()) == "epoch beta loss val loss recon KL token sequence active s"
    assert row(screen, 1) == "1 0.05 125.6 123.4 120 1.00 0.950 0.000 1/1 12.3"
    assert RED not in screen.coloured
    narrow = running(plan, [make_record(1, unit="token")], Screen(38, 24))
    assert "sequence" in " ".join(narrow[:2]) and "token" not in " ".join(narrow[:2])
    assert max(map(cell_len, narrow)) <= 38


def test_the_scale_of_the_elbo_has_a_column_only_where_it_differs(make_plan: MakePlan, make_record: MakeRecord) -> None:
    scaled = show(make_plan(elbo_scale=25.6), [make_record(1)])
    assert "on ELBO" in scaled.lines[0]
    assert row(scaled, 1).startswith("1 0.05 1.28 125.6 ")
    levels = make_record(1, rates={"global": [1.0], "local": [1.0]}, betas={"global": 0.01, "local": 0.02})
    both = show(make_plan(elbo_scale=256.0, levels={"global": 1, "local": 1}), [levels])
    assert row(both, 1).startswith("1 0.01/0.02 2.56/5.12 125.6 ")
    turning = show(make_plan(elbo_scale=10.0), [make_record(1, turns={"z": (0.0, 0.1)})])
    assert row(turning, 1).startswith("1 0-0.1 0-1 125.6 "), "least to largest where beta turned within the epoch"
    signed = show(make_plan(), [make_record(1, turns={"z": (-1.0, 1.0)})])
    assert row(signed, 1).startswith("1 -1..1 125.6 ")
    for scale in (1.0, None):
        screen = show(make_plan(elbo_scale=scale), [make_record(1)])
        assert "ELBO" not in screen.lines[0] and row(screen, 1).startswith("1 0.05 125.6 ")


def test_what_a_black_picture_earns_is_red(make_plan: MakePlan, make_record: MakeRecord) -> None:
    dull = show(make_plan(blank=0.9), [make_record(1, val={"position": 0.9, "foreground": 0.0})]).coloured
    for text in ("0.900", "0.000", "2/3"):
        assert re.search(f"{re.escape(RED)} *{text}", dull), text
    bright = show(
        make_plan(blank=0.9), [make_record(1, rates={"z": [1.0, 1.0, 1.0]}, val={"position": 0.901})]
    ).coloured
    assert RED not in bright and re.search(rf"{re.escape(GREEN)} *3/3", bright)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (140, 50)])
@pytest.mark.parametrize("levels", [{"z": 10}, {"z": 64}, {"z": 200}, {"global": 16, "local": 4}], ids=str)
@pytest.mark.parametrize("targets", [0, 1])
def test_a_picture_fits_the_terminal(
    width: int, height: int, levels: dict[str, int], targets: int, make_plan: MakePlan, make_record: MakeRecord
) -> None:
    """What does not fit is cut from below by Rich while the run goes on: first the progress, then the bars."""
    rates = {name: [0.1 * index for index in range(size)] for name, size in levels.items()}
    held = tuple(Target(name, "kl", 123.4, 250.0, 0.0, "min") for name in levels) * targets
    betas = dict.fromkeys(rates, 0.0123)
    records = [make_record(epoch, rates=rates, betas=betas, targets=held) for epoch in range(1, 61)]
    lines = running(make_plan(levels=levels, elbo_scale=25.6, free_bits=0.3), records, Screen(width, height))
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert "…" not in "".join(lines)
    assert "left" in lines[-1] and sum("KL of each" in line for line in lines) == len(levels)
    shown = [int(line.split()[0]) for line in lines if re.match(r" *\d+ +0.0123 ", line)]
    assert shown[-1] == 60 and len(shown) >= 3
    above = lines[: lines.index(next(line for line in lines if line.lstrip().startswith(f"{shown[0]} ")))]
    assert f"+{60 - len(shown)}" in above[-1]


def test_a_narrow_terminal_shows_fewer_columns(make_plan: MakePlan, make_record: MakeRecord) -> None:
    lines = running(make_plan(levels={"z": 10}, free_bits=0.3), [make_record(1)], Screen(44, 24))
    assert " ".join(" ".join(lines[:2]).split()) == "val non- epoch beta loss KL pixel black active"
    assert max(map(cell_len, lines)) <= 44
    assert any(line.split() == ["1", "0.05", "123.4", "3.01", "0.950", "0.400", "2/3"] for line in lines)
    lines = running(make_plan(levels={"z": 10}), [make_record(1, targets=(HELD,))], Screen(44, 24))
    assert " ".join(" ".join(lines[:2]).split()) == "val KL/ non- epoch beta loss KL target black active"


def test_when_it_is_over_every_epoch_stands_there(make_plan: MakePlan, make_record: MakeRecord) -> None:
    screen = show(make_plan(), [make_record(epoch) for epoch in range(1, 61)], Screen(120, 20))
    assert [int(line.split()[0]) for line in screen.lines if re.match(r" *\d+ +0.05 ", line)] == list(range(1, 61))


def test_progress_and_time_left(make_plan: MakePlan, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for epoch, done, seconds, told in (
        (1, 10, 30.0, "epoch 1/100, step 10/50, beta 0.05, 0:30 gone, -:-- left"),  # too early to say
        (26, 0, 3600.0, "epoch 26/100, step 0/50, beta 0.05, 1:00:00 gone, 3:00:00 left"),
        (100, 50, 500.0, "epoch 100/100, step 50/50, beta 0.05, 8:20 gone, 0:00 left"),
    ):
        now[0] = 1000.0
        screen = Screen()
        recorder = LiveTable(screen.console)
        recorder.start(make_plan())
        recorder.step(1, 1, 0.05)
        now[0] += seconds
        recorder.step(epoch, done, 0.05)
        recorder.close()
        assert screen.lines[-1].endswith(told)


def test_a_run_that_goes_on_shows_its_epochs_and_reckons_with_its_own_steps(
    make_plan: MakePlan, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    screen = Screen()
    recorder = LiveTable(screen.console)
    recorder.start(make_plan())
    recorder.resume([make_record(epoch, best=epoch == 2) for epoch in range(1, 51)], 2500)
    assert "epoch 50/100, step 50/50, beta was 0.05, 0:00 gone, -:-- left" in drawn(recorder, screen)[-1]
    for done in (31, 32, 50):  # the first 30 steps of the epoch were done by an earlier process
        recorder.step(51, done, 0.05)
    now[0] += 40.0
    assert drawn(recorder, screen)[-1].endswith("0:40 gone, 1:21:40 left"), "2 s a step, and 2450 left"
    recorder.epoch(make_record(51))
    recorder.close(130)
    shown = [line.split()[0] for line in screen.lines if re.match(r" *\d+\*? +0.05 ", line)]
    assert shown == ["1", "2*", *map(str, range(3, 52))]


# ------------------------------------------------------------------------------------------------------- the bars


def bars(screen: Screen) -> dict[int, str]:
    """The 22 cells of the bar of each dimension."""
    found = re.findall(r"(?:^|  ) *(\d+) ([█▌| ]{22}) +\d+\.\d{3}", "\n".join(screen.lines), re.MULTILINE)
    return {int(index): cells for index, cells in found}


def test_bars_with_the_line_of_free_bits_across(make_plan: MakePlan, make_record: MakeRecord) -> None:
    record = make_record(1, rates={"z": [2.2, 1.1, 0.15, 0.3, 0.05]})
    screen = show(make_plan(free_bits=0.3), [record])
    assert "KL of each dimension of z: 3.80 nats, 1 of 5 dead; | free bits 0.3" in screen.lines
    assert bars(screen) == {
        0: "███|" + "█" * 18,
        1: "███|" + "█" * 7 + " " * 11,
        2: "█▌ |" + " " * 18,
        3: "███|" + " " * 18,
        4: "▌  |" + " " * 18,
    }
    text = screen.coloured
    assert f"{GREEN}{bars(screen)[0]}" in text and f"{GREEN}{bars(screen)[3]}" in text, "on the floor is no fault"
    assert f"{YELLOW}{bars(screen)[2]}" in text, "under the floor"
    assert f"{RED}{bars(screen)[4]}" in text and f"{RED}   0.050 dead" in text


def test_no_line_where_free_bits_are_off_or_of_the_total(make_plan: MakePlan, make_record: MakeRecord) -> None:
    for chosen in ({"free_bits": 0.0}, {"free_bits": 0.5, "free_bits_mode": "total"}):
        screen = show(make_plan(**chosen), [make_record(1)])
        assert "|" not in "".join(bars(screen).values()) and len(bars(screen)) == 3
    above_all = show(make_plan(free_bits=9.0), [make_record(1)])
    assert {cells.index("|") for cells in bars(above_all).values()} == {21}


def test_a_code_wholly_dead_has_no_bars(make_plan: MakePlan, make_record: MakeRecord) -> None:
    screen = show(make_plan(), [make_record(1, rates={"z": [0.0] * 10})])
    assert "KL of each dimension of z: 0.00 nats, 10 of 10 dead" in screen.lines
    assert set(bars(screen).values()) == {" " * 22} and len(bars(screen)) == 10


def test_of_many_dimensions_the_strongest_the_weakest_and_a_histogram(
    make_plan: MakePlan, make_record: MakeRecord
) -> None:
    all_shown = show(
        make_plan(), [make_record(1, rates={"z": [0.1 * (index + 1) for index in range(64)]})], Screen(120, 60)
    )
    assert sorted(bars(all_shown)) == list(range(64))
    few = show(make_plan(), [make_record(1, rates={"z": [0.1 * (index + 1) for index in range(65)]})], Screen(120, 60))
    assert sorted(bars(few)) == [*range(8), *range(57, 65)]
    title = next(line for line in few.lines if line.startswith("strongest"))
    drawn = re.fullmatch(r"strongest and weakest 8; all 65: (.{24}) 0 to 6.50", title)
    assert drawn and " " not in drawn[1], "spread evenly, no bin is empty"
    dead = show(make_plan(), [make_record(1, rates={"z": [0.0] * 90 + [5.0] * 10})])
    histogram = next(line for line in dead.lines if line.startswith("strongest")).split(": ")[1]
    assert histogram == "█" + " " * 22 + "▁ 0 to 5.00"


def test_levels_stand_apart(make_plan: MakePlan, make_record: MakeRecord) -> None:
    record = make_record(1, rates={"global": [1.0, 0.0], "local": [0.5, 0.5, 0.5]})
    lines = show(make_plan(levels={"global": 2, "local": 3}), [record]).lines
    first = lines.index("KL of each dimension of global: 1.00 nats, 1 of 2 dead")
    second = lines.index("KL of each dimension of local: 1.50 nats")
    assert second - first == 3
    assert row(show(make_plan(levels={"global": 2, "local": 3}), [record]), 1).endswith(" 4/5 12.3")


def test_a_map_has_a_bar_a_channel_and_a_level_its_own_floor(make_plan: MakePlan, make_record: MakeRecord) -> None:
    record = make_record(1, rates={"global": [1.0], "local": [40.0, 10.0]})
    plan = make_plan(levels={"global": 1, "local": 2}, level_shapes={"global": (1,), "local": (2, 8, 8)})
    plan = replace(plan, free_bits={"global": 0.25, "local": 20.0})
    screen = show(plan, [record])
    assert "KL of each dimension of global: 1.00 nats; | free bits 0.25" in screen.lines
    assert "KL of each channel of local (8x8): 50.00 nats; | free bits 20" in screen.lines
    assert bars(screen) == {0: "█" * 11 + "|" + "█" * 10, 1: "█" * 5 + "▌" + " " * 5 + "|" + " " * 10}
    assert "free bits global 0.25, local 20 (per_dim)" in "\n".join(live.header(plan))


# ------------------------------------------------------------------------------------------------------ closed loops

HELD = Target("", "kl", 25.12, 25.0, 0.4, None)
SHORT = Target("", "kl", 12.0, 25.0, 0.0, "min")


def test_the_target_stands_beside_the_value(make_plan: MakePlan, make_record: MakeRecord) -> None:
    screen = show(make_plan(), [make_record(1, targets=(SHORT,)), make_record(2, targets=(HELD,))])
    assert "KL  KL/target " in screen.lines[0]
    assert row(screen, 1) == "1 0.05 125.6 123.4 120 3.01 12/25 0.950 0.400 0.010 2/3 12.3"
    assert row(screen, 2) == "2 0.05 125.6 123.4 120 3.01 25.1/25 0.950 0.400 0.010 2/3 12.3"
    assert re.search(rf"{re.escape(RED)} *12/25", screen.coloured)
    assert re.search(rf"{re.escape(GREEN)} *25.1/25", screen.coloured)


def test_targets_of_two_levels_and_of_two_quantities(make_plan: MakePlan, make_record: MakeRecord) -> None:
    rates = {"global": [1.0], "local": [2.0]}
    plan = make_plan(levels={"global": 1, "local": 1})
    targets = (replace(HELD, level="global"), replace(SHORT, level="local"))
    assert " 3.00 25.1/25 12/25 0.950 " in row(show(plan, [make_record(1, rates=rates, targets=targets)]), 1)
    targets = (replace(HELD, level="global"), Target("local", "reconstruction", 0.2034, 0.2, 0.4, None))
    screen = show(plan, [make_record(1, rates=rates, targets=targets)], Screen(140))
    assert "KL/target  recon/target" in screen.lines[0]
    assert " 3.00 25.1/25 0.203/0.2 0.950 " in row(screen, 1)


def test_a_target_out_of_reach_is_told_under_the_table(make_plan: MakePlan, make_record: MakeRecord) -> None:
    assert SHORT.note is not None
    lines = running(make_plan(), [make_record(1, targets=(SHORT,))], Screen(200))
    assert f"note: {SHORT.note}" in lines
    assert not [line for line in running(make_plan(), [make_record(1, targets=(HELD,))], Screen(200)) if "note" in line]


def test_beta_that_only_the_device_knows(make_plan: MakePlan, make_record: MakeRecord) -> None:
    for records, told in (([], "beta in a closed loop"), ([make_record(1, betas={"z": 0.37})], "beta was 0.37")):
        screen = Screen()
        recorder = LiveTable(screen.console)
        recorder.start(make_plan())
        for record in records:
            recorder.epoch(record)
        recorder.step(2, 10, None)
        recorder.close()
        assert f"epoch 2/100, step 10/50, {told}, 0:00 gone" in screen.lines[-1]


# ----------------------------------------------------------------------------------------------- off a terminal


def test_a_run_that_goes_on_has_no_lines_for_what_was_told(
    make_plan: MakePlan, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Lines(Console())
    recorder.start(make_plan())
    capsys.readouterr()
    recorder.resume([make_record(1), make_record(2)], 100)
    assert capsys.readouterr().err == ""
    recorder.epoch(make_record(3))
    recorder.close(143)
    assert capsys.readouterr().err.startswith("epoch 3/100  ")


def test_plain_lines(make_plan: MakePlan, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Lines(Console())
    recorder.start(make_plan(elbo_scale=25.6, free_bits=0.3))
    recorder.epoch(make_record(3, best=True))
    recorder.close()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "run one: grid, 1,234,567 parameters, on cpu in fp32, eager steps",
        "data arc: 80,000 to train on, 10,000 to validate; 100 epochs of 50 steps",
        "schedule cyclical: up and down; free bits 0.3 (per_dim)",
        "scale: mean reductions; beta weighs 25.6 times as much on the ELBO scale",
        "to beat: an all-black answer is right in 0.900 of the validation pixels, non-black 0",
        "epoch 3/100  beta 0.05 (1.28 on the ELBO scale)  loss 125.6  val 123.4  reconstruction 120  KL 3.01  "
        "pixel 0.950  non-black 0.400  exact 0.010  active 2/3  least KL 0.010  12.3s  *best",
    ]


def test_a_plain_line_of_derivations(
    make_plan: MakePlan, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Lines(Console())
    recorder.start(make_plan(blank=None))
    assert "to beat" not in capsys.readouterr().err
    recorder.epoch(make_record(1, unit="token"))
    assert "  KL 3.01  token 0.950  sequence 0.010  active 2/3" in capsys.readouterr().err


def test_a_plain_line_has_the_targets_and_a_note_is_told_once(
    make_plan: MakePlan, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Lines(Console())
    recorder.start(make_plan())
    capsys.readouterr()
    for epoch, targets in enumerate(((SHORT,), (SHORT,), (HELD,), (SHORT, replace(HELD, level="local"))), 1):
        recorder.epoch(make_record(epoch, targets=targets))
    lines = capsys.readouterr().err.splitlines()
    assert [line[:7] for line in lines] == ["epoch 1", "note: K", "epoch 2", "epoch 3", "epoch 4", "note: K"]
    assert lines[1] == f"note: {SHORT.note}"
    assert "  KL 3.01  KL/target 12/25  pixel 0.950" in lines[0]
    assert "  KL/target 12/25  local KL/target 25.1/25  pixel" in lines[4]


def test_the_header_says_where_no_elbo_corresponds(make_plan: MakePlan) -> None:
    assert not [line for line in live.header(make_plan()) if line.startswith("scale")]
    assert "scale: with focal loss or class weights no ELBO corresponds to this beta" in live.header(
        make_plan(elbo_scale=None)
    )
    assert not [line for line in live.header(make_plan(blank=None)) if "to beat" in line]


def test_the_header_says_what_a_code_that_says_nothing_earns_on_derivations(
    make_plan: MakePlan, make_record: MakeRecord
) -> None:
    plan = make_plan(blank=0.275, blank_nats=20.61)
    (line,) = [line for line in live.header(plan) if line.startswith("to beat")]
    assert line == "to beat: rules as frequent at each step as in training cost 20.61 nats and are right in 0.275"
    known = live.header(replace(plan, entropy=19.113))
    assert f"{line}; the entropy of the data is 19.11 nats" in known
    for position, colour in ((0.275, True), (0.3, False)):
        screen = show(plan, [make_record(1, unit="token", rates={"z": [1.0]}, val={"position": position})])
        assert bool(re.search(rf"{re.escape(RED)} *{position:.3f}", screen.coloured)) == colour


def test_who_listens_depends_on_where_stderr_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(live_recorder(Console()), Lines)
    screen = Screen()
    assert isinstance(live_recorder(screen.console), LiveTable)
    screen.console.quiet = True
    assert isinstance(live_recorder(screen.console), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(live_recorder(Screen().console), Lines)


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
        recorder.step(epoch, 50, 0.05)
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
