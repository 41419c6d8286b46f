"""The rivals of Oja's rule follow their definitions, and compared doses are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ojax
from experiments import controls, critical_period
from experiments.common import grid
from experiments.tasks import rivals
from experiments.tasks.registry import RIVALS, resolve
from ojax import modules, online, plasticity
from ojax.trees import named_leaves
from tests.experiments.conducting import parse

pytestmark = pytest.mark.compiled_quickly

WIDTHS = [20, 12, 10, 8, 5]


@pytest.fixture(scope="module")
def network():
    """Returns parameters, gradients and activity of one sample."""
    model = modules.as_functions(lambda rngs: ojax.MLP(WIDTHS, rngs=rngs))

    @jax.jit
    def sample(key):
        params, state = model.init(key)
        x = jax.random.uniform(key, (20,))

        def loss(params):
            logits, activity, _ = model.apply(params, state, x)
            return -jax.nn.log_softmax(logits)[2], activity

        return params, *jax.grad(loss, has_aux=True)(params)

    return sample(jax.random.key(0))


def updates(network, rule, *rates):
    @jax.jit
    def update(params, grads, activity):
        tx = optax.with_extra_args_support(rule(*rates))  # As a learner does.
        return tx.update(grads, tx.init(params), params, activity=activity)[0]

    return [leaf for _, leaf in named_leaves(update(*network))]


def arrays(tree):
    return [np.asarray(leaf, np.float64) for _, leaf in named_leaves(tree)]


def test_every_rival_is_there_and_has_an_update(network, monkeypatch):
    monkeypatch.setattr(rivals, "PULL_EVERY", 1)
    plain = updates(network, rivals.backprop, 1e-2, 1.0)
    for name, rival in RIVALS.items():
        found = updates(network, resolve(rival.rule), 1e-2, rival.parameter(1.0))
        assert all(np.isfinite(leaf).all() for leaf in found)
        same = rival.rule == RIVALS["backprop"].rule or name in ("clipping", "annealed")  # For the first step.
        if not same:
            assert any(np.abs(one - other).max() > 1e-7 for one, other in zip(found, plain, strict=True)), name


@pytest.mark.parametrize(("name", "square"), [("orthogonal_weights", 1.0), ("orthogonal_weights_2", 2.0)])
def test_initial_weights_of_a_rival_have_its_own_gain(name, square):
    flags = ("--depth=5", "--init_gain=0.3", "--feedback=backprop", "--learning_rate=1e-2", "--strength=1", "--seeds=1")
    asked = controls.QUESTION._replace(verdict=None)
    settings = parse(asked, f"--rival={name}", *flags)
    (part,) = grid.make(asked, settings, asked.task.load(settings)).parts
    hyper = {name: jnp.float32(values[0]) for name, values in part.hyper.items()}
    params, _ = online.initial_params(part.learner, hyper, jnp.uint32(0))
    for kernel in arrays(params):
        np.testing.assert_allclose(kernel.T @ kernel, square * np.eye(kernel.shape[1]), atol=1e-5)


def test_an_annealed_learning_rate_halves_in_its_half_life(network):
    params, grads, activity = network
    tx = rivals.annealed(0.8, 2.0)

    @jax.jit
    def steps():
        state, found = tx.init(params), []
        for _ in range(5):
            step, state = tx.update(grads, state, params, activity=activity)
            found.append(step)
        return found

    first, _, third, _, fifth = (arrays(step) for step in steps())
    for grad, *of_kernel in zip(arrays(grads), first, third, fifth, strict=True):
        for step, rate in zip(of_kernel, (0.8, 0.4, 0.2), strict=True):
            np.testing.assert_allclose(step, -rate * grad, rtol=1e-6)


def test_hebb_with_normalized_weights_keeps_every_norm(network):
    found = updates(network, rivals.normalized_hebb, 1e-2, 0.1)
    for kernel, update in zip(arrays(network[0]), found, strict=True):
        np.testing.assert_allclose(np.linalg.norm(kernel + update, axis=0), np.linalg.norm(kernel, axis=0), rtol=1e-5)


def test_normalized_steps(network):
    _, grads, activity = network
    found = updates(network, rivals.nlms, 1e-2, 2.0)
    inputs = {path.rsplit("/", 1)[0] if path.endswith("/0") else path: a.pre for path, a in named_leaves(
        activity, lambda node: isinstance(node, ojax.Activity))}  # fmt: skip
    for (path, grad), update in zip(named_leaves(grads), found, strict=True):
        want = -rivals.NLMS_FACTOR * 2e-2 * np.asarray(grad) / (1e-3 + np.sum(np.asarray(inputs[path]) ** 2))
        np.testing.assert_allclose(update, want, rtol=1e-5)


def test_bounded_steps_never_overshoot(network):
    for kappa in (0.02, 2.0):
        total = sum(np.abs(leaf).sum() for leaf in updates(network, rivals.obgd, 1.0, kappa))
        assert total <= 1 / kappa * (1 + 1e-5)
    small = updates(network, rivals.obgd, 1e-7, 2.0)
    for grad, update in zip(arrays(network[1]), small, strict=True):  # Without overshooting it is gradient descent.
        np.testing.assert_allclose(update, -rivals.OBGD_FACTOR * 1e-7 * grad, rtol=1e-5)


def test_a_phase_before_training_has_the_inputs_that_are_learned():
    """Weights that are scaled by images half as large are twice as large in the first layer, and equal above it."""
    flags = ("--depth=3", "--init_gain=1", "--feedback=backprop", "--rival=scaled_weights", "--learning_rate=1e-2")
    asked = controls.QUESTION._replace(verdict=None, keep=None)
    kernels = {}
    for scale in (1, 0.5):
        settings = parse(asked, *flags, f"--input_scale={scale}", "--seeds=1", "--strength=1")
        (part,) = grid.make(asked, settings, asked.task.load(settings)).parts
        hyper = {name: jnp.float32(values[0]) for name, values in part.hyper.items()}
        params, _ = jax.jit(part.learner.init)(jax.random.key(0), hyper)
        kernels[scale] = arrays(params)
    np.testing.assert_allclose(kernels[0.5][0], 2 * kernels[1][0], rtol=1e-5)
    for one, other in zip(kernels[0.5][1:], kernels[1][1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_weights_scaled_by_data_give_every_layer_unit_variance(network):
    inputs = jax.random.uniform(jax.random.key(2), (64, 20))
    x = np.asarray(inputs, np.float64)
    for kernel in arrays(jax.jit(rivals.scaled_by_data)(network[0], inputs)):
        z = x @ kernel
        assert z.std() == pytest.approx(1, rel=1e-4)
        x = np.logaddexp(0, 10 * z) / 10


@pytest.mark.parametrize("square", [1.0, 2.0])
def test_a_pull_towards_isometry_is_a_descent(square):
    kernel = jax.random.normal(jax.random.key(0), (7, 4))

    def distance(kernel):
        return jnp.sum((kernel.T @ kernel - square * jnp.eye(4)) ** 2) / 4

    def pull(kernel):
        return rivals.towards(square)(plasticity.Layer(kernel, None, None))

    np.testing.assert_allclose(pull(kernel), -jax.grad(distance)(kernel), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pull(kernel.T), pull(kernel).T, rtol=1e-6)


@pytest.mark.parametrize(("name", "layers"), [("oja_in_hidden", {0, 1, 2}), ("oja_in_readout", {3}), ("oja_in_first", {0})])
def test_oja_in_some_layers_alone(network, name, layers):
    found = updates(network, resolve(RIVALS[name].rule), 1e-2, 1e-3)
    everywhere, nowhere = (updates(network, ojax.oja_sgd, 1e-2, theta) for theta in (1e-3, 0.0))
    for layer, update in enumerate(found):
        np.testing.assert_allclose(update, (everywhere if layer in layers else nowhere)[layer], rtol=1e-6)


def test_anti_oja_is_oja_with_the_other_sign(network):
    found = updates(network, rivals.anti_oja, 1e-2, 1e-3)
    oja, plain = (updates(network, ojax.oja_sgd, 1e-2, theta) for theta in (1e-3, 0.0))
    for update, with_oja, without in zip(found, oja, plain, strict=True):
        np.testing.assert_allclose(update - without, without - with_oja, atol=1e-7)


def test_a_residual_network_adds_what_both_layers_have():
    model = rivals.Residual(WIDTHS, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).uniform(size=20)
    kernels = [np.asarray(layer.kernel[...], np.float64) for layer in model.layers]

    def softplus(z):
        return np.logaddexp(0, 10 * z) / 10

    h = softplus(x @ kernels[0])
    for kernel in kernels[1:-1]:
        h = softplus(h @ kernel) + h[: kernel.shape[1]]
    np.testing.assert_allclose(nnx.jit(model)(jnp.asarray(x, jnp.float32)), h @ kernels[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("half_life", [50.0, 300.0, 5000.0, np.inf])
def test_doses_are_equal(half_life):
    total, counts = 1000, jnp.arange(1000)
    rates = np.array(
        [
            jax.vmap(lambda count, t=timing: critical_period.rate_at(count, t, 2e-3, half_life, total))(counts)
            for timing in range(len(critical_period.TIMINGS))
        ]
    )
    by_name = dict(zip(critical_period.TIMINGS, rates, strict=True))
    doses = rates.sum(axis=1)
    assert doses == pytest.approx(doses[0], abs=2 * 2e-3)  # Early and late doses are rounded to whole samples.
    assert by_name["even"].std() == pytest.approx(0, abs=1e-9)
    if half_life < total:
        assert by_name["early"][0] == by_name["late"][-1] == pytest.approx(2e-3) and not by_name["late"][0]
        assert by_name["fading"][int(half_life)] == pytest.approx(1e-3)


def test_a_rule_in_hidden_layers_leaves_the_readout_to_gradient_descent():
    flags = ("--depth=10", "--init=glorot_uniform", "--feedback=backprop", "--learning_rate=1e-2", "--oja_half_life=100")
    asked = critical_period.QUESTION._replace(verdict=None)
    settings = parse(asked, *flags, "--timing=fading", "--plastic=hidden", "--oja_rate=0,1e-2", "--seeds=1")
    data = asked.task.load(settings)
    (part,) = grid.make(asked, settings, data).parts
    hyper = {name: jnp.float32(values) for name, values in part.hyper.items()}
    sample = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), data.train)

    @jax.jit
    @jax.vmap
    def once(hyper):
        learner = part.learner
        params, state = online.initial_params(learner, hyper, jnp.uint32(0))
        return online.step(learner, hyper, params, state, learner.optimizer(hyper).init(params), sample).params

    differences = [np.abs(kernel[0] - kernel[1]).max() for kernel in arrays(once(hyper))]
    layers = [rivals.layer_of(path) for path, _ in named_leaves(jax.eval_shape(once, hyper))]
    assert all((difference > 1e-6) == (layer < 9) for difference, layer in zip(differences, layers, strict=True))
