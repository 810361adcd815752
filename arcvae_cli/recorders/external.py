"""W&B and TensorBoard, each in a thread behind the training, and what both show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from arcvae_cli.console import Console
from arcvae_cli.domains.strings import pair_lines, texts_of
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules
from arcvae_cli.recorders.background import Background
from arcvae_cli.records import Pictures, Recorder
from arcvae_cli.runs import RunFolder
from arcvae_cli.settings import LogSettings, Settings


def check_installed(log: LogSettings) -> None:
    """InputError if the settings ask for a logger whose package is not installed."""
    asked = {"wandb": (f"--wandb {log.wandb}", log.wandb in ("online", "offline"))}
    asked["tensorboard"] = ("--tensorboard", log.tensorboard)
    for package, (flag, needed) in asked.items():
        if needed and find_spec(package) is None:
            raise InputError(f"{flag}: {package} is not installed", f"pip install 'arcvae[{package}]'")


def external_recorders(
    settings: Settings, folder: RunFolder, console: Console, rules: Rules | None = None
) -> list[Recorder]:
    """The loggers that the settings enable; their packages are imported when they start.

    `rules`: the grammar's rules for derivations, None for grids. `log.wandb = "auto"` without a login or without the
    package prints a note.
    """
    log, found = settings.log, list[Recorder]()
    if log.wandb != "off":
        from arcvae_cli.recorders.wandb import WandbRecorder, automatic_mode

        mode, note = automatic_mode() if log.wandb == "auto" else (log.wandb, None)
        if note is not None:
            console.note(note)
        if mode != "off":
            unsent = f"`wandb sync {folder.shell}/wandb/latest-run` sends the rest"
            wandb = WandbRecorder(folder.path, mode, settings, rules)
            found.append(Background(wandb, "W&B", console.warn, unsent))
    if log.tensorboard:
        from arcvae_cli.recorders.tensorboard import TensorBoardRecorder

        found.append(Background(TensorBoardRecorder(folder.path / "tensorboard", rules), "TensorBoard", console.warn))
    return found


def flattened(metrics: Mapping[str, Any], prefix: str = "eval") -> Iterator[tuple[str, float]]:
    """The numbers of nested metrics, under names as `eval/reconstruction/exact`."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)):
            yield f"{prefix}/{name}", value


def example_texts(rules: Rules, pictures: Pictures) -> dict[str, str]:
    """Strings with their reconstructions, and samples, as texts by their logged names."""
    pairs = pair_lines(rules, pictures.originals, pictures.reconstructions)
    samples = [] if rules.text is None else texts_of(rules, pictures.samples)
    texts = {"strings/reconstructions": pairs, "strings/samples": samples}
    return {name: "\n".join(lines) for name, lines in texts.items() if lines}
