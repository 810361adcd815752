"""The processes of `arcvae train` on several GPUs: how they are started, and how one takes its part."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from arcvae_cli.commands.reading import importing
from arcvae_cli.errors import InputError
from arcvae_cli.settings import Settings
from arcvae_cli.signals import NAMES

if TYPE_CHECKING:
    from arcvae_cli.distributed import Ranks

GRACE = 30.0  # seconds that the other ranks have when one has failed


def started() -> int:
    """How many ranks this process is one of, as torchrun or `launch` says in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch(count: int) -> int:
    """Run this command line as so many ranks, pass signals on, and give the exit code of the first, or a failure."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "arcvae_cli", *sys.argv[1:]]
    processes: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)  # nothing to one that has ended

    for name in filter(lambda name: hasattr(signal, name), NAMES):
        if signal.getsignal(number := getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(number, forward)
    for rank in range(count):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        # a session of their own: Ctrl-C reaches them through `forward` and not a second time
        processes.append(subprocess.Popen(command, env={**os.environ, **shared, **own}, start_new_session=True))
    failed = 0.0
    while None in (codes := [process.poll() for process in processes]):
        failed = failed or (time.monotonic() if any(codes) else 0.0)
        if failed and time.monotonic() > failed + GRACE:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return codes[0] if codes[0] and codes[0] > 0 else int(any(codes))


@contextmanager
def joined(settings: Settings, gpus: int | None) -> Iterator[tuple[Ranks | None, str]]:
    """The ranks that this process is one of, None if it is alone, and its device; an error of one ends them all."""
    train, count = settings.train, started()
    if count == 1:
        yield None, train.device
        return
    with importing():
        from torch.cuda import device_count

        from arcvae_cli.distributed import Ranks
    if gpus is not None and gpus > device_count():
        raise InputError(f"--gpus {gpus}: this machine has {device_count()}", "use fewer, or leave it out")
    if train.batch_size % count:
        fix = f"use --batch-size {-(-train.batch_size // count) * count}"
        raise InputError(f"train.batch_size: {train.batch_size} cannot be divided among {count} ranks", fix)
    ranks, device = Ranks.join(train.device)
    try:
        yield ranks, device
        ranks.leave()
    except BaseException as error:
        cause = ranks.cause(error)
        ranks.leave(cause)
        if cause is error:
            raise
        raise cause from error
