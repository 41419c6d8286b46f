"""Random numbers for every parameter and step: a random stretch of one table.

Drawing new numbers in every step would take ten times as long as learning.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PRNGKeyArray, PyTree

# A table has this many numbers more than the largest parameter, and so this many different stretches.
SIZE = 2**16


def key_of(params: PyTree) -> PRNGKeyArray:
    """Returns a key that differs between seeds, from the bits of all weights, since transformations get no key."""
    bits = jnp.uint32(0)
    for leaf in jax.tree.leaves(params):
        if leaf.ndim >= 2:  # Unlike a float sum, this does not depend on the order of the weights, or on parallel runs.
            words = lax.bitcast_convert_type(leaf, jnp.uint32)
            bits ^= lax.reduce(words, np.uint32(0), lax.bitwise_xor, range(leaf.ndim))
    return jax.random.key(bits)


def normal(key: PRNGKeyArray, params: PyTree) -> PyTree:
    """Returns standard normal numbers of the shapes of the parameters."""
    return _stretches(key, params, lambda size: np.random.default_rng(0).standard_normal(size, np.float32))


def uniform(key: PRNGKeyArray, params: PyTree) -> PyTree:
    """Returns uniform numbers from 0 to below 1, of the shapes of the parameters."""
    return _stretches(key, params, lambda size: np.random.default_rng(1).random(size, np.float32))


def _stretches(key, params, table_of):
    leaves, structure = jax.tree.flatten(params)
    table = jnp.asarray(table_of(SIZE + max(leaf.size for leaf in leaves)))
    starts = jax.random.randint(key, (len(leaves),), 0, SIZE, jnp.int32)
    parts = [
        lax.dynamic_slice(table, (start,), (leaf.size,)).reshape(leaf.shape)
        for start, leaf in zip(starts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)
