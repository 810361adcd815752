"""The conditional VAE of grids with two levels: a global vector, and a local map under a learned prior.

q(z_g | x, c) q(z_l | x, z_g, c) and p(z_g) p(z_l | z_g, c) p(x | z_l, z_g, c); convolutions work on the local map.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli import gaussians
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.conditions import NOT_GIVEN, attributes, layout
from arcvae_cli.models.base import (
    VAE,
    Batch,
    Latents,
    Level,
    MeanNorm,
    Output,
    float32,
    posterior_logvar,
    standard_level,
)
from arcvae_cli.models.cells import FEATURES, Cells
from arcvae_cli.models.grid import Block, Flatten, Unflatten
from arcvae_cli.settings import HierarchicalSettings

GLOBAL, LOCAL = "global", "local"
WIDE = 512  # width of the linear layers around the global vector
CHANNELS, THIN = 64, 16  # of the convolutions, and of a map where linear layers meet it
ENCODER_BLOCKS, TRUNK_BLOCKS, DECODER_BLOCKS = 2, 2, 3
SOFT_LOGIT = 30.0  # between likely and unlikely where training needs a gradient
MASKED_LOGIT = -1e4  # of the impossible: less than any network's output
FEW_CELLS = 4  # cells of a colour that may all be images of one another: taking one would take the colour
TIE = 1e-3  # nats; logits of mirror images are equal but for rounding
COLOUR_PENALTY, EXCLUDED_LOGIT = 1e3, -1e6  # nats, far beyond a network's output


class HierarchicalVAE(VAE):
    """`global_dim` numbers for a grid as a whole, and `local_channels` for each cell of a map (R, S) of its patches.

    A patch is square, its side the longer side of the grid over `local_size`, rounded up.
    """

    def __init__(self, settings: HierarchicalSettings, structure: Canvas = ARC) -> None:
        super().__init__()
        self.settings, self.structure, self.attributes = settings, structure, attributes(structure)
        _, *cells = map_shape(settings, structure)
        self.level_shapes = {GLOBAL: (settings.global_dim,), LOCAL: (settings.local_channels, *cells)}
        self.encoder: Encoder = Encoder(settings, structure)
        self.decoder: Decoder = Decoder(settings, structure)
        self.autoregressive = settings.decoder == "autoregressive"
        self.cells = Cells(settings, structure.classes) if self.autoregressive else None

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        return self._encode(batch, noise)[0]

    def decode(self, latents: Latents, conditions: Tensor | None = None) -> Tensor:
        return self.parts(latents, conditions)[0]

    def parts(self, latents: Latents, conditions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of z alone (B, classes, H, W), features beside them, and features of the global vector (B, WIDE)."""
        conditions = self.dropped_conditions(conditions, latents[GLOBAL])
        wide, map_, *_ = self.decoder.top_down(latents[GLOBAL], conditions)
        return *self.decoder.logits(wide, map_, conditions, latents[LOCAL]), wide

    def logits_for(self, latents: Latents, batch: Batch) -> Tensor:
        logits, features, _ = self.parts(latents, batch.conditions)
        return logits if self.cells is None else self.cells(logits, features, batch.x)

    def generate(
        self, latents: Latents, conditions: Tensor | None = None, draw: bool = False, constrained: bool = True
    ) -> Tensor:
        if self.cells is None:
            return super().generate(latents, conditions, draw, constrained)
        logits, features, wide = self.parts(latents, conditions)
        if conditions is None or not constrained:
            return self.cells.generate(logits, features, draw)[0]
        source = self.decoder.obey.sources(wide, conditions)
        found, logits = self.cells.generate(logits, features, draw, source)
        return constrained_decode(logits, conditions, self.canvas, found)

    def prior(self, noise: Latents, temperature: float = 1.0, conditions: Tensor | None = None) -> dict[str, Tensor]:
        """The global vector is drawn from N(0, temperature^2), the local map from the learned prior given it."""
        top = temperature * noise[GLOBAL]
        *_, mean, logvar = self.decoder.top_down(top, self.dropped_conditions(conditions, top))
        return {GLOBAL: top, LOCAL: mean + temperature * torch.exp(0.5 * logvar) * noise[LOCAL]}

    def argmax_decode(self, logits: Tensor, conditions: Tensor | None = None) -> Tensor:
        return constrained_decode(logits, conditions, self.canvas)

    def forward(self, batch: Batch, noise: bool = True, more: int = 0) -> Output:  # noqa: ARG002 - settings refuse it
        levels, features = self._encode(batch, noise)  # the local prior and the decoder share features
        logits, beside = self.decoder.logits(*features, levels[1].sample)
        return Output(logits if self.cells is None else self.cells(logits, beside, batch.x), levels)

    def _encode(self, batch: Batch, noise: bool) -> tuple[tuple[Level, Level], tuple[Tensor, Tensor, Tensor]]:
        """The levels; and the features of the global sample, the map of them, and the conditions."""
        conditions = self.dropped_conditions(batch.conditions, batch.x)
        features, mean, raw = self.encoder(batch.x, conditions)
        top = standard_level(GLOBAL, mean, posterior_logvar(raw, self.settings), noise)
        wide, map_, prior_mean, prior_logvar = self.decoder.top_down(top.sample, conditions)
        # the posterior relative to the prior (Vahdat and Kautz 2020, section 3.2): to add nothing has no KL
        joined = functional.relu(self.encoder.join(torch.cat([features, map_], dim=1)))
        mean, raw = float32(self.encoder.map, joined).chunk(2, dim=1)
        mean = prior_mean + mean
        logvar = gaussians.bound(prior_logvar + raw, self.settings.logvar_min, self.settings.logvar_max)
        kl = gaussians.kl(mean, logvar, prior_mean, prior_logvar).sum(dim=(2, 3))
        sample = gaussians.sample(mean, logvar) if noise else mean
        return (top, Level(LOCAL, mean, logvar, sample, kl, prior_mean, prior_logvar)), (wide, map_, conditions)

    def dropped_conditions(self, conditions: Tensor | None, like: Tensor) -> Tensor:
        """(B, A) conditions; in training a share `condition_dropout` drops all, others each with a random chance."""
        if conditions is None:
            return like.new_full((like.shape[0], len(self.attributes)), NOT_GIVEN, dtype=torch.int64)
        if not self.training:
            return conditions
        one, device = (len(conditions), 1), conditions.device
        nothing = torch.rand(one, device=device) < self.settings.condition_dropout
        kept = torch.rand(conditions.shape, device=device) < torch.rand(one, device=device)
        return torch.where(kept & ~nothing, conditions, NOT_GIVEN)


def map_shape(settings: HierarchicalSettings, canvas: Canvas) -> tuple[int, int, int]:
    """The side of a patch, and how many are needed for the rows and the columns of the canvas."""
    patch = -(-max(canvas.shape) // settings.local_size)
    return patch, -(-canvas.height // patch), -(-canvas.width // patch)


class Conditions(nn.Module):
    """The attributes of a grid as one vector: an embedding for each value of each, one more for not given."""

    def __init__(self, canvas: Canvas, width: int) -> None:
        super().__init__()
        sizes = torch.tensor([0] + [attribute.size + 1 for attribute in attributes(canvas)])
        self.offsets = nn.Buffer(sizes.cumsum(0)[:-1] + 1, persistent=False)
        self.table = nn.Embedding(int(sizes.sum()), width)
        nn.init.normal_(self.table.weight, std=len(attributes(canvas)) ** -0.5)

    def forward(self, conditions: Tensor) -> Tensor:
        """(B, A) int64, -1 for not given -> (B, width)."""
        table = self.table.weight
        # a product with one-hot rows: two fifths of the time of a look-up, a sum, and their gradients
        chosen = table.new_zeros(conditions.shape[0], table.shape[0]).scatter_(1, conditions + self.offsets, 1.0)
        with torch.autocast(table.device.type, enabled=False):
            return chosen @ table


class Convolutions(nn.Module):
    """x + conv(relu(film(conv(relu(x))))), which starts as the identity."""

    def __init__(self, film: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        self.film = nn.Linear(film, 2 * CHANNELS) if film else None

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """(B, CHANNELS, R, S), and the vectors (B, film) that scale and shift its channels (Perez et al. 2018)."""
        hidden = self.first(functional.relu(x))
        if self.film is not None and film is not None:
            scale, shift = self.film(film)[:, :, None, None].chunk(2, dim=1)
            hidden = torch.addcmul(shift, hidden, 1.0 + scale)
        return torch.add(x, self.second(functional.relu(hidden)))


class Encoder(nn.Module):
    """Features of a grid at the resolution of the local map, and the two posteriors from them."""

    def __init__(self, settings: HierarchicalSettings, canvas: Canvas) -> None:
        super().__init__()
        self.patch, rows, columns = map_shape(settings, canvas)
        # to whole patches, with the class that is most like nothing
        self.padding = (0, columns * self.patch - canvas.width, 0, rows * self.patch - canvas.height)
        self.filling = canvas.void or 0
        self.one_hot = nn.Buffer(torch.eye(canvas.classes), persistent=False)
        self.enter = nn.Conv2d(canvas.classes * self.patch**2, CHANNELS, 3, padding=1)
        self.blocks = nn.Sequential(*(Convolutions() for _ in range(ENCODER_BLOCKS)))
        self.conditions = Conditions(canvas, WIDE)
        self.thin = nn.Conv2d(CHANNELS, THIN, 1)
        self.flatten = Flatten()
        self.widen = nn.Linear(THIN * rows * columns, WIDE)
        self.wide = nn.Sequential(nn.LayerNorm(WIDE), Block(WIDE, settings.dropout), nn.LayerNorm(WIDE))
        self.mean = nn.Linear(WIDE, settings.global_dim)
        self.spread = nn.Linear(WIDE, settings.global_dim)
        self.mean_norm = MeanNorm(settings.global_dim, settings.mean_norm) if settings.mean_norm else nn.Identity()
        self.join = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.map = nn.Conv2d(CHANNELS, 2 * settings.local_channels, 1)

    def forward(self, x: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, CHANNELS, R, S) of x (B, H, W), and mean and raw spread (B, D) of the global level."""
        x = functional.pad(x, self.padding, value=self.filling)
        one_hot = functional.embedding(x, self.one_hot).permute(0, 3, 1, 2)
        features = self.blocks(self.enter(functional.pixel_unshuffle(one_hot, self.patch)))
        flat = self.flatten(functional.relu(self.thin(features)))
        wide = self.wide(self.widen(flat) + self.conditions(conditions)).float()  # once, for both heads
        return features, self.mean_norm(float32(self.mean, wide)), float32(self.spread, wide)


class Decoder(nn.Module):
    """The local prior and the grid, both from features of the global vector and the conditions."""

    def __init__(self, settings: HierarchicalSettings, canvas: Canvas) -> None:
        super().__init__()
        (self.patch, rows, columns), self.shape = map_shape(settings, canvas), canvas.shape
        self.unflatten = Unflatten(1, (THIN, rows, columns))
        self.conditions = Conditions(canvas, WIDE)
        self.enter = nn.Linear(settings.global_dim, WIDE)
        self.trunk = nn.Sequential(*(Block(WIDE, settings.dropout) for _ in range(TRUNK_BLOCKS)), nn.LayerNorm(WIDE))
        self.spread = nn.Linear(WIDE, THIN * rows * columns)
        self.thicken = nn.Conv2d(THIN, CHANNELS, 3, padding=1)
        self.before = Convolutions(WIDE)
        self.prior_map = nn.Conv2d(CHANNELS, 2 * settings.local_channels, 1)
        nn.init.zeros_(self.prior_map.weight)
        self.logvar_range = (settings.logvar_min, settings.logvar_max)
        self.take = nn.Conv2d(settings.local_channels, CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(Convolutions(WIDE) for _ in range(DECODER_BLOCKS))
        self.classes, features = canvas.classes, FEATURES * (settings.decoder == "autoregressive")
        self.leave = nn.Conv2d(CHANNELS, (self.classes + features) * self.patch**2, 3, padding=1)
        self.obey = ConstraintLayer(WIDE, canvas)  # checkpoints have its weights by this name

    def top_down(self, top: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features (B, WIDE), a map of them (B, CHANNELS, R, S), mean and log variance of the local prior."""
        wide = self.trunk(self.enter(top) + self.conditions(conditions))
        map_ = self.before(self.thicken(functional.relu(self.unflatten(self.spread(wide)))), wide)
        mean, raw = float32(self.prior_map, map_).chunk(2, dim=1)
        return wide, map_, mean, gaussians.bound(raw, *self.logvar_range)

    def logits(self, wide: Tensor, map_: Tensor, conditions: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes, H, W), and the features (B, FEATURES, H, W) for an autoregressive decoder."""
        hidden = map_ + self.take(local)
        for block in self.blocks:
            hidden = block(hidden, wide)
        logits = functional.pixel_shuffle(self.leave(functional.relu(hidden)), self.patch)
        logits = logits[..., : self.shape[0], : self.shape[1]]
        logits, features = logits[:, : self.classes], logits[:, self.classes :]
        with torch.autocast(logits.device.type, enabled=False):
            return self.obey(logits.float(), wide.float(), conditions), features


class ConstraintLayer(nn.Module):
    """Constrains logits to the palette, the mirror symmetries and the extent that are given, or else predicted."""

    def __init__(self, width: int, canvas: Canvas) -> None:
        super().__init__()
        self.shape, self.columns = canvas.shape, layout(canvas)
        self.axis_counts = [2 * side - 1 for side in reversed(canvas.shape)]  # cell j has its image at axis - j
        self.colours = nn.Linear(width, len(canvas.content))  # checkpoints have its weights by this name
        self.mirrors = nn.Linear(width, 2)
        self.axes = nn.Linear(width, sum(self.axis_counts))
        nn.init.constant_(self.colours.bias, 3.0)
        nn.init.constant_(self.mirrors.bias, -3.0)
        self.content = nn.Buffer(torch.tensor(canvas.content), persistent=False)
        void = torch.zeros(canvas.classes) if canvas.void is None else torch.eye(canvas.classes)[canvas.void]
        self.void = nn.Buffer(SOFT_LOGIT * void.view(1, -1, 1, 1), persistent=False)

    def forward(self, logits: Tensor, wide: Tensor, conditions: Tensor) -> Tensor:
        """(B, classes, H, W) of features (B, width) and conditions (B, A)."""
        # the layout of the products below: elementwise, two layouts at once take three times as long
        logits = logits.contiguous()
        extents, count, present, given = (conditions[:, columns] for columns in self.columns)
        colours = self.colours(wide)
        if present.shape[1]:
            colours = torch.where(present == 1, SOFT_LOGIT, torch.where(present == 0, -SOFT_LOGIT, colours))
        # of a given number of classes so many are above 0: the threshold is between the last and the next
        ends = colours.new_full((colours.shape[0], 1), 2 * SOFT_LOGIT)
        ranked = torch.cat([ends, colours.sort(dim=1, descending=True).values, -ends], dim=1)  # (B, content + 2)
        threshold = 0.5 * (ranked.gather(1, count.clamp(min=0)) + ranked.gather(1, count.clamp(min=0) + 1))
        counted = colours - threshold
        colours = torch.where(count >= 0, counted if self.training else SOFT_LOGIT * counted.sign(), colours)
        palette = functional.logsigmoid(colours)  # 0 for a class of the palette, far below for another
        if not self.training:
            palette = torch.where(colours <= -SOFT_LOGIT, MASKED_LOGIT, palette)
        palette = palette.new_zeros(logits.shape[:2]).index_copy(1, self.content, palette)
        logits = logits + palette[:, :, None, None]
        cells = [torch.arange(side, device=logits.device) for side in self.shape]
        sizes = zip(cells, extents.unbind(1), strict=False)  # no extents: every grid fills the canvas
        beyond = [(cell >= size[:, None]) & (size >= 0)[:, None] for cell, size in sizes]
        nowhere = torch.zeros_like(logits[:, 0], dtype=torch.bool)  # (B, H, W)
        outside = beyond[0][:, :, None] | beyond[1][:, None, :] if beyond else nowhere  # known to be empty
        gates = torch.where(given >= 0, given.float(), torch.sigmoid(self.mirrors(wide)))  # (B, 2)
        for which, score in enumerate(self.axis_scores(wide, conditions)):
            side, axes = self.shape[1 - which], score.softmax(dim=1)
            if not self.training:
                axes = functional.one_hot(axes.argmax(dim=1), self.axis_counts[which]).to(axes.dtype)
            # cell v by the cell w that it is the image of, at axis v + w; nothing beyond the canvas
            image = axes.unfold(1, side, 1)  # (B, side, side)
            empty = 1.0 - image.sum(dim=2)  # cells whose image lies off the canvas
            empty = empty[:, None, :] if which == 0 else empty[:, :, None]
            mirrored = reflect(logits, image, which) + empty[:, None] * self.void
            logits = torch.lerp(logits, mirrored, 0.5 * gates[:, which].view(-1, 1, 1, 1))
            if not self.training:  # where an axis is still being learned, it must not rule out what is there
                void = reflect(outside[:, None].to(image.dtype), image, which)[:, 0] + empty
                outside = outside | ((void > 0.5) & (given[:, which] == 1).view(-1, 1, 1))
        logits = torch.where(outside[:, None], self.void * (-MASKED_LOGIT / SOFT_LOGIT), logits)
        return logits.contiguous(memory_format=torch.channels_last)  # for the argmax, which takes a tenth so

    def axis_scores(self, wide: Tensor, conditions: Tensor) -> Iterator[Tensor]:
        """The scores (B, axes) of the possible axes of the mirrors: left-right, up-down."""
        extents, _, _, given = (conditions[:, columns] for columns in self.columns)
        for which, score in enumerate(torch.split(float32(self.axes, wide), self.axis_counts, dim=1)):
            axis = torch.arange(score.shape[1], device=score.device)
            if extents.shape[1]:
                # the content ends at the extent e and begins on the canvas, so its axis is from e - 1 to 2 (e - 1)
                last = extents[:, 1 - which, None] - 1
                possible = (last < 0) | (given[:, which, None] != 1) | ((axis >= last) & (axis <= 2 * last))
            else:
                possible = axis == self.shape[1 - which] - 1
            yield torch.where(possible, score, MASKED_LOGIT)

    def sources(self, wide: Tensor, conditions: Tensor) -> Tensor:
        """(B, H * W) the first cell in raster order that each is an image of, by the symmetries that are given."""
        lines, given = list[Tensor](), conditions[:, self.columns[-1]]
        for which, score in enumerate(self.axis_scores(wide, conditions)):
            line = torch.arange(self.shape[1 - which], device=score.device)
            image = score.softmax(dim=1).argmax(dim=1, keepdim=True) - line  # (B, side)
            mirrored = (image >= 0) & (image < line) & (given[:, which, None] == 1)
            lines.append(torch.where(mirrored, image, line))
        columns, rows = lines
        return (rows[:, :, None] * self.shape[1] + columns[:, None]).flatten(1)


def reflect(x: Tensor, image: Tensor, which: int) -> Tensor:
    """Cells of x (B, C, H, W) moved as `image` says, along each row (which = 0, (B, W, W)) or column (1, (B, H, H))."""
    return torch.bmm(x.flatten(1, 2), image.transpose(1, 2)).view_as(x) if which == 0 else image[:, None] @ x


def constrained_decode(
    logits: Tensor, conditions: Tensor | None, canvas: Canvas, found: Tensor | None = None
) -> Tensor:
    """Classes (B, H, W) int64 from logits (B, classes, H, W) that satisfy conditions (B, A), if any.

    They are those of the argmax, or `found`, changed at the least cost. Cells that are equally likely to change, as
    mirror images are, change together: a symmetric grid stays symmetric.
    """
    found = logits.argmax(dim=1) if found is None else found
    if conditions is None or bool((conditions == NOT_GIVEN).all()):
        return found
    extents, count, present, _ = (conditions[:, columns] for columns in layout(canvas))
    void, beyond = (-1 if number is None else number for number in (canvas.void, canvas.outside))
    others = torch.tensor([number for number in range(canvas.classes) if number != void], device=logits.device)
    best, other = logits[:, others].max(dim=1)  # (B, H, W)
    gain = best - logits[:, void]
    for axis, extent in enumerate(extents.unbind(1)):  # the last row and column must not be all empty
        line = torch.arange(canvas.shape[axis], device=found.device) == (extent - 1)[:, None]  # (B, H) or (B, W)
        line = line[:, :, None] if axis == 0 else line[:, None, :]
        dark = (extent > 0) & ~((found != void) & line).any(dim=(1, 2))
        found = _change(found, torch.where(line, gain, EXCLUDED_LOGIT), others[other], dark, gain)
    content = torch.tensor(canvas.content, device=logits.device)
    for _ in canvas.content:  # one missing class in each grid that lacks one
        ones = torch.ones_like(logits[:, 0]).flatten(1)
        cells = torch.zeros_like(logits[:, :, 0, 0]).scatter_add_(1, found.flatten(1), ones)  # (B, classes)
        absent = cells[:, content] == 0
        asked = present if present.shape[1] else torch.full_like(count, NOT_GIVEN)
        free = absent & (asked != 0) & ((~absent).sum(dim=1, keepdim=True) < count)
        wanted = absent & (asked == 1)
        choice = torch.where(wanted.any(dim=1, keepdim=True), wanted, free)  # (B, content)
        if not choice.any():
            break
        gain = logits[:, content] - logits.gather(1, found[:, None])  # minus the cost of a change
        few = cells.gather(1, found.flatten(1)).view_as(gain[:, 0]) <= FEW_CELLS
        kept = (few & torch.isin(found, content)) | (found == beyond)
        allowed = torch.where(choice[:, :, None, None], gain - COLOUR_PENALTY * kept[:, None], EXCLUDED_LOGIT)
        best, chosen = allowed.max(dim=1)
        found = _change(found, best, content[chosen], choice.any(dim=1), best)
    return found


def _change(classes: Tensor, gain: Tensor, into: Tensor, where: Tensor, everywhere: Tensor) -> Tensor:
    """In the grids `where`, change the cell of the highest `gain`, and those `into` the same class that equal it."""
    best, cell = gain.flatten(1).max(dim=1, keepdim=True)
    chosen = into.flatten(1).gather(1, cell)
    twin = (everywhere.flatten(1) - best).abs().le(TIE) & (into.flatten(1) == chosen)
    twin = twin.scatter(1, cell, True) & where[:, None]
    return torch.where(twin, chosen, classes.flatten(1)).view_as(classes)
