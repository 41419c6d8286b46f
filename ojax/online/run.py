"""One run: a step of learning, and a scan of it over all samples."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from ojax.activity import is_activity, is_of
from ojax.online.learner import Gradient, Hyper, Learner, Sum
from ojax.trees import named_leaves


class Step(NamedTuple):
    """A learner after one step.

    Attributes:
      params: The parameters.
      state: The learner's state.
      opt_state: The optimizer's state.
      sums: The learner's sums, computed before the update.
      finite: Whether the sums, and the error that came back through all layers, are finite numbers.
    """

    params: PyTree
    state: PyTree
    opt_state: PyTree
    sums: dict[str, Sum]
    finite: Bool[Array, ""]


class Learned(NamedTuple):
    """A learner after a whole run.

    Attributes:
      params: The parameters.
      state: The learner's state.
      opt_state: The optimizer's state.
      sums: The learner's sums at each step, before its update; each array has a leading axis `steps`.
    """

    params: PyTree
    state: PyTree
    opt_state: PyTree
    sums: dict[str, Sum]


class Counts(NamedTuple):
    """Sums and divergence of a run during training.

    Attributes:
      sums: The learner's sums since the last evaluation.
      not_finite: Number of arrays of parameters that were not finite from the start, e.g. a mask.
      diverged_at: Count of samples seen when a number was not finite, or -1.
      diverged_layer: See :func:`first_layer_not_finite`; -1 for a run that has not diverged.
    """

    sums: dict[str, Sum]
    not_finite: Int[Array, ""]
    diverged_at: Int[Array, ""]
    diverged_layer: Int[Array, ""]


class RunState(NamedTuple):
    """The part of a run that changes from step to step; `position` is its position in a stream, empty for arrays."""

    params: PyTree
    state: PyTree
    opt_state: PyTree
    counts: Counts
    position: PyTree = ()


def initial_params(learner: Learner, hyper: Hyper, seed: Int[Array, ""] | int) -> tuple[PyTree, PyTree]:
    """Returns a seed's initial parameters and initial state, as :func:`ojax.online.train` uses them."""
    return learner.init(jax.random.fold_in(jax.random.key(seed), 0), hyper)


def optimizer_of(learner: Learner, hyper: Hyper) -> optax.GradientTransformation:
    """Returns the learner's transformation; converts `optax.MultiSteps`, which is not a transformation itself."""
    optimizer = learner.optimizer(hyper)
    if isinstance(optimizer, optax.MultiSteps):
        return optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
    return optimizer


def step(learner: Learner, hyper: Hyper, params: PyTree, state: PyTree, opt_state: PyTree, sample: PyTree) -> Step:
    """Takes one step of learning, from one sample or, with a leading axis, from a batch."""
    return update(learner, hyper, params, opt_state, learner.gradient(params, state, sample, hyper))


def update(learner: Learner, hyper: Hyper, params: PyTree, opt_state: PyTree, found: Gradient) -> Step:
    """Takes the rest of a step, given the gradient."""
    # Check one element per gradient. This also orders the updates after the backward pass, so that XLA updates the weights
    # in place.
    corners = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(found.grads) if leaf.size]
    with jax.numpy_dtype_promotion("standard"):  # Counts and gradients differ in dtype.
        finite = jnp.all(jnp.isfinite(jnp.stack([total for total, _ in found.sums.values()] + corners)))
    optimizer = optax.with_extra_args_support(optimizer_of(learner, hyper))
    updates, opt_state = optimizer.update(found.grads, opt_state, params, activity=found.activity, **found.signals)
    return Step(optax.apply_updates(params, updates), found.state, opt_state, found.sums, finite)


def learn(
    learner: Learner, hyper: Hyper, params: PyTree, state: PyTree, samples: PyTree, *, segment: int | None = None
) -> Learned:
    """Trains one run, by a scan over its samples; differentiable.

    It takes the steps of :func:`ojax.online.train`, without evaluations, divergence or devices. It is a pure function for
    `jax.jit`, `jax.vmap` and `jax.grad`. A gradient goes through the whole training, with respect to the rates in `hyper`,
    the initial weights, or any values that the learner's functions close over. The loss at the end must have true
    gradients: evaluate a network with random feedback by a copy without it, see :func:`ojax.modules.without_feedback`.

    Args:
      learner: The learner.
      hyper: Its hyper-parameters, by name.
      params: The initial parameters: from `learner.init`, or from :func:`ojax.online.initial_params` for those of a seed in
        `train`.
      state: The learner's initial state.
      samples: A pytree of arrays with a leading axis `steps`.
      segment: Number of steps per segment, which saves memory in a gradient through the training: only the state before
        each segment is stored, and the steps are recomputed segment by segment. The square root of the number of steps
        needs least memory. None stores every step. The result does not depend on it.

    Returns:
      The learner after its last step.
    """

    def body(carry, sample):
        params, state, opt_state = carry
        made = step(learner, hyper, params, state, opt_state, sample)
        return (made.params, made.state, made.opt_state), made.sums

    start = (params, state, optimizer_of(learner, hyper).init(params))
    if segment is None:
        (params, state, opt_state), sums = lax.scan(body, start, samples)
        return Learned(params, state, opt_state, sums)

    learn_segment = jax.checkpoint(partial(lax.scan, body))
    num_steps = len(jax.tree.leaves(samples)[0])
    whole = num_steps // segment * segment
    first = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, segment, *leaf.shape[1:]), samples)
    carry, sums = lax.scan(learn_segment, start, first)
    sums = jax.tree.map(lambda leaf: leaf.reshape(whole), sums)
    if whole < num_steps:
        carry, later = learn_segment(carry, jax.tree.map(lambda leaf: leaf[whole:], samples))
        sums = jax.tree.map(lambda *parts: jnp.concatenate(parts), sums, later)
    return Learned(*carry, sums)


def advance(
    learner: Learner,
    hyper: Hyper,
    run: RunState,
    seen: Int[Array, ""],
    found: Gradient,
    *,
    is_counted: Bool[Array, ""] | None = None,
) -> RunState:
    """Returns the run after a step with this gradient; unchanged if it has diverged, or the step does not count."""
    made = update(learner, hyper, run.params, run.opt_state, found)
    # Weights that are not finite make the next sums not finite, before another update uses them.
    counts = run.counts
    alive = (counts.diverged_at < 0) & made.finite
    sums = made.sums
    if is_counted is not None:
        alive &= is_counted
        sums = jax.tree.map(lambda number: jnp.where(is_counted, number, 0), sums)
    keep = partial(jax.tree.map, partial(jnp.where, alive))

    def settled(alive: Array) -> Array:
        """True unless the run diverged at this step."""
        known = alive | (counts.diverged_at >= 0)
        return known if is_counted is None else known | ~is_counted

    return run._replace(
        params=keep(made.params, run.params),
        state=keep(made.state, run.state),
        opt_state=keep(made.opt_state, run.opt_state),
        counts=counted(counts, sums)._replace(
            diverged_at=jnp.where(settled(alive), counts.diverged_at, seen.astype(jnp.int32))
        ),
    )


def counted(counts: Counts, sums: Mapping[str, Sum]) -> Counts:
    """Adds the sums of one more step."""
    return counts._replace(sums=jax.tree.map(lambda total, number: total + number.astype(total.dtype), counts.sums, sums))


def until_diverged(
    learn: Callable[[Array, Any], tuple[Array, Any]],
    start: Any,
    stop: Array,
    state: Any,
    counts_of: Callable[[Any], Counts],
) -> tuple[Int[Array, ""], Any]:
    """Learns from step `start` up to step `stop`, or until the run diverges.

    Args:
      learn: `learn(index, state)` returns the next step, and the state before it.
      start: The first step.
      stop: The step after the last.
      state: The state at the start.
      counts_of: `counts_of(state)` returns the run's counts.

    Returns:
      The next step, and the state before it.
    """

    def goes_on(carry: tuple[Array, Any]) -> Array:
        index, state = carry
        return (index < stop) & (counts_of(state).diverged_at < 0)

    return lax.while_loop(goes_on, lambda carry: learn(*carry), (jnp.asarray(start, jnp.int32), state))


def count_not_finite(params: PyTree) -> Int[Array, ""]:
    """Returns the number of arrays of parameters whose norm, in float32 at least, is not finite."""
    leaves = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(params)]
    squares = [jnp.sum(jnp.square(leaf)) for leaf in leaves]
    return sum(((~jnp.isfinite(square)).astype(jnp.int32) for square in squares), start=jnp.int32(0))


def first_layer_not_finite(params: PyTree, activity: PyTree) -> Int[Array, ""]:
    """Returns the number of the first layer whose kernel or output is not finite, from 1 in the order of the parameters.

    Layers are the parameters with an activity, or all parameters if there is no activity. The result is the last layer if
    all are finite: then the loss, or an error on its way back, was not finite.
    """
    posts = [(path, leaf.post) for path, leaf in named_leaves(activity, is_activity)]
    layers = [(leaf, [post for path, post in posts if is_of(path, name)]) for name, leaf in named_leaves(params)]
    layers = [layer for layer in layers if layer[1]] or layers
    finite = [jnp.all(jnp.array([jnp.all(jnp.isfinite(part)) for part in (leaf, *posts)])) for leaf, posts in layers]
    return jnp.argmin(jnp.stack([*finite[:-1], jnp.array(False)])).astype(jnp.int32) + 1
