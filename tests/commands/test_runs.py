from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints, runs
from arcvae_cli.cli import app
from arcvae_cli.settings import Settings

COMMON = ("--device", "cpu", "--precision", "fp32", "--epochs", "2", "--set", "log.images_every=0", "--wandb", "off")
COMMON += ("--set", "log.every_n_steps=2", "--beta-schedule", "cyclical", "--beta-cycle-length", "4")


def arcvae(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, arc_npz: Path, equations_npz: Path) -> Path:
    """A folder with a finished run of grids and one of strings; not to be changed."""
    base = tmp_path_factory.mktemp("trained")
    small = ("--set", "model.encoder_hidden=8", "--set", "model.decoder_hidden=8", "--batch-size", "50")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvae_cli.commands.evaluate.report", lambda *arguments: None)
        for name, flags in (
            ("grids", ("--data", arc_npz, "--latent-dim", 3, "--batch-size", 50)),
            ("strings", ("--preset", "minimal", "--data", equations_npz, *small)),
        ):
            result = arcvae("train", *flags, *COMMON, "--runs-dir", base, "--run-name", name)
            assert result.exit_code == 0, result.stderr
    return base


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "runs", symlinks=True))


def verified(folder: Path, *arguments: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and what is found of each run."""
    done = arcvae("runs", "verify", *arguments, "--runs-dir", folder, "--json")
    return done.exit_code, {run["name"]: run for run in json.loads(done.stdout)["runs"]}


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# ------------------------------------------------------------------------------------------------------- list and show


def test_runs_are_listed_the_last_active_first(tmp_path: Path) -> None:
    for age, (name, state) in enumerate((("good", "finished"), ("stopped", "interrupted"), ("dead", "running"))):
        made = runs.create(tmp_path, name, "x", Settings())
        made.write_status(state, epoch=age, epochs=50, step=7, best_epoch=1, best_value=1.25)
        made.release()
        os.utime(made.path / "status.json", (time.time() - 3600 * (4 - age),) * 2)
    alive = runs.create(tmp_path, "alive", "x", Settings())
    lines = arcvae("runs", "list", "--runs-dir", tmp_path).stdout.splitlines()
    rows = [line.split() for line in lines if "/50" in line]
    assert [row[:3] for row in rows] == [
        *(["alive", "running", "0/50"], ["dead", "killed", "2/50"]),
        *(["stopped", "interrupted", "1/50"], ["good", "finished", "0/50"]),
    ]
    assert rows[-1][3:6] == ["1.2500", "in", "1"] and rows[-1][-3:] == ["4.0", "h", "ago"]
    document = json.loads(arcvae("runs", "list", "--runs-dir", tmp_path, "--json").stdout)
    assert document["runs"][-1]["best_value"] == 1.25 and document["runs"][-1]["monitor"] == "val/loss_selection"
    for name, step in (("stopped", "train --resume"), ("dead", "train --resume"), ("good", "evaluate --checkpoint")):
        assert f"next: arcvae {step} {tmp_path / name}" in arcvae("runs", "show", tmp_path / name).stdout
    assert "next" not in arcvae("runs", "show", alive.path).stdout


def test_a_folder_without_runs(tmp_path: Path) -> None:
    for command in ("list", "verify"):
        done = arcvae("runs", command, "--runs-dir", tmp_path / "none")
        assert (done.exit_code, done.stdout) == (0, "") and "start one with `arcvae train`" in done.stderr
        assert json.loads(arcvae("runs", command, "--runs-dir", tmp_path, "--json").stdout) == {"runs": []}
    (tmp_path / "file").write_text("")
    assert arcvae("runs", "list", "--runs-dir", tmp_path / "file").exit_code == 2
    done = arcvae("runs", "show", "x", "--runs-dir", tmp_path)
    assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 2


@pytest.mark.parametrize("command", [("list",), ("show", "grids")])
def test_torch_is_not_imported(trained: Path, command: tuple[str, ...]) -> None:
    script = (
        "import sys; sys.argv = ['arcvae', 'runs', *sys.argv[1:]]\n"
        "from arcvae_cli.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)\n"
    )
    arguments = [*command, "--runs-dir", str(trained)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_shown_of_a_run(trained: Path) -> None:
    text = arcvae("runs", "show", "grids", "--runs-dir", trained).stdout
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["state"] == ["finished"] and rows["epochs"] == ["2"] and rows["step"] == ["4"]
    assert rows["train.epochs"] == ["2", "50"] and rows["schedule.cycle_length"] == ["4.0", "20.0"]
    assert "model.name" not in rows and rows["vae_best.pth"][0] == rows["encoder.pth"][0]
    document = json.loads(arcvae("runs", "show", trained / "grids", "--json").stdout)
    assert document["settings"]["train"]["epochs"] == 2 and document["changed"]["train.epochs"] == [2, 50]
    assert document["checkpoints"][0]["name"] == "last.pth" and document["checkpoints"][-1]["name"] == "encoder.pth"


def test_a_run_of_strings_is_shown_and_verified(trained: Path) -> None:
    """Its defaults were those of a corpus of grids, which its model refuses."""
    done = arcvae("runs", "show", "strings", "--runs-dir", trained, "--json")
    assert done.exit_code == 0, done.stderr
    changed = json.loads(done.stdout)["changed"]
    assert changed["model.name"] == ["grammar", "grid"] and changed["model.encoder_hidden"] == [8, 256]
    code, found = verified(trained)
    assert code == 0 and all(run["ok"] for run in found.values())


def test_text_of_a_run_cannot_control_the_terminal(folder: Path) -> None:
    status = json.loads((folder / "grids" / "status.json").read_text())
    status |= {"reason": "\x1b]0;owned\x07\x1b[2J", "host": "\x1b[31m", "started": "a\nb"}
    (folder / "grids" / "status.json").write_text(json.dumps(status))
    (folder / "grids").rename(folder / "a\x1b[2J")
    (folder / "a\x1b[2J" / "checkpoints" / "\x1b[2J.pth").write_bytes(b"")
    for command in (("list",), ("show", folder / "a\x1b[2J"), ("verify",)):
        done = arcvae("runs", *command, "--runs-dir", folder)
        assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout and "\\x1b[2J" in done.stdout


def test_a_run_without_usable_files_is_shown_as_far_as_it_goes(folder: Path) -> None:
    (folder / "grids" / "config.toml").write_text("= nonsense")
    (folder / "grids" / "status.json").write_text("{")
    done = arcvae("runs", "show", "grids", "--runs-dir", folder)
    assert done.exit_code == 0 and "damaged" in done.stdout and "not valid TOML" in done.stdout
    assert f"next: arcvae runs verify {folder / 'grids'}" in done.stdout


# ------------------------------------------------------------------------------------------------------------- verify


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, in place."""
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 4
    with path.open("r+b") as file:
        file.write(changed)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


HARMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bit": (lambda run: flip(run / "checkpoints" / "vae_best.pth"), "vae_best.pth"),
    "part": (lambda run: flip(run / "checkpoints" / "encoder.pth"), "encoder.pth"),
    "empty": (lambda run: (run / "checkpoints" / "vae_final.pth").write_bytes(b""), "vae_final.pth"),
    "link": (lambda run: (run / "checkpoints" / "mine.pth").symlink_to("nowhere"), "mine.pth"),
    "no last": (lambda run: (run / "checkpoints" / "last.pth").unlink(), "last.pth: missing"),
    "no final": (lambda run: (run / "checkpoints" / "vae_final.pth").unlink(), "vae_final.pth: missing"),
    "status": (lambda run: (run / "status.json").write_text("{"), "status.json"),
    "config": (lambda run: edit(run / "config.toml", "lr = 0.001", "lr = 0.1"), "train.lr"),
    "no config": (lambda run: (run / "config.toml").unlink(), "config.toml"),
    "metrics": (lambda run: edit(run / "metrics.jsonl", '"train/kl": ', '"train/kl": 1'), "epoch 1 is not that"),
    "no metrics": (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl: cannot be read"),
    "torn": (lambda run: append(run / "metrics.jsonl", '{"kind": "st'), "last line is incomplete"),
    "foreign": (lambda run: append(run / "metrics.jsonl", "hello\n"), "metrics.jsonl: cannot be read"),
    "short": (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl: 0 of 2 epochs"),
}


@pytest.mark.parametrize("what", HARMS)
def test_damage_is_named(folder: Path, what: str) -> None:
    harm, expected = HARMS[what]
    harm(folder / "grids")
    before = content(folder)
    done = arcvae("runs", "verify", "--runs-dir", folder)
    assert done.exit_code == 1 and "1 of 2 runs damaged: grids" in done.stderr
    _, found = verified(folder)
    problems = [f"{name}: {why}" for name, why in found["grids"]["broken"].items()] + found["grids"]["problems"]
    assert found["strings"]["ok"] and len(problems) == 1 and expected in problems[0]
    assert problems[0] in done.stdout
    assert content(folder) == before, "nothing is repaired"


def test_what_may_change_is_no_damage(folder: Path) -> None:
    edit(folder / "grids" / "config.toml", "epochs = 2", "epochs = 9")
    assert verified(folder, "grids")[0] == 0


def test_one_flipped_bit_leaves_a_whole_checkpoint_to_resume_from(folder: Path) -> None:
    """Also with `save_top_k = 1`: no two names are of one file."""
    run = folder / "grids"
    files = list((run / "checkpoints").iterdir())
    assert len({file.stat().st_ino for file in files}) == len(files)
    flip(run / "checkpoints" / "last.pth")
    _, found = verified(folder, "grids")
    assert list(found["grids"]["broken"]) == ["last.pth"]
    newest = max(found["grids"]["whole"].values())
    name = found["grids"]["go_on"].rpartition("/")[2]
    assert found["grids"]["whole"][name] == newest == checkpoints.read(run / "checkpoints" / name)["epoch"]


def test_verify_removes_nothing(folder: Path) -> None:
    """It removed every folder named so that was older than ten minutes, whoever had made it."""
    names = (".something.tmp", ".x.12345678.tmp", "grids/.notes.tmp", "grids/checkpoints/.last.pth.12345678.tmp")
    for name in names:
        (folder / name).mkdir() if "/" not in name else (folder / name).write_text("mine")
        os.utime(folder / name, (0, 0))
    done = arcvae("runs", "verify", "--runs-dir", folder)
    assert done.exit_code == 0 and all((folder / name).exists() for name in names)
    assert ".last.pth.12345678.tmp: a temporary file, removed on resumption" in done.stdout


def test_a_killed_run_is_whole_with_what_a_kill_may_leave(folder: Path) -> None:
    run = folder / "grids"
    edit(run / "status.json", '"finished"', '"running"')
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text + text[: len(text) // 3])
    code, found = verified(folder, "grids")
    assert (code, found["grids"]["state"], found["grids"]["go_on"]) == (0, "killed", f"arcvae train --resume {run}")
    assert any("last line is incomplete, completed on resumption" in note for note in found["grids"]["notes"])
    with runs.take(run) or pytest.fail("no lock"):
        code, found = verified(folder, "grids")
        assert (code, found["grids"]["state"], found["grids"]["go_on"]) == (0, "running", None)
