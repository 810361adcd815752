"""What a person sees while a run trains: a live table in a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from arcvae_cli.console import Console
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.records import EpochRecord, Plan, Recorder
from arcvae_cli.render import kl_bars

if TYPE_CHECKING:
    from arcvae_cli.controllers import Target

ROWS = 3
"""Epochs shown however low the terminal is."""
FRAME = 4
"""Lines around them: the header, which takes two in a narrow terminal, what is not shown, and the progress."""
SHARES = {
    "pixel": {"pixel": "position", "non-black": "foreground", "exact": "exact"},
    "token": {"token": "position", "sequence": "exact"},
}
"""By the unit of a corpus: the columns of its accuracies, and where in `EpochMetrics` each stands."""
SPARE = ("s", "exact", "loss", "recon", "pixel", "token", "on ELBO")
"""Columns of the table that a narrow terminal goes without, the first before the others."""


def live_recorder(console: Console) -> LiveTable | Lines:
    """The one that suits where stderr goes."""
    return LiveTable(console) if console.terminal and not console.quiet else Lines(console)


def header(plan: Plan) -> list[str]:
    """The lines above a training."""
    sizes = f"{plan.sizes['train']:,} to train on, {plan.sizes['val']:,} to validate"
    lines = [
        f"run {plan.run}: {plan.model}, {plan.parameters:,} parameters, on {plan.device} in {plan.precision}, "
        f"{plan.engine}",
        f"data {plan.corpus}: {sizes}; {plan.epochs} epochs of {plan.steps} steps",
        f"schedule {plan.schedule}: {plan.schedule_text}{free_bits_text(plan)}",
    ]
    if plan.elbo_scale is None:
        lines.append("scale: with focal loss or class weights no ELBO corresponds to this beta")
    elif plan.elbo_scale != 1.0:
        lines.append(f"scale: mean reductions; beta weighs {plan.elbo_scale:g} times as much on the ELBO scale")
    lines.extend(plan.notes)
    if plan.blank is not None:
        lines.append(to_beat(plan))
    return lines


def to_beat(plan: Plan) -> str:
    """What a code that says nothing is worth on the validation split, and what none can be better than."""
    if plan.blank_nats is None:
        return f"to beat: an all-black answer is right in {plan.blank:.3f} of the validation pixels, non-black 0"
    floor = "" if plan.entropy is None else f"; the entropy of the data is {plan.entropy:.2f} nats"
    return (
        f"to beat: rules as frequent at each step as in training cost {plan.blank_nats:.2f} nats and are right in "
        f"{plan.blank:.3f}{floor}"
    )


def free_bits_text(plan: Plan) -> str:
    """Lambda, of each level where they differ, and its mode; nothing where free bits are off."""
    values = dict.fromkeys(plan.free_bits.values())
    if not any(values):
        return ""
    named = (
        [f"{value:g}" for value in values] if len(values) == 1 else [f"{k} {v:g}" for k, v in plan.free_bits.items()]
    )
    return f"; free bits {', '.join(named)} ({plan.free_bits_mode})"


class Lines(Recorder):
    """One plain line an epoch, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plan: Plan | None = None
        self._out_of_reach: set[tuple[str, str]] = set()

    def start(self, plan: Plan) -> None:
        """Print the header."""
        self._plan = plan
        for line in header(plan):
            self._console.note(Text(line))

    def epoch(self, record: EpochRecord) -> None:
        """Print the epoch."""
        assert self._plan is not None
        val, groups = record.val, record.val.groups
        active = sum(value > ACTIVE_KL for value in groups)
        self._console.note(
            Text(
                f"epoch {record.epoch}/{self._plan.epochs}  {scaled_text(record, self._plan)}  "
                f"loss {record.train.loss:.4g}  val {val.loss:.4g}  reconstruction {val.reconstruction:.4g}  "
                f"KL {val.rate:.2f}  {targets_line(record)}{shares_text(record)}  active {active}/{len(groups)}  "
                f"least KL {min(groups):.3f}  {record.seconds:.1f}s{'  *best' if record.best else ''}"
            )
        )
        missed = {
            (target.quantity, target.level): note for target in record.targets if (note := target.note) is not None
        }
        for which, note in missed.items():
            if which not in self._out_of_reach:  # told when it begins, not in every epoch
                self._console.note(Text(f"note: {note}"))
        self._out_of_reach = set(missed)


class LiveTable(Recorder):
    """The table of epochs, the KL of every dimension under it, progress and time left below."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plan: Plan | None = None
        self._epochs: list[EpochRecord] = []
        self._began = time.monotonic()
        self._at: tuple[int, int, float | None] = (1, 0, None)  # epoch, steps of it done, beta where it is known
        self._earlier: int | None = None  # steps that an earlier process did; None before the first of this one
        self._over = False
        self._live = Live(console=console.err, refresh_per_second=2, get_renderable=self.picture)

    def start(self, plan: Plan) -> None:
        """Print the header and open the live part."""
        for line in header(plan):
            self._console.note(Text(line))
        self._plan = plan
        self._began = time.monotonic()
        self._live.start()

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:  # noqa: ARG002 - the table counts by epochs
        """Show the epochs that the run has."""
        self._epochs = list(records)
        if records and self._plan is not None:
            self._at = (len(records), self._plan.steps, None)

    def step(self, epoch: int, done: int, beta: float | None) -> None:
        """Note where we are; the screen is redrawn by its own clock."""
        self._at = (epoch, done, beta)
        if self._earlier is None and self._plan is not None:
            self._earlier = (epoch - 1) * self._plan.steps + done - 1

    def epoch(self, record: EpochRecord) -> None:
        """Add a row."""
        self._epochs.append(record)

    def close(self, code: int = 0) -> None:  # noqa: ARG002 - it ends the same way
        """Leave the whole table standing, and the cursor where it belongs."""
        self.abandon()

    def abandon(self) -> None:
        """The same."""
        self._over = True
        try:
            self._live.stop()
        except BaseException:  # a second Ctrl-C while the table is drawn
            self._console.err.show_cursor()
            raise

    def picture(self) -> RenderableType:
        """What stands on the screen now, no higher than it while the run goes on."""
        plan = self._plan
        if plan is None:
            return Text("")
        width, height = self._console.err.size
        below: list[RenderableType] = []
        if self._epochs:
            last = self._epochs[-1]
            notes = [text for target in last.targets if (text := target.note) is not None]
            below = [
                line for note in notes for line in Text(f"note: {note}", style="yellow").wrap(self._console.err, width)
            ]
            below.extend(level_bars(last, plan, width, height - FRAME - ROWS - len(below)))
        room = len(self._epochs) if self._over else max(ROWS, height - FRAME - len(below))
        table = epoch_table(self._epochs[-room:], plan, len(self._epochs), width)
        return Group(table, *below, self._progress(plan))

    def _progress(self, plan: Plan) -> RenderableType:
        epoch, done, beta = self._at
        steps, total = (epoch - 1) * plan.steps + done, plan.epochs * plan.steps
        own = 0 if self._earlier is None else steps - self._earlier  # by which the time left is reckoned
        spent = time.monotonic() - self._began
        left = clock(spent * (total - steps) / own) if own > 10 else "-:--"
        row = Table.grid(padding=(0, 1))
        row.add_column(max_width=30)  # gives way where the terminal is narrow
        row.add_column(no_wrap=True)
        bar = ProgressBar(total=total, completed=steps)
        place = f"epoch {epoch}/{plan.epochs}, step {done}/{plan.steps}"
        row.add_row(bar, Text(f"{place}, {self._beta(beta)}, {clock(spent)} gone, {left} left"))
        return row

    def _beta(self, beta: float | None) -> str:
        """Beta now, or where only the device knows it, at the end of the last epoch."""
        if beta is not None:
            return f"beta {beta:.4g}"
        return f"beta was {beta_text(self._epochs[-1])}" if self._epochs else "beta in a closed loop"


def level_bars(record: EpochRecord, plan: Plan, width: int, lines: int) -> Iterator[Text]:
    """A block of KL bars for each level, in so many lines together."""
    rates = record.val.rates
    for name, groups in rates.items():
        floor = plan.free_bits[name] if plan.free_bits_mode != "total" else 0.0
        cells = plan.level_shapes[name][1:]
        yield from kl_bars(name, groups, floor, width, lines // len(rates), cells, ACTIVE_KL)


def epoch_table(records: Sequence[EpochRecord], plan: Plan, count: int, width: int) -> Table:
    """The last of `count` epochs, validation numbers but for the first loss, in as many columns as fit into `width`."""
    rows = [epoch_cells(record, plan) for record in records]
    names, broad = layout(rows, width)
    table = Table(box=None, padding=(0, 1) if broad else (0, 1, 0, 0), header_style="bold", pad_edge=False)
    for name in names:
        text = name if broad else "\n".join(words(name))
        table.add_column(text, justify="right", vertical="bottom", no_wrap=True)
    if count > len(records):
        table.add_row(f"+{count - len(records)}", style="dim")
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def layout(rows: Sequence[Mapping[str, Text]], width: int) -> tuple[list[str], bool]:
    """The columns that fit into `width`, and whether their names fit in one line, two spaces between them."""
    if not rows:
        return [], True
    cells = {name: max(row[name].cell_len for row in rows) for name in rows[0]}
    if sum(max(len(name), longest) + 2 for name, longest in cells.items()) - 2 <= width:
        return list(cells), True
    taken = {name: max(longest, *map(len, words(name))) + 1 for name, longest in cells.items()}
    for name in SPARE:
        if sum(taken.values()) - 1 <= width:
            break
        taken.pop(name, None)
    return list(taken), False


def words(name: str) -> list[str]:
    """A column's name in lines."""
    return re.split(r" |(?<=[-/])", name)


def epoch_cells(record: EpochRecord, plan: Plan) -> dict[str, Text]:
    """A row of the table, by the names of its columns."""
    val, groups = record.val, record.val.groups
    active = sum(value > ACTIVE_KL for value in groups)
    scale = plan.elbo_scale
    cells: dict[str, str | Text] = {
        "epoch": f"{record.epoch}{'*' if record.best else ' '}",
        "beta": beta_text(record),
        **({"on ELBO": beta_text(record, scale)} if scale is not None and scale != 1.0 else {}),
        "loss": f"{record.train.loss:.4g}",
        "val loss": f"{val.loss:.4g}",
        "recon": f"{val.reconstruction:.4g}",
        "KL": f"{val.rate:.2f}",
        **target_cells(record.targets),
        **share_cells(record, plan.blank),
        "active": Text(f"{active}/{len(groups)}", style="red" if active < len(groups) else "green"),
        "s": f"{record.seconds:.1f}",
    }
    return {name: cell if isinstance(cell, Text) else Text(cell) for name, cell in cells.items()}


def share_cells(record: EpochRecord, blank: float | None) -> dict[str, Text]:
    """The accuracies of validation, a column each; red where a code that says nothing earns as much."""
    val = record.val
    dull = {"position": blank is not None and val.position <= blank, "foreground": val.foreground < 0.05}
    return {
        name: Text(f"{getattr(val, share):.3f}", style="red" if dull.get(share) else "")
        for name, share in SHARES[record.unit].items()
    }


QUANTITIES = {"kl": "KL", "reconstruction": "recon"}


def beta_text(record: EpochRecord, scale: float = 1.0) -> str:
    """Beta at the end, or from least to largest where it turned; of each level where they differ, times `scale`."""
    spans = (record.turns.get(name, (beta,)) for name, beta in record.betas.items())
    return "/".join(
        (".." if span[0] < 0 else "-").join(f"{value * scale:.4g}" for value in span) for span in dict.fromkeys(spans)
    )


def target_cells(targets: Sequence[Target]) -> dict[str, Text]:
    """What a closed loop reached beside what it was to hold, red where it misses; a column a quantity."""
    cells: dict[str, Text] = {}
    for target in targets:
        text = cells.setdefault(f"{QUANTITIES[target.quantity]}/target", Text())
        text.append(("  " if text else "") + target_text(target), style="red" if target.missed else "green")
    return cells


def target_text(target: Target) -> str:
    """`25.1/25`: nats of KL, or nats per position of reconstruction."""
    return f"{target.value:.3g}/{target.target:.3g}"


def targets_line(record: EpochRecord) -> str:
    """The same for a plain line."""
    return "".join(
        f"{target.level} {QUANTITIES[target.quantity]}/target {target_text(target)}  ".lstrip()
        for target in record.targets
    )


def scaled_text(record: EpochRecord, plan: Plan) -> str:
    """Beta, and the ELBO's beside it where the scales differ."""
    if plan.elbo_scale in (1.0, None):
        return f"beta {beta_text(record)}"
    assert plan.elbo_scale is not None
    return f"beta {beta_text(record)} ({beta_text(record, plan.elbo_scale)} on the ELBO scale)"


def shares_text(record: EpochRecord) -> str:
    """The accuracies of validation, in a plain line."""
    return "  ".join(f"{name} {getattr(record.val, share):.3f}" for name, share in SHARES[record.unit].items())


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
