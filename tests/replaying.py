"""A CUDA graph without CUDA: operators recorded once and replayed on the same memory.

As in a graph, Python does not run again, its numbers are burnt in, every tensor stays where it was, random numbers are
drawn anew from the default generator, and what would wait for the device is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

REFUSED = ("_local_scalar_dense", "item.default", "nonzero", "masked_select", "unique", "equal.default", "tolist")


class Recording(TorchDispatchMode):
    """Records what is called within it; `replay` does it again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func)
        masks = "aten.index" in name and any(tensor.dtype == torch.bool for tensor in tensors(args[1:2]))
        if masks or any(part in name for part in REFUSED):
            raise RuntimeError(f"{name} waits for the device")
        # other names for the same memory: shapes may be changed in place later
        held = pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, *held, [tensor.detach() for tensor in tensors(out)]))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, kept in self.calls:
            for place, new in zip(kept, tensors(func(*args, **kwargs)), strict=True):
                # a view and what is changed in place lie in memory that is already right
                if place.data_ptr() != new.data_ptr():
                    place.copy_(new)


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def record(function: Callable[[], object], warm_up: Callable[[], object]) -> Recording:
    """In place of `engine.record_graph`: the function runs while it is recorded, so its work is done once here."""
    warm_up()
    with Recording() as recording:
        function()
    return recording
