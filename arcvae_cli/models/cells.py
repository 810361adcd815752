"""An autoregressive decoder of grids: masked convolutions over the cells in raster order (van den Oord et al. 2016).

p(x|z) is the product over the cells of softmax(a + b). a: the factorised decoder's logits, of z alone; b: of the cells
before, of the features that this decoder makes of z beside them (Gulrajani et al. 2017), and a score for the class of
each near cell before, which copies it whatever class it is (as pointers do: Vinyals et al. 2015).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli.settings import DecoderSettings

FEATURES, WIDTH = 32, 64  # channels of the map of z, and of the convolutions
REACH = 3  # rows above and columns to each side that the first layer sees, and that may be copied
DILATIONS = (1, 1, 2, 2, 4)
CACHED = 2**18  # cells of the grids that are generated at once, at most


class CausalConv(nn.Conv2d):
    """A convolution from the cells before each in raster order, and if `own` from the cell itself."""

    def __init__(self, inputs: int, outputs: int, reach: int, dilation: int = 1, own: bool = True) -> None:
        super().__init__(inputs, outputs, (reach + 1, 2 * reach + 1), dilation=dilation)
        mask = torch.ones(self.kernel_size)
        mask[-1, reach + own :] = 0.0
        self.mask = nn.Buffer(mask, persistent=False)
        self.margin = reach * dilation

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        padded = functional.pad(x, (self.margin, self.margin, self.margin, 0))
        return functional.conv2d(padded, self.weight * self.mask, self.bias, dilation=self.dilation)

    def cache(self, n: int, width: int) -> Tensor:
        """Zeros (n, rows, columns, inputs) for what `at` reads: the row in progress is the last."""
        return self.weight.new_zeros(n, self.margin + 1, width + 2 * self.margin, self.in_channels)

    def at(self, cache: Tensor, column: int, own: Tensor | None = None) -> Tensor:
        """(n, outputs, 1, 1) at a column of the row in progress; its `own` input (n, inputs, 1, 1) is written first."""
        step = self.dilation[0]
        if own is not None:
            cache[:, -1, column + self.margin] = own[:, :, 0, 0]
        patch = cache[:, ::step, column : column + 2 * self.margin + 1 : step]
        kernel = (self.weight * self.mask).permute(0, 2, 3, 1)
        return functional.linear(patch.flatten(1), kernel.flatten(1), self.bias)[:, :, None, None]


class CausalBlock(nn.Module):
    """x + conv1x1(relu(causal(relu(x)) + conv1x1(features))), which starts as the identity."""

    def __init__(self, dilation: int, skip: bool) -> None:
        super().__init__()
        self.causal = CausalConv(WIDTH, WIDTH, 1, dilation)
        self.enter = nn.Conv2d(FEATURES, WIDTH, 1) if skip else None
        self.leave = nn.Conv2d(WIDTH, WIDTH, 1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, features: Tensor, cache: Tensor | None = None, column: int = 0) -> Tensor:
        """(B, WIDTH, H, W), and with a cache of one cell (B, WIDTH, 1, 1) at this column."""
        own = functional.relu(x)
        hidden = self.causal(own) if cache is None else self.causal.at(cache, column, own)
        if self.enter is not None:
            hidden = hidden + self.enter(features)
        return torch.add(x, self.leave(functional.relu(hidden)))


class Cells(nn.Module):
    """Logits of each cell from those before it, and from what a factorised decoder makes of z: logits and features."""

    def __init__(self, settings: DecoderSettings, classes: int) -> None:
        super().__init__()
        self.hidden_share, self.classes = settings.input_dropout, classes
        self.one_hot = nn.Buffer(torch.eye(classes + 1, classes), persistent=False)  # the last row: hidden
        self.first = CausalConv(classes + 4, WIDTH, REACH, own=False)
        self.enter = nn.Conv2d(FEATURES, WIDTH, 1)
        blocks = [CausalBlock(dilation, settings.skip_connections) for dilation in DILATIONS]
        self.blocks: Sequence[CausalBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.near = self.first.mask.nonzero().tolist()  # the row and the column of each cell that may be copied
        self.leave = nn.Conv2d(WIDTH, classes + len(self.near), 1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, logits: Tensor, features: Tensor, x: Tensor) -> Tensor:
        """(B, classes, H, W), float32, of x (B, H, W); in training some of the cells before are hidden."""
        if self.training and self.hidden_share:
            x = x.masked_fill(torch.rand(x.shape, device=x.device) < self.hidden_share, self.classes)
        seen = self.see(functional.pad(x, (1, 1, 1, 0), value=-1))
        hidden = self.first(seen) + self.enter(features)
        for block in self.blocks:
            hidden = block(hidden, features)
        return self.added(logits, hidden, functional.pad(seen[:, : self.classes], (REACH, REACH, REACH, 0)))

    def see(self, x: Tensor) -> Tensor:
        """(B, classes + 4, H, W) of x (B, H + 1, W + 2) with a margin of -1: one-hot, and equal to which neighbour."""
        own, above = x[:, 1:, 1:-1], x[:, :-1]
        near = (x[:, 1:, :-2], above[:, :, :-2], above[:, :, 1:-1], above[:, :, 2:])
        same = [(own == other) & (own < self.classes) for other in near]
        one_hot = functional.embedding(own, self.one_hot)
        return torch.cat([one_hot, torch.stack(same, dim=3).to(one_hot.dtype)], dim=3).permute(0, 3, 1, 2)

    def added(self, logits: Tensor, hidden: Tensor, around: Tensor) -> Tensor:
        """The sum of all logits; `around`: one-hot classes (B, classes, H + REACH, W + 2 REACH)."""
        parts = [self.classes, *[1] * len(self.near)]
        own, *scores = torch.split(self.leave(functional.relu(hidden)).float(), parts, dim=1)
        logits, (height, width) = logits + own, logits.shape[2:]
        for score, (row, column) in zip(scores, self.near, strict=True):
            logits = torch.addcmul(logits, score, around[:, :, row : row + height, column : column + width])
        return logits

    def generate(
        self, logits: Tensor, features: Tensor, draw: bool, source: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classes (B, H, W), one cell after the other, and their logits (B, classes, H, W).

        The most likely class of each cell, or if `draw` one drawn from softmax. `source` (B, H * W): the cell that each
        cell copies, where it comes before it. A layer keeps what it has seen of the last rows: a cell costs the work of
        a cell.
        """
        count, _, height, width = logits.shape
        if count * height * width > CACHED and count > 1:
            size = max(1, CACHED // (height * width))
            given = (logits, features, *([] if source is None else [source]))
            pieces = zip(*(torch.split(part, size) for part in given), strict=True)
            found = [self.generate(some, beside, draw, *rest) for some, beside, *rest in pieces]
            return torch.cat([classes for classes, _ in found]), torch.cat([one for _, one in found])
        seen = torch.full((count, height + 1, width + 2), -1, device=logits.device)
        classes = torch.empty((count, height * width), dtype=torch.int64, device=logits.device)
        scores = logits.new_empty(count, self.classes, height * width)
        first, *caches = (conv.cache(count, width) for conv in (self.first, *(block.causal for block in self.blocks)))
        for cell in range(height * width):
            row, column = divmod(cell, width)
            if cell and not column:
                for cache in (first, *caches):
                    cache.copy_(cache.roll(-1, dims=1))
                    cache[:, -1] = 0.0
            beside = features[:, :, row : row + 1, column : column + 1]
            hidden = self.first.at(first, column) + self.enter(beside)
            for block, cache in zip(self.blocks, caches, strict=True):
                hidden = block(hidden, beside, cache, column)
            around = first[:, :, column : column + 2 * REACH + 1, : self.classes].permute(0, 3, 1, 2)
            own = self.added(logits[:, :, row : row + 1, column : column + 1], hidden, around)[:, :, 0, 0]
            noise = torch.empty_like(own).exponential_().log() if draw else 0.0  # Gumbel's, negative
            chosen = (own - noise).argmax(dim=1)
            if source is not None:
                copied = source[:, cell : cell + 1]
                chosen = torch.where(copied < cell, classes.gather(1, copied.clamp(max=cell)), chosen[:, None])[:, 0]
            classes[:, cell], scores[:, :, cell] = chosen, own
            seen[:, row + 1, column + 1] = chosen
            here = self.see(seen[:, row : row + 2, column : column + 3])
            first[:, -1, column + REACH] = here[:, :, 0, 0]
        if source is not None:
            scores = scores.gather(2, source[:, None].expand_as(scores))
        return classes.view(count, height, width), scores.view_as(logits)
