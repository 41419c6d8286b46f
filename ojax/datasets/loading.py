"""Loads a data set by its name."""

import importlib.resources
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from ojax.datasets import checking
from ojax.datasets.checking import DatasetError
from ojax.datasets.dataset import Dataset, Examples
from ojax.datasets.idx import load_idx
from ojax.datasets.prepared import load_prepared
from ojax.paths import expanded, local, user_cache
from ojax.trees import first_line

Arrays = dict[str, np.ndarray]

_WAYS = (
    "Data sets are embedded (ships with ojax), a TFDS name such as mnist (prepared in the folder data_dir), idx:FOLDER "
    "with MNIST-style files, and npz:FILE with arrays x, y, x_test and y_test."
)
_FASHION_CLASSES: tuple[str, ...] = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
# Names of the arrays in .npz files, in small letters: ojax's, those of Keras' mnist.npz, and those of MedMNIST.
_SPELLINGS = (("x", "y", "x_test", "y_test"), ("x_train", "y_train", "x_test", "y_test"), _ARRAYS)


def load(
    name: str | os.PathLike = "embedded",
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    flatten: bool = True,
) -> Dataset:
    """Loads a data set by its name.

    ================================  ================================================  ==============  =================
    name                              source                                            inputs          targets
    ================================  ================================================  ==============  =================
    `embedded`                        Fashion-MNIST, 10,000 training and 2,000 test     8-bit           labels 0 to 9
                                      images, shipped with ojax
    `mnist`, `emnist/balanced`,       TFDS, prepared as array_record or TFRecord        8-bit, 16-bit   its own labels
    `mnist:3.*.*`
    `idx:FOLDER`, `idx:FOLDER/SET`    IDX files, named as MNIST's, gzipped or not       8-bit           labels 0, 1, ...
    `npz:FILE`                        the arrays `x`, `y`, `x_test` and `y_test`        numbers         labels 0, 1, ...,
                                                                                                        or numbers
    ================================  ================================================  ==============  =================

    8-bit images are divided by 255 and 16-bit images by 65,535, unless they are 0 and 1. Other inputs stay as they are,
    with a warning if they are far from [0, 1]. Nothing is ever unpickled. EMNIST, which comes transposed, is turned
    upright.

    IDX files are found in the folder or up to two folders below it. `idx:FOLDER/SET` chooses one of several sets, as
    `idx:FOLDER/emnist-letters`.

    The arrays of an .npz file are those of :meth:`Dataset.from_arrays`: inputs of shape (samples, ...), where images are
    (samples, height, width) or (samples, height, width, channels); whole-number labels of shape (samples,) or (samples, 1).
    They may be called `x_train`, `y_train`, `x_test` and `y_test`, or `train_images`, `train_labels`, `test_images` and
    `test_labels`, too.

    Args:
      name: The name, see above. A path that ends in `.npz`, or a `pathlib.Path`, needs no `npz:` or `idx:`.
      data_dir: Folder with prepared TFDS sets, where a missing one is prepared too; TFDS's default if not given.
      cache_dir: Folder for the decoded images of TFDS sets; `ojax` in the user's cache folder if not given.
      flatten: Whether inputs are vectors, for dense networks. False leaves images as they are, of shape (height, width,
        channels), for convolutional networks.

    Returns:
      Inputs and targets, train and test.

    Raises:
      DatasetError: If there is no such set, it cannot be downloaded, it is damaged, :meth:`Dataset.from_arrays` refuses it,
        or its inputs are no images and `flatten` is False.
    """
    try:
        dataset = _load(full_name(name), None if data_dir is None else expanded(data_dir, remote=True), cache_dir)
        if flatten:
            return _mapped(dataset, lambda inputs: inputs.reshape(len(inputs), -1))
        return _mapped(dataset, checking.images)
    except ValueError as error:
        raise DatasetError(f"Data set {os.fspath(name)!r}: {' '.join(str(error).split()).rstrip('.')}. {_WAYS}") from None


def full_name(name: str | os.PathLike) -> str:
    """Returns the name of a data set with its path expanded, and with `npz:` or `idx:` before a path that lacks it.

    Raises:
      ValueError: If its path is not usable as written.
    """
    text = os.fspath(name)
    for kind in ("npz:", "idx:"):
        if text.startswith(kind):
            return kind + expanded(text.removeprefix(kind))
    path = expanded(text)
    if path.endswith((".npz", ".npy")):
        return f"npz:{path}"
    is_path = isinstance(name, os.PathLike) or path.startswith(("/", "./", "../"))
    return f"{'npz' if Path(path).is_file() else 'idx'}:{path}" if is_path else path


def _load(name: str, data_dir: str | None, cache_dir: str | os.PathLike | None) -> Dataset:
    if name == "embedded":
        return _as_dataset(name, _load_embedded(), _FASHION_CLASSES)
    if name.startswith("idx:"):
        return _as_dataset(name, load_idx(name.removeprefix("idx:")), None)
    if name.startswith("npz:"):
        return Dataset.from_arrays(*_read_npz(Path(name.removeprefix("npz:"))), name=name)
    return _as_dataset(name, *load_prepared(name, data_dir, local(cache_dir) if cache_dir else user_cache(), _read_arrays))


def _as_dataset(name: str, arrays: Arrays, classes: tuple[str, ...] | None) -> Dataset:
    dataset = Dataset.from_arrays(*(arrays[part] for part in _ARRAYS), class_names=classes, name=name)
    checking.require_labels(dataset)
    return dataset


def _mapped(dataset: Dataset, function: Any) -> Dataset:
    train, test = (Examples(function(inputs), targets) for inputs, targets in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test)


def _load_embedded() -> Arrays:
    with importlib.resources.files("ojax.data").joinpath("fashion_mnist.npz").open("rb") as file:
        return _read_arrays(file)


def _read_arrays(file: IO[bytes]) -> Arrays:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in _ARRAYS}


def _read_npz(path: Path) -> list[np.ndarray]:
    """Reads the arrays x, y, x_test and y_test."""
    try:
        if not path.is_file():  # Reading a pipe might never end.
            raise DatasetError(f"there is no file {str(path)!r}.")
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise DatasetError(f"{path} is one array: write four into one file, np.savez(FILE, x=..., y=..., ...).")
            with found:  # NumPy leaves a damaged file open.
                return [found[name] for name in _names_in(path, found.files)]
    except DatasetError:
        raise
    except Exception as error:  # A damaged file can raise almost any error.
        reason = first_line(error)
        if reason.startswith("Object arrays"):
            reason = "Python objects are never unpickled, strings become plain arrays by y.astype(str)"
        elif "pickle" in reason:  # NumPy's message for any other kind of file.
            reason = "it is another kind of file"
        raise DatasetError(f"{path} is damaged, or no .npz file of plain arrays ({reason}).") from None


def _names_in(path: Path, names: list[str]) -> list[str]:
    known = {name.lower(): name for name in names}
    for spelling in _SPELLINGS:
        if all(part in known for part in spelling):
            return [known[part] for part in spelling]
    closest = max(_SPELLINGS, key=lambda spelling: sum(part in known for part in spelling))
    missing = next(part for part in closest if part not in known)
    raise DatasetError(f"{path} has no array {missing}, only {', '.join(names) or 'none'}; it needs {', '.join(closest)}.")
