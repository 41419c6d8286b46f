"""Image-classification sets of TensorFlow Datasets.

The decoded images are cached: 60,000 PNGs take seconds to decode and one to read back.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import string
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ojax.datasets.dataset import DatasetError
from ojax.files import replacing
from ojax.trees import first_line

Arrays = dict[str, np.ndarray]

_EMNIST_MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
_EMNIST_CLASSES = {
    "balanced": _EMNIST_MERGED,
    "bymerge": _EMNIST_MERGED,
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "digits": string.digits,
    "mnist": string.digits,
}


def load_prepared(
    name: str, data_dir: str | os.PathLike | None, cache_dir: Path, read: Callable[[Any], Arrays]
) -> tuple[Arrays, tuple[str, ...]]:
    """The images and labels of a set as unsigned bytes, and the names of its classes; `read` reads a cached file."""
    with _quiet():
        builder = _prepared_builder(name, data_dir)
        features = builder.info.features
        if not {"image", "label"} <= set(features or ()) or not hasattr(features["label"], "names"):
            raise DatasetError("it is not an image-classification set: it has no features `image` and `label`.")
        if not {"train", "test"} <= set(builder.info.splits):
            raise DatasetError(f"it has no train and test splits, only {', '.join(builder.info.splits) or 'none'}.")
        classes = tuple(features["label"].names)
        emnist = builder.name == "emnist"
        if emnist and builder.builder_config is not None:
            classes = tuple(_EMNIST_CLASSES.get(builder.builder_config.name, classes))
        cache = cache_dir / f"{name.replace('/', '-')}-{_fingerprint(Path(builder.data_path))}.npz"
        arrays = _read_cache(cache, read)
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
        raise DatasetError("that is not the name of a TFDS set.")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetError(f"TFDS is not installed ({error}): pip install 'ojax-plasticity[tfds]'.") from None
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


def default_cache_dir() -> Path:
    """The folder for decoded images, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ojax"


def _read_cache(path: Path, read: Callable[[Any], Arrays]) -> Arrays | None:
    # A cache that is missing or damaged is made anew.
    with (
        contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error),
        path.open("rb") as file,
    ):
        return read(file)
    return None


def _write_cache(path: Path, arrays: Arrays) -> None:
    # Without a cache the next start decodes again, which is no reason to fail.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS's log messages."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
