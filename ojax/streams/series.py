"""Streams of numbers and sequences, for recurrent networks."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree

from ojax.datasets import Examples, Stream
from ojax.streams.numbers import begin, uniform


def recall(num_delays: int, *, binary: bool = False) -> Stream:
    """Returns a stream of independent inputs u, whose targets are the inputs of 1 to `num_delays` steps ago.

    Args:
      num_delays: Number of targets.
      binary: Whether u is -0.5 or 0.5, in place of uniform from -0.5 to 0.5.

    Source: Jaeger 2001, "Short term memory in echo state networks", GMD report 152.
    """
    if num_delays < 1:
        raise ValueError(f"num_delays must be at least 1, got {num_delays}.")

    def advance(state: PyTree, step: Array, data: PyTree) -> tuple[PyTree, Examples]:
        drawn, past = state
        drawn, u = uniform(drawn)
        u = jnp.where(u < 0.5, jnp.float32(-0.5), jnp.float32(0.5)) if binary else u - 0.5
        return (drawn, jnp.concatenate([u, past[:-1]])), Examples(u, past)

    return Stream(lambda key, data: (begin(key), jnp.zeros(num_delays, jnp.float32)), advance)


def copy_task(length: int, delay: int) -> Stream:
    """Returns a stream of sequences to be repeated after a delay; a sample is a whole sequence.

    The inputs have shape (2 length + delay, 2). For `length` steps the first channel is a bit, -1 or 1. Both channels are
    zero for `delay` steps. For the last `length` steps, in which the bits are to be repeated, the second channel is 1, as a
    cue. The targets are the bits as 0 and 1.

    Source: Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735; Arjovsky et al. 2016,
    https://proceedings.mlr.press/v48/arjovsky16.html, section 5.1, there with symbols in place of bits.
    """
    if length < 1 or delay < 0:
        raise ValueError(f"length must be at least 1 and delay at least 0, got {length} and {delay}.")

    def advance(numbers: PyTree, step: Array, data: PyTree) -> tuple[PyTree, Examples]:
        numbers, u = uniform(numbers, length)
        bits = (u >= 0.5).astype(jnp.float32)
        silence, cue = jnp.zeros(length + delay, jnp.float32), jnp.ones(length, jnp.float32)
        inputs = jnp.stack([jnp.concatenate([2 * bits - 1, silence]), jnp.concatenate([silence, cue])], axis=1)
        return numbers, Examples(inputs, bits)

    return Stream(lambda key, data: begin(key), advance)


def narma10() -> Stream:
    """Returns a stream of NARMA-10, the nonlinear autoregressive moving average of order 10, whose targets are its outputs.

    `y(t+1) = 0.3 y(t) + 0.05 y(t) Σ y(t-i) + 1.5 u(t-9) u(t) + 0.1`, the sum over i from 0 to 9, u uniform in [0, 0.5].
    y is clipped at 1, since the recurrence diverges for rare inputs.

    Source: Atiya and Parlos 2000, https://doi.org/10.1109/72.846741, equation 86.
    """

    def advance(state: PyTree, step: Array, data: PyTree) -> tuple[PyTree, Examples]:
        drawn, inputs, outputs = state  # The newest first.
        drawn, u = uniform(drawn)
        inputs = jnp.concatenate([0.5 * u, inputs[:-1]])
        y = outputs[0]
        y = jnp.minimum(0.3 * y + 0.05 * y * jnp.sum(outputs) + 1.5 * inputs[9] * inputs[0] + 0.1, 1.0)[None]
        return (drawn, inputs, jnp.concatenate([y, outputs[:-1]])), Examples(inputs[:1], y)

    return Stream(lambda key, data: (begin(key), jnp.zeros(10, jnp.float32), jnp.zeros(10, jnp.float32)), advance)


def mackey_glass(horizon: int = 1, *, delay: float = 17.0) -> Stream:
    """Returns a stream of the Mackey-Glass equation, whose target is its value `horizon` units of time later.

    `dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x(t)`, by Euler's method in steps of 0.1. A step of the stream
    is one unit of time. Inputs and targets are x - 1. The key draws initial values around 1.2, 1,000 units of time before
    the first step; the rest is deterministic.

    Args:
      horizon: Units of time from the input to the target, at least 1.
      delay: Delay in units of time; 17 is mildly chaotic, 30 more so.

    Source: Mackey and Glass 1977, https://doi.org/10.1126/science.267326; Jaeger and Haas 2004,
    https://doi.org/10.1126/science.1091277.
    """
    if horizon < 1 or delay < 0.1:
        raise ValueError(f"horizon must be at least 1 and delay at least 0.1, got {horizon} and {delay}.")

    def euler(history: Array, _: None) -> tuple[Array, None]:  # The newest first.
        x, delayed = history[0], history[-1]
        x = x + 0.1 * (0.2 * delayed / (1 + delayed**10) - 0.1 * x)
        return jnp.concatenate([x[None], history[:-1]]), None

    def unit(history: Array) -> Array:
        return lax.scan(euler, history, length=10)[0]

    def init(key: PRNGKeyArray, data: PyTree) -> PyTree:
        history = 1.2 + 0.2 * jax.random.uniform(key, (round(10 * delay) + 1,), jnp.float32, minval=-1.0)
        history = lax.fori_loop(0, 1000, lambda _, history: unit(history), history)

        def ahead(history: Array, _: None) -> tuple[Array, Array]:
            return unit(history), history[0]

        history, values = lax.scan(ahead, history, length=horizon)
        return history, values[::-1]

    def advance(state: PyTree, step: Array, data: PyTree) -> tuple[PyTree, Examples]:
        history, values = state  # `values` are from now until the target, the newest first.
        sample = Examples(values[-1:] - 1, history[:1] - 1)
        return (unit(history), jnp.concatenate([history[:1], values[:-1]])), sample

    return Stream(init, advance)
