"""Trains all runs of a grid in parallel, from the first sample to the last evaluation."""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PyTree

from ojax.datasets import Dataset
from ojax.online import checks, devices, notebook, samples
from ojax.online.checksums import sha256
from ojax.online.fast import FastPath, Windows, fast_path
from ojax.online.learner import Learner
from ojax.online.plan import Plan, as_seeds
from ojax.online.programs import arguments, programs
from ojax.online.windows import SIZE

if TYPE_CHECKING:  # Orbax is loaded only for checkpoints, pandas only for a data frame.
    import pandas as pd

    from ojax.online.checkpoints import Checkpoints

Scores = dict[str, np.ndarray]


def train(
    learner: Learner,
    hyper: Mapping[str, Sequence[float]],
    seeds: int | Sequence[int],
    dataset: Dataset,
    plan: Plan,
    *,
    num_slots: int = 1,
    windows: Windows = "auto",
    checkpoints: "Checkpoints | None" = None,
    on_progress: Callable[[int], None] | None = None,
    on_trained: Callable[[PyTree, PyTree], None] | None = None,
) -> "Training":
    """Trains all runs in parallel on all devices of all processes, and yields their scores at each evaluation.

    A run's initial weights and order of samples are functions of its seed alone. A run does not depend on the rest of the
    grid, and two rules with one seed start from equal weights and train on the same samples in the same order.

    Args:
      learner: The learner, one program for all runs.
      hyper: Its hyper-parameters by name, one value per run; :func:`grid` makes every combination.
      seeds: One seed per run; `seeds=4` is `range(4)`.
      dataset: The data, arrays or a :class:`ojax.datasets.Stream`; all of the test data are used at each evaluation.
      plan: Number of samples, their order, batch size and evaluations.
      num_slots: Least number of runs to compile for. Fewer runs are padded to it, so that calls with other numbers of runs
        share one compilation.
      windows: `auto` updates a first layer in windows of samples if that is known to be exact for the learner, which is
        faster and has equal results up to rounding; `require` raises an error if it is not; `off` never uses windows.
        :func:`fast_path` returns the choice for a learner, and the reason.
      checkpoints: Saves the state of all runs during the training. If it has a state already, the training resumes from it:
        past evaluations are yielded again, and all results are bit for bit as without the interruption.
      on_progress: Called at the start and about once a second (with very many runs, every 64 samples) with the count of
        samples that each run has seen. By default a notebook shows a progress bar, and nothing is shown elsewhere.
      on_trained: Called at the end, before the last scores are yielded, with the parameters and states of all runs: arrays
        on the devices with a leading axis `runs`, which may be padded.

    Returns:
      An iterator, which trains when iterated, and has the trained weights at its end, see :class:`Training`. It yields the
      count of samples seen and the runs' scores by name, NumPy arrays with a leading axis `runs`:

      - the results of the learner's `evaluate`;
      - the mean of each of its sums since the last evaluation, NaN if nothing was summed;
      - `diverged_at`, the count of samples seen when a number was not finite and the run was frozen, or -1. All later
        scores are of the frozen weights, and in a stream of the task at which the run was frozen;
      - `diverged_layer`, the first layer, from 1, whose kernel or output was not finite then, or the last layer if all
        were finite; -1 for a run that has not diverged.

    Raises:
      ValueError: If the plan or the learner do not fit the data, a number is not finite, `hyper` and `seeds` do not
        have one value per run, windows are required and not exact for the learner, or the checkpoints are of
        another training; at once, before anything is compiled.
      OutOfMemoryError: In every process, if the devices' memory is too small for the runs. Checkpoints stay valid.
      Interrupted: If the checkpoints' `stop` returned True; the state is saved.
      OSError: If a checkpoint cannot be written.
    """
    numbers, seed_array = checks.check_runs(hyper, seeds)
    plan = plan.normalized()
    with devices.alone():
        checks.check(learner, plan, tuple(hyper), dataset)
        fast = fast_path(learner, tuple(hyper), dataset, plan, windows=windows)
    if checkpoints is not None:
        data = sha256((dataset.train, dataset.test))
        runs = sha256((numbers, seed_array))
        traced = checks.traced(learner, plan, hyper, checks.shapes(dataset.train, dataset.test))
        identity = {"data": data, "runs": runs, "plan": str(plan), "learner": traced.digest}
        if stream := samples.digest_of_stream(dataset.train, dataset.test):
            identity["stream"] = stream
        checkpoints.claim(identity)
    training = Training(len(seed_array), on_trained)
    training.evaluations = _train(
        learner, numbers, seed_array, dataset, plan, fast, num_slots, checkpoints, on_progress, training.keep
    )
    return training


class Training(Iterator[tuple[int, Scores]]):
    """An iterator over the evaluations of :func:`train`, which has the trained weights at its end."""

    def __init__(self, num_runs: int, on_trained: Callable[[PyTree, PyTree], None] | None):
        self.evaluations: Iterator[tuple[int, Scores]] = iter(())
        self._num_runs, self._on_trained = num_runs, on_trained
        self._is_started = False
        self._trained: tuple[PyTree, PyTree] | None = None

    def __next__(self) -> tuple[int, Scores]:
        self._is_started = True
        with jax.disable_jit(False):  # A loop over samples would take minutes without compilation.
            return next(self.evaluations)

    @property
    def params(self) -> PyTree:
        """The parameters of all runs after the last sample, arrays with a leading axis `runs`."""
        return self._of_runs()[0]

    @property
    def state(self) -> PyTree:
        """The learner's state of all runs after the last sample, arrays with a leading axis `runs`."""
        return self._of_runs()[1]

    def keep(self, params: PyTree, state: PyTree) -> None:
        """Stores the padded parameters and states of all runs at the end of the training."""
        self._trained = (params, state)
        if self._on_trained is not None:
            self._on_trained(params, state)

    def _of_runs(self) -> tuple[PyTree, PyTree]:
        if self._trained is None:
            raise ValueError("The training is not at its end: take all evaluations, `list(training)`, before its weights.")
        return jax.tree.map(lambda leaf: leaf[: self._num_runs], self._trained)

    def __del__(self) -> None:
        if not self._is_started:
            text = "ojax.online.train has trained nothing; it trains when iterated: for seen, scores in online.train(...)"
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _train(
    learner: Learner,
    hyper: Mapping[str, np.ndarray],
    seeds: np.ndarray,
    dataset: Dataset,
    plan: Plan,
    fast: FastPath,
    num_slots: int,
    checkpoints: "Checkpoints | None",
    on_progress: Callable[[int], None] | None,
    on_trained: Callable[[PyTree, PyTree], None] | None,
) -> Iterator[tuple[int, Scores]]:
    num_runs = len(seeds)
    on_progress = on_progress or notebook.progress_of(num_runs, plan.evaluate_at[-1])

    mesh = devices.mesh_of_all()
    # Every device gets the same number of runs; the padding repeats the last run and is cut off below.
    num_padded = -(-max(num_runs, num_slots) // mesh.size) * mesh.size
    padded = np.minimum(np.arange(num_padded), num_runs - 1)
    hyper_arrays = {name: values[padded] for name, values in hyper.items()}
    with devices.fitting():
        settings = devices.put((hyper_arrays, seeds[padded]), mesh, devices.RUNS)
        data = devices.put((dataset.train, dataset.test), mesh, devices.EVERYWHERE)

    begin, advance, evaluate = programs(learner, plan, fast.layer, dataset.num_train, mesh)
    seen, evaluated = 0, -1
    with devices.alone(), devices.compiling(advance, *arguments(begin, settings, data, mesh).advance):
        with devices.fitting():
            run, state, history = jax.block_until_ready(begin(settings, data))
        if checkpoints is not None and (restored := checkpoints.restore((state, history), num_runs, settings)) is not None:
            seen, (state, history) = restored
            evaluated = seen
        if on_progress is not None:
            jax.block_until_ready(state)
            on_progress(seen)
    last = 0  # The last evaluation.
    pace, whole = _Pace(), plan.batch_size if fast.layer is None else SIZE
    for index, count in enumerate(plan.evaluate_at):
        while seen < count:
            # In pieces of about a second, for progress and checkpoints. Results do not depend on the pieces: each has whole
            # steps, or whole windows from the last evaluation on.
            until = count
            if checkpoints is not None or on_progress is not None:
                until = seen + pace.samples
            if checkpoints is not None:
                until = min(until, checkpoints.next_save())
            until = min(count, last + -(-(max(until, seen + 1) - last) // whole) * whole)
            start = time.monotonic()
            bounds = np.array([seen, until], np.int32) // plan.batch_size
            with devices.alone(), devices.fitting():
                state = jax.block_until_ready(advance(state, run, (data, bounds)))
            pace.measure(until - seen, time.monotonic() - start)
            seen = until
            if on_progress is not None:
                on_progress(seen)
            if checkpoints is not None and seen < count:
                checkpoints.update(seen, (state, history), settings)
        if count > evaluated:
            place = np.array([index, count], np.int32)
            network = (state.params, state.state, state.position, run)
            with devices.alone(), devices.fitting():
                counts, history = jax.block_until_ready(evaluate((state.counts, history), network, (data, place)))
            state = state._replace(counts=counts)
        last = count
        if on_trained is not None and count == plan.evaluate_at[-1]:
            on_trained(state.params, state.state)
        scores = devices.on_host(history)
        yield count, {name: column[:num_runs, index] for name, column in scores.items()}
        if checkpoints is not None and evaluated < count < plan.evaluate_at[-1]:
            checkpoints.update(seen, (state, history), settings)


def grid(
    hyper: Mapping[str, float | Sequence[float]], seeds: int | Sequence[int]
) -> tuple[dict[str, list[float]], list[int]]:
    """Returns all combinations of the values and seeds, as the arguments `hyper` and `seeds` of :func:`train`.

    A single number is one value, and `seeds=4` is `range(4)`.

    Example:
      >>> from ojax import online
      >>> online.grid({"learning_rate": [1e-3, 1e-2]}, seeds=range(2))
      ({'learning_rate': [0.001, 0.001, 0.01, 0.01]}, [0, 1, 0, 1])
    """
    choices: list[Any] = [[value] if np.ndim(value) == 0 else value for value in hyper.values()]
    *values, each_seed = zip(*itertools.product(*choices, as_seeds(seeds)), strict=True)
    return {name: list(column) for name, column in zip(hyper, values, strict=True)}, list(each_seed)


def columns(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the scores of :func:`train` as columns of a table with one row per run.

    A score with further axes becomes several columns: `weight_norm` of two layers is `weight_norm_1` and `weight_norm_2`.
    """
    table = {}
    for name, column in scores.items():
        for index in np.ndindex(column.shape[1:]):
            table["_".join([name, *(str(place + 1) for place in index)])] = column[:, *index]
    return table


def data_frame(
    hyper: Mapping[str, Sequence[float]], seeds: int | Sequence[int], trained: Iterable[tuple[int, Scores]]
) -> "pd.DataFrame":
    """Returns the scores of :func:`train` as a long-form data frame, with one row per run and evaluation. It needs pandas.

    Args:
      hyper: The argument `hyper` of `train`.
      seeds: The argument `seeds` of `train`.
      trained: The result of `train`, which is iterated to its end.

    Returns:
      The data frame. Its columns are the names of `hyper`, `seed`, `samples` (the count seen) and those of :func:`columns`.

    Raises:
      ImportError: If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ImportError("ojax.online.data_frame needs pandas: pip install pandas") from None
    settings = {**hyper, "seed": as_seeds(seeds)}
    tables = [pd.DataFrame({**settings, "samples": seen, **columns(scores)}) for seen, scores in trained]
    return pd.concat(tables, ignore_index=True)


class _Pace:
    """The number of samples that runs learn in about a second, measured during training; equal in all processes.

    The number is at least 64: with many runs, for fewer samples it would take longer to read and write the weights than to
    train.
    """

    def __init__(self) -> None:
        self.samples = 64

    def measure(self, num_samples: int, seconds: float) -> None:
        """Updates the estimate."""
        fitting = min(8 * self.samples, math.ceil(num_samples / max(seconds, 1e-6)))
        self.samples = devices.from_first(max(64, min(fitting, 2**24)))
