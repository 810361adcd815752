"""Writes what README.md and docs/*.md show of the program's output; with --check says what is stale.

python docs/build.py                rewrite the blocks of output, docs/images/*.svg, docs/schedules.md and its pictures
python docs/build.py --check        exit 1, with a diff, if any of them is not what the program prints now
python docs/build.py --keep RUN     keep the record of a run under docs/recorded for the pictures
python docs/build.py --report       print the report of the recorded run, as `arcvae evaluate` does

A block is the output of a command if a comment above its fence says so. The command is run by a shell, in the folder of
the repository, with 100 columns and without colour; a first line that begins with `$ ` is kept. Only quick commands
with the same output everywhere belong here; a command that is meant to fail ends in `|| true`:

    <!-- run: arcvae schedule-preview cyclical --epochs 100 | head -20 -->
    ```
    $ arcvae schedule-preview cyclical --epochs 100
    (replaced)
    ```

    <!-- run: arcvae schedule-preview cyclical --epochs 5 2>&1 >/dev/null -->         stderr only
    <!-- run: python docs/build.py --report | sed -n '/^Verdict/,$p' -->              a part of the recorded report

docs/images/live.svg is the live table of docs/recorded/quickstart in its last epoch, evaluate.svg its report's end.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import make_schedules
from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from arcvae_cli.canvas import ARC
from arcvae_cli.checkpoints import Loaded
from arcvae_cli.commands import evaluate
from arcvae_cli.console import Console
from arcvae_cli.files import read_lines
from arcvae_cli.metrics import EpochMetrics
from arcvae_cli.models import build_model
from arcvae_cli.presets import resolve
from arcvae_cli.recorders.live import LiveTable
from arcvae_cli.records import EpochRecord, Plan
from arcvae_cli.schedules import Feedback
from arcvae_cli.settings import Settings, elbo_scale

ROOT = Path(__file__).resolve().parents[1]
IMAGES, RECORDED = ROOT / "docs" / "images", ROOT / "docs" / "recorded" / "quickstart"
COLUMNS, SVG_COLUMNS = 100, 80
FROM = "KL of each dimension"  # the line of the report that evaluate.svg begins with
BLOCK = re.compile(r"(?ms)^(?P<head><!-- run: (?P<command>.+?) -->\n```\w*\n(?:\$ [^\n]*\n)?).*?^```$")
COLOURFUL = ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE")


def main() -> None:
    """Write, check, keep or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true")
    choice.add_argument("--keep", type=Path, metavar="RUN")
    choice.add_argument("--report", action="store_true")
    options = parser.parse_args()
    run = options.keep.resolve() if options.keep else None
    for name in [name for name in os.environ if name.startswith("ARCVAE_") and name != "ARCVAE_CACHE_DIR"]:
        del os.environ[name]  # presets are read as they are
    os.chdir(ROOT)
    if run is not None:
        feedback = isinstance(resolve(str(run / "config.toml")).settings.schedule, Feedback)
        make_schedules.keep(run) if feedback else keep(run)
    elif options.report:
        evaluate.show_report(*recorded(), Console())
    elif options.check:
        faults = [*stale(), *make_schedules.stale(rewritten)]
        print("".join(f"{fault}\n" for fault in faults), end="")
        sys.exit("run `make docs`" if faults else None)
    else:
        make_schedules.write(rewritten)
        for path, text in made():
            path.write_text(text, encoding="utf-8")


def stale() -> Iterator[str]:
    """A diff of each page, and the name of each picture, that is not as it would be made now."""
    for path, text in made():
        name, before = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8") if path.is_file() else ""
        if before != text and path.suffix == ".svg":
            yield f"{name} is stale"
        elif before != text:
            yield f"{name} is stale\n" + make_schedules.difference(before, text)


def made() -> Iterator[tuple[Path, str]]:
    """The pages and pictures as they should be."""
    yield IMAGES / "live.svg", live_svg()
    yield IMAGES / "evaluate.svg", report_svg()
    for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))):
        if page != make_schedules.PAGE:
            yield page, rewritten(page.read_text(encoding="utf-8"))


def rewritten(page: str) -> str:
    """A page with the output of its commands."""
    return BLOCK.sub(lambda block: f"{block['head']}{output(block['command'])}```", page)


def output(command: str) -> str:
    """What a shell command prints, without spaces at the ends of lines."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", *COLOURFUL))}
    environment |= {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(command, shell=True, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        sys.exit(f"{command}: exit code {done.returncode}, {done.stderr or 'no output'}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").split("\n"))


def recorded() -> tuple[Loaded, dict[str, Any]]:
    """The model of the recorded run, untrained, with its settings, and its `metrics.json`."""
    settings = resolve(str(RECORDED / "config.toml")).settings
    document = json.loads((RECORDED / "metrics.json").read_text(encoding="utf-8"))
    return Loaded(build_model(settings.model), settings, document["epoch"], Path("vae_best.pth")), document


def report_svg() -> str:
    """The end of the report: the KL of every dimension, and the verdict."""
    console, text = Console(), io.StringIO()
    console.out = Terminal(file=text, **terminal())
    with patch.object(Console, "piped", False):
        evaluate.show_report(*recorded(), console)
    lines = text.getvalue().splitlines()
    first = next(number for number, line in enumerate(lines) if FROM in line)
    return svg(Text.from_ansi("\n".join(lines[first:])), "arcvae evaluate")


def live_svg() -> str:
    """The live table in the middle of the last epoch."""
    loaded, document = recorded()
    settings = loaded.settings
    records = [record_of(line) for line in read_lines(RECORDED / "metrics.jsonl")]
    console, now, steps = Console(), 0.0, records[0].step
    console.err = Terminal(file=io.StringIO(), get_time=lambda: now, **terminal())
    # the clock is that of the record, and no thread redraws the screen by another
    with patch("time.monotonic", lambda: now), patch.object(Live, "start"), patch.object(Live, "stop"):
        table = LiveTable(console)
        table.start(plan_of(settings, loaded, document, steps))
        for record in records:
            done = steps if record is not records[-1] else steps // 2
            began = now
            for step in range(1, done + 1):
                now = began + record.seconds * step / steps
                table.step(record.epoch, step, record.betas, record.train.loss)
                if step % 25 == 0:
                    table.picture()  # which measures the speed
            if record is not records[-1]:
                table.epoch(record)
        return svg(table.picture(), "arcvae train --preset quickstart")


def plan_of(settings: Settings, loaded: Loaded, document: dict[str, Any], steps: int) -> Plan:
    """The plan of the recorded run, as the trainer gives it to recorders before the first step."""
    return Plan(
        run="quickstart",
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        how="cpu in fp32, eager steps",
        corpus=settings.data.name,
        sizes={"train": 80_000, "val": 10_000, "test": 10_000},
        steps=steps,
        level_shapes=loaded.model.level_shapes,
        settings=settings,
        elbo_scale=elbo_scale(settings, 256),
        notes=(),
        blank=document["reconstruction"]["all_background"]["pixel_accuracy"],
        canvas=ARC,
    )


def record_of(line: dict[str, Any]) -> EpochRecord:
    """An epoch from its line of `metrics.jsonl`."""
    train, val = (metrics_of(line, split) for split in ("train", "val"))
    betas, selection = {"z": line["train/beta"]}, line["val/loss_selection"]
    rate, place = line["train/learning_rate"], (line["epoch"], line["step"])
    return EpochRecord(*place, betas, rate, train, val, selection, selection, line["best"], line["seconds"], "pixel")


def metrics_of(line: dict[str, Any], split: str) -> EpochMetrics:
    """The metrics of a split in a line of `metrics.jsonl`."""
    loss, reconstruction, kl_loss = (line[f"{split}/loss_{name}"] for name in ("total", "reconstruction", "kl"))
    pixel, foreground, exact = (line[f"{split}/{name}_accuracy"] for name in ("pixel", "foreground", "exact"))
    kl = {"z": line["val/kl_per_dim"]}
    return EpochMetrics(1, loss, reconstruction, {"z": kl_loss}, kl, pixel, foreground, exact)


def terminal() -> dict[str, Any]:
    """A terminal with colours."""
    return {"force_terminal": True, "color_system": "truecolor", "no_color": False, "width": SVG_COLUMNS, "height": 40}


def svg(shown: RenderableType, title: str) -> str:
    """The picture of a terminal."""
    paper = Terminal(record=True, file=io.StringIO(), **terminal())
    paper.print(shown)
    return paper.export_svg(title=title, unique_id=title.split()[1])


def keep(run: Path) -> None:
    """The settings, epochs and report of a run, to five digits."""
    RECORDED.mkdir(parents=True, exist_ok=True)
    (RECORDED / "config.toml").write_bytes((run / "config.toml").read_bytes())
    epochs = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "epoch"]
    text = "".join(json.dumps(rounded(line)) + "\n" for line in epochs)
    (RECORDED / "metrics.jsonl").write_text(text, encoding="utf-8")
    document = rounded(json.loads((run / "metrics.json").read_text(encoding="utf-8")))
    document |= {"run": "runs/quickstart", "checkpoint": "runs/quickstart/checkpoints/vae_best.pth"}
    (RECORDED / "metrics.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Plain values with five significant digits."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
