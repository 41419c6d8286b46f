"""How the activity, and the errors, of Flax NNX layers are recorded while a network is called."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ojax.activity import Activity
from ojax.patches import seen_by


class Recorded(nnx.Intermediate):
    """The NNX variable type under which activity is sown, apart from a model's other intermediates."""


class Error(nnx.Perturbation):
    """The NNX variable type whose gradient is the error of a layer, that of the loss with respect to `z = x W`."""


def record(layer: nnx.Module, pre: Float[Array, "*batch n_in"], post: Float[Array, "*batch n_out"]) -> None:
    """Records the activity of one layer under the name of its `kernel`; call it where the network is called.

    Outside :func:`with_activity` it does nothing, so a network that records still runs as before::

        def __call__(self, x):
            hidden = nnx.relu(self.encoder(x))
            ojax.record(self.encoder, x, hidden)

    Args:
      layer: The layer whose parameter `kernel` is plastic, an `nnx.Linear` or an `nnx.Conv` say.
      pre: The layer's input, shape (..., n_in); that of a convolution (..., *space, n_in).
      post: The layer's output after the non-linearity, shape (..., n_out).
    """
    # Outside of a capture, `sow` would try to overwrite the kernel itself.
    if hasattr(layer, "__captures__"):
        seen = seen_by(layer, pre) if isinstance(layer, nnx.Conv) else pre
        layer.sow(Recorded, "kernel", Activity(seen, post))


def with_activity(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[Any, nnx.State]:
    """Calls an NNX model and returns its output and its activity, for `tx.update(..., activity=activity)`.

    Args:
      model: A network of ojax layers, or one that calls :func:`record`.
      *args: The model's own arguments.
      **kwargs: The same, by keyword.

    Returns:
      The output and a state with a tuple of :class:`ojax.Activity`, one a call, at the path of each recorded kernel.
    """

    def call(model):
        return model(*args, **kwargs)

    output, activity = nnx.capture(call, Recorded)(model)
    return output, activity


def value_and_grad(loss_fn: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., tuple[tuple, nnx.State]]:
    """`nnx.value_and_grad` that also returns the network's activity, for a loss function as it was before Oja.

    It is used as::

        (loss, activity), grads = ojax.value_and_grad(loss_fn)(model, x, y)
        optimizer.update(model, grads, activity=activity)

    Args:
      loss_fn: `loss_fn(model, *args, **kwargs)` returns the loss, a scalar. The model is a network of ojax layers, or one
        that calls :func:`record`.
      has_aux: Whether it returns a pair, the loss and anything else.

    Returns:
      A function of the same arguments that returns `(loss, activity), grads`, or `(loss, aux, activity), grads` with
      `has_aux`. The gradients are those of the model's `nnx.Param`; the activity is as from :func:`with_activity`.
    """

    def with_grads(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[tuple, nnx.State]:
        def loss_and_activity(model):
            found, activity = nnx.capture(lambda model: loss_fn(model, *args, **kwargs), Recorded)(model)
            loss, *aux = found if has_aux else (found,)
            return loss, (*aux, activity)

        try:
            (loss, others), grads = nnx.value_and_grad(loss_and_activity, has_aux=True)(model)
            jax.tree.map(jnp.negative, others[-1])  # Whether the activity may be used here.
        except jax.errors.UnexpectedTracerError:
            raise ValueError(
                "A layer recorded its activity inside of jax.vmap, lax.scan or the like: call the network on the whole "
                "batch, or take vmap outside of ojax.value_and_grad."
            ) from None
        return (loss, *others), grads

    return with_grads


def with_errors(loss_fn: Callable[..., Array], model: nnx.Module, *args: Any) -> tuple[nnx.State, nnx.State]:
    """The activity of a network of :class:`Dense` layers and the error that its feedback sends to each.

    Args:
      loss_fn: `loss_fn(model, *args)` returns the loss of each sample; the sum of any array will be taken.
      model: The network; it is left as it is.
      *args: The rest of the loss function's arguments, a batch of samples.

    Returns:
      The activity, as from :func:`with_activity`, and a state with each layer's `error`, shape (batch, n_out): the
      (pseudo-)gradient of each sample's own loss with respect to `z = x W`.
    """
    graphdef, variables = nnx.split(model)

    def loss(model):
        return jnp.sum(loss_fn(model, *args))  # Not the mean: each sample's error is then its own loss's gradient.

    def loss_and_activity(taps):
        # Flax forbids changing a model that was made outside of the gradient, so a fresh one is merged here.
        return nnx.capture(loss, Recorded, init=taps)(nnx.merge(graphdef, variables))

    _, taps = nnx.capture(loss, Error)(nnx.merge(graphdef, variables))
    errors, activity = jax.grad(loss_and_activity, has_aux=True)(taps)
    return activity, errors
