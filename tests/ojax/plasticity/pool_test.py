"""The ten published rules, and custom ones, against the float64 statement of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from ojax import plasticity
from tests.ojax.meta import statement

pytestmark = pytest.mark.compiled_quickly

N_IN, N_OUT = 7, 4


def layer(batch):
    rng = np.random.default_rng(0)
    return rng.normal(size=(N_IN, N_OUT)), *(rng.normal(size=(batch, n)) for n in (N_IN, N_OUT, N_IN, N_OUT))


def changed(rules, coefficients, kernel, *sides):
    """Returns the transformation's change, added to updates of 1."""
    tx = plasticity.pool(rules, coefficients)
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.ones(3)}
    activity = {"kernel": ojax.Activity(*(jnp.asarray(side, jnp.float32) for side in sides))}
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params, activity=activity)
    np.testing.assert_array_equal(updates["bias"], 1)
    return np.asarray(updates["kernel"]) - 1


def stated(name, kernel, *sides):
    return np.mean([statement.RULES[name](kernel.T, *sample).T for sample in zip(*sides, strict=True)], axis=0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", plasticity.POOL)
def test_a_rule_equals_the_papers(name, batch):
    arrays = layer(batch)
    got = changed({name: plasticity.POOL[name]}, {name: 0.5}, *arrays)
    np.testing.assert_allclose(got, 0.5 * stated(name, *arrays), atol=1e-5, rtol=1e-5)


def test_the_pool_has_all_ten_and_adds_them_up():
    assert set(plasticity.POOL) == set(statement.RULES)
    coefficients = dict(zip(plasticity.POOL, np.linspace(-0.2, 0.3, 10), strict=True))
    for batch in (1, 3):
        arrays = layer(batch)
        want = sum(coefficient * stated(name, *arrays) for name, coefficient in coefficients.items())
        np.testing.assert_allclose(changed(plasticity.POOL, coefficients, *arrays), want, atol=1e-5, rtol=1e-5)


def test_a_custom_rule_joins_by_name():
    def bounded(layer):
        return plasticity.Outer(layer.pre, -jnp.tanh(layer.post_error))

    def hebb(layer):
        return layer.pre.T @ layer.post / len(layer.pre)

    _, pre, post, pre_error, post_error = arrays = layer(1)
    rules = {"bounded": bounded, "hebb": hebb, "ehebb": plasticity.POOL["ehebb"]}
    want = -np.outer(pre, np.tanh(post_error)) + 2 * np.outer(pre, post) - 3 * np.outer(pre_error, post_error)
    np.testing.assert_allclose(changed(rules, {"bounded": 1, "hebb": 2, "ehebb": 3}, *arrays), want, atol=1e-5)


def test_coefficients_may_be_one_for_each_layer():
    arrays = layer(1)
    params = {"a": jnp.asarray(arrays[0], jnp.float32), "b": jnp.asarray(arrays[0], jnp.float32)}
    activity = dict.fromkeys(params, ojax.Activity(*(jnp.asarray(side[0], jnp.float32) for side in arrays[1:])))
    tx = optax.chain(optax.set_to_zero(), plasticity.pool({"oja": plasticity.POOL["oja"]}, {"oja": jnp.array([0.1, -0.4])}))
    updates, _ = tx.update(params, tx.init(params), params, activity=activity)
    np.testing.assert_allclose(updates["a"], 0.1 * stated("oja", *arrays), atol=1e-5)
    np.testing.assert_allclose(updates["b"], -0.4 * stated("oja", *arrays), atol=1e-5)
    for wrong in (jnp.ones(1), jnp.ones(3), jnp.ones((2, 2))):
        tx = plasticity.pool({"oja": plasticity.POOL["oja"]}, {"oja": wrong})
        with pytest.raises(ValueError, match="give a number, or one for each of the 2 kernels with an activity"):
            tx.update(params, tx.init(params), params, activity=activity)


def test_wrong_arguments_are_refused_with_the_reason():
    kernel, *sides = layer(1)
    with pytest.raises(ValueError, match="the rule 'ehebb' has no coefficient, only oja do"):
        plasticity.pool({"ehebb": plasticity.POOL["ehebb"]}, {"oja": 1.0})
    assert changed({"oja": plasticity.POOL["oja"]}, {"oja": 1.0}, kernel, *sides[:2]).any()  # Oja's rule reads no error.
    with pytest.raises(ValueError, match=r"pool: activity\['kernel'\] has no pre_error, which this rule reads"):
        changed({"ehebb": plasticity.POOL["ehebb"]}, {"ehebb": 1.0}, kernel, *sides[:2])
    with pytest.raises(ValueError, match=r"the change 'mine' has shape \(4,\), and not the kernel's, .*\(7, 4\)"):
        changed({"mine": lambda layer: layer.post[0]}, {"mine": 1.0}, kernel, *sides)
    with pytest.raises(ValueError, match="needs the activity"):
        plasticity.pool({}, {}).update({}, optax.EmptyState(), {})
