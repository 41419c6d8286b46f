"""The arms of the anatomy, each compared with its formula in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ojax
from experiments.tasks import anatomy_arms as arms
from experiments.tasks import rivals, stresses
from experiments.tasks.registry import ANATOMY, resolve
from ojax import modules
from ojax.trees import named_leaves

pytestmark = pytest.mark.compiled_quickly

WIDTHS, STEPS, ETA, RATE = (9, 8, 7, 6, 6, 4), 4, 0.05, 0.03
HIDDEN = len(WIDTHS) - 2


@functools.cache
def network():
    return modules.as_functions(lambda rngs: ojax.MLP(WIDTHS, rngs=rngs))


@functools.cache
def initial():
    return jax.jit(network().init)(jax.random.key(0))[0]


@functools.cache
def gradient():
    @jax.jit
    def of_sample(params, key):
        x = jax.random.uniform(key, (WIDTHS[0],))

        def loss(params):
            logits, activity, _ = network().apply(params, {}, x)
            return -jax.nn.log_softmax(logits)[1], activity

        return jax.grad(loss, has_aux=True)(params)

    return of_sample


def arrays(tree):
    """Returns the leaves in float64, one per layer."""
    return [np.asarray(leaf, np.float64) for _, leaf in named_leaves(tree)]


def steps_of(name):
    """Returns for each step the kernels, gradients, inputs, outputs and next kernels, one per layer."""
    params, tx = initial(), resolve(ANATOMY[name].rule)(ETA, RATE)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(STEPS):
        grads, activity = gradient()(params, jax.random.key(step))
        calls = [layer["kernel"][0] for _, layer in sorted(activity["layers"].items())]
        sides = [np.asarray(call.pre, np.float64) for call in calls], [np.asarray(call.post, np.float64) for call in calls]
        updates, state = update(grads, state, params, activity=activity)
        after = jax.tree.map(jnp.add, params, updates)
        yield arrays(params), arrays(grads), *sides, arrays(after)
        params = after


def oja(w, x, y):
    return np.outer(x - w @ y, y)


def along(w, x, y):
    return np.sum(oja(w, x, y) * w) / np.sum(w * w) * w


def along_each(w, x, y):
    columns = [(oja(w, x, y)[:, i] @ w[:, i]) / (w[:, i] @ w[:, i]) * w[:, i] for i in range(w.shape[1])]
    return np.stack(columns, axis=1)


def isometry(w, x, y):
    return 2 * w - (w @ w.T @ w if w.shape[0] >= w.shape[1] else w @ (w.T @ w))


def homeostasis(w, x, y):
    return w * (x @ x - y @ y) / (x @ x + y @ y)


def homeostasis_per_neuron(w, x, y):
    share = x @ x / len(y)
    return w * ((share - y**2) / (share + y**2))[None, :]


FORMULAS = {
    "backprop": lambda w, x, y: 0 * w,
    "oja": oja,
    "hebb_term": lambda w, x, y: np.outer(x, y),
    "decay_term": lambda w, x, y: -np.outer(w @ y, y),
    "along_weights": along,
    "rest": lambda w, x, y: oja(w, x, y) - along(w, x, y),
    "along_neurons": along_each,
    "rest_of_neurons": lambda w, x, y: oja(w, x, y) - along_each(w, x, y),
    "diagonal_decay": lambda w, x, y: np.outer(x, y) - w * (y**2)[None, :],
    "homeostasis": homeostasis,
    "homeostasis_per_neuron": homeostasis_per_neuron,
    "homeostasis_and_oja": lambda w, x, y: oja(w, x, y) + arms.HOMEOSTASIS_RATE / RATE * homeostasis(w, x, y),
    "isometry": isometry,
}


def near(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_rule_is_its_formula_in_the_hidden_layers(name, monkeypatch):
    monkeypatch.setattr(rivals, "PULL_EVERY", 1)
    rate = 1.0 if name == "backprop" else RATE
    eta = ETA * RATE if name == "backprop" else ETA  # Its parameter is a factor on the learning rate.
    for kernels, grads, pre, post, after in steps_of(name):
        for layer, (w, g, x, y) in enumerate(zip(kernels, grads, pre, post, strict=True)):
            change = rate * FORMULAS[name](w, x, y) if layer < HIDDEN else 0
            near(after[layer], w - eta * g + change)


def test_the_pull_towards_isometry_acts_every_so_often(monkeypatch):
    monkeypatch.setattr(rivals, "PULL_EVERY", 2)
    for step, (kernels, grads, pre, post, after) in enumerate(steps_of("isometry")):
        rate = 2 * RATE if step % 2 else 0
        near(after[0], kernels[0] - ETA * grads[0] + rate * isometry(kernels[0], pre[0], post[0]))


LAYERS = {  # Of five layers, the read-out included.
    "first_third": {0},
    "middle_third": {1, 2},
    "last_third": {3},
    "with_readout": {0, 1, 2, 3, 4},
}


@pytest.mark.parametrize("name", LAYERS)
def test_oja_in_some_layers(name):
    for kernels, grads, pre, post, after in steps_of(name):
        for layer, (w, g, x, y) in enumerate(zip(kernels, grads, pre, post, strict=True)):
            near(after[layer], w - ETA * g + (RATE * oja(w, x, y) if layer in LAYERS[name] else 0))


@pytest.mark.parametrize(("depth", "sizes"), [(15, (5, 4, 5)), (10, (3, 3, 3)), (5, (1, 2, 1))])
def test_the_thirds_are_all_hidden_layers(depth, sizes):
    third = arms._third(depth)
    assert (third, depth - 1 - 2 * third, third) == sizes


def test_a_fading_rate():
    for step, (kernels, grads, pre, post, after) in enumerate(steps_of("fading_oja")):
        rate = RATE * 2 ** (-step / rivals.HALF_LIFE)
        near(after[0], kernels[0] - ETA * grads[0] + rate * oja(kernels[0], pre[0], post[0]))


def test_the_rest_with_the_norm_of_the_kernel_fixed():
    start = arrays(initial())
    for kernels, grads, pre, post, after in steps_of("rest_of_fixed_norm"):
        for layer, (w, g, x, y) in enumerate(zip(kernels, grads, pre, post, strict=True)):
            new = w - ETA * g
            if layer < HIDDEN:
                new = new + RATE * (oja(w, x, y) - along(w, x, y))
                new = new * np.linalg.norm(start[layer]) / np.linalg.norm(new)
            near(after[layer], new)


def test_normalized_weights():
    for kernels, grads, _, _, after in steps_of("normalized_weights"):
        for layer, (w, g) in enumerate(zip(kernels, grads, strict=True)):
            new = w - ETA * g
            near(after[layer], new * RATE / np.linalg.norm(new, axis=0) if layer < HIDDEN else new)


@pytest.mark.parametrize("on", [True, False])
def test_oja_on_and_off_a_direction(on):
    vectors = [np.ones(n) for n in WIDTHS[:-1]]
    for step, (kernels, grads, pre, post, after) in enumerate(steps_of("on_direction" if on else "off_direction")):
        for layer, (w, g, x, y) in enumerate(zip(kernels, grads, pre, post, strict=True)):
            share, unit = 1 / (step + 1), vectors[layer] / np.linalg.norm(vectors[layer])
            vectors[layer] = (1 - share) * vectors[layer] + share * x * (x @ unit)
            unit = vectors[layer] / np.linalg.norm(vectors[layer])
            part = np.outer(unit, unit) @ oja(w, x, y)
            change = (part if on else oja(w, x, y) - part) if layer < HIDDEN else 0
            near(after[layer], w - ETA * g + RATE * change)


def test_the_direction_is_the_first_uncentred_component():
    rng = np.random.default_rng(0)
    inputs = rng.uniform(size=(2000, 6)) * [1, 2, 3, 1, 1, 0.1]
    state = arms.initial_direction(jnp.zeros((6, 3)))
    state, _ = jax.lax.scan(lambda state, x: (arms.next_direction(state, x), None), state, jnp.float32(inputs[:, None]))
    values, vectors = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    vector = np.asarray(state.vector, np.float64)
    assert abs(vector @ vectors[:, -1]) / np.linalg.norm(vector) > 0.999
    assert np.linalg.norm(vector) == pytest.approx(values[-1], rel=0.05)


def test_a_phase_on_shuffled_pixels_is_ojas_rule_on_shuffled_pixels(monkeypatch):
    monkeypatch.setattr(arms, "NUM_SHUFFLED", 3)
    images = np.random.default_rng(0).uniform(size=(5, WIDTHS[0])).astype(np.float32)
    shown, key = [], jax.random.key(7)

    def grads(params, image):
        jax.debug.callback(lambda image: shown.append(np.asarray(image)), image, ordered=True)
        _, activity, _ = network().apply(params, {}, image)
        return ojax.online.Gradient({}, activity, {}, {})

    found = arrays(arms.shuffled_first(initial(), grads, images, RATE, key))
    jax.effects_barrier()
    kernels = arrays(initial())
    for image, x in zip(images[:3], shown, strict=True):
        np.testing.assert_array_equal(np.sort(x), np.sort(image))
        assert (x != image).any()
        x = np.float64(x)
        for layer in range(HIDDEN):
            y = np.logaddexp(0, 10 * (x @ kernels[layer])) / 10
            kernels[layer], x = kernels[layer] + RATE * oja(kernels[layer], x, y), y
    for layer, wanted in enumerate(kernels):
        near(found[layer], wanted)


def test_a_phase_on_shuffled_pixels_makes_no_connections(monkeypatch):
    monkeypatch.setattr(arms, "NUM_SHUFFLED", 3)
    images = np.random.default_rng(0).uniform(size=(3, WIDTHS[0])).astype(np.float32)
    few = stresses.connected(jax.random.key(1), initial(), 0.5)

    def activity_of(params, image):
        return ojax.online.Gradient({}, network().apply(params, {}, image)[1], {}, {})

    after = arrays(arms.shuffled_first(few, activity_of, images, RATE, jax.random.key(7)))
    for new, old in zip(after, arrays(few), strict=True):
        np.testing.assert_array_equal(new != 0, old != 0)
    assert (after[0] != arrays(few)[0]).any()


def test_every_arm_is_tested_here():
    others = {"fading_oja", "rest_of_fixed_norm", "normalized_weights", "on_direction", "off_direction"}
    assert set(ANATOMY) == {*FORMULAS, *LAYERS, *others, "shuffled_first", "layer_norm"}
    assert resolve(ANATOMY["layer_norm"].network)(WIDTHS, rngs=ojax.modules.nnx.Rngs(0)).layers[0].normalization is not None
