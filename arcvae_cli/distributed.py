"""Several processes, the ranks, that train one model together: each on its rows of every batch (data parallel)."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from arcvae_cli.errors import ArcvaeError, InputError

T = TypeVar("T")


class Ranks:
    """The processes of a run, this one being number `rank` of `count`. One process alone communicates nothing.

    `device`: that of this rank, None for the one of the settings.
    """

    def __init__(self, rank: int = 0, count: int = 1, group: Any = None, device: str | None = None) -> None:
        self.rank, self.count, self.device = rank, count, device
        self.group = group  # of gloo, on the host: what the ranks agree on
        self.first = rank == 0  # whether this one writes and shows what the run has to say

    @classmethod
    def join(cls, name: str) -> Ranks:
        """The ranks that torchrun has started; `name`: see `train.device`."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
        if name not in ("cpu", "cuda"):
            raise InputError(f"train.device: {name} is one device, each rank takes its own", "use auto, cuda or cpu")
        cuda = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if name == "cuda" else None
        if cuda is not None:
            torch.cuda.set_device(cuda)
        dist.init_process_group("gloo" if cuda is None else "nccl", device_id=cuda)
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"), str(cuda or "cpu"))

    def rows(self, size: int) -> slice:
        """The rows of a batch of so many that are this rank's."""
        each = size // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.count > 1:
            dist.all_reduce(x)
        return x

    def average(self, tensors: list[Tensor]) -> None:
        """Put means over the ranks in place of tensors, such as gradients, in one exchange."""
        if self.count > 1:
            flat = self.sum(torch.cat([x.flatten() for x in tensors])) / self.count
            parts = torch.split(flat, [x.numel() for x in tensors])
            torch._foreach_copy_(tensors, [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)])

    def most(self, *flags: int) -> list[int]:
        """The largest of each flag over the ranks, on all of them; waits for the others, not for the device."""
        if self.count == 1:
            return [*flags]
        told = torch.tensor(flags)
        dist.all_reduce(told, dist.ReduceOp.MAX, self.group)
        return [int(value) for value in told]

    def share(self, value: T) -> T:
        """The value of the first rank, on all of them."""
        held = [value]
        if self.count > 1:
            dist.broadcast_object_list(held, group=self.group)
        return held[0]

    def cause(self, error: BaseException) -> BaseException:
        """What to tell of an error: that another rank has ended, where this one only lost the connection to it."""
        if self.count == 1 or not isinstance(error, RuntimeError) or "onnection" not in str(error):
            return error
        return ArcvaeError("another rank has ended: see what it says", "resume the run with as many ranks")

    def leave(self, failed: bool = False) -> None:
        """End the communication of this rank, which the others notice if it has failed."""
        if self.count > 1:
            group, self.count, self.group = self.group, 1, None  # whose threads must end before Python does
            with suppress(RuntimeError):
                # NCCL would wait for exchanges that no other rank takes part in any more
                dist.destroy_process_group(group if failed and self.device != "cpu" else None)


ALONE = Ranks()


class WholeBatch(TorchFunctionMode):
    """While entered, a rank draws for the whole batch of `size` and takes its own rows, dropout included.

    So the ranks together draw what one process draws. Dropout within a GRU of PyTorch draws the same on every rank.
    """

    def __init__(self, ranks: Ranks, size: int) -> None:
        super().__init__()
        self.rows, self.each, self.size = ranks.rows(size), size // ranks.count, size

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn_like, torch.rand_like, functional.dropout) and len(args[0]) == self.each:
            x = args[0]
            size = (self.size, *x.shape[1:])
            whole = torch.empty_permuted(size, x.dim_order(), dtype=x.dtype, device=x.device).fill_(1)
            drawn = func(whole, *args[1:], **kwargs)[self.rows]
            return x * drawn if func is functional.dropout else drawn
        if func in (torch.rand, torch.randn, torch.randint):
            before, shape = (args[:-1], args[-1]) if isinstance(args[-1], tuple) else ((), args)
            if shape[0] == self.each:
                return func(*before, (self.size, *shape[1:]), **kwargs)[self.rows]
        return func(*args, **kwargs)
