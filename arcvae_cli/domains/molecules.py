"""The metrics of MOSES for samples of molecules, by RDKit and fcd_torch (Polykovskiy et al. 2020, arXiv:1811.12823)."""

import warnings
from collections.abc import Callable, Mapping, Sequence
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
from arcvae_cli.domains.base import Note
from arcvae_cli.errors import ArcvaeError
from arcvae_cli.files import atomic_write

Arrays = dict[str, NDArray[Any]]
Prints = NDArray[np.uint8]  # (n, 128) packed fingerprints
BLOCK = 4096  # fingerprints that are compared at once with as many others: 64 MB a matrix
FCD_SAMPLES = 10_000  # at least: the distance of N training molecules is 0.006 + 1,233 / N
LABELS = {"valid": "valid", "unique_1k": "unique, 1,000", "unique_10k": "unique, 10,000", "novel": "novel"}
LABELS |= {"diversity": "IntDiv", "snn": "SNN", "fcd": "FCD"}  # of the metrics
PUBLISHED = {  # means of three runs, from the README of molsets 0.3.1
    "CharRNN": dict(zip(LABELS, (0.9748, 1.0, 0.9994, 0.8419, 0.8562, 0.6015, 0.0732), strict=True)),
    "VAE": dict(zip(LABELS, (0.9767, 1.0, 0.9984, 0.6949, 0.8558, 0.6257, 0.099), strict=True)),
    "AAE": dict(zip(LABELS, (0.9368, 1.0, 0.9973, 0.7931, 0.8557, 0.6081, 0.5555), strict=True)),
    "JTN-VAE": dict(zip(LABELS, (1.0, 1.0, 0.9996, 0.9143, 0.8551, 0.5477, 0.3954), strict=True)),
    "train": dict(zip(LABELS, (1.0, 1.0, 1.0, 1.0, 0.8567, 0.6419, 0.008), strict=True)),
}


def moses_scores(samples: Mapping[str, Sequence[str]], device: torch.device, note: Note) -> dict[str, Any]:
    """The metrics of strings by prior, as in molsets, None where too few are valid. InputError without its files."""
    from rdkit import rdBase

    train, test = ([text for *_, text in read_lines(moses_path(split), True)] for split in ("train", "test"))
    note(f"MOSES: comparing {len(next(iter(samples.values()))):,} samples with {len(test):,} test molecules")
    path, known = cache_folder() / f"moses-test-morgan2-1024-rdkit{rdBase.rdkitVersion}.npz", set(train)
    prints, found = _cached(path, lambda: {"bits": molecules(test)[1]})["bits"], dict[str, Any]()
    with torch.autocast(device.type, enabled=False):
        for prior, texts in samples.items():
            names, own = molecules(texts)
            scores = found[prior] = {"samples": len(texts), **dict.fromkeys(LABELS), "valid": len(names) / len(texts)}
            for key, count in (("unique_1k", 1000), ("unique_10k", 10_000)):
                scores[key] = len(set(names[:count])) / count if len(names) >= count else None
            if names:
                scores["novel"] = len(set(names) - known) / len(set(names))
                scores["diversity"] = 1.0 - similarities(own, own, device)[1]  # of all pairs, also each with itself
                scores["snn"] = similarities(own, prints, device)[0]
            if len(names) >= FCD_SAMPLES and find_spec("fcd_torch"):
                scores["fcd"] = fcd(names, test, device, note)
    return found


def fcd(names: Sequence[str], test: Sequence[str], device: torch.device, note: Note) -> float:
    """The Frechet ChemNet distance (Preuer et al. 2018) of SMILES to the test molecules."""
    from fcd_torch import FCD

    distance, path = FCD(str(device)), moses_path("test").with_name("fcd_reference.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy.row_stack
        if not path.is_file():
            note("ChemNet activations of the test molecules: once, ten minutes or more without a GPU")
        kept = _cached(path, lambda: {f"test_{key}": one for key, one in distance.precalc(test).items()})
        return float(distance(gen=names, pref={"mu": kept["test_mu"], "sigma": kept["test_sigma"]}))


def molecules(texts: Sequence[str]) -> tuple[list[str], Prints]:
    """The valid ones among SMILES: canonical, and as packed Morgan fingerprints of radius 2 and 1,024 bits."""
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


def similarities(some: Prints, others: Prints, device: torch.device) -> tuple[float, float]:
    """Means over fingerprints of their Tanimoto similarity to the nearest of others, and to all."""
    nearest = total = 0.0
    for start in range(0, len(some), BLOCK):
        a = torch.from_numpy(np.unpackbits(some[start : start + BLOCK], axis=1)).to(device, torch.float32)
        best = a.new_zeros(len(a))
        for begin in range(0, len(others), BLOCK):
            b = torch.from_numpy(np.unpackbits(others[begin : begin + BLOCK], axis=1)).to(device, torch.float32)
            both = a @ b.T  # whole numbers up to 1,024: exact
            similarity = both / (a.sum(1, keepdim=True) + b.sum(1) - both)
            best = torch.maximum(best, similarity.amax(1))
            total += similarity.sum().item()
        nearest += best.sum().item()
    return nearest / len(some), total / len(some) / len(others)


def _cached(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """Arrays from a file of the cache, or made and written to it where that is possible."""
    if path.is_file():
        with reading(path), np.load(path) as file:
            return dict(file)
    arrays = make()
    with suppress(ArcvaeError), atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return arrays
