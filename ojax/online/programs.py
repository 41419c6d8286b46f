"""The three programs of a training, written for one run: begin, learn on, evaluate."""

import functools
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.stages import Wrapped
from jaxtyping import Array, PyTree

from ojax.online import checks, devices, samples, windows
from ojax.online.first_layer import FirstLayer
from ojax.online.learner import Hyper, Learner, Sum
from ojax.online.plan import Plan
from ojax.online.run import (
    Counts,
    RunState,
    advance,
    count_not_finite,
    counted,
    first_layer_not_finite,
    initial_params,
    optimizer_of,
    until_diverged,
)

Scores = dict[str, Array]


class Run(NamedTuple):
    """A run's constants: its hyper-parameters, and the order of its samples, None for a stream."""

    hyper: Hyper
    order: samples.Order


class Programs(NamedTuple):
    """The compiled programs. Each argument but the last, and each result, has a leading axis `runs`.

    Attributes:
      begin: `begin((hyper, seed), data) -> (run, state, history)`: a run's constants, its initial state, and its empty
        table of scores.
      advance: `advance(state, run, (data, bounds)) -> state` learns from step `bounds[0]` up to step `bounds[1]`.
      evaluate: `evaluate((counts, history), (params, state, position, run), (data, place)) -> (counts, history)` writes the
        scores after `place[1]` samples into the table as number `place[0]`.
    """

    begin: Wrapped
    advance: Wrapped
    evaluate: Wrapped


@functools.lru_cache(maxsize=8)
def programs(learner: Learner, plan: Plan, layer: FirstLayer | None, train_size: int, mesh: Mesh) -> Programs:
    """Returns the compiled programs; cached, so that the next block of a grid compiles nothing."""
    begin_one = partial(begin, learner, plan, train_size)
    evaluate_one = partial(evaluate, learner, plan)
    advance_one = partial(learn_on, learner, plan, layer, in_parallel=not devices.sequential(mesh))
    return Programs(
        devices.compiled(devices.map_runs(begin_one, mesh), mesh, "settings", "data", quickly=True),
        devices.compiled(devices.update_runs(advance_one, mesh), mesh, "state", "run", "shared"),
        devices.compiled(
            devices.update_runs(evaluate_one, mesh), mesh, "state", "run", "shared", quickly=devices.platform(mesh) == "tpu"
        ),
    )


class Arguments(NamedTuple):
    """The shapes of each program's arguments."""

    begin: tuple
    advance: tuple
    evaluate: tuple


def arguments(begin: Wrapped, settings: tuple, data: tuple, mesh: Mesh) -> Arguments:
    """Returns the shapes of the programs' arguments.

    With them, programs compile before `begin` has run, or for devices of another machine.
    """
    runs = NamedSharding(mesh, devices.RUNS)
    run, state, history = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=runs, weak_type=leaf.weak_type),
        jax.eval_shape(begin, settings, data),
    )
    shared = (data, np.zeros(2, np.int32))
    network = (state.params, state.state, state.position, run)
    return Arguments((settings, data), (state, run, shared), ((state.counts, history), network, shared))


def begin(learner: Learner, plan: Plan, train_size: int, settings: tuple, data: tuple) -> tuple[Run, RunState, Scores]:
    """Returns a run's constants, its initial state, and its empty table of scores."""
    hyper, seed = settings
    order, position = samples.begin(plan, train_size, data[0], seed)
    run = Run(hyper, order)
    params, state = initial_params(learner, hyper, seed)
    opt_state = optimizer_of(learner, hyper).init(params)
    counted, evaluated, _ = checks.traced(learner, plan, hyper, checks.shapes(*data))
    sums = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype if leaf.dtype == jnp.float64 else jnp.float32), counted)
    counts = Counts(sums, count_not_finite(params), jnp.int32(-1), jnp.int32(-1))
    scores = jax.eval_shape(scores_of, counts, evaluated)
    count = len(plan.evaluate_at)
    history = jax.tree.map(lambda value: jnp.zeros((count, *value.shape), value.dtype), scores)
    return run, RunState(params, state, opt_state, counts, position), history


def learn_on(
    learner: Learner,
    plan: Plan,
    layer: FirstLayer | None,
    state: RunState,
    run: Run,
    shared: tuple,
    *,
    in_parallel: bool = False,
) -> RunState:
    """Learns from step `start` up to step `stop`; `in_parallel` as in :func:`ojax.online.windows.learn_window`.

    A run that is not in parallel with others is frozen once it has diverged: for later samples only the sums, e.g. the
    loss, are computed.
    """
    (train, _), (start, stop) = shared

    def learn(index: Array, state: RunState) -> tuple[Array, RunState]:
        position, sample = samples.take(plan, train, run.order, state.position, index)
        found = learner.gradient(state.params, state.state, sample, run.hyper)
        return index + 1, moved(advance(learner, run.hyper, state, index * plan.batch_size, found), position, state)

    def learn_window(layer: FirstLayer, first: Array, state: RunState) -> tuple[Array, RunState]:
        num_samples = jnp.minimum(stop - first, windows.SIZE)
        position, window = samples.take_window(train, run.order, state.position, first, windows.SIZE, num_samples)
        num_counted, after = windows.learn_window(
            learner, layer, run.hyper, state, first, num_samples, window, in_parallel=in_parallel
        )
        if in_parallel:
            state = state._replace(position=samples.advanced(train, state.position, after.counts.diverged_at))
        return first + num_counted, moved(after, position, state)

    def moved(after: RunState, position: PyTree, before: RunState) -> RunState:
        # A run that is not in parallel stops when it diverges: its position, perhaps as large as the data, is chosen once.
        if in_parallel:
            position = samples.kept(after.counts.diverged_at < 0, position, before.position)
        return after._replace(position=position)

    learn_some, size = (learn, 1) if layer is None else (partial(learn_window, layer), windows.SIZE)
    num_times = (stop - start + size - 1) // size
    if in_parallel:
        return lax.fori_loop(0, num_times, lambda time, state: learn_some(start + time * size, state)[1], state)
    begun = state.position
    frozen_from, state = until_diverged(learn_some, start, stop, state, lambda state: state.counts)
    frozen = samples.advanced(train, begun, state.counts.diverged_at)
    state = state._replace(position=samples.kept(state.counts.diverged_at < 0, state.position, frozen))

    def sums_of(sample: PyTree) -> dict[str, Sum]:
        return learner.gradient(state.params, state.state, sample, run.hyper).sums

    def count(time: Array, counts: Counts) -> Counts:
        first = start + time * size
        if layer is None:
            return counted(counts, sums_of(samples.take(plan, train, run.order, state.position, first)[1]))
        # A whole window at once, which only a learner with a first layer allows: vmap could refuse others, e.g. a callback.
        steps = first + jnp.arange(size)
        window = samples.each_at(train, run.order, state.position, steps)
        is_counted = (frozen_from <= steps) & (steps < stop)
        return counted(counts, jax.tree.map(lambda number: jnp.sum(number, where=is_counted), jax.vmap(sums_of)(window)))

    return state._replace(counts=lax.fori_loop((frozen_from - start) // size, num_times, count, state.counts))


def evaluate(learner: Learner, plan: Plan, counted: tuple, network: tuple, shared: tuple) -> tuple[Counts, Scores]:
    """Writes the run's scores into its table and resets its sums."""
    (counts, history), (data, (index, seen)) = counted, shared
    counts, scores = score(learner, plan, counts, network, data, seen)
    history = jax.tree.map(lambda column, value: column.at[index].set(value), history, scores)
    return counts._replace(sums=jax.tree.map(jnp.zeros_like, counts.sums)), history


def score(learner: Learner, plan: Plan, counts: Counts, network: tuple, data: tuple, seen: Array) -> tuple[Counts, Scores]:
    """Returns the scores of a run after `seen` samples, and its counts with any divergence."""
    (params, state, position, run), (train, test) = network, data
    finite = count_not_finite(params) <= counts.not_finite
    diverged_at = jnp.where(finite | (counts.diverged_at >= 0), counts.diverged_at, seen)
    # A diverged run is frozen before the sample at which it diverged. Its activity for this sample tells the layer.
    sample = samples.at(plan, train, run.order, position, diverged_at)
    activity = learner.gradient(params, state, sample, run.hyper).activity
    fresh = (diverged_at >= 0) & (counts.diverged_layer < 0)
    diverged_layer = jnp.where(fresh, first_layer_not_finite(params, activity), counts.diverged_layer)
    evaluated = learner.evaluate(params, state, samples.test_data(train, test, position), run.hyper)
    counts = counts._replace(diverged_at=diverged_at, diverged_layer=diverged_layer)
    return counts, scores_of(counts, evaluated)


def scores_of(counts: Counts, evaluated: Mapping[str, Array]) -> Scores:
    """Returns the scores of an evaluation with the means of the sums, and the divergence."""
    scores = dict(evaluated)
    scores |= {name: total / weight for name, (total, weight) in counts.sums.items()}
    scores |= {"diverged_at": counts.diverged_at, "diverged_layer": counts.diverged_layer}
    return jax.tree.map(jnp.asarray, scores)
