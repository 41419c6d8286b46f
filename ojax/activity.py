"""What layers saw and answered, and how it is matched with the parameters."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ojax.patches import Patches
from ojax.trees import abbreviated, named_leaves, path_of


class Activity(NamedTuple):
    """What one layer saw and answered, for one sample or a batch of them.

    An activity tree holds one of these at the path of each plastic kernel, or, as Flax's `sow` leaves it, a tuple with one
    for each call of the layer. All calls count as one batch.

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
    """The activities of each kernel, one for each call of its layer, by the path of the parameter."""
    parameters = dict(named_leaves(params, is_masked))
    found: dict[str, list[Any]] = {}
    any_masked = False
    for keys, leaf in jax.tree.leaves_with_path(activity, is_leaf=is_activity):
        path = path_of(keys)
        if not is_activity(leaf):
            raise ValueError(f"{name}: activity[{path!r}] is a {type(leaf).__name__}, not an ojax.Activity.")
        if any(is_masked(parameters.get(path_of(keys[:length]))) for length in range(len(keys) + 1)):
            any_masked = True  # The kernel, or the part of the network above it, is masked out.
            continue
        if path not in parameters and keys and isinstance(keys[-1], jax.tree_util.SequenceKey):
            path = path_of(keys[:-1])  # An entry of a tuple, one for each call of the layer.
        if path not in parameters:
            raise ValueError(
                f"{name}: activity[{path!r}] with pre {_shape(leaf.pre)} and post {jnp.shape(leaf.post)} is at "
                f"the path of no parameter; the parameters are {abbreviated(parameters)}."
            )
        _check_shapes(name, path, leaf, jnp.shape(parameters[path]), out_axis)
        found.setdefault(path, []).append(leaf)
    if not found and not any_masked:
        raise ValueError(
            f"{name}: the activity tree holds no ojax.Activity, so nothing would learn; record one at the path of "
            f"each plastic kernel of {abbreviated(parameters)}."
        )
    return found


def _check_shapes(
    name: str, path: str, activity: Activity | ActivityAndErrors, shape: Sequence[int], out_axis: int
) -> None:
    pre, post = _shape(activity.pre), jnp.shape(activity.post)
    if isinstance(activity.pre, Patches):
        if out_axis == -1 and _is_shared(activity.pre, post, shape):
            return
        raise ValueError(
            f"{name}: activity[{path!r}] with the patches {pre} of an image and post {post} does not fit the parameter "
            f"of shape {shape}; a shared kernel (*window, n_in / groups, n_out) needs ojax.Patches.of(image, window) of "
            "images with n_in channels, the last axis, and post (*batch, *positions, n_out)."
        )
    fits = len(shape) >= 2 and len(post) >= 1
    if fits:
        inputs = list(shape)
        n_out, batch = inputs.pop(out_axis), post[:-1]
        fits = post[-1] == n_out and math.prod(batch) > 0 and pre in ((*batch, math.prod(inputs)), (*batch, *inputs))
    if not fits:
        layout = "(n_in, n_out)" if out_axis == -1 else "(n_out, n_in)"
        raise ValueError(
            f"{name}: activity[{path!r}] with pre {pre} and post {post} does not fit the parameter of shape {shape}; a "
            f"kernel {layout} needs pre (..., n_in) and post (..., n_out) with the same, non-empty, leading axes."
        )


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
