"""Products with one sample as multiply and sum, which is what a TPU is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ojax import online
from ojax.online import devices, products, programs
from tests.ojax.online.networks import as_hyper, mlp_learner, oja_sgd, small_data, step_by_step

pytestmark = pytest.mark.compiled_quickly


def products_of_vectors(program):
    """How many products of a matrix and a vector a program has, those in loops and calls among them."""
    text = str(program)
    return text.count("dimension_numbers=(([0], [0]), ([], []))") + text.count("dimension_numbers=(([1], [0]), ([], []))")


def network(**options):
    return mlp_learner((784, 12, 9, 10), optimizer=step_by_step, **options)


@pytest.mark.parametrize("feedback", ["backprop", "random", "direct"])
def test_a_sample_is_learned_alike_and_without_a_product_of_its_own(feedback):
    learner, hyper = network(feedback=feedback), as_hyper(1e-2, 1e-3)
    params, state = online.initial_params(learner, hyper, 0)
    samples = jax.tree.map(lambda leaf: jnp.asarray(leaf[:20]), small_data().train)

    def learn(params, state, samples):
        return online.learn(learner, hyper, params, state, samples).params

    summed = products.as_sums(learn)
    plain, found = (jax.jit(function)(params, state, samples) for function in (learn, summed))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6), plain, found)
    before, after = (jax.make_jaxpr(function)(params, state, samples) for function in (learn, summed))
    assert products_of_vectors(before) >= 5 and products_of_vectors(after) == 0


def test_a_gradient_through_what_is_learned_is_alike():
    """Its program has rematerialized parts and calls of its own."""
    learner = mlp_learner((784, 6, 10), optimizer=step_by_step)
    params, state = online.initial_params(learner, as_hyper(1e-2, 1e-3), 0)
    samples = jax.tree.map(lambda leaf: jnp.asarray(leaf[:6]), small_data().train)

    def gradient(params, samples):
        def loss(rates):
            learned = online.learn(learner, rates, params, state, samples, segment=2)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(learned.params))

        return jax.grad(loss)(as_hyper(1e-2, 1e-3))

    summed = products.as_sums(gradient)
    plain, found = (jax.jit(function)(params, samples) for function in (gradient, summed))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4), plain, found)
    before, after = (jax.make_jaxpr(function)(params, samples) for function in (gradient, summed))
    assert products_of_vectors(before) >= 5 and products_of_vectors(after) == 0
    assert "checkpoint" in str(after) or "remat" in str(after)


def test_products_of_matrices_and_whatever_else_there_is_stay():
    def function(matrix, vector, flag):
        looped = jax.lax.fori_loop(0, 3, lambda _, v: jax.nn.softplus(matrix.T @ (matrix @ v)), vector)
        chosen = jax.lax.cond(flag, lambda v: v @ matrix.T, lambda v: matrix @ (2 * v), looped)
        _, scanned = jax.lax.scan(lambda carry, row: (carry, row @ carry), vector, matrix)
        return {"chosen": chosen, "scanned": scanned, "square": matrix @ matrix.T, "whole": jnp.arange(3) @ jnp.arange(3)}

    rng = np.random.default_rng(0)
    matrix, vector = (jnp.asarray(rng.normal(size=size), jnp.float32) / 2 for size in ((4, 3), 3))
    for flag in (True, False):
        found, wanted = products.as_sums(function)(matrix, vector, flag), function(matrix, vector, flag)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), found, wanted)


def test_runs_side_by_side_learn_alike(monkeypatch):
    """The programs of a GPU and a TPU, here on a CPU: windows of fixed length, sums, and runs that diverge."""
    learner = mlp_learner((784, 12, 9, 10), optimizer=oja_sgd)
    hyper, seeds = online.grid({"learning_rate": [1e-2], "oja_rate": [0.0, 1e-3, 1e6]}, seeds=range(2))
    plan = online.Plan(90, (40, 90))  # No whole number of windows.

    def scores():
        return list(online.train(learner, hyper, seeds, small_data(), plan))

    plain = scores()
    monkeypatch.setattr(devices, "QUICKLY", {})
    for platform in ("gpu", "tpu"):
        monkeypatch.setattr(devices, "platform", lambda mesh, platform=platform: platform)
        programs.programs.cache_clear()
        for (_, found), (_, wanted) in zip(scores(), plain, strict=True):
            alive = wanted["diverged_at"] < 0
            assert alive.tolist() == [True] * 4 + [False] * 2
            np.testing.assert_array_equal(found["diverged_at"], wanted["diverged_at"])
            for name, column in wanted.items():
                np.testing.assert_allclose(found[name][alive], column[alive], rtol=2e-3, atol=1e-5, err_msg=name)
        # A run that has diverged keeps its weights, as bits, whatever is in them.
        first, last = (found["weight_norm"][4:] for _, found in scores())
        np.testing.assert_array_equal(first, last)
    programs.programs.cache_clear()
