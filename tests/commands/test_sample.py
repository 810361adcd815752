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
from arcvae_cli.domains.texts import beginning
from arcvae_cli.domains.validity import Validator, validator_for
from arcvae_cli.grammar import read_grammar

Run = Callable[..., Result]


def draw(arcvae: Run, run: Path, output: Path, *arguments: object) -> tuple[Result, dict[str, np.ndarray]]:
    result = arcvae("sample", "--checkpoint", run, "--output", output, "--device", "cpu", *arguments)
    assert result.exit_code == 0, result.stderr
    with np.load(output / "samples.npz") as file:
        return result, dict(file)


def test_grids_are_printed_and_written_as_picture_arrays_and_task(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    result, arrays = draw(arcvae, tiny_run, tmp_path, "--num", 11)
    grids = arrays["grids"]
    assert grids.shape == (11, 16, 16)
    assert arrays["latents_z"].shape == (11, 4)
    lines = result.stdout.splitlines()
    printed = ["".join(str(cell) if cell else "." for cell in row) for row in grids[0]]
    assert [line[:16] for line in lines[:16]] == printed
    assert lines[0][18:34].replace(".", "0") == "".join(map(str, grids[1][0]))
    blank, distinct = (grids == 0).all((1, 2)).sum(), len(np.unique(grids.reshape(11, -1), axis=0))
    about = f"11 samples, standard prior, temperature 1: {blank} of 11 blank, {distinct} distinct"
    assert lines[-1].startswith(about)
    assert f"{(grids > 0).mean():.1%} of their cells not black" in lines[-1]
    assert str(tmp_path) in result.stderr.replace("\n", "")
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.json", "samples.npz", "samples.png"]


def test_what_is_written_is_read_back_as_a_corpus(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    _, arrays = draw(arcvae, tiny_run, tmp_path, "--num", 20)
    np.testing.assert_array_equal(read_dataset(tmp_path / "samples.npz").x, arrays["grids"])
    from_json = read_dataset(tmp_path / "samples.json")
    np.testing.assert_array_equal(from_json.x, arrays["grids"])
    for grid, (height, width) in zip(from_json.x, from_json.shape, strict=True):
        # trimmed: the last row and the last column have colour, or there is one black cell
        assert (grid[height - 1].any() and grid[:, width - 1].any()) or (height, width) == (1, 1)


@pytest.mark.parametrize("prior", ["standard", "aggregate", "gmm"])
@pytest.mark.parametrize(("run", "decoded"), [("tiny_run", "grids"), ("equations_run", "ids")])
def test_the_seed_decides(
    run: str, decoded: str, prior: str, arcvae: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    draws = [
        draw(arcvae, request.getfixturevalue(run), tmp_path, "--num", 20, "--prior", prior, "--seed", seed)[1]
        for seed in (5, 5, 6)
    ]
    for name in ("latents_z", decoded):
        assert np.array_equal(draws[0][name], draws[1][name])
        assert not np.array_equal(draws[0][name], draws[2][name])


def test_a_fitted_prior_says_what_it_was_fitted_to(arcvae: Run, tiny_run: Path, arc_npz: Path, tmp_path: Path) -> None:
    result, _ = draw(arcvae, tiny_run, tmp_path, "--prior", "aggregate")
    assert "a Gaussian fitted to 100 train examples of some" in result.stderr
    other = shutil.copy(arc_npz, tmp_path / "other.npz")
    result, _ = draw(arcvae, tiny_run, tmp_path, "--prior", "gmm", "--data", other, "--split", "test")
    assert "fitted to 40 test examples of other" in result.stderr


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

    document = json.loads(draw(arcvae, hierarchy_run, tmp_path, "--num", 12, *asked, "--json", "--quiet")[0].stdout)
    assert document["conditions"] == {"colours": 3, "symmetry_lr": 1}
    free = draw(arcvae, hierarchy_run, tmp_path / "free", "--num", 12)[1]
    assert "conditions" not in free
    counts = [int(satisfies(attributes(some["grids"]), document["conditions"]).sum()) for some in (arrays, free)]
    assert document["adherence"] == {
        "obeying": counts[0],
        "obeying_share": counts[0] / 12,
        "baseline_obeying": counts[1],
        "baseline_share": counts[1] / 12,
    }
    last = result.stdout.splitlines()[-1]
    assert last.endswith(f"colours=3, symmetry_lr=yes in {counts[0]}, without conditions in {counts[1]}")
    written = json.loads((tmp_path / "samples.json").read_text())
    assert written["conditions"] == {"colours": 3, "symmetry_lr": 1}
    np.testing.assert_array_equal(read_dataset(tmp_path / "samples.npz").x, arrays["grids"])
    np.testing.assert_array_equal(read_dataset(tmp_path / "samples.json").x, arrays["grids"])


def test_a_fitted_prior_under_a_condition_is_fitted_to_what_obeys(
    arcvae: Run, hierarchy_run: Path, arc_splits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    obeying = int(satisfies(attributes(arc_splits["train"]), {"colour_2": 1}).sum())
    result, _ = draw(arcvae, hierarchy_run, tmp_path, "--num", 4, "--prior", "aggregate", "--condition", "red=yes")
    assert f"a Gaussian fitted to {obeying} train examples of some with colour_2=yes" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        ("tiny_run", ("--num", 0), "--num"),
        ("tiny_run", ("--temperature", "nan"), "--temperature"),
        ("tiny_run", ("--device", "gpu"), "--device"),
        ("tiny_run", ("--checkpoint", "nowhere.pth"), "nowhere.pth"),
        ("tiny_run", ("--prior", "gmm", "--data", "nowhere.npz"), "nowhere.npz"),
        ("tiny_run", ("--condition", "colours=3"), "--condition colours=3: this model takes no conditions"),
        ("tiny_run", ("--condition", "colors=3"), "did you mean colours?"),
        ("tiny_run", ("--condition", "red=yes", "--condition", "colours=0"), "no grid is like that"),
        ("tiny_run", ("--decode", "argmax"), "--decode: this model is of grids"),
        ("tiny_run", ("--no-budget",), "--budget/--no-budget: this model is of grids"),
        (
            "hierarchy_run",
            ("--prior", "gmm", "--condition", "colours=9"),
            "too few to fit a density to, 0 train",
        ),
        ("bare_run", (), "trained on ids and masks"),
    ],
)
def test_unusable_input(
    run: str, arguments: tuple, message: str, arcvae: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(run)
    result = arcvae("sample", "--checkpoint", run, "--output", tmp_path / "none", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


# -------------------------------------------------------------------------------------------------------- strings


def test_strings_are_printed_a_line_each_and_written(arcvae: Run, equations_run: Path, tmp_path: Path) -> None:
    result, arrays = draw(arcvae, equations_run, tmp_path, "--num", 40)
    assert arrays["ids"].shape == (40, 9) and arrays["ids"].dtype == np.int16
    assert arrays["complete"].all() and arrays["complete"].shape == (40,)
    assert arrays["latents_z"].shape == (40, 4)
    grammar = read_grammar("equations")
    strings = [grammar.write(row) for row in arrays["ids"].tolist()]
    assert result.stdout == "".join(f"{string}\n" for string in strings)
    assert (tmp_path / "samples.txt").read_text() == result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.json", "samples.npz", "samples.txt"]
    parser = Parser(grammar)
    for string, row in zip(strings, arrays["ids"], strict=True):
        ids = parser.parse(string)
        assert row.tolist() == ids + [11] * (9 - len(ids))
    told = " ".join(result.stderr.split())
    good = [string for string in strings if validator_for(grammar).is_valid(string)]
    counts = f"40 complete, {len(good)} valid, {len(set(good))} distinct"
    assert f"40 samples, standard prior, temperature 1: {counts}" in told
    assert str(tmp_path) in result.stderr.replace("\n", "")


def strings_of(arcvae: Run, run: Path, output: Path, *arguments: object) -> tuple[dict, dict[str, np.ndarray]]:
    result, arrays = draw(arcvae, run, output, "--json", "--quiet", *arguments)
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document == json.loads((output / "samples.json").read_text())
    return document, arrays


def test_rules_are_drawn_or_the_likeliest(arcvae: Run, equations_run: Path, tmp_path: Path) -> None:
    drawn = strings_of(arcvae, equations_run, tmp_path / "a", "--num", 30)[1]
    document, likeliest = strings_of(arcvae, equations_run, tmp_path / "b", "--num", 30, "--decode", "argmax")
    np.testing.assert_array_equal(drawn["latents_z"], likeliest["latents_z"])
    assert (document["decode"], document["budget"]) == ("argmax", True)
    model = checkpoints.load(equations_run / "checkpoints" / "vae_best.pth").model
    with torch.inference_mode():
        ids = model.argmax_decode(model.decode({"z": torch.from_numpy(likeliest["latents_z"])}))
    np.testing.assert_array_equal(likeliest["ids"], ids)
    assert (drawn["ids"] != likeliest["ids"]).any()
    # at one code, drawn rules vary and the likeliest do not
    cold = [
        strings_of(arcvae, equations_run, tmp_path / "c", "--num", 30, "--temperature", 0, "--decode", how)[0]
        for how in ("sample", "argmax")
    ]
    assert cold[0]["distinct"] > cold[1]["distinct"] == 1


def test_without_the_budget_some_are_cut_off_and_are_no_strings(
    arcvae: Run, equations_run: Path, tmp_path: Path
) -> None:
    result, arrays = draw(arcvae, equations_run, tmp_path, "--num", 60, "--no-budget")
    document = json.loads((tmp_path / "samples.json").read_text())
    complete = int(arrays["complete"].sum())
    assert 0 < complete < 60
    assert (document["complete"], document["complete_share"]) == (complete, complete / 60)
    assert [string is not None for string in document["strings"]] == arrays["complete"].tolist()
    assert result.stdout.splitlines() == [string for string in document["strings"] if string is not None]
    assert f"no budget: {complete} complete" in " ".join(result.stderr.split())


def test_what_is_valid_distinct_and_novel_is_counted(
    arcvae: Run, equations_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the complete ones the valid, of those the distinct by what they mean, of those what is no training string."""
    judge = Validator("short", lambda text: len(text) < 12, lambda text: text.replace("1", "2"))
    monkeypatch.setattr(strings, "validator_for", lambda *_: judge)
    grammar, data = read_grammar("equations"), tmp_path / "short.npz"
    write_dataset(data, build_drawn(grammar, 5, size=60))
    document, _ = strings_of(arcvae, equations_run, tmp_path / "out", "--num", 200, "--data", data)
    good = [string for string in document["strings"] if len(string) < 12]
    first = {string.replace("1", "2"): string for string in reversed(good)}
    with np.load(data) as file:
        known = {grammar.write(row) for row in file["ids"][file["split"] == 0].tolist()}
    novel = [string for string in first.values() if string not in known]
    assert 0 < len(novel) < len(first) < len(good) < 200
    assert [document[name] for name in ("judge", "valid", "distinct", "novel")] == [
        "short", len(good), len(first), len(novel)
    ]  # fmt: skip
    assert document["valid_share"] == len(good) / 200
    assert document["distinct_share"] == len(first) / len(good)
    assert document["novel_share"] == len(novel) / len(first)


def test_what_cannot_be_known_is_said_and_not_counted(
    arcvae: Run, equations_run: Path, equations_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strings, "validator_for", lambda *_: None)
    hidden = equations_npz.rename(equations_npz.with_name("hidden.npz"))
    try:
        result, _ = draw(arcvae, equations_run, tmp_path, "--num", 5)
        refused = arcvae("sample", "--checkpoint", equations_run, "--output", tmp_path, "--data", equations_npz)
    finally:
        hidden.rename(equations_npz)
    told = " ".join(result.stderr.split())
    assert "novelty is not counted" in told and "sums.npz" in told
    assert " valid" not in told and " novel" not in told
    document = json.loads((tmp_path / "samples.json").read_text())
    assert [document[name] for name in ("judge", "valid", "valid_share", "novel", "novel_share")] == [None] * 5
    assert refused.exit_code == 2 and "sums.npz" in refused.stderr


def test_a_corpus_that_would_have_to_be_built_is_not(
    arcvae: Run, unbuilt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCVAE_CACHE_DIR", str(tmp_path / "cache"))
    result, _ = draw(arcvae, unbuilt_run, tmp_path / "out", "--num", 2)
    assert "--data equations builds them" in " ".join(result.stderr.split())
    assert not (tmp_path / "cache").exists()


def test_a_terminal_gets_a_list_with_remarks(
    arcvae: Run, equations_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "piped", False)
    monkeypatch.setattr(strings, "validator_for", lambda *_: Validator("short", lambda text: len(text) < 9))
    data, grammar = tmp_path / "short.npz", read_grammar("equations")
    write_dataset(data, build_drawn(grammar, 5, size=60))
    options = ("--num", 60, "--data", data, "--temperature", 3, "--no-budget")
    result, arrays = draw(arcvae, equations_run, tmp_path, *options)
    texts = [grammar.write(row) for row in arrays["ids"].tolist()]
    with np.load(data) as file:
        known = {grammar.write(row) for row in file["ids"][file["split"] == 0].tolist()}
    lines = result.stdout.splitlines()
    assert lines[60].startswith("60 samples, standard prior")
    for place, (text, line) in enumerate(zip(texts, lines, strict=False)):
        assert line.split()[0] == str(place + 1)
        assert line.endswith("...    incomplete") == (text is None)
        assert text is None or text in line
        assert ("invalid" in line) == (text is not None and len(text) >= 9)
        assert ("in the training data" in line) == (text in known)
        assert line.endswith("again") == (text is not None and text in texts[:place])


def test_escape_sequences_of_strings_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Console, "piped", False)
    text = "x\x1b]0;title\x07\x1b[2J"
    strings.StringDomain().show(Console(), Decoded({}, {}, ([("1", text, "")], [text]), ""))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b[2J" in shown


def test_as_much_of_a_string_as_is_settled() -> None:
    grammar = read_grammar("equations")
    assert beginning(grammar, [0]) == "..."
    assert beginning(grammar, [0, 3, 7]) == "x + ..."
    assert beginning(grammar, [0, 3, 5, 3, 8]) == "sin( 1 ) + ..."
    assert beginning(read_grammar("smiles"), []) == "..."
