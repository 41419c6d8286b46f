"""Flax networks whose activity tree has the paths of their parameters.

:class:`Dense` and :class:`MLP` record their own activity. A network of one's own needs one line a layer, :func:`record`
(NNX), or none, :func:`apply_linen` (Linen).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ojax.plasticity import Activity

Activation = Callable[[Array], Array]
Initializer = Callable[..., Array]

glorot_uniform: Initializer = jax.nn.initializers.glorot_uniform()


class Recorded(nnx.Intermediate):
    """The NNX variable type under which activity is sown, apart from a model's other intermediates."""


def softplus(z: Float[Array, "..."], beta: float = 10.0) -> Float[Array, "..."]:
    """Softplus of sharpness beta, `log(1 + exp(beta z)) / beta`; its derivative at y = f(z) is `1 - exp(-beta y)`.

    Source: Shervani-Tabar et al., https://arxiv.org/abs/2210.16414, the networks' non-linearity, with beta = 10.
    """
    return jax.nn.softplus(beta * z) / beta


def record(layer: nnx.Module, pre: Float[Array, "*batch n_in"], post: Float[Array, "*batch n_out"]) -> None:
    """Records the activity of one layer under the name of its `kernel`; call it where the network is called.

    Outside :func:`with_activity` it does nothing, so a network that records still runs as before::

        def __call__(self, x):
            hidden = nnx.relu(self.encoder(x))
            ojax.record(self.encoder, x, hidden)

    Args:
      layer: The layer whose parameter `kernel` is plastic, an `nnx.Linear` say.
      pre: The layer's input, shape (..., n_in).
      post: The layer's output after the non-linearity, shape (..., n_out).
    """
    # Outside of a capture, `sow` would try to overwrite the kernel itself.
    if hasattr(layer, "__captures__"):
        layer.sow(Recorded, "kernel", Activity(pre, post))


def with_activity(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[Any, nnx.State]:
    """Calls an NNX model and returns its output and its activity, for `tx.update(..., activity=activity)`.

    Args:
      model: A network of ojax layers, or one that calls :func:`record`.
      *args: The model's own arguments.
      **kwargs: The same, by keyword.

    Returns:
      The output and a state with a tuple of :class:`ojax.Activity`, one a call, at the path of each recorded kernel.
    """

    def call(model):
        return model(*args, **kwargs)

    output, activity = nnx.capture(call, Recorded)(model)
    return output, activity


def apply_linen(
    model: linen.Module,
    variables: PyTree,
    *args: Any,
    post: Callable[[str, Array], Array],
    mutable: Sequence[str] = (),
    **kwargs: Any,
) -> tuple[Any, PyTree]:
    """Applies an unchanged Linen model and returns its output and the activity of each of its `nn.Dense` layers.

    Args:
      model: Any Linen model with `nn.Dense` layers.
      variables: As for `model.apply`; the activity's paths are those of `variables["params"]`.
      *args: The model's own arguments.
      **kwargs: The same, by keyword, and `rngs` and the like for `model.apply`.
      post: From a layer's path and its output to its postsynaptic activity, since the model applies its non-linearity
        outside of the layer: `lambda path, z: jax.nn.softmax(z) if path == "Dense_2" else jax.nn.relu(z)`.
      mutable: Collections that the model itself changes, `["batch_stats"]` say.

    Returns:
      What `model.apply` returns (with `mutable`, its pair with the changed collections), and the activity tree.
    """

    def sow_activity(call, call_args, call_kwargs, context):
        z = call(*call_args, **call_kwargs)
        layer = context.module
        if isinstance(layer, linen.Dense) and context.method_name == "__call__":
            pre = call_args[0] if call_args else call_kwargs["inputs"]
            layer.sow("activity", "kernel", Activity(pre, post("/".join(layer.path), z)))
        return z

    with linen.intercept_methods(sow_activity):
        output, changed = model.apply(variables, *args, mutable=[*mutable, "activity"], **kwargs)
    activity = changed.get("activity", {})
    changed = {name: collection for name, collection in changed.items() if name != "activity"}
    return ((output, changed) if mutable else output), activity


class Dense(nnx.Module):
    """A plastic layer `y = f(x W)` that records its activity.

    Attributes:
      kernel: `W`, shape (n_in, n_out), Flax's layout.
      bias: Shape (n_out,), or None.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        activation: Activation = softplus,
        kernel_init: Initializer = glorot_uniform,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (n_in, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,))) if use_bias else None
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """The layer's output after its non-linearity."""
        y = self.activation(self.preactivation(x))
        record(self, x, y)
        return y

    def preactivation(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """The layer's output before its non-linearity; records nothing."""
        z = x @ self.kernel[...]
        return z if self.bias is None else z + self.bias[...]


class MLP(nnx.Module):
    """A feed-forward classifier: plastic hidden layers and a plastic softmax read-out.

    The paper's network is `MLP([784, 170, 130, 100, 70, 47], rngs=nnx.Rngs(0))`: softplus units, no biases,
    Glorot-uniform weights. It returns logits; the read-out's recorded activity is their softmax, because the
    probabilities are its postsynaptic activity in Oja's rule.

    Args:
      widths: Number of units of each layer, the input first and the classes last; one fewer kernels than widths.
      activation: Non-linearity of the hidden layers.
      kernel_init: Initializer of every kernel.
      use_bias: Whether layers have biases; Oja's rule leaves them alone.
      rngs: The key for the weights.

    Raises:
      ValueError: If there are fewer than two widths or one is less than 1.

    Source: https://arxiv.org/abs/2210.16414 (network) and https://arxiv.org/abs/2408.08408 (Oja's term on each layer).
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Activation = softplus,
        kernel_init: Initializer = glorot_uniform,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"An MLP needs at least an input and an output width, each at least 1, got {list(widths)}.")
        activations = [activation] * (len(widths) - 2) + [jax.nn.softmax]
        self.layers = nnx.List(
            Dense(n_in, n_out, activation=f, kernel_init=kernel_init, use_bias=use_bias, rngs=rngs)
            for n_in, n_out, f in zip(widths[:-1], widths[1:], activations, strict=True)
        )

    def __call__(self, x: Float[Array, "*batch pixels"]) -> Float[Array, "*batch classes"]:
        """The logits of each class."""
        *hidden, readout = self.layers
        for layer in hidden:
            x = layer(x)
        logits = readout.preactivation(x)
        record(readout, x, readout.activation(logits))
        return logits


def as_functions(
    make: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[PRNGKeyArray], PyTree], Callable[..., tuple[Any, PyTree]]]:
    """Turns an NNX model that records its activity into the pure functions that :mod:`ojax.online` maps over runs.

    Args:
      make: Makes the model, `lambda rngs: ojax.MLP([784, 100, 10], rngs=rngs)`.

    Returns:
      `init(key) -> params`, with plain arrays as leaves, and `apply(params, *inputs) -> (output, activity)`.
    """
    # Only the structure is needed here, so no weights are drawn; `apply` fills in the run's own.
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key: PRNGKeyArray) -> PyTree:
        return nnx.as_pure(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def apply(params: PyTree, *inputs: Any) -> tuple[Any, PyTree]:
        output, activity = with_activity(nnx.merge(graphdef, params), *inputs)
        return output, nnx.as_pure(activity)

    return init, apply
