"""Loads a data set by its name."""

import importlib.resources
import os
from pathlib import Path
from typing import IO

import numpy as np

from ojax.datasets.dataset import Dataset, DatasetError, Examples
from ojax.datasets.idx import load_idx
from ojax.datasets.prepared import default_cache_dir, load_prepared
from ojax.trees import first_line

Arrays = dict[str, np.ndarray]

_WAYS = (
    "Data come from --dataset=embedded (ships with ojax), from a TFDS name with --data_dir=FOLDER where it is prepared, "
    "from --dataset=idx:FOLDER with MNIST-style files, or from --dataset=npz:FILE with arrays x, y, x_test and y_test."
)
_FASHION_CLASSES: tuple[str, ...] = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def load(
    name: str = "embedded",
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    flatten: bool = True,
) -> Dataset:
    """Loads a data set by its name.

    Args:
      name: `embedded`, 10,000 training and 2,000 test images of Fashion-MNIST that ship with ojax; a TFDS
        image-classification set (`mnist`, `fashion_mnist`, `kmnist`, `emnist/balanced`); `idx:FOLDER`, a folder of IDX
        files named as MNIST's, gzipped or not; or `npz:FILE`, an .npz file with arrays `x`, `y`, `x_test` and `y_test`, as
        for :meth:`Dataset.from_arrays`. Nothing is ever unpickled.
      data_dir: Folder with prepared TFDS sets, where a missing one is prepared too; TFDS's default if not given.
      cache_dir: Folder for the decoded images of TFDS sets; `ojax` in the user's cache folder if not given.
      flatten: Whether inputs are vectors, for dense networks; False leaves images as they are, of shape (height, width,
        channels), for convolutional ones.

    Returns:
      Inputs and targets, train and test. EMNIST, which comes transposed, is turned upright.

    Raises:
      DatasetError: If there is no such set, it cannot be downloaded, it is damaged, or its inputs should stay images and
        are none.
    """
    try:
        if name == "embedded":
            arrays, classes = _load_embedded(), _FASHION_CLASSES
        elif name.startswith("idx:"):
            arrays, classes = load_idx(name.removeprefix("idx:")), ()
        elif name.startswith("npz:"):
            return _shaped(_load_npz(name), flatten)
        else:
            arrays, classes = load_prepared(
                name, data_dir, Path(cache_dir) if cache_dir else default_cache_dir(), _read_arrays
            )
        return _shaped(_as_dataset(name, arrays, classes), flatten)
    except DatasetError as error:
        raise DatasetError(f"Data set {name!r}: {' '.join(str(error).split())} {_WAYS}") from None


def _as_dataset(name: str, arrays: Arrays, classes: tuple[str, ...]) -> Dataset:
    """Checks 8-bit images and labels, and scales the images."""
    shapes = {arrays[f"{split}_images"].shape[1:] for split in ("train", "test")}
    if len(shapes) != 1:
        raise DatasetError(f"the training and test images have different shapes, {sorted(shapes)}.")
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if len(images) != len(labels) or images.size == 0:
            raise DatasetError(f"its {split} part has {len(images)} images and {len(labels)} labels.")
    num_classes = 1 + max(int(arrays["train_labels"].max()), int(arrays["test_labels"].max()))
    if classes and num_classes > len(classes):
        raise DatasetError(f"it has a label {num_classes - 1}, but only {len(classes)} classes.")
    if num_classes < 2:
        raise DatasetError("all of its labels are 0; a classifier needs at least two classes.")

    train, test = (
        Examples(arrays[f"{split}_images"].astype(np.float32) / 255, arrays[f"{split}_labels"].astype(np.int32))
        for split in ("train", "test")
    )
    return Dataset(train, test, classes or tuple(map(str, range(num_classes))), name)


def _shaped(dataset: Dataset, flatten: bool) -> Dataset:
    """The same with vectors for inputs, or with images that have channels."""

    def shaped(inputs: np.ndarray) -> np.ndarray:
        if flatten:
            return inputs.reshape(len(inputs), -1)
        if inputs.ndim not in (3, 4):
            raise DatasetError(
                f"its inputs have shape {inputs.shape[1:]}; a convolutional network needs images, of shape (height, width) "
                "or (height, width, channels)."
            )
        return inputs.reshape(*inputs.shape[:3], -1)

    train, test = (Examples(shaped(inputs), targets) for inputs, targets in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test)


def _load_embedded() -> Arrays:
    with importlib.resources.files("ojax.data").joinpath("fashion_mnist.npz").open("rb") as file:
        return _read_arrays(file)


def _read_arrays(file: IO[bytes]) -> Arrays:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in _ARRAYS}


def _load_npz(name: str) -> Dataset:
    path = Path(name.removeprefix("npz:"))
    wanted = ("x", "y", "x_test", "y_test")
    try:
        if not path.is_file():  # Reading a pipe might never end.
            raise DatasetError(f"there is no file {str(path)!r}.")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:  # NumPy leaves a damaged one open.
            if missing := [part for part in wanted if part not in found]:
                raise DatasetError(f"{path} has no array {missing[0]}, only {', '.join(found) or 'none'}.")
            arrays = [found[part] for part in wanted]
    except DatasetError:
        raise
    except Exception as error:  # What a damaged file raises depends on where it is damaged; a header may claim anything.
        raise DatasetError(f"{path} is damaged, or no .npz file of plain arrays ({first_line(error)}).") from None
    return Dataset.from_arrays(*arrays, name=name)
