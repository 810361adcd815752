"""No key that a machine knows is written anywhere: a real training with its loggers, every file of which is read."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imsave
from typer.testing import CliRunner

from arcvae_cli.cli import app
from arcvae_cli.errors import InputError
from arcvae_cli.folders import RunFolder
from arcvae_cli.presets import environment_layer, resolve, set_layer

KEYS = {
    "WANDB_API_KEY": "local-0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_QmFkIGlkZWEgdG8gbG9n",
    "MY_PASSWORD": "correct-horse-battery-staple",
}
NETRC = "8badf00d8badf00d8badf00d8badf00d8badf00d"
TRAIN = "train --preset minimal --data equations --set data.size=200 --set data.max_rules=9 --batch-size 40 --epochs 1"
TRAIN += " --set log.images_every=1 --wandb offline --set log.wandb_project=ours --tensorboard --run-name one"


def found_in(folder: Path, secrets: dict[str, str]) -> Iterator[str]:
    """The files in a folder that hold a secret, or base64 of it, in their content or their name."""
    for path in (path for path in folder.rglob("*") if not path.is_dir()):
        content = str(path).encode() + (os.readlink(path).encode() if path.is_symlink() else path.read_bytes())
        for name, secret in secrets.items():
            coded = base64.b64encode(secret.encode()).rstrip(b"=")
            if secret.encode() in content or coded[:-1] in content:
                yield f"{name} in {path.relative_to(folder)}"


def report(best: Any, corpus: Any, split: str, folder: RunFolder, console: Any) -> dict[str, Any]:
    """An evaluation that takes no time."""
    imsave(folder.images / "latent_space_pca.png", np.zeros((8, 8, 3)))
    return {"reconstruction": {"exact": 0.25}, "verdict": {"ok": True, "findings": [], "summary": "all is well"}}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a person who has keys in the environment and in a login, beside their home."""
    home, work, temporary = (tmp_path / name for name in ("home", "work", "temporary"))
    for folder in (home, work, temporary):
        folder.mkdir()
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {NETRC}\n")
    (home / ".netrc").chmod(0o600)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_"))]:
        monkeypatch.delenv(name)
    places = {"HOME": str(home), "TMPDIR": str(temporary)}
    for name, value in {**KEYS, **places, "WANDB_DEBUG": "true"}.items():  # with which W&B would log the key
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr("arcvae_cli.commands.evaluate.report", report)
    monkeypatch.chdir(work)
    return work


def test_loggers_write_what_they_are_given_and_no_key_of_the_environment_or_of_a_login(
    work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Names and texts are in W&B's file, the media beside it."""
    import wandb

    done = CliRunner().invoke(app, TRAIN.split())
    wandb.teardown()
    assert done.exit_code == 0, done.output
    run = work / "runs" / "one"
    for pattern in ("checkpoints/last.pth", "**/*.tfevents.*", "**/debug.log"):
        assert list(run.glob(pattern)), pattern
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    content, identity = file.read_bytes(), (run / "wandb" / "id").read_text()
    expected = ["ours", "train/beta", "eval/reconstruction/exact", "all is well", "vae_best-", "-run-one", identity]
    assert [text for text in expected if text.encode() not in content] == []
    assert file.stem == f"run-{identity}"
    media = {path.name.partition("_")[0]: path for path in file.parent.glob("files/media/**/*.*")}
    assert media.keys() >= {"samples", "latent", "reconstructions"}
    assert media["samples"].read_text().startswith("<pre>")
    (work.parent / "home" / ".netrc").unlink()
    secrets = {**KEYS, "netrc": NETRC}
    assert list(found_in(work.parent, secrets)) == []
    assert not [name for name, secret in secrets.items() if secret in done.output + "".join(capfd.readouterr())]


def test_settings_have_no_place_for_a_key() -> None:
    for layer in (
        environment_layer({"ARCVAE_LOG__WANDB_API_KEY": KEYS["WANDB_API_KEY"]}),
        set_layer([f"log.api_key={KEYS['WANDB_API_KEY']}"]),
    ):
        with pytest.raises(InputError) as raised:
            resolve(None, layer)
        assert KEYS["WANDB_API_KEY"] not in str(raised.value)
