"""Stresses under which a brain learns: noisy updates, coarse weights, few connections, an error that comes late.

Each is an axis of :mod:`experiments.tasks.classification`, where its canonical value is no stress, and a transformation
that wraps another, whatever that is: gradient descent, Oja's rule, a rival. Weights are the kernels, parameters of two axes
and more; biases keep their numbers and connections.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree
from optax import GradientTransformationExtraArgs as Transformation

from experiments.common.errors import UserError
from experiments.common.task import Setting
from experiments.tasks import noise
from ojax import online

# Standard deviations of the initial weights on either side of zero over which the levels of weights are spread.
DEVIATIONS = 3.0


def under(setting: Setting, learner: online.Learner) -> online.Learner:
    """Returns the learner under the stresses of a setting; the learner itself where there is none."""
    sigma, levels = setting["update_noise"], setting["weight_levels"]
    share, delay = setting["connectivity"], setting["error_delay"]
    if levels == 1:
        raise UserError("--weight_levels=1: weights of one level cannot learn; give at least 2, or 0 for real numbers.")
    if delay and setting["batch_size"] > 1:
        raise UserError("--error_delay counts samples, and a batch is one step: leave --batch_size at 1 with a delay.")
    if (sigma, levels, share, delay) == (0, 0, 1, 0):
        return learner

    def init(key: PRNGKeyArray, hyper: online.Hyper) -> tuple[PyTree, PyTree]:
        params, state = learner.init(key, hyper)
        return (params if share == 1 else connected(jax.random.fold_in(key, 2), params, share)), state

    def optimizer(hyper: online.Hyper) -> Transformation:
        tx = optax.with_extra_args_support(learner.optimizer(hyper))
        tx = noisy(tx, sigma) if sigma else tx
        tx = rounded(tx, levels) if levels else tx
        tx = masked(tx) if share < 1 else tx
        return late(tx, delay) if delay else tx

    return learner._replace(init=init, optimizer=optimizer)


class _Drawing(NamedTuple):
    """The state of the inner transformation, a key, and what else there is by parameter."""

    inner: PyTree
    key: PRNGKeyArray
    steps: PyTree = ()


def noisy(tx: Transformation, sigma: float) -> Transformation:
    """`u (1 + σ ξ)` for each update `u`, with standard normal `ξ`, another one for each parameter and step."""

    def init(params: PyTree) -> _Drawing:
        return _Drawing(tx.init(params), noise.key_of(params))

    def update(grads: PyTree, state: _Drawing, params: PyTree = None, **extra: Any) -> tuple[PyTree, _Drawing]:
        updates, inner = tx.update(grads, state.inner, params, **extra)
        key, drawn = jax.random.split(state.key)
        updates = jax.tree.map(lambda u, xi: u * (1 + sigma * xi), updates, noise.normal(drawn, updates))
        return updates, _Drawing(inner, key)

    return Transformation(init, update)


def rounded(tx: Transformation, levels: int) -> Transformation:
    """Rounds each weight to a level after its update, up or down at random, so that its mean is that before the rounding.

    The levels are evenly spaced from `-DEVIATIONS` to `DEVIATIONS` times the root mean square of the layer's initial
    weights; a weight beyond them is at the last one. Initial weights are rounded with the first update.

    Source: stochastic rounding of Gupta et al. 2015, https://arxiv.org/abs/1502.02551, section 3.
    """

    def init(params: PyTree) -> _Drawing:
        steps = jax.tree.map(lambda p: 2 * DEVIATIONS * _deviation(p) / (levels - 1), params)
        return _Drawing(tx.init(params), jax.random.fold_in(noise.key_of(params), 1), steps)

    def update(grads: PyTree, state: _Drawing, params: PyTree = None, **extra: Any) -> tuple[PyTree, _Drawing]:
        updates, inner = tx.update(grads, state.inner, params, **extra)
        key, drawn = jax.random.split(state.key)

        def change(u: Array, p: Array, step: Array, chance: Array) -> Array:
            if p.ndim < 2:
                return u
            half = (levels - 1) / 2
            place = jnp.floor((p + u) / step + half + chance)
            return (jnp.clip(place, 0, levels - 1) - half) * step - p

        updates = jax.tree.map(change, updates, params, state.steps, noise.uniform(drawn, updates))
        return updates, _Drawing(inner, key, state.steps)

    return Transformation(init, update)


def _deviation(kernel: Array) -> Array:
    """The root mean square of the weights that are there, those that are not zero."""
    return jnp.sqrt(jnp.sum(kernel**2) / jnp.maximum(jnp.sum(kernel != 0), 1))


def connected(key: PRNGKeyArray, params: PyTree, share: float) -> PyTree:
    """Returns the weights with each kept by that chance, else 0; those kept are divided by the share's root.

    So a layer's output has the variance that it had with all connections.
    """
    leaves, structure = jax.tree.flatten(params)
    kept = [
        jnp.where(jax.random.bernoulli(jax.random.fold_in(key, place), share, leaf.shape), leaf * share**-0.5, 0)
        if leaf.ndim >= 2
        else leaf
        for place, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, kept)


def masked(tx: Transformation) -> Transformation:
    """Keeps the weights at 0 that are 0 at the start: their gradients and updates are 0."""

    def init(params: PyTree) -> tuple[PyTree, PyTree]:
        return tx.init(params), jax.tree.map(lambda p: (p != 0) | (p.ndim < 2), params)

    def update(grads: PyTree, state: tuple[PyTree, PyTree], params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        inner, mask = state

        def kept(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf, there: jnp.where(there, leaf, 0), tree, mask)

        updates, inner = tx.update(kept(grads), inner, params, **extra)
        return kept(updates), (inner, mask)

    return Transformation(init, update)


def late(tx: Transformation, delay: int) -> Transformation:
    """Gives each gradient to the transformation so many steps late, and zeros in the first steps; activity is on time.

    So a synapse keeps what it is to change by until the error comes, and a plasticity rule acts at once.
    """

    def init(params: PyTree) -> tuple[PyTree, tuple[PyTree, ...]]:
        return tx.init(params), (jax.tree.map(jnp.zeros_like, params),) * delay

    def update(grads: PyTree, state: tuple[PyTree, tuple], params: PyTree = None, **extra: Any) -> tuple[PyTree, tuple]:
        inner, (first, *others) = state
        updates, inner = tx.update(first, inner, params, **extra)
        return updates, (inner, (*others, grads))

    return Transformation(init, update)
