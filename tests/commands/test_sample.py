from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from arcvae_cli import checkpoints
from arcvae_cli.canvas import ARC
from arcvae_cli.conditions import measure, satisfies
from arcvae_cli.console import Console
from arcvae_cli.data.files import read_dataset, write_dataset
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.domains import strings
from arcvae_cli.domains.base import Decoded
from arcvae_cli.domains.validity import Validator, validator_for
from arcvae_cli.grammar import read_grammar

Run = Callable[..., Result]
GRAMMAR = read_grammar("equations")


def draw(arcvae: Run, run: Path, output: Path, *arguments: object) -> tuple[Result, dict[str, np.ndarray], dict]:
    result = arcvae("sample", "--checkpoint", run, "--output", output, "--device", "cpu", *arguments)
    assert result.exit_code == 0, result.stderr
    with np.load(output / "samples.npz") as file:
        return result, dict(file), json.loads((output / "samples.json").read_text())


def test_grids_are_printed_and_written_as_picture_arrays_and_task(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    result, arrays, _ = draw(arcvae, tiny_run, tmp_path, "--num", 11)
    grids, lines = arrays["grids"], result.stdout.splitlines()
    assert grids.shape == (11, 16, 16) and arrays["latents_z"].shape == (11, 4)
    printed = [line[:16].replace(".", "0") for line in lines[:16]]
    assert printed == ["".join(map(str, row)) for row in grids[0]]
    assert f" {len(np.unique(grids.reshape(11, -1), axis=0))} of 11 distinct, " in lines[-1]
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    task = read_dataset(tmp_path / "samples.json")
    np.testing.assert_array_equal(task.x, grids)
    for grid, (height, width) in zip(task.x, task.shape, strict=True):
        # trimmed: the last row and the last column have colour, or there is one black cell
        assert (grid[height - 1].any() and grid[:, width - 1].any()) or (height, width) == (1, 1)


@pytest.mark.parametrize(("run", "decoded"), [("tiny_run", "grids"), ("equations_run", "ids")])
def test_a_mixture_is_fitted_to_examples_of_any_corpus_and_the_seed_decides(
    run: str, decoded: str, arcvae: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue("arc_npz" if run == "tiny_run" else "equations_npz")
    other = shutil.copy(data, tmp_path / "other.npz")
    options = ("--num", 20, "--prior", "gmm", "--data", other, "--split", "test", "--seed")
    draws = [draw(arcvae, request.getfixturevalue(run), tmp_path, *options, seed) for seed in (5, 5, 6)]
    assert "fitted to 40 test examples of other" in draws[0][0].stderr
    for name in ("latents_z", decoded):
        assert np.array_equal(draws[0][1][name], draws[1][1][name])
        assert not np.array_equal(draws[0][1][name], draws[2][1][name])


def test_conditions_reach_the_model_and_are_counted(
    arcvae: Run, hierarchy_run: Path, arc_splits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    asked = ("--condition", "colours=3", "--condition", "symmetry=lr")
    result, arrays, document = draw(arcvae, hierarchy_run, tmp_path, "--num", 12, *asked)
    model = checkpoints.load(hierarchy_run / "checkpoints" / "vae_best.pth").model
    latents = {name: torch.from_numpy(arrays[f"latents_{name}"]) for name in ("global", "local")}
    coded, wanted = torch.from_numpy(arrays["conditions"]), {"colours": 3, "symmetry_lr": 1}
    assert document["conditions"] == wanted and (coded >= 0).sum() == 2 * 12
    with torch.inference_mode():
        np.testing.assert_array_equal(model.decode(latents, coded).argmax(dim=1), arrays["grids"])
        assert (model.decode(latents).argmax(dim=1).numpy() != arrays["grids"]).any()
    free = draw(arcvae, hierarchy_run, tmp_path / "free", "--num", 12)[1]
    counts = [int(satisfies(measure(some["grids"], ARC), wanted, ARC).sum()) for some in (arrays, free)]
    last = result.stdout.splitlines()[-1]
    assert last.endswith(f"colours=3, symmetry_lr=yes in {counts[0]}, without conditions in {counts[1]}")
    found = int(satisfies(measure(arc_splits["train"], ARC), {"colour_2": 1}, ARC).sum())
    result, *_ = draw(arcvae, hierarchy_run, tmp_path, "--num", 2, "--prior", "aggregate", "--condition", "red=yes")
    assert f"1 Gaussian fitted to {found} train examples of some with colour_2=yes" in " ".join(result.stderr.split())


def test_strings_are_printed_one_per_line_and_written(arcvae: Run, equations_run: Path, tmp_path: Path) -> None:
    result, arrays, _ = draw(arcvae, equations_run, tmp_path, "--num", 40)
    assert arrays["ids"].shape == (40, 9) and arrays["complete"].all()
    texts = [GRAMMAR.write(row) for row in arrays["ids"].tolist()]
    assert result.stdout == (tmp_path / "samples.txt").read_text() == "".join(f"{text}\n" for text in texts)
    good = [text for text in texts if validator_for(GRAMMAR).is_valid(text)]
    assert f"40 complete, {len(good)} valid, {len(set(good))} distinct" in " ".join(result.stderr.split())


def test_valid_distinct_and_novel_strings_are_counted(
    arcvae: Run, equations_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the complete ones the valid, of those the distinct by what they mean, of those what is no training string."""
    judge = Validator("short", lambda text: len(text) < 12, lambda text: text.replace("1", "2"))
    monkeypatch.setattr(strings, "validator_for", lambda *_: judge)
    data = tmp_path / "short.npz"
    write_dataset(data, build_drawn(GRAMMAR, 5, size=60))
    _, _, document = draw(arcvae, equations_run, tmp_path / "out", "--num", 200, "--data", data)
    good = [text for text in document["strings"] if len(text) < 12]
    first = {text.replace("1", "2"): text for text in reversed(good)}
    with np.load(data) as file:
        known = {GRAMMAR.write(row) for row in file["ids"][file["split"] == 0].tolist()}
    novel = [text for text in first.values() if text not in known]
    assert 0 < len(novel) < len(first) < len(good) < 200
    assert [document[name] for name in ("valid", "distinct", "novel")] == [len(good), len(first), len(novel)]
    assert document["novel_share"] == len(novel) / len(first)


def test_unknown_validity_and_novelty_are_null(
    arcvae: Run, unbuilt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCVAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(strings, "validator_for", lambda *_: None)
    result, _, document = draw(arcvae, unbuilt_run, tmp_path / "out", "--num", 2)
    assert "novelty is not counted" in result.stderr and not (tmp_path / "cache").exists()
    assert "beta was 0 to epoch 3" in result.stderr  # epoch 3 of a warm-up of 10
    assert [document[name] for name in ("judge", "valid", "valid_share", "novel", "novel_share")] == [None] * 5


def test_without_a_budget_strings_may_be_incomplete(arcvae: Run, equations_run: Path, tmp_path: Path) -> None:
    options = ("--num", 60, "--temperature", 3, "--no-budget")
    _, arrays, document = draw(arcvae, equations_run, tmp_path, *options)
    texts, complete = [GRAMMAR.write(row) for row in arrays["ids"].tolist()], int(arrays["complete"].sum())
    assert 0 < complete < 60 and (document["complete"], document["complete_share"]) == (complete, complete / 60)
    assert (tmp_path / "samples.txt").read_text().splitlines() == [text for text in texts if text is not None]


def test_escape_sequences_of_strings_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Console, "piped", False)
    text = "x\x1b]0;title\x07\x1b[2J"
    strings.StringDomain().show(Console(), Decoded({}, {}, ([("1", text, "")], [text]), ""))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b[2J" in shown
