"""Computes the number of runs that fit in the memory of the devices at once."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from ojax import _compat
from ojax.datasets import Dataset
from ojax.online import devices, host_memory, programs
from ojax.online.fast import fast_path
from ojax.online.learner import Learner
from ojax.online.plan import Plan
from ojax.plasticity.rule import RUNS_AXIS

# Most runs to train at once per device, by platform. 128 fill the lanes of a TPU's core and fit into its own memory.
# According to its compiler, 1,024 at once move 3 to 10 times as many bytes per run through HBM (v5e, 5 and 10 layers).
MOST = {"tpu": 128}
# The two numbers of runs for which programs are compiled, to estimate the bytes per run.
_FEW, _MANY = 64, 128


class Need(NamedTuple):
    """Bytes of one device's memory that a program needs: `shared + per_run * (runs of this device)`.

    Attributes:
      shared: Bytes that do not depend on the number of runs, mostly the data.
      per_run: Bytes per run: its state, its scores, a copy of both while a checkpoint is written, and the temporaries.
    """

    shared: float
    per_run: float


def runs_that_fit(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan) -> int:
    """Returns the number of runs that :func:`ojax.online.train` should train at once, in half of the free memory.

    On a GPU or TPU the programs are compiled for two numbers of runs, and the compiler reports their memory. On a TPU the
    number is at most 128 per core, which fit into the core's own memory. On a CPU the runs fill at most 2 GiB, or are one
    per core: more would not be faster and would slow down checkpoints. The number is 1 if one run needs more than half of
    the memory, and 0 if it needs more than all. In a job of several processes each process calls it and gets its own
    estimate.

    Args:
      learner: The learner.
      hyper: Names of its hyper-parameters.
      dataset: The training and test data.
      plan: Number of samples and evaluations.
    """
    here = jax.local_devices()
    stats = [device.memory_stats() or {} for device in here]
    if all("bytes_limit" in found for found in stats):
        free = [found["bytes_limit"] - found.get("bytes_in_use", 0) for found in stats]
        return jax.process_count() * runs_that_fit_into(free, here[0], learner, hyper, dataset, plan)
    run, state, history = _shapes(learner, hyper, dataset, plan)
    # The state before and after a step of work, and its copy for a checkpoint; the order, and its keys while it is drawn.
    drawn = 0 if run.order is None else 8 * dataset.num_train
    bytes_of_run = 3 * _num_bytes((state, history)) + 2 * _num_bytes(run) + drawn
    left = host_memory.free() - len(here) * _num_bytes((dataset.train, dataset.test))
    enough = max(len(here), 2**31 // bytes_of_run)
    return max(jax.process_count() * min(enough, int(left / 2 // bytes_of_run)), int(bytes_of_run < left))


def runs_that_fit_into(
    free: Sequence[int], device: Any, learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan
) -> int:
    """Returns the number of runs to train at once on several GPUs or TPUs, with `free` bytes free on each.

    `device` is one of them, or a mere description of it. The other arguments are as for :func:`runs_that_fit`.
    """
    found = needs(learner, hyper, dataset, plan, device)
    if not found:
        return 0
    fitting = min((min(free) - need.shared) / 2 / need.per_run for need in found)
    fits_one = all(need.shared + need.per_run < min(free) for need in found)
    return len(free) * int(min(max(fitting, fits_one), MOST.get(devices.platform(_alone(device)), math.inf)))


def needs(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan, device: Any) -> list[Need]:
    """Returns each program's memory on one GPU or TPU, as the compiler reports it for two numbers of runs.

    Two numbers separate the bytes per run from shared data and padding. If a program does not compile for this many runs,
    fewer are tried; the list is empty if one run does not compile either. The arguments are as for
    :func:`runs_that_fit_into`.
    """
    mesh, copy, many = _alone(device), bytes_of_copy(learner, hyper, dataset, plan), _MANY

    def totals(num_runs: int) -> list[int]:
        made = lowered(num_runs, learner, hyper, dataset, plan, mesh).values()
        with ThreadPoolExecutor() as threads:
            return list(threads.map(lambda program: sum(sizes(program.compile())), made))

    while many:
        few = many // 2
        try:
            of_many = totals(many)
            of_few = totals(few) if few else [0] * len(of_many)
            slopes = [max(more - less, 0) / (many - few) for less, more in zip(of_few, of_many, strict=True)]
            return [Need(more - many * slope, slope + copy) for more, slope in zip(of_many, slopes, strict=True)]
        except jax.errors.JaxRuntimeError as error:
            if not _compat.is_out_of_memory(error):
                raise
            many = few
    return []


def lowered(
    num_runs: int, learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan, mesh: Mesh
) -> dict[str, Any]:
    """Lowers the programs of a training, by name, for a multiple of the number of devices in `mesh`.

    The devices may be mere descriptions: nothing is put on them. The other arguments are as for :func:`runs_that_fit`.
    """
    plan, names = plan.normalized(), tuple(hyper)
    layer = fast_path(learner, names, dataset, plan).layer
    made = programs.programs(learner, plan, layer, dataset.num_train, mesh)
    of_runs, everywhere = (NamedSharding(mesh, spec) for spec in (devices.RUNS, devices.EVERYWHERE))
    numbers = dict.fromkeys(names, jax.ShapeDtypeStruct((num_runs,), jnp.float32, sharding=of_runs))
    settings = (numbers, jax.ShapeDtypeStruct((num_runs,), jnp.uint32, sharding=of_runs))
    data = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        _as_shapes((dataset.train, dataset.test)),
    )
    given = programs.arguments(made.begin, settings, data, mesh)
    return {name: program.lower(*of) for name, program, of in zip(made._fields, made, given, strict=True)}


def sizes(compiled: Any) -> tuple[int, int]:
    """Returns the bytes of a program's arguments, and of temporaries, code, and results that replace no argument.

    Both are per device.
    """
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes, found.temp_size_in_bytes + found.generated_code_size_in_bytes + results


def bytes_of_copy(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan) -> int:
    """Returns the bytes of a run's copy of state and scores, which a checkpoint holds while the run continues."""
    _, state, history = _shapes(learner, hyper, dataset, plan)
    return _num_bytes((state, history))


def _alone(device: Any) -> Mesh:
    return Mesh(np.array([device]), (RUNS_AXIS,))


def _shapes(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan) -> tuple:
    """Returns the shapes of a run's constants, its state and its scores."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    settings = (dict.fromkeys(hyper, scalar), jax.ShapeDtypeStruct((), jnp.uint32))
    begin = partial(programs.begin, learner, plan.normalized(), dataset.num_train)
    return jax.eval_shape(begin, settings, _as_shapes((dataset.train, dataset.test)))


def _as_shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype)), tree)


def _num_bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
