"""The Weights & Biases logger, online or offline, and the search for a login."""

from __future__ import annotations

import html
import netrc
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from arcvae_cli import checkpoints
from arcvae_cli.domains.texts import StringFormatter
from arcvae_cli.files import atomic_write
from arcvae_cli.grammar import Rules
from arcvae_cli.recorders.jsonl import retold
from arcvae_cli.records import EpochRecord, Pictures, Plan, Recorder, StepRecord
from arcvae_cli.render.plots import example_sheets
from arcvae_cli.schedules import Schedule
from arcvae_cli.settings import Settings
from arcvae_cli.signals import SAVED

if TYPE_CHECKING:
    from wandb import Run

Mode = Literal["auto", "online", "offline", "off"]  # auto: as W&B's own settings say
START = 30.0  # seconds the server has to answer at the start
KINDS = 3  # rows that a step may have: its own, that of the epoch it ends, and that of the epoch's images
STEP, EPOCH, PICTURES = range(KINDS)


class WandbRecorder(Recorder):
    """Logs a run folder to one W&B run; a resumed run uses the same W&B id.

    The axis of all curves is the optimiser `step`. On resumption everything W&B may lack is sent again from
    `metrics.jsonl`, but for images. The command line, code and console output are not sent.
    """

    def __init__(self, folder: Path, mode: Mode, settings: Settings, rules: Rules | None = None) -> None:
        self._folder, self._mode, self._settings = folder, mode, settings
        self._writer = None if rules is None else StringFormatter(rules)
        self._run: Run | None = None
        self._step = 0
        self._last = -1  # W&B's step of the last row that it has
        self._best: EpochRecord | None = None

    def start(self, plan: Plan) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # the interpreter's exit would wait for its reports
        for variable in ("WANDB_DEBUG", "WANDB_CORE_DEBUG"):  # the debug log would contain the API key
            os.environ.pop(variable, None)
        import wandb

        quiet = {"console": "off", "disable_git": True, "label_disable": True, "save_code": False, "silent": True}
        settings, log = wandb.Settings(**quiet, init_timeout=START, x_disable_meta=True), self._settings.log
        wandb.setup(settings=settings)
        self._run = wandb.init(
            project=log.wandb_project,
            entity=log.wandb_entity,
            tags=list(log.wandb_tags),
            name=run_name(plan, self._settings.schedule),
            id=run_id(self._folder),
            config={"run": plan.run, "parameters": plan.parameters, **plan.settings.table()},
            dir=str(self._folder.resolve()),
            mode=self._mode if self._mode in ("online", "offline") else None,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        assert self._run is not None
        self._last = -1 if self._run.offline else self._run.step - 1
        for rows, record in retold(self._folder / "metrics.jsonl", records, self._last // KINDS - 1):
            for values in rows:
                self._log(STEP, values)
            self.epoch(record)
        self._step = step
        self._best = next((record for record in reversed(records) if record.best), None)

    def steps(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            self._log(STEP, record.metrics())

    def epoch(self, record: EpochRecord) -> None:
        from wandb import Histogram

        values = record.metrics()
        self._step = record.step
        if kl := [value for value in values.pop("val/kl_per_dim") if value is not None]:
            values["val/kl_per_dim"] = Histogram(kl)
        self._log(EPOCH, values)
        if record.best:
            self._best = record

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        media = _grid_images(pictures) if self._writer is None else _string_tables(self._writer, pictures)
        self._log(PICTURES, {"step": self._step, "epoch": epoch, **media})

    def close(self, code: int = 0) -> None:
        """Log the best epoch and the model, and finish the run with the exit code of the process."""
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            if self._best is not None:
                values = self._best.metrics()
                del values["val/kl_per_dim"], values["best"]
                run.summary.update({f"best/{name}": value for name, value in values.items() if value is not None})
            self._keep_model(run)
            if code == SAVED:
                run.mark_preempting()
        finally:
            run.finish(exit_code=code)

    def _keep_model(self, run: Run) -> None:
        from wandb import Artifact

        folder = self._folder / "checkpoints"
        files = [folder / checkpoints.BEST, folder / "vae_final.pth", self._folder / "config.toml"]
        if any(file.is_file() for file in files[:2]):
            artifact = Artifact(f"model-{run.id}", type="model")
            for file in files:
                if file.is_file():  # "immutable": not copied into the home folder first
                    artifact.add_file(str(file), skip_cache=True, policy="immutable")
            run.log_artifact(artifact)

    def _log(self, kind: int, values: Mapping[str, Any]) -> None:
        assert self._run is not None
        number = KINDS * values["step"] + kind
        if number > self._last:
            self._run.log({name: value for name, value in values.items() if value is not None}, number, commit=True)
            self._last = number


def _grid_images(pictures: Pictures) -> dict[str, Any]:
    from wandb import Image

    sheets, top = example_sheets(pictures.originals, pictures.reconstructions, pictures.samples, pictures.maps)
    captions = {
        "reconstructions": "originals, reconstructions, errors",
        "samples": "drawn from the prior",
        "kl_maps": f"originals, KL of the cells of {', '.join(pictures.maps)}: 0 (black) to {top:.3g} nats",
    }
    return {f"images/{name}": Image(pixels, caption=captions[name]) for name, pixels in sheets.items()}


def _string_tables(writer: StringFormatter, pictures: Pictures) -> dict[str, Any]:
    """Strings as HTML tables; `wandb.Table` would leave a copy of each in the user's home."""
    from wandb import Html

    pairs = writer.pairs(pictures.originals, pictures.reconstructions)
    compared = [(pair.original, pair.reconstruction, "exact" if pair.exact else "") for pair in pairs]
    tables = {"strings/reconstructions": html_table(("original", "reconstruction", ""), compared)}
    if drawn := [(text,) for text in writer.samples(pictures.samples)]:
        tables["strings/samples"] = html_table(("drawn from the prior",), drawn)
    return {name: Html(text, inject=False, data_is_not_path=True) for name, text in tables.items()}


def html_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A page with a table of escaped text, its spaces preserved."""
    head = "".join(f"<th align=left>{html.escape(name)}</th>" for name in names)
    lines = ["".join(f"<td><code>{html.escape(text)}</code></td>" for text in row) for row in rows]
    style = "<!doctype html><meta charset=utf-8><style>td { padding-right: 2em; white-space: pre-wrap }</style>"
    return "\n".join([style, "<table>", *(f"<tr>{line}</tr>" for line in (head, *lines)), "</table>\n"])


def run_name(plan: Plan, schedule: Schedule) -> str:
    """`beta-vae-d10-b0.1-run-NAME`: model, latent sizes, largest beta of each level or the closed loop's name."""
    model = plan.settings.model.name
    kind = "beta-vae" if model == "grid" else f"{model}-vae"
    letters = {"z": "d", "global": "g", "local": "l"}
    sizes = [letters[name] + "x".join(map(str, shape)) for name, shape in plan.level_shapes.items()]
    parts = schedule.by_level(tuple(plan.level_shapes)).values()
    peaks = "-".join(dict.fromkeys(f"{part.peak:g}" for part in parts if not part.closed_loop))
    loops = dict.fromkeys(part.name for part in parts if part.closed_loop)
    name = "-".join((kind, *sizes, *([f"b{peaks}"] if peaks else []), *loops, "run", plan.run))
    return re.sub(r"[:;,#?/']", "-", name)[:128]


def run_id(folder: Path) -> str:
    """The id of a run folder's W&B run, drawn once and kept in `wandb/id`."""
    file = folder / "wandb" / "id"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_text(secrets.token_hex(6), encoding="ascii")
    return file.read_text(encoding="ascii").strip()


def automatic_mode(environment: Mapping[str, str]) -> tuple[Mode, str | None]:
    """What `auto` means here, without importing wandb, and a note if it means off for want of a login."""
    modes: dict[str, Mode] = {"disabled": "off", "offline": "offline", "dryrun": "offline"}
    if mode := modes.get(environment.get("WANDB_MODE", "")):
        return mode, None
    if login_exists(environment):
        return "auto", None
    return "off", "W&B is off: no login found; run `wandb login`, or use --wandb offline"


def login_exists(environment: Mapping[str, str]) -> bool:
    """Whether there is an API key in the environment or in the netrc file."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    named = environment.get("NETRC")
    for file in [named] if named else ["~/.netrc", "~/_netrc"]:
        with suppress(OSError, netrc.NetrcParseError, RuntimeError):
            if (found := netrc.netrc(Path(file).expanduser()).authenticators(host)) and found[2]:
                return True
    return False
