from __future__ import annotations

import io
import json
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvae_cli import checkpoints
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.errors import InputError, WriteError
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models import build_model
from arcvae_cli.models.grammar import Structure
from arcvae_cli.settings import Settings

EQUATIONS = read_grammar("equations")


def values(settings: Settings | None = None, structure: Structure | Canvas = ARC, **changes: object) -> dict[str, Any]:
    settings = settings or Settings()
    model = build_model(settings.model, structure)
    return {**checkpoints.header(settings, 3), **checkpoints.content(model), **changes}


def strings(structure: Structure, **changes: object) -> dict[str, Any]:
    sizes = {"latent_dim": 3, "encoder_hidden": 4, "encoder_kernel": 3, "encoder_conv_layers": 1}
    model = {"name": "grammar", **sizes, "decoder_hidden": 4, "decoder_layers": 1}
    return values(Settings.model_validate({"data": {"name": "equations"}, "model": model}), structure, **changes)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "a" / "checkpoints" / "vae_best.pth"
    path.parent.mkdir(parents=True)
    (path.parent.parent / "config.toml").write_text("")
    checkpoints.save(path, values())
    return path


def expect_refused(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as raised:
        checkpoints.load(path)
    assert str(path) in str(raised.value) and len(str(raised.value).splitlines()) <= 2


def test_what_is_saved_is_loaded_in_evaluation_mode(good: Path) -> None:
    loaded = checkpoints.load(good)
    assert loaded.epoch == 3 and loaded.settings == Settings() and not loaded.model.training
    assert loaded.run == good.parent.parent and loaded.grammar is None
    saved = torch.load(good, weights_only=True)["model_state_dict"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.model.state_dict().items())
    assert torch.serialization.get_unsafe_globals_in_checkpoint(str(good)) == []
    copy = good.with_name("vae_final.pth")
    checkpoints.copy(good, copy)
    assert copy.read_bytes() == good.read_bytes() and copy.stat().st_ino != good.stat().st_ino
    for change in ({"epoch": 4}, {"model_state_dict": {}}, {"digest": None}, {"config": "{}"}):
        torch.save({**torch.load(good, weights_only=True), **change}, copy)
        with pytest.raises(InputError, match="does not match its digest"):
            checkpoints.read(copy)


def test_every_kind_of_tensor_has_a_digest_that_survives_the_file(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    kept = {"format_version": checkpoints.FORMAT, "transposed": base.T, "shared": [base, base[1:]], "mask": base > 3}
    kept |= {"bf16": base.bfloat16(), "empty": torch.zeros(0, 3), "plain": {"a": [1, 2.5, None, "x"], 3: float("nan")}}
    checkpoints.save(tmp_path / "x.pth", kept)
    found = checkpoints.read(tmp_path / "x.pth")
    assert checkpoints.digest(found) == checkpoints.digest(kept) and "digest" not in found
    for name, changed in (("bf16", base), ("transposed", base), ("shared", [base, base[2:]]), ("plain", {})):
        assert checkpoints.digest({**kept, name: changed}) != checkpoints.digest(kept), name
    with pytest.raises(TypeError, match="Path in a checkpoint"):
        checkpoints.save(tmp_path / "x.pth", {"path": tmp_path})


@pytest.mark.parametrize("limit", [0, 200_000, 4_001_000])
def test_a_full_disk_leaves_the_previous_checkpoint_whole(good: Path, limit: int) -> None:
    """Wherever in the file the disk is full, the reason is that of the system: PyTorch makes a RuntimeError of it."""
    before, limits = good.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(WriteError) as raised:
            checkpoints.save(good, {"a": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.what.startswith(f"{good}: could not be written (File too large; ")
    assert good.read_bytes() == before and list(good.parent.iterdir()) == [good]


def test_a_second_ctrl_c_while_saving_is_no_error_of_pytorch(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() > 5000:
                raise KeyboardInterrupt
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda *_: Stopped())
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(good, {"weights": torch.zeros(10_000)})
    monkeypatch.undo()
    assert checkpoints.load(good).epoch


def test_a_checkpoint_of_an_older_format_has_no_digest_and_is_read(tmp_path: Path) -> None:
    torch.save(values(format_version=2), tmp_path / "old.pth")
    assert checkpoints.load(tmp_path / "old.pth").epoch == 3


def test_another_models_weights_a_newer_format_and_foreign_settings(tmp_path: Path) -> None:
    path, kept = tmp_path / "x.pth", strings(Structure(EQUATIONS.rules, 9))
    for change, match in (
        ({"model_state_dict": {"a": torch.zeros(2)}}, "do not fit together"),
        ({"format_version": checkpoints.FORMAT + 1}, "newer arcvae"),
        ({"config": "{"}, "settings cannot be read"),
        ({"config": json.dumps({"model": {"nmae": "grid"}})}, "nmae"),
        ({"conditions": [["height", 17]]}, "conditions of another version"),
    ):
        checkpoints.save(path, {**kept, **change})
        expect_refused(path, match)
    tables = {"model": {"name": "hierarchical", "local_size": 4}, "schedule": {"name": "hierarchical"}}
    kept = values(Settings.model_validate(tables))
    checkpoints.save(path, {**kept, "conditions": [["height", 31], *kept["conditions"][1:]]})
    expect_refused(path, "conditions of another version")
    torch.save({"weights": torch.zeros(2)}, path)
    expect_refused(path, "not a checkpoint of arcvae")
    checkpoints.save(path, {**checkpoints.header(Settings(), 1), "state_dict": {"a": torch.zeros(2)}})
    expect_refused(path, "only a part of a model")


@pytest.mark.parametrize("bare", [False, True])
def test_a_model_of_derivations_needs_its_structure(tmp_path: Path, bare: bool) -> None:
    path = tmp_path / "x.pth"
    rules = replace(EQUATIONS.rules, rhs=None, text=None) if bare else EQUATIONS.rules
    kept = strings(Structure(rules, 9))
    checkpoints.save(path, kept)
    loaded = checkpoints.load(path)
    assert checkpoints.read(path)["structure"] == Structure(rules, 9).text()
    assert loaded.grammar == (None if bare else replace(EQUATIONS, name="the grammar of x.pth"))
    table = json.loads(kept["structure"])
    rules = {**table["rules"], "text": read_grammar("smiles").text}
    for changed in ({**table, "length": 8}, {**table, "rules": rules}, {"rules": rules}, {"length": 9}):
        checkpoints.save(path, {**kept, "structure": json.dumps(changed)})
        expect_refused(path, "do not fit together")
    del kept["structure"]
    checkpoints.save(path, kept)
    expect_refused(path, "do not fit together")


def test_names_are_looked_up_in_the_runs(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    (runs / "latest").symlink_to("a")
    (tmp_path / "a").mkdir()  # the data of the run, say
    monkeypatch.chdir(tmp_path)
    assert checkpoints.find_checkpoint(str(good), runs) == (good, None)
    assert checkpoints.find_checkpoint(str(runs / "a"), runs) == (good, None)
    path, note = checkpoints.find_checkpoint("a", runs)
    assert path == good and note is not None
    path, note = checkpoints.find_checkpoint("vae_best.pth", runs)
    assert path == good.resolve() and "a/checkpoints/vae_best.pth, of the latest run" in str(note)
    with pytest.raises(InputError, match="runs: a"):
        checkpoints.find_checkpoint("nothing.pth", runs)
    with pytest.raises(InputError, match="no run in"):
        checkpoints.find_checkpoint("nothing.pth", tmp_path / "none")
