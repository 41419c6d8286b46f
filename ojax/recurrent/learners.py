"""Learners of a stream, one time step per sample, that differ in their credit assignment to the past.

In every step they predict, read the target, and learn. The learner's state is the hidden state and a method's memory of the
past. The methods differ in the gradient of the cell's weights:

- :func:`readout_alone`: none. The read-out learns by the delta rule, and only a rule such as Oja's changes the cell.
- :func:`truncated_bptt`: each step's error goes back through a fixed number of steps.
- :func:`rflo`: an eligibility trace per weight, times an error through fixed random weights or the transposed read-out
  (e-prop).
- :func:`rtrl`: the exact gradient, by the derivative of the hidden state with respect to every weight.

For backpropagation through whole sequences, one sequence per sample, pass a network with an `nnx.RNN` to
:func:`ojax.online.classifier` or :func:`ojax.online.supervised`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ojax import modules
from ojax.online.learner import Gradient, Hyper, Learner, Sum
from ojax.recurrent.cells import Cell, Network
from ojax.trees import map_named

Loss = Callable[[Any, Any], Array]
Make = Callable[[nnx.Rngs], Network]
Optimizer = Callable[[Hyper], optax.GradientTransformation]
Scores = Mapping[str, Callable[[Any, Any], Array]]


def squared_error(output: Float[Array, " n_out"], target: Float[Array, " n_out"]) -> Float[Array, ""]:
    """Returns `½ Σ (output - target)²`, whose gradient is the error of the delta rule."""
    return jnp.sum((output - target) ** 2) / 2


class Step(NamedTuple):
    """One time step, before the update.

    Attributes:
      params: The network's parameters.
      carry: The carry before the step.
      inputs: Its input.
      grads: The gradient of the step's loss with respect to the parameters, `carry` held fixed.
      carry_error: The gradient of the loss with respect to `carry`.
      output_error: The gradient of the loss with respect to the output.
      advance: `advance(cell, carry, inputs)`, the carry after a step with those parameters of the cell.
    """

    params: PyTree
    carry: PyTree
    inputs: Array
    grads: PyTree
    carry_error: PyTree
    output_error: Array
    advance: Callable[[PyTree, PyTree, Array], PyTree]


class Credit(NamedTuple):
    """A method's credit assignment to the past.

    Attributes:
      init: `init(key, params, carry, inputs) -> memory`, the method's memory before the first step.
      assign: `assign(memory, step) -> (grads, memory)`, the gradient of all parameters, and the new memory.
    """

    init: Callable[[PRNGKeyArray, PyTree, PyTree, Array], PyTree]
    assign: Callable[[PyTree, Step], tuple[PyTree, PyTree]]


def readout_alone(
    make_network: Make, optimizer: Optimizer, *, loss: Loss = squared_error, scores: Scores | None = None
) -> Learner:
    """Returns a learner whose read-out learns by the delta rule; only a rule such as Oja's changes the cell.

    Its sum is `train_loss`, the loss of each step before its update. Its scores are `test_loss` and the given `scores`:
    over a test stream, with fixed weights, from the hidden state at the end of training.

    Args:
      make_network: Makes the network: `lambda rngs: Network(Cell(1, 100, rngs=rngs), 1, rngs=rngs)`.
      optimizer: The rule, see :class:`ojax.online.Learner`. `ojax.oja_sgd(eta, theta)` changes input and recurrent kernel
        by the rule of the stacked matrix.
      loss: Maps the output and the target of one step to a scalar.
      scores: Other scores by name, functions of the outputs and the targets of the whole test stream, (steps, n_out).

    Returns:
      A learner of time steps: a :class:`ojax.datasets.Stream` of :class:`ojax.datasets.Examples`, or arrays of them with
      `Plan(shuffle=False)`.
    """

    def assign(memory: PyTree, step: Step) -> tuple[PyTree, PyTree]:
        return _with_cell(step.grads, jax.tree.map(jnp.zeros_like, step.grads["cell"])), memory

    return _learner(make_network, optimizer, loss, scores, Credit(lambda *_: {}, assign))


def truncated_bptt(
    make_network: Make,
    optimizer: Optimizer,
    *,
    horizon: int,
    loss: Loss = squared_error,
    scores: Scores | None = None,
) -> Learner:
    """Returns a learner by truncated backpropagation through time: each step's error goes back through `horizon` steps.

    Past hidden states are stored; the error goes back through them with the present weights. With a horizon of 1 the error
    stays in its own step.

    Args, Returns: as :func:`readout_alone`, and `horizon`, at least 1. The cost of a step grows with it.

    Raises:
      ValueError: If the horizon is less than 1.

    Source: Williams and Peng 1990, https://doi.org/10.1162/neco.1990.2.4.490, BPTT(h).
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}.")
    if horizon == 1:  # The memory is empty, since Orbax saves no arrays of size zero.
        present_alone = Credit(lambda *_: {}, lambda memory, step: (step.grads, memory))
        return _learner(make_network, optimizer, loss, scores, present_alone)

    def init(key: PRNGKeyArray, params: PyTree, carry: PyTree, inputs: Array) -> PyTree:
        del key, params
        return jax.tree.map(
            lambda leaf: jnp.zeros((horizon - 1, *leaf.shape), leaf.dtype),
            {"carry": carry, "inputs": inputs, "is_filled": jnp.ones((), bool)},
        )

    def assign(memory: PyTree, step: Step) -> tuple[PyTree, PyTree]:
        cell = step.params["cell"]

        def back(error: PyTree, past: PyTree) -> tuple[PyTree, PyTree]:
            # No error goes back beyond the first step.
            error = jax.tree.map(lambda leaf: jnp.where(past["is_filled"], leaf, 0), error)
            _, pull = jax.vjp(lambda carry: step.advance(cell, carry, past["inputs"]), past["carry"])
            return pull(error)[0], error

        _, errors = lax.scan(back, step.carry_error, memory)  # The newest step comes first.
        # The gradient of all steps at once, so that one matrix product replaces an outer product per step.
        over_steps = jax.vmap(step.advance, in_axes=(None, 0, 0))
        _, pull = jax.vjp(lambda cell: over_steps(cell, memory["carry"], memory["inputs"]), cell)
        grads = _with_cell(step.grads, jax.tree.map(jnp.add, step.grads["cell"], pull(errors)[0]))
        newest = {"carry": step.carry, "inputs": step.inputs, "is_filled": jnp.ones((), bool)}
        return grads, jax.tree.map(lambda past, new: jnp.concatenate([new[None], past])[:-1], memory, newest)

    return _learner(make_network, optimizer, loss, scores, Credit(init, assign))


def rtrl(make_network: Make, optimizer: Optimizer, *, loss: Loss = squared_error, scores: Scores | None = None) -> Learner:
    """Returns a learner by real-time recurrent learning: the exact gradient, online, for small networks.

    It stores the derivative of the hidden state with respect to every parameter. For n units this takes n times the memory
    of the parameters, and n² multiplications per parameter and step. If the weights do not change, the sum of its gradients
    over a sequence equals the gradient by backpropagation through time.

    Args, Returns: as :func:`readout_alone`.

    Source: Williams and Zipser 1989, https://doi.org/10.1162/neco.1989.1.2.270.
    """

    def init(key: PRNGKeyArray, params: PyTree, carry: PyTree, inputs: Array) -> PyTree:
        del key, inputs
        return jax.tree.map(
            lambda part: jax.tree.map(lambda weight: jnp.zeros((*part.shape, *weight.shape), weight.dtype), params["cell"]),
            carry,
        )

    def assign(memory: PyTree, step: Step) -> tuple[PyTree, PyTree]:
        parts: Any = jax.tree.structure(step.carry)  # One array, or two for an LSTM.
        influences = parts.flatten_up_to(memory)

        def of_past(rows: PyTree) -> PyTree:
            """Applies the chain rule: derivatives with respect to the carry become derivatives of the cell's weights."""
            found = [
                jax.tree.map(lambda influence, row=row, part=part: jnp.tensordot(row, influence, part.ndim), weights)
                for row, part, weights in zip(*map(jax.tree.leaves, (rows, step.carry)), influences, strict=True)
            ]
            return jax.tree.map(lambda *terms: sum(terms), *found)

        derivatives = jax.jacrev(step.advance, argnums=(0, 1))(step.params["cell"], step.carry, step.inputs)
        memory = parts.unflatten(
            jax.tree.map(jnp.add, by_cell, of_past(by_carry)) for by_cell, by_carry in parts.flatten_up_to(derivatives)
        )
        cell = jax.tree.map(jnp.add, step.grads["cell"], of_past(step.carry_error))
        return _with_cell(step.grads, cell), memory

    return _learner(make_network, optimizer, loss, scores, Credit(init, assign))


def rflo(
    make_network: Make,
    optimizer: Optimizer,
    *,
    feedback: str = "random",
    loss: Loss = squared_error,
    scores: Scores | None = None,
) -> Learner:
    """Returns a learner by random-feedback local online learning, or by e-prop with the transposed read-out as feedback.

    Each weight from j to i has an eligibility trace, `p ← (1 - a) p + a f'(z_i) x_j` for a leaking rate a, and the gradient
    `p (B e)_i`, where e is the error of the output. Without a leak (a = 1) the trace has no memory, and the rule is local
    in time too.

    Args, Returns: as :func:`readout_alone`; the network's cell must be a :class:`Cell`, and `feedback`, B, is one of

      - `random`: fixed weights from the output to the units, normal with variance 1 / n_out;
      - `transposed`: the read-out's own weights.

    Raises:
      ValueError: If there is no such feedback, or the cell is not a :class:`Cell`.

    Source: Murray 2019, https://doi.org/10.7554/eLife.43299, equations 3 and 4; Bellec et al. 2020,
    https://doi.org/10.1038/s41467-020-17236-y (symmetric e-prop).
    """
    if feedback not in ("random", "transposed"):
        raise ValueError(f"feedback must be 'random' or 'transposed', got {feedback!r}.")
    cell = _shaped(make_network).cell
    if not isinstance(cell, Cell):
        raise ValueError(
            f"rflo needs an ojax.recurrent.Cell, whose eligibility traces it computes; got a {type(cell).__name__}."
        )
    kept = 1 - cell.leaking_rate

    def init(key: PRNGKeyArray, params: PyTree, carry: PyTree, inputs: Array) -> PyTree:
        memory: dict[str, Any] = {}
        if kept:
            memory["traces"] = {
                name: jnp.zeros((x.size, carry.size), carry.dtype) for name, x in _presynaptic(inputs, carry).items()
            }
        if feedback == "random":
            kernel = params["readout"]["kernel"]
            memory["feedback"] = jax.random.normal(key, kernel.shape, kernel.dtype) / kernel.shape[-1] ** 0.5
        return memory

    def assign(memory: PyTree, step: Step) -> tuple[PyTree, PyTree]:
        pre = _presynaptic(step.inputs, step.carry)
        z = sum(x @ step.params["cell"][name]["kernel"] for name, x in pre.items())
        _, slope = jax.jvp(cell.activation, (z,), (jnp.ones_like(z),))
        weights = memory["feedback"] if feedback == "random" else step.params["readout"]["kernel"]
        error = weights @ step.output_error
        if not kept:  # The trace is an outer product, and is not formed.
            grads = {name: jnp.outer(x, slope * error) for name, x in pre.items()}
        else:
            traces = {
                name: kept * memory["traces"][name] + jnp.outer(x, cell.leaking_rate * slope) for name, x in pre.items()
            }
            memory = memory | {"traces": traces}
            grads = jax.tree.map(lambda trace: trace * error, traces)
        return _with_cell(step.grads, grads), memory

    return _learner(make_network, optimizer, loss, scores, Credit(init, assign))


def _shaped(make_network: Make) -> Network:
    """Returns the network, with shapes in place of weights."""
    return nnx.eval_shape(lambda: make_network(nnx.Rngs(0, params=0)))


def _presynaptic(inputs: Array, carry: Array) -> dict[str, Array]:
    """Returns the input of each kernel of a :class:`Cell`."""
    return {"input": inputs, "recurrent": carry}


def _with_cell(grads: PyTree, cell: PyTree) -> PyTree:
    """Returns the tree with other leaves for the cell; the two may have different containers."""
    new = iter(jax.tree.leaves(cell))
    return map_named(lambda path, leaf: next(new) if path.startswith("cell/") else leaf, grads)


def _learner(make_network: Make, optimizer: Optimizer, loss: Loss, scores: Scores | None, credit: Credit) -> Learner:
    """Returns a learner that computes the gradient of one step, and the past's share by `credit`."""
    if scores and "test_loss" in scores:
        raise ValueError("A score needs another name than 'test_loss', the name of the loss.")
    if not isinstance(_shaped(make_network), Network):
        raise ValueError("make_network must return an ojax.recurrent.Network: a cell, and a read-out of its output.")
    network = modules.as_functions(make_network)

    def init(key: PRNGKeyArray, hyper: Hyper) -> tuple[PyTree, PyTree]:
        del hyper
        params, kept = network.init(key)
        model = network.merge(params, kept)
        carry = model.initialize_carry()
        inputs = jnp.zeros(model.cell.in_features, jnp.float32)
        memory = credit.init(jax.random.fold_in(key, 2), params, carry, inputs)
        return params, {"network": kept, "carry": carry, "memory": memory}

    def gradient(params: PyTree, state: PyTree, sample: PyTree, hyper: Hyper) -> Gradient:
        del hyper
        inputs, target = sample
        if jnp.ndim(inputs) != 1:
            raise ValueError(
                f"time steps are learned one step at a time, with batch_size=1, each a vector; got {list(inputs.shape)}"
            )
        carry = state["carry"]

        def loss_fn(params: PyTree, carry: PyTree) -> tuple[Array, tuple]:
            (new_carry, output), activity, kept = network.apply(params, state["network"], carry, inputs, training=True)
            return loss(output, target), (output, new_carry, activity, kept)

        (value, found), errors = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(params, carry)
        output, new_carry, activity, kept = found

        def advance(cell: PyTree, carry: PyTree, inputs: Array) -> PyTree:
            return network.apply(_with_cell(params, cell), state["network"], carry, inputs, training=True)[0][0]

        grads, carry_error = errors
        step = Step(params, carry, inputs, grads, carry_error, jax.grad(loss)(output, target), advance)
        grads, memory = credit.assign(state["memory"], step)
        new_state = {"network": kept, "carry": new_carry, "memory": memory}
        return Gradient(grads, activity, new_state, {"train_loss": Sum(value, jnp.float32(1))})

    def evaluate(params: PyTree, state: PyTree, test: PyTree, hyper: Hyper) -> dict[str, Array]:
        del hyper

        def advance(carry: PyTree, inputs: Array) -> tuple[PyTree, Array]:
            return network.apply(params, state["network"], carry, inputs)[0]

        _, outputs = lax.scan(advance, state["carry"], test.inputs)
        found = {name: score(outputs, test.targets) for name, score in (scores or {}).items()}
        return {"test_loss": jnp.mean(jax.vmap(loss)(outputs, test.targets)), **found}

    return Learner(init, gradient, optimizer, evaluate)
