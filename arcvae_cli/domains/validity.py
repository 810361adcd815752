"""Validity of strings beyond their grammar: a molecule by RDKit, where it is installed, a finite function of x."""

import ast
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from arcvae_cli.domains.molecules import molecules, similarities
from arcvae_cli.grammar import Grammar, Terminal

GRID = np.linspace(-10.0, 10.0, 1000)  # where equations are evaluated, as in the code of Kusner et al. 2017
FUNCTIONS = {name: getattr(np, name) for name in ("sin", "cos", "tan", "exp", "log", "sqrt", "abs")}
OPERATORS: dict[type, Callable[..., Any]] = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply}
OPERATORS |= {ast.Div: np.divide, ast.Pow: np.power, ast.UAdd: np.positive, ast.USub: np.negative}
_ARITHMETIC = re.compile(rf"({'|'.join(FUNCTIONS)})?\(?|\)|[-+*/^.x]|\*\*|[0-9]+")


class Validator(NamedTuple):
    """What is valid in the sense of `name`, one string for all of a meaning, how unlike valid strings are (0 to 1)."""

    name: str
    is_valid: Callable[[str], bool]
    canonical: Callable[[str], str] = str
    diversity: Callable[[list[str]], float] | None = None


def validator_for(grammar: Grammar, note: Callable[[str], None] = lambda _: None) -> Validator | None:
    """The validator of formulas in x, or of SMILES; None for other strings, and with a `note` without RDKit."""
    symbols = [symbol for production in grammar.productions for symbol in production.right]
    texts = {symbol.text for symbol in symbols if isinstance(symbol, Terminal)}
    if "x" in texts and all(_ARITHMETIC.fullmatch(text) for text in texts):
        return Validator("evaluable", lambda text: bool(np.isfinite(evaluated(text)).any()))
    if grammar.start.lower() != "smiles":
        return None
    try:
        return _molecules()
    except ImportError:
        note("validity of molecules is not checked, RDKit is not installed: pip install 'arcvae[chem]'")
        return None


def evaluated(text: str) -> NDArray[np.float64]:
    """The values of a formula in x on `GRID`, NaN for anything else: it is valid if one of them is finite."""
    try:
        with np.errstate(all="ignore"):
            return np.broadcast_to(_value(ast.parse(text.replace("^", "**"), mode="eval").body), GRID.shape)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return np.full_like(GRID, np.nan)


def _value(node: ast.AST) -> Any:
    """The value of a tree of sums, products, powers and functions; nothing else is run."""
    match node:
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            return OPERATORS[type(operator)](_value(left), _value(right))
        case ast.UnaryOp(operator, operand) if type(operator) in OPERATORS:
            return OPERATORS[type(operator)](_value(operand))
        case ast.Call(ast.Name(name), [argument], []) if name in FUNCTIONS:
            return FUNCTIONS[name](_value(argument))
        case ast.Constant(float() | int() as number) if not isinstance(number, bool):
            return np.float64(number)
        case ast.Name("x"):
            return GRID
    raise ValueError(f"{type(node).__name__} is not part of a formula")


def _molecules() -> Validator:
    from rdkit import Chem, rdBase

    def molecule(text: str) -> Any:
        with rdBase.BlockLogs():  # it logs every mistake to stderr
            return Chem.MolFromSmiles(text) if text else None

    def canonical(text: str) -> str:
        found = molecule(text)
        return text if found is None else str(Chem.MolToSmiles(found))

    def diversity(texts: list[str]) -> float:
        """1 - mean Tanimoto similarity of Morgan fingerprints (radius 2, 1024 bits) over all pairs, as in MOSES."""
        names, prints = molecules(texts)
        alike = similarities(prints, prints, torch.device("cpu"))[1] * len(names) - 1.0  # without each with itself
        return 1.0 - alike / (len(names) - 1)

    return Validator("valid", lambda text: molecule(text) is not None, canonical, diversity)
