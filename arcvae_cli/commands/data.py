"""`arcvae data build`, `arcvae data info`: build, read and describe corpora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.commands.options import OUTPUT, JsonOption, QuietOption, complete, data_layers, own_names, with_flags
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import exists, expanded, is_dir
from arcvae_cli.presets import Layer, resolve
from arcvae_cli.settings import CORPORA, GRID_CORPORA, STRING_CORPORA, DataSettings

if TYPE_CHECKING:
    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import Dataset
    from arcvae_cli.data.corpora import LoadOptions

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Build or describe a corpus.")

KNOWN = f"{', '.join(CORPORA)}, or a .npz, .npy, ARC .json, a folder, or a file of strings"
STRINGS = "Strings of a grammar"  # a panel of the help
OF_STRINGS = ("grammar", "input", "recipe", "max_rules", "prod", "masks", "pad_id")
ROWS = (*own_names("data", "Input", "size", "seed"), *own_names("data", STRINGS, *OF_STRINGS))
CorpusArgument = Annotated[
    str | None,
    typer.Argument(metavar="NAME|PATH", show_default=False, help=KNOWN, autocompletion=complete(lambda: CORPORA)),
]
FORMS = {"black": ".1%", "single_colour": ".1%", "mean_rules": ".1f", "padding": ".1%"}  # of the columns of tables


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=text, **more)


@app.command()
@with_flags(ROWS)
def build(
    corpus: CorpusArgument = None,
    *,
    flags: Layer,
    test: Annotated[Path | None, _option(STRINGS, "file of strings that are the test split")] = None,
    max_failed: Annotated[float, _option(STRINGS, "share of lines that may be left out", min=0, max=1)] = 0.1,
    download: Annotated[Literal["zinc250k"] | None, _option(STRINGS, "download the molecules of smiles first")] = None,
    output: Annotated[Path | None, _option(OUTPUT, "write the corpus to this .npz as well")] = None,
    force: Annotated[bool, _option(OUTPUT, "build again, and overwrite --output", "--force")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build a corpus into the cache, or read and check a file of your own; --output also writes it as .npz."""
    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import SPLITS
    from arcvae_cli.data.corpora import LoadOptions, cache_path
    from arcvae_cli.data.downloads import DOWNLOADS, fetch
    from arcvae_cli.data.files import write_dataset
    from arcvae_cli.files import usable_folder

    console = Console(quiet=quiet, as_json=as_json)
    if output is not None:
        if output.suffix.lower() != ".npz":
            raise InputError(f"--output {output}: not a .npz", "give a file name that ends in .npz")
        if exists(output) and not force:
            raise InputError(f"--output {output}: the file exists", "give another name, or --force to overwrite it")
        usable_folder(output.parent, "--output")
    given = _given(flags)
    if download is not None:
        if corpus not in (None, "smiles") or {"input", "prod"} & given:
            raise InputError(f"--download {download}: only for the corpus smiles, without --input", "omit the other")
        fetch(DOWNLOADS[download], say=console.note)
        corpus = "smiles"
    if corpus is None and not {"grammar", "input", "prod"} & given:
        raise InputError("no corpus given", f"use {KNOWN}")
    data = _settings(corpus, flags)
    options = LoadOptions(test=test, most_failed=max_failed, say=console.note)
    dataset = _load(data, console, options, rebuild=force)
    if output is not None:
        write_dataset(output, dataset)
    counts = {split: int(dataset.rows(split).size) for split in SPLITS}
    lines = [f"{dataset.name}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items())]
    content: dict[str, Any] = {}
    if dataset.rules is not None:
        steps, rules, origin = dataset.x.shape[1], len(dataset.rules), dataset.origin
        content = {"steps": steps, "rules": rules, "origin": asdict(origin)}
        lines.append(f"derivations of up to {steps} of {rules} rules, including the padding rule")
        lines += [f"parser: {origin.reason}"] * (origin.reason is not None)
    identity = _identify(console, lines, dataset, output or cache_path(data, options) or data.path or data.prod)
    console.json({"name": dataset.name, dataset.kind: counts} | content | identity)


@app.command()
@with_flags(ROWS)
def info(
    corpus: CorpusArgument = None,
    *,
    flags: Layer,
    conditions: Annotated[
        bool, typer.Option("--conditions", help="list the conditions of `sample --condition` and their shares instead")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Describe a corpus, by default `arc`: its splits, its content, and examples that are in more than one split."""
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpora import LoadOptions, cache_path
    from arcvae_cli.data.describe import describe, describe_conditions

    console = Console(quiet=quiet, as_json=as_json)
    data = _settings(corpus, flags)
    dataset = _load(data, console, LoadOptions(say=console.note))
    if conditions:
        if dataset.kind != "grids":
            raise InputError(f"{dataset.name}: strings have no conditions", "omit --conditions")
        found, count = describe_conditions(dataset), int(dataset.rows("train").size)
        title = f"Conditions, and their shares of the {count:,} training grids of {one_line(dataset.name)}"
        _show_rows(console, title, [_condition_row(one, count) for one in found])
        console.lines(["aliases: red=yes is colour_2=yes; symmetry=both and symmetry=none set both mirror symmetries"])
        console.json({"name": dataset.name, "training_grids": count, "conditions": found})
        return
    described = describe(dataset)
    lines = [f"{dataset.name}: {len(dataset.x):,} {dataset.kind}"]
    identity = _identify(console, lines, dataset, cache_path(data) or data.path or data.prod)
    _show_rows(console, "Splits", [{"split": split, **part} for split, part in described["splits"].items()])
    _show_rows(console, "Leaks", described["leaks"])
    facts = [(key, one_line(text)) for key, text in _facts(dataset, described).items() if text]
    console.table("Content", ("", ""), facts, left=(0, 1), header=False)
    if examples := described.get("examples"):
        console.lines(["", "Examples", *map(one_line, examples)])
    size = {"name": dataset.name, dataset.kind: len(dataset.x)}
    console.json(size | identity | {"notes": list(dataset.notes)} | described)


def _given(flags: Layer) -> set[str]:
    """The flags of strings that were given."""
    return set(flags.values.get("data", {})) & set(OF_STRINGS)


def _settings(corpus: str | None, flags: Layer) -> DataSettings:
    """The settings of a corpus given by name or path, or by flags. InputError for flags that it does not use."""
    given = _given(flags)
    unused = given & {"max_rules", "recipe"} if corpus is None and "prod" in given else set()
    if corpus is not None and corpus not in CORPORA:
        path = expanded(Path(corpus))
        if not exists(path):
            raise InputError(f"{corpus}: no such corpus or file", f"use {KNOWN}")
        unused = given - {"grammar"} if path.suffix.lower() in (".npz", ".npy", ".json") or is_dir(path) else set()
    if corpus in GRID_CORPORA:
        unused = given
    if unused:
        flag = f"--{min(unused).replace('_', '-')}"
        raise InputError(f"{flag}: not used by {corpus or '--prod'}", "leave one of them out")
    strings = corpus in STRING_CORPORA or {"grammar", "input", "prod"} & given
    model = Layer("data", {"model": {"name": "grammar"}} if strings else {})  # a model of such data
    return resolve(None, model, data_layers(corpus)[1], flags).settings.data


def _load(data: DataSettings, console: Console, options: LoadOptions, rebuild: bool = False) -> Dataset:
    from arcvae_cli.data.corpora import cache_path, corpus_name, load_arrays

    cached = cache_path(data, options)
    if cached is not None and (rebuild or not cached.is_file()):
        console.note(f"building {one_line(corpus_name(data))}: takes some seconds, only once")
    with console.counting("parsing") as tell:
        dataset = load_arrays(data, replace(options, tell=tell), rebuild=rebuild)
    for note in dataset.notes:
        console.note(one_line(note))
    return dataset


def _identify(console: Console, lines: Sequence[str], dataset: Dataset, file: Path | None) -> dict[str, str]:
    """Prints the lines, the fingerprint and the file of a corpus; the last two are also returned."""
    identity = {"fingerprint": dataset.fingerprint(), "file": str(file)}
    console.lines(map(one_line, [*lines, *(f"{key} {text}" for key, text in identity.items())]))
    return identity


def _show_rows(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print dictionaries of text and numbers as the rows of a table."""
    from arcvae_cli.console import cell

    columns = rows[0] if rows else {}
    cells = [[v if isinstance(v, str) else cell(v, FORMS.get(k, ",")) for k, v in row.items()] for row in rows]
    left = [place for place, value in enumerate(columns.values()) if isinstance(value, str)]
    console.table(title, [key.replace("_", " ") for key in columns], cells, left=left)


def _condition_row(condition: dict[str, Any], grids: int) -> dict[str, str]:
    values, counts = condition["values"], condition["counts"]
    shares = [f"{value}: {n / grids:.1%}" for value, n in zip(values, counts, strict=True) if n >= 0.0005 * grids > 0]
    allowed = f"{values[0]} {'or' if len(values) == 2 else 'to'} {values[-1]}"
    return {"key": condition["name"], "value": allowed, "meaning": condition["text"], "share": ", ".join(shares)}


def _facts(dataset: Dataset, described: dict[str, Any]) -> dict[str, str]:
    if dataset.rules is None:
        return {
            "colours": ", ".join(f"{colour}: {share:.1%}" for colour, share in enumerate(described["colours"])),
            "commonest shapes": ", ".join(f"{height}x{width}: {n:,}" for height, width, n in described["shapes"]),
        }
    facts = {key.replace("_", " "): str(value) for key, value in described["origin"].items() if value}
    if dataset.origin.entropy is not None:
        facts["entropy"] = f"{dataset.origin.entropy:.2f} nats, a lower bound of the mean NLL on unseen strings"
    used = sum(count > 0 for rule, count in enumerate(described["counts"]) if rule != dataset.rules.padding)
    facts |= {"steps": f"up to {described['steps']}", "rules used": f"{used} of {len(dataset.rules) - 1}"}
    for label in ("unused", "unusable"):
        rules = described[label][:12]
        named = [f"{rule} ({dataset.grammar.productions[rule]})" if dataset.grammar else str(rule) for rule in rules]
        facts[label] = ", ".join(named) + ", ..." * (len(described[label]) > len(rules))
    return facts
