"""The first layer of an online learner, carried exactly over a window of samples in coordinates of these samples.

The images that a run is to see are known in advance, and the first layer, which reads them, has most of the weights. Over
a window of K images X (K x n_in) its kernel, W at first, can be written as::

    W + X^T A + (W Y^T) B          A, B: K x n_out, zero at first; Y: K x n_out, the layer's answers so far

because gradient descent adds `x_k e^T` and Oja's rule adds `(x_k - W_now y_k) y_k^T`: both change A and B alone. So a
sample costs a few passes over the 3 K rows `[X W_now; A; B]` in place of as many over the n_in rows of the kernel, which
is read and written once a window, in matrix products.

In these coordinates image k is the unit vector k, so the network and the optimizer are used as they are, with the rows for
a kernel; :func:`change_of_rows` gives the optimizer the gradient and the activity that go with them. It is the same
arithmetic in another order: exact, but for float rounding.

Source: the window is the compact form of a product of rank-one updates, as in blocked QR (Bischof and Van Loan 1987,
https://doi.org/10.1137/0908009), here of Oja's (Oja 1989, https://doi.org/10.1142/S0129065789000475).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ojax.plasticity import Activity


def gram_of(images: Float[Array, "window n_in"]) -> Float[Array, "window window"]:
    """`X X^T`."""
    return _product(images, images.T)


def rows_of_kernel(
    kernel: Float[Array, "n_in n_out"], images: Float[Array, "window n_in"]
) -> Float[Array, "three_windows n_out"]:
    """The rows `[X W; 0; 0]` with which a window begins."""
    answers = _product(images, kernel)
    return jnp.concatenate([answers, jnp.zeros_like(answers), jnp.zeros_like(answers)])


def image_in_rows(index: Int[Array, ""], window: int) -> Float[Array, "three_windows"]:
    """Image number `index` of the window, as what the network reads where the rows are its kernel."""
    return jnp.concatenate([_unit(index, window), jnp.zeros(2 * window)])


def change_of_rows(
    index: Int[Array, ""],
    gram: Float[Array, "window window"],
    gradient: Float[Array, "three_windows n_out"],
    post: Float[Array, "n_out"],
) -> tuple[Float[Array, "three_windows n_out"], Activity]:
    """What an optimizer needs to change the rows as it would change the kernel.

    Args:
      index: Number of the image in the window.
      gram: `X X^T`.
      gradient: The loss's gradient with respect to the rows, of which row `index` alone is not zero.
      post: The layer's answer.

    Returns:
      The gradient and the activity of the rows.
    """
    error, unit, none = gradient[index], _unit(index, len(gram)), jnp.zeros(len(gram))
    direction = jnp.concatenate([gram[index], unit, none])
    return direction[:, None] * error, Activity(pre=jnp.concatenate([gram[index], unit, -unit]), post=post)


def change_of_kernel(
    kernel: Float[Array, "n_in n_out"],
    images: Float[Array, "window n_in"],
    posts: Float[Array, "window n_out"],
    rows: Float[Array, "three_windows n_out"],
) -> Float[Array, "n_in n_out"]:
    """The window's change of its kernel, `X^T A + (W Y^T) B`; rows of `posts` for images not yet seen are zero."""
    return _product(jnp.concatenate([images, _product(posts, kernel.T)]).T, rows[len(images) :])


def _product(one: Float[Array, "n k"], other: Float[Array, "k m"]) -> Float[Array, "n m"]:
    # GPUs and TPUs would round the factors, where the updates of step after step are exact products.
    return jnp.matmul(one, other, precision="highest")


def _unit(index: Int[Array, ""], size: int) -> Float[Array, "size"]:
    return (jnp.arange(size) == index).astype(jnp.float32)
