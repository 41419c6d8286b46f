"""What layers saw and answered, and how it is matched with the parameters."""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ojax.patches import Patches
from ojax.trees import abbreviated, is_box, leaves_with_keys, named_leaves, path_of


class Activity(NamedTuple):
    """What one layer saw and answered, for one sample or a batch of them.

    An activity tree holds one of these at the path of each plastic kernel, or a tuple with one for each call of the layer.
    All calls count as one batch. An empty tuple says that the layer is not plastic.

    Attributes:
      pre: Presynaptic activity, the layer's input, shape `(..., n_in)`. For a kernel that is shared over the positions of
        an image it is the image's :class:`ojax.Patches`, one for each position.
      post: Postsynaptic activity, the layer's output after its non-linearity, shape `(..., n_out)`. Its leading axes are
        the batch, and are those of `pre`; positions are part of the batch.
    """

    pre: Float[Array, "*batch n_in"] | Patches
    post: Float[Array, "*batch n_out"]


class ActivityAndErrors(NamedTuple):
    """An :class:`Activity` with the errors of the same units, for rules that need them. Every rule takes it as one.

    Attributes:
      pre: As in :class:`Activity`.
      post: The same.
      pre_error: The error of the presynaptic units, the shape of `pre`.
      post_error: The error of the postsynaptic units, the gradient of the loss with respect to their input.
    """

    pre: Float[Array, "*batch n_in"]
    post: Float[Array, "*batch n_out"]
    pre_error: Float[Array, "*batch n_in"]
    post_error: Float[Array, "*batch n_out"]


def is_activity(node: object) -> bool:
    """Whether a node of an activity tree is what a layer saw and answered, for `is_leaf`."""
    return isinstance(node, Activity | ActivityAndErrors)


def is_of(path: str, kernel: str) -> bool:
    """Whether an activity of that path is the kernel's: at its own path, or an entry of the tuple there."""
    return kernel in (path, path.rpartition("/")[0])


def is_masked(node: object) -> bool:
    """Whether a parameter is masked out by `optax.masked`."""
    return isinstance(node, optax.MaskedNode)


def by_parameter(name: str, activity: Any, params: Any, out_axis: int) -> dict[str, list[Any]]:
    """Returns the activities of each kernel, one for each call of its layer, by the path of the parameter.

    Activity of a frozen layer is left out: one whose parameter is masked or None, and, where another part of the network is
    learned, one that has no parameter here.
    """
    parameters = dict(named_leaves(params, _is_placeholder))
    found: dict[str, list[Any]] = {}
    strangers: list[str] = []
    any_frozen = False
    on_purpose: set[str] = set()
    for keys, leaf in leaves_with_keys(activity, is_leaf=lambda node: is_activity(node) or _is_empty(node)):
        path = path_of(keys)
        if _is_empty(leaf):
            on_purpose.add(path)
            continue
        if not is_activity(leaf):
            raise ValueError(f"{name}: activity[{path!r}] is a {type(leaf).__name__}, not an ojax.Activity.")
        prefixes = [path_of(keys[:length]) for length in range(len(keys) + 1)]
        if any(prefix in parameters and _is_placeholder(parameters[prefix]) for prefix in prefixes):
            any_frozen = True  # The kernel, or the part of the network above it.
            continue
        if path not in parameters and keys and isinstance(keys[-1], jax.tree_util.SequenceKey):
            path = path_of(keys[:-1])  # An entry of a tuple, one for each call of the layer.
        if path not in parameters:
            strangers.append(f"activity[{path!r}] with pre {_shape(leaf.pre)} and post {jnp.shape(leaf.post)}")
            continue
        axes_of(name, path, leaf, jnp.shape(parameters[path]), out_axis)
        found.setdefault(path, []).append(leaf)
    kernels = [path for path, leaf in parameters.items() if not _is_placeholder(leaf) and jnp.ndim(leaf) >= 2]
    left_out = [path for path in kernels if path not in found]
    # What layers record has the right paths, so that a path of no parameter is that of a part that is not learned.
    is_recorded = any(is_box(leaf) for leaf in jax.tree.leaves(activity, is_leaf=is_box))
    if strangers and (not found or (left_out and not is_recorded)):
        raise ValueError(
            f"{name}: {strangers[0]} is at the path of no parameter; the parameters are {abbreviated(parameters)}."
        )
    if not found and not any_frozen:
        raise ValueError(
            f"{name}: the activity tree holds no ojax.Activity, so nothing would learn; record one at the path of "
            f"each plastic kernel of {abbreviated(parameters)}."
        )
    # Only Flax's names say that a parameter is a kernel. An embedding has two axes too.
    if silent := [path for path in left_out if path.rpartition("/")[2] == "kernel" and path not in on_purpose]:
        _warn_once(
            f"{name} leaves {abbreviated(silent)} alone: no activity was recorded. Record it (ojax.record, or a layer that "
            "ojax.apply_linen knows), or leave these kernels out on purpose with mask=."
        )
    return found


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _is_empty(node: object) -> bool:
    return isinstance(node, tuple) and not node


def _is_placeholder(node: object) -> bool:
    """Whether it stands for a parameter that is not learned: masked by Optax, or None, as Equinox leaves it."""
    return node is None or is_masked(node)


class Axes(NamedTuple):
    """How a kernel is a matrix (n_in, n_out).

    Attributes:
      order: Its axes, those of the inputs first, which are (*window, n_in) for a kernel shared over positions.
      n_out: The number of outputs.
    """

    order: tuple[int, ...]
    n_out: int


def axes_of(name: str, path: str, activity: Activity | ActivityAndErrors, shape: Sequence[int], out_axis: int) -> Axes:
    """Returns how the kernel at that path is the matrix between both sides of the activity.

    Raises:
      ValueError: If their shapes do not fit.
    """
    found = _axes(activity, shape, out_axis)
    if found is not None:
        return found
    pre, post = _shape(activity.pre), jnp.shape(activity.post)
    other = {-1: ("out_in", 0), 0: ("in_out", -1)}[out_axis]
    advice = f' It fits layout="{other[0]}".' if _axes(activity, shape, other[1]) is not None else ""
    if isinstance(activity.pre, Patches):
        layout = "(*window, n_in / groups, n_out)" if out_axis == -1 else "(n_out, n_in / groups, *window)"
        raise ValueError(
            f"{name}: activity[{path!r}] with the patches {pre} of an image and post {post} does not fit the parameter "
            f"of shape {tuple(shape)}; a shared kernel {layout} needs ojax.Patches.of(image, window) of "
            f"images with n_in channels, the last axis, and post (*batch, *positions, n_out).{advice}"
        )
    layout = "(n_in, n_out)" if out_axis == -1 else "(n_out, n_in)"
    raise ValueError(
        f"{name}: activity[{path!r}] with pre {pre} and post {post} does not fit the parameter of shape {tuple(shape)}; a "
        f"kernel {layout} needs pre (..., n_in) and post (..., n_out) with the same, non-empty, leading axes.{advice}"
    )


def _axes(activity: Activity | ActivityAndErrors, shape: Sequence[int], out_axis: int) -> Axes | None:
    rank, post = len(shape), jnp.shape(activity.post)
    if rank < 2 or not post:
        return None
    if isinstance(activity.pre, Patches):
        order = tuple(range(rank)) if out_axis == -1 else (*range(2, rank), 1, 0)
        fits = _is_shared(activity.pre, post, [shape[axis] for axis in order])
        return Axes(order, post[-1]) if fits else None
    pre = _shape(activity.pre)
    # A kernel of several output axes is one of heads, say. Which of its axes are outputs, the layer's output tells.
    for count in range(1, rank if out_axis == -1 else 2):
        order = tuple(range(rank)) if out_axis == -1 else (*range(1, rank), 0)
        sizes = [shape[axis] for axis in order]
        inputs, outputs, batch = sizes[:-count], tuple(sizes[-count:]), post[: len(post) - count]
        fits = len(post) >= count and post[len(post) - count :] == outputs and math.prod(batch) > 0
        if fits and pre in ((*batch, math.prod(inputs)), (*batch, *inputs)):
            return Axes(order, math.prod(outputs))
    return None


def _is_shared(patches: Patches, post: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a kernel of that shape answers these patches with a `post` of that shape."""
    if len(shape) < 2:
        return False
    *window, n_in, n_out = shape
    groups, rest = divmod(patches.shape[-1], n_in)
    positions = (*patches.batch, *patches.positions)
    whole = tuple(window) == patches.geometry.window and rest == 0 and n_out % groups == 0
    return whole and tuple(post) == (*positions, n_out) and math.prod(positions) > 0


def _shape(pre: Any) -> tuple[int, ...]:
    return pre.shape if isinstance(pre, Patches) else jnp.shape(pre)
