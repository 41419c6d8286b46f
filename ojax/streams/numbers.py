"""Random numbers for streams, a few at a time, computed without a loop."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt32


class Numbers(NamedTuple):
    """A source of random numbers: two words of a key, and how many have been drawn."""

    key: UInt32[Array, " 2"]
    drawn: UInt32[Array, ""]


def begin(key: PRNGKeyArray) -> Numbers:
    """Returns a source of random numbers with a key as its seed."""
    return Numbers(jax.random.bits(key, (2,), jnp.uint32), jnp.uint32(0))


def uniform(numbers: Numbers, size: int = 1) -> tuple[Numbers, Float[Array, " size"]]:
    """Returns the new source, and the next numbers, uniform from 0 to 1."""
    counter = numbers.drawn + jnp.arange(size, dtype=jnp.uint32)
    bits, _ = threefry(numbers.key, (counter, jnp.zeros_like(counter)))
    # The bits become the fraction of a float between 1 and 2.
    ones = lax.bitcast_convert_type((bits >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32)
    return numbers._replace(drawn=numbers.drawn + np.uint32(size)), ones - 1


def threefry(key: UInt32[Array, " 2"], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Returns two random words from a key and a counter: Threefry-2x32 with 20 rounds, JAX's default generator.

    JAX's own implementation is a loop on a CPU. For one number per step this loop takes longer than a step of learning.

    Source: Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405, section 4.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    one, two = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            one = one + two
            two = one ^ ((two << np.uint32(bits)) | (two >> np.uint32(32 - bits)))
        one, two = one + keys[(group + 1) % 3], two + keys[(group + 2) % 3] + np.uint32(group + 1)
    return one, two
