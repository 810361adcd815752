"""No key that a machine knows is written anywhere: a real training, with every file that it leaves read."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcvae_cli.errors import InputError
from arcvae_cli.presets import environment_layer, resolve, set_layer

KEYS = {
    "WANDB_API_KEY": "local-0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_QmFkIGlkZWEgdG8gbG9n",
    "MY_PASSWORD": "correct-horse-battery-staple",
}
TRAIN = """
import sys
from arcvae_cli.cli import main
from arcvae_cli.commands import evaluate
evaluate.report = lambda *_: {"verdict": {"ok": True, "findings": [], "summary": ""}}  # half of the time
sys.argv = ["arcvae", "train", *sys.argv[1:]]
main()
"""
NETRC = "8badf00d8badf00d8badf00d8badf00d8badf00d"


def found_in(folder: Path, secrets: dict[str, str]) -> Iterator[str]:
    """The files in a folder that hold a secret, or base64 of it, in their content or their name."""
    for path in (path for path in folder.rglob("*") if not path.is_dir()):
        content = str(path).encode() + (os.readlink(path).encode() if path.is_symlink() else path.read_bytes())
        for name, secret in secrets.items():
            coded = base64.b64encode(secret.encode()).rstrip(b"=")
            if secret.encode() in content or coded[:-1] in content:
                yield f"{name} in {path.relative_to(folder)}"


def test_no_key_of_the_environment_or_of_a_login_is_written(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work, tmp_path / "temporary"):
        folder.mkdir()
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {NETRC}\n")
    (home / ".netrc").chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "ARCVAE_", "XDG_"))}
    places = {"HOME": str(home), "TMPDIR": str(tmp_path / "temporary")}
    environment = {**kept, **KEYS, **places, "WANDB_DEBUG": "true"}  # with which W&B would log the key
    sizes = ("--set", "data.size=300", "--batch-size", "32", "--epochs", "1", "--latent-dim", "2")
    arguments = ("--data", "shapes", "--wandb", "offline", "--tensorboard", "--run-name", "one", *sizes)
    command = [sys.executable, "-W", "error", "-c", TRAIN, *arguments]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=True)
    for pattern in ("checkpoints/last.pth", "**/*.tfevents.*", "**/*.wandb", "**/debug.log"):
        assert list((work / "runs" / "one").glob(pattern)), pattern
    (home / ".netrc").unlink()
    secrets = {**KEYS, "netrc": NETRC}
    assert list(found_in(tmp_path, secrets)) == []
    assert not [name for name, secret in secrets.items() if secret in done.stdout + done.stderr]


def test_settings_have_no_place_for_a_key() -> None:
    for layer in (
        environment_layer({"ARCVAE_LOG__WANDB_API_KEY": KEYS["WANDB_API_KEY"]}),
        set_layer([f"log.api_key={KEYS['WANDB_API_KEY']}"]),
    ):
        with pytest.raises(InputError) as raised:
            resolve(None, layer)
        assert KEYS["WANDB_API_KEY"] not in str(raised.value)
