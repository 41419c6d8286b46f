"""The pool of ten local rules from which a rule is meta-learned.

Each is a function of one layer, `rule(kernel, pre, post, pre_error, post_error)`: the kernel (n_in, n_out), the activity on
both of its sides, pre (batch, n_in) and post (batch, n_out), and the error of these same units, of the same shapes. The
error of a unit is what comes back to it as the gradient of the loss with respect to its input z, by whatever feedback. It
returns the change for a coefficient of 1, averaged over the batch: an array of the kernel's shape, or an :class:`Outer`.

In the paper W has shape (n_out, n_in), so that its `e_l y_{l-1}^T` is `pre^T post_error` here. All terms with an error
have a minus sign, so that a positive coefficient of the pseudo-gradient descends; Oja's rule has a plus sign, so that a
positive coefficient is Oja's, and a negative one is anti-Oja. (The first version of the authors' code subtracted it.)

Source: Shervani-Tabar and Rosenbaum 2023, https://doi.org/10.1038/s41467-023-37562-1, equations 14 to 23.
"""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Rule = Callable[..., "Float[Array, 'n_in n_out'] | Outer"]


class Outer(NamedTuple):
    """A change that is one outer product a sample, averaged over the batch.

    :func:`ojax.meta.pool` adds up the factors of all such changes, of which there are few, before it forms a matrix.

    Attributes:
      pre: The factor on the side of the inputs, shape (batch, n_in).
      post: The factor on the side of the outputs, shape (batch, n_out).
    """

    pre: Float[Array, "batch n_in"]
    post: Float[Array, "batch n_out"]


def pseudo_gradient(kernel, pre, post, pre_error, post_error):
    """F0 = -e_l y_{l-1}^T: gradient descent, with whatever feedback has made the error. Equation 14."""
    del kernel, post, pre_error
    return Outer(pre, -post_error)


def post_by_error(kernel, pre, post, pre_error, post_error):
    """F1 = -y_l e_{l-1}^T. Equation 15."""
    del kernel, pre, post_error
    return Outer(pre_error, -post)


def ehebb(kernel, pre, post, pre_error, post_error):
    """F2 = -e_l e_{l-1}^T: Hebb's rule of errors, which draws the kernel towards the feedback. Equation 16."""
    del kernel, pre, post
    return Outer(pre_error, -post_error)


def weight_decay(kernel, pre, post, pre_error, post_error):
    """F3 = -W. Equation 17."""
    del pre, post, pre_error, post_error
    return -kernel


def error_below(kernel, pre, post, pre_error, post_error):
    """F4 = -1 e_{l-1}^T: the error below alone, the same for all outputs. Equation 18."""
    del kernel, pre, post_error
    return Outer(pre_error, -jnp.ones_like(post))


def summed_activity(kernel, pre, post, pre_error, post_error):
    """F5 = -e_l (1^T y_l) y_{l-1}^T: the pseudo-gradient by the summed activity of the layer. Equation 19."""
    del kernel, pre_error
    return Outer(pre, -jnp.sum(post, axis=1, keepdims=True) * post_error)


def answered_error(kernel, pre, post, pre_error, post_error):
    """F6 = -y_l (y_l^T W e_{l-1}) e_{l-1}^T. Equation 20."""
    del pre, post_error
    return Outer(pre_error, -_dot(backward(kernel, post), pre_error) * post)


def gated_by_answered_error(kernel, pre, post, pre_error, post_error):
    """F7 = -e_l (y_l^T W e_{l-1}) y_{l-1}^T. Equation 21."""
    return Outer(pre, -_dot(backward(kernel, post), pre_error) * post_error)


def gated_by_answer(kernel, pre, post, pre_error, post_error):
    """F8 = -y_l (y_{l-1}^T W^T e_l) e_{l-1}^T. Equation 22."""
    return Outer(pre_error, -_dot(forward(kernel, pre), post_error) * post)


def oja(kernel, pre, post, pre_error, post_error):
    """F9 = +(y_l y_{l-1}^T - y_l y_l^T W), Oja's subspace rule, as in :func:`ojax.oja`. Equation 23."""
    del pre_error, post_error
    return Outer(pre - backward(kernel, post), post)


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


def forward(kernel: Float[Array, "n_in n_out"], pre: Float[Array, "batch n_in"]) -> Float[Array, "batch n_out"]:
    """`x W` of each sample; a single one is multiplied as a vector, which XLA does faster, its transposes too."""
    return (pre[0] @ kernel)[None] if len(pre) == 1 else pre @ kernel


def backward(kernel: Float[Array, "n_in n_out"], post: Float[Array, "batch n_out"]) -> Float[Array, "batch n_in"]:
    """`W y` of each sample, likewise."""
    return (kernel @ post[0])[None] if len(post) == 1 else post @ kernel.T


def _dot(one: Float[Array, "batch n"], other: Float[Array, "batch n"]) -> Float[Array, "batch 1"]:
    return jnp.sum(one * other, axis=1, keepdims=True)
