"""`arcvae encode`: write the posteriors of examples as arrays or as a table."""

from pathlib import Path
from typing import Annotated, Any

from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption, output_option
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, usable_folder

File = Annotated[Path | None, output_option(help=".npz or .csv", show_default="codes-DATA-SPLIT.npz in the run folder")]


def encode(
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: reading.SplitOption = "test",
    runs_dir: reading.RunsOption = Path("runs"),
    output: File = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the posterior means and log variances of the examples of a split. --output is replaced."""
    import numpy as np
    import torch

    from arcvae_cli.evaluation.information import posteriors

    if output is not None and output.suffix not in (".npz", ".csv"):
        raise InputError(f"--output {output}: neither .npz nor .csv", "give a file of one of the two")
    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    corpus = reading.open_examples(loaded, data, split, console)
    file = output or (loaded.run or Path()) / f"codes-{corpus.name}-{split}.npz"
    usable_folder(file.parent, "--output")
    levels = posteriors(loaded.model, corpus, split, torch.arange(count := corpus.size(split)))
    arrays: dict[str, Any] = {}
    for name, level in levels.items():
        of = f"_{name}" if len(levels) > 1 else ""
        arrays |= {f"mean{of}": level.mean.cpu().numpy(), f"logvar{of}": level.logvar.cpu().numpy()}
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        if file.suffix == ".npz":
            np.savez_compressed(stream, **arrays)
        else:
            columns = {name: values.reshape(count, -1) for name, values in arrays.items()}
            header = ",".join(f"{name}_{place}" for name, part in columns.items() for place in range(part.shape[1]))
            np.savetxt(stream, np.hstack([*columns.values()]), "%.9g", ",", header=header, comments="")
    console.result(f"{count:,} examples of {corpus.name}, {split}: {', '.join(arrays)}")
    console.note(f"wrote {file}")
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    place = {"checkpoint": str(loaded.path), "epoch": loaded.epoch, "corpus": corpus.name, "split": split}
    console.json({**place, "arrays": shapes, "output": str(file)})
