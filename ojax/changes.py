"""The changes that the rules of :mod:`ojax.plasticity` make of a kernel, as plain functions of arrays.

All take Flax's layout, a kernel (n_in, n_out), so that w_i of the papers is column i, with pre (batch, n_in) and post
(batch, n_out), and average over the batch.
"""

import jax.numpy as jnp
from jax import lax


def oja(kernel, pre, post):
    """The paper's y x^T - y y^T W, reassociated: what the layer's output does not yet explain of its input, times y."""
    if len(pre) == 1:  # Written out, XLA fuses it into the pass that updates the kernel.
        return (pre[0] - kernel @ post[0])[:, None] * post[0]
    residual = pre - post @ kernel.T
    return residual.T @ post / len(pre)


def shared_oja(kernel, pre, post):
    """The same for the positions of an image, of which there are many; `multi_dot` finds the cheaper order of products."""
    return (pre.T @ post - jnp.linalg.multi_dot([kernel, post.T, post])) / len(pre)


def oja_per_neuron(kernel, pre, post):
    """Each neuron by itself."""
    return pre.T @ post / len(pre) - kernel * jnp.mean(post**2, axis=0)


def sanger(kernel, pre, post):
    """One sample after another, in the memory of one kernel."""

    def add_sample(total, sample):
        x, y = sample
        explained = jnp.cumsum(kernel * y, axis=1)  # Column i: what neurons 0..i explain of x.
        return total + y * (x[:, None] - explained), None

    total, _ = lax.scan(add_sample, jnp.zeros_like(kernel), (pre, post))
    return total / len(pre)


def shared_sanger(kernel, pre, post):
    """The same for the positions of an image, in three products."""
    return (pre.T @ post - kernel @ jnp.triu(post.T @ post)) / len(pre)


def hebb(kernel, pre, post):
    """What fires together."""
    del kernel
    return pre.T @ post / len(pre)
