"""Reads folders of IDX files, named as MNIST's, gzipped or not.

An IDX file is a magic number (0, 0, type, dimensions), the dimensions as big-endian 32-bit integers, and the bytes.
"""

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ojax.datasets.checking import DatasetError
from ojax.trees import first_line

Arrays = dict[str, np.ndarray]

_NAME = re.compile(r"(?:(?P<set>.+)-)?(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx\d-ubyte(?:\.gz)?")
_PARTS = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
# Depth of the search below the given folder, for torchvision's ROOT/MNIST/raw.
_DEPTH = 2


def load_idx(place: str) -> Arrays:
    """Returns the images and labels of a set, train and test, as unsigned bytes.

    Args:
      place: A folder that has the files of one set, itself or up to two folders below; or such a folder and the name of one
        of its sets, `FOLDER/emnist-letters`.

    Raises:
      DatasetError: If there is no set or more than one, or a file is damaged.
    """
    name, files = _chosen(Path(place))
    arrays = {f"{split}_{kind}": _read_idx(files[split, kind], 3 if kind == "images" else 1) for split, kind in _PARTS}
    if name.startswith("emnist"):
        for split in ("train", "test"):
            arrays[f"{split}_images"] = arrays[f"{split}_images"].swapaxes(1, 2)
    if name == "emnist-letters":  # Its labels are from 1 to 26.
        lowest = min(int(arrays[f"{split}_labels"].min(initial=255)) for split in ("train", "test"))
        for split in ("train", "test"):
            arrays[f"{split}_labels"] = arrays[f"{split}_labels"] - np.uint8(min(lowest, 1))
    return arrays


def _chosen(place: Path) -> tuple[str, dict[tuple[str, str], Path]]:
    """Returns the name of the set, empty for MNIST's own file names, and its files by split and kind."""
    chosen = None
    if not os.path.exists(place) and os.path.isdir(place.parent):
        place, chosen = place.parent, place.name
    sets = _sets(place)
    if chosen is not None:
        wanted = {key: files for key, files in sets.items() if key[1] in (chosen, f"emnist-{chosen}")}
        if not wanted:
            raise DatasetError(f"there is no folder {str(place / chosen)!r}, and no set of that name in {place}.")
        sets = wanted
    whole = {key: files for key, files in sets.items() if len(files) == len(_PARTS)}
    if len(whole or sets) > 1:
        listed = ", ".join(f"idx:{folder / name}" for folder, name in whole or sets)
        raise DatasetError(f"{place} has several sets: choose one of {listed}.")
    for (_, name), files in (whole or sets).items():
        if missing := [wanted for part, wanted in _PARTS.items() if part not in files]:
            raise DatasetError(f"no file like {missing[0]}[.gz] in {place}.")
        return name, files
    raise DatasetError(f"no file like {_PARTS['train', 'images']}[.gz] in {place}.")


def _sets(folder: Path) -> dict[tuple[Path, str], dict[tuple[str, str], Path]]:
    """Returns the files of each set in the folder, or else in folders below it, by the set's folder and name."""
    # `Path.is_dir` raises an error for what may not be looked into, `os.path.isdir` does not.
    level = [folder]
    for depth in range(_DEPTH + 1):
        found: dict[tuple[Path, str], dict[tuple[str, str], Path]] = {}
        for place in level:
            for match, path in _files(place, is_named=not depth):
                files = found.setdefault((place, match["set"] or ""), {})
                part = ("train" if match["split"] == "train" else "test", match["kind"])
                if part in files and _rank(files[part], place) == _rank(path, place):
                    raise DatasetError(f"several files like {_PARTS[part]} in {place}: {files[part].name}, {path.name}.")
                files[part] = min(files.get(part, path), path, key=lambda path: _rank(path, place))
        if found:
            return found
        level = [path for place in level for path in _entries(place, is_named=not depth) if os.path.isdir(path)]
    return {}


def _files(folder: Path, *, is_named: bool) -> Iterator[tuple[re.Match[str], Path]]:
    """Yields the files with names of IDX files in the folder, and in folders with such a name, as in Kaggle's archives."""
    for path in _entries(folder, is_named=is_named):
        if _NAME.fullmatch(path.name):
            for file in _entries(path, is_named=False) if os.path.isdir(path) else [path]:
                if (match := _NAME.fullmatch(file.name)) is not None:
                    yield match, file


def _rank(path: Path, folder: Path) -> tuple[bool, bool]:
    """Orders copies of one file; the first is read: a file before one in a folder of its name, unpacked before gzipped."""
    return path.parent != folder, path.suffix == ".gz"


def _entries(folder: Path, *, is_named: bool) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as error:
        if not is_named:  # A folder below the given one that may belong to somebody else.
            return []
        raise DatasetError(f"the folder {str(folder)!r} cannot be read ({first_line(error)}).") from None


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    try:
        if not path.is_file():  # Reading a pipe might never end.
            raise DatasetError(f"{path} is not a regular file.")
        with _opened(path) as file:
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


def _opened(path: Path) -> Any:
    """Opens a file, and unpacks it if its content is gzipped."""
    with path.open("rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzipped else path.open("rb")


def _read_at_most(file: Any, size: int) -> bytes:
    """Reads a file piece by piece, since a damaged header may promise more bytes than there is memory."""
    pieces = []
    while size > 0 and (piece := file.read(min(size, 1 << 24))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
