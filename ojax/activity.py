"""The inputs and outputs of layers, and their matching with the parameters."""

import dataclasses
import functools
import re
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ojax.patches import Patches
from ojax.trees import abbreviated, is_box, leaves_with_keys, named_leaves, path_of

# Parameters with these names are not kernels, even with two axes, as in stacked layers. A number is not a name.
_NO_KERNEL = re.compile(r"bias|scale|embed|lora|^(mean|var|\d*)$")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activity:
    """One layer's input and output, and its errors if a rule reads them, for one sample or a batch of samples.

    It unpacks as a pair, `pre, post = activity`. An activity tree holds one of these at the path of each plastic kernel, or
    a tuple with one per call of the layer. All calls count as one batch. An empty tuple marks a layer as not plastic.

    Attributes:
      pre: Presynaptic activity, the layer's input, shape `(..., n_in)`. For a convolution it is the image's
        :class:`ojax.Patches`, one patch per position.
      post: Postsynaptic activity, the layer's output after its non-linearity, shape `(..., n_out)`. Its leading axes are
        the batch, equal to those of `pre`; positions are part of the batch.
      pre_error: The error of the presynaptic units, the shape of `pre` (of the image of patches); None if not recorded.
      post_error: The error of the postsynaptic units, the gradient of each sample's loss with respect to `z = x W`, the
        shape of `post`; None if not recorded.
    """

    pre: Float[Array, "*batch n_in"] | Patches
    post: Float[Array, "*batch n_out"]
    pre_error: Float[Array, "*batch n_in"] | Patches | None = None
    post_error: Float[Array, "*batch n_out"] | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.pre, self.post))


def is_activity(node: object) -> bool:
    """Returns whether a node of an activity tree is an :class:`Activity`, for `is_leaf`."""
    return isinstance(node, Activity)


def is_of(path: str, kernel: str) -> bool:
    """Returns whether an activity's path is the kernel's own path or an entry of the tuple there."""
    return kernel in (path, path.rpartition("/")[0])


def is_masked(node: object) -> bool:
    """Returns whether a parameter is masked out by `optax.masked`."""
    return isinstance(node, optax.MaskedNode)


def by_parameter(name: str, activity: Any, params: Any) -> dict[str, list[Activity]]:
    """Returns the activities of each kernel, one per call of its layer, by the path of the parameter.

    Layers that are not learned are left out: their parameter is masked or None, or, if only a part of the network is
    learned, missing. A warning lists the kernels without activity; kernels are recognized by their names and axes.

    Raises:
      ValueError: If an activity is at the path of no parameter, no activity was recorded, or two parameters share a path.
    """
    named = named_leaves(params, _is_placeholder)
    parameters = dict(named)
    if len(parameters) < len(named):
        twice = next(path for number, (path, _) in enumerate(named) if path in dict(named[:number]))
        raise ValueError(f"{name}: two parameters have the path {twice!r}; rename one.")
    found: dict[str, list[Activity]] = {}
    strangers, frozen, on_purpose = list[str](), list[str](), set[str]()
    for keys, leaf in leaves_with_keys(activity, is_leaf=lambda node: is_activity(node) or _is_empty(node)):
        path = path_of(keys)
        if _is_empty(leaf):
            on_purpose.add(path)
            continue
        if not is_activity(leaf):
            raise ValueError(
                f"{name}: activity[{path!r}] is a {type(leaf).__name__}, not an ojax.Activity(pre, post): put one at "
                "the path of each plastic kernel."
            )
        if any(_is_placeholder(parameters.get(path_of(keys[:length]), ...)) for length in range(len(keys) + 1)):
            frozen.append(path)  # The kernel, or the part of the network above it, is not learned.
            continue
        if path not in parameters and keys and isinstance(keys[-1], jax.tree_util.SequenceKey):
            path = path_of(keys[:-1])  # An entry of a tuple, one for each call of the layer.
        if path not in parameters:
            pre = leaf.pre.shape if isinstance(leaf.pre, Patches) else jnp.shape(leaf.pre)
            strangers.append(f"activity[{path!r}] with pre {pre} and post {jnp.shape(leaf.post)}")
            continue
        found.setdefault(path, []).append(leaf)
    left = [path for path, leaf in parameters.items() if not _is_placeholder(leaf)]
    # A parameter may be a function too, an activation function of Equinox say.
    silent = [path for path in left if path not in found and len(getattr(parameters[path], "shape", ())) >= 2]
    # Layers record at the right paths. A recorded path without a parameter thus belongs to a part that is not learned.
    is_recorded = any(is_box(leaf) for leaf in jax.tree.leaves(activity, is_leaf=is_box))
    if strangers and (not found or (silent and not is_recorded)):
        known = "one array without a path" if left == [""] else abbreviated(left) or "none"
        raise ValueError(f"{name}: {strangers[0]} is at the path of no parameter; the parameters are {known}.")
    if not found and frozen:
        raise ValueError(
            f"{name} would change nothing: its mask or partition leaves it {abbreviated(left) or 'no parameter'}, and "
            f"the activity is of {abbreviated(frozen)}. Let it have a kernel with an activity, or leave the rule out."
        )
    if not found:
        raise ValueError(
            f"{name}: the activity tree holds no ojax.Activity, so nothing would learn; record one at the path of "
            f"each plastic kernel of {abbreviated(left)}. A network's layers record if the network itself is the argument "
            "of ojax.value_and_grad or ojax.with_activity, not its state."
        )
    forgotten = [path for path in silent if not _NO_KERNEL.search(path.rpartition("/")[2]) and path not in on_purpose]
    if forgotten and all(jnp.ndim(parameters[path]) >= 2 for path in found):  # A bias with an activity is an error anyway.
        _warn_once(
            f"{name} leaves {abbreviated(forgotten)} alone: no activity was recorded. Record it (ojax.record, or a layer "
            "that ojax.apply_linen knows), or leave these parameters out on purpose with mask=."
        )
    return found


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _is_empty(node: object) -> bool:
    return isinstance(node, tuple) and not node


def _is_placeholder(node: object) -> bool:
    """Whether a node replaces a parameter that is not learned: masked by Optax, or None as in Equinox."""
    return node is None or is_masked(node)
