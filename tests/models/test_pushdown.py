"""The pushdown automaton against a plain Python stack, rule for rule."""

import random

import numpy as np
import pytest
import torch

from arcvae_cli.data.parsing import Parser
from arcvae_cli.grammar import Grammar, Rules, read_grammar
from arcvae_cli.models.pushdown import Pushdown

CODES = 80
EQUATIONS, SMILES = read_grammar("equations"), read_grammar("smiles")


def plain(rules: Rules, logits: np.ndarray, noise: np.ndarray | None, budget: bool) -> tuple[list[int], bool]:
    """One derivation (T,) of logits (T, P) and noise (T, K) with a stack of symbols, and whether it came to an end."""
    fewest = [10**6] * len(rules.symbols)  # rules that finish a symbol: looked for until nothing changes
    for _ in rules.symbols:
        for left, right in zip(rules.lhs, rules.rhs, strict=True):
            if left >= 0:
                fewest[left] = min(fewest[left], 1 + sum(fewest[part] for part in right))
    stack, ids = [rules.start], []
    while stack and len(ids) < len(logits):
        symbol, step = stack.pop(), len(ids)
        left = len(logits) - step - 1 - sum(fewest[below] for below in stack)
        best: tuple[np.float32, int] | None = None
        for slot, rule in enumerate(rules.of(symbol)):
            if budget and sum(fewest[part] for part in rules.rhs[rule]) > left:
                continue
            score = logits[step, rule] if noise is None else logits[step, rule] + noise[step, slot]
            if best is None or score > best[0]:
                best = score, rule
        ids.append(best[1])
        stack.extend(reversed(rules.rhs[best[1]]))
    return ids + [rules.padding] * (len(logits) - len(ids)), not stack


def random_logits(rules: Rules, length: int, n: int) -> torch.Tensor:
    """(n, P, T), from nearly flat to nearly certain."""
    drawn = torch.randn(n, length, len(rules), generator=torch.Generator().manual_seed(7))
    return (drawn * torch.tensor([0.1, 1.0, 4.0, 20.0]).repeat(n)[:n, None, None]).transpose(1, 2)


def random_rules(seed: int) -> Rules:
    """A grammar of five symbols, each of which can end at once, with right-hand sides of up to four."""
    drawn = random.Random(seed)
    bodies: list[tuple[int, tuple[int, ...]]] = [(symbol, ()) for symbol in range(5)]
    more = range(drawn.randint(5, 20))
    bodies += [(drawn.randrange(5), tuple(drawn.choices(range(5), k=drawn.randint(0, 4)))) for _ in more]
    drawn.shuffle(bodies)
    pairs = [*dict.fromkeys(bodies), (-1, ())]
    lhs, rhs = zip(*pairs, strict=True)
    return Rules(tuple("abcde"), lhs, rhs, start=drawn.randrange(5), padding=len(pairs) - 1)


def agree(rules: Rules, length: int, n: int, budget: bool, sampled: bool) -> torch.Tensor:
    """The derivations, complete ones only, after the plain stack gave the same."""
    pushdown, logits = Pushdown(rules, length), random_logits(rules, length, n)
    noise = pushdown.noise(n) if sampled else None
    ids, complete = pushdown.derive(logits, noise, budget)
    rows, added = logits.transpose(1, 2).numpy(), [None] * n if noise is None else noise.numpy()
    expected = [plain(rules, row, one, budget) for row, one in zip(rows, added, strict=True)]
    assert list(zip(ids.tolist(), complete.tolist(), strict=True)) == expected
    assert complete.all() or not budget
    return ids[complete]


@pytest.mark.parametrize(("grammar", "length"), [(EQUATIONS, 15), (SMILES, 60)], ids=["equations", "smiles"])
def test_matches_a_plain_stack_and_parses(grammar: Grammar, length: int) -> None:
    parser, padding = Parser(grammar), grammar.rules.padding
    for budget, sampled in ((True, False), (True, True), (False, False), (False, True)):
        complete = agree(grammar.rules, length, CODES, budget, sampled)
        assert budget or 0 < len(complete) < CODES
        for ids in complete[:: 1 if sampled else 8].tolist():
            assert parser.parse(grammar.write(ids)) == [rule for rule in ids if rule != padding]


@pytest.mark.parametrize("seed", range(8))
def test_random_grammars_match_a_plain_stack(seed: int) -> None:
    for budget in (True, False):
        for length in (1, 2, 13):
            complete = agree(random_rules(seed), length, 40, budget, sampled=True)
            assert len(complete) == 40 or not budget


def test_ties_take_the_first_rule_within_the_budget() -> None:
    pushdown, flat = Pushdown(EQUATIONS.rules, 5), torch.zeros(1, len(EQUATIONS.rules), 5)
    assert pushdown.derive(flat).ids.tolist() == [plain(EQUATIONS.rules, flat[0].T.numpy(), None, True)[0]]
    free = pushdown.derive(flat, budget=False)
    assert free.ids.tolist() == [[0] * 5] and not free.complete


def test_noise_is_gumbel_and_sampled_rules_have_the_softmax_probabilities() -> None:
    rules = EQUATIONS.rules
    pushdown = Pushdown(rules, 15)
    torch.manual_seed(0)
    noise = pushdown.noise(40_000)
    assert noise.shape == (40_000, 15, pushdown.slots) and noise.dtype == torch.float32 and noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.02)
    logits = torch.linspace(-1.5, 1.5, len(rules))[None, :, None].expand(1, -1, 15)
    first = pushdown.derive(logits, noise[:, None], budget=False).ids[:, 0, 0]
    share = first.bincount(minlength=len(rules))[: len(rules.of(rules.start))] / len(first)
    expected = logits[0, list(rules.of(rules.start)), 0].softmax(dim=0)
    assert (share - expected).abs().max() < 0.01  # four standard deviations


def test_many_derivations_of_a_code_share_its_logits() -> None:
    pushdown = Pushdown(SMILES.rules, 40)
    logits, noise = random_logits(SMILES.rules, 40, 6), pushdown.noise(5 * 6).view(5, 6, 40, -1)
    derived = pushdown.derive(logits, noise)
    assert derived.complete.shape == (5, 6)
    assert torch.equal(derived.ids, torch.stack([pushdown.derive(logits, one).ids for one in noise]))
    assert torch.equal(pushdown.derive(logits[0], noise[:, 0]).ids, derived.ids[:, 0])
    assert pushdown.derive(logits[0]).ids.shape == (40,)
