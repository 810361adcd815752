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
from arcvae_cli.conditions import attributes, satisfies
from arcvae_cli.console import Console
from arcvae_cli.data.files import read_dataset, write_dataset
from arcvae_cli.data.parsing import Parser
from arcvae_cli.data.strings import build_drawn
from arcvae_cli.domains import strings
from arcvae_cli.domains.base import Decoded
from arcvae_cli.domains.validity import Validator, validator_for
from arcvae_cli.grammar import read_grammar

Run = Callable[..., Result]
GRAMMAR = read_grammar("equations")


def draw(arcvae: Run, run: Path, output: Path, *arguments: object) -> tuple[Result, dict[str, np.ndarray]]:
    result = arcvae("sample", "--checkpoint", run, "--output", output, "--device", "cpu", *arguments)
    assert result.exit_code == 0, result.stderr
    with np.load(output / "samples.npz") as file:
        return result, dict(file)


def test_grids_are_printed_and_written_as_picture_arrays_and_task(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    result, arrays = draw(arcvae, tiny_run, tmp_path, "--num", 11)
    grids = arrays["grids"]
    assert grids.shape == (11, 16, 16) and arrays["latents_z"].shape == (11, 4)
    lines = result.stdout.splitlines()
    printed = ["".join(str(cell) if cell else "." for cell in row) for row in grids[0]]
    assert [line[:16] for line in lines[:16]] == printed
    assert lines[0][18:34].replace(".", "0") == "".join(map(str, grids[1][0]))
    assert lines[-1].startswith("11 samples, standard prior, temperature 1: ")
    assert f", {len(np.unique(grids.reshape(11, -1), axis=0))} distinct" in lines[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.json", "samples.npz", "samples.png"]
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(read_dataset(tmp_path / "samples.npz").x, grids)
    task = read_dataset(tmp_path / "samples.json")
    np.testing.assert_array_equal(task.x, grids)
    for grid, (height, width) in zip(task.x, task.shape, strict=True):
        # trimmed: the last row and the last column have colour, or there is one black cell
        assert (grid[height - 1].any() and grid[:, width - 1].any()) or (height, width) == (1, 1)


@pytest.mark.parametrize(
    ("run", "decoded", "prior"),
    [("tiny_run", "grids", "standard"), ("tiny_run", "grids", "gmm"), ("equations_run", "ids", "aggregate")],
)
def test_the_seed_decides(
    run: str, decoded: str, prior: str, arcvae: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = ("--num", 20, "--prior", prior, "--seed")
    draws = [draw(arcvae, request.getfixturevalue(run), tmp_path, *options, seed)[1] for seed in (5, 5, 6)]
    for name in ("latents_z", decoded):
        assert np.array_equal(draws[0][name], draws[1][name])
        assert not np.array_equal(draws[0][name], draws[2][name])


def test_a_fitted_prior_says_what_it_was_fitted_to(
    arcvae: Run, tiny_run: Path, hierarchy_run: Path, arc_npz: Path, arc_splits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    other = shutil.copy(arc_npz, tmp_path / "other.npz")
    result, _ = draw(arcvae, tiny_run, tmp_path, "--prior", "gmm", "--data", other, "--split", "test")
    assert "fitted to 40 test examples of other" in result.stderr
    found = int(satisfies(attributes(arc_splits["train"]), {"colour_2": 1}).sum())
    result, _ = draw(arcvae, hierarchy_run, tmp_path, "--num", 4, "--prior", "aggregate", "--condition", "red=yes")
    assert f"a Gaussian fitted to {found} train examples of some with colour_2=yes" in " ".join(result.stderr.split())


def test_conditions_reach_the_model_and_are_counted(arcvae: Run, hierarchy_run: Path, tmp_path: Path) -> None:
    asked = ("--condition", "colours=3", "--condition", "symmetry=lr")
    result, arrays = draw(arcvae, hierarchy_run, tmp_path, "--num", 12, *asked)
    model = checkpoints.load(hierarchy_run / "checkpoints" / "vae_best.pth").model
    latents = {name: torch.from_numpy(arrays[f"latents_{name}"]) for name in ("global", "local")}
    coded = torch.from_numpy(arrays["conditions"])
    named = dict(zip(arrays["condition_names"].tolist(), coded[0].tolist(), strict=True))
    assert {name: value for name, value in named.items() if value >= 0} == {"colours": 3, "symmetry_lr": 1}
    with torch.inference_mode():
        np.testing.assert_array_equal(model.decode(latents, coded).argmax(dim=1), arrays["grids"])
        assert (model.decode(latents).argmax(dim=1).numpy() != arrays["grids"]).any()

    free = draw(arcvae, hierarchy_run, tmp_path / "free", "--num", 12)[1]
    assert "conditions" not in free
    wanted = {"colours": 3, "symmetry_lr": 1}
    counts = [int(satisfies(attributes(some["grids"]), wanted).sum()) for some in (arrays, free)]
    last = result.stdout.splitlines()[-1]
    assert last.endswith(f"colours=3, symmetry_lr=yes in {counts[0]}, without conditions in {counts[1]}")
    assert json.loads((tmp_path / "samples.json").read_text())["conditions"] == wanted


# -------------------------------------------------------------------------------------------------------- strings


def strings_of(arcvae: Run, run: Path, output: Path, *arguments: object) -> tuple[dict, dict[str, np.ndarray]]:
    result, arrays = draw(arcvae, run, output, "--json", "--quiet", *arguments)
    document = json.loads(result.stdout)
    assert result.stderr == "" and document == json.loads((output / "samples.json").read_text())
    return document, arrays


def test_strings_are_printed_one_per_line_and_written(arcvae: Run, equations_run: Path, tmp_path: Path) -> None:
    result, arrays = draw(arcvae, equations_run, tmp_path, "--num", 40)
    assert arrays["ids"].shape == (40, 9) and arrays["complete"].all()
    texts = [GRAMMAR.write(row) for row in arrays["ids"].tolist()]
    assert result.stdout == (tmp_path / "samples.txt").read_text() == "".join(f"{text}\n" for text in texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.json", "samples.npz", "samples.txt"]
    for text, row in zip(texts, arrays["ids"].tolist(), strict=True):
        ids = Parser(GRAMMAR).parse(text)
        assert row == ids + [11] * (9 - len(ids))
    good = [text for text in texts if validator_for(GRAMMAR).is_valid(text)]
    counts = f"40 complete, {len(good)} valid, {len(set(good))} distinct"
    assert f"40 samples, standard prior, temperature 1: {counts}" in " ".join(result.stderr.split())


def test_rules_are_sampled_or_the_argmax(arcvae: Run, equations_run: Path, tmp_path: Path) -> None:
    drawn = strings_of(arcvae, equations_run, tmp_path / "a", "--num", 30)[1]
    document, argmax = strings_of(arcvae, equations_run, tmp_path / "b", "--num", 30, "--decode", "argmax")
    np.testing.assert_array_equal(drawn["latents_z"], argmax["latents_z"])
    assert (document["decode"], document["budget"]) == ("argmax", True)
    model = checkpoints.load(equations_run / "checkpoints" / "vae_best.pth").model
    with torch.inference_mode():
        ids = model.argmax_decode(model.decode({"z": torch.from_numpy(argmax["latents_z"])}))
    np.testing.assert_array_equal(argmax["ids"], ids)
    assert (drawn["ids"] != argmax["ids"]).any()
    same_code = ("--num", 30, "--temperature", 0, "--decode")
    distinct = [
        strings_of(arcvae, equations_run, tmp_path / "c", *same_code, how)[0]["distinct"]
        for how in ("sample", "argmax")
    ]
    assert distinct[0] > distinct[1] == 1


def test_without_the_budget_some_are_incomplete(arcvae: Run, equations_run: Path, tmp_path: Path) -> None:
    document, arrays = strings_of(arcvae, equations_run, tmp_path, "--num", 60, "--no-budget")
    complete = int(arrays["complete"].sum())
    assert 0 < complete < 60 and (document["complete"], document["complete_share"]) == (complete, complete / 60)
    assert [text is not None for text in document["strings"]] == arrays["complete"].tolist()
    assert (tmp_path / "samples.txt").read_text().splitlines() == [text for text in document["strings"] if text]


def test_valid_distinct_and_novel_strings_are_counted(
    arcvae: Run, equations_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the complete ones the valid, of those the distinct by what they mean, of those what is no training string."""
    judge = Validator("short", lambda text: len(text) < 12, lambda text: text.replace("1", "2"))
    monkeypatch.setattr(strings, "validator_for", lambda *_: judge)
    data = tmp_path / "short.npz"
    write_dataset(data, build_drawn(GRAMMAR, 5, size=60))
    document, _ = strings_of(arcvae, equations_run, tmp_path / "out", "--num", 200, "--data", data)
    good = [text for text in document["strings"] if len(text) < 12]
    first = {text.replace("1", "2"): text for text in reversed(good)}
    with np.load(data) as file:
        known = {GRAMMAR.write(row) for row in file["ids"][file["split"] == 0].tolist()}
    novel = [text for text in first.values() if text not in known]
    assert 0 < len(novel) < len(first) < len(good) < 200
    assert [document[name] for name in ("valid", "distinct", "novel")] == [len(good), len(first), len(novel)]
    shares = [len(good) / 200, len(first) / len(good), len(novel) / len(first)]
    assert [document[f"{name}_share"] for name in ("valid", "distinct", "novel")] == shares


def test_unknown_validity_and_novelty_are_null(
    arcvae: Run, unbuilt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCVAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(strings, "validator_for", lambda *_: None)
    result, _ = draw(arcvae, unbuilt_run, tmp_path / "out", "--num", 2)
    assert "novelty is not counted: the training corpus is not in the cache" in result.stderr
    assert not (tmp_path / "cache").exists()
    document = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert [document[name] for name in ("judge", "valid", "valid_share", "novel", "novel_share")] == [None] * 5


def test_a_terminal_gets_a_list_with_remarks(
    arcvae: Run, equations_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "piped", False)
    monkeypatch.setattr(strings, "validator_for", lambda *_: Validator("short", lambda text: len(text) < 9))
    result, arrays = draw(arcvae, equations_run, tmp_path, "--num", 60, "--temperature", 3, "--no-budget")
    texts = [GRAMMAR.write(row) for row in arrays["ids"].tolist()]
    lines = result.stdout.splitlines()
    assert lines[60].startswith("60 samples, standard prior")
    for place, (text, line) in enumerate(zip(texts, lines, strict=False)):
        assert line.split()[0] == str(place + 1)
        assert line.endswith("(incomplete)") if text is None else text in line
        assert ("invalid" in line) == (text is not None and len(text) >= 9)
        assert line.endswith("again") == (text is not None and text in texts[:place])


def test_escape_sequences_of_strings_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Console, "piped", False)
    text = "x\x1b]0;title\x07\x1b[2J"
    strings.StringDomain().show(Console(), Decoded({}, {}, ([("1", text, "")], [text]), ""))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b[2J" in shown
