"""What a step, an epoch and a corpus cost as they grow: batch size, latent size, number of grids; and peak memory.

Steps are arcvae's, with augmentation and metrics, in turns; each is compared with the run's default (batch 128, 10
dimensions, 100,000 grids). A corpus is one of `shapes`, as ready arrays on the disk: opening it, laying out an epoch
and how much memory it keeps on the device. Peak memory is what tensors took at once on CUDA, elsewhere the most that
a process had in memory that did nothing but a few steps.
"""

from __future__ import annotations

import statistics
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from own import grid_settings, open_grids, own_steps

from arcvae_cli.data.corpus import GridCorpus
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.machine import peak_memory
from arcvae_cli.settings import DataSettings
from arcvae_cli.step import choose_device

BATCH, LATENT, GRIDS = 128, 10, 100_000


def peak(batch: int, latent: int, device: torch.device, threads: int) -> int:
    """The most bytes that a few steps take, the corpus and all else of the process included."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        others = torch.cuda.memory_allocated(device)  # of the runs that are made already
        return take_steps(batch, latent, str(device), threads) - others
    with get_context("spawn").Pool(1) as pool:  # a peak of a process's memory stays: a new one for each
        return pool.apply(take_steps, (batch, latent, str(device), threads))


def take_steps(batch: int, latent: int, device: str, threads: int) -> int:
    """A few steps, and the peak of the process that made them."""
    torch.set_num_threads(threads)
    where = torch.device(device)
    settings = grid_settings({"latent_dim": latent}, {"batch_size": batch})
    own_steps(settings, open_grids(settings.data, where), where).run(3)
    return peak_memory(where)


def mebibytes(count: int) -> str:
    """In words."""
    return f"{count / 2**20:,.1f} MiB"


def steps_by(
    key: str, values: list[int], default: int, corpus: GridCorpus, device: torch.device, given: Any
) -> list[dict[str, Any]]:
    """Seconds of a step and of an example, by batch size or by latent size."""
    wait = common.waiting(str(device))
    runs, peaks, sizes, how = {}, {}, {}, ""
    for value in values:
        batch, latent = (value, LATENT) if key == "batch" else (BATCH, value)
        own = own_steps(grid_settings({"latent_dim": latent}, {"batch_size": batch}), corpus, device)
        if key == "batch" or device.type == "cuda":  # on a CPU what it takes drowns in what the process does
            peaks[value] = peak(batch, latent, device, given.threads)
        turn = given.steps or (100 if device.type == "cuda" else max(1, 8 * BATCH // batch))
        sizes[value], how = batch, own.how
        runs[str(value)] = lambda own=own, turn=turn: common.timed(lambda: (own.run(turn), wait())) / turn
    seconds = common.in_turns(runs, given.rounds)
    print(f"{'batch size' if key == 'batch' else 'latent size'}, {how}")
    results = []
    each = {value: [taken / sizes[value] for taken in seconds[str(value)]] for value in values}
    for value in values:
        found = common.ratio(each[value], each[default])
        taken = statistics.median(seconds[str(value)])
        memory = f"; peak memory {mebibytes(peaks[value])}" if value in peaks else ""
        print(
            f"  {value:6}: {1e3 * taken:8.3g} ms a step, {1e6 * taken / sizes[value]:7.3g} us an example, "
            f"{found.median:.2f} times that of {default}{memory}"
        )
        own_numbers = {"seconds_a_step": seconds[str(value)], "peak_bytes": peaks.get(value), **found.table()}
        results.append({key: value, **own_numbers})
    return results


def corpora(sizes: list[int], device: torch.device, given: Any) -> list[dict[str, Any]]:
    """Seconds to open a corpus and to lay out an epoch, by its size, and the memory it keeps."""
    wait = common.waiting(str(device))
    opens, layouts, kept = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = Path(folder) / f"{size}.npz"
            shapes = build_shapes(size)
            np.savez(path, grids=shapes.x, split=shapes.split)
            data = DataSettings(path=path)
            corpus = open_grids(data, device)
            kept[size] = sum(corpus.grids(split).numel() for split in ("train", "val", "test"))
            own = own_steps(grid_settings({}, {}), corpus, device)
            opens[str(size)] = lambda data=data: common.timed(lambda: (open_grids(data, device), wait()))
            layouts[str(size)] = lambda own=own: common.timed(lambda: (own.engine.begin(1), wait()))
        opened, laid = common.in_turns(opens, given.rounds), common.in_turns(layouts, given.rounds)
    print("corpus")
    results = []
    for size in sizes:
        name, default = str(size), str(max(sizes))
        found = common.ratio(opened[name], opened[default])
        print(
            f"  {size:7,} grids: opened in {1e3 * statistics.median(opened[name]):6.1f} ms, {found.median:.2f} times "
            f"that of {int(default):,}; an epoch laid out in {1e3 * statistics.median(laid[name]):.2f} ms; "
            f"{mebibytes(kept[size])} on the device"
        )
        numbers = {"open_s": opened[name], "epoch_s": laid[name], "bytes": kept[size], **found.table()}
        results.append({"grids": size, **numbers})
    return results


def main() -> None:
    parser = common.flags(__doc__, rounds=7)
    parser.add_argument("--steps", type=int, help="of a turn")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--latent-sizes", type=int, nargs="+", default=[2, 10, 32, 128, 512])
    parser.add_argument("--grids", type=int, nargs="+", default=[10_000, 30_000, GRIDS])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    where = common.machine(str(device), given.threads)
    print(common.place(where))
    settings = grid_settings({}, {})
    corpus = open_grids(settings.data, device)
    results = {
        "batch": steps_by("batch", sorted({*given.batch_sizes, BATCH}), BATCH, corpus, device, given),
        "latent": steps_by("latent", sorted({*given.latent_sizes, LATENT}), LATENT, corpus, device, given),
        "corpus": corpora(sorted(given.grids), device, given),
    }
    common.write("scaling", {**where, **results}, given.json)


if __name__ == "__main__":
    main()
