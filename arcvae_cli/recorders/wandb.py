"""Weights & Biases: a run of its own, online or offline, and where to look for a login."""

from __future__ import annotations

import configparser
import html
import netrc
import os
import re
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from arcvae_cli import checkpoints
from arcvae_cli.domains.texts import Writer
from arcvae_cli.files import atomic_write
from arcvae_cli.grammar import Rules
from arcvae_cli.recorders.jsonl import retold
from arcvae_cli.records import EpochRecord, Pictures, Plan, Silent, StepRecord
from arcvae_cli.render import grid_pixels, kl_map_pixels, reconstruction_pixels
from arcvae_cli.schedules import Schedule
from arcvae_cli.stopping import SAVED

if TYPE_CHECKING:
    from wandb import Run

Mode = Literal["online", "offline", "off"]

START = 30.0
"""Seconds that the server has to answer at the start."""

KINDS = 3
"""A step may have so many rows: its own, that of the epoch it ends, and that of the epoch's pictures."""
STEP, EPOCH, PICTURES = range(KINDS)


class WandbRecorder(Silent):
    """One W&B run for a run folder: whoever goes on with the run there goes on with it under the same id.

    Every row has its optimiser `step`, which is the axis of all curves, and its `epoch`. W&B's own number of a row
    follows from its step and kind, so that a run which goes on knows what W&B has: no row is sent twice, and those that
    a killed process did not get out are made up for from `metrics.jsonl`, but for pictures. W&B takes no row back: of
    steps that are told again it keeps the first. Neither the command line nor code nor what is printed is sent.
    """

    def __init__(
        self,
        folder: Path,
        mode: Mode,
        schedule: Schedule,
        project: str,
        entity: str | None = None,
        tags: Sequence[str] = (),
        rules: Rules | None = None,
    ) -> None:
        self._folder = folder
        self._mode = mode
        self._schedule = schedule
        self._project = project
        self._entity = entity
        self._tags = tags
        self._writer = None if rules is None else Writer(rules)
        self._run: Run | None = None
        self._step = 0
        self._last = -1  # the number of the last row that W&B has
        self._best: EpochRecord | None = None

    def start(self, plan: Plan) -> None:
        """Begin the run, or continue it."""
        # Its reports of its own errors go over the network, and the interpreter's exit waits for them.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        for variable in ("WANDB_DEBUG", "WANDB_CORE_DEBUG"):  # its debug log would hold the key of the login
            os.environ.pop(variable, None)
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            init_timeout=START,
            label_disable=True,
            save_code=False,
            silent=True,
            x_disable_meta=True,
        )
        wandb.setup(settings=settings)
        self._run = wandb.init(
            project=self._project,
            entity=self._entity,
            name=run_name(plan, self._schedule),
            id=run_id(self._folder),
            tags=list(self._tags),
            config={"run": plan.run, "parameters": plan.parameters, **plan.settings},
            dir=str(self._folder.resolve()),
            mode=self._mode if self._mode == "offline" else "online",
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        """Log what W&B lacks up to `step`, and from there on what it has not got yet."""
        assert self._run is not None
        sent = self._mode == "online"  # then the server knows; offline the files of earlier sessions do
        self._last = self._run.step - 1 if sent else max(offline_rows(self._folder), default=-1)
        for rows, record in retold(self._folder / "metrics.jsonl", records, self._last // KINDS - 1):
            for values in rows:
                self._log(STEP, values)
            self.epoch(record)
        self._step = step
        self._best = next((record for record in reversed(records) if record.best), None)

    def steps(self, records: Sequence[StepRecord]) -> None:
        """A row a logged step."""
        for record in records:
            self._log(STEP, record.metrics())

    def epoch(self, record: EpochRecord) -> None:
        """A row with the KL of all dimensions as a histogram."""
        from wandb import Histogram

        values = record.metrics()
        self._step = record.step
        kl = [value for value in values.pop("val/kl_per_dim") if value is not None]
        if kl:
            values["val/kl_per_dim"] = Histogram(kl)
        self._log(EPOCH, values)
        if record.best:
            self._best = record

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        """A row with images, or for derivations with tables of their strings."""
        media = grid_images(pictures) if self._writer is None else string_tables(self._writer, pictures)
        self._log(PICTURES, {"step": self._step, "epoch": epoch, **media})

    def close(self, code: int = 0) -> None:
        """Keep the best epoch and the model, and finish the run as the process will end."""
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

    def abandon(self) -> None:
        """End W&B's own process: at the interpreter's exit W&B waits for it, for minutes if the server hangs.

        There is no public way to do so. Where these names have changed, that wait is all that happens.
        """
        from wandb.sdk import wandb_setup

        setup = wandb_setup._singleton
        if setup is not None and (connection := setup._connection) is not None and connection._proc is not None:
            connection._proc._process.kill()
            if connection._cleanup is not None:
                connection._cleanup()  # unregisters the wait

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


def grid_images(pictures: Pictures) -> dict[str, Any]:
    """Images of grids, and of the KL of a map."""
    from wandb import Image

    compared = reconstruction_pixels(pictures.originals, pictures.reconstructions)
    values: dict[str, Any] = {
        "images/reconstructions": Image(compared, caption="originals, reconstructions, errors"),
        "images/samples": Image(grid_pixels(pictures.samples), caption="drawn from the prior"),
    }
    if pictures.maps:
        maps, top = kl_map_pixels(pictures.originals, pictures.maps)
        caption = f"originals, KL of the cells of {', '.join(pictures.maps)}: 0 (black) to {top:.3g} nats"
        values["images/kl_maps"] = Image(maps, caption=caption)
    return values


def string_tables(writer: Writer, pictures: Pictures) -> dict[str, Any]:
    """The strings of derivations as tables: HTML, since W&B's own tables leave a copy each in the user's home."""
    from wandb import Html

    pairs = writer.pairs(pictures.originals, pictures.reconstructions)
    compared = [(pair.original, pair.reconstruction, "exact" if pair.exact else "") for pair in pairs]
    drawn = [(text,) for text in writer.samples(pictures.samples)]
    tables = {"strings/reconstructions": html_table(("original", "reconstruction", ""), compared)}
    if drawn:
        tables["strings/samples"] = html_table(("drawn from the prior",), drawn)
    return {name: Html(text, inject=False, data_is_not_path=True) for name, text in tables.items()}


def html_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A page with a table of text, in which spaces and every sign stand as they are."""
    head = "".join(f"<th align=left>{html.escape(name)}</th>" for name in names)
    cells = ("".join(f"<td><code>{html.escape(text)}</code></td>" for text in row) for row in rows)
    body = "\n".join(f"<tr>{row}</tr>" for row in cells)
    return (
        "<!doctype html><meta charset=utf-8><style>td { padding-right: 2em; white-space: pre-wrap }</style>\n"
        f"<table>\n<tr>{head}</tr>\n{body}\n</table>\n"
    )


def run_name(plan: Plan, schedule: Schedule) -> str:
    """`beta-vae-d10-b0.1-run-NAME`: kind and size of the model, largest beta of each level, or what sets it."""
    kind = {"grid": "beta-vae"}.get(plan.model, f"{plan.model}-vae")
    sizes = {name: "x".join(map(str, shape)) for name, shape in plan.level_shapes.items()}
    levels = tuple(sizes)
    size = f"d{sizes[levels[0]]}" if len(levels) == 1 else "-".join(f"{name[0]}{text}" for name, text in sizes.items())
    parts = schedule.by_level(levels).values()
    peaks = dict.fromkeys(f"{part.peak:g}" for part in parts if not part.closed_loop)
    betas = [f"b{'-'.join(peaks)}"] if peaks else []
    loops = dict.fromkeys(part.name for part in parts if part.closed_loop)
    return re.sub(r"[:;,#?/']", "-", "-".join((kind, size, *betas, *loops, "run", plan.run)))[:128]


def run_id(folder: Path) -> str:
    """The id of a run folder's W&B run, made up once and kept in `wandb/id`."""
    file = folder / "wandb" / "id"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_text(secrets.token_hex(6), encoding="ascii")
    return file.read_text(encoding="ascii").strip()


# --------------------------------------------------------------------------------------------- what is there already


def offline_rows(folder: Path) -> Iterator[int]:
    """The numbers of all rows that W&B's own files in a run folder hold."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for file in sorted(folder.glob("wandb/*run-*/run-*.wandb")):
        with suppress(DecodeError):  # cut short
            for message in messages(file.read_bytes()):
                record = Record.FromString(message)
                if record.HasField("history"):
                    yield record.history.step.num


def messages(log: bytes) -> Iterator[bytes]:
    """The messages in one of W&B's files, as far as they are whole.

    It is a LevelDB log behind 7 bytes of W&B's own: blocks of 32 KiB of pieces, each with a head of 7 bytes, which are
    checksum, length and kind: whole, first, middle, last. The rest of a block that has no room for a head is empty.
    """
    block, at, found = 32768, 7, b""
    while at + 7 <= len(log):
        if at % block > block - 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        piece = log[at + 7 : at + 7 + length]
        if len(piece) < length or not kind:
            return
        at += 7 + length
        found = piece if kind in (1, 2) else found + piece
        if kind in (1, 4):
            yield found


# ------------------------------------------------------------------------------------------------------- logins


def automatic_mode(environment: Mapping[str, str]) -> tuple[Mode, str | None]:
    """What `auto` means here, and a note where that may surprise.

    As WANDB_MODE or W&B's own settings say, else online where a login exists, else off. Nothing of W&B is imported for
    it: that takes half a second.
    """
    settings = own_settings(environment)
    mode = environment.get("WANDB_MODE") or settings.get("mode") or "online"
    if mode == "disabled":
        return "off", None
    if mode in ("offline", "dryrun"):
        return "offline", None
    if login_exists(environment, settings):
        return "online", None
    return "off", "W&B is off: no login found. `wandb login` makes one, `--wandb offline` needs none"


def login_exists(environment: Mapping[str, str], settings: Mapping[str, str]) -> bool:
    """Whether W&B would find a key: in the environment, its settings, or the netrc file."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE") or settings.get("api_key"):
        return True
    address = environment.get("WANDB_BASE_URL") or settings.get("base_url") or "https://api.wandb.ai"
    named = environment.get("NETRC")
    files = [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]
    for file in files:
        with suppress(OSError, netrc.NetrcParseError, RuntimeError):
            if (found := netrc.netrc(file.expanduser()).authenticators(urlsplit(address).netloc)) and found[2]:
                return True
    return False


def own_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What `wandb login`, `wandb offline` and the like have written, the working folder's over the user's."""
    found: dict[str, str] = {}
    for folder in (
        Path(environment.get("WANDB_CONFIG_DIR") or "~/.config/wandb"),
        Path(environment.get("WANDB_DIR") or ".") / "wandb",
    ):
        parser = configparser.ConfigParser(interpolation=None)
        with suppress(OSError, configparser.Error, UnicodeDecodeError, RuntimeError):
            parser.read(folder.expanduser() / "settings", encoding="utf-8")
            if parser.has_section("default"):
                found.update(parser.items("default"))
    return found
