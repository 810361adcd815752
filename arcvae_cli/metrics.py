"""What a pass over batches adds up to: a row for each batch in a table on the device, read back once."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.controllers import exact_type
from arcvae_cli.distributed import Ranks
from arcvae_cli.models.base import Batch, Output
from arcvae_cli.objective import Terms

HITS = 5  # columns of sums: right positions, positions, the same two but for the background, wholly right examples


@dataclass(frozen=True)
class EpochMetrics:
    """Means over the examples of some batches."""

    examples: int
    loss: float
    reconstruction: float
    clamped_kl: dict[str, float]  # by level, the KL term in nats after free bits and reduction
    kl_per_dim: dict[str, list[float]]  # by level, raw KL in nats of each group
    position: float  # share of positions that are right
    foreground: float | None  # share of positions that are not background that are right, None without any
    exact: float  # share of examples with every position right
    mmd: float | None = None  # of the aggregate posterior to the prior, where the loss has it

    @property
    def kl(self) -> float:
        return sum(map(sum, self.kl_per_dim.values()))  # nats per example

    @property
    def groups(self) -> list[float]:
        """Raw KL of every group in nats, level after level."""
        return [value for groups in self.kl_per_dim.values() for value in groups]


class MetricAccumulator:
    """A table on the device, a row for each batch, at a fixed address; `mmd`: whether the loss has it."""

    def __init__(
        self, rows: int, levels: Mapping[str, int], background: int | None, device: torch.device, mmd: bool = False
    ) -> None:
        self.levels, self.background, self.mmd = dict(levels), background, mmd
        # examples, loss, reconstruction, KL terms, kl_per_dim, mmd if any, norm of the gradient, betas, hits
        width = 4 + 2 * len(levels) + sum(levels.values()) + mmd + HITS
        self.table = torch.zeros(rows, width, dtype=exact_type(device), device=device)
        cuda = self.table.device.type == "cuda"  # where `recent_loss` is copied without waiting for it
        self.copied = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        self.copy, self.pending = torch.zeros((), dtype=self.table.dtype, pin_memory=cuda), False

    @torch.no_grad()
    def add(self, row: int | Tensor, terms: Terms, output: Output, batch: Batch, norm: Tensor | None = None) -> None:
        """Write a batch, and the norm of its gradient, into a row: its number, or (1,) int64 that a graph reads."""
        losses = [terms.loss, terms.reconstruction, *terms.clamped_kl.values(), *terms.kl_per_dim.values()]
        losses += [] if terms.mmd is None else [terms.mmd]
        numbers = [len(batch.x), *losses, 0.0 if norm is None else norm, *(terms.betas[level] for level in self.levels)]
        parts = [x.reshape(-1) if isinstance(x, Tensor) else self.table.new_full((1,), x) for x in numbers]
        right = output.logits.argmax(dim=1) == batch.x  # (B, *positions)
        counted = batch.valid if batch.scored is None else batch.scored
        counted = right.new_ones(()).expand_as(right) if counted is None else counted
        foreground = torch.zeros_like(counted) if self.background is None else (batch.x != self.background) & counted
        exact = (right | ~counted).flatten(1).all(dim=1)
        right = right & counted
        hits = [right.sum(), counted.sum(), (right & foreground).sum(), foreground.sum(), exact.sum()]
        line = torch.cat([*parts, torch.stack(hits)])  # of the type of the table
        if isinstance(row, Tensor):
            self.table.index_copy_(0, row, line[None])
        else:
            self.table[row] = line

    def gather(self, first: int, last: int, ranks: Ranks) -> None:
        """Make rows of this rank's part of batches those of the whole batches, on every rank."""
        rows = torch.zeros_like(self.table)  # whole, since the order in which ranks are added depends on the place
        rows[first:last] = self.table[first:last]
        ranks.sum(rows)
        same = slice(-HITS - len(self.levels) - 1, -HITS)  # norm and betas
        rows[:, same] = self.table[:, same]
        rows[:, 1 : same.start] /= ranks.count
        self.table[first:last] = rows[first:last]

    def read(self, rows: int | None = None) -> "MetricRows":
        """The first `rows` rows, by default all: a CPU-GPU sync."""
        return MetricRows(self.table[:rows].cpu().double().numpy(), self.levels, self.mmd)

    def recent_loss(self, rows: int, last: int) -> float | None:
        """The mean loss of the `last` of so many rows without a CPU-GPU sync; NaN if any number is not finite.

        On CUDA a call returns what an earlier call has started, or None.
        """
        mean = self.table[max(0, rows - last) : rows, 1].mean()
        loss = torch.where(self.table.isfinite().all(), mean, torch.nan)
        if self.copied is None:
            return float(loss)
        ready = self.pending and self.copied.query()  # type: ignore[no-untyped-call]
        found = float(self.copy) if ready else None
        if ready or not self.pending:
            self.copy.copy_(loss, non_blocking=True)
            self.copied.record()
            self.pending = True
        return found


@dataclass(frozen=True)
class MetricRows:
    """The rows of an accumulator on the host: (n, columns) float64."""

    rows: NDArray[np.float64]
    levels: Mapping[str, int]
    mmd: bool = False

    def mean(self) -> EpochMetrics:
        sizes, n = self.rows[:, 0], float(self.rows[:, 0].sum())
        # a row's means weigh as many times as it has examples; its hits are sums
        columns = iter((sizes @ self.rows[:, 1:-HITS] / n).tolist())
        right, positions, found, foreground, exact = self.rows[:, -HITS:].sum(axis=0).tolist()
        return EpochMetrics(
            examples=int(n),
            loss=next(columns),
            reconstruction=next(columns),
            clamped_kl={name: next(columns) for name in self.levels},
            kl_per_dim={name: list(islice(columns, groups)) for name, groups in self.levels.items()},
            position=right / max(positions, 1.0),
            foreground=found / foreground if foreground else None,
            exact=exact / n,
            mmd=next(columns) if self.mmd else None,
        )

    @property
    def first_nonfinite(self) -> int | None:
        """The first row with a NaN or an infinity, None where all are finite."""
        return next(iter(np.flatnonzero(~np.isfinite(self.rows).all(axis=1)).tolist()), None)

    def betas(self) -> dict[str, list[float]]:
        """Beta of every row, by level."""
        first = self.rows.shape[1] - HITS - len(self.levels)
        return {level: self.rows[:, first + index].tolist() for index, level in enumerate(self.levels)}
