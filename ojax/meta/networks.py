"""A classifier that learns by a pool of local rules, with the rules' coefficients as hyper-parameters."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from ojax import measures, modules
from ojax.activity import Activity, is_activity
from ojax.datasets import Examples
from ojax.networks import MLP
from ojax.online.learner import Gradient, Hyper, Learner, Sum
from ojax.online.networks import cross_entropy, is_right
from ojax.plasticity.fusion import materialized
from ojax.plasticity.pool import pool
from ojax.plasticity.rule import Change

Coefficients = Callable[[Hyper], Mapping[str, Array]]


def classifier(
    widths: Sequence[int],
    rules: Mapping[str, Change],
    *,
    feedback: str = "backprop",
    coefficients: Coefficients = dict,
) -> Learner:
    """Returns a learner of the paper's network, an :class:`ojax.MLP` of softplus units, by a pool of local rules alone.

    The first layer's inputs have an error too, `e_0 = (B_1 e_1) * (1 - exp(-10 x))`. Its feedback matrix `B_1` is drawn
    like the others with random feedback, goes from the read-out to the inputs with direct feedback, and is the kernel with
    backprop.

    Its sums are `train_loss` and `train_accuracy`, before each update. Its scores are `test_loss` and `test_accuracy`, with
    true gradients for any feedback, and `error_angle`, one per hidden layer: the mean angle in degrees between the errors
    of the test samples and their true gradients (90 by chance).

    Args:
      widths: Number of units of each layer, the input first and the classes last.
      rules: The rules by name, see :func:`ojax.plasticity.pool`.
      feedback: `backprop`, `random` or `direct`, as in :class:`ojax.MLP`.
      coefficients: Maps the learner's hyper-parameters to the coefficient of each rule, by its name. By default the
        hyper-parameters are the coefficients.

    Returns:
      A learner for :class:`ojax.datasets.Examples` of inputs and labels.

    Source: Shervani-Tabar and Rosenbaum 2023, https://doi.org/10.1038/s41467-023-37562-1, algorithm 1; e_0 is equation 24.
    """

    def activation(z: Array) -> Array:
        # The network's own activation, in a form that is faster in gradients of gradients.
        return modules.softplus(materialized(z))

    network = modules.as_functions(lambda rngs: MLP(widths, feedback=feedback, activation=activation, rngs=rngs))

    def init(key: PRNGKeyArray, hyper: Hyper) -> tuple[PyTree, PyTree]:
        del hyper
        params, state = network.init(key)
        if feedback == "backprop":
            return params, {"network": state}
        shape = (widths[0], widths[1] if feedback == "random" else widths[-1])
        own = jax.random.fold_in(key, 2**32 - 1)  # The network's kernels take the numbers from 0.
        return params, {"network": state, "to_input": modules.glorot_uniform(own, shape)}

    def activity_of(params: PyTree, state: PyTree, inputs: Array, label: Array) -> PyTree:
        """Returns each layer's input and output, with the errors of both."""
        activity, errors = modules.with_errors(loss, network.merge(params, state["network"]), inputs, label)
        posts = jax.tree.leaves(nnx.as_pure(errors))  # One per layer, in their order.
        to_input = state["to_input"] if feedback != "backprop" else jax.tree.leaves(params)[0]
        sent = posts[-1] if feedback == "direct" else posts[0]
        pres = [(to_input @ sent) * (1 - jnp.exp(-10 * inputs)), *posts[:-1]]
        leaves, treedef = jax.tree.flatten(nnx.as_pure(activity), is_leaf=is_activity)
        sides = zip(leaves, pres, posts, strict=True)
        return jax.tree.unflatten(treedef, [Activity(leaf.pre, leaf.post, pre, post) for leaf, pre, post in sides])

    def gradient(params: PyTree, state: PyTree, sample: Examples, hyper: Hyper) -> Gradient:
        del hyper
        inputs, label = map(jnp.asarray, sample)
        logits, _, _ = network.apply(params, state["network"], inputs)
        found = {"train_loss": cross_entropy(logits, label), "train_accuracy": is_right(logits, label)}
        sums = {name: Sum(value.astype(jnp.float32), jnp.float32(1)) for name, value in found.items()}
        return Gradient(jax.tree.map(jnp.zeros_like, params), activity_of(params, state, inputs, label), state, sums)

    def evaluate(params: PyTree, state: PyTree, test: Examples, hyper: Hyper) -> dict[str, Array]:
        del hyper
        inputs, labels = map(jnp.asarray, test)
        model = network.merge(params, state["network"])
        true = modules.without_feedback(model)
        logits = true(inputs)
        sent, wanted = (nnx.as_pure(modules.with_errors(loss, net, inputs, labels)[1]) for net in (model, true))
        hidden = list(zip(*(jax.tree.leaves(errors)[:-1] for errors in (sent, wanted)), strict=True))
        scores = {
            "test_loss": jnp.mean(cross_entropy(logits, labels)),
            "test_accuracy": jnp.mean(is_right(logits, labels), dtype=jnp.float32),
        }
        return scores | ({"error_angle": jnp.stack([measures.angle(*pair) for pair in hidden])} if hidden else {})

    def optimizer(hyper: Hyper) -> optax.GradientTransformation:
        return pool(rules, coefficients(hyper))

    return Learner(init, gradient, optimizer, evaluate)


def loss(model: nnx.Module, inputs: Array, labels: Array) -> Array:
    """Returns the cross-entropy of each sample, in nats."""
    return cross_entropy(model(inputs), labels)
