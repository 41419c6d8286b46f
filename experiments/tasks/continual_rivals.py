"""Rivals of Oja's rule in a stream that changes, as in :data:`experiments.tasks.registry.CONTINUAL`.

Each takes the learning rate and its own parameter, and returns an Optax transformation. In their formulas `p` is a weight
or a bias, and `g` its gradient.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import ojax
from experiments.tasks import noise, rivals
from ojax.activity import by_parameter
from ojax.trees import map_named, named_leaves

# The deviation of the noise of shrink and perturb.
PERTURBATION = 1e-3
# Rate of the trace of utility, and of weight decay, in UPGD.
UTILITY_DECAY, UPGD_WEIGHT_DECAY = 0.999, 1e-3
# Continual backprop: rate of the trace of utility, and samples after which a unit may be replaced.
REPLACEMENT_DECAY, MATURITY = 0.99, 100
# Rates of the two averages of the loss, and the standard deviations between them that signal a new task.
FAST, SLOW, DEVIATIONS = 0.05, 0.005, 3.0

Transformation = optax.GradientTransformationExtraArgs


def normalized(widths: Any, **options: Any) -> ojax.MLP:
    """Makes the network with layer norm."""
    return ojax.MLP(widths, **{**options, "normalization": nnx.LayerNorm})


def l2(learning_rate: Any, strength: Any) -> optax.GradientTransformation:
    """`p -= η (g + λ p)`: gradient descent of the loss and of `λ |p|² / 2`."""
    return optax.stateless_with_tree_map(lambda g, p: -learning_rate * (g + strength * p))


def l2_init(learning_rate: Any, strength: Any) -> Transformation:
    """`p -= η (g + λ (p - p_0))`, towards the initial parameters `p_0`.

    Source: Kumar, Marklund, Van Roy 2023, https://arxiv.org/abs/2308.11958.
    """

    def update(grads: PyTree, initial: PyTree, params: PyTree = None, **_: Any) -> tuple[PyTree, PyTree]:
        def change(g: Array, p: Array, start: Array) -> Array:
            return -learning_rate * (g + strength * (p - start))

        return jax.tree.map(change, grads, params, initial), initial

    return Transformation(lambda params: jax.tree.map(jnp.copy, params), update)


def shrink_and_perturb(learning_rate: Any, decay: Any) -> Transformation:
    """`p = (1 - η λ) p - η (g + σ ξ)`, in every step, with standard normal `ξ` and `σ` = `PERTURBATION`.

    Source: Ash and Adams 2020, https://arxiv.org/abs/1910.08475, online as in Elsayed and Mahmood 2024,
    https://arxiv.org/abs/2404.00781.
    """

    def update(grads: PyTree, key: PRNGKeyArray, params: PyTree = None, **_: Any) -> tuple[PyTree, PRNGKeyArray]:
        key, drawn = jax.random.split(key)

        def change(g: Array, p: Array, xi: Array) -> Array:
            return -learning_rate * (decay * p + g + PERTURBATION * xi)

        return jax.tree.map(change, grads, params, noise.normal(drawn, params)), key

    return Transformation(noise.key_of, update)


class _Utility(NamedTuple):
    key: PRNGKeyArray
    trace: PyTree


def upgd(learning_rate: Any, sigma: Any) -> Transformation:
    """`p = (1 - η λ) p - η (g + σ ξ) (1 - s)`, with the utility `s = sigmoid(u / max u)` of each weight.

    `u` is a running mean of `-g p`, and `max u` is over all parameters; the bias corrections of both cancel out.

    Source: Elsayed and Mahmood 2024, https://arxiv.org/abs/2404.00781, Algorithm 1 with first-order utility.
    """

    def init(params: PyTree) -> _Utility:
        return _Utility(noise.key_of(params), jax.tree.map(jnp.zeros_like, params))

    def update(grads: PyTree, state: _Utility, params: PyTree = None, **_: Any) -> tuple[PyTree, _Utility]:
        key, drawn = jax.random.split(state.key)
        scaled, trace = _scaled(state, jax.tree.map(lambda g, p: -g * p, grads, params))

        def change(g: Array, p: Array, xi: Array, s: Array) -> Array:
            return -learning_rate * (UPGD_WEIGHT_DECAY * p + (g + sigma * xi) * (1 - s))

        return jax.tree.map(change, grads, params, noise.normal(drawn, params), scaled), _Utility(key, trace)

    return Transformation(init, update)


def upgd_features(learning_rate: Any, sigma: Any) -> Transformation:
    """Returns UPGD with one utility per hidden unit, for its incoming weights and bias; the read-out has no utility.

    The utility of unit i of a layer is a running mean of `-g_i y_i`, where `g_i` is the gradient with respect to a gate on
    its output `y_i`: `-Σ_k W_ik G_ik` over the outgoing weights W and their gradients G.

    Source: Elsayed and Mahmood 2024, https://arxiv.org/abs/2404.00781, section 3, feature-wise UPGD.
    """

    def utilities(grads: PyTree, params: PyTree) -> dict[str, Array]:
        outgoing, gradients = dict(named_leaves(params)), dict(named_leaves(grads))
        return {here: -jnp.sum(outgoing[after] * gradients[after], axis=1) for here, after in _neighbours(params)}

    def init(params: PyTree) -> _Utility:
        zeros = {here: jnp.zeros(leaf.shape[1]) for here, leaf in named_leaves(params) if here in dict(_neighbours(params))}
        return _Utility(noise.key_of(params), zeros)

    def update(grads: PyTree, state: _Utility, params: PyTree = None, **_: Any) -> tuple[PyTree, _Utility]:
        key, drawn = jax.random.split(state.key)
        scaled, trace = _scaled(state, utilities(grads, params))

        def change(path: str, g: Array, p: Array, xi: Array) -> Array:
            s = scaled.get(rivals.kernel_of(path))
            step = g if s is None else (g + sigma * xi) * (1 - s)
            return -learning_rate * (UPGD_WEIGHT_DECAY * p + step)

        return map_named(change, grads, params, noise.normal(drawn, params)), _Utility(key, trace)

    return Transformation(init, update)


def _scaled(state: _Utility, utility: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the scaled utilities, in (0, 1), and their trace after one more step."""
    trace = jax.tree.map(lambda old, new: UTILITY_DECAY * old + (1 - UTILITY_DECAY) * new, state.trace, utility)
    # By columns first, which XLA vectorizes on a CPU.
    largest = jnp.max(jnp.stack([jnp.max(jnp.max(u, axis=0)) for u in jax.tree.leaves(trace)]))
    # If no weight has a positive utility, no weight is protected.
    inverse = jnp.where(largest > 0, 1 / largest, 0)
    return jax.tree.map(lambda u: jax.nn.sigmoid(u * inverse), trace), trace


class _Units(NamedTuple):
    key: PRNGKeyArray
    utility: dict[str, Array]
    age: dict[str, Array]
    due: dict[str, Array]
    deviation: dict[str, Array]


def continual_backprop(learning_rate: Any, rate: Any) -> Transformation:
    """Returns gradient descent that also replaces units of low utility.

    The utility of a hidden unit is a running mean of `|y| Σ |outgoing weights|`. Per sample, a share `rate` of the units
    that are older than `MATURITY` samples is replaced, those with the lowest utility. Their incoming weights are redrawn
    uniformly with the deviation of the initial weights; their outgoing weights and bias become zero.

    Source: Dohare et al. 2024, https://doi.org/10.1038/s41586-024-07711-7, Algorithm 1.
    """

    def init(params: PyTree) -> _Units:
        kernels = dict(named_leaves(params))
        units = {here: kernels[here].shape[1] for here, _ in _neighbours(params)}
        zeros = {here: jnp.zeros(count) for here, count in units.items()}
        return _Units(
            noise.key_of(params),
            zeros,
            zeros,
            {here: jnp.float32(0) for here in units},
            {here: jnp.std(kernels[here]) for here in units},
        )

    def update(grads: PyTree, state: _Units, params: PyTree = None, *, activity: PyTree, **_: Any) -> tuple[PyTree, _Units]:
        calls, new = by_parameter("continual_backprop", activity, params), dict(named_leaves(params))
        new = {path: new[path] - learning_rate * g for path, g in named_leaves(grads)}
        key, utility, age, due = state.key, {}, {}, {}
        for here, after in _neighbours(params):
            post = jnp.abs(jnp.atleast_2d(calls[here][0].post)).mean(axis=0)
            worth = post * jnp.sum(jnp.abs(new[after]), axis=1)
            trace = REPLACEMENT_DECAY * state.utility[here] + (1 - REPLACEMENT_DECAY) * worth
            older = state.age[here] + 1
            ripe = older > MATURITY
            waiting = state.due[here] + rate * jnp.sum(ripe)
            chosen = (jnp.arange(len(trace)) == jnp.argmin(jnp.where(ripe, trace, jnp.inf))) & ripe & (waiting >= 1)
            key, fresh = _redrawn(key, new[here], chosen, state.deviation[here])
            new[here], new[after] = fresh, jnp.where(chosen[:, None], 0, new[after])
            bias = f"{here.rpartition('/')[0]}/bias"
            if bias in new:
                new[bias] = jnp.where(chosen, 0, new[bias])
            utility[here], age[here] = jnp.where(chosen, 0, trace), jnp.where(chosen, 0, older)
            due[here] = waiting - jnp.any(chosen)
        updates = map_named(lambda path, p: new[path] - p, params)
        return updates, _Units(key, utility, age, due, state.deviation)

    return Transformation(init, update)


def _redrawn(key: PRNGKeyArray, kernel: Array, chosen: Array, deviation: Array) -> tuple[PRNGKeyArray, Array]:
    """Returns the kernel with the chosen unit's incoming weights redrawn."""

    def redraw(key: PRNGKeyArray) -> tuple[PRNGKeyArray, Array]:
        key, drawn = jax.random.split(key)
        weights = jax.random.uniform(drawn, (kernel.shape[0],), minval=-1.0) * deviation * np.sqrt(3)
        return key, jnp.where(chosen, weights[:, None], kernel)

    return lax.cond(jnp.any(chosen), redraw, lambda key: (key, kernel), key)


def spectral(learning_rate: Any, strength: Any) -> Transformation:
    """Gradient descent of the loss, of `λ (σ² - 1)²` for each kernel's largest singular value, and of `λ |b|⁴` for biases.

    The singular vectors are estimated by one step of power iteration per sample.

    Source: Lewandowski et al. 2025, https://arxiv.org/abs/2406.06811, with k = 2.
    """

    def init(params: PyTree) -> PyTree:
        return jax.tree.map(lambda p: jnp.full(p.shape[-1], p.shape[-1] ** -0.5), params)

    def update(grads: PyTree, state: PyTree, params: PyTree = None, **_: Any) -> tuple[PyTree, PyTree]:
        def pull(p: Array, v: Array) -> tuple[Array, Array]:
            if p.ndim == 1:
                return 4 * jnp.sum(p**2) * p, v
            u = _unit(p @ v)
            v = _unit(u @ p)
            sigma = u @ p @ v
            return 4 * (sigma**2 - 1) * sigma * u[:, None] * v[None, :], v

        leaves, structure = jax.tree.flatten(params)
        pulls, vectors = zip(*map(pull, leaves, jax.tree.leaves(state)), strict=True)
        updates = [
            -learning_rate * (g + strength * change) for g, change in zip(jax.tree.leaves(grads), pulls, strict=True)
        ]
        return jax.tree.unflatten(structure, updates), jax.tree.unflatten(structure, vectors)

    return Transformation(init, update)


def isometry(learning_rate: Any, strength: Any) -> Transformation:
    """Gradient descent, and the descent of `λ |W^T W - 1|²` of each kernel, or of `λ |W W^T - 1|²` of a wide one.

    The pull acts once per `rivals.PULL_EVERY` samples, that many times as strongly.

    Source: Rosseau, Müller, Nowé 2026, https://arxiv.org/abs/2606.09762.
    """

    def update(grads: PyTree, count: Array, params: PyTree = None, **_: Any) -> tuple[PyTree, Array]:
        def pulled(p: Array) -> Array:
            small = p if p.shape[0] >= p.shape[1] else p.T
            change = 4 * (small @ (small.T @ small) - small)
            return change if small is p else change.T

        def pull(params: PyTree) -> PyTree:
            factor = -learning_rate * strength * rivals.PULL_EVERY
            return jax.tree.map(lambda p: factor * pulled(p) if p.ndim == 2 else jnp.zeros_like(p), params)

        due = count % rivals.PULL_EVERY == rivals.PULL_EVERY - 1
        pulls = lax.cond(due, pull, lambda params: jax.tree.map(jnp.zeros_like, params), params)
        return jax.tree.map(lambda g, change: change - learning_rate * g, grads, pulls), count + 1

    return Transformation(lambda _: jnp.int32(0), update)


def weight_clipping(learning_rate: Any, factor: Any) -> Transformation:
    """Returns gradient descent with parameters clipped to `κ` times the largest initial weight of their layer.

    Source: Elsayed, Lan, Lyle, Mahmood 2024, https://arxiv.org/abs/2407.01704, there with the initializer's bound.
    """

    def init(params: PyTree) -> dict[str, Array]:
        return {path: jnp.max(jnp.abs(p)) for path, p in named_leaves(params) if p.ndim == 2}

    def update(grads: PyTree, bounds: dict[str, Array], params: PyTree = None, **_: Any) -> tuple[PyTree, dict[str, Array]]:
        def change(path: str, g: Array, p: Array) -> Array:
            bound = bounds.get(rivals.kernel_of(path), jnp.inf) * factor
            return jnp.clip(p - learning_rate * g, -bound, bound) - p

        return map_named(change, grads, params), bounds

    return Transformation(init, update)


class Watch(NamedTuple):
    """Two averages of the loss.

    Attributes:
      seen: Samples since the start, or since the last detected change.
      fast: The fast average.
      slow: The slow average.
      variance: The mean square of their difference.
    """

    seen: Float[Array, ""]
    fast: Float[Array, ""]
    slow: Float[Array, ""]
    variance: Float[Array, ""]


def watched(watch: Watch, loss: Float[Array, ""]) -> Watch:
    """Returns the averages after one more loss; if the loss signals a change, they restart, and `seen` is 0.

    A change is signalled if the fast average is above the slow one by `DEVIATIONS` standard deviations of their difference,
    at the earliest after `1 / SLOW` samples. Until then the averages are means over all samples. By chance alone a change
    is signalled about once in 800 samples.
    """

    def moved(average: Array, rate: float, value: Array) -> Array:
        return average + jnp.maximum(rate, 1 / (watch.seen + 1)) * (value - average)

    fast, slow = moved(watch.fast, FAST, loss), moved(watch.slow, SLOW, loss)
    changed = (watch.seen >= 1 / SLOW) & (fast - slow > DEVIATIONS * jnp.sqrt(watch.variance))
    return Watch(jnp.where(changed, 0.0, watch.seen + 1), fast, slow, moved(watch.variance, SLOW, (fast - slow) ** 2))


def fading_again(learning_rate: Any, rate: Any, *, half_life: float) -> Transformation:
    """Returns gradient descent with a fading Oja rule in the hidden layers, which restarts at its full rate after a change.

    The rate halves every `half_life` samples. The loss signals a change, see :func:`watched`.
    """

    def rule(count: Any) -> optax.GradientTransformation:
        return rivals.oja_in_hidden(learning_rate, rate * jnp.exp2(-count / half_life))

    def init(params: PyTree) -> Any:
        return Watch(*[jnp.float32(0)] * 4), rule(0.0).init(params)

    def update(grads: PyTree, state: Any, params: PyTree = None, *, loss: Array, activity: PyTree, **_: Any) -> Any:
        watch, inner = state
        updates, inner = rule(watch.seen).update(grads, inner, params, activity=activity)
        return updates, (watched(watch, loss), inner)

    return Transformation(init, update)


def _neighbours(params: PyTree) -> list[tuple[str, str]]:
    """Returns the paths of each hidden layer's kernel and of the next layer's kernel."""
    paths = [path for path, leaf in named_leaves(params) if path.endswith("kernel") and leaf.ndim == 2]
    paths.sort(key=rivals.layer_of)
    return list(itertools.pairwise(paths))


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)
