"""The part of docs/build.py that makes docs/schedules.md and its pictures with `arcvae schedule-preview`."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from arcvae_cli.cli import app
from arcvae_cli.presets import preset_names, read_toml, resolve
from arcvae_cli.schedules import SCHEDULES, Feedback, Schedule, build_schedule
from arcvae_cli.schedules.feedback import is_held

HERE = Path(__file__).resolve().parent
PAGE, PICTURES, RECORDED = HERE / "schedules.md", HERE / "images" / "schedules", HERE / "recorded"
MEASURED = RECORDED / "schedules.md"  # the comparison at equal compute
POINTS = PICTURES / "points.json"
WIDTH = 125


@dataclass(frozen=True)
class Section:
    """What no program knows of a schedule. Paragraphs are wrapped anew."""

    formula: str
    source: str
    use: str


EARLIER = "the earlier projects ([names](names.md))"
RAMP = """
beta(e) = 0                                              up to e = warmup_epochs
          max_beta (e - warmup_epochs) / ramp_epochs     until that is max_beta
          max_beta                                       after
"""
PROGRESS = "p = min(1, e / warmup_epochs)\n"

SECTIONS = {
    "constant": Section(
        formula="beta(e) = max_beta",
        source="""Higgins et al. 2017, "beta-VAE". With max_beta 1 and summed terms it is the ELBO.""",
        use="""To measure others against, and where a code does not collapse at the beta you want. The KL term weighs
        from the first step on, when the decoder has no use for the code yet.""",
    ),
    "linear_warmup": Section(
        formula=RAMP,
        source=f"""Bowman et al. 2016 and Sønderby et al. 2016 raise the weight of the KL from 0 to 1 while they train;
        the flat beginning and the numbers are those of {EARLIER}.""",
        use="""The plain choice: the code is filled first and compressed after. It needs `warmup_epochs + ramp_epochs`
        epochs to get there, and a shorter run prints a warning before it starts.""",
    ),
    "ultra_conservative": Section(
        formula=RAMP,
        source=f"`linear_warmup` with other numbers, from {EARLIER}.",
        use="For codes that collapse: late, slow, and to a tenth of the ELBO's weight. The README's figures are of it.",
    ),
    "aggressive": Section(
        formula=RAMP,
        source=f"`linear_warmup` with other numbers, from {EARLIER}.",
        use="For short runs of models that have shown that they do not collapse.",
    ),
    "three_phase": Section(
        formula="beta(e) = straight lines from 0 to each phase's beta at the end of its epochs, then level",
        source=f"One of {EARLIER}.",
        use="""Any curve of straight lines, a pair of epochs and beta for each. The default ends at beta 2, which with
        the mean reductions of the preset `baseline` weighs 51.2 on the ELBO scale and collapses.""",
    ),
    "linear": Section(
        formula=PROGRESS + "beta(e) = max_beta p",
        source="Bowman et al. 2016, as above.",
        use="`linear_warmup` without the flat beginning.",
    ),
    "cosine": Section(
        formula=PROGRESS + "beta(e) = max_beta (1 - cos(pi p)) / 2",
        source="The half cosine of learning-rate schedules (Loshchilov and Hutter 2017), the other way up.",
        use="As `linear`, without a kink at either end.",
    ),
    "exponential": Section(
        formula=PROGRESS + "beta(e) = max_beta (1 - exp(-5 p)) / (1 - exp(-5))",
        source=f"One of {EARLIER}; the divisor is new, so that it arrives at max_beta.",
        use="Most of the weight comes early, 40 % of it in the first tenth of the time.",
    ),
    "sigmoid": Section(
        formula=PROGRESS + "s(p) = 1 / (1 + exp(-12 (p - 0.5)))\nbeta(e) = max_beta (s(p) - s(0)) / (s(1) - s(0))",
        source="""Bowman et al. 2016 anneal along a logistic curve; it is scaled here, so that it begins at 0 and
        arrives at max_beta.""",
        use="A flat beginning and a quick middle: close to `linear_warmup`, with one number less to choose.",
    ),
    "cyclical": Section(
        formula="""
tau = (e mod cycle_length) / cycle_length,   span = max_beta - min_beta
triangle:   beta(e) = min_beta + span (1 - |1 - 2 tau|)
cosine:     beta(e) = min_beta + span (1 - cos(2 pi tau)) / 2
ramp_hold:  beta(e) = min_beta + span min(1, tau / ramp_fraction),   held to the end of the cycle, that included
""",
        source=f"""Fu et al. 2019 is `ramp_hold` with ramp_fraction 0.5, four cycles a run and `per = "step"`. The other
        two waves are those of {EARLIER}.""",
        use="""Every cycle lets the code fill again. Early stopping counts whole cycles, and the best epoch is chosen at
        the weight of the peak, so that annealing decides neither. For cycles of few epochs set `per = "step"`.""",
    ),
    "warm_restart": Section(
        formula="""
restarts at I, I + I m, I + I m + I m^2, ... rounded half up to restart_unit   (I: interval, m: multiplier)
beta(e) = base(e - the last restart)
""",
        source="After the warm restarts of the learning rate by Loshchilov and Hutter 2017.",
        use="As `cyclical`, with cycles that may grow, and any schedule that takes no feedback as its `base`.",
    ),
    "hierarchical": Section(
        formula="beta_global(e) = global(e)\nbeta_local(e)  = local(e)",
        source=f"One of {EARLIER}, for a global vector and a local map of latents.",
        use="""For the hierarchical model: each level has its own schedule for its own KL term. Either may take
        feedback, and then holds the KL of its own level.""",
    ),
    "kl_capacity": Section(
        formula="""
C(e) = start_capacity + (capacity - start_capacity) min(1, e / ramp_epochs)      nats
loss = reconstruction + gamma |KL - C|                                           of each batch
     = reconstruction + beta KL + constant,   beta = gamma sign(KL - C)
""",
        source="""Burgess et al. 2018, "Understanding disentangling in beta-VAE": C from 0 to 25 nats, gamma 100 to
        1000.""",
        use="""When you know how many nats the code should carry, and want to hand them out slowly. Beta jumps between
        gamma and -gamma; its mean over an epoch is what holds the capacity.

        gamma has to be above the beta at which the KL would be the capacity by itself. Whatever it is above that costs
        learning: the signs cancel, but clipping and Adam scale the whole gradient down to gamma's.

        `arcvae train --data arc-raw --beta-schedule kl_capacity --epochs 70 --no-early-stopping
        --set schedule.gamma=G`,
        means of the last ten epochs: with G = 1, 10 and 100 the KL is 25.1, 25.0 and 25.0 nats. The validation
        reconstruction is 103.9, 138.6 and 169.8 nats, and 48, 26 and 0 % of the non-black cells are right.""",
    ),
    "controlvae": Section(
        formula="""
error = target - KL                                     of each batch, in nats
I     = I + ki error                                    no further than to beta's bound, in that direction only
beta  = kp / (1 + exp(error)) + I                       within min_beta and max_beta
""",
        source="""Shao et al. 2020, "ControlVAE". Public versions stop the integral at a bound by a condition that is
        never met; here beta comes off its bound with the first batch that asks for it.""",
        use="""When you know how many nats the code should carry, and want beta to move smoothly. A target below the KL
        that max_beta leaves cannot be held, and the KL stays red in the live table. A larger ki (it is negative) is
        quicker, and overshoots more.""",
    ),
    "geco": Section(
        formula="""
C       = reconstruction - tolerance                    of each batch, in nats per position
average = averaging average + (1 - averaging) C         begun with the first C
lambda  = lambda exp(alpha average)                     within lambda_min and lambda_max
beta    = 1 / lambda
""",
        source="""Rezende and Viola 2018, "Taming VAEs": minimise KL + lambda C.""",
        use="""When you know how well the model must reconstruct, and want no more KL than that takes. A grid has 256
        positions. As long as the model cannot meet the tolerance at any beta, lambda runs to lambda_max, which is beta
        at its least, and the reconstruction stays red in the live table.""",
    ),
}

HEAD = """
<!-- Made by docs/make_schedules.py: change that, then `make docs`. -->

# Schedules of beta

`loss = reconstruction + beta * KL`. The time e is counted in epochs from 1, and in fractions of them with
`per = "step"`; at e = 0 a schedule has the value it starts from. Beta 1 is the ELBO where both terms are sums; on other
scales `arcvae` shows the ELBO-scale beta beside beta.

`arcvae schedule-preview NAME` shows a schedule before a run, `arcvae train --beta-schedule NAME` trains with its
defaults, and `--set schedule.KEY=VALUE` or a preset sets its keys. The first twelve are decided by the epoch alone. The
last three take feedback: they watch every batch on the device, and keep their state in the checkpoint. The best epoch
of a run with one of those is chosen at the weight of the ELBO.

<!-- run: arcvae schedule-preview cyclical --epochs 40 -->
```
$ arcvae schedule-preview cyclical --epochs 40
```
"""


def write(rewritten: Callable[[str], str]) -> None:
    """The page, with the output of its commands, and its pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(rewritten(page(PICTURES)), encoding="utf-8")
    POINTS.write_text(json.dumps(points(), indent=1) + "\n", encoding="utf-8")


def stale(rewritten: Callable[[str], str]) -> Iterator[str]:
    """What is not as it would be made now."""
    before, after = PAGE.read_text(encoding="utf-8"), rewritten(page(None))
    if before != after:
        yield f"{PAGE} is stale\n" + difference(before, after)
    drawn, now = json.loads(POINTS.read_text(encoding="utf-8")), points()
    for name in sorted(drawn.keys() | now.keys()):
        if drawn.get(name) != now.get(name) or not (PICTURES / f"{name}.png").is_file():
            yield f"{PICTURES}/{name}.png is stale"


def points() -> dict[str, str]:
    """A hash of what each picture shows, to six digits, since pixels differ between machines."""
    hashes = {}
    for name, kind in SCHEDULES.items():
        document = json.dumps(preview(*arguments(name, kind)))
        text = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.6g}", document)
        hashes[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return hashes


def arguments(name: str, kind: type[Schedule]) -> list[str]:
    """Of `arcvae schedule-preview` for a section."""
    recorded = RECORDED / name
    run = ["--run", os.path.relpath(recorded)] if issubclass(kind, Feedback) and recorded.is_dir() else []
    return [name, *([] if name in preset_names() else ["--epochs", "100"]), *run]


def difference(before: str, after: str) -> str:
    """A diff of a page and what it would be now."""
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), "page", "program", n=1, lineterm=""))


def page(pictures: Path | None) -> str:
    """The text; the pictures go to a folder, if one is given."""
    assert set(SECTIONS) == set(SCHEDULES), "every schedule has its section, and no section is left over"
    text = HEAD.lstrip() + "\n" + wrapped(", ".join(f"[{name}](#{name})" for name in SCHEDULES)) + "\n"
    return (
        text
        + "".join(section(name, kind, pictures) for name, kind in SCHEDULES.items())
        + "\n"
        + MEASURED.read_text(encoding="utf-8")
    )


def section(name: str, kind: type[Schedule], pictures: Path | None) -> str:
    """One schedule, with its picture."""
    prose = SECTIONS[name]
    asked = arguments(name, kind)
    document = preview(*asked)
    if pictures is not None:
        preview(*asked, "--plot", str(pictures / f"{name}.png"))
    shown = kind.model_validate(document["schedule"])
    caption = f"Drawn by `arcvae schedule-preview {' '.join(asked)}`. {course(document)}"
    if shown != kind():
        differ = ", ".join(f"{key} {value:g}" for key, value in shown if value != getattr(kind(), key))
        caption += f" It is the preset of this name, where {differ}."
    lines = ["", f"## {name}", "", "```text", prose.formula.strip("\n"), "```", "", wrapped(prose.use)]
    lines += ["", wrapped(f"Source: {prose.source}"), "", "| key | default | |", "|---|---|---|", *keys(kind)]
    lines += ["", f"![{name} over the epochs](images/schedules/{name}.png)"]
    lines += ["", wrapped(caption)]
    return "\n".join(lines) + "\n"


def wrapped(text: str) -> str:
    """Paragraphs in lines that an editor shows whole."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    lines = (textwrap.wrap(p, WIDTH, break_long_words=False, break_on_hyphens=False) for p in paragraphs)
    return "\n\n".join("\n".join(paragraph) for paragraph in lines)


def course(document: dict[str, Any]) -> str:
    """What the record of a closed loop showed."""
    if "run" not in document:
        return "Beta depends on the run; the picture shows the target." if document["closed_loop"] else ""
    (level,) = document["run"]["levels"].values()
    schedule: Any = build_schedule(document["schedule"])
    targets = [schedule.setpoint(epoch - 0.5) for epoch in level["epoch"]]  # means of epochs, as the values are
    rows = list(zip(level["epoch"], level["value"], targets, strict=True))
    missed = max((epoch for epoch, value, target in rows if not is_held(value, target)), default=0)
    held = [f"within 5 % of the target from epoch {epoch:g} on" for epoch in level["epoch"] if epoch > missed]
    since = held[0] if held else "not within 5 % of the target"
    end = f"{level['value'][-1]:.4g} for {targets[-1]:.4g} at beta {level['beta'][-1]:.3g}"
    return f"A recorded run, means of each epoch: at the end {end}, {since}."


def keys(kind: type[Schedule]) -> Iterator[str]:
    """The rows of the table of keys."""
    default = kind().model_dump(mode="json", by_alias=True)
    for key, field in kind.model_fields.items():
        name = field.alias or key
        if name == "name":
            continue
        value = default[name]
        if isinstance(value, dict):  # a schedule within this one
            rest = ", ".join(f"{inner} {value[inner]}" for inner in value if inner != "name")
            yield f"| `{name}` | `{value['name']}`: {rest} | a schedule |"
        else:
            yield f"| `{name}` | {json.dumps(value)} | {field.description} |"


@cache
def preview(*arguments: str) -> dict[str, Any]:
    """What `arcvae schedule-preview` gives."""
    result = CliRunner().invoke(app, ["schedule-preview", *arguments, "--json"])
    if result.exit_code:
        sys.exit(result.stderr)
    (document,) = json.loads(result.stdout)["schedules"]
    return dict(document)


def keep(run: Path) -> None:
    """The settings of a run, and what its picture needs of its record."""
    schedule = resolve(str(run / "config.toml")).settings.schedule
    if not isinstance(schedule, Feedback):
        sys.exit(f"{run} has the schedule {schedule.name}, which takes no feedback")
    if "path" in read_toml(run / "config.toml")["data"]:
        sys.exit(f"{run} was trained on a corpus that others do not have")
    folder = RECORDED / schedule.name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "config.toml", folder / "config.toml")
    names = ("kind", "epoch", "step", "train/beta", "train/kl", "train/loss_reconstruction")
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["kind"] != "epoch":
                continue
            kept = {name: round(line[name], 5) if isinstance(line[name], float) else line[name] for name in names}
            file.write(json.dumps(kept) + "\n")
