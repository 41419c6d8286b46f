"""Data sets as arrays: your own, the image set that ships with ojax, those of TFDS, and folders of IDX files."""

import contextlib
import gzip
import hashlib
import importlib.resources
import importlib.util
import logging
import math
import os
import re
import string
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from jaxtyping import Num, PyTree
from numpy.typing import ArrayLike

from ojax.trees import first_line, named_leaves

Arrays = dict[str, np.ndarray]

_THREE_WAYS = (
    "Data come from --dataset=embedded (ships with ojax), from a TFDS name with --data_dir=FOLDER where it is prepared, "
    "or from --dataset=idx:FOLDER with MNIST-style files."
)
_FASHION_CLASSES: tuple[str, ...] = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
_EMNIST_MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
_EMNIST_CLASSES = {
    "balanced": _EMNIST_MERGED,
    "bymerge": _EMNIST_MERGED,
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "digits": string.digits,
    "mnist": string.digits,
}
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class DatasetError(ValueError):
    """A data set that is not there, cannot be had or is damaged; the message is one line that says what to do."""


class Examples(NamedTuple):
    """Inputs and what is wanted of them.

    Attributes:
      inputs: Shape (examples, ...); images are flattened to (examples, pixels), float32 in [0, 1], row by row, with the
        colours of a pixel side by side.
      targets: Shape (examples, ...); labels are int32 from 0.
    """

    inputs: Num[np.ndarray, "examples ..."]
    targets: Num[np.ndarray, "examples ..."]


class Dataset(NamedTuple):
    """Training and test data for :func:`ojax.online.train`.

    Attributes:
      train: The training samples: a pytree of arrays with a leading axis, :class:`Examples` say, or a stream in its order.
      test: What the learner is evaluated on, any pytree of arrays.
      class_names: A name for each label, where there are labels.
      name: The name by which it was loaded.
    """

    train: PyTree
    test: PyTree
    class_names: tuple[str, ...] = ()
    name: str = "arrays"

    @property
    def num_train(self) -> int:
        """Number of training samples.

        Raises:
          ValueError: If there are none, or the arrays disagree.
        """
        lengths = {name: len(leaf) if np.ndim(leaf) else 0 for name, leaf in named_leaves(self.train)}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise ValueError(f"All training arrays need the same number of samples, at least 1; they have {lengths}.")
        return min(lengths.values())

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        x_test: ArrayLike,
        y_test: ArrayLike,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """A data set of inputs and targets, checked.

        Args:
          x: Training inputs, shape (examples, ...); they become float32.
          y: Training targets: labels if they are whole numbers, from 0; else numbers to predict, which become float32.
          x_test: Test inputs, of the same shape but for their number.
          y_test: Test targets, likewise.
          class_names: A name for each label; the numbers themselves by default. Only for labels.
          name: A name for the set.

        Raises:
          DatasetError: If lengths, shapes or types do not go together, a number is not finite, or a label has no class.
        """
        inputs, targets = (_checked_pair(what, *pair) for what, pair in (("x", (x, x_test)), ("y", (y, y_test))))
        for part, some, wanted in zip(("training", "test"), inputs, targets, strict=True):
            if len(some) != len(wanted) or not len(some):
                raise DatasetError(f"The {part} data have {len(some)} inputs and {len(wanted)} targets.")
        labels = [array for array in targets if array.dtype == np.int32]
        if labels:
            lowest, highest = min(map(np.min, labels)), max(map(np.max, labels))
            num_classes = highest + 1 if class_names is None else len(class_names)
            if lowest < 0 or highest >= num_classes:
                raise DatasetError(f"Labels must be from 0 to {num_classes - 1}; these are from {lowest} to {highest}.")
            class_names = class_names or tuple(map(str, range(num_classes)))
        elif class_names is not None:
            raise DatasetError(f"class_names are for whole-number labels, and the targets are {np.asarray(y).dtype}.")
        train, test = (Examples(some, wanted) for some, wanted in zip(inputs, targets, strict=True))
        return cls(train, test, tuple(class_names or ()), name)


def load(
    name: str = "embedded",
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Loads a data set by its name.

    Args:
      name: `embedded`, 10,000 training and 2,000 test images of Fashion-MNIST that ship with ojax; a TFDS
        image-classification set (`mnist`, `fashion_mnist`, `kmnist`, `emnist/balanced`); or `idx:FOLDER`, a folder of
        IDX files named as MNIST's, gzipped or not.
      data_dir: Folder with prepared TFDS sets, where a missing one is prepared too; TFDS's default if not given.
      cache_dir: Folder for the decoded images of TFDS sets; `ojax` in the user's cache folder if not given.

    Returns:
      Images and labels, train and test. EMNIST, which comes transposed, is turned upright.

    Raises:
      DatasetError: If there is no such set, it cannot be downloaded, or it is damaged.
    """
    try:
        if name == "embedded":
            arrays, classes = _load_embedded(), _FASHION_CLASSES
        elif name.startswith("idx:"):
            arrays, classes = _load_idx(name.removeprefix("idx:")), ()
        else:
            arrays, classes = _load_tfds(name, data_dir, Path(cache_dir) if cache_dir else _default_cache_dir())
        return _as_dataset(name, arrays, classes)
    except DatasetError as error:
        raise DatasetError(f"Data set {name!r}: {' '.join(str(error).split())} {_THREE_WAYS}") from None


def _checked_pair(what: str, *pair: ArrayLike) -> list[np.ndarray]:
    """Training and test arrays as float32, or whole-number targets as int32."""
    arrays = [np.asarray(array) for array in pair]
    for name, array in zip((what, f"{what}_test"), arrays, strict=True):
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise DatasetError(f"{name} must be an array of numbers, one row an example; it is {array.dtype}{array.shape}.")
    if arrays[0].shape[1:] != arrays[1].shape[1:]:
        raise DatasetError(f"{what} and {what}_test have examples of different shapes, {[a.shape[1:] for a in arrays]}.")
    whole = what == "y" and all(array.dtype.kind in "iu" for array in arrays)
    if what == "y" and not whole and any(array.dtype.kind in "iu" for array in arrays):
        raise DatasetError(f"y and y_test must both be labels or both be fractions; they are {[a.dtype for a in arrays]}.")
    for name, array in zip((what, f"{what}_test"), arrays, strict=True):
        if not np.isfinite(array).all():
            where = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
            raise DatasetError(f"{name} is not finite at {where}: {array[tuple(where)]}.")
        if whole and array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
            raise DatasetError(f"{name} has labels that do not fit into 32 bits.")
    return [array.astype(np.int32 if whole else np.float32) for array in arrays]


def _as_dataset(name: str, arrays: Arrays, classes: tuple[str, ...]) -> Dataset:
    """Checks 8-bit images and labels, and scales and flattens the images."""
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

    def scale(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32) / 255

    train, test = (
        Examples(scale(arrays[f"{split}_images"]), arrays[f"{split}_labels"].astype(np.int32))
        for split in ("train", "test")
    )
    return Dataset(train, test, classes or tuple(map(str, range(num_classes))), name)


def _load_embedded() -> Arrays:
    with importlib.resources.files("ojax.data").joinpath("fashion_mnist.npz").open("rb") as file:
        return _read_arrays(file)


def _read_arrays(file: Any) -> Arrays:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in _ARRAYS}


# IDX: a magic number (0, 0, type, dimensions), the dimensions as big-endian 32-bit integers, and the bytes.


def _load_idx(folder: str) -> Arrays:
    if not folder:
        raise DatasetError("no folder is named after idx:.")
    arrays: Arrays = {}
    for split, spelling in (("train", "train"), ("test", "(t10k|test)")):
        for kind, dimensions in (("images", 3), ("labels", 1)):
            path = _find_idx(Path(folder), spelling, kind)
            array = _read_idx(path, dimensions)
            if dimensions == 3 and path.name.startswith("emnist"):
                array = array.swapaxes(1, 2)
            arrays[f"{split}_{kind}"] = array
    return arrays


def _find_idx(folder: Path, spelling: str, kind: str) -> Path:
    pattern = re.compile(rf"(.*-)?{spelling}-{kind}[-.]idx\d-ubyte(\.gz)?")
    try:
        found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    except (OSError, ValueError) as error:
        raise DatasetError(f"the folder {str(folder)!r} cannot be read ({first_line(error)}).") from None
    if len(found) != 1:
        what = "several files" if found else "no file"
        split = "train" if spelling == "train" else "t10k"
        raise DatasetError(f"{what} like {split}-{kind}-idx{3 if kind == 'images' else 1}-ubyte[.gz] in {folder}.")
    return found[0]


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    try:
        if not path.is_file():  # Reading a pipe might never end.
            raise DatasetError(f"{path} is no regular file.")
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
                raise DatasetError(f"{path} is no IDX file of {dimensions}-dimensional unsigned bytes.")
            shape = tuple(int(size) for size in np.frombuffer(header[4:], ">u4"))
            if 5 * math.prod(shape) > psutil.virtual_memory().total:  # As bytes and as floats.
                raise DatasetError(f"{path} is damaged or too large: its header promises {shape}.")
            content = _read_at_most(file, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is damaged or cannot be read ({first_line(error)}).") from None
    if len(content) != math.prod(shape):
        fault = "truncated" if len(content) < math.prod(shape) else "longer than its header says"
        raise DatasetError(f"{path} is {fault}: its header promises {shape}.")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_at_most(file: Any, size: int) -> bytes:
    """Reads piece by piece: a damaged header may promise more bytes than there is memory."""
    pieces = []
    while size > 0 and (piece := file.read(min(size, 1 << 24))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


# TFDS, with the decoded images cached: 60,000 PNGs take seconds to decode and one to read back.


def _load_tfds(name: str, data_dir: str | os.PathLike | None, cache_dir: Path) -> tuple[Arrays, tuple[str, ...]]:
    with _quiet():
        builder = _prepared_builder(name, data_dir)
        features = builder.info.features
        if not {"image", "label"} <= set(features or ()) or not hasattr(features["label"], "names"):
            raise DatasetError("it is no image-classification set: it has no features `image` and `label`.")
        if not {"train", "test"} <= set(builder.info.splits):
            raise DatasetError(f"it has no train and test splits, only {', '.join(builder.info.splits) or 'none'}.")
        classes = tuple(features["label"].names)
        emnist = builder.name == "emnist"
        if emnist and builder.builder_config is not None:
            classes = tuple(_EMNIST_CLASSES.get(builder.builder_config.name, classes))
        cache = cache_dir / f"{name.replace('/', '-')}-{_fingerprint(Path(builder.data_path))}.npz"
        arrays = _read_cache(cache)
        if arrays is None:
            arrays = {}
            for split in ("train", "test"):
                images, labels = _decode(builder, split)
                arrays[f"{split}_images"] = images.swapaxes(1, 2) if emnist else images
                arrays[f"{split}_labels"] = labels
            _write_cache(cache, arrays)
    return arrays, classes


def _prepared_builder(name: str, data_dir: str | os.PathLike | None) -> Any:
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?", name):
        raise DatasetError("that is no name of a TFDS set.")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetError(f"TFDS is not installed ({error}): pip install 'ojax[tfds]'.") from None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS has no common error for names, configurations and damaged folders.
        raise DatasetError(f"TFDS has no such set, or it is damaged: {first_line(error)}") from None
    if builder.info.splits:
        return builder
    if importlib.util.find_spec("tensorflow") is None:
        raise DatasetError(
            f"it is not prepared in {builder.data_dir_root}, and TFDS needs TensorFlow to download and prepare it "
            "(pip install tensorflow)."
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise DatasetError(f"it cannot be downloaded and prepared: {first_line(error)}") from None
    return builder


def _decode(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        source = builder.as_data_source(split=split)
        examples = source.__getitems__(range(len(source)))  # One read of the file, not one an example.
    except Exception as error:  # What a damaged file raises depends on where it is damaged.
        raise DatasetError(f"its {split} split in {builder.data_path} cannot be read: {first_line(error)}") from None
    images = [example["image"] for example in examples]
    if not images:
        raise DatasetError(f"its {split} split is empty.")
    if len({image.shape for image in images}) > 1 or images[0].dtype != np.uint8:
        raise DatasetError("its images are not 8-bit images of one size.")
    return np.stack(images), np.array([example["label"] for example in examples], np.int64)


def _fingerprint(folder: Path) -> str:
    """Changes whenever the prepared files do."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    try:
        for path in sorted(folder.iterdir()):
            status = path.stat()
            digest.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns};".encode())
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read ({first_line(error)}).") from None
    return digest.hexdigest()[:16]


def _default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ojax"


def _read_cache(path: Path) -> Arrays | None:
    # A cache that is missing or damaged is made anew.
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return _read_arrays(path)
    return None


def _write_cache(path: Path, arrays: Arrays) -> None:
    # Without a cache the next start decodes again, which is no reason to fail.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=".npz")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's remarks (no OpenCV, where it read what) from a user who asked for none."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
