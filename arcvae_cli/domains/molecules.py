"""The metrics of MOSES for samples of molecules, by RDKit and fcd_torch (Polykovskiy et al. 2020, arXiv:1811.12823)."""

import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arcvae_cli.data.corpora import cache_folder, moses_path
from arcvae_cli.data.files import reading
from arcvae_cli.data.strings import read_lines
from arcvae_cli.domains.base import Note, Table
from arcvae_cli.errors import ArcvaeError
from arcvae_cli.files import atomic_write

Arrays = Mapping[str, NDArray[Any]]
BLOCK = 4096  # fingerprints that are compared at once with as many others: 64 MB a matrix
FCD_SAMPLES = 10_000  # at least: the distance of N training molecules is 0.006 + 1,233 / N

KEYS = ("valid", "unique_1k", "unique_10k", "novel", "diversity", "snn", "fcd")
LABELS = ("valid", "unique of 1,000", "unique of 10,000", "novel", "internal diversity", "SNN", "FCD")
PUBLISHED = {  # means of three runs, from the table in the README of molsets 0.3.1
    "CharRNN": (0.9748, 1.0, 0.9994, 0.8419, 0.8562, 0.6015, 0.0732),
    "VAE": (0.9767, 1.0, 0.9984, 0.6949, 0.8558, 0.6257, 0.099),
    "AAE": (0.9368, 1.0, 0.9973, 0.7931, 0.8557, 0.6081, 0.5555),
    "JTN-VAE": (1.0, 1.0, 0.9996, 0.9143, 0.8551, 0.5477, 0.3954),
    "train": (1.0, 1.0, 1.0, 1.0, 0.8567, 0.6419, 0.008),
}


def moses_table(priors: Mapping[str, str]) -> Table:
    """The table of `moses_scores` for priors by heading, beside the published ones."""
    columns = {**priors, **{name: f"published.{name}" for name in PUBLISHED}}
    rows = [(label, f"moses.{{}}.{key}", ".3f") for label, key in zip(LABELS, KEYS, strict=True)]
    note = f"""SNN: Tanimoto similarity to the nearest test molecule
FCD: Frechet ChemNet distance to the test set, by fcd_torch, of {FCD_SAMPLES:,} valid samples or more
published: Polykovskiy et al. 2020, of 30,000 samples (--samples 30000); train: the training set"""
    return Table("MOSES, beside published models", columns, rows, note)


def moses_scores(samples: Mapping[str, Sequence[str]], device: torch.device, note: Note) -> dict[str, Any]:
    """The metrics of strings by prior, and the published ones. InputError if MOSES is not in the cache."""
    from rdkit import rdBase

    files = [read_lines(moses_path(split), first_column=True) for split in ("train", "test")]
    train, test = ([text for *_, text in lines] for lines in files)
    count, reference = len(next(iter(samples.values()))), None
    note(f"MOSES: comparing {count:,} samples of each prior with {len(test):,} test molecules")
    with torch.autocast(device.type, enabled=False), torch.inference_mode():
        path = cache_folder() / f"moses-test-morgan2-1024-rdkit{rdBase.rdkitVersion}.npz"
        prints = _kept(path, lambda: {"bits": molecules(test)[1]})["bits"]
        if count >= FCD_SAMPLES and find_spec("fcd_torch"):
            path = moses_path("test").with_name("fcd_reference.npz")
            if not path.is_file():
                note("ChemNet activations of the test molecules: once, ten minutes or more without a GPU")
            reference = _kept(path, lambda: chemnet(test, device))
        scores = {name: scores_of(texts, set(train), prints, reference, device) for name, texts in samples.items()}
    return {**scores, "published": {name: dict(zip(KEYS, row, strict=True)) for name, row in PUBLISHED.items()}}


def scores_of(
    texts: Sequence[str], train: Set[str], test: NDArray[np.uint8], reference: Arrays | None, device: torch.device
) -> dict[str, Any]:
    """The metrics of samples; `test`: fingerprints. None for what needs more valid samples, or the `reference`.

    As in molsets: uniqueness of the first valid samples, novelty of the distinct ones, both by canonical SMILES.
    """
    names, prints = molecules(texts)
    scores: dict[str, Any] = {"samples": len(texts), **dict.fromkeys(KEYS), "valid": len(names) / len(texts)}
    if not names:
        return scores
    for key, count in (("unique_1k", 1000), ("unique_10k", 10_000)):
        scores[key] = len(set(names[:count])) / count if len(names) >= count else None
    scores["novel"] = len(set(names) - train) / len(set(names))
    scores["diversity"] = 1.0 - similarities(prints, prints, device)[1]  # of all pairs, each with itself too
    scores["snn"] = similarities(prints, test, device)[0]
    if reference is not None and len(names) >= FCD_SAMPLES:
        own = chemnet(names, device)
        scores["fcd"] = frechet_distance(*(one[key] for one in (own, reference) for key in ("test_mu", "test_sigma")))
    return scores


def molecules(texts: Sequence[str]) -> tuple[list[str], NDArray[np.uint8]]:
    """The n valid ones among SMILES: canonical, and as packed Morgan fingerprints of radius 2, 1,024 bits: (n, 128)."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdFingerprintGenerator

    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    names, prints = list[str](), [np.empty((0, 128), np.uint8)]
    with rdBase.BlockLogs():  # it logs every mistake to stderr
        for text in texts:
            if text and (found := Chem.MolFromSmiles(text)) is not None:  # kept, each would take 30 kB
                names.append(str(Chem.MolToSmiles(found)))
                prints.append(np.packbits(morgan.GetFingerprintAsNumPy(found))[None])
    return names, np.concatenate(prints)


def similarities(some: NDArray[np.uint8], others: NDArray[np.uint8], device: torch.device) -> tuple[float, float]:
    """Means over packed fingerprints (n, bytes) of their Tanimoto similarity to the nearest of others, and to all."""
    nearest = total = 0.0
    for start in range(0, len(some), BLOCK):
        a = _bits(some[start : start + BLOCK], device)
        best = a.new_zeros(len(a))
        for begin in range(0, len(others), BLOCK):
            b = _bits(others[begin : begin + BLOCK], device)
            both = a @ b.T  # whole numbers up to 1,024: exact
            similarity = both / (a.sum(1, keepdim=True) + b.sum(1) - both)
            best = torch.maximum(best, similarity.amax(1))
            total += similarity.sum().item()
        nearest += best.sum().item()
    return nearest / len(some), total / len(some) / len(others)


def _bits(packed: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(packed, axis=1)).to(device, torch.float32)


def chemnet(smiles: Sequence[str], device: torch.device) -> Arrays:
    """Mean (512,) and covariance (512, 512) of the activations of ChemNet (Preuer et al. 2018)."""
    from fcd_torch import FCD

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy.row_stack
        x = FCD(str(device)).get_predictions(smiles).astype(np.float64)
    return {"test_mu": x.mean(axis=0), "test_sigma": np.cov(x, rowvar=False)}


def frechet_distance(
    mean: NDArray[Any], covariance: NDArray[Any], other: NDArray[Any], other_covariance: NDArray[Any]
) -> float:
    """Between two Gaussians (Dowson and Landau 1982), squared as in MOSES."""
    # the trace of the root of the product is the sum of the roots of its eigenvalues, which are not negative
    roots = np.sqrt(np.linalg.eigvals(covariance @ other_covariance).real.clip(0.0)).sum()
    apart = ((mean - other) ** 2).sum()
    return float(apart + np.trace(covariance) + np.trace(other_covariance) - 2.0 * roots)


def _kept(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """Arrays from a file of the cache, or made and written to it where that is possible."""
    if path.is_file():
        with reading(path), np.load(path) as file:
            return {name: file[name] for name in file.files}
    arrays = make()
    with suppress(ArcvaeError), atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return arrays
