from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from arcvae_cli.data.corpora import moses_path
from arcvae_cli.domains import molecules
from arcvae_cli.domains.molecules import PUBLISHED, moses_scores, similarities
from arcvae_cli.domains.strings import MOSES_SCORES

CPU = torch.device("cpu")
TEXTS = ["OCC", "CCO", "c1ccccc1O", "C1CC", "CC(=O)Nc1ccc(O)cc1", "CCN", "(incomplete)", "Oc1ccccc1", "CCCCN", ""]
SETS = {"train": ["CCO", "CCC"], "test": ["CCO", "Cc1ccccc1O", "CCCN"]}


@pytest.fixture(autouse=True)
def moses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with a small MOSES."""
    monkeypatch.setenv("ARCVAE_CACHE_DIR", str(tmp_path))
    moses_path("test").parent.mkdir(parents=True)
    for split, texts in SETS.items():
        moses_path(split).write_bytes(gzip.compress("\n".join(["SMILES", *texts]).encode()))


def test_similarities_are_those_of_sets_of_bits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(molecules, "BLOCK", 3)
    bits = np.random.RandomState(0).rand(15, 64) < 0.3
    sets = [{*np.flatnonzero(row)} for row in bits]
    table = np.array([[len(a & b) / len(a | b) for b in sets[:8]] for a in sets[8:]])
    packed = np.packbits(bits, axis=1)
    expected = table.max(axis=1).mean(), table.mean()
    assert similarities(packed[8:], packed[:8], CPU) == pytest.approx(expected)


def test_samples_are_scored_by_the_definitions_of_moses(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("rdkit")
    from rdkit.Chem import MolFromSmiles, rdFingerprintGenerator

    monkeypatch.setattr(molecules, "find_spec", lambda name: None)
    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    found, tested = (
        [{*morgan.GetFingerprint(one).GetOnBits()} for text in texts if text and (one := MolFromSmiles(text))]
        for texts in (TEXTS, SETS["test"])
    )
    nearest = [max(len(a & b) / len(a | b) for b in tested) for a in found]
    pairs = [len(a & b) / len(a | b) for a in found for b in found]
    samples = {"standard": TEXTS, "aggregate": ["C1CC", *["C", "CC"] * 600], "none": ["C1CC"]}
    scores = moses_scores(samples, CPU, lambda _: None)
    assert scores["standard"] == {
        **{"samples": 10, "valid": 7 / 10, "unique_1k": None, "unique_10k": None, "fcd": None},
        "novel": 4 / 5,  # all but CCO, of CCO, phenol, paracetamol, CCN and CCCCN
        "diversity": pytest.approx(1 - np.mean(pairs)),
        "snn": pytest.approx(np.mean(nearest)),
    }
    assert (scores["aggregate"]["unique_1k"], scores["aggregate"]["unique_10k"]) == (0.002, None)
    assert (scores["none"]["valid"], scores["none"]["snn"]) == (0.0, None)
    report = {**scores, "published": PUBLISHED}
    assert all(key.split(".")[-1] in report["standard"].keys() & PUBLISHED["VAE"] for _, key, _ in MOSES_SCORES)
    moses_path("test").write_bytes(moses_path("train").read_bytes())
    assert moses_scores(samples, CPU, lambda _: None) == scores, "fingerprints of the test set are kept"


@pytest.mark.filterwarnings("ignore:.row_stack:DeprecationWarning")
def test_the_distance_is_that_of_two_gaussians(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("rdkit")
    fcd_torch = pytest.importorskip("fcd_torch")
    monkeypatch.setattr(molecules, "FCD_SAMPLES", 7)
    notes: list[str] = []
    scores = [moses_scores({"standard": TEXTS, "few": ["C", "CC"]}, CPU, notes.append) for _ in range(2)]
    assert scores[0] == scores[1] and scores[0]["few"]["fcd"] is None
    assert sum("activations" in note for note in notes) == 1, "those of the test set are computed once"
    own, other = (fcd_torch.FCD().get_predictions(some) for some in (molecules.molecules(TEXTS)[0], SETS["test"]))
    apart, (first, second) = own.mean(axis=0) - other.mean(axis=0), (np.cov(x, rowvar=False) for x in (own, other))
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0.0)).sum()
    expected = apart @ apart + first.trace() + second.trace() - 2 * roots  # Dowson and Landau 1982
    assert scores[0]["standard"]["fcd"] == pytest.approx(expected, abs=1e-3)
