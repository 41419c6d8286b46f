"""Data sets as arrays: your own, the image set that ships with ojax, those of TFDS, folders of IDX files, .npz files."""

from ojax.datasets.checking import DatasetError
from ojax.datasets.dataset import Dataset, Examples, Shared, Stream
from ojax.datasets.description import facts
from ojax.datasets.loading import full_name, load

__all__ = ["Dataset", "DatasetError", "Examples", "Shared", "Stream", "facts", "full_name", "load"]
