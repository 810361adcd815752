"""`arcvae data build`, `arcvae data info`: build, read and describe corpora."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.commands.options import OUTPUT, JsonOption, QuietOption, complete, data_layers, own_names, with_flags
from arcvae_cli.console import Console, cell
from arcvae_cli.errors import InputError, one_line
from arcvae_cli.files import exists, expanded, is_dir, usable_folder
from arcvae_cli.presets import Layer, resolve
from arcvae_cli.settings import CORPORA, GRID_CORPORA, STRING_CORPORA

if TYPE_CHECKING:
    from arcvae_cli.data.arrays import Dataset

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Build or describe a corpus.")

KNOWN = f"{', '.join(CORPORA)}, or a .npz, .npy, ARC .json, .txt map, .png, a folder of those, or a file of strings"
STRINGS = "Strings of a grammar"  # a panel of the help
OF_STRINGS = ("grammar", "input", "recipe", "max_rules", "prod", "masks", "pad_id")
ROWS = (*own_names("data", "Input", "size", "seed", "canvas", "classes"), *own_names("data", STRINGS, *OF_STRINGS))
named = typer.Argument(metavar="NAME|PATH", show_default=False, help=KNOWN, autocompletion=complete(lambda: CORPORA))
CorpusArgument = Annotated[str | None, named]
_of_strings: Any = partial(typer.Option, rich_help_panel=STRINGS)
_of_output: Any = partial(typer.Option, rich_help_panel=OUTPUT)
FORMS = {"background": ".1%", "single_class": ".1%", "mean_rules": ".1f"}  # of the columns of tables


@app.command()
@with_flags(ROWS)
def build(
    corpus: CorpusArgument = None,
    *,
    flags: Layer,
    test: Annotated[Path | None, _of_strings(help="file of strings that are the test split")] = None,
    max_failed: Annotated[float, _of_strings(help="share of lines that may be left out", min=0, max=1)] = 0.1,
    download: Annotated[
        Literal["zinc250k", "moses"] | None, _of_strings(help="download the molecules of smiles or moses first")
    ] = None,
    output: Annotated[Path | None, _of_output(help="write the corpus to this .npz as well")] = None,
    force: Annotated[bool, _of_output("--force", help="build again, and overwrite --output")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build a corpus into the cache, or read and check a file of your own; --output also writes it as .npz."""
    from arcvae_cli.data.arrays import SPLITS
    from arcvae_cli.data.corpora import fetch
    from arcvae_cli.data.files import write_dataset

    console = Console(quiet=quiet, as_json=as_json)
    if output is not None:
        if output.suffix.lower() != ".npz":
            raise InputError(f"--output {output}: not a .npz", "give a file name that ends in .npz")
        if exists(output) and not force:
            raise InputError(f"--output {output}: the file exists", "give another name, or --force to overwrite it")
        usable_folder(output.parent, "--output")
    if download is not None:
        fetch(download, console.note)
        corpus = corpus or ("moses" if download == "moses" else "smiles")
    if corpus is None and not {"grammar", "input", "prod"} & flags.values.get("data", {}).keys():
        raise InputError("no corpus given", f"use {KNOWN}")
    dataset, file = _load(corpus, flags, console, force, test, max_failed)
    if output is not None:
        write_dataset(output, dataset)
    identity = {"fingerprint": dataset.fingerprint(), "file": str(output or file)}
    counts = {split: int(dataset.rows(split).size) for split in SPLITS}
    sizes = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    console.lines(one_line(f"{key} {text}") for key, text in ({f"{dataset.name}:": sizes} | identity).items())
    console.json({"name": dataset.name, dataset.kind: counts} | identity)


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
    from arcvae_cli.data.arrays import describe

    console = Console(quiet=quiet, as_json=as_json)
    dataset, file = _load(corpus, flags, console, False, None, 0.1)
    if conditions:
        if dataset.kind != "grids":
            raise InputError(f"{dataset.name}: strings have no conditions", "omit --conditions")
        import numpy as np

        from arcvae_cli.conditions import attributes, measure  # imports PyTorch

        train, found, rows = dataset.x[dataset.rows("train")], [], []
        for one, column in zip(attributes(dataset.canvas), measure(train, dataset.canvas).T, strict=True):
            counts = np.bincount(column, minlength=one.size)
            found.append({"name": one.name, "text": one.text, "values": list(one.values), "counts": counts.tolist()})
            shares = zip(one.values, counts / max(len(train), 1), strict=True)
            shown = ", ".join(f"{value}: {share:.1%}" for value, share in shares if share >= 0.0005)
            rows.append((one.name, f"{one.values[0]}-{one.values[-1]}", one.text, shown))
        title = f"Conditions, and their shares of the {len(train):,} training grids of {one_line(dataset.name)}"
        console.table(title, ("key", "value", "meaning", "share"), rows, left=(0, 1, 2, 3))
        console.json({"name": dataset.name, "training_grids": len(train), "conditions": found})
        return
    described = describe(dataset)
    head = {"name": dataset.name, dataset.kind: len(dataset.x)}
    head |= {"fingerprint": dataset.fingerprint(), "file": str(file)}
    console.lines(one_line(f"{key} {value}") for key, value in head.items())
    splits = [{"split": split, **part} for split, part in described["splits"].items()]
    for title, table, left in (("Splits", splits, (0,)), ("Leaks", described["leaks"], (0, 1))):
        cells = [[v if isinstance(v, str) else cell(v, FORMS.get(k, ",")) for k, v in one.items()] for one in table]
        console.table(title, [key.replace("_", " ") for key in (table or [{}])[0]], cells, left=left)
    facts = dict(described.get("origin", {}))
    if dataset.rules is None:
        canvas, tiles = dataset.canvas, dict(enumerate(map(repr, dataset.canvas.tiles)))
        ranked = sorted(enumerate(described["classes"]), key=lambda one: -one[1])[:16]
        facts["canvas"] = f"{canvas.describe()}, background {canvas.background}"
        facts["commonest classes"] = ", ".join(f"{tiles.get(one, one)}: {share:.1%}" for one, share in ranked)
        facts["commonest shapes"] = ", ".join(f"{height}x{width}: {n:,}" for height, width, n in described["shapes"])
    else:
        productions = dataset.grammar.productions if dataset.grammar else ["no notation"] * len(dataset.rules)
        facts["unused rules"] = ", ".join(f"{rule} ({productions[rule]})" for rule in described["unused"][:12])
    lines = [(key.replace("_", " "), one_line(str(value))) for key, value in facts.items() if value]
    console.table("Content", ("", ""), lines, left=(0, 1), header=False)
    if examples := described.get("examples"):
        console.lines(["", "Examples", *map(one_line, examples)])
    console.json(head | {"notes": list(dataset.notes)} | described)


def _load(
    corpus: str | None, flags: Layer, console: Console, rebuild: bool, test: Path | None, most_failed: float
) -> tuple[Dataset, Path | None]:
    """A corpus given by name or path, or by flags, and its file. InputError for flags that it does not use."""
    from arcvae_cli.data.corpora import cache_path, corpus_name, load_arrays

    given = set(flags.values.get("data", {})) & set(OF_STRINGS)
    unused = given if corpus in GRID_CORPORA else set()
    if corpus is None and "prod" in given:
        unused = given & {"max_rules", "recipe"}
    elif corpus is not None and data_layers(corpus)[1].values["data"]["path"]:
        path = expanded(Path(corpus))
        if not exists(path):
            raise InputError(f"{corpus}: no such corpus or file", f"use {KNOWN}")
        unused = given - {"grammar"} if path.suffix.lower() in (".npz", ".npy", ".json") or is_dir(path) else set()
    if unused:
        flag = f"--{min(unused).replace('_', '-')}"
        raise InputError(f"{flag}: not used by {corpus or '--prod'}", "leave one of them out")
    strings = corpus in STRING_CORPORA or {"grammar", "input", "prod"} & given
    model = Layer("data", {"model": {"name": "grammar"}} if strings else {})  # a model of such data
    data = resolve(None, model, data_layers(corpus)[1], flags).settings.data
    cached = cache_path(data, test)
    if cached is not None and (rebuild or not cached.is_file()):
        console.note(f"building {one_line(corpus_name(data))}: takes some seconds, only once")
    with console.counting("parsing") as tell:
        dataset = load_arrays(data, test=test, most_failed=most_failed, tell=tell, rebuild=rebuild)
    for note in dataset.notes:
        console.note(one_line(note))
    return dataset, cached or data.path or data.prod
