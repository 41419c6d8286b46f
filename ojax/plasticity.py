"""Local plasticity rules as Optax gradient transformations.

Each rule *adds* its own change of the weights to the updates that come in, so it stands **after** the scaled optimizer
and its rate is independent of the optimizer's::

    tx = optax.chain(optax.sgd(1e-3), ojax.oja(1e-4))
    updates, state = tx.update(grads, state, params, activity=activity)

`activity` says what each plastic layer saw and what it answered: a pytree that holds an :class:`Activity` at the path of
each plastic kernel. Everything here is plain pytrees; no neural-network library is assumed.

:func:`rule` makes a rule of your own. All rules here are made by it.

References:
  Shervani-Tabar, Mirhoseini, Rosenbaum, "Oja's plasticity rule overcomes several challenges of training neural networks
  under biological constraints", https://arxiv.org/abs/2408.08408
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ojax import changes
from ojax.activity import Activity as Activity
from ojax.activity import by_parameter, is_masked
from ojax.patches import Patches
from ojax.trees import named_leaves


class OjaSGD(optax.GradientTransformationExtraArgs):
    """What :func:`oja_sgd` returns: a factor on the gradient and Oja's rule, and nothing else.

    Both rates may follow schedules. Only for this type :mod:`ojax.online` carries a first layer over windows of samples.
    Whatever changes the transformation changes its type: `optax.chain`, `optax.masked` and the like do.
    """

    def _replace(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        return optax.GradientTransformationExtraArgs(*self)._replace(**changes)


class RuleState(NamedTuple):
    """The state of a rule.

    Attributes:
      count: Number of updates so far, for a schedule; None for a constant rate.
      local: The rule's own state of each kernel, by the kernel's path; None for a rule without one.
    """

    count: Array | None  # type: ignore[assignment] # A tuple has a method of that name.
    local: dict[str, PyTree] | None


_OUT_AXIS = {"in_out": -1, "out_in": 0}
Mask = Any | Callable[[optax.Params], Any]
Change = Callable[..., Any]


def rule(
    change: Change,
    learning_rate: optax.ScalarOrSchedule,
    *,
    init: Callable[[Float[Array, "n_in n_out"]], PyTree] | None = None,
    mask: Mask | None = None,
    layout: str = "in_out",
    name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes a local plasticity rule of your own: adds `learning_rate * change(kernel, pre, post)` to the updates.

    `change` sees every kernel as a matrix of shape (n_in, n_out) and every activity as a batch, `pre` (batch, n_in) and
    `post` (batch, n_out), in float32 or the parameter's wider type. It should average over the batch. The positions of a
    kernel that is shared over an image are a batch, and each group of a grouped or depthwise kernel is a kernel of its own,
    which knows nothing of the others.

    Args:
      change: `change(kernel, pre, post)` returns an array of the kernel's shape. With `init` it is
        `change(kernel, pre, post, state)` and returns that array and the new state.
      learning_rate: A float of either sign, a traced scalar, or an Optax schedule of the step count.
      init: `init(kernel)` returns the first state that the rule keeps for a kernel, any pytree of arrays.
      mask: A pytree of booleans with the structure (or a prefix of the structure) of the parameters, or a function that
        makes one from them; `True` where the rule applies. By default it applies wherever there is an activity.
      layout: `in_out` for Flax's kernels, whose last axis counts the output units, or `out_in` for the weights of Equinox
        and PyTorch, whose first axis does. All other axes together are the inputs. A square kernel fits both, so nothing
        can check it.
      name: The rule's name in errors; that of the function by default.

    Returns:
      A gradient transformation whose `update` takes `params` and, by keyword, `activity`: a pytree with an
      :class:`Activity` at the path of each plastic kernel. A parameter without an activity, a bias say, is left alone. The
      change has the parameter's dtype.

    Raises:
      ValueError: When it is made, if `learning_rate` is not finite. In `update`, if `params` or `activity` is missing, an
        activity stands at a path that is no parameter, its shapes do not fit the kernel, or there is none; and if a rule
        with a state is given a grouped kernel.

    Example:
      The rule of Bienenstock, Cooper and Munro, whose threshold slides with the mean of each unit's squared activity:

      >>> import jax.numpy as jnp, ojax, optax
      >>> def bcm(kernel, pre, post, threshold):
      ...     threshold = threshold + 0.1 * (jnp.mean(post**2, axis=0) - threshold)
      ...     return pre.T @ (post * (post - threshold)) / len(pre), threshold
      >>> tx = ojax.plasticity.rule(bcm, 1e-2, init=lambda kernel: jnp.zeros(kernel.shape[1]))
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
      >>> activity = {"kernel": ojax.Activity(pre=jnp.ones(3), post=jnp.array([1.0, 2.0]))}
      >>> zeros = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
      >>> updates, state = tx.update(zeros, tx.init(params), params, activity=activity)
      >>> print(updates["kernel"][0], state.local["kernel"])
      [0.009 0.032] [0.1 0.4]

    References:
      Bienenstock, Cooper, Munro, "Theory for the development of neuron selectivity", J. Neuroscience 2(1), 1982.
    """
    return _rule(change, change, learning_rate, init, mask, layout, str(name or getattr(change, "__name__", "rule")))


def _rule(
    change: Change,
    shared_change: Change,
    learning_rate: optax.ScalarOrSchedule,
    init: Callable[[Array], PyTree] | None,
    mask: Mask | None,
    layout: str,
    name: str,
    *,
    of_residual: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """See :func:`rule`. Kernels shared over positions have `shared_change`, with `of_residual` of the image's residual."""
    if layout not in _OUT_AXIS:
        raise ValueError(f"{name}: layout must be 'in_out' or 'out_in', got {layout!r}.")
    out_axis = _OUT_AXIS[layout]
    scheduled = callable(learning_rate)
    _check_rate(name, learning_rate)

    def init_fn(params: optax.Params) -> RuleState:
        local = None
        if init is not None:
            arrays = [(path, leaf) for path, leaf in named_leaves(params, is_masked) if not is_masked(leaf)]
            local = {path: init(_as_matrix(_widened(leaf), out_axis)) for path, leaf in arrays if jnp.ndim(leaf) >= 2}
        return RuleState(jnp.zeros([], jnp.int32) if scheduled else None, local)

    def update_fn(updates, state, params=None, *, activity=None, **extra_args):
        del extra_args
        if params is None or activity is None:
            missing = "params" if params is None else "activity"
            raise ValueError(f"{name} needs the {missing}: call tx.update(grads, state, params, activity=activity).")
        rate = learning_rate(state.count) if scheduled else learning_rate
        activities = by_parameter(name, activity, params, out_axis)
        local = dict(state.local or {})

        def add(path, update, param):
            if path not in activities:
                return update
            # Half-precision sums would lose most of a small rate's change.
            kernel = _as_matrix(_widened(param), out_axis)
            calls = [_without_answer(call, param) if of_residual else call for call in activities[path]]
            is_shared, groups, pre, post = _as_batch(calls, param, kernel)
            if init is None:
                added = _by_group(shared_change if is_shared else change, groups)(kernel, pre, post)
            elif groups > 1:
                raise ValueError(f"{name} keeps a state, and so takes no grouped kernel; {path} has {groups} groups.")
            else:
                added, local[path] = change(kernel, pre, post, local[path])
            if jnp.shape(added) != kernel.shape:
                raise ValueError(
                    f"{name}: the change of {path} has shape {jnp.shape(added)}, and not the kernel's, (n_in, n_out) = "
                    f"{kernel.shape}."
                )
            added = jnp.asarray(rate, kernel.dtype) * added
            return update + _as_kernel(added, jnp.shape(param), out_axis).astype(param.dtype)

        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_masked)
        # The parameters' paths name the kernels, whatever container the updates come in.
        new = [
            update if is_masked(update) else add(path, update, param)
            for update, (path, param) in zip(leaves, named_leaves(params, is_masked), strict=True)
        ]
        count = optax.safe_increment(state.count) if scheduled else None
        return jax.tree.unflatten(treedef, new), RuleState(count, None if init is None else local)

    transformation = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return transformation if mask is None else optax.masked(transformation, mask)


def oja(
    learning_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None, layout: str = "in_out"
) -> optax.GradientTransformationExtraArgs:
    """Adds Oja's subspace rule to the updates.

    For a layer `y = f(x W)` with kernel `W` of shape (n_in, n_out), presynaptic `x` and postsynaptic `y`, it adds::

        learning_rate * (x^T y - W y^T y)        averaged over the batch

    which draws the columns of `W` towards an orthonormal basis of the principal subspace of `x`. It costs one product
    with `W` and one rank-one update a sample; the n_out x n_out matrix `y^T y` is never formed.

    A convolution's kernel sees a sample at each position of the image, see :mod:`ojax.patches`, so the average is one over
    positions too, and `y^T y` is formed where that is cheaper. Deep networks of convolutions want :func:`oja_tied`.

    Put it *after* the optimizer in `optax.chain`: before `optax.sgd(eta)` it would be multiplied by `-eta`, which reverses
    the rule. :func:`oja_sgd` is the pair in the right order.

    Args:
      learning_rate: Oja's rate (theta in the paper), a float, a traced scalar or an Optax schedule of the step count.
      mask: Where the rule applies, as in :func:`rule`; by default wherever there is an activity.
      layout: Where a kernel has its output units, as in :func:`rule`.

    Returns, Raises: as :func:`rule`, and a negative rate is refused.

    Note:
      Inside `optax.MultiSteps` the rule runs once in every k steps, on the activity of the last of them. To average the
      gradient over k samples and keep Oja's rule online: `optax.chain(optax.MultiSteps(optax.sgd(eta),
      k).gradient_transformation(), ojax.oja(theta))`.

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
    _check_rate("ojax.oja", learning_rate, lowest=0)
    return _rule(changes.oja, changes.shared_oja, learning_rate, None, mask, layout, "ojax.oja")


def oja_tied(
    learning_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None, layout: str = "in_out"
) -> optax.GradientTransformationExtraArgs:
    """Adds Oja's subspace rule of each whole convolution, whose shared weights are tied, to the updates.

    :func:`oja` takes each patch of an image for a sample, which its answer alone should explain. Its fixed point keeps the
    norm of a patch, so that where patches overlap, each layer may multiply the norm of an image by the square root of the
    number of patches that a pixel is in, 3 for 3 x 3 kernels. That may be why deep networks diverged with it in our
    comparison, where none did with this rule. A convolution is also one sparse matrix M of many equal
    entries, and Oja's rule for M, summed over those that are one weight, is::

        learning_rate * patches(x - M^T y)^T y        averaged over positions and batch

    where `M^T y`, the transposed convolution, is what the answers of all patches explain of a pixel together. It keeps the
    norm of the image. Where patches do not overlap, and in a dense layer, it is :func:`oja`.

    Args, Returns, Raises: as :func:`oja`.

    References:
      Oja, Int. J. Neural Systems 1(1), 1989, for a matrix whose entries are tied as those of a convolution.
    """
    _check_rate("ojax.oja_tied", learning_rate, lowest=0)
    rule_of = (changes.oja, changes.hebb)  # What the answers leave of an image, times the answers: Hebb's product.
    return _rule(*rule_of, learning_rate, None, mask, layout, "ojax.oja_tied", of_residual=True)


def oja_per_neuron(
    learning_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None, layout: str = "in_out"
) -> optax.GradientTransformationExtraArgs:
    """Adds Oja's single-neuron rule, each neuron on its own, to the updates.

    For neuron i with weights `w_i` (column i of the kernel) it adds `learning_rate * (y_i x - y_i^2 w_i)`, averaged over
    the batch. It keeps each `|w_i|` near 1 but lets every neuron find the same first principal component.

    Args, Returns, Raises: as :func:`oja`.

    References:
      Oja, "Simplified neuron model as a principal component analyzer", J. Math. Biology 15, 1982.
    """
    _check_rate("ojax.oja_per_neuron", learning_rate, lowest=0)
    return rule(changes.oja_per_neuron, learning_rate, mask=mask, layout=layout, name="ojax.oja_per_neuron")


def sanger(
    learning_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None, layout: str = "in_out"
) -> optax.GradientTransformationExtraArgs:
    """Adds Sanger's rule (the generalized Hebbian algorithm) to the updates.

    For neuron i it adds `learning_rate * y_i (x - sum_{j <= i} y_j w_j)`, averaged over the batch. The columns of the
    kernel become the principal components themselves, in order, where :func:`oja` finds only the subspace they span. The
    samples of a batch are taken one after another, to keep the memory of one kernel.

    Args, Returns, Raises: as :func:`oja`.

    References:
      Sanger, "Optimal unsupervised learning in a single-layer linear feedforward neural network", Neural Networks 2, 1989.
    """
    _check_rate("ojax.sanger", learning_rate, lowest=0)
    return _rule(changes.sanger, changes.shared_sanger, learning_rate, None, mask, layout, "ojax.sanger")


def hebb(
    learning_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None, layout: str = "in_out"
) -> optax.GradientTransformationExtraArgs:
    """Adds plain Hebbian learning, `learning_rate * x^T y` averaged over the batch, to the updates.

    Nothing bounds the weights. A negative rate makes it anti-Hebbian.

    Args, Returns, Raises: as :func:`oja`, but a negative rate is allowed.

    Source: Hebb, "The Organization of Behavior", 1949.
    """
    return rule(changes.hebb, learning_rate, mask=mask, layout=layout, name="ojax.hebb")


def oja_sgd(
    learning_rate: optax.ScalarOrSchedule,
    oja_rate: optax.ScalarOrSchedule,
    *,
    mask: Mask | None = None,
    layout: str = "in_out",
) -> optax.GradientTransformationExtraArgs:
    """Plain gradient descent with Oja's rule: the paper's hybrid, in the only right order.

    Args:
      learning_rate: Rate of the error term (eta in the paper), as in `optax.sgd`.
      oja_rate: Rate of Oja's term (theta), as in :func:`oja`; the two are independent.
      mask: Where Oja's rule applies, as in :func:`rule`.
      layout: Where a kernel has its output units, as in :func:`rule`.

    Returns:
      `optax.chain(optax.sgd(learning_rate), ojax.oja(oja_rate))`, as an :class:`OjaSGD` unless it has a mask, another
      layout, or rates that are arrays.

    Raises:
      ValueError: As :func:`oja`.
    """
    tx = optax.chain(optax.sgd(learning_rate), oja(oja_rate, mask=mask, layout=layout))
    is_plain = mask is None and layout == "in_out" and _is_scalar(learning_rate) and _is_scalar(oja_rate)
    return OjaSGD(*tx) if is_plain else tx


def _check_rate(name: str, learning_rate: Any, lowest: float = -math.inf) -> None:
    if callable(learning_rate) or isinstance(learning_rate, jax.core.Tracer) or jnp.ndim(learning_rate) != 0:
        return  # Schedules, traced rates and arrays of rates to map over have no one value to check.
    value = float(learning_rate)  # A Python number: under a trace JAX would trace even the comparison of a constant.
    if not math.isfinite(value) or value < lowest:
        wanted = "finite and at least 0" if lowest == 0 else "finite"
        raise ValueError(f"{name}: the learning rate must be {wanted}, got {learning_rate}.")


def _is_scalar(rate: Any) -> bool:
    return jnp.ndim(jax.eval_shape(rate, jnp.int32(0)) if callable(rate) else rate) == 0


def _without_answer(call: Activity, kernel: Array) -> Activity:
    """The same with what the image's pixels have left when the answers of all patches are taken from them."""
    if not isinstance(call.pre, Patches):
        return call
    kernel, geometry = _widened(kernel), call.pre.geometry
    image, post = (array.astype(kernel.dtype) for array in (call.pre.image, call.post))
    (explained,) = jax.vjp(lambda image: Patches(image, geometry) @ kernel, image)[1](post)
    return Activity(Patches(image - explained, geometry), post)


def _as_batch(calls: Sequence[Activity], param: Array, kernel: Array) -> tuple[bool, int, Array, Array]:
    """Whether the kernel is shared over positions, its number of groups, and all calls of its layer as one batch."""
    first = calls[0].pre
    groups = first.groups(param) if isinstance(first, Patches) else 1

    def rows(side: Any, size: int) -> Array:
        return (side.matrix(groups) if isinstance(side, Patches) else jnp.reshape(side, (-1, size))).astype(kernel.dtype)

    sizes = (groups * kernel.shape[0], kernel.shape[1])
    pre, post = (jnp.concatenate([rows(call[side], size) for call in calls]) for side, size in enumerate(sizes))
    return isinstance(first, Patches), groups, pre, post


def _by_group(change: Change, groups: int) -> Change:
    """The change of a kernel whose groups of inputs and outputs are kernels of their own."""

    def grouped(kernel: Array, pre: Array, post: Array) -> Array:
        parts = (side.reshape(len(side), groups, -1) for side in (kernel, pre, post))
        return jax.vmap(change, in_axes=1, out_axes=1)(*parts).reshape(kernel.shape)

    return change if groups == 1 else grouped


def _widened(param: Array) -> Array:
    return jnp.asarray(param, jnp.promote_types(jnp.result_type(param), jnp.float32))


def _as_matrix(kernel: Array, out_axis: int) -> Float[Array, "n_in n_out"]:
    return jnp.moveaxis(kernel, out_axis, -1).reshape(-1, kernel.shape[out_axis])


def _as_kernel(matrix: Float[Array, "n_in n_out"], shape: Sequence[int], out_axis: int) -> Array:
    inputs = list(shape)
    n_out = inputs.pop(out_axis)
    return jnp.moveaxis(matrix.reshape(*inputs, n_out), -1, out_axis)
