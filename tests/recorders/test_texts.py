from __future__ import annotations

import pytest

from arcvae_cli.domains.texts import Pair, StringFormatter, pair_lines
from tests.recorders.made import derivations, rules


@pytest.mark.parametrize(
    ("known", "texts", "samples"),
    [
        (True, ["x", "x + *", "( * )", "x + x"], ["* + *", "(incomplete)"]),
        (False, ["1,3", "0,1,3,4", "1,2,1,4", "0,1,3,3"], []),  # ids of rules, and no new strings
    ],
)
def test_derivations_become_text(known: bool, texts: list[str], samples: list[str]) -> None:
    made = derivations()
    if not known:
        made.reconstructions[:, -1] = 2  # after the end of an example such a model says anything
    pairs = StringFormatter(rules(known)).pairs(made.originals, made.reconstructions)
    first, second, third, wrong = texts
    assert pairs == [Pair(first, first, True), Pair(second, wrong, False), Pair(third, third, True)]
    assert StringFormatter(rules(known)).samples(made.samples) == samples
    assert pair_lines(pairs) == ["2 of 3 exact", f"= {first}", f"- {second}", f"+ {wrong}", f"= {third}"]
