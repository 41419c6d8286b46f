"""Makes `fashion_mnist.npz`, the embedded data set, from Fashion-MNIST as TFDS prepares it.

    python ojax/data/make_fashion_mnist.py --data_dir=FOLDER_WITH_PREPARED_TFDS_SETS

It draws 1,000 training and 200 test images of each of the 10 classes with a fixed seed. The same source gives the same
file, byte for byte.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with TFDS's prepared fashion_mnist; TFDS's default if not given.")
_OUTPUT = flags.DEFINE_string("output", str(Path(__file__).with_name("fashion_mnist.npz")), "File to write.")
_PER_CLASS = {"train": 1000, "test": 200}


def balanced_subset(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the indices of `per_class` random examples of each class, shuffled."""
    by_class = [rng.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in np.unique(labels)]
    return rng.permutation(np.concatenate(by_class))


def main(_: list[str]) -> None:
    """Writes the file."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, per_class in _PER_CLASS.items():
        examples = list(tfds.data_source("fashion_mnist", split=split, data_dir=_DATA_DIR.value))
        labels = np.array([example["label"] for example in examples], np.uint8)
        chosen = balanced_subset(labels, per_class, rng)
        arrays[f"{split}_images"] = np.stack([examples[index]["image"][..., 0] for index in chosen])
        arrays[f"{split}_labels"] = labels[chosen]
    np.savez_compressed(_OUTPUT.value, **arrays)


if __name__ == "__main__":
    app.run(main)
