"""What ojax uses of JAX, Flax and Orbax that is not public, or changes with their versions: one function each.

Each docstring says what happens where the name is gone. Nothing else in ojax or its experiments may use such a name.
"""

import functools
from collections.abc import Callable, Sequence
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
