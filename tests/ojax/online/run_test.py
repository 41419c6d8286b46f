"""A run equals an independent float64 statement, and gradients go through it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from ojax import datasets, online
from ojax.online.run import count_not_finite, first_layer_not_finite
from tests.ojax.online.networks import as_hyper, mlp_learner, oja_sgd, small_data, step_by_step

pytestmark = pytest.mark.compiled_quickly

KINDS = pytest.mark.parametrize(
    ("eta", "theta"), [(1e-2, 0.0), (1e-2, 3e-4), (0.0, 3e-4)], ids=["backprop", "hybrid", "oja"]
)


def softplus64(z):
    return np.logaddexp(0, 10 * z) / 10


def numpy_step(weights, x, label, eta, theta):
    """Returns the new weights by the paper's update in its own form, W of shape (n_out, n_in), with y y^T formed."""
    ys = [x]
    for layer, W in enumerate(weights):
        z = W @ ys[-1]
        ys.append(softplus64(z) if layer < len(weights) - 1 else np.exp(z - z.max()) / np.exp(z - z.max()).sum())
    error = ys[-1] - np.eye(len(ys[-1]))[label]
    new = []
    for layer in reversed(range(len(weights))):
        W, pre, post = weights[layer], ys[layer], ys[layer + 1]
        oja = np.outer(post, pre) - np.outer(post, post) @ W
        new.insert(0, W - eta * np.outer(error, pre) + theta * oja)
        error = (W.T @ error) * (1 - np.exp(-10 * pre))
    return new


@pytest.mark.compiled_quickly(False)  # Programs as compiled for users are compared with the statement.
@KINDS
def test_200_online_steps_equal_the_float64_statement(eta, theta):
    """On real images, from equal initial weights and in equal order, to float32 rounding: `step`, `learn` and `train`."""
    data, learner, steps, hyper = small_data(), mlp_learner(), 200, as_hyper(eta, theta)
    plan = online.Plan(num_train=steps, evaluate_at=(steps,))
    params, state = online.initial_params(learner, hyper, jnp.uint32(3))
    order = np.asarray(online.sample_order(plan, data.num_train, jnp.uint32(3)))[:, 0]
    samples = datasets.Examples(*(array[order] for array in data.train))
    weights = [np.asarray(leaf, np.float64).T for leaf in jax.tree.leaves(params)]
    start, learned = weights, params
    opt_state, step = learner.optimizer(hyper).init(params), jax.jit(online.step, static_argnums=0)
    for sample in map(datasets.Examples._make, zip(*samples, strict=True)):
        made = step(learner, hyper, learned, state, opt_state, sample)
        learned, opt_state = made.params, made.opt_state
        rates = float(np.float32(eta)), float(np.float32(theta))
        weights = numpy_step(weights, sample.inputs.astype(np.float64), sample.targets, *rates)
    for got, want, first in zip(jax.tree.leaves(learned), weights, start, strict=True):
        moved = np.abs(want - first).max()
        assert moved > 1e-3  # The statement did learn, so that agreement is meaningful.
        np.testing.assert_allclose(got.T, want, atol=2e-5 * max(1.0, moved))

    whole = jax.jit(online.learn, static_argnums=0)(learner, hyper, params, state, samples)
    for got, want in zip(jax.tree.leaves(whole.params), jax.tree.leaves(learned), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert whole.sums["train_loss"].total.shape == (steps,)

    # The compiled, mapped and sharded program has the same weight norms, in windows of samples and step by step.
    for optimizer in (oja_sgd, step_by_step):
        rates = {name: [float(rate)] for name, rate in hyper.items()}
        ((_, scores),) = online.train(mlp_learner(optimizer=optimizer), rates, [3], data, plan)
        np.testing.assert_allclose(scores["weight_norm"][0], [np.linalg.norm(W) for W in weights], rtol=1e-5)
        mean = np.sum(whole.sums["train_loss"].total) / np.sum(whole.sums["train_loss"].weight)
        np.testing.assert_allclose(scores["train_loss"][0], mean, rtol=1e-5)


NETWORKS = {
    "backprop": {},
    "random feedback": {"feedback": "random"},
    "direct feedback": {"feedback": "direct"},
    "batch norm": {"normalization": ojax.modules.BatchNorm},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_of_a_whole_run_equals_finite_differences(name):
    """The gradient of the loss after 30 samples with respect to both rates, through all updates, in float64."""
    rng = np.random.default_rng(0)
    learner = online.classifier(lambda rngs: ojax.MLP([6, 5, 4, 3], rngs=rngs, **NETWORKS[name]), oja_sgd)
    with jax.enable_x64(True):
        samples = datasets.Examples(jnp.asarray(rng.normal(size=(30, 6))), jnp.asarray(rng.integers(0, 3, 30)))
        params, state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), learner.init(jax.random.key(0), {}))

        # With random feedback the loss itself must have a true gradient.
        options = NETWORKS[name] if "norm" in name else {}
        true = online.classifier(lambda rngs: ojax.MLP([6, 5, 4, 3], rngs=rngs, **options), oja_sgd)

        @jax.jit
        def loss_after(hyper):
            learned = online.learn(learner, hyper, params, state, samples)
            logits = true.apply(learned.params, learned.state if options else {}, samples.inputs)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, samples.targets))

        hyper = {"learning_rate": jnp.float64(0.03), "oja_rate": jnp.float64(0.02)}
        slopes, size = jax.jit(jax.grad(loss_after))(hyper), 1e-5
        for rate in hyper:
            ends = [float(loss_after(hyper | {rate: hyper[rate] + side * size})) for side in (-1, 1)]
            numeric = (ends[1] - ends[0]) / (2 * size)
            assert abs(numeric) > 1e-3
            np.testing.assert_allclose(slopes[rate], numeric, rtol=1e-5)


def test_oja_alone_finds_the_principal_subspace_of_real_images():
    """A linear layer of 8 units on centred images: W^T W near the identity, in the span of the top 8 components."""
    images = small_data().train.inputs
    images = images - images.mean(axis=0)
    images = images / np.sqrt(np.mean(np.sum(images**2, axis=1)))  # Total variance 1, so that one rate fits.

    def gradient(params, state, x, hyper):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return online.Gradient(zeros, {"kernel": ojax.Activity(x, x @ params["kernel"])}, state, {})

    learner = online.Learner(
        init=lambda key, hyper: ({"kernel": 0.05 * jax.random.normal(key, (784, 8))}, {}),
        gradient=gradient,
        optimizer=lambda hyper: ojax.oja(hyper["oja_rate"]),
        evaluate=lambda params, state, test, hyper: {},
    )
    hyper = {"oja_rate": jnp.float32(0.02)}
    params, state = online.initial_params(learner, hyper, jnp.uint32(0))
    order = online.sample_order(online.Plan(10_000, (10_000,), epochs=4), len(images), jnp.uint32(0))[:, 0]
    learned = jax.jit(online.learn, static_argnums=0)(learner, hyper, params, state, jnp.asarray(images)[order])
    kernel = np.asarray(learned.params["kernel"], np.float64)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(8), atol=0.1)
    components = np.linalg.eigh(images.T @ images)[1][:, -8:]
    cosines = np.linalg.svd(components.T @ np.linalg.qr(kernel)[0], compute_uv=False)
    assert np.mean(cosines**2) > 0.95


def test_the_layer_that_is_not_finite_first():
    def layer(kernel, post):
        params = {"a": {"bias": jnp.array([jnp.nan])}, "b": {"kernel": jnp.ones((2, 2))}, "c": {"kernel": kernel}}
        activity = {"b": {"kernel": (ojax.Activity(jnp.ones(2), post),)}, "c": {"kernel": ojax.Activity(post, post)}}
        return int(first_layer_not_finite(params, activity))

    bad = jnp.array([1.0, jnp.inf])
    assert layer(jnp.ones((2, 2)), bad) == 1  # Among the layers with an activity.
    assert layer(jnp.full((2, 2), jnp.nan), jnp.ones(2)) == 2
    assert layer(jnp.ones((2, 2)), jnp.ones(2)) == 2  # The loss was not finite.
    assert int(first_layer_not_finite({"a": jnp.ones(2), "b": bad, "c": bad}, {})) == 2


def test_weights_of_few_bits_are_finite_if_they_are():
    """The squared norm of this kernel is 72,900, more than float16 holds."""
    kernel = jnp.full((300, 300), 0.9, jnp.float16)
    assert count_not_finite({"kernel": kernel}) == 0 and count_not_finite({"kernel": kernel.at[3, 4].set(jnp.inf)}) == 1
