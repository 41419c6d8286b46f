"""Runs over devices: each has its share of the runs and all of the data, and no run talks to another."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jaxtyping import PyTree

from ojax import _compat
from ojax.plasticity.rule import RUNS_AXIS

RUNS, EVERYWHERE = PartitionSpec(RUNS_AXIS), PartitionSpec()


_TOO_MANY = "The devices' memory does not hold so many runs at once."


class OutOfMemoryError(RuntimeError):
    """The memory of the devices does not hold so many runs; the message is one line."""


def use_all_cores() -> None:
    """Gives a CPU-only JAX one device a core, for :func:`ojax.online.train` to shard over.

    Call it before JAX is first used; later it can only warn. It changes nothing on GPU and TPU, nor where the user has
    already chosen a number of CPU devices.
    """
    if _compat.num_cpu_devices() >= 0:
        return
    try:
        jax.config.update("jax_num_cpu_devices", num_cores())
    except RuntimeError:  # JAX is in use.
        if jax.default_backend() == "cpu" and jax.device_count() < num_cores():
            warnings.warn(
                f"JAX is in use already, with {jax.device_count()} of {num_cores()} cores for runs: call "
                "ojax.online.use_all_cores() before anything else to have them all.",
                stacklevel=2,
            )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mesh_of_all() -> Mesh:
    """All devices of all processes in a row. Runs do not communicate, so their order does not matter."""
    return Mesh(np.array(jax.devices()), (RUNS_AXIS,))


def alone() -> contextlib.AbstractContextManager:
    """A context without the mesh that the caller may have set by `jax.set_mesh`: runs have a mesh of their own.

    Without such a mesh nothing is changed, as JAX would compile again what was compiled in another thread.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def put(tree: PyTree, mesh: Mesh, spec: PartitionSpec) -> PyTree:
    """Puts arrays, which every process has whole, onto the devices of all processes."""
    sharding = NamedSharding(mesh, spec)
    arrays = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda array: jax.make_array_from_callback(array.shape, sharding, lambda i: array[i]), arrays)


def compiled(over_runs: Callable, mesh: Mesh, *arguments: str, quickly: bool = False) -> Wrapped:
    """Compiles a function for all devices. Each gives it its own runs of every argument, and all of the last argument.

    An argument named `state` is donated: copy it first if you need the old value. With `quickly` the compiler optimizes
    less, for a program that is called once, or once per evaluation.
    """
    specs = (*[RUNS] * (len(arguments) - 1), EVERYWHERE)

    def program(*arguments):
        return over_runs(*arguments)

    by_device = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=RUNS, check_vma=False)
    donated = [i for i, name in enumerate(arguments) if name == "state"]
    options = _compat.quick_options(mesh.devices.flat[0]) if quickly else None
    return jax.jit(by_device, donate_argnums=donated, compiler_options=options)


@contextlib.contextmanager
def compiling(program: Wrapped, *shapes: PyTree) -> Iterator[None]:
    """Compiles the program for arguments of those shapes in another thread while the body of the context runs.

    It is traced here, where the settings of this thread hold, matrix products' precision say. When the context ends the
    program is compiled; what goes wrong is raised then, as by the program's first call.

    Raises:
      OutOfMemoryError: If the compiler finds that a device's memory is too small.
    """
    lowered = program.lower(*shapes)
    with ThreadPoolExecutor(max_workers=1) as thread:
        compiled = thread.submit(lowered.compile)
        yield
        try:
            compiled.result()
        except jax.errors.JaxRuntimeError as error:
            if _compat.is_out_of_memory(error):
                raise OutOfMemoryError(_TOO_MANY) from error
            raise


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Raises :class:`OutOfMemoryError` in every process if the body runs out of a device's memory in any of them.

    All processes enter it together. The body waits for its results, as JAX reports an error only then.
    """
    error = None
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as found:
        if not _compat.is_out_of_memory(found):
            raise
        error = found
    failed = error is not None
    if jax.process_count() > 1:
        failed = bool(multihost_utils.process_allgather(np.array(failed)).any())
    if failed:
        raise OutOfMemoryError(_TOO_MANY) from error


def map_runs(run_fn: Callable, mesh: Mesh) -> Callable:
    """Maps `run_fn(run, shared)`, written for one run, over all runs of a device: `run` gets a leading axis `runs`."""
    if sequential(mesh):
        return lambda runs, shared: lax.map(lambda run: run_fn(run, shared), runs)
    return jax.vmap(run_fn, in_axes=(0, None))


def update_runs(run_fn: Callable, mesh: Mesh) -> Callable:
    """Maps `run_fn(state, run, shared)`, which returns a new state, over all runs of a device, in place."""
    if not sequential(mesh):
        return jax.vmap(run_fn, in_axes=(0, 0, None))

    def over_runs(states, runs, shared):
        def update(index, states):
            state, run = jax.tree.map(lambda leaf: leaf[index], (states, runs))
            return jax.tree.map(lambda old, new: old.at[index].set(new), states, run_fn(state, run, shared))

        return lax.fori_loop(0, len(jax.tree.leaves(states)[0]), update, states)

    return over_runs


def sequential(mesh: Mesh) -> bool:
    """Whether a device takes its runs sequentially: on a CPU, whose cores then keep a run's weights in their caches.

    There vmap would stream the weights of all runs through memory at every sample. A GPU or TPU takes all runs at once.
    """
    return platform(mesh) == "cpu"


def platform(mesh: Mesh) -> str:
    """What its devices are: `cpu`, `gpu` or `tpu`."""
    return mesh.devices.flat[0].platform


def on_host(tree: PyTree) -> PyTree:
    """Arrays with a leading axis `runs`, sharded over all processes, as whole NumPy arrays in each process."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.asarray, tree)


def from_first(value: int) -> int:
    """The first process's number, in all processes."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))
