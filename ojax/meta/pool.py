"""A pool of local rules as one Optax transformation, whose coefficients a meta-learner can learn."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ojax.activity import ActivityAndErrors, by_parameter
from ojax.meta.fusion import materialized
from ojax.meta.rules import Layer, Outer, Rule
from ojax.trees import named_leaves

_NAME = "ojax.meta.pool"
_FEW = 4  # Up to so many rows are multiplied one by one, which XLA does faster than a product of two matrices.
Coefficient = Float[Array, ""] | Float[Array, "layers"] | float


def pool(rules: Mapping[str, Rule], coefficients: Mapping[str, Coefficient]) -> optax.GradientTransformationExtraArgs:
    """Adds a linear combination of local rules to the updates.

    Args:
      rules: By name; those of :data:`ojax.meta.POOL`, and any of your own, see :mod:`ojax.meta.rules`.
      coefficients: Of each rule, by its name: a scalar that all kernels share, or a vector with an entry for each kernel,
        in the order of the parameters. They may be traced.

    Returns:
      A transformation whose `update` takes `params` and, by keyword, `activity`, a tree of
      :class:`ojax.meta.ActivityAndErrors`. It stands after `optax.set_to_zero()` where there is no other learning, or after
      any optimizer. A parameter without an activity is left alone.

    Raises:
      ValueError: If a rule has no coefficient; in `update`, as :func:`ojax.plasticity.rule`, and if an activity has no
        errors or a change has another shape than its kernel.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from ojax import meta
      >>> rules = {"pseudo_gradient": meta.POOL["pseudo_gradient"], "mine": lambda layer: -layer.kernel}
      >>> tx = optax.chain(optax.set_to_zero(), meta.pool(rules, {"pseudo_gradient": 0.5, "mine": 0.125}))
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> activity = {"kernel": meta.ActivityAndErrors(*map(jnp.array, ([1.0] * 3, [1.0] * 2, [0.0] * 3, [1.0, -1.0])))}
      >>> updates, _ = tx.update(params, tx.init(params), params, activity=activity)
      >>> print(updates["kernel"][0])
      [-0.625  0.375]
    """
    if missing := sorted(set(rules) - set(coefficients)):
        raise ValueError(f"{_NAME}: the rule {missing[0]!r} has no coefficient, only {', '.join(coefficients)} do.")

    def update_fn(updates, state, params=None, *, activity=None, **extra_args):
        del extra_args
        if params is None or activity is None:
            missing = "params" if params is None else "activity"
            raise ValueError(f"{_NAME} needs the {missing}: call tx.update(grads, state, params, activity=activity).")
        activities = by_parameter(_NAME, activity, params, -1)
        paths = [path for path, _ in named_leaves(params) if path in activities]
        leaves, treedef = jax.tree.flatten(updates)
        new = []
        for update, (path, param) in zip(leaves, named_leaves(params), strict=True):
            if path in activities:
                shares = {name: _share(coefficients[name], paths.index(path)) for name in rules}
                layer = Layer(param, *_as_batch(path, activities[path]))
                update = update + change(path, layer, rules, shares)
            new.append(update)
        return jax.tree.unflatten(treedef, new), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)


def change(
    path: str, layer: Layer, rules: Mapping[str, Rule], coefficients: Mapping[str, Float[Array, ""]]
) -> Float[Array, "n_in n_out"]:
    """What all rules together change of one kernel."""
    # Changes with the same factor on one side are one outer product. A product is cheap; passes over the kernel are not.
    products: dict[int, tuple[Array, Array]] = {}
    total = None
    for name, rule in rules.items():
        found, coefficient = rule(layer), coefficients[name]
        shape = (found.pre.shape[1], found.post.shape[1]) if isinstance(found, Outer) else jnp.shape(found)
        if shape != layer.kernel.shape:
            raise ValueError(
                f"{_NAME}: the change by {name!r} of {path} has shape {shape}, and not the kernel's, (n_in, n_out) = "
                f"{layer.kernel.shape}."
            )
        if isinstance(found, Outer):
            pre, post = products.get(id(found.pre), (found.pre, jnp.zeros_like(found.post)))
            products[id(found.pre)] = pre, post + coefficient * found.post
        else:
            total = coefficient * found if total is None else total + coefficient * found
    if products:
        pre, post = (jnp.concatenate(factors) for factors in zip(*products.values(), strict=True))
        product = _product(pre, post / (len(pre) // len(products)))
        total = product if total is None else total + product
    assert total is not None
    return total


@jax.custom_vjp
def _product(pre: Float[Array, "rows n_in"], post: Float[Array, "rows n_out"]) -> Float[Array, "n_in n_out"]:
    """`pre^T post`; a few rows are written out, which XLA fuses into the pass that updates the kernel."""
    if len(pre) > _FEW:
        return pre.T @ post
    first, *others = (one[:, None] * other for one, other in zip(pre, materialized(post), strict=True))
    return sum(others, start=first)


def _product_forward(pre, post):
    return _product(pre, post), (pre, post)


def _product_backward(factors, cotangent):
    # Not written out as above: XLA would make slow reductions of it.
    pre, post = factors
    to_pre = jnp.stack([cotangent @ row for row in post]) if len(post) <= _FEW else (cotangent @ post.T).T
    return to_pre, pre @ cotangent


_product.defvjp(_product_forward, _product_backward)


def _share(coefficient: Coefficient, number: int) -> Any:
    return coefficient if jnp.ndim(coefficient) == 0 else jnp.asarray(coefficient)[number]


def _as_batch(path: str, calls: list[Any]) -> tuple[Array, ...]:
    """Both sides and their errors, with the samples of all calls as one batch."""
    if not all(isinstance(call, ActivityAndErrors) for call in calls):
        raise ValueError(f"{_NAME}: activity[{path!r}] has no errors; ojax.meta.classifier records them.")
    sides = zip(*calls, strict=True)
    return tuple(jnp.concatenate([jnp.reshape(part, (-1, jnp.shape(part)[-1])) for part in side]) for side in sides)
