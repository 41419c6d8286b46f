"""A data set: training and test data as arrays, checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Num, PRNGKeyArray, PyTree
from numpy.typing import ArrayLike

from ojax.datasets import checking
from ojax.datasets.checking import DatasetError
from ojax.trees import named_leaves


class Examples(NamedTuple):
    """Inputs and their targets.

    Attributes:
      inputs: Shape (examples, ...); images are float32 in [0, 1], of shape (examples, height, width, channels), or
        flattened to (examples, pixels), row by row, with the colours of a pixel next to each other.
      targets: Shape (examples, ...); labels are int32 from 0.
    """

    inputs: Num[np.ndarray | Array, "examples ..."]
    targets: Num[np.ndarray | Array, "examples ..."]


class Shared(NamedTuple):
    """Arrays that are passed whole to every step, not indexed by sample: e.g. images from which episodes are drawn.

    Attributes:
      arrays: A pytree of arrays.
    """

    arrays: PyTree


@dataclass(frozen=True)
class Stream:
    """Training data that are generated on the device, sample by sample, from each run's seed.

    The state is a pytree of arrays of fixed shapes, so memory does not grow with the stream. It is saved with the run.
    :mod:`ojax.streams` has ready ones.

    Attributes:
      init: `init(key, data) -> state`, before the first sample.
      advance: `advance(state, step, data) -> (state, sample)`, where `step` counts the samples before this one. All runs
        share `step`, so a `lax.cond` on it alone is a real branch on every device.
      data: Arrays that all runs share, any pytree: the images from which the samples are made.
      test: `test(state, step, data, test) -> test`, the test data after `step` samples, given the data set's own test data.
        None uses the data set's own.
    """

    init: Callable[[PRNGKeyArray, PyTree], PyTree]
    advance: Callable[[PyTree, Int[Array, ""], PyTree], tuple[PyTree, PyTree]]
    data: PyTree = field(default_factory=dict)
    test: Callable[[PyTree, Int[Array, ""], PyTree, PyTree], PyTree] | None = None


# The functions are part of the structure, so that results cached by a data set's structure depend on its stream.
jax.tree_util.register_dataclass(Stream, data_fields=["data"], meta_fields=["init", "advance", "test"])

# Samples are counted in 32 bits.
_ENDLESS = 2**31 - 1


class Dataset(NamedTuple):
    """Training and test data for :func:`ojax.online.train`.

    Attributes:
      train: The training samples: a pytree of arrays with a leading axis, :class:`Examples` say, or a :class:`Stream`.
        Arrays in a :class:`Shared` have no such axis, and are part of every sample.
      test: The test data, any pytree of arrays.
      class_names: A name for each label, where there are labels.
      name: The name by which it was loaded.
    """

    train: PyTree
    test: PyTree
    class_names: tuple[str, ...] = ()
    name: str = "arrays"

    @property
    def num_train(self) -> int:
        """Number of training samples; for a stream, the largest count.

        Raises:
          ValueError: If there are no samples, or the arrays have different numbers of them.
        """
        if isinstance(self.train, Stream):
            return _ENDLESS
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
        """Returns a data set of inputs and targets, after checking them.

        Args:
          x: Training inputs, shape (samples, ...); they become float32. 8-bit images are divided by 255 and 16-bit images
            by 65,535, unless they are 0 and 1.
          y: Training targets: labels from 0 if they are whole numbers or booleans, shape (samples,) or (samples, 1); else
            numbers to predict, which become float32.
          x_test: Test inputs, with samples of the same shape.
          y_test: Test targets, with samples of the same shape.
          class_names: A name per label; by default the numbers, each of which must then occur. Only for labels.
          name: A name for the set.

        Raises:
          DatasetError: If lengths, shapes or types do not go together, a number is not finite, a label has no class, or a
            class below the largest label has no sample.
        """
        inputs, targets = checking.inputs(x, x_test), checking.targets(y, y_test)
        for part, some, wanted in zip(("training", "test"), inputs, targets, strict=True):
            checking.same_length(part, some, wanted)
        if targets[0].dtype == np.int32:
            class_names = checking.class_names(targets[0], targets[1], class_names)
        elif class_names is not None:
            raise DatasetError(f"class_names are for whole-number labels, and the targets are {np.asarray(y).dtype}.")
        train, test = (Examples(some, wanted) for some, wanted in zip(inputs, targets, strict=True))
        return cls(train, test, tuple(class_names or ()), name)


def is_shared(node: object) -> bool:
    """Returns whether a node of the training data is a :class:`Shared`, for `is_leaf`."""
    return isinstance(node, Shared)


def map_rows(function: Callable[[Any], Any], train: PyTree) -> PyTree:
    """Maps every array of the training data that has one row per sample; leaves :class:`Shared` arrays as they are."""
    return jax.tree.map(lambda leaf: leaf if is_shared(leaf) else function(leaf), train, is_leaf=is_shared)
