"""Flax NNX layers whose activity tree has the paths of their parameters.

:class:`Dense` and :class:`Conv` record their own activity; :class:`ojax.MLP` and :class:`ojax.CNN` consist of these layers.
A custom NNX network needs one line per layer, :func:`record`. A Linen network needs none, see :func:`ojax.apply_linen`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ojax import feedback
from ojax.patches import Patches
from ojax.recording import Error as Error
from ojax.recording import Recorded as Recorded
from ojax.recording import record, with_activity, with_tap
from ojax.recording import value_and_grad as value_and_grad
from ojax.recording import with_errors as with_errors

Activation = Callable[[Array], Array]
Initializer = Callable[..., Array]

glorot_uniform: Initializer = jax.nn.initializers.glorot_uniform()


def softplus(z: Float[Array, "..."], beta: float = 10.0) -> Float[Array, "..."]:
    """Softplus of sharpness beta, `log(1 + exp(beta z)) / beta`; its derivative at y = f(z) is `1 - exp(-beta y)`.

    Source: Shervani-Tabar et al., https://arxiv.org/abs/2210.16414, the networks' non-linearity, with beta = 10.
    """
    # On an image, XLA's innermost loop would run over its few channels, six times as slowly on a CPU. A size of -1 fails
    # for an empty batch.
    rows = z.reshape(z.shape[0], math.prod(z.shape[1:])) if jnp.ndim(z) > 2 else z
    return _softplus(rows, beta).reshape(jnp.shape(z))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softplus(z: Array, beta: float) -> Array:
    steep = beta * z
    return (jnp.maximum(steep, 0) + jnp.log1p(_small_exponential(steep))) / _not_folded(beta, z)


@_softplus.defjvp
def _softplus_jvp(beta, primals, tangents):
    """Computes the derivative, a sigmoid, from the softplus's own exponential; precise where it is small."""
    (z,), (tangent,) = primals, tangents
    steep = beta * z
    small = _small_exponential(steep)
    # The division comes last, so that XLA materializes the error too, see `_not_folded`.
    return _softplus(z, beta), tangent / (1 + small) * jnp.where(steep >= 0, 1, small)


def _small_exponential(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `exp(-|z|)`, in a form whose derivatives are correct at 0 too."""
    return jnp.exp(jnp.where(z >= 0, -z, z))


def _not_folded(number: float, z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the number, or NaN where z is NaN.

    XLA turns division by a constant into a multiplication and fuses it into every reader of the quotient y, recomputing it
    on each pass over the weights. A divisor that XLA cannot fold keeps y materialized, which saves about a sixth of CPU
    training time. No NaN is created for this, since `jax_debug_nans` would report it.
    """
    constant = lax.stop_gradient(z)
    return jnp.where(jnp.isnan(constant), constant, number)


def linear(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns z: the activation of a linear read-out."""
    return z


@jax.custom_vjp
def without_error(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x, and sends no error back through it in a gradient by `jax.grad` or `jax.vjp`.

    Use it instead of `lax.stop_gradient` if a whole training is differentiated, see :func:`ojax.online.learn`:
    `lax.stop_gradient` would also block the gradient through the training.
    """
    return x


without_error.defvjp(lambda x: (x, None), lambda _, error: (jnp.zeros_like(error),))


class Dense(nnx.Module):
    """A plastic layer `y = f(norm(x W))` that records its activity.

    Attributes:
      kernel: `W`, shape (n_in, n_out), Flax's layout.
      bias: Shape (n_out,), or None.
      feedback: Fixed weights of the kernel's shape, through which the error goes back; None if it goes back through the
        kernel.
      normalization: A layer that normalizes `z` before the non-linearity, or None.
    """

    window: tuple[int, ...] = ()  # The axes of the kernel before the last two.

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        activation: Activation = softplus,
        kernel_init: Initializer = glorot_uniform,
        feedback_init: Initializer | None = None,
        normalization: Callable[..., nnx.Module] | None = None,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        shape = (*self.window, n_in, n_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32)) if use_bias else None
        self.feedback = feedback_init and feedback.Feedback(feedback_init(rngs.feedback(), shape, jnp.float32))
        # A separate random stream: adding normalization does not change a seed's kernels.
        self.normalization = normalization and normalization(n_out, rngs=nnx.Rngs(rngs.normalization()))
        self.activation = activation

    def pre(self, x: Array) -> Any:
        """The kernel's input."""
        return x

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """The layer's output after its non-linearity."""
        z = self.preactivation(x)
        y = self.activation(z if self.normalization is None else self.normalization(z))
        record(self, self.pre(x), y)
        return y

    def preactivation(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """Returns `z = x W`, plus the bias if there is one, before any normalization; records no activity."""
        pre, kernel = self.pre(x), self.kernel[...]
        z = pre @ kernel if self.feedback is None else feedback.matmul(pre, kernel, self.feedback[...])
        z = z if self.bias is None else z + jnp.expand_dims(self.bias[...], range(z.ndim - 1))
        return with_tap(self, z)


class Conv(Dense):
    """A plastic convolution, `y = f(norm(x * W))`, with all features of :class:`Dense`.

    Channels come last: the image has shape (..., *space, n_in), the output (..., *positions, n_out). The kernel has Flax's
    shape, (*window, n_in, n_out). `nnx.LayerNorm` normalizes the channels of each position separately; :class:`BatchNorm`
    treats the positions as a batch.

    Args:
      n_in: Channels of the image.
      n_out: Channels of the output.
      window: Size of the kernel along each spatial axis, `(3, 3)`.
      strides: Steps between positions; above 1 they pool.
      padding: As in `nnx.Conv`.
      **options: The other arguments of :class:`Dense`.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        window: Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence[int | tuple[int, int]] = "SAME",
        **options: Any,
    ):
        self.window, self.strides, self.padding = tuple(window), strides, padding
        super().__init__(n_in, n_out, **options)

    def pre(self, x: Float[Array, "*batch_and_space n_in"]) -> Patches:
        """The patches that the kernel multiplies."""
        return Patches.of(x, self.window, strides=self.strides, padding=self.padding)


class BatchNorm(nnx.BatchNorm):
    """Batch normalization that also learns online: one sample is normalized by running statistics that include it.

    With a single sample the batch's own variance is zero. Its running mean and variance (momentum 0.99: the last 100
    samples or so) are used instead, in learning and evaluation, and the gradient treats them as constants. Batches of two
    samples and more are normalized as in `nnx.BatchNorm`.

    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; running statistics in training as in Chiley et al.
    2019, https://arxiv.org/abs/1905.05894, without their correction of the gradient.
    """

    def __call__(self, x: Float[Array, "*batch n"], use_running_average: bool | None = None, **options: Any) -> Array:
        """Normalizes the input; in training (`model.train()`, the default) it also updates the running statistics."""
        training = not (self.use_running_average if use_running_average is None else use_running_average)
        online = training and x.size == x.shape[-1]
        if online:
            sample, kept = without_error(x.reshape(-1)), self.momentum
            mean = kept * self.mean[...] + (1 - kept) * sample
            self.var[...] = kept * self.var[...] + (1 - kept) * (sample - mean) * (sample - self.mean[...])
            self.mean[...] = mean
        return super().__call__(x, use_running_average=online or use_running_average, **options)


def without_feedback(model: Any) -> Any:
    """Returns a copy of an MLP or a CNN that learns by backprop: its gradient is the true one."""
    model = nnx.clone(model)
    model.direct_feedback = None
    for layer in model.layers:
        layer.feedback = None
    return model


class Functions(NamedTuple):
    """An NNX model as pure functions of pytrees of arrays, for :mod:`ojax.online`.

    Attributes:
      init: `init(key) -> (params, state)`: the parameters, and the model's other variables (running statistics, feedback
        weights; an empty tree if there are none).
      apply: `apply(params, state, *inputs, training=False) -> (output, activity, state)`, the model in training or in
        evaluation mode, and its state after the call.
      merge: `merge(params, state) -> model`, in evaluation mode.
    """

    init: Callable[[PRNGKeyArray], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Any, PyTree, PyTree]]
    merge: Callable[[PyTree, PyTree], Any]


def as_functions(make: Callable[[nnx.Rngs], nnx.Module]) -> Functions:
    """Turns an NNX model that records its activity into the pure functions that :mod:`ojax.online` maps over runs.

    The key of `init` seeds the stream `params`. All other streams, such as the feedback weights', have another key, so a
    seed's parameters do not depend on other random draws.

    Args:
      make: Makes the model, `lambda rngs: ojax.MLP([784, 100, 10], rngs=rngs)`.

    Returns:
      Its :class:`Functions`.
    """
    # Only the structure is needed, so no weights are drawn. A model may store the streams, so they are named as in `init`.
    shaped = nnx.eval_shape(lambda: make(nnx.Rngs(0, params=0)))
    graphdefs = {}
    for training in (False, True):
        shaped.train() if training else shaped.eval()
        graphdefs[training] = nnx.graphdef(shaped)

    def split(model: nnx.Module) -> tuple[PyTree, PyTree]:
        _, params, state = nnx.split(model, nnx.Param, ...)
        return nnx.as_pure(params), nnx.as_pure(state)

    def init(key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        return split(make(nnx.Rngs(jax.random.fold_in(key, 1), params=key)))

    def apply(params: PyTree, state: PyTree, *inputs: Any, training: bool = False) -> tuple[Any, PyTree, PyTree]:
        model = nnx.merge(graphdefs[training], params, state)
        output, activity = with_activity(model, *inputs)
        return output, nnx.as_pure(activity), split(model)[1]

    return Functions(init, apply, merge=lambda params, state: nnx.merge(graphdefs[False], params, state))
