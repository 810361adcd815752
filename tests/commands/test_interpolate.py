from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from arcvae_cli import checkpoints
from arcvae_cli.data.files import read_dataset
from arcvae_cli.data.parsing import Parser
from arcvae_cli.domains import strings
from arcvae_cli.domains.validity import Validator
from arcvae_cli.evaluation.paths import edit_distance
from arcvae_cli.grammar import read_grammar
from arcvae_cli.models.base import VAE, Batch

Run = Callable[..., Result]
GRAMMAR = read_grammar("equations")


def walk(arcvae: Run, run: Path, output: Path, *arguments: object) -> tuple[Result, dict, dict[str, np.ndarray]]:
    result = arcvae("interpolate", "--checkpoint", run, "--output", output, "--device", "cpu", *arguments)
    assert result.exit_code == 0, result.stderr
    with np.load(output / "interpolation.npz") as file:
        return result, json.loads((output / "interpolation.json").read_text()), dict(file)


def model_of(run: Path) -> VAE:
    return checkpoints.load(run / "checkpoints" / "vae_best.pth").model.requires_grad_(requires_grad=False)


def line(model: VAE, originals: np.ndarray, steps: int) -> torch.Tensor:
    """The straight path between the posterior means of two examples."""
    means = model.encode(Batch(torch.from_numpy(originals).long()), noise=False)[0].mean
    return torch.stack([torch.lerp(means[0], means[1], place) for place in np.linspace(0, 1, steps)])


def test_from_one_test_grid_to_another(
    arcvae: Run, tiny_run: Path, arc_splits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    result, report, arrays = walk(arcvae, tiny_run, tmp_path, "--from", 3, "--to", 17)
    assert walk(arcvae, tiny_run, tmp_path / "default")[1]["from"] == "test 0"
    originals, grids, model = arc_splits["test"][[3, 17]], arrays["grids"], model_of(tiny_run)
    np.testing.assert_array_equal(arrays["originals"], originals)
    np.testing.assert_allclose(arrays["latents_z"], line(model, originals, 9), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(grids, model.decode({"z": torch.from_numpy(arrays["latents_z"])}).argmax(1))
    for file in ("interpolation.json", "interpolation.npz"):
        np.testing.assert_array_equal(read_dataset(tmp_path / file).x, grids)
    changed = [int((one != two).sum()) for one, two in itertools.pairwise(grids)]
    assert max(changed) > 0 and report["changed"] == changed
    assert report["distance"] == (grids[0] != grids[-1]).sum()
    assert report["distance_of_originals"] == (originals[0] != originals[1]).sum()
    assert report["wrong_at_ends"] == [(grids[0] != originals[0]).sum(), (grids[-1] != originals[1]).sum()]
    assert result.stdout.splitlines()[-1].startswith("linear path of 9 from test 3 to test 17: ")
    arc = walk(arcvae, tiny_run, tmp_path, "--from", 3, "--to", 17, "--path", "slerp")[2]["latents_z"]
    np.testing.assert_array_equal(arrays["latents_z"][[0, -1]], arc[[0, -1]])
    assert np.abs(arrays["latents_z"] - arc).max() > 1e-4


def test_grids_of_an_arc_file(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.json"
    pair = {"input": [[1, 2], [3, 4]], "output": [[5] * 3] * 3}
    task.write_text(json.dumps({"train": [pair], "test": [{"input": [[7]]}]}))
    _, report, arrays = walk(arcvae, tiny_run, tmp_path / "out", "--from", task, "--to", f"{task}:1", "--steps", 2)
    assert (report["from"], report["to"]) == ("task.json:0", "task.json:1")
    first, second = (grid[grid > 0].tolist() for grid in arrays["originals"])
    assert (first, second) == ([1, 2, 3, 4], [5] * 9)


@pytest.mark.parametrize(("level", "other"), [("global", "local"), ("local", "global")])
def test_one_level_moves_and_the_other_keeps_its_distance_from_the_prior(
    level: str, other: str, arcvae: Run, hierarchy_run: Path, arc_splits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    options = ("--from", 3, "--to", 17, "--level", level, "--steps", 5)
    _, report, arrays = walk(arcvae, hierarchy_run, tmp_path, *options)
    assert report["level"] == level and max(report["changed"]) > 0
    model, originals = model_of(hierarchy_run), torch.from_numpy(arc_splits["test"][[3, 17]]).long()
    latents = {name: torch.from_numpy(arrays[f"latents_{name}"]) for name in (level, other)}
    np.testing.assert_array_equal(model.decode(latents).argmax(dim=1), arrays["grids"])
    for one in model.encode(Batch(originals), noise=False):
        torch.testing.assert_close(latents[one.name][0], one.mean[0], rtol=1e-4, atol=1e-4)
        if one.name == level == "global":
            torch.testing.assert_close(latents["global"][-1], one.mean[1], rtol=1e-4, atol=1e-4)
    steps, shape = latents["global"], (5, *model.level_shapes["local"])
    noises = ({"global": steps, "local": local} for local in (torch.zeros(shape), torch.ones(shape)))
    mean, above = (model.prior(noise)["local"] for noise in noises)
    distance = {"global": steps, "local": (latents["local"] - mean) / (above - mean)}  # in standard deviations
    torch.testing.assert_close(distance[other], distance[other][:1].expand_as(distance[other]), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(distance[level][0], distance[level][-1])
    assert torch.allclose(mean[0], mean[-1]) == (level == "local")


def test_from_one_string_to_another(
    arcvae: Run, equations_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strings, "validator_for", lambda *_: Validator("short", lambda text: len(text) < 12))
    ends, model = ("x + 1", "sin( x ) / 2"), model_of(equations_run)
    result, report, arrays = walk(
        arcvae, equations_run, tmp_path, "--from", "string:x+1", "--to", ends[1], "--steps", 5
    )
    parsed = [Parser(GRAMMAR).parse(end) for end in ends]
    assert arrays["originals"].tolist() == [ids + [11] * (9 - len(ids)) for ids in parsed]  # padded
    np.testing.assert_allclose(arrays["latents_z"], line(model, arrays["originals"], 5), rtol=1e-4, atol=1e-5)
    ids = model.argmax_decode(model.decode({"z": torch.from_numpy(arrays["latents_z"])})).numpy()
    np.testing.assert_array_equal(arrays["ids"], ids)
    texts = [GRAMMAR.write(row) for row in ids.tolist()]
    assert (report["originals"], report["strings"]) == (list(ends), texts)
    assert report["valid"] == [len(text) < 12 for text in texts] and report["distinct"] == len(set(texts)) > 1
    steps = [[rule for rule in row if rule != 11] for row in ids.tolist()]
    assert report["changed"] == [edit_distance(one, two) for one, two in itertools.pairwise(steps)]
    assert report["distance_of_originals"] == edit_distance(*parsed)
    assert report["wrong_at_ends"] == [edit_distance(steps[place], parsed[place]) for place in (0, -1)]
    lines = result.stdout.splitlines()
    assert (tmp_path / "interpolation.txt").read_text().splitlines() == lines[:-1]
    assert lines[0] == "from, original  x + 1" and lines[-2] == "to, original    sin( x ) / 2"
