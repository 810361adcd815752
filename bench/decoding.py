"""Strings a second from the same logits and the same noise: the batched automaton against plain Python stacks.

SMILES, T = 277, the rules drawn and with the length budget. The peers are what one writes without a device in mind:
a stack of symbols for each code, and at each step the best of the rules of the symbol on top, by NumPy or in lists.
All three must derive the same rules. What gives the logits, and what draws the noise, is outside the times, which is
where they are large: both are the same for all. On a GPU the automaton also runs as one graph, and its times include
the copy of the derivations to the host.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import common
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcvae_cli.grammar import Rules, read_grammar
from arcvae_cli.models.pushdown import Pushdown
from arcvae_cli.step import choose_device

LENGTH = 277
Numbers = NDArray[np.float32]


class Plain:
    """A stack for each code. `lists`: plain numbers instead of NumPy at every step."""

    def __init__(self, rules: Rules, lists: bool) -> None:
        assert rules.rhs is not None
        self.padding, self.start, self.lists = rules.padding, rules.start, lists
        self.fewest = rules.fewest()
        self.of = [np.array(rules.of(symbol)) for symbol in range(len(rules.symbols))]
        self.body = [tuple(reversed(body)) for body in rules.rhs]
        self.need = np.array([sum(self.fewest[part] for part in body) for body in rules.rhs])
        self.plain_of = [some.tolist() for some in self.of]
        self.plain_need = self.need.tolist()

    def __call__(self, logits: Numbers, noise: Numbers) -> list[list[int]]:
        one = self.by_lists if self.lists else self.by_numpy
        return [one(some, extra) for some, extra in zip(logits, noise, strict=True)]

    def by_numpy(self, logits: Numbers, noise: Numbers) -> list[int]:
        stack, needed, ids = [self.start], self.fewest[self.start], []
        for step in range(LENGTH):
            if not stack:
                break
            symbol = stack.pop()
            needed -= self.fewest[symbol]
            some = self.of[symbol]
            scores = logits[step, some] + noise[step, : len(some)]
            scores[self.need[some] > LENGTH - 1 - step - needed] = -np.inf
            rule = int(some[scores.argmax()])
            ids.append(rule)
            stack.extend(self.body[rule])
            needed += self.plain_need[rule]
        return ids + [self.padding] * (LENGTH - len(ids))

    def by_lists(self, logits: Numbers, noise: Numbers) -> list[int]:
        stack, needed, ids = [self.start], self.fewest[self.start], []
        for step, (row, extra) in enumerate(zip(logits.tolist(), noise.tolist(), strict=True)):
            if not stack:
                break
            symbol = stack.pop()
            needed -= self.fewest[symbol]
            left, best = LENGTH - 1 - step - needed, -np.inf
            for rule, more in zip(self.plain_of[symbol], extra, strict=False):
                score = row[rule] + more
                if score > best and self.plain_need[rule] <= left:
                    best, chosen = score, rule
            ids.append(chosen)
            stack.extend(self.body[chosen])
            needed += self.plain_need[chosen]
        return ids + [self.padding] * (LENGTH - len(ids))


def graphed(pushdown: Pushdown, logits: Tensor, noise: Tensor) -> Callable[[], Tensor]:
    """The walk as one CUDA graph."""
    pushdown.derive(logits, noise)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        derived = pushdown.derive(logits, noise)

    def run() -> Tensor:
        graph.replay()
        return derived.ids.cpu()

    return run


def main() -> None:
    parser = common.flags(__doc__, rounds=5)
    parser.add_argument("--codes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--plain", type=int, default=300, help="codes of a turn that the plain stacks decode")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    machine = common.machine(str(device), arguments.threads)
    rules = read_grammar("smiles").rules
    pushdown = Pushdown(rules, LENGTH).to(device)
    print(f"SMILES, T = {LENGTH}, {len(rules)} rules, {common.place(machine)}")
    results = []
    for codes in arguments.codes:
        torch.manual_seed(0)
        by_step = torch.randn(codes, LENGTH, len(rules), device=device)
        logits, noise = by_step.transpose(1, 2), pushdown.noise(codes)  # as the decoder gives them: (B, P, T)
        few = min(codes, arguments.plain)
        arrays = by_step[:few].cpu().numpy(), noise[:few].cpu().numpy()
        runs = {"eager": lambda logits=logits, noise=noise: pushdown.derive(logits, noise).ids.cpu()}
        if device.type == "cuda":
            runs["graph"] = graphed(pushdown, logits, noise)
        peers = {"NumPy": Plain(rules, lists=False), "lists": Plain(rules, lists=True)}
        derived = pushdown.derive(logits, noise).ids[:few].tolist()
        for name, peer in peers.items():
            # sums in double precision may order two rules otherwise that are equal in single precision
            same = sum(a == b for a, b in zip(peer(*arrays), derived, strict=True))
            assert same >= (few if name == "NumPy" else 0.99 * few), f"{name}: {same} of {few} are the same"
        seconds = common.in_turns(
            {
                **{name: lambda run=run, codes=codes: common.timed(run) / codes for name, run in runs.items()},
                **{
                    name: lambda peer=peer, arrays=arrays, few=few: common.timed(lambda: peer(*arrays)) / few
                    for name, peer in peers.items()
                },
            },
            arguments.rounds,
        )
        peer = min(peers, key=lambda name: statistics.median(seconds[name]))
        for name in runs:
            found, each = common.ratio(seconds[peer], seconds[name]), statistics.median(seconds[name])
            print(
                f"{codes:6,} codes, {name}: {1e6 * each:.1f} us a string, {found} a plain stack ({peer}): "
                f"{1e6 * statistics.median(seconds[peer]):.0f} us"
            )
            numbers = {"arcvae_s": seconds[name], "peer": peer, "plain_s": seconds[peer], **found.table()}
            results.append({"codes": codes, "how": name, **numbers})
    common.write("decoding", {**machine, "results": results}, arguments.json)


if __name__ == "__main__":
    main()
