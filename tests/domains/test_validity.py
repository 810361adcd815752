from __future__ import annotations

import sys

import numpy as np
import pytest

from arcvae_cli.domains.validity import GRID, Validator, evaluated, validator_for
from arcvae_cli.grammar import parse_grammar, read_grammar


def equations() -> Validator:
    validator = validator_for(read_grammar("equations"))
    assert validator is not None
    return validator


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x + 2 * x", GRID + 2 * GRID),
        ("exp( 2 ) / ( x )", np.exp(2) / GRID),
        ("sin( x * x ) - -x ^ 2", np.sin(GRID * GRID) + GRID**2),
        ("3", np.full(1000, 3.0)),
    ],
)
def test_formulas_have_the_values_that_they_say(text: str, values: np.ndarray) -> None:
    np.testing.assert_allclose(evaluated(text), values)
    assert equations().is_valid(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x +",
        "exp( exp( exp( exp( 3 ) ) ) )",  # infinite everywhere
        "1 / ( x - x )",
        "y",
        "__import__('os').getcwd()",
        "x.real",
        "x if x else 1",
        "True",
        "sin( x, x )",
        "(" * 3000 + "x" + ")" * 3000,
        "x" + " + x" * 100_000,
        "1" * 400,  # no float
        "x + 1" + "0" * 400,
    ],
)
def test_what_is_no_formula_or_never_finite_is_not_evaluable(text: str) -> None:
    assert not equations().is_valid(text)


def test_what_can_be_judged_depends_on_the_grammar() -> None:
    assert (equations().name, equations().canonical) == ("evaluable", None)
    longer = "S -> S '+' S2 | S2\nS2 -> 'log(' S ')' | 'x' | digits\ndigits -> '1' digits | '0'"
    assert validator_for(parse_grammar(longer, "longer")) is not None
    assert validator_for(parse_grammar("S -> 'a' S | 'x'", "words")) is None


def test_molecules_are_judged_by_rdkit() -> None:
    pytest.importorskip("rdkit")
    judge = validator_for(read_grammar("smiles"))
    assert judge is not None and judge.name == "valid"
    assert judge.canonical is not None and judge.diversity is not None
    valid = [judge.is_valid(text) for text in ("c1ccccc1O", "C1CC", "c1ccc1(C)(C)", "")]
    assert valid == [True, False, False, False]
    assert judge.canonical("OCC") == judge.canonical("CCO") == "CCO"
    assert judge.canonical("C1CC") == "C1CC"
    assert judge.diversity(["CCO", "OCC"]) == 0.0
    assert 0 < judge.diversity(["CCO", "c1ccccc1", "CCN"]) < 1


def test_without_rdkit_nothing_is_known_of_molecules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    notes: list[str] = []
    assert validator_for(read_grammar("smiles"), notes.append) is None
    assert len(notes) == 1
