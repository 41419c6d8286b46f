"""Checksums of saved states, and conversion of random keys to arrays that can be saved."""

import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PyTree, UInt32

from ojax.trees import named_leaves


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def without_keys(tree: PyTree) -> PyTree:
    """Replaces random keys by their raw data, since Orbax writes only arrays of numbers."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def with_keys(tree: PyTree, like: PyTree) -> PyTree:
    """Turns raw data back into random keys where `like` has keys."""

    def as_before(leaf: Array, before: Array) -> Array:
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(before)) if _is_key(before) else leaf

    return jax.tree.map(as_before, tree, like)


def sha256(tree: PyTree) -> str:
    """Returns a hash of the paths, types, shapes and numbers of arrays on the host."""
    found = hashlib.sha256()
    for name, leaf in named_leaves(tree):
        array = np.ascontiguousarray(leaf)
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


@jax.jit
def checksum(state: PyTree, seen: UInt32[Array, ""]) -> UInt32[Array, " runs"]:
    """Returns one checksum per run, which changes with any word of the run's state and with its count of samples."""

    def of_leaf(leaf: Array) -> Array:
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        words = lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")).astype(jnp.uint32)
        words = words.reshape(len(leaf), -1)
        # Odd factors have inverses modulo 2^32, so a change of a single word always changes the sum.
        return jnp.sum(words * (2 * lax.broadcasted_iota(jnp.uint32, words.shape, 1) + 1), axis=1, dtype=jnp.uint32)

    sums = [of_leaf(leaf) for leaf in jax.tree.leaves(state)]
    return sum((np.uint32(pow(31, index, 2**32)) * value for index, value in enumerate(sums)), start=seen)


@partial(jax.jit, static_argnums=2)
def num_differing(saved: Array, computed: Array, num_runs: int) -> Int[Array, ""]:
    """Returns how many of the first `num_runs` runs have another checksum than was saved."""
    return jnp.sum((saved != computed) & (jnp.arange(len(saved)) < num_runs))
