"""W&B and TensorBoard, each in a thread behind the training."""

from __future__ import annotations

import os

from arcvae_cli.console import Console
from arcvae_cli.grammar import Rules
from arcvae_cli.recorders.background import Background
from arcvae_cli.records import Recorder
from arcvae_cli.runs import RunFolder
from arcvae_cli.settings import Settings


def external_recorders(
    settings: Settings, folder: RunFolder, console: Console, rules: Rules | None = None
) -> list[Recorder]:
    """The loggers that the settings enable; their packages are imported when they start.

    `rules`: the grammar's rules for derivations, None for grids. `log.wandb = "auto"` without a login prints a note.
    """
    log, found = settings.log, list[Recorder]()
    if log.wandb != "off":
        from arcvae_cli.recorders.wandb import WandbRecorder, automatic_mode

        mode, note = automatic_mode(os.environ) if log.wandb == "auto" else (log.wandb, None)
        if note is not None:
            console.note(note)
        if mode != "off":
            wandb = WandbRecorder(folder.path, mode, settings, rules)
            left = f"`wandb sync {folder.shell}/wandb/latest-run` sends the rest"
            found.append(Background(wandb, "W&B", console.warn, left=left))
    if log.tensorboard:
        from arcvae_cli.recorders.tensorboard import TensorBoardRecorder

        found.append(Background(TensorBoardRecorder(folder.path / "tensorboard", rules), "TensorBoard", console.warn))
    return found
