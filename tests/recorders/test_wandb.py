from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imsave

from arcvae_cli.console import Console
from arcvae_cli.errors import InputError
from arcvae_cli.presets import flag_layer, resolve
from arcvae_cli.recorders import external
from arcvae_cli.recorders.external import check_installed, external_recorders
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.recorders.wandb import WandbRecorder, automatic_mode, run_id, run_name, run_tags
from arcvae_cli.records import Recorder
from arcvae_cli.runs import RunFolder
from arcvae_cli.settings import LogSettings, Settings
from tests.recorders.made import STRINGS, derivations, pictures, plan, record, rules, steps

KEY = "0123456789abcdef" * 3
EVALUATION = {"checkpoint": "vae_best.pth", "reconstruction": {"exact": 0.25, "worst": [1, 2]}}


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a real offline run of grids, in W&B's own process, and of a run of strings."""
    import wandb

    home = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("WANDB_MODE", raising=False)
        patched.setenv("WANDB_API_KEY", KEY)
        patched.setenv("WANDB_DEBUG", "true")  # with which W&B would log the key
        patched.setenv("HOME", str(home))
        settings = Settings(log={"wandb": "offline", "wandb_project": "ours"})
        for name, grammar in (("grids", None), ("strings", rules())):
            folder = home / name
            folder.mkdir()
            imsave(folder / "latent_space_pca.png", pictures().samples[0])
            (folder / "vae_best.pth").write_bytes(b"weights")
            recorder = WandbRecorder(folder, "offline", settings, grammar)
            recorder.start(plan(run="name"))
            recorder.steps(steps(record(1)))
            recorder.epoch(record(1, best=True))
            recorder.pictures(1, derivations() if grammar else pictures())
            recorder.evaluated(EVALUATION, ["ok: reconstruction"], [folder / "latent_space_pca.png"])
            recorder.artifacts({"vae_best": folder / "vae_best.pth"})
            recorder.close(75)
        yield home
        wandb.teardown()


def test_an_offline_run_is_read_back(offline: Path) -> None:
    """Its names and texts are in W&B's file, its media beside it; the API key is nowhere."""
    (file,) = offline.glob("grids/wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    for text in ("ours", "beta-vae-d3-b0.5-run-name", "encoder-training", "train/beta", "val/pixel_accuracy"):
        assert text.encode() in content, text
    for text in ("best/epoch", "eval/reconstruction/exact", "ok: reconstruction", "vae_best-"):
        assert text.encode() in content, text
    media = {path.name.partition("_")[0] for path in file.parent.rglob("*.png")}
    assert media == {"reconstructions", "samples", "kl", "latent"}
    strings = {path.name.partition("_")[0]: path.read_text() for path in offline.glob("strings/wandb/*/**/*.html")}
    assert strings["reconstructions"] == "<pre>2 of 3 exact\n= x\n- x + *\n+ x + x\n= ( * )</pre>"
    assert strings["samples"] == "<pre>* + *\n(incomplete)</pre>"
    assert file.stem == f"run-{(offline / 'grids/wandb/id').read_text()}"
    files = [path for path in offline.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]


class Online:
    """In place of an online `wandb.Run` that already has so many rows by its own count."""

    def __init__(self, step: int, offline: bool = False) -> None:
        self.id, self.step, self.offline = "abc", step, offline
        self.summary: dict[str, Any] = {}
        self.rows: list[int] = []
        self.ended: list[Any] = []

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, values: dict[str, Any], step: int, commit: bool) -> None:
        assert commit and step >= self.step and values["step"] == step // 4
        assert None not in values.values()
        self.step = step + 1
        self.rows.append(step)

    def mark_preempting(self) -> None:
        self.ended.append("preempting")

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.mark.parametrize(
    ("has", "offline", "logged"),
    [
        (0, False, [100, 200, 201, 300, 400, 401, 402, 500, 600, 601]),  # W&B was off so far
        (401, False, [401, 402, 500, 600, 601]),  # the row of the second epoch is missing
        (601, False, [601]),  # the third epoch was logged, and not saved
        (900, False, []),  # resumed from an old checkpoint
        (0, True, [100, 200, 201, 300, 400, 401, 402, 500, 600, 601]),  # each offline session has all rows
    ],
)
def test_a_resumed_run_has_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: int, offline: bool, logged: list[int]
) -> None:
    import wandb

    run, records = Online(has, offline), [record(epoch, best=epoch == 2) for epoch in (1, 2, 3)]
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    monkeypatch.setattr(wandb, "setup", lambda settings: None)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    kept = JsonlRecorder(tmp_path / "metrics.jsonl")
    for one in records[:2]:
        kept.steps(steps(one))
    recorder = WandbRecorder(tmp_path, "online", Settings(), rules())
    recorder.start(plan())
    recorder.resume(records[:2], 100)
    recorder.pictures(2, derivations())
    recorder.steps(steps(records[2]))
    recorder.epoch(records[2])
    recorder.close(75)
    assert (run.rows, run.summary["best/epoch"], run.ended) == (logged, 2, ["preempting", 75])


VECTOR, BOTH = {"z": (10,)}, {"global": (16,), "local": (4, 8, 8)}
LEVELS = {"schedule.name": "hierarchical", "schedule.global.max_beta": 0.01, "schedule.global.name": "cosine"}


@pytest.mark.parametrize(
    ("shapes", "values", "name"),
    [
        (VECTOR, {"schedule.max_beta": 0.1}, "beta-vae-d10-b0.1"),
        (VECTOR, {"schedule.name": "controlvae"}, "beta-vae-d10-controlvae"),
        ({"z": (56,)}, {"model.name": "grammar", "data.name": "equations"}, "grammar-vae-d56-b0.5"),
        (
            BOTH,
            {"model.name": "hierarchical", **LEVELS, "schedule.local.name": "kl_capacity"},
            "hierarchical-vae-g16-l4x8x8-b0.01-kl_capacity",
        ),
    ],
)
def test_the_name_of_a_run(shapes: dict[str, Any], values: dict[str, Any], name: str) -> None:
    resolved = resolve(None, flag_layer({key: (key, value) for key, value in values.items()})).settings
    assert (
        run_name(replace(plan(run="x", settings=resolved), level_shapes=shapes), resolved.schedule) == f"{name}-run-x"
    )


def test_the_tags_fit_the_corpus_unless_they_are_given() -> None:
    assert run_tags(Settings()) == ["experiment-0.2", "beta-vae", "encoder-training"]
    assert run_tags(STRINGS) == ["experiment-0.2", "grammar-vae", "encoder-training"]
    assert run_tags(STRINGS.model_copy(update={"log": LogSettings(wandb_tags=("beta-vae",))})) == ["beta-vae"]


def test_the_id_is_drawn_once_for_a_folder(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    first = run_id(tmp_path / "a")
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert run_id(tmp_path / "a") == first != run_id(tmp_path / "b")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "off"),
        ({"WANDB_API_KEY": KEY}, "auto"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, "auto"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "off"),
    ],
)
def test_the_mode_by_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mode: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert automatic_mode()[0] == mode


def test_a_login_in_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".netrc").write_text("machine")
    mode, note = automatic_mode()
    assert mode == "off" and note is not None and "wandb login" in note
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert automatic_mode() == ("auto", None)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert automatic_mode()[0] == "off", "a key for another server"


@pytest.mark.parametrize(
    ("log", "expected", "notes"),
    [
        ({"wandb": "off"}, [], 0),
        ({}, [], 1),
        ({"wandb": "offline"}, ["W&B"], 0),
        ({"wandb": "online", "tensorboard": True}, ["W&B", "TensorBoard"], 0),
    ],
)
def test_which_loggers_the_settings_ask_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, log: dict[str, Any], expected: list[str], notes: int
) -> None:
    made: list[str] = []
    said: list[Any] = []

    def background(recorder: Recorder, name: str, *_: Any) -> Recorder:
        made.append(name)
        return recorder

    monkeypatch.setattr(external, "Background", background)
    monkeypatch.setattr(Console, "note", lambda self, text: said.append(text))
    external_recorders(Settings.model_validate({"log": log}), RunFolder(home), Console())
    assert (made, len(said)) == (expected, notes)


def test_a_missing_package_is_one_line_or_a_note(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(LogSettings(wandb="online", tensorboard=True))
    for module in ("external", "wandb"):
        monkeypatch.setattr(f"arcvae_cli.recorders.{module}.find_spec", lambda name: None)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    check_installed(LogSettings())
    for log, package in ((LogSettings(wandb="online"), "wandb"), (LogSettings(tensorboard=True), "tensorboard")):
        with pytest.raises(InputError) as raised:
            check_installed(log)
        assert raised.value.fix == f"pip install 'arcvae[{package}]'"
    mode, note = automatic_mode()
    assert mode == "off" and note is not None and "arcvae[wandb]" in note
