"""The recurrent networks of the experiments: their initial weights, learners and scores."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, PyTree

import ojax
from experiments.common.results import MOST
from experiments.common.task import Setting
from experiments.tasks.networks import QUANTILES
from experiments.tasks.registry import (
    DELAYS_PER_COLUMN,
    LAGS,
    LEARNING,
    RECALLED,
    RECURRENT_INITIALIZERS,
    SIGNS,
    STREAMS,
    resolve,
)
from ojax import measures, modules, online, recurrent, streams
from ojax.datasets import Dataset, Examples, Stream
from ojax.recurrent import Cell, Network
from ojax.trees import map_named

orthogonal = jax.nn.initializers.orthogonal()
recall_bits = functools.partial(streams.recall, binary=True)


def eprop(*args: Any) -> online.Learner:
    """Returns the learner of e-prop: RFLO whose feedback is the transposed read-out."""
    return recurrent.rflo(*args, feedback="transposed")


def data_of(setting: Setting) -> Dataset:
    """Returns the data of a setting's stream, which is generated on the device."""
    name = setting["dataset"]
    stream = resolve(STREAMS[name])(*[setting["delays"]] * (name in RECALLED))
    return streams.evaluated_ahead(stream, setting["num_test"], name=name)


def copy_task(setting: Setting) -> Dataset:
    """Returns the data of the copy task with the setting's delay."""
    stream = streams.copy_task(setting["length"], setting["delay"])
    return streams.evaluated_ahead(stream, setting["num_test"], name=setting["dataset"])


def stream_learner(setting: Setting, data: Dataset) -> online.Learner:
    """Returns the learner of a stream, with tanh units; `init` and `rule` are indices into their axes."""
    shown = data.train
    if isinstance(shown, Stream):
        shown = streams.take(shown, shown.init(jax.random.key(0), shown.data), 5000)
    n_in, n_out, targets = shown.inputs.shape[1], shown.targets.shape[1], shown.targets
    power = np.mean((targets - np.mean(targets, axis=0)) ** 2, axis=0)

    def maker(scheme: str) -> Callable[[nnx.Rngs], Network]:
        def make(rngs: nnx.Rngs) -> Network:
            init = resolve(RECURRENT_INITIALIZERS[scheme])
            cell = Cell(n_in, setting["units"], leaking_rate=setting["leaking_rate"], recurrent_init=init, rngs=rngs)
            return Network(cell, n_out, rngs=rngs)

        return make

    learn = resolve(LEARNING[setting["learning"]])
    if learn is recurrent.truncated_bptt:
        learn = functools.partial(learn, horizon=setting["horizon"])
    learners = [learn(maker(scheme), oja_on_kernels(setting)) for scheme in setting["init"]]

    base = _from_schemes(learners)

    def gradient(params: PyTree, state: PyTree, sample: Examples, hyper: online.Hyper) -> online.Gradient:
        found = base.gradient(params, state, sample, hyper)
        total, weight = found.sums["train_loss"]
        return found._replace(sums=found.sums | {"train_r2": online.Sum(weight - 2 * total / np.sum(power), weight)})

    def evaluate(params: PyTree, state: PyTree, test: Examples, hyper: online.Hyper) -> dict[str, Array]:
        del hyper
        return _scores(setting, params, state["carry"], test, power)

    return base._replace(gradient=gradient, evaluate=evaluate)


class Reader(nnx.Module):
    """A recurrent network that reads a sequence; its output is a vector of the outputs in the last steps.

    Args:
      cell: The cell.
      out_features: Number of outputs per step.
      num_outputs: Number of last steps with an output.
      prepare: Maps a sample to its sequence, (..., steps, n_in).
      rngs: For the read-out.
    """

    def __init__(
        self, cell: Cell, out_features: int, *, num_outputs: int, prepare: Callable[[Array], Array], rngs: nnx.Rngs
    ):
        self.rnn = nnx.RNN(cell, rngs=False)
        self.readout = nnx.Linear(cell.hidden_features, out_features, rngs=rngs)
        self.num_outputs, self.prepare = num_outputs, prepare

    def __call__(self, sample: Float[Array, "..."]) -> Float[Array, "*batch outputs"]:
        """Returns the outputs of the last steps, concatenated."""
        sequence = self.prepare(sample)
        output = self.readout(self.rnn(sequence)[..., -self.num_outputs :, :])
        ojax.record(self.readout)  # The read-out is not plastic.
        return output.reshape(*sequence.shape[:-2], -1)


def row_learner(setting: Setting, data: Dataset) -> online.Learner:
    """Returns a learner that classifies images from one row per step, followed by empty rows."""
    side = round(data.train.inputs.shape[1] ** 0.5)

    def prepare(image: Array) -> Array:
        rows = image.reshape(*image.shape[:-1], side, side)
        return jnp.concatenate([rows, jnp.zeros((*rows.shape[:-2], setting["delay"], side))], axis=-2)

    makers = [_reader(setting, scheme, side, len(data.class_names), 1, prepare) for scheme in setting["init"]]
    return _from_schemes([online.classifier(make, _oja_sgd) for make in makers])


def copy_learner(setting: Setting) -> online.Learner:
    """Returns a learner that repeats bits after a delay; its accuracy is the share of correct bits."""
    length = setting["length"]

    def entropy(output: Array, bits: Array) -> Array:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(output, bits))

    def accuracy(output: Array, bits: Array) -> Array:
        return jnp.mean(((output > 0) == (bits > 0.5)) & jnp.isfinite(output))

    makers = [_reader(setting, scheme, 2, 1, length, lambda sequence: sequence) for scheme in setting["init"]]
    return _from_schemes(
        [online.supervised(make, _oja_sgd, loss=entropy, metrics={"accuracy": accuracy}) for make in makers]
    )


def _reader(
    setting: Setting, scheme: str, n_in: int, n_out: int, num_outputs: int, prepare: Callable[[Array], Array]
) -> Callable[[nnx.Rngs], Reader]:
    def make(rngs: nnx.Rngs) -> Reader:
        inits = modules.glorot_uniform, resolve(RECURRENT_INITIALIZERS[scheme])
        cell = Cell(n_in, setting["units"], input_init=inits[0], recurrent_init=inits[1], rngs=rngs)
        return Reader(cell, n_out, num_outputs=num_outputs, prepare=prepare, rngs=rngs)

    return make


def _oja_sgd(hyper: online.Hyper) -> optax.GradientTransformation:
    return ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"])


def _from_schemes(learners: Sequence[online.Learner]) -> online.Learner:
    """Returns a learner whose initial weights are of the learner with the index `init`, times the gain."""

    def init(key: Array, hyper: online.Hyper) -> tuple[PyTree, PyTree]:
        branches = [lambda key, learner=learner: learner.init(key, hyper) for learner in learners]
        params, state = lax.switch(hyper["init"].astype(jnp.int32), branches, key)
        factors = {"recurrent": hyper["init_gain"]}
        if "input_scale" in hyper:
            factors["input"] = hyper["input_scale"] / 0.5  # The weights are drawn from -0.5 to 0.5.
        return _scaled(params, factors), state

    return learners[0]._replace(init=init)


def oja_on_kernels(setting: Setting) -> Callable[[online.Hyper], optax.GradientTransformation]:
    """Returns gradient descent, with Oja's rule on the kernels that the run's `rule` names."""
    signs = jnp.array([SIGNS[name] for name in setting["rule"]])

    def only(name: str) -> Callable[[PyTree], PyTree]:
        return lambda params: map_named(lambda path, _: f"/{name}/" in path, params)

    def optimizer(hyper: online.Hyper) -> optax.GradientTransformation:
        rates = hyper["oja_rate"] * signs[hyper["rule"].astype(jnp.int32)]
        rules = [ojax.oja(rate, mask=only(name)) for rate, name in zip(rates, ("input", "recurrent"), strict=True)]
        return optax.chain(optax.sgd(hyper["learning_rate"]), *rules)

    return optimizer


def _scaled(params: PyTree, factors: dict[str, Array]) -> PyTree:
    """Returns the parameters with the cell's kernels multiplied by factors."""

    def scaled(path: str, leaf: Array) -> Array:
        return next((leaf * factor for name, factor in factors.items() if f"/{name}/" in path), leaf)

    return map_named(scaled, params)


def _scores(
    setting: Setting, params: PyTree, carry: Array, test: PyTree, power: Float[np.ndarray, " n_out"]
) -> dict[str, Array]:
    """Returns the recall of the test stream with fixed weights, and measures of the recurrent weights."""
    U, W = (params["cell"][name]["kernel"] for name in ("input", "recurrent"))
    leak = setting["leaking_rate"]

    def advance(hidden: Array, inputs: Array) -> tuple[Array, tuple[Array, Array]]:
        post = jnp.tanh(inputs @ U + hidden @ W)
        hidden = (1 - leak) * hidden + leak * post
        return hidden, (hidden, post)

    _, (hidden, posts) = lax.scan(advance, carry, test.inputs)
    output = hidden @ params["readout"]["kernel"] + params["readout"]["bias"]
    squares = jnp.mean((output - test.targets) ** 2, axis=0)
    explained = jnp.where(jnp.isfinite(squares), jnp.maximum(1 - squares / power, 0), 0)  # 0 for a run that has diverged.
    singular_values = measures.singular_values(W)
    # The derivative of each hidden state with respect to the previous one.
    slopes = 1 - posts[: max(LAGS)] ** 2
    jacobians = (1 - leak) * jnp.eye(len(W)) + leak * slopes[:, :, None] * W.T
    scores = {
        "test_loss": jnp.sum(squares) / 2,
        "test_recall": jnp.sum(explained),
        MOST: jnp.float32(len(explained)),
        "recall_r2": _by_columns(explained),
        "spectral_radius": measures.spectral_radius(W),
        "input_norm": jnp.linalg.norm(U),
        "effective_dimension": measures.effective_dimension(hidden),
        "jacobian_norm": measures.norms_of_products(jacobians)[np.array(LAGS) - 1],
    }
    scores |= {f"singular_value_p{q:03}": jnp.percentile(singular_values, q) for q in QUANTILES}
    if setting["dataset"] in RECALLED:
        curve = measures.memory_curve(hidden, test.targets)
        curve = jnp.where(jnp.isfinite(curve), curve, 0)  # As above.
        scores |= {"test_capacity": jnp.sum(curve), "capacity_r2": _by_columns(curve)}
    return scores


def _by_columns(curve: Float[Array, " delays"]) -> Float[Array, " columns"]:
    """Returns the mean over each `DELAYS_PER_COLUMN` delays."""
    starts = range(0, len(curve), DELAYS_PER_COLUMN)
    return jnp.stack([jnp.mean(curve[start : start + DELAYS_PER_COLUMN]) for start in starts])
