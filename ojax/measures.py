"""Measures of what a network has learned: its activity, its weights and its errors, layer by layer.

Plain functions of arrays, for one layer and a fixed set of samples; all run under `jit` and `vmap`. Kernels have Flax's
layout, shape (n_in, n_out): the paper's W is their transpose.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float


def effective_dimension(activity: Float[Array, "samples units"]) -> Float[Array, ""]:
    """Participation ratio of the activity's covariance spectrum, `(sum λ)² / sum λ²`: from 1 to the number of units.

    It is n where the variance is spread evenly over n directions, and 0 where nothing varies.

    Source: Litwin-Kumar et al. 2017, https://doi.org/10.1016/j.neuron.2017.01.030; Gao et al. 2017,
    https://doi.org/10.1101/214262.
    """
    centred = activity - jnp.mean(activity, axis=0)
    # No eigenvalues are needed: the sums are the trace and the squared Frobenius norm of the smaller Gram matrix.
    gram = _narrow_gram(centred)
    trace, square = jnp.trace(gram), jnp.sum(gram**2)
    return jnp.where(square > 0, trace**2 / jnp.where(square > 0, square, 1), 0)


def gain(incoming: Float[Array, "samples n_in"], outgoing: Float[Array, "samples n_out"]) -> Float[Array, ""]:
    """Norm out over norm in, `‖outgoing‖ / ‖incoming‖`, both root mean squares over samples.

    Above 1 the signal grows in the layer, below 1 it fades: Glorot and Bengio 2010,
    https://proceedings.mlr.press/v9/glorot10a.html, section 4.2, for activity and for back-propagated errors.
    """
    return jnp.linalg.norm(outgoing) / jnp.linalg.norm(incoming)


def distance_from_orthonormal(kernel: Float[Array, "n_in n_out"]) -> Float[Array, ""]:
    """`‖G - I‖_F / √k`, where G is the k x k Gram matrix of the kernel's narrow side (`W Wᵀ` if n_out <= n_in).

    0 for orthonormal rows, to which Oja's subspace rule leads in a linear layer (Oja 1989,
    https://doi.org/10.1142/S0129065789000475), and 1 for a kernel of zeros.
    """
    gram = _narrow_gram(kernel)
    size = len(gram)
    return jnp.linalg.norm(gram - jnp.eye(size)) / jnp.sqrt(size)


def singular_values(kernel: Float[Array, "n_in n_out"]) -> Float[Array, "k"]:
    """The kernel's singular spectrum, the largest first; k is the smaller of n_in and n_out."""
    return _where_finite(lambda kernel: jnp.linalg.svd(kernel, compute_uv=False), kernel)


def principal_angles(kernel: Float[Array, "n_in n_out"], inputs: Float[Array, "samples n_in"]) -> Float[Array, "k"]:
    """Angles in degrees, ascending, between the weight rows and the principal subspace of the layer's input.

    The one subspace is spanned by the kernel's columns, one a unit; the other by the k = min(n_in, n_out) leading
    eigenvectors of `inputsᵀ inputs`, uncentred, as Oja's rule sees its input. 0 where they coincide, 90 where orthogonal.
    In float32, angles below about 0.03 degrees are rounding. Without a gap in the input's spectrum at k (fewer samples than
    k, say) the principal subspace is not unique.

    Source: Björck and Golub 1973, https://doi.org/10.2307/2005662, equation 7.
    """

    def angles(kernel: Array, inputs: Array) -> Array:
        k = min(kernel.shape)
        samples, n_in = inputs.shape
        if samples < n_in:  # The leading right singular vectors, by way of the smaller Gram matrix.
            leading = jnp.linalg.qr(inputs.T @ jnp.linalg.eigh(inputs @ inputs.T)[1][:, -k:])[0]
        else:
            leading = jnp.linalg.eigh(inputs.T @ inputs)[1][:, -k:]
        rows = jnp.linalg.qr(kernel)[0][:, :k]
        cosines = jnp.linalg.svd(leading.T @ rows, compute_uv=False)
        return jnp.degrees(jnp.arccos(jnp.clip(cosines, 0, 1)))

    return _where_finite(angles, kernel, inputs)


def angle(one: Float[Array, "samples n"], other: Float[Array, "samples n"]) -> Float[Array, ""]:
    """Mean over samples of the angle in degrees between paired vectors; a pair with a zero vector is left out.

    Between a layer's errors under random feedback and under backprop it is also the angle between the kernel's
    pseudo-gradient and true gradient of each sample, since both share the layer's input. Source: Lillicrap et al. 2016,
    https://doi.org/10.1038/ncomms13276, figure 2.
    """
    lengths = [jnp.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in (one, other)]
    known = (lengths[0] > 0) & (lengths[1] > 0)
    u, v = (vectors / jnp.where(known, length, 1) for vectors, length in zip((one, other), lengths, strict=True))
    # Exact to rounding at all angles, where the arc cosine loses half of the digits near 0 and 180 (Kahan).
    halves = jnp.arctan2(jnp.linalg.norm(u - v, axis=-1), jnp.linalg.norm(u + v, axis=-1))
    return jnp.mean(jnp.degrees(2 * halves), where=known[:, 0])


def alignment(kernel: Float[Array, "n_in n_out"], feedback: Float[Array, "n_in n_out"]) -> Float[Array, ""]:
    """Cosine between forward and feedback weights as long vectors: 1 if parallel, near 0 for random weights.

    Source: Lillicrap et al. 2016, https://doi.org/10.1038/ncomms13276: learning aligns the forward weights with B.
    """
    return jnp.vdot(kernel, feedback) / (jnp.linalg.norm(kernel) * jnp.linalg.norm(feedback))


def _where_finite(measure: Callable[..., Array], *matrices: Array) -> Array:
    """The measure, or NaN where a matrix is not finite: the decomposition of such a matrix may never end."""
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(matrix)) for matrix in matrices]))
    return jnp.where(finite, measure(*(jnp.where(finite, matrix, 0) for matrix in matrices)), jnp.nan)


def _narrow_gram(matrix: Float[Array, "n m"]) -> Float[Array, "k k"]:
    return matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
