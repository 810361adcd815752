"""What a person sees while a run trains: a live table in a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from arcvae_cli.console import Console
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.records import EpochRecord, Plan, Recorder
from arcvae_cli.render.terminal import kl_bars

ROWS, FRAME = 3, 4  # epochs always shown, and lines around them: two of header, what is not shown, progress
SHARES = {
    "pixel": {"pixel": "position", "non-black": "foreground", "exact": "exact"},
    "token": {"token": "position", "sequence": "exact"},
}  # by the unit of a corpus: the columns of its accuracies, and their fields of `EpochMetrics`
SPARE = ("s", "exact", "loss", "recon", "pixel", "token", "on ELBO")  # left out on a narrow terminal, in this order


def live_recorder(console: Console) -> LiveTable | Lines:
    """The one that suits where stderr goes."""
    return LiveTable(console) if console.terminal and not console.quiet else Lines(console)


def header(plan: Plan) -> Iterator[str]:
    """The lines above a training."""
    model = f"{plan.settings.model.name}, {plan.parameters:,} parameters"
    yield f"run {plan.run}: {model}, on {plan.device} in {plan.precision}, {plan.engine}"
    sizes = f"{plan.sizes['train']:,} to train on, {plan.sizes['val']:,} to validate"
    yield f"data {plan.corpus}: {sizes}; {plan.epochs} epochs of {plan.steps} steps"
    floors, schedule, mode = plan.free_bits, plan.settings.schedule, plan.settings.objective.free_bits_mode
    same = len(set(floors.values())) == 1
    named = {f"{value:g}" if same else f"{level} {value:g}": None for level, value in floors.items()}
    free_bits = f"; free bits {', '.join(named)} ({mode})" if any(floors.values()) else ""
    yield f"schedule {schedule.name}: {schedule.describe()}{free_bits}"
    if plan.elbo_scale is None:
        yield "scale: with focal loss or class weights no ELBO corresponds to this beta"
    elif plan.elbo_scale != 1.0:
        yield f"scale: mean reductions; beta weighs {plan.elbo_scale:g} times as much on the ELBO scale"
    yield from plan.notes
    if plan.blank is not None and plan.blank_nats is None:
        yield f"baseline: an all-black answer is right in {plan.blank:.3f} of the validation pixels, non-black 0"
    elif plan.blank is not None:
        entropy = "" if plan.entropy is None else f"; the entropy of the data is {plan.entropy:.2f} nats"
        frequencies = f"{plan.blank_nats:.2f} nats and are right in {plan.blank:.3f}"
        yield f"baseline: rules as frequent at each step as in training cost {frequencies}{entropy}"


class Lines(Recorder):
    """One plain line an epoch, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plan: Plan | None = None
        self._missed: set[tuple[str, str]] = set()  # targets that were out of reach in the last epoch

    def start(self, plan: Plan) -> None:
        self._plan = plan
        for line in header(plan):
            self._console.note(Text(line))

    def epoch(self, record: EpochRecord) -> None:
        assert self._plan is not None
        cells = epoch_cells(record, self._plan)
        del cells["epoch"]
        line = "  ".join(f"{name} {text.plain}" for name, text in cells.items())
        best = "  *best" if record.best else ""
        self._console.note(Text(f"epoch {record.epoch}/{self._plan.epochs}  {line}{best}"))
        missed = {(target.quantity, target.level): target.note for target in record.targets if target.note is not None}
        for target, note in missed.items():
            if target not in self._missed:  # when it begins, not in every epoch
                self._console.note(Text(f"note: {note}"))
        self._missed = set(missed)


class LiveTable(Lines):
    """The table of epochs, the KL of every dimension, progress and time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._epochs: list[EpochRecord] = []
        self._began = time.monotonic()
        self._at: tuple[int, int, float | None] = (1, 0, None)  # epoch, steps of it done, beta unless a closed loop
        self._earlier: int | None = None  # steps that an earlier process did; None before the first of this one
        self._over = False
        self._live = Live(console=console.err, refresh_per_second=2, get_renderable=self.picture)

    def start(self, plan: Plan) -> None:
        super().start(plan)
        self._began = time.monotonic()
        self._live.start()

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:  # noqa: ARG002
        self._epochs = list(records)
        if records and self._plan is not None:
            self._at = (len(records), self._plan.steps, None)

    def step(self, epoch: int, done: int, betas: Mapping[str, float], loss: float | None) -> None:  # noqa: ARG002
        self._at = (epoch, done, next(iter(betas.values()), None))  # the screen is redrawn by its own clock
        if self._earlier is None and self._plan is not None:
            self._earlier = (epoch - 1) * self._plan.steps + done - 1

    def epoch(self, record: EpochRecord) -> None:
        self._epochs.append(record)

    def close(self, code: int = 0) -> None:  # noqa: ARG002
        """Leave the whole table on the screen, and the cursor visible."""
        self._over = True
        try:
            self._live.stop()
        except BaseException:  # a second Ctrl-C while the table is drawn
            self._console.err.show_cursor()
            raise

    abandon = close

    def picture(self) -> RenderableType:
        plan = self._plan
        if plan is None:
            return Text("")
        width, height = self._console.err.size
        below: list[Text] = []
        if self._epochs:
            last = self._epochs[-1]
            for target in last.targets:
                if target.note is not None:
                    below += Text(f"note: {target.note}", style="yellow").wrap(self._console.err, width)
            lines = (height - FRAME - ROWS - len(below)) // len(last.val.kl_per_dim)
            for name, groups in last.val.kl_per_dim.items():
                floor = plan.free_bits[name] if plan.settings.objective.free_bits_mode != "total" else 0.0
                below += kl_bars(name, groups, floor, width, lines, plan.level_shapes[name][1:], ACTIVE_KL)
        room = len(self._epochs) if self._over else max(ROWS, height - FRAME - len(below))
        return Group(epoch_table(self._epochs, room, plan, width), *below, self._progress(plan))

    def _progress(self, plan: Plan) -> RenderableType:
        epoch, done, beta = self._at
        steps, total = (epoch - 1) * plan.steps + done, plan.epochs * plan.steps
        own = 0 if self._earlier is None else steps - self._earlier  # the time left is estimated from these
        spent = time.monotonic() - self._began
        left = clock(spent * (total - steps) / own) if own > 10 else "-:--"
        last = f"beta was {beta_text(self._epochs[-1])}" if self._epochs else "beta in a closed loop"
        now = last if beta is None else f"beta {beta:.4g}"
        row = Table.grid(padding=(0, 1))
        row.add_column(max_width=30)  # gives way where the terminal is narrow
        row.add_column(no_wrap=True)
        place = f"epoch {epoch}/{plan.epochs}, step {done}/{plan.steps}"
        text = Text(f"{place}, {now}, {clock(spent)} gone, {left} left")
        row.add_row(ProgressBar(total=total, completed=steps), text)
        return row


def epoch_table(records: Sequence[EpochRecord], room: int, plan: Plan, width: int) -> Table:
    """The last `room` epochs in as many columns as fit into `width`: validation metrics but for the first loss."""
    rows = [epoch_cells(record, plan) for record in records[-room:]]
    names = {name: re.split(r" |(?<=[-/])", name) for name in rows[0]} if rows else {}  # in lines
    sizes = {name: max(*map(len, lines), *(row[name].cell_len for row in rows)) for name, lines in names.items()}
    gap = 2 if sum(sizes.values()) + 2 * len(sizes) <= width + 2 else 1
    for name in SPARE:
        if sum(sizes.values()) + gap * len(sizes) <= width + gap:
            break
        sizes.pop(name, None)
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold", pad_edge=False)
    for name in sizes:
        table.add_column("\n".join(names[name]), justify="right", vertical="bottom", no_wrap=True)
    if len(records) > room:
        table.add_row(f"+{len(records) - room}", style="dim")
    for row in rows:
        table.add_row(*(row[name] for name in sizes))
    return table


def epoch_cells(record: EpochRecord, plan: Plan) -> dict[str, Text]:
    """A row of the table by the names of its columns; red is what an uninformative latent would reach."""
    val, scale = record.val, plan.elbo_scale
    active = sum(value > ACTIVE_KL for value in val.groups)
    dull = {"position": plan.blank is not None and val.position <= plan.blank, "foreground": val.foreground < 0.05}
    targets: dict[str, Text] = {}  # what closed loops reached beside their targets, a column for each quantity
    for target in record.targets:
        text = targets.setdefault("KL/target" if target.quantity == "kl" else "recon/target", Text())
        style = "red" if target.missed else "green"
        text.append(f"{'  ' if text else ''}{target.value:.3g}/{target.target:.3g}", style=style)
    cells: dict[str, str | Text] = {
        "epoch": f"{record.epoch}{'*' if record.best else ' '}",
        "beta": beta_text(record),
        **({"on ELBO": beta_text(record, scale)} if scale is not None and scale != 1.0 else {}),
        "loss": f"{record.train.loss:.4g}",
        "val loss": f"{val.loss:.4g}",
        "recon": f"{val.reconstruction:.4g}",
        "KL": f"{val.kl:.2f}",
        **targets,
        **{
            name: Text(f"{getattr(val, share):.3f}", style="red" if dull.get(share) else "")
            for name, share in SHARES[record.unit].items()
        },
        "active": Text(f"{active}/{len(val.groups)}", style="red" if active < len(val.groups) else "green"),
        "s": f"{record.seconds:.1f}",
    }
    return {name: cell if isinstance(cell, Text) else Text(cell) for name, cell in cells.items()}


def beta_text(record: EpochRecord, scale: float = 1.0) -> str:
    """Beta at the end, or from least to largest where it turned; of each level where they differ, times `scale`."""
    spans = (record.beta_range.get(name, (beta,)) for name, beta in record.betas.items())
    return "/".join(
        (".." if span[0] < 0 else "-").join(f"{value * scale:.4g}" for value in span) for span in dict.fromkeys(spans)
    )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    return str(timedelta(seconds=int(seconds))).removeprefix("0:").removeprefix("0")
