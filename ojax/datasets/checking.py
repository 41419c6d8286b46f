"""Checks training and test data. Messages call the arrays x, y, x_test and y_test."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

RENUMBER = (
    "number the classes by `classes, y = np.unique(y, return_inverse=True); y_test = np.searchsorted(classes, y_test)`"
)
_UNITS = {1: 255, 2: 65_535}  # Largest value by the bytes of an unsigned integer.
_FAR = 10.0  # Standardized numbers stay below it; 8-bit images that were not scaled do not.


class DatasetError(ValueError):
    """A data set is missing, cannot be downloaded, or is damaged; the message is one line that says what to do."""


def inputs(x: ArrayLike, x_test: ArrayLike) -> list[np.ndarray]:
    """Returns training and test inputs as float32; 8-bit and 16-bit images in [0, 1].

    Warns if inputs are far from [0, 1].

    Raises:
      DatasetError: If they are not numbers, not finite, or have different shapes.
    """
    arrays = _numbers({"x": x, "x_test": x_test})
    if 0 in arrays[0].shape[1:]:
        raise DatasetError(f"x has samples without numbers, of shape {arrays[0].shape[1:]}.")
    units = [_UNITS.get(array.dtype.itemsize) if array.dtype.kind == "u" else None for array in arrays]
    highest = max((array.max(initial=0) for array, unit in zip(arrays, units, strict=True) if unit), default=0)
    floats = _floats({"x": arrays[0], "x_test": arrays[1]})
    if highest > 1:
        floats = [some / unit if unit else some for some, unit in zip(floats, units, strict=True)]
    _warn_if_far(floats)
    return floats


def targets(y: ArrayLike, y_test: ArrayLike) -> list[np.ndarray]:
    """Returns training and test targets: labels, shape (samples,), as int32; or numbers to predict as float32.

    Whole numbers and booleans are labels; a last axis of length 1 is dropped from them.

    Raises:
      DatasetError: If they are neither, or one is labels and the other numbers.
    """
    given = {name: _as_row(np.asarray(array)) for name, array in (("y", y), ("y_test", y_test))}
    for name, array in given.items():
        if _has_words(array):
            raise DatasetError(f"{name} has labels that are not numbers: {RENUMBER}.")
    arrays = dict(zip(given, _numbers(given), strict=True))
    are_labels = [array.dtype.kind in "biu" for array in arrays.values()]
    if not all(are_labels):
        if any(are_labels):
            kinds = [str(array.dtype) for array in arrays.values()]
            raise DatasetError(f"y and y_test must both be labels or both be fractions; they are {kinds}.")
        return _floats(arrays)
    return [_labels(name, array) for name, array in arrays.items()]


def same_length(part: str, x: np.ndarray, y: np.ndarray) -> None:
    """Raises DatasetError unless there is one target per input, and at least one input."""
    if len(x) != len(y) or not len(x):
        raise DatasetError(f"The {part} data have {len(x)} inputs and {len(y)} targets.")


def class_names(y: np.ndarray, y_test: np.ndarray, names: Sequence[str] | None) -> tuple[str, ...]:
    """Returns a name per class: the given names, or the numbers themselves.

    Raises:
      DatasetError: If a label has no name; or, without names, if a class below the largest label has no sample.
    """
    found = np.union1d(y, y_test)
    if names is not None:
        if found[0] < 0 or found[-1] >= len(names):
            raise DatasetError(f"Labels must be from 0 to {len(names) - 1}; these are from {found[0]} to {found[-1]}.")
        return tuple(names)
    gaps = np.flatnonzero(found != np.arange(len(found)))
    if gaps.size:
        missing = "" if found[0] < 0 else f", and none is {gaps[0]}"
        raise DatasetError(
            f"Labels must be 0, 1, 2, ... without gaps; these are from {found[0]} to {found[-1]}{missing}: {RENUMBER}."
        )
    return tuple(map(str, range(len(found))))


def require_labels(dataset: Any) -> None:
    """Raises DatasetError unless there are labels of at least two classes; the message says how to make labels."""
    if len(dataset.class_names) >= 2:
        return
    if dataset.class_names:
        raise DatasetError("y has labels of one class; a classifier needs at least two.")
    y = np.asarray(dataset.train.targets)
    if y.ndim == 2 and y.shape[1] > 1 and _is_one_hot(y):
        advice = "these are one-hot: take y.argmax(axis=1) and y_test.argmax(axis=1)"
    elif np.array_equal(y, np.round(y)) and y.size == len(y):
        advice = "these are stored as fractions: take y.astype(int) and y_test.astype(int)"
    else:
        advice = f"these are numbers to predict, of shape {y.shape}"
    raise DatasetError(f"A classifier needs whole-number labels y, and {advice}.")


def require_numbers(dataset: Any) -> None:
    """Raises DatasetError if the targets are labels."""
    if dataset.class_names:
        raise DatasetError("y has labels, and a stream has numbers to predict: if they are meant, y.astype(np.float32).")


def images(x: np.ndarray) -> np.ndarray:
    """Returns images with channels, shape (samples, height, width, channels).

    Raises:
      DatasetError: If they are not images, or have their channels first.
    """
    shape = x.shape[1:]
    if len(shape) not in (2, 3):
        raise DatasetError(
            f"x has samples of shape {shape}; a convolutional network needs images, of shape (height, width) or (height, "
            "width, channels)."
        )
    if len(shape) == 3 and shape[0] <= 4 < min(shape[1:]):
        raise DatasetError(f"x has images of shape {shape}, with channels first: put them last by x.transpose(0, 2, 3, 1).")
    return x.reshape(*x.shape[:3], -1)


def _numbers(arrays: Mapping[str, ArrayLike]) -> list[np.ndarray]:
    """Returns the arrays, if they are numbers and their samples have the same shape."""
    found = [np.asarray(array) for array in arrays.values()]
    for name, array in zip(arrays, found, strict=True):
        is_number = array.dtype.kind in "biuf" or jax.dtypes.issubdtype(array.dtype, np.floating)  # bfloat16.
        if not is_number or array.ndim == 0:
            raise DatasetError(f"{name} must be an array of numbers, one row per sample; it is {array.dtype}{array.shape}.")
    first, second = (array.shape[1:] for array in found)
    if first != second:
        raise DatasetError(f"{' and '.join(arrays)} have samples of different shapes, {first} and {second}.")
    return found


def _floats(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the arrays as float32, if they are finite."""
    found = []
    for name, array in arrays.items():
        with np.errstate(over="ignore"):
            some = array.astype(np.float32)
        if array.dtype.kind not in "biu" and not np.isfinite(some).all():
            where = tuple(int(index) for index in np.argwhere(~np.isfinite(some))[0])
            reason = "is beyond float32's largest, 3.4e38," if np.isfinite(array[where]) else "is not finite"
            raise DatasetError(f"{name} {reason} at {list(where)}: {array[where]}.")
        found.append(some)
    return found


def _as_row(array: np.ndarray) -> np.ndarray:
    """Reshapes labels of shape (samples, 1), as in CIFAR's files, to (samples,)."""
    return array[:, 0] if array.dtype.kind in "biu" and array.ndim == 2 and array.shape[1] == 1 else array


def _labels(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 1:
        raise DatasetError(
            f"{name} has whole numbers of shape {array.shape}, and labels are one per sample: take "
            f"{name}.argmax(axis=1) if they are one-hot, or {name}.astype(np.float32) if they are numbers to predict."
        )
    if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise DatasetError(f"{name} has labels that do not fit into 32 bits: {RENUMBER}.")
    return array.astype(np.int32)


def _has_words(array: np.ndarray) -> bool:
    return array.dtype.kind in "SU" or (
        array.dtype.kind == "O" and array.size > 0 and isinstance(array.flat[0], str | bytes)
    )


def _is_one_hot(y: np.ndarray) -> bool:
    return bool(np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all())


def _warn_if_far(arrays: Sequence[np.ndarray]) -> None:
    filled = [array for array in arrays if array.size]
    low, high = (float(end([end(array) for array in filled], initial=0)) for end in (np.min, np.max))
    if low >= -_FAR and high <= _FAR:
        return
    unit = next((unit for unit in _UNITS.values() if unit / 2 < high <= unit), high)
    advice = "x = (x - x.mean()) / x.std()" if low < 0 else f"x = x / {unit:g}"
    warnings.warn(
        f"x is from {low:g} to {high:g}, far beyond [0, 1], for which default learning rates are meant. Unless this is "
        f"intended, take {advice}, and likewise x_test.",
        stacklevel=4,
    )
