"""The pushdown automaton against a plain Python stack, rule for rule."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arcvae_cli.data.parsing import Parser
from arcvae_cli.grammar import Grammar, Rules, parse_grammar, read_grammar
from arcvae_cli.models.pushdown import Pushdown

CODES = 300
TERMS = """
# sums of named terms with optional arguments: empty productions, a left and a right recursion, long right-hand sides
%separator " "
sum -> sum sign term | sign term
sign -> '+' | '-'
term -> name power arguments | '0'
name -> 'u' | 'v' | 'w'
power -> '^' digit |
digit -> '2' | '3'
arguments -> '(' name more ')' |
more -> ',' name more |
"""
GRAMMARS: dict[str, tuple[Callable[[], Grammar], int]] = {
    "equations": (lambda: read_grammar("equations"), 15),
    "smiles": (lambda: read_grammar("smiles"), 90),
    "terms": (lambda: parse_grammar(TERMS, "terms"), 24),
}


def plain(
    rules: Rules, length: int, logits: NDArray[np.float32], noise: NDArray[np.float32] | None, budget: bool
) -> tuple[list[int], bool]:
    """One derivation (T,) of logits (T, P) and noise (T, K) with a stack of symbols, and whether it came to an end."""
    assert rules.rhs is not None
    fewest = shortest(rules)
    stack, ids = [rules.start], []
    for step in range(length):
        if not stack:
            break
        symbol = stack.pop()
        left = length - step - 1 - sum(fewest[below] for below in stack)
        best: tuple[np.float32, int] | None = None
        for slot, rule in enumerate(rules.of(symbol)):
            if budget and sum(fewest[part] for part in rules.rhs[rule]) > left:
                continue
            score = logits[step, rule] if noise is None else logits[step, rule] + noise[step, slot]
            if best is None or score > best[0]:
                best = score, rule
        assert best is not None
        ids.append(best[1])
        stack.extend(reversed(rules.rhs[best[1]]))
    return ids + [rules.padding] * (length - len(ids)), not stack


def shortest(rules: Rules) -> list[int]:
    """By symbol, how many rules finish it: what holds for all rules is looked for until nothing changes."""
    assert rules.rhs is not None
    found = [10**6] * len(rules.symbols)
    for _ in rules.symbols:
        for left, right in zip(rules.lhs, rules.rhs, strict=True):
            if left >= 0:
                found[left] = min(found[left], 1 + sum(found[part] for part in right))
    return found


def random_logits(rules: Rules, length: int, n: int) -> torch.Tensor:
    """(n, P, T), from nearly flat to nearly certain."""
    drawn = torch.randn(n, length, len(rules), generator=torch.Generator().manual_seed(7))
    return (drawn * torch.tensor([0.1, 1.0, 4.0, 20.0]).repeat(n)[:n, None, None]).transpose(1, 2)


def random_rules(seed: int) -> Rules:
    """A grammar of five symbols, each of which can end at once, with right-hand sides of up to four."""
    drawn = random.Random(seed)
    bodies: list[tuple[int, tuple[int, ...]]] = [(symbol, ()) for symbol in range(5)]
    bodies += [
        (drawn.randrange(5), tuple(drawn.choices(range(5), k=drawn.randint(0, 4)))) for _ in range(drawn.randint(5, 20))
    ]
    drawn.shuffle(bodies)
    pairs = [*dict.fromkeys(bodies), (-1, ())]
    lhs, rhs = zip(*pairs, strict=True)
    return Rules(tuple("abcde"), lhs, rhs, start=drawn.randrange(5), padding=len(pairs) - 1)


def agree(rules: Rules, length: int, n: int, budget: bool, sampled: bool) -> torch.Tensor:
    """The derivations, complete ones only, after the plain stack gave the same."""
    pushdown = Pushdown(rules, length)
    logits = random_logits(rules, length, n)
    noise = pushdown.noise(n) if sampled else None
    derived = pushdown.derive(logits, noise, budget)
    assert derived.ids.dtype == torch.int64 and derived.complete.dtype == torch.bool
    rows = logits.transpose(1, 2).numpy()
    expected = [
        plain(rules, length, rows[code], None if noise is None else noise[code].numpy(), budget) for code in range(n)
    ]
    assert derived.ids.tolist() == [ids for ids, _ in expected]
    assert derived.complete.tolist() == [complete for _, complete in expected]
    return derived.ids[derived.complete]


@pytest.mark.parametrize("sampled", [False, True], ids=["argmax", "sampled"])
@pytest.mark.parametrize("budget", [True, False], ids=["budget", "free"])
@pytest.mark.parametrize("name", GRAMMARS)
def test_matches_a_plain_stack_and_parses(name: str, budget: bool, sampled: bool) -> None:
    make, length = GRAMMARS[name]
    grammar = make()
    complete = agree(grammar.rules, length, CODES, budget, sampled)
    assert len(complete) == CODES if budget else 0 < len(complete) < CODES
    parser = Parser(grammar)
    padding = grammar.rules.padding
    for ids in complete.tolist():
        text = grammar.write(ids)
        assert text is not None
        assert parser.parse(text) == [rule for rule in ids if rule != padding]


@pytest.mark.parametrize("seed", range(8))
def test_random_grammars_match_a_plain_stack(seed: int) -> None:
    rules = random_rules(seed)
    for budget in (True, False):
        for length in (1, 2, 13):
            complete = agree(rules, length, 40, budget, sampled=True)
            assert len(complete) == 40 or not budget
            assert complete.shape[1:] == (length,)


def test_ties_take_the_first_rule_within_the_budget() -> None:
    rules = read_grammar("equations").rules  # 0: S -> S '+' T, 3: S -> T, 7: T -> 'x', the shortest of T by its id
    pushdown = Pushdown(rules, 5)
    ids = pushdown.derive(torch.zeros(1, len(rules), 5)).ids
    assert ids.tolist() == [plain(rules, 5, np.zeros((5, len(rules)), np.float32), None, True)[0]]
    assert ids[0, 0] == 0 and rules.padding not in ids[0, :4]
    free = pushdown.derive(torch.zeros(1, len(rules), 5), budget=False)
    assert free.ids.tolist() == [[0] * 5] and not free.complete


def test_sampled_rules_have_the_softmax_probabilities() -> None:
    rules = read_grammar("equations").rules
    pushdown = Pushdown(rules, 15)
    logits = torch.linspace(-1.5, 1.5, len(rules))[None, :, None].expand(1, -1, 15)
    torch.manual_seed(0)
    first = pushdown.derive(logits, pushdown.noise(40_000)[:, None], budget=False).ids[:, 0, 0]
    share = first.bincount(minlength=len(rules))[: len(rules.of(rules.start))] / len(first)
    expected = logits[0, list(rules.of(rules.start)), 0].softmax(dim=0)
    assert (share - expected).abs().max() < 0.01  # four standard deviations


def test_noise_is_gumbel_finite_and_the_generators() -> None:
    pushdown = Pushdown(read_grammar("equations").rules, 15)
    noise = pushdown.noise(2000, torch.Generator().manual_seed(3))
    assert noise.shape == (2000, 15, pushdown.slots) and noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.02)
    assert torch.equal(noise, pushdown.noise(2000, torch.Generator().manual_seed(3)))


def test_many_derivations_of_a_code_share_its_logits() -> None:
    rules = read_grammar("smiles").rules
    pushdown = Pushdown(rules, 40)
    logits, noise = random_logits(rules, 40, 6), pushdown.noise(5 * 6).view(5, 6, 40, -1)
    derived = pushdown.derive(logits, noise)
    assert derived.ids.shape == (5, 6, 40) and derived.complete.shape == (5, 6)
    for place in range(5):
        assert torch.equal(derived.ids[place], pushdown.derive(logits, noise[place]).ids)
    one = pushdown.derive(logits[0], noise[:, 0])
    assert torch.equal(one.ids, derived.ids[:, 0])
    assert pushdown.derive(logits[0]).ids.shape == (40,)


def test_nothing_is_read_back_and_no_shape_depends_on_a_value() -> None:
    """Tensors on the meta device have no values: whoever asks for one, or decides by one, raises."""
    rules = read_grammar("equations").rules
    pushdown = Pushdown(rules, 15).to("meta")
    derived = pushdown.derive(torch.zeros(4, len(rules), 15, device="meta"), pushdown.noise(4), budget=True)
    assert derived.ids.is_meta and derived.ids.shape == (4, 15) and derived.complete.shape == (4,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_cuda_graph_replays_it() -> None:
    rules = read_grammar("smiles").rules
    pushdown = Pushdown(rules, 60).cuda()
    logits, noise = random_logits(rules, 60, 64).cuda(), pushdown.noise(64)
    expected = Pushdown(rules, 60).derive(logits.cpu(), noise.cpu())
    pushdown.derive(logits, noise)  # warms up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        derived = pushdown.derive(logits, noise)
    graph.replay()
    assert torch.equal(derived.ids.cpu(), expected.ids) and torch.equal(derived.complete.cpu(), expected.complete)
