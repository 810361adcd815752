from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from arcvae_cli import checkpoints
from arcvae_cli.cli import app
from arcvae_cli.commands import evaluate as command
from arcvae_cli.console import Console
from arcvae_cli.data.corpus import open_corpus
from arcvae_cli.data.files import write_dataset
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.domains import grids
from arcvae_cli.grammar import read_grammar
from arcvae_cli.runs import RunFolder

Run = Callable[..., Result]
Evaluated = Callable[[str], tuple[Result, Path, dict]]

PLOTS = ["latent_space_pca.png", "latent_space_tsne.png"]
GRID_FILES = ["errors.png", *PLOTS, "metrics.json", "reconstructions.png"]
STRING_FILES = ["errors.txt", *PLOTS, "metrics.json", "reconstructions.txt"]
MONTE_CARLO = (
    "--monte-carlo",
    "--encodings",
    "2",
    "--decodings",
    "5",
    "--monte-carlo-examples",
    "7",
    "--samples",
    "60",
)
FAMILIES = {
    "tiny_run": (("--iwae", "3"), GRID_FILES, "some test, 40 grids"),
    "hierarchy_run": ((), sorted([*GRID_FILES, "kl_maps.png", "levels.png"]), "some test, 40 grids"),
    "equations_run": (("--iwae", "3", *MONTE_CARLO), STRING_FILES, "sums test, 40 derivations"),
}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "CONDITION_SAMPLES", 40)
    monkeypatch.setattr(grids, "QUICK_CONDITION_SAMPLES", 20)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Evaluated:
    """Evaluates a run as a person would, once: the result, the folder, and the metrics in it."""
    done: dict[str, tuple[Result, Path, dict]] = {}

    def evaluate(run: str) -> tuple[Result, Path, dict]:
        if run not in done:
            folder = tmp_path_factory.mktemp(run) / "new" / "folder"
            options = ["--checkpoint", str(request.getfixturevalue(run)), "--output", str(folder), *FAMILIES[run][0]]
            result = CliRunner().invoke(app, ["evaluate", *options, "--device", "cpu"], env={"COLUMNS": "80"})
            assert result.exit_code == 0, result.stderr
            done[run] = result, folder, json.loads((folder / "metrics.json").read_text())
        return done[run]

    return evaluate


def judge(arcvae: Run, run: Path, output: Path, *arguments: object) -> Result:
    return arcvae("evaluate", "--checkpoint", run, "--output", output, "--device", "cpu", *arguments)


def row_of(shown: str, name: str) -> list[str]:
    """The cells of the first row of this name in the tables that were printed."""
    line = next(line for line in shown.splitlines() if line.strip().startswith(f"{name}  "))
    return line.strip().removeprefix(name).split()


@pytest.mark.parametrize("run", FAMILIES)
def test_files_report_and_verdict(run: str, evaluated: Evaluated) -> None:
    result, folder, metrics = evaluated(run)
    shown, (_, files, title) = result.stdout, FAMILIES[run]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert f"to {folder}" in result.stderr.replace("\n", "") and "\x1b" not in shown
    assert shown.startswith(f"vae_best.pth of epoch 3, {title}, seed 0\n")
    for name, level in metrics["levels"].items():
        assert f" of {name}" in shown and f": {sum(level['kl_nats']):.2f} nats" in shown
        bars = [line.split() for line in shown.splitlines() if line.startswith("  ") and "█" in line]
        for value in level["kl_nats"]:
            assert any(f"{value:.3f}" in words for words in bars)
    assert metrics["verdict"]["summary"] in shown
    for finding in metrics["verdict"]["findings"]:
        assert finding["name"] in shown
        assert finding["ok"] == (finding["remedy"] is None)
        assert finding["ok"] or f"- {finding['remedy']}" in shown
    assert max(len(line) for line in shown.splitlines() if line.startswith(" ") or "─" in line) <= 80


def test_tables_of_grids_show_the_metrics(evaluated: Evaluated) -> None:
    result, _, metrics = evaluated("tiny_run")
    shown, found, nats = result.stdout, metrics["reconstruction"], metrics["importance_weighted"]
    for name, field in (("pixel accuracy", "pixel_accuracy"), ("exact grids", "exact_share")):
        values = [found[kind][field] for kind in ("posterior_mean", "posterior_sample", "all_black", "pca")]
        assert row_of(shown, name) == [f"{value:.2%}" for value in values]
    assert "at the mean" in shown and "at a sample" in shown
    assert row_of(shown, "skill in pixels") == [f"{found['skill']['pixel']:+.3f}"]
    assert row_of(shown, "-log p(x), importance-weighted <=") == [f"{nats['nll_nats']:.3f}", f"{nats['nll_bits']:.3f}"]
    samples = [metrics[kind]["density"] for kind in ("prior_samples", "training_grids")]
    assert row_of(shown, "density") == [f"{value:.2f}" for value in samples]
    assert "inside the rectangle" not in shown  # not measured: the canvas is the grid


def test_tables_of_two_levels_and_conditions(evaluated: Evaluated) -> None:
    result, _, metrics = evaluated("hierarchy_run")
    assert "Without conditions, except for samples under a condition." in result.stdout
    alone = [metrics["shuffled_codes"]["levels"][name]["reconstruction_nats"] for name in ("global", "local")]
    assert row_of(result.stdout, "with this level's of other examples") == [f"{nats:.1f}" for nats in alone]
    assert np.array(metrics["levels"]["local"]["cells_nats"]).shape == (4, 4)
    for row in metrics["adherence"]["rows"]:
        keys = ("counted_obeying", "unaided_obeying", "baseline_counted_obeying", "counted", "obeying", "data")
        cells = ["-" if row[key] is None else str(row[key]) if key == "counted" else f"{row[key]:.1%}" for key in keys]
        assert row_of(result.stdout, row["asked"]) == cells


def test_tables_of_strings_show_the_metrics(evaluated: Evaluated) -> None:
    result, _, metrics = evaluated("equations_run")
    shown, found = result.stdout, metrics["reconstruction"]
    for name, field in (("rules", "token_accuracy"), ("exact derivations", "exact_share")):
        kinds = ("posterior_mean", "posterior_sample", "frequencies")
        assert row_of(shown, name) == [f"{found[kind][field]:.2%}" for kind in kinds if field in found[kind]]
    assert row_of(shown, "the same, counted") == [f"{found['monte_carlo']['exact_share']:.2%}"]
    for name, field in (("valid", "valid_share"), ("of these no training string", "novel_share")):
        assert row_of(shown, name) == [f"{drawn[field]:.2%}" for drawn in metrics["prior_samples"].values()]
    assert row_of(shown, "strings") == ["60", "60"]
    assert found["monte_carlo"] == {**found["monte_carlo"], "examples": 7, "encodings": 2, "decodings": 5}


def test_json_is_the_only_output_and_strict_exits_with_1(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    options = ("--json", "--quiet", "--split", "val", "--seed", 3, "--precision", "bf16", "--strict")
    result = judge(arcvae, tiny_run, tmp_path, *options)
    document = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, document["verdict"]["ok"]) == (1, "", False)
    assert (document["split"], document["seed"], document.pop("output")) == ("val", 3, str(tmp_path))
    assert document == json.loads((tmp_path / "metrics.json").read_text())
    assert (document["reconstruction"]["examples"], document["precision"]) == (20, "bf16")


def test_total_free_bits_are_the_floor_of_no_dimension(
    evaluated: Evaluated, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = checkpoints.load(tiny_run / "checkpoints" / "vae_best.pth")
    for mode, shown in (("per_dim", True), ("total", False)):
        objective = loaded.settings.objective.model_copy(update={"free_bits": 0.7, "free_bits_mode": mode})
        settings = loaded.settings.model_copy(update={"objective": objective})
        command._show(Console(), dataclasses.replace(loaded, settings=settings), evaluated("tiny_run")[2])
        out = capsys.readouterr().out
        assert ("free bits 0.7" in out) is shown
        assert any("|" in line for line in out.splitlines() if "█" in line) is shown


def test_baselines_are_fitted_to_the_training_corpus(
    arcvae: Run, tiny_run: Path, arc_npz: Path, tmp_path: Path, arc_splits: dict[str, np.ndarray]
) -> None:
    run, other = shutil.copytree(tiny_run, tmp_path / "runs" / "copied"), tmp_path / "other.npz"
    np.savez(other, test=arc_splits["test"][:7])
    named = ("--checkpoint", "copied", "--runs-dir", tmp_path / "runs", "--device", "cpu", "--data", other, "--json")
    document = json.loads(arcvae("evaluate", *named).stdout)
    assert (document["corpus"], document["reconstruction"]["examples"]) == ("other", 7)
    assert document["reconstruction"]["pca_training_grids"] == 100
    assert sorted(path.name for path in (run / "evaluation" / "other-test").iterdir()) == GRID_FILES

    hidden = arc_npz.rename(tmp_path / "hidden.npz")
    try:
        for data in ((), ("--data", other)):  # without training examples there is no baseline
            result = judge(arcvae, tiny_run, tmp_path / "out", *data)
            assert result.exit_code == 2 and str(arc_npz) in result.stderr.replace("\n", "")
    finally:
        hidden.rename(arc_npz)


@pytest.mark.parametrize(
    ("run", "pictures"), [("tiny_run", []), ("hierarchy_run", ["levels.png"]), ("equations_run", [])]
)
def test_a_run_ends_with_a_report(
    run: str, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    (tmp_path / "images").mkdir()
    loaded = checkpoints.load(request.getfixturevalue(run) / "checkpoints" / "vae_best.pth")
    corpus = open_corpus(loaded.settings.data)
    document = command.report(loaded, corpus, "val", RunFolder(tmp_path), Console())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == document
    assert (metrics["run"], metrics["split"], metrics["quick"]) == (str(tmp_path), "val", True)
    assert metrics["verdict"]["summary"] in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == PLOTS + pictures


def test_ready_ids_without_a_grammar(arcvae: Run, bare_run: Path, tmp_path: Path) -> None:
    drawn = build_drawn(read_grammar("equations"), 9, size=300)
    rules = dataclasses.replace(drawn.rules, rhs=None, text=None)
    ready = tmp_path / "ready.npz"
    write_dataset(ready, dataclasses.replace(drawn, rules=rules, grammar=None))
    result = judge(arcvae, bare_run, tmp_path / "out", "--data", ready)
    assert result.exit_code == 0, result.stderr
    assert "the training corpus is not available" in result.stderr  # ids.npy and masks.npy, which are gone
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["prior_samples"] is metrics["judged"] is metrics["interpolation"] is None
    assert metrics["reconstruction"]["frequencies"]["training"] == 240
    result = judge(arcvae, bare_run, tmp_path / "out", "--data", ready, "--monte-carlo")
    assert result.exit_code == 2 and "--monte-carlo: the model was trained without" in result.stderr
