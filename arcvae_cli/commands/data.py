"""`arcvae data build`, `arcvae data info`: corpora built, read and described."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.files import expanded
from arcvae_cli.settings import CORPORA, GRID_CORPORA, DataSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table
    from rich.text import Text

    from arcvae_cli.console import Console
    from arcvae_cli.data.describe import ConditionDescription, Description
    from arcvae_cli.data.describe_strings import Description as StringDescription
    from arcvae_cli.data.recipes import Arrays, Reading
    from arcvae_cli.data.strings import StringArrays

app = typer.Typer(no_args_is_help=True, help="Build or describe a corpus.")

INPUT, STRINGS, OUTPUT = "Input", "Strings of a grammar", "Output"  # panels of the help

CorpusArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME|PATH]",
        show_default=False,
        help=f"{', '.join(CORPORA)}, or a .npz, .npy, ARC .json, a folder, or a file of strings.",
    ),
]
SizeOption = Annotated[
    int,
    typer.Option(
        min=10, max=2_000_000, help="Examples of a corpus that is drawn; arc-raw has its own.", rich_help_panel=INPUT
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of a corpus built by name.", rich_help_panel=INPUT)
]
GrammarOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME",
        show_default="that of the corpus",
        help="Their grammar: a file, or equations, smiles.",
        rich_help_panel=STRINGS,
    ),
]
InputOption = Annotated[
    Path | None,
    typer.Option("--input", show_default=False, help="A file of them, one a line.", rich_help_panel=STRINGS),
]
RecipeOption = Annotated[
    Literal["uniform", "kusner"],
    typer.Option(help="How equations are drawn: kusner is lexicographic, as in 2017.", rich_help_panel=STRINGS),
]
MaxRulesOption = Annotated[
    int | None,
    typer.Option(
        min=1, show_default="the input's longest; 15", help="Rules of the longest derivation.", rich_help_panel=STRINGS
    ),
]
ProdOption = Annotated[
    Path | None,
    typer.Option(show_default=False, help="Ready ids of rules, .npy (N, T).", rich_help_panel=STRINGS),
]
MasksOption = Annotated[
    Path | None,
    typer.Option(show_default=False, help="Their masks, bit-packed .npy (N, T, bytes).", rich_help_panel=STRINGS),
]
PadIdOption = Annotated[
    int | None,
    typer.Option(
        min=-1, show_default="found out", help="Ready id after the end, -1 or a rule.", rich_help_panel=STRINGS
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No notes on stderr.", rich_help_panel=OUTPUT)]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, nothing else.", rich_help_panel=OUTPUT)
]


@app.command()
def build(
    corpus: CorpusArgument = None,
    size: SizeOption = 100_000,
    seed: SeedOption = 0,
    grammar: GrammarOption = None,
    input_: InputOption = None,
    test: Annotated[
        Path | None,
        typer.Option(show_default=False, help="A file of those that are the test split.", rich_help_panel=STRINGS),
    ] = None,
    recipe: RecipeOption = "uniform",
    max_rules: MaxRulesOption = None,
    max_failed: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of lines that need not parse, or may be too long.", rich_help_panel=STRINGS
        ),
    ] = 0.1,
    download: Annotated[
        Literal["zinc250k"] | None,
        typer.Option(show_default=False, help="Fetch the molecules of smiles first.", rich_help_panel=STRINGS),
    ] = None,
    prod: ProdOption = None,
    masks: MasksOption = None,
    pad_id: PadIdOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Write it to this .npz too.", show_default=False, rich_help_panel=OUTPUT)
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Build again what is cached, and overwrite --output.", rich_help_panel=OUTPUT),
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build a corpus into the cache, or read and check one of yours; --output also writes it as .npz.

    `data build --grammar FILE --input strings.txt --output mine.npz` parses strings of yours.
    """
    from rich.text import Text

    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import SPLITS, GridArrays
    from arcvae_cli.data.recipes import Reading, cache_path, failures_of, write_arrays
    from arcvae_cli.errors import InputError
    from arcvae_cli.files import usable_folder

    console = Console(quiet=quiet, as_json=as_json)
    if output is not None:
        if output.suffix.lower() != ".npz":
            raise InputError(f"--output {output}: not a .npz", "Give a file name that ends in .npz.")
        if output.exists() and not force:
            raise InputError(f"--output {output}: the file exists", "Give another name, or --force to overwrite it.")
        usable_folder(output.parent, "--output")
    strings = _string_settings(grammar, input_, recipe, max_rules, prod, masks, pad_id)
    if download is not None:
        corpus = _download(download, corpus, strings, console)
    data = _settings(corpus, size, seed, strings)
    reading = Reading(
        test=test, most_failed=max_failed, listed=None if output is None else failures_of(output), say=console.note
    )
    arrays = _load(data, console, reading, rebuild=force)
    cached = cache_path(data, reading)
    file = cached or data.path or data.prod
    if output is not None:
        write_arrays(output, arrays)
        if cached is not None and failures_of(cached).is_file():
            _copy(failures_of(cached), failures_of(output))
        file = output
    counts = {split: int(arrays.rows(split).size) for split in SPLITS}
    fingerprint = arrays.fingerprint()
    console.result(Text(f"{arrays.name}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items())))
    document: dict[str, Any] = {"name": arrays.name}
    if isinstance(arrays, GridArrays):
        document["grids"] = counts
    else:
        steps, rules = arrays.ids.shape[1], len(arrays.rules)
        console.result(Text(f"derivations of up to {steps} of {rules} rules, the padding rule among them"))
        if arrays.origin.reason is not None:
            console.result(Text(f"parser: {arrays.origin.reason}"))
        document |= {"strings": counts, "steps": steps, "rules": rules, "origin": asdict(arrays.origin)}
    console.result(Text(f"fingerprint {fingerprint}"))
    console.result(Text(f"file {file}"))
    console.json(document | {"fingerprint": fingerprint, "file": str(file)})


@app.command()
def info(
    corpus: CorpusArgument = None,
    size: SizeOption = 100_000,
    seed: SeedOption = 0,
    grammar: GrammarOption = None,
    input_: InputOption = None,
    recipe: RecipeOption = "uniform",
    max_rules: MaxRulesOption = None,
    prod: ProdOption = None,
    masks: MasksOption = None,
    pad_id: PadIdOption = None,
    conditions: Annotated[
        bool,
        typer.Option("--conditions", help="What `sample --condition` takes, and how often it occurs, instead."),
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Describe a corpus, `arc` if none is named: its splits, what it is made of, and what leaks between splits."""
    from rich.text import Text

    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import GridArrays
    from arcvae_cli.data.describe import describe_conditions
    from arcvae_cli.data.recipes import Reading, cache_path
    from arcvae_cli.errors import InputError

    console = Console(quiet=quiet, as_json=as_json)
    strings = _string_settings(grammar, input_, recipe, max_rules, prod, masks, pad_id)
    data = _settings(corpus or (None if strings else "arc"), size, seed, strings)
    arrays = _load(data, console, Reading(say=console.note))
    if conditions:
        if not isinstance(arrays, GridArrays):
            raise InputError(f"{arrays.name}: strings have no conditions", "Leave out --conditions.")
        found = describe_conditions(arrays)
        count = int(arrays.rows("train").size)
        for part in _condition_tables(found, count, arrays.name):
            console.result(part)
        console.json({"name": arrays.name, "training_grids": count, "conditions": [asdict(one) for one in found]})
        return
    noun, examples, parts, document = (_of_grids if isinstance(arrays, GridArrays) else _of_strings)(arrays)
    fingerprint = arrays.fingerprint()
    file = cache_path(data) or data.path or data.prod
    console.result(Text.assemble((arrays.name, "bold"), f": {examples:,} {noun}"))
    console.result(Text(f"fingerprint {fingerprint}"))
    console.result(Text(f"file {file}"))
    for part in parts:
        console.result()
        console.result(part)
    console.json(
        {
            "name": arrays.name,
            noun: examples,
            "fingerprint": fingerprint,
            "file": str(file),
            "notes": list(arrays.notes),
            **document,
        }
    )


def _string_settings(
    grammar: str | None,
    input_: Path | None,
    recipe: str,
    max_rules: int | None,
    prod: Path | None,
    masks: Path | None,
    pad_id: int | None,
) -> dict[str, Any]:
    """The settings of a corpus of strings that were given, by their keys."""
    given = {
        "grammar": grammar,
        "input": input_,
        "recipe": None if recipe == "uniform" else recipe,
        "max_rules": max_rules,
        "prod": prod,
        "masks": masks,
        "pad_id": pad_id,
    }
    return {key: value for key, value in given.items() if value is not None}


def _settings(corpus: str | None, size: int, seed: int, strings: dict[str, Any]) -> DataSettings:
    """What NAME|PATH means: a corpus by name, or else a path; without it, what is given of strings."""
    from difflib import get_close_matches

    from arcvae_cli.errors import InputError

    known = f"{', '.join(CORPORA)}, or a .npz, .npy, ARC .json, a folder, or a file of strings."
    if corpus is None:
        if not {"grammar", "input", "prod"} & strings.keys():
            if "masks" in strings:
                raise InputError(f"--masks {strings['masks']}: masks without ids", "Give --prod too, the ids (N, T).")
            if "pad_id" in strings:
                raise InputError("--pad-id: there are no ready ids to pad", "Give --prod too, or leave it out.")
            raise InputError("no corpus is named", f"Use {known}")
        if "prod" not in strings and "grammar" not in strings:
            raise InputError(
                f"--input {strings['input']}: strings take a grammar", "Give --grammar, or smiles, equations."
            )
        if "prod" in strings:
            _no_use("--prod", {key: strings[key] for key in ("max_rules", "recipe") if key in strings}, "holds ids")
        return DataSettings.model_validate({**strings, "size": size, "seed": seed})
    if corpus in CORPORA:
        if corpus in GRID_CORPORA:
            _no_use(corpus, strings, "holds grids")
        return DataSettings.model_validate({"name": corpus, "size": size, "seed": seed, **strings})
    path = expanded(Path(corpus))
    if not path.exists():
        near = get_close_matches(corpus, CORPORA, 1)
        fix = f"Did you mean {near[0]}?" if near else f"Use {known}"
        raise InputError(f"{corpus}: no corpus of that name, and no such file", fix)
    if path.suffix.lower() in (".npz", ".npy", ".json") or path.is_dir():
        _no_use(corpus, {key: value for key, value in strings.items() if key != "grammar"}, "holds arrays")
    return DataSettings.model_validate({"path": path, **strings})


def _no_use(corpus: str, strings: dict[str, Any], holds: str) -> None:
    """Refuse what is given of strings that have to be drawn or parsed."""
    from arcvae_cli.errors import InputError

    for key in strings:
        raise InputError(f"{corpus}: {holds}, and has no use for --{key.replace('_', '-')}", "Leave one of them out.")


def _download(name: str, corpus: str | None, strings: dict[str, Any], console: Console) -> str:
    """Fetch a file into the cache, and the name of the corpus that is built of it."""
    from arcvae_cli.data.downloads import DOWNLOADS, address, fetch
    from arcvae_cli.errors import InputError

    if corpus not in (None, "smiles") or {"input", "prod"} & strings.keys():
        raise InputError(f"--download {name}: is of the corpus smiles, without --input", "Leave the other out.")
    what = DOWNLOADS[name]
    if not what.is_in(what.path):
        console.note(f"fetching {address(what)}")
    fetch(what, say=console.note)
    return "smiles"


def _load(data: DataSettings, console: Console, reading: Reading, rebuild: bool = False) -> Arrays:
    """The corpus, with a note before a build that takes seconds or a count of what is parsed, and its notes after."""
    from dataclasses import replace

    from arcvae_cli.data.recipes import cache_path, corpus_name, load_arrays

    cached = cache_path(data, reading)
    if cached is not None and (rebuild or not cached.is_file()):
        console.note(f"building {corpus_name(data)}: some seconds, this once")
    with console.counting("parsing") as tell:
        arrays = load_arrays(data, replace(reading, tell=tell), rebuild=rebuild)
    for note in arrays.notes:
        console.note(note)
    return arrays


def _copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    import shutil

    from arcvae_cli.files import atomic_write

    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


_Described = tuple[str, int, "list[Table | Text | str]", dict[str, Any]]
"""What examples are called, how many there are, what is printed about them, and what the JSON document says."""


def _of_grids(arrays: Arrays) -> _Described:
    from arcvae_cli.data.arrays import GridArrays
    from arcvae_cli.data.describe import describe

    assert isinstance(arrays, GridArrays)
    description = describe(arrays)
    return "grids", len(arrays.grids), [*_tables(description, len(arrays.grids))], asdict(description)


def _of_strings(arrays: Arrays) -> _Described:
    from arcvae_cli.data.describe_strings import describe_strings
    from arcvae_cli.data.strings import StringArrays

    assert isinstance(arrays, StringArrays)
    description = describe_strings(arrays)
    return "strings", len(arrays.ids), [*_string_parts(description, arrays)], asdict(description)


def _string_parts(description: StringDescription, arrays: StringArrays) -> Iterator[Table | Text | str]:
    """The splits, where the strings come from, the rules, and some of the strings."""
    from rich.text import Text

    splits = _table("Splits", ["split"], ["strings", "mean rules", "most rules", "padding", "duplicates"])
    for name, split in description.splits.items():
        mean = "-" if split.mean_rules is None else f"{split.mean_rules:.1f}"
        cells = (
            f"{split.strings:,}",
            mean,
            _number(split.most_rules),
            _percent(split.padding),
            f"{split.duplicates:,}",
        )
        splits.add_row(name, *cells)
    yield splits
    leaks = _table("Leaks", ["of", "into"], ["identical"])
    for leak in description.leaks:
        of = description.splits[leak.of].strings
        leaks.add_row(leak.of, leak.into, f"{leak.identical:,} ({leak.identical / of:.1%})")
    yield leaks
    origin = description.origin
    said = _table("Origin", ["", ""], [], header=False)
    how = {"drawn": "drawn, each derivation as likely", "enumerated": "enumerated in lexicographic order"}
    source = f" from {origin.source}" if origin.source else ""
    said.add_row("strings", Text(how.get(origin.how, origin.how) + source, overflow="fold"))
    if origin.entropy is not None:
        said.add_row("entropy", f"{origin.entropy:.2f} nats: no model has a lower mean NLL on unseen strings")
    if origin.reason is not None:
        said.add_row("parser", Text(origin.reason, overflow="fold"))
    if origin.lines:
        left_out = {
            "do not parse": origin.failed,
            "too long": origin.too_long,
            "duplicates": origin.duplicates,
            "ambiguous": origin.ambiguous,
        }
        counted = ", ".join(f"{count:,} {what}" for what, count in left_out.items())
        said.add_row("lines", f"{origin.lines:,}: {counted}")
    said.columns[1].no_wrap = False
    yield said
    used = sum(count > 0 for rule, count in enumerate(description.counts) if rule != arrays.rules.padding)
    rules = _table("Rules", ["", ""], [], header=False)
    rules.columns[1].no_wrap = False
    grammar = f" of {arrays.grammar.name}" if arrays.grammar is not None else ""
    rules.add_row("steps", f"up to {description.steps}")
    rules.add_row("used", Text(f"{used} of {len(arrays.rules) - 1}{grammar}, and the padding rule", overflow="fold"))
    for label, some in (("not used", description.unused), ("unusable", description.unusable)):
        if some:
            listed = ", ".join(_production(arrays, rule) for rule in some[:12]) + ", ..." * (len(some) > 12)
            rules.add_row(label, Text(listed, overflow="fold"))
    yield rules
    if description.examples:
        shown = _table("Examples", [""], [], header=False)
        shown.columns[0].no_wrap = False
        for one in description.examples:
            shown.add_row(Text(one, overflow="fold"))
        yield shown


def _production(arrays: StringArrays, rule: int) -> str:
    return str(rule) if arrays.grammar is None else f"{rule} ({arrays.grammar.productions[rule]})"


def _condition_tables(
    conditions: Sequence[ConditionDescription], grids: int, corpus: str
) -> Iterator[Table | Text | str]:
    """All conditions, with the share of grids that are like that, and the shares of each value of those that count."""
    from rich.text import Text

    said = _table("Conditions", ["key", "value", "meaning"], ["yes"], gap=2)
    for one in conditions:
        yes_or_no = len(one.values) == 2
        allowed = " or ".join(one.values) if yes_or_no else f"{one.values[0]} to {one.values[-1]}"
        said.add_row(
            one.name, allowed, one.text, _percent(one.counts[1] / grids if grids else None) if yes_or_no else ""
        )
    yield said
    yield Text(
        "Instead of colour_2, its name: red=yes. symmetry=lr and symmetry=ud ask for\n"
        "one mirror and leave the other open; symmetry=both and symmetry=none set both."
    )
    yield ""
    counted = [one for one in conditions if len(one.values) > 2]
    most = max(len(one.values) for one in counted)
    often = _table(f"Share of the {grids:,} training grids of {corpus}, %", [""], list(map(str, range(most))), gap=1)
    for one in counted:
        shares = [_whole_percent(count, grids) for count in one.counts]
        often.add_row(one.name, *shares, *[""] * (most - len(shares)))
    yield often


def _whole_percent(count: int, grids: int) -> str:
    """A share in two characters, `<1` for what rounds to nothing."""
    return "-" if not count else f"{100 * count / grids:.0f}" if 200 * count >= grids else "<1"


def _table(title: str, names: Sequence[str], numbers: Sequence[str], gap: int = 3, header: bool = True) -> Table:
    from rich.table import Table

    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, gap, 0, 0),
        show_header=header,
    )
    for name in names:
        made.add_column(name, no_wrap=True)
    for number in numbers:
        made.add_column(number, justify="right", no_wrap=True, min_width=2)
    return made


def _tables(description: Description, grids: int) -> list[Table]:
    splits = _table("Splits", ["split"], ["grids", "tasks", "black", "one colour", "duplicates"])
    for name, split in description.splits.items():
        splits.add_row(
            name,
            f"{split.grids:,}",
            _number(split.tasks),
            _percent(split.black),
            _percent(split.single_colour),
            f"{split.duplicates:,}",
        )

    colours = _table("Share of each colour", [], [str(colour) for colour in range(10)], gap=2)
    colours.add_row(*map(_percent, description.colours))

    leaks = _table("Leaks", ["of", "into"], ["identical", "up to symmetry and colour", "tasks"])
    for leak in description.leaks:
        of = description.splits[leak.of].grids
        leaks.add_row(
            leak.of,
            leak.into,
            f"{leak.identical:,} ({leak.identical / of:.1%})",
            f"{leak.equivalent:,} ({leak.equivalent / of:.1%})",
            _number(leak.tasks),
        )
    if not description.shapes:
        return [splits, colours, leaks]

    shapes = _table("Commonest shapes", ["height x width"], ["grids", "share"])
    for height, width, count in description.shapes:
        shapes.add_row(f"{height}x{width}", f"{count:,}", f"{count / grids:.1%}")
    return [splits, colours, shapes, leaks]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
