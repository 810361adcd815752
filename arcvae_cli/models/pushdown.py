"""A pushdown automaton that turns logits into left-most derivations, a whole batch at once on the device.

A stack holds remainders of right-hand sides rather than symbols, so that a step writes at most two cells and moves the
pointer by one at most. Nothing is read back and no shape depends on a value: CUDA graphs can capture the walk.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules

UNREACHABLE = 2**40  # rules that a slot without a rule would take: more than any derivation has
END, START = 0, 1  # remainders at the bottom of a stack, with the padding rule only, and above it at first
FIX = "raise data.max_rules (--max-rules), or use a smaller grammar or model.encoder_kernel"


class Derived(NamedTuple):
    """Left-most derivations: `ids` (..., T) int64, padded; `complete` (...) bool, whether nothing was left after T."""

    ids: Tensor
    complete: Tensor


class Pushdown(nn.Module):
    """The automaton of P rules, for derivations of `length` steps (T); `slots` (K): most rules of one symbol.

    The right-hand sides have to be known. InputError if no derivation ends within `length` rules.
    """

    def __init__(self, rules: Rules, length: int) -> None:
        super().__init__()
        assert rules.rhs is not None
        fewest = rules.fewest()
        self.length, self.spare = length, length - fewest[rules.start]
        if self.spare < 0:
            raise InputError(f"no derivation has {length} rules: the shortest has {fewest[rules.start]}", FIX)
        ways = {left: rules.of(left) for left in {*rules.lhs}}  # by symbol, its rules
        # what can stand in a cell, as symbols still to derive: nothing, the start, and every tail of a right-hand side
        waiting: list[tuple[int, ...]] = [(rules.start,)]
        place = {(): END, waiting[0]: START}
        for remainder in waiting:  # which grows
            for tail in (remainder[1:], *(rules.rhs[rule] for rule in ways[remainder[0]])):
                if tail not in place:
                    place[tail] = len(place)
                    waiting.append(tail)
        self.slots = max(len(ways[remainder[0]]) for remainder in waiting)
        choices, moves, chosen = [], [], []
        for remainder in place:
            options, taken = ways[remainder[0]] if remainder else [rules.padding], []
            for rule in options:
                body = rules.rhs[rule] if remainder else ()
                more = 1 + sum(fewest[s] for s in body) - fewest[remainder[0]] if remainder else 0
                taken.append(min(more, UNREACHABLE))
                # the rest of the remainder, under the body of the rule; empty ones are not pushed
                above = [place[part] for part in (remainder[1:], body) if part] if remainder else [END]
                step = len(above) - 1
                moves.append([step, step, -taken[-1], *above, *[END] * (2 - len(above))])
            missing = self.slots - len(options)
            moves += [[0] * 5] * missing
            chosen += [*options, *[rules.padding] * missing]
            choices.append([*chosen[-self.slots :], *taken, *[UNREACHABLE] * missing])
        # (C, 2 K) by remainder: rules of its first symbol, ascending, and rules beyond the fewest of each
        self.choices = nn.Buffer(torch.tensor(choices), persistent=False)
        # (C K, 5) by remainder and slot: moves of the two cells, minus the rules taken, the two remainders written
        self.moves = nn.Buffer(torch.tensor(moves), persistent=False)
        self.rule = nn.Buffer(torch.tensor(chosen), persistent=False)  # (C K,) by remainder and slot

    def noise(self, n: int) -> Tensor:
        """Gumbel noise (n, T, K) float32: the argmax of logits and noise is a draw from their softmax."""
        drawn = torch.rand(n, self.length, self.slots, device=self.choices.device)
        return drawn.clamp_(min=torch.finfo(drawn.dtype).tiny).log_().neg_().log_().neg_()

    @torch.no_grad()
    def derive(self, logits: Tensor, noise: Tensor | None = None, budget: bool = True) -> Derived:
        """The derivations that logits (..., P, T) give, the argmax or, with noise (..., T, K), sampled ones.

        The first dimensions broadcast. Of equal rules the one with the lowest id is taken. With `budget` only rules are
        allowed that can be finished within T steps, which changes p(x|z); without it derivations are cut off after T.
        """
        lead = logits.shape[:-2]
        if noise is not None:
            lead = torch.broadcast_shapes(lead, noise.shape[:-2])  # type: ignore[no-untyped-call]
            noise = noise.expand(*lead, -1, -1)
        if logits.dtype != torch.float64:
            logits = logits.float()
        n, numbers = lead.numel(), partial(torch.empty, dtype=torch.int64, device=logits.device)
        # everything that a step writes is allocated once; stacks lie side by side, cells of one depth together
        stack = numbers(self.length + 2, n)
        stack[0], stack[1] = END, START
        state = numbers(3, n)  # the two cells that the pointer is at, and the rules to spare
        state[0], state[1], state[2] = 1, 2, self.spare if budget else UNREACHABLE // 2
        pointer, cells, spare = state[:1], state[:2], state[2:].t()
        top, slot, barred = numbers(1, n), numbers(n, 1), numbers(n, self.slots, dtype=torch.bool)
        choice, move = numbers(n, 2 * self.slots), numbers(n, 5)
        rules, taken = choice.view(*lead, -1)[..., : self.slots], choice[:, self.slots :]
        shift, written = move[:, :3].t(), move[:, 3:].t()
        scores, best = numbers(n, self.slots, dtype=logits.dtype), numbers(n, 1, dtype=logits.dtype)
        by_code = scores.view(*lead, self.slots)
        remainder, chosen, trace = top.view(n), slot.view(n), numbers(self.length, n)
        lowest = torch.finfo(scores.dtype).min
        for step, here in enumerate(logits.expand(*lead, -1, -1).unbind(-1)):  # (..., P)
            torch.gather(stack, 0, pointer, out=top)
            torch.index_select(self.choices, 0, remainder, out=choice)
            torch.gather(here, -1, rules, out=by_code)
            if noise is not None:
                by_code += noise[..., step, :]
            torch.gt(taken, spare, out=barred)
            scores.masked_fill_(barred, lowest)
            torch.max(scores, 1, keepdim=True, out=(best, slot))  # of equal ones the first, as argmax, in half the time
            torch.add(chosen, remainder, alpha=self.slots, out=trace[step])
            torch.index_select(self.moves, 0, trace[step], out=move)
            stack.scatter_(0, cells, written)
            state.add_(shift)
        ids = self.rule.index_select(0, trace.view(-1)).view(self.length, n).t()
        return Derived(ids.view(*lead, self.length), (pointer == 0).view(lead))
