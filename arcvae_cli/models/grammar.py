"""The Grammar-VAE of Kusner, Paige and Hernandez-Lobato 2017: left-most derivations of a grammar, one vector z.

A factorised decoder gives logits of all steps at once, an autoregressive one those of a step given the rules before.
Allowed are the rules of the symbol on top of the stack: in training the left-hand side of the true rule, otherwise
found by `pushdown`.
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
from arcvae_cli.models.pushdown import FIX, Derived, Pushdown, Score
from arcvae_cli.settings import GrammarSettings

LEVEL = "z"
MASKED_LOGIT = -1e4  # of a rule that cannot stand at a step: no probability in any precision, and finite gradients
EMBEDDED = 128  # of the rule before an autoregressive decoder, at most: 384 make a GRU of 384 a quarter slower
UNFOLDED = 256  # width of the hidden layer that an autoregressive decoder's features of each place come from
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

    `pushdown` is None if only ids and masks are known. InputError if no derivation ends within `length` rules, the
    derivations are too short for the kernels, or an autoregressive decoder has no grammar.
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
        self.autoregressive = settings.decoder == "autoregressive"
        if self.autoregressive and self.pushdown is None:
            fix = "give data.grammar (--grammar), or use model.decoder=factorised"
            raise InputError("model.decoder: an autoregressive decoder needs the grammar of the derivations", fix)
        body = (KusnerBody if kusner else EnhancedBody)(settings, len(rules), length)
        self.encoder: nn.Module = Encoder(body, settings.encoder_hidden, settings.latent_dim, settings.mean_norm)
        factorised = KusnerDecoder if kusner else EnhancedDecoder
        self.decoder: nn.Module = (
            AutoregressiveDecoder(settings, rules, length)
            if self.autoregressive
            else factorised(settings, len(rules), length)
        )
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
        if self.autoregressive:
            raise InputError("logits: an autoregressive decoder's depend on the rules before each", "decode codes")
        return self.decoder(latents[LEVEL], steps or self.structure.length).float()  # type: ignore[no-any-return]

    def logits_for(self, latents: Latents, batch: Batch) -> Tensor:
        """Logits (B, P, L) with all rules but those of the true rule's left-hand side at `MASKED_LOGIT`."""
        masks = functional.embedding(batch.x, self._allowed).transpose(1, 2)  # (B, L, P) -> (B, P, L)
        if self.autoregressive:
            return self.decoder(latents[LEVEL], batch.x).float() + masks  # type: ignore[no-any-return]
        return self.decode(latents, steps=batch.x.shape[1]) + masks

    def generate(
        self, latents: Latents, conditions: Tensor | None = None, draw: bool = False, constrained: bool = True
    ) -> Tensor:
        if not self.autoregressive or self.pushdown is None:
            return super().generate(latents, conditions, draw, constrained)
        z = latents[LEVEL]
        return self.derive(z, self.pushdown.noise(len(z)), (draw, True))[0].ids

    def derive(self, z: Tensor, noise: Tensor, *ways: tuple[bool, bool], temperature: float = 1.0) -> list[Derived]:
        """Derivations (..., T) of codes (..., latent_dim) in several ways: whether drawn, and whether in budget.

        The first dimensions broadcast with those of the noise (..., T, K). `temperature` divides the logits of rules.
        """
        assert self.pushdown is not None
        lead = torch.broadcast_shapes(z.shape[:-1], noise.shape[:-2])  # type: ignore[no-untyped-call]
        score = self.score(z.expand(*lead, -1) if self.autoregressive else z, temperature)
        return [self.pushdown.walk(score, lead, noise if drawn else None, budget) for drawn, budget in ways]

    def beam(self, z: Tensor, width: int, budget: bool = True) -> Derived:
        """The best derivations (n, T) of codes (n, latent_dim) that a beam search finds: see `Pushdown.beam`."""
        assert self.pushdown is not None
        return self.pushdown.beam(self.score(z.repeat_interleave(width, dim=0)), len(z), width, budget)

    def score(self, z: Tensor, temperature: float = 1.0) -> Score:
        """The decoder by steps, of codes (..., latent_dim); logits (..., P) are divided by `temperature`."""
        assert self.pushdown is not None
        rule, symbol, decoder = self.pushdown.rule, self.pushdown.symbol, self.decoder
        if not isinstance(decoder, AutoregressiveDecoder):
            columns = self.decode({LEVEL: z}).div(temperature).unbind(-1)
            return lambda step, *_: (columns[step], None)
        codes, here = decoder.codes(z.flatten(0, -2)), torch.zeros(1, dtype=torch.int64, device=z.device)

        def step(_: int, moves: Tensor, tops: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
            here.add_(1) if state is not None else here.zero_()  # on the device, where a CUDA graph counts too
            places = decoder.places.index_select(0, here) if decoder.skip else None
            logits, state = decoder.steps(codes, places, rule[moves][:, None], symbol[tops][:, None], state)
            return logits[:, 0].float().div_(temperature).view(*z.shape[:-1], -1), state

        return step

    def reconstruct(self, batch: Batch) -> Tensor:
        """(B, T) rules at the posterior means: derived anew, or given the true left-hand sides."""
        return self(batch, noise=False).logits.argmax(dim=1) if self.pushdown is None else super().reconstruct(batch)

    def argmax_decode(self, logits: Tensor, conditions: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return logits.argmax(dim=1) if self.pushdown is None else self.pushdown.derive(logits).ids


def recurrent(layers: nn.Module, x: Tensor, state: Tensor | None = None) -> Tensor:
    """The output of GRU layers for (B, T, C), after the state (layers, B, C) if there is one."""
    # on CUDA in float32: cuDNN would use float16 even where the rest is in bf16, and gradients below 6e-8 vanish
    with torch.autocast(x.device.type, enabled=False) if x.is_cuda else nullcontext():
        return layers(x.float() if x.is_cuda else x, state)[0]  # type: ignore[no-any-return]


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
        self.reach, self.dropout = sum(kernel // 2 for kernel in settings.kernels), settings.dropout
        self.norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, SQUEEZED)
        self.dense = nn.Sequential(nn.Linear(SQUEEZED * length, width), nn.GELU(), nn.Linear(width, width), nn.GELU())

    def forward(self, x: Tensor, filled: int) -> Tensor:
        # beyond the reach of the kernels all examples have the same output: one row serves all
        same = filled + self.reach
        shared = not (self.training and self.dropout) and same + self.reach < x.shape[1]  # dropout makes rows differ
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


class AutoregressiveDecoder(nn.Module):
    """GRU layers over the rule before each step and the symbol it expands, with z at every step: p(rule | before, z).

    Both are embedded. z enters the first layer by a linear map. With `skip_connections` it enters all of them, and what
    a hidden layer makes of z for each place enters the first layer and the output, as in a factorised decoder.
    `input_dropout` hides rules in training (Bowman et al. 2016), not symbols, which the masks tell.
    """

    def __init__(self, settings: GrammarSettings, rules: Rules, length: int) -> None:
        super().__init__()
        width, layers, latent = settings.decoder_hidden, settings.decoder_layers, settings.latent_dim
        self.skip, self.input_dropout = settings.skip_connections, settings.input_dropout
        self.before, self.hidden = len(rules), len(rules) + 1  # in place of a rule: there is none yet, it is hidden
        self.inputs = [min(width, EMBEDDED), *[width] * (layers - 1)]  # of each layer
        self.rules = nn.Embedding(len(rules) + 2, self.inputs[0])
        self.symbols = nn.Embedding(len(rules.symbols) + 1, self.inputs[0])
        self.coded = self.inputs if self.skip else self.inputs[:1]
        self.begin = nn.Linear(latent, sum(self.coded), bias=False)
        self.layers = nn.ModuleList(nn.GRU(size, width, batch_first=True) for size in self.inputs)
        self.dropout = nn.Dropout(settings.decoder_dropout)
        self.end = nn.Linear(width + self.inputs[0] * self.skip, len(rules))
        if self.skip:
            self.unfold = nn.Sequential(nn.Linear(latent, UNFOLDED), nn.GELU())
            self.places = nn.Parameter(torch.empty(length, self.inputs[0], UNFOLDED).uniform_(-1, 1) / UNFOLDED**0.5)
        symbols = [left if left >= 0 else len(rules.symbols) for left in rules.lhs]
        self.symbol = nn.Buffer(torch.tensor(symbols), persistent=False)  # (P,) that each rule expands

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Logits (B, P, L) of each rule of x (B, L), given those before it."""
        previous = functional.pad(x[:, :-1], (1, 0), value=self.before)
        if self.training and self.input_dropout:
            hidden = torch.rand(previous.shape, device=x.device) < self.input_dropout
            previous = previous.masked_fill(hidden, self.hidden)
        places = self.places[: x.shape[1]] if self.skip else None
        return torch.transpose(self.steps(self.codes(z), places, previous, self.symbol[x], None)[0], 1, 2)

    def codes(self, z: Tensor) -> list[Tensor | None]:
        """What is added to the input of each layer, (B, C), and what places make features of, (B, UNFOLDED)."""
        maps: list[Tensor | None] = [*self.begin(z).split(self.coded, dim=-1)]
        return [*maps, self.unfold(z)] if self.skip else [*maps, *[None] * len(self.layers)]

    def steps(
        self, codes: list[Tensor | None], places: Tensor | None, rules: Tensor, symbols: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, L, P) of L steps after `rules` (B, L) at `symbols` (B, L), and the state (layers, B, width) then.

        `places`: the part of the parameter for these steps.
        """
        *maps, unfolded = codes
        h, features, after = self.rules(rules) + self.symbols(symbols), None, list[Tensor]()
        if places is not None and unfolded is not None:
            features = functional.linear(unfolded, places.flatten(0, 1)).view(len(h), len(places), -1)
            h = h + features
        before = [None] * len(self.layers) if state is None else torch.split(state, 1)
        for layer, code, held in zip(self.layers, maps, before, strict=True):
            h = self.dropout(h) if after else h
            h = recurrent(layer, h if code is None else h + code[:, None], held)
            after.append(h[:, -1])
        h = self.dropout(h)
        return self.end(h if features is None else torch.cat([h, features], dim=2)), torch.stack(after)


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
