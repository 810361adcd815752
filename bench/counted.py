"""`arcvae`, its finished optimiser steps counted in a file that outlives SIGKILL, and a figure spoilt if asked for.

python bench/counted.py FILE [loss|gradient]@N ARGUMENTS of arcvae. FILE has 8 bytes: how many steps this process has
done. At its step N the loss, or a gradient, is made no number; `never@0` leaves all as it is.
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
from dataclasses import replace
from typing import Any


def install(file: str, kind: str, number: int) -> None:
    """Put the counter, and what spoils a figure, around the training step."""
    from arcvae_cli.step import Step

    with open(file, "r+b") as opened:
        memory = mmap.mmap(opened.fileno(), 8)
    real, done = Step.train, 0

    def train(step: Step, batch: Any, weigh: Any) -> Any:
        nonlocal done
        plain, hook = step.forward, None
        if (kind, done + 1) == ("loss", number):

            def forward(batch: Any, weigh: Any) -> Any:
                terms, output = plain(batch, weigh)
                return replace(terms, loss=terms.loss * math.nan), output

            step.forward = forward
        elif (kind, done + 1) == ("gradient", number):
            hook = step.parameters[0].register_hook(lambda grad: grad * math.inf)
        try:
            return real(step, batch, weigh)
        finally:
            step.forward = plain
            if hook is not None:
                hook.remove()
            done += 1
            memory[:] = struct.pack("<q", done)

    Step.train = train  # type: ignore[method-assign]


def main() -> None:
    file, spoilt = sys.argv[1:3]
    del sys.argv[1:3]
    kind, _, number = spoilt.partition("@")
    from arcvae_cli.cli import main as arcvae
    from arcvae_cli.commands import train

    real = train.new_model

    def new_model(*given: Any) -> Any:
        """Called when PyTorch is there anyway: the start of the process is what it is without this script."""
        install(file, kind, int(number))
        return real(*given)

    train.new_model = new_model
    arcvae()


if __name__ == "__main__":
    main()
