"""Rivals of Oja's rule under random feedback, as in :data:`experiments.tasks.registry.FEEDBACK`.

In their formulas `W` is a kernel, `B` its feedback weights, `x` a layer's input and `g` the gradient of the kernel.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import ojax
from experiments.tasks import anatomy_arms, rivals
from ojax import modules, online
from ojax.activity import by_parameter
from ojax.trees import map_named, named_leaves

# Samples of noise with which a network is trained before it learns.
NUM_NOISE = 2000
# The weight of unit variance, against that of no correlation, where inputs are decorrelated.
UNIT_VARIANCE = 0.5

ParameterOf = Callable[[online.Hyper], Any]
# In all layers, the read-out too.
normalized_everywhere = functools.partial(
    anatomy_arms.normalized_weights, mask=rivals.layers_where(lambda layer, layers: True)
)


def noise_first(params: PyTree, gradient: Any, images: Any, learning_rate: Any, key: PRNGKeyArray) -> PyTree:
    """Trains on `NUM_NOISE` samples of noise: standard normal inputs, and labels of any class at random.

    Source: Cheon, Lee, Paik 2024, https://arxiv.org/abs/2405.16731, here one sample at a time and by gradient descent.
    """
    classes = max(named_leaves(params), key=lambda item: rivals.layer_of(item[0]))[1].shape[1]

    def body(params: PyTree, key: PRNGKeyArray) -> tuple[PyTree, None]:
        of_image, of_label = jax.random.split(key)
        image = jax.random.normal(of_image, images.shape[1:])
        grads = gradient(params, image, jax.random.randint(of_label, (), 0, classes)).grads
        # Connections that are not there, where they are few, do not grow.
        return jax.tree.map(lambda p, g: jnp.where(p == 0, p, p - learning_rate * g), params, grads), None

    return lax.scan(body, params, jax.random.split(jax.random.fold_in(key, 3), NUM_NOISE))[0]


class Decorrelation(nnx.Variable):
    """The NNX variable type of the matrices that decorrelate inputs: part of a network's state, not of its parameters."""


class Decorrelated(modules.Dense):
    """A layer whose kernel multiplies `x R`, its input decorrelated by a matrix `R`, at first the identity.

    An error that comes through feedback weights comes to `x` itself: they stand for `R W`.
    """

    def __init__(self, layer: modules.Dense):
        self.kernel, self.bias, self.feedback = layer.kernel, layer.bias, layer.feedback
        self.normalization, self.activation = layer.normalization, layer.activation
        self.decorrelation = Decorrelation(jnp.eye(layer.kernel[...].shape[0]))

    def pre(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_in"]:
        """The decorrelated input."""
        decorrelated = x @ self.decorrelation[...]
        return decorrelated if self.feedback is None else x + modules.without_error(decorrelated - x)


def decorrelated(widths: Any, **options: Any) -> ojax.MLP:
    """The network whose layers decorrelate their inputs."""
    model = ojax.MLP(widths, **options)
    model.layers = nnx.List(Decorrelated(layer) for layer in model.layers)
    return model


def decorrelating(learner: online.Learner, rate_of: ParameterOf) -> online.Learner:
    """With each sample `R` changes by `-ε R ((1 - κ) C + κ V)`, with the decorrelated input `z = x R`.

    `C` is `z^T z` without its diagonal, `V` is diagonal with `z² - 1`, and κ is `UNIT_VARIANCE`.

    Source: Dalm et al. 2024, https://arxiv.org/abs/2405.02385, where R is the transpose of this one.
    """

    def gradient(params: PyTree, state: PyTree, sample: PyTree, hyper: online.Hyper) -> online.Gradient:
        found = learner.gradient(params, state, sample, hyper)
        calls = by_parameter("decorrelating", found.activity, params)

        def change(path: str, matrix: Array) -> Array:
            if not path.endswith("/decorrelation"):
                return matrix
            inputs: Any = calls[rivals.kernel_of(path)][0].pre
            z = jnp.atleast_2d(inputs)
            square = jnp.mean(z**2, axis=0)
            correlated = (matrix @ z.T) @ z / len(z) - matrix * square
            scaled = matrix * (square - 1)
            return matrix - rate_of(hyper) * ((1 - UNIT_VARIANCE) * correlated + UNIT_VARIANCE * scaled)

        return found._replace(state=map_named(change, found.state))

    return learner._replace(gradient=gradient)


def kolen_pollack(learner: online.Learner, decay_of: ParameterOf) -> online.Learner:
    """Feedback weights change as the kernels do, `B -= η g + λ B`, so that they come to be the same.

    The kernels' own change, `W -= η g + λ W`, is that of :data:`experiments.tasks.rivals.weight_decay`.

    Source: Akrout et al. 2019, https://arxiv.org/abs/1904.05391, after Kolen and Pollack 1994.
    """

    def gradient(params: PyTree, state: PyTree, sample: PyTree, hyper: online.Hyper) -> online.Gradient:
        found = learner.gradient(params, state, sample, hyper)
        grads = dict(named_leaves(found.grads))

        def change(path: str, weights: Array) -> Array:
            if not path.endswith("/feedback"):
                return weights
            return weights - hyper["learning_rate"] * grads[rivals.kernel_of(path)] - decay_of(hyper) * weights

        return found._replace(state=map_named(change, found.state))

    return learner._replace(gradient=gradient)


def sign_symmetric(learner: online.Learner, _: ParameterOf) -> online.Learner:
    """Feedback weights keep their size and have the signs of the kernel, `|B| sign(W)`.

    Source: Liao, Leibo, Poggio 2016, https://arxiv.org/abs/1510.05067; with fixed random sizes, Moskovitz, Litwin-Kumar,
    Abbott 2018, https://arxiv.org/abs/1812.06488.
    """

    def gradient(params: PyTree, state: PyTree, sample: PyTree, hyper: online.Hyper) -> online.Gradient:
        kernels = dict(named_leaves(params))

        def signed(path: str, weights: Array) -> Array:
            if not path.endswith("/feedback"):
                return weights
            return jnp.where(kernels[rivals.kernel_of(path)] < 0, -jnp.abs(weights), jnp.abs(weights))

        return learner.gradient(params, map_named(signed, state), sample, hyper)

    return learner._replace(gradient=gradient)
