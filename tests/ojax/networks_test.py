"""Convolutional networks: each update equals a float64 statement by position, and they learn with Oja's rule."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ojax
from ojax import datasets, modules, online
from ojax.trees import named_leaves
from tests.ojax.online.networks import as_hyper, oja_sgd

pytestmark = pytest.mark.compiled_quickly

SHAPE, CHANNELS, STRIDES, CLASSES = (6, 5, 2), (3, 4), (2, 1), 3
ETA, THETA = 3e-2, 1e-2


def learner(feedback="backprop"):
    return online.classifier(
        lambda rngs: ojax.CNN(SHAPE, CHANNELS, CLASSES, strides=STRIDES, feedback=feedback, rngs=rngs), oja_sgd
    )


def rows_and_places(image, stride):
    """Returns the patches of 3 x 3 pixels, with SAME padding, and the positions of their pixels in the image."""
    sizes = [-(-size // stride) for size in image.shape[:2]]
    before = [max((count - 1) * stride + 3 - size, 0) // 2 for count, size in zip(sizes, image.shape, strict=False)]
    rows, places = {}, {}
    for at in np.ndindex(*sizes):
        row, place = np.zeros((3, 3, image.shape[2])), {}
        for tap in np.ndindex(3, 3):
            pixel = tuple(a * stride + t - b for a, t, b in zip(at, tap, before, strict=True))
            if all(0 <= p < size for p, size in zip(pixel, image.shape, strict=False)):
                row[tap], place[tap] = image[pixel], pixel
        rows[at], places[at] = row, place
    return sizes, rows, places


def numpy_step(kernels, sent_by, image, label, feedback):
    """Returns one update of both convolutions and the read-out, by position; `sent_by` are the feedback weights."""
    images, seen = [image], []
    for kernel, stride in zip(kernels[:-1], STRIDES, strict=True):
        sizes, rows, places = rows_and_places(images[-1], stride)
        y = np.zeros((*sizes, kernel.shape[-1]))
        for at, row in rows.items():
            y[at] = np.logaddexp(0, 10 * np.einsum("ijc,ijco->o", row, kernel)) / 10
        images.append(y)
        seen.append((rows, places))
    features = images[-1].ravel()
    z = features @ kernels[-1]
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    top = p - np.eye(CLASSES)[label]
    back = {"backprop": kernels, "random": [None, *sent_by], "direct": kernels}[feedback]
    changes = [-ETA * np.outer(features, top) + THETA * np.outer(features - kernels[-1] @ p, p)]
    error = (back[-1] @ top).reshape(images[-1].shape)
    for layer in reversed(range(len(kernels) - 1)):
        if feedback == "direct":
            error = (sent_by[layer] @ top).reshape(images[layer + 1].shape)
        y, (rows, places) = images[layer + 1], seen[layer]
        e = error * (1 - np.exp(-10 * y))
        W = kernels[layer].reshape(-1, y.shape[-1])
        change, error = np.zeros_like(W), np.zeros_like(images[layer])
        for at, row in rows.items():
            x = row.ravel()
            change += -ETA * np.outer(x, e[at]) + THETA * np.outer(x - W @ y[at], y[at]) / len(rows)
            if layer:
                sent = np.einsum("ijco,o->ijc", back[layer], e[at])
                for tap, pixel in places[at].items():
                    error[pixel] += sent[tap]
        changes.insert(0, change.reshape(kernels[layer].shape))
    return [kernel + change for kernel, change in zip(kernels, changes, strict=True)]


@pytest.mark.compiled_quickly(False)  # Programs as compiled for users are compared with the statement.
@pytest.mark.parametrize("feedback", ["backprop", "random", "direct"])
def test_online_steps_equal_the_float64_statement(feedback):
    rule, rng, steps = learner(feedback), np.random.default_rng(0), 30
    images, labels = rng.uniform(size=(steps, *SHAPE)), rng.integers(0, CLASSES, steps)
    hyper = as_hyper(ETA, THETA)
    params, state = online.initial_params(rule, hyper, 3)
    kernels = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
    sent_by = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state)]
    assert len(sent_by) == {"backprop": 0, "random": 2, "direct": 2}[feedback]
    samples = datasets.Examples(jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32))
    learned = jax.jit(online.learn, static_argnums=0)(rule, hyper, params, state, samples)
    start = kernels
    for image, label in zip(images.astype(np.float32).astype(np.float64), labels, strict=True):
        kernels = numpy_step(kernels, sent_by, image, label, feedback)
    for got, want, first in zip(jax.tree.leaves(learned.params), kernels, start, strict=True):
        assert np.abs(want - first).max() > 0.03
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_activity_of_a_cnn_and_its_errors():
    """For a batch of images; the errors are those in each image's gradient."""

    def losses(model, x, labels):
        return -jnp.take_along_axis(jax.nn.log_softmax(model(x)), labels[:, None], axis=1)

    @jax.jit
    def found(x, labels):
        model = ojax.CNN(SHAPE, CHANNELS, CLASSES, strides=STRIDES, feedback="direct", use_bias=True, rngs=nnx.Rngs(0))
        logits, activity = ojax.with_activity(model, x)
        learning = [
            (
                nnx.as_pure(nnx.grad(lambda network: jnp.sum(losses(network, x, labels)))(network)),
                nnx.as_pure(modules.with_errors(losses, network, x, labels)[1]),
            )
            for network in (model, modules.without_feedback(model))
        ]
        return logits, model(x[0]), nnx.as_pure(activity), learning

    logits, alone, activity, learning = found(jax.random.normal(jax.random.key(1), (4, *SHAPE)), jnp.arange(4) % CLASSES)
    np.testing.assert_allclose(logits[0], alone, atol=1e-6)
    first, second, readout = (activity["layers"][layer]["kernel"][0] for layer in range(3))
    assert first.post.shape == (4, 3, 3, 3) and second.post.shape == (4, 3, 3, 4) and readout.pre.shape == (4, 36)
    np.testing.assert_array_equal(second.pre.image, first.post)
    np.testing.assert_allclose(readout.post, jax.nn.softmax(logits), atol=1e-6)
    for gradient, errors in learning:
        for layer, seen in enumerate((first, second)):
            error = np.asarray(errors["layers"][layer]["error"])
            want = np.asarray(seen.pre.matrix()).T @ error.reshape(-1, error.shape[-1])
            np.testing.assert_allclose(gradient["layers"][layer]["kernel"].reshape(want.shape), want, atol=1e-5)
            np.testing.assert_allclose(gradient["layers"][layer]["bias"], error.sum(axis=(0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize("feedback", ["backprop", "direct"])
def test_an_empty_batch_has_no_outputs(feedback):
    model = ojax.CNN(SHAPE, CHANNELS, CLASSES, strides=STRIDES, feedback=feedback, rngs=nnx.Rngs(0))
    assert model(jnp.ones((0, *SHAPE))).shape == (0, CLASSES)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"image_shape": (6,)}, "shape of an image"),
        ({"channels": []}, "at least one hidden layer"),
        ({"channels": [3, 0]}, "at least 1"),
        ({"strides": [2]}, "as many kernel sizes and strides"),
        ({"kernel_sizes": 0}, "each at least 1"),
        ({"kernel_sizes": 7, "padding": "VALID"}, "Not one patch"),
        ({"n_out": 1}, "softmax of a single unit"),
        ({"feedback": "telepathy"}, "telepathy"),
    ],
)
def test_numbers_that_make_no_network(options, word):
    defaults = {"image_shape": SHAPE, "channels": CHANNELS, "n_out": CLASSES}
    with pytest.raises(ValueError, match=word):
        ojax.CNN(**defaults | options, rngs=nnx.Rngs(0))


def test_the_derivative_of_softplus_is_the_same_for_images():
    z = jnp.linspace(-2, 2, 24).reshape(2, 3, 4).at[0, 0, 0].set(jnp.nan)
    slope = jax.grad(lambda z: jnp.sum(modules.softplus(z)))
    np.testing.assert_allclose(slope(z), slope(z.ravel()).reshape(z.shape), atol=1e-6)
    np.testing.assert_array_equal(modules.softplus(z).ravel(), modules.softplus(z.ravel()))


@pytest.mark.parametrize(
    ("model", "readout"),
    [
        (lambda rngs: ojax.MLP([4] * 13, normalization=nnx.LayerNorm, use_bias=True, rngs=rngs), "layers/11/"),
        (lambda rngs: ojax.CNN(SHAPE, CHANNELS, CLASSES, feedback="random", rngs=rngs), "layers/2/"),
        (lambda rngs: nnx.List([ojax.MLP([4, 3, 2], rngs=rngs), ojax.MLP([4, 2], rngs=rngs)]), "0/layers/1/|1/layers/0/"),
        (lambda rngs: nnx.Sequential(modules.Dense(4, 4, rngs=rngs), ojax.MLP([4, 3, 2], rngs=rngs)), "layers/1/layers/1/"),
    ],
)
def test_the_mask_of_hidden_layers_leaves_out_the_read_out_alone(model, readout):
    """A mask by the name `readout`, from another page, left nothing out of an MLP, without a word."""
    params = nnx.state(model(nnx.Rngs(0)), nnx.Param)
    for tree in (params, nnx.to_pure_dict(params)):
        chosen = ojax.hidden_layers(tree)
        assert jax.tree.structure(chosen) == jax.tree.structure(tree)
        by_path = dict(named_leaves(chosen))
        assert by_path == {path: not re.match(readout, path) for path in by_path} and not all(by_path.values())
    mask = ojax.oja(0.1, mask=ojax.hidden_layers)
    zeros = jax.tree.map(jnp.zeros_like, params)
    if isinstance(model(nnx.Rngs(0)), ojax.MLP | ojax.CNN):
        image = jnp.ones(SHAPE if "2" in readout else 4)
        _, activity = ojax.with_activity(model(nnx.Rngs(0)), image)
        updates, _ = mask.update(zeros, mask.init(params), params, activity=activity)
        changed = {path: bool(jnp.any(leaf != 0)) for path, leaf in named_leaves(updates) if path.endswith("kernel")}
        assert changed == {path: not re.match(readout, path) for path in changed}


def test_the_mask_of_hidden_layers_within_another_mask_leaves_out_no_other_layer():
    """Of what the outer mask had left the last hidden layer was taken for the read-out."""
    model = ojax.MLP([4, 4, 4, 2], feedback="direct", rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    tx = optax.masked(ojax.oja(0.1, mask=ojax.hidden_layers), ojax.hidden_layers)
    _, activity = ojax.with_activity(model, jnp.ones(4))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, activity=activity)
    assert [bool(jnp.any(leaf != 0)) for _, leaf in named_leaves(updates)] == [True, True, False]
    assert dict(named_leaves(ojax.hidden_layers(nnx.state(model))))["direct_feedback/0"]


def test_the_mask_of_hidden_layers_knows_its_networks():
    with pytest.raises(ValueError, match=r"knows the layers of ojax.MLP and ojax.CNN.*hidden/kernel, readout/kernel"):
        ojax.hidden_layers({"hidden": {"kernel": 1.0}, "readout": {"kernel": 1.0}})
    with pytest.raises(ValueError, match=r'one array; with optax.inject_hyperparams, give static_args=\["mask"\]'):
        optax.inject_hyperparams(ojax.oja)(1e-3, mask=ojax.hidden_layers).init({"kernel": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="there are none in these parameters"):  # Their last layer is not the read-out.
        ojax.hidden_layers({"layers": [{"kernel": 1.0}, {"kernel": 1.0}], "readout": {"kernel": 1.0}})
