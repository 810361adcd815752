from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from arcvae_cli.data import recipes
from arcvae_cli.data.arrays import SPLITS, GridArrays
from arcvae_cli.data.cache import cache_folder
from arcvae_cli.data.downloads import ZINC, git_blob
from arcvae_cli.data.files import write_grids
from arcvae_cli.data.recipes import RECIPES, Arrays, Reading, Recipe, cache_path, failures_of, load_arrays, write_arrays
from arcvae_cli.data.strings import StringArrays, build_drawn
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import parse_grammar, read_grammar
from arcvae_cli.settings import CORPORA, DataSettings

SHAPES = DataSettings(name="shapes", size=50, seed=4)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[DataSettings]:
    """Every build, in order."""
    calls: list[DataSettings] = []

    def counting(build: Callable[..., Arrays]) -> Callable[..., Arrays]:
        def counted(data: DataSettings, reading: Reading, failures: Path) -> Arrays:
            calls.append(data)
            return build(data, reading, failures)

        return counted

    counted = {name: Recipe(counting(recipe.build), recipe.key) for name, recipe in RECIPES.items()}
    monkeypatch.setattr(recipes, "RECIPES", counted)
    return calls


def test_the_settings_know_every_recipe():
    assert set(CORPORA) == set(RECIPES)


def test_a_corpus_is_built_once(cache: Path, built: list[DataSettings]):
    first, second = load_arrays(SHAPES), load_arrays(SHAPES)
    assert built == [SHAPES]
    assert second.fingerprint() == first.fingerprint()
    assert second.name == first.name == "shapes"
    assert not first.notes
    assert [path.name for path in cache.iterdir()] == ["shapes-r1-n50-s4.npz"]
    load_arrays(SHAPES, rebuild=True)
    assert len(built) == 2


def test_what_the_arrays_depend_on_is_in_the_files_name():
    paths = [
        cache_path(SHAPES),
        cache_path(SHAPES.model_copy(update={"size": 51})),
        cache_path(SHAPES.model_copy(update={"seed": 5})),
        cache_path(SHAPES.model_copy(update={"name": "arc"})),
        cache_path(SHAPES.model_copy(update={"name": "arc-raw"})),
    ]
    assert len(set(paths)) == 5
    assert cache_path(SHAPES.model_copy(update={"augment": False, "limit": 3})) == paths[0]
    assert cache_path(DataSettings(path=Path("x.npz"))) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_cache_is_built_again(damage: str, built: list[DataSettings]):
    good = load_arrays(SHAPES)
    path = cache_path(SHAPES)
    content = path.read_bytes()
    middle = len(content) // 2
    harmed = {
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "foreign": b"not a zip",
        "empty": b"",
    }
    path.write_bytes(harmed[damage])
    assert load_arrays(SHAPES).fingerprint() == good.fingerprint()
    assert len(built) == 2
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_a_note(cache: Path):
    cache.write_text("a file where the folder should be")
    arrays = load_arrays(SHAPES)
    assert len(arrays.grids) == 50
    assert "could not be cached" in arrays.notes[0]


SLOW_BUILD = """
import os, sys, time
from dataclasses import replace
from arcvae_cli.data import recipes
from arcvae_cli.data.recipes import Reading, load_arrays
from arcvae_cli.settings import DataSettings
def say(*words): print(*words, flush=True)
shapes = recipes.RECIPES["shapes"]
def build(*arguments):
    open(os.environ["ARCVAE_CACHE_DIR"] + "/.shapes-r1-n50-s4.npz.half.tmp", "w").close()  # as a write under way does
    say("building")
    sys.stdin.readline()
    return shapes.build(*arguments)
recipes.RECIPES["shapes"] = replace(shapes, build=build)
arrays = load_arrays(DataSettings(name="shapes", size=50, seed=4), Reading(say=say))
say("has", arrays.fingerprint())
"""


@pytest.fixture
def builder(cache: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that needs a corpus, and builds it once it is told to."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-W", "error", "-c", SLOW_BUILD], text=True, **pipes))
        return started[-1]

    cache.mkdir(exist_ok=True)
    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_processes_that_need_a_corpus_at_once_build_it_once(cache: Path, builder: Callable[[], subprocess.Popen[str]]):
    processes = [builder() for _ in range(3)]
    said = {process: process.stdout.readline().strip() for process in processes}
    (first,) = [process for process, text in said.items() if text == "building"]
    waits = "another process is making shapes-r1-n50-s4.npz: waiting for it"
    assert sorted(said.values()) == [waits, waits, "building"]
    first.stdin.write("go\n")
    first.stdin.flush()
    ends = {process.communicate(timeout=30) for process in processes}
    assert ends == {(f"has {load_arrays(SHAPES).fingerprint()}\n", "")}
    assert [path.name for path in cache.iterdir()] == ["shapes-r1-n50-s4.npz"]


def test_a_process_that_is_killed_over_a_corpus_does_not_block_the_next(
    cache: Path, builder: Callable[[], subprocess.Popen[str]], built: list[DataSettings]
):
    first = builder()
    assert first.stdout.readline() == "building\n"
    first.kill()
    first.wait()
    assert len(list(cache.iterdir())) == 2  # its lock, which nobody holds, and what it had written
    said: list[str] = []
    assert len(load_arrays(SHAPES, Reading(say=said.append)).grids) == 50
    assert built == [SHAPES] and not said
    assert [path.name for path in cache.iterdir()] == ["shapes-r1-n50-s4.npz"]


def test_a_corpus_that_could_not_be_built_leaves_its_turn_to_the_next(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> Arrays:
        raise InputError("no")

    with monkeypatch.context() as patch:
        patch.setattr(recipes, "RECIPES", {**RECIPES, "shapes": replace(RECIPES["shapes"], build=fail)})
        with pytest.raises(InputError, match="no"):
            load_arrays(SHAPES)
    assert list(cache.iterdir()) == []
    assert len(load_arrays(SHAPES).grids) == 50


def test_a_cache_that_knows_no_locks(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert not load_arrays(SHAPES).notes
    assert [path.name for path in cache.iterdir()] == ["shapes-r1-n50-s4.npz"]


def test_the_users_cache_folder_is_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ARCVAE_CACHE_DIR")
    folder = cache_folder()
    assert folder.is_absolute()
    assert "arcvae" in folder.parts
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert cache_folder() == Path("/somewhere/arcvae")


def test_a_path_is_read(tmp_path: Path, canvases: GridArrays, built: list[DataSettings]):
    write_grids(tmp_path / "mine.npz", canvases)
    arrays = load_arrays(DataSettings(name="arc", path=tmp_path / "mine.npz"))
    assert (arrays.name, arrays.fingerprint()) == ("mine", canvases.fingerprint())
    assert not built


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="there is no corpus 'arx'"):
        load_arrays(DataSettings().model_copy(update={"name": "arx"}))


EQUATIONS = DataSettings(name="equations", size=50, seed=4)
SHEEP = "S -> 'b' A\nA -> 'a' A | 'a'\n"


def counts(arrays: Arrays) -> list[int]:
    return [arrays.rows(split).size for split in SPLITS]


def test_strings_are_drawn_once(cache: Path, built: list[DataSettings]):
    first, second = load_arrays(EQUATIONS), load_arrays(EQUATIONS)
    assert built == [EQUATIONS]
    assert isinstance(second, StringArrays)
    assert second.fingerprint() == first.fingerprint()
    assert second.name == first.name == "equations"
    assert second.origin == first.origin
    assert second.grammar == first.grammar
    assert second.ids.shape == (50, 15)


def test_what_strings_depend_on_is_in_the_files_name(tmp_path: Path):
    (tmp_path / "sheep.cfg").write_text(SHEEP)
    (tmp_path / "goat.cfg").write_text(SHEEP + "# and a goat")
    strings = tmp_path / "strings.txt"
    strings.write_text("ba\nbaa\n")
    sheep = DataSettings(grammar=str(tmp_path / "sheep.cfg"), input=strings)
    some = [
        EQUATIONS,
        EQUATIONS.model_copy(update={"seed": 5}),
        EQUATIONS.model_copy(update={"size": 51}),
        EQUATIONS.model_copy(update={"recipe": "kusner"}),
        EQUATIONS.model_copy(update={"max_rules": 9}),
        sheep,
        sheep.model_copy(update={"max_rules": 9}),
        sheep.model_copy(update={"grammar": str(tmp_path / "goat.cfg")}),
        sheep.model_copy(update={"input": None, "max_rules": 9}),
    ]
    paths = [cache_path(data) for data in some]
    assert len(set(paths)) == len(some) and None not in paths
    assert cache_path(EQUATIONS.model_copy(update={"max_rules": 15})) == paths[0]
    assert cache_path(sheep, Reading(test=strings)) not in paths
    assert cache_path(sheep.model_copy(update={"input": tmp_path / "none.txt"})) is None
    strings.write_text("ba\nbaaa\n")
    assert cache_path(sheep) not in paths


def test_any_grammar_is_drawn_from(tmp_path: Path):
    (tmp_path / "sheep.cfg").write_text(SHEEP)
    data = DataSettings(grammar=str(tmp_path / "sheep.cfg"), size=10, max_rules=12)
    arrays = load_arrays(data)
    assert arrays.name == "sheep"
    assert set(arrays.strings(np.arange(10))) <= {"b" + "a" * n for n in range(1, 12)}
    with pytest.raises(InputError, match=r"data\.max_rules: strings of .*sheep\.cfg are drawn up to a number"):
        load_arrays(data.model_copy(update={"max_rules": None}))
    with pytest.raises(InputError, match="no 12 different strings"):
        load_arrays(data.model_copy(update={"size": 12}))
    with pytest.raises(InputError, match="kusner is of the grammar equations"):
        load_arrays(data.model_copy(update={"recipe": "kusner"}))


def test_strings_of_a_file_are_parsed_once(tmp_path: Path, built: list[DataSettings]):
    (tmp_path / "sheep.cfg").write_text(SHEEP)
    strings = tmp_path / "some strings.txt"
    strings.write_text("".join(f"b{'a' * n}\n" for n in range(1, 21)) + "moo\n")
    data = DataSettings(grammar=str(tmp_path / "sheep.cfg"), input=strings)
    first = load_arrays(data)
    failures = failures_of(cache_path(data))
    assert failures.read_text().splitlines()[1].split("\t")[:3] == ["some strings.txt", "21", "1"]
    assert first.notes == (f"1 of 21 lines do not parse: listed in {failures}",)
    again = load_arrays(data)
    assert again.fingerprint() == first.fingerprint()
    assert (again.name, again.notes) == (first.name, first.notes) == ("some strings", first.notes)
    assert len(built) == 0, "no corpus that has a name"
    as_path = load_arrays(DataSettings(path=strings, grammar=str(tmp_path / "sheep.cfg")))
    assert as_path.fingerprint() == first.fingerprint()
    from_checkpoint = load_arrays(DataSettings(path=strings), Reading(grammar=parse_grammar(SHEEP, "the checkpoint's")))
    assert from_checkpoint.fingerprint() == first.fingerprint()
    (tmp_path / "sheep.cfg").unlink()
    gone = load_arrays(data, Reading(grammar=parse_grammar(SHEEP, "the checkpoint's")))
    assert gone.fingerprint() == first.fingerprint(), "a checkpoint outlives its grammar's file"
    with pytest.raises(InputError, match="cannot be read"):
        load_arrays(data)
    with pytest.raises(InputError, match="strings take a grammar"):
        load_arrays(DataSettings(path=strings))


def test_too_many_lines_that_do_not_parse(tmp_path: Path):
    strings = tmp_path / "strings.txt"
    strings.write_text("1\n2\nthree\n3\n1 + 1\n")
    data = DataSettings(name="equations", input=strings)
    for _ in range(2):  # when it is parsed, and from the cache
        with pytest.raises(InputError, match=r"strings\.txt: 1 of 5 lines do not parse: listed in ") as raised:
            load_arrays(data)
        assert "--max-failed" in raised.value.fix
        assert counts(load_arrays(data, Reading(most_failed=0.2))) == [2, 1, 1]


def test_too_many_strings_that_are_too_long(tmp_path: Path):
    strings = tmp_path / "strings.txt"
    strings.write_text("1\n2\n3\nx\n1 + 1\n")
    data = DataSettings(name="equations", input=strings, max_rules=2)
    for _ in range(2):  # when it is parsed, and from the cache
        with pytest.raises(
            InputError, match=r"strings\.txt: 1 of 5 strings take more rules than data\.max_rules = 2"
        ) as raised:
            load_arrays(data)
        assert "--max-rules" in raised.value.fix and "--max-failed" in raised.value.fix
        arrays = load_arrays(data, Reading(most_failed=0.2))
        assert len(arrays.ids) == 4
        assert arrays.notes == ("1 strings take more rules than data.max_rules: left out",)
    assert len(load_arrays(data.model_copy(update={"max_rules": None})).ids) == 5
    drawn = load_arrays(DataSettings(name="equations", size=20, max_rules=9))
    assert drawn.ids.shape == (20, 9) and not drawn.notes


@pytest.mark.parametrize(
    ("count", "long", "note"),
    [
        (
            200,
            [20],
            "has 21 rules, 99 % have at most 10: --set data.max_rules=10 (or --max-rules 10) would leave out 1",
        ),
        (30, [30], "has 31 rules, all others have at most 10: --set data.max_rules=10"),
        (
            200,
            [21, 24],
            "has 25 rules, 99 % have at most 10: --set data.max_rules=10 (or --max-rules 10) would leave out 2",
        ),
        (200, [19], None),  # no more than twice as long
        (200, [30, 30, 30], None),  # more than a hundredth
        (5, [30], None),
    ],
)
def test_a_few_long_strings_are_said(tmp_path: Path, count: int, long: list[int], note: str | None):
    (tmp_path / "words.cfg").write_text("S -> 'a' S | 'b' S | 'a' | 'b'\n")
    some = [f"{n:09b}{'0' * 1}"[-10:] for n in range(count)]
    some[-len(long) :] = [f"{place:b}".zfill(length + 1) for place, length in enumerate(long)]
    words = tmp_path / "words.txt"
    words.write_text("\n".join(some).replace("0", "a").replace("1", "b"))
    arrays = load_arrays(DataSettings(grammar=str(tmp_path / "words.cfg"), input=words))
    assert len(arrays.ids) == count
    if note is None:
        assert not arrays.notes
    else:
        assert note in arrays.notes[0] and arrays.notes[0].startswith("the longest derivation has")
        data = DataSettings(grammar=str(tmp_path / "words.cfg"), input=words, max_rules=10)
        assert load_arrays(data).ids.shape == (count - len(long), 10)


def test_a_corpus_of_strings_comes_from_one_place(tmp_path: Path):
    strings = tmp_path / "strings.txt"
    strings.write_text("1\n")
    for given, message in {
        ("path", "input"): "data.path and data.input",
        ("input", "prod"): "data.input and data.prod",
        ("masks",): "data.masks: masks without ids",
    }.items():
        with pytest.raises(InputError, match=message):
            load_arrays(DataSettings(name="equations", **dict.fromkeys(given, strings)))
    with pytest.raises(InputError, match=r"data\.pad_id"):
        load_arrays(DataSettings(name="equations", pad_id=3))
    with pytest.raises(InputError, match="kusner is of the corpus equations"):
        load_arrays(DataSettings(name="arc", recipe="kusner"))


def test_arrays_of_either_kind_are_told_apart(tmp_path: Path, canvases: GridArrays):
    drawn = build_drawn(read_grammar("equations"), 15, 20)
    path = tmp_path / "mine.npz"
    write_arrays(path, drawn)
    arrays = load_arrays(DataSettings(path=path))
    assert (arrays.name, arrays.fingerprint()) == ("mine", drawn.fingerprint())
    with pytest.raises(InputError, match="is not of the grammar smiles"):
        load_arrays(DataSettings(path=path, grammar="smiles"))
    assert load_arrays(DataSettings(path=path, grammar="equations")).fingerprint() == drawn.fingerprint()
    write_arrays(path, canvases)
    assert load_arrays(DataSettings(path=path)).fingerprint() == canvases.fingerprint()
    np.save(tmp_path / "prod.npy", drawn.ids)
    ready = load_arrays(DataSettings(prod=tmp_path / "prod.npy", grammar="equations"))
    assert (ready.ids == drawn.ids).all()
    assert cache_path(DataSettings(prod=tmp_path / "prod.npy", grammar="equations")) is None


def test_molecules_that_are_not_there(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="zinc250k is not in the cache"):
        load_arrays(DataSettings(name="smiles"))
    assert cache_path(DataSettings(name="smiles")) is None


def test_molecules_that_were_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [f"{'C' * n}O" for n in range(1, 41)]
    content = ("\n".join(lines) + "\n").encode()
    small = replace(ZINC, blob=git_blob(content), test_lines=8)
    monkeypatch.setattr(recipes, "ZINC", small)
    small.path.parent.mkdir(parents=True)
    small.path.write_bytes(content)
    arrays = load_arrays(DataSettings(name="smiles"))
    assert arrays.name == "smiles"
    assert arrays.strings(arrays.rows("test")) == lines[:8], "as in 2017"
    assert counts(arrays) == [29, 3, 8]
    (tmp_path / "all.txt").write_bytes(content)
    assert load_arrays(DataSettings(name="smiles", input=tmp_path / "all.txt")).fingerprint() == arrays.fingerprint()
    (tmp_path / "mine.smi").write_text("\n".join(f"{line} name" for line in lines))
    mine = load_arrays(DataSettings(name="smiles", input=tmp_path / "mine.smi"))
    assert counts(mine) == [32, 4, 4]
