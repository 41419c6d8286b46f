"""Flax networks whose activity tree has the paths of their parameters.

:class:`Dense` and :class:`MLP` record their own activity. A network of your own needs one line a layer, :func:`record`
(NNX), or none, :func:`ojax.apply_linen` (Linen).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ojax import feedback
from ojax.activity import Activity

Activation = Callable[[Array], Array]
Initializer = Callable[..., Array]

glorot_uniform: Initializer = jax.nn.initializers.glorot_uniform()


class Recorded(nnx.Intermediate):
    """The NNX variable type under which activity is sown, apart from a model's other intermediates."""


class Error(nnx.Perturbation):
    """The NNX variable type whose gradient is the error of a layer, that of the loss with respect to `z = x W`."""


def softplus(z: Float[Array, "..."], beta: float = 10.0) -> Float[Array, "..."]:
    """Softplus of sharpness beta, `log(1 + exp(beta z)) / beta`; its derivative at y = f(z) is `1 - exp(-beta y)`.

    Source: Shervani-Tabar et al., https://arxiv.org/abs/2210.16414, the networks' non-linearity, with beta = 10.
    """
    # XLA turns division by a constant into a multiplication and fuses it into every reader of y, recomputing it on each
    # pass over the weights. A divisor that XLA cannot fold keeps y materialized: about a sixth of CPU training time.
    return jax.nn.softplus(beta * z) / jnp.where(jnp.isnan(z), jnp.nan, beta)


def linear(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The identity, for a linear read-out."""
    return z


@jax.custom_vjp
def without_error(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The identity, through which no error goes back, in a gradient by `jax.grad` or `jax.vjp`.

    Where a whole run of learning is differentiated, see :func:`ojax.online.learn`, use it instead of `lax.stop_gradient`,
    which would also block the gradient of the run.
    """
    return x


without_error.defvjp(lambda x: (x, None), lambda _, error: (jnp.zeros_like(error),))


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


def value_and_grad(loss_fn: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., tuple[tuple, nnx.State]]:
    """`nnx.value_and_grad` that also returns the network's activity, for a loss function as it was before Oja.

    It is used as::

        (loss, activity), grads = ojax.value_and_grad(loss_fn)(model, x, y)
        optimizer.update(model, grads, activity=activity)

    Args:
      loss_fn: `loss_fn(model, *args, **kwargs)` returns the loss, a scalar. The model is a network of ojax layers, or one
        that calls :func:`record`.
      has_aux: Whether it returns a pair, the loss and anything else.

    Returns:
      A function of the same arguments that returns `(loss, activity), grads`, or `(loss, aux, activity), grads` with
      `has_aux`. The gradients are those of the model's `nnx.Param`; the activity is as from :func:`with_activity`.
    """

    def with_grads(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[tuple, nnx.State]:
        def loss_and_activity(model):
            found, activity = nnx.capture(lambda model: loss_fn(model, *args, **kwargs), Recorded)(model)
            loss, *aux = found if has_aux else (found,)
            return loss, (*aux, activity)

        try:
            (loss, others), grads = nnx.value_and_grad(loss_and_activity, has_aux=True)(model)
            jax.tree.map(jnp.negative, others[-1])  # Whether the activity may be used here.
        except jax.errors.UnexpectedTracerError:
            raise ValueError(
                "A layer recorded its activity inside of jax.vmap, lax.scan or the like: call the network on the whole "
                "batch, or take vmap outside of ojax.value_and_grad."
            ) from None
        return (loss, *others), grads

    return with_grads


class Dense(nnx.Module):
    """A plastic layer `y = f(norm(x W))` that records its activity.

    Attributes:
      kernel: `W`, shape (n_in, n_out), Flax's layout.
      bias: Shape (n_out,), or None.
      feedback: Fixed weights of the kernel's shape, through which the error goes back, or None for the kernel itself.
      normalization: A layer that normalizes `z` before the non-linearity, or None.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        activation: Activation = softplus,
        kernel_init: Initializer = glorot_uniform,
        feedback_init: Initializer | None = None,
        normalization: Callable[..., nnx.Module] | None = None,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (n_in, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,))) if use_bias else None
        self.feedback = feedback_init and feedback.Feedback(feedback_init(rngs.feedback(), (n_in, n_out), jnp.float32))
        # A separate random stream: adding normalization does not change a seed's kernels.
        self.normalization = normalization and normalization(n_out, rngs=nnx.Rngs(rngs.normalization()))
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """The layer's output after its non-linearity."""
        z = self.preactivation(x)
        y = self.activation(z if self.normalization is None else self.normalization(z))
        record(self, x, y)
        return y

    def preactivation(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """`z = x W`, and the bias where there is one, before any normalization; records no activity."""
        kernel = self.kernel[...]
        z = x @ kernel if self.feedback is None else feedback.matmul(x, kernel, self.feedback[...])
        z = z if self.bias is None else z + self.bias[...]
        # Outside of a capture, `perturb` would make a variable of it.
        return self.perturb("error", z, Error) if hasattr(self, "__captures__") else z


class BatchNorm(nnx.BatchNorm):
    """Batch normalization that also learns online: one sample is normalized by running statistics that include it.

    With a single sample the batch's own variance is zero. Its running mean and variance (momentum 0.99: the last 100
    samples or so) are used instead, in learning and evaluation, and the gradient treats them as constants. Batches of two
    samples and more are normalized as in `nnx.BatchNorm`.

    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; running statistics in training as in Chiley et al.
    2019, https://arxiv.org/abs/1905.05894, without their correction of the gradient.
    """

    def __call__(self, x: Float[Array, "*batch n"], use_running_average: bool | None = None, **options: Any) -> Array:
        """The normalized input; in training (`model.train()`, the default) it updates the running statistics too."""
        training = not (self.use_running_average if use_running_average is None else use_running_average)
        online = training and x.size == x.shape[-1]
        if online:
            sample, kept = without_error(x.reshape(-1)), self.momentum
            mean = kept * self.mean[...] + (1 - kept) * sample
            self.var[...] = kept * self.var[...] + (1 - kept) * (sample - mean) * (sample - self.mean[...])
            self.mean[...] = mean
        return super().__call__(x, use_running_average=online or use_running_average, **options)


class MLP(nnx.Module):
    """A feed-forward network: plastic hidden layers and a plastic read-out, by default a softmax classifier's.

    The paper's network is `MLP([784, 170, 130, 100, 70, 47], rngs=nnx.Rngs(0))`: softplus units, no biases,
    Glorot-uniform weights. It returns logits. The read-out's recorded activity is their softmax, because the probabilities
    are its postsynaptic activity in Oja's rule. For a regression give `readout=ojax.modules.linear`.

    Args:
      widths: Number of units of each layer, the input first and the classes last; one fewer kernels than widths.
      activation: Non-linearity of the hidden layers.
      readout: Maps the network's output to the read-out's postsynaptic activity: `jax.nn.softmax` or :func:`linear`.
      kernel_init: Initializer of every kernel.
      feedback: How the error goes back: `backprop`, `random` (a fixed random matrix in place of each kernel but the
        first, see :func:`ojax.feedback.matmul`) or `direct` (from the read-out to each hidden layer, see
        :func:`ojax.feedback.direct`). Feedback weights are Glorot-uniform, drawn from the stream `feedback`.
      normalization: Makes a hidden layer's normalization from its width, `nnx.LayerNorm` or
        :class:`ojax.modules.BatchNorm`; None for none. Its scale and offset learn by the gradient alone.
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
        if feedback not in ("backprop", "random", "direct"):
            raise ValueError(f"feedback must be 'backprop', 'random' or 'direct', got {feedback!r}.")
        if readout is jax.nn.softmax and widths[-1] == 1:
            raise ValueError("The softmax of a single unit is always 1: give readout=ojax.modules.linear, or more units.")
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

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """The read-out's pre-activation: the logits of a classifier."""
        *hidden, readout = self.layers
        if self.direct_feedback is None:
            for layer in hidden:
                x = layer(x)
            logits = readout.preactivation(x)
        else:
            outputs: list[Array] = []
            for layer in hidden:
                x = layer(without_error(x) if outputs else x)
                outputs.append(x)
            logits = readout.preactivation(without_error(x) if outputs else x)
            logits = feedback.direct(logits, outputs, [weights[...] for weights in self.direct_feedback])
        record(readout, x, readout.activation(logits))
        return logits


def _direct_weights(n: int, classes: int, rngs: nnx.Rngs) -> feedback.Feedback:
    return feedback.Feedback(glorot_uniform(rngs.feedback(), (n, classes), jnp.float32))


def without_feedback(model: MLP) -> MLP:
    """A copy that learns by backprop: its gradient is the true one."""
    model = nnx.clone(model)
    model.direct_feedback = None
    for layer in model.layers:
        layer.feedback = None
    return model


def with_errors(loss_fn: Callable[..., Array], model: nnx.Module, *args: Any) -> tuple[nnx.State, nnx.State]:
    """The activity of a network of :class:`Dense` layers and the error that its feedback sends to each.

    Args:
      loss_fn: `loss_fn(model, *args)` returns the loss of each sample; the sum of any array will be taken.
      model: The network; it is left as it is.
      *args: The rest of the loss function's arguments, a batch of samples.

    Returns:
      The activity, as from :func:`with_activity`, and a state with each layer's `error`, shape (batch, n_out): the
      (pseudo-)gradient of each sample's own loss with respect to `z = x W`.
    """
    graphdef, variables = nnx.split(model)

    def loss(model):
        return jnp.sum(loss_fn(model, *args))  # Not the mean: each sample's error is then its own loss's gradient.

    def loss_and_activity(taps):
        # Flax forbids changing a model that was made outside of the gradient, so a fresh one is merged here.
        return nnx.capture(loss, Recorded, init=taps)(nnx.merge(graphdef, variables))

    _, taps = nnx.capture(loss, Error)(nnx.merge(graphdef, variables))
    errors, activity = jax.grad(loss_and_activity, has_aux=True)(taps)
    return activity, errors


class Functions(NamedTuple):
    """An NNX model as pure functions of pytrees with plain arrays as leaves, for :mod:`ojax.online`.

    Attributes:
      init: `init(key) -> (params, state)`: what learns, and what else the model keeps (running statistics, feedback
        weights; an empty tree for a plain network).
      apply: `apply(params, state, *inputs, training=False) -> (output, activity, state)`, the model in training or in
        evaluation mode, and its state after the call.
      merge: `merge(params, state) -> model`, in evaluation mode.
    """

    init: Callable[[PRNGKeyArray], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Any, PyTree, PyTree]]
    merge: Callable[[PyTree, PyTree], Any]


def as_functions(make: Callable[[nnx.Rngs], nnx.Module]) -> Functions:
    """Turns an NNX model that records its activity into the pure functions that :mod:`ojax.online` maps over runs.

    The key of `init` is that of the stream `params`; all other streams (feedback weights, say) have another, so that
    the parameters of a seed do not depend on what else is drawn.

    Args:
      make: Makes the model, `lambda rngs: ojax.MLP([784, 100, 10], rngs=rngs)`.

    Returns:
      Its :class:`Functions`.
    """

    def graphdef(training: bool) -> nnx.GraphDef:
        def shaped():
            model = make(nnx.Rngs(0, params=0))  # The streams of `init`, which a model may keep.
            model.train() if training else model.eval()
            return model

        return nnx.graphdef(nnx.eval_shape(shaped))  # Only the structure is needed, so no weights are drawn.

    graphdefs = {training: graphdef(training) for training in (False, True)}

    def split(model: nnx.Module) -> tuple[PyTree, PyTree]:
        _, params, state = nnx.split(model, nnx.Param, ...)
        return nnx.as_pure(params), nnx.as_pure(state)

    def init(key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        return split(make(nnx.Rngs(jax.random.fold_in(key, 1), params=key)))

    def apply(params: PyTree, state: PyTree, *inputs: Any, training: bool = False) -> tuple[Any, PyTree, PyTree]:
        model = nnx.merge(graphdefs[training], params, state)
        output, activity = with_activity(model, *inputs)
        return output, nnx.as_pure(activity), split(model)[1]

    return Functions(init, apply, merge=lambda params, state: nnx.merge(graphdefs[False], params, state))
