"""The live table of a run in a terminal; one plain line an epoch elsewhere."""

import re
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from arcvae_cli.console import Console, cell
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.records import EpochRecord, Plan, Recorder, words
from arcvae_cli.render.terminal import kl_bars
from arcvae_cli.settings import DecoderSettings

ROWS, FRAME = 4, 4  # rows always shown, and lines around them: two of header, hidden epochs, progress
# of the columns, at least; of others 6
WIDTHS = {"epoch": 5, "beta": 7, "on ELBO": 7, "pixel": 5, "non-black": 5, "foreground": 10, "exact": 5}
WIDTHS |= {"sequence": 8, "s": 5, "encoder only": 7}
DROPPED_FIRST = ("s", "MMD", "exact", "recon", "pixel", "token", "loss", "on ELBO")  # if narrow, in this order
CAPTION = "loss: training; rest: validation with sampled latents"


def header(plan: Plan) -> Iterator[str]:
    """The lines above a training."""
    model = f"{plan.settings.model.name}, {plan.parameters:,} parameters"
    yield f"run {plan.run}: {model}, on {plan.how}"
    sizes = f"{plan.sizes['train']:,} to train on, {plan.sizes['val']:,} to validate"
    sizes = sizes if plan.canvas is None else f"{plan.canvas.describe()}; {sizes}"
    yield f"data {plan.corpus}: {sizes}; {plan.settings.train.epochs} epochs of {plan.steps} steps"
    schedule, objective = plan.settings.schedule, plan.settings.objective
    floors = "/".join(f"{floor:g}" for floor in dict.fromkeys(map(objective.floor, plan.level_shapes)))
    free_bits = "" if floors == "0" else f"; free bits {floors} ({objective.free_bits_mode})"
    yield f"schedule {schedule.name}: {schedule.describe()}{free_bits}"
    if remedies := "; ".join(remedy_texts(plan)):
        yield f"remedies: {remedies}"
    if plan.elbo_scale is None:
        yield "ELBO scale: undefined with focal loss or class weights"
    elif plan.elbo_scale != 1.0:
        yield f"ELBO scale: with mean reductions, beta on the ELBO scale is {plan.elbo_scale:g} times beta"
    if getattr(plan.settings.model, "decoder", "") == "autoregressive":
        yield "decoder autoregressive: accuracies are of each position given the true ones before it (teacher forcing)"
    yield from plan.notes
    if plan.blank is not None and plan.canvas is not None:
        what = f"an all-{words(plan.canvas)['background']} answer"
        what = "the most common class of each cell" if plan.canvas.background is None else what
        yield f"baseline: {what} is right in {plan.blank:.3f} of the validation pixels"
    elif plan.blank is not None:
        entropy = "" if plan.entropy is None else f"; entropy of the data: {plan.entropy:.2f} nats"
        yield f"baseline: rule frequencies: {plan.blank_nats:.2f} nats, token accuracy {plan.blank:.3f}{entropy}"


def remedy_texts(plan: Plan) -> Iterator[str]:
    """What a run does against collapse beside its schedule and free bits."""
    model, objective, steps = plan.settings.model, plan.settings.objective, plan.settings.train.encoder_steps
    if isinstance(model, DecoderSettings) and model.mean_norm:
        yield f"batch-normalised means of scale {model.mean_norm:g}, a KL of {model.least_kl:.4g} nats or more"
    if objective.importance_samples > 1:
        yield f"the loss is the bound of {objective.importance_samples} samples ({objective.importance_gradient})"
    if objective.prior_draws:
        yield f"{objective.prior_draws:.0%} of a batch decoded from the prior too"
    if objective.mmd:
        yield f"{objective.mmd:g} times MMD"
    if steps:
        yield f"{steps} of {steps + 1} steps of the encoder alone, while mutual information (MI) rises"


class EpochLines(Recorder):
    """One plain line an epoch, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def start(self, plan: Plan) -> None:
        self._plan = plan
        for line in (*header(plan), CAPTION):
            self._console.note(Text(line))

    def epoch(self, record: EpochRecord) -> None:
        cells = epoch_cells(record, self._plan)
        del cells["epoch"]
        line = "  ".join(f"{name} {text.plain.strip()}" for name, text in cells.items())
        best = "  *best" if record.best else ""
        self._console.note(Text(f"epoch {record.epoch}/{self._plan.settings.train.epochs}  {line}{best}"))


class LiveTable(Recorder):
    """The table of epochs with the one in progress, the KL of every dimension, progress and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: EpochRecord | None = None
        self._rows: list[Mapping[str, Text]] = []  # the cells of an epoch by the names of their columns
        self._epoch, self._done = 1, 0  # the epoch, and its steps that are done
        self._betas: Mapping[str, float] = {}
        self._loss, self._over = "", False
        self._live: Live | None = None

    def start(self, plan: Plan) -> None:
        self._plan = plan
        for line in header(plan):
            self._console.note(Text(line))
        bar = [BarColumn(None)] if self._console.err.width >= 80 else []
        place, elapsed, left = (TextColumn(text) for text in ("{task.description}", "elapsed,", "left"))
        columns = (*bar, place, TimeElapsedColumn(), elapsed, TimeRemainingColumn(compact=True), left)
        self._progress = Progress(*columns, console=self._console.err, speed_estimate_period=120.0)
        self._progress.add_task("", total=plan.settings.train.epochs * plan.steps)
        self._live = Live(console=self._console.err, refresh_per_second=2, get_renderable=self.picture)
        self._live.start()

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:  # noqa: ARG002
        for record in records:
            self.epoch(record)

    def step(self, epoch: int, done: int, betas: Mapping[str, float], loss: float | None) -> None:
        self._epoch, self._done, self._betas = epoch, done, betas  # the screen is redrawn by its own clock
        if loss is not None:
            self._loss = short(loss)

    def epoch(self, record: EpochRecord) -> None:
        self._last, self._epoch, self._done = record, record.epoch, self._plan.steps
        self._rows.append(epoch_cells(record, self._plan))

    def close(self, code: int = 0) -> None:  # noqa: ARG002
        """Leave the whole table on the screen, and the cursor visible."""
        self._over = True
        if self._live is not None:
            self._live.stop()

    abandon = close

    def picture(self) -> RenderableType:
        plan, last, rows, objective = self._plan, self._last, list(self._rows), self._plan.settings.objective
        width, height = self._console.err.size
        if self._epoch > len(rows) and not self._over:
            betas = beta_cells([(beta,) for beta in self._betas.values()], plan)
            cells = {"epoch": f"{self._epoch}…", **betas, "loss": self._loss}
            rows.append({name: Text(text, style="dim") for name, text in cells.items()})
        names = list(rows[0]) if rows else []
        columns = {name: max(WIDTHS.get(name, 6), *(row.get(name, Text()).cell_len for row in rows)) for name in names}
        for name in DROPPED_FIRST:
            if sum(columns.values()) + len(columns) > width + 1:
                columns.pop(name, None)
        hidden = ", ".join(name for name in names if name not in columns)
        caption = Text(CAPTION + (hidden and f"; hidden: {hidden}"), "dim")
        below = [*caption.wrap(self._console.err, width)]
        if last is not None:
            lines = (height - FRAME - ROWS - len(below)) // len(last.val.kl_per_dim)
            for name, groups in last.val.kl_per_dim.items():
                floor = objective.floor(name) if objective.free_bits_mode != "total" else 0.0
                below += kl_bars(name, groups, floor, width, lines, plan.level_shapes[name][1:])
        gap = 2 if sum(columns.values()) + 2 * len(columns) <= width + 2 else 1
        table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold", pad_edge=False)
        for name, size in columns.items():
            heading = re.sub(" |(?<=[-/])", "\n", name)
            table.add_column(heading, justify="right", vertical="bottom", no_wrap=True, width=size)
        room = len(rows) if self._over else max(ROWS, height - FRAME - len(below))
        if len(rows) > room:
            table.add_row(f"+{len(rows) - room}", style="dim")
        for row in rows[-room:]:
            table.add_row(*(row.get(name, "") for name in columns))
        place = f"epoch {self._epoch}/{plan.settings.train.epochs}, step {self._done}/{plan.steps},"
        done = (self._epoch - 1) * plan.steps + self._done
        self._progress.update(self._progress.task_ids[0], completed=done, description=place)
        return Group(table, *below, self._progress)


def epoch_cells(record: EpochRecord, plan: Plan) -> dict[str, Text]:
    """A row of the table by the names of its columns; red marks what an uninformative latent would reach."""
    val = record.val
    active = sum(value > ACTIVE_KL for value in val.groups)
    failed = {"position": val.position <= (plan.blank or 0.0), "foreground": (val.foreground or 0.0) < 0.05}
    targets: dict[str, Text] = {}  # of closed loops: reached/target, a column for each quantity
    for target in record.targets:
        text = targets.setdefault("KL/target" if target.quantity == "kl" else "recon/target", Text())
        style = "red" if target.missed else "green"
        text.append(f"{'  ' if text else ''}{target.value:.3g}/{target.target:.3g}", style=style)
    shares = {"token": "position", "sequence": "exact"}
    if plan.canvas is not None:
        shares = {"pixel": "position", words(plan.canvas)["foreground"]: "foreground", "exact": "exact"}
    accuracies = {
        name: Text(cell(value, ".3f"), "red" if failed.get(key) else "")
        for name, key in shares.items()
        if (value := getattr(val, key)) is not None  # no foreground without a background
    }
    lagging = {}
    if (alone := record.encoder_steps) is not None:
        lagging["encoder only"] = f"{alone}/{alone + 1}" if alone else "0"
        lagging["MI"] = "-" if record.mutual_information is None else f"{record.mutual_information:.3f}"
    cells: dict[str, str | Text] = {
        "epoch": f"{record.epoch}{'*' if record.best else ' '}",
        **beta_cells([record.beta_range.get(name, (beta,)) for name, beta in record.betas.items()], plan),
        "loss": short(record.train.loss),
        "val loss": short(val.loss),
        "recon": short(val.reconstruction),
        "KL": f"{val.kl:.2f}",
        **({} if val.mmd is None else {"MMD": short(val.mmd)}),
        **lagging,
        **targets,
        **accuracies,
        "active": Text(f"{active}/{len(val.groups)}", style="red" if active < len(val.groups) else "green"),
        "s": f"{record.seconds:.1f}",
    }
    return {name: cell if isinstance(cell, Text) else Text(cell) for name, cell in cells.items()}


def beta_cells(spans: Sequence[tuple[float, ...]], plan: Plan) -> dict[str, str]:
    """(beta,) or (least, largest) of each level where they differ; also on the ELBO scale if that is another."""
    cells, scales = {}, {"beta": 1.0}
    if plan.elbo_scale not in (None, 1.0):
        scales["on ELBO"] = plan.elbo_scale
    for name, factor in scales.items():
        texts = [[short(beta * factor, 7) for beta in span] for span in dict.fromkeys(spans)]
        cells[name] = "/".join((".." if text[0][0] == "-" else "-").join(text) for text in texts)
    return cells


def short(value: float, width: int = 6) -> str:
    """A number of up to four digits in at most `width` characters, if it is in the usual range."""
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return next((text for digits in (4, 3, 2) if len(text := f"{value:.{digits}g}") <= width), f"{value:.1g}")
