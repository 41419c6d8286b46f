"""Finds the first layer in a learner's program, and removes it, so that it can be updated in windows of samples.

A first layer is a kernel whose only use is to multiply an input vector of the sample. It is found in the program that JAX
traces from the learner's gradient: one product reads input and kernel, and nothing else reads them but the kernel's own
gradient and recorded activity. A network that first normalizes its input, or a loss with weight decay, has no such layer,
and every sample updates the whole kernel.

The rest of the program is a function of the layer's product, `x W`, and returns the error of that product. It is the
original program without three of its equations, so it is exact for any learner. Only this module reads JAX's programs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from ojax import _compat
from ojax._compat import Equation, Program
from ojax.activity import Activity, is_activity, is_of
from ojax.online.learner import Gradient, Hyper, Learner
from ojax.trees import named_leaves

_PRODUCT = (((0,), (0,)), ((), ()))  # `x W`, as lax.dot_general's dimension numbers.
_OUTER = (((), ()), ((), ()))


class FirstLayer(NamedTuple):
    """A first layer, and the learner's gradient without it.

    Attributes:
      kernel: The path of its kernel in the parameters.
      read: `read(sample)` returns the kernel's input, for one sample or for several with a leading axis.
      gradient: `gradient(product, params, state, sample, hyper) -> Gradient`, where `product` is the product of input and
        kernel. At the kernel's path it has the error of this product, of shape (n_out,). It does not read the kernel.
    """

    kernel: str
    read: Callable[[PyTree], Float[Array, "*window n_in"]]
    gradient: Callable[[Float[Array, " n_out"], PyTree, PyTree, PyTree, Hyper], Gradient]


class _Cut(NamedTuple):
    """A first layer in a program: the variables of its product and of its error, and the equations to remove."""

    product: Any
    error: Any
    equations: list[Equation]


class _Places(NamedTuple):
    """Positions of the kernel and the input vector in a program's inputs, and of `gradient` and `pre` in its outputs."""

    kernel: int
    x: int
    gradient: int
    pre: int


def find(learner: Learner, params: PyTree, state: PyTree, sample: PyTree, hyper: Hyper) -> FirstLayer | None:
    """Returns the learner's first layer, found from the shapes of its gradient's arguments; None if it has none.

    Raises:
      UnknownProgramError: If this version of JAX represents its programs in an unknown form.
    """
    _check_words()
    program = _compat.program(learner.gradient, params, state, sample, hyper)
    structure: Any = jax.tree.structure(program.result)
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    paths = [path for path, _ in named_leaves(params)]
    before = len(paths) + len(jax.tree.leaves(state))
    for number in range(len(jax.tree.leaves(sample))):
        for kernel, path in enumerate(paths):
            outputs = _outputs(numbered, path)
            places = outputs and _Places(kernel, before + number, *outputs)
            cut = places and _cut(program, places)
            if places and cut:
                gradient = _without(program, structure, places, cut)
                _check_shapes(gradient, program, cut, (params, state, sample, hyper))
                return FirstLayer(path, lambda sample, number=number: jax.tree.leaves(sample)[number], gradient)
    return None


@functools.cache
def _check_words() -> None:
    """Raises UnknownProgramError unless this version of JAX represents products in the known form."""
    x, kernel = jnp.zeros(2), jnp.zeros((2, 3))
    product, *others = _compat.program(jnp.matmul, x, kernel).equations
    outer = _compat.program(lambda x, error: lax.dot_general(x, error, (((), ()), ((), ()))), x, x).equations
    if others or not _is_dot(product, _PRODUCT) or len(outer) != 1 or not _is_dot(outer[0], _OUTER):
        raise _compat.UnknownProgramError(f"JAX {jax.__version__} writes products in another form")


def _outputs(numbered: Any, path: str) -> tuple[int, int] | None:
    """Returns the positions of a kernel's gradient and `pre`; None unless its layer recorded exactly one call."""
    activities: list[Any] = [
        leaf
        for name, leaf in named_leaves(numbered.activity, is_activity)
        if isinstance(leaf, Activity) and is_of(name, path)
    ]
    return (dict(named_leaves(numbered.grads))[path], activities[0].pre) if len(activities) == 1 else None


def _cut(program: Program, places: _Places) -> _Cut | None:
    """Returns a first layer's variables and equations; None if input or kernel have any other use."""
    x, kernel = program.inputs[places.x], program.inputs[places.kernel]
    if (x.aval.ndim, kernel.aval.ndim) != (1, 2) or not x.aval.dtype == kernel.aval.dtype == jnp.float32:
        return None
    names, renamings = [x], []  # The result of `stop_gradient` is the input too.
    for equation in program.equations:
        if equation.name == "stop_gradient" and _has(names, equation.inputs[0]):
            names.append(equation.outputs[0])
            renamings.append(equation)
    uses = [use for name in names for use in _uses(program, name) if not _has(renamings, use)]
    products = [use for use in uses if _has(use.inputs, kernel)]
    outers = [use for use in uses if not _has(use.inputs, kernel)]
    if len(products) != 1 or len(outers) != 1 or len(_uses(program, kernel)) != 1 or _has(program.outputs, kernel):
        return None
    (product,), (outer,) = products, outers
    errors = [variable for variable in outer.inputs if not _has(names, variable)]
    if not (_is_dot(product, _PRODUCT) and _is_dot(outer, _OUTER)) or product.outputs[0].aval.ndim != 1 or len(errors) != 1:
        return None
    # The kernel's gradient: the outer product of input and error, transposed if the error came first.
    last = [outer]
    if outer.inputs[0] is errors[0]:
        last += _uses(program, outer.outputs[0])
        if len(last) != 2 or last[1].name != "transpose" or _has(program.outputs, outer.outputs[0]):
            return None
    gradient = last[-1].outputs[0]
    only_in_gradient = _positions(program, [gradient]) == [places.gradient] and not _uses(program, gradient)
    only_in_activity = _positions(program, names) == [places.pre]
    if not (only_in_gradient and only_in_activity and gradient.aval.shape == kernel.aval.shape):
        return None
    return _Cut(product.outputs[0], errors[0], [*renamings, product, *last])


def _is_dot(equation: Equation, dimension_numbers: Any) -> bool:
    numbers = equation.params.get("dimension_numbers")
    return equation.name == "dot_general" and _as_tuples(numbers) == dimension_numbers


def _as_tuples(nested: Any) -> Any:
    return tuple(map(_as_tuples, nested)) if isinstance(nested, list | tuple) else nested


def _has(variables: Sequence[Any], variable: Any) -> bool:
    return any(variable is other for other in variables)  # Literals have no hash, and equations no equality.


def _uses(program: Program, variable: Any) -> list[Equation]:
    return [equation for equation in program.equations if _has(equation.inputs, variable)]


def _positions(program: Program, variables: list[Any]) -> list[int]:
    return [place for place, out in enumerate(program.outputs) if _has(variables, out)]


def _without(program: Program, structure: Any, places: _Places, cut: _Cut) -> Callable[..., Gradient]:
    """Returns the program without the cut's equations: it reads the product, not the kernel, and returns the error."""
    inputs, outputs = list(program.inputs), list(program.outputs)
    inputs[places.kernel] = cut.product
    outputs[places.gradient], outputs[places.pre] = cut.error, program.inputs[places.x]
    equations = [equation for equation in program.equations if not _has(cut.equations, equation)]
    rest = _compat.function_of(program, inputs, outputs, equations)

    def gradient(product: Array, params: PyTree, state: PyTree, sample: PyTree, hyper: Hyper) -> Gradient:
        leaves = jax.tree.leaves((params, state, sample, hyper))
        leaves[places.kernel] = product
        return jax.tree.unflatten(structure, rest(*leaves))

    return gradient


def _check_shapes(gradient: Callable[..., Gradient], program: Program, cut: _Cut, arguments: tuple) -> None:
    """Raises UnknownProgramError unless the rest returns the whole program's shapes, but for the kernel's gradient."""
    product = jax.ShapeDtypeStruct(cut.product.aval.shape, cut.product.aval.dtype)
    rest = jax.tree.leaves(jax.eval_shape(gradient, product, *arguments))
    whole = jax.tree.leaves(program.result)
    differing = [
        one for one, other in zip(whole, rest, strict=True) if (one.shape, one.dtype) != (other.shape, other.dtype)
    ]
    if len(differing) != 1:
        raise _compat.UnknownProgramError(f"JAX {jax.__version__} does not evaluate a part of a program as the whole")
