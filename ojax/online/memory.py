"""How many runs fit in the memory of the devices at once."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jaxtyping import PyTree

from ojax.datasets import Dataset
from ojax.online import checks, host_memory, programs
from ojax.online.learner import Learner
from ojax.online.plan import Plan

# Runs to take at once on one device, by platform. They fill the 128 lanes of a TPU's core, and its own memory holds
# them: by its compiler's account 1,024 at once move 3 to 10 times as many bytes each through HBM (v5e, 5 and 10 layers).
MOST = {"tpu": 128}

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
# Equations whose result has another shape, but which compilers never carry out by themselves.
_VIEWS = {"broadcast_in_dim", "reshape", "squeeze", "transpose"}


class Need(NamedTuple):
    """Bytes that one run takes on a GPU or TPU.

    Attributes:
      held: Its state, its constants and its scores, all of the time.
      learning: What else it takes while it learns.
      evaluation: What else it takes while it is evaluated.
      copy: A second copy of its state and scores, on its way to a checkpoint while the run goes on.
    """

    held: int
    learning: int
    evaluation: int
    copy: int

    @property
    def most(self) -> int:
        """The most that it takes at any time."""
        return self.held + self.copy + max(self.learning, self.evaluation)


def runs_that_fit(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan) -> int:
    """How many runs :func:`ojax.online.train` should take at once, in half of the memory that is free on the devices.

    On a CPU it takes no more than fill 2 GiB, or one a core: more would not run faster and would slow down checkpoints. On
    TPUs it takes no more than 128 a core, which its own memory holds. It is 1 where one run needs more than half of the
    memory, and 0 where one needs more than all.

    Args:
      learner: What learns.
      hyper: Names of its numbers.
      dataset: The training and test data.
      plan: Number of samples and evaluations.
    """
    devices = jax.local_devices()
    stats: list[Mapping[str, int]] = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in found for found in stats):
        free = [found["bytes_limit"] - found.get("bytes_in_use", 0) for found in stats]
        return runs_that_fit_into(free, devices[0].platform, learner, hyper, dataset, plan)
    run, state, history = _shapes(learner, hyper, dataset, plan)
    # The state before and after a piece of work, and on its way to a checkpoint; the order, and its keys while drawn.
    bytes_of_run = 3 * _num_bytes((state, history)) + 2 * _num_bytes(run) + 8 * dataset.num_train
    enough = max(len(devices), 2**31 // bytes_of_run)
    return _fitting([host_memory.free(), *[0] * (len(devices) - 1)], bytes_of_run, dataset, enough)


def runs_that_fit_into(
    free: Sequence[int], platform: str, learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan
) -> int:
    """How many runs to take at once on devices of that platform, `gpu` or `tpu`, of each of which so many bytes are free.

    The other arguments are those of :func:`runs_that_fit`.
    """
    most = len(free) * MOST[platform] if platform in MOST else sys.maxsize
    return _fitting(free, need(learner, hyper, dataset, plan).most, dataset, most)


def _fitting(free: Sequence[int], bytes_of_run: int, dataset: Dataset, enough: int) -> int:
    left = sum(free) - len(free) * _num_bytes((dataset.train, dataset.test))
    return max(jax.process_count() * min(enough, int(left / 2 // bytes_of_run)), int(bytes_of_run < left))


def need(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan) -> Need:
    """What one run takes on a GPU or TPU, where all runs learn side by side; beside the data, which they share.

    It is read off the programs as JAX traces them, which takes no time; `tests/accelerators` holds it against the
    compilers' own analysis. The arguments are those of :func:`runs_that_fit`.
    """
    plan = plan.normalized()
    layer = checks.check(learner, plan, tuple(hyper), dataset)
    run, state, history = _shapes(learner, hyper, dataset, plan)
    shared = (_as_shapes((dataset.train, dataset.test)), jax.ShapeDtypeStruct((2,), jnp.int32))
    network = (state.params, state.state, run)
    return Need(
        held=_num_bytes((run, state, history)),
        learning=_peak_of(partial(programs.learn_on, learner, plan, layer, side_by_side=True), state, run, shared),
        evaluation=_peak_of(partial(programs.evaluate, learner, plan), (state.tally, history), network, shared),
        copy=_num_bytes((state, history)),
    )


def _shapes(learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan) -> tuple:
    """Shapes of a run's constants, its state and its scores."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    settings = (dict.fromkeys(hyper, scalar), jax.ShapeDtypeStruct((), jnp.uint32))
    begin = partial(programs.begin, learner, plan, dataset.num_train)
    return jax.eval_shape(begin, settings, _as_shapes((dataset.train, dataset.test)))


def _as_shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype)), tree)


def _peak_of(program: Callable, *arguments: PyTree) -> int:
    """The most bytes that one run's intermediate values take in a program, whose last argument all runs share."""
    sizes = [len(jax.tree.leaves(argument)) for argument in arguments]
    is_of_run = [number < len(sizes) - 1 for number, size in enumerate(sizes) for _ in range(size)]
    return _peak_bytes(jax.make_jaxpr(program)(*arguments).jaxpr, is_of_run)


def _peak_bytes(jaxpr: Any, is_of_run: Sequence[bool]) -> int:
    """The most bytes alive at once, of values that depend on the inputs marked as a run's own.

    A value that an elementwise equation makes takes the place of what it was made of, as compilers fuse such equations, and
    a loop updates in place what it carries.
    """
    # Each value's storage: the variables that hold memory for it. A run's inputs are counted elsewhere, and hold none here.
    storage: dict[Any, frozenset] = {v: frozenset() for v, own in zip(jaxpr.invars, is_of_run, strict=True) if own}
    equations = _needed(jaxpr)
    last_use = {used: place for place, equation in enumerate(equations) for used in _variables(equation.invars)}
    last_use |= dict.fromkeys(_variables(jaxpr.outvars), len(equations))
    peak = 0
    for place, equation in enumerate(equations):
        used = [variable for variable in _variables(equation.invars) if variable in storage]
        if not used:
            continue  # Computed once for all runs.
        fused, carried = _is_elementwise(equation, used), _carried(equation)
        for made in equation.outvars:
            if fused:
                storage[made] = frozenset().union(*(storage[variable] for variable in used))
            elif made in last_use:
                storage[made] = storage.get(carried.get(made), frozenset([made]))
        # An equation with a program of its own gives it its last operands: a loop, say, after those of its condition.
        own = [any(variable is other for other in used) for variable in equation.invars]
        inner = [_peak_bytes(sub, own[len(own) - len(sub.invars) :]) for sub in jaxprs_in_params(equation.params)]
        alive = frozenset().union(*storage.values())
        peak = max(peak, sum(map(_size, alive)) + max(inner, default=0))
        for variable in [v for v in storage if last_use.get(v, -1) <= place]:
            del storage[variable]
    return peak


def _needed(jaxpr: Any) -> list[Any]:
    """Its equations without those whose results nothing uses."""
    used, needed = set(_variables(jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if used.intersection(equation.outvars):
            used.update(_variables(equation.invars))
            needed.append(equation)
    return needed[::-1]


def _carried(equation: Any) -> dict[Any, Any]:
    """From what a loop has carried, when it ends, to what it has begun with."""
    name, made = equation.primitive.name, equation.outvars
    if name == "while":
        begun = equation.invars[len(equation.invars) - len(made) :]
    elif name == "scan":
        first = equation.params["num_consts"]
        begun = equation.invars[first : first + equation.params["num_carry"]]
    else:
        return {}
    return {end: start for end, start in zip(made, begun, strict=False) if not hasattr(start, "val")}


def _is_elementwise(equation: Any, used: Sequence[Any]) -> bool:
    name = equation.primitive.name
    if name == "dot_general":  # An outer product is computed where it is used.
        return not any(equation.params["dimension_numbers"][0])
    if name in _VIEWS or name in _NOT_FUSED:
        return name in _VIEWS
    try:
        shape = np.broadcast_shapes(*(variable.aval.shape for variable in used))
    except ValueError:
        return False
    return all(made.aval.shape == shape for made in equation.outvars)


def _variables(used: Sequence[Any]) -> list[Any]:
    return [variable for variable in used if not hasattr(variable, "val")]  # A literal has a value.


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape) * variable.aval.dtype.itemsize


def _num_bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
