"""What learns: four pure functions that know nothing of runs, devices, files or flags."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Hyper = Mapping[str, Float[Array, ""]]


class Sum(NamedTuple):
    """A quantity summed over some number of samples, time steps or whatever else it is a mean of.

    Attributes:
      total: The sum.
      weight: How many it is a sum over. The mean over several steps is the sum of their totals over that of their weights.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]


class Gradient(NamedTuple):
    """What a learner computes from one sample, before it learns from it.

    Attributes:
      grads: What the optimizer takes for the gradient, with the structure of the parameters.
      activity: An activity tree for rules such as :func:`ojax.oja`; an empty one, `{}`, for a learner without any.
      state: The learner's state after the sample.
      sums: Counted quantities by name: loss, right answers. A run whose sums leave the finite range has diverged.
      signals: Other keywords of the optimizer's `update`, by name: a reward for a rule with a third factor, see
        :func:`ojax.plasticity.rule`.
    """

    grads: PyTree
    activity: PyTree
    state: PyTree
    sums: dict[str, Sum]
    signals: Mapping[str, PyTree] = {}


class Learner(NamedTuple):
    """What learns, as pure functions of pytrees.

    A *sample* is what one step learns from: any pytree of arrays, such as an image and its label, a time step, a sequence
    or a whole episode. With `Plan.batch_size` above 1 a step gets a batch, with one more leading axis.
    :func:`ojax.online.classifier` and :func:`ojax.online.supervised` make a learner of a Flax NNX network.

    Attributes:
      init: `init(key, hyper) -> (params, state)`: what learns, and what else is carried from step to step (a hidden state,
        running statistics, feedback weights); an empty tree if there is nothing.
      gradient: `gradient(params, state, sample, hyper) -> Gradient`, by `jax.grad` or in any other way.
      optimizer: `optimizer(hyper)` returns an Optax transformation, whose `update` is given `activity` and the signals.
        `hyper` holds the run's numbers as traced scalars: `lambda hyper: ojax.oja_sgd(hyper["learning_rate"],
        hyper["oja_rate"])`.
      evaluate: `evaluate(params, state, test, hyper)` returns scores, a dict of arrays. `test` is all of the test data.
      check: `check(dataset)` raises ValueError for data that the learner could not learn from. It is called with NumPy
        arrays before anything is compiled. None if any data will do.
      apply: `apply(params, state, inputs)` calls the network, for whoever looks at what was learned; None if there is none.
    """

    init: Callable[[PRNGKeyArray, Hyper], tuple[PyTree, PyTree]]
    gradient: Callable[[PyTree, PyTree, PyTree, Hyper], Gradient]
    optimizer: Callable[[Hyper], optax.GradientTransformation]
    evaluate: Callable[[PyTree, PyTree, PyTree, Hyper], dict[str, Array]]
    check: Callable[[Any], None] | None = None
    apply: Callable[[PyTree, PyTree, Any], Any] | None = None
