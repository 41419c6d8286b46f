"""Learners from a Flax NNX network: classifiers, regressions, and any other loss on inputs and targets."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ojax import modules
from ojax.datasets import Dataset, Examples
from ojax.online.learner import Gradient, Hyper, Learner, Sum

Loss = Callable[[Any, Any], Array]
Score = Callable[[Any, Any], Array]


def classifier(
    make_network: Callable[[nnx.Rngs], nnx.Module],
    optimizer: Callable[[Hyper], optax.GradientTransformation],
    *,
    scores: Mapping[str, Score] | None = None,
) -> Learner:
    """Returns a learner of integer labels, with softmax cross-entropy.

    Its sums are `train_loss` in nats and `train_accuracy`, both computed for each sample *before* its update. In the first
    epoch all of these samples are new to the run. Its scores are `test_loss`, `test_accuracy` and `weight_norm`, see
    :func:`supervised`. A prediction with a logit that is not finite counts as wrong.

    Args:
      make_network: Makes the network, which returns logits: `lambda rngs: ojax.MLP([784, 100, 10], rngs=rngs)`.
      optimizer: The rule, see :class:`ojax.online.Learner`.
      scores: Scores of the whole test set, functions of its logits and labels, as in :func:`supervised`.

    Returns:
      A learner for a :class:`ojax.datasets.Dataset` of inputs and labels.
    """

    def loss(logits: Array, label: Array) -> Array:
        if not jnp.issubdtype(label.dtype, jnp.integer) or label.shape:
            raise ValueError(
                f"a classifier needs one whole number for a label, and each of these is {label.dtype}{list(label.shape)}"
            )
        return cross_entropy(logits, label)

    learner = supervised(make_network, optimizer, loss=loss, metrics={"accuracy": is_right}, scores=scores)

    def check(dataset: Dataset) -> None:
        assert learner.check is not None
        learner.check(dataset)
        num_classes = _output(make_network, dataset.train[0][0]).shape[-1]
        for _, labels in (dataset.train, dataset.test):
            if np.min(labels) < 0 or np.max(labels) >= num_classes:
                raise ValueError(
                    f"The labels for a network with {num_classes} outputs must be from 0 to {num_classes - 1}; these are "
                    f"from {np.min(labels)} to {np.max(labels)}."
                )

    return learner._replace(check=check)


def supervised(
    make_network: Callable[[nnx.Rngs], nnx.Module],
    optimizer: Callable[[Hyper], optax.GradientTransformation],
    *,
    loss: Loss,
    metrics: Mapping[str, Loss] | None = None,
    scores: Mapping[str, Score] | None = None,
) -> Learner:
    """Returns a learner of any targets, by the gradient of a loss.

    A regression with squared errors is::

        ojax.online.supervised(
            lambda rngs: ojax.MLP([8, 50, 1], readout=ojax.modules.linear, rngs=rngs),
            lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"]),
            loss=lambda output, target: jnp.sum((output - target) ** 2),
        )

    Its sums are `train_loss` and `train_NAME` for each metric, computed before each update. Its scores are `test_loss` and
    `test_NAME`, means over the test data with the network in evaluation mode, and `weight_norm`, the Frobenius norms of all
    kernels in the order of the parameters.

    Args:
      make_network: Makes a network that records its activity, see :mod:`ojax.modules`, and returns a vector for each
        sample.
      optimizer: The rule, see :class:`ojax.online.Learner`.
      loss: Maps the network's output and the target of *one* sample to its loss, a scalar. It is mapped over batches, so
        broadcasting cannot mix samples.
      metrics: Metrics by name, functions like `loss`; their means over samples are reported.
      scores: Scores that are not a mean over samples, by name: functions of all outputs and all targets of the test data,
        `{"r2": lambda y, t: 1 - jnp.sum((y - t) ** 2) / jnp.sum((t - t.mean(axis=0)) ** 2)}`. Each returns an
        array, and is reported as `test_NAME`.

    Returns:
      A learner for a :class:`ojax.datasets.Dataset` of inputs and targets.

    Raises:
      ValueError: If a metric or a score is called `loss`, or a metric and a score share a name.
    """
    names = ["loss", *(metrics or {}), *(scores or {})]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Loss, metrics and scores need different names; {twice[0]!r} is there twice.")
    network = modules.as_functions(make_network)
    reported = {name: _of_each(name, value) for name, value in {"loss": loss, **(metrics or {})}.items()}

    def init(key: PRNGKeyArray, hyper: Hyper) -> tuple[PyTree, PyTree]:
        del hyper
        return network.init(key)

    def gradient(params: PyTree, state: PyTree, sample: Examples, hyper: Hyper) -> Gradient:
        del hyper
        inputs, targets = sample

        def loss_fn(params: PyTree) -> tuple[Array, tuple]:
            output, activity, new_state = network.apply(params, state, inputs, training=True)
            values = {name: value(output, targets) for name, value in reported.items()}
            sums = {f"train_{name}": Sum(jnp.sum(value), jnp.float32(value.size)) for name, value in values.items()}
            return jnp.mean(values["loss"]), (sums, activity, new_state)

        grads, (sums, activity, new_state) = jax.grad(loss_fn, has_aux=True)(params)
        return Gradient(grads, activity, new_state, sums)

    def evaluate(params: PyTree, state: PyTree, test: Examples, hyper: Hyper) -> dict[str, Array]:
        del hyper
        inputs, targets = test
        output, _, _ = network.apply(params, state, inputs)
        found = {f"test_{name}": jnp.mean(value(output, targets), dtype=jnp.float32) for name, value in reported.items()}
        found |= {f"test_{name}": jnp.asarray(score(output, targets)) for name, score in (scores or {}).items()}
        norms = [jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
        return found | ({"weight_norm": jnp.stack(norms)} if norms else {})

    def check(dataset: Dataset) -> None:
        output = _output(make_network, dataset.train[0][0])
        if len(output.shape) != 1:
            raise ValueError(f"The network must return a vector for each sample; for one it returns shape {output.shape}.")
        if scores and output.shape == (*jnp.shape(dataset.train[1][0]), 1):
            raise ValueError(
                "Scores read all outputs, of shape (samples, 1), and all targets, of shape (samples,); their difference "
                "would have shape (samples, samples). So give targets of shape (samples, 1), y[:, None]."
            )

    def apply(params: PyTree, state: PyTree, inputs: Array) -> Array:
        return network.apply(params, state, inputs)[0]

    return Learner(init, gradient, optimizer, evaluate, check, apply)


def _of_each(name: str, value: Loss) -> Loss:
    """Extends a loss or metric of one sample to a batch with a leading axis.

    The output distinguishes the two: it is a vector for a sample, and a matrix for a batch.
    """

    def of_one(output: Array, target: Array) -> Array:
        found = value(output, target)
        if jnp.shape(found) != ():
            raise ValueError(
                f"the {name} of one sample must be a scalar; for an output of shape {output.shape} and a target of shape "
                f"{target.shape} it has shape {jnp.shape(found)}"
            )
        return found

    def of_any(output: Array, targets: Array) -> Array:
        if output.ndim <= 1:
            return of_one(output, targets)
        return jax.vmap(of_one)(output, jax.tree.map(jnp.asarray, targets))  # A `jax.custom_jvp` takes no NumPy array here.

    return of_any


@jax.custom_jvp
def cross_entropy(logits: Float[Array, "*batch classes"], label: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Returns the cross-entropy of the logits' softmax, in nats."""
    found = jnp.take_along_axis(jax.nn.log_softmax(logits), label[..., None], axis=-1)
    return -jnp.squeeze(found, axis=-1)


@cross_entropy.defjvp
def _cross_entropy_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Writes out the error, `softmax - one_hot`, so that XLA shares the softmax with the read-out's output."""
    (logits, label), (tangent, _) = primals, tangents
    wanted = jnp.arange(logits.shape[-1]) == label[..., None]
    error = jax.nn.softmax(logits) - wanted.astype(logits.dtype)
    return cross_entropy(logits, label), jnp.sum(error * tangent, axis=-1)


def is_right(logits: Float[Array, "*batch classes"], label: Int[Array, "*batch"]) -> Bool[Array, "*batch"]:
    """Returns whether the largest logit is the label's; False if a logit is not finite."""
    return (jnp.argmax(logits, axis=-1) == label) & jnp.all(jnp.isfinite(logits), axis=-1)


def _output(make_network: Callable[[nnx.Rngs], nnx.Module], inputs: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of the network's output."""
    return jax.eval_shape(lambda inputs: make_network(nnx.Rngs(0, params=0))(inputs), inputs)
