"""The Weights & Biases logger, online or offline, and the search for a login."""

import html
import os
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from arcvae_cli.files import atomic_write, read_lines
from arcvae_cli.recorders.external import example_files, flattened
from arcvae_cli.records import EpochRecord, Pictures, Plan, Recorder

KINDS = 4  # rows that a step may have: its own, that of the epoch it ends, the epoch's images, the evaluation's images
STEP, EPOCH, PICTURES, EVALUATION = range(KINDS)
# the server has 30 seconds to answer at the start; no console output, code or command line is sent
OPTIONS = {"console": "off", "disable_git": True, "label_disable": True, "save_code": False, "silent": True}
OPTIONS |= {"init_timeout": 30.0, "x_disable_meta": True}


class WandbRecorder(Recorder):
    """Logs a run folder to one W&B run; a resumed run uses the same W&B id.

    The axis of all curves is the optimiser `step`. On resumption everything W&B may lack is sent again from
    `metrics.jsonl`, but for images. Mode "auto" is what W&B's own settings say.
    """

    def __init__(self, run: Path, mode: str) -> None:
        self._folder = run
        self._mode: Any = None if mode == "auto" else mode
        self._run: Any = None
        self._step, self._last = 0, -1  # of the last epoch; W&B's own of the last row that it has

    def start(self, plan: Plan) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # the interpreter's exit would wait for its reports
        for variable in ("WANDB_DEBUG", "WANDB_CORE_DEBUG"):  # the debug log would contain the API key
            os.environ.pop(variable, None)
        import wandb

        file, log = self._folder / "wandb" / "id", plan.settings.log
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            with atomic_write(file) as temporary:
                temporary.write_text(secrets.token_hex(6), encoding="ascii")
        self._wandb, settings = wandb, wandb.Settings(**OPTIONS)
        wandb.setup(settings=settings)
        self._run = wandb.init(
            project=log.wandb_project,
            entity=log.wandb_entity,
            tags=list(log.wandb_tags),
            name=run_name(plan),
            id=file.read_text(encoding="ascii").strip(),
            config={"run": plan.run, "parameters": plan.parameters, **plan.settings.table()},
            dir=str(self._folder.resolve()),
            mode=self._mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:  # noqa: ARG002
        self._last = -1 if self._run.offline else self._run.step - 1
        for line in read_lines(self._folder / "metrics.jsonl"):
            if line["step"] <= step:  # later ones come from `steps` and `epoch`
                self._log(STEP if line.pop("kind") == "step" else EPOCH, line)
        self._step = step

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            self._log(STEP, line)

    def epoch(self, record: EpochRecord) -> None:
        self._step = record.step
        self._log(EPOCH, record.metrics())

    def pictures(self, epoch: int, pictures: Pictures) -> None:  # noqa: ARG002 - its files
        row: dict[str, Any] = {"step": self._step, "epoch": epoch}
        for name, path in example_files(self._folder, epoch):
            if path.suffix == ".png":
                row[name] = self._wandb.Image(str(path))
            else:  # `wandb.Table` would leave a copy of each in the user's home
                text = html.escape(path.read_text(encoding="utf-8"))
                row[name] = self._wandb.Html(f"<pre>{text}</pre>", inject=False, data_is_not_path=True)
        self._log(PICTURES, row)

    def evaluated(self, metrics: Mapping[str, Any], verdict: Sequence[str], images: Sequence[Path]) -> None:
        self._run.summary.update({**dict(flattened(metrics)), "eval/verdict": "\n".join(verdict)})
        pictures = {f"eval/{file.stem}": self._wandb.Image(str(file)) for file in images}
        self._log(EVALUATION, {"step": self._step, **pictures})

    def artifacts(self, files: Mapping[str, Path]) -> None:
        for name, file in files.items():
            artifact = self._wandb.Artifact(f"{name}-{self._run.id}", type="model")
            artifact.add_file(str(file), skip_cache=True, policy="immutable")  # not copied into the home folder first
            self._run.log_artifact(artifact)

    def close(self, code: int = 0) -> None:
        if self._run is not None:
            self._run.finish(exit_code=code)

    def _log(self, kind: int, values: Mapping[str, Any]) -> None:
        number = KINDS * values["step"] + kind
        if number > self._last:
            row = {name: value for name, value in values.items() if value is not None}
            if kl := [value for value in row.pop("val/kl_per_dim", ()) if value is not None]:
                row["val/kl_per_dim"] = self._wandb.Histogram(kl)
            self._run.log(row, number, commit=True)
            self._last = number


def run_name(plan: Plan) -> str:
    """`beta-vae-d10-b0.1-run-NAME`: model, latent sizes, largest beta of each level or the closed loop's name."""
    model, letters = plan.settings.model.name, {"z": "d", "global": "g", "local": "l"}
    sizes = [letters[name] + "x".join(map(str, shape)) for name, shape in plan.level_shapes.items()]
    schedules = plan.settings.schedule.by_level(tuple(plan.level_shapes)).values()
    peaks = "-".join(dict.fromkeys(f"{schedule.peak:g}" for schedule in schedules if not schedule.closed_loop))
    loops = dict.fromkeys(schedule.name for schedule in schedules if schedule.closed_loop)
    kind = "beta-vae" if model == "grid" else f"{model}-vae"
    return "-".join((kind, *sizes, *([f"b{peaks}"] if peaks else []), *loops, "run", plan.run))[:128]


def automatic_mode() -> tuple[str, str | None]:
    """What `auto` means here, without importing wandb, and a note if it is off for want of the package or a login."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return os.environ["WANDB_MODE"].replace("disabled", "off"), None
    if find_spec("wandb") is None:
        return "off", "W&B is off: not installed; `pip install 'arcvae[wandb]'` installs it"
    from requests.utils import get_netrc_auth

    key = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    if key or get_netrc_auth(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai") is not None:
        return "auto", None
    return "off", "W&B is off: no login found; run `wandb login`, or use --wandb offline"
