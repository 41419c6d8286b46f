"""Each measure on cases whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ojax import measures

pytestmark = pytest.mark.compiled_quickly


def orthonormal(rows, columns, seed=0):
    return jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (rows, columns)))[0]


@pytest.mark.parametrize("samples", [8, 4000])
def test_effective_dimension(samples):
    directions = orthonormal(20, 3)
    signs = jnp.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], jnp.float32)
    even = jnp.tile(signs, (samples // 8, 1)) @ directions.T + 5.0  # The mean is no dimension.
    np.testing.assert_allclose(measures.effective_dimension(even), 3, rtol=1e-4)
    uneven = jnp.tile(signs * jnp.array([2.0, 1.0, 0.0]), (samples // 8, 1)) @ directions.T
    np.testing.assert_allclose(measures.effective_dimension(uneven), (4 + 1) ** 2 / (16 + 1), rtol=1e-4)
    assert measures.effective_dimension(jnp.ones((samples, 20))) == 0


def test_gain():
    x = jax.random.normal(jax.random.key(0), (100, 6))
    np.testing.assert_allclose(measures.gain(x, 3 * x @ orthonormal(6, 6)), 3, rtol=1e-5)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_distance_from_orthonormal(shape):
    tall = orthonormal(9, 4)
    kernel = tall if shape == (9, 4) else tall.T
    np.testing.assert_allclose(measures.distance_from_orthonormal(kernel), 0, atol=1e-5)
    np.testing.assert_allclose(measures.distance_from_orthonormal(2 * kernel), 3, rtol=1e-5)
    np.testing.assert_allclose(measures.distance_from_orthonormal(0 * kernel), 1, rtol=1e-6)


def test_singular_values():
    kernel = orthonormal(9, 3) * jnp.array([1.0, 5.0, 2.0]) @ orthonormal(3, 3, seed=1)
    np.testing.assert_allclose(measures.singular_values(kernel), [5, 2, 1], rtol=1e-5)


@pytest.mark.parametrize("samples", [6, 500])
def test_principal_angles(samples):
    """Input of three directions, weight rows that share one, lean at 30 degrees from one and miss one."""
    basis = orthonormal(12, 5)
    weights = jax.random.normal(jax.random.key(2), (samples, 3)) * jnp.array([3.0, 2.0, 1.5])
    inputs = weights @ basis[:, :3].T
    lean = jnp.cos(jnp.pi / 6) * basis[:, 1] + jnp.sin(jnp.pi / 6) * basis[:, 3]
    rows = jnp.stack([basis[:, 0], lean, basis[:, 4]], axis=1) @ jnp.array([[1.0, 2, 0], [0, 1, 0], [1, 0, 3]])
    np.testing.assert_allclose(measures.principal_angles(rows, inputs), [0, 30, 90], atol=0.1)


def test_principal_angles_of_a_layer_that_widens_are_zero():
    inputs = jax.random.normal(jax.random.key(0), (50, 4))
    np.testing.assert_allclose(measures.principal_angles(orthonormal(7, 4).T, inputs), [0] * 4, atol=0.1)


def test_angle():
    one = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    other = jnp.array([[5.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-2.0, -2.0]])
    np.testing.assert_allclose(measures.angle(one, other), (0 + 90 + 180) / 3, rtol=1e-6)
    np.testing.assert_allclose(measures.angle(one[:1], other[:1] + jnp.array([[0.0, 5e-4]])), np.degrees(1e-4), rtol=1e-4)


def test_alignment():
    kernel = jax.random.normal(jax.random.key(0), (40, 30))
    np.testing.assert_allclose(measures.alignment(kernel, 3 * kernel), 1, rtol=1e-5)
    np.testing.assert_allclose(measures.alignment(kernel, -kernel), -1, rtol=1e-5)
    assert abs(measures.alignment(kernel, jax.random.normal(jax.random.key(1), (40, 30)))) < 0.1
