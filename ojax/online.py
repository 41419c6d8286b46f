"""Online learning, one sample at a time: scanned over samples, mapped over runs, sharded over devices.

A *run* is one seed at one setting. Numeric hyper-parameters and seeds are arrays along one leading axis, `runs`, so one
compiled program trains a whole grid. A run's initial weights and order of samples are functions of its seed alone: seed
k is the same run whatever else is in the grid, and two rules with one seed start from the same weights and see the same
samples in the same order.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ojax.datasets import Dataset

Hyper = Mapping[str, Float[Array, ""]]


class Learner(NamedTuple):
    """What learns, as pure functions; :func:`ojax.modules.as_functions` makes the first two of a Flax model.

    Attributes:
      init: `init(key, hyper) -> (params, state)`: the initial weights, and what else the network keeps (running
        statistics, feedback weights; an empty tree for most).
      apply: `apply(params, state, images, training) -> (logits, activity, state)`, for images of shape (..., pixels);
        `training` is a Python bool, and the new state is taken over in training alone.
      optimizer: `optimizer(hyper) -> optax.GradientTransformationExtraArgs`; `update` is given `activity`. Its
        hyper-parameters are traced scalars, so `lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"])`.
      measure: `measure(params, state, images, labels) -> dict of arrays`, taken of the first `num_probe` test images at
        each evaluation; None for none.
    """

    init: Callable[[PRNGKeyArray, Hyper], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, PyTree, Float[Array, "*batch pixels"], bool], tuple[Array, PyTree, PyTree]]
    optimizer: Callable[[Hyper], optax.GradientTransformationExtraArgs]
    measure: Callable[[PyTree, PyTree, Float[Array, "probe pixels"], Int[Array, "probe"]], dict[str, Array]] | None = None


class Schedule(NamedTuple):
    """How many samples a run sees and when it is evaluated.

    Attributes:
      num_train: Number of training samples of each run, drawn without replacement by its seed.
      evaluate_at: Counts of samples seen at which to evaluate, ascending multiples of `batch_size`; the last ends the run.
      epochs: How often the run sees its samples, in a new order each time.
      batch_size: Samples a step; 1 is online learning. What is left of an epoch after its whole batches is dropped.
      num_probe: Number of test images, from the first, that the learner's `measure` is given.
    """

    num_train: int
    evaluate_at: tuple[int, ...]
    epochs: int = 1
    batch_size: int = 1
    num_probe: int = 500


class Score(NamedTuple):
    """One run at one evaluation; as yielded by :func:`train`, each field has a leading axis `runs`.

    Attributes:
      test_accuracy: Fraction of the test images classified right; one with logits that are not finite counts as wrong.
      test_loss: Mean cross-entropy on the test images, in nats.
      train_accuracy: Fraction of the samples since the last evaluation that were classified right *before* their update.
        In the first epoch these are samples that the run had never seen. NaN if there were none.
      train_loss: Mean cross-entropy of the same samples, in nats.
      weight_norms: Frobenius norm of each weight matrix, in the order of the parameters.
      diverged_at: Count of samples seen when a number left the finite range and the run was frozen, or -1.
      measures: What the learner's `measure` returned, by name; NaN for a run that has diverged.
    """

    test_accuracy: Float[Array, ""]
    test_loss: Float[Array, ""]
    train_accuracy: Float[Array, ""]
    train_loss: Float[Array, ""]
    weight_norms: Float[Array, "layers"]
    diverged_at: Int[Array, ""]
    measures: dict[str, Array]


class _State(NamedTuple):
    """A run between two evaluations: all that changes."""

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    loss_sum: Float[Array, ""]
    num_right: Float[Array, ""]
    diverged_at: Int[Array, ""]


class _Run(NamedTuple):
    """A run's constants."""

    hyper: Hyper
    seed: Int[Array, ""]
    order: Int[Array, "steps batch"]


class _Samples(NamedTuple):
    """The data on the devices: one copy a device, whatever the number of runs."""

    train_images: Float[Array, "train pixels"]
    train_labels: Int[Array, "train"]
    test_images: Float[Array, "test pixels"]
    test_labels: Int[Array, "test"]


def use_all_cores() -> None:
    """Gives a CPU-only JAX one device a core, for :func:`train` to shard over; call it before JAX is first used.

    It changes nothing where the user has already chosen a number of CPU devices, nor on GPU and TPU.
    """
    by_environment = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] < 0 and not by_environment:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)


def train(
    learner: Learner,
    hyper: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
    dataset: Dataset,
    schedule: Schedule,
) -> Iterator[tuple[int, Score]]:
    """Trains all runs side by side over every device there is, and yields their scores at each evaluation.

    Args:
      learner: The network and its rule, the same program for all runs.
      hyper: Numeric hyper-parameters by name, one value a run.
      seeds: One seed a run, from which its weights and order of samples follow.
      dataset: Images and labels; all of the test images are used at each evaluation.
      schedule: Number of samples, epochs, batch size and evaluations.

    Yields:
      The count of samples seen and the runs' :class:`Score`, as NumPy arrays with a leading axis `runs`.

    Raises:
      ValueError: If the schedule does not fit the data set or the lengths of `hyper` and `seeds` differ.
    """
    _check_schedule(schedule, len(dataset.train_labels))
    lengths = {name: len(values) for name, values in hyper.items()}
    num_runs = len(seeds)
    if num_runs == 0 or set(lengths.values()) - {num_runs}:
        raise ValueError(f"Each hyper-parameter needs one value a run: {num_runs} seeds, but {lengths}.")

    # jax.make_mesh would reorder devices for their network; runs never talk to each other, so any order will do.
    mesh = Mesh(np.array(jax.devices()), ("runs",))
    sharded = NamedSharding(mesh, PartitionSpec("runs"))
    # Every device gets the same number of runs; the surplus repeats the last one and is cut off below.
    padded = np.minimum(np.arange(-(-num_runs // mesh.size) * mesh.size), num_runs - 1)
    hyper_arrays = {name: np.asarray(values, np.float32)[padded] for name, values in hyper.items()}
    seed_array = np.asarray(seeds, np.uint32)[padded]
    samples = jax.device_put(_Samples(*map(jnp.asarray, dataset[1:5])), NamedSharding(mesh, PartitionSpec()))

    begin = _over_runs(partial(_begin, learner, schedule, len(dataset.train_labels)), mesh)
    advance = _over_runs(partial(_advance, learner, schedule), mesh)
    runs, state = begin(jax.device_put((hyper_arrays, seed_array), sharded), None)
    start = 0
    for stop in schedule.evaluate_at:
        bounds = np.array([start, stop], np.int32) // schedule.batch_size
        state, scores = advance((runs, state), (samples, bounds))
        yield stop, jax.tree.map(lambda column: np.asarray(column)[:num_runs], scores)
        start = stop


def step(
    learner: Learner, hyper: Hyper, params: PyTree, model_state: PyTree, opt_state: PyTree, images: Array, labels: Array
) -> tuple[PyTree, PyTree, PyTree, Float[Array, ""], Float[Array, ""]]:
    """One step of learning from one sample (image of shape (pixels,)) or a batch of them ((batch, pixels)).

    Returns:
      The updates to add to `params`, the new states of the model and of the optimizer, and the mean loss and the number of
      right answers before the update.
    """

    def loss_fn(params):
        logits, activity, new_state = learner.apply(params, model_state, images, True)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        return loss, (jnp.sum(_is_right(logits, labels)), activity, new_state)

    (loss, (right, activity, new_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = learner.optimizer(hyper).update(grads, opt_state, params, activity=activity)
    return updates, new_state, opt_state, loss, right


def initial_params(learner: Learner, hyper: Hyper, seed: Int[Array, ""]) -> tuple[PyTree, PyTree]:
    """The weights, and the network's other state, with which the run of that seed starts."""
    return learner.init(jax.random.fold_in(jax.random.key(seed), 0), hyper)


def sample_order(schedule: Schedule, train_size: int, seed: Int[Array, ""]) -> Int[Array, "steps batch"]:
    """Which training samples the run of that seed sees, in which order.

    The seed draws `num_train` of the `train_size` samples, and each epoch shuffles these anew.
    """
    key = jax.random.fold_in(jax.random.key(seed), 1)
    chosen = jax.random.permutation(key, train_size)[: schedule.num_train]
    keys = jax.random.split(key, schedule.epochs)
    later = jax.vmap(lambda key: jax.random.permutation(key, chosen))(keys[1:])
    order = jnp.concatenate([chosen[None], later]).astype(jnp.int32)  # The draw itself is the first epoch's order.
    steps = schedule.num_train // schedule.batch_size
    return order[:, : steps * schedule.batch_size].reshape(-1, schedule.batch_size)


def evaluation_counts(num_evaluations: int, *, num_train: int, epochs: int = 1, batch_size: int = 1) -> tuple[int, ...]:
    """That many evenly spaced counts of samples, whole batches all, the last at the end of the run."""
    total = num_train // batch_size * epochs
    counts = np.unique(np.linspace(0, total, num_evaluations + 1).round().astype(int))
    return tuple(int(count) * batch_size for count in counts if count > 0)


def _over_runs(run_fn: Callable, mesh: Mesh) -> Callable:
    """Compiles `run_fn(run, shared)`, written for one run, for all runs of a grid: `run` has a leading axis `runs`."""

    def shard_fn(runs, shared):
        if mesh.devices.flat[0].platform == "cpu":
            # One run after the other on each core keeps a run's weights in the core's cache; vmap would stream the
            # weights of all runs through memory at every sample.
            return lax.map(lambda run: run_fn(run, shared), runs)
        return jax.vmap(run_fn, in_axes=(0, None))(runs, shared)

    sharded, replicated = PartitionSpec("runs"), PartitionSpec()
    return jax.jit(jax.shard_map(shard_fn, mesh=mesh, in_specs=(sharded, replicated), out_specs=sharded, check_vma=False))


def _begin(learner: Learner, schedule: Schedule, train_size: int, settings: tuple, _: None) -> tuple[_Run, _State]:
    hyper, seed = settings
    params, model_state = initial_params(learner, hyper, seed)
    opt_state = learner.optimizer(hyper).init(params)
    state = _State(params, model_state, opt_state, jnp.zeros(()), jnp.zeros(()), diverged_at=jnp.int32(-1))
    return _Run(hyper, seed, sample_order(schedule, train_size, seed)), state


def _advance(
    learner: Learner, schedule: Schedule, run_and_state: tuple[_Run, _State], shared: tuple
) -> tuple[_State, Score]:
    """Learns from step `start` to step `stop`, then evaluates."""
    run, state = run_and_state
    samples, (start, stop) = shared
    num_samples = (stop - start) * schedule.batch_size

    def learn(index, state):
        chosen = run.order[index]
        if schedule.batch_size == 1:
            chosen = chosen[0]  # Matrix-vector products, not matrix products with one row.
        images, labels = samples.train_images[chosen], samples.train_labels[chosen]
        before = (state.params, state.model_state, state.opt_state)
        updates, model_state, opt_state, loss, right = step(learner, run.hyper, *before, images, labels)
        # Weights that have left the finite range show in the very next loss, before another update is made of them.
        alive = (state.diverged_at < 0) & jnp.isfinite(loss)
        seen = (index * schedule.batch_size).astype(jnp.int32)
        keep = partial(jax.tree.map, partial(jnp.where, alive))
        return _State(
            params=keep(optax.apply_updates(state.params, updates), state.params),
            model_state=keep(model_state, state.model_state),
            opt_state=keep(opt_state, state.opt_state),
            loss_sum=state.loss_sum + loss * schedule.batch_size,
            num_right=state.num_right + right,
            diverged_at=jnp.where(alive | (state.diverged_at >= 0), state.diverged_at, seen),
        )

    state = state._replace(loss_sum=jnp.zeros(()), num_right=jnp.zeros(()))
    state = lax.fori_loop(start, stop, learn, state)
    test_accuracy, test_loss = _evaluate(learner, state, samples)
    norms = jnp.stack([jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2])
    finite = jnp.isfinite(test_loss) & jnp.all(jnp.isfinite(norms))
    seen = (stop * schedule.batch_size).astype(jnp.int32)
    state = state._replace(diverged_at=jnp.where(finite | (state.diverged_at >= 0), state.diverged_at, seen))
    train_accuracy, train_loss = state.num_right / num_samples, state.loss_sum / num_samples
    measures = _measure(learner, schedule.num_probe, state, samples)
    return state, Score(test_accuracy, test_loss, train_accuracy, train_loss, norms, state.diverged_at, measures)


def _measure(learner: Learner, num_probe: int, state: _State, samples: _Samples) -> dict[str, Array]:
    if learner.measure is None:
        return {}
    finite = state.diverged_at < 0
    # Decompositions of a matrix that is not finite may not end; a network of zeros is measured in its place.
    params, model_state = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), (state.params, state.model_state))
    found = learner.measure(params, model_state, samples.test_images[:num_probe], samples.test_labels[:num_probe])
    return jax.tree.map(lambda value: jnp.where(finite, value, jnp.nan), found)


def _evaluate(learner: Learner, state: _State, samples: _Samples) -> tuple[Float[Array, ""], Float[Array, ""]]:
    logits, *_ = learner.apply(state.params, state.model_state, samples.test_images, False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, samples.test_labels)
    return jnp.mean(_is_right(logits, samples.test_labels), dtype=jnp.float32), jnp.mean(losses)


def _is_right(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Bool[Array, "*batch"]:
    return (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)


def _check_schedule(schedule: Schedule, train_size: int) -> None:
    if not 1 <= schedule.num_train <= train_size:
        raise ValueError(f"num_train must be from 1 to the data set's {train_size} samples, got {schedule.num_train}.")
    if not 1 <= schedule.batch_size <= schedule.num_train:
        raise ValueError(f"batch_size must be from 1 to num_train={schedule.num_train}, got {schedule.batch_size}.")
    if schedule.epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {schedule.epochs}.")
    total = schedule.num_train // schedule.batch_size * schedule.batch_size * schedule.epochs
    counts = np.asarray(schedule.evaluate_at)
    rising = len(counts) > 0 and counts[0] >= 0 and np.all(np.diff(counts) > 0)
    if not rising or counts[-1] > total or np.any(counts % schedule.batch_size):
        raise ValueError(
            f"evaluate_at must be ascending multiples of batch_size={schedule.batch_size} up to {total}, got "
            f"{schedule.evaluate_at}."
        )
