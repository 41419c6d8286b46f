"""Image-classification sets as arrays: the one that ships with ojax, those of TFDS, and folders of IDX files."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from jaxtyping import Float, Int

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


class Dataset(NamedTuple):
    """A classification set as arrays.

    Attributes:
      name: The name by which it was loaded.
      train_images: Shape (train, pixels), float32 in [0, 1]: row by row, colours of a pixel side by side.
      train_labels: Shape (train,), int32 from 0.
      test_images: Shape (test, pixels), as `train_images`.
      test_labels: Shape (test,), as `train_labels`.
      class_names: A name for each label.
    """

    name: str
    train_images: Float[np.ndarray, "train pixels"]
    train_labels: Int[np.ndarray, "train"]
    test_images: Float[np.ndarray, "test pixels"]
    test_labels: Int[np.ndarray, "test"]
    class_names: tuple[str, ...]


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

    return Dataset(
        name,
        scale(arrays["train_images"]),
        arrays["train_labels"].astype(np.int32),
        scale(arrays["test_images"]),
        arrays["test_labels"].astype(np.int32),
        classes or tuple(map(str, range(num_classes))),
    )


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
        raise DatasetError(f"the folder {str(folder)!r} cannot be read ({_reason(error)}).") from None
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
        raise DatasetError(f"{path} is damaged or cannot be read ({_reason(error)}).") from None
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
        raise DatasetError(f"TFDS has no such set, or it is damaged: {_reason(error)}") from None
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
        raise DatasetError(f"it cannot be downloaded and prepared: {_reason(error)}") from None
    return builder


def _decode(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        source = builder.as_data_source(split=split)
        examples = source.__getitems__(range(len(source)))  # One read of the file, not one an example.
    except Exception as error:  # What a damaged file raises depends on where it is damaged.
        raise DatasetError(f"its {split} split in {builder.data_path} cannot be read: {_reason(error)}") from None
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
        raise DatasetError(f"{folder} cannot be read ({_reason(error)}).") from None
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


def _reason(error: BaseException) -> str:
    """The first line of an error; TFDS's go on for pages."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
