"""Streams that are made as they are learned from, on the device and from the run's own seed: no file, and no memory.

A :class:`Stream` makes one time step after the other. :func:`generated` turns a learner of time steps into one whose steps
come from a stream, so that :func:`ojax.online.train` trains it as any other. A stream in a file needs nothing from here:
it is a :class:`ojax.datasets.Dataset` of :class:`ojax.datasets.Examples` in their order, with `Plan(shuffle=False)`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

from ojax.datasets import Dataset, Examples
from ojax.online.learner import Gradient, Hyper, Learner


class Stream(NamedTuple):
    """What makes a stream, one step after the other.

    Attributes:
      init: `init(key) -> state`, before the first step.
      advance: `advance(state) -> (state, sample)`.
    """

    init: Callable[[PRNGKeyArray], PyTree]
    advance: Callable[[PyTree], tuple[PyTree, Examples]]


def generated(learner: Learner, stream: Stream, num_test: int) -> Learner:
    """A learner that makes its own samples; each run has a stream of its own, by its seed.

    It is evaluated on the next `num_test` steps of its own stream, as if it stopped learning there. They are not skipped:
    when it learns on, it learns from these.

    Args:
      learner: A learner of the stream's samples.
      stream: What makes them.
      num_test: Number of steps of an evaluation.

    Returns:
      A learner for the data of :func:`steps`.
    """

    def init(key: PRNGKeyArray, hyper: Hyper) -> tuple[PyTree, PyTree]:
        params, state = learner.init(key, hyper)
        return params, {"learner": state, "stream": stream.init(jax.random.fold_in(key, 3))}

    def gradient(params: PyTree, state: PyTree, sample: Array, hyper: Hyper) -> Gradient:
        if jnp.shape(sample):
            raise ValueError("a stream is learned one step at a time, with batch_size=1")
        stream_state, made = stream.advance(state["stream"])
        found = learner.gradient(params, state["learner"], made, hyper)
        return found._replace(state={"learner": found.state, "stream": stream_state})

    def evaluate(params: PyTree, state: PyTree, test: PyTree, hyper: Hyper) -> dict[str, Array]:
        del test
        return learner.evaluate(params, state["learner"], take(stream, state["stream"], num_test), hyper)

    return Learner(init, gradient, learner.optimizer, evaluate)


def steps(count: int, name: str = "generated") -> Dataset:
    """The data of a learner that makes its own samples: the numbers of its steps, and no test data."""
    return Dataset(np.arange(count, dtype=np.int32), {}, name=name)


def take(stream: Stream, state: PyTree, count: int) -> Examples:
    """The next so many steps of a stream in that state, each array with a leading axis `steps`."""
    return lax.scan(lambda state, _: stream.advance(state), state, length=count)[1]


class _Numbers(NamedTuple):
    """A source of random numbers: two words of a key, and how many have been drawn."""

    key: UInt32[Array, " 2"]
    drawn: UInt32[Array, ""]


def _numbers(key: PRNGKeyArray) -> _Numbers:
    return _Numbers(jax.random.bits(key, (2,), jnp.uint32), jnp.uint32(0))


def _uniform(numbers: _Numbers, size: int = 1) -> tuple[_Numbers, Float[Array, " size"]]:
    """The next numbers, uniform from 0 to 1."""
    counter = numbers.drawn + jnp.arange(size, dtype=jnp.uint32)
    bits, _ = threefry(numbers.key, (counter, jnp.zeros_like(counter)))
    # The bits become the fraction of a float between 1 and 2.
    ones = lax.bitcast_convert_type((bits >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32)
    return numbers._replace(drawn=numbers.drawn + np.uint32(size)), ones - 1


def threefry(key: UInt32[Array, " 2"], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two random words from a key and a counter: Threefry-2x32 with 20 rounds, which is JAX's default generator too.

    JAX's own is a loop on a CPU. For a single number a step, that loop takes longer than the step of learning.

    Source: Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405, section 4.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    one, two = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            one = one + two
            two = one ^ ((two << np.uint32(bits)) | (two >> np.uint32(32 - bits)))
        one, two = one + keys[(group + 1) % 3], two + keys[(group + 2) % 3] + np.uint32(group + 1)
    return one, two


def recall(num_delays: int, *, binary: bool = False) -> Stream:
    """Independent inputs u; the targets are the inputs of 1 to `num_delays` steps ago.

    Args:
      num_delays: Number of targets.
      binary: Whether u is -0.5 or 0.5, in place of uniform from -0.5 to 0.5.

    Source: Jaeger 2001, "Short term memory in echo state networks", GMD report 152.
    """
    if num_delays < 1:
        raise ValueError(f"num_delays must be at least 1, got {num_delays}.")

    def advance(state: PyTree) -> tuple[PyTree, Examples]:
        drawn, past = state
        drawn, u = _uniform(drawn)
        u = jnp.where(u < 0.5, -0.5, 0.5) if binary else u - 0.5
        return (drawn, jnp.concatenate([u, past[:-1]])), Examples(u, past)

    return Stream(lambda key: (_numbers(key), jnp.zeros(num_delays)), advance)


def copy_task(length: int, delay: int) -> Stream:
    """Sequences to be repeated after a delay; a sample is one sequence, and not one time step.

    The inputs, of shape (2 length + delay, 2), are `length` steps with a bit each, -1 or 1, in the first channel; then
    nothing for `delay` steps; then a cue, 1 in the second channel, for the `length` steps in which the bits are to be
    repeated in their order. The targets are the bits as 0 and 1.

    Source: Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735; Arjovsky et al. 2016,
    https://proceedings.mlr.press/v48/arjovsky16.html, section 5.1, there with symbols in place of bits.
    """
    if length < 1 or delay < 0:
        raise ValueError(f"length must be at least 1 and delay at least 0, got {length} and {delay}.")

    def advance(numbers: PyTree) -> tuple[PyTree, Examples]:
        numbers, u = _uniform(numbers, length)
        bits = jnp.where(u < 0.5, 0.0, 1.0)
        silence, cue = jnp.zeros(length + delay), jnp.ones(length)
        inputs = jnp.stack([jnp.concatenate([2 * bits - 1, silence]), jnp.concatenate([silence, cue])], axis=1)
        return numbers, Examples(inputs, bits)

    return Stream(_numbers, advance)


def narma10() -> Stream:
    """The nonlinear autoregressive moving average of order 10; the target is the output that follows the input.

    `y(t+1) = 0.3 y(t) + 0.05 y(t) Σ y(t-i) + 1.5 u(t-9) u(t) + 0.1`, the sum over i from 0 to 9, u uniform in [0, 0.5].
    y is clipped at 1: the recurrence runs away from rare inputs.

    Source: Atiya and Parlos 2000, https://doi.org/10.1109/72.846741, equation 86.
    """

    def advance(state: PyTree) -> tuple[PyTree, Examples]:
        drawn, inputs, outputs = state  # The newest first.
        drawn, u = _uniform(drawn)
        inputs = jnp.concatenate([0.5 * u, inputs[:-1]])
        y = outputs[0]
        y = jnp.minimum(0.3 * y + 0.05 * y * jnp.sum(outputs) + 1.5 * inputs[9] * inputs[0] + 0.1, 1.0)[None]
        return (drawn, inputs, jnp.concatenate([y, outputs[:-1]])), Examples(inputs[:1], y)

    return Stream(lambda key: (_numbers(key), jnp.zeros(10), jnp.zeros(10)), advance)


def mackey_glass(horizon: int = 1, *, delay: float = 17.0) -> Stream:
    """The Mackey-Glass equation; the target is its value `horizon` steps of one unit of time later. Both are shifted by -1.

    `dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x(t)`, by Euler's method in steps of 0.1. It starts from values
    around 1.2 that the key draws, 1,000 units of time before the first step; from there on it draws nothing.

    Args:
      horizon: How far ahead the target lies, at least 1.
      delay: In units of time; 17 is mildly chaotic, 30 more so.

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

    def init(key: PRNGKeyArray) -> PyTree:
        history = 1.2 + 0.2 * jax.random.uniform(key, (round(10 * delay) + 1,), minval=-1.0)
        history = lax.fori_loop(0, 1000, lambda _, history: unit(history), history)

        def ahead(history: Array, _: None) -> tuple[Array, Array]:
            return unit(history), history[0]

        history, values = lax.scan(ahead, history, length=horizon)
        return history, values[::-1]

    def advance(state: PyTree) -> tuple[PyTree, Examples]:
        history, values = state  # `values` are those from now until the target, the newest first.
        sample = Examples(values[-1:] - 1, history[:1] - 1)
        return (unit(history), jnp.concatenate([history[:1], values[:-1]])), sample

    return Stream(init, advance)
