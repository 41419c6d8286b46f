"""The interface of a learner: four pure functions that do not depend on runs, devices, files or flags."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Hyper = Mapping[str, Float[Array, ""]]


class Sum(NamedTuple):
    """A sum whose mean is reported: over samples, time steps or other units.

    Attributes:
      total: The sum.
      weight: Number of summands. The mean over several steps is the sum of their totals divided by the sum of their
        weights.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]


class Gradient(NamedTuple):
    """The result of a learner's gradient for one sample, before the update.

    Attributes:
      grads: The gradient, or any other input of the optimizer, with the structure of the parameters.
      activity: An activity tree for rules such as :func:`ojax.oja`; `{}` for a learner without a rule.
      state: The learner's state after the sample.
      sums: Summed quantities by name: loss, correct predictions. A run whose sums are not finite has diverged.
      signals: Other keywords of the optimizer's `update`, by name: a reward for a rule with a third factor, see
        :func:`ojax.plasticity.rule`.
    """

    grads: PyTree
    activity: PyTree
    state: PyTree
    sums: dict[str, Sum]
    signals: Mapping[str, PyTree] = {}


class Learner(NamedTuple):
    """A learner, as pure functions of pytrees.

    A *sample* is the input of one step: any pytree of arrays, such as an image and its label, a time step, a sequence or a
    whole episode. With `Plan.batch_size` above 1 a step gets a batch, with one more leading axis.
    :func:`ojax.online.classifier` and :func:`ojax.online.supervised` make a learner from a Flax NNX network.

    Attributes:
      init: `init(key, hyper) -> (params, state)`: the parameters, and the state that is carried from step to step (a hidden
        state, running statistics, feedback weights; an empty tree if there is none).
      gradient: `gradient(params, state, sample, hyper) -> Gradient`, by `jax.grad` or in any other way.
      optimizer: `optimizer(hyper)` returns an Optax transformation, whose `update` is given `activity` and the signals.
        `hyper` holds the run's hyper-parameters as traced scalars: `lambda hyper: ojax.oja_sgd(hyper["learning_rate"],
        hyper["oja_rate"])`.
      evaluate: `evaluate(params, state, test, hyper)` returns scores, a dict of arrays. `test` is all of the test data.
      check: `check(dataset)` raises ValueError for data that do not fit the learner. It is called with NumPy arrays before
        anything is compiled. None if any data fit.
      apply: `apply(params, state, inputs)` calls the network, to inspect trained runs; None if there is no network.
    """

    init: Callable[[PRNGKeyArray, Hyper], tuple[PyTree, PyTree]]
    gradient: Callable[[PyTree, PyTree, PyTree, Hyper], Gradient]
    optimizer: Callable[[Hyper], optax.GradientTransformation]
    evaluate: Callable[[PyTree, PyTree, PyTree, Hyper], dict[str, Array]]
    check: Callable[[Any], None] | None = None
    apply: Callable[[PyTree, PyTree, Any], Any] | None = None
