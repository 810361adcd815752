from __future__ import annotations

import errno
import io
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvae_cli import checkpoints
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.grammar import parse_grammar, read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.grammar import Structure
from arcvae_cli.settings import Settings


def values(**changes: object) -> dict[str, object]:
    settings = Settings()
    return {
        "format_version": checkpoints.FORMAT,
        "epoch": 3,
        "model_state_dict": build_model(settings.model).state_dict(),
        "config": checkpoints.config_text(settings),
        **changes,
    }


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "a" / "checkpoints" / "vae_best.pth"
    path.parent.mkdir(parents=True)
    (path.parent.parent / "config.toml").write_text("")
    checkpoints.save(path, values())
    return path


def test_what_is_saved_is_loaded_in_evaluation_mode(good: Path) -> None:
    loaded = checkpoints.load(good)
    assert loaded.epoch == 3 and loaded.settings == Settings() and not loaded.model.training
    assert loaded.run == good.parent.parent
    saved = torch.load(good, weights_only=True)["model_state_dict"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.model.state_dict().items())


def test_nothing_in_a_checkpoint_needs_more_than_weights_only(good: Path) -> None:
    assert torch.serialization.get_unsafe_globals_in_checkpoint(str(good)) == []


def expect_refused(path: Path, match: str) -> None:
    with pytest.raises(InputError) as caught:
        checkpoints.load(path)
    assert match in str(caught.value) and str(path) in str(caught.value), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_truncated_damaged_foreign_and_empty_files_are_refused_in_a_line(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    bad = tmp_path / "bad.pth"
    for tenth in range(10):
        bad.write_bytes(whole[: len(whole) * tenth // 10])
        expect_refused(bad, "not a checkpoint of arcvae (cut short, or something else: ")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10  # inside a tensor, where PyTorch would load it silently
    bad.write_bytes(flipped)
    expect_refused(bad, "damaged")
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("hello.txt", "hello")
    expect_refused(bad, "not a checkpoint of arcvae")
    torch.save({"weights": torch.zeros(2)}, bad)
    expect_refused(bad, "lacks what arcvae writes")
    expect_refused(tmp_path, "a folder")


def test_a_pickle_bomb_does_not_go_off(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (canary,))

    torch.save({"model_state_dict": Bomb()}, tmp_path / "bomb.pth")
    expect_refused(tmp_path / "bomb.pth", "not a checkpoint of arcvae")
    assert not canary.exists()


def test_another_models_weights_a_newer_format_and_foreign_settings(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    other = build_model(Settings.model_validate({"model": {"latent_dim": 3}}).model).state_dict()
    checkpoints.save(path, values(model_state_dict=other))
    expect_refused(path, "weights do not fit")
    checkpoints.save(path, values(format_version=checkpoints.FORMAT + 1))
    expect_refused(path, "newer arcvae")
    checkpoints.save(path, values(config="{"))
    expect_refused(path, "settings cannot be read")
    checkpoints.save(path, values(config=json.dumps({"model": {"nmae": "grid"}})))
    expect_refused(path, "has no use for nmae")


def test_names_are_looked_up_in_the_runs(good: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "latest").symlink_to("a")
    assert checkpoints.find_checkpoint(str(good), runs) == checkpoints.Found(good)
    assert checkpoints.find_checkpoint(str(runs / "a"), runs).path == good
    named = checkpoints.find_checkpoint("a", runs)
    assert named.path == good and named.note is not None
    latest = checkpoints.find_checkpoint("vae_best.pth", runs)
    assert latest.path == good.resolve() and "a/checkpoints/vae_best.pth, of the latest run" in str(latest.note)
    with pytest.raises(InputError, match="runs: a"):
        checkpoints.find_checkpoint("nothing.pth", runs)
    with pytest.raises(InputError, match="no run in"):
        checkpoints.find_checkpoint("nothing.pth", tmp_path / "none")


def test_a_full_disk_leaves_the_previous_checkpoint_whole(good: Path) -> None:
    before = good.read_bytes()
    script = (
        "import resource, sys, torch; from pathlib import Path; from arcvae_cli import checkpoints\n"
        "from arcvae_cli.errors import ArcvaeError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: checkpoints.save(Path(sys.argv[1]), {'a': torch.zeros(1_000_000)})\n"
        "except ArcvaeError as error: print(error); sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(good)], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "could not be written" in done.stdout and str(good) in done.stdout
    assert good.read_bytes() == before
    assert list(good.parent.iterdir()) == [good]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 200_000


def test_a_missing_folder_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ArcvaeError, match="could not be written"):
        checkpoints.save(tmp_path / "none" / "x.pth", {})


@pytest.mark.parametrize(("key", "value"), [("format_version", "1"), ("epoch", "first"), ("config", "[1]")])
def test_values_of_another_type_are_one_clear_line(good: Path, tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "odd.pth"
    torch.save({**torch.load(good, weights_only=True), key: value}, path)
    with pytest.raises(InputError, match=r"odd\.pth"):
        checkpoints.load(path)


def test_the_same_values_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        checkpoints.save(tmp_path / name, {"weight": torch.arange(3.0)})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def two_levels(**changes: object) -> dict[str, object]:
    settings = Settings.model_validate(
        {"model": {"name": "hierarchical", "local_size": 4}, "schedule": {"name": "hierarchical"}}
    )
    model = build_model(settings.model)
    kept = {"model_state_dict": model.state_dict(), "config": checkpoints.config_text(settings)}
    return values(**kept, **{"conditions": checkpoints.condition_schema(model), **changes})


def test_a_conditional_model_is_loaded_with_the_conditions_it_was_trained_with(tmp_path: Path) -> None:
    path = tmp_path / "vae_best.pth"
    checkpoints.save(path, two_levels())
    assert checkpoints.load(path).model.attributes
    assert torch.load(path, weights_only=True)["conditions"][2] == ["colours", 10]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda kept: kept[:-1], ": symmetry_ud"),
        (lambda kept: [*kept, ["holes", 5]], ": holes"),
        (lambda kept: [["height", 31], *kept[1:]], ""),
        (lambda kept: [kept[1], kept[0], *kept[2:]], ""),
        (lambda kept: [], ": colour_0, colour_1"),
        (lambda kept: 7, ": colour_0, colour_1"),
    ],
)
def test_other_conditions_are_refused_in_a_line(tmp_path: Path, change: Callable[[list], object], named: str) -> None:
    path = tmp_path / "vae_best.pth"
    kept = two_levels()
    checkpoints.save(path, {**kept, "conditions": change(kept["conditions"])})
    expect_refused(path, f"its conditions are not those of this arcvae{named}")


def test_a_model_without_conditions_refuses_those_of_another(tmp_path: Path) -> None:
    path = tmp_path / "vae_best.pth"
    checkpoints.save(path, values(conditions=[["height", 17]]))
    expect_refused(path, "its conditions are not those of this arcvae: height")
    checkpoints.save(path, values(conditions=[]))
    assert checkpoints.load(path).model.attributes == ()


TINY = {
    "kusner": {"encoder_kernel": [2], "encoder_channels": [2], "encoder_conv_layers": 1},
    "enhanced": {"encoder_kernel": [3], "encoder_conv_layers": 1},
}
EQUATIONS = read_grammar("equations")
Tables = dict[str, Any]


def of_strings(arch: str, structure: Structure, **changes: object) -> dict[str, object]:
    sizes = {"latent_dim": 3, "encoder_hidden": 4, "decoder_hidden": 4, "decoder_layers": 1}
    model = {"name": "grammar", "arch": arch, **sizes, **TINY[arch]}
    settings = Settings.model_validate({"data": {"name": "equations"}, "model": model})
    known = replace(structure, rules=replace(structure.rules, rhs=None))
    made = build_model(settings.model, known)
    kept = {"model_state_dict": made.state_dict(), "config": checkpoints.config_text(settings)}
    return values(**kept, structure=structure.text(), conditions=[], **changes)


def put(**changes: object) -> Callable[[Tables], object]:
    return lambda table: table.update(changes)


def without(key: str) -> Callable[[Tables], object]:
    return lambda table: table.pop(key)


def wide(names: int, bodies: int) -> str:
    """A grammar of one symbol with many rules, and many remainders that begin with it."""
    first = " | ".join(f"'{number}' N B{number}" for number in range(bodies))
    others = "\n".join(f"B{number} -> 'b'" for number in range(bodies))
    alternatives = " | ".join(f"'n{number}'" for number in range(names))
    return f"S -> {first}\nN -> {alternatives}\n{others}\n"


def many(table: Tables) -> None:
    table.update(json.loads(Structure(parse_grammar(wide(6000, 6000), "wide").rules, 9).text())["rules"])


ALTERED_RULES: dict[str, Callable[[Tables], object]] = {
    "lhs of text": lambda rules: rules.update(lhs=list(map(str, rules["lhs"]))),
    "lhs a number": put(lhs=5),
    "lhs of fractions": lambda rules: rules.update(lhs=[left + 0.5 for left in rules["lhs"]]),
    "lhs empty": put(lhs=[]),
    "lhs cut short": lambda rules: rules["lhs"].pop(),
    "lhs beyond the symbols": lambda rules: rules["lhs"].__setitem__(0, 70),
    "start too large": put(start=50),
    "start negative": put(start=-1),
    "start a name": put(start="S"),
    "start none": put(start=None),
    "no symbols": put(symbols=[]),
    "symbols of numbers": put(symbols=[1, 2, 3]),
    "padding too large": put(padding=5000),
    "padding negative": put(padding=-1),
    "padding a used rule": put(padding=0),
    "text a number": put(text=5),
    "text none": put(text=None),
    "text without a grammar": put(text="no grammar"),
    "text of another grammar": put(text=read_grammar("smiles").text),
    "rhs none": put(rhs=None),
    "rhs empty": put(rhs=[]),
    "rhs of other symbols": lambda rules: rules["rhs"].__setitem__(0, [0]),
    "rhs beyond the symbols": lambda rules: rules["rhs"].__setitem__(0, [99]),
    "rhs of text": put(rhs="abc"),
    "unknown key": put(more=1),
    "a key too few": without("symbols"),
    "6,000 rules times 6,000 remainders": many,
}
ALTERED_STRUCTURES: dict[str, Callable[[Tables], object]] = {
    **{
        f"length {length}": put(length=length)
        for length in (10**7, 10**12, 10**40, 32_768, 10, 8, 1, 0, -1, 9.0, True, "9", None)
    },
    "no length": without("length"),
    "no rules": without("rules"),
    "rules a list": put(rules=[1]),
}
ALTERED_MODELS: dict[str, Callable[[Tables], object]] = {
    f"{key} {value}": put(**{key: value})
    for key in ("decoder_layers", "encoder_conv_layers", "latent_dim", "encoder_hidden", "decoder_hidden")
    for value in (5, 10**7, 10**9, 10**12, 10**40)
} | {"one kernel of many": put(encoder_kernel=3, encoder_conv_layers=10**12), "kernel": put(encoder_kernel=10**9 + 1)}


def altered(where: str, change: Callable[[Tables], object], kept: dict[str, object]) -> dict[str, object]:
    key = "config" if where == "model" else "structure"
    table = json.loads(str(kept[key]))
    change(table[where] if where else table)
    return {**kept, key: json.dumps(table)}


def expect_refused_at_once(path: Path, match: str = "") -> None:
    begun = time.process_time()
    expect_refused(path, match)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("arch", ["kusner", "enhanced"])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        *(("rules", name) for name in ALTERED_RULES),
        *(("", name) for name in ALTERED_STRUCTURES),
        *(("model", name) for name in ALTERED_MODELS),
    ],
)
def test_an_altered_structure_or_size_is_refused_at_once(tmp_path: Path, arch: str, where: str, name: str) -> None:
    path = tmp_path / "vae_best.pth"
    kept = of_strings(arch, Structure(EQUATIONS.rules, 9))
    checkpoints.save(path, kept)
    assert checkpoints.load(path).grammar == replace(EQUATIONS, name=f"the grammar of {path.name}")
    change = {"rules": ALTERED_RULES, "": ALTERED_STRUCTURES, "model": ALTERED_MODELS}[where][name]
    checkpoints.save(path, altered(where, change, kept))
    expect_refused_at_once(path)


@pytest.mark.parametrize(
    "name", [name for name in ALTERED_RULES if not name.startswith(("rhs none", "text none", "symbols of", "6,000"))]
)
def test_altered_rules_without_a_grammar_are_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "vae_best.pth"
    kept = of_strings("enhanced", Structure(replace(EQUATIONS.rules, rhs=None, text=None), 9))
    checkpoints.save(path, kept)
    assert checkpoints.load(path).grammar is None
    if name.startswith("rhs "):
        kept["structure"] = str(kept["structure"]).replace('"rhs": null', '"rhs": [[], []]')
    checkpoints.save(path, altered("rules", ALTERED_RULES[name], kept))
    expect_refused_at_once(path)


def test_a_model_of_derivations_lacks_its_structure_or_its_grammar_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "vae_best.pth"
    kept = of_strings("enhanced", Structure(EQUATIONS.rules, 9))
    checkpoints.save(path, {**kept, "structure": 7})
    expect_refused(path, "its grammar cannot be read")
    checkpoints.save(path, {**kept, "structure": "[" * 100_000})
    expect_refused(path, "its grammar cannot be read")
    del kept["structure"]
    checkpoints.save(path, kept)
    expect_refused(path, "lacks their grammar")
    checkpoints.save(path, of_strings("enhanced", Structure(parse_grammar(wide(1600, 1400), "wide").rules, 9)))
    expect_refused_at_once(path, "the grammar is too large")
    checkpoints.save(path, of_strings("enhanced", Structure(parse_grammar("S -> 'x' A A A\nA -> 'a'", "x").rules, 3)))
    expect_refused(path, "the shortest has 4")


@pytest.mark.parametrize("key", ["latent_dim", "global_dim", "local_channels"])
@pytest.mark.parametrize("value", [5, 10**7, 10**9, 10**12, 10**40])
def test_absurd_sizes_of_models_of_grids_are_refused_at_once(tmp_path: Path, key: str, value: int) -> None:
    path = tmp_path / "vae_best.pth"
    kept = values() if key == "latent_dim" else two_levels()
    checkpoints.save(path, altered("model", put(**{key: value}), kept))
    expect_refused_at_once(path)


def test_weights_that_the_file_does_not_hold_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "vae_best.pth"
    kept = altered("model", put(latent_dim=10**6), values())
    state: Any = kept["model_state_dict"]
    stretched = {
        name: torch.zeros(()).expand([10**6 if size == 10 else size for size in tensor.shape])
        for name, tensor in state.items()
    }
    strange: list[tuple[object, str]] = [
        (stretched, "a tensor that is larger than its storage"),
        ({**state, "more": 5}, "its weights cannot be read"),
        ({**state, 5: torch.zeros(1)}, "its weights cannot be read"),
        ([1], "its weights cannot be read"),
        ({"a": torch.zeros(2).to("meta")}, "asks for 'torch._utils _rebuild_meta_tensor_no_storage'"),
        ({"a": torch.zeros(1).to_sparse()}, "asks for 'torch._utils _rebuild_sparse_tensor'"),
        ({**state, "more": torch.zeros(1)}, "its weights do not fit"),
        ({name: tensor.double() for name, tensor in state.items()}, "its weights do not fit"),
        ({name: tensor / 0 for name, tensor in state.items()}, "its weights are no numbers (encoder"),
    ]
    for odd, match in strange:
        checkpoints.save(path, {**kept, "model_state_dict": odd})
        expect_refused_at_once(path, match)


def test_settings_of_another_kind_of_model_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "vae_best.pth"
    kept = of_strings("enhanced", Structure(EQUATIONS.rules, 9))
    for config in ('{"model": {"name": "grammar"}}', '{"model": {"name": "grid"}}', '{"model": 5}', "[" * 100_000):
        checkpoints.save(path, {**kept, "config": config})
        expect_refused_at_once(path)


def test_no_load_costs_the_imports_of_a_compiler(tmp_path: Path) -> None:
    """PyTorch brings them in, for seconds, where a model without a device is not laid out with care."""
    kept = {"grid": values(), "two": two_levels(), "strings": of_strings("enhanced", Structure(EQUATIONS.rules, 9))}
    for name, content in kept.items():
        checkpoints.save(tmp_path / name, content)
    script = (
        "import sys; from pathlib import Path; from arcvae_cli import checkpoints\n"
        "for name in sys.argv[1:]: checkpoints.load(Path(name))\n"
        "sys.exit('torch._dynamo' in sys.modules or 'sympy' in sys.modules)"
    )
    files = [str(tmp_path / name) for name in kept]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_pytorch_hides_while_it_writes_is_told(
    raised: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes a RuntimeError of everything: of a full disk, and of a second Ctrl-C too."""
    path = tmp_path / "last.pth"
    checkpoints.save(path, values())
    before = path.read_bytes()
    real = torch.save

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise raised

    monkeypatch.setattr(torch, "save", lambda content, file: real(content, Full()))
    expected = KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else ArcvaeError
    with pytest.raises(expected) as caught:
        checkpoints.save(path, values())
    if expected is ArcvaeError:
        assert "last.pth: could not be written (No space left on device; " in str(caught.value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.pth"]
