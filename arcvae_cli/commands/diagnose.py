"""`arcvae diagnose`: the verdict on a VAE trained elsewhere, from a file of its posteriors."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.commands.reading import importing
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError


def diagnose(
    file: Annotated[Path, typer.Argument(help=".npz of mean and logvar, both (examples, dimensions)")],
    beta: Annotated[float | None, typer.Option(min=0, help="weight of the KL in the loss, at its peak")] = None,
    free_bits: Annotated[float, typer.Option(min=0, help="nats of each dimension")] = 0.0,
    reduction: Annotated[Literal["sum", "mean"], typer.Option(help="of the reconstruction loss")] = "sum",
    positions: Annotated[int | None, typer.Option(min=1, help="of an example: pixels, cells, tokens")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 if a target is missed")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Judge a VAE that was trained elsewhere, by the posteriors of some examples."""
    with importing():
        import numpy as np

        from arcvae_cli.data.arrays import refuse_large
        from arcvae_cli.data.files import reading
        from arcvae_cli.evaluation.diagnose import diagnose as judged
        from arcvae_cli.render.diagnosis import show

    console = Console(quiet=quiet, as_json=as_json)
    try:
        with reading(file), file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            refuse_large(str(file), sum(info.file_size for info in arrays.zip.infolist()))
            codes = {name: arrays[name] for name in ("mean", "logvar")}
    except InputError as error:
        raise InputError(error.what, "give an .npz with mean and logvar, both (examples, dimensions)") from error
    found = judged(**codes, beta=beta, free_bits=free_bits, reduction=reduction, positions=positions)
    console.json({"file": str(file), **found.report})
    show(found.report, console)
    if strict and not found.ok:
        raise typer.Exit(1)
