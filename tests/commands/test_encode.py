from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

import arcvae_cli
from arcvae_cli.grammar import read_grammar

Run = Callable[..., Result]


def test_posteriors_as_arrays_and_as_a_table(
    arcvae: Run, hierarchy_run: Path, arc_splits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    files = [tmp_path / f"codes{suffix}" for suffix in (".npz", ".csv", ".txt")]
    results = [arcvae("encode", "--checkpoint", hierarchy_run, "--output", file) for file in files]
    assert [result.exit_code for result in results] == [0, 0, 2]
    mean, logvar = arcvae_cli.load(hierarchy_run, device="cpu").posterior(arc_splits["test"])
    with np.load(files[0]) as arrays:
        for level in ("global", "local"):
            np.testing.assert_allclose(arrays[f"mean_{level}"], mean[level], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(arrays[f"logvar_{level}"], logvar[level], rtol=1e-4, atol=1e-5)
        column = arrays["mean_local"].reshape(40, -1)[:, 5]
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert len(rows[0]) == 2 * (3 + 2 * 4 * 4)
    assert (column == np.array([row["mean_local_5"] for row in rows], np.float32)).all()


def test_a_traversal_moves_one_dimension_around_an_example(
    arcvae: Run, tiny_run: Path, arc_splits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    options = ("--from", 3, "--dims", 2, "--steps", 5, "--reach", 2, "--output", tmp_path, "--device", "cpu")
    result = arcvae("traverse", "--checkpoint", tiny_run, *options, "--json")
    assert result.exit_code == 0, result.stderr
    document, model = json.loads(result.stdout), arcvae_cli.load(tiny_run, device="cpu")
    with np.load(tmp_path / "traversal.npz") as file:
        grids, codes = (file[name].reshape(2, 5, *file[name].shape[1:]) for name in ("grids", "latents_z"))
    x = arc_splits["test"]
    mean, logvar = model.posterior(x)
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean(axis=0)
    strongest = kl.argsort()[::-1][:2]
    assert [row["dimension"] for row in document["dimensions"]] == strongest.tolist()
    assert [row["kl_nats"] for row in document["dimensions"]] == pytest.approx(kl[strongest], rel=1e-4)
    for row, dim in enumerate(strongest):
        expected = np.tile(mean[3], (5, 1))
        expected[:, dim] += [-2, -1, 0, 1, 2]
        np.testing.assert_allclose(codes[row], expected, rtol=1e-4, atol=1e-5)
        assert (grids[row, 2] == model.reconstruct(x[3:4])[0]).all()
    assert (tmp_path / "traversal.png").stat().st_size > 0


def test_strings_along_a_dimension_are_text_and_maps_move_whole_channels(
    arcvae: Run, equations_run: Path, hierarchy_run: Path, tmp_path: Path
) -> None:
    options = ("--dims", 1, "--steps", 3, "--output", tmp_path)
    result = arcvae("traverse", "--checkpoint", equations_run, *options)
    with np.load(tmp_path / "traversal.npz") as file:
        texts = [read_grammar("equations").write(row) for row in file["ids"].tolist()]
    lines = (tmp_path / "traversal.txt").read_text().splitlines()
    assert [line[16:] for line in lines] == texts and result.stdout.splitlines()[:3] == lines
    arcvae("traverse", "--checkpoint", hierarchy_run, "--dims", 5, "--steps", 3, "--output", tmp_path)
    found = json.loads((tmp_path / "traversal.json").read_text())["dimensions"]
    model = arcvae_cli.load(hierarchy_run, device="cpu").model
    noise = {name: torch.zeros(1, *shape) for name, shape in model.level_shapes.items()}
    place = next(place for place, row in enumerate(found) if row["level"] == "local")
    noise["local"][:, found[place]["dimension"]] -= 3
    with np.load(tmp_path / "traversal.npz") as file, torch.no_grad():
        expected = model.prior(noise)["local"].numpy()[0]
        np.testing.assert_allclose(file["latents_local"][3 * place], expected, rtol=1e-4, atol=1e-5)
