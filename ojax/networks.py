"""Feed-forward networks of plastic layers: :class:`MLP` and :class:`CNN`."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from ojax import feedback
from ojax.activity import is_masked
from ojax.modules import Activation, Conv, Dense, Initializer, glorot_uniform, softplus, without_error
from ojax.recording import record
from ojax.trees import abbreviated, map_named, named_leaves


class _FeedForward(nnx.Module):
    """Hidden layers, a read-out and feedback weights; records the read-out's activity."""

    layers: nnx.List
    direct_feedback: nnx.List | None

    def __call__(self, x: Float[Array, "*batch_and_input"]) -> Float[Array, "*batch n_out"]:
        """The read-out's pre-activation: the logits of a classifier."""
        *hidden, readout = self.layers
        if self.direct_feedback is None:
            for layer in hidden:
                x = layer(x)
            x = self.as_vector(x)
            logits = readout.preactivation(x)
        else:
            outputs: list[Array] = []
            for layer in hidden:
                x = layer(without_error(x) if outputs else x)
                outputs.append(x)
            x = self.as_vector(without_error(x) if outputs else x)
            logits = readout.preactivation(x)
            vectors = [self.as_vector(output) for output in outputs]
            logits = feedback.direct(logits, vectors, [weights[...] for weights in self.direct_feedback])
        record(readout, readout.pre(x), readout.activation(logits))
        return logits

    def as_vector(self, x: Array) -> Float[Array, "*batch n"]:
        """Returns a layer's output as the vector that the read-out and its feedback use."""
        return x


def hidden_layers(params: PyTree) -> PyTree:
    """The mask of a rule that leaves the read-out out: `ojax.oja(1e-3, mask=ojax.hidden_layers)`.

    Args:
      params: The parameters of an :class:`MLP` or a :class:`CNN`, or of a network that has such networks in it.

    Returns:
      False for each parameter of a read-out, the last of a network's `layers`, and True for all others.

    Raises:
      ValueError: If there are no such networks.
    """
    # Parameters that another mask leaves out still tell which layer is the last.
    paths = [path for path, _ in named_leaves(params, is_masked)]
    layers: dict[str, dict[str, int]] = {}  # By network and path.
    for place in filter(None, map(_LAYER.match, paths)):
        layers.setdefault(place["network"], {})[place.string] = int(place["layer"])

    def is_whole(network: str) -> bool:
        """Returns whether it has parameters in its layers alone; another list called `layers` may end anywhere."""
        inside = [path for path in paths if path.startswith(network) and path not in layers[network]]
        return all(path.startswith(f"{network}direct_feedback/") for path in inside)

    last = {network: max(numbers.values()) for network, numbers in layers.items() if is_whole(network)}
    if not last and paths == [""]:
        raise ValueError('ojax.hidden_layers got one array; with optax.inject_hyperparams, give static_args=["mask"].')
    if not last:
        raise ValueError(
            "ojax.hidden_layers knows the layers of ojax.MLP and ojax.CNN, and there are none in these parameters: "
            f"{abbreviated(paths)}. Write a custom mask: a function of the parameters that returns False for each one of "
            "the read-out."
        )

    def is_hidden(path: str, _: Any) -> bool:
        place = _LAYER.match(path)
        return not place or int(place["layer"]) != last.get(place["network"])

    return map_named(is_hidden, params)


_LAYER = re.compile(r"(?P<network>(.*/)?)layers/(?P<layer>\d+)/")


class MLP(_FeedForward):
    """A feed-forward network: plastic hidden layers and a plastic read-out, by default a softmax classifier's.

    The paper's network is `MLP([784, 170, 130, 100, 70, 47], rngs=nnx.Rngs(0))`: softplus units, no biases,
    Glorot-uniform weights. It returns logits. The read-out's recorded activity is their softmax, because Oja's rule uses
    the probabilities as the postsynaptic activity. For a regression pass `readout=ojax.modules.linear`.

    Args:
      widths: Number of units of each layer, the input first and the classes last; one fewer kernels than widths.
      activation: Non-linearity of the hidden layers.
      readout: Maps the network's output to the read-out's postsynaptic activity: `jax.nn.softmax`, or
        :func:`ojax.modules.linear`.
      kernel_init: Initializer of every kernel.
      feedback: The path of the error: `backprop`; `random`, through a fixed random matrix in place of each kernel but the
        first, see :func:`ojax.feedback.matmul`; or `direct`, from the read-out to each hidden layer, see
        :func:`ojax.feedback.direct`. Feedback weights are Glorot-uniform, drawn from the stream `feedback`.
      normalization: Makes a hidden layer's normalization from its width: `nnx.LayerNorm`, :class:`ojax.modules.BatchNorm`,
        or None. Its scale and offset learn only by the gradient.
      use_bias: Whether layers have biases; Oja's rule leaves them alone.
      rngs: The keys for the weights.

    Raises:
      ValueError: If there are fewer than two widths, one is less than 1, there is no such feedback, or the read-out is the
        softmax of a single unit, which is always 1.

    Source: https://arxiv.org/abs/2210.16414 (network) and https://arxiv.org/abs/2408.08408 (Oja's term on each layer).
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Activation = softplus,
        readout: Activation = jax.nn.softmax,
        kernel_init: Initializer = glorot_uniform,
        feedback: str = "backprop",
        normalization: Callable[..., nnx.Module] | None = None,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"An MLP needs at least an input and an output width, each at least 1, got {list(widths)}.")
        _check(feedback, readout, widths[-1])
        last = len(widths) - 2
        self.layers = nnx.List(
            Dense(
                *sizes,
                activation=readout if layer == last else activation,
                kernel_init=kernel_init,
                # Below the first layer there is nothing to send an error to.
                feedback_init=glorot_uniform if feedback == "random" and layer > 0 else None,
                normalization=normalization if layer < last else None,
                use_bias=use_bias,
                rngs=rngs,
            )
            for layer, sizes in enumerate(itertools.pairwise(widths))
        )
        direct = feedback == "direct"
        self.direct_feedback = nnx.List(_direct_weights(n, widths[-1], rngs) for n in widths[1:-1]) if direct else None


class CNN(_FeedForward):
    """A convolutional network: plastic convolutions, and a plastic read-out of all outputs of the last one.

    `CNN((28, 28, 1), [16, 16, 16], 10, strides=[2, 1, 2], rngs=nnx.Rngs(0))` has three hidden layers of 3 x 3 kernels,
    softplus units and no biases. It takes images of shape (..., 28, 28, 1) and returns logits. It pools by stride.

    Args:
      image_shape: Shape of an image, (*space, channels).
      channels: Number of channels of each hidden layer.
      n_out: Number of outputs, the classes.
      kernel_sizes: Width of each layer's square kernel, or one width for all.
      strides: Steps between the positions of each layer, or one number for all.
      padding: `SAME` or `VALID`.
      activation: Non-linearity of the hidden layers.
      readout: As in :class:`MLP`.
      kernel_init: Initializer of every kernel. Glorot's counts the window in both fans.
      feedback: As in :class:`MLP`; `direct` has one weight per class, channel and position.
      normalization: Makes a hidden layer's normalization from its number of channels, see :class:`ojax.modules.Conv`.
      use_bias: Whether layers have biases, one per channel; Oja's rule leaves them alone.
      rngs: The keys for the weights.

    Raises:
      ValueError: If a number is too small, there is no such feedback, or the read-out is the softmax of one unit.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        n_out: int,
        *,
        kernel_sizes: int | Sequence[int] = 3,
        strides: int | Sequence[int] = 1,
        padding: str = "SAME",
        activation: Activation = softplus,
        readout: Activation = jax.nn.softmax,
        kernel_init: Initializer = glorot_uniform,
        feedback: str = "backprop",
        normalization: Callable[..., nnx.Module] | None = None,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        depth, space = len(channels), tuple(image_shape[:-1])
        sizes, steps = ([each] * depth if isinstance(each, int) else list(each) for each in (kernel_sizes, strides))
        if not space or min(image_shape, default=0) < 1 or min(channels, default=0) < 1 or n_out < 1:
            raise ValueError(
                "A CNN needs the shape of an image, (*space, channels), and the channels of at least one hidden layer, all "
                f"at least 1; got {tuple(image_shape)}, {list(channels)} and {n_out} outputs."
            )
        if not len(sizes) == len(steps) == depth or min(sizes + steps) < 1:
            raise ValueError(
                f"A CNN of {depth} hidden layers needs as many kernel sizes and strides, each at least 1; got {sizes} and "
                f"{steps}."
            )
        _check(feedback, readout, n_out)
        shared: dict = {"kernel_init": kernel_init, "use_bias": use_bias, "rngs": rngs}
        layers: list[nnx.Module] = []
        image, shapes = jax.ShapeDtypeStruct(tuple(image_shape), jnp.float32), []
        for layer, (n, size, step) in enumerate(zip(channels, sizes, steps, strict=True)):
            made = Conv(
                image.shape[-1],
                n,
                [size] * len(space),
                strides=step,
                padding=padding,
                activation=activation,
                # Below the first layer there is nothing to send an error to.
                feedback_init=glorot_uniform if feedback == "random" and layer > 0 else None,
                normalization=normalization,
                **shared,
            )
            patches = jax.eval_shape(made.pre, image)
            image = jax.ShapeDtypeStruct((*patches.positions, n), jnp.float32)
            layers.append(made)
            shapes.append(image.shape)
        feedback_init = glorot_uniform if feedback == "random" else None
        layers.append(Dense(math.prod(image.shape), n_out, activation=readout, feedback_init=feedback_init, **shared))
        self.layers = nnx.List(layers)
        direct = feedback == "direct"
        self.direct_feedback = (
            nnx.List(_direct_weights(math.prod(shape), n_out, rngs) for shape in shapes) if direct else None
        )
        self.image_rank = len(image_shape)

    def as_vector(self, x: Float[Array, "*batch_and_space channels"]) -> Float[Array, "*batch n"]:
        """Flattens positions and channels."""
        batch = x.ndim - self.image_rank
        return x.reshape(*x.shape[:batch], math.prod(x.shape[batch:]))  # A size of -1 fails for an empty batch.


def _check(feedback: str, readout: Activation, n_out: int) -> None:
    if feedback not in ("backprop", "random", "direct"):
        raise ValueError(f"feedback must be 'backprop', 'random' or 'direct', got {feedback!r}.")
    if readout is jax.nn.softmax and n_out == 1:
        raise ValueError("The softmax of a single unit is always 1: give readout=ojax.modules.linear, or more units.")


def _direct_weights(n: int, classes: int, rngs: nnx.Rngs) -> feedback.Feedback:
    return feedback.Feedback(glorot_uniform(rngs.feedback(), (n, classes), jnp.float32))
