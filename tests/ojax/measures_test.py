"""Each measure on cases with a known value."""

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
    even = jnp.tile(signs, (samples // 8, 1)) @ directions.T + 5.0  # The mean does not count as a dimension.
    np.testing.assert_allclose(measures.effective_dimension(even), 3, rtol=1e-4)
    uneven = jnp.tile(signs * jnp.array([2.0, 1.0, 0.0]), (samples // 8, 1)) @ directions.T
    np.testing.assert_allclose(measures.effective_dimension(uneven), (4 + 1) ** 2 / (16 + 1), rtol=1e-4)
    assert measures.effective_dimension(jnp.ones((samples, 20))) == 0


def test_effective_rank():
    directions, even = orthonormal(20, 3), orthonormal(50, 3, seed=1)
    np.testing.assert_allclose(measures.effective_rank(even @ directions.T), 3, rtol=1e-4)
    shares = np.array([4, 2, 1]) / 7
    uneven = even * jnp.array([4.0, 2.0, 1.0]) @ directions.T
    np.testing.assert_allclose(measures.effective_rank(uneven), np.exp(-np.sum(shares * np.log(shares))), rtol=1e-4)
    assert measures.effective_rank(jnp.zeros((9, 4))) == 0
    assert measures.effective_rank(jnp.ones((9, 4))) == pytest.approx(1, abs=1e-2)  # The mean counts.


def test_gain():
    x = jax.random.normal(jax.random.key(0), (100, 6))
    np.testing.assert_allclose(measures.gain(x, 3 * x @ orthonormal(6, 6)), 3, rtol=1e-5)


def test_the_gain_about_the_mean_leaves_the_mean_out():
    x = np.random.default_rng(0).normal(size=(100, 6)) + 5
    y = 3 * (x - x.mean(axis=0)) @ np.asarray(orthonormal(6, 6)) + 700
    np.testing.assert_allclose(measures.centred_gain(jnp.float32(x), jnp.float32(y)), 3, rtol=1e-3)
    assert measures.centred_gain(jnp.float32(x), jnp.full((100, 4), 0.069)) == pytest.approx(0, abs=1e-6)
    assert np.isnan(measures.centred_gain(jnp.ones((5, 2)), jnp.ones((5, 2))))


def test_the_correlation_of_samples_is_that_of_all_pairs():
    activity = np.random.default_rng(0).uniform(size=(7, 5)) * np.arange(7)[:, None]  # The first is zero, and left out.
    cosines = [
        one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        for place, one in enumerate(activity[1:])
        for other in activity[1:][:place]
    ]
    found = measures.sample_correlation(jnp.float32(activity))
    np.testing.assert_allclose(found, np.mean(cosines), rtol=1e-5)
    np.testing.assert_allclose(measures.sample_correlation(jnp.ones((6, 3)) * jnp.arange(1.0, 7)[:, None]), 1, rtol=1e-5)
    np.testing.assert_allclose(measures.sample_correlation(jnp.eye(4)), 0, atol=1e-6)
    assert np.isnan(measures.sample_correlation(jnp.ones((1, 3))))


def test_explained_energy():
    rng = np.random.default_rng(0)
    x, y, kernel = rng.normal(size=(50, 6)), rng.uniform(size=(50, 4)), rng.normal(size=(6, 4))
    wanted = 1 - np.sum((x - y @ kernel.T) ** 2) / np.sum(x**2)
    np.testing.assert_allclose(measures.explained_energy(*map(jnp.float32, (kernel, x, y))), wanted, rtol=1e-4)
    basis = orthonormal(6, 6)
    inputs = jnp.float32(x) @ basis
    np.testing.assert_allclose(measures.explained_energy(basis, inputs, inputs @ basis), 1, atol=1e-5)


@pytest.mark.parametrize("samples", [8, 500])
def test_the_share_of_weights_in_the_leading_directions(samples):
    basis = orthonormal(12, 12)
    spread = jax.random.normal(jax.random.key(3), (samples, 3)) * jnp.array([5.0, 3.0, 0.1])
    inputs = spread @ basis[:, :3].T
    kernel = basis[:, [0, 1, 2, 7]] * jnp.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(measures.leading_share(kernel, inputs, 2), (1 + 4) / 30, rtol=1e-3)
    np.testing.assert_allclose(measures.leading_share(kernel, inputs, 3), (1 + 4 + 9) / 30, rtol=1e-3)
    np.testing.assert_allclose(measures.leading_share(kernel[:4], spread @ orthonormal(4, 3).T, 10), 1, rtol=1e-4)
    assert np.isnan(measures.leading_share(kernel.at[0, 0].set(jnp.inf), inputs, 2))


def test_a_dead_unit_does_not_vary():
    activity = jnp.stack([jnp.linspace(0, 1, 9), jnp.zeros(9), jnp.full(9, 0.7), jnp.arange(9.0)], axis=1)
    assert measures.dead_units(activity) == 0.5
    assert measures.dead_units(activity, least=0.5) == 0.75


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


def test_the_spectral_radius_is_the_largest_eigenvalue():
    rng = np.random.default_rng(0)
    skewed = np.triu(rng.normal(size=(30, 30)), 1) + np.diag(np.linspace(-0.8, 0.5, 30))  # Far from normal.
    for kernel in (rng.normal(size=(40, 40)) / 6, skewed, 1e-4 * np.eye(5), 300 * np.eye(5)):
        wanted = np.abs(np.linalg.eigvals(kernel)).max()
        np.testing.assert_allclose(measures.spectral_radius(jnp.asarray(kernel, jnp.float32)), wanted, rtol=0.02)
    assert measures.spectral_radius(jnp.zeros((3, 3))) == 0
    assert np.isnan(measures.spectral_radius(jnp.full((3, 3), jnp.inf)))


def test_the_memory_curve_is_that_of_ridge_regression():
    rng = np.random.default_rng(0)
    past = rng.normal(size=(400, 3))
    # The first input is recalled exactly, the second with noise, the third not at all.
    hidden = np.stack([past[:, 0], past[:, 1] + rng.normal(size=400), rng.normal(size=400)], axis=1)
    fitted = np.linalg.solve(hidden[:200].T @ hidden[:200] + 0.1 * np.eye(3), hidden[:200].T @ past[:200])
    recalled = hidden[200:] @ fitted
    wanted = [np.corrcoef(recalled[:, delay], past[200:, delay])[0, 1] ** 2 for delay in range(3)]
    found = measures.memory_curve(jnp.asarray(hidden, jnp.float32), jnp.asarray(past, jnp.float32), ridge=0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    assert found[0] > 0.99 > found[1] > 0.3 > 0.05 > found[2]
    np.testing.assert_array_equal(measures.squared_correlation(jnp.ones((5, 1)), jnp.arange(5.0)[:, None]), [0])


def test_products_of_jacobians_are_multiplied_in_the_order_of_time():
    jacobians = np.random.default_rng(0).normal(size=(4, 3, 3))
    product, wanted = np.eye(3), []
    for jacobian in jacobians:
        product = jacobian @ product
        wanted.append(np.sqrt(np.mean(np.linalg.svd(product, compute_uv=False) ** 2)))
    np.testing.assert_allclose(measures.norms_of_products(jnp.asarray(jacobians, jnp.float32)), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "measure",
    [
        measures.effective_dimension,
        measures.effective_rank,
        measures.sample_correlation,
        measures.dead_units,
        measures.singular_values,
        lambda activity: measures.angle(activity, activity),
        lambda activity: measures.squared_correlation(activity, activity)[0],
    ],
)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_measure_of_numbers_that_are_not_finite_is_nan(measure, number):
    activity = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    activity[3, 0] = number
    assert np.isnan(measure(jnp.asarray(activity))).all()
