"""How many runs fit in the memory of the devices at once."""

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

# Runs to take at once on one device, by platform. They fill the 128 lanes of a TPU's core, and its own memory holds
# them: by its compiler's account 1,024 at once move 3 to 10 times as many bytes each through HBM (v5e, 5 and 10 layers).
MOST = {"tpu": 128}
# The two numbers of runs at which programs are compiled to find out what one more run takes.
_FEW, _MANY = 64, 128


class Need(NamedTuple):
    """Bytes of one device's memory that a program takes: `shared + per_run * (runs of this device)`.

    Attributes:
      shared: Bytes that do not depend on the number of runs: the data, most of all.
      per_run: Bytes per run: its state, its scores, a copy of both on its way to a checkpoint, and the temporaries.
    """

    shared: float
    per_run: float


def runs_that_fit(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan) -> int:
    """Returns how many runs :func:`ojax.online.train` should take at once, in half of the memory that is free.

    On a GPU or TPU the programs are compiled for two numbers of runs, and the compiler tells what they take. A TPU takes no
    more than 128 runs per core, which its own memory holds. A CPU takes no more than fill 2 GiB, or one per core: more
    would not run faster and would slow down checkpoints. It is 1 where one run needs more than half of the memory, and 0
    where one needs more than all. In a job of several processes each of them calls it and gets an estimate of its own.

    Args:
      learner: What learns.
      hyper: Names of its numbers.
      dataset: The training and test data.
      plan: Number of samples and evaluations.
    """
    here = jax.local_devices()
    stats = [device.memory_stats() or {} for device in here]
    if all("bytes_limit" in found for found in stats):
        free = [found["bytes_limit"] - found.get("bytes_in_use", 0) for found in stats]
        return jax.process_count() * runs_that_fit_into(free, here[0], learner, hyper, dataset, plan)
    run, state, history = _shapes(learner, hyper, dataset, plan)
    # The state before and after a piece of work, and on its way to a checkpoint; the order, and its keys while drawn.
    drawn = 0 if run.order is None else 8 * dataset.num_train
    bytes_of_run = 3 * _num_bytes((state, history)) + 2 * _num_bytes(run) + drawn
    left = host_memory.free() - len(here) * _num_bytes((dataset.train, dataset.test))
    enough = max(len(here), 2**31 // bytes_of_run)
    return max(jax.process_count() * min(enough, int(left / 2 // bytes_of_run)), int(bytes_of_run < left))


def runs_that_fit_into(
    free: Sequence[int], device: Any, learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan
) -> int:
    """Returns how many runs to take at once on several GPUs or TPUs, of each of which so many bytes are free.

    `device` is one of them, which may be described only; the rest is as for :func:`runs_that_fit`.
    """
    found = needs(learner, hyper, dataset, plan, device)
    if not found:
        return 0
    fitting = min((min(free) - need.shared) / 2 / need.per_run for need in found)
    fits_one = all(need.shared + need.per_run < min(free) for need in found)
    return len(free) * int(min(max(fitting, fits_one), MOST.get(devices.platform(_alone(device)), math.inf)))


def needs(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan, device: Any) -> list[Need]:
    """What each program of a training takes on one GPU or TPU, from the compiler's analysis at two numbers of runs.

    Two, as data that runs share, and padding, do not grow with the runs. Where so many runs do not compile, fewer are
    tried; the list is empty where not even one does. The arguments are those of :func:`runs_that_fit_into`.
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
        except jax.errors.JaxRuntimeError as error:
            if not _compat.is_out_of_memory(error):
                raise
            many = few
            continue
        slopes = [max(more - less, 0) / (many - few) for less, more in zip(of_few, of_many, strict=True)]
        return [Need(more - many * slope, slope + copy) for more, slope in zip(of_many, slopes, strict=True)]
    return []


def lowered(
    num_runs: int, learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan, mesh: Mesh
) -> dict[str, Any]:
    """Lowers the programs of a training, by name, for devices that may be described only. Nothing is put on them.

    Args:
      num_runs: Number of runs, a multiple of the number of devices.
      learner: What learns.
      hyper: Names of its numbers.
      dataset: The training and test data.
      plan: Number of samples and evaluations.
      mesh: The devices.
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
    """Bytes of a program's arguments, and of what else it needs: temporaries, its own code, results in no argument's place.

    All are those of one device.
    """
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes, found.temp_size_in_bytes + found.generated_code_size_in_bytes + results


def bytes_of_copy(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan) -> int:
    """Bytes of a second copy of a run's state and scores, on its way to a checkpoint while the run goes on."""
    _, state, history = _shapes(learner, hyper, dataset, plan)
    return _num_bytes((state, history))


def _alone(device: Any) -> Mesh:
    return Mesh(np.array([device]), (RUNS_AXIS,))


def _shapes(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan) -> tuple:
    """Shapes of a run's constants, its state and its scores."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    settings = (dict.fromkeys(hyper, scalar), jax.ShapeDtypeStruct((), jnp.uint32))
    begin = partial(programs.begin, learner, plan.normalized(), dataset.num_train)
    return jax.eval_shape(begin, settings, _as_shapes((dataset.train, dataset.test)))


def _as_shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype)), tree)


def _num_bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
