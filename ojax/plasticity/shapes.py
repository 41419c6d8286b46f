"""Input, output and stack axes of a kernel, and checks that an activity fits them."""

import math
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ojax.activity import Activity
from ojax.patches import Patches

AxisLike = int | Sequence[int]


class Axes(NamedTuple):
    """The axes of every kernel of a rule, as in `jax.nn.initializers`; `inputs` may be `...` for all others."""

    inputs: tuple[int, ...] | EllipsisType
    outputs: tuple[int, ...]
    batch: tuple[int, ...]

    @classmethod
    def of(cls, name: str, in_axis: AxisLike | EllipsisType, out_axis: AxisLike, batch_axis: AxisLike) -> "Axes":
        """Returns the axes as tuples.

        Raises:
          ValueError: If one is not a whole number, or there is no output axis.
        """

        def numbers(which: str, axis: AxisLike | EllipsisType) -> tuple[int, ...]:
            found = (axis,) if isinstance(axis, int) else axis
            if not isinstance(found, Sequence) or not all(isinstance(number, int) for number in found):
                static = f'; with optax.inject_hyperparams, static_args=["{which}"]' if isinstance(found, jax.Array) else ""
                raise ValueError(f"{name}: {which} must be a whole number or several, got {axis!r}{static}.")
            return tuple(found)

        inputs = ... if isinstance(in_axis, EllipsisType) else numbers("in_axis", in_axis)
        axes = cls(inputs, numbers("out_axis", out_axis), numbers("batch_axis", batch_axis))
        if not axes.outputs or axes.inputs == ():
            raise ValueError(f"{name}: a kernel needs at least one input and one output axis.")
        return axes

    def order(self, name: str, path: str, shape: Sequence[int]) -> tuple[list[int], "Split"]:
        """Returns the order of a kernel's axes with the stack first and the outputs last, and the number of each kind."""
        rank = len(shape)
        given = [*self.batch, *self.outputs, *(() if isinstance(self.inputs, EllipsisType) else self.inputs)]
        places = [axis % rank for axis in given if -rank <= axis < rank]
        rest = [axis for axis in range(rank) if axis not in places]
        if len(set(places)) < len(given) or (len(places) == rank and isinstance(self.inputs, EllipsisType)):
            raise ValueError(f"{name}: {path} of shape {tuple(shape)} has no such axes; {self.described()}.")
        num_batch, num_out = len(self.batch), len(self.outputs)
        batch, outputs, inputs = places[:num_batch], places[num_batch : num_batch + num_out], places[num_batch + num_out :]
        return [*batch, *rest, *inputs, *outputs], Split(num_batch, rank - num_batch - num_out, num_out)

    def is_kernel(self, leaf: Any) -> bool:
        """Returns whether a parameter has enough axes for a kernel."""
        return hasattr(leaf, "shape") and len(leaf.shape) >= len(self.batch) + len(self.outputs) + 1

    def described(self) -> str:
        """Returns the axes as arguments of :func:`ojax.plasticity.rule`, for an error."""
        return f"in_axis is {self.inputs}, out_axis {self.outputs} and batch_axis {self.batch}".replace("Ellipsis", "...")


class Split(NamedTuple):
    """Numbers of axes of an ordered kernel: first the stack, then the inputs, then the outputs."""

    stack: int
    inputs: int
    outputs: int

    def parts(self, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Returns the sizes of the stack, input and output axes."""
        middle = self.stack + self.inputs
        return tuple(shape[: self.stack]), tuple(shape[self.stack : middle]), tuple(shape[middle:])


class Site(NamedTuple):
    """One kernel and the activity of all calls of its layer, as matrices and batches.

    Attributes:
      kernel: Shape (*stack, n_in, n_out), float32 or the parameter's wider type.
      calls: One activity per call: `pre` (*stack, batch, n_in), `post` (*stack, batch, n_out), and errors of these shapes.
        For a convolution, patches of images (*stack, batch, *space, channels), and `post` (*stack, batch, *positions,
        n_out).
      stack: Number of leading axes that are a stack of kernels.
    """

    kernel: Float[Array, "*stack n_in n_out"]
    calls: list[Activity]
    stack: int


def site_of(
    name: str, path: str, axes: Axes, param: Array, calls: Sequence[Activity], *, keeps_state: bool = False
) -> Site:
    """Returns a kernel and its activity, checked against each other.

    If a rule has the default axes and the shapes do not fit them, but fit exactly one other choice of axes, that choice is
    used: a stack of kernels (a scan over layers), or several output axes (attention's heads).

    Raises:
      ValueError: If the shapes do not fit, an array is complex, or the kernel has whole numbers.
    """
    for array in (param, *jax.tree.leaves(calls)):
        if jnp.issubdtype(jnp.result_type(array), jnp.complexfloating):
            raise ValueError(
                f"{name}: {path} or its activity is {jnp.result_type(array)}, and rules are for real numbers: keep real "
                "and imaginary parts in two kernels, or leave it out by a mask."
            )
    if not jnp.issubdtype(jnp.result_type(param), jnp.floating):
        raise ValueError(
            f"{name}: {path} is {jnp.result_type(param)}, to which a small change cannot be added: keep it in floating "
            "point, or leave it out by a mask."
        )
    shape = jnp.shape(param)
    if not axes.is_kernel(param):
        raise ValueError(_misfit(name, path, axes, shape, calls[0]))
    order, declared = axes.order(name, path, shape)
    arranged = [shape[axis] for axis in order]
    if not all(_fits(call, declared.parts(arranged)) for call in calls):
        says_nothing = axes == ((...), (-1,), ())
        others = _splits(len(shape)) if says_nothing and not keeps_state else ()
        fitting = [split for split in others if all(_fits(call, split.parts(arranged)) for call in calls)]
        if len(fitting) != 1:
            misfit = next((call for call in calls if not _fits(call, declared.parts(arranged))), calls[0])
            raise ValueError(_misfit(name, path, axes, shape, misfit))
        (declared,) = fitting
    stack, _, _ = declared.parts(arranged)
    kernel = as_matrix(name, path, axes, param, declared)

    def batched(side: Any, *sample: int) -> Any:
        return None if side is None else jnp.reshape(side, (*stack, -1, *sample)).astype(kernel.dtype)

    def as_batch(call: Activity) -> Activity:
        pre, post, pre_error, post_error = sides_of(call)
        if not isinstance(pre, Patches):
            n_in, n_out = kernel.shape[-2:]
            return Activity(batched(pre, n_in), batched(post, n_out), batched(pre_error, n_in), batched(post_error, n_out))

        def images(side: Any) -> Any:
            if isinstance(side, Patches):
                return Patches(images(side.image), pre.geometry)
            return side if side is None else batched(side, *side.shape[-1 - len(pre.geometry.window) :])

        errors = pre_error if pre_error is None or isinstance(pre_error, Patches) else Patches(pre_error, pre.geometry)
        return Activity(images(pre), images(post), images(errors), images(post_error))

    return Site(kernel, [as_batch(call) for call in calls], len(stack))


def as_matrix(
    name: str, path: str, axes: Axes, param: Array, split: Split | None = None
) -> Float[Array, "*stack n_in n_out"]:
    """Returns a kernel as a matrix, or a stack of matrices, in float32 or its wider type."""
    # Half-precision sums would lose most of a small rate's change.
    dtype = jnp.result_type(param)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.dtype(dtype).itemsize >= 4
    widened = jnp.asarray(param, dtype if is_wide else jnp.float32)
    order, declared = axes.order(name, path, widened.shape)
    stack, inputs, outputs = (split or declared).parts([widened.shape[axis] for axis in order])
    return _transposed(widened, order).reshape(*stack, math.prod(inputs), math.prod(outputs))


def as_parameter(change: Float[Array, "*stack n_in n_out"], axes: Axes, shape: Sequence[int]) -> Array:
    """Returns the change of a :class:`Site`'s kernel in the shape of the parameter."""
    order, _ = axes.order("", "", shape)
    return _transposed(change.reshape([shape[axis] for axis in order]), sorted(range(len(order)), key=order.__getitem__))


def _transposed(array: Array, order: Sequence[int]) -> Array:
    return array if list(order) == list(range(len(order))) else jnp.transpose(array, order)


def _splits(rank: int) -> Iterator[Split]:
    """Yields all splits of a kernel's axes but the default one."""
    for stack in range(rank - 1):
        for outputs in range(1, rank - stack):
            if (stack, outputs) != (0, 1):
                yield Split(stack, rank - stack - outputs, outputs)


def _fits(call: Activity, parts: tuple[tuple[int, ...], ...]) -> bool:
    (stack, inputs, outputs), (pre, post, pre_error, post_error) = parts, sides_of(call)
    image_error: Any
    if post_error is not None and jnp.shape(post_error) != jnp.shape(post):
        return False
    if isinstance(pre, Patches):
        image_error = pre_error.image if isinstance(pre_error, Patches) else pre_error
        if pre_error is not None and jnp.shape(image_error) != pre.image.shape:
            return False
        (*window, n_in), n_out = inputs, math.prod(outputs)
        groups, rest = divmod(pre.image.shape[-1], n_in) if n_in else (0, 1)
        positions = (*pre.batch, *pre.positions)
        whole = tuple(window) == pre.geometry.window and rest == 0 and groups > 0 and n_out % groups == 0
        stacked = pre.batch[: len(stack)] == stack
        return whole and stacked and jnp.shape(post) == (*positions, n_out) and math.prod(positions) > 0
    if pre_error is not None and jnp.shape(pre_error) != jnp.shape(pre):
        return False
    batches = [_without(jnp.shape(post), outputs), _without(jnp.shape(post), (math.prod(outputs),))]
    for batch in batches:
        if batch is None or math.prod(batch) == 0 or batch[: len(stack)] != stack:
            continue
        if jnp.shape(pre) in ((*batch, *inputs), (*batch, math.prod(inputs))):
            return True
    return False


def _without(shape: tuple[int, ...], end: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns a shape without its last axes if they are `end`, else None."""
    return shape[: len(shape) - len(end)] if shape[-len(end) :] == end else None


def _misfit(name: str, path: str, axes: Axes, shape: Sequence[int], call: Activity) -> str:
    is_shared = isinstance(call.pre, Patches)
    sides = [f"{'the patches' if is_shared else 'pre'} {shape_of(call.pre)}{' of an image' * is_shared}"]
    named = zip(("post", "pre_error", "post_error"), sides_of(call)[1:], strict=True)
    sides += [f"{side} {shape_of(array)}" for side, array in named if array is not None]
    if is_shared:
        needed = (
            "a shared kernel (*window, n_in / groups, n_out) needs ojax.Patches.of(image, window) of images with n_in "
            "channels, the last axis, and post (*batch, *positions, n_out)"
        )
    else:
        kernel = "(n_out, n_in)" if axes.outputs == (0,) else "(n_in, n_out)"
        needed = f"a kernel {kernel} needs pre (..., n_in) and post (..., n_out) with the same, non-empty, leading axes"
    return (
        f"{name}: activity[{path!r}] with {' and '.join(sides)} does not fit the parameter of shape {tuple(shape)}, whose "
        f"{axes.described()}; {needed}, and errors the shapes of their sides. Weights of Equinox and PyTorch need "
        "out_axis=0, their convolutions in_axis=1 too, and stacked ones (of a scan over layers, an ensemble) batch_axis."
    )


def sides_of(call: Activity) -> tuple[Any, ...]:
    """Returns input, output, and the errors of both, which may be None."""
    return call.pre, call.post, call.pre_error, call.post_error


def shape_of(pre: Any) -> tuple[int, ...]:
    """Returns the shape of an input, or of its array of patches."""
    return pre.shape if isinstance(pre, Patches) else jnp.shape(pre)
