"""`arcvae train` on derivations: a whole run, its record, ready arrays, and what does not fit together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints
from arcvae_cli.cli import app
from arcvae_cli.files import read_lines
from arcvae_cli.grammar import read_grammar

Run = Callable[..., Result]
EQUATIONS = read_grammar("equations")
SMALL = (
    *("--preset", "minimal", "--device", "cpu", "--precision", "fp32", "--batch-size", 40),
    *("--set", "model.encoder_hidden=16", "--set", "model.decoder_hidden=16", "--z-dim", 5),
)


def train(base: Path, *flags: object) -> tuple[Path, Result]:
    arguments = ["train", *SMALL, *flags, "--runs-dir", base / "runs"]
    clean = {name: None for name in os.environ if name.startswith("ARCVAE_")}
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80", **clean})
    assert result.exit_code == 0, result.stderr
    return (base / "runs" / "latest").resolve(), result


@pytest.fixture(scope="module")
def trained(plain: None, tmp_path_factory: pytest.TempPathFactory, equations_npz: Path) -> tuple[Path, Result]:
    """A run of four epochs, of which the best two are kept."""
    base = tmp_path_factory.mktemp("trained")
    flags = ("--data", equations_npz, "--epochs", 4, "--save-top-k", 2, "--set", "log.images_every=2")
    return train(base, *flags, "--set", "log.every_n_steps=2", "--free-bits", 0.5)


def epochs(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "epoch"]


def test_a_run_of_strings(trained: tuple[Path, Result]) -> None:
    """Its record has the names of the field, the best few epochs are kept by either ranking, and strings to read."""
    run, result = trained
    lines = epochs(run)
    for line in lines:
        assert all(0.0 <= line[f"{split}/{name}_acc"] <= 1.0 for split in ("train", "val") for name in ("token", "seq"))
        assert line["train/kl_per_dim"] == pytest.approx(sum(line[f"train/kl_per_dim/dim_{i}"] for i in range(5)) / 5)
        assert len(line["val/kl_per_dim"]) == 5
        assert not any("pixel" in name or "foreground" in name for name in line)
    # 360 derivations of some 8 rules: nats per derivation, not per rule
    assert 20.0 > lines[0]["val/loss_reconstruction"] > 4.0
    assert lines[-1]["train/loss_reconstruction"] < lines[0]["train/loss_reconstruction"]
    for name, metric, sign in (("loss", "val/loss_selection", 1), ("seq_acc", "val/seq_acc", -1)):
        best = sorted(lines, key=lambda line: (sign * line[metric], line["epoch"]))[:2]
        expected = {f"best-{name}-epoch_{line['epoch']:03d}-{line[metric]:.4f}.pth": line["epoch"] for line in best}
        kept = {path.name: checkpoints.read(path)["epoch"] for path in run.glob(f"checkpoints/best-{name}-*")}
        assert kept == expected
    images = {path.name for path in (run / "images").iterdir()}
    assert {f"{kind}_epoch_{epoch}.txt" for kind in ("reconstructions", "samples") for epoch in (2, 4)} <= images
    samples = (run / "images" / "samples_epoch_4.txt").read_text().splitlines()
    assert len(samples) == 64 and not any("incomplete" in sample for sample in samples)
    assert "sequence" in result.stderr and "pixel" not in result.stderr + result.stdout


def test_ready_arrays_train_without_a_grammar_and_cannot_be_sampled(
    equations_npz: Path, tmp_path: Path, arcvae: Run
) -> None:
    """Their masks are packed as the scripts of 2017 have them."""
    with np.load(equations_npz) as file:
        ids = file["ids"].astype(np.int16)
    lhs = np.array([*EQUATIONS.rules.lhs[:-1], 2])
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "masks.npy", np.packbits(lhs[ids][:, :, None] == lhs[None, None, :], axis=-1))
    run, result = train(tmp_path, "--prod", tmp_path / "ids.npy", "--masks", tmp_path / "masks.npy", "--epochs", 1)
    loaded = checkpoints.load(run / "checkpoints" / "vae_best.pth")
    assert loaded.model.structure.rules.rhs is None and loaded.grammar is None
    sampled = arcvae("sample", "--checkpoint", run, "--output", tmp_path / "out")
    assert sampled.exit_code == 2 and "grammar" in sampled.stderr and len(sampled.stderr.splitlines()) <= 3
    assert "next: arcvae evaluate --checkpoint" in result.stderr and "arcvae sample" not in result.stderr


def test_strings_of_a_custom_grammar(tmp_path: Path, arcvae: Run) -> None:
    (tmp_path / "my.cfg").write_text("S -> 'a' S 'b' | 'c' S | 'd'\n")
    made = {bin(i)[3:].replace("0", "a").replace("1", "c") + "d" + "b" * bin(i)[3:].count("0") for i in range(64, 192)}
    (tmp_path / "mine.txt").write_text("".join(f"{line}\n" for line in sorted(made)))
    run, _ = train(tmp_path, "--grammar", tmp_path / "my.cfg", "--input", tmp_path / "mine.txt", "--epochs", 1)
    sampled = arcvae("sample", "--checkpoint", run, "--num", 20, "--output", tmp_path / "out", "--quiet")
    assert sampled.exit_code == 0, sampled.stderr
    lines = (tmp_path / "out" / "samples.txt").read_text().splitlines()
    assert len(lines) == 20
    assert all(line.count("a") == line.count("b") and line.count("d") == 1 for line in lines)
