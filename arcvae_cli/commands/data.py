"""`arcvae data build`, `arcvae data info`: build, read and describe corpora."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError

from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import exists, expanded, is_dir
from arcvae_cli.settings import CORPORA, GRID_CORPORA, DataSettings

if TYPE_CHECKING:
    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import Dataset
    from arcvae_cli.data.corpora import LoadOptions

app = typer.Typer(no_args_is_help=True, help="Build or describe a corpus.")

KNOWN = f"{', '.join(CORPORA)}, or a .npz, .npy, ARC .json, a folder, or a file of strings"
INPUT, STRINGS, OUTPUT = "Input", "Strings of a grammar", "Output"  # panels of the help


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=text, **more)


Quiet = Annotated[bool, _option(OUTPUT, "No notes on stderr.", "--quiet")]
Json = Annotated[bool, _option(OUTPUT, "One JSON document on stdout, nothing else.", "--json")]
SOURCE: dict[str, tuple[Any, Any, Any]] = {
    "corpus": (str | None, None, typer.Argument(metavar="[NAME|PATH]", show_default=False, help=f"{KNOWN}.")),
    "size": (int, 100_000, _option(INPUT, "Examples drawn; arc-raw has its own.", min=10, max=2_000_000)),
    "seed": (int, 0, _option(INPUT, "Of a corpus built by name.", min=0, max=2**32 - 1)),
    "grammar": (
        str | None,
        None,
        _option(STRINGS, "A file, or equations, smiles.", metavar="FILE|NAME", show_default="that of the corpus"),
    ),
    "input": (Path | None, None, _option(STRINGS, "A file of strings, one a line.")),
    "recipe": (Literal["uniform", "kusner"], "uniform", _option(STRINGS, "kusner: lexicographic, as in 2017.")),
    "max_rules": (
        int | None,
        None,
        _option(STRINGS, "Rules of the longest derivation.", min=1, show_default="the input's longest; 15"),
    ),
    "prod": (Path | None, None, _option(STRINGS, "Prebuilt ids of rules, .npy (N, T).")),
    "masks": (Path | None, None, _option(STRINGS, "Their masks, bit-packed .npy (N, T, bytes).")),
    "pad_id": (int | None, None, _option(STRINGS, "Prebuilt id after the end.", min=-1, show_default="detected")),
}
"""The options that both commands share: type, default, and the rest."""


def _with_source(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of SOURCE besides its own; their values are its first argument, a dict."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command({name: values.pop(name) for name in SOURCE}, **values)

    shared = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        for name, (kind, default, option) in SOURCE.items()
    ]
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    run.__dict__["__signature__"] = inspect.Signature([*shared, *own])
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*shared, *own)}
    return run


@app.command()
@_with_source
def build(
    source: dict[str, Any],
    *,
    test: Annotated[Path | None, _option(STRINGS, "A file of strings for the test split.")] = None,
    max_failed: Annotated[float, _option(STRINGS, "Share of lines that may be left out.", min=0, max=1)] = 0.1,
    download: Annotated[Literal["zinc250k"] | None, _option(STRINGS, "Download the molecules of smiles first.")] = None,
    output: Annotated[Path | None, _option(OUTPUT, "Write it to this .npz too.")] = None,
    force: Annotated[bool, _option(OUTPUT, "Build again, and overwrite --output.", "--force")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build a corpus into the cache, or read and check one of yours; --output also writes it as .npz.

    `data build --grammar FILE --input strings.txt --output mine.npz` parses strings of yours.
    """
    import shutil

    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import SPLITS
    from arcvae_cli.data.corpora import LoadOptions, cache_path, failures_of
    from arcvae_cli.data.downloads import DOWNLOADS, fetch
    from arcvae_cli.data.files import write_dataset
    from arcvae_cli.files import atomic_write, usable_folder

    console = Console(quiet=quiet, as_json=as_json)
    if output is not None:
        if output.suffix.lower() != ".npz":
            raise InputError(f"--output {output}: not a .npz", "give a file name that ends in .npz")
        if exists(output) and not force:
            raise InputError(f"--output {output}: the file exists", "give another name, or --force to overwrite it")
        usable_folder(output.parent, "--output")
    if download is not None:
        if source["corpus"] not in (None, "smiles") or source["input"] is not None or source["prod"] is not None:
            raise InputError(f"--download {download}: only for the corpus smiles, without --input", "omit the other")
        fetch(DOWNLOADS[download], say=console.note)
        source["corpus"] = "smiles"
    data = _settings(source)
    listed = None if output is None else failures_of(output)
    options = LoadOptions(test=test, most_failed=max_failed, listed=listed, say=console.note)
    dataset = _load(data, console, options, rebuild=force)
    cached = cache_path(data, options)
    if output is not None:
        write_dataset(output, dataset)
        if cached is not None and failures_of(cached).is_file():
            with atomic_write(failures_of(output)) as temporary:
                shutil.copyfile(failures_of(cached), temporary)
    counts = {split: int(dataset.rows(split).size) for split in SPLITS}
    document: dict[str, Any] = {"name": dataset.name, dataset.kind: counts}
    lines = [f"{dataset.name}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items())]
    if dataset.rules is not None:
        steps, rules = dataset.x.shape[1], len(dataset.rules)
        document |= {"steps": steps, "rules": rules, "origin": asdict(dataset.origin)}
        lines.append(f"derivations of up to {steps} of {rules} rules, including the padding rule")
        if dataset.origin.reason is not None:
            lines.append(f"parser: {dataset.origin.reason}")
    _identify(console, lines, document, dataset, output or cached or data.path or data.prod)
    console.json(document)


@app.command()
@_with_source
def info(
    source: dict[str, Any],
    *,
    conditions: Annotated[
        bool, typer.Option("--conditions", help="What `sample --condition` takes, and how often it occurs, instead.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Describe a corpus, `arc` if none is named: its splits, what it is made of, and what leaks between splits."""
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpora import LoadOptions, cache_path
    from arcvae_cli.data.describe import describe, describe_conditions

    console = Console(quiet=quiet, as_json=as_json)
    if not _given(source):
        source["corpus"] = source["corpus"] or "arc"
    data = _settings(source)
    dataset = _load(data, console, LoadOptions(say=console.note))
    if conditions:
        if dataset.kind != "grids":
            raise InputError(f"{dataset.name}: strings have no conditions", "omit --conditions")
        found, count = describe_conditions(dataset), int(dataset.rows("train").size)
        _show_conditions(console, found, count, dataset.name)
        console.json({"name": dataset.name, "training_grids": count, "conditions": found})
        return
    described = describe(dataset)
    document = {"name": dataset.name, dataset.kind: len(dataset.x)}
    lines = [f"{dataset.name}: {len(dataset.x):,} {dataset.kind}"]
    _identify(console, lines, document, dataset, cache_path(data) or data.path or data.prod)
    _show(console, dataset, described)
    console.json(document | {"notes": list(dataset.notes)} | described)


def _given(source: dict[str, Any]) -> dict[str, Any]:
    """The options of strings that are not at their default."""
    given = {key: source[key] for key in SOURCE if key not in ("corpus", "size", "seed")}
    return {key: value for key, value in given.items() if value != SOURCE[key][1]}


def _settings(source: dict[str, Any]) -> DataSettings:
    """The settings of NAME|PATH and the options. InputError for options that contradict each other."""
    from difflib import get_close_matches

    corpus, given = source["corpus"], _given(source)
    values: dict[str, Any] = {"size": source["size"], "seed": source["seed"], **given}
    unused: set[str] = set()
    if corpus is None:
        unused = {"max_rules", "recipe"} if "prod" in given else set()
    elif corpus in CORPORA:
        values["name"] = corpus
        unused = set(given) if corpus in GRID_CORPORA else set()
    else:
        path = expanded(Path(corpus))
        if not exists(path):
            near = get_close_matches(corpus, CORPORA, 1)
            fix = f"did you mean {near[0]}?" if near else f"use {KNOWN}"
            raise InputError(f"{corpus}: no such corpus or file", fix)
        values = {"path": path, **given}
        if path.suffix.lower() in (".npz", ".npy", ".json") or is_dir(path):
            unused = set(given) - {"grammar"}
    for key in (key for key in given if key in unused):
        raise InputError(f"--{key.replace('_', '-')}: not used by {corpus or '--prod'}", "leave one of them out")
    try:
        settings = DataSettings.model_validate(values)
    except ValidationError as error:
        context = error.errors()[0]["ctx"]
        raise InputError(f"--{context['key'].replace('_', '-')}: {context['what']}", context["fix"]) from error
    if corpus is None and not {"grammar", "input", "prod"} & given.keys():
        raise InputError("no corpus is named", f"use {KNOWN}")
    return settings


def _load(data: DataSettings, console: Console, options: LoadOptions, rebuild: bool = False) -> Dataset:
    """The dataset, with a note before a build that takes seconds, a count of what is parsed, and its notes."""
    from dataclasses import replace

    from arcvae_cli.data.corpora import cache_path, corpus_name, load_arrays

    cached = cache_path(data, options)
    if cached is not None and (rebuild or not cached.is_file()):
        console.note(f"building {one_line(corpus_name(data))}: takes some seconds, only once")
    with console.counting("parsing") as tell:
        dataset = load_arrays(data, replace(options, tell=tell), rebuild=rebuild)
    for note in dataset.notes:
        console.note(one_line(note))
    return dataset


def _identify(
    console: Console, lines: list[str], document: dict[str, Any], dataset: Dataset, file: Path | None
) -> None:
    """Prints the lines, the fingerprint and the file, and adds the latter to the document."""
    document |= {"fingerprint": dataset.fingerprint(), "file": str(file)}
    lines += [f"fingerprint {document['fingerprint']}", f"file {file}"]
    console.lines(map(one_line, lines))


_FORMS = {"black": ".1%", "single_colour": ".1%", "mean_rules": ".1f", "padding": ".1%"}


def _show(console: Console, dataset: Dataset, described: dict[str, Any]) -> None:
    """Prints what `describe` returns; text from files without control characters."""
    from arcvae_cli.console import cell

    splits, noun = described["splits"], dataset.kind
    columns = list(splits["train"])
    rows = [[name, *(cell(part[key], _FORMS.get(key, ",")) for key in columns)] for name, part in splits.items()]
    console.result()
    console.table("Splits", ["split", *(key.replace("_", " ") for key in columns)], rows)
    keys = ["identical", "equivalent"] if noun == "grids" else ["identical"]
    rows = []
    for leak in described["leaks"]:
        shares = [f"{leak[key]:,} ({leak[key] / splits[leak['of']][noun]:.1%})" for key in keys]
        rows.append([leak["of"], leak["into"], *shares, cell(leak.get("tasks"), ",")])
    console.result()
    console.table("Leaks", ["of", "into", *keys, "tasks"], rows, left=(0, 1))
    console.result()
    if noun == "grids":
        shares = [f"{share:.1%}" for share in described["colours"]]
        console.table("Share of each colour", list(map(str, range(len(shares)))), [shares], left=())
        if rows := [[f"{h}x{w}", f"{n:,}", f"{n / len(dataset.x):.1%}"] for h, w, n in described["shapes"]]:
            console.result()
            console.table("Commonest shapes", ["height x width", "grids", "share"], rows)
        return
    rows = [[key, one_line(text)] for key, text in _facts(dataset, described).items()]
    console.table("Origin and rules", ["", ""], rows, left=(0, 1), header=False)
    console.lines(["", "Examples", *map(one_line, described["examples"])] if described["examples"] else [])


def _facts(dataset: Dataset, described: dict[str, Any]) -> dict[str, str]:
    """Where derivations come from, and which rules they use."""
    assert dataset.rules is not None
    facts = {key.replace("_", " "): str(value) for key, value in described["origin"].items() if value}
    if dataset.origin.entropy is not None:
        facts["entropy"] = f"{dataset.origin.entropy:.2f} nats: no model has a lower mean NLL on unseen strings"
    used = sum(count > 0 for rule, count in enumerate(described["counts"]) if rule != dataset.rules.padding)
    facts |= {"steps": f"up to {described['steps']}", "rules used": f"{used} of {len(dataset.rules) - 1}"}
    for label in ("unused", "unusable"):
        names = [
            str(rule) if dataset.grammar is None else f"{rule} ({dataset.grammar.productions[rule]})"
            for rule in described[label]
        ]
        if names:
            facts[label] = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
    return facts


def _show_conditions(console: Console, conditions: list[dict[str, Any]], grids: int, corpus: str) -> None:
    """All conditions with the share of grids that meet them, and the shares of each value of those with several."""

    def share(count: int) -> str:
        return f"{count / grids:.1%}" if grids else "-"

    rows = []
    for one in conditions:
        values, counts = one["values"], one["counts"]
        flag = len(values) == 2
        allowed = " or ".join(values) if flag else f"{values[0]} to {values[-1]}"
        rows.append([one["name"], allowed, one["text"], share(counts[1]) if flag else ""])
    console.table("Conditions", ["key", "value", "meaning", "yes"], rows, left=(0, 1, 2))
    console.lines(
        [
            "Names of colours are aliases: red=yes is colour_2=yes. symmetry=lr and symmetry=ud require",
            "one mirror symmetry and leave the other open; symmetry=both and symmetry=none set both.\n",
        ]
    )
    several = [one for one in conditions if len(one["values"]) > 2]
    rows = [
        [str(value), *(share(one["counts"][value]) if value < len(one["counts"]) else "" for one in several)]
        for value in range(max(len(one["values"]) for one in several))
    ]
    title = f"Share of the {grids:,} training grids of {one_line(corpus)}"
    console.table(title, ["value", *(one["name"] for one in several)], rows)
