"""An autoregressive decoder of grids: masked convolutions over the cells in raster order (van den Oord et al. 2016).

p(x|z) is the product over the cells of softmax(a + b). a: the factorised decoder's logits, from z alone; b: from the
cells before, and from features that this decoder makes of z (Gulrajani et al. 2017). b has a logit for each class, and
a score for each near cell before that is added to its class: to copy it, whatever its class (Vinyals et al. 2015).
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
        self.margin, self.taps = reach * dilation, reach * (2 * reach + 1) + reach + own
        mask = torch.arange(self.weight[0, 0].numel()) < self.taps  # row by row
        self.mask = nn.Buffer(mask.float().view(self.kernel_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        padded = functional.pad(x, (self.margin, self.margin, self.margin, 0))
        return functional.conv2d(padded, self.weight * self.mask, self.bias, dilation=self.dilation)


class Cache:
    """What a causal convolution has seen of the row in progress and of those above that it needs, of `n` grids."""

    def __init__(self, conv: CausalConv, n: int, width: int) -> None:
        self.margin, self.step, self.taps, self.bias = conv.margin, conv.dilation[0], conv.taps, conv.bias
        self.kernel = conv.weight.flatten(2)[:, :, : self.taps].transpose(1, 2).flatten(1)  # (outputs, taps * inputs)
        self.rows = conv.weight.new_zeros(n, self.margin + 1, width + 2 * self.margin, conv.in_channels)

    def write(self, column: int, own: Tensor) -> None:
        """The input (n, inputs) of a cell of the row in progress."""
        self.rows[:, -1, column + self.margin] = own

    def around(self, column: int) -> Tensor:
        """(n, taps, inputs) the inputs that the output of this cell depends on."""
        patch = self.rows[:, :: self.step, column : column + 2 * self.margin + 1 : self.step]
        return patch.flatten(1, 2)[:, : self.taps]

    def convolved(self, column: int) -> Tensor:
        """(n, outputs)."""
        return functional.linear(self.around(column).flatten(1), self.kernel, self.bias)

    def next_row(self) -> None:
        self.rows.copy_(self.rows.roll(-1, dims=1))
        self.rows[:, -1] = 0.0


class CausalBlock(nn.Module):
    """x + conv1x1(relu(causal(relu(x)) + conv1x1(features))), which starts as the identity."""

    def __init__(self, dilation: int, skip: bool, dropout: float) -> None:
        super().__init__()
        self.causal = CausalConv(WIDTH, WIDTH, 1, dilation)
        self.enter = nn.Conv2d(FEATURES, WIDTH, 1) if skip else None
        self.leave = nn.Conv2d(WIDTH, WIDTH, 1)
        nn.init.zeros_(self.leave.weight)
        self.dropout = nn.Dropout2d(dropout)  # of whole channels

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """(B, WIDTH, H, W)."""
        hidden = self.causal(functional.relu(x))
        if self.enter is not None:
            hidden = hidden + self.enter(features)
        return torch.add(x, self.dropout(self.leave(functional.relu(hidden))))

    def cell(self, x: Tensor, features: Tensor, cache: Cache, column: int) -> Tensor:
        """The same for one cell: (B, WIDTH)."""
        cache.write(column, functional.relu(x))
        hidden = cache.convolved(column)
        if self.enter is not None:
            hidden = hidden + pointwise(self.enter, features)
        return x + pointwise(self.leave, functional.relu(hidden))


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of one cell: (B, inputs) -> (B, outputs)."""
    return functional.linear(x, conv.weight.flatten(1), conv.bias)


class Cells(nn.Module):
    """Logits of each cell from those before it, and from what a factorised decoder makes of z: logits and features.

    Without skip connections the features enter the first layer alone; the logits are added at the end in any case.
    """

    def __init__(self, settings: DecoderSettings, classes: int) -> None:
        super().__init__()
        self.hidden_share, self.classes = settings.input_dropout, classes
        self.one_hot = nn.Buffer(torch.eye(classes + 1, classes), persistent=False)  # the last row: hidden
        self.first = CausalConv(classes + 4, WIDTH, REACH, own=False)
        self.enter = nn.Conv2d(FEATURES, WIDTH, 1)
        blocks = [CausalBlock(dilation, settings.skip_connections, settings.dropout) for dilation in DILATIONS]
        self.blocks: Sequence[CausalBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.leave = nn.Conv2d(WIDTH, classes + self.first.taps, 1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, logits: Tensor, features: Tensor, x: Tensor) -> Tensor:
        """(B, classes, H, W), float32, of x (B, H, W); in training some of the cells before are hidden."""
        if self.training and self.hidden_share:
            x = x.masked_fill(torch.rand(x.shape, device=x.device) < self.hidden_share, self.classes)
        seen = self.see(functional.pad(x, (1, 1, 1, 0), value=-1))
        hidden = self.first(seen) + self.enter(features)
        for block in self.blocks:
            hidden = block(hidden, features)
        parts = [self.classes, *[1] * self.first.taps]
        own, *scores = torch.split(self.leave(functional.relu(hidden)).float(), parts, dim=1)
        around, (height, width) = functional.pad(seen[:, : self.classes], (REACH, REACH, REACH, 0)), x.shape[1:]
        logits = logits + own
        for tap, score in enumerate(scores):
            row, column = divmod(tap, 2 * REACH + 1)
            logits = torch.addcmul(logits, score, around[:, :, row : row + height, column : column + width])
        return logits

    def see(self, x: Tensor) -> Tensor:
        """(B, classes + 4, H, W) of x (B, H + 1, W + 2) with a margin of -1: one-hot, and equal to which neighbour."""
        own, above = x[:, 1:, 1:-1], x[:, :-1]
        near = (x[:, 1:, :-2], above[:, :, :-2], above[:, :, 1:-1], above[:, :, 2:])
        same = [(own == other) & (own < self.classes) for other in near]
        one_hot = functional.embedding(own, self.one_hot)
        return torch.cat([one_hot, torch.stack(same, dim=3).to(one_hot.dtype)], dim=3).permute(0, 3, 1, 2)

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
        classes = torch.zeros((count, height * width), dtype=torch.int64, device=logits.device)
        scores = logits.new_empty(count, self.classes, height * width)
        first, *caches = (Cache(conv, count, width) for conv in (self.first, *(block.causal for block in self.blocks)))
        for cell in range(height * width):
            row, column = divmod(cell, width)
            if cell and not column:
                for cache in (first, *caches):
                    cache.next_row()
            beside = features[:, :, row, column]
            hidden = first.convolved(column) + pointwise(self.enter, beside)
            for block, cache in zip(self.blocks, caches, strict=True):
                hidden = block.cell(hidden, beside, cache, column)
            own = pointwise(self.leave, functional.relu(hidden)).float()
            copied = torch.bmm(own[:, None, self.classes :], first.around(column)[:, :, : self.classes])[:, 0]
            own = logits[:, :, row, column] + own[:, : self.classes] + copied
            noise = torch.empty_like(own).exponential_().log() if draw else 0.0  # Gumbel's, negative
            chosen = (own - noise).argmax(dim=1)
            if source is not None:
                place = source[:, cell]
                earlier = classes.gather(1, place[:, None])[:, 0]
                chosen = torch.where(place < cell, earlier, chosen)
            classes[:, cell], scores[:, :, cell], seen[:, row + 1, column + 1] = chosen, own, chosen
            first.write(column, self.see(seen[:, row : row + 2, column : column + 3])[:, :, 0, 0])
        if source is not None:
            scores = scores.gather(2, source[:, None].expand_as(scores))
        return classes.view(count, height, width), scores.view_as(logits)
