"""Records the activity of unchanged Flax Linen networks by intercepting their layers."""

from collections.abc import Callable, Mapping
from functools import partial
from types import EllipsisType
from typing import Any

import jax.numpy as jnp
import optax
from flax import linen
from flax.linen.recurrent import DenseParams
from flax.training import train_state
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, PyTree

from ojax import recorder
from ojax.activity import Activity
from ojax.patches import seen_by, why_no_patches
from ojax.trees import abbreviated

Nonlinearities = Callable[[str, Array], Array | None] | Mapping[str | EllipsisType, Callable[[Array], Array] | None]


class TrainState(train_state.TrainState):
    """Flax's TrainState, whose `apply_gradients` also takes the activity and the signals of a rule."""

    def apply_gradients(
        self, *, grads: PyTree, activity: PyTree = None, signals: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> "TrainState":
        """Updates the parameters, as in Flax.

        Args:
          grads: The gradients.
          activity: The activity tree, of :func:`apply_linen`.
          signals: Other keywords of `tx.update`, e.g. a reward.
          **kwargs: Fields of the state to replace, as in Flax.
        """
        given = {**({} if activity is None else {"activity": activity}), **(signals or {})}
        tx = optax.GradientTransformationExtraArgs(self.tx.init, partial(self.tx.update, **given))
        state = super(TrainState, self.replace(tx=tx)).apply_gradients(grads=grads, **kwargs)
        return state.replace(tx=self.tx)


def apply_linen(
    model: linen.Module, variables: PyTree, *args: Any, post: Nonlinearities, **kwargs: Any
) -> tuple[Any, PyTree]:
    """Applies an unchanged Linen model and returns its output and the activity of its layers.

    It records `nn.Dense`, `nn.DenseGeneral`, `nn.Conv`, `nn.ConvTranspose` and all modules that consist of them, such as
    attention and recurrent cells. They may be inside of `nn.RNN`, `nn.scan`, `nn.vmap`, `nn.remat` and `nn.WeightNorm`. A
    batch of `nn.vmap` and the steps of `nn.scan` become a leading axis.

    The model applies its non-linearities outside of its layers, so pass them as `post`::

        ojax.apply_linen(model, variables, x, post={"Dense_2": nn.softmax, ...: nn.relu})

    Args:
      model: Any Linen model with such layers.
      variables: As for `model.apply`; the activity's paths are those of `variables["params"]`.
      *args: The model's own arguments.
      **kwargs: The model's own keyword arguments, and those of `model.apply` such as `rngs` and `mutable`.
      post: The non-linearity of each layer by its path, with `...` for all other layers; or a function from a layer's path
        and its output to its postsynaptic activity. None for a non-linearity, or for its result, leaves the layer out.

    Returns:
      The result of `model.apply`, and the activity tree.

    Raises:
      ValueError: If `post` is a mapping that lacks a layer and has no `...`, or names a layer that is not recorded; or if a
        layer is inside of `nn.cond` or `nn.while_loop`.
    """
    layers: set[str] = set()

    def postsynaptic(path: str, z: Array) -> Array | None:
        layers.add(path)
        if not isinstance(post, Mapping):
            try:
                return post(path, z)
            except TypeError as error:
                raise TypeError(
                    "post is called as post(path, output), and fails. One non-linearity for all layers is post={...: f}."
                ) from error
        if path not in post and ... not in post:
            raise ValueError(f"post has no non-linearity for the layer {path!r}: add it, or `...` for all other layers.")
        nonlinearity = post[path] if path in post else post[...]
        return None if nonlinearity is None else nonlinearity(z)

    called: list[linen.Module] = []

    def record(call, call_args, call_kwargs, context):
        before, layer = len(called), context.module
        output = call(*call_args, **call_kwargs)
        if context.method_name != "__call__" or any(each is layer for each in called[before:]):
            return output  # A subclass has called Flax's own layer, which was recorded.
        called.append(layer)
        sides = _sides(layer, call_args[0] if call_args else call_kwargs.get("inputs"), output)
        if sides is not None:
            activated = postsynaptic("/".join(layer.path), sides[1])
            recorder.note((0, *layer.path, "kernel"), () if activated is None else Activity(sides[0], activated))
        return output

    def apply(variables: PyTree) -> Any:
        with linen.intercept_methods(record):
            return model.apply(variables, *args, **kwargs)

    output, notes = recorder.collect(apply, variables)
    unknown = [name for name in post if name is not ... and name not in layers] if isinstance(post, Mapping) else []
    if unknown:
        raise ValueError(f"post names {abbreviated(unknown)}, no recorded layer; they are {abbreviated(sorted(layers))}.")
    activity: dict[tuple, tuple] = {}
    for (_, *path), sides, _ in notes:
        activity[tuple(path)] = activity.get(tuple(path), ()) + ((sides,) if sides else ())
    return output, unflatten_dict(activity)


def _sides(layer: linen.Module, inputs: Any, output: Any) -> tuple[Any, Array] | None:
    """Returns the kernel's input and the product with its bias; None for a layer that is not recorded."""
    if isinstance(layer, linen.Dense):
        return inputs, output
    if isinstance(layer, linen.DenseGeneral):
        axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
        return None if layer.batch_dims else (jnp.moveaxis(inputs, axes, range(-len(axes), 0)), output)
    if isinstance(layer, linen.Conv | linen.ConvTranspose):
        return None if why_no_patches(layer) else (seen_by(layer, inputs), output)
    if isinstance(layer, DenseParams):  # From nn.OptimizedLSTMCell, which multiplies by all of its kernels at once.
        kernel, bias = output
        return inputs, inputs @ kernel + (0 if bias is None else bias)
    return None
