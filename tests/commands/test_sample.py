from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from arcvae_cli import checkpoints
from arcvae_cli.commands.sample import PICTURED
from arcvae_cli.conditions import attributes, obeys
from arcvae_cli.data.files import read_grids

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
    blank, distinct = (grids == 0).all((1, 2)).mean(), len(np.unique(grids.reshape(11, -1), axis=0))
    assert lines[-1].startswith(f"11 samples, standard prior, temperature 1: {blank:.0%} blank, {distinct} distinct")
    assert f"{(grids > 0).mean():.1%} of their cells not black" in lines[-1]
    assert str(tmp_path) in result.stderr.replace("\n", "")
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.json", "samples.npz", "samples.png"]


def test_what_is_written_is_read_back_as_a_corpus(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    _, arrays = draw(arcvae, tiny_run, tmp_path, "--num", 20)
    np.testing.assert_array_equal(read_grids(tmp_path / "samples.npz").grids, arrays["grids"])
    from_json = read_grids(tmp_path / "samples.json")
    np.testing.assert_array_equal(from_json.grids, arrays["grids"])
    for grid, (height, width) in zip(from_json.grids, from_json.shape, strict=True):
        # trimmed: the last row and the last column have colour, or there is one black cell
        assert (grid[height - 1].any() and grid[:, width - 1].any()) or (height, width) == (1, 1)


@pytest.mark.parametrize("prior", ["standard", "aggregate", "gmm"])
def test_the_seed_decides(prior: str, arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    draws = [
        draw(arcvae, tiny_run, tmp_path / str(place), "--num", 8, "--prior", prior, "--seed", seed)[1]
        for place, seed in enumerate((5, 5, 6))
    ]
    assert np.array_equal(draws[0]["latents_z"], draws[1]["latents_z"])
    assert np.array_equal(draws[0]["grids"], draws[1]["grids"])
    assert not np.array_equal(draws[0]["latents_z"], draws[2]["latents_z"])


def test_temperature_scales_the_codes(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    cold, warm, hot = (
        draw(arcvae, tiny_run, tmp_path / str(factor), "--num", 8, "--temperature", factor)[1]["latents_z"]
        for factor in (0, 1, 2)
    )
    assert not cold.any()
    np.testing.assert_allclose(hot, 2 * warm)


def test_json_is_one_document_and_nothing_else(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    result, arrays = draw(arcvae, tiny_run, tmp_path, "--num", 8, "--prior", "gmm", "--json", "--quiet")
    document = json.loads(result.stdout)
    assert document["epoch"] == 3
    assert document["components"] >= 1
    assert document["non_black_share"] == pytest.approx((arrays["grids"] > 0).mean())
    assert Path(document["files"]["npz"]) == tmp_path / "samples.npz"
    assert result.stderr == ""


def test_a_fitted_prior_says_what_it_was_fitted_to(arcvae: Run, tiny_run: Path, arc_npz: Path, tmp_path: Path) -> None:
    result, _ = draw(arcvae, tiny_run, tmp_path, "--prior", "aggregate")
    assert "a Gaussian fitted to 100 train examples of some" in result.stderr
    other = shutil.copy(arc_npz, tmp_path / "other.npz")
    result, _ = draw(arcvae, tiny_run, tmp_path, "--prior", "gmm", "--data", other, "--split", "test")
    assert "fitted to 40 test examples of other" in result.stderr


def test_files_go_to_the_run_by_default(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    shutil.copytree(tiny_run, run)
    assert arcvae("sample", "--runs-dir", tmp_path, "--checkpoint", "again", "--num", 1).exit_code == 0
    assert (run / "samples" / "samples.png").is_file()


def test_the_models_own_prior_needs_no_data(arcvae: Run, tiny_run: Path, arc_npz: Path, tmp_path: Path) -> None:
    hidden = arc_npz.rename(arc_npz.with_name("hidden.npz"))
    try:
        draw(arcvae, tiny_run, tmp_path, "--num", 2)
        result = arcvae("sample", "--checkpoint", tiny_run, "--prior", "gmm", "--output", tmp_path)
    finally:
        hidden.rename(arc_npz)
    assert result.exit_code == 2
    assert "some.npz" in result.stderr


def test_the_picture_shows_no_more_than_can_be_seen(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    _, arrays = draw(arcvae, tiny_run, tmp_path, "--num", PICTURED + 1)
    assert len(arrays["grids"]) == PICTURED + 1
    width, height = struct.unpack(">II", (tmp_path / "samples.png").read_bytes()[16:24])
    assert abs(width - height) < 50  # 16 rows of 16 and a line of text: one grid more would have made a seventeenth


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
    counts = [int(obeys(attributes(some["grids"]), document["conditions"]).sum()) for some in (arrays, free)]
    assert document["adherence"] == {
        "obeying": counts[0],
        "obeying_share": counts[0] / 12,
        "baseline_obeying": counts[1],
        "baseline_share": counts[1] / 12,
    }
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"colours=3, symmetry_lr=yes: {counts[0]} of 12 obey ({counts[0] / 12:.0%}); of 12 drawn")
    written = json.loads((tmp_path / "samples.json").read_text())
    assert written["conditions"] == {"colours": 3, "symmetry_lr": 1}
    np.testing.assert_array_equal(read_grids(tmp_path / "samples.npz").grids, arrays["grids"])
    np.testing.assert_array_equal(read_grids(tmp_path / "samples.json").grids, arrays["grids"])


def test_without_conditions_nothing_is_counted(arcvae: Run, hierarchy_run: Path, tmp_path: Path) -> None:
    document = json.loads(draw(arcvae, hierarchy_run, tmp_path, "--num", 2, "--json", "--quiet")[0].stdout)
    assert (document["conditions"], document["adherence"]) == ({}, None)


def test_a_fitted_prior_under_a_condition_is_fitted_to_what_obeys(
    arcvae: Run, hierarchy_run: Path, arc_splits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    obeying = int(obeys(attributes(arc_splits["train"]), {"colour_2": 1}).sum())
    result, _ = draw(arcvae, hierarchy_run, tmp_path, "--num", 4, "--prior", "aggregate", "--condition", "red=yes")
    assert f"a Gaussian fitted to {obeying} train examples of some with colour_2=yes" in " ".join(result.stderr.split())
    none = arcvae(
        "sample", "--checkpoint", hierarchy_run, "--prior", "gmm", "--condition", "colours=9", "--output", tmp_path
    )
    assert none.exit_code == 2, none.stderr
    assert "that obey colours=9, too few" in " ".join(none.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--num", 0), "--num"),
        (("--temperature", -1), "--temperature"),
        (("--temperature", "nan"), "--temperature"),
        (("--prior", "vamp"), "--prior"),
        (("--seed", -1), "--seed"),
        (("--device", "gpu"), "--device"),
        (("--checkpoint", "nowhere.pth"), "nowhere.pth"),
        (("--prior", "gmm", "--data", "nowhere.npz"), "nowhere.npz"),
        (("--condition", "colours=3"), "--condition colours=3: this model takes no conditions"),
        (("--condition", "colors=3"), "did you mean colours?"),
        (("--condition", "red=yes", "--condition", "colours=0"), "no grid is like that"),
    ],
)
def test_unusable_input(arguments: tuple, told: str, arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    result = arcvae("sample", "--checkpoint", tiny_run, "--output", tmp_path / "none", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_cannot_be_made(arcvae: Run, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = arcvae("sample", "--checkpoint", tiny_run, "--output", tmp_path / "file" / "below")
    assert result.exit_code == 2
    assert "--output" in result.stderr
