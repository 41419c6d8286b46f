"""Feedback pathways that send the error to the layers below, in place of the transposed forward weights.

Both are custom backward passes, so that `jax.grad` gives the pseudo-gradient and every optimizer works on it unchanged.
Feedback weights are constants: their own gradient is zero, and a network keeps them out of its parameters.
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float


class Feedback(nnx.Variable):
    """The NNX variable type of fixed feedback weights: part of a network's state, never of its parameters."""


@jax.custom_vjp
def matmul(
    x: Float[Array, "*batch n_in"], kernel: Float[Array, "n_in n_out"], feedback: Float[Array, "n_in n_out"]
) -> Float[Array, "*batch n_out"]:
    """Returns `x @ kernel`, whose error goes back through `feedback` instead of `kernel`: feedback alignment.

    The gradient of `x` is `error @ feedback.T`; the gradient of `kernel` is `x.T @ error`, as in backprop. With `feedback =
    kernel` this is backprop. If `x` is the patches of an image, `ojax.Patches.of(image, (3, 3))`, it is a convolution, and
    its error goes back through the transposed convolution with `feedback`.

    Source: Lillicrap et al. 2016, https://doi.org/10.1038/ncomms13276, where B has the shape of the transposed weights.
    """
    return x @ kernel


def _matmul_forward(x, kernel, feedback):
    return x @ kernel, (x, kernel, feedback)


def _matmul_backward(residuals, error):
    x, kernel, feedback = residuals
    # For an image's patches JAX then uses the products that are fast under a gradient; see :mod:`ojax.patches`.
    (to_x,) = jax.vjp(lambda x: x @ feedback, x)[1](error)
    (to_kernel,) = jax.vjp(lambda kernel: x @ kernel, kernel)[1](error)
    return to_x, to_kernel, jax.numpy.zeros_like(feedback)


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def direct(
    logits: Float[Array, "*batch classes"],
    hidden: Sequence[Float[Array, "*batch n"]],
    feedback: Sequence[Float[Array, "n classes"]],
) -> Float[Array, "*batch classes"]:
    """Returns `logits` unchanged, and sends their error directly to each hidden layer: direct feedback alignment.

    The gradient of the output `hidden[l]` is `error @ feedback[l].T`. Each layer must read the layer below through
    :func:`ojax.modules.without_error`; otherwise the layer below also receives the back-propagated error.

    Source: Nøkland 2016, https://arxiv.org/abs/1609.01596, equation 5.
    """
    return logits


def _direct_forward(logits, hidden, feedback):
    return logits, (hidden, feedback)


def _direct_backward(residuals, error):
    hidden, feedback = residuals
    sent = [jax.linear_transpose(lambda x, B=B: x @ B, x)(error)[0] for x, B in zip(hidden, feedback, strict=True)]
    return error, type(hidden)(sent), jax.tree.map(jax.numpy.zeros_like, feedback)


direct.defvjp(_direct_forward, _direct_backward)
