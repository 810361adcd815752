import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from arcvae_cli.canvas import ARC
from arcvae_cli.data.derivations import wrong_step
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules, parse_grammar, read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.base import Batch
from arcvae_cli.models.grammar import GrammarVAE, Structure
from arcvae_cli.objective import Objective
from arcvae_cli.presets import resolve
from arcvae_cli.settings import GrammarSettings, GridSettings, ObjectiveSettings

RULES = read_grammar("equations").rules
SHORT = Structure(RULES, 15)
SMILES = Structure(read_grammar("smiles").rules, 277)
SMALL: dict[str, Any] = {
    "kusner": {"encoder_kernel": [2, 3, 4], "encoder_channels": [2, 3, 4], "encoder_hidden": 20, "decoder_hidden": 16},
    "enhanced": {"encoder_hidden": 16, "decoder_hidden": 16, "decoder_dropout": 0.0},
}
NATS = Objective(ObjectiveSettings()).reconstruction
both = pytest.mark.parametrize("arch", ["kusner", "enhanced"])


def small(arch: str, structure: Structure = SHORT, **settings: Any) -> GrammarVAE:
    torch.manual_seed(0)
    values = {"arch": arch, "latent_dim": 6, "decoder_layers": 2, **SMALL[arch], **settings}
    return GrammarVAE(GrammarSettings(**values), structure).eval()


def batch_of(x: torch.Tensor) -> Batch:
    return Batch(x, x != RULES.padding)


def derivations(n: int) -> Batch:
    """Whole derivations of equations, drawn at random."""
    pushdown = small("kusner").pushdown
    return batch_of(pushdown.derive(torch.zeros(n, 12, 15), pushdown.noise(n)).ids)


def test_the_2017_sizes() -> None:
    """Convolutions, dense layer and GRU as the code of Kusner et al. has them, counted by hand."""
    model = build_model(resolve("kusner_original").settings.model, SMILES)
    left = 277 - 8 - 8 - 10
    encoder = (76 * 9 * 9 + 9) + (9 * 9 * 9 + 9) + (9 * 11 * 10 + 10) + (10 * left * 435 + 435) + 2 * (435 * 56 + 56)
    gru = 3 * 501 * (56 + 501 + 2) + 2 * 3 * 501 * (501 + 501 + 2)
    decoder = (56 * 56 + 56) + gru + (501 * 76 + 76)
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + decoder


@both
def test_nats_are_those_of_a_softmax_over_the_rules_of_the_symbol(arch: str) -> None:
    """Against a plain loop in float64; what stands at padding contributes neither to the loss nor to a gradient."""
    model, batch = small(arch), derivations(6)
    output = model(batch, noise=False)
    bare = model.decode({"z": output.levels[0].sample}).double()
    expected = [0.0] * 6
    for row, step in itertools.product(range(6), range(15)):
        if (rule := int(batch.x[row, step])) != RULES.padding:
            scores = bare[row, list(RULES.of(RULES.lhs[rule])), step]
            expected[row] += (scores.logsumexp(0) - bare[row, rule, step]).item()
    assert NATS(output.logits, batch).tolist() == pytest.approx(expected, rel=1e-5)
    padding = ~batch.valid[:, None].expand_as(output.logits)
    moved = output.logits + 5.0 * torch.randn_like(output.logits) * padding
    assert padding.any() and torch.equal(NATS(moved, batch), NATS(output.logits, batch))
    (gradient,) = torch.autograd.grad(NATS(output.logits, batch).sum(), output.logits)
    assert not gradient[padding].any() and torch.isfinite(gradient).all()


@both
def test_probabilities_of_all_whole_derivations_sum_to_those_that_end_in_time(arch: str) -> None:
    rules = Rules(("S",), (0, 0, 0, -1), ((0, 0), (), (), ()), 0, 3)
    model = small(arch, Structure(rules, 5), encoder_kernel=[1, 1, 1])
    z = model.prior(model.noise(1), temperature=3.0)["z"]
    x = torch.tensor([ids for ids in itertools.product(range(4), repeat=5) if wrong_step(list(ids), rules) is None])
    assert len(x) == 2 + 4 + 16  # of 1, 3 and 5 rules: Catalan numbers times 2 to the leaves
    batch = Batch(x, x != 3)
    ending = NATS(model.logits_for({"z": z.expand(len(x), -1)}, batch), batch).neg().exp().sum().item()
    drawn = model.pushdown.derive(
        model.decode({"z": z}).expand(20_000, -1, -1), model.pushdown.noise(20_000), budget=False
    )
    assert ending == pytest.approx(drawn.complete.float().mean().item(), abs=0.02) and ending < 1.0


def test_the_noise_of_2017_is_narrower_than_the_density_whose_kl_is_trained() -> None:
    batch = derivations(2000)
    (wide,), (level,) = small("kusner").encode(batch), small("kusner", posterior_noise=0.01).encode(batch)
    assert torch.equal(wide.kl, level.kl) and torch.equal(wide.elbo_kl, wide.kl)  # 2017: the KL of the full sigma
    spread = (level.sample - level.mean).std(0) / (wide.sample - wide.mean).std(0)
    assert spread.tolist() == pytest.approx([0.01] * 6, rel=0.1)
    # KL(N(m, s^2 v)) - KL(N(m, v)) = -log s - v (1 - s^2) / 2, for each dimension
    more = -math.log(0.01) - 0.5 * wide.logvar.exp() * (1 - 1e-4)
    torch.testing.assert_close(level.elbo_kl - level.kl, more, atol=1e-4, rtol=0)


def test_what_does_not_fit_is_refused_and_never_chosen() -> None:
    kusner = resolve("kusner_original").settings.model
    long = Structure(parse_grammar(f"S -> {'A ' * 39}\nA -> 'a'", "long").rules, 15)
    for settings, structure, message in (
        (kusner, SHORT, "needs derivations of 27 rules, and these have 15"),
        (GrammarSettings(encoder_kernel=17), SHORT, "needs derivations of 17 rules"),
        (GrammarSettings(**SMALL["enhanced"]), long, "the shortest has 40"),
        (GrammarSettings(), ARC, "the model grammar is for strings, the data are grids"),
        (GridSettings(), SHORT, "the model grid is for grids, the data are strings"),
    ):
        with pytest.raises(InputError, match=message):
            build_model(settings, structure)
    doubled = "\n".join(f"A{number} -> A{number + 1} A{number + 1}" for number in range(100))
    rules = parse_grammar(f"S -> A0 | 'x'\n{doubled}\nA100 -> 'a'", "doubled").rules
    found = small("enhanced", Structure(rules, 9)).argmax_decode(torch.zeros(1, len(rules), 9))
    assert found[0].tolist() == [1] + [rules.padding] * 8, "A0 takes more rules than any derivation has"


def test_a_structure_survives_its_checkpoint_with_and_without_right_hand_sides() -> None:
    bare = Structure(dataclasses.replace(RULES, rhs=None, text=None), 15)
    assert all(Structure.of(structure.text()) == structure for structure in (SMILES, bare))
    model = small("enhanced", bare)
    logits = model(derivations(4)).logits
    assert model.pushdown is None and torch.equal(model.argmax_decode(logits), logits.argmax(1))


@both
def test_omitted_steps_are_padding(arch: str) -> None:
    """Encoded and decoded alike, whether steps that hold padding alone are there or not."""
    model, x = small(arch, posterior_noise=0.5), derivations(6).x
    for filled in (15, 11, 4, 1):
        x[:, filled:] = RULES.padding
        with torch.no_grad():
            (whole,), (short,) = (model.encode(batch_of(some), noise=False) for some in (x, x[:, :filled]))
            logits, beginning = (model.logits_for({"z": whole.mean}, batch_of(some)) for some in (x, x[:, :filled]))
        for name in ("mean", "logvar", "kl", "sampled_kl"):
            torch.testing.assert_close(getattr(short, name), getattr(whole, name))
        torch.testing.assert_close(beginning, logits[:, :, :filled])
