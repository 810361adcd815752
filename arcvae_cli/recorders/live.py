"""What a person sees while a run trains: a live table in a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from arcvae_cli.console import Console
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.records import EpochRecord, Plan, Silent, all_rates

BAR = 22
"""Cells of the longest KL bar: two bars with their values fit into 80 columns."""
MANY = 64
"""Above so many dimensions, the strongest, the weakest and a histogram stand for all."""
FEW = 8
ROWS = 3
"""Epochs shown however low the terminal is."""
FRAME = 4
"""Lines around them: the header, which takes two in a narrow terminal, what is not shown, and the progress."""
NARROW, BROAD = 80, 100
"""Columns that two bars side by side take, and the table with its names in one line."""


def live_recorder(console: Console) -> LiveTable | Lines:
    """The one that suits where stderr goes."""
    return LiveTable(console) if console.terminal and not console.quiet else Lines(console)


def header(plan: Plan) -> list[str]:
    """The lines above a training."""
    sizes = f"{plan.sizes['train']:,} to train on, {plan.sizes['val']:,} to validate"
    lines = [
        f"run {plan.run}: {plan.model}, {plan.parameters:,} parameters, on {plan.device} in {plan.precision}",
        f"data {plan.corpus}: {sizes}; {plan.epochs} epochs of {plan.steps} steps; schedule {plan.schedule}"
        + (f", free bits {plan.free_bits:g} ({plan.free_bits_mode})" if plan.free_bits else ""),
    ]
    if plan.elbo_scale is None:
        lines.append("scale: with focal loss or class weights no ELBO corresponds to this beta")
    elif plan.elbo_scale != 1.0:
        lines.append(f"scale: mean reductions; beta weighs {plan.elbo_scale:g} times as much on the ELBO scale")
    lines.extend(plan.notes)
    if plan.blank is not None:
        lines.append(f"to beat: an all-black answer is right in {plan.blank:.3f} of the validation pixels, non-black 0")
    return lines


class Lines(Silent):
    """One plain line an epoch, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plan: Plan | None = None

    def start(self, plan: Plan) -> None:
        """Print the header."""
        self._plan = plan
        for line in header(plan):
            self._console.note(Text(line))

    def epoch(self, record: EpochRecord) -> None:
        """Print the epoch."""
        assert self._plan is not None
        val, groups = record.val, list(all_rates(record.val))
        active = sum(value > ACTIVE_KL for value in groups)
        self._console.note(
            Text(
                f"epoch {record.epoch}/{self._plan.epochs}  {scaled_text(record, self._plan)}  "
                f"loss {record.train.loss:.4g}  val {val.loss:.4g}  reconstruction {val.reconstruction:.4g}  "
                f"KL {val.rate:.2f}  {shares_text(record)}  active {active}/{len(groups)}  "
                f"least KL {min(groups):.3f}  {record.seconds:.1f}s{'  *best' if record.best else ''}"
            )
        )


class LiveTable(Silent):
    """The table of epochs, the KL of every dimension under it, progress and time left below."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plan: Plan | None = None
        self._epochs: list[EpochRecord] = []
        self._began = time.monotonic()
        self._at = (1, 0, 0.0)  # epoch, steps of it done, beta
        self._over = False
        self._live = Live(console=console.err, refresh_per_second=2, get_renderable=self.picture)

    def start(self, plan: Plan) -> None:
        """Print the header and open the live part."""
        for line in header(plan):
            self._console.note(Text(line))
        self._plan = plan
        self._began = time.monotonic()
        self._live.start()

    def step(self, epoch: int, done: int, beta: float) -> None:
        """Note where we are; the screen is redrawn by its own clock."""
        self._at = (epoch, done, beta)

    def epoch(self, record: EpochRecord) -> None:
        """Add a row."""
        self._epochs.append(record)

    def close(self) -> None:
        """Leave the whole table standing, and the cursor where it belongs."""
        self._over = True
        self._live.stop()

    def picture(self) -> RenderableType:
        """What stands on the screen now, no higher than it while the run goes on."""
        plan = self._plan
        if plan is None:
            return Text("")
        width, height = self._console.err.size
        bars: list[RenderableType] = []
        if self._epochs:
            last = self._epochs[-1].val
            floor = plan.free_bits if plan.free_bits_mode != "total" else 0.0
            lines = (height - FRAME - ROWS) // len(last.rates)
            for name, groups in last.rates.items():
                bars.extend(kl_bars(name, groups, floor, width, lines))
        room = len(self._epochs) if self._over else max(ROWS, height - FRAME - len(bars))
        table = epoch_table(self._epochs[-room:], plan, len(self._epochs), width)
        return Group(table, *bars, self._progress(plan))

    def _progress(self, plan: Plan) -> RenderableType:
        epoch, done, beta = self._at
        steps = (epoch - 1) * plan.steps + done
        share = steps / (plan.epochs * plan.steps)
        spent = time.monotonic() - self._began
        left = clock(spent * (1 - share) / share) if steps > 10 else "-:--"
        row = Table.grid(padding=(0, 1))
        row.add_column(max_width=30)  # gives way where the terminal is narrow
        row.add_column(no_wrap=True)
        bar = ProgressBar(total=plan.epochs * plan.steps, completed=steps)
        text = (
            f"epoch {epoch}/{plan.epochs}, step {done}/{plan.steps}, beta {beta:.4g}, {clock(spent)} gone, {left} left"
        )
        row.add_row(bar, Text(text))
        return row


NARROW_COLUMNS = ("epoch", "beta", "val loss", "KL", "non-black", "active")


def epoch_table(records: Sequence[EpochRecord], plan: Plan, count: int, width: int) -> Table:
    """The last of `count` epochs, validation numbers but for the first loss, in as many columns as fit into `width`."""
    rows = [epoch_cells(record, plan) for record in records]
    broad = width >= BROAD
    table = Table(box=None, padding=(0, 1) if broad else (0, 1, 0, 0), header_style="bold", pad_edge=False)
    names = [name for name in (rows[0] if rows else ()) if width >= NARROW or name in NARROW_COLUMNS]
    for name in names:
        text = name if broad else name.replace(" ", "\n").replace("-", "-\n")
        table.add_column(text, justify="right", vertical="bottom", no_wrap=True)
    if count > len(records):
        table.add_row(f"+{count - len(records)}", style="dim")
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def epoch_cells(record: EpochRecord, plan: Plan) -> dict[str, RenderableType]:
    """A row of the table, by the names of its columns."""
    val, groups = record.val, list(all_rates(record.val))
    active = sum(value > ACTIVE_KL for value in groups)
    blank = plan.blank is not None and val.position <= plan.blank
    scale = plan.elbo_scale
    return {
        "epoch": f"{record.epoch}{'*' if record.best else ' '}",
        "beta": beta_text(record),
        **({"on ELBO": beta_text(record, scale)} if scale is not None and scale != 1.0 else {}),
        "loss": f"{record.train.loss:.4g}",
        "val loss": f"{val.loss:.4g}",
        "recon": f"{val.reconstruction:.4g}",
        "KL": f"{val.rate:.2f}",
        "pixel": Text(f"{val.position:.3f}", style="red" if blank else ""),
        "non-black": Text(f"{val.foreground:.3f}", style="red" if val.foreground < 0.05 else ""),
        "exact": f"{val.exact:.3f}",
        "active": Text(f"{active}/{len(groups)}", style="red" if active < len(groups) else "green"),
        "s": f"{record.seconds:.1f}",
    }


def kl_bars(name: str, groups: Sequence[float], floor: float, width: int, lines: int) -> Iterator[Text]:
    """The KL of each group as a bar with its value, the free-bits line across, dead groups marked.

    Each text is a line of at most `width` columns. The strongest and the weakest stand for groups that are too many, or
    would take more than so many `lines`.
    """
    dead = sum(value <= ACTIVE_KL for value in groups)
    title = f"KL of each dimension of {name}: {sum(groups):.2f} nats"
    title += f", {dead} of {len(groups)} dead" if dead else ""
    title += f"; | free bits {floor:g}" if floor else ""
    yield Text(title, style="bold", no_wrap=True, overflow="ellipsis")
    shown = list(range(len(groups)))
    columns = 2 if len(groups) > 5 and width >= NARROW else 1
    if len(groups) > min(MANY, columns * (lines - 1)):
        few = max(1, min(FEW, columns * (lines - 2) // 2))
        ranked = sorted(shown, key=lambda index: groups[index], reverse=True)
        shown = ranked[:few] + ranked[-few:]
        spread = f"strongest and weakest {few}; all {len(groups)}: {histogram(groups)}"
        yield Text(spread, no_wrap=True, overflow="ellipsis")
    top = max(max(groups), floor, 1e-9)
    cells = [bar(index, groups[index], top, floor) for index in shown]
    rows = -(-len(cells) // columns)
    yield from (Text("  ").join(cells[row::rows]) for row in range(rows))


def bar(index: int, value: float, top: float, floor: float) -> Text:
    """One bar: `3 ██████|███   2.10`."""
    full = value / top * BAR
    cells = ["█" if at + 1 <= full else ("▌" if at + 0.5 <= full else " ") for at in range(BAR)]
    if floor:
        cells[min(BAR - 1, int(floor / top * BAR))] = "|"
    dead = value <= ACTIVE_KL
    style = "red" if dead else ("yellow" if floor and value < 0.95 * floor else "green")
    text = Text(f"{index:>3} ")
    text.append("".join(cells), style=style)
    text.append(f" {value:7.3f}" + (" dead" if dead else "     "), style="red" if dead else "")
    return text


def histogram(groups: Sequence[float]) -> str:
    """A line of blocks: how many groups carry how much, from none to the most."""
    blocks, bins = " ▁▂▃▄▅▆▇█", 24
    top = max(max(groups), 1e-9)
    counts = [0] * bins
    for value in groups:
        counts[min(bins - 1, int(value / top * bins))] += 1
    return "".join(blocks[-(-count * 8 // max(counts))] for count in counts) + f" 0 to {top:.2f}"


def beta_text(record: EpochRecord, scale: float = 1.0) -> str:
    """Beta at the end, or from least to largest where it turned; of each level where they differ, times `scale`."""
    spans = (record.turns.get(name, (beta,)) for name, beta in record.betas.items())
    return "/".join("-".join(f"{value * scale:.4g}" for value in span) for span in dict.fromkeys(spans))


def scaled_text(record: EpochRecord, plan: Plan) -> str:
    """Beta, and the ELBO's beside it where the scales differ."""
    if plan.elbo_scale in (1.0, None):
        return f"beta {beta_text(record)}"
    assert plan.elbo_scale is not None
    return f"beta {beta_text(record)} ({beta_text(record, plan.elbo_scale)} on the ELBO scale)"


def shares_text(record: EpochRecord) -> str:
    """The accuracies of validation."""
    val = record.val
    return f"pixel {val.position:.3f}  non-black {val.foreground:.3f}  exact {val.exact:.3f}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
