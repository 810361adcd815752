"""`arcvae encode`: write the posteriors of examples as arrays or a table."""

from pathlib import Path
from typing import Annotated, Any, Literal

from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption, output_option
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, usable_folder

FILE = "file, .npz (arrays) or .csv (a row for each example)"


def encode(
    checkpoint: reading.CheckpointOption = "vae_best.pth",
    device: reading.DeviceOption = "auto",
    data: reading.DataOption = None,
    split: Annotated[
        Literal["train", "val", "test", "all"], reading.input_option(help="split of the examples, or all three")
    ] = "test",
    runs_dir: reading.RunsOption = Path("runs"),
    output: Annotated[Path | None, output_option(help=FILE, show_default="codes-DATA-SPLIT.npz of the run")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the posterior mean and log variance of every example, its index and its split; --output is replaced.

    A level below another is encoded given the mean of that one. `arcvae diagnose` reads the .npz.
    """
    import numpy as np
    import torch

    from arcvae_cli.data.arrays import SPLITS
    from arcvae_cli.domains.base import write_lines
    from arcvae_cli.evaluation.information import posteriors

    if output is not None and output.suffix not in (".npz", ".csv"):
        raise InputError(f"--output {output}: neither .npz nor .csv", "give one of the two")
    console = Console(quiet=quiet, as_json=as_json)
    loaded = reading.open_checkpoint(checkpoint, runs_dir, device, console)
    corpus = reading.open_examples(loaded, data, "train" if split == "all" else split, console)
    file = output or (loaded.run or Path()) / f"codes-{corpus.name}-{split}.npz"
    usable_folder(file.parent, "--output")
    sizes = {name: corpus.size(name) for name in (SPLITS if split == "all" else (split,)) if corpus.size(name)}
    found = [posteriors(loaded.model, corpus, name, torch.arange(size)) for name, size in sizes.items()]
    arrays: dict[str, Any] = {"index": np.concatenate([np.arange(size) for size in sizes.values()])}
    arrays["split"] = np.repeat(list(sizes), list(sizes.values()))
    for level in loaded.model.level_shapes:
        end = f"_{level}" if len(loaded.model.level_shapes) > 1 else ""
        for part in ("mean", "logvar"):
            values = torch.cat([getattr(levels[level], part) for levels in found])
            arrays[part + end] = values.cpu().numpy()
    if file.suffix == ".npz":
        with atomic_write(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
    else:
        flat = {name: values.reshape(len(values), -1) for name, values in arrays.items()}
        header = [
            name if name in ("index", "split") else f"{name}_{i}" for name in flat for i in range(flat[name].shape[1])
        ]
        rows = zip(*(values.tolist() for values in flat.values()), strict=True)
        lines = [
            ",".join(f"{value:.9g}" if isinstance(value, float) else str(value) for part in row for value in part)
            for row in rows
        ]
        write_lines(file, [",".join(header), *lines])
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    console.result(f"{sum(sizes.values()):,} examples of {corpus.name} {split}: {', '.join(arrays)}")
    console.note(f"wrote {file}")
    place = {"checkpoint": str(loaded.path), "epoch": loaded.epoch, "corpus": corpus.name, "splits": sizes}
    console.json({**place, "arrays": shapes, "output": str(file)})
