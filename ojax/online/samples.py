"""The samples of a run: rows of arrays in the run's order, or samples of a stream."""

import hashlib
import itertools
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from ojax import _compat
from ojax.datasets.dataset import Dataset, Examples, Stream, map_rows
from ojax.online.checksums import sha256, without_keys
from ojax.online.plan import Plan, sample_order

Order = Int[Array, "steps batch"] | None


class Position(NamedTuple):
    """A run's position in its stream.

    Attributes:
      step: Count of samples generated so far.
      state: The stream's state after them.
    """

    step: Int[Array, ""]
    state: PyTree


def begin(plan: Plan, train_size: int, train: PyTree, seed: Int[Array, ""]) -> tuple[Order, PyTree]:
    """Returns a seed's order of rows of arrays, or its initial position in a stream; the other is empty.

    Both are functions of the seed alone, so all methods train on the same samples per seed.
    """
    if not isinstance(train, Stream):
        return sample_order(plan, train_size, seed), ()
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), 3)
    return None, Position(jnp.int32(0), train.init(key, train.data))


def take(plan: Plan, train: PyTree, order: Order, position: PyTree, step: Int[Array, ""]) -> tuple[PyTree, PyTree]:
    """Returns the position after a step, and the step's sample, or batch of samples."""
    if order is not None:
        return position, _rows(plan, train, order[step])
    first = step * plan.batch_size
    if plan.batch_size > 1:
        return _made(train, position, first, plan.batch_size, jnp.int32(plan.batch_size))
    state, sample = train.advance(position.state, first, train.data)
    return Position(first + 1, state), sample


def take_window(
    train: PyTree, order: Order, position: PyTree, first: Int[Array, ""], size: int, count: Int[Array, ""]
) -> tuple[PyTree, PyTree]:
    """Returns the position after `count` samples from `first` on, and a window of `size` samples that starts with them."""
    if order is None:
        return _made(train, position, first, size, count)
    return position, _chosen(train, order, first + jnp.arange(size))


def each_at(train: PyTree, order: Order, position: PyTree, steps: Int[Array, " size"]) -> PyTree:
    """Returns the sample of each step, taken from one position as a frozen run takes it."""
    if order is None:
        return lax.map(lambda step: train.advance(position.state, step, train.data)[1], steps)
    return _chosen(train, order, steps)


def at(plan: Plan, train: PyTree, order: Order, position: PyTree, seen: Int[Array, ""]) -> PyTree:
    """Returns the sample, or batch, after `seen` samples; in a stream it is never before the run's position."""
    if order is not None:
        return _rows(plan, train, order[jnp.minimum(seen // plan.batch_size, len(order) - 1)])
    there = advanced(train, position, seen)
    return take(plan, train, order, there, there.step // plan.batch_size)[1]


def kept(alive: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Returns the new position, or the old one if the run has diverged."""
    return jax.tree.map(partial(jnp.where, alive), new, old)


def advanced(train: PyTree, position: PyTree, step: Int[Array, ""]) -> PyTree:
    """Returns the position before a sample; the given one if the sample is before it."""
    if not isinstance(train, Stream):
        return position

    def advance(step: Array, state: PyTree) -> PyTree:
        return train.advance(state, step, train.data)[0]

    state = lax.fori_loop(position.step, step, advance, position.state)
    return Position(jnp.maximum(step, position.step), state)


def test_data(train: PyTree, test: PyTree, position: PyTree) -> PyTree:
    """Returns the test data of a run at this position."""
    if not isinstance(train, Stream) or train.test is None:
        return test
    return train.test(position.state, position.step, train.data, test)


def shapes(plan: Plan, train: PyTree, test: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the shapes of a sample, or a batch, and of the test data."""
    if not isinstance(train, Stream):
        batch = () if plan.batch_size == 1 else (plan.batch_size,)
        return map_rows(lambda leaf: jax.ShapeDtypeStruct((*batch, *leaf.shape[1:]), leaf.dtype), train), test

    def first(train: Stream, test: PyTree) -> tuple[PyTree, PyTree]:
        _, position = begin(plan, 0, train, jnp.uint32(0))
        return take(plan, train, None, position, jnp.int32(0))[1], test_data(train, test, position)

    return jax.eval_shape(first, train, test)


def digest_of_stream(train: PyTree, test: PyTree) -> str:
    """Returns a digest of a stream's program, which tells streams of equal data apart; empty for arrays."""
    if not isinstance(train, Stream):
        return ""

    def all_of(key: PRNGKeyArray, step: Int[Array, ""], data: PyTree, test: PyTree) -> tuple:
        state = train.init(key, data)
        shown = None if train.test is None else train.test(state, step, data, test)
        return train.advance(state, step, data), shown

    return digest_of(jax.make_jaxpr(all_of)(jax.random.key(0), jnp.int32(0), train.data, test))


def digest_of(*programs: Any) -> str:
    """Returns a digest of traced programs and their constants.

    Left out are colours (JAX has them in a terminal), addresses of functions, and constants that are spread over several
    processes or are traced themselves.
    """
    text = re.sub(r"\x1b\[[0-9;]*m|0x[0-9a-f]+", "", "".join(map(str, programs)))
    known = [
        leaf
        for leaf in itertools.chain.from_iterable(map(_compat.constants_of, programs))
        if getattr(leaf, "is_fully_addressable", True) and not isinstance(leaf, jax.core.Tracer)
    ]
    with jax.ensure_compile_time_eval():  # It may be asked for while something else is traced.
        return hashlib.sha256((text + sha256(without_keys(known))).encode()).hexdigest()


def as_arrays(dataset: Dataset) -> Dataset:
    """Returns arrays for a learner's `check`; of a stream, zeros of its samples' shapes with the labels of its data."""
    train = dataset.train
    if not isinstance(train, Stream):
        return dataset
    plan = Plan(1, (1,))
    shown = shapes(plan, *jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (train, dataset.test)))
    sample, test = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shown)
    one = jax.tree.map(lambda leaf: leaf[None], sample)
    known = train.data
    if isinstance(one, Examples) and isinstance(known, Examples) and one.targets.shape[1:] == known.targets.shape[1:]:
        one = one._replace(targets=known.targets)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (test, dataset.test)]
    return dataset._replace(train=one, test=test if structures[0] == structures[1] else dataset.test)


def _made(
    train: Stream, position: Position, first: Int[Array, ""], size: int, count: Int[Array, ""]
) -> tuple[Position, PyTree]:
    like = jax.eval_shape(train.advance, position.state, first, train.data)[1]
    empty = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), like)

    def make(index: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        state, made = carry
        state, sample = train.advance(state, first + index, train.data)
        return state, jax.tree.map(lambda samples, one: samples.at[index].set(one), made, sample)

    state, made = lax.fori_loop(0, count, make, (position.state, empty))
    return Position(first + count, state), made


def _chosen(train: PyTree, order: Int[Array, "steps batch"], steps: Int[Array, " size"]) -> PyTree:
    chosen = order.at[steps, 0].get(mode="clip")
    return jax.tree.map(lambda leaf: leaf[chosen], train)


def _rows(plan: Plan, train: PyTree, chosen: Int[Array, " batch"]) -> PyTree:
    if plan.batch_size == 1:
        chosen = chosen[0]  # Gives matrix-vector products instead of matrix products with one row.
    return map_rows(lambda leaf: leaf[chosen], train)
