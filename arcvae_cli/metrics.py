"""What a pass over batches adds up to: a row for each batch in a table on the device, read back once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.controllers import exact_type
from arcvae_cli.models.base import Batch, Output
from arcvae_cli.objective import Terms

HITS = 5  # columns that `hits` gives


@dataclass(frozen=True)
class EpochMetrics:
    """Means over the examples of some batches."""

    examples: int
    loss: float
    reconstruction: float
    kl_free: dict[str, float]  # by level, the KL term in nats after free bits and reduction
    kl_per_dim: dict[str, list[float]]  # by level, raw KL in nats of each group
    position: float  # share of positions that are right
    foreground: float  # share of positions that are not background that are right
    exact: float  # share of examples with every position right
    finite: bool  # no loss and no gradient was NaN or infinite

    @property
    def kl(self) -> float:
        return sum(sum(groups) for groups in self.kl_per_dim.values())  # nats per example

    @property
    def groups(self) -> list[float]:
        """Raw KL of every group in nats, level after level."""
        return [value for groups in self.kl_per_dim.values() for value in groups]


class MetricAccumulator:
    """A table on the device, a row for each batch, at a fixed address. `closed`: levels with closed loops."""

    def __init__(
        self,
        rows: int,
        levels: Mapping[str, int],
        background: int | None,
        device: torch.device | str = "cpu",
        closed: Sequence[str] = (),
    ) -> None:
        self.levels, self.background, self.closed = dict(levels), background, tuple(closed)
        # examples, loss, reconstruction, KL terms, kl_per_dim, norm of the gradient, betas, hits
        width = 4 + len(levels) + sum(levels.values()) + len(closed) + HITS
        self.table = torch.zeros(rows, width, dtype=exact_type(torch.device(device)), device=device)

    def add(self, row: int | Tensor, terms: Terms, output: Output, batch: Batch, norm: Tensor | None = None) -> None:
        """Write a batch, and the norm of its gradient, into a row: its number, or (1,) int64 that a graph reads."""
        exact = self.table.dtype
        loss = terms.loss.detach()
        means = torch.stack([loss, terms.reconstruction.detach(), *(free.detach() for free in terms.kl_free.values())])
        betas = [beta.reshape(1) for level in self.closed if isinstance(beta := terms.betas[level], Tensor)]
        parts = [
            loss.new_full((1,), len(batch.x)),
            means,
            *(kl_per_dim.detach() for kl_per_dim in terms.kl_per_dim.values()),
        ]
        parts += [loss.new_zeros(1) if norm is None else norm.reshape(1), *betas]
        line = torch.cat([*(part.to(exact) for part in parts), hits(output.logits.detach(), batch, self.background)])
        if isinstance(row, Tensor):
            self.table.index_copy_(0, row, line[None])
        else:
            self.table[row] = line

    def read(self, rows: int | None = None) -> MetricRows:
        """The first `rows` rows, by default all: a CPU-GPU sync."""
        return MetricRows(self.table[:rows].cpu().double().numpy(), self.levels, self.closed)


@dataclass(frozen=True)
class MetricRows:
    """The rows of an accumulator on the host: (n, columns) float64."""

    rows: NDArray[np.float64]
    levels: Mapping[str, int]
    closed: Sequence[str]

    def mean(self, rows: slice = slice(None)) -> EpochMetrics:
        chosen = self.rows[rows]
        sizes, n = chosen[:, 0], float(chosen[:, 0].sum())
        # a row's means weigh as many times as it has examples; its hits are sums
        loss, reconstruction, *rest = (sizes @ chosen[:, 1:-HITS] / n).tolist()
        right, positions, found, foreground, exact = chosen[:, -HITS:].sum(axis=0).tolist()
        columns = iter(rest)
        kl_free = {name: next(columns) for name in self.levels}
        kl_per_dim = {name: list(islice(columns, groups)) for name, groups in self.levels.items()}
        return EpochMetrics(
            examples=int(n),
            loss=loss,
            reconstruction=reconstruction,
            kl_free=kl_free,
            kl_per_dim=kl_per_dim,
            position=right / max(positions, 1.0),
            foreground=found / foreground if foreground else 0.0,
            exact=exact / n,
            finite=bool(np.isfinite(chosen).all()),
        )

    @property
    def bad(self) -> int | None:
        """The first row with a NaN or an infinity, None where all are finite."""
        found = np.flatnonzero(~np.isfinite(self.rows).all(axis=1))
        return int(found[0]) if len(found) else None

    def betas(self) -> dict[str, list[float]]:
        first = self.rows.shape[1] - HITS - len(self.closed)
        return {level: self.rows[:, first + at].tolist() for at, level in enumerate(self.closed)}


class FiniteCheck:
    """Whether an accumulator is finite, without a CPU-GPU sync. Rows of earlier epochs were found finite then."""

    def __init__(self, metrics: MetricAccumulator) -> None:
        self.table = metrics.table
        cuda = self.table.device.type == "cuda"
        self.event = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        self.answer = torch.ones((), dtype=torch.bool, pin_memory=cuda)

    def failed(self) -> bool:
        """Whether the check that the last call started found a NaN or an infinity; starts another one."""
        done = self.event is None or self.event.query()  # type: ignore[no-untyped-call]
        failed = done and not bool(self.answer)
        self.answer.copy_(self.table.isfinite().all(), non_blocking=self.event is not None)
        if self.event is not None:
            self.event.record()
        return failed


def hits(logits: Tensor, batch: Batch, background: int | None) -> Tensor:
    """(HITS,) sums: right positions, positions, right and not background, not background, wholly right examples."""
    right = logits.argmax(dim=1) == batch.x  # (B, *positions)
    valid = right.new_ones(()).expand_as(right) if batch.valid is None else batch.valid
    front = valid if background is None else (batch.x != background) & valid
    exact = (right | ~valid).flatten(1).all(dim=1)
    right = right & valid
    sums = [right.sum(), valid.sum(), (right & front).sum(), front.sum(), exact.sum()]
    return torch.stack(sums).to(exact_type(logits.device))
