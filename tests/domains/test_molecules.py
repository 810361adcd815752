from __future__ import annotations

import gzip
import json
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from arcvae_cli.data.corpora import moses_path
from arcvae_cli.domains import molecules
from arcvae_cli.domains.molecules import (
    frechet_distance,
    moses_scores,
    moses_table,
    scores_of,
    similarities,
)

TEXTS = ["OCC", "CCO", "c1ccccc1O", "C1CC", "CC(=O)Nc1ccc(O)cc1", "CCN", "(incomplete)", "Oc1ccccc1", "CCCCN"]
CPU = torch.device("cpu")


def test_similarities_are_those_of_sets_of_bits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(molecules, "BLOCK", 3)
    bits = np.random.RandomState(0).rand(15, 64) < 0.3
    sets = [{*np.flatnonzero(row)} for row in bits]
    table = np.array([[len(a & b) / len(a | b) for b in sets[:8]] for a in sets[8:]])
    packed = np.packbits(bits, axis=1)
    expected = table.max(axis=1).mean(), table.mean()
    assert similarities(packed[8:], packed[:8], CPU) == pytest.approx(expected)


def test_the_distance_of_gaussians_is_that_of_the_matrix_root():
    random = np.random.RandomState(0)
    (mean, covariance), (other, another) = (
        (x.mean(axis=0), np.cov(x.T)) for x in (random.randn(40, 12), random.randn(9, 12) * 2 + 1)
    )  # the second has no full rank
    root = sqrtm(covariance @ another).real.trace()
    expected = ((mean - other) ** 2).sum() + covariance.trace() + another.trace() - 2 * root
    assert frechet_distance(mean, covariance, other, another) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0.0, abs=1e-9)


def test_samples_are_scored_as_by_moses():
    pytest.importorskip("rdkit")
    from rdkit import Chem, DataStructs
    from rdkit.Chem import AllChem

    test = ["CCO", "Cc1ccccc1O", "CCCN"]
    scores = scores_of(TEXTS, {"CCO", "CCC"}, molecules.molecules(test)[1], None, CPU)
    mols, references = ([m for one in some if (m := Chem.MolFromSmiles(one))] for some in (TEXTS, test))
    prints, known = (
        [AllChem.GetMorganFingerprintAsBitVect(one, 2, 1024) for one in some] for some in (mols, references)
    )
    pairs = [DataStructs.TanimotoSimilarity(a, b) for a in prints for b in prints]
    nearest = [max(DataStructs.TanimotoSimilarity(a, b) for b in known) for a in prints]
    assert scores == {
        **{"samples": 9, "valid": 7 / 9, "unique_1k": None, "unique_10k": None, "fcd": None},
        "novel": 4 / 5,  # all but CCO, of CCO, phenol, paracetamol, CCN and CCCCN
        "diversity": pytest.approx(1 - np.mean(pairs)),
        "snn": pytest.approx(np.mean(nearest)),
    }
    thousand = scores_of(["C1CC", *["C", "CC"] * 600], set(), molecules.molecules(test)[1], None, CPU)
    assert (thousand["unique_1k"], thousand["unique_10k"]) == (0.002, None)
    assert scores_of(["C1CC"], set(), molecules.molecules(test)[1], None, CPU)["snn"] is None


def test_scores_of_each_prior_stand_beside_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    [pytest.importorskip(name) for name in ("rdkit", "fcd_torch")]
    monkeypatch.setenv("ARCVAE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(molecules, "FCD_SAMPLES", 3)
    moses_path("test").parent.mkdir(parents=True)
    for split in ("train", "test"):
        moses_path(split).write_bytes(gzip.compress("\n".join(["SMILES", *TEXTS[:3]]).encode()))
    notes: list[str] = []
    first = moses_scores({"standard": TEXTS, "aggregate": ["CCO"]}, CPU, notes.append)
    assert moses_scores({"standard": TEXTS, "aggregate": ["CCO"]}, CPU, notes.append) == first
    assert len(notes) == 3, "activations of the test set are computed once"
    assert first["standard"]["fcd"] > 0.0 and first["aggregate"]["fcd"] is None
    assert first["published"]["VAE"]["fcd"] == 0.099 and first["aggregate"]["snn"] == 1.0
    document = {"moses": json.loads(json.dumps(first))}
    table = moses_table({"N(0, I)": "standard"})
    keys = [key.format(column).split(".") for _, key, _ in table.rows for column in table.columns.values()]
    assert all(key[-1] in reduce(dict.__getitem__, key[:-1], document) for key in keys)
