"""The live table and the plain lines. `UPDATE_GOLDEN=1 pytest` writes the goldens anew."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console as Terminal

from arcvae_cli.console import Console
from arcvae_cli.controllers import Target
from arcvae_cli.recorders.live import EpochLines, LiveTable, header
from arcvae_cli.records import EpochRecord, Plan
from arcvae_cli.settings import ObjectiveSettings, Settings
from tests.recorders.made import STRINGS, TWO_LEVELS, plan, record

BOUND = ObjectiveSettings(importance_samples=5)
GOLDEN = Path(__file__).parents[1] / "golden"
HELD, SHORT = Target("global", "kl", 25.12, 25.0), Target("local", "kl", 12.0, 25.0)


def check(name: str, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(text + "\n")
    assert text + "\n" == (GOLDEN / name).read_text()


class Screen:
    """A live table on a terminal of some size, with a clock of its own."""

    def __init__(self, of: Plan, width: int, height: int = 40) -> None:
        self.console, self.now, self.file = Console(), 1000.0, io.StringIO()
        self.console.err = Terminal(
            file=self.file, force_terminal=True, width=width, height=height, color_system="standard",
            no_color=False, get_time=lambda: self.now,
        )  # fmt: skip
        self.table = LiveTable(self.console)
        self.table.start(of)
        self.table.close()
        self.table._over = False  # drawn below, without Rich's thread

    def train(self, *records: EpochRecord) -> Screen:
        for one in records:
            self.table.step(one.epoch, 50, one.betas, one.train.loss)
            self.table.epoch(one)
        return self

    def text(self, colour: bool = False) -> str:
        with self.console.err.capture() as captured:
            self.console.err.print(self.table.picture())
        text = captured.get() if colour else re.sub(r"\x1b\[[\d;]*m", "", captured.get())
        return "\n".join(line.rstrip() for line in text.splitlines())


def test_goldens(capsys: pytest.CaptureFixture[str]) -> None:
    """A first epoch; epochs of one level; a low terminal, with two levels, targets and the ELBO scale; lines."""
    screen = Screen(plan(free_bits=0.3), 60)
    screen.table.step(1, 12, {"z": 0.0005}, 321.05)
    screen.table.step(1, 13, {"z": 0.0005}, None)
    check("live_60.txt", screen.text())
    turned = record(2, betas={"z": 0.1}, beta_range={"z": (0.0, 0.1)})
    check("live_120.txt", Screen(plan(free_bits=0.3), 120).train(record(1, best=True), turned).text())
    records = [record(epoch, targets=(HELD, SHORT), **TWO_LEVELS) for epoch in range(1, 30)]
    screen = Screen(plan({"global": 2, "local": 1}, elbo_scale=25.6), 80, 20).train(*records)
    screen.table.step(30, 1, {"local": 0.02}, None)  # beta of the other level is that of a closed loop
    check("live_80.txt", screen.text())
    recorder = EpochLines(Console())
    recorder.start(plan(elbo_scale=25.6, free_bits=0.3, blank_nats=20.61, entropy=19.113, settings=STRINGS))
    recorder.resume([record(1)], 50)  # without a line
    recorder.epoch(record(2, best=True))
    recorder.epoch(record(3, unit="token", targets=(HELD, SHORT), **TWO_LEVELS))
    recorder.close()
    check("lines.txt", capsys.readouterr().err.rstrip("\n"))


@pytest.mark.parametrize(("width", "height"), [(60, 30), (80, 24), (120, 50)])
@pytest.mark.parametrize(("levels", "targets"), [({"z": 10}, 0), ({"z": 200}, 1), ({"global": 16, "local": 4}, 1)])
def test_the_table_fits_the_terminal(width: int, height: int, levels: dict[str, int], targets: int) -> None:
    """Rich cuts what does not fit from below: first the progress, then the bars."""
    rates = {name: [0.1 * index for index in range(size)] for name, size in levels.items()}
    held = tuple(Target(name, "kl", 123.4, 250.0) for name in levels) * targets
    remedies = {"val": {"mmd": 0.0123}, "encoder_steps": 4, "mutual_information": 1.234} if targets else {}
    betas = dict.fromkeys(rates, 0.0123)
    records = [record(epoch, rates, betas=betas, targets=held, **remedies) for epoch in range(1, 61)]
    screen = Screen(plan(levels, free_bits=0.3), width, height).train(*records)
    screen.table.step(61, 1, {"z": 0.1}, None)
    lines = screen.text().splitlines()
    assert len(lines) <= height and max(map(cell_len, lines)) <= width
    shown = [int(line.split()[0]) for line in lines if re.match(r" *\d+ +0.0123 ", line)]
    assert shown[-1] == 60 and len(shown) >= 3 and f"+{60 - len(shown)}" in "\n".join(lines)
    assert re.search(r"epoch 61/100, step 1/50, .* left$", lines[-1])
    assert sum("KL of each" in line for line in lines) == len(levels)


def test_remedies_are_in_the_header_and_their_state_in_the_table() -> None:
    chosen = {"mean_norm": 0.6}, {"mmd": 20.0, "prior_draws": 0.1}, {"encoder_steps": 4}
    tables = dict(zip(("model", "objective", "train"), chosen, strict=True))
    (line,) = [line for line in header(plan(settings=Settings.model_validate(tables))) if "remedies" in line]
    assert "a KL of 1.8 nats or more; 10% of a batch decoded from the prior too; 20 times MMD; 4 of 5" in line
    (line,) = [line for line in header(plan(settings=Settings(objective=BOUND))) if "remedies" in line]
    assert "the bound of 5 samples (dreg)" in line
    risen = record(1, val={"mmd": 0.0123}, encoder_steps=4, mutual_information=1.234)
    text = Screen(plan(), 130).train(risen, record(2, val={"mmd": 0.01}, encoder_steps=0)).text()
    assert re.search(r"0\.0123 +4/5 +1\.234 ", text) and re.search(r"0\.01 +0 +- ", text)


def test_what_an_uninformative_latent_reaches_is_red() -> None:
    bad = record(1, val={"position": 0.9, "foreground": 0.0}, targets=(SHORT,))
    text = Screen(plan(blank=0.9), 120).train(bad).text(colour=True)
    assert all(re.search(rf"\x1b\[31m *{cell}", text) for cell in ("0.900", "0.000", "2/3", "12/25"))
    good = record(1, {"z": [1.0, 1.0]}, val={"position": 0.901}, targets=(replace(HELD, level=""),))
    text = Screen(plan(blank=0.9), 120).train(good).text(colour=True)
    assert "\x1b[31m" not in text and all(re.search(rf"\x1b\[32m *{cell}", text) for cell in ("2/2", "25.1/25"))
