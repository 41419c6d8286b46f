"""Networks with and without a first layer; the program without the layer computes the same values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ojax
from ojax import datasets, modules, online
from ojax.online import first_layer
from tests.ojax.online.networks import RATES, LinearNetwork, as_hyper, has_first_layer, mlp_learner, oja_sgd, small_data

pytestmark = pytest.mark.compiled_quickly


def own(call):
    """Returns an MLP with another call."""

    class Own(ojax.MLP):
        def __call__(self, x):
            return call(self, super().__call__, x)

    return lambda rngs: Own([784, 12, 10], rngs=rngs)


def shared_layer(model, call, x):
    return call(x) + call(x)


def reads_the_kernel(model, call, x):
    return call(x) + jnp.sum(model.layers[0].kernel[...] ** 2)


def scales_by_the_number_of_inputs(model, call, x):
    return call(x) / x.shape[-1]


def skips_the_first_layer(model, call, x):
    return call(x) + x[..., :10]


HAVE = {
    "an MLP": lambda rngs: ojax.MLP([784, 12, 10], rngs=rngs),
    "one layer": lambda rngs: ojax.MLP([784, 10], rngs=rngs),
    "biases": lambda rngs: ojax.MLP([784, 12, 10], use_bias=True, rngs=rngs),
    "random feedback": lambda rngs: ojax.MLP([784, 12, 11, 10], feedback="random", rngs=rngs),
    "direct feedback": lambda rngs: ojax.MLP([784, 12, 11, 10], feedback="direct", rngs=rngs),
    "normalized hidden layers": lambda rngs: ojax.MLP([784, 12, 10], normalization=modules.BatchNorm, rngs=rngs),
    "nnx.Linear": LinearNetwork,
    "the number of inputs": own(scales_by_the_number_of_inputs),
    "a jitted network": own(lambda model, call, x: jax.jit(call)(x)),
}
HAVE_NOT = {
    "a centred image": own(lambda model, call, x: call(x - x.mean())),
    "a squashed image": own(lambda model, call, x: call(jnp.tanh(3 * x))),
    "a scaled image": own(lambda model, call, x: call(2 * x)),
    "a layer called twice": own(shared_layer),
    "a loss that reads the kernel": own(reads_the_kernel),
    "a second path of the image": own(skips_the_first_layer),
}


@pytest.mark.parametrize("name", HAVE)
def test_networks_with_a_first_layer_and_their_program_without_it(name):
    learner = online.classifier(HAVE[name], oja_sgd)
    assert has_first_layer(learner)
    hyper, x = as_hyper(1e-2, 1e-3), jnp.asarray(np.random.default_rng(0).uniform(size=784), jnp.float32)
    params, state = online.initial_params(learner, hyper, jnp.uint32(0))
    sample = datasets.Examples(x, jnp.int32(3))
    layer = first_layer.find(learner, params, state, sample, hyper)
    kernel = dict(ojax.trees.named_leaves(params))[layer.kernel]
    assert layer.read(sample) is x and kernel.shape[0] == 784
    want = learner.gradient(params, state, sample, hyper)
    # It does not read the kernel, so a wrong kernel changes nothing.
    wrong = jax.tree.map(lambda leaf: jnp.nan * leaf if leaf is kernel else leaf, params)
    got = layer.gradient(x @ kernel, wrong, state, sample, hyper)
    error = dict(ojax.trees.named_leaves(got.grads))[layer.kernel]
    for (path, one), other in zip(ojax.trees.named_leaves(got.grads), jax.tree.leaves(want.grads), strict=True):
        np.testing.assert_allclose(jnp.outer(x, error) if path == layer.kernel else one, other, rtol=1e-5, atol=1e-7)
    for part in ("activity", "state", "sums"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), getattr(got, part), getattr(want, part))


@pytest.mark.parametrize("name", HAVE_NOT)
def test_networks_without(name):
    assert not has_first_layer(online.classifier(HAVE_NOT[name], oja_sgd))


def test_only_oja_sgd_and_single_samples_take_windows():
    import optax

    assert not has_first_layer(mlp_learner((784, 12, 10), lambda hyper: optax.chain(oja_sgd(hyper), optax.clip(1.0))))
    for rate in (jnp.ones(3), lambda count: jnp.ones(3)):
        assert not isinstance(ojax.oja_sgd(rate, 1e-3), ojax.plasticity.OjaSGD)
    changed = ojax.oja_sgd(1e-2, 1e-3)._replace(update=lambda updates, state, params=None, **extra: (updates, state))
    assert not isinstance(changed, ojax.plasticity.OjaSGD)
    batches = online.Plan(32, (32,), batch_size=4)
    assert online.fast_path(mlp_learner((784, 12, 10)), RATES, small_data(), batches).layer is None


def test_a_gradient_made_by_hand_has_none():
    def gradient(params, state, sample, hyper):
        x, target = sample
        y = x @ params["kernel"]
        activity = {"kernel": ojax.Activity(x, y)}
        return online.Gradient({"kernel": jnp.outer(x, y - target) * 2}, activity, state, {})

    learner = online.Learner(lambda key, hyper: ({"kernel": jnp.ones((784, 3))}, {}), gradient, oja_sgd, lambda *_: {})
    sample = datasets.Examples(jnp.ones(784), jnp.ones(3))
    params, state = learner.init(None, {})
    assert first_layer.find(learner, params, state, sample, as_hyper(1e-2, 1e-3)) is None


class Doubled(nnx.Module):
    """A layer that records another `pre` than the kernel's input."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(784, 10, rngs=rngs)

    def __call__(self, x):
        logits = self.layer(x)
        ojax.record(self.layer, 2 * x, nnx.softmax(logits))
        return logits


def test_another_pre_is_another_rule():
    assert not has_first_layer(online.classifier(Doubled, oja_sgd))
