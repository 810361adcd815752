from __future__ import annotations

import pytest

from arcvae_cli.domains.texts import StringFormatter, pair_lines
from tests.recorders.made import derivations, rules


@pytest.mark.parametrize(
    ("known", "texts", "samples"),
    [
        (True, ["x", "x + *", "( * )", "x + x"], ["* + *", "(incomplete)"]),
        (False, ["1,3", "0,1,3,4", "1,2,1,4", "0,1,3,3"], []),  # ids of rules, and no new strings
    ],
)
def test_derivations_become_text(known: bool, texts: list[str], samples: list[str]) -> None:
    made, formatter = derivations(), StringFormatter(rules(known))
    if not known:
        made.reconstructions[:, -1] = 2  # after the end of an example such a model says anything
    first, second, third, wrong = texts
    pairs = pair_lines(formatter.pairs(made.originals, made.reconstructions))
    assert pairs == ["2 of 3 exact", f"= {first}", f"- {second}", f"+ {wrong}", f"= {third}"]
    assert formatter.samples(made.samples) == samples
