"""Local plasticity rules as Optax gradient transformations.

Each rule *adds* its own change of the weights to the updates that come in, so it stands **after** the scaled optimizer
and its rate is independent of the optimizer's::

    tx = optax.chain(optax.sgd(1e-3), ojax.oja(1e-4))
    updates, state = tx.update(grads, state, params, activity=activity)

`activity` says what each plastic layer saw and what it answered: a pytree that holds an :class:`Activity` at the path of
each plastic kernel. Everything here is plain pytrees; no neural-network library is assumed.

References:
  Shervani-Tabar, Mirhoseini, Rosenbaum, "Oja's plasticity rule overcomes several challenges of training neural networks
  under biological constraints", https://arxiv.org/abs/2408.08408
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float


class Activity(NamedTuple):
    """What one layer saw and answered, for one sample or a batch of them.

    Attributes:
      pre: Presynaptic activity, the layer's input, shape `(..., n_in)`.
      post: Postsynaptic activity, the layer's output after its non-linearity, shape `(..., n_out)`. All leading axes,
        the same as those of `pre`, are the batch.
    """

    pre: Float[Array, "*batch n_in"]
    post: Float[Array, "*batch n_out"]


Mask = Any | Callable[[optax.Params], Any]
Rule = Callable[[Float[Array, "n_in n_out"], Float[Array, "batch n_in"], Float[Array, "batch n_out"]], Array]


def oja(learning_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None) -> optax.GradientTransformationExtraArgs:
    """Adds Oja's subspace rule to the updates.

    For a layer `y = f(x W)` with kernel `W` of shape (n_in, n_out), presynaptic `x` and postsynaptic `y`, it adds::

        learning_rate * (x^T y - W y^T y)        averaged over the batch

    which draws the columns of `W` towards an orthonormal basis of the principal subspace of `x`. It costs one product
    with `W` and one rank-one update a sample; the n_out x n_out matrix `y^T y` is never formed.

    Put it *after* the optimizer in `optax.chain`: before `optax.sgd(eta)` it would be multiplied by `-eta`, which turns
    the rule around. :func:`oja_sgd` is the pair in the right order.

    Args:
      learning_rate: Oja's rate (theta in the paper), a float, a traced scalar or an Optax schedule of the step count.
      mask: A pytree of booleans with the structure (or a prefix of the structure) of the parameters, or a function that
        makes one from them; `True` where the rule applies. By default it applies wherever there is an activity.

    Returns:
      A gradient transformation whose `update` takes `params` and, by keyword, `activity`: a pytree with an
      :class:`Activity` (or, as Flax's `sow` leaves it, a tuple with one for each call) at the path of each plastic kernel.
      A parameter without an activity is left alone. The change has the parameter's dtype.

    Raises:
      ValueError: When it is made, if `learning_rate` is negative or not finite. In `update`, if `params` or `activity` is
        missing, an activity stands at a path that is no parameter, its shapes do not fit the kernel, or there is none.

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
    return _add_plasticity("oja", _oja_rule, learning_rate, mask)


def oja_per_neuron(
    learning_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds Oja's single-neuron rule, each neuron on its own, to the updates.

    For neuron i with weights `w_i` (column i of the kernel) it adds `learning_rate * (y_i x - y_i^2 w_i)`, averaged over
    the batch. It keeps each `|w_i|` near 1 but lets every neuron find the same first principal component.

    Args, Returns, Raises: as :func:`oja`.

    References:
      Oja, "Simplified neuron model as a principal component analyzer", J. Math. Biology 15, 1982.
    """
    return _add_plasticity("oja_per_neuron", _oja_per_neuron_rule, learning_rate, mask)


def sanger(learning_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None) -> optax.GradientTransformationExtraArgs:
    """Adds Sanger's rule (the generalized Hebbian algorithm) to the updates.

    For neuron i it adds `learning_rate * y_i (x - sum_{j <= i} y_j w_j)`, averaged over the batch. The columns of the
    kernel become the principal components themselves, in order, where :func:`oja` finds only the subspace they span. The
    samples of a batch are taken one after another, to keep the memory of one kernel.

    Args, Returns, Raises: as :func:`oja`.

    References:
      Sanger, "Optimal unsupervised learning in a single-layer linear feedforward neural network", Neural Networks 2, 1989.
    """
    return _add_plasticity("sanger", _sanger_rule, learning_rate, mask)


def hebb(learning_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None) -> optax.GradientTransformationExtraArgs:
    """Adds plain Hebbian learning, `learning_rate * x^T y` averaged over the batch, to the updates.

    Nothing bounds the weights. A negative rate, anti-Hebbian learning, is allowed here and only here.

    Args, Returns, Raises: as :func:`oja`, but for the sign of the rate.

    References:
      Hebb, "The Organization of Behavior", 1949.
    """
    return _add_plasticity("hebb", _hebb_rule, learning_rate, mask, signed=True)


def oja_sgd(
    learning_rate: optax.ScalarOrSchedule, oja_rate: optax.ScalarOrSchedule, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Plain gradient descent with Oja's rule: the paper's hybrid, in the only right order.

    Args:
      learning_rate: Rate of the error term (eta in the paper), as in `optax.sgd`.
      oja_rate: Rate of Oja's term (theta), as in :func:`oja`; the two are independent.
      mask: Where Oja's rule applies, as in :func:`oja`.

    Returns:
      `optax.chain(optax.sgd(learning_rate), ojax.oja(oja_rate, mask=mask))`.

    Raises:
      ValueError: As :func:`oja`.
    """
    return optax.chain(optax.sgd(learning_rate), oja(oja_rate, mask=mask))


# The rules themselves, in Flax's layout: kernel (n_in, n_out), so that w_i of the papers is column i.


def _oja_rule(kernel, pre, post):
    # The paper's y x^T - y y^T W, reassociated: what the layer's answer does not yet explain of its input, times y.
    if len(pre) == 1:  # Written out, XLA makes it a part of the pass that updates the kernel.
        return (pre[0] - kernel @ post[0])[:, None] * post[0]
    residual = pre - post @ kernel.T
    return residual.T @ post / len(pre)


def _oja_per_neuron_rule(kernel, pre, post):
    return pre.T @ post / len(pre) - kernel * jnp.mean(post**2, axis=0)


def _sanger_rule(kernel, pre, post):
    def add_sample(total, sample):
        x, y = sample
        explained = jnp.cumsum(kernel * y, axis=1)  # column i: what neurons 0..i explain of x
        return total + y * (x[:, None] - explained), None

    total, _ = lax.scan(add_sample, jnp.zeros_like(kernel), (pre, post))
    return total / len(pre)


def _hebb_rule(kernel, pre, post):
    del kernel
    return pre.T @ post / len(pre)


def _add_plasticity(
    name: str, rule: Rule, learning_rate: optax.ScalarOrSchedule, mask: Mask | None, *, signed: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Makes the transformation that adds `learning_rate * rule(kernel, pre, post)` to the updates."""
    scheduled = callable(learning_rate)
    if not scheduled:
        _check_rate(name, learning_rate, signed)

    def init_fn(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32)) if scheduled else optax.EmptyState()

    def update_fn(updates, state, params=None, *, activity=None, **extra_args):
        del extra_args
        if params is None or activity is None:
            missing = "params" if params is None else "activity"
            raise ValueError(f"ojax.{name} needs the {missing}: call tx.update(grads, state, params, activity=activity).")
        rate = learning_rate(state.count) if scheduled else learning_rate
        activities = _activity_by_parameter(name, activity, params)

        def add(path, update, param):
            calls = activities.get(path)
            if calls is None:
                return update
            # Half-precision sums would lose most of a small rate's change, so the rule is computed in float32 at least.
            dtype = jnp.promote_types(param.dtype, jnp.float32)
            pre, post = (jnp.concatenate([_as_batch(call[side], dtype) for call in calls]) for side in (0, 1))
            change = jnp.asarray(rate, dtype) * rule(param.astype(dtype), pre, post)
            return update + change.astype(param.dtype)

        leaves, treedef = jax.tree.flatten(updates, is_leaf=_is_masked)
        # Flattened beside the parameters: their paths name the kernels, whatever container the updates come in.
        named_params = _named_leaves(params)
        new = [
            update if _is_masked(update) else add(path, update, param)
            for update, (path, param) in zip(leaves, named_params, strict=True)
        ]
        if scheduled:
            state = optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
        return jax.tree.unflatten(treedef, new), state

    transformation = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return transformation if mask is None else optax.masked(transformation, mask)


def _check_rate(name: str, learning_rate: Any, signed: bool) -> None:
    if isinstance(learning_rate, jax.core.Tracer) or jnp.ndim(learning_rate) != 0:
        return  # A traced rate has no value yet; arrays of rates are the business of whoever maps over them.
    value = float(learning_rate)  # Compared as Python's number: under a trace, JAX would trace even a constant's sign.
    if not math.isfinite(value) or (value < 0 and not signed):
        wanted = "finite" if signed else "finite and at least 0"
        raise ValueError(f"ojax.{name}: the learning rate must be {wanted}, got {learning_rate}.")


def _activity_by_parameter(name: str, activity: Any, params: Any) -> dict[str, list[Activity]]:
    """The activities of each kernel, one for each call of its layer, by the path of the parameter."""
    parameters = dict(_named_leaves(params))
    found: dict[str, list[Activity]] = {}
    any_masked = False
    for keys, leaf in jax.tree.leaves_with_path(activity, is_leaf=lambda node: isinstance(node, Activity)):
        path = _path(keys)
        if not isinstance(leaf, Activity):
            raise ValueError(f"ojax.{name}: activity[{path!r}] is a {type(leaf).__name__}, not an ojax.Activity.")
        if any(_is_masked(parameters.get(_path(keys[:length]))) for length in range(len(keys) + 1)):
            any_masked = True  # The kernel, or the part of the network above it, is masked out.
            continue
        if path not in parameters and keys and isinstance(keys[-1], jax.tree_util.SequenceKey):
            path = _path(keys[:-1])  # Flax's `sow` keeps a tuple, with one entry for each call of the layer.
        if path not in parameters:
            raise ValueError(
                f"ojax.{name}: activity[{path!r}] with pre {jnp.shape(leaf.pre)} and post {jnp.shape(leaf.post)} is at "
                f"the path of no parameter; the parameters are {_abbreviated(parameters)}."
            )
        _check_shapes(name, path, leaf, parameters[path])
        found.setdefault(path, []).append(leaf)
    if not found and not any_masked:
        raise ValueError(
            f"ojax.{name}: the activity tree holds no ojax.Activity, so nothing would learn; record one at the path of "
            f"each plastic kernel of {_abbreviated(parameters)}."
        )
    return found


def _check_shapes(name: str, path: str, activity: Activity, kernel: Array) -> None:
    pre, post, shape = jnp.shape(activity.pre), jnp.shape(activity.post), jnp.shape(kernel)
    fits = len(shape) == 2 and min(len(pre), len(post)) >= 1
    if not fits or pre[:-1] != post[:-1] or (pre[-1], post[-1]) != shape or math.prod(pre[:-1]) == 0:
        raise ValueError(
            f"ojax.{name}: activity[{path!r}] with pre {pre} and post {post} does not fit the parameter of shape {shape}; "
            "a kernel (n_in, n_out) needs pre (..., n_in) and post (..., n_out) with the same, non-empty, leading axes."
        )


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree.leaves_with_path(tree, is_leaf=_is_masked)
    return [(_path(keys), leaf) for keys, leaf in leaves]


def _path(keys: tuple) -> str:
    """`layers/0/kernel`, the same for a dict, a list or a Flax state, whose boxes add a `.value` of no meaning here."""
    boxed = [key for key in keys if not (isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value")]
    return jax.tree_util.keystr(tuple(boxed), simple=True, separator="/")


def _abbreviated(paths: Iterable[str], limit: int = 6) -> str:
    paths = list(paths)
    return ", ".join(paths[:limit]) + (f" and {len(paths) - limit} more" if len(paths) > limit else "")


def _as_batch(array: Array, dtype: Any) -> Array:
    return jnp.reshape(array, (-1, jnp.shape(array)[-1])).astype(dtype)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
