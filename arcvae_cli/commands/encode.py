"""`arcvae encode`: write the posteriors of examples as arrays or as a table."""

from pathlib import Path
from typing import Annotated, Any, Literal

from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption, output_option
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, usable_folder

Split = Annotated[Literal["train", "val", "test", "all"], reading.input_option(help="split of the examples, or all")]
File = Annotated[Path | None, output_option(help=".npz or .csv", show_default="codes-DATA-SPLIT.npz in the run folder")]


def encode(
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: Split = "test",
    runs_dir: reading.RunsOption = Path("runs"),
    output: File = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write posterior means and log variances of examples, with their index and split. --output is replaced."""
    import numpy as np
    import torch

    from arcvae_cli.data.arrays import SPLITS
    from arcvae_cli.evaluation.information import posteriors

    if output is not None and output.suffix not in (".npz", ".csv"):
        raise InputError(f"--output {output}: neither .npz nor .csv", "give a file of one of the two")
    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    corpus = reading.open_examples(loaded, data, "train" if split == "all" else split, console)
    file = output or (loaded.run or Path()) / f"codes-{corpus.name}-{split}.npz"
    usable_folder(file.parent, "--output")
    sizes = {name: corpus.size(name) for name in SPLITS if split in ("all", name) and corpus.size(name)}
    found = [posteriors(loaded.model, corpus, name, torch.arange(size)) for name, size in sizes.items()]
    arrays: dict[str, Any] = {"index": np.concatenate([np.arange(size) for size in sizes.values()])}
    arrays["split"] = np.repeat(list(sizes), list(sizes.values()))
    for level in found[0]:
        for part in ("mean", "logvar"):
            values = torch.cat([getattr(levels[level], part) for levels in found]).cpu().numpy()
            arrays[f"{part}_{level}" if len(found[0]) > 1 else part] = values
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        if file.suffix == ".npz":
            np.savez_compressed(stream, **arrays)
        else:
            parts = {name: values.reshape(len(values), -1).astype(object) for name, values in arrays.items()}
            names = [f"{name}_{place}" for name, part in parts.items() for place in range(part.shape[1])]
            header, forms = ",".join(["index", "split", *names[2:]]), ["%d", "%s", *["%.9g"] * len(names[2:])]
            np.savetxt(stream, np.concatenate([*parts.values()], axis=1), forms, ",", header=header, comments="")
    console.result(f"{len(arrays['index']):,} examples of {corpus.name}, {split}: {', '.join(arrays)}")
    console.note(f"wrote {file}")
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    place = {"checkpoint": str(loaded.path), "epoch": loaded.epoch, "corpus": corpus.name, "splits": sizes}
    console.json({**place, "arrays": shapes, "output": str(file)})
