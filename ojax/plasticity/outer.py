"""Changes that are sums of outer products, added up before a matrix is formed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ojax.plasticity.fusion import materialized

_FEW = 4  # Up to this many rows are multiplied row by row, which XLA does faster than a matrix product.


@dataclasses.dataclass(frozen=True)
class Outer:
    """A change that is one outer product per sample, averaged over the batch.

    The factors of all outer products of a rule are added up before a matrix is formed. Products that share the array `pre`
    become one. Most rules of a pool share their factors, so a pool costs little more than one rule.

    Attributes:
      pre: The factor on the side of the inputs, shape (batch, n_in).
      post: The factor on the side of the outputs, shape (batch, n_out).
    """

    pre: Float[Array, "batch n_in"]
    post: Float[Array, "batch n_out"]

    __array_ufunc__ = None  # Makes a NumPy number times this call `__rmul__`.

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the change, (n_in, n_out)."""
        return (*jnp.shape(self.pre)[1:], *jnp.shape(self.post)[1:])

    def __rmul__(self, factor: Any) -> "Outer":
        return Outer(self.pre, factor * self.post)

    __mul__ = __rmul__


Changes = Array | Outer | Sequence["Changes"]


def parts_of(change: Any) -> list[Array | Outer]:
    """Returns the terms of a change."""
    return [term for part in change for term in parts_of(part)] if isinstance(change, list | tuple) else [change]


def summed(change: Changes) -> Float[Array, "n_in n_out"]:
    """Returns a change as an array."""
    # Changes that share a factor become one outer product: each product would be a pass over the kernel.
    products: dict[int, tuple[Array, Array]] = {}
    total: Any = None
    for part in parts_of(change):
        if isinstance(part, Outer):
            pre, post = products.get(id(part.pre), (part.pre, jnp.zeros_like(part.post)))
            products[id(part.pre)] = pre, post + part.post
        else:
            total = part if total is None else total + part
    if products:
        pre, post = (jnp.concatenate(factors) for factors in zip(*products.values(), strict=True))
        product = _product(pre, post / (len(pre) // len(products)))
        total = product if total is None else total + product
    return total


@jax.custom_vjp
def _product(pre: Float[Array, "rows n_in"], post: Float[Array, "rows n_out"]) -> Float[Array, "n_in n_out"]:
    """Returns `pre^T post`, row by row for a few rows, which XLA fuses into the pass that updates the kernel."""
    if len(pre) > _FEW:
        return pre.T @ post
    first, *others = (one[:, None] * other[None, :] for one, other in zip(pre, materialized(post), strict=True))
    return sum(others, start=first)


def _product_forward(pre, post):
    return _product(pre, post), (pre, post)


def _product_backward(factors, cotangent):
    # Not row by row: XLA would turn it into slow reductions.
    pre, post = factors
    to_pre = jnp.stack([cotangent @ row for row in post]) if len(post) <= _FEW else (cotangent @ post.T).T
    return to_pre, pre @ cotangent


_product.defvjp(_product_forward, _product_backward)
