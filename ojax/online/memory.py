"""How many runs fit in the memory of the devices at once."""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.extend.core import jaxprs_in_params
from jaxtyping import PyTree

from ojax.datasets import Dataset
from ojax.online import programs
from ojax.online.learner import Learner
from ojax.online.run import RunState
from ojax.online.schedule import Schedule

# Equations whose result may have an operand's shape, but never its place.
_NOT_FUSED = {
    "dot_general",
    "conv_general_dilated",
    "sort",
    "cumsum",
    "cumprod",
    "gather",
    "scatter-add",
    "eigh",
    "svd",
    "qr",
}


def runs_that_fit(learner: Learner, hyper: Sequence[str], dataset: Dataset, schedule: Schedule) -> int:
    """How many runs :func:`ojax.online.train` should take at once, in half of the memory that is free on the devices.

    On a CPU it takes no more than fill 2 GiB, or one a core: more would not run faster and would slow down checkpoints. It
    is 1 where one run needs more than half of the memory, and 0 where one needs more than all.

    Args:
      learner: What learns.
      hyper: Names of its numbers.
      dataset: The training and test data.
      schedule: Number of samples and evaluations.
    """
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    settings = (dict.fromkeys(hyper, scalar), jax.ShapeDtypeStruct((), jnp.uint32))
    data = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), (dataset.train, dataset.test))
    train_size = dataset.num_train
    run, state, history = jax.eval_shape(partial(programs.begin, learner, schedule, train_size), settings, data)
    # The state before and after a piece of work, and on its way to a checkpoint; the order, and its keys as it is drawn.
    bytes_of_run = 3 * _num_bytes((state, history)) + 2 * _num_bytes(run) + 8 * train_size
    devices = jax.local_devices()
    stats: list[Mapping[str, int]] = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in found for found in stats):
        # Where runs are mapped by vmap, the activities of all runs on the test data are there at once.
        bytes_of_run += _peak_of_evaluation(learner, state, data[1], run)
        free, enough = sum(found["bytes_limit"] - found.get("bytes_in_use", 0) for found in stats), sys.maxsize
    else:
        free, enough = _free_host_memory(), max(len(devices), 2**31 // bytes_of_run)
    free -= len(devices) * _num_bytes(data)
    return max(jax.process_count() * min(enough, int(free / 2 // bytes_of_run)), int(bytes_of_run < free))


def _peak_of_evaluation(learner: Learner, state: RunState, test: PyTree, run: programs.Run) -> int:
    """The most bytes that one run's intermediate values take while it is evaluated."""
    arguments = (state.params, state.state, test, run.hyper)
    sizes = [len(jax.tree.leaves(argument)) for argument in arguments]
    is_of_run = [number != 2 for number, size in enumerate(sizes) for _ in range(size)]
    return _peak_bytes(jax.make_jaxpr(learner.evaluate)(*arguments).jaxpr, is_of_run)


def _peak_bytes(jaxpr: Any, is_of_run: Sequence[bool]) -> int:
    """The most bytes alive at once, of values that depend on the inputs marked as a run's own.

    A value that an elementwise equation makes takes the place of what it was made of, as compilers fuse such equations.
    """
    # Each value's storage: the variables that hold memory for it. A run's inputs are counted elsewhere, and hold none here.
    storage: dict[Any, frozenset] = {v: frozenset() for v, own in zip(jaxpr.invars, is_of_run, strict=True) if own}
    last_use = {used: place for place, equation in enumerate(jaxpr.eqns) for used in _variables(equation.invars)}
    last_use |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))
    peak = 0
    for place, equation in enumerate(jaxpr.eqns):
        used = [variable for variable in _variables(equation.invars) if variable in storage]
        if not used:
            continue  # Computed once for all runs.
        fused = _is_elementwise(equation, used)
        for made in equation.outvars:
            storage[made] = frozenset().union(*(storage[variable] for variable in used)) if fused else frozenset([made])
        inner = [_peak_bytes(sub, [True] * len(sub.invars)) for sub in jaxprs_in_params(equation.params)]
        alive = frozenset().union(*storage.values())
        peak = max(peak, sum(map(_size, alive)) + max(inner, default=0))
        for variable in [v for v in storage if last_use.get(v, -1) <= place]:
            del storage[variable]
    return peak


def _is_elementwise(equation: Any, used: Sequence[Any]) -> bool:
    shapes = [variable.aval.shape for variable in used]
    return equation.primitive.name not in _NOT_FUSED and all(made.aval.shape in shapes for made in equation.outvars)


def _variables(used: Sequence[Any]) -> list[Any]:
    return [variable for variable in used if not hasattr(variable, "val")]  # A literal has a value.


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape) * np.dtype(variable.aval.dtype).itemsize


def _num_bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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
