"""The pool of ten local rules from which a rule is meta-learned.

A rule is a function of one :class:`Layer`: its kernel, the activity on both sides of it, and the errors of these same
units. It returns the change for a coefficient of 1, averaged over the batch: an array of the kernel's shape, or an
:class:`Outer`. A change of :mod:`ojax.changes` becomes one by `lambda layer: hebb(layer.kernel, layer.pre, layer.post)`.

In the paper W has shape (n_out, n_in), so that its `e_l y_{l-1}^T` is `pre^T post_error` here. All terms with an error
have a minus sign, so that a positive coefficient of the pseudo-gradient descends; Oja's rule has a plus sign, so that a
positive coefficient is Oja's, and a negative one is anti-Oja. (The first version of the authors' code subtracted it.)

Source: Shervani-Tabar and Rosenbaum 2023, https://doi.org/10.1038/s41467-023-37562-1, equations 14 to 23.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Layer:
    """What a rule sees of a layer, for a batch of samples.

    Attributes:
      kernel: W, shape (n_in, n_out).
      pre: The layer's input y_{l-1}, shape (batch, n_in).
      post: Its output y_l, shape (batch, n_out).
      pre_error: The error of the input's units, e_{l-1}, by whatever feedback, shape (batch, n_in).
      post_error: That of the output's, e_l: the gradient of the loss with respect to z = x W, shape (batch, n_out).
    """

    def __init__(self, kernel: Array, pre: Array, post: Array, pre_error: Array, post_error: Array):
        self.kernel, self.pre, self.post = kernel, pre, post
        self.pre_error, self.post_error = pre_error, post_error

    # Several rules use these, and each goes once over the kernel. A single sample is multiplied as a vector, which XLA does
    # faster, its transposes too.
    @functools.cached_property
    def forward(self) -> Float[Array, "batch n_out"]:
        """`x W`."""
        return (self.pre[0] @ self.kernel)[None] if len(self.pre) == 1 else self.pre @ self.kernel

    @functools.cached_property
    def backward(self) -> Float[Array, "batch n_in"]:
        """`W y`, what the output explains of the input."""
        return (self.kernel @ self.post[0])[None] if len(self.post) == 1 else self.post @ self.kernel.T

    @functools.cached_property
    def answered_error(self) -> Float[Array, "batch 1"]:
        """`y_l^T W e_{l-1}`."""
        return jnp.sum(self.backward * self.pre_error, axis=1, keepdims=True)


class Outer(NamedTuple):
    """A change that is one outer product a sample, averaged over the batch.

    :func:`ojax.meta.pool` adds up the factors of all such changes, of which there are few, before it forms a matrix.

    Attributes:
      pre: The factor on the side of the inputs, shape (batch, n_in).
      post: The factor on the side of the outputs, shape (batch, n_out).
    """

    pre: Float[Array, "batch n_in"]
    post: Float[Array, "batch n_out"]


Rule = Callable[[Layer], Array | Outer]


def pseudo_gradient(layer: Layer) -> Outer:
    """F0 = -e_l y_{l-1}^T: gradient descent, with whatever feedback has made the error. Equation 14."""
    return Outer(layer.pre, -layer.post_error)


def post_by_error(layer: Layer) -> Outer:
    """F1 = -y_l e_{l-1}^T. Equation 15."""
    return Outer(layer.pre_error, -layer.post)


def ehebb(layer: Layer) -> Outer:
    """F2 = -e_l e_{l-1}^T: Hebb's rule of errors; a negative coefficient draws W towards the feedback. Equation 16."""
    return Outer(layer.pre_error, -layer.post_error)


def weight_decay(layer: Layer) -> Array:
    """F3 = -W. Equation 17."""
    return -layer.kernel


def error_below(layer: Layer) -> Outer:
    """F4 = -1 e_{l-1}^T: the error of the inputs, the same for all outputs. Equation 18."""
    return Outer(layer.pre_error, -jnp.ones_like(layer.post))


def summed_activity(layer: Layer) -> Outer:
    """F5 = -e_l (1^T y_l) y_{l-1}^T: the pseudo-gradient by the summed activity of the layer. Equation 19."""
    return Outer(layer.pre, -jnp.sum(layer.post, axis=1, keepdims=True) * layer.post_error)


def answered_error(layer: Layer) -> Outer:
    """F6 = -y_l (y_l^T W e_{l-1}) e_{l-1}^T. Equation 20."""
    return Outer(layer.pre_error, -layer.answered_error * layer.post)


def gated_by_answered_error(layer: Layer) -> Outer:
    """F7 = -e_l (y_l^T W e_{l-1}) y_{l-1}^T. Equation 21."""
    return Outer(layer.pre, -layer.answered_error * layer.post_error)


def gated_by_answer(layer: Layer) -> Outer:
    """F8 = -y_l (y_{l-1}^T W^T e_l) e_{l-1}^T. Equation 22."""
    return Outer(layer.pre_error, -jnp.sum(layer.forward * layer.post_error, axis=1, keepdims=True) * layer.post)


def oja(layer: Layer) -> Outer:
    """F9 = +(y_l y_{l-1}^T - y_l y_l^T W), Oja's subspace rule, as in :func:`ojax.oja`. Equation 23."""
    return Outer(layer.pre - layer.backward, layer.post)


POOL: Mapping[str, Rule] = types.MappingProxyType(
    {
        "pseudo_gradient": pseudo_gradient,
        "post_by_error": post_by_error,
        "ehebb": ehebb,
        "weight_decay": weight_decay,
        "error_below": error_below,
        "summed_activity": summed_activity,
        "answered_error": answered_error,
        "gated_by_answered_error": gated_by_answered_error,
        "gated_by_answer": gated_by_answer,
        "oja": oja,
    }
)
