"""The convolutional beta-VAE of grids: one vector of latents, two bodies."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.errors import InputError
from arcvae_cli.models.base import VAE, Batch, Encoder, Latents, Level, posterior_logvar, standard_level
from arcvae_cli.models.cells import FEATURES, Cells
from arcvae_cli.settings import GridSettings

LEVEL = "z"
WIDE = 512  # width of the residual body's linear layers
CHANNELS = (32, 64, 128, 128, 128)  # of the convolutions, as many as halve the longer side to 4 cells at most
OUTPUTS = 2**16  # of a linear layer at most: above, a map of features and a 1x1 convolution


class GridVAE(VAE):
    """Encoder of one-hot classes to `latent_dim` dimensions, decoder to logits (B, classes, H, W).

    The encoder's first convolution keeps the resolution, each further one halves it, rounded up; the decoder doubles it
    as often and crops. InputError for more channels in the settings than the canvas can be halved times.
    """

    def __init__(self, settings: GridSettings, structure: Canvas = ARC) -> None:
        super().__init__()
        self.settings, self.structure, d, classes = settings, structure, settings.latent_dim, structure.classes
        self.level_shapes = {LEVEL: (d,)}
        self.one_hot = nn.Buffer(torch.eye(classes), persistent=False)
        given = settings.encoder_channels or CHANNELS[: 1 + ((max(structure.shape) - 1) // 4).bit_length()]
        (height, width), residual = smallest("encoder_channels", given, structure), settings.body == "residual"
        flat, wide = given[-1] * height * width, list[nn.Module]()
        self.autoregressive = settings.decoder == "autoregressive"
        outputs = classes + FEATURES * self.autoregressive
        if residual:  # before the convolutions: initial weights depend on the order of creation
            wide = [nn.Linear(flat, WIDE), nn.LayerNorm(WIDE), Block(WIDE, settings.dropout), nn.LayerNorm(WIDE)]
        relu, body = nn.ReLU(inplace=True), list[nn.Module]()
        for before, after in pairwise((classes, *given)):  # 16x16: to (B, 128, 4, 4)
            body += [nn.Conv2d(before, after, 3, stride=2 if body else 1, padding=1), relu]
        if residual:
            self.encoder = Encoder(nn.Sequential(*body, Flatten(), *wide), WIDE, d, settings.mean_norm)
            # linear layers: better at small objects with a tenth of the operations
            layers = [nn.Linear(d, WIDE), *(Block(WIDE, settings.dropout) for _ in range(4)), nn.LayerNorm(WIDE)]
            features = min(outputs, max(1, OUTPUTS // structure.cells))
            shape = (*structure.shape, features)
            layers += [nn.Linear(WIDE, math.prod(shape)), nn.Unflatten(1, shape), ChannelsFirst()]
            self.decoder = nn.Sequential(*layers, *([nn.Conv2d(features, outputs, 1)] if features < outputs else []))
        else:
            body += [Flatten(), nn.Linear(flat, 128), relu]
            self.encoder = Encoder(nn.Sequential(*body), 128, d, settings.mean_norm)
            given = settings.decoder_channels or given[::-1]
            height, width = smallest("decoder_channels", given, structure)
            flat = given[0] * height * width
            layers = [nn.Linear(d, 128), relu, nn.Linear(128, flat), relu, Unflatten(1, (given[0], height, width))]
            for before, after in pairwise(given):  # 16x16: to (B, 32, 16, 16)
                layers += [Upsample(before, after, 4, stride=2, padding=1), relu]
            layers.append(nn.Conv2d(given[-1], outputs, 3, padding=1))
            scale = 2 ** (len(given) - 1)
            cropped = (0, structure.width - width * scale, 0, structure.height - height * scale)
            self.decoder = nn.Sequential(*layers, *([nn.ZeroPad2d(cropped)] if any(cropped) else []))
        self.cells = Cells(settings, classes) if self.autoregressive else None

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        one_hot = functional.embedding(batch.x, self.one_hot)  # (B, H, W, classes): channels last, once permuted
        mean, raw = self.encoder(one_hot.permute(0, 3, 1, 2))
        return (standard_level(LEVEL, mean, posterior_logvar(raw, self.settings), noise),)

    def decode(self, latents: Latents, conditions: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return self.decoder(latents[LEVEL]).float() if self.cells is None else self.parts(latents)[0]

    def logits_for(self, latents: Latents, batch: Batch) -> Tensor:
        if self.cells is None:
            return self.decode(latents)
        return self.cells(*self.parts(latents), batch.x)  # type: ignore[no-any-return]

    def generate(
        self, latents: Latents, conditions: Tensor | None = None, draw: bool = False, constrained: bool = True
    ) -> Tensor:
        if self.cells is None:
            return super().generate(latents, conditions, draw, constrained)
        return self.cells.generate(*self.parts(latents), draw)[0]

    def parts(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """What an autoregressive decoder adds to: logits (B, classes, H, W) and features (B, FEATURES, H, W)."""
        found, classes = self.decoder(latents[LEVEL]), self.canvas.classes
        return found[:, :classes].float(), found[:, classes:]


def smallest(key: str, channels: tuple[int, ...], canvas: Canvas) -> tuple[int, int]:
    """Height and width of the canvas after a halving for each of the channels but one."""
    most = (max(canvas.shape) - 1).bit_length()
    if len(channels) > most + 1:
        what = f"model.{key}: {len(channels)} numbers, {canvas.height}x{canvas.width} can be halved {most} times"
        raise InputError(what, f"give at most {most + 1} numbers")
    height, width = (-(-side // 2 ** (len(channels) - 1)) for side in canvas.shape)
    return height, width


class ChannelsLast(torch.autograd.Function):
    """The identity on (B, C, H, W), channels last in memory both ways: operations on two layouts are slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.contiguous(memory_format=torch.channels_last).view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        return grads[0].contiguous(memory_format=torch.channels_last)


class Flatten(nn.Flatten):
    """(B, C, H, W) -> (B, C * H * W), with gradients as channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(ChannelsLast.apply(x))  # type: ignore[no-untyped-call]


class Unflatten(nn.Unflatten):
    """(B, C * H * W) -> (B, C, H, W) of this shape, channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return ChannelsLast.apply(super().forward(x))  # type: ignore[no-untyped-call, no-any-return]


class Upsample(nn.ConvTranspose2d):
    """A transposed convolution that adds its bias itself: on CPUs the gradient of PyTorch's bias is slow."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: ARG002
        """(B, in, H, W) -> (B, out, 2 H, 2 W)."""
        assert self.bias is not None
        out = functional.conv_transpose2d(x, self.weight, None, self.stride, (1, 1))
        return out.add_(self.bias.to(out.dtype).view(1, -1, 1, 1))


class Block(nn.Module):
    """x + dropout(linear(gelu(linear(norm(x))))), which starts as the identity."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, width)
        self.back = nn.Linear(width, width)
        nn.init.zeros_(self.back.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.widen(self.norm(x)), approximate="tanh")
        return torch.add(x, self.dropout(self.back(hidden)))


class ChannelsFirst(nn.Module):
    """(B, H, W, C) -> (B, C, H, W), channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)
