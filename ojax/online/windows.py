"""Updates the first layer of an online learner in windows of samples, exactly, in coordinates of these samples.

A run's inputs are known in advance, and the first layer, which reads them, has most of the weights. During a window of K
inputs X (K x n_in), its kernel, initially W, can be written as::

    W + X^T A + (W Y^T) B          A, B: K x n_out, zero at the start; Y: K x n_out, the layer's outputs so far

because gradient descent adds `x_k e^T` and Oja's rule adds `(x_k - W_now y_k) y_k^T`: both change A and B alone. So a
sample costs a few passes over the 3 K rows `[X W_now; A; B]` instead of as many over the n_in rows of the kernel. The
kernel itself is read and written once per window, in matrix products.

In these coordinates input k is the unit vector k. The optimizer is unchanged: its kernel is the rows, its gradient comes
from :func:`gradient_of_rows`, and its activity from :func:`activity_of_rows`. This is exact up to float rounding for a
first layer of :mod:`ojax.online.first_layer` and an :class:`ojax.plasticity.OjaSGD`, a learning rate times the gradient
plus Oja's rule, with or without a mask.

Source: the window is the compact form of a product of rank-one updates, as in blocked QR (Bischof and Van Loan 1987,
https://doi.org/10.1137/0908009), here of Oja's (Oja 1989, https://doi.org/10.1142/S0129065789000475).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ojax.activity import Activity, is_activity, is_of
from ojax.online.first_layer import FirstLayer
from ojax.online.learner import Hyper, Learner
from ojax.online.run import RunState, advance, until_diverged
from ojax.trees import named_leaves

# Samples per window. The cost per sample of products with the full kernel is proportional to 1/K, of passes over the 3 K
# rows to K; 16 balances both.
SIZE = 16


def learn_window(
    learner: Learner,
    layer: FirstLayer,
    hyper: Hyper,
    run: RunState,
    seen: Array,
    stop: Array,
    samples: PyTree,
    *,
    in_parallel: bool = False,
) -> tuple[Int[Array, ""], RunState]:
    """Learns sequentially from the first `stop` samples of a window, with the first kernel in their coordinates.

    Args:
      learner: The learner.
      layer: Its first layer.
      hyper: The run's hyper-parameters.
      run: The run at the start of the window, after `seen` samples. Unless `in_parallel`, it must not have diverged.
      seen: Number of samples before the window.
      stop: Number of the window's samples to learn from.
      samples: The samples of the window, with a leading axis.
      in_parallel: Whether runs are vmapped, as on GPUs and TPUs. Each window then takes its full number of steps, those
        after `stop` without effect. The kernel of a diverged run gets a change of zero, which saves a pass that selects the
        old or the new kernel. The weights do not depend on it.

    Returns:
      The number of samples whose sums were counted, and the run after them. The number is below `stop` only if the run
      diverged and runs are not in parallel.
    """
    inputs = layer.read(samples)
    kernel, alive = at(layer.kernel, run.params), run.counts.diverged_at < 0 if in_parallel else None
    gram = _product(inputs, inputs.T)

    def learn(index: Array, carry: tuple[RunState, Array]) -> tuple[Array, tuple[RunState, Array]]:
        run, posts = carry
        rows = at(layer.kernel, run.params)
        sample = jax.tree.map(lambda leaf: _row(leaf, index), samples)
        found = layer.gradient(_row(rows, index), run.params, run.state, sample, hyper)
        post = at(layer.kernel, found.activity).post
        in_rows = partial(replaced, layer.kernel)
        found = found._replace(
            grads=in_rows(found.grads, gradient_of_rows(index, gram, at(layer.kernel, found.grads))),
            activity=in_rows(found.activity, activity_of_rows(index, gram, post)),
        )
        run = advance(learner, hyper, run, seen + index, found, is_counted=index < stop if in_parallel else None)
        learned = run.counts.diverged_at < 0
        if in_parallel:
            learned &= index < stop
        post = jnp.where(learned, post, 0)
        return index + 1, (run, lax.dynamic_update_index_in_dim(posts, post, index.astype(jnp.uint32), 0))

    run = run._replace(params=replaced(layer.kernel, run.params, rows_of_kernel(kernel, inputs)))
    carry, counted = (run, jnp.zeros((len(inputs), kernel.shape[1]), kernel.dtype)), stop
    if in_parallel:
        run, posts = lax.fori_loop(0, len(inputs), lambda index, carry: learn(index, carry)[1], carry)
    else:
        counted, (run, posts) = until_diverged(learn, 0, stop, carry, lambda carry: carry[0].counts)
    # An input that was not learned from need not be finite.
    learned = jnp.where(run.counts.diverged_at < 0, stop, run.counts.diverged_at - seen)
    inputs = jnp.where(jnp.arange(len(inputs))[:, None] < learned, inputs, 0)
    after = kernel + change_of_kernel(kernel, inputs, posts, at(layer.kernel, run.params), alive)
    return counted, run._replace(params=replaced(layer.kernel, run.params, after))


def with_rows(layer: FirstLayer, params: PyTree) -> PyTree:
    """Returns the shapes of parameters with the rows of a window in place of the first kernel."""
    kernel = at(layer.kernel, params)
    return replaced(layer.kernel, params, jax.ShapeDtypeStruct((3 * SIZE, kernel.shape[1]), kernel.dtype))


def rows_of_kernel(
    kernel: Float[Array, "n_in n_out"], inputs: Float[Array, "window n_in"]
) -> Float[Array, "three_windows n_out"]:
    """Returns the rows `[X W; 0; 0]` at the start of a window."""
    outputs = _product(inputs, kernel)
    return jnp.concatenate([outputs, jnp.zeros_like(outputs), jnp.zeros_like(outputs)])


def gradient_of_rows(
    index: Int[Array, ""], gram: Float[Array, "window window"], error: Float[Array, " n_out"]
) -> Float[Array, "three_windows n_out"]:
    """Returns the rows' gradient for the kernel's gradient `x_index error^T`, given `gram = X X^T`."""
    unit = _unit(index, len(gram))
    return jnp.concatenate([_row(gram, index), unit, jnp.zeros_like(unit)])[:, None] * error[None, :]


def activity_of_rows(index: Int[Array, ""], gram: Float[Array, "window window"], post: Float[Array, " n_out"]) -> Activity:
    """Returns the activity with which Oja's rule changes the rows as it would change the kernel, given `gram = X X^T`."""
    unit = _unit(index, len(gram))
    return Activity(pre=jnp.concatenate([_row(gram, index), unit, -unit]), post=post)


def change_of_kernel(
    kernel: Float[Array, "n_in n_out"],
    inputs: Float[Array, "window n_in"],
    posts: Float[Array, "window n_out"],
    rows: Float[Array, "three_windows n_out"],
    alive: Bool[Array, ""] | None = None,
) -> Float[Array, "n_in n_out"]:
    """Returns the kernel's change in a window, `X^T A + (W Y^T) B`; rows of `posts` for later inputs must be zero.

    If a run is not `alive`, its rows are zero, and so is the change, even for a kernel that is not finite.
    """
    outputs = _product(kernel, posts.T)
    if alive is not None:  # The rows are zero then, but zero times infinity is not.
        outputs = jnp.where(alive, outputs, 0)
    return _product(jnp.concatenate([inputs.T, outputs], axis=1), rows[len(inputs) :])


def at(path: str, tree: PyTree) -> Any:
    """Returns the leaf at a path, or the only activity in the tuple there."""
    (found,) = (leaf for name, leaf in named_leaves(tree, is_activity) if is_of(name, path))
    return found


def replaced(path: str, tree: PyTree, leaf: Any) -> PyTree:
    """Returns the tree with another leaf at a path."""
    named = named_leaves(tree, is_activity)
    leaves = [leaf if is_of(name, path) else old for name, old in named]
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=is_activity), leaves)


def _product(one: Float[Array, "n k"], other: Float[Array, "k m"]) -> Float[Array, "n m"]:
    # GPUs and TPUs round the factors by default, but the updates that this replaces are exact products.
    return jnp.matmul(one, other, precision="highest")


def _row(array: Array, index: Int[Array, ""]) -> Array:
    # JAX adds a step that wraps negative indices, unless the index is unsigned.
    return lax.dynamic_index_in_dim(array, index.astype(jnp.uint32), keepdims=False)


def _unit(index: Int[Array, ""], size: int) -> Float[Array, " size"]:
    return (jnp.arange(size) == index).astype(jnp.float32)
