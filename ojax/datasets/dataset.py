"""A data set: training and test data as arrays, checked."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Num, PyTree
from numpy.typing import ArrayLike

from ojax.trees import named_leaves


class DatasetError(ValueError):
    """A data set is missing, cannot be downloaded, or is damaged; the message is one line that says what to do."""


class Examples(NamedTuple):
    """Inputs and their targets.

    Attributes:
      inputs: Shape (examples, ...); images are float32 in [0, 1], of shape (examples, height, width, channels), or
        flattened to (examples, pixels), row by row, with the colours of a pixel side by side.
      targets: Shape (examples, ...); labels are int32 from 0.
    """

    inputs: Num[np.ndarray | Array, "examples ..."]
    targets: Num[np.ndarray | Array, "examples ..."]


class Shared(NamedTuple):
    """Training data that every sample sees whole, and not its own row of: images, say, from which episodes are drawn.

    Attributes:
      arrays: A pytree of arrays.
    """

    arrays: PyTree


class Dataset(NamedTuple):
    """Training and test data for :func:`ojax.online.train`.

    Attributes:
      train: The training samples: a pytree of arrays with a leading axis, :class:`Examples` say, or a stream in its order.
        What is in a :class:`Shared` has no such axis, and is part of every sample.
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
        leaves = [(name, leaf) for name, leaf in named_leaves(self.train, is_shared) if not is_shared(leaf)]
        lengths = {name: len(leaf) if np.ndim(leaf) else 0 for name, leaf in leaves}
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
            lowest, highest = int(min(map(np.min, labels))), int(max(map(np.max, labels)))
            if class_names is None and highest >= len(inputs[0]):
                count = len(inputs[0])
                raise DatasetError(f"A label {highest} among {count} training examples: number the classes from 0.")
            num_classes = highest + 1 if class_names is None else len(class_names)
            if lowest < 0 or highest >= num_classes:
                raise DatasetError(f"Labels must be from 0 to {num_classes - 1}; these are from {lowest} to {highest}.")
            class_names = class_names or tuple(map(str, range(num_classes)))
        elif class_names is not None:
            raise DatasetError(f"class_names are for whole-number labels, and the targets are {np.asarray(y).dtype}.")
        train, test = (Examples(some, wanted) for some, wanted in zip(inputs, targets, strict=True))
        return cls(train, test, tuple(class_names or ()), name)


def is_shared(node: object) -> bool:
    """Whether a node of the training data is a :class:`Shared`, for `is_leaf`."""
    return isinstance(node, Shared)


def map_rows(function: Callable[[Any], Any], train: PyTree) -> PyTree:
    """Training data with every array that has a row a sample mapped; what is :class:`Shared` stays."""
    return jax.tree.map(lambda leaf: leaf if is_shared(leaf) else function(leaf), train, is_leaf=is_shared)


def _checked_pair(what: str, *pair: ArrayLike) -> list[np.ndarray]:
    """Training and test arrays as float32, or whole-number targets as int32."""
    arrays = [np.asarray(array) for array in pair]
    for name, array in zip((what, f"{what}_test"), arrays, strict=True):
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise DatasetError(f"{name} must be an array of numbers, one row an example; it is {array.dtype}{array.shape}.")
    if 0 in arrays[0].shape[1:]:
        raise DatasetError(f"{what} has examples without numbers, of shape {arrays[0].shape[1:]}.")
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
