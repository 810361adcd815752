"""A pushdown automaton that turns logits into left-most derivations, a whole batch at once on the device.

A stack holds remainders of right-hand sides rather than symbols, so that a step writes at most two cells and moves the
pointer by one at most. Nothing is read back and no shape depends on a value: CUDA graphs can capture the walk.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from arcvae_cli.errors import InputError
from arcvae_cli.grammar import Rules

UNREACHABLE = 2**40  # rules that a slot without a rule would take: more than any derivation has
END, START = 0, 1  # remainders at the bottom of a stack, with the padding rule only, and above it at first
WARM_UP, LOOKED = 3, 8  # steps before a CUDA graph is recorded; every so many steps it is seen whether all are complete
FIX = "raise data.max_rules (--max-rules), or use a smaller grammar or model.encoder_kernel"


Score = Callable[[int, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""A decoder by steps: from the step, the moves (n,) taken last (`Pushdown.rule`: their rules), the remainders (n,) on
top of the stacks (`Pushdown.symbol`: their symbols) and its own state (layers, n, width), None at first, to logits
(..., P) and the state after it."""


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
        # (C K + 1,) by remainder and slot; the last is for what precedes the first rule
        self.rule = nn.Buffer(torch.tensor([*chosen, len(rules)]), persistent=False)
        ahead = [remainder[0] if remainder else len(rules.symbols) for remainder in place]
        self.symbol = nn.Buffer(torch.tensor(ahead), persistent=False)  # (C,) the first of each remainder

    def noise(self, n: int) -> Tensor:
        """Gumbel noise (n, T, K) float32: the argmax of logits and noise is a draw from their softmax."""
        drawn = torch.rand(n, self.length, self.slots, device=self.choices.device)
        return drawn.clamp_(min=torch.finfo(drawn.dtype).tiny).log_().neg_().log_().neg_()

    def derive(self, logits: Tensor, noise: Tensor | None = None, budget: bool = True) -> Derived:
        """The derivations that logits (..., P, T) give, as `walk`; first dimensions broadcast with those of noise."""
        lead = logits.shape[:-2]
        if noise is not None:
            lead = torch.broadcast_shapes(lead, noise.shape[:-2])  # type: ignore[no-untyped-call]
        columns = (logits if logits.dtype == torch.float64 else logits.float()).unbind(-1)
        return self.walk(lambda step, *_: (columns[step], None), lead, noise, budget, columns[0].dtype)

    @torch.no_grad()
    def walk(
        self, score: Score, lead: torch.Size, noise: Tensor | None, budget: bool, dtype: torch.dtype = torch.float32
    ) -> Derived:
        """The derivations (*lead, T) that scores give, the argmax or, with noise (..., T, K), sampled ones.

        Of equal rules the one with the lowest id is taken. With `budget` only rules are allowed that can be finished
        within T steps, which changes p(x|z); without it derivations are cut off after T.
        """
        stacks, cuda = Stacks(self, lead.numel(), budget), self.choices.is_cuda
        scores, best = (stacks.numbers(stacks.n, size, dtype=dtype) for size in (self.slots, 1))
        by_code, rules = scores.view(*lead, self.slots), stacks.rules.view(*lead, self.slots)
        slot, drawn, state = stacks.numbers(stacks.n, 1), stacks.numbers(*lead, self.slots, dtype=dtype), None
        noise = None if noise is None else noise.expand(*lead, -1, -1)
        trace, lowest = stacks.numbers(self.length, stacks.n).zero_(), torch.finfo(dtype).min

        def advance(step: int) -> None:  # whose tensors stay where they are after the first step
            nonlocal state
            stacks.look()
            here, after = score(step, stacks.move, stacks.top, state)
            state = after if state is None or after is None else state.copy_(after)
            torch.gather(here.expand(*lead, -1), -1, rules, out=by_code)
            if noise is not None:
                by_code.add_(drawn)
            scores.masked_fill_(stacks.barred, lowest)
            torch.max(scores, 1, keepdim=True, out=(best, slot))  # of equal ones the first, as argmax, in half the time
            stacks.take(slot.view(-1))

        graph = None
        for step in range(self.length):
            if noise is not None:
                drawn.copy_(noise[..., step, :])
            if graph is None:
                advance(step)
            else:
                graph.replay()
            trace[step] = stacks.move
            if cuda and state is not None and step == WARM_UP:
                graph = captured(partial(advance, step))
            elif scores.device.type == "cpu" and step % LOOKED == 0 and not stacks.pointer.any():
                break  # what follows is padding
        ids = self.rule.index_select(0, trace.view(-1)).view(self.length, stacks.n).t()
        return Derived(ids.view(*lead, self.length), (stacks.pointer == 0).view(lead))

    @torch.no_grad()
    def beam(self, score: Score, n: int, width: int, budget: bool = True) -> Derived:
        """The most likely of the `width` derivations (T,) of each of n codes that a beam search ends with.

        `score` is of `width` rows for each code. Probabilities are normalised over the rules that are allowed.
        """
        stacks, state = Stacks(self, n * width, budget), None
        first = width * torch.arange(n, device=self.choices.device)[:, None]  # row of each code's first derivation
        total = torch.full((n, width), -torch.inf, device=first.device)
        total[:, 0] = 0.0  # all others are copies of it
        trace = torch.zeros(self.length, n * width, dtype=torch.int64, device=first.device)
        for step in range(self.length):
            stacks.look()
            here, state = score(step, stacks.move, stacks.top, state)
            # finite, since all rules are barred where one that was had to fill the beam
            scores = here.gather(-1, stacks.rules).masked_fill(stacks.barred, torch.finfo(here.dtype).min)
            logs = scores.log_softmax(-1)
            total, chosen = (total[:, :, None] + logs.view(n, width, -1)).flatten(1).topk(width)
            rows = (first + chosen // self.slots).view(-1)
            stacks.keep(rows)
            state = None if state is None else state.index_select(1, rows)
            trace = trace.index_select(1, rows)
            stacks.take((chosen % self.slots).view(-1))
            trace[step] = stacks.move
        best = trace[:, first[:, 0]]
        ids = self.rule.index_select(0, best.reshape(-1)).view(self.length, n).t()
        return Derived(ids, stacks.pointer[0, first[:, 0]] == 0)


class Stacks:
    """The stacks of n derivations. Everything that a step writes is allocated once."""

    def __init__(self, pushdown: Pushdown, n: int, budget: bool) -> None:
        self.pushdown, self.n, slots = pushdown, n, pushdown.slots
        self.numbers = numbers = partial(torch.empty, dtype=torch.int64, device=pushdown.choices.device)
        self.cells = numbers(pushdown.length + 2, n)  # side by side, cells of one depth together
        self.cells[0], self.cells[1] = END, START
        self.state = numbers(3, n)  # the two cells that the pointer is at, and the rules to spare
        self.state[0], self.state[1], self.state[2] = 1, 2, pushdown.spare if budget else UNREACHABLE // 2
        self.pointer = self.state[:1]
        self.move, self.top = numbers(n).fill_(len(pushdown.rule) - 1), numbers(n)  # the last one, the remainder on top
        self.choice, self.barred = numbers(n, 2 * slots), numbers(n, slots, dtype=torch.bool)
        self.rules, self.moved = self.choice[:, :slots], numbers(n, 5)

    def look(self) -> None:
        """Find the remainders on top, their rules (n, K), and which of them are barred."""
        torch.gather(self.cells, 0, self.pointer, out=self.top.view(1, -1))
        torch.index_select(self.pushdown.choices, 0, self.top, out=self.choice)
        torch.gt(self.choice[:, self.pushdown.slots :], self.state[2][:, None], out=self.barred)

    def take(self, slots: Tensor) -> None:
        """Take the rules at slots (n,) of the remainders on top."""
        torch.add(slots, self.top, alpha=self.pushdown.slots, out=self.move)
        torch.index_select(self.pushdown.moves, 0, self.move, out=self.moved)
        self.cells.scatter_(0, self.state[:2], self.moved[:, 3:].t())
        self.state.add_(self.moved[:, :3].t())

    def keep(self, rows: Tensor) -> None:
        """Continue with the stacks at `rows` (n,), some of them several times."""
        for part in (self.cells, self.state, self.top[None]):
            part.copy_(part.index_select(1, rows))


def captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of a step that has run before, which leaves its tensors where they are; recording runs nothing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph
