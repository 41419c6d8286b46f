"""Measures of a trained network: its activity, its weights and its errors, for one layer at a time.

Each is a function of arrays, for one layer and a fixed set of samples. All run under `jit` and `vmap`. Kernels have Flax's
layout, shape (n_in, n_out): the paper's W is their transpose. A measure of numbers that are not finite is NaN.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def effective_dimension(activity: Float[Array, "samples units"]) -> Float[Array, ""]:
    """Participation ratio of the activity's covariance spectrum, `(sum λ)² / sum λ²`: from 1 to the number of units.

    It is n if the variance is spread evenly over n directions, and 0 if the activity is constant.

    Source: Litwin-Kumar et al. 2017, https://doi.org/10.1016/j.neuron.2017.01.030; Gao et al. 2017,
    https://doi.org/10.1101/214262.
    """
    centred = activity - jnp.mean(activity, axis=0)
    # No eigenvalues are needed: the sums are the trace and the squared Frobenius norm of the smaller Gram matrix.
    gram = _narrow_gram(centred)
    trace, square = jnp.trace(gram), jnp.sum(gram**2)
    return jnp.where(square == 0, 0, trace**2 / jnp.where(square == 0, 1, square))


def effective_rank(activity: Float[Array, "samples units"]) -> Float[Array, ""]:
    """Exponential of the entropy of the activity's singular values, divided by their sum: from 1 to the number of units.

    It counts the directions of the activity, its mean included. It is 0 if all activity is zero.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", EUSIPCO; as a measure of
    plasticity, Dohare et al. 2024, https://doi.org/10.1038/s41586-024-07711-7.
    """
    values = singular_values(activity)
    total = jnp.sum(values)
    shares = values / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares))), total)


def gain(incoming: Float[Array, "samples n_in"], outgoing: Float[Array, "samples n_out"]) -> Float[Array, ""]:
    """Norm of the output over norm of the input, `‖outgoing‖ / ‖incoming‖`, both root mean squares over samples.

    Above 1 the signal grows in the layer, below 1 it fades: Glorot and Bengio 2010,
    https://proceedings.mlr.press/v9/glorot10a.html, section 4.2, for activity and for back-propagated errors.
    """
    return jnp.linalg.norm(outgoing) / jnp.linalg.norm(incoming)


def centred_gain(incoming: Float[Array, "samples n_in"], outgoing: Float[Array, "samples n_out"]) -> Float[Array, ""]:
    """The :func:`gain` of the centred activity: of the part that differs between samples.

    With a non-linearity that is positive at 0, such as softplus, an activity has a norm even if it is the same for all
    samples. Here such an activity counts as 0. NaN if the input is the same for all samples.
    """
    return gain(*(activity - jnp.mean(activity, axis=0) for activity in (incoming, outgoing)))


def sample_correlation(activity: Float[Array, "samples units"]) -> Float[Array, ""]:
    """Mean cosine between the activity of two different samples: 1 if all are parallel; zero vectors are left out.

    Activity is not centred, so positive units suffice to make it positive. NaN with fewer than two samples.

    Source: Schoenholz et al. 2017, https://arxiv.org/abs/1611.01232, equation 4, the correlation c of two inputs.
    """
    lengths = jnp.linalg.norm(activity, axis=1, keepdims=True)
    known = lengths != 0  # NaN is known, so that the result is NaN too.
    total = jnp.sum(activity / jnp.where(known, lengths, 1), axis=0)
    samples = jnp.sum(known)
    # The squared norm of the sum has each pair twice, and each sample once with itself.
    return jnp.where(samples > 1, (total @ total - samples) / (samples * jnp.maximum(samples - 1, 1)), jnp.nan)


def explained_energy(
    kernel: Float[Array, "n_in n_out"], pre: Float[Array, "samples n_in"], post: Float[Array, "samples n_out"]
) -> Float[Array, ""]:
    """Share of a layer's input that its output explains through the same weights, `1 - E|x - W y|² / E|x|²`, uncentred.

    It is 1 if `W y` is the input, and has no lower bound. At a fixed point of Oja's rule in a layer of ReLUs without biases
    it is the square of the :func:`gain`, see the page on the rule.
    """
    return 1 - jnp.sum((pre - post @ kernel.T) ** 2) / jnp.sum(pre**2)


def leading_share(
    kernel: Float[Array, "n_in n_out"], inputs: Float[Array, "samples n_in"], leading: int = 10
) -> Float[Array, ""]:
    """Share of the weights' squared norm in the leading directions of the layer's input, from 0 to 1.

    Args:
      kernel: W.
      inputs: The layer's input. Its directions are the leading eigenvectors of `inputsᵀ inputs`, uncentred.
      leading: Number of these directions. If the input has no more units than this, the share is 1.
    """
    leading = min(leading, *inputs.shape)

    def share(kernel: Array, inputs: Array) -> Array:
        return jnp.sum((_leading_directions(inputs, leading).T @ kernel) ** 2) / jnp.sum(kernel**2)

    return _where_finite(share, kernel, inputs)


def dead_units(activity: Float[Array, "samples units"], least: float = 1e-3) -> Float[Array, ""]:
    """Share of the units whose output is the same for all samples: its standard deviation is below `least`."""
    spread = jnp.std(activity, axis=0)
    return jnp.where(jnp.all(jnp.isfinite(spread)), jnp.mean(spread < least, dtype=jnp.float32), jnp.nan)


def distance_from_orthonormal(kernel: Float[Array, "n_in n_out"]) -> Float[Array, ""]:
    """`‖G - I‖_F / √k`, where G is the k x k Gram matrix of the kernel's narrow side (`W Wᵀ` if n_out <= n_in).

    It is 0 for orthonormal rows, to which Oja's subspace rule converges in a linear layer (Oja 1989,
    https://doi.org/10.1142/S0129065789000475), and 1 for a kernel of zeros.
    """
    gram = _narrow_gram(kernel)
    size = len(gram)
    return jnp.linalg.norm(gram - jnp.eye(size)) / jnp.sqrt(size)


def singular_values(kernel: Float[Array, "n_in n_out"]) -> Float[Array, " k"]:
    """The kernel's singular spectrum, the largest first; k is the smaller of n_in and n_out."""
    return _where_finite(lambda kernel: jnp.linalg.svd(kernel, compute_uv=False), kernel)


def principal_angles(kernel: Float[Array, "n_in n_out"], inputs: Float[Array, "samples n_in"]) -> Float[Array, " k"]:
    """Angles in degrees, ascending, between the weight rows and the principal subspace of the layer's input.

    The first subspace is spanned by the kernel's columns, one per unit. The second is spanned by the k = min(n_in, n_out)
    leading eigenvectors of `inputsᵀ inputs`, uncentred as in Oja's rule. An angle is 0 if they coincide, 90 if they are
    orthogonal. In float32, angles below about 0.03 degrees are rounding errors. Without a gap in the input's spectrum at k
    (e.g. with fewer samples than k) the principal subspace is not unique.

    Source: Björck and Golub 1973, https://doi.org/10.2307/2005662, equation 7.
    """

    def angles(kernel: Array, inputs: Array) -> Array:
        k = min(kernel.shape)
        leading = _leading_directions(inputs, k)
        rows = jnp.linalg.qr(kernel)[0][:, :k]
        cosines = jnp.linalg.svd(leading.T @ rows, compute_uv=False)
        return jnp.degrees(jnp.arccos(jnp.clip(cosines, 0, 1)))

    return _where_finite(angles, kernel, inputs)


def angle(one: Float[Array, "samples n"], other: Float[Array, "samples n"]) -> Float[Array, ""]:
    """Mean over samples of the angle in degrees between paired vectors; a pair with a zero vector is left out.

    Between a layer's errors under random feedback and under backprop, it is also the angle between the kernel's
    pseudo-gradient and true gradient for each sample, since both share the layer's input. Source: Lillicrap et al. 2016,
    https://doi.org/10.1038/ncomms13276, figure 2.
    """
    lengths = [jnp.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in (one, other)]
    known = (lengths[0] != 0) & (lengths[1] != 0)  # NaN is known, so that the result is NaN too.
    u, v = (vectors / jnp.where(known, length, 1) for vectors, length in zip((one, other), lengths, strict=True))
    # Exact to rounding at all angles, where the arc cosine loses half of the digits near 0 and 180 (Kahan).
    halves = jnp.arctan2(jnp.linalg.norm(u - v, axis=-1), jnp.linalg.norm(u + v, axis=-1))
    return jnp.mean(jnp.degrees(2 * halves), where=known[:, 0])


def alignment(kernel: Float[Array, "n_in n_out"], feedback: Float[Array, "n_in n_out"]) -> Float[Array, ""]:
    """Cosine between forward and feedback weights as long vectors: 1 if parallel, near 0 for random weights.

    Source: Lillicrap et al. 2016, https://doi.org/10.1038/ncomms13276: learning aligns the forward weights with B.
    """
    return jnp.vdot(kernel, feedback) / (jnp.linalg.norm(kernel) * jnp.linalg.norm(feedback))


def spectral_radius(kernel: Float[Array, "n n"]) -> Float[Array, ""]:
    """The largest modulus of the eigenvalues of a square kernel, by Gelfand's formula `‖W^k‖^(1/k)` at k = 4096.

    It exceeds the true value by a factor of at most `(√n κ)^(1/4096)`, where κ is the condition number of the eigenvectors.
    It needs only matrix products, so it runs on every device and under `vmap`.
    """
    power, log_scale = kernel, jnp.float32(0)
    for squarings in range(13):
        norm = jnp.linalg.norm(power)
        power = power / jnp.where(norm > 0, norm, 1)
        log_scale = (2 * log_scale if squarings else log_scale) + jnp.log(norm)
        power = power @ power
    return jnp.exp(log_scale / 4096)


def memory_curve(
    hidden: Float[Array, "steps n"], past: Float[Array, "steps delays"], ridge: float = 1e-3
) -> Float[Array, " delays"]:
    """Recall of each past input by a linear read-out of a frozen network: the squared correlation r² per delay.

    One read-out per delay is fitted on the first half of the steps, by ridge regression without a bias, and evaluated on
    the second half. The sum over delays is the memory capacity; for independent inputs it is at most n. By chance, r² is
    one over half the number of steps for a delay of which the network has no memory.

    Args:
      hidden: The hidden state after each step's input.
      past: The input of each delay before the step, the columns of :func:`ojax.streams.recall`'s targets.
      ridge: Added to the diagonal of `hiddenᵀ hidden`.

    Source: Jaeger 2001, "Short term memory in echo state networks", GMD report 152, definition 1.
    """
    half = len(hidden) // 2
    seen = hidden[:half]
    fitted = jnp.linalg.solve(seen.T @ seen + ridge * jnp.eye(seen.shape[1]), seen.T @ past[:half])
    return squared_correlation(hidden[half:] @ fitted, past[half:])


def squared_correlation(
    one: Float[Array, "samples columns"], other: Float[Array, "samples columns"]
) -> Float[Array, " columns"]:
    """The squared correlation r² of each pair of columns; 0 if a column of the pair is constant."""
    one, other = one - jnp.mean(one, axis=0), other - jnp.mean(other, axis=0)
    variances = jnp.sum(one**2, axis=0) * jnp.sum(other**2, axis=0)
    share = jnp.sum(one * other, axis=0) ** 2 / jnp.where(variances == 0, 1, variances)
    return jnp.where(variances == 0, 0, share)


def norms_of_products(jacobians: Float[Array, "steps n n"]) -> Float[Array, " steps"]:
    """The norms of `J_1`, `J_2 J_1`, `J_3 J_2 J_1` and so on: the growth of an error or a perturbation over each lag.

    The norm is the root mean square of the singular values, `‖·‖_F / √n`: the factor by which a random vector grows.

    Source: Pascanu et al. 2013, https://proceedings.mlr.press/v28/pascanu13.html, section 2.1.
    """

    def multiply(product: Array, jacobian: Array) -> tuple[Array, Array]:
        product = jacobian @ product
        return product, jnp.linalg.norm(product)

    size = jacobians.shape[-1]
    _, norms = lax.scan(multiply, jnp.eye(size), jacobians)
    return norms / jnp.sqrt(size)


def _where_finite(measure: Callable[..., Array], *matrices: Array) -> Array:
    """Returns the measure, or NaN if a matrix is not finite: decomposing such a matrix may never end."""
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(matrix)) for matrix in matrices]))
    return jnp.where(finite, measure(*(jnp.where(finite, matrix, 0) for matrix in matrices)), jnp.nan)


def _leading_directions(inputs: Float[Array, "samples n_in"], k: int) -> Float[Array, "n_in k"]:
    """The k leading eigenvectors of `inputs^T inputs`, orthonormal."""
    if inputs.shape[0] < inputs.shape[1]:  # The leading right singular vectors, from the smaller Gram matrix.
        return jnp.linalg.qr(inputs.T @ _eigenvectors(inputs @ inputs.T)[:, -k:])[0]
    return _eigenvectors(inputs.T @ inputs)[:, -k:]


def _eigenvectors(gram: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """Returns the eigenvectors of a symmetric matrix, in ascending order of their eigenvalues."""

    def by_rotations(gram: Array) -> Array:
        return lax.linalg.eigh(gram, implementation=lax.linalg.EighImplementation.JACOBI)[0]

    def by_default(gram: Array) -> Array:
        return jnp.linalg.eigh(gram)[1]

    # From 257 rows on, a TPU uses divide and conquer: a program of 96 MiB that takes a minute to compile. Jacobi's method
    # compiles to 1 MiB in 2 seconds, but above 512 rows it does not fit into the core's own memory.
    return (
        lax.platform_dependent(gram, tpu=by_rotations, default=by_default) if 256 < len(gram) <= 512 else by_default(gram)
    )


def _narrow_gram(matrix: Float[Array, "n m"]) -> Float[Array, "k k"]:
    return matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
