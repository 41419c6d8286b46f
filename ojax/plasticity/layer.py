"""The argument of a rule: one layer's kernel, activity and signals."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Array, Float, PyTree

from ojax.activity import Activity


class Layer:
    """One layer's kernel, activity and signals for a batch of samples: the argument of a rule.

    Attributes:
      kernel: W, shape (n_in, n_out).
      pre: The layer's input, shape (batch, n_in). For a convolution each row is a patch.
      post: Its output after the non-linearity, shape (batch, n_out).
      signals: The signals that the rule declares, by name.
      number: The kernel's number among the kernels with an activity, from 0, in the order of the parameters.
      count: The number of kernels with an activity.
      images: For a convolution, one :class:`ojax.Activity` per call of the layer, with whole images: `pre` is an
        :class:`ojax.Patches` of shape (images, *space, channels), `post` has shape (images, *positions, n_out). Empty for
        other layers.
    """

    def __init__(
        self,
        kernel: Array,
        pre: Array,
        post: Array,
        pre_error: Array | None = None,
        post_error: Array | None = None,
        signals: Mapping[str, PyTree] | None = None,
        *,
        images: Sequence[Activity] = (),
        number: int = 0,
        count: int = 1,
        where: str = "the activity",
    ):
        self.kernel, self.pre, self.post = kernel, pre, post
        self.signals, self.images = _Signals(signals or {}), tuple(images)
        self.number, self.count = number, count
        self._errors, self._where = {"pre_error": pre_error, "post_error": post_error}, where

    @property
    def pre_error(self) -> Float[Array, "batch n_in"]:
        """The error of the input's units under the network's feedback, shape (batch, n_in)."""
        return self._error("pre_error")

    @property
    def post_error(self) -> Float[Array, "batch n_out"]:
        """The error of the output's units: the gradient of the loss with respect to z = x W, shape (batch, n_out)."""
        return self._error("post_error")

    # Cached, since the rules of a pool share these and each is a pass over the kernel. A single sample is multiplied as a
    # vector, which XLA does faster.
    @functools.cached_property
    def forward(self) -> Float[Array, "batch n_out"]:
        """`x W`."""
        return (self.pre[0] @ self.kernel)[None] if len(self.pre) == 1 else self.pre @ self.kernel

    @functools.cached_property
    def backward(self) -> Float[Array, "batch n_in"]:
        """`W y`, the reconstruction of the input from the output."""
        return (self.kernel @ self.post[0])[None] if len(self.post) == 1 else self.post @ self.kernel.T

    def _error(self, side: str) -> Array:
        error = self._errors[side]
        if error is None:
            raise ValueError(
                f"{self._where} has no {side}, which this rule reads: give ojax.Activity(pre, post, pre_error, post_error)."
            )
        return error


class _Signals(dict):
    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"The rule reads the signal {name!r} without declaring it: ojax.plasticity.rule(..., signals=[{name!r}])."
        )
