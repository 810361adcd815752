from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from arcvae_cli.data.derivations import wrong_step
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules, parse_grammar, read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.base import Batch
from arcvae_cli.models.grammar import GrammarVAE, Structure
from arcvae_cli.objective import Objective
from arcvae_cli.presets import resolve
from arcvae_cli.settings import GrammarSettings, GridSettings, ObjectiveSettings

EQUATIONS = read_grammar("equations")
SMILES = read_grammar("smiles")
SMALL: dict[str, Any] = {
    "kusner": {"encoder_kernel": [2, 3, 4], "encoder_channels": [2, 3, 4], "encoder_hidden": 20, "decoder_hidden": 16},
    "enhanced": {"encoder_hidden": 16, "decoder_hidden": 16, "decoder_dropout": 0.0},
}


def small(arch: str, length: int = 15, **settings: Any) -> GrammarVAE:
    torch.manual_seed(0)
    values = {"arch": arch, "latent_dim": 6, "decoder_layers": 2, **SMALL[arch], **settings}
    return GrammarVAE(GrammarSettings(**values), Structure(EQUATIONS.rules, length)).eval()


def derivations(n: int, length: int = 15) -> torch.Tensor:
    """Whole derivations of equations, drawn from a model that knows nothing."""
    torch.manual_seed(1)
    model = small("kusner", length)
    assert model.pushdown is not None
    return model.pushdown.derive(torch.zeros(n, 12, length), model.pushdown.noise(n)).ids


def batch_of(x: torch.Tensor) -> Batch:
    return Batch(x, x != EQUATIONS.rules.padding)


def test_the_2017_sizes() -> None:
    """Convolutions, dense layer and GRU as the code of Kusner et al. has them, counted by hand."""
    model = build_model(resolve("kusner_original").settings.model, Structure(SMILES.rules, 277))
    left = 277 - 8 - 8 - 10
    encoder = (76 * 9 * 9 + 9) + (9 * 9 * 9 + 9) + (9 * 11 * 10 + 10) + (10 * left * 435 + 435) + 2 * (435 * 56 + 56)
    gru = 3 * 501 * (56 + 501 + 2) + 2 * 3 * 501 * (501 + 501 + 2)
    decoder = (56 * 56 + 56) + gru + (501 * 76 + 76)
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + decoder


@pytest.mark.parametrize("arch", ["kusner", "enhanced"])
def test_nats_are_those_of_a_softmax_over_the_rules_of_the_symbol(arch: str) -> None:
    """Against a plain loop in float64, padding left out."""
    model = small(arch)
    batch = batch_of(derivations(6))
    output = model(batch, noise=False)
    bare = model.decode({"z": output.levels[0].sample}).double()
    expected = []
    for row in range(6):
        total = 0.0
        for step, rule in enumerate(batch.x[row].tolist()):
            if rule == EQUATIONS.rules.padding:
                break
            rivals = EQUATIONS.rules.of(EQUATIONS.rules.lhs[rule])
            scores = [bare[row, rival, step].item() for rival in rivals]
            total += math.log(sum(map(math.exp, scores))) - bare[row, rule, step].item()
        expected.append(total)
    found = Objective(ObjectiveSettings()).reconstruction(output.logits, batch)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("arch", ["kusner", "enhanced"])
def test_probabilities_of_all_whole_derivations_sum_to_those_that_end_in_time(arch: str) -> None:
    """Given z, the probabilities of all 3 + 4 * ... short derivations and of not ending add up to 1."""
    rules = Rules(("S",), (0, 0, 0, -1), ((0, 0), (), (), ()), 0, 3)
    torch.manual_seed(3)
    values = {"arch": arch, "latent_dim": 3, **SMALL[arch], "encoder_kernel": [1, 1, 1]}
    model = GrammarVAE(GrammarSettings(**values), Structure(rules, 5)).eval()
    logits = 3.0 * model.decode(model.prior(1))
    whole = [ids for ids in itertools.product(range(4), repeat=5) if wrong_step(list(ids), rules) is None]
    assert len(whole) == 2 + 4 + 16  # of 1, 3 and 5 rules: Catalan numbers times 2 to the leaves
    x = torch.tensor(whole)
    batch = Batch(x, x != 3)
    expanded = model.masked(logits.expand(len(x), -1, -1), batch)
    ending = Objective(ObjectiveSettings()).reconstruction(expanded, batch).neg().exp().sum().item()
    assert model.pushdown is not None
    drawn = model.pushdown.derive(logits.expand(20_000, -1, -1), model.pushdown.noise(20_000), budget=False)
    assert ending == pytest.approx(drawn.complete.float().mean().item(), abs=0.02)
    assert ending < 1.0


@pytest.mark.parametrize("arch", ["kusner", "enhanced"])
def test_padding_contributes_nothing(arch: str) -> None:
    """Neither to the loss nor to any gradient: whatever the logits after the end are."""
    model = small(arch)
    x = derivations(8)
    batch = batch_of(x)
    objective = Objective(ObjectiveSettings())
    output = model(batch, noise=False)
    assert batch.valid is not None
    assert (~batch.valid).any()
    moved = output.logits + 5.0 * torch.randn_like(output.logits) * ~batch.valid[:, None]
    assert torch.equal(objective.reconstruction(moved, batch), objective.reconstruction(output.logits, batch))
    output.logits.retain_grad()
    objective.reconstruction(output.logits, batch).sum().backward()
    assert output.logits.grad is not None
    assert not output.logits.grad[~batch.valid[:, None].expand_as(output.logits)].any()
    assert torch.isfinite(output.logits.grad).all()


def test_the_noise_of_2017_is_narrower_than_the_density_whose_kl_is_trained() -> None:
    full, narrow = small("kusner"), small("kusner", posterior_noise=0.01)
    batch = batch_of(derivations(2000))
    (wide,) = full.encode(batch)
    (level,) = narrow.encode(batch)
    assert torch.equal(wide.kl, level.kl)  # the 2017 code trains the KL of the full sigma
    assert torch.equal(wide.elbo_kl, wide.kl)
    assert level.sampled_kl is not None
    spread = (level.sample - level.mean).std(0) / (wide.sample - wide.mean).std(0)
    assert spread.tolist() == pytest.approx([0.01] * 6, rel=0.1)
    # KL(N(m, s^2 v)) - KL(N(m, v)) = -log s - v (1 - s^2) / 2, for each dimension
    more = -math.log(0.01) - 0.5 * wide.logvar.exp() * (1 - 1e-4)
    assert torch.allclose(level.elbo_kl - level.kl, more, atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    kusner, short = resolve("kusner_original").settings.model, Structure(EQUATIONS.rules, 15)
    long = Structure(parse_grammar(f"S -> {'A ' * 39}\nA -> 'a'", "long").rules, 15)
    for settings, structure, message in (
        (kusner, short, "needs derivations of 27 rules, and these have 15"),
        (GrammarSettings(encoder_kernel=17), short, "needs derivations of 17 rules"),
        (GrammarSettings(**SMALL["enhanced"]), long, "the shortest has 40"),
        (GrammarSettings(), None, "the model grammar is for strings, the data are grids"),
        (GridSettings(), short, "the model grid is for grids, the data are strings"),
    ):
        with pytest.raises(InputError, match=message):
            build_model(settings, structure)


def test_a_structure_survives_its_checkpoint_with_and_without_right_hand_sides() -> None:
    bare = Structure(dataclasses.replace(EQUATIONS.rules, rhs=None, text=None), 15)
    for structure in (Structure(SMILES.rules, 277), bare):
        assert Structure.of(structure.text()) == structure
    model = GrammarVAE(GrammarSettings(arch="enhanced", **SMALL["enhanced"]), bare).eval()
    logits = model(batch_of(derivations(4))).logits
    assert model.pushdown is None and torch.equal(model.argmax_decode(logits), logits.argmax(1))


def test_an_unreachable_alternative_is_never_taken() -> None:
    doubled = "\n".join(f"A{number} -> A{number + 1} A{number + 1}" for number in range(100))
    rules = parse_grammar(f"S -> A0 | 'x'\n{doubled}\nA100 -> 'a'", "doubled").rules
    model = build_model(GrammarSettings(arch="enhanced", **SMALL["enhanced"]), Structure(rules, 9))
    logits = torch.zeros(1, len(rules), 9)
    assert model.argmax_decode(logits)[0].tolist() == [1] + [rules.padding] * 8
    with pytest.raises(InputError, match="the shortest has "):
        build_model(GrammarSettings(**SMALL["enhanced"]), Structure(dataclasses.replace(rules, start=1), 9))


@pytest.mark.parametrize("arch", ["kusner", "enhanced"])
def test_omitted_steps_are_padding(arch: str) -> None:
    """Encoded and decoded alike, whether steps that hold padding alone are there or not."""
    model = small(arch, posterior_noise=0.5)
    for filled in (1, 4, 11, 15):
        x = derivations(6)
        x[:, filled:] = EQUATIONS.rules.padding
        with torch.no_grad():
            (whole,), (short,) = (model.encode(batch_of(some), noise=False) for some in (x, x[:, :filled]))
            logits, beginning = (model.logits_for({"z": whole.mean}, batch_of(some)) for some in (x, x[:, :filled]))
        for name in ("mean", "logvar", "kl", "sampled_kl"):
            torch.testing.assert_close(getattr(short, name), getattr(whole, name))
        torch.testing.assert_close(beginning, logits[:, :, :filled])
