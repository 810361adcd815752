"""Where the time of a step goes, by operator: what remains to be made faster.

On CUDA the kernels of a turn of steps, as the engine runs them, by PyTorch's profiler, and how much of the turn the
device was busy. On a CPU each operator is timed as it is called, since the profiler there costs more than small
operators do; what is beside them is Python and the dispatcher, a part of it that of the timing itself.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import common
import torch
from own import Own, grid_settings, open_grids, own_steps
from torch.utils._python_dispatch import TorchDispatchMode

from arcvae_cli.step import choose_device


class Clock(TorchDispatchMode):
    """Seconds and calls of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self.seconds[func.__name__] += time.perf_counter() - began  # type: ignore[assignment]
        self.calls[func.__name__] += 1
        return out


def on_cpu(own: Own, steps: int) -> tuple[Counter[str], Counter[str], float]:
    """Seconds and calls of so many steps by operator, and the seconds of all."""
    with Clock():
        own.run(1)  # PyTorch imports much where a step is looked at for the first time
    with Clock() as clock:
        taken = common.timed(lambda: own.run(steps))
    return clock.seconds, clock.calls, taken


def on_cuda(own: Own, steps: int) -> tuple[Counter[str], Counter[str], float]:
    """Seconds and calls of so many steps by kernel, and the seconds of all."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        taken = common.timed(lambda: (own.run(steps), torch.cuda.synchronize()))
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.key_averages():
        seconds[event.key] += 1e-6 * event.self_device_time_total
        calls[event.key] += event.count
    return seconds, calls, taken


def main() -> None:
    parser = common.flags(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, help="that are looked at")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--bodies", nargs="+", default=["plain", "residual"])
    parser.add_argument("--shown", type=int, default=15, help="operators that are listed")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    steps = given.steps or (200 if device.type == "cuda" else 10)
    wait, where = common.waiting(str(device)), common.machine(str(device), given.threads)
    results = []
    for body in given.bodies:
        settings = grid_settings({"body": body}, {"batch_size": given.batch_size})
        own = own_steps(settings, open_grids(settings.data, device), device)
        turn = lambda own=own: common.timed(lambda: (own.run(steps), wait())) / steps  # noqa: E731
        whole = min(common.in_turns({"step": turn}, given.rounds)["step"])
        seconds, calls, taken = (on_cuda if device.type == "cuda" else on_cpu)(own, steps)
        inside = sum(seconds.values()) / steps
        share = inside / (taken / steps)
        print(f"{body} body, batch {given.batch_size}, {own.how}, {common.place(where)}: {1e3 * whole:.3g} ms a step")
        print(f"  {share:.2f} of it within operators, {sum(calls.values()) / steps:.0f} of them")
        for name, spent in seconds.most_common(given.shown):
            part = spent / steps
            print(f"  {1e6 * part:9.1f} us {part / inside:6.1%} {calls[name] / steps:6.1f} x {name[:90]}")
        results.append(
            {
                "body": body,
                "how": own.how,
                "seconds_a_step": whole,
                "share_within_operators": share,
                "operators": {name: [spent / steps, calls[name] / steps] for name, spent in seconds.most_common()},
            }
        )
    common.write("remains", {**where, "batch_size": given.batch_size, "results": results}, given.json)


if __name__ == "__main__":
    main()
