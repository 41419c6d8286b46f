"""What ojax uses of JAX, Flax and Orbax that is not public, or changes with their versions: one function each.

Each docstring says what happens where the name is gone. Nothing else in ojax or its experiments may use such a name.
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
    """This version of JAX writes its programs in a form that is not known here."""


class Equation(NamedTuple):
    """One step of a program; variables are compared by identity.

    Attributes:
      name: Of its primitive: `dot_general`, say.
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
      UnknownProgramError: If the program has no such parts in this version of JAX. A first layer then learns sample by
        sample, which is slower; see :func:`ojax.online.fast_path`.
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
    """Compiler options for a program that is called rarely, so that compiling it takes longer than running it.

    Where this version's compiler refuses them they are empty: compiling takes longer.
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
    """The number of CPU devices that was asked for; -1 if none was.

    Where the setting is gone it is -1: :func:`ojax.online.use_all_cores` then asks for as many as there are cores.
    """
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return 0
    return getattr(jax.config, "jax_num_cpu_devices", -1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a runtime or a compiler says that a device's memory is too small.

    Where its words have changed a study ends with the error in place of taking fewer runs at once.
    """
    words = ("RESOURCE_EXHAUSTED", "Ran out of memory", "Out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def is_of_a_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of this job is gone.

    Where its words have changed the command ends with the error itself, and with another exit code.
    """
    words = ("Gloo", "NCCL", "Connection closed", "Connection reset", "coordination", "heartbeat", "UNAVAILABLE")
    return any(word in str(error) for word in words)


def compilation_of(event: str) -> bool | None:
    """True if a duration event of `jax.monitoring` comes before a program is compiled, False if after, else None.

    Where the events have other names a study does not say that it compiles an evaluation.
    """
    if event.endswith("jaxpr_to_mlir_module_duration"):
        return True
    return False if event.endswith("backend_compile_duration") else None


def use_compilation_cache(cache: Any, folder: str) -> bool:
    """Makes JAX ask `cache` for compiled programs, an object with `get(key)` and `put(key, value)`; whether it will.

    JAX has no public way to be given a cache, and its own trusts what it reads: a damaged entry could run as machine code.
    Where it cannot be given one, nothing is kept and each command compiles its programs again.
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
    """While it lasts, Orbax closes an event loop only when all that was begun in it has ended.

    Orbax reads or writes all arrays of a checkpoint concurrently, and closes its loop when the first one fails. The others
    then report to a closed loop, and Python prints a traceback for each. Where Orbax has no such function, these are shown:
    a damaged checkpoint still gives way to the one before, and a full disk still ends in its one line.
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
    """Whether a function defined inside of that one is calling, from however far out.

    Where a library defines it in another way this is not seen, and a warning of what a wrapper does not do is left out.
    """
    inner = {id(code) for code in getattr(inspect.unwrap(function), "__code__", is_called_by.__code__).co_consts}
    frame = inspect.currentframe()
    while frame is not None:
        if id(frame.f_code) in inner:
            return True
        frame = frame.f_back
    return False


def varying_axes(array: Any) -> frozenset[str]:
    """Returns the mesh axes of a `jax.shard_map` along which an array differs, as far as JAX keeps count of them.

    Without it, the batch of a rule that is sharded over devices is averaged only over axes that are named.
    """
    aval = jax.typeof(array)
    manual = getattr(aval, "mat", None)  # Earlier it was called `vma`.
    return getattr(aval, "vma", frozenset()) if manual is None else manual.varying
