"""The convolutional beta-VAE of 16x16 grids of 10 colours: one vector of latents, two bodies."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.models.base import VAE, Batch, Encoder, Latents, Level, posterior_logvar, standard_level
from arcvae_cli.settings import GridSettings

COLOURS, SIDE, LEVEL = 10, 16, "z"
WIDE = 512  # width of the residual body's linear layers


class GridVAE(VAE):
    """Encoder of one-hot colours to `latent_dim` dimensions, decoder to colour logits (B, 10, 16, 16)."""

    def __init__(self, settings: GridSettings, structure: Canvas = ARC) -> None:
        super().__init__()
        self.settings, self.structure, d = settings, structure, settings.latent_dim
        self.level_shapes = {LEVEL: (d,)}
        self.one_hot = nn.Buffer(torch.eye(COLOURS), persistent=False)
        wide: list[nn.Module] = []
        if settings.body == "residual":  # before the convolutions: initial weights depend on the order of creation
            wide = [nn.Linear(2048, WIDE), nn.LayerNorm(WIDE), Block(WIDE, settings.dropout), nn.LayerNorm(WIDE)]
        relu, body = nn.ReLU(inplace=True), list[nn.Module]()
        for before, after, stride in ((COLOURS, 32, 1), (32, 64, 2), (64, 128, 2)):  # to (B, 128, 4, 4)
            body += [nn.Conv2d(before, after, 3, stride, padding=1), relu]
        if settings.body == "residual":
            self.encoder = Encoder(nn.Sequential(*body, Flatten(), *wide), WIDE, d)
            # linear layers: better at small objects with a tenth of the operations
            layers = [nn.Linear(d, WIDE), *(Block(WIDE, settings.dropout) for _ in range(4)), nn.LayerNorm(WIDE)]
            self.decoder = nn.Sequential(*layers, nn.Linear(WIDE, SIDE * SIDE * COLOURS), ChannelsFirst())
        else:
            self.encoder = Encoder(nn.Sequential(*body, Flatten(), nn.Linear(2048, 128), relu), 128, d)
            layers = [nn.Linear(d, 128), relu, nn.Linear(128, 2048), relu, Unflatten(1, (128, 4, 4))]
            for width in (128, 64):  # to (B, 32, 16, 16)
                layers += [Upsample(width, width // 2, 4, stride=2, padding=1), relu]
            self.decoder = nn.Sequential(*layers, nn.Conv2d(32, COLOURS, 3, padding=1))

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        one_hot = functional.embedding(batch.x, self.one_hot)  # (B, 16, 16, 10): channels last, once permuted
        mean, raw = self.encoder(one_hot.permute(0, 3, 1, 2))
        return (standard_level(LEVEL, mean, posterior_logvar(raw, self.settings), noise),)

    def decode(self, latents: Latents, conditions: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return self.decoder(latents[LEVEL]).float()  # type: ignore[no-any-return]


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
    """(B, H * W * C) -> (B, C, H, W), channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, SIDE, SIDE, COLOURS).permute(0, 3, 1, 2)
