"""Parts of Oja's rule and what may explain it, as in :data:`experiments.tasks.registry.ANATOMY`.

Each takes the learning rate and its own parameter, and returns an Optax transformation: gradient descent in all layers, and
a rule in the hidden ones. In the formulas `D = (x - W y) y^T` is Oja's own change of a kernel `W` of shape (n_in, n_out).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import ojax
from experiments.tasks import rivals
from ojax import online, plasticity

# The rate of gain homeostasis where Oja's rule is added to it.
HOMEOSTASIS_RATE = 1e-2
# The least weight of a new sample in the running estimate of a layer's leading direction.
LEAST_SHARE = 0.01
# Number of images with shuffled pixels on which Oja's rule is trained first.
NUM_SHUFFLED = 500

Arm = Callable[[Any, Any], optax.GradientTransformation]


def _in_hidden(rule: Callable[..., optax.GradientTransformation], **options: Any) -> Arm:
    return lambda learning_rate, rate: optax.chain(optax.sgd(learning_rate), rule(rate, mask=rivals.hidden, **options))


def _of_change(change: Callable[[plasticity.Layer], Any]) -> Arm:
    return _in_hidden(lambda rate, **options: plasticity.rule(change, rate, **options))


def residual(layer: plasticity.Layer) -> Float[Array, "batch n_in"]:
    """Returns `x - W y`, the part of the input that the output does not explain."""
    return layer.pre - layer.backward


def decay(layer: plasticity.Layer) -> plasticity.Outer:
    """Returns `-W y y^T`, Oja's change without its Hebbian term `x y^T`."""
    return plasticity.Outer(-layer.backward, layer.post)


def along(layer: plasticity.Layer) -> Float[Array, "n_in n_out"]:
    """Returns `<D, W> / <W, W> W`, which only scales the kernel. `<D, W>` is `(x - W y) . W y`."""
    kernel = layer.kernel
    product = jnp.vdot(residual(layer), layer.backward) / len(layer.pre)
    return product / jnp.sum(kernel**2) * kernel


def along_each(layer: plasticity.Layer) -> Float[Array, "n_in n_out"]:
    """Returns `<d_i, w_i> / <w_i, w_i> w_i` for each neuron i, which only scales its weights.

    `<d_i, w_i>` is `y_i (x - W y) . w_i`.
    """
    kernel = layer.kernel
    products = jnp.mean(layer.post * (residual(layer) @ kernel), axis=0)
    return (products / jnp.sum(kernel**2, axis=0))[None, :] * kernel


def without_along(layer: plasticity.Layer) -> list[Any]:
    """Returns `D` without its component along the kernel."""
    return [plasticity.Outer(residual(layer), layer.post), -along(layer)]


def without_along_each(layer: plasticity.Layer) -> list[Any]:
    """Returns `D` without its components along each neuron's own weights."""
    return [plasticity.Outer(residual(layer), layer.post), -along_each(layer)]


class Direction(NamedTuple):
    """A running estimate of the first uncentred principal component of a layer's input.

    Attributes:
      vector: A vector along it, whose length estimates the eigenvalue of `E[x x^T]`.
      seen: Number of samples.
    """

    vector: Float[Array, " n_in"]
    seen: Float[Array, ""]


def initial_direction(kernel: Float[Array, "n_in n_out"]) -> Direction:
    """Returns the direction of an input with equal entries, which is near the true one since activity is positive."""
    return Direction(jnp.ones(len(kernel), kernel.dtype), jnp.zeros((), kernel.dtype))


def next_direction(state: Direction, pre: Float[Array, "batch n_in"]) -> Direction:
    """Returns the estimate after one more batch: `v = (1 - a) v + a x (x . v) / |v|`.

    The weight `a` of the new batch is one over the number of batches, and at least `LEAST_SHARE`, since the inputs change
    with the weights.

    Source: Weng, Zhang, Hwang 2003, https://doi.org/10.1109/TPAMI.2003.1217609, equation 4, without centring.
    """
    seen = state.seen + 1
    share = jnp.maximum(1 / seen, LEAST_SHARE)
    unit = state.vector / jnp.maximum(jnp.linalg.norm(state.vector), 1e-12)
    return Direction((1 - share) * state.vector + share * (pre @ unit) @ pre / len(pre), seen)


def _projected(*, on: bool) -> Arm:
    def change(layer: plasticity.Layer, state: Direction) -> tuple[plasticity.Outer, Direction]:
        state = next_direction(state, layer.pre)
        unit = state.vector / jnp.maximum(jnp.linalg.norm(state.vector), 1e-12)
        whole = residual(layer)
        part = (whole @ unit)[:, None] * unit[None, :]
        return plasticity.Outer(part if on else whole - part, layer.post), state

    return _in_hidden(lambda rate, **options: plasticity.rule(change, rate, init=initial_direction, **options))


def rest_of_fixed_norm(learning_rate: Any, rate: Any) -> optax.GradientTransformation:
    """Returns the arm `rest`, after which each hidden kernel is scaled back to its initial norm."""
    return rivals.with_norms(rest(learning_rate, rate), jnp.linalg.norm, mask=rivals.hidden)


def normalized_weights(learning_rate: Any, norm: Any, *, mask: Any = rivals.hidden) -> optax.GradientTransformation:
    """Returns gradient descent, after which the input weights of each neuron of the masked layers are scaled to the norm.

    Source: bioRxiv 2021.06.12.447639, weight normalization, there with random feedback.
    """
    return rivals.with_norms(optax.sgd(learning_rate), rivals.norms_of_neurons, target=norm, mask=mask)


def homeostasis_and_oja(learning_rate: Any, rate: Any) -> optax.GradientTransformation:
    """Returns gradient descent with gain homeostasis at `HOMEOSTASIS_RATE` and Oja's rule."""
    return optax.chain(rivals.oja_in_hidden(learning_rate, rate), ojax.homeostasis(HOMEOSTASIS_RATE, mask=rivals.hidden))


def shuffled_first(
    params: PyTree,
    gradient: Callable[[PyTree, Array], online.Gradient],
    images: Any,
    rate: Any,
    key: PRNGKeyArray,
) -> PyTree:
    """Returns the parameters after a phase of Oja's rule, without labels, on the first images.

    The pixels of each image are shuffled in another order, which keeps only the histogram of its statistics.
    """
    rule = ojax.oja(rate, mask=rivals.hidden)
    opt_state, shown = rule.init(params), jnp.asarray(images[:NUM_SHUFFLED])

    def step(params: PyTree, sample: tuple[Array, Array]) -> tuple[PyTree, None]:
        image, key = sample
        activity = gradient(params, jax.random.permutation(key, image)).activity
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = rule.update(zeros, opt_state, params, activity=activity)
        # Connections that are not there, where they are few, do not grow.
        return jax.tree.map(lambda p, new: jnp.where(p == 0, p, new), params, optax.apply_updates(params, updates)), None

    # A separate key, since the run's key draws its initial weights.
    keys = jax.random.split(jax.random.fold_in(key, NUM_SHUFFLED), len(shown))
    return lax.scan(step, params, (shown, keys))[0]


def _third(layers: int) -> int:
    return max(1, round((layers - 1) / 3))


hebb_term, diagonal_decay = map(_in_hidden, (ojax.hebb, ojax.oja_per_neuron))
decay_term, along_weights, along_neurons = _of_change(decay), _of_change(along), _of_change(along_each)
rest, rest_of_neurons = _of_change(without_along), _of_change(without_along_each)
on_direction, off_direction = _projected(on=True), _projected(on=False)
homeostasis, homeostasis_per_neuron = _in_hidden(ojax.homeostasis), _in_hidden(ojax.homeostasis, per="neuron")
isometry = _in_hidden(rivals.pull(2.0))
first_third = rivals.oja_in(lambda layer, layers: layer < _third(layers))
last_third = rivals.oja_in(lambda layer, layers: layers - 1 - _third(layers) <= layer < layers - 1)
middle_third = rivals.oja_in(lambda layer, layers: _third(layers) <= layer < layers - 1 - _third(layers))
with_readout = rivals.oja_in(lambda layer, layers: True)
