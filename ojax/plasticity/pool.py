"""The published pool of ten local rules, and the sum of any rules, each with a coefficient.

Each rule of the pool is a change for :func:`ojax.plasticity.rule`: a function of one :class:`ojax.plasticity.Layer`. In the
paper W has shape (n_out, n_in), so that its `e_l y_{l-1}^T` is `pre^T post_error` here. All terms with an error have a
minus sign, so that a positive coefficient of the pseudo-gradient descends. Oja's rule has a plus sign, so that a positive
coefficient is Oja's, and a negative one is anti-Oja. (The first version of the authors' code subtracted it.)

Source: Shervani-Tabar and Rosenbaum 2023, https://doi.org/10.1038/s41467-023-37562-1, equations 14 to 23.
"""

import types
from collections.abc import Mapping
from typing import Any, Unpack

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ojax.plasticity.layer import Layer
from ojax.plasticity.outer import Outer, parts_of
from ojax.plasticity.rule import Change, Options, rule, takes_options

Coefficient = Float[Array, ""] | Float[Array, " layers"] | float


@takes_options
def pool(
    changes: Mapping[str, Change],
    coefficients: Mapping[str, Coefficient],
    **options: Unpack[Options],
) -> optax.GradientTransformationExtraArgs:
    """Adds a linear combination of local rules to the updates.

    Args:
      changes: Functions of a :class:`Layer` by name: from :data:`POOL`, or custom, see :func:`rule`.
      coefficients: The coefficient of each change, by its name: a scalar for all kernels, or a vector with one entry per
        kernel with an activity, in the order of the parameters. They may be traced.
      **options: Those that every rule takes, see :func:`rule`: `mask`, `in_axis`, `out_axis`, `batch_axis`, `axis_name` and
        `signals`.

    Returns:
      A transformation as from :func:`rule`. Put it after `optax.set_to_zero()` if nothing else should learn, or after any
      optimizer.

    Raises:
      ValueError: If a change has no coefficient; in `update` as :func:`rule`.

    Example:
      >>> import jax.numpy as jnp, ojax, optax
      >>> from ojax import plasticity
      >>> changes = {"pseudo_gradient": plasticity.POOL["pseudo_gradient"], "mine": lambda layer: -layer.kernel}
      >>> tx = optax.chain(optax.set_to_zero(), plasticity.pool(changes, {"pseudo_gradient": 0.5, "mine": 0.125}))
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> activity = {"kernel": ojax.Activity(*map(jnp.array, ([1.0] * 3, [1.0] * 2, [0.0] * 3, [1.0, -1.0])))}
      >>> updates, _ = tx.update(params, tx.init(params), params, activity=activity)
      >>> print(updates["kernel"][0])
      [-0.625  0.375]
    """
    if missing := sorted(set(changes) - set(coefficients)):
        raise ValueError(f"{_NAME}: the rule {missing[0]!r} has no coefficient, only {', '.join(coefficients)} do.")

    def change(layer: Layer) -> list[Any]:
        own = {name: _share(name, coefficients[name], layer) for name in changes}
        return [own[name] * part for name, change in changes.items() for part in _checked(name, layer, change(layer))]

    return rule(change, 1.0, name=_NAME, **options)


def _share(name: str, coefficient: Coefficient, layer: Layer) -> Any:
    if jnp.ndim(coefficient) == 0:
        return coefficient
    if jnp.shape(coefficient) != (layer.count,):
        raise ValueError(
            f"{_NAME}: the coefficients of {name!r} have shape {jnp.shape(coefficient)}: give a number, or one for each of "
            f"the {layer.count} kernels with an activity."
        )
    return jnp.asarray(coefficient)[layer.number]


def _checked(name: str, layer: Layer, change: Any) -> list[Any]:
    for part in parts_of(change):
        if jnp.shape(part) != layer.kernel.shape:
            raise ValueError(
                f"{_NAME}: the change {name!r} has shape {jnp.shape(part)}, and not the kernel's, (n_in, n_out) = "
                f"{layer.kernel.shape}."
            )
    return parts_of(change)


def _answered_error(layer: Layer) -> Float[Array, "batch 1"]:
    """`y_l^T W e_{l-1}`."""
    return jnp.sum(layer.backward * layer.pre_error, axis=1, keepdims=True)


_NAME = "ojax.plasticity.pool"


def pseudo_gradient(layer: Layer) -> Outer:
    """F0 = -e_l y_{l-1}^T: gradient descent on the error of the network's feedback. Equation 14."""
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
    """F4 = -1 e_{l-1}^T: the error of the inputs, equal for all outputs. Equation 18."""
    return Outer(layer.pre_error, -jnp.ones_like(layer.post))


def summed_activity(layer: Layer) -> Outer:
    """F5 = -e_l (1^T y_l) y_{l-1}^T: the pseudo-gradient by the summed activity of the layer. Equation 19."""
    return Outer(layer.pre, -jnp.sum(layer.post, axis=1, keepdims=True) * layer.post_error)


def answered_error(layer: Layer) -> Outer:
    """F6 = -y_l (y_l^T W e_{l-1}) e_{l-1}^T. Equation 20."""
    return Outer(layer.pre_error, -_answered_error(layer) * layer.post)


def gated_by_answered_error(layer: Layer) -> Outer:
    """F7 = -e_l (y_l^T W e_{l-1}) y_{l-1}^T. Equation 21."""
    return Outer(layer.pre, -_answered_error(layer) * layer.post_error)


def gated_by_answer(layer: Layer) -> Outer:
    """F8 = -y_l (y_{l-1}^T W^T e_l) e_{l-1}^T. Equation 22."""
    return Outer(layer.pre_error, -jnp.sum(layer.forward * layer.post_error, axis=1, keepdims=True) * layer.post)


def oja(layer: Layer) -> Outer:
    """F9 = +(y_l y_{l-1}^T - y_l y_l^T W), Oja's subspace rule, as in :func:`ojax.oja`. Equation 23."""
    return Outer(layer.pre - layer.backward, layer.post)


POOL: Mapping[str, Change] = types.MappingProxyType(
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
