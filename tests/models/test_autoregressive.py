"""Autoregressive decoding against tables of all derivations of a small grammar."""

import itertools
from typing import Any

import pytest
import torch

from arcvae_cli.data.derivations import wrong_step
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules, read_grammar
from arcvae_cli.models.base import Batch
from arcvae_cli.models.grammar import GrammarVAE, Structure
from arcvae_cli.objective import Objective
from arcvae_cli.settings import GrammarSettings, ObjectiveSettings

EQUATIONS = read_grammar("equations").rules
TREES = Rules(("S",), (0, 0, 0, -1), ((0, 0), (), (), ()), 0, 3)  # S -> S S | a | b
NATS = Objective(ObjectiveSettings()).reconstruction


def small(rules: Rules = EQUATIONS, length: int = 15, **settings: Any) -> GrammarVAE:
    """A model with large weights, far from uniform."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"latent_dim": 4, "encoder_hidden": 8, "encoder_kernel": 1, "decoder_hidden": 12}
    sizes |= {"decoder": "autoregressive", "decoder_layers": 2, **settings}
    model = GrammarVAE(GrammarSettings(**sizes), Structure(rules, length)).eval().requires_grad_(False)
    for parameter in model.decoder.parameters():
        parameter.mul_(2.0)
    model.decoder.end.bias[0] += 1.0  # both grammars begin with a rule that goes on
    return model


def log_p(model: GrammarVAE, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(n,) log p(x|z) by teacher forcing."""
    batch = Batch(x, x != model.structure.rules.padding)
    return -NATS(model.logits_for({"z": z}, batch), batch)


@pytest.fixture(scope="module")
def trees() -> torch.Tensor:
    """All 22 whole derivations of at most five rules, (22, 5)."""
    every = itertools.product(range(4), repeat=5)
    return torch.tensor([ids for ids in every if wrong_step(list(ids), TREES) is None])


@pytest.mark.parametrize("skip", [True, False])
def test_teacher_forcing_gives_the_product_of_the_probabilities_of_the_steps(skip: bool) -> None:
    """Over all whole derivations that were drawn without a budget; the layers see z or do not."""
    model = small(skip_connections=skip)
    z = torch.randn(300, 4)
    steps, own = list[torch.Tensor](), model.score(z)

    def score(*place: Any) -> Any:
        logits, state = own(*place)
        steps.append(logits.clone())
        return logits, state

    noise = model.pushdown.noise(300)
    ids, complete = model.pushdown.walk(score, z.shape[:1], noise, budget=False)
    assert 30 < complete.sum() < 300
    left, total = torch.tensor(EQUATIONS.lhs), torch.zeros(300)
    for logits, rules in zip(steps, ids.T, strict=False):
        alternatives = left == left[rules][:, None]
        chances = logits.masked_fill(~alternatives, -torch.inf).log_softmax(1).gather(1, rules[:, None])[:, 0]
        total += torch.where(rules == EQUATIONS.padding, 0.0, chances)
    torch.testing.assert_close(log_p(model, z, ids)[complete], total[complete])
    by_layer = model.decoder.codes(z)
    assert [code is None for code in by_layer] == [False, not skip, not skip]


def test_a_rule_depends_on_those_before_it_alone() -> None:
    model, z = small(), torch.randn(1, 4)
    x = model.derive(z, model.pushdown.noise(1), (True, True))[0].ids
    changed = x.clone()
    changed[:, 7:] = EQUATIONS.padding
    logits, other = (model.decoder(z, some) for some in (x, changed))
    torch.testing.assert_close(other[:, :, :7], logits[:, :, :7])
    model.train()
    model.decoder.input_dropout = 0.999
    assert not torch.equal(model.decoder(z, x)[:, :, 7], logits[:, :, 7])


def test_draws_have_the_frequencies_of_the_model(trees: torch.Tensor) -> None:
    """The same noise gives the same rules with a budget; a temperature near 0 gives the greedy ones."""
    model = small(TREES, 5)
    z = torch.randn(1, 4)
    chances = log_p(model, z.expand(len(trees), -1), trees).exp()
    noise = model.pushdown.noise(40_000)
    (free, complete), (held, whole), (best, _) = model.derive(z, noise, (True, False), (True, True), (False, True))
    assert 0.1 < chances.sum().item() < 0.9 and whole.all() and (best == best[0]).all()
    assert torch.equal(free[complete], held[complete])
    found = (free[complete][:, None] == trees).all(-1).float().sum(0) / len(free)
    assert (found - chances).abs().max() < 0.01
    [cold] = model.derive(z, noise, (True, True), temperature=1e-3)
    assert (cold.ids == best).all(-1).float().mean() > 0.99
    assert torch.equal(model.generate({"z": z}), best[:1])


def test_the_beam_finds_the_best_of_all_derivations(trees: torch.Tensor) -> None:
    """A beam of all does; one of width 1 is greedy. Codes do not mix."""
    model, z = small(TREES, 5), torch.randn(9, 4)
    found = model.beam(z, 22)
    # within the budget: the probability of each step is that among the rules that can still be finished
    closed = torch.stack([budgeted(model, code, trees) for code in z])
    assert found.complete.all() and torch.equal(found.ids, trees[closed.argmax(1)])
    [greedy] = model.derive(z, model.pushdown.noise(9), (False, True))
    assert torch.equal(model.beam(z, 1).ids, greedy.ids) and not torch.equal(found.ids, greedy.ids)


def budgeted(model: GrammarVAE, code: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(n,) log p(x|z) within the budget of the trees: S -> S S only where all that is open can end in time."""
    z = code.expand(len(x), -1)
    logits = model.logits_for({"z": z}, Batch(x, x != 3))
    total = torch.zeros(len(x))
    for row, ids in enumerate(x.tolist()):
        opened = 1
        for step, rule in enumerate(ids[: ids.index(3) if 3 in ids else 5]):
            allowed = [0, 1, 2] if opened + 2 <= 5 - step else [1, 2]
            total[row] += logits[row, allowed, step].log_softmax(0)[allowed.index(rule)]
            opened += 1 if rule == 0 else -1
    return total


def test_a_step_leaves_its_tensors_where_they_are() -> None:
    """As a CUDA graph of it needs: moves, remainders and state are written in place from the second step on."""
    model, places = small(), set[tuple[int, ...]]()
    own = model.score(torch.randn(5, 4))

    def score(step: int, moves: Any, tops: Any, state: Any) -> Any:
        if step:
            places.add((moves.data_ptr(), tops.data_ptr(), state.data_ptr()))
        return own(0, moves, tops, state)

    model.pushdown.walk(score, torch.Size([5]), None, budget=True)
    assert len(places) == 1


def test_without_a_grammar_there_is_no_autoregressive_decoder() -> None:
    bare = Rules(EQUATIONS.symbols, EQUATIONS.lhs, None, EQUATIONS.start, EQUATIONS.padding)
    with pytest.raises(InputError, match="needs the grammar"):
        small(bare)
    with pytest.raises(InputError, match="depend on the rules before"):
        small().decode({"z": torch.zeros(1, 4)})
