"""`arcvae diagnose`: the verdict on a VAE trained elsewhere, from a file of its posteriors."""

import inspect
from pathlib import Path
from typing import Annotated, Literal

import typer

from arcvae_cli.commands.options import JsonOption, QuietOption
from arcvae_cli.commands.reading import importing
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError

FIX = "give an .npz with mean and logvar (or std), both (examples, dimensions)"
File = Annotated[Path, typer.Argument(help=".npz of mean, logvar or std, and other arguments of arcvae.diagnose")]


def diagnose(
    file: File,
    beta: Annotated[float | None, typer.Option(min=0, help="weight of the KL in the loss, at its peak")] = None,
    free_bits: Annotated[float | None, typer.Option(min=0, help="nats of each dimension")] = None,
    reduction: Annotated[Literal["sum", "mean"] | None, typer.Option(help="of the reconstruction loss")] = None,
    positions: Annotated[int | None, typer.Option(min=1, help="of an example: pixels, cells, tokens")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 if a target is missed")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Judge a VAE that was trained elsewhere, by the posteriors of some examples; flags replace what the file says."""
    with importing():
        import numpy as np

        from arcvae_cli.data.arrays import refuse_large
        from arcvae_cli.data.files import reading
        from arcvae_cli.evaluation.diagnose import diagnose as judged
        from arcvae_cli.render.diagnosis import lines

    console, known = Console(quiet=quiet, as_json=as_json), {*inspect.signature(judged).parameters, "std"}
    try:
        with reading(file), file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            refuse_large(str(file), sum(info.file_size for info in arrays.zip.infolist()))
            values = {name: arrays[name][()] for name in arrays.files if name in known}
            ignored = [name for name in arrays.files if name not in values]
    except InputError as error:
        raise InputError(error.what, FIX) from error
    if "std" in values:
        std = values.pop("std")
        if std.dtype.kind not in "fiu" or not (std > 0).all():
            raise InputError(f"{file}: std is not above 0 everywhere", "give the standard deviations, or logvar")
        values.setdefault("logvar", 2.0 * np.log(std))
    if not {"mean", "logvar"} <= values.keys():
        raise InputError(f"{file}: no mean or no logvar; it has {', '.join(arrays.files)}", FIX)
    if ignored:
        console.note(f"not used: {', '.join(ignored)}")
    given = {"beta": beta, "free_bits": free_bits, "reduction": reduction, "positions": positions}
    found = judged(**values | {name: value for name, value in given.items() if value is not None})
    console.json({"file": str(file), **found.to_dict()})
    for line in lines(found.report, console.out.width):
        console.result(line)
    if strict and not found.ok:
        raise typer.Exit(1)
