"""Streams of a data set's samples, with a new task after a fixed number of samples."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ojax.datasets import Dataset, Examples, Stream
from ojax.datasets.checking import DatasetError
from ojax.streams.numbers import Numbers, begin, uniform

Change = Callable[[Any, Int[Array, ""], Any], Any]


class _State(NamedTuple):
    """The state of a changing stream.

    Attributes:
      key: The run's key.
      task: The number of the current task.
      made: The prepared argument of the task's change, e.g. a permutation.
      drawn: The state of the kind's :class:`_Draw`.
    """

    key: PRNGKeyArray
    task: Int[Array, ""]
    made: PyTree
    drawn: PyTree


class _Draw(NamedTuple):
    """Draws rows of a stream's data.

    Attributes:
      init: `init(key) -> drawn`.
      row: `row(drawn, step, made) -> (drawn, row)`.
    """

    init: Callable[[PRNGKeyArray], PyTree]
    row: Callable[[PyTree, Array, PyTree], tuple[PyTree, Array]]


class _Kind(NamedTuple):
    """The functions that define one kind of changing stream.

    Attributes:
      prepare: `prepare(task, key_of)` is called once per task and returns `made`; `key_of(task)` is the key of any task.
      see: `see(sample, task, progress, made)` changes one sample; `progress` goes from 0 to 1 during a task.
      draw: Draws the rows; None shuffles all rows, with a new order in each pass.
    """

    prepare: Callable[[Array, Callable[[Array], PRNGKeyArray]], PyTree]
    see: Callable[[PyTree, Array, Array, PyTree], PyTree]
    draw: _Draw | None = None


def _shuffled(num_rows: int) -> _Draw:
    """Draws all rows in a random order, with a new order in each pass."""

    def shuffled(key: PRNGKeyArray, epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), num_rows).astype(jnp.int32)

    def row(drawn: tuple, step: Array, made: PyTree) -> tuple[tuple, Array]:
        key, order = drawn
        epoch, place = step // num_rows, step % num_rows
        # All runs share `step`, so that this is a real branch on every device.
        order = lax.cond(place == 0, shuffled, lambda key, epoch: order, key, epoch)
        return (key, order), order[place]

    return _Draw(lambda key: (key, shuffled(key, jnp.int32(0))), row)


class _Drawn(NamedTuple):
    """The state of a draw by class: how often each class was drawn, and the rows of all classes, class by class."""

    numbers: Numbers
    counts: Int[Array, " classes"]
    rows: Int[Array, " rows"]


def _by_class(labels: np.ndarray, sizes: np.ndarray) -> _Draw:
    """Draws one of the task's classes at random, and its next row; the random order of a class's rows repeats."""
    starts = np.cumsum(sizes) - sizes

    def init(key: PRNGKeyArray) -> _Drawn:
        of_rows, of_classes = jax.random.split(key)
        order = jax.random.permutation(of_rows, len(labels))
        rows = order[jnp.argsort(jnp.asarray(labels)[order], stable=True)].astype(jnp.int32)
        return _Drawn(begin(of_classes), jnp.zeros(len(sizes), jnp.int32), rows)

    def row(drawn: _Drawn, step: Array, classes: Array) -> tuple[_Drawn, Array]:
        numbers, (u,) = uniform(drawn.numbers)
        chosen = classes[(u * len(classes)).astype(jnp.int32)]
        place = drawn.counts[chosen] % jnp.asarray(sizes, jnp.int32)[chosen]
        found = drawn.rows[jnp.asarray(starts, jnp.int32)[chosen] + place]
        return drawn._replace(numbers=numbers, counts=drawn.counts.at[chosen].add(1)), found

    return _Draw(init, row)


def changing(
    dataset: Dataset,
    change: Change,
    *,
    period: int,
    num_tasks: int | None = None,
    prepare: Callable[[PRNGKeyArray], Any] | None = None,
    first_again: bool = False,
) -> Dataset:
    """Returns a stream of a data set's training samples whose task changes by your own function.

    The run's seed draws the samples without replacement, with a new order in each pass. An evaluation uses all test
    samples, changed by the current task.

    A stream of images that are rotated by 0 to 3 quarter turns, drawn for each task::

        def rotated(sample, task, key):
            image = sample.inputs.reshape(28, 28)
            turns = [lambda image, k=k: jnp.rot90(image, k) for k in range(4)]
            turned = jax.lax.switch(jax.random.randint(key, (), 0, 4), turns, image)
            return sample._replace(inputs=turned.reshape(-1))

        stream = ojax.streams.changing(ojax.datasets.load(), rotated, period=500)

    Args:
      dataset: The data, whose training and test samples have the same form.
      change: `change(sample, task, key)` returns the sample as changed by a task. `task` is the task's number from 0, and
        `key` is the task's random key. It is a pure function of JAX arrays.
      period: Number of samples per task.
      num_tasks: Number of tasks; after the last task the first one repeats. None for a new task each time.
      prepare: `prepare(key)` is called once per task, and `change` gets its result in place of `key`. Use it for
        computations that are slow per sample: `lambda key: jax.random.permutation(key, 784)`.
      first_again: Whether learners are evaluated on `{"now": ..., "first": ...}`, the test samples as changed by the
        current task and by the first task.

    Raises:
      ValueError: If `period` or `num_tasks` is not a whole number of at least 1.
    """
    made = prepare or (lambda key: key)
    kind = _Kind(lambda task, key_of: made(key_of(task)), lambda sample, task, _, made: change(sample, task, made))
    return _stream(dataset, kind, period, num_tasks, first_again)


def permuted_pixels(dataset: Dataset, *, period: int, num_tasks: int | None = None, first_again: bool = False) -> Dataset:
    """Returns a stream whose inputs are permuted, with a new permutation per task.

    Args, Returns, Raises: As :func:`changing`.

    Source: Goodfellow et al. 2013, https://arxiv.org/abs/1312.6211; online, Dohare et al. 2024,
    https://doi.org/10.1038/s41586-024-07711-7.
    """
    shape = np.shape(_examples(dataset, "permuted_pixels").inputs)[1:]

    def change(sample: Examples, task: Array, order: Array) -> Examples:
        return sample._replace(inputs=sample.inputs.reshape(-1)[order].reshape(shape))

    def prepare(key: PRNGKeyArray) -> Array:
        return jax.random.permutation(key, math.prod(shape))

    return changing(dataset, change, period=period, num_tasks=num_tasks, prepare=prepare, first_again=first_again)


def permuted_labels(dataset: Dataset, *, period: int, num_tasks: int | None = None, first_again: bool = False) -> Dataset:
    """Returns a stream whose labels are permuted, with a new permutation of the classes per task.

    Args, Returns, Raises: As :func:`changing`.

    Source: Elsayed and Mahmood 2024, https://arxiv.org/abs/2404.00781, label-permuted EMNIST.
    """
    num_classes = _num_classes(dataset, "permuted_labels")

    def change(sample: Examples, task: Array, labels: Array) -> Examples:
        return sample._replace(targets=labels[sample.targets])

    def prepare(key: PRNGKeyArray) -> Array:
        return jax.random.permutation(key, num_classes).astype(jnp.int32)

    return changing(dataset, change, period=period, num_tasks=num_tasks, prepare=prepare, first_again=first_again)


def drifting_gain(
    dataset: Dataset,
    *,
    period: int,
    low: float = 0.3,
    high: float = 3.0,
    num_tasks: int | None = None,
    first_again: bool = False,
) -> Dataset:
    """Returns a stream whose inputs are multiplied by a gain that drifts.

    Each task starts at a gain that is drawn log-uniformly from `low` to `high`, and drifts geometrically to the initial
    gain of the next task.

    Args:
      dataset: As in :func:`changing`.
      period: As in :func:`changing`.
      low: The least gain, above 0.
      high: The largest gain.
      num_tasks: As in :func:`changing`.
      first_again: As in :func:`changing`.

    Raises:
      ValueError: As :func:`changing`, or if the gains are not 0 < low <= high.
    """
    _examples(dataset, "drifting_gain")
    if not 0 < low <= high < math.inf:
        raise ValueError(f"drifting_gain needs finite gains with 0 < low <= high, got low={low} and high={high}.")

    def prepare(task: Array, key_of: Callable[[Array], PRNGKeyArray]) -> Array:
        draws = jnp.stack([jax.random.uniform(key_of(number), dtype=jnp.float32) for number in (task, task + 1)])
        return math.log(low) + draws * (math.log(high) - math.log(low))

    def see(sample: Examples, task: Array, progress: Array, ends: Array) -> Examples:
        return sample._replace(inputs=sample.inputs * jnp.exp(ends[0] + progress * (ends[1] - ends[0])))

    return _stream(dataset, _Kind(prepare, see), period, num_tasks, first_again)


def classes_in_sequence(
    dataset: Dataset, *, period: int, per_task: int = 2, num_tasks: int | None = None, first_again: bool = False
) -> Dataset:
    """Returns a stream that shows a few classes at a time, in an order that the run's seed draws.

    The class of each sample is drawn at random from the task's classes. The samples of a class come in a random order,
    which repeats. An evaluation uses the test samples of all classes.

    Args:
      dataset: As in :func:`changing`; labels are its targets.
      period: As in :func:`changing`.
      per_task: Number of classes per task.
      num_tasks: Number of tasks; after the last task the first one repeats. By default as many as show every class; the
        last task is filled up from the first classes.
      first_again: As in :func:`changing`.

    Raises:
      ValueError: As :func:`changing`, or if the data have fewer than `per_task` classes.
    """
    num_classes = _num_classes(dataset, "classes_in_sequence")
    if not _is_count(per_task) or per_task > num_classes:
        raise ValueError(f"per_task must be from 1 to the {num_classes} classes, got {per_task!r}.")
    labels = np.asarray(dataset.train.targets)
    sizes = np.bincount(labels, minlength=num_classes)
    if not np.min(sizes):
        raise DatasetError(f"classes_in_sequence: there is no training sample of class {int(np.argmin(sizes))}.")

    def prepare(task: Array, key_of: Callable[[Array], PRNGKeyArray]) -> Array:
        order = jax.random.permutation(key_of(jnp.int32(-1)), num_classes)
        return order[(task * per_task + jnp.arange(per_task)) % num_classes].astype(jnp.int32)

    kind = _Kind(prepare, lambda sample, task, progress, classes: sample, _by_class(labels, sizes))
    count = -(-num_classes // per_task) if num_tasks is None else num_tasks
    return _stream(dataset, kind, period, count, first_again)


def _stream(dataset: Dataset, kind: _Kind, period: int, num_tasks: int | None, first_again: bool) -> Dataset:
    for name, value in (("period", period), ("num_tasks", num_tasks)):
        if value is not None and not _is_count(value):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if isinstance(dataset.train, Stream):
        raise ValueError(f"A changing stream is made of arrays, and {dataset.name} is a stream already.")
    draw = kind.draw or _shuffled(dataset.num_train)

    def number(visit: Array) -> Array:
        """Returns the number of a period's task; `visit` is the number of the period."""
        return visit if num_tasks is None else visit % num_tasks

    def prepared(key: PRNGKeyArray, task: Array) -> PyTree:
        return kind.prepare(task, lambda task: jax.random.fold_in(key, number(task)))

    def init(key: PRNGKeyArray, data: PyTree) -> _State:
        of_tasks, of_samples = jax.random.split(key)
        first = jnp.int32(0)
        return _State(of_tasks, first, prepared(of_tasks, first), draw.init(of_samples))

    def advance(state: _State, step: Array, data: PyTree) -> tuple[_State, PyTree]:
        task, place = number(step // period), step % period
        # A real branch, since all runs share `step`.
        made = lax.cond(place == 0, lambda key: prepared(key, task), lambda key: state.made, state.key)
        drawn, row = draw.row(state.drawn, step, made)
        sample = jax.tree.map(lambda leaf: jnp.asarray(leaf)[row], data)
        return state._replace(task=task, made=made, drawn=drawn), kind.see(sample, task, place / period, made)

    def seen(samples: PyTree, task: Array, progress: Array, made: PyTree) -> PyTree:
        return jax.vmap(lambda sample: kind.see(sample, task, progress, made))(samples)

    def test(state: _State, step: Array, data: PyTree, samples: PyTree) -> PyTree:
        last = jnp.maximum(step - 1, 0) % period
        now = seen(samples, state.task, last / period, state.made)
        if not first_again:
            return now
        first = jnp.int32(0)
        return {"now": now, "first": seen(samples, first, jnp.float32(0), prepared(state.key, first))}

    stream = Stream(init, advance, dataset.train, test)
    return dataset._replace(train=stream)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1


def _examples(dataset: Dataset, name: str) -> Examples:
    if not isinstance(dataset.train, Examples):
        raise ValueError(f"{name} needs a data set of ojax.datasets.Examples; streams.changing takes any other.")
    return dataset.train


def _num_classes(dataset: Dataset, name: str) -> int:
    labels = np.asarray(_examples(dataset, name).targets)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} needs whole numbers for labels, got {labels.dtype}{list(labels.shape)}.")
    return max(len(dataset.class_names), int(labels.max()) + 1)
