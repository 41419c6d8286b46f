"""The inputs and outputs of layers, and how they are matched with the parameters."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ojax.patches import Patches
from ojax.trees import abbreviated, named_leaves, path_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activity:
    """One layer's input and output, and its errors if a rule reads them, for one sample or a batch of samples.

    It unpacks as a pair, `pre, post = activity`. An activity tree holds one of these at the path of each plastic kernel, or
    a tuple with one per call of the layer. All calls count as one batch.

    Attributes:
      pre: Presynaptic activity, the layer's input, shape `(..., n_in)`. For a kernel that is shared over the positions of
        an image it is the image's :class:`ojax.Patches`, one for each position.
      post: Postsynaptic activity, the layer's output after its non-linearity, shape `(..., n_out)`. Its leading axes are
        the batch, and are those of `pre`; positions are part of the batch.
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
    """Whether a node of an activity tree is an :class:`Activity`, for `is_leaf`."""
    return isinstance(node, Activity)


def is_of(path: str, kernel: str) -> bool:
    """Whether an activity of that path is the kernel's: at its own path, or an entry of the tuple there."""
    return kernel in (path, path.rpartition("/")[0])


def is_masked(node: object) -> bool:
    """Whether a parameter is masked out by `optax.masked`."""
    return isinstance(node, optax.MaskedNode)


def by_parameter(name: str, activity: Any, params: Any) -> dict[str, list[Activity]]:
    """Returns the activities of each kernel, one per call of its layer, by the path of the parameter.

    Raises:
      ValueError: If one is at the path of no parameter, or there is none.
    """
    parameters = dict(named_leaves(params, is_masked))
    found: dict[str, list[Activity]] = {}
    masked: list[str] = []
    for keys, leaf in jax.tree.leaves_with_path(activity, is_leaf=is_activity):
        path = path_of(keys)
        if not is_activity(leaf):
            raise ValueError(f"{name}: activity[{path!r}] is a {type(leaf).__name__}, not an ojax.Activity.")
        if any(is_masked(parameters.get(path_of(keys[:length]))) for length in range(len(keys) + 1)):
            masked.append(path)  # The kernel, or the part of the network above it, is masked out.
            continue
        if path not in parameters and keys and isinstance(keys[-1], jax.tree_util.SequenceKey):
            path = path_of(keys[:-1])  # An entry of a tuple, one for each call of the layer.
        if path not in parameters:
            pre = leaf.pre.shape if isinstance(leaf.pre, Patches) else jnp.shape(leaf.pre)
            raise ValueError(
                f"{name}: activity[{path!r}] with pre {pre} and post {jnp.shape(leaf.post)} is at "
                f"the path of no parameter; the parameters are {abbreviated(parameters)}."
            )
        found.setdefault(path, []).append(leaf)
    if not found:
        left = [path for path, leaf in parameters.items() if not is_masked(leaf)]
        if masked:
            raise ValueError(
                f"{name} would change nothing: its mask or partition leaves it {abbreviated(left) or 'no parameter'}, and "
                f"the activity is of {abbreviated(masked)}. Let it have a kernel with an activity, or leave the rule out."
            )
        raise ValueError(
            f"{name}: the activity tree holds no ojax.Activity, so nothing would learn; record one at the path of "
            f"each plastic kernel of {abbreviated(left)}."
        )
    return found
