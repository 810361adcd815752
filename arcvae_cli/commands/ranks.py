"""The processes of `arcvae train` on several GPUs: how they are started, and how one takes its part."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from arcvae_cli.commands.reading import importing
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.settings import Settings
from arcvae_cli.signals import NAMES, exit_code

if TYPE_CHECKING:
    from arcvae_cli.distributed import Ranks


def launch(count: int) -> int:
    """Run this command line as so many ranks, with torchrun, which passes signals on. Gives the exit code."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.disable()  # the ranks say themselves what torchrun says of them
    names = [name for name in NAMES if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]
    flags = ["--standalone", "--local-addr=127.0.0.1", "--shutdown-timeout=600", f"--nproc-per-node={count}"]
    try:
        main([*flags, f"--signals-to-handle={','.join(names)}", "-m", "arcvae_cli", *sys.argv[1:]])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise ArcvaeError(f"rank {rank} was ended by signal {-failure.exitcode}", "resume the run") from None
        return int(failure.exitcode)
    except SignalException as error:
        return exit_code(error.sigval)
    return 0


@contextmanager
def joined(settings: Settings, gpus: int | None) -> Iterator[Ranks | None]:
    """The ranks that this process is one of, None if it is alone; an error of one ends them all.

    Without torchrun, `gpus` above 1 are started here, and this process ends with their exit code.
    """
    train, count = settings.train, int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        if gpus is not None and gpus > 1:
            raise typer.Exit(launch(gpus))
        yield None
        return
    with importing():
        from torch.cuda import device_count

        from arcvae_cli.distributed import Ranks
    here, found = int(os.environ["LOCAL_WORLD_SIZE"]), device_count()
    if here > found and (gpus is not None or (found and train.device != "cpu")):
        fix = "start a rank for each GPU, or use torchrun with --device cpu"
        raise InputError(f"{here} ranks need {here} GPUs: this machine has {found}", fix)
    if train.batch_size % count:
        fix = f"use --batch-size {-(-train.batch_size // count) * count}"
        raise InputError(f"train.batch_size: {train.batch_size} cannot be divided among {count} ranks", fix)
    objective = settings.objective
    alone = {"model.mean_norm": getattr(settings.model, "mean_norm", 0.0) > 0.0}
    alone |= {f"objective.{key}": getattr(objective, key) > 0.0 for key in ("mmd", "prior_draws")}
    alone["objective.importance_samples"] = objective.importance_samples > 1
    if key := next((key for key, on in alone.items() if on), None):
        raise InputError(f"{key}: needs a batch in one process, not in {count} ranks", "train with one, or unset it")
    ranks = Ranks.join(train.device)
    try:
        yield ranks
    except BaseException as error:
        cause = ranks.cause(error)
        ranks.leave(failed=True)
        raise cause from None
