"""Flax Linen networks, as they are: their activity is recorded by intercepting their layers."""

from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any

from flax import linen
from jaxtyping import Array, PyTree

from ojax.activity import Activity
from ojax.patches import seen_by

Nonlinearities = Callable[[str, Array], Array] | Mapping[str | EllipsisType, Callable[[Array], Array]]


def apply_linen(
    model: linen.Module,
    variables: PyTree,
    *args: Any,
    post: Nonlinearities,
    mutable: Sequence[str] = (),
    **kwargs: Any,
) -> tuple[Any, PyTree]:
    """Applies an unchanged Linen model and returns its output and the activity of each `nn.Dense` and `nn.Conv`.

    The model applies its non-linearities outside of its layers, so `post` says what they are::

        ojax.apply_linen(model, variables, x, post={"Dense_2": nn.softmax, ...: nn.relu})

    Args:
      model: Any Linen model with such layers.
      variables: As for `model.apply`; the activity's paths are those of `variables["params"]`.
      *args: The model's own arguments.
      **kwargs: The same, by keyword, and `rngs` and the like for `model.apply`.
      post: The non-linearity of each layer by its path, with `...` for all other layers; or a function from a layer's path
        and its output to its postsynaptic activity.
      mutable: Collections that the model itself changes, `["batch_stats"]` say.

    Returns:
      What `model.apply` returns (with `mutable`, its pair with the changed collections), and the activity tree.

    Raises:
      ValueError: If `post` is a mapping without the path of some layer, and without `...`, or a convolution is masked.
    """

    def postsynaptic(path: str, z: Array) -> Array:
        if not isinstance(post, Mapping):
            return post(path, z)
        if path not in post and ... not in post:
            raise ValueError(f"post has no non-linearity for the layer {path!r}: add it, or `...` for all other layers.")
        return (post[path] if path in post else post[...])(z)

    def sow_activity(call, call_args, call_kwargs, context):
        z = call(*call_args, **call_kwargs)
        layer = context.module
        if isinstance(layer, linen.Dense | linen.Conv) and context.method_name == "__call__":
            pre = call_args[0] if call_args else call_kwargs["inputs"]
            pre = seen_by(layer, pre) if isinstance(layer, linen.Conv) else pre
            layer.sow("activity", "kernel", Activity(pre, postsynaptic("/".join(layer.path), z)))
        return z

    with linen.intercept_methods(sow_activity):
        output, changed = model.apply(variables, *args, mutable=[*mutable, "activity"], **kwargs)
    activity = changed.get("activity", {})
    changed = {name: collection for name, collection in changed.items() if name != "activity"}
    return ((output, changed) if mutable else output), activity
