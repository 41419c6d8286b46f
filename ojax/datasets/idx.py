"""Folders of IDX files, named as MNIST's, gzipped or not.

An IDX file is a magic number (0, 0, type, dimensions), the dimensions as big-endian 32-bit integers, and the bytes.
"""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ojax.datasets.dataset import DatasetError
from ojax.trees import first_line

Arrays = dict[str, np.ndarray]


def load_idx(folder: str) -> Arrays:
    """The images and labels of a folder, train and test, as unsigned bytes."""
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
            raise DatasetError(f"{path} is not a regular file.")
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
