"""Earlier names of `arcvae_cli.data.corpora`, until their callers use it."""

from arcvae_cli.data.arrays import Dataset as Arrays
from arcvae_cli.data.corpora import LoadOptions as Reading
from arcvae_cli.data.corpora import cache_path, corpus_name, failures_of, load_arrays
from arcvae_cli.data.files import write_dataset as write_arrays

__all__ = ["Arrays", "Reading", "cache_path", "corpus_name", "failures_of", "load_arrays", "write_arrays"]
