"""Wraps names of JAX, Flax and Orbax that are not public or change between versions, one function each.

Each docstring states the fallback if the name is missing. No other module of ojax or its experiments uses such a name.
"""

import asyncio
import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class UnknownProgramError(Exception):
    """This version of JAX represents its programs in an unknown form."""


class Equation(NamedTuple):
    """One step of a program; variables are compared by identity.

    Attributes:
      name: Name of its primitive, e.g. `dot_general`.
      inputs: Its operands, variables and literals.
      outputs: The variables that it defines.
      params: Its parameters by name.
      source: JAX's own equation.
    """

    name: str
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    params: dict[str, Any]
    source: Any


class Program(NamedTuple):
    """A function as JAX traces it.

    Attributes:
      inputs: A variable per leaf of the arguments; its `aval` has a shape and a dtype.
      outputs: A variable or a literal per leaf of the result.
      equations: The steps, in order.
      result: The function's result, with shapes in place of arrays.
      source: JAX's own program.
    """

    inputs: list[Any]
    outputs: list[Any]
    equations: list[Equation]
    result: Any
    source: Any


def program(function: Callable, *shapes: Any) -> Program:
    """Traces a function into the equations of its program.

    Raises:
      UnknownProgramError: If programs of this version of JAX lack these parts. Training then updates the first layer sample
        by sample, which is slower; see :func:`ojax.online.fast_path`.
    """
    source, result = jax.make_jaxpr(function, return_shape=True)(*shapes)
    try:
        jaxpr = source.jaxpr
        equations = [
            Equation(found.primitive.name, list(found.invars), list(found.outvars), dict(found.params), found)
            for found in jaxpr.eqns
        ]
        return Program(list(jaxpr.invars), list(jaxpr.outvars), equations, result, source)
    except (AttributeError, TypeError) as error:
        raise UnknownProgramError(f"JAX {jax.__version__} writes programs in another form") from error


def constants_of(source: Any) -> list[Any]:
    """Returns the arrays in one of JAX's programs, and in the programs within it.

    In another form of programs some may not be found. Checkpoints of learners that differ by these alone then look alike.
    """
    found = list(getattr(source, "consts", ()))
    for equation in getattr(getattr(source, "jaxpr", source), "eqns", ()):
        within = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program)
        found += [array for program in filter(_is_program, within) for array in constants_of(program)]
    return found


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def function_of(program: Program, inputs: list[Any], outputs: list[Any], equations: list[Equation]) -> Callable[..., list]:
    """Makes a function of some of a program's equations, from values of `inputs` to values of `outputs`.

    Raises:
      UnknownProgramError: If this version of JAX cannot evaluate such a program; as for :func:`program`.
    """
    try:
        from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

        eqns = [equation.source for equation in equations]
        changed = program.source.jaxpr.replace(invars=inputs, outvars=outputs, eqns=eqns)
        return jaxpr_as_fun(ClosedJaxpr(changed, program.source.consts))
    except (ImportError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise UnknownProgramError(f"JAX {jax.__version__} cannot evaluate a part of a program") from error


# Compiler options that optimize less. A TPU's compiler then takes 11 seconds in place of 157 for an evaluation (five
# layers, v5e, 128 runs, two busy cores), whose temporaries grow by 4 %. 9 is XLA's level O0.
_QUICKLY: dict[str, dict[str, Any]] = {"cpu": {"xla_backend_optimization_level": 1}, "tpu": {"optimization_level": 9}}


@functools.cache
def quick_options(device: Any) -> dict[str, Any]:
    """Returns compiler options for a program that is called rarely and takes longer to compile than to run.

    If this version's compiler refuses them, they are empty, and compiling takes longer.
    """
    options = _QUICKLY.get(device.platform, {})
    scalar = jax.ShapeDtypeStruct(
        (), np.float32, sharding=NamedSharding(Mesh(np.array([device]), ("one",)), PartitionSpec())
    )
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(scalar).compile()
        return options
    except (jax.errors.JaxRuntimeError, TypeError, ValueError):
        return {}


def num_cpu_devices() -> int:
    """Returns the number of CPU devices that the user configured; -1 if none was configured.

    If JAX has no such setting it is -1, and :func:`ojax.online.use_all_cores` requests one device per core.
    """
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return 0
    return getattr(jax.config, "jax_num_cpu_devices", -1)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether a runtime's or compiler's error means that a device's memory is too small.

    If the error's wording has changed, a study ends with the error instead of training fewer runs at once.
    """
    words = ("RESOURCE_EXHAUSTED", "Ran out of memory", "Out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def is_of_a_lost_process(error: BaseException) -> bool:
    """Returns whether an error means that another process of this job has ended.

    If the error's wording has changed, the command ends with the error itself and another exit code.
    """
    words = ("Gloo", "NCCL", "Connection closed", "Connection reset", "coordination", "heartbeat", "UNAVAILABLE")
    return any(word in str(error) for word in words)


def compilation_of(event: str) -> bool | None:
    """Classifies a duration event of `jax.monitoring`: True before a compilation, False after it, None for other events.

    If the events have other names, a study does not report that it compiles an evaluation.
    """
    if event.endswith("jaxpr_to_mlir_module_duration"):
        return True
    return False if event.endswith("backend_compile_duration") else None


def use_compilation_cache(cache: Any, folder: str) -> bool:
    """Makes JAX store compiled programs in `cache`, which has `get(key)` and `put(key, value)`; returns whether it can.

    JAX has no public way to set a cache. Its own cache trusts its files: a damaged entry could run as machine code. If none
    can be set, nothing is stored, and each command compiles its programs again.
    """
    try:
        from jax._src import compilation_cache

        if not hasattr(compilation_cache, "get_file_cache"):
            return False
        compilation_cache.reset_cache()
    except (ImportError, AttributeError):
        return False
    compilation_cache.get_file_cache = lambda _: (cache, folder)  # type: ignore
    return True


@contextlib.contextmanager
def ending_what_orbax_begins() -> Iterator[None]:
    """Makes Orbax close an event loop only after all of its tasks have ended, while the context lasts.

    Orbax reads or writes all arrays of a checkpoint concurrently, and closes its loop when the first one fails. The other
    tasks then report to a closed loop, and Python prints a traceback for each. If this version of Orbax lacks the patched
    function, these tracebacks are shown, and nothing else changes.
    """
    try:
        from orbax.checkpoint._src import asyncio_utils

        orbax_runs = asyncio_utils._run_sync_via_new_loop
    except (ImportError, AttributeError):
        yield
        return
    asyncio_utils._run_sync_via_new_loop = _run_to_the_end
    try:
        yield
    finally:
        asyncio_utils._run_sync_via_new_loop = orbax_runs


def _run_to_the_end(coroutine: Coroutine[Any, Any, Any]) -> Any:
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(coroutine)
    finally:
        if tasks := asyncio.all_tasks(loop):
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()


def is_called_by(function: Callable) -> bool:
    """Returns whether a function that is defined inside of `function` is on the call stack.

    If a library defines its functions in another way the result is False, and a warning about its wrapper is not shown.
    """
    inner = {id(code) for code in getattr(inspect.unwrap(function), "__code__", is_called_by.__code__).co_consts}
    frame = inspect.currentframe()
    while frame is not None:
        if id(frame.f_code) in inner:
            return True
        frame = frame.f_back
    return False


def varying_axes(array: Any) -> frozenset[str]:
    """Returns the mesh axes of a `jax.shard_map` along which an array varies, if JAX tracks them.

    If JAX does not track them, a rule averages over a sharded batch only along the axes that its caller names.
    """
    aval = jax.typeof(array)
    manual = getattr(aval, "mat", None)  # Earlier it was called `vma`.
    return getattr(aval, "vma", frozenset()) if manual is None else manual.varying
