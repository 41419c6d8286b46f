"""Products of a matrix and a vector as multiply and sum, for TPUs.

A TPU's compiler turns such a product, mapped over runs, into a convolution of bfloat16 parts that wants the transposed
kernel, and copies each kernel for it at every sample. Multiplied and summed it stays in float32, the runs lie in the lanes,
and nothing is copied. On CPUs and GPUs the products are best as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array

_CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def as_sums(function: Callable) -> Callable:
    """The function with every product of a matrix and a vector in its program multiplied and summed.

    Calls of other functions are inlined, so it is for a function that is not differentiated any more.
    """

    def with_sums(*arguments: Any) -> Any:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), arguments)
        program, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
        return jax.tree.unflatten(jax.tree.structure(out), _evaluated(program, jax.tree.leaves(arguments)))

    return with_sums


def _evaluated(program: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(program.jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else values[variable]

    for equation in program.jaxpr.eqns:
        operands, name = [read(variable) for variable in equation.invars], equation.primitive.name
        if name in _CALLS:
            made = _evaluated(_closed(equation.params[_CALLS[name]]), operands)
        elif _is_of_vector(equation):
            made = [_summed(*operands, *equation.params["dimension_numbers"][0])]
        else:
            params = {key: _rewritten(value) for key, value in equation.params.items()}
            found = equation.primitive.bind(*operands, **params)
            made = found if equation.primitive.multiple_results else [found]
        values |= dict(zip(equation.outvars, made, strict=True))
    return [read(variable) for variable in program.jaxpr.outvars]


def _is_of_vector(equation: Any) -> bool:
    if equation.primitive.name != "dot_general" or equation.outvars[0].aval.dtype != jnp.float32:
        return False
    _, (batch, _) = equation.params["dimension_numbers"]
    return not batch and sorted(variable.aval.ndim for variable in equation.invars) == [1, 2] and _contracts(equation)


def _contracts(equation: Any) -> bool:
    return len(equation.params["dimension_numbers"][0][0]) == 1


def _summed(one: Array, other: Array, axes: Sequence[int], other_axes: Sequence[int]) -> Array:
    (matrix, axis), vector = ((one, axes[0]), other) if one.ndim == 2 else ((other, other_axes[0]), one)
    return jnp.sum(matrix * (vector[:, None] if axis == 0 else vector), axis=axis)


def _rewritten(value: Any) -> Any:
    """A parameter of an equation; if that is the program of a loop, of a branch or of what is rematerialized, with sums."""
    if isinstance(value, Jaxpr) and not value.constvars:
        return _rewritten(_closed(value)).jaxpr
    if isinstance(value, ClosedJaxpr):
        shapes = [jax.ShapeDtypeStruct(shape.shape, shape.dtype) for shape in value.in_avals]
        return jax.make_jaxpr(lambda *arguments: _evaluated(value, arguments))(*shapes)
    if isinstance(value, tuple) and value and all(isinstance(part, ClosedJaxpr) for part in value):
        return tuple(_rewritten(part) for part in value)
    return value


def _closed(program: Any) -> ClosedJaxpr:
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())
