from __future__ import annotations

import json
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from arcvae_cli import checkpoints
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.models import build_model
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
        expect_refused(bad, "not a checkpoint of arcvae, or cut short")
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
