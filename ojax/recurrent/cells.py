"""Recurrent cells and networks that record their activity."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from ojax.modules import Activation, Dense, Initializer, linear, record

Carry = Any


def small_uniform(key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Returns uniform weights from -0.5 to 0.5 for any shape, as is common for the inputs of a reservoir."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


#: Normal weights of variance 1 / n_in: the spectral radius of a large recurrent kernel is near 1.
unit_normal: Initializer = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Cell(nnx.RNNCellBase):
    """A plastic recurrent layer `h' = (1 - a) h + a f(x U + h W)` that records its activity.

    Both kernels record one postsynaptic activity, `y = f(x U + h W)`. Oja's rule on both is therefore the rule of the
    stacked matrix `[U; W]` with the presynaptic activity `[x, h]`: its residual `[x, h] - [U; W] y` stacks the residuals of
    `U` and `W`. To change only one of them, give the rule a `mask`.

    Call it as Flax's own cells, `h, y = cell(h, x)`, alone or inside of `nnx.RNN`. The activity of a sequence has a leading
    axis for the steps, so a rule averages over them.

    Args:
      in_features: Number of inputs.
      hidden_features: Number of units.
      activation: The non-linearity f.
      leaking_rate: a, from above 0 to 1, the share of the hidden state that is new in each step: one over the time constant
        in steps. 1 is a network without leak.
      input_init: Initializer of U.
      recurrent_init: Initializer of W.
      rngs: Its stream `params` draws the kernels.

    Raises:
      ValueError: If the leaking rate is not above 0 and at most 1.

    Source: Jaeger et al. 2007, https://doi.org/10.1016/j.neunet.2007.04.016, equation 2 (leaky integrator units).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation: Activation = jnp.tanh,
        leaking_rate: float = 1.0,
        input_init: Initializer = small_uniform,
        recurrent_init: Initializer = unit_normal,
        rngs: nnx.Rngs,
    ):
        if not 0 < leaking_rate <= 1:
            raise ValueError(f"leaking_rate must be above 0 and at most 1, got {leaking_rate}.")
        self.in_features, self.hidden_features = in_features, hidden_features
        self.activation, self.leaking_rate = activation, leaking_rate
        self.input = nnx.Linear(in_features, hidden_features, use_bias=False, kernel_init=input_init, rngs=rngs)
        self.recurrent = nnx.Linear(hidden_features, hidden_features, use_bias=False, kernel_init=recurrent_init, rngs=rngs)

    def __call__(self, carry: Float[Array, "*batch n"], inputs: Float[Array, "*batch n_in"]) -> tuple[Array, Array]:
        """Returns the new hidden state twice: as the carry, and as the output."""
        output = self.activation(self.preactivation(carry, inputs))
        record(self.input, inputs, output)
        record(self.recurrent, carry, output)
        # Without a leak the program has no extra operations.
        hidden = output if self.leaking_rate == 1 else carry + self.leaking_rate * (output - carry)
        return hidden, hidden

    def preactivation(
        self, carry: Float[Array, "*batch n"], inputs: Float[Array, "*batch n_in"]
    ) -> Float[Array, "*batch n"]:
        """Returns `z = x U + h W`; records no activity."""
        return self.input(inputs) + self.recurrent(carry)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Array:
        """Returns zeros of shape (*batch, n), for inputs of shape (*batch, n_in)."""
        del rngs, carry_init
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.recurrent.kernel.dtype)

    @property
    def num_feature_axes(self) -> int:
        """1, for :class:`flax.nnx.RNN`."""
        return 1


class Network(nnx.Module):
    """A recurrent cell and a linear read-out with a bias, for one step: `carry, output = network(carry, x)`.

    The read-out starts at zero. By default it records no activity and is not plastic: Oja's rule would draw it to the
    principal subspace of the hidden state, which is not the solution of a regression.

    Args:
      cell: A cell that records its activity, :class:`Cell` or your own, with the attributes `in_features` and
        `hidden_features` of Flax's cells.
      out_features: Number of outputs.
      readout: Maps the output to the read-out's postsynaptic activity, `jax.nn.softmax` for a classifier, and makes the
        read-out plastic. None for a read-out that learns only by its error.
      rngs: For the read-out.
    """

    def __init__(self, cell: Any, out_features: int, *, readout: Activation | None = None, rngs: nnx.Rngs):
        self.cell, self.is_plastic = cell, readout is not None
        zeros = jax.nn.initializers.zeros
        self.readout = Dense(
            cell.hidden_features, out_features, activation=readout or linear, kernel_init=zeros, use_bias=True, rngs=rngs
        )

    def __call__(self, carry: Carry, inputs: Float[Array, "*batch n_in"]) -> tuple[Carry, Float[Array, "*batch n_out"]]:
        """Takes one step: returns the new carry, and the output."""
        carry, hidden = self.cell(carry, inputs)
        return carry, self.output(hidden)

    def output(self, hidden: Float[Array, "*batch n"]) -> Float[Array, "*batch n_out"]:
        """Returns the output for a hidden state."""
        result = self.readout.preactivation(hidden)
        if self.is_plastic:
            record(self.readout, hidden, self.readout.activation(result))
        else:
            record(self.readout)
        return result

    def initialize_carry(self) -> Carry:
        """Returns the carry before the first step, for one stream."""
        return self.cell.initialize_carry((self.cell.in_features,), nnx.Rngs(0))
