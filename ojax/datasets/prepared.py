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
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ojax.datasets.checking import DatasetError
from ojax.files import replacing
from ojax.trees import first_line

Arrays = dict[str, np.ndarray]

_EMNIST_MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
_EMNIST_CLASSES = {
    "balanced": _EMNIST_MERGED,
    "bymerge": _EMNIST_MERGED,
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "letters": string.ascii_uppercase,
    "digits": string.digits,
    "mnist": string.digits,
}


def load_prepared(
    name: str, data_dir: str | os.PathLike | None, cache_dir: Path, read: Callable[[Any], Arrays]
) -> tuple[Arrays, tuple[str, ...]]:
    """Returns a set's images and labels as whole numbers, and its class names; `read` reads a cached file."""
    with _quiet():
        builder = _prepared_builder(name, data_dir)
        features = builder.info.features
        if not {"image", "label"} <= set(features or ()) or not hasattr(features["label"], "names"):
            raise DatasetError("it is not an image-classification set: it has no features `image` and `label`.")
        if not {"train", "test"} <= set(builder.info.splits):
            raise DatasetError(f"it has no train and test splits, only {', '.join(builder.info.splits) or 'none'}.")
        classes = tuple(features["label"].names)
        emnist = builder.name == "emnist"
        config = "" if builder.builder_config is None else builder.builder_config.name
        if emnist:
            classes = tuple(_EMNIST_CLASSES.get(config, classes))
        cache = cache_dir / f"{builder.info.full_name.replace('/', '-')}-{_fingerprint(Path(builder.data_path))}.npz"
        arrays = _read_cache(cache, read)
        if arrays is None:
            arrays = {}
            for split in ("train", "test"):
                images, labels = _decode(builder, split)
                arrays[f"{split}_images"] = images.swapaxes(1, 2) if emnist else images
                # The labels of the letters start at 1.
                arrays[f"{split}_labels"] = labels - 1 if emnist and config == "letters" else labels
            _write_cache(cache, arrays)
    return arrays, classes


def _prepared_builder(name: str, data_dir: str | os.PathLike | None) -> Any:
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?", name):
        raise DatasetError("that is not the name of a TFDS set.")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetError(
            f"TFDS is not installed ({error}): pip install --editable '.[tfds]' in a clone of ojax."
        ) from None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS has no common error for names, configurations and damaged folders.
        reason = _configurations(tfds, name) or f": {first_line(error)}."
        raise DatasetError(f"TFDS has no such set, or it is damaged{reason}") from None
    if builder.info.splits:
        return builder
    if "/" not in name and (listed := _configurations(tfds, name)):
        raise DatasetError(f"it is not prepared in {builder.data_dir_root}{listed}")
    if importlib.util.find_spec("tensorflow") is None:
        raise DatasetError(
            f"it is not prepared in {builder.data_dir_root}{_folder_above(data_dir)}, and TFDS needs TensorFlow to "
            "download and prepare it (pip install tensorflow)."
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise DatasetError(f"it cannot be downloaded and prepared: {first_line(error)}") from None
    return builder


def _configurations(tfds: Any, name: str) -> str:
    """Returns the names to choose from, for a message; empty if a set has only one, or does not exist."""
    base = re.split("[/:]", name)[0]
    with contextlib.suppress(Exception):  # TFDS has no common error.
        if listed := [f"{base}/{config}" for config in tfds.builder_cls(base).builder_configs]:
            return f"; its names are {', '.join(listed)}."
    return ""


def _folder_above(data_dir: str | os.PathLike | None) -> str:
    """Returns a hint if `data_dir` is the folder of one set or version instead of the folder above."""
    with contextlib.suppress(OSError):
        path = Path(data_dir or "")
        if next(path.glob("dataset_info.json"), None) or next(path.glob("*/dataset_info.json"), None):
            return f" (the folder of a set: give the one above, which has a folder for each, {path.parent})"
    return ""


def _decode(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
        if "array_record" in formats:
            source = builder.as_data_source(split=split)
            examples = source.__getitems__(range(len(source)))  # One read of the file, not one per example.
        elif "tfrecord" in formats:  # TFDS itself needs TensorFlow for these.
            features, wanted = builder.info.features, builder.info.splits[split].num_examples
            paths = builder.info.splits[split].filepaths
            examples = [features.deserialize_example_np(record) for path in paths for record in _tfrecords(path)]
            if len(examples) != wanted:
                raise ValueError(f"it has {len(examples)} of {wanted} samples")
        else:
            raise ValueError(f"it is in {', '.join(sorted(formats))}, and array_record or tfrecord is needed")
    except Exception as error:  # A damaged file can raise almost any error.
        raise DatasetError(f"its {split} split in {builder.data_path} cannot be read: {first_line(error)}.") from None
    images = [example["image"] for example in examples]
    if not images:
        raise DatasetError(f"its {split} split is empty.")
    if len({image.shape for image in images}) > 1 or images[0].dtype not in (np.uint8, np.uint16):
        raise DatasetError("its images are not 8-bit or 16-bit images of one size.")
    return np.stack(images), np.array([example["label"] for example in examples], np.int64)


def _tfrecords(path: Any) -> Iterator[bytes]:
    """Yields a file's records, each stored as length (8 bytes), checksum (4), record and checksum (4)."""
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END)
        file.seek(0)
        while left:
            (length,) = struct.unpack("<Q4x", file.read(12))
            left -= length + 16
            if left < 0:
                raise ValueError(f"{path} is truncated")
            yield file.read(length)
            file.read(4)


def _fingerprint(folder: Path) -> str:
    """Returns a hash that changes whenever the prepared files do."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    try:
        for path in sorted(folder.iterdir()):
            status = path.stat()
            digest.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns};".encode())
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read ({first_line(error)}).") from None
    return digest.hexdigest()[:16]


def _read_cache(path: Path, read: Callable[[Any], Arrays]) -> Arrays | None:
    # A cache that is missing or damaged is written again.
    with (
        contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error),
        path.open("rb") as file,
    ):
        return read(file)
    return None


def _write_cache(path: Path, arrays: Arrays) -> None:
    # Without a cache the next start only decodes again.
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
