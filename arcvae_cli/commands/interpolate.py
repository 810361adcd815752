"""`arcvae interpolate`: a path between the codes of two examples, decoded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arcvae_cli.commands.reading import (
    INPUT,
    OUTPUT,
    CheckpointOption,
    DataOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    RunsOption,
    SeedOption,
    SplitName,
    judge_for,
    open_checkpoint,
    open_derivations,
    open_grids,
    output_folder,
    write_arrays,
    write_task,
    writing_grammar,
)
from arcvae_cli.files import exists, expanded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from arcvae_cli.checkpoints import Loaded
    from arcvae_cli.console import Console
    from arcvae_cli.data.corpus import Corpus, DerivationCorpus, GridCorpus
    from arcvae_cli.grammar import Grammar
    from arcvae_cli.models.base import VAE, Batch
    from arcvae_cli.models.grammar import GrammarVAE

STRING = "string:"
"""Before what would else be taken for an index."""

_END = (
    "index in the split; or an ARC JSON file (its first grid; FILE:2 is its third); "
    f"or a string of the model's grammar ({STRING}7 where it looks like an index)"
)


def interpolate(
    start: Annotated[str, typer.Option("--from", help=_END, rich_help_panel=INPUT)],
    end: Annotated[str, typer.Option("--to", help=_END, rich_help_panel=INPUT)],
    checkpoint: CheckpointOption = "vae_best.pth",
    path: Annotated[Literal["linear", "slerp"], typer.Option(help="straight line, or great circle")] = "linear",
    steps: Annotated[int, typer.Option(min=2, max=256, help="points on the path, ends included")] = 9,
    level: Annotated[
        Literal["all", "global", "local"],
        typer.Option(help="latents that move; the others keep their distance from the prior"),
    ] = "all",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    data: DataOption = None,
    split: Annotated[SplitName, typer.Option(help="of the indices", rich_help_panel=INPUT)] = "test",
    runs_dir: RunsOption = Path("runs"),
    output: Annotated[
        Path | None,
        typer.Option(help="folder", show_default="interpolations/ of the run, or here", rich_help_panel=OUTPUT),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Walk between two examples: their posterior means, points on the path between them, decoded."""
    from arcvae_cli.console import Console
    from arcvae_cli.models.grammar import GrammarVAE

    console = Console(quiet=quiet, as_json=as_json)
    loaded = open_checkpoint(checkpoint, runs_dir, device, console)
    moving = _levels(loaded.model, level)
    asked = Asked({"--from": start, "--to": end}, path, steps, level, moving, seed, data, split)
    if isinstance(loaded.model, GrammarVAE):
        grammar = writing_grammar(loaded)
        between_strings(asked, loaded, loaded.model, grammar, output, console)
    else:
        between_grids(asked, loaded, output, console)


@dataclass(frozen=True)
class Asked:
    """The path that is to be walked. `ends`: what each flag said; `moving`: levels that move, None for all."""

    ends: Mapping[str, str]
    path: Literal["linear", "slerp"]
    steps: int
    level: str
    moving: tuple[str, ...] | None
    seed: int
    data: str | None
    split: str

    def named(self, names: Sequence[str]) -> str:
        """The path in words."""
        text = f"{self.path} path of {self.steps} from {names[0]} to {names[1]}"
        return text if self.level == "all" else f"{text}, {self.level} level"

    def index(self, flag: str, corpus: Callable[[], Corpus]) -> int | None:
        """The index that a flag gives, None where it gives none. InputError where no example has it."""
        from arcvae_cli.errors import InputError

        text = self.ends[flag]
        if not _is_index(text):
            return None
        index, size = int(text), corpus().size(self.split)
        if not 0 <= index < size:
            raise InputError(f"{flag} {index}: the {self.split} split of {corpus().name} has examples 0 to {size - 1}")
        return index


def _is_index(text: str) -> bool:
    return text.lstrip("-").isdigit()


def walked(asked: Asked, model: VAE, batch: Batch) -> dict[str, Tensor]:
    """Latents (steps, *shape) by level on the path between the codes of the two examples of a batch."""
    from arcvae_cli.evaluation.information import evaluating
    from arcvae_cli.evaluation.paths import walk

    with evaluating(model, asked.seed):
        encoded = model.encode(batch, noise=False)
        # alone, a level moves under what the others add to their priors: a map under a learned prior goes along
        points = {one.name: one.mean if asked.moving is None else one.offset() for one in encoded}
        first, last = ({name: point[row : row + 1] for name, point in points.items()} for row in (0, 1))
        latents = walk(first, last, asked.steps, asked.path, asked.moving)
        latents = {name: value.flatten(0, 1) for name, value in latents.items()}
        return latents if asked.moving is None else model.prior(asked.steps, noise=latents)


def facts(asked: Asked, loaded: Loaded, names: Sequence[str], files: Mapping[str, Path]) -> dict[str, Any]:
    """How the path came about, as the report begins."""
    return {
        "checkpoint": str(loaded.path),
        "epoch": loaded.epoch,
        "from": names[0],
        "to": names[1],
        "path": asked.path,
        "level": asked.level,
        "steps": asked.steps,
        "files": {kind: str(file) for kind, file in files.items()},
    }


# ---------------------------------------------------------------------------------------------------------- grids


def between_grids(asked: Asked, loaded: Loaded, output: Path | None, console: Console) -> None:
    """The strip in the terminal, and `interpolation.png`, `interpolation.npz` and `interpolation.json`."""
    import functools

    import numpy as np
    import torch
    from rich.text import Text

    from arcvae_cli import render
    from arcvae_cli.evaluation.priors import most_likely
    from arcvae_cli.models.base import Batch

    model = loaded.model
    corpus = functools.cache(lambda: open_grids(loaded, asked.data, asked.split, console))
    (first, start), (last, end) = (_grid(asked, flag, corpus, console) for flag in asked.ends)
    names, originals = (first, last), np.stack([start, end])
    folder = output_folder(output, loaded, "interpolations")

    place = next(model.parameters()).device
    latents = walked(asked, model, Batch(torch.from_numpy(originals).long().to(place)))
    grids = most_likely(model, latents).numpy().astype(np.uint8)
    changed = (grids[1:] != grids[:-1]).sum((1, 2)).tolist()
    mean_step, largest = sum(changed) / len(changed), max(changed)
    apart, originally = (int((pair[0] != pair[-1]).sum()) for pair in (grids, originals))
    wrong = [int((grids[place] != originals[place]).sum()) for place in (0, -1)]

    files = {kind: folder / f"interpolation.{kind}" for kind in ("png", "npz", "json")}
    report = {
        **facts(asked, loaded, names, files),
        "changed": changed,
        "mean_step": mean_step,
        "largest_step": largest,
        "distance": apart,
        "distance_of_originals": originally,
        "wrong_at_ends": wrong,
    }
    title = f"{asked.named(names)}, {loaded.path.name} of epoch {loaded.epoch}"
    render.save_path(files["png"], grids, originals, title)
    codes = {f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}
    write_arrays(files["npz"], {"grids": grids, "originals": originals, **codes})
    write_task(files["json"], grids, report)

    console.result(render.TerminalGrids(*render.path_strip(grids, originals)))
    console.result(
        Text(
            f"{asked.named(names)}: {mean_step:.1f} cells change a step, {largest} at most; {apart} between the "
            f"decoded ends, {originally} between the originals; the decoded ends are wrong in {wrong[0]} and {wrong[1]}"
        )
    )
    console.note(f"wrote interpolation.png, interpolation.npz and interpolation.json to {folder}")
    console.json(report)


def _levels(model: VAE, level: str) -> tuple[str, ...] | None:
    """The levels that move, None for all. InputError where the model has no such level."""
    from arcvae_cli.errors import InputError

    if level == "all":
        return None
    names = tuple(model.level_sizes)
    if len(names) == 1:
        raise InputError(f"--level {level}: this model has a single level of latents, {names[0]}", "use --level all")
    if level not in names:
        raise InputError(f"--level {level}: this model has no such level", f"its levels: {', '.join(names)}; or all")
    return (level,)


def _grid(asked: Asked, flag: str, corpus: Callable[[], GridCorpus], console: Console) -> tuple[str, NDArray[np.uint8]]:
    """The grid (16, 16) that `--from` or `--to` means, and its name."""
    from arcvae_cli.data.files import read_grids
    from arcvae_cli.errors import InputError

    if (index := asked.index(flag, corpus)) is not None:
        return f"{asked.split} {index}", corpus().grids(asked.split)[index].cpu().numpy()
    text = asked.ends[flag]
    name, colon, number = text.rpartition(":")
    if not (colon and number.isdigit()) or exists(Path(text)):
        name, number = text, "0"
    file = expanded(Path(name))
    if not exists(file):
        raise InputError(
            f"{flag} {text}: there is no such file, and this model is of grids, not of strings",
            f"give the index of a grid in the {asked.split} split, or a file of grids",
        )
    arrays = read_grids(file)
    for note in arrays.notes:
        console.note(note)
    if int(number) >= len(arrays.grids):
        raise InputError(f"{flag} {text}: the file has grids 0 to {len(arrays.grids) - 1}")
    return f"{file.name}:{number}", arrays.grids[int(number)]


# -------------------------------------------------------------------------------------------------------- strings


def between_strings(
    asked: Asked, loaded: Loaded, model: GrammarVAE, grammar: Grammar, output: Path | None, console: Console
) -> None:
    """The strings along the path, and `interpolation.txt`, `interpolation.npz` and `interpolation.json`.

    At every point stands the likeliest string by the rules that the grammar allows, which is complete.
    """
    import functools
    import json

    import numpy as np
    import torch
    from rich.text import Text

    from arcvae_cli import render
    from arcvae_cli.evaluation.paths import edit_distance
    from arcvae_cli.evaluation.priors import most_likely
    from arcvae_cli.files import atomic_write
    from arcvae_cli.models.base import Batch

    rules, length = model.structure.rules, model.structure.length
    corpus = functools.cache(lambda: open_derivations(loaded, asked.data, asked.split, console))
    (first, start), (last, end) = (_derivation(asked, flag, corpus, grammar, length) for flag in asked.ends)
    names, originals = (first, last), np.stack([start, end])
    folder = output_folder(output, loaded, "interpolations")

    x = torch.from_numpy(originals).long().to(next(model.parameters()).device)
    latents = walked(asked, model, Batch(x, valid=x != rules.padding))
    ids = most_likely(model, latents).numpy().astype(np.int16)
    strings, ends = ([grammar.write(row) or "" for row in some.tolist()] for some in (ids, originals))
    judge = judge_for(grammar, console)
    valid = None if judge is None else [judge(string) for string in strings]

    steps = [row[row != rules.padding].tolist() for row in ids]
    wanted = [row[row != rules.padding].tolist() for row in originals]
    changed = [edit_distance(one, other) for one, other in itertools.pairwise(steps)]
    characters = [edit_distance(one, other) for one, other in itertools.pairwise(strings)]
    wrong = [edit_distance(steps[place], wanted[place]) for place in (0, -1)]
    mean_step, largest, distinct = sum(changed) / len(changed), max(changed), len(set(strings))
    apart, originally = edit_distance(steps[0], steps[-1]), edit_distance(*wanted)

    files = {kind: folder / f"interpolation.{kind}" for kind in ("txt", "npz", "json")}
    report = {
        **facts(asked, loaded, names, files),
        "originals": ends,
        "strings": strings,
        "judge": None if judge is None else judge.name,
        "valid": valid,
        "distinct": distinct,
        "changed": changed,
        "changed_characters": characters,
        "mean_step": mean_step,
        "largest_step": largest,
        "distance": apart,
        "distance_of_originals": originally,
        "wrong_at_ends": wrong,
    }
    rows = [("from, original", ends[0], ""), *path_rows(strings, valid), ("to, original", ends[1], "")]
    text = "".join(f"{label:<14}  {string}{remark and '    '}{remark}\n" for label, string, remark in rows)
    with atomic_write(files["txt"]) as temporary:
        temporary.write_text(text, encoding="utf-8")
    codes = {f"latents_{name}": value.cpu().numpy() for name, value in latents.items()}
    write_arrays(files["npz"], {"ids": ids, "originals": originals, **codes})
    with atomic_write(files["json"]) as temporary:
        temporary.write_text(json.dumps(report, allow_nan=False) + "\n", encoding="utf-8")

    console.result(render.TerminalStrings(rows))
    judged = "" if valid is None or judge is None else f", {sum(valid)} {judge.name}"
    console.result(
        Text(
            f"{asked.named(names)}: {distinct} of {len(strings)} strings distinct{judged}; {mean_step:.1f} rules "
            f"change a step, {largest} at most; {apart} between the decoded ends, {originally} between the originals; "
            f"the decoded ends are wrong in {wrong[0]} and {wrong[1]}"
        )
    )
    console.note(f"wrote interpolation.txt, interpolation.npz and interpolation.json to {folder}")
    console.json(report)


def path_rows(strings: Sequence[str], valid: Sequence[bool] | None) -> list[tuple[str, str, str]]:
    """Where on the path, which string, and whether it is invalid: neighbours with the same string share a row."""
    rows, last = [], len(strings) - 1
    digits = 2 if last <= 100 else 3
    for string, group in itertools.groupby(range(len(strings)), key=strings.__getitem__):
        places = list(group)
        label = " to ".join(f"{place / last:.{digits}f}" for place in dict.fromkeys((places[0], places[-1])))
        rows.append((label, string, "" if valid is None or valid[places[0]] else "invalid"))
    return rows


def _derivation(
    asked: Asked, flag: str, corpus: Callable[[], DerivationCorpus], grammar: Grammar, length: int
) -> tuple[str, NDArray[np.int16]]:
    """The derivation (T,) that `--from` or `--to` means, and its name."""
    import numpy as np

    from arcvae_cli.data.parsing import ParseFailure, Parser
    from arcvae_cli.errors import InputError

    if (index := asked.index(flag, corpus)) is not None:
        return f"{asked.split} {index}", corpus().ids(asked.split)[index].cpu().numpy()
    text = asked.ends[flag].removeprefix(STRING)
    try:
        ids = Parser(grammar).parse(text)
    except ParseFailure as failure:
        raise InputError(
            f"{flag} {text!r}: not a string of the grammar: at character {failure.position + 1}: {failure.reason}",
            "give a string that the grammar derives, or the index of one in the split",
        ) from None
    if len(ids) > length:
        raise InputError(
            f"{flag} {text!r}: takes {len(ids)} rules, and this model is made for {length}", "give a shorter string"
        )
    return repr(text), np.array(ids + [grammar.rules.padding] * (length - len(ids)), np.int16)
