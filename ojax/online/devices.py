"""Distributes runs over devices: each device has a share of the runs and all of the data. Runs do not communicate."""

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


_TOO_MANY = "The devices' memory does not hold this many runs at once: train fewer in one call."


class OutOfMemoryError(RuntimeError):
    """The devices' memory is too small for this many runs; the message is one line."""


def use_all_cores() -> None:
    """Gives JAX on a CPU one device per core, over which :func:`ojax.online.train` shards runs.

    Call it before JAX is first used; later it only warns. It changes nothing on GPU and TPU, or if the user has already
    chosen a number of CPU devices.
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
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mesh_of_all() -> Mesh:
    """Returns a mesh of all devices of all processes along one axis, in any order: runs do not communicate."""
    return Mesh(np.array(jax.devices()), (RUNS_AXIS,))


def alone() -> contextlib.AbstractContextManager:
    """Returns a context without the caller's mesh of `jax.set_mesh`, since runs have their own mesh.

    Without such a mesh it changes nothing: a change would make JAX recompile programs that another thread has compiled.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def put(tree: PyTree, mesh: Mesh, spec: PartitionSpec) -> PyTree:
    """Puts arrays onto the devices of all processes; every process has them whole."""
    sharding = NamedSharding(mesh, spec)
    arrays = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda array: jax.make_array_from_callback(array.shape, sharding, lambda i: array[i]), arrays)


def compiled(over_runs: Callable, mesh: Mesh, *arguments: str, quickly: bool = False) -> Wrapped:
    """Compiles a function for all devices. Arguments are sharded along the runs, but for the last one, which is replicated.

    An argument named `state` is donated: copy it first if you need the old value. With `quickly` the compiler optimizes
    less, for a program that is called once, or once per evaluation.
    """
    specs = (*[RUNS] * (len(arguments) - 1), EVERYWHERE)

    def program(*arguments):
        return over_runs(*arguments)

    by_device = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=RUNS, check_vma=False)
    donated = [i for i, name in enumerate(arguments) if name == "state"]
    options = _compat.quick_options(mesh.devices.flat[0]) if quickly else None
    # On a mesh of one device JAX would call a result replicated, and compile the program that takes it a second time.
    placed = NamedSharding(mesh, RUNS)
    return jax.jit(by_device, out_shardings=placed, donate_argnums=donated, compiler_options=options)


@contextlib.contextmanager
def compiling(program: Wrapped, *shapes: PyTree) -> Iterator[None]:
    """Compiles the program for these shapes in another thread while the body of the context runs.

    The program is traced in this thread, with its settings, e.g. the precision of matrix products. It is compiled when the
    context ends; an error of the compiler is raised then.

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

    All processes must enter it together. The body must wait for its results, since JAX reports an error only then.
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
    """Maps `run_fn(run, shared)`, written for one run, over a device's runs: `run` gets a leading axis `runs`."""
    if sequential(mesh):
        return lambda runs, shared: lax.map(lambda run: run_fn(run, shared), runs)
    return jax.vmap(run_fn, in_axes=(0, None))


def update_runs(run_fn: Callable, mesh: Mesh) -> Callable:
    """Maps `run_fn(state, run, shared)`, which returns a new state, over a device's runs, in place."""
    if not sequential(mesh):
        return jax.vmap(run_fn, in_axes=(0, 0, None))

    def over_runs(states, runs, shared):
        def update(index, states):
            state, run = jax.tree.map(lambda leaf: leaf[index], (states, runs))
            return jax.tree.map(lambda old, new: old.at[index].set(new), states, run_fn(state, run, shared))

        return lax.fori_loop(0, len(jax.tree.leaves(states)[0]), update, states)

    return over_runs


def sequential(mesh: Mesh) -> bool:
    """Returns whether a device trains its runs sequentially: on a CPU, so that a core's cache holds a run's weights.

    With vmap a CPU would stream the weights of all runs through memory at every sample. GPUs and TPUs use vmap.
    """
    return platform(mesh) == "cpu"


def platform(mesh: Mesh) -> str:
    """Returns the mesh's kind of device: `cpu`, `gpu` or `tpu`."""
    return mesh.devices.flat[0].platform


def on_host(tree: PyTree) -> PyTree:
    """Gathers arrays that are sharded over all processes, as whole NumPy arrays in each process."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.asarray, tree)


def from_first(value: int) -> int:
    """Returns the first process's value in all processes."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))
