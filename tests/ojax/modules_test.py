"""Activity trees have the paths of the parameters, and networks of all kinds learn with Oja's rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import ojax
from ojax import datasets, modules
from tests.ojax.online.networks import LinearNetwork

pytestmark = pytest.mark.compiled_quickly


@pytest.fixture(scope="module")
def images_and_labels():
    return tuple(jnp.asarray(array[:600]) for array in datasets.load().train)


def test_softplus_and_its_derivative():
    z = jnp.array([-5.0, -0.1, 0.0, 0.1, 5.0])
    y = modules.softplus(z)
    np.testing.assert_allclose(y, np.log1p(np.exp(10 * np.array(z, np.float64))) / 10, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(modules.softplus))(z), 1 - np.exp(-10 * y), atol=1e-6)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_the_activity_of_an_mlp(use_bias, batch):
    model = ojax.MLP([6, 5, 4], activation=jax.nn.relu, use_bias=use_bias, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (*batch, 6))
    logits, activity = ojax.with_activity(model, x)
    first, second = (layer.kernel[...] for layer in model.layers)
    hidden = jax.nn.relu(x @ first)
    np.testing.assert_allclose(logits, hidden @ second, atol=1e-6)
    activity = nnx.to_pure_dict(activity)["layers"]
    (readout,), (encoder,) = activity[1]["kernel"], activity[0]["kernel"]
    for got, want in ((encoder, (x, hidden)), (readout, (hidden, jax.nn.softmax(logits)))):
        np.testing.assert_allclose(got.pre, want[0], atol=1e-6)
        np.testing.assert_allclose(got.post, want[1], atol=1e-6)
    assert set(nnx.to_pure_dict(nnx.state(model, nnx.Param))["layers"][0]) == (
        {"kernel", "bias"} if use_bias else {"kernel"}
    )


def test_recording_changes_nothing_outside_of_with_activity():
    model = ojax.MLP([6, 5, 4], rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.state(model))
    np.testing.assert_array_equal(model(jnp.ones(6)), ojax.with_activity(model, jnp.ones(6))[0])
    assert jax.tree.structure(before) == jax.tree.structure(nnx.state(model))


def test_a_linear_readout_records_what_it_returns():
    model = ojax.MLP([6, 5, 1], readout=modules.linear, rngs=nnx.Rngs(0))
    output, activity = ojax.with_activity(model, jnp.ones(6))
    np.testing.assert_array_equal(nnx.to_pure_dict(activity)["layers"][1]["kernel"][0].post, output)
    with pytest.raises(ValueError, match="softmax of a single unit"):
        ojax.MLP([6, 5, 1], rngs=nnx.Rngs(0))


@pytest.mark.parametrize("widths", [[], [4], [4, 0, 2], [4, -1]])
def test_widths_that_make_no_network(widths):
    with pytest.raises(ValueError, match="width"):
        ojax.MLP(widths, rngs=nnx.Rngs(0))


def test_the_state_of_a_model_is_a_tree_that_the_rule_takes():
    model = ojax.MLP([6, 5, 4], rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    _, activity = ojax.with_activity(model, jnp.ones(6))
    tx = ojax.oja(1e-2)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, activity=activity)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates))


def test_an_nnx_network_without_options_learns(images_and_labels):
    images, labels = images_and_labels
    model = LinearNetwork(nnx.Rngs(0), (784, 64, 10))
    optimizer = nnx.Optimizer(model, ojax.oja_sgd(1e-2, 1e-4), wrt=nnx.Param)

    def loss_fn(model, image, label):
        return optax.softmax_cross_entropy_with_integer_labels(model(image), label)

    @nnx.jit
    def train_step(model, optimizer, image, label):
        (_, activity), grads = ojax.value_and_grad(loss_fn)(model, image, label)
        optimizer.update(model, grads, activity=activity)

    def accuracy():
        return float(jnp.mean(jnp.argmax(model(images), axis=-1) == labels))

    before, old = accuracy(), model.encoder.kernel[...]
    for image, label in zip(images, labels, strict=True):
        train_step(model, optimizer, image, label)
    assert accuracy() > max(0.6, before + 0.3)
    assert not jnp.array_equal(old, model.encoder.kernel[...])


def test_value_and_grad_is_that_of_flax_with_the_activity():
    model, x = ojax.MLP([6, 5, 4], normalization=modules.BatchNorm, rngs=nnx.Rngs(0)), jnp.arange(6.0)
    other = nnx.clone(model)

    def loss_fn(model, x, power):
        logits = model(x)
        return jnp.sum(logits**power), logits

    ((loss, logits), activity), grads = ojax.value_and_grad(loss_fn, has_aux=True)(model, x, power=2)
    (want, want_logits), want_grads = nnx.value_and_grad(loss_fn, has_aux=True)(other, x, 2)
    np.testing.assert_array_equal(loss, want)
    np.testing.assert_array_equal(logits, want_logits)
    jax.tree.map(np.testing.assert_array_equal, grads, want_grads)
    # The running statistics were updated once, as without it.
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(other))
    ((pre, _),) = nnx.to_pure_dict(activity)["layers"][0]["kernel"]
    np.testing.assert_array_equal(pre, x)
    (alone, _), _ = ojax.value_and_grad(lambda model, x: jnp.sum(model(x) ** 2))(nnx.clone(other), x)
    assert alone.shape == ()


def test_a_network_inside_of_vmap_records_a_batch():
    model, x = ojax.MLP([6, 5, 4], rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (3, 6))
    mapped, whole = (
        ojax.value_and_grad(lambda model, x, call=call: jnp.mean(call(model)(x)))(model, x)[0][1]
        for call in (jax.vmap, lambda model: model)
    )
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), mapped, whole)


class LinenNetwork(linen.Module):
    """A user's own network of `linen.Dense`, unchanged."""

    @linen.compact
    def __call__(self, x):
        hidden = linen.relu(linen.Dense(64)(x))
        return linen.Dense(10)(hidden)


def linen_post(path, z):
    return linen.softmax(z) if path == "Dense_1" else linen.relu(z)


def test_the_nonlinearities_of_a_linen_network_by_name():
    model, x = LinenNetwork(), jnp.arange(5.0)
    variables = model.init(jax.random.key(0), x)

    def activity(post):
        return ojax.apply_linen(model, variables, x, post=post)[1]

    want = activity(linen_post)
    jax.tree.map(np.testing.assert_array_equal, activity({"Dense_1": linen.softmax, ...: linen.relu}), want)
    jax.tree.map(np.testing.assert_array_equal, activity({"Dense_1": linen.softmax, "Dense_0": linen.relu}), want)
    with pytest.raises(ValueError, match="no non-linearity for the layer 'Dense_1'"):
        activity({"Dense_0": linen.relu})


def test_a_linen_network_learns(images_and_labels):
    model = LinenNetwork()
    params = model.init(jax.random.key(0), images_and_labels[0][0])["params"]
    tx = ojax.oja_sgd(1e-2, 1e-4)

    def step(carry, sample):
        params, state = carry
        image, label = sample

        def loss_fn(params):
            logits, activity = ojax.apply_linen(model, {"params": params}, image, post=linen_post)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label), activity

        (_, activity), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(grads, state, params, activity=activity)
        return (optax.apply_updates(params, updates), state), None

    images, labels = images_and_labels
    (learnt, _), _ = jax.lax.scan(step, (params, tx.init(params)), images_and_labels)
    accuracy = [jnp.mean(jnp.argmax(model.apply({"params": p}, images), axis=-1) == labels) for p in (params, learnt)]
    assert accuracy[1] > max(0.6, accuracy[0] + 0.3)


def test_linen_activity_and_the_models_own_collections():
    class WithStatistics(linen.Module):
        @linen.compact
        def __call__(self, x):
            hidden = linen.BatchNorm(use_running_average=False)(linen.Dense(3)(x))
            return linen.Dense(2)(hidden)

    model, x = WithStatistics(), jax.random.normal(jax.random.key(0), (4, 5))
    variables = model.init(jax.random.key(1), x)
    (output, changed), activity = ojax.apply_linen(model, variables, x, post=lambda _, z: z, mutable=["batch_stats"])
    want, want_changed = model.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(output, want)
    jax.tree.map(np.testing.assert_array_equal, changed, want_changed)
    assert set(activity) == {"Dense_0", "Dense_1"}
    np.testing.assert_array_equal(activity["Dense_0"]["kernel"][0].pre, x)
    np.testing.assert_array_equal(activity["Dense_1"]["kernel"][0].post, output)


def test_as_functions_is_the_same_network():
    def make(rngs):
        return ojax.MLP([6, 5, 4], rngs=rngs)

    network = modules.as_functions(make)
    model = make(nnx.Rngs(jax.random.key(7)))
    x = jnp.arange(6.0)
    params, state = network.init(jax.random.key(7))
    assert not jax.tree.leaves(state)
    logits, activity, state = jax.jit(network.apply)(params, state, x)
    want, want_activity = ojax.with_activity(model, x)
    np.testing.assert_allclose(logits, want, atol=1e-6)
    for got, wanted in zip(jax.tree.leaves(activity), jax.tree.leaves(want_activity), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_batch_norm_learns_online_by_running_statistics():
    samples = 3 + 2 * jax.random.normal(jax.random.key(0), (2000, 4))
    norm = modules.BatchNorm(4, rngs=nnx.Rngs(0))
    first = norm(samples[0])
    assert jnp.isfinite(first).all() and jnp.any(first != 0)
    graphdef, state = nnx.split(norm)

    def step(state, sample):
        norm = nnx.merge(graphdef, state)
        normalized = norm(sample)
        return nnx.state(norm), normalized

    state, normalized = jax.lax.scan(step, state, samples[1:])
    late = np.asarray(normalized[1000:])
    np.testing.assert_allclose(late.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose(late.std(axis=0), 1, atol=0.15)
    learned = nnx.merge(graphdef, state)
    learned.eval()
    before = np.asarray(learned.mean[...])
    np.testing.assert_allclose(learned(jnp.full(4, 3.0)), 0, atol=0.4)
    np.testing.assert_array_equal(before, learned.mean[...])  # Evaluation changes no statistics.


def test_batch_norm_of_a_batch_is_that_of_flax():
    x = jax.random.normal(jax.random.key(0), (8, 4))
    ours, theirs = modules.BatchNorm(4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(ours(x), theirs(x))
    np.testing.assert_array_equal(ours.var[...], theirs.var[...])


@pytest.mark.parametrize("normalization", [nnx.LayerNorm, modules.BatchNorm])
def test_normalization_leaves_the_weights_of_a_seed_alone(normalization):
    def init(normalization):
        return modules.as_functions(lambda rngs: ojax.MLP([6, 5, 4], normalization=normalization, rngs=rngs)).init

    plain, normalized = (init(kind)(jax.random.key(0))[0]["layers"] for kind in (None, normalization))
    for layer in range(2):
        np.testing.assert_array_equal(plain[layer]["kernel"], normalized[layer]["kernel"])
    assert set(normalized[0]["normalization"]) == {"scale", "bias"} and "normalization" not in normalized[1]


class StatefulNetwork(nnx.Module):
    """A network whose state changes before a layer that is recorded inside of a transformation."""

    def __init__(self, rngs):
        self.norm, self.dropout = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.layer = modules.Dense(4, 3, rngs=rngs)

    def __call__(self, x):
        return nnx.remat(lambda layer, x: layer(x))(self.layer, self.dropout(self.norm(x)))


def test_the_state_of_a_network_changes_once_a_call():
    x = jax.random.normal(jax.random.key(0), (5, 4)) + 2
    ours, flax = (StatefulNetwork(nnx.Rngs(0)) for _ in range(2))
    (loss, activity), grads = ojax.value_and_grad(lambda model: jnp.sum(model(x)))(ours)
    want, want_grads = nnx.value_and_grad(lambda model: jnp.sum(model(x)))(flax)
    assert activity["layer"]["kernel"].get_value()[0].pre.shape == (5, 4)
    for one, other in ((loss, want), (grads, want_grads), (nnx.state(ours), nnx.state(flax))):
        for leaf, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(leaf, wanted)


class Head(nnx.Module):
    def __init__(self, encoder, rngs):
        self.encoder, self.out = encoder, modules.Dense(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.encoder(x))


@pytest.mark.parametrize("argnums", [(0, 1), (1, 0)])
def test_a_layer_that_two_models_share_has_its_activity_where_its_gradient_is(argnums):
    encoder = modules.Dense(4, 3, rngs=nnx.Rngs(0))
    actor, critic = (Head(encoder, nnx.Rngs(seed)) for seed in (1, 2))
    before = nnx.graphdef(actor)

    def loss_fn(actor, critic):
        return jnp.sum(actor(jnp.ones(4)) + critic(jnp.ones(4)))

    (_, activities), grads = ojax.value_and_grad(loss_fn, argnums=argnums)(actor, critic)
    for activity, grad in zip(activities, grads, strict=True):
        paths = [path for path, _ in nnx.to_flat_state(grad)]
        assert [path for path, _ in nnx.to_flat_state(activity)] == paths
        assert all(len(activity["encoder"]["kernel"].get_value()) == 2 for path in paths if path[0] == "encoder")
    assert nnx.graphdef(actor) == before


def test_errors_leave_a_network_with_batch_norm_as_it_is():
    network = ojax.MLP([4, 3, 2], normalization=nnx.BatchNorm, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(network))
    _, errors = modules.with_errors(lambda model, x: jnp.sum(model(x), axis=-1), network, jnp.ones((5, 4)))
    assert errors["layers"][0]["error"][...].shape == (5, 3)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(network), before)
