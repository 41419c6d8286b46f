"""Rivals of Oja's rule, as in :data:`experiments.tasks.registry.RIVALS`: transformations, initial weights, a network."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

import ojax
from experiments.common.task import Setting
from experiments.tasks import classification, networks
from experiments.tasks.registry import RIVALS, Rival, resolve
from ojax import online, plasticity
from ojax.activity import by_parameter
from ojax.datasets import Dataset, Examples
from ojax.trees import map_named, named_leaves

# Number of training samples by which initial weights are scaled once.
NUM_SCALING = 256
# Samples in which the rate of the fading rule halves.
HALF_LIFE = 500.0
# The Oja rate in a phase of Oja's rule alone.
ALONE_RATE = 3e-3
# Factor on the grid's learning rates for ObGD, which bounds each step and so needs far larger rates.
OBGD_FACTOR = 100.0
# Factor on the learning rates for steps that are divided by the squared norm of the layer's input.
NLMS_FACTOR = 10.0
# A pull towards isometry acts once per this many samples, and this many times as strongly: its products take longer than a
# step of learning.
PULL_EVERY = 16
# Factor on the learning rates for momentum and for steps normalized per weight, which are larger at equal rates.
FAR_FACTOR = 0.1

Rule = Callable[[Any, Any], optax.GradientTransformation]


class Residual(ojax.MLP):
    """An MLP whose hidden layers, from the second on, add their input to their output, in the units that both have.

    Source: He et al. 2015, https://arxiv.org/abs/1512.03385.
    """

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Returns the logits."""
        *hidden, readout = self.layers
        for number, layer in enumerate(hidden):
            y = layer(x)
            shared = min(x.shape[-1], y.shape[-1]) if number else 0
            x = y.at[..., :shared].add(x[..., :shared])
        logits = readout.preactivation(x)
        ojax.record(readout, x, readout.activation(logits))
        return logits


def learner(setting: Setting, data: Dataset, rivals: Mapping[str, Rival] = RIVALS) -> online.Learner:
    """Returns the learner of the rival that the axis `rival` names; the axis `strength` scales its own parameter.

    A rival's phase before training is `before(params, gradient, images, parameter, key) -> params`. It gets the initial
    parameters, the learner's gradient for one image and its label (default 0), the training images, and the rival's own
    parameter. If a rival learns more than its weights, `learning(learner, parameter_of) -> learner` adds it;
    `parameter_of(hyper)` is its own parameter.
    """
    rival = rivals[setting["rival"]]
    rule, before, learning = resolve(rival.rule), resolve(rival.before), resolve(rival.learning)
    made = classification.learner(
        {**setting, "init": setting["init"] if rival.init is None else (rival.init,)},
        data,
        network=resolve(rival.network),
        rule=lambda hyper: rule(hyper["learning_rate"], rival.parameter(hyper["strength"])),
    )
    if learning is not None:
        made = learning(made, lambda hyper: rival.parameter(hyper["strength"]))
    if rival.init is None and before is None:
        return made
    images = classification.scaled(setting, data).train.inputs
    own = {} if rival.init is None else {"init": jnp.float32(0), "init_gain": jnp.float32(rival.init_gain)}

    def init(key: Array, hyper: Mapping[str, Array]) -> tuple[PyTree, PyTree]:
        params, state = made.init(key, {**hyper, **own})
        if before is not None:

            def gradient(params: PyTree, image: Array, label: Any = 0) -> online.Gradient:
                return made.gradient(params, state, Examples(image, jnp.int32(label)), hyper)

            params = before(params, gradient, images, rival.parameter(hyper["strength"]), key)
        return params, state

    return made._replace(init=init)


def scaled_once(params: PyTree, gradient: Any, images: Any, parameter: Any, key: Array) -> PyTree:
    """Scales initial weights by the first images, see :func:`scaled_by_data`."""
    return scaled_by_data(params, jnp.asarray(images[:NUM_SCALING]))


def scaled_by_data(params: PyTree, inputs: Float[Array, "batch n_in"]) -> PyTree:
    """Divides each layer's weights by the standard deviation of its `z = x W`, sequentially from the first layer.

    Source: Mishkin and Matas 2015, https://arxiv.org/abs/1511.06422 (LSUV), its one pass over the layers, with one scaling
    each, which is exact for `z`.
    """
    x, scaled = inputs, {}
    for path, kernel in sorted(named_leaves(params), key=lambda item: layer_of(item[0])):
        scaled[path] = kernel / jnp.std(x @ kernel)
        x = ojax.modules.softplus(x @ scaled[path])
    return map_named(lambda path, _: scaled[path], params)


def backprop(learning_rate: Any, factor: Any) -> optax.GradientTransformation:
    """Returns gradient descent alone; the parameter is a factor on the learning rate."""
    return ojax.oja_sgd(learning_rate * factor, 0.0)


def sgd_alone(learning_rate: Any, parameter: Any) -> optax.GradientTransformation:
    """Returns gradient descent alone, for a rival whose parameter acts before training or in its network."""
    del parameter
    return ojax.oja_sgd(learning_rate, 0.0)


def fading(
    learning_rate: Any, rate: Any, *, half_life: float = HALF_LIFE, mask: Any = None
) -> optax.GradientTransformation:
    """Returns gradient descent with Oja's rule in the masked layers, by default all.

    The rule's rate halves every `half_life` samples.
    """
    return ojax.oja_sgd(learning_rate, ojax.fading(rate, half_life), mask=mask)


def oja_first(learning_rate: Any, samples: Any) -> optax.GradientTransformation:
    """Returns Oja's rule alone for the first samples, then gradient descent alone."""

    def while_alone(alone: Any, after: Any) -> optax.Schedule:
        return lambda count: jnp.where(count < samples, alone, after)

    return ojax.oja_sgd(while_alone(0.0, learning_rate), while_alone(ALONE_RATE, 0.0))


def _with_rule(rule: Callable[[Any], optax.GradientTransformation]) -> Rule:
    return lambda learning_rate, rate: optax.chain(optax.sgd(learning_rate), rule(rate))


def _by_factor(optimizer: Callable[[Any], optax.GradientTransformation]) -> Rule:
    """Returns an optimizer whose own parameter is a factor on the learning rate."""
    return lambda learning_rate, factor: optimizer(FAR_FACTOR * learning_rate * factor)


def layers_where(is_chosen: Callable[[int, int], bool]) -> Callable[[PyTree], PyTree]:
    """Returns the mask of the parameters of chosen layers, by the layer's number and the number of layers."""

    def mask(params: PyTree) -> PyTree:
        layers = 1 + max(layer_of(path) for path, _ in named_leaves(params))
        return map_named(lambda path, _: is_chosen(layer_of(path), layers), params)

    return mask


def oja_in(is_chosen: Callable[[int, int], bool]) -> Rule:
    """Returns gradient descent, with Oja's rule only in chosen layers, see :func:`layers_where`."""
    return functools.partial(ojax.oja_sgd, mask=layers_where(is_chosen))


def layer_of(path: str) -> int:
    """Returns the number of the layer in a parameter's path, 3 of `layers/3/kernel`."""
    return int(path.split("/")[1])


def kernel_of(path: str) -> str:
    """Returns the path of the kernel in the layer of a parameter's path."""
    return f"{path.rpartition('/')[0]}/kernel"


def _anti_oja(layer: plasticity.Layer) -> Array:
    return -(layer.pre - layer.post @ layer.kernel.T).T @ layer.post / len(layer.pre)


def towards(square: float) -> Callable[[plasticity.Layer], Array]:
    """Returns gradient descent on `|W^T W - c|^2 / 4` with c = `square`, or on `|W W^T - c|^2 / 4` for a wide kernel.

    At c = 1 it is Oja's decay with the identity in place of the activity.
    """

    def change(layer: plasticity.Layer) -> Array:
        kernel = layer.kernel
        small = kernel if kernel.shape[0] >= kernel.shape[1] else kernel.T
        change = square * small - small @ (small.T @ small)
        return change if small is kernel else change.T

    return change


def pull(square: float) -> Callable[..., optax.GradientTransformation]:
    """Returns :func:`towards` as a rule, from its rate, that acts once per `PULL_EVERY` samples."""

    def rule(rate: Any, **options: Any) -> optax.GradientTransformation:
        pulling = plasticity.rule(towards(square), PULL_EVERY * rate, **options)
        return optax.conditionally_transform(pulling, lambda step: step % PULL_EVERY == PULL_EVERY - 1)

    return rule


hidden = ojax.hidden_layers
oja_in_hidden = functools.partial(ojax.oja_sgd, mask=hidden)
fading_in_hidden = functools.partial(fading, mask=hidden)
oja_in_readout = oja_in(lambda layer, layers: layer == layers - 1)
oja_in_first = oja_in(lambda layer, layers: layer == 0)
oja_per_neuron, sanger = _with_rule(ojax.oja_per_neuron), _with_rule(ojax.sanger)
anti_oja = _with_rule(lambda rate: plasticity.rule(_anti_oja, rate))
orthogonality = _with_rule(pull(1.0))
weight_decay = _with_rule(lambda rate: optax.add_decayed_weights(-rate))
# Adam: Kingma and Ba 2014, https://arxiv.org/abs/1412.6980.
adam, rmsprop, momentum = map(_by_factor, (optax.adam, optax.rmsprop, networks.momentum))


def normalized_hebb(learning_rate: Any, rate: Any) -> optax.GradientTransformation:
    """Returns gradient descent with Hebb's rule; each neuron's weights are then scaled back to their initial norm."""
    return with_norms(optax.chain(optax.sgd(learning_rate), ojax.hebb(rate)), norms_of_neurons)


def with_norms(
    inner: optax.GradientTransformation,
    norms: Callable[[Array], Array],
    *,
    target: Any = None,
    mask: Callable[[PyTree], PyTree] = lambda params: jax.tree.map(lambda _: True, params),
) -> optax.GradientTransformation:
    """Returns a transformation after which kernels are scaled to fixed norms.

    Args:
      inner: The transformation that makes the updates.
      norms: Maps a kernel to its norm, or to the norm of each neuron's weights.
      target: The norms; by default the initial norms.
      mask: The parameters to scale; by default all.
    """

    def init(params: PyTree) -> Any:
        return inner.init(params), jax.tree.map(norms, params) if target is None else None

    def update(grads: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        inner_state, initial = state
        updates, inner_state = inner.update(grads, inner_state, params, **extra)
        wanted = jax.tree.map(lambda _: target, params) if initial is None else initial

        def scaled(update: Array, param: Array, norm: Array, is_scaled: bool) -> Array:
            new = param + update
            return new * (norm / jnp.maximum(norms(new), 1e-12)) - param if is_scaled else update

        return jax.tree.map(scaled, updates, params, wanted, mask(params)), (inner_state, initial)

    return optax.GradientTransformationExtraArgs(init, update)


def norms_of_neurons(kernel: Float[Array, "n_in n_out"]) -> Float[Array, " n_out"]:
    """Returns the norm of each neuron's weights."""
    return jnp.linalg.norm(kernel, axis=0)


def nlms(learning_rate: Any, factor: Any) -> optax.GradientTransformation:
    """Returns normalized least mean squares: each layer's step is divided by the squared norm of its input.

    Source: Widrow and Hoff's rule as normalized by Nagumo and Noda 1967, in each layer.
    """

    def update(grads: PyTree, state: Any, params: PyTree = None, *, activity: PyTree, **_: Any) -> tuple[PyTree, Any]:
        calls = by_parameter("nlms", activity, params)

        def change(path: str, g: Array) -> Array:
            inputs: Any = calls[path][0].pre
            return -NLMS_FACTOR * learning_rate * factor * g / (1e-3 + jnp.sum(inputs**2))

        return map_named(change, grads), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def obgd(learning_rate: Any, kappa: Any) -> optax.GradientTransformation:
    """Returns gradient descent whose step is bounded by the gradient's L1 norm, so that no step overshoots.

    Source: Elsayed, Vasan, Mahmood 2024, https://arxiv.org/abs/2410.14606, Algorithm 3, without traces: the loss of one
    sample has no separate error, so the bound on the error is 1.
    """

    def bounded(grads: PyTree, params: PyTree) -> PyTree:
        alpha = OBGD_FACTOR * learning_rate
        norm = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(grads))
        step = alpha / jnp.maximum(1.0, alpha * kappa * norm)
        return jax.tree.map(lambda leaf: -step * leaf, grads)

    return optax.stateless(bounded)


def clipping(learning_rate: Any, norm: Any) -> optax.GradientTransformation:
    """Returns gradient descent with the gradient clipped to a norm."""

    def clip(grads: PyTree, params: PyTree) -> PyTree:
        factor = jnp.minimum(1.0, norm / (optax.tree.norm(grads) + 1e-12))  # Optax's needs a static number.
        return jax.tree.map(lambda leaf: factor * leaf, grads)

    return optax.chain(optax.stateless(clip), optax.sgd(learning_rate))


def annealed(learning_rate: Any, half_life: Any) -> optax.GradientTransformation:
    """Returns gradient descent whose learning rate halves every `half_life` samples."""
    return ojax.oja_sgd(ojax.fading(learning_rate, half_life), 0.0)
