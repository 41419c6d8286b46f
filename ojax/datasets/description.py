"""Describes a data set, as numbers and as one line."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ojax.datasets.dataset import Dataset, Examples, Stream


def facts(dataset: Dataset) -> dict[str, Any]:
    """Returns the facts of a data set: name, counts of samples, shape, classes; for arrays also range and counts per class.

    The range is the inputs' least and largest number, training and test together. The counts are those of the rarest and of
    the most frequent class in the training data. For a stream, both describe the data from which it is made.
    """
    is_stream = isinstance(dataset.train, Stream)
    train = dataset.train.data if is_stream else dataset.train
    arrays, test = jax.tree.leaves(train), jax.tree.leaves(dataset.test)
    found: dict[str, Any] = {
        "name": dataset.name,
        "train": (len(arrays[0]) if arrays else 0) if is_stream else dataset.num_train,
        "test": len(test[0]) if test else 0,
        "shape": list(np.shape(arrays[0])[1:]) if arrays else [],
        "classes": len(dataset.class_names),
    }
    if is_stream:
        found["stream"] = True
    if isinstance(train, Examples) and isinstance(dataset.test, Examples):
        parts = [np.asarray(part.inputs) for part in (train, dataset.test)]
        found["range"] = [float(end([end(part) for part in parts if part.size])) for end in (np.min, np.max)]
        if dataset.class_names:
            counts = np.bincount(np.asarray(train.targets), minlength=len(dataset.class_names))
            found["samples_per_class"] = [int(np.min(counts)), int(np.max(counts))]
    return found


def described(found: Mapping[str, Any]) -> str:
    """Returns the facts of a data set as one line."""
    made = "a stream made of " * found.get("stream", False)
    words = [f"{found['name']}: {made}{found['train']:,} training and {found['test']:,} test samples"]
    if "range" in found:
        low, high = found["range"]
        shape = " x ".join(map(str, found["shape"])) or "one number"
        words[0] += f" of shape {shape}"
        words.append(f"from {low:g} to {high:g}")
    if "samples_per_class" in found:
        least, most = found["samples_per_class"]
        counts = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        words.append(f"in {found['classes']} classes of {counts} training samples")
    return ", ".join(words)
