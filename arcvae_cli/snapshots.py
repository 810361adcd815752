"""What a checkpoint keeps of a training, and how a training goes on from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from arcvae_cli import __version__, checkpoints
from arcvae_cli.errors import InputError
from arcvae_cli.graphs import first_line
from arcvae_cli.records import EpochRecord

if TYPE_CHECKING:
    from arcvae_cli.trainer import Trainer

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def values(trainer: Trainer, index: int) -> dict[str, Any]:
    """What a checkpoint holds, `index` steps into the epoch after the finished ones: tensors, numbers and text."""
    last = trainer.history[-1] if trainer.history else None
    return {
        "format_version": checkpoints.FORMAT,
        "epoch": len(trainer.history) + (index > 0),
        "epoch_finished": index == 0,
        "step": trainer.done,
        "model_state_dict": trainer.model.state_dict(),
        "optimizer_state_dict": trainer.step.optimizer.state_dict(),
        "scheduler_state_dict": trainer.rate.state_dict(),
        "schedule_state": trainer.control.state_dict(),
        "conditions": checkpoints.condition_schema(trainer.model),
        **checkpoints.structure_of(trainer.model),
        "train_loss": last.train.loss if last else None,
        "val_loss": last.val.loss if last else None,
        **(trainer.shares(last.val) if last else {}),
        "best": list(trainer.best) if trainer.best else None,
        "rng_state": torch.get_rng_state(),
        "config": checkpoints.config_text(trainer.settings),
        # what else it takes to go on: all earlier epochs, a line each, and the figures of the one under way
        "steps_per_epoch": trainer.steps,
        "history": "\n".join(trainer.told),
        "closed_betas": {
            level: torch.tensor([record.path[level] for record in trainer.history], dtype=torch.float64)
            for level in trainer.schedule.closed_levels(trainer.levels)
        },
        "tally": trainer.engine.tally.table[:index].cpu().clone(),  # of a view, all would be kept
        "stood": dict(trainer.stood),
        "corpus": trainer.fingerprint,
        "precision": PRECISIONS[trainer.step.precision],
        "made_by": made_by(trainer.device),
        "seconds": dict(trainer.seconds),
    }


def restore(trainer: Trainer, values: Mapping[str, Any], path: Path) -> None:
    """Let a training go on from the values of a checkpoint of its run, which lies at `path`; before `fit`.

    Randomness being a function of (seed, epoch, step), nothing but the state of the generator on the host is kept of
    it. InputError where they are of another run, or no run can go on from them.
    """
    if values.get("corpus") != trainer.fingerprint:
        raise InputError(
            f"{path}: trained on another {trainer.corpus.name} than there is now",
            "give the data that the run began with, or start a new run",
        )
    try:
        _take_up(trainer, values, path)
        rewind(trainer, path)
        trainer.notes.extend(_notes(trainer, values))
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: no training can go on from what it holds ({first_line(error)})",
            "go on from another checkpoint of the run, or start a new run",
        ) from error


def _take_up(trainer: Trainer, values: Mapping[str, Any], path: Path) -> None:
    """Put every part in the state that the values say."""
    steps, texts = trainer.steps, values["history"].splitlines()
    index = values["step"] - len(texts) * steps
    if values["steps_per_epoch"] != steps or not 0 <= index <= steps:
        raise ValueError(f"step {values['step']} after {len(texts)} epochs of {values['steps_per_epoch']}")
    trainer.model.load_state_dict(checkpoints.read_weights(path, values))
    trainer.step.optimizer.load_state_dict(values["optimizer_state_dict"])
    trainer.rate.load_state_dict(values["scheduler_state_dict"])
    trainer.control.load_state_dict(values["schedule_state"])
    kept = values["closed_betas"].items()
    closed = {level: found.reshape(len(texts), steps).double().tolist() for level, found in kept}
    for row, text in enumerate(texts):
        record = EpochRecord.of(json.loads(text))
        if record.epoch != row + 1:
            raise ValueError(f"epoch {record.epoch} in the place of {row + 1}")
        betas = [trainer.open_betas(record.epoch, done) for done in range(steps)]
        path_of = {
            level: closed[level][row] if level in closed else [b[level] for b in betas] for level in trainer.levels
        }
        trainer.history.append(replace(record, path=path_of))
        if record.best:
            if not math.isfinite(record.monitored):
                raise ValueError(f"epoch {record.epoch} is the best, of a value of {record.monitored}")
            trainer.best = (record.monitored, record.epoch)
    trainer.told = texts
    trainer.done = trainer.saved = values["step"]
    rows = trainer.engine.tally.table[:index]
    if values["tally"].shape != rows.shape:
        raise ValueError(f"figures of {tuple(values['tally'].shape)} for {tuple(rows.shape)}")
    rows.copy_(values["tally"])
    trainer.stood = dict(values["stood"])
    if values["made_by"]["device"] == trainer.device.type:  # what was found out there holds here
        trainer.step.precision = {name: kind for kind, name in PRECISIONS.items()}[values["precision"]]
        trainer.tried = True
    trainer.seconds = {part: float(seconds) for part, seconds in values["seconds"].items()}
    if not all(0 <= seconds < math.inf for seconds in trainer.seconds.values()):
        raise ValueError("seconds that no run takes")
    torch.set_rng_state(values["rng_state"].cpu())


def rewind(trainer: Trainer, path: Path) -> None:
    """Leave, of a run that goes on from an older checkpoint, what it had then: `path` is its last again.

    Later epochs' checkpoints are void; the best is that of the epochs that count, or the one at hand where it is gone.
    """
    folder, epoch = trainer.folder.checkpoints, len(trainer.history)
    last = folder / "last.pth"
    if path.resolve() == last.resolve():
        return
    checkpoints.copy(path, last)
    for file in folder.glob("*epoch_*.pth"):
        number = file.stem.rpartition("epoch_")[2].partition("-")[0]
        if number.isdecimal() and int(number) > epoch:
            file.unlink()
    if trainer.best is None:
        return
    best = trainer.best[1]
    ranked = sorted(file.name for file in folder.glob(f"best-*-epoch_{best:03d}-*.pth"))
    for file in (folder / name for name in (checkpoints.BEST, f"vae_epoch_{best}.pth", *ranked)):
        with suppress(InputError):
            found = checkpoints.read(file)
            if found["epoch"] == best and found.get("epoch_finished"):
                break
    else:
        file, found, best = last, checkpoints.read(last), epoch
        trainer.history[-1] = replace(trainer.history[-1], best=True)
        trainer.told[-1] = json.dumps(trainer.history[-1].plain())
        trainer.best = (trainer.history[-1].monitored, epoch)
        trainer.notes.append(f"no checkpoint of the best epoch is left: epoch {epoch} stands in for it")
    if file.name != checkpoints.BEST:
        checkpoints.copy(file, folder / checkpoints.BEST)
    for part in ("encoder", "decoder"):
        weights = found["model_state_dict"].items()
        own = {name.removeprefix(f"{part}."): value for name, value in weights if name.startswith(f"{part}.")}
        checkpoints.save_part(folder / f"{part}.pth", own, best, trainer.settings)


def _notes(trainer: Trainer, values: Mapping[str, Any]) -> Iterator[str]:
    """Where a run goes on, and what keeps it from ending bit for bit where it would have."""
    index = trainer.done - len(trainer.history) * trainer.steps
    done = [f"epoch {len(trainer.history)}"] if trainer.history else []
    done += [f"{index} of {trainer.steps} steps"] if index else []
    yield f"goes on after {' and '.join(done)}" if done else "goes on: nothing was trained yet"
    train, old = trainer.settings.train, json.loads(values["config"])["train"]
    epochs = old["epochs"]
    if epochs != train.epochs and train.lr_schedule == "cosine":
        yield f"epochs {epochs}, now {train.epochs}: from here on the learning rate is that of a run of {train.epochs}"
    before, now = values["made_by"], made_by(trainer.device)
    before, now = {**before, "engine": old.get("engine")}, {**now, "engine": train.engine}
    if changed := [f"{key} {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key]]:
        yield f"begun with {'; '.join(changed)}: what follows equals the whole run up to rounding only"


def made_by(device: torch.device) -> dict[str, str | int]:
    """What the last bits of results depend on, beyond the settings."""
    versions: dict[str, str | int] = {"arcvae": __version__, "torch": str(torch.__version__), "device": device.type}
    if device.type != "cpu":
        return versions
    return {**versions, "threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability()}
