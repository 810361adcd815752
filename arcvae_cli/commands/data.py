"""`arcvae data build`, `arcvae data info`: build, read and describe corpora."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.commands.options import OUTPUT, JsonOption, QuietOption, Row, data_layers, with_flags
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import exists, expanded, is_dir
from arcvae_cli.presets import Layer, resolve
from arcvae_cli.settings import CORPORA, GRID_CORPORA, STRING_CORPORA, DataSettings

if TYPE_CHECKING:
    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import Dataset
    from arcvae_cli.data.corpora import LoadOptions

app = typer.Typer(no_args_is_help=True, help="Build or describe a corpus.")

KNOWN = f"{', '.join(CORPORA)}, or a .npz, .npy, ARC .json, a folder, or a file of strings"
INPUT, STRINGS = "Input", "Strings of a grammar"  # panels of the help
ROWS = (
    *(Row((f"--{key}",), f"data.{key}", INPUT) for key in ("size", "seed")),
    *(
        Row((f"--{key.replace('_', '-')}",), f"data.{key}", STRINGS)
        for key in ("grammar", "input", "recipe", "max_rules", "prod", "masks", "pad_id")
    ),
)
CorpusArgument = Annotated[str | None, typer.Argument(metavar="[NAME|PATH]", show_default=False, help=KNOWN)]


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=text, **more)


@app.command()
@with_flags(ROWS)
def build(
    corpus: CorpusArgument = None,
    *,
    flags: Layer,
    test: Annotated[Path | None, _option(STRINGS, "a file of strings for the test split")] = None,
    max_failed: Annotated[float, _option(STRINGS, "share of lines that may be left out", min=0, max=1)] = 0.1,
    download: Annotated[Literal["zinc250k"] | None, _option(STRINGS, "download the molecules of smiles first")] = None,
    output: Annotated[Path | None, _option(OUTPUT, "write it to this .npz too")] = None,
    force: Annotated[bool, _option(OUTPUT, "build again, and overwrite --output", "--force")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build a corpus into the cache, or read and check one of yours; --output also writes it as .npz."""
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
        if corpus not in (None, "smiles") or {"input", "prod"} & _given(flags):
            raise InputError(f"--download {download}: only for the corpus smiles, without --input", "omit the other")
        fetch(DOWNLOADS[download], say=console.note)
        corpus = "smiles"
    if corpus is None and not {"grammar", "input", "prod"} & _given(flags):
        raise InputError("no corpus is named", f"use {KNOWN}")
    data = _settings(corpus, flags)
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
        lines += [f"parser: {dataset.origin.reason}"] * (dataset.origin.reason is not None)
    _identify(console, lines, document, dataset, output or cached or data.path or data.prod)
    console.json(document)


@app.command()
@with_flags(ROWS)
def info(
    corpus: CorpusArgument = None,
    *,
    flags: Layer,
    conditions: Annotated[
        bool, typer.Option("--conditions", help="what `sample --condition` takes, and how often it occurs, instead")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Describe a corpus, `arc` if none is named: its splits, what it is made of, and what leaks between splits."""
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
        _show_conditions(console, found, count, dataset.name)
        console.json({"name": dataset.name, "training_grids": count, "conditions": found})
        return
    described = describe(dataset)
    document = {"name": dataset.name, dataset.kind: len(dataset.x)}
    lines = [f"{dataset.name}: {len(dataset.x):,} {dataset.kind}"]
    _identify(console, lines, document, dataset, cache_path(data) or data.path or data.prod)
    _show(console, dataset, described)
    console.json(document | {"notes": list(dataset.notes)} | described)


def _given(flags: Layer) -> set[str]:
    return set(flags.values.get("data", {})) - {"size", "seed"}


def _settings(corpus: str | None, flags: Layer) -> DataSettings:
    given, unused = _given(flags), set[str]()
    if corpus is None:
        unused = {"max_rules", "recipe"} if "prod" in given else set()
    elif corpus in GRID_CORPORA:
        unused = given
    elif corpus not in STRING_CORPORA:
        path = expanded(Path(corpus))
        if not exists(path):
            raise InputError(f"{corpus}: no such corpus or file", f"use {KNOWN}")
        if path.suffix.lower() in (".npz", ".npy", ".json") or is_dir(path):
            unused = given - {"grammar"}
    for key in sorted(given & unused):
        raise InputError(f"--{key.replace('_', '-')}: not used by {corpus or '--prod'}", "leave one of them out")
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


def _identify(
    console: Console, lines: list[str], document: dict[str, Any], dataset: Dataset, file: Path | None
) -> None:
    document |= {"fingerprint": dataset.fingerprint(), "file": str(file)}
    console.lines(map(one_line, [*lines, f"fingerprint {document['fingerprint']}", f"file {file}"]))


_FORMS = {"black": ".1%", "single_colour": ".1%", "mean_rules": ".1f", "padding": ".1%"}


def _show(console: Console, dataset: Dataset, described: dict[str, Any]) -> None:
    from arcvae_cli.console import cell

    splits = [{"split": split, **part} for split, part in described["splits"].items()]
    for title, rows in (("Splits", splits), ("Leaks", described["leaks"])):
        columns = list(rows[0]) if rows else []
        cells = [[v if isinstance(v, str) else cell(v, _FORMS.get(k, ",")) for k, v in row.items()] for row in rows]
        left = [place for place, key in enumerate(columns) if key in ("split", "of", "into")]
        console.table(title, [key.replace("_", " ") for key in columns], cells, left=left)
    facts = [(key, one_line(text)) for key, text in _facts(dataset, described).items()]
    console.table("Content", ("", ""), facts, left=(0, 1), header=False)
    if examples := described.get("examples"):
        console.lines(["", "Examples", *map(one_line, examples)])


def _facts(dataset: Dataset, described: dict[str, Any]) -> dict[str, str]:
    if dataset.rules is None:
        facts = {"colours": ", ".join(f"{colour}: {share:.1%}" for colour, share in enumerate(described["colours"]))}
        if shapes := described["shapes"]:
            facts["commonest shapes"] = ", ".join(f"{height}x{width}: {count:,}" for height, width, count in shapes)
        return facts
    facts = {key.replace("_", " "): str(value) for key, value in described["origin"].items() if value}
    if dataset.origin.entropy is not None:
        facts["entropy"] = f"{dataset.origin.entropy:.2f} nats: no model has a lower mean NLL on unseen strings"
    used = sum(count > 0 for rule, count in enumerate(described["counts"]) if rule != dataset.rules.padding)
    facts |= {"steps": f"up to {described['steps']}", "rules used": f"{used} of {len(dataset.rules) - 1}"}
    for label in ("unused", "unusable"):
        rules = described[label][:12]
        named = [f"{rule} ({dataset.grammar.productions[rule]})" if dataset.grammar else str(rule) for rule in rules]
        facts[label] = ", ".join(named) + ", ..." * (len(described[label]) > len(rules))
    return {key: text for key, text in facts.items() if text}


def _show_conditions(console: Console, conditions: list[dict[str, Any]], grids: int, corpus: str) -> None:
    rows = []
    for one in conditions:
        shares = [f"{count / grids:.1%}" if grids else "-" for count in one["counts"]]
        flag = len(one["values"]) == 2
        allowed = " or ".join(one["values"]) if flag else f"{one['values'][0]} to {one['values'][-1]}"
        several = ", ".join(f"{value}: {share}" for value, share in enumerate(shares) if share != "0.0%")
        rows.append([one["name"], allowed, one["text"], shares[1] if flag else several])
    title = f"Conditions, and their shares of the {grids:,} training grids of {one_line(corpus)}"
    console.table(title, ["key", "value", "meaning", "share (yes)"], rows, left=(0, 1, 2, 3))
    console.lines(["aliases: red=yes is colour_2=yes; symmetry=both and symmetry=none set both mirror symmetries"])
