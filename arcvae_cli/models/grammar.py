"""The Grammar-VAE of Kusner, Paige and Hernandez-Lobato 2017: left-most derivations of a grammar, one vector z.

The decoder gives logits of all steps at once. Allowed are the rules of the symbol on top of the stack: in training the
left-hand side of the true rule, otherwise found by `pushdown`.
"""

import json
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli import gaussians
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules, parse_grammar
from arcvae_cli.models.base import VAE, Batch, Encoder, Latents, Level, posterior_logvar
from arcvae_cli.models.pushdown import FIX, Pushdown
from arcvae_cli.settings import GrammarSettings

LEVEL = "z"
MASKED_LOGIT = -1e4  # of a rule that cannot stand at a step: no probability in any precision, and finite gradients
SQUEEZED = 16  # channels that the enhanced encoder keeps for each step before its dense layers


@dataclass(frozen=True, slots=True)
class Structure:
    """What the weights of a grammar model are made for: `length` steps (T) of these rules."""

    rules: Rules
    length: int

    def text(self) -> str:
        return json.dumps({"length": self.length, "rules": asdict(self.rules)}, sort_keys=True)

    @classmethod
    def of(cls, text: str) -> "Structure":
        values = json.loads(text)
        kept, length = values["rules"], int(values["length"])
        if kept["text"] is not None:
            return cls(parse_grammar(kept["text"], "its grammar").rules, length)
        return cls(Rules(**{**kept, "symbols": tuple(kept["symbols"]), "lhs": tuple(kept["lhs"])}), length)


class GrammarVAE(VAE):
    """Encoder of T steps of P rules to N(mean, exp logvar) in `latent_dim` dimensions, decoder to rule logits.

    `pushdown` is None if only ids and masks are known. InputError if no derivation ends within `length` rules, or the
    derivations are too short for the kernels.
    """

    kind = "strings"
    structure: Structure

    def __init__(self, settings: GrammarSettings, structure: Structure) -> None:
        super().__init__()
        self.settings, self.structure = settings, structure
        self.level_shapes = {LEVEL: (settings.latent_dim,)}
        rules, length, kusner = structure.rules, structure.length, settings.arch == "kusner"
        needed = 1 + sum(kernel - 1 for kernel in settings.kernels) if kusner else max(settings.kernels)
        if length < needed:
            raise InputError(f"model.encoder_kernel: needs derivations of {needed} rules, and these have {length}", FIX)
        self.pushdown = None if rules.rhs is None else Pushdown(rules, length)
        body = (KusnerBody if kusner else EnhancedBody)(settings, len(rules), length)
        self.encoder: nn.Module = Encoder(body, settings.encoder_hidden, settings.latent_dim, settings.mean_norm)
        self.decoder: nn.Module = (KusnerDecoder if kusner else EnhancedDecoder)(settings, len(rules), length)
        left = torch.tensor(rules.lhs)
        same = (left[:, None] == left) | (left[:, None] < 0)  # padding, and rules that no string has, rule out nothing
        # (P, P): for each true rule, 0 for its alternatives and `MASKED_LOGIT` for the rest
        self._allowed = nn.Buffer(torch.where(same, 0.0, MASKED_LOGIT), persistent=False)

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        """The posterior of (B, L) rules, the rest of T being padding; narrowed for the sample by `posterior_noise`."""
        missing = self.structure.length - batch.x.shape[1]
        x = functional.pad(batch.x, (0, missing), value=self.structure.rules.padding) if missing else batch.x
        mean, raw = self.encoder(x, batch.x.shape[1])
        logvar, scale, sampled = posterior_logvar(raw, self.settings), self.settings.posterior_noise, None
        kl = gaussians.kl_to_standard(mean, logvar)
        if scale != 1.0:
            logvar = logvar + 2.0 * math.log(scale)
            sampled = gaussians.kl_to_standard(mean, logvar)
        sample = gaussians.sample(mean, logvar) if noise else mean
        return (Level(LEVEL, mean, logvar, sample, kl, sampled_kl=sampled),)

    def decode(self, latents: Latents, conditions: Tensor | None = None, steps: int | None = None) -> Tensor:  # noqa: ARG002
        """Logits (B, P, T), float32, of latents (B, latent_dim), unmasked; of the first `steps` only if given."""
        return self.decoder(latents[LEVEL], steps or self.structure.length).float()  # type: ignore[no-any-return]

    def logits_for(self, latents: Latents, batch: Batch) -> Tensor:
        """Logits (B, P, L) with all rules but those of the true rule's left-hand side at `MASKED_LOGIT`."""
        masks = functional.embedding(batch.x, self._allowed).transpose(1, 2)  # (B, L, P) -> (B, P, L)
        return self.decode(latents, steps=batch.x.shape[1]) + masks

    def reconstruct(self, batch: Batch) -> Tensor:
        """(B, T) rules at the posterior means: derived anew, or given the true left-hand sides."""
        return self(batch, noise=False).logits.argmax(dim=1) if self.pushdown is None else super().reconstruct(batch)

    def argmax_decode(self, logits: Tensor, conditions: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return logits.argmax(dim=1) if self.pushdown is None else self.pushdown.derive(logits).ids


def recurrent(layers: nn.Module, x: Tensor) -> Tensor:
    """The output of GRU layers for (B, T, C)."""
    # on CUDA in float32: cuDNN would use float16 even where the rest is in bf16, and gradients below 6e-8 vanish
    with torch.autocast(x.device.type, enabled=False) if x.is_cuda else nullcontext():
        return layers(x.float() if x.is_cuda else x)[0]  # type: ignore[no-any-return]


class KusnerBody(nn.Module):
    """Valid convolutions over one-hot rules, and a dense layer: (B, T), `filled` not padding -> (B, encoder_hidden)."""

    def __init__(self, settings: GrammarSettings, rules: int, length: int) -> None:
        super().__init__()
        channels, layers = (rules, *settings.channels), []
        self.reach = sum(kernel - 1 for kernel in settings.kernels)
        for before, after, kernel in zip(channels, channels[1:], settings.kernels, strict=False):
            layers += [nn.Conv1d(before, after, kernel), nn.ReLU()]
        dense = nn.Linear(channels[-1] * (length - self.reach), settings.encoder_hidden)
        self.layers = nn.Sequential(*layers, nn.Flatten(), dense, nn.ReLU())
        self.one_hot = nn.Buffer(torch.eye(rules), persistent=False)

    def forward(self, x: Tensor, filled: int) -> Tensor:
        convolutions, read = self.layers[:-3], filled + self.reach
        convolved = convolutions(functional.embedding(x[:, :read], self.one_hot).transpose(1, 2))  # (B, C, T - reach)
        if read < x.shape[1]:  # outputs of padding alone are the same for every example: one row serves all
            rest = convolutions(functional.embedding(x[:1], self.one_hot).transpose(1, 2))
            convolved = torch.cat([convolved, rest[:, :, filled:].expand(len(x), -1, -1)], dim=2)
        return self.layers[-3:](convolved)  # type: ignore[no-any-return]


class KusnerDecoder(nn.Module):
    """A dense layer of z, repeated over the steps, and GRU layers: (B, latent_dim) -> logits (B, P, steps)."""

    def __init__(self, settings: GrammarSettings, rules: int, length: int) -> None:  # noqa: ARG002
        super().__init__()
        width, hidden, layers = settings.latent_dim, settings.decoder_hidden, settings.decoder_layers
        dropout = settings.decoder_dropout if layers > 1 else 0.0
        self.begin = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.layers = nn.GRU(width, hidden, layers, batch_first=True, dropout=dropout)
        self.end = nn.Linear(hidden, rules)

    def forward(self, z: Tensor, steps: int) -> Tensor:
        repeated = self.begin(z)[:, None].expand(-1, steps, -1)
        return torch.transpose(self.end(recurrent(self.layers, repeated)), 1, 2)


class EnhancedBody(nn.Module):
    """Embedded rules and places, residual convolutions, dense layers over all steps: (B, T) -> (B, encoder_hidden)."""

    def __init__(self, settings: GrammarSettings, rules: int, length: int) -> None:
        super().__init__()
        width = settings.encoder_hidden
        self.rules = nn.Embedding(rules, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Convolution(width, kernel, settings.dropout) for kernel in settings.kernels)
        self.reach = sum(kernel // 2 for kernel in settings.kernels)
        self.norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, SQUEEZED)
        self.dense = nn.Sequential(nn.Linear(SQUEEZED * length, width), nn.GELU(), nn.Linear(width, width), nn.GELU())

    def forward(self, x: Tensor, filled: int) -> Tensor:
        # beyond the reach of the kernels all examples have the same output: one row serves all
        same = filled + self.reach
        shared = not self.training and same + self.reach < x.shape[1]  # dropout makes rows differ
        squeezed = []
        for rows in (x[:, : same + self.reach], x[:1]) if shared else (x,):
            h = self.rules(rows) + self.places[: rows.shape[1]]  # (B, L, C)
            for block in self.blocks:
                h = block(h)
            squeezed.append(self.squeeze(self.norm(h)))  # (B, L, 16)
        if shared:
            squeezed = [torch.cat([squeezed[0][:, :same], squeezed[1][:, same:].expand(len(x), -1, -1)], dim=1)]
        return self.dense(squeezed[0].flatten(1))  # type: ignore[no-any-return]


class Convolution(nn.Module):
    """A residual block over (B, T, C): norm, convolution, GELU, linear."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        # over (B, C, 1, T) with channels side by side, as h has them: nothing is copied, and it takes half of Conv1d
        across, weight = self.norm(h).transpose(1, 2)[:, :, None], self.convolution.weight[:, :, None]
        padding = (0, self.convolution.kernel_size[0] // 2)
        inner = functional.conv2d(across, weight, self.convolution.bias, padding=padding)[:, :, 0].transpose(1, 2)
        return torch.add(h, self.dropout(self.linear(functional.gelu(inner))))


class EnhancedDecoder(nn.Module):
    """z and the place of each step through residual, normalised GRU layers: (B, latent_dim) -> (B, P, steps)."""

    def __init__(self, settings: GrammarSettings, rules: int, length: int) -> None:
        super().__init__()
        width = settings.decoder_hidden
        self.begin = nn.Sequential(nn.Linear(settings.latent_dim, width), nn.GELU(), nn.Linear(width, width))
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(settings.decoder_layers))
        self.layers = nn.ModuleList(nn.GRU(width, width, batch_first=True) for _ in range(settings.decoder_layers))
        self.dropout = nn.Dropout(settings.decoder_dropout)
        self.end = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, rules))

    def forward(self, z: Tensor, steps: int) -> Tensor:
        h = self.begin(z)[:, None] + self.places[:steps]  # (B, steps, C)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + self.dropout(recurrent(layer, norm(h)))
        return torch.transpose(self.end(h), 1, 2)
