"""Finds the first layer in a learner's program, and takes it out, so that it can be carried over windows of samples.

A first layer is a kernel that does nothing but multiply an input vector of the sample. Whether there is one is read off
the program that JAX traces of the learner's gradient: input and kernel must meet in one product, and go nowhere else but
into the kernel's own gradient and recorded activity. A network that first normalizes its input, a loss with weight decay,
or anything else that reads either of the two has no such layer, and learns step by step.

What is left of the program is a function of the layer's answer, `x W`, that returns the error of that answer. It is the
same program without three of its equations, so it is right for any learner.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Float, PyTree

from ojax.activity import Activity, is_activity, is_of
from ojax.online.learner import Gradient, Hyper, Learner
from ojax.trees import named_leaves

_PRODUCT = (((0,), (0,)), ((), ()))  # `x W`, as lax.dot_general's dimension numbers.
_OUTER = (((), ()), ((), ()))


class FirstLayer(NamedTuple):
    """A first layer, and the learner's gradient without it.

    Attributes:
      kernel: The path of its kernel in the parameters.
      read: `read(sample)` is the input that the kernel multiplies; for one sample, or several with a leading axis.
      gradient: `gradient(answer, params, state, sample, hyper) -> Gradient`, where `answer` is the product of input and
        kernel. At the kernel's path it has the error of the answer, of shape (n_out,). It does not read the kernel.
    """

    kernel: str
    read: Callable[[PyTree], Float[Array, "*window n_in"]]
    gradient: Callable[[Float[Array, "n_out"], PyTree, PyTree, PyTree, Hyper], Gradient]


class _Cut(NamedTuple):
    """A first layer in a program: the variables of its answer and its error, and the equations that go with it."""

    answer: Any
    error: Any
    equations: list[Any]


class _Places(NamedTuple):
    """Positions of a kernel and a sample's leaf among a program's inputs, of `gradient` and `pre` among its outputs."""

    kernel: int
    x: int
    gradient: int
    pre: int


def find(learner: Learner, params: PyTree, state: PyTree, sample: PyTree, hyper: Hyper) -> FirstLayer | None:
    """The learner's first layer, from the shapes of its gradient's arguments; None if it has none."""
    program, out = jax.make_jaxpr(learner.gradient, return_shape=True)(params, state, sample, hyper)
    structure: Any = jax.tree.structure(out)
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    paths = [path for path, _ in named_leaves(params)]
    before = len(paths) + len(jax.tree.leaves(state))
    for number in range(len(jax.tree.leaves(sample))):
        for kernel, path in enumerate(paths):
            outputs = _outputs(numbered, path)
            places = outputs and _Places(kernel, before + number, *outputs)
            cut = places and _cut(program.jaxpr, places)
            if places and cut:
                return FirstLayer(
                    path,
                    read=lambda sample, number=number: jax.tree.leaves(sample)[number],
                    gradient=_without(program, structure, places, cut),
                )
    return None


def _outputs(numbered: Any, path: str) -> tuple[int, int] | None:
    """Positions of a kernel's gradient and `pre`; None if it has no activity, or that of several calls."""
    activities: list[Any] = [
        leaf
        for name, leaf in named_leaves(numbered.activity, is_activity)
        if isinstance(leaf, Activity) and is_of(name, path)
    ]
    return (dict(named_leaves(numbered.grads))[path], activities[0].pre) if len(activities) == 1 else None


def _cut(jaxpr: Any, places: _Places) -> _Cut | None:
    """None where input and kernel are used in any other way than a first layer's are."""
    x, kernel = jaxpr.invars[places.x], jaxpr.invars[places.kernel]
    if (x.aval.ndim, kernel.aval.ndim) != (1, 2) or not x.aval.dtype == kernel.aval.dtype == jnp.float32:
        return None
    names, renamings = [x], []  # What `stop_gradient` returns is the input too.
    for equation in jaxpr.eqns:
        if equation.primitive.name == "stop_gradient" and _has(names, equation.invars[0]):
            names.append(equation.outvars[0])
            renamings.append(equation)
    uses = [use for name in names for use in _uses(jaxpr, name) if not _has(renamings, use)]
    products = [use for use in uses if _has(use.invars, kernel)]
    outers = [use for use in uses if not _has(use.invars, kernel)]
    if len(products) != 1 or len(outers) != 1 or len(_uses(jaxpr, kernel)) != 1 or _has(jaxpr.outvars, kernel):
        return None
    (product,), (outer,) = products, outers
    errors = [variable for variable in outer.invars if not _has(names, variable)]
    if not (_is_dot(product, _PRODUCT) and _is_dot(outer, _OUTER)) or product.outvars[0].aval.ndim != 1 or len(errors) != 1:
        return None
    # The kernel's gradient: the outer product of input and error, transposed if the error came first.
    last = [outer]
    if outer.invars[0] is errors[0]:
        last += _uses(jaxpr, outer.outvars[0])
        if len(last) != 2 or last[1].primitive.name != "transpose" or _has(jaxpr.outvars, outer.outvars[0]):
            return None
    gradient = last[-1].outvars[0]
    only_in_gradient = _positions(jaxpr, [gradient]) == [places.gradient] and not _uses(jaxpr, gradient)
    only_in_activity = _positions(jaxpr, names) == [places.pre]
    if not (only_in_gradient and only_in_activity and gradient.aval.shape == kernel.aval.shape):
        return None
    return _Cut(product.outvars[0], errors[0], [*renamings, product, *last])


def _is_dot(equation: Any, dimension_numbers: Any) -> bool:
    numbers = equation.params.get("dimension_numbers")
    return equation.primitive.name == "dot_general" and _as_tuples(numbers) == dimension_numbers


def _as_tuples(nested: Any) -> Any:
    return tuple(map(_as_tuples, nested)) if isinstance(nested, list | tuple) else nested


def _has(variables: list[Any], variable: Any) -> bool:
    return any(variable is other for other in variables)  # Literals have no hash, and equations no equality.


def _uses(jaxpr: Any, variable: Any) -> list[Any]:
    return [equation for equation in jaxpr.eqns if _has(equation.invars, variable)]


def _positions(jaxpr: Any, variables: list[Any]) -> list[int]:
    return [place for place, out in enumerate(jaxpr.outvars) if _has(variables, out)]


def _without(program: ClosedJaxpr, structure: Any, places: _Places, cut: _Cut) -> Callable[..., Gradient]:
    """The program without the cut's equations: the answer stands for the kernel, and the error for its gradient."""
    jaxpr = program.jaxpr
    inputs, outputs = list(jaxpr.invars), list(jaxpr.outvars)
    inputs[places.kernel] = cut.answer
    outputs[places.gradient], outputs[places.pre] = cut.error, jaxpr.invars[places.x]
    equations = [equation for equation in jaxpr.eqns if not _has(cut.equations, equation)]
    rest = jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(invars=inputs, outvars=outputs, eqns=equations), program.consts))

    def gradient(answer: Array, params: PyTree, state: PyTree, sample: PyTree, hyper: Hyper) -> Gradient:
        leaves = jax.tree.leaves((params, state, sample, hyper))
        leaves[places.kernel] = answer
        return jax.tree.unflatten(structure, rest(*leaves))

    return gradient
