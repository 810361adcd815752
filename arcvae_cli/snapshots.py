"""What a checkpoint keeps of a training, and how a training goes on from it."""

from __future__ import annotations

import json
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
    """Put a trainer in the state of its run's checkpoint at `path`; before `fit`.

    Randomness is a function of (seed, epoch, step), so that only the generator of the host has a state. InputError for
    the checkpoint of another run, or of other data.
    """
    if values.get("corpus") != trainer.fingerprint:
        raise InputError(
            f"{path}: trained on another {trainer.corpus.name} than there is now",
            "give the data that the run began with, or start a new run",
        )
    try:
        _take_up(trainer, values)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: no run can be resumed from it ({first_line(error)})", "give another checkpoint of the run"
        ) from error
    rewind(trainer, path)
    trainer.notes.extend(_notes(trainer, values))


def _take_up(trainer: Trainer, values: Mapping[str, Any]) -> None:
    texts, steps = values["history"].splitlines(), trainer.steps
    if values["steps_per_epoch"] != steps:
        raise ValueError(f"{values['steps_per_epoch']} steps an epoch, now {steps}")
    trainer.model.load_state_dict(values["model_state_dict"])
    trainer.step.optimizer.load_state_dict(values["optimizer_state_dict"])
    trainer.rate.load_state_dict(values["scheduler_state_dict"])
    trainer.control.load_state_dict(values["schedule_state"])
    closed = {level: betas.double().tolist() for level, betas in values["closed_betas"].items()}  # (epochs, steps)
    for row, text in enumerate(texts):
        record = EpochRecord.of(json.loads(text))
        betas = [trainer.open_betas(record.epoch, done) for done in range(steps)]
        path = {level: closed[level][row] if level in closed else [b[level] for b in betas] for level in trainer.levels}
        trainer.history.append(replace(record, path=path))
        if record.best:
            trainer.best = (record.monitored, record.epoch)
    trainer.told = texts
    trainer.done = trainer.saved = values["step"]
    trainer.engine.tally.table[: len(values["tally"])].copy_(values["tally"])
    trainer.stood = dict(values["stood"])
    if values["made_by"]["device"] == trainer.device.type:  # the precision found by trial is that of this device
        trainer.step.precision = {name: kind for kind, name in PRECISIONS.items()}[values["precision"]]
        trainer.tried = True
    trainer.seconds = dict(values["seconds"])
    torch.set_rng_state(values["rng_state"])


def rewind(trainer: Trainer, path: Path) -> None:
    """Make an older checkpoint at `path` the run's last again, and remove those of later epochs.

    The best becomes that of the epochs that are left, or `path` where its checkpoint is gone.
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
        trainer.notes.append(f"the checkpoint of the best epoch is gone: epoch {epoch} takes its place")
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
