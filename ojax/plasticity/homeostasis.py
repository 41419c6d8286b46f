"""Gain homeostasis: weights are scaled until a layer's output has the norm of its input."""

from typing import Unpack

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ojax.patches import Patches
from ojax.plasticity.layer import Layer
from ojax.plasticity.rule import Options, check_rate, rule, takes_options


@takes_options
def homeostasis(
    rate: optax.ScalarOrSchedule,
    *,
    per: str = "layer",
    **options: Unpack[Options],
) -> optax.GradientTransformationExtraArgs:
    """Adds gain homeostasis to the updates: it scales the weights until the output has the norm of the input.

    Per layer it adds::

        rate * W * (|x|^2 - |y|^2) / (|x|^2 + |y|^2)        averaged over the batch

    and per neuron, to the weights `w_i` of neuron i (column i of the kernel)::

        rate * w_i * (|x|^2 / n_out - y_i^2) / (|x|^2 / n_out + y_i^2)        averaged over the batch

    A ratio is 0 if both of its norms are 0. For a convolution `|x|^2` is the squared norm of a whole image, `|y|^2` the
    squared norm of the output at all positions, `y_i^2` the squared norm of channel i, and n_out the number of channels.

    It is inspired by synaptic scaling, which is slow and acts in each neuron separately. Per layer it is not a local rule:
    a synapse would need the activity of the whole layer. Per neuron it needs the norm of the layer's input.

    Args:
      rate: A float, a traced scalar, or an Optax schedule of the count of updates. An update changes the weights by at most
        this fraction.
      per: `layer` or `neuron`.
      **options: Those that every rule takes, see :func:`ojax.plasticity.rule`: `mask`, `in_axis`, `out_axis` (0 for Equinox
        and PyTorch), `batch_axis`, `axis_name` and `signals`.

    Returns, Raises: As :func:`ojax.plasticity.rule`. A negative rate or another `per` is refused.

    References:
      Inspired by Turrigiano, Leslie, Desai, Rutherford, Nelson, "Activity-dependent scaling of quantal amplitude in
      neocortical neurons", Nature 391, 1998.
    """
    check_rate("ojax.homeostasis", rate, lowest=0)
    if per not in ("layer", "neuron"):
        raise ValueError(f"ojax.homeostasis: per must be 'layer' or 'neuron', got {per!r}.")

    def change(layer: Layer) -> Array:
        pre, post = _square_norms(layer)
        if per == "layer":
            return layer.kernel * jnp.mean(_imbalance(pre, jnp.sum(post, axis=1)))
        by_neuron = _imbalance(pre[:, None] / post.shape[1], post)
        return layer.kernel * jnp.mean(by_neuron, axis=0)[None, :]

    return rule(change, rate, name="ojax.homeostasis", **options)


def _square_norms(layer: Layer) -> tuple[Float[Array, " samples"], Float[Array, "samples n_out"]]:
    """Returns the squared norms of each sample's input and outputs. For a convolution a sample is an image."""
    if not layer.images:
        return jnp.sum(layer.pre**2, axis=1), layer.post**2
    of_image, of_channel = [], []
    for pre, post in layer.images:
        assert isinstance(pre, Patches)
        of_image.append(jnp.sum(pre.image**2, axis=tuple(range(1, pre.image.ndim))))
        of_channel.append(jnp.sum(post**2, axis=tuple(range(1, post.ndim - 1))))
    return jnp.concatenate(of_image), jnp.concatenate(of_channel)


def _imbalance(pre: Array, post: Array) -> Array:
    total = pre + post
    return jnp.where(total > 0, (pre - post) / jnp.where(total > 0, total, 1), 0)
