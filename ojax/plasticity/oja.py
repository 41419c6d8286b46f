"""Oja's rule and its relatives."""

import inspect
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ojax.activity import Activity
from ojax.patches import Patches, transposed
from ojax.plasticity.layer import Layer
from ojax.plasticity.rule import Options, check_rate, rule, takes_options


class OjaSGD(optax.GradientTransformationExtraArgs):
    """The type of :func:`oja_sgd`: a learning rate times the gradient, plus Oja's rule, and nothing else.

    Both rates may follow schedules. Only with this type :mod:`ojax.online` updates a first layer in windows of samples.
    Wrappers such as `optax.chain` and `optax.masked` return another type.

    Attributes:
      mask: The mask of Oja's rule, see :func:`oja_sgd`; None if the rule acts in every layer.
    """

    mask: Any = None

    @classmethod
    def of(cls, tx: optax.GradientTransformationExtraArgs, mask: Any) -> "OjaSGD":
        """Returns a transformation that is known to be of this type."""
        made = cls(*tx)
        made.mask = mask
        return made

    def _replace(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        return optax.GradientTransformationExtraArgs(*self)._replace(**changes)


@takes_options
def oja(rate: optax.ScalarOrSchedule, **options: Unpack[Options]) -> optax.GradientTransformationExtraArgs:
    """Adds Oja's subspace rule to the updates.

    For a layer `y = f(x W)` with kernel `W` of shape (n_in, n_out), input `x` and output `y`, it adds::

        rate * (x^T y - W y^T y)        averaged over the batch

    In a linear layer it draws the columns of `W` towards an orthonormal basis of the principal subspace of `x`. It costs
    one product with `W` and one rank-one update per sample; the n_out x n_out matrix `y^T y` is never formed.

    A convolution's kernel has one sample per position of the image, see :mod:`ojax.patches`, so the average is over
    positions too, and `y^T y` is formed if that is cheaper. For deep convolutional networks use :func:`oja_tied`.

    Put it *after* the optimizer in `optax.chain`: before `optax.sgd(eta)` it would be multiplied by `-eta`, which reverses
    the rule. :func:`oja_sgd` has both in the right order.

    Args:
      rate: Oja's rate (theta in the paper), a float, a traced scalar or an Optax schedule of the count of updates.
      **options: Those that every rule takes, see :func:`ojax.plasticity.rule`: `mask`, `in_axis`, `out_axis` (0 for Equinox
        and PyTorch), `batch_axis`, `axis_name` and `signals`.

    Returns, Raises: As :func:`ojax.plasticity.rule`. A negative rate is refused.

    Note:
      Inside `optax.MultiSteps` the rule runs once in every k steps, on the activity of the last of them. To average the
      gradient over k samples and keep Oja's rule online: `optax.chain(optax.MultiSteps(optax.sgd(eta),
      k).gradient_transformation(), ojax.oja(theta))`.

      `optax.apply_if_finite`, and `optax.skip_not_finite` in `optax.MultiSteps`, check the gradients that go into a
      transformation, not the change that a rule adds. To refuse updates that are not finite, put the check after the rule:
      `optax.chain(optax.sgd(eta), ojax.oja(theta), optax.apply_if_finite(optax.identity(), max_consecutive_errors))`.

    Example:
      >>> import jax.numpy as jnp, ojax, optax
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> x = jnp.array([1.0, 2.0, 3.0])
      >>> activity = {"kernel": ojax.Activity(pre=x, post=x @ params["kernel"])}
      >>> tx = optax.chain(optax.sgd(1e-3), ojax.oja(0.25))
      >>> gradient = {"kernel": jnp.zeros((3, 2))}
      >>> updates, state = tx.update(gradient, tx.init(params), params, activity=activity)
      >>> print(updates["kernel"])
      [[-16.5 -16.5]
       [-15.  -15. ]
       [-13.5 -13.5]]

    References:
      Oja, "Neural networks, principal components, and subspaces", Int. J. Neural Systems 1(1), 1989; Shervani-Tabar et
      al., https://arxiv.org/abs/2408.08408, the Oja term of the hybrid rule.
    """
    check_rate("ojax.oja", rate, lowest=0)
    return rule(_oja, rate, name="ojax.oja", **options)


def _oja(layer: Layer) -> Array:
    """The paper's y x^T - y y^T W, reassociated: the input's residual `x - W y`, times the output."""
    kernel, pre, post = layer.kernel, layer.pre, layer.post
    if layer.images:  # With many positions; `multi_dot` finds the cheaper order of products.
        return (transposed(post.T @ pre) - jnp.linalg.multi_dot([kernel, post.T, post])) / len(pre)
    if len(pre) == 1:  # In this form XLA fuses it into the pass that updates the kernel.
        return (pre[0] - kernel @ post[0])[:, None] * post[0][None, :]
    residual = pre - post @ kernel.T
    return residual.T @ post / len(pre)


@takes_options
def oja_sgd(
    learning_rate: optax.ScalarOrSchedule,
    oja_rate: optax.ScalarOrSchedule,
    **options: Unpack[Options],
) -> optax.GradientTransformationExtraArgs:
    """Returns gradient descent with Oja's rule, the paper's hybrid rule.

    Args:
      learning_rate: Rate of the error term (eta in the paper), as in `optax.sgd`.
      oja_rate: Rate of Oja's term (theta), the `rate` of :func:`oja`; the two are independent.
      **options: Those that every rule takes, see :func:`ojax.plasticity.rule`: `mask`, `in_axis`, `out_axis` (0 for Equinox
        and PyTorch), `batch_axis`, `axis_name` and `signals`.

    Returns:
      `optax.chain(optax.sgd(learning_rate), ojax.oja(oja_rate, mask=mask))`, as an :class:`OjaSGD` unless it has other
      options than a mask, or rates that are arrays or cannot be traced.

    Raises:
      ValueError: As :func:`oja`.
    """
    tx = optax.chain(optax.sgd(learning_rate), oja(oja_rate, **options))
    defaults = inspect.signature(rule).parameters
    has_defaults = all(value == defaults[name].default for name, value in options.items() if name != "mask")
    is_known = has_defaults and _is_scalar(learning_rate) and _is_scalar(oja_rate)
    return OjaSGD.of(tx, options.get("mask")) if is_known else tx


def _is_scalar(rate: Any) -> bool:
    if not callable(rate):
        return jnp.ndim(rate) == 0
    try:
        return jnp.ndim(jax.eval_shape(rate, jnp.int32(0))) == 0
    except jax.errors.JAXTypeError:  # E.g. a schedule with a Python `if`, which only works outside of jit.
        return False


@takes_options
def oja_tied(rate: optax.ScalarOrSchedule, **options: Unpack[Options]) -> optax.GradientTransformationExtraArgs:
    """Adds Oja's subspace rule of the whole convolution, whose shared weights are tied, to the updates.

    :func:`oja` treats each patch of an image as a sample that its own output should explain. Its fixed point keeps the norm
    of a patch. If patches overlap, each layer may thus multiply the norm of an image by the square root of the number of
    patches per pixel, 3 for 3 x 3 kernels. That may be why deep networks diverged with it in our comparison, and none did
    with this rule. A convolution is also one sparse matrix M with many equal entries. Oja's rule for M, summed over the
    entries that share a weight, is::

        rate * patches(x - M^T y)^T y        averaged over positions and batch

    where `M^T y`, the transposed convolution, reconstructs each pixel from the outputs of all patches. It keeps the norm of
    the image. For patches that do not overlap, and for a dense layer, it is :func:`oja`.

    Args, Returns, Raises: As :func:`oja`.

    References:
      Oja, Int. J. Neural Systems 1(1), 1989, for a matrix whose entries are tied as in a convolution.
    """
    check_rate("ojax.oja_tied", rate, lowest=0)
    return rule(_oja_tied, rate, name="ojax.oja_tied", **options)


def _oja_tied(layer: Layer) -> Array:
    if not layer.images:
        return _oja(layer)
    residual = jnp.concatenate([_unexplained(call, layer.kernel) for call in layer.images])
    return residual.T @ layer.post / len(layer.post)


def _unexplained(call: Activity, kernel: Array) -> Array:
    """Returns the patches of the image's residual `x - M^T y`."""
    assert isinstance(call.pre, Patches)
    image, geometry = call.pre.image, call.pre.geometry
    shared = kernel.reshape(*geometry.window, image.shape[-1], kernel.shape[-1])
    (explained,) = jax.vjp(lambda image: Patches(image, geometry) @ shared, image)[1](call.post)
    return Patches(image - explained, geometry).matrix()


@takes_options
def oja_per_neuron(rate: optax.ScalarOrSchedule, **options: Unpack[Options]) -> optax.GradientTransformationExtraArgs:
    """Adds Oja's single-neuron rule, each neuron by itself, to the updates.

    For neuron i with weights `w_i` (column i of the kernel) it adds `rate * (y_i x - y_i^2 w_i)`, averaged over the batch.
    It keeps each `|w_i|` near 1, and leads every neuron to the same first principal component.

    Args, Returns, Raises: As :func:`oja`.

    References:
      Oja, "Simplified neuron model as a principal component analyzer", J. Math. Biology 15, 1982.
    """
    check_rate("ojax.oja_per_neuron", rate, lowest=0)
    return rule(_oja_per_neuron, rate, name="ojax.oja_per_neuron", **options)


def _oja_per_neuron(layer: Layer) -> Array:
    hebb = layer.pre.T @ layer.post / len(layer.pre)
    return hebb - layer.kernel * jnp.mean(layer.post**2, axis=0)[None, :]


@takes_options
def sanger(rate: optax.ScalarOrSchedule, **options: Unpack[Options]) -> optax.GradientTransformationExtraArgs:
    """Adds Sanger's rule (the generalized Hebbian algorithm) to the updates.

    For neuron i it adds `rate * y_i (x - sum_{j <= i} y_j w_j)`, averaged over the batch. The columns of the kernel become
    the principal components themselves, in order, where :func:`oja` finds only the subspace they span.

    Args, Returns, Raises: As :func:`oja`.

    References:
      Sanger, "Optimal unsupervised learning in a single-layer linear feedforward neural network", Neural Networks 2, 1989.
    """
    check_rate("ojax.sanger", rate, lowest=0)
    return rule(_sanger, rate, name="ojax.sanger", **options)


def _sanger(layer: Layer) -> Array:
    kernel, pre, post = layer.kernel, layer.pre, layer.post
    if len(pre) > 1:
        return (pre.T @ post - kernel @ jnp.triu(post.T @ post)) / len(pre)
    explained = jnp.cumsum(kernel * post, axis=1)  # Column i: the reconstruction of x from neurons 0 to i.
    return post * (pre.T - explained)
