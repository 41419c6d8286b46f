"""Materializing changes neither numbers nor derivatives."""

import jax
import jax.numpy as jnp
import numpy as np

from ojax.plasticity.fusion import materialized


def test_it_is_the_identity_in_every_order():
    x = jnp.array([1.5, -0.0, -2.25, jnp.inf, jnp.nan])

    def cube(x):
        return jnp.sum(materialized(x) ** 3)

    def plain(x):
        return jnp.sum(x**3)

    np.testing.assert_array_equal(materialized(x), x)
    np.testing.assert_array_equal(jax.grad(cube)(x), jax.grad(plain)(x))
    second, wanted = (jax.grad(lambda x, f=f: jnp.sum(jax.grad(f)(x)))(x) for f in (cube, plain))
    np.testing.assert_array_equal(second, wanted)


def test_xla_makes_a_vector_once_and_not_in_every_row():
    def outer(matrix, x, *, kept):
        vector = jnp.tanh(x) * 3 + x
        return matrix + jnp.ones(len(matrix))[:, None] * (materialized(vector) if kept else vector)

    def operations(*, kept):
        """Returns the largest number of operations in one loop over the matrix."""
        matrix, x = jnp.ones((300, 20)), jnp.ones(20)
        program = jax.jit(lambda *args: outer(*args, kept=kept)).lower(matrix, x).compile().as_text()
        loops = [part for part in program.split("\n\n") if "ROOT" in part and "f32[300,20]{1,0} add(" in part]
        return max(loop.count(" = ") for loop in loops)

    assert operations(kept=True) < operations(kept=False)
