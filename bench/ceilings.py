"""How near the step comes to what the machine can do: FLOP/s and bytes/s against a measured product and a copy.

In turns: square matrix products in fp32 and bf16, a copy that no cache holds, and arcvae's step with augmentation and
metrics. FLOPs of a step are those of its convolutions and linear layers, forward and backward, two a multiply-add
(`torch.utils.flop_counter`). Bytes are what its operators read and write, each by itself: the sizes of their tensors,
views left out; on a CPU a part of that is in its caches, so that the share may pass 1. The bound is the time that these
FLOPs and these bytes would take one after the other at the two ceilings, and the last ratio is the step's time by it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import common
import torch
from own import grid_settings, open_grids, own_steps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from arcvae_cli.engine import Engine
from arcvae_cli.step import choose_device


class Traffic(TorchDispatchMode):
    """Counts the operators that are called, and the bytes of what they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.calls = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
        if any(not alias.is_write for alias in aliases) or func.__name__.startswith(("empty", "detach")):
            return out  # a view, or memory without values
        self.calls += 1
        self.bytes += sum(size(leaf) for leaf in tree_leaves((args, kwargs, out)))
        return out


def size(leaf: object) -> int:
    """Bytes of the memory that a tensor takes; an expanded one takes less than it shows."""
    if not isinstance(leaf, Tensor):
        return 0
    return min(leaf.numel() * leaf.element_size(), leaf.untyped_storage().nbytes())


def counted(engine: Engine) -> tuple[int, int, int]:
    """FLOPs, bytes and operators of one step, run one by one."""
    engine.begin(1)
    engine.body()  # the optimiser's memory is there from the second step on
    with FlopCounterMode(display=False) as flops:
        engine.body()
    with Traffic() as traffic:
        engine.body()
    return flops.get_total_flops(), traffic.bytes, traffic.calls


def product(side: int, kind: torch.dtype, device: torch.device, wait: Callable[[], None]) -> common.Run:
    """A product of two square matrices, the median of three."""
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: statistics.median(common.timed(lambda: (torch.mm(left, right, out=out), wait())) for _ in range(3))


def copy(count: int, device: torch.device, wait: Callable[[], None]) -> common.Run:
    """A copy of so many bytes, the median of three."""
    source = torch.ones(count, dtype=torch.uint8, device=device)
    out = torch.empty_like(source)
    return lambda: statistics.median(common.timed(lambda: (out.copy_(source), wait())) for _ in range(3))


def main() -> None:
    parser = common.flags(__doc__, rounds=9)
    parser.add_argument("--steps", type=int, help="of a turn")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--side", type=int, help="of the matrices")
    parser.add_argument("--megabytes", type=int, help="of the copy")
    parser.add_argument("--name", default="ceilings", help="of the JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    cuda = device.type == "cuda"
    side, copied = given.side or (8192 if cuda else 1024), (given.megabytes or (2048 if cuda else 256)) * 2**20
    steps = given.steps or (100 if cuda else 3)
    wait, where = common.waiting(str(device)), common.machine(str(device), given.threads)
    runs: dict[str, common.Run] = {
        "fp32": product(side, torch.float32, device, wait),
        "bf16": product(side, torch.bfloat16, device, wait),
        "copy": copy(copied, device, wait),
    }
    counts, kinds = {}, {}
    for body in ("plain", "residual"):
        for batch in given.batch_sizes:
            settings = grid_settings({"body": body}, {"batch_size": batch})
            own = own_steps(settings, open_grids(settings.data, device), device)
            name = f"{body} body, batch {batch}, {own.how}"
            counts[name] = counted(own.engine)
            kinds[name] = "bf16" if own.engine.step.precision == torch.bfloat16 else "fp32"
            turn = max(1, steps * 128 // batch) if not cuda else steps
            runs[name] = lambda own=own, turn=turn: common.timed(lambda: (own.run(turn), wait())) / turn
    seconds = common.in_turns(runs, given.rounds)
    rates = {kind: 2 * side**3 / min(seconds[kind]) for kind in ("fp32", "bf16")}
    rates["copy"] = 2 * copied / min(seconds["copy"])
    print(common.place(where))
    print(f"  product of {side} x {side}: fp32 {rates['fp32'] / 1e9:,.0f}, bf16 {rates['bf16'] / 1e9:,.0f} GFLOP/s")
    print(f"  copy of {copied / 2**20:,.0f} MiB: {rates['copy'] / 1e9:,.1f} GB/s, read and written")
    results = []
    for name, (flops, moved, calls) in counts.items():
        own_product = rates[kinds[name]]
        bound = flops / own_product + moved / rates["copy"]
        taken = statistics.median(seconds[name])
        shares = flops / taken / own_product, moved / taken / rates["copy"]
        print(f"{name}: {1e3 * taken:.3g} ms a step, {flops / 1e9:.2f} GFLOP, {moved / 1e6:,.0f} MB, {calls} operators")
        print(f"  {flops / taken / 1e9:,.0f} GFLOP/s, {shares[0]:.2f} of the {kinds[name]} product's")
        print(f"  {moved / taken / 1e9:,.1f} GB/s, {shares[1]:.2f} of the copy's")
        print(f"  {taken / bound:.2f} times what both would take at their ceilings, one after the other")
        results.append(
            {
                "step": name,
                "seconds": seconds[name],
                "flops": flops,
                "bytes": moved,
                "operators": calls,
                "share_of_product": shares[0],
                "share_of_copy": shares[1],
                "times_the_bound": taken / bound,
            }
        )
    ceilings = {"fp32_flops_per_s": rates["fp32"], "bf16_flops_per_s": rates["bf16"], "copy_bytes_per_s": rates["copy"]}
    common.write(given.name, {**where, "side": side, "ceilings": ceilings, "results": results}, given.json)


if __name__ == "__main__":
    main()
