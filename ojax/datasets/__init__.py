"""Data sets as arrays: your own, the image set that ships with ojax, those of TFDS, folders of IDX files, .npz files."""

from ojax.datasets.dataset import Dataset, DatasetError, Examples, Shared
from ojax.datasets.loading import load

__all__ = ["Dataset", "DatasetError", "Examples", "Shared", "load"]
