"""Takes samples of a stream, for an evaluation or for inspection."""

import dataclasses
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree

from ojax.datasets import Dataset, Stream


def take(stream: Stream, state: PyTree, count: int, *, step: int | Int[Array, ""] = 0) -> PyTree:
    """Returns the next samples of a stream, each array with a leading axis `samples`.

    Args:
      stream: The stream.
      state: Its state, initially `stream.init(key, stream.data)`.
      count: Number of samples.
      step: Number of samples before the first of them.
    """
    steps = jnp.asarray(step, jnp.int32) + jnp.arange(count, dtype=jnp.int32)
    return lax.scan(lambda state, step: stream.advance(state, step, stream.data), state, steps)[1]


def evaluated_ahead(stream: Stream, num_test: int, *, name: str = "stream") -> Dataset:
    """Returns a data set of a stream, whose learner is evaluated on the stream's own next samples.

    An evaluation uses the next `num_test` samples with fixed weights. They are not skipped: the run then learns from them.

    Args:
      stream: The stream.
      num_test: Number of samples per evaluation.
      name: A name for the data.
    """
    if num_test < 1:
        raise ValueError(f"num_test must be at least 1, got {num_test}.")
    return Dataset(dataclasses.replace(stream, test=partial(_ahead, stream, num_test)), {}, name=name)


def _ahead(stream: Stream, num_test: int, state: PyTree, step: Array, data: PyTree, test: PyTree) -> PyTree:
    del test
    return take(dataclasses.replace(stream, data=data), state, num_test, step=step)
