"""Random and direct feedback equal an independent float64 statement; with the forward weights they are backprop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ojax
from ojax import datasets, feedback, modules, online
from tests.ojax.online.networks import mlp_learner

pytestmark = pytest.mark.compiled_quickly

WIDTHS = (784, 50, 40, 30, 10)


def learner(kind):
    return mlp_learner(WIDTHS, feedback=kind)


def numpy_step(weights, pathways, kind, x, label, eta, theta):
    """Returns one update in the paper's form: W and B of shape (n_out, n_in); for direct feedback B is (n_l, classes)."""
    ys = [x]
    for layer, W in enumerate(weights):
        z = W @ ys[-1]
        ys.append(np.logaddexp(0, 10 * z) / 10 if layer < len(weights) - 1 else np.exp(z) / np.exp(z).sum())
    top = ys[-1] - np.eye(len(ys[-1]))[label]
    errors = [top]
    for layer in reversed(range(1, len(weights))):
        sent = pathways[layer - 1].T @ errors[0] if kind == "random" else pathways[layer - 1] @ top
        errors.insert(0, sent * (1 - np.exp(-10 * ys[layer])))
    return [
        W - eta * np.outer(error, pre) + theta * (np.outer(post, pre) - np.outer(post, post) @ W)
        for W, error, pre, post in zip(weights, errors, ys[:-1], ys[1:], strict=True)
    ]


@pytest.mark.parametrize("kind", ["random", "direct"])
@pytest.mark.parametrize("theta", [0.0, 3e-4])
def test_200_online_steps_equal_the_float64_statement(kind, theta):
    data, steps, eta = datasets.load(), 200, 1e-2
    hyper = {"learning_rate": jnp.float32(eta), "oja_rate": jnp.float32(theta)}
    rule = learner(kind)
    params, state = online.initial_params(rule, hyper, jnp.uint32(3))
    fixed = jax.tree.map(np.asarray, state)
    pathways = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state)]
    assert len(pathways) == len(WIDTHS) - 2
    if kind == "random":
        pathways = [B.T for B in pathways]
    weights = [np.asarray(leaf, np.float64).T for leaf in jax.tree.leaves(params)]
    start, opt_state, learn = weights, rule.optimizer(hyper).init(params), jax.jit(online.step, static_argnums=0)
    for image, label in zip(*(array[:steps] for array in data.train), strict=True):
        made = learn(rule, hyper, params, state, opt_state, datasets.Examples(image, label))
        state, opt_state, params = made.state, made.opt_state, made.params
        rates = float(np.float32(eta)), float(np.float32(theta))
        weights = numpy_step(weights, pathways, kind, image.astype(np.float64), label, *rates)
    for got, want, first in zip(jax.tree.leaves(params), weights, start, strict=True):
        moved = np.abs(want - first).max()
        assert moved > 1e-3
        np.testing.assert_allclose(got.T, want, atol=2e-5 * max(1.0, moved))
    jax.tree.map(np.testing.assert_array_equal, state, fixed)  # Feedback weights are never updated.


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_feedback_through_the_forward_weights_is_backprop(shape):
    x, kernel = jax.random.normal(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (5, 4))

    def loss(x, kernel, backward):
        return jnp.sum(jnp.sin(feedback.matmul(x, kernel, backward)))

    gradients = jax.grad(loss, argnums=(0, 1, 2))(x, kernel, kernel)
    want = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(x @ kernel)), argnums=(0, 1))(x, kernel)
    jax.tree.map(np.testing.assert_array_equal, gradients[:2], want)
    assert not gradients[2].any()


def test_a_network_whose_feedback_is_its_forward_weights_learns_as_by_backprop():
    rule, plain = learner("random"), learner("backprop")
    hyper = {"learning_rate": jnp.float32(1e-2), "oja_rate": jnp.float32(1e-3)}
    params, state = online.initial_params(rule, hyper, jnp.uint32(0))
    same, empty = online.initial_params(plain, hyper, jnp.uint32(0))
    jax.tree.map(np.testing.assert_array_equal, params, same)  # The seed's weights do not depend on the feedback.
    data = datasets.load()
    opt_state, step = rule.optimizer(hyper).init(params), jax.jit(online.step, static_argnums=0)
    for sample in map(datasets.Examples._make, zip(*(array[:20] for array in data.train), strict=True)):
        for layer in range(1, len(WIDTHS) - 1):
            state["layers"][layer]["feedback"] = params["layers"][layer]["kernel"]
        tied = step(rule, hyper, params, state, opt_state, sample).params
        params = step(plain, hyper, params, empty, opt_state, sample).params
        jax.tree.map(np.testing.assert_array_equal, tied, params)


@pytest.mark.parametrize("kind", ["random", "direct"])
def test_errors_are_those_that_the_gradient_is_made_of(kind):
    model = ojax.MLP([6, 5, 4, 3], feedback=kind, rngs=nnx.Rngs(0))
    x, labels = jax.random.normal(jax.random.key(1), (7, 6)), jnp.arange(7) % 3

    def losses(model, x, labels):
        return -jnp.take_along_axis(jax.nn.log_softmax(model(x)), labels[:, None], axis=1)

    gradient = nnx.as_pure(nnx.grad(lambda model: jnp.sum(losses(model, x, labels)))(model))
    activity, errors = map(nnx.as_pure, modules.with_errors(losses, model, x, labels))
    for layer in range(3):
        ((pre, _),) = activity["layers"][layer]["kernel"]
        error = errors["layers"][layer]["error"]
        np.testing.assert_allclose(pre.T @ error, gradient["layers"][layer]["kernel"], atol=1e-5)
    true = nnx.as_pure(modules.with_errors(losses, modules.without_feedback(model), x, labels)[1])
    np.testing.assert_allclose(true["layers"][2]["error"], errors["layers"][2]["error"], atol=1e-6)
    assert jnp.abs(true["layers"][0]["error"] - errors["layers"][0]["error"]).max() > 0.01


def test_feedback_of_no_such_kind():
    with pytest.raises(ValueError, match="telepathy"):
        ojax.MLP([4, 3, 2], feedback="telepathy", rngs=nnx.Rngs(0))
