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

BAR = 24
"""Cells of the longest KL bar."""
MANY = 64
"""Above so many dimensions, the strongest, the weakest and a histogram stand for all."""
FEW = 8


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
                f"epoch {record.epoch}/{self._plan.epochs}  {beta_text(record, self._plan)}  "
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
        self._live = Live(console=console.err, refresh_per_second=2, get_renderable=self._draw)

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
        """Leave the last picture standing, and the cursor where it belongs."""
        self._live.stop()

    def _draw(self) -> RenderableType:
        plan = self._plan
        if plan is None:
            return Text("")
        bars: list[RenderableType] = []
        if self._epochs:
            last = self._epochs[-1].val
            for name, groups in last.rates.items():
                bars.extend(kl_bars(name, groups, plan.free_bits if plan.free_bits_mode != "total" else 0.0))
        room = max(3, self._console.err.height - len(bars) - 7)
        return Group(epoch_table(self._epochs[-room:], plan, len(self._epochs)), *bars, self._progress(plan))

    def _progress(self, plan: Plan) -> RenderableType:
        epoch, done, beta = self._at
        steps = (epoch - 1) * plan.steps + done
        share = steps / (plan.epochs * plan.steps)
        spent = time.monotonic() - self._began
        left = clock(spent * (1 - share) / share) if steps > 10 else "-:--"
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=plan.epochs * plan.steps, completed=steps, width=30)
        text = (
            f"epoch {epoch}/{plan.epochs}, step {done}/{plan.steps}, beta {beta:.4g}, {clock(spent)} gone, {left} left"
        )
        row.add_row(bar, Text(text))
        return row


def epoch_table(records: Sequence[EpochRecord], plan: Plan, count: int) -> Table:
    """The last epochs, validation numbers but for the first loss."""
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    names = ["epoch", "beta", "loss", "val loss", "recon", "KL", "pixel", "non-black", "exact", "active", "s"]
    if plan.elbo_scale not in (1.0, None):
        names.insert(2, "on ELBO")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    if count > len(records):
        table.add_row(f"+{count - len(records)}", style="dim")
    for record in records:
        val, groups = record.val, list(all_rates(record.val))
        active = sum(value > ACTIVE_KL for value in groups)
        beta = next(iter(record.betas.values()))
        cells: list[RenderableType] = [
            f"{record.epoch}{'*' if record.best else ' '}",
            "/".join(f"{value:.4g}" for value in dict.fromkeys(record.betas.values())),
            f"{record.train.loss:.4g}",
            f"{val.loss:.4g}",
            f"{val.reconstruction:.4g}",
            f"{val.rate:.2f}",
            Text(f"{val.position:.3f}", style="red" if plan.blank is not None and val.position <= plan.blank else ""),
            Text(f"{val.foreground:.3f}", style="red" if val.foreground < 0.05 else ""),
            f"{val.exact:.3f}",
            Text(f"{active}/{len(groups)}", style="red" if active < len(groups) else "green"),
            f"{record.seconds:.1f}",
        ]
        if plan.elbo_scale not in (1.0, None):
            assert plan.elbo_scale is not None
            cells.insert(2, f"{beta * plan.elbo_scale:.4g}")
        table.add_row(*cells)
    return table


def kl_bars(name: str, groups: Sequence[float], floor: float) -> Iterator[RenderableType]:
    """The KL of each group as a bar with its value, the free-bits line across, dead groups marked."""
    dead = sum(value <= ACTIVE_KL for value in groups)
    title = f"KL of each dimension of {name}, nats: {sum(groups):.2f} in all"
    title += f", {dead} of {len(groups)} dead" if dead else ""
    title += f"; | free bits {floor:g}" if floor else ""
    yield Text(title, style="bold")
    shown = list(range(len(groups)))
    if len(groups) > MANY:
        ranked = sorted(shown, key=lambda index: groups[index], reverse=True)
        shown = ranked[:FEW] + ranked[-FEW:]
        yield Text(f"strongest and weakest {FEW}; all {len(groups)}: {histogram(groups)}")
    top = max(max(groups), floor, 1e-9)
    cells = [bar(index, groups[index], top, floor) for index in shown]
    columns = 2 if len(cells) > 5 else 1
    rows = -(-len(cells) // columns)
    grid = Table.grid(padding=(0, 3))
    for row in range(rows):
        grid.add_row(*(cells[at] if at < len(cells) else "" for at in range(row, rows * columns, rows)))
    yield grid


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


def beta_text(record: EpochRecord, plan: Plan) -> str:
    """Beta, and the ELBO's beside it where the scales differ."""
    text = "beta " + "/".join(f"{value:.4g}" for value in dict.fromkeys(record.betas.values()))
    if plan.elbo_scale not in (1.0, None):
        assert plan.elbo_scale is not None
        text += f" ({next(iter(record.betas.values())) * plan.elbo_scale:.4g} on the ELBO scale)"
    return text


def shares_text(record: EpochRecord) -> str:
    """The accuracies of validation."""
    val = record.val
    return f"pixel {val.position:.3f}  non-black {val.foreground:.3f}  exact {val.exact:.3f}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
