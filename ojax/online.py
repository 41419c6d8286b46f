"""Online learning, one sample at a time: scanned over samples, mapped over runs, sharded over devices.

A *run* is one seed at one setting. Numeric hyper-parameters and seeds are arrays along one leading axis, `runs`, so one
compiled program trains a whole grid. A run's initial weights and order of samples are functions of its seed alone: seed
k is the same run whatever else is in the grid, and two rules with one seed start from the same weights and see the same
samples in the same order.
"""

import functools
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ojax import windows
from ojax.datasets import Dataset
from ojax.plasticity import Activity

if TYPE_CHECKING:  # Orbax is loaded only where something is saved.
    from ojax.checkpoints import Checkpoints

Hyper = Mapping[str, Float[Array, ""]]

# Of a window's work, the products with the kernel fall as 1 / K a sample, the passes over its 3 K rows grow as K.
_WINDOW = 16


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
      input_kernel: Path of the kernel of the first layer, `layers/0/kernel`, for speed: its weights, most of all, are then
        carried over 16 samples at a time, see :mod:`ojax.windows`, with the same results but for float rounding. Give it
        where the image goes nowhere but into that kernel, a recorded layer's without feedback weights, and the optimizer
        chains nothing but `optax.sgd` without momentum, or other constant or scheduled factors on the gradient, and
        `ojax.oja`. Optimizers that do anything else to the kernel are refused by :func:`train`, which tries them on small
        examples, at the runs' rates and after 0, 100 and 10,000 steps. Batches of several samples take no notice of it.
    """

    init: Callable[[PRNGKeyArray, Hyper], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, PyTree, Float[Array, "*batch pixels"], bool], tuple[Array, PyTree, PyTree]]
    optimizer: Callable[[Hyper], optax.GradientTransformationExtraArgs]
    measure: Callable[[PyTree, PyTree, Float[Array, "probe pixels"], Int[Array, "probe"]], dict[str, Array]] | None = None
    input_kernel: str | None = None


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
      diverged_layer: The first layer, from 1 in the order of the parameters, whose weights or activity are not finite
        then, the last one if it was the loss or an error on its way back alone; -1 for a run that has not diverged.
      measures: What the learner's `measure` returned, by name; NaN for a run that has diverged.
    """

    test_accuracy: Float[Array, ""]
    test_loss: Float[Array, ""]
    train_accuracy: Float[Array, ""]
    train_loss: Float[Array, ""]
    weight_norms: Float[Array, "layers"]
    diverged_at: Int[Array, ""]
    diverged_layer: Int[Array, ""]
    measures: dict[str, Array]


class Step(NamedTuple):
    """One step of learning, from one sample or a batch of them.

    Attributes:
      updates: To add to the parameters.
      model_state: The model's state after it.
      opt_state: The optimizer's.
      activity: The layers' activity before it.
      loss: Mean cross-entropy before it, in nats.
      num_right: Number of right answers before it.
      finite: Whether the loss, and the error that came back through all layers, are finite numbers.
    """

    updates: PyTree
    model_state: PyTree
    opt_state: PyTree
    activity: PyTree
    loss: Float[Array, ""]
    num_right: Float[Array, ""]
    finite: Bool[Array, ""]


class _Tally(NamedTuple):
    """What is counted of a run as it learns."""

    loss_sum: Float[Array, ""]
    num_right: Float[Array, ""]
    diverged_at: Int[Array, ""]
    diverged_layer: Int[Array, ""]


class _State(NamedTuple):
    """A run between two evaluations: all that changes."""

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    tally: _Tally


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
        jax.config.update("jax_num_cpu_devices", num_cores())


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train(
    learner: Learner,
    hyper: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
    dataset: Dataset,
    schedule: Schedule,
    *,
    num_slots: int = 1,
    checkpoints: "Checkpoints | None" = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Score]]:
    """Trains all runs side by side over every device of every process, and yields their scores at each evaluation.

    Args:
      learner: The network and its rule, the same program for all runs.
      hyper: Numeric hyper-parameters by name, one value a run.
      seeds: One seed a run, from which its weights and order of samples follow.
      dataset: Images and labels; all of the test images are used at each evaluation.
      schedule: Number of samples, epochs, batch size and evaluations.
      num_slots: Number of runs to compile for, at least: fewer runs are filled up, so that calls of one learner and
        schedule with other numbers of runs share one compilation.
      checkpoints: Where to save the state of all runs as they train. What is there already is gone on from: its
        evaluations are yielded again, and then those that follow, bit for bit as in a training that was never stopped.
      on_progress: Called at the start and about once a second (with very many runs, every 64 samples) with the count of
        samples that each run has seen.

    Yields:
      The count of samples seen and the runs' :class:`Score`, as NumPy arrays with a leading axis `runs`.

    Raises:
      ValueError: If the schedule does not fit the data set or the lengths of `hyper` and `seeds` differ.
      Interrupted: If the checkpoints were asked to stop; the state is saved.
      OSError: If a checkpoint cannot be written.
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
    num_padded = -(-max(num_runs, num_slots) // mesh.size) * mesh.size
    padded = np.minimum(np.arange(num_padded), num_runs - 1)
    hyper_arrays = {name: np.asarray(values, np.float32)[padded] for name, values in hyper.items()}
    seed_array = np.asarray(seeds, np.uint32)[padded]
    _check_input_kernel(learner, schedule, hyper_arrays)
    samples = _put(_Samples._make(dataset[1:5]), NamedSharding(mesh, PartitionSpec()))

    begin, advance, evaluate = _programs(learner, schedule, len(dataset.train_labels), mesh)
    runs, state, history = begin(_put((hyper_arrays, seed_array), sharded), samples)
    seen, evaluated, known_by = 0, -1, (runs.hyper, runs.seed)
    if checkpoints is not None and (restored := checkpoints.restore((state, history), num_runs, known_by)) is not None:
        seen, (state, history) = restored
        evaluated = seen
    if on_progress is not None:
        jax.block_until_ready(state)
        on_progress(seen)
    begun = 0
    pace, whole = _Pace(), schedule.batch_size if _input_kernel(learner, schedule) is None else _WINDOW
    for index, count in enumerate(schedule.evaluate_at):
        while seen < count:
            # In pieces of about a second, where somebody wants to look. They make no difference to the numbers: each is of
            # whole steps, or of whole windows from the last evaluation on.
            until = count
            if checkpoints is not None or on_progress is not None:
                until = seen + pace.piece()
            if checkpoints is not None:
                until = min(until, checkpoints.next_save())
            until = min(count, begun + -(-(max(until, seen + 1) - begun) // whole) * whole)
            began = time.monotonic()
            bounds = np.array([seen, until], np.int32) // schedule.batch_size
            state = jax.block_until_ready(advance(state, runs, (samples, bounds)))
            pace.took(until - seen, time.monotonic() - began)
            seen = until
            if on_progress is not None:
                on_progress(seen)
            if checkpoints is not None and seen < count:
                checkpoints.update(seen, (state, history), known_by)
        if count > evaluated:
            bounds = np.array([index, begun, count], np.int32)
            tally, history = evaluate((state.tally, history), (state.params, state.model_state), (samples, bounds))
            state = state._replace(tally=tally)
        begun = count
        yield count, _on_host(history, num_runs, index)
        if checkpoints is not None and evaluated < count < schedule.evaluate_at[-1]:
            checkpoints.update(seen, (state, history), known_by)


def runs_that_fit(learner: Learner, hyper: Sequence[str], dataset: Dataset, schedule: Schedule) -> int:
    """How many runs :func:`train` should take at once, in half of the memory that is free on the devices.

    On a CPU there are no more than fill 2 GiB, or one a core: more at once would be no faster, but take longer to save. It
    is 1 where one run needs more than half of the memory, and 0 where one needs more than all.

    Args:
      learner: The network and its rule.
      hyper: Names of its numeric hyper-parameters.
      dataset: Images and labels.
      schedule: Number of samples and evaluations.
    """
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    settings = (dict.fromkeys(hyper, scalar), jax.ShapeDtypeStruct((), jnp.uint32))
    samples = _Samples._make(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in dataset[1:5])
    begin = partial(_begin, learner, schedule, len(dataset.train_labels))
    run, state, history = jax.eval_shape(begin, settings, samples)
    # The state before and after a piece of work, and on its way to a checkpoint; the order, and its keys as it is drawn.
    bytes_of_run = 3 * _num_bytes((state, history)) + 2 * _num_bytes(run) + 8 * len(dataset.train_labels)
    devices = jax.local_devices()
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in found for found in stats):
        # Mapped by vmap, all runs' activities on the test images are there at once.
        shapes = jax.eval_shape(learner.apply, state.params, state.model_state, samples.test_images, False)
        bytes_of_run += 2 * _num_bytes(shapes)
        free, enough = sum(found["bytes_limit"] - found.get("bytes_in_use", 0) for found in stats), sys.maxsize
    else:
        free, enough = _free_host_memory(), max(len(devices), 2**31 // bytes_of_run)
    free -= len(devices) * _num_bytes(samples)
    return max(jax.process_count() * min(enough, int(free / 2 // bytes_of_run)), int(bytes_of_run < free))


def step(
    learner: Learner,
    hyper: Hyper,
    params: PyTree,
    model_state: PyTree,
    opt_state: PyTree,
    images: Array,
    labels: Array,
    change: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] = lambda grads, activity: (grads, activity),
) -> Step:
    """One step of learning from one sample (image of shape (pixels,)) or a batch of them ((batch, pixels)).

    `change` is made of the gradients and the activity before the optimizer sees them.
    """

    def loss_fn(params):
        logits, activity, new_state = learner.apply(params, model_state, images, True)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        return loss, (jnp.sum(_is_right(logits, labels)), activity, new_state)

    (loss, (right, activity, new_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    grads, seen_activity = change(grads, activity)
    # One number of each gradient tells whether its error is finite. That all weights wait for them also lets XLA update
    # them in place: none is overwritten before the error has passed through it.
    corners = jnp.stack([leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(grads)])
    finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(corners))
    updates, opt_state = learner.optimizer(hyper).update(grads, opt_state, params, activity=seen_activity)
    return Step(updates, new_state, opt_state, activity, loss, right, finite)


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
    counts = np.unique(np.linspace(0, total, min(num_evaluations, total) + 1).round().astype(int))
    return tuple(int(count) * batch_size for count in counts if count > 0)


@functools.lru_cache(maxsize=4)
def _programs(learner: Learner, schedule: Schedule, train_size: int, mesh: Mesh) -> tuple[Callable, Callable, Callable]:
    """The three compiled programs of a training; remembered, so that the next block of a grid compiles nothing."""
    return (
        _compiled(_map_runs(partial(_begin, learner, schedule, train_size), mesh), mesh, "settings", "samples"),
        _compiled(_update_runs(partial(_advance, learner, schedule), mesh), mesh, "state", "runs", "shared"),
        _compiled(_update_runs(partial(_evaluate, learner, schedule), mesh), mesh, "state", "runs", "shared"),
    )


def _compiled(over_runs: Callable, mesh: Mesh, *arguments: str) -> Callable:
    """Compiles it for all devices: each has its part of the runs, and all of the last argument.

    A state is overwritten, so that there is one of it in memory: who else has it needs a copy.
    """
    sharded, replicated = PartitionSpec("runs"), PartitionSpec()
    specs = (*[sharded] * (len(arguments) - 1), replicated)

    def program(*arguments):
        return over_runs(*arguments)

    by_device = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=sharded, check_vma=False)
    return jax.jit(by_device, donate_argnums=[i for i, name in enumerate(arguments) if name == "state"])


def _map_runs(run_fn: Callable, mesh: Mesh) -> Callable:
    """`run_fn(run, shared)`, written for one run, for all that a device has: `run` has a leading axis `runs`."""
    if _one_by_one(mesh):
        return lambda runs, shared: lax.map(lambda run: run_fn(run, shared), runs)
    return jax.vmap(run_fn, in_axes=(0, None))


def _update_runs(run_fn: Callable, mesh: Mesh) -> Callable:
    """The same for `run_fn(state, run, shared)` that returns a new state."""
    if not _one_by_one(mesh):
        return jax.vmap(run_fn, in_axes=(0, 0, None))

    def over_runs(states, runs, shared):
        def update(index, states):
            state, run = jax.tree.map(lambda leaf: leaf[index], (states, runs))
            return jax.tree.map(lambda old, new: old.at[index].set(new), states, run_fn(state, run, shared))

        return lax.fori_loop(0, len(jax.tree.leaves(states)[0]), update, states)

    return over_runs


def _one_by_one(mesh: Mesh) -> bool:
    """Whether a device takes its runs in turn: on a CPU, whose cores then keep a run's weights in their caches.

    There vmap would stream the weights of all runs through memory at every sample. A GPU or TPU takes all runs at once.
    """
    return mesh.devices.flat[0].platform == "cpu"


def _begin(
    learner: Learner, schedule: Schedule, train_size: int, settings: tuple, samples: _Samples
) -> tuple[_Run, _State, Score]:
    """A run's constants, its first state, and a table of its scores with nothing in it yet."""
    hyper, seed = settings
    params, model_state = initial_params(learner, hyper, seed)
    opt_state = learner.optimizer(hyper).init(params)
    none = jnp.int32(-1)
    state = _State(params, model_state, opt_state, _Tally(jnp.zeros(()), jnp.zeros(()), none, none))
    _, score = jax.eval_shape(
        partial(_score, learner, schedule.num_probe), state.tally, params, model_state, samples, none, none
    )
    history = jax.tree.map(lambda value: jnp.zeros((len(schedule.evaluate_at), *value.shape), value.dtype), score)
    return _Run(hyper, seed, sample_order(schedule, train_size, seed)), state, history


def _advance(learner: Learner, schedule: Schedule, state: _State, run: _Run, shared: tuple) -> _State:
    """Learns from step `start` to step `stop`."""
    samples, (start, stop) = shared
    input_kernel = _input_kernel(learner, schedule)

    def learn(index, state):
        chosen = run.order[index]
        if schedule.batch_size == 1:
            chosen = chosen[0]  # Matrix-vector products, not matrix products with one row.
        images, labels = samples.train_images[chosen], samples.train_labels[chosen]
        return _learn(learner, run.hyper, state, index * schedule.batch_size, images, labels)[0]

    def learn_window(number, state):
        first = start + number * _WINDOW
        chosen = run.order.at[first + jnp.arange(_WINDOW), 0].get(mode="clip")  # Those after the last are not learned.
        images, labels = samples.train_images[chosen], samples.train_labels[chosen]
        last = jnp.minimum(_WINDOW, stop - first)
        return _learn_window(learner, str(input_kernel), run.hyper, state, first, last, images, labels)

    if input_kernel is None:
        return lax.fori_loop(start, stop, learn, state)
    return lax.fori_loop(0, (stop - start + _WINDOW - 1) // _WINDOW, learn_window, state)


def _learn(
    learner: Learner, hyper: Hyper, state: _State, seen: Array, images: Array, labels: Array, **options: Any
) -> tuple[_State, PyTree]:
    """The state after one step, the same as before if the run has diverged, and the activity in it."""
    before = (state.params, state.model_state, state.opt_state)
    made = step(learner, hyper, *before, images, labels, **options)
    # Weights that have left the finite range show in the very next loss, before another update is made of them.
    tally = state.tally
    alive = (tally.diverged_at < 0) & made.finite
    keep = partial(jax.tree.map, partial(jnp.where, alive))
    state = _State(
        params=keep(optax.apply_updates(state.params, made.updates), state.params),
        model_state=keep(made.model_state, state.model_state),
        opt_state=keep(made.opt_state, state.opt_state),
        tally=tally._replace(
            loss_sum=tally.loss_sum + made.loss * labels.size,
            num_right=tally.num_right + made.num_right,
            diverged_at=jnp.where(alive | (tally.diverged_at >= 0), tally.diverged_at, seen.astype(jnp.int32)),
        ),
    )
    return state, made.activity


def _input_kernel(learner: Learner, schedule: Schedule) -> str | None:
    """The path of the kernel that is carried in windows of samples; None where each sample updates it by itself."""
    return learner.input_kernel if schedule.batch_size == 1 else None


def _learn_window(
    learner: Learner, path: str, hyper: Hyper, state: _State, seen: Array, stop: Array, images: Array, labels: Array
) -> _State:
    """The state after the first `stop` samples of a window, one after the other, the first kernel in their coordinates."""
    window, kernel, alive = len(images), _at(path, state.params), state.tally.diverged_at < 0
    gram = windows.gram_of(images)

    def learn(index, carry):
        state, posts = carry

        def change(grads, activity):
            post = _at(path, activity).post
            gradient, in_rows = windows.change_of_rows(index, gram, _at(path, grads), post)
            return _replaced(path, grads, gradient), _replaced(path, activity, in_rows)

        image = windows.image_in_rows(index, window)
        state, activity = _learn(learner, hyper, state, seen + index, image, labels[index], change=change)
        post = jnp.where(state.tally.diverged_at < 0, _at(path, activity).post, 0)
        return state, posts.at[index].set(post)

    rows = windows.rows_of_kernel(kernel, images)
    state = state._replace(params=_replaced(path, state.params, rows))
    state, posts = lax.fori_loop(0, stop, learn, (state, jnp.zeros((window, kernel.shape[1]), kernel.dtype)))
    after = kernel + windows.change_of_kernel(kernel, images, posts, _at(path, state.params))
    # What is not finite any more would not come back as it was.
    return state._replace(params=_replaced(path, state.params, jnp.where(alive, after, kernel)))


def _at(path: str, tree: PyTree) -> Any:
    """The leaf of that path, or the only activity that a layer's `sow` has left there."""
    (found,) = (leaf for name, leaf in _named(tree) if name in (path, f"{path}/0"))
    return found


def _replaced(path: str, tree: PyTree, leaf: Any) -> PyTree:
    leaves = [leaf if name in (path, f"{path}/0") else old for name, old in _named(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=_is_activity), leaves)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    leaves = jax.tree.leaves_with_path(tree, is_leaf=_is_activity)
    return [(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf) for keys, leaf in leaves]


def _evaluate(
    learner: Learner, schedule: Schedule, tally_and_history: tuple[_Tally, Score], network: tuple, shared: tuple
) -> tuple[_Tally, Score]:
    """Writes the run's score into its table, as evaluation number `index`, and begins to count anew."""
    tally, history = tally_and_history
    samples, (index, begun, seen) = shared
    params, model_state = network
    tally, score = _score(learner, schedule.num_probe, tally, params, model_state, samples, begun, seen)
    history = jax.tree.map(lambda column, value: column.at[index].set(value), history, score)
    return tally._replace(loss_sum=jnp.zeros(()), num_right=jnp.zeros(())), history


def _score(
    learner: Learner, num_probe: int, tally: _Tally, params: PyTree, model_state: PyTree, samples: _Samples, begun: Array,
    seen: Array,
) -> tuple[_Tally, Score]:  # fmt: skip
    """The score of a run that has seen that many samples, `begun` at the last evaluation, and whether it has diverged."""
    logits, activity, _ = learner.apply(params, model_state, samples.test_images, False)
    test_loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, samples.test_labels))
    test_accuracy = jnp.mean(_is_right(logits, samples.test_labels), dtype=jnp.float32)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    norms = jnp.stack([jnp.linalg.norm(kernel) for kernel in kernels])
    finite = jnp.isfinite(test_loss) & jnp.all(jnp.isfinite(norms))
    diverged_at = jnp.where(finite | (tally.diverged_at >= 0), tally.diverged_at, seen)
    sound = [jnp.all(jnp.isfinite(kernel)) for kernel in kernels]
    recorded = [leaf.post for leaf in jax.tree.leaves(activity, is_leaf=_is_activity) if _is_activity(leaf)]
    if len(recorded) == len(kernels):  # As it is unless a layer is used twice, or not recorded.
        sound = [weights & jnp.all(jnp.isfinite(post)) for weights, post in zip(sound, recorded, strict=True)]
    layer = jnp.argmin(jnp.stack([*sound[:-1], False])).astype(jnp.int32) + 1
    fresh = (diverged_at >= 0) & (tally.diverged_layer < 0)
    diverged_layer = jnp.where(fresh, layer, tally.diverged_layer)
    count = (seen - begun).astype(jnp.float32)
    train_accuracy, train_loss = tally.num_right / count, tally.loss_sum / count
    measures = _measure(learner, num_probe, diverged_at < 0, params, model_state, samples)
    score = Score(
        test_accuracy, test_loss, train_accuracy, train_loss, norms, diverged_at, diverged_layer, measures
    )  # fmt: skip
    return tally._replace(diverged_at=diverged_at, diverged_layer=diverged_layer), score


def _measure(
    learner: Learner, num_probe: int, finite: Array, params: PyTree, model_state: PyTree, samples: _Samples
) -> dict[str, Array]:
    if learner.measure is None:
        return {}
    # Decompositions of a matrix that is not finite may not end; a network of zeros is measured in its place.
    params, model_state = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), (params, model_state))
    found = learner.measure(params, model_state, samples.test_images[:num_probe], samples.test_labels[:num_probe])
    return jax.tree.map(lambda value: jnp.where(finite, value, jnp.nan), found)


def _is_right(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Bool[Array, "*batch"]:
    return (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)


def _is_activity(node: object) -> bool:
    return isinstance(node, Activity)


class _Pace:
    """How many samples a run learns from in about a second, found as it goes; the same in all processes.

    They are at least 64: with many runs, reading and writing the weights of each for fewer would take longer than they do.
    """

    def __init__(self) -> None:
        self._samples = 64

    def piece(self) -> int:
        return self._samples

    def took(self, num_samples: int, seconds: float) -> None:
        """Takes account of a piece of work; the first one's seconds are compilation's."""
        fitting = min(8 * self._samples, math.ceil(num_samples / max(seconds, 1e-6)))
        self._samples = _from_first(max(64, min(fitting, 2**24)))


def _from_first(value: int) -> int:
    """The first process's number, in all processes."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Onto the devices of all processes, each of which has the whole tree."""
    return jax.tree.map(lambda array: jax.make_array_from_callback(array.shape, sharding, lambda i: array[i]), tree)


def _on_host(history: Score, num_runs: int, index: int) -> Score:
    """All runs' scores at that evaluation as NumPy arrays, in every process."""
    if jax.process_count() > 1:
        history = multihost_utils.process_allgather(history, tiled=True)
    return jax.tree.map(lambda column: np.asarray(column)[:num_runs, index], history)


def _num_bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _free_host_memory() -> int:
    """Bytes that this machine, or the container that we are in, has left."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit, encoding="ascii") as limit_file, open(used, encoding="ascii") as used_file:
                free = min(free, int(limit_file.read()) - int(used_file.read()))
        except (OSError, ValueError):  # No such file where there are no containers, and "max" where there is no limit.
            continue
    return free


def _check_input_kernel(learner: Learner, schedule: Schedule, hyper: Mapping[str, np.ndarray]) -> None:
    path = _input_kernel(learner, schedule)
    if path is None:
        return
    rates = {name: values[0] for name, values in hyper.items()}
    params, _ = jax.eval_shape(partial(initial_params, learner), rates, np.uint32(0))
    names = [name for name, _ in _named(params)]
    if path not in names:
        raise ValueError(f"There is no parameter {path!r} for input_kernel; the parameters are {', '.join(names)}.")
    kept = jax.tree.leaves(jax.eval_shape(lambda rates, params: learner.optimizer(rates).init(params), rates, params))
    fault = None
    if any(leaf.shape == _at(path, params).shape for leaf in kept):
        fault = "keeps a state for that kernel"
    elif not _fits_in_rows(_changes(learner, path), hyper):
        fault = "changes that kernel in another way"
    if fault is not None:
        raise ValueError(
            f"input_kernel={path!r} is for chains of optax.sgd without momentum and ojax.oja alone, and this optimizer "
            f"{fault}: leave input_kernel out."
        )


def _fits_in_rows(changes: Callable, hyper: Mapping[str, np.ndarray]) -> bool:
    """Whether the optimizer changes a kernel and its rows alike: small and large, early and late, at the runs' rates."""
    settings = np.unique(np.stack(list(hyper.values()), axis=1), axis=0) if hyper else np.zeros((1, 0))
    settings = settings[np.linspace(0, len(settings) - 1, 64).round().astype(int)]
    sizes = ((0, 0), (1e-3, 0), (1e4, 0), (0, 1e-3), (0, 1), (0, 1e3))
    for size, count in itertools.product(sizes, (0, 100, 10_000)):
        rates = dict(zip(hyper, settings.T, strict=True))
        direct, in_rows = map(np.asarray, changes(rates, np.array(size, np.float32), np.int32(count)))
        largest, apart = (np.abs(values).max(axis=(-2, -1)) for values in (direct, direct - in_rows))
        # Absurd rates, of which numbers come that are not finite, are no fault of the optimizer's.
        if np.any((apart > 1e-3 * largest) & np.isfinite(apart)):
            return False
    return True


@functools.lru_cache(maxsize=4)
def _changes(learner: Learner, path: str) -> Callable[[Hyper, Array, Array], tuple[Array, Array]]:
    """The optimizer's change of a small kernel at that path, as it makes it and as it makes it of the rows of a window.

    The sizes are those of the error and of the layer's answer, the count that of the steps made; all other gradients and
    activities are zero. The hyper-parameters have a leading axis.
    """
    dice, window = np.random.default_rng(0), 2
    sizes = ((window, 5), (5, 3), (3,), (3,))
    images, kernel, error, answer = (jnp.asarray(dice.normal(size=size), jnp.float32) for size in sizes)

    def learn(hyper: Hyper, sizes: Array, count: Array) -> tuple[Array, Array]:
        params, model_state = initial_params(learner, hyper, jnp.uint32(0))
        image = jnp.zeros(_at(path, params).shape[0])
        _, activity, _ = learner.apply(params, model_state, image, True)
        nothing = jax.tree.map(jnp.zeros_like, (params, activity))

        def change(kernel: Array, gradient: Array, made: Activity) -> Array:
            given, grads = _replaced(path, params, kernel), _replaced(path, nothing[0], gradient)
            optimizer = learner.optimizer(hyper)
            late = jax.tree.map(
                lambda leaf: jnp.full_like(leaf, count) if leaf.ndim == 0 and leaf.dtype == jnp.int32 else leaf,
                optimizer.init(given),
            )
            made = _replaced(path, nothing[1], made)
            return _at(path, optimizer.update(grads, late, given, activity=made)[0])

        sent, post, gram = sizes[0] * error, sizes[1] * answer, windows.gram_of(images)
        direct = change(kernel, jnp.outer(images[0], sent), Activity(images[0], post))
        rows = windows.rows_of_kernel(kernel, images)
        gradient = jnp.zeros_like(rows).at[0].set(sent)
        gradient, made = windows.change_of_rows(jnp.int32(0), gram, gradient, post)
        posts = jnp.zeros((window, len(answer))).at[0].set(post)
        return direct, windows.change_of_kernel(kernel, images, posts, change(rows, gradient, made))

    return jax.jit(jax.vmap(learn, in_axes=(0, None, None)))


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
