"""The statements of docs/how/rule.md on Oja's rule at rest and its stability hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ojax
from ojax import measures, modules

pytestmark = pytest.mark.compiled_quickly


def at_rest(activation, inputs, kernel, rate=0.05, updates=8000):
    """Returns the kernel after many updates by the whole batch, and the last change, in float64."""
    with jax.enable_x64(True):

        @jax.jit
        def learned(kernel, x):
            tx = ojax.oja(rate)

            def update(_, carry):
                params = carry[0]
                activity = {"kernel": ojax.Activity(pre=x, post=activation(x @ params["kernel"]))}
                changes, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, activity=activity)
                return jax.tree.map(jnp.add, params, changes), changes

            params = {"kernel": kernel}
            return jax.lax.fori_loop(0, updates, update, (params, params))

        params, changes = learned(jnp.asarray(kernel, jnp.float64), jnp.asarray(inputs, jnp.float64))
        return np.asarray(params["kernel"]), np.abs(changes["kernel"]).max()


def inputs_and_kernel():
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(200, 12)) + 0.3) * np.linspace(2, 0.5, 12)
    return inputs, rng.uniform(-0.6, 0.6, size=(12, 5))


def gains(inputs, kernel, post):
    """Returns the squared gain, the explained energy, and the squared norm of `W y` over the squared norm of the output."""
    explained = post @ kernel.T
    return (
        np.sum(post**2) / np.sum(inputs**2),
        1 - np.sum((inputs - explained) ** 2) / np.sum(inputs**2),
        np.sum(explained**2) / np.sum(post**2),
    )


def test_at_rest_the_gain_is_what_the_output_explains():
    inputs, start = inputs_and_kernel()
    kernel, last = at_rest(jax.nn.relu, inputs, start)
    assert last < 1e-9  # It is at rest.
    post = np.maximum(inputs @ kernel, 0)
    gain, explained, back = gains(inputs, kernel, post)
    assert gain == pytest.approx(explained, rel=1e-6) and back == pytest.approx(1, rel=1e-6)
    found = measures.explained_energy(*map(jnp.float32, (kernel, inputs, post)))
    assert float(found) == pytest.approx(gain, abs=1e-3) == pytest.approx(float(measures.gain(inputs, post)) ** 2, abs=1e-3)
    # This does not need orthonormal weights, and does not hold for all kernels.
    assert measures.distance_from_orthonormal(jnp.float32(kernel)) > 0.3
    gain, explained, back = gains(inputs, start, np.maximum(inputs @ start, 0))
    assert abs(gain - explained) > 0.01 and abs(back - 1) > 0.01


def test_with_softplus_it_is_nearly_so():
    inputs, start = inputs_and_kernel()
    kernel, last = at_rest(modules.softplus, inputs, start)
    post = np.logaddexp(0, 10 * (inputs @ kernel)) / 10
    gain, explained, back = gains(inputs, kernel, post)
    assert last < 1e-9 and gain == pytest.approx(explained, abs=0.03) and back == pytest.approx(1, abs=0.03)
    assert gain != pytest.approx(explained, abs=1e-4)


def test_a_linear_layer_at_rest_is_an_orthonormal_basis_of_the_principal_subspace():
    inputs, start = inputs_and_kernel()
    kernel, last = at_rest(modules.linear, inputs, start)
    assert last < 1e-9 and measures.distance_from_orthonormal(jnp.float32(kernel)) < 1e-3
    assert np.max(measures.principal_angles(jnp.float32(kernel), jnp.float32(inputs))) < 0.1
    relu, _ = at_rest(jax.nn.relu, inputs, start)
    assert np.max(measures.principal_angles(jnp.float32(relu), jnp.float32(inputs))) > 10  # Nor is it so for ReLU.


def residuals(kernel, x, y, rate, updates=60):
    """Returns the norm of `x - W y` after each update with fixed x and y."""
    tx, found = ojax.oja(rate), []
    params = {"kernel": jnp.float32(kernel)}
    update = jax.jit(tx.update)
    for _ in range(updates):
        activity = {"kernel": ojax.Activity(pre=jnp.float32(x), post=jnp.float32(y))}
        changes, _ = update({"kernel": jnp.zeros_like(params["kernel"])}, tx.init(params), params, activity=activity)
        params = jax.tree.map(jnp.add, params, changes)
        found.append(np.linalg.norm(x - np.asarray(params["kernel"], np.float64) @ y))
    return np.array(found)


@pytest.mark.parametrize(("bound", "factor"), [(0.5, 0.5), (1.9, 0.9), (2.1, 1.1)])
def test_with_its_output_held_fixed_it_is_stable_below_2(bound, factor):
    """Each update multiplies the residual by `1 - theta |y|^2`."""
    rng = np.random.default_rng(0)
    x, y, kernel = rng.normal(size=6), rng.uniform(size=4), rng.normal(size=(6, 4))
    found = residuals(kernel, x, y, bound / (y @ y))
    np.testing.assert_allclose(found[1:12] / found[:11], factor, rtol=2e-2)
    assert (found[-1] < found[0]) == (bound < 2)


def neuron(strength, updates=400, start=0.9):
    """Returns the length a of a linear neuron's weights along its input x; the strength is `theta |x|^2`."""
    a, found = start, []
    for _ in range(updates):
        a += strength * a * (1 - a**2)  # y = a |x|, and x - a y / |x| = (1 - a^2) x.
        if abs(a) > 1e6:
            return np.array([*found, np.inf])
        found.append(a)
    return np.array(found)


def test_along_its_weights_a_linear_neuron_settles_wanders_or_diverges():
    for strength in (0.1, 0.5, 0.95):
        found = neuron(strength)
        assert found[-1] == pytest.approx(1, abs=1e-6)
    near = neuron(0.3, start=1 - 1e-4)
    np.testing.assert_allclose((1 - near[:5]) / np.append(1e-4, 1 - near[:4]), 1 - 2 * 0.3, rtol=1e-3)
    for strength in (1.1, 1.5, 1.95):
        found = neuron(strength)
        assert np.ptp(found[-50:]) > 0.05 and np.abs(found).max() < 2
    for strength in (2.1, 3.0):
        assert not np.isfinite(neuron(strength)[-1])


def test_the_formula_of_the_neuron_is_the_rules():
    x, theta = np.array([0.6, 0.8, 0.0]), 1.3
    params = {"kernel": jnp.float32(0.9 * x[:, None])}
    tx, zeros = ojax.oja(theta), {"kernel": jnp.zeros((3, 1))}
    for wanted in neuron(theta, updates=3):
        activity = {"kernel": ojax.Activity(pre=jnp.float32(x), post=jnp.float32(x) @ params["kernel"])}
        changes, _ = tx.update(zeros, tx.init(params), params, activity=activity)
        params = jax.tree.map(jnp.add, params, changes)
        np.testing.assert_allclose(params["kernel"], wanted * x[:, None], rtol=1e-5, atol=1e-6)
