"""`arcvae data build`, `arcvae data info`: corpora built, read and described."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arcvae_cli.settings import CORPORA, DataSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table
    from rich.text import Text

    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import GridArrays
    from arcvae_cli.data.describe import ConditionDescription, Description

app = typer.Typer(no_args_is_help=True, help="Build or describe a corpus.")

INPUT, OUTPUT = "Input", "Output"  # panels of the help

CorpusArgument = Annotated[
    str, typer.Argument(metavar="NAME|PATH", help=f"{', '.join(CORPORA)}, or a .npz, .npy, ARC .json, or a folder.")
]
SizeOption = Annotated[
    int,
    typer.Option(
        min=10, max=2_000_000, help="Grids of a corpus built by name; arc-raw has its own.", rich_help_panel=INPUT
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of a corpus built by name.", rich_help_panel=INPUT)
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No notes on stderr.", rich_help_panel=OUTPUT)]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, nothing else.", rich_help_panel=OUTPUT)
]


@app.command()
def build(
    corpus: CorpusArgument,
    size: SizeOption = 100_000,
    seed: SeedOption = 0,
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
    """Build a corpus into the cache, or read and check one of yours; --output also writes it as .npz."""
    from rich.text import Text

    from arcvae_cli.console import Console
    from arcvae_cli.data.arrays import SPLITS
    from arcvae_cli.data.files import write_grids
    from arcvae_cli.data.recipes import cache_path
    from arcvae_cli.errors import InputError
    from arcvae_cli.writing import usable_folder

    console = Console(quiet=quiet, as_json=as_json)
    if output is not None:
        if output.suffix.lower() != ".npz":
            raise InputError(f"--output {output}: not a .npz", "Give a file name that ends in .npz.")
        if output.exists() and not force:
            raise InputError(f"--output {output}: the file exists", "Give another name, or --force to overwrite it.")
        usable_folder(output.parent, "--output")
    data = _settings(corpus, size, seed)
    arrays = _load(data, console, rebuild=force)
    file = cache_path(data) or data.path
    if output is not None:
        write_grids(output, arrays)
        file = output
    counts = {split: int(arrays.rows(split).size) for split in SPLITS}
    fingerprint = arrays.fingerprint()
    console.result(Text(f"{arrays.name}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items())))
    console.result(Text(f"fingerprint {fingerprint}"))
    console.result(Text(f"file {file}"))
    console.json({"name": arrays.name, "grids": counts, "fingerprint": fingerprint, "file": str(file)})


@app.command()
def info(
    corpus: CorpusArgument = "arc",
    size: SizeOption = 100_000,
    seed: SeedOption = 0,
    conditions: Annotated[
        bool,
        typer.Option("--conditions", help="What `sample --condition` takes, and how often it occurs, instead."),
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Describe a corpus: its splits, colours and shapes, and what leaks from one split into another."""
    from rich.text import Text

    from arcvae_cli.console import Console
    from arcvae_cli.data.describe import describe, describe_conditions
    from arcvae_cli.data.recipes import cache_path

    console = Console(quiet=quiet, as_json=as_json)
    data = _settings(corpus, size, seed)
    arrays = _load(data, console)
    if conditions:
        found = describe_conditions(arrays)
        count = int(arrays.rows("train").size)
        for part in _condition_tables(found, count, arrays.name):
            console.result(part)
        console.json({"name": arrays.name, "training_grids": count, "conditions": [asdict(one) for one in found]})
        return
    description = describe(arrays)
    fingerprint = arrays.fingerprint()
    file = cache_path(data) or data.path
    console.result(Text.assemble((arrays.name, "bold"), f": {len(arrays.grids):,} grids"))
    console.result(Text(f"fingerprint {fingerprint}"))
    console.result(Text(f"file {file}"))
    for table in _tables(description, len(arrays.grids)):
        console.result()
        console.result(table)
    console.json(
        {
            "name": arrays.name,
            "grids": len(arrays.grids),
            "fingerprint": fingerprint,
            "file": str(file),
            "notes": list(arrays.notes),
            **asdict(description),
        }
    )


def _settings(corpus: str, size: int, seed: int) -> DataSettings:
    """What NAME|PATH means: a corpus by name, or else a path."""
    from difflib import get_close_matches

    from arcvae_cli.errors import InputError

    if corpus in CORPORA:
        return DataSettings.model_validate({"name": corpus, "size": size, "seed": seed})
    path = Path(corpus).expanduser()
    if not path.exists():
        near = get_close_matches(corpus, CORPORA, 1)
        fix = f"Did you mean {near[0]}?" if near else f"Use {', '.join(CORPORA)}, or a .npz, .npy, ARC .json or folder."
        raise InputError(f"{corpus}: no corpus of that name, and no such file", fix)
    return DataSettings.model_validate({"path": path})


def _load(data: DataSettings, console: Console, rebuild: bool = False) -> GridArrays:
    """The corpus, with a note before a build that takes seconds, and its own notes after."""
    from arcvae_cli.commands.reading import announce_build
    from arcvae_cli.data.recipes import load_grids

    announce_build(data, console, rebuild)
    arrays = load_grids(data, rebuild=rebuild)
    for note in arrays.notes:
        console.note(note)
    return arrays


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


def _table(title: str, names: Sequence[str], numbers: Sequence[str], gap: int = 3) -> Table:
    from rich.table import Table

    made = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, gap, 0, 0)
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
