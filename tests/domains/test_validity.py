from __future__ import annotations

import sys

import numpy as np
import pytest

from arcvae_cli.domains.validity import GRID, evaluated, validator_for
from arcvae_cli.grammar import read_grammar


@pytest.mark.parametrize(
    ("text", "values"),
    [("exp( 2 ) / ( x )", np.exp(2) / GRID), ("sin( x * x ) - -x ^ 2", np.sin(GRID * GRID) + GRID**2), ("3", 3.0)],
)
def test_values_of_formulas(text: str, values: np.ndarray | float) -> None:
    np.testing.assert_allclose(evaluated(text), values)
    validator = validator_for(read_grammar("equations"))
    assert validator is not None and validator.is_valid(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x +", "y", "x.real", "x if x else 1", "True", "sin( x, x )", "__import__('os').getcwd()"),
        *("exp( exp( exp( exp( 3 ) ) ) )", "1 / ( x - x )"),  # finite nowhere
        *("(" * 3000 + "x" + ")" * 3000, "x" + " + x" * 100_000, "1" * 400),
    ],
)
def test_what_is_no_formula_or_never_finite_is_invalid(text: str) -> None:
    validator = validator_for(read_grammar("equations"))
    assert validator is not None and not validator.is_valid(text)


def test_molecules_are_validated_by_rdkit() -> None:
    pytest.importorskip("rdkit")
    validator = validator_for(read_grammar("smiles"))
    assert validator is not None and validator.canonical is not None and validator.diversity is not None
    assert [validator.is_valid(text) for text in ("c1ccccc1O", "C1CC", "c1ccc1(C)(C)", "")] == [True, *[False] * 3]
    assert [validator.canonical(text) for text in ("OCC", "CCO", "C1CC")] == ["CCO", "CCO", "C1CC"]
    assert validator.diversity(["CCO", "OCC"]) == 0.0 < validator.diversity(["CCO", "c1ccccc1", "CCN"]) < 1


def test_without_rdkit_molecules_are_not_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    notes: list[str] = []
    assert validator_for(read_grammar("smiles"), notes.append) is None
    assert len(notes) == 1
